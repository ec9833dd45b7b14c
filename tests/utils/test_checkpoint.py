"""Checkpoints are whole or absent, checked when read, and run nothing."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.traps import hostile_files
from utils.checkpoint import (
    LAST,
    PREVIOUS,
    DamagedCheckpoint,
    load_checkpoint,
    load_latest,
    named_classes,
    save_checkpoint,
    split_weights,
)
from utils.errors import UserError

STATE = {"step": 7, "state_dict": {"w": torch.arange(6.0).reshape(2, 3)}, "class_names": ["ant", "bee"]}
STATE |= {"optimizer": {"state": {}}, "meters": torch.zeros(1, 3)}


def save_twice(folder: Path) -> None:
    """A last checkpoint of step 8 and a previous one of step 7."""
    for step in (7, 8):
        save_checkpoint({**STATE, "step": step}, folder / LAST, keep_old_as=folder / PREVIOUS)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(STATE, tmp_path / LAST)
    state = load_checkpoint(tmp_path / LAST)
    assert state["step"] == 7 and state["class_names"] == ["ant", "bee"]
    assert torch.equal(state["state_dict"]["w"], STATE["state_dict"]["w"])  # type: ignore[index]
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_the_replaced_checkpoint_is_kept(tmp_path: Path) -> None:
    save_twice(tmp_path)
    assert load_checkpoint(tmp_path / LAST)["step"] == 8
    assert load_checkpoint(tmp_path / PREVIOUS)["step"] == 7


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    save_twice(tmp_path)
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint({"step": lambda: 9}, tmp_path / LAST, keep_old_as=tmp_path / PREVIOUS)
    assert load_checkpoint(tmp_path / LAST)["step"] == 8


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


def test_flipped_bits_are_found(tmp_path: Path) -> None:
    big = {"state_dict": {"w": torch.zeros(100_000)}}
    save_checkpoint(big, tmp_path / LAST)
    data = bytearray((tmp_path / LAST).read_bytes())
    data[len(data) // 2] ^= 4  # among the zeros: torch would load it without a word
    (tmp_path / LAST).write_bytes(data)
    with pytest.raises(DamagedCheckpoint, match="damaged"):
        load_checkpoint(tmp_path / LAST)


def test_a_damaged_last_checkpoint_falls_back_to_the_previous(tmp_path: Path) -> None:
    save_twice(tmp_path)
    data = (tmp_path / LAST).read_bytes()
    (tmp_path / LAST).write_bytes(data[: len(data) // 2])
    state, note = load_latest(tmp_path)
    assert state is not None and state["step"] == 7
    assert LAST in note and PREVIOUS in note


def test_a_run_without_checkpoint_starts_anew_but_not_over_damaged_ones(tmp_path: Path) -> None:
    assert load_latest(tmp_path) == (None, "")
    (tmp_path / LAST).write_bytes(b"broken")
    with pytest.raises(UserError, match="No whole checkpoint is left"):
        load_latest(tmp_path)


@pytest.mark.parametrize(
    "content", [STATE["state_dict"], [STATE], STATE | {"step": "7"}, {k: v for k, v in STATE.items() if k != "meters"}]
)
def test_a_run_does_not_continue_from_what_is_no_checkpoint_of_one(tmp_path: Path, content: Any) -> None:
    save_twice(tmp_path)
    torch.save(content, tmp_path / LAST)
    state, note = load_latest(tmp_path)
    assert state is not None and state["step"] == 7
    assert f"{LAST} is none from which a run can be continued: it lacks " in note


def sparse(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_sparse()


def quantized(tensor: torch.Tensor) -> torch.Tensor:
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


def meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


@pytest.mark.parametrize("change", [sparse, quantized, meta])
def test_weights_that_are_no_plain_numbers_are_refused(
    tmp_path: Path, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    torch.save({"state_dict": {"w": change(torch.ones(2, 3))}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=r"w\.pth holds no weights: expected a dict of plain tensors"):
        split_weights(load_checkpoint(tmp_path / "w.pth"), tmp_path / "w.pth")


def test_averaged_weights_that_hold_themselves_are_refused() -> None:
    content: dict[str, Any] = {"state_dict": {"w": torch.ones(1)}}
    content["state_dict_ema"] = content
    with pytest.raises(UserError, match="holds no weights"):
        split_weights(content, Path("w.pth"))


def test_an_archive_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    """torch.save never compresses."""
    torch.save({"w": torch.zeros(1_000_000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as whole, zipfile.ZipFile(tmp_path / "bomb.pth", "w", 8) as bomb:
        for name in whole.namelist():
            bomb.writestr(name, whole.read(name))
    with pytest.raises(DamagedCheckpoint, match=r"bomb\.pth cannot be read.*bytes that would be 4,0.* when unpacked"):
        load_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.parametrize("content", [STATE["state_dict"], STATE])
def test_weights_are_found_bare_and_wrapped(content: Any) -> None:
    assert list(split_weights(content, Path("w.pth"))) == ["model"]


def test_averaged_weights_are_found() -> None:
    weights = split_weights({**STATE, "state_dict_ema": {"w": torch.zeros(1)}}, Path("w.pth"))
    assert list(weights) == ["model", "ema"]


@pytest.mark.parametrize(
    "content", [torch.ones(2), {"optimizer": {}}, {}, {"state_dict": {"w": 3}}, {1: torch.ones(2)}]
)
def test_a_file_without_weights_is_refused(content: Any) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        split_weights(content, Path("w.pth"))


@pytest.mark.parametrize("averaged", [5, torch.ones(2), {"w": 3}, {1: torch.ones(2)}, [torch.ones(1)]])
def test_averaged_weights_that_are_none_are_refused(averaged: Any) -> None:
    with pytest.raises(UserError, match="holds no weights"):
        split_weights({**STATE, "state_dict_ema": averaged}, Path("w.pth"))


@pytest.mark.parametrize("names", [5, "ant", ["ant", 3], {"ant": 0}, torch.ones(2)])
def test_class_names_that_are_none_are_refused(names: Any) -> None:
    with pytest.raises(UserError, match=r"w\.pth: found class_names that are no list of texts"):
        named_classes({**STATE, "class_names": names}, Path("w.pth"))


def test_weights_under_either_name_are_found(tmp_path: Path) -> None:
    weights = {"fc.bias": torch.ones(3)}
    for content in (weights, {"state_dict": weights, "epoch": 3}, {"model": weights}):
        assert split_weights(content, tmp_path) == {"model": weights}
    with pytest.raises(
        UserError, match=r"expected a dict of plain tensors, or one with the key 'state_dict' or 'model'; found"
    ):
        split_weights({"weights": weights}, tmp_path)
