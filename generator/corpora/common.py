"""What the converters share: reading tables, naming splits, dropping studies with a count, writing the manifest."""

from __future__ import annotations

import csv
import gzip
import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from raddraft.errors import RadDraftError
from raddraft.studies import SPLITS, Study, StudyImage, write_studies
from raddraft.text import format_table, progress

_SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "val", "validate": "val", "validation": "val"}


class CorpusError(RadDraftError):
    """A raw data set is not as expected; the message names the file, the line and the value."""


@dataclass
class Conversion:
    """Studies on their way into a manifest, with a count of what was left out and why. `print` shows the table."""

    source: str
    studies: list[Study]
    drops: list[tuple[str, int, int, int]] = field(default_factory=list)
    """Reason, studies dropped, images dropped, studies left."""
    first_missing: Path | None = None
    """The first image that was looked for in vain."""
    out: Path | None = None
    """The manifest, once written."""

    def __post_init__(self) -> None:
        for study in self.studies:
            study.source = self.source
            for image in study.images:
                image.path = image.path.absolute()
        self.n_read = len(self.studies)
        self.n_images_read = sum(len(study.images) for study in self.studies)
        self.count_sections()

    def count_sections(self) -> None:
        """Take the studies as they are now for all that were read. Call it again where reports are read later."""
        self.sections_read = Counter(name for study in self.studies for name in study.sections)
        self.n_reports_read = sum(bool(study.sections) for study in self.studies)

    def keep_images(self, reason: str, keep: Callable[[StudyImage], bool]) -> None:
        """Drop the images that fail `keep`, and the studies that have none left."""
        remaining = []
        n_images = 0
        for study in progress(self.studies, reason):
            images = [image for image in study.images if keep(image)]
            n_images += len(study.images) - len(images)
            if images:
                remaining.append(replace(study, images=images))
        self._log(reason, remaining, n_images)

    def keep_files(self, suffixes: Sequence[str] = ()) -> None:
        """Drop images without a file. A file of the same stem with one of `suffixes` may stand in."""

        def exists(image: StudyImage) -> bool:
            for path in (image.path, *(image.path.with_suffix(suffix) for suffix in suffixes)):
                if path.is_file():
                    image.path = path
                    return True
            self.first_missing = self.first_missing or image.path
            return False

        self.keep_images("no image file on disk", exists)

    def keep_studies(self, reason: str, keep: Callable[[Study], bool]) -> None:
        """Drop the studies that fail `keep`."""
        remaining = [study for study in self.studies if keep(study)]
        n_images = sum(len(study.images) for study in self.studies) - sum(len(study.images) for study in remaining)
        self._log(reason, remaining, n_images)

    def require(self, sections: Iterable[str]) -> None:
        """Drop the studies that lack one of `sections`.

        Raises:
            CorpusError: no report has such a section: the name must be wrong.
        """
        for name in sections:
            if self.studies and not any(name in study.sections for study in self.studies):
                there = ", ".join(section for section, _ in self.sections_read.most_common(12)) or "none"
                raise CorpusError(f"{self.source}: no study has a section {name!r}. Sections found: {there}\n\n{self}")
            self.keep_studies(f"no {name}", lambda study, name=name: bool(study.sections.get(name)))  # type: ignore[misc]

    def write(self, out: Path) -> Conversion:
        """Check the studies and write the manifest.

        Raises:
            CorpusError: nothing is left to write, a study id stands twice, or a subject is in two splits.
        """
        if not self.studies:
            raise CorpusError(f"{self.source}: no study is left to write.\n\n{self}")
        seen: set[str] = set()
        first: dict[str, Study] = {}
        for study in self.studies:
            if study.study_id in seen:
                raise CorpusError(f"{self.source}: study {study.study_id!r} occurs twice")
            seen.add(study.study_id)
            other = first.setdefault(study.subject_id, study)
            if other.split != study.split:
                raise CorpusError(
                    f"{self.source}: subject {study.subject_id!r} is in split {other.split!r} (study "
                    f"{other.study_id!r}) and in {study.split!r} (study {study.study_id!r})"
                )
        write_studies(out, self.studies)
        self.out = Path(out)
        return self

    def __str__(self) -> str:
        """The table: what was read, what each split holds, what was dropped and why."""
        by_split = {split: [study for study in self.studies if study.split == split] for split in SPLITS}
        groups = [*by_split.values(), self.studies]

        def row(label: str, read: int | str, count: Callable[[Study], int]) -> list[str | int]:
            return [label, read, *(sum(count(study) for study in group) for group in groups)]

        rows: list[list[str | int]] = [
            [self.source, "read", *SPLITS, "kept"],
            row("studies", self.n_read, lambda study: 1),
            row("images", self.n_images_read, lambda study: len(study.images)),
            row("with report", self.n_reports_read, lambda study: bool(study.sections)),
        ]
        frequent = [pair for pair in self.sections_read.most_common(9) if pair[0] != "preamble"]
        for name, count in frequent:
            rows.append(row(f"with {name}", count, lambda study, name=name: name in study.sections))  # type: ignore[misc]
        if any(study.labels for study in self.studies):
            rows.append(row("with labels", "", lambda study: bool(study.labels)))
        text = format_table(rows)
        if self.drops:
            dropped: list[list[str | int]] = [["dropped", "studies", "images", "studies left"]]
            dropped += [[*drop] for drop in self.drops]
            text += "\n\n" + format_table(dropped)
        if self.first_missing:
            text += f"\n\nThe first image not found: {self.first_missing}"
        if self.out:
            text += f"\n\nWrote {len(self.studies):,} studies to {self.out}"
        return text

    def _log(self, reason: str, remaining: list[Study], n_images: int) -> None:
        self.drops.append((reason, len(self.studies) - len(remaining), n_images, len(remaining)))
        self.studies = remaining


def read_table(path: Path, columns: Iterable[str] = ()) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows of a CSV (or TSV, by its name; gzipped or not), each with where it stands ("x.csv line 7").

    Raises:
        CorpusError: one of `columns` is not in the header, or the file breaks off.
    """
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter, restval="")
        header = list(reader.fieldnames or [])
        missing = [column for column in columns if column not in header]
        if missing:
            raise CorpusError(f"{path}: no column {missing[0]!r}. Columns: {', '.join(header) or 'none'}")
        try:
            for row in reader:
                yield f"{path.name} line {reader.line_num}", row
        except (EOFError, csv.Error) as error:
            raise CorpusError(f"{path} line {reader.line_num + 1}: {error}") from None


def find_file(folder: Path, names: Sequence[str], origin: str) -> Path:
    """The first of `names` (the usual one, then glob patterns) that `folder` holds, plain or with `.gz`.

    Raises:
        FileNotFoundError: it holds none; the message says where the file comes from (`origin`).
    """
    for name in names:
        found = sorted(folder.glob(name)) or sorted(folder.glob(f"{name}.gz"))
        if found:
            return found[-1]
    raise FileNotFoundError(f"{folder}: there is no {names[0]}, nor {names[0]}.gz. {origin}")


def add_image(studies: dict[str, Study], row: Study, where: str) -> None:
    """Enter one row of a table, a study with one image: a new study, or one more image of a study that is there.

    What the first row of a study says of it counts.

    Raises:
        CorpusError: a later row puts the study under another subject, or into another split.
    """
    study = studies.setdefault(row.study_id, row)
    if study is row:
        return
    if (study.subject_id, study.split) != (row.subject_id, row.split):
        raise CorpusError(
            f"{where}: study {row.study_id!r} is of subject {row.subject_id!r}, split {row.split!r}; earlier it "
            f"is of {study.subject_id!r}, {study.split!r}"
        )
    study.images += row.images
    study.sections = study.sections or row.sections


def parse_split(value: str, where: str) -> str:
    """Split as the manifest names it: `validate`, `valid` and `validation` are `val`."""
    split = _SPLIT_NAMES.get(value.strip().lower())
    if split is None:
        raise CorpusError(f"{where}: unknown split {value!r}. Choices: {', '.join(_SPLIT_NAMES)}")
    return split


def hash_split(subject_id: str, fractions: tuple[float, float, float]) -> str:
    """Split that follows from the subject alone, the same on every machine and in every order.

    u = first 12 hexadecimal digits of sha256("raddraft|" + subject_id) / 16¹²; train below the first of `fractions`
    (train, val, test), val below the sum of the first two, else test.
    """
    if min(fractions) < 0 or not math.isclose(sum(fractions), 1):
        raise CorpusError(f"Fractions of train, val and test must be 0 or more and sum to 1, got {list(fractions)}")
    u = int(hashlib.sha256(f"raddraft|{subject_id}".encode()).hexdigest()[:12], 16) / 16**12
    if u < fractions[0]:
        return "train"
    return "val" if u < fractions[0] + fractions[1] else "test"


def parse_label(value: str | float | None, where: str) -> int | None:
    """Label of the CheXpert kind: 1, 0, -1, or blank for not mentioned."""
    if value is None or value == "" or value != value:  # the last: NaN
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if number not in (1, 0, -1):
        raise CorpusError(f"{where}: label {value!r}. Choices: 1, 0, -1, blank")
    return int(number)
