"""Intervals and tests of metrics that hold for few studies, rare findings and several studies of one subject.

    deviations = jackknife(measure, subjects)
    t_interval(measure.value, deviations, measure.bounds)     # low, high
    sign_flips([ours], [theirs], subjects)                    # p of the difference

Subjects are left out and swapped whole, because studies of one subject are alike. `benchmarks/coverage.py` measures how
often the intervals hold the truth and how often two equal systems are told apart; docs/statistics.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.stats import AT_A_TIME, UNBOUNDED, Measure, Units, side_by_side

FLIPS = 10_000
"""Random swaps of a test: p-values of 1e-4, so that a correction for a hundred tests leaves what is clear."""
EXACT = 12
"""Up to so many units that differ, all swaps are tried: 4,096."""
FEW_UNITS = 100
"""Of 100 studies, the intervals of BLEU hold the truth in 93 % or more; of 50, that of BLEU-4 in 85 %."""
FEW_POSITIVES = 3
FEW_DIFFER = 7
"""Of 6 that differ, the smallest p-values are .031 and .0625: a test at .05 rejects 3 % of equal systems, not 5 %."""
POWER = 1.96 + 0.84
"""Standard errors of a difference that a two-sided test at .05 finds in 80 % of tables."""


def sum_units(statistics: np.ndarray, units: Units | None) -> np.ndarray:
    """Sums of the statistics [n, k] over the studies of each unit [units, k]; as they are where units is None."""
    if units is None:
        return statistics.astype(np.float64, copy=False)
    order, starts = _by_unit(tuple(units))
    return np.add.reduceat(statistics[order], starts, axis=0, dtype=np.float64)


@lru_cache(maxsize=8)  # all metrics of a table are summed over the same units
def _by_unit(units: tuple[Hashable, ...]) -> tuple[np.ndarray, np.ndarray]:
    """The rows in the order of their units [n], and where each unit begins in it [units]."""
    _, index = np.unique(np.asarray(units), return_inverse=True)
    order = np.argsort(index, kind="stable")
    return order, np.flatnonzero(np.diff(index[order], prepend=-1))


def jackknife(measure: Measure, units: Units | None = None) -> np.ndarray:
    """How far each unit pulls the value up: the mean of the values without one unit, minus the value without this one.

    Returns:
        [units]; sums to 0. Zeros for a single unit, which cannot be left out.

    Raises:
        RadDraftError: there is no study.
    """
    if not measure.n:
        raise RadDraftError("No interval: there is no study")
    sums = sum_units(measure.statistics, units)
    if len(sums) == 1:
        return np.zeros(1)
    without = measure.reduce(sums.sum(0) - sums)
    return without.mean() - without


def standard_error(deviations: np.ndarray) -> float:
    """Jackknife standard error (Efron, 1982) from deviations [units]; 0 where they differ by rounding only."""
    n = len(deviations)
    found = math.sqrt((n - 1) / n * float(deviations @ deviations))
    return found if found > 1e-12 else 0.0


def t_interval(
    value: float,
    deviations: np.ndarray,
    bounds: tuple[float, float] = UNBOUNDED,
    bias: float = 0.0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Student's t interval from the jackknife, on the scale of log odds where the value is bounded.

    A standard error is itself an estimate, a poor one where a few units decide: subjects with many studies, reports
    that are equal to their draft, rare findings. The degrees of freedom follow from the kurtosis of the deviations
    (Satterthwaite's rule: 2 n / (kurtosis - 1), which is n for normal ones), at most units - 1. On the scale of log
    odds, or logarithms if only the lower bound is finite, the interval is skewed as the estimate is, and inside. It is
    wider there by 5 / units, 5 % for 100: a sample without the rare high scores does not tell how high they are.

    Args:
        value: the metric, or the difference of two.
        deviations: as by `jackknife` [units]; of a difference, the difference of both.
        bounds: range of the value.
        bias: by how much the value is too high: the mean of its resamples minus the value. Macro F1 is too low where
            a sample may miss a class, BLEU where drafts are as long as reports.
        level: coverage in (0, 1).

    Returns:
        Low and high, the value between them; both are the value where it is the same without any unit, or there is one
        unit only.
    """
    from scipy.special import stdtrit  # not scipy.stats, whose import takes as long as a table

    n, error = len(deviations), standard_error(deviations)
    if not error:
        return value, value
    squares = deviations**2
    kurtosis = n * float(squares @ squares) / float(squares.sum()) ** 2
    freedom = 2 * n / max(kurtosis - 1, 2 * n / (n - 1))
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt((freedom + 1) / freedom) * error
    low, high = bounds if bounds[0] <= value <= bounds[1] else UNBOUNDED
    center = value - bias
    if not low < center < high:
        center = value
    if not low < center < high or math.isinf(low):
        ends = center - half, center + half
    else:
        half *= 1 + 5 / n
        below, above = center - low, high - center
        factor = math.exp(min(half * (1 / below + 1 / above), 700.0))  # of the odds; 1 / above is 0 without a bound
        if math.isinf(high):
            ends = low + below / factor, low + below * factor
        else:
            odds = below / above / factor, below / above * factor
            ends = low + (high - low) * odds[0] / (1 + odds[0]), low + (high - low) * odds[1] / (1 + odds[1])
    return min(value, max(ends[0], low)), max(value, min(ends[1], high))


def effective_studies(measure: Measure, deviations: np.ndarray) -> float:
    """As many independent studies would tell the value as closely: n by the ratio of both variances, at most n.

    Args:
        measure: over n studies.
        deviations: as by `jackknife` over their subjects [units].
    """
    alone, together = standard_error(jackknife(measure)), standard_error(deviations)
    return measure.n * min(1.0, (alone / together) ** 2) if together else float(measure.n)


def doubts(measure: Measure, units: Units | None) -> list[str]:
    """Why the interval of a value may not hold; empty where it does.

    "too few subjects" (or "studies"): they weigh as much as fewer than 100 equal ones, (sum of n)² / sum of n², with n
    the studies of each. "too few positives": a class has positives in fewer than 3 of them.
    """
    sums = sum_units(np.column_stack([np.ones(measure.n), measure.statistics]), units)
    sizes, found = sums[:, 0], []
    if sizes.sum() ** 2 / (sizes @ sizes) < FEW_UNITS:
        found.append("too few studies" if units is None else "too few subjects")
    if measure.positives and ((measure.positives(sums[:, 1:]) > 0).sum(0) < FEW_POSITIVES).any():
        found.append("too few positives")
    return found


@dataclass(frozen=True)
class Swapped:
    """A difference of two systems, tested by swapping them."""

    p: float
    """Two-sided, ties counted."""
    differ: int
    """Units in which the systems differ."""


def sign_flips(
    ours: Sequence[Measure],
    theirs: Sequence[Measure],
    units: Units | None = None,
    flips: int = FLIPS,
    seed: int = 0,
) -> list[Swapped]:
    """Whether two systems differ, by swapping them at random unit by unit (Fisher's randomization test).

    Were the systems alike, swapping both on some subjects would make differences as large as the one observed. p is
    the share of swaps that do, equal ones included: of all swaps where at most 12 units differ, else of random ones
    and the observed one (Phipson and Smyth, 2010). Sums are swapped, so that a corpus metric is one matrix product.

    Args:
        ours, theirs: the same metrics of both systems, over the same studies.
        units: of the studies [n].
        flips: random swaps.
        seed: of the swaps.

    Returns:
        For each metric p, and how many units differ.
    """
    pairs = list(zip(ours, theirs, strict=True))
    if not pairs:
        return []
    both, columns = side_by_side(ours, theirs)
    halves = sum_units(both[0] - both[1], units) / 2
    middle = (both[0] + both[1]).sum(0) / 2
    differ = [np.abs(halves[:, part]).max(1) > 1e-12 for part in columns]
    many = [i for i, rows in enumerate(differ) if rows.sum() > EXACT]

    def difference(i: int, swapped: np.ndarray) -> np.ndarray:
        """Of a metric, from half the difference of the sums [r, k]."""
        reduce, sums = ours[i].reduce, middle[columns[i]]
        return reduce(sums + swapped) - reduce(sums - swapped)

    def reached(i: int, swapped: np.ndarray) -> int:
        """In how many of the swaps the difference is as large as the observed one; sums differ by rounding."""
        observed = difference(i, halves[:, columns[i]].sum(0, keepdims=True))
        return int((np.abs(difference(i, swapped)) >= np.abs(observed) - 1e-12).sum())

    hits = np.zeros(len(pairs))
    if many:
        rows = np.logical_or.reduce([differ[i] for i in many])
        for signs in _random_signs(int(rows.sum()), flips, seed):
            swapped = (halves[rows].T @ signs.T).T  # a column lies in one piece: sums over few columns are fast then
            for i in many:
                hits[i] += reached(i, swapped[:, columns[i]])
    found = []
    for i, rows in enumerate(differ):
        count = int(rows.sum())
        if i in many:
            p = (hits[i] + 1) / (flips + 1)
        else:
            signs = 1.0 - 2.0 * (np.arange(2**count)[:, None] >> np.arange(count) & 1)
            p = reached(i, signs @ halves[rows, columns[i]]) / 2**count
        found.append(Swapped(float(p), count))
    return found


def _random_signs(n: int, flips: int, seed: int) -> Iterator[np.ndarray]:
    """1 or -1 with equal chance: [r, n] float64 at a time, as many rows as there are flips."""
    generator = np.random.default_rng(seed)
    at_a_time = max(1, AT_A_TIME // n)
    for start in range(0, flips, at_a_time):
        yield generator.integers(0, 2, (min(at_a_time, flips - start), n), dtype=np.int8) * 2.0 - 1.0
