"""A person can read the report: nothing is cut off, and what is wrong stands last."""

import re
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from relabel.checks.report import Report, Settings, make_report
from relabel.checks.report_tables import print_report
from tests.relabel.checks.test_report import Boxes, label_set, maps, write_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images"))


def good(folder: Path) -> Report:
    """With both tests of the axes."""
    report = make_report(label_set(maps(), folder), Settings(), boxes=Boxes(), teacher_top1_percent=90.0)
    return replace(report, axes=[*report.axes, replace(report.axes[0], evidence="a classifier")])


def bad(folder: Path) -> Report:
    """Small logits, another teacher's accuracy, a damaged map of a long name with markup in it."""
    found = maps(logit=0.5)
    found[3] = "x" * 150 + "[/bold]: damaged"
    return make_report(label_set(found, folder), Settings(), boxes=Boxes(), teacher_top1_percent=150.0)


def empty(folder: Path) -> Report:
    """No map can be read, and no images are at hand."""
    return make_report(label_set([None] * 36, None), Settings(), boxes=Boxes())


def printed(report: Report, width: int) -> str:
    console = Console(width=width, file=StringIO(), force_terminal=False)
    print_report(report, console)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("make", [good, bad, empty])
def test_nothing_is_cut_off_and_nothing_overflows(make: Callable[[Path], Report], folder: Path, width: int) -> None:
    report = make(folder)
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    squeezed = re.sub(r"\s+", "", text)
    reason = report.calibration.suggestion.reason if report.calibration else ""
    for sentence in (*report.problems, *report.notes, reason):
        assert re.sub(r"\s+", "", sentence) in squeezed


def test_what_is_wrong_stands_last(folder: Path) -> None:
    lines = printed(empty(folder), 100).rstrip().splitlines()
    assert lines[-1].strip() == "- There is no label map that can be read."
    assert "2 problems" in lines
    assert printed(good(folder), 100).rstrip().endswith("Nothing is wrong with these label maps.")


def test_brackets_are_no_markup(folder: Path) -> None:
    assert printed(good(folder), 100).count("[row, column]") >= 4
    assert "[/bold]" in printed(bad(folder), 300)


def test_what_was_not_measured_is_not_shown(folder: Path) -> None:
    text = printed(empty(folder), 100)
    assert "Targets" not in text and "EXIF" not in text and "Which way" not in text
