"""What is in a weights file of any trainer: the weights, named as the network names them, and what it records."""

import re
import reprlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from models.batch_norm import batch_norm_eps
from models.beside import timm_config_beside
from models.build import FORCE_TIMM, create_model, networks_named, tensor_shapes
from models.conversion import with_versions
from models.recorded import (
    is_of_2021,
    is_of_timm,
    recorded_arch,
    recorded_data_config,
    safetensors_metadata,
)
from models.recorded_classes import RecordedClasses, recorded_classes
from models.tensor_dicts import IS_NORMALISER, are_weights, normalisers, weights_inside
from utils.checkpoint import load_checkpoint
from utils.errors import UserError

# The entries of a checkpoint that hold its weights, tried in this order.
WEIGHTS = ("state_dict", "model", "model_state_dict", "net", "network")
AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "ema_model", "model_ema_state_dict")
AVERAGED_IN = ("module", "shadow", "state_dict", "model")  # one level deeper, in some trainers
IS_AVERAGED = re.compile(r"(^|[._])(ema|averaged|swa|shadow)([._]|$)")  # of a prefix
# What trainers and wrappers put before every tensor's name: DataParallel, torch.compile, Lightning, and others.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.")
# Of second classifiers that only training uses, in Inception-v3 and GoogLeNet.
AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The content of a weights file.

    Fields:
        path: of the file.
        state_dicts: name -> parameter name -> tensor; "model", and "ema" if the file has averaged weights too.
        arch: the network, as for models.build.library_of: the recorded one; or, if another was given and only the
            one of this name in the other library has these tensors, that one; None: not recorded.
        classes: their names.
        recorded: what it records of its input: fields of DataConfig.
        is_of_2021: whether what it does not record was as in 2021.
        note: how the file was read, if it is another trainer's; else "".
    """

    path: Path
    state_dicts: dict[str, dict[str, torch.Tensor]]
    arch: str | None
    classes: RecordedClasses
    recorded: dict[str, Any]
    is_of_2021: bool
    note: str


def read_weights_file(path: Path, arch: str | None = None) -> WeightsFile:
    """Read a checkpoint of this project or of another trainer, or bare weights; nothing in the file is executed.

    Args:
        path: of the file.
        arch: the network that the weights are for, as for models.build.library_of; None: the one that the file names.

    Raises:
        UserError: the file cannot be read or has no weights, or what it records has an unknown form.
    """
    content = load_checkpoint(path)
    found, notes = find_weights(content, path)
    entries = content if isinstance(content, dict) and not are_weights(content) else {}
    facts = entries or safetensors_metadata(path)
    classes = recorded_classes(facts, path)
    name = recorded_arch(facts)
    network = fitting_network(name or arch, is_of_timm(entries), next(iter(found.values())))
    if name and network != name:
        reason = "timm's train.py wrote the file" if is_of_timm(entries) else "the tensors are of that one"
        notes.append(f"{name} means {network}: {reason}")
    recorded, unused_note = recorded_data_config(facts, path)
    if is_of_timm(entries) and "bn_eps" in recorded and not _takes_eps(arch or network, recorded["bn_eps"]):
        notes.append(f"not using its batch norm eps {recorded.pop('bn_eps'):g}, which timm ignores for this network")
    beside = timm_config_beside(path)
    own = _names(arch or network or (beside.arch if beside else None))
    found, split_note = _one_network_each(found, own, path, content)
    stripped = {key: own_tensors(weights, own) for key, weights in found.items()}
    notes += [split_note, *(note for _, note in stripped.values()), classes.note, unused_note]
    return WeightsFile(
        path,
        {key: weights for key, (weights, _) in stripped.items()},
        network if name or network != arch else None,
        classes,
        recorded,
        is_of_2021(facts),
        ", ".join(dict.fromkeys(filter(None, notes))),
    )


def fitting_network(name: str | None, is_timms: bool, weights: Mapping[str, torch.Tensor]) -> str | None:
    """Choose the library of a name that torchvision and timm both have: the one whose network has these tensors.

    Args:
        name: of a network; None: none is known.
        is_timms: whether timm's train.py wrote the file, so that a name without library is rather timm's.
        weights: as in the file.
    """
    if name is None:
        return None
    networks = sorted(networks_named(name), key=lambda network: is_timms and not network.startswith(FORCE_TIMM))
    own = {network: _names(network) for network in networks}
    return max(networks, key=lambda network: max(_under_prefixes(weights, own[network]).values(), default=0))


def _takes_eps(arch: str | None, eps: float) -> bool:
    """Return whether timm builds this network with an eps that its train.py is given."""
    try:
        model = create_model(arch, 1, model_args={"bn_eps": eps}) if arch else None
    except UserError:
        return False
    return model is None or eps in batch_norm_eps(model)


def _names(arch: str | None) -> frozenset[str]:
    """Return the names of a network's tensors; none if it is unknown, which is reported where it is built."""
    try:
        return frozenset(tensor_shapes(arch)) if arch else frozenset()
    except UserError:
        return frozenset()


def find_weights(content: Any, path: Path) -> tuple[dict[str, dict[str, torch.Tensor]], list[str]]:
    """Find the weights in a checkpoint, bare or wrapped.

    Returns:
        name -> state_dict: 'model', and 'ema' if there are averaged weights too; and notes: their unusual keys.

    Raises:
        UserError: there are no weights.
    """
    entries = dict(content) if isinstance(content, dict) else {}
    for key in AVERAGED:
        inner = entries[key] if isinstance(entries.get(key), dict) else {}
        entries[key] = next((inner[name] for name in AVERAGED_IN if are_weights(inner.get(name))), entries.get(key))
    entries = {key: value for key, value in entries.items() if value is not None or key not in AVERAGED}
    model = next((key for key in WEIGHTS if are_weights(entries.get(key))), None)
    averaged = next((key for key in AVERAGED if are_weights(entries.get(key))), None)
    if model is None and are_weights(entries):
        return {"model": entries}, []
    found = {name: key for name, key in (("model", model or averaged), ("ema", model and averaged)) if key}
    is_damaged = entries.get(AVERAGED[0]) is not None and averaged != AVERAGED[0]
    unread = [key for key in AVERAGED if entries.get(key) not in (None, {}) and not are_weights(entries[key])]
    if not found or is_damaged:
        keys = ", ".join(map(reprlib.repr, list(entries)[:8]))
        keys_to = next(iter(weights_inside(entries)), ())
        where = "content" + "".join(f"[{key!r}]" for key in keys_to)
        message = (
            f"{path} contains no weights: expected a dict of plain tensors, or one with the key "
            f"{', '.join(map(repr, WEIGHTS))} or, averaged, {', '.join(map(repr, AVERAGED))}; found a "
            f"{type(content).__name__} {keys}"
        )
        if model or not keys_to:
            raise UserError(message)
        raise UserError.remedied(f"{message}\n{_extraction(path, where, True)}")
    others = _other_weights(entries, list(found.values()))
    instead = f", not {' and '.join(map(repr, others))} with other weights" if others else ""
    notes = [f"the key {key!r}" for key in found.values() if key not in ("state_dict", "state_dict_ema") or others]
    notes = [*notes[:-1], notes[-1] + instead] if others else notes
    notes += [f"not using {key!r}, which holds no dict of tensors" for key in unread]
    return {name: entries[key] for name, key in found.items()}, notes


def _other_weights(entries: Mapping[str, Any], used: Sequence[str]) -> list[str]:
    """Return the other dicts that hold about as many tensors as those used, unless they hold the same ones."""

    def is_same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
        return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())

    others = weights_inside({key: value for key, value in entries.items() if key not in used})
    return [
        ".".join(map(str, keys))
        for keys, value in others.items()
        if 2 * len(value) > len(entries[used[0]]) and not any(is_same(value, entries[name]) for name in used)
    ]


def _one_network_each(
    found: Mapping[str, dict[str, torch.Tensor]], own: Collection[str], path: Path, content: Any
) -> tuple[dict[str, dict[str, torch.Tensor]], str]:
    """Separate a network from its averaged copy where one dict has both; also return a note that names the prefixes.

    Raises:
        UserError: a dict holds several networks, and not one of them alone is not averaged.
    """
    weights = found["model"]
    prefixes = _prefixes(weights, own)
    averaged = [prefix for prefix in prefixes if IS_AVERAGED.search(prefix)]
    others = [prefix for prefix in prefixes if prefix not in averaged]
    if len(prefixes) < 2:
        return dict(found), ""
    if len(others) != 1 or len(averaged) != 1 or "ema" in found:
        key = next((key for key, value in content.items() if value is weights), None)
        listed = " and ".join(map(repr, prefixes))
        facts = normalisers(weights, [name for name in weights if not name.startswith(tuple(prefixes))])
        listed_facts = ", ".join(f"{name} {numbers}" for name, numbers in facts.items())
        beside = f"\n  Beside them, and not used: {listed_facts}." if facts else ""
        raise UserError.remedied(
            f"{path} holds {len(prefixes)} networks, with the prefixes {listed}; expected one.{beside}\n"
            + _extraction(path, "content" if key is None else f"content[{key!r}]", key is not None, others[0])
        )
    other = {name: tensor for name, tensor in weights.items() if name.startswith(averaged[0])}
    one = {name: tensor for name, tensor in weights.items() if name not in other}
    return {"model": one, "ema": other}, f"averaged weights with the prefix {averaged[0]!r}"


def _extraction(path: Path, weights: str, keeps_others: bool, prefix: str = "") -> str:
    """Return lines that write one network of a file, given by an expression and a prefix, to a file of its own."""
    new = path.with_name(f"{path.stem}-one.pth")
    return f"""\
  These lines write one of them to a file that can be read; for another, change the key or the prefix:
    from pathlib import Path
    import torch
    from utils.checkpoint import load_checkpoint
    content = load_checkpoint(Path({str(path)!r}))
    prefix, weights = {prefix!r}, {weights}
    one = {{name.removeprefix(prefix): t for name, t in weights.items() if name.startswith(prefix)}}
    torch.save({{{"**content, " if keeps_others else ""}"state_dict": one}}, {str(new)!r})"""


def _under_prefixes(names: Collection[str], own: Collection[str]) -> Counter[str]:
    """Count the network's tensors under each prefix that ends in a dot, or is empty."""
    counts: Counter[str] = Counter()
    for name in names:
        starts = [0, *(match.end() for match in re.finditer(r"\.", name))]
        counts.update(name[:start] for start in starts if name[start:] in own)
    return counts


def _prefixes(names: Collection[str], own: Collection[str]) -> list[str]:
    """Return the prefixes under which most of the network's tensors are."""
    return [prefix for prefix, count in _under_prefixes(names, own).items() if 2 * count > len(own)]


def own_tensors(weights: Mapping[str, torch.Tensor], own: Collection[str]) -> tuple[dict[str, torch.Tensor], str]:
    """Strip prefixes that most names share, and leave out entries that do not belong to the network.

    Args:
        weights: tensors with the names in the file.
        own: the network's names, whose own prefixes stay; empty: it is unknown.

    Returns:
        the tensors, and a note of what was stripped and left out, or "".
    """
    # The number of averaged updates (torch's AveragedModel) is no tensor of the network.
    names = {name: name for name in weights if name.rpartition(".")[2] != "n_averaged"}
    known = sorted(_prefixes(names, own), key=lambda prefix: IS_AVERAGED.search(prefix) is None)
    stripped, notes = "", []
    left_out: list[str] = []
    while prefix := known[0].removeprefix(stripped) if known else _shared_prefix(names, own):
        stripped += prefix
        left_out += [old for old in names if not old.startswith(prefix)]
        names = {old.removeprefix(prefix): name for old, name in names.items() if old.startswith(prefix)}
    if stripped:
        lack = "tensor that lacks" if len(left_out) == 1 else "tensors that lack"
        shown = ", ".join(left_out[:2]) + ", ..." * (len(left_out) > 2)
        others = f" and {len(left_out)} {lack} it ({shown})" if left_out else ""
        notes.append(f"without the prefix {stripped!r}{others}")
    auxiliary = [name for name in names if own and name not in own and name.startswith(AUXILIARY)]
    if auxiliary:
        notes.append(f"without {len(auxiliary)} tensors of auxiliary classifiers")
    extra = [old for name, old in names.items() if own and name not in own and IS_NORMALISER.search(name)]
    facts = normalisers(weights, [*left_out, *extra])
    if facts:
        notes.append("not using " + ", ".join(f"{name} {numbers}" for name, numbers in facts.items()))
    kept = {name: weights[old] for name, old in names.items() if name not in auxiliary and old not in facts}
    return with_versions(kept, weights, stripped), ", ".join(notes)


def _shared_prefix(names: Collection[str], own: Collection[str]) -> str | None:
    """Return the wrapper's prefix that most names share; None: they share none, or are mostly the network's own."""
    if 2 * sum(name in own for name in names) > len(names):
        return None
    return next((p for p in PREFIXES if 2 * sum(name.startswith(p) for name in names) > len(names)), None)
