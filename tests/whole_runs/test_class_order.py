"""Weights that do not name their classes, or name them otherwise than the folders: evaluated, as teacher, as start."""

import csv
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.build import create_model
from relabel import __main__ as tools
from relabel.data.folders import list_images
from relabel.stores.store import open_label_store
from tests.conftest import ROOT, Flags
from tests.miniatures import colour_network, save_images, wnids
from tests.relabel.training.test_run import start, weights
from utils.errors import UserError

CASE, PHOTOS = ("1", "2", "10"), ROOT.parent / "shared" / "data" / "imagenet_val_kaggle"
DOGS, CATS = slice(151, 269), slice(281, 286)  # of ImageNet's classes


def save_colours(root: Path, colour_of: Mapping[str, int], count: int = 4) -> Path:
    """Save train/ and val/ with images of one colour in each class folder."""
    for split in ("train", "val"):
        save_images(root / split, {f"{name}/{split}{i}.png": c for name, c in colour_of.items() for i in range(count)})
    return root


def save_weights(path: Path, num_classes: int, class_of: Mapping[int, int], names: list[str] | None = None) -> Path:
    """Save a network that classifies colours, with class names or bare."""
    state_dict = colour_network(class_of, num_classes).state_dict()
    torch.save(state_dict if names is None else {"state_dict": state_dict, "class_names": names}, path)
    return path


@pytest.fixture
def test_flags(flags: Flags, tmp_path: Path) -> Flags:
    keep = ("model.arch", "data.image_size", "compute.num_workers", "compute.opt_level", "util.run_dir")
    data = {"data.data_path": tmp_path / "data", "util.test_weight_file": tmp_path / "w.pth"}
    return {key: flags[key] for key in keep} | data | {"util.test_only": True}


def report(flags: Flags) -> dict[str, Any]:
    """Evaluate; return the JSON file."""
    start(flags)
    content: dict[str, Any] = json.loads((flags["util.run_dir"] / "evaluation-w.json").read_text())
    return content


def top1(content: Mapping[str, Any]) -> float:
    return next(result["value"] for result in content["results"] if result["metric"] == "top1_percent")


@pytest.mark.parametrize("names", [None, ["1", "10", "2"]])
def test_timms_order_of_numbered_folders(
    test_flags: Flags, tmp_path: Path, names: list[str] | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """timm numbers the folders 1, 2, 10; a bare file, or one with wrong names, is read as 1, 10, 2."""
    save_colours(tmp_path / "data", dict(zip(CASE, range(3), strict=True)))
    save_weights(tmp_path / "w.pth", 3, {0: 0, 1: 1, 2: 2}, names)
    wrong = report(test_flags)
    assert top1(wrong) == pytest.approx(100 / 3)
    chance, likely = wrong["notes"]
    assert chance == "val: top-1 is 33.33 % of 12 images, no better than chance (33.3 %, guessing among 3 classes)"
    assert "100.00 % instead of 33.33 % if the order of the classes were 1, 2, 10 (the natural order" in likely
    printed = capsys.readouterr().out
    assert f"note: {likely}\n" in printed
    assert ("timm's order is 1, 2, 10: if" in printed) == (names is None)
    ((flag, path),) = re.findall(r"give --(\S+) (\S+)$", likely)
    right = report(test_flags | {flag: path})
    assert (top1(right), right["notes"]) == (100, [])
    # The same list for a teacher and for a start:
    train = tmp_path / "data" / "train"
    annotate = ["annotate", train, tmp_path / "maps", "--arch", "digit_net", "--weights", tmp_path / "w.pth"]
    check = ["check", tmp_path / "maps", "--images", train]
    tools.main([str(word) for word in [*annotate, "--size", "16x16", "--num_workers", "0", "--classes", path]])
    tools.main(list(map(str, check)))
    assert re.search(r"folder's label is the top class +100\.0 %", capsys.readouterr().out)


def test_a_start_takes_the_last_layer_in_the_order_of_a_list(
    flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_colours(tmp_path / "data", dict(zip(CASE, range(3), strict=True)))
    file = save_weights(tmp_path / "w.pth", 3, {0: 0, 1: 1, 2: 2})
    still = {"optim.lr.init": 0.0, "optim.warmup.epochs": 0, "optim.epochs": 1, "data.relabel.use": False}
    flags |= still | {"data.data_path": tmp_path / "data", "model.weights": file}
    start(flags)
    natural, flag = re.findall(
        r"timm's order is ([\w, ]+): .* in a text file, and give --(\S+) FILE", one_line(capsys)
    )[0]
    (tmp_path / "list.txt").write_text(natural.replace(", ", "\n"))
    other = {**flags, flag: tmp_path / "list.txt", "util.run_dir": tmp_path / "other"}
    start(other)
    assert f"classification head included (classes: listed in {tmp_path / 'list.txt'})" in one_line(capsys)
    expected = torch.load(file, weights_only=True)["fc.weight"][[0, 2, 1]]
    assert torch.equal(weights(tmp_path / "other")["fc.weight"], expected)
    (tmp_path / "list.txt").write_text("1\n2\n3\n")
    start({**other, "util.run_dir": tmp_path / "new"})
    assert "head new: theirs is for 3 classes (listed in" in one_line(capsys)


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.replace("\n", " ")


def test_good_answers_get_no_note_but_on_the_classes_without_images(test_flags: Flags, tmp_path: Path) -> None:
    save_colours(tmp_path / "data", {"ant": 0, "bee": 1, "cow": 2})
    save_weights(tmp_path / "w.pth", 4, {0: 0, 1: 1, 2: 2}, ["ant", "bee", "cow", "dog"])
    content = report(test_flags)
    assert (top1(content), content["classes"]) == (100, "named in w.pth")
    assert [note.rpartition(" ")[2] for note in content["notes"]] == ["dog"]
    for name in ("bee", "cow"):
        shutil.rmtree(tmp_path / "data" / "val" / name)
    test_flags["util.run_dir"] = tmp_path / "one class"
    content = report(test_flags)
    assert top1(content) == 100 and "bee, cow, dog" in content["notes"][0]


def test_several_classes_of_a_network_as_one_folder(
    test_flags: Flags, flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two breeds of dog and a cat, in folders dog and cat; the network knows a car, too."""
    names, data = ["car", "collie", "pug", "tabby"], tmp_path / "data"
    save_colours(data, {"cat": 2})
    for split in ("train", "val"):
        save_images(data / split / "dog", {f"{i}.png": i % 2 for i in range(4)})
    save_weights(tmp_path / "w.pth", 4, {0: 1, 1: 2, 2: 3}, names)
    (tmp_path / "list.txt").write_text("collie\tdog\npug\tdog\ntabby\tcat\n")
    with pytest.raises(UserError, match=r"the first: cat; .*\n.*give --eval.classes FILE, with a line NAME<TAB>FOLDER"):
        report(test_flags)
    content = report(test_flags | {"eval.classes": tmp_path / "list.txt", "eval.predictions": True})
    assert top1(content) == 100 and [note.rpartition(" ")[2] for note in content["notes"]] == ["car"]
    assert "maps 3 of the 4 to cat, dog; the others keep their names; 4 classes become 3" in content["classes"]
    with (test_flags["util.run_dir"] / "predictions-w-val.csv").open() as file:
        assert {row["top5"] for row in csv.DictReader(file)} == {"cat/dog/car", "dog/cat/car"}
    check_maps_of_folders(tmp_path, flags, capsys)


def check_maps_of_folders(tmp_path: Path, flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    """Annotate, check, show, unpack, pack and train with the merged classes."""
    train, maps = str(tmp_path / "data" / "train"), tmp_path / "maps"
    teacher = ["--arch", "digit_net", "--weights", str(tmp_path / "w.pth"), "--size", "28x40", "--num_workers", "0"]
    with pytest.raises(SystemExit):
        tools.main(["annotate", train, str(maps), *teacher])
    assert "of which the teacher does not know 2, the first: cat; " in capsys.readouterr().err
    listed = ["--classes", str(tmp_path / "list.txt")]
    tools.main(["annotate", train, str(maps), *teacher, *listed])
    manifest = json.loads((maps / "manifest.json").read_text())
    assert manifest["class_names"] == ["car", "dog", "cat"] and manifest["k"] == 3
    assert manifest["made_by"]["teacher"]["merged"] == {"dog": [1, 2]}
    tools.main(["unpack", str(maps), str(tmp_path / "pt")])
    tools.main(["pack", str(tmp_path / "pt"), str(tmp_path / "packed"), "--images", train])
    tools.main(["check", str(tmp_path / "packed"), "--images", train])
    assert re.search(r"folder's label is the top class +100\.0 %", capsys.readouterr().out)
    tools.main(["show", "--labels", str(maps), "--images", train, "--out", str(tmp_path / "maps.png"), "--count", "1"])
    images = list_images(train)
    store = open_label_store(tmp_path / "packed", images.keys(), images.class_names)
    assert np.unique(store.read(len(images) - 1).classes[0]).tolist() == [1]  # dog, of the data's two
    short = {"optim.epochs": 1, "optim.batch_size": 4, "optim.warmup.epochs": 0}
    start(flags | short | {"data.data_path": tmp_path / "data", "data.relabel.path": tmp_path / "packed"})


def test_merged_probabilities_add_up_in_every_cell_of_a_map(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bare timm network of 1,000 classes: some are dogs and cats, the others keep ImageNet's names."""
    torch.manual_seed(0)
    torch.save(create_model("timm/test_resnet", 1000).state_dict(), tmp_path / "w.pth")
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(20):
            Image.effect_noise((80, 60), 90).convert("RGB").save(tmp_path / "train" / name / f"{i}.png")
    classes = f"--classes={write_dogs_and_cats(tmp_path / 'list.txt')}"
    given = ["--arch=timm/test_resnet", f"--weights={tmp_path / 'w.pth'}", "--size=64x96", "--num_workers=0"]
    summed = [classes, "--top_k=879"]
    commands = {"own": ["--unlabelled=True", "--top_k=1000"], "merged": summed, "mean": [*summed, "--merge=mean"]}
    for out, more in commands.items():
        tools.main(["annotate", str(tmp_path / "train"), str(tmp_path / out), *given, "--format=pt", *more])
    own, merged, mean = (cell_probabilities(tmp_path / out / "dog" / "0.pt") for out in commands)
    torch.testing.assert_close(merged[151], own[DOGS].sum(0))
    torch.testing.assert_close(merged[164], own[CATS].sum(0))
    torch.testing.assert_close(mean[151] / mean[164], own[DOGS].mean(0) / own[CATS].mean(0))
    torch.testing.assert_close(merged[:151], own[:151])
    assert "classes: ImageNet's wnids, sorted; " in capsys.readouterr().out
    classifier = ["--classifier=timm/test_resnet", f"--classifier_weights={tmp_path / 'w.pth'}", classes]
    printed = {}
    for maps, more in {"merged": classifier, "mean": []}.items():
        with suppress(SystemExit):  # the maps of random weights are no good
            tools.main(["check", str(tmp_path / maps), f"--images={tmp_path / 'train'}", *more])
        printed[maps] = " ".join(capsys.readouterr().out.split())
    assert "maps 123 of the 1,000 to cat, dog; the others keep their names" in printed["merged"]
    # Nothing is recognised, so the sum of the most classes leads; the remedy that is named removes that.
    assert "dog is the top class in 100 % of the cells of images of other folders" in printed["merged"]
    assert "118 classes" in printed["merged"] and "`annotate --merge mean`" in printed["merged"]
    assert "--merge mean" not in printed["mean"]


def write_dogs_and_cats(path: Path) -> Path:
    """Write the list of ImageNet's dogs and cats."""
    w = wnids()
    path.write_text(
        "".join(f"{name}\t{folder}\n" for names, folder in ((w[DOGS], "dog"), (w[CATS], "cat")) for name in names)
    )
    return path


def cell_probabilities(path: Path) -> torch.Tensor:
    """Read a map of all K classes; return their probabilities, float [K, h, w]."""
    scores, classes = torch.load(path, weights_only=True)
    return torch.zeros_like(scores).scatter(0, classes.long(), scores).softmax(dim=0)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="needs photos of ImageNet's validation set")
def test_a_packaged_teacher_serves_folders_with_peoples_names(
    test_flags: Flags, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (PHOTOS / "LOC_val_solution.csv").open() as file:
        wnid_of = {row["ImageId"]: row["PredictionString"].split()[0] for row in csv.DictReader(file)}
    for name, ids in {"dog": wnids()[DOGS], "cat": wnids()[CATS]}.items():
        for split in ("train", "val"):
            (tmp_path / "data" / split / name).mkdir(parents=True)
        photos = [p for p in sorted(PHOTOS.rglob("*.JPEG")) if wnid_of[p.stem] in ids]
        for i, photo in enumerate(photos[:4]):
            (tmp_path / "data" / ("val", "train")[i % 2] / name / photo.name).symlink_to(photo)
    listed, lite0 = write_dogs_and_cats(tmp_path / "list.txt"), "timm/tf_efficientnet_lite0"
    train, maps = str(tmp_path / "data" / "train"), str(tmp_path / "maps")
    packaged = ["--arch", lite0, "--weights", "packaged", "--num_workers", "0"]
    tools.main(["annotate", train, maps, *packaged, "--classes", str(listed)])
    tools.main(["check", maps, "--images", train])
    assert re.search(r"folder's label is the top class +100\.0 %", capsys.readouterr().out)
    published = {"model.arch": lite0, "util.test_weight_file": "packaged", "data.image_size": 224}
    start({**test_flags, **published, "eval.classes": listed})
    assert re.search(r"top1_percent +100\.00 +4", capsys.readouterr().out)
