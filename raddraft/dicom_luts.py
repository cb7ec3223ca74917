"""From stored values to display: Modality LUT or rescale, then VOI LUT or window. DICOM PS3.3 C.11.1 and C.11.2.

Own look-ups, not pydicom's `apply_modality_lut` and `apply_voi_lut`: version 3.0.2 indexes in the type of the entries,
refuses entries of 12 bits and 8-bit ones packed two to the word, takes the first value mapped as it comes, and scales
by elements that LUTs need not agree with.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from raddraft.dicom_header import Header, Layout, name_of

if TYPE_CHECKING:
    from pydicom import Dataset

FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


@dataclass(frozen=True)
class Lut:
    """A look-up table: entry i belongs to the value `first` + i; values beyond either end have the entry there."""

    first: int
    entries: np.ndarray
    """int64 [n], unsigned values."""
    bits: int
    """Of an entry, as the descriptor states."""

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entries, int64 [H, W], of values [H, W]."""
        index = values if values.dtype.kind in "iu" else np.rint(values)
        return self.entries[np.subtract(index, self.first).clip(0, len(self.entries) - 1).astype(np.int64)]


def read_lut(header: Header, item: Dataset, name: str, low: float, high: float) -> Lut | None:
    """A Modality or VOI LUT, C.11.1.1 and C.11.2.1.1; None, with a warning, where its elements are unusable.

    Args:
        header: of the film.
        item: of the sequence.
        name: of the LUT, for messages.
        low, high: the values that may be looked up. Where these may be negative, the first value mapped is signed.
    """
    part = Header(header.path, item)
    descriptor = part.numbers("LUTDescriptor")
    words = _words(header, part)
    if len(descriptor) != 3 or words.size == 0:
        keyword = "LUTDescriptor" if len(descriptor) != 3 else "LUTData"
        header.warn(f"{name} without a usable {name_of(keyword)}; left out")
        return None
    # US or SS, whatever the writer or the reader made of it; 65,536 entries are written as 0.
    count, first, bits = (int(one) & 0xFFFF for one in descriptor)
    count = count or 65536
    if first >= 32768 and (low < 0 or first > high):
        first -= 65536
    if bits <= 8 and len(words) == (count + 1) // 2 < count:  # two to the word, the lower byte first
        entries = words.astype("<u2").view(np.uint8)[:count]
    else:
        entries = words[:count]
    if len(entries) < count:
        header.warn(f"{name} has {len(entries):,} entries, {name_of('LUTDescriptor')} says {count:,}")
    return Lut(first, entries.astype(np.int64), bits)


def _words(header: Header, part: Header) -> np.ndarray:
    """LUT Data as uint16 [n], which come as numbers (US), or as bytes (OW) in the order of the file."""
    if "LUTData" not in part.dataset:
        return np.empty(0, np.uint16)
    try:
        value = part.dataset["LUTData"].value
    except Exception:  # its value representation depends on the descriptor, which may be gone
        return np.empty(0, np.uint16)
    if isinstance(value, bytes):
        little = header.dataset.original_encoding[1] is not False
        return np.frombuffer(value + b"\0" * (len(value) % 2), "<u2" if little else ">u2")
    return (np.atleast_1d(np.array([] if value is None else value, np.int64)) & 0xFFFF).astype(np.uint16)


def modality_values(header: Header, layout: Layout, stored: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Stored values [H, W] through the Modality LUT, or else the rescale; with the lowest and highest possible value.

    Raises:
        ImageError: a Modality LUT without its table, for what the values mean is lost with it.
    """
    assert layout.stored is not None
    half = 2 ** (layout.stored - 1)
    low, high = (-half, half - 1) if layout.signed else (0, 2 * half - 1)
    for item in header.items("ModalityLUTSequence")[:1]:
        lut = read_lut(header, item, "Modality LUT", low, high)
        if lut is None:
            raise header.refuse("Modality LUT without a usable table: what the pixels mean cannot be told")
        return lut.look_up(stored), 0, int(lut.entries.max())
    slope, intercept = _rescale(header)
    if (slope, intercept) == (1, 0):
        return stored, low, high
    ends = slope * low + intercept, slope * high + intercept
    return stored * slope + intercept, min(ends), max(ends)


def _rescale(header: Header) -> tuple[float, float]:
    """Slope and intercept, with a warning where one has no usable value and both should have one."""
    if "RescaleSlope" not in header.dataset and "RescaleIntercept" not in header.dataset:
        return 1, 0
    slope, intercept = header.number("RescaleSlope"), header.number("RescaleIntercept")
    if not slope or not math.isfinite(slope):
        slope = header.suppose("RescaleSlope", 1.0, "as without a rescale")
    if intercept is None or not math.isfinite(intercept):
        intercept = header.suppose("RescaleIntercept", 0.0, "as without a rescale")
    return slope, intercept


def display_values(header: Header, values: np.ndarray, low: float, high: float) -> tuple[np.ndarray, str] | None:
    """Modality values [H, W] through the file's first usable VOI LUT, else its first window.

    Args:
        header: of the film.
        values: [H, W].
        low, high: the lowest and highest value that the film may have.

    Returns:
        float64 [H, W], 0..1, and what was applied, for messages; None without either.
    """
    for item in header.items("VOILUTSequence"):
        lut = read_lut(header, item, "VOI LUT", low, high)
        if lut is None:
            continue
        used = max(1, int(lut.entries.max()).bit_length())
        if used != lut.bits:
            header.warn(f"VOI LUT states entries of {lut.bits} bits and has entries of {used}; scaled by {used}")
        return lut.look_up(values) / (2**used - 1), "the VOI LUT"
    window = _window(header)
    if window is None:
        return None
    center, width, function = window
    what = f"the window (center {center:g}, width {width:g})"
    if function == "SIGMOID":  # = 1 / (1 + exp(-4 (x - c) / w)), without overflow
        return (1 + np.tanh(2 * (values - center) / width)) / 2, what
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64), what
    scaled = np.subtract(values, center, dtype=np.float64)
    scaled /= width
    scaled += 0.5
    return scaled.clip(0, 1, out=scaled), what


def _window(header: Header) -> tuple[float, float, str] | None:
    """Center, width and function of the first window; None, with a warning where elements are there, without one."""
    names = ("WindowCenter", "WindowWidth")
    if not any(name in header.dataset for name in names):
        return None
    centers, widths = (header.numbers(name) for name in names)
    if not centers or not widths:
        keyword = names[bool(centers)]
        header.warn(f"{name_of(keyword)} is {header.state(keyword)}; mapped as if no window were stated")
        return None
    center, width, function = centers[0], widths[0], header.text("VOILUTFunction") or "LINEAR"
    if function not in FUNCTIONS:
        header.warn(f"{name_of('VOILUTFunction')} {function!r} is none of {', '.join(FUNCTIONS)}; taken as LINEAR")
        function = "LINEAR"
    if not math.isfinite(center):
        header.warn(f"window center {center:g} is not usable; mapped as if no window were stated")
        return None
    if not math.isfinite(width) or (width < 1 if function == "LINEAR" else width <= 0):
        header.warn(f"window width {width:g} is not usable; mapped as if no window were stated")
        return None
    return center, width, function
