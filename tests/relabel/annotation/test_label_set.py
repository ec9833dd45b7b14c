"""Label maps with their images: where the classes come from, and what happens when they are unknown."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.annotation.label_set import open_label_set
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.pt_folder import write_label_map
from utils.errors import UserError


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path)


def write_maps(folder: Path, *keys: str, names: list[str] | None = None) -> Path:
    for key in keys:
        write_label_map(folder, key, LabelMap(np.ones((1, 2, 3), np.float32), np.zeros((1, 2, 3), np.int16)))
    if names:
        made = Manifest(form="pt", maps=len(keys), k=1, h=2, w=3, class_names=names, made_by={})
        made.write(folder / "manifest.json")
    return folder


def test_the_folders_of_the_images_are_the_classes(tmp_path: Path) -> None:
    labels = write_maps(tmp_path / "labels", "bee/a", "cow/b", names=["ant", "bee", "cow"])
    for name in ("bee/a.jpg", "cow/b.jpg", "cow/c.jpg"):
        write_image(tmp_path / "train" / name)
    found = open_label_set(labels, tmp_path / "train")
    assert (found.class_names, len(found), found.key(2)) == (["bee", "cow"], 3, "cow/c")
    assert found.labels is not None and found.labels.tolist() == [0, 1, 1]
    assert found.images is not None and found.images.path(1) == tmp_path / "train" / "cow" / "b.jpg"
    assert found.store.missing().tolist() == [2]
    assert (found.store.read(0).classes == 2).all()  # ant, which these images lack, becomes K


def test_without_images_the_maps_name_their_classes(tmp_path: Path) -> None:
    named = open_label_set(write_maps(tmp_path / "a", "bee/a", names=["ant", "bee"]), None)
    assert (named.class_names, named.images, named.labels) == (["ant", "bee"], None, None)
    assert open_label_set(write_maps(tmp_path / "b", "cow/a", "ant/b"), None).class_names == ["ant", "cow"]


def test_flat_images_have_no_labels(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.b.jpg")
    labels = write_maps(tmp_path / "labels", "a.b", names=["ant", "bee"])
    found = open_label_set(labels, tmp_path / "photos")
    assert (found.labels, found.class_names, found.key(0)) == (None, ["ant", "bee"], "a.b")
    assert len(found.store.missing()) == 0


def test_maps_of_unknown_classes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"do not name their classes.*pack --help"):
        open_label_set(write_maps(tmp_path / "labels", "a"), None)


def test_a_folder_without_maps(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    with pytest.raises(UserError, match="labels: found no label map; expected a packed store"):
        open_label_set(tmp_path / "labels", None)
