"""Batched decoding of drafts to an append-only predictions.jsonl that a killed run goes on from."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from encoder.tower import weights_digest
from generator.confidence import confidence, sentence_log_probs
from generator.data import MOST_OBSERVATIONS, Example, ExampleDataset, Item, follow_up_tokens
from generator.model import Drafter
from raddraft.errors import RadDraftError
from raddraft.files import write_whole
from raddraft.studies import Study

if TYPE_CHECKING:
    from transformers import DynamicCache

    from generator.speculate import Speculator

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
    candidates: int = 1
    """Drafts of each study, from one pass over its image and prompt. More than one are sampled; `raddraft consensus`
    chooses among them, and until then the first, that is any, is the prediction."""
    temperature: float | None = None
    """Temperature of sampling; by default 1, or 0.5 for several candidates (CCS, arXiv 2605.30131)."""
    top_p: float = 1.0
    """Sample from the smallest set of tokens with this probability."""
    seed: int = 0
    """Seed of sampling."""
    repetition_penalty: float = 1.0
    """Above 1, tokens used before, in the prompt too, become less likely (Keskar et al., arXiv 1909.05858)."""
    no_repeat_ngram_size: int = 0
    """No sequence of so many tokens occurs twice, not even one of the prompt; 0 allows all."""
    min_new_tokens: int = 0
    """Shortest draft, in tokens."""
    confidence: bool = False
    """Keep for each sentence how likely the model found it, and among several candidates how many state the same."""

    def __post_init__(self) -> None:
        if min(self.max_new_tokens, self.batch_size, self.num_beams, self.candidates) < 1:
            raise RadDraftError(
                f"decode: max_new_tokens, batch_size, num_beams and candidates must be at least 1, got {self!r}"
            )
        if not self.samples and (self.temperature is not None or self.top_p != 1):
            raise RadDraftError(
                f"decode: temperature and top_p are of sampling; add sample: true or candidates: {self!r}"
            )
        if self.samples and (self.heat <= 0 or not 0 < self.top_p <= 1):
            raise RadDraftError(f"decode: need temperature > 0 and 0 < top_p <= 1, got {self!r}")
        if self.candidates > 1 and self.num_beams > 1:
            raise RadDraftError(f"decode: candidates are sampled, not found by beams, got {self!r}")
        if self.repetition_penalty <= 0 or self.no_repeat_ngram_size < 0 or self.min_new_tokens < 0:
            raise RadDraftError(
                f"decode: need repetition_penalty > 0, no_repeat_ngram_size >= 0 and min_new_tokens >= 0, got {self!r}"
            )

    @property
    def samples(self) -> bool:
        """Whether tokens are drawn."""
        return self.sample or self.candidates > 1

    @property
    def heat(self) -> float:
        """The temperature that sampling has."""
        if self.temperature is not None:
            return self.temperature
        return 0.5 if self.candidates > 1 else 1.0

    @property
    def controls(self) -> dict[str, Any]:
        """What is set of repetition and length."""
        defaults = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_new_tokens": 0}
        return {name: getattr(self, name) for name, default in defaults.items() if getattr(self, name) != default}

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`."""
        arguments = {"max_new_tokens": self.max_new_tokens, "num_beams": self.num_beams, **self.controls}
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
        parts += [f"{name} {value}" for name, value in self.controls.items()]
        return ", ".join([*parts, *(["with confidence"] if self.confidence else [])])


@dataclass
class Draft:
    """What was decoded for one study."""

    candidates: list[str]
    """One text, or as many as were asked for."""
    log_probs: list[list[float]] | None = None
    """For each candidate the mean log-probability of the tokens of each sentence, if asked for."""
    observations: str | None = None
    """What the model named before it wrote, if it is one that does."""

    @property
    def text(self) -> str:
        """The draft; of several candidates the first, which is as good as any."""
        return self.candidates[0]

    def row(self) -> dict[str, Any]:
        """Its part of a line of predictions.jsonl."""
        row: dict[str, Any] = {} if self.observations is None else {"observations": self.observations}
        row |= {"candidates": self.candidates} if len(self.candidates) > 1 else {}
        if self.log_probs is None:
            return row
        return row | {"log_probs": self.log_probs, "confidence": confidence(self.candidates, self.log_probs, 0)}


def generate(
    drafter: Drafter,
    studies: Sequence[Study],
    out: Path,
    config: DecodeConfig,
    name: str,
    workers: int = 0,
    speculator: Speculator | None = None,
    process: tuple[int, int] = (0, 1),
) -> list[str]:
    """Draft every study, append the drafts to `out` in the order of `studies`, and go on where a killed run stopped.

    Of several processes each writes a file of its own beside `out`, for which `merge` makes room before and after.

    Args:
        drafter: the model.
        studies: what to draft; of each the pictures that the model's prompt names are read.
        out: the predictions.jsonl.
        config: how to decode.
        name: what to call the model in the file.
        workers: processes that decode and prepare images.
        speculator: proposes tokens to the model, which then writes the same text in fewer passes.
        process: index of this process and their number. Each decodes a share of the batches, to the same texts.

    Returns:
        A sentence for each study that got no draft since its image cannot be read.

    Raises:
        ValueError: `out` holds drafts of another model, decoding, study, prompt or picture, a prompt is too long, or
            tokens cannot be proposed with this decoding.
    """
    from tqdm import tqdm

    settings = {"model": name, "decoding": str(config)}
    examples = drafter.encode(studies, answers=False, reserve=config.max_new_tokens)
    prints = fingerprints(drafter, examples)
    done = read_resumable(out, prints, settings)
    part = out if process[1] == 1 else out.with_name(f"{out.name}.{process[0]}")
    references = {study.study_id: drafter.prompt.answer(study) for study in studies}
    errors: list[str] = []
    with open(part, "a", encoding="utf-8") as file, tqdm(total=len(studies), unit="study", desc="drafts") as bar:
        for batch, drafts, batch_errors in decode(drafter, examples, config, workers, done, speculator, process):
            for example, draft in zip(batch, drafts, strict=True):
                if example.study_id not in done:
                    head = {"study_id": example.study_id, "prediction": draft.text}
                    row = head | {"reference": references[example.study_id]} | draft.row() | settings
                    row["fingerprint"] = prints[example.study_id]
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
            file.flush()
            errors += batch_errors
            bar.update(len(batch) + len(batch_errors))
    return errors


def merge(out: Path, studies: Sequence[Study]) -> None:
    """Put what several processes have written into `out`, in the order of the studies, and remove their files."""
    parts = sorted(file for file in out.parent.glob(f"{glob.escape(out.name)}.*") if file.suffix[1:].isdecimal())
    if not parts:
        return
    rows: dict[str, str] = {}
    for file in (out, *parts) if out.is_file() else parts:
        with open(file, encoding="utf-8") as lines:  # a last line may have been cut by a kill
            rows |= {json.loads(line)["study_id"]: line for line in lines if line.endswith("\n")}
    with write_whole(out) as temporary, open(temporary, "w", encoding="utf-8") as whole:
        whole.writelines(rows[study.study_id] for study in studies if study.study_id in rows)
    for part in parts:
        part.unlink()


def decode(
    drafter: Drafter,
    examples: Sequence[Example],
    config: DecodeConfig,
    workers: int = 0,
    done: frozenset[str] = frozenset(),
    speculator: Speculator | None = None,
    process: tuple[int, int] = (0, 1),
) -> Iterator[tuple[list[Example], list[Draft], list[str]]]:
    """Yield for each batch of what `drafter.encode` gave its examples, their drafts, and a sentence for each bad image.

    Batches are always cut from the whole list, so that a study is decoded with the same neighbours, hence to the
    same text, whether or not a run was interrupted, and by however many processes. Batches that are wholly `done` are
    passed over.
    """
    if speculator is not None and (config.samples or config.num_beams > 1 or config.controls):
        raise RadDraftError(f"Tokens can be proposed to greedy decoding without further controls only, not: {config}")
    if drafter.kind != "llava" and (speculator is not None or config.confidence):
        raise RadDraftError("Proposed tokens and confidence are for models that were built here")
    batches = [examples[at : at + config.batch_size] for at in range(0, len(examples), config.batch_size)]
    numbers = [i for i, batch in enumerate(batches) if not all(example.study_id in done for example in batch)]
    numbers = [i for i in numbers if i % process[1] == process[0]]
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
        yield readable, decode_batch(drafter, batch, config, number, speculator) if readable else [], errors


def _collate_readable(
    dataset: ExampleDataset, items: Sequence[Item]
) -> tuple[list[Example], dict[str, Any], list[str]]:
    """The examples whose images can be read, their batch (empty without any), and a sentence for each other one."""
    readable = [item for item in items if not item.error]
    batch = dataset.collate(readable) if readable else {}
    return [item.example for item in readable], batch, [item.error for item in items if item.error]


@torch.inference_mode()
def decode_batch(
    drafter: Drafter,
    batch: dict[str, Any],
    config: DecodeConfig,
    number: int = 0,
    speculator: Speculator | None = None,
) -> list[Draft]:
    """Drafts of one collated batch; `number` sets the batch's own random state if sampling."""
    model: Any = drafter.model
    tokenizer = drafter.processor.tokenizer
    if config.samples:
        torch.manual_seed(config.seed * 1_000_003 + number)
    inputs = {key: value.to(model.device) for key, value in batch.items() if key not in NOT_FOR_GENERATE}
    inputs = {key: value.to(model.dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    observations: list[Any] = [None] * len(inputs["input_ids"])
    if drafter.prompt.findings_first:
        inputs, observations = _name_observations(drafter, inputs)
    if speculator is not None:
        from generator.speculate import speculate

        tokens = speculate(model, inputs | _positions(inputs), speculator, config.max_new_tokens)
    elif config.candidates > 1 and drafter.kind == "llava":
        tokens = _sample(model, inputs, config)
    else:
        arguments = config.arguments() | {"num_return_sequences": config.candidates}
        tokens = model.generate(**inputs, **arguments)[:, inputs["input_ids"].shape[1] :].tolist()
    ends = end_tokens(model)
    tokens = [_until_end(line, ends) for line in tokens]
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    log_probs: list[Any] = [None] * len(texts)
    if config.confidence:
        of_tokens = token_log_probs(model, inputs, tokens)
        log_probs = [sentence_log_probs(tokenizer, *pair) for pair in zip(tokens, of_tokens, strict=True)]
    groups = [slice(at, at + config.candidates) for at in range(0, len(texts), config.candidates)]
    return [
        Draft([text.strip() for text in texts[group]], log_probs[group] if config.confidence else None, named)
        for group, named in zip(groups, observations, strict=True)
    ]


def _name_observations(drafter: Drafter, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Let the model name what it sees, the most likely tokens whatever the report's decoding.

    Returns:
        Inputs that go on with the answer and the request for the report, and the answers.
    """
    model: Any = drafter.model
    tokenizer, request = drafter.processor.tokenizer, follow_up_tokens(drafter)
    ends = end_tokens(model) | {request[0]}
    new = model.generate(**inputs, max_new_tokens=MOST_OBSERVATIONS, do_sample=False, eos_token_id=sorted(ends))
    new = new[:, inputs["input_ids"].shape[1] :].tolist()
    answers = [[token for token in _until_end(line, ends) if token not in ends] for line in new]
    lines = zip(inputs["input_ids"], inputs["attention_mask"].bool(), answers, strict=True)
    rows = [[*ids[mask].tolist(), *answer, *request] for ids, mask, answer in lines]
    padded = tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt").to(model.device)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return inputs | dict(padded), [text.strip() for text in texts]


def _sample(model: Any, inputs: dict[str, torch.Tensor], config: DecodeConfig) -> list[list[int]]:
    """Several candidates of each study. The prompt is read once; `num_return_sequences` would read it for each."""
    cache = prefill(model, inputs, config.candidates)
    prompts = {key: inputs[key].repeat_interleave(config.candidates, 0) for key in ("input_ids", "attention_mask")}
    tokens = model.generate(**prompts, past_key_values=cache, **config.arguments())
    return tokens[:, prompts["input_ids"].shape[1] :].tolist()


def prefill(model: Any, inputs: dict[str, torch.Tensor], repeats: int = 1) -> DynamicCache:
    """Keys and values of the prompts but for their last token, each row `repeats` times side by side."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    inputs = inputs | _positions(inputs)
    cut = {key: inputs[key][:, :-1] for key in ("input_ids", "attention_mask", "position_ids")}
    model(**(inputs | cut), past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(repeats)
    return cache


def _positions(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0)}


def end_tokens(model: Any) -> set[int]:
    """The tokens that end a draft."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}


def _until_end(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first end token, this included."""
    return tokens[: next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))]


@torch.inference_mode()
def token_log_probs(
    model: Any, inputs: dict[str, torch.Tensor], texts: Sequence[Sequence[int]], chunk: int = 16
) -> list[list[float]]:
    """Log-probability of each token under the model as it is, without temperature or other controls.

    Args:
        model: a LLaVA model.
        inputs: of B studies.
        texts: B or a multiple of it, those of one study side by side.
        chunk: tokens read at a time; the logits of all would take much memory.
    """
    repeats = len(texts) // len(inputs["input_ids"])
    cache = prefill(model, inputs, repeats)
    before = inputs["input_ids"][:, -1:].repeat_interleave(repeats, 0)
    mask = inputs["attention_mask"].repeat_interleave(repeats, 0)
    last = mask.sum(1, keepdim=True) - 1
    width = max(map(len, texts))
    tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts], device=before.device)
    fed = torch.cat([before, tokens[:, :-1]], 1)
    found = []
    for at in range(0, width, chunk):
        part = fed[:, at : at + chunk]
        columns = torch.arange(at, at + part.shape[1], device=part.device)
        logits = model(
            input_ids=part,
            attention_mask=torch.cat([mask, mask.new_ones(len(mask), int(columns[-1]))], 1),
            position_ids=last + columns,
            past_key_values=cache,
            use_cache=True,
        ).logits
        chosen = tokens[:, at : at + chunk, None]
        found.append(logits.float().log_softmax(-1).gather(2, chosen)[..., 0])
    return [line[: len(text)] for line, text in zip(torch.cat(found, 1).tolist(), texts, strict=True)]


def fingerprints(drafter: Drafter, examples: Sequence[Example]) -> dict[str, str]:
    """Study id -> digest of what its draft comes from: model, preparation of pictures, prompt, pictures.

    Of pictures size and date count.
    """
    weights = weights_digest(drafter.model, first=64)
    common = [weights, drafter.gray_mapping, drafter.processor.image_processor.to_json_string()]

    def digest(example: Example) -> str:
        states = [path.stat() if path.is_file() else None for path in example.images]
        pictures = [state and (state.st_size, state.st_mtime_ns) for state in states]
        return hashlib.sha256(json.dumps([common, example.text, pictures]).encode()).hexdigest()[:16]

    return {example.study_id: digest(example) for example in examples}


def read_resumable(out: Path, prints: Mapping[str, str], settings: dict[str, str]) -> frozenset[str]:
    """Ids that `out` already holds; a last line that was cut by a kill is dropped from the file.

    Args:
        out: the predictions.jsonl.
        prints: fingerprints of the studies that are wanted.
        settings: what every line must state alike.

    Raises:
        ValueError: a line was written with other settings, for a study that is not wanted now, or from something else.
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
                    raise RadDraftError(
                        f"{out} line {number} was written with {key} {row.get(key)!r}, not {value!r}; "
                        "choose another --out or remove the file"
                    )
            study_id = row["study_id"]
            if study_id not in prints:
                raise RadDraftError(f"{out} line {number}: study {study_id!r} is not among those to draft")
            if row.get("fingerprint") != prints[study_id]:
                raise RadDraftError(
                    f"{out} line {number}: the draft of study {study_id!r} was made with other weights, another prompt "
                    "or another picture; choose another --out or remove the file"
                )
            done.add(study_id)
    with open(out, "r+b") as file:
        file.truncate(whole)
    return frozenset(done)
