"""What the header of a DICOM file says of the film, as far as it takes to put films into studies.

Of free texts (descriptions) only words of fixed tables leave this module: the rest may name a patient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from raddraft.dicom import CHEST_MODALITIES, CHEST_WORDS
from raddraft.dicom_header import Header
from raddraft.views import direction, name_view

if TYPE_CHECKING:
    from pydicom import Dataset

DESCRIPTIONS = (
    *(
        "SeriesDescription",
        "ProtocolName",
        "AcquisitionDeviceProcessingDescription",
        "PerformedProcedureStepDescription",
    ),
    *("RequestedProcedureDescription", "StudyDescription"),
)
"""Free texts that may name a view or a part of the body, the closest to the film first."""
TAGS = (
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "PatientID", "IssuerOfPatientID"),
    *("Modality", "BodyPartExamined", "AnatomicRegionSequence", "ViewPosition", "ViewCodeSequence"),
    *("PatientOrientation", "PresentationIntentType", "SourceImageSequence", "IrradiationEventUID"),
    *("StudyDate", "StudyTime", "AcquisitionDateTime", "AcquisitionDate", "AcquisitionTime", "SeriesNumber"),
    *("InstanceNumber", *DESCRIPTIONS),
)
"""The elements that are read; ask an archive's QIDO-RS for these."""
NO_PICTURES = frozenset({"SR", "PR", "KO", "DOC"})
"""Modalities of structured reports, presentation states, key objects and documents."""
OTHER_PARTS = frozenset(
    {
        *("ABDOMEN", "ABD", "KUB", "ANKLE", "ARM", "BREAST", "CALCANEUS", "CERVICAL", "CLAVICLE", "COCCYX"),
        *("CSPINE", "ELBOW", "FEMUR", "FINGER", "FOOT", "FOREARM", "HAND", "HEAD", "HEEL", "HIP", "HUMERUS"),
        *("JAW", "KNEE", "LEG", "LSPINE", "LUMBAR", "MANDIBLE", "NECK", "PATELLA", "PELVIS", "SACRUM", "SCAPULA"),
        *("SHOULDER", "SKULL", "SPINE", "TEETH", "THUMB", "TIBIA", "TOE", "WRIST"),
    }
)
"""Words of a description that name another part of the body than the chest."""


@dataclass(frozen=True)
class Film:
    """A DICOM object, as far as it matters for which study it belongs to. Texts are empty where nothing is stated."""

    path: Path
    """The file, or what messages are to call it."""
    study: str
    """Study Instance UID."""
    series: str
    """Series Instance UID."""
    instance: str
    """SOP Instance UID."""
    patient: tuple[str, str]
    """Patient ID, and who issued it."""
    date: str
    """Of the study, e.g. 20260131."""
    time: str
    """Of the study, e.g. 081500.5; only where there is a date."""
    view: str | None
    """PA, AP, LATERAL, FRONTAL … by `raddraft.views`; None if not stated."""
    no_picture: bool
    """Whether it is a report, a presentation state or the like."""
    no_chest: str | None
    """Why it is no chest film, if it is none."""
    processing: bool
    """Whether it is FOR PROCESSING, hence not to be read."""
    sources: frozenset[str]
    """SOP Instance UIDs of the images that it was made of."""
    event: str
    """Irradiation Event UID."""
    acquired: float | None
    """Moment of the exposure in seconds, from an arbitrary start."""
    order: tuple[float, float]
    """Series Number and Instance Number."""


def read_film(path: Path, data: bytes | None = None) -> Film | None:
    """The film in a file; None where the file is no DICOM, or its header cannot be read.

    Args:
        path: the file, or what messages are to call it.
        data: content of the file, where it was read before.
    """
    from pydicom import dcmread

    from raddraft.images import is_dicom

    if not is_dicom(path, data):
        return None
    source = path if data is None else BytesIO(data)
    try:
        return film_of(path, dcmread(source, force=True, stop_before_pixels=True, specific_tags=list(TAGS)))
    except Exception:  # broken bytes make the parser raise anything; whoever reads the pixels says what is wrong
        return None


def film_of(path: Path, dataset: Dataset) -> Film:
    """The film of a header, which needs no more than `TAGS`.

    Args:
        path: the file, or what messages are to call it.
        dataset: read from a file, or from an archive's answer.
    """
    from pydicom import config

    with config.disable_value_validation():  # its warnings quote values
        header = Header(path, dataset)
        date, time = _date(_first(header, "StudyDate")), _time(_first(header, "StudyTime"))
        return Film(
            path=path,
            study=_first(header, "StudyInstanceUID"),
            series=_first(header, "SeriesInstanceUID"),
            instance=_first(header, "SOPInstanceUID"),
            patient=(_first(header, "PatientID"), _first(header, "IssuerOfPatientID")),
            date=date,
            time=time if date else "",
            view=_view(header),
            no_picture=_no_picture(header),
            no_chest=_no_chest(header),
            processing=header.text("PresentationIntentType") == "FOR PROCESSING"
            or _class_name(header).endswith("For Processing"),
            sources=frozenset(
                str(item.get("ReferencedSOPInstanceUID", "")) for item in header.items("SourceImageSequence")
            ),
            event=_first(header, "IrradiationEventUID"),
            acquired=_acquired(header),
            order=(_number(header, "SeriesNumber"), _number(header, "InstanceNumber")),
        )


def same_exposure(shown: Film, raw: Film) -> bool:
    """Whether a film for presentation may show the exposure that a film for processing of its study holds.

    It does if it names the other as its source, or both name one irradiation event. It does not if they name different
    events, directions, or moments more than two seconds apart. Where nothing tells them apart, it does.
    """
    if raw.instance in shown.sources:
        return True
    if shown.event and raw.event:
        return shown.event == raw.event
    one, other = direction(shown.view), direction(raw.view)
    if one and other and one != other:
        return False
    return shown.acquired is None or raw.acquired is None or abs(shown.acquired - raw.acquired) <= 2


def _view(header: Header) -> str | None:
    """View Position, else the view's code, else the axes of rows and columns, else a description."""
    stated = name_view(header.text("ViewPosition"))
    for item in header.items("ViewCodeSequence"):
        stated = stated or name_view(str(item.get("CodeMeaning", "")))
    if stated:
        return stated
    axes = {str(one).strip().upper()[:1] for one in header.values("PatientOrientation")}
    if len(axes) == 2 and axes & set("HF"):
        if axes & set("LR"):
            return "FRONTAL"
        if axes & set("AP"):
            return "LATERAL"
    return next(filter(None, (name_view(header.text(keyword)) for keyword in DESCRIPTIONS)), None)


def _no_picture(header: Header) -> bool:
    name = _class_name(header)
    return header.text("Modality") in NO_PICTURES or ("Storage" in name and "Image" not in name)


def _no_chest(header: Header) -> str | None:
    """Why a film is no chest film, by its modality and part of the body; None where nothing says so."""
    modality, part = header.text("Modality"), header.text("BodyPartExamined")
    if modality and modality not in CHEST_MODALITIES:
        return f"modality {modality!r} is not one of {', '.join(sorted(CHEST_MODALITIES))}"
    if part:
        return None if _is_chest(part) else f"body part {part!r} is not the chest"
    regions = [str(item.get("CodeMeaning", "")) for item in header.items("AnatomicRegionSequence")]
    for text in (*regions, *map(header.text, DESCRIPTIONS)):
        if _is_chest(text):
            return None
        words = re.findall(r"[A-Z]+", text.upper())
        if named := next((word for word in words if {word, word.removesuffix("S")} & OTHER_PARTS), None):
            return f"its description names another part of the body, {named.lower()!r}"
    return None


def _is_chest(text: str) -> bool:
    return any(word in text.upper() for word in CHEST_WORDS)


def _class_name(header: Header) -> str:
    """Name of the SOP class; "" of one that pydicom does not know."""
    from pydicom.uid import UID

    uid = UID(_first(header, "SOPClassUID"))
    return "" if uid.name == uid else uid.name


def _first(header: Header, keyword: str) -> str:
    """The first value of an element as it stands; "" where there is none."""
    return str(next(iter(header.values(keyword)), "")).strip()


def _number(header: Header, keyword: str) -> float:
    try:
        return float(_first(header, keyword))
    except ValueError:
        return 0


def _date(text: str) -> str:
    """A date as eight digits; "" if it is none. ACR-NEMA wrote 1993.02.24."""
    digits = re.sub(r"[.\-/]", "", text)
    return digits if re.fullmatch(r"\d{8}", digits) else ""


def _time(text: str) -> str:
    """A time of day as at least six digits; "" if it is none."""
    digits = text.replace(":", "")
    if re.fullmatch(r"\d{2}|\d{4}", digits):
        return digits.ljust(6, "0")
    return digits if re.fullmatch(r"\d{6}(\.\d*)?", digits) else ""


def _acquired(header: Header) -> float | None:
    moment = re.match(r"(\d{8})(\d{6}(?:\.\d+)?)", _first(header, "AcquisitionDateTime"))
    date, time = moment.groups() if moment else ("", "")
    date, time = date or _date(_first(header, "AcquisitionDate")), time or _time(_first(header, "AcquisitionTime"))
    try:
        whole = datetime.strptime(date + time[:6], "%Y%m%d%H%M%S")
    except ValueError:
        return None
    return (whole - datetime.min).total_seconds() + float(f"0{time[6:]}" if time[6:] not in ("", ".") else 0)
