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

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, get_args

import numpy as np
from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, ImageOps, JpegImagePlugin, PngImagePlugin
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION, PREFIXES, SAMPLEFORMAT, TiffImageFile

from raddraft.dicom import WHOLE, read_dicom, read_film, read_shown_size, read_sizes
from raddraft.errors import RadDraftError
from raddraft.gray import FEW_LEVELS, MIN_SIDE, ImageError, ImageWarning, check_levels, check_size, stretch, warn
from raddraft.studies import GrayMapping
from raddraft.whole_pictures import check_rows, check_sums

IMAGE_SUFFIXES = frozenset({".dcm", ".dicom", ".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"})
"""Lower-case suffixes to look for in a folder; `load_image` itself recognizes files by content."""

# Opened by their own classes: Image.open also applies Image.MAX_IMAGE_PIXELS, a global that only its owner may change.
OPENERS: tuple[tuple[tuple[bytes, ...], type[ImageFile.ImageFile]], ...] = (
    ((b"\xff\xd8\xff",), JpegImagePlugin.JpegImageFile),
    ((b"\x89PNG\r\n\x1a\n",), PngImagePlugin.PngImageFile),
    (tuple(PREFIXES), TiffImageFile),
    ((b"BM",), BmpImagePlugin.BmpImageFile),
    ((b"GIF8",), GifImagePlugin.GifImageFile),
)
ORIENTATION = 274  # of EXIF
MOST_PAGES = 100
# A DICOM file without preamble begins with group 0002 or 0008, in either byte order.
BARE_DICOM = (b"\x02\x00", b"\x08\x00", b"\x00\x02", b"\x00\x08")


def load_image(
    path: str | Path,
    gray_mapping: GrayMapping = "window",
    max_pixels: int = 100_000_000,
    data: bytes | None = None,
) -> Image.Image:
    """Read a chest X-ray file, recognized by its content, as it is meant to be displayed.

    DICOM: Modality LUT or rescale, VOI LUT or window, MONOCHROME1 inverted, pixel padding and what a display shutter
    hides black, pixels resampled to squares. Others: EXIF orientation; check sums of the format are checked.
    Warns (`ImageWarning`) about a DICOM file of another modality or body part, for processing, mirrored or turned,
    whose header is incomplete or contradicts itself or the pixels; about a mapping that leaves few gray levels or cuts
    most pixels to black or white; about an image that looks inverted.

    Args:
        path: the file.
        gray_mapping: how pixel values become 0..255: window, minmax or percentile, see the top of this module.
        max_pixels: a larger image is refused before it is decoded (TIFF: Pillow's Image.MAX_IMAGE_PIXELS applies too).
        data: content of the file, where it was read before; the file is then not opened.

    Returns:
        PIL image of mode L, [H, W], 0..255, without any of the file's metadata.

    Raises:
        ImageError: missing, empty, damaged or truncated file, not an image, several frames, a side under 8 pixels,
            more than `max_pixels`, all pixels equal, NaN or infinite values, no pixel data, a transfer syntax without a
            decoder, a header whose meaning cannot be told.
        RadDraftError: unknown gray mapping.
    """
    return _load(Path(path), gray_mapping, max_pixels, data)[1]


def load_gray(
    path: str | Path,
    gray_mapping: GrayMapping = "window",
    max_pixels: int = 100_000_000,
    data: bytes | None = None,
) -> np.ndarray:
    """Read a chest X-ray file as `load_image` does, with the same arguments and errors, at the full depth of the file.

    Returns:
        float32 [H, W], 0..1. Multiplied by 255 and rounded, the values of `load_image`.
    """
    return _load(Path(path), gray_mapping, max_pixels, data)[0].astype(np.float32) / 255


def load_film(path: str | Path, max_pixels: int = 100_000_000) -> tuple[np.ndarray, tuple[float, float]]:
    """Read a chest X-ray file for a viewer, which windows it; with the warnings and errors of `load_image`.

    Returns:
        float32 [H, W], 0..1, the whole range of the file's values, air dark; and the window to begin with, that of the
        file: the values to show black and white, which may lie outside 0..1.
    """
    path, window = Path(path), WHOLE
    if not _is_dicom(_read_head(path)):
        return load_gray(path, "window", max_pixels), window
    try:
        pixels, window = read_film(path, max_pixels)
    except (ImageError, ImageWarning):
        raise
    except Exception as error:  # as in `_load`
        raise _damaged(path, error) from error
    _warn_of_inverted(path, Image.fromarray(pixels.astype(np.uint8)))
    return pixels.astype(np.float32) / 255, window


def _load(path: Path, gray_mapping: GrayMapping, max_pixels: int, data: bytes | None) -> tuple[np.ndarray, Image.Image]:
    """Gray values [H, W] on the scale of 0..255, uint8 if the file holds them, else unrounded floats; and the image."""
    if gray_mapping not in get_args(GrayMapping):
        raise RadDraftError(f"Unknown mapping {gray_mapping!r}. Choices: {', '.join(get_args(GrayMapping))}")
    head = _read_head(path, data)
    opener = _opener(head)
    try:
        if _is_dicom(head):
            pixels = read_dicom(path, gray_mapping, max_pixels, data)
        elif opener is not None:
            pixels = _read_raster(path, opener, gray_mapping, max_pixels, data)
        else:
            raise ImageError(f"{path}: not an image (known: DICOM, PNG, JPEG, TIFF, BMP, GIF)")
        if pixels.ndim != 2:
            raise ImageError(f"{path}: the pixels decode to {pixels.shape}, and rows and columns are due")
        image = Image.fromarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8))
    except (ImageError, ImageWarning):  # the warning, where the caller turned it into an error
        raise
    except Exception as error:  # damaged bytes make decoders raise anything, from SyntaxError to struct.error
        raise _damaged(path, error) from error
    low, high = image.getextrema()
    if low == high:
        raise ImageError(f"{path}: all pixels have the same value, {low} after mapping {gray_mapping!r}")
    _warn_of_inverted(path, image)
    return pixels, image


def stored_size(path: str | Path) -> tuple[int, int] | None:
    """Height and width of a DICOM file before its pixels were made square; None of another file, or if not stated.

    Raises:
        ImageError: the file cannot be read.
    """
    path = Path(path)
    if not _is_dicom(_read_head(path)):
        return None
    try:
        return read_sizes(path)
    except (ImageError, ImageWarning):
        raise
    except Exception as error:  # as in `_load`
        raise _damaged(path, error) from error


def shown_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the image that `load_image` makes of a file, read from its header alone.

    Raises:
        ImageError: the header cannot be read, or states no size.
    """
    path = Path(path)
    head = _read_head(path)
    opener = _opener(head)
    try:
        if _is_dicom(head):
            size = read_shown_size(path)
        elif opener is not None:
            with open(path, "rb") as file, opener(file) as image:
                # Pillow turns the size of a TIFF as it opens it, of other files as it loads them.
                orientation = image.getexif().get(ORIENTATION)
                turned = orientation in (5, 6, 7, 8) and not isinstance(image, TiffImageFile)
                size = (image.width, image.height) if turned else (image.height, image.width)
        else:
            size = None
    except (ImageError, ImageWarning):
        raise
    except Exception as error:  # as in `_load`
        raise _damaged(path, error) from error
    if size is None:
        raise ImageError(f"{path}: the header states no size")
    return size


def is_dicom(path: str | Path, data: bytes | None = None) -> bool:
    """Whether a file, or its content, is DICOM by its first bytes; False where these cannot be read."""
    try:
        return _is_dicom(_read_head(Path(path), data))
    except ImageError:
        return False


def _damaged(path: Path, error: Exception) -> ImageError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return ImageError(f"{path}: truncated, damaged or of an unknown kind: {reason}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Where an image file is opened and read; a pipe or a device, whose end may never come, is not.

    Raises:
        ImageError: says why it cannot be read.
    """
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            raise ImageError(f"{path}: a pipe, a device or a socket, not a file")
        yield
    except OSError as error:
        raise ImageError(f"{path}: cannot be read: {error.strerror}") from error
    except ImageError:
        raise
    except ValueError:  # NUL, or half a surrogate pair
        raise ImageError(f"{str(path)!r}: no file can have this name") from None


def _opener(head: bytes) -> type[ImageFile.ImageFile] | None:
    return next((opener for prefixes, opener in OPENERS if head.startswith(prefixes)), None)


def _is_dicom(head: bytes) -> bool:
    return head[128:] == b"DICM" or (_opener(head) is None and head.startswith(BARE_DICOM))


def _open(path: Path, data: bytes | None) -> BinaryIO:
    return open(path, "rb") if data is None else io.BytesIO(data)


def _read_head(path: Path, data: bytes | None = None) -> bytes:
    """The first 132 bytes: enough to recognize every format."""
    with reading(path), _open(path, data) as file:
        head = file.read(132)
    if not head:
        raise ImageError(f"{path}: the file is empty (0 bytes)")
    return head


def _read_raster(
    path: Path, opener: type[ImageFile.ImageFile], gray_mapping: GrayMapping, max_pixels: int, data: bytes | None
) -> np.ndarray:
    """Read a file that Pillow knows, upright; see `_load`."""
    # A file object, not the path: from a path Pillow maps raw TIFFs into memory, and garbles rotated ones.
    with _open(path, data) as file, opener(file) as image:
        check_size(path, *image.size, _count_frames(path, image), max_pixels)
        with _open(path, data) as raw:
            check_sums(path, raw, image)
        # Pillow inverts WhiteIsZero TIFFs of up to 8 bits, but not deeper ones.
        negative = isinstance(image, TiffImageFile) and _check_tags(path, image) == 0
        deep = any(";16" in str(part[3]) for part in image.tile)  # 16 bits a channel
        image.load()
        with _open(path, data) as raw:
            check_rows(path, raw, image)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith(("I", "F")):
            # Not convert("L"), which clips at 255 and turns most of a 12-bit image white.
            values = np.asarray(image)
            pixels = stretch(path, values, gray_mapping)
            check_levels(path, values, pixels, f"mapping {gray_mapping!r}")
            return 255 - pixels if negative else pixels
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            black = Image.new("L", rgba.size)
            gray = Image.composite(rgba.convert("L"), black, rgba.getchannel("A"))
        else:
            gray = image.convert("L")
    if deep and (levels := len(gray.getcolors() or ())) <= FEW_LEVELS:
        warn(path, f"is read at 8 bits a channel, which leaves {levels} gray levels; save it as gray to keep all")
    return np.asarray(gray) if gray_mapping == "window" else stretch(path, np.asarray(gray), gray_mapping)


def _check_tags(path: Path, image: TiffImageFile) -> int:
    """The photometric interpretation of a TIFF; refuses one whose values Pillow would take for others."""
    tags = image.tag_v2
    if PHOTOMETRIC_INTERPRETATION not in tags:
        raise ImageError(f"{path}: the TIFF states no PhotometricInterpretation, so whether 0 is black cannot be told")
    if 2 in tags.get(SAMPLEFORMAT, ()) and min(tags.get(BITSPERSAMPLE, (1,))) <= 8:
        raise ImageError(f"{path}: a TIFF of signed values of 8 bits, which are not read; save it with 16, or unsigned")
    return tags[PHOTOMETRIC_INTERPRETATION]


def _count_frames(path: Path, image: ImageFile.ImageFile) -> int:
    """Frames of a picture; of a TIFF, whose pages Pillow would look up one by one, no more than `MOST_PAGES`."""
    if not isinstance(image, TiffImageFile):
        return getattr(image, "n_frames", 1)
    for page in range(1, MOST_PAGES + 1):
        try:
            image.seek(page)
        except EOFError:
            image.seek(0)
            return page
    raise ImageError(f"{path}: holds more than {MOST_PAGES} frames, and a chest X-ray has one")


def _warn_of_inverted(path: Path, image: Image.Image) -> None:
    if _looks_inverted(image):
        warn(path, "looks inverted (air bright, bone dark) or not upright; left as the file states it")


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
