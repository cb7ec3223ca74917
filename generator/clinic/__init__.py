"""What a clinic has and takes: studies made of DICOM files, and drafts as DICOM objects and FHIR."""

from typing import Literal

Ids = Literal["pseudonymous", "original"]
"""Ids of DICOM studies in files: keyed digests (see `generator.clinic.pseudonyms`), or the UID and patient's number."""
Form = Literal["sr", "pdf", "fhir"]
"""What a draft is written as: a Basic Text SR, an Encapsulated PDF, a FHIR bundle."""
