"""What a pre-training run will cost, before anything is spent: parameters, tokens, FLOPs, memory per GPU, hours.

Estimates: matrix products only; activations as torch.autograd.graph.saved_tensors_hooks count them for transformers'
Dinov2, with fused attention, which keeps no scores; nothing for buffers of libraries and fragmentation.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from encoder.dino import Dino
from encoder.recipe import PretrainConfig
from encoder.sizes import tower_config
from encoder.start import new_backbone
from encoder.towers import resolve_tower
from raddraft.gpus import Gpu, describe_gpus, describe_memory, run_hours

UTILIZATION = 0.35
"""Share of the peak that a vision transformer with small crops is assumed to reach."""


@dataclass(frozen=True)
class Budget:
    """One step, and the run."""

    backbone: int
    """Parameters of the student's backbone; the teacher has as many."""
    heads: int
    """Parameters of the student's head or heads."""
    tokens: int
    """Tokens that the student reads in a step, over all processes, class tokens included."""
    flops: float
    """Operations of a step, over all processes."""
    memory: dict[str, float]
    """GiB on one GPU, by part."""
    hours: float


def estimate(config: PretrainConfig, gpu: Gpu, gpus: int) -> Budget:
    """The cost of a run on `gpus` GPUs of one model.

    Raises:
        OSError: the sizes of the tower are not known without its files, and the hub cannot be reached.
    """
    with torch.device("meta"):  # nothing is allocated or downloaded
        backbone = _backbone(config)
        model = Dino(backbone, config.objective)
    n_backbone = sum(parameter.numel() for parameter in backbone.parameters())
    n_heads = sum(parameter.numel() for parameter in model.student.parameters()) - n_backbone
    n_blocks = sum(parameter.numel() for parameter in backbone.encoder.parameters())
    width, depth = backbone.config.hidden_size, backbone.config.num_hidden_layers
    crops, objective = config.crops, config.objective
    lengths = [1 + (size // backbone.config.patch_size) ** 2 for size in (crops.global_size, crops.local_size)]
    # Two operations per weight and token, and two products of attention per layer and pair of tokens.
    forward = [2 * n_blocks * t + 4 * depth * width * t * t for t in lengths]
    patches = config.mask_probability * sum(objective.mask_ratio) * (lengths[0] - 1)  # masked, of two global crops
    head = 2 * (n_heads / (1 + objective.separate_ibot_head))
    student = 2 * forward[0] + crops.local_crops * forward[1] + (2 + crops.local_crops + patches) * head
    teacher = 2 * forward[0] + (2 + patches) * head
    flops = config.batch_size * ((4 if config.activation_checkpointing else 3) * student + teacher)
    tokens = 2 * lengths[0] + crops.local_crops * lengths[1]
    share = gpus if config.shard else 1
    images = min(config.micro_batch_size, math.ceil(config.batch_size / gpus))
    mixed = config.precision != "no"
    # Bytes per token, layer and unit of width: what a block keeps for the backward pass, counted for transformers'
    # Dinov2; with checkpointing its input in float32, and one block's own at a time.
    gated = backbone.config.use_swiglu_ffn
    kept, depths = (44 + 8 * gated if mixed else 72 + 12 * gated), depth
    if config.activation_checkpointing:
        kept, depths = 4 * depth + kept, 1
    logits = images * (2 + crops.local_crops + patches) * objective.prototypes
    # Bytes of a logit: three copies in float32, and in the forward pass what the head gave; before the first backward
    # pass of a step there are no gradients yet.
    gradients = 0 if images * gpus < config.batch_size else 4 * (n_backbone + n_heads) / share
    forward_only = (2 if mixed else 4) * logits - gradients
    memory = {
        "weights, gradients, optimizer": 16 * (n_backbone + n_heads) / share,
        "16-bit copies": 2 * mixed * (n_backbone + n_heads),  # autocast keeps them for the backward pass
        "teacher": 4 * (n_backbone + n_heads) / share,
        "activations": images * tokens * width * depths * kept,
        "logits": 3 * 4 * logits + max(0, forward_only),
    }
    hours = run_hours(config.steps * flops, gpu, gpus, UTILIZATION)
    gib = {name: value / 2**30 for name, value in memory.items()}
    return Budget(n_backbone, n_heads, config.batch_size * tokens, flops, gib, hours)


def _backbone(config: PretrainConfig) -> Any:
    """The backbone with the recipe's sizes and random weights."""
    from transformers import AutoModel

    if config.tower is None:
        return new_backbone(config)
    return AutoModel.from_config(tower_config(resolve_tower(config.tower.removeprefix("random:")))[0])


def describe(config: PretrainConfig, gpu: Gpu, gpus: int) -> str:
    """The cost of a run as text."""
    budget = estimate(config, gpu, gpus)
    return "\n".join(
        [
            f"parameters  backbone {budget.backbone:,}, heads {budget.heads:,}; the teacher has as many again",
            f"step        {config.batch_size:,} images, {budget.tokens:,} tokens, {budget.flops:.3g} FLOPs",
            f"hardware    {describe_gpus(gpu, gpus, UTILIZATION)}",
            f"memory      {describe_memory(budget.memory, gpu)}",
            f"time        {budget.hours:,.1f} hours for {config.steps:,} steps, {gpus * budget.hours:,.0f} GPU hours",
            "Estimates: matrix products and kept activations only. To save memory: a lower micro_batch_size, "
            "activation_checkpointing, shard.",
        ]
    )
