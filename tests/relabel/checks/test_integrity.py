"""Every map and every image: what is missing, damaged, left over, or spelled in a way that surprises."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from relabel.annotation.label_set import LabelSet
from relabel.checks.integrity import Integrity, check_integrity, orientation
from relabel.data.images import ImageList
from relabel.label_map import LabelMap
from tests.memory_store import MemoryStore, left_right_map

WNID = "n01440764"


def keys(*names: str) -> np.ndarray:
    return np.array([name.encode() for name in names])


def check(maps: Mapping[str, LabelMap | str | None], *orphans: str) -> Integrity:
    """A store with a map (or None, or a message) for each key, and maps without image."""
    there = sorted([*(name for name, found in maps.items() if found is not None), *orphans])
    return check_integrity(
        LabelSet(Path("labels"), MemoryStore(list(maps.values())), keys(*maps), keys(*there), [], None)
    )


def test_one_missing_one_damaged_and_one_orphan() -> None:
    whole = left_right_map()
    maps = {"ant/a": whole, "ant/b": None, "bee/c": "bee/c.pt: found nan in row 1", "bee/d": whole}
    found = check(maps, "bee/x", "wasp/y", "wasp/z")
    assert found.usable.tolist() == [0, 3] and found.shape == (1, 4, 6)
    missing, damaged, orphan = found.problems()
    assert "Images without a label map: 1." in missing and "ant/b: expected its map at labels/1.pt" in missing
    assert "Damaged label maps: 1." in damaged and "found nan in row 1" in damaged
    assert "Label maps without an image: 1." in orphan and "bee/x" in orphan
    assert found.findings["maps_of_other_classes"].count == 2


def test_nothing_stops_at_the_first_and_only_the_first_are_listed() -> None:
    found = check({f"ant/{i}": f"damaged {i}" for i in range(50)})
    damaged = found.findings["damaged_maps"]
    assert damaged.count == 50 and damaged.first == ["damaged 0", "damaged 1", "damaged 2"]
    assert found.shape is None and len(found.usable) == 0


def test_names_of_several_dots_and_of_the_parquet_copy_are_counted() -> None:
    names = ["ant/a.b", "ant/c", f"{WNID}/n01440764_10", f"{WNID}/n01440764_11_{WNID}", "ant/big_ant"]
    found = check(dict.fromkeys(names, left_right_map()))
    assert found.findings["names_with_several_dots"].first == ["ant/a.b"]
    assert found.findings["names_in_parquet_spelling"].first == [f"{WNID}/n01440764_11_{WNID}"]
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
    assert found.findings["missing_maps"].count == 2
    assert found.findings["missing_maps_spelled_otherwise"].first == [f"image {image}, map {its_map}"]


def write_image(path: Path, asked: int | None = None) -> Path:
    exif = Image.Exif()
    if asked is not None:
        exif[ExifTags.Base.Orientation] = asked
    Image.new("RGB", (40, 28), (200, 30, 30)).save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_the_rotation_tag_is_read_without_decoding(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {write_image(tmp_path / f"{asked}-{name}", asked): asked for asked in (None, 1, 3, 6)}
    if not name.endswith("webp"):
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", None)
    assert [orientation(path) for path in paths] == [1, 1, 3, 6]


def test_no_rotation_is_read_from_tiff_nonsense_and_damaged_metadata(tmp_path: Path) -> None:
    assert orientation(write_image(tmp_path / "a.tiff", 6)) == 1  # Pillow turns the pixels itself
    for asked in (0, 9, 700):
        assert orientation(write_image(tmp_path / "a.jpg", asked)) == 1
    path = write_image(tmp_path / "a.jpg", 6)
    path.write_bytes(path.read_bytes().replace(b"MM\x00*", b"XXXX").replace(b"II*\x00", b"XXXX"))
    assert orientation(path) == 1


def test_images_are_checked_too(tmp_path: Path) -> None:
    """Also one of 65,535 x 65,535 pixels, which Pillow refuses with an error of its own."""
    paths = [tmp_path / name for name in ("a.jpg", "b.jpg", "c.jpg", "d.jpg", "e.gif")]
    write_image(paths[0], 6)
    write_image(paths[1])
    paths[2].write_text("no image")
    Image.new("P", (8, 6)).save(paths[4])
    whole = paths[4].read_bytes()
    at = whole.index(b"\x2c") + 5  # of the frame
    paths[4].write_bytes(whole[:6] + b"\xff" * 4 + whole[10:at] + b"\xff" * 4 + whole[at + 4 :])
    images = ImageList.of_folder(tmp_path, [], keys(*(path.name for path in paths)), np.full(5, -1))
    store = MemoryStore([left_right_map()] * 5)
    found = check_integrity(LabelSet(tmp_path, store, images.keys(), images.keys(), [], images))
    assert found.findings["rotated_images"].first == [str(paths[0])]
    (problem,) = found.problems()
    assert "Unreadable images: 3." in problem and "c.jpg: not in an image format" in problem
    assert "d.jpg: No such file" in problem and "e.gif" in problem
