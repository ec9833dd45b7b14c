"""What the students of a reproduction achieved: measured, as a table, as JSON, as pictures."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from models.build import load_weights
from relabel.config.load import load_config
from relabel.evaluation.results import VAL, accuracy_results
from relabel.evaluation.true_labels import read_true_labels
from relabel.figures.curves import draw_results
from relabel.figures.label_maps import draw_curves
from relabel.training.build import build_model, list_split, test_loader
from relabel.training.validation import predict_classes
from utils.checkpoint import LAST, load_checkpoint
from utils.estimates import Estimate
from utils.files import write_json
from utils.precision import Precision
from utils.processes.distributed import Process
from utils.run_log import CONFIG, environment, read_metrics

FIGURES = {"top-1 %": "top1_percent", "multi-label %": "top1_in_set_percent", "mAP %": "map_percent"}
CURVES = 2  # rows whose curves are drawn; more hide each other


@dataclass(frozen=True, slots=True)
class Student:
    """How one did on the validation scenes: percentages, the run's folder, and the seconds it trained."""

    row: str
    seed: int
    top1_percent: float
    top1_in_set_percent: float
    map_percent: float
    seconds: float
    run: str


def measure(folder: Path, scenes: Path, row: str, seed: int) -> Student:
    """Evaluate the last weights of a run on the validation scenes, with the true labels of every picture in them."""
    config = load_config(str(folder / CONFIG), {})
    process = Process(0, 1, 0, 1, torch.device("cpu"))
    images = list_split(config, "val")
    precision = Precision(config.compute.opt_level, process.device)
    model = build_model(config, len(images.class_names), precision)
    load_weights(model, load_checkpoint(folder / LAST)["state_dict"])
    batches = test_loader(config, images, process)()
    title = f"{row}, seed {seed}"
    found = predict_classes({title: model}, images, batches, precision, process, title=title, keep_probabilities=True)
    truth, _ = read_true_labels(scenes / "val.json", images)
    results = [*accuracy_results(VAL, found[title], ""), *truth.results(found[title])]
    values = {result.metric: result.value for result in results}
    figures = {name: values[name] for name in FIGURES.values()}
    return Student(row, seed, **figures, seconds=read_metrics(folder)[-1]["elapsed_s"], run=folder.name)


def by_row(students: Sequence[Student]) -> dict[str, list[Student]]:
    """Row -> its students."""
    rows: dict[str, list[Student]] = {}
    for student in students:
        rows.setdefault(student.row, []).append(student)
    return rows


def gains(students: Sequence[Student]) -> dict[str, np.ndarray]:
    """Row -> float [seeds]; its top-1 minus that of the first row with the same seed, percentage points."""
    rows = by_row(students)
    first = {student.seed: student.top1_percent for student in next(iter(rows.values()))}
    return {row: np.array([s.top1_percent - first[s.seed] for s in mine]) for row, mine in rows.items()}


def show_results(students: Sequence[Student], out: Path, root: Path) -> None:
    """Write results.json, rows.png and curves.png, print the table and where everything is.

    Args:
        students: every row with the same seeds; the first row is what the others are compared with.
        out: folder of the reproduction.
        root: paths below it are printed short.
    """
    rows = by_row(students)
    runs = [asdict(student) for student in students]
    threads = None if torch.cuda.is_available() else 1
    content = {"runs": runs, "rows": _summary(students), "environment": environment(), "threads_per_training": threads}
    write_json(out / "results.json", content)
    draw_results(out / "rows.png", {row: [student.top1_percent for student in mine] for row, mine in rows.items()})
    curves = {row: read_metrics(out / mine[0].run) for row, mine in rows.items()}
    draw_curves(out / "curves.png", dict(list(curves.items())[:CURVES]))
    _print_table(students)
    names = {"pictures": "scenes.png", "": "curves.png", " ": "rows.png", "numbers": "results.json", "runs": "*-seed*"}
    for what, name in names.items():
        print(f"{what:<10}{str(out / name).removeprefix(f'{root}/')}")


def _summary(students: Sequence[Student]) -> list[dict[str, object]]:
    """Per row: mean and standard deviation of each figure, and the paired difference to the first row."""
    summary: list[dict[str, object]] = []
    rows = by_row(students)
    for row, gain in gains(students).items():
        entry: dict[str, object] = {"row": row, "seeds": len(gain)}
        for name in FIGURES.values():
            values = [getattr(student, name) for student in rows[row]]
            entry[name] = {"mean": float(np.mean(values)), "sd": _deviation(values)}
        difference = Estimate.mean(gain)
        entry["top1_gain_points"] = asdict(difference) if difference else {"value": float(gain.mean())}
        summary.append(entry)
    return summary


def _print_table(students: Sequence[Student]) -> None:
    rows, seeds = by_row(students), len({student.seed for student in students})
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, title_justify="left", caption_justify="left")
    table.title = f"\nlast weights on the validation scenes, {seeds} seed{'s' if seeds > 1 else ''}"
    table.caption = f"gain: of top-1 over {students[0].row} with the same seed, in points"
    if seeds > 1:
        table.title += ", mean ± standard deviation"
        table.caption += "; mean ± half of its 95 % interval"
    table.add_column("supervision", no_wrap=True)
    for title in (*FIGURES, "gain"):
        table.add_column(title, justify="right", no_wrap=True)
    for row, gain in gains(students).items():
        figures = [_mean_and_deviation([getattr(s, name) for s in rows[row]]) for name in FIGURES.values()]
        table.add_row(row, *figures, "" if row == students[0].row else _gain(gain))
    Console().print(table)


def _gain(gain: np.ndarray) -> str:
    """+9.8 ± 1.2: the mean over seeds, with half of its 95 % interval where there are several."""
    difference = Estimate.mean(gain)
    return f"{gain.mean():+.1f}" + (f" ± {difference.high95 - difference.value:.1f}" if difference else "")


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = _deviation(values)
    return f"{np.mean(values):.1f}" + ("" if deviation is None else f" ± {deviation:.1f}")


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
