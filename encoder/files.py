"""Files: run folders that a kill cannot spoil, logs that go on from a checkpoint, and what tells a file's content."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from encoder.studies import write_whole


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside `path` to write to; it takes the place of `path` only if nothing failed."""
    temporary = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)  # a folder that holds files cannot be replaced in one step
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cut_log(log: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the rows of a JSONL log that are not to be kept, and a last line that was cut by a kill."""
    if not log.is_file():
        return
    with open(log, encoding="utf-8") as file:
        lines = [line for line in file if line.endswith("\n") and keep(json.loads(line))]
    with write_whole(log) as temporary:
        temporary.write_text("".join(lines), encoding="utf-8")


def digest_file(path: Path) -> str | None:
    """SHA-256 of a file's content; None if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
