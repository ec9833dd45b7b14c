"""CutMix: boxes and mixing of the 2021 code, and what must be true of any mix."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from relabel.cutmix import cut_box, cutmix, mix_targets
from relabel.targets import smooth
from tests.conftest import ROOT
from tests.strategies import SEEDS

GOLDEN = json.loads((ROOT / "tests" / "golden" / "cutmix_2021.json").read_text(encoding="utf-8"))


def numbered_batch(count: int, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image i is i everywhere and its target is one-hot at i, so that pixels and targets can be counted."""
    images = torch.arange(count, dtype=torch.float32).view(-1, 1, 1, 1).expand(count, 3, height, width).clone()
    return images, torch.eye(count)


@pytest.mark.parametrize("case", GOLDEN["boxes"])
def test_box_of_the_2021_code(case: dict) -> None:
    rows, cols, kept = cut_box(
        case["lam_drawn"], case["centre_row"], case["centre_col"], height=case["height"], width=case["width"]
    )
    assert list(rows) == case["rows"] and list(cols) == case["cols"]
    assert kept == pytest.approx(case["lam_kept"], rel=1e-12)


def test_smoothing_and_mixing_of_the_2021_code() -> None:
    case = GOLDEN["mixing"]
    own, other = (smooth(torch.tensor(case[name]), case["smoothing"]) for name in ("target_a", "target_b"))
    mixed = mix_targets(own, other, case["lam"])
    torch.testing.assert_close(mixed, torch.tensor(case["mixed"]), rtol=0, atol=1e-7)


def test_boxes_by_eye() -> None:
    assert cut_box(0.75, 50, 20, height=100, width=40) == ((25, 75), (10, 30), 0.75)
    assert cut_box(1.0, 50, 20, height=100, width=40) == ((50, 50), (20, 20), 1.0)
    assert cut_box(0.0, 50, 20, height=100, width=40) == ((0, 100), (0, 40), 0.0)
    assert cut_box(0.0, 0, 0, height=100, width=40) == ((0, 50), (0, 20), 0.75)  # clipped at two borders


@given(st.data(), st.floats(0, 1), st.integers(1, 300), st.integers(1, 300))
def test_a_box_lies_inside_and_keeps_the_pixels_it_says(
    data: st.DataObject, keep: float, height: int, width: int
) -> None:
    row, col = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    (top, bottom), (left, right), kept = cut_box(keep, row, col, height, width)
    image = np.ones((height, width))
    assert 0 <= top <= bottom <= height and 0 <= left <= right <= width
    image[top:bottom, left:right] = 0
    assert kept == pytest.approx(image.mean(), abs=1e-12)
    assert kept >= keep - 1e-9  # whole pixels and borders only take from the rectangle
    share = (1 - keep) ** 0.5
    if row >= height * share / 2 and row + height * share / 2 <= height:  # not clipped: the side asked for
        assert height * share - 2 <= bottom - top <= height * share + 1e-9


@given(st.integers(1, 6), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1e-3, 0.2, 1.0, 1e3]), SEEDS)
def test_target_weights_are_the_shares_of_pixels(count: int, height: int, width: int, beta: float, seed: int) -> None:
    images, targets = numbered_batch(count, height, width)
    before = images.clone(), targets.clone()
    mixed, mixed_targets = cutmix(images, targets, np.random.default_rng(seed), beta)
    assert torch.equal(images, before[0]) and torch.equal(targets, before[1])
    shares = torch.stack([(mixed == i).float().mean(dim=(1, 2, 3)) for i in range(count)], dim=1)
    torch.testing.assert_close(mixed_targets, shares, rtol=0, atol=1e-6)
    torch.testing.assert_close(mixed_targets.sum(dim=0), torch.ones(count))  # each image gives what it takes


@pytest.mark.parametrize("seed", range(5))
def test_the_generator_draws_share_row_column_and_partners_in_this_order(seed: int) -> None:
    images, targets = numbered_batch(6, height=24, width=40)
    rng = np.random.default_rng(seed)
    keep, row, column, partners = rng.beta(0.7, 0.7), rng.integers(24), rng.integers(40), rng.permutation(6)
    (top, bottom), (left, right), kept = cut_box(keep, int(row), int(column), 24, 40)
    expected = images.clone()
    expected[:, :, top:bottom, left:right] = torch.from_numpy(partners).float()[:, None, None, None]
    mixed, mixed_targets = cutmix(images, targets, np.random.default_rng(seed), beta=0.7)
    assert torch.equal(mixed, expected)
    torch.testing.assert_close(mixed_targets, mix_targets(targets, targets[partners], kept))
