"""Packaged JPEG decoders, each made by one function that imports it: the bytes of a file -> the whole image, RGB uint8.

Arrays or tensors, [H, W, 3] or [3, H, W], depending on the decoder. All use a libjpeg-turbo, their own or the system's,
and release the GIL.
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
    """simplejpeg, a thin layer over libjpeg-turbo, which our fast decoder uses."""
    import simplejpeg

    return lambda data: simplejpeg.decode_jpeg(data, "RGB")


def opencv() -> Decode:
    """OpenCV, one thread per call, without EXIF rotation."""
    import cv2

    cv2.setNumThreads(1)
    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return lambda data: cv2.imdecode(np.frombuffer(data, np.uint8), flags)


def torchvision() -> Decode:
    """torchvision.io, which torchcodec is to replace."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    # Through a bytearray, because torch warns about read-only bytes.
    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def torchcodec() -> Decode:
    """torchcodec; it always applies EXIF rotation, so label maps would not fit."""
    from torchcodec.decoders import decode_jpeg

    return lambda data: decode_jpeg(data, mode="RGB")


def pyturbojpeg() -> Decode:
    """PyTurboJPEG, a layer over the system's libjpeg-turbo, 3.0 or later."""
    import turbojpeg

    decoder = turbojpeg.TurboJPEG()
    return lambda data: decoder.decode(data, pixel_format=turbojpeg.TJPF_RGB)


def resize_by_opencv(decode: Decode, size: int) -> Callable[[Path, CropBox], np.ndarray]:
    """Make a reader of crops uint8 [size, size, 3] from a decoder: OpenCV's area method to shrink, else bilinear.

    Where a crop shrinks along one side and grows along the other, OpenCV's area method falls back to bilinear itself.
    """
    import cv2

    def crop(path: Path, box: CropBox) -> np.ndarray:
        image = decode(path.read_bytes())
        left, top, right, bottom = box.pixels(image.shape[1], image.shape[0])
        shrinks = right - left > size or bottom - top > size
        method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(image[top:bottom, left:right], (size, size), interpolation=method)

    return crop
