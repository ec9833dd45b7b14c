"""Readable names of classes: ImageNet's folders are named by WordNet id."""

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

WNID = re.compile(r"n\d{8}")
# Both are "crane" and nothing else; all other classes of one name have synonyms that differ.
CRANES = {"n02012849": "crane (bird)", "n03126707": "crane (machine)"}


def class_names_of_imagenet() -> list[str]:
    """Return ImageNet's 1000 WordNet ids, sorted: the index of one is its class id."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo().label_names())


def class_labels(class_names: Sequence[str]) -> list[str]:
    """Return a readable name for each class, no two alike.

    A WordNet id that timm knows (the 1,000 of ImageNet-1k and 20,844 others) becomes its first lemma: n01440764 ->
    tench. Classes that share it, ignoring case, become a synonym, or the lemma with the id in brackets. Any other name
    is kept.

    Args:
        class_names: the class folders' names, all different.

    Returns:
        K texts, in the same order.
    """
    lemmas = _lemmas(class_names)
    labels = [lemmas[name][0] if name in lemmas else name for name in class_names]

    def taken() -> Counter[str]:
        return Counter(label.casefold() for label in labels)

    counts = taken()
    shared = [i for i, name in enumerate(class_names) if name in lemmas and counts[labels[i].casefold()] > 1]
    for i in shared:
        labels[i] = next((word for word in lemmas[class_names[i]] if word.casefold() not in counts), labels[i])
    counts = taken()
    for i in shared:
        if counts[labels[i].casefold()] > 1:
            labels[i] += f" ({class_names[i]})"
    return labels


def _lemmas(class_names: Sequence[str]) -> dict[str, list[str]]:
    """Return WordNet id -> its lemmas, for the names that are ids known to timm."""
    ids = [name for name in class_names if WNID.fullmatch(name)]
    if not ids:
        return {}
    from timm.data import ImageNetInfo  # takes seconds to import

    info, lemmas = ImageNetInfo(), {}
    for wnid in ids:
        with suppress(KeyError):  # it looks like an id but is none
            lemmas[wnid] = CRANES.get(wnid, info.label_name_to_description(wnid)).split(", ")
    return lemmas
