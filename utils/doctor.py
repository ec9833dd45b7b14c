"""Check that this machine and its Python can train, and print the command that fixes each problem.

Only the standard library is imported here, so this runs whatever else is broken. The other libraries are imported in
separate processes, because a broken one may raise anything or kill its process.
"""

from __future__ import annotations  # this program must start in any Python 3 to say which one is needed

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
PYTHON = (3, 11)
NEW_PYTHON = "install Python 3.11 or newer, then: rm -rf .venv && make test PYTHON=python3.11"
IN_VENV = sys.prefix != sys.base_prefix  # outside one, many systems do not let pip change their packages
PYTHON_HERE = shlex.quote(sys.executable)
PIP = f"{PYTHON_HERE} -m pip" if IN_VENV else f"{PYTHON_HERE} -m venv .venv && .venv/bin/python -m pip"
INSTALL = f"{PIP} install -r {shlex.quote(str(REQUIREMENTS))}"
# One resolver run for all three: torchvision and timm fit only the torch that they were built and resolved for.
REINSTALL = f"{PIP} uninstall -y torch torchvision timm\n    {INSTALL}" if IN_VENV else INSTALL
DRIVER = Path("/proc/driver/nvidia/version")  # visible in containers, even in those without access to a GPU
WORKER_BYTES = 2 * 512 * 3 * 224 * 224  # two batches of images, which a loader worker keeps in shared memory
MOST_WORKERS = 32
OPEN_FILES = 1024

DECODE = """
import io, simplejpeg
from PIL import Image
Image.new("RGB", (16, 8)).save(file := io.BytesIO(), "JPEG")
assert simplejpeg.decode_jpeg(file.getvalue()).shape == (8, 16, 3), "it misreads a JPEG file"
"""
# The CUDA version that torch was built for, and the GPU that it can use.
GPU = """
import torch
print(torch.version.cuda or "", torch.cuda.get_device_name() if torch.cuda.is_available() else "", sep="|")
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Fields:
        subject: what was checked.
        found: its state.
        fix: the command or advice that fixes it; '' if nothing is wrong.
    """

    subject: str
    found: str
    fix: str = ""


def doctor() -> None:
    """Check whether this machine can train, and print the fix for everything that is wrong.

    Checks Python, the required packages, torch and torchvision together, the GPU, the JPEG decoder, shared memory, open
    files, and that the current folder can be written. Exit status 1 if something is wrong.
    """
    import resource  # Windows has none, and importing this file must not fail there

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    python = f"{sys.version.split()[0]}, {sys.executable}"
    findings = [
        Finding("python", python, NEW_PYTHON if sys.version_info < PYTHON else ""),
        check_packages(),
        *check_libraries(),
        check_gpu(_run("-c", GPU).stdout.strip(), DRIVER.exists()),
        *([check_shared_memory(Path("/dev/shm"), cores)] if sys.platform == "linux" else []),
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        check_writing(Path.cwd()),
        Finding("cores", str(cores)),
    ]
    lines = textwrap.TextWrapper(80, subsequent_indent=" " * 22, break_long_words=False, break_on_hyphens=False)
    for finding in findings:
        print(lines.fill(f"{'WRONG' if finding.fix else 'ok':<7}{finding.subject:<15}{finding.found}"))
    wrong = [finding for finding in findings if finding.fix]
    print(*(f"\n{finding.subject}: to fix it\n    {finding.fix}" for finding in wrong), sep="\n")
    print("" if wrong else "Nothing is wrong.", flush=True)
    sys.exit(bool(wrong))


def check_packages() -> Finding:
    """Check that the packages of requirements.txt (lines NAME>=VERSION) are installed, new enough and compatible."""
    wanted = re.findall(r"^([\w.-]+)>=([\d.]+)", REQUIREMENTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {name: _installed(name) for name, _ in wanted}
    wrong = [
        f"{name} {found[name] or 'missing'} (>= {least})"
        for name, least in wanted
        if _numbers(found[name]) < _numbers(least)
    ]
    if wrong:
        return Finding("packages", ", ".join(wrong), INSTALL)
    conflicts = [line for line in _run("-m", "pip", "check").stdout.splitlines() if line.split()[0].lower() in found]
    found_all = f"all {len(wanted)} of {REQUIREMENTS.name}"
    return Finding("packages", " ".join(conflicts), REINSTALL) if conflicts else Finding("packages", found_all)


def _installed(package: str) -> str:
    """Return the version of an installed package, '' if it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False)


def check_libraries() -> list[Finding]:
    """Check that the compiled libraries can be imported, and that a JPEG file can be decoded.

    Missing ones are reported with the packages; libraries that need a broken one are not reported as well.
    """
    findings = [_check_library("simplejpeg", DECODE, f"{PIP} install --force-reinstall --no-deps simplejpeg")]
    for name in ("torch", "torchvision", "timm"):
        findings.append(_check_library(name, f"import {name}", REINSTALL))
        if findings[-1].fix:
            break
    return [finding for finding in findings if finding.found]


def _check_library(name: str, program: str, fix: str) -> Finding:
    """Run a program that uses a library; `found` is '' if the library is not installed."""
    found, done = _installed(name), _run("-c", program)
    if not found or done.returncode == 0:
        return Finding(name, found)
    crash = f"the process that imported it ended with status {done.returncode}"
    error = done.stderr.strip().rpartition("\n")[2] if done.returncode == 1 else crash
    return Finding(name, f"{found}; {error}", fix)


def check_gpu(answer: str, driver: bool) -> Finding:
    """Check that torch can use the machine's GPU.

    Args:
        answer: output of the program GPU, '' if torch is broken.
        driver: whether NVIDIA's driver is loaded.
    """
    cuda, _, name = answer.partition("|")
    if name or not driver:
        return Finding("gpu", f"{name}, CUDA {cuda}" if name else "none: everything runs on the CPU")
    if not answer:
        return Finding("gpu", "an NVIDIA driver is loaded; unknown whether torch can use the GPU")
    if not cuda:
        return Finding("gpu", "an NVIDIA driver is loaded, but this torch is a build for CPUs", REINSTALL)
    fix = f"nvidia-smi  # its driver must support CUDA {cuda}; in a container: docker run --gpus all"
    return Finding("gpu", "an NVIDIA driver is loaded, but torch cannot use the GPU", fix)


def check_shared_memory(folder: Path, cores: int) -> Finding:
    """Check that there is room for the batches that loader workers hand over."""
    workers = min(cores, MOST_WORKERS)
    free, needed = shutil.disk_usage(folder).free if folder.is_dir() else 0, WORKER_BYTES * workers
    found = f"{free / 2**20:,.0f} MiB free in {folder}"
    if free >= needed:
        return Finding("shared memory", found)
    size = f"{-(-needed // 2**30)}g"
    fix = f"mount -o remount,size={size} {folder}  # in a container: docker run --shm-size {size}; or lower num_workers"
    return Finding("shared memory", f"{found}; {workers} loader workers may need {needed / 2**20:,.0f}", fix)


def check_open_files(limit: int) -> Finding:
    """Check that the workers may open enough files; a limit of -1 means none."""
    if 0 <= limit < OPEN_FILES:
        return Finding("open files", f"at most {limit:,}; workers may need {OPEN_FILES:,}", f"ulimit -n {OPEN_FILES}")
    return Finding("open files", f"at most {limit:,}" if limit >= 0 else "no limit")


def check_writing(folder: Path) -> Finding:
    """Check that runs can be written below a folder."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Finding("writing", str(folder))
    except OSError as error:
        return Finding("writing", f"{folder}: {error.strerror}", "cd FOLDER  # a folder where you may write")
