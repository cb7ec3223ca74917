"""Drafting for an archive: a real Orthanc, with films in and reports out; kills, errors, a receiver, a password."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from pydicom import dcmread, uid

from generator.api import Model, load_model
from generator.clinic import Selection
from generator.clinic import station as station_module
from generator.clinic.archive import Archive, ArchiveDownError, read_password
from generator.clinic.pseudonyms import Pseudonyms
from generator.clinic.receiver import receive
from generator.clinic.sr import read_sr
from generator.clinic.station import Station, hold
from generator.config import DecodeConfig
from generator.generate import BANNER
from raddraft.errors import RadDraftError
from raddraft.locks import HeldError
from tests.conftest import ROOT
from tests.films import change_frame
from tests.launch import find_port, holder
from tests.orthanc import CHEST, Orthanc, orthanc, twelve_studies
from tests.test_cli import run
from tests.test_clinic_studies import film
from tests.test_prompts import EVERYTHING

SHORT = DecodeConfig(max_new_tokens=12)
TOLD = re.compile(r"plant|1\.2\.826|20260131|20250131", re.IGNORECASE)
OF = {name: f"1.2.826.0.1.{number}" for number, name in enumerate((*CHEST[:6], "hand", *CHEST[6:], "text"), 1)}


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Path]]:
    return twelve_studies(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, films: dict[str, list[Path]]) -> Iterator[Orthanc]:
    """An archive that holds the twelve studies: half of them came by STOW, half by C-STORE; it pushes to a port."""
    modalities = {"raddraft": ["RADDRAFT", "127.0.0.1", find_port()]}
    with orthanc(tmp_path_factory.mktemp("orthanc"), DicomModalities=modalities) as started:
        started.push_port = modalities["raddraft"][2]
        names = list(films)
        for name in names[::2]:
            started.stow(films[name])
        started.c_store([path for name in names[1::2] for path in films[name]])
        assert len(started.ask("studies")) == 12
        yield started


@pytest.fixture
def archive(server: Orthanc) -> Orthanc:
    """The same without drafts."""
    server.forget_documents()
    return server


@pytest.fixture(scope="module")
def model(model_folder: Path) -> Model:
    return load_model(model_folder, "cpu")


def station(server: Orthanc, model: Model, folder: Path, to: Sequence = ("sr",), **options: object) -> Station:
    """A station whose sentences are kept in `said`."""
    said: list[str] = []
    made = Station(Archive(server.url, retries=1), model, folder, to, decoding=SHORT, say=said.append, **options)  # type: ignore[arg-type]
    made.said = said  # type: ignore[attr-defined]
    return made


def test_every_chest_study_is_drafted_once(archive, films, model, model_folder, tmp_path, capfd, caplog) -> None:
    command = ("pacs", "--url", archive.url, "--model", model_folder, "--once", "--folder", tmp_path / "state")
    command += ("--decode.max_new_tokens", 12, "--device", "cpu")
    assert run(*command) == (0, "")
    assert "10 studies were drafted now; 0 failed" in capfd.readouterr().out
    first, holds = archive.drafts(), archive.ask("statistics")["CountInstances"]
    assert first.keys() == {OF[name] for name in CHEST}
    assert {len(uids) for uids in first.values()} == {1}
    reports = {one.StudyInstanceUID: one for one in archive.documents("SR") if one.get("Manufacturer") == "RadDraft"}
    for name in ("native", "j2k", "jpegls", "rle", "exposure"):
        report = reports[OF[name]]
        read = read_sr(report)
        assert (read.banner, read.digest, report.CompletionFlag) == (BANNER, model.digest, "PARTIAL")
        shown = dcmread(films[name][-1])
        assert (report.PatientID, report.AccessionNumber) == (shown.PatientID, shown.AccessionNumber)
        (evidence,) = report.CurrentRequestedProcedureEvidenceSequence
        (image,) = evidence.ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert (evidence.StudyInstanceUID, image.ReferencedSOPInstanceUID) == (OF[name], shown.SOPInstanceUID)
        assert read.sections["findings"] == model.draft(films[name][-1], max_new_tokens=12).text
    assert run(*command) == (0, "")
    (tmp_path / "state").rename(tmp_path / "lost")  # the archive alone tells what is done
    assert run(*command) == (0, "")
    assert (archive.drafts(), archive.ask("statistics")["CountInstances"]) == (first, holds)
    shown = capfd.readouterr()
    assert shown.out.count("0 studies were drafted now; 0 failed") == 2
    assert shown.out.count("body part 'HAND' is not the chest") == 1, "it is told again where the state is lost only"
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    written = [shown.out, shown.err, *caplog.messages, *map(str, kept), *(path.read_text("latin1") for path in kept)]
    assert [text for text in written if TOLD.search(text)] == []


def test_a_draft_that_was_removed_or_another_document_is_made_anew(archive, model, tmp_path) -> None:
    old = Selection("-20251231", ["DX"])
    assert station(archive, model, tmp_path, select=old).round(settle=0)
    assert station(archive, model, tmp_path, select=old).round(settle=0)
    (first,) = archive.drafts().values()
    archive.forget_documents()
    assert station(archive, model, tmp_path, select=old).round(settle=0)
    assert list(archive.drafts().values()) == [first]
    assert station(archive, model, tmp_path, ("sr", "pdf"), select=old).round(settle=0)
    (both,) = archive.drafts().values()
    assert len(both) == 2
    assert {*first} < {*both}


def test_a_model_that_reads_priors_is_given_them(archive, model, tmp_path) -> None:
    reads_all = Model(replace(model.drafter, prompt=EVERYTHING), "reads all")
    works = station(archive, reads_all, tmp_path, select=Selection("20260131"))
    assert works.round(settle=0)
    assert (works.drafted, works.failed) == (9, 0)
    reports = {one.StudyInstanceUID: one for one in archive.documents("SR") if one.get("Manufacturer") == "RadDraft"}
    (pertinent,) = reports[OF["pair"]].PertinentOtherEvidenceSequence
    assert pertinent.StudyInstanceUID == OF["prior"]
    series = reports[OF["pair"]].CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(series) == 2, "frontal and lateral"
    assert "PertinentOtherEvidenceSequence" not in reports[OF["native"]]


def test_the_documented_commands_run(archive, model_folder, tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.setattr(Station, "run", lambda works, interval: works.round())  # a watcher's first look
    (tmp_path / "pacs-password").write_text("secret\n")
    place = {
        "runs/demo/model": str(model_folder),
        "http://localhost:8042/dicom-web": archive.url,
        "https://pacs.example/dicom-web": archive.url,
        "pacs-password": str(tmp_path / "pacs-password"),
        "20260101-": "-20251231",
        "11112": str(archive.push_port),
    }
    lines = re.findall(r"^raddraft pacs (.+)$", (ROOT / "docs" / "clinic.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) == 4
    for line in lines:
        words = [place.get(word, word) for word in line.split()]
        rest = ("--folder", tmp_path / "state", "--settle", 0, "--decode.max_new_tokens", 12, "--device", "cpu")
        assert run("pacs", *words, *rest) == (0, "")
    drafts = archive.drafts()
    assert drafts.keys() == {OF[name] for name in CHEST}
    assert {name: len(drafts[OF[name]]) for name in ("native", "prior")} == {"native": 1, "prior": 2}, (
        "PDFs of this date"
    )
    assert "cannot" not in capfd.readouterr().out


# ---- kills


def killed_at(number: int, before: bool, works: Station) -> bool:
    """Run a round in a process that kills itself before or after its request of this number; whether it did."""
    child = os.fork()
    if not child:
        count, send = itertools.count(1), requests.Session.send

        def send_and_die(*args, **options):
            now = next(count)
            if before and now == number:
                os.kill(os.getpid(), signal.SIGKILL)
            answer = send(*args, **options)
            if now == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return answer

        requests.Session.send = send_and_die  # type: ignore[method-assign]
        works.round(settle=0)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_killed_run_loses_nothing_and_sends_nothing_twice(archive, model, tmp_path) -> None:
    old, stored = Selection("-20251231", ["DX"]), []
    for number, before, taken in ((8, False, 1), (13, True, 2)):
        archive.forget_documents()
        folder = tmp_path / str(number)
        assert killed_at(number, before, station(archive, model, folder, ("sr", "pdf"), select=old))
        assert len(archive.drafts().get(OF["prior"], [])) == taken, "killed when so many documents were taken"
        assert len(list((folder / "outbox").iterdir())) == 1, "it cannot know yet"
        seen = archive.ask("changes?last")["Last"]
        again = station(archive, model, folder, ("sr", "pdf"), select=old)
        assert again.round(settle=0)
        new = [one for one in archive.changes(seen) if one["ChangeType"] == "NewInstance"]
        assert (len(new), list((folder / "outbox").iterdir())) == (2 - taken, [])
        stored.append(archive.drafts())
    assert stored[0] == stored[1]


@pytest.mark.skipif("RADDRAFT_KILLS" not in os.environ, reason="slow; RADDRAFT_KILLS=10 kills a run so often")
def test_killed_at_random_moments_it_ends_in_the_same_state(archive, model, tmp_path) -> None:
    def start(state: str) -> int:
        child = os.fork()
        if not child:
            station(archive, model, tmp_path / state, ("sr", "pdf")).round(settle=0)
            os._exit(0)
        return child

    began = time.monotonic()
    assert os.waitpid(start("whole"), 0)[1] == 0
    lasts, expected, count = time.monotonic() - began, archive.drafts(), archive.ask("statistics")["CountInstances"]
    assert len(expected) == len(CHEST)
    archive.forget_documents()
    seen, draw, log = archive.ask("changes?last")["Last"], random.Random(0), []
    for _ in range(int(os.environ["RADDRAFT_KILLS"])):
        child, after = start("killed"), draw.uniform(0.2, 0.45) * lasts
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(child, 0)[1])
        log.append((f"{after:.2f} s", killed, sum(map(len, archive.drafts().values()))))
    assert os.waitpid(start("killed"), 0)[1] == 0
    new = [one for one in archive.changes(seen) if one["ChangeType"] == "NewInstance"]
    print(f"a run lasts {lasts:.1f} s; killed after, whether before its end, documents in the archive: {log}")
    assert (archive.drafts(), archive.ask("statistics")["CountInstances"]) == (expected, count)
    assert len(new) == 2 * len(CHEST), "no document was sent twice"


# ---- archives that push


def test_studies_that_an_archive_pushes_are_drafted(archive, model, tmp_path) -> None:
    works = station(archive, model, tmp_path, receives=True)
    pushed = ("j2k", "pair", "hand", "text")
    for count in (5, 7):  # the second time with two reports
        with receive(str(archive.push_port), works.inbox):
            archive.push([OF[name] for name in pushed])
        assert len(list(works.inbox.iterdir())) == count
        assert works.round(settle=60), "they may not be whole yet"
        assert len(list(works.inbox.iterdir())) == count
        assert works.round(settle=0)
        assert list(works.inbox.iterdir()) == []
        assert {study: len(uids) for study, uids in archive.drafts().items()} == {OF["j2k"]: 1, OF["pair"]: 1}
    assert (works.drafted, works.failed) == (2, 0)
    archive.forget_documents()
    broken = film(works.inbox / "cut.dcm", 1, OF["cr"], compress=uid.JPEG2000Lossless)
    change_frame(broken, lambda frame: frame[:60] + bytes(len(frame) - 60))
    with receive(str(archive.push_port), works.inbox):
        archive.push([OF["j2k"]])
    assert works.round(settle=0)
    assert (archive.drafts().keys(), works.failed) == ({OF["j2k"]}, 1), "its draft was removed, so it gets a new one"
    film(broken, 1, OF["cr"])
    assert works.round(settle=0)
    assert archive.drafts().keys() == {OF["j2k"], OF["cr"]}, "what failed came again"
    (works.inbox / "x.dcm").write_bytes(b"no DICOM")
    assert works.round(settle=0)
    assert works.said[-1] == "left out: inbox/x.dcm: it is no DICOM object of a study"
    film(tmp_path / "elsewhere.dcm", 1, "1.2.3.4.5").rename(works.inbox / "y.dcm")
    assert works.round(settle=0)
    assert works.said[-1].endswith("it is not in the archive yet")
    assert (works.inbox / "y.dcm").is_file(), "it may come"
    with pytest.raises(RadDraftError, match=r"--receive 127.0.0.1:x: .* expected PORT or HOST:PORT"):
        receive("127.0.0.1:x", works.inbox).__enter__()


def test_a_watcher_waits_until_a_study_is_whole(archive, model, tmp_path) -> None:
    works = station(archive, model, tmp_path, select=Selection("-20251231", ["DX"], settle=0.2))
    assert works.round()
    assert works.drafted == 0
    time.sleep(0.3)
    assert works.round()
    assert works.drafted == 1


# ---- what goes wrong


class Refusing(requests.adapters.BaseAdapter):
    """Answers what is sent with a status, and lets the rest through."""

    def __init__(self, status: int, body: str = "") -> None:
        super().__init__()
        self.status, self.body, self.through = status, body, requests.adapters.HTTPAdapter()

    def send(self, request, *args, **options):
        if request.method != "POST":
            return self.through.send(request, *args, **options)
        answer = requests.Response()
        answer.status_code, answer._content, answer.request = self.status, self.body.encode(), request
        answer.headers["Content-Type"] = "application/dicom+json"
        return answer

    def close(self) -> None:
        self.through.close()


def test_a_full_archive_gets_its_drafts_later(archive, model, tmp_path) -> None:
    failed = '{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [42752]}}]}}'
    name = Pseudonyms().study(OF["prior"])
    for adapter in (Refusing(507), Refusing(200, failed)):
        works = station(archive, model, tmp_path, select=Selection("-20251231"))
        works.archive._client._session.mount("http://", adapter)
        assert works.round(settle=0)
        assert works.round(settle=0)
        assert (works.said, works.failed) == ([f"{name}: the archive is full"], 1), "said once"
    works.archive._client._session.mount("http://", Refusing(200))
    assert works.round(settle=0)
    assert works.said[-1] == f"{name}: the archive says that it has taken it, but does not list it"
    assert archive.drafts() == {}
    assert station(archive, model, tmp_path, select=Selection("-20251231")).round(settle=0)
    assert len(archive.drafts()) == 1


def test_a_study_that_vanishes_or_cannot_be_read_does_not_stop_the_rest(model, tmp_path) -> None:
    with orthanc(tmp_path / "orthanc") as server:
        good, broken, gone, late = (film(tmp_path / f"{n}.dcm", 1, f"1.2.826.0.1.{n}") for n in range(1, 5))
        film(broken, 1, "1.2.826.0.1.2", compress=uid.JPEG2000Lossless)
        change_frame(broken, lambda frame: frame[:60] + bytes(len(frame) - 60))
        server.stow([good, broken, gone, late])

        class Vanishing(Archive):
            def headers(self, study, series):
                if study.endswith(".3"):
                    server.forget(study)
                return super().headers(study, series)

            def fetch(self, study, *rest):
                super().fetch(study, *rest)
                if study.endswith(".4"):
                    server.forget(study)

        works = station(server, model, tmp_path / "state")
        works.archive = Vanishing(server.url)
        assert works.round(settle=0)
        assert works.round(settle=0), "what failed is not said again"
        assert server.drafts().keys() == {"1.2.826.0.1.1"}
        assert len(server.ask("studies")) == 2, "no report without its films"
        assert (works.drafted, works.failed) == (1, 3)
        ids = [Pseudonyms().study(f"1.2.826.0.1.{n}") for n in range(1, 5)]
        assert sorted(works.said) == sorted(
            [
                f"{ids[0]}: drafted, and sent as sr",
                f"{ids[1]}: films/{ids[1]}/1.dcm: truncated: the compressed data have no marker at byte 61",
                f"{ids[2]}: it is not in the archive any more",
                f"{ids[3]}: it is not in the archive any more, so its draft is dropped",
            ]
        )
        assert list(works.outbox.iterdir()) == []


def test_an_archive_that_cannot_be_reached_or_wants_a_password_is_told_of(
    model, model_folder, films, tmp_path, monkeypatch, capfd
) -> None:
    url = f"http://127.0.0.1:{find_port()}/dicom-web"
    works, waits = Station(Archive(url, retries=1), model, tmp_path / "none"), []

    def sleep_and_stop(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 5:
            raise StopIteration

    with monkeypatch.context() as patched:
        patched.setattr(station_module, "sleep", sleep_and_stop)
        with pytest.raises(StopIteration):
            works.run(100)
    assert waits == [200, 400, 600, 600, 600]
    told = f"The archive at {url[:-10]} cannot be reached; is it running?\n"
    assert capfd.readouterr().out == 5 * told
    with orthanc(tmp_path / "orthanc", ("reader", "Geheim-ü1")) as server:
        server.stow(films["native"])
        command = ("pacs", "--url", server.url, "--model", model_folder, "--once", "--folder", tmp_path / "state")
        command += ("--decode.max_new_tokens", 12, "--device", "cpu")
        assert run(*command)[0] == 1
        assert "wants a user and a password that it knows (401)" in capfd.readouterr().out
        assert "no password; set RADDRAFT_PACS_PASSWORD" in run(*command, "--user", "reader")[1]
        wrong = Archive(server.url + "-none", "reader", "Geheim-ü1")
        with pytest.raises(ArchiveDownError, match="has no DICOMweb service at this --url"):
            wrong.studies(["CR"])
        (tmp_path / "secret").write_text("wrong\n")
        assert run(*command, "--user", "reader", "--password-file", tmp_path / "secret")[0] == 1
        monkeypatch.setenv("RADDRAFT_PACS_PASSWORD", "Geheim-ü1")
        assert run(*command, "--user", "reader") == (0, "")
        assert len(server.drafts()) == 1
        shown = capfd.readouterr()
        assert "Geheim" not in shown.out + shown.err
        assert not any(
            "Geheim" in path.read_text("latin1") for path in (tmp_path / "state").rglob("*") if path.is_file()
        )


def test_what_cannot_be_used_is_refused(model, tmp_path) -> None:
    for url, told in (("http://a:b@host/x", "holds a user or password"), ("host/dicom-web", "expected the root")):
        with pytest.raises(RadDraftError, match=told):
            Archive(url)
    with pytest.raises(RadDraftError, match="whose password"):
        read_password(None, tmp_path / "secret")
    assert "leave it out to --receive" in run("pacs", "--url", "u", "--model", "m", "--once", "--receive", "1")[1]
    with hold(tmp_path, "http://x/", model) as place:
        pass
    process = holder(place)
    with pytest.raises(HeldError, match="writes to it"), hold(tmp_path, "http://x", model):
        pass
    process.kill()
    process.wait()
