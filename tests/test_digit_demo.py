"""The demo in small, and the machine annotator that it ships."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.build import create_model, load_weights
from relabel.dataset import CentreView, ImageDataset, list_images
from relabel.digit_demo import ANNOTATOR, true_labels
from relabel.digit_scenes import write_scenes
from relabel.evaluation import evaluate
from relabel.loader import Loader, TestBatches
from tests.conftest import ROOT, environment
from utils.checkpoint import load_checkpoint
from utils.precision import Precision

CPU = torch.device("cpu")


def relabel(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """A tool's command, from another folder than the project's."""
    command = [sys.executable, "-m", "relabel", *map(str, words)]
    settings = {**environment(), "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings, cwd=cwd)


@pytest.mark.slow
def test_the_demo_in_small_ends_with_a_table_pictures_and_where_they_are(tmp_path: Path) -> None:
    words = ("demo", "--out", "demo", "--train", 256, "--val", 20)
    first = relabel(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "demo"
    for supervision in ("original labels", "ReLabel"):
        assert supervision in first.stdout
    for command in (
        "-m relabel digits",
        "-m relabel annotate",
        "main.py --config-file-path configs/digits/relabel.yaml",
    ):
        assert command in first.stdout
    for name in ("scenes.png", "curves.png", "demo.json"):
        assert str(out / name) in first.stdout
    assert min(Image.open(out / "scenes.png").size) > 500
    results = json.loads((out / "demo.json").read_text())
    assert [result["supervision"] for result in results] == ["original labels", "ReLabel"]
    assert all(0 <= result[name] <= 100 for result in results for name in ("top1_percent", "map_percent"))
    assert all(result["multi_label_percent"] >= result["top1_percent"] for result in results)
    again = relabel(*words, cwd=tmp_path)
    assert again.returncode == 0 and again.stdout.count("is finished: best top-1") == 2
    assert json.loads((out / "demo.json").read_text()) == results


@pytest.mark.slow
def test_the_annotator_can_be_made_from_scratch(tmp_path: Path) -> None:
    made = relabel(
        *("digits-annotator", "--out", "a.pth", "--work", "work", "--train", 128, "--val", 10),
        cwd=tmp_path,
    )
    assert made.returncode == 0, made.stderr
    fresh, shipped = load_checkpoint(tmp_path / "a.pth"), load_checkpoint(ANNOTATOR)
    assert fresh.keys() == shipped.keys() and fresh["class_names"] == shipped["class_names"]
    assert (tmp_path / "a.pth").stat().st_size < 1_200_000
    shapes = [{name: tensor.shape for name, tensor in state["state_dict"].items()} for state in (fresh, shipped)]
    assert shapes[0] == shapes[1]


def test_the_shipped_annotator_knows_scenes_that_nobody_trained_on(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", seed=2, train=10, val=300)
    images = list_images(tmp_path / "scenes" / "val")
    state = load_checkpoint(ANNOTATOR)
    model = create_model(state["arch"], len(state["class_names"]))
    load_weights(model, state["state_dict"])
    loader = Loader(ImageDataset(images, CentreView(64, None)), TestBatches(300, 100, 0, 1), 0, CPU)
    assert evaluate(model, loader, Precision("O0", CPU)).top1_percent > 80
    assert state["class_names"] == images.class_names


def test_true_labels_are_those_of_the_scenes(tmp_path: Path) -> None:
    write_scenes(tmp_path / "scenes", train=10, val=20)
    images = list_images(tmp_path / "scenes" / "val")
    truth = true_labels(images, tmp_path / "scenes" / "val.json")
    entries = json.loads((tmp_path / "scenes" / "val.json").read_text())
    assert truth[np.arange(20), images.labels].all()
    for name, row in zip(map(images.name, range(len(images))), truth, strict=True):
        assert set(np.flatnonzero(row)) == set(entries[name]["labels"])
