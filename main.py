"""Train or evaluate: python main.py --config-file-path FILE [--section.key VALUE ...]; --help shows every key."""

import signal
import sys

if __name__ == "__main__":
    # Until the run installs its own handlers, Ctrl-C ends the process at once and without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import fire

from relabel.config.load import fire_arguments, load_config
from utils.errors import exit_on_user_error
from utils.processes.startup import keep_freed_memory, use_utf8_output
from utils.processes.torchrun import is_first_of_node


@fire.decorators.SetParseFn(str)
def train(config_file_path: str = "", **flags: str) -> None:
    """Load the configuration, then run; torch is imported only after every setting has been checked."""
    config = load_config(config_file_path, flags)

    from relabel.cli.run import run

    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(config)


def main(argv: list[str]) -> None:
    """Run a command line (without the program's name); if it is wrong, list every mistake and exit with status 2."""
    with exit_on_user_error(print_message=is_first_of_node()):
        fire.Fire(train, command=fire_arguments(argv), name="main.py")


if __name__ == "__main__":
    use_utf8_output()
    keep_freed_memory()
    main(sys.argv[1:])
