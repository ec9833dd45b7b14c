"""Decode the top rows of a JPEG file: the same pixels as Pillow's, without the work for the rows below.

A JPEG can only be decoded from the top, and entropy decoding is about two thirds of the cost. So the height in the
frame header is reduced to the last row needed, and the decoder stops there.

That hides damage below this row. So only files with a single scan are shortened, with nothing but entropy-coded data
between the scan header and the end-of-image marker: the damage that Pillow reports is a marker in there. Damage that
Pillow does not report, where the decoder runs out of data and fills the rest with grey, is refused within the decoded
rows; the caller chooses whether to decode all.
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
METADATA = (0xFE, *range(0xE0, 0xF0))  # comments and application segments
STANDALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment
# Two application segments give the colour space. This JFIF segment replaces the file's, which libjpeg may warn about.
JFIF, ADOBE = b"\xff\xe0\x00\x10JFIF\0\x01\x02\0\0\x01\0\x01\0\0", b"\xff\xee\x00\x0eAdobe"
# In entropy-coded data a zero follows each 255; restart markers are allowed.
MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7]")
# Warnings of libjpeg after which it continues with wrong pixels.
DAMAGE = re.compile("premature end|bad Huffman code|instead of RST|inconsistent progression|extraneous", re.IGNORECASE)
# Some cameras pad with a few bytes before the end marker. More bytes are unused entropy-coded data: damage.
LEFT_AT_END = re.compile(r"Corrupt JPEG data: (\d+) extraneous bytes before marker 0xd9")
MOST_PADDING = 16
# Larger images go to Pillow, which refuses those that would fill the memory.
MOST_PIXELS = 2**26
# Chroma is subsampled: the last row's colours also depend on the row below.
MARGIN_ROWS = 2


@dataclass(frozen=True, slots=True)
class JpegFrame:
    """The frame header of a JPEG file.

    Fields:
        width, height: pixels.
        channels: 1 or 3.
        needs_all_rows: whether all rows must be decoded: a progressive file has a part of every row in each scan; with
            restart markers, leftover bytes look like damage.
    """

    width: int
    height: int
    channels: int
    needs_all_rows: bool


def read_frame(data: bytes) -> JpegFrame | None:
    """Return the frame of a Huffman-coded 8-bit JPEG of one or three channels; None for any other file.

    Also None without the end marker at the end: such a file is truncated, or something was appended to it.
    """
    if not (data.startswith(START) and data.endswith(END)):
        return None
    frame, restarts, expected = None, False, 2
    for marker, start, end in _segments(data):
        if start != expected:
            return None
        expected = end
        if marker == SCAN:
            return frame if frame and (frame.needs_all_rows or _is_only_scan(data, start, frame.channels)) else None
        if frame is None and marker in FRAMES:
            frame = _frame(data, start + 4, restarts or marker == PROGRESSIVE_FRAME)
        elif marker == RESTART_INTERVAL:
            restarts = any(data[start + 4 : end])
            frame = replace(frame, needs_all_rows=restarts or frame.needs_all_rows) if frame else None
        elif marker not in (*TABLES, *METADATA):
            return None
    return None


def _segments(data: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Yield marker, start and end of each segment up to and including the scan header, skipping bytes in between."""
    pos = 2
    while (pos := data.find(b"\xff", pos)) >= 0 and pos + 10 <= len(data) and (marker := data[pos + 1]) != END_MARK:
        if marker in (0x00, 0xFF):
            pos += 1
        elif marker in STANDALONE:
            pos += 2
        else:
            end = pos + 2 + int.from_bytes(data[pos + 2 : pos + 4])
            yield marker, pos, end
            if marker == SCAN:
                return
            pos = end


def _frame(data: bytes, pos: int, needs_all_rows: bool) -> JpegFrame | None:
    """Parse the frame header whose precision, height, width and number of channels begin at `pos`."""
    precision, channels = data[pos], data[pos + 5]
    height, width = int.from_bytes(data[pos + 1 : pos + 3]), int.from_bytes(data[pos + 3 : pos + 5])
    supported = precision == 8 and channels in (1, 3) and 0 < height * width <= MOST_PIXELS
    return JpegFrame(width, height, channels, needs_all_rows) if supported else None


def _is_only_scan(data: bytes, pos: int, channels: int) -> bool:
    """Whether the scan at `pos` has all channels and extends to the end marker without another marker."""
    found = MARKER_IN_SCAN.search(data, pos + 2)
    return data[pos + 4] == channels and found is not None and found.start() == len(data) - len(END)


def decode_rows(data: bytes, frame: JpegFrame, rows: int) -> np.ndarray | None:
    """Decode rows 0..rows-1.

    Args:
        data: the whole file.
        frame: returned by `read_frame`.
        rows: 1..height.

    Returns:
        uint8 [rows, width, 3]; RGB, EXIF rotation ignored. None if the decoder fails or warns of damage.
    """
    assert 1 <= rows <= frame.height, (rows, frame)
    height = frame.height if frame.needs_all_rows else min(rows + MARGIN_ROWS, frame.height)
    shortened = bytearray(without_metadata(data, colours=True))
    pos = next(start + 5 for marker, start, _ in _segments(shortened) if marker in FRAMES)  # two bytes: the height
    shortened[pos : pos + 2] = height.to_bytes(2)
    pixels = np.empty((height, frame.width, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(shortened, "RGB", buffer=pixels)
    except ValueError as error:
        left = LEFT_AT_END.match(str(error))  # expected: the rows below the last one decoded
        if not left or (height == frame.height and int(left[1]) > MOST_PADDING):
            return None
    return pixels[:rows]


def damage_in(data: bytes) -> str:
    """Return libjpeg's warning about damage in a whole JPEG file, which Pillow does not pass on; '' if there is none.

    A JPEG has no checksum, so damage that decodes without a warning is not found.
    """
    try:  # small and grey, because the pixels are not used
        plain = without_metadata(data, colours=False)
        simplejpeg.decode_jpeg(plain, "GRAY", fastdct=True, min_height=1, min_width=1)
    except ValueError as error:
        left = LEFT_AT_END.match(str(error))
        harmless = not DAMAGE.search(str(error)) or (left and int(left[1]) <= MOST_PADDING)
        return "" if harmless else str(error)
    return ""


def without_metadata(data: bytes, colours: bool) -> bytes:
    """Return a JPEG file without the metadata segments, which do not affect its pixels.

    simplejpeg reports only libjpeg's first warning, so a warning about such a segment would hide damage.

    Args:
        data: the file.
        colours: keep the segments that give the colour space.
    """
    kept, sequential, end = [data[:2]], False, 2
    for marker, start, end in _segments(data):
        segment = data[start:end]
        if marker == SCAN and sequential:
            segment = segment[:-3] + b"\0\x3f\0"  # all coefficients, the only valid value, which some files get wrong
        sequential = sequential or marker in SEQUENTIAL_FRAMES
        if marker not in METADATA or (colours and segment.startswith(ADOBE)):
            kept.append(segment)
        elif colours and segment.startswith(JFIF[:9]):
            kept.append(JFIF)
    return b"".join([*kept, data[end:]])
