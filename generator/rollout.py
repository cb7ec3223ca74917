"""Several texts after each prompt, which is read once: sample them, and take their tokens' log-probabilities.

transformers' `generate` with `num_return_sequences`, and a forward pass over prompts with texts, read each prompt again
for every text, and `generate` goes on with rows that have ended.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

if TYPE_CHECKING:
    from transformers import DynamicCache

TEXT = ("input_ids", "attention_mask")
TOGETHER = 32
"""Drafts of like length that are read together."""
FEW = 0.75
"""Share of rows still going below which the others leave the batch."""


def prefill(model: Any, inputs: dict[str, Tensor], repeats: int = 1) -> DynamicCache:
    """Keys and values of the prompts but for their last token, each row `repeats` times side by side."""
    from transformers import DynamicCache

    cache = DynamicCache(config=getattr(model, "module", model).config)  # DDP hides it
    cut = {key: inputs[key][:, :-1] for key in ("input_ids", "attention_mask")}
    positions = (cut["attention_mask"].cumsum(1) - 1).clamp(min=0)
    model(**(inputs | cut), position_ids=positions, cache=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(repeats)
    return cache


def read_texts(
    model: Any, inputs: dict[str, Tensor], texts: Sequence[Sequence[int]], chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits and tokens, [N, c, V] and [N, c], of texts padded to one length, for at most `chunk` tokens at a time.

    Args:
        model: a LLaVA model.
        inputs: of B studies.
        texts: N, B or a multiple of it, those of one study side by side; each has a token.
        chunk: tokens; the logits of many would take much memory.
    """
    repeats = len(texts) // len(inputs["input_ids"])
    prompts = {name: inputs[name].repeat_interleave(repeats, 0) for name in TEXT}
    yield from _continue(model, prefill(model, inputs, repeats), prompts, texts, chunk)


def _continue(
    model: Any, cache: DynamicCache, prompts: dict[str, Tensor], texts: Sequence[Sequence[int]], chunk: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """`read_texts` of N prompts whose keys and values are in the cache."""
    before, mask = prompts["input_ids"][:, -1:], prompts["attention_mask"]
    last = mask.sum(1, keepdim=True) - 1
    width = max(map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=before.device)
    fed = torch.cat([before, tokens[:, :-1]], 1)
    for at in range(0, width, chunk):
        part = fed[:, at : at + chunk]
        columns = torch.arange(at, at + part.shape[1], device=part.device)
        logits = model(
            input_ids=part,
            attention_mask=torch.cat([mask, mask.new_ones(len(mask), int(columns[-1]))], 1),
            position_ids=last + columns,
            cache=cache,
            use_cache=True,
        ).logits
        yield logits, tokens[:, at : at + chunk]


@torch.inference_mode()
def token_log_probs(
    model: Any, inputs: dict[str, Tensor], texts: Sequence[Sequence[int]], chunk: int = 16
) -> list[list[float]]:
    """Log-probability of each token under the model as it is, without temperature or other controls.

    Args:
        model, inputs, texts, chunk: as for `read_texts`.
    """
    parts = [
        logits.float().log_softmax(-1).gather(2, tokens[..., None])[..., 0]
        for logits, tokens in read_texts(model, inputs, texts, chunk)
    ]
    return [line[: len(text)] for line, text in zip(torch.cat(parts, 1).tolist(), texts, strict=True)]


def draft_log_probs(
    model: Any, inputs: dict[str, Tensor], drafts: Sequence[Sequence[int]], temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of each token, with its gradient, and entropy at its place, both [N, T], at a temperature.

    Drafts of like length are read together, so that little of what is read is padding.

    Args:
        model: a LLaVA model, as it is or wrapped for training.
        inputs: of B studies.
        drafts: N, B or a multiple of it, those of one study side by side; each has a token.
        temperature: that they were sampled at.
    """
    cache, longest = prefill(model, inputs), max(map(len, drafts))
    order = sorted(range(len(drafts)), key=lambda i: len(drafts[i]))
    count = -(-len(order) // TOGETHER)
    found: list[tuple[Tensor, Tensor]] = []
    for rows in (order[len(order) * i // count : len(order) * (i + 1) // count] for i in range(count)):
        study = torch.tensor(rows, device=inputs["input_ids"].device) // (len(drafts) // len(inputs["input_ids"]))
        prompts, texts = {name: inputs[name][study] for name in TEXT}, [drafts[row] for row in rows]
        ((logits, tokens),) = _continue(model, _select(cache, study), prompts, texts, longest)
        logits = logits.float() if temperature == 1 else logits.float() / temperature
        log_probs = -cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
        with torch.no_grad():
            total = logits.logsumexp(-1)
            entropy = total - ((logits - total[..., None]).exp() * logits).sum(-1)
        found.append((pad(log_probs, (0, longest - tokens.shape[1])), pad(entropy, (0, longest - tokens.shape[1]))))
    back = torch.tensor(order, device=inputs["input_ids"].device).argsort()
    return torch.cat([one for one, _ in found])[back], torch.cat([other for _, other in found])[back]


def _select(cache: DynamicCache, rows: Tensor) -> DynamicCache:
    """A cache of these rows of another, which stays as it is."""
    selected = copy(cache)
    selected.layers = [copy(layer) for layer in cache.layers]
    selected.batch_select_indices(rows)
    return selected


def uniform_draws(seed: str, count: int, length: int) -> Tensor:
    """Numbers in [0, 1) [count, length], the same for the same seed on every machine and process."""
    number = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1
    return torch.rand(count, length, generator=torch.Generator().manual_seed(number))


@torch.no_grad()
def sample(
    model: Any, inputs: dict[str, Tensor], draws: Tensor, temperature: float, ends: Collection[int]
) -> list[list[int]]:
    """Sample texts after each prompt, up to an end token, which is part of them, or to the limit.

    A token is what its number draws from the cumulated probabilities, so a text depends on its own numbers only, not on
    the batch it is in, but for rounding.

    Args:
        model: a LLaVA model.
        inputs: of B studies.
        draws: numbers in [0, 1) for each study, text and token [B, G, T]; NaN takes the most likely token.
        temperature: divides the logits.
        ends: tokens that end a text.

    Returns:
        B * G lists of tokens, those of one study side by side.
    """
    texts: list[list[int]] = [[] for _ in range(draws.shape[0] * draws.shape[1])]
    device = inputs["input_ids"].device
    draws, stops = draws.flatten(0, 1).to(device), torch.tensor(sorted(ends), device=device)
    repeats = len(draws) // len(inputs["input_ids"])
    cache = prefill(model, inputs, repeats)
    token = inputs["input_ids"][:, -1:].repeat_interleave(repeats, 0)  # [R, 1]
    mask = inputs["attention_mask"].repeat_interleave(repeats, 0)
    place = mask.sum(1, keepdim=True) - 1
    rows = torch.arange(len(draws), device=device)  # the text that each row of the batch writes
    going = torch.ones_like(rows, dtype=torch.bool)
    for step in range(draws.shape[1]):
        logits = model(input_ids=token, attention_mask=mask, position_ids=place, cache=cache, use_cache=True).logits[
            :, -1
        ]
        token = _choose(logits.float(), draws[rows, step], temperature)[:, None]
        for row, chosen, goes in zip(rows.tolist(), token[:, 0].tolist(), going.tolist(), strict=True):
            if goes:
                texts[row].append(chosen)
        going &= ~torch.isin(token[:, 0], stops)
        left = int(going.sum())
        if not left:
            break
        if left < FEW * len(going):
            keep = going.nonzero()[:, 0]
            cache.batch_select_indices(keep)
            token, mask, place, rows, going = (one[keep] for one in (token, mask, place, rows, going))
        mask, place = torch.cat([mask, mask.new_ones(len(mask), 1)], 1), place + 1
    return texts


def _choose(logits: Tensor, draws: Tensor, temperature: float) -> Tensor:
    """The token that each number draws from the logits' probabilities [R, V] -> [R]; the most likely one for NaN."""
    cumulated = (logits / temperature).softmax(-1).cumsum(-1)
    drawn = torch.searchsorted(cumulated, (draws.nan_to_num() * cumulated[:, -1])[:, None], right=True)[:, 0]
    return torch.where(draws.isnan(), logits.argmax(-1), drawn.clamp(max=logits.shape[1] - 1))
