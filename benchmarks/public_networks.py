"""Public networks on the same photos: this project's evaluation against the library's own transform and network.

Target: no accuracy differs by more than one photo in 300. Packaged weights are real. Networks of torchvision and timm
get random ones, saved as a file without any note of what the network expects: their answers are wrong but definite, so
what counts is the difference of a photo's log-probability, as a share of its standard deviation over the photos.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torchvision
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_sample_images
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torchvision import transforms

from benchmarks.result import Figure, arguments, report, with_progress
from models.packaged import PACKAGES, packaged_state_dict

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = tuple(f"timm/{name}" for name in PACKAGES)
RANDOM = (
    *("resnet18", "mobilenet_v3_small", "efficientnet_b0", "densenet121"),
    *("timm/resnet10t", "timm/mobilenetv3_small_100", "timm/rexnet_100", "timm/efficientnet_b0"),
    *("timm/vit_tiny_patch16_224", "timm/deit_tiny_patch16_224", "timm/convnext_atto"),
)
TINY = ("timm/tf_efficientnet_lite0", "mobilenet_v3_small")
PHOTOS_PER_DIFFERENCE = 300
BATCH = 25


@dataclass(frozen=True, slots=True)
class Answers:
    """A network's answers for N photos.

    Fields:
        top1_percent, top5_percent, real_percent: accuracies; ReaL None without its labels.
        real_photos: with labels of ReaL.
        classes: [N]; the most likely class of each photo.
        log_probability: float64 [N]; of the photo's folder.
    """

    top1_percent: float
    top5_percent: float
    real_percent: float | None
    real_photos: int
    classes: list[str]
    log_probability: np.ndarray


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table: what our evaluation and the library's say of a network; accuracies in %."""

    network: str
    weights: str
    photos: int
    real_photos: int
    top1_percent: tuple[float, float]
    top5_percent: tuple[float, float]
    real_percent: tuple[float | None, float | None]
    other_class_photos: int
    largest_difference_percent: float

    @property
    def differing_photos(self) -> float:
        """The largest difference of an accuracy, in photos."""
        pairs = [
            (self.top1_percent, self.photos),
            (self.top5_percent, self.photos),
            (self.real_percent, self.real_photos),
        ]
        return max(abs((ours or 0) - (theirs or 0)) * n / 100 for (ours, theirs), n in pairs)


def main() -> None:
    """Evaluate every network twice, on the CPU in float32; print a table."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--data", type=Path, help="folder with val/WNID/IMAGE, original names; none: only --tiny")
    parser.add_argument("--real", type=Path, help="real.json of ReaL")
    options = arguments(__doc__ or "", parser)
    with tempfile.TemporaryDirectory() as folder:
        data = write_photos(Path(folder) / "data") if options.tiny else options.data
        if data is None:
            raise SystemExit("give --data FOLDER with val/WNID/IMAGE of ImageNet, or --tiny")
        networks = TINY if options.tiny else (*PACKAGED, *RANDOM)
        pairs = [
            compare(network, data, None if options.tiny else options.real, Path(folder))
            for network in with_progress(networks, "evaluating", "networks")
        ]
    rows, figures = [row for row, _ in pairs], [figure for _, figure in pairs]
    print_rows(rows)
    photos, differing = rows[0].photos, max(row.differing_photos for row in rows)
    verdict = f"accuracies differ by at most {differing:.0f} of {photos:,} photos; target: 1 in {PHOTOS_PER_DIFFERENCE}"
    details = {"networks": [asdict(row) for row in rows]}
    report("public networks, ours against the library's own evaluation", figures, [verdict], options.json, details)


def compare(network: str, data: Path, real: Path | None, folder: Path) -> tuple[Row, Figure]:
    """Evaluate one network with its library, then with this project."""
    photos = sorted((data / "val").glob("*/*"))
    model, transform = library_network(network)
    images = [transform(Image.open(photo).convert("RGB")) for photo in photos]
    weights, title = "packaged", "packaged"
    if network in PACKAGED:
        model.load_state_dict(packaged_state_dict(network.removeprefix("timm/"))[0])
    else:
        weights, title = str(folder / f"{network.replace('/', '-')}.pth"), "random, from a file"
        settle_batch_norm(model, torch.stack(images[: 2 * BATCH]))
        torch.save(model.state_dict(), weights)
    theirs = library_answers(model, images, photos, real)
    ours = our_answers(network, weights, data, real, folder / network.replace("/", "-"))
    spread = theirs.log_probability.std()
    differences = 100 * np.abs(ours.log_probability - theirs.log_probability) / spread
    row = Row(
        network,
        title,
        len(photos),
        theirs.real_photos,
        (ours.top1_percent, theirs.top1_percent),
        (ours.top5_percent, theirs.top5_percent),
        (ours.real_percent, theirs.real_percent),
        sum(one != other for one, other in zip(ours.classes, theirs.classes, strict=True)),
        float(differences.max()),
    )
    what = f"{network}: difference of a photo's log-probability"
    return row, Figure.of(what, "% of its deviation", differences)


def library_network(network: str) -> tuple[nn.Module, Callable[[Image.Image], Tensor]]:
    """Return a network with random weights from a fixed seed, and its library's evaluation transform.

    torchvision states a transform for its own weights only; other files get that of its reference training until 2022.
    """
    torch.manual_seed(0)
    if network.startswith("timm/"):
        model = timm.create_model(network.removeprefix("timm/"))
        config = timm.data.resolve_model_data_config(model, use_test_size=True)  # as timm's validate.py
        return model.eval(), timm.data.create_transform(**config, is_training=False)
    steps = [
        transforms.Resize(256),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
    options = {"init_weights": True} if network in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(network, weights=None, **options).eval(), transforms.Compose(steps)


@torch.no_grad()
def settle_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Give batch norm the statistics of photos: random weights then answer differently for each photo."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.momentum = 1.0
        layer.train()
    model(images)
    model.eval()


@torch.inference_mode()
def library_answers(model: nn.Module, images: list[Tensor], photos: Sequence[Path], real: Path | None) -> Answers:
    """Classify the transformed photos and count what is correct."""
    names = list(ImageNetInfo().label_names())
    labels = torch.tensor([names.index(photo.parent.name) for photo in photos])
    parts = [model(torch.stack(images[start : start + BATCH])) for start in range(0, len(images), BATCH)]
    scores = torch.cat(parts).log_softmax(dim=1)
    top5 = scores.topk(5).indices
    correct = top5 == labels[:, None]
    accepted = [set(json.loads(real.read_text())[number - 1]) for number in map(number_of, photos)] if real else []
    in_real = [int(first) in own for first, own in zip(top5[:, 0], accepted, strict=bool(real)) if own]
    return Answers(
        top1_percent=100 * correct[:, 0].double().mean().item(),
        top5_percent=100 * correct.any(dim=1).double().mean().item(),
        real_percent=100 * sum(in_real) / len(in_real) if real else None,
        real_photos=len(in_real),
        classes=[names[index] for index in top5[:, 0].tolist()],
        log_probability=scores.gather(1, labels[:, None])[:, 0].double().numpy(),
    )


def number_of(photo: Path) -> int:
    """Return the number of a photo named ILSVRC2012_val_NUMBER.JPEG."""
    return int(photo.stem.split("_")[2])


def our_answers(network: str, weights: str, data: Path, real: Path | None, folder: Path) -> Answers:
    """Run main.py as a user would, and read what it writes."""
    command = [
        *(sys.executable, "main.py", "--data.data_path", str(data)),
        *("--util.test_only", "True", "--util.test_weight_file", weights, "--model.arch", network),
        *("--util.run_dir", str(folder), "--eval.predictions", "True", "--compute.opt_level", "O0"),
        *("--util.val_batch_size", str(BATCH), "--compute.num_workers", "2"),
        *(("--eval.real", str(real)) if real else ()),
    ]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{network}: {done.stderr or done.stdout}")
    results: list[dict[str, Any]] = json.loads(next(folder.glob("evaluation-*.json")).read_text())["results"]
    values = {result["metric"]: result for result in results}
    with next(folder.glob("predictions-*.csv")).open() as file:
        lines = sorted(csv.DictReader(file), key=lambda line: line["image"])
    return Answers(
        top1_percent=values["top1_percent"]["value"],
        top5_percent=values["top5_percent"]["value"],
        real_percent=values["real_percent"]["value"] if real else None,
        real_photos=values["real_percent"]["n"] if real else 0,
        classes=[line["top1"] for line in lines],
        log_probability=np.log([float(line["label_probability"]) for line in lines]),
    )


def write_photos(data: Path) -> Path:
    """Write scikit-learn's two photographs as if they were ImageNet's: the palace and the flower."""
    for wnid, photo in zip(("n03877845", "n11939491"), load_sample_images().images, strict=True):
        path = data / "val" / wnid / "photo.png"
        path.parent.mkdir(parents=True)
        Image.fromarray(photo).save(path)
    return data


def print_rows(rows: Sequence[Row]) -> None:
    """Print a line per network; a pair of accuracies is ours, then the library's."""
    table = Table(title="ours, the library's (%)")
    for heading in ("network", "weights", "top-1", "top-5", "ReaL", "other class", "difference"):
        table.add_column(heading, justify="left" if heading in ("network", "weights") else "right")
    for row in rows:
        pairs = (row.top1_percent, row.top5_percent, row.real_percent)
        accuracies = [", ".join("-" if value is None else f"{value:.2f}" for value in pair) for pair in pairs]
        other, largest = f"{row.other_class_photos} of {row.photos}", f"{row.largest_difference_percent:.2f} %"
        table.add_row(row.network, row.weights, *accuracies, other, largest)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
