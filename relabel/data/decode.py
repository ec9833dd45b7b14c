"""An image file and a region of it -> uint8 pixels. Pillow decodes everything, and is the reference.

JPEG files can take the fast way instead: simplejpeg decodes the same pixels, down to the crop's last row only, and
torch resizes them by the same antialiased bilinear filter (of 255, values differ by 1 here and there, seldom by 2).
What the fast way does not take goes through Pillow, which also has the last word on what is damaged.

Crops are cut out before they are resized, as torchvision does. Pillow's resize(box=...) reads pixels beyond the box: it
changes the crop's border, by up to 11 of 255 in a photo.
"""

import errno
import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.jpeg_rows import damage_in, decode_rows, read_frame
from utils.errors import UserError

DECODERS = ("simplejpeg", "pillow")
# Pillow reads more: PostScript among them, which is a program that it lets Ghostscript run.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "PPM", "TIFF", "GIF", "JPEG2000")

# All of them antialiased: the filter widens with the reduction.
RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

# What says nothing about the file: it could be read where there is more of these.
MACHINE_ERRORS = {errno.ENOMEM: "memory", errno.EMFILE: "open files", errno.ENFILE: "open files"}


class UnreadableImage(UserError):
    """An image file is missing, damaged or no image; another attempt would end the same.

    Attributes:
        path: of the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(
            f"{path}: cannot be read as an image ({reason}); expected a whole JPEG, PNG or other image file. "
            "Replace the file, or remove it from the folder; training goes on without it with --data.on_error skip."
        )


def resolve_decoder(choice: str) -> str:
    """auto or a decoder's name -> the name; it decides the last bits of the pixels, so a run records it."""
    return "simplejpeg" if choice == "auto" else choice


class ImageFile:
    """One image file of any mode and size, read as RGB. Making one reads the header only; a crop decodes.

    EXIF rotation is ignored, as in 2021: boxes are fractions of the image as it is stored, and so are label maps.
    (TIFF alone: Pillow turns it, orientation being part of the format; width and height are then those after turning.)

    Attributes:
        path: of the file.
        width, height: pixels.
    """

    __slots__ = ("_data", "_frame", "_image", "height", "path", "width")

    def __init__(self, path: str | Path, decoder: str = "pillow") -> None:
        """Read the file and parse its header.

        Args:
            path: of the file.
            decoder: pillow, or simplejpeg for the files it takes, as training and tests do by default. Label maps are
                made and checked with Pillow's pixels, so that they do not hang on a choice of speed.

        Raises:
            UnreadableImage: missing, not to be read, not an image.
            UserError: the machine lacks what reading takes.
        """
        assert decoder in DECODERS, decoder
        self.path = Path(path)
        self._image: Image.Image | None = None
        with _refusal_names(self.path):
            self._data = self.path.read_bytes()
            self._frame = read_frame(self._data) if decoder == "simplejpeg" else None
            header = self._frame or self._opened()
        self.width, self.height = header.width, header.height

    def resized_crop(
        self, box: CropBox, height: int, width: int, interpolation: str = "bilinear", whole: bool = False
    ) -> np.ndarray:
        """Cut out a box and resize it, aspect not kept; as torchvision's resized_crop does.

        Args:
            box: fractions of the image; WHOLE_IMAGE squashes all of it.
            height, width: of the result, pixels.
            interpolation: bilinear, bicubic or lanczos, antialiased.
            whole: also look for damage below the box, where the decoder could stop at it.

        Returns:
            uint8 [3, height, width]; RGB. A view of [height, width, 3], which is its order in memory.

        Raises:
            UnreadableImage: the file cannot be decoded. (UserError as above.)
        """
        left, top, right, bottom = box.pixels(self.width, self.height)
        with _refusal_names(self.path):
            if self._frame and interpolation == "bilinear":
                rows = decode_rows(self._data, self._frame, self.height if whole else bottom)
                if rows is not None:
                    return _resized(rows[top:bottom, left:right], height, width)
            opened = self._opened()
            region = _rgb(opened.crop((left, top, right, bottom)))
            self._check_whole(opened.format)
            return _planes(region.resize((width, height), RESAMPLING[interpolation]))

    def centre_crop(self, size: int, crop_ratio: float | None) -> np.ndarray:
        """The test crop: shorter side to ceil(size / crop_ratio), bilinear, then the middle; as torchvision's.

        Args:
            size: side of the result, pixels.
            crop_ratio: in (0, 1]; None squashes the whole image to size x size.

        Returns:
            uint8 [3, size, size]; RGB. A view of [size, size, 3], which is its order in memory.

        Raises:
            UnreadableImage: the file cannot be decoded. (UserError as above.)
        """
        if crop_ratio is None:
            return self.resized_crop(WHOLE_IMAGE, size, size)
        width, height = _resized_size(self.width, self.height, size, crop_ratio)
        left, top, right, bottom = _middle(width, height, size)
        resized = self.resized_crop(WHOLE_IMAGE, height, width).transpose(1, 2, 0)
        return resized[top:bottom, left:right].copy().transpose(2, 0, 1)

    def centre_box(self, size: int, crop_ratio: float | None) -> CropBox:
        """Where `centre_crop` of the same arguments lies in the image."""
        if crop_ratio is None:
            return WHOLE_IMAGE
        resized_size = _resized_size(self.width, self.height, size, crop_ratio)
        return CropBox.from_pixels(*_middle(*resized_size, size), *resized_size)

    def _check_whole(self, kind: str | None) -> None:
        """Raise for damage that Pillow passes over when it decodes: it leaves such rows black or grey."""
        if kind == "PNG":
            Image.open(io.BytesIO(self._data), formats=FORMATS).verify()  # of every chunk's checksum
        elif kind in ("JPEG", "MPO") and (damage := damage_in(self._data)):
            raise ValueError(damage)

    def _opened(self) -> Image.Image:
        """The file as Pillow's image, from memory: no file stays open, whatever the format's reader does with it."""
        if self._image is None:
            self._image = Image.open(io.BytesIO(self._data), formats=FORMATS)
        return self._image


def _resized_size(width: int, height: int, size: int, crop_ratio: float) -> tuple[int, int]:
    """Width and height after the shorter side became ceil(size / crop_ratio); the longer is cut off, not rounded."""
    assert 0 < crop_ratio <= 1, crop_ratio
    shorter = math.ceil(size / crop_ratio)
    if width <= height:
        return shorter, int(shorter * height / width)
    return int(shorter * width / height), shorter


def _middle(width: int, height: int, size: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the central square; torchvision rounds halves to even."""
    left, top = round((width - size) / 2), round((height - size) / 2)
    return left, top, left + size, top + size


def _rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB. Transparency is dropped, never blended; grey is repeated."""
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255, which leaves a white image; the high byte is what it keeps of 16-bit RGB.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are 32-bit numbers (mode {image.mode}), whose black and white nobody states")
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns once an image that it would rather make RGBA; the colours are the same.
        image = image.convert("RGBA")
    return image.convert("RGB")


def _resized(region: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [rows, columns, 3] -> [3, height, width]; Pillow's bilinear filter, vectorised (torch's bicubic is not)."""
    # The batch dimension first: permuted before it, torch would take a single image for planes and sort its channels.
    pixels = torch.from_numpy(np.ascontiguousarray(region))[None].permute(0, 3, 1, 2)
    return F.interpolate(pixels, (height, width), mode="bilinear", antialias=True)[0].numpy()


def _planes(image: Image.Image) -> np.ndarray:
    """An RGB image as uint8 [3, H, W], a writable view of [H, W, 3] (torch warns of arrays that are not writable)."""
    return np.array(image).transpose(2, 0, 1)


def _lacking(error: Exception) -> str | None:
    """What the machine has run out of, if that is the reason."""
    if isinstance(error, OSError):
        return MACHINE_ERRORS.get(error.errno or 0)
    return "memory" if isinstance(error, MemoryError) else None


@contextmanager
def _refusal_names(path: Path) -> Iterator[None]:
    """Turn whatever reading or decoding raises into a UserError with the path and the reason."""
    try:
        yield
    # Damaged files raise almost anything in Pillow (OSError, SyntaxError, ValueError, struct.error, zlib.error, ...).
    except Exception as error:
        if lacking := _lacking(error):
            raise UserError(
                f"{path}: cannot be read, because this process has run out of {lacking}. Lower --compute.num_workers, "
                "or allow it more."
            ) from error
        if isinstance(error, UnidentifiedImageError):
            reason = "it is empty, or in no image format that Pillow reads"
        else:
            reason = (error.strerror if isinstance(error, OSError) else None) or f"{type(error).__name__}: {error}"
        raise UnreadableImage(path, reason) from error
