"""The tools as a person types them: their screens, their mistakes, and real label maps of real scenes."""

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from models.digit_net import DigitNet
from relabel import __main__ as tools
from relabel.augment import MEAN, STD
from relabel.dataset import list_images
from relabel.decode import RESAMPLING
from relabel.label_store import open_label_store

ROOT = Path(__file__).resolve().parent.parent
COMMANDS: list[Callable[..., None]] = [tools.digits, tools.annotate, tools.demo, tools.digits_annotator]
TEACHER = ["--arch", "digit_net", "--size", "56x72", "--num_workers", "0"]


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
    """A checkpoint of a digit_net that says the same about every cell of every image."""
    network = DigitNet(len(bias))
    torch.nn.init.zeros_(network.fc.weight)
    network.fc.bias.data = torch.tensor(bias)
    torch.save({"state_dict": network.state_dict(), **more}, path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_the_screen_of_a_command_shows_every_parameter(
    capsys: pytest.CaptureFixture[str], command: Callable[..., None]
) -> None:
    name = command.__name__.replace("_", "-")
    with pytest.raises(SystemExit) as caught:
        tools.main([name, "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0 and out.startswith(f"usage: python -m relabel {name} ")
    for parameter in inspect.signature(command).parameters.values():
        assert re.search(rf"^  (--{parameter.name}|{parameter.name.upper()}) ", out, flags=re.MULTILINE)


def test_the_first_screen_shows_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        tools.main([])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert re.findall(r"^  ([a-z-]+) ", out, flags=re.MULTILINE) == ["digits", "annotate", "demo", "digits-annotator"]


def test_defaults_and_choices_are_those_of_the_parts() -> None:
    parameters = inspect.signature(tools.annotate).parameters
    assert (parameters["mean"].default, parameters["std"].default) == (MEAN, STD)
    assert list(get_args(parameters["interpolation"].annotation)) == list(RESAMPLING)


@pytest.mark.parametrize(
    ("argv", "status", "match"),
    [
        ([], 0, "^$"),
        (["annotate", "--help"], 0, "^$"),
        (["anotate", "a", "b"], 2, "did you mean annotate"),
        (["digits", "--out", "new", "--train", "9", "--vall", "10"], 2, "2 problems.*\n.*--train = '9'.*\n.*--vall "),
        (["digits", "out=new"], 2, "write --out=new"),
        (["annotate", ".", "new", "--arch", "resnet18", "--weights", "no.pth"], 2, "--weights = 'no.pth'"),
        (["annotate", "nowhere", "new"], 2, "IMAGES = 'nowhere'.*\n.*--arch NAME .*is missing"),
        (["demo", "--seeds", "0", "--out", "new"], 2, "--seeds = '0'"),
        (["digits-annotator"], 2, "--out FILE .*is missing"),
        (["digits-annotator", "--out", "no/a.pth"], 2, "--out = 'no/a.pth' .*expected a file in a folder that exists"),
        (["digits-annotator", "--out", "."], 2, "--out = '.' .*expected a file in a folder that exists"),
    ],
)
def test_a_real_process_ends_before_torch_without_a_trace(
    tmp_path: Path, argv: list[str], status: int, match: str
) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "relabel", *argv]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    lines = done.stderr.splitlines(keepends=True)
    imports = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    err = "".join(line for line in lines if not line.startswith("import time:"))
    assert "pydantic" in imports and imports.isdisjoint({"torch", "numpy", "relabel.annotator"})
    assert done.returncode == status and re.search(match, err) and "Traceback" not in err
    assert (done.stdout == "") == (status == 2)
    assert tree(tmp_path) == []


def test_digits_writes_scenes(scenes: Path) -> None:
    assert len(list_images(scenes / "train")) == 20 and len(list_images(scenes / "val")) == 10


def test_annotate_with_random_weights_says_so_and_continues(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["annotate", str(scenes / "train"), str(tmp_path / "maps"), *TEACHER, "--top-k", "3", "--half", "true"]
    tools.main(argv)
    out, err = capsys.readouterr()
    assert re.search(r"warning: no --weights, so digit_net has RANDOM WEIGHTS and its label maps are MEANINGLESS", err)
    assert "20 images of 10 classes; digit_net on " in out and f"label maps: {tmp_path / 'maps'}\n" in out
    images = list_images(scenes / "train")
    store = open_label_store(tmp_path / "maps", images.keys(), 10)
    store.check_present(images.path)
    for row in range(20):
        label_map = store.read(row)  # validates
        assert label_map.shape == (3, 4, 5) and label_map.scores.dtype == np.float16
    (tmp_path / "maps" / f"{images.keys()[7]}.pt").unlink()
    tools.main(argv)
    assert "1 written" in capsys.readouterr().out
    store.check_present(images.path)


def test_annotate_uses_the_checkpoint_its_averaged_weights_first(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = list_images(scenes / "train")
    bias = [0.0, 1.0, 9.0, 2.0, 3.0, 4.0, 8.0, 5.0, 6.0, 7.0]
    plain = save_teacher(tmp_path / "plain.pth", bias, class_names=images.class_names)
    ema = {f"module.{name}": tensor for name, tensor in torch.load(plain)["state_dict"].items()}
    ema["module.fc.bias"] = torch.tensor(bias).neg()
    both = save_teacher(tmp_path / "both.pth", bias, state_dict_ema=ema)
    for weights, top in ((plain, {2: 9.0, 6: 8.0}), (both, {0: 0.0, 1: -1.0})):
        out = tmp_path / weights.stem
        tools.main(["annotate", *map(str, (scenes / "train", out)), *TEACHER, "--top_k=2", f"--weights={weights}"])
        assert capsys.readouterr().err == ""
        label_map = open_label_store(out, images.keys(), 10).read(11)
        assert label_map.shape == (2, 4, 5)
        for plane, (label, score) in enumerate(top.items()):
            assert (label_map.classes[plane] == label).all() and (label_map.scores[plane] == score).all()


def test_a_teacher_of_other_classes_is_refused(
    scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"digit_{i}" for i in range(10)]
    few = save_teacher(tmp_path / "few.pth", [0.0] * 7)
    named = save_teacher(tmp_path / "named.pth", [0.0] * 7, class_names=names[:7])
    other = save_teacher(tmp_path / "other.pth", [0.0] * 10, class_names=[*names[:9], "zebra"])
    for weights, match in (
        (few, r"few.pth: found a teacher of 7 classes and images of 10 classes; expected the same"),
        (named, r"of 7 classes \(it does not know digit_7\)"),
        (other, r"other.pth: found a teacher of 10 classes \(it does not know digit_9\)"),
    ):
        argv = ("annotate", scenes / "train", tmp_path / "maps", *TEACHER, "--weights", weights)
        assert re.search(match, refused(capsys, *argv))
    assert not (tmp_path / "maps").exists()


@pytest.mark.parametrize(
    ("flags", "match"),
    [
        (["--arch", "digitnet"], "found --arch 'digitnet'; expected .*Did you mean digit_net"),
        (["--arch", "vgg11"], "VGG cannot make label maps: .*A teacher must end in global average pooling"),
        (["--arch", "digit_net", "--top_k", "11"], "--top_k = 11 .*give a --top_k in 1..10"),
        (
            ["--arch", "resnet18", "--weights", "teacher.pth"],
            "teacher.pth: the checkpoint does not fit(.*\n)*.*set --arch",
        ),
        (["--arch", "mobilenet_v2", "--weights", "teacher.pth"], "cannot tell.* --arch mobilenet_v2 keeps it in"),
        (["--arch", "digit_net", "--weights", "text.pth"], "text.pth "),
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
    Path("text.pth").write_text("no tensors", encoding="utf-8")
    err = refused(capsys, "annotate", scenes / "train", "maps", "--size", "56x72", *flags)
    assert re.search(match, err) and "model.arch" not in err
    assert not Path("maps").exists()


def test_the_folder_above_the_class_folders_is_refused_in_the_words_of_the_tool(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    err = refused(capsys, "annotate", tmp_path, tmp_path / "maps", *TEACHER)
    assert "found no class folder" in err and "Point IMAGES to such data" in err
    assert tree(tmp_path) == []
