"""What converters do about odd rows and files: names of one subject, facts that contradict, cut files, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from raddraft.tables import is_nothing

REPEATED = "Rows that repeat an image, left out"
OTHER_LABELS = "Rows whose labels differ from the first of their study, which count"
OTHER_TEXT = "Rows whose text differs from the first text of their study, which counts"
OTHER_PATIENT = "Rows whose sex or age differs from the first of their study, which counts"
SEX = "Films of a sex that is neither M nor F"
AGE = "Films whose age cannot be read"
MONTHS = "Ages in months, weeks or days, turned into years"
OLD = "Ages of 101 to 120, kept"
"""What is counted of odd rows, by `generator.corpora.common` where converters share the rule."""
TWO_SUBJECTS = "two_subjects"
"""Key of a study that its table gives to two subjects, until `Conversion` leaves it out."""
_PNG_END = b"IEND\xaeB`\x82"
"""Type and check sum of a PNG's last chunk, which is empty."""


def join_subjects(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Name -> the earliest of the names that are of one subject with it, directly or through others.

    Args:
        pairs: two names of one subject each; a name alone is paired with itself.

    >>> join_subjects([("a", "a"), ("b", "b"), ("c", "c"), ("b", "c")])
    {'a': 'a', 'b': 'b', 'c': 'b'}
    """
    parent: dict[str, str] = {}
    order: dict[str, int] = {}

    def find(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for pair in pairs:
        for name in pair:
            order.setdefault(name, len(order))
        older, newer = sorted(map(find, pair), key=order.__getitem__)
        parent[newer] = older
    return {name: find(name) for name in order}


def settle(told: Iterable[tuple[str, Any]], what: str, counts: Counter[str]) -> dict[str, Any]:
    """Subject -> what is told of it, without the subjects of whom two different things are."""
    known: dict[str, Any] = {}
    contrary = set()
    for subject, value in told:
        if value is not None and known.setdefault(subject, value) != value:
            contrary.add(subject)
    counts[f"Subjects with two {what}, which are left out"] += len(contrary)
    return {subject: value for subject, value in known.items() if subject not in contrary}


def gather_runs(rows: Iterable[tuple[str, str]], counts: Counter[str]) -> dict[str, list[str]]:
    """Image -> its run lengths, of pairs of an image and a cell: none where all its cells are -1 or blank.

    >>> gather_runs([("a", " -1"), ("b", "1 2"), ("b", "9 1"), ("b", "1 2")], Counter())
    {'a': [], 'b': ['1 2', '9 1']}
    """
    found: dict[str, dict[str, None]] = {}
    denied = set()
    for image, cell in rows:
        runs, code = found.setdefault(image, {}), cell.strip()
        if code == "-1" or is_nothing(code):
            denied.add(image)
            counts["Blank cells in place of run lengths, taken for -1"] += code != "-1"
        else:
            counts["Rows that repeat a mask of their image, left out"] += code in runs
            runs[code] = None
    counts["Images with a mask and a row of -1, of which the mask counts"] += sum(bool(found[name]) for name in denied)
    return {image: list(runs) for image, runs in found.items()}


def tell_counts(counts: Counter[str]) -> list[str]:
    """A note for each kind of odd row that was met: what it is, and how many there are."""
    return [f"{what}: {count:,}" for what, count in counts.items() if count]


def is_whole(path: Path) -> bool:
    """Whether a PNG file has its signature and its end; True of files with another suffix.

    A file that was cut, or whose rest is zeros, has no end. Pixels are not decoded.
    """
    if path.suffix.lower() != ".png":
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            size = file.seek(0, 2)
            file.seek(max(0, size - 1024))  # some writers add bytes after the end
            return head == b"\x89PNG\r\n\x1a\n" and _PNG_END in file.read()
    except OSError:
        return False
