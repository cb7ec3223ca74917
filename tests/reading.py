"""The page of `raddraft read` at a loopback port, with a model whose drafts are gibberish or given, for its tests."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from time import monotonic, sleep
from typing import Any

import uvicorn

from generator.api import Model
from generator.clinic.reading.decisions import Reads
from generator.clinic.reading.guard import HOST, TOKEN
from generator.clinic.reading.reading import Reading
from generator.clinic.reading.server import make_server
from generator.clinic.reading.worklist import Worklist
from generator.config import DecodeConfig


@dataclass
class Page:
    """A page that is being served."""

    reading: Reading
    port: int
    address: str
    server: uvicorn.Server

    @property
    def token(self) -> str:
        return self.address.partition("#")[2]

    def request(
        self, method: str, path: str, body: Any = None, headers: dict[str, str | None] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer; `headers` replaces what the page would send, None leaves it out."""
        host = f"{HOST}:{self.port}"
        sent: dict[str, str | None] = {"Host": host, TOKEN: self.token}
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        if method == "POST":
            sent |= {"Origin": f"http://{host}", "Content-Type": "application/json", "Content-Length": str(len(data))}
        sent |= headers or {}
        connection = http.client.HTTPConnection(HOST, self.port, timeout=600)
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        for name, value in sent.items():
            if value is not None:
                connection.putheader(name, value)
        connection.endheaders(data)
        answer = connection.getresponse()
        found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        connection.close()
        return found

    def ask(self, path: str, body: Any = None) -> Any:
        """The JSON of an answer with status 200."""
        status, _, content = self.request("GET" if body is None else "POST", path, body)
        assert status == 200, content
        return json.loads(content)

    def decide(self, number: int, text: str | None, reason: str = "", seconds: float = 1) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer to a decision on the study of a number and its draft."""
        body = {"text": text, "reason": reason, "seconds": seconds}
        body |= {"study_id": self.reading.worklist.studies[number].study_id}
        body |= {"draft": self.ask(f"/api/studies/{number}/draft")["draft"]["digest"]}
        status, _, content = self.request("POST", f"/api/studies/{number}/decision", body)
        return status, json.loads(content)

    def wait_for_draft(self, number: int, path: str = "") -> dict[str, Any]:
        """The draft of a study, once it is made; asked for by opening it, or at another path."""
        end = monotonic() + 600
        draft = self.ask(f"/api/studies/{number}{path}")["draft"]
        while draft is None:
            assert monotonic() < end, "no draft within ten minutes"
            sleep(0.02)
            draft = self.ask(f"/api/studies/{number}/draft")["draft"]
        return draft


@contextmanager
def serving(model: Model, worklist: Worklist, folder: Path, reader: str = "A", **options: Any) -> Iterator[Page]:
    """Serve a page whose reads.jsonl and results are in a folder."""
    reads = Reads(folder / "reads.jsonl", reader)
    reading = Reading(model, worklist, reads, folder / "results", DecodeConfig(max_new_tokens=12), **options)
    with socket.create_server((HOST, 0)) as listener:
        port = listener.getsockname()[1]
        server, address = make_server(reading, port)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Page(reading, port, address, server)
        finally:
            server.should_exit = True
            thread.join()
            reading.close()
