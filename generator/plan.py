"""What a training run would take: parameters, tokens, arithmetic, memory and hours, without loading a weight.

The model is built on meta tensors from the configs of its parts, so parameter counts are exact. The rest follows from
these formulas, for a block of width h, with key and value width k each, an MLP of width f, and T tokens per study:

    arithmetic   forward 2 P T + 4 T² h per block; backward 2 P T + 8 T² h for the gradients of activations, and
                 2 P T for those of trainable weights; with activation checkpointing one more forward
    states       trainable weights in float32 with their gradient and AdamW's two moments, 16 bytes per parameter, and
                 2 bytes more in mixed precision for the 16-bit copy
    activations  bytes per token and block in 16-bit mixed precision, as counted by torch.autograd.graph's hooks on a
                 Llama block: 12 h + 4 k + 6 f frozen, 48 h + 4 k + 12 f with LoRA and dropout, 30 h + 4 k + 8 f if
                 the whole block trains; with checkpointing 2 h, and one block in full; twice as much in float32
    logits       10 bytes per entry of the vocabulary and token of the report

A reward stage reads each prompt once for all drafts of a study, in sampling, in each update, and once more for the
divergence if there is one; no activations are recomputed, and a sharded model is whole in these passes. Sampling takes
as many steps in turn as the longest draft of a batch has tokens, assumed to be twice the mean report; a step takes as
long as its weights, keys and values need from memory, but no less than 1 ms a block, which is what plain PyTorch takes
to start its kernels. The models of rewards (CheXbert, RadGraph: some 0.5 GB each) and their arithmetic are left out.

The memory is a floor: it leaves out the allocator's waste, communication buffers, the parts that sharding gathers for a
moment, and the tower's own activations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from encoder.cards import TOWERS
from encoder.sizes import tower_config
from encoder.towers import resolve_tower
from generator.config import ModelConfig, Stage, TrainConfig
from generator.model import add_lora, choose_trainable, meta_llava
from generator.priors import find_priors
from generator.prompts import PromptConfig
from generator.runs import split_studies
from generator.sizes import lm_config
from raddraft.errors import RadDraftError
from raddraft.gpus import GPUS, Gpu, describe_gpus, describe_memory, run_hours

UTILIZATION = 0.4
"""Assumed share of the GPUs' peak."""
TOKENS_PER_WORD = 1.6
"""Assumed for report text."""
PROMPT_TOKENS = 40
"""Assumed for the text of the prompt."""
LONGEST = 2.0
"""Assumed length of the longest draft of a batch, in mean reports."""
BLOCK_SECONDS = 1e-3
"""Assumed least time of one block for one token of each draft."""


@dataclass
class Load:
    """What a run trains on."""

    studies: int
    report_words: float
    """Mean words per report."""
    images: float = 1.0
    """Mean images per prompt."""


@dataclass
class StagePlan:
    """What one stage takes."""

    trainable: int
    steps: int
    flops: float
    """Per step, over all GPUs."""
    hours: float
    memory: dict[str, float]
    """GiB on each GPU by part. With `train.shard`, weights, gradients and moments are divided by the GPUs."""
    sampling: float = 0.0
    """Hours of a reward stage that sampling takes in turn, part of `hours`."""
    keys_and_values: float = 0.0
    """GiB of a reward stage while it samples, when there are no activations."""


@dataclass
class Plan:
    """What a run takes."""

    parameters: dict[str, int]
    """Tower, projector and language model."""
    image_tokens: int
    """Mean per study."""
    tokens: int
    """Mean per study: images, prompt and report."""
    context: int | None
    """Most tokens that the language model reads, if it states a limit."""
    stages: list[StagePlan]


def describe_run(
    manifest: Path,
    model: ModelConfig,
    prompt: PromptConfig,
    config: TrainConfig,
    gpu: Gpu = "h100",
    gpus: int = 1,
    sources: list[str] | None = None,
) -> str:
    """The plan of a training run on a manifest, as text.

    Raises:
        RadDraftError: as `plan`; no training study has the sections to write; fewer than one GPU.
    """
    if gpus < 1:
        raise RadDraftError(f"gpus must be at least 1, got {gpus}")
    studies = split_studies(manifest, sources)["train"]
    used = [study for study in studies if prompt.answer(study)]
    if not used:
        raise RadDraftError(f"No training study has the sections to write: {', '.join(prompt.targets)}")
    priors = find_priors(studies) if prompt.prior else {}
    words = sum(len((prompt.answer(study) or "").split()) for study in used)
    images = sum(len(prompt.choose_images(study, priors.get(study.study_id))) for study in used)
    return describe(model, config, Load(len(used), words / len(used), images / len(used)), gpu, gpus)


def plan(model_config: ModelConfig, config: TrainConfig, load: Load, gpu: Gpu = "h100", gpus: int = 1) -> Plan:
    """Plan a run of a recipe on the studies of `load`.

    Raises:
        RadDraftError: a VLM, or a tower that a LLaVA model cannot hold; unknown tower.
        OSError: the config of a part cannot be reached.
    """
    model, image_tokens = meta_model(model_config)
    sizes = _Sizes(model, model_config, config, load, image_tokens)
    wrapped: Any = add_lora(model, config.lora) if config.uses_lora else model
    stages = []
    for stage in config.stages:
        names = set(choose_trainable(wrapped, stage.projector, stage.lm, stage.tower))
        counts = {name: parameter.numel() for name, parameter in wrapped.named_parameters()}
        trainable = sum(counts[name] for name in names)
        steps = max(1, round(stage.epochs * math.ceil(load.studies / config.batch_of(stage))))
        flops = config.batch_of(stage) * sizes.flops(stage, {name: counts[name] for name in names})
        memory = sizes.memory(stage, sum(counts.values()), trainable, gpus if config.shard else 1)
        one = StagePlan(trainable, steps, flops, run_hours(steps * flops, gpu, gpus, UTILIZATION), memory)
        if stage.reward:
            one.sampling = steps * sizes.sampling_seconds(stage, gpu, gpus) / 3600
            one.hours += one.sampling
            one.keys_and_values = sizes.keys_and_values(stage)
        stages.append(one)
    context = getattr(model.config.text_config, "max_position_embeddings", None)
    return Plan(sizes.parameters, sizes.image_tokens, sizes.tokens, context, stages)


def meta_model(config: ModelConfig) -> tuple[Any, int]:
    """The LLaVA model on meta tensors, and its image tokens.

    Raises:
        RadDraftError: a VLM, or a tower that a LLaVA model cannot hold.
    """
    if config.vlm:
        raise RadDraftError(f"--dry-run cannot plan for a VLM ({config.vlm}), only for a tower and a language model")
    card = TOWERS.get(config.tower)
    foreign = f"--dry-run cannot plan for the tower {config.tower!r}, which a LLaVA model cannot hold"
    if card and not card.in_llava:
        raise RadDraftError(foreign)
    # Towers that are converted before they can be loaded are planned for by the checkpoint they come from.
    source = card.source if card else resolve_tower(config.tower)
    tower, side = tower_config(source)
    patch = getattr(tower, "patch_size", None)
    if not isinstance(patch, int) or not hasattr(tower, "num_hidden_layers"):
        raise RadDraftError(foreign)
    side = config.image_size or side or _square(source)
    model: Any = meta_llava(tower, lm_config(config.lm), config.feature_layer)
    model.tie_weights()
    image_tokens = (side // patch) ** 2 + getattr(tower, "num_register_tokens", 0)
    return model.to(getattr(torch, config.dtype)).eval(), image_tokens


def _square(source: str) -> int:
    """Side of the images that the image processor of a folder makes."""
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    return processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"].shape[-1]


def _count(model: Any, prefix: str = "") -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith(prefix))


class _Sizes:
    """The shapes that arithmetic and memory depend on."""

    def __init__(self, model: Any, recipe: ModelConfig, config: TrainConfig, load: Load, image_tokens: int) -> None:
        self.recipe, self.config, self.images = recipe, config, load.images
        self.image_tokens = round(load.images * image_tokens)
        self.report = round(load.report_words * TOKENS_PER_WORD)
        self.tokens = self.image_tokens + PROMPT_TOKENS + self.report
        parts = {"tower": "model.vision_tower.", "projector": "model.multi_modal_projector."}
        self.parameters = {part: _count(model, prefix) for part, prefix in parts.items()}
        self.parameters["language model"] = _count(model) - sum(self.parameters.values())
        text, self.vision = model.config.text_config, model.config.vision_config
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        self.h, self.vocabulary, self.blocks = text.hidden_size, text.vocab_size, text.num_hidden_layers
        self.k = width * (getattr(text, "num_key_value_heads", None) or heads)
        self.f = getattr(text, "intermediate_size", None) or 4 * self.h
        lm = model.model.language_model
        self.in_blocks = _count(lm) - _count(lm.get_input_embeddings())

    def flops(self, stage: Stage, trainable: dict[str, int]) -> float:
        """Operations per study; `trainable` maps names of parameters to their sizes."""
        in_tower = sum(count for name, count in trainable.items() if "vision_tower." in name)
        in_blocks = sum(n for name, n in trainable.items() if "language_model." in name and "embed" not in name)
        texts = stage.reward.group if stage.reward else 1
        prompt, tokens = self.tokens - self.report, self.tokens + (texts - 1) * self.report
        pairs = self.tokens**2 + (texts - 1) * self.report * (2 * prompt + self.report)  # texts do not see each other
        dense, attention = 2 * self.in_blocks * tokens, 4 * self.blocks * self.h * pairs
        head = 2 * self.h * self.vocabulary * texts * self.report
        projector = 2 * self.parameters["projector"] * self.image_tokens
        tower = 2 * self.parameters["tower"] * self.image_tokens
        looks = 4 * self.vision.num_hidden_layers * self.vision.hidden_size * self.image_tokens**2 / self.images
        forward = dense + attention + head + projector + (0 if self.config.cached else tower + looks)
        backward = dense + 2 * attention + 2 * in_blocks * tokens + head * (2 if stage.lm == "full" else 1)
        backward += projector * (stage.projector + (in_tower > 0))
        if in_tower:
            backward += tower + 2 * looks + 2 * in_tower * self.image_tokens
        if stage.reward:  # what sampling adds to its prompts' pass is bound by memory, see `sampling_seconds`
            read = forward * prompt / tokens + (forward if stage.reward.kl else 0)
            return read + stage.reward.updates * (forward + backward)
        return forward + backward + (dense + attention if self.config.activation_checkpointing else 0)

    def sampling_seconds(self, stage: Stage, gpu: Gpu, gpus: int) -> float:
        """What the tokens of a step's drafts take in turn, on all GPUs at once."""
        reward = stage.reward
        assert reward is not None
        share = math.ceil(reward.batch_size / gpus)
        batches = math.ceil(share / reward.sample_batch_size)
        weights = 2 * (self.in_blocks + self.h * self.vocabulary)
        moved = (weights + self.keys_and_values(stage) * 2**30) / GPUS[gpu][2]
        return batches * self.longest(stage) * max(moved, self.blocks * BLOCK_SECONDS)

    def longest(self, stage: Stage) -> int:
        """Tokens of the longest draft of a batch."""
        assert stage.reward is not None
        return min(round(LONGEST * self.report), stage.reward.max_new_tokens)

    def keys_and_values(self, stage: Stage) -> float:
        """GiB of a batch that is sampled, in 16 bits."""
        reward = stage.reward
        assert reward is not None
        rows = min(reward.sample_batch_size, reward.batch_size) * reward.group
        tokens = self.tokens - self.report + self.longest(stage)
        return rows * tokens * 2 * 2 * self.k * self.blocks / 2**30

    def memory(self, stage: Stage, total: int, trainable: int, shards: int) -> dict[str, float]:
        """GiB on one GPU; weights and what belongs to them are divided by `shards`."""
        config, h, k, f = self.config, self.h, self.k, self.f
        frozen = total - trainable - (self.parameters["tower"] if config.cached else 0)
        held = {"float32": 4.0, "bfloat16": 2.0}[self.recipe.dtype]
        weights = frozen * held
        if self.recipe.quantize != "no":  # 4 bits and their double-quantized scales: 4.127 bits (QLoRA, section 3)
            weights += self.in_blocks * (4.127 / 8 - held)
        mixed = config.precision != "no"
        rows, tokens, logits = min(config.micro_batch_size, config.batch_size), self.tokens, self.report
        if stage.reward:
            rows, logits = stage.reward.micro_batch_size, stage.reward.group * self.longest(stage)
            tokens += logits - self.report
        block = {"frozen": 12 * h + 4 * k + 6 * f, "lora": 48 * h + 4 * k + 12 * f, "full": 30 * h + 4 * k + 8 * f}
        wide = 1 if mixed else 2
        kept = self.blocks * block[stage.lm]
        if config.activation_checkpointing and not stage.reward:
            kept = self.blocks * 2 * h + block[stage.lm]
        parts = {
            "weights": (weights + 4 * trainable) / shards,
            "gradients": 4 * trainable / shards,
            "moments": 8 * trainable / shards,
            "16-bit copies": (2 * trainable + (2 * frozen if held == 4 else 0) if mixed else 0) / shards,
            "activations": rows * tokens * kept * wide,
            "logits": 10 * rows * logits * self.vocabulary,
        }
        if stage.reward:
            parts |= {"start": 4 * trainable / shards} if stage.reward.kl else {}
            parts |= {"whole weights": (2 if mixed else 4) * total} if shards > 1 else {}
        return {part: value / 2**30 for part, value in parts.items()}


def describe(recipe: ModelConfig, config: TrainConfig, load: Load, gpu: Gpu, gpus: int) -> str:
    """The plan as text, with and without activation checkpointing and sharding."""
    whole = plan(recipe, config, load, gpu, gpus)
    other = replace(config, activation_checkpointing=not config.activation_checkpointing)
    swapped = plan(recipe, other, load, gpu, gpus)
    cut = plan(recipe, replace(config, shard=not config.shard), load, gpu, gpus)
    total = sum(whole.parameters.values())
    lines = [f"{part:15} {count:>15,} parameters" for part, count in (whole.parameters | {"total": total}).items()]
    lines.append(
        f"a study: {load.images:g} images, {whole.image_tokens:,} image tokens, {PROMPT_TOKENS} of the prompt "
        f"(assumed), {load.report_words:.0f} words of report x {TOKENS_PER_WORD} (assumed) = {whole.tokens:,} tokens"
    )
    if whole.context is not None and whole.tokens > whole.context:
        lines.append(f"  more than the {whole.context:,} tokens that the language model reads: this run would fail")
    lines.append(
        f"a step: {config.batch_size} studies, {whole.tokens * config.batch_size:,} tokens; {load.studies:,} training "
        "studies"
    )
    lines.append(describe_gpus(gpu, gpus, UTILIZATION))
    rows = zip(config.stages, whole.stages, swapped.stages, cut.stages, strict=True)
    for number, (stage, one, two, three) in enumerate(rows, 1):
        lines.append(
            f"stage {number}: {stage.epochs:g} epochs at lr {stage.peak:g}, language model {stage.lm}: "
            f"{one.trainable:,} parameters train, {one.steps:,} steps of {one.flops / 1e12:,.1f} TFLOP "
            f"each, {one.hours:.2f} hours"
        )
        if stage.reward:
            lines.append(
                f"  {stage.reward.group} drafts of each of {stage.reward.batch_size} studies a step, rewarded by "
                f"{', '.join(stage.reward.metrics)}; {one.sampling:.2f} of the hours are sampling, token by token"
            )
        lines.append(f"  {describe_memory(one.memory, gpu)}")
        if gpus > 1:
            lines.append(f"  with shard: {str(not config.shard).lower()}: {sum(three.memory.values()):.1f} GiB")
        if stage.reward:
            lines.append(
                f"  while it samples, {one.keys_and_values:.1f} GiB of keys and values in place of activations"
            )
            continue
        lines.append(
            f"  with activation_checkpointing: {str(other.activation_checkpointing).lower()}: "
            f"{sum(two.memory.values()):.1f} GiB, {two.hours:.2f} hours"
        )
    return "\n".join(lines)
