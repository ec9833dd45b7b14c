"""No file of this project calls what would run a file's content: ruff holds most of it, by rules in pyproject.toml."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

FOLDERS = ("utils", "models", "relabel", "benchmarks", "tests")
SOURCES = [ROOT / "main.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py")))]

# What each of these keywords must be, literally, wherever it is given; ruff has no such rules.
NEEDED = {"weights_only": "True", "allow_pickle": "False", "shell": "False", "trust_remote_code": "False"}
ADVISES = ROOT / "utils" / "checkpoint.py"  # its message tells how to convert a pickled network that one trusts
MAKES_TRAPS = ROOT / "tests" / "traps.py"


def careless_keywords(source: str) -> list[str]:
    """The keywords of a source that are not what they must be."""
    return [name for name, value in NEEDED.items() if re.search(rf"[(,]\s*{name}\s*=(?!\s*{value}\b)", source)]


def ruff(*words: str, source: str | None = None) -> "subprocess.CompletedProcess[str]":
    """Run ruff with the project's rules."""
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", *words]
    return subprocess.run(command, cwd=ROOT, input=source, capture_output=True, text=True, timeout=60)


def test_no_file_calls_what_would_run_a_files_content() -> None:
    assert len(SOURCES) > 150
    done = ruff("--select", "S102,S202,S30,S313,S314,S315,S316,S317,S318,S319,S506,S602,S604,S605,TID251", ".")
    assert done.returncode == 0, done.stdout
    careless = [path for path in SOURCES if careless_keywords(path.read_text(encoding="utf-8"))]
    assert careless == [ADVISES, MAKES_TRAPS, Path(__file__)]


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        ("from pickle import Unpickler as Reader\nReader(file)", "S301"),
        ("import yaml\nyaml.load(text, Loader=yaml.CLoader)", "S506"),
        ("import torch\ntorch.jit.load(path)", "TID251"),
        ("eval(text)", "S307"),
        ("import os\nos.system(name)", "S605"),
        ("import subprocess\nsubprocess.run(text, shell=True)", "S602"),
        ("import xml.etree.ElementTree as tree\ntree.parse(path)", "S314"),
        ("import tarfile\ntarfile.open(path).extractall(out)", "S202"),
    ],
)
def test_ruff_finds_what_it_is_for(source: str, rule: str) -> None:
    done = ruff("--stdin-filename", "relabel/data/anywhere.py", "-", source=source)
    assert done.returncode == 1 and f" {rule} " in done.stdout, done.stdout


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(path, weights_only=False)",
        "torch.load(path,\n    weights_only = careless)",
        "load_dataset(name, trust_remote_code=yes)",
    ],
)
def test_careless_keywords_are_found(source: str) -> None:
    assert careless_keywords(source)
    assert not careless_keywords("torch.load(path, weights_only=True); np.load(path, allow_pickle=False)")
