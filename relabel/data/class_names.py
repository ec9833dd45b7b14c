"""ImageNet's classes, and what to call classes for people: its folder names are numbers that nobody knows by heart."""

import re
from collections import Counter
from collections.abc import Sequence

WNID = re.compile(r"n\d{8}")
# Both are "crane" and nothing else; the other repeated names have synonyms that tell them apart.
CRANES = {"n02012849": "crane (bird)", "n03126707": "crane (machine)"}


def class_names_of_imagenet() -> list[str]:
    """ImageNet's 1000 wnids, sorted: the position of one is its class id."""
    from timm.data import ImageNetInfo

    return list(ImageNetInfo().label_names())


def class_labels(class_names: Sequence[str]) -> list[str]:
    """A readable name for each class, no two alike.

    A WordNet id that timm knows (the 1,000 of ImageNet-1k and 20,844 others) becomes its first lemma: n01440764 ->
    tench. Where classes share one, capitals aside, those with a synonym take the synonym; where that does not part
    them, the id follows in brackets. Any other name stays as it is.

    Args:
        class_names: the class folders' names, all different.

    Returns:
        K texts, in the same order.
    """
    lemmas = _lemmas(class_names)
    labels = [lemmas[name][0] if name in lemmas else name for name in class_names]
    ids = [place for place, name in enumerate(class_names) if name in lemmas]
    counts = _counts(labels)
    for place in ids:
        if counts[labels[place].casefold()] > 1:
            synonyms = lemmas[class_names[place]][1:]
            labels[place] = next((word for word in synonyms if word.casefold() not in counts), labels[place])
    counts = _counts(labels)
    for place in ids:
        if counts[labels[place].casefold()] > 1:
            labels[place] += f" ({class_names[place]})"
    return labels


def _lemmas(class_names: Sequence[str]) -> dict[str, list[str]]:
    """WordNet id -> its lemmas, for those of the names that are known ids."""
    ids = [name for name in class_names if WNID.fullmatch(name)]
    if not ids:
        return {}
    from timm.data import ImageNetInfo  # costs seconds; only those who have such folders pay it

    info, known = ImageNetInfo(), {}
    for wnid in ids:
        try:
            known[wnid] = CRANES.get(wnid, info.label_name_to_description(wnid)).split(", ")
        except KeyError:  # looks like an id but is none: the folder's name then
            continue
    return known


def _counts(labels: Sequence[str]) -> Counter[str]:
    """How often each label occurs, capitals aside."""
    return Counter(label.casefold() for label in labels)
