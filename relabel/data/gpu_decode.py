"""Decode JPEG files on a GPU (decoder gpu): nvJPEG decodes a batch of whole images, a kernel cuts out the crops.

Workers read the files and draw the boxes; the files of a batch travel to the process with the GPU in one tensor. Files
that nvJPEG may not decode as libjpeg does (PNG, progressive, CMYK, damaged, unusual) are decoded by the workers, as
without a GPU, and join the same batch.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import simplejpeg
import torch
from torch import Tensor

from utils.errors import UserError

TORCHCODEC, TORCHVISION = "gpu (torchcodec)", "gpu (torchvision)"
GPU_DECODERS = (TORCHCODEC, TORCHVISION)

MOST_PIXELS_AT_ONCE = 2**27  # decoded images in memory, 0.4 GB: 700 of ImageNet's, ten of a camera's


class Region(NamedTuple):
    """What is cut out of an image, and how large it becomes.

    Fields:
        left, top, right, bottom: of the region, pixels of the image.
        height, width: of the resized region.
        row, column: where in the resized region the result begins.
    """

    left: int
    top: int
    right: int
    bottom: int
    height: int
    width: int
    row: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImage:
    """A JPEG file that is still to be decoded.

    Fields:
        data: the file, without metadata: torchcodec would rotate the image as EXIF says.
        pixels: their number.
        region: what becomes the crop.
        height, width: of the crop, pixels.
        interpolation: bilinear, bicubic or lanczos, antialiased.
        key: epoch and image index, for reading it again.
    """

    data: bytes
    pixels: int
    region: Region
    height: int
    width: int
    interpolation: str
    key: tuple[int, int]


# Key and reason -> uint8 [3, height, width], or None if the image cannot be read and is to be skipped.
Again = Callable[[tuple[int, int], str], np.ndarray | None]


@dataclass(frozen=True, slots=True, eq=False)
class EncodedImages:
    """The E images of a batch that are still to be decoded.

    Fields:
        data: uint8 [n]; the files, one after the other.
        ends: where each file ends in `data`.
        pixels, regions, keys: of each, as in EncodedImage.
        rows: the rows of the batch that they belong to, ascending.
        height, width, interpolation: of all, as in EncodedImage.
    """

    data: Tensor
    ends: list[int]
    pixels: list[int]
    regions: list[Region]
    keys: list[tuple[int, int]]
    rows: list[int]
    height: int
    width: int
    interpolation: str

    @classmethod
    def stack(cls, images: Mapping[int, EncodedImage], take: Callable[[int], Tensor]) -> "EncodedImages":
        """Put images of one transform together.

        Args:
            images: row of the batch -> image, ascending; at least one.
            take: take(n) returns memory for n bytes, a tensor.
        """
        stacked = list(images.values())
        ends = np.cumsum([len(image.data) for image in stacked]).tolist()
        data = take(ends[-1])
        memory, start = data.numpy(), 0
        for image, end in zip(stacked, ends, strict=True):
            memory[start:end] = np.frombuffer(image.data, np.uint8)
            start = end
        return cls(
            data=data,
            ends=ends,
            pixels=[image.pixels for image in stacked],
            regions=[image.region for image in stacked],
            keys=[image.key for image in stacked],
            rows=list(images),
            height=stacked[0].height,
            width=stacked[0].width,
            interpolation=stacked[0].interpolation,
        )

    def pin_memory(self) -> "EncodedImages":
        """Copy the files to page-locked memory."""
        return replace(self, data=self.data.pin_memory())

    def join(self, others: Tensor, device: torch.device, again: Again) -> tuple[Tensor, list[int]]:
        """Decode all images and put them between the others of the batch.

        Args:
            others: uint8 [C, 3, height, width]; the crops of the other rows of the batch, in order.
            device: of the result.
            again: decodes an image on the CPU that could not be decoded.

        Returns:
            uint8 [B, 3, height, width] on the device, channels last in memory; and the rows whose images could be read,
            the others being undefined.
        """
        crops, failed = self.decode(device)
        rows = range(len(crops) + len(others))
        kept = set(rows)
        for i, reason in failed.items():
            image = again(self.keys[i], reason)
            if image is None:
                kept.remove(self.rows[i])
            else:
                crops[i] = torch.from_numpy(image).to(device)
        if not len(others):
            return crops, sorted(kept)
        joined = torch.cat([part.permute(0, 2, 3, 1) for part in (crops, others.to(device))])
        at = {row: i for i, row in enumerate([*self.rows, *sorted(set(rows) - set(self.rows))])}
        order = torch.tensor([at[row] for row in rows], device=device)
        return joined[order].permute(0, 3, 1, 2), sorted(kept)

    def decode(self, device: torch.device) -> tuple[Tensor, dict[int, str]]:
        """Decode all images and cut out their crops.

        Returns:
            uint8 [E, 3, height, width] on the device, channels last in memory; and position -> reason of those that
            cannot be decoded there, whose pixels are undefined.
        """
        from relabel.data.resize_kernel import resize_regions  # needs Triton, which not every platform has

        crops = torch.empty((len(self.ends), self.height, self.width, 3), dtype=torch.uint8, device=device)
        starts, failed = [0, *self.ends], dict[int, str]()
        for first, end in _parts(self.pixels, MOST_PIXELS_AT_ONCE):
            files = [self.data[starts[i] : self.ends[i]] for i in range(first, end)]
            images: list[Tensor] = []
            regions: list[Region] = []
            decoded_at: list[int] = []
            for at, image in enumerate(_decode_each(files, device), first):
                if isinstance(image, str):
                    failed[at] = image
                    continue
                images.append(image.contiguous())
                regions.append(self.regions[at])
                decoded_at.append(at)
            if images:
                resized = resize_regions(images, regions, self.height, self.width, self.interpolation)
                crops[decoded_at if failed else slice(first, end)] = resized.permute(0, 2, 3, 1)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # nvJPEG may be reading the files until now
        return crops.permute(0, 3, 1, 2), failed


def _parts(sizes: Sequence[int], most: int) -> list[tuple[int, int]]:
    """Divide positions into runs whose sizes add up to at most `most`, or that are a single one."""
    parts, first, total = list[tuple[int, int]](), 0, 0
    for at, size in enumerate(sizes):
        if at > first and total + size > most:
            parts.append((first, at))
            first, total = at, 0
        total += size
    return [*parts, (first, len(sizes))]


def _decode_each(files: list[Tensor], device: torch.device) -> list[Tensor | str]:
    """Decode a batch; if that fails, image by image. The reason stands in for an image that cannot be decoded."""
    try:
        return list(decode_jpegs(files, device))
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if len(files) == 1:
            return [str(error).splitlines()[0]]
    return [image for file in files for image in _decode_each([file], device)]


def decode_jpegs(files: list[Tensor], device: torch.device) -> list[Tensor]:
    """Decode JPEG files as RGB: with torchcodec where it is installed, otherwise with torchvision.

    Args:
        files: uint8 [n] each, on the CPU, without EXIF rotation.
        device: a GPU; on the CPU the same libraries decode with libjpeg.

    Returns:
        uint8 [3, H, W] each, on the device.

    Raises:
        RuntimeError: one of them cannot be decoded.
    """
    if device.type == "cuda":
        # Both libraries decode on a stream of their own, into memory of the current stream, whose earlier work may
        # still read it: they do not wait for that.
        torch.cuda.current_stream(device).synchronize()
    return _library()(files, device)


@cache
def _library() -> Callable[[list[Tensor], torch.device], list[Tensor]]:
    if resolve_gpu_decoder() == TORCHCODEC:
        from torchcodec.decoders import decode_jpeg

        return lambda files, device: decode_jpeg(files, mode="RGB", device=device)

    from torchvision import io

    return lambda files, device: io.decode_jpeg(files, mode=io.ImageReadMode.RGB, device=device)


def report_fallback(path: str, reason: str) -> None:
    """Print a warning about the first image that the GPU could not decode, but the CPU."""
    if not _reported:
        _reported.append(path)
        print(
            f"warning: {path}: decoded on the CPU, because the GPU could not ({reason}); no further ones are reported",
            file=sys.stderr,
            flush=True,
        )


_reported: list[str] = []


def resolve_gpu_decoder() -> str:
    """Return the one of GPU_DECODERS that is used."""
    return TORCHCODEC if find_spec("torchcodec") else TORCHVISION


def check_gpu_decoder(device: torch.device, flag: str = "--data.decoder") -> None:
    """Decode a small image on the device.

    Args:
        device: of this process.
        flag: the command-line flag of the decoder, for messages.

    Raises:
        UserError: it is no NVIDIA GPU, or the library cannot decode there.
    """
    advice = f"Decode on the CPU: {flag} auto."
    if device.type != "cuda":
        raise UserError(f"{flag} is gpu, but this process uses the {device.type}; expected an NVIDIA GPU.\n  {advice}")
    small = torch.frombuffer(bytearray(simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))), dtype=torch.uint8)
    try:
        decode_jpegs([small], device)
    except Exception as error:  # of the import, the library or the driver
        name = resolve_gpu_decoder().removeprefix("gpu (").removesuffix(")")
        raise UserError(
            f"{flag} is gpu, but {name} cannot decode JPEG files on {device} ({str(error).splitlines()[0]}); "
            f"expected torchcodec or torchvision built for CUDA, with nvJPEG.\n  Reinstall {name}. {advice}"
        ) from error
