"""The machine annotator: a strong classifier, applied to each cell of whole images, writes their label maps.

The teacher keeps its weights; models/fully_convolutional turned it into a network of maps. The image is squashed to the
teacher's input size, so a fraction of the image is the same fraction of the map.

Images go through the teacher in batches that only the list of images and the batch size decide, whoever makes them and
whenever: so an interrupted job, and one that several processes share, end with the same bytes.
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from relabel.annotation.teacher import Teacher
from relabel.crop_box import WHOLE_IMAGE
from relabel.data.decode import ImageFile
from relabel.data.images import ImageList
from relabel.label_map import LabelMap, class_dtype
from relabel.stores.manifest import Form, Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import FolderWriter
from relabel.stores.store import exclusive_folder
from utils.errors import SharedError, UserError, listed
from utils.precision import Precision
from utils.processes.distributed import Process, from_main, gather_objects
from utils.processes.workers import read_batches
from utils.progress import JobProgress, duration

TOP_K = 5  # of the paper


@dataclass(frozen=True, slots=True)
class Settings:
    """How a teacher is applied, besides its own size, normalisation and interpolation.

    Fields:
        k: classes kept per cell, 1..K (5 in the paper).
        flip: average each map with that of the mirrored image, mirrored back.
        opt_level: O0, O1 or bf16, as in utils/precision.py.
        batch_size: images per forward pass.
    """

    k: int
    flip: bool
    opt_level: str
    batch_size: int


@dataclass(frozen=True, slots=True)
class Annotated:
    """What `annotate` did, over all processes.

    Fields:
        written, kept: maps made now, and maps that were there before.
        skipped: name of an image -> why it could not be read and has no map.
        shape: (k, h, w) of each map.
        absent_probability: share of a cell's probability that falls to the K - k classes it does not store when they
            count as logit 0, mean over the cells written; nan if none was. Near 1, the maps teach next to nothing
            unless fill and temperature are changed.
    """

    written: int
    kept: int
    skipped: dict[str, str]
    shape: tuple[int, int, int]
    absent_probability: float


def annotate(
    images: ImageList,
    out: Path,
    teacher: Teacher,
    settings: Settings,
    *,
    form: Form,
    skip_unreadable: bool,
    num_workers: int,
    process: Process,
) -> Annotated:
    """Write the label map of every image; the same call continues an interrupted one, in one process or several.

    Args:
        images: what to annotate.
        out: folder of the label maps; made if it is not there.
        teacher: moved to the device of `place`.
        settings: how it is applied.
        form: packed or pt.
        skip_unreadable: leave out images that cannot be read; else they are an error, said when all others are done.
        num_workers: processes that read images ahead; 0 reads in this one.
        place: this process among those that share the job.

    Raises:
        UserError: k does not suit K; the teacher cannot take its input size; `out` cannot be written or holds other
            maps; images cannot be read.
    """
    annotator = _Annotator(teacher, settings, process.device)
    keys = images.keys()
    order = np.argsort(keys, kind="stable")
    manifest = _manifest(annotator, settings, form, len(images))
    with ExitStack() as stack:
        if annotator.precision.note and process.is_main:
            print(annotator.precision.note, flush=True)
        writer = (PackedWriter if form == "packed" else FolderWriter)(out, keys[order], manifest)

        def begin() -> np.ndarray:
            stack.enter_context(exclusive_folder(out))
            return writer.begin()

        done = from_main(begin)
        job = _Job(_Pictures(images, order, teacher), annotator, writer, done, settings.batch_size, num_workers, process)
        return job.run(skip_unreadable)


@dataclass(slots=True, eq=False)
class _PictureBatch:
    """Whole images, squashed: uint8 [B, 3, rows, columns]; black where one cannot be read, with the reason by row."""

    rows: list[int]
    images: Tensor
    reasons: dict[int, str]

    def pin_memory(self) -> "_PictureBatch":
        """In page-locked memory; called by DataLoader."""
        return _PictureBatch(self.rows, self.images.pin_memory(), self.reasons)


class _Pictures:
    """Row -> (row, whole image squashed to the teacher's input size, why it cannot be read). Cheap to pickle."""

    def __init__(self, images: ImageList, order: np.ndarray, teacher: Teacher) -> None:
        self.images, self.order = images, order
        self._size, self._interpolation = teacher.input_size, teacher.interpolation

    def __getitem__(self, row: int) -> tuple[int, np.ndarray, str | None]:
        try:
            file = ImageFile(self.images.path(int(self.order[row])))
            return row, file.resized_crop(WHOLE_IMAGE, *self._size, self._interpolation), None
        except UserError as error:  # one bad file must not cost a night, nor change what its batch looks like
            return row, np.zeros((3, *self._size), np.uint8), str(error)


def _stack(pictures: Sequence[tuple[int, np.ndarray, str | None]]) -> _PictureBatch:
    rows, images, reasons = zip(*pictures, strict=True)
    known = {row: reason for row, reason in zip(rows, reasons, strict=True) if reason is not None}
    return _PictureBatch(list(rows), torch.from_numpy(np.stack(images)), known)


@dataclass(frozen=True, slots=True)
class _Queued:
    """Maps on their way to the host, there once `done` has passed: scores, classes [B, k, h, w]; finite, absent [B]."""

    batch: _PictureBatch
    scores: Tensor
    classes: Tensor
    finite: Tensor
    absent: Tensor
    done: torch.cuda.Event | None

    def wait(self) -> None:
        """Return when they have arrived."""
        if self.done is not None:
            self.done.synchronize()


class _Annotator:
    """Teacher, normalisation and top-k, all on the device. One forward pass on zeros finds K and `shape`, (k, h, w)."""

    def __init__(self, teacher: Teacher, settings: Settings, device: torch.device) -> None:
        if not 1 <= settings.k <= teacher.num_classes:
            raise UserError(
                f"--top_k is {settings.k} classes per cell, but the teacher knows {teacher.num_classes}; "
                f"expected 1..{teacher.num_classes} (5 in the paper)"
            )
        self.teacher, self.device = teacher, device
        self.precision = Precision(settings.opt_level, device)
        self._network = teacher.network.eval().to(device).to(memory_format=torch.channels_last)
        self._mean = torch.tensor(teacher.mean, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(teacher.std, device=device).view(3, 1, 1) * 255
        self._flip = settings.flip
        self.num_classes, h, w = self._try(teacher.input_size)
        assert self.num_classes == teacher.num_classes, (self.num_classes, teacher.num_classes)
        self.shape = (settings.k, h, w)
        self._id_dtype = torch.from_numpy(np.empty(0, class_dtype(self.num_classes))).dtype

    @torch.inference_mode()
    def queue(self, batch: _PictureBatch) -> _Queued:
        """Start the maps of a batch of whole images; on CUDA this returns before they are done."""
        logits = self._logits(batch.images.to(self.device, non_blocking=True))
        scores, classes = logits.topk(self.shape[0], dim=1)
        # The absent classes as one more entry: n of them at logit 0 weigh as much as one at log n.
        absent_logit = torch.full_like(scores[:, :1], self.num_classes - self.shape[0]).log()
        absent = torch.cat([scores, absent_logit], 1).softmax(1)[:, -1].mean((1, 2))
        finite = logits.isfinite().flatten(1).all(1)
        results = (scores, classes.to(self._id_dtype), finite, absent)
        scores, classes, finite, absent = (tensor.to("cpu", non_blocking=True) for tensor in results)
        done = torch.cuda.current_stream(self.device).record_event() if self.device.type == "cuda" else None
        return _Queued(batch, scores, classes, finite, absent, done)

    @torch.inference_mode()
    def _try(self, input_size: tuple[int, int]) -> torch.Size:
        """[K, h, w] for this input size."""
        rows, columns = input_size
        try:
            tried = self._logits(torch.zeros(1, 3, rows, columns, dtype=torch.uint8, device=self.device))
        except (RuntimeError, ValueError, AssertionError) as error:  # timm asserts the size
            raise UserError(
                f"the teacher cannot take images of {rows} x {columns} pixels (rows x columns): {error}. "
                "Give the input size that it was made for"
            ) from error
        assert tried.ndim == 4, f"the teacher must be fully convolutional, but gives {list(tried.shape)}"
        return tried.shape[1:]

    def _logits(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, rows, columns] -> float32 [B, K, h, w]."""
        inputs = ((images.float() - self._mean) / self._std).contiguous(memory_format=torch.channels_last)
        try:
            with self.precision.autocast():
                logits: Tensor = self._network(inputs)
                mirrored: Tensor | None = self._network(inputs.flip(3)) if self._flip else None
        except torch.OutOfMemoryError as error:
            reason = str(error).partition(". ")[0]
            raise UserError(f"the teacher needs more memory than the GPU has ({reason}); lower --batch_size") from error
        if mirrored is None:
            return logits.float()
        return (logits.float() + mirrored.float().flip(3)) / 2


class _Job:
    """One process's share of a call of `annotate`: every n-th batch that is not finished."""

    def __init__(
        self,
        pictures: _Pictures,
        annotator: _Annotator,
        writer: PackedWriter | FolderWriter,
        done: np.ndarray,
        batch_size: int,
        num_workers: int,
        process: Process,
    ) -> None:
        self._pictures, self._annotator, self._writer = pictures, annotator, writer
        self._num_workers, self._place = num_workers, process
        self._done = done
        batches = [range(s, min(s + batch_size, len(self._done))) for s in range(0, len(self._done), batch_size)]
        self._mine = batches[process.rank :: process.world_size]
        self._written, self._absent_sum = 0, 0.0
        self._reasons: dict[int, str] = {}

    def run(self, skip_unreadable: bool) -> Annotated:
        """Do it, wait for the others, and finish what all have made."""
        start = time.monotonic()
        kept = sum(int(self._done[rows.start : rows.stop].sum()) for rows in self._mine)
        todo = [list(rows) for rows in self._mine if not self._done[rows.start : rows.stop].all()]
        title = "annotate" if self._place.world_size == 1 else f"annotate (1 of {self._place.world_size} processes)"
        total = sum(map(len, self._mine))
        with JobProgress(title, total, "images", kept, enabled=self._place.is_main) as progress:
            batches = read_batches(
                self._pictures, _stack, todo, self._num_workers, self._annotator.device.type == "cuda"
            )
            for queued in self._one_behind(batches):
                self._write(queued)
                progress.advance(int((~self._done[queued.batch.rows]).sum()))
        self._writer.close()
        shares = gather_objects((self._written, kept, self._absent_sum, self._named(self._reasons)))
        written, kept = sum(share[0] for share in shares), sum(share[1] for share in shares)
        skipped = {name: reason for share in shares for name, reason in share[3].items()}
        if skipped and (not skip_unreadable or written + kept == 0):
            raise SharedError(_unreadable_message(skipped, len(self._done)))
        from_main(lambda: self._writer.commit({name.rpartition(".")[0]: why for name, why in skipped.items()}))
        absent = sum(share[2] for share in shares) / written if written else math.nan
        result = Annotated(written, kept, skipped, self._annotator.shape, absent)
        if self._place.is_main:
            print(_summary(result, time.monotonic() - start), flush=True)
        return result

    def _named(self, reasons: dict[int, str]) -> dict[str, str]:
        return {self._pictures.images.name(int(self._pictures.order[row])): why for row, why in reasons.items()}

    def _one_behind(self, batches: Iterable[_PictureBatch]) -> Iterator[_Queued]:
        """Hand out each batch's maps when the next is queued, so that the device computes while maps are written."""
        waiting: _Queued | None = None
        for batch in batches:
            following = self._annotator.queue(batch)
            if waiting is not None:
                yield waiting
            waiting = following
        if waiting is not None:
            yield waiting

    def _write(self, queued: _Queued) -> None:
        """Write the maps of a batch that are not there."""
        queued.wait()
        scores, classes = queued.scores.numpy(), queued.classes.numpy()
        self._reasons.update(queued.batch.reasons)
        for i, row in enumerate(queued.batch.rows):
            if row in self._reasons or self._done[row]:
                continue
            name = self._pictures.images.name(int(self._pictures.order[row]))
            if not queued.finite[i]:
                raise UserError(
                    f"the teacher gives {name} logits that are not finite; expected numbers. Its weights are damaged, "
                    "or --opt_level O1 is too coarse for it: try bf16 or O0"
                )
            self._writer.write(row, LabelMap(scores[i], classes[i]))
            self._absent_sum += float(queued.absent[i])
            self._written += 1


def _manifest(annotator: _Annotator, settings: Settings, form: Form, maps: int) -> Manifest:
    """What all maps of a call have in common, and with those of an interrupted one."""
    teacher = annotator.teacher
    made_by = {
        "teacher": teacher.description,
        "input_size": teacher.input_size,
        "mean": teacher.mean,
        "std": teacher.std,
        "interpolation": teacher.interpolation,
        "flip": settings.flip,
        "precision": annotator.precision.name,
        "batch_size": settings.batch_size,
        "device": annotator.device.type,
    }
    k, h, w = annotator.shape
    names = teacher.class_names or [str(index) for index in range(annotator.num_classes)]
    plain = json.loads(json.dumps(made_by))  # as it will be read again
    return Manifest(form=form, maps=maps, k=k, h=h, w=w, class_names=names, made_by=plain)


def _summary(done: Annotated, seconds: float) -> str:
    k, h, w = done.shape
    lines = [f"label maps of {k} classes in {h} x {w} cells: {done.written:,} written in {duration(seconds)}"]
    if done.kept:
        lines.append(f"{done.kept:,} were there already")
    if done.written:
        share = f"{100 * done.absent_probability:.1f} %"
        lines.append(f"classes outside a cell's top {k} get {share} of its probability at fill 0, temperature 1")
    return "; ".join(lines) + (f"\nskipped:{listed(list(done.skipped.values()))}" if done.skipped else "")


def _unreadable_message(skipped: dict[str, str], num_images: int) -> str:
    others = "all others have theirs" if len(skipped) < num_images else "there is nothing to write"
    return (
        f"{len(skipped):,} of {num_images:,} images cannot be read and have no label map; {others}. "
        "Replace or remove these files, or leave them out with --on_error skip, and give the same command again:"
        f"{listed(list(skipped.values()))}"
    )
