"""BRAX (Reis et al. 2022, PhysioNet) -> studies: the labels of a Brazilian hospital; reports are not published."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Literal

from generator.corpora import common
from generator.corpora.chexpert import LABELS
from generator.corpora.common import Conversion
from generator.corpora.odd_rows import AGE, settle
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing

_ORIGIN = "It is part of BRAX, https://physionet.org/content/brax (credentialed access). Name it with --table."
_PATHS = {"png": "PngPath", "dicom": "DicomPath"}
_COLUMNS = ("PatientID", "PatientSex", "PatientAge", "AccessionNumber", "ViewPosition", *LABELS)
_AGE = re.compile(r"(\d{1,3})(?:\s*(?:to|-)\s*(\d{1,3})|\.0|\s*or more|\+)?")
_FOLDER = re.compile(r"(?:.*/)?(Study_[^/]+)/.*")


def convert(
    root: Path,
    out: Path | None = None,
    table: Path | None = None,
    images: Path | None = None,
    files: Literal["png", "dicom"] = "png",
    views: Literal["frontal", "all"] = "frontal",
) -> Conversion:
    """BRAX: CheXpert's 14 labels, as 1, 0, -1 (uncertain) or not mentioned, mined from reports in Portuguese; sex, age.

    A study is PatientID and AccessionNumber, since an AccessionNumber may not be unique; where it is blank, the path's
    folder Study_… stands in, and rows that have none are left out and counted. No official split: 70, 10 and
    20 % of the subjects are train, val and test, by a hash. Views are as stated: RLD and LLD are frontals of a patient
    who lies on a side, LL, RL, RLO and LLO laterals; a blank view counts as frontal. Labels that differ within a study
    are those of its first row.

    Ages are published as groups of five years: the middle of the group is the age, of "85 or more" it is 85, and
    age_group keeps the text. Sex O is unknown. The dates are fictitious and left out. Subjects with two sexes, whose
    sex is then unknown, ages that cannot be read and rows that repeat an image, which are left out, are counted.

    Args:
        root: Folder that holds master_spreadsheet_update.csv (1.1.0; before, master_spreadsheet.csv), images/ and
            Anonymized_DICOMs/.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default master_spreadsheet_update.csv, or master_spreadsheet.csv, in root.
        images: Folder that the paths of the table start from. By default root.
        files: png for the images of PngPath (a JPEG of the same name may stand in), dicom for those of DicomPath.
        views: frontal keeps AP, PA, RLD, LLD and images whose view is blank; all keeps every image.
    """
    names = ["master_spreadsheet_update.csv", "master_spreadsheet*.csv"]
    table = table or common.find_file(root, names, _ORIGIN)
    column = _PATHS[files]
    counts: Counter[str] = Counter()
    studies: dict[str, Study] = {}
    for where, row in common.read_table(table, (column, *_COLUMNS)):
        folder = _FOLDER.fullmatch(row[column])
        accession = row["AccessionNumber"].strip() or (folder[1] if folder else "")
        if not accession:
            counts["Rows without AccessionNumber and without a folder Study_…, left out"] += 1
            continue
        image = StudyImage((images or root) / row[column], row["ViewPosition"].strip() or None)
        common.add_image(studies, _study(row, accession, image, where, counts), where, counts)
    sexes = settle(((study.subject_id, study.patient["sex"]) for study in studies.values()), "sexes", counts)
    for study in studies.values():
        study.patient["sex"] = sexes.get(study.subject_id)
    conversion = Conversion("brax", studies.values(), out or root / "studies.jsonl", counts)
    conversion.keep_views(views)
    conversion.keep_files(*(common.PIXELS if files == "png" else ()))
    return conversion.write()


def _study(row: dict[str, str], accession: str, image: StudyImage, where: str, counts: Counter[str]) -> Study:
    subject = row["PatientID"]
    study = Study(f"{subject}_{accession}", subject, common.hash_split(subject), [image])
    study.labels = {label: common.parse_label(row[label], f"{where}, {label}") for label in LABELS}
    group = row["PatientAge"].strip()
    sex, age = common.parse_sex(row["PatientSex"], counts), _middle(group)
    counts[AGE] += age is None and not is_nothing(group)
    study.patient = {"sex": sex, "age": age, "age_group": group}
    return study


def _middle(group: str) -> int | None:
    """Years in the middle of 40 to 44 or 40-44; the number of 45, 45.0, 85 or more, 85+; None of anything else."""
    match = _AGE.fullmatch(group.lower())
    return (int(match[1]) + int(match[2] or match[1])) // 2 if match else None
