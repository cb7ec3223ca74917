"""What there is to read: studies of manifests, folders and files, with their priors, and drafts that were made before.

worklist = gather([Path("studies.jsonl"), Path("predictions.jsonl")])
worklist = gather([Path("my-dicoms")])
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from generator.clinic import Ids
from generator.clinic.grouping import DIRECTIONS
from generator.clinic.reading import Split
from generator.priors import find_priors
from raddraft.errors import RadDraftError
from raddraft.files import read_jsonl
from raddraft.studies import Study, StudyImage, read_studies


@dataclass
class Drafted:
    """The draft of a study, or why there is none."""

    text: str
    """As the model wrote it."""
    model: str
    """Its name."""
    sentences: list[dict[str, Any]] | None = None
    """For each sentence its "log_prob" and "agreement", as far as known, see `generator.confidence`."""
    error: str | None = None
    """Why there is none."""
    weights: str | None = None
    """Digest of the model's weights, where the draft is made here: the model may have another name the next time."""


@dataclass
class Worklist:
    """Studies in the order in which they are read; a study's number is its place here."""

    studies: list[Study]
    priors: dict[str, Study] = field(default_factory=dict)
    """Study id -> the study before it."""
    drafts: dict[str, Drafted] = field(default_factory=dict)
    """Study id -> draft that was made before."""
    fetch: Callable[[StudyImage], None] = lambda image: None
    """Brings the file of an image to its path, where it is not there yet."""

    def images(self, number: int) -> list[StudyImage]:
        """The films of a study, frontal ones first, then those of its prior."""
        study = self.studies[number]
        shown = [study, self.priors[study.study_id]] if study.study_id in self.priors else [study]
        return [image for one in shown for image in sorted(one.images, key=lambda one: DIRECTIONS.index(one.direction))]


def gather(sources: Sequence[Path], split: Split = "test", ids: Ids = "pseudonymous") -> Worklist:
    """The studies of manifests, folders and image files, and the drafts of predictions.jsonl files.

    Args:
        sources: any of these; DICOM files are put into studies as by `generator.api.find_studies`.
        split: of the studies of manifests; priors may be of any.
        ids: what DICOM studies are called.

    Raises:
        RadDraftError: no study, two studies of one id, drafts of other studies only, or as the readers of these files.
    """
    from generator.api import find_studies

    known: list[Study] = []
    studies: list[Study] = []
    files: list[Path] = []
    drafts: dict[str, Drafted] = {}
    for path in sources:
        if path.suffix != ".jsonl":
            files.append(path)
        elif _holds_drafts(path):
            drafts |= _read_given(path)
        else:
            read = read_studies(path)
            known += read
            studies += [study for study in read if split in (study.split, "all")]
    if known and not studies:
        raise RadDraftError(f"No study of {', '.join(map(str, sources))} is in split {split!r}; give another --split")
    if files:
        found = find_studies(files, ids=ids)
        known, studies = [*known, *found], [*studies, *found]
    if not studies:
        raise RadDraftError(
            f"{', '.join(map(str, sources))}: drafts without their studies; name the manifest or folder of these, too"
        )
    numbers: dict[str, int] = {}
    for number, study in enumerate(studies):
        if numbers.setdefault(study.study_id, number) != number:
            raise RadDraftError(f"Study {study.study_id!r} is there twice in {', '.join(map(str, sources))}")
    if drafts and not drafts.keys() & numbers.keys():
        raise RadDraftError(f"None of the {len(drafts)} drafts is of a study here, such as {studies[0].study_id!r}")
    if others := len(drafts.keys() - numbers.keys()):
        warnings.warn(f"{others} of {len(drafts)} drafts are of no study here", stacklevel=2)
    return Worklist(studies, find_priors(known), drafts)


def _holds_drafts(path: Path) -> bool:
    """Whether a JSON Lines file is a predictions.jsonl, by its first line."""
    _, row = next(read_jsonl(path), ("", {}))
    return "prediction" in row


def _read_given(path: Path) -> dict[str, Drafted]:
    return {
        row["study_id"]: Drafted(row["prediction"], str(row.get("model") or path.stem), _confidence(row))
        for _, row in read_jsonl(path, ("study_id", "prediction"), "study_id")
    }


def _confidence(row: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The confidence of sentences as RadDraft writes it; of what another system may mean by the key, nothing."""
    try:
        return [
            {"sentence": str(one["sentence"])}
            | {
                key: float(one[key])
                for key in ("log_prob", "agreement")
                if one.get(key) is not None and math.isfinite(one[key])
            }
            for one in row["confidence"]
        ]
    except (KeyError, TypeError, ValueError):
        return None
