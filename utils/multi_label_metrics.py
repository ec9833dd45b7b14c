"""Measures for images with several true labels."""

import numpy as np
from sklearn.metrics import average_precision_score


def multi_label_accuracy(logits: np.ndarray, truth: np.ndarray) -> float:
    """Percent of images whose top-1 class is one of their true classes.

    Args:
        logits: float [N, K].
        truth: bool [N, K].
    """
    top1 = logits.argmax(axis=1)
    return 100.0 * float(truth[np.arange(len(truth)), top1].mean())


def mean_average_precision(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the classes that occur of the area under the precision-recall curve, percent.

    Args:
        logits: float [N, K]; compared between images, so they should be probabilities or logits of one network.
        truth: bool [N, K].
    """
    occurring = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    return 100.0 * float(np.mean([average_precision_score(truth[:, c], logits[:, c]) for c in occurring]))
