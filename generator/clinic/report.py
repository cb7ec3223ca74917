"""The draft of a DICOM study with all that a clinical document says of it: `generator.clinic.sr`, `.pdf` and `.fhir`
write the same `Report` each in their own form.

    report = report_of(draft, study, model)          # of `generator.api`
    report = replace(report, sections=corrected)     # what a reader made of it

Patients' names and numbers come from the headers of the films, and go into these documents and nowhere else.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.headers import find_headers
from raddraft.errors import RadDraftError
from raddraft.studies import Study
from raddraft.text import printable

if TYPE_CHECKING:
    from pydicom import Dataset

    from generator.api import Model
    from generator.generate import Draft

TITLE = "DRAFT chest X-ray report"
SECTIONS = ("findings", "impression")
MANUFACTURER = "RadDraft"
UIDS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID")
PATIENT_AND_STUDY = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime"),
    *("ReferringPhysicianName", "StudyID", "AccessionNumber"),
)
"""Elements of patient and study that every object has, if need be without a value."""
OPTIONAL = ("IssuerOfPatientID", "StudyDescription")
"""Those that an object may have."""
REASONS = ("ReasonForTheRequestedProcedure", "ReasonForStudy")
ELEMENTS = (*UIDS, *PATIENT_AND_STUDY, *OPTIONAL, "Modality", "RequestAttributesSequence", *REASONS)
"""What documents take from the header of a film."""
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "raddraft")


@dataclass
class Device:
    """The model as a device that writes reports."""

    model: str
    """Its name."""
    digest: str
    """SHA-256 (hex) that tells its weights from those of other models."""

    @property
    def uid(self) -> str:
        """The same for the same weights."""
        return derived_uid("device", self.digest)

    @property
    def software(self) -> str:
        """RadDraft's version."""
        return version("raddraft")

    @property
    def short_name(self) -> str:
        """The end of the name, as it fits into DICOM's LO."""
        return self.model.replace("\\", "/")[-64:]


@dataclass
class Source:
    """An image that a report was made from."""

    path: Path
    """The file."""
    header: Dataset
    """`ELEMENTS` of its header, as far as it has them."""


@dataclass
class Report:
    """A report as clinical documents hold it."""

    sections: dict[str, str]
    """findings, impression or both, in this order; not blank."""
    sources: list[Source]
    """Images of the study that the draft was made from, the main one first."""
    device: Device
    """Who wrote the draft."""
    banner: str
    """Says that it is a draft; the first text of every document."""
    indication: str = ""
    """Why the images were taken."""
    priors: Sequence[Source] = ()
    """Images of the earlier study that the draft was made from."""
    complete: bool = False
    """Whether a reader holds the text to be whole: Completion Flag COMPLETE; else PARTIAL. UNVERIFIED it stays."""

    @property
    def header(self) -> Dataset:
        """The header that tells whose report it is."""
        return self.sources[0].header

    @property
    def text(self) -> str:
        """All of it as plain text, the banner first."""
        parts = {"indication": self.indication, **self.sections}
        texts = [f"{name.capitalize()}:\n{text}" for name, text in parts.items() if text]
        return "\n\n".join([self.banner, *texts])

    def uid(self, form: str) -> str:
        """UID of the document that holds this report in a form, such as sr: the same for the same report only."""
        images = [source.header.SOPInstanceUID for source in (*self.sources, *self.priors)]
        said = (self.sections, self.indication, self.banner, self.complete)
        return derived_uid(form, self.header.StudyInstanceUID, images, asdict(self.device), said, self.device.software)

    def series_uid(self, form: str) -> str:
        """UID of the series of all documents of this study in this form by this model."""
        return series_uid(form, self.header.StudyInstanceUID, self.device.digest)


def report_of(draft: Draft, study: Study, model: Model, prior: Study | None = None) -> Report:
    """The report of a draft.

    Args:
        draft: with a text.
        study: what was drafted, made of DICOM files.
        model: what drafted it.
        prior: the earlier study that the model was given, if it reads priors.

    Raises:
        RadDraftError: the draft is blank, or an image is no DICOM file or lacks a UID.
    """
    prompt = model.drafter.prompt
    if not draft.text.strip():
        raise RadDraftError(f"Study {study.study_id!r}: the draft is blank, so there is no report to write")
    chosen = prompt.choose_images(study, prior)
    own = [image.path for image in study.images]
    sources = [read_source(image.path) for image in chosen if image.path in own]
    return Report(
        sections=split_report(printable(draft.text), prompt.targets),
        sources=sources,
        device=Device(model.name, model.digest),
        banner=draft.banner,
        indication=printable(study.sections.get("indication") or _reason(sources[0].header)).strip(),
        priors=[read_source(image.path) for image in chosen if image.path not in own],
    )


def read_source(path: Path) -> Source:
    """What documents say of a DICOM image, from its header; an element that cannot be read is none.

    Raises:
        RadDraftError: it is no DICOM file, or lacks a UID.
    """
    from pydicom import Dataset, config, dcmread

    from raddraft.images import is_dicom

    header = Dataset()
    with config.disable_value_validation():  # its warnings quote values
        if is_dicom(path):
            read = dcmread(path, force=True, stop_before_pixels=True, specific_tags=list(ELEMENTS))
            for keyword in ELEMENTS:
                with suppress(Exception):  # pydicom parses when it is asked, and raises what the parser raises
                    header[keyword] = read[keyword]
    for uid in UIDS:
        if not header.get(uid):
            raise RadDraftError(f"{path}: no {uid}; documents for the archive need DICOM files that belong to a study")
    return Source(path, header)


def _reason(header: Dataset) -> str:
    """Why the images were requested; "" if the header does not say."""
    from pydicom import config

    requests = [*header.get("RequestAttributesSequence", []), header]
    with config.disable_value_validation():  # as in `read_source`
        stated = [one.get(keyword) for one in requests for keyword in REASONS]
    return str(next(filter(None, stated), ""))


def split_report(text: str, targets: Sequence[str]) -> dict[str, str]:
    """Findings and impression of a draft, word for word.

    A draft is split where it begins with one of these headers and has no other; else all of it is the first of the
    model's target sections, or findings if that is neither.

    >>> split_report("Findings: Clear.\\nImpression: Normal.", ["findings", "impression"])
    {'findings': 'Clear.', 'impression': 'Normal.'}
    >>> split_report("The lungs are clear.", ["impression"])
    {'impression': 'The lungs are clear.'}
    """
    headers = [header for header in find_headers(text) if header.kind == "section"]
    names = [header.section for header in headers]
    if names and set(names) <= {*SECTIONS} and len({*names}) == len(names) and not text[: headers[0].start].strip():
        ends = [header.start for header in headers[1:]] + [len(text)]
        bodies = {one.section: text[one.end : end].strip() for one, end in zip(headers, ends, strict=True)}
        if found := {name: bodies[name] for name in SECTIONS if bodies.get(name)}:
            return found
    name = targets[0] if targets and targets[0] in SECTIONS else "findings"
    return {name: text.strip()}


def series_uid(form: str, study_uid: str, digest: str) -> str:
    """UID of the series of all documents of a study in a form, such as sr, by the model with these weights."""
    return derived_uid(form, "series", study_uid, digest)


def derived_uid(*parts: Any) -> str:
    """A UID that follows from values that JSON can hold."""
    return f"2.25.{uuid.uuid5(_NAMESPACE, json.dumps(parts, default=str)).int}"
