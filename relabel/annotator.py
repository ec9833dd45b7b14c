"""The machine annotator: a strong classifier, applied to each cell of whole images, writes their label maps.

The teacher keeps its weights; models/fully_convolutional turns it into a network of maps. The image is squashed to the
teacher's input size, so a fraction of the image is the same fraction of the map.
"""

import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from relabel.crop_box import WHOLE_IMAGE
from relabel.dataset import Crop, ImageDataset, ImageList
from relabel.decode import ImageFile
from relabel.label_map import LabelMap, class_dtype
from relabel.label_store import SUFFIX, open_label_store, write_label_map
from relabel.loader import Batch, Key, Loader, collate
from utils.errors import UserError
from utils.progress import JobProgress, duration

LISTED_IMAGES = 10
# Maps of one teacher differ in near ties only, whatever the device and the batch; those of two differ in most cells.
SAME_TEACHER_AGREEMENT = 0.5
# Half precision holds the ids of so many classes exactly.
LARGEST_HALF_CLASSES = 2049
# Read but not yet written when a later batch fails: one batch on its way to the device, one on its way back.
BATCHES_IN_FLIGHT = 2


@dataclass(frozen=True, slots=True)
class Annotated:
    """What `annotate` did.

    Fields:
        written, kept: maps made now, and maps that were there before.
        shape: (k, h, w) of each map.
        absent_probability: share of a cell's probability that falls to the K - k classes it does not store when they
            count as logit 0, mean over the cells written; nan if none was. Near 1, the maps teach next to nothing
            unless fill and temperature are changed.
    """

    written: int
    kept: int
    shape: tuple[int, int, int]
    absent_probability: float


def annotate(
    images: ImageList,
    out: str | Path,
    teacher: nn.Module,
    *,
    input_size: tuple[int, int],
    k: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    batch_size: int,
    device: torch.device,
    num_workers: int,
    half: bool = False,
) -> Annotated:
    """Write OUT/CLASS/STEM.pt for every image that has none yet; the same call continues an interrupted run.

    Computes in float32 unless called under torch.autocast.

    Args:
        images: what to annotate.
        out: folder of the label maps; made if it is not there.
        teacher: float [B, 3, rows, columns] -> logits [B, K, h, w]; moved to the device, put into evaluation mode.
        input_size: (rows, columns) that each whole image is squashed to, pixels.
        k: classes kept per cell, 1..K (5 in the paper).
        mean, std: what the teacher's input is normalised with, per RGB channel, for pixels in [0, 1].
        interpolation: as in ImageFile.resized_crop.
        batch_size: images per forward pass.
        device: where the teacher runs.
        num_workers: processes that read images ahead; 0 reads in this one.
        half: store float16 maps instead of float32 (only where class ids stay exact).

    Raises:
        UserError: k does not suit K; the teacher cannot take this input size; `out` cannot be written or holds maps of
            another teacher or shape; some images cannot be read (said at the end, when all others have their maps).
    """
    annotator = _Annotator(teacher, mean, std, k, half, device, input_size)
    dataset = ImageDataset(images, _SquashedView(*input_size, interpolation))
    job = _Job(dataset, annotator, _writable_folder(Path(out)), batch_size, num_workers)
    todo = job.unfinished_rows()
    kept = len(images) - len(todo)
    if kept:
        job.check_same_teacher(next(row for row, other in enumerate([*todo, -1]) if row != other))
    start = time.monotonic()
    with JobProgress("annotate", len(images), "images", done=kept) as progress:
        unreadable = job.run(todo, progress)
        result = Annotated(len(todo) - len(unreadable), kept, annotator.shape, job.absent_probability())
        progress.say(_summary(result, time.monotonic() - start))
    if unreadable:
        raise UserError(_unreadable_message(unreadable, len(images)))
    return result


@dataclass(frozen=True, slots=True)
class _SquashedView:
    """The whole image, aspect not kept, in this many rows and columns; a View of relabel.dataset."""

    rows: int
    columns: int
    interpolation: str

    def look(self, file: ImageFile, epoch: int, index: int) -> Crop:
        """The whole image; epoch and index do not matter."""
        return Crop(file.resized_crop(WHOLE_IMAGE, self.rows, self.columns, self.interpolation), WHOLE_IMAGE, None)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Batches of given images, in order; a BatchSampler of relabel.loader."""

    rows: Sequence[int]
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        for start in range(0, len(self.rows), self.batch_size):
            yield [(0, row) for row in self.rows[start : start + self.batch_size]]


@dataclass(frozen=True, slots=True)
class _Queued:
    """Maps on their way to the host, there once `done` has passed: rows, absent [B]; scores, classes [B, k, h, w]."""

    rows: Tensor
    scores: Tensor
    classes: Tensor
    absent: Tensor
    done: torch.cuda.Event | None

    def maps(self) -> dict[int, LabelMap]:
        """The map of each row, when they have arrived."""
        if self.done is not None:
            self.done.synchronize()
        label_maps = map(LabelMap, self.scores.numpy(), self.classes.numpy())
        return dict(zip(self.rows.tolist(), label_maps, strict=True))


class _Annotator:
    """Teacher, normalisation and top-k, all on the device. One forward pass on zeros finds K and `shape`, (k, h, w)."""

    def __init__(
        self,
        teacher: nn.Module,
        mean: Sequence[float],
        std: Sequence[float],
        k: int,
        half: bool,
        device: torch.device,
        input_size: tuple[int, int],
    ) -> None:
        # On CUDA convolutions are fastest with the channels last; on a CPU it depends on the network.
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self._teacher = teacher.eval().to(device).to(memory_format=self._layout)
        self._mean = torch.tensor(mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(3, 1, 1) * 255
        self._dtype = torch.float16 if half else torch.float32
        self.device = device
        tried = self._try(input_size)
        assert len(tried) == 3, f"the teacher must be fully convolutional, but gives {list(tried)} an image"
        self.num_classes, h, w = tried
        self.shape = (k, h, w)
        self._id_dtype = torch.from_numpy(np.empty(0, class_dtype(self.num_classes))).dtype
        if not 1 <= k <= self.num_classes:
            raise UserError(
                f"k = {k} classes per cell were asked for, but the teacher knows {self.num_classes}; "
                f"give a k in 1..{self.num_classes} (5 in the paper)"
            )
        if half and self.num_classes > LARGEST_HALF_CLASSES:
            raise UserError(
                f"half-precision label maps hold the ids of at most {LARGEST_HALF_CLASSES} classes exactly, but the "
                f"teacher knows {self.num_classes}; write float32 maps"
            )

    @torch.inference_mode()
    def queue(self, batch: Batch) -> _Queued:
        """Start the maps of a batch of whole images; on CUDA this returns before they are done."""
        scores, classes = self._logits(batch.images).topk(self.shape[0], dim=1)
        # The absent classes as one more entry: n of them at logit 0 weigh as much as one at log n.
        absent_logit = torch.full_like(scores[:, :1], self.num_classes - self.shape[0]).log()
        absent = torch.cat([scores, absent_logit], 1).softmax(1)[:, -1].mean((1, 2))
        rows, stored, ids, absent = (
            result.to("cpu", non_blocking=True)
            for result in (batch.indices, scores.to(self._dtype), classes.to(self._id_dtype), absent)
        )
        done = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        return _Queued(rows, stored, ids, absent, done)

    @torch.inference_mode()
    def _try(self, input_size: tuple[int, int]) -> torch.Size:
        """[K, h, w] for this input size."""
        rows, columns = input_size
        try:
            return self._logits(torch.zeros(1, 3, rows, columns, dtype=torch.uint8, device=self.device)).shape[1:]
        except (RuntimeError, ValueError, AssertionError) as error:  # timm asserts the size
            raise UserError(
                f"the teacher cannot take images of {rows} x {columns} pixels (rows x columns): {error}. "
                "Give the input size that it was made for"
            ) from error

    def _logits(self, images: Tensor) -> Tensor:
        normalised = ((images.float() - self._mean) / self._std).contiguous(memory_format=self._layout)
        logits: Tensor = self._teacher(normalised)
        return logits.float()


class _Job:
    """Annotator, data and folder of one call of `annotate`."""

    def __init__(
        self, dataset: ImageDataset, annotator: _Annotator, out: Path, batch_size: int, num_workers: int
    ) -> None:
        self._dataset, self._annotator, self._out = dataset, annotator, out
        self._keys = dataset.images.keys()
        self._batch_size, self._num_workers = batch_size, num_workers
        self._absent_sum, self._written = 0.0, 0

    def unfinished_rows(self) -> list[int]:
        """Images without a map, by one scan of each class folder."""
        folders = {key.rpartition("/")[0] for key in self._keys.tolist()}
        present: set[str] = set()
        for folder in folders:
            if (self._out / folder).is_dir():
                with os.scandir(self._out / folder) as entries:
                    present.update(f"{folder}/{entry.name}" for entry in entries)
        return [row for row, key in enumerate(self._keys.tolist()) if key + SUFFIX not in present]

    def check_same_teacher(self, row: int) -> None:
        """Make a finished map again: a folder must not mix two teachers, which nobody would notice later."""
        found = open_label_store(self._out, self._keys, self._annotator.num_classes).read(row)
        batch = collate([self._dataset[(0, row)]]).to(self._annotator.device)
        made = self._annotator.queue(batch).maps()[row]
        path = self._out / f"{self._keys[row]}{SUFFIX}"
        if found.shape != made.shape:
            problem = f"has the shape [k, h, w] = {list(found.shape)}, this run makes {list(made.shape)}"
        elif (found.classes[0] == made.classes[0]).mean() < SAME_TEACHER_AGREEMENT:
            problem = "is not the one this teacher makes of this image"
        else:
            return
        raise UserError(
            f"{self._out} holds label maps of another teacher or other settings: {path} {problem}. "
            "Give the settings it was begun with, or another folder for the new maps"
        )

    def run(self, todo: list[int], progress: JobProgress) -> list[str]:
        """Write the maps of these rows; returns why images could not be read. One bad file must not cost a night."""
        unreadable: list[str] = []
        while todo:
            before = progress.done
            loader = Loader(self._dataset, _Rows(todo, self._batch_size), self._num_workers, self._annotator.device)
            try:
                for queued in self._one_behind(loader):
                    self._write(queued)
                    progress.advance(len(queued.rows))
                return unreadable
            except UserError:
                todo = todo[progress.done - before :]
                reasons = self._reading_errors(todo[: (BATCHES_IN_FLIGHT + 1) * self._batch_size])
                if not reasons:
                    raise  # it was not an image
                unreadable += reasons.values()
                todo = [row for row in todo if row not in reasons]
        return unreadable

    def absent_probability(self) -> float:
        """See Annotated."""
        return self._absent_sum / self._written if self._written else float("nan")

    def _one_behind(self, batches: Iterable[Batch]) -> Iterator[_Queued]:
        """Hand out each batch's maps when the next is queued, so that the device computes while files are written."""
        waiting: _Queued | None = None
        for batch in batches:
            following = self._annotator.queue(batch)
            if waiting is not None:
                yield waiting
            waiting = following
        if waiting is not None:
            yield waiting

    def _write(self, queued: _Queued) -> None:
        """Check and write the maps of a batch."""
        for row, label_map in queued.maps().items():
            key = str(self._keys[row])
            label_map.validate(self._annotator.num_classes, f"the teacher's label map of {key}")
            try:
                write_label_map(self._out, key, label_map)
            except (OSError, RuntimeError) as error:  # torch.save tells some write errors as RuntimeError
                raise UserError(
                    f"cannot write the label map {self._out / (key + SUFFIX)}: {error}. Make room or allow writing, "
                    "then give the same command again: the maps that are there are kept"
                ) from error
        self._absent_sum += float(queued.absent.double().sum())
        self._written += len(queued.rows)

    def _reading_errors(self, rows: list[int]) -> dict[int, str]:
        """Why images cannot be read; nothing for those that can."""
        reasons = {}
        for row in rows:
            try:
                self._dataset[(0, row)]
            except UserError as error:
                reasons[row] = str(error)
        return reasons


def _writable_folder(out: Path) -> Path:
    """Make the folder and try to write into it, before the first image costs time."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            return out
    except OSError as error:
        raise UserError(
            f"cannot write label maps into {out}: {error.strerror}; expected a folder that can be made and written to. "
            "Give another folder"
        ) from error


def _summary(done: Annotated, seconds: float) -> str:
    k, h, w = done.shape
    lines = [f"label maps of {k} classes in {h} x {w} cells: {done.written:,} written in {duration(seconds)}"]
    if done.kept:
        lines.append(f"{done.kept:,} were there already")
    if done.written:
        share = f"{100 * done.absent_probability:.1f} %"
        lines.append(f"classes outside a cell's top {k} get {share} of its probability at fill 0, temperature 1")
    return "; ".join(lines)


def _unreadable_message(reasons: list[str], num_images: int) -> str:
    listed = "".join(f"\n  {reason}" for reason in reasons[:LISTED_IMAGES])
    rest = f"\n  and {len(reasons) - LISTED_IMAGES:,} more" if len(reasons) > LISTED_IMAGES else ""
    return (
        f"{len(reasons):,} of {num_images:,} images cannot be read and have no label map; all others have theirs. "
        f"Replace or remove these files and give the same command again:{listed}{rest}"
    )
