"""Merged classes have the sum of their probabilities, in vectors and in every cell of a map."""

import pytest
import torch
from torch import nn

from models.merged_classes import MergedClasses


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3, 4)])
def test_probabilities_add_up(shape: tuple[int, ...]) -> None:
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 5
    merged = MergedClasses(nn.Identity(), [[3], [0, 2, 4], [1]])(logits)
    own = logits.softmax(dim=1)
    expected = torch.stack([own[:, 3], own[:, 0] + own[:, 2] + own[:, 4], own[:, 1]], dim=1)
    torch.testing.assert_close(merged.softmax(dim=1), expected)
    assert torch.equal(merged[:, 2], logits[:, 1])  # a class of its own keeps its logit


def test_mean_gives_no_group_more_for_being_larger() -> None:
    averaged = MergedClasses(nn.Identity(), [[3], [0, 2, 4], [1]], mean=True)
    torch.testing.assert_close(averaged(torch.full((1, 5), 2.0)), torch.full((1, 3), 2.0))
