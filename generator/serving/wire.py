"""What comes and goes over the wire: OpenAI's chat completions, with fields of this project beside them.

Requests are JSON whose images are data URIs, or multipart forms with the files `image` and `prior_image` and the JSON
in the field `request`. A field that is not known, or whose value cannot be used, is refused with a sentence.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import re
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec

from generator.config import DecodeConfig
from generator.consensus import check_utilities
from generator.web import Refused
from raddraft.errors import RadDraftError

MOST_CHOICES = 32
"""Drafts of one request."""
MOST_IMAGES = 16
"""Images of one request."""

LEAST_HEAT = 1e-3
"""Temperatures below are greedy: logits divided by them overflow."""

logging.getLogger("python_multipart").addHandler(logging.NullHandler())  # it would quote forms

Views = str | list[str | None] | None
Positive = Annotated[int, msgspec.Meta(ge=1)]


class _Form(msgspec.Struct, forbid_unknown_fields=True):
    """A part of a request; other fields are refused."""


class ImageUrl(_Form):
    """An image of a message."""

    url: str
    detail: str | None = None
    """Of no account: every image is read at the size of the model."""


class ImagePart(_Form, tag_field="type", tag="image_url"):
    """An image of a message."""

    image_url: ImageUrl


class TextPart(_Form, tag_field="type", tag="text"):
    """A text of a message."""

    text: str


class Message(_Form):
    """A message of the chat."""

    role: str
    content: str | list[TextPart | ImagePart]


class Prior(_Form):
    """The subject's previous study."""

    images: list[str] = []
    """Data URIs; of a form, its files `prior_image`."""
    view: Views = None
    sections: dict[str, str] = {}
    """Its report."""


class StudyFields(_Form):
    """What is known of the study beside its images."""

    view: Views = None
    """Of the only image, or of each."""
    indication: str | None = None
    sections: dict[str, str] = {}
    """Other sections that the model's prompt holds."""
    prior: Prior | None = None


class StreamOptions(_Form):
    """How to stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ResponseFormat(_Form):
    """The form of the answer."""

    type: str


class Chat(_Form):
    """A request for a completion; see docs/serving.md for the fields."""

    messages: list[Message] = []
    model: str | None = None
    n: Annotated[int, msgspec.Meta(ge=1, le=MOST_CHOICES)] | None = None
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    study: StudyFields | None = None
    confidence: bool | None = None
    speculate: bool | None = None
    consensus: list[str] | None = None
    # What may be sent as long as it asks for nothing.
    top_logprobs: Annotated[int, msgspec.Meta(ge=0, le=0)] | None = None
    frequency_penalty: Annotated[float, msgspec.Meta(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, msgspec.Meta(ge=0, le=0)] | None = None
    response_format: ResponseFormat | None = None
    stop: None = None
    user: str | None = None

    @property
    def count(self) -> int:
        """Number of drafts."""
        return self.n or 1

    def decoding(self, max_new_tokens: int) -> DecodeConfig:
        """How to decode: greedy, unless a temperature or several drafts are asked for.

        Raises:
            RadDraftError: settings that contradict each other.
        """
        limit, other = self.max_tokens, self.max_completion_tokens
        if limit and other and limit != other:
            raise Refused(400, f"max_tokens is {limit} and max_completion_tokens {other}; send one of them")
        heated = (self.temperature or 0) >= LEAST_HEAT
        if self.count > 1 and self.temperature is not None and not heated:
            raise Refused(
                400, f"n {self.count} needs a temperature of at least {LEAST_HEAT}; greedy drafts are the same"
            )
        sampled = self.count > 1 or heated
        if self.top_p not in (None, 1) and not sampled:
            raise Refused(400, f"top_p {self.top_p} needs a temperature above 0; without one the draft is greedy")
        return DecodeConfig(
            max_new_tokens=limit or other or max_new_tokens,
            sample=sampled,
            candidates=self.count,
            temperature=self.temperature if sampled else None,
            top_p=(self.top_p or 1.0) if sampled else 1.0,
            seed=(self.seed or 0) if sampled else 0,
            confidence=bool(self.confidence or self.logprobs),
        )


@dataclass
class Asked:
    """A request that was read."""

    chat: Chat
    study: StudyFields
    """What it says of the study."""
    parts: list[str | None]
    """The message: its texts, and None for each image; of a form its texts alone."""
    images: list[bytes]
    """Content of the image files, in the order of the message."""
    prior_images: list[bytes]


def read_json(body: bytes) -> Asked:
    """The request in a body of JSON. Raises Refused if it is none."""
    chat = _decode(body)
    content = _content(chat.messages)
    urls = [part.image_url.url for part in content if isinstance(part, ImagePart)]
    study = chat.study or StudyFields()
    prior = study.prior.images if study.prior else []
    if len(urls) + len(prior) > MOST_IMAGES:
        raise Refused(400, f"The request has {len(urls) + len(prior)} images; at most {MOST_IMAGES} are taken.")
    parts = [part.text if isinstance(part, TextPart) else None for part in content]
    images = [_data(url, f"image {number}") for number, url in enumerate(urls, 1)]
    prior_images = [_data(url, f"prior image {number}") for number, url in enumerate(prior, 1)]
    return Asked(chat, study, parts, images, prior_images)


async def read_form(body: bytes, headers: Any) -> Asked:
    """The request in a multipart form. Raises Refused if it is none."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    class Parser(MultiPartParser):
        ended = False

        def on_part_begin(self) -> None:
            super().on_part_begin()
            self._charset = "latin-1"  # leaves bytes as they are: JSON is UTF-8, whatever the form's header says

        def on_end(self) -> None:
            self.ended = True

    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    parser = Parser(headers, stream(), max_files=MOST_IMAGES, max_fields=1)
    parser.spool_max_size = len(body) + 1  # nothing of it goes to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        raise Refused(400, f"The form cannot be read: {getattr(error, 'message', None) or error}") from None
    if not parser.ended:
        raise Refused(400, "The form is cut: its last boundary is missing")
    files: dict[str, list[bytes]] = {"image": [], "prior_image": []}
    chat = Chat()
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) and name in files:
            files[name].append(await value.read())
        elif isinstance(value, str) and name == "request":
            chat = _decode(value.encode("latin-1"))
        else:
            kind = "file" if isinstance(value, UploadFile) else "field"
            raise Refused(400, f"Unknown {kind} {name!r} of the form. Choices: files image, prior_image, field request")
    content, study = _content(chat.messages) if chat.messages else [], chat.study or StudyFields()
    if any(isinstance(part, ImagePart) for part in content) or (study.prior and study.prior.images):
        raise Refused(400, "The form has images as files and its request has some, too; send them in one way.")
    if files["prior_image"] and study.prior is None:
        study.prior = Prior()
    parts: list[str | None] = [part.text for part in content if isinstance(part, TextPart)]
    return Asked(chat, study, parts, files["image"], files["prior_image"])


def _decode(body: bytes) -> Chat:
    try:
        chat = msgspec.json.decode(body, type=Chat)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise Refused(400, f"The request cannot be used: {error}") from None
    if chat.response_format and chat.response_format.type != "text":
        raise Refused(400, f"response_format {chat.response_format.type!r} is not known. Choices: text")
    if chat.consensus:
        try:
            check_utilities(chat.consensus)
        except RadDraftError as error:
            raise Refused(400, f"consensus: {error}") from None
        if chat.count < 2 or chat.stream:
            raise Refused(400, "consensus chooses among several drafts: it needs n above 1, and no stream")
    return chat


def _content(messages: Sequence[Message]) -> list[TextPart | ImagePart]:
    """The parts of the only message."""
    roles = [message.role for message in messages]
    if roles != ["user"]:
        raise Refused(400, f"The model takes one message, of role user; these are {', '.join(roles) or 'none'}.")
    content = messages[0].content
    return [TextPart(content)] if isinstance(content, str) else content


def _data(url: str, what: str) -> bytes:
    """Content of a data URI."""
    head, comma, data = url.partition(",")
    if not (comma and re.fullmatch(r"data:[^,]*;base64", head, re.IGNORECASE)):
        raise Refused(
            400,
            f"{what.capitalize()} is no data URI (data:image/png;base64,…); this server fetches no address.",
        )
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refused(400, f"{what.capitalize()} is not valid base64.") from None


def error_body(status: int, text: str) -> dict[str, Any]:
    """An error in OpenAI's form."""
    kinds = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": {401: "invalid_api_key"}.get(status)}}


def event(value: Any) -> str:
    """A server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value)}\n\n"
