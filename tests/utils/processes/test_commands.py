"""Commands one after the other and side by side: shown, counted, and never left behind."""

import os
import signal
import sys
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.forked_runs import CONTEXT, DEADLINE_S, wait_until
from utils.errors import EXIT_PREEMPTED
from utils.processes.commands import Job, run_command, run_side_by_side, stop_once

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


def test_all_jobs_run_and_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_side_by_side([job(tmp_path, i) for i in range(5)], tmp_path, at_once=2, threads=1, unit="files")
    assert sorted(path.name for path in tmp_path.glob("*.txt")) == [f"{i}.txt" for i in range(5)]
    assert capsys.readouterr().out.count("done: job") == 5


def test_a_job_that_fails_ends_the_others_and_shows_its_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    waits = job(tmp_path, 0, WAIT)
    other = f"pathlib.Path({str(tmp_path / '0.txt')!r})"  # fails only when the other runs
    fails = job(tmp_path, 1, f"import pathlib\nwhile not {other}.exists(): pass\nraise SystemExit('no room')")
    with pytest.raises(SystemExit) as end:
        run_side_by_side([waits, fails, job(tmp_path, 2)], tmp_path, at_once=2, threads=1, unit="files")
    assert end.value.code == 1 and "no room" in capsys.readouterr().out
    assert not (tmp_path / "2.txt").exists()
    assert has_ended(tmp_path / "0.txt")


# A job that needs time to stop: it marks the beginning in a file, and ends when another file allows it.
SAVE = """
import os, pathlib, signal, sys, time
mark = pathlib.Path(sys.argv[1])
def save(number, frame):
    mark.with_name("saving").touch()
    while not mark.with_name("go").exists(): time.sleep(0.01)
    mark.with_name("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
mark.write_text(str(os.getpid()))
time.sleep(600)
"""


def run_a_slow_job(folder: Path) -> None:
    """What `reproduce` does; the job writes the number of its process to the file `mark`."""
    stop_once()
    words = [sys.executable, "-c", SAVE, str(folder / "mark")]
    run_side_by_side([Job("job", words, folder / "log", lambda: 0, 1)], folder, 1, 1, "files")


@pytest.fixture
def program(tmp_path: Path) -> ForkServerProcess:
    """A process whose job has begun."""
    process = CONTEXT.Process(target=run_a_slow_job, args=(tmp_path,))
    process.start()
    wait_until(lambda: bool(read(tmp_path / "mark")), "the job began")
    return process


def test_signals_while_a_program_stops_its_jobs_do_not_leave_them_behind(
    tmp_path: Path, program: ForkServerProcess
) -> None:
    program.terminate()
    wait_until((tmp_path / "saving").exists, "the job was asked to stop")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        os.kill(program.pid or 0, number)
    program.join(0.5)
    assert program.is_alive()  # it waits for its job
    (tmp_path / "go").touch()
    program.join(DEADLINE_S)
    assert program.exitcode == EXIT_PREEMPTED
    assert (tmp_path / "saved").exists() and has_ended(tmp_path / "mark")


def test_the_jobs_of_a_killed_program_are_asked_to_stop(tmp_path: Path, program: ForkServerProcess) -> None:
    (tmp_path / "go").touch()
    program.kill()
    program.join()
    wait_until((tmp_path / "saved").exists, "the job was asked to stop")
    wait_until(lambda: has_ended(tmp_path / "mark"), "the job ended")
