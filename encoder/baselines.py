"""Towers to stand beside real ones: raw pixels, the floor that every encoder has to beat.

A model with random weights is the other one; `load_tower("random:NAME")` makes it from the config of any tower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


@dataclass
class PixelsConfig:
    """What there is to choose of raw pixels."""

    image_size: int = 224
    """Side of the pictures that the processor makes."""
    side: int = 16
    """Side of the grid of mean grey values."""


class Pixels(nn.Module):
    """The centre square as side x side mean grey values: one vector, and no patches but the picture as a whole."""

    def __init__(self, config: PixelsConfig | None = None) -> None:
        super().__init__()
        self.config = config or PixelsConfig()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)  # tells device and type

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values [B, 3, H, W] -> vector [B, side * side], patches [B, 1, 1, side * side]."""
        grey = pixel_values.mean(1, keepdim=True) * self.scale
        vector = nn.functional.adaptive_avg_pool2d(grey, self.config.side).flatten(1)
        return vector, vector[:, None, None]


def pixels_processor(config: PixelsConfig) -> BaseImageProcessor:
    """Shorter side to image_size, centre square, grey values in 0 to 1."""
    from transformers import BitImageProcessor

    return BitImageProcessor(
        size={"shortest_edge": config.image_size},
        crop_size={"height": config.image_size, "width": config.image_size},
        do_normalize=False,
    )
