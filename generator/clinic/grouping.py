"""Films -> studies: which belong together, which are read, which are left out and why, and what came before.

    grouped = group(film_of(path, header) for path, header in headers)  # files, or what an archive lists
    for one in grouped.studies:
        print(one.films[0].path, one.films[0].view)
    studies = as_studies(grouped.studies)  # with pseudonymous ids and priors, to draft or to write as a manifest
    studies, grouped = study_files(paths)  # all of it for files of any kind

Rules. Films of one Study Instance UID are a study. Reports, presentation states and key objects are passed over. Left
out are films of another modality or part of the body; a second file of one SOP Instance UID; films FOR PROCESSING whose
exposure a film of the study shows FOR PRESENTATION (`generator.clinic.films.same_exposure`); and studies whose films
name several patients. In a study, films FOR PRESENTATION come first, of these frontal ones, then by Series Number and
Instance Number. A prior is the latest study of the same Patient ID (and issuer) that is known to be earlier by Study
Date and Study Time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from generator.clinic import Ids
from generator.clinic.films import Film, read_film, same_exposure
from generator.clinic.pseudonyms import Pseudonyms
from generator.priors import find_priors
from raddraft.splits import UNKNOWN_PATIENT
from raddraft.studies import Study, StudyImage
from raddraft.text import progress
from raddraft.views import Direction, direction

DIRECTIONS: tuple[Direction | None, ...] = ("frontal", None, "lateral", "other")
"""In the order in which films are read."""


@dataclass
class ClinicStudy:
    """The chest films of one study."""

    uid: str
    """Study Instance UID; empty where the film states none."""
    films: list[Film]
    """At least one, the first to read first."""

    @property
    def patient(self) -> tuple[str, str]:
        """Patient ID and its issuer, empty where nothing is stated."""
        return max((film.patient for film in self.films), key=lambda patient: [part != "" for part in patient])


@dataclass
class Grouped:
    """What became of films."""

    studies: list[ClinicStudy] = field(default_factory=list)
    """In the order of their first films."""
    left_out: list[tuple[Path, str]] = field(default_factory=list)
    """Film and reason of each that is in no study though it has pixels."""
    passed_over: int = 0
    """Reports, presentation states and the like."""


def group(films: Iterable[Film], named: Collection[Path] = ()) -> Grouped:
    """Group films into studies by the rules at the top of this module.

    Args:
        films: of a folder, or as an archive lists them. One without a Study Instance UID is a study of its own.
        named: films that the user asked for by name, which are kept whatever they show.
    """
    grouped = Grouped()
    by_study: dict[str, dict[str, Film]] = {}
    for film in films:
        uid, name = film.study or str(film.path), film.instance or str(film.path)
        known = by_study.get(uid, {}).get(name)
        if film.no_picture:
            grouped.passed_over += 1
        elif film.no_chest and film.path not in named:
            grouped.left_out.append((film.path, film.no_chest))
        elif known is not None:
            grouped.left_out.append((film.path, f"has the SOP Instance UID of {known.path}, which is taken"))
        else:
            by_study.setdefault(uid, {})[name] = film
    for members in ([*found.values()] for found in by_study.values()):
        if several_patients([film.patient for film in members]):
            reason = "its study has films of several patients; mend their headers"
            grouped.left_out += [(film.path, reason) for film in members]
            continue
        shown = [film for film in members if not film.processing]
        kept = []
        for film in members:
            other = next((one for one in shown if film.processing and same_exposure(one, film)), None)
            if other is None:
                kept.append(film)
            else:
                reason = f"is for processing; {other.path} shows this exposure for presentation"
                grouped.left_out.append((film.path, reason))
        kept.sort(key=lambda film: (film.processing, DIRECTIONS.index(direction(film.view)), film.order))
        grouped.studies.append(ClinicStudy(kept[0].study, kept))
    return grouped


def as_studies(
    studies: Sequence[ClinicStudy],
    ids: Ids = "pseudonymous",
    split: str = "test",
    view: str | None = None,
    sections: dict[str, str] | None = None,
    pseudonyms: Pseudonyms | None = None,
) -> list[Study]:
    """Studies of the manifest, each with its `prior` where there is one; no date leaves this function.

    Args:
        studies: what `group` found.
        ids: what study_id and subject_id are; studies without a Patient ID are a subject each.
        split: of all of them.
        view: of films whose header states none.
        sections: of all of them.
        pseudonyms: by default those of the user's key.
    """
    if ids == "pseudonymous" and studies:
        pseudonyms = pseudonyms or Pseudonyms()
    made = []
    for one in studies:
        number, issuer = one.patient
        study_id, subject_id = one.uid, (f"{number}^^^{issuer}" if issuer else number) or one.uid
        if ids == "pseudonymous" and pseudonyms:
            study_id = pseudonyms.study(one.uid)
            subject_id = pseudonyms.patient(number, issuer) if number else f"p{study_id[1:]}"
        images = [StudyImage(film.path.absolute(), film.view or view) for film in one.films]
        date, time = next(((film.date, film.time) for film in one.films if film.date), ("", ""))
        told = {"study_date": date, "study_time": time} | ({} if number else {UNKNOWN_PATIENT: True})
        made.append(Study(study_id, subject_id, split, images, dict(sections or {}), extra=told))
    priors = find_priors(made)
    for study in made:
        study.extra = {key: value for key, value in study.extra.items() if key == UNKNOWN_PATIENT}
        if study.study_id in priors:
            study.extra["prior"] = priors[study.study_id].study_id
    return made


def study_files(
    paths: Sequence[Path],
    ids: Ids = "pseudonymous",
    split: str = "test",
    view: str | None = None,
    sections: dict[str, str] | None = None,
    named: Collection[Path] = (),
) -> tuple[dict[Path, Study | None], Grouped]:
    """Group the DICOM files among files of any kind.

    Args:
        paths: files.
        ids, split, view, sections: as of `as_studies`.
        named: as of `group`.

    Returns:
        File -> its study, in the order of `paths`, without what was left out or passed over. None for files that are
        no DICOM, cannot be read or have no Study Instance UID. And the groups.
    """
    films = {path: read_film(path) for path in progress(paths, "headers")}
    for path in named:
        film = films.get(path)
        if film and film.no_picture:
            films[path] = None
    grouped = group([film for film in films.values() if film], named)
    of_file: dict[Path, Study | None] = {path: None for path, film in films.items() if film is None}
    of_file |= {one.films[0].path: None for one in grouped.studies if not one.uid}
    grouped.studies = [one for one in grouped.studies if one.uid]
    for one, study in zip(grouped.studies, as_studies(grouped.studies, ids, split, view, sections), strict=True):
        of_file |= {film.path: study for film in one.films}
    return {path: of_file[path] for path in paths if path in of_file}, grouped


def several_patients(patients: Sequence[tuple[str, str]]) -> bool:
    """Whether films are of more than one patient, by each one's Patient ID and its issuer; empty is not stated."""
    numbers, issuers = ({patient[at] for patient in patients if patient[at]} for at in (0, 1))
    return len(numbers) > 1 or len(issuers) > 1
