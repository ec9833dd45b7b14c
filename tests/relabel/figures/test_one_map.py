"""A label map in a notebook."""

from pathlib import Path

from relabel import LabelMaps
from relabel.stores.manifest import Manifest
from relabel.stores.pt_folder import write_label_map
from tests.conftest import CLASSES
from tests.memory_store import left_right_map


def test_a_cell_shows_image_map_and_target(photos: Path) -> None:
    figure = LabelMaps(photos / "labels").plot("bee/bee.03", photos / "train" / "bee" / "bee.03.JPEG")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in figure.axes] == ["image", "label map", "target over 3 classes"]
    bars = [text.get_text() for text in figure.axes[2].texts]
    assert bars[0] == "bee" and set(bars) <= {*CLASSES, *(text for text in bars if text.endswith("%"))}


def test_the_target_can_be_over_the_class_folders_as_in_training(photos: Path, tmp_path: Path) -> None:
    write_label_map(tmp_path, "bee/bee.03", left_right_map(left=1, right=3))  # of four classes that the teacher knows
    names = ["wasp", "bee", "ant", "fly"]
    Manifest(form="pt", maps=1, k=1, h=4, w=6, class_names=names, made_by={}).write(tmp_path / "manifest.json")
    image = photos / "train" / "bee" / "bee.03.JPEG"
    (target,) = LabelMaps(tmp_path).plot("bee/bee.03", image, classes=["ant", "bee"]).axes[2:]
    assert target.get_title() == "target over 2 classes"
    assert [text.get_text() for text in target.texts][:2] == ["bee", "98 %"]  # half of its cells, at logit 8: e^4
