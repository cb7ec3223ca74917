"""Sizes of public towers from their config.json, to plan a run without network access.

Only what sets shapes is kept; parameter counts are tested against the authors'.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

_DINOV2 = {"model_type": "dinov2", "image_size": 518, "patch_size": 14}  # positions for 518 pixels in all of them
_DINOV2_BASE = _DINOV2 | {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
_CLIP_LARGE = _LARGE | {"model_type": "clip_vision_model", "intermediate_size": 4096, "patch_size": 14}
_VIT_BASE = {"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12}
_VIT_LARGE_512 = _DINOV2 | _LARGE | {"image_size": 512, "patch_size": 16}
TOWERS: dict[str, tuple[dict[str, Any], int]] = {
    "microsoft/rad-dino": (_DINOV2_BASE, 518),
    "microsoft/rad-dino-maira-2": (_DINOV2_BASE, 518),
    "facebook/dinov2-small": (_DINOV2_BASE | {"hidden_size": 384, "num_attention_heads": 6}, 224),
    "facebook/dinov2-base": (_DINOV2_BASE, 224),
    "facebook/dinov2-large": (_DINOV2 | _LARGE, 224),
    "openai/clip-vit-large-patch14": (_CLIP_LARGE | {"image_size": 224}, 224),
    "openai/clip-vit-large-patch14-336": (_CLIP_LARGE | {"image_size": 336}, 336),
    "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224": (
        _VIT_BASE | {"image_size": 224, "patch_size": 16},
        224,
    ),
    "github.com/facebookresearch/dinov2": (_VIT_LARGE_512, 512),
    "github.com/RPIDIAL/CheXFound": (
        _VIT_LARGE_512 | {"model_type": "dinov2_with_registers", "num_register_tokens": 4, "use_swiglu_ffn": True},
        512,
    ),
}
"""Hub id or repository -> config, and the side in pixels of the square that its image processor makes."""


def tower_config(source: str) -> tuple[Any, int | None]:
    """Config of a vision tower by hub id or folder, and the side of its input if the table has it.

    Raises:
        UnavailableError: the tower is not in the table, and its config cannot be read.
    """
    known, side = TOWERS.get(source, (None, None))
    if known is None or Path(source).is_dir():
        config = read_config(source, None)
        return getattr(config, "vision_config", config), None
    return read_config(source, known), side


def read_config(name: str, known: dict[str, Any] | None) -> Any:
    """A config: of a local folder, else the known one, else of the hub. Raises UnavailableError if there is none."""
    from transformers import AutoConfig

    from encoder.towers import reading_checkpoint

    if known is not None and not Path(name).is_dir():
        return AutoConfig.for_model(**known)
    with reading_checkpoint(f"The config of {name!r} cannot be read", name):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)
