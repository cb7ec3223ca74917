"""The server of `raddraft serve`: who is answered, and how a request goes through reader, prompt, batch and answer.

    service = Service(model, ServeConfig(), Pictures("window", workers=2))
    with bound("127.0.0.1", 8000) as listener:
        listener.listen()
        make_server(service, token="…").run(sockets=[listener])

No log is written, no file is made, nothing is fetched. On SIGTERM requests that are being answered end, and others get
503.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from generator.api import Model
from generator.config import DecodeConfig, ServeConfig
from generator.engine import Engine
from generator.generate import check_elsewhere
from generator.serving.answers import Answer
from generator.serving.batcher import Batcher, Job, Written
from generator.serving.counters import Counters
from generator.serving.pictures import Pictures
from generator.serving.remote import Remote
from generator.serving.studies import prepare
from generator.serving.wire import Asked, error_body, event, read_form, read_json
from generator.speculate import Speculator
from generator.web import Refused, read_body, tell_error, uvicorn_config
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

T = TypeVar("T")
BODY_SECONDS = 60
"""Within which a request has to arrive."""
GRACE_SECONDS = 120
"""That requests have to end after SIGTERM."""
OPEN = ("/health", "/metrics")
"""Paths that need no token."""


class Service:
    """All that answers requests.

    Args:
        model: writes the drafts; its name is what clients call it.
        limits: see there.
        pictures: reads image files.
        speculator: proposes tokens.
        engine: a server of the same model that decodes.

    Raises:
        RadDraftError: no draft as long as the limit fits into the model's context, or the engine cannot decode for it.
    """

    def __init__(
        self,
        model: Model,
        limits: ServeConfig,
        pictures: Pictures,
        speculator: Speculator | None = None,
        engine: Engine | None = None,
    ) -> None:
        context, most = model.drafter.context_length, limits.max_new_tokens
        if context is not None and most >= context:
            raise RadDraftError(f"--max-new-tokens {most}: the model's context is {context} tokens")
        self.model, self.limits, self.pictures, self.speculator = model, limits, pictures, speculator
        self.counters = Counters(lambda: self.batcher.waiting)
        self.batcher: Batcher | Remote
        if engine is None:
            self.batcher = Batcher(model.drafter, limits.batch_size, speculator, self.counters.batches.observe)
        else:
            check_elsewhere(model.drafter, DecodeConfig(), speculator)
            self.batcher = Remote(model.drafter, engine, limits.requests)
        self._engine = engine
        self.draining = False
        """Whether no request is taken any more."""
        self.started = int(time.time())

    def close(self) -> None:
        """End with the batch that is being decoded."""
        self.batcher.close()

    async def read(self, request: Request) -> Asked:
        """The request in a body. Raises Refused."""
        from starlette.concurrency import run_in_threadpool

        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in ("application/json", "multipart/form-data"):
            raise Refused(415, f"Content type {kind!r} is not taken. Choices: application/json, multipart/form-data")
        try:
            async with asyncio.timeout(BODY_SECONDS):
                body = await read_body(request, self.limits.megabytes * 1_000_000)
        except TimeoutError:
            raise Refused(408, f"The request did not arrive within {BODY_SECONDS} s.") from None
        if kind == "application/json":
            asked = await run_in_threadpool(read_json, body)
        else:
            asked = await read_form(body, request.headers)
        if asked.chat.model not in (None, self.model.name):
            raise Refused(404, f"There is no model {asked.chat.model!r} here. Choices: {self.model.name}")
        return asked

    async def make(self, asked: Asked) -> tuple[Answer, Job]:
        """What a request wants, ready to be decoded. Raises RadDraftError."""
        from starlette.concurrency import run_in_threadpool

        chat, config = asked.chat, asked.chat.decoding(self.limits.max_new_tokens)
        speculates = self.speculator is not None and not config.samples and chat.speculate is not False
        if chat.speculate and not speculates:
            raise Refused(400, "No tokens can be proposed: it needs a greedy draft, and a server with --speculate")
        if config.confidence and self.model.drafter.kind != "llava":
            raise Refused(400, "logprobs and confidence need a model that was built by RadDraft")
        if config.confidence and self._engine is not None:
            raise Refused(400, "logprobs and confidence are not to be had where another server decodes (--engine)")
        named = [(f"image {number}", data) for number, data in enumerate(asked.images, 1)]
        named += [(f"prior image {number}", data) for number, data in enumerate(asked.prior_images, 1)]
        read = await asyncio.gather(*(asyncio.wrap_future(self.pictures.read(*one)) for one in named))
        first = len(asked.images)
        ready = await run_in_threadpool(prepare, self.model, asked, read[:first], read[first:], config)
        seeded = config.samples and chat.seed is not None
        return Answer(self.model, chat, ready), Job(
            ready.example, ready.images, config, seeded, ready.messages, speculates
        )

    def count(self, answer: Answer, written: Written) -> None:
        """Count the tokens of an answer."""
        usage = answer.usage(written)
        self.counters.tokens.labels("prompt").inc(usage["prompt_tokens"])
        self.counters.tokens.labels("draft").inc(usage["completion_tokens"])


def make_app(service: Service, token: str) -> Gate:
    """The ASGI application of a service, to whoever shows the token."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    model, prompt = service.model, service.model.drafter.prompt
    card = {"id": model.name, "object": "model", "created": service.started, "owned_by": "raddraft"}
    card["prompt"] = asdict(prompt) | {"request": prompt.request}

    async def complete(request: Request) -> Response:
        asked = await service.read(request)
        answer, job = await service.make(asked)
        if asked.chat.stream:
            return await _stream(service, request, answer, job)
        service.batcher.submit(job)
        written = await _unless_gone(request, job, asyncio.wrap_future(job.done))
        service.count(answer, written)
        return _json(await run_in_threadpool(answer.whole, written))

    async def models(request: Request) -> Response:
        return _json({"object": "list", "data": [card]})

    async def of_model(request: Request) -> Response:
        if request.path_params["name"] != model.name:
            raise Refused(404, f"There is no model {request.path_params['name']!r} here. Choices: {model.name}")
        return _json(card)

    async def health(request: Request) -> Response:
        status = "stopping" if service.draining else "ok"
        return _json({"status": status, "model": model.name}, 503 if service.draining else 200)

    async def metrics(request: Request) -> Response:
        return PlainTextResponse(service.counters.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def fail(request: Request, error: Exception) -> Response:
        return _answer_error(error)

    routes = [
        Route("/v1/chat/completions", complete, methods=["POST"]),
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", of_model),
        Route("/health", health),
        Route("/metrics", metrics),
    ]
    handlers: dict[Any, Any] = {404: fail, 405: fail, RadDraftError: fail, Exception: fail}
    return Gate(Starlette(routes=routes, exception_handlers=handlers), service, token)


class Gate:
    """An ASGI application around another one: token, number and size of requests, errors, counts.

    Args:
        app: answers the requests.
        service: has the limits and the counters.
        token: that a request must show, but for /health and /metrics.
    """

    def __init__(self, app: Starlette, service: Service, token: str) -> None:
        self.app, self.service, self._token = app, service, token
        self.in_flight = 0

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Answer a request."""
        from starlette.requests import Request

        if scope["type"] != "http":
            return
        if scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        status, began, counters = 0, time.perf_counter(), self.service.counters

        async def send_counted(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), (b"cache-control", b"no-store")]
            await send(message)

        self.in_flight += 1
        counters.in_flight.set(self.in_flight)
        try:
            self._check(Request(scope))
            await self.app(scope, receive, send_counted)
        except Exception as error:  # its text may name a patient, so no log gets it
            answer = _answer_error(error)
            if not status:
                await answer(scope, receive, send_counted)
        finally:
            self.in_flight -= 1
            counters.in_flight.set(self.in_flight)
            counters.requests.labels(str(status)).inc()
            counters.seconds.observe(time.perf_counter() - began)

    def _check(self, request: Request) -> None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secrets.compare_digest(token.strip().encode(), self._token.encode()):
            raise Refused(401, "The token is missing or wrong; send the header Authorization: Bearer TOKEN")
        if self.service.draining:
            raise Refused(503, "The server is being stopped.")
        limits = self.service.limits
        if self.in_flight > limits.requests:
            raise Refused(429, f"The server is answering {limits.requests} requests; ask again later.")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > limits.megabytes * 1_000_000:
            raise Refused(413, f"The request has more than {limits.megabytes * 1_000_000:,} bytes.")


def make_server(service: Service, token: str) -> uvicorn.Server:
    """The server of a service, whose `run` takes the listening socket.

    It answers until Ctrl-C or SIGTERM, and then, for `GRACE_SECONDS` at most, those requests that it has taken; after a
    second signal it does not wait for them.
    """
    import uvicorn

    gate = make_app(service, token)
    deadline = 0.0

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: Any) -> None:
            nonlocal deadline
            super().handle_exit(sig, frame)
            if not service.draining:  # uvicorn would refuse connections; here they are told why
                service.draining, self.should_exit = True, False
                deadline = time.monotonic() + GRACE_SECONDS

        async def on_tick(self, counter: int) -> bool:
            if service.draining and (not gate.in_flight or time.monotonic() > deadline):
                self.should_exit = True
            return await super().on_tick(counter)

    return Server(uvicorn_config(gate, grace=5))


async def _unless_gone(request: Request, job: Job, awaited: Awaitable[T]) -> T:
    """What is awaited of a job; if the client goes away, its place in the queue is given up."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    done, left = asyncio.ensure_future(awaited), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([done, left], return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise Refused(499, "The client has gone.")
        return done.result()
    finally:
        left.cancel()
        if not done.done():
            done.cancel()
            job.give_up()


async def _stream(service: Service, request: Request, answer: Answer, job: Job) -> Response:
    """Server-sent events of a job. What goes wrong before the first token is an error like any other."""
    from starlette.responses import StreamingResponse

    loop, told = asyncio.get_running_loop(), asyncio.Queue[list[list[int]] | None]()

    def tell(tokens: list[list[int]] | None) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(told.put_nowait, tokens)

    job.follow = tell
    job.done.add_done_callback(lambda done: tell(None))
    service.batcher.submit(job)
    first = await _unless_gone(request, job, told.get())
    if first is None:
        job.done.result()

    async def events() -> AsyncIterator[str]:
        try:
            for chunk in answer.begin():
                yield event(chunk)
            tokens = first
            while tokens is not None:
                for chunk in answer.go_on(tokens):
                    yield event(chunk)
                tokens = await told.get()
            written = job.done.result()
            service.count(answer, written)
            for chunk in answer.end(written):
                yield event(chunk)
            yield event("[DONE]")
        except Exception as error:
            yield event(error_body(*tell_error(error)))
        finally:
            job.give_up()

    return StreamingResponse(events(), media_type="text/event-stream")


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON that may hold half a surrogate pair, as a text of a model may."""
    from starlette.responses import Response

    return Response(json.dumps(value), status, headers, media_type="application/json")


def _answer_error(error: Exception) -> Response:
    """The answer to a request that failed: a sentence, in OpenAI's form."""
    status, text = tell_error(error, 400)
    headers = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "30"}}.get(status)
    return _json(error_body(status, text), status, headers)
