"""Every map and every image: what is missing, damaged, left over, or spelled in a way that surprises."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from relabel.checks.integrity import Integrity, check_integrity, orientation
from relabel.label_map import LabelMap
from tests.memory_store import MemoryStore, left_right_map

WNID = "n01440764"


def keys(*names: str) -> np.ndarray:
    return np.array([name.encode() for name in names])


def check(maps: Mapping[str, LabelMap | str | None], *orphans: str) -> Integrity:
    """A store with a map (or None, or a message) for each key, and maps without image."""
    there = sorted([*(name for name, found in maps.items() if found is not None), *orphans])
    return check_integrity(MemoryStore(list(maps.values())), keys(*maps), keys(*there))


def test_whole_maps_are_no_problem() -> None:
    found = check({"ant/a": left_right_map(), "ant/b": left_right_map()})
    assert found.problems() == [] and found.usable.tolist() == [0, 1] and found.shape == (1, 4, 6)


def test_one_missing_one_damaged_and_one_orphan() -> None:
    whole = left_right_map()
    maps = {"ant/a": whole, "ant/b": None, "bee/c": "bee/c.pt: found nan in row 1", "bee/d": whole}
    found = check(maps, "bee/x", "wasp/y", "wasp/z")
    assert found.usable.tolist() == [0, 3]
    assert (found.missing.count, found.damaged.count, found.orphans.count, found.other_classes.count) == (1, 1, 1, 2)
    missing, damaged, orphan = found.problems()
    assert "Images without label map: 1." in missing and "ant/b: expected its map at labels/1.pt" in missing
    assert "Damaged label maps: 1." in damaged and "found nan in row 1" in damaged
    assert "Label maps without image: 1." in orphan and "bee/x" in orphan


def test_nothing_stops_at_the_first_and_only_the_first_are_listed() -> None:
    found = check({f"ant/{i}": f"damaged {i}" for i in range(50)})
    assert found.damaged.count == 50 and found.damaged.first == ["damaged 0", "damaged 1", "damaged 2"]
    assert found.shape is None and len(found.usable) == 0


def test_names_of_several_dots_and_of_the_parquet_copy_are_counted() -> None:
    names = ["ant/a.b", "ant/c", f"{WNID}/n01440764_10", f"{WNID}/n01440764_11_{WNID}", "ant/big_ant"]
    found = check(dict.fromkeys(names, left_right_map()))
    assert found.several_dots.first == ["ant/a.b"] and found.several_dots.count == 1
    assert found.parquet_spelling.first == [f"{WNID}/n01440764_11_{WNID}"] and found.parquet_spelling.count == 1
    assert found.problems() == []


@pytest.mark.parametrize(
    ("image", "its_map"),
    [
        (f"{WNID}/n01440764_10_{WNID}", f"{WNID}/n01440764_10"),
        (f"{WNID}/n01440764_10", f"{WNID}/n01440764_10_{WNID}"),
        ("ant/a.b.c", "ant/a"),
    ],
)
def test_a_map_under_another_spelling_is_pointed_out(image: str, its_map: str) -> None:
    found = check({image: None, "ant/other": None}, its_map)
    assert found.missing.count == 2 and found.elsewhere.count == 1
    assert f"image {image}, map {its_map}" in found.problems()[-1]


def write_image(path: Path, asked: int | None = None) -> Path:
    exif = Image.Exif()
    if asked is not None:
        exif[ExifTags.Base.Orientation] = asked
    Image.new("RGB", (40, 28), (200, 30, 30)).save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
@pytest.mark.parametrize("asked", [None, 1, 3, 6])
def test_the_asked_rotation_is_read(tmp_path: Path, name: str, asked: int | None) -> None:
    assert orientation(write_image(tmp_path / name, asked)) == (asked or 1)


def test_what_pillow_turns_itself_asks_for_nothing(tmp_path: Path) -> None:
    assert orientation(write_image(tmp_path / "a.tiff", 6)) == 1


@pytest.mark.parametrize("asked", [0, 9, 700])
def test_nonsense_is_no_rotation(tmp_path: Path, asked: int) -> None:
    assert orientation(write_image(tmp_path / "a.jpg", asked)) == 1


def test_damaged_metadata_ask_for_nothing(tmp_path: Path) -> None:
    path = write_image(tmp_path / "a.jpg", 6)
    content = path.read_bytes()
    for cut in (b"MM\x00*", b"II*\x00"):
        content = content.replace(cut, b"XXXX")
    path.write_bytes(content)
    assert orientation(path) == 1


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
def test_no_pixel_is_decoded(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_image(tmp_path / name, 6)
    plain = tmp_path / f"plain-{name}"
    Image.new("RGB", (40, 28)).save(plain)

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert orientation(path) == 6 and orientation(plain) == 1


def test_images_are_looked_at_too(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg")]
    write_image(paths[0], 6)
    write_image(paths[1])
    paths[2].write_text("no image")
    names = keys("ant/a", "ant/b", "ant/c", "ant/d")
    found = check_integrity(MemoryStore([left_right_map()] * 4), names, names, paths.__getitem__)
    assert found.rotated and found.rotated.count == 1 and "a.jpg" in found.rotated.first[0]
    assert found.unreadable_images and found.unreadable_images.count == 2
    problem = "\n".join(found.problems())
    assert "Images that cannot be read: 2." in problem and "c.jpg: it is in no image format" in problem
    assert "d.jpg: No such file" in problem


def test_a_header_of_any_kind_of_damage_is_an_image_that_cannot_be_read(tmp_path: Path) -> None:
    """Pillow refuses a picture of 65,535 x 65,535 pixels with an error of its own."""
    Image.new("P", (8, 6)).save(tmp_path / "a.gif")
    whole = (tmp_path / "a.gif").read_bytes()
    at = whole.index(b"\x2c") + 5  # of the frame
    (tmp_path / "a.gif").write_bytes(whole[:6] + b"\xff" * 4 + whole[10:at] + b"\xff" * 4 + whole[at + 4 :])
    result = check_integrity(MemoryStore([None]), np.array([b"a"]), np.array([b"a"]), lambda row: tmp_path / "a.gif")
    assert result.unreadable_images and result.unreadable_images.count == 1
