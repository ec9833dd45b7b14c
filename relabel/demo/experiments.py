"""The comparisons: their rows, each of which is a recipe, their teachers and their size."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from utils.checkpoint import LAST

ROOT = Path(__file__).resolve().parents[2]
SHIPPED_TEACHER = ROOT / "configs" / "digits" / "annotator.pth"
LABELS, WEAK_LABELS, AGREEING = "labels", "labels-weak", "agreeing.txt"


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of supervision.

    Fields:
        title: in tables and figures.
        recipe: name of its configuration file.
        inputs: config key -> its value, a file or folder of the reproduction.
    """

    title: str
    recipe: str
    inputs: Mapping[str, str] = field(default_factory=dict)


ON_LABELS = {"data.relabel.path": LABELS}
ORIGINAL = Row("original labels", "original")
RELABEL = Row("ReLabel", "relabel", ON_LABELS)
SMOOTHING = Row("label smoothing 0.1", "label_smoothing")
AXES = Row("ReLabel, axes of 2021", "relabel_axes_2021", ON_LABELS)
CLEANING = Row("label cleaning", "label_cleaning", {"data.keep_list": AGREEING})
GLOBAL = Row("global multi-labels", "global_multi", ON_LABELS)
SINGLE = Row("localized single labels", "localized_single", ON_LABELS)
CUTMIX = Row("ReLabel + CutMix", "relabel_cutmix", ON_LABELS)
ORIGINAL_CUTMIX = Row("original labels + CutMix", "original_cutmix")
WEAK = Row("ReLabel, weak annotator", "relabel_weak_annotator", {"data.relabel.path": WEAK_LABELS})


@dataclass(frozen=True, slots=True)
class Experiment:
    """A comparison on one kind of images.

    Fields:
        name: folder of its recipes in configs/.
        rows: kinds of supervision; all are compared with the first.
        seeds: training runs of each row, unless told otherwise.
        teacher, weak_teacher: flags of `annotate`, with {out} for the folder of the reproduction.
        of_scenes: the images are scenes, made of small ones.
        trains_teacher: the teacher is trained on scenes of its own.
        overrides: config key -> value that replaces the recipes' own, for a comparison in small.
    """

    name: str
    rows: tuple[Row, ...]
    seeds: int
    teacher: tuple[str, ...]
    weak_teacher: tuple[str, ...] = ()
    of_scenes: bool = True
    trains_teacher: bool = False
    overrides: Mapping[str, str] = field(default_factory=dict)


def packaged(arch: str, size: str) -> tuple[str, ...]:
    """Return the flags of `annotate` for a packaged teacher."""
    # In the ten classes: of 1,000, five others fill most cells, and `check` finds worse targets (docs/evidence.md).
    return ("--arch", f"timm/{arch}", "--weights", "packaged", "--size", size, "--only_folders", "true")


# Scenes are squashed to sizes that give maps of 4 x 5 cells, each about as wide as a small image.
_DIGIT_MAPS = ("--size", "64x80", "--top_k", "5")
_FIRST_STUDENT = ("--weights", f"{{out}}/{ORIGINAL.recipe}-seed0/{LAST}")
IMAGEWOOF = Experiment(
    "imagewoof",
    (ORIGINAL, RELABEL, SMOOTHING, GLOBAL, SINGLE, CUTMIX, ORIGINAL_CUTMIX, CLEANING, AXES, WEAK),
    seeds=3,
    teacher=packaged("tf_efficientnet_lite2", "260x260"),
    weak_teacher=packaged("tf_efficientnet_lite0", "224x224"),
    of_scenes=False,
)
IN_SMALL = {  # 43 minutes on two cores that have bfloat16 in hardware, which halves the time
    "model.arch": "timm/resnet10t",
    "data.image_size": "96",
    "data.test_size": "128",
    "optim.epochs": "8",
    "optim.warmup.epochs": "1",
    "optim.batch_size": "64",
    "optim.lr.init": "0.05",
    "compute.opt_level": "bf16",
}
EXPERIMENTS = {
    "digits": Experiment(
        "digits",
        (ORIGINAL, RELABEL, SMOOTHING, CLEANING, GLOBAL, SINGLE, CUTMIX, AXES, WEAK),
        seeds=5,
        teacher=("--weights", str(SHIPPED_TEACHER), *_DIGIT_MAPS),
        weak_teacher=(*_FIRST_STUDENT, *_DIGIT_MAPS),
    ),
    "photos": Experiment(
        "photos",
        (ORIGINAL, RELABEL, SMOOTHING, AXES),
        seeds=3,
        teacher=("--weights", f"{{out}}/annotator/{LAST}", "--size", "128x160", "--top_k", "5"),
        trains_teacher=True,
    ),
    "imagewoof": IMAGEWOOF,
    # The same with a smaller network and fewer epochs, for two CPU cores.
    "imagewoof-small": Experiment(
        "imagewoof",
        IMAGEWOOF.rows[:3],
        seeds=2,
        teacher=(*IMAGEWOOF.teacher, "--opt_level", "bf16"),
        of_scenes=False,
        overrides=IN_SMALL,
    ),
}
