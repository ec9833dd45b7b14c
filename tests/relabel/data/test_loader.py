"""Batches: what a step reads, in which order, and that neither workers nor a restart change a bit of it."""

from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from relabel.augment import Augmentation
from relabel.crop_box import CropBox
from relabel.data.batch import Batch, collate
from relabel.data.dataset import CenterCrop, ImageDataset, RandomResizedCrop, Sample
from relabel.data.extra_images import spread
from relabel.data.folders import list_images
from relabel.data.loader import Loader, TrainBatches, copy_ahead, epoch_order, eval_batches, steps_per_epoch
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import open_label_store
from tests.strategies import SEEDS
from utils.errors import UserError

CPU = torch.device("cpu")
NEUTRAL = Augmentation(False, 2, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0))


@pytest.fixture
def dataset(tmp_path: Path) -> ImageDataset:
    """23 images, JPEG and PNG, in two classes, with label maps of 2 x 3 cells; read by the fast decoder."""
    rng = np.random.default_rng(0)
    for i in range(23):
        folder = tmp_path / "train" / ("ant" if i < 9 else "bee")
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (20 + i, 40 - i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.{('jpg', 'png')[i % 2]}")
    images = list_images(tmp_path / "train")
    for key in images.keys().tolist():
        dense = rng.normal(size=(2, 2, 3)).astype(np.float32)
        write_label_map(tmp_path / "labels", key.decode(), LabelMap.from_dense(dense, 2))
    store = open_label_store(tmp_path / "labels", images.keys(), images.class_names)
    return ImageDataset(images, RandomResizedCrop(12, 0.08, 0.5, 0.4, 0.1, seed=5), store, "simplejpeg")


def train_batches(
    start_step: int = 0, accumulation: int = 1, rank: int = 0, world_size: int = 1, seed: int = 5
) -> TrainBatches:
    """23 images in global batches of 8: 2 steps an epoch; 7 steps in all."""
    return TrainBatches(23, 8 // world_size, accumulation, rank, world_size, seed, start_step, total_steps=7)


def sample(label_map: LabelMap | None = None, augmentation: Augmentation | None = None, index: int = 0) -> Sample:
    """A sample whose pixels are its index."""
    image = np.full((3, 4, 4), index, dtype=np.uint8)
    return Sample(image, index % 2, CropBox(0.1, 0.2, 0.5, 0.75), label_map, augmentation, index)


def assert_same_batch(first: Batch, second: Batch) -> None:
    """Bit by bit, type by type."""
    for field in fields(Batch):
        a, b = getattr(first, field.name), getattr(second, field.name)
        assert (a is None) == (b is None), field.name
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name


def test_collate_stacks_every_field() -> None:
    scores = np.arange(12, dtype=np.float16).reshape(2, 2, 3)
    classes = np.stack([np.zeros((2, 3)), np.full((2, 3), 7)]).astype(np.int16)
    drawn = Augmentation(True, 4, (0.9, 1.1, 1.2), (0.1, 0.0, -0.1))
    label_map = LabelMap(scores, classes)
    batch = collate([sample(label_map, drawn, 3), sample(label_map, NEUTRAL, 4), sample(label_map, drawn, 5)])
    assert len(batch) == 3 and batch.images.shape == (3, 3, 4, 4) and batch.images.dtype == torch.uint8
    assert batch.images[:, 0, 0, 0].tolist() == [3, 4, 5]
    assert batch.labels.tolist() == [1, 0, 1] and batch.labels.dtype == torch.int64
    torch.testing.assert_close(batch.boxes[1], torch.tensor([0.1, 0.2, 0.5, 0.75]))
    assert batch.scores is not None and batch.scores.shape == (3, 2, 2, 3) and batch.scores.dtype == torch.float16
    assert batch.classes is not None and batch.classes.dtype == torch.int16
    assert batch.flips is not None and batch.flips.tolist() == [True, False, True]
    assert batch.jitter_orders is not None and batch.jitter_orders.tolist() == [4, 2, 4]
    assert batch.jitter_factors is not None and batch.jitter_factors.shape == (3, 3)
    assert batch.lighting is not None and batch.lighting.dtype == torch.float32
    assert batch.indices.tolist() == [3, 4, 5]
    moved = batch.to(CPU)
    assert moved.classes is not None and moved.classes.dtype == torch.int64 and moved.scores is batch.scores


def test_what_changes_nothing_is_none() -> None:
    batch = collate([sample(augmentation=NEUTRAL), sample(augmentation=NEUTRAL, index=1)])
    assert batch.flips is batch.jitter_orders is batch.jitter_factors is batch.lighting is None
    plain = collate([sample(), sample(index=1)])
    assert plain.scores is plain.classes is plain.flips is plain.jitter_factors is plain.lighting is None


def test_too_few_images_for_a_batch_are_refused() -> None:
    assert steps_per_epoch(23, 8) == 2 and steps_per_epoch(8, 8) == 1
    with pytest.raises(UserError, match=r"found 7 training images; expected at least one batch of 8"):
        steps_per_epoch(7, 8)


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 11), st.integers(0, 8), SEEDS)
def test_an_epoch_takes_each_image_at_most_once_over_ranks_and_restarts(
    world_size: int, micro: int, accumulation: int, more: int, start_step: int, seed: int
) -> None:
    """Whatever the sizes: all epochs together are what one process would read, from any step on.

    One process reads global batch t of an epoch as order[t * B : (t + 1) * B].
    """
    rows = micro * accumulation
    num_images = rows * world_size + more
    steps = num_images // (rows * world_size)
    total = max(start_step, 2 * steps)

    def read(rank: int, of: int, start: int) -> list[list[tuple[int, int]]]:
        size = rows * world_size // of
        return list(TrainBatches(num_images, size, accumulation if of > 1 else 1, rank, of, seed, start, total))

    whole = read(0, 1, 0)
    for epoch in range(2):
        seen = [key for batch in whole[epoch * steps : (epoch + 1) * steps] for key in batch]
        order = epoch_order(seed, epoch, num_images)
        assert seen == [(epoch, index) for index in order[: steps * rows * world_size].tolist()]
        assert sorted(order) == list(range(num_images))
    assert read(0, 1, start_step) == whole[start_step:]
    if world_size > 1:
        ranks = [read(rank, world_size, start_step) for rank in range(world_size)]
        for step, expected in enumerate(whole[start_step:]):
            mine = slice(step * accumulation, (step + 1) * accumulation)
            assert [key for rank in ranks for part in rank[mine] for key in part] == expected


@given(st.lists(st.integers(0, 99)), st.lists(st.integers(100, 199), min_size=1))
def test_extra_images_are_spread_over_a_batch(main: list[int], extra: list[int]) -> None:
    batch = [index for _, index in spread([(0, i) for i in main], [(0, i) for i in extra])]
    assert [i for i in batch if i < 100] == main and [i for i in batch if i >= 100] == extra
    for rows in range(len(batch) + 1):
        assert abs(sum(i >= 100 for i in batch[:rows]) - rows * len(extra) / max(len(batch), 1)) < 1


@given(st.integers(1, 120), st.integers(1, 9), st.integers(1, 130))
@example(103, 2, 7)
@example(103, 3, 103)
def test_testing_reads_every_image_once_over_all_ranks(num_images: int, world_size: int, batch_size: int) -> None:
    seen = []
    for rank in range(world_size):
        lists = list(eval_batches(num_images, batch_size, rank, world_size))
        assert all(0 < len(keys) <= batch_size for keys in lists)
        seen += [index for keys in lists for epoch, index in keys]
    assert sorted(seen) == list(range(num_images))


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_workers_and_restarts_change_nothing(dataset: ImageDataset, num_workers: int) -> None:
    straight = [collate([dataset[key] for key in keys]).to(CPU) for keys in train_batches()]
    for start_step in (0, 3, 6):
        loader = Loader(dataset, train_batches(start_step), num_workers, CPU)
        batches = list(loader)
        assert len(batches) == 7 - start_step
        for expected, found in zip(straight[start_step:], batches, strict=True):
            assert_same_batch(expected, found)
            assert found.images.permute(0, 2, 3, 1).is_contiguous()  # the decoders' order, never sorted anew


def test_evaluation_batches_come_in_order_and_a_rank_may_have_none(dataset: ImageDataset) -> None:
    plain = ImageDataset(dataset.images, CenterCrop(12, 0.875))
    loader = Loader(plain, eval_batches(23, 8, 0, 1), 1, CPU)
    assert [len(batch) for batch in loader] == [8, 8, 7]
    assert [i for batch in loader for i in batch.indices.tolist()] == list(range(23))  # a second pass
    assert list(Loader(plain, eval_batches(1, 8, 1, 2), 1, CPU)) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_damaged_file_ends_the_loop_with_its_own_message(dataset: ImageDataset, num_workers: int) -> None:
    first = next(iter(train_batches()))[0]
    path = Path(str(dataset.images.path(first[1])))
    path.write_bytes(b"")
    with pytest.raises(UserError) as refusal:
        list(Loader(dataset, train_batches(), num_workers, CPU))
    assert str(refusal.value).startswith(f"{path}: cannot be read as an image")
    assert "Traceback" not in str(refusal.value) and "DataLoader" not in str(refusal.value)


def test_batches_move_one_ahead_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, without the streams of a GPU; an error comes after the batches before it."""
    monkeypatch.setattr("relabel.data.loader._on_copy_stream", lambda move, number, device: (move(number), None))
    monkeypatch.setattr("relabel.data.loader._arrived", lambda number, event, device: number)
    read: list[int] = []

    def move(number: Any) -> Any:
        if number == 3:
            raise UserError("damaged")
        return number

    def numbers(count: int) -> Iterator[Any]:
        for number in range(count):
            read.append(number)
            yield number

    moved = copy_ahead(numbers(3), move, CPU)
    assert next(moved) == 0 and read == [0, 1] and list(moved) == [1, 2]
    moved = copy_ahead(numbers(5), move, CPU)
    assert [next(moved) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(UserError, match="damaged"):
        next(moved)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_arrive_on_the_gpu_unchanged(dataset: ImageDataset) -> None:
    straight = Loader(dataset, train_batches(), 0, CPU)
    ahead = Loader(dataset, train_batches(), 2, torch.device("cuda"))
    for expected, found in zip(straight, ahead, strict=True):
        assert found.images.device.type == "cuda"
        assert_same_batch(expected, found.to(CPU))
