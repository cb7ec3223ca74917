"""One vision tower behind one interface: pooled vector, patch grid, hidden states, of whatever family the model is."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import BaseImageProcessor

# Final outputs that the authors use as the image's vector instead of the class token in `last_hidden_state`: CLIP's is
# behind one more LayerNorm, SigLIP's is pooled by attention, a CNN's is an average.
POOLED_BY_MODEL = {
    "clip_vision_model",
    "siglip_vision_model",
    "timm_wrapper",
    "resnet",
    "convnext",
    "convnextv2",
    "swin",
}


@dataclass(frozen=True)
class Encoded:
    """Features of a batch of images."""

    pooled: torch.Tensor
    """The class token, or what the model pools (the mean patch, where that has another width): [B, D]."""
    patches: torch.Tensor
    """[B, H, W, D]."""


class Layer(NamedTuple):
    """What a batch of images is after one layer."""

    encoded: Encoded
    tokens: torch.Tensor | None
    """The raw hidden state [B, T, D], prefix tokens included, as LLaVA reads it. Of the final output the last hidden
    state, from which `Tower.last_norm` leads to the patches; where there is none, the patches."""


class NotPlainError(RadDraftError):
    """The model is not a plain vision transformer, so a LLaVA model cannot hold it."""


MOST_PREFIX_TOKENS = 64
"""A model with more tokens than patches by more than this has no grid of patches."""


class Tower:
    """A vision model in eval mode with its image processor.

    Args:
        name: for messages.
        model: returns `last_hidden_state` of tokens [B, T, D] or of a map [B, D, H, W], as transformers' vision models
            do; or (pooled, patches), as BioViLT does.
        processor: the image processor that makes its pixels.
    """

    def __init__(self, name: str, model: Any, processor: BaseImageProcessor) -> None:
        self.name, self.model, self.processor = name, model.eval(), processor
        self._interpolate = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @cached_property
    def digest(self) -> str:
        """`weights_digest` of the model as it was when this was first asked for."""
        return weights_digest(self.model)

    @cached_property
    def shape(self) -> tuple[int, int, int]:
        """Rows and columns of patches, and width: (H, W, D). Raises RadDraftError if images do not fit the model."""
        return tuple(self.encode(self.black_pixels).patches.shape[1:])  # type: ignore[return-value]

    @property
    def last_norm(self) -> torch.nn.Module | None:
        """The LayerNorm that makes the final tokens of the last hidden state, or Identity where they are the same.

        None for other models.
        """
        return self._states[1]

    @property
    def n_states(self) -> int:
        """Hidden states that it has, the embedding first; 0 where there is only the final output."""
        return self._states[0]

    @cached_property
    def _states(self) -> tuple[int, torch.nn.Module | None]:
        """Number of hidden states, and `last_norm`, which is found by what it takes and gives, whatever its name."""
        import torch

        if not hasattr(self.model.config, "num_hidden_layers"):
            return 0, None
        calls = []
        norms = [module for module in self.model.modules() if isinstance(module, torch.nn.LayerNorm)]
        hooks = [norm.register_forward_hook(lambda *call: calls.append(call)) for norm in norms]
        try:
            with torch.no_grad():
                outputs = self._forward(self.black_pixels, output_hidden_states=True)
        finally:
            for hook in hooks:
                hook.remove()
        states = outputs.hidden_states or ()
        if not states or states[-1].ndim != 3:
            return len(states), None
        if outputs.last_hidden_state is states[-1]:
            return len(states), torch.nn.Identity()
        found = (norm for norm, (given, *_), made in calls if given is states[-1] and made is outputs.last_hidden_state)
        return len(states), next(found, None)

    @cached_property
    def black_pixels(self) -> torch.Tensor:
        """A black image as the model gets it: [1, 3, height, width]."""
        return _black_pixels(self.processor)

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
        """Images as the model gets them: [B, 3, height, width]."""
        return self.processor([image.convert("RGB") for image in images], return_tensors="pt")["pixel_values"]

    def encode(
        self,
        pixels: torch.Tensor,
        layers: Sequence[int] | None = None,
        average: bool = False,
        grad: bool = False,
    ) -> Encoded:
        """Features of pixels [B, 3, height, width], on the model's device.

        Args:
            pixels: as `prepare` makes them.
            layers: indices of hidden states, 0 is the embedding; by default the model's final output, after its last
                LayerNorm (what the package rad-dino gives).
            average: average the layers instead of concatenating them ([B, D * layers]).
            grad: keep gradients, for training; not inside `torch.no_grad()`.

        Raises:
            RadDraftError: no such layer, layers that are not token sequences, or an image size the model cannot take.
        """
        import torch

        with nullcontext() if grad else torch.no_grad():
            if layers is None:
                return self._final(self._forward(pixels), pixels)
            outputs = self._forward(pixels, output_hidden_states=True)
            states = [self._tokens(state, pixels) for state in pick_layers(outputs, layers)]
            pooled, patches = zip(*((one.pooled, one.patches) for one in states), strict=True)
            if average:
                return Encoded(torch.stack(pooled).mean(0), torch.stack(patches).mean(0))
            return Encoded(torch.cat(pooled, dim=-1), torch.cat(patches, dim=-1))

    def encode_layers(self, pixels: torch.Tensor, layers: Sequence[int | None], tokens: bool = True) -> list[Layer]:
        """Layers of pixels [B, 3, height, width] in one pass, with their tokens or without; None: the final output.

        Raises:
            RadDraftError: as `encode`.
        """
        import torch

        final = tokens and self.last_norm is not None
        options = {"output_hidden_states": True} if final or any(layer is not None for layer in layers) else {}
        found = []
        with torch.no_grad():
            outputs = self._forward(pixels, **options)
            for layer in layers:
                if layer is None:
                    encoded = self._final(outputs, pixels)
                    state = outputs.hidden_states[-1] if final else encoded.patches.flatten(1, 2)
                else:
                    (state,) = pick_layers(outputs, [layer])
                    encoded = self._tokens(state, pixels)
                found.append(Layer(encoded, state if tokens else None))
        return found

    def _forward(self, pixels: torch.Tensor, **options: Any) -> Any:
        import torch

        parameter = next(self.model.parameters())
        if options and not hasattr(self.model.config, "num_hidden_layers"):
            raise RadDraftError(f"{self.name} has no hidden states of tokens, only its final output")
        if self._interpolate and tuple(pixels.shape[-2:]) != self._native_size:
            options["interpolate_pos_encoding"] = True
        try:
            return self.model(pixels.to(parameter.device, parameter.dtype), **options)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, RuntimeError, AssertionError) as error:
            height, width = pixels.shape[-2:]
            raise RadDraftError(
                f"{self.name} does not take images of {height} x {width} pixels; its own size is "
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
        if last.ndim == 4:  # a map [B, D, H, W], of some networks of timm (Swin) [B, H, W, D]
            network = getattr(self.model, "timm_model", None)
            patches = last if getattr(network, "output_fmt", "") == "NHWC" else last.permute(0, 2, 3, 1)
            if pooled is None or pooled.flatten(1).shape[1] != patches.shape[3]:  # MobileNetV3 widens what it pools
                return Encoded(patches.mean((1, 2)), patches)
            return Encoded(pooled.flatten(1), patches)
        encoded = self._tokens(last, pixels)
        return encoded if pooled is None else Encoded(pooled, encoded.patches)

    def _tokens(self, tokens: torch.Tensor, pixels: torch.Tensor) -> Encoded:
        """Tokens [B, T, D]: the class token first, patches last; without a class token, the mean patch is pooled."""
        if tokens.ndim != 3:
            raise RadDraftError(
                f"{self.name}: hidden states of shape {tuple(tokens.shape)} are not tokens; use the final output"
            )
        n_prefix, height, width = token_grid(self.model, tokens, pixels)
        patches = tokens[:, n_prefix:].unflatten(1, (height, width))
        return Encoded(tokens[:, 0] if n_prefix else patches.mean((1, 2)), patches)


def pick_layers(outputs: Any, layers: Sequence[int]) -> list[torch.Tensor]:
    """Hidden states by index. Raises RadDraftError naming the choices."""
    states = outputs.hidden_states
    for layer in layers:
        if not -len(states) <= layer < len(states):
            raise RadDraftError(
                f"Layer {layer} does not exist. The tower has hidden states {-len(states)} to {len(states) - 1}"
            )
    return [states[layer] for layer in layers]


def token_grid(model: Any, tokens: torch.Tensor, pixels: torch.Tensor) -> tuple[int, int, int]:
    """(prefix tokens, rows, columns) of tokens [B, T, D] made of pixels [B, 3, height, width].

    A plain vision transformer has a token for each patch and some before them; others (Swin) merge patches into a
    smaller square and have none. Raises RadDraftError for anything else.
    """
    height, width = pixels.shape[-2:]
    n_tokens = tokens.shape[1]
    if patch := patch_size(model):
        rows, columns = height // patch, width // patch
        if 0 <= n_tokens - rows * columns <= MOST_PREFIX_TOKENS:
            return n_tokens - rows * columns, rows, columns
    side = math.isqrt(n_tokens)
    if side * side != n_tokens:
        raise RadDraftError(
            f"{n_tokens} tokens for {height} x {width} pixels are neither a patch grid nor a square: {_kind(model)!r} "
            "is not a supported vision transformer"
        )
    return 0, side, side


def patch_size(model: Any) -> int | None:
    """Side of a patch in pixels, if the model's config has it."""
    size = getattr(model.config, "patch_size", None)
    return size if isinstance(size, int) else None


def count_prefix_tokens(model: Any, processor: BaseImageProcessor) -> int:
    """Tokens before the patches (class, registers) of a tower that a LLaVA model can hold, by a black image.

    Raises:
        NotPlainError: it is not a plain vision transformer.
        RadDraftError: it does not take the images that the processor makes without interpolating.
    """
    import torch

    patch = patch_size(model)
    if patch is None or not hasattr(model.config, "num_hidden_layers"):
        of_timm = patch and _kind(model) == "timm_wrapper"
        lacks = "no hidden states to take" if of_timm else "no patches: not a vision transformer"
        raise NotPlainError(
            f"This tower is a {_kind(model)!r} model, which has {lacks}, so a LLaVA model cannot hold it; use it for "
            "features, probes and figures, or frozen beside a report model"
        )
    pixels = _black_pixels(processor)
    height, width = pixels.shape[-2:]
    try:
        with torch.no_grad():
            tokens = model(pixels.to(model.device, model.dtype)).last_hidden_state  # [1, T, D]
    except (ValueError, RuntimeError) as error:
        raise RadDraftError(
            f"The {_kind(model)!r} tower does not take images of {height} x {width} pixels, its own size is "
            f"{model.config.image_size}: {error}"
        ) from error
    n_patches = (height // patch) * (width // patch)
    if tokens.ndim != 3 or not 0 <= tokens.shape[1] - n_patches <= MOST_PREFIX_TOKENS:
        raise NotPlainError(
            f"The {_kind(model)!r} tower is not a plain vision transformer: for {height} x {width} pixels its features "
            f"have shape {tuple(tokens.shape[1:])}, not one token for each of the {n_patches} patches"
        )
    return tokens.shape[1] - n_patches


def _kind(model: Any) -> str:
    return getattr(model.config, "model_type", type(model).__name__)


def _black_pixels(processor: BaseImageProcessor) -> torch.Tensor:
    from PIL import Image

    return processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]


def weights_digest(model: torch.nn.Module, first: int | None = None) -> str:
    """SHA-256 of a model's parameters by name, type and value; of the `first` values of each, which is quick."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().flatten()[:first].cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()
