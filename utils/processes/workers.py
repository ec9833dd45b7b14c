"""Batches read by worker processes: torch's DataLoader, with errors and crashes of workers reported in one message."""

import atexit
import gc
import math
import multiprocessing
import os
import signal
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.errors import UserError
from utils.processes.distributed import STOP_SIGNALS
from utils.processes.launch import check_main_module, die_with_parent
from utils.processes.startup import keep_freed_memory

T = TypeVar("T")

READ_AHEAD = 2  # batches of each worker

_running: "weakref.WeakSet[Generator[Any, None, None]]" = weakref.WeakSet()


def read_batches(
    dataset: Any,
    collate: Callable[[Sequence[Any]], T],
    key_lists: Iterable[list[Any]],
    num_workers: int,
    pin_memory: bool,
    flag: str = "--num_workers",
) -> Iterator[T]:
    """Prefetch batches in order. The workers start with the first batch and end with the iterator.

    Args:
        dataset: dataset[key] is the sample of a key; pickled into the workers unless they are forked.
        collate: makes a batch from a list of samples; runs in the worker.
        key_lists: the keys of each batch.
        num_workers: processes; 0 reads in this process.
        pin_memory: put batches into page-locked memory (they need a pin_memory method).
        flag: the command-line flag of num_workers, for messages.

    Raises:
        UserError: raised by dataset or collate, in this process or a worker; or a worker was killed.
    """
    loader: DataLoader[Any] = DataLoader(
        _BatchReader(dataset, collate),
        batch_sampler=key_lists,
        num_workers=num_workers,
        prefetch_factor=READ_AHEAD if num_workers else None,
        collate_fn=_identity,
        pin_memory=pin_memory,
        worker_init_fn=partial(_prepare_worker, os.getpid()),
        # A separate one: starting the workers draws a number, otherwise from the generator that dropout uses.
        generator=torch.Generator(),
    )
    batches = _read(loader, flag)
    _running.add(batches)
    return batches


def _read(loader: DataLoader[Any], flag: str) -> Generator[Any, None, None]:
    """Start the workers, yield their batches, end them."""
    batches = _start(loader, flag)
    try:
        while (batch := _next(batches, flag)) is not None:
            yield batch
    finally:
        # Not left to the garbage collector: an exception's traceback may keep the iterator alive for long, and a
        # collected one has lost the queues through which workers are asked to end.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
            for worker in batches._workers:
                if worker.is_alive():  # it hangs, for example on a network disk, and ignores torch's SIGTERM
                    worker.kill()


def _start(loader: DataLoader[Any], flag: str) -> Iterator[Any]:
    """Start the workers with signals blocked: they inherit the mask until they can ignore the signals themselves."""
    if loader.num_workers and multiprocessing.get_start_method() != "fork":
        check_main_module(f"{flag} 0")
        resource_tracker.ensure_running()  # starting it would unblock the signals
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        return iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _next(batches: Iterator[Any], flag: str) -> Any:
    """Return the next batch, None after the last; raise a worker's UserError or death."""
    try:
        batch = next(batches, None)
    except RuntimeError as error:
        raise_worker_death(error, flag)
        raise
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # it died before sending the batch's memory
        raise _worker_death(error, flag) from error
    if isinstance(batch, UserError):
        raise batch
    return batch


def raise_worker_death(error: Exception, flag: str) -> None:
    """Turn torch's report of a worker's death into a UserError; leave any other error alone.

    torch raises it wherever the main thread happens to be, so loops over batches call this for their own errors too.
    """
    if str(error).startswith("DataLoader worker (pid"):
        raise _worker_death(error, flag) from error


def _worker_death(error: Exception, flag: str) -> UserError:
    return UserError(
        f"a process that loads images died ({error}). Usually memory or /dev/shm has run out: lower {flag} or the "
        "batch size, or give the container more of both."
    )


@atexit.register
def end_workers() -> None:
    """End the workers of loops that were left unfinished.

    Otherwise multiprocessing would send them SIGTERM, which they ignore, and wait forever. At exit this runs before
    multiprocessing's handler (last registered, first called); a process started by multiprocessing must call it itself,
    because atexit comes too late there.
    """
    for batches in list(_running):
        batches.close()


class BatchMemory:
    """Memory for the pixels of batches. In a worker it is shared with the parent, and batch n + 3 is written over n.

    The kernel clears new shared memory page by page; if each batch has its own, that takes 7 % of a worker's time.

    A worker begins its batch n + 3 only after the parent has asked for the batch that follows n. By then the parent
    must have copied batch n (or pinned it, which is a copy).
    """

    def __init__(self) -> None:
        self._used: deque[Tensor] = deque()

    def take(self, *shape: int) -> Tensor:
        """Return memory for one batch, uint8 of this shape, with any contents."""
        if get_worker_info() is None:
            return torch.empty(shape, dtype=torch.uint8)
        size = math.prod(shape)
        memory = self._used.popleft() if len(self._used) > READ_AHEAD else torch.empty(0, dtype=torch.uint8)
        if len(memory) < size:
            # As in torch's own collation: share_memory_() would copy what is not there yet.
            memory = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))
        self._used.append(memory)
        return memory[:size].view(shape)


class _BatchReader(Dataset[Any]):
    """The data set as DataLoader uses it: a list of keys in, a whole batch out.

    A UserError comes out instead of a batch: torch would add a worker's traceback to one that is raised.
    """

    def __init__(self, dataset: Any, collate: Callable[[Sequence[Any]], Any]) -> None:
        self._dataset = dataset
        self._collate = collate

    def __getitems__(self, keys: list[Any]) -> Any:
        try:
            return self._collate([self._dataset[key] for key in keys])
        except UserError as error:
            return UserError(str(error))  # its own class may not be picklable


def _identity(batch: Any) -> Any:
    """Return the batch unchanged: the reader has collated it."""
    return batch


def _prepare_worker(parent: int, worker_id: int) -> None:
    """Let only the parent decide when a worker ends: ignore signals to the process group, end with the parent."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    die_with_parent(parent)
    keep_freed_memory()
    gc.freeze()  # the collector would visit all that was imported, again and again
