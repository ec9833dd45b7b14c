"""Boxes from files that others wrote: where they lie, whose they are, and what a hostile file cannot do."""

import socket
from pathlib import Path

import numpy as np
import pytest

from relabel.checks.object_boxes import LARGEST_XML, ObjectBox, look_up, open_object_boxes, read_truth, read_voc_file
from relabel.crop_box import WHOLE_IMAGE, CropBox
from utils.errors import UserError

TENCH, DOG = "n01440764", "n02092002"
SIZE = "<size><width>500</width><height>400</height><depth>3</depth></size>"


def box_xml(xmin: object, ymin: object, xmax: object, ymax: object, name: str = TENCH) -> str:
    sides = f"<xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax>"
    return f"<object><name>{name}</name><bndbox>{sides}</bndbox></object>"


def write(path: Path, *objects: str, size: str = SIZE, head: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}<annotation><filename>%s</filename>{size}{''.join(objects)}</annotation>")
    return path


def boxes_in(path: Path, folder: str = TENCH) -> list[ObjectBox]:
    return read_voc_file(path, folder)


def test_a_box_is_one_based_and_holds_its_last_pixel(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", box_xml(1, 1, 250, 400, name="fish"), box_xml(251, 101, 500, 300, name="cat"))
    assert boxes_in(path, "fish") == [
        ObjectBox("fish", CropBox(0, 0, 0.5, 1)),
        ObjectBox("cat", CropBox(0.5, 0.25, 1, 0.75)),
    ]


def test_a_box_at_or_over_the_border_ends_there(tmp_path: Path) -> None:
    for sides in ((0, 0, 500, 400), (-3, 0, 512, 400), (0.5, 0.7, 500.2, 401)):
        assert boxes_in(write(tmp_path / "a.xml", box_xml(*sides))) == [ObjectBox(TENCH, WHOLE_IMAGE)]


def test_parts_of_an_object_are_not_objects(tmp_path: Path) -> None:
    assert boxes_in(write(tmp_path / "empty.xml")) == []
    head = "<part><name>head</name><bndbox><xmin>2</xmin><ymin>2</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></part>"
    person = box_xml(1, 1, 250, 400, name="person")
    first = person.replace("<name>", f"{head}<name>", 1)
    assert boxes_in(write(tmp_path / "a.xml", first), "street") == [ObjectBox("person", CropBox(0, 0, 0.5, 1))]


def test_imagenets_dogs_bear_english_names(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", *(box_xml(1, 1, 500, 400, name=name) for name in ("Scottish_deerhound", TENCH)))
    assert [found.class_name for found in boxes_in(path, DOG)] == [DOG, TENCH]
    assert [found.class_name for found in boxes_in(path, "dogs")] == ["Scottish_deerhound", TENCH]


@pytest.mark.parametrize(
    ("objects", "size", "reason"),
    [
        (box_xml(250, 1, 250, 400), SIZE, "250, 1, 250, 400 is empty"),
        (box_xml(501.5, 1, 600, 400), SIZE, "outside the 500 x 400 pixels"),
        (box_xml("nan", 1, 20, 30), SIZE, "<bndbox/xmin> is 'nan', not a number"),
        ("<object><name>cat</name></object>", SIZE, "<bndbox/xmin> is missing"),
        (box_xml(1, 1, 20, 30, name=" "), SIZE, "an <object> has no <name>"),
        (box_xml(1, 1, 20, 30), "<size><width>0</width><height>0</height></size>", "its <size> is 0 x 0"),
        ("</annotation>", SIZE, "not well-formed"),
    ],
)
def test_a_wrong_file_is_named_with_the_reason(tmp_path: Path, objects: str, size: str, reason: str) -> None:
    path = write(tmp_path / "wrong.xml", objects, size=size)
    with pytest.raises(UserError) as caught:
        boxes_in(path)
    assert str(path) in str(caught.value) and reason in str(caught.value)
    assert "Correct it or remove it" in str(caught.value)


LAUGHS = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10}">' for i in range(1, 12))
BILLION_LAUGHS = f'<!DOCTYPE a [<!ENTITY l0 "ha">{LAUGHS}]>'


def test_billion_laughs_are_refused_at_once_in_any_encoding(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xml", box_xml(1, 1, 9, 9, name="&l11;"), head=BILLION_LAUGHS)
    with pytest.raises(UserError, match="it declares a document type"):
        boxes_in(path)
    text = f'<?xml version="1.0" encoding="utf-16"?>{BILLION_LAUGHS}<annotation>{SIZE}</annotation>'
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(UserError, match="it declares a document type"):
        boxes_in(path)
    path.write_text('<?xml version="1.0" encoding="rot13"?><annotation/>')
    with pytest.raises(UserError, match=r"a\.xml: cannot be read as object boxes"):
        boxes_in(path)


def test_no_other_file_and_no_server_is_asked(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("the secret")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.dtd"
        for head in (
            f'<!DOCTYPE a SYSTEM "{url}">',
            f'<!DOCTYPE a [<!ENTITY % e SYSTEM "{url}"> %e;]>',
            f'<!DOCTYPE a [<!ENTITY e SYSTEM "file://{tmp_path}/secret">]>',
        ):
            path = write(tmp_path / "a.xml", box_xml(1, 1, 9, 9, name="&e;"), head=head)
            with pytest.raises(UserError, match="it declares a document type") as caught:
                boxes_in(path)
            assert "the secret" not in str(caught.value)
        with pytest.raises(TimeoutError):
            server.accept()


def test_a_huge_and_a_deep_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(b"<a>" * (LARGEST_XML // 3 + 1))
    with pytest.raises(UserError, match="more than 1,000,000 bytes"):
        boxes_in(path)
    depth = LARGEST_XML // 8
    path.write_bytes(b"<a>" * depth + b"</a>" * depth)
    with pytest.raises(UserError, match=r"size/width> is missing|too deep|depth"):
        boxes_in(path)


def test_both_layouts_and_the_parquet_spelling_are_found(tmp_path: Path) -> None:
    write(tmp_path / TENCH / "n01440764_10.xml", box_xml(1, 1, 250, 400))
    write(tmp_path / "ILSVRC2012_val_00000001.xml", box_xml(251, 1, 500, 400))
    source = open_object_boxes(tmp_path, [TENCH])
    left, right = [ObjectBox(TENCH, CropBox(0, 0, 0.5, 1))], [ObjectBox(TENCH, CropBox(0.5, 0, 1, 1))]
    assert source(f"{TENCH}/n01440764_10") == left
    assert source(f"{TENCH}/n01440764_10_{TENCH}") == left
    assert source(f"{TENCH}/ILSVRC2012_val_00000001") == right
    assert source("ILSVRC2012_val_00000001") == right
    assert source(f"{TENCH}/n01440764_11") == []


def test_looking_up_goes_on_after_a_wrong_file(tmp_path: Path) -> None:
    write(tmp_path / "ant" / "a.xml", box_xml(1, 1, 250, 400, name="ant"))
    write(tmp_path / "ant" / "b.xml", box_xml(9, 9, 9, 9, name="ant"))
    found = look_up(open_object_boxes(tmp_path, ["ant"]), np.array([b"ant/c", b"ant/b", b"ant/a"]), np.array([0, 1, 2]))
    assert found.asked == 3 and list(found.of_row) == [2]
    assert len(found.refused) == 1 and "b.xml" in found.refused[0]


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found nothing there; expected a folder of Pascal-VOC"):
        open_object_boxes(tmp_path / "absent", [])
    (tmp_path / "n01").mkdir()
    (tmp_path / "n01" / "a.JPEG").touch()
    with pytest.raises(UserError, match=r"no \.xml file in its folder or the folders below"):
        open_object_boxes(tmp_path, [])


def test_digit_scenes_count_classes_by_position(tmp_path: Path) -> None:
    path = tmp_path / "train.json"
    path.write_text('{"bee/b.1.JPEG": {"labels": [1, 0], "boxes": [[0, 0, 0.5, 1], [0.5, 0.5, 1, 1]]}}')
    source = open_object_boxes(path, ["ant", "bee"])
    assert source("bee/b.1") == [
        ObjectBox("bee", CropBox(0, 0, 0.5, 1)),
        ObjectBox("ant", CropBox(0.5, 0.5, 1, 1)),
    ]
    assert source("bee/c") == []
    with pytest.raises(UserError, match=r"found the class 1; expected 0\.\.0"):
        open_object_boxes(path, ["ant"])


@pytest.mark.parametrize(
    "content",
    [
        "[1]",
        '{"a": {"labels": [1], "boxes": []}}',
        '{"a": {"labels": ["x"], "boxes": [[0, 0, 1, 1]]}}',
        '{"a": {"labels": [1], "boxes": [[0, 0, NaN, 1]]}}',
        "[" * 100_000,
        '{"a": {"labels": [1], "boxes": [[0, 0, 1%s, 1]]}}' % ("0" * 400),
        None,
    ],
)
def test_a_truth_file_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "train.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=r"train\.json"):
        read_truth(path)
