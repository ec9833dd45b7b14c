"""Accuracy, calibration and average precision of predictions; the running averages of a training run."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from utils.processes.distributed import sum_over_processes


def top_classes(logits: Tensor, k: int) -> Tensor:
    """Return the k classes with the largest logits, largest first; of equal logits the lower class comes first.

    The first is that of argmax. torch.topk orders equal logits arbitrarily.

    Args:
        logits: float [B, K]; converted to float32.
        k: at most K.

    Returns:
        int64 [B, k].
    """
    return logits.float().sort(dim=1, descending=True, stable=True).indices[:, :k]


CALIBRATION_BINS = 15


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Return the expected calibration error, percent (Guo et al. 2017, equation 3).

    Each bin's |accuracy - mean confidence| is weighted by its number of images.

    Args:
        confidence: float [N]; probability of the top-1 class.
        correct: bool [N]; whether the top-1 class is the label.
        bins: number of bins.
    """
    # |accuracy - mean confidence| times the bin's images is the absolute sum of the differences in it.
    differences = np.bincount(bin_of(confidence, bins), weights=correct - confidence.astype(np.float64))
    return 100.0 * float(np.abs(differences).sum()) / len(confidence)


def bin_of(confidence: np.ndarray, bins: int = CALIBRATION_BINS) -> np.ndarray:
    """Return the bin of each confidence, int64 [N]: the interval (0, 1] is divided into bins of equal width."""
    return np.clip(np.ceil(confidence.astype(np.float64) * bins).astype(np.int64) - 1, 0, bins - 1)


class TrainingMeter:
    """Loss, its floor, agreement, throughput and data wait since the last report, over every step and every process.

    A prediction agrees with a target if their largest classes are the same. For soft targets this is another quantity
    than accuracy, because they need not name the image's label. The floor is the mean entropy of the targets, the
    lowest cross-entropy that any prediction can have.

    Args:
        device: of the logits; the sums stay there until they are reported.
    """

    def __init__(self, device: torch.device) -> None:
        # loss x images, agreeing, images, entropy x images
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.restart_clock()

    def restart_clock(self) -> None:
        """Exclude the time until now (start, validation) from the rates."""
        self._start, self._waited_s, self._images = time.monotonic(), 0.0, 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time spent in this context as data wait."""
        start = time.monotonic()
        yield
        self._waited_s += time.monotonic() - start

    def count(self, logits: Tensor, targets: Tensor, loss: Tensor) -> None:
        """Add one batch of this process: logits and targets [B, K], the mean loss of its images."""
        agreeing = (logits.argmax(dim=1) == targets.argmax(dim=1)).sum().double()
        n, entropy = len(logits), torch.special.entr(targets).sum().double()
        self.sums += torch.stack([loss.double() * n, agreeing, torch.full_like(agreeing, n), entropy])
        self._images += n

    def report(self) -> dict[str, float]:
        """Return the averages since the last report over all processes, the same on each, and reset the meter.

        Rates are those of this process times the number of processes.
        """
        loss, agreeing, images, entropy = sum_over_processes(self.sums.clone()).tolist()
        seconds = time.monotonic() - self._start
        processes = images / self.sums[2].item()
        rate, wait = self._images * processes / seconds, 100.0 * self._waited_s / seconds
        self.sums.zero_()
        self.restart_clock()
        return {
            "loss": loss / images,
            "target_entropy_nats": entropy / images,
            "target_agreement_percent": 100.0 * agreeing / images,
            "images_per_s": rate,
            "data_wait_percent": wait,
        }


def in_true_set(top1: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return for each image whether its top-1 class is one of its true classes, bool [N].

    Args:
        top1: int64 [N]; -1 means no class.
        truth: bool [N, K].
    """
    return (top1 >= 0) & truth[np.arange(len(truth)), top1]


def accuracy_of_classes(correct: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Return class -> percentage of its images that are correct, for the classes that occur.

    Args:
        correct: bool [N].
        labels: integer [N].
    """
    classes, rows = np.unique(labels, return_inverse=True)
    shares = np.bincount(rows, weights=correct) / np.bincount(rows)
    return dict(zip(classes.tolist(), (100.0 * shares).tolist(), strict=True))


def mean_average_precision(logits: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean average precision over the classes that occur, percent.

    Args:
        logits: float [N, K]; compared between images, so they should be probabilities or logits of one network.
        truth: bool [N, K].
    """
    from sklearn.metrics import average_precision_score  # importing it takes a second

    occurring = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    return 100.0 * float(np.mean([average_precision_score(truth[:, c], logits[:, c]) for c in occurring]))
