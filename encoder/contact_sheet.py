"""Small pictures with captions on one dark sheet."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont, ImageOps

PANEL, GAP, CAPTION = 200, 8, 26
"""Layout of a sheet in pixels."""
BACKGROUND, TEXT, MARK = "#101214", "#e4e7ea", "#ffb340"
COLUMNS = 8


class Tile(NamedTuple):
    """A picture on a sheet, with what it is and its name above it."""

    title: str
    name: str
    image: Image.Image


@cache
def caption_font() -> ImageFont.FreeTypeFont:
    """Pillow's own font lacks letters that file names may hold."""
    from matplotlib.font_manager import findfont

    return ImageFont.truetype(findfont("DejaVu Sans"), 11)


def draw_tiles(tiles: Sequence[Tile]) -> Image.Image:
    """One sheet of tiles, eight to a row."""
    columns = max(1, min(COLUMNS, len(tiles)))
    rows, height = -(-len(tiles) // columns), 2 * CAPTION + PANEL - 14
    sheet = Image.new("RGB", (columns * (PANEL + GAP) + GAP, rows * height + GAP), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, tile in enumerate(tiles):
        left, top = GAP + number % columns * (PANEL + GAP), number // columns * height + GAP
        draw.text((left, top), _cut(tile.title), MARK, caption_font())
        draw.text((left, top + 15), _cut(tile.name), TEXT, caption_font())
        sheet.paste(ImageOps.pad(tile.image.convert("RGB"), (PANEL, PANEL), color=BACKGROUND), (left, top + 32))
    return sheet


def _cut(text: str) -> str:
    """The end of a text that is as wide as a panel; the ends of paths tell more."""
    cut = text
    while cut and caption_font().getlength(cut) > PANEL:
        cut = cut[1:]
    return cut if cut == text else f"…{cut[1:]}"
