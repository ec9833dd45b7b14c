"""Targets: the 2021 code's golden outputs in both axis orders, the supervision variants, and what always holds."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from relabel.label_pooling import pool_scores
from relabel.targets import BOX_AXES, SUPERVISIONS, original_target, relabel_target, smooth
from tests.conftest import ROOT
from tests.strategies import map_batches

GOLDEN = ROOT / "tests" / "golden"
K = 12


def random_batch(batch: int = 30, k: int = 4, h: int = 5, w: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scores, classes, boxes, labels."""
    generator = torch.Generator().manual_seed(7)
    classes = torch.rand(batch, K, h, w, generator=generator).argsort(dim=1)[:, :k]
    scores = torch.rand(batch, k, h, w, generator=generator) * 10 - 2
    sides = torch.rand(batch, 2, 2, generator=generator).sort(dim=1).values
    return scores, classes, sides.flatten(1), torch.randint(0, K, (batch,), generator=generator)


def quarters() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A 4x6 map, class 0 left and 1 right, with the left half as the box and 2 as the folder's label."""
    classes = torch.zeros(1, 1, 4, 6, dtype=torch.int64)
    classes[..., 3:] = 1
    return torch.full((1, 1, 4, 6), 8.0), classes, torch.tensor([[0, 0, 0.5, 1]]), torch.tensor([2])


@pytest.mark.parametrize(("box_axes", "expected"), [("xy", "target_xy"), ("yx", "target_2021")])
def test_targets_of_the_2021_code(box_axes: str, expected: str) -> None:
    with np.load(GOLDEN / "pooling_2021.npz") as golden:
        scores, classes, boxes, target = (
            torch.from_numpy(golden[name]) for name in ("scores", "classes", "boxes_ltrb", expected)
        )
    labels = torch.zeros(len(scores), dtype=torch.int64)
    found = relabel_target(scores, classes, boxes, labels, 1000, box_axes=box_axes)
    assert (found - target).abs().max() <= 1e-6


@pytest.mark.parametrize("file", sorted(GOLDEN.iterdir()), ids=lambda file: file.name)
def test_golden_files_are_the_shared_ones(file: Path) -> None:
    shared = ROOT.parent / "shared" / "golden" / file.name
    if not shared.exists():
        pytest.skip("the shared golden files are not beside this checkout")
    assert file.read_bytes() == shared.read_bytes()


def test_the_two_axis_orders_differ_by_eye() -> None:
    as_meant = relabel_target(*quarters(), 3)
    swapped = relabel_target(*quarters(), 3, box_axes="yx")  # the left half becomes the top half: both classes
    assert as_meant.argmax() == 0 and as_meant[0, 0] > 0.99
    assert swapped[0, 0] == swapped[0, 1] > 0.49


@pytest.mark.parametrize("supervision", SUPERVISIONS)
@pytest.mark.parametrize("box_axes", ["xy", "yx"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"fill": -5.0}, {"temperature": 3.0}, {"ground_truth_weight": 0.3}, {"ground_truth_weight": 1.0}],
)
def test_every_target_is_a_distribution(supervision: str, box_axes: str, settings: dict[str, Any]) -> None:
    target = relabel_target(*random_batch(), K, supervision=supervision, box_axes=box_axes, **settings)
    assert target.shape == (30, K) and target.dtype == torch.float32
    assert target.min() >= 0
    torch.testing.assert_close(target.sum(dim=1), torch.ones(30), rtol=0, atol=1e-6)


@given(
    map_batches(),
    st.sampled_from(SUPERVISIONS),
    st.sampled_from(BOX_AXES),
    st.fixed_dictionaries(
        {"fill": st.floats(-1000, 1000), "temperature": st.floats(1e-3, 1e6), "ground_truth_weight": st.floats(0, 1)}
    ),
    st.floats(0, 1, exclude_max=True),
)
def test_so_is_the_target_of_any_map_and_settings(
    drawn: tuple[Tensor, Tensor, Tensor, int],
    supervision: str,
    box_axes: str,
    settings: dict[str, float],
    smoothing: float,
) -> None:
    """With all that a config may say, logits as large as half precision holds, and an image without label."""
    scores, classes, boxes, num_classes = drawn
    labels = torch.tensor([num_classes - 1, -1])
    target = relabel_target(
        scores, classes, boxes, labels, num_classes, supervision=supervision, box_axes=box_axes, **settings
    )
    for distribution in (target, smooth(target, smoothing)):
        assert distribution.shape == (2, num_classes) and distribution.min() >= 0
        torch.testing.assert_close(distribution.sum(dim=1), torch.ones(2), rtol=0, atol=2e-5)


def test_localized_multi_is_the_softmax_of_the_pooled_scores() -> None:
    scores, classes, boxes, labels = random_batch()
    pooled = pool_scores(scores, classes, boxes, K, fill=-1)
    found = relabel_target(scores, classes, boxes, labels, K, fill=-1, temperature=2)
    torch.testing.assert_close(found, torch.softmax(pooled / 2, dim=1))


def test_single_is_one_hot_at_the_multis_largest() -> None:
    for region in ("localized", "global"):
        multi = relabel_target(*random_batch(), K, supervision=f"{region}_multi")
        single = relabel_target(*random_batch(), K, supervision=f"{region}_single")
        assert torch.equal(single, torch.nn.functional.one_hot(multi.argmax(dim=1), K).float())


def test_global_pools_the_whole_image_whatever_the_box() -> None:
    scores, classes, boxes, labels = random_batch()
    whole = torch.tensor([[0.0, 0, 1, 1]]).expand_as(boxes)
    for form in ("multi", "single"):
        found = relabel_target(scores, classes, boxes, labels, K, supervision=f"global_{form}")
        localized = relabel_target(scores, classes, whole, labels, K, supervision=f"localized_{form}")
        assert torch.equal(found, localized)
    assert not torch.equal(relabel_target(scores, classes, boxes, labels, K), localized)


def test_ground_truth_weight_by_eye() -> None:
    plain = relabel_target(*quarters(), 3)
    mixed = relabel_target(*quarters(), 3, ground_truth_weight=0.25)
    torch.testing.assert_close(mixed, 0.75 * plain + 0.25 * torch.tensor([[0.0, 0, 1]]))
    assert relabel_target(*quarters(), 3, ground_truth_weight=1.0).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(("logit", "leaked"), [(4, 0.95), (6, 0.71), (8, 0.25), (10, 0.043), (12, 0.006)])
def test_the_leak_to_absent_classes_and_its_cures(logit: float, leaked: float) -> None:
    """One class everywhere among 1000: what a fill of 0 gives to the others hangs on the annotator's logits."""
    scores, classes = torch.full((1, 1, 4, 6), logit), torch.zeros(1, 1, 4, 6, dtype=torch.int64)
    rest = torch.tensor([[0.2, 0.1, 0.9, 0.8]]), torch.zeros(1, dtype=torch.int64), 1000
    assert 1 - relabel_target(scores, classes, *rest)[0, 0].item() == pytest.approx(leaked, rel=0.02)
    assert 1 - relabel_target(scores, classes, *rest, fill=logit - 20)[0, 0].item() < 1e-5
    assert 1 - relabel_target(scores, classes, *rest, temperature=logit / 20)[0, 0].item() < 1e-5


def test_a_flip_does_not_move_the_target() -> None:
    scores, classes, boxes, labels = random_batch()
    boxes[:, 2] = (boxes[:, 0] * 0.5 + 0.4).clamp(max=1)  # wider than a cell: only narrower boxes grow, to the right
    boxes[:, 0] *= 0.5
    mirrored = torch.stack([1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]], dim=1)
    found = relabel_target(scores.flip(3), classes.flip(3), mirrored, labels, K)
    torch.testing.assert_close(found, relabel_target(scores, classes, boxes, labels, K), rtol=0, atol=1e-5)


def test_original_target_by_eye() -> None:
    target = original_target(torch.tensor([2, 0]), 4)
    assert target.dtype == torch.float32 and target.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]


def test_smoothing_of_the_2021_code() -> None:
    mixing = json.loads((GOLDEN / "cutmix_2021.json").read_text(encoding="utf-8"))["mixing"]
    found = smooth(torch.tensor(mixing["target_a"]), mixing["smoothing"])
    torch.testing.assert_close(found, torch.tensor(mixing["smoothed_a"]), rtol=0, atol=1e-7)


def test_smoothing_by_eye() -> None:
    assert smooth(torch.tensor([[0.0, 1, 0, 0]]), 0.2).tolist() == [pytest.approx([0.05, 0.85, 0.05, 0.05])]
    target = relabel_target(*random_batch(), K)
    assert torch.equal(smooth(target, 0.0), target)
    torch.testing.assert_close(smooth(target, 0.1).sum(dim=1), torch.ones(30), rtol=0, atol=1e-6)


@pytest.mark.parametrize("supervision", SUPERVISIONS)
def test_needs_no_value_on_the_host(supervision: str) -> None:
    """Tensors without data: any step that had to wait for a device's numbers would fail here."""
    batch = [tensor.to("meta") for tensor in random_batch()]
    for box_axes in ("xy", "yx"):
        target = relabel_target(
            batch[0], batch[1], batch[2], batch[3], K,
            fill=-1.0, temperature=2.0, supervision=supervision, ground_truth_weight=0.1, box_axes=box_axes,
        )  # fmt: skip
        assert smooth(target, 0.1).shape == (30, K)


@pytest.mark.parametrize("wrong", [{"supervision": "local_multi"}, {"box_axes": "rc"}])
def test_an_unknown_variant_is_a_bug(wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        relabel_target(*random_batch(), K, **wrong)
