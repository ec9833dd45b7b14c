"""Labels of whole images from label maps, multi-hot or soft, for other programs; and the keep list for label cleaning.

An image's labels are the likely classes of the target pooled over all of it. TSV has one line per image and class, JSON
one entry per image:

    image   class   probability         {"n01440764/a.JPEG": {"n01440764": 0.93, "n02102040": 0.05}}    soft
    image   class                       {"n01440764/a.JPEG": ["n01440764"]}                             multi-hot
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from relabel.annotation.label_set import LabelSet
from relabel.data.keep_list import write_keep_list
from relabel.label_map import LabelMap
from relabel.targets import relabel_target
from relabel.training.agreement import top_class
from utils.errors import UserError
from utils.files import replacing
from utils.progress import JobProgress, print_lines

BATCH = 256
DECIMALS = 4  # of a probability


def export_labels(labels: LabelSet, out: Path, *, soft: bool, threshold: float, fill: float, temperature: float) -> int:
    """Write the labels of every image; return their number.

    Args:
        labels: with images.
        out: the file to write; JSON if it ends in .json, else TSV.
        soft: with probabilities.
        threshold: smallest probability of a label; the most likely class is always one.
        fill, temperature: as in `relabel_target`.

    Raises:
        UserError: a label map cannot be read, or the file cannot be written.
    """
    assert labels.images is not None
    as_json, count = out.suffix == ".json", 0
    with (
        replacing(out) as temporary,
        temporary.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file,
    ):
        separator = "{\n"
        if not as_json:
            file.write("image\tclass\tprobability\n" if soft else "image\tclass\n")
        for row, target in _targets(labels, fill, temperature, "export"):
            found = {labels.class_names[index]: round(p, DECIMALS) for index, p in _likely(target, threshold)}
            name, count = labels.images.name(row), count + len(found)
            if as_json:
                file.write(f"{separator}{json.dumps(name)}: {json.dumps(found if soft else list(found))}")
                separator = ",\n"
            else:
                file.write(_tsv_lines(name, found, soft))
        file.write("\n}\n" if as_json else "")
    return count


class Agreeing(NamedTuple):
    """Numbers of images: listed; compared with their map; those whose folder is the top class, as `check` counts."""

    listed: int
    compared: int
    top: int


def export_cleaning(
    labels: LabelSet, out: Path, *, agreeing: bool, threshold: float, fill: float, temperature: float
) -> Agreeing:
    """Write the list of images of which the label map agrees with the folder, or disagrees.

    A map agrees if the folder's class is the most likely one of the whole image or reaches the threshold.

    Args:
        labels: with images.
        out: the file to write; the list of the agreeing images serves as data.keep_list.
        agreeing: list the images that agree; False: the others.
        threshold: smallest probability of a label.
        fill, temperature: as in `relabel_target`.

    Raises:
        UserError: the images have no class folders, a label map cannot be read, or the file cannot be written.
    """
    images, folders = labels.images, labels.labels
    if images is None or folders is None:
        raise UserError("these images have no class folders to compare label maps with. Give a folder of class folders")
    chosen, compared, top = [], 0, 0
    for row, target in _targets(labels, fill, temperature, "compare"):
        label = int(folders[row])
        is_top = label == int(top_class(torch.from_numpy(target[None])))
        compared, top = compared + 1, top + is_top
        if (is_top or bool(target[label] >= threshold)) == agreeing:
            chosen.append(images.name(row))
    verb, be, either = ("agrees", "is", "or") if agreeing else ("disagrees", "is neither", "nor")
    remark = (
        f"{len(chosen):,} of {len(images):,} images of {images.root} whose label map {verb} with their folder:\n"
        f"its class {be} the most likely one of the whole image {either} has a probability of at least {threshold:g} "
        f"(fill {fill:g}, temperature {temperature:g})"
    )
    write_keep_list(out, chosen, remark)
    return Agreeing(len(chosen), compared, top)


def _targets(labels: LabelSet, fill: float, temperature: float, title: str) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (row, target of the whole image float32 [K]) for every image with a map."""
    missing = labels.store.missing()
    rows = np.setdiff1d(np.arange(len(labels)), missing).tolist()
    if not rows:
        raise UserError(f"{labels.path} has no label map for any of the {len(labels):,} images; expected some")
    if len(missing):
        print_lines(f"images without a label map, left out: {len(missing):,} of {len(labels):,}")
    with JobProgress(title, len(rows), "label maps") as progress:
        for start in range(0, len(rows), BATCH):
            maps = [labels.store.read(row) for row in rows[start : start + BATCH]]
            targets = relabel_target(
                *LabelMap.stack(maps), None, len(labels.class_names), fill=fill, temperature=temperature
            )
            yield from zip(rows[start : start + BATCH], targets.numpy(), strict=True)
            progress.advance(len(maps))


def _likely(target: np.ndarray, threshold: float) -> list[tuple[int, float]]:
    """Return (class, probability) of an image's labels, most likely first; at least one."""
    order = np.argsort(-target, kind="stable")
    count = max(1, int((target >= threshold).sum()))
    return [(int(index), float(target[index])) for index in order[:count]]


def _tsv_lines(name: str, labels: dict[str, float], soft: bool) -> str:
    if broken := next((text for text in (name, *labels) if any(sign in text for sign in "\t\r\n")), None):
        raise UserError(f"found the name {broken!r}, which a TSV file cannot contain. Write a .json file")
    return "".join(f"{name}\t{label}\t{p:g}\n" if soft else f"{name}\t{label}\n" for label, p in labels.items())
