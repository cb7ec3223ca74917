"""Compressed frames: JPEG, JPEG-LS, JPEG 2000 and RLE, walked from marker to marker without being decoded.

    stream = read_stream(frame)      # what it is, its size and bits, and where it ends; None for another kind

Decoders fill the rest of a cut frame with gray or black and say nothing, so its end is looked for here. Bytes behind
the end are padding, however many. Sources: ITU-T T.81 annex B, T.87 annex C, T.800 annex A, DICOM PS3.5 annex G.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

JPEG_START, JPEG_2000_START = b"\xff\xd8\xff", b"\xff\x4f\xff\x51"
JP2_START = b"\x00\x00\x00\x0cjP  "  # a box around JPEG 2000, forbidden in DICOM but met
MARKER_IN_SCAN = re.compile(rb"\xff[\x80-\xcf\xd8-\xfe]")  # neither a stuffed byte nor a restart
FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}  # SOF of JPEG, and of JPEG-LS
RLE_SEGMENTS = 15


class CutStreamError(ValueError):
    """The frame ends before its end marker, or before its last pixel."""


@dataclass(frozen=True)
class Stream:
    """What a compressed frame says of itself."""

    kind: str
    """JPEG, JPEG Lossless, JPEG-LS or JPEG 2000."""
    width: int
    height: int
    bits: int
    """Of a sample."""
    samples: int
    """Of a pixel."""
    end: int
    """The byte behind it."""


def read_stream(frame: bytes) -> Stream | None:
    """Walk a JPEG, JPEG-LS or JPEG 2000 frame to its end; None for anything else.

    Raises:
        CutStreamError: the frame is cut, or damaged where a marker is due.
    """
    try:
        if frame.startswith(JPEG_START):
            return _walk_jpeg(frame)
        if frame.startswith((JPEG_2000_START, JP2_START)) and JPEG_2000_START in frame:
            return _walk_jpeg_2000(frame, frame.index(JPEG_2000_START))
    except (IndexError, struct.error):
        raise CutStreamError("have no end marker") from None
    return None


def _walk_jpeg(frame: bytes) -> Stream:
    at, kind, size = 2, "JPEG", (0, 0, 0, 0)
    while True:
        if frame[at] != 0xFF:  # stray bytes between segments; decoders pass over them too
            at = frame.find(b"\xff", at)
            if at < 0:
                raise CutStreamError("have no end marker")
        marker = frame[at + 1]
        if marker == 0xD9:
            height, width, bits, samples = size
            return Stream(kind, width, height, bits, samples, at + 2)
        if marker == 0xFF:  # fill
            at += 1
            continue
        if marker in FRAME_HEADERS:
            kind = {0xC3: "JPEG Lossless", 0xF7: "JPEG-LS"}.get(marker, "JPEG")
            bits, *sides, samples = struct.unpack_from(">BHHB", frame, at + 4)
            size = (*sides, bits, samples)
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
        if marker == 0xDA:
            following = MARKER_IN_SCAN.search(frame, at)
            if following is None:
                raise CutStreamError("have no end marker")
            at = following.start()


def _walk_jpeg_2000(frame: bytes, at: int) -> Stream:
    right, bottom, left, top = struct.unpack_from(">4I", frame, at + 8)
    samples, depth = struct.unpack_from(">HB", frame, at + 40)
    at += 2
    while (marker := struct.unpack_from(">H", frame, at)[0]) != 0xFFD9:
        if marker >> 8 != 0xFF:
            raise CutStreamError(f"have no marker at byte {at:,}")
        length = struct.unpack_from(">H", frame, at + 2)[0] + 2
        if marker == 0xFF90:  # a tile part states its own length, 0 if it is the last
            length = struct.unpack_from(">I", frame, at + 6)[0] or frame.rfind(b"\xff\xd9", at) - at
            if length < 0:
                raise CutStreamError("have no end marker")
        at += length
    return Stream("JPEG 2000", right - left, bottom - top, (depth & 0x7F) + 1, samples, at + 2)


def rle_offsets(frame: bytes) -> list[int]:
    """Where the segments of an RLE frame begin; empty if it is none."""
    count, *offsets = struct.unpack_from(f"<{RLE_SEGMENTS + 1}I", frame.ljust(64, b"\0"))
    return offsets[:count] if 1 <= count <= RLE_SEGMENTS and offsets[0] == 64 else []


def check_rle(frame: bytes, pixels: int) -> None:
    """Refuse an RLE frame whose last segment holds fewer than `pixels` bytes before the zeros at its end.

    Zeros read as runs of one zero byte, so a cut frame that was filled up with zeros would pass for a whole one. A run
    is at most 128 bytes, and may itself end in zeros.

    Raises:
        CutStreamError: bytes are missing.
    """
    offsets = rle_offsets(frame)
    tail = frame[offsets[-1] :] if offsets else frame
    kept = tail.rstrip(b"\0")
    if len(tail) - len(kept) > 2:
        held = _rle_length(kept)
        if held + 128 < pixels:
            raise CutStreamError(f"hold {held:,} of {pixels:,} bytes of its last segment")


def _rle_length(segment: bytes) -> int:
    """How many bytes a segment decodes to."""
    at = length = 0
    while at < len(segment):
        head = segment[at]
        if head < 128:
            length += head + 1
            at += head + 2
        else:
            length += 257 - head if head > 128 else 0
            at += 2 if head > 128 else 1
    return length
