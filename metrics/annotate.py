"""Annotate reports with a learned model, once: in batches of like length, and kept on disk by model and text.

    cache = AnnotationCache(cache_folder() / "annotations.sqlite")
    for labels in annotate(CheXbert(checkpoint, tokenizer), reports, cache): ...

References are annotated once for all systems that are ever scored against them. The cache holds no report, but what
a model read out of it (labels; the words of RadGraph's entities): treat it like the reports themselves.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar

from raddraft.errors import RadDraftError

T = TypeVar("T")


class Annotator(Protocol):
    """A model that reads reports."""

    key: str
    """Names everything that changes an annotation: the model's sha256, its tokenizer's, versions, settings."""
    signature: str
    """The same for people, as part of a score's signature."""
    batch_size: int

    def annotate(self, texts: list[str]) -> list[Any]:
        """What JSON can hold, for each text of one batch."""


class AnnotationCache:
    """Annotations in one SQLite file, which several processes may use at once and which survives a kill.

    Args:
        path: the file, made readable to its owner only; None keeps annotations in memory.

    Raises:
        ValueError: the file cannot be opened or is no such cache; named, with what to do.
    """

    def __init__(self, path: Path | None = None):
        self.path = path
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
            self.connection = sqlite3.connect(path or ":memory:", timeout=60)
            with self.connection:
                self.connection.execute(
                    "CREATE TABLE IF NOT EXISTS annotations (digest BLOB PRIMARY KEY, annotation TEXT) WITHOUT ROWID"
                )
        except (OSError, sqlite3.Error) as error:
            raise RadDraftError(
                f"The cache of annotations {path} cannot be used ({error}). Delete it if it is damaged, or set "
                "RADDRAFT_CACHE to another folder"
            ) from None

    def read(self, key: str, texts: Iterable[str]) -> dict[str, Any]:
        """The annotations that are there: text -> annotation."""
        found = {}
        for part in _batches(dict.fromkeys(texts), 500):
            text_of = {_digest(key, text): text for text in part}
            marks = ",".join("?" * len(text_of))
            query = f"SELECT digest, annotation FROM annotations WHERE digest IN ({marks})"
            for digest, annotation in self.connection.execute(query, list(text_of)):
                found[text_of[digest]] = json.loads(annotation)
        return found

    def write(self, key: str, annotations: Mapping[str, Any]) -> None:
        """Add annotations of texts, all or none."""
        rows = [(_digest(key, text), json.dumps(annotation)) for text, annotation in annotations.items()]
        with self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO annotations VALUES (?, ?)", rows)


def annotate(annotator: Annotator, texts: Sequence[str], cache: AnnotationCache | None = None) -> Iterator[Any]:
    """Yield the annotation of each text, in order; only texts that the cache lacks are read by the model.

    A text is read once however often it stands in `texts`. Memory stays flat: annotations wait in the cache.
    """
    cache = cache or AnnotationCache()
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # JSON can hold half a surrogate pair
    _fill(annotator, texts, cache)
    for part in _batches(texts, 1000):
        found = cache.read(annotator.key, part)
        yield from (found[text] for text in part)


def alike(lengths: list[int], waste: float = 0.1) -> list[list[int]]:
    """Indices in groups of like lengths, so that less than `waste` of the length in a padded group is padding."""
    groups: list[list[int]] = []
    filled = 0
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        filled += lengths[i]
        if groups and filled > (1 - waste) * lengths[i] * (len(groups[-1]) + 1):
            groups[-1].append(i)
        else:
            groups.append([i])
            filled = lengths[i]
    return groups


def _fill(annotator: Annotator, texts: Sequence[str], cache: AnnotationCache) -> None:
    from tqdm import tqdm

    missing: set[str] = set()
    for part in _batches(texts, 1000):
        missing |= set(part) - cache.read(annotator.key, part).keys()
    # Like lengths share a batch, so that little is padding; longest first, so that memory fails at once or never.
    ordered = sorted(missing, key=lambda text: (-len(text), text))
    with tqdm(total=len(ordered), desc=annotator.signature.split()[0], unit="report", disable=None) as bar:
        for batch in _batches(ordered, annotator.batch_size):
            cache.write(annotator.key, dict(zip(batch, annotator.annotate(batch), strict=True)))
            bar.update(len(batch))


def _digest(key: str, text: str) -> bytes:
    return hashlib.sha256(f"{key}\0{text}".encode()).digest()


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch
