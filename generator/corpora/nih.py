"""NIH ChestX-ray14 -> studies, with the official split.

Data_Entry_2017_v2020.csv          one row per image; the first release is Data_Entry_2017.csv
train_val_list.txt, test_list.txt  official split, one file name a line
images_001/images/00000001_000.png
"""

from __future__ import annotations

import re
from pathlib import Path

from generator.corpora.common import Conversion, CorpusError, find_file, hash_split, read_table
from raddraft.studies import Study, StudyImage

VAL_FRACTION = 0.1
"""Share of the official train_val patients that becomes val."""
MAX_AGE = 120
"""Years. The table holds a few ages such as 411."""

_FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax"),
)
_ORIGIN = "It is part of ChestX-ray14, https://nihcc.app.box.com/v/ChestXray-NIHCC."
_SEX_COLUMNS = ("Patient Sex", "Patient Gender")  # its copies differ
# DICOM's age string has a unit; tables and some headers leave it away and mean years.
_AGE = re.compile(r"0*(\d+)(?:\.\d+)?\s*([YMWD]?)")
_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}


def convert(root: Path, out: Path | None = None, table: Path | None = None, images: Path | None = None) -> Conversion:
    """NIH ChestX-ray14: 14 text-mined findings and No Finding, each 1 or 0; every image is a study.

    Test is the official test_list.txt; val is a tenth of the patients of train_val_list.txt, by a hash of the patient
    (`hash_split` in generator/corpora/common.py). An age above 120 years is left out, and counted; its image stays.
    Bounding boxes are not read. Images that no list names, or that are not on disk, are left out and counted.

    Args:
        root: Folder that holds the table, train_val_list.txt, test_list.txt and the folders of images.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default Data_Entry_2017*.csv in root.
        images: Folder to search for PNG files, subfolders included. By default root.
    """
    table = table or find_file(root, ["Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv"], f"{_ORIGIN} Or --table.")
    lists = {name: find_file(root, [f"{name}_list.txt"], _ORIGIN) for name in ("train_val", "test")}
    part_of = {line.strip(): name for name, path in lists.items() for line in path.read_text().splitlines()}
    paths = {path.name: path for path in sorted((images or root).rglob("*.png"))}
    studies = []
    for where, row in read_table(table, ["Image Index", "Finding Labels", "Patient ID", "Patient Age"]):
        name, subject = row["Image Index"], row["Patient ID"]
        in_test = part_of.get(name) == "test"
        studies.append(
            Study(
                Path(name).stem,
                subject,
                "test" if in_test else hash_split(subject, (1 - VAL_FRACTION, VAL_FRACTION, 0)),
                [StudyImage(paths.get(name, (images or root) / name), row.get("View Position") or None)],
                labels=_labels(row["Finding Labels"], where),
                patient={"sex": _sex(row), "age": parse_age(row["Patient Age"], where)},
            )
        )
    conversion = Conversion("nih", studies)
    conversion.keep_images("in no official list", lambda image: image.path.name in part_of)
    conversion.keep_files()
    blank_ages(conversion)
    return conversion.write(out or root / "studies.jsonl")


def parse_age(value: str, where: str) -> int | float | None:
    """Years of 58, 058Y, 18M, 006W or 045D; None for a blank.

    Raises:
        CorpusError: it is no age.
    """
    if not value.strip():
        return None
    match = _AGE.fullmatch(value.strip().upper())
    if match is None:
        raise CorpusError(f"{where}: age {value!r}. Expected years, or a number and one of Y, M, W, D")
    age = int(match[1]) / _PER_YEAR[match[2]]
    return int(age) if age.is_integer() else round(age, 2)


def blank_ages(conversion: Conversion) -> None:
    """Leave out ages above MAX_AGE, with a line in the table of what was dropped; the studies stay."""
    wrong = [study for study in conversion.studies if (study.patient.get("age") or 0) > MAX_AGE]
    for study in wrong:
        study.patient["age"] = None
    if wrong:
        conversion.drops.append((f"(age alone: {len(wrong)} above {MAX_AGE})", 0, 0, len(conversion.studies)))


def _sex(row: dict[str, str]) -> str | None:
    value = next((row[column] for column in _SEX_COLUMNS if column in row), "")
    return value if value in ("M", "F") else None


def _labels(cell: str, where: str) -> dict[str, int | None]:
    """`Effusion|Mass` -> 1 for these, 0 for the others and for No Finding."""
    named = cell.split("|")
    for name in named:
        if name not in (*_FINDINGS, "No Finding"):
            raise CorpusError(f"{where}: unknown finding {name!r}. Choices: {', '.join(_FINDINGS)}, No Finding")
    return {finding: int(finding in named) for finding in (*_FINDINGS, "No Finding")}
