"""Whole runs on images as people have them: training, tools and evaluation do not depend on the form."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from tests.conftest import ROOT, Flags
from tests.image_forms import FORMS, WNIDS, Form, files, plain_folders
from tests.relabel.training.test_run import assert_same_weights, start, weights

PHOTOS = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with label maps."""
    root, rng = plain_folders(tmp_path_factory.mktemp("plain")), np.random.default_rng(1)
    for path in files(root, "train"):
        dense = rng.normal(size=(3, 3, 4)).astype(np.float32)
        dense[WNIDS.index(path.parent.name)] += 8
        write_label_map(root / "labels", f"{path.parent.name}/{path.stem}", LabelMap.from_dense(dense, 2))
    return root


@pytest.fixture
def short(flags: Flags, plain: Path) -> Iterator[Flags]:
    """One epoch of two updates, with the label maps of the class folders."""
    few = {"optim.epochs": 1, "optim.warmup.epochs": 0, "data.relabel.path": plain / "labels"}
    yield {key: value for key, value in flags.items() if key != "data.data_path"} | few


trained: dict[str, Any] = {}


def from_folders(short: Flags, plain: Path, folder: Path, **more: object) -> Any:
    """Weights of the same run from plain folders, trained once."""
    key = str(sorted(more.items()))
    if key not in trained:
        start(short | more | {"data.data_path": plain, "util.run_dir": folder})
        trained[key] = weights(folder)
    return trained[key]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_training_from_any_form_is_training_from_folders(
    short: Flags, plain: Path, tmp_path: Path, form: Form, capsys: pytest.CaptureFixture[str]
) -> None:
    """Bit for bit, with label maps that were made for the folders; a line for each split says what is used."""
    expected = from_folders(short, plain, tmp_path / "folders")
    capsys.readouterr()
    start(short | form(plain, tmp_path / "form"))
    assert_same_weights(weights(short["util.run_dir"]), expected)
    printed = capsys.readouterr().out
    assert "train: 12 images of 3 classes from " in printed and "val: 6 images of " in printed
