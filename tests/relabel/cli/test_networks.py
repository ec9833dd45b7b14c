"""From a run folder to timm: the exported network predicts what `--util.test_only True` predicts."""

import csv
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from models.build import create_model
from relabel import __main__ as tools
from relabel.augment import normalise
from relabel.data.decode import ImageFile
from relabel.data.images import list_images
from tests.conftest import CLASSES, Flags
from tests.relabel.training.test_run import start

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
    (tmp_path / "config.yaml").write_text("optim: {bn: {eps: 1e-2}}\n")
    err = refused(capsys, tmp_path / "w.pth", tmp_path / "c", "--form", "timm")
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
