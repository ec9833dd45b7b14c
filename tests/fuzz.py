"""Mutation fuzzing of all that reads foreign bytes: a reader returns a valid value or raises UserError, nothing else.

A case is a valid file with a few random changes; case i of a seed is the same on every machine. Cases are read in a
forked child with a limit on memory and time, where an audit hook notices whatever writes, starts or connects.
"""

import io
import multiprocessing
import os
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz_targets import TARGETS, Target
from utils.errors import UserError

MEMORY = 3 * 2**30  # bytes of addresses that reading may add; torch reserves room that it never touches
PATIENCE_S = 60  # for one case
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
DIGITS = (b"-1", b"0", b"00", b"1e999", b"9" * 25, b"9" * 400, b"9" * 5000, b"1.5", b"0_1", b"nan", b"\xd9\xa1")
TOKENS = (b"\0", b"\xff", b"\n", b'"', b"'", b"../", b"/", b"\\", b"\\ud800", b"\xed\xa0\x80", b"[", b"{", b"(" * 300)
# What a reader of files never does.
BANNED_EVENTS: tuple[str, ...] = ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "socket.connect")
BANNED_EVENTS += ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "shutil.")
BANNED_EVENTS += ("ctypes.dlopen",)

Files = dict[str, bytes]


@dataclass(slots=True)
class Outcome:
    """Number of cases read, number of those that gave a valid value, and what those did that gave neither."""

    cases: int = 0
    accepted: int = 0
    findings: list[str] = field(default_factory=list)


def make_case(name: str, files: Files, seed: int, number: int) -> tuple[str, bytes]:
    """Name and content of a case: one of a target's valid files, changed."""
    rng = random.Random(f"{name} {seed} {number}")
    file = rng.choice(sorted(files))
    change = in_archive if files[file].startswith(b"PK") and rng.random() < 0.6 else mutated
    return file, change(files[file], rng, TARGETS[name].tokens)


def mutated(content: bytes, rng: random.Random, tokens: tuple[bytes, ...]) -> bytes:
    """Replace one to six short pieces; sometimes cut off what follows."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(content) + 1)
        piece, rest = content[at : at + rng.randrange(1, 40)], content[at:]
        size = rng.choice((1, 2, 4, 8))
        number = (rng.choice(NUMBERS) % 256**size).to_bytes(size, rng.choice(("little", "big")))
        changed = (
            bytes([byte ^ 1 << rng.randrange(8) for byte in piece[:1]]) + piece[1:],
            rng.randbytes(len(piece)),
            rng.choice((*TOKENS, *DIGITS, *tokens)) + piece,
            b"",
            piece * rng.choice((2, 3, 51)),
            number + piece[size:],
            re.sub(rb"[0-9]+", rng.choice((*DIGITS, b"%d" % rng.choice(NUMBERS))), piece, count=1),
        )
        content = content[:at] + rng.choice(changed) + (b"" if rng.random() < 0.03 else rest[len(piece) :])
    return content


def in_archive(content: bytes, rng: random.Random, tokens: tuple[bytes, ...]) -> bytes:
    """Change one member of a zip file, under a checksum that fits."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    chosen = rng.choice([name for name in members if rng.random() < 0.2 or name.endswith("pkl")])
    members[chosen] = mutated(members[chosen], rng, tokens)
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


def fuzz(name: str, cases: int, seed: int = 0) -> Outcome:
    """Read so many changed files of a target, up to the first that ends the process."""
    fork, outcome = multiprocessing.get_context("fork"), Outcome()
    with tempfile.TemporaryDirectory() as directory:
        TARGETS[name].prepare(Path(directory))
        files = {path.name: path.read_bytes() for path in Path(directory).iterdir()}
        ours, theirs = fork.Pipe(duplex=False)
        child = fork.Process(target=_child, args=(name, Path(directory), files, seed, cases, theirs))
        child.start()
        theirs.close()
        with suppress(EOFError):
            while True:
                accepted, what = ours.recv()
                if what:
                    outcome.findings.append(f"case {outcome.cases}: {what}")
                outcome.cases += 1
                outcome.accepted += accepted
        child.join()
    if child.exitcode:
        outcome.findings.append(f"case {outcome.cases}: the process died: status {child.exitcode}")
    return outcome


def _child(name: str, folder: Path, files: Files, seed: int, cases: int, results: "Connection[Any, Any]") -> None:
    """Read the cases one by one and send (accepted, what went wrong) of each."""
    warnings.simplefilter("ignore")
    has = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY, has + MEMORY))
    noticed: list[str] = []
    sys.addaudithook(lambda event, args: noticed.append(f"{event}{args}") if _is_banned(event, args) else None)
    before = _memory()
    for number in range(cases):
        file, content = make_case(name, files, seed, number)
        (folder / file).write_bytes(content)
        noticed.clear()
        signal.alarm(PATIENCE_S)
        accepted, what = _verdict(TARGETS[name], folder / file)
        signal.alarm(0)
        if noticed:
            what = f"did what no reader does: {noticed[0]}"
        if _memory() - before > TARGETS[name].memory:
            what = f"took {(_memory() - before) / 2**20:,.0f} MiB of memory"
        before = _memory()
        results.send((accepted, what and f"{file}: {what}\n{content[:2000]!r}"))
        (folder / file).write_bytes(files[file])


def _memory() -> int:
    """Return the most bytes that this process has held."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _verdict(target: Target, path: Path) -> tuple[bool, str]:
    """Whether a reader gave a valid value, and what went wrong if it neither did that nor raised a UserError."""
    try:
        target.read(path)
    except UserError as error:
        return False, "" if str(error).strip() else "a UserError without a message"
    except BaseException:
        return False, traceback.format_exc()
    return True, ""


def _is_banned(event: str, args: tuple[Any, ...]) -> bool:
    if event == "open":
        return isinstance(args[2], int) and bool(args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    return event.startswith(BANNED_EVENTS)
