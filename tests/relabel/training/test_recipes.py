"""Every recipe opens with a card that says what is true of it, validates, and trains a step.

A card says what the recipe is, its command, what it needs and costs, and what to expect.
"""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relabel.config.load import load_config
from relabel.config.schema import SCHEMA
from relabel.data.images import ImageList
from relabel.data.loader import Batch
from relabel.data.skipped_images import SkippedImages
from relabel.training.build import build_model, make_optimizer, make_recipe
from relabel.training.trainer import Trainer
from tests.conftest import ROOT
from utils.config.command_line import parse_command_line
from utils.config.schema import flatten
from utils.precision import Precision
from utils.processes.distributed import Process

RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml")
IMAGENET_IMAGES = 1_281_167

Settings = dict[str, Any]
ALWAYS: Settings = {
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
}
SGD: Settings = {"optim.optimizer": "sgd", "data.cutmix.prob": 0.0, **ALWAYS}
PAPER: Settings = {"optim.epochs": 300, "optim.batch_size": 1024, "optim.lr.init": 0.1, "optim.wd.base": 1e-4, **SGD}
OURS: Settings = {"optim.epochs": 400, "optim.batch_size": 512, "optim.lr.init": 0.5, "optim.wd.base": 1e-5, **SGD}
CUTMIX: Settings = {
    **PAPER,
    "optim.optimizer": "adamp",
    "optim.lr.init": 2e-3,
    "optim.wd.base": 1e-2,
    "data.cutmix.prob": 1.0,
    "data.cutmix.beta": 1.0,
    "data.cutmix.off_epoch": 5,
}
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
    """Name of a recipe -> published top-1 and settings, of every row of the paper's tables."""
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


KEEP_LISTS = ("keep.txt", "runs/digits/agreeing.txt")


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Flags that name empty folders of the expected layout; lists of images are where the recipes expect them."""
    for folder in ("data/train", "data/val", "labels", "extra", "runs/digits"):
        (tmp_path / folder).mkdir(parents=True)
    for name in KEEP_LISTS:
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    extra = str(tmp_path / "extra")
    return {
        "data.data_path": str(tmp_path / "data"),
        "data.relabel.path": str(tmp_path / "labels"),
        "data.extra.path": extra,
        "data.extra.labels": extra,
    }


def is_for_imagenet(recipe: str) -> bool:
    """Recipes for ImageNet stand in configs itself, those for data made here in folders below it."""
    return Path(recipe).parent.name == "configs"


def card(recipe: str) -> str:
    """The comment lines before the first key, without their marks."""
    lines = (ROOT / recipe).read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(line.lstrip("# ") for line in lines[:count])


def card_command(recipe: str) -> list[str]:
    """The words of the card's main.py command, after the program."""
    (command,) = re.findall(r"python main\.py (.*)", card(recipe))
    return shlex.split(command)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_opens_with_a_card(recipe: str) -> None:
    parts = re.findall(r"^(Run|Needs|Cost|Expected):\s+\S", card(recipe), flags=re.MULTILINE)
    assert parts == ["Run", "Needs", "Cost", "Expected"]
    assert re.search(r"Expected:[^\n]*\d", card(recipe)), "a number to expect"
    assert re.search(r"\bpaper\b|\bours\b|\bby us\b|\bn = \d", card(recipe).partition("Expected:")[2]), "its source"
    longest = 20 if is_for_imagenet(recipe) else 30
    assert 10 <= len((ROOT / recipe).read_text().splitlines()) <= longest


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_on_the_card_runs_this_recipe(
    recipe: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = parse_command_line(card_command(recipe), SCHEMA.flags)
    assert line.problems == []
    flags = {key: folders.get(key, text) for key, text in line.texts.items() if key != "config_file_path"}
    assert line.texts["config_file_path"] == recipe
    load_config(recipe, {"data.data_path": folders["data.data_path"], **_inputs(recipe, folders), **flags})
    assert capsys.readouterr().err == "", "a recipe warns of nothing"


def _inputs(recipe: str, folders: dict[str, str]) -> dict[str, str]:
    """Flags for label maps and the list of images where the recipe uses them: what its card names need not be there."""
    text = (ROOT / recipe).read_text()
    maps = not re.search(r"relabel:\s*(\{|\n\s+)use: False", text)
    flags = {"data.relabel.path": folders["data.relabel.path"]} if maps else {}
    return flags | ({"data.keep_list": __file__} if "keep_list:" in text else {})


@pytest.mark.parametrize("name", list(OF_THE_PAPER))
def test_a_recipe_of_the_paper_says_what_the_paper_says(name: str, folders: dict[str, str]) -> None:
    accuracy, settings = OF_THE_PAPER[name]
    recipe = f"configs/{name}.yaml"
    assert f"Expected: {accuracy} % top-1 (paper" in card(recipe)
    values = flatten(load_config(str(ROOT / recipe), folders).toDict())
    assert {key: values[key] for key in settings} == settings
    assert ("--data.relabel.box_axes yx" in card(recipe)) == settings["data.relabel.use"]
    assert ("Recipe:   ours" in card(recipe)) == (settings["optim.epochs"] == 400)


def test_every_recipe_for_imagenet_is_a_row_of_the_paper() -> None:
    assert {Path(recipe).stem for recipe in RECIPES if is_for_imagenet(recipe)} == set(OF_THE_PAPER)


def test_recipes_leave_data_to_the_command_line() -> None:
    for name in OF_THE_PAPER:
        assert "data_path: ''" in (ROOT / f"configs/{name}.yaml").read_text()
        assert card_command(f"configs/{name}.yaml")[2:4] == ["--data.data_path", "IMAGENET"]


@pytest.mark.parametrize("name", list(OF_THE_PAPER))
def test_the_schedule_of_a_row_runs_as_its_card_says(name: str, folders: dict[str, str]) -> None:
    """On as many images as ImageNet has: updates as on the card; rates 0, the peak after the warm-up, half of it, 0."""
    config = load_config(str(ROOT / f"configs/{name}.yaml"), folders)
    recipe = make_recipe(config, made_list(IMAGENET_IMAGES, 1000), config.optim.batch_size, seed=0)
    assert f"{recipe.total_steps:,} updates ({recipe.epochs} epochs x {recipe.steps_per_epoch:,}" in card(
        f"configs/{name}.yaml"
    )
    warm = 5 * recipe.steps_per_epoch
    middle = (warm + recipe.total_steps) // 2
    peak = OF_THE_PAPER[name][1]["optim.lr.init"]
    rates = [recipe.learning_rate(step) for step in (0, warm // 2, warm, middle, recipe.total_steps - 1)]
    assert rates == pytest.approx([0, peak / 2, peak, peak / 2, 0], rel=1e-3, abs=1e-9)
    assert recipe.cutmix_epochs == (295 if "cutmix" in name else recipe.epochs - 5)


def made_list(num_images: int, num_classes: int) -> ImageList:
    """Images that nobody reads."""
    names, labels = np.zeros(num_images, dtype="S1"), np.zeros(num_images, dtype=np.int32)
    return ImageList(ROOT, [str(i) for i in range(num_classes)], names, labels)


def batch_of(config: Any, num_classes: int) -> Batch:
    """Two made images, 32 pixels wide, the second one without label where the recipe has extra images."""
    generator = torch.Generator().manual_seed(0)
    size = (2, 5, 15, 15)
    use = config.data.relabel.use
    return Batch(
        images=torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator),
        labels=torch.tensor([1, -1 if config.data.extra.share else 0]),
        boxes=torch.tensor([[0.1, 0.2, 0.6, 0.9], [0.0, 0.0, 1.0, 1.0]]),
        scores=10 * torch.rand(size, generator=generator) if use else None,
        classes=torch.rand(2, num_classes, 15, 15, generator=generator).topk(5, dim=1).indices if use else None,
        flips=None,
        jitter_orders=None,
        jitter_factors=None,
        lighting=None,
        indices=torch.tensor([0, 1]),
    )


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_a_step(recipe: str, folders: dict[str, str], tmp_path: Path) -> None:
    """Its own network, optimizer and targets, at the peak of its rate; ten of its batches are an epoch."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    num_classes = 1000 if is_for_imagenet(recipe) else 10
    config = load_config(str(ROOT / recipe), folders | {"model.weights": ""})
    precision = Precision("O0", torch.device("cpu"))
    model = build_model(config, num_classes, precision)
    images = made_list(10 * config.optim.batch_size, num_classes)
    trainer = Trainer(
        model=model,
        optimizer=make_optimizer(config, model, precision.device),
        recipe=make_recipe(config, images, config.optim.batch_size, seed=0),
        precision=precision,
        process=Process(0, 1, 0, 1, precision.device),
        train_batches=lambda step: [],
        test_batches=list,
        skipped_images=SkippedImages(tmp_path, len(images)),
        folder=tmp_path,
        identity={},
    )
    trainer.step = config.optim.warmup.epochs * trainer.recipe.steps_per_epoch
    parameters = [p for p in model.parameters() if p.ndim > 1]  # a bias before a batch-norm has no gradient
    before = [parameter.detach().clone() for parameter in parameters]
    trainer.begin()
    assert trainer.train_step([batch_of(config, num_classes)] * config.optim.accumulation).finite
    assert [group["lr"] for group in trainer.optimizer.param_groups] == [config.optim.lr.init]
    assert all(parameter.isfinite().all() for parameter in parameters)
    assert not any(torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    trainer.log.close()
