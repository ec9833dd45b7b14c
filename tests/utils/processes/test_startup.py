"""What programs set up first."""

import platform
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PROGRAM = """
from pathlib import Path
from utils.processes.startup import keep_freed_memory

{call}
block = bytearray(2**27)
del block
print(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 > 2**27)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="for glibc only")
@pytest.mark.parametrize(("call", "kept"), [("", "False"), ("keep_freed_memory()", "True")])
def test_freed_memory_is_kept_for_the_next_step(call: str, kept: str) -> None:
    command = [sys.executable, "-c", PROGRAM.format(call=call)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == kept
