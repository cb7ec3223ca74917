"""Turn a checkpoint of another layout into a folder, once, to use as a tower.

    raddraft convert open_clip_pytorch_model.bin --out towers/biomedclip
    raddraft convert biovil_t_image_model_proj_size_128.pt --out towers/biovil-t
    raddraft convert MRM.pth --out towers/mrm --image-size 448
    raddraft convert dinov2_vitb14_reg4_pretrain.pth --out towers/dinov2-reg
    raddraft convert backbone_compatible.safetensors --out towers/rad-dino --kind rad-dino
    raddraft convert vit.pth --out towers/vit --mean 0.5 --std 0.5
    raddraft convert resnet50.pth --out towers/resnet50 --timm resnet50

Three of the short names of towers stand for such checkpoints:

    biomedclip  open_clip_pytorch_model.bin (best with open_clip_config.json beside it)
                of huggingface.co/microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224
    biovil-t    biovil_t_image_model_proj_size_128.pt of huggingface.co/microsoft/BiomedVLP-BioViL-T
    mrm         MRM.pth, linked from github.com/RL4M/MRM-pytorch

Then `--tower towers/mrm` stores its features, and `--model.tower towers/mrm` trains a report model on it. Vision
transformers become ordinary Hugging Face folders, which AutoModel loads without this project. The layout is told by the
keys; weights are only ever loaded as tensors. Every entry of the checkpoint is used, or counted as dropped, or the
checkpoint is refused.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

from raddraft.cli import run
from raddraft.ranges import Count

POSITIONAL = ("checkpoint",)


def main(
    checkpoint: Path,
    out: Path,
    kind: Literal["dinov2", "rad-dino", "biomedclip", "mrm", "vit"] | None = None,
    image_size: Count | None = None,
    mean: list[float] | None = None,
    std: list[float] | None = None,
    heads: Count | None = None,
    timm: str | None = None,
) -> None:
    """Write config.json, model.safetensors and preprocessor_config.json.

    Args:
        checkpoint: File of weights: .safetensors, .pth, .bin …
        out: Folder to make; it must not exist, or be empty.
        kind: What the weights are, where the keys fit several kinds; it sets how images are normalized. RAD-DINO has
            the keys of dinov2, and MRM without its text half has those of a plain vit.
        image_size: Side in pixels of the tower's square input; position embeddings are interpolated to it. By default
            the checkpoint's own.
        mean: Mean of the channels on a scale from 0 to 1, one value or three, instead of the kind's.
        std: Standard deviation of the channels on a scale from 0 to 1, one value or three, instead of the kind's.
        heads: Attention heads of a block; by default one for every 64 channels.
        timm: Name of a timm architecture, where the weights are its state dict; such a tower runs frozen beside a
            report model, not inside it.
    """
    from encoder.convert import convert

    done = convert(checkpoint, out, kind, image_size, mean, std, heads, timm)
    print(f"{out}: {done.describe()}")
    gray_mapping = "" if done.gray_mapping == "window" else f" --gray-mapping {done.gray_mapping}"
    print(f"next: raddraft features --tower {shlex.quote(str(out))} --studies studies.jsonl{gray_mapping}")


if __name__ == "__main__":
    run("convert")
