"""SHA-256 of image files, remembered in a folder so that unchanged files are not read again."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from raddraft.files import digest_file


@dataclass(frozen=True)
class File:
    """An image file as it was when its content was digested."""

    path: Path
    state: tuple[int, int, int, int] | None
    """Size, times of modification and of status change, inode: the content cannot change without the third."""
    digest: str
    """SHA-256 of its content."""


def digest_files(paths: Sequence[Path], folder: Path, workers: int = 2) -> dict[Path, File]:
    """The files that exist, with their digests. The folder keeps a list, so that unchanged files are not read again."""
    folder.mkdir(parents=True, exist_ok=True)
    record, lock = folder / "files.jsonl", FileLock(folder / "files.lock")
    with lock:
        record.touch()
        lines = whole_lines(record)
        os.truncate(record, sum(map(len, lines)))
    known = {(*key,): digest for *key, digest in map(json.loads, lines)}
    keys = {path: (str(path), *state) for path in dict.fromkeys(paths) if (state := file_state(path))}
    new = [path for path, key in keys.items() if key not in known]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        digests = zip(new, pool.map(digest_file, new), strict=True)
        # The state is compared again, since a file may have changed while it was read.
        fresh = {keys[path]: digest for path, digest in digests if digest and file_state(path) == keys[path][1:]}
    with lock, open(record, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps([*key, digest]) + "\n" for key, digest in fresh.items()))
    known |= fresh
    return {path: File(path, key[1:], known[key]) for path, key in keys.items() if key in known}


def file_state(path: Path) -> tuple[int, int, int, int] | None:
    """`File.state` of a file as it is now; None if it does not exist."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def whole_lines(path: Path) -> list[bytes]:
    """Lines of a file, without a last one that an interruption cut."""
    with open(path, "rb") as file:
        return [line for line in file if line.endswith(b"\n")]
