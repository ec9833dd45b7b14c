"""The report on the screen: tables that fit 80 columns, and what is wrong last, where a person looks first."""

from collections.abc import Callable, Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from relabel.checks.axes import ROW_COLUMN, TRANSPOSED, UNDECIDED, AxisCheck
from relabel.checks.calibration import Calibration
from relabel.checks.crop_quality import PUBLISHED_COVERED_PERCENT, CropQuality
from relabel.checks.integrity import Finding, Integrity
from relabel.checks.report import Report
from utils.estimates import Estimate

VERDICTS = {ROW_COLUMN: "[row, column]", TRANSPOSED: "[column, row]", UNDECIDED: "undecided"}
Row = tuple[str, str, str, str]  # what, value, 95 % interval, of how many images


def print_report(report: Report, console: Console | None = None) -> None:
    """Show it to a person; reads well from 80 columns on."""
    console = console or Console()
    console.print(Text(f"\nLabel maps  {report.labels}", style="bold", overflow="fold"))
    console.print(_integrity_table(report.integrity))
    if report.calibration:
        console.print(_logit_table(report.calibration))
        rows = _calibration_rows(report.calibration, report.teacher_top1_percent)
        console.print(_measure_table(f"Targets of whole images  ({_settings(report.calibration)})", rows))
        _print_words(console, "Fill and temperature", "cyan", [report.calibration.suggestion.reason])
    if report.crops:
        crops = report.crops
        title = f"Targets of random crops  ({100 * crops.min_area:g} to 100 % of the image)"
        console.print(_measure_table(title, _crop_rows(crops)))
    if report.axes:
        console.print(_axis_table(report.axes))
    if report.notes:
        _print_words(console, "Good to know", "cyan", report.notes)
    if report.problems:
        count = len(report.problems)
        _print_words(console, f"{count} problem{'s' * (count > 1)}", "bold red", report.problems)
    else:
        console.print(Text("\nNothing is wrong with these label maps.\n", style="bold green"))


def _settings(calibration: Calibration) -> str:
    return f"fill {calibration.fill:g}, temperature {calibration.temperature:g}, {calibration.maps:,} maps"


def _table(title: str, *headings: str) -> Table:
    """A table whose first column is text and whose others are figures; nothing in it is cut off."""
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=SIMPLE_HEAD,
        show_edge=False,
        header_style="dim",
    )
    table.add_column(headings[0], overflow="fold")
    for heading in headings[1:]:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def _integrity_table(integrity: Integrity) -> Table:
    cells = ""
    if integrity.shape:
        k, h, w = integrity.shape
        cells = f"{k} classes in each of {h} x {w} cells (rows x columns)"
    table = _table("Every map and every image", "", "count", "")
    table.columns[2].justify = "left"
    table.add_row("images", f"{integrity.images:,}", "")
    table.add_row("whole label maps", f"{len(integrity.usable):,}", cells)
    for what, finding, is_wrong in _integrity_rows(integrity):
        style = "dim" if not finding.count else "bold red" if is_wrong else "yellow"
        first = f"first: {finding.first[0].partition(': ')[0]}" if finding.count else ""
        table.add_row(what, f"{finding.count:,}", Text(first, overflow="fold"), style=style)
    return table


def _integrity_rows(integrity: Integrity) -> Iterator[tuple[str, Finding, bool]]:
    yield "missing maps", integrity.missing, True
    yield "damaged maps", integrity.damaged, True
    yield "files unlike the manifest", integrity.changed_files, True
    yield "maps without image", integrity.orphans, True
    if integrity.unreadable_images:
        yield "unreadable images", integrity.unreadable_images, True
    yield "maps of other classes", integrity.other_classes, False
    yield "names with several dots", integrity.several_dots, False
    yield "names in parquet spelling", integrity.parquet_spelling, False
    if integrity.rotated:
        yield "images to be turned (EXIF)", integrity.rotated, False


def _logit_table(calibration: Calibration) -> Table:
    headings = ["median" if at == 50 else f"{at} %" for at in calibration.top_logit]
    table = _table("Largest logit of a cell", "percentile", *headings)
    table.add_row("logit", *(f"{value:.2f}" for value in calibration.top_logit.values()))
    return table


def _measure_table(title: str, rows: Sequence[Row]) -> Table:
    table = _table(title, "", "value", "95 % interval", "images")
    for row in rows:
        table.add_row(*row)
    return table


def _row(what: str, estimate: Estimate | None, unit: str = " %") -> Row:
    """A line of a table; percentages to a tenth, other figures to a hundredth."""
    if estimate is None:
        return what, "-", "", "0"
    digits = 1 if unit == " %" else 2
    low, high = f"{estimate.low95:.{digits}f}", f"{estimate.high95:.{digits}f}"
    return what, f"{estimate.value:.{digits}f}{unit}", f"{low} to {high}", f"{estimate.n:,}"


def _calibration_rows(calibration: Calibration, teacher: float | None) -> list[Row]:
    absent = calibration.num_classes - calibration.classes_per_cell
    rows = [
        _row(f"leak in a cell: share of the {absent:,} classes it does not store", calibration.cell_leak),
        _row("leak in the target: share of the classes that no cell stores", calibration.target_leak),
        _row("more than one class above 10 %", calibration.several_classes),
    ]
    if calibration.top1_agreement:
        rows.append(_row("the folder's label is the highest class", calibration.top1_agreement))
    if teacher is not None:
        rows.append(("    top-1 accuracy of the teacher, as given", f"{teacher:.1f} %", "", ""))
    if calibration.top5_agreement:
        rows.append(_row("the folder's label is among the five highest", calibration.top5_agreement))
    if calibration.cross_entropy_nats:
        rows.append(_row("cross-entropy of the folder's label, nats", calibration.cross_entropy_nats, ""))
    return rows


def _crop_rows(crops: CropQuality) -> list[Row]:
    rows = [
        _row("the highest class is not the folder's label", crops.other_class),
        _row("classes above 10 %", crops.classes, ""),
    ]
    if crops.covered:
        rows.append(_row("IoU > 0.5 with an object of the folder's label", crops.covered))
        rows.append(("    on ImageNet, as published", f"{PUBLISHED_COVERED_PERCENT} %", "", ""))
    return rows


def _axis_table(axes: Sequence[AxisCheck]) -> Table:
    table = _table("Which way round are the maps stored?", "", *(f"by {check.evidence}" for check in axes))
    lines: list[tuple[str, Callable[[AxisCheck], str]]] = [
        ("measure", lambda check: check.measure),
        ("stored [row, column]", lambda check: f"{check.row_column:.3f}"),
        ("stored [column, row]", lambda check: f"{check.transposed:.3f}"),
        ("difference (95 % interval)", _difference),
        ("images that can tell", lambda check: f"{check.informative:,} of {check.examined:,}"),
        ("of these, for [row, column]", _favouring),
    ]
    for what, of in lines:
        table.add_row(Text(what), *(Text(of(check)) for check in axes))
    styles = {ROW_COLUMN: "bold green", TRANSPOSED: "bold red", UNDECIDED: "bold yellow"}
    table.add_row("verdict", *(Text(VERDICTS[check.verdict], style=styles[check.verdict]) for check in axes))
    return table


def _difference(check: AxisCheck) -> str:
    found = check.difference
    return f"{found.value:+.3f} ({found.low95:+.3f} to {found.high95:+.3f})" if found else "-"


def _favouring(check: AxisCheck) -> str:
    return f"{check.favouring.value:.1f} %" if check.favouring else "-"


def _print_words(console: Console, title: str, style: str, paragraphs: Sequence[str]) -> None:
    """A heading and a list below it. Text, so that brackets in file names are no markup."""
    console.print(Text(f"\n{title}", style=style))
    grid = Table.grid(padding=(0, 1))
    for paragraph in paragraphs:
        grid.add_row(Text(" -"), Text(paragraph, overflow="fold"))
    console.print(grid)
