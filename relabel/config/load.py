"""Read the command line of main.py into a checked, frozen configuration: base.yaml <- config file <- dotted flags."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from relabel.config.rules import DISABLED, DISK_RULES, RULES
from relabel.config.schema import FILE_FLAG, SCHEMA
from utils.config.command_line import HELP_FLAGS, CommandLine
from utils.config.cross_key_rules import broken_rules, without_effect
from utils.config.frozen_munch import FrozenMunch
from utils.config.merge import Merged, annotated, merge
from utils.config.problems import COMMAND_LINE, Problem, Setting, report
from utils.config.yaml_file import read_config_file
from utils.errors import UserError
from utils.processes.torchrun import is_first_of_node, torchrun_problems
from utils.progress import print_lines

BASE_FILE = Path(__file__).resolve().parents[2] / "configs" / "base.yaml"
_HELP = "Every key with its default and meaning: python main.py --help"
_USAGE = """\
usage: python main.py --config-file-path FILE [--section.key VALUE ...]

Trains and evaluates, or with --util.test_only True only evaluates. FILE is a
recipe such as configs/relabel_train_resnet50.yaml; flags come last and win.
`relabel train` is the same command, `relabel evaluate` adds --util.test_only.
Hyphens and underscores are the same, and so are `--section.key VALUE` and
`--section.key=VALUE`. --util.print_config True shows what a command line
resolves to. The label-map tools: python -m relabel --help

Every key with its default:
"""


def fire_arguments(argv: Sequence[str]) -> list[str]:
    """Check a command line and return it in the one form that fire cannot misread: `--key=text`.

    fire would call the function first and complain afterwards, keep the last of two equal flags, and set a flag without
    a value to True.

    Args:
        argv: the arguments after the program's name.

    Raises:
        UserError: stray words, or flags without a value or given twice; the message lists every other mistake too.
        SystemExit: status 0, after printing the usage and base.yaml itself for `--help` or `-h`.
    """
    if any(word in HELP_FLAGS for word in argv):
        print(f"{_USAGE}\n{BASE_FILE.read_text(encoding='utf-8')}", end="")
        sys.exit(0)
    line = CommandLine(SCHEMA.flags, file_flag=FILE_FLAG).read(argv)
    if line.texts.get(FILE_FLAG) == "":
        line.refuse("--config-file-path", "is empty; give the path of a config file, or leave the flag out", FILE_FLAG)
    if line.problems:
        flags = {key: text for key, text in line.texts.items() if key != FILE_FLAG}
        more = _resolve(line.texts.get(FILE_FLAG, ""), flags, line.malformed).problems
        raise UserError(report([*line.problems, *more], _HELP))
    return [f"--{key}={text}" for key, text in line.texts.items()]


def load_config(config_file_path: str, flags: dict[str, str]) -> FrozenMunch:
    """Merge base.yaml, a config file and command-line flags into the frozen tree that a run is built from.

    Settings without effect are reported on stderr. With `util.print_config` the resolved tree is printed to stdout.

    Args:
        config_file_path: YAML file with the keys that differ from base.yaml; '' for none.
        flags: dotted key, as in base.yaml -> raw text as typed.

    Raises:
        UserError: lists every mistake in the file and the flags, and every folder that is missing.
        SystemExit: status 0, after printing, when `util.print_config` is true.
    """
    merged = _resolve(config_file_path, flags)
    config = merged.tree(_HELP)
    if is_first_of_node() and (found := _config_file(config_file_path)) != config_file_path:
        print(f"config file: {found}", file=sys.stderr)
    if is_first_of_node() and not config.util.test_only:
        for warning in without_effect(DISABLED, merged.settings, merged.defaults):
            print_lines(f"warning: {warning}", sys.stderr)
    if config.util.print_config:
        if is_first_of_node():
            print("\n".join(annotated(config, merged.settings)))
        sys.exit(0)
    return config


def read_config(config_file_path: str, flags: dict[str, str]) -> FrozenMunch:
    """Resolve the configuration of a run without starting it: as `load_config`, without warnings or checks of folders.

    Raises:
        UserError: lists every mistake in the file and the flags.
    """
    return _resolve(config_file_path, flags, needs_folders=False).tree(_HELP)


def _config_file(path: str) -> str:
    """Return the config file to read: the path as given or, if nothing is there, the same path in the checkout."""
    with suppress(OSError, ValueError):  # reported when it is read
        in_checkout = BASE_FILE.parents[1] / path
        if not Path(path).exists() and in_checkout.is_file():
            return str(in_checkout)
    return path


def _is_base(config_file: str) -> bool:
    try:
        return Path(config_file).samefile(BASE_FILE)
    except (OSError, ValueError):  # reported when it is read
        return False


def _resolve(
    config_file: str, flags: dict[str, str], malformed: Iterable[str] = (), needs_folders: bool = True
) -> Merged:
    """Merge and check the rules, except those on `malformed` keys, which were already reported."""
    config_file = _config_file(config_file)
    if _is_base(config_file):
        config_file = ""  # its values are the defaults: nobody gave them
    merged = merge(SCHEMA, BASE_FILE, config_file, flags)
    settings, problems = merged.settings, merged.problems
    bad_keys = {key for problem in problems for key in problem.keys}.union(malformed)
    if FILE_FLAG in bad_keys:
        bad_keys.update(SCHEMA.types)
    if "util.run_dir" in settings and settings["util.run_dir"].value == "":
        path = Path(config_file or BASE_FILE)
        settings["util.run_dir"] = Setting(str(Path("runs", path.stem)), "default", f"name of {path.name}")
    is_test = "util.test_only" not in bad_keys and settings["util.test_only"].value
    has_start = "model.weights" not in bad_keys and settings["model.weights"].value != ""
    if is_test and settings["model.arch"].where == "default":
        settings["model.arch"] = Setting(None, "default", "the checkpoint's")
    if (is_test or has_start) and settings["data.image_size"].where == "default":
        settings["data.image_size"] = Setting(None, "default", "that of the weights")
    problems += broken_rules(RULES, settings, bad_keys)
    # Printing starts nothing, so it needs no folders and no other processes.
    if needs_folders and "util.print_config" not in bad_keys and not settings["util.print_config"].value:
        problems += [*broken_rules(DISK_RULES, settings, bad_keys), *torchrun_problems()]
        if not is_test and not bad_keys & {"optim.epochs", "util.run_dir"}:
            problems += _not_lengthened(settings)
    return merged


def _not_lengthened(settings: Mapping[str, Setting]) -> Iterator[Problem]:
    """Yield a problem if the run in the folder has fewer epochs and nobody typed more: the recipe may be the cause."""
    epochs, file = settings["optim.epochs"], Path(str(settings["util.run_dir"].value), "config.yaml")
    with suppress(OSError, ValueError):  # reported when the run begins
        if epochs.where == COMMAND_LINE or not file.is_file():
            return
        of_run = read_config_file(file, file.name, SCHEMA)[0].get("optim.epochs", epochs).value
        if isinstance(of_run, int) and isinstance(epochs.value, int) and of_run < epochs.value:
            text = (
                f"the run in {file.parent} has {of_run}; to continue it as it was, add --optim.epochs {of_run}; to "
                f"train it longer, add --optim.epochs {epochs.value}"
            )
            yield Problem(f"optim.epochs = {epochs.value}", epochs.where, text, keys=("optim.epochs",))
