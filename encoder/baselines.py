"""Raw pixels as a tower: the floor that every encoder has to beat.

The other baseline, a model with random weights, is `load_tower("random:NAME")`.
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
    """Sizes of the raw-pixel baseline."""

    image_size: int = 224
    """Side in pixels of the images that the processor makes."""
    side: int = 16
    """Side of the grid of mean gray values."""


class Pixels(nn.Module):
    """The center square as side x side mean gray values: one vector, and one patch, the whole image."""

    def __init__(self, config: PixelsConfig | None = None) -> None:
        super().__init__()
        self.config = config or PixelsConfig()
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)  # tells device and type

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values [B, 3, H, W] -> vector [B, side * side], patches [B, 1, 1, side * side]."""
        gray = pixel_values.mean(1, keepdim=True) * self.scale
        vector = nn.functional.adaptive_avg_pool2d(gray, self.config.side).flatten(1)
        return vector, vector[:, None, None]


def pixels_processor(config: PixelsConfig) -> BaseImageProcessor:
    """Shorter side to image_size, center square, gray values in 0 to 1."""
    from transformers import BitImageProcessor

    return BitImageProcessor(
        size={"shortest_edge": config.image_size},
        crop_size={"height": config.image_size, "width": config.image_size},
        do_normalize=False,
    )
