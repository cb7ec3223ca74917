"""A page in the browser to try a model on one image at a time; needs the extra `app`.

    pip install -e ".[app]"
    raddraft app --model runs/mine/model

The page is served on this computer only. Images are neither kept nor sent anywhere. Every draft is for a radiologist
to check.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from generator.config import DecodeConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError

POSITIONAL = ("model",)


def main(
    model: Path,
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    device: str = "auto",
    port: int = 7860,
) -> None:
    """Serve a page that drafts the report of an uploaded DICOM, PNG, JPEG or TIFF.

    Args:
        model: Folder of a trained model.
        decode: Decoding.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        port: Port on this computer.
    """
    try:
        import gradio
    except ImportError:
        raise RadDraftError('the page needs gradio: pip install "raddraft[app]", or pip install gradio') from None

    from generator.api import load_model
    from generator.generate import BANNER

    loaded = load_model(model, device)
    reads_indication = "indication" in loaded.drafter.prompt.context
    gradio.Interface(
        lambda file, indication="": draft_upload(loaded, decode, file, indication),
        inputs=[
            gradio.File(label="Chest X-ray (DICOM, PNG, JPEG, TIFF)"),
            *([gradio.Textbox(label="Indication")] if reads_indication else []),
        ],
        outputs=[gradio.Image(label="Image as the model gets it"), gradio.Textbox(label=BANNER, lines=8)],
        title="RadDraft",
        flagging_mode="never",
    ).launch(server_name="127.0.0.1", server_port=port)


def draft_upload(model: Any, config: DecodeConfig, file: str | None, indication: str = "") -> tuple[Any, str]:
    """The image in 8 bits and its draft by a `generator.api.Model`, or None and what is wrong with the file."""
    from raddraft.images import load_image

    if not file:
        return None, "Choose a file first."
    try:
        image = load_image(file, gray_mapping=model.drafter.gray_mapping)
        return image, model.draft(file, indication=indication, **asdict(config)).text
    except RadDraftError as error:
        return None, str(error)


if __name__ == "__main__":
    run("app")
