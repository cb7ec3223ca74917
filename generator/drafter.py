"""A model with all that drafting and training need: processor, prompt, gray-value mapping; studies -> token ids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from encoder.config import FeatureConfig
from encoder.features import FeatureStore
from encoder.tower import Tower
from generator.data import Example, ExampleDataset, count_image_tokens
from generator.examples import Examples
from generator.foreign import ForeignTower
from generator.priors import find_priors, prior_of
from generator.prompts import PromptConfig
from generator.tokens import TextTokens
from metrics.rules import OBSERVATIONS
from raddraft.errors import RadDraftError
from raddraft.studies import GrayMapping, Study, StudyImage, skim

if TYPE_CHECKING:
    from transformers import LlavaForConditionalGeneration, LlavaProcessor

MOST_OBSERVATIONS = 100
"""Tokens kept free for the observations that are named before the report."""
TITLE = 32
"""More tokens than the words that a prompt puts before a section or an image."""
_NOBODY = Study("a study", "a subject", "test", [StudyImage(Path("a film"))])


class _EveryLayer:
    """The same stored states, whichever layer is asked for. No mapping or list, which Accelerate would rebuild when it
    casts what a model returns."""

    def __init__(self, states: torch.Tensor) -> None:
        self.states = states

    def __getitem__(self, layer: int) -> torch.Tensor:
        return self.states


class StoredFeatures(nn.Module):
    """Stands in for the frozen tower: what it is given as pixels are stored hidden states [B, T, D]."""

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        return BaseModelOutputWithPooling(hidden_states=_EveryLayer(pixel_values))  # type: ignore[arg-type]


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

    def encode(self, studies: Sequence[Study], answers: bool, reserve: int = 0) -> Examples:
        """Examples of studies; with `answers`, those that lack a target section are left out.

        They are tokenized when they are asked for, but for those that may be too long.

        Args:
            studies: what to tokenize, and where priors are looked for.
            answers: whether to append the report.
            reserve: tokens that must fit after the prompt.

        Raises:
            RadDraftError: the prompt with the reserve or the answer exceeds the language model's context.
        """
        priors = find_priors(studies) if self.prompt.prior else {}
        kept, sizes = [], []
        for study, one in zip(studies, skim(studies), strict=True):
            if not answers or self.prompt.answer(one) is not None:
                kept.append(study)
                sizes.append(self._most_tokens(one, prior_of(one, priors), answers))
        make = partial(self._examples, priors=priors, answers=answers, reserve=reserve)
        examples = Examples(kept, make, lambda one: self._files(one, prior_of(one, priors)), keep=answers)
        if answers and self.prompt.findings_first:
            self.prompt.warn_of_observations(skim(kept))
        if kept:
            common = examples.lengths([0])[0] + reserve  # what a chat template or a recipe adds is in the first, too
            limit = math.inf if self.context_length is None else self.context_length
            examples.lengths([row for row, size in enumerate(sizes) if common + size > limit])
        return examples

    def _most_tokens(self, study: Study, prior: Study | None, answers: bool) -> int:
        """A bound of the tokens that a study has and others may not have: a token is a byte of text at least."""
        prompt, shown = self.prompt, [study, *([prior] if prior is not None else [])]
        texts = [study.sections.get(name, "") for name in prompt.context]
        texts += [one.sections.get(name, "") for one in shown[0 if answers else 1 :] for name in prompt.targets]
        n_images = sum({"frontal": 1, "pair": 2}.get(prompt.images) or len(one.images) for one in shown)
        named = len(", ".join(OBSERVATIONS)) if prompt.findings_first else 0
        return (
            sum(len(text.encode(errors="replace")) + TITLE for text in texts)
            + n_images * (self._image_tokens + TITLE)
            + named
        )

    @cached_property
    def _image_tokens(self) -> int:
        return count_image_tokens(self.processor)

    def _files(self, study: Study, prior: Study | None) -> list[Path]:
        return [image.path for image in self.prompt.choose_images(study, prior)]

    def _examples(
        self, studies: Sequence[Study], priors: Mapping[str, Study], answers: bool, reserve: int
    ) -> Sequence[Example]:
        """Tokenize some of the studies that `encode` was given. Raises as that."""
        prompt, tokenizer = self.prompt, self.processor.tokenizer
        shown = [(study, prior_of(study, priors)) for study in studies]
        asked = [prompt.messages(*pair) for pair in shown]
        texts = {repr(messages): messages for messages in asked}  # all the same, unless they hold sections
        prompts = dict(zip(texts, self.tokens.of_escaped([*map(self._render, texts.values())]), strict=True))
        request = self.follow_up_tokens() if prompt.findings_first else []
        reserve += MOST_OBSERVATIONS + len(request) if request and not answers else 0
        nothing: list[list[int]] = [[]] * len(studies)
        named, reports = nothing, nothing
        if answers:
            found = self.tokens.of_texts(prompt.answer(study) or "" for study in studies)
            reports = [[*ids, tokenizer.eos_token_id] for ids in found]
        if answers and request:
            named = self.tokens.of_texts(prompt.observations(study) for study in studies)
        examples = []
        for (study, prior), messages, first, report in zip(shown, asked, named, reports, strict=True):
            text = prompts[repr(messages)]
            images = self._files(study, prior)
            answer, given = report, range(0)
            if first:  # the first token of the request ends the first answer, so it is learned
                answer, given = [*first, *request, *report], range(len(first) + 1, len(first) + len(request))
            ids = self.processor.image_token_id, self._image_tokens
            example = Example(study.study_id, images, text, answer, given, *ids)
            if self.context_length is not None and len(example) + reserve > self.context_length:
                parts = f"{self._image_tokens * len(images)} image tokens + {len(text) - len(images)} of text"
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

    def check(self, folder: str | Path) -> None:
        """Write the prompt of a study, so that a folder whose tokenizer or chat template is damaged is refused at once.

        Raises:
            RadDraftError: the template cannot be used or loses an image, or the tokenizer lacks its end token or has
                tokens that the language model has not.
        """
        tokenizer, image = self.processor.tokenizer, self.processor.image_token_id
        if tokenizer.eos_token_id is None:
            raise RadDraftError(
                f"{folder}: the tokenizer has no end token; is tokenizer_config.json missing or damaged?"
            )
        if tokenizer.pad_token is None:  # padding is masked, so sharing a token is safe
            tokenizer.pad_token = tokenizer.eos_token
        highest, rows = max(tokenizer.get_vocab().values()), self.model.get_input_embeddings().num_embeddings
        if highest >= rows:
            raise RadDraftError(
                f"{folder}: the tokenizer has a token {highest}, and the language model {rows} tokens, counted from 0: "
                "they are not of one model"
            )
        if (stated := self.model.config.image_token_id) != image:
            raise RadDraftError(
                f"{folder}: config.json says image_token_index {stated}, and the processor writes {image} for an image"
            )
        due, found = len(self._files(_NOBODY, None)), self.try_prompt(folder).count(self.processor.image_token)
        if found != due:
            raise RadDraftError(
                f"{folder}: its chat template writes {found} image tokens for a prompt with {due} images"
            )

    def try_prompt(self, folder: str | Path) -> str:
        """The prompt of a study without sections. Raises RadDraftError if the chat template cannot be used."""
        try:
            return self.render(_NOBODY)
        except Exception as error:  # templates are code, and raise anything
            why = " ".join(str(error).split()) or type(error).__name__
            raise RadDraftError(f"{folder}: its chat template cannot be used: {why}") from error

    def render(self, study: Study, prior: Study | None = None) -> str:
        """The prompt of a study as text, with one image token for each image; what would be others is escaped."""
        return self._render(self.prompt.messages(study, prior))

    def _render(self, messages: Sequence[dict[str, Any]]) -> str:
        escaped = self.tokens.escape_messages(messages)
        return self.processor.apply_chat_template(escaped, add_generation_prompt=True, tokenize=False)

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
