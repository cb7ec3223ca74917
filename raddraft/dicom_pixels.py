"""The pixel data of a DICOM file -> stored values, whatever the transfer syntax.

    frame = open_frame(header)                          # the one frame, not decoded yet
    layout = read_layout(header, frame.stream, frame.length)
    stored = stored_values(header, frame, layout)       # int [H, W], or [H, W, 3] of colors

Decoders are pydicom's with pylibjpeg's plugins, and imagecodecs for JPEG XL. They give words; which of their bits count
is decided here, since pydicom takes the lowest Bits Stored of some transfer syntaxes, and all bits of others.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from raddraft.codestreams import (
    JPEG_2000_START,
    JPEG_START,
    CutStreamError,
    Stream,
    check_rle,
    read_stream,
    rle_offsets,
)
from raddraft.dicom_bits import signed_values, torn_by_sign
from raddraft.dicom_header import Header, Layout, name_of

if TYPE_CHECKING:
    from pydicom.uid import UID

ENCAPSULATED = "1.2.840.10008.1.2.1.98"  # Encapsulated Uncompressed Explicit VR Little Endian
DEFLATED_FRAME = "1.2.840.10008.1.2.8.1"
JPEG_XL = {
    "1.2.840.10008.1.2.4.110": "JPEG XL Lossless",
    "1.2.840.10008.1.2.4.111": "JPEG XL JPEG Recompression",
    "1.2.840.10008.1.2.4.112": "JPEG XL",
}
# pydicom 3.0 does not know these by name.
YOUNG = JPEG_XL | {DEFLATED_FRAME: "Deflated Image Frame Compression"}
VIDEO = ("1.2.840.10008.1.2.4.10", "1.2.840.10008.1.2.7.")  # MPEG-2, MPEG-4, HEVC (.100 to .108); SMPTE ST 2110
REFERENCED = {f"1.2.840.10008.1.2.4.{end}" for end in (94, 95, 204, 205)}  # JPIP
OF_KIND = {"JPEG": ".4.51", "JPEG Lossless": ".4.57", "JPEG-LS": ".4.80", "JPEG 2000": ".4.90"}
"""Kinds of streams -> the end of a transfer syntax whose decoder reads them."""


@dataclass
class Frame:
    """The one frame of a film, as it lies in the file."""

    syntax: UID
    data: bytes
    """The words, or the compressed frame."""
    stream: Stream | None
    """What a compressed frame says of itself; None of RLE, JPEG XL, deflated and uncompressed ones."""
    encapsulated: bool

    @property
    def length(self) -> int | None:
        """Bytes of an uncompressed frame."""
        return None if self.compressed else len(self.data)

    @property
    def compressed(self) -> bool:
        """Whether the data are anything but words."""
        return self.encapsulated and self.syntax != ENCAPSULATED


def open_frame(header: Header) -> Frame:
    """Find the frame, its transfer syntax and its end.

    Raises:
        ImageError: no pixel data, several frames, a frame that is cut, a transfer syntax that cannot be read.
    """
    from pydicom.encaps import generate_frames, parse_basic_offsets

    dataset = header.dataset
    stated = Header(header.path, dataset.file_meta).one("TransferSyntaxUID")
    if stated is not None:
        _refuse_unreadable(header, stated)
    if "PixelData" not in dataset:
        if "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
            raise header.refuse("holds floating-point pixel data, which no chest X-ray has")
        # pydicom gives an empty or partial data set, without an error, where the file ends early
        raise header.refuse("no pixel data: a truncated DICOM file, or one that holds no image")
    length = getattr(dataset.get_item("PixelData"), "length", 0)
    element = dataset["PixelData"]
    data = element.value
    if not data:
        raise header.refuse(f"{name_of('PixelData')} is empty")
    encapsulated = bool(element.is_undefined_length)
    if not encapsulated and len(data) < length < 2**32 - 1:
        raise header.refuse(f"truncated: {len(data):,} of {length:,} bytes of pixel data are there")
    if encapsulated:
        frames = parse_basic_offsets(data)
        if len(frames) > 1:
            raise header.refuse(f"holds {len(frames)} frames, and a chest X-ray has one")
        data = next(generate_frames(data, number_of_frames=1))
    stream = None
    if encapsulated and stated not in (ENCAPSULATED, DEFLATED_FRAME):
        try:
            stream = read_stream(data)
        except CutStreamError as error:
            raise header.refuse(f"truncated: the compressed data {error}") from None
        if stream is not None and any(start in data[stream.end :] for start in (JPEG_START, JPEG_2000_START)):
            raise header.refuse("holds several frames, and a chest X-ray has one")
    return Frame(_transfer_syntax(header, stated, data, stream, encapsulated), data, stream, encapsulated)


def _transfer_syntax(header: Header, stated: UID | None, data: bytes, stream: Stream | None, encapsulated: bool) -> UID:
    """The stated transfer syntax, if it fits the data; else that of the data, with a warning."""
    from pydicom import uid

    implicit, little = header.dataset.original_encoding
    native = uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian
    native = native if little or implicit else uid.ExplicitVRBigEndian
    if stated is None and not encapsulated:
        return native  # a file without the header that would state it, as archives keep them
    held = uid.UID(f"1.2.840.10008.1.2{OF_KIND[stream.kind]}") if stream is not None else None
    if held is None and rle_offsets(data):
        held = uid.RLELossless
    if stated is None:
        if held is None:
            raise header.refuse(f"{name_of('TransferSyntaxUID')} is missing, and the compressed data do not tell it")
        header.warn(f"{name_of('TransferSyntaxUID')} is missing; taken as {held.name}, as the data are")
        return held
    if encapsulated == _is_encapsulated(stated) and (stream is None or _reads(stated, stream)):
        return stated
    if held is not None and encapsulated:
        header.warn(f"{name_of('TransferSyntaxUID')} states {label(stated)}; read as {held.name}, as the data are")
        return held
    kind = "compressed or encapsulated" if encapsulated else "neither compressed nor encapsulated"
    raise header.refuse(f"{name_of('TransferSyntaxUID')} states {label(stated)}, and the pixel data are {kind}")


def _is_encapsulated(syntax: UID) -> bool:
    return syntax in YOUNG or bool(syntax.is_encapsulated)


def _reads(syntax: UID, stream: Stream) -> bool:
    """Whether the decoder of a transfer syntax reads a kind of stream."""
    from pydicom import uid

    families: dict[str, list[UID]] = {
        "JPEG-LS": uid.JPEGLSTransferSyntaxes,
        "JPEG 2000": [*uid.JPEG2000TransferSyntaxes, uid.HTJ2K, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL],
    }
    return syntax in families.get(stream.kind, uid.JPEGTransferSyntaxes)


def label(syntax: UID) -> str:
    """A transfer syntax by name and number."""
    name = YOUNG.get(syntax, syntax.name)
    return f"{name} ({syntax})" if name != syntax else f"{syntax} (unknown)"


def _refuse_unreadable(header: Header, syntax: UID) -> None:
    """Refuse, by name and with what would read it, a transfer syntax that nothing here decodes."""
    from pydicom.pixels import get_decoder

    states = f"transfer syntax {label(syntax)}"
    if syntax.startswith(VIDEO) and syntax not in JPEG_XL:
        raise header.refuse(f"{states} is video, and a chest X-ray is one image; a program such as ffmpeg decodes it")
    if syntax in REFERENCED:
        raise header.refuse(f"{states} keeps the pixels on a server; a JPIP client fetches them")
    if syntax in JPEG_XL:
        _imagecodecs(header, syntax)
    if syntax in YOUNG or syntax == ENCAPSULATED:
        return
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise header.refuse(
            f"{states} has no decoder here; convert the file, for example with DCMTK's dcmdjpeg or dcmconv"
        ) from None
    if not decoder.is_available:
        raise header.refuse(f"{states} needs {', or '.join(decoder.missing_dependencies)}")


def _imagecodecs(header: Header, syntax: UID) -> Any:
    try:
        import imagecodecs
    except ImportError:
        raise header.refuse(f"transfer syntax {label(syntax)} needs imagecodecs: pip install 'raddraft[jxl]'") from None
    return imagecodecs


def stored_values(header: Header, frame: Frame, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Decode the frame; what the header leaves open is read off the values and noted in `layout`.

    Returns:
        The words as they lie in the file or come from the decoder, and the stored values, signed where they are: both
        [H, W], or [H, W, 3] of colors.

    Raises:
        ImageError: too few or too many data, or bits whose meaning cannot be told.
    """
    words = _decode(header, frame, layout)
    shape = (layout.rows, layout.columns, layout.samples)[: 2 + (layout.samples > 1)]
    if words.shape != shape or words.dtype.kind not in "iu":
        raise header.refuse(f"the pixel data decode to {words.dtype} {words.shape}, and integers {shape} are due")
    words = words.astype(words.dtype.newbyteorder("="), copy=False)
    words = words.view(f"u{words.dtype.itemsize}")
    if layout.stored is None:  # nor is High Bit there
        used = layout.allocated if layout.signed else max(8, int(words.max()).bit_length())
        layout.stored = header.suppose("BitsStored", used, "as the values need")
        layout.high = header.suppose("HighBit", used - 1, f"one less than {name_of('BitsStored')}")
    shift = _shift(header, frame, layout, words)
    words = words >> shift
    bits = min(layout.stored, words.dtype.itemsize * 8 - shift)
    values: np.ndarray = (words & ((1 << bits) - 1)).astype(np.int32 if bits < 32 else np.int64)
    if layout.signed is None:
        layout.signed = layout.samples == 1 and torn_by_sign(values, bits, False, None)
        header.suppose("PixelRepresentation", int(layout.signed), "as the values look")
    return words, signed_values(values, bits) if layout.signed else values


def _shift(header: Header, frame: Frame, layout: Layout, words: np.ndarray) -> int:
    """How far the stored bits lie above bit 0 of the words.

    DICOM PS3.5 8.1.1. Codecs of images keep their samples at bit 0, unless these include the bits below.
    """
    assert layout.stored is not None
    assert layout.high is not None
    shift = layout.high + 1 - layout.stored
    if shift == 0:
        return 0
    stated = f"{name_of('HighBit')} is {layout.high}, and {name_of('BitsStored')} {layout.stored}"
    in_lowest = layout.stored >= words.dtype.itemsize * 8 or not (words >> layout.stored).any()
    if shift < 0 or layout.high >= layout.allocated:
        if not in_lowest:
            raise header.refuse(f"{stated}: which bits are gray cannot be told")
        header.warn(f"{stated}, which cannot be; the lowest {layout.stored} bits are taken")
        return 0
    if frame.stream is not None and frame.stream.bits <= layout.high:
        if frame.stream.bits > layout.stored:
            held = f"the {frame.stream.kind} data hold {frame.stream.bits}"
            raise header.refuse(f"{stated}, and {held}: which bits are gray cannot be told")
        return 0
    # Values at bit 0 under a header that puts them higher: nothing above, and noise, not an overlay, below.
    if in_lowest and all(0.25 < ((words >> bit) & 1).mean() < 0.75 for bit in range(shift)):
        raise header.refuse(f"{stated}, but the data lie in the lowest: which bits are gray cannot be told")
    return shift


def _decode(header: Header, frame: Frame, layout: Layout) -> np.ndarray:
    """Words [H, W] or [H, W, 3]; of colors, `layout.photometric` becomes what the decoder made of them."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian, RLELossless

    if frame.syntax in JPEG_XL:
        layout.photometric = "RGB" if layout.samples > 1 else layout.photometric
        return _imagecodecs(header, frame.syntax).jpegxl_decode(frame.data)
    syntax, data, allocated = frame.syntax, header.dataset.PixelData, layout.allocated
    if frame.syntax == DEFLATED_FRAME or not frame.compressed:
        needed = _needed(layout)
        data = _inflate(header, frame.data, needed) if frame.compressed else frame.data
        _check_length(header, layout, data, needed)
        if layout.planar is None and layout.samples > 1:
            layout.planar = _find_planar(header, layout, data[:needed])
        syntax = ExplicitVRLittleEndian if frame.encapsulated else syntax
    elif frame.syntax == RLELossless:
        segments, due = len(rle_offsets(frame.data)), layout.samples * allocated // 8
        if segments != due:
            raise header.refuse(
                f"the RLE data have {segments} segments, and {name_of('SamplesPerPixel')} {layout.samples} and "
                f"{name_of('BitsAllocated')} {allocated} make {due}"
            )
        try:
            check_rle(frame.data, layout.rows * layout.columns)
        except CutStreamError as error:
            raise header.refuse(f"truncated: the RLE data {error}") from None
    elif frame.stream is not None:
        allocated = next(bits for bits in (8, 16, 32) if frame.stream.bits <= bits)
    options: dict[str, Any] = {
        "correct_unused_bits": False,
        "rows": layout.rows,
        "columns": layout.columns,
        "samples_per_pixel": layout.samples,
        "bits_allocated": allocated,
        "bits_stored": min(layout.stored or allocated, allocated),
        "pixel_representation": int(bool(layout.signed)),
        "photometric_interpretation": layout.photometric,
        "planar_configuration": layout.planar or 0,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": header.dataset["PixelData"].VR,
    }
    words, properties = get_decoder(syntax).as_array(data, raw=True, **options)
    layout.photometric = str(properties["photometric_interpretation"])
    return words


def _needed(layout: Layout) -> int:
    """Bytes of the uncompressed frame, without padding."""
    bits = layout.rows * layout.columns * layout.samples * layout.allocated
    if layout.photometric == "YBR_FULL_422":  # two of three samples, C.7.6.3.1.2
        bits = bits // 3 * 2
    return -(-bits // 8)


def _check_length(header: Header, layout: Layout, data: bytes, needed: int) -> None:
    """Refuse too few bytes, and more than padding: another frame, or more than a row that is not all the same."""
    excess = len(data) - needed
    if excess < 0 or excess >= needed or (excess * layout.rows > needed and len(set(data[needed:])) > 1):
        raise header.refuse(
            f"{len(data):,} bytes of pixel data, and {name_of('Rows')} {layout.rows}, {name_of('Columns')} "
            f"{layout.columns}, {name_of('SamplesPerPixel')} {layout.samples} and {name_of('BitsAllocated')} "
            f"{layout.allocated} make {needed:,}"
        )


def _inflate(header: Header, data: bytes, needed: int) -> bytes:
    """A deflated frame, PS3.5 A.4.13: RFC 1951 without a header; some writers put that of zlib around it."""
    for window_bits in (-zlib.MAX_WBITS, zlib.MAX_WBITS):
        inflater = zlib.decompressobj(window_bits)
        try:
            inflated = inflater.decompress(data, 2 * needed + 64)
        except zlib.error:
            continue
        if inflater.eof or len(inflated) >= 2 * needed:  # the length of the latter is refused next
            return inflated
    raise header.refuse("truncated or damaged: the deflated frame has no end")


def _find_planar(header: Header, layout: Layout, data: bytes) -> int:
    """The planar configuration of a gray image in three equal colors."""
    samples = np.frombuffer(data, f"u{layout.allocated // 8}")
    for planar, colors in enumerate((samples.reshape(-1, 3).T, samples.reshape(3, -1))):
        if (colors[0] == colors[1]).all() and (colors[0] == colors[2]).all():
            return header.suppose("PlanarConfiguration", planar, "as the colors are equal so")
    raise header.unknown("PlanarConfiguration", "the colors do not tell it")
