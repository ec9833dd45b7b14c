"""The upper rows of a JPEG file, pixel for pixel what Pillow decodes, without the work below them.

A JPEG can only be read from the top, and undoing its entropy code is about two thirds of the cost. So the height in the
frame header is lowered to the last row that is wanted, and the decoder stops there, as any that goes by the header.

That hides what is below, damage included. So only a file with a single scan takes this way, and only when nothing but
entropy code lies between its scan header and its end mark: damage that Pillow would notice is a marker in there. What
it would not notice, a decoder that runs out of data and fills up with grey, is refused in the rows that are decoded. To
look at all rows is the caller's choice.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import simplejpeg

START, END = b"\xff\xd8\xff", b"\xff\xd9"
SEQUENTIAL_FRAMES, PROGRESSIVE_FRAME = (0xC0, 0xC1), 0xC2
FRAMES = (*SEQUENTIAL_FRAMES, PROGRESSIVE_FRAME)
SCAN, END_MARK, RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
TABLES = (0xC4, 0xDB, RESTART_INTERVAL)
REMARKS = (0xFE, *range(0xE0, 0xF0))  # comments, the segments of applications
ALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment
# Two applications' segments tell how colours are written; the first stands here without what libjpeg may warn of.
JFIF, ADOBE = b"\xff\xe0\x00\x10JFIF\0\x01\x02\0\0\x01\0\x01\0\0", b"\xff\xee\x00\x0eAdobe"
# In entropy code a zero follows each 255; restart marks may stand between.
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# What libjpeg warns of and goes on from with wrong pixels.
DAMAGE = re.compile("premature end|bad Huffman code|instead of RST|inconsistent progression|extraneous", re.IGNORECASE)
# Some cameras fill up with a few bytes before the end mark. More are entropy code that nobody needed: damage.
LEFT_AT_END = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
MOST_PADDING = 16
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
        in_one_piece: only to be decoded whole: in many scans, each of which holds some of every row; or with restart
            marks, where bytes that are left over cannot be told from damage.
    """

    width: int
    height: int
    channels: int
    in_one_piece: bool


def read_frame(data: bytes) -> JpegFrame | None:
    """The frame of a grey or three-channel JPEG of 8 bits in Huffman code, whole to its end mark; None for all others.

    A file without the end mark is cut short, or somebody appended to it: libjpeg would fill up with grey and only warn.
    """
    if not (data.startswith(START) and data.endswith(END)):
        return None
    frame, restarts, expected = None, False, 2
    for marker, start, end in _segments(data):
        if start != expected:
            return None
        expected = end
        if marker == SCAN:
            return frame if frame and (frame.in_one_piece or _is_only_scan(data, start, frame)) else None
        if frame is None and marker in FRAMES:
            frame = _frame(data, start + 4, restarts or marker == PROGRESSIVE_FRAME)
        elif marker == RESTART_INTERVAL:
            restarts = any(data[start + 4 : end])
            frame = replace(frame, in_one_piece=restarts or frame.in_one_piece) if frame else None
        elif marker not in (*TABLES, *REMARKS):
            return None
    return None


def _segments(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Marker, first byte and the byte behind of each segment up to the scan header, whatever lies between them."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 10 <= len(data) and (marker := data[at + 1]) != END_MARK:
        if marker in (0x00, 0xFF):
            at += 1
        elif marker in ALONE:
            at += 2
        else:
            end = at + 2 + int.from_bytes(data[at + 2 : at + 4])
            yield marker, at, end
            if marker == SCAN:
                return
            at = end


def _frame(data: bytes, at: int, in_one_piece: bool) -> JpegFrame | None:
    """The frame header whose precision, height, width and number of channels begin at `at`."""
    precision, channels = data[at], data[at + 5]
    height, width = int.from_bytes(data[at + 1 : at + 3]), int.from_bytes(data[at + 3 : at + 5])
    supported = precision == 8 and channels in (1, 3) and 0 < height * width <= MOST_PIXELS
    return JpegFrame(width, height, channels, in_one_piece) if supported else None


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
    height = frame.height if frame.in_one_piece else min(rows + MARGIN_ROWS, frame.height)
    shortened = bytearray(without_remarks(data, colours=True))
    at = next(start + 5 for marker, start, _ in _segments(shortened) if marker in FRAMES)  # two bytes: the height
    shortened[at : at + 2] = height.to_bytes(2)
    pixels = np.empty((height, frame.width, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(shortened, "RGB", buffer=pixels)
    except ValueError as error:
        left = LEFT_AT_END.match(str(error))  # after the last row that is wanted, anything may be
        if not left or (height == frame.height and int(left[1]) > MOST_PADDING):
            return None
    return pixels[:rows]


def damage_in(data: bytes) -> str:
    """What libjpeg warns of in a whole JPEG file whose pixels are wrong for it; '' where it sees nothing.

    Pillow does not pass these warnings on. A JPEG has no checksum, so damage that decodes as something is not found.
    """
    try:  # small and grey: the image is not looked at
        plain = without_remarks(data, colours=False)
        simplejpeg.decode_jpeg(plain, "GRAY", fastdct=True, min_height=1, min_width=1)
    except ValueError as error:
        left = LEFT_AT_END.match(str(error))
        harmless = not DAMAGE.search(str(error)) or (left and int(left[1]) <= MOST_PADDING)
        return "" if harmless else str(error)
    return ""


def without_remarks(data: bytes, colours: bool) -> bytes:
    """A JPEG file without what tells nothing of its pixels.

    Of all that libjpeg warns of, simplejpeg passes on the first: an odd remark in the header would hide the damage.

    Args:
        data: the file.
        colours: keep what tells how they are written.
    """
    kept, sequential, end = [data[:2]], False, 2
    for marker, start, end in _segments(data):
        segment = data[start:end]
        if marker == SCAN and sequential:
            segment = segment[:-3] + b"\0\x3f\0"  # all coefficients, which goes without saying, and some say wrongly
        sequential = sequential or marker in SEQUENTIAL_FRAMES
        if marker not in REMARKS or (colours and segment.startswith(ADOBE)):
            kept.append(segment)
        elif colours and segment.startswith(JFIF[:9]):
            kept.append(JFIF)
    return b"".join([*kept, data[end:]])
