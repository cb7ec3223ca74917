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
        ValueError: unknown name, no vision transformer under it, or one that takes no pictures of `image_size`.
        OSError: the checkpoint cannot be reached or read.
    """
    path = resolve_tower(name)
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    try:
        config = AutoConfig.from_pretrained(path)
        config = getattr(config, "vision_config", config)
        if not hasattr(config, "patch_size"):
            raise ValueError(
                f"{path} holds a {config.model_type!r} model, which has no patches: not a vision transformer"
            )
        tower, report = AutoModel.from_pretrained(path, config=config, dtype="float32", output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(path)
    except (OSError, SafetensorError) as error:
        raise checkpoint_error(f"Tower {name!r} cannot be loaded", path, error) from error
    # Poolers and heads lie behind the hidden states; a checkpoint of another task may lack them.
    missing = [key for key in sorted(report["missing_keys"]) if not key.startswith(("pooler.", "head."))]
    if missing:
        raise ValueError(
            f"{path} has no weights for {len(missing)} parts of its {config.model_type!r} tower, e.g. {missing[0]}"
        )
    tower.eval()
    if image_size is not None:
        if image_size % config.patch_size:
            raise ValueError(
                f"image_size {image_size} is not a multiple of the patch size {config.patch_size} of {path}"
            )
        processor.size = {"shortest_edge": image_size}
        processor.crop_size = {"height": image_size, "width": image_size}
        processor.do_resize = processor.do_center_crop = True
        count_prefix_tokens(tower, processor)
    return tower, processor


def checkpoint_error(what: str, path: str, error: Exception) -> OSError:
    """One sentence: what fails, why, and what to do about it, for a folder or hub id that transformers cannot load."""
    if Path(path).is_dir():
        return OSError(f"{what}: {' '.join(str(error).split())}")
    if path.startswith((".", "/", "~")):
        return OSError(f"{what}: there is no folder {path}")
    reason = str(error).strip().split("\n")[0].rstrip(".")
    return OSError(
        f"{what}: {path} is not on this machine, and the Hugging Face hub did not give it ({reason}); where there is "
        f"a network, run `hf download {path} --local-dir FOLDER`, then name that FOLDER instead"
    )


def count_prefix_tokens(tower: PreTrainedModel, processor: BaseImageProcessor) -> int:
    """Tokens before the patches (class, registers), found by a forward pass over a black picture.

    Raises:
        ValueError: the tower does not take pictures of the size that the processor makes, or gives no patch grid.
    """
    import torch
    from PIL import Image

    pixels = processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]
    height, width = pixels.shape[-2:]
    try:
        with torch.no_grad():
            hidden = tower(pixels.to(tower.device, tower.dtype)).last_hidden_state  # [1, T, D]
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The {tower.config.model_type!r} tower does not take pictures of {height} x {width} pixels, its own size "
            f"is {tower.config.image_size}: {error}"
        ) from error
    n_patches = (height // tower.config.patch_size) * (width // tower.config.patch_size)
    if hidden.ndim != 3 or hidden.shape[1] < n_patches:
        raise ValueError(
            f"The {tower.config.model_type!r} tower is not a plain vision transformer: for {height} x {width} pixels "
            f"it gives features of shape {tuple(hidden.shape[1:])}, not one for each of the {n_patches} patches"
        )
    return hidden.shape[1] - n_patches


def weights_digest(model: PreTrainedModel) -> str:
    """SHA-256 of a model's parameters by name, type and value: equal weights give equal digests."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
