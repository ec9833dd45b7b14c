"""Conversion of label maps between a folder of .pt files and a packed store, and what it changes in the targets."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relabel.crop_box import MIN_AREA, CropBox, random_crop_box
from relabel.data.class_names import read_class_list
from relabel.data.images import ImageList
from relabel.data.sources import open_images
from relabel.label_map import LabelMap
from relabel.stores.manifest import MANIFEST, Manifest
from relabel.stores.packed import PackedStore, load_keys
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import SUFFIX, FolderWriter, LabelFolder
from relabel.stores.store import LabelStore, class_folders, exclusive_folder, keys_of, manifest_of, open_label_store
from relabel.targets import relabel_target
from utils.errors import UserError, listed
from utils.progress import JobProgress, print_lines
from utils.random import SAMPLE, keyed_rng

Writer = PackedWriter | FolderWriter
SHAPE_SAMPLE = 9
COMPARED_MAPS = 1000
CROPS_PER_MAP = 4
SIDE = 1000  # of the square image that crops are drawn from; any size will do, because boxes are fractions


def pack(
    files: Path, out: Path, images: Path | None, classes: str | None, skip_damaged: bool, table: Path | None = None
) -> None:
    """Convert a folder of .pt files to a packed store; print what is missing and what rounding the scores changed.

    The same call continues an interrupted one. Scores become float16, which changes nothing for half-precision files.

    Args:
        files: folder of CLASS/STEM.pt.
        out: folder of the store; created if it does not exist.
        images, table: of the images that the maps are for, as in `open_images`; None: not available, no table.
        classes: the classes of the ids, see `_class_names`.
        skip_damaged: leave out maps that cannot be read; otherwise they are an error, raised when all others are done.

    Raises:
        UserError: there is no map, maps are damaged or of several shapes, or the store cannot be written.
    """
    source = manifest_of(files)
    if source is not None and source.form == "packed":
        raise UserError(f"{files} is a packed store; expected a folder of {SUFFIX} files. To make those, use `unpack`")
    keys = keys_of(files)
    if not len(keys):
        raise UserError(f"{files}: found no label map; expected CLASS/STEM{SUFFIX} files. Give their folder.")
    found = open_images(images, table or "") if images else None
    if found:
        _print_missing(found, files, keys)
    names = _class_names(files, keys, found, classes, source)
    k, h, w = source.shape if source else _common_shape(files, keys, names)
    made_by = source.made_by if source else {"files": f"{SUFFIX} files of unknown origin"}
    manifest = Manifest(form="packed", maps=len(keys), k=k, h=h, w=w, class_names=names, made_by=made_by)
    store, writer = LabelFolder(files, keys, names, manifest), PackedWriter(out, keys, manifest)
    with exclusive_folder(out):
        _copy("pack", store, writer, keys, dict(source.skipped) if source else {}, skip_damaged)
    print_lines(f"label maps: {k} of {len(names):,} classes per cell, {h} x {w} cells: {out}")
    _print_rounding(store, open_label_store(out, keys, names), len(names))


def unpack(folder: Path, out: Path) -> None:
    """Write each map of a packed store as OUT/CLASS/STEM.pt, float32, beside the store's manifest.

    Existing files are kept: the same call continues an interrupted one.

    Raises:
        UserError: the store is unfinished, a record is damaged, or the files cannot be written.
    """
    manifest = manifest_of(folder)
    if manifest is None or manifest.form == "pt":
        raise UserError(f"{folder} is not a packed store; expected one, which `python -m relabel pack` makes")
    keys = load_keys(folder, manifest)
    writer = FolderWriter(out, keys, manifest.model_copy(update={"form": "pt", "sha256": {}}))
    with exclusive_folder(out):
        _copy("unpack", PackedStore(folder, manifest, keys), writer, keys, dict(manifest.skipped), skip_damaged=False)
    print_lines(f"{len(keys):,} label maps: {out}")


def _copy(
    title: str, store: LabelStore, writer: Writer, keys: np.ndarray, skipped: dict[str, str], skip_damaged: bool
) -> None:
    """Write every map of a store that the writer lacks; `skipped` images never had a map."""
    done = writer.begin()
    damaged: dict[str, str] = {}
    with JobProgress(title, len(store), "label maps", done=int(done.sum())) as progress:
        for row in np.flatnonzero(~done).tolist():
            try:
                label_map = store.read(row)
                writer.write(row, LabelMap(label_map.scores.astype(np.float32), label_map.classes))
            except UserError as error:
                if isinstance(error.__cause__, OSError):  # not this map's fault: the disk is full, for example
                    raise
                damaged[os.fsdecode(keys[row])] = str(error)
            progress.advance(1)
    reasons = listed(list(damaged.values()))
    if damaged and (not skip_damaged or len(damaged) == len(store)):
        raise UserError(
            f"label maps that cannot be read: {len(damaged):,} of {len(store):,}; all others are done. Download them "
            f"again, or leave them out with --on_error skip, and give the same command again:{reasons}"
        )
    writer.commit(skipped | damaged)
    if damaged:
        print_lines(f"label maps that cannot be read, left out: {len(damaged):,}{reasons}")


def _common_shape(files: Path, keys: np.ndarray, names: Sequence[str]) -> tuple[int, int, int]:
    """Return the most frequent shape of a few maps, so that one odd file does not decide."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    errors: list[UserError] = []
    for row in np.linspace(0, len(keys) - 1, min(len(keys), SHAPE_SAMPLE)).astype(int).tolist():
        try:
            shapes[LabelFolder(files, keys, names).read(row).shape] += 1
        except UserError as error:
            errors.append(error)
    if not shapes:
        raise errors[0]
    return shapes.most_common(1)[0][0]


def _class_names(
    files: Path, keys: np.ndarray, images: ImageList | None, classes: str | None, source: Manifest | None
) -> list[str]:
    """Return the names of the classes that the ids in the files refer to.

    Args:
        files: the folder.
        keys: bytes [N]; of the maps.
        images: the images of the maps, if available.
        classes: "imagenet" (its 1000 wnids), or a text file with one name per line; None: those of the maps' manifest,
            else the class folders of the images, else those of the maps.
        source: the maps' manifest.
    """
    folders = images.class_names if images else []
    if classes is None:
        names = (source.class_names if source else folders) or class_folders(keys)
    else:
        names = [folder for _, folder in read_class_list(classes)]
    if not names:
        raise UserError(
            f"{files}: the label maps do not name their classes, and neither they nor the images have class folders. "
            "Give --classes imagenet, or --classes FILE, a text file with one class per line"
        )
    if source and names != source.class_names:
        raise UserError(f"{files}: --classes are not the classes in its {MANIFEST}. Leave --classes out")
    if unknown := sorted(set(folders or class_folders(keys)) - set(names)):
        raise UserError(
            f"found {len(unknown):,} class folders that are not among the {len(names):,} classes of these maps, the "
            f"first: {unknown[0]!r}; expected names such as {names[0]!r}. Correct --classes, or give other --images"
        )
    return names


def _print_missing(images: ImageList, files: Path, keys: np.ndarray) -> None:
    """Print the number of images without a map and the first of them; the others can still be packed."""
    missing = np.flatnonzero(~np.isin(images.keys(), keys))
    if len(missing):
        first = listed([str(images.path(int(row))) for row in missing])
        print_lines(f"images without a label map in {files}: {len(missing):,} of {len(images):,}:{first}")


def _print_rounding(files: LabelStore, packed: LabelStore, num_classes: int) -> None:
    """Measure and print how much float16 scores change the targets of random crops."""
    rows = np.setdiff1d(np.arange(len(files)), packed.missing())
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:COMPARED_MAPS])
    largest, moved = compare_targets(files, packed, rows, num_classes)
    crops = f"{len(rows) * CROPS_PER_MAP:,} random crops"
    text = f"the targets of {crops} are identical before and after"
    if largest:
        text = (
            f"scores were rounded to float16: in the targets of {crops}, {100 * moved:.2g} % of the probability moves "
            f"to other classes on average, and none changes by more than {100 * largest:.2g} percentage points"
        )
    print_lines(text)


def compare_targets(first: LabelStore, second: LabelStore, rows: np.ndarray, num_classes: int) -> tuple[float, float]:
    """Pool targets from the same random crops of two stores.

    Args:
        first, second: row i of both belongs to the same image.
        rows: int64 [n], at least one; the maps to compare.
        num_classes: K.

    Returns:
        the largest change of a probability; and the share of a target's probability that moves to other classes (half
        the sum of absolute changes), mean over CROPS_PER_MAP crops of each map.
    """
    largest, moved = 0.0, []
    for row in rows.tolist():
        draws = [keyed_rng(0, SAMPLE, number, row) for number in range(CROPS_PER_MAP)]
        boxes = CropBox.stack([random_crop_box(rng, SIDE, SIDE, MIN_AREA) for rng in draws])
        maps = [LabelMap.stack([store.read(row)] * CROPS_PER_MAP) for store in (first, second)]
        before, after = (relabel_target(scores, classes, boxes, num_classes) for scores, classes in maps)
        change = (after - before).abs()
        largest = max(largest, float(change.max()))
        moved.append(float(change.sum(dim=1).mean()) / 2)
    return largest, float(np.mean(moved))
