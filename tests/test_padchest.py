"""PadChest and PadChest-GR. The trees have the official layouts; names and numbers in them are made up."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generator.corpora import padchest
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
        "an age above 100, which stays: 1",
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


def test_padchest_without_its_table_or_with_another(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"PADCHEST_chest_x_ray_images_labels.*bimcv.*--table"):
        padchest.convert(tmp_path)
    write_csv(tmp_path / TABLE, [{"ImageID": "a1.png", "StudyID": "1"}])
    with pytest.raises(CorpusError, match=r"no column 'ImageDir'\. Columns: ImageID, StudyID"):
        padchest.convert(tmp_path)
    write_csv(tmp_path / TABLE, [row("a1", "1", "A")])
    with pytest.raises(CorpusError, match=r"no study is left(.|\n)*no image file on disk"):
        padchest.convert(tmp_path)
