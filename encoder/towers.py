"""Vision towers by short name, hub id or local folder: what they are, where they come from, loading.

    tower = load_tower("rad-dino")
    encoded = tower.encode(tower.prepare([image]))  # pooled [1, 768], patches [1, 37, 37, 768]

Any vision model that transformers can load will do, its timm wrapper included, and BioViL-T. Checkpoints in other
formats are converted once: `raddraft convert`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoder.tower import Tower, patch_size
from raddraft.errors import RadDraftError, UnavailableError
from raddraft.loading import load_pretrained

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


@dataclass(frozen=True)
class Card:
    """What a short name stands for."""

    source: str
    """Hub id or repository."""
    what: str
    """Architecture, and side of its input in px."""
    license: str
    """As far as known here; the terms on its page apply."""
    converted: bool = False
    """Whether `source` is a checkpoint that `raddraft convert` turns into a folder first."""
    in_llava: bool = True
    """Whether a LLaVA model can hold it; otherwise it runs beside one, frozen."""


DINOV2 = "Apache-2.0"
DINOV3 = "DINOv3 license, gated"

TOWERS = {
    "rad-dino": Card(
        "microsoft/rad-dino", "ViT-B/14, 518 px, DINOv2 on chest X-rays", "MIT (earlier MSRLA), for research"
    ),
    "rad-dino-maira-2": Card("microsoft/rad-dino-maira-2", "ViT-B/14, 518 px, RAD-DINO on more data", "MSRLA"),
    "dinov2-small": Card("facebook/dinov2-small", "ViT-S/14, 224 px", DINOV2),
    "dinov2-base": Card("facebook/dinov2-base", "ViT-B/14, 224 px", DINOV2),
    "dinov2-large": Card("facebook/dinov2-large", "ViT-L/14, 224 px", DINOV2),
    "dinov2-giant": Card("facebook/dinov2-giant", "ViT-g/14, 224 px", DINOV2),
    "dinov2-small-registers": Card("facebook/dinov2-with-registers-small", "ViT-S/14, 4 registers, 224 px", DINOV2),
    "dinov2-base-registers": Card("facebook/dinov2-with-registers-base", "ViT-B/14, 4 registers, 224 px", DINOV2),
    "dinov2-large-registers": Card("facebook/dinov2-with-registers-large", "ViT-L/14, 4 registers, 224 px", DINOV2),
    "dinov2-giant-registers": Card("facebook/dinov2-with-registers-giant", "ViT-g/14, 4 registers, 224 px", DINOV2),
    "dinov3-small": Card("facebook/dinov3-vits16-pretrain-lvd1689m", "ViT-S/16, 4 registers, 224 px", DINOV3),
    "dinov3-base": Card("facebook/dinov3-vitb16-pretrain-lvd1689m", "ViT-B/16, 4 registers, 224 px", DINOV3),
    "dinov3-large": Card("facebook/dinov3-vitl16-pretrain-lvd1689m", "ViT-L/16, 4 registers, 224 px", DINOV3),
    "clip-224": Card("openai/clip-vit-large-patch14", "ViT-L/14, 224 px", "MIT, by its repository"),
    "clip-336": Card("openai/clip-vit-large-patch14-336", "ViT-L/14, 336 px", "MIT, by its repository"),
    "siglip2-base": Card("google/siglip2-base-patch16-224", "ViT-B/16, no class token, 224 px", "Apache-2.0"),
    "siglip2-base-512": Card("google/siglip2-base-patch16-512", "ViT-B/16, no class token, 512 px", "Apache-2.0"),
    "biomedclip": Card(
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", "ViT-B/16, 224 px", "MIT", converted=True
    ),
    "biovil-t": Card(
        "microsoft/BiomedVLP-BioViL-T", "ResNet-50 hybrid, 448 px of 512", "MIT", converted=True, in_llava=False
    ),
    "mrm": Card("github.com/RL4M/MRM-pytorch", "ViT-B/16, 448 px fine-tuned", "see its repository", converted=True),
}


def resolve_tower(name: str) -> str:
    """Local folder or hub id of a tower.

    Raises:
        RadDraftError: `name` is not a short name, a folder, or of the form owner/model; or it stands for a checkpoint
            that has to be converted first.
    """
    if card := TOWERS.get(name):
        if card.converted:
            raise RadDraftError(
                f"Tower {name!r} is not a transformers checkpoint: download it from {card.source}, run `raddraft "
                "convert CHECKPOINT --out FOLDER` once, and name that FOLDER"
            )
        return card.source
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    missing = f"There is no folder {name} here. " if "/" in name else ""
    raise RadDraftError(
        f"{missing}Unknown tower {name!r}. Choices: {', '.join(TOWERS)}, a hub id, or a folder with a config.json"
    )


def load_tower(
    name: str, image_size: int | None = None, backend: Literal["torchvision", "pil"] = "torchvision"
) -> Tower:
    """Load a vision tower (float32, eval mode, on the CPU) and its image processor.

    Of a two-tower checkpoint (CLIP, SigLIP), or of a trained report model, only the vision half is loaded. A report
    model that could not hold its tower has it in a folder of its own, which its raddraft.json names.

    Args:
        name: short name (`raddraft towers` lists them), hub id or local folder; "pixels" for 16 x 16 raw pixels;
            "random:" before the name of a tower for the same architecture with random weights (seed 0).
        image_size: side in pixels of the tower's square input, instead of the checkpoint's own: the shorter side is
            resized to it and the center square is kept. Position embeddings are interpolated.
        backend: library that resizes images. A saved report model uses torchvision, as transformers does by default;
            the package rad-dino uses Pillow, whose pixels differ by up to 1 of 255, and features in the third decimal.

    Returns:
        The tower: `tower.prepare(images)` gives pixels [B, 3, height, width], `tower.encode(pixels)` a pooled vector
        [B, D] and patches [B, H, W, D] of each image; `tower.shape` is (H, W, D).

    Raises:
        RadDraftError: unknown name, not a vision model, or one that does not take images of `image_size`.
        UnavailableError: the checkpoint cannot be reached or read.
    """
    model, processor = _load(name, backend)
    if image_size is not None:
        patch = patch_size(model)
        if patch and image_size % patch:
            raise RadDraftError(f"image_size {image_size} is not a multiple of the patch size {patch} of {name}")
        if not hasattr(processor, "crop_size"):
            raise RadDraftError(f"The image processor of {name} cannot be set to image_size {image_size}")
        vars(processor).update(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
            do_resize=True,
            do_center_crop=True,
        )
    tower = Tower(name, model, processor)
    if image_size is not None:
        _ = tower.shape  # it must take such images
    return tower


def _load(name: str, backend: str) -> tuple[Any, BaseImageProcessor]:
    """Model and image processor of a tower by any of its names."""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    import encoder.biovil  # noqa: F401  # a model that transformers does not know by itself

    if name == "pixels":
        from encoder.baselines import Pixels, pixels_processor

        model = Pixels()
        return model, pixels_processor(model.config)
    path = resolve_tower(name.removeprefix("random:"))
    # torchvision is the default anyway; asking for it would draw a warning where a processor has Pillow only.
    options = {} if backend == "torchvision" else {"backend": backend}
    with reading_checkpoint(f"Tower {name!r} cannot be loaded", path):
        if beside := _beside_report_model(path):
            model, _ = _load(name.removesuffix(path) + beside, backend)
        elif name.startswith("random:"):
            config = AutoConfig.from_pretrained(path)
            with torch.random.fork_rng():
                torch.manual_seed(0)
                model = AutoModel.from_config(getattr(config, "vision_config", config))
        else:
            model = _load_pretrained(path)
        return model, AutoImageProcessor.from_pretrained(path, **options)


def _load_pretrained(path: str) -> Any:
    """The vision half of a checkpoint, without the heads of another task. Raises as `load_pretrained`."""
    from transformers import AutoConfig, AutoModel, LlavaForConditionalGeneration

    config = AutoConfig.from_pretrained(path)
    if config.model_type == "llava":
        return load_pretrained(LlavaForConditionalGeneration, path, dtype="float32").model.vision_tower
    keys = "vision_config." if hasattr(config, "vision_config") else ""
    config = getattr(config, "vision_config", config)
    return load_pretrained(AutoModel, path, "tower", keys, config=config, dtype="float32")


def _beside_report_model(path: str) -> str | None:
    """Folder or name of the tower of a report model that could not hold it."""
    try:
        tower = json.loads((Path(path) / "raddraft.json").read_text(encoding="utf-8")).get("tower")
    except (OSError, ValueError):
        return None
    return str(Path(path) / tower) if tower and (Path(path) / tower).is_dir() else tower


@contextmanager
def reading_checkpoint(what: str, path: str) -> Iterator[None]:
    """Where transformers reads a folder or hub id: what it raises becomes one sentence, which begins with `what`.

    Raises:
        RadDraftError: from within, as it is.
        UnavailableError: why it cannot be read, and what to do about it.
    """
    import torch
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (RadDraftError, torch.OutOfMemoryError):
        raise
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError) as error:
        raise UnavailableError(f"{what}: {_reason(path, error)}") from error


def _reason(path: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if Path(path).is_dir():
        stages = "num_hidden_layers in config.json does not go with its out_features: " if "stage_names" in text else ""
        return stages + text
    if Path(path).is_file():
        return f"{path} is a file; name the folder that holds it"
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", path):
        return f"folder {path} does not exist"
    if not isinstance(error, OSError):
        return text
    first = str(error).strip().split("\n")[0].rstrip(".")
    return (
        f"there is no folder {path} here, and it could not be downloaded from the Hugging Face hub ({first}). On a "
        f"machine with network access, run `hf download {path} --local-dir FOLDER`, then name that FOLDER instead"
    )
