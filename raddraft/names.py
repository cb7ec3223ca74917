"""Names of studies, made of the names of their image files."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from raddraft.images import IMAGE_SUFFIXES


def image_stem(path: str) -> str:
    """The file's name without the suffix of an image; other dots, as in a UID, are part of it.

    >>> [image_stem(path) for path in ("a/x.png", "1.2.840.113", "y.DCM")]
    ['x', '1.2.840.113', 'y']
    """
    name = path.rpartition("/")[2]
    stem, _, suffix = name.rpartition(".")
    return stem if stem and f".{suffix.lower()}" in IMAGE_SUFFIXES else name


def name_studies(paths: Sequence[str]) -> list[str]:
    """A name for each relative path: the stem, or as much of the path as it takes to tell two files apart.

    >>> name_studies(["a/x.png", "b/x.png", "b/y.png"])
    ['a_x', 'b_x', 'y']
    """
    names = [image_stem(path) for path in paths]
    whole = [path.replace("/", "_") for path in paths]
    for stage in ([image_stem(path) for path in whole], whole):
        counts = Counter(names)
        names = [longer if counts[short] > 1 else short for short, longer in zip(names, stage, strict=True)]
    return names
