"""Drafts that a server decodes, which has loaded the same model folder: vLLM, or another one of OpenAI's kind.

    vllm serve runs/first/model --model-impl transformers --dtype float32
    raddraft generate --model runs/first/model --engine http://127.0.0.1:8000/v1 --studies … --out …

This project reads the files, maps their gray values and writes the prompts; the server gets 8-bit pictures and chat
messages, and no other field of a study. It is a client since vLLM pins versions of torch and transformers that are not
those of this project; how many GPUs or machines the server spans is the server's own business.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from threading import Event, Lock, Timer
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec

from generator.config import DecodeConfig
from generator.data import Example
from raddraft.errors import RadDraftError
from raddraft.text import printable

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
TOKEN = "RADDRAFT_ENGINE_TOKEN"
"""The environment variable with the token that the server wants."""
CONNECT_SECONDS = 10
"""Within which a connection has to be made."""
SECONDS = 600
"""Within which an answer has to come, from the request on: its time in the server's queue, and the longest draft."""
BUSY = (429, 502, 503)
"""Statuses after which a request is sent again, as it is after a connection that was reset."""
PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each time that it is sent again."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")
SEEDS = 2**32
"""Seeds that servers know."""


class EngineError(RadDraftError):
    """The server cannot be reached, refuses a request, answers what cannot be used, or has another model."""


class PromptError(EngineError):
    """The server reads another prompt than this project's."""


class _Card(msgspec.Struct):
    """A model that a server has."""

    id: str
    owned_by: str | None = None


class _Cards(msgspec.Struct):
    """The answer to a question for models."""

    data: list[_Card]


class _Message(msgspec.Struct):
    """A draft."""

    content: str


class _Choice(msgspec.Struct):
    """One of the drafts of an answer."""

    index: int
    message: _Message
    finish_reason: Literal["stop", "length"]
    token_ids: list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]] | None = None


class _Usage(msgspec.Struct):
    """What an answer took."""

    prompt_tokens: int


class _Completion(msgspec.Struct):
    """The answer to a request for drafts."""

    choices: list[_Choice]
    prompt_token_ids: list[int] | None = None
    usage: _Usage | None = None


@dataclass
class Reply:
    """The drafts of a study."""

    texts: list[str]
    tokens: list[list[int]] | None
    """Token ids of each draft, with its end token if it has one; None if the server tells none."""
    cut: list[bool]
    """Whether each draft ended at the limit of tokens."""


class Engine:
    """A server that decodes.

    Args:
        url: where its API begins, http://HOST:PORT/v1.
        token: that it wants, if any; by default that of the environment, RADDRAFT_ENGINE_TOKEN.
        model: what it calls the model; by default the only one that it serves.

    Attributes:
        model: the name of the model that it serves.
        owner: who made the server, as it says: vllm, raddraft …

    Raises:
        EngineError: it cannot be reached, or does not serve exactly one model.
    """

    def __init__(self, url: str, token: str | None = None, model: str | None = None) -> None:
        host = _check_address(url)
        self.url = url.rstrip("/")
        self._token = (os.environ.get(TOKEN, "") if token is None else token).strip()
        if not (self._token.isascii() and self._token.isprintable()):
            raise EngineError(f"{TOKEN} holds characters that no token has: control characters, or some beyond ASCII")
        self._open: set[socket.socket] = set()
        self._lock, self._closed = Lock(), Event()
        if url.startswith("http:") and host not in LOOPBACK:
            warnings.warn(f"pictures and prompts go unencrypted to {host}", stacklevel=2)
        served = self._call("/models", _Cards).data
        if model is None and len(served) != 1:
            names = ", ".join(one.id for one in served) or "none"
            raise EngineError(f"{self.url} serves {len(served)} models ({names}); start it with the one model to use")
        self.model = model or served[0].id
        self.owner = next((one.owned_by for one in served), None) or "a server"

    def __str__(self) -> str:
        """Who decodes, as predictions say it."""
        return f"{self.owner} as {self.model}"

    def write(
        self,
        messages: Sequence[Mapping[str, Any]],
        images: Sequence[Image.Image],
        example: Example,
        config: DecodeConfig,
        seed: int | None = None,
    ) -> Reply:
        """Drafts of one study.

        Args:
            messages: as `PromptConfig.messages` gives them, with a placeholder for each image.
            images: 8-bit pictures, in the order of the placeholders.
            example: the same prompt in tokens, which the server must read.
            config: how to decode.
            seed: of sampling.

        Raises:
            PromptError: the server reads another prompt.
            EngineError: it does not answer, refuses, or its answer cannot be used.
        """
        pictures = map(_image_part, images)
        content = [
            {**message, "content": [next(pictures) if part["type"] == "image" else part for part in message["content"]]}
            for message in messages
        ]
        sampling: dict[str, Any] = {"temperature": 0}
        if config.samples:
            sampling = {"temperature": config.heat, "top_p": config.top_p, "n": config.candidates}
            sampling |= {} if seed is None else {"seed": seed % SEEDS}
        body = {"model": self.model, "messages": content, "max_tokens": config.max_new_tokens} | sampling
        if self.owner == "vllm":
            body["return_token_ids"] = True
        try:
            answer = self._call("/chat/completions", _Completion, body)
            self._check_prompt(answer, example)
            choices = sorted(answer.choices, key=lambda choice: choice.index)
            if [choice.index for choice in choices] != list(range(config.candidates)):
                raise EngineError(f"{self.url} gives {len(choices)} drafts (choices) of {config.candidates} asked for")
        except EngineError as error:
            raise type(error)(f"Study {example.study_id!r}: {error}") from None
        tokens = [choice.token_ids for choice in choices if choice.token_ids]
        return Reply(
            [choice.message.content.strip() for choice in choices],
            tokens if len(tokens) == len(choices) else None,
            [choice.finish_reason == "length" for choice in choices],
        )

    def close(self) -> None:
        """End the requests that are with the server, which then raise EngineError as later ones do."""
        with self._lock:
            self._closed.set()
            for connected in self._open:
                _hang_up(connected)

    def _check_prompt(self, answer: _Completion, example: Example) -> None:
        """Raise PromptError unless the server read the tokens of an example, or as many if it does not tell which."""
        own, read = example.prompt, answer.prompt_token_ids
        count = answer.usage.prompt_tokens if answer.usage else None if read is None else len(read)
        if (read is not None and read != own) or (read is None and count not in (None, len(own))):
            raise PromptError(
                f"{self.url} reads another prompt ({count} tokens) than this model ({len(own)} tokens); does it serve "
                "the same folder, and does a text hold a control token?"
            )

    def _call(self, path: str, form: type[T], body: Mapping[str, Any] | None = None) -> T:
        """The answer to a request. One that finds the server busy is sent again, a few times."""
        data = None if body is None else json.dumps(body).encode()
        pauses = iter(PAUSES)
        while True:
            try:
                status, target, found = self._ask(path, data)
            except (OSError, ValueError, http.client.HTTPException) as error:
                again, reason = isinstance(error, ConnectionResetError | BrokenPipeError), self._silence(error)
            else:
                if status == 200:
                    return self._read(found, form)
                again, reason = status in BUSY, self._refusal(status, target, found)
            pause = next(pauses, None) if again else None
            if pause is None or self._closed.wait(pause):
                raise EngineError(printable(f"{self.url} {reason}"))

    def _ask(self, path: str, data: bytes | None) -> tuple[int, str, bytes]:
        """Status of an answer, where it redirects to, and its body. No proxy is asked, and no redirect followed."""
        address = urlsplit(self.url)
        kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        connection = kind(address.hostname or "", address.port, timeout=CONNECT_SECONDS)
        headers = {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._token}"} if self._token else {}
        connection.connect()
        connected = connection.sock
        end = Timer(SECONDS, _hang_up, [connected])  # the socket's own limit begins anew with each byte
        end.daemon = True
        began = monotonic()
        try:
            with self._lock:
                if self._closed.is_set():
                    raise ConnectionAbortedError("it was closed here")
                self._open.add(connected)
            connected.settimeout(SECONDS)
            end.start()
            connection.request("GET" if data is None else "POST", address.path + path, data, headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("Location", ""), answer.read()
        except (OSError, http.client.HTTPException):
            if monotonic() - began >= SECONDS:
                raise TimeoutError from None
            raise
        finally:
            end.cancel()
            with self._lock:
                self._open.discard(connected)
            connection.close()

    def _read(self, body: bytes, form: type[T]) -> T:
        try:
            return msgspec.convert(json.loads(body), form)  # msgspec's own reader refuses half a surrogate pair
        except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise EngineError(printable(f"{self.url} answers what cannot be used: {error}")) from None

    def _silence(self, error: Exception) -> str:
        """Why no answer came."""
        if self._closed.is_set():
            return "was asked no further"
        if isinstance(error, TimeoutError):
            return f"did not answer within {SECONDS} s (a connection: {CONNECT_SECONDS} s)"
        return f"does not answer: {error or type(error).__name__}"

    def _refusal(self, status: int, target: str, body: bytes) -> str:
        """What a status other than 200 says, and what to do."""
        if 300 <= status < 400:
            return f"redirects ({status}) to {_plain(target)}; nothing was sent there. Give the address that answers"
        hint = f"; the environment variable {TOKEN} holds its token" if status in (401, 403) else ""
        if status == 404 and not self.url.endswith("/v1"):
            hint = "; the address of an API mostly ends in /v1"
        return f"answers {status}: {_sentence(body)}{hint}"


def _hang_up(connected: socket.socket) -> None:
    with suppress(OSError):  # it has ended by itself
        connected.shutdown(socket.SHUT_RDWR)


def as_answered(engine: Engine, ask: Callable[..., T], jobs: Iterable[tuple[Any, ...]], requests: int) -> Iterator[T]:
    """Yield what `ask` gives for each of the jobs as it comes, with so many of them being asked at a time.

    After an error no further job is begun; it is raised when what others give has been yielded. If the caller ends
    early (Ctrl-C), the engine is closed, so that nothing waits for an answer.
    """
    pool, jobs = ThreadPoolExecutor(requests), iter(jobs)
    asked: set[Future[T]] = set()
    failure: BaseException | None = None
    try:
        while True:
            if failure is None:
                asked |= {pool.submit(ask, *job) for job in islice(jobs, requests - len(asked))}
            if not asked:
                break
            done, asked = wait(asked, return_when=FIRST_COMPLETED)
            for future in done:
                if error := future.exception():
                    failure = failure or error
                else:
                    yield future.result()
    except BaseException:
        engine.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    if failure:
        raise failure


def _check_address(url: str) -> str:
    """The host of an address; raises EngineError if it is none, without a word of what may be secret in it."""
    if any(mark in url for mark in "@?#"):
        raise EngineError(f"--engine takes an address without user, password and query; a token goes in {TOKEN}")
    try:
        address = urlsplit(url)
        if address.scheme in ("http", "https") and address.hostname and address.port != 0:
            return address.hostname
    except ValueError:  # brackets, or a port that is no number
        pass
    raise EngineError(f"--engine {url!r} is no address; give one such as http://127.0.0.1:8000/v1")


def _plain(url: str) -> str:
    """An address without user, password and query."""
    try:
        address = urlsplit(url)
    except ValueError:
        return "what is no address"
    host = address.netloc.rpartition("@")[2]
    return f"{address.scheme}://{host}{address.path}" if host else address.path or "nowhere"


def _sentence(body: bytes) -> str:
    """What an error in OpenAI's form says."""
    try:
        return str(json.loads(body)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body[:200].decode(errors="replace")


def _image_part(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
