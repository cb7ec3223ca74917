"""What an archive may answer beside what it was asked for is told in a sentence, and no other film is taken for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from pydicom import dcmread

from generator.clinic.archive import Archive, ArchiveDownError, ArchiveError
from tests.stand_in import listening
from tests.test_clinic_studies import STUDY, film

JSON, FILM = "application/dicom+json", 'multipart/related; type="application/dicom"; boundary=b'
SERIES, INSTANCE = f"{STUDY}.1", f"{STUDY}.1.1"
STUDIES = "/studies"
SERIES_OF = f"/studies/{STUDY}/series"
HEADERS = f"{SERIES_OF}/{SERIES}/metadata"
OBJECT = f"{SERIES_OF}/{SERIES}/instances/{INSTANCE}"


@contextmanager
def answering(answers: dict[str, tuple[str, bytes]]) -> Iterator[Archive]:
    """An archive that answers at paths with a content type and a body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            kind, body = answers[self.path.partition("?")[0]]
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given: Any) -> None:
            pass

    with listening(Handler) as url:
        yield Archive(url, retries=0)


def texts(**values: str) -> dict[str, Any]:
    """An object of DICOM's JSON whose elements are texts, by tags."""
    return {tag[1:]: {"vr": "UI", "Value": [value]} for tag, value in values.items()}


def film_part(folder: Path, number: int, study: str = STUDY) -> bytes:
    """The answer with a film."""
    data = film(folder / "film.dcm", number, study).read_bytes()
    return b"--b\r\nContent-Type: application/dicom\r\n\r\n" + data + b"\r\n--b--\r\n"


def test_a_film_is_kept_only_if_it_is_the_one_that_was_asked_for(tmp_path) -> None:
    out = tmp_path / "out.dcm"
    for number, study, whose in ((2, STUDY, "another"), (1, "1.2.3", "another"), (1, STUDY, "its own")):
        with answering({OBJECT: (FILM, film_part(tmp_path, number, study))}) as archive:
            if whose == "another":
                with pytest.raises(ArchiveError, match="gives another object than the one that was asked for"):
                    archive.fetch(STUDY, SERIES, INSTANCE, out)
                assert not out.exists()
            else:
                archive.fetch(STUDY, SERIES, INSTANCE, out)
    assert dcmread(out).SOPInstanceUID == INSTANCE


def test_a_film_that_cannot_be_written_is_told(tmp_path) -> None:
    broken = film_part(tmp_path, 1).replace(b"\x28\x00\x01\x01US", b"\x28\x00\x01\x01\x00\x00")
    with answering({OBJECT: (FILM, broken)}) as archive, pytest.raises(ArchiveError, match="answer cannot be read"):
        archive.fetch(STUDY, SERIES, INSTANCE, tmp_path / "out.dcm")


def test_a_series_without_its_objects_is_no_series_without_films(tmp_path) -> None:
    """It would be passed by for good."""
    own = json.loads(dcmread(film(tmp_path / "x.dcm", 1)).to_json(bulk_data_threshold=10**6))
    others = own | texts(_0020000D="1.2.3")
    for rows in ([], [others], [{}]):
        with answering({HEADERS: (JSON, json.dumps(rows).encode())}) as archive:
            with pytest.raises(ArchiveError, match="lists a series, but none of its objects"):
                archive.films(STUDY, {SERIES: "DX"}, ["DX"], tmp_path)
            assert archive.films(STUDY, {SERIES: "CT"}, ["DX"], tmp_path) == []
    with answering({HEADERS: (JSON, json.dumps([others, own]).encode())}) as archive:
        for modality in ("DX", ""):
            (found,) = archive.films(STUDY, {SERIES: modality}, ["DX"], tmp_path)
            assert (found.study, found.instance) == (STUDY, INSTANCE)


ASKED: dict[str, Callable[[Archive], Any]] = {
    STUDIES: lambda archive: archive.studies(["DX"]),
    SERIES_OF: lambda archive: archive.series(STUDY),
    HEADERS: lambda archive: archive.headers(STUDY, SERIES),
}


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("body", [b"null", b"[null]", b'["x"]', b"[[]]", b"[" * 100_000, b"<html>"])
def test_what_is_no_list_of_objects_is_told(path, body) -> None:
    told = pytest.raises((ArchiveError, ArchiveDownError), match="the archive's answer cannot be read")
    with answering({path: (JSON, body)}) as archive, told:
        ASKED[path](archive)


@pytest.mark.parametrize("element", [None, 5, "x", [], {}, {"Value": None}, {"Value": 5}, {"Value": {"a": 1}}])
def test_an_element_that_is_no_text_is_none(element) -> None:
    rows = [{"0020000D": element, "0020000E": element}, texts(_0020000D="1.2", _0020000E="1.3", _00201208="9" * 5000)]
    body = (JSON, json.dumps(rows).encode())
    with answering({STUDIES: body, SERIES_OF: body}) as archive:
        assert archive.series(STUDY) == {"1.3": ""}
        (listed,) = archive.studies(["DX"])
        assert (listed.uid, listed.instances) == ("1.2", None)
