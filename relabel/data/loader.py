"""Samples -> batches on the device: which images a step reads, in which order, and the processes that read them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import repeat
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from relabel.augment import Augmentation
from relabel.crop_box import CropBox
from relabel.data.dataset import Key, Sample
from relabel.data.extra_images import ExtraBatches, spread
from relabel.data.skipped_images import SkippedImage
from relabel.label_map import LabelMap
from utils.errors import UserError
from utils.processes.workers import Readable, read_batches
from utils.random import ORDER, keyed_rng


@dataclass(slots=True, eq=False)
class Batch:
    """Samples stacked; small until it is on the device: bytes for pixels, short integers for class ids.

    An operation that changes no sample of the batch (switched off, or by chance) is None.

    Fields:
        images: uint8 [B, 3, S, S]; RGB, not yet augmented. In memory [B, S, S, 3], as decoders write it.
        labels: int64 [B]; -1 of an extra image.
        boxes: float32 [B, 4]; left, top, right, bottom, fractions of the image.
        scores: float16 or float32 [B, k, h, w], as stored; None without label maps.
        classes: int16 or int32 [B, k, h, w], int64 once moved by `to`; None without label maps.
        flips: bool [B] or None.
        jitter_orders: int64 [B] or None.
        jitter_factors: float32 [B, 3] or None.
        lighting: float32 [B, 3] or None.
        indices: int64 [B]; positions in the data set.
        skipped: the images that would be in the batch, could they be read.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    scores: Tensor | None
    classes: Tensor | None
    flips: Tensor | None
    jitter_orders: Tensor | None
    jitter_factors: Tensor | None
    lighting: Tensor | None
    indices: Tensor
    skipped: tuple[SkippedImage, ...] = ()

    def __len__(self) -> int:
        """B."""
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """On the device, class ids as int64; a copy from pinned memory does not wait."""
        batch = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        batch.classes = None if batch.classes is None else batch.classes.long()
        return batch

    def pin_memory(self) -> "Batch":
        """In page-locked memory; called by DataLoader."""
        return self._each(Tensor.pin_memory)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that the stream uses these tensors, which another stream made."""
        for tensor in self._tensors().values():
            tensor.record_stream(stream)

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors that are there."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """A batch whose tensors are changed."""
        changed: dict[str, Any] = {name: change(tensor) for name, tensor in self._tensors().items()}
        return replace(self, **changed)


def collate(items: Sequence[Sample | SkippedImage]) -> Batch:
    """Stack samples of one view, all with label maps or all without. In a worker the pixels go to shared memory.

    Raises:
        UserError: so many images are skipped that batch norm, which needs two, may fail.
    """
    samples = [item for item in items if isinstance(item, Sample)]
    skipped = tuple(item for item in items if isinstance(item, SkippedImage))
    if skipped and len(samples) < 2:
        raise UserError(
            f"{len(skipped)} of the {len(items)} images of a batch cannot be read; expected two to be left, as "
            f"batch norm needs. The first: {skipped[0].path} ({skipped[0].reason})\n  Replace these files, or give a "
            "process and micro-batch more images: --optim.batch_size."
        )
    maps = [sample.label_map for sample in samples if sample.label_map is not None]
    drawn = [sample.augmentation for sample in samples if sample.augmentation is not None]
    assert len(maps) in (0, len(samples)) and len(drawn) in (0, len(samples))
    scores, classes = LabelMap.stack(maps) if maps else (None, None)
    flips, jitter_orders, jitter_factors, lighting = _stack_augmentations(drawn)
    return Batch(
        images=_stack_images([sample.image for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        boxes=CropBox.stack([sample.box for sample in samples]),
        scores=scores,
        classes=classes,
        flips=flips,
        jitter_orders=jitter_orders,
        jitter_factors=jitter_factors,
        lighting=lighting,
        indices=torch.tensor([sample.index for sample in samples]),
        skipped=skipped,
    )


def _stack_images(images: list[np.ndarray]) -> Tensor:
    """uint8 [B, 3, S, S]; torch's own collation writes straight into shared memory when it runs in a worker."""
    stacked = default_collate([torch.from_numpy(image.transpose(1, 2, 0)) for image in images])
    assert isinstance(stacked, Tensor)
    return stacked.permute(0, 3, 1, 2)


def _stack_augmentations(
    drawn: list[Augmentation],
) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """Flips [B], orders [B], factors [B, 3], lighting [B, 3]; None for what changes nothing."""
    flips = torch.tensor([a.flip for a in drawn], dtype=torch.bool)
    orders = torch.tensor([a.jitter_order for a in drawn], dtype=torch.int64)
    factors = torch.tensor([a.jitter_factors for a in drawn], dtype=torch.float32)
    lighting = torch.tensor([a.lighting for a in drawn], dtype=torch.float32)
    jitters = bool((factors != 1).any())
    return (
        flips if flips.any() else None,
        orders if jitters else None,
        factors if jitters else None,
        lighting if lighting.any() else None,
    )


def steps_per_epoch(num_images: int, global_batch: int) -> int:
    """Whole global batches in an epoch; the last partial one is dropped.

    Raises:
        UserError: there is not one.
    """
    if num_images < global_batch:
        raise UserError(
            f"found {num_images} training images; expected at least one batch of {global_batch}. "
            "Lower --optim.batch_size or add images."
        )
    return num_images // global_batch


class BatchSampler(Protocol):
    """Says what to read: lists of (epoch, index), one per batch of this process."""

    def __iter__(self) -> Iterator[list[Key]]:
        """The lists, in order."""
        ...

    def __len__(self) -> int:
        """How many."""
        ...


@dataclass(frozen=True, slots=True)
class TrainBatches:
    """Every batch of a training run from one step on, through all epochs, so that no epoch starts with empty hands.

    The order of an epoch comes from (seed, epoch). Global batch t of an epoch is order[t*B : (t+1)*B], and a rank takes
    its rows [rank*b, (rank+1)*b), in `accumulation` micro-batches one after the other. With extra images, E a batch, it
    is order[t*(B-E) : (t+1)*(B-E)] and they, evenly mixed.

    Fields:
        num_images: N.
        batch_size_per_process: b, images per update of one process.
        accumulation: micro-batches per update; divides b.
        rank, world_size: of this process.
        seed: of the orders.
        start_step: updates already done.
        total_steps: updates in the whole run.
        extra: of the extra images; None: there are none.
    """

    num_images: int
    batch_size_per_process: int
    accumulation: int
    rank: int
    world_size: int
    seed: int
    start_step: int
    total_steps: int
    extra: ExtraBatches | None = None

    def __post_init__(self) -> None:
        """Refuse numbers that do not fit together."""
        assert 0 <= self.rank < self.world_size and 0 <= self.start_step <= self.total_steps
        assert self.batch_size_per_process % self.accumulation == 0

    def __len__(self) -> int:
        """Micro-batches that are left."""
        return (self.total_steps - self.start_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        """One list per micro-batch. UserError as in `steps_per_epoch`."""
        rows = self.batch_size_per_process
        micro = rows // self.accumulation
        extra = self.extra.from_step(self.start_step) if self.extra else repeat([])
        for main, more in zip(self._main_batches(), extra, strict=False):
            batch = spread(main, more) if more else main
            for start in range(self.rank * rows, (self.rank + 1) * rows, micro):
                yield batch[start : start + micro]

    def _main_batches(self) -> Iterator[list[Key]]:
        """The main images of each global batch."""
        size = self.batch_size_per_process * self.world_size - (self.extra.per_batch if self.extra else 0)
        steps = steps_per_epoch(self.num_images, size)
        order_of, order = -1, np.empty(0, dtype=np.int64)
        for step in range(self.start_step, self.total_steps):
            epoch, t = divmod(step, steps)
            if epoch != order_of:
                order_of, order = epoch, epoch_order(self.seed, epoch, self.num_images)
            yield [(epoch, index) for index in order[t * size : (t + 1) * size].tolist()]


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """int64 [N]; the order in which an epoch goes through the images, from (seed, epoch) alone."""
    return keyed_rng(seed, ORDER, epoch).permutation(num_images)


@dataclass(frozen=True, slots=True)
class TestBatches:
    """Every image once over all ranks: rank r takes r, r + world_size, ... The last batch may be partial, a rank empty.

    Fields:
        num_images: N.
        batch_size: images per batch of one process.
        rank, world_size: of this process.
    """

    __test__ = False  # not a class of tests, whatever pytest takes the name for

    num_images: int
    batch_size: int
    rank: int
    world_size: int

    def __len__(self) -> int:
        """Batches of this rank."""
        return -(-len(self._indices()) // self.batch_size)

    def __iter__(self) -> Iterator[list[Key]]:
        """One list per batch, all of epoch 0."""
        indices = self._indices()
        for start in range(0, len(indices), self.batch_size):
            yield [(0, index) for index in indices[start : start + self.batch_size]]

    def _indices(self) -> range:
        """The images of this rank."""
        return range(self.rank, self.num_images, self.world_size)


class Loader:
    """Batches of the data set on the device, read ahead by worker processes.

    Iterating starts the workers; leaving the loop, in whatever way, ends them.
    """

    def __init__(self, dataset: Readable, batch_sampler: BatchSampler, num_workers: int, device: torch.device) -> None:
        """Nothing is started.

        Args:
            dataset: of samples: an ImageDataset or a MixedDataset, or a SkippingDataset of one.
            batch_sampler: TrainBatches or TestBatches.
            num_workers: processes that decode; 0 reads in this one. Changes nothing but the speed.
            device: where the batches go; on CUDA through pinned memory, copied while the step before computes.
        """
        self._dataset = dataset
        self._batch_sampler = batch_sampler
        self._num_workers = num_workers
        self._device = device

    def __len__(self) -> int:
        """Batches of one pass."""
        return len(self._batch_sampler)

    def __iter__(self) -> Iterator[Batch]:
        """One pass. UserError: an image or a label map cannot be read, or a worker was killed."""
        on_cuda = self._device.type == "cuda"
        batches = read_batches(self._dataset, collate, self._batch_sampler, self._num_workers, pin_memory=on_cuda)
        if on_cuda:
            return _copy_ahead(batches, self._device)
        return (batch.to(self._device) for batch in batches)


def _copy_ahead(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy one batch ahead on a stream of its own, so that the copy runs beside the step before."""
    stream = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            following = batch.to(device), stream.record_event()
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = following
    if waiting is not None:
        yield _arrived(*waiting)


def _arrived(batch: Batch, copied: torch.cuda.Event) -> Batch:
    """The batch, for use on the current stream once its copy is done; the host does not wait."""
    current = torch.cuda.current_stream(batch.images.device)
    current.wait_event(copied)
    batch.record_stream(current)
    return batch
