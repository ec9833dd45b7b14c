"""Top-1 and top-5, and `--util.test_only True` with checkpoints old and new."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.digit_net import DigitNet
from relabel.dataset import CentreView, ImageDataset, list_images
from relabel.evaluation import evaluate, predict
from relabel.loader import Loader, TestBatches
from relabel.runs import run
from tests.conftest import Flags
from utils.config import load_config
from utils.errors import UserError
from utils.precision import Precision

CPU = torch.device("cpu")


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


def network() -> DigitNet:
    """Weights that tell three classes apart, in some way."""
    torch.manual_seed(0)
    return DigitNet(3).eval()


def expected_top1(photos: Path) -> float:
    """Percent, by the slow and plain way: one image at a time."""
    images = list_images(photos / "val")
    dataset = ImageDataset(images, CentreView(16, 0.875))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    right = 0
    for index in range(len(images)):
        pixels = dataset[(0, index)].image.transpose(1, 2, 0) / 255
        image = torch.from_numpy(((pixels - mean) / std).transpose(2, 0, 1)[None]).float()
        with torch.inference_mode():
            right += int(network()(image).argmax()) == images.labels[index]
    return 100 * right / len(images)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_counts_do_not_depend_on_the_batch_size(photos: Path, batch_size: int) -> None:
    images = list_images(photos / "val")
    loader = Loader(ImageDataset(images, CentreView(16, 0.875)), TestBatches(len(images), batch_size, 0, 1), 0, CPU)
    score = evaluate(network(), loader, Precision("O0", CPU))
    assert score.images == 13 and score.top5 == 13  # three classes: the label is always among five
    assert score.top1_percent == pytest.approx(expected_top1(photos))


def test_predictions_come_in_the_order_of_the_images(photos: Path) -> None:
    images = list_images(photos / "val")
    dataset, precision = ImageDataset(images, CentreView(16, 0.875)), Precision("O0", CPU)
    one = predict(network(), Loader(dataset, TestBatches(13, 1, 0, 1), 0, CPU), precision)
    many = predict(network(), Loader(dataset, TestBatches(13, 4, 0, 1), 0, CPU), precision)
    assert one.shape == (13, 3)
    torch.testing.assert_close(one, many)


def test_a_network_in_training_stays_in_training(photos: Path) -> None:
    images = list_images(photos / "val")
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = Loader(ImageDataset(images, CentreView(16, 0.875)), TestBatches(13, 4, 0, 1), 0, CPU)
    evaluate(model, loader, Precision("O0", CPU))
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def old_checkpoints() -> dict[str, Any]:
    """The forms in which weights of 2021 are found."""
    state_dict = network().state_dict()
    prefixed = {f"module.{name}": tensor for name, tensor in state_dict.items()}
    return {
        "bare": state_dict,
        "bare, DDP": prefixed,
        "wrapped": {"epoch": 300, "arch": "digit_net", "state_dict": state_dict, "accuracy": np.float64(78.9)},
        "wrapped, DDP": {"epoch": 300, "arch": "digit_net", "state_dict": prefixed, "optimizer": {}},
    }


@pytest.mark.parametrize("form", old_checkpoints())
def test_checkpoints_of_2021_are_evaluated(
    test_flags: Flags, photos: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(old_checkpoints()[form], test_flags["util.test_weight_file"])
    start(test_flags)
    printed = capsys.readouterr().out
    assert f"top-1 {expected_top1(photos):.2f} %  top-5 100.00 %  n = 13" in printed
    folder = test_flags["util.run_dir"]
    assert [path.name for path in folder.iterdir()] == ["evaluation-w.json"]
    report = json.loads((folder / "evaluation-w.json").read_text())
    assert report["model"]["images"] == 13 and report["model"]["top1_percent"] == pytest.approx(expected_top1(photos))


def test_averaged_weights_are_evaluated_too(test_flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    state_dict = network().state_dict()
    state = {"state_dict": state_dict, "state_dict_ema": state_dict, "class_names": ["ant", "bee", "cow"]}
    torch.save(state, test_flags["util.test_weight_file"])
    start(test_flags)
    assert capsys.readouterr().out.count("n = 13") == 2


def test_a_named_subset_of_the_classes_is_evaluated_with_the_checkpoints_ids(
    test_flags: Flags, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The network always says class 3, the checkpoint's "cow"; as folder it is the third of three, with 4 of 13 images.
    model = DigitNet(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        [p for p in model.parameters() if p.shape == (5,)][-1][3] = 1.0
    names = ["aardvark", "ant", "bee", "cow", "dog"]
    torch.save({"state_dict": model.state_dict(), "class_names": names}, test_flags["util.test_weight_file"])
    start(test_flags)
    assert f"top-1 {100 * 4 / 13:.2f} %" in capsys.readouterr().out


class Malicious:
    """Unpickling this would make a folder."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": DigitNet(4).state_dict()}, "3 class folders, but .* tells 4 classes apart"),
        (
            {"state_dict": DigitNet(3).state_dict(), "class_names": ["ant", "bee", "owl"]},
            "1 of 3 class folders that .* do not have, the first: cow",
        ),
        ({"optimizer": {}}, "holds no weights"),
        ({"state_dict": {"fc.weight": torch.zeros(3, 2)}, "class_names": ["ant", "bee", "cow"]}, r"fc\.weight"),
        (
            {"arch": "resnet18", "state_dict": {"fc.weight": torch.ones(3, 512)}, "class_names": ["ant", "bee", "cow"]},
            "set --model.arch resnet18",
        ),
    ],
)
def test_what_does_not_fit_is_refused(test_flags: Flags, content: Any, message: str) -> None:
    torch.save(content, test_flags["util.test_weight_file"])
    with pytest.raises(UserError, match=message):
        start(test_flags)
    assert not test_flags["util.run_dir"].exists()


def test_wrong_shapes_are_listed_by_name(test_flags: Flags) -> None:
    state_dict = network().state_dict()
    name = next(name for name, tensor in state_dict.items() if tensor.ndim == 4)
    state_dict[name] = torch.zeros(7, 3, 3, 3)
    torch.save({"state_dict": state_dict, "class_names": ["ant", "bee", "cow"]}, test_flags["util.test_weight_file"])
    with pytest.raises(UserError) as told:
        start(test_flags)
    assert name in str(told.value) and "7" in str(told.value)


def test_a_malicious_checkpoint_runs_nothing(test_flags: Flags, tmp_path: Path) -> None:
    test_flags["util.test_weight_file"].write_bytes(pickle.dumps({"state_dict": Malicious(tmp_path / "mark")}))
    with pytest.raises(UserError, match=r"w\.pth"):
        start(test_flags)
    assert not (tmp_path / "mark").exists() and not test_flags["util.run_dir"].exists()


def test_a_run_folder_that_cannot_be_written_is_refused_before_the_work(test_flags: Flags, tmp_path: Path) -> None:
    torch.save(network().state_dict(), test_flags["util.test_weight_file"])
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written"):
        start({**test_flags, "util.run_dir": tmp_path / "file" / "run"})
