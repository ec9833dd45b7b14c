"""Packaged JPEG decoders, each made by one function that imports it: the bytes of a file -> RGB uint8, all of it.

Arrays or tensors, [H, W, 3] or [3, H, W], as each makes them. All stand on a libjpeg-turbo, their own or the system's,
and let other threads run meanwhile.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from relabel.crop_box import CropBox

Decode = Callable[[bytes], Any]


def pillow() -> Decode:
    """Pillow."""
    return lambda data: np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def simplejpeg() -> Decode:
    """simplejpeg, a thin layer over libjpeg-turbo; our fast decoder stands on it."""
    import simplejpeg

    return lambda data: simplejpeg.decode_jpeg(data, "RGB")


def opencv() -> Decode:
    """OpenCV, one thread per call; told not to turn images by their EXIF data."""
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def torchvision() -> Decode:
    """torchvision.io, which torchcodec is to replace."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    # Through a bytearray, because torch warns of bytes that cannot be written to.
    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def torchcodec() -> Decode:
    """torchcodec; it turns images by their EXIF data, which nothing switches off: label maps would not fit."""
    from torchcodec.decoders import decode_jpeg

    return lambda data: decode_jpeg(data, mode="RGB")


def pyturbojpeg() -> Decode:
    """PyTurboJPEG, a layer over the system's libjpeg-turbo, 3.0 or later."""
    import turbojpeg

    decoder = turbojpeg.TurboJPEG()
    return lambda data: decoder.decode(data, pixel_format=turbojpeg.TJPF_RGB)


def resize_by_opencv(decode: Decode, size: int) -> Callable[[Path, CropBox], np.ndarray]:
    """A decoder of whole images, made one of crops uint8 [size, size, 3]: area method to shrink, bilinear to enlarge.

    Where a crop shrinks one way and is enlarged the other, OpenCV's area method falls back to bilinear by itself.
    """
    import cv2

    def crop(path: Path, box: CropBox) -> np.ndarray:
        image = decode(path.read_bytes())
        left, top, right, bottom = box.pixels(image.shape[1], image.shape[0])
        shrinks = right - left > size or bottom - top > size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image[top:bottom, left:right], (size, size), interpolation=method)

    return crop
