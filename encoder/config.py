"""Which encoder, how it reads images, how it runs and what is kept: the configs of every command that runs a tower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raddraft.errors import RadDraftError
from raddraft.ranges import Count, Whole, check_ranges
from raddraft.studies import GrayMapping

if TYPE_CHECKING:
    from encoder.tower import Tower

DType = Literal["float16", "bfloat16", "float32", "float8"]


@dataclass
class ComputeConfig:
    """How encoders run, and where their features are stored."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Data type in which the tower computes; the 16-bit types are for GPUs and for CPUs that support bfloat16."""
    batch_size: Count = 32
    """Images per forward pass."""
    workers: Whole = 2
    """Processes that decode and prepare images."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps …; auto takes the first accelerator."""
    features: Path = Path("features")
    """Folder of stored features, shared by all commands."""
    dtype: DType = "float16"
    """Data type of stored features. float8: each token as 8-bit numbers with a scale of its own, half of float16's
    space; pooled vectors and mean patches stay float16."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass
class EncoderConfig(ComputeConfig):
    """Encoder."""

    tower: str = ""
    """Short name (`raddraft towers` lists them), hub id or folder; NAME:FILE for a tower whose authors publish a file;
    features:FILE for features written elsewhere; "pixels" for 16 x 16 raw pixels; "random:" before a name for the same
    architecture with random weights."""
    image_size: Count | None = None
    """Side of the tower's square input in pixels. By default the size its image processor states."""
    gray_mapping: GrayMapping = "window"
    """How gray values become 8 bits: the DICOM window, min-max (as RAD-DINO's authors), or percentiles 0.5 to 99.5."""

    def load(self, backend: Literal["torchvision", "pil"] = "torchvision") -> Tower:
        """The tower on its device, in its data type; for `backend` and errors see `encoder.towers.load_tower`."""
        import torch

        from encoder.towers import load_tower
        from raddraft.processes import pick_device, warn_if_slow

        if not self.tower:
            raise RadDraftError("No tower is named; give --tower, e.g. --tower rad-dino")
        tower = load_tower(self.tower, self.image_size, backend)
        if self.precision != "float32":
            _ = tower.digest  # of the weights as they were loaded
        device, dtype = pick_device(self.device), getattr(torch, self.precision)
        warn_if_slow(dtype, device)
        tower.model.to(device, dtype)
        return tower


@dataclass(frozen=True)
class FeatureConfig:
    """What is kept of each image."""

    keep: Literal["pooled", "tokens"] = "pooled"
    """pooled: the pooled vector (class token, or what the tower pools) and the mean patch; tokens: every token besides,
    for patch grids and to train report models."""
    layers: tuple[int, ...] | None = None
    """Indices of hidden states. By default the tower's final output, after the last LayerNorm."""
    average: bool = False
    """Average the layers instead of concatenating them."""

    def __post_init__(self) -> None:
        if self.layers == ():
            raise RadDraftError("layers is empty; leave it out to store the tower's final output")
        if self.average and len(self.layers or ()) < 2:
            raise RadDraftError(f"average needs two or more layers, got {self.layers}")
        if self.keep not in ("pooled", "tokens"):
            raise RadDraftError(f"keep is {self.keep!r}. Choices: pooled, tokens (grid and hidden of earlier versions)")
