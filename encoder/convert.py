"""Checkpoints in other layouts -> folders to load as towers, once.

Vision transformers, whose layouts `encoder.checkpoints` reads, become ordinary Hugging Face folders:

- DINOv2, and RAD-DINO's `backbone_compatible.safetensors` -> Dinov2Model or Dinov2WithRegistersModel;
- BiomedCLIP, MRM (Zhou et al., ICLR 2023), plain vision transformers and masked autoencoders -> ViTModel.

BioViL-T's image model, a ResNet-50, becomes a folder of `encoder.biovil`; others go through `encoder.timm_folder`.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from encoder.cards import IMAGENET, MRM, OPENAI_CLIP, RAD_DINO, Images, Statistics
from encoder.checkpoints import Backbone, build_transformer, find_backbone, read_state, resize
from encoder.official import make_processor
from raddraft.errors import RadDraftError
from raddraft.files import digest_file, whole_folder
from raddraft.locks import holds_out

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Kind:
    """What the keys of a layout do not tell: how its images were prepared, and where its terms of use are."""

    mean: Statistics
    """Mean of each channel, of values between 0 and 1."""
    std: Statistics
    """Standard deviation of each channel."""
    terms: str
    """Where the terms of use of the published weights are."""
    resize: int | None = None
    """Length in pixels to which the shorter side is resized; None: the size of the position embeddings."""
    crop: int | None = None
    """Side in pixels of the center square that is kept; None: the size of the position embeddings."""
    antialias: bool = True
    """Whether the source resizes its position embeddings with antialiasing."""
    gray_mapping: str = "window"
    """How the source makes 8-bit images, see `raddraft.images`."""


KINDS = {
    "dinov2": Kind(*IMAGENET, "github.com/facebookresearch/dinov2", resize=256, crop=224, antialias=False),
    "rad-dino": Kind(*RAD_DINO, "huggingface.co/microsoft/rad-dino", antialias=False, gray_mapping="minmax"),
    "biomedclip": Kind(*OPENAI_CLIP, "huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"),
    # Both numbers: main_pretrain.py and NIH_ChestX-ray/utils/data_utils.py of the repository. It starts from MAE's
    # weights, whose position embeddings are resized without antialiasing (util/pos_embed.py of facebookresearch/mae).
    "mrm": Kind(*MRM, "github.com/RL4M/MRM-pytorch", antialias=False),
    "vit": Kind(*IMAGENET, "those of its source"),
}


@dataclass
class Conversion:
    """What was read and written."""

    kind: str
    model: PreTrainedModel
    """As it is in the folder."""
    architecture: str
    image_size: int
    """Side in pixels of the square input."""
    patch_size: int
    """In pixels."""
    n_prefix: int
    """Tokens before the patches: class and registers."""
    images: str
    """How the folder's image processor prepares images."""
    terms: str
    """Where the terms of use of the weights are."""
    gray_mapping: str = "window"
    """How 8-bit images are to be made before that, see `raddraft.images`."""
    dropped: dict[str, int] = field(default_factory=dict)
    """Part of the checkpoint -> number of its entries that were left out."""
    notes: list[str] = field(default_factory=list)
    """Other differences between the folder and the checkpoint."""
    sha256: str | None = None
    """Digest of the checkpoint file."""

    def describe(self) -> str:
        """Lines to print."""
        size, patch = f"{self.image_size} x {self.image_size}", f"{self.patch_size} x {self.patch_size}"
        n_patches = (self.image_size // self.patch_size) ** 2
        dropped = ", ".join(f"{part} ({count})" for part, count in self.dropped.items())
        lines = [
            f"{type(self.model).__name__}, kind {self.kind}, {self.model.num_parameters() / 1e6:.1f} M parameters",
            self.architecture,
            f"{size} pixels are {n_patches} patches of {patch}; prefix tokens: {self.n_prefix}",
            f"images: {self.images}",
            f"dropped: {dropped or 'nothing'}",
            *self.notes,
            f"terms of use: {self.terms}",
            f"sha256 of the checkpoint: {self.sha256}",
        ]
        return "\n  ".join(lines)


@holds_out
def convert(
    checkpoint: str | Path,
    out: str | Path,
    kind: str | None = None,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    heads: int | None = None,
    timm: str | None = None,
) -> Conversion:
    """Write a checkpoint's image encoder as a folder: config.json, model.safetensors (float32), its image processor.

    Args:
        checkpoint: file of tensors: .safetensors, or whatever torch.load reads with weights_only=True.
        out: folder to make; it may exist if it is empty.
        kind: one of `KINDS`; by default the first that the keys fit. This and the other arguments are for vision
            transformers; BioViL-T takes none of them.
        image_size: side in pixels of the folder's square input; position embeddings are interpolated to it. By default
            that of the checkpoint.
        mean: of each channel, 0 to 1, one value or three, instead of the kind's.
        std: standard deviation of each channel, as `mean`.
        heads: attention heads in each block; by default width / 64.
        timm: name of a timm architecture, whose state dict the checkpoint is; without the other arguments.

    Raises:
        RadDraftError: the file is not a checkpoint of a known layout, a key or shape does not fit, or an argument is
            wrong; nothing is written.
        OSError: a file cannot be read or written.
    """
    checkpoint, out = Path(checkpoint), Path(out).resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RadDraftError(f"{out} exists and is not an empty folder; choose another --out")
    state, notes = read_state(checkpoint)
    is_biovil = "encoder.backbone_to_vit.weight" in state
    if is_biovil or timm:
        given = {"kind": kind, "image_size": image_size, "mean": mean, "std": std, "heads": heads}
        what = "is BioViL-T's image model" if is_biovil else f"is read as timm's {timm}"
        if names := [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]:
            raise RadDraftError(f"{checkpoint} {what}, which does not take {', '.join(names)}")
    with whole_folder(out) as folder:
        if is_biovil:
            done = _write_biovil(checkpoint, state, folder)
        elif timm:
            done = _write_timm(state, timm, folder)
        else:
            backbone = find_backbone(checkpoint, state, heads)
            kind = _choose_kind(backbone, kind)
            preparation = _preparation(backbone, kind, image_size, mean, std)
            if image_size is not None:
                backbone, resizing = resize(backbone, image_size, preparation.antialias or backbone.n_registers > 0)
                notes += resizing
            done = _write_transformer(backbone, kind, preparation, folder)
    return replace(done, notes=[*notes, *done.notes], sha256=digest_file(checkpoint))


def _write_transformer(backbone: Backbone, kind: str, preparation: Kind, folder: Path) -> Conversion:
    model, notes = build_transformer(backbone)
    side = backbone.image_size
    resized, crop = preparation.resize or side, preparation.crop or side
    model.save_pretrained(folder)
    mean, std = preparation.mean, preparation.std
    make_processor(Images(crop, mean, std, resize=resized)).save_pretrained(folder)
    return Conversion(
        kind=kind,
        model=model,
        architecture=f"{backbone.depth} blocks, {backbone.width} wide, {backbone.heads} heads; "
        f"position embeddings for {side} x {side} pixels",
        image_size=side,
        patch_size=backbone.patch_size,
        n_prefix=1 + backbone.n_registers,
        images=f"shorter side resized to {resized} (bicubic), center {crop} x {crop} kept, "
        f"mean {list(preparation.mean)}, std {list(preparation.std)}",
        terms=preparation.terms,
        gray_mapping=preparation.gray_mapping,
        dropped=dict(sorted(backbone.dropped.items())),
        notes=notes,
    )


def _write_biovil(checkpoint: Path, state: dict[str, torch.Tensor], folder: Path) -> Conversion:
    from encoder import biovil

    model, dropped = biovil.from_official(state, checkpoint)
    model.save_pretrained(folder)
    config, side = model.config, model.config.image_size
    parts = Counter(next(part for part in biovil.DROPPED if name.startswith(part)).rstrip(".") for name in dropped)
    return Conversion(
        kind="biovil-t",
        model=model,
        architecture="ResNet-50, 512 wide: 256 of the image, 256 in place of a prior image",
        image_size=side,
        patch_size=config.patch_size,
        n_prefix=0,
        images=f"shorter side resized to {config.shortest_edge} (bilinear), center {side} x {side} kept",
        terms="huggingface.co/microsoft/BiomedVLP-BioViL-T",
        gray_mapping="minmax",
        dropped=dict(sorted(parts.items())),
    )


def _write_timm(state: dict[str, torch.Tensor], architecture: str, folder: Path) -> Conversion:
    from encoder.timm_folder import save_timm
    from encoder.towers import load_tower

    notes = save_timm(state, architecture, folder)
    tower = load_tower(str(folder))
    (rows, _, width), side = tower.shape, tower.black_pixels.shape[-1]
    return Conversion(
        kind="timm",
        model=tower.model,
        architecture=f"{architecture}, {width} wide",
        image_size=side,
        patch_size=side // rows,
        n_prefix=0,
        images="as timm prepares them",
        terms="those of its source",
        notes=notes,
    )


def _choose_kind(backbone: Backbone, kind: str | None) -> str:
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
        raise RadDraftError(f"{backbone.path} does not have the keys of kind {kind!r}. Choices: {', '.join(fitting)}")
    if kind == "rad-dino" and (backbone.grid, backbone.patch_size, backbone.n_registers) != (37, 14, 0):
        raise RadDraftError(
            f"{backbone.path} is not RAD-DINO, which has 37 x 37 patches of 14 x 14 pixels and no registers: it has "
            f"{backbone.grid} x {backbone.grid} of {backbone.patch_size} x {backbone.patch_size} and "
            f"{backbone.n_registers} registers"
        )
    return kind


def _preparation(
    backbone: Backbone,
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
        raise RadDraftError("--mean and --std go together; give both or neither")
    if mean is not None and std is not None:
        for name, values, low in (("mean", mean, 0.0), ("std", std, 1e-3)):
            if len(values) not in (1, 3) or not all(low <= value <= 1 for value in values):
                raise RadDraftError(f"{name} is {list(values)}; expected one value or three, on a scale from 0 to 1")
        preparation = replace(preparation, mean=_three(mean), std=_three(std))
    elif kind == "vit":
        warnings.warn(
            "The checkpoint does not tell how images were normalized; ImageNet's mean and standard deviation are "
            "written. Give --mean and --std if the source has others",
            stacklevel=3,
        )
    return replace(preparation, resize=image_size, crop=image_size) if image_size is not None else preparation


def _three(values: Sequence[float]) -> Statistics:
    """One value for all channels, or one for each."""
    red, green, blue = (*values,) * (3 // len(values))
    return red, green, blue


def _read_open_clip(path: Path, preparation: Kind) -> Kind:
    """Mean and standard deviation out of open_clip's file, which must otherwise say nothing unusual."""
    try:
        found = json.loads(path.read_text(encoding="utf-8")).get("preprocess_cfg") or {}
    except (ValueError, AttributeError) as error:
        raise RadDraftError(f"{path} is not an open_clip config: {error}") from error
    for name, usual in (("interpolation", "bicubic"), ("resize_mode", "shortest"), ("mode", "RGB")):
        if found.get(name, usual) != usual:
            raise RadDraftError(f"{path}: preprocess_cfg.{name} is {found[name]!r}. Choices here: {usual}")
    return replace(preparation, mean=found.get("mean") or preparation.mean, std=found.get("std") or preparation.std)
