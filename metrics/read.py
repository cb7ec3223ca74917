"""Read drafts and references: JSONL with ids, tables with or without ids, or plain text with a report a line."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raddraft.errors import RadDraftError


@dataclass
class Prediction:
    """A draft beside the report it is measured against."""

    study_id: str
    prediction: str
    reference: str


def read_predictions(path: str | Path, references: str | Path | None = None) -> tuple[list[Prediction], list[str]]:
    """Predictions that have a reference, and sentences that tell what was left out.

    Args:
        path: .jsonl with {"study_id", "prediction", "reference"} a line; or with `references` also .csv or .tsv (a
            column `prediction`, or the only one beside `study_id`), or .txt (or no suffix) as text, a report a line.
        references: the same for `reference`; joined by study_id, or by line where neither file has ids.

    Raises:
        ValueError: a file of another kind, broken JSON, a missing key or column or a wrong type, a study twice, unequal
            numbers of lines, ids in one file only, or no prediction with a reference.
    """
    path = Path(path)
    if references is None:
        if path.suffix.lower() not in JSON_LINES:
            raise RadDraftError(f"{path} holds no references: name their file with --references, or give a .jsonl file")
        rows = list(json_rows(path, ("study_id", "prediction")))
        found = [Prediction(*(row[key] for key in KEYS)) for row in rows if row.get("reference") is not None]
        n_drafts = len(rows)
        left_out = {f"{path}: {{}} predictions without a reference are left out": len(rows) - len(found)}
    else:
        drafts, reports = read_texts(path, "prediction"), read_texts(references, "reference")
        for file, texts in ((path, drafts), (references, reports)):
            if not texts:
                raise RadDraftError(f"{file} is empty")
        if not {type(key) for key in drafts} & {type(key) for key in reports}:
            raise RadDraftError(f"Only one of {path} and {references} has study_ids: they cannot be joined")
        if int in {type(key) for key in drafts} and len(drafts) != len(reports):
            raise RadDraftError(f"{path} holds {len(drafts)} texts and {references} {len(reports)}: without ids the "
                             "numbers must be equal")  # fmt: skip
        n_drafts = len(drafts)
        common = [key for key in drafts if key in reports]
        found = [Prediction(str(key), drafts[key], reports[key]) for key in common]
        left_out = {
            f"{path}: {{}} predictions without a reference in {references} are left out": len(drafts) - len(common),
            f"{references}: {{}} references without a prediction in {path} are left out": len(reports) - len(common),
        }
    sentences = [sentence.format(count) for sentence, count in left_out.items() if count]
    if not found:
        raise RadDraftError(f"{path}: no prediction with a reference ({n_drafts} without)")
    return found, sentences


KEYS = ("study_id", "prediction", "reference")
JSON_LINES = (".jsonl", ".ndjson")


def read_texts(path: str | Path, column: str) -> dict[str | int, str]:
    """study_id, or number of the line where there are no ids -> text.

    Raises:
        ValueError: as `read_predictions`.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in JSON_LINES:
        return {row["study_id"]: row[column] for row in json_rows(path, ("study_id", column))}
    if suffix in (".csv", ".tsv"):
        return _table(path, column)
    if suffix not in (".txt", ""):
        raise RadDraftError(f"{path}: reports are read from .jsonl, .csv, .tsv and .txt, not from {suffix}")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise RadDraftError(f"{path}: not UTF-8 text: {error}") from None
    if lines[-1] == "":
        lines.pop()
    return {number: line.removesuffix("\r") for number, line in enumerate(lines, 1)}


def _table(path: Path, column: str) -> dict[str | int, str]:
    columns, *rows = _csv_rows(path) or [[]]
    text = column
    if column not in columns and "study_id" in columns and len(columns) == 2:  # else line 1 may be a report
        text = next(name for name in columns if name != "study_id")
    if text not in columns:
        named = ", ".join(columns) or "none"
        raise RadDraftError(f"{path}: no column {column!r}. Columns: {named}; line 1 is to name them")
    texts: dict[str | int, str] = {}
    for number, cells in enumerate(rows, 1):
        if len(cells) != len(columns):
            raise RadDraftError(
                f"{path} row {number}: {'more' if len(cells) > len(columns) else 'fewer'} cells than columns"
            )
        row = dict(zip(columns, cells, strict=True))
        key = row["study_id"] if "study_id" in columns else number
        if key in texts:
            raise RadDraftError(f"{path} row {number}: study {key!r} stands there already")
        texts[key] = row[text]
    return texts


def _csv_rows(path: Path) -> list[list[str]]:
    """Cells of all lines; in a table of one column a blank line is an empty cell, in others nothing."""
    limit = csv.field_size_limit(sys.maxsize)  # the default would refuse a report of 128 kB
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, dialect="excel-tab" if path.suffix.lower() == ".tsv" else "excel"))
    except (UnicodeDecodeError, csv.Error) as error:
        raise RadDraftError(f"{path}: {error}") from None
    finally:
        csv.field_size_limit(limit)
    if all(len(row) < 2 for row in rows):
        return [row or [""] for row in rows]
    return [row for row in rows if row]


def json_rows(path: Path, needed: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Rows whose needed keys are strings, each study once; `reference` may be null or missing unless needed."""
    first_line: dict[str, int] = {}
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            row = _parse(line, where, needed)
            study_id = row["study_id"]
            if study_id in first_line:
                raise RadDraftError(f"{where}: study {study_id!r} stands already on line {first_line[study_id]}")
            first_line[study_id] = number
            yield row


def _parse(line: bytes, where: str, needed: tuple[str, ...]) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:  # broken JSON, or bytes that are not UTF-8
        raise RadDraftError(f"{where}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise RadDraftError(f"{where}: expected an object, got {type(row).__name__}")
    for key in needed:
        if not isinstance(row.get(key), str):
            raise RadDraftError(f"{where}: {key} must be a string, got {row.get(key)!r}")
    if not isinstance(row.get("reference"), str | None):
        raise RadDraftError(f"{where}: reference must be a string or null, got {row['reference']!r}")
    return row
