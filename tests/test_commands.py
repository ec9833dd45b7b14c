"""Commands one after the other and side by side: shown, counted, and never left behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.commands import Job, run_command, run_side_by_side

WRITE = "import sys, pathlib; pathlib.Path(sys.argv[1]).write_text('done')"

WAIT = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid())); time.sleep(600)"


def read(file: Path) -> str:
    """What a job wrote, '' before it has."""
    return file.read_text() if file.exists() else ""


def has_ended(file: Path) -> bool:
    """Whether the process that wrote its number there, if it came so far, is gone."""
    try:
        os.kill(int(read(file) or 2**22 + 1), 0)
    except ProcessLookupError:
        return True
    return False


def job(folder: Path, number: int, code: str = WRITE) -> Job:
    """A program that writes a file, which is its one unit of work."""
    file = folder / f"{number}.txt"
    words = [sys.executable, "-c", code, str(file)]
    return Job(f"job {number}", words, folder / f"{number}.log", lambda: int(file.exists()), 1)


def test_a_failed_command_ends_the_program_with_its_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_command([sys.executable, "-c", "pass", f"{tmp_path}/file"], tmp_path)
    assert "$ python -c pass file" in capsys.readouterr().out
    with pytest.raises(SystemExit) as end:
        run_command([sys.executable, "-c", "raise SystemExit(7)"], tmp_path)
    assert end.value.code == 7


def test_all_jobs_run_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_side_by_side([job(tmp_path, i) for i in range(5)], tmp_path, at_once=2, threads=1, unit="files")
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [f"{i}.txt" for i in range(5)]
    assert capsys.readouterr().out.count("done: job") == 5


def test_a_job_that_fails_ends_the_others_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waits = job(tmp_path, 0, WAIT)
    other = f"pathlib.Path({str(tmp_path / '0.txt')!r})"  # fails only when the other runs
    fails = job(tmp_path, 1, f"import pathlib\nwhile not {other}.exists(): pass\nraise SystemExit('no room')")
    with pytest.raises(SystemExit) as end:
        run_side_by_side([waits, fails, job(tmp_path, 2)], tmp_path, at_once=2, threads=1, unit="files")
    assert end.value.code == 1 and "no room" in capsys.readouterr().out
    assert not (tmp_path / "2.txt").exists()
    assert has_ended(tmp_path / "0.txt")


def test_jobs_end_with_the_program_that_started_them(tmp_path: Path) -> None:
    code = f"""
import signal, sys
from pathlib import Path
from utils.commands import Job, run_side_by_side
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
job = Job("job", [sys.executable, "-c", {WAIT!r}, "{tmp_path}/mark"], Path("{tmp_path}/log"), lambda: 0, 1)
run_side_by_side([job], Path("{tmp_path}"), 1, 1, "files")
"""
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 60
    while not read(tmp_path / "mark") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 143
    assert has_ended(tmp_path / "mark")
