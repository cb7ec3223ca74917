"""F1 of observation labels, macro and micro over 14 and over 5 observations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from raddraft.stats import Measure

# The five of the CheXpert competition (Irvin et al., arXiv 1901.07031).
FIVE = ("Cardiomegaly", "Edema", "Consolidation", "Atelectasis", "Pleural Effusion")

Labels = Mapping[str, int | None]
"""Observation -> 1 positive, 0 negative, -1 uncertain, None not mentioned."""
Uncertain = Literal["negative", "positive"]


def f1_measures(
    predictions: Sequence[Labels],
    references: Sequence[Labels],
    observations: Sequence[str],
    prefix: str,
    signature: str,
    uncertain: Uncertain = "negative",
) -> dict[str, Measure]:
    """`<prefix>_macro_f1_14` and its three siblings; `<prefix>_macro_f1_14_plus` … where uncertain is positive.

    Args:
        predictions, references: the labels of each report.
        observations: the 14 names.
        prefix: which labeler, e.g. rule or chexbert.
        signature: implementation and version of the labeler.
        uncertain: what -1 counts as; the "+" rows of papers count it as positive. Not mentioned counts as negative.
            An F1 without positives is 0.
    """
    counts = _counts(predictions, references, observations, uncertain)
    five = [observations.index(name) for name in FIVE]
    suffix = "_plus" if uncertain == "positive" else ""
    measures = {}
    for name, part in ((f"{len(observations)}", counts), ("5", counts[:, five])):
        statistics = part.reshape(len(part), -1)
        for average, reduce, positives in (("macro", _macro, _positives), ("micro", _micro, None)):
            text = f"{signature}|uncertain:{uncertain}|average:{average}|classes:{name}|zero_division:0"
            measures[f"{prefix}_{average}_f1_{name}{suffix}"] = Measure(statistics, reduce, text, positives=positives)
    return measures


def per_observation(
    predictions: Sequence[Labels],
    references: Sequence[Labels],
    observations: Sequence[str],
    uncertain: Uncertain = "negative",
) -> dict[str, dict[str, float]]:
    """Observation -> precision, recall, f1 (0 where undefined) and support (positives among the references).

    Equal to scikit-learn's precision_recall_fscore_support, whose import alone takes as long as scoring 2,000 reports.
    """
    sums = _counts(predictions, references, observations, uncertain).sum(0, dtype=np.float64)
    hit, invented, missed = sums.T
    columns = _ratio(hit, hit + invented), _ratio(hit, hit + missed), _f1(sums), hit + missed
    names = ("precision", "recall", "f1", "support")
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {name: dict(zip(names, row, strict=True)) for name, row in zip(observations, rows, strict=True)}


def _counts(
    predictions: Sequence[Labels], references: Sequence[Labels], observations: Sequence[str], uncertain: Uncertain
) -> np.ndarray:
    """Whether a report has a true positive, a false positive, a false negative of an observation: [n, classes, 3]."""
    positive = (1, -1) if uncertain == "positive" else (1,)
    ours, theirs = (
        np.array([[row.get(name) in positive for name in observations] for row in rows], dtype=bool)
        for rows in (predictions, references)
    )
    return np.stack([ours & theirs, ours & ~theirs, ~ours & theirs], axis=-1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Part / whole; 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)


def _f1(counts: np.ndarray) -> np.ndarray:
    """F1 of counts [..., 3]; 0 where there is nothing to find and nothing found."""
    hits = 2 * counts[..., 0]
    return _ratio(hits, hits + counts[..., 1] + counts[..., 2])


def _macro(sums: np.ndarray) -> np.ndarray:
    return _f1(sums.reshape(len(sums), -1, 3)).mean(1)


def _micro(sums: np.ndarray) -> np.ndarray:
    return _f1(sums @ np.tile(np.eye(3), (sums.shape[1] // 3, 1)))  # whole numbers: the product is exact


def _positives(statistics: np.ndarray) -> np.ndarray:
    """Positives of each class among the references [n, classes]."""
    hit, _, missed = np.moveaxis(statistics.reshape(len(statistics), -1, 3), -1, 0)
    return hit + missed
