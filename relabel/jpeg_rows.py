"""The upper rows of a JPEG file, pixel for pixel what Pillow decodes, without the work below them.

A JPEG can only be read from the top, and undoing its entropy code is about two thirds of the cost. So the height in the
frame header is lowered to the last row that is wanted, and the decoder stops there, as any that goes by the header.

That hides what is below, damage included. So only a file with a single scan takes this way, and only when nothing but
entropy code lies between its scan header and its end mark: damage that Pillow would notice is a marker in there. What
it would not notice, a decoder that runs out of data and fills up with grey, is refused in the rows that are decoded.
"""

import re
from dataclasses import dataclass

import numpy as np
import simplejpeg

START, END = b"\xff\xd8\xff", b"\xff\xd9"
SEQUENTIAL_FRAMES, PROGRESSIVE_FRAME = (0xC0, 0xC1), 0xC2
SCAN = 0xDA
# What may come before the scan: tables, comments, the segments of applications.
SKIPPED = (0xC4, 0xDB, 0xDD, 0xFE, *range(0xE0, 0xF0))
# In entropy code a zero follows each 255; restart marks may stand between.
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# What libjpeg warns of and goes on from with wrong pixels. (Bytes too many, of which it warns too, do no harm.)
DAMAGE = re.compile("premature end|bad Huffman code|instead of RST", re.IGNORECASE)
HARMLESS = "extraneous bytes before marker"
# Larger images are Pillow's, which refuses those that would fill the memory.
MOST_PIXELS = 2**26
# Chroma is stored coarser than luma; the row below the last one shares in its colours.
MARGIN_ROWS = 2


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """What the frame header says.

    Fields:
        width, height: pixels.
        channels: 1 or 3.
        height_at: where in the file the height stands, two bytes, the high one first.
        progressive: in many scans; each holds some of every row.
    """

    width: int
    height: int
    channels: int
    height_at: int
    progressive: bool


def read_frame(data: bytes) -> JpegFrame | None:
    """The frame of a grey or three-channel JPEG of 8 bits in Huffman code, whole to its end mark; None for all others.

    A file without the end mark is cut short, or somebody appended to it: libjpeg would fill up with grey and only warn.
    """
    if not (data.startswith(START) and data.endswith(END)):
        return None
    frame, at = None, 2
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4])
        if marker == SCAN:
            return frame if frame and (frame.progressive or _is_only_scan(data, at, frame)) else None
        if frame is None and marker in (*SEQUENTIAL_FRAMES, PROGRESSIVE_FRAME):
            frame = _frame(data, at + 4, marker == PROGRESSIVE_FRAME)
        elif marker not in SKIPPED:
            return None
        at += 2 + length
    return None


def _frame(data: bytes, at: int, progressive: bool) -> JpegFrame | None:
    """The frame header whose precision, height, width and number of channels begin at `at`."""
    precision, channels = data[at], data[at + 5]
    height, width = int.from_bytes(data[at + 1 : at + 3]), int.from_bytes(data[at + 3 : at + 5])
    supported = precision == 8 and channels in (1, 3) and 0 < height * width <= MOST_PIXELS
    return JpegFrame(width, height, channels, at + 1, progressive) if supported else None


def _is_only_scan(data: bytes, at: int, frame: JpegFrame) -> bool:
    """Does the scan whose marker stands at `at` hold all channels, and reach to the end mark without another marker?"""
    if data[at + 4] != frame.channels:
        return False
    found = MARKER_IN_SCAN.search(data, at + 2)
    return found is not None and found.start() == len(data) - len(END)


def decode_rows(data: bytes, frame: JpegFrame, rows: int) -> np.ndarray | None:
    """Decode rows 0..rows-1.

    Args:
        data: the whole file.
        frame: as `read_frame` found it.
        rows: 1..height.

    Returns:
        uint8 [rows, width, 3]; RGB, EXIF rotation ignored. None where the decoder refuses the file or warns of it.
    """
    assert 1 <= rows <= frame.height, (rows, frame)
    height, at = min(rows + MARGIN_ROWS, frame.height), frame.height_at
    if frame.progressive:
        height = frame.height
    shortened = b"".join((data[:at], height.to_bytes(2), data[at + 2 :]))
    pixels = np.empty((height, frame.width, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(shortened, "RGB", buffer=pixels)
    except ValueError as error:
        if HARMLESS not in str(error):  # as what is left over after the last row; the pixels are there all the same
            return None
    return pixels[:rows]


def damage_in(data: bytes) -> str:
    """What libjpeg warns of in a whole JPEG file whose pixels are wrong for it; '' where it sees nothing.

    Pillow does not pass these warnings on. A JPEG has no checksum, so damage that decodes as something is not found.
    """
    try:
        simplejpeg.decode_jpeg(data, "GRAY", fastdct=True, min_height=1, min_width=1)  # small: it is not looked at
    except ValueError as error:
        return str(error) if DAMAGE.search(str(error)) else ""
    return ""
