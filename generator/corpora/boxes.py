"""Boxes around findings, as published -> outlines for masks, with counts of those that leave their film."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from generator.corpora.common import CorpusError

if TYPE_CHECKING:
    import numpy as np

    from encoder.masks import Polygons

BEYOND = "Boxes and outlines that reach beyond the film, cut at its edge"
OUTSIDE = "Boxes without an area in the film, left out"


def outline_box(
    box: Any, size: tuple[int, int], vertices: Literal["edges", "centers"], where: str, counts: Counter[str]
) -> list[Polygons]:
    """The outline of a box, or nothing where it has no pixel on the film.

    Args:
        box: x1, y1, x2, y2 in pixels, left, top, right, bottom.
        size: height and width of the film that the box was drawn on.
        vertices: edges: x2 and y2 are where the box ends; centers: they are its last pixels.
        where: the place in the source, for the error.
        counts: counts `BEYOND` and `OUTSIDE`.

    Raises:
        CorpusError: not four numbers.
    """
    if not isinstance(box, Sequence) or len(box) != 4 or not all(map(_is_number, box)):
        raise CorpusError(f"{where}: a box is x1, y1, x2, y2 in pixels, got {str(box)[:80]}")
    last = 1 if vertices == "centers" else 0
    x1, y1, x2, y2 = box
    inside = (max(x1, 0), max(y1, 0), min(x2, size[1] - last), min(y2, size[0] - last))
    if inside[2] + last <= inside[0] or inside[3] + last <= inside[1]:
        counts[OUTSIDE] += 1
        return []
    counts[BEYOND] += inside != (x1, y1, x2, y2)
    left, top, right, bottom = inside
    return [outline([[left, top], [right, top], [right, bottom], [left, bottom]], size, vertices, where, counts)]


def outline(
    points: Any, size: tuple[int, int], vertices: Literal["edges", "centers"], where: str, counts: Counter[str]
) -> Polygons:
    """One outline, a list of [x, y], on a film of a size; as in `outline_box`, which counts the same.

    Raises:
        CorpusError: no outline.
    """
    from encoder.masks import MaskError, Polygons, coco_polygons

    try:
        (ring,) = coco_polygons([points]).rings
    except MaskError as error:
        raise CorpusError(f"{where}: {error}") from None
    counts[BEYOND] += leaves(ring, size, vertices)
    return Polygons((ring,), vertices, size)


def leaves(ring: np.ndarray, size: tuple[int, int], vertices: Literal["edges", "centers"]) -> bool:
    """Whether an outline [n, 2], x and y, reaches beyond a film of a height and width."""
    height, width = size
    last = 1 if vertices == "centers" else 0
    return bool((ring < 0).any() or (ring > (width - last, height - last)).any())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
