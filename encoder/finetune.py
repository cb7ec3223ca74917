"""Probes trained with AdamW on stored vectors or patches, or together with the last blocks of a tower.

    config = ProbeConfig(solver="adamw", weight_decays=(0.01,), epochs=10)
    result = finetune(load_tower("rad-dino"), 2, target, config)

Attention pooling is a query learned with the probe; it starts at the mean patch.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from encoder.encoding import prepare_pixels
from encoder.features import FeatureStore
from encoder.fitting import ProbeResult, Scores, as_scores, choose_and_measure, moments, rows_in, sum_losses
from encoder.probe_config import ProbeConfig
from encoder.targets import Target
from encoder.tower import Tower
from raddraft.errors import RadDraftError
from raddraft.studies import GrayMapping


def descend(x: Tensor, target: Target, config: ProbeConfig) -> Scores:
    """Linear probes on vectors [n, D], fitted on the train split; all weight decays and seeds in one batched product.

    Each takes the steps that it would take alone: they share no parameter, and AdamW works element by element.
    """
    train, rest = rows_in(target, "train"), rows_in(target, "val", "test")
    mean, sd = moments([x[train]])
    x = (x - mean.float()) / sd.float()
    y, restore = _scaled(target)
    starts = []
    for seed in config.seeds:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            starts.append(nn.Linear(x.shape[1], y.shape[1]))
    weights = [torch.stack([start.weight for start in starts]) for _ in config.decays]  # K times [S, C, D]
    biases = [torch.stack([start.bias for start in starts]) for _ in config.decays]  # K times [S, C]
    for parameter in (*weights, *biases):
        parameter.detach_().requires_grad_()
    groups: list[dict[str, Any]] = [{"params": biases, "weight_decay": 0.0}]
    groups += [{"params": [one], "weight_decay": decay} for one, decay in zip(weights, config.decays, strict=True)]
    optimizer, schedule = _optimizer(groups, len(train), config)
    generators = [torch.Generator().manual_seed(seed) for seed in config.seeds]
    for _ in range(config.epochs):
        orders = torch.stack([train[torch.randperm(len(train), generator=generator)] for generator in generators])
        for rows in orders.split(config.batch_size, dim=1):  # [S, B]
            logits = torch.baddbmm(torch.cat(biases, 1)[:, None], x[rows], torch.cat(weights, 1).mT)  # [S, B, K * C]
            truth = y[rows].repeat(1, 1, len(config.decays)).unflatten(2, (len(config.decays), -1))  # [S, B, K, C]
            losses = zip(logits.unflatten(2, truth.shape[2:]), truth, strict=True)
            optimizer.zero_grad()
            parts = [
                sum_losses(one.flatten(0, 1), true.flatten(0, 1), target.kind) / _count_known(true[:, 0])
                for one, true in losses
            ]
            torch.stack(parts).sum().backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        return {
            decay: [restore(x[rest] @ one.T + own, rest) for one, own in zip(weight, bias, strict=True)]
            for decay, weight, bias in zip(config.decays, weights, biases, strict=True)
        }


def attend(store: FeatureStore, target: Target, config: ProbeConfig) -> Scores:
    """Linear probes behind attention over the stored patches, fitted on the train split."""

    def patches(rows: Tensor) -> Tensor:
        return torch.stack([store.patches(target.paths[row]).flatten(0, 1).float() for row in rows])  # [B, P, D]

    batches = rows_in(target, "train").split(config.batch_size)
    mean, sd = moments(patches(rows).flatten(0, 1) for rows in batches)
    return _train_all(lambda: _Head(mean, sd, len(target.names), True), patches, target, config)


def finetune(
    tower: Tower, n_blocks: int, target: Target, config: ProbeConfig, gray_mapping: GrayMapping = "window"
) -> ProbeResult:
    """Train the last blocks of a tower with AdamW, together with a linear probe on top of them, and measure that.

    All other weights, those of a final LayerNorm too, are frozen. Each seed starts from the original weights; in the
    end the tower holds the blocks of the last seed.

    Args:
        tower: a plain vision transformer, in float32, on the device that computes.
        n_blocks: number of its last blocks to train.
        target: images and labels; the files are read here.
        config: solver adamw, one weight decay.
        gray_mapping: of gray values; see `raddraft.images.load_image`.

    Raises:
        RadDraftError: another solver, several weight decays, not a plain vision transformer, too few blocks, an image
            that cannot be read.
    """
    started = time.perf_counter()
    if config.solver != "adamw" or len(config.decays) != 1:
        raise RadDraftError(
            f"Fine-tuning needs solver 'adamw' and one weight decay, not {config.solver} {config.decays}"
        )
    stacks = [module for module in tower.model.modules() if isinstance(module, nn.ModuleList)] if tower.is_plain else []
    blocks = list(max(stacks, key=len, default=()))
    if not 0 < n_blocks <= len(blocks):
        raise RadDraftError(f"{n_blocks} blocks of {tower.name} cannot train: it has {len(blocks)} that can")
    chosen = [parameter for block in blocks[-n_blocks:] for parameter in block.parameters()]
    before = [parameter.detach().clone() for parameter in chosen]
    asked = [(parameter, parameter.requires_grad) for parameter in tower.model.parameters()]

    def encode(rows: Tensor) -> Tensor:
        """Features through which gradients flow: vectors [B, D] or, for attention, patches [B, P, D]."""
        pixels = [prepare_pixels(tower.processor, target.paths[row], gray_mapping) for row in rows]
        encoded = tower.encode(torch.stack(pixels), grad=True)
        patches = encoded.patches.flatten(1, 2).float()
        if config.pooling == "attention":
            return patches
        pooled, mean = encoded.pooled.float(), patches.mean(1)
        return {"class": pooled, "mean": mean, "both": torch.cat([pooled, mean], dim=1)}[config.pooling]

    def fit(part: Target) -> Scores:
        with torch.no_grad():
            batches = rows_in(part, "train").split(config.batch_size)
            mean, sd = moments(encode(rows).flatten(0, -2) for rows in batches)

        def build() -> nn.Module:
            for parameter, value in zip(chosen, before, strict=True):
                parameter.data.copy_(value)
            return _Head(mean, sd, len(part.names), config.pooling == "attention").to(tower.device)

        return _train_all(build, encode, part, config, chosen)

    try:
        tower.model.requires_grad_(False)
        for parameter in chosen:
            parameter.requires_grad_(True)
        return choose_and_measure(target, fit, config, started)
    finally:
        for parameter, value in asked:
            parameter.requires_grad_(value)


class _Head(nn.Module):
    """Standardize, pool the patches by attention if asked to, then a linear layer: [B, D] or [B, P, D] -> [B, C]."""

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


def _train_all(
    build: Callable[[], nn.Module],
    load: Callable[[Tensor], Tensor],
    target: Target,
    config: ProbeConfig,
    shared: Sequence[nn.Parameter] = (),
) -> Scores:
    """A fresh head, with parameters behind `load`, for each weight decay and seed; train images get NaN as scores."""
    train, rest = rows_in(target, "train"), rows_in(target, "val", "test")
    y, restore = _scaled(target)
    found: Scores = {}
    for decay in config.decays:
        for seed in config.seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                module = build()
            generator = torch.Generator().manual_seed(seed)
            learned = [*shared, *module.parameters()]
            groups = [
                {"params": [one for one in learned if one.ndim > 1], "weight_decay": decay},
                {"params": [one for one in learned if one.ndim <= 1], "weight_decay": 0.0},  # biases and the query
            ]
            optimizer, schedule = _optimizer(groups, len(train), config)
            for _ in range(config.epochs):
                for batch in train[torch.randperm(len(train), generator=generator)].split(config.batch_size):
                    optimizer.zero_grad()
                    loss = sum_losses(module(load(batch)), y[batch], target.kind) / _count_known(y[batch])
                    loss.backward()
                    optimizer.step()
                    schedule.step()
            with torch.no_grad():
                outputs = [module(load(rows)).cpu() for rows in rest.split(config.batch_size)]
            scores = torch.cat(outputs) if outputs else torch.empty(0, y.shape[1])
            found.setdefault(decay, []).append(restore(scores, rest))
    return found


def _count_known(y: Tensor) -> Tensor:
    """Labels that are not missing; 1 where all are."""
    return (~y.isnan()).sum().clamp(min=1)


def _scaled(target: Target) -> tuple[Tensor, Callable[[Tensor, Tensor], np.ndarray]]:
    """Labels to learn [n, C], quantities with mean 0 and variance 1 in train; and the way back.

    The way back takes outputs [m, C] and their rows to scores [n, C], with NaN in all other rows.
    """
    center, scale = np.zeros(target.y.shape[1]), np.ones(target.y.shape[1])
    if target.kind == "regression":
        train = target.y[target.splits == "train"]
        center, scale = np.nanmean(train, axis=0), np.nanstd(train, axis=0)

    def restore(outputs: Tensor, rows: Tensor) -> np.ndarray:
        scores = np.full(target.y.shape, np.nan)
        scores[rows] = as_scores(outputs, target.kind) * scale + center
        return scores

    return torch.from_numpy((target.y - center) / scale).float(), restore


def _optimizer(groups: list[dict[str, Any]], n: int, config: ProbeConfig) -> tuple[Any, Any]:
    """AdamW and its cosine for probes that are fitted on n images."""
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    n_steps = config.epochs * math.ceil(n / config.batch_size)
    return optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps)
