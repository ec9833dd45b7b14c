"""LabelPooling of a batch: pool_scores against torchvision's roi_align of dense maps. Target: at least 80 times faster.

The dense way is the procedure of 2021, with the box axes as they should be: scatter the sparse maps into float32
[B, K, h, w], then RoIAlign. Its maps are float32 and int64 beforehand; pool_scores takes them as a training step has
them, float16 and int64. Boxes are random crops of 500 x 375 images. A second target: no memory that grows with
K x h x w; the allocations that torch makes in one call are counted.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torchvision.ops import roi_align

from benchmarks.result import Figure, arguments, report, time_interleaved
from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.label_pooling import pool_scores
from relabel.targets import relabel_target

K, TOP, CELLS = 1000, 5, 15  # the paper's classes, classes kept per cell, and cells along a side
MANY = 21_000  # classes, about ImageNet-21k's
ALL_K, ALL_TOP = (10, 100, K, 10_000, MANY), (1, 2, TOP, 10)
DENSE_K = (10, 100, K)  # the dense tensor of 10,000 classes takes 2.3 GB
CLOSE = 1e-4  # logits; both ways round in float32


@dataclass(frozen=True, slots=True, eq=False)
class Maps:
    """Label maps and crops of a batch.

    Fields:
        scores: float16 [B, k, h, w].
        classes: int64 [B, k, h, w].
        boxes: float32 [B, 4]; left, top, right, bottom, fractions of the image.
        num_classes: K.
    """

    scores: Tensor
    classes: Tensor
    boxes: Tensor
    num_classes: int

    def pool(self) -> Tensor:
        """Pool our way, float32 [B, K]."""
        return pool_scores(self.scores, self.classes, self.boxes, self.num_classes)

    def target(self) -> Tensor:
        """Make the whole target, float32 [B, K]: pooling our way, then the softmax."""
        return relabel_target(self.scores, self.classes, self.boxes, self.num_classes)


def main() -> None:
    """Measure speed and growth in interleaved rounds, then memory."""
    options = arguments(__doc__ or "")
    torch.set_num_threads(1)
    batch, rounds, calls = (16, 2, 1) if options.tiny else (256, 40, 20)
    figures = [
        *measure_speed(batch, rounds, calls),
        measure_difference(batch),
        *measure_memory(batch),
    ]
    dense_mb = batch * MANY * CELLS**2 * 4 / 1e6
    remarks = [
        "target of dense tensor + roi_align / pool_scores: 80x",
        f"the dense tensor of K = {MANY:,} was not made: it would take {dense_mb:,.0f} MB",
        "memory: largest = the largest single allocation of a call; all = the sum of its allocations, freed ones too",
    ]
    report(f"LabelPooling of {CELLS} x {CELLS} maps, batch {batch}, one core", figures, remarks, options.json)


def measure_speed(batch: int, rounds: int, calls: int) -> list[Figure]:
    """Return microseconds per image of each way, for growing K and k, and how many times faster ours is."""
    functions: dict[str, Callable[[], object]] = {}
    for num_classes in DENSE_K:
        maps = random_maps(batch, num_classes)
        functions[dense_name(num_classes)] = partial(
            pool_dense, maps.scores.float(), maps.classes, maps.boxes, num_classes
        )
    maps = random_maps(batch, K)
    alone = f"roi_align alone, K = {K:,}, k = {TOP}, dense tensor given"
    functions[alone] = partial(align_dense, make_dense(maps.scores.float(), maps.classes, K), maps.boxes)
    functions[f"whole target (softmax too), K = {K:,}, k = {TOP}"] = maps.target
    for num_classes, top in [(n, TOP) for n in ALL_K] + [(K, n) for n in ALL_TOP if n != TOP]:
        functions[pool_name(num_classes, top)] = random_maps(batch, num_classes, top).pool
    counts = {name: 1 if name in (alone, *map(dense_name, DENSE_K)) else calls for name in functions}
    seconds = {name: np.array(values) for name, values in time_interleaved(functions, counts, rounds).items()}
    figures = [Figure.of(name, "us/image", 1e6 * values / batch) for name, values in seconds.items()]
    for label, slow in (("dense tensor + roi_align", dense_name(K)), ("roi_align alone", alone)):
        ratios = seconds[slow] / seconds[pool_name(K, TOP)]
        figures.append(Figure.of(f"{label} / pool_scores, K = {K:,}, same round", "x", ratios))
    return figures


def measure_difference(batch: int) -> Figure:
    """Return the largest difference between the two ways; AssertionError if it is more than rounding."""
    differences = []
    for num_classes in DENSE_K:
        maps = random_maps(batch, num_classes)
        dense = pool_dense(maps.scores.float(), maps.classes, maps.boxes, num_classes)
        differences.append(float((maps.pool() - dense).abs().max()))
    assert max(differences) < CLOSE, differences
    return Figure.of("largest difference between the two ways", "logits", differences)


def measure_memory(batch: int) -> list[Figure]:
    """Return MB allocated in a call, for few and many classes and cells; ours must not exceed its input or result."""
    figures = []
    for num_classes, cells in ((K, CELLS), (MANY, CELLS), (K, 2 * CELLS)):
        sizes = allocations(random_maps(batch, num_classes, cells=cells).pool)
        assert max(sizes) <= 4 * batch * max(num_classes + 1, TOP * cells**2), (num_classes, cells, max(sizes))
        figures += memory_figures(f"pool_scores, K = {num_classes:,}, {cells} x {cells}", sizes)
    maps = random_maps(batch, K)
    sizes = allocations(partial(pool_dense, maps.scores.float(), maps.classes, maps.boxes, K))
    return figures + memory_figures(f"dense tensor + roi_align, K = {K:,}, {CELLS} x {CELLS}", sizes)


def memory_figures(name: str, sizes: list[int]) -> list[Figure]:
    """Return the largest and the sum of the allocations of one call, given in bytes."""
    return [
        Figure.of(f"memory, {name}: largest", "MB", [max(sizes) / 1e6]),
        Figure.of(f"memory, {name}: all", "MB", [sum(sizes) / 1e6]),
    ]


def pool_name(num_classes: int, top: int) -> str:
    """Return the name of our way's value."""
    return f"pool_scores, K = {num_classes:,}, k = {top}"


def dense_name(num_classes: int) -> str:
    """Return the name of the dense way's value."""
    return f"dense tensor + roi_align, K = {num_classes:,}, k = {TOP}"


def random_maps(batch: int, num_classes: int, top: int = TOP, cells: int = CELLS) -> Maps:
    """Draw logits around 8, classes in 0..K-1 but never twice in a cell, and random crops of 500 x 375 images."""
    generator = torch.Generator().manual_seed(0)
    scores = 8 + 3 * torch.randn(batch, top, cells, cells, generator=generator)
    first = torch.randint(num_classes, (batch, 1, cells, cells), generator=generator)
    classes = (first + num_classes // top * torch.arange(top)[:, None, None]) % num_classes
    rng = np.random.default_rng(0)
    boxes = CropBox.stack([random_crop_box(rng, 500, 375, MIN_AREA) for _ in range(batch)])
    return Maps(scores.half(), classes, boxes, num_classes)


def pool_dense(scores: Tensor, classes: Tensor, boxes: Tensor, num_classes: int) -> Tensor:
    """Pool the dense way, float32 [B, K]; arguments as of pool_scores, but float32 scores and int64 classes."""
    return align_dense(make_dense(scores, classes, num_classes), boxes)


def make_dense(scores: Tensor, classes: Tensor, num_classes: int) -> Tensor:
    """Make dense maps, float32 [B, K, h, w]; 0 where a cell does not store a class."""
    batch, _, h, w = scores.shape
    return torch.zeros(batch, num_classes, h, w).scatter_(1, classes, scores)


def align_dense(dense: Tensor, boxes: Tensor) -> Tensor:
    """Apply RoIAlign to dense maps [B, K, h, w], each at its own box (fractions of the image); float32 [B, K]."""
    h, w = dense.shape[2:]
    cells = boxes * boxes.new_tensor([w, h, w, h]) - 0.5
    numbers = torch.arange(len(dense), device=dense.device)
    regions = torch.cat([numbers[:, None], cells], dim=1)
    return roi_align(dense, regions, output_size=(1, 1), aligned=False).flatten(1)


def allocations(function: Callable[[], object]) -> list[int]:
    """Return the bytes of each allocation that torch makes on the CPU in one call, inside operations too."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or the profiler writes about GPUs that it misses
    with profile(profile_memory=True) as profiler:
        function()
    assert profiler.kineto_results is not None
    events = profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


if __name__ == "__main__":
    main()
