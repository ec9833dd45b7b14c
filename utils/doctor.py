"""What is wrong with this machine and its Python for training, and the command that mends it.

Only the standard library is imported here: whatever is broken, this runs. Libraries are imported in a process of their
own, because a broken one may raise anything or kill the process.
"""

from __future__ import annotations  # for any Python 3: this is the program that says which one is needed

import json
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
OWN_PLACE = sys.prefix != sys.base_prefix  # a virtual environment; elsewhere systems keep pip out of their packages
PYTHON_HERE = shlex.quote(sys.executable)
PIP = f"{PYTHON_HERE} -m pip" if OWN_PLACE else f"{PYTHON_HERE} -m venv .venv && .venv/bin/python -m pip"
INSTALL = f"{PIP} install -r {shlex.quote(str(REQUIREMENTS))}"
# One resolver run for all three: torchvision and timm fit only the torch that they were built and resolved for.
REINSTALL = f"{PIP} uninstall -y torch torchvision timm\n    {INSTALL}" if OWN_PLACE else INSTALL
PIECE = 2 * 512 * 3 * 224 * 224  # bytes that a loader worker holds: two batches of base.yaml's size
MOST_WORKERS = 32  # compute.num_workers of base.yaml
OPEN_FILES = 1024
_WIDTH = 100

# Imports one library after the other and says what came of each; a crash is told by the silence after a name.
PROBE = """
import importlib, io, json
def tell(**facts): print(json.dumps(facts), flush=True)
for name in ("torch", "torchvision", "timm", "simplejpeg"):
    tell(name=name)
    try:
        module = importlib.import_module(name)
        if name == "torch":
            cuda = module.version.cuda or getattr(module.version, "hip", None)
            tell(name=name, build=cuda, gpus=module.cuda.device_count() if module.cuda.is_available() else 0)
        if name == "simplejpeg":
            from PIL import Image
            Image.new("RGB", (16, 8)).save(file := io.BytesIO(), "JPEG")
            assert module.decode_jpeg(file.getvalue()).shape == (8, 16, 3), "it misreads a JPEG file"
        tell(name=name, error="")
    except Exception as error:
        tell(name=name, error=f"{type(error).__name__}: {error}")
"""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Fields:
        subject: what.
        found: what it is like.
        fix: the command, or the advice, that mends it; '' where nothing is wrong.
    """

    subject: str
    found: str
    fix: str = ""


def doctor() -> None:
    """Say whether this machine can train, and the fix for each thing that is wrong.

    Looks at the required packages, torch and torchvision together, the GPU, the JPEG decoder, shared memory, open files
    and where runs are written. Exit status 1 when something is wrong.
    """
    findings = examine()
    print(table(findings), flush=True)
    sys.exit(any(finding.fix for finding in findings))


def examine() -> list[Finding]:
    """Look at everything, in the working folder."""
    libraries = probe_libraries()
    return [
        check_python(sys.version_info[:2]),
        check_packages(REQUIREMENTS),
        *check_libraries(libraries),
        check_gpu(libraries.get("torch", {}), nvidia_gpu()),
        check_shared_memory(Path("/dev/shm"), len(os.sched_getaffinity(0))),
        check_open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
        Finding("cores", str(len(os.sched_getaffinity(0)))),
        check_writable(Path("runs") if Path("runs").exists() else Path()),
    ]


def table(findings: list[Finding]) -> str:
    """One line each, then what to do about those that are wrong."""
    lines = []
    for finding in findings:
        start = f"{'WRONG' if finding.fix else 'ok':<7}{finding.subject:<15}"
        lines.append(textwrap.fill(start + finding.found, _WIDTH, subsequent_indent=" " * len(start)))
    fixes = [f"\n{finding.subject}: to mend it\n    {finding.fix}" for finding in findings if finding.fix]
    return "\n".join([*lines, *(fixes or ["\nNothing is wrong."])])


def check_python(version: tuple[int, ...]) -> Finding:
    """Whether this Python is new enough.

    Args:
        version: its first two numbers.
    """
    found = f"{sys.version.split()[0]}, {sys.executable}"
    if version >= PYTHON:
        return Finding("python", found)
    needed = ".".join(map(str, PYTHON))
    return Finding(
        "python",
        f"{found}; expected {needed} or newer",
        f"install Python {needed} or newer, then: rm -rf .venv && make test PYTHON=python{needed}",
    )


def check_packages(requirements: Path) -> Finding:
    """Whether every package of a requirements file is there and new enough; its lines are NAME>=VERSION."""
    wanted = re.findall(r"^([\w.-]+)>=([\d.]+)", requirements.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lacks = []
    for name, least in wanted:
        found = installed(name)
        if not found or _numbers(found) < _numbers(least):
            lacks.append(f"{name} {found or 'missing'} (>= {least})")
    if lacks:
        return Finding("packages", ", ".join(lacks), INSTALL)
    return Finding("packages", f"all {len(wanted)} of {requirements.name}")


def installed(package: str) -> str | None:
    """The version of an installed package, None where there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _numbers(text: str) -> tuple[int, ...]:
    """2.15.0+cu130 -> (2, 15, 0)."""
    return tuple(map(int, re.findall(r"\d+", re.split(r"[^\d.]", text)[0])))


def probe_libraries() -> dict[str, dict[str, object]]:
    """Import the compiled libraries in another process: name -> its `error` ('' for none), and of torch build, gpus."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=False)
    facts: dict[str, dict[str, object]] = {}
    for line in done.stdout.splitlines():
        if line.startswith("{"):  # libraries may print, too
            entry = json.loads(line)
            facts.setdefault(entry["name"], {}).update(entry)
    for entry in facts.values():
        entry.setdefault("error", f"the process that imported it ended with status {done.returncode}")
    return facts


def check_libraries(libraries: dict[str, dict[str, object]]) -> list[Finding]:
    """Whether each can be imported, and a JPEG file be decoded.

    What is missing is told with the packages; where torch or torchvision is broken, what needs it is not told too.
    """
    findings: list[Finding] = []
    for name, facts in libraries.items():
        error, found = " ".join(str(facts["error"]).split()), installed(name)
        if not found or (error and name == "timm" and any(finding.fix for finding in findings)):
            continue
        fix = f"{PIP} install --force-reinstall --no-deps {name}" if name == "simplejpeg" else REINSTALL
        findings.append(Finding(name, f"{found}; {error}", fix) if error else Finding(name, found))
    return findings


def nvidia_gpu(root: Path = Path("/")) -> str:
    """What says that there is an NVIDIA GPU, '' when nothing does.

    Args:
        root: of the file system.
    """
    for path in (root / "proc/driver/nvidia/version", root / "dev/nvidia0"):
        if path.exists():
            return str(path)
    try:  # where the driver is another system's, as under Windows
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return ""
    return "nvidia-smi" if listed.startswith("GPU ") else ""


def check_gpu(torch: dict[str, object], sign: str) -> Finding:
    """Whether torch can use the GPU that the machine has.

    Args:
        torch: what `probe_libraries` says of it.
        sign: of `nvidia_gpu`.
    """
    if torch.get("error") != "":
        return Finding("gpu", f"{sign or 'none'}; not known whether torch can use it")
    if torch["gpus"]:
        return Finding("gpu", f"{torch['gpus']}, CUDA {torch['build']}")
    if sign and not torch["build"]:
        return Finding("gpu", f"{sign} is there, but this torch is a build for CPUs", REINSTALL)
    if sign:
        fix = f"nvidia-smi  # its driver must do for CUDA {torch['build']}; in a container: docker run --gpus all"
        return Finding("gpu", f"{sign} is there, but torch cannot use it", fix)
    return Finding("gpu", "none: everything runs on the CPU")


def check_shared_memory(folder: Path, cores: int) -> Finding:
    """Whether the batches that loader workers hand over fit."""
    if not folder.is_dir():
        advice = f"mount a tmpfs at {folder}; or read without workers: --compute.num_workers 0"
        return Finding("shared memory", f"there is no {folder}, through which workers hand over images", advice)
    status = os.statvfs(folder)
    free, needed = status.f_bavail * status.f_frsize, PIECE * min(cores, MOST_WORKERS)
    found = f"{free / 2**20:,.0f} MiB free in {folder}"
    if free >= needed:
        return Finding("shared memory", found)
    size = f"{-(-needed // 2**30)}g"
    return Finding(
        "shared memory",
        f"{found}; {min(cores, MOST_WORKERS)} loader workers may need {needed / 2**20:,.0f}",
        f"mount -o remount,size={size} {folder}  # in a container: docker run --shm-size {size}; or fewer workers: "
        "--compute.num_workers N",
    )


def check_open_files(limit: int) -> Finding:
    """Whether the workers may open what they share."""
    if limit == resource.RLIM_INFINITY:
        return Finding("open files", "no limit")
    if limit >= OPEN_FILES:
        return Finding("open files", f"at most {limit:,}")
    return Finding(
        "open files", f"at most {limit:,}; loader workers may need {OPEN_FILES:,}", f"ulimit -n {OPEN_FILES}"
    )


def check_writable(folder: Path) -> Finding:
    """Whether runs can be written below a folder."""
    place = folder.resolve()
    try:
        with tempfile.TemporaryFile(dir=place):
            return Finding("run folder", f"below {place}")
    except OSError as error:
        fix = "cd FOLDER  # where you may write; or give the run such a place with --util.run_dir FOLDER"
        return Finding("run folder", f"{place} cannot be written: {error.strerror}", fix)
