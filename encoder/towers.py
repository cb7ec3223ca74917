"""Vision towers by short name, hub id or local folder, behind one interface: pooled vector, patch grid, hidden states.

    tower = load_tower("rad-dino")
    encoded = tower.encode(tower.prepare([image]))  # pooled [1, 768], patches [1, 37, 37, 768]

Any vision model that transformers can load will do, its timm wrapper included, and BioViL-T. Checkpoints in other
formats are converted once: `raddraft convert`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import BaseImageProcessor


@dataclass(frozen=True)
class Card:
    """What is behind a short name."""

    source: str
    """Hub id; where `converted` is set, of a checkpoint that `raddraft convert` turns into a folder first."""
    what: str
    """Architecture and, in px, the size of the pictures it takes."""
    licence: str
    """As its page on the hub says."""
    converted: bool = False


DINOV2 = "Apache-2.0"
DINOV3 = "DINOv3 licence, gated"

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
    "biovil-t": Card("microsoft/BiomedVLP-BioViL-T", "ResNet-50 hybrid, 448 px of 512", "MIT", converted=True),
    "mrm": Card("github.com/RL4M/MRM-pytorch", "ViT-B/16, 448 px fine-tuned", "see its repository", converted=True),
}

# Final outputs that the authors use as the image's vector instead of the class token in `last_hidden_state`: CLIP's is
# behind one more LayerNorm, SigLIP's is pooled by attention, a CNN's is an average.
POOLED_BY_MODEL = (
    "clip_vision_model",
    "siglip_vision_model",
    "timm_wrapper",
    "resnet",
    "convnext",
    "convnextv2",
    "swin",
)


@dataclass(frozen=True)
class Encoded:
    """Features of a batch of pictures."""

    pooled: torch.Tensor
    """The class token, or what the model pools: [B, D]."""
    patches: torch.Tensor
    """[B, H, W, D]."""


MOST_PREFIX_TOKENS = 64
"""A model with more tokens than patches by more than this has no grid of patches."""


class Tower:
    """A vision model in eval mode with its image processor.

    Args:
        name: for people.
        model: gives `last_hidden_state` of tokens [B, T, D] or of a map [B, D, H, W], as transformers' vision models
            do; or (pooled, patches), as BioViLT does.
        processor: makes its pixels.
    """

    def __init__(self, name: str, model: Any, processor: BaseImageProcessor) -> None:
        self.name, self.model, self.processor = name, model.eval(), processor
        self._interpolate = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Rows and columns of patches, and width: (H, W, D). Raises ValueError where pictures do not fit the model."""
        return tuple(self.encode(self.black_pixels).patches.shape[1:])  # type: ignore[return-value]

    @cached_property
    def black_pixels(self) -> torch.Tensor:
        """A black picture as the model gets it: [1, 3, height, width]."""
        return self.prepare([_black()])

    @cached_property
    def is_plain(self) -> bool:
        """Whether it is a plain vision transformer, which a LLaVA model can hold."""
        try:
            return self.n_prefix >= 0
        except ValueError:
            return False

    @cached_property
    def n_prefix(self) -> int:
        """Class and register tokens before the patches, in the model's own tokens."""
        return count_prefix_tokens(self.model, self.processor)

    def prepare(self, images: Sequence[Image]) -> torch.Tensor:
        """Pictures as the model gets them: [B, 3, height, width]."""
        return self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]

    def encode(self, pixels: torch.Tensor, layers: Sequence[int] | None = None, average: bool = False) -> Encoded:
        """Features of pixels [B, 3, height, width], on the model's device.

        Args:
            pixels: as `prepare` makes them.
            layers: indices into the hidden states, 0 being the embedding; by default the model's final output, behind
                its last LayerNorm (what the package rad-dino gives).
            average: of several layers, instead of putting them side by side ([B, D * layers]).

        Raises:
            ValueError: no such layer, layers that are no token sequences, or pictures of a size the model cannot take.
        """
        import torch

        with torch.no_grad():
            if layers is None:
                return self._final(self._forward(pixels), pixels)
            outputs = self._forward(pixels, output_hidden_states=True)
            states = [self._tokens(state, pixels) for state in pick_layers(outputs, layers)]
            pooled, patches = zip(*((one.pooled, one.patches) for one in states), strict=True)
            if average:
                return Encoded(torch.stack(pooled).mean(0), torch.stack(patches).mean(0))
            return Encoded(torch.cat(pooled, dim=-1), torch.cat(patches, dim=-1))

    def hidden(self, pixels: torch.Tensor, layer: int) -> torch.Tensor:
        """One raw hidden state [B, T, D], prefix tokens included, as LLaVA reads it. Raises ValueError as `encode`."""
        import torch

        with torch.no_grad():
            (state,) = pick_layers(self._forward(pixels, output_hidden_states=True), [layer])
        return state

    def _forward(self, pixels: torch.Tensor, **options: Any) -> Any:
        parameter = next(self.model.parameters())
        if options and not hasattr(self.model.config, "num_hidden_layers"):
            raise ValueError(f"{self.name} gives no hidden states of tokens, only its final output")
        if self._interpolate and tuple(pixels.shape[-2:]) != self._native_size:
            options["interpolate_pos_encoding"] = True
        try:
            return self.model(pixels.to(parameter.device, parameter.dtype), **options)
        except (ValueError, RuntimeError, AssertionError) as error:
            height, width = pixels.shape[-2:]
            raise ValueError(
                f"{self.name} does not take pictures of {height} x {width} pixels; its own size is "
                f"{getattr(self.model.config, 'image_size', 'unknown')}: {error}"
            ) from error

    @cached_property
    def _native_size(self) -> tuple[int, int] | None:
        size = getattr(self.model.config, "image_size", None)
        return (size, size) if isinstance(size, int) else tuple(size) if size else None

    def _final(self, outputs: Any, pixels: torch.Tensor) -> Encoded:
        if isinstance(outputs, tuple):  # BioViLT
            return Encoded(*outputs)
        last = outputs.last_hidden_state
        pooled = getattr(outputs, "pooler_output", None)
        if self.model.config.model_type not in POOLED_BY_MODEL or pooled is None:
            pooled = None
        if last.ndim == 4:  # a map [B, D, H, W]
            patches = last.permute(0, 2, 3, 1)
            return Encoded(patches.mean((1, 2)) if pooled is None else pooled.flatten(1), patches)
        encoded = self._tokens(last, pixels)
        return encoded if pooled is None else Encoded(pooled, encoded.patches)

    def _tokens(self, tokens: torch.Tensor, pixels: torch.Tensor) -> Encoded:
        """Tokens [B, T, D]: patches at the end, the class token first; without one, the mean patch is the vector."""
        if tokens.ndim != 3:
            raise ValueError(
                f"{self.name}: hidden states of shape {tuple(tokens.shape)} are no tokens; use the final output"
            )
        n_prefix, height, width = token_grid(self.model, tokens, pixels)
        patches = tokens[:, n_prefix:].unflatten(1, (height, width))
        return Encoded(tokens[:, 0] if n_prefix else patches.mean((1, 2)), patches)


def pick_layers(outputs: Any, layers: Sequence[int]) -> list[torch.Tensor]:
    """Hidden states by index. Raises ValueError naming the choices."""
    states = outputs.hidden_states
    for layer in layers:
        if not -len(states) <= layer < len(states):
            raise ValueError(
                f"Layer {layer} does not exist. The tower has hidden states {-len(states)} to {len(states) - 1}"
            )
    return [states[layer] for layer in layers]


def token_grid(model: Any, tokens: torch.Tensor, pixels: torch.Tensor) -> tuple[int, int, int]:
    """(prefix tokens, rows, columns) of tokens [B, T, D] made of pixels [B, 3, height, width].

    A plain vision transformer has a token for each patch and some before them; others (Swin) merge patches into a
    smaller square and have none.

    Raises:
        ValueError: neither.
    """
    height, width = pixels.shape[-2:]
    n_tokens = tokens.shape[1]
    if patch := patch_size(model):
        rows, columns = height // patch, width // patch
        if 0 <= n_tokens - rows * columns <= MOST_PREFIX_TOKENS:
            return n_tokens - rows * columns, rows, columns
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise ValueError(
            f"{n_tokens} tokens for {height} x {width} pixels are neither a patch grid nor a square: "
            f"this {model.config.model_type!r} model is no vision transformer that is known here"
        )
    return 0, side, side


def patch_size(model: Any) -> int | None:
    """Side of a patch in pixels, if the model states it."""
    size = getattr(model.config, "patch_size", None)
    return size if isinstance(size, int) else None


def resolve_tower(name: str) -> str:
    """Local folder or hub id of a tower.

    Raises:
        ValueError: `name` is neither a short name, nor a folder, nor of the form owner/model; or it stands for a
            checkpoint that has to be converted first.
    """
    if card := TOWERS.get(name):
        if card.converted:
            raise ValueError(
                f"Tower {name!r} is no transformers checkpoint: download it from {card.source}, run `raddraft convert "
                "CHECKPOINT --out FOLDER` once, and name that FOLDER"
            )
        return card.source
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise ValueError(f"Unknown tower {name!r}. Choices: {', '.join(TOWERS)}, a hub id, or a folder with a config.json")


def load_tower(
    name: str, image_size: int | None = None, backend: Literal["torchvision", "pil"] = "torchvision"
) -> Tower:
    """Load a vision tower (fp32, eval mode) and its image processor.

    Of a two-tower checkpoint (CLIP, SigLIP), or of a trained report model, only the vision half is loaded.

    Args:
        name: short name, hub id or local folder; "pixels" for raw pixels, 16 x 16; "random:" before the name of a tower
            for the same architecture with random weights (seed 0).
        image_size: side in pixels of the square that the processor makes, instead of the checkpoint's own: the
            shorter side is resized to it and the centre square is kept. Position embeddings are interpolated.
        backend: what resizes pictures. A saved report model uses torchvision, as transformers does by default; the
            package rad-dino uses Pillow, whose pixels differ by up to 1 of 255 and features in the third decimal.

    Raises:
        ValueError: unknown name, no vision model under it, or one that takes no pictures of `image_size`.
        OSError: the checkpoint cannot be reached or read.
    """
    model, processor = _load(name, backend)
    path = name
    if image_size is not None:
        patch = patch_size(model)
        if patch and image_size % patch:
            raise ValueError(f"image_size {image_size} is not a multiple of the patch size {patch} of {path}")
        if not hasattr(processor, "crop_size"):
            raise ValueError(f"The image processor of {path} cannot be set to image_size {image_size}")
        vars(processor).update(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
            do_resize=True,
            do_center_crop=True,
        )
    tower = Tower(name, model, processor)
    if image_size is not None:
        _ = tower.shape  # it must take such pictures
    return tower


def _load(name: str, backend: str) -> tuple[Any, BaseImageProcessor]:
    if name == "pixels":
        from encoder.baselines import Pixels, PixelsConfig, pixels_processor

        return Pixels(), pixels_processor(PixelsConfig())
    path = resolve_tower(name.removeprefix("random:"))
    if name.startswith("random:"):
        return _load_random(path, backend)
    return _load_biovil(path) if _is_biovil(path) else _load_transformers(name, path, backend)


def _load_random(path: str, backend: str) -> tuple[Any, BaseImageProcessor]:
    """The architecture of a tower with weights as its class draws them, always the same."""
    import torch
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    try:
        config = AutoConfig.from_pretrained(path)
        processor = AutoImageProcessor.from_pretrained(path, **_backend(backend))
    except OSError as error:
        raise checkpoint_error(f"Tower {path!r} cannot be read", path, error) from error
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(getattr(config, "vision_config", config)), processor


def _load_transformers(name: str, path: str, backend: str) -> tuple[Any, BaseImageProcessor]:
    """The vision half of a checkpoint, without the heads of another task."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, LlavaForConditionalGeneration

    try:
        config = AutoConfig.from_pretrained(path)
        if config.model_type == "llava":
            whole = LlavaForConditionalGeneration.from_pretrained(path, dtype="float32")
            return whole.model.vision_tower, AutoImageProcessor.from_pretrained(path, **_backend(backend))
        config = getattr(config, "vision_config", config)
        model, report = AutoModel.from_pretrained(path, config=config, dtype="float32", output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(path, **_backend(backend))
    except (OSError, SafetensorError) as error:
        raise checkpoint_error(f"Tower {name!r} cannot be loaded", path, error) from error
    # Poolers and heads lie behind the hidden states; a checkpoint of another task may lack them.
    missing = [key for key in sorted(report["missing_keys"]) if not key.startswith(("pooler.", "head."))]
    if missing:
        raise ValueError(
            f"{path} has no weights for {len(missing)} parts of its {config.model_type!r} tower, e.g. {missing[0]}"
        )
    return model, processor


def _backend(name: str) -> dict[str, str]:
    """torchvision is the default anyway, and asking for it would draw a warning where a processor has Pillow only."""
    return {} if name == "torchvision" else {"backend": name}


def _is_biovil(path: str) -> bool:
    config = Path(path) / "config.json"
    try:
        return json.loads(config.read_text(encoding="utf-8"))["model_type"] == "raddraft-biovil-t"
    except (OSError, ValueError, KeyError, TypeError):
        return False  # a hub id, or a folder whose faults transformers will name


def _load_biovil(path: str) -> tuple[Any, BaseImageProcessor]:
    from encoder.biovil import BioViLT, image_processor

    model = BioViLT.from_pretrained(path)
    return model, image_processor(model.config)


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


def count_prefix_tokens(model: Any, processor: BaseImageProcessor) -> int:
    """Tokens before the patches (class, registers) of a tower that a LLaVA model can hold, by a black picture.

    Raises:
        ValueError: it is no plain vision transformer, or does not take by itself the pictures the processor makes.
    """
    import torch

    kind = getattr(model.config, "model_type", type(model).__name__)
    patch = patch_size(model)
    if patch is None or not hasattr(model.config, "num_hidden_layers"):
        raise ValueError(
            f"This tower is a {kind!r} model, which has no patches: not a vision transformer, so a LLaVA model cannot "
            "hold it; it serves features, probes and figures"
        )
    pixels = processor([_black()], return_tensors="pt")["pixel_values"]
    height, width = pixels.shape[-2:]
    try:
        with torch.no_grad():
            tokens = model(pixels.to(model.device, model.dtype)).last_hidden_state  # [1, T, D]
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"The {kind!r} tower does not take pictures of {height} x {width} pixels, its own size is "
            f"{model.config.image_size}: {error}"
        ) from error
    n_patches = (height // patch) * (width // patch)
    if tokens.ndim != 3 or not 0 <= tokens.shape[1] - n_patches <= MOST_PREFIX_TOKENS:
        raise ValueError(
            f"The {kind!r} tower is not a plain vision transformer: for {height} x {width} pixels it gives features of "
            f"shape {tuple(tokens.shape[1:])}, not one for each of the {n_patches} patches"
        )
    return tokens.shape[1] - n_patches


def _black() -> Image:
    from PIL import Image

    return Image.new("RGB", (64, 64))


def weights_digest(model: torch.nn.Module) -> str:
    """SHA-256 of a model's parameters by name, type and value: equal weights give equal digests."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
