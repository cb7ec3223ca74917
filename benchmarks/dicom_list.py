"""The cases of `python -m benchmarks.dicom_cases`: what is odd, what PS3.3 says, and why this project reads it so.

One file, for it is one list.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pydicom import DataElement

from benchmarks.dicom_films import (
    DEFLATED,
    DEFLATED_FRAME,
    DX_FOR_PROCESSING,
    ENCAPSULATED,
    IMPLICIT,
    JPEG_2000,
    JPEG_LOSSLESS,
    JPEG_LS,
    MISSING,
    RLE,
    Case,
    big_endian,
    bits_elsewhere,
    both,
    box,
    compressed,
    disk,
    float_pixels,
    forbidden,
    headless,
    levels,
    linear,
    modality,
    more_bytes,
    negative,
    only,
    padded,
    plain,
    rgb,
    shutter,
    signed_12,
    spoiled,
    stretched,
    two_frames,
    uncoded,
    voi,
    voi_signed,
    wide_integers,
    windowed,
    without_window,
)

TYPE_1 = "type 1: there, with one value"
UP_TO_65535 = DataElement("PixelPaddingRangeLimit", "US", 65535)

RECTANGLE: dict[str, Any] = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 16,
    "ShutterRightVerticalEdge": 70,
    "ShutterUpperHorizontalEdge": 21,
    "ShutterLowerHorizontalEdge": 80,
}
DISK: dict[str, Any] = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [50, 40], "RadiusOfCircularShutter": 30}


def follow(frame: bytes) -> bytes:
    """A frame and 4,096 bytes of padding."""
    return frame + bytes(4096)


def cut(frame: bytes) -> bytes:
    """The first three quarters of a frame, at an even length."""
    return frame[: len(frame) * 3 // 8 * 2]


LUTS = [
    Case("VOI LUT of 12 bits, all of them used", "C.11.2.1.1: 0 to 2^12 − 1 is black to white", only(voi)),
    Case(
        "VOI LUT, 16 bits stated, 12 or 14 used",
        "C.11.2.1.1: the range is that of the stated bits, so dark",
        {"12": partial(voi, stated=16), "14": partial(voi, top=2**14 - 1, stated=16)},
        "A vendor of CR writes such tables; viewers scale by the bits used (so does DCMTK with `+Mv`), and the letter "
        "leaves 16 or 64 gray levels.",
    ),
    Case(
        "VOI LUT, 10 bits stated, 12 used",
        "forbidden: entries are below 2^10",
        only(voi, stated=10),
        "Scaled by the bits used, as above; by the stated ones most of the film is white.",
    ),
    Case(
        "VOI LUT of 8 bits, two entries to a word",
        "C.11.2.1.1: how they are stored",
        only(voi, 8, 255, 8, packed=True),
    ),
    Case("VOI LUT of 65,536 entries", "C.11.2.1.1: the descriptor says 0", only(voi, 16, 65535, 16)),
    Case(
        "VOI LUT from −2048, after a rescale",
        "C.11.2.1.1: the first value is signed (SS) where rescaled values may be",
        {
            "explicit VR, SS": partial(voi_signed, "SS", -2048),
            "implicit VR": partial(voi_signed, "US", 63488, IMPLICIT),
            "explicit VR, US 63488": partial(voi_signed, "US", 63488),
        },
    ),
    Case("VOI LUT and window", "C.11.2: alternatives, none comes first", only(both)),
    Case("Modality LUT and window", "C.11.1: looked up, then windowed", only(modality)),
    Case(
        "Modality LUT of 8 bits",
        "C.11.1.1: two entries to a word",
        {"two": partial(modality, 8, 8, packed=True), "one": partial(modality, 8, 8)},
    ),
    Case(
        "Modality LUT of 12 bits",
        "C.11.1.1: 8 or 16 bits",
        only(lambda: replace(modality(stated=12), shown=None)),
        "Entries are numbers, whatever their width is said to be.",
    ),
    Case(
        "Modality LUT from −2048, signed pixels",
        "C.11.1.1: the first value is as signed as the pixels",
        {
            "explicit VR": partial(modality, first=-2048, vr="SS"),
            "implicit VR": partial(modality, first=63488, syntax=IMPLICIT),
        },
    ),
]
BITS = [
    Case(
        "12 bits, an overlay in the 4 above",
        "PS3.5 8.1.1: these bits are no part of the value",
        {
            "native": partial(bits_elsewhere, 0, 0xF000, overlay=12),
            "RLE": partial(bits_elsewhere, 0, 0xF000, syntax=RLE),
        },
    ),
    Case(
        "12 bits, High Bit 15, an overlay in the 4 below",
        "PS3.5 8.1.1: the value is bits 4 to 15 (no longer allowed)",
        {
            "native": partial(bits_elsewhere, 4, 0x000F, overlay=0),
            "RLE": partial(bits_elsewhere, 4, 0x000F, syntax=RLE),
        },
    ),
    Case(
        "12 bits, High Bit 13, all other bits set",
        "PS3.5 8.1.1: the value is bits 2 to 13 (no longer allowed)",
        only(bits_elsewhere, 2, 0xC003),
    ),
    Case(
        "12 signed bits in 16",
        "PS3.5 8.1.1: the 12 bits are the value",
        {"sign not extended": partial(signed_12, False), "extended": partial(signed_12, True)},
    ),
    Case(
        "High Bit 7, Bits Stored 12",
        "contradictory",
        only(forbidden, HighBit=7),
        "Twelve bits do not fit below bit 7; the lowest twelve are where nearly all films have them.",
    ),
    Case(
        "8 bits in 16, values 40 to 200, no window",
        "C.11.2: no VOI is the identity, 0 to 255 is black to white",
        only(without_window, 8, 40 / 255, 200 / 255),
    ),
]
PADDING = [
    Case(
        "−2000 stated as US 63536",
        "C.7.5.1.1.2: padding is not shown; SS for signed pixels",
        {
            "under a window": partial(padded, -2000, "US", 63536),
            "without": partial(padded, -2000, "US", 63536, window=False),
        },
        "Without a window the film's values fill the scale, and padding is none of them.",
    ),
    Case(
        "65535 stated as SS −1",
        "C.7.5.1.1.2: padding is not shown; US for unsigned pixels",
        {
            "under a window": partial(padded, 65535, "SS", -1),
            "without": partial(padded, 65535, "SS", -1, window=False),
        },
        "As above.",
    ),
    Case(
        "60000 to 65535 (range limit)",
        "C.7.5.1.1.2: the whole range is padding",
        only(padded, 62000, "US", 60000, PixelPaddingRangeLimit=UP_TO_65535),
    ),
]
HEADER = [
    Case(
        "Bits Allocated",
        TYPE_1,
        spoiled("BitsAllocated"),
        "The length of the pixel data tells it.",
    ),
    Case(
        "Bits Stored",
        TYPE_1,
        spoiled("BitsStored"),
        "One more than High Bit.",
    ),
    Case(
        "High Bit",
        TYPE_1,
        spoiled("HighBit"),
        "One less than Bits Stored.",
    ),
    Case(
        "Bits Stored and High Bit",
        TYPE_1,
        {
            "empty": partial(forbidden, BitsStored=None, HighBit=None),
            "missing": partial(forbidden, BitsStored=MISSING, HighBit=MISSING),
        },
        "As many bits as the values need.",
    ),
    Case(
        "Pixel Representation",
        TYPE_1,
        spoiled("PixelRepresentation"),
        "The values tell it: signed ones would jump from one end of the scale to the other.",
    ),
    Case(
        "Samples per Pixel",
        TYPE_1,
        spoiled("SamplesPerPixel"),
        "MONOCHROME2 has one.",
    ),
    Case(
        "Photometric Interpretation",
        TYPE_1,
        spoiled("PhotometricInterpretation"),
        "MONOCHROME2 is the usual one, unless Presentation LUT Shape or a palette says otherwise; the warning says "
        "that the film may be inverted.",
    ),
    Case(
        "Rows",
        TYPE_1,
        spoiled("Rows"),
        "The length of the pixel data and the columns tell it.",
    ),
    Case(
        "Columns",
        TYPE_1,
        spoiled("Columns"),
        "The length of the pixel data and the rows tell it.",
    ),
    Case(
        "Window Width, beside a Window Center",
        "type 1C: there, with a value",
        {"empty": partial(forbidden, window=(2048, None)), "missing": partial(forbidden, WindowWidth=MISSING)},
        "Half a window is none.",
    ),
    Case(
        "Window Center and Width",
        "type 1C: with a value",
        {"empty": partial(forbidden, window=(None, None))},
        "As if they were not there.",
    ),
    Case(
        "Rescale Slope, beside a Rescale Intercept",
        "type 1C: there, with a value",
        {
            "empty": partial(forbidden, RescaleIntercept=0, RescaleSlope=None),
            "missing": partial(forbidden, RescaleIntercept=0),
        },
        "1, as where there is no rescale.",
    ),
    Case(
        "Number of Frames",
        "not in this kind of film",
        {"empty": partial(forbidden, NumberOfFrames=None)},
        "A film has one.",
    ),
    Case(
        "VOI LUT Function",
        "type 1C: with a value",
        {"empty": partial(forbidden, VOILUTFunction=None)},
        "LINEAR, as where it is not there.",
    ),
]
LOOK = [
    Case(
        "MONOCHROME1, a window beside the middle",
        "C.7.6.3.1.2: the lowest value is white, after the window",
        {"unsigned": partial(negative, 1500, 2000), "signed": partial(negative, -500, 2000, signed=True)},
    ),
    Case(
        "MONOCHROME2 with Presentation LUT Shape INVERSE",
        "C.8.11.3: forbidden",
        only(forbidden, dx=True, PresentationLUTShape="INVERSE"),
        "Photometric Interpretation is what most readers go by (DCMTK goes by the shape); the warning says that the "
        "film may be inverted.",
    ),
    Case(
        "MONOCHROME1 with Presentation LUT Shape IDENTITY",
        "C.8.11.3: forbidden",
        only(lambda: replace(negative(2048, 4096, dx=True), shown=None)),
        "As above.",
    ),
    Case(
        "For processing",
        "C.8.11.1: not meant for display",
        {
            "by intent": partial(forbidden, dx=True, PresentationIntentType="FOR PROCESSING"),
            "by SOP class": partial(forbidden, SOPClassUID=DX_FOR_PROCESSING, Modality="DX"),
        },
        "Shown as far as its elements say how, with a warning that this is not the gray scale of a film to be read.",
    ),
]
GEOMETRY = [
    Case(
        "Pixels twice as high as wide",
        "C.7.6.3.1.7: the pixels have this ratio",
        {
            "Pixel Aspect Ratio": partial(stretched, PixelAspectRatio=[2, 1]),
            "Imager Pixel Spacing": partial(stretched, ImagerPixelSpacing=[0.4, 0.2]),
            "Pixel Spacing": partial(stretched, PixelSpacing=[0.4, 0.2]),
        },
    ),
    Case(
        "Imager Pixel Spacing of zero",
        "10.7.1.3: not zero",
        {"both": partial(forbidden, ImagerPixelSpacing=[0, 0]), "one": partial(forbidden, ImagerPixelSpacing=[0, 0.2])},
        "Zero states no ratio.",
    ),
    Case(
        "Patient Orientation mirrored or turned",
        "C.7.6.1.1.1: says where rows and columns lead; turns nothing",
        {
            "R\\F": partial(plain, PatientOrientation=["R", "F"]),
            "L\\H": partial(plain, PatientOrientation=["L", "H"]),
            "F\\L": partial(plain, PatientOrientation=["F", "L"]),
        },
    ),
    Case(
        "Display shutter, black",
        "C.7.6.11: Shutter Presentation Value outside",
        {
            "rectangular": partial(shutter, box(21, 80, 16, 70), **RECTANGLE),
            "circular": partial(shutter, disk(50, 40, 30), **DISK),
            "polygonal": partial(
                shutter,
                box(21, 80, 16, 70),
                ShutterShape="POLYGONAL",
                VerticesOfThePolygonalShutter=[21, 16, 21, 70, 80, 70, 80, 16],
            ),
            "two at once": partial(
                shutter,
                box(21, 80, 16, 70) & disk(50, 40, 30),
                **{**RECTANGLE, **DISK, "ShutterShape": ["RECTANGULAR", "CIRCULAR"]},
            ),
        },
    ),
    Case(
        "Display shutter, white",
        "C.7.6.11: Shutter Presentation Value outside",
        only(shutter, box(21, 80, 16, 70), 65535, **RECTANGLE),
        "What is outside is no part of the film, and black in every film, so that a model meets one kind of border.",
    ),
]
WINDOWS = [
    Case("LINEAR", "C.11.2.1.2.1", only(windowed, 1500, 2000, linear(1500, 2000), VOILUTFunction="LINEAR")),
    Case(
        "LINEAR_EXACT, narrow",
        "C.11.2.1.3.2",
        only(windowed, 100, 20, ((levels(8) - 100) / 20 + 0.5).clip(0, 1), 8, VOILUTFunction="LINEAR_EXACT"),
    ),
    Case(
        "SIGMOID",
        "C.11.2.1.3.1",
        only(windowed, 2000, 2000, 1 / (1 + np.exp(-4 * (levels(12) - 2000) / 2000)), VOILUTFunction="SIGMOID"),
    ),
    Case(
        "Width 1",
        "C.11.2.1.2.1: white from the center on",
        only(windowed, 2048, 1, (levels(12) > 2047.5).astype(float)),
    ),
    Case(
        "Width 0",
        "C.11.2.1.2: at least 1",
        only(windowed, 2048, 0, None),
        "As if there were no window.",
    ),
    Case(
        "Two windows",
        "C.11.2: alternatives, none comes first",
        only(windowed, [1500, 2500], [2000, 1000], linear(1500, 2000)),
    ),
    Case(
        "8 bits under a window of 12",
        "C.11.2.1.2.1: dark, 17 levels",
        only(windowed, 2048, 4096, linear(2048, 4096, 8), 8),
    ),
    Case(
        "12 bits, values 500 to 2500, no window",
        "C.11.2: no VOI is the identity, 0 to 4095 is black to white",
        only(without_window, 12, 500 / 4095, 2500 / 4095),
        "The film's own values fill the scale, so that its contrast does not depend on how much of the range a device "
        "leaves unused.",
    ),
]
SYNTAXES = [
    Case(
        "Other native syntaxes",
        "PS3.5 A.1, A.3, A.5",
        {
            "implicit VR": lambda: replace(plain(), syntax=IMPLICIT),
            "big endian": big_endian,
            "deflated": lambda: replace(plain(), syntax=DEFLATED),
        },
    ),
    Case(
        "No preamble, no file meta information",
        "PS3.10 7.1: not a DICOM file",
        only(lambda: replace(forbidden(), rewrite=headless)),
        "Archives hold such data sets, and their first bytes tell the encoding.",
    ),
    Case("Encapsulated Uncompressed", "PS3.5 A.4.11", only(uncoded, ENCAPSULATED)),
    Case("Deflated Image Frame", "PS3.5 A.4.13", only(uncoded, DEFLATED_FRAME)),
    Case("RLE", "PS3.5 A.4.2", only(lambda: compressed(plain(), RLE))),
    Case("JPEG 2000", "PS3.5 A.4.4", only(lambda: compressed(plain(), JPEG_2000))),
    Case("JPEG Lossless", "PS3.5 A.4.1", only(lambda: replace(plain(), encode=JPEG_LOSSLESS))),
    Case("JPEG-LS", "PS3.5 A.4.3", only(lambda: replace(plain(), encode=JPEG_LS))),
    Case(
        "A frame followed by 4,096 zero bytes",
        "beyond PS3.5, which pads to an even length",
        {
            "native": more_bytes,
            "Encapsulated Uncompressed": partial(uncoded, ENCAPSULATED, follow),
            "Deflated Image Frame": partial(uncoded, DEFLATED_FRAME, follow),
            "RLE": lambda: compressed(plain(), RLE, follow),
            "JPEG 2000": lambda: compressed(plain(), JPEG_2000, follow),
            "JPEG Lossless": lambda: replace(plain(), encode=JPEG_LOSSLESS, reframe=follow),
            "JPEG-LS": lambda: replace(plain(), encode=JPEG_LS, reframe=follow),
        },
    ),
    Case(
        "A frame without its last quarter",
        "no image",
        {
            "Deflated Image Frame": lambda: replace(uncoded(DEFLATED_FRAME, cut), shown=None),
            "RLE": lambda: replace(compressed(plain(), RLE, cut), shown=None),
            "JPEG 2000": lambda: replace(compressed(plain(), JPEG_2000, cut), shown=None),
            "JPEG Lossless": lambda: replace(forbidden(), encode=JPEG_LOSSLESS, reframe=cut),
            "JPEG-LS": lambda: replace(forbidden(), encode=JPEG_LS, reframe=cut),
        },
        "A part of a film is no film; decoders fill the rest with gray or black.",
    ),
]
KINDS = [
    Case(
        "RGB secondary capture of a gray film",
        "C.7.6.3.1.2",
        {"by pixel": partial(rgb, 0), "by plane": partial(rgb, 1)},
    ),
    Case(
        "Two frames",
        "legal in other kinds of images",
        only(two_frames),
        "A chest X-ray has one.",
    ),
    Case("32-bit integers", "legal in other kinds of images", only(wide_integers)),
    Case(
        "Float Pixel Data",
        "C.7.6.24: legal in other kinds of images",
        only(float_pixels),
        "No film has such pixels.",
    ),
]
GROUPS = {
    "Look-up tables": LUTS,
    "Bits": BITS,
    "Padding": PADDING,
    "Elements that are empty, missing or given twice": HEADER,
    "Polarity and intent": LOOK,
    "Geometry and shutters": GEOMETRY,
    "Windows": WINDOWS,
    "Transfer syntaxes": SYNTAXES,
    "Other kinds of pixel data": KINDS,
}
