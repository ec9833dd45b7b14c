"""Set-up of a program before anything else."""

import ctypes
import errno
import io
import os
import signal
import sys
from contextlib import suppress
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from glibc's malloc.h
_WINDOWS = """\
error: this program does not run on Windows, which lacks the signals, file locks
  and positioned reads that it uses. In the Windows Subsystem for Linux it runs
  as on Linux: `wsl --install`, then install it there."""


def refuse_windows() -> None:
    """Exit with status 2 on Windows; call it before modules are imported that Windows lacks."""
    if sys.platform == "win32":
        print(_WINDOWS, file=sys.stderr, flush=True)
        sys.exit(2)


def prepare_output() -> None:
    """Write stdout and stderr as UTF-8 in any locale, and drop what cannot be written: the work outlives its log.

    What a program prints may be read back as a config file. Text that UTF-8 cannot encode, such as a path in another
    encoding, is escaped instead of ending the program.
    """
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller: the next file to be opened would get its number, and the output
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        else:
            stream.flush()
        output = io.BufferedWriter(_LastingOutput(descriptor, "wb", closefd=False))
        by_line = stream is None or stream.line_buffering or stream.write_through  # the last: python -u
        setattr(sys, name, io.TextIOWrapper(output, "utf-8", "backslashreplace", line_buffering=by_line))


def expect_reader() -> None:
    """Report it, from here on, if the reader of stdout goes away; before, `| head` does so on purpose."""
    _LastingOutput.has_reader = True


class _LastingOutput(io.FileIO):
    """An output stream whose reader may go away and whose disk may fill up; the first loss is reported on stderr."""

    has_reader = False
    _is_reported = False

    def write(self, data: Any, /) -> int:
        """Write bytes, or drop them; return their number."""
        try:
            return super().write(data)
        except OSError as error:
            if self.fileno() == 1 and not self._is_reported and (self.has_reader or error.errno != errno.EPIPE):
                self._is_reported = True
                self._report(error.strerror or "")
            return memoryview(data).nbytes

    def _report(self, reason: str) -> None:
        """Print the warning past sys.stderr, which a progress bar redirects to stdout."""
        with suppress(OSError):
            os.write(2, f"warning: the output cannot be written ({reason}); going on without it\n".encode())


def raise_on_ctrl_c() -> None:
    """Let Ctrl-C raise KeyboardInterrupt if it ends the process at once, as while a program starts."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # not in another program, nor in one of its threads
        signal.signal(signal.SIGINT, signal.default_int_handler)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next step instead of returning it to the kernel; elsewhere do nothing.

    By default every large CPU tensor is mapped anew, and the kernel clears its pages again. On two cores,
    evaluating EfficientNet-Lite0 in batches of 64 took 1.7 times as much CPU time that way, ResNet-50 1.3 times. The
    price is memory: the process stays as large as at its peak, which was itself 2 to 20 % higher.
    """
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "gnu_get_libc_version"):
        libc.mallopt(_M_TRIM_THRESHOLD, -1)
        libc.mallopt(_M_MMAP_MAX, 0)
