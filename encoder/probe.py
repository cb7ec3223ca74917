"""Probes: how much of findings and metadata can be read linearly off the features of a frozen tower.

    target = make_target(read_studies("studies.jsonl"), TargetSpec("multilabel", ("Cardiomegaly", "Edema")))
    result = run_probe(store, target)
    result.measures["macro"]["auprc"].estimate

The probe is fitted on the train split; the weight decay, and the thresholds behind balanced accuracy, are chosen on
the val split (nothing is fitted again on train and val together); the test split is only scored.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from encoder.features import FeatureStore
from encoder.finetune import attend, descend
from encoder.fitting import (
    ProbeConfig,
    ProbeResult,
    Scores,
    as_scores,
    choose_and_measure,
    moments,
    rows_in,
    sum_losses,
)
from encoder.targets import Kind, Target
from raddraft.errors import RadDraftError


def run_probe(store: FeatureStore, target: Target, config: ProbeConfig | None = None) -> ProbeResult:
    """Fit a probe on stored features and measure it. Images without features are left out, and counted in a note.

    Raises:
        ValueError: no train image, or none in val by which a weight decay could be chosen.
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
        return {"lbfgs": _solve, "adamw": descend, "knn": _vote}[settings.solver](x, part, settings)

    return choose_and_measure(target, fit, settings, started)


def _solve(x: Tensor, target: Target, config: ProbeConfig) -> Scores:
    train = rows_in(target, "train")
    y = torch.from_numpy(target.y)[train]
    probes = fit_linear(x[train], y, target.kind, config.decays, config.max_iterations)
    if failed := [f"{decay:g}" for decay, probe in probes.items() if not probe.converged]:
        target.notes.append(
            f"L-BFGS did not converge in {config.max_iterations} iterations at weight decay {', '.join(failed)}"
        )
    return {decay: [as_scores(probe(x), target.kind)] for decay, probe in probes.items()}


def _vote(x: Tensor, target: Target, config: ProbeConfig) -> Scores:
    train = rows_in(target, "train")
    y = torch.from_numpy(target.y)[train]
    return {0.0: [knn_scores(x, x[train], y, config.neighbours, config.temperature).numpy()]}


@dataclass
class Linear:
    """A fitted linear probe."""

    weight: Tensor
    """On standardised features: [C, D]."""
    bias: Tensor
    """[C]."""
    mean: Tensor
    sd: Tensor
    converged: bool = True

    def __call__(self, x: Tensor) -> Tensor:
        """Logits or predictions [n, C] of features [n, D]."""
        return (x.double() - self.mean) / self.sd @ self.weight.T + self.bias


def fit_linear(
    x: Tensor, y: Tensor, kind: Kind, decays: Sequence[float], max_iterations: int = 500
) -> dict[float, Linear]:
    """The optimal probe for each weight decay, as scikit-learn's LogisticRegression(C=1/decay) or Ridge(alpha=decay).

    Args:
        x: features [n, D] of the train split; they are standardised by their own mean and standard deviation.
        y: [n, C]; NaN where missing: such an image does not count for that column.
        kind: of the target. Two classes are one logistic regression, as in scikit-learn.
        decays: > 0, each larger than the next: each solution is the start for the next one.
        max_iterations: of L-BFGS.
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

    It works in coordinates in which the curvature is about 1 all round: along the eigenvectors of the features (the
    penalty does not change with a rotation), divided by the root of p (1 - p) times the eigenvalue plus the decay. The
    optimum is the same, and reached in a fraction of the iterations.
    """
    n = len(x)
    softmax = kind == "multiclass" and y.shape[1] > 1
    values, vectors = torch.linalg.eigh(x.T @ x / n)
    turned = x @ vectors
    share = y.nanmean(0)
    curvature = share * (1 - share) * (~y.isnan()).double().mean(0)  # [C]
    weight, bias = torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype), share.log() if softmax else share.logit()
    for decay in decays:
        scale = (curvature[:, None] * values.clamp_min(0) + decay / n).rsqrt()  # [C, D]
        bias_scale = curvature.rsqrt()
        free = [(weight / scale).requires_grad_(), (bias / bias_scale).requires_grad_()]
        optimizer = torch.optim.LBFGS(
            free,
            max_iter=max_iterations,
            max_eval=2 * max_iterations,
            tolerance_grad=1e-6,
            tolerance_change=1e-12,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def loss(
            decay: float = decay,
            free: list[Tensor] = free,
            scales: tuple[Tensor, Tensor] = (scale, bias_scale),
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> Tensor:
            optimizer.zero_grad()
            weight, bias = free[0] * scales[0], free[1] * scales[1]
            total = sum_losses(turned @ weight.T + bias, y, "multiclass" if softmax else "multilabel")
            value = (total + decay / 2 * weight.square().sum()) / n
            value.backward()
            return value

        optimizer.step(loss)  # type: ignore[arg-type]
        loss()
        steepest = max(float(part.grad.abs().max()) for part in free if part.grad is not None)
        weight, bias = free[0].detach() * scale, free[1].detach() * bias_scale
        yield decay, (weight @ vectors.T, bias, steepest < 1e-4)


def _ridge(x: Tensor, y: Tensor, decays: Sequence[float]) -> dict[float, tuple[Tensor, Tensor]]:
    """Weight [D] and bias of one column for each decay, from one eigendecomposition."""
    known = ~y.isnan()
    x, y = x[known], y[known]
    x_mean, y_mean = x.mean(0), y.mean()
    x = x - x_mean
    values, vectors = torch.linalg.eigh(x.T @ x)
    projected = vectors.T @ (x.T @ (y - y_mean))
    weights = {decay: vectors @ (projected / (values.clamp_min(0) + decay)) for decay in decays}
    return {decay: (weight, y_mean - x_mean @ weight) for decay, weight in weights.items()}


def knn_scores(x: Tensor, train_x: Tensor, train_y: Tensor, neighbours: int = 20, temperature: float = 0.07) -> Tensor:
    """Mean label of the nearest labelled train images by cosine, weighted by exp(cosine / temperature): [n, C].

    DINO's k-NN (Caron et al., 2021) with weights that sum to 1; features are not standardised.

    Args:
        x: [n, D]. train_x: [m, D]. train_y: [m, C], NaN where missing: the neighbours are sought among the others.
    """
    train_x, train_y = functional.normalize(train_x.float()), train_y.double()
    parts = []
    for chunk in functional.normalize(x.float()).split(1024):
        similarity = (chunk @ train_x.T).double()  # [b, m]
        columns = []
        for y in train_y.T:
            known = ~y.isnan()
            nearest = similarity[:, known].topk(min(neighbours, int(known.sum())), dim=1)
            columns.append(((nearest.values / temperature).softmax(1) * y[known][nearest.indices]).sum(1))
        parts.append(torch.stack(columns, dim=1))
    return torch.cat(parts)


@dataclass
class CurvePoint:
    """A probe fitted on a part of the train subjects."""

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
    """Probes on growing parts of the train subjects; of one seed, a smaller part lies inside a larger one.

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
