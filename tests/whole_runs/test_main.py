"""The command line of main.py: what is printed, with which source, and by which process."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main
from relabel.cli.run import run
from relabel.config.load import load_config
from tests.conftest import ROOT, Flags
from tests.wrong_commands import SECOND_PROCESS, put_folders
from utils.errors import UserError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with DATA/train, DATA/val, LABELS and a config file."""
    monkeypatch.chdir(tmp_path)
    put_folders()
    Path("my.yaml").write_text("optim:\n  epochs: 7\n")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "argv", [["--util.print_config", "1"], ["--util.print_config"], ["--util.print_confg", "True"]]
)
def test_folders_are_not_needed_where_only_printing_may_be_meant(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main.main(argv)
    err = capsys.readouterr().err
    assert err.startswith("error: 1 problem;") and "util.print_conf" in err


def test_what_is_printed_is_utf8_whatever_the_locale(here: Path) -> None:
    (here / "my.yaml").write_text('util: {run_dir: "r\u00e9sum\u00e9 \u96ea"}\n', encoding="utf-8")
    command = [sys.executable, str(ROOT / "main.py"), "--config-file-path", "my.yaml", "--util.print_config", "True"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True, timeout=60)
    assert "run_dir: r\u00e9sum\u00e9 \u96ea" in done.stdout.decode("utf-8") and done.stderr == b""


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--optim.lr.init=1e-3"], "init: 0.001 +# command line"),
        (["--optim.batch-size", "64"], "batch_size: 64 +# command line"),
        (["--data.crop_ratio", "none"], "crop_ratio: null +# command line"),
        (["--util.run_dir", "a b # c"], "run_dir: 'a b # c' +# command line"),
        (["--util.run_dir", "'quoted'"], "run_dir: '''quoted''' +# command line"),
        (["--data.data-path=a=b"], "data_path: a=b +# command line"),
        (["--config_file_path=my.yaml"], "run_dir: runs/my +# name of my.yaml"),
        (["--config-file-path", "my.yaml"], "momentum: 0.9 +# base"),
    ],
)
def test_print_config_shows_each_value_with_its_source(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], line: str
) -> None:
    before = tree(here)
    with pytest.raises(SystemExit) as caught:
        main.main([*argv, "--util.print_config", "True"])
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert re.search(rf"^ *{line}$", out, flags=re.MULTILINE)
    assert tree(here) == before


def test_what_print_config_prints_is_a_config_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--optim.lr.init", "1e-5", "--util.run_dir", "1e-5", "--util.print_config", "True"]
    for command_line in (argv, ["--config-file-path", "printed.yaml"]):
        with pytest.raises(SystemExit):
            main.main(command_line)
        (here / "printed.yaml").write_text(capsys.readouterr().out, encoding="utf-8")
    values = [
        text.partition("#")[0].rstrip() for text in (here / "printed.yaml").read_text(encoding="utf-8").splitlines()
    ]
    assert "    init: 1.0e-05" in values and "  run_dir: '1e-5'" in values


def test_one_process_of_a_node_reports_a_mistake(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in SECOND_PROCESS.items():
        monkeypatch.setenv(name, text)
    with pytest.raises(SystemExit) as caught:
        main.main(["stray"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


def test_an_unknown_network_names_the_flag_that_selects_it(flags: Flags) -> None:
    with pytest.raises(UserError, match=r"Did you mean digit_net(.|\n)*Correct --model\.arch"):
        run(load_config("", {key: str(value) for key, value in (flags | {"model.arch": "digitnet"}).items()}))
    assert not flags["util.run_dir"].exists()


def test_ctrl_c_before_the_run_leaves_no_traceback(here: Path) -> None:
    os.mkfifo(here / "pipe.yaml")
    command = [sys.executable, str(ROOT / "main.py"), "--config-file-path", "pipe.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with (here / "pipe.yaml").open("w"):  # opens as soon as the program reads its config file
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
