"""Decode the top rows of a JPEG file: the same pixels as Pillow's, without the work for the rows below.

A JPEG can only be decoded from the top, and entropy decoding is about two thirds of the cost. So the height in the
frame header is reduced to the last row needed, and the decoder stops there.

That hides damage below this row. So only files with a single scan are shortened, with nothing but entropy-coded data
between the scan header and the end-of-image marker: the damage that Pillow reports is a marker in there. Damage that
Pillow does not report, where the decoder runs out of data and fills the rest with grey, is refused within the decoded
rows; the caller chooses whether to decode all.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import simplejpeg

START, END = b"\xff\xd8\xff", b"\xff\xd9"
SEQUENTIAL_FRAMES, PROGRESSIVE_FRAME = (0xC0, 0xC1), 0xC2
FRAMES = (*SEQUENTIAL_FRAMES, PROGRESSIVE_FRAME)
SCAN, END_MARK, RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
TABLES = (0xC4, 0xDB, RESTART_INTERVAL)
METADATA = (0xFE, *range(0xE0, 0xF0))  # comments and application segments
EXPECTED = frozenset((*FRAMES, SCAN, *TABLES, *METADATA))
STANDALONE = (0x01, *range(0xD0, 0xD9))  # markers without a segment
# Two application segments give the colour space. This JFIF segment replaces the file's, which libjpeg may warn about.
JFIF, ADOBE = b"\xff\xe0\x00\x10JFIF\0\x01\x02\0\0\x01\0\x01\0\0", b"\xff\xee\x00\x0eAdobe"
ADOBE_COLOURS, YCBCR = 15, b"\1"  # position in its segment, and value
# Sampling factors of each channel: grey; colours of every pixel, of every second pixel of a row, a column, of both.
USUAL_SAMPLING = {b"\x11"} | {luma + b"\x11\x11" for luma in (b"\x11", b"\x21", b"\x12", b"\x22")}
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
    """The frame of a JPEG file.

    Fields:
        width, height: pixels.
        needs_all_rows: whether all rows must be decoded: a progressive file has a part of every row in each scan; with
            restart markers, leftover bytes look like damage.
        header: everything before the entropy-coded data, without metadata.
        height_at: position of the height in `header`, two bytes.
        scan_at: position of the entropy-coded data in the file.
    """

    width: int
    height: int
    needs_all_rows: bool
    header: bytes
    height_at: int
    scan_at: int


def read_frame(data: bytes) -> JpegFrame | None:
    """Return the frame of a Huffman-coded 8-bit JPEG of one or three channels; None for any other file.

    Also None without the end marker at the end: such a file is truncated, or something was appended to it.
    """
    if not (data.startswith(START) and data.endswith(END)):
        return None
    segments = list(_segments(data))
    frame, needs_all_rows, expected = -1, False, 2
    for marker, start, end in segments:
        if start != expected or marker not in EXPECTED:
            return None
        expected = end
        if marker in FRAMES and frame < 0:
            frame, needs_all_rows = start + 4, needs_all_rows or marker == PROGRESSIVE_FRAME
        elif marker in FRAMES:
            return None
        elif marker == RESTART_INTERVAL:
            needs_all_rows = needs_all_rows or any(data[start + 4 : end])
    if frame < 0 or segments[-1][0] != SCAN:
        return None
    precision, channels = data[frame], data[frame + 5]
    height, width = int.from_bytes(data[frame + 1 : frame + 3]), int.from_bytes(data[frame + 3 : frame + 5])
    supported = precision == 8 and channels in (1, 3) and 0 < height * width <= MOST_PIXELS
    if not supported or not (needs_all_rows or _is_only_scan(data, segments[-1][1], channels)):
        return None
    header, frame_at = _header(data, segments, colours=True)
    return JpegFrame(width, height, needs_all_rows, header, frame_at + 5, expected)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
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
    header, at = frame.header, frame.height_at
    shortened = b"".join((header[:at], height.to_bytes(2), header[at + 2 :], memoryview(data)[frame.scan_at :]))
    pixels = np.empty((height, frame.width, 3), dtype=np.uint8)
    try:
        simplejpeg.decode_jpeg(shortened, "RGB", buffer=pixels)
    except ValueError as error:
        left = LEFT_AT_END.match(str(error))  # expected: the rows below the last one decoded
        if not left or (height == frame.height and int(left[1]) > MOST_PADDING):
            return None
    return pixels[:rows]


def usual_jpeg(data: bytes, frame: JpegFrame) -> bytes | None:
    """Return the file without metadata if any decoder reads the same image from it; None for an unusual one.

    Usual: baseline, grey or YCbCr, usual sampling factors, and one scan that extends to the end marker.
    """
    header, start = frame.header, frame.height_at - 5
    channels = header[start + 9]
    ids, sampling = (header[start + i : start + 10 + 3 * channels : 3] for i in (10, 11))
    scan = header[-8 - 2 * channels :]
    adobe = header.find(ADOBE)
    if channels == 1:
        in_ycbcr = True
    elif adobe >= 0:
        in_ycbcr = header[adobe + ADOBE_COLOURS :].startswith(YCBCR)
    else:
        in_ycbcr = ids == b"\1\2\3"
    if header[start + 1] != SEQUENTIAL_FRAMES[0] or sampling not in USUAL_SAMPLING or not in_ycbcr:
        return None
    if scan[1] != SCAN or scan[4] != channels:
        return None
    if frame.needs_all_rows and not _is_only_scan(data, frame.scan_at - len(scan), channels):
        return None
    return b"".join((header, memoryview(data)[frame.scan_at :]))


def damage_in(data: bytes) -> str:
    """Return libjpeg's warning about damage in a whole JPEG file, which Pillow does not pass on; '' if there is none.

    A JPEG has no checksum, so damage that decodes without a warning is not found.
    """
    complaint = complaint_about(data)
    return complaint if DAMAGE.search(complaint) else ""


def complaint_about(data: bytes) -> str:
    """Return libjpeg's first warning or error in a whole JPEG file, except about metadata; '' if there is none."""
    try:  # small and grey, because the pixels are not used
        segments = list(_segments(data))
        header, _ = _header(data, segments, colours=False)
        plain = header + data[segments[-1][2] if segments else 2 :]
        simplejpeg.decode_jpeg(plain, "GRAY", fastdct=True, min_height=1, min_width=1)
    except ValueError as error:
        left = LEFT_AT_END.match(str(error))
        return "" if left and int(left[1]) <= MOST_PADDING else str(error)
    return ""


def _header(data: bytes, segments: Iterable[tuple[int, int, int]], colours: bool) -> tuple[bytes, int]:
    """Return what is before the entropy-coded data without metadata, which does not affect the pixels.

    simplejpeg reports only libjpeg's first warning, so a warning about metadata would hide damage.

    Args:
        data: the file.
        segments: of the file.
        colours: keep the segments that give the colour space.

    Returns:
        The bytes, and the position of the last frame header in them; 0 if there is none.
    """
    header, frame_at, sequential = data[:2], 0, False
    for marker, start, end in segments:
        segment = data[start:end]
        if marker == SCAN and sequential:
            segment = segment[:-3] + b"\0\x3f\0"  # all coefficients, the only valid value, which some files get wrong
        elif marker in FRAMES:
            frame_at, sequential = len(header), sequential or marker in SEQUENTIAL_FRAMES
        elif marker in METADATA:
            segment = _colours(segment) if colours else b""
        header += segment
    return header, frame_at


def _colours(segment: bytes) -> bytes:
    """Return a segment of metadata if it gives the colour space, else nothing."""
    return JFIF if segment.startswith(JFIF[:9]) else segment if segment.startswith(ADOBE) else b""
