"""DICOM files -> studies: views, exposures, priors, what is left out and why, pseudonymous ids."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import Dataset, config, uid

from generator.api import find_studies, name_with_files
from generator.clinic.films import film_of, same_exposure
from generator.clinic.grouping import as_studies, group
from generator.clinic.pseudonyms import Pseudonyms
from generator.corpora import folder
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage, read_studies
from tests.films import GONE, chest, write_dicom
from tests.test_cli import run

STUDY = "1.2.826.0.1.4711"


def film(path: Path, number: int, study: str = STUDY, **tags: object) -> Path:
    """A chest film of one patient; its UIDs and its pixels follow from the study and a number."""
    uids = {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1", "SOPInstanceUID": f"{study}.1.{number}"}
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_dicom(path, np.roll(chest(), number), **{**uids, "PatientID": "P1", "InstanceNumber": number, **tags})


def header(**tags: object) -> Dataset:
    dataset = Dataset()
    with config.disable_value_validation():
        for name, value in ({"Modality": "DX", "StudyInstanceUID": STUDY, "SOPInstanceUID": "1"} | tags).items():
            setattr(dataset, name, value)
    return dataset


def item(**tags: object) -> Dataset:
    dataset = Dataset()
    for name, value in tags.items():
        setattr(dataset, name, value)
    return dataset


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Two studies of a patient and one of another, among what a folder of an archive holds besides."""
    root, now = tmp_path / "archive", {"StudyDate": "20260131", "StudyTime": "0815"}
    raw = {"PresentationIntentType": "FOR PROCESSING", "SOPClassUID": uid.DigitalXRayImageStorageForProcessing}
    moment = {"AcquisitionDate": "20260131", "AcquisitionTime": "081533.2"}
    film(root / "a" / "1", 1, **now, **raw, **moment, ViewPosition="PA")
    film(root / "a" / "2", 2, **now, **moment, PatientOrientation=["A", "F"])
    film(root / "a" / "3", 3, **now, **moment, ViewPosition="PA", PresentationIntentType="FOR PRESENTATION")
    film(root / "a" / "3 again.dcm", 3, **now)
    film(root / "a" / "report.dcm", 4, **now, SOPClassUID=uid.BasicTextSRStorage, Modality="SR")
    film(root / "a" / "state.dcm", 5, **now, SOPClassUID=uid.GrayscaleSoftcopyPresentationStateStorage, Modality="PR")
    film(root / "b" / "old.dcm", 1, "1.2.1", StudyDate="20250131", ViewPosition="AP")
    film(root / "b" / "older.dcm", 1, "1.2.2", StudyDate="20240131", BodyPartExamined="")
    film(root / "b" / "same number.dcm", 1, "1.2.3", StudyDate="20251231", IssuerOfPatientID="ELSEWHERE")
    film(root / "c" / "hand.dcm", 1, "1.2.4", BodyPartExamined="HAND")
    film(root / "c" / "knee.dcm", 1, "1.2.5", BodyPartExamined=GONE, StudyDescription="Doe, Jane: both knees")
    film(root / "c" / "breast.dcm", 1, "1.2.6", Modality="MG", BodyPartExamined="")
    Image.fromarray(chest()).save(root / "c" / "scan.png")
    return root


def test_a_folder_of_an_archive_becomes_studies(archive, tmp_path) -> None:
    conversion = folder.convert(archive, tmp_path / "studies.jsonl")
    studies = {name_with_files(study): study for study in read_studies(tmp_path / "studies.jsonl")}
    files = [name.partition(": ")[2] for name in studies]
    assert files == ["3, 2", "old.dcm", "older.dcm", "same number.dcm", "scan.png"]
    now, old, older, other, _ = studies.values()
    assert [image.view for image in now.images] == ["PA", "LATERAL"]
    assert (now.extra, old.extra) == ({"prior": old.study_id}, {"prior": older.study_id})
    assert (older.extra, other.extra) == ({}, {})
    assert now.subject_id == old.subject_id == older.subject_id != other.subject_id
    said = str(conversion)
    for name, reason in (
        ("a/1", f"is for processing; {archive / 'a/3'} shows this exposure for presentation"),
        ("a/3 again.dcm", f"has the SOP Instance UID of {archive / 'a/3'}, which is taken"),
        ("c/hand.dcm", "body part 'HAND' is not the chest"),
        ("c/knee.dcm", "its description names another part of the body, 'knees'"),
        ("c/breast.dcm", "modality 'MG' is not one of CR, DX, RG"),
    ):
        assert f"left out: {archive / name}: {reason}" in said
    assert said.count("left out: ") == 5
    assert "passed over: 2 reports, presentation states and the like" in said


def test_ids_are_pseudonymous_unless_asked_otherwise(archive, tmp_path) -> None:
    folder.convert(archive, tmp_path / "one.jsonl")
    told = (tmp_path / "one.jsonl").read_text()
    assert not any(word in told for word in (STUDY, '"P1', "2026", "2025", "0815"))
    folder.convert(archive, tmp_path / "two.jsonl", ids="original")
    ids = [(study.study_id, study.subject_id) for study in read_studies(tmp_path / "two.jsonl")]
    assert ids == [(STUDY, "P1"), ("1.2.1", "P1"), ("1.2.2", "P1"), ("1.2.3", "P1^^^ELSEWHERE"), ("scan", "scan")]


def test_a_pseudonym_that_ends_like_a_file_is_told_with_its_file() -> None:
    for study_id, told in (("s0a3", "s0a3: 3"), ("a/3", "a/3"), ("3", "3")):
        assert name_with_files(Study(study_id, "p", "test", [StudyImage(Path("/archive/a/3"))])) == told


def test_drafting_takes_the_same_studies_and_warns_of_the_rest(archive) -> None:
    with pytest.warns(UserWarning, match="left out: ") as told:
        studies = find_studies([archive / "a", archive / "c"], "cough", "AP")
    assert len(told) == 5
    assert [name_with_files(study).rpartition("/")[2].rpartition(": ")[2] for study in studies] == ["3, 2", "scan.png"]
    assert [image.view for study in studies for image in study.images] == ["PA", "LATERAL", "AP"]
    assert {study.sections["indication"] for study in studies} == {"cough"}
    (hand,) = find_studies(archive / "c" / "hand.dcm")  # asked for by name
    assert [image.path.name for image in hand.images] == ["hand.dcm"]
    with pytest.warns(UserWarning, match="is for processing"):
        (one,) = find_studies([archive / "a" / name for name in ("1", "2", "3")])
    assert one.study_id == studies[0].study_id
    (raw,) = find_studies(archive / "a" / "1")
    assert raw.study_id == one.study_id
    (report,) = find_studies(archive / "a" / "report.dcm")
    assert report.study_id == str(archive / "a" / "report.dcm"), "whoever reads it says what is wrong"


def test_a_study_of_several_patients_is_left_out(tmp_path) -> None:
    film(tmp_path / "1.dcm", 1)
    film(tmp_path / "2.dcm", 2, PatientID="P2")
    film(tmp_path / "3.dcm", 1, "1.2.1")
    with pytest.warns(UserWarning, match="several patients") as told:
        (study,) = find_studies(tmp_path)
    assert (len(told), study.main_image.path.name) == (2, "3.dcm")


def test_films_without_the_numbers_of_a_study_stay_alone(tmp_path) -> None:
    for name in ("1.dcm", "2.dcm"):
        write_dicom(tmp_path / name, chest(), SOPInstanceUID="1.2.3")
    (tmp_path / "3.dcm").write_bytes(bytes(128) + b"DICM" + b"\xff" * 40)
    write_dicom(tmp_path / "4.dcm", chest(), BodyPartExamined="FOOT")
    with pytest.warns(UserWarning, match=r"4\.dcm: body part 'FOOT'"):
        studies = find_studies(tmp_path)
    assert [study.study_id for study in studies] == [str(tmp_path / f"{number}.dcm") for number in (1, 2, 3)]
    film(tmp_path / "5.dcm", 1, PatientID=GONE)
    film(tmp_path / "6.dcm", 1, "1.2.1", PatientID="")
    for ids in ("original", "pseudonymous"):
        one, other = find_studies([tmp_path / "5.dcm", tmp_path / "6.dcm"], ids)
        assert one.subject_id != other.subject_id
        assert one.extra == other.extra == {"unknown_patient": True}, "so that nobody takes the splits for clean"


@pytest.mark.parametrize(
    ("tags", "view"),
    [
        ({"ViewPosition": "PA", "PatientOrientation": ["A", "F"]}, "PA"),
        ({"ViewPosition": "LL"}, "LL"),
        ({"ViewPosition": "Jane Doe"}, None),
        ({"ViewCodeSequence": [item(CodeMeaning="antero-posterior")]}, "AP"),
        ({"ViewCodeSequence": [item(CodeMeaning="left lateral")]}, "LATERAL"),
        ({"PatientOrientation": ["L", "F"]}, "FRONTAL"),
        ({"PatientOrientation": ["P", "F"], "SeriesDescription": "CHEST PA"}, "LATERAL"),
        ({"PatientOrientation": ["L", "P"], "SeriesDescription": "Doe CHEST PA"}, "PA"),
        ({"PatientOrientation": ""}, None),
        ({"SeriesDescription": "PA AND LATERAL", "ProtocolName": "Thorax lat."}, "LAT"),
        ({"StudyDescription": "Thorax Bettlunge Jane Doe"}, None),
        ({}, None),
    ],
)
def test_the_view_is_what_the_header_states_and_no_other_word(tags, view) -> None:
    assert film_of(Path("x"), header(**tags)).view == view


@pytest.mark.parametrize(
    ("shown", "raw", "same"),
    [
        ({}, {}, True),
        (
            {"SourceImageSequence": [item(ReferencedSOPInstanceUID="2")], "ViewPosition": "LL"},
            {"ViewPosition": "PA"},
            True,
        ),
        (
            {"IrradiationEventUID": "1.5", "ViewPosition": "LL"},
            {"IrradiationEventUID": "1.5", "ViewPosition": "PA"},
            True,
        ),
        ({"IrradiationEventUID": "1.5"}, {"IrradiationEventUID": "1.6"}, False),
        ({"ViewPosition": "PA"}, {"ViewPosition": "LL"}, False),
        ({"ViewPosition": "PA"}, {"ViewPosition": "AP"}, True),
        ({"AcquisitionDateTime": "20260131235959.9"}, {"AcquisitionDateTime": "20260201000001+0100"}, True),
        (
            {"AcquisitionDateTime": "20260131081500"},
            {"AcquisitionDate": "2026.01.31", "AcquisitionTime": "08:15:09"},
            False,
        ),
        ({"AcquisitionDateTime": "20260131081500"}, {"AcquisitionTime": "090000"}, True),
    ],
)
def test_what_is_the_same_exposure(shown, raw, same) -> None:
    films = film_of(Path("1"), header(**shown)), film_of(Path("2"), header(SOPInstanceUID="2", **raw))
    assert same_exposure(*films) == same


def test_headers_of_an_archive_are_grouped_without_files() -> None:
    dates = {"1.1": ("20260131", "081500"), "1.2": ("20260131", "0815"), "1.3": ("20260131", "07"), "1.4": ("", "")}
    headers = [
        header(StudyInstanceUID=study, PatientID="P1", StudyDate=date, StudyTime=time)
        for study, (date, time) in dates.items()
    ]
    grouped = group(film_of(Path(f"{one.StudyInstanceUID}"), one) for one in headers)
    assert [one.uid for one in grouped.studies] == [*dates]
    first, second, third, _ = studies = as_studies(grouped.studies, pseudonyms=Pseudonyms(b"key"))
    assert [study.extra.get("prior") for study in studies] == [third.study_id, third.study_id, None, None]
    assert first.subject_id == second.subject_id


def test_pseudonyms_follow_from_the_key(tmp_path, monkeypatch) -> None:
    one, other = Pseudonyms(b"one"), Pseudonyms(b"other")
    assert one.study("1.2") == Pseudonyms(b"one").study("1.2") != other.study("1.2") != one.study("1.3")
    assert len({one.patient("12", ""), one.patient("1", "2"), one.patient("2", "1"), f"p{one.study('12')[1:]}"}) == 4
    assert len({one.study(uid) for uid in ("\udcff", "\ud800", "\ud801")}) == 3, "as an archive's JSON may hold"
    key = tmp_path / "config" / "key"
    monkeypatch.setenv("RADDRAFT_KEY", str(key))
    assert Pseudonyms().study("1.2") == Pseudonyms().study("1.2") == Pseudonyms(key.read_bytes()).study("1.2")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    key.write_bytes(b"short")
    with pytest.raises(RadDraftError, match="holds 5 bytes; it needs 32"):
        Pseudonyms()
    monkeypatch.setenv("RADDRAFT_KEY", str(key / "below"))
    with pytest.raises(RadDraftError, match=r"cannot be read or made .* set RADDRAFT_KEY"):
        Pseudonyms()
    monkeypatch.delenv("RADDRAFT_KEY")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    Pseudonyms()
    assert (tmp_path / "raddraft" / "pseudonyms.key").is_file()


def test_two_files_of_a_study_make_one_draft(random_model, tmp_path, capsys) -> None:
    frontal, lateral = film(tmp_path / "f.dcm", 1, ViewPosition="PA"), film(tmp_path / "l.dcm", 2, ViewPosition="LL")
    out = tmp_path / "drafts.jsonl"
    options = ("--decode.max_new_tokens", 4, "--out", out)
    assert run("draft", random_model, frontal, lateral, *options) == (0, "")
    (row,) = map(json.loads, out.read_text().splitlines())
    assert row["study_id"] == Pseudonyms().study(STUDY)
    assert f"\n{row['study_id']}: f.dcm, l.dcm\n" in capsys.readouterr().out
    (tmp_path / "hand").mkdir()
    film(tmp_path / "hand" / "hand.dcm", 1, BodyPartExamined="HAND")
    status, said = run("draft", random_model, tmp_path / "hand")
    assert (status, said) == (1, f"raddraft draft: No image in {tmp_path / 'hand'}")
    told = f"raddraft draft: warning: left out: {tmp_path / 'hand' / 'hand.dcm'}: body part 'HAND' is not the chest"
    assert told in capsys.readouterr().err.splitlines()
    assert run("draft", random_model, frontal, "--ids", "original", "--decode.max_new_tokens", 4) == (0, "")
    assert f"\n{STUDY}: f.dcm\n" in capsys.readouterr().out
