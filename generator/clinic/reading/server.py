"""The page's server: answers the page, and nobody else, on this computer.

    serve(reading, port=0)

Only numbers of a request choose what is read; no text of it reaches the file system. See
`generator.clinic.reading.guard` for who may ask.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Awaitable, Callable
from importlib import resources
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import msgspec

from generator.clinic.reading.guard import HOST, Guard, answer_error, read_json
from generator.clinic.reading.reading import Decided, Exported, Labeled, Reading, Working, read_labels
from generator.web import Refused, bound, uvicorn_config
from raddraft.errors import RadDraftError
from raddraft.json_text import decode_json

if TYPE_CHECKING:
    import uvicorn
    from starlette.requests import Request
    from starlette.responses import Response

TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
MISSING = 'The page needs Starlette and uvicorn: pip install "raddraft[read]"'
MOST_AHEAD = 20
"""Studies that may be asked for ahead."""


def make_app(reading: Reading, port: int, token: str | None = None) -> Guard:
    """The ASGI application of the page.

    Args:
        reading: what is shown.
        port: that is served, which every request must name.
        token: by default a new one.

    Raises:
        RadDraftError: Starlette is not installed.
    """
    try:
        from starlette.applications import Starlette
        from starlette.routing import Route
    except ImportError:
        raise RadDraftError(MISSING) from None

    study = "/api/studies/{number}"
    routes = [
        Route("/api/worklist", _answer(lambda request: reading.overview())),
        Route(study, _answer(lambda request: reading.study(_number(request), _ahead(request)))),
        Route(f"{study}/draft", _answer(lambda request: {"draft": reading.draft(_number(request))})),
        Route(f"{study}/films/{{at}}", _answer(lambda request: _film(reading, request))),
        Route(f"{study}/films/{{at}}/attention", _answer(lambda one: reading.look(_number(one), _number(one, "at")))),
        Route(f"{study}/nearest", _answer(lambda request: reading.neighbors(_number(request)))),
        _posted(f"{study}/working", Working, lambda request, body: reading.keep(_number(request), body)),
        _posted(f"{study}/decision", Decided, lambda request, body: reading.decide(_number(request), body)),
        _posted("/api/labels", Labeled, lambda request, body: read_labels(body.text)),
        _posted("/api/export", Exported, lambda request, body: reading.export(body)),
        *(Route(path, _asset(content, kind)) for path, (content, kind) in _assets().items()),
    ]

    async def fail(request: Request, error: Exception) -> Response:
        return answer_error(error)

    handlers: dict[Any, Any] = {404: fail, 405: fail, RadDraftError: fail}
    return Guard(Starlette(routes=routes, exception_handlers=handlers), port, token)


def serve(reading: Reading, port: int = 0, say: Callable[[str], Any] = print) -> None:
    """Serve the page at 127.0.0.1 until it is stopped: by Ctrl-C, or what `generator.web.exit_on_signals` names.

    Args:
        reading: what is shown.
        port: 0 takes a free one.
        say: is given the address, with its token.

    Raises:
        RadDraftError: Starlette or uvicorn is not installed, or the port is taken.
    """
    with bound(HOST, port) as listener:
        listener.listen()  # who opens the address at once waits, and is not refused
        server, address = make_server(reading, listener.getsockname()[1])
        say(address)
        server.run(sockets=[listener])


def make_server(reading: Reading, port: int) -> tuple[uvicorn.Server, str]:
    """The server of a page at a port, whose `run` takes the listening socket; and the page's address.

    Raises:
        RadDraftError: Starlette or uvicorn is not installed.
    """
    try:
        import uvicorn
    except ImportError:
        raise RadDraftError(MISSING) from None

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            reading.drafting.stop()  # else it waits for all that was asked of the model, such as a long export
            await super().shutdown(sockets)

    app = make_app(reading, port)
    return Server(uvicorn_config(app, grace=3)), app.address


def _answer(function: Callable[[Request], Any]) -> Callable[[Request], Awaitable[Response]]:
    """An endpoint that answers with JSON, or with the response that a function gives."""
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import Response

    async def answer(request: Request) -> Response:
        value = await run_in_threadpool(function, request)
        # json, since the libraries that are faster refuse half a surrogate pair, which a report may hold
        return value if isinstance(value, Response) else Response(json.dumps(value), media_type="application/json")

    return answer


def _posted(path: str, kind: type, function: Callable[[Request, Any], Any]) -> Any:
    """A route that takes JSON of one kind."""
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        body = await read_json(request)
        try:
            # msgspec's own reader refuses half a surrogate pair, which a draft may hold
            value: Any = msgspec.convert(decode_json(body), kind)
        except ValueError:  # its text may quote the request
            raise Refused(422, f"The request is no {kind.__name__.lower()}.") from None
        return await _answer(lambda request: function(request, value))(request)

    return Route(path, answer, methods=["POST"])


def _number(request: Request, name: str = "number") -> int:
    word = request.path_params[name]
    if not _is_number(word):
        raise Refused(404, "There is nothing of this number.")
    return int(word)


def _ahead(request: Request) -> list[int]:
    """Numbers of the studies that come next, as the page has them in order."""
    words = request.query_params.get("next", "").split(",")[:MOST_AHEAD]
    return [int(word) for word in words if _is_number(word)]


def _is_number(word: str) -> bool:
    return word.isascii() and word.isdecimal() and len(word) < 10


def _film(reading: Reading, request: Request) -> Response:
    """The pixels of a film; what is to know of them in a header."""
    from starlette.responses import Response

    film = reading.film(_number(request), _number(request, "at"))
    about = {"width": film.width, "height": film.height, "window": film.window, "warnings": film.warnings}
    return Response(film.pixels, media_type="application/octet-stream", headers={"X-Film": json.dumps(about)})


def _assets() -> dict[str, tuple[bytes, str]]:
    """Path of a request -> content and type of a file of the page, all read at the start."""
    files = {file.name: file.read_bytes() for file in (resources.files("generator.clinic.reading") / "page").iterdir()}
    known = {name: TYPES[suffix] for name in files if (suffix := PurePath(name).suffix) in TYPES}
    return {"/" if name == "index.html" else f"/{name}": (files[name], kind) for name, kind in known.items()}


def _asset(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    from starlette.responses import Response

    async def answer(request: Request) -> Response:
        return Response(content, media_type=kind)

    return answer
