"""Metrics as statistics that add up, and draws of them: one bootstrap for reports, probes and masks.

A metric is given as per-study statistics that add up (ROUGE values, n-gram counts, true and false positives) and a
function from their sums to the value. A resample is then a row of counts, and all resamples of all metrics are one
matrix product: no study is scored twice, and systems that are resampled together are paired.

Percentile intervals are what papers print; `raddraft.jackknife` has intervals and tests that hold for few studies.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.ranges import LARGEST

Reduce = Callable[[np.ndarray], np.ndarray]
Units = Sequence[Hashable] | np.ndarray
"""The unit of each study [n]: its subject; for studies by themselves, anything that differs from row to row."""

UNBOUNDED = (-math.inf, math.inf)
AT_A_TIME = 4_000_000
"""Counts that are held at once, 32 MB."""


@dataclass
class Measure:
    """A metric over n studies, before it is reduced to a number."""

    statistics: np.ndarray
    """Per-study statistics [n, k]; of any type of number, truths too. Sums are float64."""
    reduce: Reduce
    """Sums of the statistics over the studies drawn [r, k] -> values [r]."""
    signature: str
    """How the number is made: implementation, version and every choice; not the number of studies."""
    is_mean: bool = False
    """Whether the value is the mean of per-study scores, which are the first column of the statistics."""
    bounds: tuple[float, float] = (0.0, 1.0)
    """Range of the value; with finite ends, no study or subset has one outside."""
    positives: Callable[[np.ndarray], np.ndarray] | None = None
    """For F1: statistics [n, k] -> positives of each class among the references [n, classes]."""

    @property
    def n(self) -> int:
        """Number of studies."""
        return len(self.statistics)

    @property
    def value(self) -> float:
        """The metric over all studies."""
        return float(self.reduce(self.statistics.sum(0, keepdims=True, dtype=np.float64))[0])

    @property
    def per_study(self) -> np.ndarray | None:
        """Per-study scores [n]; None for metrics of the whole corpus, such as BLEU and F1."""
        return self.statistics[:, 0] if self.is_mean else None

    def subset(self, index: np.ndarray) -> Measure:
        """The same metric over the studies at these positions."""
        return replace(self, statistics=self.statistics[index])


def take(measures: Mapping[str, Measure], index: np.ndarray) -> dict[str, Measure]:
    """The same metrics over the studies at these positions; statistics that they share stay shared."""
    shared = {id(one.statistics): one.statistics for one in measures.values()}
    taken = {key: statistics[index] for key, statistics in shared.items()}
    return {name: replace(one, statistics=taken[id(one.statistics)]) for name, one in measures.items()}


def mean_measure(
    scores: Sequence[float] | np.ndarray, signature: str, bounds: tuple[float, float] = (0.0, 1.0)
) -> Measure:
    """The mean of per-study scores."""
    statistics = np.column_stack([scores, np.ones(len(scores))])
    return Measure(statistics, lambda sums: sums[:, 0] / sums[:, 1], signature, is_mean=True, bounds=bounds)


def average(measures: Sequence[Measure]) -> Measure:
    """The mean of measures over the same studies, of several runs say, as one; signed and bounded as the first."""
    if len(measures) == 1:
        return measures[0]
    first = measures[0]
    ends = np.cumsum([one.statistics.shape[1] for one in measures])[:-1]

    def reduce(sums: np.ndarray) -> np.ndarray:
        parts = zip(measures, np.split(sums, ends, axis=1), strict=True)
        return np.mean([one.reduce(part) for one, part in parts], axis=0)

    def positives(statistics: np.ndarray) -> np.ndarray:
        parts = zip(measures, np.split(statistics, ends, axis=1), strict=True)
        return np.sum([one.positives(part) for one, part in parts if one.positives], axis=0)

    statistics = np.concatenate([one.statistics for one in measures], axis=1)
    return Measure(statistics, reduce, first.signature, False, first.bounds, positives if first.positives else None)


def draw(units: Units, resamples: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each row is drawn, [r, n] float64 at a time: as many units as there are, with replacement.

    Args:
        units: the unit of each row [n]. With subjects, all images of a subject are drawn together.
        resamples: how many sets are drawn.
        seed: of the draws. The same units, resamples and seed give the same draws.
    """
    _, index = np.unique(np.asarray(units), return_inverse=True)
    n_units = int(index.max()) + 1
    generator = np.random.default_rng(seed)
    at_a_time = max(1, AT_A_TIME // len(index))
    for start in range(0, resamples, at_a_time):
        rows = min(at_a_time, resamples - start)
        drawn = generator.integers(0, n_units, (rows, n_units)) + np.arange(rows)[:, None] * n_units
        counts = np.bincount(drawn.ravel(), minlength=rows * n_units).reshape(rows, n_units).astype(np.float64)
        yield counts if n_units == len(index) and (index == np.arange(n_units)).all() else counts[:, index]


def resample(
    measures: Sequence[Measure], resamples: int = 500, seed: int = 0, subjects: Units | None = None
) -> np.ndarray:
    """Each metric on the same resamples: [metrics, resamples].

    Args:
        measures: over the same n >= 1 studies.
        resamples: how many.
        seed: of the draws.
        subjects: of the studies [n]; subjects are drawn instead of studies.

    Raises:
        RadDraftError: no study, or measures over different numbers of them.
    """
    sizes = {measure.n for measure in measures}
    if sizes == {0}:
        raise RadDraftError("Nothing to resample: there is no study")
    if len(sizes) != 1:
        raise RadDraftError(f"Measures over different numbers of studies cannot be paired: {sorted(sizes)}")
    (statistics,), columns = side_by_side(measures)
    values = np.empty((len(measures), resamples))
    done = 0
    for counts in draw(np.arange(sizes.pop()) if subjects is None else subjects, resamples, seed):
        sums = counts @ statistics
        for row, (measure, part) in enumerate(zip(measures, columns, strict=True)):
            values[row, done : done + len(counts)] = measure.reduce(sums[:, part])
        done += len(counts)
    return values


def side_by_side(*systems: Sequence[Measure]) -> tuple[list[np.ndarray], list[slice]]:
    """Statistics of the same metrics of each system [n, k], and the columns of each metric.

    Metrics that share their statistics, as BLEU-1 to 4 do, share the columns.
    """
    metrics = list(zip(*systems, strict=True))
    keys = [tuple(id(one.statistics) for one in metric) for metric in metrics]
    distinct = dict(zip(keys, metrics, strict=True))
    ends = np.cumsum([0, *(metric[0].statistics.shape[1] for metric in distinct.values())]).tolist()
    columns = dict(zip(distinct, itertools.starmap(slice, itertools.pairwise(ends)), strict=True))
    statistics = [
        np.concatenate([one.statistics for one in system], axis=1, dtype=np.float64)
        for system in zip(*distinct.values(), strict=True)
    ]
    return statistics, [columns[key] for key in keys]


def check_resamples(resamples: int, seed: int) -> None:
    """Raise RadDraftError unless resamples >= 1 and seed >= 0, both whole numbers."""
    for name, value in (("resamples", resamples), ("seed", seed)):
        if isinstance(value, bool) or not isinstance(value, Integral) or value > LARGEST:
            raise RadDraftError(f"{name} must be a whole number of at most {LARGEST}, got {value!r}")
    if resamples < 1 or seed < 0:
        raise RadDraftError(f"Need at least 1 resample and a seed of at least 0, got {resamples} and {seed}")


@dataclass
class Interval:
    """Percentile interval and median of resampled values."""

    low: float
    high: float
    median: float


def interval(values: np.ndarray, level: float = 0.95) -> Interval | None:
    """Percentile interval (Efron; as in MAIRA-2 and LLaVA-Rad) of resampled values.

    Args:
        values: [r]; NaN, a resample in which the metric is undefined, is left out.
        level: coverage in (0, 1).

    Returns:
        The interval, or None where no value is defined.
    """
    defined = values[~np.isnan(values)]
    if not len(defined):
        return None
    low, median, high = np.quantile(defined, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Interval(float(low), float(high), float(median))


def p_value(differences: np.ndarray) -> float:
    """Two-sided p of the hypothesis that a difference is 0, from its paired resamples [r].

    Twice the smaller share of resamples on either side of 0, 0 itself included; the observed sample counts as one
    resample, so that r resamples give no p below 2 / (r + 1) (Davison and Hinkley, 1997, section 4.2). Differences
    below 1e-12 are rounded to 0: sums of equal numbers differ by rounding.
    """
    differences = differences.round(12)
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (len(differences) + 1)))


def difference(value: float, resampled: np.ndarray) -> dict[str, float] | None:
    """A difference of two systems as {"value", "low", "high", "p"}, from its paired resamples [r]; NaN are left out.

    None where the difference is undefined in all resamples.
    """
    resampled = resampled[~np.isnan(resampled)]
    bounds = interval(resampled)
    if bounds is None:
        return None
    return {"value": value, "low": bounds.low, "high": bounds.high, "p": p_value(resampled)}


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """p-values corrected for their number by Holm's step-down method (1979), by the same keys.

    >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
    {'a': 0.03, 'c': 0.06, 'b': 0.06}
    """
    corrected: dict[Any, float] = {}
    running = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[key]))
        corrected[key] = running
    return corrected
