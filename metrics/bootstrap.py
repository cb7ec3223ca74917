"""Percentile bootstrap over studies, vectorised: one matrix product for all resamples.

A metric is given as per-study statistics that add up (ROUGE values, n-gram counts, true and false positives) and a
function from their sums to the value. A resample is then a row of multinomial counts, so no study is scored twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

Reduce = Callable[[np.ndarray], np.ndarray]


@dataclass
class Measure:
    """A metric over n studies, before it is reduced to a number."""

    statistics: np.ndarray
    """Per-study statistics [n, k]."""
    reduce: Reduce
    """Sums of statistics [r, k] (and their number of studies is the same n) -> values [r]."""
    signature: str
    """How the number is made: implementation and version, and every choice."""

    @property
    def value(self) -> float:
        """The metric over all studies."""
        return float(self.reduce(self.statistics.sum(0, keepdims=True))[0])


@dataclass
class Interval:
    """Percentile interval and median of the resampled metric."""

    low: float
    high: float
    median: float


def bootstrap(measure: Measure, n_resamples: int = 500, level: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap interval over studies (Efron; as in MAIRA-2 and LLaVA-Rad).

    Args:
        measure: over n >= 1 studies.
        n_resamples: how often n studies are drawn with replacement.
        level: coverage of the interval, in (0, 1).
        seed: two measures over the same studies with the same seed see the same resamples.
    """
    values = resample(measure, n_resamples, seed)
    low, median, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Interval(float(low), float(high), float(median))


def resample(measure: Measure, n_resamples: int, seed: int) -> np.ndarray:
    """The metric on each resample: [n_resamples]."""
    statistics = measure.statistics.astype(np.float64)
    parts = [measure.reduce(counts @ statistics) for counts in _resample_counts(len(statistics), n_resamples, seed)]
    return np.concatenate(parts)


def _resample_counts(n: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n studies is drawn, [r, n] at a time, r such that memory stays under some 64 MB."""
    if n == 0:
        raise ValueError("Nothing to resample: there is no study")
    generator = np.random.default_rng(seed)
    at_a_time = max(1, 8_000_000 // n)
    for start in range(0, n_resamples, at_a_time):
        rows = min(at_a_time, n_resamples - start)
        drawn = generator.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
