"""Much data in small: a folder with many files, and very many classes. What grows must grow no faster than the data."""

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.digit_net import DigitNet
from relabel.annotation.label_set import open_label_set
from relabel.checks.report import make_report
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.data.folders import list_images
from relabel.data.loader import TrainBatches
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import LabelFolder
from tests.conftest import Flags
from tests.relabel.test_label_pooling import LargestTensor
from utils.run_log import read_metrics

FILES = 30_000
K = 21_000  # classes of ImageNet-21K
TRAINED, BATCH = 32, 16


def make_files(folder: Path, names: list[str]) -> None:
    """Empty files, made fast."""
    folder.mkdir(parents=True)
    for name in names:
        os.close(os.open(folder / name, os.O_CREAT | os.O_WRONLY))


def test_a_class_folder_of_many_files_costs_a_hundred_bytes_each(tmp_path: Path) -> None:
    """Listed, with keys, with the files of its label maps looked for, and in the order of an epoch."""
    make_files(tmp_path / "train" / "one", [f"image_{i:07d}.JPEG" for i in range(FILES)])
    make_files(tmp_path / "labels" / "one", [f"image_{i:07d}.pt" for i in range(FILES)])
    tracemalloc.start()
    images = list_images(tmp_path / "train")
    keys = images.keys()
    held, _ = tracemalloc.get_traced_memory()
    missing = LabelFolder(tmp_path / "labels", keys, images.class_names).missing()
    order = [index for batch in TrainBatches(FILES, 100, 1, 0, 1, 0, 0, FILES // 100) for _, index in batch]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(images) == FILES and images.name(FILES - 1) == f"one/image_{FILES - 1:07d}.JPEG"
    assert missing.tolist() == list(range(FILES))  # these are empty
    assert sorted(order) == list(range(FILES))
    assert held < 100 * FILES and peak < 1000 * FILES


@pytest.fixture
def many_classes(tmp_path: Path) -> Path:
    """train/ with an image in each of K class folders, val/ in some of them, labels/, and whom to train on."""
    rng = np.random.default_rng(0)
    photo = tmp_path / "photo.jpg"
    Image.fromarray(rng.integers(0, 255, (28, 40, 3), dtype=np.uint8)).save(photo)
    names = [f"n{label:08d}" for label in range(K)]
    for folder, some in (("train", names), ("val", names[:: K // 20])):
        for name in some:
            (tmp_path / folder / name).mkdir(parents=True)
            os.link(photo, tmp_path / folder / name / "a.jpg")
    (tmp_path / "kept.txt").write_text("".join(f"{name}/a.jpg\n" for name in names[:: K // TRAINED][:TRAINED]))
    (tmp_path / "labels").mkdir()
    keys = list_images(tmp_path / "train").keys()
    manifest = Manifest(form="packed", maps=K, k=3, h=4, w=6, class_names=names, made_by={})
    writer = PackedWriter(tmp_path / "labels", keys, manifest)
    writer.begin()
    for row in range(K):
        classes = (row + np.arange(3)[:, None, None] * 100 + np.arange(24).reshape(4, 6)) % K
        writer.write(row, LabelMap(rng.normal(8, 3, (3, 4, 6)).astype(np.float16), classes))
    writer.commit({})
    return tmp_path


@pytest.mark.slow
def test_twenty_one_thousand_classes_are_trained_evaluated_and_checked(many_classes: Path, flags: Flags) -> None:
    """No tensor on the way is larger than the targets of a batch or the last layer; no array as large as images x K."""
    flags |= {
        "data.data_path": many_classes,
        "data.relabel.path": many_classes / "labels",
        "data.relabel.insist": True,
        "data.keep_list": many_classes / "kept.txt",
        "data.cutmix.prob": 1,
        "data.cutmix.beta": 1,
        "data.cutmix.off_epoch": 0,
        "optim.batch_size": BATCH,
        "optim.epochs": 1,
        "optim.label_smoothing": 0.1,
    }
    with LargestTensor() as largest:
        run(load_config("", {key: str(value) for key, value in flags.items()}))
    last_layer = DigitNet(K).fc.weight.numel()
    assert largest.elements == max(BATCH * (K + 1), last_layer)
    run_dir = Path(flags["util.run_dir"])
    loss, score = (event for event in read_metrics(run_dir) if event["event"] in ("train", "validation"))
    assert loss["loss"] == pytest.approx(np.log(K), rel=0.1) and score["images"] == 20
    labels = open_label_set(many_classes / "labels", images=None)
    tracemalloc.start()
    report = make_report(labels, maps=100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not report.integrity.problems() and len(report.integrity.usable) == K
    assert peak < 1000 * K
