"""ReXGradient-160K. The trees have the official layout; names, numbers and texts in them are made up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from generator.corpora import rexgradient
from generator.corpora.common import CorpusError
from tests.test_corpora import by_id, dropped, touch


def entry(patient: str, study: str, views: list, **changes) -> dict:
    """A study of the metadata, with an image for each view."""
    folder = f"../deid_png/{patient}/{study}/studies/1.2.{study}/series/1.3/instances"
    return {
        "PatientID": patient,
        "StudyInstanceUid": f"1.2.{study}",
        "AccessionNumber": study,
        "PatientSex": "F",
        "PatientAge": "007Y",
        "StudyDate": 20140915,
        "Indication": "Cough.",
        "Comparison": "None",
        "Findings": "The lungs\n are clear.",
        "Impression": "Normal.",
        "ImagePath": [f"{folder}/{number}.png" for number in range(len(views))],
        "ImageViewPosition": views,
    } | changes


STUDIES = {
    "train": {
        "A_1": entry("A", "1", ["POSTERO_ANTERIOR", "LL", "KUB"]),
        "A_2": entry("A", "2", ["UNKNOWN", None], PatientSex="O", PatientAge="002D", Comparison="01/02/2014."),
        "B_3": entry("B", "3", ["PA"], Findings="None"),
        "C_4": entry("C", "4", ["LATERAL"]),
        "D_5": entry("D", "5", ["PA", "LATERAL"], ImageViewPosition=["PA"], PatientAge="adult"),
        "E_6": entry("E", "6", []),
        "F_7": entry("F", "7", ["AP"], ImagePath=["../deid_png/F/x.png"] * 2, ImageViewPosition=["AP", "AP"]),
    },
    "valid": {"G_8": entry("G", "8", ["PA"])},  # not on disk
    "test": {"H_9": entry("H", "9", ["AP AXIAL"], PatientAge=None, PatientSex=None, StudyDate=float("nan"))},
}


@pytest.fixture
def root(tmp_path) -> Path:
    (tmp_path / "metadata").mkdir()
    for part, studies in STUDIES.items():
        (tmp_path / "metadata" / f"{part}_metadata_view_position.json").write_text(json.dumps(studies))
        for path in (path for one in studies.values() for path in one["ImagePath"]):
            if part != "valid":
                touch(tmp_path / "metadata" / path)
    return tmp_path


def test_rexgradient(root):
    conversion = rexgradient.convert(root)
    studies = by_id(root / "studies.jsonl")
    assert {name: (study.subject_id, study.split) for name, study in studies.items()} == {
        "A_1": ("A", "train"),
        "A_2": ("A", "train"),
        "D_5": ("D", "train"),
        "F_7": ("F", "train"),
        "H_9": ("H", "test"),
    }
    views = {name: [image.view for image in study.images] for name, study in studies.items()}
    assert views == {"A_1": ["PA"], "A_2": [None, None], "D_5": [None, None], "F_7": ["AP"], "H_9": ["AP"]}
    assert studies["A_1"].sections == {
        "indication": "Cough.",
        "findings": "The lungs are clear.",
        "impression": "Normal.",
    }
    assert studies["A_2"].sections["comparison"] == "01/02/2014."
    assert studies["A_1"].extra == {"study_date": "20140915"}
    assert studies["H_9"].extra == {}
    assert dropped(conversion) == {
        "no image named": 1,
        "no frontal image": 1,
        "no image file on disk": 1,
        "no findings": 1,
    }
    assert conversion.first_missing == root / "deid_png/G/8/studies/1.2.8/series/1.3/instances/0.png"


def test_rexgradient_patients(root):
    conversion = rexgradient.convert(root)
    patients = {name: study.patient for name, study in by_id(root / "studies.jsonl").items()}
    assert patients["A_1"] == {"sex": "F", "age": 7}
    assert patients["A_2"] == {"sex": None, "age": 0.01}
    assert patients["D_5"] == {"sex": "F", "age": None}
    assert patients["H_9"] == {"sex": None, "age": None}
    for note in (
        "Films of a sex that is neither M nor F: 1",
        "Films whose age cannot be read: 1",
        "Studies with more or fewer views than images, whose views are not known: 1",
        "Images that their study names twice, taken once: 1",
    ):
        assert note in conversion.notes


def test_rexgradient_every_view_of_one_part(root):
    for part in ("valid", "test"):
        (root / "metadata" / f"{part}_metadata_view_position.json").unlink()
    conversion = rexgradient.convert(root, views="all", sections=())
    studies = by_id(root / "studies.jsonl")
    assert [image.view for image in studies["A_1"].images] == ["PA", "LL", "KUB"]
    assert studies["C_4"].images[0].view == "LATERAL"
    assert "findings" not in studies["B_3"].sections
    assert conversion.notes[:2] == ["No file of valid: left out", "No file of test: left out"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[1]", "train_metadata_view_position.json: expected an object of studies, got list"),
        ('{"A_1": {"ImagePath": []}}', "json, A_1: expected an object with PatientID and a list ImagePath"),
        ('{"A_1": {"PatientID": "A", "ImagePath": [7]}}', "json, A_1: an image must be a path, got 7"),
        (
            '{"A_1": {"PatientID": "A", "ImagePath": [], "Findings": ["Clear."]}}',
            r"json, A_1: Findings must be a text or null, got \"\['Clear",
        ),
        (
            '{"A_1": {"PatientID": "A", "ImagePath": []}, "B": {}, "A_1": {"PatientID": "B", "ImagePath": []}}',
            r"train_metadata_view_position\.json: the key 'A_1' stands twice in an object",
        ),
        ('{"A_1": {"PatientID": "A"', "train_metadata_view_position.json.*: not valid JSON"),
    ],
)
def test_rexgradient_says_what_is_wrong_in_its_json(root, content, message):
    (root / "metadata" / "train_metadata_view_position.json").write_text(content)
    with pytest.raises(CorpusError, match=message):
        rexgradient.convert(root)


def test_rexgradient_without_its_files(tmp_path):
    (tmp_path / "train_metadata.csv").write_text("id,Findings\n")
    with pytest.raises(FileNotFoundError, match=r"none of train_metadata_view_position\.json.*rajpurkarlab"):
        rexgradient.convert(tmp_path)


def test_rexgradient_patient_in_two_parts(root):
    file = root / "metadata" / "test_metadata_view_position.json"
    file.write_text(json.dumps({"A_10": entry("A", "1", ["PA"])}))
    with pytest.raises(CorpusError, match=r"subject 'A' is in split 'train'.*'test' \(study 'A_10'\)"):
        rexgradient.convert(root)
