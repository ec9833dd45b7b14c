"""Run main.py's configuration: training, or with `util.test_only` evaluation, in every process of this node."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from relabel.evaluation.class_results import Figures
from relabel.evaluation.run import test
from relabel.training.reports import RunFigures
from relabel.training.run import train
from utils.config.frozen_munch import FrozenMunch
from utils.processes.launch import launch


def run(config: FrozenMunch) -> None:
    """Train, or evaluate with util.test_only, in all processes of this node.

    Raises:
        UserError: bad input; nothing was created.
        SystemExit: preempted (143), or a process failed.
    """
    function = partial(train, figures=FIGURES)
    if config.util.test_only:
        from relabel.figures.evaluation import draw_confusion, draw_reliability  # matplotlib takes half a second

        function = partial(test, figures=Figures(draw_confusion, draw_reliability))
    launch(function, config, config.compute, section="compute")


# Matplotlib is imported when a figure is drawn, by the process that draws it.


def _draw_batch(out: Path, images: np.ndarray, targets: np.ndarray, *texts: Any) -> None:
    from relabel.figures.batch import draw_batch

    draw_batch(out, images, targets, *texts)


def _draw_run(out: Path, records: Sequence[Mapping[str, Any]]) -> None:
    from relabel.figures.curves import draw_run

    draw_run(out, records)


FIGURES: RunFigures | None = RunFigures(_draw_batch, _draw_run)
