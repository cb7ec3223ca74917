"""Decode drafts in batches and append them to a predictions.jsonl, from which an interrupted run resumes."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from encoder.tower import weights_digest
from generator.confidence import confidence, sentence_log_probs
from generator.config import DecodeConfig
from generator.data import Example, ExampleDataset, Item, load_batches
from generator.decoding import Decoded, decode_tokens, end_tokens
from generator.drafter import Drafter
from generator.engine import Engine, as_answered
from generator.priors import find_priors, prior_of
from generator.rollout import token_log_probs
from generator.speculate import Speculator
from raddraft.errors import RadDraftError
from raddraft.files import cut_log, read_jsonl, write_whole
from raddraft.images import ImageError, load_image
from raddraft.locks import hold
from raddraft.studies import Study
from raddraft.text import printable

BANNER = "DRAFT for a radiologist to check. Written by a machine, not a diagnosis."
NO_NUMBERS = 'the model computed NaN in place of a draft; set "dtype": "float32" in its config.json, or check that file'


@dataclass
class Draft:
    """The draft of one study, for a radiologist to check; `str(draft)` is its text, made safe for a terminal."""

    candidates: list[str]
    """One text, or as many as were asked for; none where there is an error."""
    log_probs: list[list[float]] | None = None
    """For each candidate the mean log-probability of the tokens of each sentence, if asked for."""
    observations: str | None = None
    """The observations that the model named before it wrote the report, if it was trained to."""
    study_id: str = ""
    """Of an image file that belongs to no DICOM study, the path as given."""
    error: str | None = None
    """Why there is no draft."""
    cut: list[bool] | None = None
    """For each candidate whether it ended at the limit of tokens, not by itself; None where that is not known."""
    banner: str = BANNER
    """To be shown wherever a draft is."""

    @property
    def text(self) -> str:
        """The draft; of several candidates the first, an arbitrary one."""
        return self.candidates[0] if self.candidates else ""

    def __str__(self) -> str:
        return printable(self.text)

    @property
    def confidence(self) -> list[dict[str, Any]] | None:
        """For each sentence of the text its log-probability and agreement, see `generator.confidence.confidence`."""
        return None if self.log_probs is None else confidence(self.candidates, self.log_probs, 0)

    def row(self) -> dict[str, Any]:
        """The optional entries of its line of predictions.jsonl."""
        row: dict[str, Any] = {} if self.observations is None else {"observations": self.observations}
        row |= {} if self.cut is None else {"cut": self.cut[0]}
        if len(self.candidates) > 1:
            row |= {"candidates": self.candidates, "candidates_cut": self.cut}
        return row if self.log_probs is None else row | {"log_probs": self.log_probs, "confidence": self.confidence}


def generate(
    drafter: Drafter,
    studies: Sequence[Study],
    out: Path,
    config: DecodeConfig,
    name: str,
    workers: int = 0,
    speculator: Speculator | None = None,
    engine: Engine | None = None,
) -> list[str]:
    """Draft every study into `out`, in the order of `studies`, with a progress bar; resumes an interrupted run.

    Processes that Accelerate has launched share the batches. Each writes a file of its own beside `out`, and the main
    process merges them. The texts do not depend on the number of processes. What an engine decodes is written as it
    comes, and put in order at the end.

    Returns:
        On the main process a sentence for each study without a draft, since an image of it cannot be read.

    Raises:
        RadDraftError: as `write_drafts`.
    """
    from accelerate import PartialState
    from accelerate.utils import gather_object
    from tqdm import tqdm

    state = PartialState()
    with hold(out):
        if state.is_main_process:  # files that an interrupted run of several processes has left
            merge(out, studies)
        state.wait_for_everyone()
        process = (state.process_index, state.num_processes)
        drafts = write_drafts(drafter, studies, out, config, name, workers, speculator, process, engine)
        with closing(drafts):  # an interruption ends what is with an engine
            bar = tqdm(drafts, "drafts", len(studies), unit="study", disable=None if state.is_main_process else True)
            own = [draft.error for draft in bar if draft.error]
        errors = gather_object(own)
        if state.is_main_process:
            merge(out, studies, in_disorder=engine is not None)
    return errors


def write_drafts(
    drafter: Drafter,
    studies: Sequence[Study],
    out: Path,
    config: DecodeConfig,
    name: str,
    workers: int = 0,
    speculator: Speculator | None = None,
    process: tuple[int, int] = (0, 1),
    engine: Engine | None = None,
) -> Generator[Draft, None, None]:
    """Yield the drafts that `out` holds already, then each new one as soon as it is decoded and appended to `out`.

    Args:
        drafter: the model.
        studies: what to draft.
        out: the predictions.jsonl.
        config: how to decode.
        name: name of the model in the file.
        workers: processes that read and prepare images; an engine's are read by the threads that ask it.
        speculator: proposes tokens to the model, which then writes the same text in fewer passes.
        process: index of this process and number of processes; each of several writes a file `out`.INDEX.
        engine: a server that decodes in place of the drafter's model.

    Raises:
        RadDraftError: `out` holds drafts of another model, decoding, study, prompt or image, a prompt is too long, or
            tokens cannot be proposed with this decoding, or the server fails.
    """
    if engine is not None:
        check_elsewhere(drafter, config, speculator)
    settings = {"model": name, "decoding": str(config) if engine is None else f"{config}, by {engine}"}
    examples = drafter.encode(studies, answers=False, reserve=config.max_new_tokens)
    prints = fingerprints(drafter, examples)
    known = {study.study_id: study for study in studies}
    part = out if process[1] == 1 else out.with_name(f"{out.name}.{process[0]}")
    with ExitStack() as held:
        held.enter_context(hold(out))
        done = set[str]()
        for draft in read_resumable(out, prints, settings):
            done.add(draft.study_id)
            yield draft
        file = held.enter_context(open(part, "a", encoding="utf-8", errors="replace"))  # of lone surrogates
        if engine is None:
            drafts = decode(drafter, examples, config, workers, done, speculator, process)
        else:
            drafts = decode_elsewhere(engine, drafter, studies, examples, config, done, process)
        for draft in drafts:
            if draft.study_id in done:
                continue
            if not draft.error:
                study = copy(known[draft.study_id])  # what is read of it is not kept
                row = study.ids | {"prediction": draft.text, "reference": drafter.prompt.answer(study)}
                row |= draft.row() | settings | {"fingerprint": prints[draft.study_id]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
            yield draft


def merge(out: Path, studies: Sequence[Study], in_disorder: bool = False) -> None:
    """Merge the files of several processes into `out`, in the order of the studies, and remove them.

    Without such files `out` is put in order where its lines may be `in_disorder`.
    """
    parts = sorted(file for file in out.parent.glob(f"{glob.escape(out.name)}.*") if file.suffix[1:].isdecimal())
    if not parts and not in_disorder:
        return
    place: dict[str, tuple[int, int]] = {}  # study id -> number of the file, and where in it the line begins
    with ExitStack() as opened:
        files = [opened.enter_context(open(file, "rb")) for file in ((out, *parts) if out.is_file() else parts)]
        for number, file in enumerate(files):
            start = 0
            for line in file:
                if line.endswith(b"\n"):  # an interruption may have cut the last line
                    place[json.loads(line)["study_id"]] = number, start
                start += len(line)
        with write_whole(out) as temporary, open(temporary, "wb") as merged:
            for study in studies:
                if found := place.get(study.study_id):
                    files[found[0]].seek(found[1])
                    merged.write(files[found[0]].readline())
    for part in parts:
        part.unlink()


def decode(
    drafter: Drafter,
    examples: Sequence[Example],
    config: DecodeConfig,
    workers: int = 0,
    done: Collection[str] = (),
    speculator: Speculator | None = None,
    process: tuple[int, int] = (0, 1),
) -> Generator[Draft, None, None]:
    """Yield a draft for each of the examples that `drafter.encode` gave, or one with the error of a bad image.

    Batches are always cut from the whole list, so that a study is decoded with the same neighbors, hence to the same
    text, whether or not a run was interrupted, and by any number of processes. Batches that are wholly `done` are
    skipped. Of the others, those whose images cannot be read come last in their batch.
    """
    if speculator is not None and (config.samples or config.num_beams > 1 or config.limits):
        raise RadDraftError(f"Tokens can be proposed to plain greedy decoding only, not to: {config}")
    if drafter.kind != "llava" and (speculator is not None or config.confidence):
        raise RadDraftError("speculate and decode.confidence need a model that was built by RadDraft")
    size = config.batch_size
    batches = [range(at, min(at + size, len(examples))) for at in range(0, len(examples), size)]
    numbers = [
        number
        for number, rows in enumerate(batches)
        if number % process[1] == process[0] and not (done and all(examples[row].study_id in done for row in rows))
    ]
    dataset = drafter.dataset(examples)
    loader = load_batches(dataset, (batches[number] for number in numbers), workers, _collate_readable)
    for number, (study_ids, batch, failed) in zip(numbers, loader, strict=True):
        drafts = decode_batch(drafter, batch, config, number, speculator) if batch else []
        for study_id, draft in zip(study_ids, drafts, strict=True):
            draft.study_id = study_id
            draft.error = f"{study_id}: {draft.error}" if draft.error else None
        yield from [*drafts, *failed]


def decode_elsewhere(
    engine: Engine,
    drafter: Drafter,
    studies: Sequence[Study],
    examples: Sequence[Example],
    config: DecodeConfig,
    done: Collection[str] = (),
    process: tuple[int, int] = (0, 1),
) -> Generator[Draft, None, None]:
    """Yield a draft of each study that is not `done`, as it comes, decoded by a server.

    As many requests are with the server at a time as a batch has studies; it makes its batches itself. After a failure
    no further one is sent, and what is with the server is still yielded.

    Raises:
        RadDraftError: the server fails.
    """
    priors = find_priors(studies) if drafter.prompt.prior else {}

    def ask(row: int, study: Study, example: Example) -> Draft:
        try:
            images = [load_image(path, drafter.gray_mapping) for path in example.images]
        except (ImageError, OSError) as error:
            return Draft([], study_id=study.study_id, error=f"{study.study_id}: {error}")
        messages = drafter.prompt.messages(study, prior_of(study, priors))
        reply = engine.write(messages, images, example, config, config.seed * 1_000_003 + row)
        # Servers leave out half a character at the limit of tokens.
        texts = spell(drafter.processor.tokenizer, reply.tokens) if reply.tokens else reply.texts
        return Draft(texts, study_id=study.study_id, cut=reply.cut)

    rows = [row for row in range(process[0], len(studies), process[1]) if studies[row].study_id not in done]
    jobs = ((row, studies[row], examples[row]) for row in rows)
    yield from as_answered(engine, ask, jobs, config.batch_size)


def check_elsewhere(drafter: Drafter, config: DecodeConfig, speculator: Speculator | None) -> None:
    """Raise RadDraftError unless a server can decode so."""
    if drafter.kind != "llava" or drafter.prompt.findings_first:
        raise RadDraftError("A server drafts with models that were built by RadDraft and are asked in one turn only")
    if config.num_beams > 1 or config.limits or config.confidence or speculator is not None:
        raise RadDraftError(
            "A server decodes greedily or samples, without beams, confidence, proposed tokens, limits of repetition or "
            f"of length; got {config}"
        )


def _collate_readable(dataset: ExampleDataset, items: Sequence[Item]) -> tuple[list[str], dict[str, Any], list[Draft]]:
    """Ids of the studies whose images can be read, their batch (empty without any), and the failures of the others."""
    readable = [item for item in items if not item.error]
    failed = [Draft([], study_id=item.example.study_id, error=item.error) for item in items if item.error]
    return [item.example.study_id for item in readable], dataset.collate(readable) if readable else {}, failed


def decode_batch(
    drafter: Drafter,
    batch: dict[str, Any],
    config: DecodeConfig,
    number: int = 0,
    speculator: Speculator | None = None,
) -> list[Draft]:
    """Drafts of one collated batch; its `number` seeds sampling."""
    decoded = decode_tokens(drafter, batch, config, number, speculator)
    log_probs = token_log_probs(drafter.model, decoded.inputs, decoded.tokens) if config.confidence else None
    return read_tokens(drafter, decoded, config, log_probs)


def read_tokens(
    drafter: Drafter, decoded: Decoded, config: DecodeConfig, log_probs: list[list[float]] | None = None
) -> list[Draft]:
    """The drafts of a batch that was decoded by `config`, with those log-probabilities of its tokens that are given."""
    tokenizer, ends = drafter.processor.tokenizer, end_tokens(drafter.model)
    tokens = decoded.tokens
    cut = [not line or line[-1] not in ends for line in tokens]
    texts = spell(tokenizer, tokens)
    of_sentences: list[Any] = [None] * len(texts)
    if log_probs is not None:
        of_sentences = [sentence_log_probs(tokenizer, *pair) for pair in zip(tokens, log_probs, strict=True)]
    groups = [slice(at, at + config.candidates) for at in range(0, len(texts), config.candidates)]
    return [
        Draft([], error=NO_NUMBERS)
        if number in decoded.lost
        else Draft(texts[group], None if log_probs is None else of_sentences[group], named, cut=cut[group])
        for number, (group, named) in enumerate(zip(groups, decoded.observations, strict=True))
    ]


def spell(tokenizer: Any, tokens: Sequence[Sequence[int]]) -> list[str]:
    """The texts of drafts' tokens."""
    texts = tokenizer.batch_decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [text.strip() for text in texts]


def fingerprints(drafter: Drafter, examples: Sequence[Example]) -> dict[str, str]:
    """Study id -> digest of what its draft depends on: weights, image processing, prompt, size and date of images."""
    weights = weights_digest(drafter.model, first=64)
    common = [weights, drafter.gray_mapping, drafter.processor.image_processor.to_json_string()]

    def digest(example: Example) -> str:
        states = [path.stat() if path.is_file() else None for path in example.images]
        images = [state and (state.st_size, state.st_mtime_ns) for state in states]
        return hashlib.sha256(json.dumps([common, example.text, images]).encode()).hexdigest()[:16]

    return {example.study_id: digest(example) for example in examples}


def read_resumable(out: Path, prints: Mapping[str, str], settings: Mapping[str, str]) -> Iterator[Draft]:
    """The drafts that `out` holds already; a last line that an interruption cut is dropped from the file.

    RadDraftError where a line has other settings, a study without a fingerprint in `prints`, or another fingerprint.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.is_file():
        return
    cut_log(out, lambda row: True)
    for line, row in read_jsonl(out, ("study_id", "prediction")):
        where = out.parent / line
        for key, value in settings.items():
            if row.get(key) != value:
                raise RadDraftError(
                    f"{where} was written with {key} {row.get(key)!r}, not {value!r}; choose another --out or remove "
                    "the file"
                )
        study_id = row["study_id"]
        if study_id not in prints:
            raise RadDraftError(f"{where}: study {study_id!r} is not among the studies to draft")
        if row.get("fingerprint") != prints[study_id]:
            raise RadDraftError(
                f"{where}: the draft of study {study_id!r} was made with other weights, another prompt or another "
                "image; choose another --out or remove the file"
            )
        yield _draft_of(row, str(where))


def read_drafts(path: Path) -> Iterator[Draft]:
    """The drafts of a predictions.jsonl, one after the other; raises RadDraftError where a line is none."""
    return (_draft_of(row, where) for where, row in read_jsonl(path, ("study_id", "prediction")))


def _draft_of(row: Mapping[str, Any], where: str) -> Draft:
    cut = row.get("candidates_cut", [row["cut"]] if "cut" in row else None)
    candidates = row.get("candidates", [row["prediction"]])
    for name, found, kind in (("candidates", candidates, str), ("cut", [] if cut is None else cut, bool)):
        if not isinstance(found, list) or not all(isinstance(one, kind) for one in found):
            raise RadDraftError(f"{where}: {name} must be a list of type {kind.__name__}, got {found!r}")
    return Draft(candidates, row.get("log_probs"), row.get("observations"), row["study_id"], cut=cut)
