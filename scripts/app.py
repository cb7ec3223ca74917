"""A page in the browser to try a model on one picture at a time; needs the extra `app`.

    pip install -e ".[app]"
    raddraft app --model runs/mine/model

The page is served on this computer only. Pictures are neither kept nor sent anywhere. Every draft is for a radiologist
to check.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from generator.generate import BANNER, DecodeConfig, decode
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, load_image
from raddraft.processes import pick_device
from raddraft.studies import Study, StudyImage

if TYPE_CHECKING:
    from PIL import Image

    from generator.model import Drafter


def main(
    model: Path,
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    device: str = "auto",
    port: int = 7860,
) -> None:
    """Serve a page that drafts the report of an uploaded DICOM, PNG, JPEG or TIFF.

    Args:
        model: Folder of a trained model.
        decode: How text is decoded.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        port: Port on this computer.
    """
    try:
        import gradio
    except ImportError:
        raise RadDraftError('the page needs gradio: pip install "raddraft[app]", or pip install gradio') from None

    from generator.vlm import load_any

    drafter = load_any(str(model), device=pick_device(device))
    gradio.Interface(
        lambda file, indication: draft_upload(drafter, decode, file, indication),
        inputs=[gradio.File(label="Chest X-ray (DICOM, PNG, JPEG, TIFF)"), gradio.Textbox(label="Indication")],
        outputs=[gradio.Image(label="Picture as the model gets it"), gradio.Textbox(label=BANNER, lines=8)],
        title="RadDraft",
        flagging_mode="never",
    ).launch(server_name="127.0.0.1", server_port=port)


def draft_upload(
    drafter: Drafter, config: DecodeConfig, file: str | None, indication: str
) -> tuple[Image.Image | None, str]:
    """The picture in 8 bits and its draft, or what is wrong with the file."""
    if not file:
        return None, "Choose a file first."
    sections = {"indication": indication} if indication else {}
    study = Study(Path(file).name, "upload", "test", [StudyImage(Path(file).absolute())], sections)
    try:
        picture = load_image(file, gray_mapping=drafter.gray_mapping)
        examples = drafter.encode([study], answers=False, reserve=config.max_new_tokens)
        _, drafts, errors = next(decode(drafter, examples, config))
    except (ImageError, ValueError) as error:
        return None, str(error)
    return picture, drafts[0].text if drafts else errors[0]


if __name__ == "__main__":
    run("app")
