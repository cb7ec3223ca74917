"""Raw data sets -> manifests. The trees have the official layouts; names, numbers and texts in them are made up."""

import csv
import gzip
import json
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from generator.corpora import CORPORA, chexpert_plus, converter, folder, iu_xray, mimic_cxr, r2gen
from generator.corpora.common import CorpusError, hash_split, parse_label, parse_patient, read_table
from raddraft.cli import run
from raddraft.studies import read_studies
from scripts.prepare import COMMANDS
from tests.test_cli import run as run_command

NORMAL = " FINAL REPORT\n INDICATION: cough.\n \n FINDINGS:  The lungs\n are clear.\n \n IMPRESSION:  Normal.\n"
NO_FINDINGS = " FINAL REPORT\n INDICATION: cough.\n \n IMPRESSION:  Normal.\n"


def write_csv(path: Path, rows: list[dict], zipped: bool = False) -> None:
    """The keys of the first row are the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") if zipped else open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def touch(path: Path) -> Path:
    """Converters never open an image, so an empty file will do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def by_id(path: Path) -> dict:
    return {study.study_id: study for study in read_studies(path, check_images=True)}


def dropped(conversion) -> dict[str, int]:
    return {reason: studies for reason, studies, _, _ in conversion.drops}


# --- MIMIC-CXR ---------------------------------------------------------------------------------------------------

MIMIC = [  # dicom, subject, study, view, split, report
    ("d1", "10000001", "50000001", "AP", "train", NORMAL),
    ("d2", "10000001", "50000001", "LATERAL", "train", NORMAL),
    ("d3", "10000001", "50000002", "PA", "train", NO_FINDINGS),
    ("d4", "11000002", "50000003", "LATERAL", "train", NORMAL),
    ("d5", "11000003", "50000004", "PA", "validate", NORMAL),
    ("d6", "12000004", "50000005", "PA", "test", NORMAL),
    ("d7", "12000004", "50000006", "", "test", NORMAL),
    ("d8", "12000004", "50000007", "AP", "test", NORMAL),  # its image is not on disk
    ("d9", "12000004", "50000008", "AP", "test", None),
]


@pytest.fixture(params=[True, False], ids=["gz", "plain"])
def mimic(tmp_path, request) -> Path:
    root = tmp_path / "mimic"
    metadata, splits, labels = [], [], {}
    for dicom, subject, study, view, split, report in MIMIC:
        base = root / "files" / f"p{subject[:2]}" / f"p{subject}"
        if dicom != "d8":
            touch(base / f"s{study}" / f"{dicom}.jpg")
        if report:
            (base / f"s{study}.txt").write_text(report)
        row = {"dicom_id": dicom, "subject_id": subject, "study_id": study, "ViewPosition": view}
        metadata.append(row | {"StudyDate": "21800506", "StudyTime": "213014.531"})
        splits.append({"dicom_id": dicom, "study_id": study, "subject_id": subject, "split": split})
        row = {"subject_id": subject, "study_id": study, "Cardiomegaly": "1.0", "Edema": "-1.0", "Fracture": ""}
        labels[study] = row | {"No Finding": "0.0"}
    suffix = ".csv.gz" if request.param else ".csv"
    write_csv(root / f"mimic-cxr-2.0.0-metadata{suffix}", metadata, request.param)
    write_csv(root / f"mimic-cxr-2.0.0-split{suffix}", splits, request.param)
    write_csv(root / f"mimic-cxr-2.0.0-chexpert{suffix}", list(labels.values()), request.param)
    return root


def test_mimic_by_default(mimic):
    conversion = mimic_cxr.convert(mimic)
    studies = by_id(mimic / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == {
        "s50000001": "train",
        "s50000004": "val",
        "s50000005": "test",
    }
    study = studies["s50000001"]
    assert study.subject_id == "p10000001"
    assert [(image.path.name, image.view) for image in study.images] == [("d1.jpg", "AP")]
    assert study.sections["findings"] == "The lungs are clear."
    assert study.sections["impression"] == "Normal."
    assert study.labels == {"Cardiomegaly": 1, "Edema": -1, "Fracture": None, "No Finding": 0}
    assert study.extra == {"study_date": "21800506", "study_time": "213014.531"}
    assert study.source == "mimic-cxr"
    assert dropped(conversion) == {
        "no AP or PA image": 2,
        "no image file on disk": 1,
        "no report file": 1,
        "no findings": 1,
    }


def test_the_table_says_what_became_of_every_study(mimic):
    table = [line.split() for line in str(mimic_cxr.convert(mimic)).splitlines()]
    assert ["mimic-cxr", "read", "train", "val", "test", "kept"] in table
    assert ["studies", "8", "1", "1", "1", "3"] in table
    assert ["images", "9", "1", "1", "1", "3"] in table
    assert ["with", "impression", "4", "1", "1", "1", "3"] in table  # of the reports that were opened
    assert ["with", "findings", "3", "1", "1", "1", "3"] in table
    assert ["no", "AP", "or", "PA", "image", "2", "3", "6"] in table
    assert ["no", "image", "file", "on", "disk", "1", "1", "5"] in table
    assert any(line[:3] == ["Wrote", "3", "studies"] for line in table)
    assert any(line and line[-1].endswith("d8.jpg") for line in table)


def test_mimic_with_every_view_and_no_section_asked_for(mimic, tmp_path):
    out = tmp_path / "elsewhere" / "all.jsonl"
    mimic_cxr.convert(mimic, out=out, views="all", sections=(), labels="none")
    studies = by_id(out)
    assert len(studies) == 7
    assert [image.view for image in studies["s50000001"].images] == ["AP", "LATERAL"]
    assert studies["s50000006"].images[0].view is None
    assert studies["s50000008"].sections == {}
    assert not studies["s50000001"].labels
    assert json.loads(out.read_text().splitlines()[0])["images"][0]["path"].startswith("../mimic/files/p10/")


@pytest.mark.parametrize("prefix", ["files", "mimic-cxr-reports/files"])
def test_mimic_reports_from_their_zip(mimic, tmp_path, prefix):
    archive = tmp_path / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(mimic.rglob("*.txt")):
            file.writestr(f"{prefix}/{path.relative_to(mimic / 'files')}", path.read_text())
            path.unlink()
    mimic_cxr.convert(mimic, reports=archive)
    assert by_id(mimic / "studies.jsonl")["s50000001"].sections["findings"] == "The lungs are clear."


def test_mimic_reports_with_lone_carriage_returns(mimic):
    for path in mimic.rglob("*.txt"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r"))
    mimic_cxr.convert(mimic)
    study = by_id(mimic / "studies.jsonl")["s50000001"]
    assert (study.sections["findings"], study.sections["impression"]) == ("The lungs are clear.", "Normal.")


@pytest.mark.parametrize(
    ("meaning", "view"), [("postero-anterior", "PA"), ("antero-posterior", "AP"), ("left lateral", "LATERAL")]
)
def test_mimic_views_that_only_their_code_tells(mimic, meaning, view):
    zipped = (mimic / "mimic-cxr-2.0.0-metadata.csv.gz").is_file()
    row = {"dicom_id": "d1", "subject_id": "10000001", "study_id": "50000001", "ViewPosition": ""}
    rows = [row | {"ViewCodeSequence_CodeMeaning": meaning}]
    rows += [rows[0] | {"dicom_id": "d3", "study_id": "50000002", "ViewPosition": "AP"}]
    write_csv(mimic / f"mimic-cxr-2.0.0-metadata.csv{'.gz' if zipped else ''}", rows, zipped)
    studies = mimic_cxr.convert(mimic, views="all", sections=()).studies
    assert [study.images[0].view for study in studies] == [view, "AP"]
    assert len(mimic_cxr.convert(mimic, sections=()).studies) == (1 if view == "LATERAL" else 2)


def test_mimic_dicom_tree(mimic):
    for path in mimic.rglob("*.jpg"):
        path.rename(path.with_suffix(".dcm"))
    mimic_cxr.convert(mimic)
    assert by_id(mimic / "studies.jsonl")["s50000001"].images[0].path.name == "d1.dcm"


@pytest.mark.parametrize("kind", ["metadata", "split", "chexpert"])
def test_mimic_names_the_table_that_is_missing(mimic, kind):
    next(mimic.glob(f"*{kind}*")).unlink()
    with pytest.raises(FileNotFoundError, match=rf"mimic-cxr-2\.0\.0-{kind}\.csv.*physionet\.org.*--tables"):
        mimic_cxr.convert(mimic)


def test_mimic_says_where_reports_come_from(mimic):
    for path in mimic.rglob("*.txt"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no report found.*s50000001.*mimic-cxr-reports\.zip.*--reports"):
        mimic_cxr.convert(mimic)
    assert len(mimic_cxr.convert(mimic, sections=()).studies) == 5


def test_mimic_without_any_image_writes_nothing(mimic):
    for path in mimic.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(CorpusError, match=r"no study is left(.|\n)*no image file on disk(.|\n)*d1\.jpg") as refused:
        mimic_cxr.convert(mimic)
    table = [line.split() for line in refused.value.table.splitlines()]
    assert ["no", "AP", "or", "PA", "image", "2", "3", "6"] in table
    assert ["no", "image", "file", "on", "disk", "6", "6", "0"] in table
    assert not (mimic / "studies.jsonl").exists()


def test_mimic_names_line_and_value_of_a_bad_cell(tmp_path):
    row = {"dicom_id": "d1", "subject_id": "10000001", "study_id": "50000001", "ViewPosition": "AP"}
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv", [row])
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", [row | {"split": "dev"}])
    with pytest.raises(CorpusError, match=r"mimic-cxr-2\.0\.0-split\.csv line 2: unknown split 'dev'"):
        mimic_cxr.convert(tmp_path, labels="none")
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", [row | {"dicom_id": "other", "split": "train"}])
    with pytest.raises(CorpusError, match=r"metadata\.csv line 2: image 'd1' is not in mimic-cxr-2\.0\.0-split\.csv"):
        mimic_cxr.convert(tmp_path, labels="none")


def test_files_cut_short_are_named(mimic, iu, tmp_path):
    cut = tmp_path / "cut.zip"
    cut.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(CorpusError, match=r"cut\.zip: not a whole zip file"):
        mimic_cxr.convert(mimic, reports=cut)
    with tarfile.open(tmp_path / "whole.tgz", "w:gz") as archive:
        archive.add(iu / "7.xml", "7.xml")
    (iu / "NLMCXR_reports.tgz").write_bytes((tmp_path / "whole.tgz").read_bytes()[:-40])
    with pytest.raises(CorpusError, match=r"NLMCXR_reports\.tgz: not a whole tar file"):
        iu_xray.convert(iu)
    table = mimic / "mimic-cxr-2.0.0-split.csv.gz"
    content = "dicom_id,split\n" + "".join(f"{hash_split(str(i), (0.5, 0.2, 0.3))}{i},train\n" for i in range(999))
    table.write_bytes(gzip.compress(content.encode())[:-99])
    table.with_suffix("").unlink(missing_ok=True)
    with pytest.raises(CorpusError, match=r"split\.csv\.gz line \d+: .*end"):
        mimic_cxr.convert(mimic)


def test_a_subject_in_two_splits_is_named(tmp_path):
    metadata = [
        {"dicom_id": f"d{i}", "subject_id": "10000001", "study_id": f"5000000{i}", "ViewPosition": "AP"} for i in (1, 2)
    ]
    write_csv(tmp_path / "mimic-cxr-2.0.0-metadata.csv", metadata)
    splits = [{"dicom_id": "d1", "split": "train"}, {"dicom_id": "d2", "split": "test"}]
    write_csv(tmp_path / "mimic-cxr-2.0.0-split.csv", splits)
    for row in metadata:
        touch(tmp_path / "files/p10/p10000001" / f"s{row['study_id']}" / f"{row['dicom_id']}.jpg")
    with pytest.raises(CorpusError, match=r"p10000001' is in split 'train' .*s50000001.* 'test' .*s50000002"):
        mimic_cxr.convert(tmp_path, sections=(), labels="none")


def test_phantoms_lie_on_disk_as_mimic_does(tmp_path):
    COMMANDS["phantom"](root=tmp_path, count=8, size=64, processes=1)
    drawn = by_id(tmp_path / "studies.jsonl")
    mimic_cxr.convert(tmp_path, out=tmp_path / "mimic.jsonl")
    read = by_id(tmp_path / "mimic.jsonl")
    assert len(drawn) == 8
    assert set(read) <= set(drawn)
    for name, study in read.items():
        assert (study.subject_id, study.split) == (drawn[name].subject_id, drawn[name].split)
        assert study.sections["findings"] == drawn[name].sections["findings"]
        assert [(i.path, i.view) for i in study.images] == [(i.path, i.view) for i in drawn[name].images]
        assert study.labels == drawn[name].labels


# --- IU X-ray ----------------------------------------------------------------------------------------------------


def test_iu_counts_of_the_real_collection(cxr, tmp_path):
    conversion = iu_xray.convert(cxr / "iu", out=tmp_path / "studies.jsonl")
    assert (conversion.n_read, conversion.n_images_read) == (3955, 7470)
    assert conversion.sections_read["findings"] == 3425
    assert conversion.sections_read["impression"] == 3921
    assert conversion.sections_read["indication"] == 3865
    assert [left for *_, left in conversion.drops] == [3851, 12, 11]
    studies = by_id(tmp_path / "studies.jsonl")
    views = {image.path.name: image.view for study in studies.values() for image in study.images}
    assert len(views) == 16  # 18 images; the two folders in R2Gen's form both have 0.png and 1.png
    assert views["CXR54_IM-2145-1001.png"] == "FRONTAL"
    assert views["2_IM-0652-2001.dcm.png"] == "LATERAL"
    assert [image.path.parent.name for image in studies["CXR2843"].images] == ["CXR2843_IM-1254-1001"] * 2
    assert all("&" not in text for study in conversion.studies for text in study.sections.values())


def test_iu_split_of_r2gen_on_the_real_collection(cxr, tmp_path):
    out = tmp_path / "studies.jsonl"
    split_file = cxr / "iu" / "annotation.json"
    conversion = iu_xray.convert(cxr / "iu", out, split_file=split_file, missing="keep")
    studies = read_studies(out)
    assert [sum(study.split == split for study in studies) for split in ("train", "val", "test")] == [2069, 296, 590]
    assert {study.split for study in studies if study.study_id in ("CXR2843", "CXR383")} == {"test"}
    assert dropped(conversion)["no findings"] == 0
    assert "word for word: findings 277 of 590 (47 %), impression" in str(conversion)
    assert "iu-xray: the patients of 2,955 studies are not known; some may be in more than one split" in str(conversion)


def test_iu_tables_on_the_real_collection(cxr, tmp_path):
    reports = cxr / "iu" / "indiana_reports.csv"
    conversion = iu_xray.convert(cxr / "iu", tmp_path / "s.jsonl", reports=reports, missing="keep", sections=())
    assert (conversion.n_read, conversion.n_images_read) == (3851, 7466)
    assert conversion.sections_read["findings"] == 3337
    assert not any("#NAME?" in text for study in conversion.studies for text in study.sections.values())


def iu_xml(number: int, findings: str, *images: str) -> str:
    parents = "".join(f'<parentImage id="{image}"/>' for image in images)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><eCitation><uId id="CXR{number}"/><Abstract>'
        f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
        f'<AbstractText Label="IMPRESSION">Normal XXXX.</AbstractText></Abstract>{parents}</eCitation>'
    )


@pytest.fixture
def iu(tmp_path) -> Path:
    root = tmp_path / "iu"
    root.mkdir()
    (root / "7.xml").write_text(iu_xml(7, "Size &amp;lt; 2 cm.\n  Clear.", "CXR7_IM-0001-1001", "CXR7_IM-0001-2001"))
    (root / "8.xml").write_text(iu_xml(8, "Clear.", "CXR8_1_IM-0002-1001"))
    (root / "9.xml").write_text(iu_xml(9, "", "CXR9_IM-0003-1001"))
    (root / "10.xml").write_text(iu_xml(10, "Clear."))
    touch(root / "png" / "CXR7_IM-0001-1001.png")
    touch(root / "png" / "7_IM-0001-2001.dcm.png")
    touch(root / "png" / "CXR8_IM-0002" / "0.png")
    touch(root / "png" / "CXR9_IM-0003-1001.png")
    return root


def test_iu_joins_images_under_their_three_names(iu):
    conversion = iu_xray.convert(iu)
    studies = by_id(iu / "studies.jsonl")
    assert {name: [image.path.name for image in study.images] for name, study in studies.items()} == {
        "CXR7": ["CXR7_IM-0001-1001.png", "7_IM-0001-2001.dcm.png"],
        "CXR8": ["0.png"],
    }
    assert studies["CXR7"].sections == {"findings": "Size < 2 cm. Clear.", "impression": "Normal XXXX."}
    assert studies["CXR7"].subject_id == "CXR7"
    assert studies["CXR7"].images[0].view is None
    assert dropped(conversion) == {"report names no image": 1, "no image file on disk": 0, "no findings": 1}


@pytest.mark.parametrize("name", ["CXR8_1_IM-0002-1001.png", "CXR8_IM-0002-1001.png", "8_IM-0002-1001.dcm.png"])
def test_iu_originals_come_before_the_copies_of_r2gen(iu, name):
    touch(iu / "png" / name)
    conversion = iu_xray.convert(iu)
    assert [image.path.name for image in by_id(iu / "studies.jsonl")["CXR8"].images] == [name]
    assert conversion.first_missing is None


def test_iu_views_and_lateral_only_studies(iu):
    rows = [("7", "7_IM-0001-1001.dcm.png", "Lateral"), ("7", "7_IM-0001-2001.dcm.png", "Frontal")]
    rows.append(("9", "9_IM-0003-1001.dcm.png", "Lateral"))
    table = [dict(zip(("uid", "filename", "projection"), row, strict=True)) for row in rows]
    write_csv(iu / "indiana_projections.csv", table)
    conversion = iu_xray.convert(iu, views="frontal", sections=())
    studies = by_id(iu / "studies.jsonl")
    assert [(image.path.name, image.view) for image in studies["CXR7"].images] == [
        ("7_IM-0001-2001.dcm.png", "FRONTAL"),
    ]
    assert list(studies) == ["CXR7", "CXR8"]
    assert dropped(conversion)["no frontal image"] == 1


def test_iu_may_keep_images_that_are_not_there(iu):
    for path in iu.rglob("*.png"):
        path.unlink()
    iu_xray.convert(iu, images=iu / "png", missing="keep")
    studies = read_studies(iu / "studies.jsonl")
    assert [image.path.name for study in studies for image in study.images] == [
        *("CXR7_IM-0001-1001.png", "CXR7_IM-0001-2001.png", "CXR8_1_IM-0002-1001.png")
    ]
    with pytest.raises(CorpusError, match="no study is left"):
        iu_xray.convert(iu, images=iu / "png")


def test_iu_split_file_whose_test_key_is_damaged(iu):
    split_file = iu / "annotation.json"
    entries = {"val": [{"id": "CXR8_IM-0002"}], "    ": [{"id": "CXR7_IM-0001-1001", "split": "test"}]}
    split_file.write_text(json.dumps(entries))
    conversion = iu_xray.convert(iu, split_file=split_file)
    assert {study.study_id: study.split for study in conversion.studies} == {"CXR7": "test", "CXR8": "val"}
    assert dropped(conversion)["not in annotation.json"] == 2
    split_file.write_text(json.dumps({"    ": [{"id": "CXR7_IM-0001-1001"}]}))
    with pytest.raises(CorpusError, match=r"annotation\.json, '    ' entry 0: unknown split '    '"):
        iu_xray.convert(iu, split_file=split_file)


def test_iu_entities_of_the_table_are_the_letters_of_the_xml(iu):
    row = {"uid": "7", "indication": "", "comparison": "", "findings": "Size &lt; 2 cm &amp; clear.", "impression": ""}
    write_csv(iu / "indiana_reports.csv", [row])
    write_csv(iu / "indiana_projections.csv", [{"uid": "7", "filename": "7_IM-0001-2001.dcm.png", "projection": "?"}])
    [study] = iu_xray.convert(iu, reports=iu / "indiana_reports.csv").studies
    assert study.sections == {"findings": "Size < 2 cm & clear."}
    assert {image.view for image in study.images} == {None}


def test_iu_errors(iu, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"NLMCXR_reports\.tgz.*openi"):
        iu_xray.convert(touch(tmp_path / "empty" / "x.png").parent)
    (iu / "11.xml").write_text("<eCitation>")
    with pytest.raises(CorpusError, match=r"11\.xml: not valid XML"):
        iu_xray.convert(iu)
    (iu / "11.xml").unlink()
    with pytest.raises(CorpusError, match=r"no study has a section 'finding'\. Sections found: impression, findings"):
        iu_xray.convert(iu, sections=("finding",))


# --- CheXpert Plus -----------------------------------------------------------------------------------------------

CHEXPERT = {
    "path_to_image": "train/patient00001/study1/view1_frontal.jpg",
    "path_to_dcm": "train/patient00001/study1/view1_frontal.dcm",
    "frontal_lateral": "Frontal",
    "ap_pa": "AP",
    "deid_patient_id": "patient00001",
    "patient_report_date_order": "1",
    "report": "NARRATIVE: …",
    "section_narrative": "",
    "section_clinical_history": "",
    "section_history": "Cough.",
    "section_findings": "1.LUNGS ARE\nCLEAR.",
    "section_impression": "",
    "section_end_of_impression": "1-NORMAL",
    "section_accession_number": "12345",
    "age": "61.0",
    "sex": "Female",
    "recent_bmi": "22.5",
    "split": "train",
}


def chexpert_row(patient: int, view: str, split: str = "train", **changes: str) -> dict[str, str]:
    name = f"{split}/patient{patient:05d}/study1/{view}.jpg"
    side = "Frontal" if "frontal" in view else "Lateral"
    row = {"path_to_image": name, "deid_patient_id": f"patient{patient:05d}", "frontal_lateral": side, "split": split}
    return CHEXPERT | row | changes


@pytest.fixture
def chexpert(tmp_path) -> Path:
    rows = [
        chexpert_row(1, "view1_frontal"),
        chexpert_row(2, "view2_lateral", ap_pa=""),
        chexpert_row(1, "view2_lateral", ap_pa="", section_findings="SOMETHING ELSE."),
        chexpert_row(3, "view1_frontal", ap_pa="LL", section_findings="", section_impression="NORMAL."),
        chexpert_row(
            4, "view1_frontal", "valid", sex="Unknown", age="", recent_bmi="", section_clinical_history="Pain."
        ),
    ]
    write_csv(tmp_path / "df_chexpert_plus_240401.csv", rows)
    for row in rows:
        touch(tmp_path / "PNG" / Path(row["path_to_image"]).with_suffix(".png"))
    return tmp_path


def test_chexpert_plus(chexpert):
    conversion = chexpert_plus.convert(chexpert)
    studies = by_id(chexpert / "studies.jsonl")
    assert {name: study.split for name, study in studies.items()} == {
        "patient00001_study1": "train",
        "patient00004_study1": "val",
    }
    first, last = studies.values()
    assert [(image.path.name, image.view) for image in first.images] == [("view1_frontal.png", "AP")]
    assert first.sections == {"history": "Cough.", "findings": "1.LUNGS ARE CLEAR.", "end of impression": "1-NORMAL"}
    assert first.patient == {"sex": "F", "age": 61, "bmi": 22.5}
    assert first.extra == {"study_order": 1}
    assert last.patient == {"sex": None, "age": None, "bmi": None}
    assert last.sections["history"] == "Pain."
    assert "12345" not in (chexpert / "studies.jsonl").read_text()
    assert dropped(conversion) == {"no frontal image": 1, "no image file on disk": 0, "no findings": 1}


def test_chexpert_plus_all_views_with_labels(chexpert):
    labels = chexpert / "impression_fixed.json"
    row = {"path_to_image": CHEXPERT["path_to_image"], "Edema": 1.0, "Fracture": None, "Pneumonia": -1.0}
    labels.write_text(json.dumps(row) + "\n")
    chexpert_plus.convert(chexpert, views="all", sections=("impression",), labels=labels)
    only = by_id(chexpert / "studies.jsonl")["patient00003_study1"]
    assert only.images[0].view == "FRONTAL"
    assert only.labels == {}
    chexpert_plus.convert(chexpert, views="all", sections=(), labels=labels)
    studies = by_id(chexpert / "studies.jsonl")
    assert len(studies) == 4
    assert [image.view for image in studies["patient00001_study1"].images] == ["AP", "LATERAL"]
    assert studies["patient00001_study1"].labels == {"Edema": 1, "Fracture": None, "Pneumonia": -1}
    labels.write_text(json.dumps(row | {"Edema": 2}) + "\n")
    with pytest.raises(CorpusError, match=r"impression_fixed\.json line 1, Edema: label 2"):
        chexpert_plus.convert(chexpert, labels=labels)


def test_chexpert_plus_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"df_chexpert_plus_240401\.csv.*aimi\.stanford\.edu"):
        chexpert_plus.convert(tmp_path)
    table = tmp_path / "df_chexpert_plus_240401.csv"
    write_csv(table, [{"path_to_image": "x", "split": "train"}])
    with pytest.raises(CorpusError, match=r"no column 'frontal_lateral'\. Columns: path_to_image, split"):
        chexpert_plus.convert(tmp_path)
    write_csv(table, [CHEXPERT, chexpert_row(1, "view2_frontal"), CHEXPERT | {"path_to_image": "a.jpg"}])
    with pytest.raises(CorpusError, match=r"line \d+: path_to_image must end like .* got 'a\.jpg'"):
        chexpert_plus.convert(tmp_path)
    write_csv(table, [CHEXPERT | {"recent_bmi": "high"}])
    with pytest.raises(CorpusError, match=r"recent_bmi must be a number, got 'high'"):
        chexpert_plus.convert(tmp_path)


# --- R2Gen -------------------------------------------------------------------------------------------------------


def r2gen_tree(root: Path, parts: dict[str, list[dict]]) -> Path:
    root.mkdir(exist_ok=True)
    (root / "annotation.json").write_text(json.dumps(parts))
    for entry in (entry for entries in parts.values() for entry in entries):
        for name in entry["image_path"]:
            touch(root / "images" / name)
    return root


def test_r2gen_iu_variant(tmp_path):
    entries = [
        {"id": "CXR1_IM-1", "report": "Clear  lungs.", "image_path": ["CXR1_IM-1/0.png", "CXR1_IM-1/1.png"]},
        {"id": "CXR2_IM-2", "report": " ", "image_path": ["CXR2_IM-2/0.png"]},
        {"id": "CXR3_IM-3", "report": "Clear.", "image_path": ["CXR3_IM-3/0.png"], "split": "test"},
    ]
    root = r2gen_tree(tmp_path, {"train": entries[:1], "val": entries[1:2], "    ": entries[2:]})
    (root / "images" / "CXR1_IM-1" / "1.png").unlink()
    conversion = r2gen.convert(root)
    studies = by_id(root / "studies.jsonl")
    assert {name: (study.split, len(study.images)) for name, study in studies.items()} == {
        "CXR1_IM-1": ("train", 1),
        "CXR3_IM-3": ("test", 1),
    }
    assert studies["CXR1_IM-1"].sections == {"findings": "Clear lungs."}
    assert dropped(conversion) == {"no image file on disk": 0, "no findings": 1}


def test_r2gen_mimic_variant_keeps_one_entry_per_image(tmp_path):
    entry = {"study_id": 50000001, "subject_id": 10000001, "report": "Clear.", "split": "train"}
    entries = [entry | {"id": name, "image_path": [f"p10/p10000001/s50000001/{name}.jpg"]} for name in ("a", "b")]
    root = r2gen_tree(tmp_path, {"train": entries, "val": [], "test": []})
    r2gen.convert(root)
    studies = by_id(root / "studies.jsonl")
    assert list(studies) == ["a", "b"]
    assert {study.subject_id for study in studies.values()} == {"10000001"}
    assert studies["a"].extra == {"study": "50000001"}


def test_r2gen_on_the_real_split_file(cxr, tmp_path):
    conversion = r2gen.convert(cxr / "iu", out=tmp_path / "studies.jsonl")
    assert (conversion.n_read, conversion.n_images_read) == (2955, 5910)
    assert sorted(by_id(tmp_path / "studies.jsonl")) == ["CXR2843_IM-1254-1001", "CXR383_IM-1932"]


def test_r2gen_errors(tmp_path):
    entry = {"id": "a", "report": "Clear.", "image_path": ["a.png"]}
    with pytest.raises(CorpusError, match=r"'test' entry 0: study 'a' is in split 'test'; earlier it is in 'train'"):
        r2gen.convert(r2gen_tree(tmp_path, {"train": [entry], "test": [entry]}))
    with pytest.raises(CorpusError, match=r"'train' entry 0: image_path must be a non-empty list of paths, got \[\]"):
        r2gen.convert(r2gen_tree(tmp_path, {"train": [entry | {"image_path": []}]}))
    (tmp_path / "annotation.json").write_text("[1]")
    with pytest.raises(CorpusError, match="expected an object of lists"):
        r2gen.convert(tmp_path)


# --- Folders and tables ------------------------------------------------------------------------------------------


def test_folder_of_mixed_files(tmp_path):
    for name in ("a/one.png", "b/one.png", "b/two.JPG", "b/.hidden.png", ".cache/x.png", "notes.md", "scan.txt"):
        touch(tmp_path / name)
    (tmp_path / "b" / "two.txt").write_text("FINDINGS: Clear.\nIMPRESSION:\nNormal.\n")
    (tmp_path / "a" / "one.txt").write_text("Lungs are clear,\nheart: normal.")
    dicom = b"\0" * 128 + b"DICM" + b"\0" * 8
    for name in ("IM0001", "1.2.840.113", "DICOMDIR"):
        (tmp_path / name).write_bytes(dicom)
    (tmp_path / "README").write_text("no image")
    folder.convert(tmp_path)
    studies = by_id(tmp_path / "studies.jsonl")
    assert sorted(studies) == ["1.2.840.113", "IM0001", "a_one", "b_one", "two"]
    assert {study.split for study in studies.values()} == {"test"}
    assert studies["two"].sections == {"findings": "Clear.", "impression": "Normal."}
    assert studies["a_one"].sections == {"findings": "Lungs are clear, heart: normal."}
    assert studies["b_one"].sections == {}
    assert len(folder.convert(tmp_path, sections=("findings",)).studies) == 2


def test_folder_with_real_dicoms(cxr, tmp_path):
    conversion = folder.convert(cxr / "dicom", out=tmp_path / "studies.jsonl", ids="original")
    views = {study.images[0].path.stem: study.images[0].view for study in read_studies(tmp_path / "studies.jsonl")}
    assert views == {
        "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819": "PA",
        "RG1_J2KI": "PA",
        "dx_image": "FRONTAL",
        "gdcm-CR-MONO1-10-chest": "PA",
    }
    assert "Fake_MONOHR1.dcm: has the SOP Instance UID of " in str(conversion)


def test_folder_names_that_clash_take_their_suffix(tmp_path):
    for name in ("a/x.png", "a/x.dcm", "a/y.png"):
        touch(tmp_path / name)
    assert [study.study_id for study in folder.convert(tmp_path).studies] == ["a_x.dcm", "a_x.png", "y"]


def test_folder_table_in_tsv(tmp_path):
    table = tmp_path / "list.tsv"
    table.write_text(
        "file\tpatient\tstudy\tview\tsplit\treport\timpression\n"
        "1.png\tA\ts1\tPA\ttrain\tIMPRESSION: Old.\tNormal.\n"
        "2.png\tA\ts1\tLATERAL\ttrain\t\t\n"
        "3.png\tB\ts2\t\tvalidation\tAll clear.\t\n"
        "4.png\tB\ts3\t\tval\t\t\n"
    )
    for name in ("1.png", "2.png", "3.png"):
        touch(tmp_path / "images" / name)
    conversion = folder.convert(
        tmp_path / "images",
        table=table,
        path_column="file",
        study_column="study",
        subject_column="patient",
    )
    first, second = read_studies(tmp_path / "images" / "studies.jsonl", check_images=True)
    assert (first.study_id, first.subject_id, first.split) == ("s1", "A", "train")
    assert [image.view for image in first.images] == ["PA", "LATERAL"]
    assert first.sections == {"impression": "Normal."}  # its own column counts, not the whole report
    assert (second.split, second.sections, second.images[0].view) == ("val", {"findings": "All clear."}, None)
    assert dropped(conversion) == {"no image file on disk": 1}


def test_folder_table_errors(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,study_id,split\na.png,s1,train\nb.png,s1,test\n")
    with pytest.raises(CorpusError, match=r"list\.csv line 3: study 's1' is in split 'test'; earlier it is in 'train'"):
        folder.convert(tmp_path, table=table)
    with pytest.raises(CorpusError, match=r"no column 'patient'\. Columns: path, study_id, split"):
        folder.convert(tmp_path, table=table, subject_column="patient")
    table.write_text("path,study_id\n,s1\n")
    with pytest.raises(CorpusError, match=r"line 2: path, study and subject must not be blank"):
        folder.convert(tmp_path, table=table)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder.convert(tmp_path / "nowhere")


def test_folder_split_by_shares_keeps_subjects_together(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("path,subject_id\n" + "".join(f"{i}.png,p{i // 2}\n" for i in range(400)))
    for i in range(400):
        touch(tmp_path / f"{i}.png")
    studies = folder.convert(tmp_path, table=table, split=(0.5, 0.2, 0.3)).studies
    counts = [sum(study.split == split for study in studies) for split in ("train", "val", "test")]
    assert sum(counts) == 400
    assert counts == pytest.approx([200, 80, 120], abs=40)
    assert all(a.split == b.split for a, b in zip(studies[::2], studies[1::2], strict=True))


@pytest.fixture
def own_images(tmp_path) -> Path:
    """Twenty images of ten patients, with reports in a table whose columns have other names than ours."""
    rows = [{"Image": f"{i}.png", "patient_id": f"p{i // 2}", "Findings": f"Clear {i}."} for i in range(20)]
    write_csv(tmp_path / "reports.csv", rows)
    for row in rows:
        touch(tmp_path / "images" / row["Image"])
    return tmp_path


def test_folder_table_of_a_newcomer(own_images):
    conversion = folder.convert(own_images / "images", table=own_images / "reports.csv", split="random")
    subjects = {
        split: {s.subject_id for s in conversion.studies if s.split == split} for split in ("train", "val", "test")
    }
    assert {split: len(names) for split, names in subjects.items()} == {"train": 7, "val": 1, "test": 2}
    assert conversion.studies[3].sections == {"findings": "Clear 3."}
    assert "Columns: path from Image, subject from patient_id" in str(conversion)
    again = folder.convert(own_images / "images", table=own_images / "reports.csv", split="random")
    assert [study.split for study in again.studies] == [study.split for study in conversion.studies]
    three = folder.convert(own_images / "images", table=own_images / "reports.csv", split=(0.98, 0.01, 0.01)).studies
    assert {study.split for study in three} == {"train", "val", "test"}


def test_folder_says_that_reports_in_split_test_are_not_for_training(own_images):
    told = "All of them are in split test. To train on them: --split random"
    assert told in str(folder.convert(own_images / "images", table=own_images / "reports.csv"))
    assert told not in str(folder.convert(own_images / "images"))


def test_folder_names_the_columns_of_a_table_without_images(own_images):
    table = own_images / "reports.csv"
    table.write_text("photo,findings\n1.png,Clear.\n")
    expected = r"no column for the image's path \(path, image.*\)\. Columns: photo, findings\. .*--path-column"
    with pytest.raises(CorpusError, match=expected):
        folder.convert(own_images / "images", table=table)
    assert len(folder.convert(own_images / "images", table=table, path_column="photo").studies) == 1


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ("Narrative", ["The lungs are clear.", "Small effusion."]),
        ("dictation", ["FINDINGS: Clear. IMPRESSION: Normal.", ""]),
        ("body", ["no pleural effusion or pneumothorax is seen on this film", "nan"]),
    ],
)
def test_folder_refuses_a_table_whose_reports_it_would_not_read(tmp_path, column, texts):
    rows = [{"image": f"{i}.png", "age": "63", column: text} for i, text in enumerate(texts)]
    write_csv(tmp_path / "reports.csv", rows)
    for row in rows:
        touch(tmp_path / row["image"])
    expected = rf"reports\.csv: no report was found, but column '{column}' looks like reports: .* --report-column"
    with pytest.raises(CorpusError, match=expected):
        folder.convert(tmp_path, table=tmp_path / "reports.csv")
    assert not (tmp_path / "studies.jsonl").exists()
    conversion = folder.convert(tmp_path, table=tmp_path / "reports.csv", report_column=column)
    assert conversion.studies[0].sections["findings"]
    assert "Columns not used: age" in str(conversion)
    assert "--report-column" not in str(conversion)


def test_folder_names_the_columns_that_it_does_not_use(tmp_path):
    row = {"": "0", "image": "1.png", "Ward": "B 3", "indication": "Cough.", "sex": "F"}
    write_csv(tmp_path / "list.csv", [row])
    touch(tmp_path / "1.png")
    told = "Columns not used: Ward, sex. If one of them holds the reports, name it with --report-column"
    assert told in str(folder.convert(tmp_path, table=tmp_path / "list.csv"))
    (tmp_path / "1.txt").write_text("The lungs are clear.")
    write_csv(tmp_path / "list.csv", [{"image": "1.png", "Note": "Seen by the ward. Not a report."}])
    assert "Columns not used: Note" in str(folder.convert(tmp_path, table=tmp_path / "list.csv"))
    write_csv(tmp_path / "list.csv", [{"image": "1.png", "report": "Clear."}])
    assert "not used" not in str(folder.convert(tmp_path, table=tmp_path / "list.csv"))


def test_folder_knows_columns_whatever_their_case_blanks_and_marks(tmp_path):
    rows = [{"Image Path": f"{i}.png", "PatientID": "A", "View-Position": "PA", "Report": "Clear."} for i in range(2)]
    write_csv(tmp_path / "list.csv", rows)
    for row in rows:
        touch(tmp_path / row["Image Path"])
    studies = folder.convert(tmp_path, table=tmp_path / "list.csv").studies
    assert [(study.subject_id, study.images[0].view) for study in studies] == [("A", "PA"), ("A", "PA")]
    assert studies[0].sections == {"findings": "Clear."}


def test_an_image_in_two_splits_is_refused_and_the_table_of_drops_stays(tmp_path):
    table = tmp_path / "list.csv"
    rows = [("a.png", "A", "train"), ("b.png", "B", "test"), ("./x/../a.png", "C", "test"), ("gone.png", "D", "val")]
    write_csv(table, [dict(zip(("path", "subject_id", "split"), row, strict=True)) for row in rows])
    for name in ("a.png", "b.png", "x/c.png"):
        touch(tmp_path / name)
    expected = r"a\.png' is in split 'train' \(study '.*a'\) and in 'test' \(study '.*a'\)"
    with pytest.raises(CorpusError, match=expected):
        folder.convert(tmp_path, table=table)
    assert not (tmp_path / "studies.jsonl").exists()
    code, said = run_command("prepare", "folder", "--root", tmp_path, "--table", table)
    assert code == 1
    first, *lines = said.splitlines()
    assert first.startswith("raddraft prepare: folder: image ")
    assert ["no", "image", "file", "on", "disk", "1", "1", "3"] in [line.split() for line in lines]
    rows[2] = ("./x/../a.png", "C", "train")
    write_csv(table, [dict(zip(("path", "subject_id", "split"), row, strict=True)) for row in rows])
    assert len(folder.convert(tmp_path, table=table).studies) == 3


def test_folder_counts_rows_whose_report_is_not_that_of_their_study(tmp_path):
    row = {"image": "1.png", "study_id": "s", "subject_id": "p", "report": "Clear."}
    write_csv(tmp_path / "list.csv", [row, row | {"image": "2.png"}, row | {"image": "3.png", "report": "Effusion."}])
    for name in "123":
        touch(tmp_path / f"{name}.png")
    conversion = folder.convert(tmp_path, table=tmp_path / "list.csv")
    assert "text differs from the first text of their study, which counts: 1" in str(conversion)
    assert conversion.studies[0].sections == {"findings": "Clear."}


def test_a_table_that_names_no_patients_says_so_once_it_is_split(own_images):
    root, table = own_images / "images", own_images / "reports.csv"
    told = "folder: the patients of 20 studies are not known; some may be in more than one split"
    assert told not in str(folder.convert(root, table=table, split="random"))
    write_csv(table, [{"image": f"{i}.png", "findings": f"Clear {i}."} for i in range(20)])
    assert told in str(folder.convert(root, table=table, split="random"))
    assert told not in str(folder.convert(root, table=table))


def test_prepare_tells_how_many_test_reports_stand_in_train(tmp_path):
    reports = ["Clear.", "clear", "CLEAR .", "No edema.", "Edema.", "Mass."]
    rows = [
        {"image": f"{i}.png", "split": "train" if i in (0, 3) else "test", "findings": text, "indication": "Cough."}
        for i, text in enumerate(reports)
    ]
    write_csv(tmp_path / "list.csv", rows)
    for row in rows:
        touch(tmp_path / row["image"])
    told = "Reports of test that stand in train word for word: findings 2 of 4 (50 %)"
    assert told in str(folder.convert(tmp_path, table=tmp_path / "list.csv")).splitlines()
    write_csv(tmp_path / "list.csv", [row | {"findings": f"Film {i}."} for i, row in enumerate(rows)])
    assert "word for word" not in str(folder.convert(tmp_path, table=tmp_path / "list.csv"))


# --- Nothing -----------------------------------------------------------------------------------------------------

WORDS = ["", "  ", "nan", "NaN", "<NA>", "None", "null", "N/A"]
NAN = ["nan", "NaN", "<NA>", "NaT", "#N/A"]


@pytest.mark.parametrize("nothing", WORDS, ids=repr)
@pytest.mark.parametrize("column", ["findings", "report"])
def test_nothing_in_a_table_of_images(tmp_path, column, nothing):
    rows = [
        {"image": "1.png", "study_id": "NA", "subject_id": "None", "view": nothing, column: nothing},
        {"image": "2.png", "study_id": "NA", "subject_id": "None", "view": "PA", column: "Clear."},
        {"image": "3.png", "study_id": "s3", "subject_id": "null", "view": "AP", column: nothing},
    ]
    write_csv(tmp_path / "list.csv", rows)
    for row in rows:
        touch(tmp_path / row["image"])
    conversion = folder.convert(tmp_path, table=tmp_path / "list.csv", split="train")
    studies = by_id(tmp_path / "studies.jsonl")
    assert {name: study.subject_id for name, study in studies.items()} == {"NA": "None", "s3": "null"}
    assert studies["NA"].sections == {"findings": "Clear."}, "the first row of the study has no report"
    assert [image.view for image in studies["NA"].images] == [None, "PA"]
    assert studies["NA"].main_image.path.name == "2.png"
    assert studies["s3"].sections == {}
    assert conversion.n_reports_read == 1
    assert len(folder.convert(tmp_path, table=tmp_path / "list.csv", sections=("findings",)).studies) == 1


@pytest.mark.parametrize("nothing", ["", *NAN])
@pytest.mark.parametrize("column", ["study_id", "subject_id", "image"])
def test_an_id_that_is_nothing_is_refused(tmp_path, column, nothing):
    row = {"image": "1.png", "study_id": "s", "subject_id": "p", "report": "Clear."}
    write_csv(tmp_path / "list.csv", [row | {column: nothing}])
    with pytest.raises(CorpusError, match=r"list\.csv line 2: path, study and subject must not be blank"):
        folder.convert(tmp_path, table=tmp_path / "list.csv")


def test_a_report_beside_an_image_may_be_nothing(tmp_path):
    for name, text in (("1", "nan"), ("2", "Clear.")):
        touch(tmp_path / f"{name}.png").with_suffix(".txt").write_text(text)
    assert [study.sections for study in folder.convert(tmp_path).studies] == [{}, {"findings": "Clear."}]


@pytest.mark.parametrize("nothing", ["nan", "None", "N/A"])
def test_nothing_in_the_tables_of_mimic(mimic, nothing):
    zipped = (mimic / "mimic-cxr-2.0.0-metadata.csv.gz").is_file()
    suffix = ".csv.gz" if zipped else ".csv"
    row = {"dicom_id": "d1", "subject_id": "10000001", "study_id": "50000001", "ViewPosition": nothing}
    write_csv(mimic / f"mimic-cxr-2.0.0-metadata{suffix}", [row | {"StudyDate": "nan", "StudyTime": "nan"}], zipped)
    row = {"subject_id": "10000001", "study_id": "50000001", "Edema": nothing, "Fracture": "1.0"}
    write_csv(mimic / f"mimic-cxr-2.0.0-chexpert{suffix}", [row], zipped)
    [study] = mimic_cxr.convert(mimic, views="all").studies
    assert study.labels == {"Edema": None, "Fracture": 1}
    assert (study.images[0].view, study.extra) == (None, {})


@pytest.mark.parametrize("nothing", ["nan", "None", "N/A", "<NA>"])
def test_nothing_in_the_table_of_chexpert_plus(chexpert, nothing):
    blank = dict.fromkeys(("section_clinical_history", "age", "sex", "recent_bmi", "section_impression"), nothing)
    write_csv(chexpert / "df_chexpert_plus_240401.csv", [CHEXPERT | blank | {"ap_pa": nothing}])
    [study] = chexpert_plus.convert(chexpert).studies
    assert study.patient == {"sex": None, "age": None, "bmi": None}
    assert study.sections == {"history": "Cough.", "findings": "1.LUNGS ARE CLEAR.", "end of impression": "1-NORMAL"}
    assert study.images[0].view == "FRONTAL"
    write_csv(chexpert / "df_chexpert_plus_240401.csv", [CHEXPERT | {"section_findings": nothing}])
    with pytest.raises(CorpusError, match=r"no study has a section 'findings'\. Sections found: history"):
        chexpert_plus.convert(chexpert)


@pytest.mark.parametrize("nothing", ["nan", "null", "None"])
def test_nothing_in_the_tables_of_iu(iu, nothing):
    columns = ("uid", "indication", "comparison", "findings", "impression")
    rows = [("7", nothing, "None", "Clear.", nothing), ("8", "Cough.", nothing, nothing, "Normal.")]
    write_csv(iu / "indiana_reports.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    row = {"uid": "7", "filename": "7_IM-0001-1001.dcm.png", "projection": nothing}
    write_csv(iu / "indiana_projections.csv", [row])
    studies = iu_xray.convert(iu, reports=iu / "indiana_reports.csv").studies
    assert [(study.study_id, study.sections) for study in studies] == [
        ("CXR7", {"comparison": "None", "findings": "Clear."})
    ]
    assert {image.view for image in studies[0].images} == {None}


@pytest.mark.parametrize("nothing", [None, float("nan"), "nan", ""], ids=repr)
def test_nothing_in_the_json_of_r2gen(tmp_path, nothing):
    entry = {"image_path": ["a.png"], "split": "train"}
    entries = [
        entry | {"id": "a", "report": "Clear.", "subject_id": None, "study_id": float("nan")},
        entry | {"id": "b", "report": nothing, "subject_id": 7},
    ]
    conversion = r2gen.convert(r2gen_tree(tmp_path, {"train": entries}), sections=())
    assert [(study.study_id, study.subject_id, study.sections, study.extra) for study in conversion.studies] == [
        ("a", "a", {"findings": "Clear."}, {"unknown_patient": True}),
        ("b", "7", {}, {}),
    ]
    with pytest.raises(CorpusError, match="expected an object with an id"):
        r2gen.convert(r2gen_tree(tmp_path, {"train": [entry | {"id": None, "report": "Clear."}]}))


# --- What they share ---------------------------------------------------------------------------------------------


def test_hash_split_follows_its_formula():
    # By sha256sum: "raddraft|p1" 858b624ce693, "raddraft|p17" ba4397fd3c5a, "raddraft|p3" da1c68b85bba.
    assert [hash_split(subject, (0.7, 0.1, 0.2)) for subject in ("p1", "p17", "p3")] == ["train", "val", "test"]
    assert [hash_split(subject, (0.6, 0.1, 0.3)) for subject in ("p1", "p17", "p3")] == ["train", "test", "test"]
    assert hash_split("p1", (0, 0, 1)) == "test"
    assert hash_split("p1", (1, 0, 0)) == "train"
    for fractions in ((0.5, 0.5, 0.5), (1.5, -0.5, 0)):
        with pytest.raises(CorpusError, match="sum to 1"):
            hash_split("p1", fractions)


@pytest.mark.parametrize(
    ("value", "label"),
    [
        *(("1.0", 1), ("0", 0), ("-1.0", -1), ("", None), (None, None), (-1.0, -1), (float("nan"), None)),
        *((word, None) for word in (" ", "nan", "NaN", "<NA>", "None", "NA")),
    ],
)
def test_labels(value, label):
    assert parse_label(value, "x") == label


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "<NA>", "None", "N/A"])
def test_ages_and_sexes_that_are_nothing(word):
    counts = Counter()
    assert parse_patient(word, word, counts) == {"sex": None, "age": None}
    assert counts.total() == 0


def test_a_table_is_read_cell_by_cell(tmp_path):
    (tmp_path / "t.csv").write_text("\ufeffid,text\nNA,nan\n\nnull\n<NA>,a b\n", encoding="utf-8")
    assert [row for _, row in read_table(tmp_path / "t.csv")] == [
        *({"id": "NA", "text": ""}, {"id": "null", "text": ""}, {"id": "", "text": "a b"})
    ]
    text = "word " * 40_000  # more than the limit of the csv module
    (tmp_path / "t.TSV").write_text(f"id\ttext\n1\t{text}\n")
    assert [row["text"] for _, row in read_table(tmp_path / "t.TSV", ["id"])] == [text]
    (tmp_path / "t.csv").write_bytes("id,text\n1,Épanchement\n".encode("latin-1"))
    with pytest.raises(CorpusError, match=r"t\.csv line 2: not UTF-8"):
        list(read_table(tmp_path / "t.csv"))
    damaged = bytearray(gzip.compress("id,text\n1,É".encode("latin-1") + b"a" * 9))
    damaged[-8] ^= 1  # its check sum
    (tmp_path / "t.csv.gz").write_bytes(damaged)
    with pytest.raises(CorpusError, match=r"t\.csv\.gz line \d: (not UTF-8|CRC)"):
        list(read_table(tmp_path / "t.csv.gz"))


@pytest.mark.parametrize("value", ["2", "0.5", "yes", 7.0])
def test_labels_out_of_range(value):
    with pytest.raises(CorpusError, match=r"x\.csv line 3: label .*Choices: 1, 0, -1, blank"):
        parse_label(value, "x.csv line 3")


def test_unknown_corpus():
    with pytest.raises(ValueError, match=r"Unknown corpus 'mimic'\. Choices: mimic-cxr, iu-xray"):
        converter("mimic")


def test_every_corpus_is_a_command_with_its_options_documented(capsys):
    assert {*COMMANDS} == {*CORPORA, "phantom", "resize", "labels", "reads", "join", "folds"}
    for name in (*CORPORA, "phantom"):
        with pytest.raises(SystemExit):
            run("prepare", [name, "--help"])
        shown = capsys.readouterr().out
        assert "--out" in shown
        assert "The manifest to write" in shown


def test_command_line(iu, capsys):
    arguments = ["iu-xray", "--root", str(iu), "--sections", "[findings,impression]", "--views", "frontal"]
    with pytest.raises(SystemExit) as left:
        run("prepare", arguments)
    assert left.value.code == 0
    assert f"Wrote 2 studies to {iu / 'studies.jsonl'}" in capsys.readouterr().out
    assert len(read_studies(iu / "studies.jsonl")) == 2
