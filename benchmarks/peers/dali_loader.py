"""DALI on the CPU, in threads: a decoder that stops where the crop ends, and a resize to uint8 [S, S, 3].

No flip and no label maps: the fused decoder does not return the box it drew (an operator that draws the box beforehand
exists). Antialiasing, which all others but FFCV do with a filter as wide as the reduction, is optional in DALI and is
measured with and without.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from benchmarks.peers import RATIOS, SIZE, Job, Reader
from relabel.crop_box import MIN_AREA, CropBox


def readers(job: Job) -> dict[str, Reader]:
    """Return readers with antialiasing, as ours, and without."""
    return {
        "DALI on CPU, fused crop, antialiased": partial(_read, job, antialias=True),
        "DALI on CPU, fused crop, not antialiased": partial(_read, job, antialias=False),
    }


def _read(job: Job, antialias: bool) -> Iterator[int]:
    """Read epochs without end, through a pipeline of its own."""
    files = [str(job.photos.path(index)) for index in range(len(job.photos))]
    pipeline = _random_crops(
        files, job.photos.labels.tolist(), antialias, batch_size=job.batch, num_threads=job.workers, device_id=None
    )
    pipeline.build()
    while True:
        images, _ = pipeline.run()
        assert images.dtype == types.UINT8 and images.is_dense_tensor() and images[0].shape() == [SIZE, SIZE, 3]
        yield len(images)


@pipeline_def
def _random_crops(files: Sequence[str], labels: Sequence[int], antialias: bool) -> Any:
    """Files -> random crops and labels."""
    data, classes = fn.readers.file(files=list(files), labels=list(labels), random_shuffle=True)
    images = fn.decoders.image_random_crop(
        data,
        device="cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        random_area=[MIN_AREA, 1.0],
        random_aspect_ratio=list(RATIOS),
        num_attempts=10,
    )
    return fn.resize(images, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=antialias), classes


def box_reader(paths: Sequence[Path], boxes: Sequence[CropBox], threads: int) -> Callable[[], list[np.ndarray]]:
    """Return a function that reads the box of each file with the decoder that stops where the box ends; antialiased.

    All files are one batch, read when the function is called and not ahead. It returns N crops, uint8 [S, S, 3].
    """
    starts = [np.array([box.left, box.top], np.float32) for box in boxes]
    ends = [np.array([box.right, box.bottom], np.float32) for box in boxes]
    pipeline = _crops(
        lambda: ([np.fromfile(path, np.uint8) for path in paths], starts, ends),
        batch_size=len(paths),
        num_threads=threads,
        device_id=None,
        prefetch_queue_depth=1,
        exec_pipelined=False,
        exec_async=False,
    )
    pipeline.build()
    return lambda: list(pipeline.run()[0].as_array())


@pipeline_def
def _crops(source: Callable[[], object]) -> Any:
    """Bytes, starts and ends of the boxes (x, y; fractions) -> crops."""
    data, starts, ends = fn.external_source(source=source, num_outputs=3, batch=True)
    images = fn.decoders.image_slice(
        data, device="cpu", output_type=types.RGB, adjust_orientation=False, rel_start=starts, rel_end=ends
    )
    return fn.resize(images, size=(SIZE, SIZE), interp_type=types.INTERP_LINEAR, antialias=True)
