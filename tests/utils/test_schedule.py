"""The learning rate against the 2021 code's figures, and at its corners."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from tests.conftest import ROOT
from utils.schedule import learning_rate

GOLDEN = ROOT / "tests" / "golden" / "schedule_2021.json"


@pytest.mark.parametrize("decay_type", ["cos", "linear", "default"])
def test_equals_the_2021_code_at_every_step(decay_type: str) -> None:
    case = json.loads(GOLDEN.read_text())[decay_type]
    expected = case.pop("lr")
    rates = [learning_rate(step, decay_type=decay_type, **case) for step in range(len(expected))]
    assert len(rates) == case["epochs"] * case["steps_per_epoch"]
    assert rates == pytest.approx(expected, rel=1e-12, abs=1e-15)


def scheduled(kind: str, steps: int, epochs: int, warmup_epochs: int, lr_init: float) -> list[float]:
    """The slow reference: torch's schedulers, which go step by step; the rates after the warm-up."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr_init)
    left = (epochs - warmup_epochs) * steps
    scheduler = {
        "cos": lambda: CosineAnnealingLR(optimizer, left),
        "linear": lambda: LinearLR(optimizer, 1.0, 0.0, left),
        "default": lambda: MultiStepLR(optimizer, [30 * steps, 60 * steps, 90 * steps]),
    }[kind]()
    rates = []
    for _ in range(epochs * steps if kind == "default" else left):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates[-left:] if left else []


@given(
    st.sampled_from(["cos", "linear", "default"]),
    st.integers(1, 3),
    st.integers(1, 9) | st.sampled_from([30, 31, 91]),
    st.data(),
    st.floats(1e-6, 10),
    st.floats(0, 20),
)
def test_any_schedule_is_that_of_torch_after_a_straight_warmup(
    kind: str, steps: int, epochs: int, data: st.DataObject, lr_init: float, warmup_lr: float
) -> None:
    warmup_epochs = data.draw(st.integers(0, epochs) | st.just(epochs))
    rates = [learning_rate(s, steps, epochs, warmup_epochs, lr_init, warmup_lr, kind) for s in range(epochs * steps)]
    first = warmup_epochs * steps
    line = [warmup_lr + i * (lr_init - warmup_lr) / first for i in range(first)]
    assert rates == pytest.approx(line + scheduled(kind, steps, epochs, warmup_epochs, lr_init), rel=1e-6, abs=1e-7)
    assert min(rates) >= 0 and max(rates) <= max(lr_init, warmup_lr) * (1 + 1e-12)


def test_rates_by_hand() -> None:
    """The rate reaches 0 one step after the last, so no step is wasted."""
    rates = [learning_rate(step, 2, 4, 2, 0.5, 0.1, "linear") for step in range(9)]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.375, 0.25, 0.125, 0])
    assert [learning_rate(step, 2, 2, 0, 0.4, 0.0, "cos") for step in (0, 2, 4)] == pytest.approx([0.4, 0.2, 0])
    drops = [learning_rate(epoch * 7, 7, 200, 0, 1.0, 0.0, "default") for epoch in (29, 30, 59, 60, 89, 90, 199)]
    assert drops == pytest.approx([1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert [learning_rate(step, 2, 1, 1, 0.4, 0.0, "cos") for step in range(3)] == pytest.approx([0, 0.2, 0.4])


def test_unknown_decay_is_refused() -> None:
    with pytest.raises(ValueError, match="cos, linear or default, not 'cosine'"):
        learning_rate(5, 2, 2, 0, 0.4, 0.0, "cosine")
