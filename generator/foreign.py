"""Vision towers that a LLaVA model cannot hold (CNNs, ResNet hybrids, Swin …), run in place of its own tower.

The model's class holds an empty placeholder of the tower's width instead, so a saved model is an ordinary folder, with
the tower in its own format in the folder `tower` inside it. Where this project is not installed, pass projected
features (the placeholder refuses pixels):

    tower = AutoModel.from_pretrained("model/tower")
    patches = tower(pixel_values).last_hidden_state.flatten(2).transpose(1, 2)  # of a CNN: [B, H * W, D]
    projected = list(model.model.multi_modal_projector(patches))
    model.generate(input_ids=…, mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=projected)})
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from encoder.timm_folder import plain_processor
from encoder.tower import Tower

FOLDER = "tower"


class ForeignTower(nn.Module):
    """Stands in for a LLaVA model's tower; its one hidden state is the tower's pooled vector, then the patches.

    That is the form of a vision transformer with a class token, and of what `FeatureConfig(keep="tokens")` gives.
    """

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        self.tower = Tower(tower.name, tower.model, plain_processor(tower.processor))
        self.model = tower.model

    @property
    def patch_size(self) -> int:
        """Pixels from one patch to the next."""
        return self.tower.black_pixels.shape[-2] // self.tower.shape[0]

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        """pixel_values [B, 3, height, width] -> hidden_states of one entry, [B, 1 + H * W, D]."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        encoded = self.tower.encode(pixel_values)
        state = torch.cat([encoded.pooled[:, None], encoded.patches.flatten(1, 2)], dim=1)
        return BaseModelOutputWithPooling(hidden_states=(state,))  # type: ignore[arg-type]

    @torch.no_grad()
    def placeholder(self) -> Any:
        """What the model's class holds in its place: no blocks, all zero, for images of one pixel."""
        from transformers import CLIPVisionConfig, CLIPVisionModel

        config = CLIPVisionConfig(
            hidden_size=self.tower.shape[2],
            intermediate_size=1,
            num_hidden_layers=0,
            num_attention_heads=1,
            image_size=1,
            patch_size=1,
        )
        placeholder = CLIPVisionModel(config)
        for parameter in placeholder.parameters():
            parameter.zero_()
        return placeholder

    def save(self, folder: Path) -> str:
        """Save the tower in a model's folder; return the name of its folder, or its own if it has no weights."""
        if not hasattr(self.model, "save_pretrained"):
            return self.tower.name
        self.model.save_pretrained(folder / FOLDER)
        self.tower.processor.save_pretrained(folder / FOLDER)
        return FOLDER
