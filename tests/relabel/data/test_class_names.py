"""Readable names of classes."""

from timm.data import ImageNetInfo

from relabel.data.class_names import class_labels


def test_wordnet_ids_become_names_and_other_folders_keep_theirs() -> None:
    assert class_labels(["digit_3", "n01440764", "n02098105", "n0144076", "n99999999"]) == [
        "digit_3", "tench", "soft-coated wheaten terrier", "n0144076", "n99999999",
    ]  # fmt: skip


def test_two_kinds_of_one_name_are_told_apart() -> None:
    assert class_labels(["n02012849", "n03126707"]) == ["crane (bird)", "crane (machine)"]
    assert class_labels(["n02113186", "n02963159"]) == ["Cardigan Welsh corgi", "cardigan"]
    assert class_labels(["n03710637", "n03710721"]) == ["maillot", "tank suit"]
    assert class_labels(["n02113186", "n01440764"]) == ["Cardigan", "tench"]  # no need without the other


def test_a_name_without_a_synonym_is_told_apart_by_its_id() -> None:
    assert class_labels(["n00443803", "flip"]) == ["flip (n00443803)", "flip"]  # the folder's own name is not touched


def test_no_two_classes_of_imagenet_share_a_name() -> None:
    for subset in ("imagenet-1k", "imagenet-22k"):
        labels = class_labels(ImageNetInfo(subset).label_names())
        assert len({label.casefold() for label in labels}) == len(labels)
        assert max(map(len, labels)) < 60
