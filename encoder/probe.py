"""Probes: how much of findings and metadata can be read linearly off the features of a frozen tower.

    target = make_target(read_studies("studies.jsonl"), TargetSpec(("Cardiomegaly", "Edema")))
    result = run_probe(store, target)
    result.measures["macro"]["auprc"].estimate

A probe is fitted on the train split. The weight decay, and the thresholds behind balanced accuracy, are chosen on the
val split (nothing is refitted on train and val together). The test split is only scored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from encoder.features import FeatureStore
from encoder.finetune import attend, descend
from encoder.fitting import ProbeResult, Scores, as_scores, choose_and_measure, moments, rows_in, sum_losses
from encoder.measures import over_seeds
from encoder.probe_config import Kind, ProbeConfig
from encoder.targets import Target
from raddraft.errors import RadDraftError
from raddraft.text import format_estimate, format_table, show


def run_probe(store: FeatureStore, target: Target, config: ProbeConfig | None = None) -> ProbeResult:
    """Fit a probe on stored features and measure it. Images without features are left out, and counted in a note.

    Raises:
        RadDraftError: no train image, or no val image by which a weight decay could be chosen.
    """
    started = time.perf_counter()
    settings = config or ProbeConfig()
    stored = np.array([path in store for path in target.paths], dtype=bool)
    target = replace(target.keep(stored), notes=list(target.notes))
    if not stored.all():
        target.notes.append(f"{(~stored).sum()} of {len(stored)} images have no features")

    def fit(part: Target) -> Scores:
        if settings.pooling == "attention":
            return attend(store, part, settings)
        x = store.vectors(part.paths, settings.pooling)
        if settings.solver == "adamw":
            return descend(x, part, settings)
        train = rows_in(part, "train")
        y = torch.from_numpy(part.y)[train]
        if settings.solver == "knn":
            return {0.0: [knn_scores(x, x[train], y, settings.neighbors, settings.temperature).numpy()]}
        probes = fit_linear(x[train], y, part.kind, settings.decays, settings.max_iterations)
        if failed := [f"{decay:g}" for decay, probe in probes.items() if not probe.converged]:
            part.notes.append(
                f"L-BFGS did not converge in {settings.max_iterations} iterations at weight decay {', '.join(failed)}"
            )
        return {decay: [as_scores(probe(x), part.kind)] for decay, probe in probes.items()}

    return choose_and_measure(target, fit, settings, started)


@dataclass
class Linear:
    """A fitted linear probe."""

    weight: Tensor  # on standardized features: [C, D]
    bias: Tensor  # [C]
    mean: Tensor  # of the train features: [D]
    sd: Tensor  # of the train features: [D]
    converged: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Logits or predictions [n, C] of features [n, D]."""
        return (x.double() - self.mean) / self.sd @ self.weight.T + self.bias


def fit_linear(
    x: Tensor, y: Tensor, kind: Kind, decays: Sequence[float], max_iterations: int = 500
) -> dict[float, Linear]:
    """The optimal probe for each weight decay, as scikit-learn's LogisticRegression(C=1/decay) or Ridge(alpha=decay).

    Args:
        x: features [n, D] of the train split; they are standardized by their own mean and standard deviation.
        y: labels [n, C]; NaN where missing: such an image does not count for that column.
        kind: of the target. Two classes are one logistic regression, as in scikit-learn.
        decays: above 0, in descending order: each solution is the starting point of the next one.
        max_iterations: maximum number of L-BFGS iterations.
    """
    x, y = x.double(), y.double()
    mean, sd = moments([x])
    x = (x - mean) / sd
    if kind == "regression":
        columns = [_ridge(x, column, decays) for column in y.T]
        solved = {d: tuple(torch.stack(part) for part in zip(*(c[d] for c in columns), strict=True)) for d in decays}
        return {decay: Linear(weight, bias, mean, sd) for decay, (weight, bias) in solved.items()}
    two = kind == "multiclass" and y.shape[1] == 2
    found = {}
    for decay, (weight, bias, converged) in _logistic(x, y[:, 1:] if two else y, kind, decays, max_iterations):
        if two:
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        found[decay] = Linear(weight, bias, mean, sd, converged)
    return found


def _logistic(
    x: Tensor, y: Tensor, kind: Kind, decays: Sequence[float], max_iterations: int
) -> Iterator[tuple[float, tuple[Tensor, Tensor, bool]]]:
    """Weight [C, D], bias [C] and whether L-BFGS converged, for each decay.

    Preconditioned: the coordinates are the eigenvectors of the features (the penalty is invariant to rotation), scaled
    by 1 / sqrt(p (1 - p) times the eigenvalue + decay), so that the curvature is about 1 in all directions. The optimum
    is the same, and reached in a fraction of the iterations that scikit-learn takes.
    """
    n = len(x)
    softmax = kind == "multiclass" and y.shape[1] > 1
    values, vectors = _axes(x)
    values, turned = values / n, x @ vectors
    share = y.nanmean(0)
    curvature = share * (1 - share) * (~y.isnan()).double().mean(0)  # [C]
    weight, bias = torch.zeros(y.shape[1], len(values), dtype=x.dtype), share.log() if softmax else share.logit()
    bias_scale = curvature.rsqrt()
    for decay in decays:
        scale = (curvature[:, None] * values.clamp_min(0) + decay / n).rsqrt()  # [C, D]

        def objective(weight: Tensor, bias: Tensor, scale: Tensor = scale, decay: float = decay) -> Tensor:
            weight = weight * scale
            total = sum_losses(turned @ weight.T + bias * bias_scale, y, "multiclass" if softmax else "multilabel")
            return (total + decay / 2 * weight.square().sum()) / n

        (weight, bias), steepest = _minimize(objective, [weight / scale, bias / bias_scale], max_iterations)
        weight, bias = weight * scale, bias * bias_scale
        yield decay, (weight @ vectors.T, bias, steepest < 1e-4)


def _minimize(
    objective: Callable[..., Tensor], start: Sequence[Tensor], max_iterations: int
) -> tuple[list[Tensor], float]:
    """Where L-BFGS ends, and the largest absolute gradient there."""
    free = [part.requires_grad_() for part in start]
    optimizer = torch.optim.LBFGS(
        free, 1, max_iterations, 2 * max_iterations, 1e-6, 1e-12, history_size=10, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = objective(*free)
        value.backward()
        return value

    optimizer.step(loss)  # type: ignore[arg-type]
    loss()
    steepest = max(float(part.grad.abs().max()) for part in free if part.grad is not None)
    return [part.detach() for part in free], steepest


def _axes(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [r] of x.T @ x for x [n, D], and eigenvectors [D, r].

    Where there are more columns than rows, only those that can be other than 0: a penalized weight lies in their span.
    """
    if len(x) < x.shape[1]:
        _, singular, vectors = torch.linalg.svd(x, full_matrices=False)
        return singular.square(), vectors.T
    return torch.linalg.eigh(x.T @ x)


def _ridge(x: Tensor, y: Tensor, decays: Sequence[float]) -> dict[float, tuple[Tensor, Tensor]]:
    """Weight [D] and bias of one column for each decay, from one eigendecomposition."""
    known = ~y.isnan()
    x, y = x[known], y[known]
    x_mean, y_mean = x.mean(0), y.mean()
    x = x - x_mean
    values, vectors = _axes(x)
    projected = vectors.T @ (x.T @ (y - y_mean))
    weights = {decay: vectors @ (projected / (values.clamp_min(0) + decay)) for decay in decays}
    return {decay: (weight, y_mean - x_mean @ weight) for decay, weight in weights.items()}


def knn_scores(x: Tensor, train_x: Tensor, train_y: Tensor, neighbors: int = 20, temperature: float = 0.07) -> Tensor:
    """Mean label of the nearest labeled train images by cosine, weighted by exp(cosine / temperature): [n, C].

    DINO's k-NN (Caron et al., 2021) with weights that sum to 1; features are not standardized.

    Args:
        x: features [n, D].
        train_x: features of the train split [m, D].
        train_y: labels [m, C], NaN where missing: neighbors are then sought among the others.
        neighbors: how many vote; fewer where fewer are labeled.
        temperature: above 0.
    """
    train_x, train_y = functional.normalize(train_x.float()), train_y.double()
    parts = []
    for chunk in functional.normalize(x.float()).split(1024):
        similarity = (chunk @ train_x.T).double()  # [b, m]
        columns = []
        for y in train_y.T:
            known = ~y.isnan()
            nearest = similarity[:, known].topk(min(neighbors, int(known.sum())), dim=1)
            columns.append(((nearest.values / temperature).softmax(1) * y[known][nearest.indices]).sum(1))
        parts.append(torch.stack(columns, dim=1))
    return torch.cat(parts)


@dataclass
class CurvePoint:
    """A probe fitted on a fraction of the train subjects."""

    fraction: float
    seed: int
    n_subjects: int
    result: ProbeResult


def learning_curve(
    store: FeatureStore,
    target: Target,
    fractions: Sequence[float] = (0.01, 0.1, 1.0),
    config: ProbeConfig | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[CurvePoint]:
    """Probes on growing fractions of the train subjects; with the same seed, smaller subsets lie inside larger ones.

    Val and test stay whole.
    """
    train = target.splits == "train"
    subjects = np.unique(target.subjects[train])
    points = []
    for seed in seeds:
        order = np.random.default_rng(seed).permutation(subjects)
        for fraction in sorted(fractions):
            if not 0 < fraction <= 1:
                raise RadDraftError(f"A fraction of the train subjects lies in (0, 1], not at {fraction}")
            chosen = order[: math.ceil(fraction * len(order))]
            part = target.keep(~train | np.isin(target.subjects, chosen))
            points.append(CurvePoint(fraction, seed, len(chosen), run_probe(store, part, config)))
    return points


def average_curve(points: Sequence[CurvePoint], measure: str) -> list[dict[str, Any]]:
    """One row per fraction: its number of subjects, and the macro measure averaged over the seeds with its interval."""
    rows = []
    for fraction in sorted({point.fraction for point in points}):
        drawn = [point for point in points if point.fraction == fraction]
        one = over_seeds([point.result.measures["macro"][measure] for point in drawn]).estimate
        row = {"fraction": fraction, "n": drawn[0].n_subjects, "value": one.value, "low": one.low, "high": one.high}
        rows.append(row)
    return rows


def format_probe(result: ProbeResult, curve: Mapping[str, Sequence[Mapping[str, Any]]], mark: str = "") -> str:
    """A table of all measures, the notes, and the learning curve (from `average_curve`) by the first measure.

    Behind every number stands a mark, see `encoder.seen`.
    """
    kinds = list(result.measures["macro"])
    several = result.config.solver == "adamw" and len(result.config.seeds) > 1
    table: list[list[str | int]] = [["", "n", "positive", *kinds]]
    for name, row in result.measures.items():
        cells = ["-"] * len(kinds)
        for i, kind in enumerate(kinds):
            if kind in row:
                one = row[kind].estimate
                cells[i] = show(one) + (f" ± {one.sd:.3f}" if several and one.sd is not None else "") + mark
        first = next(iter(row.values())).estimate
        table.append([name, first.n, "" if first.n_positive is None else first.n_positive, *cells])
    counts = ", ".join(f"{split} {count}" for split, count in result.n.items())
    decay = "" if result.weight_decay is None else f"; weight decay {result.weight_decay:g}, chosen on val"
    lines = [format_table(table), f"images: {counts}{decay}; {result.seconds:.1f} s"]
    lines.append(
        "brackets: 95 % interval, subjects resampled" + ("; ±: standard deviation over seeds" if several else "")
    )
    lines += [f"note: {sentence}" for sentence in result.notes]
    for name, rows in list(curve.items())[:1]:
        for point in rows:
            value = format_estimate(point["value"], point["low"], point["high"])
            lines.append(f"{point['fraction']:g} of train, {point['n']} subjects: macro {name} {value}{mark}")
    return "\n".join(lines)
