"""Contents of tar files: class folders, tar files of one class each, or WebDataset shards.

train/n01440764/n01440764_10026.JPEG     class folders, below train/ or val/ or other folders or none
n01440764.tar, in a tar file or a folder    ILSVRC 2012: a tar file per class
KEY.jpg KEY.cls KEY.json                 a WebDataset shard: the class is a number or a name; the json is optional
"""

import json
import os
import re
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from relabel.data.class_names import WNID
from relabel.data.folders import EXPECTED_LAYOUT, LOOSE, SPLIT_FOLDERS, by_class_folder, is_image, kind_of
from relabel.data.images import Census, Found, ImageList
from relabel.data.shard_classes import read_info, shard_list
from relabel.data.tar_files import LINK, Member, TarFiles, link_target, walk_tar
from utils.errors import UserError
from utils.progress import JobProgress, counted

_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]+)")  # of a WebDataset member: up to the first dot of its file name
_CLASS, _FACTS = "cls", "json"
_OF_SPLIT = {"train": "training image", "val": "validation image"}


class OtherSplit(UserError):
    """There are images of the other split only."""


def source_of(tars: Sequence[Path]) -> str:
    """Return how many tar files there are, and the first and the last: there may be thousands."""
    names = [tar.name for tar in (tars[0], *tars[1:][-1:])]
    return str(tars[0]) if len(tars) == 1 else f"{len(tars):,} tar files, {tars[0].parent}/{' ... '.join(names)}"


def find_in_tars(root: Path, tars: Sequence[Path], split: str | None) -> ImageList:
    """Build the list of images from the headers of tar files."""
    found = _Members(Census(source_of(tars)))
    sizes = [tar.stat().st_size for tar in tars]
    with JobProgress("index of tar files", sum(sizes) >> 20, "MiB") as progress:
        for number, (tar, size) in enumerate(zip(tars, sizes, strict=True)):
            found.add(number, tar, list(walk_tar(tar)))
            progress.advance(size >> 20)
    if not found.paths:
        raise UserError(
            f"{root}: found no image in {counted(len(tars), 'tar file')}; {EXPECTED_LAYOUT} inside, or WebDataset "
            f"shards with KEY.jpg and KEY.cls; found only {found.census.others()}."
        )
    where = (
        np.frombuffer(found.tar, np.int32),
        np.frombuffer(found.offset, np.int64),
        np.frombuffer(found.size, np.int64),
    )
    images = Found(root, found.paths, TarFiles(list(tars), *where), found.census)
    labelled = sum(map(bool, found.classes))
    if not labelled:
        return by_class_folder(_below_split(images, split))
    if labelled < len(found.paths):
        raise UserError(
            f"{root}: found a class for {labelled:,} of {len(found.paths):,} images; the first without: "
            f"{images.located(found.classes.index(''))}. Expected KEY.{_CLASS} for each. Give the shards of one data "
            "set."
        )
    info = read_info(tars[0].parent)
    listed = shard_list(images, found.classes, info)
    found.census.source += info.absent(tars)
    return listed


class _Members:
    """The images in some tar files: path, class ('' if unknown), and where their bytes lie."""

    def __init__(self, census: Census) -> None:
        self.paths: list[str] = []
        self.classes: list[str] = []
        self.tar, self.offset, self.size = array("i"), array("q"), array("q")
        self.census = census

    def add(self, number: int, tar: Path, members: list[Member]) -> None:
        """Add the images of a tar file."""
        members = _followed(tar, members)
        kinds = [kind_of(name) or ("link" if size == LINK else "") for name, _, size in members]
        images = [member for member, kind in zip(members, kinds, strict=True) if not kind]
        annotations = {name for name, *_ in members if name.endswith((f".{_CLASS}", f".{_FACTS}"))}
        if annotations and _is_shard(images, annotations):
            self._add_shard(number, tar, members, kinds)
            return
        flat = not any("/" in name for name, *_ in images)
        folder = f"{tar.stem}/" if flat and WNID.fullmatch(tar.stem) else ""
        for (name, offset, size), kind in zip(members, kinds, strict=True):
            if kind:
                self.census.pass_over(kind, name)
            else:
                self._append(folder + name, "", number, offset, size)

    def _append(self, path: str, class_name: str, tar: int, offset: int, size: int) -> None:
        self.paths.append(path)
        self.classes.append(class_name)
        self.tar.append(tar)
        self.offset.append(offset)
        self.size.append(size)

    def _add_shard(self, number: int, tar: Path, members: list[Member], kinds: list[str]) -> None:
        """Add the samples of a WebDataset shard: members that are called the same up to the first dot."""
        samples: dict[str, dict[str, Member]] = {}
        for member, kind in zip(members, kinds, strict=True):
            named = _KEY.fullmatch(member[0])
            part = named[2].lower() if named else ""
            if named and part in (_CLASS, _FACTS) and member[2] == LINK:
                raise UserError(
                    f"{tar}: found {member[0]} as a link; expected a file, or a hard link to one in this tar file. "
                    "Make the tar file again with --dereference."
                )
            unused = "" if part in (_CLASS, _FACTS) and "hidden" not in kind else kind
            if not kind and "." in part:
                unused = f"dotted {Path(member[0]).suffix.lower()} file"  # such as a mask, KEY.seg.png
            if unused:
                self.census.pass_over(unused, member[0])
            elif named:
                samples.setdefault(named[1], {})[part] = member
        descriptor = os.open(tar, os.O_RDONLY)
        try:
            for key, parts in samples.items():
                images = [part for part in parts if part not in (_CLASS, _FACTS)]
                if len(images) != 1:
                    self.census.pass_over(f"{'multi-image' if images else 'imageless'} sample", key)
                    continue
                text = {
                    part: os.pread(descriptor, parts[part][2], parts[part][1])
                    for part in (_CLASS, _FACTS)
                    if part in parts
                }
                facts = _facts(tar, key, text.get(_FACTS, b"{}"))
                path = f"{key}.{images[0]}"
                if isinstance(named := facts.get("filename"), str) and is_image(named):
                    path = named
                label = facts.get("label")
                label = os.fsdecode(text[_CLASS]).strip() if _CLASS in text else "" if label is None else str(label)
                self._append(path, label, number, *parts[images[0]][1:])
        finally:
            os.close(descriptor)


def _followed(tar: Path, members: list[Member]) -> list[Member]:
    """Replace hard links by the members that they stand for."""
    if not any(size == LINK for *_, size in members):
        return members
    of: dict[str, Member] = {}
    followed = []
    for name, offset, size in members:
        target = of.get(link_target(tar, offset)) if size == LINK else None
        of[name] = (name, *target[1:]) if target else (name, offset, size)
        followed.append(of[name])
    return followed


def _is_shard(images: list[Member], annotations: set[str]) -> bool:
    """Whether a tar file is a WebDataset shard: an image has a class, or most have a json."""
    keys = [named[1] for name, *_ in images if (named := _KEY.fullmatch(name))]
    with_facts = sum(f"{key}.{_FACTS}" in annotations for key in keys)
    return 2 * with_facts > len(keys) or any(f"{key}.{_CLASS}" in annotations for key in keys)


def _facts(tar: Path, key: str, text: bytes) -> dict[str, Any]:
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{tar}: {key}.{_FACTS} is not JSON ({error}); expected a whole shard. Make it again."
        ) from error
    return facts if isinstance(facts, dict) else {}


def has_both_splits(images: ImageList) -> bool:
    """Whether the tar files of these images contain folders of both splits."""
    return not {*_OF_SPLIT.values()}.isdisjoint(images.census.passed_over)


def below(split: str) -> str:
    """Return the remark that only what is below the folder of a split is used."""
    return f", {split}/ in it"


def _below_split(found: Found, split: str | None) -> Found:
    """Keep the images below train/ or val/, if there are such folders, and remove what is above the class folders.

    A class may be called train: a folder of a split contains folders, or nothing lies beside it.

    Raises:
        OtherSplit: only the other split is there.
    """
    which = {folder: name for name, folders in SPLIT_FOLDERS.items() for folder in folders}
    parts = [path.split("/") for path in found.paths]
    depths = [next((i for i, part in enumerate(names[:-1]) if part.lower() in which), None) for names in parts]
    has_classes = any(depth is not None and depth < len(names) - 2 for names, depth in zip(parts, depths, strict=True))
    if not has_classes and None in depths:
        above = os.path.commonpath({f"/{'/'.join(names[:-2])}" for names in parts})[1:]
        found.paths = [path[len(above) :].lstrip("/") for path in found.paths]
        return found
    splits = [None if depth is None else which[parts[row][depth].lower()] for row, depth in enumerate(depths)]
    chosen = split or ("train" if "train" in splits else "val")
    if chosen not in splits:
        raise OtherSplit(
            f"{found.root}: found no folder {chosen}/ in it, only {', '.join(sorted({*filter(None, splits)}))}/; "
            f"expected {chosen}/."
        )
    found.census.source += below(chosen)
    rows = [row for row, name in enumerate(splits) if name == chosen]
    for row, name in enumerate(splits):
        if name != chosen:
            found.census.pass_over(_OF_SPLIT[name] if name else LOOSE, found.paths[row])
    paths = ["/".join(parts[row][(depths[row] or 0) + 1 :]) for row in rows]
    return Found(found.root, paths, found.files.take(np.array(rows, np.int64)), found.census)
