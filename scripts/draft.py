"""Draft reports for image files: raddraft draft MODEL IMAGE…

    raddraft draft runs/first/model film.dcm
    raddraft draft runs/first/model folder_of_dicoms --out drafts.jsonl
    raddraft draft google/medgemma-4b-it film.dcm --prompt.instruction "Write the findings of this chest X-ray."
    raddraft draft runs/first/model film.dcm --speculate runs/demo/phantom/studies.jsonl

Folders are searched for images. Every draft is for a radiologist to check.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from generator.config import DecodeConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError

POSITIONAL = ("model", "images")


def main(
    model: str,
    images: list[Path],
    out: Path | None = None,
    indication: str | None = None,
    view: str | None = None,
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    speculate: Path | None = None,
    device: str = "auto",
    workers: int = 0,
    remote_code: bool = False,
) -> int:
    """Draft the report of each image, and print it as soon as it is decoded.

    Args:
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        images: Image files (DICOM, PNG, JPEG, TIFF) or folders of them.
        out: A predictions.jsonl to write or to resume, with the paths as study ids.
        indication: Why the images were taken, for a model that reads it.
        view: PA, AP or LATERAL, for a model that reads it.
        decode: Decoding.
        prompt: Prompt of a model that was not trained by RadDraft; one that was keeps its own.
        speculate: A manifest, studies.jsonl, from whose training reports tokens are proposed: the same greedy text in
            fewer passes.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        workers: Processes that read and prepare images.
        remote_code: Run Python code that comes with a model that was not trained by RadDraft.
    """
    from generator.api import find_studies, load_model, report_drafts

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RadDraftError("draft runs in one process; `raddraft generate` shares the work out to several")
    find_studies(images)  # what is not there is told before a model is loaded
    loaded = load_model(model, device, prompt, remote_code)
    drafts, errors = [], []
    for draft in loaded.stream(images, indication, view, out, speculate, workers, **asdict(decode)):
        if draft.error:
            errors.append(draft.error)
        else:
            print_draft(draft)
            drafts.append(draft)
    print(f"\n{report_drafts(drafts, errors, out or 'the text above')}")
    return 1 if errors else 0


def print_draft(draft: Any) -> None:
    """Print a `generator.generate.Draft` under its banner."""
    import shutil
    import textwrap

    from raddraft.text import printable

    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    print(f"\n{printable(draft.study_id)}\n{draft.banner}\n")
    if draft.observations is not None:
        print(textwrap.fill(f"Observations: {printable(draft.observations)}", width, initial_indent="  "))
    print(textwrap.fill(str(draft) or "(empty)", width, initial_indent="  ", subsequent_indent="  "), flush=True)


if __name__ == "__main__":
    run("draft")
