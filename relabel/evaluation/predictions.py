"""What a network says about each image of a test set: gathered from all processes, in the order of the images; as CSV.

    image,label,top1,top1_probability,label_probability,top5[,in_set]
    n01440764/ILSVRC2012_val_00000293.JPEG,n01440764,n01440764,0.98,0.98,n01440764/n01443537/...

`top5` holds at most five classes, likeliest first, between slashes, which no folder's name can contain. `in_set` is
there with own true labels: 1 if top1 is one of the image's, 0 if not, empty where it has none.
"""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from relabel.augment import normalise
from relabel.data.images import ImageList
from relabel.data.loader import Batch
from utils.files import replacing
from utils.precision import Precision
from utils.processes.distributed import Process, sum_over_processes
from utils.progress import JobProgress

COLUMNS = ("image", "label", "top1", "top1_probability", "label_probability", "top5")
BETWEEN_CLASSES = "/"
NO_CLASS = -1


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """Of N images, in the order of their ImageList.

    An image whose logits are not all finite has no top-5 (NO_CLASS) and probabilities of 0, so it counts as wrong.

    Fields:
        names: bytes [N]; CLASS/FILE.
        labels: int64 [N]; the class of the image's folder, a position in class_names.
        class_names: K texts; the classes that could be predicted.
        top5: int64 [N, min(5, K)]; likeliest first.
        top1_probability: float32 [N]; softmax over the K classes.
        label_probability: float32 [N].
        probabilities: float32 [N, K]; None where nobody wanted them.
    """

    names: np.ndarray
    labels: np.ndarray
    class_names: list[str]
    top5: np.ndarray
    top1_probability: np.ndarray
    label_probability: np.ndarray
    probabilities: np.ndarray | None

    def __len__(self) -> int:
        """N."""
        return len(self.names)

    @property
    def top1(self) -> np.ndarray:
        """int64 [N]; the likeliest class."""
        return self.top5[:, 0]

    @property
    def right(self) -> np.ndarray:
        """bool [N]; whether that is the label."""
        return self.top1 == self.labels


class _Table:
    """The rows of one network on this process's device: zero until they are put in, so that processes can be summed."""

    def __init__(self, images: int, classes: int, device: torch.device, keep_probabilities: bool) -> None:
        self.times_seen = torch.zeros(images, dtype=torch.int64, device=device)
        self.top5 = torch.zeros(images, min(5, classes), dtype=torch.int64, device=device)
        self.of_top1 = torch.zeros(images, device=device)
        self.of_label = torch.zeros(images, device=device)
        self.all = torch.zeros(images, classes, device=device) if keep_probabilities else None

    def put(self, rows: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Rows int64 [B], logits float [B, K], labels int64 [B]."""
        finite = logits.isfinite().all(dim=1, keepdim=True)
        probabilities = logits.softmax(dim=1).where(finite, 0.0)
        top5 = logits.topk(self.top5.shape[1], dim=1).indices.where(finite, NO_CLASS)
        self.times_seen[rows] += 1
        self.top5[rows] = top5
        self.of_top1[rows] = probabilities.amax(dim=1)
        self.of_label[rows] = probabilities.gather(1, labels[:, None])[:, 0]
        if self.all is not None:
            self.all[rows] = probabilities

    def gathered(self, images: ImageList, class_names: list[str]) -> Predictions:
        """The rows of all processes. Adding zeros is exact, so their number changes nothing."""
        seen = sum_over_processes(self.times_seen)
        assert bool((seen == 1).all()), "each image is in one process's share, once"
        tables = (self.top5, self.of_top1, self.of_label)
        top5, of_top1, of_label = (sum_over_processes(table).cpu().numpy() for table in tables)
        every = None if self.all is None else sum_over_processes(self.all).cpu().numpy()
        return Predictions(images.names, images.labels.astype(np.int64), class_names, top5, of_top1, of_label, every)


@torch.inference_mode()
def predict_classes(
    models: Mapping[str, nn.Module],
    images: ImageList,
    batches: Iterable[Batch],
    precision: Precision,
    process: Process,
    *,
    title: str,
    among: np.ndarray | None = None,
    keep_probabilities: bool = False,
) -> dict[str, Predictions]:
    """Read a test set once and let every network classify it.

    Args:
        models: name -> network, float [B, 3, S, S] to logits [B, K]; left in evaluation mode.
        images: the whole set; labels point into its class_names, or into `among` where that is given.
        batches: this process's images, on its device.
        precision: of the forward pass.
        place: of this process; the main one shows progress.
        title: for the progress.
        among: int64 [K']; the classes that can be predicted; None: all K.
        keep_probabilities: of every class, not only of the likeliest and the label.

    Returns:
        name -> Predictions, the same on every process.

    Raises:
        UserError: an image cannot be read.
    """
    classes = images.class_names
    columns = torch.arange(len(classes)) if among is None else torch.from_numpy(among)
    columns = columns.to(precision.device)
    tables = {name: _Table(len(images), len(classes), precision.device, keep_probabilities) for name in models}
    for model in models.values():
        model.eval()
    with JobProgress(title, len(images), "images", enabled=process.is_main) as progress:
        for batch in batches:
            pixels = normalise(batch.images).contiguous(memory_format=torch.channels_last)
            for name, model in models.items():
                with precision.autocast():
                    logits = model(pixels)
                tables[name].put(batch.indices, logits.float()[:, columns], batch.labels)
            progress.advance(min(len(batch) * process.world_size, progress.total - progress.done))
    return {name: table.gathered(images, classes) for name, table in tables.items()}


def write_predictions(path: Path, predictions: Predictions, in_set: np.ndarray | None = None) -> None:
    """Write the CSV file, whole or not at all.

    Args:
        path: of the file.
        predictions: of the images.
        in_set: int [N]; 1, 0, or NO_CLASS for an image without true labels; None: no such column.

    Raises:
        UserError: it cannot be written.
    """
    called = dict(enumerate(predictions.class_names)) | {NO_CLASS: ""}
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if in_set is None else (*COLUMNS, "in_set"))
        for row in range(len(predictions)):
            top5 = [called[index] for index in predictions.top5[row].tolist()]
            words = [
                predictions.names[row].decode("utf-8", "surrogateescape"),
                called[int(predictions.labels[row])],
                top5[0],
                f"{predictions.top1_probability[row]:.6g}",
                f"{predictions.label_probability[row]:.6g}",
                BETWEEN_CLASSES.join(filter(None, top5)),
            ]
            if in_set is not None:
                words.append("" if in_set[row] == NO_CLASS else str(in_set[row]))
            writer.writerow(words)
