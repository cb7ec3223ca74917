"""Servers that answer what a test tells them to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

CARDS = {"data": [{"id": "theirs", "owned_by": "vllm"}]}
Answer = tuple[int, Any] | tuple[int, Any, dict[str, str]]
"""Status, JSON or bytes, headers."""


@contextmanager
def standing_in(
    answer: Callable[[dict[str, Any]], Answer | None], cards: Any = CARDS
) -> Iterator[tuple[str, list[Any]]]:
    """The address of a server of OpenAI's form, and the bodies of its requests.

    It hangs up where the answer to a body is None.
    """
    asked: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.reply(cards if isinstance(cards, tuple) else (200, cards))

        def do_POST(self) -> None:
            asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.reply(answer(asked[-1]))

        def reply(self, given: Answer | None) -> None:
            if given is None:
                return
            status, body, headers = (*given, {})[:3]
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *given: Any) -> None:
            pass

    with listening(Handler) as url:
        yield f"{url}/v1", asked


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The root of a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
