"""Features centered and scaled per channel while the projector trains; folded into its first layer when it is saved.

Features of a pretrained tower have a large part that is the same in all patches of all images. LLaVA's projector has no
norm, so a small language model that is trained from random weights has to unlearn this part first. To fold it in before
training would not do: the optimizer's steps would go along the common part again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoder.features import FeatureStore
from generator.drafter import Drafter
from raddraft.errors import UnavailableError
from raddraft.images import ImageError

MOST_IMAGES = 1000
"""Images that the statistics are taken of, spread evenly over the training split."""
LEAST = 0.01
"""Smallest standard deviation that a channel is divided by, as a share of the mean one: noise is not blown up."""


@dataclass(frozen=True)
class Standard:
    """Mean and standard deviation of every channel of the features that a projector reads."""

    mean: torch.Tensor  # [D]
    std: torch.Tensor  # [D]

    @classmethod
    def measure(cls, store: FeatureStore, images: Sequence[Path], first: int) -> Standard:
        """Over all patches of up to MOST_IMAGES of the images.

        Args:
            store: with the features [T, D] of every image.
            images: of the training split.
            first: how many of the T come before the patches that the projector reads.

        Raises:
            UnavailableError: none of the images can be read.
        """
        total = squares = torch.zeros(1, dtype=torch.float64)
        count = 0
        for path in images[:: math.ceil(len(images) / MOST_IMAGES)]:
            try:
                patches = store[path][first:].double()
            except (ImageError, OSError):
                continue  # training names it
            total, squares, count = total + patches.sum(0), squares + patches.square().sum(0), count + len(patches)
        if not count:
            raise UnavailableError("train.standardize: no image to take the statistics of can be read")
        mean = total / count
        std = (squares / count - mean.square()).clamp(min=0).sqrt()
        return cls(mean.float(), std.clamp(min=max(LEAST * std.mean().item(), 1e-6)).float())

    def attach(self, projector: nn.Module) -> None:
        """Standardize whatever the projector is given, from now on."""

        def standardize(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            features, *rest = inputs
            mean, std = self.mean.to(features.device), self.std.to(features.device)
            return ((features - mean) / std).to(features.dtype), *rest

        projector.register_forward_pre_hook(standardize)

    @torch.no_grad()
    def fold(self, layer: nn.Linear) -> None:
        """Let a layer that was trained behind `attach` give the same from features as they are."""
        mean, std = self.mean.to(layer.weight.device), self.std.to(layer.weight.device)
        weight = layer.weight.float() / std
        layer.bias.copy_(layer.bias - weight @ mean)
        layer.weight.copy_(weight)


def standardize(drafter: Drafter, store: FeatureStore, images: Iterable[Iterable[Path]]) -> Standard:
    """Standardize what a model's projector reads from now on.

    Args:
        drafter: whose model is to be trained.
        store: `Drafter.features` of every image.
        images: of each training example.

    Raises:
        UnavailableError: as `Standard.measure`.
    """
    first = int(drafter.model.config.vision_feature_select_strategy == "default")
    standard = Standard.measure(store, list(chain.from_iterable(images)), first)
    standard.attach(drafter.model.model.multi_modal_projector)
    return standard
