"""The server of `raddraft serve`: the texts of `generate`, every misread request refused, a stop that loses nothing."""

from __future__ import annotations

import base64
import http.client
import json
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from generator.api import Model, load_model
from generator.config import DecodeConfig, ServeConfig
from generator.consensus import choose
from generator.drafter import Drafter
from generator.generate import BANNER
from generator.prompts import QUESTION, PromptConfig
from generator.serving.answers import Pieces
from generator.serving.app import Service, make_server
from generator.serving.batcher import Batcher, Job
from generator.serving.pictures import Pictures
from generator.serving.studies import read_parts
from generator.web import Refused
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage
from scripts.serve import read_token
from tests import launch
from tests.conftest import SENTENCES
from tests.films import chest, write_dicom
from tests.test_cli import run
from tests.vlm_families import save_vlm

TOKEN = "the token"
TOKENS = 16
"""New tokens of a draft, where nothing else is asked for."""


@dataclass
class Client:
    """Asks a server."""

    port: int
    service: Service | None = None

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        sent = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | (headers or {})
        connection.request(method, path, body, sent)
        answer = connection.getresponse()
        found = answer.status, dict(answer.getheaders()), answer.read()
        connection.close()
        return found

    def post(self, content: Any, **fields: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of the answer to a message with this content."""
        body = {"messages": [{"role": "user", "content": content}]} | fields
        status, _, answer = self.ask("POST", "/v1/chat/completions", json.dumps(body).encode())
        return status, json.loads(answer)

    def form(self, files: list[tuple[str, bytes]], **fields: Any) -> tuple[int, dict[str, Any]]:
        """The same of a multipart form."""
        parts = [(f'name="{name}"; filename="x"', data) for name, data in files]
        parts += [('name="request"', json.dumps(fields).encode())]
        body = b"".join(b"--b\r\nContent-Disposition: form-data; %s\r\n\r\n%s\r\n" % (a.encode(), b) for a, b in parts)
        return self.send_form(body + b"--b--\r\n")

    def send_form(self, body: bytes, more: str = "") -> tuple[int, dict[str, Any]]:
        """The same of a form's bytes, whose boundary is b; its type may state more."""
        kind = {"Content-Type": f"multipart/form-data; boundary=b{more}"}
        status, _, answer = self.ask("POST", "/v1/chat/completions", body, kind)
        return status, json.loads(answer)

    def draft(self, *images: bytes, **fields: Any) -> dict[str, Any]:
        """The answer to images alone, which must be one."""
        status, answer = self.post([picture(data) for data in images], **fields)
        assert status == 200, answer
        return answer

    def stream(self, *images: bytes, **fields: Any) -> list[dict[str, Any]]:
        """The chunks of an answer."""
        message = {"role": "user", "content": [picture(data) for data in images]}
        body = json.dumps({"messages": [message], "stream": True} | fields).encode()
        status, headers, answer = self.ask("POST", "/v1/chat/completions", body)
        assert status == 200, answer
        assert headers["content-type"].startswith("text/event-stream")
        events = answer.decode().split("\n\n")
        assert events[-2:] == ["data: [DONE]", ""]
        return [json.loads(one.removeprefix("data: ")) for one in events[:-2]]


def picture(data: bytes) -> dict[str, Any]:
    """A part of a message."""
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}}


def text_of(answer: dict[str, Any]) -> str:
    return answer["choices"][0]["message"]["content"]


@pytest.fixture(scope="module")
def pictures() -> Iterator[Pictures]:
    made = Pictures("window", workers=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def start(pictures: Pictures) -> Any:
    return partial(serving, pictures)


@contextmanager
def serving(pictures: Pictures, model: Model, speculator: Any = None, **limits: int) -> Iterator[Client]:
    """Serve a model at a loopback port."""
    service = Service(model, ServeConfig(**{"max_new_tokens": TOKENS} | limits), pictures, speculator)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = make_server(service, TOKEN)
        thread = Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield Client(listener.getsockname()[1], service)
        finally:
            server.should_exit = True
            thread.join()
            service.close()


@pytest.fixture(scope="module")
def drafter(random_model: Path) -> Drafter:
    """A model whose gibberish depends on the image and on the indication."""
    loaded = load_model(random_model, "cpu").drafter
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    loaded.model.config.text_config.max_position_embeddings = 512  # for prompts in two turns
    return replace(loaded, prompt=PromptConfig(context=["view", "indication"]))


@pytest.fixture(scope="module")
def model(drafter: Drafter) -> Model:
    return Model(drafter, "ours")


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> list[Study]:
    """Of images of all kinds: 8 and 16 bits, PNG, TIFF, DICOM with a window."""
    folder = tmp_path_factory.mktemp("films")
    made = []
    for number in range(20):
        noise = np.random.default_rng(number).integers(0, 60, (40, 40))
        gray = np.clip(chest(40).astype(int) + noise * (number % 5), 0, 255).astype(np.uint8)
        deep = gray.astype(np.uint16) * 16 + 100
        path = folder / f"{number}.{('png', 'jpg', 'png', 'tiff', 'dcm')[number % 5]}"
        if number % 5 == 4:
            write_dicom(path, deep, BitsStored=12, ViewPosition="AP", WindowCenter=1500, WindowWidth=2500)
        else:
            Image.fromarray(gray if number % 5 < 2 else deep).save(path)
        indication = {"indication": SENTENCES[number % 7]} if number % 3 else {}
        made.append(Study(f"s{number}", f"p{number}", "test", [StudyImage(path, "AP")], indication))
    return made


@pytest.fixture(scope="module")
def server(model: Model, start: Any) -> Iterator[Client]:
    with start(model, batch_size=8, megabytes=1) as client:
        yield client


@pytest.fixture(scope="module")
def film(studies: list[Study]) -> bytes:
    return studies[0].main_image.path.read_bytes()


def generated(model: Model, studies: list[Study], out: Path, **decode: Any) -> list[dict[str, Any]]:
    """What `generate` writes of studies."""
    config = DecodeConfig(**{"max_new_tokens": TOKENS} | decode)
    assert model.generate(studies, out, workers=0, decode=config) == []
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


# ---- the same text


def test_greedy_texts_are_those_of_generate_whatever_is_asked_meanwhile(server, model, studies, tmp_path) -> None:
    expected = [row["prediction"] for row in generated(model, studies, tmp_path / "out.jsonl")]
    assert len(set(expected)) > 10, "a model that always says the same would prove little"

    def ask(number: int) -> str:
        study = studies[number]
        data = study.main_image.path.read_bytes()
        fields: dict[str, Any] = {"study": {"view": "AP"} | study.sections}
        if number % 3 == 0:
            return "".join(one["choices"][0]["delta"].get("content", "") for one in server.stream(data, **fields))
        if number % 3 == 1:
            status, answer = server.form([("image", data)], **fields)
            assert status == 200, answer
            return text_of(answer)
        if number % 2:  # others, which have no part in it
            server.draft(data, temperature=1.5, n=2, **fields)
        return text_of(server.draft(data, temperature=0, **fields))

    order = np.random.default_rng(0).permutation(len(studies) * 2).tolist()
    with ThreadPoolExecutor(12) as pool:
        found = dict(zip(order, pool.map(lambda at: ask(at % len(studies)), order), strict=True))
    assert [found[at] for at in range(len(studies) * 2)] == expected * 2
    counted = server.ask("GET", "/metrics")[2].decode()
    sizes = dict(re.findall(r'batch_requests_bucket{le="([\d.]+)"} ([\d.]+)', counted))
    assert float(sizes["1.0"]) < float(sizes["8.0"]), "no batch had several requests"


def test_a_16_bit_image_is_not_what_a_plain_processor_makes_of_it(server, studies) -> None:
    deep = studies[2].main_image.path
    clipped = np.asarray(Image.open(deep)).clip(0, 255).astype(np.uint8)
    path = deep.with_name("clipped.png")
    Image.fromarray(clipped).save(path)
    assert text_of(server.draft(deep.read_bytes())) != text_of(server.draft(path.read_bytes()))


def test_the_view_is_that_of_the_header(server, studies) -> None:
    data = studies[4].main_image.path.read_bytes()
    assert text_of(server.draft(data)) == text_of(server.draft(data, study={"view": "AP"}))
    status, answer = server.post([picture(data)], study={"view": "LATERAL"})
    assert (status, answer["error"]["message"]) == (400, "Image 1 is given as LATERAL; its header states AP.")
    status, answer = server.post([picture(data)], study={"view": "postero-anterior"})
    assert (status, answer["error"]["message"]) == (400, "Image 1 is given as PA; its header states AP.")


def test_a_given_view_tells_more_than_a_header_that_states_a_frontal(server, film, tmp_path) -> None:
    path = write_dicom(tmp_path / "x.dcm", chest(40).astype(np.uint16) * 9, ViewPosition="FRONTAL")
    texts = {view: text_of(server.draft(path.read_bytes(), study={"view": view})) for view in ("PA", "AP", "FRONTAL")}
    assert texts["FRONTAL"] == text_of(server.draft(path.read_bytes()))
    assert len({*texts.values()}) == 3
    prompts = [server.draft(film, study={"view": view})["usage"]["prompt_tokens"] for view in ("pa", "Doe, John PA")]
    assert prompts[0] == prompts[1], "of a view its words alone are read"


def test_confidence_and_log_probs_are_those_of_generate(server, model, studies, tmp_path) -> None:
    (row,) = generated(model, studies[:1], tmp_path / "out.jsonl", confidence=True)
    data = studies[0].main_image.path.read_bytes()
    fields: dict[str, Any] = {"study": {"view": "AP"} | studies[0].sections, "confidence": True, "logprobs": True}
    answer = server.draft(data, **fields)
    assert answer["choices"][0]["confidence"] == row["confidence"]
    tokens = answer["choices"][0]["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == row["prediction"]
    assert len(tokens) == answer["usage"]["completion_tokens"]
    mean = sum(one["logprob"] for one in tokens) / len(tokens)
    of_sentences = [one["log_prob"] for one in row["confidence"]]
    assert min(of_sentences) - 1e-3 <= mean <= max(of_sentences) + 1e-3
    streamed = server.stream(data, **fields)
    assert streamed[-1]["choices"][0]["confidence"] == row["confidence"]
    assert [one["token"] for one in streamed[-1]["choices"][0]["logprobs"]["content"]] == [
        one["token"] for one in tokens
    ]
    assert "confidence" not in server.draft(data)["choices"][0]


def test_proposed_tokens_change_no_text(start, model, studies, film) -> None:
    train = [
        replace(one, split="train", sections={"findings": text}) for one, text in zip(studies, SENTENCES, strict=False)
    ]
    with start(model, model.speculator(train)) as client:
        texts = [text_of(client.draft(film, speculate=choice)) for choice in (None, True, False)]
        assert len(set(texts)) == 1
        pieces = [one["choices"][0]["delta"].get("content", "") for one in client.stream(film, speculate=True)]
        assert "".join(pieces) == texts[0]
        assert client.post([picture(film)], speculate=True, temperature=1)[0] == 400


def test_text_takes_the_place_of_the_request(server, model, drafter, film, studies, tmp_path) -> None:
    ask = "Is the heart enlarged?"
    other = Model(replace(drafter, prompt=replace(drafter.prompt, instruction=ask)), "other")
    plain = replace(studies[0], sections={}, images=[StudyImage(studies[0].main_image.path)])
    (row,) = generated(other, [plain], tmp_path / "other.jsonl")
    status, answer = server.post([picture(film), {"type": "text", "text": ask}])
    assert (status, text_of(answer)) == (200, row["prediction"])
    own = text_of(server.draft(film))
    assert own != row["prediction"]
    for text in (drafter.prompt.request, f"{drafter.prompt.request}\n", "  "):
        assert text_of(server.post([picture(film), {"type": "text", "text": text}])[1]) == own
    status, answer = server.post([picture(film), {"type": "text", "text": "No </s> is a token, nor <image> here."}])
    assert status == 200, answer


# ---- sampling


def test_temperature_seed_and_n_count(server, film) -> None:
    greedy = text_of(server.draft(film, seed=5))
    assert text_of(server.draft(film, temperature=0)) == greedy
    seeded = [text_of(server.draft(film, temperature=1.5, seed=seed)) for seed in (1, 2, 3, 1)]
    assert seeded[0] == seeded[3]
    assert len({greedy, *seeded}) == 4
    assert len({text_of(server.draft(film, temperature=1.5)) for _ in range(4)}) > 1
    assert text_of(server.draft(film, temperature=1e-4)) == greedy
    assert text_of(server.draft(film, temperature=1.5, top_p=1e-6)) == greedy
    answer = server.draft(film, n=3, temperature=1.5, confidence=True)
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer["choices"]}) > 1
    assert all("agreement" in row for choice in answer["choices"] for row in choice["confidence"])
    chunks = server.stream(film, n=2, temperature=1.5, seed=9, stream_options={"include_usage": True})
    texts = ["", ""]
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        texts[choice["index"]] += choice["delta"].get("content", "")
    again = server.draft(film, n=2, temperature=1.5, seed=9)
    assert [choice["message"]["content"] for choice in again["choices"]] == texts
    assert chunks[-1]["usage"] == again["usage"]


def test_a_seed_gives_what_draft_gives_with_it(server, model, studies) -> None:
    path = studies[1].main_image.path
    draft = model.draft(path, max_new_tokens=TOKENS, sample=True, temperature=1.2, seed=7)
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda seed: server.draft(path.read_bytes(), temperature=1.2, seed=seed), (7, 8, 7, 9))]
    assert text_of(found[0]) == text_of(found[2]) == draft.text
    assert server.draft(path.read_bytes(), temperature=1.2, seed=2**32 - 1, max_tokens=2), "as engines are sent them"


def test_consensus_puts_the_chosen_draft_first(server, film) -> None:
    answer = server.draft(film, n=4, temperature=0.9, seed=3, consensus=["rouge_l"])
    texts = [choice["message"]["content"] for choice in server.draft(film, n=4, temperature=0.9, seed=3)["choices"]]
    (choice,) = choose([texts], ["rouge_l"])
    assert text_of(answer) == texts[choice.index]
    assert [one["consensus"] for one in answer["choices"]] == sorted(choice.scores, reverse=True)
    assert sorted(one["message"]["content"] for one in answer["choices"]) == sorted(texts)


def test_the_limit_of_tokens_is_kept(server, film) -> None:
    short, default = server.draft(film, max_tokens=3), server.draft(film)
    assert short["usage"]["completion_tokens"] == 3
    assert short["choices"][0]["finish_reason"] == "length"
    assert default["usage"]["completion_tokens"] <= TOKENS
    assert text_of(default).startswith(text_of(short))
    assert text_of(server.draft(film, max_completion_tokens=3)) == text_of(short)


# ---- what is refused


def broken(data: bytes) -> bytes:
    return data[: len(data) // 2]


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"content": "Describe."}, "reads a frontal chest X-ray; the request has no image"),
    ({"content": []}, "the request has no image"),
    ({"content": ["film", "film"]}, r"the request has 2 images \(view not stated, view not stated\)"),
    ({"content": ["Describe.", "film"]}, "images first, then the text"),
    ({"content": ["film", "<image>\nDescribe."]}, "marks the place of an image"),
    ({"content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}, "Image 1 is no data URI"),
    ({"content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}, "Image 1 is no data URI"),
    ({"content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}]}, "not valid base64"),
    ({"content": [{"type": "input_audio", "input_audio": {}}]}, "Invalid value 'input_audio'"),
    ({"messages": []}, "one message, of role user; these are none"),
    ({"messages": [{"role": "system", "content": "x"}]}, "one message, of role user; these are system"),
    ({"study": {"view": "sideways"}}, "Unknown view 'sideways' of image 1. Choices: PA, AP, LATERAL"),
    ({"study": {"view": ["PA", "AP"]}}, "2 views are given for 1"),
    ({"study": {"view": "LATERAL"}}, r"reads a frontal chest X-ray; the request has no frontal \(LATERAL\)"),
    ({"study": {"view": "LAO"}}, r"the request has no frontal \(LAO\)"),
    (
        {"content": ["Lateral image: ", "film"]},
        "names image 1 'Lateral image:'; the model reads it as 'frontal image:'",
    ),
    ({"content": ["Prior frontal image:", "film"]}, "names image 1 'Prior frontal image:'"),
    ({"study": {"indication": "x", "sections": {"indication": "y"}}}, "The indication is given twice"),
    ({"study": {"indication": "cough " * 3000}}, "have 18,000 bytes and exceed the context of 512 tokens by far"),
    ({"content": ["film", "cough " * 3000]}, "have 18,000 bytes"),
    ({"study": {"sections": {"technique": "x"}}}, "does not read the section 'technique'. Choices: indication"),
    ({"study": {"prior": {}}}, "does not read the prior study"),
    ({"study": {"indikation": "x"}}, "unknown field `indikation`"),
    ({"study": {"indication": "cough " * 600}}, "exceed the context of 512 tokens"),
    ({"max_tokens": 1000}, "exceed the context of 512 tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens is 3 and max_completion_tokens 4"),
    ({"temperature": 3}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"n": 2, "temperature": 0}, "n 2 needs a temperature of at least 0.001"),
    ({"n": 33}, r"Expected `int` <= 32 - at `\$.n`"),
    ({"top_p": 0.5}, "top_p 0.5 needs a temperature"),
    ({"seed": -1}, "seed"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"frequency_penalty": 0.5}, "frequency_penalty"),
    ({"response_format": {"type": "json_object"}}, "response_format 'json_object' is not known"),
    ({"stop": ["."]}, r"Expected `null`, got `array` - at `\$.stop`"),
    ({"speculate": True}, "a server with --speculate"),
    ({"consensus": ["rouge_l"]}, "needs n above 1"),
    ({"consensus": ["rouge"], "n": 2}, "Unknown utility 'rouge'"),
]


@pytest.mark.parametrize(("change", "sentence"), REFUSED)
def test_what_would_be_misread_is_refused(server, film, change, sentence) -> None:
    content = change.get("content", ["film"])
    if isinstance(content, list):
        content = [
            one if isinstance(one, dict) else picture(film) if one == "film" else {"type": "text", "text": one}
            for one in content
        ]
    fields = {key: value for key, value in change.items() if key != "content"}
    status, answer = server.post(content, **fields)
    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert re.search(sentence, answer["error"]["message"])


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda data: b"", "image 1: the file is empty"),
        (lambda data: b"\x00\xff" * 99, "image 1: not an image"),
        (broken, "image 1: truncated"),
        (lambda data: data[:60] + bytes([data[60] ^ 1]) + data[61:], "image 1: damaged"),
    ],
)
def test_bytes_that_are_no_image_are_told_so(server, film, damage, sentence) -> None:
    for status, answer in (server.form([("image", damage(film))]), server.post([picture(damage(film))])):
        assert status == 400
        assert answer["error"]["message"].startswith(sentence)


def test_requests_of_another_form_are_refused(server, film, model) -> None:
    path = "/v1/chat/completions"
    deep = b'{"messages": [{"role": "user", "content": [{"type": %s}]}]}' % (b"[" * 100_000)
    for body in (b"", b"{", b"[]", b"\xff", b'{"model": 1}', deep):
        assert server.ask("POST", path, body)[0] == 400
    assert server.ask("POST", path, b"x", {"Content-Type": "text/plain"})[0] == 415
    assert server.ask("POST", path, b"x", {"Content-Type": "multipart/form-data"})[0] == 400
    assert server.ask("POST", path, b"x" * 1_000_001)[0] == 413
    chunked = [b"x" * 400_000] * 3
    assert server.ask("POST", path, iter(chunked))[0] == 413  # type: ignore[arg-type]  # a length that is not stated
    assert server.form([("picture", film)])[1]["error"]["message"].startswith("Unknown file 'picture'")
    image = {"messages": [{"role": "user", "content": [picture(film)]}]}
    assert server.form([("image", film)], **image)[0] == 400
    assert server.post([picture(film)], model="theirs")[0] == server.ask("GET", "/v1/models/theirs")[0] == 404
    assert server.ask("GET", path)[0] == 405
    assert server.ask("GET", "/v1/nothing")[0] == 404
    assert server.draft(film, model="ours", user="u", frequency_penalty=0)["model"] == "ours"
    nothing = dict.fromkeys(("study", "confidence", "consensus", "stop", "n", "temperature", "stream"))
    assert text_of(server.draft(film, **nothing)) == text_of(server.draft(film))


def test_a_form_that_is_cut_is_refused(server, film, capfd) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    body = part % (b"image", b'; filename="x"', film) + part % (b"request", b"", b'{"max_tokens": 2}')
    assert server.send_form(body + b"--b--")[1]["usage"]["completion_tokens"] == 2
    for end in (b"", b"--b", b"--b-"):
        status, answer = server.send_form(body + end)
        assert (status, answer["error"]["message"]) == (400, "The form is cut: its last boundary is missing")
    assert server.send_form(b"Jane Doe")[0] == 400
    assert capfd.readouterr().err == "", "no log"


def test_the_text_of_a_form_is_utf_8_whatever_its_header_says(server, film) -> None:
    text = "größere Schatten, +2AA-"
    own = server.draft(film, study={"indication": text})
    part = b'--b\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n%s\r\n'
    request = json.dumps({"study": {"indication": text}}, ensure_ascii=False)
    for encoding in ("utf-8", "latin-1"):
        body = part % (b"image", b'; filename="x"', film) + part % (b"request", b"", request.encode(encoding))
        for charset in ("", "; charset=ascii", "; charset=utf-16", "; charset=utf-7", "; charset=none"):
            status, answer = server.send_form(body + b"--b--", charset)
            if encoding == "utf-8":
                assert (status, text_of(answer), answer["usage"]) == (200, text_of(own), own["usage"])
            else:
                assert (status, "Invalid UTF-8" in answer["error"]["message"]) == (400, True)


def test_texts_that_look_like_many_images_cost_no_time(drafter) -> None:
    prompt = replace(drafter.prompt, instruction=f"a {'<image> ' * 60}x<image>")
    assert (prompt.request, prompt.images_last) == (f"a {'<image> ' * 60}x", True)
    with pytest.raises(Refused):
        read_parts(PromptConfig(), [f"{' ' * 100_000}x", None])


def test_only_who_shows_the_token_is_answered(server, film) -> None:
    for token in ("", "Bearer", "Bearer wrong", "Basic the token", "Bearer \xfc"):
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/chat/completions")):
            status, headers, content = server.ask(method, path, b"{}", {"Authorization": token})
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert json.loads(content)["error"]["code"] == "invalid_api_key"
    assert server.ask("GET", "/health", headers={"Authorization": ""})[0] == 200


def test_more_requests_than_the_limit_are_told_to_come_again(start, model, film) -> None:
    with start(model, requests=1) as client:
        with ThreadPoolExecutor(8) as pool:
            found = [*pool.map(lambda _: client.post([picture(film)])[0], range(16))]
        assert {*found} == {200, 429}
        assert text_of(client.draft(film))


# ---- several images, priors, two turns


def test_pairs_and_priors_are_checked_and_read_as_generate_reads_them(start, drafter, studies, tmp_path) -> None:
    model = Model(replace(drafter, prompt=PromptConfig(images="pair", prior=True)), "pairs")
    films = [studies[at].main_image.path for at in (0, 1, 2)]
    pa, lateral, old = [path.read_bytes() for path in films]
    now = Study("now", "p", "test", [StudyImage(films[0], "PA"), StudyImage(films[1], "LATERAL")])
    before = Study("before", "p", "test", [StudyImage(films[2], "AP")], {"findings": "The lungs are clear."})
    now.extra = {"prior": "before"}
    row = next(one for one in generated(model, [now, before], tmp_path / "out.jsonl") if one["study_id"] == "now")
    views = {"view": ["PA", "LATERAL"]}
    report = {"sections": before.sections, "view": "AP"}
    with start(model) as client:
        uri = picture(old)["image_url"]["url"]
        both = client.draft(pa, lateral, study=views | {"prior": report | {"images": [uri]}})
        assert text_of(both) == row["prediction"]
        files = [("image", pa), ("image", lateral), ("prior_image", old)]
        assert text_of(client.form(files, study=views | {"prior": report})[1]) == row["prediction"]
        named = [{"type": "text", "text": "Frontal image: "}, picture(pa), {"type": "text", "text": "Lateral image: "}]
        assert client.post([*named, picture(lateral)], study=views)[0] == 200
        assert text_of(client.draft(pa, lateral, study=views)) != row["prediction"]
        for images, study, sentence in (
            ([lateral, pa], {"view": ["LATERAL", "PA"]}, "in this order"),
            ([pa, lateral], {}, r"has 2 images \(view not stated, view not stated\)"),
            ([pa], {"view": "LATERAL"}, r"the request has no frontal \(LATERAL\)"),
            ([pa], {"prior": {"images": [uri], "view": "LL"}}, r"the prior study has no frontal \(LL\)"),
            ([pa, lateral, old], {"view": ["PA", "LATERAL", "PA"]}, "has 3 images"),
            ([pa], {"prior": report}, "the prior study has no image"),
            ([pa], {"indication": "x"}, "does not read the indication"),
            ([pa], {"prior": {"images": [uri], "sections": {"impression": "x"}}}, "Choices: findings"),
        ):
            status, answer = client.post([picture(data) for data in images], study=study)
            assert status == 400
            assert re.search(sentence, answer["error"]["message"])


def test_films_of_several_patients_are_refused_without_their_names(start, drafter, studies, tmp_path) -> None:
    paths = [
        write_dicom(tmp_path / f"{view}.dcm", chest(40).astype(np.uint16) * 9, ViewPosition=view, PatientID=patient)
        for view, patient in (("PA", "ID-1"), ("LL", "ID-2"))
    ]
    with start(Model(replace(drafter, prompt=PromptConfig(images="pair")), "pairs")) as client:
        files = [("image", path.read_bytes()) for path in paths]
        status, answer = client.form(files)
        assert (status, answer["error"]["message"]) == (400, "By their headers the images are of several patients.")
        other = write_dicom(tmp_path / "ct.dcm", chest(40).astype(np.uint16) * 9, Modality="CT", ViewPosition="PA")
        answer = client.draft(other.read_bytes())
        assert "CT" in answer["warnings"][0]
        assert not re.search("ID-|Invented", json.dumps(answer))


def test_images_behind_the_text_and_two_turns(start, drafter, film) -> None:
    last = replace(drafter, prompt=PromptConfig(instruction="Describe it.\n<image>"))
    with start(Model(last, "last")) as client:
        own = text_of(client.draft(film))
        ask = {"type": "text", "text": "Describe it."}
        assert text_of(client.post([ask, picture(film)])[1]) == own
        for text in (ask, ask | {"text": "Else?"}):
            message = {"role": "user", "content": [text]}
            status, answer = client.form([("image", film)], messages=[message])
            assert (status, text_of(answer)) == (200, text_of(client.post([text, picture(film)])[1]))
        status, answer = client.post([picture(film), {"type": "text", "text": "Describe it."}])
        assert status == 400
        assert "the text first, then the images" in answer["error"]["message"]
    turns = replace(drafter, prompt=PromptConfig(findings_first=True))
    with start(Model(turns, "turns")) as client:
        answer = client.draft(film)
        assert isinstance(answer["observations"], str)
        assert text_of(client.post([picture(film), {"type": "text", "text": QUESTION}])[1]) == text_of(answer)
        assert client.post([picture(film), {"type": "text", "text": "Else?"}])[0] == 400


def test_models_that_were_not_built_here_are_served_too(start, tmp_path, studies, film) -> None:
    folder = save_vlm("gemma3", tmp_path / "gemma3")
    other = load_model(folder, "cpu", PromptConfig(instruction="Describe it."))
    other.name = "theirs"
    draft = other.draft(studies[0].main_image.path, max_new_tokens=TOKENS)
    with start(other) as client:
        assert text_of(client.draft(film)) == draft.text
        pieces = ["", ""]
        for choice in (choice for chunk in client.stream(film, n=2, seed=1) for choice in chunk["choices"]):
            pieces[choice["index"]] += choice["delta"].get("content", "")
        assert pieces == [one["message"]["content"] for one in client.draft(film, n=2, seed=1)["choices"]]
        status, answer = client.post([picture(film)], confidence=True)
        assert (status, answer["error"]["message"]) == (
            400,
            "logprobs and confidence need a model that was built by RadDraft",
        )


# ---- what is counted and told


def test_the_model_its_health_and_its_counts_are_told(start, model, film) -> None:
    with start(model) as client:
        (card,) = json.loads(client.ask("GET", "/v1/models")[2])["data"]
        assert card == json.loads(client.ask("GET", "/v1/models/ours")[2])
        assert (card["id"], card["prompt"]["context"]) == ("ours", ["view", "indication"])
        assert json.loads(client.ask("GET", "/health")[2]) == {"status": "ok", "model": "ours"}
        answer = client.draft(film)
        assert answer["banner"].startswith(BANNER)
        client.post("no image")
        counted = client.ask("GET", "/metrics")[2].decode()
        tokens = answer["usage"]
        assert 'raddraft_requests_total{status="400"} 1.0' in counted
        assert 'raddraft_requests_total{status="200"} 3.0' in counted
        assert f'raddraft_tokens_total{{kind="draft"}} {float(tokens["completion_tokens"])}' in counted
        assert f'raddraft_tokens_total{{kind="prompt"}} {float(tokens["prompt_tokens"])}' in counted
        assert "raddraft_batch_requests_sum 1.0" in counted
        assert "process_resident_memory_bytes" in counted


def test_pieces_join_to_the_text(drafter) -> None:
    tokenizer = drafter.processor.tokenizer
    for text in ("The heart is enlarged.", "  Herz größer ⸎ 心\n", "\u00e9\u00e9 x "):
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        pieces = Pieces(tokenizer)
        told = [pieces.add(tokens[: count + 1]) for count in range(len(tokens))]
        whole = tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
        assert not any("\ufffd" in piece for piece in told)
        assert "".join(told) + pieces.finish(whole) == whole


# ---- what goes wrong


def test_a_decoder_that_crashes_costs_its_request_only(server, pictures, film, monkeypatch) -> None:
    (reader,) = pictures._readers
    process, send = reader._process, reader._connection.send
    monkeypatch.setattr(reader._connection, "send", lambda given: (process.kill(), process.join(), send(given)))
    status, answer = server.post([picture(film)])
    assert (status, answer["error"]["message"]) == (400, "image 1: the decoder fails on it")
    assert text_of(server.draft(film))


def test_a_client_that_goes_away_is_not_waited_for(start, model, film) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": [picture(film)]}], "max_tokens": 400})
    with start(model) as client:
        connection = http.client.HTTPConnection("127.0.0.1", client.port)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        connection.close()
        end = monotonic() + 600
        while b'requests_total{status="499"} 1.0' not in client.ask("GET", "/metrics")[2]:
            assert monotonic() < end
            sleep(0.05)
        assert text_of(client.draft(film))


def test_a_stream_that_waits_leaves_the_queue_with_its_client(start, model, film) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": [picture(film)]}], "stream": True})
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
    begun, free = Event(), Event()

    def hold_up(texts: list[list[int]]) -> None:
        begun.set()
        free.wait(900)

    with start(model) as client:
        batcher = client.service.batcher
        job = a_job(model.drafter)
        job.follow = hold_up
        batcher.submit(job)
        assert begun.wait(600)
        connection = http.client.HTTPConnection("127.0.0.1", client.port)
        connection.request("POST", "/v1/chat/completions", body, headers)
        for count in (1, 0):
            end = monotonic() + 600
            while batcher.waiting != count and monotonic() < end:
                sleep(0.01)
            found = batcher.waiting
            connection.close()
            if found != count:
                break
        free.set()
        assert (found, count) == (0, 0)
        assert job.done.result(600)


def test_no_draft_is_told_twice(drafter) -> None:
    """The second of three fails while the batch is decoded; the third is told nothing, so it has another try."""
    jobs, told = [a_job(drafter) for _ in range(3)], []
    batcher = Batcher(drafter, 8)

    def fail(texts: list[list[int]]) -> None:
        raise RuntimeError("full")

    jobs[0].follow, jobs[1].follow = told.append, fail
    with batcher._changed:
        for job in jobs:
            batcher.submit(job)
    for job in jobs[:2]:
        with pytest.raises(RuntimeError, match="full"):
            job.done.result(600)
    assert jobs[2].done.result(600)
    assert [len(text) for (text,) in told] == [1]
    batcher.close()


def test_a_batch_whose_clients_have_all_gone_ends(drafter) -> None:
    jobs, told = [a_job(drafter, 300) for _ in range(2)], []
    batcher = Batcher(drafter, 8)

    def leave(texts: list[list[int]]) -> None:
        told.append(texts)
        jobs[len(told) > 2].give_up()

    jobs[0].follow = leave
    with batcher._changed:
        for job in jobs:
            batcher.submit(job)
    for job in jobs:
        with pytest.raises(Refused):
            job.done.result(600)
    assert len(told) == 3
    batcher.close()


def a_job(drafter: Drafter, tokens: int = 4) -> Job:
    (example,) = drafter.encode([Study("s", "p", "test", [StudyImage(Path("x"))])], answers=False)
    return Job(example, [Image.fromarray(chest(40))], DecodeConfig(max_new_tokens=tokens), False)


def test_one_that_cannot_be_decoded_costs_none_of_its_batch(drafter, film, tmp_path) -> None:
    examples = drafter.encode([Study("s", "p", "test", [StudyImage(tmp_path)])], answers=False)
    image = Image.fromarray(chest(40))
    config = DecodeConfig(max_new_tokens=4)
    batcher = Batcher(drafter, 8)
    jobs = [Job(examples[0], images, config, False) for images in ([image], [], [image], [image])]
    jobs[3].done.cancel()  # its client has gone
    for job in jobs:
        batcher.submit(job)
    assert jobs[0].done.result(600).draft.text == jobs[2].done.result(60).draft.text
    with pytest.raises(RuntimeError):
        jobs[1].done.result(600)
    batcher.close()
    with pytest.raises(CancelledError):
        jobs[3].done.result(600)


def test_a_stop_lets_those_in_flight_end_and_refuses_others(random_model, film, tmp_path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    before = {*Path(tmp_path).iterdir()}
    words = (random_model, "--port", "0", "--workers", "1", "--token-file", tmp_path / "token")
    with launch.Job("serve", *words) as server:
        while not (found := re.search(r"served at http://127\.0\.0\.1:(\d+)/v1", server.printed)):
            assert server.running, server.printed
            sleep(0.01)
        client = Client(int(found[1]))
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=600)
        message = {"role": "user", "content": [picture(film)]}
        body = json.dumps({"messages": [message], "stream": True, "max_tokens": 200})
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, headers)
        answer = connection.getresponse()
        first = answer.readline()
        server.signal(signal.SIGTERM)
        status, _, refused = client.ask("GET", "/v1/models")
        while status == 200:  # the signal is on its way
            status, _, refused = client.ask("GET", "/v1/models")
        assert status == 503
        assert json.loads(refused)["error"]["message"] == "The server is being stopped."
        rest = answer.read()
        assert rest.endswith(b"data: [DONE]\n\n")
        said = server.finish([128 + signal.SIGTERM])
    chunks = [json.loads(one[6:]) for one in (first + rest).decode().split("\n\n")[:-2]]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    assert TOKEN not in said
    assert {*Path(tmp_path).iterdir()} == before


def test_what_is_wrong_is_told_before_a_model_is_loaded(tmp_path, capsys) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Port {port} of 127.0.0.1 cannot be used" in run("serve", tmp_path / "no-model", "--port", port)[1]
    (tmp_path / "empty").touch()
    assert "its first line is empty" in run("serve", tmp_path, "--token-file", tmp_path / "empty")[1]
    for wrong in ("--port 70000", "--workers 0"):
        assert run("serve", tmp_path, *wrong.split())[0] == 2
    said = capsys.readouterr().err
    assert "--port must be at least 0 and at most 65535, got 70000" in said
    assert "--workers must be at least 1, got 0" in said
    assert "serve.batch_size must be at least 1" in run("serve", tmp_path, "--batch-size", 0)[1]


def test_drafts_longer_than_the_context_are_told_at_the_start(random_model) -> None:
    said = run("serve", random_model, "--port", 0, "--max-new-tokens", 100_000)[1]
    assert re.search(r"--max-new-tokens 100000: the model's context is \d+ tokens", said)


def test_the_token_of_the_environment_is_read_as_that_of_a_file(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RADDRAFT_TOKEN", " one\n")
    (tmp_path / "token").write_text(" one\n")
    assert read_token(None) == read_token(tmp_path / "token") == ("one", False)
    monkeypatch.setenv("RADDRAFT_TOKEN", " ")
    with pytest.raises(RadDraftError, match="RADDRAFT_TOKEN: its first line is empty"):
        read_token(None)
    monkeypatch.delenv("RADDRAFT_TOKEN")
    assert read_token(None)[1]
