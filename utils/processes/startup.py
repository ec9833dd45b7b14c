"""What a program sets up before anything else."""

import io
import sys


def use_utf8_output() -> None:
    """Write stdout and stderr as UTF-8 in any locale: what a program prints may be read back as a config file.

    What UTF-8 cannot hold, such as a path in another encoding, is escaped instead of ending the program.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
