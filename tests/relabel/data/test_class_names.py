"""The order of a network's classes, class lists, and readable names of classes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from timm.data import ImageNetInfo

from models.classifier import Weights
from relabel.data.class_names import LIST_IMAGENET, ClassOrder, class_labels, class_order
from tests.miniatures import wnids
from utils.errors import UserError

TABBY, TIGER_CAT = "n02123045", "n02123159"


def network(count: int, names: list[str] | None = None, arch: str = "resnet18", published: bool = False) -> Weights:
    return Weights("w.pth", arch, {}, count, names, (), {}, published)


def order(weights: Weights, lines: Sequence[str] = (), folders: list[str] | None = None) -> ClassOrder:
    """The order of the network's classes with a class list of these lines, in the current folder."""
    Path("list.txt").write_text("".join(f"{line}\n" for line in lines))
    return class_order(weights, "list.txt" if lines else None, folders, "--classes")


@pytest.fixture(autouse=True)
def in_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names_in_the_file_come_before_a_list_and_that_before_the_folders() -> None:
    folders = ["ant", "bee", "cow"]
    named = order(network(3, ["cow", "ant", "bee"]), folders=folders)
    assert (named.names, named.source) == (["cow", "ant", "bee"], "named in w.pth")
    listed = order(network(3), ["bee", "cow", "ant"], folders)
    assert (listed.names, listed.source) == (["bee", "cow", "ant"], "listed in list.txt")
    sorted_as_text = order(network(3), folders=folders)
    assert (sorted_as_text.names, sorted_as_text.source) == (folders, "the class folders, sorted as text")
    assert order(network(3), folders=["ant"]).names is None


def test_folders_with_numbers_that_timm_sorts_otherwise_are_reported() -> None:
    folders = sorted(map(str, range(1, 13)))
    source = order(network(12), folders=folders).source
    assert "sorted as text: 1, 10, 11, 12, 2, .... timm's order is 1, 2, 3, 4, 5, ...: " in source
    assert source.endswith("list the folders in it, one per line, in a text file, and give --classes FILE")
    assert order(network(12), [str(n) for n in range(1, 13)], folders).names == [str(n) for n in range(1, 13)]


def test_networks_of_imagenets_classes() -> None:
    others = [f"class{n:03d}" for n in range(1000)]
    for weights, folders, names in (
        (network(1000), ["dog"], wnids()),
        (network(1000), wnids(), wnids()),
        (network(1000), others, others),
        (network(1000, published=True), others, wnids()),
        (network(1000, arch="digit_net"), ["dog"], None),
    ):
        assert order(weights, folders=folders).names == names
    assert order(network(1000), others).names == others
    assert order(network(1000, published=True), others).names == others
    assert class_order(network(1000, arch="digit_net"), "imagenet", None, "--classes").names == wnids()


@pytest.mark.parametrize("published", [False, True])
def test_a_list_maps_some_of_imagenets_classes_to_folders(published: bool) -> None:
    w = wnids()
    found = order(network(1000, published=published), [f"{TABBY}\tcat", "Tiger Cat\tcat", "tench"], ["cat"])
    assert found.names is not None and found.groups is not None and len(found.names) == len(found.groups) == 999
    cats = found.groups[found.names.index("cat")]
    assert cats == [w.index(TABBY), w.index(TIGER_CAT)]
    assert found.names == ["tench", *w[1 : cats[0]], "cat", *w[cats[1] + 1 :]]
    assert found.source == (
        "ImageNet's wnids, sorted; list.txt maps 3 of the 1,000 to cat, tench; the others keep their names; "
        "1,000 classes become 999: the probabilities of those with one folder add up"
    )


def test_the_printed_list_of_imagenets_names_is_a_class_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(LIST_IMAGENET) <= 80
    exec(LIST_IMAGENET.split('"')[1], {})  # noqa: S102 (what a message tells the user to type)
    lines = capsys.readouterr().out.splitlines()
    assert order(network(1000), lines).names == class_labels(wnids())


def test_a_list_maps_the_names_in_a_file() -> None:
    weights = network(3, ["puppy", "cat", "dog"])
    assert order(weights, ["puppy\tdog"]).groups == [[0, 2], [1]]  # puppy and dog
    assert order(weights, ["dog\tHund", "cat\tKatze", "puppy\tWelpe"]).names == ["Welpe", "Katze", "Hund"]
    assert order(weights, ["puppy", "cat", "dog"]).names == weights.class_names


@pytest.mark.parametrize(
    ("weights", "lines", "match"),
    [
        ({"count": 1000, "published": True}, ["n02123046\tcat"], "found 'n02123046', .* did you mean n02123045 "),
        ({"count": 1000}, ["tabbi\tcat"], "'tabbi', which is no class of w.pth .ImageNet.*; did you mean tabby"),
        ({"count": 1000}, [f"{TABBY} cat"], f"'{TABBY} cat', .* did you mean {TABBY} .*a tab between"),
        ({"count": 1000}, [f"{TABBY}\tcat", "tabby\tdog"], f"list.txt: found the class {TABBY} twice"),
        ({"count": 3}, ["ant", "bee"], "list.txt lists 2 classes; w.pth has 3 classes and does not .*; .* in order"),
        ({"count": 2, "names": ["ant", "bee"]}, ["ant\tA", "cow\tC"], "found 'cow', which is no class of w.pth"),
        ({"count": 2}, ["ant\tb\tc", "bee"], "found the line ant<TAB>b<TAB>c; expected NAME, or NAME<TAB>FOLDER"),
        ({"count": 2}, ["ant", "ant"], "found the class ant twice"),
        ({"count": 2}, ["  "], "found no class"),
    ],
)
def test_lists_that_do_not_fit_are_refused(weights: dict[str, Any], lines: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        order(network(**weights), lines)


@pytest.mark.parametrize("listed", [["cow", "ant", "bee"], ["bee", "ant", "cow"]])
def test_a_list_that_contradicts_the_file_is_refused_and_may_correct_it(listed: list[str]) -> None:
    weights = network(3, ["ant", "bee", "cow"])
    with pytest.raises(UserError, match=rf"lists {', '.join(listed)}; .* are ant, bee, cow .*named in w.pth") as caught:
        order(weights, listed)
    assert f"NAME<TAB>FOLDER, such as ant<TAB>{listed[0]}" in str(caught.value)
    assert order(weights, [f"ant\t{listed[0]}", f"bee\t{listed[1]}", f"cow\t{listed[2]}"]).names == listed


@pytest.mark.parametrize(
    ("weights", "lines"),
    [
        (network(3), []),
        (network(3), ["2", "1", "10"]),
        (network(3), ["a\t2", "b\t10", "c\t1"]),
        (network(4), ["a\t2", "b\t10", "c\t1", "d\t10"]),
        (network(3, ["1", "10", "2"]), []),
        (network(4, ["a", "b", "2", "10"]), ["a\t1", "b\t10"]),
    ],
)
def test_the_list_of_another_order_gives_that_order(weights: Weights, lines: list[str]) -> None:
    folders = ["1", "10", "2"]
    before = order(weights, lines, folders)
    assert before.names is not None
    Path("likely.txt").write_text(before.class_list([1, 2, 0]))
    after = class_order(weights, "likely.txt", folders, "--classes")
    assert (after.names, after.groups) == ([before.names[i] for i in (1, 2, 0)], before.groups)


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
