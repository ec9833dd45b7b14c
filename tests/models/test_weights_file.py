"""Weights files of any trainer: found, stripped of prefixes, and never executed."""

import argparse
import pathlib
import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch

from models.build import create_model, tensor_shapes
from models.classifier import open_weights
from models.data_config import IMAGENET_MEAN, OF_2021, DataConfig, resolve
from models.digit_net import DigitNet
from models.recorded import DATA_CONFIG, KEYS_OF_2021, recorded_data_config
from models.recorded_classes import recorded_classes
from models.weights_file import find_weights, own_tensors, read_weights_file
from tests.traps import Trap
from utils.checkpoint import DamagedCheckpoint
from utils.errors import UserError

torch.manual_seed(0)
WEIGHTS = DigitNet(3).state_dict()
OTHER = {name: tensor + 1 for name, tensor in WEIGHTS.items()}
TIMM_ARGS = argparse.Namespace(
    model="resnet10t", mean=[0.5] * 3, std=None, interpolation="", crop_pct=0.95, img_size=64
)
LAYER = torch.nn.Sequential(torch.nn.Linear(2, 3))
RANDOM_STATE = np.random.RandomState(0).get_state()
RANDOM_DICT = np.random.RandomState(0).get_state(legacy=False)

TIMMS_DICT = {"input_size": (3, 96, 96), "crop_pct": 0.9, "crop_mode": "squash", "interpolation": "bicubic"}
TIMMS_DICT |= {"mean": (0.5,) * 3, "std": (0.4,) * 3}
TEXT = "meta.cfg, a text with mean, to_rgb"
SIZE_96 = {"size": (96, 96), "train_size": 96}


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


# Form -> (content, note, arch)
FORMS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "bare": (WEIGHTS, "", None),
    "timm": ({"epoch": 1, "arch": "resnet10t", "state_dict": WEIGHTS, "args": TIMM_ARGS}, "", "resnet10t"),
    "timm, named in args": ({"state_dict": WEIGHTS, "args": TIMM_ARGS, "metric": np.float64(5)}, "", "resnet10t"),
    "torchvision": ({"model": WEIGHTS, "epoch": 1, "args": argparse.Namespace(lr=0.1)}, "the key 'model'", None),
    "Lightning": (
        {"state_dict": prefixed("model."), "hyper_parameters": {"root": pathlib.PosixPath("/x")}},
        "without the prefix 'model.'",
        None,
    ),
    "Lightning with a metric": (
        {"state_dict": prefixed("model.") | {"loss.weight": torch.ones(3)}},
        "without the prefix 'model.' and 1 tensor that lacks it (loss.weight)",
        None,
    ),
    "normaliser": (
        {"state_dict": prefixed("1.") | {"0.mean": torch.tensor([0.5, 0.4, 0.3])}, "arch": "digit_net"},
        "without the prefix '1.' and 1 tensor that lacks it (0.mean), not using 0.mean 0.5 0.4 0.3",
        "digit_net",
    ),
    "normaliser without a prefix": (
        {"state_dict": WEIGHTS | {"normalize.mean": torch.full((1, 3, 1, 1), 0.5), "std": torch.tensor(2.0)}}
        | {"arch": "digit_net"},
        "not using normalize.mean 0.5 0.5 0.5, std 2",
        "digit_net",
    ),
    "a network among the settings": (
        {"state_dict": WEIGHTS, "config": {"model": {"name": "digit_net"}, "teacher": {"model": "resnet18"}}},
        "",
        "digit_net",
    ),
    "callbacks": (
        {"state_dict": WEIGHTS, "callbacks": {"EMA": {"weights": OTHER}}, "optimizer": {"exp_avg": OTHER}},
        "the key 'state_dict', not 'callbacks.EMA.weights' with other weights",
        None,
    ),
    "compiled": (prefixed("_orig_mod."), "without the prefix '_orig_mod.'", None),
    "compiled, DDP": ({"state_dict": prefixed("module._orig_mod.")}, "without the prefix 'module._orig_mod.'", None),
    "tutorial": ({"model_state_dict": WEIGHTS, "loss": 0.4}, "the key 'model_state_dict'", None),
    "net": ({"net": WEIGHTS, "acc": 93.0}, "the key 'net'", None),
    "averaged only": ({"model_ema": WEIGHTS}, "the key 'model_ema'", None),
    "AveragedModel": (
        prefixed("module.") | {"n_averaged": torch.tensor(3)},
        "without the prefix 'module.'",
        None,
    ),
    "random states": (
        {
            "state_dict": WEIGHTS,
            "numpy": RANDOM_STATE,
            "array": np.zeros(3),
            "counts": defaultdict(int, a=1),
            "drawn": RANDOM_DICT,
        },
        "",
        None,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_other_trainers_open(tmp_path: Path, form: str) -> None:
    content, note, arch = FORMS[form]
    torch.save(content, tmp_path / "w.pth")
    file = read_weights_file(tmp_path / "w.pth")
    assert (list(file.state_dicts), file.note, file.arch) == (["model"], note, arch)
    DigitNet(3).load_state_dict(file.state_dicts["model"])
    given = {"mean": [0.5] * 3, "crop_ratio": 0.95, "crop_pct": 0.95, "size": (64, 64), "train_size": 64}
    assert file.recorded == (given if form.startswith("timm") else {})


def test_safetensors_and_averaged_weights_beside_others(tmp_path: Path) -> None:
    safetensors.torch.save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert read_weights_file(tmp_path / "w.safetensors").state_dicts["model"].keys() == WEIGHTS.keys()
    pairs = [("state_dict", "state_dict_ema"), ("model", "model_ema"), ("state_dict", "ema_model")]
    contents = [{model: WEIGHTS, averaged: OTHER} for model, averaged in pairs]
    contents += [{"state_dict": WEIGHTS, "ema": {"decay": 0.9, "shadow": OTHER}}]
    contents += [{"state_dict": WEIGHTS, "model_ema": {"module": OTHER, "updates": 3}}]
    for content in contents:
        torch.save(content, tmp_path / "w.pth")
        file = read_weights_file(tmp_path / "w.pth")
        assert torch.equal(file.state_dicts["ema"]["fc.bias"], OTHER["fc.bias"])
        assert torch.equal(file.state_dicts["model"]["fc.bias"], WEIGHTS["fc.bias"])


PICKLED: dict[str, tuple[Any, str]] = {
    "network": (LAYER, "container.Sequential"),
    "network in a dict": ({"model": LAYER, "classes": list("abc")}, "container.Sequential"),
    "generator in a dict": (
        {"state_dict": LAYER.state_dict(), "rng": np.random.default_rng(0), "classes": list("abc")},
        "generator",
    ),
}


@pytest.mark.parametrize("form", PICKLED)
def test_a_pickled_object_is_refused_with_lines_that_convert_the_file(tmp_path: Path, form: str) -> None:
    content, named = PICKLED[form]
    torch.save(content, tmp_path / "whole 'one'.pth")
    with pytest.raises(DamagedCheckpoint, match=f"refers to .*{named}") as caught:
        read_weights_file(tmp_path / "whole 'one'.pth")
    exec("\n".join(re.findall(r"^    (.+)$", str(caught.value), flags=re.MULTILINE)), {})  # noqa: S102
    found = read_weights_file(tmp_path / "whole 'one'-weights.pth")
    assert torch.equal(found.state_dicts["model"]["0.weight"], LAYER.state_dict()["0.weight"])
    assert found.classes.names == (None if form == "network" else list("abc"))


@pytest.mark.parametrize("inner", ["trap", "generator", "random state"])
def test_what_could_execute_something_is_refused_wherever_it_lies(tmp_path: Path, inner: str) -> None:
    values = {
        "trap": Trap(tmp_path / "mark"),
        "generator": np.random.default_rng(0),
        "random state": np.random.RandomState(0),
    }
    for content in (
        {"state_dict": WEIGHTS, "args": argparse.Namespace(value=values[inner])},
        {"state_dict": WEIGHTS, "counts": defaultdict(list, a=[values[inner]])},
        {"state_dict": WEIGHTS, "array": np.array([values[inner]], dtype=object)},
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(DamagedCheckpoint, match="nothing in it was run"):
            read_weights_file(tmp_path / "w.pth")
    assert not (tmp_path / "mark").exists()


QUANTIZED = torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.qint8)
NO_WEIGHTS: list[Any] = [5, torch.ones(2), {"w": 3}, {1: torch.ones(2)}, [torch.ones(1)]]
NO_WEIGHTS += [{"w": tensor} for tensor in (torch.ones(2, 3).to_sparse(), torch.ones(2).to("meta"), QUANTIZED)]


@pytest.mark.parametrize("content", [{"optimizer": {}}, {"state_dict": {}}, {"weights": WEIGHTS}, *NO_WEIGHTS])
def test_a_file_without_plain_weights_is_refused(content: Any) -> None:
    expected = "contains no weights: expected a dict of plain tensors, or one with the key 'state_dict', 'model', "
    for wrapped in (content, {"state_dict": WEIGHTS, "state_dict_ema": content}):
        with pytest.raises(UserError, match=expected):
            find_weights(wrapped, Path("w.pth"))


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ({"class_to_idx": {"10": 2, "1": 0, "2": 1}}, ["1", "2", "10"]),
        ({"idx_to_class": {2: "10", 0: "1", 1: "2"}}, ["1", "2", "10"]),
        ({"class_names": {1: "bee", 0: "ant"}}, ["ant", "bee"]),
        ({"classes": 2, "class_names": ("ant", "bee")}, ["ant", "bee"]),
        ({"hyper_parameters": {"class_names": ["ant", "bee"]}}, ["ant", "bee"]),
        ({"id2label": {"10": "k", **{str(i): "abcdefghij"[i] for i in range(10)}}}, list("abcdefghijk")),
        ({"label2id": {"bee": "1", "ant": "0"}}, ["ant", "bee"]),
        ({"names": {0: "ant", 1: "bee"}}, ["ant", "bee"]),
        ({"config": {"label_names": np.array(["ant", "bee"])}}, ["ant", "bee"]),
        ({"args": argparse.Namespace(class_map=["ant", "bee"])}, ["ant", "bee"]),
        ({"labels": ["ant", "bee"]}, ["ant", "bee"]),
        ({"meta": {"CLASSES": ("ant", "bee"), "dataset_meta": {"names": 2}}}, ["ant", "bee"]),
        ({"dataset_meta": {"classes": ("ant", "bee")}}, ["ant", "bee"]),
        ({"hparams": {"data": argparse.Namespace(class_to_id={"ant": 0, "bee": 1})}}, ["ant", "bee"]),
        *(({"classes": value}, None) for value in (5, "ant", ["ant", 3], torch.ones(2))),
    ],
)
def test_class_names_are_found_and_what_is_no_list_of_them_is_said(
    entries: dict[str, Any], expected: list[str] | None
) -> None:
    found = recorded_classes(entries, Path("w.pth"))
    assert found.names == expected and found.source.startswith("named in w.pth") == bool(expected)
    assert found.note == ("" if expected else "not using 'classes': no list of class names")


def test_what_may_be_class_names_under_another_key_is_said() -> None:
    entries = {"fine_labels": ["ant", "bee"], "class_weights": [0.5, 0.5]}
    assert "'fine_labels'" in (note := recorded_classes(entries, Path("w.pth")).note) and "weights" not in note
    assert not recorded_classes(entries | {"names": ["bee", "ant"]}, Path("w.pth")).note


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"vocab": list("abc")}, "not using 'vocab'"),
        ({"hparams": {"mapping": {"a": 0, "b": 1, "c": 2}}, "files": ["a", "b"]}, "not using 'mapping'"),
        ({"classes": ["a", "b"]}, "2 names, for 3 classes"),
        ({"class_to_idx": {"a": 1, "b": 2, "c": 3}}, "ids [1, 2, 3], expected 0 to 2"),
    ],
)
def test_names_that_are_not_used_are_said_and_why(entries: dict[str, Any], said: str, tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "arch": "digit_net", **entries}, tmp_path / "w.pth")
    weights = open_weights(None, str(tmp_path / "w.pth"))
    assert weights.class_names is None and said in str(weights) and said in weights.unnamed
    assert "files" not in str(weights)
    named = entries | {"class_names": list("abc")}
    torch.save({"state_dict": WEIGHTS, "arch": "digit_net", **named}, tmp_path / "w.pth")
    assert open_weights(None, str(tmp_path / "w.pth")).class_names == list("abc")


def test_a_class_map_of_timm_is_read_where_it_lies_and_said_where_it_does_not(tmp_path: Path) -> None:
    entries = {"args": argparse.Namespace(class_map="/elsewhere/map.txt", data_dir="/data")}
    missing = recorded_classes(entries, tmp_path / "w.pth")
    assert missing.names is None and "copy it to the folder of w.pth" in missing.note
    (tmp_path / "map.txt").write_text("bee\nant\n")
    found = recorded_classes(entries, tmp_path / "w.pth")
    assert found.names == ["bee", "ant"] and str(tmp_path / "map.txt") in found.source


def test_entries_that_disagree_are_said() -> None:
    both = {"classes": ["ant", "bee"], "class_to_idx": {"ant": 1, "bee": 0}, "names": ["ant", "bee"]}
    found = recorded_classes(both, Path("w.pth"))
    assert found.names == ["ant", "bee"] and "'class_to_idx'" in found.note and "'names'" not in found.note
    torch_file = {"state_dict": WEIGHTS, "model": OTHER, "net": WEIGHTS}
    notes = find_weights(torch_file, Path("w.pth"))[1]
    assert len(notes) == 1 and "'state_dict', not 'model'" in notes[0]


TWO_NETWORKS: dict[str, dict[str, Any]] = {
    "Lightning": {"state_dict": prefixed("student.") | prefixed("teacher."), "class_names": list("abc")},
    "bare": prefixed("student.") | prefixed("teacher."),
    "nested": {"model": {"student": WEIGHTS, "teacher": WEIGHTS}, "class_names": list("abc")},
    "DINO": {"student": prefixed("module."), "teacher": prefixed("module."), "class_names": list("abc")},
}


@pytest.mark.parametrize("form", TWO_NETWORKS)
def test_two_networks_are_refused_with_lines_that_write_one(tmp_path: Path, form: str) -> None:
    content = TWO_NETWORKS[form]
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(UserError) as caught:
        read_weights_file(tmp_path / "w.pth", "digit_net")
    lines = re.findall(r"^    (.+)$", str(caught.value), flags=re.MULTILINE)
    exec("\n".join(lines), {})  # noqa: S102 (what the user would type)
    file = read_weights_file(tmp_path / "w-one.pth", "digit_net")
    DigitNet(3).load_state_dict(file.state_dicts["model"])
    assert file.classes.names == content.get("class_names")


def test_averaged_weights_inside_a_state_dict_are_the_averaged_ones(tmp_path: Path) -> None:
    averaged = {f"ema_model.module.{name}": tensor for name, tensor in OTHER.items()}
    torch.save(
        {"state_dict": prefixed("model.") | averaged | {"ema_model.n_averaged": torch.tensor(3)}}, tmp_path / "w"
    )
    file = read_weights_file(tmp_path / "w", "digit_net")
    assert torch.equal(file.state_dicts["model"]["fc.bias"], WEIGHTS["fc.bias"])
    assert torch.equal(file.state_dicts["ema"]["fc.bias"], OTHER["fc.bias"]) and "'ema_model.module.'" in file.note


def test_an_eps_of_timms_training_counts_where_timm_builds_the_network_with_it(tmp_path: Path) -> None:
    for arch, recorded in (("test_resnet", {}), ("test_efficientnet", {"bn_eps": 1e-3})):
        args = argparse.Namespace(model=arch, crop_pct=None, bn_tf=True)
        torch.save({"state_dict": create_model(f"timm/{arch}", 2).state_dict(), "args": args}, tmp_path / "w.pth")
        file = read_weights_file(tmp_path / "w.pth")
        assert file.recorded == recorded and ("batch norm eps" in file.note) == (not recorded)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ({"mean": [0.5], "std": [0.2]}, {"mean": [0.5] * 3, "std": [0.2] * 3}),
        ({"img_size": 96, "input_size": [3, 64, 80]}, {"size": (64, 80), "train_size": 64}),
        ({"mean": torch.full((3, 1, 1), 0.5), "std": np.full(3, 0.25)}, {"mean": [0.5] * 3, "std": [0.25] * 3}),
        ({"image_size": 96, "crop_pct": 1.1}, {"size": (96, 96), "train_size": 96}),
        ({"input_size": 96, "image_mean": [0.5] * 3}, {"size": (96, 96), "train_size": 96, "mean": [0.5] * 3}),
        ({"val_resize_size": 96, "val_crop_size": 128, "train_crop_size": 64}, {"size": (128, 128), "train_size": 64}),
        ({"image_size": (96, 96, 3)}, SIZE_96),
        ({"bn_tf": True}, {"bn_eps": 1e-3}),
        ({"img_size": np.int64(96), "crop_pct": np.float32(0.9)}, {**SIZE_96, "crop_ratio": 0.9, "crop_pct": 0.9}),
        (
            {"img_size": torch.tensor(96), "crop_pct": torch.tensor(0.9)},
            {**SIZE_96, "crop_ratio": 0.9, "crop_pct": 0.9},
        ),
        ({"input_size": np.array([3, 96, 96]), "mean": list(torch.full((3,), 0.4))}, {**SIZE_96, "mean": [0.4] * 3}),
        ({"img_size": "96", "crop_pct": "0.9", "input_size": [], "mean": 0.5}, {}),
        ({"val_crop_size": "96", "val_resize_size": None, "interpolation": None}, {}),
        ({"bn_tf": True, "bn_eps": 1e-4, "interpolation": "hamming"}, {"bn_eps": 1e-4, "interpolation": "hamming"}),
        (
            {"val_resize_size": 232, "val_crop_size": 128, "train_crop_size": 96, "interpolation": "bicubic"},
            {"size": (128, 128), "train_size": 96, "crop_ratio": 128 / 232, "interpolation": "bicubic"},
        ),
    ],
)
def test_settings_of_other_trainers_are_read(args: dict[str, Any], expected: dict[str, Any]) -> None:
    for entries in ({"args": argparse.Namespace(**args)}, {"args": args}, {"hyper_parameters": args}):
        found = recorded_data_config(entries, Path("w.pth"))[0]
        assert {name: value for name, value in found.items() if name != "squash"} == expected


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"args": TIMM_ARGS}, ""),
        ({"args": {"batch_size": 8, "in_chans": 3, "opt_eps": 1e-8, "train_interpolation": "random"}}, ""),
        ({"args": {"input_img_mode": "L", "in_chans": 1, "gp": None}}, "input_img_mode 'L', in_chans 1"),
        ({"hyper_parameters": {"image_size": 64, "crop_pct": 1.1, "resize": 72}}, "crop_pct 1.1, resize 72"),
        ({"args": {"val_resize_size": 96, "val_crop_size": 128}}, "val_resize_size 96"),
        ({"args": {"img_size": 96, "input_size": [3, 64, 64]}}, "img_size 96"),
        ({"args": {"img_size": 96, "std": None}, "hparams": {"img_size": 128, "std": [1] * 3}}, "hparams.img_size 128"),
        ({"mean": [0.5] * 3, "args": argparse.Namespace(mean=(0.5, 0.5, 0.6))}, "args.mean [0.5, 0.5, 0.6]"),
        (
            {"model_cfg": {"global_pool": "max"}, "image_processor": {"do": {"image_mean": np.ones(3)}}},
            "model_cfg.global_pool 'max', image_processor.do.image_mean [1.0, 1.0, 1.0]",
        ),
        (
            {"config": {"batch_norm_eps": 1e-3, "imgsz": 96, "scale": [-1, 1]}},
            "batch_norm_eps 0.001, imgsz 96, scale [-1, 1]",
        ),
        ({"scaler": {"scale": 65536.0}, "args": {"crop_pct": None, "scale": [0.1, 1.0], "color_jitter": 0.4}}, ""),
        ({"optimizer": {"size": 3}, "teacher": {f"pool{i}": torch.ones(3) for i in range(9)} | {"pool": 3}}, ""),
        ({"data_config": {"mean": [0.5] * 3}}, "data_config.mean [0.5, 0.5, 0.5]"),
        ({"data_config": "data/size.yaml"}, ""),
        (
            {"hparams": {"model_kwargs": {"act_layer": "gelu", "num_classes": 3, "class_token": False}}},
            "model_kwargs.act_layer 'gelu', model_kwargs.class_token False",
        ),
        ({"mean": [0.4] * 3, "pretrained_cfg": TIMMS_DICT}, "pretrained_cfg.mean (0.5, 0.5, 0.5)"),
        (
            {"pretrained_cfg": {"input_size": "large", "mean": [0.5] * 3}},
            "pretrained_cfg.input_size 'large', pretrained_cfg.mean [0.5, 0.5, 0.5]",
        ),
        (
            {"hyper_parameters": {"data": {"normalize": "x"}, "loss": {1: 2.0}}, "bgr": True},
            "bgr True, data.normalize 'x'",
        ),
        ({"datamodule_hyper_parameters": {"mean": [0.5] * 4}}, "mean [0.5, 0.5, 0.5, 0.5]"),
        ({"RGB": False, "cfg": {"pre": {"to_rgb": False}, "amp": False}}, "RGB False, pre.to_rgb False"),
        (
            {"args": {"imagenet_default_mean_and_std": False, "lr_noise_std": 1.0}},
            "imagenet_default_mean_and_std False",
        ),
        (
            {"config": {"dataset": {"imageSize": 96, "name": "x"}, "train": {"img_size": 64, "batch_size": 8}}},
            "dataset.imageSize 96, train.img_size 64",
        ),
        ({"transform": "Compose(\n Resize(9)\n)"}, "transform 'Compose(\\n Resize(9)\\n)'"),
        ({"val": [{"type": "Resize"}, {"type": "Normalize", "mean": [1, 2, 3]}]}, "val.1.mean [1, 2, 3]"),
        ({"meta": {"cfg": "data = dict(\n  mean=[1, 2, 3],\n  to_rgb=False)\n", "log": "lr: 1\n"}}, TEXT),
        ({"config": {"model": {"act_layer": "gelu", "name": "mine", "num_classes": 3}}}, "model.act_layer 'gelu'"),
    ],
)
def test_what_is_recorded_of_the_input_and_not_used_is_said(
    entries: dict[str, Any], named: str, tmp_path: Path
) -> None:
    torch.save({"state_dict": WEIGHTS, **entries}, tmp_path / "w.pth")
    assert read_weights_file(tmp_path / "w.pth").note == (f"not using {named}" if named else "")


@pytest.mark.parametrize("key", ["pretrained_cfg", "default_cfg", "data_config"])
def test_a_dict_of_timm_is_read(key: str, tmp_path: Path) -> None:
    for place in ({}, {"crop_pct": 0.5, "input_size": 64}):
        torch.save({"state_dict": WEIGHTS, key: TIMMS_DICT, **place}, tmp_path / "w.pth")
        config = resolve([("", read_weights_file(tmp_path / "w.pth").recorded)], "--flags")
        assert (config.size, config.crop_ratio) == (((64, 64), 0.5) if place else ((96, 96), 96 / 106))
        assert (config.squash, config.mean, config.interpolation) == (not place, (0.5,) * 3, "bicubic")


def test_what_a_file_with_the_keys_of_2021_records_counts(tmp_path: Path) -> None:
    content = dict.fromkeys(KEYS_OF_2021, 1) | {
        "arch": "resnet18",
        "state_dict": create_model("resnet18", 3).state_dict(),
    }
    torch.save(content | {"std": np.full(3, 0.5), "args": argparse.Namespace(img_size=96)}, tmp_path / "w.pth")
    config = open_weights(None, str(tmp_path / "w.pth")).data_config({}, "--flags")
    assert (config.size, config.std, config.bn_eps, config.mean) == ((96, 96), (0.5,) * 3, 1e-5, IMAGENET_MEAN)
    assert "std 0.5 0.5 0.5 (recorded in w.pth)" in config.source and "as in 2021" in config.source


def test_config_json_fills_in_what_the_metadata_of_safetensors_lack(tmp_path: Path) -> None:
    network = create_model("timm/test_resnet", 3)
    stated = {"mean": (0.5,) * 3, "std": (0.4,) * 3, "crop_pct": 0.5}
    more = {"pretrained_cfg": stated, "label_names": ["a", "b", "c"]}
    timm.models.save_for_hf(network, str(tmp_path), more, safe_serialization=True)
    file = tmp_path / "model.safetensors"
    for metadata, mean, std, names, said in (
        ({"names": '["c", "b", "a"]', "mean": "[0.3, 0.3, 0.3]"}, 0.3, 0.4, "cba", "except for class names and mean"),
        ({"step": "3", "mean": "[0.5, 0.5, 0.5]"}, 0.5, 0.4, "abc", "with config.json"),
        ({"arch": "resnet18", "names": '["c", "b", "a"]'}, IMAGENET_MEAN[0], None, "cba", "not using config.json"),
    ):
        of = create_model("resnet18", 3) if "arch" in metadata else network
        safetensors.torch.save_file(of.state_dict(), file, metadata)
        weights = open_weights(None, str(file))
        config = weights.data_config({}, "--flags")
        assert config.mean[0] == mean and std in (None, config.std[0]) and said in weights.note, weights.note
        assert weights.class_names == list(names)


def test_configs_of_other_libraries_beside_the_file_count(tmp_path: Path) -> None:
    safetensors.torch.save_file(create_model("timm/test_resnet", 3).state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "config.json").write_text('{"model_name": "timm/test_resnet", "image_size": 64, "resize": 72}')
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.5, 0.4]}')
    weights = open_weights(None, str(tmp_path / "w.safetensors"))
    config = weights.data_config({}, "--flags")
    assert (config.side, config.mean, weights.arch) == (64, (0.5, 0.5, 0.4), "timm/test_resnet")
    assert "(from preprocessor_config.json beside w.safetensors)" in config.source
    assert weights.note == "not using resize 72 of config.json"


def test_the_metadata_of_safetensors_are_read(tmp_path: Path) -> None:
    metadata = {
        "format": "pt",
        "arch": "digit_net",
        "mean": "[0.5, 0.4, 0.3]",
        "classes": '["a", "b", "c"]',
        "bgr": "1",
    }
    safetensors.torch.save_file(WEIGHTS, tmp_path / "w.safetensors", metadata)
    file = read_weights_file(tmp_path / "w.safetensors")
    assert (file.arch, file.recorded, file.classes.names) == ("digit_net", {"mean": [0.5, 0.4, 0.3]}, ["a", "b", "c"])
    assert file.note == "not using bgr 1"


@pytest.mark.parametrize(
    ("tensors_of", "more", "arch", "reason"),
    [
        ("timm/resnet18", {"args": TIMM_ARGS}, "timm/resnet18", "timm's train.py wrote the file"),
        ("resnet18", {}, "resnet18", ""),
        ("timm/efficientnet_b0", {}, "timm/efficientnet_b0", "the tensors are of that one"),
        ("efficientnet_b0", {"args": TIMM_ARGS}, "efficientnet_b0", ""),
    ],
)
def test_a_name_that_two_libraries_have_is_that_of_the_one_whose_tensors_fit(
    tmp_path: Path, tensors_of: str, more: dict[str, Any], arch: str, reason: str
) -> None:
    name, weights = tensors_of.removeprefix("timm/"), create_model(tensors_of, 2).state_dict()
    torch.save({"arch": name, "state_dict": weights, **more}, tmp_path / "w.pth")
    file = read_weights_file(tmp_path / "w.pth")
    assert (file.arch, file.note) == (arch, f"{name} means {arch}: {reason}" if reason else "")
    torch.save(weights, tmp_path / "bare.pth")
    fits = read_weights_file(tmp_path / "bare.pth", name).arch  # of which the error tells that it fits
    assert fits == (arch if tensors_of == "timm/efficientnet_b0" else None)


def test_a_network_of_timms_hub_is_timms(tmp_path: Path) -> None:
    weights = create_model("timm/test_resnet", 2).state_dict()
    torch.save(
        {"args": argparse.Namespace(model="hf-hub:timm/test_resnet.r160_in1k"), "model": weights}, tmp_path / "w"
    )
    assert open_weights(None, str(tmp_path / "w")).arch == "timm/test_resnet.r160_in1k"


@pytest.mark.parametrize(("prefix", "note"), [("", ""), ("module.model.", "without the prefix 'module.model.'")])
def test_a_prefix_that_the_networks_own_names_have_stays(prefix: str, note: str) -> None:
    own = tensor_shapes("timm/volo_d1_224")  # 'network.' begins most of its names
    weights = {prefix + name: torch.zeros(1) for name in own}
    kept, found = own_tensors(weights, own)
    assert kept.keys() == own.keys() and found == note


RECORD = DataConfig(**OF_2021 | {"size": (64, 80), "crop_ratio": None, "mean": (0.5, 0.5, 0.5)}).as_record()


def test_what_is_recorded_is_read_back(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, DATA_CONFIG: RECORD}, tmp_path / "w.pth")
    assert DataConfig(**read_weights_file(tmp_path / "w.pth").recorded).as_record() == RECORD
    earlier = {name: value for name, value in RECORD.items() if name not in ("model_args", "squash")}
    torch.save({"state_dict": WEIGHTS, DATA_CONFIG: earlier}, tmp_path / "w.pth")
    assert read_weights_file(tmp_path / "w.pth").recorded == RECORD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", [64]),
        ("size", 64),
        ("std", [1, 0, 1]),
        ("interpolation", "nearest"),
        ("crop_ratio", 1.5),
        ("mean", "x"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path: Path, name: str, value: object) -> None:
    torch.save({"state_dict": WEIGHTS, DATA_CONFIG: RECORD | {name: value}}, tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"w.pth: data_config lacks {name}. Give an unchanged checkpoint"):
        read_weights_file(tmp_path / "w.pth")


def test_averaged_weights_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    torch.save({"state_dict": WEIGHTS, "model_ema": {"updates": 3}}, tmp_path / "w.pth")
    file = read_weights_file(tmp_path / "w.pth")
    assert [*file.state_dicts] == ["model"] and "not using 'model_ema'" in file.note
