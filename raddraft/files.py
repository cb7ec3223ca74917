"""Files and folders that an interruption cannot leave half-written, JSON Lines with line numbers, content digests."""

from __future__ import annotations

import ctypes
import errno
import glob
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from raddraft.errors import RadDraftError
from raddraft.json_text import TwiceError, decode_json, is_whole

T = TypeVar("T")
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The disk, or what a user may have of it, is full."""
LEFT = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.(?P<kind>tmp|old)")
"""What a killed process leaves: what it was writing (tmp), and a folder that it was replacing (old)."""


@contextmanager
def write_whole(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it is renamed to `path` only if nothing failed.

    Args:
        path: the file; if it is a link, what it links to.
        sync: have it on the disk before it is renamed, so that a power cut leaves the old or the new one; not worth
            its milliseconds for many files that the next run checks.

    Raises:
        OSError: names `path`, also where a library that wrote says it in its own way that the disk is full.
    """
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path, "tmp")
    try:
        with _naming(path, temporary):
            yield temporary
            _open_to_readers(temporary, path.name)
            if sync:
                _sync(temporary)
            os.replace(temporary, path)
            if sync:
                _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` to write to; it replaces `path` only if nothing failed. Raises as
    `write_whole`."""
    path = Path(os.path.realpath(path))
    temporary = _beside(path, "tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        with _naming(path, temporary):
            yield temporary
            for place, _, names in os.walk(temporary):
                for name in names:
                    _open_to_readers(Path(place, name), name)
                    _sync(Path(place, name))
                _sync(Path(place))
            _put(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _put(new: Path, path: Path) -> None:
    """Let a folder take the place of another, which is `new` afterwards, or gone; a kill loses neither."""
    if not path.is_dir():
        os.replace(new, path)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    exchange = getattr(libc, "renameat2", None)  # of Linux; 2 is RENAME_EXCHANGE, and -100 AT_FDCWD
    if exchange is not None and exchange(-100, os.fsencode(new), -100, os.fsencode(path), 2) == 0:
        return
    old = _beside(path, "old")
    os.rename(path, old)  # a kill behind this is what `remove_left` mends
    os.rename(new, path)
    shutil.rmtree(old)


def remove_left(path: Path) -> None:
    """Remove what killed processes have left of `path` and below it: what they wrote, or what they were replacing.

    A folder that was being replaced, and whose new one is not in its place, is put back.
    """
    beside = path.parent.glob(f".{glob.escape(path.name)}.*") if path.parent.is_dir() else ()
    below = (Path(place, name) for place, folders, files in os.walk(path) for name in [*folders, *files])
    for left in [*beside, *below]:
        found = LEFT.fullmatch(left.name)
        if not found or _is_alive(int(found["pid"])):
            continue
        if found["kind"] == "old" and not (whole := left.with_name(found["name"])).exists():
            os.rename(left, whole)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _beside(path: Path, kind: str) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{kind}")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def _sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_to_readers(path: Path, name: str) -> None:
    """Give weights the mode of any other new file; safetensors makes its files readable by their owner only."""
    if name.endswith(".safetensors"):
        umask = os.umask(0)
        os.umask(umask)
        path.chmod(0o666 & ~umask)


@contextmanager
def _naming(path: Path, temporary: Path) -> Iterator[None]:
    """Errors name `path`; what libraries raise where the disk is full becomes an OSError that says so."""
    try:
        yield
    except RadDraftError:
        raise
    except Exception as error:
        at: BaseException | None = error
        while at is not None:
            stated = re.search(r"\bos error (\d+)\b", str(at))
            number = at.errno if isinstance(at, OSError) else int(stated[1]) if stated else None
            if number in DISK:
                raise OSError(number, os.strerror(number), str(path)) from error
            at = at.__cause__ or at.__context__
        if isinstance(error, OSError) and error.filename == str(temporary):
            error.filename = str(path)
        raise


def write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all; lone surrogates (undecodable file names) become question marks."""
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="replace")


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as indented JSON, whole or not at all; paths and other objects as their strings."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write one JSON object a line, whole or not at all, and return the number of lines."""
    count = 0
    with write_whole(path) as temporary, open(temporary, "w", encoding="utf-8", errors="replace") as file:
        for row in rows:
            count += 1
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    return count


def check_replaced(path: str | Path, has: Sequence[str], lacks: Sequence[str] = ()) -> None:
    """Check that a file that is to be replaced holds what an earlier run of the same kind would have written, by the
    keys of its first line; an empty one may be replaced.

    Raises:
        RadDraftError: the file holds something else, which would be lost.
    """
    path = Path(path)
    line = next((line for _, line in read_lines(path)), b"") if path.is_file() else b""
    try:
        row = decode_json(line) if line else None
    except (json.JSONDecodeError, UnicodeDecodeError):
        row = {}
    if row is not None and not (isinstance(row, dict) and row.keys() >= {*has} and not row.keys() & {*lacks}):
        raise RadDraftError(
            f"{path} is there, and its first line is not as this command writes it, so it is not replaced; choose "
            "another name, or remove it"
        )


def append_jsonl(path: str | Path, row: dict[str, Any], sync: bool = False) -> None:
    """Append one line to a JSON Lines file, which an interruption can cut but not corrupt.

    Args:
        path: the file.
        row: the line.
        sync: return only when it is on the disk.
    """
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
        if sync:
            file.flush()
            os.fsync(file.fileno())


def read_jsonl(
    path: str | Path,
    required: Sequence[str] = (),
    unique: str | None = None,
    error: type[RadDraftError] = RadDraftError,
    appended: bool = False,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a JSON Lines file with their location ("x.jsonl line 7"); blank lines are skipped, NaN is read as null.

    Args:
        path: the file, UTF-8.
        required: keys whose values must be strings.
        unique: a required key that no two lines may share.
        error: what to raise.
        appended: the file is appended to, so a last line that an interruption cut is passed over.

    Raises:
        RadDraftError: broken JSON, not UTF-8, not an object, a key twice in an object, a required key missing or not a
            string, a duplicate.
    """
    path = Path(path)
    first_line: dict[str, int] = {}
    for number, line in read_lines(path):
        where = f"{path.name} line {number}"
        if appended and not line.endswith(b"\n") and _is_broken(line):
            return
        row = parse_line(line, where, required, error)
        if unique and (first := first_line.setdefault(row[unique], number)) != number:
            raise error(f"{where}: duplicate {unique} {row[unique]!r}, first on line {first}")
        yield where, row


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines of a file that are not blank, with their numbers from 1."""
    with open(path, "rb") as file:
        yield from ((number, line) for number, line in enumerate(file, 1) if not line.isspace())


def parse_line(
    line: bytes, where: str, required: Sequence[str] = (), error: type[RadDraftError] = RadDraftError
) -> dict[str, Any]:
    """A line of a JSON Lines file, as `read_jsonl` reads it and with its errors, which begin with `where`."""
    try:
        row = decode_json(line)
    except TwiceError as cause:
        raise error(f"{where}: {cause.msg}") from None
    except json.JSONDecodeError as cause:
        raise error(f"{where}: not valid JSON: {cause.msg} at character {cause.pos + 1}") from None
    except UnicodeDecodeError as cause:
        raise error(f"{where}: not UTF-8: {cause}") from None
    if not isinstance(row, dict):
        raise error(f"{where}: expected an object, got {type(row).__name__}")
    for key in required:
        if key not in row:
            raise error(f"{where}: key {key!r} is missing")
        if not isinstance(row.get(key), str):
            raise error(f"{where}: {key} must be a string, got {row.get(key)!r}")
    return row


def parse_value(line: bytes, where: str, kind: type[T], way_out: str) -> T:
    """A line of a list that this project wrote: a value of a type. Raises RadDraftError as `read_object`."""
    try:
        value = decode_json(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        value = None
    if not isinstance(value, kind):
        raise RadDraftError(f"{where} is damaged: {line[:60]!r}; {way_out}")
    return value


def cut_log(log: Path, keep: Callable[[dict[str, Any]], bool]) -> None:
    """Drop the rows of a JSON Lines log that are not to be kept, and a last line that an interruption cut.

    Raises:
        RadDraftError: another line is damaged; names it.
    """
    if not log.is_file():
        return
    with write_whole(log) as temporary, open(temporary, "wb") as file:
        for number, line in read_lines(log):
            if not line.endswith(b"\n"):
                continue
            row = parse_line(line, f"{log} line {number}")
            try:
                kept = keep(row)
            except (KeyError, TypeError) as error:
                raise RadDraftError(f"{log} line {number} is damaged ({error!r}); remove the line") from None
            if kept:
                file.write(line)


def cache_folder() -> Path:
    """$RADDRAFT_CACHE, by default `raddraft` in $XDG_CACHE_HOME or ~/.cache. It may not exist yet."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "raddraft"
    return Path(os.environ.get("RADDRAFT_CACHE") or default).expanduser()


def weights_folder() -> Path:
    """$RADDRAFT_WEIGHTS, by default `weights` in `cache_folder()`. It may not exist yet."""
    return Path(os.environ.get("RADDRAFT_WEIGHTS") or cache_folder() / "weights").expanduser()


def digest_file(path: Path) -> str | None:
    """SHA-256 (hex) of a file's content; None if it cannot be read, or is a pipe or a device."""
    if not path.is_file():
        return None
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None


def read_json(path: Path, error: type[RadDraftError] = RadDraftError) -> Any:
    """What a JSON file, gzipped or not, holds; NaN is read as null.

    Raises:
        RadDraftError: (or `error`) the file breaks off, is not JSON, holds nothing, or has a key twice in an object.
    """
    content = path.read_bytes()
    try:
        value = decode_json(gzip.decompress(content) if path.suffix.lower() == ".gz" else content)
    except UnicodeDecodeError as cause:
        raise error(f"{path}: not UTF-8: {cause.reason} at byte {cause.start + 1}") from None
    except TwiceError as cause:
        raise error(f"{path}: {cause.msg}") from None
    except json.JSONDecodeError as cause:
        raise error(f"{path}: not valid JSON: {cause}") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, RecursionError) as cause:
        raise error(f"{path}: {cause}") from None
    if not value:
        raise error(f"{path}: it holds nothing, {value!r}")
    return value


def read_object(path: Path, way_out: str, required: Sequence[str] = ()) -> dict[str, Any]:
    """The object in a JSON file that this project wrote.

    Args:
        path: the file.
        way_out: what to do if it is damaged, for the message.
        required: its keys.

    Raises:
        RadDraftError: it is damaged.
    """
    try:
        value = read_json(path)
    except RadDraftError as error:
        raise RadDraftError(f"{error}; {way_out}") from None
    if not isinstance(value, dict):
        raise RadDraftError(f"{path}: expected an object, got {type(value).__name__}; {way_out}")
    if not is_whole(value):
        raise RadDraftError(f"{path}: wrong check sum; {way_out}")
    for key in required:
        if key not in value:
            raise RadDraftError(f"{path}: key {key!r} is missing; {way_out}")
    return value


def digest_json(*parts: Any) -> str:
    """SHA-256 (hex) of values that JSON can hold; of others their strings."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def _is_broken(line: bytes) -> bool:
    try:
        decode_json(line)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return True
    return False
