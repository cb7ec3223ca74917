"""Any folder or table of chest X-rays, with or without reports -> studies.

Of images only DICOM headers are read here; one that cannot be read is reported by name when it is used.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path
from typing import Literal

from generator.clinic import Ids
from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, MissingFileError
from generator.sections import clean_sections, parse_plain
from raddraft import tables
from raddraft.studies import SPLITS, Study, StudyImage, says_something

COLUMNS = {
    "path": tables.IMAGE,
    "study": tables.STUDY,
    "subject": ("subject_id", "subject", "patient_id", "patient"),
    "view": ("view", "ViewPosition", "projection"),
    "split": ("split",),
    "report": tables.REPORT,
}
"""What a column holds -> its usual names; case, blanks, - and _ do not matter."""
_CONTEXT = ("indication", "history", "comparison", "technique")
_SECTIONS = (*_CONTEXT, "findings", "impression")

Shares = tuple[float, float, float]


def convert(
    root: Path,
    out: Path | None = None,
    table: Path | None = None,
    split: Literal["train", "val", "test", "random"] | Shares = "test",
    path_column: str | None = None,
    study_column: str | None = None,
    subject_column: str | None = None,
    view_column: str | None = None,
    split_column: str | None = None,
    report_column: str | None = None,
    sections: tuple[str, ...] = (),
    ids: Ids = "pseudonymous",
) -> Conversion:
    """Your own images, from a folder or a table, with or without reports (PNG, JPEG, TIFF, BMP, DICOM).

    To draft reports: `raddraft prepare folder --root my-images`. To train on images with reports, a table such as

        image,patient_id,findings,impression
        x1.png,A,The lungs are clear.,Normal.

    and `raddraft prepare folder --root my-images --table reports.csv --split random`.

    Without a table the DICOM files below root are put into studies by their headers: frontal and lateral, no film for
    processing beside the one for presentation, nothing that is no chest film (each is named), the patient's earlier
    study as the prior. Every other image is a study and a subject of its own, named after its file, or after its path
    where two files share a name. A text file of the same name beside an image (x1.png, x1.txt) is its report. Files
    without suffix are taken if they are DICOM. A report is split at headers such as FINDINGS: where there are any, else
    it is findings as a whole. A table's rows that repeat an image are left out, and studies of two subjects.

    Args:
        root: The folder. Paths in a table start here. Names of files become names of studies, but for DICOM files, and
            paths stand in the manifest: they must not tell who the patient is.
        out: The manifest to write. By default studies.jsonl in root.
        table: A CSV or TSV with one image a row. Its columns findings, impression, indication, history, comparison
            and technique, where it has them, become sections.
        split: The split of all studies; or random: 70, 10 and 20 % of the subjects are train, val and test, by a hash
            of the subject; or other shares, e.g. [0.8,0.1,0.1]. A table with a split column has its own.
        path_column: Column with the path of the image. By default path, image, image_path, file or filename.
        study_column: Column with the study; rows of one study are its images. By default study_id or study; without
            such a column each row is a study.
        subject_column: Column with the patient, so that nobody is in two splits. By default subject_id, subject,
            patient_id or patient; without such a column each study is a subject of its own.
        view_column: Column with the view, e.g. PA, AP, LATERAL. By default view, ViewPosition or projection.
        split_column: Column with the split: train, val (or valid, validate, validation), test. By default split.
        report_column: Column with the whole report. By default report or text. Where no report is found but another
            column holds sentences, nothing is written.
        sections: Sections that a study must have, e.g. findings. By default none.
        ids: Ids of studies and subjects of DICOM files: pseudonymous, under the user's key, or original, the Study
            Instance UID and the Patient ID.
    """
    names = (path_column, study_column, subject_column, view_column, split_column, report_column)
    columns = dict(zip(COLUMNS, names, strict=True))
    notes: list[str] = []
    counts = Counter[str]()
    unused: dict[str, list[str]] = {}
    if table is None:
        studies, notes = _walk(root, ids)
    else:
        studies, unused = _read(table, root, columns, counts)
    unknown = {study.subject_id for study in studies if not study.split}
    shares = (0.7, 0.1, 0.2) if split == "random" else split
    split_of = dict.fromkeys(unknown, shares) if isinstance(shares, str) else _deal(unknown, shares)
    for study in studies:
        study.split = study.split or split_of[study.subject_id]
        study.sections = study.sections or report_beside(study)
    conversion = Conversion("folder", studies, out or root / "studies.jsonl", counts)
    if columns["subject"] is None:
        conversion.mark_unknown_patients()
    conversion.notes += notes
    if table is not None:
        conversion.keep_files()
        read = [f"{what} from {name}" for what, name in columns.items() if name]
        conversion.notes.append(f"Columns: {', '.join(read)}")
        _warn_of_unused(conversion, table, unused)
    conversion.require(sections)
    conversion.write()
    if unknown and split == "test" and all(study.sections for study in conversion.studies):
        conversion.notes.append("All of them are in split test. To train on them: --split random")
    return conversion


def find_image_files(root: Path) -> list[Path]:
    """Image files anywhere below a folder, by suffix, or as DICOM by content; hidden ones are skipped."""
    if not root.is_dir():
        raise MissingFileError(f"{root}: no such folder")
    paths = []
    for parent, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        paths += [path for name in sorted(names) if _is_image(path := Path(parent, name))]
    return paths


def _warn_of_unused(conversion: Conversion, table: Path, unused: dict[str, list[str]]) -> None:
    """Note the columns of a table that are not used.

    Raises:
        CorpusError: there is no report at all, and one of them looks like reports.
    """
    reports = next((name for name, cells in unused.items() if _look_like_reports(cells)), None)
    found = not conversion.sections_read.keys() <= {*_CONTEXT}
    if reports and not found:
        raise CorpusError(
            f"{table}: no report was found, but column {reports!r} looks like reports: name it with --report-column, "
            "or take it out of the table"
        )
    if unused:
        hint = "" if found else ". If one of them holds the reports, name it with --report-column"
        conversion.notes.append(f"Columns not used: {', '.join(unused)}{hint}")


def _look_like_reports(cells: list[str]) -> bool:
    """Whether most of the cells that are not blank hold sentences, or many words."""
    texts = [cell.split() for cell in cells if not tables.is_nothing(cell)]
    sentences = [words for words in texts if len(words) > 7 or (len(words) > 1 and words[-1].endswith("."))]
    return 2 * len(sentences) > len(texts)


def study_per_file(root: Path) -> list[Study]:
    """A study for each image file below a folder, whatever its header says, without split and report."""
    return _name(find_image_files(root), root)


def _walk(root: Path, ids: Ids) -> tuple[list[Study], list[str]]:
    """Studies of a folder, without split and report, and what to note of the files that are in none."""
    from generator.clinic.grouping import study_files

    of_file, grouped = study_files(find_image_files(root), ids, split="")
    others = {study.images[0].path: study for study in _name([path for path, one in of_file.items() if not one], root)}
    studies = {study.study_id: study for study in (study or others[path] for path, study in of_file.items())}
    notes = [f"left out: {path}: {reason}" for path, reason in grouped.left_out]
    if grouped.passed_over:
        notes.append(f"passed over: {grouped.passed_over} reports, presentation states and the like")
    return list(studies.values()), notes


def _name(paths: list[Path], root: Path) -> list[Study]:
    from raddraft.names import name_studies

    names = name_studies([path.relative_to(root).as_posix() for path in paths])
    return [Study(name, name, "", [StudyImage(path)]) for path, name in zip(paths, names, strict=True)]


def _is_image(path: Path) -> bool:
    from raddraft.images import IMAGE_SUFFIXES

    if path.name.startswith("."):
        return False
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return True
    # DICOM files are often named by a UID: no suffix, or what looks like one but is a number. DICOMDIR is an index.
    if path.name == "DICOMDIR" or not re.fullmatch(r"(\.\d+)?", path.suffix):
        return False
    with open(path, "rb") as file:
        return file.read(132)[128:] == b"DICM"


def _read(
    table: Path, root: Path, columns: dict[str, str | None], counts: Counter[str]
) -> tuple[list[Study], dict[str, list[str]]]:
    """Studies of a table, without split where it has no such column, and the cells of the columns that are not used.

    `columns`: what a column holds -> its name, where the user gave one; the usual ones that are there are filled in.
    """
    from raddraft.names import name_studies

    rows = list(common.read_table(table, [name for name in columns.values() if name]))
    header = list(rows[0][1] if rows else ())
    for what, usual in COLUMNS.items():
        columns[what] = columns[what] or tables.find_column(header, usual)
    path_column = columns["path"]
    if path_column is None:
        raise CorpusError(
            f"{table}: no column for the image's path ({', '.join(COLUMNS['path'])}). Columns: "
            f"{', '.join(header) or 'none'}. Name the right one with --path-column"
        )
    of_section = {name: column for name in _SECTIONS if (column := tables.find_column(header, (name,)))}
    ids = name_studies([row[path_column] for _, row in rows])
    studies: dict[str, Study] = {}
    for (where, row), default_id in zip(rows, ids, strict=True):
        found = {what: row[name] if name else None for what, name in columns.items()}
        study_id = default_id if found["study"] is None else found["study"]
        subject_id = study_id if found["subject"] is None else found["subject"]
        if not study_id or not subject_id or not row[path_column]:
            raise CorpusError(f"{where}: path, study and subject must not be blank, got {row}")
        split = "" if found["split"] is None else common.parse_split(found["split"], where)
        report = found["report"] or ""
        whole = {} if tables.is_nothing(report) else parse_plain(report)
        parts = {name: row[column] for name, column in of_section.items() if says_something(name, row[column])}
        image = StudyImage(root / row[path_column], found["view"] or None)
        study = Study(study_id, subject_id, split, [image], clean_sections(whole | parts))
        common.add_image(studies, study, where, counts)
    used = {"", *columns.values(), *of_section.values()}
    unused = {name: [row[name] for _, row in rows] for name in header if name not in used}
    return list(studies.values()), unused


def _deal(subjects: set[str], shares: Shares) -> dict[str, str]:
    """Split of each subject by `hash_split`; of fewer than 100 by exact shares, at least one each."""
    split_of = {subject: common.hash_split(subject, shares) for subject in subjects}
    wanted = [(name, share) for name, share in zip(SPLITS, shares, strict=True) if share]
    if len(wanted) <= len(subjects) < 100:
        ordered = sorted(subjects, key=common.hash_fraction)
        for name, share in wanted[:0:-1]:  # the first split gets the rest
            for _ in range(max(1, round(share * len(subjects)))):
                split_of[ordered.pop()] = name
        split_of |= dict.fromkeys(ordered, wanted[0][0])
    return split_of


def report_beside(study: Study) -> dict[str, str]:
    """Sections of the text file beside the first image of a study that has one."""
    from raddraft.names import image_stem

    for image in study.images:
        path = image.path.with_name(f"{image_stem(image.path.name)}.txt")
        text = path.read_text(encoding="utf-8-sig", errors="replace") if os.path.isfile(path) else ""
        if not tables.is_nothing(text):
            return clean_sections(parse_plain(text))
    return {}
