"""The report task of `raddraft compare`: one recipe trained on every tower, its drafts of the test split scored.

    task = Task("Reports", "report", ["findings"], recipe="report/small_lm.yaml", overrides={"model.lm": "gpt2"})

A run of one tower with one seed is an ordinary run folder, OUT/reports/<row>--<digest>/seed-0, with drafts.jsonl
beside its model, and resumes as any other. Several commands on one folder share the runs out (`share_out`).
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from encoder.config import ComputeConfig
from encoder.features import FeatureStore
from encoder.targets import of_sources
from generator.api import load_model
from generator.cells import Cell, cell_of_sums
from generator.compare_config import Task
from generator.config import Control, ModelConfig, TrainConfig
from generator.drafter import Drafter
from generator.prompts import PromptConfig
from generator.templates import PLAIN_TEMPLATE
from generator.train import run_training
from metrics.scoring import measure
from metrics.summary import sign
from raddraft.errors import RadDraftError
from raddraft.files import digest_json, read_jsonl, read_object, write_json
from raddraft.grammar import UsageError, parse
from raddraft.options import read_command
from raddraft.stats import Measure
from raddraft.studies import GrayMapping, Study
from raddraft.text import slug

CONTROLS: dict[Control, str] = {
    "shuffled-images": "{baseline}, shuffled images",
    "nearest-report": "{baseline}, nearest report",
    "most-frequent": "most frequent report",
}
"""Control -> its row in the table. The first is the baseline's models shown other subjects' images."""
WAIT_SECONDS = 5.0
"""Between looks at what another command is at work on."""
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """A recipe for one tower."""

    model: ModelConfig
    prompt: PromptConfig
    train: TrainConfig
    gray_mapping: GrayMapping
    sources: list[str] | None = None

    @property
    def digest(self) -> str:
        """Of everything but the seed."""
        return digest_json(asdict(replace(self, train=replace(self.train, seed=0))))[:8]


@dataclass(frozen=True)
class Run:
    """One recipe with one seed in its run folder, and what is to be drafted."""

    recipe: Recipe
    folder: Path
    control: Control = "none"

    @property
    def drafts(self) -> Path:
        """Its predictions.jsonl."""
        return self.folder / ("drafts.jsonl" if self.control == "none" else f"{self.control}.jsonl")

    @property
    def done(self) -> Path:
        """Written when all studies are drafted, with what the model is: `drafts` may be those of an interrupted run."""
        return self.drafts.with_suffix(".done")

    @property
    def group(self) -> str:
        """What the runs of all seeds have in common."""
        return f"{self.folder.parent}/{self.control}"


def read_recipe(task: Task, tower: str, image_size: int | None, gray_mapping: GrayMapping, lm: str | None) -> Recipe:
    """The recipe of a task for one row of the table.

    Args:
        task: of kind report.
        tower: name or folder.
        image_size: side of the tower's input; None for the recipe's.
        gray_mapping: of the row.
        lm: the row's language model; None for the recipe's.

    Raises:
        RadDraftError: no such recipe, a key that it does not know, or one that the table decides.
    """
    words = [f"--config={task.recipe}", f"--model.tower={tower}"]
    words += [f"--model.image_size={image_size}"] if image_size else []
    words += [f"--model.lm={lm}"] if lm else []
    for key, value in (task.overrides or {}).items():
        if key in ("model.tower", "train.seed", "prompt.targets", "train.cached"):
            raise RadDraftError(f"Task {task.name!r}: overrides has {key}, which the table decides")
        words += [f"--{key}={value if isinstance(value, str) else json.dumps(value)}"]
    try:
        values = parse(read_command(_recipe), words)
    except (UsageError, RadDraftError) as error:
        raise RadDraftError(f"Task {task.name!r}, recipe {task.recipe}: {error}") from None
    train: TrainConfig = values["train"]
    if any(stage.trains_tower for stage in train.stages):
        raise RadDraftError(f"Task {task.name!r}: the recipe {task.recipe} trains the tower; a comparison freezes it")
    prompt = replace(values["prompt"], targets=task.targets)
    return Recipe(values["model"], prompt, replace(train, cached=True), gray_mapping, task.sources)


def _recipe(
    model: ModelConfig,
    prompt: PromptConfig = PromptConfig(),  # noqa: B008 - the parser reads its fields and defaults from here
    train: TrainConfig = TrainConfig(),  # noqa: B008
) -> None:
    """The part of `raddraft train` that a recipe sets."""


def list_runs(recipe: Recipe, row: str, seeds: int, out: Path, made_of: str, control: Control = "none") -> list[Run]:
    """A run for each seed, in a folder of its own for every recipe, tower and data: `made_of` is a digest of these two.

    So a tower that was trained on under the same name, or an image that was replaced, leaves no old drafts in a table.
    """
    place = out / "reports" / f"{slug(row)}--{digest_json(recipe.digest, made_of)[:8]}"
    seeded = [replace(recipe, train=replace(recipe.train, seed=seed)) for seed in range(seeds)]
    return [Run(one, place / f"seed-{seed}", control) for seed, one in enumerate(seeded)]


def share_out(items: Sequence[T], lock: Callable[[T], Path], work: Callable[[T], None]) -> None:
    """Work on each item under its lock, so that several commands take different ones; what is taken is waited for."""
    waiting = list(items)
    while waiting:
        for item in list(waiting):
            lock(item).parent.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(lock(item), timeout=0):
                    work(item)
            except Timeout:
                continue
            waiting.remove(item)
        if waiting:
            time.sleep(WAIT_SECONDS)


def make_drafts(
    runs: Sequence[Run],
    manifest: Path,
    studies: Sequence[Study],
    compute: ComputeConfig,
    stores: Mapping[Path, FeatureStore],
) -> dict[str, str]:
    """Train what is not trained yet, and draft the test split; of all runs the first seeds first.

    Args:
        runs: of any rows and tasks; several commands share them out.
        manifest: the `studies.jsonl`.
        studies: of the manifest.
        compute: device, and the folder of stored features that all runs of a tower share.
        stores: folder of the runs of all seeds -> their features, where these are at hand.

    Returns:
        `Run.group` -> why its drafts cannot be made.
    """
    faults: dict[str, str] = {}

    def work(run: Run) -> None:
        if run.group in faults:
            return
        try:
            _make(run, manifest, studies, compute, stores.get(run.folder.parent))
        except RadDraftError as error:
            faults[run.group] = str(error)

    wanted = {run.drafts: run for run in sorted(runs, key=lambda run: run.recipe.train.seed)}
    share_out(list(wanted.values()), lambda run: run.folder / "run.lock", work)
    return faults


def _make(
    run: Run, manifest: Path, studies: Sequence[Study], compute: ComputeConfig, store: FeatureStore | None
) -> None:
    recipe, folder = run.recipe, run.folder / "model"
    if run.done.is_file():
        return
    chosen = of_sources(studies, recipe.sources)
    parts = {
        split: [study for study in chosen if study.split == split and recipe.prompt.answer(study)]
        for split in ("train", "test")
    }
    if not parts["test"]:
        raise RadDraftError(f"no test study has the sections {', '.join(recipe.prompt.targets)}")
    if not (folder / "raddraft.json").is_file():
        run_training(
            manifest,
            run.folder,
            recipe.model,
            recipe.prompt,
            recipe.train,
            recipe.gray_mapping,
            compute.features,
            recipe.sources,
            store=store,
        )
    model = load_model(folder, compute.device)
    before = {row["study_id"] for row in _read(run.drafts)} if run.drafts.is_file() else set()
    started = time.perf_counter()
    with model.drafter.read_from(store) if store else nullcontext():
        model.generate(parts["test"], run.drafts, run.control, parts["train"], workers=compute.workers)
    seconds = time.perf_counter() - started
    texts = [row["prediction"] for row in _read(run.drafts) if row["study_id"] not in before]
    tokens = sum(len(ids) + 1 for ids in model.drafter.tokens.of_texts(texts))  # and the end token
    about = describe_writer(model.drafter) | {"tokens_per_second": tokens / seconds if texts else None}
    write_json(run.done, about)


def describe_writer(drafter: Drafter) -> dict[str, Any]:
    """Parameters of tower, projector and language model, and whether this has a chat template of its own."""
    inner = drafter.model.model
    parts = {
        "tower": [inner.vision_tower],
        "projector": [inner.multi_modal_projector],
        "lm": [inner.language_model, drafter.model.lm_head],  # often with the same embeddings
    }
    counts = {
        name: sum({id(one): one.numel() for module in modules for one in module.parameters()}.values())
        for name, modules in parts.items()
    }
    own = PLAIN_TEMPLATE not in str(drafter.processor.chat_template)
    return {"parameters": counts, "chat_template": own}


def score_runs(runs: Sequence[Run], metric: str, studies: Sequence[Study], resamples: int) -> Cell:
    """The drafts of all seeds scored by one metric: the mean over the seeds, its interval by test subject.

    Args:
        runs: drafted.
        metric: of `metrics.scoring.METRICS`.
        studies: where the subjects, and which studies are synthetic, are known from.
        resamples: of the test subjects, the same for all rows of the table.

    Raises:
        RadDraftError: no study was drafted by every run, or the metric cannot run.
    """
    rows = [{row["study_id"]: row for row in _read(run.drafts)} for run in runs]
    known = {study.study_id: study for study in studies}
    common = [study for study in rows[0] if all(study in other for other in rows)]
    if not common:
        raise RadDraftError("no study was drafted by every run")
    measures = list(_measures(rows, common, metric))
    people = [known[study].subject_id for study in common]
    values = [one.value for one in measures]
    signature = f"{measures[0].signature}{sign(len(common), people)}|bootstrap:{resamples} seed 0"
    details: dict[str, Any] = {"signature": signature}
    if len(values) > 1:
        details |= {"seeds": values, "sd": statistics.stdev(values)}
    cell = cell_of_sums(measures, people, resamples, digest_json(common), details)
    if synthetic := sum(known[study].is_synthetic for study in common):
        cell.notes.append(f"synthetic: {synthetic} of {len(common)} test studies")
    if blank := sum(not part[study]["prediction"].strip() for part in rows for study in common):
        cell.notes.append(f"{blank} of {len(common) * len(rows)} drafts are blank")
    if runs[0].control == "none":
        keys = ("tokens_per_second", "chat_template")
        written = [
            read_object(run.done, "remove it and the drafts beside it: they are made again", keys) for run in runs
        ]
        speeds = [one["tokens_per_second"] for one in written if one["tokens_per_second"]]
        details |= written[0] | {"tokens_per_second": statistics.fmean(speeds) if speeds else None}
        if not written[0]["chat_template"]:
            cell.notes.append("the language model has no chat template: it is prompted in plain text")
    return cell


def _read(drafts: Path) -> Iterator[dict[str, Any]]:
    return (row for _, row in read_jsonl(drafts, ("study_id", "prediction")))


def _measures(rows: Sequence[dict[str, Any]], studies: Sequence[str], metric: str) -> Iterator[Measure]:
    for part in rows:
        texts = [part[study]["prediction"] for study in studies], [part[study]["reference"] for study in studies]
        yield measure(*texts, [metric])[0][metric]
