"""Targets: the 2021 code's golden outputs in both axis orders, the kinds of supervision, and what always holds."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relabel.targets import (
    BOX_AXES,
    SUPERVISIONS,
    TargetMaker,
    original_target,
    relabel_target,
)
from tests.conftest import ROOT
from tests.strategies import map_batches

GOLDEN = ROOT / "tests" / "golden"
K = 12


def random_batch(batch: int = 30, k: int = 4, h: int = 5, w: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, classes, boxes."""
    generator = torch.Generator().manual_seed(7)
    classes = torch.rand(batch, K, h, w, generator=generator).argsort(dim=1)[:, :k]
    scores = torch.rand(batch, k, h, w, generator=generator) * 10 - 2
    sides = torch.rand(batch, 2, 2, generator=generator).sort(dim=1).values
    return scores, classes, sides.flatten(1)


def left_half() -> tuple[Tensor, Tensor, Tensor]:
    """A 4x6 map, class 0 left and 1 right, with the left half as the box."""
    classes = torch.zeros(1, 1, 4, 6, dtype=torch.int64)
    classes[..., 3:] = 1
    return torch.full((1, 1, 4, 6), 8.0), classes, torch.tensor([[0, 0, 0.5, 1]])


@pytest.mark.parametrize(("box_axes", "expected"), [("xy", "target_xy"), ("yx", "target_2021")])
def test_targets_of_the_2021_code(box_axes: str, expected: str) -> None:
    with np.load(GOLDEN / "pooling_2021.npz") as golden:
        scores, classes, boxes, target = (
            torch.from_numpy(golden[name]) for name in ("scores", "classes", "boxes_ltrb", expected)
        )
    found = relabel_target(scores, classes, boxes, 1000, box_axes=box_axes)
    assert (found - target).abs().max() <= 1e-6


def test_the_two_axis_orders_differ_by_eye() -> None:
    as_meant = relabel_target(*left_half(), 3)
    swapped = relabel_target(*left_half(), 3, box_axes="yx")  # the left half becomes the top half: both classes
    assert as_meant.argmax() == 0 and as_meant[0, 0] > 0.99
    assert swapped[0, 0] == swapped[0, 1] > 0.49


@given(
    map_batches(),
    st.sampled_from(SUPERVISIONS),
    st.sampled_from(BOX_AXES),
    st.fixed_dictionaries(
        {"fill": st.floats(-1000, 1000), "temperature": st.floats(1e-3, 1e6), "ground_truth_weight": st.floats(0, 1)}
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_every_target_is_a_distribution(
    drawn: tuple[Tensor, Tensor, Tensor, int],
    supervision: str,
    box_axes: str,
    settings: dict[str, float],
    smoothing: float,
) -> None:
    """For any valid setting, logits as large as half precision holds, and an image without a label."""
    scores, classes, boxes, num_classes = drawn
    labels = torch.tensor([num_classes - 1, -1])
    make_targets = TargetMaker(num_classes, smoothing, supervision=supervision, box_axes=box_axes, **settings)
    target = make_targets(labels, boxes, scores, classes)
    assert target.shape == (2, num_classes) and target.dtype == torch.float32 and target.min() >= 0
    torch.testing.assert_close(target.sum(dim=1), torch.ones(2), rtol=0, atol=2e-5)


def test_single_is_one_hot_at_the_multis_largest() -> None:
    for region in ("localized", "global"):
        multi = relabel_target(*random_batch(), K, supervision=f"{region}_multi")
        single = relabel_target(*random_batch(), K, supervision=f"{region}_single")
        assert torch.equal(single, torch.nn.functional.one_hot(multi.argmax(dim=1), K).float())


def test_global_pools_the_whole_image_whatever_the_box() -> None:
    scores, classes, boxes = random_batch()
    whole = torch.tensor([[0.0, 0, 1, 1]]).expand_as(boxes)
    expected = relabel_target(scores, classes, whole, K)
    assert torch.equal(relabel_target(scores, classes, boxes, K, supervision="global_multi"), expected)
    assert torch.equal(relabel_target(scores, classes, None, K), expected)
    assert not torch.equal(relabel_target(scores, classes, boxes, K), expected)


def test_ground_truth_weight_by_eye() -> None:
    label = torch.tensor([2])
    plain = relabel_target(*left_half(), 3)
    mixed = relabel_target(*left_half(), 3, labels=label, ground_truth_weight=0.25)
    torch.testing.assert_close(mixed, 0.75 * plain + 0.25 * torch.tensor([[0.0, 0, 1]]))
    assert relabel_target(*left_half(), 3, labels=label, ground_truth_weight=1.0).tolist() == [[0, 0, 1]]
    with pytest.raises(ValueError, match="no labels were given"):
        relabel_target(*left_half(), 3, ground_truth_weight=0.25)


@pytest.mark.parametrize(("logit", "leaked"), [(4, 0.95), (8, 0.25), (12, 0.006)])
def test_the_leak_to_absent_classes_and_its_cures(logit: float, leaked: float) -> None:
    """One class everywhere among 1000: what a fill of 0 gives to the others depends on the annotator's logits."""
    scores, classes = torch.full((1, 1, 4, 6), logit), torch.zeros(1, 1, 4, 6, dtype=torch.int64)
    rest = torch.tensor([[0.2, 0.1, 0.9, 0.8]]), 1000
    assert 1 - relabel_target(scores, classes, *rest)[0, 0].item() == pytest.approx(leaked, rel=0.02)
    assert 1 - relabel_target(scores, classes, *rest, fill=logit - 20)[0, 0].item() < 1e-5
    assert 1 - relabel_target(scores, classes, *rest, temperature=logit / 20)[0, 0].item() < 1e-5


def test_a_flip_does_not_move_the_target() -> None:
    scores, classes, boxes = random_batch()
    boxes[:, 2] = (boxes[:, 0] * 0.5 + 0.4).clamp(max=1)  # wider than a cell: only narrower boxes grow, to the right
    boxes[:, 0] *= 0.5
    mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], dim=1)
    found = relabel_target(scores.flip(3), classes.flip(3), mirrored, K)
    torch.testing.assert_close(found, relabel_target(scores, classes, boxes, K), rtol=0, atol=1e-5)


def test_without_label_maps_the_target_is_the_smoothed_label() -> None:
    labels = torch.tensor([2, 0])
    assert original_target(labels, 4).tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    expected = torch.tensor([[0.05, 0.05, 0.85, 0.05], [0.85, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(TargetMaker(4, smoothing=0.2)(labels), expected)


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_needs_no_value_on_the_host(supervision: str) -> None:
    """Tensors without data: any step that had to wait for a device's numbers would fail here."""
    scores, classes, boxes = (tensor.to("meta") for tensor in random_batch())
    labels = torch.empty(30, dtype=torch.int64, device="meta")
    for box_axes in BOX_AXES:
        settings: dict[str, Any] = {"supervision": supervision, "box_axes": box_axes}
        make_targets = TargetMaker(K, 0.1, fill=-1.0, temperature=2.0, ground_truth_weight=0.1, **settings)
        assert make_targets(labels, boxes, scores, classes).shape == (30, K)
