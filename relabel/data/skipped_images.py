"""Images that cannot be read and are left out of training (data.on_error skip): counted, listed, at most 1 %.

A skipped image is missing from the batch of the process that would have read it. The update is the mean over the
images that were read, whatever the number of processes, and all other images keep their random numbers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relabel.data.dataset import ImageDataset, Key, Sample
from relabel.data.decode import UnreadableImage
from relabel.data.extra_images import MixedDataset
from relabel.data.images import ImagePath
from utils.errors import SharedError, UserError, listed
from utils.files import write_json
from utils.processes.distributed import from_main, gather_objects

LIST = "skipped_images.json"
MOST_PERCENT = 1

Found = dict[str, dict[str, str | int]]


@dataclass(frozen=True, slots=True)
class SkippedImage:
    """The path of an image that cannot be read, and the reason; returned instead of its Sample."""

    path: str
    reason: str


class SkippingDataset:
    """A training set that returns a SkippedImage where an image cannot be read, or an error that advises to skip it.

    A damaged label map is still an error: maps are computed, so they can be made again, and others may be wrong too.
    """

    def __init__(self, dataset: ImageDataset | MixedDataset, skip: bool) -> None:
        self._dataset, self._skip = dataset, skip

    def path(self, key: Key) -> ImagePath:
        """Return where the image of a key lies."""
        return self._dataset.path(key)

    def __getitem__(self, key: Key) -> Sample | SkippedImage:
        """Return the sample of a key, or a SkippedImage. UserError if it cannot be read and is not to be skipped."""
        try:
            return self._dataset[key]
        except UnreadableImage as error:
            if not self._skip:
                raise UserError(f"{error} Or train without it: --data.on_error skip.") from error
            return SkippedImage(str(error.path), error.reason)

    def on_cpu(self) -> "SkippingDataset":
        """Return the same samples, none of them encoded."""
        return SkippingDataset(self._dataset.on_cpu(), self._skip)


class SkippedImages:
    """The images that a run has skipped so far, the same on every process.

    Args:
        folder: the run folder, in which the list is written.
        num_images: of the training set, extra images included.

    Attributes:
        found: path -> {"reason": text, "epoch": the first one, counted from 1}.
        limit: number of images that a run may skip; at least one.
    """

    def __init__(self, folder: Path, num_images: int) -> None:
        self.found: Found = {}
        self.limit = max(1, num_images * MOST_PERCENT // 100)
        self._folder, self._num_images = folder, num_images

    def __len__(self) -> int:
        """Return the number of images skipped so far."""
        return len(self.found)

    def record(self, own: Sequence[SkippedImage], epoch: int) -> None:
        """Record the images that were skipped in an update; every process calls this with its own.

        Raises:
            SharedError: too many images were skipped, or the list cannot be written.
        """
        skipped = [image for images in gather_objects(list(own)) for image in images]
        new: Found = {
            image.path: {"reason": image.reason, "epoch": epoch} for image in skipped if image.path not in self.found
        }
        if new:
            self.found |= new
            from_main(lambda: self._report(new))
        if len(self) > self.limit:
            raise SharedError(
                f"{len(self):,} of {self._num_images:,} training images cannot be read; expected at most "
                f"{self.limit:,} ({MOST_PERCENT} %) to be skipped. They are listed in {self._folder / LIST}; the first:"
                + listed([f"{path} ({image['reason']})" for path, image in self.found.items()])
                + "\n  Replace them; the same command continues from the last checkpoint."
            )

    def _report(self, new: Found) -> None:
        """Write the list and print a warning for each new image."""
        write_json(self._folder / LIST, self.found)
        for path, image in new.items():
            print(f"warning: skipped {path} ({image['reason']})", file=sys.stderr, flush=True)
