"""Probes: how much of findings and metadata can be read linearly off the features of a frozen tower.

    target = make_target(read_studies("studies.jsonl"), TargetSpec("multilabel", ("Cardiomegaly", "Edema")))
    result = run_probe(store, target)
    result.measures["macro"]["auprc"].estimate

The probe is fitted on the train split; the weight decay, and the thresholds behind balanced accuracy, are chosen on
the val split (nothing is fitted again on train and val together); the test split is only scored.
"""

from __future__ import annotations

import math
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from encoder import measures
from encoder.features import FeatureStore, digest_files, prepare_pixels
from encoder.measures import Measured
from encoder.studies import SPLITS, Study, StudyImage
from encoder.towers import Tower

Kind = Literal["multilabel", "multiclass", "regression"]
Pooling = Literal["class", "mean", "both", "attention"]

DECAYS = {
    "lbfgs": (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 0.1),
    "adamw": (1.0, 1e-2, 1e-4),
    "knn": (0.0,),
}


@dataclass(frozen=True)
class TargetSpec:
    """What a probe is to tell of an image."""

    kind: Literal["multilabel", "binary", "multiclass", "regression"]
    """multilabel: findings, each by itself; binary: one finding; multiclass: a field of few values, its classes being
    those of the train split; regression: fields that are numbers."""
    names: tuple[str, ...]
    """Findings; else fields: patient.sex, patient.age, image.view, source, or a key of the study, dots going deeper."""
    uncertain: Literal["drop", "positive", "negative"] = "drop"
    """What a label of -1 counts as."""
    missing: Literal["drop", "negative"] = "drop"
    """What a finding that is not mentioned counts as."""
    images: Literal["main", "frontal"] = "main"
    """Each study's main image, or all of its frontal ones."""

    def __post_init__(self) -> None:
        if not self.names or (self.kind in ("binary", "multiclass") and len(self.names) != 1):
            raise ValueError(f"A {self.kind} target does not take {len(self.names)} names: {self.names}")


@dataclass
class Target:
    """Images and what is true of them."""

    kind: Kind
    names: tuple[str, ...]
    """Findings, classes or quantities."""
    paths: list[Path]
    subjects: np.ndarray
    """[n]."""
    splits: np.ndarray
    """[n]."""
    y: np.ndarray
    """[n, C], NaN where missing; of multiclass one column for each class."""
    notes: list[str] = field(default_factory=list)

    def keep(self, rows: np.ndarray) -> Target:
        """The same for some of the images, given by a mask [n] or positions."""
        positions = np.arange(len(self.paths))[rows]
        paths = [self.paths[position] for position in positions]
        return replace(self, paths=paths, subjects=self.subjects[rows], splits=self.splits[rows], y=self.y[rows])

    @property
    def constant(self) -> dict[str, str]:
        """Finding -> a sentence, where train holds one value only: nothing can be learnt."""
        found = {}
        for name, values in zip(self.names, self.y[self.splits == "train"].T, strict=True):
            known = values[~np.isnan(values)]
            if len(np.unique(known)) < 2:
                found[name] = (
                    f"constant in train: {known[0]:g} on all {len(known)} images" if len(known) else "no label"
                )
        return found


def make_target(studies: Sequence[Study], spec: TargetSpec) -> Target:
    """Images and labels of a manifest; images without any label are left out.

    Raises:
        ValueError: a subject in two splits, a finding or field that no study has, or a value that is no number.
    """
    split_of: dict[str, str] = {}
    for study in studies:
        if split_of.setdefault(study.subject_id, study.split) != study.split:
            raise ValueError(
                f"Subject {study.subject_id!r} is in splits {split_of[study.subject_id]!r} and {study.split!r}"
            )
    rows = [(study, image) for study in studies for image in _images(study, spec.images)]
    notes: list[str] = []
    names = spec.names
    kind: Kind = "multilabel" if spec.kind == "binary" else spec.kind
    if kind == "multilabel":
        _check_known(names, {name for study in studies for name in study.labels}, "finding")
        y = [[_label(study.labels.get(name), spec) for name in names] for study, _ in rows]
    else:
        values = [[_read_field(study, image, name) for name in names] for study, image in rows]
        filled = {name for row in values for name, value in zip(names, row, strict=True) if value is not None}
        patient = {f"patient.{key}" for study in studies for key in study.patient}
        _check_known(names, filled | {"image.view", "source"} | patient, "field", filled)
        if kind == "multiclass":
            names, y = _classes([row[0] for row in values], [study.split for study, _ in rows], notes)
        else:
            y = [
                [_number(study, name, value) for name, value in zip(names, row, strict=True)]
                for (study, _), row in zip(rows, values, strict=True)
            ]
    target = Target(
        kind,
        names,
        [image.path for _, image in rows],
        np.array([study.subject_id for study, _ in rows], dtype=str),
        np.array([study.split for study, _ in rows], dtype=str),
        np.array(y, dtype=float).reshape(len(rows), len(names)),
        notes,
    )
    labelled = ~np.isnan(target.y).all(1)
    if not labelled.all():
        notes.append(f"{(~labelled).sum()} of {len(rows)} images have no label")
    return target.keep(labelled)


@dataclass(frozen=True)
class ProbeConfig:
    """How a probe is fitted and measured."""

    pooling: Pooling = "class"
    """What of the features it sees; attention: a weighted mean of the patches, by a query learnt with it (AdamW)."""
    solver: Literal["lbfgs", "adamw", "knn"] = "lbfgs"
    """lbfgs: the optimum of scikit-learn's LogisticRegression (ridge regression: closed form); adamw: by epochs; knn:
    the vote of the nearest train images, nothing is fitted."""
    weight_decays: tuple[float, ...] | None = None
    """To choose from on val, the same for all findings, by macro AUPRC (regression: mean MAE in standard deviations).
    lbfgs: beside the sum of losses, a penalty of this / 2 * |w|^2 (C = 1 / this; ridge: alpha = this); adamw:
    decoupled. By default 0.1 to 1e5 by tens; 1e-4, 1e-2 and 1 for adamw."""
    max_iterations: int = 500
    """Of L-BFGS."""
    epochs: int = 100
    """Of AdamW."""
    learning_rate: float = 1e-3
    """Of AdamW, falling to 0 by a cosine."""
    batch_size: int = 256
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Of AdamW's start and order. The optimum that L-BFGS finds is unique: seeds would change nothing."""
    neighbours: int = 20
    """Of knn."""
    temperature: float = 0.07
    """Of knn, as DINO's: an image votes with exp(cosine / temperature)."""
    resamples: int = 500
    """Behind each interval."""
    resample_seed: int = 0

    def __post_init__(self) -> None:
        if self.pooling == "attention" and self.solver != "adamw":
            raise ValueError(f"pooling 'attention' is learnt: it takes solver 'adamw', not {self.solver!r}")
        if self.solver == "lbfgs" and min(self.decays) <= 0:
            raise ValueError(f"L-BFGS takes weight decays above 0, not {min(self.decays)}: there may be no optimum")

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
            return _attend(store, part, settings)
        x = store.vectors(part.paths, settings.pooling)
        return {"lbfgs": _solve, "adamw": _descend, "knn": _vote}[settings.solver](x, part, settings)

    return _finish(target, fit, settings, started)


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
    mean, sd = _moments([x])
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
            total = _sum_losses(turned @ weight.T + bias, y, "multiclass" if softmax else "multilabel")
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
                raise ValueError(f"A fraction of the train subjects lies in (0, 1], not at {fraction}")
            chosen = order[: math.ceil(fraction * len(order))]
            part = target.keep(~train | np.isin(target.subjects, chosen))
            points.append(CurvePoint(fraction, seed, len(chosen), run_probe(store, part, config)))
    return points


def finetune(tower: Tower, n_blocks: int, target: Target, config: ProbeConfig, mapping: str = "window") -> ProbeResult:
    """Train the last blocks of a tower, by AdamW, together with a linear probe behind them, and measure that.

    Everything else, a last LayerNorm too, stays as it is. Each seed starts from the tower as it came; in the end the
    tower holds the blocks of the last seed.

    Args:
        tower: a plain vision transformer, in float32, on the device that is to compute.
        n_blocks: how many of its last blocks train.
        target: images that can be read.
        config: solver adamw, one weight decay.
        mapping: of grey values; see `encoder.images.load_image`.

    Raises:
        ValueError: another solver, several weight decays, no plain vision transformer, or fewer blocks.
        ImageError: an image cannot be read.
    """
    started = time.perf_counter()
    if config.solver != "adamw" or len(config.decays) != 1:
        raise ValueError(f"Fine-tuning takes solver 'adamw' and one weight decay, not {config.solver} {config.decays}")
    stacks = [module for module in tower.model.modules() if isinstance(module, nn.ModuleList)] if tower.is_plain else []
    blocks = list(max(stacks, key=len, default=()))
    if not 0 < n_blocks <= len(blocks):
        raise ValueError(f"{n_blocks} blocks of {tower.name} cannot train: it has {len(blocks)} that can")
    chosen = [parameter for block in blocks[-n_blocks:] for parameter in block.parameters()]
    before = [parameter.detach().clone() for parameter in chosen]
    asked = [(parameter, parameter.requires_grad) for parameter in tower.model.parameters()]

    def pixels(rows: Tensor) -> Tensor:
        return torch.stack([prepare_pixels(tower.processor, target.paths[row], mapping) for row in rows])

    def fit(part: Target) -> Scores:
        with torch.no_grad():
            batches = (pixels(rows) for rows in _rows(part, "train").split(config.batch_size))
            vectors = (_through(tower, batch, config.pooling).flatten(0, -2) for batch in batches)
            mean, sd = _moments(vectors)

        def build() -> nn.Module:
            for parameter, value in zip(chosen, before, strict=True):
                parameter.data.copy_(value)
            return _Tuned(tower, _Head(mean, sd, len(part.names), config.pooling == "attention"), config.pooling)

        return _train_all(build, pixels, part, config)

    try:
        tower.model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        return _finish(target, fit, config, started)
    finally:
        for parameter, value in asked:
            parameter.requires_grad_(value)


def _through(tower: Tower, pixels: Tensor, pooling: Pooling) -> Tensor:
    """Features through which gradients flow: vectors [B, D] or, for attention, patches [B, P, D]."""
    encoded = tower._final(tower._forward(pixels), pixels)  # `encode` would keep no gradients
    patches = encoded.patches.flatten(1, 2).float()
    if pooling == "attention":
        return patches
    pooled, mean = encoded.pooled.float(), patches.mean(1)
    return {"class": pooled, "mean": mean, "both": torch.cat([pooled, mean], dim=1)}[pooling]


class _Tuned(nn.Module):
    """A tower and the head behind it."""

    def __init__(self, tower: Tower, head: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.tower, self.pooling = tower, pooling
        self.model, self.head = tower.model, head.to(tower.device)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(_through(self.tower, pixels, self.pooling))


class _Head(nn.Module):
    """Standardise, pool the patches by attention if asked to, then a linear layer: [B, D] or [B, P, D] -> [B, C]."""

    mean: Tensor
    sd: Tensor

    def __init__(self, mean: Tensor, sd: Tensor, n_outputs: int, attention: bool) -> None:
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("sd", sd.float())
        self.query = nn.Parameter(torch.zeros(len(mean))) if attention else None  # 0: it starts at the mean patch
        self.linear = nn.Linear(len(mean), n_outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean) / self.sd
        if self.query is not None:
            attention = (x @ self.query / math.sqrt(x.shape[-1])).softmax(1)  # [B, P]
            x = (attention[..., None] * x).sum(1)
        return self.linear(x)


def check_leaks(studies: Sequence[Study], hashes: Path | None = None, features: Path | None = None) -> list[str]:
    """A sentence for each way in which the test split may be known already; none if all is well.

    Args:
        studies: all splits.
        hashes: a text file with the SHA-256 of a tower's pre-training images, one a line (`sha256sum` will do).
        features: folder of feature stores, whose record of digests saves reading the images again.

    Raises:
        ValueError: a line of `hashes` does not begin with a SHA-256.
    """
    found = []
    in_splits: dict[str, set[str]] = {}
    for study in studies:
        in_splits.setdefault(study.subject_id, set()).add(study.split)
    if several := [subject for subject, splits in in_splits.items() if len(splits) > 1]:
        where = " and ".join(sorted(in_splits[several[0]]))
        found.append(f"{len(several)} subjects are in more than one split, e.g. {several[0]!r} in {where}")
    placed: dict[Path, set[str]] = {}
    for study in studies:
        for image in study.images:
            placed.setdefault(image.path, set()).add(study.split)
    with tempfile.TemporaryDirectory() as temporary:
        files = digest_files(list(placed), features or Path(temporary))
    if unread := len(placed) - len(files):
        found.append(f"{unread} images cannot be read, and were not checked")
    contents: dict[str, list[Path]] = {}
    for path, file in files.items():
        contents.setdefault(file.digest, []).append(path)
    shared = [paths for paths in contents.values() if len(set().union(*(placed[path] for path in paths))) > 1]
    if shared:
        example = ", ".join(f"{path} ({' and '.join(sorted(placed[path]))})" for path in shared[0])
        found.append(f"{len(shared)} images are in more than one split with the same content, e.g. {example}")
    if hashes:
        test = {digest for digest, paths in contents.items() if any("test" in placed[path] for path in paths)}
        if met := len(_read_hashes(hashes) & test):
            found.append(f"{met} of {len(test)} test images were in the tower's pre-training, by {hashes.name}")
    return found


def _read_hashes(path: Path) -> set[str]:
    found = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip():
            digest = line.split()[0].lower()
            if not re.fullmatch("[0-9a-f]{64}", digest):
                raise ValueError(f"{path.name} line {number}: {digest[:80]!r} is no SHA-256 of 64 hexadecimal digits")
            found.add(digest)
    return found


def _solve(x: Tensor, target: Target, config: ProbeConfig) -> Scores:
    train = _rows(target, "train")
    y = torch.from_numpy(target.y)[train]
    probes = fit_linear(x[train], y, target.kind, config.decays, config.max_iterations)
    if failed := [f"{decay:g}" for decay, probe in probes.items() if not probe.converged]:
        target.notes.append(
            f"L-BFGS did not converge in {config.max_iterations} iterations at weight decay {', '.join(failed)}"
        )
    return {decay: [_as_scores(probe(x), target.kind)] for decay, probe in probes.items()}


def _vote(x: Tensor, target: Target, config: ProbeConfig) -> Scores:
    train = _rows(target, "train")
    y = torch.from_numpy(target.y)[train]
    return {0.0: [knn_scores(x, x[train], y, config.neighbours, config.temperature).numpy()]}


def _descend(x: Tensor, target: Target, config: ProbeConfig) -> Scores:
    mean, sd = _moments([x[_rows(target, "train")]])
    return _train_all(lambda: _Head(mean, sd, len(target.names), False), lambda rows: x[rows], target, config)


def _attend(store: FeatureStore, target: Target, config: ProbeConfig) -> Scores:
    def patches(rows: Tensor) -> Tensor:
        return torch.stack([store.patches(target.paths[row]).flatten(0, 1).float() for row in rows])  # [B, P, D]

    batches = _rows(target, "train").split(config.batch_size)
    mean, sd = _moments(patches(rows).flatten(0, 1) for rows in batches)
    return _train_all(lambda: _Head(mean, sd, len(target.names), True), patches, target, config)


def _train_all(
    build: Callable[[], nn.Module], load: Callable[[Tensor], Tensor], target: Target, config: ProbeConfig
) -> Scores:
    """A fresh module for each weight decay and seed; scores of the train images are left NaN."""
    train, rest = _rows(target, "train"), _rows(target, "val", "test")
    centre, scale = np.zeros(target.y.shape[1]), np.ones(target.y.shape[1])
    if target.kind == "regression":
        centre, scale = np.nanmean(target.y[train], axis=0), np.nanstd(target.y[train], axis=0)
    y = torch.from_numpy((target.y - centre) / scale)
    found: Scores = {}
    for decay in config.decays:
        for seed in config.seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = build()
            _train(module, load, y, train, target.kind, decay, seed, config)
            with torch.no_grad():
                outputs = [module(load(rows)).cpu() for rows in rest.split(config.batch_size)]
            scores = np.full(target.y.shape, np.nan)
            if outputs:
                scores[rest] = _as_scores(torch.cat(outputs), target.kind) * scale + centre
            found.setdefault(decay, []).append(scores)
    return found


def _train(
    module: nn.Module,
    load: Callable[[Tensor], Tensor],
    y: Tensor,
    rows: Tensor,
    kind: Kind,
    decay: float,
    seed: int,
    config: ProbeConfig,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    learnt = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in learnt if parameter.ndim > 1]
    vectors = [parameter for parameter in learnt if parameter.ndim <= 1]  # biases and the query do not decay
    groups = [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate)
    n_steps = config.epochs * math.ceil(len(rows) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
    for _ in range(config.epochs):
        for batch in rows[torch.randperm(len(rows), generator=generator)].split(config.batch_size):
            optimizer.zero_grad()
            loss = _sum_losses(module(load(batch)), y[batch], kind) / (~y[batch].isnan()).sum()
            loss.backward()
            optimizer.step()
            schedule.step()


def _sum_losses(outputs: Tensor, y: Tensor, kind: Kind) -> Tensor:
    """Sum of the losses of all known labels; outputs and y [B, C]."""
    y = y.to(outputs)
    if kind == "multiclass":
        return functional.cross_entropy(outputs, y, reduction="sum")
    known = (~y.isnan()).to(outputs.dtype)
    if kind == "regression":
        return ((outputs - y.nan_to_num()).square() * known).sum()
    return functional.binary_cross_entropy_with_logits(outputs, y.nan_to_num(), known, reduction="sum")


def _as_scores(outputs: Tensor, kind: Kind) -> np.ndarray:
    """Classes are ranked by their probabilities, which depend on the other classes' logits."""
    return (outputs.double().log_softmax(1) if kind == "multiclass" else outputs.double()).numpy()


def _finish(target: Target, fit: Callable[[Target], Scores], config: ProbeConfig, started: float) -> ProbeResult:
    """Fit what varies in train, choose the weight decay on val, measure on test."""
    n = {split: int((target.splits == split).sum()) for split in SPLITS}
    if not n["train"]:
        raise ValueError(f"There is no train image with labels and features to fit a probe on: {n}")
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
    quality = {decay: np.mean([_quality(target, scores, val) for scores in seeds]) for decay, seeds in found.items()}
    if np.isnan(list(quality.values())).any():
        raise ValueError(
            f"The weight decay cannot be chosen from {config.decays}: no {', '.join(target.names)} can be scored on "
            f"the {val.sum()} images of val; give one weight decay"
        )
    best = max(quality, key=lambda decay: quality[decay])
    if best in (config.decays[0], config.decays[-1]):
        target.notes.append(f"the chosen weight decay {best:g} is at the end of those tried")
    return best


def _quality(target: Target, scores: np.ndarray, val: np.ndarray) -> float:
    """Macro AUPRC on val, or the mean of -MAE in standard deviations of train; NaN without a column to score."""
    values = []
    for y, predicted in zip(target.y.T, scores.T, strict=True):
        known = val & ~np.isnan(y)
        truth, ones = y[known], np.ones((1, known.sum()))
        if target.kind == "regression" and len(truth):
            spread = np.nanstd(y[target.splits == "train"])
            values.append(-measures.mae(truth, predicted[known], ones)[0] / spread)
        elif len(np.unique(truth)) == 2:
            values.append(measures.average_precision(truth, predicted[known], ones)[0])
    return float(np.mean(values)) if values else math.nan


def _rows(target: Target, *splits: str) -> Tensor:
    return torch.from_numpy(np.flatnonzero(np.isin(target.splits, splits)))


def _moments(chunks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [D] of the rows of all chunks [n, D]; 1 instead of 0."""
    n, total, squares = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        chunk = chunk.double().cpu()
        n, total, squares = n + len(chunk), total + chunk.sum(0), squares + chunk.square().sum(0)
    mean = total / n
    variance = squares / n - mean.square()
    varies = variance > 1e-13 * mean.square()  # the rest of a constant is rounding
    return mean, torch.where(varies, variance, 1.0).sqrt()


def _images(study: Study, choice: str) -> list[StudyImage]:
    return [study.main_image] if choice == "main" else [image for image in study.images if image.frontal]


def _label(value: int | None, spec: TargetSpec) -> float:
    if value is None:
        return {"drop": math.nan, "negative": 0.0}[spec.missing]
    return {"drop": math.nan, "positive": 1.0, "negative": 0.0}[spec.uncertain] if value == -1 else float(value)


def _read_field(study: Study, image: StudyImage, name: str) -> Any:
    """A field by its dotted name; None where there is none. An empty string is none."""
    first, *rest = name.split(".")
    known = {"patient": study.patient, "image": image.extra | {"view": image.view}, "source": study.source}
    value: Any = known.get(first, study.extra.get(first))
    for key in rest:
        value = value.get(key) if isinstance(value, dict) else None
    return None if value == "" else value


def _number(study: Study, name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"Study {study.study_id!r}: {name} is {value!r}, not a number")
    return float(value)


def _classes(values: list[Any], splits: list[str], notes: list[str]) -> tuple[tuple[str, ...], list[list[float]]]:
    """Classes of the train split, and a column of 0 and 1 for each; a row of NaN where the class is not one of them."""
    texts = [None if value is None else str(value) for value in values]
    names = tuple(sorted({text for text, split in zip(texts, splits, strict=True) if text and split == "train"}))
    if unknown := sorted({text for text in texts if text} - set(names)):
        notes.append(f"classes left out, since they are not in train: {', '.join(unknown)}")
    return names, [[float(text == name) if text in names else math.nan for name in names] for text in texts]


def _check_known(names: Sequence[str], choices: set[str], what: str, filled: set[str] | None = None) -> None:
    for name in names:
        if name not in (choices if filled is None else filled):
            raise ValueError(f"No study has the {what} {name!r}. Choices: {', '.join(sorted(choices))}")
