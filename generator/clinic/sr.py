"""A report as a DICOM Basic Text SR, and back.

Written with pydicom: highdicom has no class for Basic Text SR but a private one, and asks of films more than many have.
The tree follows TID 2000 (Basic Diagnostic Imaging Report) with its headings (CID 7001) and elements (CID 7002).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from generator.clinic.objects import code_item, new_document, reference
from generator.clinic.report import MANUFACTURER, SECTIONS, Report, Source
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.sr.coding import Code


@dataclass
class ReadReport:
    """What a Basic Text SR by RadDraft says."""

    banner: str
    """Its first text."""
    sections: dict[str, str]
    """Findings, impression."""
    indication: str
    """Why the images were taken, if stated."""
    digest: str
    """Of the model's weights."""
    complete: bool
    """Completion Flag."""


def basic_text_sr(report: Report) -> Dataset:
    """The report as a Basic Text SR, ready for `save_as` or to be sent.

    PARTIAL (or COMPLETE, see `Report`), UNVERIFIED and PRELIMINARY. Its UID follows from what it says, so the same
    report has one UID and every revision another.
    """
    from pydicom import config, uid
    from pydicom.sr.codedict import codes

    with config.disable_value_validation():  # what the film says of the patient stays as it is
        dataset = new_document(report, "sr", uid.BasicTextSRStorage, "SR")
        dataset.CompletionFlag, dataset.VerificationFlag = "COMPLETE" if report.complete else "PARTIAL", "UNVERIFIED"
        dataset.PreliminaryFlag = "PRELIMINARY"
        dataset.ReferencedPerformedProcedureStepSequence = dataset.PerformedProcedureCodeSequence = []
        dataset.CurrentRequestedProcedureEvidenceSequence = _evidence(report.sources)
        if report.priors:
            dataset.PertinentOtherEvidenceSequence = _evidence(report.priors)
        dataset.ValueType, dataset.ContinuityOfContent = "CONTAINER", "SEPARATE"
        dataset.ConceptNameCodeSequence = [code_item(codes.cid7000.DiagnosticImagingReport)]
        headings = _headings()
        containers = [_container(headings["indication"], report.indication)] if report.indication else []
        containers += [
            _container(headings[name], text, [*report.sources, *report.priors])
            for name, text in report.sections.items()
        ]
        banner = _item("CONTAINS", "TEXT", codes.DCM.Comment, TextValue=report.banner)
        dataset.ContentSequence = [banner, *_observer(report), *containers]
    return dataset


def read_sr(dataset: Dataset) -> ReadReport:
    """What a Basic Text SR that `basic_text_sr` made says.

    Raises:
        RadDraftError: it is another object, or damaged.
    """
    from pydicom import uid

    damaged = RadDraftError("This report by RadDraft is damaged: a part lacks its heading or its text")
    try:
        items = list(dataset.get("ContentSequence", []))
        ours = dataset.get("SOPClassUID") == uid.BasicTextSRStorage and dataset.get("Manufacturer") == MANUFACTURER
    except Exception:  # pydicom reads an element when it is asked for, and broken bytes make it raise anything
        raise damaged from None
    if not ours or not items or items[0].get("ValueType") != "TEXT":
        raise RadDraftError("This DICOM object is no report by RadDraft: a Basic Text SR of its own was expected")
    names = {heading.value: name for name, (heading, _) in _headings().items()}
    try:
        banner = str(items[0].TextValue)
        texts = {
            names[item.ConceptNameCodeSequence[0].CodeValue]: str(item.ContentSequence[0].TextValue)
            for item in items
            if item.ValueType == "CONTAINER"
        }
    except Exception:
        raise damaged from None
    return ReadReport(
        banner=banner,
        sections={name: texts[name] for name in SECTIONS if name in texts},
        indication=texts.get("indication", ""),
        digest=str(dataset.get("DeviceSerialNumber", "")),
        complete=dataset.get("CompletionFlag") == "COMPLETE",
    )


def _headings() -> dict[str, tuple[Code, Code]]:
    """Section -> concept of its container, concept of its text."""
    from pydicom.sr.codedict import codes

    indication = codes.cid7001.IndicationsForProcedure  # CID 7002 has no element for it
    return {
        "indication": (indication, indication),
        "findings": (codes.cid7001.Findings, codes.cid7002.Finding),
        "impression": (codes.cid7001.Impressions, codes.cid7002.Impression),
    }


def _observer(report: Report) -> Iterator[Dataset]:
    """The model as device observer, TID 1001, 1002 and 1004."""
    from pydicom.sr.codedict import codes

    device, where = report.device, "HAS OBS CONTEXT"
    yield _item(where, "CODE", codes.DCM.ObserverType, ConceptCodeSequence=[code_item(codes.DCM.Device)])
    yield _item(where, "UIDREF", codes.DCM.DeviceObserverUID, UID=device.uid)
    yield _item(where, "TEXT", codes.DCM.DeviceObserverName, TextValue=device.model)
    yield _item(where, "TEXT", codes.DCM.DeviceObserverManufacturer, TextValue=MANUFACTURER)
    yield _item(where, "TEXT", codes.DCM.DeviceObserverModelName, TextValue=device.short_name)
    yield _item(where, "TEXT", codes.DCM.DeviceObserverSerialNumber, TextValue=device.digest)


def _container(concepts: tuple[Code, Code], text: str, sources: Sequence[Source] = ()) -> Dataset:
    """A heading with its text, which is inferred from images."""
    written = _item("CONTAINS", "TEXT", concepts[1], TextValue=text)
    if sources:
        written.ContentSequence = [
            _item("INFERRED FROM", "IMAGE", ReferencedSOPSequence=[reference(one.header)]) for one in sources
        ]
    return _item("CONTAINS", "CONTAINER", concepts[0], ContinuityOfContent="SEPARATE", ContentSequence=[written])


def _item(relationship: str, value_type: str, concept: Code | None = None, **values: Any) -> Dataset:
    """A content item, C.17.3."""
    from pydicom import Dataset

    item = Dataset()
    item.RelationshipType, item.ValueType = relationship, value_type
    if concept:
        item.ConceptNameCodeSequence = [code_item(concept)]
    for keyword, value in values.items():
        setattr(item, keyword, value)
    return item


def _evidence(sources: Sequence[Source]) -> list[Dataset]:
    """Images by study and series, C.17.2.1."""
    from pydicom import Dataset

    by_study: dict[str, dict[str, list[Dataset]]] = {}
    for header in (source.header for source in sources):
        series = by_study.setdefault(header.StudyInstanceUID, {})
        series.setdefault(header.SeriesInstanceUID, []).append(reference(header))
    studies = []
    for study_uid, of_study in by_study.items():
        study = Dataset()
        study.StudyInstanceUID, study.ReferencedSeriesSequence = study_uid, []
        for series_uid, references in of_study.items():
            one = Dataset()
            one.SeriesInstanceUID, one.ReferencedSOPSequence = series_uid, references
            study.ReferencedSeriesSequence.append(one)
        studies.append(study)
    return studies
