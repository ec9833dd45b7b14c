"""Patterns that stand for several files: 'shards/*.tar', shards/{000..127}.tar."""

import re
from collections.abc import Sequence
from glob import escape, glob
from itertools import product
from os.path import commonprefix
from pathlib import Path

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def as_source(tars: Sequence[Path]) -> Path:
    """Return what stands for these tar files where a command asks for IMAGES."""
    if len(tars) == 1:
        return tars[0]
    names = [str(tar) for tar in tars]
    prefix, suffix = (commonprefix([name[::step] for name in names])[::step] for step in (1, -1))  # noqa: RUF071
    pattern = f"{prefix}*{suffix}"
    return Path(pattern if matching(pattern) == names else ":".join(names))


def matching(pattern: str) -> list[str]:
    """Return the sorted paths that exist and match; of a folder that exists, whose name looks like a pattern, those."""
    path = Path(pattern)
    if path.exists():
        return [pattern]
    in_folder = f"{escape(str(path.parent))}/{path.name}" if path.parent.is_dir() and "/" in pattern else pattern
    return sorted(glob(in_folder))  # noqa: PTH207


def expanded(pattern: str) -> list[str]:
    """Return the paths that a pattern with {000..127} stands for."""
    ends = _RANGE.findall(pattern)
    ranges = [[f"{i:0{len(first)}d}" for i in range(int(first), int(last) + 1)] for first, last in ends]
    return [_RANGE.sub("{}", pattern).format(*numbers) for numbers in product(*ranges)] if ends else [pattern]
