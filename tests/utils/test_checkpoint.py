"""Checkpoints are whole or absent, checked when read, and execute nothing."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.traps import hostile_files
from utils.checkpoint import (
    BEST,
    LAST,
    PREVIOUS,
    DamagedCheckpoint,
    link_checkpoint,
    load_checkpoint,
    load_latest,
    save_checkpoint,
)
from utils.errors import UserError

WEIGHTS = {"w": torch.arange(6.0).reshape(2, 3)}
STATE = {"step": 7, "state_dict": WEIGHTS, "class_names": ["ant", "bee"], "optimizer": {}, "meters": torch.zeros(1, 3)}


def save_twice(folder: Path) -> None:
    """A last checkpoint of step 8 and a previous one of step 7."""
    for step in (7, 8):
        save_checkpoint({**STATE, "step": step}, folder / LAST, keep_old_as=folder / PREVIOUS)


def steps(folder: Path) -> dict[str, int]:
    """Step of each file; none is temporary."""
    return {path.name: load_checkpoint(path)["step"] for path in folder.iterdir()}


def test_what_is_saved_is_loaded_and_the_replaced_checkpoint_is_kept(tmp_path: Path) -> None:
    save_twice(tmp_path)
    assert steps(tmp_path) == {LAST: 8, PREVIOUS: 7}
    state = load_checkpoint(tmp_path / LAST)
    assert state["class_names"] == ["ant", "bee"] and torch.equal(state["state_dict"]["w"], WEIGHTS["w"])
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint({"step": lambda: 9}, tmp_path / LAST, keep_old_as=tmp_path / PREVIOUS)
    assert steps(tmp_path) == {LAST: 8, PREVIOUS: 7}


@pytest.mark.parametrize("has_links", [True, False])
def test_a_second_name_costs_no_second_file_and_outlives_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *paths: (tmp_path / "no such file").stat())
    save_twice(tmp_path)
    save_checkpoint({**STATE, "step": 9}, tmp_path / BEST)
    link_checkpoint(tmp_path / BEST, tmp_path / LAST, keep_old_as=tmp_path / PREVIOUS)
    assert steps(tmp_path) == {BEST: 9, LAST: 9, PREVIOUS: 8}
    assert (tmp_path / BEST).samefile(tmp_path / LAST) == has_links
    save_checkpoint({**STATE, "step": 10}, tmp_path / LAST)
    assert steps(tmp_path) == {BEST: 9, LAST: 10, PREVIOUS: 8}


@pytest.mark.parametrize("legacy", [False, True])
def test_2021_checkpoints_with_numpy_accuracies_load(tmp_path: Path, legacy: bool) -> None:
    old = {"epoch": 300, "arch": "resnet50", "accuracy": np.float64(78.9), "state_dict": {"module.w": torch.ones(2)}}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=not legacy)
    assert float(load_checkpoint(tmp_path / "old.pth")["accuracy"]) == 78.9


def test_a_malicious_file_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    for content in hostile_files(tmp_path / "mark").values():
        (tmp_path / "w.pth").write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match=r"not a file of plain tensors.*nothing in it was run"):
            load_checkpoint(tmp_path / "w.pth")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a zip"])
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"w\.pth"):
        load_checkpoint(tmp_path / "w.pth")


def test_a_run_continues_from_the_last_intact_checkpoint(tmp_path: Path) -> None:
    """The previous one if the last is cut short or not of a run; it starts anew only if there is none at all."""
    assert load_latest(tmp_path) == (None, None, "")
    save_twice(tmp_path)
    state, path, note = load_latest(tmp_path)
    assert state is not None and (state["step"], path, note) == (8, tmp_path / LAST, "")
    contents: list[Any] = [WEIGHTS, [STATE], STATE | {"step": "7"}, {k: v for k, v in STATE.items() if k != "meters"}]
    for content in [*contents, None]:
        if content is None:
            (tmp_path / LAST).write_bytes((tmp_path / PREVIOUS).read_bytes()[:500])
        else:
            torch.save(content, tmp_path / LAST)
        state, path, note = load_latest(tmp_path)
        assert state is not None and (state["step"], path) == (7, tmp_path / PREVIOUS)
        assert LAST in note and PREVIOUS in note
    (tmp_path / PREVIOUS).write_bytes(b"broken")
    with pytest.raises(UserError, match="No intact checkpoint is left"):
        load_latest(tmp_path)


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """torch.save never compresses."""
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as whole, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(DamagedCheckpoint, match=r"bomb\.pth.*bytes and would have 4,0.* when unpacked"):
        load_checkpoint(tmp_path / "bomb.pth")
