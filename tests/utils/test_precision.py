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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("level", ["O1", "O2"])
def test_float16_scales_its_loss(level: str) -> None:
    precision = Precision(level, torch.device("cuda"))
    assert precision.name == "float16" and precision.scaler.is_enabled()
    assert bool(precision.note) == (level == "O2")
