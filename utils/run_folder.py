"""Opening a run folder: a new run gets its config and seed, an unfinished one is taken up, anything else is refused."""

import hashlib
import json
import secrets
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from utils.checkpoint import load_latest, set_aside_damaged
from utils.config import changed_keys, to_plain
from utils.config_file import read_config_file, to_yaml
from utils.config_schema import flatten, keys_below, nest
from utils.errors import UserError
from utils.folders import locked, make_writable, remove_temporaries, write_text
from utils.frozen_munch import FrozenMunch
from utils.run_log import CONFIG

# What may differ when a run continues: speed and reports, not weights. Where the processes run may change the last
# bits of the weights, so that is allowed with a warning.
FREE_ON_RESUME = {
    "data.on_error",  # a run that met a damaged image may go on without it
    "compute.num_workers",
    "compute.distributed.url",
    "util.print_freq",
    "util.val_batch_size",
    "util.checkpoint_minutes",
    "util.tensorboard",
    "util.print_config",
    "util.run_dir",
    "util.test_weight_file",
    *keys_below("eval"),
}
WARNED_ON_RESUME = {
    "compute.gpu",
    "compute.distributed.use",
    "compute.distributed.num_processes_per_node",
    "compute.distributed.backend",
}


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


def find_start(folder: Path, config: FrozenMunch, identity: dict[str, Any], processes: int) -> Start:
    """Look into a run folder without changing it.

    Args:
        folder: need not exist.
        config: of the command given now; its seed -1 means the seed of the unfinished run, else a drawn one.
        identity: values that the checkpoint must have (arch, class_names, fingerprint of the data).
        processes: world size.

    Raises:
        UserError: the folder holds another run, or no whole checkpoint of this one.
    """
    if not (folder / CONFIG).exists():
        _refuse_unknown_checkpoints(folder)
        return Start(config.compute.seed if config.compute.seed >= 0 else secrets.randbits(31), None, is_new=True)
    before = _read_config(folder / CONFIG)
    _compare_configs(folder, before, to_plain(config))
    state, note = load_latest(folder)
    if note:
        print(f"warning: {note}", file=sys.stderr)
    if state is not None:
        _compare_identities(folder, state, identity | {"seed": _value(before, "compute.seed")})
        if len(state["meters"]) != processes:
            _warn(f"this run had {len(state['meters'])} process(es) and continues with {processes}")
    return Start(_value(before, "compute.seed"), state, last_is_damaged=bool(note))


def settings_fingerprint(config: FrozenMunch) -> str:
    """sha256 of all that may not differ when a run continues, the seed apart: a checkpoint says what run it is of."""
    apart = FREE_ON_RESUME | WARNED_ON_RESUME | {"compute.seed"}
    fixed = {key: value for key, value in flatten(to_plain(config)).items() if key not in apart}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()


def open_run_folder(folder: Path, config: FrozenMunch, start: Start) -> None:
    """Put the resolved config into a folder that this process has locked, and clear away what an earlier one left.

    That is a damaged checkpoint, which is moved aside, and files that a killed process had only begun to write.

    Raises:
        UserError: another run began in it since find_start looked, or it cannot be written.
    """
    if start.is_new and (folder / CONFIG).exists():
        raise UserError(f"another run has just begun in {folder}.\n  Set another --util.run_dir.")
    if start.last_is_damaged:
        set_aside_damaged(folder)
    remove_temporaries(folder)
    resolved = to_plain(config)
    resolved["compute"]["seed"] = start.seed
    write_text(folder / CONFIG, to_yaml(resolved))


def lock_run_folder(folder: Path) -> AbstractContextManager[None]:
    """Keep a second run out of the folder. UserError where another process has it, or it cannot be read."""
    return locked(folder, "the run folder", "training", "Set another --util.run_dir.")


def make_run_folder(folder: Path) -> None:
    """Make the folder and try to write into it. UserError where that fails."""
    make_writable(folder, "the run folder", "Set --util.run_dir to a folder where you may write.")


def _read_config(path: Path) -> dict[str, Any]:
    """The config of the run in the folder; a key that this version no longer has shows as a difference."""
    settings, problems = read_config_file(path, path.name)
    if not settings:
        raise UserError(
            f"{path} cannot be read: {problems[0] if problems else 'it is empty'}\n  Set another --util.run_dir."
        )
    return nest({key: setting.value for key, setting in settings.items()})


def _refuse_unknown_checkpoints(folder: Path) -> None:
    if found := sorted(folder.glob("checkpoint-*.pth")):
        raise UserError(
            f"{folder} holds {found[0].name} but no {CONFIG}, so it cannot be told what run it belongs to.\n"
            f"  Move it away, or set another --util.run_dir."
        )


def _compare_configs(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    changed = set(changed_keys(before, now)) - FREE_ON_RESUME
    if now["compute"]["seed"] < 0:
        changed.discard("compute.seed")
    for key in sorted(changed & WARNED_ON_RESUME):
        _warn(f"{key} was {_value(before, key)} and is now {_value(now, key)}; the last bits of the weights may differ")
    if refused := sorted(changed - WARNED_ON_RESUME):
        lines = "\n".join(f"    {key}: {_value(before, key)} there, {_value(now, key)} now" for key in refused)
        raise UserError(
            f"{folder} holds a run with another config:\n{lines}\n"
            f"  Set another --util.run_dir for a new run, or give these keys their old values to continue."
        )


def _compare_identities(folder: Path, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Checkpoints of earlier versions lack some of the values; these are not compared."""
    changed = [key for key, value in identity.items() if key in state and state[key] != value]
    if changed:
        lines = "\n".join(f"    {key}: {_short(state[key])} there, {_short(identity[key])} now" for key in changed)
        raise UserError(
            f"{folder} holds a run on other data, or on another machine:\n{lines}\n"
            f"  Restore the data, the label maps, the decoder and the device it ran on, or set another --util.run_dir."
        )


def _short(value: Any) -> str:
    """A hash by its first digits, a list of names by their number."""
    if isinstance(value, list):
        return f"{len(value)} names"
    text = str(value)
    return text if len(text) < 40 else f"{text[:8]}..."


def _value(tree: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part, {})
    return "no such key" if tree == {} else tree


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
