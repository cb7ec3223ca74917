"""Corruptions of reports, and what metrics make of them."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from benchmarks.random_models import save_chexbert
from benchmarks.sensitivity import center
from metrics.corruptions import CONTROLS, EDITS, KINDS, OTHER, corrupt, positives
from metrics.models import Models
from metrics.rules import label
from metrics.sensitivity import read_reports, sensitivity, tables
from metrics.sensitivity_figure import draw
from raddraft.errors import RadDraftError
from tests.test_cli import run

REPORTS = [
    "The heart is mildly enlarged. Small left pleural effusion. No pneumothorax is seen.",
    "Heart size is within normal limits. There is no evidence of pneumothorax. The lungs are clear bilaterally.",
    "Stable severe cardiomegaly. A right chest tube is present. There is no pleural effusion or pneumothorax.",
    "There is a moderate right pneumothorax. The mediastinum is unremarkable. Left basilar atelectasis is noted.",
    "Large right upper lobe mass. No focal consolidation. Osseous structures are intact.",
    "The lungs are clear. No pleural effusion. The heart is normal in size.",
]

CHANGED = [
    ("swapped_side", "Left effusion.", "Right effusion."),
    ("swapped_side", "RLL consolidation. The left lung is clear.", "LLL consolidation. The right lung is clear."),
    ("swapped_side", "Opacity, right-sided, and a LEFT effusion.", "Opacity, left-sided, and a RIGHT effusion."),
    ("swapped_side", "Elevated right hemidiaphragm.", "Elevated left hemidiaphragm."),
    ("removed_finding", "The lungs are clear. The heart is enlarged.", "The lungs are clear."),
    ("removed_finding", "Left effusion. It is small. No edema.", "No edema."),
    ("removed_finding", "Normal heart. A chest tube is seen. No edema.", "Normal heart. No edema."),
    ("changed_severity", "Mild edema.", "Severe edema."),
    ("changed_severity", "The heart is mildly enlarged.", "The heart is severely enlarged."),
    ("changed_severity", "There is a large left effusion.", "There is a small left effusion."),
    ("changed_severity", "Mild to moderate edema.", "Severe edema."),
    ("changed_severity", "No edema. Trace effusion.", "No edema. Large effusion."),
    ("added_negation", "There is a left effusion.", "There is no left effusion."),
    ("added_negation", "There are bilateral effusions.", "There are no bilateral effusions."),
    ("added_negation", "Small left effusion. The lungs are clear.", "No left effusion. The lungs are clear."),
    ("added_negation", "The heart is mildly enlarged.", "The heart is not enlarged."),
    ("added_negation", "A pneumothorax is again seen.", "A pneumothorax is not seen."),
    ("added_negation", "The heart appears enlarged.", "The heart does not appear enlarged."),
    ("added_negation", "PICC in place.", "No PICC in place."),
    ("added_negation", "Heart size moderately enlarged. No edema.", "Heart size not enlarged. No edema."),
    ("added_negation", "There are several small nodules.", "There are no nodules."),
    ("added_negation", "Small to moderate effusions.", "No small to moderate effusions."),
    ("removed_negation", "No pneumothorax.", "Pneumothorax."),
    ("removed_negation", "no pleural effusion is seen.", "pleural effusion is seen."),
    ("removed_negation", "There is no evidence of edema.", "There is edema."),
    ("removed_negation", "The heart is not enlarged.", "The heart is enlarged."),
    ("removed_negation", "No effusion or pneumothorax.", "Effusion and pneumothorax."),
    ("removed_negation", "Clear lungs without consolidation.", "Clear lungs with consolidation."),
    ("removed_negation", "Negative for pneumothorax.", "Positive for pneumothorax."),
    ("shuffled_sentences", "Clear lungs. No effusion.", "No effusion. Clear lungs."),
    ("shuffled_sentences", "Nodule. It is calcified. No effusion.", "No effusion. Nodule. It is calcified."),
    ("shuffled_sentences", "Mass vs. scar. No effusion", "No effusion. Mass vs. scar."),
    ("paraphrase", "No effusion is seen.", "No effusion is present."),
    ("paraphrase", "An opacity is present.", "An opacity is seen."),
    ("paraphrase", "There is no evidence of edema.", "There is no edema."),
    ("paraphrase", "The hila are within normal limits.", "The hila are normal."),
    ("paraphrase", "HEART SIZE IS NORMAL.", "HEART IS NORMAL IN SIZE."),
]

UNCHANGED = [
    ("swapped_side", "Effusion. The left lung is clear."),  # the side is that of nothing abnormal
    ("swapped_side", "Right and left effusions."),
    ("swapped_side", "Bilateral effusions."),
    ("swapped_side", "The chest tube was left in place."),
    ("removed_finding", "Left effusion."),  # nothing would remain
    ("removed_finding", "The lungs are clear. No effusion."),
    ("removed_finding", "Left effusion. The effusion is small."),  # stated twice
    ("changed_severity", "Left effusion."),
    ("changed_severity", "No large effusion."),
    ("changed_severity", "A large bore catheter is in place."),
    ("changed_severity", "The edema has slightly improved."),
    ("added_negation", "No effusion. The lungs are clear."),
    ("added_negation", "There is a left effusion. Small left effusion."),
    ("added_negation", "Interval improvement in the left effusion."),
    ("removed_negation", "Left effusion."),
    ("removed_negation", "The effusion shows no change."),
    ("removed_negation", "No acute abnormality."),
    ("shuffled_sentences", "The lungs are clear."),
    ("shuffled_sentences", "Nodule. It is calcified."),
    ("shuffled_sentences", "1. Effusion. 2. Cardiomegaly."),
    ("paraphrase", "Clear lungs."),
    ("paraphrase", "The opacity is noted to be new."),
    *((kind, "") for kind in KINDS),
]


@pytest.mark.parametrize(("kind", "text", "expected"), CHANGED)
def test_a_corruption_changes_what_it_says(kind: str, text: str, expected: str) -> None:
    assert corrupt(text, kind) == expected


@pytest.mark.parametrize(("kind", "text"), UNCHANGED)
def test_a_corruption_leaves_a_report_without_a_place_for_it(kind: str, text: str) -> None:
    assert corrupt(text, kind, others=[""]) is None


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_are_the_same_by_seed_and_never_the_text_itself(kind: str) -> None:
    found = {seed: [corrupt(text, kind, seed, REPORTS) for text in REPORTS] for seed in range(8)}
    assert any(found[0])
    assert found == {seed: [corrupt(text, kind, seed, REPORTS) for text in REPORTS] for seed in range(8)}
    assert all(new != old for one in found.values() for new, old in zip(one, REPORTS, strict=True))


def test_seeds_choose_among_several_places() -> None:
    text = "Cardiomegaly. Left effusion. Edema. A pneumothorax is seen. Atelectasis."
    for kind in ("removed_finding", "added_negation", OTHER, "shuffled_sentences"):
        assert len({corrupt(text, kind, seed, REPORTS) for seed in range(20)}) > 2, kind
    assert {corrupt("Moderate edema.", "changed_severity", seed) for seed in range(20)} == {
        "Mild edema.",
        "Severe edema.",
    }


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", REPORTS)
def test_the_labeler_confirms_what_is_said(text: str, seed: int) -> None:
    before = label(text)
    after = {kind: new and label(new) for kind in KINDS if (new := corrupt(text, kind, seed, REPORTS)) is not None}
    findings = {kind: {name for name in one if one[name] == 1} - {"No Finding"} for kind, one in after.items() if one}
    mine = positives(text) - {"No Finding"}
    for kind in ("removed_finding", "added_negation"):
        assert findings.get(kind, set()) < mine or kind not in findings
    if denied := after.get("added_negation"):
        assert all(denied[name] == 0 for name in mine - findings["added_negation"])
    if "removed_negation" in after:
        assert all(before[name] == 0 for name in findings["removed_negation"] - mine)
        assert findings["removed_negation"] > mine
    assert positives(corrupt(text, OTHER, seed, REPORTS) or "") != positives(text)
    for kind in ("swapped_side", *CONTROLS):
        assert after.get(kind, before) == before


def test_sides_swapped_twice_give_the_text_back(cxr: Path) -> None:
    with open(cxr / "iu" / "indiana_reports.csv", encoding="utf-8", newline="") as file:
        reports = [row["findings"] for row in csv.DictReader(file)]
    swapped = {text: new for text in reports if (new := corrupt(text, "swapped_side"))}
    assert len(swapped) > 500
    assert [corrupt(new, "swapped_side") for new in swapped.values()] == [*swapped]


def test_an_unknown_corruption_is_refused() -> None:
    with pytest.raises(RadDraftError, match=r"Unknown corruption 'swapped-side'\. Choices: .* mean swapped_side\?"):
        corrupt("Edema.", "swapped-side")


@pytest.fixture(scope="module")
def measured() -> dict:
    return sensitivity(REPORTS, ["rouge_l", "bleu_1", "bleu_4", "rule"], resamples=50)


def test_a_metric_that_cannot_see_a_corruption_loses_nothing(measured: dict) -> None:
    for kind, name in (
        ("shuffled_sentences", "bleu_1"),
        *((kind, "rule_micro_f1_14") for kind in ("swapped_side", *CONTROLS)),
    ):
        drop = measured["metrics"][name]["drops"][kind]
        assert (drop["value"], drop["low"], drop["high"], drop["changed"]) == (0, 0, 0, 0), (kind, name)
        assert drop["relative"]["value"] == 0


def test_a_metric_that_sees_a_corruption_loses(measured: dict) -> None:
    for kind in KINDS:
        drop = measured["metrics"]["rouge_l"]["drops"][kind]
        assert 0 < drop["low"] <= drop["value"] <= drop["high"]
        assert drop["changed"] == 1
    for kind in ("removed_finding", "added_negation", "removed_negation", OTHER):
        assert measured["metrics"]["rule_micro_f1_14"]["drops"][kind]["value"] > 0, kind
    assert measured["metrics"]["rouge_l"]["drops"][OTHER]["relative"]["value"] == 1


def test_drops_by_hand() -> None:
    texts = ["Small left effusion.", "The lungs are clear and expanded."]
    found = sensitivity(texts, ["rouge_l"], resamples=20)
    row = found["metrics"]["rouge_l"]
    assert row["clean"] == 1
    assert found["applies"]["swapped_side"] == 1
    assert row["drops"]["swapped_side"]["value"] == pytest.approx(
        1 / 3
    )  # two words of three, in the one report with a side
    assert row["drops"][OTHER]["value"] == 1  # no word in common
    assert row["drops"]["swapped_side"]["relative"]["value"] == pytest.approx(1 / 3)
    assert "shuffled_sentences" not in row["drops"]
    assert row["order"] == {}


def test_the_order_of_pairs(measured: dict) -> None:
    order = {name: row["order"] for name, row in measured["metrics"].items()}
    assert order["bleu_1"]["shuffled_sentences"]["value"] == 1  # blind to the order of words
    assert order["rouge_l"]["shuffled_sentences"]["value"] < 0.5
    # Blind to sides and degrees: a tie, which counts half.
    swapped = sensitivity(["Left nodule. The lungs are clear."] * 3 + ["Clear."], ["rule_micro_f1_14"], resamples=20)
    gone = swapped["metrics"]["rule_micro_f1_14"]["order"]["shuffled_sentences"]["value"]
    assert gone == pytest.approx((0.5 + 1 + 1) / 3)  # side swapped, finding removed, finding denied


def test_metrics_of_which_less_is_better_count_the_other_way(monkeypatch) -> None:
    before = sensitivity(REPORTS, ["rouge_l"], resamples=10)["metrics"]["rouge_l"]["drops"][OTHER]["value"]
    monkeypatch.setattr("metrics.sensitivity.LOWER_IS_BETTER", {"rouge_l"})
    assert sensitivity(REPORTS, ["rouge_l"], resamples=10)["metrics"]["rouge_l"]["drops"][OTHER]["value"] == -before


def test_another_patient_is_another_subject() -> None:
    texts = ["Cardiomegaly. No edema.", "Edema. Left effusion.", "Pneumothorax. Right effusion."]
    found = sensitivity(texts, ["rouge_l"], resamples=10, subjects=["a", "a", "b"])
    assert found["applies"][OTHER] == 3
    alone = sensitivity(texts, ["rouge_l"], resamples=10, subjects=["a", "a", "a"])
    assert alone["applies"][OTHER] == 0
    assert alone["metrics"]["rouge_l"]["drops"]["removed_finding"]["relative"] is None
    with pytest.raises(RadDraftError, match="3 reports and 1 subjects"):
        sensitivity(texts, ["rouge_l"], subjects=["a"])


def test_the_same_seed_gives_the_same_numbers_and_all_can_be_written(measured: dict) -> None:
    again = sensitivity(REPORTS, ["rouge_l", "bleu_1", "bleu_4", "rule"], resamples=50)
    assert again == measured
    assert json.loads(json.dumps(measured)) == measured
    text = tables(measured)
    assert all(name in text for name in (*KINDS, *measured["metrics"]))
    assert not any(math.isnan(drop["value"]) for row in measured["metrics"].values() for drop in row["drops"].values())


def test_the_figure_has_a_panel_for_each_kind_and_a_row_for_each_metric(measured: dict) -> None:
    rows = measured["metrics"] | {"bleu_2": measured["metrics"]["bleu_1"] | {"floor": "Random weights, 6 reports"}}
    figure = draw(measured | {"metrics": rows})
    assert len(figure.axes) == len(EDITS) + len(CONTROLS) + 1
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()][-1] == "BLEU-2"
    assert "Random weights, 6 reports" in {text.get_text() for text in figure.axes[0].texts}


def test_the_action_reads_manifests_and_tables_and_says_what_it_skipped(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path / "none"))
    rows = [
        {
            "study_id": f"s{i}",
            "subject_id": f"p{i // 2}",
            "split": "test",
            "images": [{"path": "x.png"}],
            "sections": {"findings": text},
        }
        for i, text in enumerate([*REPORTS, " "])
    ]
    (tmp_path / "studies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    texts, subjects = read_reports(tmp_path / "studies.jsonl")
    assert (texts, subjects) == (REPORTS, ["p0", "p0", "p1", "p1", "p2", "p2"])
    assert read_reports(tmp_path / "studies.jsonl", n=2) == read_reports(tmp_path / "studies.jsonl", n=2)
    with open(tmp_path / "table.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["uid", "findings"], *([i, text] for i, text in enumerate([*REPORTS, ""]))])
    assert read_reports(tmp_path / "table.csv", "findings") == (REPORTS, None)
    for path, message in (
        ("table.csv", "no column 'reference'"),
        ("studies.jsonl", "no report with the section 'note'"),
    ):
        with pytest.raises(RadDraftError, match=message):
            read_reports(tmp_path / path, "note" if path == "studies.jsonl" else None)
    with pytest.raises(RadDraftError, match="got n = 0"):
        read_reports(tmp_path / "studies.jsonl", n=0)
    out = tmp_path / "out"
    command = (tmp_path / "studies.jsonl", "--out", out, "--resamples", 20, "--n", 5)
    assert run("sensitivity", *command) == (0, "")
    printed = capsys.readouterr().out
    assert "skipped: radgraph_e" in printed
    written = json.loads((out / "sensitivity.json").read_text(encoding="utf-8"))
    assert written["n"] == 5
    assert (out / "sensitivity.png").read_bytes().startswith(b"\x89PNG")
    assert run("sensitivity", *command, "--metrics", "rouge-l")[0] == 1


def test_a_random_chexbert_that_is_centered_tells_reports_apart(bert_folder: Path, tmp_path: Path) -> None:
    save_chexbert(tmp_path / "chexbert.pth", bert_folder)
    center(tmp_path / "chexbert.pth", bert_folder, REPORTS)
    models = Models(tmp_path / "chexbert.pth", bert_folder, device="cpu", keep=False)
    row = sensitivity(REPORTS, ["chexbert_micro_f1_14"], models, resamples=10)["metrics"]["chexbert_micro_f1_14"]
    assert row["clean"] == 1
    assert row["drops"][OTHER]["value"] > 0.1
