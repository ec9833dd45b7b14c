"""Mutation fuzzing of all that reads foreign bytes: a reader returns a valid value or raises UserError, nothing else.

A case is a valid file with a few random changes; case i of a seed is the same on every machine. Cases are read in a
forked child with a limit on memory and time, where an audit hook notices whatever writes, starts or connects.
"""

import io
import multiprocessing
import os
import random
import resource
import signal
import sys
import tempfile
import traceback
import warnings
import zipfile
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from tests.fuzz_targets import TARGETS, Target
from utils.errors import UserError

CASES_A_CHILD = 500  # read by one child before the next one takes its place
MEMORY = 3 * 2**30  # bytes of addresses that reading may add; torch reserves room that it never touches
PATIENCE_S = 60  # for one case
NUMBERS = (0, 1, 2, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1)
TEXTS = (b"-1", b"0", b"00", b"1e999", b"9" * 25, b"9" * 400, b"9" * 5000, b"1.5", b"0_1", b"nan", b"\xd9\xa1")
TOKENS = (b"\0", b"\xff", b"\n", b'"', b"'", b"../", b"/", b"\\", b"\\ud800", b"\xed\xa0\x80", b"[", b"{", b"(" * 300)
# What a reader of files never does.
BANNED_EVENTS: tuple[str, ...] = ("subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.system", "socket.connect")
BANNED_EVENTS += ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate", "shutil.")
BANNED_EVENTS += ("ctypes.dlopen",)

Files = dict[str, bytes]


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


@dataclass(frozen=True, slots=True)
class Fuzzed:
    """One target with its valid files in a folder."""

    name: str
    target: Target
    folder: Path
    files: Files
    seed: int

    def case(self, number: int) -> tuple[str, bytes]:
        """Name and content of a case: one of the valid files, changed."""
        rng = random.Random(f"{self.name} {self.seed} {number}")
        name = rng.choice(sorted(self.files))
        content = self.files[name]
        if content.startswith(b"PK") and rng.random() < 0.6:
            return name, _in_archive(content, rng, self.target.tokens)
        return name, mutated(content, rng, self.target.tokens)


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
    compression = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
    with zipfile.ZipFile(file := io.BytesIO(), "w", compression) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return file.getvalue()


def fuzz(name: str, cases: int, seed: int = 0) -> Outcome:
    """Read so many mutated files."""
    target, outcome = TARGETS[name], Outcome()
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        target.prepare(folder)
        fuzzed = Fuzzed(name, target, folder, {path.name: path.read_bytes() for path in folder.iterdir()}, seed)
        while outcome.cases < cases:
            _read_in_child(fuzzed, range(outcome.cases, min(outcome.cases + CASES_A_CHILD, cases)), outcome)
    return outcome


def _read_in_child(fuzzed: Fuzzed, numbers: range, outcome: Outcome) -> None:
    """Let a child read these cases; where it dies, the case that it was reading is the finding."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_child, args=(fuzzed, numbers, theirs))
    child.start()
    theirs.close()
    done = 0
    try:
        while True:
            accepted, what = ours.recv()
            if what:
                outcome.findings.append((numbers[done], *fuzzed.case(numbers[done]), what))
            outcome.accepted += accepted
            done += 1
    except EOFError:
        child.join()
    if child.exitcode:
        died = f"the process died: status {child.exitcode} (-{int(signal.SIGALRM)}: over {PATIENCE_S} s)"
        outcome.findings.append((numbers[done], *fuzzed.case(numbers[done]), died))
        done += 1
    outcome.cases += done
    for path in fuzzed.folder.iterdir():
        if path.name not in fuzzed.files:
            outcome.findings.append((numbers[max(done - 1, 0)], path.name, b"", "this file was written"))
            path.unlink()
        else:
            path.write_bytes(fuzzed.files[path.name])


def _child(fuzzed: Fuzzed, numbers: range, results: "Connection[Any, Any]") -> None:
    """Read the cases one by one and send (accepted, what went wrong) of each."""
    warnings.simplefilter("ignore")
    limit_memory()
    noticed: list[str] = []
    sys.addaudithook(lambda event, args: noticed.append(f"{event}{args}") if _is_banned(event, args) else None)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers:
        file, content = fuzzed.case(number)
        (fuzzed.folder / file).write_bytes(content)
        noticed.clear()
        signal.alarm(PATIENCE_S)
        accepted, what = verdict(fuzzed.target, fuzzed.folder / file)
        signal.alarm(0)
        if noticed:
            what = f"did what no reader does: {noticed[0]}"
        if (grown := 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)) > fuzzed.target.memory:
            what, before = f"took {grown / 2**20:,.0f} MiB of memory", before + grown // 1024
        results.send((accepted, what))
        (fuzzed.folder / file).write_bytes(fuzzed.files[file])


def verdict(target: Target, path: Path) -> tuple[bool, str]:
    """Whether a reader gave a valid value, and what went wrong if it neither did that nor raised a UserError."""
    try:
        target.read(path)
    except UserError as error:
        return False, "" if str(error).strip() else "a UserError without a message"
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
