"""A function in a process of its own: a decoder that is slow, or that broken bytes crash, ends nothing else."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from raddraft.errors import RadDraftError

T = TypeVar("T")
LONGEST = 120
"""Seconds after which a call is given up."""


def end_with_parent() -> None:
    """In a worker process, as its initializer: end it when the process that started it is gone, however that ended."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        while parent and os.getppid() == parent.pid:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class EndedError(RadDraftError):
    """The process ended, or did not answer in time; the next call starts another."""


class Isolated(Generic[T]):
    """Calls a function in another process, one call at a time.

    Args:
        function: of a module; its arguments and what it gives can be pickled.
        prepare: a module to import before the first call.
    """

    def __init__(self, function: Callable[..., T], prepare: str = "pydicom") -> None:
        self._function, self._prepare = function, prepare
        self._process: multiprocessing.process.BaseProcess | None = None

    def start(self) -> None:
        """Start the process, unless it runs; a call does so too, and then waits for it."""
        if self._process is None:
            context = multiprocessing.get_context("spawn")
            self._connection, theirs = context.Pipe()
            arguments = (theirs, self._function, self._prepare)
            self._process = context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
            theirs.close()

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._connection.close()
            self._process.terminate()
            self._process.join()
            self._process = None

    def __call__(self, *arguments: Any) -> T:
        """What the function gives.

        Raises:
            EndedError: the process ended, or took too long.
            RadDraftError: as the function.
        """
        self.start()
        try:
            self._connection.send(arguments)
            if not self._connection.poll(LONGEST):
                raise TimeoutError
            answer = self._connection.recv()
        except (EOFError, OSError):
            self.close()
            raise EndedError(f"{self._function.__name__} ended, or took more than {LONGEST} s") from None
        if isinstance(answer, RadDraftError):
            raise answer
        return answer


def _serve(connection: Connection, function: Callable[..., Any], prepare: str) -> None:
    """Answer calls, with errors too, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    import_module(prepare)
    with suppress(EOFError, OSError):
        while True:
            arguments = connection.recv()
            try:
                connection.send(function(*arguments))
            except RadDraftError as error:
                connection.send(error)
