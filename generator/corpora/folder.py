"""Any folder or table of chest X-rays, with or without reports -> studies.

A report is a text file beside the image, of the same name (`x.png`, `x.txt`), or a column of the table. Images are
not opened here; one that cannot be read is reported by name when it is used.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Literal

from generator.corpora.common import Conversion, CorpusError, add_image, hash_split, parse_split, read_table
from generator.sections import clean_sections, parse_plain
from raddraft.studies import Study, StudyImage

_SECTIONS = ("indication", "history", "comparison", "technique", "findings", "impression")

Split = Literal["train", "val", "test"] | tuple[float, float, float]


def convert(
    root: Path,
    out: Path | None = None,
    table: Path | None = None,
    split: Split = "test",
    path_column: str = "path",
    study_column: str = "study_id",
    subject_column: str = "subject_id",
    view_column: str = "view",
    split_column: str = "split",
    report_column: str = "report",
    sections: tuple[str, ...] = (),
) -> Conversion:
    """A folder of images (PNG, JPEG, TIFF, BMP, DICOM), e.g. to draft reports for, or a table of them.

    Without a table every image below root is a study and a subject of its own, named after its file, or after its
    path where two files share a name. Files without suffix are taken if they are DICOM. DICOM headers are not read.
    A text file of the same name beside an image is its report: split at headers such as FINDINGS: where there are
    any, else findings as a whole.

    Args:
        root: The folder. Paths in a table start here. Names of files become names of studies: they must not tell who
            the patient is.
        out: The manifest to write. By default studies.jsonl in root.
        table: A CSV or TSV with one image a row. Its columns findings, impression, indication, history, comparison
            and technique, where it has them, become sections.
        split: The split of all studies; or the shares of train, val and test, e.g. [0.8,0.1,0.1], to split by a hash
            of the subject. A table with a split column has its own.
        path_column: Column with the path of the image.
        study_column: Column with the study; rows of one study are its images. Without it each row is a study.
        subject_column: Column with the patient. Without it each study is a subject of its own.
        view_column: Column with the view, e.g. PA, AP, LATERAL.
        split_column: Column with the split: train, val (or valid, validate, validation), test.
        report_column: Column with the whole report, treated as a text file beside the image.
        sections: Sections that a study must have, e.g. [findings]. By default none.
    """
    if table is None:
        studies = _walk(root, split)
    else:
        columns = {
            "path": path_column,
            "study_id": study_column,
            "subject_id": subject_column,
            "view": view_column,
            "split": split_column,
            "report": report_column,
        }
        studies = _read(table, root, split, columns)
    for study in studies:
        if not study.sections:
            study.sections = _report_beside(study.images[0].path)
    conversion = Conversion("folder", studies)
    if table is not None:
        conversion.keep_files()
    conversion.require(sections)
    return conversion.write(out or root / "studies.jsonl")


def find_image_files(root: Path) -> list[Path]:
    """Image files anywhere below a folder, by suffix, or as DICOM by content; hidden ones are passed over."""
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    paths = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [path for name in sorted(names) if _is_image(path := Path(parent, name))]
    return paths


def _walk(root: Path, split: Split) -> list[Study]:
    paths = find_image_files(root)
    ids = _study_ids([path.relative_to(root).as_posix() for path in paths])
    return [Study(name, name, _split(split, name), [StudyImage(path)]) for path, name in zip(paths, ids, strict=True)]


def _is_image(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if _stem(path.name) != path.name:
        return True
    # DICOM files are often named by a UID: no suffix, or what looks like one but is a number. DICOMDIR is an index.
    if path.name == "DICOMDIR" or not re.fullmatch(r"(\.\d+)?", path.suffix):
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _stem(name: str) -> str:
    """The name without the suffix of an image; other dots, as in a UID, are part of the stem."""
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in _image_suffixes() else name


@cache
def _image_suffixes() -> frozenset[str]:
    from raddraft.images import IMAGE_SUFFIXES

    return IMAGE_SUFFIXES


def _study_ids(names: list[str]) -> list[str]:
    """A name for each relative path: the stem, or as much of the path as it takes to tell two files apart."""
    stages = [
        [_stem(name.rpartition("/")[2]) for name in names],
        [_stem(name).replace("/", "_") for name in names],
        [name.replace("/", "_") for name in names],
    ]
    ids = stages[0]
    for stage in stages[1:]:
        counts = Counter(ids)
        ids = [longer if counts[short] > 1 else short for short, longer in zip(ids, stage, strict=True)]
    return ids


def _read(table: Path, root: Path, split: Split, columns: dict[str, str]) -> list[Study]:
    """Studies of a table. `columns`: what the manifest calls it -> the table's column."""
    rows = list(read_table(table, [columns["path"], *(name for key, name in columns.items() if name != key)]))
    ids = _study_ids([row[columns["path"]] for _, row in rows])
    studies: dict[str, Study] = {}
    for (where, row), default_id in zip(rows, ids, strict=True):
        study_id = row.get(columns["study_id"], default_id)
        subject_id = row.get(columns["subject_id"], study_id)
        if not study_id or not subject_id or not row[columns["path"]]:
            raise CorpusError(f"{where}: path, study and subject must not be blank, got {row}")
        named_split = row.get(columns["split"])
        image = StudyImage(root / row[columns["path"]], row.get(columns["view"]) or None)
        study = Study(
            study_id,
            subject_id,
            _split(split, subject_id) if named_split is None else parse_split(named_split, where),
            [image],
            _row_sections(row, columns["report"]),
        )
        add_image(studies, study, where)
    return list(studies.values())


def _row_sections(row: dict[str, str], report_column: str) -> dict[str, str]:
    whole = parse_plain(row[report_column]) if row.get(report_column) else {}
    return clean_sections(whole | {name: row[name] for name in _SECTIONS if row.get(name)})


def _report_beside(image: Path) -> dict[str, str]:
    try:
        text = image.with_name(f"{_stem(image.name)}.txt").read_text(encoding="utf-8-sig", errors="replace")
    except FileNotFoundError:
        return {}
    return clean_sections(parse_plain(text))


def _split(split: Split, subject_id: str) -> str:
    return split if isinstance(split, str) else hash_split(subject_id, split)
