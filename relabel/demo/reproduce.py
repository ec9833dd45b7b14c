"""The paper's comparison in small: every row is a recipe, and every step a command that you could type.

OUT/scenes          the images, where they are scenes
OUT/annotator       the teacher, where it is trained
OUT/labels          label maps by a strong teacher
OUT/labels-weak     the same by a weak teacher
OUT/labels*.json    what `check` found in them
OUT/agreeing.txt    the list of images for label cleaning
OUT/RECIPE-seedN    one training run each
OUT/results.json    the results
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from models.recorded import DATA_CONFIG
from relabel.config.load import read_config
from relabel.data.sources import open_split
from relabel.demo.experiments import AGREEING, CLEANING, EXPERIMENTS, LABELS, ROOT, WEAK, WEAK_LABELS, Experiment, Row
from relabel.demo.results import measure, show_results
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.processes.commands import Job, run_command, run_side_by_side, stop_once
from utils.processes.distributed import available_cores
from utils.run_log import METRICS

TEACHER_SEED = 1  # of the teacher's scenes; the students' scenes have seed 0
TRAIN_SCENES, VAL_SCENES = 6000, 1500
MOST_AT_ONCE = 16  # training runs; each takes half a gigabyte
GPU_CORES, GPU_BYTES = 3, 6 << 30  # of each training run, where several share a GPU
SHOWN = 4  # images with their label maps, in a figure


def reproduce(
    on: str,
    images: Path | None = None,
    out: Path | None = None,
    num_rows: int | None = None,
    seeds: int | None = None,
    epochs: int | None = None,
    train: int | None = None,
    val: int | None = None,
) -> None:
    """Make label maps, train one student per row and seed, then print tables and draw figures.

    Finished steps are not repeated: the same command, or one with more rows or seeds, continues.

    Args:
        on: key of EXPERIMENTS.
        images: small images for photo scenes, as in `FolderImages`; or Imagewoof, as for data.data_path.
        out: folder of all outputs; None: runs/ and the experiment's name.
        num_rows: number of rows, from the first; None: all.
        seeds: students per row, with seeds 0, 1, ...; None: the experiment's.
        epochs: of each student; None: the recipes'.
        train, val: scenes per split; a teacher that is not shipped is trained on 8 / 3 times as many.

    Raises:
        UserError: the arguments do not fit the experiment.
    """
    experiment = EXPERIMENTS[on]
    _check_arguments(on, images, num_rows, [train, val])
    stop_once()  # so that no training run is left behind
    rows, out = experiment.rows[:num_rows], (out or ROOT / "runs" / on).resolve()
    steps = Steps(experiment, out, images and images.absolute(), {"optim.epochs": str(epochs)} if epochs else {})
    steps.make_images(train or TRAIN_SCENES, val or VAL_SCENES)
    steps.annotate(LABELS, experiment.teacher)
    if CLEANING in rows:
        flags = ("--images", steps.images_of("train"), "--form", "agreeing")
        _relabel("export-labels", out / LABELS, out / AGREEING, *flags)
    students = [(row, seed) for seed in range(seeds or experiment.seeds) for row in rows]
    train_all(steps.jobs([(row, seed) for row, seed in students if row is not WEAK]))
    if WEAK in rows:
        steps.annotate(WEAK_LABELS, experiment.weak_teacher)
        train_all(steps.jobs([(row, seed) for row, seed in students if row is WEAK]))
    truth = out / "scenes" / "val.json" if experiment.of_scenes else None
    measured = [measure(steps.folder(row, seed), truth, row.title, seed) for row, seed in students]
    steps.show()
    show_results(measured, out, ROOT, on, steps.settings)


def _check_arguments(on: str, images: Path | None, num_rows: int | None, scenes: list[int | None]) -> None:
    """Check what the command line alone cannot. UserError if something does not fit the experiment."""
    experiment = EXPERIMENTS[on]
    if num_rows and num_rows > len(experiment.rows):
        expected = f"expected at most {len(experiment.rows)}. Leave it out for all of them"
        raise UserError(f"found --rows {num_rows}; {expected}")
    if on == "digits" and images:
        raise UserError(f"--images {images}: the digits are scikit-learn's. Leave it out, or give --on photos too")
    if on != "digits" and not images:
        wanted = "Imagewoof: its tar files, or train/CLASS and val/CLASS"
        if experiment.of_scenes:
            wanted = "small photos, in train/CLASS and val/CLASS"
        raise UserError(f"--on {on} needs images; expected a folder of {wanted}. Give --images FOLDER")
    if any(scenes) and not experiment.of_scenes:
        raise UserError(f"--train and --val are numbers of scenes, and --on {on} has none. Leave them out")


def make_digits_teacher(file: Path, work: Path, train: int, val: int) -> None:
    """Train the teacher that is shipped for the digits, and write its weights and class names without the optimizer.

    Args:
        file: the checkpoint to write.
        work: folder for its scenes and training run.
        train, val: scenes per split.
    """
    state = load_checkpoint(Steps(EXPERIMENTS["digits"], work.resolve()).train_teacher(train, val))
    save_checkpoint(
        {key: state[key] for key in ("arch", "class_names", "accuracy", "epoch", "state_dict", DATA_CONFIG)}, file
    )
    print(f"{file}: top-1 {state['accuracy']:.2f} % on the validation scenes")


@dataclass(frozen=True, slots=True)
class Steps:
    """The commands of a reproduction; `out` and `images` are absolute, because commands run in the project's folder.

    Fields:
        experiment, out, images: as in `reproduce`.
        more: config key -> value, for all students, in addition to the experiment's own.
    """

    experiment: Experiment
    out: Path
    images: Path | None = None
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, str]:
        """Config keys that all students have instead of those of their recipes."""
        return {**self.experiment.overrides, **self.more}

    @property
    def data(self) -> Path:
        """The data of the students, as for data.data_path."""
        return self.out / "scenes" if self.experiment.of_scenes else self.images or self.out

    def images_of(self, split: str) -> str:
        """Return the images of train or val as the tools take them."""
        return str(open_split(str(self.data), split).root)

    def make_images(self, train: int, val: int) -> None:
        """Make scenes, and train a teacher on others, where the experiment has them."""
        if self.experiment.of_scenes:
            self._scenes("scenes", 0, train, val)
        if self.experiment.trains_teacher:
            self.train_teacher(train * 8 // 3, val)

    def train_teacher(self, train: int, val: int, folder: str = "annotator", **settings: object) -> Path:
        """Train a teacher on scenes that the students never see; return its last checkpoint."""
        scenes = self.out / "annotator-scenes"
        self._scenes(scenes.name, TEACHER_SEED, train, val)
        flags = {"data.data_path": scenes, "util.run_dir": self.out / folder, **settings}
        run_command(self._training("annotator", flags), ROOT)
        return self.out / folder / LAST

    def annotate(self, labels: str, teacher: tuple[str, ...], split: str = "train") -> None:
        """Make label maps, check them, and keep the report; checked once."""
        images, report = self.images_of(split), self.out / f"{labels}.json"
        flags = [flag.format(out=self.out) for flag in teacher]
        _relabel("annotate", images, self.out / labels, *flags, "--num_workers", available_cores())
        if not report.exists():
            try:
                _relabel("check", self.out / labels, "--images", images, "--json", report)
            except SystemExit as ended:  # status 1: it found problems; training refuses the maps if they teach nothing
                if ended.code != 1 or not report.exists():
                    raise

    def folder(self, row: Row, seed: int) -> Path:
        """Return the folder of a training run."""
        return self.out / f"{row.recipe}-seed{seed}"

    def jobs(self, students: list[tuple[Row, int]]) -> list[Job]:
        """Return the training runs of students, given by row and seed."""
        return [self._job(row, seed) for row, seed in students]

    def show(self) -> None:
        """Draw the label maps of an image of each of the first classes."""
        images = open_split(str(self.data), "train")
        first = np.unique(images.labels, return_index=True)[1][:SHOWN]
        shown = [images.name(row) for row in first.tolist()]
        flags = ("--labels", self.out / LABELS, "--images", images.root, "--out", self.out / "maps.png")
        _relabel("show", *shown, *flags)

    def _scenes(self, name: str, seed: int, train: int, val: int) -> None:
        source = ("scenes", self.images) if self.images else ("digits",)
        _relabel(*source, "--out", self.out / name, "--seed", seed, "--train", train, "--val", val)

    def _job(self, row: Row, seed: int) -> Job:
        folder = self.folder(row, seed)
        inputs = {key: self.out / name for key, name in row.inputs.items()}
        run = {"compute.seed": seed, "compute.num_workers": at_once()[1], "util.run_dir": folder}
        words = self._training(row.recipe, {"data.data_path": self.data, **inputs, **self.settings, **run})
        epochs = read_config(self._config(row.recipe), self.settings).optim.epochs
        return Job(f"{row.title}, seed {seed}", words, folder.with_suffix(".log"), lambda: _epochs(folder), epochs)

    def _config(self, recipe: str) -> str:
        return str(ROOT / "configs" / self.experiment.name / f"{recipe}.yaml")

    def _training(self, recipe: str, flags: Mapping[str, object]) -> list[str]:
        words = [word for key, value in flags.items() for word in (f"--{key}", str(value))]
        return [sys.executable, "main.py", "--config-file-path", self._config(recipe), *words]


def train_all(jobs: list[Job]) -> None:
    """Run trainings, as many at once as is fastest: see `at_once`."""
    runs, workers = at_once()
    with_workers = f", each with {workers} workers" if workers else ""
    print(f"\n{len(jobs)} training runs, {min(runs, len(jobs))} at once{with_workers}", flush=True)
    run_side_by_side(jobs, ROOT, runs, None if torch.cuda.is_available() else 1, "epochs")


def at_once() -> tuple[int, int]:
    """Return how many trainings run at a time, and the workers that load images for each.

    On a CPU, one for each core, which trains and loads. Networks and images are so small that one training leaves a
    large GPU idle: there, as many as the cores can feed and its memory holds.
    """
    cores = available_cores()
    if not torch.cuda.is_available():
        return min(cores, MOST_AT_ONCE), 0
    runs = max(1, min(cores // GPU_CORES, torch.cuda.mem_get_info()[0] // GPU_BYTES))
    return runs, cores // runs


def _relabel(*words: object) -> None:
    run_command([sys.executable, "-m", "relabel", *map(str, words)], ROOT)


def _epochs(folder: Path) -> int:
    """Return the number of epochs that a run has validated so far."""
    metrics = folder / METRICS
    return metrics.read_text().count('{"event": "validation"') if metrics.exists() else 0
