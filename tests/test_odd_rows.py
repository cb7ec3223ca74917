"""Odd rows of every converter: the rule is applied, what it touched is counted, and the other studies are written.

The trees have the official layouts; names, numbers and texts are made up.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from generator.corpora import (
    candid_ptx,
    chexpert,
    chexpert_plus,
    covid,
    folder,
    iu_xray,
    lung_masks,
    mimic_cxr,
    nih,
    r2gen,
    rsna,
    siim,
    vindr_cxr,
    vindr_ribcxr,
)
from generator.corpora.boxes import BEYOND
from generator.corpora.common import Conversion, CorpusError, parse_age, parse_sex
from generator.corpora.odd_rows import (
    AGE,
    MONTHS,
    OLD,
    OTHER_LABELS,
    OTHER_PATIENT,
    OTHER_TEXT,
    REPEATED,
    SEX,
    gather_runs,
)
from tests.test_benchmarks import COVID, mask_of, nih_row, write_dicom, write_picture
from tests.test_corpora import by_id, chexpert_row, dropped, iu_xml, r2gen_tree, touch, write_csv

NEWBORN = "Ages of 0, which these adults cannot have, left out"
TOO_OLD = "Ages above 120, left out"
REPEATED_MASK = "Rows that repeat a mask of their image, left out"
DENIED = "Images with a mask and a row of -1, of which the mask counts"
BLANK_RUNS = "Blank cells in place of run lengths, taken for -1"


def counted(conversion: Conversion) -> dict[str, int]:
    """What is printed under the table with a number at its end."""
    notes = (note.rpartition(": ") for note in conversion.notes)
    return {what: int(number) for what, _, number in notes if number.isdecimal()}


# --- Cells -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "age", "what"),
    [
        ("58", 58, None),
        ("058Y", 58, None),
        ("58.0", 58, None),
        ("1.5", 1.5, None),
        ("0.9Y", 0.9, None),
        ("018M", 1.5, MONTHS),
        ("26W", 0.5, MONTHS),
        ("073D", 0.2, MONTHS),
        ("about 60", None, AGE),
        ("-1", None, AGE),
        ("", None, None),
    ],
)
def test_ages(text, age, what) -> None:
    counts = Counter[str]()
    found = parse_age(text, counts)
    assert (found, type(found)) == (age, type(age))
    assert +counts == ({what: 1} if what else {})


@pytest.mark.parametrize(
    ("text", "sex", "odd"),
    [("M", "M", 0), ("female", "F", 0), ("Unknown", None, 1), ("O", None, 1), ("U", None, 1), ("", None, 0)],
)
def test_sexes(text, sex, odd) -> None:
    counts = Counter[str]()
    assert parse_sex(text, counts) == sex
    assert counts[SEX] == odd


def test_run_lengths_minus_one_and_blanks() -> None:
    counts = Counter[str]()
    cells = [("a", "-1"), ("b", "1 2"), ("b", " -1 "), ("b", "1 2"), ("c", ""), ("c", "nan"), ("b", "9 1")]
    assert gather_runs(cells, counts) == {"a": [], "b": ["1 2", "9 1"], "c": []}
    assert counts == {REPEATED_MASK: 1, DENIED: 1, BLANK_RUNS: 2}


# --- Tables of images --------------------------------------------------------------------------------------------


def test_nih(tmp_path) -> None:
    rows = [
        nih_row("1", 0, "Mass", "058Y"),
        nih_row("1", 0, "Mass", "058Y"),
        nih_row("1", 0, "Edema", "060Y"),
        nih_row("2", 0, "", "018M") | {"Patient Gender": "O"},
        nih_row("3", 0, "Hernia", "103"),
        nih_row("4", 0, "Hernia", "411"),
        nih_row("5", 0, "Hernia", "old"),
        nih_row("6", 0, "Hernia", "40"),
        nih_row("6", 0, "Hernia", "40") | {"Patient ID": "7"},
    ]
    write_csv(tmp_path / "Data_Entry_2017.csv", rows)
    names = dict.fromkeys(row["Image Index"] for row in rows)
    (tmp_path / "train_val_list.txt").write_text("\n".join(names))
    (tmp_path / "test_list.txt").write_text("00000099_000.png\n")
    for name in names:
        touch(tmp_path / "images" / name)
    conversion = nih.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert [study.patient["age"] for study in studies.values()] == [58, 1.5, 103, None, None]
    assert {name for name, label in studies["00000001_000"].labels.items() if label} == {"Mass"}
    assert (studies["00000002_000"].labels, studies["00000002_000"].patient["sex"]) == ({}, None)
    assert counted(conversion) == {
        SEX: 1,
        AGE: 1,
        MONTHS: 1,
        OLD: 1,
        REPEATED: 3,
        OTHER_LABELS: 1,
        OTHER_PATIENT: 1,
        "Rows without finding, whose labels are unknown": 1,
        TOO_OLD: 1,
    }
    assert dropped(conversion)["under two subjects"] == 1


def test_chexpert(tmp_path) -> None:
    def row(path: str, **changes: str) -> dict[str, str]:
        path = f"CheXpert-v1.0-small/train/{path}.jpg"
        return (
            {"Path": path, "Sex": "Female", "Age": "61", "AP/PA": "AP"} | dict.fromkeys(chexpert.LABELS, "") | changes
        )

    rows = [
        row("patient00001/study1/view1_frontal", Edema="1.0", Fracture=""),
        row("patient00001/study1/view1_frontal", Edema="1.0"),
        row("patient00001/study1/view2_frontal", Edema="-1.0", Fracture="0.0", Age="62"),
        row("patient00002/study1/view1_frontal", Sex="Unknown", Age="0"),
    ]
    write_csv(tmp_path / "train.csv", rows)
    for one in rows:
        touch(tmp_path / one["Path"].partition("/")[2])
    conversion = chexpert.convert(tmp_path)
    first, second = by_id(tmp_path / "studies.jsonl").values()
    assert [image.path.name for image in first.images] == ["view1_frontal.jpg", "view2_frontal.jpg"]
    assert (first.labels["Edema"], first.labels["Fracture"], first.patient["age"]) == (1, 0, 61)
    assert second.patient == {"sex": None, "age": None}
    assert counted(conversion) == {REPEATED: 1, OTHER_LABELS: 1, OTHER_PATIENT: 1, SEX: 1, NEWBORN: 1}


def test_chexpert_plus(tmp_path) -> None:
    rows = [
        chexpert_row(1, "view1_frontal"),
        chexpert_row(1, "view1_frontal", section_findings="SOMETHING ELSE."),
        chexpert_row(2, "view1_frontal", sex="O", age="old"),
        chexpert_row(3, "view1_frontal", age="0.0"),
        chexpert_row(4, "view1_frontal"),
        chexpert_row(4, "view2_frontal", deid_patient_id="patient00009"),
    ]
    write_csv(tmp_path / "df_chexpert_plus_240401.csv", rows)
    for row in rows:
        touch(tmp_path / row["path_to_image"])
    conversion = chexpert_plus.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert [*studies] == ["patient00001_study1", "patient00002_study1", "patient00003_study1"]
    assert len(studies["patient00001_study1"].images) == 1
    assert [(study.patient["sex"], study.patient["age"]) for study in studies.values()] == [
        ("F", 61),
        (None, None),
        ("F", None),
    ]
    assert counted(conversion) == {REPEATED: 1, OTHER_TEXT: 1, SEX: 1, AGE: 1, NEWBORN: 1}
    assert dropped(conversion)["under two subjects"] == 1


def test_mimic_cxr(tmp_path) -> None:
    studies = [("d1", "1", "s1"), ("d1", "1", "s1"), ("d2", "1", "s2"), ("d3", "2", "s2")]
    rows = [
        {"dicom_id": dicom, "subject_id": f"1000000{subject}", "study_id": study[1:], "ViewPosition": "AP"}
        for dicom, subject, study in studies
    ]
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv", rows)
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", [row | {"split": "train"} for row in rows])
    labels = [{"study_id": "1", "Edema": value} for value in ("1.0", "0.0")]
    write_csv(tmp_path / "mimic-cxr-2.0.0-chexpert.csv", labels)
    for row in rows:
        base = tmp_path / "files" / "p10" / f"p{row['subject_id']}" / f"s{row['study_id']}"
        touch(base / f"{row['dicom_id']}.jpg")
    conversion = mimic_cxr.convert(tmp_path, sections=())
    [study] = by_id(tmp_path / "studies.jsonl").values()
    assert (study.study_id, len(study.images), study.labels) == ("s1", 1, {"Edema": 1})
    assert counted(conversion) == {
        REPEATED: 1,
        "Rows of mimic-cxr-2.0.0-chexpert.csv that repeat a study, left out": 1,
    }
    assert dropped(conversion)["under two subjects"] == 1


def test_iu_xray(tmp_path) -> None:
    for name, number, findings in (("1", 1, "Clear."), ("2", 2, "Edema."), ("3", 1, "Something else.")):
        (tmp_path / f"{name}.xml").write_text(iu_xml(number, findings, f"CXR{number}_IM-0001-1001"))
        touch(tmp_path / f"CXR{number}_IM-0001-1001.png")
    conversion = iu_xray.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert {name: study.sections["findings"] for name, study in studies.items()} == {"CXR1": "Clear.", "CXR2": "Edema."}
    assert len(studies["CXR1"].images) == 1
    assert counted(conversion) == {"Reports that repeat a study": 1, REPEATED: 1, OTHER_TEXT: 1}


def test_r2gen(tmp_path) -> None:
    entry = {"id": "a", "report": "Clear.", "image_path": ["a.png"]}
    entries = [
        entry,
        entry,
        entry | {"report": "Edema.", "image_path": ["b.png"]},
        entry | {"id": "c", "subject_id": 1},
        entry | {"id": "c", "subject_id": 2},
    ]
    conversion = r2gen.convert(r2gen_tree(tmp_path, {"train": entries}))
    [study] = by_id(tmp_path / "studies.jsonl").values()
    assert ([image.path.name for image in study.images], study.sections) == (["a.png", "b.png"], {"findings": "Clear."})
    assert counted(conversion) == {"Entries that repeat an id": 3, REPEATED: 2, OTHER_TEXT: 1}
    assert dropped(conversion)["under two subjects"] == 1


def test_folder(tmp_path) -> None:
    rows = [("a.png", "s1", "A", "Clear."), ("a.png", "s1", "A", "Clear."), ("b.png", "s1", "A", "Edema.")]
    rows += [("c.png", "s2", "A", "Clear."), ("d.png", "s2", "B", "Clear.")]
    columns = ("image", "study_id", "patient_id", "findings")
    write_csv(tmp_path / "list.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    for name, *_ in rows:
        touch(tmp_path / name)
    conversion = folder.convert(tmp_path, table=tmp_path / "list.csv")
    [study] = by_id(tmp_path / "studies.jsonl").values()
    assert ([image.path.name for image in study.images], study.sections) == (["a.png", "b.png"], {"findings": "Clear."})
    assert counted(conversion) == {REPEATED: 1, OTHER_TEXT: 1}
    assert dropped(conversion)["under two subjects"] == 1
    write_csv(tmp_path / "list.csv", [{"image": "a.png"}, {"image": "a.png"}])
    assert counted(folder.convert(tmp_path, table=tmp_path / "list.csv")) == {REPEATED: 1}


def test_covid(tmp_path) -> None:
    rows = [
        COVID,
        COVID,
        COVID | {"filename": "b.jpg", "age": "66", "sex": "M"},
        COVID | {"patientid": "9", "filename": "c.jpg", "age": "70s", "sex": "U", "clinical_notes": "Else."},
        COVID | {"patientid": "8", "filename": "d.jpg", "age": "?", "modality": "CT", "clinical_notes": "Of a CT."},
    ]
    write_csv(tmp_path / "metadata.csv", rows)
    for row in rows:
        touch(tmp_path / row["folder"] / row["filename"])
    conversion = covid.convert(tmp_path)
    first, second = by_id(tmp_path / "studies.jsonl").values()
    assert (first.patient["age"], len(first.images)) == (65, 2)
    assert second.patient == {"sex": None, "age": None}
    subjects = {"patientids: 3, subjects by file, note and address": 3}
    assert counted(conversion) == subjects | {OTHER_PATIENT: 1, SEX: 1, AGE: 1, REPEATED: 1}


# --- Readers, labels, masks --------------------------------------------------------------------------------------


@pytest.fixture
def vindr(tmp_path) -> Path:
    """A train image on whose labels three readers differ (one of them is there twice), and a test image."""
    votes = [("R1", "1", "0", ""), ("R1", "1", "0", ""), ("R2", "0", "1", "1"), ("R3", "0", "1", "")]
    columns = ("rad_id", "Cardiomegaly", "Edema", "Mass")
    rows = [{"image_id": "a"} | dict(zip(columns, vote, strict=True)) | {"No finding": "0"} for vote in votes]
    write_csv(tmp_path / "annotations" / "image_labels_train.csv", rows)
    row = {"image_id": "t", "Cardiomegaly": "0", "Edema": "0", "Mass": "1", "No finding": "0"}
    write_csv(tmp_path / "annotations" / "image_labels_test.csv", [row])
    write_dicom(tmp_path / "train" / "a.dicom", PatientAge="030M", PatientSex="O")
    write_dicom(tmp_path / "test" / "t.dicom", PatientAge="105Y", PatientSex="F")
    return tmp_path


@pytest.mark.parametrize(
    ("readers", "labels"),
    [
        ("majority", {"Cardiomegaly": 0, "Edema": 1, "Mass": 1, "No finding": 0}),
        ("union", {"Cardiomegaly": 1, "Edema": 1, "Mass": 1, "No finding": 0}),
        ("adjudicated", None),
    ],
)
def test_vindr_cxr_several_readers(vindr, readers, labels) -> None:
    conversion = vindr_cxr.convert(vindr, readers=readers)
    studies = by_id(vindr / "studies.jsonl")
    assert {name: study.labels for name, study in studies.items() if study.split != "test"} == (
        {"a": labels} if labels else {}
    )
    assert studies["t"].labels["Mass"] == 1
    told = {"Rows that repeat a reader of an image, left out": 1, "Labels on which the readers of an image differ": 2}
    assert counted(conversion) == told | ({OLD: 1, SEX: 1, MONTHS: 1} if labels else {OLD: 1})
    assert dropped(conversion).get("labels not adjudicated") == (None if labels else 1)


def test_rsna(tmp_path) -> None:
    targets = [("a", "0"), ("a", "1"), ("b", ""), ("c", "0")]
    write_csv(tmp_path / "stage_2_train_labels.csv", [{"patientId": name, "Target": value} for name, value in targets])
    classes = [("a", "Lung Opacity"), ("a", "Normal"), ("b", "Normal"), ("c", "Normal")]
    rows = [{"patientId": name, "class": kind} for name, kind in classes]
    write_csv(tmp_path / "stage_2_detailed_class_info.csv", rows)
    for name, age in (("a", "018M"), ("b", "155"), ("c", "?")):
        write_dicom(tmp_path / "stage_2_train_images" / f"{name}.dcm", PatientSex="U", PatientAge=age)
    conversion = rsna.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert [study.labels for study in studies.values()] == [
        {"Pneumonia": 1, "No Finding": 0},
        {"Pneumonia": None, "No Finding": 1},
        {"Pneumonia": 0, "No Finding": 1},
    ]
    assert [study.patient for study in studies.values()] == [{"sex": None, "age": age} for age in (1.5, None, None)]
    assert counted(conversion) == {
        "Rows whose class differs from the first of their image, which counts": 1,
        "Rows without Target, which say nothing of Pneumonia": 1,
        "Images with a Target of 0 and of 1, of which the 1 counts": 1,
        TOO_OLD: 1,
        SEX: 3,
        MONTHS: 1,
        AGE: 1,
    }


def test_siim(tmp_path) -> None:
    codes = [("1.1", " -1"), ("1.1", "0 2"), ("1.1", "0 2"), ("1.2", ""), ("1.3", "1048570 7"), ("1.4", "-1")]
    write_csv(tmp_path / "train-rle.csv", [{"ImageId": name, " EncodedPixels": code} for name, code in codes])
    for number in range(1, 5):
        write_dicom(tmp_path / "dicom-images-train" / f"1.{number}.dcm", PatientSex="F", PatientAge="32")
    conversion = siim.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert [study.labels["Pneumothorax"] for study in studies.values()] == [1, 0, 1, 0]
    assert mask_of(studies["1.1"], "pneumothorax").sum() == 2
    assert studies["1.3"].images[0].masks == {}
    assert counted(conversion) == {REPEATED_MASK: 1, DENIED: 1, BLANK_RUNS: 1}
    [note] = (note for note in conversion.notes if note.startswith("Masks that cannot be drawn, left out: 1 (first: "))
    assert "image 1.3, pneumothorax: Run lengths (relative) leave an image of 1024 x 1024 pixels" in note


def test_candid_ptx(tmp_path) -> None:
    columns = ("SOPInstanceUID", "filename", "EncodedPixels", "Report")
    rows = [("1", "A_1.jpg", "0 2", "Left."), ("1", "A_1.jpg", "-1", "Right."), ("2", "A_2.jpg", "", "Normal.")]
    rows += [("3", "A_3.jpg", "-1", "Normal."), ("3", "B_3.jpg", "-1", "Normal.")]
    write_csv(tmp_path / "Pneumothorax_reports.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    tubes = [{"anon_SOPUID": "1", "mask_rle": code} for code in ("0 1", "0 1")]
    write_csv(tmp_path / "chest_tube.csv", tubes)
    write_csv(tmp_path / "acute_rib_fracture.csv", [{"anon_SOPUID": "2", "mask_rle": "5"}])
    for number in range(1, 4):
        write_dicom(tmp_path / "dataset" / str(number), PatientSex="M")
    conversion = candid_ptx.convert(tmp_path)
    first, second = by_id(tmp_path / "studies.jsonl").values()
    assert first.labels == {"Pneumothorax": 1, "Chest Tube": 1, "Rib Fracture": 0}
    assert first.sections == {"findings": "Left."}
    assert second.labels == {"Pneumothorax": 0, "Chest Tube": 0, "Rib Fracture": 1}
    assert (sorted(first.images[0].masks), second.images[0].masks) == (["chest tube", "pneumothorax"], {})
    assert counted(conversion) == {OTHER_TEXT: 1, DENIED: 1, REPEATED_MASK: 1, BLANK_RUNS: 1}
    assert dropped(conversion)["under two subjects"] == 1
    assert any(
        "Masks that cannot be drawn, left out: 1 (first: image 2, rib fracture" in note for note in conversion.notes
    )


def test_vindr_ribcxr(tmp_path) -> None:
    film = "Data/VinDr_RibCXR_train_001.png"
    inside, beyond = ([{"x": x, "y": y} for x, y in ((2, 2), (2, right), (8, right))] for right in (8, 40))
    for part, images in (("train", {"0": film, "1": film}), ("val", {})):
        table = {"img": images} | {rib: dict.fromkeys(images, "None") for rib in vindr_ribcxr.RIBS}
        if images:
            table["R1"] = {"0": beyond, "1": inside}
        (tmp_path / f"Vindr_RibCXR_{part}_mask.json").write_text(json.dumps(table))
    write_picture(tmp_path / film, np.zeros((20, 30), np.uint8))
    conversion = vindr_ribcxr.convert(tmp_path)
    [study] = by_id(tmp_path / "studies.jsonl").values()
    mask = mask_of(study, "R1")
    assert mask.shape == (20, 30)
    assert mask[-1].any(), "the first of the two counts, up to the edge"
    assert counted(conversion) == {BEYOND: 1, REPEATED: 1}


def test_lung_masks(tmp_path) -> None:
    for number, reading in ((1, "male 16month\nnormal"), (2, "female 110yrs\nnormal"), (3, "male 130yrs\nnormal")):
        name = f"CHNCXR_000{number}_0"
        write_picture(tmp_path / "CXR_png" / f"{name}.png", np.zeros((8, 8), np.uint8))
        (tmp_path / "ClinicalReadings").mkdir(exist_ok=True)
        (tmp_path / "ClinicalReadings" / f"{name}.txt").write_text(reading)
    conversion = lung_masks.convert("shenzhen", tmp_path)
    assert [study.patient["age"] for study in conversion.studies] == [1.33, 110, None]
    assert counted(conversion) == {MONTHS: 1, OLD: 1, TOO_OLD: 1}


# --- What still stops --------------------------------------------------------------------------------------------


def test_no_mask_at_all_that_can_be_drawn_is_refused_with_the_first(tmp_path) -> None:
    codes = [("1.1", "1048570 7"), ("1.2", "5")]
    write_csv(tmp_path / "train-rle.csv", [{"ImageId": name, "EncodedPixels": code} for name, code in codes])
    for name, _ in codes:
        write_dicom(tmp_path / f"{name}.dcm")
    with pytest.raises(CorpusError, match=r"siim: image 1\.1, pneumothorax: Run lengths"):
        siim.convert(tmp_path)
    assert not (tmp_path / "studies.jsonl").exists()


def test_a_study_of_two_subjects_is_left_out_even_where_these_are_in_two_splits(tmp_path) -> None:
    columns = ("image", "study_id", "patient_id", "split")
    rows = [("a.png", "s1", "A", "train"), ("b.png", "s1", "B", "test"), ("c.png", "s2", "A", "train")]
    write_csv(tmp_path / "list.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    for name, *_ in rows:
        touch(tmp_path / name)
    conversion = folder.convert(tmp_path, table=tmp_path / "list.csv")
    assert [study.study_id for study in conversion.studies] == ["s2"]
    assert conversion.studies[0].extra == {}
    assert (conversion.n_read, dropped(conversion)["under two subjects"]) == (2, 1)


def test_an_image_of_mimic_cxr_in_two_splits_is_refused(tmp_path) -> None:
    row = {"dicom_id": "d1", "subject_id": "10000001", "study_id": "1", "ViewPosition": "AP"}
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv", [row])
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", [row | {"split": split} for split in ("train", "train", "test")])
    with pytest.raises(
        CorpusError, match=r"split\.csv line 4: image 'd1' is in split 'test'; earlier it is in 'train'"
    ):
        mimic_cxr.convert(tmp_path, sections=(), labels="none")


def test_a_tree_without_odd_rows_says_nothing_of_them(tmp_path) -> None:
    write_csv(tmp_path / "list.csv", [{"image": "a.png", "patient_id": "A"}])
    touch(tmp_path / "a.png")
    conversion = folder.convert(tmp_path, table=tmp_path / "list.csv")
    assert counted(conversion) == {}
    assert dropped(conversion) == {"no image file on disk": 0}
