"""One pass over a collection before anything is spent on it: odd films, odd reports, subjects in two splits.

    checked = check(Path("studies.jsonl"))
    print(checked.summary())
    checked.write(Path("check"))  # findings.csv, sheet.png

A broken row, film or report is a finding and ends nothing. What a film looks like is guessed, see `encoder.survey`.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from encoder.contact_sheet import Tile, draw_tiles
from encoder.survey import duplicates, survey
from generator.corpora.folder import report_beside, study_per_file
from generator.headers import BOTH, find_headers
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.images import ImageWarning, load_image
from raddraft.studies import SPLITS, GrayMapping, Study, drop_nothing, read_studies, skim
from raddraft.tables import write_cells
from raddraft.text import format_table

KINDS = {
    "broken row": "lines of the manifest that cannot be used",
    "unreadable": "films that cannot be read",
    "repaired": "films read with a warning",
    "inverted": "films that look like a negative",
    "rotated": "films that look turned or mirrored",
    "not a chest": "films of something else, by their header or look",
    "lateral": "films that look like a lateral, among frontals",
    "tiny": "films of few pixels",
    "huge": "films of very many pixels",
    "border": "films with burned-in borders",
    "duplicate": "films that show pixel by pixel what an earlier one shows",
    "near-duplicate": "films that look the same as an earlier one",
    "leaking film": "films that are, or look, the same as one in another split",
    "blank report": "studies without a report, where others of their source have one",
    "equal report": "studies with the report of an earlier one",
    "leaking section": "sections that hold the header of another one",
    "two splits": "subjects in several splits",
}
"""Kind of finding -> what is counted."""

SECTIONS = {
    *("findings", "impression", "indication", "history", "comparison", "technique", "examination"),
    *("recommendations", "addendum", "wet read"),
}
"""Sections that must not hold each other; a history may stand in an indication."""
REPORT = ("findings", "impression")
MOST_SHOWN, MOST_NAMED = 8, 10
"""Films of a kind on the sheet, and subjects in the summary."""


class Row(NamedTuple):
    """A finding in a collection; paths start at the folder of the collection."""

    kind: str
    path: str
    """Of the film; empty for findings about studies."""
    study_id: str
    what: str
    like: str = ""
    """Of a copy: the film that it is like."""


@dataclass
class Checked:
    """What one pass over a collection found."""

    root: Path
    """Folder of the collection."""
    studies: int
    films: int
    rows: list[Row]

    def summary(self) -> str:
        """A table of counts, and the subjects in several splits by name."""
        counts = Counter(row.kind for row in self.rows)
        rows: list[list[str | int]] = [[f"{name}: {what}", counts[name]] for name, what in KINDS.items()]
        split = [row.what for row in self.rows if row.kind == "two splits"]
        more = [f"… and {len(split) - MOST_NAMED} more subjects"] if len(split) > MOST_NAMED else []
        table = format_table([["finding", "count"], *rows])
        return "\n".join([f"{self.studies:,} studies, {self.films:,} films", table, *split[:MOST_NAMED], *more])

    def write(self, out: Path) -> list[Path]:
        """Write findings.csv, and sheet.png if there is an odd film to show; return what was written."""
        written = [out / "findings.csv"]
        with (
            write_whole(written[0]) as temporary,
            open(temporary, "w", encoding="utf-8", errors="replace", newline="") as file,
        ):
            write_cells(file, [Row._fields, *self.rows])
        if tiles := self._tiles():
            written.append(out / "sheet.png")
            with write_whole(written[1]) as temporary:
                draw_tiles(tiles).save(temporary, format="PNG")
        return written

    def _tiles(self) -> list[Tile]:
        """Some films of every kind of finding; a copy stands behind the film that it is like."""
        by_kind: dict[str, list[Row]] = defaultdict(list)
        for row in self.rows:
            if row.path and row.kind != "unreadable":
                by_kind[row.kind].append(row)
        shown = []
        for kind, rows in by_kind.items():
            count = min(MOST_SHOWN, len(rows))
            for row in (rows[number * len(rows) // count] for number in range(count)):
                shown += [(f"{kind} of", row.like), (kind, row.path)] if row.like else [(kind, row.path)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)
            return [Tile(title, name, load_image(self.root / name)) for title, name in shown]


def check(
    source: Path,
    smallest: int = 200,
    largest: int = 5000,
    gray_mapping: GrayMapping = "window",
    processes: int | None = None,
) -> Checked:
    """Look once at every film and report of a folder or a manifest.

    Args:
        source: a folder of films, perhaps with text files beside them as `raddraft prepare folder` reads them; or a
            `studies.jsonl`.
        smallest, largest, gray_mapping, processes: as `encoder.survey.survey`.

    Raises:
        RadDraftError: there is no film in the folder, or no line of the manifest that can be used.
        FileNotFoundError: there is no such file or folder.
    """
    rows: list[Row] = []
    if source.is_dir():
        root, studies = source, _read_folder(source)
    else:
        root, (studies, rows) = source.parent, read_rows(source)
    owners: dict[Path, Study] = {}
    laterals = set()
    for study, own in zip(studies, skim(studies), strict=True):
        for image in own.images:
            owners.setdefault(image.path, study)
            laterals |= set() if image.frontal else {image.path}
    films = survey(list(owners), frozenset(laterals), smallest, largest, gray_mapping, processes)

    def name(path: Path) -> str:
        return Path(os.path.relpath(path, root.absolute())).as_posix()

    for film in films:
        rows += [Row(kind, name(film.path), owners[film.path].study_id, what) for kind, what in film.findings]
    for number, (first, bits) in sorted(duplicates(films).items()):
        one, other = films[number].path, films[first].path
        kind, what = ("near-duplicate", f"differs in {bits} of 256 bits from") if bits else ("duplicate", "shows")
        rows += _copy(kind, name(one), owners[one], what, owners[other], name(other))
    for study, own in zip(studies, skim(studies), strict=True):
        for path in (image.path for image in own.images):
            if owners[path] is not study:
                rows += _copy("duplicate", name(path), study, "is", owners[path], name(path))
    rows += check_rows(studies)
    return Checked(root, len(studies), len(films), rows)


def _copy(kind: str, path: str, study: Study, what: str, first: Study, like: str) -> list[Row]:
    """Findings about a film that is like one of another study: a leak, too, if that is in another split."""
    told = f"{what} the film of {_whose(study, first)}"
    kinds = (kind, "leaking film") if study.split != first.split else (kind,)
    return [Row(one, path, study.study_id, told, like) for one in kinds]


def _whose(study: Study, first: Study) -> str:
    """Which study another one is like, for the reader of a finding."""
    return f"study {first.study_id}" + (f", which is in split {first.split}" if study.split != first.split else "")


def _read_folder(folder: Path) -> list[Study]:
    studies = study_per_file(folder.absolute())
    if not studies:
        raise RadDraftError(f"{folder}: no film in this folder")
    for study in studies:
        study.split, study.sections = "test", report_beside(study)
        drop_nothing(study)
    return studies


def read_rows(path: Path) -> tuple[list[Study], list[Row]]:
    """Studies of a manifest, and a finding for each line that cannot be used."""
    broken: list[str] = []
    studies = read_studies(path, broken=broken)
    return studies, [Row("broken row", "", "", told) for told in broken]


def check_rows(studies: Sequence[Study]) -> Iterator[Row]:
    """Findings about reports and subjects, for which no film is looked at."""
    yield from _odd_reports(studies)
    yield from _leaks(studies)
    yield from _split_subjects(studies)


def report_of(study: Study) -> str:
    """Findings and impression; of a study without these sections, the others that are no part of a request."""
    texts = [study.sections.get(name, "") for name in REPORT]
    if not any(texts):
        texts = [text for name, text in study.sections.items() if name not in SECTIONS]
    text = " ".join(" ".join(texts).split())
    return text if any(letter.isalnum() for letter in text) else ""


def _odd_reports(studies: Sequence[Study]) -> Iterator[Row]:
    """Blank reports, if their source has others, and those that an earlier study has, in whatever case."""
    reports = [report_of(study).lower() for study in skim(studies)]
    written = {study.source for study, report in zip(studies, reports, strict=True) if report}
    first: dict[str, Study] = {}
    for study, report in zip(studies, reports, strict=True):
        if report and (earlier := first.setdefault(report, study)) is not study:
            yield Row("equal report", "", study.study_id, f"has the report of {_whose(study, earlier)}: {report[:80]}")
        elif not report and study.source in written:
            yield Row("blank report", "", study.study_id, "has no findings, impression or other report")


def _leaks(studies: Sequence[Study]) -> Iterator[Row]:
    """Headers of another section inside a section."""
    for study in skim(studies):
        for section, text in study.sections.items():
            if section.lower() not in SECTIONS:
                continue
            for header in find_headers(text):
                own = {section.lower(), *(("indication", "history") if section in ("indication", "history") else ())}
                named = set(REPORT) if header.section == BOTH else {header.section}
                if header.kind == "section" and named <= SECTIONS and not named & own:
                    words = " ".join(text[header.start : header.end].split())
                    yield Row("leaking section", "", study.study_id, f"{section} holds the header {words!r}")


def _split_subjects(studies: Sequence[Study]) -> Iterator[Row]:
    """Subjects whose studies are in several splits."""
    splits: dict[str, Counter[str]] = defaultdict(Counter)
    first: dict[str, str] = {}
    for study in studies:
        splits[study.subject_id][study.split] += 1
        first.setdefault(study.subject_id, study.study_id)
    for subject, counts in splits.items():
        if len(counts) > 1:
            where = ", ".join(f"{split} ({counts[split]})" for split in SPLITS if counts[split])
            yield Row("two splits", "", first[subject], f"subject {subject} has studies in {where}")
