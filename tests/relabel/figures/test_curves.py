"""The picture of a comparison."""

from pathlib import Path

import numpy as np
from PIL import Image

from relabel.figures.curves import draw_results


def test_each_row_takes_its_room_and_one_seed_is_enough(tmp_path: Path) -> None:
    draw_results(tmp_path / "two.png", {"original labels": [70.0], "ReLabel": [80.0]})
    draw_results(tmp_path / "nine.png", {f"row {i}": [70.0 + i, 71.0 + i, 72.5 + i] for i in range(9)})
    heights = [Image.open(tmp_path / name).height for name in ("two.png", "nine.png")]
    assert heights[1] > 2 * heights[0]
    assert np.asarray(Image.open(tmp_path / "nine.png").convert("L")).std() > 5
