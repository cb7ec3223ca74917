"""Rows and columns of `raddraft compare`. Imports nothing heavy, so that help is fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from raddraft.errors import RadDraftError
from raddraft.ranges import Count, Positive, check_ranges
from raddraft.studies import GrayMapping

FOLD = "{fold}"
"""In the name of a tower: the number of the fold that it is measured on."""


@dataclass
class Entry:
    """One encoder, and for report tasks the language model that writes; a row of the table."""

    tower: str
    """Short name, hub id or folder; NAME:FILE for a tower whose authors publish a file; features:FILE for features
    written elsewhere; "pixels" for 16 x 16 raw pixels; "random:" before a name for the same architecture with random
    weights. With folds, {fold} stands for the number of the fold, from 1: a tower for each, measured on it alone."""
    label: str | None = None
    """Name in the table; by default the tower's."""
    image_size: Count | None = None
    """Side of the tower's square input in pixels. By default the size its image processor states."""
    gray_mapping: GrayMapping = "window"
    """How gray values become 8 bits: the DICOM window, min-max (as RAD-DINO's authors), or percentiles 0.5 to 99.5."""
    known_as: str = ""
    """Short name of the tower that a folder or features:FILE holds, so that films that it was trained on are marked."""
    seen: Path | None = None
    """List of SHA-256 digests of the images it was trained on, one per line; a warning is printed if test images are
    among them. Where the tower has {fold}, so must the list. By default images.sha256 beside a tower's folder `model`,
    which pretraining writes."""
    lm: str | None = None
    """Language model of report tasks: hub id or folder. By default that of the task's recipe."""
    recipe: str | None = None
    """Recipe of report tasks for this row. By default the task's."""

    def __post_init__(self) -> None:
        check_ranges(self, f"tower {self.tower!r}")

    @property
    def name(self) -> str:
        """The label, or the tower, with the language model where one is named."""
        return self.label or " + ".join(filter(None, (self.tower, self.lm)))

    @property
    def has_folds(self) -> bool:
        """Whether it names a tower for each fold."""
        return FOLD in self.tower

    def in_fold(self, number: int) -> Entry:
        """The tower of a fold, from 1, and its list."""
        seen = Path(str(self.seen).replace(FOLD, str(number))) if self.seen else None
        return replace(self, tower=self.tower.replace(FOLD, str(number)), label=self.name, seen=seen)


@dataclass
class Task:
    """One task, a column of the table."""

    name: str
    """Heading of the column."""
    kind: Literal["multilabel", "binary", "multiclass", "regression", "segmentation", "retrieval", "report"]
    """A probe of findings, of a categorical field or of numeric fields; a segmentation head; the report of the nearest
    train study as the draft; or drafts of a model that `recipe` trains on the tower."""
    targets: list[str]
    """Findings; fields such as patient.sex, patient.age, image.view; names of masks; or sections of the report."""
    measure: str | None = None
    """Measure in the table: auroc, auprc, balanced_accuracy; r2, mae; dice, iou; or a metric of `raddraft score`. By
    default auroc, r2, dice or rouge_l."""
    measures: list[str] | None = None
    """Several measures of the same task, each a column."""
    sources: list[str] | None = None
    """Take only studies of these sources; by default all."""
    pooling: Literal["class", "mean", "both"] = "both"
    """Features that a probe or retrieval sees: the class token, the mean patch, or both."""
    uncertain: Literal["drop", "positive", "negative"] = "drop"
    """What a label of -1 (uncertain) counts as."""
    missing: Literal["drop", "negative"] = "drop"
    """What a finding that is not mentioned counts as."""
    solver: Literal["lbfgs", "adamw", "knn"] = "lbfgs"
    """How the probe is fitted."""
    fractions: list[Positive] | None = None
    """Learning curve: fractions of the train subjects, e.g. 0.1 0.3 1; three random draws of each."""
    head: Literal["linear", "upernet", "vitdet"] = "linear"
    """Segmentation head."""
    recipe: str | None = None
    """Of report tasks: a recipe as `raddraft train --config` takes it, e.g. report/small_lm.yaml. Its tower is replaced
    by the row's, which stays frozen."""
    overrides: dict[str, str | bool | int | float] | None = None
    """Options of the recipe to change, e.g. {model.lm: gpt2, train.batch_size: 32}."""
    seeds: Count = 3
    """Runs of the recipe for each row; the value is their mean."""

    def __post_init__(self) -> None:
        check_ranges(self, f"task {self.name!r}")
        if (self.kind == "report") != bool(self.recipe):
            raise RadDraftError(f"Task {self.name!r}: tasks of the kind report, and only they, need a recipe")
        if self.measure and self.measures:
            raise RadDraftError(f"Task {self.name!r}: give measure or measures, not both")

    def columns(self) -> Iterator[Task]:
        """A task with one measure for each of `measures`."""
        for one in self.measures or ():
            yield replace(self, name=f"{self.name}: {one}", measure=one, measures=None)
        if not self.measures:
            yield self

    @property
    def shown(self) -> str:
        """The measure in the table."""
        default = {"regression": "r2", "segmentation": "dice", "retrieval": "rouge_l", "report": "rouge_l"}
        return self.measure or default.get(self.kind, "auroc")
