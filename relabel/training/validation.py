"""Top-1 and top-5 of a network, exact over any number of processes and any batch size."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from relabel.augment import normalise
from relabel.data.loader import Batch
from utils.metrics import count_top_k
from utils.precision import Precision
from utils.processes.distributed import sum_over_processes


@dataclass(frozen=True, slots=True)
class Score:
    """Right answers among n images; the loss is the mean cross-entropy to the folders' labels."""

    top1: int
    top5: int
    images: int
    loss: float

    @property
    def top1_percent(self) -> float:
        """Share of images whose label has the largest logit."""
        return 100.0 * self.top1 / self.images

    @property
    def top5_percent(self) -> float:
        """Share of images whose label is among the five largest logits."""
        return 100.0 * self.top5 / self.images

    def __str__(self) -> str:
        return f"top-1 {self.top1_percent:.2f} %  top-5 {self.top5_percent:.2f} %  n = {self.images:,}"

    def as_record(self) -> dict[str, float]:
        """Names with units, for the run's metrics and reports."""
        return {
            "top1_percent": self.top1_percent,
            "top5_percent": self.top5_percent,
            "loss": self.loss,
            "images": self.images,
        }


@torch.inference_mode()
def evaluate(model: nn.Module, batches: Iterable[Batch], precision: Precision) -> Score:
    """Count over every process's share of a test set.

    Args:
        model: maps float [B, 3, S, S] to logits [B, K]; it is left in the mode it was in.
        batches: this process's images, on its device; each image of the set in one process's share, once.
        precision: of the forward pass.

    Returns:
        the same Score on every process.
    """
    counts = torch.zeros(3, dtype=torch.int64, device=precision.device)  # top-1, top-5, images
    loss = torch.zeros((), dtype=torch.float64, device=precision.device)
    was_training = model.training
    model.eval()
    for batch in batches:
        with precision.autocast():
            logits = model(normalise(batch.images).contiguous(memory_format=torch.channels_last)).float()
        counts[:2] += count_top_k(logits, batch.labels)
        counts[2] += len(batch)
        loss += F.cross_entropy(logits, batch.labels, reduction="sum")
    model.train(was_training)
    top1, top5, images = sum_over_processes(counts).tolist()
    assert images, "an empty test set is refused before"
    return Score(top1, top5, images, sum_over_processes(loss).item() / images)
