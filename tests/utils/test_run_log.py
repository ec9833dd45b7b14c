"""The run folder's account of a run."""

import json
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from tests.conftest import Flags
from tests.relabel.training.test_run import preempt, start
from utils.run_log import MetricsLog, git_state, read_metrics, record_environment


def test_one_json_object_an_event_also_with_numbers_that_are_not_finite(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, keep_bytes=1000)  # longer than the file, which is not padded
    log.write("train", 3, loss=1.5, epoch=1)
    log.write("train", 4, loss=float("nan"), epoch=float("inf"))
    assert read_metrics(tmp_path) == [
        {"event": "train", "step": 3, "loss": 1.5, "epoch": 1},
        {"event": "train", "step": 4, "loss": "nan", "epoch": "inf"},
    ]


def test_a_continued_log_is_cut_back_to_its_checkpoint(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write("train", 1)
    kept = log.size_on_disk()
    log.write("train", 2)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"half a li')  # what a kill leaves
    log = MetricsLog(tmp_path, keep_bytes=kept)
    log.write("train", 2, again=True)
    assert read_metrics(tmp_path) == [{"event": "train", "step": 1}, {"event": "train", "step": 2, "again": True}]


def test_each_start_adds_its_environment(tmp_path: Path) -> None:
    record_environment(tmp_path, start_step=0)
    record_environment(tmp_path, start_step=7)
    starts = json.loads((tmp_path / "environment.json").read_text())
    assert [start["start_step"] for start in starts] == [0, 7]
    assert starts[0]["folder"] == str(Path.cwd()) and starts[0]["command"].endswith(shlex.join(sys.argv))
    assert starts[0]["packages"]["torch"] == version("torch") and starts[0]["torch_threads"] == torch.get_num_threads()
    assert {"git_revision", "git_changes", "python", "platform", "gpus", "cpu_cores"} <= starts[0].keys()


@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_the_state_of_the_code_is_that_of_git(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    nothing = {"git_revision": None, "git_changes": None}
    assert git_state(tmp_path) == nothing
    git("init", "--quiet")
    (tmp_path / "code.py").write_text("first")
    assert git_state(tmp_path) == nothing  # no commit yet
    git("add", "code.py")
    git("commit", "--quiet", "--no-verify", "--message", "first")
    clean = {"git_revision": git("rev-parse", "HEAD"), "git_changes": []}
    assert git_state(tmp_path) == clean and len(clean["git_revision"]) == 40
    (tmp_path / "code.py").write_text("second")
    (tmp_path / "new.py").touch()
    assert git_state(tmp_path) == {**clean, "git_changes": [" M code.py", "?? new.py"]}


FAKE_WANDB = """
calls = []

def init(**settings):
    calls.append(("init", settings))
    return Run()

class Run:
    def log(self, values, step):
        calls.append(("log", step, values))

    def finish(self):
        calls.append(("finish",))
"""


def test_weights_and_biases_gets_the_metrics_of_a_run_however_often_it_is_continued(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "wandb.py").write_text(FAKE_WANDB)
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    flags |= {"util.wandb": True, "optim.epochs": 2}
    preempt(flags, 7)
    start(flags)
    calls = sys.modules["wandb"].calls
    first, second = (call[1] for call in calls if call[0] == "init")
    assert first == second and first["resume"] == "allow" and len(first["id"]) == 16
    assert (first["name"], first["config"]["optim"]["epochs"]) == ("run", 2)
    logged = {(call[1], name) for call in calls if call[0] == "log" for name in call[2]}
    events = read_metrics(flags["util.run_dir"])
    assert {(e["step"], f"{e['event']}/elapsed_s") for e in events} <= logged
    assert [call[0] for call in calls][-1] == "finish"
