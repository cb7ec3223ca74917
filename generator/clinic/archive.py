"""An archive that speaks DICOMweb: QIDO-RS, WADO-RS and STOW-RS through dicomweb-client; errors as sentences.

    archive = Archive("http://localhost:8042/dicom-web", "reader", "password")
    for study in archive.studies(["CR", "DX"], date="20260101-"):
        series = archive.series(study.uid)

What archives need was seen with Orthanc 1.10.1: films are asked for in whatever transfer syntax they are kept
(`transfer-syntax=*`; it cannot transcode JPEG 2000); addresses in answers are not followed; what a query filters is
looked at again here; pages are asked for with a limit, without which it ignores the offset; and a document is asked
for before and after it is sent, since a second one of the same UID is dropped with status 200.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from generator.clinic.films import TAGS, Film, film_of
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from pydicom import Dataset

T = TypeVar("T")
BUSY = (408, 429, 502, 503, 504)
"""Answers after which it is tried again."""
PAGE = 500
"""Studies that are asked for at a time."""
UNREADABLE = "the archive's answer cannot be read"
LIBRARIES = ("urllib3", "requests", "dicomweb_client", "pynetdicom", "pydicom")


class ArchiveError(RadDraftError):
    """The archive did not do what it was asked for a study; others may still do."""


class VanishedError(ArchiveError):
    """What was asked for is not in the archive (any more)."""


class ArchiveDownError(RadDraftError):
    """Nothing more can be asked of the archive for now: it cannot be reached, or does not know the user."""


@dataclass(frozen=True)
class Listed:
    """A study as a query lists it."""

    uid: str
    """Study Instance UID."""
    moment: tuple[str, str]
    """Study Date and Study Time as they stand; empty where there is none."""
    instances: int | None
    """How many objects it has, if the archive says so."""


class Archive:
    """A DICOMweb service.

    Args:
        url: its root, e.g. http://localhost:8042/dicom-web.
        user: for HTTP basic authentication.
        password: of this user.
        retries: how often a request is tried again, after 0, 1, 2, 4 … seconds.
        timeout: seconds without an answer after which a request has failed.

    Raises:
        RadDraftError: dicomweb-client is missing, or the URL is none.
    """

    def __init__(
        self, url: str, user: str | None = None, password: str | None = None, retries: int = 5, timeout: float = 60
    ) -> None:
        try:
            import requests
            from dicomweb_client.api import DICOMwebClient
            from requests.auth import HTTPBasicAuth
            from urllib3 import Retry
        except ImportError:
            raise RadDraftError('An archive needs dicomweb-client: pip install "raddraft[clinic]"') from None
        keep_libraries_silent()
        parts = urlsplit(url)
        if "@" in parts.netloc:
            raise RadDraftError("The URL of the archive holds a user or password; give them by --user and a file")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RadDraftError(f"Archive {url!r}: expected the root of DICOMweb, like http://localhost:8042/dicom-web")
        self.name = f"{parts.scheme}://{parts.netloc}"
        again = Retry(retries, backoff_factor=0.5, status_forcelist=BUSY, raise_on_status=False)  # GET, not POST
        session = requests.Session()
        if user is not None:
            session.auth = HTTPBasicAuth(user.encode(), (password or "").encode())
        for scheme in ("http://", "https://"):
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=again))
        self._client = DICOMwebClient(url.rstrip("/"), session, permissive_uid=True, timeout=timeout)
        self._client.set_http_retry_params(retry=False)  # it does not try again where a connection fails

    def studies(self, modalities: Sequence[str], date: str | None = None, patient: str | None = None) -> list[Listed]:
        """The studies that have series of these modalities.

        Args:
            modalities: CR, DX …
            date: Study Date as DICOM matches it: 20260131, 20260101-20260131, 20260101-.
            patient: Patient ID, in which * and ? stand for any letters.

        Raises:
            ArchiveDownError: nothing can be listed.
        """
        found: dict[str, Listed] = {}
        for modality in modalities:
            wanted = {"ModalitiesInStudy": modality, "StudyDate": date, "PatientID": patient}
            filters = {key: value for key, value in wanted.items() if value}
            known: dict[str, Listed] = {}
            offset = 0
            while True:
                rows = self._list(filters, offset)
                page = {one.uid: one for one in map(_listed, rows) if one.uid}
                if page.keys() <= known.keys():  # the end, or an archive that knows no pages
                    break
                known |= page
                offset += len(rows)
            found |= known
        return sorted(found.values(), key=lambda study: (study.moment, study.uid))

    def _list(self, filters: dict[str, str], offset: int) -> list[dict[str, Any]]:
        try:
            return self._rows(
                self._client.search_for_studies,
                limit=PAGE,
                offset=offset,
                fields=["NumberOfStudyRelatedInstances"],
                search_filters=filters,
            )
        except VanishedError:
            raise ArchiveDownError(
                f"The archive at {self.name} has no DICOMweb service at this --url; Orthanc's ends with /dicom-web"
            ) from None
        except ArchiveError as error:
            raise ArchiveDownError(f"The archive at {self.name} lists no studies: {error}") from None

    def series(self, study: str) -> dict[str, str]:
        """Series Instance UID -> Modality of a study; empty where the archive does not hold it."""
        rows = self._rows(self._client.search_for_series, study)
        return {uid: _value(row, "Modality") for row in rows if (uid := _value(row, "SeriesInstanceUID"))}

    def headers(self, study: str, series: str) -> list[Dataset]:
        """`generator.clinic.films.TAGS` of the objects of a series."""
        return [header_of(row) for row in self._rows(self._client.retrieve_series_metadata, study, series)]

    def films(self, study: str, series: Mapping[str, str], modalities: Collection[str], folder: Path) -> list[Film]:
        """The films of a study by their headers; their paths, in a folder, are where `fetch` may write them.

        Args:
            study: Study Instance UID.
            series: as `series` gives them.
            modalities: of series to look into, as into those of which none is stated.
            folder: for this study alone.

        Raises:
            ArchiveError: a series has no object of this study.
        """
        films: list[Film] = []
        for uid, modality in sorted(series.items()):
            if modality in ("", *modalities):
                headers = self.headers(study, uid)
                found = [film_of(folder / f"{len(films) + at}.dcm", header) for at, header in enumerate(headers, 1)]
                found = [film for film in found if film.study == study]
                if not found:
                    raise ArchiveError("the archive lists a series, but none of its objects")
                films += found
        return films

    def fetch(self, study: str, series: str, instance: str, path: Path) -> None:
        """Write an object to a file, as the archive keeps it.

        Raises:
            ArchiveError: it gives another one, whose draft would be of another study, or one that cannot be written.
        """
        kept = (("application/dicom", "*"),)
        dataset = self._ask(self._client.retrieve_instance, study, series, instance, kept)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            given = film_of(path, dataset)
            implicit, little = dataset.original_encoding
            if (given.study, given.series, given.instance) == (study, series, instance):
                dataset.save_as(path, implicit_vr=implicit, little_endian=little, force_encoding=True)
                return
        except OSError:  # of the disk
            raise
        except Exception:  # pydicom parses when it writes, and raises anything
            raise ArchiveError(UNREADABLE) from None
        raise ArchiveError("the archive gives another object than the one that was asked for")

    def holds(self, dataset: Dataset) -> bool:
        """Whether the archive has an object of this SOP Instance UID in its study and series."""
        uid = str(dataset.SOPInstanceUID)
        place = (str(dataset.StudyInstanceUID), str(dataset.SeriesInstanceUID))
        rows = self._rows(self._client.search_for_instances, *place, search_filters={"SOPInstanceUID": uid})
        return any(_value(row, "SOPInstanceUID") == uid for row in rows)

    def store(self, dataset: Dataset) -> None:
        """Send an object.

        Raises:
            ArchiveError: it was refused, or is not there afterwards.
        """
        answer = self._ask(self._client.store_instances, [dataset])
        for item in answer.get("FailedSOPSequence") or []:
            reason = int(item.get("FailureReason", 0))
            full = "is full" if reason & 0xFF00 == 0xA700 else f"refuses it, with reason {reason:#06x}"
            raise ArchiveError(f"the archive {full}")
        if not self.holds(dataset):
            raise ArchiveError("the archive says that it has taken it, but does not list it")

    def _rows(self, call: Callable[..., Any], *args: Any, **options: Any) -> list[dict[str, Any]]:
        """The objects of DICOM's JSON that the client is given, as by `_ask`."""
        rows = self._ask(call, *args, **options)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise ArchiveError(UNREADABLE)
        return rows

    def _ask(self, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """Call the client; what it raises becomes a sentence without its address, which holds UIDs and numbers."""
        import requests

        try:
            return call(*args, **options)
        except requests.HTTPError as error:
            status = error.response.status_code if error.response is not None else 0
        except requests.exceptions.SSLError:
            raise ArchiveDownError(
                f"The certificate of the archive at {self.name} is not trusted; set REQUESTS_CA_BUNDLE to a file with "
                "the one that signed it"
            ) from None
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError):
            raise ArchiveDownError(f"The archive at {self.name} cannot be reached; is it running?") from None
        except Exception:  # of an answer that is cut, or is no DICOM
            raise ArchiveError(UNREADABLE) from None
        if status == 401:
            raise ArchiveDownError(
                f"The archive at {self.name} wants a user and a password that it knows (401); give --user, and the "
                "password by RADDRAFT_PACS_PASSWORD or --password-file"
            )
        if status in BUSY:
            raise ArchiveDownError(f"The archive at {self.name} is busy (it answers {status})")
        if status in (404, 410):
            raise VanishedError("it is not in the archive any more")
        raise ArchiveError("the archive is full" if status == 507 else f"the archive answers with status {status}")


def read_password(user: str | None, file: Path | None) -> str | None:
    """The password of a user, from a file's first line or from RADDRAFT_PACS_PASSWORD; None without a user.

    Raises:
        RadDraftError: a user without a password, or the other way round.
    """
    stated = os.environ.get("RADDRAFT_PACS_PASSWORD")
    if user is None:
        if file:
            raise RadDraftError(f"--password-file {file}: whose password? Give --user too")
        return None
    if file:
        stated = next(iter(file.read_text(encoding="utf-8").splitlines()), "")
    if not stated:
        raise RadDraftError(f"--user {user}: no password; set RADDRAFT_PACS_PASSWORD, or name a --password-file")
    return stated


def keep_libraries_silent() -> None:
    """Keep the loggers of the libraries that speak to archives silent: their messages hold addresses with UIDs."""
    for name in LIBRARIES:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)


def _value(row: dict[str, Any], keyword: str) -> str:
    """The first value of an element of DICOM's JSON; "" where there is none, or what is no text or number."""
    from pydicom.datadict import tag_for_keyword

    element = row.get(f"{tag_for_keyword(keyword):08X}")
    values = element.get("Value") if isinstance(element, dict) else None
    first = values[0] if isinstance(values, list) and values else None
    return str(first) if isinstance(first, str | int | float) else ""


def _listed(row: dict[str, Any]) -> Listed:
    count = _value(row, "NumberOfStudyRelatedInstances")
    moment = (_value(row, "StudyDate"), _value(row, "StudyTime"))
    return Listed(_value(row, "StudyInstanceUID"), moment, int(count) if re.fullmatch(r"\d{1,9}", count) else None)


def header_of(row: dict[str, Any]) -> Dataset:
    """What DICOM's JSON says of a film; an element that cannot be read is none."""
    from pydicom import Dataset, config
    from pydicom.datadict import tag_for_keyword

    header = Dataset()
    with config.disable_value_validation():  # its warnings quote values
        for tag in (f"{tag_for_keyword(keyword):08X}" for keyword in TAGS):
            with suppress(Exception):  # a value that its kind forbids makes the parser raise anything
                header.update(Dataset.from_json({tag: row[tag]}))
    return header
