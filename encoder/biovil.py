"""BioViL-T's image encoder for one picture without a prior (Bannur et al., CVPR 2023, arXiv 2301.04558).

A ResNet-50 gives a grid of patches, a 1 x 1 convolution brings each to 256 channels. With a prior image, a transformer
would append 256 channels of change; without one, the checkpoint holds a learned vector that stands in their place at
every patch. So the second half of all features is the same for every picture, and the transformer is never run.
Architecture and names of the weights after `health_multimodal.image` of hi-ml-multimodal 0.2.2 (MIT).

    python -c "from encoder.biovil import convert; convert('biovil_t_image_model_proj_size_128.pt', 'biovil-t')"

makes a folder of the file in the hub's repository microsoft/BiomedVLP-BioViL-T.
"""

from __future__ import annotations

import json
import pickle
from collections import OrderedDict
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from raddraft.errors import RadDraftError
from raddraft.files import write_whole

if TYPE_CHECKING:
    from transformers import BitImageProcessor

# What the official checkpoint has beyond this path: ResNet's ImageNet head, which no forward pass uses, the transformer
# over two images, the projection to the space shared with text, and heads of a model trained further.
DROPPED = ("encoder.encoder.fc.", "encoder.vit_pooler.", "projector.", "classifier.")


@dataclass(frozen=True)
class BioViLTConfig:
    """What config.json holds. Only the two sizes of the picture can be chosen; the others are the architecture's."""

    model_type: str = "raddraft-biovil-t"
    shortest_edge: int = 512
    """Pixels that the shorter side is resized to."""
    image_size: int = 448
    """Side in pixels of the centre square that is cropped after that, a multiple of `patch_size`."""
    patch_size: int = 32
    """Pixels from one patch to the next, by ResNet-50's five strides of 2. A patch sees far more than that."""
    hidden_size: int = 512
    """Channels of a patch: 256 of the picture, 256 for the prior."""

    def __post_init__(self) -> None:
        for name in ("model_type", "patch_size", "hidden_size"):
            if getattr(self, name) != getattr(BioViLTConfig, name):
                raise RadDraftError(
                    f"{name} is {getattr(self, name)!r}, BioViL-T's is {getattr(BioViLTConfig, name)!r}"
                )
        if self.image_size < 1 or self.image_size % self.patch_size:
            raise RadDraftError(f"image_size {self.image_size} is not a multiple of the patch size {self.patch_size}")
        if self.shortest_edge < self.image_size:
            raise RadDraftError(f"shortest_edge {self.shortest_edge} is less than image_size {self.image_size}")


class BioViLT(nn.Module):
    """One picture -> patches and their mean. The weights have the checkpoint's names without the leading `encoder.`."""

    def __init__(self, config: BioViLTConfig | None = None) -> None:
        from torchvision.models import resnet50

        super().__init__()
        self.config = config or BioViLTConfig()
        channels = self.config.hidden_size // 2
        layers = OrderedDict(resnet50(weights=None).named_children())
        del layers["avgpool"], layers["fc"]
        self.encoder = nn.Sequential(layers)
        self.backbone_to_vit = nn.Conv2d(2048, channels, kernel_size=1, bias=False)
        self.missing_previous_emb = nn.Parameter(torch.empty(1, channels, 1, 1))
        nn.init.trunc_normal_(self.missing_previous_emb, std=0.02)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features [B, 512] and patches [B, H / 32, W / 32, 512] of pictures [B, 3, H, W] in 0..1.

        Raises:
            ValueError: pictures without three channels, or with a side that is not a multiple of 32.
        """
        shape, patch_size = tuple(pixel_values.shape), self.config.patch_size
        if len(shape) != 4 or shape[1] != 3 or 0 in shape or shape[2] % patch_size or shape[3] % patch_size:
            raise RadDraftError(
                f"pixel_values have shape {shape}, not [B, 3, H, W] with H, W multiples of {patch_size}"
            )
        current = self.backbone_to_vit(self.encoder(pixel_values))  # [B, 256, h, w]
        patches = torch.cat([current, self.missing_previous_emb.expand_as(current)], dim=1)
        return patches.mean(dim=(2, 3)), patches.permute(0, 2, 3, 1)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config.json, model.safetensors and preprocessor_config.json."""
        from safetensors.torch import save_file

        folder = Path(folder)
        state = {key: value.contiguous() for key, value in self.state_dict().items()}
        with write_whole(folder / "model.safetensors") as temporary:
            save_file(state, temporary, metadata={"format": "pt"})
        with write_whole(folder / "preprocessor_config.json") as temporary:
            image_processor(self.config).to_json_file(temporary)
        with write_whole(folder / "config.json") as temporary:
            temporary.write_text(json.dumps(asdict(self.config), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> BioViLT:
        """Load what `save_pretrained` wrote (fp32, eval mode).

        Raises:
            OSError: config.json or model.safetensors is not there.
            ValueError: one of them is broken or belongs to another model.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        config = _read_config(folder / "config.json")
        weights = folder / "model.safetensors"
        try:
            state = load_file(weights)
        except SafetensorError as error:
            raise RadDraftError(f"{weights} is not a whole safetensors file: {error}") from error
        return _build(config, state, weights)


def image_processor(config: BioViLTConfig) -> BitImageProcessor:
    """Pictures as the authors prepare them: resized bilinearly, cropped, 0..255 to 0..1, three equal channels.

    There is no normalisation. Their images are stretched before, darkest pixel to 0 and brightest to 255: the mapping
    `minmax` of `raddraft.images.load_image`. Where an odd number of pixels is cut off, the crop may lie one pixel beside
    torchvision's, which they use.
    """
    from transformers import BitImageProcessor
    from transformers.image_utils import PILImageResampling

    return BitImageProcessor(
        size={"shortest_edge": config.shortest_edge},
        crop_size={"height": config.image_size, "width": config.image_size},
        resample=PILImageResampling.BILINEAR,
        do_normalize=False,
    )


def convert(checkpoint: str | Path, out: str | Path) -> list[str]:
    """Turn the official checkpoint into a folder for `BioViLT.from_pretrained`.

    Args:
        checkpoint: biovil_t_image_model_proj_size_128.pt, or a file with the same layout.
        out: folder to write to.

    Returns:
        Names in the checkpoint that a single picture has no need of.

    Raises:
        OSError: the checkpoint is not there.
        ValueError: the checkpoint is broken or belongs to another model; nothing is written.
    """
    try:
        content = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RadDraftError(f"{checkpoint} is not a whole PyTorch checkpoint of plain tensors: {reason}") from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RadDraftError(f"{checkpoint} is not BioViL-T's image model: it is no plain dictionary of tensors")
    state = {key: value for key, value in content.items() if not key.startswith(DROPPED)}
    _build(BioViLTConfig(), state, checkpoint, "encoder.").save_pretrained(out)
    return [key for key in content if key.startswith(DROPPED)]


def _read_config(path: Path) -> BioViLTConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RadDraftError(f"{path}: not valid JSON: {error}") from error
    known = [field.name for field in fields(BioViLTConfig)]
    if not isinstance(values, dict) or values.get("model_type") != BioViLTConfig.model_type:
        raise RadDraftError(f"{path} does not have model_type {BioViLTConfig.model_type!r}: it is another model's")
    if unknown := sorted(values.keys() - set(known)):
        raise RadDraftError(f"{path}: unknown key {unknown[0]!r}. Choices: {', '.join(known)}")
    try:
        return BioViLTConfig(**values)
    except (ValueError, TypeError) as error:
        raise RadDraftError(f"{path}: {error}") from error


def _build(config: BioViLTConfig, state: dict[str, Tensor], source: str | Path, prefix: str = "") -> BioViLT:
    """Model in eval mode with weights from `source`, all of them and nothing else; each name begins with `prefix`.

    Raises:
        ValueError: a weight is missing, unknown or of another shape.
    """
    with torch.device("meta"):  # spares the time of random weights
        model = BioViLT(config)
    expected = {prefix + key: value for key, value in model.state_dict().items()}
    faults = [f"{key} is missing" for key in expected if key not in state]
    faults += [f"{key} is unknown" for key in state if key not in expected]
    faults += [
        f"{key} has shape {tuple(state[key].shape)}, not {tuple(value.shape)}"
        for key, value in expected.items()
        if key in state and state[key].shape != value.shape
    ]
    if faults:
        more = f"; {len(faults) - 3} more" if len(faults) > 3 else ""
        raise RadDraftError(f"{source} is not BioViL-T's image model: {'; '.join(faults[:3])}{more}")
    model.to_empty(device="cpu").load_state_dict({key.removeprefix(prefix): value for key, value in state.items()})
    return model.eval()
