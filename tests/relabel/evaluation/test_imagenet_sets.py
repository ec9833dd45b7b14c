"""Published image sets: how their folders are read, and their metrics by hand."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from relabel.data.dataset import CenterCrop
from relabel.data.decode import ImageFile
from relabel.evaluation.imagenet_sets import (
    ALEXNET_ERRORS,
    ImageSet,
    imagenet_c_sets,
    imagenet_subset,
    imagenet_v2_sets,
    mean_corruption_error,
    unresized,
)
from relabel.evaluation.results import Result
from relabel.training.validation import Predictions
from tests.miniatures import wnids
from utils.errors import UserError

TRANSFORM = CenterCrop(16, 0.875)
# CE % of ResNet-50 in the order of ALEXNET_ERRORS, rounded, and its mCE (Hendrycks and Dietterich 2019, table 1).
RESNET50_CE, RESNET50_MCE = (80, 82, 83, 75, 89, 78, 80, 78, 75, 66, 57, 71, 85, 77, 77), 76.7


def labels_of(image_set: ImageSet) -> dict[str, str]:
    """Image -> the class it is labelled with."""
    images = image_set.images
    return {images.name(row): images.class_names[images.labels[row]] for row in range(len(images))}


def touch(root: Path, names: list[str]) -> Path:
    """Empty files: images that are listed but not read."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def of_truth(image_set: ImageSet, right: np.ndarray) -> Predictions:
    """Predictions that are right where asked for, with probability 0.75, and give 0.25 to the label elsewhere."""
    images = image_set.images
    labels = images.labels.astype(np.int64)
    top1, sure = np.where(right, labels, (labels + 1) % len(images.class_names)), np.full(len(images), 0.75, np.float32)
    of_label = np.where(right, sure, np.float32(0.25))
    return Predictions(images.names, labels, images.class_names, top1[:, None], sure, of_label, None)


def test_the_folders_of_v2_are_numbers(tmp_path: Path) -> None:
    root = touch(
        tmp_path / "imagenetv2-matched-frequency-format-val", [f"{n}/a.jpeg" for n in (0, 2, 10, 11, 100, 999)]
    )
    for names in (wnids(), wnids()[::-1]):  # the checkpoint's classes come in any order
        positions = np.array([names.index(wnid) for wnid in wnids()])
        sets = imagenet_v2_sets(root, names, positions, TRANSFORM)
        assert [image_set.name for image_set in sets] == ["imagenet_v2/matched-frequency"]
        assert labels_of(sets[0]) == {f"{n}/a.jpeg": wnids()[n] for n in (0, 2, 10, 11, 100, 999)}
        assert sets[0].images.class_names == names and sets[0].among is None
    assert sets[0].notes == ["imagenet_v2/matched-frequency: found 6 images; the published set has 10,000"]


def test_every_variant_in_a_folder_is_a_set(tmp_path: Path) -> None:
    for variant in ("imagenetv2-threshold0.7-format-val", "imagenetv2-top-images-format-val", "mine"):
        touch(tmp_path / variant, ["3/a.jpeg"])
    sets = imagenet_v2_sets(tmp_path, wnids(), np.arange(1000), TRANSFORM)
    assert [s.name for s in sets] == ["imagenet_v2/threshold0.7", "imagenet_v2/top-images", "imagenet_v2/mine"]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["0/a.jpeg", "1000/a.jpeg"], "found the folder 1000; expected only class ids"),
        (["0/a.jpeg", "007/a.jpeg"], "found the folder 007"),
        (["v/0/a.jpeg", "w/cat/a.jpeg"], "w: found the folder cat"),
        (["v/a.jpeg"], "v: found no class folder"),
    ],
)
def test_folders_that_are_not_v2_are_refused(tmp_path: Path, names: list[str], match: str) -> None:
    with pytest.raises(UserError, match=f"(?s){match}.*A variant of ImageNetV2 contains the folders 0, 1, .* 999"):
        imagenet_v2_sets(touch(tmp_path, names), wnids(), np.arange(1000), TRANSFORM)


def test_a_subset_is_chosen_among_its_own_classes(tmp_path: Path) -> None:
    w = wnids()
    root = touch(tmp_path, [f"{w[500]}/a.jpg", f"{w[500]}/b.jpg", f"{w[7]}/a.jpg", "README.txt"])
    names = w[::-1]
    image_set = imagenet_subset("imagenet_a", root, names, "w.pth", TRANSFORM)
    assert image_set.images.class_names == [w[7], w[500]]
    assert image_set.among is not None and image_set.among.tolist() == [999 - 7, 999 - 500]
    assert labels_of(image_set) == {f"{w[7]}/a.jpg": w[7], f"{w[500]}/a.jpg": w[500], f"{w[500]}/b.jpg": w[500]}
    assert image_set.notes == [
        "imagenet_a: found 3 images; the published set has 7,500",
        "imagenet_a: found 2 classes instead of 200; predictions are restricted to these",
    ]


def imagenet_c(tmp_path: Path) -> Path:
    """All corruptions and severities of two classes, with two images and one."""
    w = wnids()
    names = [f"{w[4]}/a.JPEG", f"{w[4]}/b.JPEG", f"{w[40]}/a.JPEG"]
    return touch(tmp_path, [f"{c}/{s}/{name}" for c in ALEXNET_ERRORS for s in range(1, 6) for name in names])


def measured(sets: list[ImageSet], wrong_up_to: dict[str, int]) -> list[Result]:
    """Results where all images of the severities up to a corruption's number are wrong, all others right."""
    results = []
    for image_set in sets:
        severity = np.array([int(name[:1]) for name in image_set.images.names])
        predictions = of_truth(image_set, severity > wrong_up_to.get(image_set.name.partition("/")[2], 0))
        results += [result for metric in image_set.metrics for result in metric(predictions)]
    return results + mean_corruption_error(results)


def test_mean_corruption_error_by_hand(tmp_path: Path) -> None:
    sets = imagenet_c_sets(imagenet_c(tmp_path), wnids(), "w.pth", TRANSFORM)
    assert [image_set.name for image_set in sets] == [f"imagenet_c/{name}" for name in ALEXNET_ERRORS]
    assert labels_of(sets[9])[f"3/{wnids()[40]}/a.JPEG"] == wnids()[40]
    assert sets[0].notes == [
        "imagenet_c: folders without the published 50,000 images: 75 of 75, the first: gaussian_noise/1 with 3"
    ]
    results = measured(sets, {"fog": 2, "snow": 5})
    found = {(result.set, result.metric): result for result in results}
    fog = found["imagenet_c/fog", "error_percent"]
    assert fog.value == pytest.approx(40) and fog.n == 15
    assert fog.parts == {"1": 100, "2": 100, "3": 0, "4": 0, "5": 0}
    assert found["imagenet_c/fog", "ce_percent"].value == pytest.approx(40 / 0.819324)
    mce = found["imagenet_c", "mce_percent"]
    assert mce.value == pytest.approx((40 / 0.819324 + 100 / 0.866816) / 15) and mce.n == 15 * 15


def test_the_published_mce_of_resnet50() -> None:
    pairs = zip(ALEXNET_ERRORS, RESNET50_CE, strict=True)
    ces = [Result(f"imagenet_c/{name}", "ce_percent", ce, 1, "") for name, ce in pairs]
    # Of CEs rounded to whole percent.
    assert mean_corruption_error(ces)[0].value == pytest.approx(RESNET50_MCE, abs=0.5)


def test_severities_weigh_the_same_however_many_images_they_have(tmp_path: Path) -> None:
    names = [f"{wnids()[4]}/{i}.JPEG" for i in range(9)]
    root = touch(tmp_path, [f"fog/{s}/{name}" for s in range(1, 6) for name in names[: 9 if s == 1 else 1]])
    results = measured(imagenet_c_sets(root, wnids(), "w.pth", TRANSFORM), {"fog": 1})
    assert results[0].metric == "error_percent" and results[0].value == pytest.approx(20)


def test_a_missing_severity_leaves_no_mce_and_a_note(tmp_path: Path) -> None:
    folders = [f"{c}/{s}" for c in ("fog", "snow", "saturate") for s in range(1, 6) if (c, s) != ("snow", 5)]
    root = touch(tmp_path, [f"{folder}/{wnids()[4]}/a.JPEG" for folder in folders])
    sets = imagenet_c_sets(root, wnids(), "w.pth", TRANSFORM)
    notes = [note for image_set in sets for note in image_set.notes]
    metrics = [(result.set, result.metric) for result in measured(sets, {})]
    assert ("imagenet_c/fog", "ce_percent") in metrics and ("imagenet_c/snow", "error_percent") in metrics
    assert ("imagenet_c/snow", "ce_percent") not in metrics and ("imagenet_c", "mce_percent") not in metrics
    assert "imagenet_c: no mCE; absent folders: 66 of 75, the first: brightness/1" in notes
    assert "imagenet_c: skipped folders not among the 15 corruptions: saturate" in notes
    assert any("50,000 images: 9 of 9, the first: snow/1 with 1" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "match"),
    [
        (["noise/fog/1/n01440764/a.JPEG"], "found noise; expected folders of ImageNet-C's corruptions: gaussian_n"),
        (["fog/n01440764/a.JPEG"], "fog: found none of the folders 1 to 5"),
        (["fog/1/cat/a.JPEG"], "none of the 1000 classes that w.pth have .*the first: cat"),
    ],
)
def test_folders_that_are_not_c_are_refused(tmp_path: Path, names: list[str], match: str) -> None:
    with pytest.raises(UserError, match=match):
        imagenet_c_sets(touch(tmp_path, names), wnids(), "w.pth", TRANSFORM)


@pytest.mark.parametrize("size", [224, 115, 17])  # 115 / (115 / 224) is above 224 in floating point
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_images_of_c_are_cropped_and_not_resized(tmp_path: Path, size: int, decoder: str) -> None:
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)).save(tmp_path / "a.JPEG")
    pixels = np.asarray(Image.open(tmp_path / "a.JPEG")).transpose(2, 0, 1)
    start = round((224 - size) / 2)
    transform = unresized(CenterCrop(size, 0.875))
    crop = ImageFile(tmp_path / "a.JPEG", decoder).centre_crop(transform.size, transform.crop_ratio)
    np.testing.assert_array_equal(crop, pixels[:, start : start + size, start : start + size])
