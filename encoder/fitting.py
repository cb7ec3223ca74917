"""What all ways of fitting a probe share: settings, loss, the weight decay chosen on val, the measures on test."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from encoder import measures
from encoder.measures import Measured
from encoder.targets import Kind, Target
from raddraft.errors import RadDraftError
from raddraft.studies import SPLITS

Pooling = Literal["class", "mean", "both", "attention"]

DECAYS = {
    "lbfgs": (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 0.1),
    "adamw": (1.0, 1e-2, 1e-4),
    "knn": (0.0,),
}


@dataclass(frozen=True)
class ProbeConfig:
    """How a probe is fitted and measured."""

    pooling: Pooling = "class"
    """What of the features it sees; attention: a weighted mean of the patches, by a query learnt with it (AdamW)."""
    solver: Literal["lbfgs", "adamw", "knn"] = "lbfgs"
    """lbfgs: the optimum of scikit-learn's LogisticRegression (ridge regression: closed form); adamw: by epochs; knn:
    the vote of the nearest train images, nothing is fitted."""
    weight_decays: tuple[float, ...] | None = None
    """To choose from on val, the same for all findings, by the mean loss of all labels there: a small split tells
    losses apart better than rankings of its few positives. lbfgs: beside the sum of losses, a penalty of
    this / 2 * |w|^2 (C = 1 / this; ridge: alpha = this); adamw: decoupled. By default 0.1 to 1e5 by tens; 1e-4, 1e-2
    and 1 for adamw."""
    max_iterations: int = 500
    """Of L-BFGS."""
    epochs: int = 100
    """Of AdamW."""
    learning_rate: float = 1e-3
    """Of AdamW, falling to 0 by a cosine."""
    batch_size: int = 256
    """Images in a step of AdamW."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of AdamW's start and order. The optimum that L-BFGS finds is unique: seeds would change nothing."""
    neighbours: int = 20
    """Of knn."""
    temperature: float = 0.07
    """Of knn, as DINO's: an image votes with exp(cosine / temperature)."""
    resamples: int = 500
    """Behind each interval."""
    resample_seed: int = 0
    """Of the draws: towers resampled with the same one can be compared in pairs."""

    def __post_init__(self) -> None:
        if self.pooling == "attention" and self.solver != "adamw":
            raise RadDraftError(f"pooling 'attention' is learnt: it takes solver 'adamw', not {self.solver!r}")
        if self.solver == "lbfgs" and min(self.decays) <= 0:
            raise RadDraftError(f"L-BFGS takes weight decays above 0, not {min(self.decays)}: there may be no optimum")

    @property
    def decays(self) -> tuple[float, ...]:
        """Weight decays to try, the strongest first."""
        return tuple(sorted(self.weight_decays or DECAYS[self.solver], reverse=True))


@dataclass
class ProbeResult:
    """How well a probe does on test."""

    kind: Kind
    names: tuple[str, ...]
    config: ProbeConfig
    weight_decay: float | None
    """The chosen one; None of knn."""
    n: dict[str, int]
    """Images in each split."""
    measures: dict[str, dict[str, Measured]]
    """Finding, class or quantity, and `macro` -> auroc, auprc, balanced_accuracy (of a class: recall); r2, mae."""
    notes: list[str]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON: estimates without their resamples."""
        rest = {name: value for name, value in vars(self).items() if name not in ("measures", "config")}
        return rest | {"config": asdict(self.config), "measures": measures.as_dict(self.measures)}


Scores = dict[float, list[np.ndarray]]
"""Weight decay -> for each seed, scores of all images [n, C]."""

WHY_UNIQUE = {
    "lbfgs": "the objective is convex, with one optimum",
    "knn": "nothing is fitted",
}


def choose_and_measure(
    target: Target, fit: Callable[[Target], Scores], config: ProbeConfig, started: float
) -> ProbeResult:
    """Fit what varies in train, choose the weight decay on val, measure on test."""
    n = {split: int((target.splits == split).sum()) for split in SPLITS}
    if not n["train"]:
        raise RadDraftError(f"There is no train image with labels and features to fit a probe on: {n}")
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
        shown = (target.kind, target.names, target.y, whole, target.splits, target.subjects, unfit)
        tables.append(measures.tabulate(*shown, config.resamples, config.resample_seed))
    unique = config.solver != "adamw"
    if unique:
        notes.append("every seed gives the same (sd 0): " + WHY_UNIQUE[config.solver])
    measured = {
        name: {key: measures.over_seeds([table[name][key] for table in tables], unique) for key in row}
        for name, row in tables[0].items()
    }
    chosen = None if config.solver == "knn" else decay
    seconds = time.perf_counter() - started
    return ProbeResult(target.kind, target.names, config, chosen, n, measured, notes, seconds)


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
    """Mean loss of the known labels of some rows; of regression, in variances of train. NaN without a label."""
    y, found = target.y[rows], scores[rows]
    if target.kind == "regression":
        spread = np.nanstd(target.y[target.splits == "train"], axis=0)
        y, found = y / spread, found / spread
    known = len(y) if target.kind == "multiclass" else int((~np.isnan(y)).sum())
    return float(sum_losses(torch.from_numpy(found), torch.from_numpy(y), target.kind)) / known if known else math.nan


def sum_losses(outputs: Tensor, y: Tensor, kind: Kind) -> Tensor:
    """Sum of the losses of all known labels; outputs and y [B, C]."""
    y = y.to(outputs)
    if kind == "multiclass":
        return functional.cross_entropy(outputs, y, reduction="sum")
    known = (~y.isnan()).to(outputs.dtype)
    if kind == "regression":
        return ((outputs - y.nan_to_num()).square() * known).sum()
    return functional.binary_cross_entropy_with_logits(outputs, y.nan_to_num(), known, reduction="sum")


def as_scores(outputs: Tensor, kind: Kind) -> np.ndarray:
    """Classes are ranked by their probabilities, which depend on the other classes' logits."""
    return (outputs.double().log_softmax(1) if kind == "multiclass" else outputs.double()).numpy()


def rows_in(target: Target, *splits: str) -> Tensor:
    """Positions of the images of some splits."""
    return torch.from_numpy(np.flatnonzero(np.isin(target.splits, splits)))


def moments(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of the rows of all chunks [n, D]; 1 instead of 0."""
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        chunk = chunk.double().cpu()
        n, total, squares = n + len(chunk), total + chunk.sum(0), squares + chunk.square().sum(0)
    mean = total / n
    variance = squares / n - mean.square()
    varies = variance > 1e-13 * mean.square()  # the rest of a constant is rounding
    return mean, torch.where(varies, variance, 1.0).sqrt()
