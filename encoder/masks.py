"""Masks of structures: published formats -> bool [H, W] -> PNG beside the manifest -> the input grid of a tower.

    mask = decode_runs("387620 23 996 33", (1024, 1024), "relative")     # SIIM-ACR, CANDID-PTX
    write_mask("masks/x.png", mask)
    seen = prepare_mask(mask, processor_geometry(tower.processor, mask.shape))   # as the tower sees the image

Sizes are (height, width) everywhere.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.images import ImageError, stored_size
from raddraft.whole_pictures import check_rows, check_sums

LOSSLESS = ("PNG", "GIF", "TIFF", "BMP")  # JPEG would leave specks around every border
SUBPIXELS = 4
"""Polygons between pixel edges are drawn this much larger, then read at the pixel centers."""
STILL = ("ToTensor", "MaybeToTensor", "MaybePILToTensor", "Normalize")
"""Steps of timm's eval transforms that do not move pixels."""


class MaskError(RadDraftError):
    """A mask cannot be read or does not fit its image."""


def load_mask(
    path: str | Path,
    size: tuple[int, int] | None = None,
    labels: Collection[int] | None = None,
    image_path: str | Path | None = None,
) -> np.ndarray:
    """A mask from a lossless image file: what is not black belongs to the structure, transparency is ignored.

    Args:
        path: the file.
        size: of the image that the mask belongs to; not checked if None.
        labels: the pixel values (of a palette: its indices) that belong to the structure.
        image_path: of this image; a mask drawn on the pixels that a DICOM file stores, before they were made square, is
            brought to `size` with them (nearest neighbor).

    Returns:
        bool [H, W].

    Raises:
        MaskError: no such file, not lossless, several bands where labels are given, another size than its image.
        ImageError: the image cannot be read.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise MaskError(f"{path}: the mask is no file" if os.path.exists(path) else f"{path}: the mask does not exist")
    try:
        with Image.open(path, formats=LOSSLESS) as image:
            with open(path, "rb") as file:
                check_sums(path, file, image)
                image.load()
                check_rows(path, file, image)
            # Without labels a palette counts by its colors: the first one need not be black.
            loaded = image.convert("RGB") if labels is None and image.mode in ("P", "PA") else image
            values, bands = np.asarray(loaded), loaded.getbands()
    except UnidentifiedImageError:
        raise MaskError(f"{path}: a mask must be a lossless image ({', '.join(LOSSLESS)})") from None
    except ImageError as error:
        raise MaskError(str(error)) from None
    except Exception as error:  # broken bytes make the decoders raise anything
        raise MaskError(f"{path}: truncated or broken: {error}") from error
    if labels is not None and len(bands) > 1:
        raise MaskError(f"{path}: a label image has one value per pixel, this one has {', '.join(bands)}")
    if len(bands) > 1:
        values = np.asarray(values[..., : len(bands) - (bands[-1] == "A")].any(-1))
    mask = np.asarray(values != 0) if labels is None else np.isin(values, list(labels))
    if size is not None and mask.shape != tuple(size):
        if image_path is not None and mask.shape == stored_size(image_path):
            return _resize(mask, size)
        raise MaskError(
            f"{path}: the mask has {mask.shape[1]} x {mask.shape[0]} pixels, its image {size[1]} x {size[0]}"
        )
    return mask


def write_mask(path: str | Path, mask: np.ndarray) -> None:
    """Write a mask [H, W] as PNG with 0 and 255, whole or not at all."""
    with write_whole(path, sync=False) as temporary:
        Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).save(temporary, format="PNG")


def decode_runs(text: str, size: tuple[int, int], offsets: Literal["relative", "absolute"]) -> np.ndarray:
    """One run-length text to bool [H, W]. Pixels are counted down the columns, then from left to right.

    Args:
        text: pairs of start and length; an empty text or -1 is an empty mask.
        size: of the image.
        offsets: relative: starts are counted from the end of the previous run, the first from 0 (`rle2mask` in the
            mask_functions.py of the SIIM-ACR Pneumothorax challenge, and CANDID-PTX); absolute: from the first pixel,
            which is 1 (Kaggle's other challenges).

    Raises:
        MaskError: not integers, a start without a length, a length below 1, a run outside of the image.
    """
    try:
        numbers = np.array(text.split(), dtype=np.int64)
    except (ValueError, OverflowError):
        raise MaskError(f"Run lengths must be integers, got {_short(text)}") from None
    if numbers.size == 0 or numbers.tolist() == [-1]:
        return np.zeros(size, bool)
    if numbers.size % 2:
        raise MaskError(f"Run lengths come in pairs, got {numbers.size} numbers: {_short(text)}")
    starts, lengths = numbers[0::2], numbers[1::2]
    starts = np.cumsum(starts + lengths) - lengths if offsets == "relative" else starts - 1
    if lengths.min() < 1 or starts.min() < 0 or (starts + lengths).max() > math.prod(size):
        raise MaskError(
            f"Run lengths ({offsets}) leave an image of {size[1]} x {size[0]} pixels, or have a length below 1: "
            f"{_short(text)}"
        )
    steps = np.zeros(math.prod(size) + 1, np.int64)
    np.add.at(steps, starts, 1)
    np.add.at(steps, starts + lengths, -1)
    return (np.cumsum(steps)[:-1] > 0).reshape(size, order="F")


@dataclass(frozen=True)
class CocoRuns:
    """COCO's run lengths, and the grid on which they count. Made by `coco_runs`."""

    size: tuple[int, int]
    counts: tuple[int, ...]  # pixels outside, inside, outside …, down the columns, then from left to right


def coco_runs(value: Any) -> CocoRuns:
    """COCO's run lengths: {"size": [height, width], "counts": …}, counts as a list or as pycocotools' text.

    The text has 5 bits of a number in a character (its code - 48), the lowest first, 32 where more follow, and the sign
    in the last one; from the fourth number on it is the difference from the last but one (maskApi.c of cocoapi).

    Raises:
        MaskError: another form, or counts that do not add up to the size.
    """
    try:
        height, width = map(int, value["size"])
        found = value["counts"]
        counts = _unpack_counts(found.encode("ascii")) if isinstance(found, str) else [int(count) for count in found]
    except (TypeError, KeyError, ValueError, IndexError):
        raise MaskError(f"COCO's run lengths have a size [height, width] and counts, got {_short(value)}") from None
    if min(counts, default=0) < 0 or sum(counts) != height * width:
        raise MaskError(f"COCO's run lengths do not fill their {width} x {height} pixels: {_short(value)}")
    return CocoRuns((height, width), tuple(counts))


def _unpack_counts(text: bytes) -> list[int]:
    counts: list[int] = []
    value = shift = 0
    for code in text:
        bits = code - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits & 16) << shift - 4  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    if shift:
        raise ValueError("the last number is cut")
    return counts


def decode_coco(runs: CocoRuns) -> np.ndarray:
    """The mask, bool [H, W], on the runs' own grid."""
    return np.repeat(np.arange(len(runs.counts)) % 2 > 0, runs.counts).reshape(runs.size, order="F")


@dataclass(frozen=True)
class Polygons:
    """Outlines; the mask is their union. Made by `coco_polygons` and `vindr_polygons`."""

    rings: tuple[np.ndarray, ...]  # each [n, 2]: x from the left and y from the top, in pixels
    vertices: Literal["edges", "centers"]
    """edges: 0 is the outer edge of the first pixel, as in COCO; centers: 0 is its center, as in OpenCV."""
    size: tuple[int, int] | None = None
    """Of the grid whose pixels these are, where the source states it; else that of the image at hand."""


def coco_polygons(segmentation: Any) -> Polygons:
    """The `segmentation` of a COCO annotation: a list of outlines, each [x1, y1, x2, y2, …] or [[x1, y1], …].

    Raises:
        MaskError: another form, e.g. COCO's own run lengths.
    """
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str):
        raise MaskError(f"A COCO segmentation by polygons is a list of outlines, got {_short(segmentation)}")
    return Polygons(tuple(map(_ring, segmentation)), "edges")


def vindr_polygons(points: Any) -> Polygons:
    """One rib of VinDr-RibCXR: a list of {"x": …, "y": …}, or the text None where the rib is not annotated.

    Their code truncates coordinates to whole pixels and fills with OpenCV, border included; so does `fill_polygons`.

    Raises:
        MaskError: another form.
    """
    if points is None or points == "None":
        return Polygons((), "centers")
    try:
        outline = [[point["x"], point["y"]] for point in points]
    except (TypeError, KeyError, IndexError):
        raise MaskError(f"A rib of VinDr-RibCXR is a list of points with x and y, got {_short(points)}") from None
    return Polygons((_ring(outline),), "centers")


def _ring(outline: Any) -> np.ndarray:
    try:
        ring = np.array(outline, np.float64).reshape(-1, 2)
    except (ValueError, TypeError):
        raise MaskError(f"An outline is a list of x and y, got {_short(outline)}") from None
    if len(ring) < 3 or not np.isfinite(ring).all():
        raise MaskError(f"An outline has at least three points and no NaN; got {_short(outline)}")
    return ring


def fill_polygons(polygons: Polygons, size: tuple[int, int]) -> np.ndarray:
    """Filled outlines, bool [H, W], cropped to the image."""
    scale = SUBPIXELS if polygons.vertices == "edges" else 1
    canvas = Image.new("L", (size[1] * scale, size[0] * scale))
    draw = ImageDraw.Draw(canvas)
    for ring in polygons.rings:
        # Pillow fills with the border included, and truncates coordinates to integers.
        draw.polygon([(int(x), int(y)) for x, y in ring * scale], fill=1, outline=1)
    return np.asarray(canvas)[scale // 2 :: scale, scale // 2 :: scale] > 0


Part = str | Path | CocoRuns | Polygons
"""What a mask is made of: run lengths with relative offsets as text, a file, COCO's run lengths, outlines."""


def draw_part(part: Part, size: tuple[int, int]) -> np.ndarray:
    """A part of a mask on the grid of its image, bool [H, W]; what has a grid of its own is resized (nearest neighbor).

    Raises:
        MaskError: it cannot be read, leaves the image, or states a grid of another shape than the image's.
    """
    if isinstance(part, str):
        return decode_runs(part, size, "relative")
    if isinstance(part, Path):
        return _resize(load_mask(part), size)
    own = part.size or size
    if abs(own[0] * size[1] - own[1] * size[0]) > sum(own):  # more than a pixel by which sides are rounded
        raise MaskError(
            f"The mask is of {own[1]} x {own[0]} pixels, the image has another shape: {size[1]} x {size[0]}"
        )
    return _resize(decode_coco(part) if isinstance(part, CocoRuns) else fill_polygons(part, own), size)


@dataclass(frozen=True)
class Geometry:
    """How an image processor turns an image into a tower's input: resized, then cropped or padded around the center."""

    source: tuple[int, int]  # size of the image
    resized: tuple[int, int]  # its size after resizing
    corner: tuple[int, int]  # first row and column of the input in the resized image; negative where it is padded
    size: tuple[int, int]  # size of the input


def processor_geometry(processor: Any, size: tuple[int, int]) -> Geometry:
    """What an image processor of transformers (or timm's) does to images of a size, found by running it.

    Raises:
        RadDraftError: a processor of another kind, whose steps cannot be run one by one.
    """
    if file := getattr(processor, "features_file", None):
        raise RadDraftError(f"Masks cannot follow {file}: it does not tell which part of an image a vector is of")
    black = Image.new("RGB", (size[1], size[0]))
    if hasattr(processor, "val_transforms"):
        resized, final = _timm_sizes(processor.val_transforms.transforms, black)
        half: Any = round  # torchvision rounds half pixels to the even number
    elif hasattr(processor, "do_resize"):
        options = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
        resized, final = (
            tuple(processor([black], **options, **crop)["pixel_values"].shape[-2:])
            for crop in ({"do_center_crop": False}, {})
        )
        # With an odd number of pixels to crop or pad, torchvision processors round towards zero, Pillow ones down.
        half = math.floor if type(processor).__name__.endswith("Pil") else math.trunc
    else:
        raise RadDraftError(
            f"Masks cannot follow a {type(processor).__name__}: it does not state how it resizes and crops"
        )
    corner = (half((resized[0] - final[0]) / 2), half((resized[1] - final[1]) / 2))
    return Geometry((size[0], size[1]), resized, corner, final)


def _timm_sizes(steps: Sequence[Any], image: Image.Image) -> tuple[tuple[int, int], tuple[int, int]]:
    """Size after the resize and after the center crop of timm's eval transforms."""
    from timm.data.transforms import ResizeKeepRatio
    from torchvision.transforms import CenterCrop, Resize

    resize, crop, *rest = steps
    still = all(type(step).__name__ in STILL for step in rest)
    if not isinstance(resize, Resize | ResizeKeepRatio) or not isinstance(crop, CenterCrop) or not still:
        names = ", ".join(type(step).__name__ for step in steps)
        raise RadDraftError(f"Masks cannot follow timm's {names}: only a resize and a CenterCrop can be followed")
    resized = resize(image)
    return resized.size[::-1], crop(resized).size[::-1]


def prepare_mask(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A mask [H, W] on the tower's input grid, nearest neighbor: bool [h, w]. Padding is empty.

    Raises:
        MaskError: the geometry is for images of another size.
    """
    _check_grid(mask, geometry.source, "image")
    return _paste(_resize(mask, geometry.resized), geometry.size, geometry.corner)


def restore_mask(mask: np.ndarray, geometry: Geometry) -> np.ndarray:
    """The way back: a mask [h, w] on the tower's input grid to the image's, bool [H, W]. What was cropped off is empty.

    Raises:
        MaskError: the mask is not on the input grid.
    """
    _check_grid(mask, geometry.size, "tower's input")
    back = (-geometry.corner[0], -geometry.corner[1])
    return _resize(_paste(np.asarray(mask, bool), geometry.resized, back), geometry.source)


def _check_grid(mask: np.ndarray, size: tuple[int, int], what: str) -> None:
    if mask.shape != size:
        raise MaskError(f"The mask has {mask.shape[1]} x {mask.shape[0]} pixels, the {what} {size[1]} x {size[0]}")


def _resize(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if mask.shape == size:
        return mask
    # Pillow's nearest neighbor samples at pixel centers; torchvision's mode of that name at corners, half a pixel off.
    image = Image.fromarray(np.asarray(mask, bool).astype(np.uint8))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.NEAREST)) > 0


def _paste(mask: np.ndarray, size: tuple[int, int], corner: tuple[int, int]) -> np.ndarray:
    """The window of a size whose first pixel is `corner` of the mask; empty outside of the mask."""
    sides = zip(mask.shape, corner, size, strict=True)
    margins = [(max(0, -start), max(0, start + side - length)) for length, start, side in sides]
    padded = np.pad(mask, margins)
    top, left = max(0, corner[0]), max(0, corner[1])
    return padded[top : top + size[0], left : left + size[1]]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
