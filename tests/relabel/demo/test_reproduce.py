"""The reproduction in small, and the teacher of the digit scenes."""

import json
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import teacher_quality
from models.build import create_model, load_weights
from relabel import __main__ as tools
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.folders import list_images
from relabel.data.loader import Loader, eval_batches
from relabel.demo.experiments import EXPERIMENTS, IMAGEWOOF, SHIPPED_TEACHER
from relabel.demo.reproduce import make_digits_teacher, reproduce
from relabel.demo.results import Student, summarise
from relabel.demo.scenes import write_scenes
from relabel.demo.small_images import DigitImages
from relabel.training.validation import evaluate
from tests.conftest import CLASSES, ROOT, environment, make_photos
from tests.miniatures import AS_IN_2021
from utils.checkpoint import load_checkpoint
from utils.errors import UserError
from utils.precision import Precision
from utils.processes.commands import Job
from utils.processes.distributed import Process

CPU = torch.device("cpu")


@pytest.fixture
def steps_in_this_process(monkeypatch: pytest.MonkeyPatch, own_handlers: None) -> None:
    """Run the steps of a reproduction without starting a process for each; every network learns for an epoch only."""

    def run_here(words: Sequence[str], folder: Path) -> None:
        if words[1] == "main.py":
            flags = {key.removeprefix("--"): value for key, value in zip(words[4::2], words[5::2], strict=True)}
            once = {"optim.epochs": "1", "optim.warmup.epochs": "0", "compute.num_workers": "0"}
            run(load_config(words[3], flags | once))
        else:
            tools.main(list(words[3:]))

    def run_all(jobs: Sequence[Job], folder: Path, at_once: int, threads: int | None, unit: str) -> None:
        for job in jobs:
            run_here(job.words, folder)

    monkeypatch.setattr("relabel.demo.reproduce.run_command", run_here)
    monkeypatch.setattr("relabel.demo.reproduce.run_side_by_side", run_all)
    monkeypatch.setattr("relabel.cli.run.FIGURES", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.mark.slow
def test_the_demo_in_small_ends_with_a_table_figures_and_their_paths(tmp_path: Path) -> None:
    words = ["--rows", "2", "--seeds", "1", "--train", "128", "--val", "10"]
    command = [sys.executable, "-m", "relabel", "reproduce", "--out", "demo", *words]
    settings = {**environment(), "PYTHONPATH": str(ROOT)}
    first = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    out = tmp_path / "demo"
    assert "-m relabel annotate" in first.stdout and "configs/digits/relabel.yaml" in first.stdout
    kinds = {"maps.png": "figures", "curves.png": "", "rows.png": "", "results.json": "numbers", "*-seed*": "runs"}
    assert "".join(f"{kind:<9}{out / name}\n" for name, kind in kinds.items()) in first.stdout
    assert min(Image.open(out / "maps.png").size) > 500
    results = json.loads((out / "results.json").read_text())
    assert [run["row"] for run in results["runs"]] == ["original labels", "ReLabel"]
    assert all(run["row"] in first.stdout.partition("supervision")[2] for run in results["runs"])
    assert all(0 <= run[name] <= 100 for run in results["runs"] for name in ("top1_percent", "map_percent"))
    assert all(run["top1_in_set_percent"] >= run["top1_percent"] for run in results["runs"])
    again = subprocess.run(command, capture_output=True, text=True, timeout=300, env=settings, cwd=tmp_path)
    assert again.returncode == 0, again.stderr  # nothing is trained twice, and nothing changes
    assert (out / "original-seed0.log").read_text().count("is finished") == 1
    assert json.loads((out / "results.json").read_text())["runs"] == results["runs"]


def test_imagewoof_in_tar_files_ends_with_the_same(
    tmp_path: Path, steps_in_this_process: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A miniature: noise, an untrained teacher, a small network, an epoch."""
    for split, name in (("train", "train-1"), ("train", "train-2"), ("val", "val")):
        part = tmp_path / name / split
        make_photos(part, dict.fromkeys(CLASSES, 6), np.random.default_rng(len(name)))
        for image in part.glob("*/*"):
            image.rename(image.with_stem(f"{name}-{image.stem}"))
        (tmp_path / "woof").mkdir(exist_ok=True)
        with tarfile.open(tmp_path / "woof" / f"{name}.tar", "w") as tar:
            tar.add(part, split)
    tiny = {"model.arch": "digit_net", "data.image_size": "16", "optim.batch_size": "12", "data.relabel.insist": "True"}
    random = ("--arch", "timm/resnet10t", "--weights", "random", "--size", "64x64")
    rows = [row for row in IMAGEWOOF.rows if row.recipe in ("original", "label_cleaning", "relabel_weak_annotator")]
    miniature = replace(IMAGEWOOF, rows=tuple(rows), seeds=1, teacher=random, weak_teacher=random, overrides=tiny)
    monkeypatch.setitem(EXPERIMENTS, "imagewoof", miniature)
    torch.manual_seed(0)  # of the teacher's weights
    out = tmp_path / "out"
    reproduce("imagewoof", tmp_path / "woof", out)
    assert {"labels.json", "labels-weak.json", "maps.png", "rows.png", "curves.png"} <= {p.name for p in out.iterdir()}
    results = json.loads((out / "results.json").read_text())
    assert results["settings"] == tiny and results["validation_images"] == 18
    assert [run["row"] for run in results["runs"]] == [row.title for row in rows]
    assert json.loads((out / "labels.json").read_text())["integrity"]["images"] == 36
    assert "95 % over images" in capsys.readouterr().out


def test_teachers_are_compared_by_the_gain_of_their_students(
    tmp_path: Path, steps_in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(teacher_quality, "EARLY", (1,))
    words = ["digits", "--tiny", "--out", "out", "--figure", "a.png", "--json", "a.json"]
    monkeypatch.setattr(sys, "argv", ["teacher_quality", *words])
    monkeypatch.chdir(tmp_path)
    teacher_quality.main()
    poor, good = json.loads((tmp_path / "a.json").read_text())["points"]
    assert (poor["teacher"], good["teacher"]) == ("1 epoch", "20 epochs") and Path("a.png").is_file()
    assert poor["verdict"] != "no objection" == good["verdict"]
    assert poor["agreement_percent"] < good["agreement_percent"] and -100 <= good["gain_points"] <= 100


def test_every_row_is_a_recipe_and_there_are_no_more() -> None:
    for experiment in (EXPERIMENTS[name] for name in ("digits", "photos", "imagewoof")):
        recipes = {path.stem for path in (ROOT / "configs" / experiment.name).glob("*.yaml")}
        assert {row.recipe for row in experiment.rows} == recipes - {"annotator", "fine_tune"}
        assert [row.recipe for row in experiment.rows[:2]] == ["original", "relabel"]  # the demo's


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        ({"on": "digits", "num_rows": 10}, "found --rows 10; expected at most 9"),
        ({"on": "digits", "images": ROOT}, "--on photos"),
        ({"on": "photos"}, "--images FOLDER"),
        ({"on": "imagewoof-small"}, "--images FOLDER"),
        ({"on": "imagewoof", "images": ROOT, "train": 100}, "Leave them out"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags: dict[str, Any], match: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=match):
        reproduce(**flags, out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_gains_are_paired_by_seed_and_by_image() -> None:
    """Of four images; with seed 0 ReLabel gains one, with seed 1 two."""
    correct = {("original", 0): "1100", ("original", 1): "1000", ("ReLabel", 0): "1110", ("ReLabel", 1): "1110"}
    students = [
        Student(row, seed, {"top1_percent": 25.0 * bits.count("1")}, np.array([*bits]) == "1", 0, "")
        for (row, seed), bits in correct.items()
    ]
    first, second = summarise(students)
    assert first["top1_gain_points"]["value"] == 0 and second["top1_percent"]["mean"] == 75
    assert second["top1_gain_points"]["value"] == second["top1_gain_points_over_images"]["value"] == 37.5
    assert second["top1_gain_points"]["standard_error"] == pytest.approx(12.5)  # of 25 and 50
    images = np.array([0, 50, 100, 0])
    assert second["top1_gain_points_over_images"]["standard_error"] == pytest.approx(images.std(ddof=1) / 2)


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
