"""What ends a run early, told once, whichever of its processes it comes from."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from relabel.training.trainer import Preempted
from utils.errors import SharedError, UserError
from utils.processes.distributed import Process
from utils.processes.workers import end_workers, raise_worker_death


@contextmanager
def failures_told(
    process: Process, note: Callable[[Exception], None], told_before: Callable[[Exception], bool]
) -> Iterator[None]:
    """One clear message from the process that fails; those that only lose their connection to it end silently.

    Args:
        place: of this process; the main one's UserErrors are told by whoever started it.
        note: writes a failure down.
        told_before: has another process told why it failed, before this error arose here?
    """
    try:
        with worker_deaths_told():
            yield
    except Preempted:
        raise
    except UserError as error:
        if process.is_main or not isinstance(error, SharedError):
            note(error)
            if not process.is_main:
                print(f"error: {error}", file=sys.stderr, flush=True)
        raise
    except Exception as error:
        if process.world_size > 1 and told_before(error):
            sys.exit(1)
        note(error)
        raise
    finally:
        end_workers()


@contextmanager
def worker_deaths_told() -> Iterator[None]:
    """A loader worker's death reaches the main thread wherever it is; here it becomes a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise_worker_death(error)
        raise
