"""What a network expects of its input: the first place that states a value counts."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from models.build import create_model
from models.classifier import Weights, open_weights
from models.data_config import OF_2021, resolve
from relabel.training.network import INPUT_FLAGS
from utils.errors import UserError

FLAGS = "--flags"


def a_file(folder: Path, of: str, **more: Any) -> Weights:
    """Random weights in a file, bare or with entries."""
    weights = create_model(of, 1000).state_dict()
    torch.save({"state_dict": weights, **more} if more else weights, folder / "w.pth")
    return open_weights(of, str(folder / "w.pth"))


def eps(weights: Weights, **given: Any) -> float:
    model = weights.build("model", weights.data_config(given, FLAGS), "--arch", "--size")
    return {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)}.pop()


def test_batch_norm_keeps_the_networks_eps_unless_it_is_given(tmp_path: Path) -> None:
    weights = a_file(tmp_path, "mobilenet_v3_small")
    assert (eps(weights), eps(weights, bn_eps=1e-5)) == (1e-3, 1e-5)
    assert "eps 1e-05 instead of batch norm eps 0.001" in weights.data_config({"bn_eps": 1e-5}, FLAGS).source
    of_2021 = a_file(tmp_path, "mobilenet_v3_small", epoch=1, arch="mobilenet_v3_small", accuracy=0.0, optimizer={})
    assert eps(of_2021) == 1e-5
    assert "batch norm eps 1e-05 (as in 2021, whose keys w.pth has)" in of_2021.data_config({}, FLAGS).source


def test_a_bare_file_of_torchvision_gets_the_values_of_2021_and_one_of_timm_what_timm_states(tmp_path: Path) -> None:
    bare = a_file(tmp_path, "mobilenet_v3_small").data_config({}, FLAGS)
    assert {name: getattr(bare, name) for name in OF_2021} == OF_2021
    assert "as in 2021; --flags change it" in bare.source
    stated = a_file(tmp_path, "timm/vit_tiny_patch16_224").data_config({}, FLAGS)
    assert (stated.mean, stated.std, stated.interpolation) == ((0.5,) * 3, (0.5,) * 3, "bicubic")
    assert stated.crop_ratio == pytest.approx(0.9, abs=0.004) and stated.source.endswith("timm/vit_tiny_patch16_224)")


def test_of_timm_it_is_the_size_of_its_validation(tmp_path: Path) -> None:
    found = a_file(tmp_path, "timm/resnet10t").data_config({}, FLAGS)
    assert (found.train_size, found.size, found.crop_ratio) == (176, (224, 224), pytest.approx(0.95, abs=0.004))


def test_what_is_given_replaces_what_is_recorded_which_replaces_what_is_stated() -> None:
    found = resolve(
        [
            ("given", {"size": (96, 96)}),
            ("recorded", {"size": (64, 64), "crop_ratio": None}),
            ("stated", {"std": [1] * 3}),
        ],
        FLAGS,
    )
    assert (found.size, found.crop_ratio, found.std, found.mean) == ((96, 96), None, (1, 1, 1), OF_2021["mean"])
    assert "96 x 96 pixels instead of 64 x 64 pixels (given)" in found.source


def test_mean_and_std_for_pixels_up_to_255_are_converted_and_that_is_said() -> None:
    caffe = {"mean": [123.675, 116.28, 103.53], "std": [1, 1, 1]}
    found = resolve([("given", {}), ("recorded", caffe)], FLAGS)
    assert found.mean == pytest.approx(OF_2021["mean"]) and found.std == pytest.approx([1 / 255] * 3)
    assert "(divided by 255)" in found.source


@pytest.mark.parametrize(
    ("field", "value", "found"), [("size", (64, 80), "64 x 80"), ("interpolation", "box", "'box'")]
)
def test_input_that_is_not_supported_is_refused_and_can_be_replaced(field: str, value: Any, found: str) -> None:
    with pytest.raises(UserError, match=f"found images .*{found}.*expected (.|\n)*--data.(interpolation|test_size)$"):
        resolve([("given", {}), ("recorded", {field: value})], f"--data.image_size, {INPUT_FLAGS}")
    assert resolve([("given", {field: OF_2021[field]}), ("recorded", {field: value})], FLAGS)


@pytest.mark.parametrize(("recorded", "squash"), [({}, True), ({"squash": False}, False)])
def test_a_recorded_crop_pct_is_cropped_as_timm_crops_at_its_size(recorded: dict[str, Any], squash: bool) -> None:
    stated = {"size": (224, 224), "crop_ratio": 0.99, "crop_pct": 0.99, "squash": True}
    found = resolve([("file", {"crop_ratio": 0.9, "crop_pct": 0.9, **recorded}), ("timm", stated)], "--flags")
    assert math.ceil(224 / found.crop_ratio) == 248 and found.squash == squash  # type: ignore[operator]
