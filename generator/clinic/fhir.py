"""A report as a FHIR R4 bundle; needs the extra `clinic` (fhir.resources, whose R4B models know these resources).

The bundle holds the Patient, the ImagingStudy (images that the draft was made from), the Device (the model), an
Observation for each section, by the device, and the DiagnosticReport over them. Report and observations are
preliminary and labeled as asserted by an artificial intelligence; observations hold the draft word for word.
"""

from __future__ import annotations

import base64
import uuid
from datetime import datetime
from html import escape
from typing import TYPE_CHECKING, Any

from generator.clinic.report import MANUFACTURER, Report, derived_uid
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from pydicom import Dataset

LOINC = {"report": "18748-4", "findings": "59776-5", "impression": "19005-8"}
MADE_BY_AI = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ObservationValue",
    "code": "AIAST",
    "display": "Artificial Intelligence asserted",
}
"""Security label of HL7's guide AI Transparency on FHIR."""
_SEX = {"M": "male", "F": "female", "O": "other"}


def fhir_bundle(report: Report) -> dict[str, Any]:
    """The report as a collection bundle, in JSON's types.

    Its identifier and those of its resources follow from what they say. Dates of the study are without time, since
    DICOM seldom says in which time zone it was.

    Raises:
        RadDraftError: fhir.resources is not installed, or finds the bundle invalid.
    """
    try:
        from fhir.resources.R4B.bundle import Bundle
    except ImportError:
        raise RadDraftError('FHIR needs fhir.resources: pip install "raddraft[clinic]"') from None

    resources = _resources(report)
    names = {name: f"urn:uuid:{_uuid(report, name)}" for name in resources}
    bundle = {
        "resourceType": "Bundle",
        "identifier": _oid(report.uid("fhir")),
        "type": "collection",
        "timestamp": datetime.now().astimezone().isoformat(timespec="seconds"),
        "entry": [{"fullUrl": names[name], "resource": _linked(one, names)} for name, one in resources.items()],
    }
    try:
        return Bundle.model_validate(bundle).model_dump(mode="json")
    except ValueError as error:
        fields = {".".join(map(str, one["loc"])) for one in getattr(error, "errors", list)()}
        raise RadDraftError(
            f"The header of {report.sources[0].path} makes no valid FHIR: {', '.join(sorted(fields))}"
        ) from None


def _resources(report: Report) -> dict[str, dict[str, Any]]:
    """Name -> resource; {"reference": name} refers to another one."""
    header, device = report.header, report.device
    subject = {"subject": {"reference": "patient"}}
    moment = {"effectiveDateTime": date} if (date := _date(header.get("StudyDate"))) else {}
    common = {"meta": {"security": [MADE_BY_AI]}, "status": "preliminary", **subject, **moment}
    resources = {
        "patient": _patient(header),
        "device": {
            "resourceType": "Device",
            "identifier": [_oid(device.uid), {"type": {"text": "SHA-256 of weights"}, "value": device.digest}],
            "manufacturer": MANUFACTURER,
            "deviceName": [{"name": device.model, "type": "model-name"}],
            "version": [{"value": device.software}],
        },
        "study": _imaging_study(report) | subject,
    }
    for name, text in report.sections.items():
        resources[name] = common | {
            "resourceType": "Observation",
            "code": _code(name),
            "device": {"reference": "device"},
            "derivedFrom": [{"reference": "study"}],
            "valueString": text,
            "note": [{"text": report.banner}],
        }
    resources["report"] = common | {
        "resourceType": "DiagnosticReport",
        "text": {"status": "generated", "div": _narrative(report)},
        "identifier": [_oid(report.uid("fhir report"))],
        "category": [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v2-0074", "code": "RAD"}]}],
        "code": _code("report"),
        "issued": datetime.now().astimezone().isoformat(timespec="seconds"),
        "imagingStudy": [{"reference": "study"}],
        "result": [{"reference": name} for name in report.sections],
        "presentedForm": [
            {"contentType": "text/plain; charset=utf-8", "data": base64.b64encode(report.text.encode()).decode()}
        ],
    }
    if impression := report.sections.get("impression"):
        resources["report"]["conclusion"] = f"{report.banner} {impression}"
    return resources


def _code(name: str) -> dict[str, Any]:
    return {"coding": [{"system": "http://loinc.org", "code": LOINC[name]}], "text": name.capitalize()}


def _patient(header: Dataset) -> dict[str, Any]:
    patient: dict[str, Any] = {"resourceType": "Patient"}
    if number := str(header.get("PatientID") or "").strip():
        issuer = str(header.get("IssuerOfPatientID") or "").strip()
        patient["identifier"] = [{"value": number, **({"assigner": {"display": issuer}} if issuer else {})}]
    groups = [group.split("^") for group in str(header.get("PatientName") or "").split("=") if group.strip("^ ")]
    for family, *given in groups[:1]:
        name = {"family": family.strip(), "given": [one.strip() for one in given[:2] if one.strip()]}
        patient["name"] = [{key: value for key, value in name.items() if value}]
    if sex := _SEX.get(str(header.get("PatientSex") or "").strip().upper()):
        patient["gender"] = sex
    if born := _date(header.get("PatientBirthDate")):
        patient["birthDate"] = born
    return patient


def _imaging_study(report: Report) -> dict[str, Any]:
    header = report.header
    study: dict[str, Any] = {
        "resourceType": "ImagingStudy",
        "identifier": [{"system": "urn:dicom:uid", "value": f"urn:oid:{header.StudyInstanceUID}"}],
        "status": "available",
    }
    if accession := str(header.get("AccessionNumber") or "").strip():
        kind = {"system": "http://terminology.hl7.org/CodeSystem/v2-0203", "code": "ACSN"}
        study["identifier"].append({"type": {"coding": [kind]}, "value": accession})
    if started := _date(header.get("StudyDate")):
        study["started"] = started
    series: dict[str, dict[str, Any]] = {}
    for one in (source.header for source in report.sources):
        modality = {"system": "http://dicom.nema.org/resources/ontology/DCM", "code": str(one.get("Modality") or "OT")}
        entry = {"uid": str(one.SeriesInstanceUID), "modality": modality, "instance": []}
        sop_class = {"system": "urn:ietf:rfc:3986", "code": f"urn:oid:{one.SOPClassUID}"}
        instance = {"uid": str(one.SOPInstanceUID), "sopClass": sop_class}
        series.setdefault(one.SeriesInstanceUID, entry)["instance"].append(instance)
    return study | {"series": list(series.values())}


def _narrative(report: Report) -> str:
    parts = [f"<p><b>{escape(report.banner)}</b></p>"]
    for name, text in {"indication": report.indication, **report.sections}.items():
        if text:
            lines = escape(text).replace("\n", "<br/>")
            parts.append(f"<p><b>{name.capitalize()}</b></p><p>{lines}</p>")
    return f'<div xmlns="http://www.w3.org/1999/xhtml">{"".join(parts)}</div>'


def _linked(value: Any, names: dict[str, str]) -> Any:
    """A resource whose references are the full addresses of other entries."""
    if isinstance(value, dict):
        return {key: names[one] if key == "reference" else _linked(one, names) for key, one in value.items()}
    return [_linked(one, names) for one in value] if isinstance(value, list) else value


def _uuid(report: Report, name: str) -> uuid.UUID:
    return uuid.UUID(int=int(derived_uid("fhir", name, report.uid("fhir")).rpartition(".")[2]))


def _oid(uid: str) -> dict[str, str]:
    return {"system": "urn:ietf:rfc:3986", "value": f"urn:oid:{uid}"}


def _date(value: Any) -> str | None:
    """20260131 as 2026-01-31; None of anything else."""
    try:
        return datetime.strptime(str(value or "").strip(), "%Y%m%d").strftime("%Y-%m-%d")
    except ValueError:
        return None
