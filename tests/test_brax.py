"""BRAX. The trees have the official layout; names and numbers in them are made up."""

from __future__ import annotations

from pathlib import Path

import pytest

from generator.corpora import brax
from generator.corpora.chexpert import LABELS
from generator.corpora.common import CorpusError, hash_split
from tests.test_corpora import by_id, dropped, touch, write_csv


def row(number: int, patient: str, study: str, **changes: str) -> dict[str, str]:
    """A row of the table with the column of row numbers in front, as some copies have it."""
    folder = f"id_{patient}/Study_{study}/Series_1"
    paths = {
        "DicomPath": f"Anonymized_DICOMs/{folder}/image-{number}.dcm",
        "PngPath": f"images/{folder}/image-{number}.png",
    }
    person = {"PatientID": patient, "PatientSex": "F", "PatientAge": "40 to 44", "AccessionNumber": study}
    labels = dict.fromkeys(LABELS, "") | {"No Finding": "0.0", "Edema": "-1.0", "Cardiomegaly": "1"}
    rest = {"ViewPosition": "PA", "Rows": "2048", "Columns": "2048", "Manufacturer": "1"}
    return {"": str(number)} | paths | person | {"StudyDate": "1230768000000000000"} | labels | rest | changes


ROWS = [
    row(0, "A", "100"),
    row(1, "A", "100", ViewPosition="LL"),
    row(2, "A", "200", ViewPosition="RLD", PatientAge="85 or more", PatientSex="M"),
    row(3, "B", "100", ViewPosition="", PatientSex="O", PatientAge=""),  # an accession number of another patient
    row(4, "C", "300", ViewPosition="LLO", PatientAge="35-39"),
    row(5, "D", "400", ViewPosition="AP", PatientAge="adult"),
    row(6, "E", "500"),  # not on disk
    row(6, "E", "600", PngPath="1" * 300),  # nor can it be: a longer name than file systems have
    row(0, "A", "100"),  # twice in the table
    row(7, "D", "400", ViewPosition="AP", PatientAge="20-24", Edema="1"),
]


@pytest.fixture
def root(tmp_path) -> Path:
    write_csv(tmp_path / "master_spreadsheet_update.csv", ROWS)
    for one in ROWS:
        if one["PatientID"] != "E":
            touch(tmp_path / one["PngPath"])
    return tmp_path


def test_brax(root):
    conversion = brax.convert(root)
    studies = by_id(root / "studies.jsonl")
    assert {name: [image.view for image in study.images] for name, study in studies.items()} == {
        "A_100": ["PA"],
        "A_200": ["RLD"],
        "B_100": [None],
        "D_400": ["AP", "AP"],
    }
    assert all(study.split == hash_split(study.subject_id) for study in studies.values())
    first = studies["A_100"]
    assert first.labels == dict.fromkeys(LABELS) | {"No Finding": 0, "Edema": -1, "Cardiomegaly": 1}
    assert studies["D_400"].labels["Edema"] == -1
    assert (first.sections, first.extra) == ({}, {})
    assert "1230768" not in (root / "studies.jsonl").read_text()
    assert dropped(conversion) == {"no frontal image": 1, "no image file on disk": 2}
    assert conversion.first_missing == root / ROWS[6]["PngPath"]


def test_brax_patients(root):
    conversion = brax.convert(root, views="all")
    patients = {name: study.patient for name, study in by_id(root / "studies.jsonl").items()}
    assert patients["A_100"] == {"sex": None, "age": 42, "age_group": "40 to 44"}  # F in one study, M in another
    assert patients["A_200"] == {"sex": None, "age": 85, "age_group": "85 or more"}
    assert patients["B_100"] == {"sex": None, "age": None, "age_group": None}
    assert patients["C_300"] == {"sex": "F", "age": 37, "age_group": "35-39"}
    assert set(conversion.notes[:-1]) == {
        "Films of a sex that is neither M nor F: 1",
        "Films whose age cannot be read: 1",
        "Rows whose labels differ from the first of their study, which count: 1",
        "Rows that repeat an image, left out: 1",
        "Rows whose sex or age differs from the first of their study, which counts: 1",
        "Subjects with two sexes, which are left out: 1",
    }


@pytest.mark.parametrize(
    ("text", "age"),
    [
        *[("45.0", 45), ("45", 45), ("85+", 85), ("85 or more", 85), ("40-44", 42), ("40 To 44", 42)],
        *[("18M", None), ("2020-05-04", None), ("<5", None), ("[40, 45)", None)],
    ],
)
def test_brax_ages(tmp_path, text, age):
    one = row(0, "A", "100", PatientAge=text)
    write_csv(tmp_path / "master_spreadsheet_update.csv", [one])
    touch(tmp_path / one["PngPath"])
    conversion = brax.convert(tmp_path)
    assert by_id(tmp_path / "studies.jsonl")["A_100"].patient == {"sex": "F", "age": age, "age_group": text}
    assert ("Films whose age cannot be read: 1" in conversion.notes) == (age is None)


def test_brax_studies_without_accession_number(tmp_path):
    rows = [row(number, "A", f"{number // 2}.5", AccessionNumber="") for number in range(4)]
    rows.append(row(4, "A", "9", AccessionNumber="", PngPath="images/image-4.png"))
    write_csv(tmp_path / "master_spreadsheet_update.csv", rows)
    for one in rows:
        touch(tmp_path / one["PngPath"])
    conversion = brax.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert {name: len(study.images) for name, study in studies.items()} == {"A_Study_0.5": 2, "A_Study_1.5": 2}
    assert "Rows without AccessionNumber and without a folder Study_…, left out: 1" in conversion.notes


def test_brax_dicom_files_all_views_and_the_older_table(root):
    (root / "master_spreadsheet_update.csv").rename(root / "master_spreadsheet.csv")
    for one in ROWS[:2]:
        touch(root / "elsewhere" / one["DicomPath"])
    brax.convert(root, files="dicom", images=root / "elsewhere", views="all")
    [study] = by_id(root / "studies.jsonl").values()
    assert [(image.path.name, image.view) for image in study.images] == [("image-0.dcm", "PA"), ("image-1.dcm", "LL")]


def test_brax_errors(root):
    table = root / "master_spreadsheet_update.csv"
    write_csv(table, [row(0, "A", "100", Edema="yes")])
    with pytest.raises(CorpusError, match=r"update\.csv line 2, Edema: label 'yes'\. Choices: 1, 0, -1, blank"):
        brax.convert(root)
    write_csv(table, [{"PngPath": "x.png", "PatientID": "A"}])
    with pytest.raises(CorpusError, match=r"no column 'PatientSex'\. Columns: PngPath, PatientID"):
        brax.convert(root)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"no master_spreadsheet_update\.csv.*physionet.*--table"):
        brax.convert(root)
