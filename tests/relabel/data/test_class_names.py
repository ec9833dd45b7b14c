"""Readable names of classes."""

from timm.data import ImageNetInfo

from relabel.data.class_names import class_labels


def test_wordnet_ids_become_names_and_other_folders_keep_theirs() -> None:
    assert class_labels(["digit_3", "n01440764", "n02098105", "n0144076", "n99999999"]) == [
        "digit_3", "tench", "soft-coated wheaten terrier", "n0144076", "n99999999",
    ]  # fmt: skip


def test_no_two_classes_of_imagenet_share_a_name() -> None:
    assert class_labels(["n02012849", "n03126707"]) == ["crane (n02012849)", "crane (n03126707)"]
    assert class_labels(["n00443803", "flip"]) == ["flip (n00443803)", "flip"]  # the folder's own name is not touched
    for subset in ("imagenet-1k", "imagenet-22k"):
        labels = class_labels(ImageNetInfo(subset).label_names())
        assert len({label.casefold() for label in labels}) == len(labels)
