"""README and docs: every command, Python block, link and file name in them is real."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from relabel.__main__ import COMMANDS
from relabel.config.load import fire_arguments, load_config
from relabel.config.schema import SCHEMA
from tests.conftest import ROOT
from tests.promises import PROMISES
from utils.config.tool_commands import Command

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
FOLDERS = "IMAGENET SHARDS PHOTOS MORE_PHOTOS IMAGES LABELS FILES MORE MORE_LABELS DATA PICTURES ANNOTATIONS CIFAR10 "
FOLDERS += "IMAGEWOOF V2 A R C"
FILES = "W.pth runs/plain/checkpoint-last.pth runs/relabel/checkpoint-last.pth runs/plain/config.yaml "
FILES += "runs/relabel/config.yaml "
FILES += "FIRST.csv SECOND.csv agreeing.txt classes.tsv real.json human_accuracy_v3.0.0.json "
FILES += "runs/teacher/checkpoint-best.pth"
NO_TESTS = ("test_NAME", "test_only", "test_size", "test_weight_file")
TOOLS = {command.name: command for command in [Command.of(function) for function in COMMANDS]}


def command_lines() -> list[str]:
    """Return the command lines of all pages: indented lines, and inline code that has arguments."""
    lines: set[str] = set()
    for text in TEXTS.values():
        text = text.replace("\\\n", " ")
        indented = re.findall(
            r"^ {4}((?:python -m relabel|relabel|python main|torchrun|make) ?.*?)(?:  #.*)?$", text, re.MULTILINE
        )
        inline = re.findall(r"`((?:python|torchrun|relabel) [^`\n]*(?:--| [A-Z]{3})[^`\n]*|make \w+)`", text)
        lines.update(" ".join(line.split()) for line in indented + inline)
    return sorted(lines)


def python_blocks(text: str) -> list[str]:
    """Return the Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


class LightningTrainer:
    """Stands in for Lightning's, which is not a requirement: one step on the first batch."""

    def __init__(self, max_epochs: int) -> None:
        """Ignore the number of epochs."""

    def fit(self, module: nn.Module, batches: Iterable[object]) -> None:
        optimizer = module.configure_optimizers()  # type: ignore[operator]
        module.training_step(next(iter(batches)), 0).backward()  # type: ignore[operator]
        optimizer.step()


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture
def placeholders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders and files that command lines name, in the current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for folder in [*FOLDERS.split(), "runs/teacher"]:
        for split in ("train", "val"):
            (tmp_path / folder / split).mkdir(parents=True)
    for file in FILES.split():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    return tmp_path


@pytest.mark.parametrize("line", command_lines())
@pytest.mark.usefixtures("placeholders")
def test_every_command_is_accepted_by_its_parser(line: str) -> None:
    words = shlex.split(re.sub(r"\bFILE\b", "configs/base.yaml", line))
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    elif re.search("relabel (train|evaluate) ", line) or ("main.py" in words and "--help" not in words):
        first = words.index("main.py") + 1 if "main.py" in words else words.index("relabel") + 2
        flags = dict(word[2:].split("=", 1) for word in fire_arguments(words[first:]))
        file = flags.pop("config_file_path", "")
        with pytest.raises(SystemExit) if "util.print_config" in flags else nullcontext():
            load_config(file, {"data.data_path": "IMAGENET", "data.relabel.path": "LABELS"} | flags)
    elif "relabel" in words and words != ["relabel", "--version"]:
        name, *rest = words[words.index("relabel") + 1 :]
        TOOLS[name].parse(rest, "python -m relabel")


@pytest.mark.parametrize("page", [page for page, text in TEXTS.items() if python_blocks(text)])
def test_python_blocks_run(page: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("PHOTOS").symlink_to(photos)
    Path("LABELS").symlink_to(photos / "labels")
    torch.save({k: v for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}, "backbone.pth")
    torch.save(nn.Linear(3, 3), "network.pth")
    monkeypatch.setitem(
        sys.modules,
        "lightning",
        SimpleNamespace(LightningModule=nn.Module, Trainer=LightningTrainer),
    )
    layer = nn.Linear(3, 3)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), layer)
    names = {"model": model, "labels": torch.zeros(30, dtype=torch.int64)}
    for block in python_blocks(TEXTS[page]):
        model.zero_grad()
        code = block.replace("n02086240/n02086240_1001", "ant/ant.00").replace("num_workers=4", "num_workers=0")
        exec(code.replace("batch_size=64", "batch_size=30"), names)
        trains = ".backward()" in block or ".fit(" in block
        assert (layer.weight.grad is not None) == trains or page in ("evaluating.md", "networks.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_file_names_and_keys_exist(page: Path) -> None:
    text = TEXTS[page.name]
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        if not target.startswith("https:"):
            linked = page.parent / file if file else page
            assert linked.exists(), target
            assert not anchor or anchor in headings(linked.read_text(encoding="utf-8")), target
    for name in re.findall(r"(?<![\w/.])(?:relabel|utils|models|configs|tests|benchmarks|docs|\.ci)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\btest_\w+", text):
        assert name in NO_TESTS or list((ROOT / "tests").rglob(f"{name}.py")), name
    for program in re.findall(r"benchmarks\.([a-z_0-9]+)", text):
        assert (ROOT / "benchmarks" / f"{program}.py").exists(), program
    for key in re.findall(r"[`-]((?:model|data|optim|compute|util|eval)\.[a-z_0-9.]+[a-z_0-9])(?=[` ])", text):
        assert key in SCHEMA.types or key == "model.safetensors", key


def test_make_help_names_every_target_in_80_columns() -> None:
    out = subprocess.run(["make", "--silent"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = re.findall(r"^(?!\.)([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert re.findall(r"^make ([\w-]+)", out, re.MULTILINE) == targets
    assert max(map(len, out.splitlines())) <= 80


def test_the_readme_is_short_and_lists_every_command_and_page() -> None:
    text = TEXTS["README.md"]
    assert len(text.splitlines()) <= 200 and len(text.split()) <= 1800
    assert [name for name in TOOLS if f"`python -m relabel {name}" not in text] == []
    assert [page for page in TEXTS if page != "README.md" and f"(docs/{page})" not in text] == []


def test_promises_and_recipes_are_those_that_exist() -> None:
    listed = re.findall(r"^\| (\d+) \| ([^|]+?) \|", TEXTS["reliability.md"], re.MULTILINE)
    assert listed == [(str(number), promise.title) for number, promise in enumerate(PROMISES, start=1)]
    recipes = set(re.findall(r"^\| configs/(\w+\.yaml) \|", TEXTS["recipes.md"], re.MULTILINE))
    assert recipes == {path.name for path in (ROOT / "configs").glob("*.yaml")} - {"base.yaml"}
