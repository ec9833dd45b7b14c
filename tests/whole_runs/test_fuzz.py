"""Some hundred cases of each target of tests/fuzz.py; its findings are cases in the tests of their readers."""

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
from tests.fuzz import TARGETS, fuzz
from tests.fuzz_targets import Target
from utils.errors import UserError

USUAL_CASES = {"label_map": 800, "packed_store": 1000, "config": 400, "published_labels": 800, "boxes": 2000}
USUAL_CASES |= {"image": 600, "tables": 2000, "checkpoint": 1200}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_a_reader_gives_a_valid_value_or_a_user_error(target: str, tried: Tried) -> None:
    outcome = fuzz(target, cases=cases(USUAL_CASES[target]), seed=2021)
    tried(outcome.cases)
    assert outcome.findings == []
    assert outcome.cases == cases(USUAL_CASES[target]) and 0.03 < outcome.accepted / outcome.cases < 0.9


def write_a_file(folder: Path) -> None:
    (folder / "a.file").write_bytes(b"a valid file")


def raise_other(path: Path) -> None:
    raise KeyError("class_names")


def say_nothing(path: Path) -> None:
    raise UserError("")


def write_beside(path: Path) -> None:
    path.with_suffix(".cache").write_text("written while reading")


def start_program(path: Path) -> None:
    subprocess.run(["true"], check=True)


def take_memory(path: Path) -> None:
    np.ones(2**26)


def hang(path: Path) -> None:
    time.sleep(60)


def die(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (raise_other, "KeyError: 'class_names'"),
        (say_nothing, "a UserError that says nothing"),
        (write_beside, "did what no reader does: open"),
        (start_program, "did what no reader does: subprocess"),
        (take_memory, "MiB of memory"),
        (hang, "the process died: status -14"),
        (die, "the process died: status -9"),
    ],
)
def test_what_no_reader_may_do_is_found(
    monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], None], told: str
) -> None:
    monkeypatch.setitem(TARGETS, "careless", Target(write_a_file, read))
    if read is hang:
        monkeypatch.setattr(module, "PATIENCE_S", 1)
    outcome = fuzz("careless", cases=3)
    assert outcome.cases == 3 and outcome.accepted in (0, 3)
    assert any(told in what for *_, what in outcome.findings), outcome.findings


def test_a_case_is_the_same_wherever_it_is_made() -> None:
    files = {"a.file": b"a valid file", "b.file": bytes(range(256))}
    made = [module.case_of("careless", 5, number, files, (b"token",)) for number in range(50)]
    assert made == [module.case_of("careless", 5, number, files, (b"token",)) for number in range(50)]
    assert len({content for _, content in made}) > 40
