"""Studies -> batches: token ids and pixels (or stored features), in an order that any step can be resumed from."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from encoder.features import FeatureStore, prepare_pixels
from generator.priors import find_priors
from raddraft.errors import RadDraftError
from raddraft.images import ImageError
from raddraft.studies import Study

if TYPE_CHECKING:
    from transformers import LlavaProcessor

    from generator.model import Drafter

IGNORE = -100  # target that the cross-entropy passes over
MOST_OBSERVATIONS = 100  # tokens of the first answer, where observations are named before the report


@dataclass
class Example:
    """One study as the model reads it."""

    study_id: str
    images: list[Path]
    """Pictures in the order of the prompt."""
    text: list[int]
    """Token ids of the prompt, with a single image token for each picture."""
    answer: list[int]
    """Token ids of the report and its end token; empty for generation. Where observations are named first, theirs, the
    request for the report, and the report."""
    given: range = range(0)
    """Where in the answer that request stands, which is not to be learnt."""
    image_id: int = -1
    """The image token."""
    n_image: int = 1
    """How many of them the model reads for one picture."""

    def __len__(self) -> int:
        return len(self.text) + (self.n_image - 1) * len(self.images) + len(self.answer)

    @property
    def prompt(self) -> list[int]:
        """Token ids of the prompt, with one image token for each image feature."""
        counts = (self.n_image if token == self.image_id else 1 for token in self.text)
        return [token for token, count in zip(self.text, counts, strict=True) for _ in range(count)]

    @property
    def n_learnt(self) -> int:
        """Tokens of the answer that are learnt."""
        return len(self.answer) - len(self.given)


def encode(drafter: Drafter, studies: Sequence[Study], answers: bool, reserve: int = 0) -> list[Example]:
    """Tokenise studies; with `answers`, those that lack a target section are left out.

    Args:
        drafter: gives tokenizer, chat template and prompt.
        studies: what to encode; priors are looked for among them.
        answers: whether to append the report.
        reserve: tokens that must fit after the prompt.

    Raises:
        ValueError: a prompt (and the reserve, and the answer) is longer than the language model's context.
    """
    tokenizer, image_id = drafter.processor.tokenizer, drafter.processor.image_token_id
    n_image = count_image_tokens(drafter.processor)
    kept = [study for study in studies if not answers or drafter.prompt.answer(study) is not None]
    if not kept:
        return []
    priors = find_priors(studies) if drafter.prompt.prior else {}
    texts = [render_prompt(drafter, study, priors.get(study.study_id)) for study in kept]
    prompts = tokenizer(texts, add_special_tokens=False)["input_ids"]
    request = follow_up_tokens(drafter) if drafter.prompt.findings_first else []
    reserve += MOST_OBSERVATIONS + len(request) if request and not answers else 0
    named: list[list[int]] = [[]] * len(kept)
    reports = named
    if answers:
        texts = [drafter.prompt.answer(study) or "" for study in kept]
        reports = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    if answers and request:
        named = tokenizer([drafter.prompt.observations(study) for study in kept], add_special_tokens=False)["input_ids"]
    examples = []
    for study, prompt, first, report in zip(kept, prompts, named, reports, strict=True):
        pictures = [image.path for image in drafter.prompt.pictures(study, priors.get(study.study_id))]
        answer, given = report, range(0)
        if first:  # the first token of the request ends the first answer, so it is learnt
            answer, given = [*first, *request, *report], range(len(first) + 1, len(first) + len(request))
        example = Example(study.study_id, pictures, prompt, answer, given, image_id, n_image)
        if drafter.context_length is not None and len(example) + reserve > drafter.context_length:
            n_images = n_image * len(pictures)
            parts = f"{n_images} image tokens + {len(prompt) - len(pictures)} of text"
            parts += f" + {len(example.answer)} of report" if answers else f" + {reserve} for the draft"
            raise RadDraftError(
                f"Study {study.study_id!r}: {parts} exceed the context of {drafter.context_length} tokens "
                "of the language model; use a smaller image_size, fewer images, less context, or another model"
            )
        examples.append(example)
    return examples


def follow_up_tokens(drafter: Drafter) -> list[int]:
    """What stands between the named observations and the report, by the chat template: the end of a turn comes first.

    Raises:
        ValueError: the chat template does not keep an earlier answer as it is.
    """
    mark = "<<<observations>>>"
    turns = [("user", "?"), ("assistant", mark)]
    messages: list[dict[str, Any]] = [
        {"role": role, "content": [{"type": "text", "text": text}]} for role, text in turns
    ]
    messages.append(drafter.prompt.follow_up())
    text = drafter.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    _, found, rest = text.partition(mark)
    if not found:
        raise RadDraftError(
            "prompt.findings_first: the chat template of the language model does not keep the answer of an earlier "
            "turn; leave it out, or choose another language model"
        )
    return drafter.processor.tokenizer(rest, add_special_tokens=False)["input_ids"]


def render_prompt(drafter: Drafter, study: Study, prior: Study | None = None) -> str:
    """The prompt of a study as text, with a single token for each picture."""
    messages = drafter.prompt.messages(study, prior)
    return drafter.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)


def blank_pixels(processor: LlavaProcessor) -> torch.Tensor:
    """A black picture as the tower gets it: [1, 3, H, W]."""
    from PIL import Image

    return processor.image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]


def count_image_tokens(processor: LlavaProcessor) -> int:
    """How many image tokens the processor writes for one picture."""
    placeholders = processor.replace_image_token({"pixel_values": blank_pixels(processor)}, 0)
    return placeholders.count(processor.image_token)


@dataclass
class Item:
    """An example with its pictures; all of them are blank where one cannot be read."""

    example: Example
    pixels: Any
    """What `collate` of the same dataset takes: pixels [n, 3, H, W] or stored hidden states [n, T, D] of n pictures."""
    error: str | None = None


class ExampleDataset(Dataset):
    """Examples with their pixels, prepared in the loader's workers, or with features stored before."""

    def __init__(self, examples: Sequence[Example], drafter: Drafter, features: FeatureStore | None = None) -> None:
        self.examples, self.features, self.pad_id = examples, features, drafter.processor.tokenizer.pad_token_id
        self.image_processor, self.gray_mapping = drafter.processor.image_processor, drafter.gray_mapping
        self.blank = torch.zeros_like(blank_pixels(drafter.processor)[0]) if features is None else features.blank

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> Item:
        example = self.examples[index]
        try:
            if self.features is not None:
                return Item(example, torch.stack([self.features[path].float() for path in example.images]))
            pixels = [prepare_pixels(self.image_processor, path, self.gray_mapping) for path in example.images]
            return Item(example, torch.stack(pixels))
        except (ImageError, OSError) as error:
            blank = self.blank.expand(len(example.images), *self.blank.shape)
            return Item(example, blank, f"{example.study_id}: {error}")

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """A batch of the model's inputs, with labels and errors; see the function `collate`."""
        return collate(items, self.pad_id)


def collate(items: Sequence[Item], pad_id: int) -> dict[str, Any]:
    """Left-pad to one length, so that all reports end in the last column.

    Returns:
        input_ids, attention_mask, position_ids [B, L]; pixel_values [N, …] of all pictures, row by row in the order of
        their placeholders; labels [B, A] for the last A columns, A the longest report of the batch and one more, since
        a token is predicted from the one before it; errors, a sentence for each study with an image that cannot be read
        (its row has no labels).
    """
    length = max(len(item.example) for item in items)
    input_ids = torch.full((len(items), length), pad_id)
    attention_mask = torch.zeros(len(items), length, dtype=torch.long)
    for row, item in enumerate(items):
        example = item.example
        input_ids[row, length - len(example) :] = torch.tensor(example.prompt + example.answer)
        attention_mask[row, length - len(example) :] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "position_ids": (attention_mask.cumsum(1) - 1).clamp(min=0),
        "pixel_values": torch.cat([item.pixels for item in items]),
        "labels": labels_of(items),
        "errors": [item.error for item in items if item.error],
    }


def labels_of(items: Sequence[Item]) -> torch.Tensor:
    """The reports' tokens in the last columns, all else IGNORE: [B, A], A as for `collate`."""
    labels = torch.full((len(items), max(len(item.example.answer) for item in items) + 1), IGNORE)
    for row, item in enumerate(items):
        if item.example.answer and item.error is None:
            answer = torch.tensor(item.example.answer)
            answer[item.example.given.start : item.example.given.stop] = IGNORE
            labels[row, -len(answer) :] = answer
    return labels


def batch_indices(lengths: Sequence[int], batch_size: int, seed: str) -> list[list[int]]:
    """Shuffled batches of examples of similar length: the same for the same arguments on every machine.

    Shuffle, sort by length within chunks of 50 batches, cut into batches, shuffle the batches.
    """
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    chunk = 50 * batch_size
    order = [i for at in range(0, len(order), chunk) for i in sorted(order[at : at + chunk], key=lambda i: -lengths[i])]
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    generator.shuffle(batches)
    return batches


def split_batch(batch: Sequence[int], rank: int, world: int, micro_batch_size: int) -> list[list[int]]:
    """The micro-batches of one process; every process gets equally many, some perhaps empty."""
    share = list(batch[rank::world])
    count = -(-len(batch) // (world * micro_batch_size))
    bounds = [len(share) * i // count for i in range(count + 1)]
    return [share[bounds[i] : bounds[i + 1]] for i in range(count)]


def load_micro_batches(
    dataset: ExampleDataset, micro_batches: Sequence[list[int]], workers: int
) -> Iterator[dict[str, Any]]:
    """Collated micro-batches in the given order, prepared ahead by `workers` processes.

    An empty micro-batch (a process with nothing left of a small batch) holds one example without labels: it keeps
    the processes in step and adds nothing to loss or gradient.
    """
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=[batch or [0] for batch in micro_batches],  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=dataset.collate,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        # With its own generator the loader draws nothing from the global one: dropout goes on as if never stopped.
        generator=torch.Generator(),
    )
    for batch, indices in zip(loader, micro_batches, strict=True):
        if not indices:
            batch["labels"].fill_(IGNORE)
        yield batch
