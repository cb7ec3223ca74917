"""Do probes foretell the reports? Rank correlations of the encoders between report tasks and all other tasks.

found = rank_correlations(cells, tasks, ["rad-dino", "dinov2-base", "clip-336"])
found["Reports: rule_micro_f1_14"]["Findings"]  # rho, low, high, p, n
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from encoder.measures import bounds
from generator.cells import Cell
from generator.compare_config import Task
from metrics.report import LOWER_IS_BETTER

LOWER = LOWER_IS_BETTER | {"mae"}
"""Measures of which the smaller value is the better one."""
FEWEST = 3
"""Encoders that can be ranked."""
RANDOM_ORDERS = 50_000
"""Orders that p is counted over for more than eight encoders; for fewer all that there are."""


def rank_correlations(
    cells: Mapping[str, Mapping[str, Cell]], tasks: Sequence[Task], rows: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Spearman's rank correlation over the encoders, of each report task with each other task.

    Args:
        cells: row -> task -> cell.
        tasks: the columns.
        rows: the encoders among the rows; those without a value in one of the two columns are left out.

    Returns:
        Report task -> other task -> "rho" in -1 to 1, 1 where better encoders in one are the better ones in the other;
        "low" and "high", its 95 % interval over test subjects; "p", two-sided, of orders that have nothing to do with
        each other; "n", the number of encoders. Nothing where there are fewer than three, or all are equal.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for report in (task for task in tasks if task.kind == "report"):
        for other in (task for task in tasks if task.kind != "report"):
            pairs = [(cells[row][report.name], cells[row][other.name]) for row in rows]
            pairs = [pair for pair in pairs if all(cell.value is not None for cell in pair)]
            signs = [-1 if task.shown in LOWER else 1 for task in (report, other)]
            if one := _correlate(pairs, signs):
                found.setdefault(report.name, {})[other.name] = one
    return found


def rank(values: Sequence[float | None], measure: str) -> list[float | None]:
    """Ranks from 1 for the best; equal values share the mean of their ranks, and None has none."""
    from scipy.stats import rankdata

    known = [value if measure in LOWER else -value for value in values if value is not None]
    ranks = iter(rankdata(known).tolist())
    return [None if value is None else next(ranks) for value in values]


def _correlate(pairs: Sequence[tuple[Cell, Cell]], signs: Sequence[int]) -> dict[str, Any] | None:
    """`pairs` of one encoder each; `signs` make the larger value the better one."""
    if len(pairs) < FEWEST:
        return None
    x, y = (np.array([sign * (pair[side].value or 0.0) for pair in pairs]) for side, sign in enumerate(signs))  # [n]
    rho = float(_spearman(x, y))
    if np.isnan(rho):
        return None
    places = np.arange(len(pairs))
    if len(pairs) <= 8:
        orders = np.array(list(itertools.permutations(places)))
    else:
        orders = np.random.default_rng(0).permuted(np.tile(places, (RANDOM_ORDERS, 1)), axis=1)
        orders[0] = places  # p is never 0
    p = np.mean(np.abs(_spearman(x[orders], y)) >= abs(rho) - 1e-9)
    low = high = None
    if len({len(cell.resamples) for pair in pairs for cell in pair}) == 1:
        drawn = (np.array([sign * pair[side].resamples for pair in pairs]).T for side, sign in enumerate(signs))
        low, high = bounds(_spearman(*drawn))  # of [R, n]
    return {"rho": rho, "low": low, "high": high, "p": float(p), "n": len(pairs)}


def _spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's correlation along the last axis, NaN where one of them is constant; scipy's takes no rows."""
    from scipy.stats import rankdata

    x, y = (ranks - ranks.mean(-1, keepdims=True) for ranks in (rankdata(x, axis=-1), rankdata(y, axis=-1)))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
