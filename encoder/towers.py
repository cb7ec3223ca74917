"""Vision towers by short name, hub id or local folder: what they are, where they come from, loading.

    tower = load_tower("rad-dino")
    encoded = tower.encode(tower.prepare([image]))  # pooled [1, 768], patches [1, 37, 37, 768]

Any vision model that transformers can load will do, its timm wrapper included, and BioViL-T; the towers of
`encoder.cards` whose authors publish a file of another layout; and features that something else has written, see
`encoder.given`. Other checkpoints are converted once: `raddraft convert`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoder.cards import TOWERS
from encoder.official import find_file, load_official
from encoder.timm_folder import plain_processor
from encoder.tower import Tower, patch_size
from raddraft.config_sizes import check_memory, check_numbers
from raddraft.errors import RadDraftError, UnavailableError
from raddraft.loading import load_pretrained

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


def resolve_tower(name: str) -> str:
    """Local folder or hub id of a tower.

    Raises:
        RadDraftError: `name` is not a short name, a folder, or of the form owner/model; or it stands for a checkpoint
            that has to be converted first, or that is a file.
    """
    if card := TOWERS.get(name):
        if card.checkpoint:
            raise RadDraftError(f"Tower {name!r} is a file, {card.checkpoint.file}, which has no config.json")
        if card.converted:
            raise RadDraftError(
                f"Tower {name!r} is not a transformers checkpoint: download it from {card.source}, run `raddraft "
                "convert CHECKPOINT --out FOLDER` once, and name that FOLDER"
            )
        return card.source
    if Path(name).is_dir():
        return name
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    missing = f"There is no folder {name} here. " if "/" in name else ""
    raise RadDraftError(
        f"{missing}Unknown tower {name!r}. Choices: {', '.join(TOWERS)}, a hub id, a folder with a config.json, or "
        "features:FILE"
    )


def check_tower(name: str) -> None:
    """Raise RadDraftError if the folder or file of a tower is not there, or its name is none; nothing is loaded."""
    known, _, file = name.removeprefix("random:").partition(":")
    if file and not Path(file).exists():
        raise RadDraftError(f"Tower {name!r}: there is no file {file}")
    if name == "pixels" or file or (known in TOWERS and TOWERS[known].checkpoint):
        return
    resolve_tower(known)


def load_tower(
    name: str | Path, image_size: int | None = None, backend: Literal["torchvision", "pil"] = "torchvision"
) -> Tower:
    """Load a vision tower (float32, eval mode, on the CPU) and its image processor.

    Of a two-tower checkpoint (CLIP, SigLIP), or of a trained report model, only the vision half is loaded. A report
    model that could not hold its tower has it in a folder of its own, which its raddraft.json names.

    Args:
        name: short name (`raddraft towers` lists them), hub id or local folder; NAME:FILE for the short name of a
            tower whose authors publish a file, and where that file is; features:FILE for features that something else
            has written (`encoder.given`); "pixels" for 16 x 16 raw pixels; "random:" before the name of a tower for
            the same architecture with random weights (seed 0).
        image_size: side in pixels of the tower's square input, instead of the checkpoint's own: the shorter side is
            resized to it and the center square is kept. Position embeddings are interpolated.
        backend: library that resizes images. A saved report model uses torchvision, as transformers does by default;
            the package rad-dino uses Pillow, whose pixels differ by up to 1 of 255, and features in the third decimal.

    Returns:
        The tower: `tower.prepare(images)` gives pixels [B, 3, height, width], `tower.encode(pixels)` a pooled vector
        [B, D] and patches [B, H, W, D] of each image; `tower.shape` is (H, W, D).

    Raises:
        RadDraftError: unknown name, not a vision model, or one that does not take images of `image_size`.
        UnavailableError: the checkpoint cannot be reached or read.
    """
    name = str(name)
    model, processor = _load(name, backend)
    if image_size is not None:
        patch = patch_size(model)
        if patch and image_size % patch:
            raise RadDraftError(f"image_size {image_size} is not a multiple of the patch size {patch} of {name}")
        processor = plain_processor(processor)  # that of timm's wrapper has no sizes to set
        if not hasattr(processor, "crop_size"):
            raise RadDraftError(f"The image processor of {name} cannot be set to image_size {image_size}")
        vars(processor).update(
            size={"shortest_edge": image_size},
            crop_size={"height": image_size, "width": image_size},
            do_resize=True,
            do_center_crop=True,
        )
    tower = Tower(name, model, processor)
    if image_size is not None:
        _ = tower.shape  # it must take such images
    return tower


def _load(name: str, backend: str) -> tuple[Any, BaseImageProcessor]:
    """Model and image processor of a tower by any of its names."""
    from transformers import AutoConfig, AutoImageProcessor

    import encoder.ark
    import encoder.biovil  # noqa: F401  # models that transformers does not know by itself

    if name == "pixels":
        from encoder.baselines import Pixels, pixels_processor

        model = Pixels()
        return model, pixels_processor(model.config)
    known, _, file = name.removeprefix("random:").partition(":")
    if known == "features":
        from encoder.given import given_processor, load_given

        if name.startswith("random:"):
            raise RadDraftError(f"{name}: features that are given have no architecture to give random weights to")
        given = load_given(file)
        return given, given_processor(given.config)
    if (card := TOWERS.get(known)) and (card.checkpoint or file):
        model, processor = load_official(known, card, find_file(known, card, file), backend)
        return (_with_random_weights(model.config, known) if name.startswith("random:") else model), processor
    path = resolve_tower(name.removeprefix("random:"))
    # torchvision is the default anyway; asking for it would draw a warning where a processor has Pillow only.
    options = {} if backend == "torchvision" else {"backend": backend}
    with reading_checkpoint(f"Tower {name!r} cannot be loaded", path):
        if beside := _beside_report_model(path):
            model, _ = _load(name.removesuffix(path) + beside, backend)
        elif name.startswith("random:"):
            config = AutoConfig.from_pretrained(path, trust_remote_code=False)
            model = _with_random_weights(getattr(config, "vision_config", config), path)
        else:
            model = _load_pretrained(path)
        return model, AutoImageProcessor.from_pretrained(path, trust_remote_code=False, **options)


def _with_random_weights(config: Any, path: str) -> Any:
    """A model of the config with weights of seed 0."""
    import torch
    from transformers import AutoModel

    check_memory(AutoModel.from_config, config, f"{path}: config.json")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModel.from_config(config)


def _load_pretrained(path: str) -> Any:
    """The vision half of a checkpoint, without the heads of another task. Raises as `load_pretrained`."""
    from transformers import AutoConfig, AutoModel, LlavaForConditionalGeneration

    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    if config.model_type == "llava":
        return load_pretrained(LlavaForConditionalGeneration, path, dtype="float32").model.vision_tower
    keys = "vision_config." if hasattr(config, "vision_config") else ""
    config = getattr(config, "vision_config", config)
    return load_pretrained(AutoModel, path, "tower", keys, config=config, dtype="float32")


def _beside_report_model(path: str) -> str | None:
    """Folder or name of the tower of a report model that could not hold it."""
    try:
        tower = json.loads((Path(path) / "raddraft.json").read_text(encoding="utf-8")).get("tower")
    except (OSError, ValueError):
        return None
    return str(Path(path) / tower) if tower and (Path(path) / tower).is_dir() else tower


@contextmanager
def reading_checkpoint(what: str, path: str) -> Iterator[None]:
    """Where transformers reads a folder or hub id: what it raises becomes one sentence, which begins with `what`.

    Raises:
        RadDraftError: from within, as it is.
        UnavailableError: why it cannot be read, and what to do about it.
    """
    import torch

    check_numbers(path)
    try:
        yield
    except (RadDraftError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # damaged files make the libraries raise anything
        raise UnavailableError(f"{what}: {_reason(path, error)}") from error


def _reason(path: str, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it comes with code of its own, which is not run"
    if Path(path).is_dir():
        stages = "num_hidden_layers in config.json does not go with its out_features: " if "stage_names" in text else ""
        return stages + text
    if Path(path).is_file():
        return f"{path} is a file; name the folder that holds it"
    if not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", path):
        return f"folder {path} does not exist"
    if not isinstance(error, OSError):
        return text
    first = str(error).strip().split("\n")[0].rstrip(".")
    return (
        f"there is no folder {path} here, and it could not be downloaded from the Hugging Face hub ({first}). On a "
        f"machine with network access, run `hf download {path} --local-dir FOLDER`, then name that FOLDER instead"
    )
