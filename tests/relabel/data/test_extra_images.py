"""Extra images: their order, their share, their targets; whole runs with them, and what is refused."""

import pickle
import shutil
from itertools import chain, groupby
from pathlib import Path

import numpy as np
import pytest
import torch

from relabel.data.batch import collate
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.extra_images import ExtraBatches, MixedDataset, open_extra_root
from relabel.data.folders import list_images
from relabel.data.loader import TrainBatches
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from relabel.stores.store import open_label_store
from relabel.targets import SUPERVISIONS, TargetMaker
from tests.conftest import Flags, make_photos
from tests.relabel.training.test_run import assert_same_weights, metrics, preempt, start, weights
from utils.checkpoint import BEST
from utils.errors import UserError

VIEW = RandomResizedCrop(16, 0.08, 0.5, 0.4, 0.1, seed=5)
SHAPE = (2, 3, 4)


def write_maps(root: Path, labels: Path, label: int, shape: tuple[int, int, int] = SHAPE) -> None:
    """Write a map of one class everywhere, of K = 3, for every image below root."""
    k, h, w = shape
    classes = np.broadcast_to((label + np.arange(k)[:, None, None]) % 3, shape).astype(np.int16)
    for path in sorted(root.rglob("*.JPEG")):
        scores = np.stack([np.full((h, w), 9.0 - 3 * i) for i in range(k)]).astype(np.float32)
        write_label_map(labels, str(path.relative_to(root).with_suffix("")), LabelMap(scores, classes))


@pytest.fixture
def roots(tmp_path: Path) -> dict[str, Path]:
    """Seven photos in folders that the training set lacks, with maps of a cow, and four in none, with maps of a bee."""
    rng = np.random.default_rng(1)
    make_photos(tmp_path / "far", {"newt": 4, "mule": 3}, rng)
    make_photos(tmp_path, {"flat": 4}, rng)
    write_maps(tmp_path / "far", tmp_path / "far-labels", label=2)
    write_maps(tmp_path / "flat", tmp_path / "flat-labels", label=1)
    return {name: tmp_path / name for name in ("far", "far-labels", "flat", "flat-labels")}


@pytest.fixture
def extra_flags(flags: Flags, roots: dict[str, Path]) -> Flags:
    """Half of each batch of 6 comes from both roots: 10 updates an epoch."""
    return flags | {
        "data.extra.path": f"{roots['far']}:{roots['flat']}",
        "data.extra.labels": f"{roots['far-labels']}:{roots['flat-labels']}",
        "data.extra.share": 0.5,
        "optim.epochs": 2,
    }


@pytest.fixture
def mixed(photos: Path, roots: dict[str, Path]) -> MixedDataset:
    """30 main images, then 7 and 4 extra ones."""
    images = list_images(photos / "train")
    store = open_label_store(photos / "labels", images.keys(), images.class_names)
    pairs = [("far", "far-labels"), ("flat", "flat-labels")]
    extra = [open_extra_root(roots[a], roots[b], images.class_names, SHAPE) for a, b in pairs]
    return MixedDataset(ImageDataset(images, VIEW, store), extra)


# ---- which images a batch takes


def train_batches(
    start_step: int = 0, accumulation: int = 1, rank: int = 0, world_size: int = 1, num_extra: int = 7, extra: int = 5
) -> list[list[tuple[int, int]]]:
    """23 main images and `extra` of 12 extra ones in every global batch; 9 updates."""
    passes = ExtraBatches(num_main=23, num_extra=num_extra, per_batch=extra, seed=4)
    return list(TrainBatches(23, 12 // world_size, accumulation, rank, world_size, 4, start_step, 9, passes))


@pytest.mark.parametrize("num_extra", [1, 3, 7, 200])  # also fewer than a batch takes
def test_every_extra_image_comes_once_a_pass_and_each_pass_has_its_own_order(num_extra: int) -> None:
    keys = [key for batch in train_batches(num_extra=num_extra) for key in batch if key[1] >= 23]
    assert len(keys) == 9 * 5
    passes = [[index for _, index in group] for _, group in groupby(keys, key=lambda key: key[0])]
    whole = list(range(23, 23 + num_extra))
    assert all(sorted(images) == whole for images in passes[:-1]) and set(passes[-1]) <= set(whole)
    assert len(set(passes[-1])) == len(passes[-1])
    assert [number for number, _ in groupby(keys, key=lambda key: key[0])] == list(range(len(passes)))
    if num_extra == 7:
        assert passes[0] != passes[1]


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 3), (2, 3), (3, 2), (12, 1)])
def test_neither_processes_nor_micro_batches_change_a_batch_and_all_get_their_share(
    world_size: int, accumulation: int
) -> None:
    ranks = [train_batches(rank=r, world_size=world_size, accumulation=accumulation) for r in range(world_size)]
    for step, whole in enumerate(train_batches()):
        parts = [ranks[r][step * accumulation + i] for r in range(world_size) for i in range(accumulation)]
        assert list(chain(*parts)) == whole
        share = 5 / (world_size * accumulation)
        assert all(abs(sum(index >= 23 for _, index in part) - share) < 1 for part in parts)


@pytest.mark.parametrize("start_step", [1, 4, 9])
def test_batches_from_any_update_on_are_those_of_the_whole_run(start_step: int) -> None:
    assert train_batches(start_step, accumulation=2) == train_batches(accumulation=2)[2 * start_step :]


# ---- what they are


def test_extra_samples_have_their_own_image_map_and_place_and_no_label(
    mixed: MixedDataset, photos: Path, roots: dict[str, Path]
) -> None:
    assert len(mixed) == 41
    main = ImageDataset(list_images(photos / "train"), VIEW)
    for index in (0, 29):
        np.testing.assert_array_equal(mixed[(3, index)].image, main[(3, index)].image)
        assert (mixed[(3, index)].label, mixed[(3, index)].index) == (main[(3, index)].label, index)
    for index, label in {30: 2, 36: 2, 37: 1, 40: 1}.items():
        sample = mixed[(3, index)]
        assert (sample.label, sample.index) == (-1, index) and sample.augmentation is not None
        assert sample.label_map is not None and (sample.label_map.classes[0] == label).all()
    samples = [pickle.loads(pickle.dumps(mixed))[(number, index)] for number in range(2) for index in range(41)]
    assert len({sample.augmentation for sample in samples}) == 2 * 41, "no two images or passes share a draw"
    (roots["far"] / "mule" / "mule.00.JPEG").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"mule/mule\.00\.JPEG: cannot be read"):
        mixed[(0, 30)]


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_the_target_of_an_extra_image_is_its_map_whatever_weight_labels_have(
    mixed: MixedDataset, supervision: str
) -> None:
    batch = collate([mixed[(0, index)] for index in (4, 33, 12, 39)]).to(torch.device("cpu"))
    arguments = batch.labels, batch.boxes, batch.scores, batch.classes
    alone = TargetMaker(3, supervision=supervision)(*arguments)
    weighted = TargetMaker(3, supervision=supervision, ground_truth_weight=0.25)(*arguments)
    labels = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])  # images 4 and 12 lie in the first and second folder
    torch.testing.assert_close(weighted[[0, 2]], 0.75 * alone[[0, 2]] + 0.25 * labels)
    torch.testing.assert_close(weighted[[1, 3]], alone[[1, 3]])
    assert alone[[1, 3]].argmax(dim=1).tolist() == [2, 1]
    torch.testing.assert_close(weighted.sum(dim=1), torch.ones(4))


# ---- whole runs


def test_a_preempted_run_with_extra_images_continues_exactly(
    extra_flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Resumed in the middle of an epoch and of a pass, and in worker processes."""
    settings: Flags = {
        "optim.accumulation": 2,
        "optim.label_smoothing": 0.1,
        "data.relabel.ground_truth_weight": 0.3,
        "data.cutmix.prob": 0.5,
        "data.cutmix.beta": 1.0,
        "data.cutmix.off_epoch": 1,
    }
    flags = extra_flags | settings
    start({**flags, "util.run_dir": tmp_path / "undisturbed"})
    assert "11 extra images with label maps, 3 in each batch" in capsys.readouterr().out
    assert [e["step"] for e in metrics(tmp_path / "undisturbed") if e["event"] == "validation"] == [10, 20]
    assert all("extra" not in name for name in weights(tmp_path / "undisturbed"))
    preempt(flags, 6)
    start({**flags, "compute.num_workers": 1})
    for name in ("checkpoint-last.pth", BEST):
        assert_same_weights(weights(tmp_path / "undisturbed", name), weights(flags["util.run_dir"], name))
    assert metrics(tmp_path / "undisturbed") == metrics(flags["util.run_dir"])


def test_other_extra_images_are_refused_when_a_run_continues(extra_flags: Flags, roots: dict[str, Path]) -> None:
    preempt(extra_flags, 3)
    labels = Path(str(extra_flags["data.extra.labels"]).split(":")[0])
    first = sorted(labels.rglob("*.pt"))[0]
    content = torch.load(first, weights_only=True)
    torch.save(content.index_put((torch.tensor([0]),), content[0] + 1), first)
    with pytest.raises(UserError, match="extra_label_maps_sha256"):
        start(extra_flags)
    torch.save(content, first)
    shutil.rmtree(roots["far"] / "mule")
    with pytest.raises(UserError, match="extra_images_sha256"):
        start(extra_flags)


# ---- refusals, before anything is created


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data.extra.share": 0.05}, r"share is 0\.05, which is 0 of the 6 images of a batch; .*left for train"),
        ({"data.relabel.use": False}, "data.extra.share = 0.5 .*while data.relabel.use is False"),
        ({"data.extra.labels": ""}, "as many folders of label maps as data.extra.path"),
    ],
)
def test_bad_settings_are_refused(extra_flags: Flags, changed: Flags, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(extra_flags | changed)
    assert not extra_flags["util.run_dir"].exists()


def test_missing_maps_and_maps_of_another_shape_are_refused(extra_flags: Flags, roots: dict[str, Path]) -> None:
    (roots["far-labels"] / "newt" / "newt.01.pt").unlink()
    with pytest.raises(UserError, match="images without a label map: 1 of 7") as caught:
        start(extra_flags)
    for part in ("newt.01.JPEG", "newt.01.pt", "--unlabelled true", "--data.extra.share 0"):
        assert part in str(caught.value)
    (roots["far-labels"] / "newt" / "newt.01.pt").write_bytes(b"PK")
    (roots["far-labels"] / "newt" / "newt.00.pt").write_bytes(b"PK")
    with pytest.raises(
        UserError, match=r"newt\.00\.pt: cannot be read as a label map(.|\n)*--data\.extra\.labels"
    ) as caught:
        start(extra_flags)
    assert "--data.extra.share 0" not in str(caught.value)
    shutil.rmtree(roots["far-labels"])
    write_maps(roots["far"], roots["far-labels"], label=0, shape=(2, 4, 4))
    with pytest.raises(UserError, match=r"far-labels: found .*\[2, 4, 4\]; expected \[2, 3, 4\]"):
        start(extra_flags)
    assert not extra_flags["util.run_dir"].exists()
