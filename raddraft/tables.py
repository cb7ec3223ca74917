"""Tables (CSV, TSV): one reader for all of them, what their columns are usually called, and what counts as nothing."""

from __future__ import annotations

import csv
import gzip
import io
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

from raddraft.errors import RadDraftError

NAN = frozenset({"nan", "<na>", "nat", "#n/a"})
"""How pandas, NumPy and spreadsheets write a missing value, in lower case. This is nothing in any cell, an id too."""
NOTHING = NAN | {"", "na", "n/a", "null", "none"}
"""What else says that there is nothing. As an id it may be somebody's real name for a study."""
_LONGEST = max(map(len, NOTHING))
_FORMULA = tuple("=+-@\t\r")
"""What a cell begins with that spreadsheets compute; OWASP, "CSV Injection"."""

# What a column holds: its usual names, the likeliest first; `find_column` compares letters and digits alone.
IMAGE = ("path", "image", "image_path", "file", "filename")
STUDY = ("study_id", "study")
SUBJECT = ("subject_id", "subject", "patient_id")
REPORT = ("report", "text")


def is_nothing(value: Any) -> bool:
    """Whether a cell or a value of JSON is missing: None, NaN, pandas' NA, blank, or a word of `NOTHING`.

    >>> [is_nothing(value) for value in (None, float("nan"), " ", "NaN", "None", 0, "No edema.")]
    [True, True, True, True, True, False, False]
    """
    if value is None or isinstance(value, int):
        return value is None
    text = str(value).strip()
    return len(text) <= _LONGEST and text.lower() in NOTHING


def find_column(columns: Iterable[str], names: Sequence[str]) -> str | None:
    """The column that has the first of `names` that any has, whatever its case, blanks, - and _; of two such columns
    the one with the very name, else the first.

    >>> find_column(["Image Path", "StudyID"], ("study_id", "study"))
    'StudyID'
    """
    columns = list(columns)
    by_name = {_letters(column): column for column in reversed(columns)}
    return next(
        (name if name in columns else by_name[_letters(name)] for name in names if _letters(name) in by_name), None
    )


def check_columns(columns: Sequence[str], where: object, error: type[RadDraftError] = RadDraftError) -> None:
    """Raise a RadDraftError (or `error`) that begins with `where` if two columns have one name; blank ones may."""
    for column in columns:
        if column.strip() and columns.count(column) > 1:
            raise error(f"{where}: two columns are named {column!r}; rename or remove one, for only one can be read")


def read_cells(path: Path, error: type[RadDraftError] = RadDraftError) -> Iterator[tuple[int, list[str]]]:
    """Rows of a CSV file (or TSV, by its name; gzipped or not, or alone in a zip), each with its line; cells that read
    NaN are blank.

    Raises:
        RadDraftError: (or `error`) the file breaks off, is not UTF-8, or has a quote that is not closed, or is closed
            within a cell; with the line where the row begins.
    """
    delimiter = "\t" if ".tsv" in (suffix.lower() for suffix in path.suffixes) else ","
    with _open(path, error) as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)  # else an open quote swallows the rows after it
        while True:
            limit = csv.field_size_limit(sys.maxsize)  # of the whole process; its 128 kB would refuse a long cell
            line = rows.line_num + 1
            try:
                cells = next(rows, None)
            except (EOFError, csv.Error, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as cause:
                raise error(f"{path} line {line}: {cause}") from None
            except UnicodeDecodeError as cause:
                raise error(f"{path} line {_find_bad_line(path, error) or line}: not UTF-8: {cause.reason}") from None
            finally:
                csv.field_size_limit(limit)
            if cells is None:
                return
            yield rows.line_num, ["" if cell.strip().lower() in NAN else cell for cell in cells]


def write_cells(file: TextIO, rows: Iterable[Iterable[object]]) -> None:
    """Write rows as CSV. Texts that spreadsheets take for formulas get an apostrophe before them, see `plain_cell`."""
    csv.writer(file, lineterminator="\n").writerows([_no_formula(cell) for cell in row] for row in rows)


def plain_cell(cell: str) -> str:
    """A cell without the apostrophe that `write_cells` puts before what spreadsheets take for a formula.

    >>> [plain_cell(cell) for cell in ("'=1+1", "'s1", "s1")]
    ['=1+1', "'s1", 's1']
    """
    return cell[1:] if cell[:1] == "'" and cell[1:2] in _FORMULA else cell


def _no_formula(cell: object) -> object:
    if not isinstance(cell, str) or cell[:1] not in _FORMULA:
        return cell
    try:
        float(cell)
    except ValueError:
        return f"'{cell}"
    return cell


@contextmanager
def _open(path: Path, error: type[RadDraftError]) -> Iterator[TextIO]:
    """The text of a table; `error` if it is a zip that is cut, or holds several files."""
    kind = path.suffix.lower()
    if kind != ".zip":
        opener = gzip.open if kind == ".gz" else open
        with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield cast(TextIO, file)
        return
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as cause:
        raise error(f"{path}: not a whole zip file: {cause}") from None
    with archive:
        # macOS adds a folder of its own
        names = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX")]
        if len(names) != 1:
            raise error(f"{path}: expected one table, got {', '.join(names) or 'none'}")
        with archive.open(names[0]) as member:
            yield io.TextIOWrapper(member, encoding="utf-8-sig", newline="")


def _find_bad_line(path: Path, error: type[RadDraftError]) -> int:
    """The first line that is not UTF-8: text is decoded in blocks, ahead of the rows."""
    cut = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile)  # it may be that, too
    with _open(path, error) as file, suppress(*cut):
        for number, line in enumerate(file.buffer, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 0


def _letters(name: str) -> str:
    return re.sub(r"[\W_]", "", name).lower()
