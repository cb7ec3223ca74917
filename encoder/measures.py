"""Measures of probes, with percentile bootstrap intervals by subject.

    measured = measure(auroc, truth, scores, subjects)
    measured.estimate                     # value, low, high, n, n_positive

All resamples are computed at once: images are sorted by score once, and cumulative sums of their weights (how often
the subject is drawn) give the curve of every resample. scikit-learn would sort again for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.files import digest_json
from raddraft.stats import draw, interval

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth [n], scores or predictions [n], weights [R, n]) -> values [R], NaN where undefined."""


def auroc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, ties counted by half; undefined where a class has no weight."""
    positive, negative = _curve(truth, scores, weights)
    height = positive - np.diff(positive, prepend=0) / 2
    return _ratio((np.diff(negative, prepend=0) * height).sum(1), positive[:, -1] * negative[:, -1])


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUPRC as average precision: precision summed over the steps of recall, without interpolation.

    Undefined where a class has no weight, although it would be 1 without negatives.
    """
    positive, negative = _curve(truth, scores, weights)
    precision = np.nan_to_num(_ratio(positive, positive + negative))  # no weight yet, no step
    values = _ratio((np.diff(positive, prepend=0) * precision).sum(1), positive[:, -1])
    return np.where(negative[:, -1] > 0, values, np.nan)


def recall(truth: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the positives that are decided positive; the mean over classes is their balanced accuracy."""
    return _ratio(weights @ (truth * decided), weights @ truth)


def balanced_accuracy(truth: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of sensitivity and specificity of decisions 0 or 1; undefined where a class has no weight."""
    return (recall(truth, decided, weights) + recall(1 - truth, 1 - decided, weights)) / 2


def r2(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficient of determination; undefined where the truth does not vary."""
    centered = truth - truth.mean()  # the variance of large numbers would lose digits
    total = weights.sum(1)
    variation = weights @ centered**2 - (weights @ centered) ** 2 / total
    varies = variation > 1e-12 * np.maximum(weights @ centered**2, 1e-300)
    return 1 - _ratio(weights @ (truth - predicted) ** 2, np.where(varies, variation, 0))


def mae(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean absolute error, in the unit of the truth."""
    return _ratio(weights @ np.abs(truth - predicted), weights.sum(1))


REGRESSION: tuple[Metric, ...] = (r2, mae)


@dataclass(frozen=True)
class Estimate:
    """A measure with its 95 % interval; without a value there is a reason."""

    value: float | None
    low: float | None
    high: float | None
    n: int  # images with a label
    n_positive: int | None = None  # None for regression and averages
    sd: float | None = None  # standard deviation over the seeds of a probe
    reason: str | None = None  # why there is no value, or which findings an average leaves out


@dataclass(frozen=True)
class Measured:
    """An estimate and the resamples behind it."""

    estimate: Estimate
    resamples: np.ndarray  # the measure on each resample: [R], NaN where undefined
    sample: str  # digest of subjects, truth and seed: measures with the same one can be compared in pairs


def measure(
    metric: Metric,
    truth: np.ndarray,
    predicted: np.ndarray,
    subjects: Sequence[str] | np.ndarray,
    resamples: int = 500,
    seed: int = 0,
    reason: str | None = None,
) -> Measured:
    """A measure with its percentile interval by subject; resamples in which it is undefined are left out of it.

    Args:
        metric: one of this module, or of its form.
        truth: [n], NaN where unknown: such images are left out, though their subjects are drawn like all others.
        predicted: scores, decisions or predictions [n].
        subjects: of the images [n].
        resamples: number of draws of the subjects.
        seed: of the draws.
        reason: why nothing was predicted, if so.

    Raises:
        RadDraftError: a prediction is not finite.
    """
    people = np.asarray(subjects, str)
    known = ~np.isnan(truth)
    there = truth[known].astype(float)
    n, n_positive = len(there), None if metric in REGRESSION else int(there.sum())
    reason = reason or _undefined(there, metric)
    sample = digest_json(people.tolist(), truth.tolist(), resamples, seed)
    if reason:
        return Measured(Estimate(None, None, None, n, n_positive, reason=reason), np.full(resamples, np.nan), sample)
    kept = predicted[known].astype(float)
    if not np.isfinite(kept).all():
        raise RadDraftError(f"{(~np.isfinite(kept)).sum()} of {n} predictions are not finite")
    value = float(metric(there, kept, np.ones((1, n)))[0])
    drawn = np.concatenate([metric(there, kept, weights[:, known]) for weights in draw(people, resamples, seed)])
    return Measured(Estimate(value, *bounds(drawn), n, n_positive), drawn, sample)


def macro(parts: Mapping[str, Measured]) -> Measured:
    """Mean over findings. Undefined ones are left out, and named; likewise in each resample."""
    defined = {name: part for name, part in parts.items() if part.estimate.value is not None}
    missing = [f"{name} ({part.estimate.reason})" for name, part in parts.items() if name not in defined]
    reason = f"{'without' if defined else 'undefined for all:'} {', '.join(missing)}" if missing else None
    return _mean(list(defined.values()) or list(parts.values()), reason)


def over_seeds(parts: Sequence[Measured], unique: bool = False) -> Measured:
    """Mean of the same measure over the seeds of a probe, its standard deviation (n - 1), the interval of the mean.

    Args:
        parts: one for each seed; undefined ones are left out, and counted in the reason.
        unique: whether every seed would give the same: the standard deviation of one is then 0, and not unknown.
    """
    first = parts[0]
    defined = [part for part in parts if part.estimate.value is not None]
    if not defined:
        return first
    values = [part.estimate.value for part in defined]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0 if unique else None  # type: ignore[arg-type]
    undefined = f"undefined in {len(parts) - len(defined)} of {len(parts)}" if len(defined) < len(parts) else None
    mean = _mean(defined, undefined or first.estimate.reason)
    return Measured(replace(mean.estimate, n_positive=first.estimate.n_positive, sd=sd), mean.resamples, first.sample)


def best_threshold(truth: np.ndarray, scores: np.ndarray) -> float | None:
    """The score from which on to decide positive, by balanced accuracy (Youden's index); None without both classes."""
    known = ~np.isnan(truth)
    truth, scores = truth[known], scores[known]
    if _undefined(truth, balanced_accuracy):
        return None
    positive, negative = _curve(truth, scores, np.ones((1, len(truth))))
    best = np.argmax(positive[0] / positive[0, -1] - negative[0] / negative[0, -1])
    return float(np.unique(scores)[::-1][best])


def _curve(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at or above each distinct score, from the highest down: two [R, G]."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last of each group of ties
    drawn = weights[:, order]
    every = np.cumsum(drawn, axis=1)[:, ends]
    drawn *= truth[order]
    positive = np.cumsum(drawn, axis=1)[:, ends]
    return positive, every - positive


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _undefined(truth: np.ndarray, metric: Metric) -> str | None:
    """Why a measure is undefined on all images."""
    if not len(truth):
        return "no image has a label"
    if metric is r2 and (truth == truth[0]).all():
        return f"all {len(truth)} values are the same"
    if metric in REGRESSION:
        return None
    if not truth.any():
        return f"none of {len(truth)} images is positive"
    return f"all {len(truth)} images are positive" if truth.all() and metric is not recall else None


def bounds(resamples: np.ndarray) -> tuple[float | None, float | None]:
    """Ends of the 95 % interval of resampled values [R]; None where none is defined."""
    found = interval(resamples)
    return (found.low, found.high) if found else (None, None)


def _mean(parts: Sequence[Measured], reason: str | None) -> Measured:
    values = [part.estimate.value for part in parts if part.estimate.value is not None]
    drawn = np.stack([part.resamples for part in parts])
    drawn = _ratio(np.nansum(drawn, axis=0), (~np.isnan(drawn)).sum(0).astype(float))
    n = max(part.estimate.n for part in parts)
    estimate = Estimate(float(np.mean(values)) if values else None, *bounds(drawn), n, reason=reason)
    return Measured(estimate, drawn, digest_json(*(part.sample for part in parts)))
