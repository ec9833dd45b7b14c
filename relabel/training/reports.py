"""What a run tells about itself: log lines, its closing lines, and the figures that the caller can draw."""

import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.data_config import DataConfig
from utils.checkpoint import BEST, LAST
from utils.progress import command_lines, counted, duration
from utils.run_log import CONFIG

BATCH_FIGURE, CURVES_FIGURE = "batch.png", "curves.png"
SHOWN = 8  # most images in the figure of the first batch
SLOW_DATA = 10.0  # percent; smallest data wait that the progress bar shows


@dataclass(frozen=True, slots=True)
class RunFigures:
    """Functions that draw the figures of a run; picklable, because every process of a run has them.

    Fields:
        batch: draws images uint8 [n, S, S, 3] with their targets float [n, K], labels (-1: none) and names; the last
            two arguments are the names of the K classes and a heading.
        curves: draws the records of a run, the lines of metrics.jsonl.
    """

    batch: Callable[[Path, np.ndarray, np.ndarray, Sequence[int], Sequence[str], Sequence[str], str], None]
    curves: Callable[[Path, Sequence[Mapping[str, Any]]], None]


def drawn(path: Path, draw: Callable[..., None], *arguments: Any) -> bool:
    """Draw a figure and return whether that worked; if not, warn: a run does not end for a figure."""
    try:
        draw(path, *arguments)
        return True
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"warning: {path.name} was not drawn: {reason}", file=sys.stderr, flush=True)
        return False


def pixels(images: Tensor, data_config: DataConfig) -> np.ndarray:
    """Undo the normalisation: float [B, 3, S, S] to uint8 [B, S, S, 3]."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (data_config.mean, data_config.std))
    values = (255 * (images.float().cpu() * std + mean)).round().clamp(0, 255)
    return values.byte().permute(0, 2, 3, 1).numpy()


def step_lines(values: Mapping[str, float], rate: float, time_left: str) -> tuple[str, str, str]:
    """Format a report of the training meter.

    Returns:
        What the network learns; how fast; and the speed in short, for the progress bar.
    """
    floor = f" (floor {values['target_entropy_nats']:.4f})" if values["target_entropy_nats"] > 0 else ""
    speed, wait = f"{values['images_per_s']:,.0f} images/s", values["data_wait_percent"]
    return (
        f"loss {values['loss']:.4f}{floor}  target agreement {values['target_agreement_percent']:.1f} %",
        f"lr {rate:.3g}  {speed}  data wait {wait:.0f} %  {time_left}",
        f"{speed} (data wait {wait:.0f} %)" if wait >= SLOW_DATA else speed,
    )


def closing_lines(
    checkpoints: Mapping[str, tuple[int, float]], records: Sequence[Mapping[str, Any]], seconds: float, is_ema: bool
) -> str:
    """Describe a finished run: its time, its speed, and the checkpoints.

    Args:
        checkpoints: file name -> its epoch and validation top-1 in percent.
        records: of the run, the lines of metrics.jsonl.
        seconds: that the run took.
        is_ema: whether the accuracies are those of the averaged weights.
    """
    rates = [float(record["images_per_s"]) for record in records if record["event"] == "train"]
    speed = f", {statistics.harmonic_mean(rates):,.0f} images/s" if rates else ""
    epochs = max(epoch for epoch, _ in checkpoints.values())
    return "\n".join(
        [
            f"{counted(epochs, 'epoch')} in {duration(seconds)}{speed}",
            *(
                f"  {name}  top-1 {top1:.2f} %{' (EMA)' * is_ema}  epoch {epoch}"
                for name, (epoch, top1) in checkpoints.items()
            ),
        ]
    )


def next_commands(folder: Path, images: Sequence[str] | None, image: str) -> str:
    """Format the two commands that most people type after a run.

    Args:
        folder: of the run.
        images: words for the training images that the network could label as a teacher; None: it was trained with
            label maps itself.
        image: path of a validation image.
    """
    tool = ["python", "-m", "relabel"]
    evaluate = ["evaluate", "--config-file-path", str(folder / CONFIG), "--util.test_weight_file", str(folder / LAST)]
    evaluate += ["--eval.predictions", "True"]  # which `compare` reads
    if images:
        title = "label maps for these images, by this network"
        then = ["annotate", images[0], str(folder / "labels"), *images[1:], "--weights", str(folder / BEST)]
    else:
        title, then = "classify an image", ["predict", str(folder), image]
    why = "the last, to compare runs: the best was chosen on these images"
    return f"evaluate ({why}):\n{command_lines([*tool, *evaluate])}\n{title}:\n{command_lines([*tool, *then])}"
