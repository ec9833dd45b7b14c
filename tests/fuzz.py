"""Mutation fuzzing of all that reads foreign bytes: a reader returns a valid value or raises UserError, nothing else.

    python -m tests.fuzz image --seconds 600 --seed 0

A case is a valid file with a few random changes; case i of a seed is the same on every machine. Cases are read in a
forked child with a limit on memory and time, where an audit hook notices whatever writes, starts or connects.
"""

import argparse
import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz_targets import TARGETS, Target
from utils.errors import UserError

CASES_A_CHILD = 500  # what one child reads before the next one takes its place
MEMORY = 3 * 2**30  # bytes of addresses that reading may add; torch reserves room that it never touches
PATIENCE_S = 60  # for one case
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = (b"-1", b"0", b"00", b"1e999", b"9" * 25, b"9" * 400, b"9" * 5000, b"1.5", b"0_1", b"nan", b"\xd9\xa1")
TOKENS = (b"\0", b"\xff", b"\n", b'"', b"'", b"../", b"/", b"\\", b"\\ud800", b"\xed\xa0\x80", b"[", b"{", b"(" * 300)
# What a reader of files never does.
BANNED_EVENTS: tuple[str, ...] = (
    "subprocess.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.system",
    "socket.connect",
    "os.mkdir",
)
BANNED_EVENTS += ("os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "shutil.", "ctypes.dlopen")


@dataclass(slots=True)
class Outcome:
    """What the cases of a target led to.

    Fields:
        cases: read.
        accepted: of them, those that gave a valid value.
        findings: (number of the case, name of the file, its content, what happened) of those that gave neither.
    """

    cases: int = 0
    accepted: int = 0
    findings: list[tuple[int, str, bytes, str]] = field(default_factory=list)


def case_of(
    target: str, seed: int, number: int, files: dict[str, bytes], tokens: tuple[bytes, ...]
) -> tuple[str, bytes]:
    """Name and content of a case: one of the valid files, changed."""
    rng = random.Random(f"{target} {seed} {number}")
    name = rng.choice(sorted(files))
    content = files[name]
    if content.startswith(b"PK") and rng.random() < 0.6:
        return name, _in_archive(content, rng, tokens)
    return name, mutated(content, rng, tokens)


def mutated(content: bytes, rng: random.Random, tokens: tuple[bytes, ...]) -> bytes:
    """One to six random changes."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(changed) + 1)
        end = at + min(rng.randrange(1, 40), len(changed) - at)
        match rng.randrange(8):
            case 0 if changed:
                changed[at % len(changed)] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:end] = rng.randbytes(end - at)
            case 2:
                changed[at:at] = rng.choice((*TOKENS, *TEXTS, *tokens))
            case 3:
                changed[at:end] = b""
            case 4:
                changed[at:at] = changed[at:end] * rng.choice((1, 2, 50))
            case 5:
                size = rng.choice((1, 2, 4, 8))
                number = rng.choice(NUMBERS) % 256**size
                changed[at : at + size] = number.to_bytes(size, rng.choice(("little", "big")))
            case 6:
                _replace_number(changed, at, rng)
            case _:
                if rng.random() < 0.2:
                    del changed[at:]
    return bytes(changed)


def _replace_number(changed: bytearray, at: int, rng: random.Random) -> None:
    """Put another number in the place of the first one after a position that is written in digits."""
    digits = [i for i in range(at, min(at + 200, len(changed))) if 48 <= changed[i] <= 57]
    if digits:
        end = digits[0]
        while end < len(changed) and 48 <= changed[end] <= 57:
            end += 1
        changed[digits[0] : end] = rng.choice((*TEXTS, str(rng.choice(NUMBERS)).encode()))


def _in_archive(content: bytes, rng: random.Random, tokens: tuple[bytes, ...]) -> bytes:
    """A zip file with one changed member under a checksum that fits."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice([name for name in members if rng.random() < 0.2 or name.endswith("pkl")])
    members[chosen] = mutated(members[chosen], rng, tokens)
    file = io.BytesIO()
    with zipfile.ZipFile(
        file, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    ) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


def fuzz(name: str, cases: int | None = None, seconds: float | None = None, seed: int = 0, first: int = 0) -> Outcome:
    """Read mutated files until so many cases, or so many seconds, are over."""
    target, outcome = TARGETS[name], Outcome()
    deadline = None if seconds is None else time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        target.prepare(folder)
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        while (cases is None or outcome.cases < cases) and (deadline is None or time.monotonic() < deadline):
            room = CASES_A_CHILD if cases is None else min(CASES_A_CHILD, cases - outcome.cases)
            numbers = range(first + outcome.cases, first + outcome.cases + room)
            _read_in_child(name, target, folder, files, seed, numbers, deadline, outcome)
    return outcome


def _read_in_child(
    name: str,
    target: Target,
    folder: Path,
    files: dict[str, bytes],
    seed: int,
    numbers: range,
    deadline: float | None,
    outcome: Outcome,
) -> None:
    """Let a child read these cases; where it dies, the case that it was reading is the finding."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(name, target, folder, files, seed, numbers, deadline, theirs))
    child.start()
    theirs.close()
    done = 0
    try:
        while True:
            accepted, what = ours.recv()
            if what:
                outcome.findings.append(
                    (numbers[done], *case_of(name, seed, numbers[done], files, target.tokens), what)
                )
            outcome.accepted += accepted
            done += 1
    except EOFError:
        child.join()
    if child.exitcode:
        died = f"the process died: status {child.exitcode} (-{int(signal.SIGALRM)}: over {PATIENCE_S} s)"
        outcome.findings.append((numbers[done], *case_of(name, seed, numbers[done], files, target.tokens), died))
        done += 1
    outcome.cases += done
    for path in folder.iterdir():
        if path.name not in files:
            outcome.findings.append((numbers[max(done - 1, 0)], path.name, b"", "somebody wrote this file"))
            path.unlink()
        else:
            path.write_bytes(files[path.name])


def _child(
    name: str,
    target: Target,
    folder: Path,
    files: dict[str, bytes],
    seed: int,
    numbers: range,
    deadline: float | None,
    results: Any,
) -> None:
    """Read the cases one by one and send (accepted, what went wrong) of each."""
    warnings.simplefilter("ignore")
    limit_memory()
    noticed: list[str] = []
    sys.addaudithook(lambda event, args: noticed.append(f"{event}{args}") if _is_banned(event, args) else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        if deadline is not None and time.monotonic() > deadline:
            break
        file, content = case_of(name, seed, number, files, target.tokens)
        (folder / file).write_bytes(content)
        noticed.clear()
        signal.alarm(PATIENCE_S)
        accepted, what = verdict(target, folder / file)
        signal.alarm(0)
        if noticed:
            what = f"did what no reader does: {noticed[0]}"
        if (grown := 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)) > target.memory:
            what, before = f"took {grown / 2**20:,.0f} MiB of memory", before + grown // 1024
        results.send((accepted, what))
        (folder / file).write_bytes(files[file])


def verdict(target: Target, path: Path) -> tuple[bool, str]:
    """Whether a reader gave a valid value, and what went wrong if it neither did that nor raised a UserError."""
    try:
        target.read(path)
    except UserError as error:
        return False, "" if str(error).strip() else "a UserError that says nothing"
    except BaseException:
        return False, traceback.format_exc()
    return True, ""


def limit_memory() -> None:
    """Let this process take MEMORY bytes of addresses more than it has."""
    has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))


def _is_banned(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event.startswith(BANNED_EVENTS)


def kinds_of(findings: list[tuple[int, str, bytes, str]]) -> Iterator[tuple[int, tuple[int, str, bytes, str]]]:
    """(times, first) of findings that end alike."""
    kinds: dict[str, list[tuple[int, str, bytes, str]]] = {}
    for finding in findings:
        lines = finding[3].strip().splitlines()
        place = [line.strip() for line in lines if line.startswith("  File")][-1:]
        kinds.setdefault(f"{place}{lines[-1][:40]}", []).append(finding)
    for alike in kinds.values():
        yield len(alike), min(alike, key=lambda finding: len(finding[2]))


def main() -> None:
    """The command line: findings are told once a kind, their files kept."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the files that were findings")
    options = parser.parse_args()
    outcome = fuzz(options.target, seconds=options.seconds, seed=options.seed)
    for times, (number, name, content, what) in kinds_of(outcome.findings):
        print(f"case {number} of {name}, {len(content):,} bytes, {times} such:\n{what}")
        if options.keep:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{options.target}-{options.seed}-{number}-{name}").write_bytes(content)
    counts = f"{outcome.cases:,} cases, {outcome.accepted:,} accepted, {len(outcome.findings):,} findings"
    print(f"{options.target}: {counts}")
    sys.exit(bool(outcome.findings))


if __name__ == "__main__":
    main()
