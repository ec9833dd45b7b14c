"""`pip install -e .` in a new environment: command and import work from any folder. A wheel is refused, and Windows."""

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment

PIP = ("install", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check")


def run(*words: object, folder: Path) -> "subprocess.CompletedProcess[str]":
    """Run a command elsewhere, without the checkout on Python's path."""
    variables = {name: text for name, text in environment().items() if name != "PYTHONPATH"}
    command = [str(word) for word in words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=variables)


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of a new environment with the project, which borrows the libraries of this one."""
    folder = tmp_path_factory.mktemp("new") / "venv"
    assert run(sys.executable, "-m", "venv", "--without-pip", folder, folder=Path.cwd()).returncode == 0
    scheme = {"base": str(folder), "platbase": str(folder)}
    (Path(sysconfig.get_path("purelib", vars=scheme)) / "borrowed.pth").write_text(sysconfig.get_path("purelib"))
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    done = run(*pip, *PIP, "-e", ROOT, folder=folder)
    assert done.returncode == 0, done.stderr
    return folder / "bin"


def test_the_command_and_the_import_work_from_any_folder(venv: Path, tmp_path: Path) -> None:
    done = run(venv / "relabel", "--version", folder=tmp_path)
    assert (done.stderr, done.returncode) == ("", 0) and re.fullmatch(rf"relabel [\d.]+ from {ROOT}\n", done.stdout)
    program = "import relabel, utils, importlib.metadata as m; print(*m.requires('relabel'), utils.__file__, sep='\\n')"
    done = run(venv / "python", "-c", program, folder=tmp_path)
    *requirements, file = done.stdout.splitlines()
    assert requirements == (ROOT / "requirements.txt").read_text().splitlines()
    assert file == str(ROOT / "utils" / "__init__.py")


@pytest.mark.parametrize(("command", "line"), [("train", "false +# base"), ("evaluate", "true +# command line")])
def test_recipes_of_the_checkout_are_found_and_evaluate_adds_a_flag(
    venv: Path, tmp_path: Path, command: str, line: str
) -> None:
    recipe = "configs/relabel_train_resnet50.yaml"
    done = run(venv / "relabel", command, "--config-file-path", recipe, "--util.print_config", "True", folder=tmp_path)
    assert (done.stderr, done.returncode) == (f"config file: {ROOT}/{recipe}\n", 0)
    assert re.search(rf"^ +test_only: {line}$", done.stdout, re.MULTILINE)
    assert re.search(r"^ +run_dir: runs/relabel_train_resnet50 ", done.stdout, re.MULTILINE)


def test_a_wheel_is_refused_with_the_command_that_works(venv: Path, tmp_path: Path) -> None:
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "relabel", "models", "utils"):
        (tmp_path / name).symlink_to(ROOT / name)  # building leaves files in the folder
    done = run(sys.executable, "-m", "pip", "wheel", *PIP[1:], "-w", "wheels", tmp_path, folder=tmp_path)
    assert done.returncode == 1 and "runs from its checkout; install it with `pip install -e .`" in done.stderr


@pytest.mark.parametrize("program", ["main.py", "relabel/__main__.py"])
def test_windows_gets_a_sentence(program: str, tmp_path: Path) -> None:
    """Without what Windows lacks; before anything is imported that would fail there."""
    code = f"""
import os, signal, sys
sys.platform = "win32"
sys.modules["fcntl"] = sys.modules["resource"] = None
del signal.SIGUSR1, signal.pthread_sigmask, os.pread
sys.path.insert(0, {str(ROOT)!r})
exec(compile(open({str(ROOT / program)!r}).read(), {program!r}, "exec"), {{"__name__": "__main__"}})
"""
    done = run(sys.executable, "-c", code, folder=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: this program does not run on Windows") and "wsl --install" in done.stderr


def test_a_module_of_the_same_name_is_named_and_renaming_it_helps(tmp_path: Path) -> None:
    (tmp_path / "utils.py").write_text("")
    code = f"""
import importlib, os, sys
sys.path.append({str(ROOT)!r})
import relabel
try:
    relabel.LabelMaps
except ImportError as error:
    print(error)
os.rename("utils.py", "helpers.py")
del sys.modules["utils"]
importlib.invalidate_caches()
print(relabel.LabelMaps)
"""
    done = run(sys.executable, "-c", code, folder=tmp_path)
    found = f"found another module named 'utils' .*{tmp_path}/utils.py.*; expected the one of {ROOT}. Rename yours"
    assert re.match(found, done.stdout) and done.stdout.endswith("<class 'relabel.stores.store.LabelMaps'>\n")
