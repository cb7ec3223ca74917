"""A state dict of any timm architecture -> a folder that transformers' timm wrapper loads as a tower."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

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
