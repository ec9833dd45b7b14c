"""Check that this machine and its Python can train, and print the command that mends what is wrong.

Only the standard library is imported here, so this runs whatever is broken. pip, torch.utils.collect_env and the
libraries run in processes of their own, because a broken library may raise anything or kill its process.
"""

from __future__ import annotations  # this program must start in any Python 3 to say which one is needed

import os
import re
import resource
import shlex
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements.txt"
PYTHON = (3, 11)
IN_VENV = sys.prefix != sys.base_prefix  # outside, systems refuse to let pip change their packages
PYTHON_HERE = shlex.quote(sys.executable)
PIP = f"{PYTHON_HERE} -m pip" if IN_VENV else f"{PYTHON_HERE} -m venv .venv && .venv/bin/python -m pip"
INSTALL = f"{PIP} install -r {shlex.quote(str(REQUIREMENTS))}"
# One resolver run for all three: torchvision and timm fit only the torch that they were built and resolved for.
REINSTALL = f"{PIP} uninstall -y torch torchvision timm\n    {INSTALL}" if IN_VENV else INSTALL
DRIVER = Path("/proc/driver/nvidia/version")  # containers show it even where they were given no GPU
WORKER_BYTES = 2 * 512 * 3 * 224 * 224  # two batches of images, which a loader worker holds in shared memory
MOST_WORKERS = 32
OPEN_FILES = 1024

DECODE = """
import io, simplejpeg
from PIL import Image
Image.new("RGB", (16, 8)).save(file := io.BytesIO(), "JPEG")
assert simplejpeg.decode_jpeg(file.getvalue()).shape == (8, 16, 3), "it misreads a JPEG file"
"""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Fields:
        subject: what was checked.
        found: its state.
        fix: the command or advice that mends it; '' where nothing is wrong.
    """

    subject: str
    found: str
    fix: str = ""


def doctor() -> None:
    """Check whether this machine can train, and print the fix for everything that is wrong.

    Checks Python, the required packages, torch and torchvision together, the GPU, the JPEG decoder, shared memory, open
    files and the folder that runs are written to. Exit status 1 when something is wrong.
    """
    environment = _run("-m", "torch.utils.collect_env").stdout
    findings = [
        check_python(sys.version_info[:2]),
        check_packages(),
        *check_libraries(),
        check_gpu(environment, DRIVER.exists()),
        check_shared_memory(Path("/dev/shm"), len(os.sched_getaffinity(0))),
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        Finding("cores", str(len(os.sched_getaffinity(0)))),
        check_writable(Path("runs") if Path("runs").exists() else Path()),
    ]
    lines = textwrap.TextWrapper(80, subsequent_indent=" " * 22, break_long_words=False, break_on_hyphens=False)
    for finding in findings:
        print(lines.fill(f"{'WRONG' if finding.fix else 'ok':<7}{finding.subject:<15}{finding.found}"))
    wrong = [finding for finding in findings if finding.fix]
    print(*(f"\n{finding.subject}: to mend it\n    {finding.fix}" for finding in wrong), sep="\n")
    print("" if wrong else "Nothing is wrong.", flush=True)
    sys.exit(bool(wrong))


def check_python(found: tuple[int, ...]) -> Finding:
    """Check the first two numbers of Python's version."""
    needed = ".".join(map(str, PYTHON))
    text = f"{sys.version.split()[0]}, {sys.executable}"
    if found >= PYTHON:
        return Finding("python", text)
    fix = f"install Python {needed} or newer, then: rm -rf .venv && make test PYTHON=python{needed}"
    return Finding("python", f"{text}; expected {needed} or newer", fix)


def check_packages() -> Finding:
    """Check that the packages of requirements.txt (lines NAME>=VERSION) are there, new enough, and fit each other."""
    wanted = re.findall(r"^([\w.-]+)>=([\d.]+)", REQUIREMENTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {name: installed(name) for name, _ in wanted}
    wrong = [
        f"{name} {found[name] or 'missing'} (>= {least})"
        for name, least in wanted
        if _numbers(found[name]) < _numbers(least)
    ]
    if wrong:
        return Finding("packages", ", ".join(wrong), INSTALL)
    conflicts = [line for line in _run("-m", "pip", "check").stdout.splitlines() if line.split()[0].lower() in found]
    fix = REINSTALL if conflicts else ""
    return Finding("packages", " ".join(conflicts) or f"all {len(wanted)} of {REQUIREMENTS.name}", fix)


def installed(package: str) -> str:
    """Return the version of an installed package, '' where there is none."""
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

    Missing ones are reported with the packages; what needs a broken one is not reported too.
    """
    findings = []
    for name in ("simplejpeg", "torch", "torchvision", "timm"):
        found, done = installed(name), _run("-c", DECODE if name == "simplejpeg" else f"import {name}")
        if found and done.returncode == 0:
            findings.append(Finding(name, found))
        elif found:
            crash = f"the process that imported it ended with status {done.returncode}"
            error = done.stderr.strip().rpartition("\n")[2] if done.returncode == 1 else crash
            single = f"{PIP} install --force-reinstall --no-deps {name}"
            findings.append(Finding(name, f"{found}; {error}", single if name == "simplejpeg" else REINSTALL))
            if name != "simplejpeg":
                break
    return findings


def check_gpu(environment: str, driver: bool) -> Finding:
    """Check that torch can use the machine's GPU.

    Args:
        environment: output of torch.utils.collect_env, '' where torch is broken.
        driver: whether NVIDIA's driver is loaded.
    """
    facts = dict(line.split(": ", 1) for line in environment.splitlines() if ": " in line)
    model, build = facts.get("GPU models and configuration", ""), facts.get("CUDA used to build PyTorch", "")
    sign = model if "GPU" in model else "an NVIDIA driver" if driver else ""
    if not environment:
        return Finding("gpu", f"{sign or 'none'}; unknown whether torch can use it")
    if facts.get("Is CUDA available") == "True":
        return Finding("gpu", f"{model}, CUDA {build}")
    if not sign:
        return Finding("gpu", "none: everything runs on the CPU")
    if not re.match(r"\d", build):
        return Finding("gpu", f"{sign} is there, but this torch is a build for CPUs", REINSTALL)
    fix = f"nvidia-smi  # its driver must support CUDA {build}; in a container: docker run --gpus all"
    return Finding("gpu", f"{sign} is there, but torch cannot use it", fix)


def check_shared_memory(folder: Path, cores: int) -> Finding:
    """Check that there is room for the batches that loader workers hand over."""
    if not folder.is_dir():
        fix = f"mount a tmpfs at {folder}; or read without workers: num_workers 0"
        return Finding("shared memory", f"there is no {folder}, through which workers hand over images", fix)
    status, workers = os.statvfs(folder), min(cores, MOST_WORKERS)
    free, needed = status.f_bavail * status.f_frsize, WORKER_BYTES * workers
    found = f"{free / 2**20:,.0f} MiB free in {folder}"
    if free >= needed:
        return Finding("shared memory", found)
    size = f"{-(-needed // 2**30)}g"
    return Finding(
        "shared memory",
        f"{found}; {workers} loader workers may need {needed / 2**20:,.0f}",
        f"mount -o remount,size={size} {folder}  # in a container: docker run --shm-size {size}; or lower num_workers",
    )


def check_open_files(limit: int) -> Finding:
    """Check that the workers may open what they share."""
    if limit >= OPEN_FILES or limit == resource.RLIM_INFINITY:
        return Finding("open files", f"at most {limit:,}" if limit >= 0 else "no limit")
    found = f"at most {limit:,}; loader workers may need {OPEN_FILES:,}"
    return Finding("open files", found, f"ulimit -n {OPEN_FILES}")


def check_writable(folder: Path) -> Finding:
    """Check that runs can be written below a folder."""
    place = folder.resolve()
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding("run folder", f"below {place}")
    except OSError as error:
        fix = "cd FOLDER  # one that you may write to; or give the run such a folder as run_dir"
        return Finding("run folder", f"{place} cannot be written: {error.strerror}", fix)
