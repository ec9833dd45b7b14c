"""Progress of long jobs: durations, lines and time left."""

import pytest

from utils.progress import JobProgress, duration


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
