"""Text -> token ids: no string of a report, section, prior or instruction becomes a control token.

"</s>" in a report is four characters and not its end, "<image>" in an indication is no image. A control string is
broken up by a mark before the chat template, the processor and the tokenizer read it, and the tokens of the mark are
taken out again; what remains spells the text as it is. Texts without control strings keep the tokens that they had.

transformers' `sanitize_control_tokens` (5.24) is not used: it leaves the strings whole while the template reads them
(which may cut an answer at its "</think>"), knows neither added tokens that the template does not name nor the
placeholders of processors, and refuses tokenizers that find special tokens in their vocabulary (Unigram).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from raddraft.errors import RadDraftError

MARK = "⸎"
"""A scribe's sign that no report holds and no normalization changes; some tokenizers drop control characters."""

# Added tokens that are not special but steer a model all the same: <think>, [TOOL_CALLS], <|user|>, <loc0001>. Words
# that a tokenizer was given and runs of blanks (Gemma's "\n\n") are text.
_BRACKETED = re.compile(r"[<\[{|].*[>\]}|]", re.DOTALL)


class TextTokens:
    """The token ids of texts by a model's tokenizer, of which none is a control token.

    Args:
        tokenizer: of any kind that transformers knows.
        processor: the model's processor, if it has one; placeholders that it replaces are control strings, too.
    """

    def __init__(self, tokenizer: Any, processor: Any = None) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        tokens = added.values() if isinstance(added, Mapping) else ()  # mistral-common's tokenizers keep none there
        found = {str(token) for token in tokens if token.special or _BRACKETED.fullmatch(str(token))}
        found |= {str(token) for token in tokenizer.all_special_tokens}
        settings = vars(processor) if processor is not None else {}
        found |= {str(value) for name, value in settings.items() if name.endswith("_token") and value}
        # A single character is a letter like any other (some pad with "!").
        strings = sorted((text for text in found if len(text.strip()) > 1), key=len, reverse=True)
        self._control = re.compile("|".join(map(re.escape, strings)) or "(?!)")
        letter, marked = self._encode(["a", f"a{MARK}"])
        self._mark = marked[len(letter) :]  # empty where the tokenizer drops what it does not know

    def escape(self, text: str) -> str:
        """The text with a mark after the first character of every control string."""
        while found := self._control.search(text):
            text = text[: found.start() + 1] + MARK + text[found.start() + 1 :]
        return text

    def escape_messages(self, messages: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Chat messages with the texts of their parts escaped."""
        return [
            {**message, "content": [self._escape_part(part) for part in message["content"]]} for message in messages
        ]

    def _escape_part(self, part: dict[str, Any]) -> dict[str, Any]:
        return part | {"text": self.escape(part["text"])} if part["type"] == "text" else part

    def of_texts(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids of plain texts; none is a control token."""
        return self.of_escaped([self.escape(text) for text in texts])

    def of_escaped(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts made of escaped parts and a chat template's own control tokens.

        Raises:
            RadDraftError: the tokenizer does not keep a mark apart from what stands around it.
        """
        if not texts:
            return []
        found = zip(texts, self._encode(texts), strict=True)
        return [
            [ids[i] for i in self._keep(ids, text.count(MARK), text)] if MARK in text else ids for text, ids in found
        ]

    def drop_marks(self, inputs: Mapping[str, Any], texts: Sequence[str]) -> dict[str, Any]:
        """A processor's padded inputs without the tokens of marks, padded on the left again.

        Args:
            inputs: input_ids and attention_mask [B, L], and what else the processor gives.
            texts: the escaped texts that the rows were made of.
        """
        if not any(MARK in text for text in texts):
            return dict(inputs)
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        rows = []
        for text, row, real in zip(texts, ids, mask, strict=True):
            columns = real.nonzero()[:, 0]
            rows.append(columns[self._keep(row[columns].tolist(), text.count(MARK), text)])
        width = max(map(len, rows))
        cut = dict(inputs)
        for name, value in inputs.items():
            if isinstance(value, torch.Tensor) and value.shape == ids.shape:
                cut[name] = value.new_full((len(rows), width), self.tokenizer.pad_token_id if value is ids else 0)
                for number, columns in enumerate(rows):
                    cut[name][number, width - len(columns) :] = value[number, columns]
        return cut

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]

    def _keep(self, ids: Sequence[int], marks: int, text: str) -> list[int]:
        """Positions of the ids that do not belong to one of so many marks."""
        size, kept, at = len(self._mark), [], 0
        if not marks or not size:
            return list(range(len(ids)))
        while at < len(ids):
            if list(ids[at : at + size]) == self._mark:
                at += size
                marks -= 1
            else:
                kept.append(at)
                at += 1
        if marks:
            where = text.index(MARK)
            raise RadDraftError(
                f"{text[max(0, where - 20) : where + 20].replace(MARK, '')!r} holds a control token of the language "
                f"model, which its tokenizer ({type(self.tokenizer).__name__}) cannot read as text; take it out"
            )
        return kept
