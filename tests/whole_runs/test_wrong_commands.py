"""A wrong command does nothing: all lines of tests/wrong_commands.py, in one fresh process and some in their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from relabel.config.load import BASE_FILE, load_config
from tests.conftest import ROOT
from tests.wrong_commands import FOLDERS, HELP, WRONG, Case, put_folders, words
from utils.errors import UserError

Outcomes = list[dict[str, Any]]


def python(*argv: str, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run Python in a folder; neither torchrun's variables nor the caller's locale reach it."""
    inherited = {name: text for name, text in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = inherited | {"PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    command = [sys.executable, *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """What each line of WRONG and HELP did, one after the other in one process."""
    done = python("-m", "tests.wrong_commands", folder=tmp_path_factory.mktemp("here"))
    assert done.returncode == 0, done.stderr
    found: Outcomes = json.loads(done.stdout)
    return found


def shown(case: Case) -> str:
    """A name for the test."""
    return " ".join(case.argv)[-60:].encode("ascii", "backslashreplace").decode() or "nothing"


@pytest.mark.parametrize("number", range(len(WRONG)), ids=lambda i: f"{i} {shown(WRONG[i])}")
def test_a_wrong_command_does_nothing(outcomes: Outcomes, number: int) -> None:
    case, found = WRONG[number], outcomes[number]
    assert (found["status"], found["imported"], found["changed"], found["out"]) == (2, [], False, ""), found["err"]
    assert re.search(case.match, found["err"]), found["err"]
    assert found["err"].startswith(f"error: {case.problems} problem"), found["err"]
    assert found["err"].count("\n  - ") == case.problems and "; nothing was started.\n" in found["err"]
    assert re.search(r"--help\n$", found["err"])


@pytest.mark.parametrize("number", range(len(HELP)), ids=lambda i: f"{i} {shown(HELP[i])}")
def test_a_question_is_answered_and_does_nothing(outcomes: Outcomes, number: int) -> None:
    case, found = HELP[number], outcomes[len(WRONG) + number]
    assert (found["status"], found["imported"], found["changed"], found["err"]) == (0, [], False, "")
    assert re.search(case.match, found["out"])
    if case.program == "main":
        assert found["out"].endswith(BASE_FILE.read_text(encoding="utf-8"))


def test_the_promised_number_of_lines() -> None:
    assert len({(tuple(case.argv), case.file, tuple(case.environment.items())) for case in WRONG}) == len(WRONG) >= 60


OUT_OF_RANGE = {
    "optim.epochs": "0", "optim.batch_size": "0", "optim.accumulation": "0", "optim.warmup.epochs": "-1",
    "optim.lr.init": "1e300", "optim.lr.decay_type": "step", "optim.bn.momentum": "1.1", "optim.bn.eps": "0",
    "optim.momentum": "1", "optim.wd.base": "-1", "optim.label_smoothing": "1", "optim.ema.decay": "-0.1",
    "data.dataset": "cifar10", "data.image_size": "0", "data.rrc_minimum": "0", "data.crop_ratio": "1.1",
    "data.test_size": "0", "data.cutmix.prob": "2", "data.cutmix.off_epoch": "-1", "data.flip_prob": "-0.1",
    "data.relabel.fill": "-1001", "data.relabel.temperature": "1e-4", "data.relabel.ground_truth_weight": "1.01",
    "data.extra.share": "1", "data.decoder": "pil", "model.arch": "", "compute.gpu": "-2", "compute.seed": "-2",
    "compute.num_workers": "-1", "compute.distributed.backend": "mpi", "util.val_batch_size": "0",
    "compute.distributed.num_processes_per_node": "0", "compute.distributed.url": "tcp://localhost:99999",
}  # fmt: skip


def test_values_out_of_range_are_reported_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put_folders()
    with pytest.raises(UserError) as caught:
        load_config("", FOLDERS | OUT_OF_RANGE)
    assert str(caught.value).startswith(f"{len(OUT_OF_RANGE)} problems; nothing was started.")
    for key in OUT_OF_RANGE:
        assert f"\n  - {key} = " in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        ([str(ROOT / "main.py"), *words(FOLDERS), "--optim.epoch", "3"], 2),
        (["-m", "relabel", "annotate", "nowhere", "new"], 2),
        (["-m", "relabel", "--help"], 0),
    ],
)
def test_a_process_ends_before_torch_is_imported_and_without_a_trace(
    tmp_path: Path, argv: list[str], status: int
) -> None:
    done = python("-X", "importtime", *argv, folder=tmp_path)
    lines = done.stderr.splitlines(keepends=True)
    imports = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    error = "".join(line for line in lines if not line.startswith("import time:"))
    assert "pydantic" in imports
    assert imports.isdisjoint({"torch", "numpy", "relabel.training.trainer", "relabel.annotation.annotator"})
    assert done.returncode == status and error.startswith("error: ") == (status == 2) and "Traceback" not in error
    assert (done.stdout == "") == (status == 2)
    assert list(tmp_path.iterdir()) == []
