"""What films of all formats share on their way to gray: errors, warnings, limits of size, the mapping of values to
0..255, and the check of what it leaves."""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.studies import GrayMapping

PERCENTILES = (0.5, 99.5)
MIN_SIDE = 8
"""Pixels. ChestMNIST's 28 x 28 are the smallest chest X-rays in circulation, so less than this is an accident."""
FEW_LEVELS = 64
"""Gray levels, of 256. A window four times as wide as the values leaves this many."""


class ImageError(RadDraftError):
    """The file is not a usable chest X-ray; the message names the file and the reason."""


class ImageWarning(UserWarning):
    """The image was read, but something about it looks wrong; the message names the file."""


def warn(path: Path, text: str) -> None:
    """Give an `ImageWarning` about a file."""
    warnings.warn(f"{path}: {text}", ImageWarning, stacklevel=3)


def check_size(path: Path, width: int, height: int, frames: int, max_pixels: int) -> None:
    """Refuse, with an `ImageError`, several frames, a side under `MIN_SIDE` and more than `max_pixels`."""
    if frames > 1:
        raise ImageError(f"{path}: holds {frames} frames, and a chest X-ray has one")
    if min(width, height) < MIN_SIDE:
        raise ImageError(f"{path}: {width} x {height} pixels; each side needs at least {MIN_SIDE}")
    if width * height > max_pixels:
        raise ImageError(
            f"{path}: {width} x {height} = {width * height:,} pixels, more than max_pixels = {max_pixels:,}; "
            "raise max_pixels to read it"
        )


def stretch(path: Path, values: np.ndarray, gray_mapping: GrayMapping, hidden: np.ndarray | None = None) -> np.ndarray:
    """Map values [H, W] of any type linearly to float64 [H, W], 0..255, between their extremes or percentiles.

    Pixels where `hidden` [H, W] is true are left out of the range.

    Raises:
        ImageError: NaN or infinite values, all pixels hidden, all of one value.
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
    scaled = np.subtract(values, float(low), dtype=np.float64)
    scaled *= 255
    scaled /= float(high) - float(low)
    return scaled.clip(0, 255, out=scaled)


def check_levels(
    path: Path, values: np.ndarray, pixels: np.ndarray, mapping: str, hidden: np.ndarray | None = None
) -> None:
    """Refuse a film that its mapping left with one gray level; warn of one that lost most of its gray to it.

    A grid of about 65,536 pixels is looked at. Few levels are at most `FEW_LEVELS`, of at least three times as many
    values. Cut are the pixels of a group at black or white, if the group is more than what rounding to 256 levels
    makes: if it holds eight times as many values as the film has to a level. More than half of the film cut is most.

    Args:
        path: for the messages.
        values: [H, W] as the file holds them.
        pixels: [H, W], what became of them, 0..255.
        mapping: for the messages, what made `pixels` of `values`.
        hidden: [H, W], pixels that are no part of the film.

    Raises:
        ImageError: all pixels have the same level.
    """
    shown = pixels if hidden is None else pixels[~hidden]
    if shown.size == 0:
        raise ImageError(f"{path}: all pixels are padding")
    low, high = np.rint([shown.min(), shown.max()]).astype(int)
    if low == high:
        raise ImageError(f"{path}: all pixels have the same value, {low} after {mapping}")
    step = math.ceil(math.sqrt(values.size / 2**16))
    grid = slice(None, None, step)
    seen = np.ones(values[grid, grid].shape, bool) if hidden is None else ~hidden[grid, grid]
    stored, levels = values[grid, grid][seen], np.rint(pixels[grid, grid][seen]).astype(np.uint8)
    if stored.size == 0:
        return
    n_values, n_levels = len(np.unique(stored)), len(np.unique(levels))
    if n_levels <= FEW_LEVELS and n_values >= 3 * n_levels:
        kept = len(np.unique(np.rint(shown).astype(np.uint8)))
        warn(path, f"{mapping} leaves {kept} gray levels of {n_values:,} values")
        return
    cut = 0
    for level in (0, 255):
        group = stored[levels == level]
        if len(np.unique(group)) > 8 * n_values / n_levels:
            cut += int(((group != stored.min()) & (group != stored.max())).sum())
    if cut > 0.5 * stored.size:
        warn(path, f"{mapping} cuts {cut / stored.size:.0%} of the pixels to black or white")
