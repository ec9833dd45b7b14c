"""Batch norm gets more than one image at a time, and a refusal gives a flag that runs."""

import re

import pytest
import torch
from torch import nn

from relabel.config.load import load_config
from relabel.training.recipe import check_micro_batch
from tests.conftest import Flags
from tests.relabel.training.test_run import start, status
from utils.errors import UserError
from utils.processes.distributed import Process


def short(flags: Flags) -> Flags:
    return flags | {"optim.epochs": 1, "optim.warmup.epochs": 0}


def as_typed(message: object) -> Flags:
    """The first flag with a value that a message gives."""
    found = re.search(r"--([\w.]+) (\w+)", str(message))
    assert found
    return {found[1]: found[2]}


@pytest.mark.parametrize("wrong", [{"optim.batch_size": 1}, {"optim.accumulation": 6}])
def test_one_image_at_a_time_is_refused_with_a_flag_that_runs(flags: Flags, wrong: Flags) -> None:
    with pytest.raises(UserError, match=r"one image at a time .* digit_net has batch norm") as error:
        start(short(flags) | wrong)
    assert not flags["util.run_dir"].exists()
    start(short(flags) | wrong | as_typed(error.value))
    assert status(flags["util.run_dir"])["state"] == "done"


def test_one_image_for_each_process_is_refused_unless_there_is_no_batch_norm(flags: Flags) -> None:
    config = load_config("", {key: str(value) for key, value in (flags | {"optim.batch_size": 2}).items()})
    process = Process(0, 2, 0, 2, torch.device("cpu"))
    with pytest.raises(UserError, match=r"batch of 2, 2 process\(es\)(.|\n)*--optim\.batch_size 4"):
        check_micro_batch(config, nn.BatchNorm2d(3), 2, process)
    check_micro_batch(config, nn.GroupNorm(1, 3), 2, process)
    check_micro_batch(config, nn.BatchNorm2d(3), 4, process)
