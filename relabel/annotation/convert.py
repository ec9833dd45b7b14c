"""Label maps from one form into the other: a folder of .pt files into a packed store, and back."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from relabel.annotation.target_change import compare_targets
from relabel.data.class_names import class_names_of_imagenet
from relabel.data.images import ImageList, list_any_images
from relabel.label_map import LabelMap
from relabel.stores.manifest import MANIFEST, Manifest
from relabel.stores.packed import PackedStore, load_keys, read_whole_manifest
from relabel.stores.packed_writer import PackedWriter
from relabel.stores.pt_folder import SUFFIX, FolderWriter, LabelFolder
from relabel.stores.store import LabelStore, class_folders, kept_to_one, keys_of, manifest_of, open_label_store
from utils.errors import UserError, listed
from utils.progress import JobProgress

IMAGENET = "imagenet"
SHAPE_SAMPLE = 9
COMPARED_MAPS = 1000


def pack(files: Path, out: Path, images: Path | None, classes: str | None, skip_damaged: bool) -> None:
    """Write a folder of .pt files as a packed store, and say what is missing and what the rounding changed.

    The same call continues an interrupted one. Scores become float16, which changes nothing in files of half precision.

    Args:
        files: folder of CLASS/STEM.pt.
        out: folder of the store; made if it is not there.
        images: folder of the images that the maps are for; None = not at hand.
        classes: what the class ids stand for, see `_class_names`.
        skip_damaged: leave out maps that cannot be read; else they are an error, said when all others are done.

    Raises:
        UserError: there is no map, maps are damaged or of several shapes, or the store cannot be written.
    """
    source = manifest_of(files)
    if source is not None and source.form == "packed":
        raise UserError(f"{files} is a packed store; expected a folder of {SUFFIX} files. To write those: unpack")
    keys = keys_of(files)
    if not len(keys):
        raise UserError(f"{files}: found no label map; expected CLASS/STEM{SUFFIX} files. Give the folder with them.")
    found = list_any_images(images) if images else None
    if found:
        _say_missing(found, files, keys)
    names = _class_names(files, keys, found, classes, source)
    store = LabelFolder(files, keys, names, names)
    k, h, w = store.expect(source.shape if source else _common_shape(files, keys, names))
    made_by = source.made_by if source else {"files": f"{SUFFIX} files of unknown making"}
    manifest = Manifest(form="packed", maps=len(keys), k=k, h=h, w=w, class_names=names, made_by=made_by)
    writer = PackedWriter(out, keys, manifest)
    with kept_to_one(out):
        _copy(store, writer, keys, "pack", np.float16, skip_damaged, dict(source.skipped) if source else {})
    print(f"label maps of {k} among {len(names):,} classes in {h} x {w} cells: {out}", flush=True)
    _say_rounding(store, open_label_store(out, keys, names), len(names))


def unpack(folder: Path, out: Path) -> None:
    """Write each map of a packed store as OUT/CLASS/STEM.pt, float32, beside the store's manifest.

    Files that are there already are kept: the same call continues an interrupted one.

    Raises:
        UserError: no whole store, a damaged record, or the files cannot be written.
    """
    manifest = read_whole_manifest(folder)
    keys = load_keys(folder)
    writer = FolderWriter(out, keys, manifest.model_copy(update={"form": "pt", "sha256": {}}))
    with kept_to_one(out):
        _copy(PackedStore(folder, keys, None), writer, keys, "unpack", np.float32, False, dict(manifest.skipped))
    print(f"{len(keys):,} label maps: {out}", flush=True)


def _copy(
    store: LabelStore,
    writer: PackedWriter | FolderWriter,
    keys: np.ndarray,
    title: str,
    dtype: type,
    skip_damaged: bool,
    skipped: dict[str, str],
) -> None:
    """Write every map of a store that the writer has not, with scores of this type; `skipped` never had one."""
    writer.begin()
    writer.open()
    done = writer.finished()
    damaged: dict[str, str] = {}
    with JobProgress(title, len(store), "label maps", done=int(done.sum())) as progress:
        for row in np.flatnonzero(~done).tolist():
            try:
                label_map = store.read(row)
                with np.errstate(over="ignore"):  # the writer says which map it is
                    writer.write(row, LabelMap(label_map.scores.astype(dtype), label_map.classes))
            except UserError as error:
                if not isinstance(error.__cause__, OSError):
                    damaged[os.fsdecode(keys[row])] = str(error)
                else:
                    raise
            progress.advance(1)
    reasons = list(damaged.values())
    if damaged and (not skip_damaged or len(damaged) == len(store)):
        raise UserError(
            f"{len(damaged):,} of {len(store):,} label maps cannot be read; all others are done. Fetch them again, or "
            f"leave them out with --on_error skip, and give the same command again:{listed(reasons)}"
        )
    writer.commit(skipped | damaged)
    if damaged:
        print(f"{len(damaged):,} label maps cannot be read and were left out:{listed(reasons)}", flush=True)


def _common_shape(files: Path, keys: np.ndarray, names: Sequence[str]) -> tuple[int, int, int]:
    """The shape that most of a few maps have: one odd file must not decide."""
    shapes: Counter[tuple[int, int, int]] = Counter()
    reason: UserError | None = None
    for row in np.linspace(0, len(keys) - 1, min(len(keys), SHAPE_SAMPLE)).astype(int).tolist():
        try:
            shapes[LabelFolder(files, keys, names, names).read(row).shape] += 1
        except UserError as error:
            reason = reason or error
    if not shapes:
        assert reason is not None
        raise reason
    return shapes.most_common(1)[0][0]


def _class_names(
    files: Path, keys: np.ndarray, images: ImageList | None, classes: str | None, source: Manifest | None
) -> list[str]:
    """What the class ids in the files stand for.

    Args:
        files: their folder.
        keys: bytes [N]; of the maps.
        images: that they are for.
        classes: "imagenet" (its 1000 wnids), or a text file with a name a line; None: as the maps' manifest says, else
            the class folders of the images, else those of the maps.
        source: the maps' manifest.
    """
    folders = images.class_names if images else []
    if classes is None:
        names = (source.class_names if source else folders) or class_folders(keys)
    elif classes == IMAGENET:
        names = class_names_of_imagenet()
    else:
        names = read_names(Path(classes))
    if not names:
        raise UserError(
            f"{files}: nobody says which classes these maps speak of: neither they nor the images have class folders. "
            "Give --classes, imagenet or a text file with a class a line"
        )
    if source and names != source.class_names:
        raise UserError(f"{files}: --classes are not the classes that its {MANIFEST} names. Leave --classes out")
    if strange := sorted(set(folders or class_folders(keys)) - set(names)):
        raise UserError(
            f"found {len(strange):,} class folders that are none of the {len(names):,} classes of these maps, the "
            f"first: {strange[0]!r}; expected names such as {names[0]!r}. Correct --classes, or name other images"
        )
    return names


def read_names(path: Path) -> list[str]:
    """A text file with the name of a class a line, in the order of the class ids. UserError where it is none."""
    try:
        names = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"the class names cannot be read from {path} ({error}); expected --classes imagenet, or a text file with a "
            "class folder's name a line, in the order of the class ids"
        ) from error
    names = [name.strip() for name in names if name.strip()]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: found {'a name twice' if names else 'no name'}; expected each class once. Correct it")
    return names


def _say_missing(images: ImageList, files: Path, keys: np.ndarray) -> None:
    """How many images have no map, and the first of them; nothing is wrong with packing what is there."""
    missing = np.flatnonzero(~np.isin(images.keys(), keys))
    if len(missing):
        first = listed([str(images.path(int(row))) for row in missing])
        print(f"{len(missing):,} of {len(images):,} images have no label map in {files}:{first}", flush=True)


def _say_rounding(files: LabelStore, packed: LabelStore, num_classes: int) -> None:
    """What float16 scores change, measured."""
    rows = np.setdiff1d(np.arange(len(files)), packed.missing())
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:COMPARED_MAPS])
    change = compare_targets(files, packed, rows, num_classes)
    if change.largest == 0:
        print(f"the targets of {change.crops:,} random crops are the same, to the last bit", flush=True)
    else:
        print(
            f"scores were rounded to float16, which moves {100 * change.mean_moved:.2g} % of a target's probability to "
            f"other classes, mean of {change.crops:,} random crops; no probability changes by more than "
            f"{100 * change.largest:.2g} points",
            flush=True,
        )
