"""The report on a set of label maps: whether they are intact, make good targets and have their axes in order."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relabel.annotation.label_set import LabelSet
from relabel.checks.axes import AxisCheck, Classifier, check_with_boxes, check_with_classifier
from relabel.checks.calibration import TOLERATED_LEAK, Calibration, calibrate
from relabel.checks.crop_quality import PUBLISHED_COVERED_PERCENT, CropQuality, crop_quality
from relabel.checks.integrity import KINDS, Integrity, check_integrity
from relabel.checks.object_boxes import BoxReader, SampleBoxes, look_up
from relabel.checks.sample import read_sample
from relabel.training.agreement import MOST_PERCENT
from utils.estimates import Estimate

CLASSIFIED = 2000  # images of which crops are classified; 200 suffice on the digit scenes
ABOUT_CELLS = (
    "A cell sees little of its image: half of its probability on classes that it does not store is normal and needs no "
    "action. What counts is the share on classes not in the map."
)
MUCH_UNIFORM = 0.05  # share of the targets
WEAK_AGREEMENT_PERCENT = 60  # low, because the teacher was usually trained on these very images


@dataclass(frozen=True, slots=True, eq=False)
class Report:
    """All results; None or empty for what was not requested or could not be measured.

    Fields:
        labels: path of the maps.
        integrity, calibration, crops, axes: see their modules.
        object_boxes: those found for the sample.
        teacher_top1_percent: known accuracy of the maps' teacher.
        problems: what is wrong, each with what to do; if there are none, the maps are fit for training.
        warnings: what may make the targets worse, each with what to do.
        notes: what is worth knowing.
    """

    labels: str
    integrity: Integrity
    calibration: Calibration | None
    crops: CropQuality | None
    object_boxes: SampleBoxes | None
    axes: list[AxisCheck]
    teacher_top1_percent: float | None
    problems: list[str]
    warnings: list[str]
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, with the unit in each name."""
        boxes = self.object_boxes and self.object_boxes.as_dict()
        return asdict(self) | {"integrity": self.integrity.as_dict(), "object_boxes": boxes}


def make_report(
    labels: LabelSet,
    *,
    fill: float = 0.0,
    temperature: float = 1.0,
    box_axes: str = "xy",
    maps: int = 10_000,
    boxes: BoxReader | None = None,
    classifier: Classifier | None = None,
    teacher_top1_percent: float | None = None,
) -> Report:
    """Read every map and the header of every image, then measure a sample.

    Args:
        labels: the maps.
        fill, temperature, box_axes: of the training, as in `relabel_target`.
        maps: number of maps to measure; every map is read in any case.
        boxes: reads the objects of an image.
        classifier: for the second test of the axes; needs images.
        teacher_top1_percent: known accuracy of the maps' teacher.
    """
    integrity = check_integrity(labels)
    problems, notes = integrity.problems(), integrity.notes()
    warnings: list[str] = []
    if labels.skipped:
        key, reason = next(iter(labels.skipped.items()))
        notes.append(f"Images skipped when the maps were made: {len(labels.skipped):,}, such as {key}: {reason}")
    calibration, crops, found, axes = None, None, None, []
    if len(integrity.usable):
        sample = read_sample(labels.store, integrity.usable, maps)
        found = look_up(boxes, labels.keys, sample.rows) if boxes else None
        names, logits = labels.class_names, (fill, temperature)
        calibration = calibrate(sample, labels.labels, len(names), *logits)
        if labels.images and labels.labels is not None:
            objects = found.of_row if found else {}
            crops = crop_quality(sample, labels.images.path, labels.labels, names, objects, *logits, box_axes)
        if found:
            axes.append(check_with_boxes(sample, names, found.of_row))
        if classifier and labels.images:
            some = sample.only(np.arange(0, len(sample), -(-len(sample) // CLASSIFIED)))
            axes.append(check_with_classifier(some, labels.images.path, len(names), classifier, *logits))
        problems += calibration.problems(names, teacher_top1_percent)
        if (same := sample.same_cells_percent()) > MOST_PERCENT:
            notes.append(
                f"In {same:.0f} % of the maps all cells are the same, so the target of a crop does not depend on what "
                "it shows. Check the teacher: most make another prediction for each cell."
            )
        problems += [problem for check in axes for problem in check.problems(box_axes)]
        agreement = calibration.top1_agreement_percent
        if agreement is None:
            why = "the images have no class folders" if labels.images else "--images was not given"
            notes.append(f"The label maps were not compared with labels, because {why}.")
        share, about_uniform = _about_uniform(calibration, crops)
        if share:
            (warnings if share > MUCH_UNIFORM else notes).append(about_uniform)
        warnings += calibration.warnings(names, labels.manifest.summed_classes if labels.manifest else {})
        if agreement and agreement.high95 < WEAK_AGREEMENT_PERCENT:
            warnings.append(
                f"The map's top class is the folder's class for {agreement.value:.0f} % of the images. A weak teacher "
                "can cost more than localized labels gain (1.4 points in the paper): compare with original labels."
            )
    else:
        problems.append("No label map can be read.")
    if found and not found.of_row:
        problems.append(
            f"None of the {found.asked:,} images of the sample has object boxes; expected files named like the images. "
            "Give the boxes of these images."
        )
    if found and found.refused:
        notes.append(f"Unreadable files of object boxes: {len(found.refused):,}, such as {found.refused[0]}")
    return Report(
        str(labels.path), integrity, calibration, crops, found, axes, teacher_top1_percent, problems, warnings, notes
    )


def _about_uniform(calibration: Calibration, crops: CropQuality | None) -> tuple[float, str]:
    """Return the share of the targets to which the maps contribute no class of the data, and what it means."""
    images, in_crops = calibration.images_storing_no_class, crops.crops_storing_no_class if crops else 0
    of_crops = f" and of {in_crops:,} of {crops.images:,} random crops" if crops else ""
    share = max(images / calibration.maps, in_crops / crops.images if crops and crops.images else 0.0)
    return share, (
        f"The targets of {images:,} of {calibration.maps:,} images{of_crops} are uniform, because their cells store "
        f"none of your {calibration.classes:,} classes: the top {calibration.classes_per_cell} are other classes of "
        "the teacher. `annotate --only_folders true` keeps your classes in every cell."
    )


def print_report(report: Report, console: Console | None = None) -> None:
    """Print tables at most 80 characters wide; the problems come last, where readers look first."""
    console = console or Console()
    console.print(Text(f"\nLabel maps  {report.labels}", style="bold", overflow="fold"))
    console.print(_integrity_table(report.integrity))
    if report.calibration:
        console.print(_logit_table(report.calibration))
        console.print(_target_table(report.calibration, report.teacher_top1_percent))
        leak = report.calibration.leak_in_cells_percent
        about_cells = [ABOUT_CELLS] if leak and leak.value > 100 * TOLERATED_LEAK else []
        _print_list(console, "Fill and temperature", "cyan", [report.calibration.reason, *about_cells])
    if report.crops:
        console.print(_crop_table(report.crops))
    if report.axes:
        console.print(_axis_table(report.axes))
    if report.notes:
        _print_list(console, "Good to know", "cyan", report.notes)
    if report.warnings:
        _print_list(console, f"Warnings: {len(report.warnings)}", "bold yellow", report.warnings)
    if report.problems:
        _print_list(console, f"Problems: {len(report.problems)}", "bold red", report.problems)
    elif not report.warnings:
        console.print(Text("\nNo problems found.\n", style="bold green"))


def _table(title: str, headings: Sequence[str], rows: Iterable[Sequence[str]] = ()) -> Table:
    """Make a table with a text column and columns of numbers; long entries are folded, not cut off."""
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=SIMPLE_HEAD, show_edge=False)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", overflow="fold", header_style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _integrity_table(integrity: Integrity) -> Table:
    table = _table("All maps and images", ["", "count", ""])
    table.columns[2].justify = "left"
    cells = "{1} rows x {2} columns of {0} classes".format(*integrity.shape) if integrity.shape else ""
    table.add_row("images", f"{integrity.images:,}", "")
    table.add_row("intact label maps", f"{len(integrity.usable):,}", cells)
    for name, finding in integrity.findings.items():
        style = "dim" if not finding.count else "bold red" if KINDS[name].is_problem else "yellow"
        first = f"first: {finding.first[0].partition(': ')[0]}" if finding.count else ""
        table.add_row(KINDS[name].title, f"{finding.count:,}", Text(first, overflow="fold"), style=style)
    return table


def _logit_table(calibration: Calibration) -> Table:
    headings = ["median" if at == "50" else f"{at} %" for at in calibration.top_logit_percentiles]
    values = [f"{value:.2f}" for value in calibration.top_logit_percentiles.values()]
    return _table("Largest logit of a cell", ["percentile", *headings], [["logit", *values]])


def _target_table(calibration: Calibration, teacher: float | None) -> Table:
    settings = f"fill {calibration.fill_logit:g}, temperature {calibration.temperature:g}, {calibration.maps:,} maps"
    return _measure_table(
        f"Targets of whole images  ({settings})",
        [
            ("probability of classes not in the cell", calibration.leak_in_cells_percent, " %"),
            ("probability of classes not in the map", calibration.leak_in_whole_image_target_percent, " %"),
            ("more than one class above 10 %", calibration.images_of_several_classes_percent, " %"),
            ("folder's label is the top class", calibration.top1_agreement_percent, " %"),
            ("    top-1 accuracy of the teacher, as given", teacher, " %"),
            ("folder's label is among the top 5", calibration.top5_agreement_percent, " %"),
            ("cross-entropy of the folder's label, nats", calibration.cross_entropy_nats, ""),
        ],
    )


def _crop_table(crops: CropQuality) -> Table:
    covered = crops.crops_with_iou_above_half_percent
    return _measure_table(
        f"Targets of random crops  ({100 * crops.min_area_fraction:g} to 100 % of the image)",
        [
            ("top class is not the folder's label", crops.crops_of_another_class_percent, " %"),
            ("number of classes above 10 %", crops.classes_per_crop, ""),
            ("IoU > 0.5 with an object of the label", covered, " %"),
            ("    on ImageNet, as published", PUBLISHED_COVERED_PERCENT if covered else None, " %"),
        ],
    )


def _measure_table(title: str, rows: Sequence[tuple[str, Estimate | float | None, str]]) -> Table:
    """Make a row for each (name, value, unit) with a value; percentages to a tenth, other values to a hundredth."""
    table = _table(title, ["", "value", "95 % interval", "images"])
    for what, value, unit in rows:
        digits = 1 if unit == " %" else 2
        if isinstance(value, Estimate):
            interval = f"{value.low95:.{digits}f} to {value.high95:.{digits}f}"
            table.add_row(what, f"{value.value:.{digits}f}{unit}", interval, f"{value.n:,}")
        elif value is not None:
            table.add_row(what, f"{value:.{digits}f}{unit}", "", "")
    return table


def _axis_table(axes: Sequence[AxisCheck]) -> Table:
    columns = []
    for check in axes:
        found, favouring = check.difference, check.favouring_row_column_percent
        column = {
            "measure": check.measure,
            "stored [row, column]": f"{check.row_column:.3f}",
            "stored [column, row]": f"{check.transposed:.3f}",
            "difference": f"{found.value:+.3f}" if found else "-",
            "    95 % interval": f"{found.low95:+.3f} to {found.high95:+.3f}" if found else "-",
            "informative images": f"{check.images_informative:,} of {check.images_examined:,}",
            "    for [row, column]": f"{favouring.value:.1f} %" if favouring else "-",
            "verdict": check.verdict,
        }
        columns.append(column.values())
    headings = ["", *(f"by {check.evidence}" for check in axes)]
    return _table("Order of the axes", headings, zip(column, *columns, strict=True))


def _print_list(console: Console, title: str, style: str, paragraphs: Sequence[str]) -> None:
    """Print a heading and a list below it, as Text, so that brackets in file names are not markup."""
    console.print(Text(f"\n{title}", style=style))
    grid = Table.grid(padding=(0, 1))
    for paragraph in paragraphs:
        grid.add_row(Text(" -"), Text(paragraph, overflow="fold"))
    console.print(grid)
