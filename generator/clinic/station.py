"""Drafts the chest studies of an archive and sends the documents back; see `raddraft pacs`.

What is done stands in the archive: a study is drafted if it has this model's series of each document, whose UIDs follow
from study and weights. Beside it a folder keeps what a kill must not lose:

    outbox/ID/      documents of a study that are not known to be in the archive; they name patients
    inbox/          received objects that are not drafted yet
    films/          films while they are drafted
    status.jsonl    studies that need no look until they change, by pseudonymous id

Documents are written whole before they are sent, asked for by UID before each is sent, and removed once the archive
lists them. Killed at any moment, the next run goes on from there: nothing is lost and nothing is sent twice.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic, sleep, time
from typing import TYPE_CHECKING, Any

from generator.clinic import Document, Selection
from generator.clinic.archive import Archive, ArchiveDownError, ArchiveError, VanishedError
from generator.clinic.films import Film, read_film
from generator.clinic.grouping import ClinicStudy, as_studies, group
from generator.clinic.pseudonyms import Pseudonyms
from generator.clinic.report import report_of, series_uid
from generator.clinic.results import write_results
from generator.config import DecodeConfig
from generator.generate import Draft, decode
from generator.priors import find_priors
from raddraft import locks
from raddraft.errors import RadDraftError
from raddraft.files import append_jsonl, cache_folder, cut_log, digest_json, read_jsonl, whole_folder, write_whole
from raddraft.studies import Study, StudyImage
from raddraft.text import printable

if TYPE_CHECKING:
    from generator.api import Model
    from generator.data import Example

LONGEST_WAIT = 600
"""Seconds between two looks at an archive that is down, at most."""


@dataclass
class Found:
    """A study that may have to be drafted."""

    uid: str
    """Study Instance UID."""
    size: int | None
    """How many objects it has, if that is known."""
    films: list[Film] | None = None
    """Received ones; None where the archive is to be asked."""


@dataclass
class Ready:
    """A study whose films are at hand."""

    found: Found
    """Where it came from."""
    study: Study
    """What to draft."""
    prior: Study | None
    """What came before, for a model that reads it."""
    example: Example
    """Its prompt."""


@contextmanager
def hold(folder: Path | None, url: str, model: Model) -> Iterator[Path]:
    """The folder for an archive and a model, for this process only.

    Args:
        folder: that holds those of all archives and models; by default `pacs` in RadDraft's cache.
        url: of the archive.
        model: the one that drafts.

    Raises:
        HeldError: another process has it.
    """
    place = (folder or cache_folder() / "pacs") / digest_json(url.rstrip("/"), model.digest)[:16]
    with locks.hold(place):
        place.mkdir(exist_ok=True, mode=0o700)
        yield place


class Station:
    """Where an archive's studies are drafted.

    Args:
        archive: holds the studies, and takes the documents.
        model: writes the drafts.
        folder: see the top of this module; made if need be, for this archive and model only.
        to: which documents.
        select: which studies.
        receives: whether studies come into the inbox; else the archive is asked for them.
        decoding: how to decode; as many studies as its batch size are drafted together.
        say: is given a sentence for each study that is drafted or cannot be.

    Attributes:
        drafted: number of studies whose documents were sent.
        failed: number of sentences about something that failed.
    """

    def __init__(
        self,
        archive: Archive,
        model: Model,
        folder: Path,
        to: Sequence[Document] = ("sr",),
        select: Selection | None = None,
        receives: bool = False,
        decoding: DecodeConfig | None = None,
        say: Callable[[str], Any] = print,
    ) -> None:
        self.archive, self.model, self.folder, self.to = archive, model, folder.absolute(), sorted(set(to))
        self.select, self.receives = select or Selection(), receives
        self.decoding, self.say = decoding or DecodeConfig(), say
        self.drafted = self.failed = 0
        self.outbox, self.inbox, self._films = (self.folder / name for name in ("outbox", "inbox", "films"))
        for one in (self.outbox, self.inbox):
            one.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in (*self.outbox.glob(".*"), *self.inbox.glob(".*")):  # by a kill
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._status = self.folder / "status.jsonl"
        cut_log(self._status, lambda row: True)
        rows = read_jsonl(self._status, ("study_id",)) if self._status.is_file() else ()
        self._settled = {row["study_id"]: (row["size"], row["to"]) for _, row in rows}
        self._seen: dict[str, tuple[int | None, float]] = {}
        self._told: set[str] = set()
        self._pseudonyms = Pseudonyms()

    def run(self, interval: float) -> None:
        """Go on for ever, `interval` seconds after each round, and longer and longer while the archive is down."""
        pause = interval
        while True:
            pause = interval if self.round() else min(2 * pause, max(interval, LONGEST_WAIT))
            sleep(pause)

    def round(self, settle: float | None = None) -> bool:
        """Send what is left in the outbox, then draft and send what there is; whether the archive answered.

        Args:
            settle: in place of the selection's.
        """
        try:
            for left in sorted(self.outbox.iterdir()):
                with self._failing(left.name):
                    self._send(left)
            batch: list[Ready] = []
            for ready in self._make_ready(self.select.settle if settle is None else settle):
                batch.append(ready)
                if len(batch) == self.decoding.batch_size:
                    self._draft(batch)
                    batch = []
            self._draft(batch)
        except ArchiveDownError as error:
            self.failed += 1
            self.say(str(error))
            return False
        finally:
            shutil.rmtree(self._films, ignore_errors=True)
        return True

    @contextmanager
    def _failing(self, study_id: str, found: Found | None = None) -> Iterator[None]:
        """Say once why something of a study fails. A study at fault itself is tried again when it changes or comes."""
        try:
            yield
        except ArchiveDownError:
            raise
        except RadDraftError as error:
            text = f"{study_id}: {str(error).removeprefix(f'{study_id}: ')}".replace(f"{self.folder}/", "")
            if text not in self._told:
                self._told.add(text)
                self.failed += 1
                self.say(printable(text))
            if found and not isinstance(error, ArchiveError):
                if found.films is None:
                    self._settled[study_id] = (found.size, self.to)
                self._drop(found)

    def _make_ready(self, settle: float) -> Iterator[Ready]:
        for found in self._received(settle) if self.receives else self._listed(settle):
            study_id = self._pseudonyms.study(found.uid)
            settled = found.films is None and self._settled.get(study_id) == (found.size, self.to)
            if settled or (self.outbox / study_id).exists():
                self._drop(found)
                continue
            with self._failing(study_id, found):
                if ready := self._look(found, study_id):
                    yield ready

    def _listed(self, settle: float) -> Iterator[Found]:
        """Studies that the archive lists, and that have not grown for a while."""
        now = monotonic()
        listed = self.archive.studies(self.select.modality, self.select.date)
        self._seen = {one.uid: self._seen.get(one.uid, (None, now)) for one in listed}
        for one in listed:
            size, since = self._seen[one.uid]
            if size != one.instances:
                self._seen[one.uid] = (one.instances, since := now)
            if now - since >= settle:
                yield Found(one.uid, one.instances)

    def _received(self, settle: float) -> Iterator[Found]:
        """Studies of the inbox, to which no file was added for a while."""
        studies: dict[str, list[Film]] = {}
        for path in sorted(self.inbox.glob("*.dcm")):
            film = read_film(path)
            if film is None or not film.study:
                self._say_left(path, "it is no DICOM object of a study")
                path.unlink()
            else:
                studies.setdefault(film.study, []).append(film)
        for uid, films in studies.items():
            if time() - max(film.path.stat().st_mtime for film in films) >= settle:
                yield Found(uid, len(films), films)

    def _look(self, found: Found, study_id: str) -> Ready | None:
        """Fetch the films of a study that is to be drafted; None of any other."""
        series = self.archive.series(found.uid)
        if not series:
            raise VanishedError("it is not in the archive" + (" yet" if found.films else " any more"))
        if {series_uid(form, found.uid, self.model.digest) for form in self.to} <= series.keys():
            self._settle(found, study_id)
            return None
        films = self._films_of(found.uid, series) if found.films is None else found.films
        grouped = group(films)
        for path, reason in grouped.left_out:
            self._say_left(path, reason)
        if not grouped.studies:
            self._settle(found, study_id)
            return None
        one, prompt = grouped.studies[0], self.model.drafter.prompt
        earlier = self._find_earlier(one) if prompt.prior else []
        study, *others = as_studies([one, *earlier], pseudonyms=self._pseudonyms)
        prior = find_priors([study, *others]).get(study_id)
        by_path = {film.path.absolute(): film for clinic in (one, *earlier) for film in clinic.films}
        for image in prompt.choose_images(study, prior):
            self._fetch(by_path[image.path], image)
        examples = self.model.drafter.encode(
            [study, prior] if prior else [study], answers=False, reserve=self.decoding.max_new_tokens
        )
        return Ready(found, study, prior, examples[0])

    def _films_of(self, uid: str, series: dict[str, str]) -> list[Film]:
        """Headers of a study's films in the archive; their paths are where `_fetch` will write them."""
        folder = self._films / self._pseudonyms.study(uid)
        return self.archive.films(uid, series, self.select.modality, folder)

    def _find_earlier(self, one: ClinicStudy) -> list[ClinicStudy]:
        """The patient's latest earlier study in the archive that has chest films, alone in a list."""
        number, date = one.patient[0], max(film.date for film in one.films)
        if not number or not date:
            return []
        listed = self.archive.studies(self.select.modality, f"-{date}", number)
        for other in sorted(listed, key=lambda other: other.moment, reverse=True):
            if other.uid != one.uid:
                with suppress(VanishedError):
                    earlier = group(self._films_of(other.uid, self.archive.series(other.uid))).studies
                    studies = as_studies([one, *earlier], pseudonyms=self._pseudonyms)
                    if find_priors(studies).get(studies[0].study_id):
                        return earlier
        return []

    def _fetch(self, film: Film, image: StudyImage) -> None:
        if not image.path.is_file():
            with write_whole(image.path) as temporary:
                self.archive.fetch(film.study, film.series, film.instance, temporary)

    def _draft(self, batch: Sequence[Ready]) -> None:
        """Draft studies, and send the documents."""
        by_id = {ready.study.study_id: ready for ready in batch}
        for draft in decode(self.model.drafter, [ready.example for ready in batch], self.decoding):
            ready = by_id[draft.study_id]
            with self._failing(draft.study_id, ready.found):
                self._write(draft, ready)
                self._drop(ready.found)
                self._send(self.outbox / draft.study_id)
        shutil.rmtree(self._films, ignore_errors=True)

    def _write(self, draft: Draft, ready: Ready) -> None:
        """Put the documents of a draft into the outbox."""
        if draft.error:
            raise RadDraftError(draft.error)
        report = report_of(replace(draft, banner=self.model.banner), ready.study, self.model, ready.prior)
        with whole_folder(self.outbox / draft.study_id) as folder:
            write_results(report, folder, draft.study_id, self.to)

    def _send(self, folder: Path) -> None:
        """Send the documents in a folder of the outbox that the archive does not have, and remove them."""
        from pydicom import config, dcmread

        with config.disable_value_validation():  # values of the film go as they are
            for path in sorted(folder.glob("*.dcm")):
                document = dcmread(path)
                if not self.archive.series(str(document.StudyInstanceUID)):
                    shutil.rmtree(folder)
                    raise VanishedError("it is not in the archive any more, so its draft is dropped")
                if not self.archive.holds(document):
                    self.archive.store(document)
                path.unlink()
        folder.rmdir()
        self.drafted += 1
        self.say(f"{folder.name}: drafted, and sent as {' and '.join(self.to)}")

    def _settle(self, found: Found, study_id: str) -> None:
        """Note that a study needs no further look until it changes, or is received again."""
        if found.films is None:
            self._settled[study_id] = (found.size, self.to)
            if found.size is not None:
                append_jsonl(self._status, {"study_id": study_id, "size": found.size, "to": self.to})
        self._drop(found)

    def _say_left(self, path: Path, reason: str) -> None:
        self.say(printable(f"left out: {path}: {reason}".replace(f"{self.folder}/", "")))

    def _drop(self, found: Found) -> None:
        """Remove received films that are not needed any more."""
        for film in found.films or []:
            film.path.unlink(missing_ok=True)
