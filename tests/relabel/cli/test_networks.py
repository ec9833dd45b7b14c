"""Prediction and export: both give what `--util.test_only True` gives."""

import csv
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image

from models.build import create_model
from models.classifier import open_weights
from relabel import __main__ as tools
from relabel.augment import normalise
from relabel.data.decode import ImageFile
from relabel.data.folders import list_images
from tests.conftest import CLASSES, Flags
from tests.image_forms import make_tar
from tests.relabel.training.test_run import start
from utils.checkpoint import LAST

ARCH = "timm/test_resnet"


@pytest.fixture
def run_folder(flags: Flags) -> Path:
    """A finished run with averaged weights, evaluated at 41 pixels of 50, with an input of its own."""
    flags |= {"model.arch": ARCH, "data.image_size": 32, "data.test_size": 41, "data.crop_ratio": 0.82}
    flags |= {"data.mean": "0.5,0.4,0.3", "data.std": "0.5,0.5,0.5", "data.interpolation": "bicubic"}
    flags |= {"optim.epochs": 1, "optim.warmup.epochs": 0, "optim.ema.decay": 0.5, "data.decoder": "pillow"}
    start(flags)
    tested = {**flags, "util.test_only": True, "eval.predictions": True}
    start({**tested, "util.test_weight_file": flags["util.run_dir"] / "checkpoint-last.pth"})
    folder: Path = flags["util.run_dir"]
    return folder


def export(*words: object) -> None:
    tools.main(["export-model", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as caught:
        export(*words)
    assert caught.value.code == 2
    return capsys.readouterr().err


def probabilities(model: torch.nn.Module, photos: Path) -> torch.Tensor:
    """float [N, K] of the validation photos, each as the run tests it."""
    images = list_images(photos / "val")
    files = [ImageFile(images.path(row)) for row in range(len(images))]
    pixels = torch.stack([torch.from_numpy(file.centre_crop(41, 0.82, "bicubic").copy()) for file in files])
    with torch.inference_mode():
        return torch.softmax(model.eval()(normalise(pixels, mean=(0.5, 0.4, 0.3), std=(0.5, 0.5, 0.5))), dim=1)


def test_what_is_exported_is_what_was_evaluated(
    run_folder: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for ema, suffix in (("true", "-ema"), ("false", "")):
        out = tmp_path / f"exported-{ema}"
        capsys.readouterr()
        export(run_folder / "checkpoint-last.pth", out, "--form", "timm", "--ema", ema)
        printed = capsys.readouterr().out
        used = "input: 41 x 41 pixels, crop ratio 0.82, bicubic, mean 0.5 0.4 0.3, std 0.5 0.5 0.5 (rec"
        assert used in printed and ("(EMA)" in printed) == (ema == "true")
        again: Any = timm.create_model(f"local-dir:{out}", pretrained=True)
        assert again.pretrained_cfg["label_names"] == list(CLASSES)
        assert (again.pretrained_cfg["mean"], again.pretrained_cfg["interpolation"]) == ([0.5, 0.4, 0.3], "bicubic")
        ours, back = (open_weights(None, str(file)) for file in (run_folder / LAST, out / "model.safetensors"))
        kept = ("size", "crop_ratio", "interpolation", "mean", "std")
        one, two = (weights.data_config({}, "--flags") for weights in (ours, back))
        assert [getattr(one, name) for name in kept] == [pytest.approx(getattr(two, name)) for name in kept]
        assert (back.arch, back.class_names) == (ours.arch, ours.class_names)
        assert f"{back}: {two.source}".count("config.json beside") == 2
        found = probabilities(again, photos)
        with (run_folder / f"predictions-checkpoint-last{suffix}-val.csv").open() as file:
            for row, line in enumerate(csv.DictReader(file)):
                assert CLASSES[int(found[row].argmax())] == line["top1"]
                assert float(found[row].max()) == pytest.approx(float(line["top1_probability"]), abs=2e-6)


def test_without_a_record_the_input_comes_from_the_config_else_from_the_library(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"arch": "timm/test_resnet", "state_dict": create_model(ARCH, 3).state_dict()}, tmp_path / "w.pth")
    (tmp_path / "other.yaml").write_text("data: {data_path: gone, test_size: 96, crop_ratio: null}\n")
    export(tmp_path / "w.pth", tmp_path / "a", "--form", "timm")
    assert "input: 160 x 160 pixels, crop ratio 0.9524, bilinear, mean 0.5 0.5 0.5, std" in capsys.readouterr().out
    export(tmp_path / "w.pth", tmp_path / "b", "--form", "timm", "--config_file_path", tmp_path / "other.yaml")
    assert "input: 96 x 96 pixels instead of 160 x 160 pixels, the whole image squashed inst" in capsys.readouterr().out
    (tmp_path / "other.yaml").write_text("optim: {bn: {eps: 1e-2}}\n")
    with_eps = ["--form", "timm", "--config_file_path", tmp_path / "other.yaml"]
    err = refused(capsys, tmp_path / "w.pth", tmp_path / "c", *with_eps)
    assert "this training added 0.01 (optim.bn.eps; none keeps the network's" in err and not (tmp_path / "c").exists()


def test_weights_of_2021_need_the_networks_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = {f"module.{name}": tensor for name, tensor in create_model("resnet18", 3).state_dict().items()}
    torch.save(weights, tmp_path / "w.pth")
    err = refused(capsys, tmp_path / "w.pth", tmp_path / "b.pth", "--form", "backbone")
    assert "does not name its network; expected a name in torchvision or timm\n  Correct --arch." in err
    export(tmp_path / "w.pth", tmp_path / "b.pth", "--form", "backbone", "--arch", "resnet18")
    found = torch.load(tmp_path / "b.pth", weights_only=True)
    assert torch.equal(found["layer4.1.conv2.weight"], weights["module.layer4.1.conv2.weight"])


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["w.pth", "no/b.pth", "--form", "backbone"], "OUT no/b.pth cannot be written: its folder does not exist"),
        (["w.pth", "w.pth", "--form", "backbone"], "OUT w.pth already exists"),
        (["w.pth", "out", "--form", "timm", "--arch", "resnet18"], r"w.pth: .*does not fit(.|\n)*--arch timm/test_r"),
        (["w.pth", "out", "--form", "timm", "--arch", "resnet1"], r"found arch 'resnet1'; expected .*resnet18"),
        (["text.pth", "out", "--form", "timm"], "text.pth "),
    ],
)
def test_bad_input_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], match: str
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {"arch": ARCH, "class_names": list(CLASSES), "state_dict": create_model(ARCH, 3).state_dict()}
    torch.save(state, "w.pth")
    Path("text.pth").write_text("no tensors")
    assert re.search(match, refused(capsys, *words))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["text.pth", "w.pth"]


def predict(*words: object) -> None:
    tools.main(["predict", *map(str, words)])


def prediction_refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as caught:
        predict(*words)
    assert caught.value.code == 2
    return capsys.readouterr().err


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_of_an_evaluation_and_a_damaged_image_costs_only_itself(
    flags: Flags, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "w.pth"
    state = {f"state_dict{ema}": create_model(ARCH, 3).state_dict() for ema in ("", "_ema")}
    torch.save(state | {"arch": ARCH, "class_names": list(CLASSES)}, weights)
    keep = {name: flags[name] for name in ("data.data_path", "compute.num_workers", "util.val_batch_size")}
    start(keep | {"util.test_only": True, "util.test_weight_file": weights, "util.run_dir": tmp_path / "tested",
                  "eval.predictions": True, "data.test_size": 48, "data.crop_ratio": 0.9})  # fmt: skip
    expected = table(tmp_path / "tested" / "predictions-w-ema-val.csv")
    shutil.copytree(photos / "val", tmp_path / "images" / "deeper")
    whole = (photos / "val" / "ant" / "ant.00.JPEG").read_bytes()
    (tmp_path / "images" / "broken.jpg").write_bytes(whole[:200])
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    capsys.readouterr()
    given = ["--size", 48, "--crop_ratio", 0.9, "--batch_size", 5, "--num_workers", 1]
    files = ["--csv", tmp_path / "p.csv", "--json", tmp_path / "p.json", "--out", tmp_path / "p.png"]
    with pytest.raises(SystemExit) as caught:
        predict(weights, tmp_path / "images", *files, *given)
    printed = capsys.readouterr()
    assert caught.value.code == 2
    assert "1 of 14 images cannot be classified; the others are.\n  Replace or remove these files:" in printed.err
    assert f"{tmp_path}/images/broken.jpg: " in printed.err
    found = table(tmp_path / "p.csv")
    assert [row["image"].removeprefix(f"{tmp_path}/images/deeper/") for row in found] == [r["image"] for r in expected]
    for row, line in zip(found, expected, strict=True):
        assert [row[f"class{rank}"] for rank in (1, 2, 3)] == line["top5"].split("/")
        assert float(row["probability1"]) == pytest.approx(float(line["top1_probability"]), abs=2e-6)
    record = json.loads((tmp_path / "p.json").read_text())
    assert record["predictions"][12]["classes"][2]["class"] == found[12]["class3"]
    assert [*record["not_predicted"]] == [f"{tmp_path}/images/broken.jpg"]
    assert Image.open(tmp_path / "p.png").width > 1000
    lines = printed.out.splitlines()
    assert max(len(line) for line in lines if ".JPEG" in line) <= 80
    assert f"the 3 most likely classes: in {tmp_path}/p.csv" in lines and f"figure: {tmp_path}/p.png" in lines


def test_few_images_get_all_classes_and_many_a_screenful(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"arch": ARCH, "class_names": list(CLASSES), "state_dict": create_model(ARCH, 3).state_dict()}
    torch.save(state, tmp_path / "w.pth")
    one = photos / "val" / "ant" / "ant.00.JPEG"
    predict(tmp_path / "w.pth", one, one, "--top_k", 2, "--size", 32)
    out = capsys.readouterr().out
    assert "input: 32 x 32 pixels instead of 160 x 160 pixels (given)" in out
    assert re.search(r"image .*\n.*\n.*ant\.00\.JPEG +(ant|bee|cow) +\d+\.\d\n +(ant|bee|cow) +\d+\.\d\n$", out)
    make_tar(tmp_path / "val.tar", {"ant/1.JPEG": one.read_bytes()})
    predict(tmp_path / "w.pth", tmp_path / "val.tar", one, "--size", 32)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-2:] for line in lines[-6:-3]] == [line.split()[-2:] for line in lines[-3:]]
    assert "val.tar:ant/1.JPEG" in lines[-6]
    predict(tmp_path / "w.pth", photos / "train", "--size", 32)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "and 10 more images: --csv FILE writes them" and len(lines) == 2 + 3 + 20 + 1
    predict(tmp_path / "w.pth", photos / "train", "--size", 32, "--top_k", 3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "and 24 more images: --csv FILE writes them" and len(lines) == 2 + 3 + 6 * 3 + 1
    assert len({line.rstrip().rindex(".") for line in lines[5:-1]}) == 1


def test_wrong_predictions_are_refused_with_a_remedy_that_works(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(create_model(ARCH, 3).state_dict(), "w.pth")
    Path("empty").mkdir()
    image = photos / "val" / "bee" / "bee.00.JPEG"
    assert "IMAGE ... is missing; expected image files, folders" in prediction_refused(capsys, "w.pth")
    assert "IMAGE = 'gone.jpg' (command line): expected an image, a folder" in prediction_refused(
        capsys, "w.pth", "gone.jpg"
    )
    assert "empty: found no image; expected files ending in .jpg" in prediction_refused(capsys, "w.pth", "empty")
    for gone in ("gone.pth", "random", "empty"):
        message = prediction_refused(capsys, gone, image)
        assert f"{gone} " in message or f"{gone};" in message
        assert "; expected pretrained, packaged, a checkpoint, or a run folder with checkpoint-best" in message
    timm.models.save_for_hf(create_model(ARCH, 3), "hub", safe_serialization=True)
    in_folder = re.search(r"Give (\S+), which is in it", prediction_refused(capsys, "hub", image))
    assert in_folder
    predict(in_folder[1], image)
    assert "does not name its network; expected a name in tor" in prediction_refused(capsys, "w.pth", image)
    few = ["w.pth", image, "--arch", ARCH, "--size", 32]
    assert "--top_k is 4, but the network has 3 classes; exp" in prediction_refused(capsys, *few, "--top_k", 4)
    assert "or lies inside IMAGE" in prediction_refused(capsys, *few, photos / "val", "--out", photos / "val" / "p.png")
    predict(*few)
    assert "3 classes: numbers, because the weights do not name them; --classes FILE does" in capsys.readouterr().out
    Path("classes.txt").write_text("ant\nbee\ncow\n")
    predict(*few, "--classes", "classes.txt")
    out = capsys.readouterr().out
    assert "3 classes: listed in classes.txt" in out and re.search(r"JPEG +(ant|bee|cow) ", out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["classes.txt", "empty", "hub", "w.pth"]
