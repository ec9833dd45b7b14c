"""A run explains itself, its own config repeats it, and it continues on the data it began with and on no other."""

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from models.digit_net import DigitNet
from relabel.annotation.convert import pack
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.config.rules import RESUME
from relabel.label_map import LabelMap
from relabel.stores.manifest import read_manifest
from relabel.stores.pt_folder import write_label_map
from tests.conftest import CLASSES, ROOT, Flags
from tests.relabel.training.test_run import (
    EVERYTHING,
    assert_same_weights,
    at_step,
    metrics,
    preempt,
    start,
    status,
    weights,
)
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.config.dotted_keys import flatten, nest
from utils.errors import UserError
from utils.run_folder import Start, share_start
from utils.run_log import write_status


def write_maps(folder: Path, seed: int) -> None:
    """Label maps of the photos' training images."""
    rng = np.random.default_rng(seed)
    for label, name in enumerate(CLASSES):
        for i in range(10):
            dense = rng.normal(size=(3, 3, 4)).astype(np.float32)
            dense[label] += 3
            write_label_map(folder, f"{name}/{name}.{i:02d}", LabelMap.from_dense(dense, 2))


@pytest.fixture
def short(flags: Flags) -> Flags:
    """A run of one epoch."""
    return flags | {"optim.epochs": 1, "optim.warmup.epochs": 0}


@pytest.fixture
def data(short: Flags, photos: Path, tmp_path: Path) -> Path:
    """A copy of the photos that may be changed, with maps as files and packed; the flags of a short run on it."""
    folder = tmp_path / "data"
    shutil.copytree(photos / "train", folder / "train")
    shutil.copytree(photos / "val", folder / "val")
    write_maps(folder / "pt", seed=1)
    pack(folder / "pt", folder / "packed", folder / "train", None, False)
    short["data.data_path"] = folder
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
def test_a_runs_own_config_repeats_it(short: Flags, tmp_path: Path, settings: Flags) -> None:
    start({**short, **settings, "compute.seed": -1})
    first, again = short["util.run_dir"], tmp_path / "again"
    run(load_config(str(first / "config.yaml"), {"util.run_dir": str(again)}))
    assert_same_weights(weights(first), weights(again))
    assert metrics(first) == metrics(again)
    seeds = [load_config(str(folder / "config.yaml"), {}).compute.seed for folder in (first, again)]
    assert seeds[0] == seeds[1] >= 0


def test_the_environment_names_the_data_and_the_weights_it_started_from(short: Flags, data: Path) -> None:
    torch.save(DigitNet(3).state_dict(), data / "w.pth")
    start({**short, "data.relabel.path": data / "packed", "model.weights": data / "w.pth"})
    facts = json.loads((short["util.run_dir"] / "environment.json").read_text())[0]
    for name, split, count in (("images", "train", 30), ("validation_images", "val", 13)):
        files = sorted(str(path.relative_to(data / split)) for path in (data / split).glob("*/*"))
        assert facts[name] == len(files) == count
        assert facts[f"{name}_sha256"] == hashlib.sha256("\n".join(files).encode()).hexdigest()
    assert facts["classes"] == 3 and len(facts["label_maps_sha256"]) == 64
    assert facts["weights_sha256"] == hashlib.sha256((data / "w.pth").read_bytes()).hexdigest()
    assert (facts["device"], facts["precision"], facts["processes"]) == ("cpu", "float32", 1)
    state = load_checkpoint(short["util.run_dir"] / LAST)
    assert {facts[key] == state[key] for key in state if key.endswith("_sha256")} == {True}


@pytest.mark.parametrize("form", ["pt", "packed"])
def test_changed_data_is_refused_when_a_run_continues(
    short: Flags, data: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short["data.relabel.path"] = data / form
    train, val, first = data / "train", data / "val", "ant/ant.00.JPEG"

    def other_maps() -> None:
        shutil.rmtree(data / form)
        write_maps(data / "pt", seed=2)
        if form == "packed":
            pack(data / "pt", data / "packed", train, None, False)

    def another_teacher() -> None:
        if manifest := read_manifest(data / form):  # it is part of the fingerprint, as it names classes and teacher
            manifest.model_copy(update={"made_by": {"teacher": "another"}}).write(data / form / "manifest.json")
        else:
            other_maps()

    start(short)
    before = contents(short["util.run_dir"])
    for change, match in (
        (lambda: (train / first).unlink(), "images: 30 there, 29 now\n    images_sha256: "),
        (lambda: shutil.copy(train / first, val / "ant/new.JPEG"), "validation_images: 13 there, 14 now"),
        (
            lambda: (val / first).rename(val / "ant/new.JPEG"),
            r"data, or.*\n    validation_images_sha256: .*\n  To continue",
        ),
        (
            other_maps,
            r"data, or.*\n    label_maps_sha256: \w{8}... there, \w{8}... now\n  To continue this run, restore",
        ),
        (another_teacher, "label_maps_sha256"),
    ):
        with changed(data, change), pytest.raises(UserError, match=match) as error:
            start(short)
        assert "set another --util.run_dir" in str(error.value)
        assert contents(short["util.run_dir"]) == before
    assert "\n1 epoch of 5 steps, " in capsys.readouterr().out
    start(short)
    assert "is finished" in capsys.readouterr().out


def test_a_run_continues_where_its_files_have_moved_to(
    short: Flags, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every path may change, not what is read there; the weights that it started from are not needed again."""
    torch.save(DigitNet(3).state_dict(), data / "w.pth")
    (data / "keep.txt").write_text("".join(f"{name}/{name}.0{i}.JPEG\n" for name in CLASSES for i in range(8)))
    files = {"data.data_path": "", "data.relabel.path": "pt", "data.keep_list": "keep.txt", "model.weights": "w.pth"}

    def at(folder: Path) -> Flags:
        return short | {key: folder / name for key, name in files.items()}

    start({**at(data), "util.run_dir": tmp_path / "undisturbed"})
    preempt(at(data), 2)
    moved = data.rename(tmp_path / "job2")
    torch.save(DigitNet(3).state_dict(), moved / "other.pth")
    with pytest.raises(UserError, match=r"\n    weights_sha256: \w{8}... there, \w{8}... now\n"):
        start({**at(moved), "model.weights": moved / "other.pth"})
    capsys.readouterr()
    start(at(moved))
    assert f"data.data_path was {data} and is now {moved}; the content is the same\n" in capsys.readouterr().out
    assert_same_weights(weights(tmp_path / "undisturbed"), weights(short["util.run_dir"]))
    (moved / "w.pth").unlink()
    start(at(moved))
    assert "is finished" in capsys.readouterr().out


# ---- runs of earlier versions


@pytest.mark.parametrize("missing", [[], sorted(RESUME.before)], ids=["its keys", "fewer keys"])
def test_a_run_of_an_earlier_version_continues(
    photos: Path, flags: Flags, tmp_path: Path, missing: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/golden/run_24ab3bd was preempted at step 8 of 15 by the code of commit 24ab3bd.

    Its weights were zero at the start, so that they compress and only the last bias learns. What follows is what that
    code made of an undisturbed run. The keys of RESUME.before are younger than runs that lack them; before them, images
    were decoded by Pillow, and a run started from no weights. An edited setting is refused.
    """
    monkeypatch.chdir(tmp_path)
    Path("DATA").symlink_to(photos)  # its data.data_path
    shutil.unpack_archive(ROOT / "tests/golden/run_24ab3bd.tar.gz", tmp_path, filter="data")
    folder = tmp_path / "run"
    settings = flatten(yaml.safe_load((folder / "config.yaml").read_text()))
    settings = {key: value for key, value in settings.items() if key not in missing}
    if missing:
        state = load_checkpoint(folder / LAST) | {"decoder": "pillow"}
        later = ("images", "settings_sha256")
        save_checkpoint({key: value for key, value in state.items() if key not in later}, folder / LAST)
    old: Flags = {"model.weights": "" if missing else "zeros.pth", "data.decoder": "pillow" if missing else "auto"}
    old |= {"data.data_path": "DATA", "data.relabel.use": False, "data.relabel.path": "", "util.run_dir": folder}
    for edit in ({"optim.lr.init": 0.04}, {}) if not missing else ({},):
        (folder / "config.yaml").write_text(json.dumps(nest(settings | edit)))  # JSON is YAML
        with pytest.raises(UserError, match="settings_sha256: c0735905") if edit else nullcontext():
            start({**flags, **old, **edit})
    bias = torch.tensor([0.03327729180455208, 0.015449119731783867, 0.01051823515444994])
    torch.testing.assert_close(weights(folder)["fc.bias"], bias)
    last = metrics(folder)[-1]
    assert (last["event"], last["step"], last["loss"]) == ("validation", 15, pytest.approx(1.0976195427087636))


# ---- several processes


@pytest.mark.parametrize("has_file", ["the same", "another", "none"])
def test_each_process_reads_the_checkpoint_and_only_without_it_is_it_sent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_file: str
) -> None:
    path, state = tmp_path / LAST, {"step": 7, "elapsed_s": 1.5, "w": torch.ones(3)}
    save_checkpoint(state, path)
    answers: list[Any] = [(Start(3, None, path), (7, 1.5)), state]  # of the main process, in turn
    if has_file == "another":
        save_checkpoint(state | {"elapsed_s": 2.5, "w": torch.zeros(3)}, path)
    elif has_file == "none":
        path.unlink()
    monkeypatch.setattr("utils.run_folder.from_main", lambda function: answers.pop(0))
    monkeypatch.setattr("utils.run_folder.gather_objects", lambda value: [True, value])
    found = share_start(lambda: pytest.fail("the main process alone looks for it"))
    assert replace(found, state=None) == Start(3, None, path)
    assert found.state is not None and torch.equal(found.state["w"], torch.ones(3))
    assert len(answers) == (1 if has_file == "the same" else 0)


# ---- seeds, and what else lies in a folder


def test_a_drawn_seed_is_that_of_the_whole_run(flags: Flags, tmp_path: Path) -> None:
    """-1 is the default: the command that draws a seed continues with it, and does not draw another."""
    flags |= {"compute.seed": -1, "optim.epochs": 2}
    preempt(flags, 7)
    start(flags)
    seed = load_config(str(flags["util.run_dir"] / "config.yaml"), {}).compute.seed
    start({**flags, "compute.seed": seed, "util.run_dir": tmp_path / "undisturbed"})
    assert_same_weights(weights(tmp_path / "undisturbed"), weights(flags["util.run_dir"]))


def test_a_finished_run_is_marked_as_done_though_it_was_killed_before(short: Flags) -> None:
    """Without its config, its checkpoint is not continued."""
    folder = short["util.run_dir"]
    start(short)
    before = {path.name for path in folder.iterdir()}
    write_status(folder, "running", step=1)
    (folder / ".status.json.123.tmp").touch()
    start(short)
    assert status(folder)["state"] == "done"
    assert {path.name for path in folder.iterdir()} == before
    (folder / "config.yaml").unlink()
    left = contents(folder)
    with pytest.raises(UserError, match=r"contains checkpoint-best\.pth but no config\.yaml"):
        start(short)
    assert contents(folder) == left


@pytest.mark.parametrize("text", ["[]", "[" * 9000, '{"state": 1, "state": 2}'])
def test_an_account_that_cannot_be_read_is_begun_anew_and_other_files_are_kept(short: Flags, text: str) -> None:
    folder = short["util.run_dir"]
    folder.mkdir()
    for name in ("status.json", "environment.json", ".notes.tmp"):
        (folder / name).write_text(text)
    start(short)
    assert status(folder)["state"] == "done" and (folder / ".notes.tmp").read_text() == text
    assert len(json.loads((folder / "environment.json").read_text())) == 1


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"optim.lr.init": 0.03}, "recipe_sha256"), ({"compute.seed": 4}, "seed: 4 there, 3 now")],
)
def test_a_checkpoint_of_another_run_is_not_continued(short: Flags, tmp_path: Path, changes: Flags, match: str) -> None:
    start(short)
    start({**short, **changes, "util.run_dir": tmp_path / "other"})
    shutil.copy(tmp_path / "other" / LAST, short["util.run_dir"] / LAST)
    with pytest.raises(UserError, match=match):
        start(short)


def interrupt(_: object) -> None:
    raise InterruptedError


# ---- onwards: more epochs, and runs that start from this one's weights


def typed(message: str, key: str) -> Flags:
    """The flags of the last line of a message that names a key, as they are typed."""
    line = next(line for line in reversed(message.splitlines()) if f"--{key} " in line)
    words = shlex.split(line[line.index("--") :])
    return {flag[2:]: word for flag, word in zip(words[::2], words[1::2], strict=True)}


def test_more_epochs_continue_a_finished_run_on_the_longer_schedule(
    short: Flags, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = short["util.run_dir"]
    start(short)
    start(short)
    longer = short | typed(capsys.readouterr().out, "optim.epochs")
    assert longer["optim.epochs"] == "2"
    with monkeypatch.context() as patch, pytest.raises(InterruptedError):  # before the next checkpoint
        at_step(patch, 5, interrupt)
        start(longer)
    out = capsys.readouterr().out
    assert "\noptim.epochs was 1 and is now larger" in out and "\nthe learning rate goes on at 0.025\n" in out
    start(longer)
    starts = json.loads((folder / "environment.json").read_text())
    assert [(s["epochs"], s["start_step"], s["raised_from"]) for s in starts[-2:]] == [
        (2, 5, {"optim.epochs": 1}),
        (2, 5, None),
    ]
    rates = {e["step"]: e["learning_rate"] for e in metrics(folder) if e["event"] == "train"}
    assert rates[10] == pytest.approx(0.05 * (1 + np.cos(np.pi * 0.9)) / 2) and status(folder)["epoch"] == 2
    left = contents(folder)
    with pytest.raises(
        UserError, match=r"epochs: 2 there, 1 now\n  optim.epochs can be raised, not lowered"
    ) as lowered:
        start(short)
    assert contents(folder) == left
    start(short | typed(str(lowered.value), "optim.epochs"))
    assert "is finished" in capsys.readouterr().out


def test_a_run_is_lengthened_only_by_a_typed_number(
    short: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The recipe has more epochs than the command that began the run, and the flag is forgotten the second time."""
    start(short)
    (tmp_path / "recipe.yaml").write_text("optim: {epochs: 2}")
    flags = {key: str(value) for key, value in short.items() if key != "optim.epochs"}
    with pytest.raises(UserError, match=r"optim.epochs = 2 \(.*recipe.yaml") as refused:
        load_config(str(tmp_path / "recipe.yaml"), flags)
    remedies = re.findall(r"--(optim.epochs) (\d)", str(refused.value))
    for remedy, outcome in zip(remedies, (" is finished: 1 epoch ", "optim.epochs was 1 and is now "), strict=True):
        run(load_config(str(tmp_path / "recipe.yaml"), flags | dict([remedy])))
        assert outcome in capsys.readouterr().out
    run(load_config(str(tmp_path / "recipe.yaml"), flags))  # the run has grown to what the recipe says
    assert " is finished: 2 epochs " in capsys.readouterr().out


def test_a_refusal_names_the_flags_that_start_another_run_from_these_weights(
    short: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here with larger images."""
    start(short)
    larger = short | {"data.image_size": 24, "optim.lr.init": 0.01}
    with pytest.raises(UserError, match="image_size: 16 there, 24 now") as refused:
        start(larger)
    assert typed(str(refused.value), "data.image_size") == {"data.image_size": "16", "optim.lr.init": "0.05"}
    start(larger | typed(str(refused.value), "model.weights"))
    assert "starting from checkpoint-best.pth, classification head included" in capsys.readouterr().out
    assert status(tmp_path / "run-2")["state"] == "done"
