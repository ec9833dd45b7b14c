"""The paper's comparison on scenes: every row is a recipe, and every step a command that you could type.

OUT/scenes          the images
OUT/labels          their label maps, by a strong teacher
OUT/labels-weak     the same by a weak teacher: the first student of original labels
OUT/agreeing.txt    the list of images for label cleaning
OUT/RECIPE-seedN    one training run each
OUT/results.json    the results
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from models.recorded import DATA_CONFIG
from relabel.config.load import read_config
from relabel.demo.results import measure, show_results
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.processes.commands import Job, run_command, run_side_by_side, stop_once
from utils.processes.distributed import available_cores
from utils.run_log import METRICS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED_TEACHER = ROOT / "configs" / "digits" / "annotator.pth"
TEACHER_SEED = 1  # of the teacher's scenes; the students' scenes have seed 0
MOST_AT_ONCE = 16  # training runs; each takes half a gigabyte
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
WEAK = Row("ReLabel, weak annotator", "relabel_weak_annotator", {"data.relabel.path": WEAK_LABELS})


@dataclass(frozen=True, slots=True)
class Experiment:
    """A comparison on one kind of scenes.

    Fields:
        name: folder of its recipes in configs/.
        rows: kinds of supervision; all are compared with the first.
        teacher_size: ROWSxCOLUMNS that a scene is squashed to, for maps of 4 x 5 cells, each about as wide as an image.
    """

    name: str
    rows: tuple[Row, ...]
    teacher_size: str


DIGITS = Experiment("digits", (ORIGINAL, RELABEL, SMOOTHING, CLEANING, GLOBAL, SINGLE, CUTMIX, AXES, WEAK), "64x80")
PHOTOS = Experiment("photos", (ORIGINAL, RELABEL, SMOOTHING, AXES), "128x160")


def reproduce(out: Path | None, images: Path | None, num_rows: int | None, seeds: int, train: int, val: int) -> None:
    """Make scenes and label maps, train one student per row and seed, then print a table and draw figures.

    Finished steps are not repeated: the same command, or one with more rows or seeds, continues.

    Args:
        out: folder of all outputs; None: runs/ and the experiment's name.
        images: folder of small images for the scenes; None: scikit-learn's digits and the teacher shipped for them.
        num_rows: number of rows, from the first; None: all.
        seeds: students per row, with seeds 0, 1, ...
        train, val: scenes per split; a teacher that is not shipped is trained on 8 / 3 times as many.
    """
    experiment = PHOTOS if images else DIGITS
    rows = experiment.rows[:num_rows]
    if num_rows and num_rows > len(rows):
        raise UserError(f"found --rows {num_rows}; expected at most {len(rows)}. Leave it out for all of them")
    stop_once()  # so that no training run is left behind
    out = (out or ROOT / "runs" / experiment.name).resolve()
    steps = _Steps(experiment, out, images and images.resolve())
    steps.scenes("scenes", 0, train, val)
    steps.annotate(LABELS, steps.teacher(train * 8 // 3, val) if images else SHIPPED_TEACHER)
    scenes = out / "scenes" / "train"
    if CLEANING in rows:
        _relabel("export-labels", out / LABELS, out / AGREEING, "--images", scenes, "--form", "agreeing")
    students = [(row, seed) for seed in range(seeds) for row in rows]
    steps.train([(row, seed) for row, seed in students if row is not WEAK])
    if WEAK in rows:
        steps.annotate(WEAK_LABELS, steps.folder(ORIGINAL, 0) / LAST)
        steps.train([(row, seed) for row, seed in students if row is WEAK])
    measured = [measure(steps.folder(row, seed), out / "scenes", row.title, seed) for row, seed in students]
    shown = [min(folder.iterdir()).relative_to(scenes) for folder in sorted(scenes.iterdir())[:4]]
    _relabel("show", *shown, "--labels", out / LABELS, "--images", scenes, "--out", out / "scenes.png")
    show_results(measured, out, ROOT)


def make_digits_teacher(file: Path, work: Path, train: int, val: int) -> None:
    """Train the teacher that is shipped for the digits, and write its weights and class names without the optimizer.

    Args:
        file: the checkpoint to write.
        work: folder for its scenes and training run.
        train, val: scenes per split.
    """
    state = load_checkpoint(_Steps(DIGITS, work.resolve(), None).teacher(train, val))
    save_checkpoint(
        {key: state[key] for key in ("arch", "class_names", "accuracy", "epoch", "state_dict", DATA_CONFIG)}, file
    )
    print(f"{file}: top-1 {state['accuracy']:.2f} % on the validation scenes")


@dataclass(frozen=True, slots=True)
class _Steps:
    """The commands of a reproduction; `out` and `images` are absolute, because commands run in the project's folder."""

    experiment: Experiment
    out: Path
    images: Path | None

    def scenes(self, name: str, seed: int, train: int, val: int) -> None:
        source = ("scenes", self.images) if self.images else ("digits",)
        _relabel(*source, "--out", self.out / name, "--seed", seed, "--train", train, "--val", val)

    def teacher(self, train: int, val: int) -> Path:
        """Train a teacher on scenes that the students never see; return its last checkpoint."""
        scenes, folder = self.out / "annotator-scenes", self.out / "annotator"
        self.scenes(scenes.name, TEACHER_SEED, train, val)
        run_command(self._training("annotator", {"data.data_path": scenes, "util.run_dir": folder}), ROOT)
        return folder / LAST

    def annotate(self, labels: str, weights: Path) -> None:
        size = ("--size", self.experiment.teacher_size, "--top_k", 5)
        _relabel("annotate", self.out / "scenes" / "train", self.out / labels, "--weights", weights, *size)

    def folder(self, row: Row, seed: int) -> Path:
        return self.out / f"{row.recipe}-seed{seed}"

    def train(self, students: list[tuple[Row, int]]) -> None:
        """Train all students; on a CPU, as many at once as there are cores, with one thread each, which is fastest."""
        jobs = [self._job(row, seed) for row, seed in students]
        on_gpu = torch.cuda.is_available()
        at_once = 1 if on_gpu else min(available_cores(), MOST_AT_ONCE)
        print(f"\n{len(jobs)} training runs, {at_once} at once", flush=True)
        run_side_by_side(jobs, ROOT, at_once, None if on_gpu else 1, "epochs")

    def _job(self, row: Row, seed: int) -> Job:
        folder = self.folder(row, seed)
        flags = {"data.data_path": self.out / "scenes"} | {key: self.out / name for key, name in row.inputs.items()}
        words = self._training(row.recipe, flags | {"compute.seed": seed, "util.run_dir": folder})
        if not torch.cuda.is_available():
            words += ["--compute.num_workers", "0"]  # the core is busy with training
        epochs = read_config(self._config(row.recipe), {}).optim.epochs
        return Job(f"{row.title}, seed {seed}", words, folder.with_suffix(".log"), lambda: _epochs(folder), epochs)

    def _config(self, recipe: str) -> str:
        return str(ROOT / "configs" / self.experiment.name / f"{recipe}.yaml")

    def _training(self, recipe: str, flags: Mapping[str, object]) -> list[str]:
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "main.py", "--config-file-path", self._config(recipe), *words]


def _relabel(*words: object) -> None:
    run_command([sys.executable, "-m", "relabel", *map(str, words)], ROOT)


def _epochs(folder: Path) -> int:
    """Return the number of epochs that a run has validated so far."""
    metrics = folder / METRICS
    return metrics.read_text().count('{"event": "validation"') if metrics.exists() else 0
