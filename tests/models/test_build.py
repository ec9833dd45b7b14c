"""Networks by name, and checkpoints loaded into them."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import DenseNet, VisionTransformer

from models.build import create_model, head_tensors, infer_num_classes, load_weights, with_own_head
from models.classifier import open_weights
from models.digit_net import DigitNet
from tests.conftest import ROOT
from utils.errors import UserError

QUICK = ["resnet18", "rexnet_100", "efficientnet_b0", "digit_net", "timm/resnet18"]
SLOW = ["resnet50", "efficientnet_b3", "googlenet", "inception_v3"]


@pytest.mark.parametrize("arch", QUICK + [pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW])
def test_builds_trains_a_step_and_evaluates(arch: str) -> None:
    torch.manual_seed(0)
    network = create_model(arch, num_classes=7)
    size = (96, 80) if arch == "inception_v3" else (64, 96)
    images, targets = torch.randn(4, 3, *size), torch.full((4, 7), 1 / 7)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3)
    before = [parameter.detach().clone() for parameter in network.parameters()]
    loss = nn.functional.cross_entropy(network(images), targets)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in network.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
    with torch.inference_mode():
        logits = network.eval()(images)
    assert logits.shape == (4, 7) and logits.isfinite().all()


def test_timm_is_not_imported_for_names_that_others_have() -> None:
    program = (
        "import sys; from models.build import create_model; create_model('resnet18', 3); print('timm' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("resnet51", r"found arch 'resnet51'.* Did you mean .*resnet50"),
        ("digitnet", r"Did you mean digit_net"),
        ("timm/rexnet100", r"Did you mean timm/rexnet_100"),
        ("fasterrcnn_resnet50_fpn", r"found arch"),  # torchvision has it, but it is no classifier
        ("qqqqqq", r"No similar name"),
        ("timm/resnet18.no_such_weights", r"no_such_weights"),
    ],
)
def test_unknown_name_gives_the_nearest_ones(arch: str, expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        create_model(arch, 3)


# regnet reads numbers out of tensors while it is built, which the meta device does not allow
@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "digit_net", "rexnet_100", "regnet_y_400mf"])
def test_class_count_of_a_checkpoint(arch: str) -> None:
    weights = create_model(arch, 13).state_dict()
    assert infer_num_classes(arch, weights) == 13
    assert infer_num_classes(arch, {f"module.{name}": tensor for name, tensor in weights.items()}) == 13


def test_class_count_of_another_architecture_is_refused() -> None:
    weights = create_model("mobilenet_v2", 13).state_dict()
    with pytest.raises(UserError, match=r"arch resnet18 has it in fc.weight, fc.bias.*arch that the checkpoint"):
        infer_num_classes("resnet18", weights)


@pytest.mark.parametrize(
    ("arch", "head"),
    [
        ("resnet18", ["fc.weight", "fc.bias"]),
        ("squeezenet1_1", ["classifier.1.weight", "classifier.1.bias"]),  # a convolution
        ("timm/test_convnext", ["head.fc.weight", "head.fc.bias"]),
    ],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_network_keeps_its_own_head_for_other_classes(arch: str, head: list[str], prefix: str) -> None:
    assert sorted(head_tensors(arch)) == sorted(head)
    source, network = create_model(arch, 5), create_model(arch, 3)
    own = {name: network.state_dict()[name].clone() for name in head}
    given = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    load_weights(network, with_own_head(network, arch, given))
    for name, tensor in (source.state_dict() | own).items():
        assert torch.equal(network.state_dict()[name], tensor), name


def test_weights_without_batch_counters_load() -> None:
    source, network = DigitNet(3), DigitNet(3)
    old = {name: value for name, value in source.state_dict().items() if not name.endswith("num_batches_tracked")}
    load_weights(network, old)
    assert torch.equal(network.fc.weight, source.fc.weight)


@pytest.mark.parametrize(
    ("network", "new", "old"),
    [
        (VisionTransformer(32, 16, 1, 2, 8, 16, num_classes=3), r"(mlp)\.([03])", r"\1.linear_\2"),
        (DenseNet(4, (2, 2), 8, num_classes=3), r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2"),
    ],
)
def test_names_of_earlier_torchvision_load(network: nn.Module, new: str, old: str) -> None:
    weights = {
        re.sub(new, old, name).replace("linear_3", "linear_2").replace("linear_0", "linear_1"): tensor + 1
        for name, tensor in network.state_dict().items()
    }
    assert weights.keys() != network.state_dict().keys()
    load_weights(network, weights)
    for tensor, loaded in zip(weights.values(), network.state_dict().values(), strict=True):
        assert torch.equal(tensor, loaded)


@pytest.mark.parametrize("version", [None, 1, 2])
@pytest.mark.filterwarnings("ignore:A new version of MNASNet")
def test_mnasnet_which_asks_for_its_version_loads(version: int | None, tmp_path: Path) -> None:
    source: Any = create_model("mnasnet0_5", 3)
    if version == 1:  # its first layers become wider
        source._load_from_state_dict(source.state_dict(), "", {"version": 1}, False, [], [], [])
    weights = nn.DataParallel(source).state_dict() if version else dict(source.state_dict())
    torch.save({"state_dict": weights}, tmp_path / "w.pth")
    opened = open_weights("mnasnet0_5", str(tmp_path / "w.pth"))
    images = torch.randn(2, 3, 32, 32)
    loaded = opened.build("model", opened.data_config({}, ""), "--arch", "--size")
    assert torch.equal(loaded.eval()(images), source.eval()(images))


def test_mismatches_are_listed_by_name_and_shape_and_nothing_is_loaded() -> None:
    network = DigitNet(3)
    before = network.fc.weight.detach().clone()
    weights = DigitNet(5).state_dict()
    weights["fc.extra"] = torch.zeros(2, 9)
    del weights["features.0.weight"]
    with pytest.raises(UserError) as caught:
        load_weights(network, weights)
    message = str(caught.value)
    assert "1 missing: features.0.weight [24, 3, 3, 3]" in message
    assert "1 unexpected: fc.extra [2, 9]" in message
    assert "2 of a different shape: fc.weight [5, 128] instead of [3, 128], fc.bias [5] instead of [3]" in message
    assert "expected the arch" in message
    assert torch.equal(network.fc.weight, before)


def test_an_error_while_a_network_is_built_is_not_taken_for_a_wrong_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr("timm.create_model", fail)
    with pytest.raises(RuntimeError, match="allocate memory"):
        create_model("rexnet_100", 3)
