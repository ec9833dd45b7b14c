"""How good must a teacher be? The gain of its students against its own accuracy, and what `check` had said of its maps.

    python -m benchmarks.teacher_quality digits [--out FOLDER] [--seeds N] [--figure FILE.png] [--json FILE]
    python -m benchmarks.teacher_quality imagewoof --images IMAGEWOOF ...

On the digit scenes the teachers are networks whose training was stopped early, and the shipped one. On Imagewoof they
are the packaged EfficientNet-Lite0, 1 and 2, and a ResNet-18 that has only seen the folders: the first student of
original labels. A teacher's accuracy is that of its targets of whole validation images. EfficientNet-Lite has learned
ImageNet's training images, and most of Imagewoof's validation images are such: its accuracy is too high for them.

Finished steps are not repeated: the same command continues.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Page

from benchmarks.result import Figure, arguments, report
from relabel.checks.report import WEAK_AGREEMENT_PERCENT
from relabel.demo.experiments import EXPERIMENTS, LABELS, ORIGINAL, RELABEL, ROOT, packaged
from relabel.demo.reproduce import TRAIN_SCENES, VAL_SCENES, Steps, train_all
from relabel.demo.results import TOP1, Student, gains, measure
from relabel.figures.colours import CORRECT, INK, WARNING
from relabel.figures.panels import DPI, plain_axes, save
from utils.checkpoint import LAST
from utils.estimates import Estimate
from utils.files import read_json
from utils.processes.commands import stop_once
from utils.progress import counted

EARLY = (1, 2, 4, 8)  # epochs after which the training of a teacher ends, of 20
SIZES = ("224x224", "240x240", "260x260")  # of EfficientNet-Lite 0, 1 and 2
VAL_LABELS = "labels-val"
Teachers = dict[str, tuple[str, ...]]  # name -> flags of `annotate`


def main() -> None:
    """Make the teachers and their maps, train their students, report."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("on", choices=["digits", "imagewoof", "imagewoof-small"])
    parser.add_argument("--images", type=Path, help="Imagewoof, as in `reproduce`")
    parser.add_argument("--out", type=Path, help="folder of everything; default: runs/teachers-ON")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train", type=int, default=TRAIN_SCENES, help="training scenes")
    parser.add_argument("--val", type=int, default=VAL_SCENES, help="validation scenes")
    parser.add_argument("--figure", type=Path, help="write a picture to this file")
    options = arguments(__doc__ or "", parser)
    if options.tiny:
        options.train, options.val, options.seeds = 128, 10, 1
    if (options.on == "digits") == bool(options.images):
        sys.exit("--images is for Imagewoof, which needs it")
    stop_once()
    out = (options.out or ROOT / "runs" / f"teachers-{options.on}").resolve()
    experiment, seeds = EXPERIMENTS[options.on], range(options.seeds)
    steps = Steps(experiment, out, options.images and options.images.absolute())
    steps.make_images(options.train, options.val)
    originals = Steps(replace(experiment, of_scenes=False), out, steps.data)
    train_all(originals.jobs([(ORIGINAL, seed) for seed in seeds]))
    teachers = _digit_teachers(steps, options) if options.on == "digits" else _imagewoof_teachers(out)
    insist = {"data.relabel.insist": "True"}  # train on the maps of the worst teachers too
    of = {name: replace(originals, out=out / name.replace(" ", "-"), more=insist) for name in teachers}
    for name, flags in teachers.items():
        of[name].annotate(LABELS, flags)
        of[name].annotate(VAL_LABELS, flags, "val")
    train_all([job for each in of.values() for job in each.jobs([(RELABEL, seed) for seed in seeds])])
    students = [measure(originals.folder(ORIGINAL, seed), None, ORIGINAL.title, seed) for seed in seeds]
    students += [measure(of[name].folder(RELABEL, seed), None, name, seed) for name in of for seed in seeds]
    points = [_point(name, of[name].out, students) for name in of]
    if options.figure:
        draw(options.figure, points, f"{options.on}, {options.seeds} seeds")
    figures = [Figure.of(f"{name}: gain", "points", gain.mean(axis=1)) for name, gain in gains(students).items()]
    remarks = [f"{p['teacher']}: {p['accuracy_percent']:.1f} % itself; check: {p['verdict']}" for p in points]
    report(f"students' gain by teacher, {options.on}", figures, remarks, options.json, {"points": points})


def _digit_teachers(steps: Steps, options: argparse.Namespace) -> Teachers:
    """Train teachers for too few epochs, and add the shipped one."""
    size = steps.experiment.teacher[2:]
    teachers = {}
    for epochs in EARLY:
        settings = {"optim.epochs": epochs, "optim.warmup.epochs": min(1, epochs - 1)}
        last = steps.train_teacher(options.train * 8 // 3, options.val, f"annotator-{epochs}", **settings)
        teachers[counted(epochs, "epoch")] = ("--weights", str(last), *size)
    return teachers | {"20 epochs": steps.experiment.teacher}


def _imagewoof_teachers(out: Path) -> Teachers:
    own = ("--weights", str(out / f"{ORIGINAL.recipe}-seed0" / LAST))
    lite = {f"EfficientNet-Lite{n}": packaged(f"tf_efficientnet_lite{n}", size) for n, size in enumerate(SIZES)}
    return {"student of the folders": own} | lite


def _point(name: str, folder: Path, students: list[Student]) -> dict[str, Any]:
    """Return a teacher's accuracy, what `check` said of its maps, and the gain of its students."""
    train, val = (read_json(folder / f"{labels}.json", "expected a report") for labels in (LABELS, VAL_LABELS))
    agreement = train["calibration"]["top1_agreement_percent"]
    verdict = "weak" if agreement["high95"] < WEAK_AGREEMENT_PERCENT else "no objection"
    gain = gains(students)[name]
    over_seeds, over_images = Estimate.mean(gain.mean(axis=1)), Estimate.mean(gain.mean(axis=0))
    assert over_images is not None
    return {
        "teacher": name,
        "accuracy_percent": val["calibration"]["top1_agreement_percent"]["value"],
        "agreement_percent": agreement["value"],
        "cross_entropy_nats": train["calibration"]["cross_entropy_nats"]["value"],
        "verdict": "; ".join(train["problems"]) or verdict,
        "top1_percent": float(np.mean([student.values[TOP1] for student in students if student.row == name])),
        "gain_points": over_images.value,
        "over_images": [over_images.low95, over_images.high95],
        "over_seeds": over_seeds and [over_seeds.low95, over_seeds.high95],
    }


def draw(out: Path, points: list[dict[str, Any]], about: str) -> None:
    """Draw the gain of the students against the accuracy of their teacher, with its interval over the images."""
    page = Page(figsize=(7.2, 4.6), layout="constrained", dpi=DPI)
    axes = page.subplots()
    axes.axhline(0, color="0.6", linewidth=1, linestyle="--")
    for number, point in enumerate(sorted(points, key=lambda point: point["accuracy_percent"])):
        colour = CORRECT if point["verdict"] == "no objection" else WARNING
        at, gain = point["accuracy_percent"], point["gain_points"]
        axes.plot([at, at], point["over_images"], color=colour, linewidth=4, alpha=0.3)
        axes.plot(at, gain, "o", color=colour)
        place, ha = ((8, -11), "left") if number % 2 == 0 else ((-8, 2), "right")  # neighbours to different sides
        axes.annotate(
            point["teacher"], (at, gain), xytext=place, textcoords="offset points", ha=ha, fontsize=9, color=INK
        )
    axes.margins(x=0.2)
    axes.set_xlabel("top-1 of the teacher's targets of whole validation images, %", color=INK)
    axes.set_ylabel("students' gain over original labels, points", color=INK)
    title = f"{about}; interval over the images\nblue: `check` has no objection; red: it calls the teacher weak"
    axes.set_title(title, fontsize=11, color=INK, loc="left")
    plain_axes(axes, "y")
    save(page, out)


if __name__ == "__main__":
    main()
