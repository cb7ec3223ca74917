"""Drafts that a server decodes, which has loaded the same model folder: vLLM, or another one of OpenAI's kind.

    vllm serve runs/first/model --model-impl transformers --dtype float32
    raddraft generate --model runs/first/model --engine http://127.0.0.1:8000/v1 --studies … --out …

This project reads the files, maps their gray values and writes the prompts; the server gets 8-bit pictures and chat
messages, and no other field of a study. It is a client since vLLM pins versions of torch and transformers that are not
those of this project; how many GPUs or machines the server spans is the server's own business.
"""

from __future__ import annotations

import base64
import io
import json
import os
import urllib.error
import urllib.request
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from generator.config import DecodeConfig
from generator.data import Example
from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from PIL import Image

TOKEN = "RADDRAFT_ENGINE_TOKEN"
"""The environment variable with the token that the server wants."""
CHECK = 16
"""Texts that are compared, where nothing else is asked for."""
SECONDS = 600
"""Within which an answer has to come."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def connect(url: str | None, check: int | None, compares: bool) -> tuple[Engine | None, int]:
    """The server at an address, if there is one, and how many of its texts are to be compared with our own.

    Args:
        url: the address.
        check: that number, if it is given; by default 16.
        compares: whether its texts are such as can be compared.

    Raises:
        RadDraftError: there is nothing to compare, or the server cannot be reached.
    """
    if check and not (url and compares):
        raise RadDraftError(f"--check {check} compares greedy drafts of an --engine; leave it out")
    count = CHECK if check is None else check
    return (Engine(url), count if compares else 0) if url else (None, 0)


class EngineError(RadDraftError):
    """The server cannot be reached, refuses a request, or reads another prompt than this project's."""


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
        self.url, self._token = url.rstrip("/"), os.environ.get(TOKEN, "") if token is None else token
        address = urlsplit(url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise EngineError(f"--engine {url} is no address; give one such as http://127.0.0.1:8000/v1")
        if address.scheme == "http" and address.hostname not in LOOPBACK:
            warnings.warn(f"pictures and prompts go unencrypted to {address.hostname}", stacklevel=2)
        served = self._call("/models")["data"]
        if model is None and len(served) != 1:
            names = ", ".join(one["id"] for one in served) or "none"
            raise EngineError(f"{self.url} serves {len(served)} models ({names}); start it with the one model to use")
        self.model = model or served[0]["id"]
        self.owner = next((one.get("owned_by") for one in served), None) or "a server"

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
            EngineError: the server does not answer, refuses, or reads another prompt.
        """
        pictures = map(_image_part, images)
        content = [
            {**message, "content": [next(pictures) if part["type"] == "image" else part for part in message["content"]]}
            for message in messages
        ]
        sampling: dict[str, Any] = {"temperature": 0}
        if config.samples:
            sampling = {"temperature": config.heat, "top_p": config.top_p, "n": config.candidates}
            sampling |= {} if seed is None else {"seed": seed}
        body = {"model": self.model, "messages": content, "max_tokens": config.max_new_tokens} | sampling
        if self.owner == "vllm":
            body["return_token_ids"] = True
        answer = self._call("/chat/completions", body)
        self._check_prompt(answer, example)
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        tokens = [choice.get("token_ids") for choice in choices]
        return Reply(
            [(choice["message"]["content"] or "").strip() for choice in choices],
            tokens if all(tokens) else None,
            [choice["finish_reason"] == "length" for choice in choices],
        )

    def _check_prompt(self, answer: Mapping[str, Any], example: Example) -> None:
        """Raise EngineError unless the server read the tokens of an example, or as many if it does not tell which."""
        own, read = example.prompt, answer.get("prompt_token_ids")
        count = (answer.get("usage") or {}).get("prompt_tokens")
        if (read is not None and read != own) or (read is None and count not in (None, len(own))):
            raise EngineError(
                f"Study {example.study_id!r}: {self.url} reads another prompt ({count} tokens) than this model "
                f"({len(own)} tokens); does it serve the same folder, and does a text hold a control token?"
            )

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._token}"} if self._token else {}
        )
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with _opener().open(request, timeout=SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise EngineError(f"{self.url} answers {error.code}: {_sentence(error.read())}") from None
        except (OSError, ValueError) as error:
            raise EngineError(f"{self.url} does not answer: {error}") from None


def _opener() -> urllib.request.OpenerDirector:
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))  # pictures go nowhere but to the server


def _sentence(body: bytes) -> str:
    """What an error in OpenAI's form says."""
    try:
        return str(json.loads(body)["error"]["message"])[:500]
    except (ValueError, KeyError, TypeError):
        return body[:200].decode(errors="replace")


def _image_part(image: Image.Image) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
