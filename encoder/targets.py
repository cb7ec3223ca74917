"""What a probe predicts for each image: findings or fields of a manifest, as numbers.

target = make_target(read_studies("studies.jsonl"), TargetSpec(("Cardiomegaly", "Edema")))
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from encoder.probe_config import Kind, TargetSpec
from raddraft.errors import RadDraftError
from raddraft.studies import MAX_AGE, Study, StudyImage


@dataclass
class Target:
    """Images and their labels."""

    kind: Kind
    names: tuple[str, ...]  # findings, classes or quantities: C of them
    paths: list[Path]  # [n]
    subjects: np.ndarray  # [n]
    splits: np.ndarray  # [n]
    y: np.ndarray  # [n, C], NaN where missing; for multiclass one column for each class
    notes: list[str] = field(default_factory=list)

    def keep(self, rows: np.ndarray) -> Target:
        """The same for some of the images, given by a mask [n] or positions."""
        positions = np.arange(len(self.paths))[rows]
        paths = [self.paths[position] for position in positions]
        return replace(self, paths=paths, subjects=self.subjects[rows], splits=self.splits[rows], y=self.y[rows])

    @property
    def constant(self) -> dict[str, str]:
        """Finding -> a sentence, where train holds one value only: nothing can be learned."""
        found = {}
        for name, values in zip(self.names, self.y[self.splits == "train"].T, strict=True):
            known = values[~np.isnan(values)]
            if not len(known):
                found[name] = "no label"
            elif len(np.unique(known)) < 2:
                found[name] = f"constant in train: {known[0]:g} on all {len(known)} images"
        return found


def of_sources(studies: Sequence[Study], sources: Collection[str] | None) -> list[Study]:
    """The studies of some sources, or all; raises RadDraftError if there is none."""
    chosen = [study for study in studies if sources is None or study.source in sources]
    if not chosen:
        raise RadDraftError(f"no study of source {', '.join(sources or [])}")
    return chosen


def make_target(studies: Sequence[Study], spec: TargetSpec) -> Target:
    """Images and labels of a manifest; images without any label are left out.

    Raises:
        RadDraftError: a subject in two splits, a finding or field that no study has, or a value that is not a number.
    """
    split_of: dict[str, str] = {}
    for study in studies:
        if split_of.setdefault(study.subject_id, study.split) != study.split:
            raise RadDraftError(
                f"Subject {study.subject_id!r} is in splits {split_of[study.subject_id]!r} and {study.split!r}"
            )
    rows = [(study, image) for study in studies for image in _images(study, spec.images)]
    notes: list[str] = []
    names = spec.targets
    kind: Kind = "multilabel" if spec.kind == "binary" else spec.kind
    if kind == "multilabel":
        known = {name for study in studies for name in study.labels}
        _check_known(names, known, known, "finding")
        y = [[_label(study.labels.get(name), spec) for name in names] for study, _ in rows]
    else:
        values = [[_read_field(study, image, name) for name in names] for study, image in rows]
        filled = {name for row in values for name, value in zip(names, row, strict=True) if value is not None}
        patient = {f"patient.{key}" for study in studies for key in study.patient}
        _check_known(names, filled, filled | {"image.view", "source"} | patient, "field")
        if kind == "multiclass":
            texts = [_class(study, names[0], row[0]) for (study, _), row in zip(rows, values, strict=True)]
            names, y = _classes(texts, [study.split for study, _ in rows], notes)
        else:
            y = [
                [_number(study, name, value) for name, value in zip(names, row, strict=True)]
                for (study, _), row in zip(rows, values, strict=True)
            ]
    target = Target(
        kind,
        names,
        [image.path for _, image in rows],
        np.array([study.subject_id for study, _ in rows], dtype=str),
        np.array([study.split for study, _ in rows], dtype=str),
        np.array(y, dtype=float).reshape(len(rows), len(names)),
        notes,
    )
    labeled = ~np.isnan(target.y).all(1)
    if not labeled.all():
        notes.append(f"{(~labeled).sum()} of {len(rows)} images have no label")
    return target.keep(labeled)


def _images(study: Study, choice: str) -> list[StudyImage]:
    return [study.main_image] if choice == "main" else [image for image in study.images if image.frontal]


def _label(value: int | None, spec: TargetSpec) -> float:
    if value is None:
        return {"drop": math.nan, "negative": 0.0}[spec.missing]
    return {"drop": math.nan, "positive": 1.0, "negative": 0.0}[spec.uncertain] if value == -1 else float(value)


def _read_field(study: Study, image: StudyImage, name: str) -> Any:
    """A field by its dotted name; None where there is none. An empty string is none."""
    first, *rest = name.split(".")
    known = {"patient": study.patient, "image": image.extra | {"view": image.view}, "source": study.source}
    value: Any = known.get(first, study.extra.get(first))
    for key in rest:
        value = value.get(key) if isinstance(value, dict) else None
    return None if value == "" else value


def _number(study: Study, name: str, value: Any) -> float:
    if value is None:
        return math.nan
    if (
        isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300
    ):  # NaN, or more than a float holds
        raise RadDraftError(f"Study {study.study_id!r}: {name} is {value!r}, not a number")
    if name == "patient.age" and not 0 <= value <= MAX_AGE:
        raise RadDraftError(f"Study {study.study_id!r}: {name} is {value!r}, not an age of 0 to {MAX_AGE} years")
    return float(value)


def _class(study: Study, name: str, value: Any) -> str | None:
    if isinstance(value, list | dict):
        raise RadDraftError(f"Study {study.study_id!r}: {name} is {value!r}, not a text or a number")
    return None if value is None else str(value)


def _classes(texts: list[str | None], splits: list[str], notes: list[str]) -> tuple[tuple[str, ...], list[list[float]]]:
    """Classes of the train split, and a column of 0 and 1 for each; a row of NaN where the class is not one of them."""
    names = tuple(sorted({text for text, split in zip(texts, splits, strict=True) if text and split == "train"}))
    if unknown := sorted({text for text in texts if text} - set(names)):
        notes.append(f"classes left out, since they are not in train: {', '.join(unknown)}")
    return names, [[float(text == name) if text in names else math.nan for name in names] for text in texts]


def _check_known(names: Sequence[str], known: set[str], choices: set[str], what: str) -> None:
    if unknown := [name for name in names if name not in known]:
        raise RadDraftError(f"No study has the {what} {unknown[0]!r}. Choices: {', '.join(sorted(choices))}")
