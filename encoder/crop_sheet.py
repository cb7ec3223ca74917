"""A sheet of the crops that pre-training cuts out of images, to look at before anything is spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageOps

from encoder.augment import MultiCrop, block_masks
from encoder.contact_sheet import BACKGROUND, CAPTION, GAP, PANEL, TEXT, caption_font
from encoder.recipe import PretrainConfig
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.images import ImageError, load_gray

HIDDEN = (59, 151, 163)
"""Color of masked patches."""


class CropRow(NamedTuple):
    """An image and its crops, all gray values in 0..1."""

    name: str
    image: torch.Tensor  # [1, H, W]
    global_crops: torch.Tensor  # [2, 1, S, S]
    local_crops: torch.Tensor  # [n, 1, s, s]
    masks: torch.Tensor  # bool [2, S / patch, S / patch], true where a patch is hidden from the student


def cut_rows(
    paths: Sequence[Path], config: PretrainConfig, count: int, patch_size: int | None = None, seed: int = 0
) -> tuple[list[CropRow], list[str]]:
    """Cut and mask `count` images, spread evenly over `paths`, as the recipe does; all of them if there are fewer.

    Returns:
        The rows, and a sentence for each image that cannot be read.

    Raises:
        RadDraftError: crops are not multiples of the patch size, or no image can be read.
    """
    patch_size = patch_size or (config.architecture.patch_size if config.architecture else 14)
    for size in (config.crops.global_size, config.crops.local_size):
        if size % patch_size:
            raise RadDraftError(f"A crop of {size} pixels is not a multiple of patch_size = {patch_size}")
    multi_crop = MultiCrop(config.crops, mean=0, std=1)
    side, count = config.crops.global_size // patch_size, min(count, len(paths))
    masks = block_masks(2 * count, (side, side), config.mask_probability, config.objective.mask_ratio, seed)
    rows, errors = [], []
    for i in range(count):
        path = paths[i * len(paths) // count]
        try:
            image = torch.from_numpy(load_gray(path, config.gray_mapping))[None]
        except ImageError as error:
            errors.append(str(error))
        else:
            rows.append(CropRow(path.name, image, *multi_crop(image, seed * count + i), masks[2 * i : 2 * i + 2]))
    if not rows:
        raise RadDraftError(f"No image to draw: {'; '.join(errors)}")
    return rows, errors


def write_crops(
    paths: Sequence[Path],
    config: PretrainConfig,
    out: Path,
    count: int,
    patch_size: int | None = None,
    seed: int = 0,
    numbered: bool = False,
) -> tuple[int, list[str]]:
    """Write the sheet (PNG) of `count` images; how many are on it, and a sentence for each that cannot be read.

    With `numbered`, images have numbers and not their files' names, which may identify a patient.

    Raises:
        RadDraftError: as `cut_rows`.
    """
    rows, errors = cut_rows(paths, config, count, patch_size, seed)
    if numbered:
        rows = [row._replace(name=f"film {number}") for number, row in enumerate(rows, 1)]
    with write_whole(out) as temporary:
        draw_crops(rows).save(temporary, format="PNG")
    return len(rows), errors


def draw_crops(rows: Sequence[CropRow]) -> Image.Image:
    """One line for each row: the image, both global crops with masked patches tinted, the local crops."""
    width = (3 + len(rows[0].local_crops)) * (PANEL + GAP) + GAP
    sheet = Image.new("RGB", (width, len(rows) * (CAPTION + PANEL) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        panels = [(row.name[-30:], _to_image(row.image))]
        for crop, mask in zip(row.global_crops, row.masks, strict=True):
            masked = f"{mask.float().mean().item():.0%} masked"
            panels.append((f"global, {crop.shape[-1]} px, {masked}", _tint(_to_image(crop), mask)))
        panels += [(f"local, {crop.shape[-1]} px", _to_image(crop)) for crop in row.local_crops]
        top = number * (CAPTION + PANEL) + CAPTION
        for column, (caption, panel) in enumerate(panels):
            left = GAP + column * (PANEL + GAP)
            draw.text((left, top - 18), caption, TEXT, caption_font())
            sheet.paste(ImageOps.pad(panel, (PANEL, PANEL), color=BACKGROUND), (left, top))
    return sheet


def _to_image(crop: torch.Tensor) -> Image.Image:
    """[1, H, W] in 0..1 as an RGB image."""
    return Image.fromarray(np.rint(crop[0].clamp(0, 1).numpy() * 255).astype(np.uint8)).convert("RGB")


def _tint(crop: Image.Image, mask: torch.Tensor) -> Image.Image:
    """The crop with its hidden patches [h, w] tinted."""
    hidden = Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize(crop.size, Image.Resampling.NEAREST)
    return Image.composite(Image.blend(crop, Image.new("RGB", crop.size, HIDDEN), 0.55), crop, hidden)
