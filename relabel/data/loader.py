"""Batches on the device: which images a step reads and in which order, and copying and decoding ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from itertools import repeat
from operator import itemgetter
from typing import Any, Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from relabel.data.batch import Batch, check_left, collate
from relabel.data.dataset import Key, Samples
from relabel.data.extra_images import ExtraBatches, spread
from relabel.data.gpu_decode import EncodedImages, report_fallback
from relabel.data.skipped_images import SkippedImage
from utils.errors import UserError
from utils.processes.workers import READ_AHEAD, BatchMemory, read_batches
from utils.random import ORDER, keyed_rng


def steps_per_epoch(num_images: int, global_batch: int) -> int:
    """Return the number of whole global batches in an epoch; the last partial one is dropped.

    Raises:
        UserError: there are too few images for one batch.
    """
    if num_images < global_batch:
        raise UserError(
            f"found {num_images} training images; expected at least one batch of {global_batch}. "
            "Lower --optim.batch_size or add images."
        )
    return num_images // global_batch


@dataclass(frozen=True, slots=True)
class TrainBatches:
    """The batches of a training run from one step to its end; prefetching continues across epoch boundaries.

    The order of an epoch depends only on (seed, epoch). Global batch t of an epoch is order[t*B : (t+1)*B]; a rank
    reads its rows [rank*b, (rank+1)*b), as `accumulation` micro-batches one after the other. With E extra images per
    batch, these are mixed evenly with order[t*(B-E) : (t+1)*(B-E)].

    Fields:
        num_images: N, without extra images.
        batch_size_per_process: b, images per update of one process.
        accumulation: micro-batches per update; divides b.
        rank, world_size: of this process.
        seed: determines the order of each epoch.
        start_step: updates already done.
        total_steps: updates in the whole run.
        extra: the extra images of each update; None without them.
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

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield (epoch, index) of the images of each micro-batch. UserError as in `steps_per_epoch`."""
        rows = self.batch_size_per_process
        micro = rows // self.accumulation
        extra = self.extra.from_step(self.start_step) if self.extra else repeat([])
        for main, more in zip(self._main_batches(), extra, strict=False):
            batch = spread(main, more) if more else main
            for start in range(self.rank * rows, (self.rank + 1) * rows, micro):
                yield batch[start : start + micro]

    def _main_batches(self) -> Iterator[list[Key]]:
        """Yield the main images of each global batch."""
        size = self.batch_size_per_process * self.world_size - (self.extra.per_batch if self.extra else 0)
        steps = steps_per_epoch(self.num_images, size)
        order_epoch, order = -1, np.empty(0, dtype=np.int32)
        for step in range(self.start_step, self.total_steps):
            epoch, t = divmod(step, steps)
            if epoch != order_epoch:
                order_epoch, order = epoch, epoch_order(self.seed, epoch, self.num_images)
            yield [(epoch, index) for index in order[t * size : (t + 1) * size].tolist()]


def epoch_order(seed: int, epoch: int, num_images: int) -> np.ndarray:
    """Return the order of the images in an epoch, int32 [N]; it depends only on (seed, epoch)."""
    order = np.arange(num_images, dtype=np.int32)  # the same order as permutation's, in half of its memory
    keyed_rng(seed, ORDER, epoch).shuffle(order)
    return order


def eval_batches(num_images: int, batch_size: int, rank: int, world_size: int) -> list[list[Key]]:
    """Return (epoch 0, index) of the images of each batch of a process; all ranks together read every image once.

    Rank r reads r, r + world_size, ... The last batch may be partial, and a rank may have none.
    """
    keys = [(0, index) for index in range(rank, num_images, world_size)]
    return [keys[start : start + batch_size] for start in range(0, len(keys), batch_size)]


class _Batches:
    """A data set of whole batches: the key of each is the list of its samples' keys."""

    def __init__(self, dataset: Any) -> None:
        self._dataset, self._memory, self._for_files = dataset, BatchMemory(), BatchMemory()

    def __getitem__(self, keys: list[Key]) -> Batch:
        return collate(Samples(self._dataset, keys), self._memory, self._for_files)


@dataclass(frozen=True, slots=True, eq=False)
class Loader:
    """Batches of a data set on the device, read ahead by worker processes.

    Iterating starts the workers; they end with the loop, however it is left.

    Fields:
        dataset: of samples: an ImageDataset, a MixedDataset, or a SkippingDataset of one.
        batch_sampler: TrainBatches, or a list from `eval_batches`.
        num_workers: processes that decode; 0 decodes in this process. Affects only the speed.
        device: of the batches; copied to CUDA from pinned memory, during the previous step. It also decodes the
            images that the data set leaves encoded.
    """

    dataset: Any
    batch_sampler: Iterable[list[Key]]
    num_workers: int
    device: torch.device

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of one pass. UserError: an image or label map cannot be read, or a worker was killed."""
        on_cuda = self.device.type == "cuda"
        flag = "--compute.num_workers"
        keys = ([batch] for batch in self.batch_sampler)
        batches = read_batches(_Batches(self.dataset), itemgetter(0), keys, self.num_workers, on_cuda, flag)
        if on_cuda:  # pinning has copied them from the workers' memory
            return copy_ahead(batches, lambda batch: self._decoded(batch).to(self.device), self.device)
        return self._copied(batches)

    def _copied(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Copy each batch from its worker's memory. All memories stay mapped: mapping one takes as long as a copy."""
        mapped: deque[tuple[Tensor, EncodedImages | None]] = deque(maxlen=(READ_AHEAD + 1) * self.num_workers)
        for batch in batches:
            mapped.append((batch.images, batch.encoded))
            yield self._decoded(replace(batch, images=batch.images.clone())).to(self.device)

    def _decoded(self, batch: Batch) -> Batch:
        """Decode the images that are still encoded, on the device.

        Raises:
            UserError: one cannot be decoded, on the CPU either, or as in `collate`.
        """
        if batch.encoded is None:
            return batch
        skipped: list[SkippedImage] = []

        def again(key: Key, reason: str) -> np.ndarray | None:
            sample = self.dataset.on_cpu()[key]
            if isinstance(sample, SkippedImage):
                skipped.append(sample)
                return None
            report_fallback(str(self.dataset.path(key)), reason)
            return sample.image

        images, kept = batch.encoded.join(batch.images, self.device, again)
        batch = replace(batch, images=images, encoded=None, skipped=(*batch.skipped, *skipped))
        check_left(len(kept), batch.skipped)
        return batch.map(lambda tensor: tensor[kept]) if skipped else batch


class _Tensors(Protocol):
    """A batch of any kind."""

    def map(self, function: Callable[[Tensor], Tensor]) -> Self:
        """Return a batch with the function applied to each tensor."""


T = TypeVar("T", bound=_Tensors)


def copy_ahead(batches: Iterator[T], move: Callable[[T], T], device: torch.device) -> Iterator[T]:
    """Copy one batch ahead to a GPU, during the previous step.

    In a thread: decoding would keep the host from launching the step.

    Args:
        batches: in page-locked memory.
        move: copies a batch to the device, and decodes it; called with a stream of its own as the current one.
        device: the GPU.
    """
    waiting: deque[Future[tuple[T, torch.cuda.Event]]] = deque()
    with ThreadPoolExecutor(1) as thread:
        for batch in batches:
            waiting.append(thread.submit(_on_copy_stream, move, batch, device))
            if len(waiting) > 1:
                yield _arrived(*waiting.popleft().result(), device)
        for last in waiting:
            yield _arrived(*last.result(), device)


def _on_copy_stream(move: Callable[[T], T], batch: T, device: torch.device) -> tuple[T, torch.cuda.Event]:
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        return move(batch), stream.record_event()


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream on which batches arrive: one for the life of the process, because each keeps its memory."""
    return torch.cuda.Stream(device)


def _arrived(batch: T, copied: torch.cuda.Event, device: torch.device) -> T:
    """Make the current stream wait for the copy, without blocking the host."""
    current = torch.cuda.current_stream(device)
    current.wait_event(copied)

    def record(tensor: Tensor) -> Tensor:
        tensor.record_stream(current)  # another stream owns its memory, which the allocator would reuse too early
        return tensor

    return batch.map(record)
