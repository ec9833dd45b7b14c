"""The machine annotator: applies a strong classifier to each cell of whole images and writes their label maps.

The teacher's weights are unchanged; models/fully_convolutional has turned it into a network that makes maps. Images are
squashed to the teacher's input size, so a fraction of the image is the same fraction of the map.

The batches depend only on the list of images and the batch size, not on the number of processes or on restarts: an
interrupted job and one shared by several processes produce the same bytes.
"""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from relabel.annotation.applied_teacher import AppliedTeacher, QueuedMaps
from relabel.annotation.teacher import Teacher
from relabel.annotation.whole_images import SquashedImages, read_squashed
from relabel.data.decode import MOST_MEGAPIXELS, resolve_decoder
from relabel.data.gpu_decode import check_gpu_decoder
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from relabel.stores.manifest import Form, Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import FolderWriter
from relabel.stores.store import exclusive_folder
from utils.errors import SharedError, UserError, listed, out_of_memory_reported
from utils.processes.distributed import Process, from_main, gather_objects
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
        decoder: one of relabel.data.decode.DECODERS or GPU_DECODERS.
        max_megapixels: larger images are refused.
    """

    k: int
    flip: bool
    opt_level: str
    batch_size: int
    decoder: str = "pillow"
    max_megapixels: float = MOST_MEGAPIXELS


def decoder_for(choice: str, device: torch.device) -> str:
    """Return the decoder's name for "auto", "gpu" or a name.

    By default it is Pillow without a GPU, where the teacher takes most of the time. On a GPU, Pillow would take longer
    than the teacher.

    Raises:
        UserError: "gpu", but the device cannot decode.
    """
    if choice == "auto":
        return "simplejpeg" if device.type == "cuda" else "pillow"
    if choice == "gpu":
        check_gpu_decoder(device, "--decoder")
    return resolve_decoder(choice)


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
        applied = AppliedTeacher(
            teacher, process.device, k=settings.k, flip=settings.flip, opt_level=settings.opt_level
        )
        if applied.precision.note and process.is_main:
            print_lines(applied.precision.note)
        manifest = _manifest(applied, settings, form, len(images))
        writer: Writer = (PackedWriter if form == "packed" else FolderWriter)(out, keys[order], manifest)

        def begin() -> np.ndarray:
            stack.enter_context(exclusive_folder(out))
            return writer.begin()

        done = from_main(begin)
        share = _annotate_share(images, applied, writer, done, settings, num_workers, process)
        summary = Summary.over_all(gather_objects(share))
        if summary.skipped and not (skip_unreadable and summary.written + summary.kept):
            raise SharedError(_unreadable_message(summary.skipped, len(images)))
        from_main(lambda: writer.commit({name.rpartition(".")[0]: why for name, why in summary.skipped.items()}))
    if process.is_main:
        _print_summary(summary, applied.shape, time.monotonic() - start)
    return summary


def _annotate_share(
    images: ImageList,
    applied: AppliedTeacher,
    writer: Writer,
    done: np.ndarray,
    settings: Settings,
    num_workers: int,
    process: Process,
) -> Summary:
    """Write the maps of every n-th batch: this process's share of the job.

    Args:
        images: in the order of the writer's keys.
        applied, writer: compute and write the maps.
        done: bool [N]; whether a map exists already.
        settings, num_workers, process: as in `annotate`.
    """
    batches = np.split(np.arange(len(done)), range(settings.batch_size, len(done), settings.batch_size))
    own = batches[process.rank :: process.world_size]
    todo = [rows.tolist() for rows in own if not done[rows].all()]
    share = Summary(kept=int(sum(done[rows].sum() for rows in own)))
    view = applied.teacher.data_config
    squashed = SquashedImages(images, view.size, view.interpolation, settings.decoder, settings.max_megapixels)
    title = "annotate" if process.world_size == 1 else f"annotate (1 of {process.world_size} processes)"
    with JobProgress(title, sum(map(len, own)), "images", share.kept, enabled=process.is_main) as progress:
        read = read_squashed(squashed, todo, num_workers, process.device)
        with ThreadPoolExecutor(1) as writing:  # beside this thread, so that the device never waits for a disk
            waiting: deque[Future[int]] = deque()
            for batch in read:
                waiting.append(writing.submit(_write, applied.queue(batch), images, writer, done, share))
                if len(waiting) == IN_FLIGHT:
                    progress.advance(waiting.popleft().result())
            for last in waiting:
                progress.advance(last.result())
    writer.close()
    return share


def _write(maps: QueuedMaps, images: ImageList, writer: Writer, done: np.ndarray, share: Summary) -> int:
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


def _manifest(applied: AppliedTeacher, settings: Settings, form: Form, maps: int) -> Manifest:
    """Return what all maps of a call share, including those of an interrupted call that it continues."""
    teacher, config = applied.teacher, applied.teacher.data_config
    made_by = {
        "teacher": teacher.description,
        "input_size": list(config.size),
        "mean": list(config.mean),
        "std": list(config.std),
        "interpolation": config.interpolation,
        "decoder": settings.decoder,
        "flip": settings.flip,
        "precision": applied.precision.name,
        "batch_size": settings.batch_size,
        "device": applied.device.type,
    }
    k, h, w = applied.shape
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
