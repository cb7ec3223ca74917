"""Architectures of timm as towers: a state dict -> a folder for transformers' timm wrapper, or a model as it is."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from encoder.cards import Checkpoint
from encoder.checkpoints import check_state
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


def save_timm(state: dict[str, torch.Tensor], architecture: str, out: Path) -> list[str]:
    """Write an architecture of timm with these weights, without classifier, and timm's preparation of its images.

    Entries go by name. Where no name fits, as in a port from another framework, they go by order, if every shape fits.

    Returns:
        Notes on the folder.

    Raises:
        RadDraftError: timm has no such architecture, or the entries do not fit it.
    """
    import timm
    from transformers import TimmWrapperConfig, TimmWrapperModel

    if architecture not in timm.list_models():
        similar = ", ".join(timm.list_models(f"*{architecture.split('_')[0]}*")[:8])
        raise RadDraftError(f"timm has no architecture {architecture!r}. Similar: {similar or 'none'}")
    whole: Any = timm.create_model(architecture, pretrained=False)
    settings = dict(whole.pretrained_cfg)
    config = TimmWrapperConfig.from_dict({"architecture": architecture, "num_classes": 0, "model_args": {}})
    config.pretrained_cfg = settings | {"num_classes": 0}
    model: Any = TimmWrapperModel(config)
    own = model.timm_model.state_dict()
    named, notes = _match(state, whole.state_dict(), own, architecture)
    model.timm_model.load_state_dict({name: named[name] for name in own})
    model.save_pretrained(out)
    dropped = len(state) - len(own)
    notes += [f"dropped: {dropped} entries of the classifier"] if dropped else []
    size, mean, std = settings["input_size"], settings["mean"], settings["std"]
    notes.append(f"images: {size[-1]} x {size[-2]} pixels, {settings['interpolation']}, mean {mean}, std {std}")
    return notes


def _match(
    state: dict[str, torch.Tensor],
    whole: dict[str, torch.Tensor],
    wanted: dict[str, torch.Tensor],
    architecture: str,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The wanted entries under timm's names, of a network with or without a classifier of any size."""
    state = {name.removeprefix("module."): value for name, value in state.items()}
    notes = []
    shapes, own_shapes = ([value.shape for value in part.values()] for part in (state, whole))
    if not state.keys() & whole.keys() and shapes == own_shapes:
        state = dict(zip(whole, state.values(), strict=True))
        notes.append(f"no name is timm's: {len(whole)} entries were taken in their order, every shape fits")
    classifier = whole.keys() - wanted.keys()
    rest = {name: value for name, value in state.items() if name not in classifier}
    check_state(
        rest,
        {name: value.shape for name, value in wanted.items()},
        f"The checkpoint does not fit {architecture}, by name or by order",
    )
    return rest, notes


def build_timm(file: Path, state: Mapping[str, torch.Tensor], checkpoint: Checkpoint, side: int | None) -> Any:
    """The network of a published checkpoint, in transformers' timm wrapper (float32, eval mode).

    A first layer for one gray channel gets a third of its weights for each of three equal ones.

    Args:
        file: for messages.
        state: its entries.
        checkpoint: the architecture and the names of the entries.
        side: pixels of the square that the network takes.

    Raises:
        RadDraftError: entries that have no place, are missing or do not fit; they are named.
    """
    from transformers import TimmWrapperConfig, TimmWrapperModel

    from encoder.ark import ProjectedTimm, ProjectedTimmConfig

    projected = checkpoint.projection is not None
    arguments = dict(checkpoint.expected) | _rotary_grid(file, state, checkpoint.expected)
    settings = {"architecture": checkpoint.architecture, "num_classes": 0, "model_args": arguments}
    settings |= {"projection": checkpoint.projection} if projected else {}
    config = (ProjectedTimmConfig if projected else TimmWrapperConfig).from_dict(settings)
    config.image_size, config.patch_size = side, checkpoint.patch_size
    kind: Any = ProjectedTimm if projected else TimmWrapperModel
    with torch.device("meta"):  # spares the time of random weights
        own = kind(config).timm_model.state_dict()
    named: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        plain = re.sub(r"^(module\.)+", "", name)
        if any(re.match(pattern, plain) for pattern in checkpoint.dropped):
            continue
        for pattern, replacement in checkpoint.renames:
            plain = re.sub(pattern, replacement, plain)
        if plain in named:
            raise RadDraftError(f"{file}: {name} and another entry both are {plain}")
        if plain in own and value.ndim == 4 and (value.shape[1], own[plain].shape[1]) == (1, 3):
            value = value.expand(-1, 3, -1, -1) / 3
        named[plain] = value.float() if value.is_floating_point() else value
    what = f"{file} is not {checkpoint.file} or a file like it"
    check_state(named, {name: value.shape for name, value in own.items()}, what)
    return kind.from_pretrained(None, config=config, state_dict={f"timm_model.{name}": named[name] for name in own})


def _rotary_grid(file: Path, state: Mapping[str, torch.Tensor], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The grid that rotary positions are scaled to, where the file has another than the arguments.

    EVA-02's files hold a table of cosines, row after row of patches; its first frequency is 1, so that the second patch
    of the first row has the cosine of its position. (EVA-X's own eva_x.py and classification code differ for the base
    model: 14 and 16.)
    """
    table = next((state[name] for name in ("rope.freqs_cos", "module.rope.freqs_cos") if name in state), None)
    if table is None or "ref_feat_shape" not in arguments:
        return {}
    n_tokens, width = table.shape
    grid = round(math.isqrt(n_tokens) * math.acos(float(table[1, width // 2])))
    if [grid, grid] == list(arguments["ref_feat_shape"]):
        return {}
    warnings.warn(f"{file}: rotary positions are those of a grid of {grid}, as its own table has them", stacklevel=4)
    return {"ref_feat_shape": [grid, grid]}


def plain_processor(processor: BaseImageProcessor) -> BaseImageProcessor:
    """The same preparation by a processor that, unlike that of timm's wrapper, can be saved inside another one.

    Pixels differ by rounding, up to 1 of 255; where an odd number is cut off, the crop may be shifted by one pixel.

    Raises:
        RadDraftError: timm crops or pads these images in a way that no such processor has.
    """
    from transformers import BitImageProcessor, TimmWrapperImageProcessor
    from transformers.image_utils import PILImageResampling

    if not isinstance(processor, TimmWrapperImageProcessor):
        return processor
    settings = processor.data_config
    height, width = settings["input_size"][-2:]
    if height != width or settings["crop_mode"] != "center":
        raise RadDraftError(
            f"timm prepares images of {height} x {width} pixels with crop_mode {settings['crop_mode']!r} for this "
            "tower; a report model can only take a center square"
        )
    return BitImageProcessor(
        size={"shortest_edge": math.floor(height / settings["crop_pct"])},
        crop_size={"height": height, "width": width},
        resample=getattr(PILImageResampling, settings["interpolation"].upper()),
        image_mean=list(settings["mean"]),
        image_std=list(settings["std"]),
    )
