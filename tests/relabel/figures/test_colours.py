"""Colours: the same for a class in every figure, different in one image, and none that means something else."""

import math
from itertools import combinations

import numpy as np
from matplotlib.colors import to_rgb

from relabel.figures.colours import CORRECT, OTHER_COLOUR, PALETTE, WARNING, class_colours


def colours_of(shares: dict[int, float], also: dict[int, float] | None = None, classes: int = 1000) -> dict[int, str]:
    """Colours in an image whose map and target have these shares."""
    found = np.zeros((2, classes))
    for row, entries in enumerate((shares, also or {})):
        found[row, list(entries)] = list(entries.values())
    return class_colours(found[0][:, None, None] * np.ones((1, 3, 5)), found[1:])


def test_a_class_has_the_same_colour_in_every_image() -> None:
    assert colours_of({6: 1.0}, classes=7) == dict(enumerate(PALETTE[:7]))
    assert len(set(colours_of({0: 1.0}, classes=20).values())) == 20
    alone = {index: colours_of({index: 0.9})[index] for index in range(0, 1000, 7)}
    assert set(alone.values()) == set(PALETTE)
    for index in range(0, 980, 7):
        assert colours_of({index: 0.5, index + 7: 0.4})[index] == alone[index]


def test_classes_of_one_image_differ_and_the_smaller_gives_way() -> None:
    own, other = colours_of({40: 0.9})[40], colours_of({60: 0.9})[60]
    assert own == other  # twenty apart
    colours = colours_of({40: 0.3, 60: 0.6, 3: 0.001}, {80: 0.2, 40: 0.9})
    assert colours[60] == other and colours[40] != own and len(set(colours.values())) == 3  # 3 is too small to be seen
    assert colours_of({40: 0.3, 60: 0.6})[40] == colours[40]  # whatever crops are drawn beside the map
    many = colours_of(dict.fromkeys(range(30), 0.03))
    assert len(many) == len(set(many.values())) == len(PALETTE)


def test_nearly_equal_colours_do_not_meet_in_one_image() -> None:
    alone = {index: colours_of({index: 0.9})[index] for index in range(20)}
    for one, other in combinations(range(20), 2):
        found = colours_of({one: 0.5, other: 0.4})
        assert found[one] == alone[one] and math.dist(to_rgb(found[one]), to_rgb(found[other])) > 0.33


def test_no_class_has_the_colour_of_right_wrong_or_unknown() -> None:
    palette = np.array([to_rgb(colour) for colour in PALETTE])
    for reserved in (CORRECT, WARNING, OTHER_COLOUR):
        assert np.abs(palette - to_rgb(reserved)).sum(1).min() > 0.15
    assert np.ptp(palette, axis=1).min() > 0.25  # none is grey
