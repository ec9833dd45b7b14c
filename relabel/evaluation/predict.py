"""Classify images that need no label, prepared as an evaluation prepares them: `python -m relabel predict`."""

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor, nn

from models.classifier import open_weights
from models.data_config import DataConfig
from models.merged_classes import MergedClasses
from relabel.augment import normalise
from relabel.data.class_names import class_labels, class_order
from relabel.data.dataset import CenterCrop
from relabel.data.decode import ImageFile, UnreadableImage, resolve_decoder
from relabel.data.folders import EXTENSIONS, folder_names, how_to_read
from relabel.data.images import ImagePath
from relabel.data.sources import open_images, tar_files
from relabel.evaluation.results import number_table
from relabel.training.network import check_image_sizes
from utils.errors import UserError, out_of_memory_reported, with_advice
from utils.files import replacing, write_json
from utils.metrics import top_classes
from utils.precision import Precision
from utils.processes.distributed import available_cores
from utils.processes.workers import read_batches
from utils.progress import JobProgress, counted, print_lines

INPUT_FLAGS = "--size, --crop_ratio, --interpolation, --mean and --std"
CLASSES_FLAG = "--classes"
TOP_K = 5
SCREEN_LINES = 20
CLASS_WIDTH = 28  # characters of a class name on the screen; the file's name gets what is left
NOT_FINITE = "the network's logits for it are not finite"


def find_images(paths: Sequence[Path]) -> list[ImagePath]:
    """Return the images among files, folders and tar files, in this order; those in each sorted, none twice.

    Hidden files and folders are left out, and in folders also files with other extensions.

    Raises:
        UserError: a folder contains no image or cannot be read.
    """
    found: dict[ImagePath, None] = {}
    for path in paths:
        inside: list[ImagePath] = []
        if tar_files(str(path)):
            images = open_images(path)
            inside = [images.path(row) for row in range(len(images))]
        else:
            inside += _images_below(path) if path.is_dir() else [path]
        remedy = how_to_read([str(path)])
        if remedy or not inside:
            raise UserError(
                f"{path}: found no image; expected files ending in {' '.join(EXTENSIONS)}, in this folder or in "
                f"folders inside it. {remedy or 'Give another folder'}"
            )
        found |= dict.fromkeys(inside)
    return list(found)


def _images_below(root: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be listed ({error.strerror}). Allow reading it") from error

    visited = set()
    for folder, folders, files in os.walk(root, onerror=refuse, followlinks=True):
        visited.add(os.path.realpath(folder))
        inside = {name: os.path.realpath(Path(folder) / name) for name in folders if not name.startswith(".")}
        folders[:] = sorted(name for name, target in inside.items() if target not in visited)  # a link may lead back
        names = sorted(name for name in files if not name.startswith(".") and name.lower().endswith(EXTENSIONS))
        yield from (Path(folder) / name for name in names)


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """A network on its device, its classes and its input.

    Fields:
        network: images float [B, 3, S, S] -> logits [B, K].
        class_names: K texts, as class folders are named; numbers if the classes are unknown.
        data_config: what the network expects of its input.
        precision: of the forward pass, and its device.
        about: its weights, classes and input, in two lines.
    """

    network: nn.Module
    class_names: Sequence[str]
    data_config: DataConfig
    precision: Precision
    about: str


def load_predictor(
    arch: str | None, weights: str, class_list: str | None, paths: Sequence[Path], given: Mapping[str, Any]
) -> Predictor:
    """Load a network on the GPU if there is one; of a file, the averaged weights are preferred.

    Args:
        arch, weights: as in models.classifier.open_weights.
        class_list: as in relabel.data.class_names.class_order.
        paths: of the images; the class folders of a single folder may name the classes.
        given: field of DataConfig -> value that replaces the network's own.

    Raises:
        UserError: as models.classifier.open_weights and class_order; or the network cannot classify such images.
    """
    folders = folder_names(paths[0]) if len(paths) == 1 and paths[0].is_dir() else []
    with with_advice("Correct --arch or WEIGHTS."):
        found = open_weights(arch, weights)
    order = class_order(found, class_list, folders or None, CLASSES_FLAG)
    config = found.data_config(given, INPUT_FLAGS)
    network = found.build(found.preferred, config, "--arch", "--size").eval()
    check_image_sizes(found.arch, network, {config.side}, "--arch or --size")
    if order.groups is not None:
        network = MergedClasses(network, order.groups)
    names = order.names or [str(index) for index in range(found.num_classes)]
    source = order.source if order.names else f"numbers, because the weights do not name them; {CLASSES_FLAG} FILE does"
    ema = " (EMA)" if found.preferred == "ema" else ""
    about = f"{found}{ema}, {len(names):,} classes: {source}\ninput: {config.source}"
    precision = Precision("O1", torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    network = network.to(precision.device).to(memory_format=torch.channels_last)
    return Predictor(network, names, config, precision, about)


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The most likely classes of an image.

    Fields:
        image: where it lies.
        classes: int64 [k]; most likely first.
        probabilities: float32 [k]; softmax over all classes.
    """

    image: ImagePath
    classes: np.ndarray
    probabilities: np.ndarray


def classify(
    predictor: Predictor, images: Sequence[ImagePath], k: int, batch_size: int, num_workers: int
) -> tuple[list[Prediction], dict[ImagePath, str]]:
    """Classify images; one that cannot be read does not stop the others.

    Args:
        predictor: the network.
        images: their files.
        k: number of most likely classes to keep.
        batch_size: images per forward pass.
        num_workers: processes that read ahead, at most one per core; a single batch is read by this one.

    Returns:
        the predictions, in the order of the images; and image -> why it has none.

    Raises:
        UserError: the machine has run out of memory or open files.
    """
    rows = [list(range(start, min(start + batch_size, len(images)))) for start in range(0, len(images), batch_size)]
    workers = min(num_workers, available_cores(), len(rows) - 1)
    config, precision = predictor.data_config, predictor.precision
    crops = _Crops(images, CenterCrop(config.side, config.crop_ratio, config.interpolation, config.squash))
    batches = read_batches(crops, _collate, rows, workers, precision.device.type == "cuda")
    made: list[Prediction] = []
    failed: dict[ImagePath, str] = {}
    progress = JobProgress("predict", len(images), "images", enabled=len(rows) > 1)
    advice = out_of_memory_reported(f"--batch_size is {batch_size}: lower it.")
    with progress, advice, torch.inference_mode(), precision.evaluation(predictor.network):
        for batch in batches:
            pixels = normalise(batch.images.to(precision.device), mean=config.mean, std=config.std)
            logits = precision.logits(predictor.network, pixels.contiguous(memory_format=torch.channels_last))
            top = top_classes(logits, k)
            shares = logits.softmax(dim=1).gather(1, top).cpu().numpy()
            finite, classes = logits.isfinite().all(dim=1).tolist(), top.cpu().numpy()
            for i, row in enumerate(batch.rows):
                if reason := batch.reasons[i] or ("" if finite[i] else NOT_FINITE):
                    failed[images[row]] = reason
                else:
                    made.append(Prediction(images[row], classes[i], shares[i]))
            progress.advance(len(batch.rows))
    return made, failed


class _Crop(NamedTuple):
    """The central crop of an image, uint8 [3, S, S]; black if it cannot be read, with a reason, else ""."""

    row: int
    image: np.ndarray
    reason: str


class _CropBatch(NamedTuple):
    """The fields of several `_Crop`s; images uint8 [B, 3, S, S]."""

    rows: list[int]
    images: Tensor
    reasons: list[str]


class _Crops:
    """Image files by row, each prepared for the network."""

    def __init__(self, images: Sequence[ImagePath], transform: CenterCrop) -> None:
        self._images, self._transform = images, transform

    def __getitem__(self, row: int) -> _Crop:
        try:
            return _Crop(row, self._transform(ImageFile(self._images[row], resolve_decoder("auto")), 0, row).image, "")
        except UnreadableImage as error:
            side = self._transform.size
            return _Crop(row, np.zeros((3, side, side), np.uint8), error.reason)


def _collate(crops: Sequence[_Crop]) -> _CropBatch:
    rows, images, reasons = zip(*crops, strict=True)
    return _CropBatch(list(rows), torch.from_numpy(np.stack(images)), list(reasons))


def write_csv(path: Path, predictions: Sequence[Prediction], class_names: Sequence[str]) -> None:
    """Write one line per image: its path, then folder name, readable name and probability of each class, likely first.

    Raises:
        UserError: the file cannot be written.
    """
    labels, k = class_labels(class_names), len(predictions[0].classes)
    columns = [f"{what}{rank}" for rank in range(1, k + 1) for what in ("class", "name", "probability")]
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["image", *columns])
        for made in predictions:
            pairs = zip(made.classes.tolist(), made.probabilities.tolist(), strict=True)
            cells = [cell for index, share in pairs for cell in (class_names[index], labels[index], f"{share:.6g}")]
            writer.writerow([made.image, *cells])


def write_record(
    path: Path, predictor: Predictor, predictions: Sequence[Prediction], failed: Mapping[ImagePath, str]
) -> None:
    """Write the predictions, the images without one, and what made them, as JSON. UserError if it cannot be written."""
    names, labels = predictor.class_names, class_labels(predictor.class_names)

    def classes_of(made: Prediction) -> list[dict[str, Any]]:
        pairs = zip(made.classes.tolist(), made.probabilities.tolist(), strict=True)
        return [{"class": names[index], "name": labels[index], "probability": share} for index, share in pairs]

    content = {
        "about": predictor.about.splitlines(),
        "data_config": predictor.data_config.as_record(),
        "precision": predictor.precision.name,
        "predictions": [{"image": str(made.image), "classes": classes_of(made)} for made in predictions],
        "not_predicted": {str(image): reason for image, reason in failed.items()},
    }
    write_json(path, content)


def print_predictions(
    predictions: Sequence[Prediction], class_names: Sequence[str], all_in: str, all_classes: bool
) -> None:
    """Print a table of at most a screenful: all classes of few images, else the most likely class of the first ones.

    Args:
        predictions: at least one.
        class_names: K texts.
        all_in: where the rest is.
        all_classes: print all classes of the first images, however many there are.
    """
    console, labels = Console(), class_labels(class_names)
    k = len(predictions[0].classes)
    shown_k = min(k, SCREEN_LINES) if all_classes or len(predictions) * k <= SCREEN_LINES else 1
    shown = predictions[: SCREEN_LINES // shown_k]
    table = number_table("image", [])
    table.add_column("class", no_wrap=True, overflow="ellipsis", max_width=CLASS_WIDTH)
    table.add_column("%", justify="right", no_wrap=True)
    room = console.width - CLASS_WIDTH - len("100.0") - 4
    for made in shown:
        for rank in range(shown_k):
            label, share = labels[made.classes[rank]], f"{100 * made.probabilities[rank]:.1f}"
            table.add_row(Text("" if rank else _end(str(made.image), room)), Text(label), share)
    console.print()
    console.print(table)
    if rest := len(predictions) - len(shown):
        print_lines(f"and {counted(rest, 'more image')}: {all_in}")
    elif shown_k < k:
        print_lines(f"the {k} most likely classes: {all_in}")


def _end(name: str, room: int) -> str:
    """Return a file's name as printable text, or an ellipsis and as much of its end as fits."""
    text = "".join(sign if sign.isprintable() else "\ufffd" for sign in name)
    return text if len(text) <= room else f"…{text[1 - room :]}"
