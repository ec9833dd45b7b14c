"""The guard: a non-finite loss, requests, and updates that the loss scaler skips."""

import pytest
import torch
from torch import nn
from torch.amp import GradScaler

from utils.errors import UserError
from utils.processes.guard import MAX_SKIPPED_IN_A_ROW, StepGuard, Verdict, assert_finite

CPU = torch.device("cpu")


def verdict(loss: float, stop: bool = False, save: bool = False) -> Verdict:
    """One step of a guard without a scaler."""
    guard = StepGuard(CPU, GradScaler("cpu", enabled=False))
    guard.send(torch.tensor(loss), stop, save)
    return guard.receive()


def test_what_is_sent_is_received() -> None:
    assert verdict(1.5) == Verdict(finite=True, stop=False, save=False)
    assert verdict(1.5, stop=True) == Verdict(finite=True, stop=True, save=False)
    assert verdict(1.5, save=True) == Verdict(finite=True, stop=False, save=True)
    assert not any(verdict(loss).finite for loss in (float("nan"), float("inf"), -float("inf")))


def test_skipped_updates_are_counted_and_twenty_in_a_row_stop() -> None:
    """Also across checkpoints and continuations."""
    scaler, weight = GradScaler("cpu", init_scale=2.0**40), nn.Parameter(torch.ones(1))
    guard, optimizer = StepGuard(CPU, scaler), torch.optim.SGD([weight], lr=1.0)

    def step(gradient: float) -> None:
        guard.send(torch.tensor(0.5), stop=False, save=False)
        guard.receive()
        scaler.scale(torch.zeros(()))  # the scaler needs to have scaled something
        weight.grad = torch.tensor([gradient])
        scaler.step(optimizer)
        scaler.update()

    for gradient in (float("inf"), float("inf"), float("inf"), 0.0):
        step(gradient)
    guard.settle()
    assert (guard.skipped, weight.item()) == (3, 1.0)
    step(0.0)
    assert guard.skipped_in_a_row == 0
    with pytest.raises(UserError, match=f"{MAX_SKIPPED_IN_A_ROW} updates in a row"):
        for _ in range(MAX_SKIPPED_IN_A_ROW + 1):
            step(float("nan"))
    guard = StepGuard(CPU, scaler)
    with pytest.raises(UserError, match="in a row"):
        for _ in range(MAX_SKIPPED_IN_A_ROW):
            step(float("inf"))
            guard.settle()  # as a save does
            guard = StepGuard(CPU, scaler, guard.skipped, guard.skipped_in_a_row)  # as a resume does
    assert weight.item() == 1.0


def trained(optimizer: str = "SGD") -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two layers after one update."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    updates: torch.optim.Optimizer = getattr(torch.optim, optimizer)(model.parameters(), lr=0.1)
    model(torch.ones(1, 2)).sum().backward()
    updates.step()
    return model, updates


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model, optimizer = trained()
    assert_finite(model, optimizer)
    with torch.no_grad():
        model.get_parameter("1.bias").fill_(value)
    with pytest.raises(UserError, match=r"the weight 1\.bias is no longer finite"):
        assert_finite(model, optimizer)


def test_a_gradient_too_large_to_be_squared_is_named_though_the_weights_are_finite() -> None:
    model, optimizer = trained("Adam")
    assert_finite(model, optimizer)
    model.get_parameter("0.weight").grad = torch.full((3, 2), 1e25)
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    with pytest.raises(UserError, match=r"the optimizer's exp_avg_sq of 0\.weight is no longer finite"):
        assert_finite(model, optimizer)


def test_huge_finite_weights_pass() -> None:
    model, optimizer = trained()
    with torch.no_grad():
        model.get_parameter("1.weight").fill_(3e38)  # their sum is not finite
    assert_finite(model, optimizer)


def test_statistics_of_batch_norm_that_are_not_finite_are_named() -> None:
    """Divided by an infinite deviation, everything is finite again."""
    model, optimizer = trained()
    network = nn.Sequential(model, nn.BatchNorm1d(1))
    assert_finite(network, optimizer)
    network.get_buffer("1.running_var").fill_(float("inf"))
    with pytest.raises(UserError, match=r"the buffer 1\.running_var is no longer finite"):
        assert_finite(network, optimizer)
