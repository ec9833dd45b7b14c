"""Decoding the upper rows of a JPEG: the pixels are Pillow's, whatever the kind of JPEG and the number of rows."""

import io

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from relabel.data.jpeg_rows import decode_rows, read_frame
from tests.relabel.data.test_decode import photo_like, sample_paths

SUBSAMPLINGS = ["444", "422", "420", "440", "411", "Gray"]


def jpeg(width: int, height: int, mode: str = "RGB", **options: object) -> bytes:
    """A photo-like image as Pillow writes it."""
    file = io.BytesIO()
    photo_like(width, height).convert(mode).save(file, "JPEG", **options)
    return file.getvalue()


def assert_every_start_is_pillows(data: bytes, rows: list[int]) -> None:
    """decode_rows of each number of rows equals the first rows of Pillow's image."""
    whole = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    frame = read_frame(data)
    assert frame is not None and (frame.height, frame.width) == whole.shape[:2]
    for count in rows:
        np.testing.assert_array_equal(decode_rows(data, frame, count), whole[:count])


@pytest.mark.parametrize("subsampling", SUBSAMPLINGS)
@pytest.mark.parametrize(("width", "height"), [(61, 50), (33, 16), (16, 33), (5, 3), (1, 1)])
def test_rows_are_pillows_for_every_subsampling(subsampling: str, width: int, height: int) -> None:
    """Each number of rows: chroma is shared between rows, so the cut must not show above it."""
    pixels = np.asarray(photo_like(width, height))
    if subsampling == "Gray":
        pixels = np.ascontiguousarray(pixels[:, :, :1])
    data = simplejpeg.encode_jpeg(pixels, 90, "GRAY" if subsampling == "Gray" else "RGB", subsampling)
    assert_every_start_is_pillows(data, list(range(1, height + 1)))


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"restart_marker_rows": 1}, {"quality": 20}, {"keep_rgb": True}]
)
def test_rows_are_pillows_for_every_way_of_writing(mode: str, options: dict[str, object]) -> None:
    assert_every_start_is_pillows(jpeg(151, 94, mode, **options), [1, 7, 8, 15, 16, 17, 60, 93, 94])


def test_rows_of_imagenet_photos_are_pillows() -> None:
    for path in sample_paths():
        data = path.read_bytes()
        height = Image.open(path).height
        assert_every_start_is_pillows(data, [1, height // 3, height - 1, height])


def test_a_thumbnail_in_the_header_is_not_taken_for_the_image() -> None:
    """EXIF may hold a whole JPEG, whose frame header comes first in the file."""
    data = jpeg(40, 22, exif=b"Exif\0\0" + jpeg(8, 8))
    assert data.count(b"\xff\xc0") == 2
    assert_every_start_is_pillows(data, [5, 22])


@pytest.mark.parametrize(
    "data",
    [
        b"",
        jpeg(40, 22)[:-2],
        jpeg(40, 22)[:-9] + b"\xff\xc0" + jpeg(40, 22)[-7:],
        jpeg(40, 22) + b"appended",
        jpeg(40, 22, "CMYK"),
        b"\x89PNG" + jpeg(40, 22)[4:],
    ],
    ids=["empty", "no end mark", "a marker in the scan", "appended to", "CMYK", "not a JPEG"],
)
def test_unsupported_files_have_no_frame(data: bytes) -> None:
    assert read_frame(data) is None


@pytest.mark.parametrize("filler", [b"\xff", b"\xff\xff\xff", b"\x00"])
def test_bytes_between_segments_are_left_to_pillow(filler: bytes) -> None:
    """Fill bytes are allowed, others are damage; taken for a length, they would lead into the middle of a segment."""
    data = jpeg(40, 22)
    at = data.index(b"\xff\xdb")
    assert read_frame(data[:at] + filler + data[at:]) is None
