"""A page for looking through thousands of label maps in a browser: one HTML file that needs nothing else.

Thumbnails and maps are part of the file, as data that a script shows; names reach it as JSON and are shown as text.
"""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.colors import to_hex
from PIL import Image
from scipy.special import entr

from relabel.annotation.label_set import LabelSet, open_label_set
from relabel.crop_box import WHOLE_IMAGE
from relabel.data.class_names import class_labels
from relabel.data.decode import ImageFile
from relabel.figures import colours
from relabel.figures.label_maps import make_example
from relabel.figures.map_panel import OPACITY, SATURATION
from relabel.figures.panels import BARS, NONE_STORED, UNIFORM, is_uniform, largest
from relabel.figures.selection import how_drawn, named_rows, random_rows
from utils.files import write_text
from utils.progress import JobProgress

TEMPLATE = Path(__file__).with_name("page.html")
THUMBNAIL, QUALITY = 128, 60  # pixels of the longer side; of its JPEG
LEVELS = 15  # of a cell's opacity, above 0: four bits; the other four are its class
STYLES = ("ink", "muted", "track", "mat", "warning")


def draw_page(
    words: Sequence[str],
    labels: Path,
    images: Path,
    out: Path,
    *,
    table: Path | None = None,
    count: int,
    seed: int,
    fill: float,
    temperature: float,
) -> str:
    """Write a page of images with their label maps and the targets of whole images.

    Args:
        words, labels, images, table, seed, fill, temperature: as in `draw_figure`.
        out: the HTML file to write.
        count: number of random images.

    Returns:
        What the page shows, in a line.

    Raises:
        UserError: an image does not exist, it or its map cannot be read, or the file cannot be written.
    """
    found = open_label_set(labels, images, table)
    assert found.images is not None
    rows = named_rows(found.images, words) if words else sorted(random_rows(found, count, seed))
    entries = []
    with JobProgress("show", len(rows), "images") as progress:
        for row in rows:
            entries.append(_entry(found, row, fill, temperature))
            progress.advance(1)
    _, height, width = found.store.read(rows[0]).shape
    data = {
        "classes": class_labels(found.class_names), "palette": colours.PALETTE, "other": to_hex(colours.OTHER_COLOUR),
        "none_stored": " ".join(NONE_STORED),
        "rows": height, "columns": width, "opacity": OPACITY, "levels": LEVELS, "images": entries,
    }  # fmt: skip
    shown = _choice(found, rows, seed, bool(words))
    if found.labels is not None:
        shown += f"; the label is not the top class of {sum(entry['wrong'] for entry in entries):,}"
    whose = "class folders" if found.images.class_names else "classes of the maps"
    facts = f"{images}: {shown}; targets over {len(found.class_names):,} {whose}; {height}x{width} cells"
    facts += f"; fill {fill:g}, temperature {temperature:g}"
    parts = {
        "title": _as_html(f"Label maps: {labels}"),
        "facts": _as_html(facts),
        "colours": " ".join(f"--{name}: {to_hex(getattr(colours, name.upper()))};" for name in STYLES),
        "saturation": str(SATURATION),
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),  # no name can end the script element
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    write_text(out, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))
    return shown


def _choice(found: LabelSet, rows: Sequence[int], seed: int, named: bool) -> str:
    """Describe which images are shown."""
    missing = len(found.store.missing())
    without = f", {missing:,} of them without a label map" if missing else ""
    how = "" if named or len(rows) == len(found) - missing else f", {how_drawn(found, seed)}"
    return f"{len(rows):,} of {len(found):,} images{without}{how}"


def _entry(found: LabelSet, row: int, fill: float, temperature: float) -> dict[str, Any]:
    """Return what the page knows of an image."""
    assert found.images is not None
    file, label_map = ImageFile(found.images.path(row), "simplejpeg"), found.store.read(row)
    label = None if found.labels is None else int(found.labels[row])
    num_classes, image = len(found.class_names), _thumbnail(file)
    example = make_example(image, label, label_map, [WHOLE_IMAGE], num_classes, fill, temperature)
    target, own_colours = example.targets[0], example.colours()
    of_label = 0.0 if label is None else float(target[label])
    stored = np.isin(np.arange(num_classes), label_map.classes)
    top = largest(target, BARS)
    used, cells = _cells(example.cells, own_colours)
    return {
        "name": found.images.name(row),
        "label": label,
        "wrong": example.is_disputed,
        "uniform": is_uniform(target),
        "top": [(index, round(share, 4), _place(own_colours, index)) for index, share in top],
        "others": num_classes - len(top) + 1,
        "of_label": round(of_label, 5),
        "disagreement": round(float(target.max()) - of_label, 5),
        "entropy": round(float(entr(target).sum()), 4),
        "leak": round(float(target[~stored].sum()), 5),
        "used": used,
        "cells": _base64(cells.tobytes()),
        "size": image.shape[1::-1],
        "jpeg": _jpeg(image),
    }


def _cells(cells: np.ndarray, own_colours: dict[int, str]) -> tuple[list[tuple[int, int | None]], np.ndarray]:
    """Pack a map into a byte per cell.

    Args:
        cells: float [K, h, w]; the probabilities of each cell.
        own_colours: class -> colour.

    Returns:
        The (at most 15) classes that lead in most cells, each with its colour's place in the palette; uint8 [h, w]: the
        lower four bits are the place of the cell's class among these (15: none of them), the upper four its
        probability, in fifteenths; 0 for a cell that stores none of the classes.
    """
    classes, which, counts = np.unique(cells.argmax(0), return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    places = np.minimum(np.argsort(order), LEVELS)[which].reshape(cells.shape[1:]).astype(np.uint8)
    strength = np.maximum(1, np.round(LEVELS * cells.max(0))) * (np.ptp(cells, axis=0) > UNIFORM)
    strength = strength.astype(np.uint8)
    leading = classes[order[:LEVELS]].tolist()
    return [(index, _place(own_colours, index)) for index in leading], places | strength << 4


def _place(own_colours: dict[int, str], index: int | None) -> int | None:
    """Return the place of a class's colour in the palette; None: it has none."""
    return colours.PALETTE.index(own_colours[index]) if index in own_colours else None


def _thumbnail(file: ImageFile) -> np.ndarray:
    """Return the image squeezed into a small square, without changing its shape: uint8 [H, W, 3]."""
    scale = THUMBNAIL / max(file.width, file.height)
    height, width = (max(1, round(side * scale)) for side in (file.height, file.width))
    return file.resized_crop(WHOLE_IMAGE, height, width).transpose(1, 2, 0)


def _jpeg(image: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG", quality=QUALITY, optimize=True)
    return _base64(content.getvalue())


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _as_html(text: str) -> str:
    """Return text for HTML; the name of a folder may contain markup, and bytes that are no UTF-8."""
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"))
