"""Opening a run folder: a new run gets its config and seed, an unfinished one is taken up, anything else is refused."""

import secrets
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.checkpoint import load_latest, set_aside_damaged
from utils.config.frozen_munch import FrozenMunch
from utils.config.rules import ResumeRules
from utils.config.schema import flatten, nest
from utils.config.yaml_file import read_config_file, to_yaml
from utils.errors import UserError
from utils.files import locked, make_writable, remove_temporaries, write_text
from utils.run_log import CONFIG

_MISSING = "no such key"


@dataclass(frozen=True, slots=True)
class Start:
    """Where a run begins.

    Attributes:
        seed: of every random choice.
        state: the checkpoint to continue from, or None.
        last_is_damaged: a newer checkpoint could not be read.
        is_new: the folder holds no run.
    """

    seed: int
    state: dict[str, Any] | None
    last_is_damaged: bool = False
    is_new: bool = False


def find_start(
    folder: Path, config: FrozenMunch, identity: dict[str, Any], processes: int, rules: ResumeRules
) -> Start:
    """Look into a run folder without changing it.

    Args:
        folder: need not exist.
        config: of the command given now; its seed -1 means the seed of the unfinished run, else a drawn one.
        identity: values that the checkpoint must have (arch, class_names, fingerprint of the data).
        processes: world size.
        rules: what may have changed.

    Raises:
        UserError: the folder holds another run, or no whole checkpoint of this one.
    """
    now = flatten(config.toDict())
    if not (folder / CONFIG).exists():
        _refuse_unknown_checkpoints(folder, rules)
        seed = now[rules.seed]
        return Start(seed if seed >= 0 else secrets.randbits(31), None, is_new=True)
    before = _read_config(folder / CONFIG, rules)
    _compare_configs(folder, before, now, rules)
    state, note = load_latest(folder)
    if note:
        print(f"warning: {note}", file=sys.stderr)
    if state is not None:
        _compare_identities(folder, state, identity | {"seed": before[rules.seed]}, rules)
        if len(state["meters"]) != processes:
            _warn(f"this run had {len(state['meters'])} process(es) and continues with {processes}")
    return Start(before[rules.seed], state, last_is_damaged=bool(note))


def open_run_folder(folder: Path, config: FrozenMunch, start: Start, rules: ResumeRules) -> None:
    """Put the resolved config into a folder that this process has locked, and clear away what an earlier one left.

    That is a damaged checkpoint, which is moved aside, and files that a killed process had only begun to write.

    Raises:
        UserError: another run began in it since find_start looked, or it cannot be written.
    """
    if start.is_new and (folder / CONFIG).exists():
        raise UserError(f"another run has just begun in {folder}.\n  Set another --{rules.folder_flag}.")
    if start.last_is_damaged:
        set_aside_damaged(folder)
    remove_temporaries(folder)
    write_text(folder / CONFIG, to_yaml(nest(flatten(config.toDict()) | {rules.seed: start.seed})))


def lock_run_folder(folder: Path, rules: ResumeRules) -> AbstractContextManager[None]:
    """Keep a second run out of the folder. UserError where another process has it, or it cannot be read."""
    return locked(folder, "the run folder", "training", f"Set another --{rules.folder_flag}.")


def make_run_folder(folder: Path, rules: ResumeRules) -> None:
    """Make the folder and try to write into it. UserError where that fails."""
    make_writable(folder, "the run folder", f"Set --{rules.folder_flag} to a folder where you may write.")


def _read_config(path: Path, rules: ResumeRules) -> dict[str, Any]:
    """Read the config of the run in the folder; keys that it lacks have the value that behaves as before them."""
    settings, problems = read_config_file(path, path.name, rules.schema)
    if not settings:
        reason = problems[0] if problems else "it is empty"
        raise UserError(f"{path} cannot be read: {reason}\n  Set another --{rules.folder_flag}.")
    return {**rules.before, **{key: setting.value for key, setting in settings.items()}}


def _refuse_unknown_checkpoints(folder: Path, rules: ResumeRules) -> None:
    if found := sorted(folder.glob("checkpoint-*.pth")):
        raise UserError(
            f"{folder} holds {found[0].name} but no {CONFIG}, so it cannot be told what run it belongs to.\n"
            f"  Move it away, or set another --{rules.folder_flag}."
        )


def _compare_configs(folder: Path, before: dict[str, Any], now: dict[str, Any], rules: ResumeRules) -> None:
    changed = {key for key in {*before, *now} if before.get(key, _MISSING) != now.get(key, _MISSING)} - rules.free
    if now[rules.seed] < 0:
        changed.discard(rules.seed)
    for key in sorted(changed & rules.warned):
        _warn(f"{key} was {before.get(key)} and is now {now.get(key)}; the last bits of the weights may differ")
    if refused := sorted(changed - rules.warned):
        lines = "\n".join(
            f"    {key}: {before.get(key, _MISSING)} there, {now.get(key, _MISSING)} now" for key in refused
        )
        raise UserError(
            f"{folder} holds a run with another config:\n{lines}\n"
            f"  Set another --{rules.folder_flag} for a new run, or give these keys their old values to continue."
        )


def _compare_identities(folder: Path, state: dict[str, Any], identity: dict[str, Any], rules: ResumeRules) -> None:
    """Compare what the checkpoint and this command both state; checkpoints of earlier versions state less."""
    changed = [key for key, value in identity.items() if key in state and state[key] != value]
    if changed:
        lines = "\n".join(f"    {key}: {_short(state[key])} there, {_short(identity[key])} now" for key in changed)
        raise UserError(
            f"{folder} holds a run on other data, or on another machine:\n{lines}\n"
            f"  Restore what has changed, or set another --{rules.folder_flag}."
        )


def _short(value: Any) -> str:
    """A hash by its first digits, a list of names by their number."""
    if isinstance(value, list):
        return f"{len(value)} names"
    text = str(value)
    return text if len(text) < 40 else f"{text[:8]}..."


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
