"""Draft reports for image files: raddraft draft MODEL IMAGE…

    raddraft draft runs/first/model film.dcm
    raddraft draft runs/first/model folder_of_dicoms --out drafts.jsonl
    raddraft draft google/medgemma-4b-it film.dcm --prompt.instruction "Write the findings of this chest X-ray."
    raddraft draft runs/first/model film.dcm --speculate runs/demo/phantom/studies.jsonl

Folders are searched for images. Every draft is for a radiologist to check.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from generator.generate import BANNER, DecodeConfig, generate
from generator.prompts import PromptConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.processes import pick_device
from raddraft.studies import Study, StudyImage, read_studies
from scripts.generate import chosen, model_name, report_errors

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
    """Draft the report of each picture, print it, and keep it in a predictions.jsonl if asked to.

    Args:
        model: Folder of a trained model; or folder or hub id of any vision-language model that transformers knows.
        images: Image files (DICOM, PNG, JPEG, TIFF) or folders of them.
        out: A predictions.jsonl to write, or to go on with; ids are the paths as given.
        indication: Why the pictures were taken, for models that were trained with it.
        view: PA, AP or LATERAL, for models that were trained with it.
        decode: How text is decoded.
        prompt: What a model that was not trained here is asked; one that was keeps its own prompt.
        speculate: A manifest, studies.jsonl: propose tokens from its training reports and let the model check several
            at a time, which gives the same greedy text in fewer passes.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        workers: Processes that decode and prepare images.
        remote_code: Whether Python code that comes with a model from elsewhere may run.
    """
    from generator.speculate import Speculator, index_reports
    from generator.vlm import load_any

    paths = find_images(images)
    drafter = load_any(model, device=pick_device(device), prompt=chosen(prompt), remote_code=remote_code)
    sections = {"indication": indication} if indication else {}
    names = [os.fsencode(path).decode(errors="replace") for path in paths]  # file names may hold any bytes
    studies = [
        Study(name, name, "test", [StudyImage(path.absolute(), view)], sections)
        for name, path in zip(names, paths, strict=True)
    ]
    speculator = None
    if speculate:
        training = [study for study in read_studies(speculate) if study.split == "train"]
        speculator = Speculator(index_reports(drafter, training))
    with TemporaryDirectory() as scratch:
        file = out or Path(scratch) / "drafts.jsonl"
        errors = generate(drafter, studies, file, decode, model_name(model, prompt), workers, speculator)
        print_drafts(file)
        return report_errors(errors, len(studies), out or Path("the text above"))


def find_images(arguments: list[Path]) -> list[Path]:
    """The files named, and the images inside the folders named.

    Raises:
        ValueError: there is none.
    """
    from generator.corpora.folder import find_image_files

    found = [file for path in arguments for file in (find_image_files(path) if path.is_dir() else [path])]
    if not found:
        raise RadDraftError(f"No image in {', '.join(map(str, arguments))}")
    return list(dict.fromkeys(found))


def print_drafts(file: Path) -> None:
    """Print every draft of a predictions.jsonl under the banner that it is one."""
    import json
    import shutil
    import textwrap

    width = min(100, shutil.get_terminal_size((100, 24)).columns)
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            print(f"\n{row['study_id']}\n{BANNER}\n")
            if "observations" in row:
                print(textwrap.fill(f"Observations: {row['observations']}", width, initial_indent="  "))
            print(textwrap.fill(row["prediction"] or "(empty)", width, initial_indent="  ", subsequent_indent="  "))
    print()


if __name__ == "__main__":
    run("draft")
