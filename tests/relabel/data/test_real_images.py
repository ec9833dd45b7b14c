"""ImageNet's own photos through the whole path, where they are at hand."""

from pathlib import Path

import numpy as np
import pytest

from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.data.images import list_images
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from tests.conftest import ROOT, Flags
from utils.run_log import read_metrics

PHOTOS = ROOT.parent / "shared" / "data" / "imagenet_sample"

pytestmark = pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs the 400 ImageNet photos in ../shared/data")


@pytest.fixture
def sixteen(tmp_path: Path) -> Path:
    """16 photos of 16 classes, the same for training and validation, and correct maps of 5 x 7 cells."""
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for folder in sorted(PHOTOS.iterdir())[:16]:
            (tmp_path / split / folder.name).symlink_to(folder)
    images = list_images(tmp_path / "train")
    for key, label in zip(images.keys().tolist(), images.labels.tolist(), strict=True):
        dense = np.zeros((16, 5, 7), dtype=np.float32)
        dense[label] = 15
        write_label_map(tmp_path / "labels", key.decode(), LabelMap.from_dense(dense, 2))
    return tmp_path


@pytest.mark.slow
def test_resnet18_learns_16_photos_by_heart(sixteen: Path) -> None:
    flags: Flags = {
        "model.arch": "resnet18",
        "data.data_path": sixteen,
        "data.image_size": 32,
        "data.rrc_minimum": 0.7,
        "data.relabel.path": sixteen / "labels",
        "optim.epochs": 40,
        "optim.batch_size": 16,
        "optim.lr.init": 0.05,
        "optim.warmup.epochs": 3,
        "compute.seed": 0,
        "compute.num_workers": 0,
        "compute.opt_level": "O0",
        "util.run_dir": sixteen / "run",
    }
    run(load_config("", {key: str(value) for key, value in flags.items()}))
    validations = [event for event in read_metrics(flags["util.run_dir"]) if event["event"] == "validation"]
    assert max(event["top1_percent"] for event in validations) >= 90
