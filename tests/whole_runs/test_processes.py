"""Several processes on one machine: the same weights, the same counts, and endings that leave nobody behind."""

import csv
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.digit_net import DigitNet
from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.folders import list_images
from relabel.data.loader import Loader, epoch_order, eval_batches
from relabel.training.validation import evaluate
from tests.conftest import Flags, make_photos
from tests.forked_runs import fork_run, wait_until
from tests.miniatures import AS_IN_2021
from tests.relabel.training.test_run import start, status, weights
from utils.checkpoint import LAST
from utils.errors import UserError
from utils.precision import Precision
from utils.processes.distributed import Process
from utils.run_log import METRICS, read_metrics, write_status

RunMain = Callable[..., subprocess.CompletedProcess[str]]


def processes(n: int) -> Flags:
    """n processes of this machine, meeting at a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "compute.distributed.num_processes_per_node": n,
        "compute.distributed.url": f"tcp://127.0.0.1:{port}",
        "compute.distributed.backend": "gloo",
    }


@pytest.mark.slow
def test_two_processes_train_as_one_does(flags: Flags, tmp_path: Path) -> None:
    # No batch norm, no dropout, no CutMix: only the order of sums may differ.
    flags |= {"model.arch": "timm/test_convnext", "data.image_size": 32, "optim.epochs": 2, "optim.warmup.epochs": 0}
    start(flags)
    two = {**flags, "util.run_dir": tmp_path / "two"}
    assert fork_run(two, tmp_path / "output", 2).ends() == [0, 0], (tmp_path / "output").read_text()
    first, second = weights(flags["util.run_dir"]), weights(tmp_path / "two")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_an_evaluation_counts_each_image_once_however_it_is_shared(flags: Flags, tmp_path: Path) -> None:
    """103 images, a prime: no number of processes or batch size divides them."""
    make_photos(tmp_path / "data" / "val", {"ant": 50, "bee": 30, "cow": 23}, np.random.default_rng(1))
    torch.manual_seed(0)
    model, names = DigitNet(3), ["ant", "bee", "cow"]
    with torch.no_grad():
        model.fc.weight.normal_(std=60)  # answers that differ from image to image
    torch.save({"state_dict": model.state_dict(), "class_names": names}, tmp_path / "w.pth")
    labels = {name: ["ant", "cow"] for name in map(list_images(tmp_path / "data" / "val").name, range(103))}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    test = {key: flags[key] for key in ("model.arch", "data.image_size", "compute.opt_level")} | {
        "data.data_path": tmp_path / "data",
        "util.test_only": True,
        "util.test_weight_file": tmp_path / "w.pth",
        "eval.labels": tmp_path / "labels.json",
        "eval.predictions": True,
    }
    found = []
    for n, workers, batch in [(1, 0, 103), (1, 2, 500), (2, 2, 14), (3, 0, 9)]:
        folder = tmp_path / f"{n}-{workers}-{batch}"
        how = {"compute.num_workers": workers, "util.val_batch_size": batch, "util.run_dir": folder}
        assert fork_run(test | how, tmp_path / "output", n).ends() == [0] * n, (tmp_path / "output").read_text()
        report = json.loads((folder / "evaluation-w.json").read_text())["results"]
        figures = {result["metric"]: (round(result["value"], 4), result["n"]) for result in report}
        with (folder / "predictions-w-val.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        chances = [float(row.pop(name)) for row in rows for name in ("top1_probability", "label_probability")]
        found.append((figures, rows, chances))
    figures, rows, chances = found[0]
    assert figures["top1_percent"][1] == len(rows) == 103 and len({row["top5"] for row in rows}) > 1
    assert figures["top1_percent"][0] == round(100 * sum(row["top1"] == row["label"] for row in rows) / 103, 4)
    for other in found[1:]:
        assert other[:2] == (figures, rows)
        assert other[2] == pytest.approx(chances, abs=2e-6)  # the last bits depend on the batch
    assert (tmp_path / "output").read_text().count("top1_percent ") == len(found)


@pytest.mark.slow
def test_a_validation_counts_each_image_once_however_it_is_shared(flags: Flags, photos: Path, tmp_path: Path) -> None:
    """And by the weights that are saved, statistics of batch norm included, which each process has its own of."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(photos / "train")
    make_photos(tmp_path / "data" / "val", {"ant": 50, "bee": 30, "cow": 23}, np.random.default_rng(1))
    flags |= {"data.data_path": tmp_path / "data", "optim.epochs": 1, "optim.warmup.epochs": 0}
    assert fork_run(flags, tmp_path / "output", 3).ends() == [0] * 3, (tmp_path / "output").read_text()
    found = next(event for event in read_metrics(flags["util.run_dir"]) if event["event"] == "validation")
    images = list_images(tmp_path / "data" / "val")
    dataset = ImageDataset(images, CenterCrop(16, 0.875), decoder="simplejpeg")
    loader = Loader(dataset, eval_batches(103, 103, 0, 1), 0, torch.device("cpu"))
    model = DigitNet(3).eval()
    model.load_state_dict(weights(flags["util.run_dir"]))
    alone, precision = Process(0, 1, 0, 1, torch.device("cpu")), Precision("O0", torch.device("cpu"))
    expected = evaluate({"": model}, images, loader, precision, alone, AS_IN_2021)[""]
    assert found["images"] == 103
    for name, value in asdict(expected).items():
        assert found[name] == (None if value is None else pytest.approx(value, rel=1e-5)), name


def write_status_late(module: str, seconds: float) -> None:
    """Let a module sleep before it writes status.json."""

    def write_late(*words: Any, **named: Any) -> None:
        time.sleep(seconds)
        write_status(*words, **named)

    pytest.MonkeyPatch().setattr(f"relabel.training.{module}.write_status", write_late)


# The main process writes that it is running while the other one writes that it has failed.
LATE = {0: partial(write_status_late, "trainer", 1.0), 1: partial(write_status_late, "run", 0.5)}


def refused_once(flags: Flags, tmp_path: Path) -> str:
    """What two processes print, of which both or one refuse these flags; the other may be killed."""
    output = tmp_path / "output"
    output.unlink(missing_ok=True)
    assert 2 in fork_run(flags, output, 2, LATE).ends()
    text = output.read_text()
    assert text.count("error: ") == 1 and "Traceback" not in text, text
    return text


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_bad_image_of_any_process_is_named(flags: Flags, photos: Path, tmp_path: Path, rank: int) -> None:
    """Met in training, then in an evaluation of the checkpoint that was saved."""
    shutil.copytree(photos / "train", tmp_path / "data" / "train")
    (tmp_path / "data" / "val").symlink_to(photos / "val")
    images = list_images(tmp_path / "data" / "train")
    first = int(epoch_order(flags["compute.seed"], 0, 30)[6 + 3 * rank])  # of step 2, on this rank
    bad = Path(str(images.path(first)))
    bad.write_bytes(bad.read_bytes()[:300])
    flags |= {"data.data_path": tmp_path / "data", "util.checkpoint_minutes": 0}
    assert bad.name in refused_once(flags, tmp_path)
    assert status(flags["util.run_dir"])["state"] == "failed" and bad.name in status(flags["util.run_dir"])["reason"]
    (tmp_path / "data" / "val").unlink()
    shutil.copytree(photos / "val", tmp_path / "data" / "val")
    bad = Path(str(list_images(tmp_path / "data" / "val").path(6 + rank)))
    bad.write_bytes(bad.read_bytes()[:300])
    keep = ("model.arch", "data.image_size", "compute.num_workers", "compute.opt_level", "util.val_batch_size")
    test = {"util.test_only": True, "util.test_weight_file": flags["util.run_dir"] / LAST}
    test |= {"data.data_path": tmp_path / "data", "util.run_dir": tmp_path / "test"}
    assert bad.name in refused_once({key: flags[key] for key in keep} | test, tmp_path)


@pytest.mark.slow
def test_what_the_main_process_refuses_is_reported_once(flags: Flags, run_main: RunMain) -> None:
    """By our own launcher, too."""
    start(flags)
    done = run_main({**flags, **processes(2), "optim.momentum": 0.8})
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1 and "Traceback" not in done.stderr
    assert "optim.momentum: 0.9 there, 0.8 now" in done.stderr


def test_a_second_run_in_the_same_folder_is_kept_out(
    flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fork_run({**flags, "optim.epochs": 20000}, tmp_path / "output")
    folder = flags["util.run_dir"]
    wait_until(lambda: (folder / METRICS).exists() and len(read_metrics(folder)) > 2, "the first run trains")
    monkeypatch.setattr("utils.files._LOCK_WAIT_S", 0)
    try:
        with pytest.raises(UserError, match="another process is training in"):
            start(flags)
    finally:
        first.kill()
    assert status(folder)["state"] == "running"


def test_a_port_in_use_is_named(flags: Flags) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        url = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(UserError, match=rf"compute\.distributed\.url is {url}, but its port cannot be opened"):
            start({**flags, **processes(2), "compute.distributed.url": url})
    assert not flags["util.run_dir"].exists()
