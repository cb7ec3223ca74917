"""A sheet of the views that pre-training cuts out of pictures, to look at before anything is spent.

rows = [ViewRow("a.png", grey, global_views, local_views, masks)]
draw_views(rows).save("views.png")
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

# Layout of the sheet in pixels.
PANEL, GAP, BLOCK_GAP, MARGIN = 240, 8, 28, 32
SMALL = (PANEL - GAP) // 2
HEADER, CAPTION, FOOTER = 60, 30, 56

PAPER, FRAME, FAINT, TEXT = "#101214", "#181b1f", "#8d949c", "#e4e7ea"
HIDDEN = (59, 151, 163)
"""Colour of hidden patches."""


@dataclass
class ViewRow:
    """A picture and its views, all grey values in 0..1."""

    name: str
    image: torch.Tensor
    """[1, H, W]"""
    global_views: torch.Tensor
    """[2, 1, S, S]"""
    local_views: torch.Tensor
    """[n, 1, s, s]"""
    masks: torch.Tensor
    """bool [2, S / patch, S / patch]: which patches of the global views are hidden from the student."""


def draw_views(rows: list[ViewRow]) -> Image.Image:
    """Draw the rows, which have the same number of local views: picture, two global views, local views."""
    first = rows[0]
    n_columns = (len(first.local_views) + 1) // 2
    left_of_local = MARGIN + 3 * PANEL + GAP + 2 * BLOCK_GAP
    width = left_of_local + n_columns * (SMALL + GAP) - GAP + MARGIN if n_columns else left_of_local
    height = HEADER + len(rows) * (CAPTION + PANEL + GAP) + FOOTER
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    left_of_global = MARGIN + PANEL + BLOCK_GAP
    size, small = first.global_views.shape[-1], first.local_views.shape[-1]
    headings = [(MARGIN, "Picture", ""), (left_of_global, "Global views", f"{size} × {size} px")]
    headings += [(left_of_local, "Local views", f"{small} × {small} px")] if n_columns else []
    for x, title, note in headings:
        draw.text((x, 24), title, TEXT, _font(14))
        draw.text((x, 45), note, FAINT, _font(11))
    for number, row in enumerate(rows):
        top = HEADER + CAPTION + number * (CAPTION + PANEL + GAP)
        shares = row.masks.float().mean((1, 2)).tolist()
        draw.text((MARGIN, top - 20), _shorten(row.name, PANEL), FAINT, _font(11))
        sheet.paste(_fit(row.image), (MARGIN, top))
        for i, (view, mask) in enumerate(zip(row.global_views, row.masks, strict=True)):
            x = left_of_global + i * (PANEL + GAP)
            draw.text((x, top - 20), f"{shares[i]:.0%} hidden", FAINT, _font(11))
            sheet.paste(_hide(view, mask).resize((PANEL, PANEL), Image.Resampling.LANCZOS), (x, top))
        for i, view in enumerate(row.local_views):
            place = left_of_local + i % n_columns * (SMALL + GAP), top + i // n_columns * (SMALL + GAP)
            sheet.paste(_grey(view).resize((SMALL, SMALL), Image.Resampling.LANCZOS), place)
    notes = (
        "Global views: teacher and student see them; tinted patches are hidden from the student.",
        "Local views: only the student sees them. All views are drawn as the tower gets them, before normalisation.",
    )
    for line, note in enumerate(notes):
        draw.text((MARGIN, height - FOOTER + 8 + 17 * line), note, FAINT, _font(11))
    return sheet


def _grey(view: torch.Tensor) -> Image.Image:
    """[1, H, W] in 0..1 as a picture."""
    return Image.fromarray(np.rint(view[0].clamp(0, 1).numpy() * 255).astype(np.uint8)).convert("RGB")


def _fit(image: torch.Tensor) -> Image.Image:
    """The whole picture in the middle of a panel."""
    panel, picture = Image.new("RGB", (PANEL, PANEL), FRAME), _grey(image)
    scale = PANEL / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    panel.paste(
        picture.resize((width, height), Image.Resampling.LANCZOS), ((PANEL - width) // 2, (PANEL - height) // 2)
    )
    return panel


def _hide(view: torch.Tensor, mask: torch.Tensor) -> Image.Image:
    """A view [1, S, S] with its hidden patches [h, w] tinted."""
    picture = _grey(view)
    hidden = Image.fromarray(mask.numpy().astype(np.uint8) * 255).resize(picture.size, Image.Resampling.NEAREST)
    tinted = Image.blend(picture, Image.new("RGB", picture.size, HIDDEN), 0.55)
    return Image.composite(tinted, picture, hidden)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib; Pillow's own font lacks letters that file names may hold."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), size)


def _shorten(name: str, width: int) -> str:
    """The end of a name, as much as fits."""
    while len(name) > 8 and _font(11).getlength(name) > width:
        name = "…" + name[2:]
    return name
