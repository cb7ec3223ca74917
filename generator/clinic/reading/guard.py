"""What stands between the page's server and everything else on this computer and in its browsers.

Every request must name the address that is served (so no other name that was made to lead here works), come from the
page itself, and, where it asks for data, show the token of the address that was printed when the server started. The
token comes in a header: a page from elsewhere cannot send it, and no cookie tells it to servers at other ports. Texts
and films go out with headers that let the browser load nothing from outside and keep nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from generator.web import LOOPBACK, Refused, read_body, tell_error

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HOST = LOOPBACK
TOKEN = "X-RadDraft-Token"
LARGEST_BODY = 1_000_000
"""Bytes of a request."""
POLICY = "; ".join(
    (
        *("default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self'", "connect-src 'self'"),
        *("base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"),
        "trusted-types 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}


class Guard:
    """An ASGI application around another one, which lets through what may pass, as the top of this module says.

    Args:
        app: answers the requests.
        port: that is served.
        token: by default a new one.
    """

    def __init__(self, app: Callable[..., Any], port: int, token: str | None = None) -> None:
        self.app, self.token = app, token or secrets.token_urlsafe(32)
        self._hosts = (f"{HOST}:{port}", f"localhost:{port}")

    @property
    def address(self) -> str:
        """Where the page is; what follows # never leaves the browser."""
        return f"http://{self._hosts[0]}/#{self.token}"

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer a request."""
        from starlette.requests import Request

        if scope["type"] != "http":  # nothing here speaks WebSocket
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        started = False

        async def send_guarded(message: MutableMapping[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.lower().encode(), value.encode()) for name, value in HEADERS.items()),
                ]
            await send(message)

        try:
            self._check(Request(scope))
            await self.app(scope, receive, send_guarded)
        except Exception as error:  # its text may name a patient, so the log does not get it
            answer = answer_error(error)
            if not started:
                await answer(scope, receive, send_guarded)

    def _check(self, request: Request) -> None:
        hosts, origins = (request.headers.getlist(name) for name in ("host", "origin"))
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise Refused(421, f"This server answers at {self._hosts[0]} only.")
        if request.method not in ("GET", "HEAD", "POST"):
            raise Refused(405, f"{request.method} is not answered.")
        if (origins or request.method == "POST") and origins != [f"http://{hosts[0].lower()}"]:
            raise Refused(403, "The request comes from another page.")
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise Refused(403, "The request comes from another page.")
        if request.url.path.startswith("/api/"):
            token = request.headers.get(TOKEN, "")
            if not secrets.compare_digest(token.encode(), self.token.encode()):
                raise Refused(403, "The token is missing or wrong; open the address that raddraft read printed.")


async def read_json(request: Request) -> bytes:
    """The body of a request of JSON.

    Raises:
        Refused: it is too long, or of another type.
    """
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise Refused(415, "Only JSON is taken.")
    return await read_body(request, LARGEST_BODY)


def answer_error(error: Exception) -> Response:
    """The answer to a request that failed: a sentence, as JSON."""
    from starlette.responses import JSONResponse

    status, text = tell_error(error)
    return JSONResponse({"error": text}, status)
