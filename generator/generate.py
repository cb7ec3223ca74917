"""Batched decoding of drafts to an append-only predictions.jsonl that a killed run goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from encoder.studies import Study
from generator.data import Example, ExampleDataset, Item
from generator.model import Drafter

# Of a batch: generate counts positions itself, and the rest is for training.
NOT_FOR_GENERATE = ("position_ids", "labels", "errors")

BANNER = "DRAFT for a radiologist to check. Written by a machine, not a diagnosis."


@dataclass
class DecodeConfig:
    """How text is decoded."""

    max_new_tokens: int = 150
    """Longest draft, in tokens."""
    batch_size: int = 16
    """Studies decoded together."""
    num_beams: int = 1
    """Beams of beam search; 1 is greedy."""
    sample: bool = False
    """Sample from the distribution instead of taking the most likely token."""
    temperature: float = 1.0
    """Temperature of sampling."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability."""
    seed: int = 0
    """Seed of sampling."""

    def __post_init__(self) -> None:
        if min(self.max_new_tokens, self.batch_size, self.num_beams) < 1:
            raise ValueError(f"decode: max_new_tokens, batch_size and num_beams must be at least 1, got {self}")
        if self.sample and (self.temperature <= 0 or not 0 < self.top_p <= 1):
            raise ValueError(f"decode: need temperature > 0 and 0 < top_p <= 1, got {self}")

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`."""
        arguments: dict[str, Any] = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams}
        if self.sample:
            return arguments | {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        return arguments | {"do_sample": False}

    def __str__(self) -> str:
        parts = ["greedy"] if not self.sample and self.num_beams == 1 else []
        if self.sample:
            parts.append(f"sampled at temperature {self.temperature}, top_p {self.top_p}, seed {self.seed}")
        if self.num_beams > 1:
            parts.append(f"{self.num_beams} beams")
        return ", ".join([*parts, f"{self.max_new_tokens} new tokens"])


def generate(
    drafter: Drafter, studies: Sequence[Study], out: Path, config: DecodeConfig, name: str, workers: int = 0
) -> list[str]:
    """Draft every study, append the drafts to `out` in the order of `studies`, and go on where a killed run stopped.

    Args:
        drafter: the model.
        studies: what to draft; of each the pictures that the model's prompt names are read.
        out: the predictions.jsonl.
        config: how to decode.
        name: what to call the model in the file.
        workers: processes that decode and prepare images.

    Returns:
        A sentence for each study that got no draft since its image cannot be read.

    Raises:
        ValueError: `out` holds drafts of another model, decoding or study, or a prompt is too long.
    """
    from tqdm import tqdm

    settings = {"model": name, "decoding": str(config)}
    done = read_resumable(out, {study.study_id for study in studies}, settings)
    references = {study.study_id: drafter.prompt.answer(study) for study in studies}
    errors: list[str] = []
    with open(out, "a", encoding="utf-8") as file, tqdm(total=len(studies), unit="study", desc="drafts") as bar:
        for batch, texts, batch_errors in decode(drafter, studies, config, workers, done):
            rows = [
                {"study_id": study_id, "prediction": text, "reference": references[study_id], **settings}
                for study_id, text in zip((example.study_id for example in batch), texts, strict=True)
                if study_id not in done
            ]
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            errors += batch_errors
            bar.update(len(batch) + len(batch_errors))
    return errors


def decode(
    drafter: Drafter,
    studies: Sequence[Study],
    config: DecodeConfig,
    workers: int = 0,
    done: frozenset[str] = frozenset(),
) -> Iterator[tuple[list[Example], list[str], list[str]]]:
    """Yield for each batch its examples, their drafts, and a sentence for each unreadable image.

    Batches are always cut from the whole list, so that a study is decoded with the same neighbours, hence to the
    same text, whether or not a run was interrupted. Batches that are wholly `done` are passed over.
    """
    examples = drafter.encode(studies, answers=False, reserve=config.max_new_tokens)
    batches = [examples[at : at + config.batch_size] for at in range(0, len(examples), config.batch_size)]
    numbers = [i for i, batch in enumerate(batches) if not all(example.study_id in done for example in batch)]
    dataset = drafter.dataset(examples)
    rows = [[number * config.batch_size + k for k in range(len(batches[number]))] for number in numbers]
    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=rows,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=partial(_collate_readable, dataset),
        generator=torch.Generator(),
    )
    for number, (readable, batch, errors) in zip(numbers, loader, strict=True):
        yield readable, decode_batch(drafter, batch, config, number) if readable else [], errors


def _collate_readable(
    dataset: ExampleDataset, items: Sequence[Item]
) -> tuple[list[Example], dict[str, Any], list[str]]:
    """The examples whose images can be read, their batch (empty without any), and a sentence for each other one."""
    readable = [item for item in items if not item.error]
    batch = dataset.collate(readable) if readable else {}
    return [item.example for item in readable], batch, [item.error for item in items if item.error]


@torch.inference_mode()
def decode_batch(drafter: Drafter, batch: dict[str, Any], config: DecodeConfig, number: int = 0) -> list[str]:
    """Drafts of one collated batch; `number` sets the batch's own random state if sampling."""
    model: Any = drafter.model
    tokenizer = drafter.processor.tokenizer
    if config.sample:
        torch.manual_seed(config.seed * 1_000_003 + number)
    inputs = {key: value.to(model.device) for key, value in batch.items() if key not in NOT_FOR_GENERATE}
    inputs = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    tokens = model.generate(**inputs, **config.arguments())[:, batch["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def read_resumable(out: Path, study_ids: set[str], settings: dict[str, str]) -> frozenset[str]:
    """Ids that `out` already holds; a last line that was cut by a kill is dropped from the file.

    Raises:
        ValueError: a line was written with other settings, or for a study that is not wanted now.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.is_file():
        return frozenset()
    done, whole = set(), 0
    with open(out, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            whole += len(line)
            row = json.loads(line)
            for key, value in settings.items():
                if row.get(key) != value:
                    raise ValueError(
                        f"{out} line {number} was written with {key} {row.get(key)!r}, not {value!r}; "
                        "choose another --out or remove the file"
                    )
            if row["study_id"] not in study_ids:
                raise ValueError(f"{out} line {number}: study {row['study_id']!r} is not among those to draft")
            done.add(row["study_id"])
    with open(out, "r+b") as file:
        file.truncate(whole)
    return frozenset(done)
