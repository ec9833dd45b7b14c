"""The colours of all figures: one meaning each.

Blue is what is right, red is what is wrong, grey is what is undecided, unknown or of no interest; neither red nor grey
is the colour of a class or of a curve.
"""

import math

import numpy as np
from matplotlib.colors import to_rgb

INK, MUTED, TRACK, MAT = "0.15", "0.45", "0.92", "0.955"  # text, minor text, background of a bar, around an image
CORRECT, WARNING = "#1565c0", "#c62828"
OTHER_COLOUR = "0.55"  # classes without a colour of their own; differences that are not decided

# Of curves, rows and classes, the most different ones first.
PALETTE = (
    "#1f77b4", "#ff7f0e", "#17becf", "#e377c2", "#8c564b", "#f2c80f", "#4230d0", "#a3c61f", "#2ca02c", "#9467bd",
    "#00897b", "#f7a58b", "#5c6bc0", "#827717", "#c49ae8", "#66d9a0", "#d0468c", "#7a3f9d", "#b8860b", "#74b9f5",
)  # fmt: skip
FEW_CLASSES = 10  # up to so many, class i has colour i
STRIDE, START = 7, 15  # of more classes: those with neighbouring ids, which are often alike, get different colours
ALIKE = 0.33  # distance in RGB, of 0..1, below which two colours are easily taken for one
VISIBLE = 0.005  # smallest share of a class that counts in an image; less rounds to 0 %


def class_colours(cells: np.ndarray, targets: np.ndarray) -> dict[int, str]:
    """Choose a colour for each visible class of an image: the class's own, which depends on its id alone.

    If two classes of one image have the same colour or nearly so (of more than twenty classes), the one with the
    smaller share of the map takes the next colour that is free and unlike those taken. So an image has the same
    colours in every figure.

    Args:
        cells: float [K, h, w]; the class probabilities of each cell.
        targets: float [n, K]; also give colours to the classes that are visible only here.

    Returns:
        Class -> colour; classes that are not visible are missing if K is more than twenty.
    """
    own = [_own_colour(index, len(cells)) for index in range(len(cells))]
    if len(own) <= len(PALETTE):
        return {index: PALETTE[colour] for index, colour in enumerate(own)}
    colours: dict[int, str] = {}
    for shares in (cells.mean((1, 2)), targets.max(0)):
        for index in np.argsort(-shares, kind="stable")[: int((shares >= VISIBLE).sum())].tolist():
            choice = PALETTE[own[index] :] + PALETTE[: own[index]]
            if index not in colours and (free := [colour for colour in choice if colour not in colours.values()]):
                apart = [min((_distance(one, taken) for taken in colours.values()), default=1.0) for one in free]
                unlike = (one for one, distance in zip(free, apart, strict=True) if distance > ALIKE)
                colours[index] = next(unlike, free[apart.index(max(apart))])
    return colours


def _distance(one: str, other: str) -> float:
    return math.dist(to_rgb(one), to_rgb(other))


def _own_colour(index: int, num_classes: int) -> int:
    return index if num_classes <= FEW_CLASSES else (STRIDE * index + START) % len(PALETTE)
