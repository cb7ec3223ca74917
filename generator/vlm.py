"""Vision-language models of transformers that RadDraft did not build: Gemma 3, Qwen-VL, SmolVLM, InternVL, PaliGemma …

Such a model is prompted through its processor's chat template. Where there is none (PaliGemma), the prompt is an image
placeholder for each image, followed by the plain text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from encoder.config import FeatureConfig
from encoder.features import FeatureStore
from encoder.tower import Tower
from encoder.towers import reading_checkpoint
from generator.config import ModelConfig
from generator.data import IGNORE, Example, Item, labels_of
from generator.decoding import end_tokens
from generator.drafter import Drafter
from generator.examples import Examples
from generator.model import build, load, read_sidecar
from generator.priors import prior_of
from generator.prompts import PromptConfig
from generator.templates import pin_date
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, load_image
from raddraft.loading import load_pretrained
from raddraft.studies import GrayMapping, Study

Messages = list[dict[str, Any]]

# What a model's own generation config may set, but DecodeConfig decides.
DECODING = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "max_length", "min_length")


class ChatDrafter(Drafter):
    """A vision-language model that RadDraft did not build, prompted through its processor."""

    kind = "chat"

    @property
    def tower(self) -> Tower:
        """Raises RadDraftError: the tower of a model from elsewhere gives no features."""
        raise RadDraftError(f"{self._name} was not built by RadDraft, so its tower gives no features")

    @property
    def features(self) -> FeatureConfig:
        """Raises RadDraftError, as `tower`."""
        return FeatureConfig("tokens", (self.tower.n_states - 1,))

    @property
    def context_length(self) -> int | None:
        """Most tokens the model can read, or None if it states no limit."""
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def encode(self, studies: Sequence[Study], answers: bool, reserve: int = 0) -> Examples:
        """Studies as chat messages, and with `answers` the report's tokens as the chat template ends them.

        Raises:
            RadDraftError: a prompt in two turns, a text that exceeds the language model's context, or with `answers` a
                chat template that does not tell where an answer begins and ends.
        """
        if self.prompt.findings_first:
            raise RadDraftError(
                f"{self._name} was not built by RadDraft and cannot be asked in two turns; leave out "
                "prompt.findings_first"
            )
        return super().encode(studies, answers, reserve)

    _image_tokens = 1  # how many an image takes, its processor knows

    def _examples(
        self, studies: Sequence[Study], priors: Mapping[str, Study], answers: bool, reserve: int
    ) -> Sequence[ChatExample]:
        examples = []
        for study in studies:
            prior = prior_of(study, priors)
            messages = self.tokens.escape_messages(self.prompt.messages(study, prior))
            prompt = self._tokens(render(self.processor, messages))
            reply: list[int] = []
            if answers:
                part = {"type": "text", "text": self.tokens.escape(self.prompt.answer(study) or "")}
                messages = [*messages, {"role": "assistant", "content": [part]}]
                reply = self._reply(study, messages, prompt)
            example = ChatExample(study.study_id, self._files(study, prior), prompt, reply, messages=messages)
            if self.context_length is not None and len(example) + reserve > self.context_length:
                raise RadDraftError(
                    f"Study {study.study_id!r}: {len(example)} tokens of text + {reserve} for the draft exceed the "
                    f"context of {self.context_length} tokens of {self._name}; use less context"
                )
            examples.append(example)
        return examples

    def dataset(self, examples: Sequence[Example], features: FeatureStore | None = None) -> ChatDataset:  # type: ignore[override]
        """What `encode` gave, with images, in batches for this model; `features` are not used."""
        return ChatDataset(examples, self)  # type: ignore[arg-type]

    @property
    def _name(self) -> str:
        return f"A model of type {self.model.config.model_type!r}"

    def _tokens(self, text: str) -> list[int]:
        """Token ids of a rendered text, with a single placeholder for each image."""
        return self.tokens.of_escaped([text])[0]

    def _reply(self, study: Study, messages: Messages, prompt: list[int]) -> list[int]:
        """Token ids of the answer at the end of messages, after those of the prompt."""
        fault, ends = f"{self._name} cannot be trained:", end_tokens(self.model)
        if not self.processor.chat_template:
            raise RadDraftError(f"{fault} its processor has no chat template")
        whole = self._tokens(render(self.processor, messages, answered=True))
        reply = whole[len(prompt) :]
        if whole != [*prompt, *reply]:
            raise RadDraftError(
                f"{fault} by its chat template study {study.study_id!r} with its answer does not begin with the prompt "
                "alone, so the tokens to learn are unknown"
            )
        if not ends & set(reply):
            raise RadDraftError(
                f"{fault} its chat template ends the answer of study {study.study_id!r} without any of the model's end "
                f"tokens {sorted(ends)}, so a draft would not end"
            )
        return reply


@dataclass
class ChatExample(Example):
    """One study as messages; `prompt` and `answer` are token ids with a single placeholder for each image."""

    messages: Messages = field(default_factory=list)
    """The prompt and for training the answer, with {"type": "image"} for each image; their texts are escaped."""


class ChatDataset(Dataset):
    """Examples with their images; the processor makes tokens and pixels of a whole batch."""

    def __init__(self, examples: Sequence[ChatExample], drafter: ChatDrafter) -> None:
        self.examples, self.processor, self.gray_mapping = examples, drafter.processor, drafter.gray_mapping
        self.context_length, self.tokens = drafter.context_length, drafter.tokens

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, which: int | Example) -> Item:
        example = which if isinstance(which, Example) else self.examples[which]
        try:
            return self.item(example, [load_image(path, self.gray_mapping) for path in example.images])
        except (ImageError, OSError) as error:
            blank = [Image.new("RGB", (64, 64)) for _ in example.images]
            return Item(example, blank, f"{example.study_id}: {error}")

    def item(self, example: Example, images: Sequence[Image.Image]) -> Item:
        """As `ExampleDataset.item`."""
        return Item(example, [image.convert("RGB") for image in images])

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """What the processor makes of the messages, padded on the left, with `labels` and `errors` as `data.collate`.

        Raises:
            RadDraftError: text and images exceed the language model's context, or the processor tokenizes an answer
                otherwise than the tokenizer alone.
        """
        messages: list[Messages] = [item.example.messages for item in items]  # type: ignore[attr-defined]
        conversations = [_insert(one, item.pixels) for one, item in zip(messages, items, strict=True)]
        answered = bool(items[0].example.answer)
        inputs = process(self.processor, conversations, answered)
        inputs = self.tokens.drop_marks(inputs, [render(self.processor, one, answered) for one in messages])
        lengths = inputs["attention_mask"].sum(1)
        if self.context_length is not None and lengths.max() > self.context_length:
            raise RadDraftError(
                f"Study {items[lengths.argmax()].example.study_id!r}: {lengths.max()} tokens of text and images exceed "
                f"the context of {self.context_length} tokens of the language model"
            )
        labels = labels_of(items)
        learned = labels != IGNORE
        if not torch.equal(labels[learned], inputs["input_ids"][:, -labels.shape[1] :][learned]):
            raise RadDraftError(
                f"A model with a {type(self.processor).__name__} cannot be trained: beside images it tokenizes answers "
                "otherwise than alone"
            )
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return tensors | {"labels": labels, "errors": [item.error for item in items if item.error]}


def render(processor: Any, messages: Messages, answered: bool = False) -> str:
    """Messages as text with a placeholder for each image; without an answer, up to where the model continues."""
    if processor.chat_template:
        return processor.apply_chat_template(messages, add_generation_prompt=not answered, tokenize=False)
    parts = [part for message in messages for part in message["content"]]
    placeholders = processor.image_token * sum(part["type"] == "image" for part in parts)
    return placeholders + "".join(part["text"] for part in parts if part["type"] == "text")


def process(processor: Any, conversations: Sequence[Messages], answered: bool = False) -> dict[str, Any]:
    """The processor's inputs for conversations with images in them, padded to one length."""
    if processor.chat_template:
        return processor.apply_chat_template(
            list(conversations),
            add_generation_prompt=not answered,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        )
    texts = [render(processor, messages) for messages in conversations]
    contents = [[part for message in messages for part in message["content"]] for messages in conversations]
    images = [[part["image"] for part in content if part["type"] == "image"] for content in contents]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


def _insert(messages: Messages, images: Sequence[Image.Image]) -> Messages:
    """A copy of messages, with the images in place of their placeholders."""
    remaining = iter(images)
    filled = deepcopy(messages)
    for message in filled:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = next(remaining)
    return filled


def make_drafter(config: ModelConfig, prompt: PromptConfig, gray_mapping: GrayMapping) -> Drafter:
    """The model that a training run starts from: its parts, a model that RadDraft trained, or any other as `load_chat`.

    Raises:
        RadDraftError: another prompt or gray_mapping than a trained model has.

    Raises as `generator.model.build` and `load`, and `load_chat`.
    """
    if not config.vlm:
        return Drafter(*build(config), prompt, gray_mapping)
    if (sidecar := read_sidecar(config.vlm)) and sidecar.get("kind") == Drafter.kind:
        drafter = load(config.vlm, config.dtype)
        if (drafter.prompt, drafter.gray_mapping) != (prompt, gray_mapping):
            raise RadDraftError(
                f"{config.vlm} was trained with {drafter.prompt} and gray_mapping {drafter.gray_mapping}; set prompt "
                "and gray_mapping to these"
            )
        return drafter
    return load_chat(config.vlm, prompt, gray_mapping, config.dtype)


def load_chat(
    name: str,
    prompt: PromptConfig,
    gray_mapping: GrayMapping = "window",
    dtype: str = "auto",
    device: str = "cpu",
    remote_code: bool = False,
) -> ChatDrafter:
    """Load any vision-language model that transformers knows.

    Args:
        name: folder or hub id.
        prompt: what the model is asked.
        gray_mapping: how gray values of image files become 8 bits.
        dtype: type of the weights; auto is the one they were saved in.
        device: where the model goes.
        remote_code: whether code that comes with the model may run.

    Raises:
        RadDraftError: no such model, one of another kind, one whose config contradicts its weights, or one that needs
            code of its own.
    """
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    code: dict[str, Any] = {"trust_remote_code": remote_code}
    with reading_checkpoint(f"The model {name!r} cannot be loaded", name):
        try:
            AutoConfig.from_pretrained(name, **code)  # has the best messages for a wrong name
            processor: Any = AutoProcessor.from_pretrained(name, **code)
            model: Any = load_pretrained(AutoModelForImageTextToText, name, dtype=dtype, **code)
        except ValueError as error:
            if "trust_remote_code" in str(error):
                raise RadDraftError(f"{name} comes with its own code; if you trust it, --remote-code runs it") from None
            if "Unrecognized configuration class" in str(error):
                kind = str(error).split("for this kind")[0].strip()
                raise RadDraftError(f"{name} is not a vision-language model that transformers knows: {kind}") from None
            raise
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is None or not hasattr(processor, "image_processor"):
        raise RadDraftError(f"{name} has no processor for images and text, only a {type(processor).__name__}")
    if model.config.is_encoder_decoder:
        raise RadDraftError(f"{name} is an encoder-decoder model ({model.config.model_type}), which is not supported")
    processor.chat_template = pin_date(processor.chat_template)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:  # padding is masked, so sharing a token is safe
        tokenizer.pad_token = tokenizer.eos_token
    for setting in DECODING:
        setattr(model.generation_config, setting, None)
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.eos_token_id = sorted(end_tokens(model) or {tokenizer.eos_token_id})
    drafter = ChatDrafter(model.to(device).eval(), processor, prompt, gray_mapping)
    if processor.chat_template:
        replace(drafter).try_prompt(name)  # a drafter keeps what it has learned of the tokenizer; tokens may be added
    return drafter
