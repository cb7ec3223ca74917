"""The films of `python -m benchmarks.dicom_cases`: tiny synthetic DICOM files, each odd in one way, made with pydicom.

They show a computed gradient, no patient. Every film states what PS3.3 makes of it, computed here from the gradient
itself and not by a reader. One file, since the makers build on each other.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydicom import DataElement, Dataset, FileMetaDataset, Sequence, dcmread, dcmwrite
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import UID, generate_uid

HEIGHT, WIDTH = 96, 80
EXPLICIT, IMPLICIT, BIG = (UID(f"1.2.840.10008.1.2{end}") for end in (".1", "", ".2"))
DEFLATED, ENCAPSULATED, DEFLATED_FRAME = (UID(f"1.2.840.10008.1.2.{end}") for end in ("1.99", "1.98", "8.1"))
JPEG_LOSSLESS, JPEG_LS, JPEG_2000, RLE = (UID(f"1.2.840.10008.1.2.{end}") for end in ("4.70", "4.80", "4.90", "5"))
CR, DX, DX_FOR_PROCESSING, CAPTURE, RT_DOSE, PARAMETRIC_MAP = (
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in ("1", "1.1", "1.1.1", "7", "481.2", "30")
)
MISSING = object()
"""As the value of an element: the element is not there. None: it is there, of length zero."""


@dataclass(frozen=True, eq=False, repr=False)
class Film:
    """A film and what readers should make of it."""

    dataset: Dataset
    meant: np.ndarray
    """float [H, W], 0..1, black to white: the picture that was put in."""
    shown: np.ndarray | None
    """float [H, W], 0..1: what PS3.3 makes of the file; None where it forbids the file or leaves its look open."""
    values: np.ndarray
    """[H, W]: what the modality LUT puts out, for readers that stop there."""
    unheeded: np.ndarray | None = None
    """float, 0..1: what a reader shows that does not know what is odd here; None where nothing was worked out."""
    judged: np.ndarray | None = None
    """bool [H, W]: the pixels to compare, where PS3.3 leaves some open; None: all."""
    tolerance: float = 1.0
    """Largest difference, in levels of 255, that counts as equal: rounding, or resampling."""
    syntax: UID = EXPLICIT
    encode: UID | None = None
    """The transfer syntax that a peer has to encode the file in, since pydicom alone cannot."""
    reframe: Callable[[bytes], bytes] | None = None
    """What is done to the only frame after that."""
    rewrite: Callable[[bytes], bytes] | None = None
    """What is done to the bytes of the file, or None."""

    def write(self, path: Path) -> None:
        """Write the film as it is before a peer has encoded it."""
        dataset = self.dataset
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = self.syntax
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dcmwrite(path, dataset, enforce_file_format=True)
        if self.rewrite is not None:
            path.write_bytes(self.rewrite(path.read_bytes()))


@dataclass(frozen=True)
class Case:
    """A kind of film: one row of the table."""

    name: str
    standard: str
    """What PS3.3 (or PS3.5) says."""
    films: Mapping[str, Callable[[], Film]] = field(repr=False)
    """Variants by name; a single one has the name ''."""
    reason: str = ""
    """Why this project shows something else than PS3.3, or picks its reading where PS3.3 has none."""


def picture() -> np.ndarray:
    """float [H, W], from 0 to 1: a gradient that grows downward and toward the midline, as a chest does, with a
    bright marker at the top left, so that no mirror image or turn of it is equal."""
    rows, columns = np.linspace(0, 1, HEIGHT)[:, None], np.linspace(-1, 1, WIDTH)[None]
    gradient = 0.8 * rows * (1 - np.abs(columns) ** 1.5) + 0.1 * (1 + np.sin(9 * columns + 4 * rows)) * rows
    gradient[6:14, 6:20] = 0.9
    return (gradient - gradient.min()) / np.ptp(gradient)


def levels(bits: int) -> np.ndarray:
    """int64 [H, W]: the picture in 0 .. 2 ** bits - 1."""
    return np.rint(picture() * (2**bits - 1)).astype(np.int64)


def dataset(
    words: np.ndarray, bits: int = 12, window: tuple[Any, Any] | None = (2048, 4096), dx: bool = False, **elements: Any
) -> Dataset:
    """A film, of Computed Radiography, or of Digital X-Ray for presentation, which PS3.3 allows less and asks more of.

    `words` [H, W] are unsigned, as they stand in the file.
    """
    one = Dataset()
    one.SOPClassUID, one.SOPInstanceUID = DX if dx else CR, generate_uid(entropy_srcs=[repr(sorted(elements))])
    one.ImageType, one.Modality = ["ORIGINAL", "PRIMARY"], "DX" if dx else "CR"
    one.BodyPartExamined, one.ViewPosition, one.PatientOrientation = "CHEST", "PA", ["L", "F"]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.Rows, one.Columns = words.shape
    one.BitsAllocated, one.BitsStored, one.HighBit = 8 * words.dtype.itemsize, bits, bits - 1
    one.PixelRepresentation = 0
    if window is not None:
        one.WindowCenter, one.WindowWidth = window
    if dx:
        one.PresentationIntentType, one.PresentationLUTShape = "FOR PRESENTATION", "IDENTITY"
        one.RescaleIntercept, one.RescaleSlope, one.RescaleType = 0, 1, "US"
    little = words.astype(words.dtype.newbyteorder("<"))
    one.add_new("PixelData", "OB" if words.dtype.itemsize == 1 else "OW", little.tobytes())
    for name, value in elements.items():
        if value is MISSING:
            del one[name]
        elif isinstance(value, DataElement):
            one[value.tag] = value
        else:
            setattr(one, name, value)
    return one


def plain(**elements: Any) -> Film:
    """The picture at 12 bits under a window of all their values, with these elements changed."""
    values = levels(12)
    return Film(dataset(values.astype(np.uint16), **elements), values / 4095, values / 4095, values)


def forbidden(**elements: Any) -> Film:
    """The same where PS3.3 forbids the elements to be so, or does not say how the film looks."""
    return replace(plain(**elements), shown=None)


def spoiled(name: str) -> dict[str, Callable[[], Film]]:
    """A required element empty, missing, and given twice."""
    value = plain().dataset.get(name)
    changes = {"empty": None, "missing": MISSING, "twice": [value, value]}
    return {kind: partial(forbidden, **{name: change}) for kind, change in changes.items()}


# Look-up tables


def curve(entries: int, top: int) -> np.ndarray:
    """uint16 [entries], from 0 to top, bent, so that a film without its table looks different."""
    return np.rint(np.linspace(0, 1, entries) ** 0.5 * top).astype(np.uint16)


def table(entries: np.ndarray, first: int, bits: int, vr: str = "US", packed: bool = False) -> Sequence:
    """A Modality or VOI LUT Sequence of one item. packed: 8-bit entries, two to the word."""
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "OW", entries.astype(np.uint8 if packed else "<u2").tobytes())
    return Sequence([item])


def voi(bits: int = 12, top: int = 4095, stated: int = 12, packed: bool = False, **elements: Any) -> Film:
    """A film with a VOI LUT whose entries go from 0 to `top`, under a descriptor that states `stated` bits."""
    values = levels(bits)
    lut = curve(2**bits, top)
    out = lut[values].astype(float)
    sequence = table(lut, 0, stated, packed=packed)
    words = values.astype(np.uint8 if bits == 8 else np.uint16)
    whole = dataset(words, bits, None, dx=not packed, VOILUTSequence=sequence, **elements)
    return Film(whole, out / top, None if top >= 2**stated else out / (2**stated - 1), values)


def voi_signed(vr: str, first: int, syntax: UID = EXPLICIT) -> Film:
    """A VOI LUT over rescaled values from -2048 to 2047; the first value mapped, -2048, is written as `first`."""
    values = levels(12)
    lut = curve(4096, 65535)
    out = lut[values] / 65535
    whole = dataset(values.astype(np.uint16), 12, None, VOILUTSequence=table(lut, first, 16, vr))
    whole.RescaleIntercept, whole.RescaleSlope, whole.RescaleType = -2048, 1, "US"
    return Film(whole, out, out, values - 2048, syntax=syntax)


def modality(
    bits: int = 12, stated: int = 16, packed: bool = False, first: int = 0, vr: str = "US", syntax: UID = EXPLICIT
) -> Film:
    """A film whose values come out of a Modality LUT, and go through a window of all that these can be.

    A `first` other than 0 stands for the lowest of signed pixels.
    """
    values, top = levels(bits), 2**stated - 1
    lut = curve(2**bits, top)
    words = (values - 2 ** (bits - 1)) % 65536 if first else values
    whole = dataset(
        words.astype(np.uint8 if bits == 8 else np.uint16),
        bits,
        (2 ** (stated - 1), 2**stated),
        PixelRepresentation=int(first != 0),
        ModalityLUTSequence=table(lut, first, stated, vr, packed),
    )
    whole.ModalityLUTSequence[0].ModalityLUTType = "US"
    out = lut[values]
    return Film(whole, out / top, out / top, out, syntax=syntax)


# Bits


def bits_elsewhere(shift: int, junk: int, syntax: UID = EXPLICIT, overlay: int | None = None) -> Film:
    """12 bits at `shift` of 16, High Bit stated accordingly; the bits of `junk` are set in a third of the film.

    overlay: the bit at which an overlay is said to be, or None.
    """
    words = (levels(12) << shift).astype(np.uint16)
    words[:, ::3] |= junk
    film = plain(HighBit=11 + shift)
    film.dataset.PixelData = words.tobytes()
    if overlay is not None:
        planes = {0x10: HEIGHT, 0x11: WIDTH, 0x40: "G", 0x50: [1, 1], 0x100: 16, 0x102: overlay}
        for element, value in planes.items():
            film.dataset.add_new((0x6000, element), {0x40: "CS", 0x50: "SS"}.get(element, "US"), value)
    return compressed(film, RLE) if syntax == RLE else film


def signed_12(extended: bool) -> Film:
    """Signed values of 12 bits in 16, with their sign extended into the unused bits, or these zero."""
    values = levels(12) - 2048
    words = (values % (65536 if extended else 4096)).astype(np.uint16)
    meant = (values + 2048) / 4095
    return Film(dataset(words, window=(0, 4096), PixelRepresentation=1), meant, meant, values)


def without_window(bits: int, low: float, high: float) -> Film:
    """No window; values in the part of the range of the bits from low to high, both 0..1."""
    values = np.rint((low + picture() * (high - low)) * (2**bits - 1)).astype(np.int64)
    return Film(dataset(values.astype(np.uint16), bits, None), picture(), values / (2**bits - 1), values)


def padded(padding: int, vr: str, stated: int, window: bool = True, **elements: Any) -> Film:
    """A film of 16 bits with a border of the value `padding`, stated as `stated` in the representation `vr`.

    Negative padding makes the pixels signed, and the film one of MONOCHROME1, which would show it white.
    """
    signed = padding < 0
    values = (4095 - levels(12) - 1024) if signed else levels(12)
    border = np.ones_like(values, bool)
    border[10:-10, 10:-10] = False
    low, high = int(values[~border].min()), int(values[~border].max())
    values[border] = padding
    whole = dataset(
        (values % 65536).astype(np.uint16),
        16,
        ((low + high + 1) / 2, high - low + 1) if window else None,
        PixelRepresentation=int(signed),
        PhotometricInterpretation="MONOCHROME1" if signed else "MONOCHROME2",
        PixelPaddingValue=DataElement("PixelPaddingValue", vr, stated),
        **elements,
    )
    meant = ((values - low) / (high - low)).clip(0, 1)
    shown = meant if window else (values + 32768 * signed) / 65535
    meant, shown = (1 - one if signed else one for one in (meant, shown))
    return Film(whole, np.where(border, 0, meant), np.where(border, 0, shown), values, shown)


# Windows, geometry, shutters


def windowed(center: Any, width: Any, shown: np.ndarray | None, bits: int = 12, **elements: Any) -> Film:
    """The picture under a window; shown is what that makes of it, None where the window is forbidden."""
    values = levels(bits)
    whole = dataset(values.astype(np.uint8 if bits == 8 else np.uint16), bits, (center, width), **elements)
    return Film(whole, picture() if shown is None else shown, shown, values)


def negative(center: float, width: float, signed: bool = False, **elements: Any) -> Film:
    """The picture as a negative, which MONOCHROME1 turns, under a window."""
    values = 4095 - levels(12) - 2048 * signed
    shown = 1 - ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)
    words = (values % 65536).astype(np.uint16)
    whole = dataset(words, 12, (center, width), PixelRepresentation=int(signed), **elements)
    whole.PhotometricInterpretation = "MONOCHROME1"
    return Film(whole, shown, shown, values)


def linear(center: float, width: float, bits: int = 12) -> np.ndarray:
    """C.11.2.1.2.1."""
    return ((levels(bits) - (center - 0.5)) / (width - 1) + 0.5).clip(0, 1)


def stretched(**elements: Any) -> Film:
    """Pixels twice as high as wide; around the marker, ways to resample differ."""
    half = levels(12)[::2]
    meant = np.repeat(half, 2, axis=0) / 4095
    judged = np.ones_like(meant, bool)
    judged[2:18, 2:24] = False
    return Film(dataset(half.astype(np.uint16), **elements), meant, meant, half, half / 4095, judged, 6)


def shutter(inside: np.ndarray, shade: int = 0, **elements: Any) -> Film:
    """A shutter, with what is outside to be of a shade of 0 to 65535.

    The pixels beside its edge are not judged, since PS3.3 does not say on which side they are.
    """
    from scipy.ndimage import binary_dilation, binary_erosion

    film = plain(ShutterPresentationValue=shade, **elements)
    judged = ~(binary_dilation(inside, iterations=2) & ~binary_erosion(inside, iterations=2))
    black, shaded = (np.where(inside, film.meant, outside) for outside in (0, shade / 65535))
    return replace(film, meant=black, shown=shaded, unheeded=film.meant, judged=judged)


def box(top: int, bottom: int, left: int, right: int) -> np.ndarray:
    """bool [H, W]: inside these rows and columns, which count from 1."""
    inside = np.zeros((HEIGHT, WIDTH), bool)
    inside[top - 1 : bottom, left - 1 : right] = True
    return inside


def disk(row: int, column: int, radius: int) -> np.ndarray:
    """bool [H, W]: inside a circle."""
    rows, columns = np.mgrid[1 : HEIGHT + 1, 1 : WIDTH + 1]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


# Transfer syntaxes


def encapsulated(film: Film, syntax: UID, frames: list[bytes]) -> Film:
    """The film with these frames, each in one fragment."""
    film.dataset.add_new("PixelData", "OB", encapsulate(frames))
    film.dataset["PixelData"].is_undefined_length = True
    return replace(film, syntax=syntax)


def compressed(film: Film, syntax: UID, change: Callable[[bytes], bytes] = bytes) -> Film:
    """The film as pydicom's own encoders compress it, the frame changed."""
    film.dataset.file_meta = FileMetaDataset()
    film.dataset.file_meta.TransferSyntaxUID = EXPLICIT
    film.dataset.compress(syntax, generate_instance_uid=False)
    frame = next(generate_frames(film.dataset.PixelData, number_of_frames=1))
    return encapsulated(film, syntax, [change(frame)])


def reframe(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the only frame of a compressed file in place."""
    whole = dcmread(path)
    frame = next(generate_frames(whole.PixelData, number_of_frames=1))
    whole.PixelData = encapsulate([change(frame)])
    dcmwrite(path, whole)


def uncoded(syntax: UID, change: Callable[[bytes], bytes] = bytes) -> Film:
    """The film in one of the two encapsulated syntaxes that need no codec of pictures."""
    film = plain()
    frame = film.dataset.PixelData
    film = encapsulated(film, ENCAPSULATED, [change(deflate(frame) if syntax == DEFLATED_FRAME else frame)])
    if syntax == ENCAPSULATED:
        return film
    # pydicom 3.0.2 does not write the younger syntax, so its name is put in afterwards
    return replace(film, rewrite=lambda data: data.replace(ENCAPSULATED.encode(), DEFLATED_FRAME.encode() + b"\0"))


def big_endian() -> Film:
    """The film with its words turned."""
    film = replace(plain(), syntax=BIG)
    film.dataset.PixelData = levels(12).astype(">u2").tobytes()
    return film


def deflate(frame: bytes) -> bytes:
    """RFC 1951 data, without the header of zlib, at an even length."""
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(frame) + packer.flush()
    return packed + bytes(len(packed) % 2)


def headless(data: bytes) -> bytes:
    """A file without preamble and file meta information: it begins with group 0008."""
    return data[data.index(b"\x08\x00\x08\x00CS") :]


def more_bytes() -> Film:
    """Native pixels followed by bytes that belong to no pixel."""
    film = plain()
    film.dataset.PixelData += bytes(4096)
    return film


def two_frames() -> Film:
    """Two frames, which no film has."""
    film = plain(NumberOfFrames=2)
    film.dataset.PixelData *= 2
    return film


def wide_integers() -> Film:
    """Integers of 32 bits under a window of all of them."""
    values = np.rint(picture() * (2**32 - 1)).astype(np.int64)
    whole = dataset(values.astype(np.uint32), 32, (2**31, 2**32), SOPClassUID=RT_DOSE)
    return Film(whole, picture(), picture(), values)


def both() -> Film:
    """A VOI LUT and a window."""
    film = voi()
    film.dataset.WindowCenter, film.dataset.WindowWidth = 2048, 4096
    return film


def rgb(planar: int) -> Film:
    """A gray film as an RGB secondary capture."""
    values = levels(8)
    whole = dataset(values.astype(np.uint8), 8, None, SOPClassUID=CAPTURE, PlanarConfiguration=planar)
    whole.SamplesPerPixel, whole.PhotometricInterpretation = 3, "RGB"
    whole.PixelData = np.stack([values] * 3, axis=0 if planar else -1).astype(np.uint8).tobytes()
    return Film(whole, values / 255, values / 255, values)


def float_pixels() -> Film:
    """Float Pixel Data, from -1 to 1, under a window of that range."""
    values = (picture() * 2 - 1).astype(np.float32)
    whole = dataset(levels(12).astype(np.uint32), 32, (0, 2), SOPClassUID=PARAMETRIC_MAP, VOILUTFunction="LINEAR_EXACT")
    for name in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        del whole[name]
    whole.add_new("FloatPixelData", "OF", values.tobytes())
    return Film(whole, picture(), picture(), values)


def only(make: Callable[..., Film], *values: Any, **named: Any) -> dict[str, Callable[[], Film]]:
    """A case of one film."""
    return {"": partial(make, *values, **named)}
