"""Teachers from every source: their classes, their input, and what is refused."""

import hashlib
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

from models.build import create_model, create_pretrained_model
from models.digit_net import DigitNet
from relabel.annotation.teacher import Teacher, load_teacher
from relabel.data.decode import RESAMPLING
from utils.checkpoint import save_checkpoint
from utils.errors import UserError

DIGITS = [f"digit_{n}" for n in range(4)]
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


def test_random_weights_without_data_have_1000_classes_without_names() -> None:
    teacher = load_teacher("resnet18", "random", None)
    assert (teacher.num_classes, teacher.class_names) == (1000, None)


# Input


@pytest.mark.parametrize(
    ("arch", "size", "mean", "interpolation"),
    [
        ("resnet18", (224, 224), 0.485, "bilinear"),
        ("efficientnet_v2_s", (384, 384), 0.485, "bilinear"),
        ("timm/resnet18", (224, 224), 0.485, "bicubic"),
        ("test_resnet", (160, 160), 0.5, "bilinear"),
        ("vit_tiny_patch16_384.augreg_in21k_ft_in1k", (384, 384), 0.5, "bicubic"),
        pytest.param("swin_v2_t", (256, 256), 0.485, "bicubic", marks=pytest.mark.slow),
        pytest.param("vit_b_16", (224, 224), 0.485, "bilinear", marks=pytest.mark.slow),
    ],
)
def test_the_input_is_that_of_the_library(arch: str, size: tuple[int, int], mean: float, interpolation: str) -> None:
    teacher = load_teacher(arch, "random", DIGITS)
    assert (teacher.input_size, teacher.mean[0], teacher.interpolation) == (size, mean, interpolation)
    assert teacher.interpolation in RESAMPLING
    assert len(teacher.mean) == len(teacher.std) == 3 and all(isinstance(number, float) for number in teacher.std)


def test_what_is_asked_for_comes_first() -> None:
    asked: dict[str, Any] = {"input_size": (64, 96), "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    teacher = load_teacher("resnet18", "random", DIGITS, **asked, interpolation="lanczos")
    assert {name: getattr(teacher, name) for name in asked} == asked
    assert teacher.interpolation == "lanczos"


def test_networks_of_this_project_need_a_size() -> None:
    with pytest.raises(UserError, match=r"digit_net has no image size of its own.*--size"):
        load_teacher("digit_net", "random", DIGITS)
    teacher = load_teacher("digit_net", "random", DIGITS, input_size=(56, 72))
    assert (teacher.input_size, teacher.mean, teacher.interpolation) == ((56, 72), (0.485, 0.456, 0.406), "bilinear")


def test_an_unsupported_interpolation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"input_size": (3, 160, 160), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "nearest"}
    monkeypatch.setattr(timm.data, "resolve_model_data_config", lambda model: config)
    with pytest.raises(UserError, match=r"resized by 'nearest'.*expected bilinear, bicubic, lanczos.*--interpolation"):
        load_teacher("test_resnet", "random", DIGITS)
    assert load_teacher("test_resnet", "random", DIGITS, interpolation="bicubic").input_size == (160, 160)


# Checkpoints


def test_our_checkpoint_names_network_and_classes(tmp_path: Path) -> None:
    network = checkpoint(tmp_path / "best.pth", "digit_net", 4, arch="digit_net", class_names=DIGITS)
    teacher = load_teacher(None, str(tmp_path / "best.pth"), DIGITS, input_size=(56, 72))
    assert same_weights(teacher, network, torch.randn(1, 3, 56, 72))
    assert (teacher.num_classes, teacher.class_names) == (4, DIGITS)
    expected = {"arch": "digit_net", "library": "this project", "library_version": None, "weights": "best.pth"}
    assert teacher.description.items() >= expected.items()
    assert (teacher.description["head"], teacher.description["mean_is_logits"]) == (
        "linear after average pooling",
        True,
    )


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    averaged = DigitNet(4)
    more = {"arch": "digit_net", "state_dict_ema": averaged.state_dict()}
    network = checkpoint(tmp_path / "ema.pth", "digit_net", 4, **more)
    teacher = load_teacher(None, str(tmp_path / "ema.pth"), DIGITS, input_size=(56, 72))
    images = torch.randn(1, 3, 56, 72)
    assert same_weights(teacher, averaged, images) and not same_weights(teacher, network, images)


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


def test_classes_of_a_bare_checkpoint_stay_unknown_without_data(tmp_path: Path) -> None:
    checkpoint(tmp_path / "bare.pth", "test_resnet", 4)
    assert load_teacher("test_resnet", str(tmp_path / "bare.pth"), None).class_names is None


def test_a_bare_checkpoint_of_1000_classes_has_imagenets(tmp_path: Path) -> None:
    checkpoint(tmp_path / "bare.pth", "test_resnet", 1000)
    for data_classes in (None, ["n15075141", "n01440764"]):
        names = load_teacher("test_resnet", str(tmp_path / "bare.pth"), data_classes).class_names
        assert names is not None and len(names) == 1000 and (names[0], names[-1]) == IMAGENET
    others = [f"class{n:03d}" for n in range(1000)]
    assert load_teacher("test_resnet", str(tmp_path / "bare.pth"), others).class_names == others


def test_the_hash_is_of_the_weights_not_of_the_file(tmp_path: Path) -> None:
    network = checkpoint(tmp_path / "one.pth", "digit_net", 4, arch="digit_net")
    checkpoint(tmp_path / "two.pth", "digit_net", 4, arch="digit_net", epoch=3)
    found = {
        load_teacher(None, str(tmp_path / name), None, input_size=(8, 8)).description["weights_sha256"]
        for name in ("one.pth", "two.pth")
    }
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {list(tensor.shape)}\n".encode() + tensor.numpy().tobytes())
    assert found == {digest.hexdigest()}


# Classes


def test_a_teacher_may_know_more_than_the_data_in_another_order(tmp_path: Path) -> None:
    names = ["zebra", *reversed(DIGITS)]
    checkpoint(tmp_path / "more.pth", "digit_net", 5, arch="digit_net", class_names=names)
    teacher = load_teacher(None, str(tmp_path / "more.pth"), DIGITS[1:3], input_size=(56, 72))
    assert (teacher.num_classes, teacher.class_names) == (5, names)


@pytest.mark.parametrize(
    ("names", "data_classes", "expected"),
    [
        (DIGITS, ["ant", "digit_1"], r"found a teacher of 4 classes \(it does not know ant\) and images of 2 classes"),
        (DIGITS, ["ant"], r"Give the weights of such a teacher, or .* folders of its names, such as digit_0$"),
        (None, ["ant", "bee"], r"a teacher of 4 classes, which it does not name, and images of 2 classes; expected"),
        ([*DIGITS[:3], "digit_0"], DIGITS[:3], r"found a teacher of 4 classes, but 3 different names"),
    ],
)
def test_other_classes_are_refused(
    tmp_path: Path, names: list[str] | None, data_classes: list[str], expected: str
) -> None:
    checkpoint(tmp_path / "some.pth", "digit_net", 4, arch="digit_net", class_names=names)
    with pytest.raises(UserError, match=f"some.pth.*{expected}"):
        load_teacher(None, str(tmp_path / "some.pth"), data_classes, input_size=(56, 72))


# What cannot be loaded


def test_an_unknown_network(tmp_path: Path) -> None:
    checkpoint(tmp_path / "bare.pth", "digit_net", 4)
    for weights, found in (
        (str(tmp_path / "bare.pth"), "bare.pth does not name"),
        ("random", "random names no network"),
    ):
        with pytest.raises(UserError, match=rf"{found}(.|\n)*--arch"):
            load_teacher(None, weights, DIGITS)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found no file preTrained; expected pretrained, random or"):
        load_teacher("resnet18", "preTrained", DIGITS)


def test_weights_that_do_not_fit_are_refused_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"\x00" * 100)
    checkpoint(tmp_path / "digits.pth", "digit_net", 4)
    checkpoint(tmp_path / "names.pth", "digit_net", 4, arch="digit_net", class_names=["a", 2])
    for arch, name in (("resnet18", "bad.pth"), ("test_resnet", "digits.pth"), (None, "names.pth")):
        with pytest.raises(UserError, match=f"{name}.? "):
            load_teacher(arch, str(tmp_path / name), DIGITS)


def test_a_network_that_cannot_make_maps() -> None:
    with pytest.raises(UserError, match="AlexNet cannot make label maps"):
        load_teacher("alexnet", "random", DIGITS)


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
    assert (teacher.input_size, teacher.description["library"]) == ((160, 160), "timm")


def test_published_weights_have_no_other_classes(hub_cache: Path) -> None:
    fill_hub_cache(hub_cache, TIMM_ARCH)
    with pytest.raises(UserError, match=r"found a teacher of 1,000 classes \(it does not know digit_0\)"):
        load_teacher(TIMM_ARCH, "pretrained", DIGITS)


@pytest.mark.parametrize(
    ("arch", "cache", "reason"),
    [(TORCHVISION_ARCH, "torch_home", "URLError"), (TIMM_ARCH, "hub_cache", "LocalEntryNotFoundError")],
)
def test_no_cache_and_no_network(arch: str, cache: str, reason: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(cache)
    with pytest.raises(UserError, match=rf"published weights of {arch} .*cannot be fetched.*\({reason}: ") as error:
        load_teacher(arch, "pretrained", None)
    assert len(str(error.value).splitlines()) == 1


def test_networks_without_published_weights(hub_cache: Path) -> None:
    with pytest.raises(UserError, match=r"digit_net has no published weights; expected a checkpoint"):
        create_pretrained_model("digit_net")
    with pytest.raises(UserError, match=r"convnext_atto_rms has no published weights"):
        create_pretrained_model("convnext_atto_rms")


def test_published_features_without_a_classifier(hub_cache: Path) -> None:
    fill_hub_cache(hub_cache, "convnextv2_atto.fcmae")
    with pytest.raises(UserError, match=r"weights convnextv2_atto.fcmae give features and have no classes.*in1k"):
        load_teacher("convnextv2_atto.fcmae", "pretrained", None)


def test_a_damaged_cache_is_reported(hub_cache: Path) -> None:
    fill_hub_cache(hub_cache, TIMM_ARCH)
    file = next(hub_cache.rglob("model.safetensors"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"cannot be fetched, or cannot be read \(SafetensorError"):
        load_teacher(TIMM_ARCH, "pretrained", None)
