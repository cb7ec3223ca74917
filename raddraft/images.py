"""Any chest X-ray file -> one grayscale image: DICOM, PNG, JPEG, TIFF, BMP.

    image = load_image("x.dcm")             # PIL image, mode L (8 bits), air dark, bone bright
    values = load_gray("x.dcm")             # the same before it is cut to 8 bits: float32 [H, W], 0..1

The full bit depth of the file goes through one of three mappings:

window      the DICOM window or VOI LUT; without one, 8-bit values stay as they are and deeper ones are mapped as
            by minmax
minmax      darkest pixel to 0, brightest to 255, as RAD-DINO's training images were prepared
percentile  the same between percentiles 0.5 and 99.5, so that a marker or a dead pixel cannot take up the scale

Files with color or transparency are read at 8 bits a channel, as Pillow reads them; transparent means black.
What cannot be a chest X-ray raises `ImageError`; what looks wrong but may be one, an `ImageWarning`.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, PREFIXES, TiffImageFile

from raddraft.errors import RadDraftError
from raddraft.studies import GrayMapping

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

IMAGE_SUFFIXES = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
"""Lower-case suffixes to look for in a folder; `load_image` itself recognizes files by content."""

PERCENTILES = (0.5, 99.5)
MIN_SIDE = 8
"""Pixels. ChestMNIST's 28 x 28 are the smallest chest X-rays in circulation, so less than this is an accident."""

CHEST_MODALITIES = {"CR", "DX", "RG"}  # RG, radiographic imaging, is what film scanners write
CHEST_WORDS = ("CHEST", "THORAX", "TORAX", "LUNG", "CXR")  # also inside e.g. CHESTABDOMEN or PORT CHEST

# Opened by their own classes: Image.open also applies Image.MAX_IMAGE_PIXELS, a global that only its owner may change.
OPENERS: tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    (tuple(PREFIXES), TiffImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"GIF8",), GifImagePlugin.GifImageFile),
)
# A DICOM file without preamble begins with group 0002 or 0008, in either byte order.
BARE_DICOM = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


class ImageError(RadDraftError):
    """The file is not a usable chest X-ray; the message names the file and the reason."""


class ImageWarning(UserWarning):
    """The image was read, but something about it looks wrong; the message names the file."""


def load_image(path: str | Path, gray_mapping: GrayMapping = "window", max_pixels: int = 100_000_000) -> Image.Image:
    """Read a chest X-ray file, recognized by its content, as it is meant to be displayed.

    DICOM: modality LUT, VOI LUT or window, MONOCHROME1 inverted, pixel padding black. Others: EXIF orientation.
    Warns (`ImageWarning`) about a DICOM file of another modality or body part, and about an image that looks inverted;
    neither is changed.

    Args:
        path: the file.
        gray_mapping: how pixel values become 0..255: window, minmax or percentile, see the top of this module.
        max_pixels: a larger image is refused before it is decoded (TIFF: Pillow's Image.MAX_IMAGE_PIXELS applies too).

    Returns:
        PIL image of mode L, [H, W], 0..255, without any of the file's metadata.

    Raises:
        ImageError: missing, empty or truncated file, not an image, several frames, a side under 8 pixels, more than
            `max_pixels`, all pixels equal, NaN or infinite values, no pixel data.
        RadDraftError: unknown gray mapping.
    """
    return Image.fromarray(_load(Path(path), gray_mapping, max_pixels, deep=False))


def load_gray(path: str | Path, gray_mapping: GrayMapping = "window", max_pixels: int = 100_000_000) -> np.ndarray:
    """Read a chest X-ray file as `load_image` does, with the same arguments and errors, at the full depth of the file.

    Returns:
        float32 [H, W], 0..1. Multiplied by 255 and rounded, the values of `load_image`.
    """
    return _load(Path(path), gray_mapping, max_pixels, deep=True).astype(np.float32) / 255


def _load(path: Path, gray_mapping: GrayMapping, max_pixels: int, deep: bool) -> np.ndarray:
    """Gray values [H, W] on the scale of 0..255: uint8, or where `deep`, unrounded float32 if the file is deeper."""
    if gray_mapping not in get_args(GrayMapping):
        raise RadDraftError(f"Unknown mapping {gray_mapping!r}. Choices: {', '.join(get_args(GrayMapping))}")
    head = _read_head(path)
    opener = next((opener for prefixes, opener in OPENERS if head.startswith(prefixes)), None)
    try:
        if head[128:] == b"DICM" or (opener is None and head.startswith(BARE_DICOM)):
            pixels = _read_dicom(path, gray_mapping, max_pixels, deep)
        elif opener is not None:
            pixels = _read_raster(path, opener, gray_mapping, max_pixels, deep)
        else:
            raise ImageError(f"{path}: not an image (known: DICOM, PNG, JPEG, TIFF, BMP, GIF)")
    except (ImageError, ImageWarning):  # the warning, where the caller turned it into an error
        raise
    except Exception as error:  # damaged bytes make decoders raise anything, from SyntaxError to struct.error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"{path}: truncated, damaged or of an unknown kind: {reason}") from error
    image = Image.fromarray(pixels if pixels.dtype == np.uint8 else _levels(pixels, deep=False))
    low, high = image.getextrema()
    if low == high:
        raise ImageError(f"{path}: all pixels have the same value, {low} after mapping {gray_mapping!r}")
    if _looks_inverted(image):
        _warn(path, "looks inverted (air bright, bone dark) or not upright; left as the file states it")
    return pixels


def _read_head(path: Path) -> bytes:
    """The first 132 bytes: enough to recognize every format."""
    try:
        with open(path, "rb") as file:
            head = file.read(132)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    if not head:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    return head


def _check_size(path: Path, width: int, height: int, frames: int, max_pixels: int) -> None:
    if frames > 1:
        raise ImageError(f"{path}: holds {frames} frames, and a chest X-ray has one")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} = {width * height:,} pixels, more than max_pixels = {max_pixels:,}; "
            "raise max_pixels to read it"
        )


def _read_raster(
    path: Path, opener: type[ImageFile.ImageFile], gray_mapping: GrayMapping, max_pixels: int, deep: bool
) -> np.ndarray:
    """Read a file that Pillow knows, upright; see `_load`."""
    # A file object, not the path: from a path Pillow maps raw TIFFs into memory, and garbles rotated ones.
    with open(path, "rb") as file, opener(file) as image:
        _check_size(path, *image.size, getattr(image, "n_frames", 1), max_pixels)
        # Pillow inverts WhiteIsZero TIFFs of up to 8 bits, but not deeper ones.
        negative = isinstance(image, TiffImageFile) and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")):
            # Not convert("L"), which clips at 255 and turns most of a 12-bit image white.
            pixels = _stretch(path, np.asarray(image), gray_mapping, deep)
            return 255 - pixels if negative else pixels
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            black = Image.new("L", rgba.size)
            gray = Image.composite(rgba.convert("L"), black, rgba.getchannel("A"))
        else:
            gray = image.convert("L")
    return np.asarray(gray) if gray_mapping == "window" else _stretch(path, np.asarray(gray), gray_mapping, deep)


def _levels(values: np.ndarray, deep: bool) -> np.ndarray:
    """Values on the scale of 0..255 as float32 where `deep`, else rounded to uint8."""
    return values.astype(np.float32) if deep else np.rint(values).astype(np.uint8)


def _stretch(
    path: Path, values: np.ndarray, gray_mapping: GrayMapping, deep: bool, hidden: np.ndarray | None = None
) -> np.ndarray:
    """Map values [H, W] of any type linearly to `_levels` between their extremes or percentiles.

    Pixels where `hidden` [H, W] is true are left out of the range.
    """
    shown = values if hidden is None else values[~hidden]
    if not np.isfinite(shown).all():
        raise ImageError(f"{path}: holds NaN or infinite pixel values")
    if shown.size == 0:
        raise ImageError(f"{path}: all pixels are padding")
    low, high = np.percentile(shown, PERCENTILES) if gray_mapping == "percentile" else (shown.min(), shown.max())
    if low == high:
        where = f" between percentiles {PERCENTILES[0]} and {PERCENTILES[1]}" if gray_mapping == "percentile" else ""
        raise ImageError(f"{path}: all pixels{where} have the same value, {low}")
    scaled = (values.astype(np.float64) - float(low)) * 255 / (float(high) - float(low))
    return _levels(scaled.clip(0, 255), deep)


def _read_dicom(path: Path, gray_mapping: GrayMapping, max_pixels: int, deep: bool) -> np.ndarray:
    """Read a DICOM file, air dark, see `_load`."""
    from pydicom import dcmread
    from pydicom.pixels import apply_modality_lut, pixel_array

    dataset = dcmread(path, force=True)
    if "PixelData" not in dataset:
        # pydicom gives an empty or partial data set, without an error, where the file ends early
        raise ImageError(f"{path}: no pixel data: a truncated DICOM file, or one that holds no image")
    frames = int(dataset.get("NumberOfFrames") or 1)
    _check_size(path, dataset.get("Columns") or 0, dataset.get("Rows") or 0, frames, max_pixels)
    _warn_unless_chest(path, dataset)
    if "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta.TransferSyntaxUID = _bare_transfer_syntax(dataset)
    _check_jpeg_end(path, dataset)
    stored = pixel_array(dataset)  # [H, W], or [H, W, 3] with YBR already turned into RGB
    photometric = dataset.PhotometricInterpretation
    if not photometric.startswith("MONOCHROME"):
        return _gray_from_color(path, dataset, stored, gray_mapping, deep)
    padding = _padding(dataset, stored)
    # Wider integers than stored: pydicom clips the index into a look-up table in the array's own type.
    values = apply_modality_lut(stored.astype(np.int64), dataset)
    display = _apply_window(path, dataset, values) if gray_mapping == "window" else None
    if display is not None:
        pixels = _levels(display * 255, deep)
    elif gray_mapping == "window" and dataset.BitsStored == 8 and stored.dtype == np.uint8 and (values == stored).all():
        pixels = stored.copy()
    else:
        pixels = _stretch(path, values, gray_mapping, deep, padding)
    if photometric == "MONOCHROME1":
        pixels = 255 - pixels
    if padding is not None:
        pixels[padding] = 0
    return pixels


def _warn_unless_chest(path: Path, dataset: Dataset) -> None:
    modality = dataset.get("Modality")
    if modality and modality not in CHEST_MODALITIES:
        _warn(path, f"modality {modality!r} is not one of {', '.join(sorted(CHEST_MODALITIES))}")
    part = dataset.get("BodyPartExamined")
    if part and not any(word in str(part).upper() for word in CHEST_WORDS):
        _warn(path, f"body part {part!r} is not the chest")


def _bare_transfer_syntax(dataset: Dataset) -> UID:
    """The transfer syntax of a file that lacks the header which states it."""
    from pydicom import uid

    implicit, little = dataset.original_encoding
    if implicit:
        return uid.ImplicitVRLittleEndian
    return uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian


def _check_jpeg_end(path: Path, dataset: Dataset) -> None:
    """Refuse JPEG and JPEG-LS data without an end marker: the decoder would leave the rest of the image gray."""
    from pydicom.uid import JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

    # Behind the marker there may be padding.
    jpeg = dataset.file_meta.TransferSyntaxUID in JPEGTransferSyntaxes + JPEGLSTransferSyntaxes
    if jpeg and b"\xff\xd9" not in dataset.PixelData[-1024:]:
        raise ImageError(f"{path}: truncated: the JPEG data in it has no end marker")


def _gray_from_color(
    path: Path, dataset: Dataset, stored: np.ndarray, gray_mapping: GrayMapping, deep: bool
) -> np.ndarray:
    """RGB [H, W, 3], or palette indices [H, W], to [H, W] by ITU-R 601 luma, as Pillow does it; see `_load`."""
    from pydicom.pixels import apply_color_lut

    color = apply_color_lut(stored, dataset) if dataset.PhotometricInterpretation == "PALETTE COLOR" else stored
    luma = color[..., :3] @ np.array([0.299, 0.587, 0.114])
    if gray_mapping == "window" and color.dtype == np.uint8:
        return np.rint(luma).astype(np.uint8)
    return _stretch(path, luma, gray_mapping, deep)


def _padding(dataset: Dataset, stored: np.ndarray) -> np.ndarray | None:
    """Where stored values [H, W] are pixel padding: outside the exposed field, so no part of the gray scale."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


def _apply_window(path: Path, dataset: Dataset, values: np.ndarray) -> np.ndarray | None:
    """Modality values [H, W] through the file's first VOI LUT, else its first window, to 0..1; None without either.

    DICOM PS3.3 C.11.2. Not pydicom's apply_voi_lut: that one wraps around in LUTs of 8-bit output with more than 256
    entries, and its output range follows from tags that windows and LUTs need not agree with.
    """
    if dataset.get("VOILUTSequence"):
        return _look_up(dataset, dataset.VOILUTSequence[0], values)
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is None or width is None:
        return None
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if width < 1 if function == "LINEAR" else width <= 0:
        _warn(path, f"window width {width:g} is not usable; mapped as if no window were stated")
        return None
    if function == "SIGMOID":
        return (1 + np.tanh(2 * (values - center) / width)) / 2  # = 1 / (1 + exp(-4 (x - c) / w)), without overflow
    if function == "LINEAR":
        center, width = center - 0.5, width - 1
    if width == 0:
        return (values > center).astype(np.float64)
    return ((values - center) / width + 0.5).clip(0, 1)


def _look_up(dataset: Dataset, item: Dataset, values: np.ndarray) -> np.ndarray:
    """Values [H, W] through a VOI LUT, as a share of its stated output range, 0..1."""
    entries, first, bits = item.LUTDescriptor
    table = item.LUTData
    if isinstance(table, bytes):
        packed = len(table) == entries  # 8-bit entries may come one or two to the 16-bit word
        table = np.frombuffer(table, np.uint8 if packed else "<u2" if dataset.original_encoding[1] else ">u2")
    table = np.asarray(table, np.float64) / (2**bits - 1)
    return table[np.rint(values - first).clip(0, len(table) - 1).astype(np.int64)].clip(0, 1)


def _first(value: Any) -> float | None:
    """The first of one or more numbers; None for an element that is missing or empty."""
    numbers = np.atleast_1d([] if value is None or value == "" else value)
    return float(numbers[0]) if numbers.size else None


def _looks_inverted(image: Image.Image) -> bool:
    """Whether a image of mode L looks like the negative of a chest X-ray.

    The midline is brighter than the sides, and the abdomen brighter than the neck and the air beside it, so the
    image should correlate with brightness = distance from the top x nearness to the midline. That takes no lung
    segmentation and holds for most laterals too. Of 1,946 frontal images of four sources it took 1 for a negative,
    of their negatives it missed 4. A sparse sample of the pixels does as well as averaging, and costs nothing.
    """
    small = np.asarray(image.resize((32, 32), Image.Resampling.NEAREST), np.float64)
    # Rows and columns of one shade are a frame around the image; a white one would pass for air.
    small = small[np.ptp(small, axis=1) > 8][:, np.ptp(small, axis=0) > 8]
    if min(small.shape) < MIN_SIDE:
        return False
    height, width = small.shape
    expected = np.outer(np.linspace(0, 1, height), 1 - np.abs(np.linspace(-1, 1, width)))
    small, expected = small - small.mean(), expected - expected.mean()
    return bool((small * expected).sum() < -0.1 * np.linalg.norm(small) * np.linalg.norm(expected))


def _warn(path: Path, text: str) -> None:
    warnings.warn(f"{path}: {text}", ImageWarning, stacklevel=3)
