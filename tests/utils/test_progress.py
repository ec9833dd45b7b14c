"""Progress of long jobs: durations, lines and time left."""

import os
import shlex

import pytest

from utils.errors import UserError, exit_on_user_error
from utils.progress import JobProgress, command_lines, duration, print_lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (125, "2 min 05 s"), (3600, "1 h 00 min"), (93784, "26 h 03 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_without_a_terminal_the_end_is_a_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    with JobProgress("annotate", 10, "images", done=4) as progress:
        progress.advance(3)
        progress.print_line("a line that stays")
        progress.advance(3)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a line that stays"
    assert lines[1].startswith("annotate  10 of 10 images  ") and "images/s" in lines[1]
    assert len(lines) == 2


def test_time_left_counts_this_runs_work_alone() -> None:
    progress = JobProgress("annotate", 100, "images", done=90)
    assert progress.time_left() == ""
    progress.advance(1)
    assert progress.time_left().endswith("left")


def test_a_silent_process_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with JobProgress("annotate", 1, "images", enabled=False) as progress:
        progress.advance(1)
    assert capsys.readouterr().out == ""


def test_on_a_terminal_lines_fold_at_spaces(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = "thirty images of three classes with label maps in a/long-path"
    print_lines(line)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr("shutil.get_terminal_size", lambda *_, **__: os.terminal_size((50, 24)))
    print_lines(line)
    in_a_file, *folded = capsys.readouterr().out.splitlines()
    assert in_a_file == line and folded == [line[:49], "  a/long-path"]
    print_lines(f"--typed {'x ' * 30}\nnever ever parts in its middle a --data.flag FOLDER from it")
    assert capsys.readouterr().out.splitlines()[1:] == [
        "never ever parts in its middle a", "  --data.flag FOLDER from it",
    ]  # fmt: skip
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with pytest.raises(SystemExit), exit_on_user_error():
        raise UserError(f"of\n  {line}\n  python {line}")
    of, *folded, command = capsys.readouterr().err.splitlines()
    assert (of, folded) == ("error: of", [f"  {line[:46]}", "    in a/long-path"])
    assert command == f"  python {line}"  # could not be pasted in two lines


def test_a_long_command_can_be_pasted() -> None:
    words = ["python", "-m", "tool", "act", "a b/" + 50 * "x", "--first", "1", "--second", 40 * "y", "--third", "it's"]
    text = command_lines(words)
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) == 3
    assert shlex.split(text.replace("\\\n", "")) == words
    assert "--second y" in text
