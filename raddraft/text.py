"""Tables, numbers and progress bars on the console: one printer for all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def format_table(rows: Sequence[Sequence[str | int]]) -> str:
    """Columns as wide as they need to be: the first aligned left, the others right; integers with thousands commas."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(f"{cell:{'>' if i else '<'}{width}}" for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )


def format_estimate(value: float | None, low: float | None = None, high: float | None = None) -> str:
    """A value with its interval; without an interval the value alone; a dash where there is no value.

    >>> format_estimate(0.8123, 0.7661, 0.8514)
    '0.812 [0.766 0.851]'
    """
    if value is None:
        return "-"
    return f"{value:.3f}" + ("" if low is None else f" [{low:.3f} {high:.3f}]")


def show(estimate: Any) -> str:
    """`format_estimate` of anything with value, low and high."""
    return format_estimate(estimate.value, estimate.low, estimate.high)


def slug(name: str) -> str:
    """A name as it may stand in a file name: other characters than letters, digits, - and _ become -."""
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def progress(items: Sequence[Any], what: str) -> Iterable[Any]:
    """The items, with a progress bar on a terminal."""
    from tqdm import tqdm

    return tqdm(items, desc=what, disable=None, leave=False)
