"""metrics/report.py: the page is whole, says what it was given, loads nothing and lets no report text run."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from itertools import product

import pytest

from metrics.reads import READ_METRICS
from metrics.report import METRICS, Case, compare_labels
from metrics.report import render_report as render_scores
from metrics.scoring import METRICS as SCORED

VOID = {"meta", "link", "img", "input"}
JPEG = b"\xff\xd8\xff\xe0 not a real picture \xff\xd9"
ATTACK = '<script>alert("report")</script><img src=x onerror=alert(1)>'


@dataclass
class Node:
    tag: str
    attributes: dict[str, str | None] = field(default_factory=dict)
    children: list[Node | str] = field(default_factory=list)

    def find(self, tag: str = "", cls: str = "", **attributes: str) -> list[Node]:
        """All descendants with this tag, class and attributes, in document order."""
        return [
            node
            for node in self.walk()
            if tag in ("", node.tag)
            and (not cls or cls in (node.attributes.get("class") or "").split())
            and all(node.attributes.get(name) == value for name, value in attributes.items())
        ]

    def walk(self) -> Iterator[Node]:
        for child in self.children:
            if isinstance(child, Node):
                yield child
                yield from child.walk()

    @property
    def text(self) -> str:
        parts = [child.text if isinstance(child, Node) else child for child in self.children]
        return re.sub(r"\s+", " ", " ".join(parts)).strip()


class Tree(HTMLParser):
    """Builds the tree and fails where an element is not closed where it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("document")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            node = self.open[-1].children[-1]
            assert isinstance(node, Node)
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"</{tag}> closes another element, line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(html: str) -> Node:
    tree = Tree()
    tree.feed(html)
    tree.close()
    (document,) = tree.open
    return document


def score(value: float, low: float, high: float, signature: str = "rouge-score, mean over reports") -> dict:
    return {"value": value, "low": low, "high": high, "signature": signature}


def system(**metrics: dict) -> dict:
    return {"n": 120, "metrics": metrics, "skipped": {}}


def case(study_id: str = "s1", **changes) -> Case:
    values = {
        "image": JPEG,
        "view": "PA",
        "reference": "The heart is enlarged.",
        "drafts": {"model": "The heart size is normal.", "nearest report": "The lungs are clear."},
        "reference_labels": {},
        "draft_labels": {},
        "scores": {"rouge_l": 0.4444},
    }
    return Case(study_id, **(values | changes))


def difference(value: float, p: float) -> dict:
    return {"value": value, "low": value - 0.01, "high": value + 0.01, "p": p}


def render_report(title, systems, cases, observations=None, differences=None, strata=None) -> str:
    """The page, with the differences and strata of the first system put where scores.json has them."""
    if systems:
        first, *_ = systems
        extra = {"differences": differences or {}, "strata": strata or {}}
        systems = {first: systems[first] | extra, **{name: systems[name] for name in systems if name != first}}
    return render_scores(title, systems, cases, observations)


SYSTEMS = {
    "model": system(rouge_l=score(0.41, 0.39, 0.43), bleu_4=score(0.1, 0.08, 0.12, "sacrebleu, corpus")),
    "shuffled images": system(rouge_l=score(0.3, 0.28, 0.32), bleu_4=score(0.11, 0.1, 0.13, "sacrebleu, corpus")),
}

DIFFERENCES = {"shuffled images": {"rouge_l": difference(0.11, 0.004), "bleu_4": difference(-0.01, 0.3)}}

EXPECTED = {  # (reference, draft) -> state; every combination not named here is not listed
    (1, 1): "positive",
    (0, 0): "negative",
    (1, 0): "missed",
    (1, None): "missed",
    (0, 1): "invented",
    (None, 1): "invented",
} | {pair: "uncertain" for pair in product((1, 0, -1, None), repeat=2) if -1 in pair}


@pytest.mark.parametrize("pair", [*product((1, 0, -1, None), repeat=2)])
def test_state_of_every_label_combination(pair):
    state = EXPECTED.get(pair)
    assert compare_labels({"Edema": pair[0]}, {"Edema": pair[1]}) == ([("Edema", state)] if state else [])


def test_absent_key_means_not_mentioned_and_errors_come_first():
    reference = {"Cardiomegaly": 1, "Edema": -1, "Fracture": 1, "Pneumothorax": 0}
    draft = {"Cardiomegaly": 1, "Pneumothorax": 0, "Pneumonia": 1}
    assert compare_labels(reference, draft) == [
        ("Fracture", "missed"),
        ("Pneumonia", "invented"),
        ("Edema", "uncertain"),
        ("Cardiomegaly", "positive"),
        ("Pneumothorax", "negative"),
    ]


def test_no_finding_does_not_count_an_error_twice():
    assert compare_labels({"No Finding": 1}, {"Edema": 1}) == [("Edema", "invented")]
    assert compare_labels({"Edema": -1, "Fracture": 1}, {"No Finding": 1}) == [
        ("Fracture", "missed"),
        ("Edema", "uncertain"),
    ]
    assert compare_labels({"No Finding": 1}, {}) == [("No Finding", "missed")]
    assert compare_labels({"No Finding": 1}, {"No Finding": 1}) == [("No Finding", "positive")]


@pytest.mark.parametrize(
    ("reference", "draft", "words"),
    [
        (1, None, "Missed − No Finding the draft names another"),
        (None, 1, "Invented + No Finding the reference names an"),
    ],
)
def test_lone_difference_in_no_finding_is_explained(reference, draft, words):
    one = case(reference_labels={"No Finding": reference}, draft_labels={"No Finding": draft})
    assert parse(render_report("t", SYSTEMS, [one])).find("dl", "findings")[0].text.startswith(words)


def test_every_study_is_a_card_with_its_texts_and_scores():
    cases = [case(f"s{number}", reference=f"Größe {number}: 胸部 нормально") for number in range(30)]
    cards = parse(render_report("Test split", SYSTEMS, cases)).find("article", "study")
    assert [card.find("h3")[0].text for card in cards] == [f"s{number}" for number in range(30)]
    for number, card in enumerate(cards):
        reference, draft = (div.find("p")[0].text for div in card.find("div", "reports")[0].find("div"))
        assert reference == f"Größe {number}: 胸部 нормально"
        assert draft == "The heart size is normal."
        assert card.find("p", "scores")[0].text == "ROUGE-L 0.444"
        (folded,) = card.find("details")
        assert "nearest report The lungs are clear." in folded.text
        assert "The heart size is normal." not in folded.text


def test_chips_carry_state_and_sign_beside_colour():
    labels = [1, 0, -1, None]
    reference = {f"{a} {b}": a for a, b in product(labels, labels)}
    draft = {f"{a} {b}": b for a, b in product(labels, labels)}
    page = parse(render_report("t", SYSTEMS, [case(reference_labels=reference, draft_labels=draft)]))
    (card,) = page.find("article")
    shown = {}  # observation -> class of the chip, its sign, the heading of its row, its note
    for term, group in zip(card.find("dt"), card.find("dd"), strict=True):
        for chip in group.find("span", "chip"):
            sign, first, second, *note = chip.text.split(" ")
            shown[f"{first} {second}"] = (chip.attributes["class"], sign, term.text, " ".join(note))
    assert {name: chip[0] for name, chip in shown.items()} == {
        f"{a} {b}": f"chip {EXPECTED[a, b]}" for a, b in EXPECTED
    }
    looks = {chip[:3] for chip in shown.values()}
    assert [len(set(column)) for column in zip(*looks, strict=True)] == [5, 5, 5]
    notes = {name: chip[3] for name, chip in shown.items() if chip[3]}
    assert notes == {
        "1 0": "denied in the draft",
        "0 1": "denied in the reference",
        "-1 -1": "in both",
        "-1 1": "in the reference; draft: positive",
        "-1 0": "in the reference; draft: negative",
        "-1 None": "in the reference; draft: not mentioned",
        "1 -1": "in the draft; reference: positive",
        "0 -1": "in the draft; reference: negative",
        "None -1": "in the draft; reference: not mentioned",
    }
    legend = page.find("ul", "legend")[0]
    assert {chip.attributes["class"] for chip in legend.find("span", "chip")} == {look[0] for look in looks}


def test_filter_states_and_counts():
    cases = [
        case("s1", reference_labels={"Edema": 1}),
        case("s2", draft_labels={"Edema": 1, "Fracture": -1}),
        case("s3", reference_labels={"Edema": 1}, draft_labels={"Edema": 1}),
        case("s4"),
    ]
    page = parse(render_report("t", SYSTEMS, cases))
    states = [(card.attributes["data-states"] or "").split() for card in page.find("article")]
    assert states == [["differs", "missed"], ["differs", "invented", "uncertain"], ["positive"], []]
    (select,) = page.find("select")  # no choice of groups where no study has one
    options = {option.attributes["value"]: option.text for option in select.find("option")}
    for value, text in options.items():
        if value:
            assert text.endswith(f"({sum(value in own for own in states)})")
    assert "None is stated" in page.find("article")[3].text


def test_studies_stand_under_their_group_which_the_filter_offers():
    groups = ["Worst by rouge_l", "Worst by rouge_l", "Best by my_metric", "", "Worst by rouge_l"]
    cases = [case(f"s{number}", group=group) for number, group in enumerate(groups)]
    page = parse(render_report("t", SYSTEMS, cases))
    sections = page.find("section", "group")
    assert [[node.text for node in section.find("h3")] for section in sections] == [
        ["Worst by ROUGE-L", "s0", "s1", "s4"],
        ["Best by my_metric", "s2"],
        ["s3"],
    ]
    (select,) = page.find("select", name="group")
    options = {option.attributes["value"]: option.text for option in select.find("option")}
    assert options == {
        "": "All groups",
        sections[0].attributes["data-group"]: "Worst by ROUGE-L (3)",
        sections[1].attributes["data-group"]: "Best by my_metric (1)",
        sections[2].attributes["data-group"]: "Others (1)",
    }


def test_hostile_text_is_inert_wherever_it_stands():
    hostile = {
        ATTACK: {"n": 1, "metrics": {ATTACK: score(0.1, 0.1, 0.2, ATTACK)}, "skipped": {"b" + ATTACK: ATTACK}},
        "b": system(),
    }
    cases = [
        case(
            ATTACK,
            view=ATTACK,
            reference=ATTACK,
            drafts={ATTACK: ATTACK, "b": ATTACK},
            reference_labels={ATTACK: 1},
            scores={ATTACK: 0.5},
            group=ATTACK,
        ),
        case('" onmouseover="alert(1)'),
    ]
    hostile["b"]["metrics"] = hostile[ATTACK]["metrics"]
    row = {ATTACK: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 1}}
    observations = {ATTACK: row, "b": row}
    differences = {"b": {ATTACK: difference(0.1, 0.01)}}
    clean = parse(render_report("t", SYSTEMS, [case()]))
    page = parse(render_report(ATTACK, hostile, cases, observations, differences, {ATTACK: hostile}))
    assert page.find("h1")[0].text == page.find("title")[0].text == ATTACK
    assert [node.text for node in page.find("script")] == [node.text for node in clean.find("script")]
    assert len(page.find("img")) == len(cases) + 1  # one a card, one in the dialog
    assert not [node for node in page.walk() for name in node.attributes if name.startswith("on")]


def test_page_loads_nothing():
    html = render_report("t", SYSTEMS, [case()])
    for node in parse(html).walk():
        for name in ("src", "href", "srcset", "action", "data", "poster", "xlink:href"):
            value = node.attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (node.tag, name, value)
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest", html)
    (policy,) = parse(html).find("meta", **{"http-equiv": "Content-Security-Policy"})
    assert (policy.attributes["content"] or "").startswith("default-src 'none'; img-src data:;")


def test_image_is_embedded_and_its_absence_shown():
    with_image, without = parse(render_report("t", SYSTEMS, [case(), case("s2", image=None)])).find("article")
    (image,) = with_image.find("img")
    head, data = (image.attributes["src"] or "").split(",")
    assert head == "data:image/jpeg;base64"
    assert base64.b64decode(data) == JPEG
    assert not without.find("img")
    assert not without.find("button")
    assert "No image" in without.text


def test_empty_draft_is_said_to_be_empty():
    (card,) = parse(render_report("t", SYSTEMS, [case(drafts={"model": ""})])).find("article")
    assert [p.text for p in card.find("p", "report")] == ["The heart is enlarged.", "(empty)"]
    assert not card.find("details")


def test_table_holds_values_intervals_differences_and_verdict():
    page = parse(render_report("t", SYSTEMS, [], None, DIFFERENCES))
    (table,) = page.find("table")
    header, rouge, bleu = table.find("tr")
    assert [cell.text for cell in header.find("th")[1:]] == [
        "model n = 120",
        "shuffled images n = 120",
        "Verdict on model",
    ]
    assert [cell.text for cell in rouge.find("td")] == [
        "0.410 0.390 to 0.430",
        "0.300 0.280 to 0.320 Δ +0.110, p .004",
        "better than shuffled images",
    ]
    assert [cell.text for cell in rouge.find("b")] == ["0.410"]
    assert [cell.text for cell in bleu.find("td")[1:]] == [
        "0.110 0.100 to 0.130 Δ −0.010, p .300",
        "no clear difference to shuffled images",
    ]
    assert [cell.text for cell in bleu.find("b")] == ["0.110"]
    (delta, _) = table.find("small", "delta")
    assert delta.attributes["title"] == "95 % interval of the difference: 0.100 to 0.120"
    assert (
        "better than every system it is compared with in 1 of 2 metrics, and worse than at least one in 0" in page.text
    )
    assert "the share of random swaps of the two systems" in page.text
    assert "after Holm's correction for all comparisons of this table" in page.text


def test_verdict_follows_p_not_overlap_and_leaves_out_what_was_not_compared():
    same = system(rouge_l=score(0.3, 0.2, 0.4))
    systems = dict.fromkeys(("model", "A", "B", "C", "D", "E"), same)
    differences = {
        "A": {"rouge_l": difference(0.01, 0.049)},
        "B": {"rouge_l": difference(0.02, 0.002)},
        "C": {"rouge_l": difference(-0.01, 0.01)},
        "D": {"rouge_l": difference(0.05, 0.05)},
    }
    page = parse(render_report("t", systems, [], None, differences))
    (verdict,) = page.find("td", "verdict")
    assert [part.text for part in verdict.find("div")] == [
        "better than A, B",
        "worse than C",
        "no clear difference to D",
    ]
    assert page.find("td")[5].text == "0.300 0.200 to 0.400"
    assert "compared with in 0 of 1 metric, and worse than at least one in 1" in page.text
    table = parse(render_report("t", {"model": same, "A": same, "E": same}, [], None, differences))
    assert table.find("td", "verdict")[0].text == "better than A"
    assert "compared with in 1 of 1 metric" in table.text


def test_lower_is_better_for_predicted_errors():
    systems = {
        "model": system(radcliq_v1=score(0.9, 0.8, 1.0)),
        "A": system(radcliq_v1=score(1.3, 1.2, 1.4)),
        "B": system(radcliq_v1=score(-0.2, -0.3, -0.1)),
    }
    differences = {"A": {"radcliq_v1": difference(-0.4, 0.004)}, "B": {"radcliq_v1": difference(1.1, 0.004)}}
    page = parse(render_report("t", systems, [], None, differences))
    (row,) = page.find("tbody")[0].find("tr")
    assert [part.text for part in row.find("div")] == ["better than A", "worse than B"]
    assert row.find("b")[0].text == "−0.200"
    assert "lower is better" in row.find("th")[0].text
    assert "−0.300 to −0.100" in row.text


@pytest.mark.parametrize(
    ("value", "p", "shown"),
    [
        (0.0331, 0.0042, "Δ +0.033, p .004"),
        (0.2, 0.0001, "Δ +0.200, p < .001"),
        (0.1, 0.04995, "Δ +0.100, p < .05"),
        (0.1, 0.0504, "Δ +0.100, p .050"),
        (-0.0002, 1.0, "Δ 0.000, p 1"),
        (1.25, 0.9999, "Δ +1.250, p 1"),
    ],
)
def test_difference_and_p_as_text(value, p, shown):
    page = parse(render_report("t", SYSTEMS, [], None, {"shuffled images": {"rouge_l": difference(value, p)}}))
    assert [delta.text for delta in page.find("small", "delta")] == [shown]
    expected = "better than" if p < 0.05 else "no clear difference to"
    assert page.find("td", "verdict")[0].text == f"{expected} shuffled images"


def test_every_metric_has_a_label_of_its_own():
    assert set(METRICS) == {*SCORED, *READ_METRICS}
    assert len({label for label, _ in METRICS.values()}) == len(METRICS)


def test_metrics_beyond_0_to_1_are_not_plotted():
    unbounded = {name: score(1.2, -0.1, 2.0) for name in ("coco_cider", "bertscore_f1", "radcliq_v1")}
    page = parse(render_report("t", {"model": system(coco_bleu_4=score(0.1, 0.0, 0.2), **unbounded)}, []))
    assert [caption.text for caption in page.find("figcaption")] == ["BLEU-4, COCO"]
    assert {row.find("th")[0].children[0] for row in page.find("tbody")[0].find("tr")} == {
        METRICS[name][0] for name in ("coco_bleu_4", *unbounded)
    }


def test_metric_that_one_system_lacks_and_unknown_metric():
    systems = {"model": system(my_metric=score(0.2, 0.1, 0.3)), "control": system(rouge_l=score(0.5, 0.4, 0.6))}
    rouge, mine = parse(render_report("t", systems, [])).find("tbody")[0].find("tr")
    assert [cell.text for cell in rouge.find("td")] == ["–", "0.500 0.400 to 0.600"]
    assert mine.find("th")[0].text == "my_metric"
    assert [cell.text for cell in mine.find("td")] == ["0.200 0.100 to 0.300", "–"]


def test_plot_draws_bars_and_intervals_to_scale():
    page = parse(render_report("t", SYSTEMS, []))
    (panel, _) = page.find("figure")
    ticks = [(float(text.text), float((text.attributes["x"] or "")[:-1])) for text in panel.find("text")]
    top = ticks[-1][0]
    assert ticks[0] == (0, 0)
    assert top >= 0.43
    assert all(at == pytest.approx(100 * value / top, abs=0.01) for value, at in ticks)
    bars = zip(panel.find("line", "value"), panel.find("line", "whisker"), strict=True)
    for name, (bar, whisker) in zip(SYSTEMS, bars, strict=True):
        expected = SYSTEMS[name]["metrics"]["rouge_l"]
        assert bar.attributes["x1"] == "0"
        drawn = [float((end or "")[:-1]) for end in (whisker.attributes["x1"], whisker.attributes["x2"])]
        drawn.append(float((bar.attributes["x2"] or "")[:-1]))
        assert drawn == pytest.approx([100 * expected[key] / top for key in ("low", "high", "value")], abs=0.01)
    caps = [cap.attributes["x1"] for cap in panel.find("line", "cap")]
    assert caps == [whisker.attributes[end] for whisker in panel.find("line", "whisker") for end in ("x1", "x2")]
    assert [node.text for node in panel.find("span", "reading")] == ["0.410", "0.300"]
    for band in panel.find("rect", "band"):  # the first system's interval, behind every row
        drawn = [float((band.attributes[name] or "")[:-1]) for name in ("x", "width")]
        assert drawn == pytest.approx([100 * 0.39 / top, 100 * 0.04 / top], abs=0.01)
    assert len(panel.find("rect", "band")) == len(SYSTEMS)


def test_zero_scores_can_be_drawn():
    page = parse(render_report("t", {"model": system(bleu_4=score(0, 0, 0))}, []))
    assert page.find("line", "value")[0].attributes["x2"] == "0.00%"


def test_skipped_metrics_and_signatures_are_printed_once_with_their_reason():
    reason = "No weights at weights/chexbert.pth; pass --chexbert PATH."
    systems = {name: own | {"skipped": {"chexbert_macro_f1_14": reason}} for name, own in SYSTEMS.items()}
    systems["model"]["skipped"] = systems["model"]["skipped"] | {"radgraph_er": "Needs the RadGraph weights."}
    page = parse(render_report("t", systems, []))
    assert page.text.count(reason) == 1
    notes = page.find("section", id="scores")[0].find("dl")[0].text
    assert "Macro-F1-14, CheXbert chexbert_macro_f1_14" in notes
    assert "Needs the RadGraph weights. (model)" in notes
    method = page.find("section", id="method")[0].find("details")[0].text
    assert method.count("rouge-score, mean over reports") == method.count("sacrebleu, corpus") == 1


def test_observations_are_sorted_by_support_and_unsupported_ones_marked():
    observations = {
        "Fracture": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0},
        "Edema": {"precision": 0.25, "recall": 0.5, "f1": 1 / 3, "support": 12},
    }
    page = parse(render_report("t", SYSTEMS, [], {"the rule-based labeler": observations}))
    (section,) = page.find("section", id="observations")
    assert not section.find("h3")
    assert "by the labels of the rule-based labeler." in section.text
    edema, fracture = section.find("tbody")[0].find("tr")
    assert edema.text == "Edema 12 0.250 0.500 0.333"
    assert [bar.attributes["style"] for bar in edema.find("i")] == ["width: 25.00%", "width: 50.00%", "width: 33.33%"]
    assert fracture.attributes["class"] == "unsupported"


def test_each_labeler_has_its_table():
    rules = {"Edema": {"precision": 0.25, "recall": 0.5, "f1": 1 / 3, "support": 12}}
    chexbert = {"Edema": {"precision": 1.0, "recall": 1.0, "f1": 1.0, "support": 9}}
    tables = {"the rule-based labeler": rules, "CheXbert": chexbert}
    (section,) = parse(render_report("t", SYSTEMS, [], tables)).find("section", id="observations")
    assert [heading.text for heading in section.find("h3")] == ["By the rule-based labeler", "By CheXbert"]
    rows = [body.find("tr")[0].text for body in section.find("tbody")]
    assert rows == ["Edema 12 0.250 0.500 0.333", "Edema 9 1.000 1.000 1.000"]


def test_strata_have_a_table_each_with_a_column_for_each_group():
    women = {"n": 7, "metrics": {"bleu_4": score(0.1, 0.0, 0.2), "rouge_l": score(0.4, 0.3, 0.5)}, "skipped": {}}
    men = {"n": 5, "metrics": {"rouge_l": score(0.2, 0.1, 0.3)}, "others": {"shuffled images": women}}
    strata = {"sex": {"F": women, "M": men}, "view": {"PA": women}}
    page = parse(render_report("t", SYSTEMS, [], None, DIFFERENCES, strata))
    (section,) = page.find("section", id="strata")
    assert [heading.text for heading in section.find("h3")] == ["By sex", "By view"]
    by_sex, by_view = section.find("table")
    assert [row.text for row in by_sex.find("tr")] == [
        "Metric F n = 7 M n = 5",
        "ROUGE-L 0.400 0.300 to 0.500 0.200 0.100 to 0.300",
        "BLEU-4 0.100 0.000 to 0.200 –",
    ]
    assert by_view.find("tr")[0].text == "Metric PA n = 7"
    assert "low in a part where some of them never occur" in section.text
    assert not parse(render_report("t", SYSTEMS, [], None, DIFFERENCES, {})).find("section", id="strata")


def test_one_system_stands_without_comparison_and_none_is_an_error():
    page = parse(render_report("t", {"model": SYSTEMS["model"]}, []))
    assert not page.find("td", "verdict")
    assert not page.find("td")[0].find("b")
    assert "Not for clinical use" in page.find("p", "banner")[0].text
    assert "No studies were chosen" in page.text
    with pytest.raises(ValueError, match="systems is empty"):
        render_report("t", {}, [])
