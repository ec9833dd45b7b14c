"""Teachers from every source: their classes, their input, and what is refused."""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from torch import Tensor, nn

from models.build import create_model
from relabel.annotation.teacher import Teacher, load_teacher
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

DIGITS = [f"digit_{n}" for n in range(4)]
SIZE = {"size": (56, 72)}
IMAGENET = ("n01440764", "n15075141")  # the first class and the last
TORCHVISION_ARCH, TIMM_ARCH = "shufflenet_v2_x0_5", "test_resnet.r160_in1k"


def checkpoint(path: Path, of: str, num_classes: int, **more: Any) -> nn.Module:
    """Write a bare checkpoint, or one with more in it, and return its network."""
    torch.manual_seed(3)
    network = create_model(of, num_classes).eval()
    save_checkpoint({"state_dict": network.state_dict(), **more} if more else network.state_dict(), path)
    return network


def same_weights(teacher: Teacher, network: nn.Module, images: Tensor) -> bool:
    """Whether the mean of the teacher's map is the network's logits."""
    with torch.inference_mode():
        return torch.allclose(teacher.network(images).mean((2, 3)), network.eval()(images), atol=1e-4)


# Random weights


def test_random_weights_are_the_same_again_and_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    state = torch.random.get_rng_state()
    one, two = (load_teacher("resnet18", "random", DIGITS) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert one.description == two.description
    warning = r"warning: resnet18 has RANDOM WEIGHTS and its label maps are MEANINGLESS"
    assert len(re.findall(warning, capsys.readouterr().err)) == 2
    assert (one.num_classes, one.class_names) == (4, DIGITS)
    assert not one.network.training
    with torch.inference_mode():
        assert one.network(torch.zeros(1, 3, 64, 96)).shape == (1, 4, 2, 3)


# Input


@pytest.mark.parametrize(
    ("arch", "size", "mean", "interpolation"),
    [
        ("resnet18", (224, 224), 0.485, "bilinear"),
        ("efficientnet_v2_s", (224, 224), 0.485, "bilinear"),  # torchvision states an input for weights, not networks
        ("timm/resnet18", (288, 288), 0.485, "bicubic"),  # its test size
        ("test_resnet", (160, 160), 0.5, "bilinear"),
        ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", (384, 384), 0.5, "bicubic"),
        pytest.param("vit_b_16", (224, 224), 0.485, "bilinear", marks=pytest.mark.slow),
    ],
)
def test_the_input_is_that_of_the_library(arch: str, size: tuple[int, int], mean: float, interpolation: str) -> None:
    teacher = load_teacher(arch, "random", DIGITS)
    config = teacher.data_config
    assert (config.size, config.mean[0], config.interpolation) == (size, mean, interpolation)
    assert len(config.mean) == len(config.std) == 3 and all(isinstance(number, float) for number in config.std)


def test_what_is_asked_for_comes_first() -> None:
    asked: dict[str, Any] = {"size": (64, 96), "mean": (0.1, 0.2, 0.3), "std": (0.5, 1.0, 1.5)}
    asked["interpolation"] = "lanczos"
    config = load_teacher("resnet18", "random", DIGITS, given=asked).data_config
    assert {name: getattr(config, name) for name in asked} == asked


def test_networks_of_this_project_need_a_size() -> None:
    with pytest.raises(UserError, match=r"digit_net has no image size of its own.*--size"):
        load_teacher("digit_net", "random", DIGITS)
    config = load_teacher("digit_net", "random", DIGITS, given=SIZE).data_config
    assert (config.size, config.mean, config.interpolation) == ((56, 72), (0.485, 0.456, 0.406), "bilinear")


def test_an_unsupported_interpolation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    half, crop = (0.5, 0.5, 0.5), {"crop_pct": 0.95, "crop_mode": "center"}
    config = {"input_size": (3, 160, 160), "mean": half, "std": half, "interpolation": "nearest", **crop}
    monkeypatch.setattr(timm.data, "resolve_data_config", lambda **_: config)
    with pytest.raises(UserError, match=r"resized by 'nearest'.*expected bilinear, bicubic, lanczos.*--interpolation"):
        load_teacher("test_resnet", "random", DIGITS)
    given = {"interpolation": "bicubic"}
    assert load_teacher("test_resnet", "random", DIGITS, given=given).data_config.size == (160, 160)


# Checkpoints


def test_our_checkpoint_names_network_and_classes(tmp_path: Path) -> None:
    network = checkpoint(tmp_path / "best.pth", "digit_net", 4, arch="digit_net", class_names=DIGITS)
    teacher = load_teacher(None, str(tmp_path / "best.pth"), DIGITS, given=SIZE)
    assert same_weights(teacher, network, torch.randn(1, 3, 56, 72))
    assert (teacher.num_classes, teacher.class_names) == (4, DIGITS)
    expected = {"arch": "digit_net", "library": "this project", "library_version": None, "weights": "best.pth"}
    assert teacher.description.items() >= expected.items()
    assert teacher.description["head"] == "linear after average pooling" and teacher.description["mean_is_logits"]
    more = {"arch": "digit_net", "epoch": 3, "state_dict_ema": network.state_dict()}  # the same weights in another file
    checkpoint(tmp_path / "later.pth", "digit_net", 4, **more)
    later = load_teacher(None, str(tmp_path / "later.pth"), None, given=SIZE)
    assert "EMA" in later.note and not teacher.note
    assert later.class_names is None and later.description["weights_sha256"] == teacher.description["weights_sha256"]


@pytest.mark.parametrize(
    ("arch", "name"),
    [("shufflenet_v2_x0_5", "bare.pth"), ("timm/test_resnet", "bare.safetensors"), ("convnext_atto", "bare.pth")],
)
def test_a_bare_checkpoint_is_of_the_datas_classes(tmp_path: Path, arch: str, name: str) -> None:
    network = checkpoint(tmp_path / "bare.pth", arch, 4)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "bare.safetensors")
    teacher = load_teacher(arch, str(tmp_path / name), DIGITS)
    assert (teacher.num_classes, teacher.class_names) == (4, DIGITS)
    assert (teacher.description["arch"], teacher.description["weights"]) == (arch, name)
    whole = load_teacher(arch, str(tmp_path / name), DIGITS, per_cell=False).network
    images = torch.rand(1, 3, 64, 96)
    with torch.inference_mode():
        torch.testing.assert_close(whole(images), network(images))
    assert json.loads(json.dumps(teacher.description)) == teacher.description


def test_a_bare_checkpoint_of_1000_classes_has_imagenets(tmp_path: Path) -> None:
    checkpoint(tmp_path / "bare.pth", "test_resnet", 1000)
    for data_classes in (None, ["n15075141", "n01440764"]):
        names = load_teacher("test_resnet", str(tmp_path / "bare.pth"), data_classes).class_names
        assert names is not None and len(names) == 1000 and (names[0], names[-1]) == IMAGENET
    others = [f"class{n:03d}" for n in range(1000)]
    assert load_teacher("test_resnet", str(tmp_path / "bare.pth"), others).class_names == others


# Classes


@pytest.mark.parametrize(
    ("names", "data_classes", "expected"),
    [
        (DIGITS, ["ant", "digit_1"], r"images of 2 classes, of which the teacher does not know 1, the first: ant"),
        (DIGITS, ["ant"], r"names of its classes, such as digit_0 (.|\n)*--classes FILE, .* NAME<TAB>FOLDER"),
        (
            None,
            ["ant", "bee"],
            r"a teacher of 4 classes that it does not name, and images of 2 classes.*--classes FILE",
        ),
        ([*DIGITS[:3], "digit_0"], DIGITS[:3], r"of 4 classes that it does not name .not using .* 'digit_0' twice"),
    ],
)
def test_other_classes_are_refused(
    tmp_path: Path, names: list[str] | None, data_classes: list[str], expected: str
) -> None:
    checkpoint(tmp_path / "some.pth", "digit_net", 4, arch="digit_net", class_names=names)
    with pytest.raises(UserError, match=f"some.pth.*{expected}"):
        load_teacher(None, str(tmp_path / "some.pth"), data_classes, given=SIZE)


# What cannot be loaded


def test_a_checkpoint_that_does_not_name_its_network(tmp_path: Path) -> None:
    checkpoint(tmp_path / "bare.pth", "digit_net", 4)
    with pytest.raises(UserError, match=r"bare\.pth does not name(.|\n)*--arch"):
        load_teacher(None, str(tmp_path / "bare.pth"), DIGITS)


def test_weights_that_do_not_fit_are_refused_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"\x00" * 100)
    checkpoint(tmp_path / "digits.pth", "digit_net", 4)
    checkpoint(tmp_path / "names.pth", "digit_net", 4, arch="digit_net", class_names=["a", 2])
    for arch, name in (("resnet18", "bad.pth"), ("test_resnet", "digits.pth"), (None, "names.pth")):
        with pytest.raises(UserError, match=f"{name}.? "):
            load_teacher(arch, str(tmp_path / name), DIGITS)


# Published weights: the libraries' own loading, from caches that these tests fill; nothing is downloaded


@pytest.fixture
def torch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for torchvision, behind a proxy that refuses at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY", "http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for timm, without network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def fill_torch_home(folder: Path, arch: str) -> nn.Module:
    """Put a checkpoint where torchvision keeps the one it has downloaded."""
    network = create_model(arch, 1000)
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / Path(torchvision.models.get_model_weights(arch).DEFAULT.url).name)
    return network


def fill_hub_cache(folder: Path, arch: str) -> nn.Module:
    """Put a checkpoint where timm keeps the one it has downloaded."""
    network = timm.create_model(arch)
    repository = folder / f"models--timm--{arch}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    safetensors.torch.save_file(network.state_dict(), snapshot / "model.safetensors")
    return network


def test_torchvisions_published_weights(torch_home: Path) -> None:
    network = fill_torch_home(torch_home, TORCHVISION_ARCH)
    teacher = load_teacher(TORCHVISION_ARCH, "pretrained", list(IMAGENET))
    assert same_weights(teacher, network, torch.randn(1, 3, 64, 96))
    assert teacher.class_names is not None and teacher.num_classes == len(teacher.class_names) == 1000
    assert (teacher.class_names[0], teacher.class_names[-1]) == IMAGENET
    assert teacher.description["weights"] == "pretrained ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert teacher.description["library_version"] == version("torchvision")


@pytest.mark.parametrize("arch", [TIMM_ARCH, "timm/test_resnet"])
def test_timms_published_weights(hub_cache: Path, arch: str) -> None:
    network = fill_hub_cache(hub_cache, TIMM_ARCH)
    teacher = load_teacher(arch, "pretrained", list(IMAGENET))
    assert same_weights(teacher, network, torch.randn(1, 3, 64, 96))
    assert teacher.class_names is not None and (teacher.class_names[0], teacher.class_names[-1]) == IMAGENET
    assert teacher.description["weights"] == f"pretrained {TIMM_ARCH}"
    assert (teacher.data_config.size, teacher.description["library"]) == ((160, 160), "timm")


@pytest.mark.parametrize(
    ("arch", "cache", "reason"),
    [(TORCHVISION_ARCH, "torch_home", "URLError"), (TIMM_ARCH, "hub_cache", "OfflineModeIsEnabled")],
)
def test_no_cache_and_no_network(arch: str, cache: str, reason: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(cache)
    with pytest.raises(UserError, match=rf"published weights of {arch} .*cannot be downloaded.*\({reason}: "):
        load_teacher(arch, "pretrained", None)


def test_published_features_without_a_classifier(hub_cache: Path) -> None:
    fill_hub_cache(hub_cache, "convnextv2_atto.fcmae")
    with pytest.raises(UserError, match=r"weights convnextv2_atto.fcmae give features, not classes.*in1k"):
        load_teacher("convnextv2_atto.fcmae", "pretrained", None)


def test_a_damaged_cache_is_reported(hub_cache: Path) -> None:
    fill_hub_cache(hub_cache, TIMM_ARCH)
    file = next(hub_cache.rglob("model.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be downloaded, or cannot be read \(SafetensorError"):
        load_teacher(TIMM_ARCH, "pretrained", None)
