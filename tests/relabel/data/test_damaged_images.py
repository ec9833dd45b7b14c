"""Damaged images: each is refused with path and reason, or read as what it is."""

import errno
import io
import re
import shutil
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.digit_net import DigitNet
from relabel.crop_box import WHOLE_IMAGE, CropBox
from relabel.data.dataset import ImageDataset, RandomResizedCrop
from relabel.data.decode import DECODERS, ImageFile, UnreadableImage
from relabel.data.folders import list_images
from relabel.data.skipped_images import LIST
from tests.conftest import Flags, Tried, cases
from tests.relabel.data.test_decode import photo_like
from tests.relabel.training.test_run import start, status
from utils.errors import UserError

# 13 x 9 pixels in arithmetic code, which Pillow reads and does not write: libjpeg-turbo 2.1, arith_code = TRUE.
# Left and right red 200 and 20, top and bottom green 180 and 30, blue 60; the borders at column 6 and row 4.


def encoded(kind: str, mode: str = "RGB", **options: object) -> bytes:
    """The same photo, 200 x 141 pixels, as a file of that kind."""
    file = io.BytesIO()
    photo_like(200, 141).convert(mode).save(file, kind, **options)
    return file.getvalue()


JPEG, PROGRESSIVE, PNG = encoded("JPEG", quality=90), encoded("JPEG", quality=90, progressive=True), encoded("PNG")
FRAME = JPEG.index(b"\xff\xc0")  # marker, length (2 bytes), precision, height (2), width (2), ...
TABLE = JPEG.index(b"\xff\xc4")
SCAN = JPEG.index(b"\xff\xda")


def put(data: bytes, at: int, new: bytes) -> bytes:
    """The bytes with others in the place of some of them."""
    return data[:at] + new + data[at + len(new) :]


def half(data: bytes) -> bytes:
    """The upper half."""
    return data[: len(data) // 2]


def png_header(width: int, height: int) -> bytes:
    """A PNG with a valid header of that size and the pixels of PNG."""
    header = b"IHDR" + struct.pack(">II", width, height) + PNG[24:29]
    return put(PNG, 12, header + struct.pack(">I", zlib.crc32(header)))


CONTENTS: dict[str, bytes] = {
    "empty": b"",
    "text": b"<html>404: not found</html>",
    "a PostScript program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n" + b"showpage\n" * 20,
    "cut in its header": JPEG[: FRAME + 6],
    "cut in the middle": half(JPEG),
    "cut in the middle, end mark behind": half(JPEG) + JPEG[-2:],
    "cut in the middle, CMYK, end mark behind": half(encoded("JPEG", "CMYK")) + JPEG[-2:],
    "end mark in the middle": put(JPEG, len(JPEG) // 2, JPEG[-2:]),
    "a block of zeros in it": put(JPEG, len(JPEG) // 2, bytes(4096)),
    "tables overwritten": put(JPEG, TABLE + 5, b"\xff" * 20),
    "no height": put(JPEG, FRAME + 5, bytes(2)),
    "65,500 x 65,500 pixels promised": put(JPEG, FRAME + 5, struct.pack(">HH", 65500, 65500)),
    "twice the rows promised": put(JPEG, FRAME + 5, struct.pack(">H", 282)),
    "12 bits": put(JPEG, FRAME + 4, b"\x0c"),
    "PNG, second half zero": half(PNG) + bytes(len(PNG) - len(half(PNG))),
    "PNG, 100,000 x 100,000 pixels promised": png_header(100_000, 100_000),
    "TIFF cut": half(encoded("TIFF", compression="tiff_lzw")),
    "WebP cut": half(encoded("WEBP")),
}


# Odd, and whole; all of them named .JPEG.
ODD = {
    "EXIF damaged": encoded("JPEG", exif=b"Exif\0\0MM\0\x2a\xff\xff\xff\xff" + bytes(range(256)), quality=97),
    "ICC profile damaged": encoded("JPEG", icc_profile=bytes(range(256)) * 9, quality=97),
    "PNG, ICC profile damaged": encoded("PNG", icc_profile=bytes(range(256)) * 9),
    "markers in a comment": encoded("JPEG", comment=b"\xff\xd9\xff\xda", quality=97),
    "bytes behind": encoded("JPEG", quality=97) + b"\xff\xd8 video of a phone",
    "restart marks": encoded("JPEG", restart_marker_blocks=3, quality=97),
    "WebP": encoded("WEBP", lossless=True),
    "GIF, moving": encoded("GIF", save_all=True, append_images=[Image.new("RGB", (200, 141), "red")]),
    "grey": encoded("JPEG", "L", quality=97),
    "CMYK": encoded("JPEG", "CMYK", quality=97),
    "YCCK": encoded("JPEG", "CMYK", quality=97).replace(b"Adobe\0d\0\0\0\0\0", b"Adobe\0d\0\0\0\0\2"),
}


THINGS: dict[str, Callable[[Path], None]] = {
    "link to nothing": lambda path: path.symlink_to("gone.JPEG"),
    "a folder": Path.mkdir,
    "nothing": lambda path: None,  # it was listed and is gone
}
# Reasons of our own; elsewhere the reason is the message of the format's reader.
REASONS = {
    "empty": "it is empty",
    "a PostScript program": "in no image format",
    "cut in the middle": "truncated",
    "cut in the middle, end mark behind": "premature end of data segment",
    "65,500 x 65,500 pixels promised": r"65,500 x 65,500 pixels, 4,290.2 megapixels\); expected at most 179",
    "PNG, 100,000 x 100,000 pixels promised": "10,000.0 megapixels",
    "12 bits": "broken data stream|precision|truncated|in no image format",
    "link to nothing": "No such file",
    "a folder": "Is a directory",
    "nothing": "No such file",
}


def make(kind: str, path: Path) -> None:
    """Put that kind of damage there."""
    path.unlink(missing_ok=True)
    if kind in CONTENTS:
        path.write_bytes(CONTENTS[kind])
    else:
        THINGS[kind](path)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", [*CONTENTS, *THINGS])
def test_every_kind_of_damage_is_refused_with_path_and_reason(tmp_path: Path, kind: str, decoder: str) -> None:
    """In the crop that tests take, and in a random one that reaches the damage."""
    path = tmp_path / "photo.JPEG"
    make(kind, path)
    box, reason = CropBox(0.1, 0.2, 0.9, 1), REASONS.get(kind, "")
    for crop in (lambda file: file.centre_crop(8, 1), lambda file: file.resized_crop(box, 7, 9)):
        with pytest.raises(UnreadableImage, match=rf"photo\.JPEG: cannot be read .*({reason})") as caught:
            crop(ImageFile(path, decoder))
        assert caught.value.path == path and caught.value.reason in str(caught.value)


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_image_above_the_limit_is_read_once_the_limit_is_the_one_that_the_message_gives(
    tmp_path: Path, decoder: str
) -> None:
    Image.new("RGB", (1999, 1001)).save(tmp_path / "large.jpg")
    with pytest.raises(UnreadableImage, match=r"1,999 x 1,001 pixels.*at most 2,") as caught:
        ImageFile(tmp_path / "large.jpg", decoder, max_megapixels=2)
    needed = re.search(r"--data\.max_megapixels (\d+)", str(caught.value))
    assert needed and ImageFile(tmp_path / "large.jpg", decoder, float(needed[1])).width == 1999


def pixels(path: Path, decoder: str) -> np.ndarray | None:
    """The whole image in its own size, as whole numbers of any sign; None where it is refused."""
    try:
        return ImageFile(path, decoder).resized_crop(WHOLE_IMAGE, 141, 200).astype(int)
    except UnreadableImage:
        return None


# Ways to write a JPEG, and headers that libjpeg warns of: of its warnings only the first is reported.
FLAVOURS = {
    "baseline": JPEG,
    "progressive": PROGRESSIVE,
    "4:4:4": encoded("JPEG", quality=90, subsampling=0),
    "grey": encoded("JPEG", "L", quality=90),
    "CMYK": encoded("JPEG", "CMYK", quality=90),
    "restart marks": encoded("JPEG", quality=90, restart_marker_blocks=2),
    "restart marks, progressive": encoded("JPEG", quality=90, progressive=True, restart_marker_rows=1),
    "odd ICC profile": JPEG[:2] + b"\xff\xe2\x00\x14ICC_PROFILE\x00\x05\x02abcd" + JPEG[2:],
    "odd Adobe segment": JPEG[:2] + b"\xff\xee\x00\x0eAdobe\0d\0\0\0\0\7" + JPEG[2:],
    "odd scan header": put(JPEG, SCAN + 11, b"\0\0\0"),
    "bytes before the tables": JPEG.replace(b"\xff\xdb", b"\0\0\xff\xdb", 1),
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_no_damaged_jpeg_is_read_as_another_image(tmp_path: Path, tried: Tried, flavour: str) -> None:
    """Cut anywhere, with or without the end mark, filled up with zeros, with bytes lost or doubled.

    Both decoders refuse the file or read every pixel, and refuse it where the crop lies above the damage.

    Except just between two scans, with the end mark behind: a progressive JPEG is then whole, only coarser.
    """
    whole, path, rng = FLAVOURS[flavour], tmp_path / "damaged.JPEG", np.random.default_rng(3)
    between_scans = {mark.start() + i for mark in re.finditer(b"\xff[\xc4\xda]", whole) for i in (0, 1)}
    path.write_bytes(whole)
    expected, top = pixels(path, "pillow"), CropBox(0, 0, 1, 0.3)
    assert expected is not None and pixels(path, "simplejpeg") is not None
    for turn in range(cases(40)):
        at = int(rng.integers(whole.index(b"\xff\xda") + 40, len(whole) - 600))
        if at in between_scans:
            continue
        endings = (b"", whole[-2:], bytes(len(whole) - at), whole[at + 512 :], whole[at - 512 :])
        path.write_bytes(whole[:at] + endings[turn % 5])
        for decoder in DECODERS:
            found = pixels(path, decoder)
            assert found is None or (found == expected).all(), (at, decoder)
            with pytest.raises(UnreadableImage):
                ImageFile(path, decoder).resized_crop(top, 9, 13, whole=True)
    tried(cases(40))


def test_the_first_epoch_finds_damage_below_the_crop(tmp_path: Path) -> None:
    """Later ones stop at the crop, where they can."""
    (tmp_path / "ant").mkdir()
    (tmp_path / "ant" / "photo.JPEG").write_bytes(JPEG[:-300] + JPEG[-2:])
    dataset = ImageDataset(list_images(tmp_path), RandomResizedCrop(9, 0.08, 0, 0, 0, seed=0), decoder="simplejpeg")
    with pytest.raises(UnreadableImage, match="premature end"):
        dataset[(0, 0)]
    seen = 0
    for epoch in range(1, 30):
        with suppress(UnreadableImage):
            seen += dataset[(epoch, 0)].box.bottom < 0.97
    assert seen > 3


def test_a_few_bytes_before_the_end_mark_are_no_damage(tmp_path: Path) -> None:
    """Some cameras fill up to a round length."""
    path = tmp_path / "padded.JPEG"
    path.write_bytes(JPEG[:-2] + bytes(12) + JPEG[-2:])
    assert all((pixels(path, decoder) == pixels(path, "pillow")).all() for decoder in DECODERS)  # type: ignore[union-attr]
    path.write_bytes(JPEG[:-2] + bytes(40) + JPEG[-2:])
    assert all(pixels(path, decoder) is None for decoder in DECODERS)


def test_no_flipped_png_is_read_as_another_image(tmp_path: Path, tried: Tried) -> None:
    """Every chunk has a checksum."""
    rng, path = np.random.default_rng(2), tmp_path / "flipped.png"
    path.write_bytes(PNG)
    expected = pixels(path, "pillow")
    for _ in range(cases(36)):
        at = int(rng.integers(len(PNG)))
        path.write_bytes(put(PNG, at, bytes([PNG[at] ^ 1 << int(rng.integers(8))])))
        found = pixels(path, "pillow")
        assert found is None or (found == expected).all(), at
    tried(cases(36))


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("kind", ODD)
def test_unusual_but_intact_images_are_read(tmp_path: Path, kind: str, decoder: str) -> None:
    """Each shows the photo, as far as its format can; an animation its first frame."""
    (tmp_path / "photo.JPEG").write_bytes(ODD[kind])
    found = pixels(tmp_path / "photo.JPEG", decoder)
    expected = np.asarray(photo_like(200, 141).convert("L" if kind == "grey" else "RGB").convert("RGB"))
    if kind == "YCCK":  # these colours are no photo's; what counts is that they are those of Pillow
        expected = np.asarray(Image.open(io.BytesIO(ODD[kind])).convert("RGB"))
    assert found is not None and abs(found.transpose(1, 2, 0) - expected).mean() < (12 if "GIF" in kind else 6)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOMEM, "no memory"), OSError(errno.EMFILE, "full")])
def test_a_shortage_of_the_machine_is_not_the_images_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoder: str, error: Exception
) -> None:
    """A run that may skip damaged images must not skip good ones because memory or open files run out."""

    def run_out(*words: object, **named: object) -> None:
        raise error

    for function in ("relabel.data.decode.decode_rows", "relabel.data.decode._rgb"):
        monkeypatch.setattr(function, run_out)
    (tmp_path / "photo.JPEG").write_bytes(JPEG)
    with pytest.raises(UserError, match=r"photo\.JPEG: cannot be read, because this process has run out of") as caught:
        ImageFile(tmp_path / "photo.JPEG", decoder).resized_crop(WHOLE_IMAGE, 4, 5)
    assert not isinstance(caught.value, UnreadableImage)


def damaged_copy(
    photos: Path, folder: Path, *names: str, split: str = "train", kind: str = "cut in the middle"
) -> Path:
    """The photos with some of one split damaged; the folder."""
    shutil.copytree(photos / split, folder / split)
    for other in {"train", "val"} - {split}:
        (folder / other).symlink_to(photos / other)
    for name in names:
        make(kind, folder / split / name)
    return folder


@pytest.mark.parametrize(("kind", "decoder"), [("cut in the middle, end mark behind", "auto"), ("12 bits", "pillow")])
def test_a_run_stops_at_a_damaged_image(flags: Flags, photos: Path, tmp_path: Path, kind: str, decoder: str) -> None:
    data = damaged_copy(photos, tmp_path / "data", "bee/bee.02.JPEG", kind=kind)
    with pytest.raises(UserError, match=r"bee\.02\.JPEG: cannot be read as an image \(.*--data\.on_error skip"):
        start({**flags, "data.data_path": data, "data.decoder": decoder})
    assert status(flags["util.run_dir"])["state"] == "failed"
    assert "bee.02.JPEG" in status(flags["util.run_dir"])["reason"]
    assert not (flags["util.run_dir"] / LIST).exists()


@pytest.mark.parametrize("test_only", [False, True])
def test_validation_never_skips(flags: Flags, photos: Path, tmp_path: Path, test_only: bool) -> None:
    data = damaged_copy(photos, tmp_path / "data", "bee/bee.02.JPEG", split="val")
    flags |= {"data.on_error": "skip", "optim.epochs": 1, "optim.warmup.epochs": 0}
    if test_only:
        torch.save({"state_dict": DigitNet(3).state_dict(), "class_names": ["ant", "bee", "cow"]}, tmp_path / "w.pth")
        flags |= {"util.test_only": True, "util.test_weight_file": tmp_path / "w.pth"}
    with pytest.raises(UserError, match=r"bee\.02\.JPEG: cannot be read as an image") as caught:
        start({**flags, "data.data_path": data})
    assert "on_error" not in str(caught.value)  # it would not help
    assert not (flags["util.run_dir"] / "evaluation-w.json").exists()
