"""generator/compare_page.py: table, marks, figures and page hold what the comparison found, and no more."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from generator.cells import Cell
from generator.compare_config import Task
from generator.compare_page import format_number, format_p, write_page
from generator.compare_ranks import rank_correlations
from tests.test_report import ATTACK, Node, parse

TASKS = [
    Task("Findings", "multilabel", ["Edema", "Fracture"], sources=["nih"]),
    Task("Age", "regression", ["patient.age"], measure="mae"),
    Task("Lungs", "segmentation", ["lungs"]),
]


def cell(value: float | None, width: float = 0.1, **changes: Any) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if value is None else {"low": value - width, "high": value + width}
    return {"value": value, **bounds, "n": 80, "notes": [], "details": {}} | changes


def estimate(value: float | None, n_positive: int = 7, reason: str | None = None) -> dict[str, Any]:
    bounds = {"low": None, "high": None} if value is None else {"low": value - 0.1, "high": value + 0.1}
    return {"value": value, **bounds, "n": 80, "n_positive": n_positive, "sd": 0.0, "reason": reason}


def difference(value: float, p: float, p_holm: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "p": p, "p_holm": p_holm}


def make_result(**changes: Any) -> dict[str, Any]:
    no_patches = cell(None, n=None, notes=["this tower has no patches"])
    towers = {
        "pixels": {"Findings": cell(0.6), "Age": cell(12.345, 1.0), "Lungs": no_patches},
        "small": {"Findings": cell(0.75), "Age": cell(8.5, 1.0), "Lungs": cell(0.95, 0.01)},
        "large": {"Findings": cell(0.7), "Age": cell(9.0, 1.0), "Lungs": cell(0.9, 0.01)},
    }
    differences = {
        "pixels": {},
        "small": {"Findings": difference(0.15, 0.004, 0.016), "Age": difference(-3.845, 0.004, 0.016)},
        "large": {"Findings": difference(0.1, 0.03, 0.06), "Age": difference(-3.345, 0.04, 0.06)},
    }
    result = {"baseline": "pixels", "tasks": [], "towers": towers, "warnings": {}, "differences": differences}
    return result | {"resamples": 500, "minutes": 1.5} | changes


def one_cell(found: dict[str, Any], tower: str = "pixels") -> dict[str, Any]:
    return make_result(towers={tower: {"Findings": found}}, differences={tower: {}}, baseline=tower)


def write(out: Path, result: dict[str, Any], tasks: list[Task] = TASKS, title: str = "t") -> tuple[str, Node]:
    write_page(result, tasks, out, title)
    return (out / "table.md").read_text(encoding="utf-8"), parse((out / "report.html").read_text(encoding="utf-8"))


def read_rows(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if "---" not in line]


def test_markdown_table_holds_values_intervals_best_and_marks(tmp_path):
    markdown, _ = write(tmp_path, make_result())
    assert read_rows(markdown) == [
        ["Encoder", "Findings, AUROC ↑, n = 80", "Age, MAE ↓, n = 80", "Lungs, Dice ↑, n = 80"],
        ["pixels (baseline)", "0.600 [.500 .700]", "12.35 [11.35 13.35]", "–"],
        ["small", "**0.750**† [.650 .850]", "**8.50**† [7.50 9.50]", "**0.950** [.940 .960]"],
        ["large", "0.700 [.600 .800]", "9.00 [8.00 10.00]", "0.900 [.890 .910]"],
    ]
    assert "- Lungs (pixels): this tower has no patches" in markdown
    assert "baseline, pixels" in markdown
    assert "4 comparisons" in markdown
    assert (
        "percentiles of 500 bootstrap resamples of the test subjects; of masks Student's t of the jackknife" in markdown
    )
    assert "p < .05, in pairs on the same resamples; of masks by swapping both at random subject by subject" in markdown


def test_films_seen_in_training_are_marked_in_every_place(tmp_path):
    seen = {"small": {"Findings": {"mark": "‡"}, "Age": {"mark": "(‡)"}}}
    markdown, page = write(tmp_path, make_result(seen=seen, training_unknown=["large"]))
    rows = {row[0]: row[1:] for row in read_rows(markdown)}
    assert rows["small"] == ["**0.750**†‡ [.650 .850]", "**8.50**†(‡) [7.50 9.50]", "**0.950** [.940 .960]"]
    assert rows["large"] == ["0.700 [.600 .800]", "9.00 [8.00 10.00]", "0.900 [.890 .910]"]
    assert "- ‡ measured on films that the encoder had in training" in markdown
    assert "which films is not known here, so that nothing is marked: large" in markdown
    (table,) = page.find("section", id="table")[0].find("table")
    assert [node.text for node in table.find("sup")] == ["†‡", "†(‡)"]
    assert "‡" not in write(tmp_path, make_result())[0]


def test_page_holds_the_same_table_and_the_differences(tmp_path):
    _, page = write(tmp_path, make_result())
    (table,) = page.find("section", id="table")[0].find("table")
    head, pixels, small, large = table.find("tr")
    assert [node.text for node in head.find("th")][2] == "Age MAE ↓ n = 80"
    assert [node.text for node in pixels.find("td")] == ["0.600 [.500 .700]", "12.35 [11.35 13.35]", "–"]
    assert small.find("td")[0].text == "0.750 † [.650 .850]"
    assert [node.text for node in table.find("b")] == ["0.750", "8.50", "0.950"]
    assert not large.find("sup")
    rows = page.find("section", id="differences")[0].find("tr")[1:]
    assert [[node.text for node in row.find("td")] for row in rows] == [
        ["+0.150", "0.100 to 0.200", ".004", ".016", "better"],
        ["+0.100", "0.050 to 0.150", ".030", ".060", "no clear difference"],
        ["−3.845", "−3.895 to −3.795", ".004", ".016", "better"],
        ["−3.345", "−3.395 to −3.295", ".040", ".060", "no clear difference"],
    ]


def test_clearly_higher_error_is_worse(tmp_path):
    differences = {"pixels": {}, "small": {"Age": difference(2.0, 0.01, 0.01)}, "large": {}}
    _, page = write(tmp_path, make_result(differences=differences))
    assert [node.text for node in page.find("td", "text")] == ["worse"]


def test_too_few_resamples_for_any_mark_are_said(tmp_path):
    enough, _ = write(tmp_path, make_result(resamples=160), TASKS[:1])  # 4 comparisons: 8 / 161 < .05
    few, page = write(tmp_path, make_result(resamples=159), TASKS[:1])
    assert "too few" not in enough
    assert "159 resamples are too few" in few
    assert "It takes 160." in page.find("section", id="table")[0].text


def test_findings_have_a_table_for_each_measure(tmp_path):
    absent = estimate(None, 0, "none of 80 images is positive")
    measures = {
        "Edema": {"auprc": estimate(0.3), "auroc": estimate(0.8)},
        "Fracture": {"auprc": absent, "auroc": absent},
        "macro": {"auprc": estimate(0.3), "auroc": estimate(0.8)},
    }
    result = make_result()
    result["towers"]["small"]["Findings"]["details"] = {"measures": measures}
    _, page = write(tmp_path, result)
    first, second = page.find("section", id="parts")[0].find("table")
    assert [row.text for row in first.find("tr")] == [
        "AUROC ↑ pixels small large",
        "Edema 7 of 80 positive – 0.800 [.700 .900] –",
        "Fracture 0 of 80 positive – – –",
    ]
    assert second.find("tr")[1].text == "Edema 7 of 80 positive – 0.300 [.200 .400] –"
    assert first.find("td", title="none of 80 images is positive")


def test_figures_are_files_and_stand_in_the_page(tmp_path):
    curve = [{"fraction": f, "n": int(100 * f), "value": f / 2, "low": f / 3, "high": f} for f in (1.0, 0.1)]
    result = make_result()
    result["towers"]["small"]["Findings"]["details"] = {"curve": [*curve, cell(None) | {"fraction": 0.01}]}
    _, page = write(tmp_path, result)
    names = ["1-findings.png", "1-findings-curve.png", "2-age.png", "3-lungs.png"]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == sorted(names)
    for name, image in zip(names, page.find("img"), strict=True):
        head, data = (image.attributes["src"] or "").split(",")
        content = base64.b64decode(data)
        assert head == "data:image/png;base64"
        assert content == (tmp_path / "figures" / name).read_bytes()
        assert Image.open(io.BytesIO(content)).width > 800
    assert page.find("figcaption")[1].text.startswith("Findings, learning curve")


def test_drawing_leaves_matplotlib_alone(tmp_path):
    import matplotlib

    before = dict(matplotlib.rcParams)
    write(tmp_path, make_result())
    assert dict(matplotlib.rcParams) == before


def test_a_value_moves_its_marker(tmp_path):
    """The figure is drawn from the numbers: another value, another picture; the same, the same."""
    for name, value in (("a", 0.6), ("b", 0.6), ("c", 0.9)):
        result = make_result()
        result["towers"]["large"]["Findings"] = cell(value)
        write(tmp_path / name, result, TASKS[:1])
    a, b, c = ((tmp_path / name / "figures" / "1-findings.png").read_bytes() for name in "abc")
    assert a == b != c


def test_text_from_the_config_is_inert(tmp_path):
    task = Task(ATTACK, "multilabel", [ATTACK, "b"])
    hostile = f"{ATTACK} | $x_{{$ `**"
    parts = {part: {"auroc": estimate(0.7, reason=ATTACK)} for part in (ATTACK, "b")}
    result = make_result(
        baseline=hostile,
        towers={name: {ATTACK: cell(0.7, notes=[ATTACK], details={"measures": parts})} for name in (hostile, "b")},
        differences={hostile: {}, "b": {ATTACK: difference(0.1, 0.01, 0.01)}},
        warnings={hostile: [ATTACK]},
    )
    markdown, page = write(tmp_path, result, [task], ATTACK)
    assert page.find("h1")[0].text == page.find("title")[0].text == ATTACK
    assert not page.find("script")
    assert len(page.find("img")) == 1
    assert not [node for node in page.walk() for name in node.attributes if name.startswith("on")]
    assert len({len(row) for row in read_rows(markdown)}) == 1
    assert not re.search(r"(?<!\\)<[a-z/]", markdown)


def test_page_loads_nothing(tmp_path):
    _, page = write(tmp_path, make_result())
    for node in page.walk():
        for name in ("src", "href", "srcset"):
            value = node.attributes.get(name)
            assert value is None or value.startswith("data:"), (node.tag, name, value)
    assert not re.search(r"@import|url\(|https?://", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_leaks_stand_in_a_box_and_under_the_table(tmp_path):
    sentence = "3 of 80 test images were in the tower's pre-training, by seen.txt"
    markdown, page = write(tmp_path, make_result(warnings={"large": [sentence]}), TASKS[:1])
    assert f"Warning, large: {sentence}" in markdown
    assert page.find("div", "warning")[0].find("dl")[0].text == f"large {sentence}"
    assert not write(tmp_path, make_result(), TASKS[:1])[1].find("div", "warning")


def test_limits_name_test_size_and_text_mined_labels(tmp_path):
    result = make_result()
    result["towers"]["small"]["Age"]["n"] = 31
    _, page = write(tmp_path, result)
    (limits,) = page.find("section", id="limits")
    assert "31 to 80 test images" in limits.text
    assert "the labels of Findings were extracted from reports" in limits.text
    assert "No clinical validity" in limits.text
    assert page.find("th")[2].text == "Age MAE ↓ n = 31 to 80"


def test_one_tower_stands_without_comparison(tmp_path):
    markdown, page = write(tmp_path, one_cell(cell(0.7)), TASKS[:1])
    assert read_rows(markdown)[1] == ["pixels (baseline)", "0.700 [.600 .800]"]  # nothing is the best of one
    assert "†" not in markdown
    assert not page.find("section", id="differences")


@pytest.mark.parametrize(("found", "shown"), [(cell(None, n=None), "–"), (cell(0.7) | {"low": None}, "0.700")])
def test_a_table_without_any_value_or_interval_is_written(tmp_path, found, shown):
    markdown, _ = write(tmp_path, one_cell(found), TASKS[:1])
    assert read_rows(markdown)[1][1] == shown
    assert ("Findings (all): no value" in markdown) == (shown == "–")


def test_retrieval_is_named_as_on_the_page_of_scores(tmp_path):
    towers = {name: {"Notes": cell(value)} for name, value in (("a", 1.2), ("b", -0.2))}
    result = make_result(towers=towers, differences={"a": {}, "b": {}}, baseline="a")
    markdown, _ = write(tmp_path, result, [Task("Notes", "retrieval", ["note"], measure="radcliq_v1")])
    head, first, second = read_rows(markdown)
    assert head[1] == "Notes, RadCliQ-v1 ↓, n = 80"
    assert (first[1], second[1]) == ("1.200 [1.100 1.300]", "**−0.200** [−.300 −.100]")


def test_numbers_are_written_as_they_are(tmp_path):
    result = make_result(tasks=[asdict(task) for task in TASKS])
    write(tmp_path, result)
    assert json.loads((tmp_path / "compare.json").read_text(encoding="utf-8")) == result
    assert not list(tmp_path.rglob("*.tmp"))


def test_numbers_and_p_as_text():
    assert [format_number(x, zero=False) for x in (0.85, -0.05, 1.0, 0.9999)] == [".850", "−.050", "1.000", "1.000"]
    assert [format_number(x, sign="+") for x in (0.1, -0.0001, 0.0)] == ["+0.100", "0.000", "0.000"]
    assert [format_p(p) for p in (0.0001, 0.004, 0.04996, 0.0501, 1.0)] == ["< .001", ".004", "< .05", ".050", "1.000"]


def test_ranks_stand_side_by_side_with_their_correlation(tmp_path):
    tasks = [Task("Findings", "binary", ["Edema"]), Task("Error", "regression", ["patient.age"], measure="mae")]
    tasks.insert(1, Task("Notes", "report", ["note"], measure="rule_micro_f1_14", recipe="x.yaml"))
    values = {"a": (0.7, 0.3, 9.0), "b": (0.9, 0.5, 9.0), "c": (0.8, 0.4, 7.0), "d": (0.6, 0.2, None)}
    names = [task.name for task in tasks]
    rng = np.random.default_rng(0)
    cells = {
        row: {
            name: Cell(value, notes=[], resamples=np.full(50, value or 0.0) + rng.normal(0, 0.001, 50))
            for name, value in zip(names, line, strict=True)
        }
        for row, line in values.items()
    }
    ranks = rank_correlations(cells, tasks, list(values))
    assert ranks == {
        "Notes": {
            "Findings": {"rho": 1.0, "low": 1.0, "high": 1.0, "p": 2 / 24, "n": 4},
            "Error": {"rho": 0.0, "low": pytest.approx(-0.5), "high": pytest.approx(0.5), "p": 1.0, "n": 3},
        }
    }
    assert rank_correlations(cells, tasks, ["a", "b"]) == {}, "two have no order"
    towers = {row: {name: cell(one.value) for name, one in line.items()} for row, line in cells.items()}
    result = make_result(towers=towers | {"most frequent report": dict.fromkeys(names, cell(0.1))}, baseline="a")
    result |= {"differences": {row: {} for row in towers}, "ranks": ranks, "controls": ["most frequent report"]}
    markdown, page = write(tmp_path, result, tasks)
    expected = [
        ["Rank, 1 is best", "Notes, Micro-F1-14, rules ↑", "Findings, AUROC ↑", "Error, MAE ↓"],
        ["b", "1", "1", "2.5"],
        ["c", "2", "2", "1"],
        ["a", "3", "3", "2.5"],
        ["d", "4", "4", "–"],
        ["ρ with Notes, Micro-F1-14, rules ↑", "", "1.00 [1.00 1.00] p .083", "0.00 [−.50 .50] p 1.000"],
    ]
    rows = read_rows(markdown)[6:]
    assert [row[1:] for row in rows] == [row[1:] for row in expected]
    (table,) = page.find("section", id="orders")[0].find("table")
    assert [node.text for node in table.find("tr")[2].find("td")] == ["2", "2", "1"]
    assert "Spearman's rank correlation over 4 encoders" in markdown


def test_rows_that_name_language_models_say_what_these_are(tmp_path):
    writers = {
        "small": {"lm": 134515008, "tokens_per_second": 1234.5},
        "large": {"lm": 6.7e9, "tokens_per_second": None},
    }
    markdown, page = write(tmp_path, make_result(writers=writers))
    assert [row[1:3] for row in read_rows(markdown)] == [
        ["Parameters that write", "Tokens per second"],
        ["–", "–"],
        ["135 M", "1234"],
        ["6.7 B", "–"],
    ]
    (table,) = page.find("section", id="table")[0].find("table")
    assert [node.text for node in table.find("tr")[2].find("td")][:2] == ["135 M", "1234"]
    assert "It holds for the machine that drafted." in markdown
