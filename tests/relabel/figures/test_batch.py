"""The figure of a training batch."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from relabel.figures.batch import draw_batch
from relabel.figures.colours import PALETTE
from tests.relabel.figures.test_label_maps import check_texts_have_room, pixels_of


def test_each_image_is_drawn_with_its_target(tmp_path: Path, drawn: list[Figure]) -> None:
    images = np.zeros((5, 24, 24, 3), np.uint8)
    images[:, :, :, 1] = np.arange(40, 240, 40)[:, None, None]
    targets = np.array([[0.7, 0.3, 0], [0, 0, 1], [1, 0, 0], [0, 0.5, 0.5], [0, 1, 0]], np.float32)
    names = [f"ant/{'long' * 20}{number}.jpg" for number in range(5)]
    draw_batch(tmp_path / "batch.png", images, targets, [1, 2, 0, -1, 1], names, ["ant", "bee", "cow"], "first batch")
    texts = [[text.get_text() for text in axes.texts] for axes in drawn[0].axes if axes.texts]
    assert [shown[:1] + shown[2:] for shown in texts[:2]] == [
        ["label: bee", "ant", "70 %", "bee", "30 %"],
        ["label: cow", "cow", "100 %"],
    ]
    assert texts[1][1].startswith("ant/") and texts[1][1].endswith("1.jpg") and texts[3][0] == "no label"
    assert len(texts) == 6 and texts[5] == ["first batch"]
    check_texts_have_room(drawn[0])
    for image in images:
        assert len(pixels_of(tmp_path / "batch.png", "#{:02x}{:02x}{:02x}".format(*image[0, 0]))) > 10_000
    assert len(pixels_of(tmp_path / "batch.png", PALETTE[2])) > 100
    assert Image.open(tmp_path / "batch.png").width < 1500
