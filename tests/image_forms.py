"""Miniatures of the forms in which people have ImageNet, each with the same images as plain class folders."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.conftest import Flags

WNIDS = ("n01440764", "n01443537", "n01484850")
NUMBERS = {"n01440764": 3, "n01443537": 1, "n01484850": 2}  # of the development kit, which has an order of its own
Form = Callable[[Path, Path], Flags]  # plain folders, an empty folder -> flags


def plain_folders(root: Path) -> Path:
    """train/ with four images of each of three classes, val/ with two, numbered across the classes as ImageNet's."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for i, (label, wnid) in enumerate((label, wnid) for _ in range(count) for label, wnid in enumerate(WNIDS)):
            name = f"{wnid}_{i}" if split == "train" else f"ILSVRC2012_val_{i + 1:08d}"
            pixels = rng.integers(0, 160, (28, 40, 3))
            pixels[:, :, label] += 90
            (root / split / wnid).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(root / split / wnid / f"{name}.JPEG")
    return root


def files(plain: Path, split: str) -> list[Path]:
    """The images of a split."""
    return sorted((plain / split).rglob("*.JPEG"))


def labels(plain: Path, split: str) -> dict[str, str]:
    """The class of each image name."""
    return {path.name: path.parent.name for path in files(plain, split)}


def copy_flat(images: Iterable[Path], folder: Path) -> None:
    """Copy images into one folder."""
    folder.mkdir(parents=True)
    for path in images:
        shutil.copy(path, folder)


def make_tar(out: Path, members: dict[str, bytes]) -> Path:
    """Write a tar file."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return out


def development_kit(root: Path, classes: Iterable[str]) -> None:
    """ILSVRC's devkit, with classes by image number; it also lists synsets that are no class of images."""
    folder = root / "ILSVRC2012_devkit_t12" / "data"
    folder.mkdir(parents=True)
    kinds = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = [(number, wnid, wnid) for wnid, number in NUMBERS.items()] + [(1001, "n00001740", "entity")]
    savemat(folder / "meta.mat", {"synsets": np.array(synsets, dtype=kinds)[:, None]})
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{NUMBERS[name]}\n" for name in classes))


def nested(plain: Path, out: Path) -> Flags:
    """CLASS/images/IMAGE in training, CLASS/PART/IMAGE in validation; other files lie about."""
    for split, inside in (("train", "images"), ("valid", "a/b")):
        for path in files(plain, "train" if split == "train" else "val"):
            copy = out / split / path.parent.name / inside / path.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
    (out / "train" / ".DS_Store").touch()
    (out / "train" / "__MACOSX").mkdir()
    return {"data.data_path": out}


def kaggle(plain: Path, out: Path) -> Flags:
    """Kaggle's tree; its table has boxes."""
    inside = out / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(plain / "train", inside / "train")
    copy_flat(files(plain, "val"), inside / "val")
    copy_flat(files(plain, "val")[:1], inside / "test")
    box = {name: f"{wnid} 4 2 30 20 {wnid} 1 1 9 9 " for name, wnid in labels(plain, "val").items()}
    lines = ["ImageId,PredictionString"] + [f"{name.partition('.')[0]},{text}" for name, text in box.items()]
    (out / "LOC_val_solution.csv").write_text("\n".join(lines) + "\n")
    return {"data.data_path": out}


def tar_of_each(plain: Path, out: Path) -> Flags:
    """`tar cf train.tar -C train .`, and so val.tar: member names begin with a dot and a slash."""
    out.mkdir()
    for split in ("train", "val"):
        with tarfile.open(out / f"{split}.tar", "w") as tar:
            tar.add(plain / split, ".")
    return {"data.data_path": out}


def one_tar(plain: Path, out: Path) -> Flags:
    """A tar file with both splits, in another order than that of the names."""
    both = [path for split in ("val", "train") for path in reversed(files(plain, split))]
    tar = make_tar(out / "mine.tar", {f"data/{path.relative_to(plain)}": path.read_bytes() for path in both})
    return {"data.data_path": tar}


def tars_of_classes(plain: Path, split: str) -> dict[str, bytes]:
    """A tar file of each class."""
    tars = {}
    for wnid in WNIDS:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for path in sorted((plain / split / wnid).iterdir()):
                tar.add(path, path.name)
        tars[f"{wnid}.tar"] = content.getvalue()
    return tars


def original_tars(plain: Path, out: Path) -> Flags:
    """ILSVRC 2012 as released: a tar file of tar files, a flat one, and the development kit."""
    make_tar(out / "ILSVRC2012_img_train.tar", tars_of_classes(plain, "train"))
    by_number = sorted(files(plain, "val"), key=lambda path: path.name)
    make_tar(out / "ILSVRC2012_img_val.tar", {path.name: path.read_bytes() for path in by_number})
    development_kit(out, [path.parent.name for path in by_number])
    return {"data.data_path": out}


def class_tars(plain: Path, out: Path) -> Flags:
    """The tar files of the classes unpacked from the one, and a flat val/ with the development kit beside it."""
    for name, content in tars_of_classes(plain, "train").items():
        (out / "train").mkdir(parents=True, exist_ok=True)
        (out / "train" / name).write_bytes(content)
    copy_flat(files(plain, "val"), out / "val")
    development_kit(out, [path.parent.name for path in sorted(files(plain, "val"), key=lambda path: path.name)])
    return {"data.data_path": out}


def timms_shards(plain: Path, out: Path) -> Flags:
    """As timm/imagenet-1k-wds: shuffled, jpg, cls and json; the names of validation images do not tell the class."""
    for split, name in (("train", "train"), ("val", "validation")):
        paths = files(plain, split)
        order = np.random.default_rng(1).permutation(len(paths)).tolist()
        for shard, rows in enumerate(np.array_split(order, 3)):
            members: dict[str, bytes] = {}
            for path in (paths[row] for row in rows):
                label = WNIDS.index(path.parent.name)
                facts = {"label": label, "width": 40, "height": 28, "filename": path.name}
                content = {"cls": str(label).encode(), "jpg": path.read_bytes(), "json": json.dumps(facts).encode()}
                members |= {f"{path.stem}.{kind}": data for kind, data in content.items()}
            make_tar(out / f"imagenet1k-{name}-{shard:04d}.tar", members)
    return {"data.data_path": out}


def webdatasets_shards(plain: Path, out: Path) -> Flags:
    """Written by webdataset, with CLASS/STEM as keys and classes as text."""
    from webdataset import ShardWriter

    for split in ("train", "val"):
        (out / split).mkdir(parents=True)
        with ShardWriter(f"{out}/{split}/%06d.tar", maxcount=2, verbose=0) as writer:
            for path in files(plain, split):
                key = f"{path.parent.name}/{path.stem}"
                writer.write({"__key__": key, "jpg": path.read_bytes(), "cls": WNIDS.index(path.parent.name)})
    last = len(files(plain, "train")) // 2 - 1
    return {"data.train": f"{out}/train/{{000000..{last:06d}}}.tar", "data.val": f"{out}/val/*.tar"}


def tiny_imagenet(plain: Path, out: Path) -> Flags:
    """Tiny ImageNet's tree."""
    for wnid in WNIDS:
        copy_flat(sorted((plain / "train" / wnid).iterdir()), out / "train" / wnid / "images")
        (out / "train" / wnid / f"{wnid}_boxes.txt").touch()
    copy_flat(files(plain, "val"), out / "val" / "images")
    lines = [f"{name}\t{wnid}\t0\t32\t44\t62\n" for name, wnid in labels(plain, "val").items()]
    (out / "val" / "val_annotations.txt").write_text("".join(lines))
    return {"data.data_path": out}


def csv_tables(plain: Path, out: Path) -> Flags:
    """One flat folder, a table of each split: with a header, quotes and a byte-order mark, relative to the table."""
    copy_flat([*files(plain, "train"), *files(plain, "val")], out / "images")
    for split in ("train", "val"):
        lines = [f'"images/{name}",{wnid}' for name, wnid in labels(plain, split).items()]
        (out / f"{split}.csv").write_bytes("\r\n".join(["file,label", *lines]).encode("utf-8-sig"))
    return {"data.data_path": out, "data.train_labels": out / "train.csv", "data.val_labels": out / "val.csv"}


def tsv_tables(plain: Path, out: Path) -> Flags:
    """A folder of each split, tables elsewhere without header: file names without extension."""
    flags: Flags = {"data.data_path": out}
    for split in ("train", "val"):
        copy_flat(files(plain, split), out / split / "photos")
        table = out / "labels" / f"{split}.tsv"
        table.parent.mkdir(exist_ok=True)
        table.write_text("".join(f"{Path(name).stem}\t{wnid}\n" for name, wnid in labels(plain, split).items()))
        flags[f"data.{split}_labels"] = table
    return flags


FORMS: tuple[Form, ...] = (
    nested,
    kaggle,
    tar_of_each,
    one_tar,
    original_tars,
    class_tars,
    timms_shards,
    webdatasets_shards,
    tiny_imagenet,
    csv_tables,
    tsv_tables,
)
