"""Annotate reports with a learned model, once: in batches of similar length, and kept on disk by model and text.

    cache = AnnotationCache(cache_folder() / "annotations.sqlite")
    for labels in annotate(CheXbert(checkpoint, tokenizer), reports, cache): ...

References are annotated once for all systems ever scored against them. The cache holds no report, but what a model
found in it (labels; the words of RadGraph's entities): protect it like the reports themselves.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from raddraft.errors import RadDraftError

PART = 500
"""Texts looked up in one query."""


class Annotator(Protocol):
    """A model that reads reports."""

    key: str
    """Names everything that changes an annotation: SHA-256 of model and tokenizer, versions, settings."""
    signature: str
    """The same, shorter, as part of a score's signature."""
    batch_size: int

    def annotate(self, texts: list[str]) -> list[Any]:
        """What JSON can hold, for each text of one batch."""


class AnnotationCache:
    """Annotations in one SQLite file, which several processes may use at once and which survives a crash.

    Args:
        path: the file, made readable by its owner only; None keeps annotations in memory.

    Raises:
        RadDraftError: (its methods, too) the file cannot be opened, read or written, or is not such a cache.
    """

    def __init__(self, path: Path | None = None):
        self._path = path
        with self._errors():
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
            self.connection = sqlite3.connect(path or ":memory:", timeout=60)
            with self.connection:
                self.connection.execute(
                    "CREATE TABLE IF NOT EXISTS annotations (digest BLOB PRIMARY KEY, annotation TEXT) WITHOUT ROWID"
                )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error, json.JSONDecodeError) as error:
            raise RadDraftError(
                f"The cache of annotations {self._path} cannot be used ({error}). Make room if the disk is full, "
                "delete it if it is damaged, or set RADDRAFT_CACHE to another folder"
            ) from None

    def read(self, key: str, texts: Iterable[str]) -> dict[str, Any]:
        """The annotations that are there: text -> annotation."""
        found = {}
        for part in _batches(list(dict.fromkeys(texts)), PART):
            text_of = {_digest(key, text): text for text in part}
            query = f"SELECT digest, annotation FROM annotations WHERE digest IN ({','.join('?' * len(part))})"
            with self._errors():
                for digest, annotation in self.connection.execute(query, list(text_of)):
                    found[text_of[digest]] = json.loads(annotation)
        return found

    def write(self, key: str, annotations: Mapping[str, Any]) -> None:
        """Add annotations of texts, all or none."""
        rows = [(_digest(key, text), json.dumps(annotation)) for text, annotation in annotations.items()]
        with self._errors(), self.connection:
            self.connection.executemany("INSERT OR REPLACE INTO annotations VALUES (?, ?)", rows)


def annotate(annotator: Annotator, texts: Sequence[str], cache: AnnotationCache | None = None) -> Iterator[Any]:
    """Yield the annotation of each text, in order; the model reads only texts that the cache lacks, each once.

    Memory stays flat: annotations wait in the cache.
    """
    from tqdm import tqdm

    cache = cache or AnnotationCache()
    texts = [text.encode("utf-8", "replace").decode() for text in texts]  # JSON can hold half a surrogate pair
    missing: set[str] = set()
    for part in _batches(texts, PART):
        missing |= set(part) - cache.read(annotator.key, part).keys()
    # Similar lengths share a batch, so that little is padding; longest first, so that memory fails at once or never.
    ordered = sorted(missing, key=lambda text: (-len(text), text))
    with tqdm(total=len(ordered), desc=annotator.signature.split()[0], unit="report", disable=None, leave=False) as bar:
        for batch in _batches(ordered, annotator.batch_size):
            cache.write(annotator.key, dict(zip(batch, annotator.annotate(batch), strict=True)))
            bar.update(len(batch))
    for part in _batches(texts, PART):
        found = cache.read(annotator.key, part)
        yield from (found[text] for text in part)


def _digest(key: str, text: str) -> bytes:
    return hashlib.sha256(f"{key}\0{text}".encode()).digest()


def _batches(items: Sequence[str], size: int) -> Iterator[list[str]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
