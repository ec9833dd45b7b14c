"""Functions as commands: a wrong line calls nothing, all mistakes are reported, values have the declared types."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from tests.conftest import ROOT
from utils.config.tool_commands import run_commands
from utils.config.value_types import Count, ExistingFile, ExistingFolder, Joined, Positive, Size
from utils.errors import UserError

CALLS: list[dict[str, Any]] = []
GOOD = ["paint", "wall", "--colour", "red"]
DEFAULTS = {"coats": 2, "size": (56, 72), "share": 0.5, "dry": False, "note": "-", "tin": None, "shift": (0.5, -1.0)}


def paint(
    wall: ExistingFolder,
    *,
    colour: Literal["red", "green"],
    coats: Positive = 2,
    size: Size = (56, 72),
    share: Annotated[float, Field(ge=0, le=1)] = 0.5,
    dry: bool = False,
    note: str = "-",
    tin: ExistingFile | None = None,
    shift: Annotated[tuple[float, float], Joined(","), Field(title="X,Y")] = (0.5, -1.0),
) -> None:
    """Paint a wall.

    The wall gets wet.

    Args:
        wall: to be painted.
        colour: of the paint.
        coats: of paint.
        size: of the brush.
        share: of the wall that is painted, which may be
            less than all of it: in 0..1.
        dry: wait.
        note: to remember.
        tin: of paint.
        shift: of the brush.

    Raises:
        UserError: there is no such wall.
    """
    CALLS.append({"wall": wall, "colour": colour, "coats": coats, "size": size, "share": share, "dry": dry})
    CALLS[-1] |= {"note": note, "tin": tin, "shift": shift}


def polish(wall: ExistingFolder, *spots: Count, cloth: str = "wool") -> None:
    """Polish spots of a wall.

    Args:
        wall: to be polished.
        spots: where.
        cloth: what with.
    """
    CALLS.append({"wall": wall, "spots": spots, "cloth": cloth})


def take_a_rest(start: Path, end: Path, *, hours: Count = 1) -> None:
    """Rest.

    Args:
        start: from here.
        end: to here.
        hours: of rest.
    """
    CALLS.append({"start": start, "end": end, "hours": hours})
    if hours == 13:
        raise UserError("found 13 hours; expected fewer")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a folder `wall` and a file `tin`; no calls yet."""
    (tmp_path / "wall").mkdir()
    (tmp_path / "tin").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    CALLS.clear()
    return tmp_path


def run(*argv: str) -> None:
    run_commands([paint, take_a_rest], argv, "tools", "Tools to try.")


def error_of(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """The error of a wrong command line, which must end with status 2 and call nothing."""
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    out, err = capsys.readouterr()
    assert (caught.value.code, out, CALLS) == (2, "", [])
    return err


# More of each kind are in tests/wrong_commands.py.
ONE_MISTAKE = [
    (["pant"], r"pant \(command line\): no such command; did you mean paint\?; expected one of paint, take-a-rest"),
    (["--wall", "wall", "paint"], "--wall .*the command comes first; write tools paint ..."),
    ([*GOOD, "--dry"], "--dry .*has no value"),
    ([*GOOD, "--wall", "wall"], "--wall .*given twice: 'wall' and 'wall'"),
    (["paint", "wall", "--colr=red"], r"--colr .*no such flag; did you mean --colour\?"),
    ([*GOOD, "--coats", "ten"], r"--coats = 'ten' \(command line\): expected a whole number >= 1; the default is 2"),
    ([*GOOD, "--share", "1.5"], "--share = '1.5' .*expected a number >= 0 and <= 1; the default is 0.5"),
    ([*GOOD, "--dry", "yes"], "--dry = 'yes' .*expected true or false; the default is false"),
    (
        [*GOOD, "--size", "56x0"],
        "--size = '56x0' .*expected rows x columns in pixels, such as 56x72; the default is 56x72",
    ),
    ([*GOOD, "--shift", "1,b"], "--shift = '1,b' .*expected numbers; the default is 0.5,-1"),
    ([*GOOD, "--tin", "wall"], "--tin = 'wall' .*expected a file that exists, or none; the default is none"),
    (["paint", "wall", "--colour", "gren"], r"--colour = 'gren' .*expected one of red, green; did you mean green\?\n"),
    (["paint", "wall"], r"--colour red\|green \(command line\): is missing; expected one of red, green"),
    (["paint", "--colour", "red"], r"WALL \(command line\): is missing; expected a folder that exists"),
    (["take-a-rest", "a", ""], "END = '' .*expected a path"),
]


@pytest.mark.parametrize(("argv", "match"), ONE_MISTAKE)
def test_a_mistake_is_reported_and_nothing_is_called(
    capsys: pytest.CaptureFixture[str], argv: list[str], match: str
) -> None:
    message = error_of(capsys, *argv)
    assert re.search(match, message) and message.startswith("error: 1 problem; nothing was started.\n  - ")
    assert re.search(r"\n(How to call it: tools [a-z-]+|All commands: tools) --help\n$", message)


def test_an_argument_may_be_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    run_commands([polish], ["polish", "wall", "3", "--cloth", "silk", "1", "2"], "tools", "")
    run_commands([polish], ["polish", "wall"], "tools", "")
    assert [(call["spots"], call["cloth"]) for call in CALLS] == [((3, 1, 2), "silk"), ((), "wool")]
    with pytest.raises(SystemExit):
        run_commands([polish], ["polish", "wall", "1", "two"], "tools", "")
    assert re.search(r"two'? \(command line\): expected a whole number >= 0$", capsys.readouterr().err, re.MULTILINE)
    with pytest.raises(SystemExit):
        run_commands([polish], ["polish", "--help"], "tools", "")
    out = capsys.readouterr().out
    assert "polish WALL [SPOTS ...] [--cloth TEXT]" in out
    assert re.search(r"^  SPOTS \.\.\. +where. \[a whole number >= 0; any number\]$", out, flags=re.MULTILINE)


def test_all_mistakes_are_reported_together(capsys: pytest.CaptureFixture[str]) -> None:
    message = error_of(
        capsys, "paint", "nowhere", "x", "--coats", "a", "--dry", "--coats", "0", "--cots=1", "--", "--tin=b"
    )
    assert message.startswith("error: 9 problems; nothing was started.")
    subjects = ["x", "--dry", "--coats", "--cots", "--", "WALL = 'nowhere'", "--coats = 'a'", "--tin = 'b'", "--colour"]
    for subject in subjects:
        assert f"\n  - {subject} " in message


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        ([], {}),
        (["--size", "7x9"], {"size": (7, 9)}),
        (["--dry", "TRUE"], {"dry": True}),
        (["--shift", "-1,.5"], {"shift": (-1.0, 0.5)}),
        (["--tin", "tin"], {"tin": Path("tin")}),
        (["--tin", "None"], {"tin": None}),
        (["--note", "-abc"], {"note": "-abc"}),
        (["--note=--abc"], {"note": "--abc"}),
        (["--note", "none"], {"note": "none"}),
    ],
)
def test_values_arrive_with_their_declared_types(argv: list[str], given: dict[str, Any]) -> None:
    run(*GOOD, *argv)
    assert [{"wall": Path("wall"), "colour": "red", **DEFAULTS, **given}] == CALLS
    assert [type(value) for value in CALLS[0].values()][2:] == [type({**DEFAULTS, **given}[key]) for key in DEFAULTS]


@pytest.mark.parametrize(
    "argv",
    [
        ["take_a_rest", "--hours=3", "a", "b"],
        ["take-a-rest", "--start", "a", "b", "--hours", "3"],
        ["take-a-rest", "--end=b", "--hours", "3", "a"],
    ],
)
def test_arguments_and_flags_mix(argv: list[str]) -> None:
    run(*argv)
    assert [{"start": Path("a"), "end": Path("b"), "hours": 3}] == CALLS


def test_a_user_error_of_a_command_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("take-a-rest", "a", "b", "--hours", "13")
    assert caught.value.code == 2
    assert capsys.readouterr().err == "error: found 13 hours; expected fewer\n"


@pytest.mark.parametrize("argv", [[], ["--help", "paint"]])
def test_the_first_screen_shows_the_commands(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    out, err = capsys.readouterr()
    assert (caught.value.code, err, CALLS) == (0, "", [])
    assert out.startswith("usage: tools COMMAND") and "\n\nTools to try.\n\n" in out
    assert re.search(r"\n  paint +Paint a wall\.\n  take-a-rest +Rest\.\n", out)


@pytest.mark.parametrize("argv", [["paint", "-h"], ["paint", "x", "--coats", "--help"]])
def test_the_screen_of_a_command_is_its_signature_and_docstring(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    out, err = capsys.readouterr()
    assert (caught.value.code, err, CALLS) == (0, "", [])
    flat = " ".join(out.split())
    assert flat.startswith("usage: tools paint WALL --colour red|green [--coats N] [--size ROWSxCOLUMNS] [--share X]")
    assert "Paint a wall. The wall gets wet. WALL to be painted. [a folder that exists; required]" in flat
    assert "of the wall that is painted, which may be less than all of it: in 0..1. [a number >= 0 and <= 1;" in flat
    assert "--tin FILE of paint. [a file that exists, or none; default none]" in flat
    assert "--shift X,Y of the brush. [numbers; default 0.5,-1]" in flat
    assert "UserError" not in out and max(map(len, out.splitlines())) <= 80


def test_ctrl_c_ends_a_command_without_a_traceback_and_lets_it_clean_up(here: Path) -> None:
    os.mkfifo(here / "pipe")
    (here / "program.py").write_text(
        """
import sys
from pathlib import Path
from utils.config.tool_commands import run_commands

def read(*, path: Path) -> None:
    '''Read a file.

    Args:
        path: of the file.
    '''
    try:
        path.read_text()
    finally:
        Path("cleaned").touch()

run_commands([read], sys.argv[1:], "program", "")
"""
    )
    command = [sys.executable, "program.py", "read", "--path", "pipe"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    # A shell without job control starts background jobs, such as this suite, with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    signal.signal(signal.SIGINT, before)
    with (here / "pipe").open("w"):  # opens as soon as the command reads
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert (here / "cleaned").exists()
