"""The JSON of ReXrank (rajpurkarlab/ReXrank, commit 8152f99): its lists of studies, and submissions.

    {"CXR3030_IM-1405": {"image_path": […], "key_image_path": …, "frontal_lateral": […], "context": "Indication: …",
                         "section_findings": …, "section_impression": …, "report": …}, …}

A submission is the same object; each study has its draft besides, as model_prediction.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from raddraft.errors import RadDraftError
from raddraft.files import read_json, write_json
from raddraft.studies import Study
from raddraft.tables import is_nothing
from raddraft.text import tell_studies

ENTRY = "rexrank"
"""Key of a study in the manifest: its entry in the list."""
PREDICTION = "model_prediction"


def read_entries(path: Path, error: type[RadDraftError] = RadDraftError) -> dict[str, dict[str, Any]]:
    """Study -> its entry in a list or a submission; NaN is read as null.

    Raises:
        RadDraftError: (or `error`) not JSON, or not an object of objects.
    """
    entries = read_json(path, error)
    if not isinstance(entries, dict) or not all(isinstance(entry, dict) for entry in entries.values()):
        raise error(f"{path}: expected ReXrank's form, an object with an object for each study")
    return entries


def find_subject(study_id: str, entry: dict[str, Any]) -> str | None:
    """The patient: subject_id (MIMIC-CXR), or patient64620 of patient64620_study1 (CheXpert Plus); else None."""
    if (subject := entry.get("subject_id")) is not None:
        return str(subject)
    match = re.fullmatch(r"(patient\d+)_study\d+", study_id)
    return match[1] if match else None


def make_reference(entry: dict[str, Any]) -> str:
    """What ReXrank's script compares a draft with: both sections, the word None for one that is missing."""
    return f"Findings: {entry.get('section_findings')} Impression: {entry.get('section_impression')}"


def find_entries(studies: Iterable[Study]) -> dict[str, dict[str, Any]]:
    """Study -> its entry, as `raddraft prepare rexrank` keeps it in the manifest.

    Raises:
        RadDraftError: a study has none.
    """
    entries = {study.study_id: study.extra.get(ENTRY) for study in studies}
    for name, entry in entries.items():
        if not isinstance(entry, dict):
            raise RadDraftError(
                f"Study {name!r} has no entry of a list of ReXrank, which a submission repeats: make the manifest with "
                "raddraft prepare rexrank"
            )
    return entries  # type: ignore[return-value]  # checked


def check_target(path: Path) -> None:
    """Check that a submission may be written to a path: there is no file, or an earlier submission.

    Raises:
        RadDraftError: another file is there, such as a list of ReXrank, which would be lost.
    """
    if not path.exists() or path.read_bytes().strip() == b"{}":  # no study had a draft
        return
    for name, entry in read_entries(path).items():
        if PREDICTION not in entry:
            raise RadDraftError(
                f"{path}: study {name!r} has no {PREDICTION}, so this is no submission of an earlier run and is not "
                "replaced; choose another --out"
            )


def write_submission(path: Path, entries: Mapping[str, dict[str, Any]], drafts: Mapping[str, str]) -> list[str]:
    """Write a submission: each entry with its draft; studies without a draft are not in it.

    Args:
        path: of the JSON file.
        entries: study -> its entry.
        drafts: study -> text.

    Returns:
        Sentences: what was written, the studies that it lacks, and drafts that ReXrank's code cannot score.
    """
    submission = {name: entry | {PREDICTION: drafts[name]} for name, entry in entries.items() if name in drafts}
    write_json(path, submission)
    return [
        f"The submission to ReXrank is {path}: {len(submission):,} of the manifest's {len(entries):,} studies",
        *tell_studies("without a draft, which ReXrank leaves out in silence", entries.keys() - drafts.keys()),
        *tell_studies(
            "with a blank draft, at which ReXrank's code stops",
            (name for name in submission if is_nothing(drafts[name])),
        ),
    ]
