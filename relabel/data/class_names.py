"""Classes: the order of a network's, class lists, and readable names of ImageNet's folders, which are WordNet ids."""

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from models.build import OURS, library_of
from models.classifier import IMAGENET_CLASSES, Weights
from utils.chance import natural_order
from utils.errors import UserError

WNID = re.compile(r"n\d{8}")
IMAGENET = "imagenet"  # instead of the path of a class list
LIST_IMAGENET = 'python -c "from relabel.data.class_names import *; print(imagenet_class_list())"'
LISTED_NAMES, SUGGESTIONS = 5, 3  # in messages


@dataclass(frozen=True, slots=True)
class ClassOrder:
    """What a network's logits stand for.

    Fields:
        names: of the K' classes of its logits once they are merged; None: unknown.
        groups: for each of the K' classes, the logits that are merged into it; None: nothing is merged.
        source: where the names are from, as text.
        own_names: of the K logits, by which a class list can map them to folders; None: they have none.
    """

    names: list[str] | None
    groups: list[list[int]] | None
    source: str
    own_names: list[str] | None = None

    def class_list(self, order: Sequence[int]) -> str:
        """Return the content of a class list that makes class i of the K' the one that order[i] is now."""
        assert self.names is not None
        groups = self.groups or [[logit] for logit in range(len(self.names))]
        folder_of = {logit: self.names[new] for new, group in zip(order, groups, strict=True) for logit in group}
        lines = [folder_of[logit] for logit in range(len(folder_of))]
        if self.own_names is not None:
            lines = [f"{name}\t{folder}" for name, folder in zip(self.own_names, lines, strict=True)]
        return "".join(f"{line}\n" for line in lines)

    def only(self, names: Sequence[str]) -> "ClassOrder":
        """Return the order of these classes alone; all are among the names."""
        assert self.names is not None
        logits = [self.names.index(name) for name in names]
        groups = [self.groups[logit] if self.groups else [logit] for logit in logits]
        return ClassOrder(list(names), groups, f"the {len(names):,} of the folders, of {self.source}")


def class_order(weights: Weights, class_list: str | None, folders: Sequence[str] | None, flag: str) -> ClassOrder:
    """Find the classes of a network's logits: named by its file, else by a class list, else the folders as text.

    Published weights have ImageNet's classes. So has any network of torchvision or timm with 1000 classes, unless a
    list names all of them, or it meets as many folders with other names.

    Args:
        weights: of the network.
        class_list: "imagenet" or the path of a text file; None: not given. If the classes have names, the list maps
            some or all of them to folders with other names, NAME<TAB>FOLDER; the others keep theirs. Else it names all
            of them in the order of the logits, NAME or NAME<TAB>FOLDER. Classes with the same folder are merged.
        folders: class folders of the data, sorted as text; None: there are none.
        flag: that gives the class list, for messages.

    Raises:
        UserError: the class list has other names than the network, or another number of classes.
    """
    known, source = weights.class_names, weights.classes_from or f"named in {weights.title}"
    if known is None:
        known, source = _imagenet_names(weights), "ImageNet's wnids, sorted"
    if class_list is not None:
        return _listed_order(weights, known, source, class_list, flag)
    as_many = folders is not None and len(folders) == weights.num_classes
    if known is not None and (_is_certain(weights) or not as_many or {*known} == {*(folders or ())}):
        return ClassOrder(known, None, source, known)
    if folders is None or not as_many:
        return ClassOrder(None, None, "not named")
    return ClassOrder(list(folders), None, _sorted_as_text(folders, flag))


def _is_certain(weights: Weights) -> bool:
    """Return whether the classes are known, not only likely from their number."""
    return weights.class_names is not None or weights.is_published


def _imagenet_names(weights: Weights) -> list[str] | None:
    """Return the wnids of the ImageNet subset that a library's network knows, in the order of its logits."""
    is_library = library_of(weights.arch) != OURS
    if not is_library or not (weights.is_published or weights.num_classes == IMAGENET_CLASSES):
        return None
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": weights.num_classes})
    return ImageNetInfo(subset).label_names() if subset else None


def _sorted_as_text(folders: Sequence[str], flag: str) -> str:
    """Describe this order, and that of timm where it is another one."""
    source, natural = "the class folders, sorted as text", natural_order(folders)
    if natural == list(folders):
        return source
    first = next(i for i, (one, other) in enumerate(zip(folders, natural, strict=True)) if one != other)
    as_text, as_timm = (_first(names, max(0, first - 1)) for names in (folders, natural))
    return (
        f"{source}: {as_text}. timm's order is {as_timm}: if these weights have that one, list the folders in it, one "
        f"per line, in a text file, and give {flag} FILE"
    )


def _first(names: Sequence[str], start: int = 0) -> str:
    end = start + LISTED_NAMES
    return "..., " * (start > 0) + ", ".join(names[start:end]) + ", ..." * (end < len(names))


def _listed_order(weights: Weights, known: list[str] | None, source: str, class_list: str, flag: str) -> ClassOrder:
    listed, count = read_class_list(class_list), weights.num_classes
    names, folders = [name for name, _ in listed], [folder for _, folder in listed]
    found = _own_names(known or [], names)
    is_complete, is_reordered = len(listed) == count, None not in found and found != known
    if is_complete and weights.class_names is None and not (weights.is_published and is_reordered):
        own = names if names != folders else None
        return _merged(folders, f"listed in {class_list}", known if weights.is_published else own)
    if known is None:
        raise UserError(
            f"{class_list} lists {len(listed):,} classes; {weights.unnamed}; "
            "expected a line for each of its classes, in order: NAME or NAME<TAB>FOLDER. Correct the list"
        )
    if is_complete and names == folders and found != known:
        raise UserError(
            f"{class_list} lists {_first(names)}; the classes of {weights.title} are {_first(known)} ({source}); "
            f"expected the same. Leave out {flag}; or, if those names are wrong, give the right one of each class in "
            f"its line, NAME<TAB>FOLDER, such as {known[0]}<TAB>{names[0]}"
        )
    if None in found:
        raise UserError(_unknown_name(names[found.index(None)], known, f"{weights.title} ({source})", class_list))
    if twice := [name for name, times in Counter(found).items() if times > 1]:
        raise UserError(f"{class_list}: found the class {twice[0]} twice; expected each class once. Correct the list")
    folder_of = {own: folder for own, folder in zip(found, folders, strict=True) if own != folder}
    to = _first(sorted(set(folder_of.values()))) or "no other folder"
    source += f"; {class_list} maps {len(folder_of):,} of the {count:,} to {to}; the others keep their names"
    return _merged([folder_of.get(name, name) for name in known], source, known)


def _own_names(known: Sequence[str], names: Sequence[str]) -> list[str | None]:
    """Return the network's own name of each listed class, which may be given by its label (see `class_labels`)."""
    own: dict[str, str] = {name: name for name in known}
    if not {*names} <= own.keys():
        labels = [label.casefold() for label in class_labels(known)]
        own = dict(zip(labels, known, strict=True)) | own
    return [own.get(name, own.get(name.casefold())) for name in names]


def _unknown_name(name: str, known: Sequence[str], owner: str, class_list: str) -> str:
    similar = similar_names(name, [*known, *class_labels(known)])
    return (
        f"{class_list}: found {name!r}, which is no class of {owner}"
        + (f"; did you mean {similar}?" if similar else "")
        + f"; expected names such as {known[0]}, and a tab between a NAME and its FOLDER. Correct the list"
    )


def similar_names(name: str, names: Sequence[str]) -> str:
    """Return the names that are most like this one, joined; "" if none is."""
    return " or ".join(difflib.get_close_matches(name, dict.fromkeys(names), n=SUGGESTIONS))


def _merged(folders: list[str], source: str, own_names: list[str] | None) -> ClassOrder:
    groups: dict[str, list[int]] = {}
    for logit, folder in enumerate(folders):
        groups.setdefault(folder, []).append(logit)
    if len(groups) == len(folders):
        return ClassOrder(folders, None, source, own_names)
    source += f"; {len(folders):,} classes become {len(groups):,}: the probabilities of those with one folder add up"
    return ClassOrder(list(groups), list(groups.values()), source, own_names)


def read_class_list(class_list: str) -> list[tuple[str, str]]:
    """Read a class list.

    Args:
        class_list: "imagenet", or the path of a text file with one class per line, NAME or NAME<TAB>FOLDER.

    Returns:
        (name, folder) of each class, in order; without a tab, the folder is the name.

    Raises:
        UserError: the file cannot be read, is empty, or has a class twice or a line of another form.
    """
    if class_list == IMAGENET:
        return [(name, name) for name in class_names_of_imagenet()]
    try:
        lines = Path(class_list).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the class list {class_list} cannot be read ({error}); expected `imagenet`, or a text file with a class "
            "per line, in the order of the class ids: NAME, or NAME<TAB>FOLDER. Correct the path or the file"
        ) from error
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines if line.strip()]
    if wrong := [row for row in rows if len(row) > 2 or not all(row)]:
        found = "<TAB>".join(wrong[0])
        raise UserError(f"{class_list}: found the line {found}; expected NAME, or NAME<TAB>FOLDER. Correct the line")
    times = Counter(row[0] for row in rows)
    if not rows or len(times) < len(rows):
        found = f"the class {times.most_common(1)[0][0]} twice" if rows else "no class"
        raise UserError(f"{class_list}: found {found}; expected each class once. Correct the list")
    return [(row[0], row[-1]) for row in rows]


def class_names_of_imagenet() -> list[str]:
    """Return ImageNet's 1000 WordNet ids, sorted: the position of each is its class id."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo().label_names())


def imagenet_class_list() -> str:
    """Return ImageNet's classes as a class list, WNID<TAB>ENGLISH NAME, to be edited or looked up in."""
    wnids = class_names_of_imagenet()
    return "\n".join(map("\t".join, zip(wnids, class_labels(wnids), strict=True)))


def class_labels(class_names: Sequence[str]) -> list[str]:
    """Return a readable name for each class, no two alike.

    A WordNet id that timm knows (the 1,000 of ImageNet-1k and 20,844 others) becomes its first lemma: n01440764 ->
    tench. If several classes have the same lemma, ignoring case, the id follows in brackets. Other names are kept.

    Args:
        class_names: the class folders' names, all different.

    Returns:
        K texts, in the same order.
    """
    names = _first_lemmas(class_names)
    labels = [names.get(name, name) for name in class_names]
    counts = Counter(label.casefold() for label in labels)
    return [
        f"{label} ({name})" if name in names and counts[label.casefold()] > 1 else label
        for name, label in zip(class_names, labels, strict=True)
    ]


def _first_lemmas(class_names: Sequence[str]) -> dict[str, str]:
    """Return WordNet id -> its first lemma, for the class names that are ids known to timm."""
    ids = [name for name in class_names if WNID.fullmatch(name)]
    if not ids:
        return {}
    from timm.data import ImageNetInfo  # takes seconds to import

    info, lemmas = ImageNetInfo(), {}
    for wnid in ids:
        with suppress(KeyError):  # it looks like an id but is not one
            lemmas[wnid] = info.label_name_to_description(wnid).partition(",")[0]
    return lemmas
