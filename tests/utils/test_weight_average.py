"""The moving average of weights against torch's own."""

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from utils.weight_average import WeightAverage


def test_the_average_is_that_of_torch() -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), head)
    expected = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    average = WeightAverage(model, 0.9)
    for update in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model[1](torch.randn(8, 4, 2, 2))
        expected.update_parameters(model)
        average.update(model, first=update == 0)
    found = average.module.state_dict()
    for name, value in expected.state_dict().items():
        if value.is_floating_point():
            assert torch.equal(found[name.removeprefix("module.")], value), name
    assert found["1.num_batches_tracked"] == 5  # a counter has no average
    assert not torch.equal(found["3.weight"], head.weight)
