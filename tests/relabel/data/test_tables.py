"""Tables of labels: with or without header and extension, relative to the table or to the images; wrong ones."""

from collections.abc import Callable
from pathlib import Path, PureWindowsPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relabel.data.images import Census, FolderFiles, Found, as_bytes
from relabel.data.sources import open_images
from relabel.data.tables import LabelTable, read_table, with_labels
from tests.relabel.data.test_images import names, touch
from tests.strategies import FEW
from utils.errors import UserError

IMAGES = ("part/a.jpg", "part/b.b.png", "c.JPEG")
WAYS: dict[str, Callable[[Path, str], str]] = {
    "below the table": lambda root, path: f"images/{path}",
    "below the images": lambda root, path: path,
    "with a dot": lambda root, path: f"./images/{path}",
    "absolute": lambda root, path: str(root.resolve() / "images" / path),
    "without folders": lambda root, path: Path(path).name,
    "of Windows": lambda root, path: str(PureWindowsPath("images", path)),
    "of another machine": lambda root, path: f"/home/anna/images/{path}",
    "a URL": lambda root, path: f"s3://bucket/images/{path}",
    "absolute, of Windows": lambda root, path: str(PureWindowsPath(r"C:\photos\images", path)),
}


@pytest.mark.parametrize("delimiter", [",", "\t", ";", " "])
@pytest.mark.parametrize("header", ["", "image{}class"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("extension", [True, False])
def test_tables_in_any_form(tmp_path: Path, delimiter: str, header: str, way: str, extension: bool) -> None:
    touch(tmp_path / "images", *IMAGES, "d.jpg")
    lines = [header.format(delimiter)] if header else []
    for path, label in zip(IMAGES, ("wasp", "ant", "wasp"), strict=True):
        name = WAYS[way](tmp_path, path)
        lines.append(f"{name if extension else name.rpartition('.')[0]}{delimiter}{label}")
    (tmp_path / "t.csv").write_text("\n".join([*lines, "", ""]))
    images = open_images(tmp_path / "images", tmp_path / "t.csv")
    assert names(images) == ["ant/b.b.png", "wasp/a.jpg", "wasp/c.JPEG"] and images.labels.tolist() == [0, 1, 1]
    assert [Path(str(images.path(i))).is_file() for i in range(3)] == [True] * 3
    assert images.described().endswith(
        f"classes from {tmp_path}/t.csv{' (header: image, class)' * bool(header)}; not used: 1 unlisted image (d.jpg)"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "found no image; expected a CSV or TSV file"),
        (b"c.JPEG\n", "line 1: found 'c.JPEG'"),
        (b"image,class\nc.JPEG,ant\n,bee\n", "line 3: found ',bee'"),
        (b"c.JPEG,ant\nc.JPEG,bee\n", "line 2: found a second class, 'bee', of c.JPEG, which was 'ant'"),
        (b"c.JPEG,ant\ngone.jpg,ant\n", "1 of the 2 images that it lists are not in .*the first: gone.jpg. Expected"),
        (b"c.JPEG,ant\nc,bee\n", "may be two images .* or is listed twice"),
        (b"gone.jpg,bee\nc.JPEG,ant\n", "1 of the 2 images that it lists are not in .*the first: gone.jpg. Expected"),
        (b"class,image\nant,c.JPEG\nant,part/a.jpg\n", "line 2: found the image c.JPEG in the second column"),
        (b"image,class\n", "found no image, only the header image"),
        ("image,class\nc.JPEG,Hündin\n".encode("cp1252"), "is not a text file in UTF-8: line 2 contains the byte 0xfc"),
        (b"c.JPEG,a/b\npart/a.jpg,x\n", "found the class 'a/b'; expected a name that a folder can have"),
        ("c.JPEG,ant\n".encode("utf-16"), "is not a text file in UTF-8"),
        (b"PK\x03\x04\0\0\0", "is not a text file in UTF-8"),
        (b'c.JPEG,"' + b"x" * 200_000 + b'"\n', "t.csv cannot be read \\(field larger"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    touch(tmp_path / "images", *IMAGES)
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_images(tmp_path / "images", tmp_path / "t.csv")


@pytest.mark.parametrize(
    ("content", "label"),
    [
        ("c.JPEG;wasp, common\n", "wasp, common"),
        ("c.JPEG,wasp; common\n", "wasp; common"),
        ("c.JPEG,red fox\npart/b.b.png,red fox\n", "red fox"),
        ("c.JPEG wasp\rpart/a.jpg wasp\r", "wasp"),
        ("image, or scan;class\nc.JPEG;wasp\n", "wasp"),
        ("sep=;\r\nimage;class\r\nc.JPEG;wasp, common\r\n", "wasp, common"),
        ('"image";"class"\n"c.JPEG";"wasp, common"\npart/a.jpg;"wasp, common"\n', "wasp, common"),
    ],
)
def test_how_columns_are_separated(tmp_path: Path, content: str, label: str) -> None:
    touch(tmp_path / "images", *IMAGES)
    (tmp_path / "t.csv").write_text(content, newline="")
    assert open_images(tmp_path / "images", tmp_path / "t.csv").class_names == [label]


def test_a_table_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone.csv cannot be read \(No such file"):
        read_table(tmp_path / "gone.csv")


def test_a_file_name_of_two_images(tmp_path: Path) -> None:
    """A path tells them apart, a name does not."""
    touch(tmp_path / "images", "x/1.png", "y/1.png")
    for written in ("1.png", "1"):
        (tmp_path / "t.csv").write_text(f"{written},ant\n")
        with pytest.raises(UserError, match=f"{written} may be two images .*expected a path such as x/1.png"):
            open_images(tmp_path / "images", tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text("x/1.png,ant\ny/1,bee\n")
    assert names(open_images(tmp_path / "images", tmp_path / "t.csv")) == ["ant/1.png", "bee/1.png"]


@given(
    st.dictionaries(
        st.sampled_from([f"{a}/{b}.{c}" for a in "xy" for b in "12" for c in ("jpg", "png")]),
        st.sampled_from("AB"),
        min_size=1,
    )
)
@FEW
def test_exact_paths_are_never_ambiguous(class_of: dict[str, str]) -> None:
    """Though other images have the same name or stem; images of one name in a class are refused."""
    paths = [f"{a}/{b}.{c}" for a in "xy" for b in "12" for c in ("jpg", "png")]
    found = Found(Path("images"), paths, FolderFiles(Path("images"), as_bytes(paths)), Census(""))
    listed = [f"{label}/{path.partition('/')[2]}" for path, label in class_of.items()]
    if len({*listed}) < len(listed):
        with pytest.raises(UserError, match="are both called"):
            with_labels(found, LabelTable(Path("t.csv"), class_of))
    else:
        images = with_labels(found, LabelTable(Path("t.csv"), class_of))
        of_path = {str(images.path(i)): images.class_names[images.labels[i]] for i in range(len(images))}
        assert of_path == {f"images/{path}": label for path, label in class_of.items()}
