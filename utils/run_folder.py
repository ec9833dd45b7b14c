"""Open a run folder: record config and seed of a new run, continue an unfinished run, refuse any other."""

import secrets
import shlex
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from utils.checkpoint import DAMAGED, LAST, PREVIOUS, load_checkpoint, load_latest
from utils.config.cross_key_rules import ResumeRules
from utils.config.dotted_keys import flatten, nest
from utils.config.frozen_munch import FrozenMunch
from utils.config.yaml_file import read_config_file, to_yaml
from utils.errors import UserError
from utils.files import remove_temporaries, write_text
from utils.processes.distributed import from_main, gather_objects
from utils.progress import print_lines
from utils.run_log import CONFIG

_MISSING = "no such key"


@dataclass(frozen=True, slots=True)
class Start:
    """The state from which a run starts.

    Attributes:
        seed: of every random choice.
        state: content of the checkpoint to continue from; None: the run starts at step 0.
        checkpoint: its path.
        is_new: the folder has no run yet.
        grown: key -> its value before, for the keys that have become larger.
        kept: key -> its value, for those that the run keeps although the default is new.
    """

    seed: int
    state: dict[str, Any] | None = None
    checkpoint: Path | None = None
    is_new: bool = False
    grown: Mapping[str, Any] = field(default_factory=dict)
    kept: Mapping[str, Any] = field(default_factory=dict)


def find_start(
    folder: Path, config: FrozenMunch, identity: dict[str, Any], processes: int, rules: ResumeRules
) -> Start:
    """Find where a run starts, from its run folder, without changing the folder.

    Args:
        folder: need not exist.
        config: of this command; seed -1 means the seed of the unfinished run, or a random one.
        identity: values that the checkpoint must match (arch, class_names, fingerprint of the data).
        processes: world size.
        rules: what may have changed.

    Raises:
        UserError: the folder has another run, or no intact checkpoint of this one.
    """
    now = flatten(config.toDict())
    if not (folder / CONFIG).exists():
        if found := sorted(folder.glob("checkpoint-*.pth")):
            raise UserError(
                f"{folder} contains {found[0].name} but no {CONFIG}; expected both or none. Move the checkpoint away."
            )
        seed = now[rules.seed]
        return Start(seed if seed >= 0 else secrets.randbits(31), is_new=True)
    before = _read_config(folder / CONFIG, rules)
    kept = {key: old for key, (old, new) in rules.renewed.items() if (before[key], now[key]) == (old, new)}
    now |= kept
    state, checkpoint, note = load_latest(folder)
    moved = _moved(before, now, state, identity, rules)
    _compare_configs(folder, before, now, rules, moved)
    if note:
        _warn(note)
    if state is not None:
        unread = rules.read_once - {rules.moved[key] for key in moved}
        earlier = rules.earlier_fingerprints(config, before)
        compared = identity | earlier | {"seed": before[rules.seed]}
        _compare_identities(folder, state, {name: value for name, value in compared.items() if name not in unread})
        for key in sorted(moved):
            print(f"{key} was {before[key]} and is now {now[key]}; the content is the same", flush=True)
        if len(state["meters"]) != processes:
            _warn(f"this run had {len(state['meters'])} process(es) and continues with {processes}")
    grown = {key: before[key] for key in rules.growing if now[key] > before[key]}
    return Start(before[rules.seed], state, checkpoint, grown=grown, kept=kept if state is not None else {})


def share_start(find: Callable[[], Start]) -> Start:
    """Return the main process's start on every process.

    Each process reads the checkpoint itself; it is sent only if some process does not see the same file.

    Args:
        find: calls find_start; called only on the main process.

    Raises:
        UserError: as find_start; the same on every process.
    """
    found: list[Start] = []

    def without_content() -> tuple[Start, object]:
        found.append(find())
        return replace(found[0], state=None), _identifier(found[0].state)

    start, identifier = from_main(without_content)
    if start.checkpoint is None:
        return start
    state = found[0].state if found else _read(start.checkpoint)
    if not all(gather_objects(_identifier(state) == identifier)):
        state = from_main(lambda: state)
    return replace(start, state=state)


def _read(path: Path) -> dict[str, Any] | None:
    """Read a checkpoint; None if this process cannot."""
    try:
        content: dict[str, Any] = load_checkpoint(path)
    except UserError:
        return None
    return content


def _identifier(state: Any) -> object:
    """Return what identifies a checkpoint: its step, and the seconds that the run had taken."""
    return (state.get("step"), state.get("elapsed_s")) if isinstance(state, dict) else None


def open_run_folder(folder: Path, config: FrozenMunch, start: Start, rules: ResumeRules) -> None:
    """Write the resolved config into a folder that this process has locked, and clean up after an earlier process.

    A damaged last checkpoint is renamed; temporary files of killed processes are removed.

    Raises:
        UserError: another run has started in it since find_start, or it cannot be written.
    """
    if start.is_new and (folder / CONFIG).exists():
        raise UserError(f"another run has just started in {folder}.")
    if start.checkpoint == folder / PREVIOUS and (folder / LAST).exists():
        (folder / LAST).replace(folder / DAMAGED)  # otherwise it would replace the intact previous one
    remove_temporaries(folder)
    write_text(folder / CONFIG, to_yaml(nest({**flatten(config.toDict()), **start.kept, rules.seed: start.seed})))


def _read_config(path: Path, rules: ResumeRules) -> dict[str, Any]:
    """Read the config of the run in the folder; a key that it lacks gets the value of runs before the key existed."""
    settings, problems = read_config_file(path, path.name, rules.schema)
    if not settings:
        reason = problems[0] if problems else "it is empty"
        raise UserError(f"{path} cannot be read: {reason}")
    return {**rules.before, **{key: setting.value for key, setting in settings.items()}}


def _moved(
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    state: Mapping[str, Any] | None,
    identity: Mapping[str, Any],
    rules: ResumeRules,
) -> set[str]:
    """Return the paths that differ and whose content can be compared; or all, if nothing has been trained yet."""
    return {
        key
        for key, name in rules.moved.items()
        if before[key] != now[key] and (state is None or state.get(name) or name not in identity)
    }


def _compare_configs(
    folder: Path, before: dict[str, Any], now: dict[str, Any], rules: ResumeRules, moved: Collection[str]
) -> None:
    """Compare the settings, except paths that have moved and numbers that have grown; warn, or raise UserError."""
    changed = {key for key in {*before, *now} if before.get(key, _MISSING) != now.get(key, _MISSING)} - rules.free
    changed -= {*moved, *(key for key in rules.growing if now[key] > before[key])}
    if now[rules.seed] < 0:
        changed.discard(rules.seed)
    for key in sorted(changed & rules.warned):
        _warn(f"{key} was {before.get(key)} and is now {now.get(key)}; the last bits of the weights may differ")
    if refused := changed - rules.warned:
        lowered = "".join(f"\n  {key} can be raised, not lowered." for key in sorted(refused & rules.growing))
        old = " ".join(_flag(key, before[key]) for key in sorted(refused) if key in before)
        raise UserError(
            f"{folder} contains a run with another config:{_differences(refused, before, now)}{lowered}\n"
            f"  To continue this run, give these keys their old values:\n    {old}"
        )


def _flag(key: str, value: Any) -> str:
    """Format a setting as it is typed."""
    parts = [f"{part:g}" for part in value] if isinstance(value, list | tuple) else [str(value)]
    return f"--{key} {'null' if value is None else shlex.quote(','.join(parts))}"


def _compare_identities(folder: Path, state: dict[str, Any], identity: dict[str, Any]) -> None:
    """Compare what both the checkpoint and this command record; checkpoints of earlier versions record less."""
    if changed := [key for key, value in identity.items() if key in state and state[key] != value]:
        raise UserError(
            f"{folder} contains a run of another network or other data, or a checkpoint of another run:"
            f"{_differences(changed, state, identity)}\n"
            "  To continue this run, restore the data, the labels or the checkpoint."
        )


def _differences(keys: Collection[str], there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Format one line per key, with the first digits of a hash and the length of a list."""

    def short(key: str, value: Any) -> str:
        text = f"{len(value)} names" if isinstance(value, list) else str(value)
        return f"{text[:8]}..." if key.endswith("sha256") else text

    return "".join(
        f"\n    {key}: {short(key, there.get(key, _MISSING))} there, {short(key, here.get(key, _MISSING))} now"
        for key in sorted(keys)
    )


def _warn(text: str) -> None:
    print_lines(f"warning: {text}", sys.stderr)
