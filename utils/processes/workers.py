"""Batches read by worker processes: torch's DataLoader, whose errors and deaths end in one clear message."""

import atexit
import multiprocessing
import os
import signal
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from utils.errors import UserError
from utils.processes.distributed import STOP_SIGNALS
from utils.processes.launch import die_with_parent

T = TypeVar("T")

_running: "weakref.WeakSet[Generator[Any, None, None]]" = weakref.WeakSet()


class Readable(Protocol):
    """A data set: anything that gives a sample for a key."""

    def __getitem__(self, key: Any) -> Any:
        """The sample of a key."""
        ...


class KeyLists(Protocol):
    """What to read: the keys of each batch, in order."""

    def __iter__(self) -> Iterator[list[Any]]:
        """One list per batch."""
        ...


def read_batches(
    dataset: Readable,
    collate: Callable[[Sequence[Any]], T],
    key_lists: KeyLists,
    num_workers: int,
    pin_memory: bool,
) -> Iterator[T]:
    """Read batches in order, ahead of their use. The workers start with the first, and end when the iterator does.

    Args:
        dataset: gives samples; pickled into the workers where they are not forked.
        collate: makes a batch of a list of samples; runs in the worker.
        key_lists: the keys of each batch.
        num_workers: processes; 0 reads in this one.
        pin_memory: batches are put in page-locked memory (they need a method pin_memory).

    Raises:
        UserError: as raised by data set or collate, in this process or a worker; or a worker was killed.
    """
    batches = _read(dataset, collate, key_lists, num_workers, pin_memory)
    _running.add(batches)
    return batches


def _read(
    dataset: Readable, collate: Callable[[Sequence[Any]], T], key_lists: KeyLists, num_workers: int, pin_memory: bool
) -> Generator[T, None, None]:
    """See `read_batches`."""
    loader: DataLoader[Any] = DataLoader(
        _BatchReader(dataset, collate),
        batch_sampler=key_lists,
        num_workers=num_workers,
        collate_fn=_as_read,
        pin_memory=pin_memory,
        worker_init_fn=partial(_prepare_worker, os.getpid()),
        # Its own: starting the workers draws a number, which else would come from the stream that dropout uses.
        generator=torch.Generator(),
    )
    # Workers that are only starting cannot ignore signals yet: these wait until they can. A mask is inherited.
    if num_workers and multiprocessing.get_start_method() != "fork":
        resource_tracker.ensure_running()  # its start lets signals through again
    held = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        batches = iter(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    try:
        while (batch := _next(batches)) is not None:
            yield batch
    finally:
        # Now, and not when the garbage collector finds it: an exception's traceback may hold the iterator for long, and
        # a collected one has lost the queues through which workers are told to end.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()
            for worker in batches._workers:  # one that hangs, on a disk of the network say, is asked by SIGTERM alone
                if worker.is_alive():
                    worker.kill()


def _next(batches: "Iterator[T | _Refusal]") -> T | None:
    """The next batch, None after the last; a worker's refusal or death as UserError."""
    try:
        batch = next(batches, None)
    except RuntimeError as error:
        raise_worker_death(error)
        raise
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # its batch was there, but not yet its memory
        raise _worker_death(error) from error
    if isinstance(batch, _Refusal):
        raise UserError(batch.message)
    return batch


def raise_worker_death(error: Exception) -> None:
    """Turn torch's word for a worker's death into a UserError; any other error is left alone.

    torch raises it wherever the main thread happens to be, so loops over batches call this for errors of theirs too.
    """
    if str(error).startswith("DataLoader worker (pid"):
        raise _worker_death(error) from error


def _worker_death(error: Exception) -> UserError:
    return UserError(
        f"a process that loads images died ({error}); expected it to live as long as the run. Usually memory or "
        "/dev/shm has run out: lower --compute.num_workers or the batch size, or give the container more of both."
    )


@atexit.register
def end_workers() -> None:
    """End the workers of loops that nobody finished.

    multiprocessing would send them SIGTERM, which they ignore, and then wait for them for ever. When the program ends
    this runs before it (last registered, first called); a process that multiprocessing itself started must call it,
    because there atexit comes too late.
    """
    for batches in list(_running):
        batches.close()


@dataclass(frozen=True, slots=True)
class _Refusal:
    """A UserError on its way out of a worker; torch would raise it again with the worker's traceback in its message."""

    message: str


class _BatchReader(Dataset[Any], Generic[T]):
    """The data set as DataLoader sees it: a list of keys in, a whole batch out."""

    def __init__(self, dataset: Readable, collate: Callable[[Sequence[Any]], T]) -> None:
        """Wrap a data set."""
        self._dataset = dataset
        self._collate = collate

    def __getitems__(self, keys: list[Any]) -> T | _Refusal:
        """The batch of these keys, or why there is none."""
        try:
            return self._collate([self._dataset[key] for key in keys])
        except UserError as error:
            return _Refusal(str(error))


def _as_read(batch: Any) -> Any:
    """The reader has collated already."""
    return batch


def _prepare_worker(parent: int, worker_id: int) -> None:
    """Let the parent alone decide when a worker ends: signals to the whole group must not, its death must."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    die_with_parent(parent)
