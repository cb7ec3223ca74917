"""What a pre-training run will cost, before anything is spent: parameters, tokens, FLOPs, memory per GPU, hours.

Estimates: matrix products only; activations as counted by Korthikanti et al. (arXiv 2205.05198) for attention that
keeps no scores; nothing for buffers of libraries and fragmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from encoder.recipe import PretrainConfig

Gpu = Literal["rtx4090", "a10", "l40s", "a100-40gb", "a100", "h100", "h200", "b200"]
GPUS: dict[Gpu, tuple[float, int]] = {
    "rtx4090": (165e12, 24),
    "a10": (125e12, 24),
    "l40s": (362e12, 48),
    "a100-40gb": (312e12, 40),
    "a100": (312e12, 80),
    "h100": (989e12, 80),
    "h200": (989e12, 141),
    "b200": (2250e12, 192),
}
"""Name -> dense 16-bit tensor-core operations a second and GiB, by the vendor's data sheets (from memory)."""

UTILISATION = 0.35
"""Share of the peak that a vision transformer with small crops is taken to reach."""


@dataclass(frozen=True)
class Budget:
    """One step, and the run."""

    backbone: int
    """Parameters of the student's backbone; the teacher has as many."""
    heads: int
    """Parameters of the student's head or heads."""
    tokens: int
    """That the student reads in a step, over all processes, class tokens included."""
    flops: float
    """Of a step, over all processes."""
    memory: dict[str, float]
    """GiB on one GPU, by part."""
    hours: float


def estimate(config: PretrainConfig, gpu: Gpu, n_gpus: int) -> Budget:
    """The cost of a run.

    Args:
        config: the recipe.
        gpu: one of GPUS.
        n_gpus: of them.

    Raises:
        OSError: the sizes of the tower are not known without its files, and the hub cannot be reached.
    """
    import torch

    from encoder.dino import Dino

    peak, _ = GPUS[gpu]
    with torch.device("meta"):
        backbone = meta_backbone(config)
        model = Dino(backbone, config.objective)
    n_backbone = sum(parameter.numel() for parameter in backbone.parameters())
    n_heads = sum(parameter.numel() for parameter in model.student.parameters()) - n_backbone
    settings = backbone.config
    width, depth = settings.hidden_size, settings.num_hidden_layers
    views, objective = config.views, config.objective
    lengths = [1 + (size // settings.patch_size) ** 2 for size in (views.global_size, views.local_size)]
    n_blocks = sum(parameter.numel() for parameter in backbone.encoder.parameters())
    # Two operations a weight and token, and two products of attention a layer and pair of tokens.
    forward = [2 * n_blocks * t + 4 * depth * width * t * t for t in lengths]
    hidden = objective.mask_probability * sum(objective.mask_ratio) / 2 if objective.ibot_weight else 0.0
    patches = 2 * hidden * (lengths[0] - 1)
    head = 2 * (n_heads / (1 + objective.separate_ibot_head))
    student = 2 * forward[0] + views.n_local * forward[1] + (2 + views.n_local + patches) * head
    teacher = 2 * forward[0] + (2 + patches) * head
    again = 1 if config.checkpointing else 0
    flops = config.batch_size * ((3 + again) * student + teacher)
    tokens = 2 * lengths[0] + views.n_local * lengths[1]
    share = n_gpus if config.shard else 1
    per_gpu = min(config.micro_batch_size, math.ceil(config.batch_size / n_gpus))
    half = 4 if config.precision == "no" else 2  # bytes of an activation
    kept = 2 if config.checkpointing else 34 * half / 2
    rows = per_gpu * (2 + views.n_local + patches)
    memory = {
        "weights, gradients, optimizer": 16 * (n_backbone + n_heads) / share,
        "teacher": 4 * (n_backbone + n_heads) / share,
        "activations": per_gpu * tokens * width * depth * kept,
        "logits": 3 * 4 * rows * objective.prototypes,
    }
    hours = config.steps * flops / (n_gpus * peak * UTILISATION) / 3600
    gib = {name: value / 2**30 for name, value in memory.items()}
    return Budget(n_backbone, n_heads, config.batch_size * tokens, flops, gib, hours)


def meta_backbone(config: PretrainConfig) -> Any:
    """The backbone with the recipe's sizes; under `torch.device("meta")` nothing is allocated or downloaded.

    Raises:
        OSError: the sizes of the tower are not known without its files, and the hub cannot be reached.
    """
    from transformers import AutoModel

    from encoder.recipe import new_backbone
    from encoder.sizes import tower_config
    from encoder.towers import resolve_tower

    if config.tower is None:
        return new_backbone(config)
    return AutoModel.from_config(tower_config(resolve_tower(config.tower.removeprefix("random:")))[0])


def describe(budget: Budget, config: PretrainConfig, gpu: Gpu, n_gpus: int) -> str:
    """A Budget in words."""
    total = sum(budget.memory.values())
    peak, memory = GPUS[gpu]
    lines = [
        f"parameters  backbone {budget.backbone:,}, heads {budget.heads:,}; the teacher has as many again",
        f"a step      {config.batch_size:,} images, {budget.tokens:,} tokens, {budget.flops:.3g} FLOPs",
        f"memory      {total:.1f} GiB on each of {n_gpus} GPUs ({gpu} has {memory}): "
        + ", ".join(f"{name} {value:.2f}" for name, value in budget.memory.items()),
        f"time        {budget.hours:,.1f} hours for {config.steps:,} steps at {UTILISATION:.0%} of {peak / 1e12:g} "
        f"TFLOP/s each, {n_gpus * budget.hours:,.0f} GPU hours",
    ]
    if total > memory:
        lines.append("            too much: lower micro_batch_size, set checkpointing: true or shard: true")
    return "\n".join([*lines, "Estimates; matrix products and kept activations only."])
