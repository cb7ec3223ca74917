"""Score drafts against reports: every metric with its interval and the signature that says how it was made."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metrics.bootstrap import Measure, bootstrap
from metrics.labels import Uncertain, f1_measures
from metrics.rules import OBSERVATIONS, VERSION, label
from metrics.text import bleu, rouge_l


@dataclass
class Prediction:
    """A draft beside the report it is measured against."""

    study_id: str
    prediction: str
    reference: str


def _bleu_measures(predictions: Sequence[str], references: Sequence[str], _: Uncertain) -> dict[str, Measure]:
    return {f"bleu_{order}": measure for order, measure in bleu(predictions, references).items()}


def _rule_measures(predictions: Sequence[str], references: Sequence[str], uncertain: Uncertain) -> dict[str, Measure]:
    ours, theirs = [label(text) for text in predictions], [label(text) for text in references]
    return f1_measures(ours, theirs, OBSERVATIONS, "rule", f"raddraft rules {VERSION}", uncertain)


F1_NAMES = ("macro_f1_14", "micro_f1_14", "macro_f1_5", "micro_f1_5")

# The names that a family computes together -> how.
FAMILIES: dict[tuple[str, ...], Callable[[Sequence[str], Sequence[str], Uncertain], dict[str, Measure]]] = {
    ("rouge_l",): lambda predictions, references, _: {"rouge_l": rouge_l(predictions, references)},
    ("bleu_1", "bleu_2", "bleu_3", "bleu_4"): _bleu_measures,
    tuple(f"rule_{name}" for name in F1_NAMES): _rule_measures,
}
METRICS = tuple(name for names in FAMILIES for name in names)


def measure(
    predictions: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] | None = None,
    uncertain: Uncertain = "negative",
) -> dict[str, Measure]:
    """Per-study statistics of the metrics asked for (by default all).

    Raises:
        ValueError: unequal lengths, nothing to score, no metric, or an unknown one.
    """
    if len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} predictions and {len(references)} references: the numbers must be equal")
    if not predictions:
        raise ValueError("Nothing to score: there is no prediction")
    wanted = METRICS if metrics is None else tuple(metrics)
    if not wanted:
        raise ValueError(f"No metric is asked for. Choices: {', '.join(METRICS)}")
    for name in wanted:
        if name not in METRICS:
            raise ValueError(f"Unknown metric {name!r}. Choices: {', '.join(METRICS)}")
    found: dict[str, Measure] = {}
    for names, compute in FAMILIES.items():
        if set(names) & set(wanted):
            found |= compute(predictions, references, uncertain)
    return {name: found[name] for name in wanted}


def score(
    predictions: Sequence[str],
    references: Sequence[str],
    metrics: Sequence[str] | None = None,
    uncertain: Uncertain = "negative",
    n_resamples: int = 500,
    seed: int = 0,
) -> dict[str, Any]:
    """Score drafts against reports.

    Args:
        predictions, references: one text a report, in the same order.
        metrics: names of `METRICS`; by default all.
        uncertain: what an uncertain observation counts as in the F1s.
        n_resamples: bootstrap resamples for the 95 % percentile intervals.
        seed: of the resamples.

    Returns:
        {"n", "metrics": {name: {"value", "low", "high", "median", "signature"}}, "skipped": {name: reason}}

    Raises:
        ValueError: as `measure`, or resamples or a seed out of range.
    """
    if n_resamples < 1 or seed < 0:
        raise ValueError(f"Need at least 1 resample and a seed of at least 0, got {n_resamples} and {seed}")
    measures = measure(predictions, references, metrics, uncertain)
    results = {}
    for name, one in measures.items():
        interval = bootstrap(one, n_resamples, seed=seed)
        results[name] = {
            "value": one.value,
            "low": interval.low,
            "high": interval.high,
            "median": interval.median,
            "signature": f"{one.signature}|bootstrap:{n_resamples} seed {seed}",
        }
    return {"n": len(predictions), "metrics": results, "skipped": {}}


def read_predictions(path: str | Path) -> tuple[list[Prediction], int]:
    """Predictions that have a reference, and the number of those that have none.

    Raises:
        ValueError: broken JSON, a missing key or wrong type, a study twice, or no prediction with a reference.
    """
    path = Path(path)
    predictions: list[Prediction] = []
    first_line: dict[str, int] = {}
    n_without = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            row = _parse(line, where)
            study_id = row["study_id"]
            if study_id in first_line:
                raise ValueError(f"{where}: study {study_id!r} stands already on line {first_line[study_id]}")
            first_line[study_id] = number
            if row.get("reference") is None:
                n_without += 1
            else:
                predictions.append(Prediction(study_id, row["prediction"], row["reference"]))
    if not predictions:
        raise ValueError(f"{path}: no prediction with a reference ({n_without} without)")
    return predictions, n_without


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise ValueError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"{where}: expected an object, got {type(row).__name__}")
    for key in ("study_id", "prediction"):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{where}: {key} must be a string, got {row.get(key)!r}")
    if not isinstance(row.get("reference"), str | None):
        raise ValueError(f"{where}: reference must be a string or null, got {row['reference']!r}")
    return row
