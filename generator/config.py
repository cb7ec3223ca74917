"""Settings of models, training and decoding: dataclasses whose fields are options of the command line.

Nothing heavy is imported here, so that `raddraft ACTION --help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from raddraft.errors import RadDraftError

Control = Literal["none", "shuffled-images", "most-frequent", "nearest-report"]
"""What stands in for a model's drafts, see `generator.controls`."""


@dataclass
class DecodeConfig:
    """Decoding"""

    max_new_tokens: int = 150
    """Longest draft, in tokens."""
    batch_size: int = 16
    """Studies decoded together."""
    num_beams: int = 1
    """Beams of beam search; 1 is greedy decoding."""
    sample: bool = False
    """Sample tokens instead of taking the most likely one."""
    candidates: int = 1
    """Drafts of each study, from one pass over its images and prompt. Several candidates are sampled;
    `raddraft consensus` chooses among them. Until then the first, an arbitrary one, is the prediction."""
    temperature: float | None = None
    """Sampling temperature; by default 1, or 0.5 for several candidates (CCS, arXiv 2605.30131)."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens whose probabilities add up to this."""
    seed: int = 0
    """Random seed of sampling."""
    repetition_penalty: float = 1.0
    """Above 1, tokens of the prompt and of the draft so far become less likely (Keskar et al., arXiv 1909.05858)."""
    no_repeat_ngram_size: int = 0
    """No sequence of this many tokens occurs twice, in prompt and draft together; 0 for no limit."""
    min_new_tokens: int = 0
    """Shortest draft, in tokens."""
    confidence: bool = False
    """Keep for each sentence its log-probability and, with several candidates, the share that states the same."""

    def __post_init__(self) -> None:
        if min(self.max_new_tokens, self.batch_size, self.num_beams, self.candidates) < 1:
            raise RadDraftError(
                f"decode: max_new_tokens, batch_size, num_beams and candidates must be at least 1, got {self!r}"
            )
        if not self.samples and (self.temperature is not None or self.top_p != 1 or self.seed):
            raise RadDraftError(
                f"decode: temperature, top_p and seed need sampling (sample: true, or candidates), got {self!r}"
            )
        if self.samples and (self.heat <= 0 or not 0 < self.top_p <= 1):
            raise RadDraftError(f"decode: need temperature > 0 and 0 < top_p <= 1, got {self!r}")
        if self.candidates > 1 and self.num_beams > 1:
            raise RadDraftError(f"decode: candidates are sampled and cannot be combined with num_beams, got {self!r}")
        if self.repetition_penalty <= 0 or self.no_repeat_ngram_size < 0 or self.min_new_tokens < 0:
            raise RadDraftError(
                f"decode: need repetition_penalty > 0, no_repeat_ngram_size >= 0 and min_new_tokens >= 0, got {self!r}"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are sampled."""
        return self.sample or self.candidates > 1

    @property
    def heat(self) -> float:
        """The sampling temperature in effect."""
        return self.temperature if self.temperature is not None else 0.5 if self.candidates > 1 else 1.0

    @property
    def limits(self) -> dict[str, Any]:
        """What is set on repetition and length."""
        defaults = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
        return {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`."""
        arguments = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, **self.limits}
        if self.samples:
            return arguments | {"do_sample": True, "temperature": self.heat, "top_p": self.top_p, "top_k": 0}
        return arguments | {"do_sample": False}

    def __str__(self) -> str:
        parts = ["greedy"] if not self.samples and self.num_beams == 1 else []
        if self.samples:
            parts += [f"{self.candidates} candidates"] if self.candidates > 1 else []
            parts.append(f"sampled at temperature {self.heat}, top_p {self.top_p}, seed {self.seed}")
        if self.num_beams > 1:
            parts.append(f"{self.num_beams} beams")
        parts.append(f"{self.max_new_tokens} new tokens")
        parts += [f"{name} {value}" for name, value in self.limits.items()]
        return ", ".join([*parts, *(["with confidence"] if self.confidence else [])])
