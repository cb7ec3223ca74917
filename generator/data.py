"""Examples -> batches: token ids with pixels or stored features, in an order that resumes at any step."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader, Dataset

from encoder.encoding import prepare_pixels, to_pixels
from encoder.features import FeatureStore
from raddraft.images import ImageError
from raddraft.studies import GrayMapping

if TYPE_CHECKING:
    from PIL import Image
    from transformers import LlavaProcessor

IGNORE = -100
"""Label that the cross-entropy leaves out."""


@dataclass
class Example:
    """One study as the model reads it."""

    study_id: str
    images: list[Path]
    """Image files in the order of the prompt."""
    text: list[int]
    """Token ids of the prompt, with a single image token for each image."""
    answer: list[int]
    """Token ids of the report and its end token, empty for generation. If observations are named first: theirs, the
    request for the report, the report."""
    given: range = range(0)
    """Positions of that request in the answer, which is not learned."""
    image_id: int = -1
    """Id of the image token."""
    image_tokens: int = 1
    """Image tokens that the model reads for one image."""

    def __len__(self) -> int:
        return len(self.text) + (self.image_tokens - 1) * len(self.images) + len(self.answer)

    @property
    def prompt(self) -> list[int]:
        """Token ids of the prompt, with one image token for each image feature."""
        counts = (self.image_tokens if token == self.image_id else 1 for token in self.text)
        return [token for token, count in zip(self.text, counts, strict=True) for _ in range(count)]

    @property
    def learned(self) -> int:
        """Number of answer tokens in the loss."""
        return len(self.answer) - len(self.given)


def blank_pixels(processor: LlavaProcessor) -> torch.Tensor:
    """A black image as the tower gets it: [1, 3, H, W]."""
    from PIL import Image

    return processor.image_processor([Image.new("RGB", (64, 64))], return_tensors="pt")["pixel_values"]


def count_image_tokens(processor: LlavaProcessor) -> int:
    """Number of image tokens that the processor writes for one image."""
    placeholders = processor.replace_image_token({"pixel_values": blank_pixels(processor)}, 0)
    return placeholders.count(processor.image_token)


@dataclass
class Item:
    """An example with its images; all of them are blank if one cannot be read."""

    example: Example
    pixels: Any
    """What `collate` of the same dataset takes: pixels [n, 3, H, W] or stored hidden states [n, T, D] of n images."""
    error: str | None = None


class ExampleDataset(Dataset):
    """Examples with their pixels, prepared in the loader's workers, or with stored features."""

    def __init__(
        self,
        examples: Sequence[Example],
        processor: LlavaProcessor,
        gray_mapping: GrayMapping,
        features: FeatureStore | None = None,
    ) -> None:
        self.examples, self.features, self.gray_mapping = examples, features, gray_mapping
        self.image_processor, self.pad_id = processor.image_processor, processor.tokenizer.pad_token_id
        self.blank = torch.zeros_like(blank_pixels(processor)[0]) if features is None else features.blank

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, which: int | Example) -> Item:
        """An example, by its number or itself, with its images."""
        example = which if isinstance(which, Example) else self.examples[which]
        try:
            if self.features is not None:
                return Item(example, torch.stack([self.features[path].float() for path in example.images]))
            pixels = [prepare_pixels(self.image_processor, path, self.gray_mapping) for path in example.images]
            return Item(example, torch.stack(pixels))
        except (ImageError, OSError) as error:
            blank = self.blank.expand(len(example.images), *self.blank.shape)
            return Item(example, blank, f"{example.study_id}: {error}")

    def item(self, example: Example, images: Sequence[Image.Image]) -> Item:
        """An example with gray images that were read before, in the order of its prompt."""
        return Item(example, torch.stack([to_pixels(self.image_processor, image) for image in images]))

    def collate(self, items: Sequence[Item]) -> dict[str, Any]:
        """A batch of the model's inputs with labels and errors, see the function `collate`."""
        return collate(items, self.pad_id)


def collate(items: Sequence[Item], pad_id: int) -> dict[str, Any]:
    """Left-pad to one length, so that all reports end in the last column.

    Returns:
        input_ids, attention_mask, position_ids [B, L]; pixel_values [N, …] of all images, row by row in the order of
        their image tokens; labels [B, A] for the last A columns, where A is one more than the longest answer of the
        batch, since a token is predicted from the one before it; errors, a sentence for each study with an unreadable
        image (its row has no labels).
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
    """The tokens of the answers in the last columns, IGNORE elsewhere: [B, A], A as for `collate`."""
    labels = torch.full((len(items), max(len(item.example.answer) for item in items) + 1), IGNORE)
    for row, item in enumerate(items):
        if item.example.answer and item.error is None:
            answer = torch.tensor(item.example.answer)
            answer[item.example.given.start : item.example.given.stop] = IGNORE
            labels[row, -len(answer) :] = answer
    return labels


class Batches(Sequence[list[int]]):
    """Shuffled batches of examples of similar length: the same for the same arguments on every machine.

    Shuffle, sort by length within chunks of 50 batches, cut into batches, shuffle the batches. A chunk is sorted when
    its first batch is asked for, so the lengths of all others need not be known before.

    Args:
        count: number of examples.
        lengths: gives the lengths of some of them.
        batch_size: examples in a batch.
        seed: tells the epochs of a run apart.
    """

    def __init__(
        self, count: int, lengths: Callable[[Sequence[int]], Sequence[int]], batch_size: int, seed: str
    ) -> None:
        generator = random.Random(seed)
        self._order = list(range(count))
        generator.shuffle(self._order)
        self._numbers = list(range(-(-count // batch_size)))
        generator.shuffle(self._numbers)
        self._lengths, self._size = lengths, batch_size
        self._sorted: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, index: int) -> list[int]:  # type: ignore[override]  # no slices
        chunk, at = divmod(self._numbers[index], 50)
        if chunk not in self._sorted:
            size = 50 * self._size
            rows = self._order[chunk * size : (chunk + 1) * size]
            length = dict(zip(rows, self._lengths(rows), strict=True))
            self._sorted[chunk] = sorted(rows, key=lambda row: -length[row])
        return self._sorted[chunk][at * self._size : (at + 1) * self._size]


def batch_indices(lengths: Sequence[int], batch_size: int, seed: str) -> list[list[int]]:
    """All `Batches` of examples whose lengths are known."""
    return list(Batches(len(lengths), lambda rows: [lengths[row] for row in rows], batch_size, seed))


def split_batch(batch: Sequence[int], rank: int, world: int, micro_batch_size: int) -> list[list[int]]:
    """The micro-batches of one process; every process gets equally many, some perhaps empty."""
    share = list(batch[rank::world])
    count = -(-len(batch) // (world * micro_batch_size))
    bounds = [len(share) * i // count for i in range(count + 1)]
    return [share[bounds[i] : bounds[i + 1]] for i in range(count)]


def load_batches(
    dataset: ExampleDataset,
    batches: Iterable[Sequence[int]],
    workers: int,
    collate: Callable[[Any, Sequence[Item]], Any] | None = None,
    **options: Any,
) -> DataLoader:
    """A loader of batches of these examples, in the given order, prepared ahead by `workers` processes.

    A worker is given each example with its batch, so it holds none of the others. `collate` takes the dataset and a
    batch, by default the dataset's own does; `options` are the DataLoader's.
    """
    reader = copy(dataset)
    reader.examples = ()
    return DataLoader(
        reader,
        batch_sampler=([dataset.examples[row] for row in batch] for batch in batches),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=partial(collate, reader) if collate else reader.collate,
        # With its own generator the loader draws nothing from the global one, so dropout resumes exactly.
        generator=torch.Generator(),
        **options,
    )


def load_micro_batches(
    dataset: ExampleDataset, micro_batches: Iterable[list[int]], workers: int
) -> Iterator[dict[str, Any]]:
    """Collated micro-batches in the given order, prepared ahead by `workers` processes.

    An empty micro-batch (a process with nothing left of a small batch) holds one example without labels: it keeps
    the processes in step and adds nothing to loss or gradient.
    """
    empty: deque[bool] = deque()

    def filled() -> Iterator[list[int]]:
        for rows in micro_batches:
            empty.append(not rows)
            yield rows or [0]

    options: dict[str, Any] = {"prefetch_factor": 4 if workers else None, "pin_memory": torch.cuda.is_available()}
    for batch in load_batches(dataset, filled(), workers, **options):
        if empty.popleft():
            batch["labels"].fill_(IGNORE)
        yield batch
