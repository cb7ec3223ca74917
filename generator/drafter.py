"""A model with all that drafting and training need: processor, prompt, gray-value mapping; studies -> token ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from encoder.config import FeatureConfig
from encoder.features import FeatureStore
from encoder.tower import Tower
from generator.data import Example, ExampleDataset, count_image_tokens
from generator.foreign import ForeignTower
from generator.priors import find_priors
from generator.prompts import PromptConfig
from generator.tokens import TextTokens
from raddraft.errors import RadDraftError
from raddraft.studies import GrayMapping, Study

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

MOST_OBSERVATIONS = 100
"""Tokens kept free for the observations that are named before the report."""


class StoredFeatures(nn.Module):
    """Stands in for the frozen tower: what it is given as pixels are stored hidden states [B, T, D]."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(hidden_states=defaultdict(lambda: pixel_values))  # type: ignore[arg-type]


@dataclass
class Drafter:
    """A model with its processor and its prompt."""

    model: LlavaForConditionalGeneration
    processor: LlavaProcessor
    prompt: PromptConfig = field(default_factory=PromptConfig)
    gray_mapping: GrayMapping = "window"
    """How gray values of image files become 8 bits, see `raddraft.images`."""
    is_synthetic: bool = False
    """Whether it was trained on synthetic studies only."""
    store: FeatureStore | None = None
    """What is read in place of running the tower, see `read_from`."""
    kind: ClassVar[str] = "llava"
    """Kept in a saved model's folder; `generator.vlm` has the other kind."""

    @cached_property
    def tokens(self) -> TextTokens:
        """Turns texts into token ids."""
        return TextTokens(self.processor.tokenizer, self.processor)

    @property
    def feature_layer(self) -> int:
        """Index of the tower's hidden state that is projected."""
        layer = self.model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise RadDraftError(f"Models that project several layers of the tower are not supported: {layer}")
        return layer

    @property
    def tower(self) -> Tower:
        """The vision tower with its image processor."""
        tower = self.model.model.vision_tower
        if isinstance(tower, ForeignTower):
            return tower.tower
        return Tower("the model's tower", tower, self.processor.image_processor)

    @property
    def features(self) -> FeatureConfig:
        """What to store of an image so that the tower need not run."""
        if isinstance(self.model.model.vision_tower, ForeignTower):
            return FeatureConfig("tokens")
        return FeatureConfig("tokens", (self.feature_layer,))

    @property
    def context_length(self) -> int | None:
        """Most tokens that the language model reads; None if it states no limit."""
        return getattr(self.model.config.text_config, "max_position_embeddings", None)

    def encode(self, studies: Sequence[Study], answers: bool, reserve: int = 0) -> Sequence[Example]:
        """Tokenize studies; with `answers`, those that lack a target section are left out.

        Args:
            studies: what to tokenize, and where priors are looked for.
            answers: whether to append the report.
            reserve: tokens that must fit after the prompt.

        Raises:
            RadDraftError: the prompt with the reserve or the answer exceeds the language model's context.
        """
        prompt, tokenizer = self.prompt, self.processor.tokenizer
        kept = [study for study in studies if not answers or prompt.answer(study) is not None]
        if not kept:
            return []
        priors = find_priors(studies) if prompt.prior else {}
        texts = [self.render(study, priors.get(study.study_id)) for study in kept]
        request = self.follow_up_tokens() if prompt.findings_first else []
        reserve += MOST_OBSERVATIONS + len(request) if request and not answers else 0
        nothing: list[list[int]] = [[]] * len(kept)
        named, reports = nothing, nothing
        if answers:
            found = self.tokens.of_texts(prompt.answer(study) or "" for study in kept)
            reports = [[*ids, tokenizer.eos_token_id] for ids in found]
        if answers and request:
            prompt.warn_of_observations(kept)
            named = self.tokens.of_texts(prompt.observations(study) for study in kept)
        prompts = self.tokens.of_escaped(texts)
        image_tokens = count_image_tokens(self.processor)
        examples = []
        for study, text, first, report in zip(kept, prompts, named, reports, strict=True):
            images = [image.path for image in prompt.choose_images(study, priors.get(study.study_id))]
            answer, given = report, range(0)
            if first:  # the first token of the request ends the first answer, so it is learned
                answer, given = [*first, *request, *report], range(len(first) + 1, len(first) + len(request))
            example = Example(study.study_id, images, text, answer, given, self.processor.image_token_id, image_tokens)
            if self.context_length is not None and len(example) + reserve > self.context_length:
                parts = f"{image_tokens * len(images)} image tokens + {len(text) - len(images)} of text"
                parts += f" + {len(example.answer)} of report" if answers else f" + {reserve} for the draft"
                raise RadDraftError(
                    f"Study {study.study_id!r}: {parts} exceed the context of {self.context_length} tokens "
                    "of the language model; use a smaller image_size, fewer images, less context, or another model"
                )
            examples.append(example)
        return examples

    def dataset(self, examples: Sequence[Example], features: FeatureStore | None = None) -> ExampleDataset:
        """What `encode` gave, with the pixels or stored features of its images, in batches for this model."""
        return ExampleDataset(examples, self.processor, self.gray_mapping, features or self.store)

    @contextmanager
    def read_from(self, store: FeatureStore) -> Iterator[None]:
        """Within, drafts are made from stored `features` of their images, and the tower does not run."""
        tower, self.store = self.model.model.vision_tower, store
        self.model.model.vision_tower = StoredFeatures()
        try:
            yield
        finally:
            self.model.model.vision_tower, self.store = tower, None

    def render(self, study: Study, prior: Study | None = None) -> str:
        """The prompt of a study as text, with one image token for each image; what would be others is escaped."""
        messages = self.tokens.escape_messages(self.prompt.messages(study, prior))
        return self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)

    def follow_up_tokens(self) -> list[int]:
        """Token ids between the named observations and the report: the end of the turn, then the request.

        Raises:
            RadDraftError: the chat template changes an earlier answer.
        """
        mark = "<<<observations>>>"
        messages: list[dict[str, Any]] = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", "?"), ("assistant", mark))
        ]
        messages += self.tokens.escape_messages([self.prompt.follow_up()])
        text = self.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        _, found, rest = text.partition(mark)
        if not found:
            raise RadDraftError(
                "prompt.findings_first: the chat template of this language model drops or changes earlier answers; "
                "turn findings_first off, or choose another language model"
            )
        return self.tokens.of_escaped([rest])[0]
