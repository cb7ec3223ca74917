"""Drafts of DICOM studies -> a folder of documents for the archive and the clinic's other systems.

OUT/s0123456789abcdef.sr.dcm, .pdf.dcm and .fhir.json: names are pseudonymous, contents are the patient's.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.clinic import Form
from generator.clinic.fhir import fhir_bundle
from generator.clinic.pdf import encapsulated_pdf
from generator.clinic.report import Report, read_source, report_of
from generator.clinic.sr import basic_text_sr
from generator.priors import find_priors
from raddraft.errors import RadDraftError
from raddraft.files import write_json, write_whole
from raddraft.studies import Study
from raddraft.text import slug

if TYPE_CHECKING:
    from generator.api import Model
    from generator.generate import Draft

SUFFIXES: dict[Form, str] = {"sr": "sr.dcm", "pdf": "pdf.dcm", "fhir": "fhir.json"}


class Writer:
    """Writes the documents of drafts into one folder.

    Args:
        studies: what is to be drafted, made of DICOM files with UIDs; priors are looked for among them.
        folder: made if need be.
        forms: which documents.

    Raises:
        RadDraftError: something cannot be written, which is said before anything is drafted.

    Attributes:
        drafts: the predictions.jsonl in this folder.
    """

    def __init__(self, studies: Sequence[Study], folder: Path | None, forms: Sequence[Form]) -> None:
        if folder is None or folder.is_file():
            raise RadDraftError(f"--to {' '.join(forms)} needs a folder to write to, given by --out; got {folder}")
        check_forms(forms)
        for study in studies:
            for image in study.images:
                read_source(image.path)
        self.folder, self.forms, self.drafts = folder, forms, folder / "drafts.jsonl"
        self._studies, self._priors = {study.study_id: study for study in studies}, find_priors(studies)

    def write(self, draft: Draft, model: Model) -> str | None:
        """Write the documents of a draft; why one could not be written, in a sentence, or None."""
        prior = self._priors.get(draft.study_id)
        try:
            report = report_of(draft, self._studies[draft.study_id], model, prior)
            write_results(report, self.folder, draft.study_id, self.forms)
        except RadDraftError as error:
            return f"not written: {error}"
        return None


def check_forms(forms: Sequence[Form]) -> None:
    """Raise RadDraftError where a form needs a package that is not installed."""
    for form, module in (("pdf", "fpdf"), ("fhir", "fhir")):
        if form in forms and not importlib.util.find_spec(module):
            raise RadDraftError(f'{form} needs the extra clinic: pip install "raddraft[clinic]"')


def write_results(report: Report, folder: Path, name: str, forms: Sequence[Form]) -> list[Path]:
    """Write the documents of a report; one that is there already with the same UID is kept as it is.

    Args:
        report: the report.
        folder: made if need be.
        name: of the files, without suffix; must not tell who the patient is.
        forms: which documents.

    Returns:
        Their files.

    Raises:
        RadDraftError: as `encapsulated_pdf` and `fhir_bundle`.
    """
    paths = []
    for form in forms:
        path = result_path(folder, name, form)
        if _uid_of(path) != report.uid(form):
            if form == "fhir":
                write_json(path, fhir_bundle(report))
            else:
                dataset = basic_text_sr(report) if form == "sr" else encapsulated_pdf(report)
                save(dataset, path)
        paths.append(path)
    return paths


def result_path(folder: Path, name: str, form: Form) -> Path:
    """Where `write_results` writes a document."""
    return folder / f"{slug(name)}.{SUFFIXES[form]}"


def save(dataset: Any, path: Path) -> None:
    """Write a document as a DICOM file, whole or not at all; values of the film are written as they are."""
    from pydicom import config

    with write_whole(path) as temporary, config.disable_value_validation():
        dataset.save_as(temporary, enforce_file_format=True)


def _uid_of(path: Path) -> str | None:
    """UID of the document in a file; None if there is none."""
    from pydicom import dcmread

    if not path.is_file():
        return None
    if path.suffix == ".json":
        value = json.loads(path.read_text(encoding="utf-8"))["identifier"]["value"]
        return str(value).removeprefix("urn:oid:")
    return str(dcmread(path, specific_tags=["SOPInstanceUID"]).SOPInstanceUID)
