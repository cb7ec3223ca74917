"""Public benchmarks -> manifests. The trees have the official layouts; names, numbers and pictures are made up."""

import gzip
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.leaks import check_leaks, split_groups
from generator.corpora import (
    candid_ptx,
    chexpert,
    covid,
    lung_masks,
    nih,
    rsna,
    siim,
    vindr_cxr,
    vindr_ribcxr,
)
from generator.corpora.common import CorpusError, hash_split
from raddraft.cli import run
from raddraft.images import load_image
from raddraft.splits import unknown_patients
from raddraft.studies import read_studies
from tests.test_corpora import by_id, dropped, touch, write_csv

TRAIN_TEST = (0.9, 0.1, 0)  # where the source has a test split
NO_SPLIT = (0.7, 0.1, 0.2)  # where it has none


def named(split: str, fractions: tuple[float, float, float], form: str = "{}", skip: int = 0) -> str:
    """A subject that falls into a split."""
    found = (form.format(i) for i in range(1, 10_000) if hash_split(form.format(i), fractions) == split)
    return [next(found) for _ in range(skip + 1)][-1]


def write_dicom(path: Path, **tags: str) -> Path:
    """A file with a header and no pixels: converters read no pixels."""
    from pydicom import Dataset, FileMetaDataset, uid

    path.parent.mkdir(parents=True, exist_ok=True)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = uid.ComputedRadiographyImageStorage, uid.generate_uid()
    dataset.Rows = dataset.Columns = 1024
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ages without unit, as in the sources
        for name, value in tags.items():
            setattr(dataset, name, value)
        dataset.save_as(path, enforce_file_format=True)
    return path


def write_picture(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def mask_of(study, structure: str) -> np.ndarray:
    values = np.asarray(Image.open(study.images[0].masks[structure]))
    assert set(np.unique(values)) <= {0, 255}
    return values == 255


def box(shape: tuple[int, int], top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[top : top + height, left : left + width] = True
    return mask


# --- VinDr-CXR ---------------------------------------------------------------------------------------------------

VINDR_TRAIN, VINDR_VAL = named("train", TRAIN_TEST, "a{:031x}"), named("val", TRAIN_TEST, "a{:031x}")


@pytest.fixture
def vindr(tmp_path) -> Path:
    root = tmp_path / "vindr"
    rows = []
    for name, said in [(VINDR_TRAIN, "110"), (VINDR_VAL, "100"), ("gone", "000")]:
        for reader, vote in enumerate(said, 8):
            row = {"image_id": name, "rad_id": f"R{reader}", "Cardiomegaly": vote, "Other diseases": "0"}
            rows.append(row | {"No finding": str(1 - int(vote))})
    write_csv(root / "annotations" / "image_labels_train.csv", rows)
    row = {"image_id": "t1", "Cardiomegaly": "0", "Other disease": "1", "No finding": "0"}
    write_csv(root / "annotations" / "image_labels_test.csv", [row])
    write_dicom(root / "train" / f"{VINDR_TRAIN}.dicom", PatientAge="061Y", PatientSex="F")
    write_dicom(root / "train" / f"{VINDR_VAL}.dicom", PatientAge="000Y", PatientSex="O")
    write_dicom(root / "test" / "t1.dicom")
    return root


def test_vindr_cxr(vindr):
    conversion = vindr_cxr.convert(vindr)
    studies = by_id(vindr / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == {
        VINDR_TRAIN: "train",
        VINDR_VAL: "val",
        "t1": "test",
    }
    assert studies[VINDR_TRAIN].labels == {"Cardiomegaly": 1, "Other diseases": 0, "No finding": 0}
    assert studies[VINDR_VAL].labels == {"Cardiomegaly": 0, "Other diseases": 0, "No finding": 1}
    assert studies["t1"].labels == {"Cardiomegaly": 0, "Other diseases": 1, "No finding": 0}
    assert [study.patient for study in studies.values()] == [
        {"sex": "F", "age": 61},
        {"sex": None, "age": None},
        {"sex": None, "age": None},
    ]
    assert {study.images[0].view for study in studies.values()} == {"PA"}
    assert dropped(conversion) == {"no image file on disk": 1, "no readable DICOM header": 0}
    assert "Ages of 0, which these adults cannot have, left out: 1" in conversion.notes


def test_vindr_cxr_errors(vindr):
    table = vindr / "annotations" / "image_labels_test.csv"
    write_csv(table, [{"image_id": name, "No finding": "1"} for name in ("t1", VINDR_TRAIN)])
    with pytest.raises(CorpusError, match=r"test\.csv line 3: study .* in split 'test'; earlier it is in 'train'"):
        vindr_cxr.convert(vindr)
    write_csv(table, [{"image_id": "t1", "No finding": "2"}])
    with pytest.raises(CorpusError, match=r"test\.csv line 2, No finding: label '2'"):
        vindr_cxr.convert(vindr)
    write_csv(table, [{"image": "t1", "No finding": "1"}])
    with pytest.raises(CorpusError, match=r"no column 'image_id'\. Columns: image, No finding"):
        vindr_cxr.convert(vindr)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"no image_labels_test\.csv.*physionet"):
        vindr_cxr.convert(vindr)


# --- RSNA --------------------------------------------------------------------------------------------------------

RSNA = [named(split, NO_SPLIT, "b{:04x}") for split in ("train", "val", "test")]
BOX = {"x": "264.0", "y": "152.0", "width": "213.0", "height": "379.0"}


@pytest.fixture
def rsna_root(tmp_path) -> Path:
    root = tmp_path / "rsna"
    blank = dict.fromkeys(BOX, "")
    ids = [RSNA[0], RSNA[0], RSNA[1], RSNA[2]]
    boxes = [BOX, BOX, blank, blank]
    rows = [{"patientId": name} | box | {"Target": str(int(box is BOX))} for name, box in zip(ids, boxes, strict=True)]
    write_csv(root / "stage_2_train_labels.csv", rows)
    classes = ["Lung Opacity", "Lung Opacity", "No Lung Opacity / Not Normal", "Normal"]
    rows = [{"patientId": name, "class": kind} for name, kind in zip(ids, classes, strict=True)]
    write_csv(root / "stage_2_detailed_class_info.csv", rows)
    images = root / "stage_2_train_images"
    write_dicom(images / f"{RSNA[0]}.dcm", PatientSex="M", PatientAge="51", ViewPosition="AP")
    write_dicom(images / f"{RSNA[1]}.dcm", PatientSex="F", PatientAge="155", ViewPosition="PA")
    write_dicom(images / f"{RSNA[2]}.dcm", PatientSex="F", PatientAge="18", ViewPosition="PA")
    return root


def test_rsna(rsna_root):
    conversion = rsna.convert(rsna_root)
    studies = by_id(rsna_root / "studies.jsonl")
    assert [studies[name].split for name in RSNA] == ["train", "val", "test"]
    assert [studies[name].labels for name in RSNA] == [
        {"Pneumonia": 1, "No Finding": 0},
        {"Pneumonia": 0, "No Finding": 0},
        {"Pneumonia": 0, "No Finding": 1},
    ]
    assert [studies[name].images[0].view for name in RSNA] == ["AP", "PA", "PA"]
    assert [studies[name].patient["age"] for name in RSNA] == [51, None, 18]
    assert conversion.n_read == 3
    assert "Ages above 120, left out: 1" in conversion.notes


def write_mapping(root: Path, names: list[str]) -> tuple[Path, list[dict[str, str]]]:
    mapping = root / "pneumonia-challenge-dataset-mappings_2018.json"
    entries = [{"subset_img_id": name, "img_id": nih_name} for name, nih_name in zip(RSNA, names, strict=True)]
    mapping.write_text(json.dumps(entries))
    return mapping, entries


def test_rsna_mapping_gives_every_film_its_split_in_nih(rsna_root, nih_root):
    names = [f"{int(NIH_VAL):08d}_000.png", f"{int(NIH_TRAIN):08d}_001.png", "00020000_000.png"]
    mapping, entries = write_mapping(rsna_root, names)
    with pytest.raises(FileNotFoundError, match=r"there is no test_list\.txt.*ChestX-ray14.*--test-list"):
        rsna.convert(rsna_root, mapping=mapping)
    conversion = rsna.convert(rsna_root, mapping=mapping, test_list=nih_root / "test_list.txt")
    studies = by_id(rsna_root / "studies.jsonl")
    nih.convert(nih_root)
    others = by_id(nih_root / "studies.jsonl")
    for name, nih_name in zip(RSNA, names, strict=True):
        other = others[Path(nih_name).stem]
        assert (studies[name].subject_id, studies[name].split) == (other.subject_id, other.split)
        assert studies[name].extra == {}
    assert [studies[name].split for name in RSNA] == ["val", "train", "test"]
    assert "not known" not in str(conversion)
    mapping.write_text(json.dumps(entries[:1]))
    (rsna_root / "test_list.txt").write_text("00020000_000.png\n")
    with pytest.raises(CorpusError, match=f"no subset_img_id is '{RSNA[1]}'"):
        rsna.convert(rsna_root, mapping=mapping)
    for content in ({"a": 1}, [{"subset_img_id": RSNA[0]}], [{"subset_img_id": RSNA[0], "img_id": 7}]):
        mapping.write_text(json.dumps(content))
        with pytest.raises(CorpusError, match="expected a list of objects with subset_img_id"):
            rsna.convert(rsna_root, mapping=mapping)
    mapping.write_text(json.dumps([{"subset_img_id": RSNA[0], "img_id": "7.png"}]))
    with pytest.raises(CorpusError, match=r"expected an img_id like 00000013_005\.png, got '7\.png'"):
        rsna.convert(rsna_root, mapping=mapping)
    mapping.write_text(json.dumps(entries))
    (rsna_root / "test_list.txt").write_text("00020000_000.png\n00020001\n")
    with pytest.raises(CorpusError, match=r"test_list\.txt line 2: expected a name like .* got '00020001'"):
        rsna.convert(rsna_root, mapping=mapping)


def test_rsna_without_mapping_says_in_print_and_manifest_that_patients_are_unknown(rsna_root):
    conversion = rsna.convert(rsna_root)
    told = "rsna: the patients of 3 studies are not known; some may be in more than one split"
    assert told in str(conversion).splitlines()
    studies = read_studies(rsna_root / "studies.jsonl")
    assert all(study.extra == {"unknown_patient": True} for study in studies)
    assert check_leaks(split_groups(studies))[0] == told  # which compare and probe print
    others = [replace(study, source="nih", extra={}) for study in studies]
    again = "nih, rsna: films of nih, saved again; one may be in more than one split"
    assert unknown_patients(split_groups([*studies, *others])) == [told, again]
    known = [replace(study, extra={}) for study in studies]
    assert unknown_patients(split_groups([*known, *others])) == []
    assert unknown_patients({"train": [*studies, *others], "test": []}) == [], "all of them in one split"


def test_rsna_a_broken_header_is_counted_and_named(rsna_root):
    (rsna_root / "stage_2_train_images" / f"{RSNA[2]}.dcm").write_bytes(b"no DICOM at all" * 20)
    conversion = rsna.convert(rsna_root)
    assert dropped(conversion)[f"no readable DICOM header, {RSNA[2]}.dcm first"] == 1
    assert len(conversion.studies) == 2


def test_rsna_errors(rsna_root):
    with pytest.raises(CorpusError, match="--test-list tells nothing without --mapping"):
        rsna.convert(rsna_root, test_list=rsna_root / "test_list.txt")
    table = rsna_root / "stage_2_detailed_class_info.csv"
    write_csv(table, [{"patientId": RSNA[0], "class": "Sick"}])
    with pytest.raises(CorpusError, match=r"line 2: unknown class 'Sick'\. Choices: Normal, No Lung Opacity"):
        rsna.convert(rsna_root)
    write_csv(table, [{"patientId": RSNA[0], "class": "Normal"}])
    with pytest.raises(CorpusError, match=rf"line 4: patientId '{RSNA[1]}' is not in stage_2_detailed"):
        rsna.convert(rsna_root)
    table.unlink()
    with pytest.raises(FileNotFoundError, match=r"no stage_2_detailed_class_info\.csv.*kaggle"):
        rsna.convert(rsna_root)


# --- NIH ---------------------------------------------------------------------------------------------------------

NIH_TRAIN, NIH_VAL = named("train", TRAIN_TEST), named("val", TRAIN_TEST)


def nih_row(patient: str, number: int, labels: str, age: str) -> dict[str, str]:
    name = f"{int(patient):08d}_{number:03d}.png"
    row = {"Image Index": name, "Finding Labels": labels, "Follow-up #": str(number), "Patient ID": patient}
    return row | {"Patient Age": age, "Patient Gender": "M", "View Position": "AP", "OriginalImage[Width": "2500"}


@pytest.fixture
def nih_root(tmp_path) -> Path:
    root = tmp_path / "nih"
    rows = [
        nih_row(NIH_TRAIN, 0, "Effusion|Pleural_Thickening", "058Y"),
        nih_row(NIH_TRAIN, 1, "No Finding", "411"),
        nih_row(NIH_VAL, 0, "Hernia", "006M"),
        nih_row("20000", 0, "No Finding", "30"),
        nih_row("20001", 0, "No Finding", "30"),
    ]
    write_csv(root / "Data_Entry_2017.csv", rows)
    names = [row["Image Index"] for row in rows]
    (root / "train_val_list.txt").write_text("\n".join(names[:3]))
    (root / "test_list.txt").write_text(names[3] + "\r\n")
    for i, name in enumerate(names):
        touch(root / f"images_{1 + i // 2:03d}" / "images" / name)
    return root


def test_nih(nih_root):
    conversion = nih.convert(nih_root)
    studies = list(by_id(nih_root / "studies.jsonl").values())
    assert [study.split for study in studies] == ["train", "train", "val", "test"]
    assert [study.subject_id for study in studies] == [NIH_TRAIN, NIH_TRAIN, NIH_VAL, "20000"]
    assert len(studies[0].labels) == 15
    assert {name for name, value in studies[0].labels.items() if value} == {"Effusion", "Pleural_Thickening"}
    assert {name for name, value in studies[1].labels.items() if value} == {"No Finding"}
    assert [study.patient["age"] for study in studies] == [58, None, 0.5, 30]
    assert studies[0].patient["sex"] == "M"
    assert studies[0].images[0].view == "AP"
    assert dropped(conversion) == {"in no official list": 1, "no image file on disk": 0}
    assert "Ages above 120, left out: 1" in conversion.notes


@pytest.mark.parametrize("nothing", ["nan", "None", "N/A"])
def test_nih_cells_that_are_nothing(nih_root, nothing):
    blank = {"Patient Age": nothing, "Patient Gender": nothing, "View Position": nothing}
    write_csv(nih_root / "Data_Entry_2017.csv", [nih_row(NIH_TRAIN, 0, "Mass", "60") | blank])
    [study] = nih.convert(nih_root).studies
    assert (study.patient, study.images[0].view) == ({"sex": None, "age": None}, None)


def test_nih_errors(nih_root):
    table = nih_root / "Data_Entry_2017.csv"
    write_csv(table, [nih_row("1", 0, "Effusion|Cough", "1")])
    with pytest.raises(CorpusError, match=r"line 2: unknown finding 'Cough'\. Choices: Atelectasis"):
        nih.convert(nih_root)
    write_csv(table, [{"Image Index": "1.png", "Finding Labels": "Mass"}])
    with pytest.raises(CorpusError, match=r"no column 'Patient ID'"):
        nih.convert(nih_root)
    (nih_root / "test_list.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"no test_list\.txt.*ChestX-ray14"):
        nih.convert(nih_root)


def test_nih_lists_may_be_compressed_or_begin_with_a_byte_order_mark(nih_root):
    studies = nih.convert(nih_root).studies
    for name in ("test_list.txt", "train_val_list.txt"):
        content = (nih_root / name).read_bytes()
        (nih_root / name).unlink()
        (nih_root / f"{name}.gz").write_bytes(gzip.compress(b"\xef\xbb\xbf" + content))
    assert nih.convert(nih_root).studies == studies


def test_nih_release_of_2020_comes_first(nih_root):
    row = nih_row(NIH_TRAIN, 0, "Mass", "60")
    row["Patient Sex"] = row.pop("Patient Gender").replace("M", "F")
    write_csv(nih_root / "Data_Entry_2017_v2020.csv", [row])
    (study,) = nih.convert(nih_root).studies
    assert study.patient == {"sex": "F", "age": 60}


# --- CheXpert ----------------------------------------------------------------------------------------------------


def chexpert_row(path: str, prefix: str = "CheXpert-v1.0-small/", **values: str) -> dict[str, str]:
    row = {"Path": prefix + path, "Sex": "Female", "Age": "68", "Frontal/Lateral": "Frontal", "AP/PA": "AP"}
    return row | dict.fromkeys(chexpert.LABELS, "") | values


@pytest.fixture
def chexpert_root(tmp_path) -> Path:
    root = tmp_path / "CheXpert-v1.0-small"
    lateral = {"Frontal/Lateral": "Lateral", "AP/PA": "", "Edema": "1.0"}
    train = [
        chexpert_row("train/patient00001/study1/view1_frontal.jpg", Edema="1.0", Pneumonia="-1.0", Fracture="0.0"),
        chexpert_row("train/patient00001/study1/view2_lateral.jpg", **lateral),
        chexpert_row("train/patient00002/study1/view1_lateral.jpg", **lateral),
    ]
    valid = [chexpert_row("valid/patient64541/study1/view1_frontal.jpg", Sex="Male", Age="73")]
    test = [chexpert_row("test/patient64741/study1/view1_frontal.jpg", prefix="")]
    for key in ("Sex", "Age", "Frontal/Lateral", "AP/PA"):
        del test[0][key]
    write_csv(root / "train.csv", train)
    write_csv(root / "valid.csv", valid)
    write_csv(root / "test_labels.csv", test)
    for row in [*train, *valid, *test]:
        touch(root / row["Path"].removeprefix("CheXpert-v1.0-small/"))
    return root


def test_chexpert(chexpert_root):
    conversion = chexpert.convert(chexpert_root)
    studies = by_id(chexpert_root / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == {
        "patient00001_study1": "train",
        "patient64541_study1": "val",
        "patient64741_study1": "test",
    }
    first = studies["patient00001_study1"]
    assert [(image.path.name, image.view) for image in first.images] == [("view1_frontal.jpg", "AP")]
    assert {name: value for name, value in first.labels.items() if value is not None} == {
        "Edema": 1,
        "Pneumonia": -1,
        "Fracture": 0,
    }
    assert len(first.labels) == 14
    assert first.patient == {"sex": "F", "age": 68}
    assert studies["patient64741_study1"].patient == {"sex": None, "age": None}
    assert studies["patient64741_study1"].images[0].view == "FRONTAL"
    assert dropped(conversion) == {"no frontal image": 1, "no image file on disk": 0}


def test_chexpert_all_views_without_a_test_table(chexpert_root):
    (chexpert_root / "test_labels.csv").unlink()
    conversion = chexpert.convert(chexpert_root, views="all")
    assert [image.view for image in conversion.studies[0].images] == ["AP", "LATERAL"]
    assert [study.split for study in conversion.studies] == ["train", "train", "val"]


def test_chexpert_errors(chexpert_root):
    write_csv(chexpert_root / "train.csv", [chexpert_row("patient1/view1.jpg")])
    with pytest.raises(CorpusError, match=r"line 2: Path must end like .*got 'CheXpert-v1\.0-small/patient1/view1"):
        chexpert.convert(chexpert_root)
    row = chexpert_row("train/patient1/study1/view1_frontal.jpg")
    del row["Fracture"]
    write_csv(chexpert_root / "train.csv", [row])
    with pytest.raises(CorpusError, match=r"no column 'Fracture'"):
        chexpert.convert(chexpert_root)
    write_csv(chexpert_root / "train.csv", [{"File": "1.jpg"} | dict.fromkeys(chexpert.LABELS, "")])
    with pytest.raises(CorpusError, match=r"line 2: no column 'Path', nor 'Study'\. Columns: File, No Finding"):
        chexpert.convert(chexpert_root)
    write_csv(chexpert_root / "train.csv", [{"Study": "train/view1"} | dict.fromkeys(chexpert.LABELS, "")])
    with pytest.raises(CorpusError, match=r"line 2: Path, or else Study, must end like .* got 'train/view1'"):
        chexpert.convert(chexpert_root)
    for table in chexpert_root.glob("*.csv"):
        table.unlink()
    with pytest.raises(FileNotFoundError, match=r"none of train\.csv, .*groundtruth\.csv.*aimi\.stanford\.edu"):
        chexpert.convert(chexpert_root)


def test_chexpert_test_labels_by_study_without_the_other_tables(chexpert_root):
    for name in ("train.csv", "valid.csv", "test_labels.csv"):
        (chexpert_root / name).unlink()
    labels = dict.fromkeys(chexpert.LABELS, "0") | {"Lung Opacity": "1"}
    studies = [f"CheXpert-v1.0/test/patient{number}/study1" for number in (64741, 64742)]
    write_csv(chexpert_root / "groundtruth.csv", [{"Study": study} | labels for study in studies])
    for suffix in ("jpg", "png", "jpg.sha256"):
        touch(chexpert_root / f"test/patient64741/study1/view2_lateral.{suffix}")
    conversion = chexpert.convert(chexpert_root, views="all")
    [study] = by_id(chexpert_root / "studies.jsonl").values()
    assert (study.study_id, study.split, study.labels["Lung Opacity"]) == ("patient64741_study1", "test", 1)
    assert [(image.path.name, image.view) for image in study.images] == [
        ("view1_frontal.jpg", "FRONTAL"),
        ("view2_lateral.png", "LATERAL"),
    ], "a view once"
    assert dropped(conversion) == {"no image file on disk": 1}
    assert conversion.notes[:2] == [
        "No table of train (train.csv): the split is left out",
        "No table of val (valid.csv or val_labels.csv): the split is left out",
    ]


def test_an_age_of_0_in_chexpert_is_unknown(chexpert_root):
    write_csv(chexpert_root / "valid.csv", [chexpert_row("valid/patient64541/study1/view1_frontal.jpg", Age="0")])
    chexpert.convert(chexpert_root)
    assert by_id(chexpert_root / "studies.jsonl")["patient64541_study1"].patient["age"] is None


# --- COVID-19 Image Data Collection --------------------------------------------------------------------------------

COVID = {
    "patientid": "2",
    "offset": "0",
    "sex": "M",
    "age": "65",
    "finding": "Pneumonia/Viral/COVID-19",
    "view": "PA",
    "modality": "X-ray",
    "folder": "images",
    "filename": "a.jpg",
    "license": "CC BY-NC-SA",
    "clinical_notes": "Cough for\n three days.",
}


@pytest.fixture
def covid_root(tmp_path) -> Path:
    root = tmp_path / "covid"
    rows = [
        COVID,
        COVID | {"view": "L", "filename": "b.jpg", "clinical_notes": ""},
        COVID | {"offset": "3", "filename": "c.jpg", "view": "AP Supine"},
        COVID | {"filename": "ct.nii.gz", "modality": "CT", "view": "Axial", "folder": "volumes"},
        COVID | {"patientid": "7", "offset": "", "filename": "d.png", "finding": "todo", "age": "", "sex": ""},
        COVID | {"patientid": "8", "offset": "", "filename": "gone.png", "finding": "No Finding"},
    ]
    write_csv(root / "metadata.csv", rows)
    for name in "a.jpg", "b.jpg", "c.jpg", "d.png":
        touch(root / "images" / name)
    return root


def test_covid(covid_root):
    conversion = covid.convert(covid_root)
    studies = by_id(covid_root / "studies.jsonl")
    assert list(studies) == ["2_0", "2_3", "7_d"]
    assert [image.view for image in studies["2_0"].images] == ["PA", "L"]
    assert studies["2_0"].labels == {"Pneumonia": 1, "Viral": 1, "COVID-19": 1}
    assert studies["2_0"].sections == {"note": "Cough for three days."}
    assert studies["2_0"].images[0].extra == {"license": "CC BY-NC-SA"}
    assert studies["2_0"].split == studies["2_3"].split == hash_split("2", NO_SPLIT)
    assert studies["7_d"].labels == {}
    assert studies["7_d"].patient == {"sex": None, "age": None}
    assert dropped(conversion) == {"modality is not X-ray": 1, "no image file on disk": 1}


@pytest.mark.parametrize("nothing", ["nan", "None", "<NA>"])
def test_covid_cells_that_are_nothing(covid_root, nothing):
    blank = dict.fromkeys(("sex", "age", "finding", "view", "clinical_notes"), nothing)
    write_csv(covid_root / "metadata.csv", [COVID | blank, COVID | {"filename": "b.jpg"}])
    [study] = covid.convert(covid_root).studies
    assert study.patient == {"sex": "M", "age": 65}, "what the first row does not tell, the second does"
    assert set(study.labels) == {"Pneumonia", "Viral", "COVID-19"}
    assert [image.view for image in study.images] == [None, "PA"]
    assert study.sections == {"note": "Cough for three days."}


def test_covid_rows_with_a_file_a_note_or_an_address_in_common_are_of_one_subject(covid_root):
    one = COVID | {"offset": "", "url": "", "clinical_notes": ""}
    case, page = "https://radiopaedia.org/cases/x", "https://github.com/y/z"
    rows = [
        one | {"patientid": "1", "filename": "1.jpg"},
        one | {"patientid": "2", "filename": "1.jpg", "finding": "Fungal", "clinical_notes": "Cough."},
        one | {"patientid": "2", "filename": "2.jpg", "clinical_notes": "Fever  for a week."},
        one | {"patientid": "3", "filename": "3.jpg", "clinical_notes": "Fever for a week.", "url": f"{case}?lang=us"},
        one | {"patientid": "4", "filename": "4.jpg", "url": f"{case}/"},
        one | {"patientid": "5", "filename": "5.jpg", "url": page},
        one | {"patientid": "6", "filename": "6.jpg", "url": page},
    ]
    write_csv(covid_root / "metadata.csv", rows)
    for row in rows:
        touch(covid_root / "images" / row["filename"])
    conversion = covid.convert(covid_root)
    studies = by_id(covid_root / "studies.jsonl")
    subjects = {name: study.subject_id for name, study in studies.items()}
    assert subjects == {"1_1": "1", "2_2": "1", "3_3": "1", "4_4": "1", "5_5": "5", "6_6": "6"}
    assert {studies[name].split for name in ("1_1", "2_2", "3_3", "4_4")} == {hash_split("1", NO_SPLIT)}
    assert len(studies["1_1"].images) == 1
    assert studies["1_1"].sections == {"note": "Cough."}
    assert {"COVID-19", "Fungal"} < set(studies["1_1"].labels)
    assert "patientids: 6, subjects by file, note and address: 3" in str(conversion)
    assert "Rows that repeat an image, left out: 1" in str(conversion)


def test_covid_columns_of_earlier_tables(covid_root):
    names = {"clinical_notes": "clinical notes"}
    row = {names.get(name, name): cell for name, cell in COVID.items()} | {" url": "https://x.org/1"}
    write_csv(covid_root / "metadata.csv", [row, row | {"patientid": "7", "filename": "c.jpg", "clinical notes": ""}])
    first, second = covid.convert(covid_root).studies
    assert first.sections == {"note": "Cough for three days."}
    assert second.subject_id == first.subject_id == "2"


def test_covid_joins_different_notes_and_takes_no_view_for_one(covid_root):
    rows = [COVID | {"clinical_notes": "No edema."}, COVID | {"filename": "b.jpg", "view": "?", "finding": "Fungal"}]
    rows += [COVID | {"filename": "c.jpg", "clinical_notes": "No edema.", "finding": "No Finding"}]
    write_csv(covid_root / "metadata.csv", rows)
    [study] = covid.convert(covid_root).studies
    assert study.sections == {"note": "No edema. Cough for three days."}
    assert [image.view for image in study.images] == ["PA", None, "PA"]
    assert set(study.labels) == {"Pneumonia", "Viral", "COVID-19", "Fungal"}


def test_covid_rows_without_a_file_have_none_in_common(covid_root):
    rows = [COVID | {"patientid": number, "filename": "", "clinical_notes": number} for number in ("1", "2")]
    write_csv(covid_root / "metadata.csv", [COVID, *rows])
    assert [study.subject_id for study in covid.convert(covid_root).studies] == ["2"]


def test_covid_errors(covid_root):
    write_csv(covid_root / "metadata.csv", [{"patientid": "2", "finding": "x"}])
    with pytest.raises(CorpusError, match=r"no column 'view'\. Columns: patientid, finding"):
        covid.convert(covid_root)
    (covid_root / "metadata.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no metadata\.csv.*ieee8023"):
        covid.convert(covid_root)


# --- SIIM-ACR ----------------------------------------------------------------------------------------------------

SIIM = [named(split, NO_SPLIT, "1.2.276.0.7230010.{}") for split in ("train", "val", "test")]


@pytest.fixture
def siim_root(tmp_path) -> Path:
    root = tmp_path / "siim"
    rows = [(SIIM[0], " 2 3 1021 2"), (SIIM[0], " 1047552 1024"), (SIIM[1], " -1"), (SIIM[2], " 0 1"), ("9.9", " -1")]
    write_csv(root / "train-rle.csv", [{"ImageId": name, " EncodedPixels": code} for name, code in rows])
    for name in SIIM:
        path = root / "dicom-images-train" / f"{name}.1" / f"{name}.2" / f"{name}.dcm"
        write_dicom(path, PatientSex="F", PatientAge="32", ViewPosition="PA")
    return root


def test_siim(siim_root, tmp_path):
    out = tmp_path / "manifest" / "studies.jsonl"
    conversion = siim.convert(siim_root, out=out)
    studies = by_id(out)
    assert [studies[name].split for name in SIIM] == ["train", "val", "test"]
    assert [studies[name].labels["Pneumothorax"] for name in SIIM] == [1, 0, 1]
    assert studies[SIIM[0]].patient == {"sex": "F", "age": 32}
    assert studies[SIIM[0]].images[0].view == "PA"
    # Counted by hand: flat pixels 2 to 4 and, 1021 behind them, 1026 and 1027; and the last column as a whole.
    expected = box((1024, 1024), 2, 0, 3, 1) | box((1024, 1024), 2, 1, 2, 1) | box((1024, 1024), 0, 1023, 1024, 1)
    assert (mask_of(studies[SIIM[0]], "pneumothorax") == expected).all()
    assert studies[SIIM[0]].images[0].masks["pneumothorax"].is_relative_to(out.parent / "masks")
    assert studies[SIIM[1]].images[0].masks == {}
    assert mask_of(studies[SIIM[2]], "pneumothorax").sum() == 1
    assert dropped(conversion)["no image file on disk"] == 1


@pytest.mark.parametrize("code", ["1048570 7", "5", "a b"])
def test_siim_broken_runs_are_named(siim_root, code):
    write_csv(siim_root / "train-rle.csv", [{"ImageId": SIIM[0], " EncodedPixels": code}])
    with pytest.raises(CorpusError, match=rf"image {SIIM[0]}, pneumothorax: Run lengths .*{code}"):
        siim.convert(siim_root)


def test_siim_errors(siim_root):
    write_csv(siim_root / "train-rle.csv", [{"ImageId": SIIM[0], "Mask": "-1"}])
    with pytest.raises(CorpusError, match=r"needs columns ImageId and EncodedPixels\. Columns: ImageId, Mask"):
        siim.convert(siim_root)
    (siim_root / "train-rle.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no train-rle\.csv.*--table"):
        siim.convert(siim_root)


# --- CANDID-PTX --------------------------------------------------------------------------------------------------

CANDID = [named(split, NO_SPLIT, "P{:05d}") for split in ("train", "test")]


@pytest.fixture
def candid(tmp_path) -> Path:
    root = tmp_path / "candid"
    rows = [
        ("1.1", "5.1", f"{CANDID[0]}_1.jpg", "0 2", "Left pneumothorax."),
        ("1.1", "5.1", f"{CANDID[0]}_1.jpg", "1024 1", "Left pneumothorax."),
        ("1.2", "5.2", f"{CANDID[0]}_2.jpg", "-1", "Normal."),
        ("1.3", "5.3", f"{CANDID[1]}_1.jpg", "-1", "Normal."),
        ("1.4", "5.4", f"{CANDID[0]}_3.jpg", "-1", "Normal."),
        ("1.4", "5.4", f"{CANDID[1]}_3.jpg", "-1", "Normal."),
    ]
    columns = ("SOPInstanceUID", "StudyInstanceUID", "filename", "EncodedPixels", "Report")
    write_csv(root / "Pneumothorax_reports.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    write_csv(root / "chest_tube.csv", [{"anon_SOPUID": "1.1", "mask_rle": "1025 3"}])
    rows = [{"anon_SOPUID": "1.3", "mask_rle": "0 1"}, {"anon_SOPUID": "1.2", "mask_rle": "-1"}]
    write_csv(root / "acute_rib_fracture.csv", rows)
    for number in range(1, 5):
        write_dicom(root / "dataset" / f"1.{number}", PatientSex="M", PatientAge="040Y")
    return root


@pytest.mark.parametrize("nothing", ["nan", "None"])
def test_candid_cells_that_are_nothing(candid, nothing):
    columns = ("SOPInstanceUID", "StudyInstanceUID", "filename", "EncodedPixels", "Report")
    row = dict(zip(columns, ("1.2", "5.2", f"{CANDID[0]}_2.jpg", nothing, nothing), strict=True))
    write_csv(candid / "Pneumothorax_reports.csv", [row])
    [study] = candid_ptx.convert(candid).studies
    assert (study.sections, study.labels["Pneumothorax"]) == ({}, 0)


def test_candid(candid):
    conversion = candid_ptx.convert(candid)
    studies = by_id(candid / "studies.jsonl")
    assert {name: (study.subject_id, study.split) for name, study in studies.items()} == {
        "1.1": (CANDID[0], "train"),
        "1.2": (CANDID[0], "train"),
        "1.3": (CANDID[1], "test"),
    }
    assert [list(study.labels.values()) for study in studies.values()] == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    assert list(studies["1.1"].labels) == ["Pneumothorax", "Chest Tube", "Rib Fracture"]
    assert studies["1.1"].sections == {"findings": "Left pneumothorax."}
    assert studies["1.1"].extra == {"study": "5.1"}
    assert studies["1.1"].patient == {"sex": "M", "age": 40}
    expected = box((1024, 1024), 0, 0, 2, 1) | box((1024, 1024), 0, 1, 1, 1)
    assert (mask_of(studies["1.1"], "pneumothorax") == expected).all()
    assert (mask_of(studies["1.1"], "chest tube") == box((1024, 1024), 1, 1, 3, 1)).all()
    assert list(studies["1.2"].images[0].masks) == []
    assert list(studies["1.3"].images[0].masks) == ["rib fracture"]
    assert dropped(conversion)["under two subjects"] == 1
    assert len(candid_ptx.convert(candid, images=candid).studies) == 3  # masks of the first run are no images


def test_candid_reports_of_one_image_that_differ_are_counted(candid):
    columns = ("SOPInstanceUID", "EncodedPixels", "Report")
    rows = [("1.1", "0 2", ""), ("1.1", "0 2", "Left pneumothorax."), ("1.1", "0 2", "Tube."), ("1.2", "-1", "Normal.")]
    write_csv(candid / "Pneumothorax_reports.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    conversion = candid_ptx.convert(candid)
    assert conversion.studies[0].sections == {"findings": "Left pneumothorax."}
    assert conversion.notes[0] == "Rows whose text differs from the first text of their study, which counts: 1"
    assert [study.extra for study in conversion.studies] == [{"unknown_patient": True}] * 2


def test_candid_with_the_other_names_of_columns(candid):
    write_csv(candid / "chest_tube.csv", [{"SOPInstanceUID": "1.2", "EncodedPixels": "0 1"}])
    candid_ptx.convert(candid)
    assert by_id(candid / "studies.jsonl")["1.2"].labels["Chest Tube"] == 1


def test_candid_errors(candid):
    write_csv(candid / "chest_tube.csv", [{"image": "1.2", "mask_rle": "0 1"}])
    with pytest.raises(CorpusError, match=r"chest_tube\.csv line 2: needs a column SOPInstanceUID.*Columns: image"):
        candid_ptx.convert(candid)
    (candid / "chest_tube.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no chest_tube\.csv.*CANDID-PTX"):
        candid_ptx.convert(candid)
    (candid / "dataset").rename(candid / "pictures")
    write_csv(candid / "chest_tube.csv", [{"anon_SOPUID": "1.2", "mask_rle": "0 1"}])
    with pytest.raises(FileNotFoundError, match=r"no folder dataset or chest_radiographs.*--images"):
        candid_ptx.convert(candid)


# --- VinDr-RibCXR ------------------------------------------------------------------------------------------------

RIB_TRAIN = named("train", TRAIN_TEST, "VinDr_RibCXR_train_{:03d}")
RIB_VAL = named("val", TRAIN_TEST, "VinDr_RibCXR_train_{:03d}")
CORNERS = [(2.4, 3.7), (8.9, 3.7), (8.9, 6.2), (2.4, 6.2)]  # cut to whole pixels: rows 3 to 6, columns 2 to 8


def points(corners: list[tuple[float, float]], right: int = 0) -> list[dict[str, float]]:
    return [{"x": x + right, "y": y} for x, y in corners]


@pytest.fixture
def ribs(tmp_path) -> Path:
    root = tmp_path / "ribs"
    for part, names in [("train", [RIB_TRAIN, RIB_VAL]), ("val", ["VinDr_RibCXR_val_000"])]:
        table: dict[str, dict] = {"img": {str(i): f"data/{part}/img/{name}.png" for i, name in enumerate(names)}}
        for rib in vindr_ribcxr.RIBS:
            table[rib] = {str(i): "None" for i in range(len(names))}
        table["R1"] = {str(i): points(CORNERS) for i in range(len(names))}
        table["L10"]["0"] = points(CORNERS, right=10)
        for name in names:
            write_picture(root / "data" / part / "img" / f"{name}.png", np.zeros((20, 30), np.uint8))
        path = root / "Annotations" / part / f"Vindr_RibCXR_{part}_mask.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(table))
    return root


def test_ribs(ribs):
    conversion = vindr_ribcxr.convert(ribs)
    studies = by_id(ribs / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == {
        RIB_TRAIN: "train",
        RIB_VAL: "val",
        "VinDr_RibCXR_val_000": "test",
    }
    study = studies[RIB_TRAIN]
    assert sorted(study.images[0].masks) == ["L10", "R1", "ribs"]
    assert (mask_of(study, "R1") == box((20, 30), 3, 2, 4, 7)).all()
    assert (mask_of(study, "ribs") == box((20, 30), 3, 2, 4, 7) | box((20, 30), 3, 12, 4, 7)).all()
    assert sorted(studies[RIB_VAL].images[0].masks) == ["R1", "ribs"]
    assert dropped(conversion) == {"no image file on disk": 0}


def test_ribs_whose_images_lie_elsewhere(ribs):
    (ribs / "data" / "train" / "img").rename(ribs / "train")
    for _ in range(2):  # the second time masks with the names of the images lie there too
        studies = vindr_ribcxr.convert(ribs).studies
        assert [study.images[0].path.parent.name for study in studies] == ["train", "train", "img"]


def test_ribs_errors(ribs):
    path = ribs / "Annotations" / "val" / "Vindr_RibCXR_val_mask.json"
    table = json.loads(path.read_text())
    path.write_text(json.dumps(table | {"R3": {"0": [{"x": 1}]}}))
    with pytest.raises(CorpusError, match=r"val_mask\.json, R3, 0: .*points with x and y"):
        vindr_ribcxr.convert(ribs)
    del table["L4"]
    path.write_text(json.dumps(table))
    with pytest.raises(CorpusError, match=r"val_mask\.json: no object 'L4'"):
        vindr_ribcxr.convert(ribs)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no Vindr_RibCXR_val_mask\.json.*vindr\.ai"):
        vindr_ribcxr.convert(ribs)


# --- JSRT, Montgomery, Shenzhen ----------------------------------------------------------------------------------

JSRT = [named(split, TRAIN_TEST, "JPCLN{:03d}") for split in ("train", "val")] + ["JPCNN002"]


@pytest.fixture(scope="module")
def jsrt(tmp_path_factory) -> Path:
    """Full size, as the format has no header; converted once."""
    root = tmp_path_factory.mktemp("jsrt")
    film = np.full((2048, 2048), 1000, ">u2")
    film[:100, :50] = 4095  # dark film
    for name in [*JSRT, "JPCNN093"]:
        path = touch(root / "All247images" / f"{name}.IMG")
        if name != "JPCNN093":  # in no fold, so it is not opened
            film.tofile(path)
    for name, fold in zip(JSRT, ("fold1", "fold1", "fold2"), strict=True):
        for i, part in enumerate(["left lung", "right lung", "heart"]):
            mask = box((1024, 1024), 100, 200 * (i + 1), 300, 50).astype(np.uint8) * 255
            write_picture(root / "scratch" / fold / "masks" / part / f"{name}.gif", mask)
    lines = f"{JSRT[0]}.IMG\t5\t15\t53\tMale\t1634\t692\tmalignant\tlung cancer{JSRT[1]}.IMG\t5\t30\t?\tFemale\t1614"
    (root / "CLNDAT_EN.txt").write_text(lines)
    (root / "CNNDAT_EN.TXT").write_text("JPCNN002.IMG\t61\tFemale\tnon-nodule\n")
    return root


def test_jsrt(jsrt):
    conversion = lung_masks.convert("jsrt", jsrt)
    studies = by_id(jsrt / "studies.jsonl")
    assert [studies[name].split for name in JSRT] == ["train", "val", "test"]
    assert [studies[name].labels for name in JSRT] == [{"Nodule": 1}, {"Nodule": 1}, {"Nodule": 0}]
    assert [studies[name].patient for name in JSRT] == [
        {"sex": "M", "age": 53},
        {"sex": "F", "age": None},
        {"sex": "F", "age": 61},
    ]
    study = studies[JSRT[0]]
    assert study.source == "jsrt"
    assert study.images[0].path == jsrt / "images" / f"{JSRT[0]}.png"
    stored = np.asarray(Image.open(study.images[0].path))
    assert (stored[0, 0], stored[-1, -1], stored.dtype.itemsize) == (0, 3095, 2)
    shown = np.asarray(load_image(study.images[0].path))
    assert (shown[0, 0], shown[-1, -1]) == (0, 255)  # air dark
    zones = [f"{side} {zone} zone" for side in ("left", "right") for zone in ("upper", "middle", "lower")]
    assert sorted(study.images[0].masks) == sorted(["heart", "left lung", "lungs", "right lung", *zones])
    left, right = box((2048, 2048), 200, 400, 600, 100), box((2048, 2048), 200, 800, 600, 100)
    assert (mask_of(study, "left lung") == left).all()
    assert (mask_of(study, "lungs") == left | right).all()
    assert dropped(conversion) == {"in no fold of SCR": 1}


def test_jsrt_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder fold1 .*--masks"):
        lung_masks.convert("jsrt", tmp_path)
    touch(tmp_path / "scratch" / "fold1" / "masks" / "heart" / "JPCLN001.gif")
    with pytest.raises(FileNotFoundError, match=r"no JPC\*\.IMG"):
        lung_masks.convert("jsrt", tmp_path)
    (tmp_path / "JPCLN001.IMG").write_bytes(b"cut short")
    with pytest.raises(CorpusError, match=r"JPCLN001\.IMG: 9 bytes; 2048 x 2048 pixels of 16 bits are 8388608"):
        lung_masks.convert("jsrt", tmp_path)


@pytest.fixture
def montgomery(tmp_path) -> Path:
    root = tmp_path / "MontgomerySet"
    for name, sex, age in [("MCUCXR_0001_0", "F ", "027Y"), ("MCUCXR_0104_1", "M", "140Y")]:
        write_picture(root / "CXR_png" / f"{name}.png", np.zeros((30, 40), np.uint8))
        for side, column in [("left", 25), ("right", 5)]:
            mask = box((30, 40), 5, column, 20, 10).astype(np.uint8) * 255
            write_picture(root / "ManualMask" / f"{side}Mask" / f"{name}.png", mask)
        reading = touch(root / "ClinicalReadings" / f"{name}.txt")
        reading.write_text(f"Patient's Sex: {sex}\nPatient's Age: {age}\nnormal\nchest\n")
    return root


def test_montgomery(montgomery):
    conversion = lung_masks.convert("montgomery", montgomery)
    studies = by_id(montgomery / "studies.jsonl")
    first, second = studies["MCUCXR_0001_0"], studies["MCUCXR_0104_1"]
    assert [study.labels for study in (first, second)] == [{"Tuberculosis": 0}, {"Tuberculosis": 1}]
    assert [study.patient for study in (first, second)] == [{"sex": "F", "age": 27}, {"sex": "M", "age": None}]
    assert first.sections == {"note": "normal chest"}
    assert (first.source, first.images[0].view) == ("montgomery", "PA")
    assert first.split == hash_split("MCUCXR_0001_0", NO_SPLIT)
    left, right = box((30, 40), 5, 25, 20, 10), box((30, 40), 5, 5, 20, 10)
    assert (mask_of(first, "left lung") == left).all()
    assert (mask_of(first, "right lung") == right).all()
    assert (mask_of(first, "lungs") == left | right).all()
    assert (mask_of(first, "left upper zone") == box((30, 40), 5, 25, 6, 10)).all()
    assert (mask_of(first, "left middle zone") == box((30, 40), 11, 25, 7, 10)).all()
    assert (mask_of(first, "right lower zone") == box((30, 40), 18, 5, 7, 10)).all()
    assert dropped(conversion) == {}
    assert "Ages above 120, left out: 1" in conversion.notes
    with pytest.raises(CorpusError, match="ManualMask"):
        lung_masks.convert("montgomery", montgomery, masks=montgomery)


@pytest.fixture
def shenzhen(tmp_path) -> Path:
    root = tmp_path / "ChinaSet_AllFiles"
    for name, reading in [("CHNCXR_0001_0", "femal 16month\nnormal"), ("CHNCXR_0327_1", "male 45yrs\n\nSTB")]:
        write_picture(root / "CXR_png" / f"{name}.png", np.zeros((30, 40), np.uint8))
        touch(root / "ClinicalReadings" / f"{name}.txt").write_text(reading)
    mask = box((30, 40), 5, 5, 20, 10).astype(np.uint8) * 255
    write_picture(root / "mask" / "CHNCXR_0327_1_mask.png", mask)
    return root


def test_shenzhen(shenzhen):
    lung_masks.convert("shenzhen", shenzhen)
    studies = by_id(shenzhen / "studies.jsonl")
    first, second = studies["CHNCXR_0001_0"], studies["CHNCXR_0327_1"]
    assert [study.patient for study in (first, second)] == [{"sex": "F", "age": 1.33}, {"sex": "M", "age": 45}]
    assert [study.labels["Tuberculosis"] for study in (first, second)] == [0, 1]
    assert second.sections == {"note": "STB"}
    assert first.images[0].masks == {}
    assert list(second.images[0].masks) == ["lungs"]
    assert (mask_of(second, "lungs") == box((30, 40), 5, 5, 20, 10)).all()
    touch(shenzhen / "CXR_png" / "CHNCXR_12.png")
    with pytest.raises(CorpusError, match=r"CHNCXR_12\.png: expected a name like CHNCXR_0001_0\.png"):
        lung_masks.convert("shenzhen", shenzhen)


def test_shenzhen_of_an_empty_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no CHNCXR_\*\.png"):
        lung_masks.convert("shenzhen", tmp_path)


# --- The command -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fixture", "count"),
    [
        ("vindr-cxr", "vindr", 3),
        ("rsna", "rsna_root", 3),
        ("nih", "nih_root", 4),
        ("chexpert", "chexpert_root", 3),
        ("covid", "covid_root", 3),
        ("siim", "siim_root", 3),
        ("candid-ptx", "candid", 3),
        ("vindr-ribcxr", "ribs", 3),
        ("lung-masks", "montgomery", 2),
    ],
)
def test_command_line(name, fixture, count, request, tmp_path, capsys):
    root, out = request.getfixturevalue(fixture), tmp_path / "out" / "studies.jsonl"
    source = ["--source", fixture] if name == "lung-masks" else []
    with pytest.raises(SystemExit) as left:
        run("prepare", [name, *source, "--root", str(root), "--out", str(out)])
    assert left.value.code == 0
    assert f"Wrote {count} studies to {out}" in capsys.readouterr().out
    assert len(by_id(out)) == count


def test_command_line_says_in_one_sentence_what_is_missing(tmp_path):
    with pytest.raises(SystemExit) as left:
        run("prepare", ["siim", "--root", str(tmp_path)])
    assert str(left.value.code).startswith(f"raddraft prepare: {tmp_path}: there is no train-rle.csv")
