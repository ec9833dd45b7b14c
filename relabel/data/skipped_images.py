"""Images that cannot be read and are left out of training, with data.on_error skip: noted, listed, and only few.

A skipped image is in no batch: its row is missing on the process that would have had it, and so is its label map. The
update is that of a batch without it, whatever the number of processes; all other images keep their random numbers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from relabel.data.dataset import Key, Sample
from relabel.data.decode import UnreadableImage
from utils.errors import SharedError, listed
from utils.files import write_json
from utils.processes.distributed import from_main, gather_objects

LIST = "skipped_images.json"
MOST_PERCENT = 1


Found = dict[str, dict[str, str | int]]


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """What stands where a Sample would: the path of the image, and why it cannot be read."""

    path: str
    reason: str


class Samples(Protocol):
    """A data set: an ImageDataset or a MixedDataset."""

    def __getitem__(self, key: Key) -> Sample:
        """The sample of a key."""
        ...


class SkippingDataset:
    """A data set that answers with a SkippedImage where the image cannot be read; its label map is not asked for.

    A damaged label map stays an error: maps are made, so they can be made again, and where one is wrong others may be.
    """

    def __init__(self, dataset: Samples) -> None:
        """Wrap a data set."""
        self._dataset = dataset

    def __getitem__(self, key: Key) -> Sample | SkippedImage:
        """The sample of a key, or what is left out."""
        try:
            return self._dataset[key]
        except UnreadableImage as error:
            return SkippedImage(str(error.path), error.reason)


class SkippedImages:
    """The images that a run has skipped so far, the same on every process.

    Args:
        folder: the run folder, in which the list is kept.
        num_images: of the training set, extra images included.

    Attributes:
        found: path -> {"reason": text, "epoch": the one, from 1, in which the image was first met}.
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        self.found: Found = {}
        self._folder, self._num_images = folder, num_images

    def __len__(self) -> int:
        """How many."""
        return len(self.found)

    @property
    def most(self) -> int:
        """How many a run may skip: one in a hundred, in a small data set one."""
        return max(1, self._num_images * MOST_PERCENT // 100)

    def note(self, mine: Sequence[SkippedImage], epoch: int) -> None:
        """Add what this and all other processes left out of an update; every one calls it.

        Raises:
            SharedError: these are too many, or the list cannot be written.
        """
        met = {image.path: image.reason for images in gather_objects(list(mine)) for image in images}
        new: Found = {
            path: {"reason": reason, "epoch": epoch} for path, reason in met.items() if path not in self.found
        }
        if new:
            self.found |= new
            from_main(lambda: self._tell(new))
        if len(self) > self.most:
            raise SharedError(
                f"{len(self):,} of {self._num_images:,} training images cannot be read; expected at most {self.most:,} "
                f"({MOST_PERCENT} %) to be skipped. They are listed in {self._folder / LIST}; the first:"
                + listed([f"{path} ({image['reason']})" for path, image in self.found.items()])
                + "\n  Replace them; the same command continues from the last checkpoint."
            )

    def _tell(self, new: Found) -> None:
        """Write the list, and name what is new in it."""
        write_json(self._folder / LIST, self.found)
        for path, image in new.items():
            print(f"warning: skipped {path} ({image['reason']})", file=sys.stderr, flush=True)
