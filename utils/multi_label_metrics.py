"""Measures for images with several true labels."""

import numpy as np


def in_true_set(top1: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """bool [N]; whether an image's top-1 class is one of its true classes.

    Args:
        top1: int64 [N]; -1 is no class.
        truth: bool [N, K].
    """
    return (top1 >= 0) & truth[np.arange(len(truth)), top1]


def accuracy_of_classes(right: np.ndarray, labels: np.ndarray) -> dict[int, float]:
    """Class -> percent of its images that are right, for the classes that occur.

    Args:
        right: bool [N].
        labels: integer [N].
    """
    classes, rows = np.unique(labels, return_inverse=True)
    shares = np.bincount(rows, weights=right) / np.bincount(rows)
    return dict(zip(classes.tolist(), (100.0 * shares).tolist(), strict=True))


def mean_average_precision(logits: np.ndarray, truth: np.ndarray) -> float:
    """Mean over the classes that occur of the area under the precision-recall curve, percent.

    Args:
        logits: float [N, K]; compared between images, so they should be probabilities or logits of one network.
        truth: bool [N, K].
    """
    from sklearn.metrics import average_precision_score  # costs a second; only those who ask for it pay it

    occurring = [c for c in range(truth.shape[1]) if truth[:, c].any()]
    return 100.0 * float(np.mean([average_precision_score(truth[:, c], logits[:, c]) for c in occurring]))
