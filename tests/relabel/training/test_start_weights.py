"""`model.weights`: a run that starts from a checkpoint, with its classification head or a new one."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from pytest import CaptureFixture
from torch import Tensor

from models.build import create_model
from models.digit_net import DigitNet
from relabel.cli.run import run
from relabel.config.load import load_config
from tests.conftest import CLASSES, ROOT, Flags, environment
from tests.relabel.training.test_run import assert_same_weights, preempt, start, weights
from utils.checkpoint import LAST, load_checkpoint
from utils.errors import UserError

# Nothing is learned at rate 0, so the parameters at a run's end are those that it started from.
AT_REST = {"optim.lr.init": 0.0, "optim.warmup.epochs": 0, "optim.epochs": 1}
HEAD = {"fc.weight", "fc.bias"}


def network(num_classes: int, seed: int = 5) -> dict[str, Tensor]:
    """Weights of a network that no run would start from by itself."""
    torch.manual_seed(seed)
    return DigitNet(num_classes).state_dict()


def parameters(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without batch statistics, which change at any learning rate."""
    return {name: tensor for name, tensor in state_dict.items() if "running" not in name and "batches" not in name}


@pytest.fixture
def flags_at_rest(flags: Flags, tmp_path: Path) -> Flags:
    """A run at learning rate 0 from the checkpoint w.pth."""
    return {**flags, **AT_REST, "model.weights": tmp_path / "w.pth"}


def new_head(num_classes: int) -> dict[str, Tensor]:
    """A head to which every class is as likely as any other."""
    return {name: torch.zeros_like(tensor) for name, tensor in network(num_classes).items() if name in HEAD}


def assert_started_from(flags: Flags, expected: dict[str, Tensor]) -> None:
    start(flags)
    assert_same_weights(parameters(weights(flags["util.run_dir"])), parameters(expected))


@pytest.mark.parametrize(
    ("names", "count", "head"),
    [
        (list(CLASSES), 3, "included (classes: named in w.pth)"),
        (["bee", "cow", "ant"], 3, "included (classes: named in w.pth)"),
        (["ant", "bee", "dog"], 3, "new: theirs is for 3 classes (named in w.pth), not these 3"),
        (["ant", "bee"], 2, "new: theirs is for 2 classes (named in w.pth), not these 3"),
        (None, 2, "new: theirs is for 2 classes (not named), not these 3"),
        (None, 3, "included (classes: the class folders, sorted as text)"),
    ],
)
def test_the_head_is_loaded_only_for_the_same_classes_and_in_their_order(
    flags_at_rest: Flags, names: list[str] | None, count: int, head: str, capsys: CaptureFixture[str]
) -> None:
    file = flags_at_rest["model.weights"]
    torch.save({"arch": "digit_net", "class_names": names, "state_dict": network(count)}, file)
    if head.startswith("included"):
        own = network(count)
        order = [(names or CLASSES).index(name) for name in CLASSES]
        expected = own | {name: own[name][order] for name in HEAD}
    else:
        expected = network(count) | new_head(3)
    assert_started_from(flags_at_rest, expected)
    assert f"starting from {file.name}, classification head {head}\n" in capsys.readouterr().out


FORMS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": lambda weights: weights,
    "wrapped, DDP": lambda weights: {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}},
    "with averaged weights": lambda weights: {"state_dict": network(4, seed=6), "state_dict_ema": weights},
    "without a head": lambda weights: {name: tensor for name, tensor in weights.items() if name not in HEAD},
}


def test_every_form_of_a_checkpoint_is_loaded(flags_at_rest: Flags, tmp_path: Path) -> None:
    expected = network(4) | new_head(3)
    files = {}
    for form, make in FORMS.items():
        files[form] = tmp_path / f"{form}.pth"
        torch.save(make(network(4)), files[form])
    files["safetensors"] = tmp_path / "w.safetensors"
    safetensors.torch.save_file(network(4), files["safetensors"])
    for form, file in files.items():
        assert_started_from({**flags_at_rest, "model.weights": file, "util.run_dir": tmp_path / form}, expected)


def test_a_continued_run_does_without_the_file(flags: Flags, tmp_path: Path) -> None:
    flags["model.weights"] = tmp_path / "w.pth"
    torch.save(network(7), tmp_path / "w.pth")
    start({**flags, "util.run_dir": tmp_path / "undisturbed"})
    preempt(flags, 7)
    (tmp_path / "w.pth").unlink()
    start(flags)
    assert_same_weights(weights(tmp_path / "undisturbed"), weights(flags["util.run_dir"]))
    start(flags)  # finished
    with pytest.raises(UserError, match=r"weights_sha256: \w{8}... there"):
        start({**flags, "model.weights": ""})


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (
            network(3) | {"features.0.weight": torch.zeros(24, 3, 5, 5)},
            r"w.pth: .*\n.*\n.*1 of a different shape: features.0.w",
        ),
        (
            {"arch": "resnet18", "state_dict": create_model("resnet18", 3).state_dict()},
            r"w.pth: .*\n.*set --model.arch resnet18\.\n  30 missing: ([^ ]+ \[[0-9, ]+\],? ){5}and 25 more\n",
        ),
        ({"optimizer": {}}, "w.pth contains no weights"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_is_made(flags_at_rest: Flags, content: Any, match: str) -> None:
    torch.save(content, flags_at_rest["model.weights"])
    with pytest.raises(UserError, match=match):
        start(flags_at_rest)
    assert not flags_at_rest["util.run_dir"].exists()


@pytest.mark.slow
def test_the_card_of_the_fine_tuning_recipe_makes_its_data(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = ROOT / "configs/digits/fine_tune.yaml"
    ((lines, _),) = re.findall(r"made by\n((#  .*\n)+)", recipe.read_text())
    script = lines.replace("#  ", "").replace("python ", f"{sys.executable} ").replace("500", "100 --val 20")
    monkeypatch.chdir(tmp_path)
    subprocess.run(["bash", "-euc", script], check=True, env={**environment(), "PYTHONPATH": str(ROOT)}, timeout=60)
    assert sum(1 for _ in Path("runs/parity/train").glob("*/*.JPEG")) == 100
    Path("configs").symlink_to(ROOT / "configs")
    short = {"optim.epochs": "1", "optim.warmup.epochs": "0", "compute.num_workers": "0"}
    run(load_config(str(recipe), short))
    assert "annotator.pth, classification head new: theirs is for 10 classes" in capsys.readouterr().out
    assert load_checkpoint(tmp_path / "runs/fine_tune" / LAST)["class_names"] == ["even", "odd"]
