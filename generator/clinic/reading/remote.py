"""Studies of an archive to read: listed at the start, each film fetched when it is first shown or drafted."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from threading import Lock

from generator.clinic import Ids, Modality
from generator.clinic.archive import Archive, ArchiveError, read_password
from generator.clinic.films import Film
from generator.clinic.grouping import as_studies, group
from generator.clinic.reading import Split
from generator.clinic.reading.worklist import Worklist, gather
from generator.priors import find_priors
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.studies import StudyImage
from raddraft.text import progress

SCHEMES = ("http://", "https://")
MODALITIES: tuple[Modality, ...] = ("CR", "DX")


def find_worklist(
    sources: Sequence[str],
    folder: Path,
    split: Split = "test",
    ids: Ids = "pseudonymous",
    date: str | None = None,
    user: str | None = None,
    password_file: Path | None = None,
) -> Worklist:
    """The studies of files as by `gather`, or those of an archive whose URL is the only source as by `list_archive`.

    Raises:
        RadDraftError: as these, or an option that is for the other kind of source.
    """
    urls = [one for one in sources if one.startswith(SCHEMES)]
    if not urls:
        if stated := [
            name for name, value in {"date": date, "user": user, "password_file": password_file}.items() if value
        ]:
            raise RadDraftError(f"--{stated[0]} is for an archive, given by its URL; got {' '.join(sources)}")
        return gather([*map(Path, sources)], split, ids)
    if len(sources) > 1:
        raise RadDraftError(f"An archive is read alone; leave out the others of {' '.join(sources)}")
    return list_archive(Archive(urls[0], user, read_password(user, password_file)), folder, date, ids)


def list_archive(
    archive: Archive,
    folder: Path,
    date: str | None = None,
    ids: Ids = "pseudonymous",
    modalities: Sequence[str] = MODALITIES,
) -> Worklist:
    """The chest studies of an archive; their priors are looked for among them.

    Args:
        archive: is asked for the headers of all films now, and for the films when they are needed.
        folder: where films are put, which name patients.
        date: Study Date as DICOM matches it: 20260131, 20260101-20260131, 20260101- …; by default any.
        ids: what studies are called.
        modalities: of films.

    Raises:
        RadDraftError: there is no study, or the archive does not answer. A study that cannot be listed is warned of.
    """
    films: list[Film] = []
    found = archive.studies(modalities, date)
    for number, listed in enumerate(progress(found, "studies")):
        try:
            films += archive.films(listed.uid, archive.series(listed.uid), modalities, folder / str(number))
        except ArchiveError as error:  # it may have vanished since it was listed; its UID would tell who it is of
            warnings.warn(f"left out: study {number + 1} of {len(found)}: {error}", stacklevel=2)
    grouped = group(films)
    for path, reason in grouped.left_out:
        warnings.warn(f"left out: {path}: {reason}".replace(f"{folder}/", ""), stacklevel=2)
    if not grouped.studies:
        raise RadDraftError(f"{archive.name}: no chest study" + (f" of {date}" if date else ""))
    by_path = {film.path.absolute(): film for study in grouped.studies for film in study.films}
    fetching = Lock()

    def fetch(image: StudyImage) -> None:
        film = by_path[image.path]
        with fetching:
            if not image.path.is_file():
                with write_whole(image.path) as temporary:
                    archive.fetch(film.study, film.series, film.instance, temporary)

    studies = as_studies(grouped.studies, ids)
    return Worklist(studies, find_priors(studies), {}, fetch)
