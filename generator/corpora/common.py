"""What the converters share: tables, splits, labels, patients, masks, and the studies on their way into a manifest.

It is one file, since every converter takes most of it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raddraft.errors import RadDraftError
from raddraft.splits import UNKNOWN_PATIENT, find_fault, tell_splits
from raddraft.studies import SPLITS, Study, StudyImage, drop_nothing, write_studies
from raddraft.tables import is_nothing, read_cells
from raddraft.text import format_table, progress

if TYPE_CHECKING:
    from encoder.masks import Part

MAX_AGE = 120
"""Years. Some tables hold ages such as 411."""
NO_VAL = (0.9, 0.1, 0.0)
"""Shares for `hash_split` where a set has an official test split but none for validation."""
PIXELS = (".png", ".jpg", ".jpeg")
"""Suffixes of files without a DICOM header."""

_SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "val", "validate": "val", "validation": "val"}
# DICOM's age string has a unit; tables and some headers omit it and mean years.
_AGE = re.compile(r"0*(\d+)(?:\.\d+)?\s*([YMWD]?)")
_PER_YEAR = {"": 1, "Y": 1, "M": 12, "W": 52.18, "D": 365.25}


class CorpusError(RadDraftError):
    """A raw data set is not as expected; the message names the file, the line and the value."""


class MissingFileError(CorpusError, FileNotFoundError):
    """A file or folder of a data set does not exist; the message says where to get it, or how to name it."""


class Conversion:
    """Studies on their way into a manifest, with a count of what was left out and why. `print` shows the table."""

    def __init__(self, source: str, studies: Iterable[Study], out: Path) -> None:
        self.source, self.studies, self.out = source, list(studies), Path(out)
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
                if path.is_file():
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
            path = study.images[0].path
            if path.suffix.lower() not in PIXELS and not _read_header(study):
                unreadable[study.study_id] = path
        first = f", {next(iter(unreadable.values())).name} first" if unreadable else ""
        self.keep_studies(f"no readable DICOM header{first}", lambda study: study.study_id not in unreadable)

    def add_masks(self, masks: Mapping[str, Mapping[str, Sequence[Part]]], size: tuple[int, int] | None = None) -> None:
        """Write masks as PNG files, masks/STRUCTURE/NAME.png beside the manifest, and add them to the images.

        Args:
            masks: name of the study (its first image), or of study and image (STUDY_STEM) -> structure -> its parts,
                whose union is the mask. Without parts, or where one of the files does not exist, there is no mask.
            size: height and width of all images; by default those of each file.

        Raises:
            CorpusError: a mask cannot be read or leaves its image.
            ImageError: the image's size cannot be read.
        """
        import numpy as np

        from encoder.masks import MaskError, draw_part, write_mask
        from raddraft.images import shown_size, stored_size

        for study in progress(self.studies, "masks"):
            named = [(f"{study.study_id}_{image.path.stem}", image) for image in study.images]
            for name, image in [(study.study_id, study.images[0]), *named]:
                for structure, parts in masks.get(name, {}).items():
                    if not parts or not all(part.is_file() for part in parts if isinstance(part, Path)):
                        continue
                    shape = size or stored_size(image.path) or shown_size(image.path)
                    try:
                        mask = np.any([draw_part(part, shape) for part in parts], axis=0)
                    except MaskError as error:
                        raise CorpusError(f"image {name}, {structure}: {error}") from None
                    path = self.out.absolute().parent / "masks" / structure.replace(" ", "_") / f"{name}.png"
                    write_mask(path, mask)
                    image.masks[structure] = path

    def write(self) -> Conversion:
        """Check the studies and write the manifest; impossible ages are left out and counted, and notes say what the
        splits do not keep apart.

        Raises:
            CorpusError: no study is left, or there is a fault (`raddraft.splits.find_fault`); with the table of drops.
        """
        self._blank_ages()
        if not self.studies:
            reasons = [f"{n_images or n} with {reason}" for reason, n, n_images, _ in self.drops if n or n_images]
            missing = f" (first: {self.first_missing})" if self.first_missing else ""
            raise self.refusal(f"no study is left to write: {', '.join(reasons) or 'none found'}{missing}")
        if fault := find_fault(self.studies):
            raise self.refusal(fault)
        self.notes += tell_splits(self.studies)
        write_studies(self.out, self.studies)
        self.notes.append(f"Wrote {len(self.studies):,} studies to {self.out}")
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
        return "\n\n".join(parts + self.notes)

    def _drop(self, reason: str, kept: list[Study]) -> None:
        n_images = sum(len(study.images) for study in self.studies) - sum(len(study.images) for study in kept)
        self.drops.append((reason, len(self.studies) - len(kept), n_images, len(kept)))
        self.studies = kept

    def _blank_ages(self) -> None:
        wrong = [study for study in self.studies if (study.patient.get("age") or 0) > MAX_AGE]
        for study in wrong:
            study.patient["age"] = None
        if wrong:
            self.drops.append((f"(age alone: {len(wrong)} above {MAX_AGE})", 0, 0, len(self.studies)))


def read_table(path: Path, columns: Iterable[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV (or TSV, by its name; gzipped or not), each with its location ("x.csv line 7").

    Cells that read NaN are blank, as cells are that a row lacks; other words for nothing, as None, are left to whoever
    knows what the column holds (`raddraft.tables.is_nothing`; `Conversion` takes them out of its studies).

    Raises:
        CorpusError: one of `columns` is not in the header, or the file breaks off.
    """
    rows = read_cells(path, CorpusError)
    _, header = next(rows, (0, []))
    missing = [column for column in columns if column not in header]
    if missing:
        raise CorpusError(f"{path}: no column {missing[0]!r}. Columns: {', '.join(header) or 'none'}")
    for line, cells in rows:
        if cells:
            blanks = [""] * (len(header) - len(cells))
            yield f"{path.name} line {line}", dict(zip(header, cells + blanks, strict=False))


def read_json(path: Path) -> Any:
    """A JSON file, with NaN as None; CorpusError where it is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except ValueError as error:
        raise CorpusError(f"{path}: not valid JSON: {error}") from None


def find_file(folder: Path, names: Sequence[str], origin: str) -> Path:
    """The first of `names` (the usual one, then glob patterns) that `folder` holds, plain or with `.gz`.

    Raises:
        MissingFileError: it holds none; the message says where the file comes from (`origin`).
    """
    for name in names:
        found = sorted(folder.glob(name)) or sorted(folder.glob(f"{name}.gz"))
        if found:
            return found[-1]
    raise MissingFileError(f"{folder}: there is no {names[0]}, nor {names[0]}.gz. {origin}")


def add_image(studies: dict[str, Study], row: Study, where: str) -> bool:
    """Enter one row of a table, a study with one image: a new study, or one more image of a known one.

    The first row of a study that has them gives its sections, and each of its labels and values of its patient.

    Returns:
        Whether the row had sections that differ from these, and are lost.

    Raises:
        CorpusError: a later row puts the study under another subject, or into another split.
    """
    drop_nothing(row)  # or it would keep out what a later row says
    study = studies.setdefault(row.study_id, row)
    if study is row:
        return False
    if (study.subject_id, study.split) != (row.subject_id, row.split):
        raise CorpusError(
            f"{where}: study {row.study_id!r} is of subject {row.subject_id!r}, split {row.split!r}; earlier it "
            f"is of {study.subject_id!r}, {study.split!r}"
        )
    study.images += row.images
    for known, told in ((study.labels, row.labels), (study.patient, row.patient)):
        known |= {name: value for name, value in told.items() if known.get(name) is None}
    lost = bool(study.sections and row.sections and study.sections != row.sections)
    study.sections = study.sections or row.sections
    return lost


def tell_lost(rows: int) -> list[str]:
    """A note on rows whose sections `add_image` did not take."""
    return [f"Rows whose text differs from the first text of their study, which counts: {rows:,}"] if rows else []


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


def parse_patient(sex: str, age: str, where: str) -> dict[str, Any]:
    """Sex and age as the manifest has them."""
    return {"sex": parse_sex(sex), "age": parse_age(age, where)}


def parse_sex(value: str) -> str | None:
    """M or F of M, F, male, Female; None for anything else."""
    return {"m": "M", "male": "M", "f": "F", "female": "F"}.get(value.strip().lower())


def parse_age(value: str, where: str) -> int | float | None:
    """Years of 58, 058Y, 18M, 006W or 045D; None for nothing.

    Raises:
        CorpusError: not an age.
    """
    if is_nothing(value):
        return None
    match = _AGE.fullmatch(value.strip().upper())
    if match is None:
        raise CorpusError(f"{where}: age {value!r}. Expected years, or a number and one of Y, M, W, D")
    age = int(match[1]) / _PER_YEAR[match[2]]
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


def _read_header(study: Study) -> bool:
    """Fill in what the DICOM header of the first image says; False if it has none."""
    import warnings

    from pydicom import dcmread

    image, tags = study.images[0], ["Rows", "PatientSex", "PatientAge", "ViewPosition"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of ages without unit, as RSNA and SIIM have them, one warning each
            header = dcmread(image.path, stop_before_pixels=True, force=True, specific_tags=tags)
            if "Rows" not in header:
                return False
            sex, age, view = (str(header.get(name) or "").strip() for name in tags[1:])
    except Exception:  # broken bytes make the parser raise anything
        return False
    image.view = image.view or (None if is_nothing(view) else view)
    try:
        years = parse_age(age, image.path.name)
    except CorpusError:  # free text in an age is no reason to lose the image
        years = None
    study.patient |= {"sex": parse_sex(sex), "age": years}
    return True
