"""Label maps with the images that they belong to, as the tools use them."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.data.images import ImageList
from relabel.data.sources import open_images
from relabel.stores.manifest import Manifest
from relabel.stores.store import LabelStore, class_folders, keys_of, manifest_of, open_label_store
from utils.errors import UserError


@dataclass(frozen=True, slots=True, eq=False)
class LabelSet:
    """Label maps and their images.

    Fields:
        path: of the maps.
        store: row i is the map of key i.
        keys: bytes [N], "CLASS/STEM" of every image; the store's own if there are no images.
        store_keys: bytes [M], sorted; the keys of all existing maps.
        class_names: of the K classes.
        images: in the order of keys; None: not available.
        manifest: of the maps; None for files of 2021.
    """

    path: Path
    store: LabelStore
    keys: np.ndarray
    store_keys: np.ndarray
    class_names: list[str]
    images: ImageList | None
    manifest: Manifest | None = None

    def __len__(self) -> int:
        """Return N, the number of keys."""
        return len(self.keys)

    @property
    def labels(self) -> np.ndarray | None:
        """The class of every image, int32 [N]; None without images or class folders."""
        return self.images.labels if self.images and self.images.class_names else None

    @property
    def skipped(self) -> dict[str, str]:
        """Key -> reason, for the images that could not be read when the maps were made."""
        return self.manifest.skipped if self.manifest else {}

    def key(self, row: int) -> str:
        """Return the key of a row as text."""
        return os.fsdecode(self.keys[row])


def open_label_set(labels: Path, images: Path | None, table: Path | None = None) -> LabelSet:
    """Open label maps of either form, with or without their images.

    The classes are those of the images' folders, else those of the maps' manifest, else the class folders of the maps.

    Args:
        labels: a packed store, or a folder of .pt files.
        images, table: as in `open_images`; None: only the maps are available, no table.

    Raises:
        UserError: the folder does not exist or has no maps, or their classes are unknown or do not include the data's.
    """
    found = open_images(images, table or "") if images else None
    store_keys = keys_of(labels)
    if not len(store_keys):
        raise UserError(
            f"{labels}: found no label map; expected a packed store, or CLASS/STEM.pt files. Choose another folder"
        )
    manifest = manifest_of(labels)
    own_names = manifest.class_names if manifest else class_folders(store_keys)
    names = (found.class_names if found else []) or own_names
    if not names:
        raise UserError(
            f"{labels}: the label maps do not name their classes; expected a manifest, or class folders. Pack them "
            "with --classes first: python -m relabel pack --help"
        )
    keys = found.keys() if found else store_keys
    return LabelSet(labels, open_label_store(labels, keys, names), keys, store_keys, names, found, manifest)
