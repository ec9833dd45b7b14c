"""Classes: the order of a network's, class lists, and readable names of ImageNet's folders, which are WordNet ids."""

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


@dataclass(frozen=True, slots=True)
class ClassOrder:
    """What a network's logits stand for.

    Fields:
        names: of the K' classes of its logits once they are merged; None: unknown.
        groups: for each of the K' classes, the logits that are merged into it; None: nothing is merged.
        source: where the names are from, as text.
    """

    names: list[str] | None
    groups: list[list[int]] | None
    source: str


def class_order(weights: Weights, class_list: str | None, folders: Sequence[str] | None) -> ClassOrder:
    """Find the classes of a network's logits: named by its file, else by a class list, else the folders as text.

    A network of torchvision or timm with 1000 classes that neither names is taken to be ImageNet's, unless it meets as
    many folders with other names.

    Args:
        weights: of the network.
        class_list: "imagenet" or the path of a text file: one class per line, or NAME<TAB>FOLDER for a class that the
            data has under another name; classes with the same folder are merged. None: not given.
        folders: class folders of the data, sorted as text; None: there are none.

    Raises:
        UserError: the class list has another number of classes, or other names than the file.
    """
    names, source = weights.class_names, f"named in {weights.title}"
    if names is None and class_list is None:
        names, source = _assumed_names(weights, folders)
        return ClassOrder(names, None, source)
    if class_list is None:
        return ClassOrder(names, None, source)
    listed = read_class_list(class_list)
    if names is None:
        names, source = [name for name, _ in listed], f"{class_list}"
    if len(listed) != weights.num_classes or {name for name, _ in listed} != set(names):
        raise UserError(
            f"{class_list} lists {len(listed):,} classes, {weights.title} has {weights.num_classes:,}"
            + ("" if weights.class_names is None else f" and names them: {', '.join(names[:3])}...")
            + "; expected one line per class, NAME or NAME<TAB>FOLDER. Correct the list, or leave it out"
        )
    folder_of = dict(listed)
    return _merged([folder_of[name] for name in names], source)


def _merged(folders: list[str], source: str) -> ClassOrder:
    groups: dict[str, list[int]] = {}
    for logit, folder in enumerate(folders):
        groups.setdefault(folder, []).append(logit)
    merged = list(groups.values()) if len(groups) < len(folders) else None
    return ClassOrder(list(groups), merged, source)


def _assumed_names(weights: Weights, folders: Sequence[str] | None) -> tuple[list[str] | None, str]:
    count, is_library = weights.num_classes, library_of(weights.arch) != OURS
    are_wnids = folders is not None and all(map(WNID.fullmatch, folders))
    if is_library and (weights.is_published or count == IMAGENET_CLASSES):
        subset = _imagenet_subset(count)
        if subset and (weights.is_published or folders is None or len(folders) != count or are_wnids):
            return subset, "ImageNet's wnids, sorted"
    if folders is None or len(folders) != count:
        return None, "unknown"
    source = "the class folders, sorted as text"
    natural = natural_order(folders)
    if natural != list(folders):
        source += (
            f": {_first(folders)}. timm numbers them {_first(natural)}: if these weights do, give a file of this order"
        )
    return list(folders), source


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _imagenet_subset(count: int) -> list[str] | None:
    """Return the wnids of the ImageNet subset with this many classes, in the order that networks are trained with."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": count})
    return ImageNetInfo(subset).label_names() if subset else None


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
        raise UserError(
            f"{class_list}: found the line {' / '.join(wrong[0])}; expected NAME, or NAME<TAB>FOLDER. Correct the line"
        )
    names = [row[0] for row in rows]
    if not names or len(set(names)) < len(names):
        found = "a class twice" if names else "no class"
        raise UserError(f"{class_list}: found {found}; expected each class once. Correct the file")
    return [(row[0], row[-1]) for row in rows]


def class_names_of_imagenet() -> list[str]:
    """Return ImageNet's 1000 WordNet ids, sorted: the position of each is its class id."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo().label_names())


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
