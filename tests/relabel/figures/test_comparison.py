"""The sheet of two checkpoints: the right images in the right order, and every text has its room."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from relabel.data.sources import open_images
from relabel.evaluation.compare import compare
from relabel.evaluation.predictions import SavedPredictions, read_predictions
from relabel.figures.comparison import draw_comparison_sheet
from tests.image_forms import make_tar
from tests.relabel.evaluation.test_compare import FIRST, SECOND, save
from tests.relabel.figures.test_label_maps import check_texts_have_room, texts, written
from utils.errors import UserError

SIZES = {"a": (40, 60), "b": (60, 40), "c": (20, 90), "d": (90, 25), "e": (50, 50)}  # width and height


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for number, (name, size) in enumerate(SIZES.items()):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", size, (40 * number, 90, 200)).save(tmp_path / "val" / name / "1.JPEG")
    return tmp_path / "val"


def both(folder: Path) -> tuple[SavedPredictions, SavedPredictions]:
    return read_predictions(save(folder / "1.csv", FIRST)), read_predictions(save(folder / "2.csv", SECOND))


def draw(folder: Path, both: tuple[SavedPredictions, SavedPredictions], images: Path, count: int = 1) -> None:
    draw_comparison_sheet(folder / "sheet.png", *both, open_images(images), count, compare(*both)[0])


def test_the_images_that_differ_most_come_first(tmp_path: Path, images: Path, drawn: list[Figure]) -> None:
    draw(tmp_path, both(tmp_path), images, count=3)
    (figure,) = drawn
    check_texts_have_room(figure)
    shown = texts(figure)
    coloured = {text.get_text(): str(text.get_color()) for text in written(figure)}
    assert coloured["≠ a"] == "#c62828" and coloured["c"] != "#c62828"  # only wrong answers are red
    undecided = "the difference is within the uncertainty of these images"
    assert f"top-1 60.00 % → 80.00 % of 5 images: {undecided}" in shown
    shown = shown[shown.index("c") :]  # after the heading
    assert (
        shown[:6] == ["c", "first", "≠ a", "50 %", "second", "c"]
        and shown[shown.index("of the label: 10 % → 90 %") + 1] == "c/1.JPEG"
    )
    assert [text for text in shown if text.startswith("of the label")] == [
        "of the label: 10 % → 90 %", "of the label: 60 % → 10 %", "of the label: 20 % → 40 %",
    ]  # fmt: skip


def test_long_names_are_cut_where_they_would_touch(tmp_path: Path, images: Path, drawn: list[Figure]) -> None:
    long = "soft-coated wheaten terrier of a very long name"
    rows = [row.replace(",a,", f",{long},") for row in FIRST], [row.replace(",a,", f",{long},") for row in SECOND]
    folders = [tmp_path / f"{'x' * 120}{n}" for n in range(2)]
    for folder in folders:
        folder.mkdir()
    files = [read_predictions(save(folder / "p.csv", mine)) for folder, mine in zip(folders, rows, strict=True)]
    draw(tmp_path, (files[0], files[1]), images)
    check_texts_have_room(drawn[0])
    runs = {text for text in texts(drawn[0]) if text.startswith("xx") and ":" not in text}
    assert len(runs) == 2  # told apart by their ends


def test_images_in_any_form(tmp_path: Path, images: Path, drawn: list[Figure]) -> None:
    """With folders inside the class folders, in a tar file, in shards that number the classes, in a flat folder."""
    content = {path.relative_to(images): path.read_bytes() for path in sorted(images.rglob("*.JPEG"))}
    files = {Path("1.csv"): FIRST, Path("2.csv"): SECOND}
    found = [read_predictions(save(tmp_path / name, [row.replace("/1.J", f"/{row[0]}.J") for row in rows]))
             for name, rows in files.items()]  # fmt: skip
    shard: dict[str, bytes] = {}
    forms = [tmp_path / "nested", tmp_path / "val.tar", tmp_path / "shard.tar", tmp_path / "flat"]
    for number, (path, data) in enumerate(content.items()):
        name = path.parts[0]
        for copy in (forms[0] / name / "x" / "y" / f"{name}.JPEG", forms[3] / f"{name}.JPEG"):
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)
        shard |= {f"{name}.JPEG": data, f"{name}.cls": str(number).encode()}
    make_tar(forms[1], {f"{path.parts[0]}/{path.parts[0]}.JPEG": data for path, data in content.items()})
    make_tar(forms[2], shard)
    for form in forms:
        draw(tmp_path, (found[0], found[1]), form, count=3)
    assert all(texts(figure) == texts(drawn[0]) and "c/c.JPEG" in texts(figure) for figure in drawn)


def test_names_that_are_not_utf8_are_drawn(tmp_path: Path, images: Path, drawn: list[Figure]) -> None:
    rows = [[row.replace(",a,", ",caf\udce9,") for row in made] for made in (FIRST, SECOND)]
    found = [read_predictions(save(tmp_path / f"{number}.csv", made)) for number, made in enumerate(rows)]
    draw(tmp_path, (found[0], found[1]), images)
    assert "≠ caf\ufffd" in texts(drawn[0])


def test_an_image_that_is_missing_is_refused(tmp_path: Path, images: Path) -> None:
    for name in ("c/2.JPEG", "/etc/passwd", "a/../../1.JPEG"):
        found = read_predictions(save(tmp_path / "1.csv", [f"{name},a,a,0.9,0.9,a,1"]))
        with pytest.raises(UserError, match=f"found no image {name}; expected names such as a/1.JPEG"):
            draw_comparison_sheet(
                tmp_path / "sheet.png", found, found, open_images(images), 1, compare(*both(tmp_path))[0]
            )
    assert not (tmp_path / "sheet.png").exists()
