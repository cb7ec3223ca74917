"""What was decoded -> answers in OpenAI's form: whole, or piece by piece."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Sequence
from typing import Any

from generator.api import Model
from generator.confidence import confidence
from generator.consensus import choose
from generator.serving.batcher import Written
from generator.serving.studies import Ready
from generator.serving.wire import Chat


class Pieces:
    """The tokens of a draft as they come -> pieces of its text, which join to the whole.

    White space and halves of characters are held back until it is known what follows.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self._told = tokenizer, ""

    def add(self, tokens: Sequence[int]) -> str:
        """What is new in the text of these tokens, which are all so far."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return self.finish(re.sub(r"[\s\ufffd]+$", "", text.lstrip()))

    def finish(self, text: str) -> str:
        """What is new in a text."""
        if not text.startswith(self._told):
            return ""
        piece, self._told = text[len(self._told) :], text
        return piece


class Answer:
    """The answer to one request.

    Args:
        model: writes it; its name is that of the answer.
        chat: the request.
        ready: what is drafted.
    """

    def __init__(self, model: Model, chat: Chat, ready: Ready) -> None:
        self.model, self.chat, self.ready = model, chat, ready
        self.tokenizer = model.drafter.processor.tokenizer
        self._pieces = [Pieces(self.tokenizer) for _ in range(chat.count)]
        self._head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model.name}

    def whole(self, written: Written) -> dict[str, Any]:
        """The whole answer."""
        texts, scores = written.draft.candidates, None
        order = list(range(len(texts)))
        if self.chat.consensus:
            (choice,) = choose([texts], self.chat.consensus)
            scores = choice.scores
            order.sort(key=lambda at: (at != choice.index, -choice.scores[at]))
        choices = []
        for place, at in enumerate(order):
            message = {"role": "assistant", "content": texts[at], "refusal": None}
            choice_row = {"index": place, "message": message} | self._end(written, at)
            choices.append(choice_row if scores is None else choice_row | {"consensus": scores[at]})
        answer = self._head | {"object": "chat.completion", "choices": choices, "usage": self.usage(written)}
        return answer | self._about() | self._observed(written)

    def begin(self) -> list[dict[str, Any]]:
        """The first chunk of each draft."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk(at, delta) | self._about() for at in range(self.chat.count)]

    def go_on(self, tokens: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """Chunks of what is new in the drafts of these tokens, which are all so far."""
        pieces = [pieces.add(text) for pieces, text in zip(self._pieces, tokens, strict=True)]
        return [self._chunk(at, {"content": piece}) for at, piece in enumerate(pieces) if piece]

    def end(self, written: Written) -> list[dict[str, Any]]:
        """The rest of each draft, then its last chunk, and the usage if it is asked for."""
        chunks = []
        for at, (pieces, text) in enumerate(zip(self._pieces, written.draft.candidates, strict=True)):
            if piece := pieces.finish(text):
                chunks.append(self._chunk(at, {"content": piece}))
            last = self._chunk(at, {})
            last["choices"][0] |= self._end(written, at)
            chunks.append(last | self._observed(written))
        if self.chat.stream_options and self.chat.stream_options.include_usage:
            chunks.append(self._chunk(0, {}) | {"choices": [], "usage": self.usage(written)})
        return chunks

    @staticmethod
    def usage(written: Written) -> dict[str, int]:
        """Tokens of prompt and drafts."""
        prompt, drafts = written.prompt_tokens, sum(map(len, written.tokens))
        return {"prompt_tokens": prompt, "completion_tokens": drafts, "total_tokens": prompt + drafts}

    def _about(self) -> dict[str, Any]:
        return {"banner": self.model.banner, "warnings": self.ready.warnings}

    def _observed(self, written: Written) -> dict[str, Any]:
        return {} if written.draft.observations is None else {"observations": written.draft.observations}

    def _chunk(self, at: int, delta: dict[str, Any]) -> dict[str, Any]:
        choice = {"index": at, "delta": delta, "finish_reason": None, "logprobs": None}
        return self._head | {"object": "chat.completion.chunk", "choices": [choice]}

    def _end(self, written: Written, at: int) -> dict[str, Any]:
        """What is told of a draft when it is whole."""
        draft = written.draft
        end: dict[str, Any] = {"finish_reason": "length" if draft.cut and draft.cut[at] else "stop", "logprobs": None}
        if self.chat.logprobs and written.log_probs:
            given = draft.candidates[at], written.tokens[at], written.log_probs[at]
            end["logprobs"] = {"content": self._log_probs(*given)}
        if self.chat.confidence and draft.log_probs:
            end["confidence"] = confidence(draft.candidates, draft.log_probs, at)
        return end

    def _log_probs(self, text: str, tokens: Sequence[int], log_probs: Sequence[float]) -> list[dict[str, Any]]:
        """For each token of the text its letters and its log-probability; the end token has no letters."""
        pieces = Pieces(self.tokenizer)
        found = [pieces.add(tokens[: count + 1]) for count in range(len(tokens))]
        found[-1] += pieces.finish(text)
        return [
            {"token": piece, "logprob": value, "bytes": list(piece.encode(errors="replace")), "top_logprobs": []}
            for piece, value in zip(found, log_probs, strict=True)
        ]
