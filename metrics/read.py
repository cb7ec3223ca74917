"""Read drafts and references: JSON Lines with ids, tables with or without ids, plain text with a report a line, or the
JSON of ReXrank.

A text that is nothing (null, NaN, "nan", see `raddraft.tables`) is a blank draft, and no reference at all.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raddraft.errors import RadDraftError
from raddraft.files import read_jsonl
from raddraft.rexrank import PREDICTION, find_subject, make_reference, read_entries
from raddraft.studies import Study
from raddraft.tables import IMAGE, REPORT, STUDY, SUBJECT, check_columns, find_column, is_nothing, read_cells
from raddraft.text import name_some, tell_studies

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")
REXRANK = ".json"


@dataclass(slots=True)
class Prediction:
    """A draft and the report it is scored against."""

    study_id: str
    prediction: str
    reference: str
    subject_id: str | None = field(default=None, compare=False)
    """The patient, if a file names it; the draft is the same without."""

    @property
    def report(self) -> str:
        """What tells the stratum of the study."""
        return self.reference


Texts = dict[str | int, str]
"""Id of the study, or number of its line -> text."""
Systems = dict[str, list[Prediction]]
"""Name of each system -> its drafts, all of the same studies in the same order; the first is the system under test."""


def read_systems(paths: Sequence[Path], references: Path | None = None) -> tuple[Systems, list[str]]:
    """Systems by file name, on the studies that all of them have, and sentences that say what was left out.

    Raises:
        RadDraftError: as `read_predictions` and `keep_common_studies`, or two files of the same name.
    """
    systems: Systems = {}
    notes: list[str] = []
    for path in paths:
        if path.stem in systems:
            raise RadDraftError(f"Two files are named {path.stem!r}; systems are told apart by file name")
        systems[path.stem], left_out = read_predictions(path, references)
        notes += left_out
    systems, left_out = keep_common_studies(systems)
    return systems, notes + left_out


def keep_common_studies(systems: Systems) -> tuple[Systems, list[str]]:
    """The studies that every system has, in the order of the first system, and sentences that name those left out.

    An image that cannot be read leaves one system without a draft; the others are compared all the same.

    Raises:
        RadDraftError: a study has different references in two systems, or there is no common study.
    """
    first, notes = next(iter(systems)), []
    rows = {name: {row.study_id: row for row in part} for name, part in systems.items()}
    common = [study_id for study_id in rows[first] if all(study_id in part for part in rows.values())]
    if not common:
        raise RadDraftError(f"No study is in all of {', '.join(systems)}: do they come from the same split?")
    for name, part in rows.items():
        for study_id in common:
            if part[study_id].reference != rows[first][study_id].reference:
                raise RadDraftError(f"The references of study {study_id!r} differ between {first} and {name}")
        if left_out := sorted(part.keys() - set(common)):
            named = name_some(left_out)
            notes.append(f"{name}: {len(left_out)} studies that not every system has are left out ({named})")
    return {name: [part[study_id] for study_id in common] for name, part in rows.items()}, notes


def read_predictions(path: str | Path, references: str | Path | None = None) -> tuple[list[Prediction], list[str]]:
    """Predictions that have a reference, and sentences that say what was left out.

    Args:
        path: .jsonl, one {"study_id", "prediction", "reference"} a line; .csv or .tsv with these columns; with
            `references` also .txt (or no suffix), a report a line, and tables of one column beside study_id; .json, a
            submission to ReXrank, whose references are as its script makes them (`raddraft.rexrank.make_reference`).
        references: the references, in any of these forms, as reference, report or text; joined by study_id, or by line
            if neither file has ids. A table without study_id may name an image file. Ids that only one file has are
            joined by the name of the image file, x for my-images/x.png, unless another id of its file has the same.

    Either file may name the subject of each study, as subject_id, subject or patient_id.

    Raises:
        RadDraftError: an unknown file type, broken JSON, a missing key or column, a wrong type, a duplicate study,
            unequal numbers of lines, ids in one file only, or no prediction with a reference.
    """
    path, own = Path(path), references is None
    source = path if references is None else Path(references)
    if own and path.suffix.lower() not in (*JSON_LINES, *TABLES, REXRANK):
        raise RadDraftError(f"{path} has no references: give the file that has them with --references")
    drafts, reports = read_texts(path, "prediction"), read_texts(source, "reference", optional=own)
    if not drafts or not (reports or own):
        raise RadDraftError(f"{path if not drafts else source} is empty")
    by_line = [any(isinstance(key, int) for key in texts) for texts in (drafts, reports)]
    if not own and by_line[0] != by_line[1]:
        raise RadDraftError(f"Only one of {path} and {source} has study_ids: they cannot be joined")
    if not own and by_line[0] and len(drafts) != len(reports):
        counts = f"{path} has {len(drafts)} texts and {source} has {len(reports)}"
        raise RadDraftError(f"{counts}: without ids the numbers must be equal")
    if not by_line[0]:
        reports = {key: text for key, text in reports.items() if text}
    key_of = _join(drafts, reports)
    notes = []
    if count := sum(key != other for key, other in key_of.items()):
        notes.append(f"{path}: {count} predictions are joined with {source} by the name of the file in their id")
    if count := len(drafts) - len(key_of):
        notes.append(f"{path}: {count} predictions without a reference{'' if own else f' in {source}'} are left out")
    used = set(key_of.values())
    if left_out := [str(key) for key in reports if key not in used]:
        named = "" if by_line[0] else f" ({name_some(left_out)})"
        notes.append(f"{source}: {len(left_out)} references without a prediction in {path} are left out{named}")
    if not key_of:
        raise RadDraftError(f"{path}: no prediction with a reference ({len(drafts)} without)")
    ours = read_subjects(path)
    theirs = ours if own else read_subjects(source)
    return [
        Prediction(str(key), drafts[key], reports[other], ours.get(key) or theirs.get(other))
        for key, other in key_of.items()
    ], notes


def compare_manifest(systems: Systems, known: Sequence[Study], manifest: Path) -> list[str]:
    """Sentences on the scored studies that a manifest lacks, and on its studies that are not scored, though others of
    their source and split are."""
    scored = [row.study_id for row in next(iter(systems.values()))]
    group_of = {study.study_id: (study.source, study.split) for study in known}
    groups = {group_of[name] for name in scored if name in group_of}
    notes = []
    if missing := [name for name in scored if name not in group_of]:
        notes.append(f"{len(missing)} of {len(scored)} studies are not in {manifest}: no image, stratum not stated")
    left = [name for name in group_of.keys() - set(scored) if group_of[name] in groups]
    return notes + tell_studies(f"of {manifest} that are not scored", left)


def read_cut(path: Path) -> dict[str, bool]:
    """study_id -> whether its draft ended at the limit of tokens, as far as a predictions.jsonl says so."""
    if path.suffix.lower() not in JSON_LINES:
        return {}
    rows = (row for _, row in read_jsonl(path) if "study_id" in row)
    return {row["study_id"]: row["cut"] for row in rows if isinstance(row.get("cut"), bool)}


def read_subjects(path: str | Path) -> dict[str | int, str]:
    """Subject of each study, by the keys of `read_texts`, as far as a file of JSON Lines or a table names it."""
    path = Path(path)
    if path.suffix.lower() in TABLES:
        columns, *cells = _read_rows(path) or [[]]
        study = find_column(columns, (*STUDY, *IMAGE))
        rows: Iterable[dict[str, Any]] = [dict(zip(columns, row, strict=False)) for row in cells]
    elif path.suffix.lower() in JSON_LINES:
        study, columns = "study_id", list({key: None for _, row in read_jsonl(path, ("study_id",)) for key in row})
        rows = (row for _, row in read_jsonl(path))  # one after the other, since their texts take much memory
    elif path.suffix.lower() == REXRANK:
        subjects = {key: find_subject(key, entry) for key, entry in read_entries(path).items()}
        return {key: subject for key, subject in subjects.items() if subject}
    else:
        return {}
    subject = find_column(columns, SUBJECT)
    if not subject:
        return {}
    found = {}
    for number, row in enumerate(rows, 1):
        key, value = row[study] if study else number, row.get(subject)
        if isinstance(value, bool | dict | list):
            raise RadDraftError(f"{path}, study {key!r}: {subject} must be a string or a number, got {value!r}")
        if not is_nothing(value):
            found[key] = sys.intern(str(value))
    return found


def read_texts(path: str | Path, column: str, optional: bool = False) -> Texts:
    """One text a study: study_id, or number of the line if there are no ids -> text, "" where it is nothing.

    Args:
        path: as for `read_predictions`.
        column: key or column of the text.
        optional: it is beside other texts, which are what the file is for: leave out the studies without it, and take
            no other column for it.

    Raises:
        RadDraftError: as `read_predictions`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (*TABLES, *JSON_LINES):
        texts = (_read_table if suffix in TABLES else _read_json_lines)(path, column, optional)
        return {key: text for key, text in texts.items() if text or not optional}
    if suffix == REXRANK:
        return {key: _of_rexrank(entry, column, f"{path}, {key}") for key, entry in read_entries(path).items()}
    if suffix not in (".txt", ""):
        raise RadDraftError(f"{path}: reports are read from .jsonl, .csv, .tsv, .txt and .json, not from {suffix}")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RadDraftError(f"{path}: not UTF-8: {error}") from None
    lines = content.removesuffix("\n").split("\n") if content else []
    return {number: _text(line.removesuffix("\r")) for number, line in enumerate(lines, 1)}


def _join(drafts: Texts, reports: Texts) -> dict[str | int, str | int]:
    """Id of each draft that has a reference -> id of that, in the order of the drafts."""
    key_of = {key: key for key in drafts if key in reports}
    if len(key_of) == len(drafts):
        return key_of
    theirs = {name: key for name, key in _by_file(reports).items() if key not in key_of}
    key_of |= {key: theirs[name] for name, key in _by_file(drafts).items() if key not in key_of and name in theirs}
    return {key: key_of[key] for key in drafts if key in key_of}


def _by_file(texts: Texts) -> dict[str, str | int]:
    """Name of the image file in each id -> id, where no other id has the same."""
    from raddraft.names import image_stem

    names = {key: image_stem(key.replace("\\", "/")) for key in texts if isinstance(key, str)}
    counts = Counter(names.values())
    return {name: key for key, name in names.items() if counts[name] == 1}


def _of_rexrank(entry: dict[str, Any], column: str, where: str) -> str:
    if column == "reference":
        return make_reference(entry)
    if PREDICTION not in entry:
        raise RadDraftError(f"{where}: no {PREDICTION}: a list of ReXrank holds references (--references), not drafts")
    if not isinstance(entry[PREDICTION], str | None):
        raise RadDraftError(f"{where}: {PREDICTION} must be a string or null, got {entry[PREDICTION]!r}")
    return _text(entry[PREDICTION])


def _read_json_lines(path: Path, column: str, optional: bool) -> Texts:
    texts: Texts = {}
    for where, row in read_jsonl(path, ("study_id",), "study_id"):
        name = column if column in row else find_column(row, _names(column, optional))
        if name is None and not optional:
            raise RadDraftError(f"{where}: key {column!r} is missing")
        text = row[name] if name else None
        if not isinstance(text, str) and not is_nothing(text):
            raise RadDraftError(f"{where}: {name} must be a string or null, got {text!r}")
        if not row["study_id"].strip():
            raise RadDraftError(f"{where}: study_id must not be blank")
        texts[row["study_id"]] = _text(text)
    return texts


def _read_table(path: Path, column: str, optional: bool) -> Texts:
    columns, *rows = _read_rows(path) or [[]]
    check_columns(columns, path)
    study = find_column(columns, (*STUDY, *IMAGE))
    names = _names(column, optional)
    text = find_column(columns, names)
    if text is None and study and len(columns) == 2 and not optional:
        text = next(name for name in columns if name != study)
    if text is None:
        hint = "the first line must name them" + ("; or give the reports with --references" if optional else "")
        wanted = " or ".join(map(repr, names))
        raise RadDraftError(f"{path}: no column {wanted}. Columns: {', '.join(columns) or 'none'}; {hint}")
    texts: Texts = {}
    for number, cells in enumerate(rows, 1):
        if len(cells) != len(columns):
            comparison = "more" if len(cells) > len(columns) else "fewer"
            raise RadDraftError(f"{path} row {number}: {comparison} cells than columns")
        row = dict(zip(columns, cells, strict=True))
        key = row[study] if study else number
        if study and not row[study].strip():
            raise RadDraftError(f"{path} row {number}: {study} must not be blank")
        if key in texts:
            raise RadDraftError(f"{path} row {number}: duplicate {study} {key!r}")
        texts[key] = _text(row[text])
    return texts


def _names(column: str, optional: bool) -> tuple[str, ...]:
    """What a column of texts may be called; a table of nothing but references may call them reports."""
    return (column, *REPORT) if column == "reference" and not optional else (column,)


def _text(text: str | None) -> str:
    return "" if text is None or is_nothing(text) else text


def _read_rows(path: Path) -> list[list[str]]:
    """Cells of all rows. In a table of one column a blank line is an empty cell; in others it is skipped."""
    rows = [cells for _, cells in read_cells(path)]
    single = all(len(row) < 2 for row in rows)
    return [row or [""] for row in rows if row or single]
