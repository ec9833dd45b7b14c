"""What the programs of benchmarks/ compare with, and the images that all of them read.

Each module of readers has `readers(job) -> {name: Reader}` and imports the package that it needs at its top, so it is
imported only by `benchmarks/input_path.py` and if installed; benchmarks/requirements.txt lists the packages.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import TypeVar

from relabel.data.images import ImageList

T = TypeVar("T")

SIZE = 224  # side of the crops, pixels
RATIOS = (3 / 4, 4 / 3)  # of their sides
SHORTER, QUALITY = 320, 90  # of shrunk images

# Starts to read and yields, for each batch, the number of its images once they are decoded in this process's memory.
Reader = Callable[[], Iterator[int]]


@dataclass(frozen=True, slots=True)
class Job:
    """What every contender reads, and with how many workers.

    Fields:
        photos: JPEG files in class folders; enough for one measurement, as most peers read an epoch and stop.
        labels: folder of their label maps as .pt files.
        batch: images in a batch.
        workers: processes, or threads where the contender uses those.
        scratch: folder for a contender's own files.
        shards: the same in tar shards; None if they are not measured.
        shrunk: the same with a shorter side of at most SHORTER pixels, in tar shards; None likewise.
    """

    photos: ImageList
    labels: Path
    batch: int
    workers: int
    scratch: Path
    shards: ImageList | None = None
    shrunk: ImageList | None = None


def installed(makers: Mapping[str, tuple[str, Callable[[], T]]]) -> tuple[dict[str, T], list[str]]:
    """Make what is installed; return it with remarks: one for each that is not, and the versions of the packages.

    Args:
        makers: by name; the packages to install, and a function that imports them.
    """
    made, remarks = {}, []
    for name, (packages, make) in makers.items():
        try:
            made[name] = make()
        except (ImportError, OSError, RuntimeError) as error:  # the last two: a library of the system's is missing
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            remarks.append(f"left out: {name} ({reason}); pip install {packages}, see benchmarks/requirements.txt")
    used = dict.fromkeys(word for name in made for word in makers[name][0].split())
    found = {package.metadata["Name"]: package.version for package in distributions()}
    return made, [*remarks, "versions: " + ", ".join(f"{name} {found[name]}" for name in used if name in found)]
