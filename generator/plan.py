"""What a training run would take: parameters, tokens, arithmetic, memory and hours, without loading a weight.

The model is put together on meta tensors from the configs of its parts, so that the counts are exact. The rest follows
from these formulas, for a block of width h, with key and value width k each, an MLP of width f, and T tokens a study:

    arithmetic   forward 2 P T + 4 T² h a block; backward 2 P T + 8 T² h for the gradient of what flows through, and
                 2 P T for that of what trains; with activation checkpointing one more forward
    states       what trains is held in float32 with its gradient and AdamW's two moments, 16 bytes a parameter, and
                 2 bytes more in mixed precision for the copy that computes
    activations  bytes a token and block in 16-bit mixed precision, as counted by torch.autograd.graph's hooks on a
                 Llama block: 12 h + 4 k + 6 f frozen, 48 h + 4 k + 12 f with LoRA and dropout, 30 h + 4 k + 8 f where
                 the block trains as a whole; with checkpointing 2 h, and one block in full; in float32 twice as much
    logits       10 bytes for each of the vocabulary and token of the report

What it leaves out: the allocator's waste, communication buffers, the parts that sharding puts together for a while (a
block, and all that is in no block), the tower's own activations. So it is a floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch

from encoder.budget import GPUS, Gpu
from encoder.sizes import tower_config
from encoder.towers import resolve_tower
from generator.config import ModelConfig, Stage, TrainConfig
from generator.model import add_lora, choose_trainable
from generator.sizes import lm_config
from raddraft.errors import RadDraftError

UTILISATION = 0.4
"""Part of the peak that is assumed to be reached."""
TOKENS_PER_WORD = 1.6
"""Assumed of report text."""
PROMPT_TOKENS = 40
"""Assumed of the prompt's text."""


@dataclass
class Load:
    """What a run trains on."""

    n_studies: int
    report_words: float
    """Of a report, on average."""
    pictures: float = 1.0
    """In a prompt, on average."""


@dataclass
class StagePlan:
    """What one stage takes."""

    trainable: int
    steps: int
    flops: float
    """Of one step, over all GPUs."""
    hours: float
    memory: dict[str, float]
    """GiB on each GPU by part. With `train.shard`, weights, gradients and moments are cut into as many parts as there
    are GPUs."""


@dataclass
class Plan:
    """What a run takes."""

    parameters: dict[str, int]
    """Of tower, projector and language model."""
    image_tokens: int
    """Of one study on average."""
    tokens: int
    """Of one study on average: images, prompt and report."""
    context: int | None
    """Most tokens that the language model reads, if it states a limit."""
    tokens_per_step: int
    stages: list[StagePlan]


def plan(
    model_config: ModelConfig,
    config: TrainConfig,
    load: Load,
    gpu: Gpu = "h100",
    n_gpus: int = 1,
) -> Plan:
    """Plan a run.

    Args:
        model_config, config: the recipe.
        load: what is trained on.
        gpu, n_gpus: what it is to run on.

    Raises:
        ValueError: a tower that a LLaVA model cannot hold, for which there is no plan; unknown tower.
        OSError: the config of a part cannot be reached.
    """
    model, image_tokens = meta_model(model_config)
    image_tokens = round(load.pictures * image_tokens)
    parts = {"tower": "model.vision_tower.", "projector": "model.multi_modal_projector."}
    parameters = {part: _count(model, prefix) for part, prefix in parts.items()}
    parameters["language model"] = _count(model, "") - sum(parameters.values())
    report = round(load.report_words * TOKENS_PER_WORD)
    tokens = image_tokens + PROMPT_TOKENS + report
    wrapped: Any = model
    if any(stage.lm == "lora" for stage in config.stages):
        wrapped = add_lora(model, config.lora)
    size = Size(model, model_config, load.pictures, image_tokens, tokens, report, parameters)
    stages = []
    for stage in config.stages:
        names = choose_trainable(wrapped, stage.projector, stage.lm, stage.tower)
        stages.append(size.stage(wrapped, names, stage, config, load.n_studies, gpu, n_gpus))
    context = getattr(model.config.text_config, "max_position_embeddings", None)
    return Plan(parameters, image_tokens, tokens, context, tokens * config.batch_size, stages)


def meta_model(config: ModelConfig) -> tuple[Any, int]:
    """The LLaVA model on meta tensors, and its image tokens.

    Raises:
        ValueError: a tower that a LLaVA model cannot hold.
    """
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    if config.vlm:
        raise RadDraftError(
            f"There is a plan for a tower and an lm only, not for a vlm, {config.vlm!r}; leave --dry_run"
        )
    source = resolve_source(config.tower)
    tower, side = tower_config(source)
    patch = getattr(tower, "patch_size", None)
    if not isinstance(patch, int) or not hasattr(tower, "num_hidden_layers"):
        raise RadDraftError(
            f"There is no plan for the tower {config.tower!r}, which a LLaVA model cannot hold; leave --dry_run"
        )
    side = config.image_size or side or _square(source)
    registers = getattr(tower, "num_register_tokens", 0)
    text = lm_config(config.lm)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(
                vision_config=tower,
                text_config=text,
                vision_feature_layer=config.feature_layer,
                tie_word_embeddings=text.tie_word_embeddings,
            )
        )
    model.tie_weights()
    dtype = getattr(torch, config.dtype)
    return model.to(dtype).eval(), (side // patch) ** 2 + registers


def resolve_source(name: str) -> str:
    """Folder or hub id of a tower, also of one that has to be converted before it can be loaded."""
    from encoder.towers import TOWERS

    return TOWERS[name].source if name in TOWERS else resolve_tower(name)


def _square(source: str) -> int:
    """Side of the pictures that the image processor of a folder makes."""
    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(source)
    return processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"].shape[-1]


def _count(model: Any, prefix: str) -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if name.startswith(prefix))


@dataclass
class Size:
    """Shapes of a model that arithmetic and memory depend on."""

    model: Any
    config: ModelConfig
    pictures: float
    image_tokens: int
    tokens: int
    report: int
    parameters: dict[str, int]

    def __post_init__(self) -> None:
        text = self.model.config.text_config
        heads = text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // heads
        self.h, self.vocabulary, self.blocks = text.hidden_size, text.vocab_size, text.num_hidden_layers
        self.k = width * (getattr(text, "num_key_value_heads", None) or heads)
        self.f = getattr(text, "intermediate_size", None) or 4 * self.h
        self.in_blocks = _count(self.model.model.language_model, "") - _count(
            self.model.model.language_model.get_input_embeddings(), ""
        )

    def stage(
        self, model: Any, names: list[str], stage: Stage, config: TrainConfig, n_studies: int, gpu: Gpu, n_gpus: int
    ) -> StagePlan:
        """What one stage takes, whose trainable parameters have been chosen."""
        counts = {name: parameter.numel() for name, parameter in model.named_parameters()}
        trainable = sum(counts[name] for name in names)
        steps = max(1, round(stage.epochs * math.ceil(n_studies / config.batch_size)))
        flops = config.batch_size * self._flops(stage, config, counts, names)
        hours = steps * flops / (n_gpus * GPUS[gpu][0] * UTILISATION) / 3600
        memory = self._memory(stage, config, sum(counts.values()), trainable)
        if config.shard:
            shared = ("weights", "gradients", "moments", "16-bit copies")  # copies are gathered block by block
            memory = {part: value / n_gpus if part in shared else value for part, value in memory.items()}
        return StagePlan(trainable, steps, flops, hours, memory)

    def _flops(self, stage: Stage, config: TrainConfig, counts: dict[str, int], names: list[str]) -> float:
        """Of one study."""
        trains_tower = sum(counts[name] for name in names if "vision_tower." in name)
        trains_blocks = sum(counts[name] for name in names if "language_model." in name and "embed" not in name)
        dense, attention = 2 * self.in_blocks * self.tokens, 4 * self.blocks * self.h * self.tokens**2
        head = 2 * self.h * self.vocabulary * self.report
        projector = 2 * self.parameters["projector"] * self.image_tokens
        vision = self.model.config.vision_config
        tower = 2 * self.parameters["tower"] * self.image_tokens
        looks = 4 * vision.num_hidden_layers * vision.hidden_size * self.image_tokens**2 / self.pictures
        forward = dense + attention + head + projector + (0 if config.features == "cached" else tower + looks)
        backward = dense + 2 * attention + 2 * trains_blocks * self.tokens + head * (2 if stage.lm == "full" else 1)
        backward += projector * (stage.projector + (trains_tower > 0))
        if trains_tower:
            backward += tower + 2 * looks + 2 * trains_tower * self.image_tokens
        return forward + backward + (dense + attention if config.activation_checkpointing else 0)

    def _memory(self, stage: Stage, config: TrainConfig, total: int, trainable: int) -> dict[str, float]:
        """GiB on one GPU."""
        if config.features == "cached":
            total -= self.parameters["tower"]
        frozen = total - trainable
        held = {"float32": 4.0, "bfloat16": 2.0}[self.config.dtype]
        if self.config.quantize != "no":  # 4 bits and the scales, twice quantised: 4.127 bits (QLoRA, section 3)
            weights = self.in_blocks * 4.127 / 8 + (frozen - self.in_blocks) * held
        else:
            weights = frozen * held
        mixed = config.precision != "no"
        copies = 2 * trainable + (2 * frozen if held == 4 else 0) if mixed else 0
        rows = min(config.micro_batch_size, config.batch_size)
        h, k, f = self.h, self.k, self.f
        block = {"frozen": 12 * h + 4 * k + 6 * f, "lora": 48 * h + 4 * k + 12 * f, "full": 30 * h + 4 * k + 8 * f}
        wide = 1 if mixed else 2
        per_token = block[stage.lm] * wide
        kept = self.blocks * 2 * h * wide + per_token if config.activation_checkpointing else self.blocks * per_token
        parts = {
            "weights": weights + 4 * trainable,
            "gradients": 4 * trainable,
            "moments": 8 * trainable,
            "16-bit copies": copies,
            "activations": rows * self.tokens * kept,
            "logits": 10 * rows * self.report * self.vocabulary,
        }
        return {part: value / 2**30 for part, value in parts.items()}


def describe(recipe: ModelConfig, config: TrainConfig, load: Load, gpu: Gpu, n_gpus: int) -> str:
    """The plan as text for people, with activations kept and computed twice, and the model shared out or not."""
    whole = plan(recipe, config, load, gpu, n_gpus)
    other = replace(config, activation_checkpointing=not config.activation_checkpointing)
    swapped = plan(recipe, other, load, gpu, n_gpus)
    cut = plan(recipe, replace(config, shard=not config.shard), load, gpu, n_gpus)
    total = sum(whole.parameters.values())
    lines = [f"{part:15} {count:>15,} parameters" for part, count in (whole.parameters | {"together": total}).items()]
    lines.append(
        f"a study: {load.pictures:g} pictures, {whole.image_tokens:,} image tokens, {PROMPT_TOKENS} of the prompt "
        f"(assumed), {load.report_words:.0f} words of report x {TOKENS_PER_WORD} (assumed) = {whole.tokens:,} tokens"
    )
    if whole.context is not None and whole.tokens > whole.context:
        lines.append(f"  more than the {whole.context:,} tokens that the language model reads: this cannot run")
    lines.append(
        f"a step: {config.batch_size} studies, {whole.tokens_per_step:,} tokens; {load.n_studies:,} studies in all"
    )
    peak, size = GPUS[gpu]
    lines.append(f"on {n_gpus} x {gpu}: {peak / 1e12:.0f} TFLOP/s of 16-bit peak, {UTILISATION:.0%} of it assumed")
    for number, (one, two, three) in enumerate(zip(whole.stages, swapped.stages, cut.stages, strict=True), 1):
        lines.append(
            f"stage {number}: {one.trainable:,} parameters train, {one.steps:,} steps of {one.flops / 1e12:,.1f} TFLOP "
            f"each, {one.hours:.2f} hours"
        )
        needed = sum(one.memory.values())
        named = ", ".join(f"{part} {value:.1f}" for part, value in one.memory.items())
        fits = "" if needed < size else f", more than the {size} it has"
        lines.append(f"  GiB a GPU: {needed:.1f}{fits} ({named})")
        if n_gpus > 1:
            lines.append(f"  with shard: {str(not config.shard).lower()}: {sum(three.memory.values()):.1f} GiB")
        how = "kept" if config.activation_checkpointing else "computed twice"
        lines.append(f"  with activations {how}: {sum(two.memory.values()):.1f} GiB, {two.hours:.2f} hours")
    return "\n".join(lines)
