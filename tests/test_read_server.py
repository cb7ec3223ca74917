"""The server of `raddraft read`: who is answered, what is told and noted of a study, that no identifier gets out."""

from __future__ import annotations

import json
import logging
import re
import signal
import socket
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import sleep
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from generator.api import Model, load_model
from generator.clinic.reading.decisions import Reads
from generator.clinic.reading.documents import CHANGED
from generator.clinic.reading.drafting import Drafting
from generator.clinic.reading.films import Film, Films
from generator.clinic.reading.guard import TOKEN
from generator.clinic.reading.insight import Nearest
from generator.clinic.reading.worklist import Drafted, Worklist, gather
from generator.clinic.sr import read_sr
from generator.config import DecodeConfig
from generator.generate import BANNER
from metrics.reads import read_reads
from metrics.rules import label
from raddraft.errors import RadDraftError
from raddraft.images import load_film, load_gray
from raddraft.locks import HeldError
from raddraft.studies import Study, write_studies
from tests.conftest import ROOT, make_study
from tests.films import RAMP, chest, look_up_table, write_dicom
from tests.launch import HOLD, Job, holder
from tests.reading import Page, serving
from tests.test_cli import run
from tests.test_clinic_studies import film, item

DRAFT = "The heart is enlarged. Small left pleural effusion. No pneumothorax."
OF_NONE = {"study_id": "s", "draft": "0", "text": "x", "reason": "", "seconds": 1}
"""A decision on a study that is not there."""
SCRIPT = "<script>alert(1)</script> <img src=x onerror=alert(2)> No edema."


@pytest.fixture(scope="module")
def model(random_model):
    return load_model(random_model, "cpu")


@pytest.fixture
def films(tmp_path: Path) -> Worklist:
    """A study of two films with a prior, and another patient's."""
    root = tmp_path / "films"
    film(root / "pa.dcm", 1, StudyDate="20260131", ViewPosition="PA", WindowCenter=100, WindowWidth=50)
    film(root / "ll.dcm", 2, StudyDate="20260131", ViewPosition="LL")
    film(root / "old.dcm", 1, "1.2.1", StudyDate="20250131", ViewPosition="AP")
    film(root / "other.dcm", 1, "1.2.2", PatientID="P2", ViewPosition="AP")
    return gather([root])


@pytest.fixture
def page(model, films, tmp_path) -> Page:
    names = [study.study_id for study in films.studies]
    films.drafts = {name: Drafted(DRAFT, model.name) for name in names[:2]}
    with serving(model, films, tmp_path) as served:
        yield served


def number_of(page: Page, file: str) -> int:
    return next(at for at, one in enumerate(page.reading.worklist.studies) if one.images[0].path.name == file)


# ---- who is answered


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({TOKEN: None}, 403),
        ({TOKEN: "guessed"}, 403),
        ({TOKEN: "\xfc"}, 403),
        ({"Host": "evil.example"}, 421),
        ({"Host": "evil.example:80"}, 421),
        ({"Host": None}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_requests_of_others_are_refused(page, headers, status) -> None:
    for method, path, body in (("GET", "/api/worklist", None), ("POST", "/api/labels", {"text": "x"})):
        found, _, content = page.request(method, path, body, headers)
        assert found == status
        assert page.reading.worklist.studies[0].study_id.encode() not in content
    assert page.request("GET", "/api/worklist")[0] == 200
    assert not (page.reading.reads.path).exists()


def test_a_post_names_its_origin_and_other_methods_are_refused(page) -> None:
    assert page.request("POST", "/api/labels", {"text": "x"}, {"Origin": None})[0] == 403
    assert page.request("POST", "/api/labels", {"text": "x"}, {"Origin": f"http://localhost:{page.port}"})[0] == 403
    assert [page.request(method, "/api/worklist")[0] for method in ("PUT", "DELETE", "OPTIONS", "TRACE")] == [405] * 4
    assert page.request("GET", "/api/labels")[0] == page.request("POST", "/api/worklist", {})[0] == 405


def test_every_answer_forbids_what_comes_from_outside(page) -> None:
    for path in ("/", "/main.js", "/style.css", "/nowhere", "/api/worklist", "/api/studies/0/films/0"):
        _, headers, _ = page.request("GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert headers["cache-control"] == "no-store"
        assert headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in headers
        assert "set-cookie" not in headers


def test_the_page_names_nothing_outside_and_sets_no_markup() -> None:
    files = [path.read_text(encoding="utf-8") for path in (ROOT / "generator/clinic/reading/page").iterdir()]
    assert len(files) > 8
    for text in files:
        text = text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
        assert not re.search(r"https?:|//[a-z]+\.[a-z]|@import|data:", text)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function", text)
        assert not re.search(r"<script(?! type=\"module\" src=)|<style|\son\w+=|\sstyle=\"", text)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../etc/passwd",
        "/..%2f..%2f..%2fetc%2fpasswd",
        "/%2e%2e/server.py",
        "//etc/passwd",
        "/page/../server.py",
        "/server.py",
        "/main.js/../../guard.py",
        "/api/studies/../../reads.jsonl",
        "/api/studies/..%2f0",
        "/api/studies/-1",
        "/api/studies/0/films/-1",
        "/api/studies/0/films/99",
        "/api/studies/99999999999999999999",
        f"/api/studies/{'9' * 5000}",
        f"/api/studies/0/films/{'9' * 5000}",
        "/api/studies/0/films/%00",
        "/api/studies/0;ls/films/0",
    ],
)
def test_no_path_of_a_request_reaches_a_file(page, path) -> None:
    status, _, content = page.request("GET", path)
    assert status == 404
    assert b"root:" not in content
    assert b"import" not in content


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/labels", b"\x89PNG\r\n\x1a\n\x00", 422),
        ("/api/labels", b"[" * 100_000, 422),
        ("/api/labels", {"text": "x" * 200_000}, 422),
        ("/api/labels", b"x" * 1_000_001, 413),
        ("/api/labels", {"text": 1}, 422),
        ("/api/labels", {"text": "x", "path": "/etc/passwd"}, 422),
        ("/api/studies/0/decision", OF_NONE | {"text": None, "reason": " "}, 422),
        ("/api/studies/0/decision", OF_NONE | {"text": " "}, 422),
        ("/api/studies/0/decision", OF_NONE | {"seconds": -1}, 422),
        ("/api/studies/0/decision", json.dumps(OF_NONE | {"seconds": float("nan")}).encode(), 422),
        ("/api/studies/9/decision", OF_NONE, 404),
        ("/api/studies/0/decision", OF_NONE, 409),
        ("/api/export", {"studies": [0], "forms": ["../x"], "complete": False}, 422),
        ("/api/export", {"studies": [0], "forms": [], "complete": False}, 422),
    ],
)
def test_what_is_no_request_is_refused_and_changes_nothing(page, path, body, status) -> None:
    found, _, content = page.request("POST", path, body)
    assert found == status
    assert set(json.loads(content)) == {"error"}
    assert not page.reading.reads.path.exists()
    assert not page.reading.results.exists()


def test_half_a_surrogate_pair_is_text_as_any_other(page) -> None:
    """A draft of another system may hold one."""
    text = "No \ud800 edema."
    assert page.request("POST", "/api/labels", {"text": text})[0] == 200
    page.wait_for_draft(0)
    page.decide(0, text)
    study = page.reading.worklist.studies[0]
    assert page.reading.read(study).final == text
    assert page.ask("/api/studies/0")["decision"]["final"] == text


def test_only_json_is_taken(page) -> None:
    for kind in ("text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded", None):
        assert page.request("POST", "/api/labels", {"text": "x"}, {"Content-Type": kind})[0] == 415


# ---- films


def test_films_come_at_their_full_depth_with_the_window_of_the_file(page) -> None:
    number = number_of(page, "pa.dcm")
    study = page.ask(f"/api/studies/{number}")
    assert [(one["view"], one["prior"]) for one in study["films"]] == [("PA", False), ("LL", False), ("AP", True)]
    _, headers, content = page.request("GET", f"/api/studies/{number}/films/0")
    about = json.loads(headers["x-film"])
    pixels = np.frombuffer(content, "<u2").reshape(about["height"], about["width"])
    path = page.reading.worklist.studies[number].images[0].path
    low, high = about["window"]
    assert np.allclose(((pixels / 65535 - low) / (high - low)).clip(0, 1), load_gray(path), atol=1e-3)
    stored = dcmread(path).pixel_array
    assert len(np.unique(pixels)) == len(np.unique(stored))


@pytest.mark.parametrize(
    "tags",
    [
        {"WindowCenter": 1000, "WindowWidth": 500},
        {"WindowCenter": 1000, "WindowWidth": 500, "PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 2000, "WindowWidth": 9000, "RescaleSlope": 2, "RescaleIntercept": -100},
        {"WindowCenter": 2000, "WindowWidth": 1500, "VOILUTFunction": "SIGMOID"},
        {"VOILUTSequence": [look_up_table([min(4095, 2 * i) for i in range(4096)], 12)]},
        {"VOILUTSequence": [look_up_table([i * i // 4096 for i in range(4096)], 12)]},
        {"PixelPaddingValue": 0, "WindowCenter": 1000, "WindowWidth": 500},
        {},
    ],
    ids=lambda tags: " ".join(tags) or "no window",
)
def test_a_windowed_film_is_what_the_file_asks_for(tmp_path, tags) -> None:
    path = write_dicom(tmp_path / "x.dcm", RAMP, **{"BitsStored": 12, **tags})
    pixels, (low, high) = load_film(path)
    assert 0 <= pixels.min() < 0.01
    assert 0.99 < pixels.max() <= 1
    shown = ((pixels - low) / (high - low)).clip(0, 1)
    assert np.abs(shown - load_gray(path)).max() < 0.011


def test_colors_and_pictures_are_shown_as_they_are(tmp_path) -> None:
    colors = np.stack([chest(), chest() // 2, chest() // 3], -1)
    Image.fromarray(chest()).save(tmp_path / "8.png")
    Image.fromarray(RAMP).save(tmp_path / "16.png")
    for path in (write_dicom(tmp_path / "colors.dcm", colors), tmp_path / "8.png", tmp_path / "16.png"):
        pixels, window = load_film(path)
        assert window == (0, 1)
        assert np.array_equal(pixels, load_gray(path))


def test_a_film_that_is_none_or_too_large_costs_itself_only(model, tmp_path) -> None:
    (tmp_path / "text.png").write_text("no image")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bomb.png")
    write_dicom(tmp_path / "huge.dcm", chest(), Rows=60_000, Columns=60_000)
    Image.fromarray(chest()).save(tmp_path / "good.png")
    with serving(model, gather([tmp_path]), tmp_path) as page:
        studies = page.reading.worklist.studies
        for number, study in enumerate(studies):
            name = study.images[0].path.name
            status, _, content = page.request("GET", f"/api/studies/{number}/films/0")
            draft = page.wait_for_draft(number)
            assert (status == 200) == (draft["error"] is None) == (name == "good.png")
            if status != 200:
                assert status == 422
                assert json.loads(content)["error"].startswith(name)  # without its folder
                assert draft["error"].startswith((name, f"{study.study_id}: {name}"))
                _, read = page.decide(number, None, "The film cannot be read")
                assert read["decision"] == "rejected"
    rows = [json.loads(line) for line in (tmp_path / "reads.jsonl").read_text().splitlines()]
    assert [(row["draft"], row["reason"]) for row in rows] == [("", "The film cannot be read")] * 3


def test_a_draft_that_failed_is_made_again_when_the_study_is_opened_again(model, tmp_path) -> None:
    place = tmp_path / "films" / "x.png"
    place.parent.mkdir()
    Image.fromarray(chest()).save(place)
    with serving(model, gather([place]), tmp_path) as page:
        place.rename(tmp_path / "away.png")
        assert "No such file" in page.wait_for_draft(0)["error"]
        (tmp_path / "away.png").rename(place)
        assert page.ask("/api/studies/0/draft")["draft"]["error"]  # until it is asked for
        assert page.wait_for_draft(0)["error"] is None


def test_a_page_that_stops_ends_an_export(page) -> None:
    at_work, go_on = Event(), Event()
    drafting, exported = page.reading.drafting, {"studies": [0, 0, 0], "forms": ["sr"], "complete": False}
    page.decide(0, DRAFT)
    with ThreadPoolExecutor(2) as pool:
        pool.submit(drafting.call, lambda: (at_work.set(), go_on.wait(600)))
        assert at_work.wait(600)
        asked = pool.submit(page.ask, "/api/export", exported)
        while not drafting._calls:
            assert not asked.done()
        page.server.should_exit = True
        assert asked.result(600)["errors"] == ["raddraft read is being stopped"] * 3
        go_on.set()


def test_who_waits_for_the_model_is_told_when_the_page_stops(model, studies_file) -> None:
    drafting = Drafting(model, gather([studies_file]), DecodeConfig())
    at_work, go_on, last = Event(), Event(), Event()

    def work() -> str:
        at_work.set()
        assert go_on.wait(600)
        return "done"

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(drafting.call, work)
        assert at_work.wait(600)
        second = pool.submit(drafting.call, last.set)
        while not drafting._calls:
            assert not second.done()
        closing = pool.submit(drafting.close)
        with pytest.raises(RadDraftError, match="being stopped"):
            second.result(600)
        go_on.set()
        assert first.result(600) == "done"
        closing.result(600)
    with pytest.raises(RadDraftError, match="being stopped"):
        drafting.call(last.set)
    assert not last.is_set()


def test_a_decoder_that_crashes_costs_its_film_only(page, monkeypatch) -> None:
    assert page.request("GET", "/api/studies/0/films/0")[0] == 200
    process = page.reading.films._apart._process
    send = page.reading.films._apart._connection.send
    monkeypatch.setattr(
        page.reading.films._apart._connection, "send", lambda path: (process.kill(), process.join(), send(path))
    )
    status, _, content = page.request("GET", "/api/studies/1/films/0")
    assert status == 422
    assert "the decoder fails on it" in json.loads(content)["error"]
    assert page.request("GET", "/api/studies/1/films/0")[0] == 200


class SlowFilms(Films):
    """Reads no film before it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.read_files: list[str] = []
        self.at_work, self.go_on = Event(), Event()

    def _ask(self, path: Path) -> Film:
        self.read_files.append(path.name)
        self.at_work.set()
        assert self.go_on.wait(600)
        return Film(b"\0\0", 1, 1, (0, 1), ())


def test_films_of_the_open_study_come_first_and_skipped_ones_not_at_all(model, studies_file, tmp_path) -> None:
    films, worklist = SlowFilms(), gather([studies_file])
    names = [study.images[0].path.name for study in worklist.studies]
    with serving(model, worklist, tmp_path, films=films) as page, ThreadPoolExecutor(5) as pool:

        def ask(number: int) -> Future[Any]:
            return pool.submit(page.request, "GET", f"/api/studies/{number}/films/0")

        asked = [ask(0)]
        assert films.at_work.wait(600)
        asked += [ask(number) for number in (1, 2, 3, 4)]
        while len(films._waiting) < 4:
            assert not any(one.done() for one in asked)
        assert page.ask("/api/studies/3?next=2")["id"] == "s35"  # waits for no film
        for skipped in (asked[1], asked[4]):
            status, _, content = skipped.result(600)
            assert (status, json.loads(content)) == (422, {"error": "another study was opened"})
        films.go_on.set()
        assert [asked[number].result(600)[0] for number in (0, 2, 3)] == [200] * 3
        assert ask(1).result(600)[0] == 200
    assert films.read_files == [names[number] for number in (0, 3, 2, 1)]


def test_what_looks_wrong_about_a_film_is_told(model, tmp_path) -> None:
    Image.fromarray(255 - chest()).save(tmp_path / "negative.png")
    with serving(model, gather([tmp_path / "negative.png"]), tmp_path) as page:
        about = json.loads(page.request("GET", "/api/studies/0/films/0")[1]["x-film"])
    assert [text[:14] for text in about["warnings"]] == ["looks inverted"]


# ---- drafts and decisions


def test_drafts_come_ahead_with_confidence_and_observations(model, studies_file, tmp_path) -> None:
    worklist = gather([studies_file])
    with serving(model, worklist, tmp_path) as page:
        page.ask("/api/studies/2?next=5,3,x,-1,99")
        first = page.wait_for_draft(3, "/draft")
        assert page.reading.drafting.get(5) is not None  # as it was asked for before 3
        assert page.reading.drafting.get(0) is None
        assert len(first["sentences"]) == len(first["spans"])
        assert all("log_prob" in one for one in first["sentences"])
        (again,) = model.stream([worklist.studies[3]], max_new_tokens=12)
        assert again.text == first["text"]


def test_observations_are_those_of_the_labeler(page) -> None:
    found = page.ask("/api/labels", {"text": DRAFT})
    expected = {name: value for name, value in label(DRAFT).items() if value is not None}
    assert found["observations"] == expected
    assert [span["text"] for span in found["spans"]] == DRAFT.replace(". ", ".\n").split("\n")
    assert [span["observations"] for span in found["spans"]][1:] == [{"Pleural Effusion": 1}, {"Pneumothorax": 0}]
    assert page.ask("/api/studies/0/draft")["draft"]["observations"] == expected


def test_decisions_are_noted_line_by_line_and_the_last_one_counts(model, studies_file, tmp_path) -> None:
    worklist = gather([studies_file])
    ids = [study.study_id for study in worklist.studies]
    worklist.drafts = {name: Drafted(DRAFT, "other") for name in ids}
    with serving(model, worklist, tmp_path, "A") as page:
        assert page.decide(0, f"{DRAFT}\n".replace(". ", ".\r\n"), seconds=2.54)[1]["decision"] == "accepted"
        assert page.decide(1, SCRIPT)[1]["decision"] == "corrected"
        assert page.ask("/api/studies/1/draft")["draft"]["banner"] == f"{BANNER} This draft is by other."
        assert page.decide(2, None, "Wrong side")[1]["decision"] == "rejected"
        page.ask("/api/studies/3/working", {"text": "half done", "seconds": 7})
        assert page.decide(0, "No finding.")[1]["final"] == "No finding."
        assert page.ask("/api/studies/3")["working"] == {"text": "half done", "seconds": 7}
    rows = [json.loads(line) for line in (tmp_path / "reads.jsonl").read_text().splitlines()]
    assert [(row["study_id"], row["decision"]) for row in rows] == [
        (ids[0], "accepted"),
        (ids[1], "corrected"),
        (ids[2], "rejected"),
        (ids[0], "corrected"),
    ]
    first, second, third, _ = rows
    assert (first["draft"], first["final"]) == (DRAFT, DRAFT)
    assert (second["final"], third["final"], third["reason"]) == (SCRIPT, "", "Wrong side")
    assert "reason" not in first
    study = worklist.studies[0]
    expected = {"subject_id": study.subject_id, "seconds": 2.5, "reader": "A", "model": "other"}
    assert {key: first[key] for key in expected} == expected
    assert first["reference"] == model.drafter.prompt.answer(study)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", first["time"])

    with serving(model, worklist, tmp_path, "B") as page:
        assert {one["status"] for one in page.ask("/api/worklist")["studies"]} == {"unread"}
    with serving(model, worklist, tmp_path, "A") as page:
        statuses = [one["status"] for one in page.ask("/api/worklist")["studies"]]
        assert statuses == ["corrected", "corrected", "rejected", *["unread"] * 5]
        assert page.ask("/api/studies/0")["decision"]["final"] == "No finding."


def test_a_file_of_decisions_is_written_to_by_one_process_at_a_time(tmp_path) -> None:
    process = holder(tmp_path / "reads.jsonl")
    with pytest.raises(HeldError, match=f"process {process.pid} on .* writes to it"):
        Reads(tmp_path / "reads.jsonl", "C")
    process.kill()
    process.wait()
    reads = Reads(tmp_path / "reads.jsonl", "C")
    another = subprocess.run([sys.executable, "-c", HOLD, tmp_path / "reads.jsonl"], cwd=ROOT, capture_output=True)
    assert b"writes to it" in another.stderr
    reads.close()
    assert list(tmp_path.glob(".*")) == []


def test_decisions_are_those_on_the_weights_whatever_the_model_is_called(random_model, studies_file, tmp_path) -> None:
    def statuses(model: Model, number: int | None = None) -> list[str]:
        with serving(model, gather([studies_file]), tmp_path) as page:
            if number is not None:
                page.wait_for_draft(number)
                page.decide(number, None, "Wrong side")
            return [one["status"] for one in page.ask("/api/worklist")["studies"]][:3]

    drafter = load_model(random_model, "cpu").drafter
    assert statuses(Model(drafter, "runs/first/model"), 0) == ["rejected", "unread", "unread"]
    assert statuses(Model(drafter, "/home/runs/first/model"), 1) == ["rejected", "rejected", "unread"]
    assert statuses(Model(drafter, "runs/first/model"), 1) == ["rejected", "rejected", "unread"]
    trained = Model(drafter, "runs/first/model")
    trained.digest = "of other weights in the same place"
    assert statuses(trained) == ["unread"] * 3
    rows = [json.loads(line) for line in (tmp_path / "reads.jsonl").read_text().splitlines()]
    assert {row["weights"] for row in rows} == {Model(drafter, "").digest}
    assert len(rows) == 3
    assert len(read_reads(tmp_path / "reads.jsonl")) == 2


def test_a_decision_on_another_study_or_draft_is_refused(model, studies_file, tmp_path) -> None:
    worklist = gather([studies_file])
    ids = [study.study_id for study in worklist.studies]
    worklist.drafts = {name: Drafted(f"Draft {at}. {DRAFT}", model.name) for at, name in enumerate(ids)}
    with serving(model, worklist, tmp_path) as page:
        digests = [page.ask(f"/api/studies/{number}/draft")["draft"]["digest"] for number in (0, 1)]
        for text, reason in ((DRAFT, ""), (None, "wrong")):
            for study_id, draft in ((ids[0], digests[0]), (ids[0], digests[1]), (ids[1], digests[0])):
                body = {"study_id": study_id, "draft": draft, "text": text, "reason": reason, "seconds": 1}
                status, _, content = page.request("POST", "/api/studies/1/decision", body)
                assert status == 409
                assert "on another study or draft" in json.loads(content)["error"]
        assert {one["status"] for one in page.ask("/api/worklist")["studies"]} == {"unread"}
        assert page.decide(1, DRAFT)[0] == 200


WRITER = """
import sys
from dataclasses import replace
from pathlib import Path
from generator.clinic.reading.decisions import Reads
from generator.clinic.reading.worklist import Drafted
from raddraft.studies import Study
reads = Reads(Path(sys.argv[1]), "A")
for number in range(100_000):
    reads.append(Study(f"s{number}", "p", "test", []), Drafted("x" * 300, "m"), "y" * 300, "", 1, None)
    print(number, flush=True)
"""


def test_a_kill_loses_no_decision_that_was_taken(tmp_path) -> None:
    path = tmp_path / "reads.jsonl"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert writer.stdout
    for line in writer.stdout:
        if int(line) >= 20:
            writer.kill()
            break
    taken = [int(line), *map(int, writer.stdout.read().split())][-1]
    writer.wait()
    with open(path, "ab") as file:
        file.write(b'{"study_id": "s9", "dra')  # as if it were killed within a line
    reads = Reads(path, "A")
    assert all(reads.latest(f"s{number}", "m") for number in range(taken + 1))
    reads.append(Study("last", "p", "test", []), Drafted("x", "m"), "x", "", 1, None)
    reads.close()
    assert json.loads(path.read_text().splitlines()[-1])["study_id"] == "last"


DECIDED = '{"study_id": "s1", "draft": "x", "final": "x", "decision": "accepted", "seconds": 1}'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("one line without an end", "its last line is no decision"),
        (f"{DECIDED}\nnotes\nmore notes", "line 2: not valid JSON"),
        (f'{{"study_id": "s1", "prediction": "x"}}\n{DECIDED[:30]}', "line 1: key 'draft' is missing"),
        (DECIDED.replace("1}", '"fast"}'), "line 1: seconds must be a number from 0, got 'fast'"),
        (DECIDED.replace("accepted", "liked"), "line 1: unknown decision 'liked'"),
    ],
)
def test_a_file_that_holds_something_else_is_left_as_it_is(tmp_path, text, sentence) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    for _ in range(2):  # the first one has let go of the file
        with pytest.raises(RadDraftError, match=sentence):
            Reads(path, "A")
    assert path.read_text() == text


def test_decisions_are_for_their_owner_only(tmp_path) -> None:
    reads = Reads(tmp_path / "reads.jsonl", "A")
    reads.append(Study("s1", "p", "test", []), Drafted("x", "m"), "x", "", 1, None)
    reads.close()
    assert stat.S_IMODE((tmp_path / "reads.jsonl").stat().st_mode) == 0o600


# ---- sources


def test_a_manifest_a_folder_and_drafts_make_a_worklist(studies_file, tmp_path) -> None:
    films = tmp_path / "more"
    film(films / "x.dcm", 1, "1.2.9")
    drafts = tmp_path / "drafts.jsonl"
    rows = [{"study_id": name, "prediction": f"Draft of {name}."} for name in ("s32", "s33", "elsewhere")]
    rows[0]["confidence"] = 0.7  # as another system may mean it
    rows[1]["confidence"] = [{"sentence": "A.", "log_prob": -1, "agreement": None, "other": "x"}]
    drafts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.warns(UserWarning, match="1 of 3 drafts are of no study here"):
        worklist = gather([studies_file, films, drafts])
    assert [study.study_id for study in worklist.studies[:-1]] == [f"s{number}" for number in range(32, 40)]
    assert worklist.drafts["s33"] == Drafted("Draft of s33.", "drafts", [{"sentence": "A.", "log_prob": -1.0}])
    assert worklist.drafts["s32"] == Drafted("Draft of s32.", "drafts")
    assert len(gather([studies_file], "all").studies) == 40
    for sources, split, sentence in (
        ([drafts], "test", "drafts without their studies"),
        ([studies_file, studies_file], "test", "Study 's32' is there twice"),
        ([films, drafts], "test", "None of the 3 drafts"),
    ):
        with pytest.raises(RadDraftError, match=sentence):
            gather(sources, split)


def test_a_prior_of_another_split_is_shown_with_its_report(model, tmp_path) -> None:
    new, old = make_study(tmp_path, 1, "test"), make_study(tmp_path, 2, "train")
    old.subject_id = new.subject_id = "p"
    old.split = "test"
    new.images.insert(0, replace(new.images[0], view="LATERAL"))
    new.extra, old.extra = {"study_order": 2}, {"study_order": 1}
    write_studies(tmp_path / "studies.jsonl", [new, old])
    with serving(model, gather([tmp_path / "studies.jsonl"]), tmp_path) as page:
        study = page.ask("/api/studies/0")
    assert study["prior"] == {"id": "s2", "report": f"Findings: {old.sections['findings']}"}
    assert [(one["view"], one["prior"]) for one in study["films"]] == [("PA", False), ("LATERAL", False), ("PA", True)]


# ---- what a reader may ask for


def test_nearest_reports_are_of_other_patients_and_attention_is_a_map(model, studies_file, tmp_path) -> None:
    worklist = gather([studies_file])
    training = gather([studies_file], "train").studies
    with serving(model, worklist, tmp_path, nearest=Nearest(model.drafter, training, tmp_path / "features")) as page:
        found = page.ask("/api/studies/0/nearest")["nearest"]
        heat = np.array(page.ask("/api/studies/0/films/0/attention")["attention"])
        assert page.ask("/api/worklist")["attention"]
    assert [one["similarity"] for one in found] == sorted((one["similarity"] for one in found), reverse=True)
    assert {one["text"] for one in found} <= {study.sections["findings"] for study in training}
    assert heat.shape == (2, 2)
    assert heat.mean() == pytest.approx(1)


def test_without_a_manifest_there_are_no_nearest_reports(page) -> None:
    assert page.request("GET", "/api/studies/0/nearest")[0] == 404


def test_read_studies_become_documents_that_stay_unverified(page, model) -> None:
    number = number_of(page, "pa.dcm")
    study_id = page.reading.worklist.studies[number].study_id
    page.wait_for_draft(number)
    body = {"studies": [number], "forms": ["sr", "fhir"], "complete": False}
    assert "is not read yet" in page.ask("/api/export", body)["errors"][0]
    text = "Findings: The heart is enlarged.\nImpression: Cardiomegaly."
    page.decide(number, text)
    for complete in (False, True):
        found = page.ask("/api/export", body | {"complete": complete})
        assert found["errors"] == []
        assert found["written"] == [f"{study_id}.sr.dcm", f"{study_id}.fhir.json"]
        dataset = dcmread(page.reading.results / f"{study_id}.sr.dcm")
        told = read_sr(dataset)
        assert told.sections == {"findings": "The heart is enlarged.", "impression": "Cardiomegaly."}
        assert told.complete == complete
        assert dataset.VerificationFlag == "UNVERIFIED"
        assert told.banner == model.banner.replace(BANNER, CHANGED)
    assert stat.S_IMODE(page.reading.results.stat().st_mode) == 0o700
    bundle = (page.reading.results / f"{study_id}.fhir.json").read_text()
    assert '"preliminary"' in bundle
    written = sorted(path.name for path in page.reading.results.iterdir())
    page.decide(number, "No \ud800 edema.")
    assert page.ask("/api/export", body)["errors"] == [], "half a surrogate pair is written out"
    assert r"No \\ud800 edema." in (page.reading.results / f"{study_id}.fhir.json").read_text()
    _, read = page.decide(number, DRAFT)
    assert sorted(read["removed"]) == written
    assert list(page.reading.results.iterdir()) == []
    page.ask("/api/export", body)
    dataset = dcmread(page.reading.results / f"{study_id}.sr.dcm")
    assert read_sr(dataset).banner == model.banner  # as the machine wrote it
    page.decide(number, None, "wrong")
    assert list(page.reading.results.iterdir()) == []
    assert "was rejected" in page.ask("/api/export", body)["errors"][0]


def test_drafts_of_another_model_and_pictures_make_no_documents(model, studies_file, tmp_path) -> None:
    worklist = gather([studies_file])
    worklist.drafts = {"s32": Drafted(DRAFT, "elsewhere"), "s33": Drafted(DRAFT, model.name)}
    worklist.drafts["s34"] = Drafted("", model.name, error="no film")
    with serving(model, worklist, tmp_path) as page:
        for number in (0, 1, 2):
            page.decide(number, DRAFT)
        found = page.ask("/api/export", {"studies": [0, 1, 2], "forms": ["sr"], "complete": False})
    assert found["written"] == []
    assert "its draft is by 'elsewhere'" in found["errors"][0]
    assert "33.png: no StudyInstanceUID" in found["errors"][1]
    assert "there was no draft" in found["errors"][2]
    assert str(tmp_path) not in found["errors"][1]


# ---- identifiers

PLANTED = {
    "PatientName": "Plantedname^Testperson",
    "PatientID": "NUMBER-4711",
    "IssuerOfPatientID": "PlantedHospital",
    "PatientBirthDate": "19430217",
    "StudyDate": "20310504",
    "StudyTime": "071319",
    "AccessionNumber": "ACCPLANT",
    "StudyID": "STUDPLANT",
    "InstitutionName": "Plantedname Hospital",
    "StudyDescription": "Thorax of Plantedname",
    "SeriesDescription": "Plantedname PA",
    "ViewPosition": "Plantedname",
    "RequestAttributesSequence": [item(ReasonForTheRequestedProcedure="Plantedname coughs")],
}
TRACE = re.compile(
    rb"planted|testperson|4711|19430217|1943-02-17|20310504|2031-05-04|071319|ACCPLANT|STUDPLANT|1\.2\.3", re.IGNORECASE
)


def test_no_identifier_reaches_page_decisions_logs_or_messages(model, tmp_path, capfd, caplog, recwarn) -> None:
    caplog.set_level(logging.DEBUG)
    root, cache = tmp_path / "films", tmp_path / "features"
    film(root / "1.dcm", 1, "1.2.3", **PLANTED)
    film(root / "2.dcm", 1, "1.2.3.9", **PLANTED | {"StudyDate": "20300504"})
    film(root / "3.dcm", 1, "1.2.3.8", **PLANTED | {"Rows": 0, "BodyPartExamined": "CHEST"})
    training = [make_study(tmp_path, number, "train") for number in range(4)]
    caplog.clear()  # of what pydicom says as the films are written
    recwarn.clear()
    told = []
    with serving(model, gather([root]), tmp_path, nearest=Nearest(model.drafter, training, cache)) as page:
        for number in range(3):
            page.wait_for_draft(number)
            for path in ("", "/draft", "/films/0", "/films/1", "/films/0/attention", "/nearest", "/films/7"):
                _, headers, content = page.request("GET", f"/api/studies/{number}{path}")
                is_film = headers["content-type"] == "application/octet-stream"
                told.append(repr(headers).encode() + (b"" if is_film else content))
            told.append(json.dumps(page.decide(number, "No edema.")[1]).encode())
        told.append(page.request("GET", "/api/worklist")[2])
        told.append(page.request("POST", "/api/export", {"studies": [0, 2], "forms": ["sr"], "complete": False})[2])
    files = [path for path in tmp_path.rglob("*") if path.is_file() and root not in path.parents]
    told += [path.name.encode() for path in files]
    told += [path.read_bytes() for path in files if path.parent.name != "results"]
    told += [
        "".join(capfd.readouterr()).encode(),
        caplog.text.encode(),
        *(str(one.message).encode() for one in recwarn),
    ]
    assert any(name.endswith(b".sr.dcm") for name in told)
    found = [part[max(0, match.start() - 80) : match.end()] for part in told if (match := TRACE.search(part))]
    assert found == []


# ---- the command


@contextmanager
def started(folder: Path, *arguments: str | Path) -> Iterator[tuple[Job, Path]]:
    """`raddraft read` at a terminal, and the folder that it has for temporary files."""
    places = folder / "temporary"
    places.mkdir()
    job = Job("read", *arguments, "--out", folder / "reads.jsonl", environment={"TMPDIR": str(places)})
    try:
        yield job, places
    finally:
        job.kill()


def test_the_command_says_where_it_serves_and_cleans_up(random_model, studies_file, tmp_path) -> None:
    with started(tmp_path, random_model, studies_file) as (job, places):
        opened = re.compile(r"^Open (http://127\.0\.0\.1:(\d+)/)#([\w-]{40,})$", re.MULTILINE)
        while not (address := opened.search(job.printed)):
            assert job.running, job.printed
            sleep(0.01)
        request = urllib.request.Request(f"{address[1]}api/worklist", headers={TOKEN: address[3]})
        with urllib.request.urlopen(request) as answer:
            assert len(json.load(answer)["studies"]) == 8
        job.signal(signal.SIGHUP)  # which becomes SIGTERM
        said = job.finish([128 + signal.SIGTERM])
        assert list(places.glob("*")) == []
    assert "8 studies, 0 of them read" in said
    assert "DRAFT for a radiologist to check" in said


def test_a_terminal_that_is_closed_while_studies_are_listed_leaves_nothing_behind(tmp_path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as archive:
        url = f"http://127.0.0.1:{archive.getsockname()[1]}/dicom-web"
        with started(tmp_path, tmp_path / "no-model", url) as (job, places):
            archive.settimeout(600)
            archive.accept()[0].close()  # it asks for studies
            assert len(list(places.glob("raddraft-read-*"))) == 1
            job.signal(signal.SIGHUP)
            job.finish([128 + signal.SIGTERM])
            assert list(places.glob("*")) == []


def test_what_is_not_there_is_told_before_a_model_is_loaded(tmp_path) -> None:
    assert "No image in" in run("read", tmp_path / "no-model", tmp_path)[1]
    assert run("read", tmp_path / "no-model", tmp_path / "no.jsonl")[0] == 1
