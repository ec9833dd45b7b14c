"""The command lines of main.py, `relabel train` and `relabel evaluate`: read the configuration, then run it."""

import fire

from relabel.config.load import fire_arguments, load_config
from utils.errors import exit_on_user_error
from utils.processes.startup import raise_on_ctrl_c
from utils.processes.torchrun import is_first_of_node


@fire.decorators.SetParseFn(str)
def _load_and_run(config_file_path: str = "", **flags: str) -> None:
    """Load the configuration, then run; torch is imported only after every setting has been checked."""
    config = load_config(config_file_path, flags)

    from relabel.cli.run import run

    raise_on_ctrl_c()
    run(config)


def main(argv: list[str]) -> None:
    """Run a command line (without the program's name); if it is wrong, list every mistake and exit with status 2."""
    with exit_on_user_error(print_message=is_first_of_node()):
        fire.Fire(_load_and_run, command=fire_arguments(argv), name="main.py")
