"""SHA-256 of files, remembered in a folder so that unchanged files are not read again.

    digests = digest_files(paths, folder)          # reads those that are not known yet

Who reads a file anyway digests it in the same pass, and adds it to the list at once:

    data, file = read_file(path)
    FileList(folder).add([file])

Several processes may add to one list.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from raddraft.files import digest_file, parse_value
from raddraft.images import ImageError, reading

SECONDS = 1.0
"""What an interruption can cost of a pass that only digests."""

State = tuple[int, int, int, int]
"""Size, times of modification and of status change, inode: the content cannot change without the third."""


@dataclass(frozen=True)
class File:
    """A file as it was when its content was digested."""

    path: Path
    state: State
    digest: str
    """SHA-256 of its content."""


class FileList:
    """The list `files.jsonl` of a folder. Both are made where they are not there."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = folder / "files.jsonl", FileLock(folder / "files.lock")

    def find(self, paths: Iterable[str | Path]) -> list[str | None]:
        """The digest of each file; None of one that is not listed, or has changed since."""
        names = [str(path) for path in paths]
        wanted, found = set(names), {}
        for number, line in enumerate(self._lines(), 1):
            row = parse_value(line, f"{self.path} line {number}", list, "remove the file: it is made again")
            name, *state, digest = row if len(row) > 2 else (None, None)
            if name in wanted and file_state(name) == tuple(state):
                found[name] = digest
        return [found.get(name) for name in names]

    def add(self, files: Sequence[File]) -> None:
        """Append files, in place of half a line that an interruption has left."""
        if not files:
            return
        lines = "".join(json.dumps([str(file.path), *file.state, file.digest]) + "\n" for file in files)
        with self.lock, open(self.path, "a+b") as record:
            _cut_half_line(record)
            record.write(lines.encode())

    def _lines(self) -> Iterable[bytes]:
        if not self.path.is_file():
            return
        with open(self.path, "rb") as record:
            yield from (line for line in record if line.endswith(b"\n"))


def digest_files(paths: Sequence[Path], folder: Path, workers: int = 2) -> list[str | None]:
    """The digest of each file; None of one that cannot be read. The folder keeps a list of them, see `FileList`."""
    from tqdm import tqdm

    known = FileList(folder)
    digests = dict(zip(paths, known.find(paths), strict=True))
    new = [path for path, digest in digests.items() if digest is None]
    fresh: list[File] = []
    written = time.monotonic()
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for file in tqdm(pool.map(_digest, new), "digests", len(new), disable=not new, unit="file"):
            if file is None:
                continue
            digests[file.path] = file.digest
            fresh.append(file)
            if time.monotonic() - written > SECONDS:
                known.add(fresh)
                fresh, written = [], time.monotonic()
    known.add(fresh)
    return [digests[path] for path in paths]


def _digest(path: Path) -> File | None:
    """A file with the digest of its content; None if it cannot be read, or changes meanwhile."""
    before, digest = file_state(path), digest_file(path)
    return File(path, before, digest) if digest and before and before == file_state(path) else None


def read_file(path: Path, digest: str | None = None) -> tuple[bytes, File]:
    """Content of a file, and the file with its digest, which is made unless it is given.

    Raises:
        ImageError: it cannot be read, or changes meanwhile.
    """
    before = file_state(path)
    with reading(path):
        data = path.read_bytes()
    if before is None or before != file_state(path):
        raise ImageError(f"{path}: changed while it was read; start again")
    return data, File(path, before, digest or hashlib.sha256(data).hexdigest())


def file_state(path: str | Path) -> State | None:
    """`File.state` of a file as it is now; None if it does not exist."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):  # the latter of a NUL in the name
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def whole_lines(path: Path) -> list[bytes]:
    """Lines of a file, without a last one that an interruption cut."""
    with open(path, "rb") as file:
        return [line for line in file if line.endswith(b"\n")]


def _cut_half_line(file: BinaryIO, block: int = 4096) -> None:
    """Cut off what follows the last line break."""
    end = at = file.seek(0, os.SEEK_END)
    while at > 0:
        start = max(0, at - block)
        file.seek(start)
        found = file.read(at - start).rfind(b"\n")
        if found >= 0 or start == 0:
            at = start + found + 1
            break
        at = start
    if at < end:
        file.truncate(at)
