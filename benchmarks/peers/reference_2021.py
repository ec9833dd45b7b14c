"""The input path of the 2021 code, reimplemented plainly: from files to normalised floats and soft targets.

In worker processes, one image at a time: Pillow decodes, random resized crop (bilinear, antialiased), flip, colour
jitter, floats, PCA lighting, normalisation, and torch.load of the label map. In the main process, one batch at a time:
the dense label maps [B, K, h, w], torchvision's roi_align of them, softmax. Boxes are in the right order here, left
before top; in 2021 they were not, at the same cost.
"""

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as F

from benchmarks.label_pooling import K, pool_dense
from benchmarks.peers import RATIOS, SIZE, Job, Reader
from models.data_config import IMAGENET_MEAN, IMAGENET_STD
from relabel.augment import EIGENVALUES, EIGENVECTORS
from relabel.crop_box import MIN_AREA
from relabel.data.images import ImageList

FLIP, JITTER, LIGHTING = 0.5, 0.4, 0.1


def readers(job: Job) -> dict[str, Reader]:
    """Return a reader of the whole procedure."""
    return {"2021 procedure, whole": partial(_read, job)}


def _read(job: Job) -> Iterator[int]:
    """Read one epoch."""
    dataset = LabelledCrops(job.photos, job.labels)
    for images, label_maps, boxes in DataLoader(dataset, job.batch, shuffle=True, num_workers=job.workers):
        targets = dense_target(label_maps[:, 0], label_maps[:, 1].long(), boxes)
        assert images.dtype == torch.float32 and images.shape[1:] == (3, SIZE, SIZE) and targets.shape[1] == K
        yield len(images)


def dense_target(scores: Tensor, classes: Tensor, boxes: Tensor) -> Tensor:
    """Return the softmax of the dense label map pooled over the crop.

    Args:
        scores, classes: float and int64 [B, k, h, w].
        boxes: float [B, 4]; left, top, right, bottom as fractions of the image.

    Returns:
        float32 [B, K].
    """
    return pool_dense(scores, classes, boxes, K).softmax(dim=1)


class LabelledCrops(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Samples: image float32 [3, S, S], label map float32 [2, k, h, w] (scores; class ids), box float32 [4]."""

    def __init__(self, photos: ImageList, labels: Path) -> None:
        """Take images and the folder of their label maps."""
        self.photos = photos
        self.labels = labels
        self.jitter = transforms.ColorJitter(JITTER, JITTER, JITTER)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.photos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Read a random crop of an image."""
        image = Image.open(str(self.photos.path(index))).convert("RGB")
        left, top, width, height = self._box(image)
        crop = F.resized_crop(image, top, left, height, width, [SIZE, SIZE])
        if random.random() < FLIP:
            crop = F.hflip(crop)
        pixels = F.to_tensor(self.jitter(crop))
        weights = torch.randn(3) * LIGHTING * torch.tensor(EIGENVALUES)
        pixels = pixels + (torch.tensor(EIGENVECTORS) @ weights)[:, None, None]
        box = torch.tensor([left, top, left + width, top + height]) / torch.tensor([image.width, image.height] * 2)
        path = (self.labels / self.photos.name(index)).with_suffix(".pt")
        return F.normalize(pixels, IMAGENET_MEAN, IMAGENET_STD), torch.load(path, weights_only=True), box

    def _box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Draw left, top, width and height in pixels."""
        top, left, height, width = transforms.RandomResizedCrop.get_params(image, (MIN_AREA, 1.0), RATIOS)
        return left, top, width, height
