"""What a probe is measured by, with percentile bootstrap intervals by subject: all resamples at once.

    measured = measure(auroc, truth, scores, subjects)
    measured.estimate                     # value, low, high, n, n_positive

A resample draws as many subjects as there are, with replacement; an image weighs as often as its subject is drawn. The
images are sorted by score once, and cumulative sums of the weights give the curve of every resample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.stats import draw, interval

Metric = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""(truth [n], scores or predictions [n], weights [R, n]) -> values [R], NaN where undefined."""


def auroc(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, ties counted by half; undefined where a class has no weight."""
    positive, negative = _curve(truth, scores, weights)
    height = positive - _steps(positive) / 2
    return _ratio((_steps(negative) * height).sum(1), positive[:, -1] * negative[:, -1])


def average_precision(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """AUPRC as average precision: precision summed over the steps of recall, without interpolation.

    Undefined where a class has no weight, although it would be 1 without negatives.
    """
    positive, negative = _curve(truth, scores, weights)
    precision = np.nan_to_num(_ratio(positive, positive + negative))  # no weight yet, no step
    values = _ratio((_steps(positive) * precision).sum(1), positive[:, -1])
    return np.where(negative[:, -1] > 0, values, np.nan)


def recall(truth: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of the positives that are decided positive; the mean over classes is their balanced accuracy."""
    return _ratio(weights @ (truth * decided), weights @ truth)


def balanced_accuracy(truth: np.ndarray, decided: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean of sensitivity and specificity of decisions 0 or 1; undefined where a class has no weight."""
    return (recall(truth, decided, weights) + recall(1 - truth, 1 - decided, weights)) / 2


def r2(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficient of determination; undefined where the truth does not vary."""
    centred = truth - truth.mean()  # the variance of large numbers would lose digits
    total = weights.sum(1)
    variation = weights @ centred**2 - (weights @ centred) ** 2 / total
    varies = variation > 1e-12 * np.maximum(weights @ centred**2, 1e-300)
    return 1 - _ratio(weights @ (truth - predicted) ** 2, np.where(varies, variation, 0))


def mae(truth: np.ndarray, predicted: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean absolute error, in the unit of the truth."""
    return _ratio(weights @ np.abs(truth - predicted), weights.sum(1))


REGRESSION: tuple[Metric, ...] = (r2, mae)


@dataclass(frozen=True)
class Estimate:
    """A measure on the test images with its 95 % interval; without a value there is a reason."""

    value: float | None
    low: float | None
    high: float | None
    n: int
    """Images with a label."""
    n_positive: int | None = None
    """Positive ones; None for regression and averages."""
    sd: float | None = None
    """Standard deviation over the seeds of a probe."""
    reason: str | None = None
    """Why there is no value, or which findings an average is without."""


@dataclass(frozen=True)
class Measured:
    """An estimate and the resamples behind it."""

    estimate: Estimate
    resamples: np.ndarray
    """The measure on each resample: [R], NaN where undefined."""
    sample: str
    """Digest of subjects, truth and seed: what has the same can be compared in pairs."""


def measure(
    metric: Metric,
    truth: np.ndarray,
    predicted: np.ndarray,
    subjects: Sequence[str] | np.ndarray,
    n_resamples: int = 500,
    seed: int = 0,
    reason: str | None = None,
) -> Measured:
    """A measure with its percentile interval by subject.

    Resamples in which it is undefined, since they hold one class only, are left out of the percentiles.

    Args:
        metric: one of this module, or of its form.
        truth: [n], NaN where unknown: such images are left out, though their subjects are drawn as all others.
        predicted: scores, decisions or predictions [n].
        subjects: of the images [n].
        n_resamples: how often the subjects are drawn.
        seed: of the draws.
        reason: why nothing was predicted, if so.

    Raises:
        ValueError: lengths that differ, or a prediction that is not finite.
    """
    if not len(truth) == len(predicted) == len(subjects):
        raise RadDraftError(
            f"{len(truth)} truths, {len(predicted)} predictions and {len(subjects)} subjects do not fit"
        )
    regression = metric in REGRESSION
    known = ~np.isnan(truth)
    there = truth[known].astype(float)
    n, n_positive = len(there), None if regression else int(there.sum())
    reason = reason or _undefined(there, metric)
    sample = _digest(np.asarray(subjects, str), truth, n_resamples, seed)
    if reason:
        return Measured(Estimate(None, None, None, n, n_positive, reason=reason), np.full(n_resamples, np.nan), sample)
    kept = predicted[known].astype(float)
    if not np.isfinite(kept).all():
        raise RadDraftError(f"{(~np.isfinite(kept)).sum()} of {n} predictions are not finite")
    value = float(metric(there, kept, np.ones((1, n)))[0])
    chunks = [metric(there, kept, weights[:, known]) for weights in draw(np.asarray(subjects, str), n_resamples, seed)]
    resamples = np.concatenate(chunks) if chunks else np.empty(0)
    return Measured(Estimate(value, *_percentiles(resamples), n, n_positive), resamples, sample)


def macro(parts: Mapping[str, Measured]) -> Measured:
    """Mean over findings. Undefined ones are left out, and named; so they are in each resample."""
    defined = {name: part for name, part in parts.items() if part.estimate.value is not None}
    missing = [f"{name} ({part.estimate.reason})" for name, part in parts.items() if name not in defined]
    reason = f"without {', '.join(missing)}" if missing else None
    if not defined:
        reason = f"undefined for all: {', '.join(missing)}"
    return _mean(list(defined.values()) or list(parts.values()), reason)


def over_seeds(parts: Sequence[Measured], unique: bool = False) -> Measured:
    """Mean of the same measure over the seeds of a probe, its standard deviation (n - 1), the interval of the mean.

    Args:
        parts: one for each seed; those that are undefined are left out, and counted in the reason.
        unique: whether every seed would give the same: the standard deviation is 0 then, and not unknown, of one.
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


def tabulate(
    kind: str,
    names: Sequence[str],
    y: np.ndarray,
    scores: np.ndarray,
    splits: np.ndarray,
    subjects: np.ndarray,
    unfit: Mapping[str, str],
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, dict[str, Measured]]:
    """All measures of a probe on the test images: column or `macro` -> name of the measure -> measured.

    A finding is decided at the threshold that gives the best balanced accuracy on val; of classes the one with the
    highest score is taken, and the balanced accuracy is the mean of their recalls.

    Args:
        kind: multilabel, multiclass or regression.
        names: of the columns.
        y: truth [n, C], NaN where unknown.
        scores: [n, C]; those of val and test count.
        splits, subjects: of the images [n].
        unfit: column -> why it has no scores.
        n_resamples, seed: as for `measure`.
    """
    val, test = splits == "val", splits == "test"
    highest = np.where(np.isnan(scores), -np.inf, scores).argmax(1) if scores.shape[1] else scores
    rows: dict[str, dict[str, Measured]] = {}
    for column, name in enumerate(names):
        truth, predicted, reason = y[test, column], scores[test, column], unfit.get(name)
        metrics: dict[str, tuple[Metric, np.ndarray, str | None]]
        if kind == "regression":
            metrics = {"r2": (r2, predicted, reason), "mae": (mae, predicted, reason)}
        else:
            metrics = {"auroc": (auroc, predicted, reason), "auprc": (average_precision, predicted, reason)}
        if kind == "multiclass":
            metrics["recall"] = (recall, highest[test] == column, reason)
        elif kind == "multilabel":
            threshold = None if reason else best_threshold(y[val, column], scores[val, column])
            no_threshold = "val does not hold both classes, to choose a threshold by" if threshold is None else None
            decided = predicted >= (threshold or 0.0)
            metrics["balanced_accuracy"] = (balanced_accuracy, decided, reason or no_threshold)
        rows[name] = {
            key: measure(metric, truth, values, subjects[test], n_resamples, seed, why)
            for key, (metric, values, why) in metrics.items()
        }
    keys = next(iter(rows.values())) if rows else {}
    average = {key: macro({name: row[key] for name, row in rows.items()}) for key in keys}
    if "recall" in average:
        average["balanced_accuracy"] = average.pop("recall")
    return rows | {"macro": average}


def as_dict(measures: Mapping[str, Mapping[str, Measured]]) -> dict[str, dict[str, Any]]:
    """Estimates without their resamples, for JSON."""
    return {name: {kind: asdict(one.estimate) for kind, one in row.items()} for name, row in measures.items()}


def _curve(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weight of positives and of negatives at or above each distinct score, from the highest down: two [R, G]."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last of each group of ties
    drawn = weights[:, order]
    every = np.cumsum(drawn, axis=1)[:, ends]
    drawn *= truth[order]
    positive = np.cumsum(drawn, axis=1)[:, ends]
    return positive, every - positive


def _steps(curve: np.ndarray) -> np.ndarray:
    return np.diff(curve, axis=1, prepend=0)


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


def _percentiles(resamples: np.ndarray) -> tuple[float | None, float | None]:
    bounds = interval(resamples)
    return (bounds.low, bounds.high) if bounds else (None, None)


def _mean(parts: Sequence[Measured], reason: str | None) -> Measured:
    values = [part.estimate.value for part in parts if part.estimate.value is not None]
    resamples = np.stack([part.resamples for part in parts])
    resamples = _ratio(np.nansum(resamples, axis=0), (~np.isnan(resamples)).sum(0).astype(float))
    estimate = Estimate(
        float(np.mean(values)) if values else None,
        *_percentiles(resamples),
        max(part.estimate.n for part in parts),
        reason=reason,
    )
    return Measured(estimate, resamples, _digest(*(part.sample for part in parts)))


def _digest(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.tobytes() if isinstance(part, np.ndarray) else str(part).encode())
        digest.update(b"|")
    return digest.hexdigest()
