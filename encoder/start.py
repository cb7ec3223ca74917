"""The network that a pre-training run starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from encoder.dino import Dino
from encoder.recipe import Architecture, PretrainConfig
from encoder.tower import Tower
from encoder.towers import load_tower
from raddraft.config_sizes import check_memory
from raddraft.errors import RadDraftError


def load_start(config: PretrainConfig, device: str) -> Tower:
    """The backbone that a run starts from, with drop path, and the image processor of the tower it will become.

    The backbone is on the CPU. For a run on the CPU in bfloat16 with crops of at most 224 pixels its attention is
    transformers' "eager" one, which gives the same numbers: there torch's fused attention takes half of a step.

    Args:
        config: the recipe.
        device: type of the device that the run is on, e.g. cpu or cuda.

    Raises:
        RadDraftError: the tower is not DINOv2-like, or crops do not fit its patches.
        OSError: the tower cannot be reached or read.
    """
    from transformers import BitImageProcessor

    if config.tower is None:
        backbone, mean, std = new_backbone(config), [0.5307] * 3, [0.2583] * 3  # RAD-DINO's processor
    else:
        tower = load_tower(config.tower)
        processor: Any = tower.processor
        # Radiographs are gray: one mean and one deviation for all channels, as the crops are normalized.
        mean, std = ([float(np.mean(values))] * 3 for values in (processor.image_mean, processor.image_std))
        backbone = _with_drop_path(tower.model, config)
    patch = backbone.config.patch_size
    for name in ("global_size", "local_size"):
        if (size := getattr(config.crops, name)) % patch:
            raise RadDraftError(f"crops.{name} {size} is not a multiple of the patch size {patch}")
    size = config.crops.global_size
    if device == "cpu" and config.precision == "bf16" and size <= 224:
        backbone.set_attn_implementation("eager")
    processor = BitImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=mean, image_std=std
    )
    return Tower(config.tower or "from scratch", backbone, processor)


def new_backbone(config: PretrainConfig) -> Any:
    """A Dinov2 with random weights in the recipe's architecture."""
    from transformers import AutoModel, Dinov2Config, Dinov2WithRegistersConfig

    wanted = config.architecture or Architecture()
    registers = {"num_register_tokens": wanted.registers} if wanted.registers else {}
    kind: Any = Dinov2WithRegistersConfig if registers else Dinov2Config
    settings = kind(
        hidden_size=wanted.width,
        num_hidden_layers=wanted.depth,
        num_attention_heads=max(1, wanted.width // 64),
        patch_size=wanted.patch_size,
        image_size=config.crops.global_size,
        layerscale_value=wanted.layer_scale,
        use_swiglu_ffn=wanted.swiglu,
        drop_path_rate=config.drop_path,
        **registers,
    )
    sizes = f"An architecture of width {wanted.width} and depth {wanted.depth}"
    check_memory(AutoModel.from_config, settings, sizes)
    return AutoModel.from_config(settings)


def _with_drop_path(model: Any, config: PretrainConfig) -> Any:
    """The same model built anew with drop path and a mask token, which transformers cannot switch on later."""
    from transformers import AutoModel

    settings = model.config
    if settings.model_type not in ("dinov2", "dinov2_with_registers"):
        raise RadDraftError(
            f"Pre-training takes DINOv2 towers, with or without registers; {config.tower} is {settings.model_type!r}"
        )
    settings.drop_path_rate, settings.use_mask_token = config.drop_path, True
    backbone = AutoModel.from_config(settings)
    weights = model.state_dict()
    weights.setdefault("embeddings.mask_token", torch.zeros(1, settings.hidden_size))
    backbone.load_state_dict(weights)
    return backbone


def load_head(model: Dino, path: Path) -> None:
    """Load published weights into the heads of student and teacher.

    Raises:
        RadDraftError: names or shapes are not those of the head; the message names them.
    """
    weights = load_file(path)
    for network in (model.student, model.teacher):
        try:
            network["head"].load_state_dict(weights)
        except RuntimeError as error:
            raise RadDraftError(f"{path} does not fit the DINO head: {' '.join(str(error).split())}") from error
