"""Few images: the batch, the rate and the warm-up fit them, and every change is said."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from pytest import CaptureFixture

from relabel import __main__ as tools
from relabel.cli.run import run
from relabel.config.load import fire_arguments, load_config
from tests.conftest import ROOT, Flags, make_photos
from tests.relabel.training.test_run import metrics, start


def test_batch_rate_and_warmup_follow_the_data(flags: Flags, capsys: CaptureFixture[str]) -> None:
    larger = {"optim.batch_size": 100, "optim.lr.per_256": True, "optim.epochs": 2, "optim.warmup.epochs": 5}
    start({**flags, **larger, "optim.optimizer": "adamw", "optim.wd.on_norms_and_biases": False})
    out = capsys.readouterr().out
    assert "\n2 epochs of 1 step, batch size 30;" in out and "leaves out" not in out
    assert "\ntrain/ has 30 images: batches of 30, not 100\n" in out
    assert "\nlearning rate 0.00586: 0.05 per 256 images, scaled to batches of 30\n" in out
    assert "warm-up in the first half of the run: optim.warmup.epochs is 5, more than its 2 epochs" in out
    rates = [e["learning_rate"] for e in metrics(flags["util.run_dir"]) if e["event"] == "train"]
    assert rates == pytest.approx([0, 0.05 * 30 / 256])


def test_what_an_epoch_leaves_out_is_said(flags: Flags, capsys: CaptureFixture[str]) -> None:
    start({**flags, "optim.batch_size": 8, "optim.epochs": 1})
    out = capsys.readouterr().out
    assert "\nan epoch leaves out 6 of 30 images (20.0 %), others each time, because its last batch is not full" in out
    remedy = re.search(r"--(optim.batch_size) (\d+) leaves out none", out)
    assert remedy and remedy[2] == "6"
    start({**flags, remedy[1]: int(remedy[2]), "optim.epochs": 1, "util.run_dir": flags["util.run_dir"] / "new"})
    assert "leaves out" not in capsys.readouterr().out


def test_a_loss_that_explodes_is_told_once_and_a_remedy_helps(flags: Flags, capsys: CaptureFixture[str]) -> None:
    flags |= {"optim.warmup.epochs": 0, "util.print_freq": 1, "optim.epochs": 2}
    start({**flags, "optim.lr.init": 3})
    out = capsys.readouterr().out
    assert len(re.findall(r"warning: the loss [\d.e+]+ is far above ln K = 1\.10", out)) == 1
    assert "Lower --optim.lr.init or set --optim.clip_grad_norm 1" in out
    start({**flags, "optim.lr.init": 0.05, "util.run_dir": flags["util.run_dir"].with_name("lower")})
    assert "far above" not in capsys.readouterr().out


def test_the_commands_of_the_own_photos_page_run_as_typed(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: CaptureFixture[str]
) -> None:
    """On noise, which the label maps do not describe: `check` says so, and training must be told to go on."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for split in ("train", "val"):
        make_photos(Path("PHOTOS", split), {"n02086240": 3, "n02087394": 3, "n02088364": 3}, np.random.default_rng(0))
    block = (ROOT / "docs/own-photos.md").read_text(encoding="utf-8").split("\n## ")[1]
    first, second, *trainings = re.findall(r"^ {4}(python .*)$", block.replace("\\\n", " "), re.MULTILINE)[:4]
    tools.main(shlex.split(first)[3:])
    with pytest.raises(SystemExit):
        tools.main(shlex.split(second)[3:])
    assert "PHOTOS/train" in second and "LABELS" in second
    short = ["--optim.epochs", "1", "--data.relabel.insist", "True", "--compute.num_workers", "0"]
    for line in trainings:
        words = fire_arguments([*shlex.split(line)[2:], *(short if "relabel.use" not in line else short[:2])])
        given = dict(word[2:].split("=", 1) for word in words)
        run(load_config(given.pop("config_file_path"), given))
        status = json.loads(Path(given["util.run_dir"], "status.json").read_text())
        assert status["state"] == "done"
    out = capsys.readouterr().out
    assert "train/ has 9 images: batches of 9, not 16" in out and "starting from packaged" in out
