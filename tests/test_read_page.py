"""The page of `raddraft read` in Debian's Chromium: read, correct, reject, export by mouse and keyboard; accessible."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from generator.api import load_model
from generator.clinic.reading.worklist import Drafted, Worklist, gather
from raddraft.studies import Study
from tests.conftest import make_study
from tests.reading import Page, serving
from tests.test_clinic_studies import film

CHROMIUM = shutil.which("chromium")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
SENTENCES = ("The heart is enlarged.", "Small left pleural effusion.", "No pneumothorax.")
DRAFT = " ".join(SENTENCES)
SCRIPT = "<script>alert(1)</script><img src=x onerror=alert(2)> {{7*7}} No edema."

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
expect = sync_api.expect
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")


@pytest.fixture(scope="module")
def model(random_model):
    return load_model(random_model, "cpu")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    expect.set_options(timeout=30_000)
    with sync_api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def served(model, tmp_path: Path) -> Iterator[Page]:
    """Four studies of DICOM files, the first with a lateral film and a prior, all with the same draft."""
    root = tmp_path / "films"
    window = {"WindowCenter": 100, "WindowWidth": 80, "ViewPosition": "PA"}
    film(root / "1.dcm", 1, "1.2.1", StudyDate="20260131", **window)
    film(root / "2.dcm", 2, "1.2.1", StudyDate="20260131", ViewPosition="LL")
    film(root / "3.dcm", 1, "1.2.2", StudyDate="20250131", **window)
    film(root / "4.dcm", 1, "1.2.3", PatientID="P2", **window)
    film(root / "5.dcm", 1, "1.2.4", PatientID="P3", **window)
    worklist = gather([root])
    confidence = [{"sentence": text, "log_prob": -0.5 * at} for at, text in enumerate(SENTENCES)]
    worklist.drafts = {study.study_id: Drafted(DRAFT, model.name, confidence) for study in worklist.studies}
    with serving(model, worklist, tmp_path) as page:
        yield page


@pytest.fixture
def tab(browser) -> Iterator[Any]:
    """A tab of a fresh profile; it must ask for nothing elsewhere, and complain of nothing."""
    context = browser.new_context(viewport={"width": 1280, "height": 720}, color_scheme="dark")
    context.set_default_timeout(30_000)
    # From the start: Chromium lets requests pass that follow at once on the first `route`.
    context.route("**/*", lambda route: route.continue_())
    tab = context.new_page()
    hosts, complaints = set(), []
    tab.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
    broken = "net::ERR_FAILED"  # what a test gives up with `route.abort`; a real failure has another name
    tab.on(
        "console",
        lambda message: (
            complaints.append(message.text) if message.type == "error" and broken not in message.text else None
        ),
    )
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("dialog", lambda dialog: complaints.append(f"dialog: {dialog.message}"))
    yield tab
    context.close()
    assert hosts <= {"127.0.0.1"}
    assert complaints == []


def open_page(tab: Any, page: Page) -> None:
    """Open the page and wait for films and draft of its first study."""
    tab.goto(page.address)
    tab.wait_for_selector(".chip")
    wait_for_films(tab)


def wait_for_films(tab: Any) -> None:
    expect(tab.locator(".pane .values:empty")).to_have_count(0)


def wait_for_study(tab: Any, page: Page, number: int) -> None:
    expect(tab.locator("#study-id")).to_have_text(page.reading.worklist.studies[number].study_id)
    expect(tab.locator("#text")).to_be_editable()


def gray(tab: Any) -> int:
    """The sum of the gray values of the first film as it is shown."""
    return tab.evaluate(
        """() => {
            const canvas = document.querySelector('.pane canvas');
            const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
            return data.reduce((sum, value, at) => (at % 4 ? sum : sum + value), 0);
        }"""
    )


def wait_for_gray(tab: Any, change: Any) -> int:
    """What `gray` becomes other than it was, through a change."""
    before = gray(tab)
    change()
    for _ in range(600):
        tab.evaluate("() => new Promise(requestAnimationFrame)")
        if (after := gray(tab)) != before:
            return after
    raise AssertionError("the film did not change")


def rows(page: Page) -> list[dict]:
    path = page.reading.reads.path
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ids_of(page: Page) -> list[str]:
    return [study.study_id for study in page.reading.worklist.studies]


def expect_no_study(tab: Any) -> None:
    """Nothing of a study is shown, and nothing can be decided."""
    expect(tab.locator("#study-id")).to_have_text("")
    expect(tab.locator("#text")).to_have_value("")
    expect(tab.locator("#text")).not_to_be_editable()
    expect(tab.locator("#decide button:disabled")).to_have_text(["Accept", "Reject"])
    expect(tab.locator(".pane, .chip")).to_have_count(0)


def hold(tab: Any, pattern: str) -> list[Any]:
    """The requests of a pattern, each of which waits for its `continue_`."""
    held: list[Any] = []
    tab.route(pattern, lambda route: held.append(route))
    return held


def test_studies_are_read_corrected_and_rejected_and_a_reload_keeps_all(served, tab) -> None:
    open_page(tab, served)
    ids = [study.study_id for study in served.reading.worklist.studies]
    assert tab.locator(".pane").count() == 3
    assert "#" not in tab.url  # the token is not left in the address
    assert tab.locator("#banner").inner_text() == served.reading.model.banner

    tab.keyboard.press("a")  # accepted as it stands, and on to the next
    wait_for_study(tab, served, 1)
    tab.keyboard.press("e")
    tab.keyboard.press("Control+End")
    tab.keyboard.type(" New rib fracture.")
    tab.wait_for_selector(".chip.present:has-text('Fracture')")
    assert tab.locator("#shade .own").all_inner_texts() == ["New rib fracture."]
    assert tab.locator("#accept").inner_text() == "Save corrected"
    tab.keyboard.press("Control+Enter")
    wait_for_study(tab, served, 2)
    tab.keyboard.press("Escape")
    tab.keyboard.press("r")
    tab.keyboard.press("3")
    assert tab.locator("#reason").input_value() == "Wrong side or place"
    tab.keyboard.press("Enter")
    wait_for_study(tab, served, 3)
    with tab.expect_response("**/api/studies/3/working"):
        tab.fill("#text", "Half a report")

    tab.reload()
    wait_for_study(tab, served, 3)
    assert tab.locator("#text").input_value() == "Half a report"
    assert tab.locator("#progress").inner_text() == "3 of 4 read, by A"
    assert [(row["study_id"], row["decision"]) for row in rows(served)] == [
        (ids[0], "accepted"),
        (ids[1], "corrected"),
        (ids[2], "rejected"),
    ]
    assert rows(served)[1]["final"] == f"{DRAFT} New rib fracture."
    assert rows(served)[2]["reason"] == "Wrong side or place"
    tab.keyboard.press("k")
    tab.keyboard.press("k")
    wait_for_study(tab, served, 1)
    assert tab.locator("#text").input_value().endswith("New rib fracture.")
    assert tab.locator("#decision").inner_text() == "Corrected"
    tab.click("#restore")
    tab.click("#accept")
    wait_for_study(tab, served, 3)
    assert [row["decision"] for row in rows(served)] == ["accepted", "corrected", "rejected", "accepted"]


def test_until_a_study_has_come_none_is_shown_or_decided_on(served, tab) -> None:
    open_page(tab, served)
    held = hold(tab, "**/api/studies/1?*")
    with tab.expect_request("**/api/studies/1?*"):
        tab.keyboard.press("j")
    expect_no_study(tab)
    tab.keyboard.press("a")
    tab.keyboard.press("r")
    expect(tab.locator("dialog[open]")).to_have_count(0)
    held[0].continue_()
    wait_for_study(tab, served, 1)
    assert rows(served) == []
    tab.keyboard.press("a")
    wait_for_study(tab, served, 2)
    assert [row["study_id"] for row in rows(served)] == [ids_of(served)[1]]


def test_a_study_that_did_not_come_is_asked_for_again(served, tab) -> None:
    open_page(tab, served)
    tab.route("**/api/studies/1?*", lambda route: route.abort())
    tab.keyboard.press("j")
    expect(tab.locator("#status.bad")).to_contain_text("The server does not answer")
    expect_no_study(tab)
    tab.unroute("**/api/studies/1?*")
    tab.click("#study-1")
    wait_for_study(tab, served, 1)
    expect(tab.locator("#status")).to_have_text("")


def test_a_late_answer_does_not_replace_the_study_asked_for_last(served, tab) -> None:
    open_page(tab, served)
    hold(tab, "**/api/studies/1?*")
    with tab.expect_event("requestfailed", lambda request: "/api/studies/1?" in request.url):
        with tab.expect_request("**/api/studies/1?*"):
            tab.keyboard.press("j")
        tab.keyboard.press("j")  # which gives up the request for 1
    wait_for_study(tab, served, 2)
    wait_for_films(tab)
    tab.keyboard.press("a")
    wait_for_study(tab, served, 3)
    assert [row["study_id"] for row in rows(served)] == [ids_of(served)[2]]


def test_films_of_a_study_that_is_skipped_are_given_up(served, tab) -> None:
    open_page(tab, served)
    hold(tab, "**/api/studies/2/films/*")
    with tab.expect_request("**/api/studies/2/films/0"):
        tab.keyboard.press("j")
        wait_for_study(tab, served, 1)  # those of 2 come ahead
    with tab.expect_event("requestfailed", lambda request: "/api/studies/2/films/0" in request.url):
        tab.keyboard.press("k")
    wait_for_study(tab, served, 0)
    tab.unroute("**/api/studies/2/films/*")
    tab.click("#study-2")
    wait_for_study(tab, served, 2)
    wait_for_films(tab)


def test_a_held_key_and_a_double_click_decide_on_one_study(served, tab) -> None:
    open_page(tab, served)
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url) if request.url.endswith("/decision") else None)
    tab.keyboard.down("a")
    wait_for_study(tab, served, 1)
    tab.keyboard.down("a")  # as a held key repeats itself
    tab.keyboard.up("a")
    tab.focus("#text")
    tab.keyboard.down("Control")
    tab.keyboard.down("Enter")
    wait_for_study(tab, served, 2)
    tab.keyboard.down("Enter")
    tab.keyboard.up("Enter")
    tab.keyboard.up("Control")
    box = tab.locator("#accept").bounding_box()
    tab.mouse.move(box["x"] + 9, box["y"] + 9)
    for count in (1, 2):
        tab.mouse.down(click_count=count)
        tab.mouse.up(click_count=count)
        wait_for_study(tab, served, 3)
    assert [url.split("/")[-2] for url in asked] == ["0", "1", "2"]
    assert [row["study_id"] for row in rows(served)] == ids_of(served)[:3]


def test_while_a_decision_is_under_way_none_is_taken_and_no_study_skipped(served, tab) -> None:
    open_page(tab, served)
    held = hold(tab, "**/decision")
    with tab.expect_request("**/decision"):
        tab.keyboard.press("a")
    expect(tab.locator("#accept")).to_be_disabled()
    tab.keyboard.press("a")
    held[0].continue_()
    wait_for_study(tab, served, 1)
    expect(tab.locator("#accept")).to_be_enabled()
    with tab.expect_request("**/api/studies/1/decision"):
        tab.keyboard.press("a")
    tab.keyboard.press("k")  # the reader turns to another study before the answer
    wait_for_study(tab, served, 0)
    expect(tab.locator("#accept")).to_be_disabled()
    held[1].continue_()
    expect(tab.locator("#progress")).to_have_text("2 of 4 read, by A")
    expect(tab.locator("#accept")).to_be_enabled()
    wait_for_study(tab, served, 0)
    assert len(held) == 2
    assert [row["study_id"] for row in rows(served)] == ids_of(served)[:2]


def test_a_text_that_the_server_did_not_take_is_kept_and_sent_again(served, tab) -> None:
    tab.clock.install()
    open_page(tab, served)
    tab.route("**/working", lambda route: route.abort())
    tab.fill("#text", "Half a report")
    tab.clock.run_for(1000)
    expect(tab.locator("#status.bad")).to_contain_text("The server does not answer")
    assert "edited" in tab.locator("#study-0").inner_text()
    tab.keyboard.press("Escape")
    tab.keyboard.press("j")
    wait_for_study(tab, served, 1)
    tab.keyboard.press("k")
    wait_for_study(tab, served, 0)
    assert tab.locator("#text").input_value() == "Half a report"
    tab.route("**/decision", lambda route: route.abort())
    with tab.expect_event("requestfailed", lambda request: request.url.endswith("/decision")):
        tab.click("#accept")
    expect(tab.locator("#text")).to_be_editable()
    assert tab.locator("#text").input_value() == "Half a report"
    assert served.reading.working == {}
    tab.unroute("**/working")
    with tab.expect_response("**/api/studies/0/working"):
        tab.clock.run_for(5000)
    expect(tab.locator("#status")).to_have_text("")
    assert served.reading.working[0].text == "Half a report"
    assert rows(served) == []


def test_a_look_for_the_draft_that_failed_is_repeated(served, tab) -> None:
    open_page(tab, served)

    def without_draft(route: Any) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, json=answer.json() | {"draft": None})

    tab.route("**/api/studies/1?*", without_draft)
    tab.route("**/api/studies/1/draft", lambda route: route.abort())
    tab.keyboard.press("j")
    expect(tab.locator("#status.bad")).to_contain_text("The server does not answer")
    expect(tab.locator("#text")).not_to_be_editable()
    expect(tab.locator("#accept")).to_be_disabled()
    tab.unroute("**/api/studies/1/draft")
    wait_for_study(tab, served, 1)
    assert tab.locator("#text").input_value() == DRAFT
    expect(tab.locator("#status")).to_have_text("")


def test_a_study_without_a_draft_is_asked_for_again_and_can_be_decided_on(served, tab) -> None:
    open_page(tab, served)

    def without_draft(route: Any) -> None:
        answer = route.fetch()
        study = answer.json()
        study["draft"] |= {"text": "", "error": "4.dcm: broken", "spans": [], "observations": {}}
        route.fulfill(response=answer, json=study)

    tab.route("**/api/studies/1?*", without_draft)
    tab.keyboard.press("j")
    wait_for_study(tab, served, 1)
    expect(tab.locator("#status.bad")).to_have_text("4.dcm: broken")
    expect(tab.locator("#accept")).to_be_disabled()
    tab.fill("#text", "No edema.")
    expect(tab.locator("#accept")).to_have_text("Save corrected")
    expect(tab.locator("#accept")).to_be_enabled()
    with tab.expect_request("**/api/studies/1?*"):
        tab.click("#study-1")
    wait_for_study(tab, served, 1)
    assert tab.locator("#text").input_value() == "No edema."
    tab.keyboard.press("r")
    tab.keyboard.press("5")
    tab.keyboard.press("Enter")
    wait_for_study(tab, served, 2)
    assert [(row["decision"], row["reason"]) for row in rows(served)] == [("rejected", "The film cannot be read")]


def test_seconds_of_a_study_go_on_where_they_were(served, tab) -> None:
    tab.clock.install()
    open_page(tab, served)
    tab.clock.run_for(20_000)
    tab.keyboard.press("?")
    tab.clock.run_for(50_000)  # which do not count
    tab.keyboard.press("Escape")
    tab.wait_for_selector("dialog[open]", state="detached")
    with tab.expect_response("**/api/studies/0/working"):
        tab.keyboard.press("j")
    wait_for_study(tab, served, 1)
    kept = served.reading.working[0]
    assert kept.text is None
    assert 20 <= kept.seconds < 70
    tab.keyboard.press("k")
    wait_for_study(tab, served, 0)
    assert "edited" not in tab.locator("#study-0").inner_text()
    tab.keyboard.press("a")
    wait_for_study(tab, served, 1)
    assert kept.seconds <= rows(served)[0]["seconds"] < 70
    assert rows(served)[0]["decision"] == "accepted"


def test_the_worklist_is_searched_filtered_and_walked_by_keyboard(model, browser, tab, tmp_path) -> None:
    first = make_study(tmp_path, 1, "test")
    studies = [Study(f"s{number}", f"p{number}", "test", first.images) for number in range(3000)]
    studies[2345].sections = {"indication": "Dyspnea after a fall"}
    drafts = {study.study_id: Drafted(DRAFT, model.name) for study in studies}
    with serving(model, Worklist(studies, {}, drafts), tmp_path) as page:
        open_page(tab, page)
        assert tab.locator("#found").inner_text() == "3000 studies"
        assert tab.locator(".row").count() < 60
        tab.keyboard.press("/")
        tab.keyboard.type("DYSPNEA fall")
        expect(tab.locator("#found")).to_have_text("1 of 3000 studies")
        tab.click(".row")
        wait_for_study(tab, page, 2345)
        tab.fill("#search", "s29")
        assert tab.locator("#found").inner_text() == "111 of 3000 studies"
        tab.focus("#rows")
        tab.keyboard.press("End")
        wait_for_study(tab, page, 2999)
        assert tab.locator(".row[aria-selected=true]").get_attribute("aria-posinset") == "111"
        tab.keyboard.press("a")
        wait_for_study(tab, page, 29)  # the first unread one of the list
        tab.fill("#search", "")
        tab.select_option("#filter", "accepted")
        assert tab.locator(".row").count() == 1


def test_films_are_windowed_zoomed_moved_and_inverted(served, tab) -> None:
    open_page(tab, served)
    values = tab.locator(".pane .values").first
    first, start = values.inner_text(), gray(tab)
    box = tab.locator(".pane").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2

    def drag(button: str) -> None:
        tab.mouse.move(x, y)
        tab.mouse.down(button=button)
        tab.mouse.move(x + 40, y + 60)
        tab.mouse.up(button=button)

    wait_for_gray(tab, lambda: drag("left"))
    window = values.inner_text().split("×")[0]
    assert window != first.split("×")[0]
    wait_for_gray(tab, lambda: drag("right"))
    assert values.inner_text().split("×")[0] == window
    wait_for_gray(tab, lambda: tab.mouse.wheel(0, -300))
    assert float(values.inner_text().split("×")[1]) > float(first.split("×")[1])
    assert wait_for_gray(tab, lambda: tab.keyboard.press("0")) == start
    wait_for_gray(tab, lambda: tab.keyboard.press("i"))
    assert tab.locator("#invert").get_attribute("aria-pressed") == "true"
    wait_for_gray(tab, lambda: tab.keyboard.press("0"))
    wait_for_gray(tab, lambda: tab.locator("#level").fill("0.9"))
    tab.keyboard.press("Escape")
    wait_for_gray(tab, lambda: (tab.keyboard.press("1"), tab.keyboard.press("ArrowRight")))
    tab.keyboard.press("p")
    assert tab.locator(".pane:visible").count() == 2
    tab.keyboard.press("m")
    assert tab.locator(".pane:visible").count() == 1
    wait_for_gray(tab, lambda: tab.keyboard.press("h"))
    caption = tab.locator(".pane figcaption").first
    expect(caption).to_contain_text("Attention of the vision tower")
    tab.keyboard.press("0")
    expect(caption).not_to_contain_text("Attention")


SAMPLES = """async () => {
    const { Film, fillTable } = await import('/film.js');
    const pixels = Uint16Array.from({ length: 32 * 16 }, (_, at) => at * 128);
    const film = new Film({ width: 32, height: 16, pixels, window: [0, 1], warnings: [] });
    const sample = (width, height, scale, left, top) => {
        const out = new Uint16Array(width * height).fill(7);
        return [Object.values(film.sample(out, width, height, scale, left, top)), [...out]];
    };
    const table = (window, inverted) => {
        const colors = new Uint32Array(65536);
        fillTable(colors, window, inverted);
        return [0, 16384, 32768, 49152, 65535].map((value) => colors[value] & 255);
    };
    return {
        whole: sample(32, 16, 1, 0, 0),
        half: sample(16, 8, 0.5, 0, 0),
        twice: sample(4, 2, 2, 8, 4),
        outside: sample(8, 4, 1, -4, -2),
        table: table([0.25, 0.75], false),
        inverted: table([0.25, 0.75], true),
        black: table([1, 1.5], false),
    };
}"""


def test_films_are_sampled_at_their_full_depth(served, tab) -> None:
    open_page(tab, served)
    found = tab.evaluate(SAMPLES)
    film = 128 * np.arange(512).reshape(16, 32)
    assert found["whole"] == [[0, 0, 32, 16], film.ravel().tolist()]
    means = film.reshape(8, 2, 16, 2).mean((1, 3))
    assert found["half"] == [[0, 0, 16, 8], means.ravel().tolist()]
    between = [128 * (32 * (3.75 + 0.5 * y) + 7.75 + 0.5 * x) for y in range(2) for x in range(4)]
    assert found["twice"] == [[0, 0, 4, 2], between]
    covered, pixels = found["outside"]
    assert covered == [4, 2, 8, 4]
    assert np.array_equal(np.reshape(pixels, (4, 8))[2:, 4:], film[:2, :4])
    assert (np.reshape(pixels, (4, 8))[:2] == 7).all()
    assert found["table"] == [0, 0, 128, 255, 255]
    assert found["inverted"] == [255, 255, 127, 0, 0]
    assert found["black"] == [0] * 5


def test_a_press_on_an_observation_lights_its_sentence(served, tab) -> None:
    open_page(tab, served)
    tab.click(".chip:has-text('Pleural Effusion')")
    assert tab.locator("#shade .lit").all_inner_texts() == [SENTENCES[1]]
    assert tab.locator("#sentence").inner_text() == SENTENCES[1]
    shares = tab.eval_on_selector_all("#shade mark", "marks => marks.map(one => one.style.getPropertyValue('--share'))")
    assert shares == ["0.000", "0.393", "0.632"]
    tab.focus("#text")
    tab.keyboard.press("Control+Home")
    assert tab.locator("#sentence").inner_text() == "Sentence 1 of 3 · probability of its tokens 1.00"


def test_read_studies_are_exported(served, tab) -> None:
    open_page(tab, served)
    tab.keyboard.press("x")
    expect(tab.locator("input[value=all]")).to_be_disabled()  # none is read
    assert str(served.reading.results.resolve()) in tab.locator("#export-note").inner_text()
    tab.keyboard.press("Escape")
    tab.wait_for_selector("dialog[open]", state="detached")
    tab.keyboard.press("a")
    wait_for_study(tab, served, 1)
    tab.keyboard.press("x")
    tab.check("input[value=all]")
    tab.check("#complete")
    tab.click("#run-export")
    tab.wait_for_selector("#exported:has-text('Written to')")
    (path,) = served.reading.results.iterdir()
    assert path.name == f"{served.reading.worklist.studies[0].study_id}.sr.dcm"
    assert path.name in tab.locator("#exported").inner_text()


def test_script_in_a_report_is_text(model, tab, tmp_path) -> None:
    study, other = make_study(tmp_path, 1, "test"), make_study(tmp_path, 2, "test")
    study.study_id, study.sections["indication"], study.images[0].view = SCRIPT, SCRIPT, SCRIPT
    other.subject_id, other.sections["findings"] = study.subject_id, SCRIPT
    drafts = {one.study_id: Drafted(SCRIPT, SCRIPT) for one in (study, other)}
    with serving(model, Worklist([study, other], {SCRIPT: other}, drafts), tmp_path, SCRIPT) as page:
        open_page(tab, page)
        assert tab.locator("#study-id").inner_text() == SCRIPT
        assert tab.locator("#text").input_value() == SCRIPT
        assert SCRIPT in tab.locator("#prior p").text_content()
        assert tab.locator("img, script:not([type=module])").count() == 0
        tab.keyboard.press("r")
        tab.fill("#reason", SCRIPT)
        tab.click("#confirm-reject")
        wait_for_study(tab, page, 1)


def test_without_the_token_nothing_is_shown(served, tab) -> None:
    tab.goto(served.address.partition("#")[0])
    tab.wait_for_selector("#status:has-text('Open the address that raddraft read printed')")
    assert tab.locator(".row").count() == 0


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_the_page_has_no_accessibility_error(served, browser, theme) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")
    # axe is put into the page, which a content security policy forbids.
    context = browser.new_context(viewport={"width": 1280, "height": 720}, color_scheme=theme, bypass_csp=True)
    context.set_default_timeout(30_000)
    # From the start: Chromium lets requests pass that follow at once on the first `route`.
    context.route("**/*", lambda route: route.continue_())
    tab = context.new_page()
    open_page(tab, served)
    found = {}
    for opened in ("", "r", "x", "?"):
        if opened:
            tab.keyboard.press(opened)
            tab.wait_for_selector("dialog[open]")
        violations = axe.Axe().run(tab).response["violations"]
        found |= {f"{opened} {one['id']}": [node["html"] for node in one["nodes"]] for one in violations}
        if opened:
            tab.keyboard.press("Escape")
            tab.wait_for_selector("dialog[open]", state="detached")
    context.close()
    assert found == {}


def test_a_tablet_has_the_worklist_in_a_drawer(served, browser) -> None:
    context = browser.new_context(viewport={"width": 1024, "height": 768}, has_touch=True)
    context.set_default_timeout(30_000)
    # From the start: Chromium lets requests pass that follow at once on the first `route`.
    context.route("**/*", lambda route: route.continue_())
    tab = context.new_page()
    open_page(tab, served)
    assert not tab.locator("#list").is_visible()
    tab.tap("#toggle-list")
    tab.tap(".row >> nth=1")
    wait_for_study(tab, served, 1)
    assert not tab.locator("#list").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
