"""Errors of a device rather than of the code that meets them: memory that runs out, faults of CUDA."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from utils.errors import UserError

_MEMORY = re.compile(r"out of memory|can't allocate memory|STATUS_ALLOC_FAILED")
_FAULT = re.compile(r"\b(CUDA|cuDNN|CUBLAS|CUDNN|NCCL)\b")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an allocation failed, on a GPU or a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _MEMORY.search(str(error)) is not None


def is_device_error(error: Exception) -> bool:
    """Return whether an error is the device's: no memory, or a fault of CUDA or one of its libraries."""
    return is_out_of_memory(error) or (isinstance(error, RuntimeError) and _FAULT.search(str(error)) is not None)


@contextmanager
def out_of_memory_reported(advice: str) -> Iterator[None]:
    """Turn an allocation that fails into a UserError with this advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        found = ". ".join(str(error).partition("\n")[0].split(". ")[:2]) or "the CPU's memory is full"
        raise UserError(f"out of memory: {found}\n  {advice}") from error
