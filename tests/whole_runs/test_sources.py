"""Whole runs on images as people have them: training, tools and evaluation do not depend on the form."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from relabel.__main__ import main as relabel
from relabel.label_map import LabelMap
from relabel.stores.pt_folder import write_label_map
from tests.conftest import Flags
from tests.image_forms import FORMS, WNIDS, Form, files, kaggle, one_tar, plain_folders, timms_shards, tsv_tables
from tests.relabel.training.test_run import assert_same_weights, start, weights
from utils.checkpoint import BEST
from utils.errors import UserError


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
def short(flags: Flags, plain: Path) -> Flags:
    """One epoch of two updates, with the label maps of the class folders."""
    few = {"optim.epochs": 1, "optim.warmup.epochs": 0, "data.relabel.path": plain / "labels"}
    return {key: value for key, value in flags.items() if key != "data.data_path"} | few


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


def test_a_run_goes_on_from_another_form(short: Flags, plain: Path, tmp_path: Path) -> None:
    """A share of the training images validates; the checkpoint does not depend on the form, so a run may change it."""
    share = {"data.val_share": 0.25, "optim.epochs": 2, "data.train": plain / "train"}
    expected = from_folders(short, plain, tmp_path / "folders", **share)
    shards = timms_shards(plain, tmp_path / "form") | {"data.val_share": 0.25}
    with pytest.raises(UserError, match=r"but there are validation images: .*imagenet1k-validation-0000\.tar"):
        start(short | shards)
    start(short | shards | {"data.train": f"{tmp_path}/form/*train*.tar"})
    start(short | share | {"data.train": one_tar(plain, tmp_path / "other")["data.data_path"]})
    assert_same_weights(weights(short["util.run_dir"]), expected)


def test_a_keep_list_and_extra_images_of_any_form(short: Flags, plain: Path, tmp_path: Path) -> None:
    keep = tmp_path / "keep.txt"
    keep.write_text("\n".join(f"{path.parent.name}/{path.name}" for path in files(plain, "train")[1:]))
    extra = {"data.keep_list": keep, "data.extra.labels": plain / "labels", "data.extra.share": 0.5}
    expected = from_folders(short, plain, tmp_path / "folders", **extra, **{"data.extra.path": plain / "train"})
    tar = one_tar(plain, tmp_path / "form")["data.data_path"]
    start(short | extra | {"data.data_path": tar, "data.extra.path": tar})
    assert_same_weights(weights(short["util.run_dir"]), expected)


def test_the_tools_take_images_of_any_form(
    short: Flags, plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands that a run prints work; label maps made from one form are checked against another."""
    no_maps = {"data.relabel.use": False, "data.relabel.path": ""}
    form = tsv_tables(plain, tmp_path / "form")
    start(short | no_maps | form)
    annotate = capsys.readouterr().out.replace("\\\n", " ").splitlines()[-1]
    relabel(shlex.split(annotate)[3:])
    assert f"12 images of 3 classes from files in {tmp_path}/form/train" in capsys.readouterr().out
    labels, tar = str(short["util.run_dir"] / "labels"), str(one_tar(plain, tmp_path / "tar")["data.data_path"])
    relabel(["check", labels, "--images", tar])
    assert "12 images of 3 classes from " in capsys.readouterr().out
    relabel(["show", "--labels", labels, "--images", tar, "--out", str(tmp_path / "a.png"), "--count", "1"])
    table = ["--table", str(form["data.train_labels"])]
    relabel(["export-labels", labels, str(tmp_path / "one.tsv"), "--images", str(tmp_path / "form" / "train"), *table])
    relabel(["export-labels", labels, str(tmp_path / "two.tsv"), "--images", tar])
    assert (tmp_path / "one.tsv").read_text() == (tmp_path / "two.tsv").read_text()
    relabel(["unpack", labels, str(tmp_path / "files")])
    relabel(["pack", str(tmp_path / "files"), str(tmp_path / "packed"), "--images", tar])
    assert "images without a label map" not in capsys.readouterr().out


def test_evaluation_of_any_form(short: Flags, plain: Path, tmp_path: Path) -> None:
    """The same predictions of the same names, by which `compare` joins them and ReaL's labels are found."""
    run = short["util.run_dir"]
    start(short | {"data.data_path": plain})
    test = {"util.test_only": True, "util.test_weight_file": run / BEST, "eval.predictions": True}
    keep = {key: short[key] for key in ("model.arch", "data.image_size", "compute.num_workers", "compute.opt_level")}
    predictions = []
    for form in (None, kaggle, timms_shards):
        out = tmp_path / f"evaluated-{form.__name__ if form else 'plain'}"
        flags = form(plain, tmp_path / form.__name__) if form else {"data.data_path": plain}
        flags = {key: value for key, value in flags.items() if "train" not in key}
        start(keep | test | flags | {"util.run_dir": out})
        (path,) = out.glob("predictions*.csv")
        predictions.append(path)
        assert re.sub(r"\.jpg", ".JPEG", path.read_text()) == predictions[0].read_text()


def test_boxes_of_kaggle(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table of the validation images has the boxes of `check`."""
    root = kaggle(plain, tmp_path / "form")["data.data_path"]
    val, boxes = root / "ILSVRC" / "Data" / "CLS-LOC" / "val", root / "LOC_val_solution.csv"
    relabel(
        ["annotate", str(val), str(tmp_path / "maps"), "--arch", "digit_net", "--weights", "random", "--size", "32x32"]
    )
    report = tmp_path / "report.json"
    check = ["check", str(tmp_path / "maps"), "--boxes", str(boxes), "--json", str(report)]
    with pytest.raises(SystemExit, match="1"):  # random maps have problems
        relabel([*check, "--images", str(val)])
    assert json.loads(report.read_text())["object_boxes"] == {"images_asked": 6, "images_with_boxes": 6, "refused": []}
    first, *lines = boxes.read_text().splitlines()
    boxes.write_text("\n".join([first, f"{lines[0]} n01440764 9 9", *lines[1:]]))
    with pytest.raises(SystemExit, match="1"):
        relabel([*check, "--images", str(val)])
    (refused,) = json.loads(report.read_text())["object_boxes"]["refused"]
    assert "expected WNID left top right bottom of each object" in refused
    with pytest.raises(SystemExit, match="2"):
        relabel(check)
    assert "--images" in capsys.readouterr().err


def test_one_class_folder_too_many(short: Flags, plain: Path, tmp_path: Path) -> None:
    """train/imagenet/CLASS/IMAGE is one class of nested images; the remedy is typed."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").mkdir()
    (tmp_path / "data" / "train" / "imagenet").symlink_to(plain / "train")
    (tmp_path / "data" / "val").symlink_to(plain / "val")
    flags = short | {"data.data_path": tmp_path / "data"}
    with pytest.raises(UserError, match="found one class, imagenet; expected at least two") as raised:
        start(flags)
    (remedy,) = re.findall(r"did you mean --data.train (\S+),", str(raised.value))
    start(flags | {"data.train": remedy})
    assert_same_weights(weights(short["util.run_dir"]), from_folders(short, plain, tmp_path / "folders"))
