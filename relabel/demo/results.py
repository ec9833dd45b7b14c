"""Results of a reproduction: the evaluation of each student, and a table, JSON and figures of all."""

from collections.abc import Sequence
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

METRICS = {"top-1 %": "top1_percent", "multi-label %": "top1_in_set_percent", "mAP %": "map_percent"}
CURVES = 2  # number of rows with curves; more would hide each other


@dataclass(frozen=True, slots=True)
class Student:
    """A trained student: its values on the validation scenes in percent, seconds of training, and run folder."""

    row: str
    seed: int
    top1_percent: float
    top1_in_set_percent: float
    map_percent: float
    seconds: float
    run: str


def measure(folder: Path, scenes: Path, row: str, seed: int) -> Student:
    """Evaluate the last weights of a run on the validation scenes, with the true labels of all objects in them."""
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
    )
    truth, _ = read_true_labels(scenes / "val.json", images)
    results = [*accuracy_results(VAL, found[title], ""), *truth.results(found[title])]
    values = {result.metric: result.value for result in results if result.metric in METRICS.values()}
    return Student(row, seed, **values, seconds=read_metrics(folder)[-1]["elapsed_s"], run=folder.name)


def by_row(students: Sequence[Student]) -> dict[str, list[Student]]:
    """Group students by row, in order."""
    return {row: [s for s in students if s.row == row] for row in dict.fromkeys(s.row for s in students)}


def gains(students: Sequence[Student]) -> dict[str, np.ndarray]:
    """Return, for each row, float [seeds]: top-1 minus that of the first row with the same seed, percentage points."""
    rows = by_row(students)
    first = {student.seed: student.top1_percent for student in next(iter(rows.values()))}
    return {row: np.array([s.top1_percent - first[s.seed] for s in members]) for row, members in rows.items()}


def show_results(students: Sequence[Student], out: Path, root: Path) -> None:
    """Write results.json, rows.png and curves.png; print the table and the paths.

    Args:
        students: the same seeds for every row; the others are compared with the first row.
        out: folder of the reproduction.
        root: paths below it are printed relative to it.
    """
    rows, summary = by_row(students), _summary(students)
    threads = None if torch.cuda.is_available() else 1
    content = {"runs": [asdict(student) for student in students], "rows": summary}
    write_json(out / "results.json", content | {"environment": environment(), "threads_per_training": threads})
    draw_results(out / "rows.png", {row: [student.top1_percent for student in rows[row]] for row in rows})
    draw_curves(out / "curves.png", {row: read_metrics(out / rows[row][0].run) for row in list(rows)[:CURVES]})
    _print_table(summary)
    kinds = {"scenes.png": "figures", "curves.png": "", "rows.png": "", "results.json": "numbers", "*-seed*": "runs"}
    for name, kind in kinds.items():
        print(f"{kind:<9}{str(out / name).removeprefix(f'{root}/')}")


def _summary(students: Sequence[Student]) -> list[dict[str, Any]]:
    """Return, for each row, mean and standard deviation of each metric, and the gain over the first row."""
    summary = []
    for row, gain in gains(students).items():
        entry: dict[str, Any] = {"row": row, "seeds": len(gain)}
        for name in METRICS.values():
            values = [getattr(student, name) for student in by_row(students)[row]]
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
            entry[name] = {"mean": float(np.mean(values)), "sd": deviation}
        interval = Estimate.mean(gain)
        entry["top1_gain_points"] = asdict(interval) if interval else {"value": float(gain.mean())}
        summary.append(entry)
    return summary


def _print_table(summary: Sequence[dict[str, Any]]) -> None:
    seeds, first = summary[0]["seeds"], summary[0]["row"]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left", caption_justify="left")
    of_seeds = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ± standard deviation"
    table.title = f"\nlast weights on the validation scenes, {of_seeds}"
    interval = "" if seeds == 1 else "; mean ± half of its 95 % interval"
    table.caption = f"gain: of top-1 over {first} with the same seed, in points{interval}"
    for title in ("supervision", *METRICS, "gain"):
        table.add_column(title, justify="left" if title == "supervision" else "right", no_wrap=True)
    for entry in summary:
        cells = [_cell(entry[name]["mean"], entry[name]["sd"]) for name in METRICS.values()]
        gain = entry["top1_gain_points"]
        half = gain["high95"] - gain["value"] if seeds > 1 else None
        table.add_row(entry["row"], *cells, "" if entry is summary[0] else _cell(gain["value"], half, "+"))
    Console().print(table)


def _cell(value: float, spread: float | None, sign: str = "") -> str:
    return f"{value:{sign}.1f}" if spread is None else f"{value:{sign}.1f} ± {spread:.1f}"
