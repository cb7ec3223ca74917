"""Ark+ (Ma et al., Nature 2025; github.com/jlianglab/Ark): timm's Swin transformer behind one linear projector.

The authors' embedding is the projection of the mean of the last features. Both are linear, so it is the mean of the
projected patches, which is what a tower without a class token pools.

After `import encoder.ark`, AutoConfig and AutoModel load the folders that a report model keeps of such a tower.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, TimmWrapperConfig, TimmWrapperModel
from transformers.modeling_outputs import BaseModelOutput


class ProjectedTimmConfig(TimmWrapperConfig):
    """An architecture of timm and the width behind its projector."""

    model_type = "raddraft-projected-timm"
    projection: int = 1376


class ProjectedTimm(TimmWrapperModel):
    """pixel_values [B, 3, H, W] -> last_hidden_state [B, h * w, projection], of networks that end in [B, h, w, D]."""

    config_class = ProjectedTimmConfig

    def __init__(self, config: ProjectedTimmConfig) -> None:
        super().__init__(config)
        self.timm_model: Any = self.timm_model
        self.timm_model.projector = nn.Linear(self.timm_model.num_features, config.projection)

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutput:
        """The projected features of every patch."""
        features = self.timm_model.forward_features(pixel_values.to(self.device, self.dtype))  # [B, h, w, D]
        return BaseModelOutput(last_hidden_state=self.timm_model.projector(features).flatten(1, 2))


AutoConfig.register(ProjectedTimmConfig.model_type, ProjectedTimmConfig, exist_ok=True)
AutoModel.register(ProjectedTimmConfig, ProjectedTimm, exist_ok=True)
