"""The reproduction in small, and the teacher of the digit scenes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from models.build import create_model, load_weights
from relabel import __main__ as tools
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.folders import list_images
from relabel.data.loader import Loader, eval_batches
from relabel.demo.reproduce import DIGITS, PHOTOS, SHIPPED_TEACHER, make_digits_teacher, reproduce
from relabel.demo.results import Student, gains
from relabel.demo.scenes import write_scenes
from relabel.demo.small_images import DigitImages
from relabel.training.validation import evaluate
from tests.conftest import ROOT, environment
from tests.miniatures import AS_IN_2021
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.precision import Precision
from utils.processes.distributed import Process

CPU = torch.device("cpu")


@pytest.fixture
def steps_in_this_process(monkeypatch: pytest.MonkeyPatch, own_handlers: None) -> None:
    """Run the steps of a reproduction without starting a process for each; the teacher learns for an epoch only."""

    def run_here(words: Sequence[str], folder: Path) -> None:
        if words[1] == "main.py":
            flags = {key.removeprefix("--"): value for key, value in zip(words[4::2], words[5::2], strict=True)}
            once = {"optim.epochs": "1", "optim.warmup.epochs": "0", "compute.num_workers": "0"}
            run(load_config(words[3], flags | once))
        else:
            tools.main(list(words[3:]))

    monkeypatch.setattr("relabel.demo.reproduce.run_command", run_here)


@pytest.mark.slow
def test_the_demo_in_small_ends_with_a_table_figures_and_their_paths(
    tmp_path: Path, steps_in_this_process: None
) -> None:
    words = ["--rows", "2", "--seeds", "1", "--train", "128", "--val", "10"]
    command = [sys.executable, "-m", "relabel", "reproduce", "--out", "demo", *words]
    settings = {**environment(), "PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "demo"
    assert "-m relabel annotate" in first.stdout and "configs/digits/relabel.yaml" in first.stdout
    kinds = {"scenes.png": "figures", "curves.png": "", "rows.png": "", "results.json": "numbers", "*-seed*": "runs"}
    assert "".join(f"{kind:<9}{out / name}\n" for name, kind in kinds.items()) in first.stdout
    assert min(Image.open(out / "scenes.png").size) > 500
    results = json.loads((out / "results.json").read_text())
    assert [run["row"] for run in results["runs"]] == ["original labels", "ReLabel"]
    assert all(run["row"] in first.stdout.partition("supervision")[2] for run in results["runs"])
    assert all(0 <= run[name] <= 100 for run in results["runs"] for name in ("top1_percent", "map_percent"))
    assert all(run["top1_in_set_percent"] >= run["top1_percent"] for run in results["runs"])
    reproduce(out, None, 2, 1, 128, 10)  # nothing is trained twice, and nothing changes
    assert (out / "original-seed0.log").read_text().count("is finished") == 1
    assert json.loads((out / "results.json").read_text())["runs"] == results["runs"]


def test_every_row_is_a_recipe_and_there_are_no_more(tmp_path: Path) -> None:
    for experiment in (DIGITS, PHOTOS):
        recipes = {path.stem for path in (ROOT / "configs" / experiment.name).glob("*.yaml")}
        assert {row.recipe for row in experiment.rows} == recipes - {"annotator", "fine_tune"}
        assert [row.recipe for row in experiment.rows[:2]] == ["original", "relabel"]  # the demo's
    with pytest.raises(UserError, match="found --rows 10; expected at most 9"):
        reproduce(tmp_path / "out", None, 10, 1, 10, 10)
    assert not list(tmp_path.iterdir())


def test_a_gain_is_over_the_first_row_with_the_same_seed() -> None:
    top1 = {"original": (70.0, 60.0), "ReLabel": (75.0, 72.0)}
    results = [Student(row, seed, top1[row][seed], 0, 0, 0, "") for seed in (0, 1) for row in top1]
    found = gains(results)
    assert found["original"].tolist() == [0, 0] and found["ReLabel"].tolist() == [5, 12]


def test_the_teacher_can_be_made_from_scratch(tmp_path: Path, steps_in_this_process: None) -> None:
    make_digits_teacher(tmp_path / "a.pth", tmp_path / "work", train=128, val=10)
    fresh, shipped = load_checkpoint(tmp_path / "a.pth"), load_checkpoint(SHIPPED_TEACHER)
    assert fresh.keys() == shipped.keys() and fresh["class_names"] == shipped["class_names"]
    assert (tmp_path / "a.pth").stat().st_size < 1_200_000
    shapes = [{name: tensor.shape for name, tensor in state["state_dict"].items()} for state in (fresh, shipped)]
    assert shapes[0] == shapes[1]


def test_the_shipped_teacher_knows_scenes_that_it_was_not_trained_on(tmp_path: Path) -> None:
    write_scenes(DigitImages(), tmp_path / "scenes", seed=2, train=10, val=300)
    images = list_images(tmp_path / "scenes" / "val")
    state = load_checkpoint(SHIPPED_TEACHER)
    model = create_model(state["arch"], len(state["class_names"]))
    load_weights(model, state["state_dict"])
    loader = Loader(ImageDataset(images, CenterCrop(64, None)), eval_batches(300, 100, 0, 1), 0, CPU)
    score = evaluate({"": model}, images, loader, Precision("O0", CPU), Process(0, 1, 0, 1, CPU), AS_IN_2021)[""]
    assert score.top1_percent > 80
    assert state["class_names"] == images.class_names
