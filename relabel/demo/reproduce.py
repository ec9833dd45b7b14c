"""The evidence: the paper's comparison on scenes. Every row is a recipe, every step a command that anybody can type.

OUT/scenes          the images
OUT/labels          their label maps, by a strong annotator
OUT/labels-weak     the same by a weak one: the first student of original labels
OUT/agreeing.txt    the list of images for label cleaning
OUT/RECIPE-seedN    a training run each
OUT/results.json    the figures
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from relabel.config.schema import SCHEMA
from relabel.demo.results import measure, show_results
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.config.yaml_file import read_config_file
from utils.errors import UserError
from utils.processes.commands import Job, run_command, run_side_by_side, stop_once
from utils.processes.distributed import available_cores
from utils.run_log import METRICS

ROOT = Path(__file__).resolve().parents[2]
SHIPPED_ANNOTATOR = ROOT / "configs" / "digits" / "annotator.pth"
ANNOTATOR_SEED = 1  # of its scenes; the students' are of seed 0
MOST_AT_ONCE = 16  # trainings; each takes half a gigabyte
LABELS, WEAK_LABELS, AGREEING = "labels", "labels-weak", "agreeing.txt"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to train.

    Fields:
        title: in tables and pictures.
        recipe: name of its config.
        inputs: config key -> the file or folder of the reproduction that it points to.
    """

    title: str
    recipe: str
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_weak(self) -> bool:
        """Whether it needs a student of another row first."""
        return WEAK_LABELS in self.inputs.values()


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
        name: of the folder of its recipes.
        rows: what is compared with the first of them.
        annotator_size: ROWSxCOLUMNS that a scene is squashed to: maps of 4 x 5 cells, each about a picture wide.
    """

    name: str
    rows: tuple[Row, ...]
    annotator_size: str


DIGITS = Experiment("digits", (ORIGINAL, RELABEL, SMOOTHING, CLEANING, GLOBAL, SINGLE, CUTMIX, AXES, WEAK), "64x80")
PHOTOS = Experiment("photos", (ORIGINAL, RELABEL, SMOOTHING, AXES), "128x160")


def reproduce(out: Path | None, pictures: Path | None, num_rows: int | None, seeds: int, train: int, val: int) -> None:
    """Scenes, label maps, one student per row and seed; then a table, its JSON, and pictures in `out`.

    Finished steps are not repeated: given again after an interruption, or with more rows or seeds, it goes on.

    Args:
        out: folder of all that is made; None: runs/ and the experiment's name.
        pictures: folder of small pictures for the scenes; None: the embedded digits and their shipped annotator.
        num_rows: rows of the experiment, from the first; None: all.
        seeds: students per row, of the seeds 0, 1, ...
        train, val: scenes of each split; an annotator that is not shipped learns from 8 / 3 of the training scenes.
    """
    experiment = PHOTOS if pictures else DIGITS
    rows = experiment.rows[:num_rows]
    if num_rows and num_rows > len(rows):
        raise UserError(f"found --rows {num_rows}; expected at most {len(rows)}. Leave it out for all of them")
    stop_once()  # so that no training is left behind
    out = (out or ROOT / "runs" / experiment.name).resolve()
    steps = _Steps(experiment, out, pictures and pictures.resolve())
    steps.scenes("scenes", 0, train, val)
    steps.annotate(LABELS, steps.annotator(train * 8 // 3, val) if pictures else SHIPPED_ANNOTATOR)
    if CLEANING in rows:
        steps.list_agreeing()
    students = [(row, seed) for seed in range(seeds) for row in rows]
    steps.train([(row, seed) for row, seed in students if not row.is_weak])
    if WEAK in rows:
        steps.annotate(WEAK_LABELS, steps.folder(ORIGINAL, 0) / LAST)
        steps.train([(row, seed) for row, seed in students if row.is_weak])
    measured = [measure(steps.folder(row, seed), out / "scenes", row.title, seed) for row, seed in students]
    steps.show_scenes()
    show_results(measured, out, ROOT)


def make_digits_annotator(file: Path, work: Path, train: int, val: int) -> None:
    """Make the annotator that the digits come with: weights and class names, without the optimizer.

    Args:
        file: the checkpoint to write.
        work: folder of its scenes and its training run.
        train, val: scenes of each split.
    """
    steps = _Steps(DIGITS, work.resolve(), None)
    state = load_checkpoint(steps.annotator(train, val))
    save_checkpoint({key: state[key] for key in ("arch", "class_names", "accuracy", "epoch", "state_dict")}, file)
    print(f"{file}: top-1 {state['accuracy']:.2f} % on the validation scenes")


@dataclass(frozen=True, slots=True)
class _Steps:
    """The commands of a reproduction; `out` and `pictures` are absolute, since they run in the project's folder."""

    experiment: Experiment
    out: Path
    pictures: Path | None

    def scenes(self, name: str, seed: int, train: int, val: int) -> None:
        source = ("scenes", self.pictures) if self.pictures else ("digits",)
        _relabel(*source, "--out", self.out / name, "--seed", seed, "--train", train, "--val", val)

    def annotator(self, train: int, val: int) -> Path:
        """A machine annotator from scratch, on scenes that the students never see; its last checkpoint."""
        self.scenes("annotator-scenes", ANNOTATOR_SEED, train, val)
        folder = self.out / "annotator"
        run_command(
            self._recipe("annotator", {"data.data_path": self.out / "annotator-scenes", "util.run_dir": folder}), ROOT
        )
        return folder / LAST

    def annotate(self, labels: str, weights: Path) -> None:
        size = ("--size", self.experiment.annotator_size, "--top_k", 5)
        _relabel("annotate", self.out / "scenes" / "train", self.out / labels, "--weights", weights, *size)

    def list_agreeing(self) -> None:
        images = ("--images", self.out / "scenes" / "train")
        _relabel("export-labels", self.out / LABELS, self.out / AGREEING, *images, "--form", "agreeing")

    def folder(self, row: Row, seed: int) -> Path:
        return self.out / f"{row.recipe}-seed{seed}"

    def train(self, students: list[tuple[Row, int]]) -> None:
        """All of them: on a CPU one thread each and as many at once as there are cores, which is the fastest."""
        jobs = [self._job(row, seed) for row, seed in students]
        on_gpu = torch.cuda.is_available()
        at_once = 1 if on_gpu else min(available_cores(), MOST_AT_ONCE)
        print(f"\n{len(jobs)} trainings, {at_once} at once", flush=True)
        run_side_by_side(jobs, ROOT, at_once, None if on_gpu else 1, "epochs")

    def _job(self, row: Row, seed: int) -> Job:
        folder = self.folder(row, seed)
        flags = {"data.data_path": self.out / "scenes"}
        flags |= {key: self.out / name for key, name in row.inputs.items()}
        words = self._recipe(row.recipe, flags | {"compute.seed": seed, "util.run_dir": folder})
        if not torch.cuda.is_available():
            words += ["--compute.num_workers", "0"]  # the core is busy with its own training
        epochs = int(str(read_config_file(self._config(row.recipe), row.recipe, SCHEMA)[0]["optim.epochs"].value))
        return Job(f"{row.title}, seed {seed}", words, folder.with_suffix(".log"), lambda: _epochs(folder), epochs)

    def _config(self, recipe: str) -> Path:
        return ROOT / "configs" / self.experiment.name / f"{recipe}.yaml"

    def _recipe(self, recipe: str, flags: Mapping[str, object]) -> list[str]:
        """main.py on a recipe."""
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "main.py", "--config-file-path", str(self._config(recipe)), *words]

    def show_scenes(self) -> None:
        """The first image of each of the first four classes, with its map and crops."""
        images = self.out / "scenes" / "train"
        folders = sorted(images.iterdir())[:4]
        shown = [min(folder.iterdir()).relative_to(images) for folder in folders]
        _relabel("show", *shown, "--labels", self.out / LABELS, "--images", images, "--out", self.out / "scenes.png")


def _relabel(*words: object) -> None:
    run_command([sys.executable, "-m", "relabel", *map(str, words)], ROOT)


def _epochs(folder: Path) -> int:
    """Epochs that a run has validated so far."""
    try:
        return (folder / METRICS).read_text().count('{"event": "validation"')
    except FileNotFoundError:
        return 0
