"""Bytes of a label map against what they keep: fewer classes per cell, fewer cells, scores of fewer bits.

    python -m relabel annotate IMAGES DENSE --arch NAME --size 480x480 --top_k 1000
    python -m benchmarks.label_bytes DENSE --temperature 0.3 [--mirrored STORE] [--figure FILE.png]
    python -m benchmarks.label_bytes DENSE --students IMAGEWOOF --out FOLDER

DENSE are complete label maps: the scores of all classes of the teacher. Each smaller form is made of them, and the
targets of the same random crops are pooled from both. The change of a target is half the sum of absolute differences,
the share of its probability that moves to other classes. STORE are complete maps of the same images mirrored, by the
same teacher: how far their targets differ is the teacher's own uncertainty.

--students trains one student per form and seed on Imagewoof, for which DENSE has the maps; there, --top_k 50 is enough
and takes 0.4 GB.
"""

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure as Page
from torch import Tensor

from benchmarks.result import Figure, arguments, report, with_progress
from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.demo.experiments import EXPERIMENTS, LABELS, ORIGINAL, RELABEL
from relabel.demo.reproduce import Steps, train_all
from relabel.demo.results import gains, measure
from relabel.figures.colours import INK, PALETTE
from relabel.figures.panels import DPI, plain_axes, save
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.store import LabelStore, keys_of, manifest_of, open_label_store
from relabel.targets import relabel_target
from utils.estimates import Estimate
from utils.processes.commands import stop_once

CLASSES_PER_CELL, CELLS, BITS = (1, 2, 3, 5, 10), (4, 5, 7, 9, 12, 15), (16, 8, 4)
CROPS = 16  # of each image
SIDE = 400  # pixels of the square image that crops are drawn in; only its roundness matters


@dataclass(frozen=True, slots=True)
class Form:
    """A form of label maps.

    Fields:
        k: classes per cell.
        cells: rows and columns.
        bits: of a score; 16 is float16, fewer are even steps between the lowest and the highest score of the map.
    """

    k: int
    cells: int
    bits: int

    def __str__(self) -> str:
        return f"k {self.k}, {self.cells} x {self.cells}, {self.bits} bits"

    def size(self, num_classes: int) -> float:
        """Return bytes per image: scores of 16 bits as in the packed store, with ids of 16; others with short ids."""
        of_id = 16 if self.bits == 16 else math.ceil(math.log2(num_classes))
        steps = 4 if self.bits < 16 else 0  # the lowest score and the step, float16
        return self.k * self.cells**2 * (self.bits + of_id) / 8 + steps

    def reduced(self, dense: Tensor) -> LabelMap:
        """Reduce a complete map, float32 [K, h, w]: average the logits of neighbouring cells, keep k, round."""
        label_map = LabelMap.from_dense(F.adaptive_avg_pool2d(dense, self.cells), self.k)
        scores = label_map.scores
        if self.bits < 16:
            low, steps = scores.min(), 2**self.bits - 1
            step = max(float(scores.max() - low) / steps, 1e-6)
            scores = low + np.round((scores - low) / step) * step
        return LabelMap(scores.astype(np.float16), label_map.classes)


PAPER = Form(5, 15, 16)
STUDENTS = (PAPER, Form(10, 15, 16), Form(5, 7, 16), Form(5, 7, 8), Form(3, 5, 8), Form(2, 4, 4), Form(1, 4, 4))


def main() -> None:
    """Measure every form, or train students on some."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("dense", type=Path, nargs="?")
    parser.add_argument("--mirrored", type=Path, help="complete maps of the same images mirrored")
    parser.add_argument("--temperature", type=float, default=1.0, help="of the targets, as `check` suggests")
    parser.add_argument("--students", type=Path, metavar="IMAGEWOOF", help="train students on these images")
    parser.add_argument("--out", type=Path, default=Path("runs/label-bytes"), help="folder of the students")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--figure", type=Path, help="write a picture to this file")
    options = arguments(__doc__ or "", parser)
    if options.tiny:
        with TemporaryDirectory() as folder:
            options.dense = _random_store(Path(folder))
            _measure(options)
    elif options.students:
        _train(options)
    else:
        _measure(options)


def _measure(options: argparse.Namespace) -> None:
    """Report the change of targets by every form, mean over images."""
    store, num_classes = _open(options.dense)
    forms = [Form(k, n, bits) for bits in BITS for n in CELLS for k in CLASSES_PER_CELL if k <= num_classes]
    changes: dict[Form, list[float]] = {form: [] for form in forms}
    from_paper: dict[Form, list[float]] = {form: [] for form in forms}
    own = []
    mirrored = _open(options.mirrored)[0] if options.mirrored else None
    settings = {"num_classes": num_classes, "temperature": options.temperature}
    for row in with_progress(range(len(store)), "forms", "images"):
        dense, boxes = _dense(store, row, num_classes), _crops(row)
        complete = _target(LabelMap.from_dense(dense, num_classes), boxes, **settings)
        paper = _target(PAPER.reduced(dense), boxes, **settings)
        for form in forms:
            target = _target(form.reduced(dense), boxes, **settings)
            changes[form].append(_change(target, complete))
            from_paper[form].append(_change(target, paper))
        if mirrored:
            back = LabelMap.from_dense(_dense(mirrored, row, num_classes).flip(2), num_classes)
            own.append(_change(_target(back, boxes, **settings), complete))
    figures = [Figure.of(f"{form}: change from complete maps", "% of the target", changes[form]) for form in forms]
    yardstick = float(np.mean(own)) if own else None
    points: list[dict[str, Any]] = [
        {
            "k": form.k,
            "cells": form.cells,
            "bits": form.bits,
            "bytes": form.size(num_classes),
            "change_percent": float(np.mean(changes[form])),
            "standard_error": float(np.std(changes[form], ddof=1) / math.sqrt(len(store))),
            "change_from_paper_percent": float(np.mean(from_paper[form])),
            "more_than_paper_points": _interval(np.array(changes[form]) - np.array(changes[PAPER])),
        }
        for form in forms
    ]
    remarks = [f"{len(store):,} images, {CROPS} crops each, {num_classes:,} classes; fill 0"]
    remarks.append(f"temperature {options.temperature:g}")
    if yardstick:
        remarks.append(f"targets of the mirrored images differ by {yardstick:.1f} %")
    details = {"points": points, "mirrored_images_percent": yardstick}
    if options.figure:
        draw(options.figure, points, yardstick, len(store))
    report("label maps in fewer bytes", figures, remarks, options.json, details)


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    """Return the mean over images and its 95 % interval."""
    found = Estimate.mean(values)
    assert found is not None
    return found.value, found.low95, found.high95


def _open(path: Path) -> tuple[LabelStore, int]:
    """Open complete maps; return them and their number of classes."""
    manifest = manifest_of(path)
    assert manifest is not None
    return open_label_store(path, keys_of(path), manifest.class_names), len(manifest.class_names)


def _dense(store: LabelStore, row: int, num_classes: int) -> Tensor:
    return torch.from_numpy(store.read(row).to_dense(num_classes))


def _crops(row: int) -> Tensor:
    """Draw the crops of an image, float32 [CROPS, 4]."""
    rng = np.random.default_rng(row)
    return CropBox.stack([random_crop_box(rng, SIDE, SIDE, MIN_AREA) for _ in range(CROPS)])


def _target(label_map: LabelMap, boxes: Tensor, num_classes: int, temperature: float) -> Tensor:
    scores, classes = LabelMap.stack([label_map])
    many = (len(boxes), *scores.shape[1:])
    return relabel_target(scores.expand(many), classes.expand(many), boxes, num_classes, temperature=temperature)


def _change(target: Tensor, reference: Tensor) -> float:
    """Return the share of the probability that is on other classes, in percent; mean over crops."""
    return 50 * float((target - reference).abs().sum(dim=1).mean())


def draw(out: Path, points: list[dict[str, Any]], yardstick: float | None, images: int) -> None:
    """Draw change against bytes: a panel for each number of bits, a curve for each k over the numbers of cells."""
    page = Page(figsize=(11.5, 4.4), layout="constrained", dpi=DPI)
    panels = page.subplots(1, len(BITS), sharex=True, sharey=True)
    for axes, bits in zip(panels, BITS, strict=True):
        for k, colour in zip(CLASSES_PER_CELL, PALETTE, strict=False):
            curve = [point for point in points if (point["k"], point["bits"]) == (k, bits)]
            values = [[point[name] for point in curve] for name in ("bytes", "change_percent")]
            axes.plot(*values, "o-", color=colour, markersize=4, label=f"{k} class{'es' * (k > 1)} per cell")
            if (k, bits) == (PAPER.k, PAPER.bits):
                axes.annotate("the paper's form", [values[0][-1], values[1][-1]], (0, 9), textcoords="offset points",
                              fontsize=9, color=colour, ha="center")  # fmt: skip
        axes.axvline(1000, color="0.8", linewidth=1, zorder=0)
        if yardstick:
            axes.axhline(yardstick, color="0.55", linewidth=1.2, linestyle="--", label="mirrored images")
        axes.set_xscale("log")
        axes.set_ylim(0, None)
        axes.set_xlabel("bytes per image", color=INK)
        axes.set_xticks([100, 1000, 10_000], ["100", "1,000", "10,000"])
        axes.set_title(f"scores of {bits} bits", fontsize=11, color=INK, loc="left")
        plain_axes(axes, "y")
    panels[0].set_ylabel("change of targets, %", color=INK)
    panels[-1].legend(fontsize=8, frameon=False)
    cells = f"{CELLS[0]} x {CELLS[0]} to {CELLS[-1]} x {CELLS[-1]}"
    title = f"Share of a crop's target that moves to other classes; each curve: {cells} cells; {images:,} images"
    page.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    save(page, out)


def _train(options: argparse.Namespace) -> None:
    """Report the top-1 of students on some forms, and their gain over the paper's form, paired over the images."""
    stop_once()
    data, out = options.students.absolute(), options.out.resolve()
    steps = {
        form: Steps(EXPERIMENTS["imagewoof"], out / str(form).replace(", ", "-").replace(" ", ""), data)
        for form in STUDENTS
    }
    for form in steps:
        _write_store(options.dense, steps[form].out / LABELS, form)
    first = steps[PAPER]
    runs = [(ORIGINAL, first, "original labels")] + [(RELABEL, each, str(form)) for form, each in steps.items()]
    train_all([job for row, each, _ in runs for job in each.jobs([(row, seed) for seed in range(options.seeds)])])
    students = [
        measure(each.folder(row, seed), None, title, seed) for row, each, title in runs for seed in range(options.seeds)
    ]
    figures = []
    for title, gain in gains(students).items():
        top1 = [student.values["top1_percent"] for student in students if student.row == title]
        figures.append(Figure.of(f"{title}: top-1", "%", top1))
        figures.append(Figure.of(f"{title}: gain over original labels", "points", gain.mean(axis=1)))
    num_classes = _open(options.dense)[1]
    sizes = {str(form): form.size(num_classes) for form in STUDENTS}
    remarks = [f"bytes per image: {'; '.join(f'{form}: {size:,.0f}' for form, size in sizes.items())}"]
    report("students on label maps in fewer bytes", figures, remarks, options.json, {"bytes": sizes})


def _write_store(dense: Path, out: Path, form: Form) -> None:
    """Write the maps of a store in another form; scores are float16 again, but only take that form's values."""
    store, num_classes = _open(dense)
    manifest, changes = manifest_of(dense), {"k": form.k, "h": form.cells, "w": form.cells, "sha256": {}}
    assert manifest is not None
    changes["made_by"] = manifest.made_by | {"reduced to": str(form)}
    maps = (form.reduced(_dense(store, row, num_classes)) for row in range(len(store)))
    _write(out, keys_of(dense), manifest.model_copy(update=changes), maps)


def _write(out: Path, keys: np.ndarray, manifest: Manifest, maps: Iterable[LabelMap]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    writer = PackedWriter(out, keys, manifest)
    if not writer.begin().all():
        for row, label_map in enumerate(maps):
            writer.write(row, label_map)
    writer.commit({})


def _random_store(folder: Path) -> Path:
    """Write complete maps of a few images, for a trial."""
    rng = np.random.default_rng(0)
    maps = (LabelMap.from_dense(rng.normal(0, 3, (12, 15, 15)).astype(np.float16), 12) for _ in range(3))
    keys = np.array([b"a/0", b"a/1", b"b/2"])
    names = [f"class_{i}" for i in range(12)]
    _write(
        folder / "dense", keys, Manifest(form="packed", maps=3, k=12, h=15, w=15, class_names=names, made_by={}), maps
    )
    return folder / "dense"


if __name__ == "__main__":
    main()
