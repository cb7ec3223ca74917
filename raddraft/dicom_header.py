"""What a DICOM header says of its pixels, also where elements are empty, given twice, gone or of the wrong kind.

Where one reading is possible it is taken, and an `ImageWarning` names the element; else an `ImageError` does. Values
are those of DICOM PS3.3 C.7.6.3; identifiers are never read.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raddraft.codestreams import Stream
from raddraft.gray import ImageError, warn

if TYPE_CHECKING:
    from pydicom import Dataset

SAMPLES = {
    "MONOCHROME1": 1,
    "MONOCHROME2": 1,
    "PALETTE COLOR": 1,
    "RGB": 3,
    "YBR_FULL": 3,
    "YBR_FULL_422": 3,
    "YBR_ICT": 3,
    "YBR_RCT": 3,
    "XYB": 3,  # of JPEG XL
}
"""Photometric interpretations -> samples per pixel."""
ALLOCATED = (1, 8, 16, 32, 64)


@dataclass
class Header:
    """A data set, read element by element."""

    path: Path
    dataset: Dataset
    states: dict[str, str] = field(default_factory=dict)
    """What elements were before they were settled."""

    def refuse(self, text: str) -> ImageError:
        """The error to raise, with the file's name."""
        return ImageError(f"{self.path}: {text}")

    def warn(self, text: str) -> None:
        """Give an `ImageWarning` with the file's name."""
        warn(self.path, text)

    def values(self, keyword: str) -> list[Any]:
        """The values of an element; none where it is not there, empty, or (with a warning) unreadable."""
        if keyword not in self.dataset:
            return []
        try:
            value = self.dataset[keyword].value
        except Exception as error:  # pydicom parses when it is asked, and raises what the parser raises
            self.warn(f"{name_of(keyword)} cannot be read ({type(error).__name__}); taken as empty")
            return []
        if isinstance(value, bytes):  # in a value representation of bytes, such as OW or UN
            little = self.dataset.original_encoding[1] is not False
            value = [int.from_bytes(value, "little" if little else "big")] if value else []
        several = [value] if isinstance(value, str) or not isinstance(value, Iterable) else value
        return [one for one in several if one is not None and str(one).strip() != ""]

    def items(self, keyword: str) -> list[Dataset]:
        """The items of a sequence; none where it is not there, empty or unreadable."""
        from pydicom import Dataset

        try:
            value = self.dataset[keyword].value if keyword in self.dataset else None
        except Exception as error:  # as in `values`
            self.warn(f"{name_of(keyword)} cannot be read ({type(error).__name__}); taken as empty")
            return []
        return [one for one in value if isinstance(one, Dataset)] if isinstance(value, Iterable) else []

    def numbers(self, keyword: str) -> list[float]:
        """The values of an element as numbers, as `values`."""
        values = self.values(keyword)
        try:
            return [float(one) for one in values]
        except (TypeError, ValueError):
            self.warn(f"{name_of(keyword)} is not a number; taken as empty")
            return []

    def text(self, keyword: str) -> str:
        """The first value of an element in capitals; "" where there is none."""
        return str(next(iter(self.values(keyword)), "")).strip().upper()

    def one(self, keyword: str) -> Any:
        """The only value of an element; None without one. Several equal ones earn a warning, others are refused."""
        values = self.values(keyword)
        if len(values) > 1:
            if any(one != values[0] for one in values):
                shown = ", ".join(map(str, values[:4]))
                raise self.refuse(f"{name_of(keyword)} has {len(values)} values ({shown}), and one is needed")
            self.warn(f"{name_of(keyword)} is given {len(values)} times, as {values[0]}; taken once")
        return values[0] if values else None

    def number(self, keyword: str) -> float | None:
        """As `one`, as a number."""
        value = self.one(keyword)
        try:
            return None if value is None else float(value)
        except (TypeError, ValueError):
            self.warn(f"{name_of(keyword)} is not a number; taken as empty")
            return None

    def integer(self, keyword: str) -> int | None:
        """As `number`, as an integer."""
        value = self.number(keyword)
        if value is not None and not value.is_integer():
            raise self.refuse(f"{name_of(keyword)} is {value:g}, and an integer is needed")
        return None if value is None else int(value)

    def settle(self, keyword: str, value: int) -> None:
        """Give an element one value, for pydicom's sake."""
        self.states[keyword] = self.state(keyword)
        if self.dataset.get(keyword) != value:
            self.dataset.pop(keyword, None)
            setattr(self.dataset, keyword, value)

    def suppose(self, keyword: str, value: Any, why: str) -> Any:
        """The value to go on with where an element has none, with a warning that says why this one."""
        self.warn(f"{name_of(keyword)} is {self.state(keyword)}; taken as {value}, {why}")
        return value

    def unknown(self, keyword: str, why: str) -> ImageError:
        """The error to raise where an element has no value and none can be supposed."""
        return self.refuse(f"{name_of(keyword)} is {self.state(keyword)}, and {why}")

    def state(self, keyword: str) -> str:
        """How an element has no usable value: missing, empty, unreadable, or the value itself, such as 0."""
        if keyword in self.states:
            return self.states[keyword]
        if keyword not in self.dataset:
            return "missing"
        try:
            value = self.dataset[keyword].value
            if value is None or value in ("", b"") or value == []:
                return "empty"
            return str(value) if isinstance(value, int | float) else "unusable"
        except Exception:  # as in `values`, which has named it
            return "unreadable"


@dataclass
class Layout:
    """How the pixels lie in the pixel data, DICOM PS3.3 C.7.6.3."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    allocated: int
    stored: int | None
    """Bits of a sample; None where the header does not say."""
    high: int | None
    """The highest of these bits, counted from 0."""
    signed: bool | None
    """None where the header does not say."""
    planar: int | None
    """Colors by plane (1) or by pixel (0); None where the header does not say, or no matter."""


def read_layout(header: Header, stream: Stream | None, length: int | None) -> Layout:
    """The layout that the header states, completed from the compressed stream or the length of uncompressed pixel data.

    Args:
        header: of the film.
        stream: what the compressed frame says of itself, if it is one.
        length: bytes of the pixel data, if these are not compressed.

    Raises:
        ImageError: an element has no value and several readings are possible, a value out of range, or elements that
            contradict each other or the stream.
    """
    frames = header.integer("NumberOfFrames")
    if "NumberOfFrames" in header.dataset and not frames:
        frames = header.suppose("NumberOfFrames", 1, "as a chest X-ray has")
    photometric, samples = _color(header, stream)
    rows, columns = header.integer("Rows"), header.integer("Columns")
    allocated = header.integer("BitsAllocated") or None
    stored, high = header.integer("BitsStored") or None, header.integer("HighBit")
    if rows is None or columns is None:
        cells = length * 8 // (allocated * samples * (frames or 1)) if length and allocated else None
        rows, columns = _sides(header, rows, columns, stream, cells)
    if allocated is None:
        allocated = _allocated(header, stream, length, rows * columns * samples * (frames or 1), stored, high)
    if allocated not in ALLOCATED:
        raise header.refuse(f"{name_of('BitsAllocated')} is {allocated}; known: {', '.join(map(str, ALLOCATED))}")
    if stored is None and high is not None and 0 < high < allocated:
        stored = header.suppose("BitsStored", high + 1, f"one more than {name_of('HighBit')}")
    elif stored is None and stream is not None:
        stored = header.suppose("BitsStored", stream.bits, f"as the {stream.kind} data say")
    if stored is not None and not 0 < stored <= allocated:
        raise header.refuse(
            f"{name_of('BitsStored')} is {stored}, and {name_of('BitsAllocated')} {allocated}: one is wrong"
        )
    if high is None and stored is not None:
        high = header.suppose("HighBit", stored - 1, f"one less than {name_of('BitsStored')}")
    representation = header.integer("PixelRepresentation")
    if representation not in (None, 0, 1):
        raise header.refuse(f"{name_of('PixelRepresentation')} is {representation}; it is 0 (unsigned) or 1 (signed)")
    signed = None if representation is None else bool(representation)
    layout = Layout(
        rows, columns, frames or 1, samples, photometric, allocated, stored, high, signed, _planar(header, samples)
    )
    if stream is not None:
        _compare(header, layout, stream)
    return layout


def _color(header: Header, stream: Stream | None) -> tuple[str, int]:
    """Photometric interpretation and samples per pixel."""
    stated = header.one("PhotometricInterpretation")
    photometric = "" if stated is None else " ".join(str(stated).upper().split())
    samples = header.integer("SamplesPerPixel")
    if stated is not None and photometric not in SAMPLES:
        raise header.refuse(f"{name_of('PhotometricInterpretation')} is {stated!r}; known: {', '.join(SAMPLES)}")
    if samples is None:
        if photometric:
            samples = header.suppose("SamplesPerPixel", SAMPLES[photometric], f"as {photometric} has")
        elif stream is not None:
            samples = header.suppose("SamplesPerPixel", stream.samples, f"as the {stream.kind} data say")
        else:
            samples = header.suppose("SamplesPerPixel", 1, "as a chest X-ray has")
    if not photometric:
        if samples != 1:
            raise header.unknown("PhotometricInterpretation", f"{samples} samples a pixel may be RGB or YBR")
        photometric = _supposed_photometric(header)
    if samples != SAMPLES[photometric]:
        raise header.refuse(
            f"{name_of('SamplesPerPixel')} is {samples}, and {name_of('PhotometricInterpretation')} "
            f"{photometric}, which has {SAMPLES[photometric]}"
        )
    return photometric, samples


def _supposed_photometric(header: Header) -> str:
    keyword = "PhotometricInterpretation"
    if header.values("RedPaletteColorLookupTableDescriptor"):
        return header.suppose(keyword, "PALETTE COLOR", "since there is a palette")
    shape = header.text("PresentationLUTShape")
    if shape in ("IDENTITY", "INVERSE"):
        reading = {"IDENTITY": "MONOCHROME2", "INVERSE": "MONOCHROME1"}[shape]
        return header.suppose(keyword, reading, f"as {name_of('PresentationLUTShape')} {shape} asks for")
    return header.suppose(keyword, "MONOCHROME2", "the usual one; the image may be inverted")


def _sides(
    header: Header, rows: int | None, columns: int | None, stream: Stream | None, cells: int | None
) -> tuple[int, int]:
    """Rows and columns, from the stream, or one from the other and the number of pixels."""
    if stream is not None:
        why = f"as the {stream.kind} data say"
        rows = header.suppose("Rows", stream.height, why) if rows is None else rows
        return rows, header.suppose("Columns", stream.width, why) if columns is None else columns
    why = "as the length of the pixel data asks for"
    if rows is None and columns and cells and cells % columns == 0:
        return header.suppose("Rows", cells // columns, why), columns
    if columns is None and rows and cells and cells % rows == 0:
        return rows, header.suppose("Columns", cells // rows, why)
    raise header.unknown("Rows" if rows is None else "Columns", "the length of the pixel data does not tell it")


def _allocated(
    header: Header, stream: Stream | None, length: int | None, cells: int, stored: int | None, high: int | None
) -> int:
    if length is not None:
        for bits in ALLOCATED[1:]:
            if cells and cells * bits // 8 <= length < cells * bits // 8 + 2:
                return header.suppose("BitsAllocated", bits, "as the length of the pixel data asks for")
    else:
        needed = stream.bits if stream is not None else stored or (high + 1 if high else None)
        if needed is not None:
            bits = next(bits for bits in ALLOCATED[1:] if bits >= needed)
            return header.suppose("BitsAllocated", bits, f"enough for {needed} bits")
    raise header.unknown("BitsAllocated", "the pixel data do not tell it")


def _planar(header: Header, samples: int) -> int | None:
    planar = header.integer("PlanarConfiguration") if samples > 1 else None
    if planar not in (None, 0, 1):
        raise header.refuse(f"{name_of('PlanarConfiguration')} is {planar}; it is 0 (by pixel) or 1 (by plane)")
    return planar


def _compare(header: Header, layout: Layout, stream: Stream) -> None:
    """Refuse a header that states another size or number of samples than the compressed data."""
    if (stream.width, stream.height) != (layout.columns, layout.rows) and stream.height:
        raise header.refuse(
            f"{name_of('Rows')} and {name_of('Columns')} are {layout.rows} and {layout.columns}, "
            f"and the {stream.kind} data hold {stream.height} rows and {stream.width} columns"
        )
    if stream.samples != layout.samples:
        raise header.refuse(
            f"{name_of('SamplesPerPixel')} is {layout.samples}, and the {stream.kind} data hold {stream.samples}"
        )


def name_of(keyword: str) -> str:
    """An element as the standard names it: 'High Bit (0028,0102)'."""
    from pydicom.datadict import dictionary_description, tag_for_keyword
    from pydicom.tag import Tag

    tag = Tag(tag_for_keyword(keyword) or 0)
    return f"{dictionary_description(tag)} ({tag.group:04X},{tag.element:04X})"
