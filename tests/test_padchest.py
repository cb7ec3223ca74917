"""PadChest and PadChest-GR. The trees have the official layouts; names and numbers in them are made up."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generator.corpora import padchest, padchest_gr
from generator.corpora.common import CorpusError, hash_split
from tests.test_corpora import by_id, dropped, write_csv

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def film(path: Path, size: tuple[int, int] = (4, 4)) -> Path:
    """A PNG of 16 bits, as PadChest has them; height and width."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(size[0] * size[1], dtype=np.uint16).reshape(size)).save(path)
    return path


def row(image: str, study: str, patient: str, labels: str = "['normal']", **changes: str) -> dict[str, str]:
    """A row of the table; a line break stands in the report, as in some rows of the real one."""
    return {
        "": "0",
        "ImageID": f"{image}.png",
        "ImageDir": "0",
        "StudyDate_DICOM": "20140915",
        "StudyID": study,
        "PatientID": patient,
        "PatientBirth": "1930.0",
        "PatientSex_DICOM": "F",
        "ViewPosition_DICOM": "LATERAL",
        "Projection": "PA",
        "Report": " sin hallazg .\n sin cambi .",
        "MethodLabel": "Physician",
        "Labels": labels,
    } | changes


ROWS = [
    row("a1", "1", "A", "[' Pleural  effusion', 'COPD signs ', 'pseudonodule']"),
    row("a2", "1", "A", "[' Pleural  effusion', 'COPD signs ', 'pseudonodule']", Projection="L"),
    row("b1", "2", "B", "['normal', 'unchanged', '']", Projection="AP_horizontal", MethodLabel="RNN_model"),
    row("c1", "3", "C", "['normal', 'nodule']", ImageDir="54", PatientSex_DICOM="O", PatientBirth=""),
    row("d1", "4", "D", "nan", PatientSex_DICOM="M"),
    row("d2", "5", "D", "['exclude', 'pneumonia']", PatientSex_DICOM="F"),
    row("e1", "6", "E", "['unchanged']", PatientBirth="1910.0"),
    row("f1", "7", "F", "['callus rib fracture']", PatientBirth="1950.0"),
    row("f2", "8", "F", "['multiple nodules']", PatientBirth="1931.0"),
    row("g1", "9", "G"),
    row("g2", "9", "H"),  # one study of two patients
    row("h1", "10", "H"),
    row("i1", "11", "I", Projection="COSTAL"),
    row("j1", "12", "J"),  # cut
    row("k1", "13", "K"),  # not on disk
    row("a1", "1", "A"),  # twice in the table
]


@pytest.fixture
def root(tmp_path) -> Path:
    write_csv(tmp_path / TABLE, ROWS)
    for one in ROWS:
        film(tmp_path / one["ImageDir"] / one["ImageID"])
    cut = tmp_path / "0" / "j1.png"
    cut.write_bytes(cut.read_bytes()[:-12] + bytes(12))
    (tmp_path / "0" / "k1.png").unlink()
    return tmp_path


def test_padchest(root):
    conversion = padchest.convert(root)
    studies = by_id(root / "studies.jsonl")
    assert list(studies) == ["1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]
    assert [image.view for image in studies["1"].images] == ["PA"]
    assert [image.view for image in studies["2"].images] == ["AP SUPINE"]
    assert studies["3"].images[0].path == root / "54" / "c1.png"
    assert studies["1"].extra == {"study_date": "20140915", "labels_by": "physicians"}
    assert studies["2"].extra["labels_by"] == "network"
    assert not any(study.sections for study in studies.values())
    assert "hallazg" not in (root / "studies.jsonl").read_text()
    assert all(study.split == hash_split(study.subject_id) for study in studies.values())
    assert dropped(conversion) == {
        "Projection COSTAL, EXCLUDE or UNK": 1,
        "no frontal image": 0,
        "no image file on disk": 1,
        "a cut file": 1,
    }
    assert "Rows that repeat an image, left out: 1" in conversion.notes


def test_padchest_labels_are_whole_terms(root):
    conversion = padchest.convert(root)
    labels = {name: study.labels for name, study in by_id(root / "studies.jsonl").items()}
    found = {name: [label for label, value in said.items() if value] for name, said in labels.items()}
    assert found["1"] == ["copd signs", "pleural effusion", "pseudonodule"]
    assert labels["1"]["nodule"] == labels["1"]["No Finding"] == 0
    assert found["2"] == ["No Finding"]
    assert found["3"] == ["nodule"]
    assert labels["4"] == labels["5"] == labels["6"] == {}
    assert found["7"] == ["callus rib fracture"]
    assert labels["7"]["rib fracture"] == 0
    assert set(labels["1"]) == set(padchest.LABELS)
    notes = "\n".join(conversion.notes)
    assert "called normal beside a finding, which counts: 1" in notes
    assert "have the term exclude: 1" in notes
    assert "have no term that is a finding, nor normal: 2" in notes
    assert "Terms that are not written: 1, such as multiple nodules (1 films)" in notes


def test_padchest_labels_by_name(root):
    padchest.convert(root, labels=("multiple nodules", "No Finding"))
    studies = by_id(root / "studies.jsonl")
    assert studies["8"].labels == {"multiple nodules": 1, "No Finding": 0}
    assert studies["9"].labels == {"multiple nodules": 0, "No Finding": 1}
    with pytest.raises(CorpusError, match=r"no film has the label 'multiple nodule'\. Did you mean multiple nodules\?"):
        padchest.convert(root, labels=("multiple nodule",))


def test_padchest_patients(root):
    conversion = padchest.convert(root)
    studies = by_id(root / "studies.jsonl")
    assert studies["1"].patient == {"sex": "F", "age": 84}
    assert studies["3"].patient == {"sex": None, "age": None}
    assert studies["4"].patient == studies["5"].patient == {"sex": None, "age": 84}
    assert studies["6"].patient["age"] == 104
    assert studies["7"].patient == studies["8"].patient == {"sex": "F", "age": None}
    assert studies["9"].subject_id == studies["10"].subject_id == "G"
    notes = "\n".join(conversion.notes)
    for what in (
        "a sex that is neither M nor F: 1",
        "two sexes, which are left out: 1",
        "two years of birth, which are left out: 1",
        "Ages of 101 to 120, kept: 1",
        "two patients, who count as one subject: 1",
    ):
        assert what in notes


def test_padchest_all_views_of_a_flat_folder_of_jpegs(tmp_path):
    write_csv(tmp_path / TABLE, ROWS[:3])
    for one in ROWS[:3]:
        film(tmp_path / "small" / one["ImageID"]).rename(tmp_path / "small" / f"{one['ImageID'][:-4]}.jpg")
    padchest.convert(tmp_path, images=tmp_path / "small", views="all")
    images = by_id(tmp_path / "studies.jsonl")["1"].images
    assert [(image.path.name, image.view) for image in images] == [("a1.jpg", "PA"), ("a2.jpg", "LATERAL")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Projection": "OBLIQUE"}, r"01\.02\.19\.csv line 3: unknown Projection 'OBLIQUE'\. Choices: PA, AP"),
        ({"MethodLabel": "Nobody"}, "line 3: unknown MethodLabel 'Nobody'. Choices: Physician, RNN_model"),
        ({"Labels": "normal"}, r"line 3: Labels must be a list such as \['normal'\], got 'normal'"),
        ({"Labels": "[1, 2]"}, r"line 3: Labels must be a list such as \['normal'\], got '\[1, 2\]'"),
        ({"PatientBirth": "old"}, "line 3, PatientBirth: expected a year, or a date like 20140915, got 'old'"),
        ({"StudyDate_DICOM": "15/09/2014"}, "line 3, StudyDate_DICOM: expected a year.* got '15/09/2014'"),
    ],
)
def test_padchest_names_line_and_value_of_a_bad_cell(tmp_path, changes, message):
    write_csv(tmp_path / TABLE, [row("a1", "1", "A") | changes])
    with pytest.raises(CorpusError, match=message):
        padchest.convert(tmp_path)


def test_padchest_cells_that_a_spreadsheet_rewrote(tmp_path):
    odd = {"Projection": "PA ", "MethodLabel": " ", "StudyDate_DICOM": "20140915.0", "ImageDir": "0.0"}
    write_csv(tmp_path / TABLE, [row("a1", "1", "A", **odd), row("b1", "2", "B", PatientBirth="2015.0 ")])
    for name in ("a1", "b1"):
        film(tmp_path / "0" / f"{name}.png")
    conversion = padchest.convert(tmp_path)
    first, second = by_id(tmp_path / "studies.jsonl").values()
    assert [image.view for image in first.images] == ["PA"]
    assert first.extra == {"study_date": "20140915", "labels_by": "unknown"}
    assert (first.patient["age"], second.patient["age"]) == (84, None)
    assert "Studies before the year of their patient's birth, without age: 1" in conversion.notes


def test_padchest_without_its_table_or_with_another(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"PADCHEST_chest_x_ray_images_labels.*bimcv.*--table"):
        padchest.convert(tmp_path)
    write_csv(tmp_path / TABLE, [{"ImageID": "a1.png", "StudyID": "1"}])
    with pytest.raises(CorpusError, match=r"no column 'ImageDir'\. Columns: ImageID, StudyID"):
        padchest.convert(tmp_path)
    write_csv(tmp_path / TABLE, [row("a1", "1", "A")])
    with pytest.raises(CorpusError, match=r"no study is left(.|\n)*no image file on disk"):
        padchest.convert(tmp_path)


# --- PadChest-GR -------------------------------------------------------------------------------------------------


def finding(english: str, spanish: str, labels: tuple[str, ...] = (), boxes: tuple = (), **more) -> dict:
    """A sentence; as in the set, one that is not abnormal has neither labels nor boxes."""
    told = {"sentence_en": english, "sentence_es": spanish, "abnormal": bool(labels)}
    if labels:
        told |= {"labels": list(labels), "boxes": list(boxes), "extra_boxes": [], "locations": [], "progression": None}
    return told | more


ENTRIES = [
    {
        "StudyID": "1",
        "ImageID": "1_a.png",
        "PreviousStudyID": None,
        "findings": [
            finding(
                "Two nodules.", "Dos nódulos.", ("Nodule ",), ([0.1, 0.1, 0.3, 0.2], [0.8, 0.5, 1.2, 0.7], [2, 2, 3, 3])
            ),
            finding("No pleural effusion", "Sin derrame pleural"),
            finding(
                "Scoliosis.",
                "Escoliosis.",
                ("scoliosis", "nodule"),
                ([0.4, 0.4, 0.5, 0.5],),
                extra_boxes=[[0, 0, 1, 0.1]],
            ),
        ],
    },
    {"StudyID": "2", "ImageID": "2_b.png", "findings": [finding("Normal.", "Normal.")]},
    {"StudyID": "3", "ImageID": "3_c.png", "findings": [finding("", "Catéter.", ("catheter",), ([0, 0, 0, 1],))]},
    {"StudyID": "4", "ImageID": "4_d.png", "findings": [finding("Cut file.", "Cortado.")]},
    {"StudyID": "5", "ImageID": "5_e.png", "findings": [finding("Not in the table.", "No.")]},
    {"StudyID": "1", "ImageID": "1_a.png", "findings": []},
]


@pytest.fixture
def grounded(tmp_path) -> Path:
    (tmp_path / "grounded_reports_20240819.json").write_text(json.dumps(ENTRIES))
    rows = [
        {"StudyID": study, "PatientID": patient, "split": split, "PatientSex_DICOM": sex, "PatientAge": age}
        for study, patient, split, sex, age in [
            ("1", "A", "train", "F", "71"),
            ("1", "A", "train", "F", "71"),  # a row for each sentence
            ("2", "B", "validation", "M", "40"),
            ("3", "C", "test", "M", ""),
            ("4", "D", "test", "M", "50"),
        ]
    ]
    write_csv(tmp_path / "master_table.csv", rows)
    for entry in ENTRIES:
        path = film(tmp_path / "Padchest_GR_files" / "PadChest_GR" / entry["ImageID"], (100, 200))
        if entry["StudyID"] == "4":
            path.write_bytes(path.read_bytes()[:-40])
    return tmp_path


def mask_of(study, structure: str) -> np.ndarray:
    return np.asarray(Image.open(study.images[0].masks[structure])) > 0


def test_padchest_gr(grounded):
    conversion = padchest_gr.convert(grounded)
    studies = by_id(grounded / "studies.jsonl")
    assert {name: (study.subject_id, study.split) for name, study in studies.items()} == {
        "1": ("A", "train"),
        "2": ("B", "val"),
    }
    first, second = studies.values()
    assert first.sections == {"findings": "Two nodules. No pleural effusion. Scoliosis."}
    assert first.labels == {"catheter": 0, "nodule": 1, "scoliosis": 1, "No Finding": 0}
    assert second.labels == {"catheter": 0, "nodule": 0, "scoliosis": 0, "No Finding": 1}
    assert first.patient == {"sex": "F", "age": 71}
    assert first.images[0].view == "FRONTAL"
    assert (set(first.images[0].masks), second.images[0].masks) == ({"nodule", "scoliosis"}, {})
    assert dropped(conversion) == {"no image file on disk": 0, "a cut file": 1, "no findings": 1}
    assert set(conversion.notes[:-1]) == {
        "Boxes and outlines that reach beyond the film, cut at its edge: 1",
        "Boxes without an area in the film, left out: 1",
        "Sentences without a text as sentence_en: 1",
        "Studies that master_table.csv lacks, left out: 1",
        "Entries that repeat a study, left out: 1",
    }


def test_padchest_gr_masks_are_the_union_of_the_boxes_of_a_label(grounded):
    padchest_gr.convert(grounded)
    study = by_id(grounded / "studies.jsonl")["1"]
    wanted = np.zeros((100, 200), bool)
    wanted[40:50, 80:100] = True
    assert (mask_of(study, "scoliosis") == wanted).all()
    wanted[10:20, 20:60] = wanted[50:70, 160:200] = True
    assert (mask_of(study, "nodule") == wanted).all()
    padchest_gr.convert(grounded, readers="both")
    study = by_id(grounded / "studies.jsonl")["1"]
    wanted = np.zeros((100, 200), bool)
    wanted[40:50, 80:100] = wanted[:10] = True
    assert (mask_of(study, "scoliosis") == wanted).all()


@pytest.mark.parametrize("box", [None, [0.1, 0.2, 0.3], [0, 0, "wide", 1]])
def test_padchest_gr_names_what_is_no_box(grounded, box):
    entry = {"StudyID": "2", "ImageID": "2_b.png", "findings": [finding("Nodule.", "Nódulo.", ("nodule",), (box,))]}
    (grounded / "grounded_reports_20240819.json").write_text(json.dumps([entry]))
    with pytest.raises(CorpusError, match="study 2: a box is "):
        padchest_gr.convert(grounded)


def test_padchest_gr_masks_stay_in_their_folder(grounded):
    labels = ("../../../evil", "a/b", "a b")
    sentence = finding("Odd.", "Raro.", labels, ([0.1, 0.1, 0.3, 0.2],))
    entry = {"StudyID": "2", "ImageID": "2_b.png", "findings": [sentence]}
    (grounded / "grounded_reports_20240819.json").write_text(json.dumps([entry]))
    conversion = padchest_gr.convert(grounded)
    masks = by_id(grounded / "studies.jsonl")["2"].images[0].masks
    assert {name: path.relative_to(grounded / "masks").as_posix() for name, path in masks.items()} == {
        "../../../evil": "_________evil/2.png",
        "a/b": "a_b/2.png",
    }
    assert "image 2, a b: " in str(conversion)
    assert "a_b/2.png is the mask of another image or structure" in str(conversion)


def test_padchest_gr_in_spanish_with_the_table_in_its_zip(grounded):
    table = grounded / "master_table.csv"
    with zipfile.ZipFile(f"{table}.zip", "w") as archive:
        archive.write(table, "master_table.csv")
    table.unlink()
    padchest_gr.convert(grounded, language="es")
    studies = by_id(grounded / "studies.jsonl")
    assert studies["1"].sections["findings"] == "Dos nódulos. Sin derrame pleural. Escoliosis."
    assert studies["3"].sections["findings"] == "Catéter."
    assert studies["3"].images[0].masks == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"1": []}', "expected a list of studies, got dict"),
        ("[{}]", "entry 0: expected an object with StudyID, ImageID and findings; StudyID is wrong"),
        (
            '[{"StudyID": "1", "ImageID": "1_a.png", "findings": ["Normal."]}]',
            "entry 0, study 1: a finding must be an object",
        ),
        (
            '[{"StudyID": "1", "ImageID": "1_a.png", "findings": [{"abnormal": "False"}]}]',
            "entry 0, study 1: abnormal must be true or false, got 'False'",
        ),
        (
            '[{"StudyID": "1", "ImageID": "1_a.png", "findings": [{"abnormal": true, "labels": "nodule"}]}]',
            "entry 0, study 1: labels must be a list of texts, got 'nodule'",
        ),
        ("[", "not valid JSON"),
    ],
)
def test_padchest_gr_says_what_is_wrong_in_its_json(grounded, content, message):
    (grounded / "grounded_reports_20240819.json").write_text(content)
    with pytest.raises(CorpusError, match=rf"grounded_reports_20240819\.json.*{message}"):
        padchest_gr.convert(grounded)


def test_padchest_gr_names_its_files_and_a_cut_table(grounded):
    table = grounded / "master_table.csv"
    cut = grounded / "master_table.csv.zip"
    cut.write_bytes(b"PK\x03\x04 and no more")
    table.rename(grounded / "kept.csv")
    with pytest.raises(CorpusError, match=r"master_table\.csv\.zip: not a whole zip file"):
        padchest_gr.convert(grounded)
    with zipfile.ZipFile(cut, "w") as archive:
        archive.writestr("a.csv", "")
        archive.writestr("b.csv", "")
    with pytest.raises(CorpusError, match=r"master_table\.csv\.zip: expected one table, got a\.csv, b\.csv"):
        padchest_gr.convert(grounded)
    cut.unlink()
    with pytest.raises(FileNotFoundError, match=r"no master_table\.csv.*padchest-gr"):
        padchest_gr.convert(grounded)
    table.write_text("StudyID,PatientID,split\n1,A,dev\n")
    with pytest.raises(CorpusError, match=r"master_table\.csv line 2: unknown split 'dev'"):
        padchest_gr.convert(grounded)
