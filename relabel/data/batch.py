"""A batch of samples, how it is collated, and how it moves to a device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from relabel.augment import Augmentation
from relabel.crop_box import CropBox
from relabel.data.dataset import NO_PIXELS, Sample
from relabel.data.gpu_decode import EncodedImage, EncodedImages
from relabel.data.skipped_images import SkippedImage
from relabel.label_map import LabelMap
from utils.errors import UserError
from utils.processes.workers import BatchMemory


@dataclass(slots=True, eq=False)
class Batch:
    """Stacked samples. Small until moved to the device: bytes for pixels, short integers for class ids.

    An augmentation that changes no sample of the batch is None.

    Fields:
        images: uint8 [B, 3, S, S]; RGB, not yet augmented. Channels last in memory, as the decoders write it.
        labels: int64 [B]; -1 for an extra image.
        boxes: float32 [B, 4]; left, top, right, bottom, fractions of the image.
        scores: float16 or float32 [B, k, h, w], as stored; None without label maps.
        classes: int16 or int32 [B, k, h, w], int64 once moved by `to`; None without label maps.
        flips: bool [B] or None.
        jitter_orders: int64 [B] or None.
        jitter_factors: float32 [B, 3] or None.
        lighting: float32 [B, 3] or None.
        indices: int64 [B]; image indices in the data set.
        skipped: the images missing from the batch because they cannot be read.
        encoded: those still to be decoded; until then, `images` holds the others.
    """

    images: Tensor
    labels: Tensor
    boxes: Tensor
    scores: Tensor | None
    classes: Tensor | None
    flips: Tensor | None
    jitter_orders: Tensor | None
    jitter_factors: Tensor | None
    lighting: Tensor | None
    indices: Tensor
    skipped: tuple[SkippedImage, ...] = ()
    encoded: EncodedImages | None = None

    def __len__(self) -> int:
        """Return B, the number of images."""
        return len(self.labels)

    def to(self, device: torch.device) -> "Batch":
        """Copy to the device, with class ids as int64; a copy from pinned memory is asynchronous."""
        batch = self.map(lambda tensor: tensor.to(device, non_blocking=True))
        return batch if batch.classes is None else replace(batch, classes=batch.classes.long())

    def pin_memory(self) -> "Batch":
        """Copy to page-locked memory; called by DataLoader."""
        batch = self.map(lambda tensor: tensor.pin_memory() if tensor.numel() else tensor)
        return batch if self.encoded is None else replace(batch, encoded=self.encoded.pin_memory())

    def map(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return a batch with the function applied to each tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: function(v) for name, v in values.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def collate(
    items: Sequence[Sample | SkippedImage], memory: BatchMemory | None = None, for_files: BatchMemory | None = None
) -> Batch:
    """Stack samples of one transform, all with label maps or all without.

    Args:
        items: the samples; each is read once, in order, and its pixels are copied before the next is read.
        memory, for_files: for pixels, and for the files of images that are still encoded; by default new memory.

    Raises:
        UserError: images were skipped and fewer than two are left; batch norm needs two.
    """
    samples: list[Sample] = []
    skipped: list[SkippedImage] = []
    pixels, decoded = torch.empty((0, 0, 0, 3), dtype=torch.uint8), 0
    encoded: dict[int, EncodedImage] = {}  # row of the batch -> file
    for item in items:
        if isinstance(item, SkippedImage):
            skipped.append(item)
            continue
        if item.encoded is not None:
            encoded[len(samples)] = item.encoded
        else:
            image = torch.from_numpy(item.image.transpose(1, 2, 0))
            if not decoded:
                pixels = (memory or BatchMemory()).take(len(items), *image.shape)
            pixels[decoded] = image
            decoded += 1
        samples.append(replace(item, image=NO_PIXELS, encoded=None))
    check_left(len(samples), skipped)
    maps = [sample.label_map for sample in samples if sample.label_map is not None]
    drawn = [sample.augmentation for sample in samples if sample.augmentation is not None]
    assert len(maps) in (0, len(samples)) and len(drawn) in (0, len(samples))
    scores, classes = LabelMap.stack(maps) if maps else (None, None)
    return Batch(
        images=pixels[:decoded].permute(0, 3, 1, 2),
        labels=torch.tensor([sample.label for sample in samples]),
        boxes=CropBox.stack([sample.box for sample in samples]),
        scores=scores,
        classes=classes,
        **_stack_augmentations(drawn),
        indices=torch.tensor([sample.index for sample in samples]),
        skipped=tuple(skipped),
        encoded=EncodedImages.stack(encoded, (for_files or BatchMemory()).take) if encoded else None,
    )


def check_left(left: int, skipped: Sequence[SkippedImage]) -> None:
    """Raise UserError if images were skipped and fewer than two are left."""
    if skipped and left < 2:
        raise UserError(
            f"{len(skipped)} of the {left + len(skipped)} images of a batch cannot be read; expected at least two to "
            f"be left, because batch norm needs two. The first: {skipped[0].path} ({skipped[0].reason})\n"
            "  Replace these files, or increase --optim.batch_size, so that every micro-batch has more images."
        )


def _stack_augmentations(drawn: list[Augmentation]) -> dict[str, Tensor | None]:
    """Stack the augmentations into the fields of a Batch; None for those that change nothing."""
    flips = torch.tensor([a.flip for a in drawn], dtype=torch.bool)
    factors = torch.tensor([a.jitter_factors for a in drawn], dtype=torch.float32)
    lighting = torch.tensor([a.lighting for a in drawn], dtype=torch.float32)
    has_jitter = bool((factors != 1).any())
    return {
        "flips": flips if flips.any() else None,
        "jitter_orders": torch.tensor([a.jitter_order for a in drawn]) if has_jitter else None,
        "jitter_factors": factors if has_jitter else None,
        "lighting": lighting if lighting.any() else None,
    }
