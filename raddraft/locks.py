"""One writer at a time: a run holds a lock on what it writes, and a second one says who holds it and stops."""

from __future__ import annotations

import errno
import inspect
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from raddraft.errors import RadDraftError
from raddraft.files import remove_left

P = ParamSpec("P")
T = TypeVar("T")
_held: set[Path] = set()


class HeldError(RadDraftError):
    """Another process writes to the output."""


@contextmanager
def hold(out: str | Path) -> Iterator[None]:
    """Keep other runs from writing to a file or a folder for as long as this lasts; clean up after killed ones.

    The lock is a file `.NAME.lock` beside it (in it, where nothing can be written beside it), and says who holds it. It
    goes with the process, however that ends. Within a process, and in those that it forks, a lock may be held again.

    Raises:
        HeldError: another process holds it.
    """
    out = Path(os.path.realpath(out))
    if out in _held or os.environ.get("RANK", "0") != "0":  # of processes launched together the first holds it for all
        yield
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        beside = os.access(out.parent, os.W_OK) or not out.is_dir()
        lock = out.with_name(f".{out.name}.lock") if beside else out / ".lock"
        descriptor = _acquire(lock, out)
    except OSError as error:
        error.filename = str(out)
        raise
    _held.add(out)
    try:
        remove_left(out)
        yield
    finally:
        _held.discard(out)
        lock.unlink(missing_ok=True)  # while it is held: who waits for it looks whether it is still there
        os.close(descriptor)


def holds_out(function: Callable[P, T]) -> Callable[P, T]:
    """A function that holds the lock on its argument `out`, a file or a folder, while it runs; with the errors of
    `hold`."""
    signature = inspect.signature(function)

    @wraps(function)
    def holding(*arguments: P.args, **options: P.kwargs) -> T:
        with hold(signature.bind(*arguments, **options).arguments["out"]):
            return function(*arguments, **options)

    return holding


def _acquire(lock: Path, out: Path) -> int:
    """The descriptor of a lock file that this process has locked."""
    import fcntl

    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # not flock, which a worker process would inherit, and keep after a kill of this one
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(descriptor, 500, 0).decode(errors="replace").strip()
            os.close(descriptor)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise HeldError(
                f"{out}: {holder or 'another process'} writes to it; wait for its end, or choose another output"
            ) from None
        if os.fstat(descriptor).st_nlink:
            break
        os.close(descriptor)  # its holder has just removed it
    action = " ".join([Path(sys.argv[0]).name, *sys.argv[1:2]])
    since = datetime.now().astimezone().isoformat(" ", "seconds")
    with suppress(OSError):  # the disk may be full
        os.pwrite(
            descriptor, f"process {os.getpid()} on {socket.gethostname()} ({action}, since {since})\n".encode(), 0
        )
    return descriptor
