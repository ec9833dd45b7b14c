"""Tools for label maps and networks.

Make, check, show, pack and export label maps; compare and export networks; reproduce the paper's comparison on scenes
of small images; check this machine. To train with label maps: python main.py --help
"""

import signal
import sys

from utils.doctor import doctor

if __name__ == "__main__":
    # Until a command runs, Ctrl-C ends the process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:] == ["doctor"]:  # before the other imports: one of them may be what is missing
        doctor()

from relabel.cli.label_maps import annotate, check, export_labels, pack, show, unpack
from relabel.cli.networks import compare, export_model
from relabel.cli.scenes import digits, digits_annotator, reproduce, scenes
from utils.config.tool_commands import run_commands
from utils.processes.startup import keep_freed_memory, use_utf8_output

COMMANDS = (
    *(annotate, check, show, pack, unpack, export_labels),
    *(compare, export_model),
    *(reproduce, digits, scenes, digits_annotator),
    doctor,
)


def main(argv: list[str]) -> None:
    """Run a command line (without the program's name)."""
    run_commands(COMMANDS, argv, program="python -m relabel", about=__doc__ or "")


if __name__ == "__main__":
    use_utf8_output()
    keep_freed_memory()
    main(sys.argv[1:])
