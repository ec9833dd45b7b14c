"""Label maps together with the images that they belong to, as the tools look at them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from relabel.data.images import ImageList, list_any_images
from relabel.stores.manifest import Manifest
from relabel.stores.store import LabelStore, class_folders, keys_of, manifest_of, open_label_store
from utils.errors import UserError


@dataclass(frozen=True, slots=True, eq=False)
class LabelSet:
    """Label maps and what they belong to.

    Fields:
        path: where the maps are.
        store: row i is the map of key i.
        keys: bytes [N], "CLASS/STEM" of every image; the store's own where there are no images.
        store_keys: bytes [M], sorted; the keys of all maps that there are.
        class_names: K texts.
        images: the images, in the order of keys; None: they are not at hand.
        manifest: what the maps say about themselves; None: files of 2021.
    """

    path: Path
    store: LabelStore
    keys: np.ndarray
    store_keys: np.ndarray
    class_names: list[str]
    images: ImageList | None
    manifest: Manifest | None = None

    def __len__(self) -> int:
        """N."""
        return len(self.keys)

    @property
    def labels(self) -> np.ndarray | None:
        """int32 [N]; the class folder of every image; None where there are no images, or no class folders."""
        return self.images.labels if self.images and self.images.class_names else None

    @property
    def image_path(self) -> Callable[[int], Path] | None:
        """Gives the image of a row; None where there are no images."""
        return self.images.path if self.images else None

    def key(self, row: int) -> str:
        """The key of a row."""
        return os.fsdecode(self.keys[row])


def open_label_set(labels: Path, images: Path | None) -> LabelSet:
    """Label maps of either form, for the images of a folder or as they are.

    The classes are those of the images' folders; without them those that the maps name themselves, or else the class
    folders of the maps.

    Args:
        labels: a packed store, or a folder of .pt files.
        images: folder of IMAGES/CLASS/IMAGE or of IMAGES/IMAGE; None: only the maps are at hand.

    Raises:
        UserError: no such folder, no maps in it, maps of other classes, or nobody says the classes.
    """
    found = list_any_images(images) if images else None
    store_keys = keys_of(labels)
    if not len(store_keys):
        raise UserError(
            f"{labels}: found no label map; expected a packed store, or CLASS/STEM.pt files. Name another folder"
        )
    manifest = manifest_of(labels)
    own_names = manifest.class_names if manifest else class_folders(store_keys)
    names = (found.class_names if found else []) or own_names
    if not names:
        raise UserError(
            f"{labels}: nobody says which classes these maps speak of; expected a manifest, or class folders. Pack "
            "them with --classes first: python -m relabel pack --help"
        )
    keys = found.keys() if found else store_keys
    return LabelSet(labels, open_label_store(labels, keys, names), keys, store_keys, names, found, manifest)
