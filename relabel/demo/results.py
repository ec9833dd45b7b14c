"""Results of a reproduction: the evaluation of each student, and tables, JSON and figures of all."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from models.classifier import open_weights
from relabel.config.load import load_config
from relabel.evaluation.results import VAL, accuracy_results
from relabel.evaluation.true_labels import read_true_labels
from relabel.figures.curves import draw_curves, draw_results
from relabel.training.build import eval_loader, list_split
from relabel.training.network import center_crop, evaluation_input
from relabel.training.validation import predict_classes
from utils.checkpoint import LAST
from utils.estimates import Estimate
from utils.files import write_json
from utils.precision import Precision
from utils.processes.distributed import Process
from utils.run_log import CONFIG, environment, read_metrics

TOP1 = "top1_percent"
METRICS = {"top-1 %": TOP1, "multi-label %": "top1_in_set_percent", "mAP %": "map_percent"}
CURVES = 2  # number of rows with curves; more would hide each other


@dataclass(frozen=True, slots=True, eq=False)
class Student:
    """A trained student.

    Fields:
        row, seed: of the comparison.
        values: metric -> value on the validation images, in percent.
        correct: bool [N]; which of these images it classifies correctly.
        seconds: of training.
        run: name of its folder.
    """

    row: str
    seed: int
    values: Mapping[str, float]
    correct: np.ndarray
    seconds: float
    run: str

    def as_record(self) -> dict[str, Any]:
        """Return plain values for JSON, without those of each image."""
        return {"row": self.row, "seed": self.seed, **self.values, "seconds": self.seconds, "run": self.run}


def measure(folder: Path, truth_file: Path | None, row: str, seed: int) -> Student:
    """Evaluate the last weights of a run on its validation images.

    Args:
        folder: of the run.
        truth_file: true labels of all objects in the images, for the metrics of several labels; None: not known.
        row, seed: of the comparison.
    """
    config = load_config(str(folder / CONFIG), {})
    process = Process(0, 1, 0, 1, torch.device("cpu"))
    images = list_split(config, "val")
    precision = Precision(config.compute.opt_level, process.device)
    weights = open_weights(None, str(folder / LAST))
    data_config = evaluation_input(config, weights)
    model = weights.build("model", data_config, "--model.arch", "--data.test_size")
    batches = eval_loader(config, images, process, center_crop(data_config))()
    title = f"{row}, seed {seed}"
    found = predict_classes(
        {title: model}, images, batches, precision, process, data_config, title=title, keep_probabilities=True
    )[title]
    results = accuracy_results(VAL, found, "")
    if truth_file:
        results += read_true_labels(truth_file, images)[0].results(found)
    values = {result.metric: result.value for result in results if result.metric in METRICS.values()}
    return Student(row, seed, values, found.correct, read_metrics(folder)[-1]["elapsed_s"], folder.name)


def by_row(students: Sequence[Student]) -> dict[str, list[Student]]:
    """Group students by row, in order."""
    return {row: [s for s in students if s.row == row] for row in dict.fromkeys(s.row for s in students)}


def gains(students: Sequence[Student]) -> dict[str, np.ndarray]:
    """Return, for each row, float [seeds, N]: 100 x (correct - correct in the first row with the same seed).

    The mean over the images is the gain of top-1 in percentage points.
    """
    rows = by_row(students)
    first = {student.seed: student.correct for student in next(iter(rows.values()))}
    return {
        row: np.stack([100.0 * s.correct - 100.0 * first[s.seed] for s in members]) for row, members in rows.items()
    }


def show_results(
    students: Sequence[Student], out: Path, root: Path, experiment: str, settings: Mapping[str, str]
) -> None:
    """Write results.json, rows.png and curves.png; print the tables and the paths.

    Args:
        students: the same seeds for every row; the others are compared with the first row.
        out: folder of the reproduction.
        root: paths below it are printed relative to it.
        experiment: its name.
        settings: config keys in which all students differ from their recipes.
    """
    rows, summary = by_row(students), summarise(students)
    threads = None if torch.cuda.is_available() else 1
    content = {"experiment": experiment, "settings": settings, "validation_images": len(students[0].correct)}
    content |= {"runs": [student.as_record() for student in students], "rows": summary}
    write_json(out / "results.json", content | {"environment": environment(), "threads_per_training": threads})
    draw_results(out / "rows.png", {row: [s.values[TOP1] for s in rows[row]] for row in rows})
    draw_curves(out / "curves.png", {row: read_metrics(out / rows[row][0].run) for row in list(rows)[:CURVES]})
    _print_tables(summary, experiment, len(students[0].correct), settings)
    kinds = {"maps.png": "figures", "curves.png": "", "rows.png": "", "results.json": "numbers", "*-seed*": "runs"}
    for name, kind in kinds.items():
        print(f"{kind:<9}{str(out / name).removeprefix(f'{root}/')}")


def summarise(students: Sequence[Student]) -> list[dict[str, Any]]:
    """Return, for each row, mean and standard deviation of each metric, and the gain in top-1 over the first row.

    The gain has two 95 % intervals: over the seeds, as other training runs would differ; and over the images, paired
    and averaged over the seeds, as the same networks would differ on other images.
    """
    summary = []
    for row, gain in gains(students).items():
        members = by_row(students)[row]
        entry: dict[str, Any] = {"row": row, "seeds": len(members)}
        for name in members[0].values:
            values = [student.values[name] for student in members]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            entry[name] = {"mean": float(np.mean(values)), "sd": deviation}
        over_seeds, over_images = Estimate.mean(gain.mean(axis=1)), Estimate.mean(gain.mean(axis=0))
        entry["top1_gain_points"] = asdict(over_seeds) if over_seeds else {"value": float(gain.mean())}
        entry["top1_gain_points_over_images"] = asdict(over_images) if over_images else None
        summary.append(entry)
    return summary


def _print_tables(summary: Sequence[dict[str, Any]], experiment: str, images: int, settings: Mapping[str, str]) -> None:
    seeds, first = summary[0]["seeds"], summary[0]["row"]
    metrics = {title: name for title, name in METRICS.items() if name in summary[0]}
    of_seeds = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ± standard deviation"
    console = Console()
    if settings:
        changed = ", ".join(f"{key} {value}" for key, value in settings.items())
        console.print(f"\nnot as the recipes say: {changed}", highlight=False)
    console.print(f"\n{experiment}: last weights on {images:,} validation images, {of_seeds}", highlight=False)
    table = _table(metrics)
    for entry in summary:
        table.add_row(entry["row"], *(_cell(**entry[name]) for name in metrics.values()))
    console.print(table)
    if len(summary) > 1:
        console.print(f"\ngain of top-1 over {first} with the same seed, percentage points", highlight=False)
        table = _table(("mean", "95 % over seeds", "95 % over images"))
        for entry in summary[1:]:
            gain, of_images = entry["top1_gain_points"], entry["top1_gain_points_over_images"]
            table.add_row(entry["row"], f"{gain['value']:+.1f}", _interval(gain), _interval(of_images))
        console.print(table)


def _table(headings: Iterable[str]) -> Table:
    """Make an empty table with a line for each kind of supervision."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("supervision", no_wrap=True)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _cell(mean: float, sd: float | None) -> str:
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} ± {sd:.1f}"


def _interval(gain: Mapping[str, float] | None) -> str:
    return f"{gain['low95']:+.1f} to {gain['high95']:+.1f}" if gain and "low95" in gain else "one seed"
