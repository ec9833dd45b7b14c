"""The targets of tests/fuzz.py: each reader of foreign bytes, its valid files, and a check of valid values."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from models.build import load_weights
from models.data_config import OF_2021, DataConfig
from models.recorded import DATA_CONFIG
from models.weights_file import read_weights_file
from relabel.checks.integrity import orientation
from relabel.checks.object_boxes import open_scene_boxes, read_voc_file
from relabel.config.load import read_config
from relabel.config.schema import SCHEMA
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.class_names import read_class_list
from relabel.data.decode import DECODERS, ImageFile
from relabel.data.images import ImageList
from relabel.data.keep_list import keep_listed
from relabel.evaluation.imagenet_labels import image_numbers, read_multi_labels, read_real
from relabel.evaluation.predictions import read_predictions
from relabel.evaluation.true_labels import read_true_labels
from relabel.label_map import LabelMap
from relabel.stores.manifest import Manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import LabelFolder
from relabel.stores.store import keys_of, open_label_store, sorted_keys
from tests.miniatures import val_name, wnids
from utils.config.problems import report
from utils.config.yaml_file import read_config_file, to_yaml
from utils.errors import UserError

CLASSES = ["ant", "bee", "cow"]
KEYS = sorted_keys([f"{name}/image.{i}" for name in CLASSES for i in range(3)])
NAMES = [f"{name}/{i}.jpg" for name in CLASSES for i in range(2)]
IMAGES = ImageList.of_folder(
    Path("val"), CLASSES, np.array([n.encode() for n in NAMES]), np.repeat(np.arange(3, dtype=np.int32), 2)
)
BOX = CropBox(0.1, 0.2, 0.8, 0.7)


@dataclass(frozen=True, slots=True)
class Target:
    """A reader of foreign bytes.

    Fields:
        prepare: writes valid files into a folder; each in turn is changed.
        read: reads the changed file. UserError where it refuses it; AssertionError where what it gave is not valid.
        tokens: what may be inserted, beside what every format may meet.
        memory: bytes that reading may touch.
    """

    prepare: Callable[[Path], None]
    read: Callable[[Path], object]
    tokens: tuple[bytes, ...] = ()
    memory: int = 2**28


def random_map(seed: int) -> LabelMap:
    """Two of three classes in 3 x 4 cells, float16."""
    return LabelMap.from_dense(np.random.default_rng(seed).normal(size=(3, 3, 4)).astype(np.float16), 2)


def assert_valid(label_map: LabelMap) -> None:
    """What pooling relies on."""
    assert len(label_map.shape) == 3 and np.isfinite(label_map.scores).all()
    assert label_map.classes.min() >= 0 and label_map.classes.max() < len(CLASSES)
    ordered = np.sort(label_map.classes, axis=0)
    assert (ordered[1:] != ordered[:-1]).all()


def write_pt_files(folder: Path) -> None:
    """Label maps in both formats and precisions."""
    planes = np.stack([random_map(0).scores, random_map(0).classes.astype(np.float16)])
    torch.save(torch.from_numpy(planes), folder / "zip.pt")
    torch.save(torch.from_numpy(planes).float(), folder / "legacy.pt", _use_new_zipfile_serialization=False)


def read_pt_file(path: Path) -> None:
    """As training reads it."""
    store = LabelFolder(path.parent, np.array([path.stem.encode()]), CLASSES)
    store.check(0)
    assert_valid(store.read(0))


def write_store(folder: Path, keys: np.ndarray = KEYS) -> None:
    """A packed store of nine maps."""
    made_by = {"teacher": {"arch": "digit_net", "size": [24, 32]}}
    manifest = Manifest(form="packed", maps=len(keys), k=2, h=3, w=4, class_names=CLASSES, made_by=made_by)
    writer = PackedWriter(folder, keys, manifest)
    writer.begin()
    for row in range(len(keys)):
        writer.write(row, random_map(row))
    writer.commit({})


def read_store(path: Path) -> None:
    """Every map that it gives is the one that was written; UserError where one is not given."""
    keys_of(path.parent)
    store = open_label_store(path.parent, KEYS, CLASSES)
    for row in range(len(KEYS)):
        found = store.read(row)
        np.testing.assert_array_equal(found.scores, random_map(row).scores)
        np.testing.assert_array_equal(found.classes, random_map(row).classes)


def write_configs(folder: Path) -> None:
    """Two config files, one of them with all that YAML allows."""
    (folder / "plain.yaml").write_text(
        "data:\n  data_path: ''\n  cutmix: {prob: 1.0, beta: 1e0}\noptim:\n  lr: {init: 2e-3}\n"
    )
    (folder / "rich.yaml").write_text(
        '%YAML 1.2\n---\n# a remark\nutil: {run_dir: "runs/\\x41\\u00e9\\U0001F600", print_freq: 0010}\n'
        "optim:\n  lr: &lr\n    init: .1\n  epochs: !!int 30\ndata:\n  data_path: >-\n    a folded\n    text\n"
        "  keep_list: |\n    a.txt\ncompute:\n  'seed': -1\n...\n"
    )


def read_yaml(path: Path) -> None:
    """The whole tree, and back; problems of the file are reported without reading base.yaml for each case."""
    _, problems = read_config_file(path, path.name, SCHEMA)
    if problems:
        raise UserError(report(problems, ""))
    to_yaml(read_config(str(path), {}).toDict())


@cache
def imagenet_images() -> tuple[ImageList, np.ndarray, np.ndarray]:
    """Four of ImageNet's validation images, their numbers, and its class ids."""
    names = np.array([f"{wnids()[0]}/{val_name(number)}".encode() for number in range(1, 5)])
    images = ImageList.of_folder(Path("val"), wnids(), names, np.zeros(4, np.int32))
    return images, image_numbers(images)[0], np.arange(1000)


def write_published(folder: Path) -> None:
    """ReaL and Shankar's file in miniature."""
    first, second = wnids()[:2]
    annotations = {
        val_name(1): {"correct": [first, second], "wrong": [second]},
        val_name(3): {"correct": [first], "unclear": [second]},
        "0af3f1b55de7.jpeg": {"correct": [first]},
    }
    content = {"initial_annots": annotations, "problematic_images": {val_name(3): {}}, "imagenet_m": [val_name(1)]}
    (folder / "real.json").write_text(json.dumps([[1, 2], [], [999], [0, 65]]))
    (folder / "human.json").write_text(json.dumps(content))


def read_published(path: Path) -> None:
    """Truth of four images."""
    images, numbers, positions = imagenet_images()
    if path.name == "real.json":
        assert read_real(path, images, numbers, positions)[0].shape == (4, 1000)
    else:
        labels, _ = read_multi_labels(path, images, numbers, positions)
        assert labels.correct.shape == labels.unclear.shape == (4, 1000)
        assert not (labels.scored & ~labels.correct.any(1)).all()


def write_boxes(folder: Path) -> None:
    """Pascal-VOC, and the truth of digit scenes."""
    sides = "<xmin>10</xmin><ymin>20.5</ymin><xmax>400</xmax><ymax>300</ymax>"
    objects = f"<object><name>n01440764</name><bndbox>{sides}</bndbox></object>" * 2
    head = '<?xml version="1.0" encoding="utf-8"?>\n<!-- drawn by hand -->'
    (folder / "a.xml").write_text(
        f"{head}<annotation><size><width>500</width><height>375</height></size>{objects}</annotation>"
    )
    truth = {
        "ant/a.JPEG": {"labels": [1, 0], "boxes": [[0, 0, 0.5, 1], [0.25, 0.5, 1, 1]]},
        "b.JPEG": {"labels": [], "boxes": []},
    }
    (folder / "train.json").write_text(json.dumps(truth))


def read_boxes(path: Path) -> None:
    """Named boxes inside the image."""
    found = read_voc_file(path, "n01440764") if path.suffix == ".xml" else open_scene_boxes(path, CLASSES)("ant/a")
    for one in found:
        assert one.class_name and 0 <= one.box.left < one.box.right <= 1 and 0 <= one.box.top < one.box.bottom <= 1


def write_images(folder: Path) -> None:
    """A small image in every format, and in several kinds of JPEG."""
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((47, 30), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / "baseline.jpg", quality=90, exif=exif)
    image.save(folder / "progressive.jpg", quality=90, progressive=True)
    image.save(folder / "restart.jpg", quality=90, restart_marker_rows=1)
    image.convert("L").save(folder / "grey.jpg")
    image.convert("CMYK").save(folder / "print.jpg")
    for suffix in ("png", "webp", "bmp", "tif", "gif", "ppm"):
        image.save(folder / f"image.{suffix}")
    image.convert("P").save(folder / "palette.png", transparency=bytes(range(256)))


def read_image(path: Path) -> None:
    """A crop and the test's view by either decoder, and what `check` looks at."""
    refused: list[Exception] = []
    try:
        assert 1 <= orientation(path) <= 8
    except OSError as error:
        refused.append(error)
    for decoder in DECODERS:
        try:
            file = ImageFile(path, decoder)
            crops = file.resized_crop(BOX, 9, 13), file.centre_crop(8, 0.9), file.resized_crop(WHOLE_IMAGE, 6, 5)
        except UserError as error:
            refused.append(error)
        else:
            assert [crop.shape for crop in crops] == [(3, 9, 13), (3, 8, 8), (3, 6, 5)]
            assert all(crop.dtype == np.uint8 for crop in crops)
    if refused:
        raise UserError(str(refused[-1]))


def write_tables(folder: Path) -> None:
    """Own labels, predictions, lists of images and of classes."""
    (folder / "labels.tsv").write_text("image\tclass\n" + "".join(f"{name}\t{name[:3]}\n" for name in NAMES))
    (folder / "labels.json").write_text(
        json.dumps({name: [name[:3], 2] for name in NAMES[:4]} | {NAMES[4]: {"labels": [0, "bee"]}})
    )
    header = "image,label,top1,top1_probability,label_probability,top5,in_set\n"
    (folder / "predictions.csv").write_text(
        header + "".join(f'"{name}",ant,bee,0.75,2.5e-05,bee/ant,1\n' for name in NAMES)
    )
    (folder / "keep.txt").write_text("# two of them\nant/0.jpg\n./cow/1.jpg\n")
    (folder / "names.txt").write_text("ant\nbee\ncow\n")


def read_table(path: Path) -> None:
    """By the name of the file."""
    match path.name:
        case "predictions.csv":
            found = read_predictions(path)
            shares = np.stack([found.top1_probability, found.label_probability])
            assert shares.shape == (2, len(found.images)) and ((shares >= 0) & (shares <= 1)).all()
        case "keep.txt":
            assert 0 < len(keep_listed(IMAGES, path)) <= len(NAMES)
        case "names.txt":
            names = read_class_list(str(path))
            assert names and len({name for name, _ in names}) == len(names) and all(map(all, names))
        case _:
            assert read_true_labels(path, IMAGES)[0].truth.any()


@cache
def small_network() -> nn.Module:
    """Whose weights the checkpoints hold."""
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def write_checkpoints(folder: Path) -> None:
    """Ours, of 2021 in the legacy format, bare weights."""
    weights = small_network().state_dict()
    ours = {"step": 7, "arch": "digit_net", "class_names": CLASSES, "state_dict": weights, "state_dict_ema": weights}
    ours[DATA_CONFIG] = DataConfig(**OF_2021).as_record()
    old = {"epoch": 300, "arch": "digit_net", "accuracy": np.float64(78.9), "state_dict": weights}
    torch.save(ours, folder / "ours.pth")
    torch.save(old, folder / "old.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(weights, folder / "bare.safetensors")


def read_checkpoint(path: Path) -> None:
    """Weights that fit the network, the classes, and what is recorded of the input."""
    file = read_weights_file(path)
    assert all(isinstance(name, str) for name in file.classes.names or ())
    DataConfig(**OF_2021 | file.recorded)
    for state_dict in file.state_dicts.values():
        load_weights(small_network(), state_dict)


TARGETS = {
    "label_map": Target(
        write_pt_files, read_pt_file, (b"cos\nsystem\n", b"\x80\x02", b"ctorch\nFloatStorage\n", b"R", b"b")
    ),
    "packed_store": Target(write_store, read_store, (b"|O", b"<f4", b"{'a': 1}", b'"sha256": {}', b"(1,)")),
    "config": Target(
        write_configs, read_yaml, (b"!!python/name:os.system ", b"&a *a", b"? ", b"<<: ", b'"\\UFFFFFFFF"', b"%")
    ),
    "published_labels": Target(write_published, read_published, (b"null", b"true", b"NaN", b"{}", b"[]", b"1e400")),
    "boxes": Target(
        write_boxes, read_boxes, (b"<!DOCTYPE a>", b"&lt;", b"<object>", b"<![CDATA[", b"NaN", b"true", b"null")
    ),
    # Pillow reads images of up to 179 million pixels, as big cameras make them, in four bytes each and then in three.
    "image": Target(write_images, read_image, (b"\xff\xd8\xff", b"\xff\xd9", b"\xff\xda", b"\xff\xc2", b"%!PS"), 2**31),
    "tables": Target(write_tables, read_table, (b"\t", b",", b'""', b"null", b"{}", b"\r", b"ant", b"\xef\xbb\xbf")),
    "checkpoint": Target(write_checkpoints, read_checkpoint, (b"cos\nsystem\n", b"\x80\x02", b"R", b"b", b"K\x01")),
}
