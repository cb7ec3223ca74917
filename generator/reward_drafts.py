"""Studies -> drafts for a reward stage: prompts in chunks that resume at any step, and sampled or greedy drafts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from encoder.features import FeatureStore
from generator.config import RewardConfig, TrainConfig
from generator.data import ExampleDataset, Item, batch_indices, load_batches, split_batch
from generator.decoding import end_tokens
from generator.drafter import Drafter
from generator.rollout import sample, uniform_draws
from raddraft.errors import RadDraftError, UnavailableError
from raddraft.processes import process_share, whole_model
from raddraft.studies import Study, skim

if TYPE_CHECKING:
    from accelerate import Accelerator

INPUTS = ("input_ids", "attention_mask", "pixel_values")


@dataclass
class Prompts:
    """The studies of a split that have a report: their prompts without it, and the reports."""

    dataset: ExampleDataset
    references: dict[str, str]
    """Study id -> report."""


def read_prompts(
    drafter: Drafter, studies: Sequence[Study], config: RewardConfig, store: FeatureStore | None
) -> Prompts:
    """The prompts of the studies that have a report.

    Raises:
        RadDraftError: a model from elsewhere, a prompt in two turns, or one with a draft too long for the context.
    """
    if drafter.kind != "llava":
        raise RadDraftError(
            "A reward stage needs a model that was built by RadDraft: model.tower and model.lm, or as model.vlm the "
            "folder of a model that it trained"
        )
    if drafter.prompt.findings_first:
        raise RadDraftError("A reward stage cannot ask in two turns; leave out prompt.findings_first")
    references = {study.study_id: text for study in skim(studies) if (text := drafter.prompt.answer(study))}
    examples = drafter.encode(studies, answers=False, reserve=config.max_new_tokens)
    kept = [example for example in examples if example.study_id in references]
    return Prompts(drafter.dataset(kept, store), references)


@dataclass
class Chunk:
    """A few studies of a step on this process, with their drafts."""

    inputs: dict[str, Tensor]
    """input_ids and attention_mask [B, L], pixel_values of all images, row by row."""
    study_ids: list[str]
    images: list[int]
    """Number of images of each study."""
    asked: list[bool]
    """Whether a study takes part: its images can be read, and it does not only keep processes in step."""
    parts: list[list[int]]
    """Rows of each forward pass; of an empty one, the first row goes in and counts nothing."""
    drafts: list[list[list[int]]] = field(default_factory=list)
    """Tokens of each study's drafts, the end token among them."""
    ended: list[list[bool]] = field(default_factory=list)
    """Whether each draft ended by itself."""
    texts: list[list[str]] = field(default_factory=list)
    """The drafts, and after them the greedy one if there is one."""
    rewards: Future[Any] | None = None
    """What `texts` are worth, a `generator.rewards.Scored`."""
    seconds: float = 0.0
    """What scoring them took."""
    advantage: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Of each draft [B, G]."""
    counts: Tensor = field(default_factory=lambda: torch.zeros(0))
    """Whether a draft takes part [B, G]."""
    start: list[Tensor] = field(default_factory=list)
    """Of each part, log-probabilities [N, T] under the weights that the stage began with."""
    before: list[Tensor] = field(default_factory=list)
    """Of each part, those under the weights that the drafts were sampled from."""

    def part(self, index: int) -> tuple[dict[str, Tensor], list[list[int]]]:
        """Inputs of some studies side by side, and their N drafts."""
        first, last = self._rows(index)
        inputs = {name: self.inputs[name][first:last] for name in INPUTS[:2]}
        inputs[INPUTS[2]] = self.inputs[INPUTS[2]][sum(self.images[:first]) : sum(self.images[:last])]
        return inputs, [draft for group in self.drafts[first:last] for draft in group]

    def compared(self, index: int) -> tuple[Tensor, Tensor]:
        """Advantages of the drafts of a part [N], and whether they count [N]."""
        first, last = self._rows(index)
        return self.advantage[first:last].flatten(), self.counts[first:last].flatten() & bool(self.parts[index])

    def _rows(self, index: int) -> tuple[int, int]:
        rows = self.parts[index]
        return (rows[0], rows[-1] + 1) if rows else (0, 1)


def load_chunks(
    dataset: ExampleDataset,
    config: TrainConfig,
    reward: RewardConfig,
    stage: int,
    steps: range,
    accelerator: Accelerator,
) -> Iterator[tuple[list[str], list[Chunk]]]:
    """For each of the steps: a sentence for each study that cannot be read here, and this process's chunks."""
    lengths = [len(example) for example in dataset.examples]
    steps_per_epoch = math.ceil(len(lengths) / reward.batch_size)
    rank, world = process_share(accelerator)
    start = steps.start
    while start < steps.stop:
        epoch, first = divmod(start, steps_per_epoch)
        order = batch_indices(lengths, reward.batch_size, f"{config.seed} {stage} {epoch}")
        batches = order[first : first + steps.stop - start]
        shares = [[split_batch(batch, r, world, reward.sample_batch_size) for r in range(world)] for batch in batches]
        loader = iter(_load(dataset, [chunk for share in shares for chunk in share[rank]], config.workers))
        for share in shares:
            chunks, errors = [], []
            for rows, others in zip(share[rank], zip(*share, strict=True), strict=True):
                loaded = next(loader)
                errors += loaded["errors"]
                count = -(-max(map(len, others)) // reward.micro_batch_size)  # as many passes on every process
                bounds = [len(rows) * i // count for i in range(count + 1)]
                chunk = Chunk(
                    {name: loaded[name].to(accelerator.device) for name in INPUTS},
                    loaded["study_ids"],
                    loaded["images"],
                    [bool(rows) and readable for readable in loaded["readable"]],
                    [[*range(bounds[i], bounds[i + 1])] for i in range(count)],
                )
                chunks.append(chunk)
            yield errors, chunks
        start += len(batches)


def _load(dataset: ExampleDataset, chunks: Sequence[list[int]], workers: int) -> DataLoader:
    """Collated chunks in this order, the first example where a chunk is empty."""
    filled = (chunk or [0] for chunk in chunks)
    return load_batches(dataset, filled, workers, _collate, prefetch_factor=4 if workers else None)


def _collate(dataset: ExampleDataset, items: Sequence[Item]) -> dict[str, Any]:
    examples = [item.example for item in items]
    return dataset.collate(items) | {
        "study_ids": [example.study_id for example in examples],
        "images": [len(example.images) for example in examples],
        "readable": [item.error is None for item in items],
    }


def sample_drafts(chunk: Chunk, model: nn.Module, drafter: Drafter, reward: RewardConfig, seed: str) -> None:
    """Sample the drafts of a chunk; what `seed` and a study draw does not depend on the others in the chunk.

    The greedy draft comes last in each group where `reward.advantage` needs one.
    """
    seeds = [f"{seed} {study_id}" for study_id in chunk.study_ids]
    draws = torch.stack([uniform_draws(one, reward.group, reward.max_new_tokens) for one in seeds])
    if reward.advantage == "self_critical":
        draws = torch.cat([draws, torch.full_like(draws[:, :1], math.nan)], 1)
    ends, size = end_tokens(drafter.model), draws.shape[1]
    tokens = sample(model, chunk.inputs, draws, reward.temperature, ends)
    texts = _texts(drafter, tokens)
    for at in range(0, len(tokens), size):
        chunk.drafts.append(tokens[at : at + reward.group])
        chunk.ended.append([draft[-1] in ends for draft in chunk.drafts[-1]])
        chunk.texts.append(texts[at : at + size])


def draft_greedily(
    model: nn.Module, drafter: Drafter, prompts: Prompts, reward: RewardConfig, workers: int, accelerator: Accelerator
) -> dict[str, str]:
    """Study id -> greedy draft, of all studies whose images can be read, drafted by all processes.

    Raises:
        UnavailableError: no image can be read.
    """
    from accelerate.utils import gather_object

    rank, world = process_share(accelerator)
    examples, size = prompts.dataset.examples, reward.sample_batch_size * reward.group
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    batches = [order[at : at + size] for at in range(0, len(order), size)][rank::world]
    drafts: list[tuple[str, str]] = []
    with whole_model(model):
        for batch in _load(prompts.dataset, batches, workers):
            inputs = {name: batch[name].to(accelerator.device) for name in INPUTS}
            greedy = torch.full((len(batch["study_ids"]), 1, reward.max_new_tokens), math.nan)
            texts = _texts(drafter, sample(model, inputs, greedy, 1.0, end_tokens(drafter.model)))
            found = zip(batch["study_ids"], texts, batch["readable"], strict=True)
            drafts += [(study_id, text) for study_id, text, readable in found if readable]
    known = dict(gather_object(drafts))
    if not known:
        raise UnavailableError("No image of the val split can be read")
    return {study_id: known[study_id] for study_id in prompts.references if study_id in known}


def _texts(drafter: Drafter, tokens: Sequence[Sequence[int]]) -> list[str]:
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    return [text.strip() for text in drafter.processor.tokenizer.batch_decode(tokens, **options)]
