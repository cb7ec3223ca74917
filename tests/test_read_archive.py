"""`raddraft read` on a real Orthanc: its studies are listed, and a film is fetched when it is asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from generator.api import load_model
from generator.clinic.archive import Archive, ArchiveDownError, Listed
from generator.clinic.reading.remote import MODALITIES, find_worklist, list_archive
from raddraft.errors import RadDraftError
from raddraft.images import load_gray
from tests.orthanc import Orthanc, orthanc, twelve_studies
from tests.reading import serving

TOLD = re.compile(rb"plant|1\.2\.826|20260131|20250131", re.IGNORECASE)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """A frontal and a lateral film with a prior, one in JPEG 2000, a hand."""
    films = twelve_studies(tmp_path_factory.mktemp("films"))
    with orthanc(tmp_path_factory.mktemp("orthanc"), ("reader", "secret")) as started:
        for name in ("pair", "prior", "j2k", "hand", "text"):
            started.stow(films[name])
        yield started


def test_studies_of_an_archive_are_read(archive, random_model, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RADDRAFT_PACS_PASSWORD", "secret")
    folder = tmp_path / "films"
    with pytest.warns(UserWarning, match="left out: .*'HAND' is not the chest"):
        worklist = find_worklist([archive.url], folder, user="reader")
    assert not folder.exists()
    with serving(load_model(random_model, "cpu"), worklist, tmp_path) as page:
        views = [[one["view"] for one in page.ask(f"/api/studies/{at}")["films"]] for at in range(3)]
        pair = views.index(["PA", "LL", "PA"])
        assert all(page.wait_for_draft(number)["error"] is None for number in range(3))
        assert len(list(folder.rglob("*.dcm"))) == 3  # those that the model reads
        told = [page.request("GET", "/api/worklist")[2]]
        for at in range(3):
            status, headers, _ = page.request("GET", f"/api/studies/{pair}/films/{at}")
            assert (status, json.loads(headers["x-film"])["width"]) == (200, 64)
        assert len(list(folder.rglob("*.dcm"))) == 4
        page.decide(pair, "No edema.")
        found = page.ask("/api/export", {"studies": [pair], "forms": ["sr"], "complete": True})
        assert found["errors"] == []
        archive.forget("1.2.826.0.1.2")
        told += [page.request("GET", f"/api/studies/{at}")[2] for at in range(3)]
    told.append((tmp_path / "reads.jsonl").read_bytes())
    assert [part for part in told if TOLD.search(part)] == []


def test_only_a_date_is_listed_and_a_film_that_vanished_is_a_sentence(
    archive, random_model, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("RADDRAFT_PACS_PASSWORD", "secret")
    worklist = find_worklist([archive.url], tmp_path / "films", user="reader", date="-20250131")
    assert len(worklist.studies) == 1
    archive.forget("1.2.826.0.1.6")
    with serving(load_model(random_model, "cpu"), worklist, tmp_path) as page:
        assert "not in the archive any more" in page.wait_for_draft(0)["error"]
        status, _, content = page.request("GET", "/api/studies/0/films/0")
    assert (status, json.loads(content)) == (422, {"error": "it is not in the archive any more"})
    with pytest.raises(RadDraftError, match="no chest study of 20990101"):
        find_worklist([archive.url], tmp_path / "films", user="reader", date="20990101")


def test_a_study_that_vanishes_while_studies_are_listed_costs_itself_only(archive, tmp_path, monkeypatch) -> None:
    asked = Archive(archive.url, "reader", "secret")
    listed = asked.studies(MODALITIES)
    gone = Listed("1.2.826.0.1.999", ("", ""), None)
    monkeypatch.setattr(asked, "studies", lambda *_: [gone, *listed])
    series = asked.series
    monkeypatch.setattr(asked, "series", lambda uid: {"1.2": "CR"} if uid == gone.uid else series(uid))
    with pytest.warns(UserWarning, match="left out") as told:
        worklist = list_archive(asked, tmp_path / "films")
    assert worklist.studies
    assert any(f"study 1 of {len(listed) + 1}: it is not in" in str(one.message) for one in told)


def test_a_film_that_came_in_part_is_fetched_again(archive, tmp_path, monkeypatch) -> None:
    asked = Archive(archive.url, "reader", "secret")
    worklist = list_archive(asked, tmp_path / "films")
    image, fetch = worklist.studies[0].main_image, asked.fetch

    def cut(study: str, series: str, instance: str, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise ArchiveDownError("The archive cannot be reached")

    monkeypatch.setattr(asked, "fetch", cut)
    with pytest.raises(ArchiveDownError):
        worklist.fetch(image)
    monkeypatch.setattr(asked, "fetch", fetch)
    worklist.fetch(image)
    assert load_gray(image.path).shape == (64, 64)
    assert [path.name for path in image.path.parent.iterdir()] == [image.path.name]


def test_options_of_an_archive_are_for_an_archive_alone(tmp_path: Path) -> None:
    with pytest.raises(RadDraftError, match="--date is for an archive"):
        find_worklist([str(tmp_path)], tmp_path, date="20260101")
    with pytest.raises(RadDraftError, match="An archive is read alone"):
        find_worklist(["http://localhost:1/dicom-web", str(tmp_path)], tmp_path)
