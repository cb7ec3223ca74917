"""Vision towers by short name, hub id or local folder: any transformers vision model with patch tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel

# Short name -> hub id. A local folder or any other hub id works as well.
TOWERS = {
    "rad-dino": "microsoft/rad-dino",
    "rad-dino-maira-2": "microsoft/rad-dino-maira-2",
    "dinov2-small": "facebook/dinov2-small",
    "dinov2-base": "facebook/dinov2-base",
    "dinov2-large": "facebook/dinov2-large",
    "dinov2-giant": "facebook/dinov2-giant",
    "clip-224": "openai/clip-vit-large-patch14",
    "clip-336": "openai/clip-vit-large-patch14-336",
    "siglip2-base": "google/siglip2-base-patch16-224",
}


def resolve_tower(name: str) -> str:
    """Local folder or hub id of a tower.

    Raises:
        ValueError: `name` is neither a short name, nor a folder, nor of the form owner/model.
    """
    if name in TOWERS:
        return TOWERS[name]
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ValueError(f"Unknown tower {name!r}. Choices: {', '.join(TOWERS)}, a hub id, or a folder with a config.json")


def load_tower(name: str, image_size: int | None = None) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """Load a vision tower (fp32, eval mode) and its image processor.

    Of a two-tower checkpoint (CLIP, SigLIP) only the vision half is loaded.

    Args:
        name: short name, hub id or local folder.
        image_size: side in pixels of the square that the processor makes, instead of the checkpoint's own: the
            shorter side is resized to it and the centre square is kept. The tower must interpolate its position
            embeddings by itself, as Dinov2 does.

    Raises:
        ValueError: unknown name, or no vision model under it.
        OSError: the checkpoint cannot be reached.
    """
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    path = resolve_tower(name)
    config = AutoConfig.from_pretrained(path)
    config = getattr(config, "vision_config", config)
    if not hasattr(config, "patch_size"):
        raise ValueError(f"{path} holds a {config.model_type!r} model, which has no patches: not a vision transformer")
    tower = AutoModel.from_pretrained(path, config=config, dtype="float32").eval()
    processor = AutoImageProcessor.from_pretrained(path)
    if image_size is not None:
        if image_size % config.patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of the patch size {config.patch_size} of {path}"
            )
        processor.size = {"shortest_edge": image_size}
        processor.crop_size = {"height": image_size, "width": image_size}
        processor.do_resize = processor.do_center_crop = True
    return tower, processor


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model's parameters by name, type and value: equal weights give equal digests."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
