"""Drafts that another server decodes: the same texts, files that resume, another prompt told. Here it is our own."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from threading import Thread
from time import sleep
from typing import Any
from unittest.mock import Mock

import pytest
from PIL import Image

from generator.api import Model
from generator.config import DecodeConfig, ServeConfig
from generator.data import Example
from generator.engine import Engine, EngineError, PromptError, Reply
from generator.engine_check import compare_engine, compare_synthetic
from generator.serving.app import Service, make_server
from generator.serving.pictures import Pictures
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage
from tests import launch
from tests.conftest import ROOT
from tests.films import chest, write_dicom
from tests.test_cli import run
from tests.test_serve import (  # noqa: F401 - fixtures
    TOKEN,
    TOKENS,
    Client,
    drafter,
    generated,
    model,
    picture,
    pictures,
    server,
    start,
    studies,
    text_of,
)

CONFIG = DecodeConfig(max_new_tokens=TOKENS)


@pytest.fixture
def engine(server: Client) -> Engine:  # noqa: F811
    return Engine(f"http://127.0.0.1:{server.port}/v1/", TOKEN)


def test_its_drafts_are_those_of_generate_and_resume(engine, model, studies, tmp_path) -> None:  # noqa: F811
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    bad = Study("bad", "p", "test", [StudyImage(broken, "AP")])
    out = tmp_path / "theirs.jsonl"
    assert model.generate([bad, *studies[:6]], out, decode=CONFIG, engine=engine)[0].startswith("bad: ")
    expected = generated(model, studies, tmp_path / "ours.jsonl")
    served = engine.write
    asked: list[str] = []
    engine.write = lambda *given: asked.append(given[2].study_id) or served(*given)  # type: ignore[method-assign]
    assert model.generate(studies, out, decode=CONFIG, engine=engine) == []
    assert sorted(asked) == sorted(study.study_id for study in studies[6:]), "the others were there"
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert {row.pop("decoding") for row in rows} == {f"{CONFIG}, by raddraft as ours"}
    assert rows == [{key: value for key, value in row.items() if key != "decoding"} for row in expected]
    with pytest.raises(RadDraftError, match="written with decoding"):
        model.generate(studies, out, decode=CONFIG)
    engine.model = "another"
    with pytest.raises(RadDraftError, match="written with decoding"):
        model.generate(studies, out, decode=CONFIG, engine=engine)


@pytest.mark.parametrize(("changed", "told"), [(0, "3 of the first 3 texts are"), (1, "; different: s1")])
def test_equal_texts_are_counted_before_a_run(changed, told, engine, model, studies) -> None:  # noqa: F811
    replies(engine, [f"s{number}" for number in range(1, 1 + changed)])
    sampled = replace(CONFIG, candidates=2)
    assert told in compare_engine(engine, model.drafter, studies[:5], sampled, 3)


def test_another_model_with_the_same_prompt_is_refused(engine, model, studies, tmp_path) -> None:  # noqa: F811
    replies(engine, ["s0", "s1"])
    with pytest.raises(EngineError, match=r"1 of the first 3 texts .* seems to serve another model"):
        compare_engine(engine, model.drafter, studies, CONFIG, 3)
    replies(engine, [f"s{50_000_001 + number}" for number in range(2)])
    with pytest.raises(EngineError, match=r"0 of the first 2 texts .* seems to serve another model"):
        compare_synthetic(engine, model.drafter, 2)


def replies(engine: Engine, other: list[str]) -> None:
    """Let a server write another text for these studies."""
    write = engine.write

    def changed(messages: Any, images: Any, example: Example, *given: Any) -> Reply:
        reply = write(messages, images, example, *given)
        return replace(reply, texts=["other"], tokens=None) if example.study_id in other else reply

    engine.write = changed  # type: ignore[method-assign]


def test_another_prompt_than_ours_is_told(engine, model, studies, tmp_path) -> None:  # noqa: F811
    """As of a server that has another folder, or whose tokenizer takes "</s>" in a text for the end."""
    (example,) = model.drafter.encode(studies[:1], answers=False)
    messages, images = model.drafter.prompt.messages(studies[0]), [Image.fromarray(chest(40))]
    engine.write(messages, images, example, CONFIG)
    with pytest.raises(EngineError, match=f"reads another prompt .* than this model .{len(example) + 1} tokens"):
        engine.write(messages, images, replace(example, text=[*example.text, 5]), CONFIG)


def test_sampled_drafts(engine, model, studies, tmp_path) -> None:  # noqa: F811
    config = DecodeConfig(max_new_tokens=TOKENS, candidates=3, temperature=1.5, seed=4)
    model.generate(studies[:2], tmp_path / "a.jsonl", decode=config, engine=engine)
    model.generate(studies[:2], tmp_path / "b.jsonl", decode=config, engine=engine)
    text = (tmp_path / "a.jsonl").read_text()
    assert text == (tmp_path / "b.jsonl").read_text(), "the seed decides"
    assert all(len(set(json.loads(line)["candidates"])) > 1 for line in text.splitlines())


def test_what_cannot_be_had_is_told(engine, model, studies, tmp_path) -> None:  # noqa: F811
    out = tmp_path / "out.jsonl"
    for decode in ({"num_beams": 2}, {"confidence": True}, {"repetition_penalty": 1.2}):
        with pytest.raises(RadDraftError, match="A server decodes greedily or samples"):
            model.generate(studies, out, decode=DecodeConfig(**decode), engine=engine)
    with pytest.raises(RadDraftError, match="leave out decode, speculate and engine"):
        model.generate(studies, out, "most-frequent", studies, engine=engine)
    with pytest.raises(EngineError, match="answers 401: The token is missing or wrong"):
        Engine(engine.url, "wrong")
    with pytest.raises(EngineError, match="is no address"):
        Engine("127.0.0.1:8000")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(EngineError, match="does not answer"):
        Engine(url)


@contextmanager
def in_front(model: Model, engine: Engine, pictures: Pictures) -> Iterator[Client]:  # noqa: F811
    """Our server before another one."""
    service = Service(model, ServeConfig(max_new_tokens=TOKENS, requests=4), pictures, None, engine)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = make_server(service, TOKEN)
        thread = Thread(target=ours.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(listener.getsockname()[1], service)
        finally:
            ours.should_exit = True
            thread.join()
            service.close()


def test_our_server_in_front_of_another_reads_all_files(engine, model, studies, pictures, tmp_path) -> None:  # noqa: F811
    expected = [row["prediction"] for row in generated(model, studies[:5], tmp_path / "ours.jsonl")]
    with in_front(model, engine, pictures) as client:
        for study, text in zip(studies[:5], expected, strict=True):
            data, fields = study.main_image.path.read_bytes(), {"study": {"view": "AP"} | study.sections}
            assert text_of(client.draft(data, **fields)) == text
            chunks = client.stream(data, **fields)
            assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == text
        data = studies[0].main_image.path.read_bytes()
        assert len(client.draft(data, n=3, temperature=1.5, seed=1)["choices"]) == 3
        status, answer = client.post([picture(data)], logprobs=True)
        assert (status, answer["error"]["message"][:24]) == (400, "logprobs and confidence ")
        assert client.service.batcher.waiting == 0
        for error, expected in (
            (PromptError("http://inside/v1"), (400, "Another prompt would be read than was sent; does a")),
            (EngineError("http://inside/v1"), (502, "The server that decodes for this one failed; ask a")),
        ):
            engine.write = Mock(side_effect=error)  # type: ignore[method-assign]
            status, answer = client.post([picture(data)])
            assert (status, answer["error"]["message"][:50]) == expected, "no address of what is behind it"


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_commands_of_the_page_run(random_model, studies_file, tmp_path, monkeypatch, capsys) -> None:
    """docs/serving.md: a server, curl, and a run that it decodes."""
    page = re.sub(r"\\\n *", "", (ROOT / "docs" / "serving.md").read_text(encoding="utf-8"))
    serve, curl, generate = (
        re.search(rf"^{line} .*$", page, re.MULTILINE)[0]  # type: ignore[index]
        for line in ("raddraft serve", "curl", "raddraft generate")
    )
    for name in ("RADDRAFT_TOKEN", "RADDRAFT_ENGINE_TOKEN"):
        monkeypatch.setenv(name, TOKEN)
    names = {"runs/demo/model": random_model, "runs/demo/phantom/studies.jsonl": studies_file}

    def words(command: str) -> list[str]:
        return [str(names.get(word, word)) for word in shlex.split(command)]

    started = launch.Job("serve", *words(serve)[2:], "--port", "0", environment={"RADDRAFT_TOKEN": TOKEN})
    while not (found := re.search(r"served at (http://127\.0\.0\.1:\d+)/v1", started.printed)):
        assert started.running, started.printed
        sleep(0.01)
    film = write_dicom(tmp_path / "film.dcm", chest(40).astype("uint16") * 9)
    asked = [word.replace("$TOKEN", TOKEN).replace("http://127.0.0.1:8000", found[1]) for word in words(curl)]
    answer = json.loads(subprocess.run([*asked, "-s"], cwd=film.parent, capture_output=True, check=True).stdout)
    assert answer["choices"][0]["message"]["content"], answer
    names |= {"http://127.0.0.1:8000/v1": f"{found[1]}/v1", "runs/demo/vllm.jsonl": tmp_path / "theirs.jsonl"}
    status, told = run("generate", *words(generate)[2:], "--decode.max-new-tokens", 8, "--device", "cpu")
    assert (status, told) == (0, "")
    assert "8 of the first 8 texts are those of this project's own decoder" in capsys.readouterr().out
    started.signal(signal.SIGTERM)
    started.finish([128 + signal.SIGTERM])
