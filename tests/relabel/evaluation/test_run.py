"""`--util.test_only True`: checkpoints old and new, and every published set by hand."""

import csv
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.digit_net import DigitNet
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.folders import list_images
from relabel.evaluation.imagenet_sets import ALEXNET_ERRORS
from tests.conftest import Flags
from tests.forked_runs import fork_run
from tests.miniatures import colour_network, save_images, val_name, wnids
from tests.relabel.data.test_images import refuse_scans
from utils.errors import UserError


@pytest.fixture
def test_flags(flags: Flags, photos: Path, tmp_path: Path) -> Flags:
    """An evaluation that has val/ and nothing else."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "val").symlink_to(photos / "val")
    keep = ("model.arch", "data.image_size", "compute.num_workers", "compute.opt_level", "util.val_batch_size")
    return {key: flags[key] for key in keep} | {
        "data.data_path": tmp_path / "data",
        "util.test_only": True,
        "util.test_weight_file": tmp_path / "w.pth",
        "util.run_dir": tmp_path / "run",
    }


def start(flags: Flags) -> None:
    """What main.py does, in this process."""
    run(load_config("", {key: str(value) for key, value in flags.items()}))


def values(flags: Flags, weights: str = "model") -> dict[tuple[str, str], tuple[float, int]]:
    """(set, metric) -> value, n; as the JSON file has them."""
    name = f"evaluation-{flags['util.test_weight_file'].stem}.json"
    results = json.loads((flags["util.run_dir"] / name).read_text())["results"]
    return {(r["set"], r["metric"]): (r["value"], r["n"]) for r in results if r["weights"] == weights}


def network() -> DigitNet:
    """Random weights for three classes."""
    torch.manual_seed(0)
    return DigitNet(3).eval()


def expected_top1(photos: Path) -> float:
    """Top-1 of the network in percent, one image at a time."""
    images = list_images(photos / "val")
    dataset = ImageDataset(images, CenterCrop(16, 0.875))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    correct = 0
    for index in range(len(images)):
        pixels = dataset[(0, index)].image.transpose(1, 2, 0) / 255
        image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.inference_mode():
            correct += int(network()(image).argmax()) == images.labels[index]
    return 100 * correct / len(images)


def old_checkpoints() -> dict[str, Any]:
    """Weights in the forms of 2021."""
    state_dict = network().state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in state_dict.items()}
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in state_dict.items()}
    return {
        "bare, DDP": prefixed,
        "wrapped": {"epoch": 300, "arch": "digit_net", "state_dict": state_dict, "accuracy": np.float64(78.9)},
        "half": half,
        "wrapped, DDP, half": {"epoch": 300, "state_dict": {f"module.{name}": half[name] for name in half}},
    }


@pytest.mark.parametrize("form", old_checkpoints())
def test_checkpoints_of_2021_are_evaluated(
    test_flags: Flags, photos: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    zipped = not form.startswith("wrapped")  # the others in the legacy format
    path = test_flags["util.test_weight_file"]
    torch.save(old_checkpoints()[form], path, _use_new_zipfile_serialization=zipped)
    start(test_flags)
    assert re.search(rf"top1_percent +{expected_top1(photos):.2f} +13", capsys.readouterr().out)
    names = {"classes-w.csv", "confusion-w.png", "evaluation-w.json", "reliability-w.png"}
    assert {path.name for path in test_flags["util.run_dir"].iterdir()} == names
    assert values(test_flags)["val", "top1_percent"] == (pytest.approx(expected_top1(photos)), 13)


def test_a_named_subset_of_the_classes_is_evaluated_with_the_checkpoints_ids(test_flags: Flags) -> None:
    # The network always predicts class 3, the checkpoint's "cow": the third of three folders, with 4 of 13 images.
    model = DigitNet(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        [p for p in model.parameters() if p.shape == (5,)][-1][3] = 1.0
    names = ["aardvark", "ant", "bee", "cow", "dog"]
    torch.save({"state_dict": model.state_dict(), "class_names": names}, test_flags["util.test_weight_file"])
    start(test_flags)
    assert values(test_flags)["val", "top1_percent"] == (pytest.approx(100 * 4 / 13), 13)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": DigitNet(4).state_dict()}, "has 4 classes and does not name them.*3 class folders"),
        ({"state_dict": DigitNet(3).state_dict(), "class_names": ["ant", "bee", "owl"]}, "do not have, the first: cow"),
        ({"optimizer": {}}, "contains no weights"),
        ({"arch": "resnet18", "state_dict": {"fc.weight": torch.ones(3, 9)}}, "set --model.arch resnet18"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(test_flags: Flags, content: Any, message: str) -> None:
    torch.save(content, test_flags["util.test_weight_file"])
    with pytest.raises(UserError, match=message):
        start(test_flags)
    assert not test_flags["util.run_dir"].exists()


def test_an_evaluation_never_replaces_that_of_another_checkpoint(test_flags: Flags, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = {**test_flags, "util.test_weight_file": tmp_path / "other" / "w.pth"}
    for flags in (test_flags, other):
        torch.save(network().state_dict(), flags["util.test_weight_file"])
    start(test_flags)
    before = (test_flags["util.run_dir"] / "evaluation-w.json").read_bytes()
    with pytest.raises(UserError, match=r"is the evaluation of .*w\.pth(.|\n)*--util\.run_dir"):
        start(other)
    assert (test_flags["util.run_dir"] / "evaluation-w.json").read_bytes() == before
    start(test_flags)  # the same checkpoint may be evaluated again


# Colours 0 to 4 are these classes; in the checkpoint, all classes come in reverse.
IDS = (0, 2, 10, 11, 999)
OF_CLASSES = (("classes", "csv"), ("confusion", "png"), ("reliability", "png"))


@pytest.fixture
def imagenet(test_flags: Flags, tmp_path: Path) -> Flags:
    """All published sets in miniature, own labels, and a checkpoint that recognises the colours and has EMA weights."""
    w = {index: wnids()[index] for index in IDS}
    model, ema = (
        colour_network({c: 999 - i for c, i in pairs}) for pairs in (enumerate(IDS), [(0, 0), (1, 10), (2, 2)])
    )
    state = {"state_dict": model.state_dict(), "state_dict_ema": ema.state_dict(), "class_names": wnids()[::-1]}
    torch.save(state, tmp_path / "w.pth")
    val = {(0, 1): 0, (0, 2): 1, (2, 3): 1, (10, 4): 2, (11, 5): 0}  # class id and number of an image -> its colour
    save_images(tmp_path / "imagenet" / "val", {f"{w[i]}/{val_name(n)}": colour for (i, n), colour in val.items()})
    (tmp_path / "real.json").write_text(json.dumps([[0], [2, 0], [], [11], [5, 0]]))
    multi_labels = {
        "initial_annots": {
            val_name(1): {"correct": [w[0]]},
            val_name(2): {"correct": [w[0]], "unclear": [w[2]]},
            val_name(4): {"correct": [w[10]]},
            val_name(5): {"correct": [w[11]], "wrong": [w[0]]},
        },
        "problematic_images": {val_name(4): {}},
        "imagenet_m": [val_name(2), val_name(5)],
    }
    (tmp_path / "multilabel.json").write_text(json.dumps(multi_labels))
    rows = [(0, 1, 0), (0, 2, 0), (0, 2, 2), (2, 3, 10)]  # class id and number of an image, one of its classes
    lines = [f"{w[i]}/{val_name(n)}\t{w[label]}\n" for i, n, label in rows]
    (tmp_path / "labels.tsv").write_text("image\tclass\n" + "".join(lines))
    save_images(tmp_path / "v2" / "imagenetv2-top-images-format-val", {"0/a.jpeg": 0, "2/a.jpeg": 1, "10/a.jpeg": 1})
    save_images(tmp_path / "a", {f"{w[2]}/a.jpg": 1, f"{w[10]}/a.jpg": 0})
    save_images(tmp_path / "r", {f"{w[0]}/a.jpg": 0, f"{w[999]}/a.jpg": 4})
    corrupted = {
        f"{c}/{s}/{w[0]}/{val_name(1)}": int((c, s) == ("fog", 5)) for c in ALEXNET_ERRORS for s in range(1, 6)
    }
    save_images(tmp_path / "c", corrupted, 224, 224)
    return test_flags | {"data.data_path": tmp_path / "imagenet"}


@pytest.fixture
def everything(imagenet: Flags, tmp_path: Path) -> Flags:
    """Everything that an evaluation can be asked for."""
    files = {"real": "real.json", "multilabel": "multilabel.json", "labels": "labels.tsv", "imagenet_v2": "v2"}
    files |= {"imagenet_a": "a", "imagenet_r": "r", "imagenet_c": "c"}
    return imagenet | {f"eval.{key}": tmp_path / name for key, name in files.items()} | {"eval.predictions": True}


def test_everything_by_hand(everything: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    start(everything)
    found = values(everything)
    expected = {
        ("val", "top1_percent"): (60, 5),
        ("val", "real_percent"): (75, 4),  # 1, 2 and 5 right, 4 wrong, 3 without labels
        ("val", "multilabel_per_class_percent"): (50, 3),  # class 0 both, class 11 none; 4 is problematic
        ("val", "multilabel_per_image_percent"): (100 / 3, 3),
        ("val", "imagenet_m_right"): (1, 2),
        ("val", "top1_in_set_percent"): (200 / 3, 3),
        ("val", "class_accuracy_percent"): (50, 3),
        # Class 0: image 1, then 2 and 3 alike (3 is wrong); classes 2 and 10: images 2 and 3 alike, one is right.
        ("val", "map_percent"): (100 * ((1 + 2 / 3) / 2 + 1 / 2 + 1 / 2) / 3, 3),
        ("val", "ece_percent"): (40, 5),
        ("imagenet_v2/top-images", "top1_percent"): (200 / 3, 3),  # as texts, 10 would come before 2
        ("imagenet_a", "top1_percent"): (50, 2),  # colour 0 is nearer to class 2 than to 10, and class 0 is no choice
        ("imagenet_r", "top1_percent"): (100, 2),
        ("imagenet_c/fog", "error_percent"): (20, 5),
        ("imagenet_c/snow", "error_percent"): (0, 5),
        ("imagenet_c", "mce_percent"): (20 / 0.819324 / 15, 75),
    }
    for key, (value, n) in expected.items():
        assert found[key] == (pytest.approx(value, abs=1e-4), n), key
    assert values(everything, "ema")["val", "top1_percent"] == (20, 5)
    assert values(everything, "ema").keys() == found.keys()
    printed = capsys.readouterr().out
    assert re.search(r"real_percent +75\.00 +50\.00 +4 ", printed) and "note: imagenet_c: folders without" in printed
    check_predictions(everything["util.run_dir"])


def check_predictions(folder: Path) -> None:
    """There is a file for each set and both weights, and that of val/ is right."""
    w = wnids()
    sets = ["val", "imagenet_v2-top-images", "imagenet_a", "imagenet_r", *(f"imagenet_c-{c}" for c in ALEXNET_ERRORS)]
    names = {f"predictions-w{ema}-{name}.csv" for ema in ("", "-ema") for name in sets}
    of_val = {f"{name}-w{ema}.{end}" for ema in ("", "-ema") for name, end in OF_CLASSES}
    assert {path.name for path in folder.iterdir()} == names | of_val | {"evaluation-w.json"}
    with (folder / "predictions-w-val.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows[:2]] == [f"{w[0]}/{val_name(1)}", f"{w[0]}/{val_name(2)}"]
    assert [row["top1"] for row in rows] == [w[0], w[2], w[2], w[10], w[0]]
    assert [row["in_set"] for row in rows] == ["1", "1", "0", "", ""]
    assert [row["label_probability"] == "1" for row in rows] == [True, False, True, True, False]
    assert all(row["top5"].split("/")[0] == row["top1"] and len(row["top5"].split("/")) == 5 for row in rows)


@pytest.mark.slow
def test_the_main_process_lists_every_set_for_all(everything: Flags, tmp_path: Path) -> None:
    del everything["eval.imagenet_c"]
    run = fork_run(everything, tmp_path / "output", 2, {1: partial(refuse_scans, tmp_path)})
    assert run.ends() == [0, 0], (tmp_path / "output").read_text()
    assert values(everything)["imagenet_r", "top1_percent"] == (100, 2)


def test_val_may_be_left_out(everything: Flags) -> None:
    keep = {key: value for key, value in everything.items() if not key.startswith(("data.data_path", "eval."))}
    start(keep | {"eval.imagenet_a": everything["eval.imagenet_a"]})
    assert {name for name, _ in values(everything)} == {"imagenet_a"}
    report = json.loads((everything["util.run_dir"] / "evaluation-w.json").read_text())
    assert report["data"] is None and report["eval"]["imagenet_a"] == str(everything["eval.imagenet_a"])


def test_a_checkpoint_that_does_not_name_imagenets_classes_is_given_them(everything: Flags) -> None:
    torch.save(colour_network(dict(enumerate(IDS))).state_dict(), everything["util.test_weight_file"])
    del everything["eval.imagenet_c"]
    with pytest.raises(UserError, match=r"1,000 classes and does not name them.*\n.*Give --eval.classes FILE"):
        start(everything)
    start(everything | {"eval.classes": "imagenet"})
    assert values(everything)["val", "top1_percent"] == (60, 5)
    assert values(everything)["val", "real_percent"] == (75, 4)
    assert values(everything)["imagenet_v2/top-images", "top1_percent"][0] == pytest.approx(200 / 3)


@pytest.mark.parametrize("key", ["real", "imagenet_v2", "imagenet_a"])
def test_a_checkpoint_of_other_classes_is_refused_before_the_work(
    test_flags: Flags, imagenet: Flags, tmp_path: Path, key: str
) -> None:
    torch.save({"state_dict": DigitNet(3).state_dict(), "class_names": ["ant", "bee", "cow"]}, tmp_path / "w.pth")
    name = {"real": "real.json", "multilabel": "multilabel.json"}.get(key, key.removeprefix("imagenet_"))
    with pytest.raises(UserError, match=rf"has 3 classes, of which 0 .* eval\.{key} needs a checkpoint"):
        start(test_flags | {f"eval.{key}": tmp_path / name})
    assert not test_flags["util.run_dir"].exists()


def test_a_wrong_folder_is_refused_with_the_flag_that_names_it(everything: Flags, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected folders of ImageNet-C(.|\n)*--eval\.imagenet_c"):
        start(everything | {"eval.imagenet_c": tmp_path / "r"})
    assert not everything["util.run_dir"].exists()


def test_logits_that_are_not_finite_are_counted(
    everything: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = colour_network(dict(enumerate(IDS))).state_dict()
    state["fc.bias"][5] = float("nan")
    torch.save({"state_dict": state, "class_names": wnids()}, tmp_path / "w.pth")
    start({key: value for key, value in everything.items() if key != "eval.imagenet_c"})
    assert values(everything)["val", "top1_percent"] == (0, 5)
    assert values(everything)["imagenet_a", "top1_percent"] == (50, 2)  # class 5 is not among its classes
    assert (
        "note: val: images with logits that are not finite (model), which count as wrong: 5" in capsys.readouterr().out
    )
