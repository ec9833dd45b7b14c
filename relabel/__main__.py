"""Train and evaluate networks with label maps, and make, check, show, pack and export label maps.

Also draw runs, classify images, compare and export networks, reproduce the paper's comparison on scenes of small
images, and check this machine.
"""

import signal
import sys
from pathlib import Path

from utils.processes.startup import keep_freed_memory, prepare_output, refuse_windows

# True for `python -m relabel` and for the console command, which imports this file.
if __name__ == "__main__" or Path(sys.argv[0]).name == "relabel":
    refuse_windows()
    # Until a command runs, Ctrl-C ends the process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.argv[1:] == ["doctor"]:  # before the other imports: one of them may be what is missing
        from utils.doctor import doctor

        doctor()

import relabel
from relabel.cli.images import pack_images, unpack_images
from relabel.cli.label_maps import annotate, check, export_labels, pack, show, unpack
from relabel.cli.networks import compare, export_model, predict
from relabel.cli.runs import curves
from relabel.cli.scenes import digits, digits_annotator, reproduce, scenes
from utils.config.tool_commands import run_commands
from utils.doctor import doctor

COMMANDS = (
    *(annotate, check, show, pack, unpack, export_labels),
    *(pack_images, unpack_images),
    *(curves, predict, compare, export_model),
    *(reproduce, digits, scenes, digits_annotator),
    doctor,
)


def train(argv: list[str]) -> None:
    """Train a network: python main.py under another name, with the same flags."""
    from relabel.cli.train import main as run_main

    run_main(argv)


def evaluate(argv: list[str]) -> None:
    """Evaluate a checkpoint: as train with --util.test_only True."""
    train([*argv, "--util.test_only", "True"])


def main(argv: list[str]) -> None:
    """Run a command line (without the program's name)."""
    if argv == ["--version"]:
        print(f"relabel {relabel.__version__} from {Path(relabel.__file__).resolve().parents[1]}")
        return
    run_commands(COMMANDS, argv, program="python -m relabel", about=__doc__ or "", unparsed=(train, evaluate))


def console() -> None:
    """Run the command line of this process."""
    prepare_output()
    keep_freed_memory()
    main(sys.argv[1:])


if __name__ == "__main__":
    console()
