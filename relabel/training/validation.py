"""Predictions of networks for a test set, gathered from all processes, and the resulting accuracy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.data_config import DataConfig
from relabel.augment import normalise
from relabel.data.batch import Batch
from relabel.data.images import ImageList
from utils.metrics import top_classes
from utils.precision import Precision
from utils.processes.distributed import Process, sum_over_processes
from utils.progress import JobProgress

NO_CLASS = -1


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Predictions for N images, in the order of their ImageList.

    An image whose logits are not all finite has no top-5 (NO_CLASS) and probabilities of 0, so it counts as wrong. Of
    classes with equal logits, compared in float32, the first in the class order is predicted.

    Fields:
        names: bytes [N]; CLASS/FILE.
        labels: int64 [N]; the class of the image's folder, a position in class_names.
        class_names: of the K classes that can be predicted.
        top5: int64 [N, min(5, K)]; most likely first.
        top1_probability: float32 [N]; softmax over the K classes.
        label_probability: float32 [N]; probability of the label.
        probabilities: float32 [N, K]; None unless requested.
        losses: float32 [N]; cross-entropy to the label.
    """

    names: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    top5: np.ndarray
    top1_probability: np.ndarray
    label_probability: np.ndarray
    probabilities: np.ndarray | None
    losses: np.ndarray | None = None

    def __len__(self) -> int:
        """Return N, the number of images."""
        return len(self.names)

    @property
    def top1(self) -> np.ndarray:
        """The predicted class, int64 [N]."""
        return self.top5[:, 0]

    @property
    def correct(self) -> np.ndarray:
        """Whether the predicted class is the label, bool [N]."""
        return self.top1 == self.labels


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy on a test set, against the folders' labels; the loss is the mean cross-entropy.

    With up to five classes top-5 says nothing, and is None.
    """

    top1_percent: float
    top5_percent: float | None
    loss: float
    images: int

    def __str__(self) -> str:
        top5 = "" if self.top5_percent is None else f"top-5 {self.top5_percent:.2f} %  "
        return f"top-1 {self.top1_percent:.2f} %  {top5}loss {self.loss:.4f}"


class _Table:
    """Results of one network on the device, one row per image: 0 until filled, so that processes can add them."""

    def __init__(self, images: int, classes: int, device: torch.device, keep_probabilities: bool) -> None:
        self.times_seen = torch.zeros(images, dtype=torch.int64, device=device)
        self.top5 = torch.zeros(images, min(5, classes), dtype=torch.int64, device=device)
        self.values = torch.zeros(3, images, device=device)  # probability of the top-1 and of the label, loss
        self.probabilities = torch.zeros(images, classes, device=device) if keep_probabilities else None

    def fill(self, rows: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Fill rows int64 [B] from logits float32 [B, K] and labels int64 [B]."""
        finite = logits.isfinite().all(dim=1, keepdim=True)
        probabilities = logits.softmax(dim=1).where(finite, 0.0)
        self.times_seen[rows] += 1
        self.top5[rows] = top_classes(logits, self.top5.shape[1]).where(finite, NO_CLASS)
        self.values[0, rows] = probabilities.amax(dim=1)
        self.values[1, rows] = probabilities.gather(1, labels[:, None])[:, 0]
        self.values[2, rows] = F.cross_entropy(logits, labels, reduction="none")
        if self.probabilities is not None:
            self.probabilities[rows] = probabilities

    def gathered(self, images: ImageList) -> Predictions:
        """Sum the rows of all processes. Adding zeros is exact, so the result does not depend on their number."""
        assert bool((sum_over_processes(self.times_seen) == 1).all()), "each image is in one process's share, once"
        top5, values = (sum_over_processes(table).cpu().numpy() for table in (self.top5, self.values))
        kept = None if self.probabilities is None else sum_over_processes(self.probabilities).cpu().numpy()
        labels = images.labels.astype(np.int64)
        return Predictions(images.names, labels, images.class_names, top5, values[0], values[1], kept, values[2])


@torch.inference_mode()
def predict_classes(
    models: Mapping[str, nn.Module],
    images: ImageList,
    batches: Iterable[Batch],
    precision: Precision,
    process: Process,
    data_config: DataConfig,
    *,
    title: str = "",
    among: np.ndarray | None = None,
    keep_probabilities: bool = False,
) -> dict[str, Predictions]:
    """Read a test set once and let every network classify it.

    Args:
        models: name -> network, float [B, 3, S, S] to logits [B, K]; left in evaluation mode.
        images: the whole set; labels are positions in its class_names, and in `among` if that is given.
        batches: this process's images, on its device; each image of the set is in one process's share, once.
        precision: of the forward pass; the last layer runs in float32.
        process: this process; the main one shows progress.
        data_config: what the networks expect of their input: mean and std are applied here.
        title: of the progress bar; "": no bar.
        among: int64 [K']; the logits of the classes that can be predicted; None: all K.
        keep_probabilities: keep those of every class, not only of the most likely one and the label.

    Returns:
        name -> Predictions, the same on every process.

    Raises:
        UserError: an image cannot be read.
    """
    classes = len(images.class_names)
    columns = (torch.arange(classes) if among is None else torch.from_numpy(among)).to(precision.device)
    tables = {name: _Table(len(images), classes, precision.device, keep_probabilities) for name in models}
    for model in models.values():
        model.eval()
    progress = JobProgress(title, len(images), "images", enabled=process.is_main and title != "")
    with progress, precision.evaluation(*models.values()):
        for batch in batches:
            statistics = {"mean": data_config.mean, "std": data_config.std}
            pixels = normalise(batch.images, **statistics, dtype=precision.input_dtype)
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            for name, model in models.items():
                tables[name].fill(batch.indices, precision.logits(model, pixels)[:, columns], batch.labels)
            progress.advance(min(len(batch) * process.world_size, progress.total - progress.done))
    return {name: table.gathered(images) for name, table in tables.items()}


def evaluate(
    models: Mapping[str, nn.Module],
    images: ImageList,
    batches: Iterable[Batch],
    precision: Precision,
    process: Process,
    data_config: DataConfig,
) -> dict[str, Score]:
    """Return name -> Score, the same on every process. Arguments and errors as in `predict_classes`.

    The networks are left in the mode they were in.
    """
    modes = [(model, model.training) for model in models.values()]
    found = predict_classes(models, images, batches, precision, process, data_config)
    for model, was_training in modes:
        model.train(was_training)
    return {name: _score(predictions) for name, predictions in found.items()}


def _score(found: Predictions) -> Score:
    assert found.losses is not None
    hits = found.correct, found.top5 == found.labels[:, None]
    top1, top5 = (float(100 * hit.sum() / len(found)) for hit in hits)
    loss = float(found.losses.mean(dtype=np.float64))
    return Score(top1, top5 if len(found.class_names) > 5 else None, loss, len(found))
