"""Every recipe validates and opens with a card: what it is, the command, what it needs and costs, what to expect."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from utils.command_line import parse_command_line
from utils.config import load_config
from utils.config_schema import flatten

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.yaml") if path.name != "base.yaml")
SHARED = {"optim.epochs": 300, "optim.batch_size": 1024, "optim.nesterov": True, "optim.warmup.epochs": 5}
SGD = {**SHARED, "optim.optimizer": "sgd", "optim.lr.init": 0.1, "optim.wd.base": 1e-4, "data.cutmix.prob": 0.0}
OF_THE_PAPER: dict[str, tuple[str, dict[str, Any]]] = {
    "relabel_train_resnet50": ("78.9", {**SGD, "data.relabel.use": True, "optim.label_smoothing": 0.0}),
    "relabel_train_resnet50_cutmix": (
        "80.2",
        {
            **SHARED,
            "data.relabel.use": True,
            "optim.optimizer": "adamp",
            "optim.lr.init": 2e-3,
            "optim.wd.base": 1e-2,
            "data.cutmix.prob": 1.0,
            "data.cutmix.beta": 1.0,
            "data.cutmix.off_epoch": 5,
        },
    ),
    "original_train_resnet50": ("77.5", {**SGD, "data.relabel.use": False, "optim.label_smoothing": 0.0}),
    "label_smoothing_train_resnet50": ("78.0", {**SGD, "data.relabel.use": False, "optim.label_smoothing": 0.1}),
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Flags that name empty folders of the expected layout."""
    for folder in ("data/train", "data/val", "labels"):
        (tmp_path / folder).mkdir(parents=True)
    return {"data.data_path": str(tmp_path / "data"), "data.relabel.path": str(tmp_path / "labels")}


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
    longest = 30 if "digits" in recipe else 20
    assert 10 <= len((ROOT / recipe).read_text().splitlines()) <= longest


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_command_on_the_card_runs_this_recipe(
    recipe: str, folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = parse_command_line(card_command(recipe))
    assert line.problems == []
    flags = {key: folders.get(key, text) for key, text in line.texts.items() if key != "config_file_path"}
    assert line.texts["config_file_path"] == recipe
    load_config(recipe, {"data.data_path": folders["data.data_path"], **_maps(recipe, folders), **flags})
    assert capsys.readouterr().err == "", "a recipe warns of nothing"


def _maps(recipe: str, folders: dict[str, str]) -> dict[str, str]:
    """The flag for label maps where the recipe uses them, so that the folder on the card need not be there."""
    used = not re.search(r"relabel:\s*(\{|\n\s+)use: False", (ROOT / recipe).read_text())
    return {"data.relabel.path": folders["data.relabel.path"]} if used else {}


@pytest.mark.parametrize("name", list(OF_THE_PAPER))
def test_a_recipe_of_the_paper_says_what_the_paper_says(name: str, folders: dict[str, str]) -> None:
    accuracy, settings = OF_THE_PAPER[name]
    recipe = f"configs/{name}.yaml"
    assert f"Expected: {accuracy} % top-1 (paper" in card(recipe)
    values = flatten(load_config(str(ROOT / recipe), folders).toDict())
    assert {key: values[key] for key in settings} == settings


def test_recipes_leave_data_to_the_command_line() -> None:
    for name in OF_THE_PAPER:
        assert "data_path: ''" in (ROOT / f"configs/{name}.yaml").read_text()
        assert card_command(f"configs/{name}.yaml")[2:4] == ["--data.data_path", "IMAGENET"]
