"""Readable names of classes: ImageNet's folders are named by WordNet id."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

WNID = re.compile(r"n\d{8}")


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
