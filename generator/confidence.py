"""Confidence of the sentences of a draft: token log-probabilities, and agreement among candidates.

Neither tells whether a sentence is true; both tell where the model was uncertain.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from metrics.caveats import unreadable
from metrics.rules import label
from raddraft.errors import RadDraftError
from raddraft.text import split_sentences


def sentence_log_probs(tokenizer: Any, tokens: Sequence[int], log_probs: Sequence[float]) -> list[float]:
    """Mean log-probability of the tokens of each sentence; the end token belongs to the last one.

    Args:
        tokenizer: the model's tokenizer.
        tokens: the whole draft [n].
        log_probs: of each token [n].
    """

    def decode(count: int) -> str:
        return tokenizer.decode(tokens[:count], skip_special_tokens=True, clean_up_tokenization_spaces=False)

    text = decode(len(tokens))
    means, start, end = [], 0, 0
    for sentence in split_sentences(text):
        end = text.index(sentence, end) + len(sentence)
        stop = max(start + 1, bisect_right(range(len(tokens) + 1), end, key=lambda count: len(decode(count))) - 1)
        means.append(round(sum(log_probs[start:stop]) / (stop - start), 4))
        start = stop
    return means


def agreement(text: str, others: Sequence[str]) -> list[float]:
    """For each sentence of a draft the share of the other candidates, in [0, 1], that state the same.

    A candidate states the same if it has the same value (positive, negative, uncertain) as the sentence for every
    observation that the rule-based labeler finds in the sentence, or for a sentence without observations if it
    contains the sentence word for word. Side, size and location are not compared. The labeler reads English: where
    most candidates hold hardly an English word, all sentences are compared word for word, with a warning.

    Raises:
        RadDraftError: there are no other candidates.
    """
    if not others:
        raise RadDraftError("There are no other candidates to agree with")
    foreign = unreadable([text, *others])["reports"] > 0.5
    if foreign:
        warnings.warn(
            "confidence: most candidates of a study hold hardly an English word, so the rule-based labeler cannot read "
            "them; their sentences are compared word for word",
            stacklevel=2,
        )
    labels = [label(other) for other in others]
    sentences = [set(split_sentences(other.lower())) for other in others]
    shares = []
    for sentence in split_sentences(text):
        said = {name: value for name, value in label(sentence).items() if value is not None and name != "No Finding"}
        said = {} if foreign else said
        same = [
            all(found[name] == value for name, value in said.items()) if said else sentence.lower() in lines
            for found, lines in zip(labels, sentences, strict=True)
        ]
        shares.append(sum(same) / len(same))
    return shares


def confidence(candidates: Sequence[str], log_probs: Sequence[Sequence[float]], chosen: int) -> list[dict[str, Any]]:
    """{"sentence", "log_prob"} and with several candidates "agreement" for each sentence of the chosen one.

    Args:
        candidates: drafts of one study.
        log_probs: for each candidate those of its sentences.
        chosen: position of the chosen candidate.
    """
    others = [text for position, text in enumerate(candidates) if position != chosen]
    pairs = zip(split_sentences(candidates[chosen]), log_probs[chosen], strict=True)
    rows: list[dict[str, Any]] = [{"sentence": text, "log_prob": value} for text, value in pairs]
    if others:
        for row, share in zip(rows, agreement(candidates[chosen], others), strict=True):
            row["agreement"] = round(share, 4)
    return rows
