"""The doctor names what is wrong with a machine, each fault made from outside, and exits 1; where all is well, 0."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import ROOT
from utils.doctor import check_gpu, check_open_files, check_python, check_shared_memory, check_writable, nvidia_gpu

TORCH = """
class version:
    cuda = {cuda!r}
class cuda:
    is_available = staticmethod(lambda: {gpus} > 0)
    device_count = staticmethod(lambda: {gpus})
"""
HEALTHY = {"torch": TORCH.format(cuda=None, gpus=0), "torchvision": "", "timm": "import torchvision"}


def install(folder: Path, name: str, source: str, version: str = "99.0") -> None:
    """Put a package where PYTHONPATH finds it before the real one."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(source)
    (folder / f"{name}-{version}.dist-info").mkdir()
    (folder / f"{name}-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )


def ask(site: Path, folder: Path, *options: str, limit: str = "", path: str = "") -> tuple[int, str]:
    """`python -m relabel doctor` with packages of a site: exit status and what it printed, in one line.

    Args:
        site: folder of packages.
        folder: to run it in.
        options: of Python.
        limit: of open files, '' for the usual.
        path: a folder of programs that come before the usual ones.
    """
    shell = f'{f"ulimit -Sn {limit}; " if limit else ""}exec "$@"'
    command = ["bash", "-c", shell, "bash", sys.executable, *options, "-m", "relabel", "doctor"]
    environment = os.environ | {"PYTHONPATH": f"{site}:{ROOT}", "PATH": f"{path}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, env=environment)
    assert done.stderr == ""
    return done.returncode, " ".join(done.stdout.split())


def healthy_but(folder: Path, packages: Mapping[str, str]) -> Path:
    """A folder of packages that import, but for some."""
    for name, source in {**HEALTHY, **packages}.items():
        install(folder / "site", name, source)
    return folder / "site"


def test_a_healthy_machine(tmp_path: Path) -> None:
    status, out = ask(healthy_but(tmp_path, {}), tmp_path)
    for line in ("ok packages all 2", "ok torch 99.0", "ok torchvision 99.0", "ok timm 99.0", "ok simplejpeg"):
        assert line in out
    assert "ok python 3." in out and "shared memory " in out and " open files " in out and " gpu " in out
    assert f"ok run folder below {tmp_path}" in out and "ok cores" in out
    assert (status == 0) == ("Nothing is wrong." in out) == ("WRONG" not in out)  # memory and files are the machine's
    assert list(tmp_path.iterdir()) == [tmp_path / "site"]


@pytest.mark.parametrize(
    ("package", "source", "found"),
    [
        (
            "torchvision",
            "raise RuntimeError('operator torchvision::nms does not exist')",
            "RuntimeError: operator torchvision::nms does not exist",
        ),
        (
            "torchvision",
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "the process that imported it ended with status -11",
        ),
        ("torch", "raise OSError('libcudart.so: cannot open')", "OSError: libcudart.so: cannot open"),
    ],
)
def test_torch_and_torchvision_that_do_not_fit(tmp_path: Path, package: str, source: str, found: str) -> None:
    status, out = ask(healthy_but(tmp_path, {package: source}), tmp_path)
    assert status == 1 and f"WRONG {package} 99.0; {found}" in out
    pip = f"{sys.executable} -m pip"
    fix = f"{pip} uninstall -y torch torchvision timm {pip} install -r {ROOT}/requirements.txt"
    assert f"{package}: to mend it {fix}" in out
    assert "WRONG timm" not in out  # which only needs the broken one


def test_a_jpeg_decoder_that_does_not_decode(tmp_path: Path) -> None:
    site = healthy_but(tmp_path, {"simplejpeg": "def decode_jpeg(data): raise ValueError('not a JPEG')"})
    status, out = ask(site, tmp_path)
    assert status == 1 and "WRONG simplejpeg 99.0; ValueError: not a JPEG" in out
    assert "-m pip install --force-reinstall --no-deps simplejpeg" in out


def test_missing_and_old_packages(tmp_path: Path) -> None:
    install(tmp_path / "site", "munch", "", "3.9")
    site = healthy_but(tmp_path, {})
    status, out = ask(site, tmp_path, "-S")  # without the virtual environment's packages
    assert status == 1 and "munch 3.9 (>= 4.0)" in out and "pydantic missing (>= 2.10)" in out
    assert "fire missing" in out and "numpy missing" in out and "torch missing" not in out
    # -S hides the virtual environment, too; elsewhere systems refuse pip.
    assert f"{sys.executable} -m venv .venv && .venv/bin/python -m pip install -r {ROOT}/requirements.txt" in out


def test_a_python_that_is_too_old() -> None:
    assert check_python((3, 11)).fix == check_python((3, 14)).fix == ""
    old = check_python((3, 10))
    assert "expected 3.11 or newer" in old.found and "PYTHON=python3.11" in old.fix


def test_a_build_for_cpus_where_a_gpu_is(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvidia-smi").write_text("#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-0)'\n")
    (tmp_path / "bin" / "nvidia-smi").chmod(0o755)
    status, out = ask(healthy_but(tmp_path, {}), tmp_path, path=str(tmp_path / "bin"))
    assert status == 1 and "is there, but this torch is a build for CPUs" in out
    assert "gpu: to mend it" in out and "pip uninstall -y torch torchvision timm" in out


@pytest.mark.parametrize("sign", ["proc/driver/nvidia/version", "dev/nvidia0"])
def test_signs_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: str) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert nvidia_gpu(tmp_path) == ""
    (tmp_path / sign).parent.mkdir(parents=True)
    (tmp_path / sign).touch()
    assert nvidia_gpu(tmp_path) == str(tmp_path / sign)


def test_what_is_said_of_a_gpu() -> None:
    cuda = {"error": "", "build": "13.0", "gpus": 0}
    assert check_gpu({**cuda, "gpus": 2}, "/dev/nvidia0").fix == ""
    assert check_gpu({**cuda, "build": None}, "").fix == "" and check_gpu(cuda, "").fix == ""
    assert "driver" in check_gpu(cuda, "/dev/nvidia0").fix and "--gpus all" in check_gpu(cuda, "/dev/nvidia0").fix
    assert "not known" in check_gpu({"error": "ImportError"}, "/dev/nvidia0").found


def test_little_shared_memory(tmp_path: Path) -> None:
    assert check_shared_memory(tmp_path, 1).fix == ""
    assert "--compute.num_workers 0" in check_shared_memory(tmp_path / "none", 1).fix
    little = check_shared_memory(Path("/proc"), 64)  # a file system without room
    assert "0 MiB free in /proc; 32 loader workers may need 4,704" in little.found
    assert "mount -o remount,size=5g /proc" in little.fix and "--shm-size 5g" in little.fix
    assert "--compute.num_workers" in little.fix


def test_few_open_files(tmp_path: Path) -> None:
    status, out = ask(healthy_but(tmp_path, {}), tmp_path, limit="200")
    assert (
        status == 1 and "WRONG open files at most 200; loader workers may need 1,024" in out and "ulimit -n 1024" in out
    )
    assert check_open_files(1024).fix == check_open_files(-1).fix == ""


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    status, out = ask(healthy_but(tmp_path, {}), Path("/proc"))  # where even root cannot
    assert status == 1 and "WRONG run folder /proc cannot be written" in out and "--util.run_dir" in out
    (tmp_path / "runs").touch()
    assert "cannot be written" in check_writable(tmp_path / "runs").found
