"""Settings of models, training and decoding: dataclasses whose fields are options of the command line.

Nothing heavy is imported here, so that `raddraft ACTION --help` answers at once. They stand in one file, since commands
share them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from metrics.models import Models
from raddraft.errors import RadDraftError, check_fields
from raddraft.ranges import Amount, Count, Portion, Positive, Range, Share, Whole, check_ranges

Control = Literal["none", "shuffled-images", "most-frequent", "nearest-report"]
"""What stands in for a model's drafts, see `generator.controls`."""


@dataclass
class ModelConfig:
    """The parts of a model: a tower and a language model, or a whole vision-language model."""

    tower: str = ""
    """Vision tower: short name (rad-dino, dinov2-base, clip-336 …), hub id or local folder."""
    lm: str = ""
    """Causal language model with its tokenizer: hub id or local folder."""
    vlm: str = ""
    """Vision-language model to go on with instead of a tower and an lm: the folder of a model that RadDraft trained,
    with the prompt it was trained with; or hub id or folder of any model that transformers knows and whose processor
    has a chat template (Gemma 3, Qwen-VL, SmolVLM …), whose own tower stays frozen."""
    image_size: Count | None = None
    """Side of the tower's square input in pixels. By default the size its image processor states."""
    feature_layer: int = -1
    """Hidden state of the tower to project; -1 is the output of the last block, before the final LayerNorm. For towers
    that a LLaVA model cannot hold (CNNs, Swin …) only -1, their final output; these stay frozen."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Data type of frozen weights. Trainable weights are always float32."""
    quantize: Literal["no", "nf4"] = "no"
    """nf4: hold the frozen language model in 4 bits while its adapters train (QLoRA, arXiv 2305.14314). The saved model
    is in `dtype`, with the adapters merged. Needs the package bitsandbytes."""
    gguf_file: str | None = None
    """GGUF file in the folder `lm` to read the language model from. Needs the package gguf."""

    def __post_init__(self) -> None:
        check_ranges(self, "model")
        if bool(self.vlm) == bool(self.tower or self.lm) or bool(self.tower) != bool(self.lm):
            given = ", ".join(f"{name} {getattr(self, name)!r}" for name in ("tower", "lm", "vlm"))
            raise RadDraftError(
                f"model: set tower and lm (--model.tower, --model.lm), or vlm alone (--model.vlm); got {given}"
            )
        if self.vlm and (self.image_size or self.gguf_file or self.feature_layer != -1 or self.quantize != "no"):
            raise RadDraftError(
                f"model: image_size, feature_layer, gguf_file and quantize cannot be used with vlm; got {self}"
            )
        if self.gguf_file and self.quantize != "no":
            raise RadDraftError(f"model: quantize cannot be used with gguf_file {self.gguf_file}; choose one of them")


@dataclass
class LoraConfig:
    """Low-rank adapters on the attention and MLP projections of the language model (Hu et al., arXiv 2106.09685)."""

    rank: Count = 64
    """Rank of the LoRA update."""
    alpha: Count = 128
    """LoRA scale: the update is multiplied by alpha / rank."""
    dropout: Share = 0.05
    """Dropout before the adapter."""

    def __post_init__(self) -> None:
        check_ranges(self, "lora")


@dataclass
class RewardConfig:
    """How a stage learns from its own drafts: sampled, scored by metrics, the better ones made more likely."""

    metrics: dict[str, float] = field(default_factory=dict)
    """Metric -> its weight: rouge_l, nltk_sentence_bleu_4, radgraph_er, rule_macro_f1_14, chexbert_macro_f1_14,
    sentence_set, length …"""
    group: int = 8
    """Drafts sampled of each study, from one pass over its prompt; at least 2."""
    temperature: Positive = 1.0
    """Sampling temperature."""
    max_new_tokens: Count = 150
    """Longest draft, in tokens; one that does not end by then takes no part."""
    advantage: Literal["grpo", "mean_free", "self_critical"] = "mean_free"
    """What a draft is compared with. grpo: its group's mean, divided by the group's standard deviation and each draft's
    length; mean_free: the mean, without these divisions; self_critical: the greedy draft of the same study."""
    clip: float = 0.2
    """PPO's clip of the ratio of probabilities after and before the updates of a step."""
    updates: Count = 1
    """Optimizer updates on the drafts of a step; only from the second on does `clip` matter."""
    kl: Amount = 0.01
    """Weight of the divergence from the weights that the stage starts with. 0: none, nor is it measured."""
    batch_size: Count = 32
    """Studies per step, over all processes."""
    micro_batch_size: Count = 4
    """Studies whose drafts are in one forward and backward pass of one process."""
    sample_batch_size: Count = 16
    """Studies whose drafts one process samples together. Drafts of one batch are scored while the next is sampled."""
    select: str = "rouge_l"
    """Metric of `raddraft score`, over the greedy drafts of the val split, that chooses the weights to keep."""
    val_metrics: list[str] = field(default_factory=lambda: ["rouge", "bleu", "rule"])
    """Metrics and families of `raddraft score` that are logged of these drafts as well."""
    models: Models = field(default_factory=Models)
    """Models of learned metrics."""

    def __post_init__(self) -> None:
        check_ranges(self, "reward")
        check_fields(
            "reward",
            self,
            ("metrics", bool(self.metrics), "at least one metric with its weight, e.g. {rouge_l: 1.0}"),
            ("group", self.group >= 2, "at least 2"),
            ("clip", 0 < self.clip < 1, "above 0 and below 1"),
        )


@dataclass
class Stage:
    """One stage of training: what trains, for how long, at which learning rate."""

    epochs: Positive = 1.0
    """Passes over the training split."""
    lr: Positive | None = None
    """Peak learning rate of AdamW; by default 1e-4, or 1e-6 in a reward stage."""
    projector: bool = True
    """Whether the projector trains."""
    lm: Literal["frozen", "lora", "full"] = "frozen"
    """How the language model trains. LoRA adapters stay in place for later stages and are merged at the end."""
    tower: Literal["frozen", "full"] | Whole = "frozen"
    """How the vision tower trains: frozen, full, or its last N blocks."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Learning rate after warm-up: half a cosine to zero, or constant."""
    warmup: Share = 0.03
    """Fraction of the stage's steps over which the learning rate rises from zero, at least 0 and below 1."""
    weight_decay: Amount = 0.0
    """Decoupled weight decay, on matrices only."""
    beta2: float = 0.999
    """Decay of AdamW's second moment; 0.95 to 0.98 adapts faster in short runs from random weights."""
    reward: RewardConfig | None = None
    """Learn from metrics of the stage's own drafts, not from the reports' tokens. The tower is frozen."""

    def __post_init__(self) -> None:
        check_ranges(self, "stage")
        if self.lr is None:
            self.lr = 1e-6 if self.reward else 1e-4
        if self.warmup == 1 or not 0 < self.beta2 < 1:
            raise RadDraftError(f"stage: need warmup < 1 and 0 < beta2 < 1, got {self}")
        if self.reward and self.trains_tower:
            raise RadDraftError(f"stage: a reward stage leaves the tower frozen, got tower: {self.tower}")

    @property
    def peak(self) -> float:
        """The learning rate `lr`, which is a number by now."""
        return self.lr or 0.0

    @property
    def trains_tower(self) -> bool:
        """Whether any block of the tower trains."""
        return self.tower not in ("frozen", 0)


@dataclass
class TrainConfig:
    """How a report generator is trained."""

    # A tuple: jsonargparse fills the missing fields of a new list from the items of the old one.
    stages: tuple[Stage, ...] = field(
        default_factory=lambda: (Stage(epochs=1, lr=1e-3), Stage(epochs=3, lr=1e-4, lm="lora"))
    )
    """Stages in order; each starts from the best weights of the one before."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Adapters of the stages with `lm: lora`."""
    batch_size: Count = 16
    """Studies per optimizer step, over all processes."""
    micro_batch_size: Count = 16
    """Studies per forward pass of one process; gradients are accumulated up to batch_size."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward pass: far less memory, a third more arithmetic, the same numbers. Not in
    reward stages, which read a prompt once for all its drafts."""
    shard: bool = False
    """Shard weights, gradients and optimizer states over the processes (FSDP 2): the same numbers, and checkpoints that
    resume with or without it."""
    max_grad_norm: Positive = 1.0
    """Norm to which gradients are clipped."""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """Mixed precision of Accelerate."""
    cached: bool = False
    """Run the frozen tower once over all images, store its features, and train from them."""
    standardize: bool = False
    """While training from stored features (`cached`), center and scale every channel by its mean and standard deviation
    over the training images. The saved model is an ordinary one: they are folded into the projector's first layer."""
    eval_every: Whole | None = None
    """Steps between validations; by default once an epoch. 0: no validation, the last weights are kept. A reward stage
    drafts the val split then, and before its first step."""
    patience: Count | None = None
    """Validations in a row without a lower loss that end a stage; by default no early stopping."""
    save_every: Count = 200
    """Steps between checkpoints."""
    log_every: Count = 1
    """Steps between lines of the log."""
    seed: Whole = 0
    """Seed of new weights, data order and dropout."""
    workers: Whole = 2
    """Processes that decode and prepare images."""
    trackers: list[str] = field(default_factory=list)
    """Experiment trackers of Accelerate to report to, e.g. tensorboard or wandb."""

    def __post_init__(self) -> None:
        check_ranges(self, "train")
        modes = {stage.lm for stage in self.stages}
        if not self.stages:
            raise RadDraftError("train.stages is empty; give at least one stage")
        if {"lora", "full"} <= modes:
            raise RadDraftError("train.stages: lm is 'lora' in one stage and 'full' in another; choose one of them")
        if self.cached and any(stage.trains_tower for stage in self.stages):
            raise RadDraftError("train.cached: a stage trains the tower; use cached: false or tower: frozen")
        if self.standardize and not self.cached:
            raise RadDraftError("train.standardize takes its statistics from stored features; add cached: true")

    def batch_of(self, stage: Stage) -> int:
        """Studies per step of a stage."""
        return stage.reward.batch_size if stage.reward else self.batch_size

    @property
    def uses_lora(self) -> bool:
        """Whether any stage trains adapters."""
        return any(stage.lm == "lora" for stage in self.stages)


@dataclass
class ClipConfig:
    """How a tower is trained on images and reports. AdamW's constants and the temperature are those of CLIP."""

    sections: list[str] = field(default_factory=lambda: ["findings"])
    """Report sections to learn from; studies that lack one are left out."""
    epochs: Count = 30
    """Passes over the training split."""
    batch_size: Count = 128
    """Image-report pairs per step; each image is contrasted with all reports of its batch, so more is harder."""
    lr: Positive = 5e-4
    """Peak learning rate of AdamW, to zero along a cosine; a tenth or less for a pretrained tower."""
    warmup: Share = 0.05
    """Fraction of the steps over which the learning rate rises from zero."""
    weight_decay: Amount = 0.2
    """Decoupled weight decay, on matrices only."""
    smallest_crop: Portion = 0.6
    """Smallest area of random crops, as a fraction of the image. There are no flips, since reports name sides."""
    width: Count = 128
    """Dimensions of the shared embedding and of the text transformer; a multiple of 32."""
    text_layers: Count = 2
    """Blocks of the text transformer."""
    vocab_size: Count = 2000
    """Tokens of the byte-level BPE trained on the training reports."""
    max_tokens: Count = 128
    """Tokens at which reports are truncated."""
    save_every: Count = 200
    """Steps between checkpoints."""
    memory_gb: Amount = 8.0
    """Memory in GB for decoded images (8 bits a pixel, at the tower's size); above it they go to a file in the run
    folder."""
    workers: Whole = 2
    """Processes that decode images."""
    seed: Whole = 0
    """Seed of new weights, data order and crops."""

    def __post_init__(self) -> None:
        check_ranges(self, "clip")
        check_fields(
            "clip",
            self,
            ("batch_size", self.batch_size >= 2, "at least 2"),
            ("width", self.width >= 32 and self.width % 32 == 0, "a multiple of 32"),
            ("max_tokens", self.max_tokens >= 3, "at least 3"),
        )


@dataclass
class WarmUpConfig:
    """Warm-up of the tower on what reports state"""

    epochs: Whole = 16
    """Passes over the training split; 0 for none."""
    batch_size: Count = 64
    """Images per step, or a few more."""
    lr: Positive = 3e-3
    """Peak learning rate of AdamW, to zero along a cosine."""
    warmup: Share = 0.05
    """Fraction of the steps over which the learning rate rises from zero."""
    weight_decay: Amount = 0.05
    """Decoupled weight decay, on matrices only."""
    smallest_crop: Portion = 0.8
    """Smallest area of random crops, as a fraction of the image. There are no flips, since reports name sides."""

    def __post_init__(self) -> None:
        check_ranges(self, "warm")
        check_fields(
            "warm",
            self,
            ("batch_size", self.batch_size >= 2, "at least 2"),
        )


@dataclass
class TinyConfig:
    """Tiny model of random weights"""

    tower_width: Count = 256
    """Hidden size of the tower, a multiple of 32."""
    tower_layers: Count = 2
    """Blocks of the tower."""
    lm_width: Count = 128
    """Hidden size of the language model, a multiple of 32."""
    lm_layers: Count = 2
    """Blocks of the language model."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.tower_width % 32 or self.lm_width % 32 or min(self.tower_width, self.lm_width) < 32:
            raise RadDraftError(f"tower_width {self.tower_width} and lm_width {self.lm_width} must be multiples of 32")


@dataclass
class DecodeConfig:
    """Decoding"""

    max_new_tokens: Count = 150
    """Longest draft, in tokens."""
    batch_size: Count = 16
    """Studies decoded together."""
    num_beams: Count = 1
    """Beams of beam search; 1 is greedy decoding."""
    sample: bool = False
    """Sample tokens instead of taking the most likely one."""
    candidates: Count = 1
    """Drafts of each study, from one pass over its images and prompt. Several candidates are sampled;
    `raddraft consensus` chooses among them. Until then the first, an arbitrary one, is the prediction."""
    temperature: Positive | None = None
    """Sampling temperature; by default 1, or 0.5 for several candidates (CCS, arXiv 2605.30131)."""
    top_p: Portion = 1.0
    """Sample from the smallest set of tokens whose probabilities add up to this."""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    """Random seed of sampling."""
    repetition_penalty: Positive = 1.0
    """Above 1, tokens of the prompt and of the draft so far become less likely (Keskar et al., arXiv 1909.05858)."""
    no_repeat_ngram_size: Whole = 0
    """No sequence of this many tokens occurs twice, in prompt and draft together; 0 for no limit."""
    min_new_tokens: Whole = 0
    """Shortest draft, in tokens."""
    confidence: bool = False
    """Keep for each sentence its log-probability and, with several candidates, the share that states the same."""

    def __post_init__(self) -> None:
        check_ranges(self, "decode")
        if not self.samples and (self.temperature is not None or self.top_p != 1 or self.seed):
            raise RadDraftError(
                f"decode: temperature, top_p and seed need sampling (sample: true, or candidates), got {self!r}"
            )
        if self.candidates > 1 and self.num_beams > 1:
            raise RadDraftError(f"decode: candidates are sampled and cannot be combined with num_beams, got {self!r}")

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled."""
        return self.sample or self.candidates > 1

    @property
    def heat(self) -> float:
        """The sampling temperature in effect."""
        return self.temperature if self.temperature is not None else 0.5 if self.candidates > 1 else 1.0

    @property
    def limits(self) -> dict[str, Any]:
        """What is set on repetition and length."""
        defaults = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
        return {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`."""
        arguments = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, **self.limits}
        if self.samples:
            return arguments | {"do_sample": True, "temperature": self.heat, "top_p": self.top_p, "top_k": 0}
        return arguments | {"do_sample": False}

    def __str__(self) -> str:
        parts = ["greedy"] if not self.samples and self.num_beams == 1 else []
        if self.samples:
            parts += [f"{self.candidates} candidates"] if self.candidates > 1 else []
            parts.append(f"sampled at temperature {self.heat}, top_p {self.top_p}, seed {self.seed}")
        if self.num_beams > 1:
            parts.append(f"{self.num_beams} beams")
        parts.append(f"{self.max_new_tokens} new tokens")
        parts += [f"{name} {value}" for name, value in self.limits.items()]
        return ", ".join([*parts, *(["with confidence"] if self.confidence else [])])


@dataclass
class ServeConfig:
    """Limits of `raddraft serve`"""

    max_new_tokens: Count = 150
    """Longest draft in tokens, of requests that state none."""
    batch_size: Count = 16
    """Most drafts that are decoded together."""
    requests: Count = 128
    """Most requests at a time; others are told to ask again."""
    megabytes: Count = 64
    """Largest request."""

    def __post_init__(self) -> None:
        check_ranges(self, "serve")
