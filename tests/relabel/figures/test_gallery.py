"""Which images a picture shows, and that it is drawn whatever they are."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.annotation.label_set import LabelSet, open_label_set
from relabel.data.images import list_images
from relabel.figures.gallery import draw_figure, example, named_rows, random_rows
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from utils.errors import UserError

OPTIONS = {"count": 2, "crops": 2, "seed": 0, "fill": 0.0, "temperature": 1.0}


@pytest.fixture
def labels(tmp_path: Path) -> LabelSet:
    """Three images of two classes, one without a map; one is large."""
    for name, size in (("ant/a.b.jpg", (60, 40)), ("ant/c.jpg", (40, 60)), ("bee/d.png", (2000, 1000))):
        (tmp_path / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (200, 90, 30)).save(tmp_path / "train" / name)
    for key in ("ant/a.b", "bee/d"):
        dense = np.zeros((2, 3, 4), np.float32)
        dense[1, :, 2:] = 8
        write_label_map(tmp_path / "labels", key, LabelMap.from_dense(dense, 1))
    return open_label_set(tmp_path / "labels", tmp_path / "train")


def test_images_are_found_by_path_name_and_key(
    labels: LabelSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = list_images(tmp_path / "train")
    monkeypatch.chdir(tmp_path)
    words = [str(tmp_path / "train" / "bee" / "d.png"), "train/ant/c.jpg", "ant/a.b.jpg", "ant/a.b"]
    assert named_rows(images, words) == [2, 1, 0, 0]
    with pytest.raises(UserError, match=r"found no image 'ant/a\.jpg' in .*did you mean ant/a\.b\.jpg\?"):
        named_rows(images, ["ant/a.jpg"])
    with pytest.raises(UserError, match="found no image '/etc/hostname'"):
        named_rows(images, ["/etc/hostname"])


def test_random_images_have_a_map(labels: LabelSet) -> None:
    assert random_rows(labels, 9, seed=3) == [0, 2]


def test_an_example_is_what_training_sees(labels: LabelSet) -> None:
    shown = example(labels, 2, crops=3, seed=1, fill=0.0, temperature=1.0)
    assert shown.image.shape == (450, 900, 3) and shown.label == 1
    assert len(shown.crops) == 3 and shown.targets.shape == (3, 2)
    np.testing.assert_allclose(shown.targets.sum(1), 1, rtol=1e-5)
    right = [box.left >= 0.5 for box in shown.crops]
    assert all(target[1] > 0.99 for target, is_right in zip(shown.targets, right, strict=True) if is_right)


@pytest.mark.parametrize("figure", ["rows", "sheet", "axes"])
@pytest.mark.parametrize("words", [[], ["bee/d"]])
def test_every_figure_is_drawn(labels: LabelSet, tmp_path: Path, figure: str, words: list[str]) -> None:
    out = tmp_path / "picture.png"
    draw_figure(words, tmp_path / "labels", tmp_path / "train", out, figure, **OPTIONS)  # type: ignore[arg-type]
    with Image.open(out) as picture:
        assert picture.format == "PNG" and min(picture.size) > 200


def test_flat_images_are_drawn_without_a_label(tmp_path: Path, labels: LabelSet) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (60, 40)).save(flat / "photo.jpg")
    from relabel.stores.manifest import Manifest

    write_label_map(tmp_path / "maps", "photo", labels.store.read(0))
    Manifest(form="pt", maps=1, k=1, h=3, w=4, class_names=["ant", "bee"], made_by={}).write(
        tmp_path / "maps" / "manifest.json"
    )
    for figure in ("rows", "sheet"):
        draw_figure([], tmp_path / "maps", flat, tmp_path / "picture.png", figure, **OPTIONS)  # type: ignore[arg-type]
        assert (tmp_path / "picture.png").stat().st_size > 5000


def test_an_image_without_a_map_is_told(labels: LabelSet, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no label map at .*ant/c\.pt"):
        draw_figure(["ant/c"], tmp_path / "labels", tmp_path / "train", tmp_path / "p.png", "rows", **OPTIONS)  # type: ignore[arg-type]
    assert not (tmp_path / "p.png").exists()
