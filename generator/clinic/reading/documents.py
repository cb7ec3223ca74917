"""Read studies -> SR, PDF and FHIR in a folder, as `raddraft draft --to` writes drafts.

They tell what a reader changed from what a machine wrote, and go when the reader decides again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from generator.clinic import Form
from generator.clinic.reading.decisions import Read
from generator.clinic.reading.worklist import Worklist
from generator.clinic.report import report_of
from generator.clinic.results import SUFFIXES, check_forms, result_path, write_results
from generator.generate import BANNER, Draft
from raddraft.errors import RadDraftError
from raddraft.studies import Study

if TYPE_CHECKING:
    from generator.api import Model

CHANGED = "DRAFT for a radiologist to check. Written by a machine, changed by a reader, not a diagnosis."
"""In place of `BANNER` where a reader corrected the draft."""


def write_read(
    worklist: Worklist,
    number: int,
    read: Read,
    model: Model,
    folder: Path,
    forms: Sequence[Form],
    complete: bool = False,
) -> list[Path]:
    """Write the documents of a study whose draft a reader accepted or corrected; UNVERIFIED they stay.

    Args:
        worklist: holds the study.
        number: of the study.
        read: what the reader decided.
        model: wrote the draft, and is named in the documents.
        folder: made if need be, for its owner only.
        forms: which documents.
        complete: whether the reader holds the text to be whole; else it is PARTIAL.

    Returns:
        Their files.

    Raises:
        RadDraftError: the draft was rejected, failed or is of another model, or as `report_of` and `write_results`.
    """
    study = worklist.studies[number]
    if read.decision == "rejected":
        raise RadDraftError(f"Study {study.study_id!r}: the draft was rejected, so there is no report to write")
    if not read.draft.strip():
        raise RadDraftError(f"Study {study.study_id!r}: there was no draft, and documents name the model of the draft")
    if (read.weights or read.model) != (model.digest if read.weights else model.name):
        raise RadDraftError(
            f"Study {study.study_id!r}: its draft is by {read.model!r}, and documents name the weights of the model "
            f"that is loaded, {model.name!r}"
        )
    check_forms(forms)
    prior = worklist.priors.get(study.study_id) if model.drafter.prompt.prior else None
    for image in model.drafter.prompt.choose_images(study, prior):
        worklist.fetch(image)
    banner = model.banner.replace(BANNER, CHANGED) if read.decision == "corrected" else model.banner
    draft = Draft([read.final], study_id=study.study_id, banner=banner)
    report = replace(report_of(draft, study, model, prior), complete=complete)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return write_results(report, folder, study.study_id, forms)


def remove_documents(folder: Path, study: Study) -> list[str]:
    """Remove the documents of a study, which hold what was decided before; the names of their files."""
    paths = [result_path(folder, study.study_id, form) for form in SUFFIXES]
    found = [path for path in paths if path.is_file()]
    for path in found:
        path.unlink()
    return [path.name for path in found]
