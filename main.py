"""Train or evaluate: python main.py --config-file-path FILE [--section.key VALUE ...]; --help shows every key."""

import signal
import sys

if __name__ == "__main__":
    # Until the run installs its own handlers, Ctrl-C ends the process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from collections.abc import Sequence

import fire

from utils.command_line import HELP_FLAGS, parse_command_line
from utils.config import BASE_FILE, load_config, resolve
from utils.config_problems import first_of_node, report, speak_utf8
from utils.config_schema import FILE_FLAG
from utils.errors import UserError, exit_on_user_error

USAGE = """\
usage: python main.py --config-file-path FILE [--section.key VALUE ...]

Trains and evaluates, or with --util.test_only True only evaluates. FILE is a recipe such as
configs/relabel_train_resnet50.yaml; flags come last and win. Hyphens and underscores are the same,
so are `--section.key VALUE` and `--section.key=VALUE`. --util.print_config True shows what a command
line resolves to. The label-map tools: python -m relabel --help

Every key with its default:
"""


@fire.decorators.SetParseFn(str)
def train(config_file_path: str = "", **flags: str) -> None:
    """Load the configuration, then run; torch is imported only when every setting is known to be good."""
    config = load_config(config_file_path, flags)

    from relabel.runs import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(config)


def fire_arguments(argv: Sequence[str]) -> list[str]:
    """Check a command line and hand it on in the one form that fire cannot misread.

    Args:
        argv: the words after the program's name.

    Raises:
        UserError: stray words, flags without value or given twice; with them all that else can be found wrong.
        SystemExit: status 0, after `--help` or `-h` was answered with the usage and base.yaml itself.
    """
    if any(word in HELP_FLAGS for word in argv):
        print(f"{USAGE}\n{BASE_FILE.read_text(encoding='utf-8')}", end="")
        sys.exit(0)
    line = parse_command_line(argv)
    if line.texts.get(FILE_FLAG) == "":
        line.refuse("--config-file-path", "is empty; give the path of a config file, or leave the flag out", FILE_FLAG)
    if line.problems:
        flags = {key: text for key, text in line.texts.items() if key != FILE_FLAG}
        more = resolve(line.texts.get(FILE_FLAG, ""), flags, line.spoiled).problems
        raise UserError(report([*line.problems, *more]))
    return line.words


def main(argv: list[str]) -> None:
    """Run a command line (without the program's name); exit status 2 with every mistake listed when it is wrong."""
    with exit_on_user_error(speaks=first_of_node()):
        fire.Fire(train, command=fire_arguments(argv), name="main.py")


if __name__ == "__main__":
    speak_utf8()
    main(sys.argv[1:])
