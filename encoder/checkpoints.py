"""Vision transformer checkpoints as their trainers save them: what is read of a file, and how it is named elsewhere.

Layouts, told apart by their keys: original DINOv2 (github.com/facebookresearch/dinov2: the published files with and
without registers, and training checkpoints), an open_clip model whose visual half is a timm vision transformer, MRM
(a masked autoencoder with a text half), a plain timm vision transformer, a masked autoencoder.

Every key of the checkpoint is used, or counted as dropped, or the checkpoint is refused; timm's checkpoint_filter_fn,
which reads these layouts too, silently skips what it does not know. Taken for granted, since keys and shapes cannot
tell: LayerNorm eps 1e-6, exact GELU, heads 64 wide (except `SHARED_WIDTHS`).
"""

from __future__ import annotations

import errno
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raddraft.errors import RadDraftError
from raddraft.loading import check_finite

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

# Widths at which some transformers have 16 heads (ViT-H, -g, -G: 80, 88, 104 wide) and others have heads 64 wide.
SHARED_WIDTHS = (1280, 1408, 1664)

# Where the backbone is inside a state dict, the most specific first.
ROOTS = ("visual.trunk.", "teacher.backbone.", "backbone.", "")

# Parts beside the backbone: heads, decoders, the text half, the student and the losses of a training run.
DROPPABLE = (
    *("head.", "decoder_", "bert_", "text.", "visual.head.", "logit_scale", "logit_bias", "student."),
    *("teacher.dino_head.", "teacher.ibot_head.", "dino_head.", "ibot_head.", "dino_loss.", "ibot_patch_loss."),
)

LAYER_SCALE = "blocks.0.ls1.gamma"

INNER = ("teacher", "model_ema", "model", "module", "state_dict")
"""Where training checkpoints have their state dict; the averaged weights come first."""


@dataclass(frozen=True)
class Backbone:
    """The image encoder inside a checkpoint, under the names of the original DINOv2 and timm, and its sizes."""

    path: Path
    root: str
    """What its names begin with in the checkpoint."""
    weights: dict[str, torch.Tensor]
    dropped: Counter[str]
    """Part of the checkpoint -> number of its entries that are left out."""
    width: int
    depth: int
    heads: int
    patch_size: int
    """In pixels."""
    grid: int
    """Patches along each side of the square that the position embeddings are for."""

    @property
    def image_size(self) -> int:
        """Side of that square in pixels."""
        return self.grid * self.patch_size

    @property
    def n_registers(self) -> int:
        """Number of register tokens."""
        return self.weights["register_tokens"].shape[1] if "register_tokens" in self.weights else 0

    @property
    def scaled(self) -> bool:
        """Whether blocks scale their residual branches (LayerScale), as DINOv2's do."""
        return LAYER_SCALE in self.weights


def read_state(path: Path, mixed: bool = False) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors of a checkpoint by name, and notes on what was beside them.

    Of a training checkpoint the state dict under the first of `INNER` is taken. Nothing but tensors, plain values and
    argparse's Namespace (of MAE's checkpoints) is ever unpickled.

    Args:
        path: the file.
        mixed: take the tensors of a file that holds other objects too, which `encoder.pickled` does not unpickle.

    Raises:
        RadDraftError: the file has no state dict, or more than tensors and plain values.
        OSError: it cannot be read.
    """
    import pickle

    import torch
    from safetensors.torch import load_file

    from encoder.pickled import load_inert

    if path.is_dir():
        raise RadDraftError(f"{path} is a folder; name the checkpoint file in it")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            try:
                with torch.serialization.safe_globals([Namespace]):
                    content = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError:
                if not mixed:
                    raise
                content = load_inert(path)
    except Exception as error:  # an odd pickle has many ways to fail
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # which is a place before the file's beginning
            raise
        unsafe = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        reason = (str(error).strip() or type(error).__name__).split("\n")[0]
        if unsafe:
            reason = f"it holds {unsafe[1]}, which is not a tensor; save its state dict alone"
        raise RadDraftError(f"{path} is not a checkpoint that can be loaded as tensors only: {reason}") from error
    notes = []
    while not _is_state(content):
        found = content if isinstance(content, Mapping) else {}
        inner = next((name for name in INNER if isinstance(found.get(name), Mapping)), None)
        if inner is None:
            what = f"the keys {', '.join(map(str, list(found)[:5]))}" if found else "no dict"
            raise RadDraftError(f"{path} has {what}; expected tensors by name, or those under {', '.join(INNER)}")
        beside = ", ".join(sorted(str(name) for name in found if name != inner))
        notes.append(f"taken from {inner!r}" + (f"; left out: {beside}" if beside else ""))
        content = found[inner]
    check_finite(content.items(), path)
    return dict(content), notes


def _is_state(content: Any) -> bool:
    import torch

    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def check_state(state: Mapping[str, torch.Tensor], wanted: Mapping[str, Sequence[int]], what: str) -> None:
    """Raise RadDraftError, beginning with `what`, unless a state dict has just the wanted names and shapes."""
    shapes = {name: list(shape) for name, shape in wanted.items()}
    faults = []
    if unknown := [name for name in state if name not in shapes]:
        faults.append(f"no place for {len(unknown)} of its entries: {_some(unknown)}")
    if missing := [name for name in shapes if name not in state]:
        faults.append(f"{len(missing)} are missing: {_some(missing)}")
    if misfits := [name for name in shapes if name in state and list(state[name].shape) != shapes[name]]:
        examples = [f"{name} is {list(state[name].shape)}, not {shapes[name]}" for name in misfits]
        faults.append(f"{len(misfits)} shapes do not fit: {_some(examples)}")
    if faults:
        raise RadDraftError(f"{what}: {'; '.join(faults)}")


def find_backbone(path: Path, state: Mapping[str, torch.Tensor], heads: int | None) -> Backbone:
    """Take the backbone's tensors out of the state dict of file `path`, and read its sizes off their shapes.

    Raises:
        RadDraftError: there is no vision transformer in it, or something beside it that is not known, or `heads` (by
            default width / 64) do not fit.
    """
    plain = _rename(path, state, lambda name: re.sub(r"^(module\.)+", "", name))
    root = next((root for root in ROOTS if f"{root}patch_embed.proj.weight" in plain), None)
    if root is None:
        hint = "; it is in transformers' layout already" if any("patch_embeddings" in name for name in plain) else ""
        raise RadDraftError(
            f"{path} has no patch_embed.proj.weight, at its top or under {', '.join(filter(None, ROOTS))}{hint}. "
            f"It has {_some(plain)}"
        )
    dropped: Counter[str] = Counter()
    kept = {}
    for name, tensor in plain.items():
        inner = name.removeprefix(root)
        part = next((part for part in DROPPABLE if name.startswith(part) or inner.startswith(part)), None)
        if part:
            dropped[part.rstrip(".") + ("*" if part.endswith("_") else "")] += 1
        elif not name.startswith(root):
            raise RadDraftError(f"{path}: {name} is neither under {root} nor a known part beside it")
        else:
            kept[inner] = tensor
    # FSDP training groups blocks into chunks; the second number counts on from chunk to chunk.
    weights = _rename(path, kept, lambda name: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name))
    if LAYER_SCALE not in weights and weights.pop("mask_token", None) is not None:
        dropped["mask_token"] += 1  # a masked autoencoder's, an input of its decoder
    return _measure(path, root, weights, dropped, heads)


def _rename(path: Path, tensors: Mapping[str, torch.Tensor], new_name: Callable[[str], str]) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if new_name(name) in renamed:
            raise RadDraftError(f"{path}: {name} and another entry both are {new_name(name)}")
        renamed[new_name(name)] = tensor
    return renamed


def _measure(
    path: Path, root: str, weights: dict[str, torch.Tensor], dropped: Counter[str], heads: int | None
) -> Backbone:
    shape = list(weights["patch_embed.proj.weight"].shape)
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
        raise RadDraftError(f"{path}: patch_embed.proj.weight has shape {shape}; expected width x 3 x patch x patch")
    width, patch_size = shape[0], shape[2]
    blocks = {int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not blocks:
        raise RadDraftError(f"{path} has no blocks.0. It has {_some(weights)}")
    if "pos_embed" not in weights:
        raise RadDraftError(f"{path} has no pos_embed; only towers with learned position embeddings can be converted")
    positions = list(weights["pos_embed"].shape)
    grid = isqrt(max(positions[1] - 1, 0)) if len(positions) == 3 else 0
    if not grid or positions[0] != 1 or positions[1] != 1 + grid * grid:
        raise RadDraftError(
            f"{path}: pos_embed: shape {positions} is not that of one class token and a square grid of patches"
        )
    if heads is None:
        if width in SHARED_WIDTHS or width % 64:
            raise RadDraftError(
                f"{path} does not tell how many heads its {width} channels make: transformers of this width have "
                "heads of other sizes than 64. Give --heads"
            )
        heads = width // 64
    if heads < 1 or width % heads:
        raise RadDraftError(f"heads {heads} does not divide the width {width}")
    return Backbone(path, root, weights, dropped, width, max(blocks) + 1, heads, patch_size, grid)


def resize(backbone: Backbone, image_size: int, antialias: bool) -> tuple[Backbone, list[str]]:
    """The backbone with position embeddings for another image size, and a note if they had to change.

    ViTModel needs it, since LlavaForConditionalGeneration does not ask it to interpolate. timm antialiases, and so does
    DINOv2 for its files with registers; MAE and DINOv2's other files do not. (Those others also shift the grid by a
    tenth of a patch, which transformers' Dinov2Model leaves out, and so does this function.)

    Raises:
        RadDraftError: `image_size` is not a positive multiple of the patch size.
    """
    from timm.layers import resample_abs_pos_embed

    grid, rest = divmod(image_size, backbone.patch_size)
    if image_size < 1 or rest:
        raise RadDraftError(f"image_size {image_size} is not a multiple of the patch size {backbone.patch_size}")
    if grid == backbone.grid:
        return backbone, []
    resized = resample_abs_pos_embed(backbone.weights["pos_embed"], [grid, grid], antialias=antialias)
    how = "bicubic, antialiased" if antialias else "bicubic"
    note = f"position embeddings interpolated ({how}) from {backbone.grid} x {backbone.grid} to {grid} x {grid} patches"
    return replace(backbone, weights=backbone.weights | {"pos_embed": resized}, grid=grid), [note]


def model_names(backbone: Backbone, wanted: Collection[str]) -> dict[str, list[str]]:
    """Name in the checkpoint -> names in transformers' model, of which there are several for fused projections.

    `wanted` are all names of that Dinov2Model, Dinov2WithRegistersModel or ViTModel.
    """
    table = {
        "cls_token": ["embeddings.cls_token"],
        "mask_token": ["embeddings.mask_token"],
        "register_tokens": ["embeddings.register_tokens"],
        "pos_embed": ["embeddings.position_embeddings"],
    }
    modules = {"patch_embed.proj": ["embeddings.patch_embeddings.projection"], "norm": ["layernorm"]}
    norms = ("norm1", "norm2") if backbone.scaled else ("layernorm_before", "layernorm_after")
    for i in range(backbone.depth):
        new = f"encoder.layer.{i}" if backbone.scaled else f"layers.{i}"
        modules |= {
            f"blocks.{i}.norm1": [f"{new}.{norms[0]}"],
            f"blocks.{i}.attn.qkv": [f"{new}.attention.{part}_proj" for part in "qkv"],
            f"blocks.{i}.attn.proj": [f"{new}.attention.o_proj"],
            f"blocks.{i}.norm2": [f"{new}.{norms[1]}"],
            f"blocks.{i}.mlp.fc1": [f"{new}.mlp.fc1"],
            f"blocks.{i}.mlp.fc2": [f"{new}.mlp.fc2"],
            f"blocks.{i}.mlp.w12": [f"{new}.mlp.gate_proj", f"{new}.mlp.up_proj"],
            f"blocks.{i}.mlp.w3": [f"{new}.mlp.down_proj"],
        }
        table |= {f"blocks.{i}.ls{k}.gamma": [f"{new}.layer_scale{k}.lambda1"] for k in (1, 2)}
    for name, targets in modules.items():
        table |= {f"{name}.{part}": [f"{target}.{part}" for target in targets] for part in ("weight", "bias")}
    names = {name: targets for name, targets in table.items() if targets[0] in wanted}
    if backbone.n_registers and "mask_token" not in backbone.weights:
        names.pop("mask_token", None)  # Dinov2WithRegistersModel always has one
    return names


def build_transformer(backbone: Backbone) -> tuple[PreTrainedModel, list[str]]:
    """The model of transformers with the backbone's weights, and notes on what had to be added or changed.

    Raises:
        RadDraftError: an entry or a shape does not fit; it is named.
    """
    import torch

    with torch.device("meta"):
        model = _empty_model(backbone)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names = model_names(backbone, wanted)
    rows = {name: [wanted[target][0] for target in targets] for name, targets in names.items()}
    shapes = {name: [sum(rows[name]), *wanted[targets[0]][1:]] for name, targets in names.items()}
    check_state(backbone.weights, shapes, f"{backbone.path} does not fit {type(model).__name__}")
    weights: dict[str, torch.Tensor] = {}
    for name, targets in names.items():  # more than one target: parts of one fused projection
        parts = zip(targets, backbone.weights[name].split(rows[name]), strict=True)
        # Copies: parts of one tensor would look like tied weights when they are saved.
        weights |= {target: part.to(torch.float32, copy=True) for target, part in parts}
    notes = []
    for name in sorted(set(wanted) - set(weights)):  # model_names leaves only these: a mask token, a pooler
        weights[name] = torch.zeros(wanted[name])
        notes.append(f"{name} is not in the checkpoint: set to zeros, not to random numbers")
    if others := {str(backbone.weights[name].dtype).removeprefix("torch.") for name in names} - {"float32"}:
        notes.append(f"{', '.join(sorted(others))} weights cast to float32")
    if backbone.width // backbone.heads != 64:
        notes.append(f"{backbone.heads} heads, as given")
    model.load_state_dict(weights, strict=True, assign=True)
    return model, notes


def _empty_model(backbone: Backbone) -> PreTrainedModel:
    """A model of the backbone's sizes; ViTModel with its pooler, which AutoModel would make up at random otherwise."""
    import transformers as hf

    weights, width = backbone.weights, backbone.width
    swiglu = "blocks.0.mlp.w3.weight" in weights
    name = "blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight"
    if name not in weights:
        raise RadDraftError(f"{backbone.path} has no {name}")
    rows = weights[name].shape[0]
    settings: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.heads,
        "image_size": backbone.image_size,
        "patch_size": backbone.patch_size,
        "qkv_bias": "blocks.0.attn.qkv.bias" in weights,
        "layer_norm_eps": 1e-6,  # ViTConfig's own default is 1e-12
    }
    if not backbone.scaled:
        return hf.ViTModel(hf.ViTConfig(**settings, intermediate_size=rows))
    # Dinov2Config makes the width of the hidden layer from a whole ratio; with SwiGLU it is two thirds of ratio times
    # width, rounded up to a multiple of 8, and gate and values are packed.
    hidden = [ratio * width for ratio in range(1, 17)]
    made = [2 * ((size * 2 // 3 + 7) // 8 * 8) for size in hidden] if swiglu else hidden
    if rows not in made:
        raise RadDraftError(f"{backbone.path}: no whole mlp_ratio makes the {rows} rows of {name} from {width}")
    settings |= {"mlp_ratio": 1 + made.index(rows), "use_swiglu_ffn": swiglu}
    if backbone.n_registers:
        config = hf.Dinov2WithRegistersConfig(**settings, num_register_tokens=backbone.n_registers)
        return hf.Dinov2WithRegistersModel(config)
    return hf.Dinov2Model(hf.Dinov2Config(**settings, use_mask_token="mask_token" in weights))


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:4]) + (" …" if len(names) > 4 else "")
