"""NIH ChestX-ray14 -> studies, with the official split. The first release's table is Data_Entry_2017.csv."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study, StudyImage
from raddraft.tables import is_nothing, read_cells

LABELS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural_Thickening", "Pneumonia", "Pneumothorax", "No Finding"),
)
NAME = re.compile(r"0*(\d+)_\d+\.png")
"""Of a film; the group is its patient, as the table has it."""
ORIGIN = "It is part of ChestX-ray14, https://nihcc.app.box.com/v/ChestXray-NIHCC."


def convert(root: Path, out: Path | None = None, table: Path | None = None, images: Path | None = None) -> Conversion:
    """NIH ChestX-ray14: 14 text-mined findings and No Finding, each 1 or 0; every image is a study.

    Test is the official test_list.txt; val is a tenth of the patients of train_val_list.txt, by a hash of the patient.
    Images that no list names are left out. Bounding boxes are not read. Counted, besides: images that stand twice (the
    first row counts), under two patients (left out) or without finding (labels unknown), other sexes than M and F, ages
    that cannot be read, in months or days (turned into years), above 120 (unknown) or 100 (kept).

    Args:
        root: Folder that holds the table, train_val_list.txt, test_list.txt and the folders of images.
        out: The manifest to write. By default studies.jsonl in root.
        table: The table. By default Data_Entry_2017*.csv in root.
        images: Folder to search for PNG files, subfolders included. By default root.
    """
    names = ["Data_Entry_2017_v2020.csv", "Data_Entry_2017*.csv"]
    table = table or common.find_file(root, names, f"{ORIGIN} Name it with --table.")
    train_val, tested = (
        read_list(common.find_file(root, [f"{name}_list.txt"], ORIGIN)) for name in ("train_val", "test")
    )
    paths = {path.name: path for path in sorted((images or root).rglob("*.png"))}
    counts = Counter[str]()
    studies: dict[str, Study] = {}
    for where, row in common.read_table(table, ["Image Index", "Finding Labels", "Patient ID", "Patient Age"]):
        name, subject = row["Image Index"], row["Patient ID"]
        findings = [] if is_nothing(row["Finding Labels"]) else row["Finding Labels"].split("|")
        counts["Rows without finding, whose labels are unknown"] += not findings
        if unknown := [finding for finding in findings if finding not in LABELS]:
            raise CorpusError(f"{where}: unknown finding {unknown[0]!r}. Choices: {', '.join(LABELS)}")
        split = choose_split(name, subject, tested)
        image = StudyImage(paths.get(name, (images or root) / name), row.get("View Position") or None)
        study = Study(Path(name).stem, subject, split, [image])
        study.labels = {label: int(label in findings) for label in LABELS} if findings else {}
        sex = row.get("Patient Sex", row.get("Patient Gender", ""))  # copies of the table differ
        study.patient = common.parse_patient(sex, row["Patient Age"], counts)
        common.add_image(studies, study, where, counts)
    conversion = Conversion("nih", studies.values(), out or root / "studies.jsonl", counts)
    listed = train_val | tested
    conversion.keep_images("in no official list", lambda image: image.path.name in listed)
    conversion.keep_files()
    return conversion.write()


def read_list(path: Path) -> frozenset[str]:
    """Names of files in one of the official lists.

    Raises:
        CorpusError: a line is no such name, there is none, or the file is broken.
    """
    names = set()
    for line, cells in read_cells(path, CorpusError):
        name = ",".join(cells).strip()
        if name and not NAME.fullmatch(name):
            raise CorpusError(f"{path} line {line}: expected a name like 00000013_005.png, got {name[:80]!r}")
        names.add(name)
    if not names - {""}:
        raise CorpusError(f"{path}: no name of a film")
    return frozenset(names - {""})


def choose_split(name: str, subject: str, tested: Collection[str]) -> str:
    """Split of a film: test if the official list `tested` names it, else train, or val for a tenth of the subjects."""
    return "test" if name in tested else common.hash_split(subject, common.NO_VAL)
