"""What every benchmark needs: its command line, progress, repeated timing, and a result with its provenance."""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from utils.processes.startup import keep_freed_memory
from utils.progress import JobProgress

T = TypeVar("T")
PROGRESS_EVERY_S = 10.0
PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured quantity: its unit, n values, their median, and the quartiles around it."""

    what: str
    unit: str
    n: int
    median: float
    quartiles: tuple[float, float]

    @classmethod
    def of(cls, what: str, unit: str, values: Sequence[float] | np.ndarray) -> "Figure":
        """Return the median and quartiles of at least one value."""
        low, middle, high = (float(v) for v in np.quantile(values, (0.25, 0.5, 0.75)))
        return cls(what, unit, len(values), middle, (low, high))


def arguments(about: str, *more: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line of a program: json (Path or None), tiny (bool), and the options of more parsers."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=about, parents=more)
    parser.add_argument("--json", type=Path, help="write the result to this file")
    parser.add_argument("--tiny", action="store_true", help="run in seconds; the figures mean nothing")
    return parser.parse_args()


def with_progress(items: Sequence[T], title: str, unit: str = "rounds") -> Iterator[T]:
    """Iterate over items; between them, print a line with rate and time left now and then.

    Not a live bar: its thread would take time from what is measured.
    """
    progress, last_line = JobProgress(title, len(items), unit, enabled=False), time.monotonic()
    for item in items:
        yield item
        progress.advance(1)
        if time.monotonic() - last_line > PROGRESS_EVERY_S:
            last_line = time.monotonic()
            progress.print_line(f"{title}  {progress.done:,} of {len(items):,} {unit}  {progress.pace()}")


def time_interleaved(
    functions: dict[str, Callable[[], object]], calls: dict[str, int], rounds: int
) -> dict[str, list[float]]:
    """Return seconds per call of each function; each round times all of them in turn, under the same conditions.

    Args:
        functions: by name; each is first called once without timing.
        calls: number of calls of each in a round.
        rounds: values per function.
    """
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in with_progress(range(rounds), "timing"):
        for name, function in functions.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                function()
            seconds[name].append((time.perf_counter() - start) / calls[name])
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def report(
    title: str,
    figures: Sequence[Figure],
    remarks: Sequence[str],
    json_file: Path | None,
    details: Mapping[str, object] | None = None,
) -> None:
    """Print the table; write the JSON file if one is named, with details that are not in the table."""
    table = Table(title=title)
    for heading in ("what", "median", "quartiles", "unit", "n"):
        table.add_column(heading, justify="left" if heading in ("what", "unit") else "right")
    for figure in figures:
        low, high = figure.quartiles
        table.add_row(figure.what, f"{figure.median:,.4g}", f"{low:,.4g} to {high:,.4g}", figure.unit, f"{figure.n:,}")
    console = Console()
    console.print(table)
    for remark in remarks:
        console.print(remark, highlight=False)
    if json_file:
        write_result(title, figures, remarks, json_file, details)
        console.print(f"written: {json_file}", highlight=False)


def write_result(
    title: str,
    figures: Sequence[Figure],
    remarks: Sequence[str],
    json_file: Path,
    details: Mapping[str, object] | None = None,
) -> None:
    """Write the JSON file, with date, machine and versions."""
    result = {
        "title": title,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "figures": [asdict(figure) for figure in figures],
        "remarks": list(remarks),
        **(details or {}),
    }
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.write_text(json.dumps(result, indent=2) + "\n")


def _machine() -> dict[str, object]:
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "gpus": gpus,
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch_threads": torch.get_num_threads(),
        **{name: version(name) for name in PACKAGES},
    }


def _cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
