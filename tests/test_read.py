"""metrics/read.py: drafts and references in every form, and a sentence for each that cannot be joined."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from metrics.read import Prediction, read_predictions, read_texts


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_text_a_line_each_joined_by_line(tmp_path) -> None:
    drafts = put(tmp_path / "drafts.txt", "\ufeffThe heart is enlarged.\r\n\r\nNo edema.")
    reports = put(tmp_path / "reports", "Cardiomegaly.\n  Clear lungs. \nEdema.\n")
    found, left_out = read_predictions(drafts, reports)
    assert found == [
        Prediction("1", "The heart is enlarged.", "Cardiomegaly."),
        Prediction("2", "", "  Clear lungs. "),
        Prediction("3", "No edema.", "Edema."),
    ]
    assert left_out == []


def test_tables_joined_by_study_whatever_their_order_and_what_is_left_out_is_told(tmp_path) -> None:
    drafts = put(tmp_path / "drafts.csv", 'study_id,prediction,score\ns2,"Clear, dry.\nNo edema.",1\ns1,Edema.,2\n')
    reports = put(tmp_path / "reports.tsv", "study_id\treport\ns1\tEdema.\ns2\tClear.\ns3\tNo one drafted this.\n")
    found, left_out = read_predictions(drafts, reports)
    assert found == [Prediction("s2", "Clear, dry.\nNo edema.", "Clear."), Prediction("s1", "Edema.", "Edema.")]
    assert left_out == [f"{reports}: 1 references without a prediction in {drafts} are left out (s3)"]


def test_a_table_without_ids_goes_by_line_and_json_lines_by_id(tmp_path) -> None:
    drafts = put(tmp_path / "drafts.csv", "prediction\nEdema.\nClear.\n")
    reports = put(tmp_path / "reports.txt", "Edema.\nClear lungs.\n")
    assert [row.reference for row in read_predictions(drafts, reports)[0]] == ["Edema.", "Clear lungs."]
    rows = [{"study_id": "s1", "prediction": "Edema."}, {"study_id": "s2", "prediction": "Clear."}]
    drafts = put(tmp_path / "drafts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    reports = put(tmp_path / "reports.csv", "study_id,reference\ns2,Clear lungs.\n")
    found, left_out = read_predictions(drafts, reports)
    assert found == [Prediction("s2", "Clear.", "Clear lungs.")]
    assert left_out == [f"{drafts}: 1 predictions without a reference in {reports} are left out"]


def test_a_table_may_hold_its_own_references(tmp_path) -> None:
    drafts = put(tmp_path / "d.csv", "study_id,prediction,reference\ns1,Edema.,Clear.\ns2,Dry.,\ns3,,Wet.\n")
    found, left_out = read_predictions(drafts)
    assert found == [Prediction("s1", "Edema.", "Clear."), Prediction("s3", "", "Wet.")]
    assert left_out == [f"{drafts}: 1 predictions without a reference are left out"], "an empty cell is no report"
    without_ids = put(tmp_path / "d.tsv", "reference\tprediction\nClear.\tEdema.\n")
    assert read_predictions(without_ids)[0] == [Prediction("1", "Edema.", "Clear.")]


def test_endings_in_capitals_and_ndjson_are_what_they_say(tmp_path) -> None:
    drafts = put(tmp_path / "d.NDJSON", '{"study_id": "s1", "prediction": "Clear."}\n')
    reports = put(tmp_path / "r.CSV", "study_id,reference\ns1,Effusion.\n")
    assert read_predictions(drafts, reports)[0] == [Prediction("s1", "Clear.", "Effusion.")]


def test_a_blank_line_is_an_empty_draft_where_a_line_is_a_cell_and_nothing_elsewhere(tmp_path) -> None:
    drafts = put(tmp_path / "d.csv", "prediction\nClear.\n\nEdema.\n")
    reports = put(tmp_path / "r.csv", "reference\nClear.\nEffusion.\n\n")
    assert read_predictions(drafts, reports)[0] == [
        Prediction("1", "Clear.", "Clear."),
        Prediction("2", "", "Effusion."),
        Prediction("3", "Edema.", ""),
    ]
    assert read_texts(put(tmp_path / "t.csv", "study_id,prediction\ns1,a\n\ns2,b\n"), "prediction") == {
        "s1": "a",
        "s2": "b",
    }


def test_an_enormous_cell_is_read(tmp_path) -> None:
    before = csv.field_size_limit()
    text = "No edema. " * 100_000
    assert read_texts(put(tmp_path / "drafts.csv", f"prediction\n{text}\n"), "prediction") == {1: text}
    assert csv.field_size_limit() == before, "a limit of the whole process is left as it was"


@pytest.mark.parametrize(
    ("drafts", "reports", "sentence"),
    [
        (("d.txt", "a\nb\n"), ("r.txt", "a\n"), "d.txt has 2 texts and .*r.txt has 1: without ids"),
        (("d.txt", "a\n"), ("r.csv", "study_id,reference\ns1,a\n"), "Only one of .*d.txt and .*r.csv has study_ids"),
        (("d.csv", "study_id,prediction\ns1,a\n"), ("r.csv", "study_id,reference\ns2,a\n"), "no prediction with a ref"),
        (
            ("d.csv", "study_id,text,more\ns1,a,b\n"),
            ("r.csv", "reference\na\n"),
            "no column 'prediction'. Columns: study",
        ),
        (("d.csv", "study_id,prediction\ns1\n"), ("r.csv", "reference\na\n"), "d.csv row 1: fewer cells than columns"),
        (("d.csv", "prediction\na,b\n"), ("r.csv", "reference\na\n"), "d.csv row 1: more cells than columns"),
        (
            ("d.csv", "study_id,prediction\ns1,a\ns1,b\n"),
            ("r.csv", "reference\na\n"),
            "d.csv row 2: duplicate study_id 's1'",
        ),
        (("d.csv", ""), ("r.csv", "reference\na\n"), "d.csv: no column 'prediction'. Columns: none"),
        (("d.txt", ""), ("r.txt", ""), "d.txt is empty"),
        (("d.txt", b"Herz vergr\xf6\xdfert\n"), ("r.txt", "a\n"), "d.txt: not UTF-8"),
        (("d.csv", b"prediction\nHerz vergr\xf6\xdfert\n"), ("r.txt", "a\n"), "d.csv line 2: not UTF-8"),
        (("d.jsonl", '{"study_id": "s1", "prediction": 3}\n'), ("r.txt", "a\n"), "d.jsonl line 1: prediction must be"),
        (
            ("d.json", '[{"prediction": "a"}]\n'),
            ("r.txt", "a\n"),
            "d.json: expected ReXrank's form, an object with an object for each study",
        ),
        (
            ("d.xlsx", "a\n"),
            ("r.txt", "a\n"),
            "d.xlsx: reports are read from .jsonl.*not from .xlsx",
        ),
        (
            ("d.csv", "The lungs are clear.\nb\n"),
            ("r.txt", "a\n"),
            "no column 'prediction'. Columns: The lungs are clear.",
        ),
        (("d.csv", "study_id,prediction\ns1,a\n"), None, "no column 'reference'. Columns: .*; or give .* --references"),
        (("d.csv", "prediction,reference\na,\n"), None, r"d.csv: no prediction with a reference \(1 without\)"),
        (("d.txt", "a\n"), None, "d.txt has no references: give the file that has them with --references"),
    ],
)
def test_what_cannot_be_joined_is_one_sentence(tmp_path, drafts, reports, sentence) -> None:
    path = put(tmp_path / drafts[0], drafts[1])
    references = put(tmp_path / reports[0], reports[1]) if reports else None
    with pytest.raises(ValueError, match=sentence):
        read_predictions(path, references)


WORDS = ["", "  ", "nan", "NaN", "<NA>", "None", "null", "N/A"]


@pytest.mark.parametrize("nothing", WORDS, ids=repr)
def test_a_text_that_is_nothing_is_a_blank_draft_and_no_reference(tmp_path, nothing) -> None:
    drafts = put(tmp_path / "d.csv", f"study_id,prediction\ns1,{nothing}\ns2,Clear.\n")
    reports = put(tmp_path / "r.csv", f"study_id,reference\ns1,Edema.\ns2,{nothing}\n")
    found, left_out = read_predictions(drafts, reports)
    assert found == [Prediction("s1", "", "Edema.")]
    assert left_out == [f"{drafts}: 1 predictions without a reference in {reports} are left out"]
    both = put(tmp_path / "b.csv", f"study_id,prediction,reference\ns1,{nothing},Edema.\ns2,Clear.,{nothing}\n")
    assert read_predictions(both)[0] == found
    lines = put(tmp_path / "d.txt", f"Edema.\n{nothing}\n")
    assert read_texts(lines, "prediction") == {1: "Edema.", 2: ""}, "a line keeps its place"


@pytest.mark.parametrize("nothing", [None, float("nan"), *WORDS], ids=repr)
def test_json_lines_with_null_and_nan(tmp_path, nothing) -> None:
    rows = [
        {"study_id": "s1", "prediction": nothing, "reference": "Edema."},
        {"study_id": "s2", "prediction": "Clear.", "reference": nothing},
    ]
    both = put(tmp_path / "b.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    expected = [Prediction("s1", "", "Edema.")]
    assert read_predictions(both)[0] == expected
    assert read_predictions(both, both)[0] == expected


def test_an_id_may_be_a_word_that_elsewhere_means_nothing_but_not_nan(tmp_path) -> None:
    drafts = put(tmp_path / "d.csv", "study_id,prediction\nNA,Clear.\nnull,Wet.\nNone,Dry.\n")
    reports = put(tmp_path / "r.csv", "study_id,reference\nNone,Dry.\nNA,Clear.\nnull,Wet.\n")
    assert [row.study_id for row in read_predictions(drafts, reports)[0]] == ["NA", "null", "None"]
    for nothing in ("nan", "", "<NA>"):
        put(drafts, f"study_id,prediction\ns1,Clear.\n{nothing},Wet.\n")
        with pytest.raises(ValueError, match=r"d\.csv row 2: study_id must not be blank"):
            read_predictions(drafts, reports)


@pytest.mark.parametrize(
    "reports",
    [
        ("r.csv", "study_id,report,age\ns1,Edema.,63\n"),
        ("r.tsv", "Study ID\tage\tReport\ns1\t63\tEdema.\n"),
        ("r.csv", "study,text,split\ns1,Edema.,test\n"),
        ("r.csv", "image,patient_id,report\nmy-images/s1.png,A,Edema.\n"),
        ("r.jsonl", '{"study_id": "s1", "report": "Edema.", "age": 63}\n'),
        ("r.csv", "study_id,reference,report\ns1,Edema.,Something else.\n"),
    ],
)
def test_a_table_of_references_may_be_the_one_that_was_prepared(tmp_path, reports) -> None:
    drafts = put(tmp_path / "d.jsonl", '{"study_id": "s1", "prediction": "Clear.", "reference": null}\n')
    references = put(tmp_path / reports[0], reports[1])
    assert read_predictions(drafts, references)[0] == [Prediction("s1", "Clear.", "Edema.")]


def test_beside_drafts_only_a_column_of_that_name_is_the_reference(tmp_path) -> None:
    drafts = put(tmp_path / "d.csv", "study_id,prediction,text\ns1,a,b\n")
    with pytest.raises(ValueError, match="no column 'reference'"):
        read_predictions(drafts)


@pytest.mark.parametrize(
    ("ours", "theirs", "joined"),
    [
        (["my-images/x.png", "my-images/y.png"], ["x", "y"], ["my-images/x.png", "my-images/y.png"]),
        (["x", "y"], ["a/x.dcm", "/data/b/y.jpg"], ["x", "y"]),
        (["my-images/x.png"], ["other/place/x.jpg"], ["my-images/x.png"]),
        (["C:\\films\\x.png"], ["x"], ["C:\\films\\x.png"]),
        (["1.2.840.113"], ["films/1.2.840.113"], ["1.2.840.113"]),
        (["x", "a/y.png"], ["x", "y"], ["x", "a/y.png"]),
        (["a/x.png", "b/x.png", "z"], ["x", "z"], ["z"]),
        (["x", "z"], ["a/x.png", "b/x.png", "z"], ["z"]),
        (["a/x.png", "b/x.png"], ["a/x.png", "x"], ["a/x.png"]),
        (["x.png", "z"], ["x.1", "z"], ["z"]),
    ],
)
def test_ids_given_as_paths_are_joined_by_the_name_of_the_file_where_it_is_unambiguous(
    tmp_path, ours, theirs, joined
) -> None:
    drafts = tmp_path / "d.jsonl"
    put(drafts, "".join(json.dumps({"study_id": name, "prediction": "a"}) + "\n" for name in ours))
    reports = put(tmp_path / "r.csv", "study_id,report,age\n" + "".join(f"{name},b,1\n" for name in theirs))
    found, left_out = read_predictions(drafts, reports)
    assert [row.study_id for row in found] == joined
    by_file = len(set(joined) - set(theirs))
    assert (f"{by_file} predictions are joined" in str(left_out)) == (by_file > 0)
    assert (f"{len(ours) - len(joined)} predictions without" in str(left_out)) == (len(joined) < len(ours))
