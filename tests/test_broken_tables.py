"""Every table and JSON file that a converter reads, broken in turn: one sentence that names the file, and no manifest.

`CASES` has a tree in the official layout for each converter, as small as it can be.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from generator.corpora import CORPORA, chexpert, converter, mimic_cxr
from raddraft.errors import RadDraftError
from tests.test_benchmarks import write_dicom, write_picture

CHEXPERT = ",".join(chexpert.LABELS)
TRIANGLE = [[1, 1], [5, 1], [5, 5]]
ZEROS = ",".join(["0.0"] * len(chexpert.LABELS))


@dataclass
class Case:
    """A raw data set, and how it is read."""

    tables: dict[str, str]
    """File -> its content; JSON and JSON lines by their names, lists as .txt, others CSV."""
    films: tuple[str, ...]
    wrong: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """File -> a cell or value, what to put in its place, what the refusal then says."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the converter; paths start at the root."""


def rib(image: str) -> str:
    points = [{"x": 1, "y": 1}, {"x": 5, "y": 1}, {"x": 5, "y": 5}]
    ribs = [f"{side}{number}" for side in "RL" for number in range(1, 11)]
    return json.dumps({"img": {"0": image}} | {name: {"0": points} for name in ribs})


def rex(patient: str) -> str:
    entry = {"PatientID": patient, "Findings": "Clear.", "ImageViewPosition": ["PA"]}
    return json.dumps({f"{patient}_1": entry | {"ImagePath": [f"../deid_png/{patient}.png"]}})


MIMIC = {
    "mimic-cxr-2.0.0-metadata.csv": (
        "dicom_id,subject_id,study_id,ViewPosition,StudyDate\nd1,10000001,50000001,PA,21800506\n"
    ),
    "mimic-cxr-2.0.0-split.csv": "dicom_id,study_id,subject_id,split\nd1,50000001,10000001,test\n",
}
MIMIC_FILM = "files/p10/p10000001/s50000001/d1.jpg"
CASES = {
    "mimic-cxr": Case(
        MIMIC
        | {
            "mimic-cxr-2.0.0-chexpert.csv": "subject_id,study_id,Edema\n10000001,50000001,1.0\n",
            "iv/hosp/patients.csv": "subject_id,gender,anchor_age,anchor_year\n10000001,F,52,2180\n",
            "iv/hosp/omr.csv": (
                "subject_id,chartdate,seq_num,result_name,result_value\n10000001,2180-05-01,1,Weight (Lbs),150\n"
            ),
        },
        (MIMIC_FILM,),
        {
            "mimic-cxr-2.0.0-metadata.csv": ("d1,", "d2,", r"line 2: image 'd2' is not in mimic-cxr-2\.0\.0-split"),
            "mimic-cxr-2.0.0-split.csv": (",test", ",dev", r"line 2: unknown split 'dev'"),
            "mimic-cxr-2.0.0-chexpert.csv": ("1.0", "maybe", r"line 2, Edema: label 'maybe'"),
            "iv/hosp/patients.csv": ("52", "old", r"line 2: anchor_age 'old' is no whole number"),
            "iv/hosp/omr.csv": (",150", ",1,500", r"line 2: 6 cells, but the header has 5"),
        },
        {"sections": (), "mimic_iv": Path("iv")},
    ),
    "mimic-cxr, radiologist": Case(
        MIMIC | {"mimic-cxr-2.1.0-test-set-labeled.csv": "study_id,Airspace Opacity,Edema\n50000001,1.0,0.0\n"},
        (MIMIC_FILM,),
        {"mimic-cxr-2.1.0-test-set-labeled.csv": ("1.0", "yes", r"line 2, Airspace Opacity: label 'yes'")},
        {"sections": (), "labels": "radiologist"},
    ),
    "iu-xray": Case(
        {
            "indiana_reports.csv": "uid,indication,comparison,findings,impression\n1,Pain.,None.,Clear.,Normal.\n",
            "indiana_projections.csv": "uid,filename,projection\n1,1_IM-0001-1001.dcm.png,Frontal\n",
            "annotation.json": json.dumps({"train": [{"id": "CXR1_IM-0001", "split": "train", "report": "Clear."}]}),
        },
        ("1_IM-0001-1001.dcm.png",),
        {
            "indiana_reports.csv": ("\n1,", "\none,", r"line 2: uid must be a number, got 'one'"),
            "annotation.json": ('"split": "train"', '"split": "dev"', r"'train' entry 0: unknown split 'dev'"),
        },
        {"reports": Path("indiana_reports.csv"), "split_file": Path("annotation.json")},
    ),
    "iu-xray, XML": Case(
        {
            "ecgen-radiology/1.xml": (
                '<eCitation><uId id="CXR1"/><AbstractText Label="FINDINGS">Clear.</AbstractText>'
                '<parentImage id="CXR1_IM-0001-1001"/></eCitation>'
            )
        },
        ("CXR1_IM-0001-1001.png",),
        {"ecgen-radiology/1.xml": ("CXR1", "CXR?", r"no uId of the form CXR1000, got '\?'")},
    ),
    "chexpert-plus": Case(
        {
            "df_chexpert_plus_240401.csv": (
                "path_to_image,frontal_lateral,deid_patient_id,split,section_findings,recent_bmi\n"
                "train/patient1/study1/view1_frontal.png,Frontal,patient1,train,Clear.,25\n"
            ),
            "labels.jsonl": '{"path_to_image": "train/patient1/study1/view1_frontal.png", "Edema": 1.0}\n',
        },
        ("train/patient1/study1/view1_frontal.png",),
        {
            "df_chexpert_plus_240401.csv": (",25", ",heavy", r"line 2: recent_bmi must be a number, got 'heavy'"),
            "labels.jsonl": ("1.0", '"maybe"', r"line 1, Edema: label 'maybe'"),
        },
        {"labels": Path("labels.jsonl")},
    ),
    "r2gen": Case(
        {"annotation.json": json.dumps({"train": [{"id": "1", "report": "Clear.", "image_path": ["1.png"]}]})},
        ("images/1.png",),
        {"annotation.json": ('["1.png"]', '"1.png"', r"'train' entry 0: image_path must be a non-empty list")},
    ),
    "rexrank": Case(
        {
            "ReXRank_test.json": json.dumps(
                {"CXR1": {"image_path": ["1.png"], "split": "test", "section_findings": "Clear."}}
            )
        },
        ("1.png",),
        {"ReXRank_test.json": ('"test"', '"dev"', r"CXR1: unknown split 'dev'")},
    ),
    "folder": Case(
        {"mine.csv": "image,patient_id,split,findings\n1.png,A,train,The lungs are clear.\n"},
        ("1.png",),
        {"mine.csv": ("train", "dev", r"line 2: unknown split 'dev'")},
        {"table": Path("mine.csv")},
    ),
    "nih": Case(
        {
            "Data_Entry_2017_v2020.csv": (
                "Image Index,Finding Labels,Patient ID,Patient Age,Patient Sex,View Position\n"
                "00000001_000.png,Hernia,1,58,M,PA\n"
            ),
            "train_val_list.txt": "00000001_000.png\n",
            "test_list.txt": "00000002_000.png\n",
        },
        ("images/00000001_000.png",),
        {
            "Data_Entry_2017_v2020.csv": ("Hernia", "Flu", r"line 2: unknown finding 'Flu'"),
            "train_val_list.txt": ("00000001_000", "film", r"line 1: expected a name like .* got 'film\.png'"),
            "test_list.txt": ("00000002_000", "film", r"line 1: expected a name like .* got 'film\.png'"),
        },
    ),
    "chexpert": Case(
        {
            "train.csv": f"Path,{CHEXPERT}\ntrain/patient00001/study1/view1_frontal.jpg,{ZEROS}\n",
            "valid.csv": f"Path,{CHEXPERT}\nvalid/patient00002/study1/view1_frontal.jpg,{ZEROS}\n",
            "groundtruth.csv": f"Study,{CHEXPERT}\nCheXpert-v1.0/test/patient00003/study1,{ZEROS}\n",
        },
        tuple(
            f"{part}/patient0000{i}/study1/view1_frontal.jpg" for i, part in enumerate(("train", "valid", "test"), 1)
        ),
        {
            "train.csv": ("patient00001", "patient", r"line 2: Path must end like .*, got 'train/patient/"),
            "valid.csv": ("0.0", "2.0", r"line 2, No Finding: label '2\.0'"),
            "groundtruth.csv": ("study1", "study", r"line 2: Path, or else Study, must end like"),
        },
    ),
    "vindr-cxr": Case(
        {
            f"annotations/image_labels_{part}.csv": f"image_id,rad_id,No finding,Edema\n{part},R1,1,0\n"
            for part in ("train", "test")
        },
        ("train/train.png", "test/test.png"),
        {
            f"annotations/image_labels_{part}.csv": (",1,", ",-1,", r"line 2, No finding: label '-1'")
            for part in ("train", "test")
        },
    ),
    "vindr-pcxr": Case(
        {f"image_labels_{part}.csv": f"image_id,rad_ID,No finding,CPAM\n{part},R1,1,0\n" for part in ("train", "test")},
        ("train/train.png", "test/test.png"),
        {f"image_labels_{part}.csv": (",1,", ",x,", r"line 2, No finding: label 'x'") for part in ("train", "test")},
    ),
    "rsna": Case(
        {
            "stage_2_train_labels.csv": "patientId,x,y,width,height,Target\na,,,,,0\n",
            "stage_2_detailed_class_info.csv": "patientId,class\na,Normal\n",
            "mapping.json": json.dumps([{"subset_img_id": "a", "img_id": "00000001_000.png"}]),
            "test_list.txt": "00000002_000.png\n",
        },
        ("stage_2_train_images/a.png",),
        {
            "stage_2_train_labels.csv": (",0\n", ",2\n", r"line 2: Target '2'"),
            "stage_2_detailed_class_info.csv": ("Normal", "Healthy", r"line 2: unknown class 'Healthy'"),
            "mapping.json": ("00000001_000", "film", r"expected an img_id like .*, got 'film\.png'"),
            "test_list.txt": ("00000002_000", "film", r"line 1: expected a name like .* got 'film\.png'"),
        },
        {"mapping": Path("mapping.json")},
    ),
    "covid": Case(
        {"metadata.csv": "patientid,finding,view,modality,folder,filename\n1,Pneumonia,PA,X-ray,images,1.png\n"},
        ("images/1.png",),
    ),
    "siim": Case(
        {"train-rle.csv": "ImageId, EncodedPixels\na,-1\nb,0 5\n"},
        ("dicom-images-train/a.dcm", "dicom-images-train/b.dcm"),
    ),
    "candid-ptx": Case(
        {
            "Pneumothorax_reports.csv": (
                "filename,SOPInstanceUID,EncodedPixels,Report\nP1_1.jpg,1.2,-1,FINDINGS: Clear.\n"
            ),
            "chest_tube.csv": "anon_SOPUID,reference,mask_rle\n1.2,x,-1\n",
            "acute_rib_fracture.csv": "anon_SOPUID,reference,mask_rle\n1.2,x,-1\n",
        },
        ("dataset/1.2.png",),
    ),
    "vindr-ribcxr": Case(
        {f"Vindr_RibCXR_{part}_mask.json": rib(f"VinDr_RibCXR_{part}_1.png") for part in ("train", "val")},
        ("VinDr_RibCXR_train_1.png", "VinDr_RibCXR_val_1.png"),
        {
            f"Vindr_RibCXR_{part}_mask.json": ('{"0": [', '{"0": ["?", ', r"json, R1, 0: A rib of VinDr-RibCXR is")
            for part in ("train", "val")
        },
    ),
    "lung-masks": Case(
        {
            "CLNDAT_EN.txt": "JPCLN001.IMG\t1\t15\t53\tFemale\t1634\t692\n",
            "CNNDAT_EN.txt": "JPCNN001.IMG\t60\tMale\tnon-nodule\n",
        },
        ("JPCLN001.png", "JPCNN001.png", "fold1/masks/left lung/JPCLN001.gif", "fold2/masks/left lung/JPCNN001.gif"),
        options={"source": "jsrt"},
    ),
    "padchest": Case(
        {
            "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv": (
                "ImageID,ImageDir,StudyID,PatientID,PatientBirth,PatientSex_DICOM,StudyDate_DICOM,Projection,"
                "MethodLabel,Labels\na.png,0,1,A,1930.0,F,20140915,PA,Physician,['pneumonia']\n"
            )
        },
        ("0/a.png",),
        {
            "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv": (
                "['pneumonia']",
                "['pneumonia'",
                r"line 2: Labels must be a list .*, got \"\['pneumonia'\"",
            )
        },
    ),
    "padchest-gr": Case(
        {
            "grounded_reports_20240819.json": json.dumps(
                [{"StudyID": "1", "ImageID": "a.png", "findings": [{"sentence_en": "Clear.", "abnormal": False}]}]
            ),
            "master_table.csv": "StudyID,PatientID,split\n1,A,train\n",
        },
        ("a.png",),
        {
            "grounded_reports_20240819.json": ('"1"', "1", r"entry 0: expected an object with StudyID"),
            "master_table.csv": ("train", "dev", r"line 2: unknown split 'dev'"),
        },
    ),
    "brax": Case(
        {
            "master_spreadsheet_update.csv": (
                f"PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,ViewPosition,{CHEXPERT}\n"
                f"images/a.png,A,F,40 to 44,1,PA,{ZEROS}\n"
            )
        },
        ("images/a.png",),
        {"master_spreadsheet_update.csv": ("0.0", "maybe", r"line 2, No Finding: label 'maybe'")},
    ),
    "rexgradient": Case(
        {f"metadata/{part}_metadata_view_position.json": rex(part) for part in ("train", "valid", "test")},
        tuple(f"deid_png/{part}.png" for part in ("train", "valid", "test")),
        {
            f"metadata/{part}_metadata_view_position.json": ('["..', '[7, "..', "an image must be a path, got 7")
            for part in ("train", "valid", "test")
        },
    ),
    "chexlocalize": Case(
        {
            "val_labels.csv": f"Path,{CHEXPERT}\nvalid/patient1/study1/view1_frontal.jpg,{ZEROS}\n",
            "test_labels.csv": f"Path,{CHEXPERT}\ntest/patient2/study1/view1_frontal.jpg,{ZEROS}\n",
        }
        | {
            f"gt_segmentations_{part}.json": json.dumps(
                {f"patient{patient}_study1_view1_frontal": {"Edema": {"size": [8, 8], "counts": [8, 8, 48]}}}
            )
            for patient, part in enumerate(("val", "test"), 1)
        },
        ("valid/patient1/study1/view1_frontal.jpg", "test/patient2/study1/view1_frontal.jpg"),
        {
            "val_labels.csv": ("0.0", "2", r"line 2, No Finding: label '2'"),
            "test_labels.csv": ("patient2", "patient", r"line 2: Path must end like"),
            "gt_segmentations_val.json": ("48", "47", r"Edema: COCO's run lengths do not fill their 8 x 8 pixels"),
            "gt_segmentations_test.json": ("Edema", "Flu", r"patient2_study1_view1_frontal, Flu: unknown finding"),
        },
    ),
    "chestx-det": Case(
        {
            f"ChestX_Det_{part}.json": json.dumps(
                [{"file_name": f"{part}.png", "syms": ["Mass"], "boxes": [[1, 1, 5, 5]], "polygons": [TRIANGLE]}]
            )
            for part in ("train", "test")
        },
        ("train.png", "test.png"),
        {f"ChestX_Det_{part}.json": ("Mass", "Flu", "entry 1: unknown finding 'Flu'") for part in ("train", "test")},
    ),
    "ms-cxr": Case(
        {
            "MS_CXR_Local_Alignment_v1.1.0.csv": (
                "dicom_id,category_name,label_text,path,x,y,w,h,image_width,image_height,split\n"
                f"d1,Edema,edema,{MIMIC_FILM},1,1,5,5,8,8,test\n"
            ),
            "mimic-cxr-2.0.0-split.csv": MIMIC["mimic-cxr-2.0.0-split.csv"],
        },
        (MIMIC_FILM,),
        {
            "MS_CXR_Local_Alignment_v1.1.0.csv": (",5,5,", ",5,tall,", r"line 2: h must be a number, got 'tall'"),
            "mimic-cxr-2.0.0-split.csv": (",test", ",dev", r"line 2: unknown split 'dev'"),
        },
        {"images": Path()},
    ),
}
TABLES = [(name, table) for name, case in CASES.items() for table in case.tables]
CSV = [(name, table) for name, table in TABLES if table.endswith(".csv")]
JSON = [(name, table) for name, table in TABLES if table.endswith(".json")]
NOT_ZIPPED = {"indiana_projections.csv"}
"""Looked for under this name alone."""
FREE_TEXT = {"lung-masks"}
"""JSRT's tables are read as text, whatever its encoding."""
FOREIGN = {
    ".csv": (CASES["nih"].tables["Data_Entry_2017_v2020.csv"], CASES["rsna"].tables["stage_2_train_labels.csv"]),
    ".txt": (CASES["nih"].tables["Data_Entry_2017_v2020.csv"],),
    ".json": (
        CASES["chestx-det"].tables["ChestX_Det_test.json"],
        CASES["rexgradient"].tables["metadata/test_metadata_view_position.json"],
        *('{"a": {"b": 1}}', '"text"', "[[1]]", "7"),
    ),
    ".jsonl": (CASES["rexgradient"].tables["metadata/test_metadata_view_position.json"], "7\n"),
    ".xml": ("<html><body/></html>",),
}


def make(name: str, root: Path, suffix: Mapping[str, str] = MappingProxyType({})) -> Callable[[], Any]:
    """Write the tree of a case. What is returned converts it; a table that an option names has there another suffix."""
    case = CASES[name]
    for table, text in case.tables.items():
        (root / table).parent.mkdir(parents=True, exist_ok=True)
        (root / table).write_text(text, encoding="utf-8")
    for film in case.films:
        if film.endswith(".dcm"):
            write_dicom(root / film)
        else:
            write_picture(root / film, np.zeros((8, 8), np.uint8))
    options = {
        key: root / f"{value}{suffix.get(str(value), '')}" if isinstance(value, Path) else value
        for key, value in case.options.items()
    }
    return lambda: converter(name.partition(",")[0])(root=root, out=root / "out" / "studies.jsonl", **options)


def refusal(convert: Callable[[], Any], root: Path, table: str) -> str:
    """The sentence by which a converter refuses a table, which it names; nothing is written."""
    with pytest.raises(RadDraftError) as refused:
        convert()
    said = str(refused.value)
    assert "\n" not in said
    assert Path(table).name in said
    assert not (root / "out" / "studies.jsonl").exists()
    return said


def test_every_converter_of_tables_is_here():
    assert {name.partition(",")[0] for name in CASES} == {*CORPORA} - {"phantom"}


@pytest.mark.parametrize("name", CASES)
def test_the_whole_trees_are_read(name, tmp_path):
    assert make(name, tmp_path)().studies


@pytest.mark.parametrize(("name", "table"), [(name, table) for name, case in CASES.items() for table in case.wrong])
def test_a_wrong_value_is_named(name, table, tmp_path):
    convert = make(name, tmp_path)
    old, new, expected = CASES[name].wrong[table]
    text = CASES[name].tables[table]
    assert old in text
    (tmp_path / table).write_text(text.replace(old, new))
    assert re.search(expected, refusal(convert, tmp_path, table))


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_an_empty_table_is_refused(name, table, tmp_path):
    convert = make(name, tmp_path)
    (tmp_path / table).write_bytes(b"")
    refusal(convert, tmp_path, table)


@pytest.mark.parametrize(("name", "table"), [(name, table) for name, table in TABLES if name not in FREE_TEXT])
def test_bytes_that_are_no_text_are_refused(name, table, tmp_path):
    convert = make(name, tmp_path)
    path = tmp_path / table
    content = path.read_bytes()
    path.write_bytes(content[:-4] + b"\xff\xfe" + content[-4:])
    said = refusal(convert, tmp_path, table)
    lines = content.count(b"\n")
    assert path.suffix not in (".csv", ".txt", ".jsonl") or f" line {lines}" in said


@pytest.mark.parametrize(("name", "table"), TABLES)
def test_another_sets_table_is_refused(name, table, tmp_path):
    convert = make(name, tmp_path)
    for text in (text for text in FOREIGN[Path(table).suffix] if text not in CASES[name].tables.values()):
        (tmp_path / table).write_text(text)
        refusal(convert, tmp_path, table)


@pytest.mark.parametrize(("name", "table"), CSV)
def test_a_table_of_a_header_alone_is_refused(name, table, tmp_path):
    convert = make(name, tmp_path)
    (tmp_path / table).write_text(CASES[name].tables[table].splitlines()[0] + "\n")
    assert "a header and no row" in refusal(convert, tmp_path, table)


@pytest.mark.parametrize(("name", "table"), CSV)
@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda row: f'"{row}', "unexpected end of data"),
        (lambda row: f'"a"b,{row}', "',' expected after '\"'"),
        (lambda row: f"{row},more", r"cells, but the header has \d+; is a comma not quoted\?"),
        (lambda row: row.partition(",")[0], r"the file ends within a row: it has 1 of \d+ cells"),
    ],
    ids=["open quote", "quote within", "comma too many", "cut row"],
)
def test_a_broken_row_is_named(name, table, spoil, expected, tmp_path):
    convert = make(name, tmp_path)
    *rows, last = CASES[name].tables[table].splitlines()
    (tmp_path / table).write_text("\n".join([*rows, last, spoil(last)]))
    assert re.search(rf" line {len(rows) + 2}: .*{expected}", refusal(convert, tmp_path, table))


@pytest.mark.parametrize(("name", "table"), CSV)
def test_two_columns_of_one_name_are_refused(name, table, tmp_path):
    convert = make(name, tmp_path)
    rows = CASES[name].tables[table].splitlines()
    first = next(csv.reader(rows))[0]
    (tmp_path / table).write_text("\n".join([f"{rows[0]},{first}", *(f"{row},x" for row in rows[1:])]))
    if first:
        assert f"two columns are named {first!r}" in refusal(convert, tmp_path, table)


@pytest.mark.parametrize(("name", "table"), [(name, table) for name, table in CSV if table not in NOT_ZIPPED])
@pytest.mark.parametrize("kind", ["cut", "not zipped", "damaged"])
def test_a_broken_gz_is_refused(name, table, kind, tmp_path):
    convert = make(name, tmp_path, suffix={table: ".gz"})
    path = tmp_path / table
    content = gzip.compress(path.read_bytes())
    middle = len(content) // 2
    broken = {
        "cut": content[:middle],
        "not zipped": path.read_bytes(),
        "damaged": content[:middle] + bytes(8) + content[middle + 8 :],
    }
    path.unlink()
    path.with_name(f"{path.name}.gz").write_bytes(broken[kind])
    refusal(convert, tmp_path, table)


@pytest.mark.parametrize(("name", "table"), JSON)
def test_json_that_is_cut_is_refused(name, table, tmp_path):
    convert = make(name, tmp_path)
    text = CASES[name].tables[table]
    for length in (1, len(text) // 2, len(text) - 1):
        (tmp_path / table).write_text(text[:length])
        assert "not valid JSON" in refusal(convert, tmp_path, table)


@pytest.mark.parametrize(("name", "table"), JSON)
@pytest.mark.parametrize("nothing", ["{}", "[]", "null"])
def test_json_that_holds_nothing_is_refused(name, table, nothing, tmp_path):
    convert = make(name, tmp_path)
    (tmp_path / table).write_text(nothing)
    assert "holds nothing" in refusal(convert, tmp_path, table)


@pytest.mark.parametrize("kind", ["cut", "not zipped", "damaged"])
def test_a_broken_tgz_of_iu_xray_is_refused(kind, tmp_path):
    convert = make("iu-xray, XML", tmp_path)
    report = tmp_path / "ecgen-radiology" / "1.xml"
    with tarfile.open(tmp_path / "whole.tgz", "w:gz") as archive:
        for number in range(50):
            archive.add(report, f"{number}.xml")
    content = (tmp_path / "whole.tgz").read_bytes()
    middle = len(content) // 2
    broken = {
        "cut": content[:middle],
        "not zipped": b"1.xml",
        "damaged": content[:middle] + bytes(40) + content[middle + 40 :],
    }
    (tmp_path / "NLMCXR_reports.tgz").write_bytes(broken[kind])
    assert "not a whole tar file" in refusal(convert, tmp_path, "NLMCXR_reports.tgz")


def test_a_damaged_zip_of_mimics_reports_is_refused(tmp_path):
    make("mimic-cxr", tmp_path)
    archive = tmp_path / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("files/p10/p10000001/s50000001.txt", "FINDINGS: The lungs are clear. " + "No effusion. " * 50)
    content = archive.read_bytes()
    archive.write_bytes(content[:80] + bytes(10) + content[90:])
    convert = partial(mimic_cxr.convert, tmp_path, out=tmp_path / "out" / "studies.jsonl", reports=archive)
    assert "s50000001.txt: " in refusal(convert, tmp_path, archive.name)
