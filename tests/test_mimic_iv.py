"""MIMIC-IV's tables joined to MIMIC-CXR's studies, and the labels that a radiologist gave to test studies.

The tree has the official layout; every row of `OMR` and `PATIENTS` is a trap of its own.
"""

import csv
import json
from pathlib import Path

import pytest

from encoder.probe_config import TargetSpec
from encoder.targets import make_target
from generator.corpora import mimic_cxr
from generator.corpora.common import CorpusError
from raddraft.studies import read_studies
from tests.test_corpora import by_id, touch, write_csv

STUDIES = [  # subject, study, split, StudyDate
    ("10000001", "50000001", "train", "21800506"),
    ("10000001", "50000002", "train", "21850506"),
    ("10000002", "50000003", "train", "21500101"),
    ("10000003", "50000004", "train", "21600101"),
    ("10000004", "50000005", "train", "21700101"),
    ("10000005", "50000006", "train", ""),
    ("10000006", "50000007", "validate", "21500630"),
    ("10000007", "50000008", "test", "21500630"),
    ("10000008", "50000009", "test", "21500630"),
]
PATIENTS = [  # subject, gender, anchor_age, anchor_year
    ("10000001", "F", "52", "2180"),
    ("10000002", "M", "91", "2155"),  # older than 89 in 2155, of unknown age in 2150
    ("10000003", "M", "85", "2153"),  # 92 at the study
    ("10000004", "F", "20", "2195"),  # the study would be before birth
    ("10000005", "F", "40", "2150"),  # the study has no date
    ("10000006", "M", "60", "2150"),
    ("10000007", "F", "30", "2148"),  # in omr with values that do not count alone
    ("19999999", "F", "30", "2148"),  # not in MIMIC-CXR; and 10000008 is not in MIMIC-IV
]
OMR = [  # subject, chartdate, seq_num, result_name, result_value
    ("10000001", "2180-05-01", "1", "Weight (Lbs)", "150"),  # 5 days before the first study
    ("10000001", "2180-05-11", "1", "Weight (Lbs)", "200"),  # 5 days after it: the one before counts
    ("10000001", "2180-05-02", "1", "BMI (kg/m2)", "24.0"),
    ("10000001", "2180-05-08", "2", "BMI", "25.4"),  # nearer, of two that day the last
    ("10000001", "2180-05-08", "1", "BMI (kg/m2)", "25.0"),
    ("10000001", "2180-05-08", "3", "BMI (kg/m2)", "254"),  # implausible, though it is the last
    ("10000001", "2180-05-06", "1", "Weight", "70.00"),  # of that very day, without unit
    ("10000001", "2180-05-06", "1", "Blood Pressure", "120/70"),
    ("10000001", "2180-05-06", "1", "Height (Inches)", "64"),
    ("10000001", "2185-11-02", "1", "Weight (Lbs)", "176.5"),  # 180 days after the second study
    ("10000001", "2185-11-03", "1", "BMI (kg/m2)", "30"),  # 181 days
    ("10000005", "2150-01-01", "1", "Weight (Lbs)", "150"),  # of a study without a date
    ("10000006", "2150-06-30", "10", "Weight (Lbs)", " 180.0 "),
    ("10000006", "2150-06-30", "9", "Weight (Lbs)", "100"),
    ("10000006", "2150-06-30", "1", "BMI (kg/m2)", ">50"),
    ("10000007", "2150-06-30", "1", "Weight (Lbs)", "unable to stand"),
    ("10000007", "2150-06-30", "2", "Weight (Lbs)", "15"),
    ("10000007", "2150-06-30", "3", "Weight (Lbs)", "1.5e2"),
    ("10000008", "2150-06-30", "1", "BMI (kg/m2)", "22.2"),
    ("19999999", "2150-06-30", "1", "Weight (Lbs)", "heavy"),
]


COLUMNS = {
    "patients": "subject_id gender anchor_age anchor_year",
    "omr": "subject_id chartdate seq_num result_name result_value",
}


def write_rows(path: Path, columns: str, rows: list, zipped: bool) -> None:
    write_csv(path, [dict(zip(columns.split(), row, strict=True)) for row in rows], zipped)


@pytest.fixture(params=[True, False], ids=["gz", "plain"])
def trees(tmp_path, request) -> tuple[Path, Path]:
    """MIMIC-CXR-JPG and MIMIC-IV."""
    root, hosp = tmp_path / "mimic-cxr-jpg", tmp_path / "mimiciv" / "3.1" / "hosp"
    metadata, splits = [], []
    for subject, study, split, day in STUDIES:
        name = f"d{study}"
        touch(root / "files" / f"p{subject[:2]}" / f"p{subject}" / f"s{study}" / f"{name}.jpg")
        metadata.append((name, subject, study, "PA", day))
        splits.append((name, study, subject, split))
    columns = "dicom_id subject_id study_id ViewPosition StudyDate"
    write_rows(root / "mimic-cxr-2.0.0-metadata.csv.gz", columns, metadata, zipped=True)
    write_rows(root / "mimic-cxr-2.0.0-split.csv.gz", "dicom_id study_id subject_id split", splits, zipped=True)
    suffix = ".csv.gz" if request.param else ".csv"
    for name, rows in (("patients", PATIENTS), ("omr", OMR)):
        write_rows(hosp / f"{name}{suffix}", COLUMNS[name], rows, zipped=request.param)
    return root, hosp.parent


def convert(trees, **options):
    root, folder = trees
    return mimic_cxr.convert(root, sections=(), labels="none", mimic_iv=folder, **options)


def test_ages_weights_and_bmis(trees):
    conversion = convert(trees)
    patients = {name: study.patient for name, study in by_id(trees[0] / "studies.jsonl").items()}
    assert patients == {
        "s50000001": {"sex": "F", "age": 52, "weight": 68.0, "bmi": 25.4},
        "s50000002": {"sex": "F", "age": 57, "weight": 80.1},
        "s50000003": {"sex": "M", "age": None},
        "s50000004": {"sex": "M", "age": None},
        "s50000005": {"sex": "F", "age": None},
        "s50000006": {"sex": "F", "age": None},
        "s50000007": {"sex": "M", "age": 60, "weight": 81.6},
        "s50000008": {"sex": "F", "age": 32},
        "s50000009": {"bmi": 22.2},
    }
    told = [line for line in str(conversion).splitlines() if "left out" in line or "MIMIC-IV" in line or "date" in line]
    assert sorted(told) == [
        "Ages above 89, left out: 2",
        "Ages below 0, left out: 1",
        "Implausible values of bmi, left out: 1",
        "Implausible values of weight, left out: 1",
        "MIMIC-IV has 7 of 8 subjects. Studies with sex: 8, age: 4, weight: 3, bmi: 2 (at most 180 days away)",
        "Studies without a date, and so without age, weight and bmi: 1",
        "Weights and BMIs that are no number, left out: 3",
        "Weights that tell no unit, left out: 1",
    ]


def test_the_window_is_an_option(trees):
    convert(trees, window=4)
    patients = {name: study.patient for name, study in by_id(trees[0] / "studies.jsonl").items()}
    assert patients["s50000001"] == {"sex": "F", "age": 52, "bmi": 25.4}
    assert patients["s50000007"]["weight"] == 81.6
    convert(trees, window=181)
    assert by_id(trees[0] / "studies.jsonl")["s50000002"].patient["bmi"] == 30
    with pytest.raises(CorpusError, match="--window must be 0 days or more, got -1"):
        convert(trees, window=-1)
    with pytest.raises(CorpusError, match="--window 30 tells nothing without --mimic-iv"):
        mimic_cxr.convert(trees[0], window=30)


def test_probes_read_age_weight_and_bmi(trees):
    convert(trees)
    studies = read_studies(trees[0] / "studies.jsonl")
    names = ("patient.age", "patient.weight", "patient.bmi")
    target = make_target(studies, TargetSpec(names, kind="regression"))
    rows = dict(zip((path.stem for path in target.paths), target.y.tolist(), strict=True))
    assert rows["d50000001"] == [52, 68.0, 25.4]
    assert str(rows["d50000007"]) == "[60.0, 81.6, nan]"
    assert sorted(rows) == [f"d5000000{number}" for number in (1, 2, 7, 8, 9)]
    sexes = make_target(studies, TargetSpec(("patient.sex",), kind="multiclass"))
    assert sexes.names == ("F", "M")


def test_the_folder_may_be_hosp_itself(trees):
    mimic_cxr.convert(trees[0], sections=(), labels="none", mimic_iv=trees[1] / "hosp")
    assert by_id(trees[0] / "studies.jsonl")["s50000001"].patient["weight"] == 68.0


@pytest.mark.parametrize("name", ["patients", "omr"])
def test_a_missing_table_is_named(trees, name):
    next(trees[1].rglob(f"{name}.csv*")).unlink()
    with pytest.raises(FileNotFoundError, match=rf"hosp: there is no {name}\.csv, .*physionet\.org/content/mimiciv"):
        convert(trees)


@pytest.mark.parametrize(
    ("table", "column", "value", "expected"),
    [
        ("patients", "anchor_year", "2180s", r"patients\.csv\S* line 2: anchor_year '2180s' is no whole number"),
        ("patients", "anchor_age", "old", r"patients\.csv\S* line 2: anchor_age 'old' is no whole number"),
    ],
)
def test_a_wrong_cell_of_a_patient_is_named(trees, table, column, value, expected):
    change(trees, table, column, value)
    with pytest.raises(CorpusError, match=expected):
        convert(trees)


@pytest.mark.parametrize(
    ("table", "column", "value", "told"),
    [
        ("patients", "anchor_age", "", "Studies of patients without anchor_age, and so without age: 2"),
        ("omr", "chartdate", "05/06/2180", "Rows of omr whose chartdate or seq_num cannot be read, left out: 1"),
        ("omr", "chartdate", "", "Rows of omr whose chartdate or seq_num cannot be read, left out: 1"),
        ("omr", "seq_num", "", "Rows of omr whose chartdate or seq_num cannot be read, left out: 1"),
    ],
)
def test_a_row_that_cannot_be_read_is_left_out(trees, table, column, value, told):
    change(trees, table, column, value)
    assert told in convert(trees).notes
    patient = by_id(trees[0] / "studies.jsonl")["s50000001"].patient
    # The first row of each table is this patient's: without it the weight is that of the other day.
    expected = {"age": None, "weight": 68.0} if table == "patients" else {"age": 52, "weight": 90.7}
    assert patient == {"sex": "F", "bmi": 25.4} | expected


def change(trees, table: str, column: str, value: str) -> None:
    """Write another value into the first row of a table."""
    path = next(trees[1].rglob(f"{table}.csv*"))
    rows = [list(row) for row in (PATIENTS if table == "patients" else OMR)]
    rows[0][COLUMNS[table].split().index(column)] = value
    write_rows(path, COLUMNS[table], rows, zipped=path.suffix == ".gz")


def test_of_two_rows_of_a_patient_the_first_counts(trees):
    path = next(trees[1].rglob("patients.csv*"))
    rows = [*PATIENTS, ("10000001", "M", "32", "2180")]
    write_rows(path, COLUMNS["patients"], rows, zipped=path.suffix == ".gz")
    conversion = convert(trees)
    assert "Rows of patients that repeat a subject, left out: 1" in conversion.notes
    assert "MIMIC-IV has 7 of 8 subjects." in str(conversion)
    patient = by_id(trees[0] / "studies.jsonl")["s50000001"].patient
    assert (patient["sex"], patient["age"]) == ("F", 52)


def test_a_wrong_date_of_a_study_is_named(trees):
    table = trees[0] / "mimic-cxr-2.0.0-metadata.csv"
    row = {"dicom_id": "d50000001", "subject_id": "10000001", "study_id": "50000001", "ViewPosition": "PA"}
    write_csv(table, [row | {"StudyDate": "May 6"}])
    with pytest.raises(CorpusError, match=r"study s50000001, StudyDate: date 'May 6'"):
        convert(trees)


def test_without_mimic_iv_nothing_is_known_of_patients(trees):
    mimic_cxr.convert(trees[0], sections=(), labels="none")
    assert {json.dumps(study.patient) for study in by_id(trees[0] / "studies.jsonl").values()} == {"{}"}


# --- Labels of a radiologist -------------------------------------------------------------------------------------


def test_labels_of_the_radiologist_are_of_test_studies_alone(trees):
    table = trees[0] / "mimic-cxr-2.1.0-test-set-labeled.csv"
    rows = [
        {"study_id": "50000008", "Airspace Opacity": "1.0", "Cardiomegaly": "-1.0", "Edema": "", "No Finding": "0.0"},
        {"study_id": "50000001", "Airspace Opacity": "1.0", "Cardiomegaly": "1.0", "Edema": "", "No Finding": "0.0"},
        {"study_id": "59999999", "Airspace Opacity": "1.0", "Cardiomegaly": "1.0", "Edema": "", "No Finding": "0.0"},
    ]
    write_csv(table, rows)
    conversion = mimic_cxr.convert(trees[0], sections=(), labels="radiologist")
    labels = {name: study.labels for name, study in by_id(trees[0] / "studies.jsonl").items() if study.labels}
    assert labels == {"s50000008": {"Lung Opacity": 1, "Cardiomegaly": -1, "Edema": None, "No Finding": 0}}
    assert f"{table.name} has 3 studies; 1 of 2 test studies have a label" in conversion.notes


def test_the_radiologists_table_is_named_where_it_is_missing(trees):
    with pytest.raises(FileNotFoundError, match=r"there is no mimic-cxr-2\.1\.0-test-set-labeled\.csv"):
        mimic_cxr.convert(trees[0], sections=(), labels="radiologist")


def test_a_table_of_labels_without_labels_is_refused(trees):
    with open(trees[0] / "mimic-cxr-2.1.0-test-set-labeled.csv", "w", newline="") as file:
        csv.writer(file).writerows([("study_id", "split"), ("50000008", "test")])
    with pytest.raises(CorpusError, match=r"labeled\.csv: no column 'Edema'\. Columns: study_id, split"):
        mimic_cxr.convert(trees[0], sections=(), labels="radiologist")
