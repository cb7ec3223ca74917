"""BioViL-T's image encoder for one image without a prior (Bannur et al., CVPR 2023, arXiv 2301.04558).

A ResNet-50 gives a grid of patches, a 1 x 1 convolution brings each to 256 channels. With a prior image, a transformer
would append 256 channels of change; without one, the checkpoint has a learned vector that takes their place at every
patch. So the second half of all features is the same for every image, and the transformer is never run.
Architecture and names of the weights follow `health_multimodal.image` of hi-ml-multimodal 0.2.2 (MIT).

After `import encoder.biovil`, AutoConfig and AutoModel load the folders that `raddraft convert` makes of
biovil_t_image_model_proj_size_128.pt (huggingface.co/microsoft/BiomedVLP-BioViL-T).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, BitImageProcessor, PretrainedConfig, PreTrainedModel
from transformers.image_utils import PILImageResampling

from encoder.checkpoints import check_state
from raddraft.errors import RadDraftError

# What the official checkpoint has beyond this path: ResNet's ImageNet head, which no forward pass uses, the transformer
# over two images, the projection to the space shared with text, and heads of a model trained further.
DROPPED = ("encoder.encoder.fc.", "encoder.vit_pooler.", "projector.", "classifier.")


class BioViLTConfig(PretrainedConfig):
    """Sizes of BioViL-T's image encoder. Raises ValueError for others than the architecture's, and unknown keys.

    Args:
        shortest_edge: pixels to which the shorter side is resized.
        image_size: side in pixels of the center square that is cropped after that, a multiple of 32.
        patch_size: pixels from one patch to the next: 32, from ResNet-50's five strides of 2.
        hidden_size: channels of a patch: 512, of which 256 stand for the prior.
    """

    model_type = "raddraft-biovil-t"

    def __init__(
        self,
        shortest_edge: int = 512,
        image_size: int = 448,
        patch_size: int = 32,
        hidden_size: int = 512,
        **others: Any,
    ) -> None:
        usual = PretrainedConfig()
        if unknown := [key for key in others if not key.startswith("_") and not hasattr(usual, key)]:
            raise ValueError(f"unknown key {unknown[0]!r}. Choices: shortest_edge, image_size, patch_size, hidden_size")
        for name, value, own in (("patch_size", patch_size, 32), ("hidden_size", hidden_size, 512)):
            if value != own:
                raise ValueError(f"{name} is {value!r}, BioViL-T's is {own}")
        if image_size < 1 or image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of the patch size {patch_size}")
        if shortest_edge < image_size:
            raise ValueError(f"shortest_edge {shortest_edge} is less than image_size {image_size}")
        super().__init__(**others)
        self.shortest_edge, self.image_size = shortest_edge, image_size
        self.patch_size, self.hidden_size = patch_size, hidden_size


class BioViLT(PreTrainedModel):
    """One image -> patches and their mean. The weights have the checkpoint's names without the leading `encoder.`."""

    config: BioViLTConfig
    config_class = BioViLTConfig
    main_input_name = "pixel_values"

    def __init__(self, config: BioViLTConfig | None = None) -> None:
        from torchvision.models import resnet50

        super().__init__(config or BioViLTConfig())
        channels = self.config.hidden_size // 2
        layers = OrderedDict(resnet50(weights=None).named_children())
        del layers["avgpool"], layers["fc"]
        self.encoder = nn.Sequential(layers)
        self.backbone_to_vit = nn.Conv2d(2048, channels, kernel_size=1, bias=False)
        self.missing_previous_emb = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.trunc_normal_(self.missing_previous_emb, std=0.02)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Nothing: layers keep the values that torch gives them."""

    def save_pretrained(self, save_directory: Any, *arguments: Any, **options: Any) -> None:
        """Write config.json, model.safetensors and, unlike other models, preprocessor_config.json."""
        super().save_pretrained(save_directory, *arguments, **options)
        image_processor(self.config).save_pretrained(save_directory)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [B, 512] and patches [B, H / 32, W / 32, 512] of images [B, 3, H, W] with values 0..1.

        Raises:
            RadDraftError: images without three channels, or with a side that is not a multiple of 32.
        """
        shape, patch_size = tuple(pixel_values.shape), self.config.patch_size
        if len(shape) != 4 or shape[1] != 3 or 0 in shape or shape[2] % patch_size or shape[3] % patch_size:
            raise RadDraftError(
                f"pixel_values have shape {shape}, not [B, 3, H, W] with H, W multiples of {patch_size}"
            )
        current = self.backbone_to_vit(self.encoder(pixel_values))  # [B, 256, h, w]
        patches = torch.cat([current, self.missing_previous_emb.expand_as(current)], dim=1)
        return patches.mean(dim=(2, 3)), patches.permute(0, 2, 3, 1)


AutoConfig.register(BioViLTConfig.model_type, BioViLTConfig, exist_ok=True)
AutoModel.register(BioViLTConfig, BioViLT, exist_ok=True)


def image_processor(config: BioViLTConfig) -> BitImageProcessor:
    """Images as the authors prepare them: resized (bilinear), cropped, 0..255 to 0..1, three equal channels.

    Nothing is normalized. The authors' images are min-max stretched before: gray_mapping "minmax". Where an odd number
    of pixels is cut off, the crop may be one pixel beside that of torchvision, which they use.
    """
    return BitImageProcessor(
        size={"shortest_edge": config.shortest_edge},
        crop_size={"height": config.image_size, "width": config.image_size},
        resample=PILImageResampling.BILINEAR,
        do_normalize=False,
    )


def from_official(state: Mapping[str, Tensor], source: Path) -> tuple[BioViLT, list[str]]:
    """The model with the weights of biovil_t_image_model_proj_size_128.pt, and the names that it leaves out.

    Raises:
        RadDraftError: names or shapes of `state` are not the official ones; the message names `source`.
    """
    with torch.device("meta"):  # spares the time of random weights
        model = BioViLT()
    kept = {name: value for name, value in state.items() if not name.startswith(DROPPED)}
    wanted = {f"encoder.{name}": value.shape for name, value in model.state_dict().items()}
    check_state(kept, wanted, f"{source} is not BioViL-T's image model")
    model.load_state_dict({name.removeprefix("encoder."): value.clone() for name, value in kept.items()}, assign=True)
    return model.eval(), [name for name in state if name.startswith(DROPPED)]
