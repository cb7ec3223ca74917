"""CheXpert (Irvin et al. 2019) -> studies, without reports; for these see chexpert_plus."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
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
FILMS = (".jpg", ".png", ".dcm")
"""Suffixes of the images of its releases and copies."""
_STUDY = r"(?:.*/)?((?:train|valid|val|test)/(patient\d+)/(study\d+)"
_PATH = re.compile(_STUDY + r"/view\d+_(frontal|lateral)\.\w+)")
_FOLDER = re.compile(_STUDY + ")/?")


def convert(root: Path, out: Path | None = None, views: Literal["frontal", "all"] = "frontal") -> Conversion:
    """CheXpert: its 14 labels as 1, 0, -1 (uncertain) or not mentioned, and its own split.

    valid becomes val; test.csv (or test_labels.csv or groundtruth.csv, which were published later) becomes test. A
    split whose table is not there is left out. A study is named patient00001_study1. Labels of train are text-mined
    from reports, those of val and test are radiologists' consensus.

    Odd rows are counted: where the rows of a study differ in a label, sex or age the first counts, an image that stands
    twice is taken once, and a study of two patients is left out; a sex but Male and Female (there is one Unknown), and
    an age of 0, which these adults cannot have, are unknown.

    Args:
        root: Folder that holds train.csv, valid.csv, train/ and valid/, e.g. CheXpert-v1.0-small, or a part of them.
            Whatever the tables put before train/ and valid/ in a path is ignored, and val/ may stand for valid/.
            groundtruth.csv has a row for each study, of which all images in test/ are taken. The full release comes in
            batches: their patients belong in one folder train/.
        out: The manifest to write. By default studies.jsonl in root.
        views: frontal keeps images whose file name says frontal; all keeps every image.
    """
    counts = Counter[str]()
    studies, notes = read_studies(root, tuple(_TABLES), counts)
    conversion = Conversion("chexpert", studies, out or root / "studies.jsonl", counts)
    conversion.notes += notes
    conversion.blank_newborns()
    conversion.keep_views(views)
    conversion.keep_files(*FILMS)
    return conversion.write()


def read_studies(root: Path, splits: Sequence[str], counts: Counter[str]) -> tuple[list[Study], list[str]]:
    """The studies of those of `splits` that have a table, and a note for each that has none; see `convert`.

    Raises:
        MissingFileError: none has one.
        CorpusError: a table is not as it should be.
    """
    studies: dict[str, Study] = {}
    tables = _find_tables(root, splits)
    for split, table in tables.items():
        for where, row in common.read_table(table, LABELS):
            common.add_image(studies, _study(row, split, root, where, counts), where, counts)
    return list(studies.values()), [
        f"No table of {split} ({' or '.join(_TABLES[split])}): the split is left out"
        for split in splits
        if split not in tables
    ]


def _find_tables(root: Path, splits: Sequence[str]) -> dict[str, Path]:
    """Split -> its table, for the splits that have one.

    Raises:
        MissingFileError: none has.
    """
    found = {}
    for split, names in ((split, _TABLES[split]) for split in splits):
        try:
            found[split] = common.find_file(root, names, _ORIGIN)
        except MissingFileError:
            continue
    if not found:
        choices = ", ".join(name for split in splits for name in _TABLES[split])
        raise MissingFileError(f"{root}: there is none of {choices}. {_ORIGIN}")
    return found


def _study(row: dict[str, str], split: str, root: Path, where: str, counts: Counter[str]) -> Study:
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
        images = [StudyImage(_place(root, name), view if frontal else match[4].upper())]
    else:
        folder = _place(root, name)
        views = {path.stem: path for path in sorted(folder.glob("view*_*.*")) if path.suffix in FILMS}
        paths = [*views.values()] or [folder / "view1_frontal.jpg"]
        images = [StudyImage(path, path.stem.rpartition("_")[2].upper()) for path in paths]
    labels = {label: common.parse_label(row[label], f"{where}, {label}") for label in LABELS}
    person = common.parse_patient(row.get("Sex", ""), row.get("Age", ""), counts)
    return Study(f"{patient}_{study}", patient, split, images, labels=labels, patient=person)


def _place(root: Path, name: str) -> Path:
    """Where a path of the tables is: valid/ and val/ are one folder, whichever of the two is there."""
    part, _, rest = name.partition("/")
    other = {"valid": "val", "val": "valid"}.get(part)
    return root / other / rest if other and (root / other).is_dir() and not (root / part).is_dir() else root / name
