"""What compute.opt_level means on a CPU; on a GPU where there is one."""

import pytest
import torch
from torch import nn

from utils.precision import Precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("level", "name", "result"),
    [
        ("O0", "float32", torch.float32),
        ("O1", "float32", torch.float32),
        ("O2", "float32", torch.float32),
        ("bf16", "bfloat16", torch.bfloat16),
    ],
)
def test_levels_on_a_cpu(level: str, name: str, result: torch.dtype) -> None:
    precision = Precision(level, CPU)
    assert precision.name == name and not precision.scaler.is_enabled()
    with precision.autocast():
        assert nn.Linear(3, 2)(torch.ones(1, 3)).dtype == result


def test_a_level_that_changes_says_so() -> None:
    assert "float32" in Precision("O1", CPU).note
    assert not Precision("O0", CPU).note and not Precision("bf16", CPU).note


def test_logits_that_overflow_float16_are_those_of_float32() -> None:
    """The hidden value of the second image is 90,000; the first keeps float16's rounding, whatever its neighbour."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False))
    network.load_state_dict({"0.weight": torch.tensor([[300.0]]), "1.weight": torch.tensor([[1.0], [-1.0]])})
    inputs, precision = torch.tensor([[1.2345], [300.0]]), Precision("O1", CPU)
    precision.dtype = torch.float16  # as on a GPU
    with torch.inference_mode(), precision.evaluation(network):
        alone, both = precision.logits(network, inputs[:1]), precision.logits(network, inputs)
        assert not network(inputs).isfinite().all()
    assert both.tolist() == [alone[0].tolist(), [90000, -90000]] and both.dtype == torch.float32
    assert alone[0, 0] != network(inputs)[0, 0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_float16_scales_its_loss(level: str) -> None:
    precision = Precision(level, torch.device("cuda"))
    assert precision.name == "float16" and precision.scaler.is_enabled()
    assert bool(precision.note) == (level == "O2")
