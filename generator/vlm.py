"""Any vision-language model of transformers: Gemma 3, Qwen-VL, SmolVLM, InternVL, PaliGemma, LLaVA …

    drafter = load_any("google/gemma-3-4b-it", prompt=PromptConfig(context=["indication"]))

Such a model is asked through its processor's own chat template. Where the processor has none (PaliGemma), the prompt is
the processor's placeholders for all pictures and then the text, without any words of a template around them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import Dataset

from encoder.features import FeatureStore
from encoder.tower import Tower
from encoder.towers import checkpoint_error
from generator.config import ModelConfig
from generator.data import IGNORE, Example, Item, labels_of
from generator.drafter import Drafter
from generator.generate import end_tokens
from generator.model import SIDECAR, build, load, read_sidecar
from generator.priors import find_priors
from generator.prompts import PromptConfig
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, load_image
from raddraft.studies import GrayMapping, Study

Messages = list[dict[str, Any]]

# What a model's own generation config may set, but DecodeConfig decides.
DECODING = ("do_sample", "temperature", "top_p", "top_k", "num_beams", "repetition_penalty", "max_length", "min_length")


class ChatDrafter(Drafter):
    """A vision-language model that was not built here, asked through its processor."""

    kind = "chat"

    @property
    def tower(self) -> Tower:
        raise RadDraftError(f"{self._name} was not built here, so its tower gives no features to store or to compare")

    @property
    def context_length(self) -> int | None:
        return getattr(self.model.config.get_text_config(), "max_position_embeddings", None)

    def encode(self, studies: Sequence[Study], answers: bool, reserve: int = 0) -> Sequence[ChatExample]:
        """Studies as chat messages, and with `answers` the report's tokens as the chat template ends them.

        Raises:
            ValueError: a prompt in two turns; with `answers`, where there is no chat template, or it does not tell
                where an answer begins and ends; a text longer than the language model's context.
        """
        if self.prompt.findings_first:
            raise RadDraftError(
                f"{self._name} was not built here, so it cannot be asked in two turns; leave out prompt.findings_first"
            )
        priors = find_priors(studies) if self.prompt.prior else {}
        examples = []
        for study in studies:
            answer = self.prompt.answer(study) if answers else None
            if answers and answer is None:
                continue
            prior = priors.get(study.study_id)
            messages = self.prompt.messages(study, prior)
            prompt = self._tokens(render(self.processor, messages))
            reply: list[int] = []
            if answer is not None:
                messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
                reply = self._reply(study, messages, prompt)
            images = [image.path for image in self.prompt.choose_images(study, prior)]
            example = ChatExample(study.study_id, images, prompt, reply, messages=messages)
            if self.context_length is not None and len(example) + reserve > self.context_length:
                raise RadDraftError(
                    f"Study {study.study_id!r}: {len(example)} tokens of text + {reserve} for the draft exceed the "
                    f"context of {self.context_length} tokens of {self._name}; use less context"
                )
            examples.append(example)
        return examples

    def dataset(self, examples: Sequence[Example], features: FeatureStore | None = None) -> ChatDataset:  # type: ignore[override]
        return ChatDataset(examples, self)  # type: ignore[arg-type]

    @property
    def _name(self) -> str:
        return f"A model of type {self.model.config.model_type!r}"

    def _tokens(self, text: str) -> list[int]:
        """Token ids of a rendered text, in which a picture is a single placeholder."""
        return self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _reply(self, study: Study, messages: Messages, prompt: list[int]) -> list[int]:
        """Token ids of the answer at the end of messages, after those of the prompt."""
        if not self.processor.chat_template:
            raise RadDraftError(f"{self._name} cannot train here: its processor has no chat template")
        whole = self._tokens(render(self.processor, messages, answered=True))
        if whole[: len(prompt)] != prompt:
            raise RadDraftError(
                f"{self._name} cannot train here: study {study.study_id!r} with its answer does not begin with the "
                "prompt alone, so the chat template does not tell which tokens are to be learnt"
            )
        reply = whole[len(prompt) :]
        if not end_tokens(self.model) & set(reply):
            raise RadDraftError(
                f"{self._name} cannot train here: its chat template ends the answer of study {study.study_id!r} "
                f"without any of the model's end tokens {sorted(end_tokens(self.model))}, so a draft would not end"
            )
        return reply


@dataclass
class ChatExample(Example):
    """One study as messages. Its `prompt` and `answer` are token ids with a single placeholder for each picture."""

    messages: Messages = field(default_factory=list)
    """The prompt, and for training the answer; pictures stand as {"type": "image"}."""


class ChatDataset(Dataset):
    """Examples with their pictures; the processor makes tokens and pixels of a whole batch."""

    def __init__(self, examples: Sequence[ChatExample], drafter: ChatDrafter) -> None:
        self.examples, self.processor, self.gray_mapping = examples, drafter.processor, drafter.gray_mapping
        self.context_length = drafter.context_length

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        example = self.examples[index]
        try:
            return Item(example, [load_image(path, self.gray_mapping).convert("RGB") for path in example.images])
        except (ImageError, OSError) as error:
            blank = [Image.new("RGB", (64, 64)) for _ in example.images]
            return Item(example, blank, f"{example.study_id}: {error}")

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """What the processor makes of the messages, padded on the left; `labels` and `errors` as of `data.collate`.

        Raises:
            ValueError: text and pictures of a study are longer than the language model's context, or the processor
                writes an answer's tokens otherwise than the tokenizer by itself.
        """
        conversations = [_insert(item.example.messages, item.pixels) for item in items]  # type: ignore[attr-defined]
        inputs = process(self.processor, conversations, answered=bool(items[0].example.answer))
        lengths = inputs["attention_mask"].sum(1)
        if self.context_length is not None and lengths.max() > self.context_length:
            raise RadDraftError(
                f"Study {items[lengths.argmax()].example.study_id!r}: {lengths.max()} tokens of text and pictures "
                f"exceed the context of {self.context_length} tokens of the language model"
            )
        labels = labels_of(items)
        learnt = labels != IGNORE
        if not torch.equal(labels[learnt], inputs["input_ids"][:, -labels.shape[1] :][learnt]):
            raise RadDraftError(
                f"A model with a {type(self.processor).__name__} cannot train here: beside pictures it writes other "
                "tokens for the answer than without"
            )
        tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
        return tensors | {"labels": labels, "errors": [item.error for item in items if item.error]}


def render(processor: Any, messages: Messages, answered: bool = False) -> str:
    """Messages as text with a placeholder for each picture; without an answer, up to where the model is to go on."""
    if processor.chat_template:
        return processor.apply_chat_template(messages, add_generation_prompt=not answered, tokenize=False)
    parts = [part for message in messages for part in message["content"]]
    n_images = sum(part["type"] == "image" for part in parts)
    return processor.image_token * n_images + "".join(part["text"] for part in parts if part["type"] == "text")


def process(processor: Any, conversations: Sequence[Messages], answered: bool = False) -> dict[str, Any]:
    """The model's inputs for conversations with pictures in them, as the processor makes them, padded to one length."""
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
    """Messages with a picture at each of its placeholders, in order."""
    remaining = iter(images)
    filled = deepcopy(messages)
    for message in filled:
        for part in message["content"]:
            if part["type"] == "image":
                part["image"] = next(remaining)
    return filled


def load_any(
    name: str,
    dtype: str = "auto",
    device: str = "cpu",
    prompt: PromptConfig | None = None,
    remote_code: bool = False,
) -> Drafter:
    """Load a model that was trained here, or any vision-language model that transformers knows.

    Args:
        name: folder or hub id.
        dtype: type of the weights; auto is the one they were saved in.
        device: where the model goes.
        prompt: what a model that was not trained here is asked.
        remote_code: whether code that comes with the model may run.

    Raises:
        ValueError: a model of another kind, one that needs code of its own, or a prompt for a model that has its own.
        OSError: there is no such model, or it cannot be read.
    """
    sidecar = read_sidecar(name)
    if sidecar is not None and prompt is not None and prompt != PromptConfig(**sidecar["prompt"]):
        raise RadDraftError(f"{name} was trained with its own prompt, which {SIDECAR} there keeps; leave out --prompt")
    if (sidecar is not None and sidecar.get("kind") != ChatDrafter.kind) or (Path(name).is_dir() and _broken(name)):
        return load(name, dtype, device)
    drafter = _load_chat(name, dtype, remote_code)
    model: Any = drafter.model
    model.to(device)
    if sidecar is not None:
        prompt = PromptConfig(**sidecar["prompt"])
        drafter.gray_mapping = sidecar["gray_mapping"]
    if prompt is None:
        warnings.warn(f"{name} has no {SIDECAR}: the default prompt is used", stacklevel=2)
    drafter.prompt = prompt or PromptConfig()
    return drafter


def make_drafter(config: ModelConfig, prompt: PromptConfig, gray_mapping: GrayMapping) -> Drafter:
    """The model that a training run starts from: joined of two parts, or a whole one. Raises as `build`, `load_any`."""
    if not config.vlm:
        return Drafter(*build(config), prompt, gray_mapping)
    drafter = _load_chat(config.vlm, config.dtype, remote_code=False)
    drafter.prompt, drafter.gray_mapping = prompt, gray_mapping
    return drafter


def _broken(folder: str) -> bool:
    """Whether a folder lacks a config; `generator.model.load` says so."""
    return not (Path(folder) / "config.json").is_file()


def _load_chat(name: str, dtype: str, remote_code: bool) -> ChatDrafter:
    from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

    try:
        AutoConfig.from_pretrained(name, trust_remote_code=remote_code)  # says best what is wrong with a name
        processor: Any = AutoProcessor.from_pretrained(name, trust_remote_code=remote_code)
        model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype=dtype, trust_remote_code=remote_code)
    except (ValueError, OSError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise RadDraftError(
                f"{name} comes with code of its own; --remote_code true runs it, if you trust it"
            ) from None
        if "Unrecognized configuration class" in str(error):
            kind = str(error).split("for this kind")[0].strip()
            raise RadDraftError(f"{name} is no vision-language model that transformers knows: {kind}") from None
        raise checkpoint_error(f"The model {name!r} cannot be loaded", name, error) from error
    if not all(hasattr(processor, part) for part in ("image_processor", "tokenizer")):
        raise RadDraftError(f"{name} has no processor for images and text, only a {type(processor).__name__}")
    if model.config.is_encoder_decoder:
        raise RadDraftError(
            f"{name} is an encoder-decoder model ({model.config.model_type}), which cannot be asked here"
        )
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:  # padding is masked everywhere, so sharing a token does no harm
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    for setting in DECODING:
        setattr(model.generation_config, setting, None)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.eos_token_id = sorted(end_tokens(model) or {processor.tokenizer.eos_token_id})
    return ChatDrafter(model.eval(), processor)
