"""CheXpert (Irvin et al. 2019) -> studies, without reports; for these see chexpert_plus."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError
from raddraft.studies import Study, StudyImage

LABELS = (
    *("No Finding", "Enlarged Cardiomediastinum", "Cardiomegaly", "Lung Opacity", "Lung Lesion", "Edema"),
    *("Consolidation", "Pneumonia", "Atelectasis", "Pneumothorax", "Pleural Effusion", "Pleural Other", "Fracture"),
    "Support Devices",
)
_ORIGIN = "It is part of CheXpert, https://aimi.stanford.edu/datasets/chexpert-chest-x-rays (free registration)."
_TABLES = {"train": ["train.csv"], "val": ["valid.csv", "val_labels.csv"], "test": ["test.csv", "test_labels.csv"]}
_PATH = re.compile(r"(?:.*/)?((?:train|valid|val|test)/(patient\d+)/(study\d+)/view\d+_(frontal|lateral)\.\w+)")


def convert(root: Path, out: Path | None = None, views: Literal["frontal", "all"] = "frontal") -> Conversion:
    """CheXpert: its 14 labels as 1, 0, -1 (uncertain) or not mentioned, and its own split.

    valid becomes val; test.csv (or test_labels.csv, published later) becomes test, and without it there is no test
    split. A study is named patient00001_study1. Labels of train are text-mined from reports, those of val and test are
    radiologists' consensus.

    Args:
        root: Folder that holds train.csv, valid.csv, train/ and valid/, e.g. CheXpert-v1.0-small. Whatever the tables
            put before train/ and valid/ in a path is ignored. The full release comes in batches: their patients
            belong in one folder train/.
        out: The manifest to write. By default studies.jsonl in root.
        views: frontal keeps images whose file name says frontal; all keeps every image.
    """
    studies: dict[str, Study] = {}
    for split, names in _TABLES.items():
        if split == "test" and not any((root / name).is_file() for name in names):
            continue
        for where, row in common.read_table(common.find_file(root, names, _ORIGIN), ["Path", *LABELS]):
            common.add_image(studies, _study(row, split, root, where), where)
    conversion = Conversion("chexpert", studies.values(), out or root / "studies.jsonl")
    conversion.keep_views(views)
    conversion.keep_files(".png", ".dcm")
    return conversion.write()


def _study(row: dict[str, str], split: str, root: Path, where: str) -> Study:
    match = _PATH.fullmatch(row["Path"])
    if match is None:
        raise CorpusError(
            f"{where}: Path must end like train/patient00001/study1/view1_frontal.jpg, got {row['Path']!r}"
        )
    name, patient, study, side = match.groups()
    view = row.get("AP/PA", "").upper()
    image = StudyImage(root / name, view if side == "frontal" and view in ("AP", "PA") else side.upper())
    labels = {label: common.parse_label(row[label], f"{where}, {label}") for label in LABELS}
    person = common.parse_patient(row.get("Sex", ""), row.get("Age", ""), where)
    return Study(f"{patient}_{study}", patient, split, [image], labels=labels, patient=person)
