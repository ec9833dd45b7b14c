"""The CSV file of one checkpoint's predictions for an image set: written by an evaluation, read by `compare`.

    image,label,top1,top1_probability,label_probability,top5[,in_set]
    n01440764/ILSVRC2012_val_00000293.JPEG,n01440764,n01440764,0.98,0.98,n01440764/n01443537/...

`top5` lists at most five classes, most likely first, separated by slashes, which folder names cannot contain. `in_set`
is there if own labels were given: 1 if top1 is one of the image's, 0 if not, empty if the image has none.
"""

import csv
import glob
import zipfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from relabel.stores.packed import sha256_of
from relabel.training.validation import NO_CLASS, Predictions
from utils.checkpoint import LAST
from utils.errors import UserError, listed, naming, with_advice
from utils.files import read_json, replacing
from utils.progress import command_lines
from utils.run_log import CONFIG

COLUMNS = ("image", "label", "top1", "top1_probability", "label_probability", "top5")
IN_SET = "in_set"
BETWEEN_CLASSES = "/"
ADVICE = "Give the CSV file that an evaluation with --eval.predictions True writes, or its run folder"
CHECKPOINTS = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
ORIGINS = "predictions"  # entry of an evaluation's JSON: CSV file -> sha256 of the checkpoint


def write_predictions(path: Path, predictions: Predictions, in_set: np.ndarray | None = None) -> None:
    """Write the CSV file atomically.

    Args:
        path: of the file.
        predictions: of the images.
        in_set: int [N]; 1, 0, or NO_CLASS for an image without own labels; None leaves the column out.

    Raises:
        UserError: it cannot be written.
    """
    class_of = dict(enumerate(predictions.class_names)) | {NO_CLASS: ""}
    with (
        replacing(path) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS if in_set is None else (*COLUMNS, IN_SET))
        for row in range(len(predictions)):
            top5 = [class_of[index] for index in predictions.top5[row].tolist()]
            values = [
                predictions.names[row].decode("utf-8", "surrogateescape"),
                class_of[int(predictions.labels[row])],
                top5[0],
                f"{predictions.top1_probability[row]:.6g}",
                f"{predictions.label_probability[row]:.6g}",
                BETWEEN_CLASSES.join(filter(None, top5)),
            ]
            if in_set is not None:
                values.append("" if in_set[row] == NO_CLASS else str(in_set[row]))
            writer.writerow(values)


@dataclass(frozen=True, slots=True, eq=False)
class SavedPredictions:
    """Predictions of one checkpoint for N images, read from its CSV file.

    Fields:
        path: the file.
        images, labels, top1: N texts each; top1 is "" where the logits were not finite.
        top1_probability, label_probability: float64 [N].
        in_set: N texts "1", "0" or "" (no own labels); None where the file has no such column.
    """

    path: Path
    images: tuple[str, ...]
    labels: tuple[str, ...]
    top1: tuple[str, ...]
    top1_probability: np.ndarray
    label_probability: np.ndarray
    in_set: tuple[str, ...] | None

    @property
    def correct(self) -> np.ndarray:
        """Whether the top-1 class is the label, bool [N]."""
        return np.array(self.top1) == np.array(self.labels)


def origins(record: Path, written: Sequence[Path], weights: Path) -> dict[str, str]:
    """Return CSV file -> sha256 of the checkpoint that made it, for an evaluation's JSON.

    Args:
        record: the JSON; the entries of an earlier evaluation are kept, because so are its files.
        written: the CSV files of this evaluation.
        weights: the checkpoint, if it is a file.
    """
    earlier: dict[str, str] = {}
    with suppress(UserError, KeyError, TypeError):
        earlier = dict(read_json(record, "expected an evaluation")[ORIGINS])
    digest = sha256_of(weights) if written and weights.is_file() else ""
    return earlier | {path.name: digest for path in written}


def find_predictions(given: Path) -> Path:
    """Return the CSV file that is meant: the given one, or the only one of a run folder.

    Raises:
        UserError: the folder has none or several, or a checkpoint is given; with what to give or type instead.
    """
    if given.is_dir():
        found = sorted(given.glob("predictions-*.csv"))
        if len(found) == 1:
            return found[0]
        weights = given / LAST
        problem = "found no predictions-*.csv in this folder; expected one"
        if not found and not weights.is_file():
            raise UserError(f"{given}: {problem}. {ADVICE}")
    elif zipfile.is_zipfile(given) or given.suffix in CHECKPOINTS:
        found = sorted(given.parent.glob(f"predictions-{glob.escape(given.stem)}-*.csv"))
        weights, problem = given, "found a checkpoint; expected the CSV file of its predictions on an image set"
    else:
        return given
    if found:
        problem = problem if len(found) == 1 else f"found {len(found)} files of predictions here; expected one of them"
        raise UserError(f"{given}: {problem}. Give{listed([str(path) for path in found])}")
    command = _evaluate_command(weights, weights.parent, ["--data.data_path", "DATA"], {"predictions": True})
    raise UserError(f"{given}: {problem}. This command writes it:\n{command}")


def _evaluate_command(weights: Path, folder: Path, without_config: list[str], keys: Mapping[str, Any]) -> str:
    """Format the command that evaluates a checkpoint into a folder, with the config of its run if there is one."""
    config = weights.parent / CONFIG
    words = ["python", "-m", "relabel", "evaluate"]
    words += ["--config-file-path", str(config)] if config.is_file() else without_config
    words += ["--util.test_weight_file", str(weights), "--util.run_dir", str(folder)]
    words += [word for key, value in keys.items() if value for word in (f"--eval.{key}", str(value))]
    return command_lines(words)


def _check_current(path: Path) -> None:
    """Raise UserError if the checkpoint has changed since this CSV file was written, as when its run was continued."""
    for record_path in sorted(path.parent.glob("evaluation-*.json")):
        with suppress(UserError, KeyError, TypeError):  # one of an earlier version does not say
            record = read_json(record_path, "expected an evaluation")
            digest, given = record[ORIGINS][path.name], Path(record["weights"])
            weights = next((file for file in (given, path.parent / given.name) if file.is_file()), None)
            keys, data = dict(record["eval"]), ["--data.val", record["data"], "--model.arch", record["arch"]]
            if digest and weights and sha256_of(weights) != digest:
                break
    else:
        return
    command = _evaluate_command(weights, path.parent, data if data[1] else data[2:], keys)
    raise UserError(
        f"{path}: {weights} has changed since it made these predictions. Evaluate it again:\n{command}\n"
        "  Or copy the file to another folder, to use it as it is."
    )


def read_predictions(given: Path) -> SavedPredictions:
    """Read and check the CSV file of one checkpoint, given as in `find_predictions`.

    Raises:
        UserError: it is not such a file, with the first invalid line or value; or its checkpoint has changed since.
    """
    path = find_predictions(given)
    _check_current(path)
    with with_advice(ADVICE), naming(path):
        header, rows = _read_csv(path)
        if not rows:
            raise ValueError("contains no images")
        columns = dict(zip(header, zip(*rows, strict=True), strict=True))
        if other := {*columns.get(IN_SET, ())} - {"0", "1", ""}:
            raise ValueError(f"found {IN_SET} = {min(other)!r}; expected 0, 1 or nothing")
        return SavedPredictions(
            path,
            images=columns["image"],
            labels=columns["label"],
            top1=columns["top1"],
            top1_probability=_probabilities(columns["top1_probability"]),
            label_probability=_probabilities(columns["label_probability"]),
            in_set=columns.get(IN_SET),
        )


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows. ValueError for another header, bad CSV or rows of other lengths."""
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            header = file.readline(999).strip().split(",")
            if header not in (list(COLUMNS), [*COLUMNS, IN_SET]):
                raise ValueError(f"begins with {','.join(header)[:20]!r}; expected {','.join(COLUMNS)}[,{IN_SET}]")
            rows = list(csv.reader(file, strict=True))
    except (OSError, csv.Error) as error:
        raise ValueError(f"cannot be read as CSV ({error})") from error
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise ValueError(f"line {number}: found {len(row)} values, expected {len(header)}")
    return header, rows


def _probabilities(texts: Sequence[str]) -> np.ndarray:
    """Convert a column of probabilities to float64. ValueError for anything else."""
    values = np.array(texts, np.float64)
    wrong = ~((values >= 0) & (values <= 1))  # also nan
    if wrong.any():
        raise ValueError(f"found the probability {values[wrong][0]:g}; expected a number in 0..1")
    return values
