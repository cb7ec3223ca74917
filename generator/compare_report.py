"""The report task of `raddraft compare`: one recipe trained on every tower, its drafts of the test split scored.

    task = Task("Reports", "report", ["findings"], recipe="report/small_lm.yaml", overrides={"model.lm": "gpt2"})

A run of one tower with one seed is an ordinary run folder, OUT/reports/<row>--<digest>/seed-0, with drafts.jsonl
beside its model, and resumes as any other. Several commands on one folder share the runs out: each takes one that no
other is at work on.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout

from encoder.config import ComputeConfig
from encoder.targets import of_sources
from generator.api import load_model
from generator.compare_config import Task
from generator.config import Control, ModelConfig, TrainConfig
from generator.prompts import PromptConfig
from generator.train import run_training
from metrics.scoring import measure
from metrics.summary import interval_of_mean, sign
from raddraft.errors import RadDraftError
from raddraft.files import digest_json, read_jsonl
from raddraft.grammar import UsageError, parse
from raddraft.options import read_command
from raddraft.stats import Measure, resample
from raddraft.studies import GrayMapping, Study
from raddraft.text import slug

CONTROLS: dict[Control, str] = {
    "shuffled-images": "{baseline}, shuffled images",
    "nearest-report": "{baseline}, nearest report",
    "most-frequent": "most frequent report",
}
"""Control -> its row in the table. The first is the baseline's models shown other subjects' images."""
WAIT_SECONDS = 5.0
"""Between looks at a run that another command is at work on."""


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
    """One recipe with one seed in its run folder."""

    recipe: Recipe
    folder: Path

    def drafts(self, control: Control = "none") -> Path:
        """Its predictions.jsonl, or that of a control."""
        return self.folder / ("drafts.jsonl" if control == "none" else f"{control}.jsonl")


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


def list_runs(recipe: Recipe, row: str, seeds: int, out: Path, made_of: str) -> list[Run]:
    """A run for each seed, in a folder of its own for every recipe, tower and data: `made_of` is a digest of these two.

    So a tower that was trained on under the same name, or an image that was replaced, leaves no old drafts in a table.
    """
    place = out / "reports" / f"{slug(row)}--{digest_json(recipe.digest, made_of)[:8]}"
    seeded = [replace(recipe, train=replace(recipe.train, seed=seed)) for seed in range(seeds)]
    return [Run(one, place / f"seed-{seed}") for seed, one in enumerate(seeded)]


def make_drafts(
    runs: Sequence[Run], manifest: Path, studies: Sequence[Study], compute: ComputeConfig, control: Control = "none"
) -> None:
    """Train what is not trained yet, and draft the test split.

    Args:
        runs: in the order in which they are taken; one that another command is at work on is waited for last.
        manifest: the `studies.jsonl`.
        studies: of the manifest.
        compute: device, and the folder of stored features that all runs of a tower share.
        control: draft this control with the trained models instead.

    Raises:
        RadDraftError: as `generator.train.run_training` and `generator.api.Model.generate`.
    """
    waiting = [run for run in runs if not _is_whole(run.drafts(control))]
    while waiting:
        for run in list(waiting):
            run.folder.mkdir(parents=True, exist_ok=True)
            try:
                with FileLock(run.folder / "run.lock", timeout=0):
                    _make(run, manifest, studies, compute, control)
            except Timeout:
                continue
            waiting.remove(run)
        if waiting:
            time.sleep(WAIT_SECONDS)


def _make(run: Run, manifest: Path, studies: Sequence[Study], compute: ComputeConfig, control: Control) -> None:
    recipe, out = run.recipe, run.drafts(control)
    if _is_whole(out):
        return
    folder = run.folder / "model"
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
        )
    chosen = of_sources(studies, recipe.sources)
    parts = {
        split: [study for study in chosen if study.split == split and recipe.prompt.answer(study)]
        for split in ("train", "test")
    }
    if not parts["test"]:
        raise RadDraftError(f"no test study has the sections {', '.join(recipe.prompt.targets)}")
    model = load_model(folder, compute.device)
    model.generate(parts["test"], out, control, parts["train"], workers=compute.workers)
    out.with_suffix(".done").touch()


def _is_whole(drafts: Path) -> bool:
    """Whether all studies were drafted; a file of drafts may be that of an interrupted run."""
    return drafts.with_suffix(".done").is_file()


@dataclass
class Scored:
    """One metric over the runs of one row."""

    value: float
    """Mean over the seeds."""
    low: float
    high: float
    resamples: np.ndarray
    """Means over the seeds on the same resamples of the test subjects [R]."""
    studies: list[str]
    """Ids of the studies that every run drafted."""
    details: dict[str, Any]
    """signature, and with several runs the value of each seed and their standard deviation."""


def score_runs(files: Sequence[Path], metric: str, studies: Sequence[Study], resamples: int) -> Scored:
    """Score the drafts of all seeds by one metric, in pairs.

    Args:
        files: a predictions.jsonl for each seed.
        metric: of `metrics.scoring.METRICS`.
        studies: where the subjects are known from.
        resamples: of the test subjects, the same for all rows of the table.

    Raises:
        RadDraftError: no study was drafted by every run, or the metric cannot run.
    """
    rows = [{row["study_id"]: row for _, row in read_jsonl(path, ("study_id", "prediction"))} for path in files]
    subjects = {study.study_id: study.subject_id for study in studies}
    common = [study for study in rows[0] if all(study in other for other in rows)]
    if not common:
        raise RadDraftError("no study was drafted by every run")
    measures = list(_measures(rows, common, metric))
    people = [subjects[study] for study in common]
    drawn = resample(measures, resamples, subjects=people).mean(0)
    values = [one.value for one in measures]
    signature = f"{measures[0].signature}{sign(len(common), people)}|bootstrap:{resamples} seed 0"
    details: dict[str, Any] = {"signature": signature}
    if len(values) > 1:
        details |= {"seeds": values, "sd": statistics.stdev(values)}
    low, high = interval_of_mean(measures, drawn, people)
    return Scored(statistics.fmean(values), low, high, drawn, common, details)


def _measures(rows: Sequence[dict[str, Any]], studies: Sequence[str], metric: str) -> Iterator[Measure]:
    for part in rows:
        texts = [part[study]["prediction"] for study in studies], [part[study]["reference"] for study in studies]
        yield measure(*texts, [metric])[0][metric]
