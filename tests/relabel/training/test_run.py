"""Whole runs: from flags to weights, a run folder, and back."""

import json
import os
import re
import shlex
import shutil
import signal
from collections.abc import Callable
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from models.digit_net import DigitNet
from relabel.__main__ import main as relabel
from relabel.augment import normalise
from relabel.cli.run import FIGURES, run
from relabel.config.load import load_config
from relabel.data.dataset import ImageDataset
from relabel.training.build import workers_of
from relabel.training.reports import RunFigures
from relabel.training.trainer import Trainer
from tests.conftest import Flags
from tests.miniatures import AS_IN_2021
from utils.checkpoint import BEST, LAST, PREVIOUS, load_checkpoint
from utils.errors import EXIT_PREEMPTED, UserError
from utils.processes.distributed import Process, available_cores
from utils.run_log import read_metrics

RATES = ("images_per_s", "data_wait_percent", "elapsed_s")
EVERYTHING: Flags = {
    "optim.optimizer": "adamp",
    "optim.ema.decay": 0.9,
    "optim.accumulation": 2,
    "optim.clip_grad_norm": 1.0,
    "data.cutmix.prob": 0.5,
    "data.cutmix.beta": 1.0,
    "data.cutmix.off_epoch": 1,
    "compute.opt_level": "bf16",
}
"""What a run may hold beyond its network, in one run."""


def start(flags: Flags) -> None:
    """What main.py does, in this process."""
    run(load_config("", {key: str(value) for key, value in flags.items()}))


def weights(folder: Path, name: str = LAST) -> dict[str, torch.Tensor]:
    """The weights of a run's checkpoint."""
    state_dict: dict[str, torch.Tensor] = load_checkpoint(folder / name)["state_dict"]
    return state_dict


def assert_same_weights(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The events of a run without what depends on the clock."""
    return [{k: v for k, v in event.items() if k not in RATES} for event in read_metrics(folder)]


def status(folder: Path) -> dict[str, Any]:
    """status.json."""
    content: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return content


_undisturbed: dict[str, Path] = {}


def undisturbed(flags: Flags) -> Path:
    """The folder of a run with these flags that nothing disturbed; made once in a session, not to be changed."""
    key = repr({**flags, "util.run_dir": ""})
    if key not in _undisturbed:
        folder = flags["data.data_path"].parent / f"undisturbed-{len(_undisturbed)}"
        start({**flags, "util.run_dir": folder})
        _undisturbed[key] = folder
    return _undisturbed[key]


def at_step(patch: pytest.MonkeyPatch, step: int, action: Callable[[Trainer], object]) -> None:
    """Do something just before the update that begins at a step."""
    original = Trainer.train_step

    def train_step(trainer: Trainer, batches: Any) -> Any:
        if trainer.step == step:
            action(trainer)
        return original(trainer, batches)

    patch.setattr(Trainer, "train_step", train_step)


def preempt(flags: Flags, step: int, number: signal.Signals = signal.SIGTERM) -> None:
    """Run until a signal comes in an update, after which the run stops."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stopped:
        at_step(patch, step, lambda _: os.kill(os.getpid(), number))
        start(flags)
    assert stopped.value.code == EXIT_PREEMPTED


def with_dropout(network: DigitNet, images: torch.Tensor) -> torch.Tensor:
    """A forward pass of the small network that draws random numbers, as dropout and stochastic depth do."""
    dropped = F.dropout(network.features(images).mean((2, 3)), 0.3, network.training)
    logits: torch.Tensor = network.fc(dropped)
    return logits


def test_a_run_leaves_a_folder_that_explains_it(
    flags: Flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in a folder that exists, if it is empty. Its figures change nothing."""
    folder = flags["util.run_dir"]
    folder.mkdir()
    monkeypatch.setattr("relabel.cli.run.FIGURES", FIGURES)
    start({**flags, "util.tensorboard": True, "compute.opt_level": "O2"})
    names = {"config.yaml", "environment.json", "status.json", "metrics.jsonl", LAST, PREVIOUS, BEST}
    names |= {"batch.png", "curves.png"}
    assert {path.name for path in folder.iterdir() if "tfevents" not in path.name} == names
    assert len(list(folder.glob("events.out.tfevents*"))) == 1
    events = read_metrics(folder)
    assert [e["step"] for e in events if e["event"] == "train"] == [2, 4, 5, 7, 9, 10, 12, 14, 15]
    validations = [e for e in events if e["event"] == "validation"]
    assert [(e["epoch"], e["step"], e["images"]) for e in validations] == [(1, 5, 13), (2, 10, 13), (3, 15, 13)]
    assert status(folder)["state"] == "done"
    best = max(validations, key=lambda e: e["top1_percent"])
    assert load_checkpoint(folder / BEST)["accuracy"] == best["top1_percent"]
    state = load_checkpoint(folder / LAST)
    assert load_checkpoint(folder / PREVIOUS)["step"] < state["step"]
    assert {"epoch", "arch", "state_dict", "accuracy", "optimizer", "class_names"} <= state.keys()
    assert (state["epoch"], state["arch"], state["class_names"]) == (3, "digit_net", ["ant", "bee", "cow"])
    environment = json.loads((folder / "environment.json").read_text())[0]
    assert environment["packages"]["torch"] and environment["torch_threads"] == 1 and environment["processes"] == 1
    printed = capsys.readouterr().out
    assert_same_weights(weights(undisturbed(flags)), weights(folder))
    assert "compute.opt_level O2 runs as " in printed
    assert "\n3 epochs of 5 steps, " in printed and "images/s" in printed and "data wait" in printed
    assert re.search(r"\nepoch 3/3  step 15  loss \d\.\d+ \(floor 0\.\d+\)  target agreement \d+\.\d %\n", printed)
    assert re.search(r"\nepoch 3/3  validation  top-1 \d+\.\d\d %  loss \d\.\d+\n", printed)  # of three classes
    assert f"\nfinished {folder}: 3 epochs in " in printed
    assert f"\n  {BEST}  top-1 {best['top1_percent']:.2f} %  epoch {best['epoch']}\n  {LAST}  top-1 " in printed
    assert max(len(line) for line in printed.splitlines() if line.startswith("epoch") or "data wait" in line) <= 80


@pytest.mark.parametrize("settings", [{}, {"data.relabel.use": False}], ids=["label maps", "labels"])
def test_a_finished_run_names_commands_that_work(
    flags: Flags, settings: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = undisturbed(flags | settings)
    capsys.readouterr()
    start(flags | settings | {"util.run_dir": folder})
    printed = capsys.readouterr().out.replace(" \\\n", "")
    lines = [shlex.split(line) for line in printed.splitlines() if line.startswith("  python ")]
    assert [words[:3] for words in lines] == [["python", "-m", "relabel"]] * 2
    assert [words[3] for words in lines] == ["evaluate", "annotate" if settings else "predict"]
    for words in lines:
        relabel(words[3:])
    assert (folder / "evaluation-checkpoint-last.json").exists()


def test_the_figure_of_the_first_batch_shows_what_the_network_gets(
    flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    got: list[tuple[torch.Tensor, torch.Tensor]] = []
    shown: list[Any] = []
    original = Trainer.network_input

    def network_input(trainer: Trainer, batch: Any, rng: Any) -> Any:
        got.append(original(trainer, batch, rng))
        return got[-1]

    monkeypatch.setattr(Trainer, "network_input", network_input)
    figures = RunFigures(lambda path, *arguments: shown.extend(arguments), lambda path, records: None)
    monkeypatch.setattr("relabel.cli.run.FIGURES", figures)
    flags |= {"data.cutmix.prob": 1.0, "data.cutmix.beta": 1.0, "data.cutmix.off_epoch": 0, "optim.epochs": 1}
    flags["data.lighting"] = 0.0  # with which no value is outside 0..255
    start({**flags, "optim.warmup.epochs": 0})
    (first_images, first_targets), (images, targets) = got[:2]
    assert torch.equal(first_images, images) and torch.equal(first_targets, targets)
    pixels, drawn_targets, labels, files, names, heading = shown
    assert pixels.shape == (6, 16, 16, 3) and pixels.dtype == np.uint8 and names == ["ant", "bee", "cow"]
    assert [file.partition("/")[0] for file in files] == [names[label] for label in labels] and len({*files}) == 6
    again = normalise(torch.from_numpy(pixels).permute(0, 3, 1, 2), mean=AS_IN_2021.mean, std=AS_IN_2021.std)
    torch.testing.assert_close(again, images, rtol=0, atol=0.01)
    assert np.array_equal(drawn_targets, targets.numpy()) and "CutMix in 100 % of the batches" in heading


def test_a_run_survives_the_loss_of_its_figures(
    flags: Flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *words: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("relabel.cli.run.FIGURES", RunFigures(fail, fail))
    for step, name in ((2, "batch.png"), (7, "curves.png")):  # there are no curves before the first validation
        preempt(flags, step)
        assert capsys.readouterr().err == f"warning: {name} was not drawn: [Errno 28] No space left on device\n"
    assert status(flags["util.run_dir"])["state"] == "preempted"


def test_a_finished_run_says_so_and_changes_nothing(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does another command, which is refused."""
    flags["util.run_dir"] = undisturbed(flags)
    before = {path: path.stat().st_mtime_ns for path in flags["util.run_dir"].iterdir()}
    start(flags)
    assert " is finished: 3 epochs in " in capsys.readouterr().out
    with pytest.raises(UserError, match=r"another config:\n.*lr\.init: 0\.05 there, 0\.1 now(.|\n)*util\.run_dir"):
        start({**flags, "optim.lr.init": 0.1})
    assert before == {path: path.stat().st_mtime_ns for path in flags["util.run_dir"].iterdir()}


def test_label_maps_that_say_the_truth_train_as_labels_do(flags: Flags) -> None:
    for use in (True, False):
        folder = undisturbed(flags if use else {**flags, "data.relabel.use": False})
        assert max(e["top1_percent"] for e in metrics(folder) if e["event"] == "validation") > 60


@pytest.mark.parametrize(
    ("step", "number", "settings"),
    [(7, signal.SIGTERM, {}), (7, signal.SIGINT, EVERYTHING), (4, signal.SIGUSR1, {})],
    ids=["SIGTERM", "SIGINT, everything", "SIGUSR1 in the last step of an epoch"],
)
def test_a_preempted_run_continues_exactly(
    flags: Flags, step: int, number: signal.Signals, settings: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags |= settings
    if settings:
        monkeypatch.setattr(DigitNet, "forward", with_dropout)
    preempt(flags, step, number)
    folder = flags["util.run_dir"]
    assert status(folder) | {"time": ""} == {"state": "preempted", "time": "", "step": step + 1, "epoch": 1}
    start(flags)
    for name in (LAST, BEST):
        assert_same_weights(weights(undisturbed(flags), name), weights(folder, name))
    assert metrics(undisturbed(flags)) == metrics(folder)
    elapsed = [event["elapsed_s"] for event in read_metrics(folder)]
    assert elapsed == sorted(elapsed)  # of both commands together


def test_speed_reports_and_the_place_of_the_folder_may_change_when_a_run_continues(
    flags: Flags, tmp_path: Path
) -> None:
    preempt(flags, 12)
    flags["util.run_dir"].rename(tmp_path / "moved")
    faster = {"util.print_freq": 1, "util.val_batch_size": 3, "util.checkpoint_minutes": 1}
    start({**flags, **faster, "util.run_dir": f"{tmp_path}/./moved/"})
    assert_same_weights(weights(undisturbed(flags)), weights(tmp_path / "moved"))


def test_another_decoder_is_refused_when_a_run_continues(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where auto means another one than it did, as with another version of this program."""
    preempt(flags, 1)
    monkeypatch.setattr("relabel.training.run.resolve_decoder", lambda choice: "pillow")
    with pytest.raises(UserError, match=r"decoder: simplejpeg there, pillow now"):
        start(flags)


def test_a_label_map_with_a_nan_fails_the_run_and_spares_the_checkpoint(
    flags: Flags, photos: Path, tmp_path: Path
) -> None:
    """Met late: before a run begins, a sample of the maps is read."""
    shutil.copytree(photos / "labels", tmp_path / "labels")
    bad = tmp_path / "labels" / "cow" / "cow.07.pt"
    intact = torch.load(bad, weights_only=True)
    spoilt = intact.clone()
    spoilt[0, 0, 1, 2] = float("nan")
    flags |= {"data.relabel.path": tmp_path / "labels", "util.checkpoint_minutes": 0, "util.print_freq": 1}
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match=r"cow\.07\.pt: found the score nan"):
        at_step(patch, 3, lambda _: torch.save(spoilt, bad))
        start(flags)
    folder = flags["util.run_dir"]
    assert status(folder)["state"] == "failed" and "cow.07.pt" in status(folder)["reason"]
    assert load_checkpoint(folder / LAST)["step"] == read_metrics(folder)[-1]["step"]
    torch.save(intact, bad)
    start(flags)
    assert status(folder)["state"] == "done"


def test_accumulated_micro_batches_make_the_same_update(flags: Flags, tmp_path: Path) -> None:
    flags |= {"model.arch": "timm/test_convnext", "data.image_size": 32}  # no batch norm
    flags |= {"optim.epochs": 1, "optim.warmup.epochs": 0}
    start(flags)
    start({**flags, "optim.accumulation": 3, "util.run_dir": tmp_path / "accumulated"})
    first, second = weights(flags["util.run_dir"]), weights(tmp_path / "accumulated")
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


def test_averaged_weights_follow_their_formula_and_cost_no_second_pass_over_val(
    flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    history: list[dict[str, torch.Tensor]] = []
    read: list[Path] = []
    saved: list[object] = []
    update, get_item, save = Trainer._update, ImageDataset.__getitem__, torch.save

    def update_and_note(trainer: Trainer) -> None:
        update(trainer)
        history.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})

    def read_and_note(dataset: ImageDataset, key: Any) -> Any:
        read.append(dataset.images.root)
        return get_item(dataset, key)

    def save_and_note(state: object, file: Any) -> None:
        saved.append(state)
        save(state, file)

    monkeypatch.setattr(Trainer, "_update", update_and_note)
    monkeypatch.setattr(ImageDataset, "__getitem__", read_and_note)
    monkeypatch.setattr(torch, "save", save_and_note)
    start({**flags, "optim.ema.decay": 0.8, "optim.epochs": 1, "optim.warmup.epochs": 0})
    folder = flags["util.run_dir"]
    state = load_checkpoint(folder / LAST)
    for name, average in history[0].items():
        for weights_then in history[1:]:
            average = 0.8 * average + 0.2 * weights_then[name]
        torch.testing.assert_close(state["state_dict_ema"][name], average)
    assert [e["weights"] for e in read_metrics(folder) if e["event"] == "validation"] == ["model", "ema"]
    assert read.count(flags["data.data_path"] / "val") == 13
    assert len(saved) == 2 and (folder / BEST).samefile(folder / LAST)  # before the validation and after it


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model.arch": "resnet51"}, "resnet50"),
        ({"model.arch": "densenet121", "data.image_size": 8}, "densenet121 cannot classify images of 8 x 8 pixels"),
        ({"compute.distributed.backend": "nccl"}, "visible GPU"),
        ({"compute.gpu": 0}, "compute.gpu is 0, but this machine has 0"),
    ],
)
def test_bad_input_creates_nothing(flags: Flags, changed: Flags, message: str) -> None:
    with pytest.raises(UserError, match=message):
        start(flags | changed)
    assert not flags["util.run_dir"].exists()


def test_a_val_that_lacks_classes_is_reported_and_other_classes_are_refused(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a single training class is refused, until the images are in folders of their own."""
    data = tmp_path / "data"
    shutil.copytree(flags["data.data_path"], data)
    flags |= {"data.data_path": data, "optim.epochs": 1, "optim.warmup.epochs": 0}
    shutil.rmtree(data / "val" / "bee")
    start(flags)
    assert "\nval/ has no images of 1 of the 3 training classes: bee\n" in capsys.readouterr().out
    flags["util.run_dir"] = tmp_path / "none"
    for name in ("ant", "cow"):
        (data / "val" / name).rename(data / "val" / f"{name}s")
    with pytest.raises(
        UserError, match=r"val: found none of the 3 classes that the training folders have \(ant, ...\)"
    ):
        start(flags)
    for name in ("ant", "cow"):
        shutil.rmtree(data / "train" / name)
    with pytest.raises(UserError, match=r"train: found one class, bee; expected at least two"):
        start(flags)
    assert not flags["util.run_dir"].exists()


def test_a_missing_map_names_both_paths_and_creates_nothing(flags: Flags, tmp_path: Path) -> None:
    (tmp_path / "labels" / "ant").mkdir(parents=True)
    with pytest.raises(UserError, match="images without a label map: 30 of 30") as error:
        start({**flags, "data.relabel.path": tmp_path / "labels"})
    for part in ("ant.00.JPEG", "ant.00.pt", "relabel annotate", "--data.relabel.use False"):
        assert part in str(error.value)
    shutil.copytree(flags["data.relabel.path"], tmp_path / "labels", dirs_exist_ok=True)
    (tmp_path / "labels" / "ant" / "ant.00.pt").write_bytes(b"PK")
    with pytest.raises(
        UserError, match=r"ant\.00\.pt: cannot be read as a label map(.|\n)*--data\.relabel\.path"
    ) as error:
        start({**flags, "data.relabel.path": tmp_path / "labels"})
    assert "keep_list" not in str(error.value)
    assert not flags["util.run_dir"].exists()


OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried ..."),
    MemoryError(),
]


@pytest.mark.parametrize(
    ("moment", "error"),
    zip(["trainer.F.cross_entropy", "validation.top_classes", "network.set_batch_norm"], OUT_OF_MEMORY, strict=True),
)
def test_out_of_memory_names_the_batch_sizes(
    flags: Flags, monkeypatch: pytest.MonkeyPatch, moment: str, error: Exception
) -> None:
    """In a training step, in validation, while the network is built."""

    def fail(*words: object, **named: object) -> None:
        raise error

    monkeypatch.setattr(f"relabel.training.{moment}", fail)
    with pytest.raises(UserError, match=r"out of memory: (.|\n)*optim\.batch_size is 6") as found:
        start(flags)
    for key in ("optim.batch_size", "optim.accumulation", "util.val_batch_size"):
        assert f"--{key}" in str(found.value)
    if "network" in moment:
        assert not flags["util.run_dir"].exists()
    else:
        assert status(flags["util.run_dir"])["state"] == "failed"
        assert status(flags["util.run_dir"])["reason"] == str(found.value)


def test_a_fault_of_the_gpu_is_not_reported_as_the_networks(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network is tried on the CPU; what fails on its way to the GPU stays what it is."""

    def fail(network: DigitNet, *words: object, **named: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(DigitNet, "to", fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        start(flags)


def test_workers_need_not_be_divided_by_the_processes(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config("", {key: str(value) for key, value in flags.items()} | {"compute.num_workers": "32"})
    for n in (1, 2, 3):
        monkeypatch.setattr("utils.processes.distributed.gather_objects", lambda value, n=n: [value] * n)
        assert 1 <= workers_of(config, Process(0, n, 0, n, torch.device("cpu"))) <= max(1, available_cores() // n)


def test_a_worker_that_is_killed_ends_the_run_with_a_message(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill_workers(trainer: Trainer) -> None:
        for child in active_children():
            child.kill()

    at_step(monkeypatch, 1, kill_workers)
    with pytest.raises(UserError, match="a process that loads images died"):
        start({**flags, "compute.num_workers": 1})
    assert status(flags["util.run_dir"])["state"] == "failed"


def test_a_damaged_checkpoint_never_replaces_the_whole_one_before(
    flags: Flags, capsys: pytest.CaptureFixture[str]
) -> None:
    preempt(flags, 7)
    folder = flags["util.run_dir"]
    last = (folder / LAST).read_bytes()
    (folder / LAST).write_bytes(last[: len(last) // 2])
    preempt(flags, 8)
    assert "Continuing from checkpoint-previous.pth" in capsys.readouterr().err
    assert load_checkpoint(folder / PREVIOUS)["step"] < load_checkpoint(folder / LAST)["step"]
    start(flags)
    assert_same_weights(weights(undisturbed(flags)), weights(folder))
    assert metrics(undisturbed(flags)) == metrics(folder)
