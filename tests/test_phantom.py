"""Chest phantoms: reproducible files, official layout, labels that the words bear out, signs that can be measured."""

import csv
import gzip
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from generator.corpora import mimic_cxr
from generator.corpora.phantom import convert
from generator.corpora.phantom.report import OBSERVATIONS
from metrics.rules import label
from raddraft.images import load_image
from raddraft.studies import Study, count_splits, read_studies

COUNT, DICOMS = 240, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phantoms")
    convert(out, count=COUNT, size=64, seed=5, dicoms=DICOMS, processes=2)
    return out


@pytest.fixture(scope="module")
def studies(folder: Path) -> list[Study]:
    return read_studies(folder / "studies.jsonl", check_images=True)


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def image_of(study: Study) -> np.ndarray:
    return np.asarray(Image.open(study.images[0].path), dtype=float)


def signs(study: Study, name: str) -> list[dict]:
    return [sign for sign in study.extra["truth"]["signs"] if sign["name"] == name]


def around(image: np.ndarray, at: list[float], radius: int = 2) -> float:
    """Mean gray around a point given in fractions of the sides."""
    column, row = (int(value * len(image)) for value in at)
    return float(image[max(row - radius, 0) : row + radius + 1, max(column - radius, 0) : column + radius + 1].mean())


def side_difference(study: Study, sign: dict) -> float:
    """Gray value at the sign less that at the mirror image of its place on the other side."""
    at = sign["at"] if np.ndim(sign["at"]) == 1 else sign["at"][0]
    image = image_of(study)
    return around(image, at) - around(image, [1 - at[0], at[1]])


def table(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", newline="") as file:
        return list(csv.DictReader(file))


def test_same_bytes_for_any_number_of_processes_and_as_part_of_a_larger_set(tmp_path):
    one, two, fewer = (tmp_path / name for name in ("one", "two", "fewer"))
    convert(one, count=14, size=48, seed=1, dicoms=2, processes=1)
    convert(two, count=14, size=48, seed=1, dicoms=2, processes=2)
    convert(fewer, count=5, size=48, seed=1, dicoms=2, processes=1)
    assert digests(one) == digests(two)
    images = {name: value for name, value in digests(fewer).items() if name.endswith((".jpg", ".txt", ".dcm", ".png"))}
    assert len(images) > 15
    assert images.items() <= digests(one).items()


def test_another_seed_gives_other_studies(tmp_path):
    first, second = (convert(tmp_path / str(seed), count=4, size=48, seed=seed, processes=1).studies for seed in (1, 2))
    assert [study.sections for study in first] != [study.sections for study in second]


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": 8}, {"dicoms": -1}])
def test_impossible_requests_are_refused(tmp_path, wrong):
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        convert(tmp_path, **wrong)


@pytest.mark.parametrize("name", ["README.txt", "studies.jsonl", "mimic-cxr-2.0.0-split.csv.gz"])
def test_files_of_another_data_set_are_not_replaced(tmp_path, name):
    (tmp_path / name).write_text("of patients")
    with pytest.raises(ValueError, match=rf"{name} is there, and is not of phantoms"):
        convert(tmp_path, count=1, size=48, processes=1)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "of patients")]


def test_returned_studies_are_those_of_the_manifest(tmp_path):
    made = convert(tmp_path, count=3, size=48, processes=1).studies
    assert made == read_studies(tmp_path / "studies.jsonl")


def test_layout_is_that_of_mimic_cxr_jpg(folder, studies):
    for study in studies:
        parent = folder / "files" / study.subject_id[:3] / study.subject_id
        assert study.images[0].path.parent == parent / study.study_id
        report = (parent / f"{study.study_id}.txt").read_text()
        heads = ["FINAL REPORT", "EXAMINATION:", "INDICATION:", "TECHNIQUE:", "COMPARISON:", "FINDINGS:", "IMPRESSION:"]
        assert [report.index(head) for head in heads] == sorted(report.index(head) for head in heads)
        assert "SYNTHETIC" in report
    assert re.fullmatch(
        r"p\d{8}/s\d{8}/([0-9a-f]{8}-){4}[0-9a-f]{8}\.jpg", "/".join(studies[0].images[0].path.parts[-3:])
    )
    assert "SYNTHETIC" in (folder / "README.txt").read_text()


def test_tables_have_the_official_columns(folder):
    metadata = table(folder / "mimic-cxr-2.0.0-metadata.csv.gz")
    assert list(metadata[0]) == [
        "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns",
        "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning", "ViewCodeSequence_CodeMeaning",
        "PatientOrientationCodeSequence_CodeMeaning",
    ]  # fmt: skip
    split = table(folder / "mimic-cxr-2.0.0-split.csv.gz")
    assert list(split[0]) == ["dicom_id", "study_id", "subject_id", "split"]
    assert {row["split"] for row in split} == {"train", "validate", "test"}
    for labeler in ("chexpert", "negbio"):
        labels = table(folder / f"mimic-cxr-2.0.0-{labeler}.csv.gz")
        assert list(labels[0]) == ["subject_id", "study_id", *sorted(OBSERVATIONS)]
        assert {row[name] for row in labels for name in OBSERVATIONS} == {"1.0", "0.0", "-1.0", ""}
        assert len(labels) == len(metadata) == len(split) == COUNT


def test_converter_of_mimic_cxr_reads_the_same_studies(folder, studies, tmp_path):
    mimic_cxr.convert(folder, out=tmp_path / "studies.jsonl", sections=("findings", "impression"))
    read = {study.study_id: study for study in read_studies(tmp_path / "studies.jsonl")}
    assert len(read) == COUNT
    for study in studies:
        other = read[study.study_id]
        assert (other.subject_id, other.split, other.images[0].view) == (
            study.subject_id, study.split, study.images[0].view)  # fmt: skip
        assert other.images[0].path == study.images[0].path
        assert {name: other.labels.get(name) for name in OBSERVATIONS} == study.labels
        for name in ("indication", "comparison", "findings", "impression"):
            assert other.sections[name] == study.sections[name]


def test_splits_are_by_subject_in_the_promised_shares(studies):
    counts = count_splits(studies)
    assert counts["train"] / COUNT == pytest.approx(0.7, abs=0.06)
    assert counts["val"] / COUNT == pytest.approx(0.1, abs=0.04)
    subjects = {study.subject_id for study in studies}
    assert 0.5 * COUNT < len(subjects) < 0.85 * COUNT  # some come more than once
    assert len({(study.subject_id, study.split) for study in studies}) == len(subjects)
    assert len({(study.subject_id, *study.patient.values()) for study in studies}) == len(subjects)


def test_every_observation_occurs_with_both_values(studies):
    for name in OBSERVATIONS:
        values = [study.labels[name] for study in studies]
        assert 0.04 < np.mean([value == 1 for value in values]) < 0.5, name
        assert (None if name == "No Finding" else 0) in values, name
    assert sum(-1 in study.labels.values() for study in studies) > 0.08 * COUNT


def test_labels_are_what_a_labeler_reads_in_the_findings(studies):
    for study in studies:
        findings, impression = study.sections["findings"], study.sections["impression"]
        assert label(findings) == study.labels, findings
        assert label(f"{findings} {impression}") == study.labels, (findings, impression)


def test_labels_follow_from_what_is_drawn(studies):
    for study in studies:
        drawn = {sign["name"] for sign in study.extra["truth"]["signs"]}
        assert drawn == {name for name, value in study.labels.items() if value in (1, -1)} - {"No Finding"}
        assert (study.labels["No Finding"] == 1) == (not drawn - {"Support Devices"})


def test_reports_are_short_and_of_few_words(studies):
    lengths = [len(study.sections["findings"].split()) for study in studies]
    assert min(lengths) >= 20
    assert max(lengths) <= 80
    assert np.median(lengths) < 60
    words = {
        word for study in studies for text in study.sections.values() for word in re.findall(r"[a-z]+", text.lower())
    }
    assert 100 < len(words) < 500
    assert len({study.sections["findings"] for study in studies}) > 0.8 * COUNT


def test_reports_compare_only_where_there_is_an_earlier_study(studies):
    seen: set[str] = set()
    for study in studies:
        assert (study.sections["comparison"] == "None.") == (study.subject_id not in seen)
        if study.subject_id not in seen:
            assert "unchanged" not in study.sections["findings"]
        seen.add(study.subject_id)
    assert any("unchanged" in study.sections["findings"] for study in studies)


def test_patient_is_not_in_the_report(folder, studies):
    told = re.compile(
        r"\b(fe)?male\b|\b(wo)?man\b|\b(s?he|his|hers?)\b|\byear|\byo?\b|\bage|\bobes|\bweight|\bbmi\b|breast", re.I
    )
    for study in studies:
        text = (folder / "files" / study.subject_id[:3] / study.subject_id / f"{study.study_id}.txt").read_text()
        assert not told.search(text), text


def test_cardiothoracic_ratio_parts_large_hearts_from_normal_ones(studies):
    ratios: dict[int | None, list[float]] = {1: [], 0: []}
    for study in studies:
        if study.labels["Cardiomegaly"] in ratios:
            ratios[study.labels["Cardiomegaly"]].append(study.extra["truth"]["cardiothoracic_ratio"])
    assert min(ratios[1]) > 0.52
    assert max(ratios[0]) < 0.52


@pytest.mark.parametrize(
    ("name", "brighter"), [("Pleural Effusion", 1), ("Consolidation", 1), ("Lung Lesion", 1), ("Pneumothorax", -1)]
)
def test_sign_stands_where_the_record_says(studies, name, brighter):
    sided = [
        (study, sign)
        for study in studies
        for sign in signs(study, name)
        if sign["side"] != "both" and sign["severity"] > 0.4
    ]
    differences = np.array([brighter * side_difference(study, sign) for study, sign in sided])
    assert len(differences) >= 4
    assert differences.mean() > 8
    assert np.mean(differences > 0) > 0.8
    for study, sign in sided:  # the image's left is the patient's right
        at = sign["at"] if np.ndim(sign["at"]) == 1 else sign["at"][0]
        assert (at[0] > 0.5) == (sign["side"] == "left")
        assert sign["side"] in study.sections["findings"].lower()


def test_larger_effusions_whiten_more_of_the_lung(studies):
    shares = []
    for study in studies:
        names = {sign["name"] for sign in study.extra["truth"]["signs"]}
        if names & {"Pneumothorax", "Consolidation", "Lung Opacity", "Lung Lesion", "Pleural Other"}:
            continue
        for sign in signs(study, "Pleural Effusion"):
            if sign["side"] != "both":
                image = image_of(study) if sign["side"] == "left" else image_of(study)[:, ::-1]
                lateral = np.s_[10:50, 44:56]
                shares.append((sign["severity"], image[lateral].mean() - image[:, ::-1][lateral].mean()))
    severity, whiteness = np.array(shares).T
    assert len(severity) >= 10
    assert np.corrcoef(severity, whiteness)[0, 1] > 0.6


def test_lung_masks_lie_on_the_dark_fields_of_both_sides(studies):
    for study in [study for study in studies if study.labels["No Finding"] == 1][:20]:
        mask = np.asarray(Image.open(study.images[0].masks["lungs"]))
        assert set(np.unique(mask)) == {0, 255}
        image, lungs = image_of(study), mask > 0
        assert 0.12 < lungs[:, :32].mean() < 0.6
        assert 0.12 < lungs[:, 32:].mean() < 0.6
        middle = image[20:50, 30:34]  # spine, heart, mediastinum
        assert image[lungs].mean() < middle.mean() - 40


def test_sex_and_build_can_be_read_off_the_image(studies):
    from sklearn.linear_model import Ridge

    pixels = np.stack(
        [np.asarray(Image.open(study.images[0].path).resize((16, 16)), float).ravel() for study in studies]
    )
    train = np.array([study.split == "train" for study in studies])
    for fact in (lambda patient: patient["bmi"], lambda patient: patient["sex"] == "F"):
        values = np.array([fact(study.patient) for study in studies], dtype=float)
        model = Ridge(1e4).fit(pixels[train], values[train])
        assert np.corrcoef(model.predict(pixels[~train]), values[~train])[0, 1] > 0.5


def test_dicom_files_give_back_the_image(folder, studies):
    from pydicom import dcmread

    files = sorted((folder / "dicom").iterdir())
    assert len(files) == DICOMS
    pictures = {study.images[0].path.stem: study for study in studies}
    interpretations = []
    for path in files:
        dataset = dcmread(path)
        study = pictures[path.stem]
        assert dataset.file_meta.TransferSyntaxUID.name == "Explicit VR Little Endian"
        assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
        assert (dataset.Modality, dataset.ViewPosition) == ({"PA": "DX", "AP": "CR"}[study.images[0].view],
                                                           study.images[0].view)  # fmt: skip
        assert (dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit) == (16, 12, 11)
        assert dataset.pixel_array.max() > 255
        assert "SYNTHETIC" in dataset.StudyDescription
        assert "SYNTHETIC" in str(dataset.PatientName)
        interpretations.append(dataset.PhotometricInterpretation)
        shown = np.asarray(load_image(path), dtype=float)
        assert np.abs(shown - image_of(study)).mean() < 3  # JPEG apart
    assert sorted(interpretations) == ["MONOCHROME1"] * (DICOMS // 2) + ["MONOCHROME2"] * (DICOMS // 2)
