"""Some hundred cases of each target of tests/fuzz_targets.py; its findings are cases in the tests of their readers."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests import fuzz as module
from tests.conftest import Tried, cases
from tests.fuzz import TARGETS, fuzz, make_case
from tests.fuzz_targets import Target

USUAL_CASES = {"label_map": 800, "packed_store": 1000, "config": 400, "published_labels": 800, "boxes": 2000}
USUAL_CASES |= {"image": 600, "tables": 2000, "checkpoint": 1200}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_gives_a_valid_value_or_a_user_error(target: str, tried: Tried) -> None:
    outcome = fuzz(target, cases(USUAL_CASES[target]), seed=2021)
    tried(outcome.cases)
    assert outcome.findings == []
    assert outcome.cases == cases(USUAL_CASES[target]) and 0.03 < outcome.accepted / outcome.cases < 0.9


def write_a_file(folder: Path) -> None:
    (folder / "a.file").write_bytes(b"a valid file")


def raise_this(error: Exception) -> None:
    raise error


CARELESS: dict[str, tuple[Callable[[Path], object], str]] = {
    "raises": (lambda path: raise_this(KeyError("class_names")), "KeyError: 'class_names'"),
    "writes": (lambda path: path.with_suffix(".cache").write_text("written"), "did what no reader does: open"),
    "starts": (lambda path: subprocess.run(["true"], check=True), "did what no reader does: subprocess"),
    "grows": (lambda path: np.ones(2**26), "MiB of memory"),
    "hangs": (lambda path: time.sleep(60), "the process died: status -14"),
    "dies": (lambda path: os.kill(os.getpid(), signal.SIGKILL), "the process died: status -9"),
}


@pytest.mark.parametrize("name", CARELESS)
def test_what_no_reader_may_do_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    read, reported = CARELESS[name]
    monkeypatch.setitem(TARGETS, "careless", Target(write_a_file, read))
    if name == "hangs":
        monkeypatch.setattr(module, "PATIENCE_S", 1)
    outcome = fuzz("careless", cases=3)
    assert reported in outcome.findings[0]


def test_a_case_is_the_same_wherever_it_is_made() -> None:
    files = {"a.pt": b"a valid file", "b.pt": bytes(range(256))}
    first, second = ([make_case("label_map", files, 5, number) for number in range(50)] for _ in range(2))
    assert first == second and len({content for _, content in first}) > 40
