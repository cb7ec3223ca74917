"""Greedy texts that do not depend on the batch: where two tokens are almost equally likely, the study alone decides.

Kernels add up in another order when the batch or its padding is another, so logits differ in their last bits. Where the
best two are that close, the prompt and the text so far of the study are read again by themselves, without padding and
at once, and the best token of that pass is taken: the same one in any batch, with proposed tokens or without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NEAR = 1e-4
"""Distance of the best two logits, as a share of the best (or of 1), below which a study decides alone. Batches change
float32 logits by about 1e-6 of it."""


class Alone:
    """Reads the studies of a batch again, one by one.

    Args:
        model: a LLaVA model.
        inputs: input_ids and attention_mask [B, L], padded on the left, and pixel_values of all images, row by row.
        ends: the tokens that end a text.
    """

    def __init__(self, model: Any, inputs: Mapping[str, Tensor], ends: set[int]) -> None:
        self.model, self.inputs = model, inputs
        self.ends = torch.tensor(sorted(ends), device=inputs["input_ids"].device)
        of_images = (inputs["input_ids"] == model.config.image_token_id).sum(1)
        n_images, n_tokens = len(inputs["pixel_values"]), max(1, int(of_images.sum()))
        self.counts = [count * n_images // n_tokens for count in of_images.tolist()]

    def near(self, logits: Tensor) -> Tensor:
        """Where the best two logits are almost equal: [...] of [..., V]."""
        first, second = logits.topk(2).values.unbind(-1)
        return first - second < NEAR * first.abs().clamp(min=1)

    @torch.inference_mode()
    def best(self, row: int, text: Sequence[int]) -> int:
        """The most likely token of a row after these new ones."""
        ids, mask = self.inputs["input_ids"][row], self.inputs["attention_mask"][row].bool()
        prompt, new = ids[mask][None], ids.new_tensor(text)[None]
        first = sum(self.counts[:row])
        pixels = self.inputs["pixel_values"][first : first + self.counts[row]]
        given: dict[str, Any] = {"input_ids": torch.cat([prompt, new], 1), "pixel_values": pixels, "use_cache": False}
        if self.model.config.image_token_id in text:  # which stands for no image there
            read = self.model(input_ids=prompt, pixel_values=pixels, use_cache=True, logits_to_keep=1)
            given = {"input_ids": new, "cache": read.cache}
        logits = self.model(**given, logits_to_keep=1).logits
        return int(logits[0, -1].argmax())

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """A logits processor of transformers' greedy `generate`: scores [B, V] after tokens [B, L + n]."""
        near = self.near(scores)
        if near.any():
            new = input_ids[:, self.inputs["input_ids"].shape[1] :]
            near &= ~torch.isin(new, self.ends).any(1)  # a text that has ended decides nothing
            for row in near.nonzero()[:, 0].tolist():
                scores[row, self.best(row, new[row].tolist())] = torch.inf
        return scores


def settles(model: Any) -> bool:
    """Whether near ties are settled: of float32 models. In 16 bits so many tokens are close that it would take longer
    than to decode each study alone."""
    return model.dtype == torch.float32
