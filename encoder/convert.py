"""Vision transformer checkpoints in other layouts -> ordinary Hugging Face folders, once, so that a tower is a folder.

Known layouts, told apart by their keys:

- original DINOv2 (github.com/facebookresearch/dinov2: the published files with and without registers, and training
  checkpoints), which is also the layout of RAD-DINO's `backbone_compatible.safetensors` -> Dinov2Model or
  Dinov2WithRegistersModel;
- an open_clip model whose visual half is a timm vision transformer, as BiomedCLIP -> ViTModel;
- MRM (Zhou et al., ICLR 2023, github.com/RL4M/MRM-pytorch): a masked autoencoder with a text half -> ViTModel;
- a plain timm vision transformer, or a masked autoencoder with or without its decoder -> ViTModel.

Every key of the checkpoint is used, or counted as dropped, or the checkpoint is refused. What keys and shapes cannot
tell is the same in all these sources, and taken for granted: LayerNorm eps 1e-6, exact GELU, heads 64 wide (see
`SHARED_WIDTHS`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import warnings
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import BaseImageProcessor, PreTrainedModel

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
OPENAI_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class Kind:
    """What the keys of a layout do not say: how its images were prepared, and where its terms of use are."""

    mean: Sequence[float]
    """Mean of each channel, of values between 0 and 1."""
    std: Sequence[float]
    """Standard deviation of each channel."""
    terms: str
    """Where the terms of use of the published weights stand."""
    resize: int | None = None
    """Length in pixels to which the shorter side is resized; None: the size of the position embeddings."""
    crop: int | None = None
    """Side in pixels of the centre square that is kept; None: the size of the position embeddings."""
    antialias: bool = True
    """Whether the source resizes its position embeddings with antialiasing."""


KINDS = {
    "dinov2": Kind(*IMAGENET, "github.com/facebookresearch/dinov2", resize=256, crop=224, antialias=False),
    "rad-dino": Kind((0.5307,) * 3, (0.2583,) * 3, "huggingface.co/microsoft/rad-dino", antialias=False),
    "biomedclip": Kind(*OPENAI_CLIP, "huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"),
    # Both figures: main_pretrain.py and NIH_ChestX-ray/utils/data_utils.py of the repository. It starts from MAE's
    # weights, whose position embeddings are resized without antialiasing (util/pos_embed.py of facebookresearch/mae).
    "mrm": Kind((0.4978,) * 3, (0.2449,) * 3, "github.com/RL4M/MRM-pytorch", antialias=False),
    "vit": Kind(*IMAGENET, "those of its source"),
}

# Widths at which some transformers have 16 heads (ViT-H, -g, -G: 80, 88, 104 wide) and others have heads 64 wide.
SHARED_WIDTHS = (1280, 1408, 1664)

# Where the backbone is inside a state dict, the most specific first.
ROOTS = ("visual.trunk.", "teacher.backbone.", "backbone.", "")

# Parts that are no part of the backbone: heads, decoders, the text half, the student and the losses of a training run.
DROPPABLE = (
    "head.",
    "decoder_",
    "bert_",
    "text.",
    "visual.head.",
    "logit_scale",
    "logit_bias",
    "student.",
    "teacher.dino_head.",
    "teacher.ibot_head.",
    "dino_head.",
    "ibot_head.",
    "dino_loss.",
    "ibot_patch_loss.",
)


@dataclass(frozen=True)
class Conversion:
    """What was read and written."""

    kind: str
    model: str
    n_parameters: int
    image_size: int
    """Side in pixels of the square that the position embeddings are for."""
    patch_size: int
    width: int
    depth: int
    heads: int
    images: str
    """How the folder's image processor prepares images."""
    n_prefix: int
    """Tokens before the patches: class and registers."""
    dropped: dict[str, int]
    """Part of the checkpoint -> how many of its entries were left out."""
    notes: list[str]
    """Whatever else the folder has otherwise than the checkpoint."""
    sha256: str
    """Digest of the checkpoint file."""


@dataclass(frozen=True)
class _Backbone:
    """The image encoder inside a checkpoint, under the names of the original DINOv2 and timm, and its sizes."""

    path: Path
    root: str
    weights: dict[str, torch.Tensor]
    dropped: Counter[str]
    width: int
    depth: int
    heads: int
    patch_size: int
    grid: int

    @property
    def n_registers(self) -> int:
        return self.weights["register_tokens"].shape[1] if "register_tokens" in self.weights else 0

    @property
    def scaled(self) -> bool:
        """Whether blocks scale what they add (LayerScale), as DINOv2's do."""
        return "blocks.0.ls1.gamma" in self.weights


def convert(
    checkpoint: str | Path,
    out: str | Path,
    kind: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    heads: int | None = None,
) -> Conversion:
    """Write a checkpoint's image encoder as a folder: config.json, model.safetensors (float32), its image processor.

    Args:
        checkpoint: file of tensors: .safetensors, or whatever torch.load reads with weights_only=True.
        out: folder to make; it may be there already if it is empty.
        kind: one of `KINDS`, where the keys fit several of them; by default the first that fits.
        image_size: side in pixels of the square that the folder shall take; its position embeddings are interpolated
            to it. By default that of the checkpoint.
        mean: of each channel, one value or three, instead of the kind's.
        std: likewise.
        heads: attention heads in each block; by default width / 64.

    Raises:
        ValueError: the file is no checkpoint of a known layout, some key or shape does not fit, or an argument is
            wrong; nothing is written.
        OSError: a file cannot be read or written.
    """
    checkpoint, out = Path(checkpoint), Path(out).resolve()
    _check_out(out)
    state, notes = read_state(checkpoint)
    backbone = _find_backbone(checkpoint, state, heads)
    kind = _choose_kind(backbone, kind)
    preparation = _preparation(backbone, kind, image_size, mean, std)
    if image_size is not None:
        backbone, resizing = _resize(backbone, image_size, preparation.antialias or backbone.n_registers > 0)
        notes += resizing
    model, changes = _build(backbone)
    sha256 = _digest(checkpoint)
    own_size = backbone.grid * backbone.patch_size
    resize, crop = preparation.resize or own_size, preparation.crop or own_size
    with _whole_folder(out) as temporary:
        model.save_pretrained(temporary)
        _processor(preparation, resize, crop).save_pretrained(temporary)
    return Conversion(
        kind=kind,
        model=type(model).__name__,
        n_parameters=sum(parameter.numel() for parameter in model.parameters()),
        image_size=own_size,
        patch_size=backbone.patch_size,
        width=backbone.width,
        depth=backbone.depth,
        heads=backbone.heads,
        images=f"shorter side resized to {resize} (bicubic), centre {crop} x {crop} kept, "
        f"mean {list(preparation.mean)}, std {list(preparation.std)}",
        n_prefix=1 + backbone.n_registers,
        dropped=dict(sorted(backbone.dropped.items())),
        notes=[*notes, *changes, f"terms of use: {preparation.terms}"],
        sha256=sha256,
    )


def resize_position_embeddings(positions: torch.Tensor, grid: int, antialias: bool) -> torch.Tensor:
    """Bicubic interpolation of learned position embeddings to another square grid of patches.

    ViTModel needs it for any other image size, for LlavaForConditionalGeneration does not ask it to interpolate.
    Sources differ: timm antialiases, and so does DINOv2 for its files with registers; MAE and DINOv2's other files do
    not. (Those others also shift the grid by a tenth of a patch, which transformers' Dinov2Model leaves out, and so
    does this function.)

    Args:
        positions: [1, 1 + N, D], the class token's first; N is the square of the old grid.
        grid: patches along each side.
        antialias: whether to smooth before sampling where the new grid is coarser.

    Returns:
        [1, 1 + grid * grid, D], in the type of `positions`.

    Raises:
        ValueError: `positions` are not one class token and a square grid.
    """
    import torch
    from torch.nn.functional import interpolate

    old = _grid_of(positions)
    patches = positions[:, 1:].float().unflatten(1, (old, old)).permute(0, 3, 1, 2)  # [1, D, old, old]
    resized = interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([positions[:, :1], resized.flatten(2).transpose(1, 2).to(positions.dtype)], 1)


def _resize(backbone: _Backbone, image_size: int, antialias: bool) -> tuple[_Backbone, list[str]]:
    """The backbone with position embeddings for another image size, and a note if they had to change."""
    grid, rest = divmod(image_size, backbone.patch_size)
    if image_size < 1 or rest:
        raise ValueError(f"image_size {image_size} is not a multiple of the patch size {backbone.patch_size}")
    if grid == backbone.grid:
        return backbone, []
    resized = resize_position_embeddings(backbone.weights["pos_embed"], grid, antialias)
    how = "bicubic, antialiased" if antialias else "bicubic"
    note = f"position embeddings interpolated ({how}) from {backbone.grid} x {backbone.grid} to {grid} x {grid} patches"
    return replace(backbone, weights=backbone.weights | {"pos_embed": resized}, grid=grid), [note]


def read_state(path: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Tensors of a checkpoint by name, and notes on what lay beside them.

    Of a training checkpoint the state dict under `teacher`, `model` or `state_dict` is taken, in this order. Nothing
    but tensors, plain values and argparse's Namespace (of MAE's checkpoints) is ever unpickled.

    Raises:
        ValueError: the file holds no state dict, or more than tensors and plain values.
        OSError: it cannot be read.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the checkpoint file in it")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            with torch.serialization.safe_globals([Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, ValueError) as error:
        unsafe = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
        reason = (
            f"it holds {unsafe[1]}, which is no tensor; save its state dict alone"
            if unsafe
            else str(error).strip().split("\n")[0]
        )
        raise ValueError(f"{path} is no checkpoint that can be loaded as tensors only: {reason}") from error
    notes = []
    while not _is_state(content):
        inner = next((name for name in ("teacher", "model", "state_dict") if _has_dict(content, name)), None)
        if inner is None:
            found = f"the keys {', '.join(map(str, list(content)[:5]))}" if isinstance(content, Mapping) else "no dict"
            raise ValueError(f"{path} has {found}; expected tensors by name, or those under teacher, model, state_dict")
        beside = ", ".join(sorted(str(name) for name in content if name != inner))
        notes.append(f"taken from {inner!r}" + (f"; beside it, left out: {beside}" if beside else ""))
        content = content[inner]
    return dict(content), notes


def _is_state(content: Any) -> bool:
    import torch

    return (
        isinstance(content, Mapping)
        and bool(content)
        and all(isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in content.items())
    )


def _has_dict(content: Any, name: str) -> bool:
    return isinstance(content, Mapping) and isinstance(content.get(name), Mapping)


def _find_backbone(path: Path, state: Mapping[str, torch.Tensor], heads: int | None) -> _Backbone:
    """Take the backbone's tensors out of a state dict, and read its sizes off their shapes."""
    plain = _rename(path, state, lambda name: re.sub(r"^(module\.)+", "", name))
    root = next((root for root in ROOTS if f"{root}patch_embed.proj.weight" in plain), None)
    if root is None:
        hint = "; it is in transformers' layout already" if any("patch_embeddings" in name for name in plain) else ""
        raise ValueError(
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
            raise ValueError(f"{path}: {name} is neither under {root} nor a known part beside it")
        else:
            kept[inner] = tensor
    # FSDP training groups blocks into chunks; the second number counts on from chunk to chunk.
    weights = _rename(path, kept, lambda name: re.sub(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1.", name))
    return _measure(path, root, weights, dropped, heads)


def _rename(path: Path, tensors: Mapping[str, torch.Tensor], new_name) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if new_name(name) in renamed:
            raise ValueError(f"{path}: {name} and another entry both are {new_name(name)}")
        renamed[new_name(name)] = tensor
    return renamed


def _measure(
    path: Path, root: str, weights: dict[str, torch.Tensor], dropped: Counter[str], heads: int | None
) -> _Backbone:
    projection = weights["patch_embed.proj.weight"]
    if projection.ndim != 4 or projection.shape[1] != 3 or projection.shape[2] != projection.shape[3]:
        raise ValueError(
            f"{path}: patch_embed.proj.weight has shape {list(projection.shape)}; expected width x 3 x patch x patch"
        )
    width, patch_size = projection.shape[0], projection.shape[2]
    blocks = {int(match[1]) for name in weights if (match := re.match(r"blocks\.(\d+)\.", name))}
    if not blocks:
        raise ValueError(f"{path} has no blocks.0. It has {_some(weights)}")
    if "pos_embed" not in weights:
        raise ValueError(f"{path} has no pos_embed: towers without learned position embeddings are not known here")
    try:
        grid = _grid_of(weights["pos_embed"])
    except ValueError as error:
        raise ValueError(f"{path}: pos_embed: {error}") from None
    if heads is None:
        if width in SHARED_WIDTHS or width % 64:
            raise ValueError(
                f"{path} does not tell how many heads its {width} channels make: transformers of this width have "
                f"heads of other sizes than 64. Say it by --heads"
            )
        heads = width // 64
    if heads < 1 or width % heads:
        raise ValueError(f"heads {heads} does not divide the width {width}")
    return _Backbone(path, root, weights, dropped, width, max(blocks) + 1, heads, patch_size, grid)


def _grid_of(positions: torch.Tensor) -> int:
    shape = list(positions.shape)
    if len(shape) != 3 or shape[0] != 1 or shape[1] < 2 or isqrt(shape[1] - 1) ** 2 != shape[1] - 1:
        raise ValueError(f"shape {shape} is not that of one class token and a square grid of patches")
    return isqrt(shape[1] - 1)


def _choose_kind(backbone: _Backbone, kind: str | None) -> str:
    """The kind asked for, if the keys allow it, or the first that they allow."""
    if backbone.root == "visual.trunk.":
        fitting = ["biomedclip"]
    elif backbone.scaled:
        fitting = ["dinov2", "rad-dino"]
    elif "bert_*" in backbone.dropped:
        fitting = ["mrm"]
    else:
        fitting = ["vit", "mrm"]
    if kind is None:
        return fitting[0]
    if kind not in fitting:
        raise ValueError(f"{backbone.path} has not the keys of kind {kind!r}. Choices: {', '.join(fitting)}")
    if kind == "rad-dino" and (backbone.grid, backbone.patch_size, backbone.n_registers) != (37, 14, 0):
        raise ValueError(
            f"{backbone.path} is not RAD-DINO, which has 37 x 37 patches of 14 x 14 pixels and no registers: it has "
            f"{backbone.grid} x {backbone.grid} of {backbone.patch_size} x {backbone.patch_size} and "
            f"{backbone.n_registers} registers"
        )
    return kind


def _preparation(
    backbone: _Backbone,
    kind: str,
    image_size: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Kind:
    """How images are to be prepared: the kind's way, unless the file beside the checkpoint or the arguments differ."""
    preparation = KINDS[kind]
    beside = backbone.path.parent / "open_clip_config.json"
    if kind == "biomedclip" and beside.is_file():
        preparation = _read_open_clip(beside, preparation)
    if (mean is None) != (std is None):
        raise ValueError("--mean and --std belong together")
    if mean is not None and std is not None:
        for name, values, low in (("mean", mean, 0.0), ("std", std, 1e-3)):
            if len(values) not in (1, 3) or not all(low <= value <= 1 for value in values):
                raise ValueError(f"{name} is {list(values)}; expected one value or three, of a scale from 0 to 1")
        preparation = replace(preparation, mean=(*mean,) * (3 // len(mean)), std=(*std,) * (3 // len(std)))
    elif kind == "vit":
        warnings.warn(
            "Keys do not tell how images were normalised; ImageNet's mean and standard deviation are written. Give "
            "--mean and --std if the source has others",
            stacklevel=3,
        )
    if image_size is not None:
        preparation = replace(preparation, resize=image_size, crop=image_size)
    return preparation


def _read_open_clip(path: Path, preparation: Kind) -> Kind:
    """Mean and standard deviation out of open_clip's file, which must otherwise say nothing unusual."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("preprocess_cfg") or {}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not open_clip's: {error}") from error
    for name, usual in (("interpolation", "bicubic"), ("resize_mode", "shortest"), ("mode", "RGB")):
        if found.get(name, usual) != usual:
            raise ValueError(f"{path}: preprocess_cfg.{name} is {found[name]!r}. Choices here: {usual}")
    return replace(preparation, mean=found.get("mean") or preparation.mean, std=found.get("std") or preparation.std)


def _processor(preparation: Kind, resize: int, crop: int) -> BaseImageProcessor:
    """Shorter side resized (bicubic), centre square, values from 0 to 1 normalised."""
    from transformers import BitImageProcessor

    return BitImageProcessor(
        size={"shortest_edge": resize},
        crop_size={"height": crop, "width": crop},
        image_mean=list(preparation.mean),
        image_std=list(preparation.std),
    )


def _build(backbone: _Backbone) -> tuple[PreTrainedModel, list[str]]:
    """The model with the backbone's weights, and notes on what had to be added or changed."""
    import torch

    with torch.device("meta"):
        model = _empty_dinov2(backbone) if backbone.scaled else _empty_vit(backbone)
    wanted = {name: tensor.shape for name, tensor in model.state_dict().items()}
    names = _names(backbone, wanted)
    _check_names(backbone, names)
    weights: dict[str, torch.Tensor] = {}
    misfits = []
    for name, targets in names.items():
        tensor = backbone.weights[name]
        rows = [wanted[target][0] for target in targets]  # more than one target: parts of one fused projection
        shape = [sum(rows), *wanted[targets[0]][1:]]
        if list(tensor.shape) != shape:
            misfits.append(f"{name} is {list(tensor.shape)}, not {shape}")
            continue
        # Copies: parts of one tensor would look like tied weights when they are saved.
        weights |= {
            target: part.to(torch.float32, copy=True) for target, part in zip(targets, tensor.split(rows), strict=True)
        }
    if misfits:
        raise ValueError(f"{backbone.path}: {len(misfits)} shapes do not fit, e.g. {'; '.join(misfits[:3])}")
    notes = []
    for name in sorted(set(wanted) - set(weights)):  # _check_names leaves only these: a mask token, a pooler
        weights[name] = torch.zeros(wanted[name])
        notes.append(f"{name} is not in the checkpoint: zeros, as no random numbers may stand for it")
    if others := {str(backbone.weights[name].dtype).removeprefix("torch.") for name in names} - {"float32"}:
        notes.append(f"{', '.join(sorted(others))} weights cast to float32")
    if backbone.width // backbone.heads != 64:
        notes.append(f"{backbone.heads} heads, as told")
    model.load_state_dict(weights, strict=True, assign=True)
    return model, notes


def _empty_dinov2(backbone: _Backbone) -> PreTrainedModel:
    import transformers as hf

    swiglu = "blocks.0.mlp.w3.weight" in backbone.weights
    settings: dict[str, Any] = {
        "hidden_size": backbone.width,
        "num_hidden_layers": backbone.depth,
        "num_attention_heads": backbone.heads,
        "mlp_ratio": _mlp_ratio(backbone, swiglu),
        "image_size": backbone.grid * backbone.patch_size,
        "patch_size": backbone.patch_size,
        "qkv_bias": "blocks.0.attn.qkv.bias" in backbone.weights,
        "use_swiglu_ffn": swiglu,
        "layer_norm_eps": 1e-6,
    }
    if backbone.n_registers:
        config = hf.Dinov2WithRegistersConfig(**settings, num_register_tokens=backbone.n_registers)
        return hf.Dinov2WithRegistersModel(config)
    return hf.Dinov2Model(hf.Dinov2Config(**settings, use_mask_token="mask_token" in backbone.weights))


def _mlp_ratio(backbone: _Backbone, swiglu: bool) -> int:
    """The whole number from which Dinov2Config makes the width of the hidden layer.

    With SwiGLU that is two thirds of ratio times width, rounded up to a multiple of 8.
    """
    name = "blocks.0.mlp.w12.weight" if swiglu else "blocks.0.mlp.fc1.weight"
    if name not in backbone.weights:
        raise ValueError(f"{backbone.path} has no {name}")
    rows = backbone.weights[name].shape[0]
    for ratio in range(1, 17):
        hidden = ratio * backbone.width
        if rows == (2 * ((hidden * 2 // 3 + 7) // 8 * 8) if swiglu else hidden):
            return ratio
    raise ValueError(f"{backbone.path}: no whole mlp_ratio makes the {rows} rows of {name} from {backbone.width}")


def _empty_vit(backbone: _Backbone) -> PreTrainedModel:
    """A ViTModel with its pooler, which AutoModel would otherwise make up at random at every loading."""
    from transformers import ViTConfig, ViTModel

    if "blocks.0.mlp.fc1.weight" not in backbone.weights:
        raise ValueError(f"{backbone.path} has no blocks.0.mlp.fc1.weight")
    config = ViTConfig(
        hidden_size=backbone.width,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.heads,
        intermediate_size=backbone.weights["blocks.0.mlp.fc1.weight"].shape[0],
        image_size=backbone.grid * backbone.patch_size,
        patch_size=backbone.patch_size,
        qkv_bias="blocks.0.attn.qkv.bias" in backbone.weights,
        layer_norm_eps=1e-6,  # the class's own default is 1e-12
    )
    return ViTModel(config)


def _names(backbone: _Backbone, wanted: Collection[str]) -> dict[str, list[str]]:
    """Name in the checkpoint -> names in the model `wanted`, of which there are several for fused projections."""
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
        del names["mask_token"]  # Dinov2WithRegistersModel always has one
    return names


def _check_names(backbone: _Backbone, names: Collection[str]) -> None:
    """Make sure that the model uses every weight of the backbone and lacks none.

    Raises:
        ValueError: naming those that have no place, and those that are missing.
    """
    faults = []
    unused = [name for name in backbone.weights if name not in names]
    if "mask_token" in unused:  # a masked autoencoder's, which its decoder takes in
        unused.remove("mask_token")
        backbone.dropped["mask_token"] += 1
    if unused:
        model = "DINOv2" if backbone.scaled else "ViTModel"
        faults.append(f"{model} has no place for {len(unused)} of its entries: {_some(unused)}")
    if missing := [name for name in names if name not in backbone.weights]:
        faults.append(f"{len(missing)} are missing: {_some(missing)}")
    if faults:
        raise ValueError(f"{backbone.path}: {'; '.join(faults)}")


def _some(names: Collection[str]) -> str:
    return ", ".join(list(names)[:4]) + (" …" if len(names) > 4 else "")


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is there already, and not an empty folder; name a new one by --out")


@contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a temporary folder beside `out` to write to; rename it to `out` only if nothing failed."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        if out.exists():
            out.rmdir()
        os.replace(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
