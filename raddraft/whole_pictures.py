"""Whether a picture is whole, by what its format says of itself: Pillow decodes what is there, and looks at little."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ImageFile, JpegImagePlugin, PngImagePlugin
from PIL.TiffImagePlugin import (
    COMPRESSION,
    IMAGELENGTH,
    IMAGEWIDTH,
    PLANAR_CONFIGURATION,
    ROWSPERSTRIP,
    SAMPLESPERPIXEL,
    STRIPBYTECOUNTS,
    STRIPOFFSETS,
    TILEBYTECOUNTS,
    TILELENGTH,
    TILEOFFSETS,
    TILEWIDTH,
    TiffImageFile,
)

from raddraft.codestreams import CutStreamError, read_stream
from raddraft.gray import ImageError

ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The passes of an interlaced PNG: first column and row, and steps."""


def check_sums(path: Path, file: BinaryIO, image: ImageFile.ImageFile) -> None:
    """Refuse a file whose own check sums are wrong, or that lacks its end or a part; Pillow stops at the last pixel.

    PNG: CRC-32 of each chunk. TIFF: the number of strips or tiles, Adler-32 of each that is deflated. JPEG has none,
    but an end marker.
    """
    if isinstance(image, PngImagePlugin.PngImageFile):
        _check_png(path, memoryview(file.read()))
    elif isinstance(image, JpegImagePlugin.JpegImageFile):
        _check_jpeg(f"{path}: truncated", file.read())
    elif isinstance(image, TiffImageFile):
        _check_parts(path, image)
        compression = image.tag_v2.get(COMPRESSION)
        if compression not in (7, 8, 32946):
            return
        most = image.width * image.height * 16 + 2**20  # four samples of 32 bits, and tiles larger than the image
        for number, strip in enumerate(_strips(file, image)):
            if compression == 7:
                _check_jpeg(f"{path}: damaged: TIFF strip {number + 1}", strip)
            else:
                _check_deflated(f"{path}: damaged: TIFF strip {number + 1}", strip, most)


def check_rows(path: Path, file: BinaryIO, image: ImageFile.ImageFile) -> None:
    """Refuse a PNG whose pixel data end before its last row, which Pillow leaves black.

    Counting takes half as long as decoding, so it is done only where the last row is black, or the rows are interlaced.

    Args:
        path: for messages.
        file: the content.
        image: loaded.
    """
    if not isinstance(image, PngImagePlugin.PngImageFile):
        return
    file.seek(8)
    packed, header = [], b""
    last = image.crop((0, image.height - 1, image.width, image.height))
    if any(high for _, high in np.reshape(last.getextrema(), (-1, 2))) and not image.info.get("interlace"):
        return
    while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
        content = file.read(int.from_bytes(start[:4]) + 4)[:-4]
        header = content if start[4:] == b"IHDR" else header
        packed += [content] if start[4:] == b"IDAT" else []
    due = _png_bytes(header)
    held = _inflate(zlib.decompressobj(), b"".join(packed), due)
    if held < due:
        raise ImageError(f"{path}: truncated: the PNG holds {held:,} of {due:,} bytes of pixel data")


def _png_bytes(header: bytes) -> int:
    """Of the rows that a header asks for, each with the byte of its filter."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    parts = [(0, 0, 1, 1)] if not interlaced else ADAM7
    sides = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in parts]
    return sum(rows * (1 + -(-columns * bits // 8)) for columns, rows in sides if columns > 0)


def _check_parts(path: Path, image: TiffImageFile) -> None:
    """Refuse a TIFF that lists fewer strips or tiles than its size needs; Pillow leaves the others black."""
    tags = image.tag_v2
    width, height = tags[IMAGEWIDTH], tags[IMAGELENGTH]  # before it is turned
    planes = tags.get(SAMPLESPERPIXEL, 1) if tags.get(PLANAR_CONFIGURATION) == 2 else 1
    if tiles := tags.get(TILEOFFSETS):
        name, held = "tiles", len(tiles)
        due = -(-width // tags[TILEWIDTH]) * -(-height // tags[TILELENGTH])
    else:
        name, held = "strips", len(tags.get(STRIPOFFSETS) or ())
        due = -(-height // max(1, min(tags.get(ROWSPERSTRIP, height), height)))
    if held < due * planes:
        raise ImageError(f"{path}: truncated or damaged: the TIFF lists {held:,} of {due * planes:,} {name}")


def _check_png(path: Path, data: memoryview) -> None:
    at, kind = 8, b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise ImageError(f"{path}: truncated: a PNG file without its end chunk")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            raise ImageError(f"{path}: truncated: the PNG chunk {kind.decode('latin-1')!r} is cut")
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise ImageError(f"{path}: damaged: the check sum of the PNG chunk {kind.decode('latin-1')!r} is wrong")
        at = end + 4


def _strips(file: BinaryIO, image: TiffImageFile) -> Iterator[bytes]:
    """The strips or tiles of a TIFF, as they are stored."""
    tags = image.tag_v2
    offsets = tags.get(TILEOFFSETS) or tags.get(STRIPOFFSETS) or ()
    lengths = tags.get(TILEBYTECOUNTS) or tags.get(STRIPBYTECOUNTS) or ()
    for offset, length in zip(offsets, lengths, strict=False):
        file.seek(offset)
        yield file.read(length)


def _check_jpeg(what: str, data: bytes) -> None:
    try:
        read_stream(data)
    except CutStreamError as error:
        raise ImageError(f"{what}: the JPEG data {error}") from None


def _check_deflated(what: str, data: bytes, most: int) -> None:
    """Inflate to nothing, for the check sum; no further than `most` bytes."""
    inflater = zlib.decompressobj()
    try:
        _inflate(inflater, data, most)
    except zlib.error as error:
        raise ImageError(f"{what}: {error}") from None
    if not inflater.eof:
        raise ImageError(f"{what} has no end, so its check sum is missing")


def _inflate(inflater: Any, data: bytes, most: int) -> int:
    """How many bytes data inflate to, up to a little more than `most`; none of them is kept."""
    length = 0
    while data and length <= most:
        length += len(inflater.decompress(data, 2**20))
        data = inflater.unconsumed_tail
    return length
