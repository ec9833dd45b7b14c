"""Features as cells and back, and a head on each cell alone."""

import pytest
import torch
from torch import Tensor, nn

from models.cell_head import CellHead, Layout, Map, Tokens
from utils.errors import UserError

IMAGES = torch.zeros(2, 3, 32, 48)  # 2 x 3 cells of 16 pixels
CELLS = torch.arange(2 * 5 * 2 * 3.0).reshape(2, 5, 2, 3)


def test_channels_may_be_last() -> None:
    features = Map(channels_last=True).features(CELLS)
    assert features.shape == (2, 2, 3, 5)
    assert torch.equal(features[1, 0, 2], CELLS[1, :, 0, 2])
    assert torch.equal(Map(channels_last=True).cells(features, IMAGES), CELLS)


def test_tokens_lie_row_by_row_after_the_prefix() -> None:
    layout = Tokens(prefix=2, stride=16)
    features = torch.cat([torch.full((2, 2, 5), -1.0), CELLS.flatten(2).transpose(1, 2)], 1)
    assert torch.equal(layout.cells(features, IMAGES), CELLS)
    assert torch.equal(layout.features(CELLS)[:, 2:], features[:, 2:])


def test_the_mean_cell_stands_in_for_each_token_of_the_prefix() -> None:
    prefix = Tokens(prefix=2, stride=16).features(CELLS)[:, :2]
    assert torch.equal(prefix, CELLS.mean((2, 3))[:, None].expand(2, 2, 5))


def test_images_may_be_padded_to_whole_patches() -> None:
    padded = torch.zeros(2, 3, 31, 33)
    assert Tokens(0, 16).cells(torch.zeros(2, 6, 5), padded).shape == (2, 5, 2, 3)
    assert Tokens(0, 16).cells(torch.zeros(2, 2, 5), padded).shape == (2, 5, 1, 2)


def test_tokens_without_a_place_are_refused() -> None:
    with pytest.raises(UserError, match=r"7 patch tokens from an image of 32 x 48 pixels.*one token per 16 pixels"):
        Tokens(1, 16).cells(torch.zeros(1, 8, 5), IMAGES)


class Largest(nn.Module):
    """A head of two classes, of whatever features: their largest and their smallest value."""

    def forward(self, features: Tensor) -> Tensor:
        """[B, ..] -> [B, 2]."""
        values = features.flatten(1)
        return torch.stack([values.amax(1), values.amin(1)], 1)


@pytest.mark.parametrize("layout", [Map(), Map(channels_last=True), Tokens(1, 16)])
def test_the_head_sees_one_cell_at_a_time(layout: Layout) -> None:
    maps = CellHead(Largest(), layout)(CELLS)
    assert torch.equal(maps, torch.stack([CELLS.amax(1), CELLS.amin(1)], 1))
