"""A step that is not finite cannot poison a run, in whichever of its two processes it happens."""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.amp import GradScaler

from relabel.training.trainer import Trainer
from tests.conftest import Flags
from tests.forked_runs import fork_run
from tests.relabel.training.test_run import assert_same_weights, at_step, metrics, preempt, start, status, undisturbed
from utils.checkpoint import LAST, PREVIOUS, load_checkpoint
from utils.errors import UserError
from utils.precision import Precision
from utils.processes.guard import MAX_SKIPPED_IN_A_ROW
from utils.run_log import read_metrics

FOR_EVER = 10**6


@dataclass(frozen=True, slots=True)
class Spoil:
    """Change what a function gives, in the process in which this is called.

    Fields:
        function: dotted name.
        change: of its result; picklable.
        first, last: calls, counted from 1.
        scaled: also scale the loss, as O1 does on a GPU, where alone there is float16.
    """

    function: str
    change: Callable[[torch.Tensor], torch.Tensor]
    first: int
    last: int
    scaled: bool = False

    def __call__(self) -> None:
        """Get ready."""
        if self.scaled:
            scale_losses()
        owner, _, name = self.function.rpartition(".")
        original, calls = pkgutil.resolve_name(self.function), 0

        def spoilt(*words: Any, **named: Any) -> torch.Tensor:
            nonlocal calls
            calls += 1
            result: torch.Tensor = original(*words, **named)
            return self.change(result) if self.first <= calls <= self.last else result

        setattr(pkgutil.resolve_name(owner), name, spoilt)


def scale_losses() -> None:
    """Every run of this process has a GradScaler, which works on a CPU, too."""
    original = Precision.__init__

    def init(precision: Precision, opt_level: str, device: torch.device) -> None:
        original(precision, opt_level, device)
        precision.scaler = GradScaler(device.type, init_scale=2.0**30)

    setattr(Precision, "__init__", init)  # noqa: B010


def infinite(values: torch.Tensor) -> torch.Tensor:
    """An infinite loss, or infinite and undefined pixels."""
    return values * float("inf")


def with_nan_gradients(loss: torch.Tensor) -> torch.Tensor:
    """The same finite loss, all of whose gradients are nan; that of an evaluation has none."""
    if loss.requires_grad:
        loss.register_hook(lambda gradient: gradient * float("nan"))
    return loss


LOSS = "relabel.training.trainer.F.cross_entropy"


@pytest.fixture
def saving(flags: Flags) -> Flags:
    """Every step is recorded and saved."""
    return flags | {"util.print_freq": 1, "util.checkpoint_minutes": 0}


def fails(flags: Flags, tmp_path: Path, spoil: Spoil, rank: int) -> str:
    """What two processes print, one of them spoilt: both fail, with one error message, and what is saved is finite."""
    output = tmp_path / "output"
    faults: dict[int, Callable[[], None]] = {1 - rank: scale_losses} if spoil.scaled else {}
    ends = fork_run(flags, output, 2, {**faults, rank: spoil}).ends()
    text = output.read_text()
    assert 2 in ends and 0 not in ends, text
    assert text.count("error: ") == 1 and "Traceback" not in text, text
    folder = flags["util.run_dir"]
    assert status(folder)["state"] == "failed" and status(folder)["reason"] in text
    for path in folder.glob("checkpoint-*.pth"):
        state = load_checkpoint(path)
        assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())
        for buffers in state["optimizer"]["state"].values():
            assert all(tensor.isfinite().all() for tensor in buffers.values() if tensor is not None)
    return text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "rank"),
    [("relabel.training.trainer.augment", 0), (LOSS, 1)],
)
def test_a_loss_that_is_not_finite_in_any_process_updates_none(
    saving: Flags, tmp_path: Path, function: str, rank: int
) -> None:
    text = fails(saving, tmp_path, Spoil(function, infinite, 3, 3), rank)
    assert "the loss of step 3 is not finite" in text
    last = read_metrics(saving["util.run_dir"])[-1]
    assert (last["event"], last["step"]) == ("non_finite_loss", 2)
    assert load_checkpoint(saving["util.run_dir"] / LAST)["step"] == 2


@pytest.mark.slow
def test_gradients_that_are_not_finite_in_one_process_are_never_saved(saving: Flags, tmp_path: Path) -> None:
    """Without a loss scale nobody looks at gradients; the weights that they spoil are seen before they are saved."""
    text = fails(saving, tmp_path, Spoil(LOSS, with_nan_gradients, 3, 3), rank=1)
    assert "is no longer finite, so nothing is saved" in text
    assert load_checkpoint(saving["util.run_dir"] / LAST)["step"] == 2


@pytest.mark.slow
def test_a_loss_scale_that_collapses_ends_the_run_with_the_weights_before(saving: Flags, tmp_path: Path) -> None:
    saving |= {"optim.epochs": 5}
    text = fails(saving, tmp_path, Spoil(LOSS, with_nan_gradients, 3, FOR_EVER, scaled=True), rank=1)
    assert f"{MAX_SKIPPED_IN_A_ROW} updates in a row had non-finite gradients" in text
    folder = saving["util.run_dir"]
    assert load_checkpoint(folder / LAST)["step"] == 2 + MAX_SKIPPED_IN_A_ROW - 1
    first, second = (load_checkpoint(folder / name)["optimizer"]["state"][0] for name in (PREVIOUS, LAST))
    assert_same_weights(first, second)


@pytest.mark.slow
def test_one_update_with_gradients_that_are_not_finite_is_skipped_and_counted(saving: Flags, tmp_path: Path) -> None:
    folder, output = saving["util.run_dir"], tmp_path / "output"
    spoil = Spoil(LOSS, with_nan_gradients, 3, 3, scaled=True)
    assert fork_run(saving, output, 2, {0: scale_losses, 1: spoil}).ends() == [0, 0], output.read_text()
    skipped = [event["skipped_updates"] for event in read_metrics(folder) if event["event"] == "train"]
    assert skipped[:3] == [0, 0, 0] and set(skipped[3:]) == {1}  # known when the next step is made
    state = load_checkpoint(folder / LAST)
    assert state["scaler"]["scale"] == 2.0**29
    assert all(tensor.isfinite().all() for tensor in state["state_dict"].values())


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every run of this process has a GradScaler, as O1 has on a GPU."""
    monkeypatch.setattr(Precision, "__init__", Precision.__init__)  # undone at the end
    scale_losses()


def test_a_run_that_skipped_an_update_continues_exactly(
    saving: Flags, monkeypatch: pytest.MonkeyPatch, scaled: None
) -> None:
    """With its loss scale, and the count of what it skipped."""
    cross_entropy = F.cross_entropy

    def spoil(trainer: Trainer) -> None:
        monkeypatch.setattr(LOSS, lambda *words: with_nan_gradients(cross_entropy(*words)))

    at_step(monkeypatch, 3, spoil)
    at_step(monkeypatch, 4, lambda _: monkeypatch.setattr(LOSS, cross_entropy))
    preempt(saving, 7)
    start(saving)
    first, second = (load_checkpoint(folder / LAST) for folder in (undisturbed(saving), saving["util.run_dir"]))
    assert first["scaler"] == second["scaler"] and second["scaler"]["scale"] == 2.0**29
    assert first["skipped_updates"] == second["skipped_updates"] == 1
    assert_same_weights(first["state_dict"], second["state_dict"])
    assert metrics(undisturbed(saving)) == metrics(saving["util.run_dir"])


def test_gradients_are_clipped_by_their_own_norm_not_the_scaled_one(
    saving: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power of two as scale changes no digit."""
    saving |= {"optim.clip_grad_norm": 0.5, "optim.epochs": 1, "optim.warmup.epochs": 0}
    start({**saving, "util.run_dir": tmp_path / "plain"})
    monkeypatch.setattr(Precision, "__init__", Precision.__init__)
    scale_losses()
    start(saving)
    first, second = (load_checkpoint(folder / LAST) for folder in (tmp_path / "plain", saving["util.run_dir"]))
    for name, expected in first["state_dict"].items():
        torch.testing.assert_close(second["state_dict"][name], expected, rtol=1e-5, atol=1e-6)


def test_each_micro_batch_is_judged(saving: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """An infinite loss in the first of two ends the run, though the second one's is finite; a record says so."""
    calls, cross_entropy = iter(range(10**6)), F.cross_entropy
    monkeypatch.setattr(LOSS, lambda *words: cross_entropy(*words) * (float("inf") if next(calls) == 4 else 1))
    with pytest.raises(UserError, match="the loss of step 3 is not finite"):
        start({**saving, "optim.accumulation": 2})
    folder = saving["util.run_dir"]
    assert status(folder)["state"] == "failed" and "not finite" in status(folder)["reason"]
    last = read_metrics(folder)[-1]
    assert (last["event"], last["loss"]) == ("non_finite_loss", "inf")
    assert load_checkpoint(folder / LAST)["step"] == 2


@pytest.mark.parametrize("averaged", [False, True])
def test_a_run_whose_batch_norm_overflows_ends_with_the_weights_before(
    saving: Flags, monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    """Its loss stays finite; so do the averaged weights, but not what was averaged with them."""

    def overflow(trainer: Trainer) -> None:
        network = trainer.ema.module if averaged and trainer.ema else trainer.model
        next(buffer for name, buffer in network.named_buffers() if "var" in name)[0] = float("inf")

    at_step(monkeypatch, 3, overflow)
    with pytest.raises(UserError, match="running_var is no longer finite, so nothing is saved"):
        start({**saving, "optim.ema.decay": 0.9})
    assert status(saving["util.run_dir"])["state"] == "failed"
    assert load_checkpoint(saving["util.run_dir"] / LAST)["step"] == 3
