"""MIMIC-CXR-JPG 2.x (or the DICOM files of MIMIC-CXR) with the reports of MIMIC-CXR -> studies."""

from __future__ import annotations

import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

from generator.corpora import common
from generator.corpora.common import Conversion, CorpusError, MissingFileError, read_table
from generator.corpora.mimic_iv import add_patients
from generator.sections import clean_sections, parse_mimic
from raddraft.ranges import Whole
from raddraft.studies import Study, StudyImage
from raddraft.text import progress
from raddraft.views import name_view

_TABLES_ORIGIN = (
    "It is part of MIMIC-CXR-JPG, https://physionet.org/content/mimic-cxr-jpg/ (credentialed access). "
    "Name the folder that holds it with --tables."
)
_REPORTS_ORIGIN = (
    "The reports are mimic-cxr-reports.zip of MIMIC-CXR, https://physionet.org/content/mimic-cxr/ (credentialed "
    "access). Name the zip, or the folder it was unpacked to, with --reports; or do without, with --sections []."
)

Reader = Callable[[Study], bytes | None]
"""Gives the text of a study's report, None if there is none."""


def convert(
    root: Path,
    out: Path | None = None,
    reports: Path | None = None,
    tables: Path | None = None,
    views: Literal["frontal", "all"] = "frontal",
    sections: tuple[str, ...] = ("findings",),
    labels: Literal["chexpert", "negbio", "radiologist", "none"] = "chexpert",
    mimic_iv: Path | None = None,
    window: Whole | None = None,
) -> Conversion:
    """MIMIC-CXR-JPG: official split, official section parser, AP and PA images, non-empty findings.

    Subjects and studies keep the names of their folders, p10000032 and s50414267, and every study its date and time of
    day (shifted for privacy, in the right order within a subject) as study_date and study_time. Where ViewPosition is
    blank, ViewCodeSequence_CodeMeaning ("postero-anterior") gives the view. Images and labels that stand twice (the
    first row counts), and studies of two subjects (left out), are counted.

    With --mimic-iv patients have a sex, an age at the study (its year - anchor_year + anchor_age; none where that or
    anchor_age is above 89, of which MIMIC-IV tells no more), a weight in kg and a BMI: those of hosp/omr whose day is
    nearest to the study's, at most --window days away. Of two days equally near the one before the study counts, of the
    rows of a day the highest seq_num. "Weight (Lbs)" is converted. "Weight", which tells no unit, values that are no
    plain number, weights outside of 20 to 350 kg and BMIs outside of 10 to 80 are left out and counted.

    Args:
        root: Folder that holds files/p10/p10000032/s50414267/<dicom_id>.jpg, or .dcm as MIMIC-CXR has them.
        out: The manifest to write. By default studies.jsonl in root.
        reports: Folder with files/p10/p10000032/s50414267.txt, or mimic-cxr-reports.zip as it is. By default root.
        tables: Folder with the CSV files of MIMIC-CXR-JPG, gzipped or not. By default root.
        views: frontal keeps images whose view is AP or PA; all keeps every image.
        sections: Sections that a study must have, e.g. findings impression. [] requires none, not even a report.
        labels: Whose labels to include: the CheXpert labeler's, NegBio's, or none; radiologist: those of 2.1.0's
            mimic-cxr-2.1.0-test-set-labeled.csv, which only studies of test have ("Airspace Opacity" becomes Lung
            Opacity).
        mimic_iv: The folder of MIMIC-IV that holds hosp/patients.csv.gz and hosp/omr.csv.gz, or the same unzipped.
        window: With --mimic-iv: the most days between the study and a weight or BMI, before or after it. By default
            180.
    """
    if window is not None and mimic_iv is None:
        raise CorpusError(f"--window {window} tells nothing without --mimic-iv, whose weights and BMIs it is for")
    tables = tables or root
    counts = Counter[str]()
    studies = _read_studies(root, tables, counts)
    conversion = Conversion("mimic-cxr", studies, out or root / "studies.jsonl", counts)
    label_table = None if labels == "none" else _find_table(tables, labels)
    if views == "frontal":
        conversion.keep_images("no AP or PA image", lambda image: image.view in ("AP", "PA"))
    conversion.keep_files(".dcm")
    _add_reports(conversion, reports or root, required=bool(sections))
    conversion.require(sections)
    if label_table:
        _add_labels(conversion, label_table, by_radiologist=labels == "radiologist")
    if mimic_iv:
        add_patients(conversion, mimic_iv, 180 if window is None else window)
    return conversion.write()


def _find_table(tables: Path, kind: str) -> Path:
    names = [f"mimic-cxr-2.0.0-{kind}.csv", f"mimic-cxr-2*-{kind}.csv"]
    if kind == "radiologist":
        names = ["mimic-cxr-2.1.0-test-set-labeled.csv", "mimic-cxr-2*-test-set-labeled.csv"]
    return common.find_file(tables, names, _TABLES_ORIGIN)


def _add_labels(conversion: Conversion, table: Path, by_radiologist: bool) -> None:
    """Fill in the labels; a radiologist's are of test studies alone, which are counted."""
    rows: dict[str, tuple[str, dict[str, str]]] = {}
    for where, row in read_table(table, ["study_id", "Edema"]):
        conversion.counts[f"Rows of {table.name} that repeat a study, left out"] += f"s{row['study_id']}" in rows
        rows.setdefault(f"s{row['study_id']}", (where, row))
    for study in conversion.studies:
        if study.study_id in rows and (study.split == "test" or not by_radiologist):
            labels = common.parse_labels(*rows[study.study_id], skip=("subject_id", "study_id"))
            study.labels = {"Lung Opacity" if name == "Airspace Opacity" else name: labels[name] for name in labels}
    if by_radiologist:
        tested = [study for study in conversion.studies if study.split == "test"]
        labeled = sum(bool(study.labels) for study in tested)
        conversion.notes.append(
            f"{table.name} has {len(rows):,} studies; {labeled:,} of {len(tested):,} test studies have a label"
        )


def find_splits(tables: Path) -> Path:
    """The table of the official split; MissingFileError where the folder has none."""
    return _find_table(tables, "split")


def read_splits(table: Path) -> dict[str, str]:
    """Image (dicom_id) -> its official split.

    Raises:
        CorpusError: an image is in two splits.
    """
    split_of: dict[str, str] = {}
    for where, row in read_table(table, ["dicom_id", "split"]):
        split = common.parse_split(row["split"], where)
        if (earlier := split_of.setdefault(row["dicom_id"], split)) != split:
            raise CorpusError(f"{where}: image {row['dicom_id']!r} is in split {split!r}; earlier it is in {earlier!r}")
    return split_of


def _read_studies(root: Path, tables: Path, counts: Counter[str]) -> list[Study]:
    split_file, metadata_file = find_splits(tables), _find_table(tables, "metadata")
    split_of = read_splits(split_file)
    files = root / "files" if (root / "files").is_dir() else root
    studies: dict[str, Study] = {}
    for where, row in read_table(metadata_file, ["dicom_id", "subject_id", "study_id", "ViewPosition"]):
        dicom_id, subject_id, study_id = row["dicom_id"], f"p{row['subject_id']}", f"s{row['study_id']}"
        if dicom_id not in split_of:
            raise CorpusError(f"{where}: image {dicom_id!r} is not in {split_file.name}")
        path = files / subject_id[:3] / subject_id / study_id / f"{dicom_id}.jpg"
        view = row["ViewPosition"].strip() or name_view(row.get("ViewCodeSequence_CodeMeaning"))
        image = StudyImage(path, view)
        when = {"study_date": row.get("StudyDate"), "study_time": row.get("StudyTime")}
        extra = {key: value for key, value in when.items() if value}
        study = Study(study_id, subject_id, split_of[dicom_id], [image], extra=extra)
        common.add_image(studies, study, where, counts)
    return list(studies.values())


def _add_reports(conversion: Conversion, source: Path, required: bool) -> None:
    """Fill in the sections; with `required`, drop the studies without report."""
    read = _zip_reader(source) if source.is_file() else _folder_reader(source)
    missing = set()
    for study in progress(conversion.studies, "reports"):
        content = read(study)
        if content is None:
            missing.add(study.study_id)
        else:
            text = re.sub("\r\n?", "\n", content.decode("utf-8", errors="replace"))
            study.sections = clean_sections(parse_mimic(text, study.study_id))
    conversion.count_sections()
    if required:
        if conversion.studies and len(missing) == len(conversion.studies):
            first = conversion.studies[0].study_id
            what = f"no report found in {source}, e.g. none for study {first}. {_REPORTS_ORIGIN}"
            raise conversion.refusal(what, MissingFileError)
        conversion.keep_studies("no report file", lambda study: study.study_id not in missing)


def _zip_reader(source: Path) -> Reader:
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise CorpusError(f"{source}: not a whole zip file: {error}") from None
    members = {PurePosixPath(name).stem: name for name in archive.namelist() if name.endswith(".txt")}

    def read(study: Study) -> bytes | None:
        try:
            return archive.read(members[study.study_id]) if study.study_id in members else None
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise CorpusError(f"{source}, {members[study.study_id]}: {error}") from None

    return read


def _folder_reader(source: Path) -> Reader:
    def read(study: Study) -> bytes | None:
        path = files / study.subject_id[:3] / study.subject_id / f"{study.study_id}.txt"
        return path.read_bytes() if os.path.isfile(path) else None

    files = source / "files" if (source / "files").is_dir() else source
    return read
