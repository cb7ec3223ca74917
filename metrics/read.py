"""Read drafts and references: JSON Lines with ids, tables with or without ids, or plain text with a report a line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raddraft.errors import RadDraftError
from raddraft.files import read_jsonl

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv")


@dataclass
class Prediction:
    """A draft and the report it is scored against."""

    study_id: str
    prediction: str
    reference: str


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
            named = ", ".join(left_out[:5]) + (" …" if len(left_out) > 5 else "")
            notes.append(f"{name}: {len(left_out)} studies that not every system has are left out ({named})")
    return {name: [part[study_id] for study_id in common] for name, part in rows.items()}, notes


def read_predictions(path: str | Path, references: str | Path | None = None) -> tuple[list[Prediction], list[str]]:
    """Predictions that have a reference, and sentences that say what was left out.

    Args:
        path: .jsonl, one {"study_id", "prediction", "reference"} a line; .csv or .tsv with these columns; with
            `references` also .txt (or no suffix), a report a line, and tables of one column beside study_id.
        references: the references, in any of these forms; joined by study_id, or by line if neither file has ids.

    Raises:
        RadDraftError: an unknown file type, broken JSON, a missing key or column, a wrong type, a duplicate study,
            unequal numbers of lines, ids in one file only, or no prediction with a reference.
    """
    path, own = Path(path), references is None
    source = path if references is None else Path(references)
    if own and path.suffix.lower() not in (*JSON_LINES, *TABLES):
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
    common = [key for key in drafts if key in reports]
    notes = []
    if count := len(drafts) - len(common):
        notes.append(f"{path}: {count} predictions without a reference{'' if own else f' in {source}'} are left out")
    if count := len(reports) - len(common):
        notes.append(f"{source}: {count} references without a prediction in {path} are left out")
    if not common:
        raise RadDraftError(f"{path}: no prediction with a reference ({len(drafts)} without)")
    return [Prediction(str(key), drafts[key], reports[key]) for key in common], notes


def read_texts(path: str | Path, column: str, optional: bool = False) -> dict[str | int, str]:
    """One text a study: study_id, or number of the line if there are no ids -> text.

    Args:
        path: as for `read_predictions`.
        column: key or column of the text.
        optional: leave out studies without this text: null or missing in JSON Lines, an empty cell in tables.

    Raises:
        RadDraftError: as `read_predictions`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in TABLES:
        return _read_table(path, column, optional)
    if suffix in JSON_LINES:
        texts: dict[str | int, str] = {}
        for where, row in read_jsonl(path, ("study_id",) if optional else ("study_id", column), "study_id"):
            text = row.get(column)
            if isinstance(text, str):
                texts[row["study_id"]] = text
            elif text is not None:
                raise RadDraftError(f"{where}: {column} must be a string or null, got {text!r}")
        return texts
    if suffix not in (".txt", ""):
        raise RadDraftError(f"{path}: reports are read from .jsonl, .csv, .tsv and .txt, not from {suffix}")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise RadDraftError(f"{path}: not UTF-8: {error}") from None
    lines = content.removesuffix("\n").split("\n") if content else []
    return {number: line.removesuffix("\r") for number, line in enumerate(lines, 1)}


def _read_table(path: Path, column: str, optional: bool) -> dict[str | int, str]:
    columns, *rows = _read_cells(path) or [[]]
    text = column
    if column not in columns and "study_id" in columns and len(columns) == 2 and not optional:
        text = next(name for name in columns if name != "study_id")
    if text not in columns:
        hint = "the first line must name them" + ("; or give the reports with --references" if optional else "")
        raise RadDraftError(f"{path}: no column {column!r}. Columns: {', '.join(columns) or 'none'}; {hint}")
    texts: dict[str | int, str] = {}
    for number, cells in enumerate(rows, 1):
        if len(cells) != len(columns):
            comparison = "more" if len(cells) > len(columns) else "fewer"
            raise RadDraftError(f"{path} row {number}: {comparison} cells than columns")
        row = dict(zip(columns, cells, strict=True))
        key = row.get("study_id", number)
        if key in texts:
            raise RadDraftError(f"{path} row {number}: duplicate study_id {key!r}")
        texts[key] = row[text]
    return {key: value for key, value in texts.items() if value or not optional}


def _read_cells(path: Path) -> list[list[str]]:
    """Cells of all rows. In a table of one column a blank line is an empty cell; in others it is skipped."""
    limit = csv.field_size_limit(sys.maxsize)  # the default would refuse a report of 128 kB
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, dialect="excel-tab" if path.suffix.lower() == ".tsv" else "excel"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RadDraftError(f"{path}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    single = all(len(row) < 2 for row in rows)
    return [row or [""] for row in rows if row or single]
