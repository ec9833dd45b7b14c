"""data.on_error skip: a run without an unreadable image is that run, whatever the processes, and few are left out."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from relabel.data.batch import Batch
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.folders import list_images
from relabel.data.loader import Loader, TrainBatches, epoch_order
from relabel.data.skipped_images import LIST, SkippedImage, SkippedImages, SkippingDataset
from relabel.stores.pt_folder import map_path
from relabel.stores.store import open_label_store
from tests.conftest import Flags
from tests.forked_runs import SignalAt, fork_run
from tests.relabel.data.test_damaged_images import damaged_copy, make
from tests.relabel.training.test_run import metrics, start, status, weights
from tests.whole_runs.test_kills import assert_same_run
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.errors import UserError

CPU = torch.device("cpu")
BAD = "bee/bee.02.JPEG"
EVERYTHING: Flags = {
    "data.cutmix.prob": 0.5,
    "data.cutmix.beta": 1.0,
    "data.cutmix.off_epoch": 1,
    "optim.accumulation": 3,
    "optim.batch_size": 30,
    "optim.epochs": 4,
    "optim.clip_grad_norm": 1.0,
    "optim.ema.decay": 0.9,
}


@pytest.fixture
def skipping(flags: Flags, photos: Path, tmp_path: Path) -> Flags:
    """The run of `flags`, which meets one damaged image once an epoch and skips it."""
    data = damaged_copy(photos, tmp_path / "data", BAD)
    return flags | {"data.data_path": data, "data.on_error": "skip", "util.print_freq": 1, "optim.batch_size": 10}


def skipped(folder: Path) -> Any:
    """The list in the run folder."""
    return json.loads((folder / LIST).read_text())


def without(batch: Batch, index: int) -> Batch:
    """A batch without the row of an image; its augmentations stay those of the others."""
    rows = batch.indices != index
    return batch.map(lambda tensor: tensor[rows])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_all_other_images_stay_as_they_are(photos: Path, tmp_path: Path, num_workers: int) -> None:
    """Crop, augmentation, label map and place in the order, bit for bit."""
    data = damaged_copy(photos, tmp_path / "data", BAD)
    view = RandomResizedCrop(12, 0.08, 0.5, 0.4, 0.1, seed=5)
    whole, damaged = list_images(photos / "train"), list_images(data / "train")
    store = open_label_store(photos / "labels", whole.keys(), whole.class_names)
    sampler = TrainBatches(30, 6, 2, 0, 1, seed=5, start_step=0, total_steps=10)
    dataset = SkippingDataset(ImageDataset(damaged, view, store, "simplejpeg"), skip=True)
    bad, found = whole.names.tolist().index(BAD.encode()), 0
    expected = Loader(ImageDataset(whole, view, store, "simplejpeg"), sampler, 0, CPU)
    for ours, theirs in zip(expected, Loader(dataset, sampler, num_workers, CPU), strict=True):
        left = without(ours, bad)
        for field in fields(Batch):
            a, b = getattr(left, field.name), getattr(theirs, field.name)
            assert (field.name == "skipped") or (a is None) == (b is None)
            if isinstance(a, torch.Tensor):
                assert torch.equal(a, b), field.name
        found += len(theirs.skipped)
        assert len(ours) == len(theirs) + len(theirs.skipped)
        assert all(image.path == str(damaged.path(bad)) and "truncated" in image.reason for image in theirs.skipped)
    assert found == 2  # once in each of two epochs


class LeftOut(TrainBatches):
    """Batches without an image, as if it were not in the folder while all others keep their places."""

    bad = -1

    def __iter__(self) -> Any:
        return ([key for key in keys if key[1] != self.bad] for keys in super().__iter__())


def test_a_run_that_skips_is_the_run_whose_batches_lack_the_image(
    skipping: Flags, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With CutMix among the others, accumulation and EMA; the damaged run reads with two workers."""
    skipping |= EVERYTHING | {"optim.epochs": 3, "optim.clip_grad_norm": 0.0}  # clipped, its length would not show
    start({**skipping, "compute.num_workers": 2})
    monkeypatch.setattr("relabel.training.build.TrainBatches", LeftOut)
    LeftOut.bad = list_images(photos / "train").names.tolist().index(BAD.encode())
    start({**skipping, "data.data_path": photos, "data.on_error": "stop", "util.run_dir": tmp_path / "without"})
    ours, theirs = (load_checkpoint(folder / LAST) for folder in (skipping["util.run_dir"], tmp_path / "without"))
    for part in ("state_dict", "state_dict_ema"):
        for name in ours[part]:
            torch.testing.assert_close(ours[part][name], theirs[part][name], rtol=1e-3, atol=1e-4)
    for event, other in zip(metrics(skipping["util.run_dir"]), metrics(tmp_path / "without"), strict=True):
        for name in ("loss", "target_agreement_percent" if event["event"] == "train" else "top1_percent"):
            assert event[name] == pytest.approx(other[name], rel=1e-3)


@pytest.mark.slow
def test_two_processes_skip_as_one_does(skipping: Flags, tmp_path: Path) -> None:
    """No batch-norm, no CutMix: the mean is over the images of both, though one has fewer."""
    skipping |= {"model.arch": "timm/test_convnext", "data.image_size": 64, "optim.epochs": 1, "optim.warmup.epochs": 0}
    start({**skipping, "util.run_dir": tmp_path / "one"})
    assert fork_run(skipping, tmp_path / "output", 2).ends() == [0, 0]
    first, second = weights(tmp_path / "one"), weights(skipping["util.run_dir"])
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=2e-6)
    assert skipped(tmp_path / "one") == skipped(skipping["util.run_dir"])


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "processes", "changes"), [(0, 1, {}), (2, 2, EVERYTHING)])
def test_a_killed_run_that_skips_continues_exactly(
    skipping: Flags, tmp_path: Path, workers: int, processes: int, changes: Flags
) -> None:
    """Killed in the third update, the later run in its third epoch; the image comes once an epoch."""
    skipping |= changes | {"compute.num_workers": workers, "util.checkpoint_minutes": 0}
    undisturbed = {**skipping, "util.run_dir": tmp_path / "undisturbed"}
    assert fork_run(undisturbed, tmp_path / "output", processes).ends() == [0] * processes
    kill = {0: SignalAt("relabel.training.trainer.Trainer._update", 3)}
    assert any(fork_run(skipping, tmp_path / "output", processes, kill).ends())
    assert status(skipping["util.run_dir"])["state"] != "done"
    assert fork_run(skipping, tmp_path / "output", processes).ends() == [0] * processes
    assert_same_run(tmp_path / "undisturbed", skipping["util.run_dir"])
    assert skipped(skipping["util.run_dir"]) == skipped(tmp_path / "undisturbed")


def test_skipped_images_are_counted_listed_and_reported_once(
    skipping: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(skipping)
    folder, path = skipping["util.run_dir"], str(tmp_path / "data" / "train" / BAD)
    assert list(skipped(folder)) == [path]
    assert skipped(folder)[path]["epoch"] == 1 and "truncated" in skipped(folder)[path]["reason"]
    counts = [event["skipped_images"] for event in metrics(folder) if event["event"] == "train"]
    bad = list_images(tmp_path / "data" / "train").names.tolist().index(BAD.encode())
    steps_before = epoch_order(3, 0, 30).tolist().index(bad) // 10
    assert counts == [0] * steps_before + [1] * (9 - steps_before)
    assert capsys.readouterr().err.count(f"warning: skipped {path} (") == 1


def test_too_many_stop_every_process_with_the_list(skipping: Flags, photos: Path, tmp_path: Path) -> None:
    """Of 30 images one may be skipped. Both are named; where one is mended the same command goes on."""
    data, folder = skipping["data.data_path"], skipping["util.run_dir"]
    second = data / "train" / "cow" / "cow.01.JPEG"
    make("empty", second)
    assert fork_run(skipping, tmp_path / "output", 2).ends() == [2, 2]
    printed = (tmp_path / "output").read_text()
    assert printed.count("error: 2 of 30 training images cannot be read; expected at most 1 (1 %)") == 1
    assert "Traceback" not in printed
    assert {Path(path).name for path in skipped(folder)} == {"bee.02.JPEG", "cow.01.JPEG"}
    assert status(folder)["state"] == "failed" and "cow.01.JPEG" in status(folder)["reason"]
    second.write_bytes((photos / "train" / "cow" / "cow.01.JPEG").read_bytes())
    (data / "train" / BAD).write_bytes((photos / "train" / BAD).read_bytes())
    assert fork_run(skipping, tmp_path / "output", 2).ends() == [0, 0]


def test_a_batch_of_which_too_little_is_left_stops_the_run(skipping: Flags) -> None:
    with pytest.raises(UserError, match=r"1 of the 2 images of a batch cannot be read(.|\n)*bee\.02\.JPEG"):
        start({**skipping, "optim.batch_size": 2, "optim.epochs": 1})


def test_a_damaged_label_map_is_never_skipped(skipping: Flags, photos: Path, tmp_path: Path) -> None:
    """Maps can be made again, and others may be wrong too."""
    damaged = damaged_copy(photos, tmp_path / "labels", split="labels") / "labels"
    map_path(damaged, "cow/cow.07").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"^\S+cow\.07\.pt: cannot be read as a label map"):
        start({**skipping, "data.data_path": photos, "data.relabel.path": damaged})


def test_an_image_counts_once_under_any_name(tmp_path: Path) -> None:
    """Also under one that is no text; it can be read back from the list and from a checkpoint."""
    name = os.fsdecode(b"ant/\xff.JPEG")
    images = SkippedImages(tmp_path, 300)
    assert images.limit == 3 and SkippedImages(tmp_path, 30).limit == 1
    for epoch in (1, 2, 3):
        images.record([SkippedImage(name, "cut"), SkippedImage("b", "empty")], epoch)
    assert len(images) == 2 and images.found == json.loads((tmp_path / LIST).read_text())
    assert images.found[name] == {"reason": "cut", "epoch": 1}
    save_checkpoint({"skipped_images": images.found}, tmp_path / LAST)
    assert load_checkpoint(tmp_path / LAST)["skipped_images"] == images.found
    images.record([SkippedImage("c", "empty")], 4)
    with pytest.raises(UserError, match=r"4 of 300 training images(.|\n)*\\udcff\.JPEG|4 of 300"):
        images.record([SkippedImage("d", "empty")], 4)
