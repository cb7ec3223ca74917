"""Draft reports for image files: raddraft draft MODEL IMAGE…

    raddraft draft runs/first/model film.dcm
    raddraft draft runs/first/model folder_of_dicoms --out drafts.jsonl
    raddraft draft runs/first/model film.dcm --speculate runs/demo/phantom/studies.jsonl
    raddraft draft runs/first/model folder_of_dicoms --to sr pdf fhir --out results

Folders are searched for images; DICOM files of one study make one draft. Every draft is for a radiologist to check.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from generator.clinic import Form, Ids
from generator.config import DecodeConfig
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.ranges import Whole

POSITIONAL = ("model", "images")


def main(
    model: str,
    images: list[Path],
    out: Path | None = None,
    to: list[Form] | None = None,
    ids: Ids = "pseudonymous",
    indication: str | None = None,
    view: str | None = None,
    decode: DecodeConfig = DecodeConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    prompt: PromptConfig = PromptConfig(),  # noqa: B008
    speculate: Path | None = None,
    device: str = "auto",
    workers: Whole = 0,
    remote_code: bool = False,
) -> int:
    """Draft the report of each study, and print it as soon as it is decoded.

    Args:
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        images: Image files (DICOM, PNG, JPEG, TIFF) or folders of them.
        out: A predictions.jsonl to write or to resume; with --to a folder for it (drafts.jsonl) and the documents.
        to: Documents of DICOM studies, which name patients: sr (Basic Text SR), pdf (Encapsulated PDF), fhir (R4).
        ids: Ids of DICOM studies: pseudonymous, under the user's key, or original, the Study Instance UID.
        indication: Why the images were taken, for a model that reads it.
        view: PA, AP or LATERAL, of images that state none, for a model that reads it.
        decode: Decoding.
        prompt: Prompt of a model that was not trained by RadDraft; one that was keeps its own.
        speculate: A manifest, studies.jsonl, from whose training reports tokens are proposed: the same greedy text in
            fewer passes.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        workers: Processes that read and prepare images.
        remote_code: Run Python code that comes with a model that was not trained by RadDraft.
    """
    from generator.api import find_studies, load_model, name_with_files, report_drafts
    from generator.clinic.results import Writer

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise RadDraftError("draft runs in one process; `raddraft generate` shares the work out to several")
    studies = find_studies(images, indication, view, ids)  # what is not there is told before a model is loaded
    writer = Writer(studies, out, to) if to else None
    loaded = load_model(model, device, prompt, remote_code)
    loaded.check_used(indication, view)
    file = writer.drafts if writer else out
    headings = {study.study_id: name_with_files(study) for study in studies}
    drafts, errors, lost = [], [], []
    for draft in loaded.stream(studies, out=file, speculate=speculate, workers=workers, **asdict(decode)):
        if draft.error:
            errors.append(draft.error)
            continue
        print_draft(draft, headings[draft.study_id])
        drafts.append(draft)
        if writer and (reason := writer.write(draft, loaded)):
            lost.append(reason)
    print(f"\n{report_drafts(drafts, errors, file or 'the text above')}", *lost, sep="\n")
    return 1 if errors or lost else 0


def print_draft(draft: Any, heading: str = "") -> None:
    """Print a `generator.generate.Draft` under its banner."""
    import shutil
    import textwrap

    from raddraft.text import printable

    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    print(f"\n{printable(heading or draft.study_id)}\n{draft.banner}\n")
    if draft.observations is not None:
        print(textwrap.fill(f"Observations: {printable(draft.observations)}", width, initial_indent="  "))
    print(textwrap.fill(str(draft) or "(empty)", width, initial_indent="  ", subsequent_indent="  "), flush=True)


if __name__ == "__main__":
    run("draft")
