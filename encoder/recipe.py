"""What a pre-training run is made of: its settings, the schedules, and the network that it starts from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import load_file

from encoder.augment import ViewConfig
from encoder.dino import Dino, DinoConfig, cosine
from encoder.tower import Tower
from encoder.towers import load_tower
from raddraft.errors import RadDraftError
from raddraft.studies import GrayMapping


@dataclass
class Architecture:
    """A Dinov2 to train from scratch."""

    width: int = 384
    """Hidden size, a multiple of 64 (heads are 64 wide)."""
    depth: int = 12
    """Blocks."""
    patch_size: int = 14
    """In pixels."""
    registers: int = 0
    """Register tokens (Darcet et al., arXiv 2309.16588)."""
    layer_scale: float = 1e-5
    """Initial scale of each residual branch; DINOv2's 1e-5 is for long runs, 1 learns faster in short ones."""


@dataclass
class Watch:
    """A probe on frozen features, fitted on train and measured on val."""

    kind: Literal["multilabel", "binary", "multiclass", "regression"]
    """See `encoder.targets.TargetSpec`."""
    targets: list[str]
    """Findings or fields."""
    sources: list[str] | None = None
    """Take only studies of these sources; by default all."""
    solver: Literal["lbfgs", "knn"] = "lbfgs"
    """A linear probe, or the vote of the 20 nearest train images."""
    weight_decay: float = 100.0
    """Of the linear probe."""

    @property
    def name(self) -> str:
        return ", ".join(self.targets)


@dataclass
class PretrainConfig:
    """A run. Defaults are DINOv2's, durations as shares of the run."""

    tower: str | None = "dinov2-base"
    """Where to start: short name, hub id or folder of a DINOv2-like tower; `random:` before it for its architecture
    with random weights; null: `architecture`."""
    architecture: Architecture | None = None
    """What to train from scratch; needs `tower: null`."""
    head: Path | None = None
    """Weights of the DINO head to start from, e.g. RAD-DINO's dino_head.safetensors."""
    calibrate: bool = False
    """Set new heads by the backbone's features instead of at random, see `encoder.dino.Head.calibrate`: for short runs
    from a trained backbone. DINOv2 does not."""
    drop_path: float = 0.3
    """Probability of leaving out a residual branch of the student."""
    objective: DinoConfig = field(default_factory=DinoConfig)
    """The losses."""
    views: ViewConfig = field(default_factory=ViewConfig)
    """The crops."""
    steps: int = 100_000
    """Optimiser steps."""
    batch_size: int = 1024
    """Images in a step, over all processes."""
    micro_batch_size: int = 64
    """Images that one process puts through at a time; centres and neighbours are over these, of all processes."""
    base_lr: float = 4e-3
    """Learning rate at batch 1024; it goes with the square root of the batch size."""
    min_lr: float = 1e-6
    """At the end."""
    warmup: float = 0.1
    """Share of the run in which the learning rate rises."""
    weight_decay: tuple[float, float] = (0.04, 0.4)
    """At the start and at the end."""
    layer_decay: float = 0.9
    """Factor on the learning rate from block to block, towards the input."""
    patch_embed_lr: float = 0.2
    """Further factor on that of the patch embedding."""
    freeze_last_layer: float = 0.01
    """Share of the run in which the prototypes do not move."""
    momentum: tuple[float, float] = (0.992, 1.0)
    """Of the teacher's running mean, at the start and at the end."""
    temperature: tuple[float, float] = (0.04, 0.07)
    """Of the teacher, at the start and after its warm-up."""
    temperature_warmup: float = 0.3
    """Share of the run in which it rises."""
    max_grad_norm: float = 3.0
    """Gradients of backbone and heads are each scaled down to this norm."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of Accelerate."""
    checkpointing: bool = False
    """Compute activations a second time instead of keeping them: less memory, a third more time."""
    shard: bool = False
    """Weights, gradients and optimizer states of student and teacher are shared out over the processes (FSDP 2) instead
    of lying whole on each of them; the same numbers, and checkpoints that go on either way."""
    fraction: float = 1.0
    """Share of the subjects that is used, chosen by the seed."""
    weights: list[float] | None = None
    """Shares of the manifests in each step; by default every image is seen once an epoch."""
    gray_mapping: GrayMapping = "minmax"
    """How grey values of the files are mapped to 0..1; see `raddraft.images`. RAD-DINO's is min-max."""
    watch: tuple[Watch, ...] = ()  # no list: see `stages` in generator/train.py
    """Probes along the way; their mean chooses the checkpoint. None: the last one is kept."""
    watch_every: int = 2500
    """Steps between them."""
    pictures: int = 4
    """Val images of which feature maps are drawn with every probe."""
    save_every: int = 500
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between lines of the log."""
    workers: int = 2
    """Processes that read and augment images, for each process that trains."""
    seed: int = 0
    """Of new weights, order, views and masks."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers of Accelerate, e.g. tensorboard; none unless named here."""

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise RadDraftError(f"fraction must be above 0 and at most 1, got {self.fraction}")
        if self.head and self.calibrate:
            raise RadDraftError("calibrate is for new heads; leave it out, or `head`")
        if (self.tower is None) == (self.architecture is None):
            raise RadDraftError(
                "Name either a tower to start from or, with `tower: null`, an architecture to start anew"
            )
        if self.steps < 1 or min(self.batch_size, self.micro_batch_size, self.watch_every, self.save_every) < 1:
            raise RadDraftError(f"steps, batch sizes and intervals must be at least 1, got {self}")

    @property
    def peak_lr(self) -> float:
        return self.base_lr * math.sqrt(self.batch_size / 1024)

    def at(self, step: int) -> dict[str, float]:
        """The schedules at a step, from 0: learning rates by part, weight decay, and the teacher's two."""
        n = self.steps
        lr = cosine(step, self.peak_lr, self.min_lr, n, round(self.warmup * n))
        low, high = self.temperature
        n_rise = round(self.temperature_warmup * n)
        return {
            "lr": lr,
            "lr_prototypes": 0.0 if step < round(self.freeze_last_layer * n) else lr,
            "weight_decay": cosine(step, *self.weight_decay, n),
            "momentum": cosine(step, *self.momentum, n),
            "temperature": cosine(step, high, high, n_rise, n_rise, low),
        }


def load_start(config: PretrainConfig) -> Tower:
    """The backbone that a run starts from, with drop path, and the image processor of the tower it will become.

    Raises:
        ValueError: the tower is not DINOv2-like, or views do not fit its patches.
        OSError: the tower cannot be reached or read.
    """
    from transformers import BitImageProcessor

    if config.tower is None:
        backbone, mean, std = new_backbone(config), [0.5307] * 3, [0.2583] * 3  # RAD-DINO's processor
    else:
        tower = load_tower(config.tower)
        processor: Any = tower.processor
        # Radiographs are grey: one mean and one deviation for all channels, as the views are normalised.
        mean, std = ([float(np.mean(values))] * 3 for values in (processor.image_mean, processor.image_std))
        backbone = _with_drop_path(tower.model, config)
    patch = backbone.config.patch_size
    for name in ("global_size", "local_size"):
        if getattr(config.views, name) % patch:
            raise RadDraftError(
                f"views.{name} {getattr(config.views, name)} is not a multiple of the patch size {patch}"
            )
    size = config.views.global_size
    processor = BitImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=mean, image_std=std
    )
    return Tower(config.tower or "from scratch", backbone, processor)


def new_backbone(config: PretrainConfig) -> Any:
    """A Dinov2 with random weights in the recipe's architecture."""
    from transformers import AutoModel, Dinov2Config, Dinov2WithRegistersConfig

    wanted = config.architecture or Architecture()
    sizes: dict[str, Any] = {
        "hidden_size": wanted.width,
        "num_hidden_layers": wanted.depth,
        "num_attention_heads": max(1, wanted.width // 64),
        "patch_size": wanted.patch_size,
        "image_size": config.views.global_size,
        "layerscale_value": wanted.layer_scale,
        "drop_path_rate": config.drop_path,
    }
    if wanted.registers:
        return AutoModel.from_config(Dinov2WithRegistersConfig(**sizes, num_register_tokens=wanted.registers))
    return AutoModel.from_config(Dinov2Config(**sizes))


def _with_drop_path(model: Any, config: PretrainConfig) -> Any:
    """The same model built anew with drop path and a mask token, which transformers gives no way to switch on later."""
    from transformers import AutoModel

    settings = model.config
    if settings.model_type not in ("dinov2", "dinov2_with_registers"):
        raise RadDraftError(
            f"Pre-training takes DINOv2 towers, with or without registers; this is {settings.model_type!r}"
        )
    settings.drop_path_rate, settings.use_mask_token = config.drop_path, True
    backbone = AutoModel.from_config(settings)
    weights = model.state_dict()
    weights.setdefault("embeddings.mask_token", torch.zeros(1, settings.hidden_size))
    backbone.load_state_dict(weights)
    return backbone


def load_head(model: Dino, path: Path) -> None:
    """Put published weights into the heads of student and teacher.

    Raises:
        ValueError: names or shapes are not those of the head; the message names the first.
    """
    weights = load_file(path)
    for network in (model.student, model.teacher):
        try:
            network["head"].load_state_dict(weights)
        except RuntimeError as error:
            raise RadDraftError(f"{path} does not fit the DINO head: {' '.join(str(error).split())}") from error
