"""Synthetic findings from labels: our own labeler reads them back, and the manifest says what they are."""

from __future__ import annotations

import json

import pytest

from generator.corpora.from_labels import WORDS, add_findings, convert, write_findings
from metrics.caveats import unreadable
from metrics.rules import OBSERVATIONS, label
from raddraft.errors import RadDraftError
from raddraft.studies import read_studies, write_studies
from tests.conftest import make_study


@pytest.mark.parametrize("value", [1, 0, -1])
@pytest.mark.parametrize("name", [name for name in OBSERVATIONS if name != "No Finding"])
def test_the_labeler_reads_each_label_back(name, value) -> None:
    others = {other: 0 for other in OBSERVATIONS if other not in (name, "No Finding")}
    for labels in ({name: value}, {name: value, **others}, {**others, name: value}):
        assert label(write_findings(labels))[name] == value, write_findings(labels)


def test_no_sentence_is_taken_for_another_language() -> None:
    names = [*WORDS, *OBSERVATIONS, "Infiltration", "COVID-19", "Emphysema"]
    sentences = [text for name in names for value in (1, 0, -1) if (text := write_findings({name: value}))]
    assert unreadable(sentences)["reports"] == 0


@pytest.mark.parametrize(
    ("name", "observation"),
    [
        ("Effusion", "Pleural Effusion"),
        ("Infiltration", "Lung Opacity"),
        ("Mass", "Lung Lesion"),
        ("Nodule", "Lung Lesion"),
        ("Pleural_Thickening", "Pleural Other"),
        ("Bacterial", "Pneumonia"),
        ("Viral", "Pneumonia"),
    ],
)
def test_names_of_other_data_sets_are_read_as_what_they_are(name, observation) -> None:
    assert label(write_findings({name: 1}))[observation] == 1
    assert label(write_findings({name: 0}))[observation] in (0, None)


def test_a_normal_study_says_so() -> None:
    assert label(write_findings({"No Finding": 1, "Effusion": 0}))["No Finding"] == 1
    assert write_findings({"No Finding": 1}) == "No abnormality is seen."
    assert write_findings({"No Finding": 0, "Edema": None}) == ""
    assert write_findings({"Hernia": 1, "No Finding": 1}) == "There is hiatal hernia.", "labels that contradict"


def test_terse_findings_name_what_is_absent_only_where_there_is_nothing_else_to_say() -> None:
    labels = {"Effusion": 0, "Infiltration": 1, "Pneumonia": -1, "Edema": 0}
    assert write_findings(labels, terse=True) == "There is infiltrate. Possible pneumonia."
    assert write_findings({"No Finding": 1, "Effusion": 0}, terse=True) == "No abnormality is seen."
    assert write_findings({"Pneumonia": 0, "Bacterial": 0}, terse=True) == "No pneumonia or bacterial infection."


def test_the_manifest_marks_them_and_keeps_what_was_there(tmp_path) -> None:
    studies = [make_study(tmp_path, i, "train") for i in range(3)]
    studies[0].sections, studies[0].labels = {"note": "x"}, {"Edema": 1}
    studies[1].sections, studies[1].labels = {"findings": "Its own."}, {"Edema": 1}
    studies[2].sections, studies[2].labels = {}, {}
    write_studies(tmp_path / "studies.jsonl", studies)
    told = convert(tmp_path / "studies.jsonl", tmp_path / "out.jsonl")
    assert told.startswith("1 of 3 studies got a synthetic section 'findings'")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert rows[0]["sections"] == {"note": "x", "findings": "There is pulmonary edema."}
    assert rows[0]["synthetic"] == ["findings"]
    assert rows[1]["sections"] == {"findings": "Its own."}
    assert "synthetic" not in rows[1]
    again, count = add_findings(read_studies(tmp_path / "out.jsonl"))
    assert count == 0, "findings that are there stay"
    assert again[0].extra["synthetic"] == ["findings"]
    with pytest.raises(RadDraftError, match=r"out\.jsonl is the manifest that is read"):
        convert(tmp_path / "out.jsonl", tmp_path / "out.jsonl")
    studies[0].labels = studies[1].labels = {}
    write_studies(tmp_path / "none.jsonl", studies)
    with pytest.raises(RadDraftError, match="no study has labels and no section 'findings'"):
        convert(tmp_path / "none.jsonl", tmp_path / "out2.jsonl")
