"""The command that draws training runs."""

import os

from utils.config.value_types import ExistingFolder, NewPng
from utils.errors import UserError
from utils.progress import print_lines


def curves(*run: ExistingFolder, out: NewPng) -> None:
    """Draw top-1 accuracy and loss on the validation images, epoch by epoch, of several runs in one figure.

    Args:
        run: run folders, such as runs/plain runs/relabel.
        out: the PNG file to write.
    """
    from relabel.figures.colours import PALETTE
    from relabel.figures.curves import draw_curves
    from utils.run_log import METRICS, read_metrics

    if not 1 <= len(run) <= len(PALETTE):
        raise UserError(f"RUN ...: found {len(run)} run folders; expected 1 to {len(PALETTE)}, such as runs/plain")
    folders = [folder.resolve() for folder in run]
    shared = os.path.commonpath([folder.parent for folder in folders])
    records = {}
    for given, folder in zip(run, folders, strict=True):
        if not (folder / METRICS).is_file():
            raise UserError(
                f"RUN {given}: found no {METRICS} in it; expected the folder of a training run, such as runs/plain"
            )
        try:
            found = read_metrics(folder)
        except ValueError as error:
            raise UserError(f"RUN {given}: {METRICS} is damaged: {error}. Leave this run out") from error
        if not any(record["event"] == "validation" for record in found):
            raise UserError(f"RUN {given}: found no validation; a run has one after its first epoch. Leave it out")
        records[os.path.relpath(folder, shared)] = found
    draw_curves(out, records)
    print_lines(f"figure: {out}")
