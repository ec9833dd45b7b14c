"""Every recipe opens with a true card, is valid, and trains a step.

A card says what the recipe is, its command, what it needs and costs, and what to expect.
"""

import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.train_step import random_batch
from relabel.config.load import load_config
from relabel.config.schema import SCHEMA
from relabel.data.extra_images import ExtraRoot
from relabel.data.images import ImageList
from relabel.training.build import TrainingData, make_trainer, train_loader
from relabel.training.network import training_input
from relabel.training.recipe import global_batch, make_recipe
from tests.conftest import ROOT
from utils.config.command_line import CommandLine
from utils.config.dotted_keys import flatten
from utils.precision import Precision
from utils.processes.distributed import Process
from utils.run_folder import Start

RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml")
# Recipes of one network differ in what the next tests check; a step of each network and optimizer is enough.
OF_NETWORKS = [
    r for r in RECIPES if re.search(r"/(digits|photos)/|woof/relabel_cutmix|relabel_train_(?!resnet(18|101)_)", r)
]
IMAGENET_IMAGES = 1_281_167
CPU = torch.device("cpu")
NO_STORE: Any = None  # no label map is read
ALONE = Process(0, 1, 0, 1, CPU)

Settings = dict[str, Any]
SGD: Settings = {
    "optim.optimizer": "sgd",
    "optim.nesterov": True,
    "optim.momentum": 0.9,
    "optim.bn.momentum": 0.9,
    "optim.warmup.lr": 0.0,
    "optim.warmup.epochs": 5,
    "optim.lr.decay_type": "cos",
    "optim.ema.decay": 0.0,
    "data.rrc_minimum": 0.08,
    "data.color_jitter": 0.4,
    "data.lighting": 0.1,
    "data.relabel.box_axes": "xy",
    "data.relabel.supervision": "localized_multi",
    "data.cutmix.prob": 0.0,
}
PAPER: Settings = SGD | {"optim.epochs": 300, "optim.batch_size": 1024, "optim.lr.init": 0.1, "optim.wd.base": 1e-4}
OURS: Settings = SGD | {"optim.epochs": 400, "optim.batch_size": 512, "optim.lr.init": 0.5, "optim.wd.base": 1e-5}
CUTMIX: Settings = {"optim.optimizer": "adamp", "optim.lr.init": 2e-3, "optim.wd.base": 1e-2}
CUTMIX |= {"data.cutmix.prob": 1.0, "data.cutmix.beta": 1.0, "data.cutmix.off_epoch": 5}
# Network, image size, the rest, and published top-1 %: on original labels, with ReLabel, with CutMix too (-: no row).
NETWORKS: list[tuple[str, int, Settings, str]] = [
    ("resnet18", 224, PAPER, "71.7 72.5 73.2"),
    ("resnet50", 224, PAPER, "77.5 78.9 80.2"),
    ("resnet101", 224, PAPER, "78.1 80.7 81.6"),
    ("rexnet_100", 224, OURS, "77.9 78.4 -"),
    ("efficientnet_b0", 224, OURS, "77.4 78.0 -"),
    ("efficientnet_b1", 240, OURS, "79.2 80.3 -"),
    ("efficientnet_b2", 260, OURS, "80.3 81.0 -"),
    ("efficientnet_b3", 300, OURS, "81.7 82.5 -"),
]


def _rows() -> dict[str, tuple[str, Settings]]:
    """Return the name of a recipe -> published top-1 and settings, for every row of the paper's tables."""
    rows: dict[str, tuple[str, Settings]] = {}
    for arch, size, settings, published in NETWORKS:
        network: Settings = {**settings, "model.arch": arch, "data.image_size": size, "optim.label_smoothing": 0.0}
        original, relabel, cutmix = published.split()
        rows[f"original_train_{arch}"] = (original, {**network, "data.relabel.use": False})
        rows[f"relabel_train_{arch}"] = (relabel, {**network, "data.relabel.use": True})
        if cutmix != "-":
            rows[f"relabel_train_{arch}_cutmix"] = (cutmix, {**network, **CUTMIX, "data.relabel.use": True})
    baseline, best = rows["original_train_resnet50"][1], rows["relabel_train_resnet50_cutmix"][1]
    rows["label_smoothing_train_resnet50"] = ("78.0", {**baseline, "optim.label_smoothing": 0.1})
    rows["label_cleaning_train_resnet50"] = ("78.1", {**baseline, "data.keep_list": "keep.txt"})
    rows["relabel_train_resnet50_cutmix_imagenet21k"] = ("81.2", {**best, "data.extra.share": 0.5})
    return rows


OF_THE_PAPER = _rows()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Flags for empty folders of the expected layout; lists of images are where the recipes expect them."""
    for folder in ("data/train", "data/val", "labels", "extra", "runs/digits", "runs/imagewoof"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("keep.txt", "runs/digits/agreeing.txt", "runs/imagewoof/agreeing.txt"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    flags = {"data.data_path": "data", "data.relabel.path": "labels", "data.extra.path": "extra"}
    return {key: str(tmp_path / name) for key, name in (flags | {"data.extra.labels": "extra"}).items()}


def card(recipe: str) -> str:
    """Return the comment lines before the first key, without their marks."""
    comment = re.match(r"(#.*\n)+", (ROOT / recipe).read_text())
    assert comment
    return re.sub(r"^# ?", "", comment[0], flags=re.MULTILINE)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_opens_with_a_card_whose_command_runs_it(
    recipe: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / recipe).read_text()
    parts = re.findall(r"^ *(Run|Needs|Cost|Expected): +\S", card(recipe), flags=re.MULTILINE)
    assert parts == ["Run", "Needs", "Cost", "Expected"]
    assert re.search(r"Expected:[^\n]*\d", card(recipe)), "a number to expect"
    assert re.search(r"\bpaper\b|\bours\b|\bby us\b|\bn = \d", card(recipe).partition("Expected:")[2]), "its source"
    assert 10 <= len(text.splitlines()) <= (30 if recipe.count("/") > 1 else 20)
    monkeypatch.chdir(ROOT)
    (command,) = re.findall(r"python main\.py (.*)", card(recipe))
    line = CommandLine(SCHEMA.flags).read(shlex.split(command))
    assert line.problems == [] and line.texts.pop("config_file_path") == recipe
    needed = {"data.data_path": folders["data.data_path"]}
    if not re.search(r"relabel:\s*(\{|\n\s+)use: False", text):
        needed["data.relabel.path"] = folders["data.relabel.path"]
    if "keep_list:" in text:
        needed["data.keep_list"] = __file__
    load_config(recipe, needed | {key: folders.get(key, text) for key, text in line.texts.items() if key not in needed})
    assert capsys.readouterr().err == "", "a recipe warns of nothing"


def test_every_recipe_for_imagenet_is_a_row_of_the_paper() -> None:
    assert {Path(recipe).stem for recipe in RECIPES if recipe.count("/") == 1} == {*OF_THE_PAPER, "own_photos"}


@pytest.mark.parametrize("name", list(OF_THE_PAPER))
def test_a_recipe_of_the_paper_has_the_papers_settings_and_schedule(name: str, folders: dict[str, str]) -> None:
    """The schedule on as many images as ImageNet has: rates of 0, the peak after the warm-up, half of it, 0."""
    accuracy, settings = OF_THE_PAPER[name]
    recipe = f"configs/{name}.yaml"
    text = card(recipe)
    assert f"Expected: {accuracy} % top-1 (paper" in text
    assert f"configs/{name}.yaml --data.data_path IMAGENET" in text and "data_path: ''" in (ROOT / recipe).read_text()
    assert ("--data.relabel.box_axes yx" in text) == settings["data.relabel.use"]
    assert ("Recipe:   ours" in text) == (settings["optim.epochs"] == 400)
    config = load_config(str(ROOT / recipe), folders)
    values = flatten(config.toDict())
    assert {key: values[key] for key in settings} == settings
    images, epochs = made_list(IMAGENET_IMAGES, 1000), config.optim.epochs
    extra = [ExtraRoot(images, NO_STORE)] if config.data.extra.share else []
    data, batch_size = TrainingData(images, images, extra=extra), global_batch(config, IMAGENET_IMAGES, ALONE)
    steps, _ = train_loader(config, data, batch_size, ALONE, 0, training_input(config, None, Start(seed=0)))
    assert f"{epochs * steps:,} updates ({epochs} epochs x {steps:,}" in text
    warm, peak, total = 5 * steps, settings["optim.lr.init"], epochs * steps
    rates = [
        make_recipe(config, steps, batch_size, seed=0).learning_rate(step)
        for step in (0, warm // 2, warm, (warm + total) // 2, total - 1)
    ]
    assert rates == pytest.approx([0, peak / 2, peak, peak / 2, 0], rel=1e-3, abs=1e-9)


def made_list(num_images: int, num_classes: int) -> ImageList:
    """Return a list of images that are never read."""
    names, labels = np.zeros(num_images, dtype="S1"), np.zeros(num_images, dtype=np.int32)
    return ImageList.of_folder(ROOT, [str(i) for i in range(num_classes)], names, labels)


@pytest.mark.parametrize("recipe", OF_NETWORKS)
def test_a_recipe_trains_a_step(recipe: str, folders: dict[str, str], tmp_path: Path) -> None:
    """Its own network, optimizer and targets, at the peak of its rate; ten of its batches are an epoch."""
    torch.set_num_threads(1)
    num_classes = 10 if recipe.count("/") > 1 else 1000
    flags = {"model.weights": "", "util.run_dir": str(tmp_path / "run")}
    config = load_config(str(ROOT / recipe), folders | flags)
    data = TrainingData(made_list(10 * config.optim.batch_size, num_classes), made_list(10, num_classes))
    trainer = make_trainer(config, data, Precision("O0", CPU), ALONE, {}, Start(seed=0))
    trainer.folder.mkdir()
    trainer.step = config.optim.warmup.epochs * trainer.recipe.steps_per_epoch
    parameters = [p for p in trainer.model.parameters() if p.ndim > 1]  # a bias before a batch norm has no gradient
    before = [parameter.detach().clone() for parameter in parameters]
    trainer.begin()
    batch = random_batch(2, 32, num_classes)
    if not config.data.relabel.use:
        batch = replace(batch, scores=None, classes=None)
    assert trainer.train_step([batch] * config.optim.accumulation).finite
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {config.optim.lr.init}
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert not any(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    trainer.log.close()
