"""What converters do about odd rows and files: names of one subject, facts that contradict, cut files, and counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

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
