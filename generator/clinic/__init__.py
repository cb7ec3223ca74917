"""What a clinic has and takes: studies made of DICOM files, and drafts as DICOM objects and FHIR."""

from dataclasses import dataclass, field
from typing import Literal

Ids = Literal["pseudonymous", "original"]
"""Ids of DICOM studies in files: keyed digests (see `generator.clinic.pseudonyms`), or the UID and patient's number."""
Form = Literal["sr", "pdf", "fhir"]
"""What a draft is written as: a Basic Text SR, an Encapsulated PDF, a FHIR bundle."""
Document = Literal["sr", "pdf"]
"""The forms that an archive takes."""
Modality = Literal["CR", "DX", "RG"]


@dataclass
class Selection:
    """Which studies of an archive are drafted."""

    date: str | None = None
    """Study Date as DICOM matches it: 20260131, 20260101-20260131, 20260101- …; by default any."""
    modality: list[Modality] = field(default_factory=lambda: list[Modality](("CR", "DX")))
    """Modalities of films."""
    settle: float = 60
    """Seconds without a new object after which a study counts as whole; --once does not wait for it."""
