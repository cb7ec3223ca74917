"""Reads: simulated readers of known behavior give the known numbers, and their texts become training studies."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from generator.corpora.reads import convert
from metrics.reads import READ_METRICS, compare_sentences, read_reads
from raddraft.errors import RadDraftError
from raddraft.studies import read_studies, write_studies
from tests.conftest import ROOT, make_study
from tests.test_cli import run
from tests.test_score import write

HEART, LEFT, AIR, BONES = (
    "The heart is normal in size.",
    "Small left pleural effusion.",
    "No pneumothorax.",
    "Old rib fracture.",
)
DRAFT = f"{HEART} {LEFT} {AIR}"
N_WORDS = len(DRAFT.split())  # 6 + 4 + 2


def read(number: int, final: str | None = None, decision: str = "corrected", **keys: Any) -> dict[str, Any]:
    """A line of reads.jsonl; without a final text the draft is accepted."""
    decision = "accepted" if final is None else decision
    row = {
        "study_id": f"s{number}",
        "subject_id": f"p{number // 2}",
        "draft": DRAFT,
        "final": DRAFT if final is None else final,
    }
    return (
        row | {"decision": decision, "seconds": 20.0, "reader": "A", "model": "m", "time": "2026-01-31T08:15Z"} | keys
    )


def reject(number: int, reason: str = "rotated", **keys: Any) -> dict[str, Any]:
    return read(number, "", "rejected", reason=reason, **keys)


def score(path: Path, *options: object) -> dict[str, Any]:
    assert run("score", path, "--metrics", "rouge_l", "--resamples", "50", *options) == (0, "")
    return json.loads((path.parent / "scores" / "scores.json").read_text(encoding="utf-8"))


def values(scores: dict[str, Any]) -> dict[str, float]:
    return {name.removeprefix("read_"): scores["metrics"][name]["value"] for name in READ_METRICS}


NOTHING = dict.fromkeys(("rejected", "edits", "changed", "observations", "sides", "deleted", "added"), 0.0)
UNTOUCHED = {"accepted": 1.0, "kept": 1.0, **NOTHING}
READERS = {
    "accepts": (None, UNTOUCHED),
    "swaps a side": (
        DRAFT.replace("left", "right"),
        {"accepted": 0.0, "edits": 1 / N_WORDS, "kept": 2 / 3, "changed": 1 / 3, "sides": 1 / 3},
    ),
    "denies a finding": (
        DRAFT.replace("Small left", "No"),
        {"accepted": 0.0, "edits": 2 / N_WORDS, "kept": 2 / 3, "changed": 1 / 3, "observations": 1 / 3},
    ),
    "deletes a sentence": (f"{HEART} {AIR}", {"accepted": 0.0, "edits": 4 / N_WORDS, "kept": 2 / 3, "deleted": 1 / 3}),
    "adds a sentence": (
        f"{DRAFT} {BONES}",
        {"accepted": 0.0, "edits": 3 / (N_WORDS + 3), "kept": 1.0, "added": 1 / 4},
    ),
    "moves a sentence": (f"{AIR}\n{HEART} {LEFT}", {"accepted": 0.0, "edits": 4 / N_WORDS, "kept": 1.0}),
    "breaks a line": (DRAFT.replace(" No", "\n\nNo"), UNTOUCHED),
}


@pytest.mark.parametrize("behavior", READERS)
def test_a_reader_who_always_does_the_same(behavior, tmp_path) -> None:
    final, expected = READERS[behavior]
    scores = score(write(tmp_path / "reads.jsonl", [read(i, final) for i in range(3)]))
    assert values(scores) == pytest.approx(NOTHING | expected | {"seconds": 20.0})
    assert scores["n"] == 3


def test_a_reader_who_accepts_some_corrects_some_and_rejects_some(tmp_path, capsys) -> None:
    corrected = f"{HEART} {LEFT.replace('left', 'right')} {BONES}"
    rows = [read(i) for i in range(4)] + [read(i, corrected, seconds=50) for i in range(4, 6)]
    rows += [reject(6, seconds=0), reject(7, "another patient")]
    scores = score(write(tmp_path / "reads.jsonl", rows))
    edits = 4 / 13  # a side, three words for two
    assert values(scores) == pytest.approx(
        {"accepted": 1 / 2, "rejected": 1 / 4, "edits": (2 * edits + 2) / 8, "seconds": (5 * 20 + 2 * 50) / 8}
        | {"kept": (4 * 3 + 2) / 24, "changed": 2 / 24, "sides": 2 / 24, "observations": 0.0}
        | {"deleted": (2 + 2 * 3) / 24, "added": 2 / 18}
    )
    for name, one in scores["metrics"].items():
        assert one["low"] <= one["value"] <= one["high"], name
        assert "|interval:jackknife t by subject|n:8|subjects:4|" in one["signature"], name
    assert all(scores["metrics"][name]["low"] < scores["metrics"][name]["high"] for name in ("read_kept", "read_edits"))
    shown = capsys.readouterr().out
    assert (
        "8 reads of 8 studies by 1 reader: 4 accepted, 2 corrected, 2 rejected (rotated 1, another patient 1)" in shown
    )
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert "reads: what readers changed" in page
    assert "Worst by Edit distance" in page
    with open(tmp_path / "scores" / "per_study.csv", encoding="utf-8", newline="") as file:
        table = {row["study_id"]: row for row in csv.DictReader(file)}
    assert (table["s6"]["reader"], table["s6"]["read_edits"], table["s6"]["rouge_l"]) == ("A", "1.000000", "0.000000")


def test_the_docs_explain_every_score() -> None:
    text = (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in text for name in READ_METRICS)


def test_readers_models_and_strata_stand_side_by_side(tmp_path) -> None:
    studies = [make_study(tmp_path, i, "test") for i in range(4)]
    studies[0].images[0].view = "AP"
    write_studies(tmp_path / "studies.jsonl", studies)
    first = write(tmp_path / "a.jsonl", [read(i) for i in range(4)] + [read(0, HEART, reader="B")])
    second = write(tmp_path / "b.jsonl", [read(0, AIR, model="n"), reject(1, model="n", reference=HEART)])
    options = ("--studies", tmp_path / "studies.jsonl", "--by", "view", "normal")
    strata = score(first, second, *options)["strata"]
    found = {by: {name: (one["n"], values(one)["accepted"]) for name, one in strata[by].items()} for by in strata}
    assert found == {
        "view": {"AP": (3, 1 / 3), "PA": (4, 3 / 4)},
        "normal": {"abnormal": (4, 1.0), "normal": (3, 0.0)},
        "reader": {"A": (6, 4 / 6), "B": (1, 0.0)},
        "model": {"m": (5, 4 / 5), "n": (2, 0.0)},
    }
    assert [*score(first)["strata"]] == ["reader"]


def test_two_readers_of_a_study_are_one_unit_where_no_subject_is_known(tmp_path) -> None:
    rows = [read(i, reader=reader, subject_id=f"s{i}") for i in range(3) for reader in "AB"]
    assert score(write(tmp_path / "reads.jsonl", rows))["subjects"] == 3
    assert "subjects" not in score(write(tmp_path / "reads.jsonl", rows[::2])), "a study is no patient"


def test_the_last_decision_counts_and_a_cut_line_does_not(tmp_path) -> None:
    path = write(tmp_path / "reads.jsonl", [read(1), read(2), reject(1), read(1, HEART)])
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(read(3))[:-9])
    assert [(one.study_id, one.decision, one.reference) for one in read_reads(path)] == [
        ("s2", "accepted", DRAFT),
        ("s1", "corrected", HEART),
    ]
    path.write_text(json.dumps(read(3)), encoding="utf-8")
    assert len(read_reads(path)) == 1, "whole, but for its line end"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"decision": "accept"},
            "unknown decision 'accept'. Choices: accepted, corrected, rejected. Did you mean acc",
        ),
        ({"final": None}, "final must be a string, got None"),
        ({"draft": 3}, "draft must be a string, got 3"),
        ({"seconds": -1}, "seconds must be a number from 0, got -1"),
        ({"seconds": "20"}, "seconds must be a number from 0, got '20'"),
    ],
)
def test_faulty_reads_are_named_by_file_and_line(tmp_path, change, sentence) -> None:
    status, message = run("score", write(tmp_path / "reads.jsonl", [read(1), read(2) | change, read(3)]))
    assert status == 1
    assert message.startswith(f"raddraft score: reads.jsonl line 2: {sentence}")


def test_a_broken_line_amid_others_is_an_error(tmp_path) -> None:
    path = write(tmp_path / "reads.jsonl", [read(1), read(2)])
    path.write_text(path.read_text().replace('"s2"', '"s2', 1), encoding="utf-8")
    assert "reads.jsonl line 2: not valid JSON" in run("score", path)[1]


def test_reads_and_predictions_are_not_mixed(tmp_path) -> None:
    reads = write(tmp_path / "reads.jsonl", [read(1)])
    model = write(tmp_path / "model.jsonl", [{"study_id": "s1", "prediction": HEART, "reference": AIR}])
    for files in ((reads, model), (model, reads)):
        expected = f"raddraft score: {reads} holds reads, {model} does not: score them in two calls"
        assert run("score", *files) == (1, expected)
    assert "leave out --references" in run("score", reads, "--references", model)[1]
    assert "Unknown --by 'reader'" in run("score", model, "--by", "reader")[1]


@pytest.mark.parametrize(
    ("draft", "final", "expected"),
    [
        ("", HEART, {"draft": 0, "final": 1, "added": 1}),
        (HEART, "", {"draft": 1, "final": 0, "deleted": 1}),
        (f"{AIR} {AIR}", AIR, {"draft": 2, "final": 1, "kept": 1, "deleted": 1}),
        # the same observation, though few words are the same
        (AIR, "There is a large apical pneumothorax.", {"draft": 1, "final": 1, "changed": 1, "observations": 1}),
        # likest first: what is left is added
        (
            "No pneumothorax or effusion.",
            f"{LEFT} {AIR}",
            {"draft": 1, "final": 2, "changed": 1, "observations": 1, "added": 1},
        ),
        ("The lungs are clear.", "The bones are intact.", {"draft": 1, "final": 1, "deleted": 1, "added": 1}),
        ("Clear lungs.", "clear lungs.", {"draft": 1, "final": 1, "changed": 1}),
    ],
)
def test_sentences_by_hand(draft, final, expected) -> None:
    assert {name: count for name, count in compare_sentences(draft, final).items() if count} == {
        name: count for name, count in expected.items() if count
    }


def test_reads_become_training_studies(tmp_path) -> None:
    studies = [make_study(tmp_path, i, "test") for i in range(6)]
    studies[1].extra["synthetic"] = ["findings"]
    write_studies(tmp_path / "studies.jsonl", studies)
    rows = [
        read(0),
        read(1, HEART),
        reject(2),
        read(3, HEART),
        read(9),
        read(4, AIR, reader="B"),
        read(3, AIR, reader="B"),
    ]
    reads = write(tmp_path / "reads.jsonl", rows)
    arguments = ("--studies", tmp_path / "studies.jsonl", "--reads", reads, "--out", tmp_path / "out.jsonl")
    assert run("prepare", "reads", *arguments, "--split", "train") == (0, "")
    done = read_studies(tmp_path / "out.jsonl", check_images=True)
    found = [(one.study_id, one.split, one.sections["findings"], one.extra["read"]["reader"]) for one in done]
    assert found == [
        ("s0", "train", DRAFT, "A"),
        ("s1", "train", HEART, "A"),
        ("s3", "train", AIR, "B"),
        ("s4", "train", AIR, "B"),
    ], "the last line counts, whoever wrote it"
    assert done[1].extra["read"] == {"reader": "A", "decision": "corrected", "model": "m", "time": "2026-01-31T08:15Z"}
    assert done[0].sections["indication"] == studies[0].sections["indication"]
    assert not done[1].is_synthetic

    told = convert(tmp_path / "studies.jsonl", [reads], tmp_path / "a.jsonl", reader="A")
    assert "2 studies with a corrected draft, 1 with an accepted one" in told
    assert told.endswith("; 1 not in the manifest; 2 not read; 1 rejected")
    kept = read_studies(tmp_path / "a.jsonl")
    assert [(one.study_id, one.split) for one in kept] == [("s0", "test"), ("s1", "test"), ("s3", "test")]


def test_several_sections_are_told_apart_and_what_cannot_be_made_is_said(tmp_path) -> None:
    write_studies(tmp_path / "studies.jsonl", [make_study(tmp_path, i, "test") for i in range(2)])
    rows = [read(0, f"Findings: {HEART} {AIR}\nImpression: Normal."), read(1, "No effusion today.")]
    reads = write(tmp_path / "reads.jsonl", rows)
    told = convert(tmp_path / "studies.jsonl", [reads], tmp_path / "out.jsonl", ["findings", "impression"])
    assert told.endswith("1 studies with a corrected draft, 0 with an accepted one; 1 without all of these sections")
    (study,) = read_studies(tmp_path / "out.jsonl")
    assert study.sections == {
        "indication": "cough and fever.",
        "findings": f"{HEART} {AIR}",
        "impression": "Normal.",
    }
    with pytest.raises(RadDraftError, match=r"out\.jsonl is the manifest that is read"):
        convert(tmp_path / "out.jsonl", [reads], tmp_path / "out.jsonl")
    with pytest.raises(RadDraftError, match=r"No read by 'C'\. Readers: A"):
        convert(tmp_path / "studies.jsonl", [reads], tmp_path / "c.jsonl", reader="C")
    none = write(tmp_path / "none.jsonl", [reject(1)])
    with pytest.raises(
        RadDraftError, match="no study with a draft that was accepted or corrected; 1 not read; 1 rejected"
    ):
        convert(tmp_path / "studies.jsonl", [none], tmp_path / "none-studies.jsonl")
