"""Curves over the steps of a run, laid out for a page in percent, so that a browser can draw them at any size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

POINTS = 400
"""Most points of a curve."""
SMOOTH = 50
"""A curve of more points than this is drawn as a running mean, over a fiftieth of them, with its points behind."""


class Tick(NamedTuple):
    """A mark on an axis: its place in percent of the axis, and its text."""

    at: float
    text: str


class Curve(NamedTuple):
    """A line: what it is called, its last value, its path and that of its points, in percent of the chart; and whether
    it is the one that counts."""

    name: str
    last: str
    path: str
    behind: str
    heavy: bool = False


@dataclass
class Chart:
    """Curves with one vertical axis."""

    title: str
    note: str
    curves: list[Curve] = field(default_factory=list)
    x_ticks: list[Tick] = field(default_factory=list)
    y_ticks: list[Tick] = field(default_factory=list)
    guides: list[Tick] = field(default_factory=list)
    """Horizontal lines."""
    marks: list[Tick] = field(default_factory=list)
    """Vertical lines."""


def draw_chart(
    title: str,
    note: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    steps: int,
    log: bool = False,
    guides: Mapping[str, float] | None = None,
    marks: Mapping[str, float] | None = None,
    heavy: str | None = None,
) -> Chart:
    """Lay out curves from step 0 to `steps`.

    Args:
        title: of the chart.
        note: what stands beside the title.
        series: name of a curve -> its points (step, value); those without a finite value are left out.
        steps: where the horizontal axis ends.
        log: a logarithmic vertical axis, if all values are above 0.
        guides: name of a horizontal line -> its value.
        marks: name of a vertical line -> its step.
        heavy: name of the curve that counts.
    """
    points = {
        name: np.array([p for p in part if _is_number(p[1])], float).reshape(-1, 2) for name, part in series.items()
    }
    points = {name: part for name, part in points.items() if len(part)}
    guides, chart = guides or {}, Chart(title, note)
    values = np.concatenate([*(part[:, 1] for part in points.values()), [*guides.values()]])
    if not len(values):
        return chart
    log = log and values.min() > 0
    low, high = _pad(*((math.log10(values.min()), math.log10(values.max())) if log else (values.min(), values.max())))

    def place(value: np.ndarray) -> np.ndarray:
        return 100 * ((np.log10(value) if log else value) - low) / (high - low)

    def trace(part: np.ndarray) -> str:
        part = part[np.unique(np.linspace(0, len(part) - 1, min(len(part), POINTS)).round().astype(int))]
        places = zip(100 * part[:, 0] / max(1, steps), 100 - place(part[:, 1]), strict=True)
        path = "L".join(f"{x:.2f} {y:.2f}" for x, y in places)
        return f"M{path}" if len(part) > 1 else f"M{path}h.5"

    for name, part in points.items():
        width = len(part) // SMOOTH
        kernel = np.ones(max(1, width)) / max(1, width)
        mean = np.stack([np.convolve(column, kernel, "valid") for column in part.T], 1)
        chart.curves.append(
            Curve(name, _text(part[-1, 1]), trace(mean), trace(part) if width > 1 else "", name == heavy)
        )
    ticks = _log_ticks(low, high) if log else _ticks(low, high)
    chart.y_ticks = [Tick(float(place(np.array(tick))), _text(tick)) for tick in ticks]
    chart.x_ticks = [
        Tick(100 * tick / max(1, steps), f"{tick:,.0f}") for tick in _ticks(0, steps) if tick == round(tick)
    ]
    chart.guides = [Tick(float(place(np.array(value))), name) for name, value in guides.items()]
    chart.marks = [Tick(100 * step / max(1, steps), name) for name, step in (marks or {}).items()]
    return chart


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _pad(low: float, high: float) -> tuple[float, float]:
    """A range with a margin; one around a single value."""
    margin = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers in a range."""
    from matplotlib.ticker import MaxNLocator

    return [
        float(tick) for tick in MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high) if low <= tick <= high
    ]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten in a range of exponents; twice and five times them, too, where these are few."""
    powers = range(math.floor(low), math.ceil(high) + 1)
    found = [10.0**power for power in powers if low <= power <= high]
    if len(found) < 3:
        found = [m * 10.0**power for power in powers for m in (1, 2, 5) if low <= math.log10(m) + power <= high]
    return found[:: max(1, len(found) // 5)]


def _text(value: float) -> str:
    """Four digits, with a typographic minus."""
    return f"{value + 0.0:.4g}".replace("-", "−")
