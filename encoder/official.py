"""Towers from the checkpoint files that their authors publish: where a file is looked for, and how it is read.

Where each file is had, what its entries are called and what images must look like are rows of `encoder.cards`. Every
entry of a file is used, or known to be of no use for features, or the file is refused with its name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoder.cards import Card, Checkpoint, Images
from encoder.checkpoints import build_transformer, find_backbone, read_state
from raddraft.errors import RadDraftError, UnavailableError
from raddraft.files import weights_folder

if TYPE_CHECKING:
    from transformers import BaseImageProcessor


def find_file(name: str, card: Card, given: str = "") -> Path:
    """The checkpoint of a tower on this machine: as given, in the weights folder, where its package keeps it, or from
    the Hugging Face hub, if its authors publish it there.

    Raises:
        RadDraftError: `given` is not a file; as UnavailableError, if the tower's file is nowhere.
    """
    checkpoint = _checkpoint(card)
    if given:
        if not Path(given).expanduser().is_file():
            raise RadDraftError(f"Tower {name!r}: there is no file {given}")
        return Path(given).expanduser()
    folders = [weights_folder(), *([Path(checkpoint.folder).expanduser()] if checkpoint.folder else [])]
    for folder in folders:
        if (folder / checkpoint.file).is_file():
            return folder / checkpoint.file
    failed = ""
    if not card.source.startswith("github.com/"):
        from huggingface_hub import hf_hub_download

        try:
            return Path(hf_hub_download(card.source, checkpoint.file))
        except Exception as error:  # of the hub's HTTP library, which differs between releases
            reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
            failed = f", and it could not be downloaded ({reason})"
    raise UnavailableError(
        f"Tower {name!r} needs the file {checkpoint.file}, which is not in {' or '.join(map(str, folders))}{failed}: "
        f"{checkpoint.had}; put it there, or name it: {name}:FILE"
    )


def load_official(
    name: str, card: Card, file: Path, backend: Literal["torchvision", "pil"] | str = "torchvision"
) -> tuple[Any, BaseImageProcessor]:
    """Model (float32) and image processor of a tower from its authors' file.

    Raises:
        RadDraftError: the file is not that tower's checkpoint; the entries that do not fit are named.
        OSError: it cannot be read.
    """
    from encoder.timm_folder import build_timm

    checkpoint = _checkpoint(card)
    state, _ = read_state(file, mixed=True)
    if checkpoint.loader == "timm":
        return build_timm(file, state, checkpoint, card.images.side), make_processor(card.images, backend)
    backbone = find_backbone(file, state, None)
    for key, wanted in checkpoint.expected.items():
        if (found := getattr(backbone, key)) != wanted:
            raise RadDraftError(f"{file} is not the checkpoint of {name!r}: its {key} is {found}, not {wanted}")
    return build_transformer(backbone)[0], make_processor(card.images, backend)


def make_processor(images: Images, backend: str = "torchvision") -> BaseImageProcessor:
    """Images resized, their center square cut out, values from 0 to 1 normalized."""
    from transformers import BitImageProcessor, BitImageProcessorPil
    from transformers.image_utils import PILImageResampling

    kind: Any = BitImageProcessorPil if backend == "pil" else BitImageProcessor
    length = images.resize or images.side
    return kind(
        size={"height": length, "width": length} if images.squashed else {"shortest_edge": length},
        crop_size={"height": images.side, "width": images.side},
        resample=getattr(PILImageResampling, images.interpolation.upper()),
        image_mean=list(images.mean or ()),
        image_std=list(images.std or ()),
    )


def _checkpoint(card: Card) -> Checkpoint:
    if card.checkpoint is None:
        raise RadDraftError(f"{card.source} is a folder that transformers reads, not a file; name the folder itself")
    return card.checkpoint
