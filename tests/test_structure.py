"""The order in which the code is read is the order in which it is imported, and the README lists it so."""

import ast
import re
from pathlib import Path

import pytest

from tests.promises import PROMISES

ROOT = Path(__file__).resolve().parents[1]
LAYERS = ["utils", "models", "relabel", "main"]
# A file imports only files above it.
READING_ORDER = [
    "crop_box",
    "label_map",
    "label_manifest",
    "label_folder",
    "packed_store",
    "packed_writer",
    "label_store",
    "jpeg_rows",
    "decode",
    "augment",
    "dataset",
    "keep_list",
    "extra_images",
    "skipped_images",
    "loader",
    "label_pooling",
    "targets",
    "cutmix",
    "evaluation",
    "trainer",
    "build",
    "failures",
    "class_labels",
    "predictions",
    "evaluation_results",
    "published_labels",
    "published_sets",
    "true_labels",
    "evaluation_run",
    "runs",
    "comparison",
    "model_export",
    "teacher",
    "annotator",
    "label_set",
    "target_change",
    "packing",
    "label_export",
    "object_boxes",
    "map_sample",
    "integrity",
    "suggestion",
    "calibration",
    "crop_quality",
    "axis_check",
    "report",
    "report_tables",
    "panels",
    "viewer",
    "axes_figure",
    "gallery",
    "comparison_sheet",
    "small_pictures",
    "scenes",
    "results_figure",
    "reproduction_results",
    "reproduction",
    "tool_words",
    "label_map_tools",
    "network_tools",
    "scene_tools",
    "__main__",
]


def imported(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return {name for name in names if name.partition(".")[0] in LAYERS}


def test_every_file_of_relabel_has_its_place() -> None:
    assert {path.stem for path in (ROOT / "relabel").glob("*.py")} - {"__init__"} == set(READING_ORDER)


@pytest.mark.parametrize("name", READING_ORDER)
def test_a_file_imports_only_files_above_it(name: str) -> None:
    above = set(READING_ORDER[: READING_ORDER.index(name)])
    modules = {m.split(".")[1] for m in imported(ROOT / "relabel" / f"{name}.py") if m.startswith("relabel.")}
    assert modules & set(READING_ORDER) <= above


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_one_way(layer: str) -> None:
    files = [ROOT / "main.py"] if layer == "main" else sorted((ROOT / layer).glob("*.py"))
    allowed = set(LAYERS[: LAYERS.index(layer) + 1])
    for path in files:
        assert {module.partition(".")[0] for module in imported(path)} <= allowed, path


def test_the_readme_lists_the_files_in_reading_order() -> None:
    listed = re.findall(r"^\s+relabel/(\w+)\.py", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == READING_ORDER


def test_each_source_file_has_a_test_file() -> None:
    tests = {path.name for path in (ROOT / "tests").glob("test_*.py")}
    covered_by = {"__main__": "tools", "trainer": "runs", "errors": "main"}
    covered_by |= dict.fromkeys(("config_file", "config_problems", "config_rules", "config_schema"), "config")
    covered_by |= {
        "frozen_munch": "config",
        "command_line": "wrong_commands",
        "torchrun": "wrong_commands",
        "tool_parameters": "tool_commands",
    }
    covered_by |= dict.fromkeys(("packed_writer", "label_manifest", "label_store"), "packed_store")
    covered_by |= dict.fromkeys(("tool_words", "label_map_tools", "network_tools", "scene_tools"), "tools")
    covered_by |= {
        "failures": "processes",
        "target_change": "packing",
        "reproduction_results": "reproduction",
        "folders": "runs",
    }
    for layer in ("utils", "models", "relabel"):
        for path in (ROOT / layer).glob("*.py"):
            if path.stem != "__init__":
                assert f"test_{covered_by.get(path.stem, path.stem)}.py" in tests, path


def test_the_readme_lists_the_promises_that_tests_attack() -> None:
    listed = re.findall(r"^\| (\d+)\. ([^|]+?) \|", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert listed == [(str(number), promise.title) for number, promise in enumerate(PROMISES, start=1)]
    for file, _, test in (name.partition("::") for promise in PROMISES for name in promise.tests):
        assert f"def {test}" in (ROOT / "tests" / f"{file}.py").read_text(encoding="utf-8"), (file, test)


def test_the_readme_is_complete() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"@\w+@|\bTODO\b", text)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
    for named in re.findall(r"(?:configs|relabel|models|utils|tests)/[\w/]+\.\w+", text):
        assert (ROOT / named).exists(), named
    for test in re.findall(r"(?<![\w.])test_\w+\b(?!\.py)", text):
        assert (ROOT / "tests" / f"{test}.py").exists(), test
