"""A label map in a notebook."""

from pathlib import Path

from relabel import LabelMaps
from tests.conftest import CLASSES


def test_a_cell_shows_image_map_and_target(photos: Path) -> None:
    figure = LabelMaps(photos / "labels").plot("bee/bee.03", photos / "train" / "bee" / "bee.03.JPEG")
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert [axes.get_title() for axes in figure.axes] == ["image", "label map", "target of the whole image"]
    bars = [text.get_text() for text in figure.axes[2].texts]
    assert bars[0] == "bee" and set(bars) <= {*CLASSES, *(text for text in bars if text.endswith("%"))}
