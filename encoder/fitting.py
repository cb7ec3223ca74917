"""What all probes share: the loss, the weight decay chosen on val, the measures on test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from encoder import measures
from encoder.measures import Measured
from encoder.probe_config import Kind, ProbeConfig
from encoder.targets import Target
from raddraft.errors import RadDraftError
from raddraft.studies import SPLITS


@dataclass
class ProbeResult:
    """How well a probe does on the split that is evaluated."""

    kind: Kind
    names: tuple[str, ...]
    config: ProbeConfig
    weight_decay: float | None  # the chosen one; None for knn
    n: dict[str, int]  # images in each split
    measures: dict[str, dict[str, Measured]]
    """Finding, class or quantity, and `macro` -> auroc, auprc, balanced_accuracy (of a class: recall); r2, mae."""
    notes: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: estimates without their resamples."""
        estimates = {
            name: {key: asdict(one.estimate) for key, one in row.items()} for name, row in self.measures.items()
        }
        return vars(self) | {"config": asdict(self.config), "measures": estimates}


Scores = dict[float, list[np.ndarray]]
"""Weight decay -> for each seed, scores of all images [n, C]."""

RANKING = {"auroc": measures.auroc, "auprc": measures.average_precision}
MEASURES: dict[Kind, dict[str, measures.Metric]] = {
    "multilabel": RANKING | {"balanced_accuracy": measures.balanced_accuracy},
    "multiclass": RANKING | {"recall": measures.recall},
    "regression": {"r2": measures.r2, "mae": measures.mae},
}
WHY_UNIQUE = {"lbfgs": "the objective is convex, with one optimum", "knn": "nothing is fitted"}


def choose_and_measure(
    target: Target, fit: Callable[[Target], Scores], config: ProbeConfig, started: float
) -> ProbeResult:
    """Fit what varies in train, choose the weight decay on val, measure on the split that the config names.

    Raises:
        RadDraftError: no train image, or no val image by which a weight decay could be chosen.
    """
    n = {split: int((target.splits == split).sum()) for split in SPLITS}
    if not n["train"]:
        raise RadDraftError(f"No train image has both labels and features to fit a probe on: {n}")
    unfit = target.constant
    fitted = np.array([name not in unfit for name in target.names])
    notes = [*target.notes, *(f"{name}: {why}" for name, why in unfit.items())]
    # What notes the fit adds belong to this result, not to the target.
    part = replace(target, names=tuple(np.array(target.names)[fitted].tolist()), y=target.y[:, fitted], notes=notes)
    found = fit(part) if fitted.any() else {config.decays[0]: [np.empty((len(target.paths), 0))]}
    decay = config.decays[0] if len(found) == 1 else _choose(found, part, config)
    tables = []
    for scores in found[decay]:
        whole = np.full(target.y.shape, np.nan)
        whole[:, fitted] = scores
        tables.append(_tabulate(target, whole, unfit, config))
    unique = config.solver != "adamw"
    if unique:
        notes.append("every seed gives the same (sd 0): " + WHY_UNIQUE[config.solver])
    measured = {
        name: {key: measures.over_seeds([table[name][key] for table in tables], unique) for key in row}
        for name, row in tables[0].items()
    }
    chosen = None if config.solver == "knn" else decay
    return ProbeResult(target.kind, target.names, config, chosen, n, measured, notes, time.perf_counter() - started)


def _choose(found: Scores, target: Target, config: ProbeConfig) -> float:
    val = target.splits == "val"
    loss = {decay: np.mean([_loss(target, scores, val) for scores in seeds]) for decay, seeds in found.items()}
    if np.isnan(list(loss.values())).any():
        raise RadDraftError(
            f"The weight decay cannot be chosen from {config.decays}: no {', '.join(target.names)} can be scored on "
            f"the {val.sum()} images of val; give one weight decay"
        )
    best = min(loss, key=lambda decay: loss[decay])
    if best in (config.decays[0], config.decays[-1]):
        target.notes.append(f"the chosen weight decay {best:g} is at the end of those tried")
    return best


def _loss(target: Target, scores: np.ndarray, rows: np.ndarray) -> float:
    """Mean loss over the known labels of some rows; for regression, in variances of train. NaN without a label."""
    y, found = target.y[rows], scores[rows]
    if target.kind == "regression":
        spread = np.nanstd(target.y[target.splits == "train"], axis=0)
        y, found = y / spread, found / spread
    known = len(y) if target.kind == "multiclass" else int((~np.isnan(y)).sum())
    return float(sum_losses(torch.from_numpy(found), torch.from_numpy(y), target.kind)) / known if known else math.nan


def _tabulate(
    target: Target, scores: np.ndarray, unfit: Mapping[str, str], config: ProbeConfig
) -> dict[str, dict[str, Measured]]:
    """All measures of scores [n, C]: column or `macro` -> name of the measure -> measured.

    A finding is decided at the threshold with the best balanced accuracy on val; among classes the one with the highest
    score is taken, and the balanced accuracy is the mean of their recalls. `unfit` says why a column has no scores.
    """
    val, shown = target.splits == "val", target.splits == config.evaluate
    highest = np.where(np.isnan(scores), -np.inf, scores).argmax(1) if scores.shape[1] else scores
    rows: dict[str, dict[str, Measured]] = {}
    for column, name in enumerate(target.names):
        truth, predicted = target.y[:, column], scores[:, column]
        inputs = dict.fromkeys(MEASURES[target.kind], predicted)
        reasons = dict.fromkeys(inputs, unfit.get(name))
        if target.kind == "multiclass":
            inputs["recall"] = highest == column
        elif target.kind == "multilabel":
            threshold = None if name in unfit else measures.best_threshold(truth[val], predicted[val])
            inputs["balanced_accuracy"] = predicted >= (threshold or 0.0)
            if config.evaluate == "val":
                reasons["balanced_accuracy"] = "thresholds are chosen on val"
            elif threshold is None:
                reasons["balanced_accuracy"] = unfit.get(
                    name, "val does not hold both classes, to choose a threshold by"
                )
        drawn = target.subjects[shown], config.resamples, config.resample_seed
        rows[name] = {
            key: measures.measure(MEASURES[target.kind][key], truth[shown], values[shown], *drawn, reasons[key])
            for key, values in inputs.items()
        }
    keys = MEASURES[target.kind] if rows else ()
    average = {key: measures.macro({name: row[key] for name, row in rows.items()}) for key in keys}
    if "recall" in average:
        average["balanced_accuracy"] = average.pop("recall")
    return rows | {"macro": average}


def sum_losses(outputs: Tensor, y: Tensor, kind: Kind) -> Tensor:
    """Sum of the losses over all known labels; outputs and y [B, C]."""
    y = y.to(outputs)
    if kind == "multiclass":
        return functional.cross_entropy(outputs, y, reduction="sum")
    known = (~y.isnan()).to(outputs.dtype)
    if kind == "regression":
        return ((outputs - y.nan_to_num()).square() * known).sum()
    return functional.binary_cross_entropy_with_logits(outputs, y.nan_to_num(), known, reduction="sum")


def as_scores(outputs: Tensor, kind: Kind) -> np.ndarray:
    """Outputs [n, C] as scores: classes are ranked by log-probabilities, which depend on the other classes' logits."""
    return (outputs.double().log_softmax(1) if kind == "multiclass" else outputs.double()).numpy()


def rows_in(target: Target, *splits: str) -> Tensor:
    """Positions of the images of some splits."""
    return torch.from_numpy(np.flatnonzero(np.isin(target.splits, splits)))


def moments(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of the rows of all chunks [n, D]; 1 in place of 0."""
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        chunk = chunk.double().cpu()
        n, total, squares = n + len(chunk), total + chunk.sum(0), squares + chunk.square().sum(0)
    mean = total / n
    variance = squares / n - mean.square()
    varies = variance > 1e-13 * mean.square()  # the rest of a constant is rounding
    return mean, torch.where(varies, variance, 1.0).sqrt()
