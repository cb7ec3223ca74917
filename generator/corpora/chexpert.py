"""CheXpert (Irvin et al. 2019) -> studies, without reports; for these see chexpert_plus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, MissingFileError
from raddraft.studies import Study, StudyImage

LABELS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
_ORIGIN = "It is part of CheXpert, https://aimi.stanford.edu/datasets/chexpert-chest-x-rays (free registration)."
_TABLES = {
    "train": ["train.csv"],
    "val": ["valid.csv", "val_labels.csv"],
    "test": ["test.csv", "test_labels.csv", "groundtruth.csv"],
}
_FILMS = (".jpg", ".png", ".dcm")
_STUDY = r"(?:.*/)?((?:train|valid|val|test)/(patient\d+)/(study\d+)"
_PATH = re.compile(_STUDY + r"/view\d+_(frontal|lateral)\.\w+)")
_FOLDER = re.compile(_STUDY + ")/?")


def convert(root: Path, out: Path | None = None, views: Literal["frontal", "all"] = "frontal") -> Conversion:
    """CheXpert: its 14 labels as 1, 0, -1 (uncertain) or not mentioned, and its own split.

    valid becomes val; test.csv (or test_labels.csv or groundtruth.csv, which were published later) becomes test. A
    split whose table is not there is left out. A study is named patient00001_study1. Labels of train are text-mined
    from reports, those of val and test are radiologists' consensus. An age of 0, which these adults cannot have,
    counts as unknown.

    Args:
        root: Folder that holds train.csv, valid.csv, train/ and valid/, e.g. CheXpert-v1.0-small, or a part of them.
            Whatever the tables put before train/ and valid/ in a path is ignored. groundtruth.csv has a row for each
            study, of which all images in test/ are taken. The full release comes in batches: their patients belong
            in one folder train/.
        out: The manifest to write. By default studies.jsonl in root.
        views: frontal keeps images whose file name says frontal; all keeps every image.
    """
    studies: dict[str, Study] = {}
    tables = _find_tables(root)
    for split, table in tables.items():
        for where, row in common.read_table(table, LABELS):
            common.add_image(studies, _study(row, split, root, where), where)
    conversion = Conversion("chexpert", studies.values(), out or root / "studies.jsonl")
    conversion.notes += [f"No table of {split}: left out" for split in _TABLES if split not in tables]
    conversion.keep_views(views)
    conversion.keep_files(*_FILMS)
    return conversion.write()


def _find_tables(root: Path) -> dict[str, Path]:
    """Split -> its table, for the splits that have one.

    Raises:
        MissingFileError: none has.
    """
    found = {}
    for split, names in _TABLES.items():
        try:
            found[split] = common.find_file(root, names, _ORIGIN)
        except MissingFileError:
            continue
    if not found:
        choices = ", ".join(name for part in _TABLES.values() for name in part)
        raise MissingFileError(f"{root}: there is none of {choices}. {_ORIGIN}")
    return found


def _study(row: dict[str, str], split: str, root: Path, where: str) -> Study:
    if "Path" in row:
        match = _PATH.fullmatch(row["Path"])
        expected, given = "Path must end like train/patient00001/study1/view1_frontal.jpg", row["Path"]
    else:
        if "Study" not in row:
            raise CorpusError(f"{where}: no column 'Path', nor 'Study'. Columns: {', '.join(row)}")
        given = row["Study"]
        match, expected = _FOLDER.fullmatch(given), "Path, or else Study, must end like test/patient00001/study1"
    if match is None:
        raise CorpusError(f"{where}: {expected}, got {given!r}")
    name, patient, study = match.groups()[:3]
    if "Path" in row:
        view = row.get("AP/PA", "").upper()
        frontal = match[4] == "frontal" and view in ("AP", "PA")
        images = [StudyImage(root / name, view if frontal else match[4].upper())]
    else:
        views = {path.stem: path for path in sorted((root / name).glob("view*_*.*")) if path.suffix in _FILMS}
        paths = [*views.values()] or [root / name / "view1_frontal.jpg"]
        images = [StudyImage(path, path.stem.rpartition("_")[2].upper()) for path in paths]
    labels = {label: common.parse_label(row[label], f"{where}, {label}") for label in LABELS}
    person = common.parse_patient(row.get("Sex", ""), row.get("Age", ""), where)
    person["age"] = person["age"] or None
    return Study(f"{patient}_{study}", patient, split, images, labels=labels, patient=person)
