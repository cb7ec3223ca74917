"""A DICOM chest X-ray -> gray values as they are meant to be displayed, air dark; `raddraft.images` is the way in.

Stored values come from `dicom_pixels`, what they mean from `dicom_luts`. Here: what is no part of the film (padding,
shutters), polarity, pixels that are not square, and warnings of what looks wrong. Sections are of DICOM PS3.3.
"""

from __future__ import annotations

import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from raddraft.dicom_bits import check_sign_and_bits
from raddraft.dicom_header import Header, Layout, name_of, read_layout
from raddraft.dicom_luts import display_values, modality_values
from raddraft.dicom_pixels import open_frame, stored_values
from raddraft.gray import ImageError, check_levels, check_size, stretch
from raddraft.studies import GrayMapping

CHEST_MODALITIES = {"CR", "DX", "RG"}  # RG, radiographic imaging, is what film scanners write
CHEST_WORDS = ("CHEST", "THORAX", "TORAX", "LUNG", "CXR")  # also inside e.g. CHESTABDOMEN or PORT CHEST
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
SQUARE = 0.01
"""Share by which the sides of a pixel may differ and still count as rounding."""
MOST_ASPECT = 4
"""A ratio beyond this, or its reciprocal, is nonsense."""
BYTES_OF_PIXEL = 8
"""At most: 64 bits, or three colors of 16."""
WHOLE = (0.0, 1.0)
"""The window that shows all gray values of a film."""
CURVE = 4096
"""Values at which the window or VOI LUT of a film is looked at."""


def read_dicom(path: Path, gray_mapping: GrayMapping, max_pixels: int, data: bytes | None = None) -> np.ndarray:
    """Read a DICOM file, or its content where that was read before.

    Returns:
        [H, W], 0..255: uint8 where the file holds such values and nothing maps them, else float64, unrounded. Pixels
        are square.

    Raises:
        ImageError: see `raddraft.images.load_image`.
    """
    return _read(path, gray_mapping, max_pixels, data)[0]


def read_film(path: Path, max_pixels: int, data: bytes | None = None) -> tuple[np.ndarray, tuple[float, float]]:
    """Read a DICOM file for a viewer, which windows it: nothing of the file's range is cut off.

    Returns:
        [H, W], 0..255, floats, and the window that the file asks for: the shares of 255 that are black and white. What
        is no straight line, a VOI LUT or a sigmoid, is applied, and its window is the whole.

    Raises:
        ImageError: see `raddraft.images.load_image`.
    """
    return _read(path, None, max_pixels, data)


def _read(
    path: Path, gray_mapping: GrayMapping | None, max_pixels: int, data: bytes | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """See `read_dicom`, and `read_film` for which there is no mapping."""
    from pydicom import dcmread

    _check_inflated(path, max_pixels, data)
    header = Header(path, dcmread(path if data is None else io.BytesIO(data), force=True))
    frame = open_frame(header)
    layout = read_layout(header, frame.stream, frame.length)
    header.settle("PixelRepresentation", int(bool(layout.signed)))  # pydicom parses other elements by it
    check_size(path, layout.columns, layout.rows, layout.frames, max_pixels)
    ratio = pixel_ratio(header)
    width, height = _square_size(layout.columns, layout.rows, ratio)
    check_size(path, width, height, 1, max_pixels)
    _warn_of_kind(header)
    words, stored = stored_values(header, frame, layout)
    hidden, window = _shutter(header, layout, ratio), WHOLE
    if layout.samples > 1 or layout.photometric == "PALETTE COLOR":
        pixels = _gray_from_color(header, layout, stored, gray_mapping or "window", hidden)
    else:
        padding = _padding(header, layout, words, stored)
        if padding is not None:
            hidden = padding if hidden is None else hidden | padding
        if gray_mapping is None:
            pixels, window = _film(header, layout, words, stored, hidden)
        else:
            pixels = _gray(header, layout, words, stored, gray_mapping, hidden)
    if hidden is not None:
        pixels[hidden] = 0
    return _resize(pixels, width, height), window


def _check_inflated(path: Path, max_pixels: int, data: bytes | None) -> None:
    """Refuse a deflated data set of more bytes than pixels may have: pydicom inflates it before it reads the header."""
    from pydicom.filereader import _read_file_meta_info, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    with open(path, "rb") if data is None else io.BytesIO(data) as file:
        read_preamble(file, force=True)
        if _read_file_meta_info(file).get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
            return
        inflater, length, most = zlib.decompressobj(-zlib.MAX_WBITS), 0, BYTES_OF_PIXEL * max_pixels + 2**20
        packed = file.read()
    while packed and length <= most:
        length += len(inflater.decompress(packed, 2**20))
        packed = inflater.unconsumed_tail
    if length > most:
        raise ImageError(
            f"{path}: its data inflate to more than {most:,} bytes, which max_pixels = {max_pixels:,} allows; raise "
            "max_pixels to read it"
        )


def read_sizes(path: Path) -> tuple[int, int] | None:
    """Height and width in pixels as stored, before these were made square; None where the header lacks them."""
    header = _read_header(path)
    rows, columns = header.integer("Rows"), header.integer("Columns")
    return None if rows is None or columns is None else (rows, columns)


def read_shown_size(path: Path) -> tuple[int, int] | None:
    """Height and width of what `read_dicom` gives; None where the header lacks them."""
    stored = read_sizes(path)
    if stored is None:
        return None
    width, height = _square_size(stored[1], stored[0], pixel_ratio(_read_header(path)))
    return height, width


def _read_header(path: Path) -> Header:
    """The elements that tell the size."""
    from pydicom import dcmread

    tags: list[Any] = ["Rows", "Columns", *SPACINGS]
    return Header(path, dcmread(path, force=True, stop_before_pixels=True, specific_tags=tags))


def _gray(
    header: Header,
    layout: Layout,
    words: np.ndarray,
    stored: np.ndarray,
    gray_mapping: GrayMapping,
    hidden: np.ndarray | None,
) -> np.ndarray:
    """Stored values [H, W] to gray, see `read_dicom`."""
    check_sign_and_bits(header, layout, words, stored, hidden)
    values, low, high = modality_values(header, layout, stored)
    display = display_values(header, values, low, high) if gray_mapping == "window" else None
    if display is not None:
        pixels, mapping = display[0] * 255, display[1]
    elif gray_mapping == "window" and layout.stored == 8 and not layout.signed and values is stored:
        pixels, mapping = stored.astype(np.uint8), f"{name_of('BitsStored')} {layout.stored}"
    else:
        pixels, mapping = stretch(header.path, values, gray_mapping, hidden), f"mapping {gray_mapping!r}"
    check_levels(header.path, words, pixels, mapping, hidden)
    return 255 - pixels if layout.photometric == "MONOCHROME1" else pixels


def _film(
    header: Header, layout: Layout, words: np.ndarray, stored: np.ndarray, hidden: np.ndarray | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Stored values [H, W] to gray and window, see `read_film`."""
    check_sign_and_bits(header, layout, words, stored, hidden)
    values, low, high = modality_values(header, layout, stored)
    pixels, window = stretch(header.path, values, "minmax", hidden), WHOLE
    shown = values if hidden is None else values[~hidden]
    probe = np.linspace(shown.min(), shown.max(), CURVE)
    display = display_values(header, probe, low, high)
    if display is not None:
        straight = _straight(display[0])
        if straight is None:
            pixels = np.interp(pixels, np.linspace(0, 255, CURVE), display[0] * 255)
        else:
            window = straight
    if layout.photometric == "MONOCHROME1":
        return 255 - pixels, (1 - window[1], 1 - window[0])
    return pixels, window


def _straight(curve: np.ndarray) -> tuple[float, float] | None:
    """Where a straight line through a curve [n] over 0..1 is 0 and 1; None if it is no line between these."""
    places = np.linspace(0, 1, len(curve))
    inside = np.flatnonzero((curve > 0) & (curve < 1))
    if len(inside) < 2:
        return None
    first, last = inside[[0, -1]]
    slope = (curve[last] - curve[first]) / (places[last] - places[first])
    if slope <= 0:
        return None
    low = places[first] - curve[first] / slope
    line = ((places - low) * slope).clip(0, 1)
    return (float(low), float(low + 1 / slope)) if np.abs(line - curve).max() < 0.01 else None


def _gray_from_color(
    header: Header, layout: Layout, stored: np.ndarray, gray_mapping: GrayMapping, hidden: np.ndarray | None
) -> np.ndarray:
    """Colors [H, W, 3], or palette indices [H, W], to [H, W] by ITU-R 601 luma, as Pillow does it; see `read_dicom`."""
    from pydicom.pixels import apply_color_lut

    eight_bits = layout.stored == 8
    if layout.photometric == "PALETTE COLOR":
        stored = apply_color_lut(stored.astype(np.uint16), header.dataset)
        eight_bits = stored.dtype == np.uint8
    # Y is the luma.
    luma = stored[..., 0] if layout.photometric.startswith("YBR") else stored[..., :3] @ np.array([0.299, 0.587, 0.114])
    if gray_mapping == "window" and eight_bits:
        pixels, mapping = np.rint(luma).astype(np.uint8), "conversion to gray"
    else:
        pixels, mapping = stretch(header.path, luma, gray_mapping, hidden), f"mapping {gray_mapping!r}"
    check_levels(header.path, luma, pixels, mapping, hidden)
    return pixels


def _padding(header: Header, layout: Layout, words: np.ndarray, stored: np.ndarray) -> np.ndarray | None:
    """Where stored values [H, W] are pixel padding: outside the exposed field, so no part of the gray scale.

    C.7.5.1.1.2. Writers state it as US for signed pixels (63536 for -2000) and as SS for unsigned ones (-1 for 65535),
    and may set bits above Bits Stored.
    """
    assert layout.stored is not None
    value, limit = header.integer("PixelPaddingValue"), header.integer("PixelPaddingRangeLimit")
    if value is None:
        if "PixelPaddingValue" in header.dataset or limit is not None:
            header.warn(f"{name_of('PixelPaddingValue')} is {header.state('PixelPaddingValue')}; taken as no padding")
        return None
    ends = [value] if limit is None else [value, limit]

    def within(pixels: np.ndarray, bits: int, signed: bool | None) -> np.ndarray:
        half = 1 << (bits - 1) if signed else 0
        stated = [(end + half) % (1 << bits) - half for end in ends]
        return (pixels >= min(stated)) & (pixels <= max(stated))

    padding = within(stored, max(16, layout.stored), layout.signed)
    if not padding.any():
        padding = within(words, max(16, words.dtype.itemsize * 8), signed=False)
    if not padding.any() and (layout.signed or min(ends) < 0):
        padding = within(stored, layout.stored, layout.signed)
    return padding


def _shutter(header: Header, layout: Layout, ratio: float) -> np.ndarray | None:
    """Where pixels [rows, columns] lie outside a display shutter, C.7.6.11. Rows and columns count from 1."""
    shapes = {str(shape).strip().upper() for shape in header.values("ShutterShape")}
    hidden = np.zeros((layout.rows, layout.columns), bool)
    row, column = np.ogrid[1 : layout.rows + 1, 1 : layout.columns + 1]
    unusable = []
    if "RECTANGULAR" in shapes:
        names = [
            f"Shutter{side}Edge" for side in ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
        ]
        edges = [header.number(name) for name in names]
        if None in edges:
            unusable.append(names[edges.index(None)])
        else:
            left, right, top, bottom = edges
            hidden |= (column < left) | (column > right) | (row < top) | (row > bottom)
    if "CIRCULAR" in shapes:
        center, radius = header.numbers("CenterOfCircularShutter"), header.number("RadiusOfCircularShutter")
        if len(center) != 2 or not radius:
            unusable.append("CenterOfCircularShutter" if len(center) != 2 else "RadiusOfCircularShutter")
        else:  # the radius counts pixels along a row
            hidden |= ((row - center[0]) * ratio) ** 2 + (column - center[1]) ** 2 > radius**2
    if "POLYGONAL" in shapes:
        vertices = header.numbers("VerticesOfThePolygonalShutter")
        if len(vertices) < 6 or len(vertices) % 2:
            unusable.append("VerticesOfThePolygonalShutter")
        else:
            canvas = Image.new("1", (layout.columns, layout.rows))
            corners = [(x - 1, y - 1) for y, x in zip(vertices[::2], vertices[1::2], strict=True)]
            ImageDraw.Draw(canvas).polygon(corners, fill=1, outline=1)
            hidden |= ~np.asarray(canvas)
    for name in unusable:
        header.warn(f"{name_of('ShutterShape')} asks for {name_of(name)}, which is not usable; shutter left out")
    if hidden.all():
        header.warn("the display shutter hides the whole image; left out")
        return None
    return hidden if hidden.any() else None


def pixel_ratio(header: Header) -> float:
    """Height of a pixel as a multiple of its width; 1 if square, or if spacings and aspect ratio say nothing usable.

    The first usable of `SPACINGS` counts, C.7.6.3.1.7 and 10.7.1.3; each is a vertical and a horizontal value.
    """
    for keyword in SPACINGS:
        sides = header.numbers(keyword)
        if len(sides) == 2 and all(0 < side < np.inf for side in sides):
            ratio = sides[0] / sides[1]
            if not 1 / MOST_ASPECT <= ratio <= MOST_ASPECT:
                header.warn(f"{name_of(keyword)} makes pixels {ratio:g} times as high as wide; taken as square")
                continue
            return ratio if abs(ratio - 1) > SQUARE else 1.0
    return 1.0


def _square_size(columns: int, rows: int, ratio: float) -> tuple[int, int]:
    """Width and height with square pixels of the smaller side, so that no detail is lost."""
    return (columns, round(rows * ratio)) if ratio >= 1 else (round(columns / ratio), rows)


def _resize(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Gray values [H, W] as float64 [height, width], unless they have this size; bilinear, so that none overshoots."""
    if pixels.shape == (height, width):
        return pixels
    image = Image.fromarray(pixels.astype(np.float32))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float64).clip(0, 255)


def _warn_of_kind(header: Header) -> None:
    """Warn of films that are no chest X-ray for display, or that contradict themselves."""
    modality, part = header.text("Modality"), header.text("BodyPartExamined")
    if modality and modality not in CHEST_MODALITIES:
        header.warn(f"modality {modality!r} is not one of {', '.join(sorted(CHEST_MODALITIES))}")
    if part and not any(word in part for word in CHEST_WORDS):
        header.warn(f"body part {part!r} is not the chest")
    photometric, shape = header.text("PhotometricInterpretation"), header.text("PresentationLUTShape")
    if (photometric, shape) in (("MONOCHROME1", "IDENTITY"), ("MONOCHROME2", "INVERSE")):
        # C.8.11.3 forbids both.
        header.warn(
            f"{name_of('PhotometricInterpretation')} {photometric} and {name_of('PresentationLUTShape')} {shape} "
            f"contradict each other; shown as {photometric}, which may be inverted"
        )
    if header.text("PresentationIntentType") == "FOR PROCESSING" or _sop_class(header).endswith("For Processing"):
        header.warn("is for processing, not for presentation: the gray scale is not that of a film to be read")
    _warn_of_orientation(header)


def _sop_class(header: Header) -> str:
    """The name of the SOP class."""
    from pydicom.uid import UID

    meta = Header(header.path, header.dataset.file_meta)
    found = header.values("SOPClassUID") or meta.values("MediaStorageSOPClassUID")
    return UID(str(found[0])).name if found else ""


def _warn_of_orientation(header: Header) -> None:
    """Warn of rows and columns that do not lead where they lead in an upright film, C.7.6.1.1.1.

    Columns lead to the feet; rows to the patient's left in frontal films, to the front or the back in lateral ones.
    """
    toward = [str(one).strip().upper()[:1] for one in header.values("PatientOrientation")]
    if len(toward) != 2 or not set(toward) <= set("APRLHF"):
        return
    row, column = toward
    stated = "\\".join(map(str, header.values("PatientOrientation")))
    if column == "F" and row == "R":
        header.warn(f"{name_of('PatientOrientation')} {stated} says mirrored: rows lead to the patient's right")
    elif column != "F" or row in "HF":
        header.warn(f"{name_of('PatientOrientation')} {stated} says turned: columns do not lead to the feet")
