"""The doctor names what is wrong with a machine, each fault made from outside, and exits 1; where all is well, 0."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.doctor import check_gpu, check_shared_memory

TORCH = """
class version: cuda = None
class cuda: is_available = lambda: False
"""
DECODER = "import numpy\ndef decode_jpeg(data): return numpy.zeros((8, 16, 3))"
HEALTHY = {"torch": TORCH, "torchvision": "", "timm": "import torchvision", "simplejpeg": DECODER}
PIP = f"{sys.executable} -m pip"
REINSTALL = f"{PIP} uninstall -y torch torchvision timm {PIP} install -r {ROOT}/requirements.txt"


def install(folder: Path, name: str, source: str, version: str = "99.0", requires: str = "") -> None:
    """Put a package where PYTHONPATH finds it before the real one."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(metadata + requires)


def site_with(folder: Path, packages: dict[str, str]) -> Path:
    """A folder of packages that can be imported in no time, but for those given."""
    for name, source in (HEALTHY | packages).items():
        install(folder / "site", name, source)
    return folder / "site"


def diagnose(site: Path, folder: Path, *options: str, limit: str = "") -> tuple[int, str]:
    """Run `python -m relabel doctor` with the packages of a site: exit status, and its output in one line.

    Args:
        site: folder of packages.
        folder: to run it in.
        options: of Python.
        limit: of open files, '' for the usual.
    """
    shell = f'{f"ulimit -Sn {limit}; " if limit else ""}exec "$@"'
    command = ["bash", "-c", shell, "bash", sys.executable, *options, "-m", "relabel", "doctor"]
    environment = os.environ | {"PYTHONPATH": f"{site}:{ROOT}"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stderr == ""
    return done.returncode, " ".join(done.stdout.split())


def test_a_healthy_machine(tmp_path: Path) -> None:
    status, out = diagnose(site_with(tmp_path, {}), tmp_path)
    for line in ("ok packages all 1", "ok torch 99.0", "ok torchvision 99.0", "ok timm 99.0", "ok simplejpeg"):
        assert line in out
    assert "ok python 3." in out and "shared memory " in out and " open files " in out and " gpu " in out
    assert "ok cores" in out
    assert (status == 0) == ("Nothing is wrong." in out) == ("WRONG" not in out)  # memory and files are the machine's
    assert list(tmp_path.iterdir()) == [tmp_path / "site"]


def test_a_mac(tmp_path: Path) -> None:
    """Without what only Linux has: the doctor neither fails nor complains."""
    site = site_with(tmp_path, {})
    (site / "sitecustomize.py").write_text("import os, sys; sys.platform = 'darwin'; del os.sched_getaffinity")
    _, out = diagnose(site, tmp_path)
    assert f"ok cores {os.cpu_count()}" in out and "shared memory" not in out


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        ("torchvision", "raise RuntimeError('no operator torchvision::nms')", "RuntimeError: no operator torchvision"),
        ("torch", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "imported it ended with status -11"),
    ],
)
def test_torch_and_torchvision_that_do_not_fit(tmp_path: Path, package: str, source: str, found: str) -> None:
    status, out = diagnose(site_with(tmp_path, {package: source}), tmp_path)
    assert status == 1 and f"WRONG {package} 99.0; " in out and found in out
    assert f"{package}: to fix it {REINSTALL}" in out
    assert "WRONG timm" not in out  # which only needs the broken one


def test_versions_that_do_not_fit_each_other(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "torchvision", "", requires="Requires-Dist: torch==98.0\n")
    for name in ("torch", "timm"):
        install(site, name, "")
    status, out = diagnose(site, tmp_path)
    assert status == 1 and "WRONG packages torchvision 99.0 " in out and "torch==98.0" in out
    assert f"packages: to fix it {REINSTALL}" in out


def test_a_jpeg_decoder_that_does_not_decode(tmp_path: Path) -> None:
    site = site_with(tmp_path, {"simplejpeg": "def decode_jpeg(data): raise ValueError('not a JPEG')"})
    status, out = diagnose(site, tmp_path)
    assert status == 1 and "WRONG simplejpeg 99.0; ValueError: not a JPEG" in out
    assert "-m pip install --force-reinstall --no-deps simplejpeg" in out


def test_missing_and_old_packages(tmp_path: Path) -> None:
    install(tmp_path / "site", "munch", "", "3.9")
    status, out = diagnose(site_with(tmp_path, {}), tmp_path, "-S")  # without the virtual environment's packages
    assert status == 1 and "munch 3.9 (>= 4.0)" in out and "pydantic missing (>= 2.10)" in out
    assert "fire missing" in out and "numpy missing" in out and "torch missing" not in out
    # -S hides the virtual environment, too; elsewhere systems refuse pip.
    assert f"{sys.executable} -m venv .venv && .venv/bin/python -m pip install -r {ROOT}/requirements.txt" in out


def test_the_gpu() -> None:
    assert check_gpu("13.0|NVIDIA H200", driver=True).found == "NVIDIA H200, CUDA 13.0"
    assert check_gpu("|", driver=False).fix == check_gpu("13.0|", driver=False).fix == ""
    for_cpus = check_gpu("|", driver=True)
    assert "this torch is a build for CPUs" in for_cpus.found and "uninstall -y torch" in for_cpus.fix
    unusable = check_gpu("13.0|", driver=True)
    assert "torch cannot use" in unusable.found and "--gpus all" in unusable.fix and "CUDA 13.0" in unusable.fix
    assert "unknown" in check_gpu("", driver=True).found


def test_little_shared_memory(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path, 1).fix == ""
    little = check_shared_memory(Path("/proc"), 64)  # a file system without room
    assert "0 MiB free in /proc; 32 loader workers may need 4,704" in little.found
    assert "--shm-size 5g" in little.fix and "num_workers" in little.fix
    assert "num_workers" in check_shared_memory(tmp_path / "none", 1).fix


def test_few_open_files(tmp_path: Path) -> None:
    status, out = diagnose(site_with(tmp_path, {}), tmp_path, limit="200")
    assert status == 1 and "WRONG open files at most 200; workers may need 1,024" in out and "ulimit -n 1024" in out


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    status, out = diagnose(site_with(tmp_path, {}), Path("/proc"))  # where even root cannot
    assert status == 1 and re.search(r"WRONG +writing +/proc", out)
