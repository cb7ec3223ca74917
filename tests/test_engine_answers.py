"""What servers of OpenAI's form may answer: what can be used is, all else is an EngineError that says what it was."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from threading import Barrier, Event, Lock, Thread
from typing import Any

import pytest

from generator import engine as module
from generator.config import DecodeConfig
from generator.data import Example
from generator.engine import TOKEN, Engine, EngineError, PromptError, Reply, as_answered
from generator.engine_check import connect
from raddraft.errors import RadDraftError
from tests.stand_in import CARDS, standing_in

EXAMPLE = Example("s1", [], [7, 8, 9], [])
MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "Report."}]}]
GREEDY = DecodeConfig(max_new_tokens=4)
CHOICE = {"index": 0, "message": {"content": " No edema. "}, "finish_reason": "stop", "token_ids": [4, 2]}
GOOD = {"choices": [CHOICE], "prompt_token_ids": [7, 8, 9], "usage": {"prompt_tokens": 3}}


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.0, 0.0))
    monkeypatch.delenv(TOKEN, raising=False)


def write(engine: Engine, config: DecodeConfig = GREEDY, seed: int | None = None) -> Reply:
    return engine.write(MESSAGES, [], EXAMPLE, config, seed)


def test_token_ids_seeds_and_several_drafts() -> None:
    config = DecodeConfig(max_new_tokens=4, candidates=2)
    cut = CHOICE | {"index": 1, "finish_reason": "length", "token_ids": None}
    with standing_in(lambda body: (200, GOOD | {"choices": [cut, CHOICE][-body.get("n", 1) :]})) as (url, asked):
        engine = Engine(url)
        assert str(engine) == "vllm as theirs"
        assert write(engine) == Reply(["No edema."], [[4, 2]], [False])
        assert write(engine, config, 2**40 + 3) == Reply(["No edema."] * 2, None, [False, True])
    assert [body.get("seed") for body in asked] == [None, 3], "servers know 32 bits"
    assert all(body["return_token_ids"] for body in asked)


SHAPES: list[tuple[Any, str]] = [
    ([], "Expected `object`"),
    (None, "Expected `object`"),
    ({}, "field `choices`"),
    (b"<html>", "cannot be used"),
    (b"[" * 100_000, "cannot be used"),
    ({"choices": []}, r"gives 0 drafts \(choices\) of 1"),
    ({"choices": [CHOICE, CHOICE]}, "gives 2 drafts"),
    ({"choices": [CHOICE | {"index": 1}]}, "gives 1 drafts"),
    ({"choices": [{key: value for key, value in CHOICE.items() if key != "index"}]}, "field `index`"),
    ({"choices": [{key: value for key, value in CHOICE.items() if key != "finish_reason"}]}, "field `finish_reason`"),
    ({"choices": [CHOICE | {"finish_reason": "abort"}]}, "'abort' .*finish_reason"),
    ({"choices": [CHOICE | {"finish_reason": None}]}, "null.*finish_reason"),
    ({"choices": [CHOICE | {"message": {"content": None}}]}, "null.*message.content"),
    ({"choices": [CHOICE | {"message": {"content": ["a"]}}]}, "array.*message.content"),
    ({"choices": [CHOICE | {"token_ids": [-1]}]}, "token_ids"),
    (GOOD | {"usage": {"prompt_tokens": "3"}}, "prompt_tokens"),
]


@pytest.mark.parametrize(("body", "told"), SHAPES)
def test_another_form_is_told_by_its_field(body: Any, told: str) -> None:
    with standing_in(lambda _: (200, body)) as (url, _), pytest.raises(EngineError, match=f"^Study 's1': .*{told}"):
        write(Engine(url))


@pytest.mark.parametrize(
    "changed", [{"prompt_token_ids": [7, 8, 1]}, {"prompt_token_ids": None, "usage": {"prompt_tokens": 4}}]
)
def test_another_prompt(changed: dict[str, Any]) -> None:
    with standing_in(lambda _: (200, GOOD | changed)) as (url, _), pytest.raises(PromptError, match="another prompt"):
        write(Engine(url))


@pytest.mark.parametrize(
    ("cards", "told"),
    [
        ({"data": CARDS["data"] * 2}, r"serves 2 models \(theirs, theirs\)"),
        ({"data": [{"id": 1}]}, r"data\[0\].id"),
        ({"data": None}, r"\$.data"),
        ((401, {"error": {"message": "no"}}), f"answers 401: no; the environment variable {TOKEN} holds"),
        ((302, b"", {"Location": "http://user:secret@else.where/v1?key=secret"}), r"\(302\) to http://else.where/v1;"),
        ((200, b"{}", {"Content-Length": "9"}), "IncompleteRead"),
        ((200, b"\x1b[2J"), "cannot be used"),
    ],
)
def test_no_model_to_ask(cards: Any, told: str) -> None:
    with standing_in(lambda _: None, cards) as (url, _), pytest.raises(EngineError, match=told) as raised:
        Engine(url)
    assert "secret" not in str(raised.value)


def test_an_address_without_v1_is_told() -> None:
    cards = (404, {"error": {"message": "none"}})
    with (
        standing_in(lambda _: None, cards) as (url, _),
        pytest.raises(EngineError, match=r"none; the address of .* /v1"),
    ):
        Engine(url.removesuffix("/v1"))


@pytest.mark.parametrize("url", ["", "http://[::1", "http://h:port/v1", "http://h:99999", "ftp://h", "http:///v1"])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(EngineError, match="is no address"):
        connect(url, None)


def test_secrets_are_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    for url in ("http://me:secret@127.0.0.1:1/v1", "http://127.0.0.1:1/v1?key=secret"):
        with pytest.raises(EngineError, match="without user, password and query") as raised:
            Engine(url)
        assert "secret" not in str(raised.value)
    for token in ("sec\rret", "secr\x1bet", "secrét"):
        monkeypatch.setenv(TOKEN, token)
        with pytest.raises(EngineError, match=f"{TOKEN} holds characters") as raised:
            Engine("http://127.0.0.1:1/v1")
        assert "sec" not in str(raised.value)
    monkeypatch.setenv(TOKEN, " secret\r\n")
    with standing_in(lambda _: (200, GOOD)) as (url, _):
        Engine(url)


def test_nothing_to_check_without_an_engine() -> None:
    assert connect(None, None) == (None, 0)
    with pytest.raises(RadDraftError, match="--check 0 compares drafts of an --engine"):
        connect(None, 0)
    with standing_in(lambda _: None) as (url, _):
        assert [connect(url, check)[1] for check in (None, 0, 3)] == [16, 0, 3]


@pytest.mark.parametrize("first", [(429, {}), (502, b""), (503, b"loading"), None])
def test_a_busy_server_is_asked_again(first: Any) -> None:
    left = [first, first]
    with standing_in(lambda _: left.pop() if left else (200, GOOD)) as (url, asked):
        engine = Engine(url)
        assert write(engine).texts == ["No edema."]
        left += [first] * 3
        with pytest.raises(EngineError, match="answers" if first else "does not answer"):
            write(engine)
    assert len(asked) == 6, "and given up after the pauses"


def test_an_answer_that_trickles_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte would give it its time anew."""

    def trickle(server: socket.socket) -> None:
        for _ in range(2):  # the question for models, then the one for a draft
            client, _ = server.accept()
            with client, suppress(OSError):
                client.recv(65536)
                if not sent:
                    cards = json.dumps(CARDS).encode()
                    client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(cards), cards))
                    sent.append(1)
                    continue
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not ended.wait(0.05):
                    client.sendall(b" ")

    sent, ended = [], Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = Thread(target=trickle, args=[server])
        thread.start()
        engine = Engine(f"http://127.0.0.1:{server.getsockname()[1]}/v1")
        monkeypatch.setattr(module, "SECONDS", 0.3)
        with pytest.raises(EngineError, match="did not answer within"):
            write(engine)
        ended.set()
        thread.join(60)


def test_a_refusal_is_not_repeated() -> None:
    with standing_in(lambda _: (400, {"error": {"message": "too long\x1b"}})) as (url, asked):
        with pytest.raises(EngineError, match=r"answers 400: too long\\x1b$"):
            write(Engine(url))
        assert len(asked) == 1


def test_requests_go_in_parallel_and_bounded_and_come_as_they_end() -> None:
    together, late, lock, most = Barrier(3), Event(), Lock(), [0, 0]

    def answer(body: dict[str, Any]) -> tuple[int, Any]:
        with lock:
            most[0] += 1
            most[1] = max(most)
        if body["max_tokens"] <= 3:  # the first three are there at once, or this test ends in an error
            together.wait(60)
        if body["max_tokens"] == 1:
            late.wait(60)
        with lock:
            most[0] -= 1
        return 200, GOOD

    with standing_in(answer) as (url, _):
        engine = Engine(url)
        drafts = as_answered(engine, asking(engine), ((number,) for number in range(1, 9)), 3)
        found = [next(drafts) for _ in range(7)]
        assert sorted(found) == [2, 3, 4, 5, 6, 7, 8], "the first hangs, and holds up nothing"
        late.set()
        assert list(drafts) == [1]
    assert most[1] == 3


def asking(engine: Engine) -> Callable[[int], int]:
    def ask(number: int) -> int:
        write(engine, replace(GREEDY, max_new_tokens=number))
        return number

    return ask


def test_death_midway_loses_no_draft_that_came() -> None:
    with standing_in(lambda body: (200, GOOD) if body["max_tokens"] != 3 else (500, b"died")) as (url, asked):
        engine, found = Engine(url), list[int]()
        drafts = as_answered(engine, asking(engine), ((number,) for number in range(1, 100)), 4)
        with pytest.raises(EngineError, match="answers 500: died"):
            any(map(found.append, drafts))  # takes all until the error
    assert sorted([*found, 3]) == sorted(body["max_tokens"] for body in asked), "all that was asked was given"
    assert len(asked) < 99, "no further ones are asked"


def test_whoever_stops_does_not_wait_for_answers() -> None:
    never = Event()
    with standing_in(lambda body: (200, GOOD) if body["max_tokens"] == 1 else (never.wait(60), None)[1]) as (url, _):
        engine = Engine(url)
        drafts = as_answered(engine, asking(engine), ((number,) for number in (1, 2, 3)), 3)
        assert next(drafts) == 1
        stopping = Thread(target=drafts.close)  # as Ctrl-C does
        stopping.start()
        stopping.join(30)
        assert not stopping.is_alive()
        with pytest.raises(EngineError, match="was asked no further"):
            write(engine)
        never.set()
