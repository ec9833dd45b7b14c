"""The command line of main.py: nothing starts on a bad one, and what a person is told."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import main
from utils.config import BASE_FILE

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ["--data.data_path", "DATA", "--data.relabel.path", "LABELS"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with DATA/train, DATA/val, LABELS and a config file."""
    for folder in ("DATA/train", "DATA/val", "LABELS"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "my.yaml").write_text("optim:\n  epochs: 7\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    return tmp_path


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def run_main(*argv: str) -> tuple[int, str, str]:
    """Run main.py in a process of its own that reports its imports; (status, stdout, stderr without these)."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "main.py"), *argv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    lines = done.stderr.splitlines(keepends=True)
    imports = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    assert "fire" in imports and imports.isdisjoint({"torch", "numpy", "relabel.trainer"})
    return done.returncode, done.stdout, "".join(line for line in lines if not line.startswith("import time:"))


BAD_COMMAND_LINES = [
    (["util.test_only=True"], r"util.test_only=True \(command line\): .*write --util.test_only=True"),
    (["-optim.epochs", "3"], "-optim.epochs .*two hyphens; write --optim.epochs"),
    (["my.yaml"], "a config file goes after its flag; write --config-file-path my.yaml"),
    (["--util.run_dir", "two", "words"], "words .*belongs to no flag; .*in quotes"),
    (["-x"], "-x .*belongs to no flag"),
    (["-1"], "-1 .*belongs to no flag"),
    (["-"], "- .*belongs to no flag"),
    (["--optim.epochs", "30", "--", "--optim.batch_size", "64"], r"-- \(command line\): what follows would be dropped"),
    (["--util.test_only"], "--util.test_only .*has no value; write --util.test_only VALUE"),
    (["--util.test_only", "--optim.epochs", "30"], "--util.test_only .*has no value"),
    (["--config-file-path"], "--config-file-path .*has no value"),
    (["--config-file-path", ""], "--config-file-path .*is empty"),
    (["--config-file-path="], "--config-file-path .*is empty"),
    (["--optim.epochs", "3", "--optim.epochs", "4"], "--optim.epochs .*given twice: '3' and '4'; keep one"),
    (["--optim.batch_size", "64", "--optim.batch-size=64"], "--optim.batch-size .*given twice"),
    (["--config-file-path", "my.yaml", "--config_file_path", "my.yaml"], "--config_file_path .*given twice"),
    (["--=3"], "--=3 .*has no name; write --NAME VALUE"),
    (["--nodata"], "--nodata .*no such key"),
    (["--verbose", "--optim.epochs", "30"], "--verbose .*no such key"),
    (["--optim.epoch", "3"], r"--optim.epoch .*did you mean --optim.epochs\?"),
    (["--Optim.Epochs", "3"], r"did you mean --optim.epochs\?"),
    (["--optim.epochs=1=2"], "optim.epochs = '1=2' .*expected a whole number"),
    (["--optim.epochs=--3"], "optim.epochs = '--3' .*expected a whole number"),
    (["--optim.epochs", "$(date)"], "expected a whole number"),
    (["--optim.epochs="], "optim.epochs = '' .*expected a whole number"),
    (["--data.relabel.use", "nope"], "expected true or false"),
    (["--config-file-path", "no.yaml"], "config file .*no.yaml.*cannot be read"),
    (["--trace", "1"], "--trace .*no such key"),
    (["--zz", "1", "--zz", "2"], "--zz .*no such key"),
    (["--flags", "1"], "--flags .*no such key"),
]


@pytest.mark.parametrize(("argv", "match"), BAD_COMMAND_LINES)
def test_a_bad_command_line_exits_2(
    here: Path, capsys: pytest.CaptureFixture[str], argv: list[str], match: str
) -> None:
    before = tree(here)
    with pytest.raises(SystemExit) as caught:
        main.main([*FOLDERS, *argv])
    out, err = capsys.readouterr()
    assert (caught.value.code, out) == (2, "")
    assert re.search(match, err) and err.startswith("error: 1 problem; nothing was started.")
    assert tree(here) == before


@pytest.mark.parametrize("flag", ["--config", "--config_file", "--config-file", "--CONFIG_FILE_PATH"])
def test_a_misspelt_flag_of_the_config_file_is_the_only_complaint(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit):
        main.main([flag, "my.yaml"])  # which might name the folders
    err = capsys.readouterr().err
    assert err.startswith("error: 1 problem;") and "no such key; did you mean --config_file_path?" in err


@pytest.mark.parametrize(
    "argv", [["--util.print_config", "1"], ["--util.print_config"], ["--util.print_confg", "True"]]
)
def test_folders_are_not_missed_by_who_may_only_want_to_print(
    capsys: pytest.CaptureFixture[str], argv: list[str]
) -> None:
    with pytest.raises(SystemExit):
        main.main(argv)
    err = capsys.readouterr().err
    assert err.startswith("error: 1 problem;") and "util.print_conf" in err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_is_printed_is_utf8_whatever_the_locale(here: Path, encoding: str) -> None:
    (here / "my.yaml").write_text('util: {run_dir: "r\u00e9sum\u00e9 \u96ea"}\n', encoding="utf-8")
    command = [sys.executable, str(ROOT / "main.py"), "--config-file-path", "my.yaml", "--util.print_config", "True"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=True, timeout=60)
    assert "run_dir: r\u00e9sum\u00e9 \u96ea" in done.stdout.decode("utf-8") and done.stderr == b""


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (["stray", "--optim.epochs", "ten"], "stray .*\n.*optim.epochs = 'ten'"),
        (["--util.test_only", "--zz"], "--util.test_only .*no value.*\n.*--zz .*no such key"),
        (["--config-file-path", "no.yaml", "--optim.epochs", "x", "y"], "y .*\n.*no.yaml.*\n.*optim.epochs = 'x'"),
        ([], "data.data_path = ''.*\n.*data.relabel.path = ''"),
    ],
)
def test_mistakes_of_form_and_of_content_are_told_together(
    capsys: pytest.CaptureFixture[str], argv: list[str], match: str
) -> None:
    with pytest.raises(SystemExit):
        main.main(argv)
    assert re.search(match, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--compute.gpu", "-1"], "gpu: -1 +# command line"),
        (["--data.relabel.fill", "-1.5"], "fill: -1.5 +# command line"),
        (["--optim.lr.init=1e-3"], "init: 0.001 +# command line"),
        (["--optim.batch-size", "64"], "batch_size: 64 +# command line"),
        (["--util.print-freq=3"], "print_freq: 3 +# command line"),
        (["--util.tensorboard", "TRUE"], "tensorboard: true +# command line"),
        (["--data.crop_ratio", "none"], "crop_ratio: null +# command line"),
        (["--util.run_dir", "exp#3"], "run_dir: exp#3 +# command line"),
        (["--util.run_dir", "a,b"], "run_dir: a,b +# command line"),
        (["--util.run_dir", "a b # c"], "run_dir: 'a b # c' +# command line"),
        (["--util.run_dir", "2024_01"], "run_dir: 2024_01 +# command line"),
        (["--util.run_dir", "'quoted'"], "run_dir: '''quoted''' +# command line"),
        (["--util.run_dir", "-abc"], "run_dir: -abc +# command line"),
        (["--util.run_dir=--abc"], "run_dir: --abc +# command line"),
        (["--data.data-path=a=b"], "data_path: a=b +# command line"),
        (["--config-file-path", "my.yaml"], "epochs: 7 +# my.yaml"),
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


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--config-file-path", "my.yaml", "--help"], ["x", "-h"]])
def test_help_prints_usage_and_base_itself(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    out, err = capsys.readouterr()
    assert (caught.value.code, err) == (0, "")
    assert out.startswith("usage: python main.py --config-file-path FILE") and out.endswith(
        BASE_FILE.read_text(encoding="utf-8")
    )


def test_one_process_of_a_node_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(SystemExit) as caught:
        main.main(["stray"])
    assert caught.value.code == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("argv", "status", "match"),
    [
        (["util.test_only=True"], 2, "error: .*\n.*write --util.test_only=True"),
        (["--config-file-path", "my.yaml", "--optim.epoch", "3"], 2, "did you mean --optim.epochs"),
        (["--config-file-path", "my.yaml", "--data.data_path", "NOWHERE"], 2, "data.data_path = 'NOWHERE'"),
        (["--config-file-path", "my.yaml", "--help"], 0, "^$"),
        (["--compute.gpu", "-1", "--util.print_config", "True"], 0, "^$"),
    ],
)
def test_a_real_process_ends_before_torch_and_without_a_trace(
    here: Path, argv: list[str], status: int, match: str
) -> None:
    before = tree(here)
    code, out, err = run_main(*argv)
    assert code == status and re.search(match, err) and "Traceback" not in err
    assert (out == "") == (status == 2)
    assert tree(here) == before


def test_ctrl_c_before_the_run_leaves_no_traceback(here: Path) -> None:
    os.mkfifo(here / "pipe.yaml")
    command = [sys.executable, str(ROOT / "main.py"), "--config-file-path", "pipe.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with (here / "pipe.yaml").open("w"):  # opens as soon as the program reads its config file
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (-signal.SIGINT, "", "")
