"""ReLabel: localized multi-label training (Yun et al., CVPR 2021), one concept per file.

Letters used in shapes everywhere:
    B images in a batch, K classes, k classes stored per label-map cell, h w label-map rows and columns,
    H W image rows and columns in pixels, S side of the square crop.
Boxes are (left, top, right, bottom) as fractions of the original image. Maps are [.., h, w], row 0 at the top.

For use in other training loops: LabelMaps (reads label maps from disk by key), random_crop_box and CropBox (a random
crop and its box), pool_scores, relabel_target and TargetMaker (turn maps and boxes into targets).
"""

from importlib import import_module
from typing import Any

_PUBLIC = {
    "CropBox": "relabel.crop_box",
    "LabelMap": "relabel.label_map",
    "LabelMaps": "relabel.stores.store",
    "TargetMaker": "relabel.targets",
    "pool_scores": "relabel.label_pooling",
    "random_crop_box": "relabel.crop_box",
    "relabel_target": "relabel.targets",
}
__all__ = list(_PUBLIC)
__version__ = "2.0.0"  # 1 is the code of 2021


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import relabel` alone loads neither torch nor the stores."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
