"""One batch -> the tokens of its drafts: greedy, sampled, by beams or with proposed tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from generator.config import DecodeConfig
from generator.drafter import MOST_OBSERVATIONS, Drafter
from generator.rollout import prefill
from generator.speculate import Speculator, speculate
from generator.ties import Alone, settles

# Entries of a batch that are not for `generate`: it counts positions itself, and the rest is for training.
NOT_FOR_GENERATE = ("position_ids", "labels", "errors")


@dataclass
class Decoded:
    """The tokens of a batch of B studies."""

    inputs: dict[str, torch.Tensor]
    """What the model read, on its device."""
    tokens: list[list[int]]
    """Of each draft, with its end token if it has one; the candidates of a study side by side."""
    observations: list[str | None]
    """Of each study, if the model was trained to name them first."""
    lost: set[int] = field(default_factory=set)
    """Studies whose tokens mean nothing: the model computed NaN."""


Follow = Callable[[list[list[int]]], None]
"""Is given the tokens of all drafts of a batch so far, again and again."""


@torch.inference_mode()
def decode_tokens(
    drafter: Drafter,
    batch: dict[str, Any],
    config: DecodeConfig,
    number: int = 0,
    speculator: Speculator | None = None,
    follow: Follow | None = None,
) -> Decoded:
    """Decode one collated batch. Greedy texts of float32 models do not depend on the batch, see `generator.ties`.

    Args:
        drafter: the model.
        batch: what its dataset's `collate` gave.
        config: how to decode.
        number: of the batch, which seeds sampling.
        speculator: proposes tokens.
        follow: is told the tokens as they come.
    """
    model: Any = drafter.model
    if config.samples:
        torch.manual_seed(config.seed * 1_000_003 + number)
    inputs = {key: value.to(model.device) for key, value in batch.items() if key not in NOT_FOR_GENERATE}
    inputs = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    observations: list[Any] = [None] * len(inputs["input_ids"])
    numbers = _Numbers(len(observations))
    if drafter.prompt.findings_first:
        inputs, observations = _name_observations(drafter, inputs, numbers)
    ends = end_tokens(model)
    alone = _alone(drafter, inputs, config, ends)
    if speculator is not None:
        tokens = speculate(model, inputs, speculator, config.max_new_tokens, ends, alone, follow, numbers.lost)
    else:
        arguments = config.arguments() | _listeners(numbers, alone, follow, ends)
        if config.candidates > 1 and drafter.kind == "llava":
            tokens = _sample(model, inputs, config.candidates, arguments)
        else:
            arguments |= {"num_return_sequences": config.candidates}
            tokens = model.generate(**inputs, **arguments)[:, inputs["input_ids"].shape[1] :].tolist()
    return Decoded(inputs, [_until_end(line, ends) for line in tokens], observations, numbers.lost)


class _Numbers:
    """A logits processor of transformers' `generate` that notes the studies of which it is given NaN.

    Args:
        count: of studies, each of which has as many rows as another.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.lost: set[int] = set()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Scores [N, V], without NaN, at which sampling would stop."""
        wrong = scores.isnan().any(1)
        if wrong.any():
            self.lost |= {row * self.count // len(scores) for row in wrong.nonzero()[:, 0].tolist()}
            scores = scores.masked_fill(wrong[:, None], 0)
        return scores


def _alone(drafter: Drafter, inputs: dict[str, torch.Tensor], config: DecodeConfig, ends: set[int]) -> Alone | None:
    """What settles near ties of plain greedy decoding."""
    plain = not config.samples and config.num_beams == 1 and not config.limits
    return Alone(drafter.model, inputs, ends) if plain and drafter.kind == "llava" and settles(drafter.model) else None


def _listeners(numbers: _Numbers, alone: Alone | None, follow: Follow | None, ends: set[int]) -> dict[str, Any]:
    """Arguments of transformers' `generate` that let these take part."""
    arguments: dict[str, Any] = {"logits_processor": [numbers] if alone is None else [numbers, alone]}
    return arguments if follow is None else arguments | {"streamer": _Streamer(follow, ends)}


class _Streamer:
    """A streamer of transformers' `generate`, of several rows."""

    def __init__(self, follow: Follow, ends: set[int]) -> None:
        self.follow, self.ends = follow, ends
        self.texts: list[list[int]] = []

    def put(self, tokens: torch.Tensor) -> None:
        """The prompts come first, [B, L], then the next token of each row, [N]."""
        if tokens.dim() > 1:
            return
        self.texts = self.texts or [[] for _ in tokens]
        for text, token in zip(self.texts, tokens.tolist(), strict=True):
            if not text or text[-1] not in self.ends:
                text.append(token)
        self.follow(self.texts)

    def end(self) -> None:
        """No token comes any more."""


def _name_observations(
    drafter: Drafter, inputs: dict[str, torch.Tensor], numbers: _Numbers
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Let the model name what it sees, the most likely tokens whatever the report's decoding.

    Returns:
        Inputs that go on with the answer and the request for the report, and the answers.
    """
    model: Any = drafter.model
    tokenizer, request = drafter.processor.tokenizer, drafter.follow_up_tokens()
    ends = end_tokens(model) | {request[0]}
    given = {"max_new_tokens": MOST_OBSERVATIONS, "do_sample": False, "eos_token_id": sorted(ends)}
    given |= _listeners(numbers, _alone(drafter, inputs, DecodeConfig(), ends), None, ends)
    new = model.generate(**inputs, **given)
    new = new[:, inputs["input_ids"].shape[1] :].tolist()
    left_out = ends | {getattr(model.config, "image_token_id", None)}  # which would ask for one more image
    answers = [[token for token in _until_end(line, ends) if token not in left_out] for line in new]
    lines = zip(inputs["input_ids"], inputs["attention_mask"].bool(), answers, strict=True)
    rows = [[*ids[mask].tolist(), *answer, *request] for ids, mask, answer in lines]
    padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(model.device)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return inputs | dict(padded), [text.strip() for text in texts]


def _sample(model: Any, inputs: dict[str, torch.Tensor], candidates: int, arguments: dict[str, Any]) -> list[list[int]]:
    """Several candidates of each study. The prompt is read once; `num_return_sequences` would read it for each."""
    cache = prefill(model, inputs, candidates)
    prompts = {key: inputs[key].repeat_interleave(candidates, 0) for key in ("input_ids", "attention_mask")}
    tokens = model.generate(**prompts, cache=cache, **arguments)
    return tokens[:, prompts["input_ids"].shape[1] :].tolist()


def end_tokens(model: Any) -> set[int]:
    """The tokens that end a draft."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end token, this included."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]
