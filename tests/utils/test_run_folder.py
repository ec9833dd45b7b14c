"""A run explains itself, its own config repeats it, and it continues on the data it began with and on no other."""

import hashlib
import json
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from relabel.annotation.convert import pack
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.label_map import LabelMap
from relabel.stores.manifest import read_manifest
from relabel.stores.pt_folder import write_label_map
from tests.conftest import CLASSES, Flags
from tests.relabel.training.test_run import EVERYTHING, StopAt, assert_same_weights, metrics, start, status, weights
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.run_log import write_status


def write_maps(folder: Path, seed: int) -> None:
    """Label maps of the photos' training images."""
    rng = np.random.default_rng(seed)
    for name in CLASSES:
        for i in range(10):
            dense = rng.normal(size=(3, 3, 4)).astype(np.float32)
            write_label_map(folder, f"{name}/{name}.{i:02d}", LabelMap.from_dense(dense, 2))


@pytest.fixture
def data(flags: Flags, photos: Path, tmp_path: Path) -> Path:
    """A copy of the photos that may be changed, with maps as files and packed; the flags of a short run on it."""
    folder = tmp_path / "data"
    shutil.copytree(photos / "train", folder / "train")
    shutil.copytree(photos / "val", folder / "val")
    write_maps(folder / "pt", seed=1)
    pack(folder / "pt", folder / "packed", folder / "train", None, False)
    flags |= {"data.data_path": folder, "optim.epochs": 1, "optim.warmup.epochs": 0}
    return folder


@contextmanager
def changed(folder: Path, change: Callable[[], object]) -> Iterator[None]:
    """The folder as a change leaves it, then as it was."""
    shutil.copytree(folder, folder.with_suffix(".kept"))
    change()
    yield
    shutil.rmtree(folder)
    folder.with_suffix(".kept").rename(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("settings", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_runs_own_config_repeats_it(flags: Flags, tmp_path: Path, settings: Flags) -> None:
    start({**flags, **settings, "compute.seed": -1})
    first, again = flags["util.run_dir"], tmp_path / "again"
    run(load_config(str(first / "config.yaml"), {"util.run_dir": str(again)}))
    assert_same_weights(weights(first), weights(again))
    assert metrics(first) == metrics(again)
    drawn = load_config(str(again / "config.yaml"), {}).compute.seed
    assert drawn == load_config(str(first / "config.yaml"), {}).compute.seed >= 0


def test_the_environment_names_the_data(flags: Flags, data: Path) -> None:
    start({**flags, "data.relabel.path": data / "packed"})
    facts = json.loads((flags["util.run_dir"] / "environment.json").read_text())[0]
    for name, split, count in (("images", "train", 30), ("validation_images", "val", 13)):
        files = sorted(str(path.relative_to(data / split)) for path in (data / split).glob("*/*"))
        assert facts[name] == len(files) == count
        assert facts[f"{name}_sha256"] == hashlib.sha256("\n".join(files).encode()).hexdigest()
    assert facts["classes"] == 3 and len(facts["label_maps_sha256"]) == 64
    assert (facts["device"], facts["precision"], facts["processes"]) == ("cpu", "float32", 1)
    state = load_checkpoint(flags["util.run_dir"] / LAST)
    assert {facts[key] == state[key] for key in state if key.endswith("_sha256")} == {True}


@pytest.mark.parametrize("form", ["pt", "packed"])
def test_changed_data_is_refused_when_a_run_continues(
    flags: Flags, data: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags["data.relabel.path"] = data / form
    train, val, first = data / "train", data / "val", "ant/ant.00.JPEG"

    def other_maps() -> None:
        shutil.rmtree(data / form)
        write_maps(data / "pt", seed=2)
        if form == "packed":
            pack(data / "pt", data / "packed", train, None, False)

    start(flags)
    before = contents(flags["util.run_dir"])
    for change, match in (
        (lambda: (train / first).unlink(), "images: 30 there, 29 now\n    images_sha256: "),
        (lambda: shutil.copy(train / first, val / "ant/new.JPEG"), "validation_images: 13 there, 14 now"),
        (
            lambda: (val / first).rename(val / "ant/new.JPEG"),
            r"data, or.*\n    validation_images_sha256: .*\n  Restore",
        ),
        (other_maps, r"data, or.*\n    label_maps_sha256: \w{8}... there, \w{8}... now\n  Restore the data, the label"),
    ):
        with changed(data, change), pytest.raises(UserError, match=match) as told:
            start(flags)
        assert "set another --util.run_dir" in str(told.value)
        assert contents(flags["util.run_dir"]) == before
    capsys.readouterr()
    start(flags)
    assert "is finished" in capsys.readouterr().out


def test_an_added_image_is_refused_when_a_run_continues(flags: Flags, data: Path) -> None:
    flags["data.relabel.use"] = False
    start(flags)
    shutil.copy(data / "train/ant/ant.00.JPEG", data / "train/bee/bee.10.JPEG")
    with pytest.raises(UserError, match="    images: 30 there, 31 now\n    images_sha256: "):
        start(flags)


def test_a_checkpoint_of_an_earlier_version_continues(flags: Flags, data: Path) -> None:
    flags["data.relabel.path"] = data / "pt"
    start(flags)
    state = load_checkpoint(flags["util.run_dir"] / LAST)
    for key in ("images", "validation_images", "label_maps_sha256"):
        del state[key]
    save_checkpoint(state, flags["util.run_dir"] / LAST)
    start(flags)


def test_a_drawn_seed_is_that_of_the_whole_run(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """-1 is the default: the command that draws a seed continues with it, and does not draw another."""
    flags |= {"compute.seed": -1}
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        StopAt(patch, 7, signal.SIGTERM)
        start(flags)
    seed = load_config(str(flags["util.run_dir"] / "config.yaml"), {}).compute.seed
    start(flags)
    assert load_config(str(flags["util.run_dir"] / "config.yaml"), {}).compute.seed == seed >= 0
    start({**flags, "compute.seed": seed, "util.run_dir": tmp_path / "undisturbed"})
    assert_same_weights(weights(tmp_path / "undisturbed"), weights(flags["util.run_dir"]))


def test_a_checkpoint_without_its_config_is_not_continued(flags: Flags) -> None:
    start(flags)
    (flags["util.run_dir"] / "config.yaml").unlink()
    before = contents(flags["util.run_dir"])
    with pytest.raises(UserError, match=r"holds checkpoint-best\.pth but no config\.yaml"):
        start(flags)
    assert contents(flags["util.run_dir"]) == before


def test_a_manifest_is_part_of_the_label_maps_fingerprint(flags: Flags, data: Path) -> None:
    """It names the classes and the teacher."""
    flags["data.relabel.path"] = data / "packed"
    start(flags)
    manifest = read_manifest(data / "packed")
    assert manifest is not None
    manifest.model_copy(update={"made_by": {"teacher": "another"}}).write(data / "packed" / "manifest.json")
    with pytest.raises(UserError, match="label_maps_sha256"):
        start(flags)


def test_a_finished_run_that_was_killed_before_its_last_word_says_it(flags: Flags) -> None:
    start(flags)
    before = {path.name for path in flags["util.run_dir"].iterdir()}
    write_status(flags["util.run_dir"], "running", step=1)
    (flags["util.run_dir"] / ".status.json.123.tmp").touch()
    start(flags)
    assert status(flags["util.run_dir"])["state"] == "done"
    assert {path.name for path in flags["util.run_dir"].iterdir()} == before


@pytest.mark.parametrize("text", ["[]", "null", "[" * 9000, '{"state": "done"', '{"state": 1, "state": 2}', ""])
def test_an_account_that_cannot_be_read_is_begun_anew(flags: Flags, text: str) -> None:
    flags["util.run_dir"].mkdir()
    for name in ("status.json", "environment.json"):
        (flags["util.run_dir"] / name).write_text(text)
    start(flags)
    assert status(flags["util.run_dir"])["state"] == "done"
    assert len(json.loads((flags["util.run_dir"] / "environment.json").read_text())) == 1


def test_weights_that_a_run_starts_from_are_recorded(flags: Flags, tmp_path: Path) -> None:
    short = flags | {"optim.epochs": 1, "optim.warmup.epochs": 0}
    start(short)
    first = flags["util.run_dir"] / LAST
    start({**short, "model.weights": first, "util.run_dir": tmp_path / "second"})
    facts = json.loads((tmp_path / "second" / "environment.json").read_text())[0]
    assert facts["weights_sha256"] == hashlib.sha256(first.read_bytes()).hexdigest()


def test_drafts_in_a_run_folder_are_left_alone(flags: Flags) -> None:
    flags["util.run_dir"].mkdir()
    (flags["util.run_dir"] / ".notes.tmp").write_text("my own")
    start(flags)
    assert (flags["util.run_dir"] / ".notes.tmp").read_text() == "my own"


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"optim.lr.init": 0.03}, "settings_sha256"), ({"compute.seed": 4}, "seed: 4 there, 3 now")],
)
def test_a_checkpoint_of_another_run_is_not_continued(flags: Flags, tmp_path: Path, changes: Flags, told: str) -> None:
    start(flags)
    start({**flags, **changes, "util.run_dir": tmp_path / "other"})
    shutil.copy(tmp_path / "other" / LAST, flags["util.run_dir"] / LAST)
    with pytest.raises(UserError, match=told):
        start(flags)
