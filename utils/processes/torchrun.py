"""The environment variables that torchrun sets for the processes it starts; checked without importing torch."""

import os
import re

from utils.config.problems import Problem, report
from utils.errors import UserError

STARTED_BY = os.getppid()  # read before the slow import of torch, during which the parent may die
_ALONE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}  # the values for a single process
_RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT")  # where several processes connect
_LARGEST_PORT = 65_535
_ADVICE = "start the processes with torchrun, which sets it, or unset it"


def under_torchrun() -> bool:
    """Return whether torchrun has started this process."""
    return all(name in os.environ for name in _ALONE)


def ranks() -> tuple[int, int, int, int]:
    """Return rank, world size, local rank and local world size; only under torchrun."""
    rank, world_size, local_rank, local_world_size = (int(os.environ[name]) for name in _ALONE)
    return rank, world_size, local_rank, local_world_size


def is_first_of_node() -> bool:
    """Return whether this process prints for its node: under torchrun a mistake is reported once."""
    return os.environ.get("LOCAL_RANK", "0") == "0" or bool(torchrun_problems())


def refuse_broken_torchrun() -> None:
    """Check the variables, for a tool that several processes can share. Raises UserError with every problem."""
    if problems := torchrun_problems():
        raise UserError(report(problems, "To start several processes: torchrun --help"))


def torchrun_problems() -> list[Problem]:
    """List what is wrong with the variables.

    If some are missing, as under some schedulers, each process would train alone, all in one run folder. That is only a
    problem if the others mean several processes.
    """
    found = {name: os.environ[name] for name in (*_ALONE, *_RENDEZVOUS) if name in os.environ}
    several = [name for name in _ALONE if found.get(name, _ALONE[name]) != _ALONE[name]]
    if not several:
        return []
    if missing := [name for name in (*_ALONE, *_RENDEZVOUS) if name not in found]:
        text = f"means several processes, but {', '.join(missing)} are not set; {_ADVICE}"
        return [_problem(several[0], found[several[0]], text)]
    numbers = [*_ALONE, "MASTER_PORT"]
    wrong = [name for name in numbers if not re.fullmatch("[0-9]{1,9}", found[name])]
    if wrong:
        return [_problem(name, found[name], f"expected a whole number; {_ADVICE}") for name in wrong]
    limits = [
        ("RANK", int(found["WORLD_SIZE"]) - 1, f"less than WORLD_SIZE = {found['WORLD_SIZE']}"),
        ("LOCAL_RANK", int(found["LOCAL_WORLD_SIZE"]) - 1, f"less than LOCAL_WORLD_SIZE = {found['LOCAL_WORLD_SIZE']}"),
        ("LOCAL_WORLD_SIZE", int(found["WORLD_SIZE"]), f"at most WORLD_SIZE = {found['WORLD_SIZE']}"),
        ("MASTER_PORT", _LARGEST_PORT, f"at most {_LARGEST_PORT}"),
    ]
    return [
        _problem(name, found[name], f"expected {limit}; {_ADVICE}")
        for name, largest, limit in limits
        if int(found[name]) > largest
    ]


def _problem(name: str, text: str, advice: str) -> Problem:
    return Problem(f"{name} = {text!r}", "environment", advice)
