"""Whole runs on a GPU, in the precisions that only make sense there."""

import json
import math
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from relabel.data.dataset import CenterCrop, ImageDataset
from relabel.data.folders import list_images
from relabel.data.loader import Loader, eval_batches
from relabel.training.validation import predict_classes
from tests.conftest import Flags, command_line
from tests.miniatures import AS_IN_2021, colour_network, save_images
from utils.precision import Precision
from utils.processes.distributed import Process
from utils.run_log import read_metrics

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize("changed", [{}, {"optim.optimizer": "adamp"}, {"compute.compile": True}])
@pytest.mark.parametrize("level", ["O1", "bf16"])
def test_a_run_on_a_gpu_finishes_with_finite_numbers(flags: Flags, tmp_path: Path, level: str, changed: Flags) -> None:
    flags |= {"model.arch": "resnet18", "data.image_size": 64, "optim.batch_size": 10, "optim.lr.init": 0.01}
    flags |= {"optim.clip_grad_norm": 1.0, "compute.gpu": 0, "compute.opt_level": level, "compute.num_workers": 2}
    done = subprocess.run(command_line(flags | changed), capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    start = json.loads((tmp_path / "run" / "environment.json").read_text())[0]
    assert (start["device"], start["precision"]) == ("cuda:0", {"O1": "float16", "bf16": "bfloat16"}[level])
    events = read_metrics(tmp_path / "run")
    assert [event["event"] for event in events].count("validation") == 3
    assert all(math.isfinite(float(event["loss"])) for event in events)


@pytest.mark.parametrize("level", ["O0", "O1", "bf16"])
def test_predictions_of_a_gpu_are_those_of_a_cpu(tmp_path: Path, level: str) -> None:
    pictures = {f"{c}/{i}.png": (c + (i == 2)) % 7 for c in range(7) for i in range(3)}
    images = list_images(save_images(tmp_path, pictures))
    found = []
    for device in (torch.device("cpu"), torch.device("cuda", 0)):
        batches = Loader(ImageDataset(images, CenterCrop(16, None)), eval_batches(21, 4, 0, 1), 0, device)
        models = {"model": colour_network({c: c for c in range(7)}, 7).to(device)}
        process, precision = Process(0, 1, 0, 1, device), Precision(level, device)
        answers = predict_classes(models, images, batches, precision, process, AS_IN_2021, title="")
        found.append(answers["model"])
    assert found[0].top1.tolist() == found[1].top1.tolist() == [pictures[name] for name in sorted(pictures)]
    np.testing.assert_allclose(found[0].label_probability, found[1].label_probability, atol=0.05)
