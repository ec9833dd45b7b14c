"""The commands as they are typed: help screens, mistakes, and label maps from making to training."""

import inspect
import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from models.digit_net import DigitNet
from relabel import __main__ as tools
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.data.decode import RESAMPLING
from relabel.data.folders import list_images
from relabel.stores.store import open_label_store
from tests.conftest import ROOT

VIEW = ["--size", "56x72", "--num_workers", "0"]
TEACHER = ["--arch", "digit_net", *VIEW]


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    with pytest.raises(SystemExit) as caught:
        tools.main([str(word) for word in argv])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 training and 10 validation scenes, written by the tool itself."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("tools") / "scenes"
    tools.main(["digits", "--out", str(out), "--seed", "3", "--train", "20", "--val=10"])
    return out


def save_teacher(path: Path, bias: Sequence[float], **more: Any) -> Path:
    """Write a checkpoint of a digit_net whose logits are the bias for every cell of every image."""
    network = DigitNet(len(bias))
    torch.nn.init.zeros_(network.fc.weight)
    network.fc.bias.data = torch.tensor(bias)
    torch.save({"state_dict": network.state_dict(), **more}, path)
    return path


@pytest.mark.parametrize("command", tools.COMMANDS)
def test_the_screen_of_a_command_shows_every_parameter(
    capsys: pytest.CaptureFixture[str], command: Callable[..., None]
) -> None:
    name = command.__name__.replace("_", "-")
    with pytest.raises(SystemExit) as caught:
        tools.main([name, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and re.match(rf"usage: python -m relabel {name}\s", out)
    for parameter in inspect.signature(command).parameters.values():
        assert re.search(rf"^  (--{parameter.name}|{parameter.name.upper()}) ", out, flags=re.MULTILINE)


def test_the_first_screen_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tools.main([])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    names = [command.__name__.replace("_", "-") for command in tools.COMMANDS]
    assert re.findall(r"^  ([a-z-]+) ", out, flags=re.MULTILINE) == ["train", "evaluate", *names]


def test_choices_are_those_of_the_parts() -> None:
    annotation = inspect.signature(tools.annotate).parameters["interpolation"].annotation
    assert list(get_args(get_args(annotation)[0])) == list(RESAMPLING)


def test_annotate_warns_about_random_weights_and_continues(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["annotate", str(scenes / "train"), str(tmp_path / "maps"), *TEACHER, "--top-k", "3", "--weights", "random"]
    argv += ["--format", "pt"]
    tools.main(argv)
    out, err = capsys.readouterr()
    assert re.search("warning: digit_net has RANDOM WEIGHTS and its label maps are MEANINGLESS", err)
    assert f"20 images of 10 classes from class folders in {scenes / 'train'}\neach image is squashed to 56 x" in out
    assert "\nteacher: digit_net (random), 10 classes, on " in out
    assert f"label maps: {tmp_path / 'maps'}\n" in out
    images = list_images(scenes / "train")
    store = open_label_store(tmp_path / "maps", images.keys(), images.class_names)
    assert len(store.missing()) == 0
    for row in range(20):
        label_map = store.read(row)  # validates
        assert label_map.shape == (3, 4, 5) and label_map.scores.dtype == np.float32
    (tmp_path / "maps" / f"{images.keys()[7].decode()}.pt").unlink()
    tools.main(argv)
    assert "1 written" in capsys.readouterr().out
    assert len(store.missing()) == 0


def test_annotate_uses_averaged_weights_first_and_class_names(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher may know more classes than the images, in any order, but must know theirs."""
    names = [f"digit_{i}" for i in range(10)]
    more = {"class_names": ["zebra", *names[::-1]], "arch": "digit_net"}
    plain = save_teacher(tmp_path / "plain.pth", [5.0, *[0.0] * 9, 9.0], **more)
    weights = torch.load(plain, weights_only=True)["state_dict"]
    ema = {f"module.{name}": tensor.neg() if name == "fc.bias" else tensor for name, tensor in weights.items()}
    both = save_teacher(tmp_path / "both.pth", [5.0, *[0.0] * 9, 9.0], state_dict_ema=ema, **more)
    keys = list_images(scenes / "train").keys()
    for teacher, scores in ((plain, [9, 5]), (both, [0, 0])):
        out = tmp_path / teacher.stem
        tools.main(["annotate", *map(str, (scenes / "train", out)), *VIEW, "--top_k=2", f"--weights={teacher}"])
        assert capsys.readouterr().err == ""
        label_map = open_label_store(out, keys, names).read(11)
        assert label_map.scores[:, 3, 4].tolist() == scores
        assert teacher == both or label_map.classes[:, 3, 4].tolist() == [
            0,
            10,
        ]  # zebra, which these images lack, is 10
    other = save_teacher(tmp_path / "other.pth", [0.0] * 10, class_names=[*names[:9], "zebra"])
    err = refused(capsys, "annotate", scenes / "train", tmp_path / "maps", *TEACHER, "--weights", other)
    assert "found images of 10 classes, of which the teacher does not know 1, the first: digit_9" in err
    assert not (tmp_path / "maps").exists()


@pytest.mark.slow
def test_label_maps_from_making_to_training(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], own_handlers: None
) -> None:
    """Annotate, check, show, unpack, pack, export; then train with the store and the keep list."""
    train, labels = str(scenes / "train"), str(tmp_path / "labels")
    tools.main(["annotate", train, labels, "--weights", str(ROOT / "configs/digits/annotator.pth"), "--size", "64x80"])
    report = tmp_path / "report.json"
    argv = ["check", labels, "--images", train, "--boxes", str(scenes / "train.json"), "--json", str(report)]
    tools.main(argv)
    out = capsys.readouterr().out
    assert "No problems found" in out and json.loads(report.read_text())["problems"] == []
    tools.main(["show", "digit_3/train_00003", "--labels", labels, "--images", train, "--out", str(tmp_path / "a.png")])
    assert (tmp_path / "a.png").stat().st_size > 10_000

    tools.main(["unpack", labels, str(tmp_path / "files")])
    tools.main(["pack", str(tmp_path / "files"), str(tmp_path / "again"), "--images", train])
    assert "identical before and after" in capsys.readouterr().out
    for name in ("maps.npy", "keys.npy", "crc32.npy"):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "labels" / name).read_bytes()

    keep = str(tmp_path / "keep.txt")
    tools.main(["export-labels", labels, keep, "--images", train, "--form", "agreeing"])
    count = sum(not line.startswith("#") for line in Path(keep).read_text().splitlines())
    assert 12 <= count <= 20

    flags = {"data.data_path": str(scenes), "data.relabel.path": labels, "data.keep_list": keep}
    flags |= {"optim.epochs": "1", "optim.warmup.epochs": "0", "optim.batch_size": "4"}
    flags |= {"util.run_dir": str(tmp_path / "run"), "compute.num_workers": "0"}
    run(load_config(str(ROOT / "configs/digits/relabel.yaml"), flags))
    assert f"{count} training images of 10 classes" in capsys.readouterr().out

    damaged = np.load(tmp_path / "labels" / "maps.npy", mmap_mode="r+")
    damaged["scores"][5] += 1
    damaged.flush()
    with pytest.raises(SystemExit) as caught:
        tools.main(argv)
    assert caught.value.code == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "does not match its CRC" in out


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--arch", "digitnet", "--weights", "random"], "Did you mean digit_net(.|\\n)*Correct --arch or --weights"),
        (["--arch", "alexnet", "--weights", "random"], "AlexNet cannot make label maps: "),
        (["--arch", "digit_net"], "digit_net has no published weights"),
        ([], "pretrained names no network(.|\\n)*--arch"),
        (["--arch", "digit_net", "--weights", "nothing.pth"], "found no file nothing.pth; expected pretrained"),
        (["--arch", "digit_net", "--weights", "random", "--top_k", "11"], "--top_k is 11 .*expected 1..10"),
        (["--arch", "resnet18", "--weights", "teacher.pth"], "teacher.pth: the checkpoint does not fit"),
    ],
)
def test_a_teacher_that_cannot_serve_is_refused(
    scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    match: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save_teacher(Path("teacher.pth"), [0.0] * 10)
    err = refused(capsys, "annotate", scenes / "train", "maps", "--size", "56x72", *flags)
    assert re.search(match, err) and "model.arch" not in err
    assert not Path("maps").exists()


def test_what_was_skipped_is_no_dead_end(scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two images cannot be read: check reports them, export leaves them out, and the keep list has the others."""
    train = tmp_path / "train"
    shutil.copytree(scenes / "train", train)
    for path in sorted(train.glob("digit_0/*"))[:2]:
        path.write_text("no image")
    labels, keep = str(tmp_path / "labels"), str(tmp_path / "keep.txt")
    argv = ["annotate", str(train), labels, "--weights", str(ROOT / "configs/digits/annotator.pth"), "--size", "64x80"]
    tools.main([*argv, "--on_error", "skip"])
    with pytest.raises(SystemExit) as caught:
        tools.main(["check", labels, "--images", str(train)])
    out = " ".join(capsys.readouterr().out.split())
    assert caught.value.code == 1 and "Unreadable images: 2" in out
    assert "Images skipped when the maps were made: 2," in out and "Images without a label map" not in out
    tools.main(["export-labels", labels, keep, "--images", str(train), "--form", "agreeing", "--threshold", "0"])
    assert "images without a label map, left out: 2 of 20" in capsys.readouterr().out
    assert sum(not line.startswith("#") for line in Path(keep).read_text().splitlines()) == 18


def test_a_folder_without_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for images, out in (("", "maps"), ("empty", "empty"), ("empty", "empty/maps")):
        err = refused(capsys, "annotate", tmp_path / images, tmp_path / out, *TEACHER, "--weights", "random")
        assert "lies inside IMAGES" in err
    err = refused(capsys, "annotate", tmp_path / "empty", tmp_path / "maps", *TEACHER, "--weights", "random")
    assert "found neither class folders nor images" in err and "Give another folder" in err
    assert tree(tmp_path) == ["empty"]
