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
from tests.test_cli import random_model  # noqa: F401 - a fixture
from tests.test_clinic_studies import film

# ruff: noqa: F811

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
    tab = context.new_page()
    hosts, complaints = set(), []
    tab.on("request", lambda request: hosts.add(request.url.split("/")[2].split(":")[0]))
    tab.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
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
    return [json.loads(line) for line in page.reading.reads.path.read_text().splitlines()]


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
    assert "Attention of the vision tower" in tab.locator(".pane figcaption").first.inner_text()


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
    tab = context.new_page()
    open_page(tab, served)
    assert not tab.locator("#list").is_visible()
    tab.tap("#toggle-list")
    tab.tap(".row >> nth=1")
    wait_for_study(tab, served, 1)
    assert not tab.locator("#list").is_visible()
    assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth")
    context.close()
