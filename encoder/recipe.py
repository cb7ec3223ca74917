"""The recipe of a pre-training run: crops, objective, optimization and their schedules. Imports nothing heavy."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Literal

from encoder.probe_config import TargetSpec
from raddraft.errors import RadDraftError
from raddraft.ranges import Amount, Count, Portion, Positive, Share, Whole, check_ranges
from raddraft.schedules import cosine, linear
from raddraft.studies import GrayMapping


@dataclass
class Architecture:
    """A DINOv2 vision transformer to train from scratch."""

    width: Count = 384
    """Hidden size, a multiple of 64: heads are 64 wide."""
    depth: Count = 12
    """Number of transformer blocks."""
    patch_size: Count = 14
    """Side of a patch in pixels."""
    registers: Whole = 0
    """Number of register tokens (Darcet et al., arXiv 2309.16588)."""
    swiglu: bool = False
    """Gated feed-forward layers (SwiGLU, Shazeer, arXiv 2002.05202), as DINOv2's largest and CheXFound have."""
    layer_scale: Positive = 1e-5
    """Initial scale of each residual branch. DINOv2's 1e-5 is for long runs; 1 learns faster in short ones."""

    def __post_init__(self) -> None:
        check_ranges(self, "architecture")


@dataclass
class CropConfig:
    """Global crops, which teacher and student see, and local crops, which only the student sees.

    Defaults are those of DINOv2 (arXiv 2304.07193) unless a field says otherwise. RAD-DINO (arXiv 2401.10815) takes
    larger crops, without stating numbers: those here are this project's own.
    """

    global_size: Count = 518
    """Side of a global crop in pixels, a multiple of the patch size. RAD-DINO's: small findings need resolution."""
    local_crops: Whole = 8
    """Number of local crops per image."""
    local_size: Count = 196
    """Side of a local crop in pixels, a multiple of the patch size. DINOv2's proportion, 96 : 224, would be 222."""
    global_scale: tuple[float, float] = (0.5, 1.0)
    """Range of a global crop's share of the image area. DINOv2 starts at 0.32, where one lung can be missing."""
    local_scale: tuple[float, float] = (0.1, 0.4)
    """Range of a local crop's share of the image area. DINOv2's 0.05 to 0.32 often shows no landmark of the chest."""
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of width : height of the box that is cut out and then made square; log-uniform."""
    flip: Share = 0.5
    """Probability of a horizontal flip. Use 0 where laterality matters, as for situs inversus."""
    jitter: Share = 0.8
    """Probability of changing brightness, contrast and gamma together."""
    brightness: tuple[float, float] = (0.85, 1.1)
    """Range of the factor on all gray values. DINOv2 has 0.6 to 1.4, which saturates mediastinum and abdomen."""
    contrast: tuple[float, float] = (0.7, 1.25)
    """Range of the factor on the distance from the crop's mean, like another window width. DINOv2 has 0.6 to 1.4."""
    gamma: tuple[float, float] = (0.6, 1.6)
    """Range of the exponent, like another detector's characteristic curve. Replaces DINOv2's saturation and hue."""
    blur_global: tuple[Share, Share] = (0.0, 0.9)
    """Probability of blurring the first and the second global crop. DINOv2's configuration reads 1.0 and 0.1, but its
    blur is applied with 1 - p: the first is never blurred, the second nine times of ten."""
    blur_local: Share = 0.5
    """Probability of blurring a local crop; 0.5 in DINOv2, either way."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation in pixels; lower it for crops much smaller than DINOv2's 224 and 96."""
    solarize: Share = 0.0
    """Probability of solarizing the second global crop. DINOv2 has 0.2; in a radiograph it turns bone into air."""

    def __post_init__(self) -> None:
        check_ranges(self, "crops")
        for name in ("global_scale", "local_scale", "aspect_ratio", "brightness", "contrast", "gamma", "blur_sigma"):
            low, high = getattr(self, name)
            limit = 1.0 if name.endswith("scale") else math.inf
            if not 0 < low <= high <= limit or math.isinf(high):
                most = " and at most 1" if limit == 1 else ""
                raise RadDraftError(f"{name} must be a range from low to high, above 0{most}, got {low} to {high}")


@dataclass
class DinoConfig:
    """The objective. Defaults are DINOv2's (its ssl_default_config.yaml)."""

    dino_weight: Amount = 1.0
    """Weight of the cross-entropy between class tokens."""
    ibot_weight: Amount = 1.0
    """Weight of the cross-entropy between masked patches; 0 turns masked image modeling off."""
    koleo_weight: Amount = 0.1
    """Weight of the nearest-neighbor entropy of the class tokens (Sablayrolles et al., arXiv 1806.03198)."""
    prototypes: Count = 65536
    """Number of outputs of the head. Small data sets need fewer."""
    head_hidden: Count = 2048
    """Width of the head's two hidden layers."""
    bottleneck: Count = 256
    """Width before the head's last, weight-normalized layer."""
    separate_ibot_head: bool = False
    """Give patches a head of their own instead of sharing that of the class tokens."""
    centering: Literal["center", "sinkhorn"] = "center"
    """How collapse is prevented: a running mean (DINO) or Sinkhorn-Knopp (SwAV, arXiv 2006.09882), three rounds."""
    student_temperature: Positive = 0.1
    """Temperature of the student's softmax; the teacher's is `temperature`."""
    mask_probability: Share = 0.5
    """Share of the global crops that are masked for the student."""
    mask_ratio: tuple[float, float] = (0.1, 0.5)
    """Range of the share of patches that are hidden in a masked crop."""

    def __post_init__(self) -> None:
        check_ranges(self, "objective")
        if not self.dino_weight + self.ibot_weight:
            raise RadDraftError("objective: dino_weight or ibot_weight must be above 0, got 0 for both")
        if not 0 < self.mask_ratio[0] <= self.mask_ratio[1] < 1:
            raise RadDraftError(f"objective: need 0 < low <= high < 1 for mask_ratio, got {self.mask_ratio}")


@dataclass(frozen=True)
class Watch(TargetSpec):
    """A probe on frozen features, fitted on train and measured on val."""

    sources: tuple[str, ...] | None = None
    """Use only studies of these sources; by default all."""
    solver: Literal["lbfgs", "knn"] = "lbfgs"
    """lbfgs: a linear probe; knn: the vote of the 20 nearest train images."""
    weight_decay: Amount = 100.0
    """Weight decay of the linear probe."""

    @property
    def name(self) -> str:
        """The name under which log.jsonl and best.json state the result."""
        return ", ".join(self.targets)


@dataclass
class PretrainConfig:
    """Pre-training recipe. Defaults are DINOv2's; durations are shares of the run."""

    tower: str | None = "dinov2-base"
    """Tower to start from: short name, hub id or folder of a DINOv2-like tower; "random:" before it for the same
    architecture with random weights; null to use `architecture`."""
    architecture: Architecture | None = None
    """Architecture to train from scratch; needs `tower: null`."""
    head: Path | None = None
    """Weights of the DINO head to start from, e.g. RAD-DINO's dino_head.safetensors."""
    calibrate: bool = False
    """Initialize new heads from the backbone's features, not at random as in DINOv2: for short runs from a tower."""
    drop_path: Share = 0.3
    """Probability of dropping a residual branch of the student (stochastic depth)."""
    objective: DinoConfig = field(default_factory=DinoConfig)
    """Objective."""
    crops: CropConfig = field(default_factory=CropConfig)
    """Crops."""
    steps: Count = 100_000
    """Number of optimizer steps."""
    batch_size: Count = 1024
    """Images per step, over all processes."""
    micro_batch_size: Count = 64
    """Images per process in one forward pass; centers and nearest neighbors are over these, of all processes. KoLeo and
    Sinkhorn-Knopp need two or more."""
    lr: Positive = 4e-3
    """Peak learning rate at batch size 1024; scaled with the square root of the batch size."""
    min_lr: Amount = 1e-6
    """Learning rate at the end."""
    warmup: Share = 0.1
    """Share of the run over which the learning rate rises from 0."""
    weight_decay: tuple[Amount, Amount] = (0.04, 0.4)
    """Weight decay at the start and at the end."""
    layer_decay: Share = 0.9
    """Factor on the learning rate from each block to the one before it."""
    patch_embed_lr: Positive = 0.2
    """Further factor on the learning rate of the patch embedding."""
    freeze_last_layer: Share = 0.01
    """Share of the run during which the prototypes are frozen."""
    momentum: tuple[Share, Share] = (0.992, 1.0)
    """Momentum of the teacher's running mean, at the start and at the end."""
    temperature: tuple[Positive, Positive] = (0.04, 0.07)
    """Temperature of the teacher's softmax, at the start and after its warm-up."""
    temperature_warmup: Share = 0.3
    """Share of the run over which the teacher's temperature changes."""
    max_grad_norm: Positive = 3.0
    """Norm to which the gradients of the backbone and of each head are clipped."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of Accelerate."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    shard: bool = False
    """Shard weights, gradients and optimizer states over the processes (FSDP 2); results and checkpoints stay equal."""
    fraction: Portion = 1.0
    """Share of the subjects to train on, chosen by the seed."""
    weights: list[Amount] | None = None
    """Share of each manifest in a step; by default every image is seen once an epoch."""
    gray_mapping: GrayMapping = "minmax"
    """How gray values are mapped to 0..1: the DICOM window, min-max (RAD-DINO's), or percentiles 0.5 to 99.5."""
    watch: tuple[Watch, ...] = ()  # a tuple, not a list: a later config file replaces it as a whole
    """Probes along the way; their mean chooses the checkpoint to keep. Without probes the last one is kept."""
    watch_every: Count = 2500
    """Steps between probes."""
    map_images: Whole = 4
    """Number of val images whose feature maps are drawn with every probe."""
    save_every: Count = 500
    """Steps between checkpoints."""
    log_every: Count = 10
    """Steps between rows of log.jsonl."""
    workers: Whole = 2
    """Processes that read and crop images, for each training process."""
    seed: Whole = 0
    """Seed of new weights, order, crops and masks."""
    stop_on_collapse: bool = False
    """End the run once the signs of collapse in its log are clear; otherwise it only says so."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers of Accelerate, e.g. tensorboard."""

    def __post_init__(self) -> None:
        check_ranges(self, "pretrain")
        if self.head and self.calibrate:
            raise RadDraftError(f"calibrate is for new heads, but head is {self.head}; leave one of them out")
        if (self.tower is None) == (self.architecture is None):
            raise RadDraftError(
                "Name either a tower to start from or, with `tower: null`, an architecture to train from scratch"
            )
        self._check_neighbors()

    def _check_neighbors(self) -> None:
        """Raise RadDraftError if a part of the loss that compares images gets one image at a time."""
        processes = int(os.environ.get("WORLD_SIZE", "1"))  # set by accelerate launch; neighbors are over all of them
        if min(self.batch_size, self.micro_batch_size * processes) > 1:
            return
        alone = f"batch_size {self.batch_size} and micro_batch_size {self.micro_batch_size}"
        alone += f" on {processes} processes" if processes > 1 else ""
        for used, what, instead in (
            (self.objective.koleo_weight, "KoLeo's nearest neighbor", "set pretrain.objective.koleo_weight: 0"),
            (self.objective.centering == "sinkhorn", "Sinkhorn-Knopp", "use pretrain.objective.centering: center"),
        ):
            if used:
                raise RadDraftError(
                    f"{what} needs two or more images at a time, and {alone} make one; raise both to 2 or more, or "
                    f"{instead}"
                )

    @property
    def peak_lr(self) -> float:
        """The peak learning rate at this batch size."""
        return self.lr * math.sqrt(self.batch_size / 1024)

    @property
    def mask_probability(self) -> float:
        """Share of the global crops that are masked; 0 without iBOT's loss."""
        return self.objective.mask_probability if self.objective.ibot_weight else 0.0

    def at(self, step: int) -> dict[str, float]:
        """The schedules at a step, from 0: learning rates by part, weight decay, the teacher's momentum, temperature.

        As in DINOv2: a linear warm-up, then half a cosine.
        """
        steps, warmup = self.steps, round(self.warmup * self.steps)
        rise = linear(0.0, self.peak_lr, step, warmup)
        lr = rise if step < warmup else cosine(self.peak_lr, self.min_lr, step - warmup, steps - warmup)
        return {
            "lr": lr,
            "lr_prototypes": 0.0 if step < round(self.freeze_last_layer * steps) else lr,
            "weight_decay": cosine(*self.weight_decay, step, steps),
            "momentum": cosine(*self.momentum, step, steps),
            "temperature": linear(*self.temperature, step, round(self.temperature_warmup * steps)),
        }


RENAMED = {f"pretrain.views.{one.name}": f"pretrain.crops.{one.name}" for one in fields(CropConfig)} | {
    "pretrain.views": "pretrain.crops",
    "pretrain.views.n_local": "pretrain.crops.local_crops",
    "pretrain.views.solarise": "pretrain.crops.solarize",
    "pretrain.crops.n_local": "pretrain.crops.local_crops",
    "pretrain.objective.centring": "pretrain.objective.centering",
    "pretrain.base_lr": "pretrain.lr",
    "pretrain.checkpointing": "pretrain.activation_checkpointing",
    "pretrain.pictures": "pretrain.map_images",
}
"""Old option -> new, for the actions that read a recipe."""
