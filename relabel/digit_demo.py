"""The demo: label maps, two trainings and their comparison on digit scenes; each step is a command anybody can type.

The machine annotator that comes with it learned from other scenes, with the task's own labels.
"""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from models.build import load_weights
from relabel.build import build_model, list_split, test_loader
from relabel.dataset import ImageList, list_images
from relabel.evaluation import predict
from relabel.object_boxes import read_truth
from relabel.viewer import draw_curves
from utils.checkpoint import LAST, load_checkpoint, save_checkpoint
from utils.config import load_config
from utils.distributed import Place
from utils.errors import EXIT_PREEMPTED
from utils.multi_label_metrics import mean_average_precision, multi_label_accuracy
from utils.precision import Precision
from utils.run_log import CONFIG, read_metrics, write_json

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "configs" / "digits"
ANNOTATOR = RECIPES / "annotator.pth"
ANNOTATOR_SIZE = "64x80"  # rows x columns of the squashed scene: maps of 4 x 5 cells, each about a digit wide
TOP_K = 5
SHOWN_SCENES = 4  # the first of as many classes
SUPERVISIONS = {"original labels": "original", "ReLabel": "relabel"}


@dataclass(frozen=True, slots=True)
class Result:
    """How one student did on the validation scenes; percentages, and the seconds its training took."""

    supervision: str
    seed: int
    top1_percent: float
    multi_label_percent: float
    map_percent: float
    seconds: float


def run_demo(out: Path, seeds: int, train: int, val: int) -> None:
    """Scenes, label maps, one student per supervision and seed; then a table, its JSON, and two pictures in `out`.

    Finished steps are not repeated: given again after an interruption, it goes on.

    Args:
        out: folder of all that is made.
        seeds: students per supervision, of the seeds 0, 1, ...
        train, val: scenes of each split.
    """
    out = out.resolve()  # the commands run in the project's folder, whatever folder this one was called from
    scenes, labels = out / "scenes", out / "labels"
    _relabel("digits", "--out", scenes, "--train", train, "--val", val)
    _relabel(
        *("annotate", scenes / "train", labels, "--weights", ANNOTATOR, "--size", ANNOTATOR_SIZE, "--top_k", TOP_K),
    )
    results: list[Result] = []
    runs: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        for title, recipe in SUPERVISIONS.items():
            folder = out / f"{recipe}-seed{seed}"
            data = ("--data.data_path", scenes) + (("--data.relabel.path", labels) if recipe == "relabel" else ())
            _train(recipe, *data, "--compute.seed", seed, "--util.run_dir", folder)
            results.append(measure(folder, scenes, title, seed))
            runs.setdefault(title, read_metrics(folder))
    write_json(out / "demo.json", [asdict(result) for result in results])
    draw_curves(out / "curves.png", runs)
    shown = [f"digit_{digit}/train_{digit:05d}" for digit in range(SHOWN_SCENES)]
    _relabel("show", *shown, "--labels", labels, "--images", scenes / "train", "--out", out / "scenes.png")
    _print_table(results, len(list_images(scenes / "val")))
    for what, where in (("pictures", "scenes.png"), ("", "curves.png"), ("numbers", "demo.json"), ("runs", "*-seed*")):
        print(f"{what:<10}{_short(str(out / where))}")


def train_annotator(out: Path, work: Path, train: int, val: int) -> None:
    """Make the machine annotator from scratch: scenes of another seed, the task's labels, the project's own training.

    Args:
        out: the checkpoint to write; weights and class names, without the optimizer.
        work: folder of the scenes and the run.
        train, val: scenes of each split.
    """
    work = work.resolve()
    _relabel("digits", "--out", work / "scenes", "--seed", 1, "--train", train, "--val", val)
    _train("annotator", "--data.data_path", work / "scenes", "--util.run_dir", work / "run")
    state = load_checkpoint(work / "run" / LAST)
    save_checkpoint({key: state[key] for key in ("arch", "class_names", "accuracy", "epoch", "state_dict")}, out)
    print(f"{out}: top-1 {state['accuracy']:.2f} % on the validation scenes")


def measure(folder: Path, scenes: Path, supervision: str, seed: int) -> Result:
    """Evaluate the last weights of a run on the validation scenes, with the true labels of every digit in them."""
    config = load_config(str(folder / CONFIG), {})
    place = Place(0, 1, 0, 1, torch.device("cpu"))
    images = list_split(config, "val")
    precision = Precision(config.compute.opt_level, place.device)
    model = build_model(config, len(images.class_names), precision)
    load_weights(model, load_checkpoint(folder / LAST)["state_dict"])
    logits = predict(model, test_loader(config, images, place)(), precision)
    truth = true_labels(images, scenes / "val.json")
    return Result(
        supervision,
        seed,
        top1_percent=100.0 * float((logits.argmax(dim=1).numpy() == images.labels).mean()),
        multi_label_percent=multi_label_accuracy(logits.numpy(), truth),
        map_percent=mean_average_precision(logits.softmax(dim=1).numpy(), truth),
        seconds=read_metrics(folder)[-1]["elapsed_s"],
    )


def true_labels(images: ImageList, truth_file: Path) -> np.ndarray:
    """bool [N, K]; which digits each scene shows."""
    truth = read_truth(truth_file)
    table = np.zeros((len(images), len(images.class_names)), dtype=bool)
    for row in range(len(images)):
        table[row, list(truth[images.name(row)].labels)] = True
    return table


def _relabel(*words: object) -> None:
    _run(sys.executable, "-m", "relabel", *words)


def _train(recipe: str, *flags: object) -> None:
    _run(sys.executable, "main.py", "--config-file-path", RECIPES / f"{recipe}.yaml", *flags)


def _run(*words: object) -> None:
    """Show a command and run it; where it fails it has said why, and its status becomes ours."""
    command = [str(word) for word in words]
    print(f"\n$ {shlex.join(['python', *(_short(word) for word in command[1:])])}", flush=True)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        status = process.wait()
    except KeyboardInterrupt:  # it has heard Ctrl-C itself, and may still be saving
        status = process.wait() or EXIT_PREEMPTED
    if status:
        sys.exit(status)


def _short(word: str) -> str:
    return word.removeprefix(f"{ROOT}/")


def _print_table(results: Sequence[Result], images: int) -> None:
    seeds = len({result.seed for result in results})
    spread = "; mean ± standard deviation over seeds" if seeds > 1 else ""
    table = Table(title=f"\n{images:,} validation scenes, {seeds} seed(s){spread}")
    table.add_column("supervision")
    columns = {
        "top-1 %": "top1_percent",
        "multi-label %": "multi_label_percent",
        "mAP %": "map_percent",
        "seconds": "seconds",
    }
    for title in columns:
        table.add_column(title, justify="right")
    for supervision in SUPERVISIONS:
        mine = [result for result in results if result.supervision == supervision]
        values = [[getattr(result, name) for result in mine] for name in columns.values()]
        table.add_row(supervision, *(_mean_and_spread(column) for column in values))
    Console().print(table)


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{spread}"
