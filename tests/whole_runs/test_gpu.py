"""Runs on a GPU: what a CPU cannot show. Together they take about two minutes."""

import io
import json
import math
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from relabel import __main__ as tools
from relabel.config.load import load_config
from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.folders import list_images
from relabel.data.gpu_decode import GPU_DECODERS
from relabel.data.loader import Loader, eval_batches
from relabel.training.run import train
from relabel.training.trainer import Trainer
from relabel.training.validation import predict_classes
from tests.conftest import Flags, command_line
from tests.miniatures import AS_IN_2021, colour_network, save_images
from tests.relabel.data.test_decode import photo_like
from tests.relabel.training.test_run import at_step, preempt, start, status, weights
from tests.whole_runs.test_processes import processes
from utils.checkpoint import LAST, load_checkpoint
from utils.errors import UserError
from utils.precision import Precision
from utils.processes.distributed import Process
from utils.run_log import read_metrics
from utils.weight_average import WeightAverage

DEVICE = torch.device("cuda", 0)
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

WHOLE: Flags = {
    "optim.ema.decay": 0.9,
    "optim.accumulation": 2,
    "optim.clip_grad_norm": 1.0,
    "data.cutmix.prob": 0.5,
    "data.cutmix.beta": 1.0,
}
"""What may be part of an update."""


@pytest.fixture
def on_gpu(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> Flags:
    """The same run of seconds, on the GPU, in float16."""
    monkeypatch.undo()  # there is none in the other tests
    monkeypatch.setattr("relabel.cli.run.FIGURES", None)
    return flags | {"optim.lr.init": 0.01, "compute.gpu": 0, "compute.opt_level": "O1"}


@pytest.mark.parametrize(
    ("level", "changed"),
    [
        ("O1", {}),
        ("O1", {"optim.optimizer": "adamp"}),
        ("O1", {"compute.compile": True, "model.arch": "digit_net"}),  # compiling a larger one takes a minute
        ("bf16", {}),
        ("bf16", {"optim.optimizer": "adamp"}),
    ],
)
def test_a_run_on_a_gpu_finishes_with_finite_numbers(on_gpu: Flags, tmp_path: Path, level: str, changed: Flags) -> None:
    on_gpu |= {"model.arch": "resnet18", "data.image_size": 64, "optim.batch_size": 10, "compute.num_workers": 2}
    start(on_gpu | {"optim.clip_grad_norm": 1.0, "compute.opt_level": level} | changed)
    begun = json.loads((tmp_path / "run" / "environment.json").read_text())[0]
    assert (begun["device"], begun["precision"]) == ("cuda:0", {"O1": "float16", "bf16": "bfloat16"}[level])
    events = read_metrics(tmp_path / "run")
    assert [event["event"] for event in events].count("validation") == 3
    assert all(math.isfinite(float(event["loss"])) for event in events)


def recorded_inputs(patch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """Step -> images and targets of its micro-batches, as the network gets them, of the runs that follow."""
    inputs: dict[int, list[Tensor]] = {}
    original = Trainer.network_input

    def network_input(trainer: Trainer, batch: Any, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        made = original(trainer, batch, rng)
        inputs.setdefault(trainer.step, []).extend(part.cpu() for part in made)
        return made

    patch.setattr(Trainer, "network_input", network_input)
    return inputs


def test_a_stopped_run_continues_with_the_same_data(
    on_gpu: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same images and random numbers; sums on a GPU have no fixed order, so weights differ by roundings."""
    found = []
    for stops in (False, True):
        wanted = on_gpu | WHOLE | {"util.run_dir": tmp_path / str(stops), "compute.num_workers": 2 * stops}
        with monkeypatch.context() as patch:
            inputs = recorded_inputs(patch)
            if stops:
                preempt(wanted, 7)
            start(wanted)
        found.append((inputs, load_checkpoint(tmp_path / str(stops) / LAST)))
    (first_inputs, first), (second_inputs, second) = found
    assert [*first_inputs] == [*second_inputs] == list(range(15)) and len(first_inputs[7]) == 4
    for step, parts in first_inputs.items():
        for one, other in zip(parts, second_inputs[step], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0 if one.ndim == 4 else 1e-5)
    for key in ("state_dict", "state_dict_ema"):
        assert_close(first[key], second[key])
    assert first["scaler"] == second["scaler"] and first["skipped_updates"] == second["skipped_updates"]


def assert_close(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    """Equal but for roundings in other places."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(tensor.cpu(), second[name].cpu(), rtol=1e-2, atol=2e-3, msg=name)


def test_the_average_of_weights_is_that_of_a_cpu() -> None:
    torch.manual_seed(0)
    networks: list[Any] = [
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(device) for device in ("cpu", DEVICE)
    ]
    networks[1].load_state_dict(networks[0].state_dict())
    averages = [WeightAverage(network, 0.9) for network in networks]
    for step in range(4):
        change = torch.randn(4, 3, 3, 3)
        for network, average in zip(networks, averages, strict=True):
            with torch.no_grad():
                network[0].weight += change.to(network[0].weight.device)
            network(torch.ones(2, 3, 8, 8, device=network[0].weight.device))
            average.update(network, first=step == 0)
    assert_close(*(average.module.state_dict() for average in averages))


def test_accumulated_micro_batches_are_one_batch(on_gpu: Flags, tmp_path: Path) -> None:
    """With a network without batch norm."""
    on_gpu |= {"model.arch": "timm/test_convnext", "data.image_size": 32, "compute.opt_level": "O0"}
    for parts in (1, 3):
        start(on_gpu | {"optim.accumulation": parts, "util.run_dir": tmp_path / str(parts)})
    assert_close(weights(tmp_path / "1"), weights(tmp_path / "3"))


def test_gradients_are_clipped_without_their_scale(on_gpu: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    norms, clip = [], nn.utils.clip_grad_norm_

    def recording(parameters: Iterator[nn.Parameter], limit: float) -> Tensor:
        kept = list(parameters)
        before = clip(kept, limit)
        after = torch.stack([parameter.grad.norm() for parameter in kept if parameter.grad is not None]).norm()
        norms.append((float(before), float(after)))
        return before

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", recording)
    start(on_gpu | {"optim.clip_grad_norm": 0.01})
    finite = [(before, after) for before, after in norms if math.isfinite(before)]  # else the update is skipped
    assert len(finite) >= 10 and all(after == pytest.approx(min(before, 0.01), rel=1e-2) for before, after in finite)
    assert all(before < 100 for before, _ in finite)


@pytest.mark.parametrize(("optimizer", "waits"), [("sgd", 0), ("adamw", 0), ("adamp", 1)])
def test_the_host_does_not_wait_for_the_device_in_an_update(
    on_gpu: Flags, optimizer: str, waits: int, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """The loss scaler reads whether to skip AdamP's update; the other optimizers read that on the device."""
    counts, original = [], Trainer.train_step

    def counting(trainer: Trainer, batches: Any) -> Any:
        recwarn.clear()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            return original(trainer, batches)
        finally:
            torch.cuda.set_sync_debug_mode("default")
            counts.append(sum("called a synchronizing" in str(warning.message) for warning in recwarn))

    monkeypatch.setattr(Trainer, "train_step", counting)
    start(on_gpu | WHOLE | {"optim.optimizer": optimizer})
    assert counts[3:] == [waits] * 12  # the first ones set up constants


def test_a_loss_that_is_not_finite_on_the_device_stops_the_run(on_gpu: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    on_gpu |= {"util.checkpoint_minutes": 0, "util.print_freq": 1}

    def spoil(trainer: Trainer) -> None:
        monkeypatch.setattr(trainer.target_maker.__class__, "__call__", lambda maker, labels, *_: torch.full(
            (len(labels), maker.num_classes), math.nan, device=labels.device))  # fmt: skip

    at_step(monkeypatch, 4, spoil)
    with pytest.raises(UserError, match="the loss of step 5 is not finite"):
        start(on_gpu)
    folder = on_gpu["util.run_dir"]
    assert status(folder)["state"] == "failed" and load_checkpoint(folder / LAST)["step"] == 4
    assert all(bool(tensor.isfinite().all()) for tensor in weights(folder).values())


def test_memory_that_runs_out_is_told_as_that(on_gpu: Flags) -> None:
    on_gpu |= {"model.arch": "resnet18", "data.image_size": 224, "optim.batch_size": 30}
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(300e6 / torch.cuda.mem_get_info(0)[1], 0)
    try:
        with pytest.raises(UserError, match=r"out of memory(.|\n)*optim\.batch_size is 30(.|\n)*Lower --optim\.batch"):
            start(on_gpu)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, 0)
        torch.cuda.empty_cache()
    assert status(on_gpu["util.run_dir"])["state"] == "failed"


def test_memory_stays_the_same_from_validation_to_validation(on_gpu: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    held, original = [], Trainer.validate

    def validate(trainer: Trainer) -> None:
        original(trainer)
        held.append(torch.cuda.memory_reserved())

    monkeypatch.setattr(Trainer, "validate", validate)
    start(on_gpu | {"optim.epochs": 12, "optim.ema.decay": 0.9})
    assert len(held) == 12 and len(set(held[4:])) == 1, held


def test_one_process_exchanges_by_nccl(on_gpu: Flags, tmp_path: Path) -> None:
    config = load_config("", {key: str(value) for key, value in (on_gpu | WHOLE).items()})
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1, device_id=DEVICE)
    try:
        train(Process(0, 1, 0, 1, DEVICE), config)
    finally:
        dist.destroy_process_group()
    assert status(on_gpu["util.run_dir"])["state"] == "done"


def test_two_processes_on_one_gpu_train_as_one_does(on_gpu: Flags, tmp_path: Path) -> None:
    on_gpu |= {"model.arch": "timm/test_convnext", "data.image_size": 32, "compute.opt_level": "O0"}
    on_gpu |= {"optim.epochs": 2}
    start(on_gpu)
    two = on_gpu | {"util.run_dir": tmp_path / "two", "compute.gpu": -1} | processes(2)
    done = subprocess.run(command_line(two), capture_output=True, text=True, timeout=200, env=os.environ)
    assert done.returncode == 0, done.stderr
    begun = json.loads((tmp_path / "two" / "environment.json").read_text())[0]
    assert (begun["processes"], begun["device"]) == (2, "cuda:0")
    assert_close(weights(tmp_path / "run"), weights(tmp_path / "two"))


@pytest.mark.parametrize("level", ["O0", "O1", "bf16"])
def test_predictions_of_a_gpu_are_those_of_a_cpu(tmp_path: Path, level: str) -> None:
    pictures = {f"{c}/{i}.png": (c + (i == 2)) % 7 for c in range(7) for i in range(3)}
    images = list_images(save_images(tmp_path, pictures))
    found = []
    for device in (torch.device("cpu"), DEVICE):
        batches = Loader(ImageDataset(images, CenterCrop(16, None)), eval_batches(21, 4, 0, 1), 0, device)
        models = {"model": colour_network({c: c for c in range(7)}, 7).to(device)}
        process, precision = Process(0, 1, 0, 1, device), Precision(level, device)
        answers = predict_classes(models, images, batches, precision, process, AS_IN_2021, title="")
        found.append(answers["model"])
    assert found[0].top1.tolist() == found[1].top1.tolist() == [pictures[name] for name in sorted(pictures)]
    np.testing.assert_allclose(found[0].label_probability, found[1].label_probability, atol=0.05)


def test_label_maps_of_images_decoded_on_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly those of the CPU's decoder, and the same bytes with workers and without; a damaged file is left out."""
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)  # other tests let it choose by timing
    for number in range(21):
        path = tmp_path / "images" / ("ant", "bee")[number % 2] / f"{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo_like(160 + number, 120, seed=number).save(path, quality=92, progressive=number == 3)
    path.write_bytes(path.read_bytes()[:900])
    words = ["--arch", "digit_net", "--weights", "random", "--size", "48x64", "--format", "pt", "--opt_level", "O0"]
    words += ["--batch_size", "4", "--on_error", "skip"]
    found = []
    for name, decoder, workers in (("cpu", "auto", 2), ("gpu", "gpu", 2), ("again", "gpu", 0)):
        more = ["--decoder", decoder, "--num_workers", str(workers)]
        tools.main(["annotate", str(tmp_path / "images"), str(tmp_path / name), *words, *more])
        found.append({file.name: file.read_bytes() for file in sorted((tmp_path / name).rglob("*.pt"))})
    assert found[1] == found[2] and len(found[1]) == 20 and found[1] != found[0]
    assert json.loads((tmp_path / "gpu" / "manifest.json").read_text())["made_by"]["decoder"] in GPU_DECODERS
    maps = [np.stack([torch.load(io.BytesIO(data))[0].numpy() for data in files.values()]) for files in found[:2]]
    differences = [(each - each.mean(0)).ravel() for each in maps]  # between the images
    assert np.corrcoef(differences)[0, 1] > 0.98
