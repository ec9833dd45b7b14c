"""ReLabel: localized multi-label training (Yun et al., CVPR 2021), one concept per file.

Letters used in shapes everywhere:
    B images in a batch, K classes, k classes stored per label-map cell, h w label-map rows and columns,
    H W image rows and columns in pixels, S side of the square crop.
Boxes are (left, top, right, bottom) as fractions of the original image. Maps are [.., h, w], row 0 at the top.

For use in other training loops: LabelMaps (reads label maps from disk by key), RandomResizedCropWithBox (torchvision's
transform, which also returns the CropBox), PooledTargets (any ImageFolder with the target of each crop), and what they
are made of: random_crop_box, pool_scores, relabel_target, TargetMaker.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

_PUBLIC = {
    "CropBox": "relabel.crop_box",
    "LabelMap": "relabel.label_map",
    "LabelMaps": "relabel.stores.store",
    "PooledTargets": "relabel.data.pooled_targets",
    "RandomResizedCropWithBox": "relabel.data.pooled_targets",
    "TargetMaker": "relabel.targets",
    "plot_label_map": "relabel.figures.one_map",
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
    try:
        return getattr(import_module(_PUBLIC[name]), name)
    except ImportError as error:
        raise _explained(error) from error


def _explained(error: ImportError) -> ImportError:
    """Return the error, or a clearer one where Windows or a module of the same name is the reason."""
    missing = (error.name or "").partition(".")[0]
    ours, found = Path(__file__).parents[1] / missing, getattr(sys.modules.get(missing), "__path__", [])
    if missing == "fcntl":
        return ImportError("label maps cannot be read on Windows; use the Windows Subsystem for Linux (docs/faq.md)")
    if missing in ("utils", "models") and str(ours) not in found:
        return ImportError(
            f"found another module named {missing!r} ({sys.modules[missing]}); expected the one of {ours.parent}. "
            f"Rename yours, or move it into a package of its own (docs/python.md)"
        )
    return error
