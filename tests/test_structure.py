"""The order of the rooms: who may import whom, and that each room has its tests."""

import ast
import re
from pathlib import Path

import pytest

from relabel.config.schema import SCHEMA
from tests.conftest import ROOT
from tests.promises import PROMISES

LAYERS = ["utils", "models", "relabel", "main"]
PAPER = ["crop_box", "label_map", "label_pooling", "targets", "augment", "cutmix"]
KERNELS = ["augment_kernel"]  # of the paper's files, for a GPU
ROOMS = ["config", "stores", "data", "training", "evaluation", "annotation", "checks", "figures", "demo", "cli"]
OF_OURS = r"(?i)label.?map|relabel|teacher|annotator|\bannotate\b|crop"
SOURCES = [ROOT / "main.py", *(path for layer in LAYERS[:3] for path in sorted((ROOT / layer).rglob("*.py")))]


def imported(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def floor(module: str) -> int:
    """The place of a module of ours in the order of import."""
    layer, _, rest = module.partition(".")
    if layer != "relabel" or not rest:
        return {"utils": 0, "models": 1, "relabel": 2, "main": 99}[layer]
    room = rest.partition(".")[0]
    return 3 + ROOMS.index(room) if room in ROOMS else 98 if room == "__main__" else 2


def ours(path: Path) -> str:
    """The dotted name of a source file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_rooms_are_those_of_the_architecture() -> None:
    assert {path.stem for path in (ROOT / "relabel").glob("*.py")} == {*PAPER, *KERNELS, "__init__", "__main__"}
    assert {path.parent.name for path in (ROOT / "relabel").glob("*/*.py")} == set(ROOMS)


@pytest.mark.parametrize("path", SOURCES, ids=ours)
def test_imports_point_one_way(path: Path) -> None:
    modules = {name for name in imported(path) if name.partition(".")[0] in LAYERS}
    assert [name for name in modules if floor(name) > floor(ours(path))] == []


@pytest.mark.parametrize("name", [*PAPER, *KERNELS])
def test_the_papers_files_need_only_torch_and_numpy(name: str) -> None:
    allowed = {"torch", "numpy", "triton", "__future__", "collections", "dataclasses", "functools", "itertools", "math"}
    allowed |= {"typing", "enum"}
    modules = imported(ROOT / "relabel" / f"{name}.py")
    assert {m.partition(".")[0] for m in modules} <= allowed | {"relabel"}
    assert {m for m in modules if m.startswith("relabel")} <= {f"relabel.{other}" for other in [*PAPER, *KERNELS]}


@pytest.mark.parametrize("path", sorted((ROOT / "utils").rglob("*.py")), ids=ours)
def test_utils_knows_no_key_and_no_concept_of_ours(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert [key for key in SCHEMA.types if re.search(rf"(?<![\w.]){re.escape(key)}(?![\w(])", text)] == []
    assert re.findall(OF_OURS, text) == []


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.name == "__init__.py" and p.parent != ROOT / "relabel"], ids=ours
)
def test_a_rooms_init_says_what_it_is_for_and_holds_no_code(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert len(tree.body) == 1 and ast.get_docstring(tree)


@pytest.mark.parametrize("room", ["models", "relabel", "utils", *(f"relabel/{room}" for room in ROOMS)])
def test_every_room_has_its_tests(room: str) -> None:
    assert list((ROOT / "tests" / room).glob("test_*.py"))


def test_every_test_of_a_promise_exists() -> None:
    for file, _, test in (name.partition("::") for promise in PROMISES for name in promise.tests):
        assert f"def {test}" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), (file, test)
