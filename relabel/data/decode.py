"""Decode a region of an image file to uint8 pixels. Pillow reads every format and is the reference.

JPEG files may take a fast path instead: simplejpeg decodes the same pixels, but only down to the crop's last row, and
torch resizes them with the same antialiased filter (a few values differ by 1 of 255, very few by 2). Files
that the fast path does not accept go to Pillow, which also decides whether a file is damaged.

Crops are cut out before they are resized, as in torchvision. Pillow's resize(box=...) would read pixels beyond the box
and change the crop's border, by up to 11 of 255.
"""

import errno
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.gpu_decode import GPU_DECODERS, Region, resolve_gpu_decoder
from relabel.data.images import ImagePath
from relabel.data.jpeg_rows import complaint_about, damage_in, decode_rows, read_frame, usual_jpeg
from utils.errors import UserError

DECODERS = ("simplejpeg", "pillow")
# Pillow reads more formats, PostScript among them: a program, which it would have Ghostscript execute.
FORMATS = [
    *("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "JPEG2000"),
    *(["AVIF"] if find_spec("PIL.AvifImagePlugin") else []),  # from Pillow 11.3 on
]

MOST_MEGAPIXELS = 179  # the size from which Pillow refuses an image by default
# Its own limit is lifted: it names no size, and cannot be raised by a setting.
Image.MAX_IMAGE_PIXELS = None

# All antialiased: the filter widens with the reduction.
RESAMPLING = {name: Image.Resampling[name.upper()] for name in ("bilinear", "bicubic", "lanczos")}

FAST_RESIZING = ("bilinear", "bicubic")  # those that torch has too

# Exhausted resources of the machine: such an error says nothing about the file.
EXHAUSTED = {errno.ENOMEM: "memory", errno.EMFILE: "open files", errno.ENFILE: "open files"}


class UnreadableImage(UserError):
    """An image file is missing, damaged, or not an image; reading it again would fail again.

    Attributes:
        path: of the file.
        reason: what is wrong with it.
    """

    def __init__(
        self, path: ImagePath, reason: str, expected: str = "a whole JPEG, PNG or other image file. Replace the file"
    ) -> None:
        """Compose the message; `expected` ends with what else to do than removing the file."""
        self.path, self.reason = path, reason
        super().__init__(
            f"{path}: cannot be read as an image ({reason}); expected {expected} or remove it from the folder."
        )


def resolve_decoder(choice: str) -> str:
    """Return the decoder's name for "auto", "gpu" or a name. Runs record it: it affects the last bits of the pixels."""
    return {"auto": "simplejpeg", "gpu": resolve_gpu_decoder()}.get(choice, choice)


class ImageFile:
    """An image file of any mode and size, read as RGB. The constructor parses the header; a crop decodes pixels.

    EXIF rotation is ignored, as in 2021: boxes and label maps refer to the image as stored. (Except TIFF, where
    orientation is part of the format and Pillow applies it; width and height refer to the result.)

    Attributes:
        path: of the file.
        width, height: pixels.
    """

    def __init__(self, path: ImagePath, decoder: str = "pillow", max_megapixels: float = MOST_MEGAPIXELS) -> None:
        """Read the file and parse its header.

        Args:
            path: of the file, or of a member of a tar file.
            decoder: pillow, or simplejpeg (the default of training and evaluation) for the files that it accepts. Label
                maps record which one they were made with. One of GPU_DECODERS: as simplejpeg, where pixels are asked
                for.
            max_megapixels: larger images are refused, because the pixels promised by a damaged or hostile file could
                fill the memory.

        Raises:
            UnreadableImage: missing, not readable, not an image, or too large.
            UserError: the machine has run out of memory or open files.
        """
        assert decoder in (*DECODERS, *GPU_DECODERS), decoder
        self.path, self._for_gpu = path, decoder in GPU_DECODERS
        with _naming(self.path):
            self._data = self.path.read_bytes()
            self._frame = read_frame(self._data) if decoder != "pillow" else None
            header = self._frame or self._opened
        self.width, self.height = header.width, header.height
        if self.width * self.height > max_megapixels * 1e6:
            raise _too_large(path, self.width, self.height, max_megapixels)

    def resized_crop(
        self, box: CropBox, height: int, width: int, interpolation: str = "bilinear", whole: bool = False
    ) -> np.ndarray:
        """Cut out a box and resize it to height x width, as torchvision's resized_crop does.

        Args:
            box: fractions of the image; WHOLE_IMAGE squashes the whole image.
            height, width: of the result, pixels.
            interpolation: bilinear, bicubic or lanczos, antialiased.
            whole: also decode the rows below the box, to find damage there.

        Returns:
            uint8 [3, height, width]; RGB. A view of [height, width, 3], its order in memory.

        Raises:
            UnreadableImage: the file cannot be decoded. (UserError as above.)
        """
        region = Region(*box.pixels(self.width, self.height), height, width)
        return self.cut(region, height, width, interpolation, whole)

    def cut(
        self, region: Region, height: int, width: int, interpolation: str = "bilinear", whole: bool = False
    ) -> np.ndarray:
        """Resize a region, and cut out height x width of the result; the rest as in `resized_crop`."""
        left, top, right, bottom = region[:4]
        with _naming(self.path):
            rows = None
            if self._frame and interpolation in FAST_RESIZING:
                rows = decode_rows(self._data, self._frame, self.height if whole else bottom)
            if rows is not None:
                pixels = _resized(rows[top:bottom, left:right], region.height, region.width, interpolation)
            else:
                image = _rgb(self._opened.crop((left, top, right, bottom)))
                self._check_whole(self._opened.format)
                resized = image.resize((region.width, region.height), RESAMPLING[interpolation])
                pixels = np.array(resized).transpose(2, 0, 1)  # a copy, because torch warns about read-only arrays
        if (height, width) == (region.height, region.width):
            return pixels
        window = pixels[:, region.row : region.row + height, region.column : region.column + width]
        return window.transpose(1, 2, 0).copy().transpose(2, 0, 1)

    def encoded(self, check: bool) -> bytes | None:
        """Return the file as the GPU's decoder takes it; None if the file or the decoder is not for a GPU.

        Args:
            check: look for damage in the whole file; also None where there may be any: the CPU's decoder decides.
        """
        if not self._for_gpu or self._frame is None or (check and complaint_about(self._data)):
            return None
        return usual_jpeg(self._data, self._frame)

    def centre_crop(self, size: int, crop_ratio: float | None, interpolation: str = "bilinear") -> np.ndarray:
        """Resize the shorter side to ceil(size / crop_ratio) and cut out the centre, as torchvision does.

        Args:
            size: side of the result, pixels.
            crop_ratio: in (0, 1]; None squashes the whole image to size x size.
            interpolation: as in resized_crop.

        Returns:
            uint8 [3, size, size]; RGB. A view of [size, size, 3], its order in memory.

        Raises:
            UnreadableImage: the file cannot be decoded. (UserError as above.)
        """
        return self.cut(self.centre_region(size, crop_ratio), size, size, interpolation)

    def centre_region(self, size: int, crop_ratio: float | None) -> Region:
        """Return the whole image resized, and where the centre begins, of `centre_crop` with the same arguments."""
        if crop_ratio is None:
            return Region(0, 0, self.width, self.height, size, size)
        width, height = _resized_size(self.width, self.height, size, crop_ratio)
        left, top, _, _ = _middle(width, height, size)
        return Region(0, 0, self.width, self.height, height, width, top, left)

    def centre_box(self, size: int, crop_ratio: float | None) -> CropBox:
        """Return the box of `centre_crop` with the same arguments."""
        if crop_ratio is None:
            return WHOLE_IMAGE
        resized_size = _resized_size(self.width, self.height, size, crop_ratio)
        return CropBox.from_pixels(*_middle(*resized_size, size), *resized_size)

    @property
    def data(self) -> bytes:
        """The whole file."""
        return self._data

    def checked_format(self) -> str:
        """Return Pillow's name of the file's format, once the rest of the file shows no damage either.

        Raises:
            UnreadableImage: the file is damaged. (UserError as above.)
        """
        with _naming(self.path):
            kind = self._opened.format or ""
            if kind in ("JPEG", "MPO", "PNG"):
                self._check_whole(kind)
            else:
                self._opened.load()
            return kind

    def _check_whole(self, kind: str | None) -> None:
        """Raise ValueError for damage that Pillow ignores: it would return black or grey rows."""
        if kind == "PNG":
            Image.open(io.BytesIO(self._data), formats=FORMATS).verify()  # every chunk's checksum
        elif kind in ("JPEG", "MPO") and (damage := damage_in(self._data)):
            raise ValueError(damage)

    @cached_property
    def _opened(self) -> Image.Image:
        """The file as a Pillow image, opened from memory so that no file stays open."""
        return Image.open(io.BytesIO(self._data), formats=FORMATS)


def _too_large(path: ImagePath, width: int, height: int, limit: float) -> UnreadableImage:
    found = width * height / 1e6
    enough = math.ceil(found)
    return UnreadableImage(
        path,
        f"it has {width:,} x {height:,} pixels, {found:,.1f} megapixels",
        f"at most {limit:,g}, so that no file can fill the memory. If it is meant to be so large, raise the limit "
        f"(--data.max_megapixels {enough}; annotate: --max_megapixels {enough}); otherwise replace it",
    )


def _resized_size(width: int, height: int, size: int, crop_ratio: float) -> tuple[int, int]:
    """Return width and height, with the shorter side ceil(size / crop_ratio); the longer is truncated, not rounded."""
    assert 0 < crop_ratio <= 1, crop_ratio
    shorter = math.ceil(size / crop_ratio)
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _middle(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom of the central square; torchvision rounds halves to even."""
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size


def _rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB; transparency is dropped, not blended."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255 to a white image. Keep the high byte, as it does with 16-bit RGB.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}) without a stated range")
    if image.mode == "P" and "transparency" in image.info:
        # Via RGBA: the colours are the same, but Pillow would warn about a direct conversion.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resized(region: np.ndarray, height: int, width: int, interpolation: str) -> np.ndarray:
    """Resize uint8 [rows, columns, 3] to [3, height, width] with Pillow's filter, vectorised by torch."""
    # Add the batch dimension before permuting: torch would otherwise reorder a single image into planes.
    pixels = torch.from_numpy(np.ascontiguousarray(region))[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, (height, width), mode=interpolation, antialias=True)[0].numpy()


@contextmanager
def _naming(path: ImagePath) -> Iterator[None]:
    """Turn whatever reading or decoding raises into a UserError with the path and the reason."""
    try:
        yield
    # Damaged files raise almost anything in Pillow (OSError, SyntaxError, ValueError, struct.error, zlib.error, ...).
    except Exception as error:
        number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
        if number in EXHAUSTED:
            raise UserError(
                f"{path}: cannot be read, because this process has run out of {EXHAUSTED[number]}. "
                "Give a lower number of workers (num_workers), or raise the limit."
            ) from error
        if isinstance(error, UnidentifiedImageError):
            read = ", ".join(FORMATS)
            raise UnreadableImage(path, f"it is empty, or in no image format that is read here ({read})") from error
        raise UnreadableImage(path, getattr(error, "strerror", None) or f"{type(error).__name__}: {error}") from error
