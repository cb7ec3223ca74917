"""Percentile bootstrap over studies, vectorised: one matrix product for all resamples of all metrics.

A metric is given as per-study statistics that add up (ROUGE values, n-gram counts, true and false positives) and a
function from their sums to the value. A resample is then a row of multinomial counts, so no study is scored twice,
and systems that are resampled together are paired: they see the same studies in every resample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

Reduce = Callable[[np.ndarray], np.ndarray]


@dataclass
class Measure:
    """A metric over n studies, before it is reduced to a number."""

    statistics: np.ndarray
    """Per-study statistics [n, k]."""
    reduce: Reduce
    """Sums of statistics over as many studies as drawn [r, k] -> values [r]."""
    signature: str
    """How the number is made: implementation and version, and every choice; not the number of studies."""
    is_mean: bool = False
    """Whether the value is the mean of a score that each study has by itself: the first column of the statistics."""

    @property
    def n(self) -> int:
        """Number of studies."""
        return len(self.statistics)

    @property
    def value(self) -> float:
        """The metric over all studies."""
        return float(self.reduce(self.statistics.sum(0, keepdims=True))[0])

    @property
    def per_study(self) -> np.ndarray | None:
        """Each study's own score [n], where the metric has such a thing; corpus BLEU and F1s have not."""
        return self.statistics[:, 0] if self.is_mean else None

    def subset(self, index: np.ndarray) -> Measure:
        """The same metric over some of the studies, given by their positions."""
        return replace(self, statistics=self.statistics[index])


def mean_measure(scores: Sequence[float] | np.ndarray, signature: str) -> Measure:
    """The mean of per-study scores."""
    statistics = np.column_stack([scores, np.ones(len(scores))])
    return Measure(statistics, lambda sums: sums[:, 0] / sums[:, 1], signature, is_mean=True)


@dataclass
class Interval:
    """Percentile interval and median of resampled values."""

    low: float
    high: float
    median: float


def interval(values: np.ndarray, level: float = 0.95) -> Interval:
    """Percentile interval (Efron; as in MAIRA-2 and LLaVA-Rad) of resampled values, at a coverage in (0, 1)."""
    low, median, high = np.quantile(values, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Interval(float(low), float(high), float(median))


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of the hypothesis that a difference is 0, from its paired resamples [r].

    Twice the smaller share of resamples on either side of 0, itself included; the observed sample counts as one
    resample, so that r resamples give no p below 2 / (r + 1) (Davison and Hinkley, 1997, section 4.2). What is nearer
    to 0 than 1e-12 is 0: sums of equal numbers differ by rounding, and that has a sign too.
    """
    differences = differences.round(12)
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(differences) + 1)))


def resample(measures: Sequence[Measure], n_resamples: int = 500, seed: int = 0) -> np.ndarray:
    """Each metric on resamples of the studies, the same ones for all metrics: [metrics, n_resamples].

    Args:
        measures: over the same n >= 1 studies.
        n_resamples: how often n studies are drawn with replacement.
        seed: of the resamples.

    Raises:
        ValueError: no study, or measures over different numbers of them.
    """
    sizes = {measure.n for measure in measures}
    if sizes == {0}:
        raise ValueError("Nothing to resample: there is no study")
    if len(sizes) != 1:
        raise ValueError(f"Measures over different numbers of studies cannot be paired: {sorted(sizes)}")
    statistics = np.concatenate([measure.statistics for measure in measures], axis=1, dtype=np.float64)
    ends = np.cumsum([measure.statistics.shape[1] for measure in measures])
    values = np.empty((len(measures), n_resamples))
    done = 0
    for counts in _resample_counts(len(statistics), n_resamples, seed):
        parts = np.split(counts @ statistics, ends[:-1], axis=1)
        for row, (measure, sums) in enumerate(zip(measures, parts, strict=True)):
            values[row, done : done + len(counts)] = measure.reduce(sums)
        done += len(counts)
    return values


def _resample_counts(n: int, n_resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each of n studies is drawn, [r, n] at a time, r such that memory stays under some 64 MB."""
    generator = np.random.default_rng(seed)
    at_a_time = max(1, 8_000_000 // n)
    for start in range(0, n_resamples, at_a_time):
        rows = min(at_a_time, n_resamples - start)
        drawn = generator.integers(0, n, (rows, n)) + np.arange(rows)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)
