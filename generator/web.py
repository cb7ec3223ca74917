"""What the servers of this project, `raddraft read` and `raddraft serve`, have in common: they are quiet, and end well.

No log is written: it would hold what requests and errors say, which may name a patient.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request

LOOPBACK = "127.0.0.1"


class Refused(RadDraftError):
    """A request is not answered.

    Args:
        status: of HTTP.
        reason: a sentence.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


async def read_body(request: Request, most: int) -> bytes:
    """The body of a request.

    Raises:
        Refused: it has more than `most` bytes.
    """
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > most:
            raise Refused(413, f"The request has more than {most:,} bytes.")
    return bytes(body)


def tell_error(error: Exception, status: int = 422) -> tuple[int, str]:
    """Status and sentence of the answer to a request that failed.

    Args:
        error: why. RADDRAFT_TRACEBACK=1 in the environment shows where it was raised.
        status: of a RadDraftError that states none.
    """
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    if os.environ.get("RADDRAFT_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, Refused):
        return error.status, str(error)
    if isinstance(error, ClientDisconnect):
        return 499, "The client has gone."
    if isinstance(error, HTTPException):
        return error.status_code, error.detail
    if isinstance(error, RadDraftError):
        return status, str(error)
    return 500, f"An unexpected error, {type(error).__name__}; RADDRAFT_TRACEBACK=1 shows where."


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket at an address of this computer, which does not listen yet; port 0 takes a free one.

    Raises:
        RadDraftError: the address cannot be used.
    """
    if not 0 <= port <= 65535:
        raise RadDraftError(f"--port {port}: ports are 0 to 65535")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise RadDraftError(f"Port {port} of {host} cannot be used: {error.strerror}") from None
        yield listener


def uvicorn_config(app: Any, grace: int) -> uvicorn.Config:
    """The settings of a server that writes no log.

    Args:
        app: an ASGI application.
        grace: seconds that requests have to end once the server is stopped.
    """
    import uvicorn

    return uvicorn.Config(
        app,
        ws="none",
        lifespan="off",
        log_level="critical",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=grace,
    )


def exit_on_signals() -> None:
    """Let SIGTERM raise SystemExit, so that what was begun is cleaned up, and SIGHUP (the terminal was closed) too.

    SIGHUP becomes SIGTERM, which uvicorn knows; where it is ignored, as under nohup, it stays ignored.
    """
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:
        signal.signal(hangup, lambda number, frame: signal.raise_signal(signal.SIGTERM))
