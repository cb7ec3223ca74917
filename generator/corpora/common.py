"""What the converters share: tables, splits, labels, patients, masks, and the studies on their way into a manifest.

It is one file, since every converter takes most of it.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from generator.corpora import odd_rows
from generator.corpora.films import draw_masks, read_header
from raddraft import files
from raddraft.errors import RadDraftError
from raddraft.splits import UNKNOWN_PATIENT, find_fault, tell_splits
from raddraft.studies import MAX_AGE, SPLITS, Study, StudyImage, drop_nothing, write_studies
from raddraft.tables import check_columns, is_nothing, read_cells
from raddraft.text import format_table, progress

if TYPE_CHECKING:
    from encoder.masks import Part

NO_VAL = (0.9, 0.1, 0.0)
"""Shares for `hash_split` where a set has an official test split but none for validation."""
PIXELS = (".png", ".jpg", ".jpeg")
"""Suffixes of files without a DICOM header."""

_SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "val", "validate": "val", "validation": "val"}
# DICOM's age string has a unit; tables and some headers omit it and mean years.
_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([YMWD]?)")
_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}


class CorpusError(RadDraftError):
    """A raw data set is not as expected; the message names the file, the line and the value."""


class MissingFileError(CorpusError, FileNotFoundError):
    """A file or folder of a data set does not exist; the message says where to get it, or how to name it."""


class Conversion:
    """Studies on their way into a manifest, with a count of what was left out and why. `print` shows the table."""

    def __init__(self, source: str, studies: Iterable[Study], out: Path, counts: Counter[str] | None = None) -> None:
        self.source, self.studies, self.out = source, list(studies), Path(out)
        self.counts: Counter[str] = Counter() if counts is None else counts
        """What was done with odd rows -> how many there are; `write` makes notes of it."""
        self.drops: list[tuple[str, int, int, int]] = []
        """Reason, studies dropped, images dropped, studies left."""
        self.first_missing: Path | None = None
        """The first image file that does not exist."""
        self.notes: list[str] = []
        """Sentences to print under the table."""
        for study in self.studies:
            study.source = source
            drop_nothing(study)
            for image in study.images:
                image.path = image.path.absolute()
                if image.view and not any(map(str.isalnum, image.view)):  # "?"
                    image.view = None
        self.n_read = len(self.studies)
        self.n_images_read = sum(len(study.images) for study in self.studies)
        self.count_sections()
        if any(odd_rows.TWO_SUBJECTS in study.extra for study in self.studies):
            self.keep_studies("under two subjects", lambda study: odd_rows.TWO_SUBJECTS not in study.extra)

    def count_sections(self) -> None:
        """Count the sections of all reports read; again where reports are read after the images."""
        self.sections_read = Counter(name for study in self.studies for name in study.sections)
        self.n_reports_read = sum(bool(study.sections) for study in self.studies)

    def mark_unknown_patients(self) -> None:
        """Mark the studies that are a subject of their own: the source names no patients, who may have several."""
        for study in self.studies:
            if study.subject_id == study.study_id:
                study.extra[UNKNOWN_PATIENT] = True

    def keep_images(self, reason: str, keep: Callable[[StudyImage], bool]) -> None:
        """Drop the images that fail `keep`, and the studies that have none left."""
        kept = [
            replace(study, images=[image for image in study.images if keep(image)])
            for study in progress(self.studies, reason)
        ]
        self._drop(reason, [study for study in kept if study.images])

    def keep_views(self, views: str) -> None:
        """Drop the images that are not frontal, unless `views` is all."""
        if views == "frontal":
            self.keep_images("no frontal image", lambda image: image.frontal)

    def keep_files(self, *suffixes: str) -> None:
        """Drop images without a file. A file of the same stem with one of `suffixes` may stand in."""

        def exists(image: StudyImage) -> bool:
            for path in (image.path, *map(image.path.with_suffix, suffixes)):
                if os.path.isfile(path):  # a Path raises of a name that is too long
                    image.path = path
                    return True
            self.first_missing = self.first_missing or image.path
            return False

        self.keep_images("no image file on disk", exists)

    def keep_studies(self, reason: str, keep: Callable[[Study], bool]) -> None:
        """Drop the studies that fail `keep`."""
        self._drop(reason, [study for study in self.studies if keep(study)])

    def require(self, sections: Iterable[str]) -> None:
        """Drop the studies that lack one of `sections`.

        Raises:
            CorpusError: no report has such a section: the name must be wrong.
        """
        for name in sections:
            if self.studies and not any(name in study.sections for study in self.studies):
                found = ", ".join(section for section, _ in self.sections_read.most_common(12)) or "none"
                raise self.refusal(f"no study has a section {name!r}. Sections found: {found}")
            self.keep_studies(f"no {name}", lambda study, name=name: bool(study.sections.get(name)))  # type: ignore[misc]

    def read_headers(self) -> None:
        """Take view, sex and age of every study from the DICOM header of its first image; nothing else is read.

        Studies whose header cannot be read are dropped, with a count and the first file's name. PNG and JPEG files are
        skipped.
        """
        unreadable: dict[str, Path] = {}
        for study in progress(self.studies, "DICOM headers"):
            image = study.images[0]
            if image.path.suffix.lower() in PIXELS:
                continue
            if (header := read_header(image.path)) is None:
                unreadable[study.study_id] = image.path
                continue
            sex, age, view = header
            image.view = image.view or (None if is_nothing(view) else view)
            study.patient |= parse_patient(sex, age, self.counts)
        first = f", {next(iter(unreadable.values())).name} first" if unreadable else ""
        self.keep_studies(f"no readable DICOM header{first}", lambda study: study.study_id not in unreadable)

    def add_masks(self, masks: Mapping[str, Mapping[str, Sequence[Part]]], size: tuple[int, int] | None = None) -> None:
        """Write masks as PNG files, masks/STRUCTURE/NAME.png beside the manifest, and add them to the images.

        Args:
            masks: name of the study (its first image), or of study and image (STUDY_STEM) -> structure -> its parts,
                whose union is the mask. Without parts, or where one of the files does not exist, there is no mask; nor
                where one cannot be read or leaves its image, which is counted.
            size: height and width of all images; by default those of each file.

        Raises:
            CorpusError: no mask can be drawn, though there are parts of some.
            ImageError: the image's size cannot be read.
        """
        failures = draw_masks(progress(self.studies, "masks"), masks, self.out.absolute().parent / "masks", size)
        if failures and not any(image.masks for study in self.studies for image in study.images):
            raise self.refusal(failures[0])
        if failures:
            self.notes.append(f"Masks that cannot be drawn, left out: {len(failures):,} (first: {failures[0]})")

    def write(self) -> Conversion:
        """Check the studies and write the manifest; impossible ages are left out and counted, and notes say what the
        splits do not keep apart.

        Raises:
            CorpusError: no study is left, or there is a fault (`raddraft.splits.find_fault`); with the table of drops.
        """
        self.blank_ages(f"above {MAX_AGE}", lambda age: age > MAX_AGE)
        self.counts[odd_rows.OLD] += sum((study.patient.get("age") or 0) > 100 for study in self.studies)
        self.notes += odd_rows.tell_counts(self.counts)
        if not self.studies:
            if not self.n_read:
                raise self.refusal("there is no study in what was read, so nothing was written")
            reasons = [f"{n_images or n} with {reason}" for reason, n, n_images, _ in self.drops if n or n_images]
            missing = f" (first: {self.first_missing})" if self.first_missing else ""
            raise self.refusal(f"no study is left to write: {', '.join(reasons)}{missing}")
        if fault := find_fault(self.studies):
            raise self.refusal(fault)
        self.notes += tell_splits(self.studies)
        write_studies(self.out, self.studies)
        self.notes.append(
            f"Wrote {len(self.studies):,} {'study' if len(self.studies) == 1 else 'studies'} to {self.out}"
        )
        return self

    def refusal(self, what: str, kind: type[CorpusError] | None = None) -> CorpusError:
        """An error (of a `kind`), with the table of what was read and dropped until then."""
        error = (kind or CorpusError)(f"{self.source}: {what}")
        error.table = str(self)
        return error

    def __str__(self) -> str:
        """The table: what was read, what each split holds, what was dropped and why."""
        groups = [[study for study in self.studies if study.split == split] for split in SPLITS] + [self.studies]

        def row(label: str, read: int | str, count: Callable[[Study], int]) -> list[str | int]:
            return [label, read, *(sum(count(study) for study in group) for group in groups)]

        rows: list[list[str | int]] = [
            [self.source, "read", *SPLITS, "kept"],
            row("studies", self.n_read, lambda study: 1),
            row("images", self.n_images_read, lambda study: len(study.images)),
            row("with report", self.n_reports_read, lambda study: bool(study.sections)),
        ]
        for name, count in self.sections_read.most_common(9):
            if name != "preamble":
                rows.append(row(f"with {name}", count, lambda study, name=name: name in study.sections))  # type: ignore[misc]
        if any(study.labels for study in self.studies):
            rows.append(row("with labels", "", lambda study: bool(study.labels)))
        parts = [format_table(rows)]
        if self.drops:
            parts.append(format_table([["dropped", "studies", "images", "studies left"], *self.drops]))
        if self.first_missing:
            parts.append(f"The first image not found: {self.first_missing}")
        return "\n\n".join([*parts, "\n".join(self.notes)] if self.notes else parts)

    def blank_ages(self, what: str, wrong: Callable[[float], bool]) -> None:
        """Take out the ages that are `wrong`, and count them: the studies stay."""
        found = [study.patient for study in self.studies if study.patient.get("age") is not None]
        found = [patient for patient in found if wrong(patient["age"])]
        for patient in found:
            patient["age"] = None
        self.counts[f"Ages {what}, left out"] += len(found)

    def blank_newborns(self) -> None:
        """Take out the ages of 0, which patients of a set of adults cannot have, and count them."""
        self.blank_ages("of 0, which these adults cannot have", lambda age: age == 0)

    def _drop(self, reason: str, kept: list[Study]) -> None:
        n_images = sum(len(study.images) for study in self.studies) - sum(len(study.images) for study in kept)
        self.drops.append((reason, len(self.studies) - len(kept), n_images, len(kept)))
        self.studies = kept


def read_table(path: Path, columns: Iterable[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV (or TSV, by its name; gzipped or not), each with its location ("x.csv line 7").

    Cells that read NaN are blank, as cells are that a row lacks; other words for nothing, as None, are left to whoever
    knows what the column holds (`raddraft.tables.is_nothing`; `Conversion` takes them out of its studies).

    Raises:
        CorpusError: no table, or one without a row; one of `columns` is not in the header, or a column is twice; a row
            has more cells than the header, or the file breaks off.
    """
    rows = read_cells(path, CorpusError)
    _, header = next(rows, (0, []))
    missing = [column for column in columns if column not in header]
    if missing or not header:
        what = f"no column {missing[0]!r}" if missing else "no header"
        raise CorpusError(f"{path}: {what}. Columns: {', '.join(header) or 'none'}")
    check_columns(header, path, CorpusError)
    line = 0
    for (line, cells), following in pairwise(chain(rows, [None])):  # type: ignore[misc]  # only the last is None
        where = f"{path.name} line {line}"
        if any(cell.strip() for cell in cells[len(header) :]):
            raise CorpusError(f"{where}: {len(cells)} cells, but the header has {len(header)}; is a comma not quoted?")
        if not following and len(cells) < len(header) and _lacks_end(path):
            raise CorpusError(f"{where}: the file ends within a row: it has {len(cells)} of {len(header)} cells")
        if cells:
            blanks = [""] * (len(header) - len(cells))
            yield where, dict(zip(header, cells + blanks, strict=False))
    if not line:
        raise CorpusError(f"{path}: a header and no row")


def _lacks_end(path: Path) -> bool:
    """Whether a text file that is not compressed does not end with a line."""
    with open(path, "rb") as file:
        file.seek(-1, os.SEEK_END)
        return path.suffix.lower() not in (".gz", ".zip") and file.read() not in (b"\n", b"\r")


def read_json(path: Path) -> Any:
    """A JSON file, as `raddraft.files.read_json`; CorpusError where it is broken."""
    return files.read_json(path, CorpusError)


def find_file(folder: Path, names: Sequence[str], origin: str) -> Path:
    """The first of `names` (the usual one, then glob patterns) that `folder` holds, plain or with `.gz`.

    Raises:
        MissingFileError: it holds none; the message says where the file comes from (`origin`).
    """
    if not folder.is_dir():
        raise MissingFileError(f"{folder}: no such folder; {names[0]} is looked for there. {origin}")
    for name in names:
        found = sorted(folder.glob(name)) or sorted(folder.glob(f"{name}.gz"))
        if found:
            return found[-1]
    raise MissingFileError(f"{folder}: there is no {names[0]}, nor {names[0]}.gz. {origin}")


def add_image(studies: dict[str, Study], row: Study, where: str, counts: Counter[str]) -> None:
    """Enter one row of a table, a study with its images: a new study, or more images of a known one.

    The first row of a study that has them gives its sections, and each of its labels and values of its patient. Rows
    that repeat an image, or say something else than these, are counted. A study that a later row puts under another
    subject is marked, and `Conversion` leaves it out.

    Raises:
        CorpusError: a later row puts the study into another split.
    """
    drop_nothing(row)  # or it would keep out what a later row says
    study = studies.setdefault(row.study_id, row)
    if study is row:
        return
    if study.subject_id != row.subject_id:
        study.extra[odd_rows.TWO_SUBJECTS] = True
    elif study.split != row.split:
        splits = f"split {row.split!r}; earlier it is in {study.split!r}"
        raise CorpusError(f"{where}: study {row.study_id!r} is in {splits}")
    paths = {image.path for image in study.images}
    images = [image for image in row.images if image.path not in paths]
    counts[odd_rows.REPEATED] += bool(row.images) and not images
    study.images += images
    for what, known, told in (
        (odd_rows.OTHER_LABELS, study.labels, row.labels),
        (odd_rows.OTHER_PATIENT, study.patient, row.patient),
    ):
        values = {name: value for name, value in told.items() if value is not None}
        counts[what] += any(known.get(name) not in (None, value) for name, value in values.items())
        known |= {name: value for name, value in values.items() if known.get(name) is None}
    counts[odd_rows.OTHER_TEXT] += bool(study.sections and row.sections and study.sections != row.sections)
    study.sections = study.sections or row.sections


def parse_split(value: str, where: str) -> str:
    """Split as the manifest names it: `validate`, `valid` and `validation` are `val`."""
    split = _SPLIT_NAMES.get(value.strip().lower())
    if split is None:
        raise CorpusError(f"{where}: unknown split {value!r}. Choices: {', '.join(_SPLIT_NAMES)}")
    return split


def hash_fraction(subject_id: str) -> float:
    """First 12 hexadecimal digits of sha256("raddraft|" + subject_id) / 16¹²: 0 to 1, the same on every machine."""
    return int(hashlib.sha256(f"raddraft|{subject_id}".encode()).hexdigest()[:12], 16) / 16**12


def hash_split(subject_id: str, fractions: tuple[float, float, float] = (0.7, 0.1, 0.2)) -> str:
    """Split that follows from the subject alone, the same on every machine and in every order.

    train where `hash_fraction` is below the first of `fractions` (train, val, test), val below the sum of the first
    two, else test.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1):
        raise CorpusError(f"Fractions of train, val and test must be 0 or more and sum to 1, got {list(fractions)}")
    u = hash_fraction(subject_id)
    if u < fractions[0]:
        return "train"
    return "val" if u < fractions[0] + fractions[1] else "test"


def parse_label(value: str | float | None, where: str) -> int | None:
    """Label of the CheXpert kind: 1, 0, -1, or blank for not mentioned."""
    if is_nothing(value):
        return None
    try:
        number = float(value)  # type: ignore[arg-type]  # None is nothing
    except ValueError:
        number = math.nan
    if number not in (1, 0, -1):
        raise CorpusError(f"{where}: label {value!r}. Choices: 1, 0, -1, blank")
    return int(number)


def parse_labels(where: str, row: Mapping[str, Any], skip: Sequence[str]) -> dict[str, int | None]:
    """All columns of a row as labels, but for those to `skip`."""
    return {name: parse_label(value, f"{where}, {name}") for name, value in row.items() if name not in skip}


def parse_patient(sex: str, age: str, counts: Counter[str]) -> dict[str, Any]:
    """Sex and age as the manifest has them."""
    return {"sex": parse_sex(sex, counts), "age": parse_age(age, counts)}


def parse_sex(value: str, counts: Counter[str]) -> str | None:
    """M or F of M, F, male, Female; None for anything else, which is counted unless it is nothing."""
    sex = {"m": "M", "male": "M", "f": "F", "female": "F"}.get(value.strip().lower())
    counts[odd_rows.SEX] += sex is None and not is_nothing(value)
    return sex


def parse_age(value: str, counts: Counter[str]) -> int | float | None:
    """Years of 58, 1.5, 058Y, 18M, 006W, 045D; None for nothing and for what is no age. Both odd kinds are counted."""
    match = _AGE.fullmatch(value.strip().upper())
    if match is None:
        counts[odd_rows.AGE] += not is_nothing(value)
        return None
    counts[odd_rows.MONTHS] += match[2] in ("M", "W", "D")
    age = float(match[1]) / _PER_YEAR[match[2]]
    return int(age) if age.is_integer() else round(age, 2)


def parse_number(row: Mapping[str, str], column: str, where: str) -> int | float | None:
    """The number in a cell; None for nothing.

    Raises:
        CorpusError: not a finite number.
    """
    value = row.get(column, "")
    if is_nothing(value):
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise CorpusError(f"{where}: {column} must be a number, got {value!r}")
    return int(number) if number.is_integer() else number
