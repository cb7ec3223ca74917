"""Which encoder? Towers x tasks on one manifest: a table with intervals, paired differences to a baseline, and a page.

    CXR=… WEIGHTS=… raddraft compare --config configs/compare/small.yaml --out runs/compare
    raddraft compare --config configs/compare/paper.yaml --studies all.jsonl --out runs/paper
    raddraft compare --config configs/compare/paper.yaml --studies few.jsonl --folds 5 --out runs/folds

Every tower runs once over the images; all tasks read its stored features. Started again, it goes on where it stopped.
Environment variables in the names of files and towers are filled in.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.processes import pick_device
from raddraft.studies import GrayMapping

if TYPE_CHECKING:
    from encoder.tower import Tower
    from raddraft.studies import Study


RULES = 3
"""Of measuring; raised when the same settings give other numbers than before, so that stored cells are made anew."""


@dataclass
class Entry:
    """One tower of the table."""

    tower: str
    """Short name, hub id, folder, pixels, or random:NAME."""
    label: str | None = None
    """What the table calls it; by default the tower's name."""
    image_size: int | None = None
    """Side of its input in pixels instead of its own."""
    gray_mapping: GrayMapping = "window"
    """How grey values are mapped to 8 bits."""
    seen: Path | None = None
    """List of SHA-256 of the images it was trained on, one a line: test images among them earn a warning."""

    @property
    def name(self) -> str:
        return self.label or self.tower


@dataclass
class Task:
    """One column of the table."""

    name: str
    kind: Literal["multilabel", "binary", "multiclass", "regression", "segmentation", "retrieval"]
    targets: list[str]
    """Findings; a field such as patient.sex, patient.age, image.view; structures of masks; sections of the report."""
    measure: str | None = None
    """What the table shows: auroc, auprc, balanced_accuracy; r2, mae; dice, iou; or a metric of `raddraft score`. By
    default auroc, r2, dice and rouge_l."""
    sources: list[str] | None = None
    """Studies of these sources only."""
    pooling: Literal["class", "mean", "both"] = "both"
    """What of the features a probe or retrieval sees."""
    uncertain: Literal["drop", "positive", "negative"] = "drop"
    """What an uncertain finding counts as."""
    missing: Literal["drop", "negative"] = "drop"
    """What a finding that is not mentioned counts as."""
    solver: Literal["lbfgs", "adamw", "knn"] = "lbfgs"
    """How the probe is fitted."""
    fractions: list[float] | None = None
    """Learning curve: parts of the train subjects, e.g. 0.1, 0.3, 1; three random draws of each."""
    head: Literal["linear", "upernet", "vitdet"] = "linear"
    """Of segmentation."""

    @property
    def shown(self) -> str:
        default = {"regression": "r2", "segmentation": "dice", "retrieval": "rouge_l"}
        return self.measure or default.get(self.kind, "auroc")


@dataclass
class Cell:
    """One tower on one task."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    """Test images."""
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    resamples: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)
    """The measure on each resample of the test subjects: [R]."""
    sample: str = ""
    """Digest of the test subjects and what is true of them; towers with the same one share their resamples."""


def main(
    studies: Path,
    towers: tuple[Entry, ...],  # no lists: see `stages` in generator/train.py
    tasks: tuple[Task, ...],
    out: Path = Path("runs/compare"),
    baseline: str | None = None,
    features: Path = Path("features"),
    resamples: int = 5000,
    folds: int | None = None,
    batch_size: int = 32,
    workers: int = 2,
    title: str = "Which encoder?",
    device: str = "auto",
    precision: Literal["float32", "bfloat16", "float16"] = "float32",
) -> None:
    """Compare towers on tasks; writes compare.json, table.md, report.html and a picture of every column.

    Args:
        studies: The manifest.
        towers: The rows of the table.
        tasks: Its columns.
        out: Folder to write to.
        baseline: Label of the tower that all others are compared with; by default the first.
        features: Folder of feature stores.
        resamples: Bootstrap resamples of the test subjects. After correction for many comparisons nothing can be told
            apart with fewer than 40 times their number.
        folds: Cross-validate, for collections with few test images: the subjects of all splits are dealt out to so many
            folds, at least 3; each is the test split once, the next one val, the others train. Values are means over
            folds.
        batch_size: Images per forward pass.
        workers: Processes that decode and prepare images while a tower runs.
        title: Heading of the page.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
        precision: Type in which the towers compute; the two short ones are for GPUs and for CPUs that have bfloat16.
    """
    import torch

    from encoder.features import FeatureConfig, describe
    from encoder.towers import load_tower
    from raddraft.studies import deal_folds, read_studies
    from scripts._compare_page import write_page

    started = time.monotonic()
    names = [entry.name for entry in towers]
    for what, found in (("towers", names), ("tasks", [task.name for task in tasks])):
        if len(set(found)) < len(found) or not found:
            raise RadDraftError(f"{what} need one or more different names, got {', '.join(found) or 'none'}")
    baseline = baseline or names[0]
    if baseline not in names:
        raise RadDraftError(f"Unknown baseline {baseline!r}. Choices: {', '.join(names)}")
    device = pick_device(device)
    for text in (str(studies), *(entry.tower for entry in towers), *(entry.seen for entry in towers if entry.seen)):
        if unset := re.search(r"\$\{?(\w+)", os.path.expandvars(str(text))):
            raise RadDraftError(f"{text}: the environment variable {unset[1]} is not set")
    known = read_studies(os.path.expandvars(studies))
    for task in tasks:
        _check(task, folds)
    parts = deal_folds(known, folds) if folds else [known]
    data = _data(known, features)
    cells: dict[str, dict[str, Cell]] = {}
    warnings: dict[str, list[str]] = {}
    for entry in towers:
        seen = Path(os.path.expandvars(entry.seen)) if entry.seen else None
        warnings[entry.name] = _leaks(parts, seen, features)
        tower = load_tower(os.path.expandvars(entry.tower), entry.image_size)
        tower.model.to(device, getattr(torch, precision))
        described = describe(tower, FeatureConfig(gray_mapping=entry.gray_mapping))
        cells[entry.name] = {}
        for task in tasks:
            path = out / "cells" / f"{_slug(entry.name)}--{_slug(task.name)}.json"
            made_of = _digest(RULES, described, data, asdict(task), resamples, *([folds] if folds else []))
            cell = _read_cell(path, made_of)
            if cell is None:
                cell = join_folds(
                    [fill_cell(tower, entry, task, part, features, resamples, batch_size, workers) for part in parts]
                )
                _write_cell(path, cell, made_of)
            cells[entry.name][task.name] = cell
            numbers = [f"{number:.3f}" for number in (cell.value, cell.low, cell.high) if number is not None]
            print(f"{entry.name}, {task.name}: {task.shown} {' '.join(numbers) or '-'}", flush=True)
    differences = compare_with(baseline, cells)
    result = {
        "baseline": baseline,
        "tasks": [asdict(task) for task in tasks],
        "towers": {name: {task: _public(cell) for task, cell in row.items()} for name, row in cells.items()},
        "warnings": {name: sentences for name, sentences in warnings.items() if sentences},
        "differences": differences,
        "resamples": resamples,
        "folds": folds,
        "minutes": (time.monotonic() - started) / 60,
    }
    write_page(result, tasks, out, title)
    print(f"\n{(out / 'table.md').read_text(encoding='utf-8')}")
    print(f"page: {out / 'report.html'}\nnumbers: {out / 'compare.json'}\n{result['minutes']:.1f} minutes")


def fill_cell(
    tower: Tower,
    entry: Entry,
    task: Task,
    known: Sequence[Study],
    features: Path,
    resamples: int,
    batch_size: int,
    workers: int,
) -> Cell:
    """Run one task on one tower. What cannot be measured is a cell without value that says why; the others go on."""
    from encoder.features import FeatureConfig, store_features

    try:
        chosen = of_sources(known, task.sources)
    except ValueError as error:
        raise RadDraftError(f"Task {task.name!r}: {error}") from None
    segmentation = task.kind == "segmentation"
    if segmentation and tower.shape[:2] == (1, 1):
        return Cell(None, notes=["this tower has no patches"])
    paths = masked_paths(chosen, task.targets) if segmentation else [study.main_image.path for study in chosen]
    config = FeatureConfig("grid" if segmentation else "pooled", gray_mapping=entry.gray_mapping)
    store, errors = store_features(tower, paths, features, config, batch_size, workers)
    if segmentation:
        cell = _segment(tower, task, chosen, store, resamples)
    elif task.kind == "retrieval":
        cell = _retrieve(task, chosen, store, resamples)
    else:
        cell = _probe(task, chosen, store, resamples)
    cell.notes += [f"{len(errors)} images cannot be read, e.g. {errors[0]}"] if errors else []
    return cell


def _leaks(parts: Sequence[Sequence[Study]], seen: Path | None, features: Path) -> list[str]:
    """What `check_leaks` says of the splits, or of folds."""
    from encoder.targets import check_leaks

    if len(parts) == 1:
        return check_leaks(parts[0], seen, features)
    tested = [(study, fold) for fold, part in enumerate(parts, 1) for study in part if study.split == "test"]
    between = check_leaks([replace(study, split=f"fold {fold}") for study, fold in tested], None, features)
    return list(dict.fromkeys(between + check_leaks([study for study, _ in tested], seen, features)))


def _check(task: Task, folds: int | None) -> None:
    """Raises ValueError where a task's options do not go together."""
    from metrics.scoring import METRICS

    fixed = {"segmentation": ("dice", "iou"), "retrieval": METRICS}
    if task.kind in fixed and task.shown not in fixed[task.kind]:
        raise RadDraftError(
            f"Task {task.name!r}: {task.kind} has no measure {task.shown!r}. Choices: {', '.join(fixed[task.kind])}"
        )
    if task.fractions and (folds or task.kind in fixed):
        raise RadDraftError(
            f"Task {task.name!r}: learning curves (fractions) are of probes, on the manifest's own splits; leave out "
            "fractions, or folds"
        )


def join_folds(cells: Sequence[Cell]) -> Cell:
    """The mean of the cells of all folds; resampled within each fold, in which the probe is another one."""
    from raddraft.stats import interval

    if len(cells) == 1:
        return cells[0]
    notes = list(dict.fromkeys(note for cell in cells for note in cell.notes))
    n = sum(cell.n or 0 for cell in cells) or None
    if any(cell.value is None for cell in cells):
        return Cell(None, n=n, notes=notes)
    # Each fold's resamples in an order of their own: they all draw alike, and images may be ordered alike in all folds.
    shuffled = [np.random.default_rng(fold).permutation(cell.resamples) for fold, cell in enumerate(cells)]
    resamples = np.mean(shuffled, axis=0)
    known = resamples[~np.isnan(resamples)]
    low = high = None
    if len(known):
        bounds = interval(known)
        low, high = bounds.low, bounds.high
    details = {"folds": [{"value": cell.value, "n": cell.n} for cell in cells]}
    sample = _digest([cell.sample for cell in cells])
    value = float(np.mean([cell.value for cell in cells]))
    return Cell(value, low, high, n, notes, details, resamples, sample)


def of_sources(studies: Sequence[Study], sources: Sequence[str] | None) -> list[Study]:
    """The studies of these sources, all without; raises ValueError if there is none."""
    chosen = [study for study in studies if sources is None or study.source in sources]
    if not chosen:
        raise RadDraftError(f"no study of source {', '.join(sources or [])}")
    return chosen


def masked_paths(studies: Sequence[Study], structures: Sequence[str]) -> list[Path]:
    """Pictures that have a mask of each structure."""
    return [image.path for study in studies for image in study.images if set(structures) <= image.masks.keys()]


def _probe(task: Task, studies: Sequence[Study], store: Any, resamples: int) -> Cell:
    from encoder.fitting import ProbeConfig
    from encoder.probe import learning_curve, run_probe
    from encoder.targets import TargetSpec, make_target

    spec = TargetSpec(task.kind, tuple(task.targets), task.uncertain, task.missing)  # type: ignore[arg-type]
    config = ProbeConfig(pooling=task.pooling, solver=task.solver, resamples=resamples)
    target = make_target(studies, spec)
    try:
        result = run_probe(store, target, config)
    except ValueError as error:
        return Cell(None, notes=[str(error)])
    measured = result.measures["macro"].get(task.shown)
    if measured is None:
        raise RadDraftError(f"Task {task.name!r}: a {task.kind} probe has no measure {task.shown!r}. Choices: "
                         f"{', '.join(result.measures['macro'])}")  # fmt: skip
    estimate = measured.estimate
    notes = result.notes + ([estimate.reason] if estimate.reason else [])
    details = result.to_dict()
    if task.fractions:
        points = learning_curve(store, target, task.fractions, replace(config, resamples=200))
        details["curve"] = [curve_point(points, fraction, task.shown) for fraction in sorted(task.fractions)]
    n = result.n["test"]
    return Cell(estimate.value, estimate.low, estimate.high, n, notes, details, measured.resamples, measured.sample)


def curve_point(points: Sequence[Any], fraction: float, measure: str) -> dict[str, Any]:
    """Mean over the random draws of one size, with its interval."""
    from encoder.measures import over_seeds

    drawn = [point for point in points if point.fraction == fraction]
    one = over_seeds([point.result.measures["macro"][measure] for point in drawn]).estimate
    n_subjects = drawn[0].n_subjects
    return {"fraction": fraction, "n": n_subjects, "value": one.value, "low": one.low, "high": one.high}


def _segment(tower: Tower, task: Task, studies: Sequence[Study], store: Any, resamples: int) -> Cell:
    from encoder.segment import SegmentConfig, segment

    config = SegmentConfig(tuple(task.targets), task.head, grid="picture", resamples=resamples)
    try:
        result, _ = segment(store, studies, tower.processor, config, str(tower.device))
    except ValueError as error:  # a processor that masks cannot follow, or too few masks: the other tasks go on
        return Cell(None, notes=[str(error)])
    notes = [f"{len(result.errors)} masks cannot be used, e.g. {result.errors[0]}"] if result.errors else []
    score = result.scores["mean"][task.shown]
    resampled = result.resampled[task.shown][:, -1]
    details, sample = result.to_dict(), _digest(result.paths, result.subjects)
    for name in ("dice", "iou", "paths", "subjects"):
        del details[name]  # by image: as long as the test split
    n = result.n_images["test"]
    return Cell(score.value, score.low, score.high, n, notes, details, resampled, sample)


def _retrieve(task: Task, studies: Sequence[Study], store: Any, resamples: int) -> Cell:
    """The report of the nearest training study, scored as any draft; resampled by subject."""
    from generator.prompts import PromptConfig
    from generator.retrieve import nearest
    from metrics.scoring import measure
    from raddraft.stats import interval, resample

    prompt = PromptConfig(targets=task.targets)
    usable = [study for study in studies if prompt.answer(study) and study.main_image.path in store]
    training, test = ([study for study in usable if study.split == split] for split in ("train", "test"))
    if not training or not test:
        return Cell(None, notes=[f"train and test need studies with {', '.join(task.targets)}"])
    vectors = [store.vectors([study.main_image.path for study in part], task.pooling) for part in (test, training)]
    rows = nearest(vectors[0], vectors[1]).indices[:, 0].tolist()
    drafts = [prompt.answer(training[row]) or "" for row in rows]
    measures, _ = measure(drafts, [prompt.answer(study) or "" for study in test], [task.shown])
    one = measures[task.shown]
    subjects = [study.subject_id for study in test]
    owners = np.unique(subjects, return_inverse=True)[1]
    sums = np.zeros((owners.max() + 1, one.statistics.shape[1]))
    np.add.at(sums, owners, one.statistics)
    values = resample([replace(one, statistics=sums)], resamples)[0]
    bounds = interval(values)
    sample = _digest([study.study_id for study in test], subjects)
    return Cell(one.value, bounds.low, bounds.high, len(test), [], {"signature": one.signature}, values, sample)


def compare_with(baseline: str, cells: dict[str, dict[str, Cell]]) -> dict[str, dict[str, dict[str, float]]]:
    """Each tower minus the baseline on each task, in pairs: value, interval, p, and p corrected after Holm (1979).

    The correction is over all towers and tasks of the table.
    """
    from raddraft.stats import interval, p_value

    found: dict[tuple[str, str], dict[str, float]] = {}
    for tower, row in cells.items():
        for task, cell in row.items():
            other = cells[baseline][task]
            if tower == baseline or cell.value is None or other.value is None or len(cell.resamples) == 0:
                continue
            if cell.sample != other.sample:
                cell.notes.append(f"no difference to {baseline}: not measured on the same test images")
                continue
            resampled = cell.resamples - other.resamples
            resampled = resampled[~np.isnan(resampled)]
            if not len(resampled):
                continue
            bounds = interval(resampled)
            row_of = {"value": cell.value - other.value, "low": bounds.low, "high": bounds.high}
            found[tower, task] = row_of | {"p": p_value(resampled)}
    running = 0.0
    for rank, key in enumerate(sorted(found, key=lambda key: found[key]["p"])):
        running = max(running, min(1.0, (len(found) - rank) * found[key]["p"]))
        found[key]["p_holm"] = running
    return {tower: {task: found[tower, task] for task in row if (tower, task) in found} for tower, row in cells.items()}


def _data(known: Sequence[Study], features: Path) -> str:
    """Digest of the studies and of the content of their images and masks."""
    from encoder.features import digest_files

    files = [path for study in known for image in study.images for path in (image.path, *image.masks.values())]
    contents = {str(path): file.digest for path, file in digest_files(files, features).items()}
    return _digest([asdict(study) for study in known], contents)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()


def _public(cell: Cell) -> dict[str, Any]:
    return {name: value for name, value in vars(cell).items() if name != "resamples"}


def _write_cell(path: Path, cell: Cell, made_of: str) -> None:
    from raddraft.files import write_whole

    path.parent.mkdir(parents=True, exist_ok=True)
    row = _public(cell) | {"resamples": cell.resamples.tolist(), "made_of": made_of}
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(row, default=str) + "\n", encoding="utf-8")


def _read_cell(path: Path, made_of: str) -> Cell | None:
    """The cell, if it is there and made of the same."""
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    if row.pop("made_of") != made_of:
        return None
    return Cell(**(row | {"resamples": np.array(row["resamples"], dtype=float)}))


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


if __name__ == "__main__":
    run("compare")
