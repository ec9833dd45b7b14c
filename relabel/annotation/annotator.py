"""The machine annotator: applies a strong classifier to each cell of whole images and writes their label maps.

The teacher's weights are unchanged; models/fully_convolutional has turned it into a network that makes maps. Images are
squashed to the teacher's input size, so a fraction of the image is the same fraction of the map.

The batches depend only on the list of images and the batch size, not on the number of processes or on restarts: an
interrupted job and one shared by several processes produce the same bytes.
"""

import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from relabel.annotation.teacher import Teacher
from relabel.augment import normalise
from relabel.crop_box import WHOLE_IMAGE
from relabel.data.decode import MOST_MEGAPIXELS, ImageFile
from relabel.data.images import ImageList
from relabel.label_map import LabelMap, class_dtype
from relabel.stores.manifest import Form, Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import FolderWriter
from relabel.stores.store import exclusive_folder
from utils.errors import SharedError, UserError, listed, out_of_memory_reported
from utils.precision import Precision
from utils.processes.distributed import Process, from_main, gather_objects
from utils.processes.workers import BatchMemory, read_batches
from utils.progress import JobProgress, duration, print_lines

TOP_K = 5  # as in the paper
IN_FLIGHT = 3  # batches at most whose maps are computed or written while the next one is read
Writer = PackedWriter | FolderWriter


@dataclass(frozen=True, slots=True)
class Settings:
    """How a teacher is applied, apart from its own input size, normalisation and interpolation.

    Fields:
        k: classes kept per cell, 1..K (5 in the paper).
        flip: average each map with that of the flipped image, flipped back.
        opt_level: O0, O1 or bf16, as in utils/precision.py.
        batch_size: images per forward pass.
        decoder: pillow or simplejpeg, as in relabel/data/decode.py.
        max_megapixels: larger images are refused.
    """

    k: int
    flip: bool
    opt_level: str
    batch_size: int
    decoder: str = "pillow"
    max_megapixels: float = MOST_MEGAPIXELS


def decoder_for(choice: str, device: torch.device) -> str:
    """Return the decoder's name for "auto" or a name.

    By default it is Pillow without a GPU, where the teacher takes most of the time. On a GPU, Pillow would take longer
    than the teacher.
    """
    if choice != "auto":
        return choice
    return "simplejpeg" if device.type == "cuda" else "pillow"


@dataclass(slots=True)
class Summary:
    """The outcome of `annotate`, of one process or of all.

    Fields:
        kept, written: number of maps that existed before, and of maps made now.
        absent_sum: sum over the maps written of the mean share of a cell's probability that falls to the K - k classes
            it does not store, at logit 0. If the share is near 1, maps teach next to nothing at fill 0.
        skipped: name of an image -> why it could not be read and has no map.
    """

    kept: int = 0
    written: int = 0
    absent_sum: float = 0.0
    skipped: dict[str, str] = field(default_factory=dict)

    @classmethod
    def over_all(cls, shares: Sequence["Summary"]) -> "Summary":
        """Add up the shares of all processes."""
        skipped = {name: reason for share in shares for name, reason in share.skipped.items()}
        kept, written, absent = np.sum([(share.kept, share.written, share.absent_sum) for share in shares], axis=0)
        return cls(int(kept), int(written), float(absent), skipped)


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
) -> Summary:
    """Write the label map of every image; the same call, in any number of processes, continues an interrupted one.

    Args:
        images: to annotate.
        out: folder of the label maps; created if it does not exist.
        teacher: moved to the device of `process`.
        settings: how it is applied.
        form: packed or pt.
        skip_unreadable: leave out images that cannot be read; otherwise they are an error, raised at the end.
        num_workers: processes that prefetch images; 0 reads in this process.
        process: this process, one of those that share the job.

    Raises:
        UserError: k is not in 1..K; the teacher cannot take its input size; `out` cannot be written or contains other
            maps; images cannot be read; memory runs out.
    """
    start = time.monotonic()
    keys = images.keys()
    order = np.argsort(keys, kind="stable")
    images = images.take(order)  # the map of image i is row i
    with ExitStack() as stack:
        stack.enter_context(out_of_memory_reported(f"Lower --batch_size (now {settings.batch_size}) or --size."))
        if settings.opt_level == "O0":  # by default, cuDNN rounds the inputs of convolutions to TF32
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
            stack.enter_context(torch.backends.cudnn.flags(enabled=True, allow_tf32=False))
        annotator = _Annotator(teacher, settings, process.device)
        if annotator.precision.note and process.is_main:
            print_lines(annotator.precision.note)
        manifest = _manifest(annotator, settings, form, len(images))
        writer: Writer = (PackedWriter if form == "packed" else FolderWriter)(out, keys[order], manifest)

        def begin() -> np.ndarray:
            stack.enter_context(exclusive_folder(out))
            return writer.begin()

        done = from_main(begin)
        share = _annotate_share(images, annotator, writer, done, settings, num_workers, process)
        summary = Summary.over_all(gather_objects(share))
        if summary.skipped and not (skip_unreadable and summary.written + summary.kept):
            raise SharedError(_unreadable_message(summary.skipped, len(images)))
        from_main(lambda: writer.commit({name.rpartition(".")[0]: why for name, why in summary.skipped.items()}))
    if process.is_main:
        _print_summary(summary, annotator.shape, time.monotonic() - start)
    return summary


class _SquashedImages:
    """Row -> (row, whole image squashed to the teacher's input size, reason if it cannot be read). Cheap to pickle."""

    def __init__(self, images: ImageList, teacher: Teacher, settings: Settings) -> None:
        self._images, self._decoder, self._max_megapixels = images, settings.decoder, settings.max_megapixels
        self._size, self._interpolation = teacher.data_config.size, teacher.data_config.interpolation

    def __getitem__(self, row: int) -> tuple[int, np.ndarray, str]:
        try:
            file = ImageFile(self._images.path(row), self._decoder, self._max_megapixels)
            return row, file.resized_crop(WHOLE_IMAGE, *self._size, self._interpolation), ""
        except UserError as error:  # one bad file must neither stop the job nor change the size of its batch
            return row, np.zeros((3, *self._size), np.uint8), str(error)


class _ImageBatch(NamedTuple):
    """Whole images, squashed: uint8 [B, 3, rows, columns]; black if one cannot be read, with a reason, else "".

    Channels last in memory, as the decoders write them.
    """

    rows: list[int]
    images: Tensor
    reasons: list[str]


def _collate(memory: BatchMemory, read: Sequence[tuple[int, np.ndarray, str]]) -> _ImageBatch:
    rows, images, reasons = zip(*read, strict=True)
    _, height, width = images[0].shape
    pixels = memory.take(len(read), height, width, 3)
    np.stack([image.transpose(1, 2, 0) for image in images], out=pixels.numpy())
    return _ImageBatch(list(rows), pixels.permute(0, 3, 1, 2), list(reasons))


def read_squashed(
    images: ImageList, teacher: Teacher, settings: Settings, batches: list[list[int]], num_workers: int, pinned: bool
) -> Iterable[_ImageBatch]:
    """Read whole images in batches, given by their rows, ahead in worker processes.

    A batch's memory is written over once the next batch has been asked for; not if it is pinned, which is a copy.
    """
    collate = partial(_collate, BatchMemory())
    return read_batches(_SquashedImages(images, teacher, settings), collate, batches, num_workers, pinned)


@dataclass(frozen=True, slots=True)
class _QueuedMaps:
    """Maps being copied to the host.

    Fields:
        rows, reasons: as in _ImageBatch.
        scores, classes: [B, k, h, w].
        finite: bool [B]; all logits of the image are finite.
        absent: float [B]; probability of the classes that are not stored, mean over the cells.
        copied: event recorded after the copy; None: the tensors are complete.
    """

    rows: list[int]
    reasons: list[str]
    scores: Tensor
    classes: Tensor
    finite: Tensor
    absent: Tensor
    copied: torch.cuda.Event | None


class _Annotator:
    """Teacher, normalisation and top-k, all on the device. `shape` is (k, h, w)."""

    def __init__(self, teacher: Teacher, settings: Settings, device: torch.device) -> None:
        if not 1 <= settings.k <= teacher.num_classes:
            raise UserError(
                f"--top_k is {settings.k} classes per cell, but the teacher knows {teacher.num_classes}; "
                f"expected 1..{teacher.num_classes} (5 in the paper)"
            )
        self.teacher, self.device = teacher, device
        self.precision = Precision(settings.opt_level, device)
        self.shape = (settings.k, *_map_size(teacher))
        self._network = teacher.network.to(device).to(memory_format=torch.channels_last)
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._flip = settings.flip
        self._id_dtype = torch.from_numpy(np.empty(0, class_dtype(teacher.num_classes))).dtype

    @torch.inference_mode()
    def queue(self, batch: _ImageBatch) -> _QueuedMaps:
        """Start computing the maps of a batch; on CUDA this returns before they are done."""
        logits = self._logits(self._on_device(batch.images))
        scores, classes = logits.topk(self.shape[0], dim=1)
        # The n absent classes as one more entry: n classes at logit 0 have as much probability as one at log n.
        absent_logit = torch.full_like(scores[:, :1], logits.shape[1] - self.shape[0]).log()
        absent = torch.cat([scores, absent_logit], 1).softmax(1)[:, -1].mean((1, 2))
        finite = logits.isfinite().flatten(1).all(1)
        results = (scores, classes.to(self._id_dtype), finite, absent)
        scores, classes, finite, absent = (tensor.to("cpu", non_blocking=True) for tensor in results)
        copied = torch.cuda.Event(blocking=True) if self._copies else None  # waiting for it takes no core from workers
        if copied:
            copied.record(torch.cuda.current_stream(self.device))
        return _QueuedMaps(batch.rows, batch.reasons, scores, classes, finite, absent, copied)

    def _on_device(self, images: Tensor) -> Tensor:
        """Copy images to the device; to a GPU while it still computes the batch before."""
        if self._copies is None:
            return images
        current = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            arrived = images.to(self.device, non_blocking=True)
        current.wait_stream(self._copies)
        arrived.record_stream(current)
        return arrived

    def _normalised(self, images: Tensor) -> Tensor:
        """Normalise images uint8 [B, 3, rows, columns], channels last."""
        config = self.teacher.data_config
        if images.is_cuda:
            return normalise(images, mean=config.mean, std=config.std, dtype=self.precision.input_dtype)
        # `normalise` multiplies by reciprocals, which rounds differently: maps would not have the bytes they had.
        mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (config.mean, config.std))
        return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)

    def _logits(self, images: Tensor) -> Tensor:
        """Convert images uint8 [B, 3, rows, columns] to logits float32 [B, K, h, w]."""
        inputs = self._normalised(images)
        with self.precision.autocast():
            logits: Tensor = self._network(inputs)
            if not self._flip:
                return logits.float()
            flipped: Tensor = self._network(inputs.flip(3))
        return (logits.float() + flipped.float().flip(3)) / 2


@torch.inference_mode()
def _map_size(teacher: Teacher) -> tuple[int, int]:
    """Return (h, w) of the teacher's maps, by a forward pass on the CPU, where no error can come from a GPU."""
    rows, columns = teacher.data_config.size
    try:
        maps = teacher.network.cpu().eval()(torch.zeros(1, 3, rows, columns))
    except (RuntimeError, ValueError, AssertionError) as error:  # timm checks the size by assert
        raise UserError(
            f"the teacher cannot take images of {rows} x {columns} pixels (rows x columns): {error}. "
            "Give the --size that it was trained with"
        ) from error
    assert maps.ndim == 4 and maps.shape[1] == teacher.num_classes, maps.shape
    return maps.shape[2], maps.shape[3]


def _annotate_share(
    images: ImageList,
    annotator: _Annotator,
    writer: Writer,
    done: np.ndarray,
    settings: Settings,
    num_workers: int,
    process: Process,
) -> Summary:
    """Write the maps of every n-th batch: this process's share of the job.

    Args:
        images: in the order of the writer's keys.
        annotator, writer: compute and write the maps.
        done: bool [N]; whether a map exists already.
        settings, num_workers, process: as in `annotate`.
    """
    batches = np.split(np.arange(len(done)), range(settings.batch_size, len(done), settings.batch_size))
    own = batches[process.rank :: process.world_size]
    todo = [rows.tolist() for rows in own if not done[rows].all()]
    share = Summary(kept=int(sum(done[rows].sum() for rows in own)))
    title = "annotate" if process.world_size == 1 else f"annotate (1 of {process.world_size} processes)"
    with JobProgress(title, sum(map(len, own)), "images", share.kept, enabled=process.is_main) as progress:
        read = read_squashed(images, annotator.teacher, settings, todo, num_workers, annotator.device.type == "cuda")
        with ThreadPoolExecutor(1) as writing:  # beside this thread, so that the device never waits for a disk
            waiting: deque[Future[int]] = deque()
            for batch in read:
                waiting.append(writing.submit(_write, annotator.queue(batch), images, writer, done, share))
                if len(waiting) == IN_FLIGHT:
                    progress.advance(waiting.popleft().result())
            for last in waiting:
                progress.advance(last.result())
    writer.close()
    return share


def _write(maps: _QueuedMaps, images: ImageList, writer: Writer, done: np.ndarray, share: Summary) -> int:
    """Write the maps of a batch that do not exist yet; return the number of its images that had none."""
    if maps.copied is not None:
        maps.copied.synchronize()
    scores, classes = maps.scores.numpy(), maps.classes.numpy()
    finite, absent = maps.finite.tolist(), maps.absent.tolist()
    for i, (row, reason) in enumerate(zip(maps.rows, maps.reasons, strict=True)):
        if reason:
            share.skipped[images.name(row)] = reason
        elif not done[row]:
            if not finite[i]:
                raise UserError(
                    f"the teacher's logits for {images.name(row)} are not finite; expected numbers. Its weights are "
                    "damaged, or float16 overflows: try --opt_level bf16 or O0"
                )
            writer.write(row, LabelMap(scores[i], classes[i]))
            share.absent_sum += absent[i]
            share.written += 1
    return int((~done[maps.rows]).sum())


def _manifest(annotator: _Annotator, settings: Settings, form: Form, maps: int) -> Manifest:
    """Return what all maps of a call share, including those of an interrupted call that it continues."""
    teacher, config = annotator.teacher, annotator.teacher.data_config
    made_by = {
        "teacher": teacher.description,
        "input_size": list(config.size),
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "decoder": settings.decoder,
        "flip": settings.flip,
        "precision": annotator.precision.name,
        "batch_size": settings.batch_size,
        "device": annotator.device.type,
    }
    k, h, w = annotator.shape
    names = teacher.class_names or [str(index) for index in range(teacher.num_classes)]
    return Manifest(form=form, maps=maps, k=k, h=h, w=w, class_names=names, made_by=made_by)


def _print_summary(summary: Summary, shape: tuple[int, int, int], seconds: float) -> None:
    k, h, w = shape
    kept = f", {summary.kept:,} existed already" if summary.kept else ""
    print_lines(
        f"label maps: {k} classes per cell, {h} x {w} cells; {summary.written:,} written in {duration(seconds)}{kept}"
    )
    if summary.written:
        share = f"{100 * summary.absent_sum / summary.written:.1f} %"
        print_lines(
            f"{share} of a cell's probability is on classes beyond its top {k} (fill 0, temperature 1); about half is "
            "normal, `check` measures the targets"
        )
    if summary.skipped:
        print_lines(f"skipped:{listed(list(summary.skipped.values()))}")


def _unreadable_message(skipped: dict[str, str], num_images: int) -> str:
    others = "all others have one" if len(skipped) < num_images else "there is nothing to write"
    return (
        f"images that cannot be read and have no label map: {len(skipped):,} of {num_images:,}; {others}. "
        "Replace or remove these files, or leave them out with --on_error skip, and give the same command again:"
        f"{listed(list(skipped.values()))}"
    )
