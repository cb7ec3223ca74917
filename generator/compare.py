"""Which encoder? Towers x tasks on one manifest: values with intervals, and paired differences to a baseline.

    from generator.compare import Entry, Task, compare

    tasks = [Task("Edema", "binary", ["Edema"]), Task("Nearest report", "retrieval", ["findings"])]
    result = compare("studies.jsonl", ["rad-dino", "dinov2-base"], tasks, out="runs/compare")

Every tower runs once over the images, and all tasks read its stored features. Each cell of the table is stored when it
is done, so an interrupted comparison resumes.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from encoder.config import ComputeConfig, EncoderConfig, FeatureConfig
from encoder.digests import digest_files
from encoder.features import FeatureStore, describe, open_store
from encoder.measures import bounds
from encoder.probe import average_curve, learning_curve, run_probe
from encoder.probe_config import ProbeConfig, SegmentConfig, TargetSpec
from encoder.segment import masked_paths, segment
from encoder.targets import check_leaks, make_target, of_sources, split_groups
from encoder.tower import Tower
from generator import compare_report
from generator.compare_config import Entry, Task
from generator.compare_page import write_page
from generator.config import Control
from generator.prompts import PromptConfig
from generator.retrieve import Retriever
from metrics.scoring import METRICS, measure
from metrics.summary import interval_of_mean, sign
from raddraft.errors import RadDraftError
from raddraft.files import digest_json, write_json
from raddraft.stats import difference, holm, resample
from raddraft.studies import Study, deal_folds, read_studies
from raddraft.text import show, slug

RULES = 6
"""Version of how cells are measured; raised when the same settings give other numbers, so that no old cell is kept."""

MEASURES = {"regression": ("r2", "mae"), "segmentation": ("dice", "iou"), "retrieval": METRICS, "report": METRICS}


@dataclass
class Cell:
    """One tower on one task."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None  # test images
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)
    resamples: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False)  # by test subject: [R]
    sample: str = ""  # digest of test subjects and labels; towers with the same one share their resamples


def compare(
    studies: str | Path,
    towers: Sequence[Entry | str],
    tasks: Sequence[Task],
    out: str | Path = "runs/compare",
    baseline: str | None = None,
    compute: ComputeConfig | None = None,
    resamples: int = 5000,
    folds: int | None = None,
    title: str = "Which encoder?",
) -> dict[str, Any]:
    """Compare towers on tasks; writes compare.json, table.md, report.html and a figure of every column to `out`.

    Environment variables in the names of files and towers are expanded.

    Args:
        studies: the manifest.
        towers: the rows of the table; a text is the tower of an entry.
        tasks: the columns. With a report task, controls of the baseline's drafts are further rows.
        out: folder to write to; cells that are there already, made of the same, are kept.
        baseline: label of the tower that all others are compared with; by default the first.
        compute: how towers run.
        resamples: bootstrap resamples of the test subjects.
        folds: cross-validate, see `raddraft.studies.deal_folds`; values are then means over the folds.
        title: heading of the page.

    Returns:
        What compare.json holds: baseline, tasks, towers (label -> task -> value, low, high, n, notes, details, sample),
        warnings, differences (label -> task -> value, low, high, p, p_holm), resamples, folds, minutes.

    Raises:
        RadDraftError: equal names, an unknown baseline, tower, target, measure or source, or options that do not go
            together. What cannot be measured on some tower is a cell without value that says why.
    """
    started = time.monotonic()
    out, entries = Path(out), [Entry(tower) if isinstance(tower, str) else tower for tower in towers]
    tasks = [column for task in tasks for column in task.columns()]
    baseline = _check(entries, tasks, baseline, folds)
    manifest = _expand(studies)
    places = [(_expand(entry.tower), Path(_expand(entry.seen)) if entry.seen else None) for entry in entries]
    known = read_studies(manifest)
    parts = deal_folds(known, folds) if folds else [known]
    compute = compute or ComputeConfig()
    data = _digest_data(known, compute.features)
    recipes = {
        (entry.name, task.name): _read_recipe(task, entry, name)
        for entry, (name, _) in zip(entries, places, strict=True)
        for task in tasks
        if task.kind == "report"
    }
    context = _Context(Path(manifest), known, parts, data, out, compute, resamples)
    cells: dict[str, dict[str, Cell]] = {}
    warnings: dict[str, list[str]] = {}
    made_of = {}
    for entry, (name, seen) in zip(entries, places, strict=True):
        if told := _find_leaks(parts, seen, compute.features):
            warnings[entry.name] = told
        cells[entry.name], made_of[entry.name] = context.measure_row(entry, name, tasks, recipes)
    cells |= context.measure_controls(baseline, tasks, recipes, made_of[baseline])
    result = {
        "baseline": baseline,
        "tasks": [asdict(task) for task in tasks],
        "differences": compare_with(baseline, cells),
        "towers": {name: {task: _public(cell) for task, cell in row.items()} for name, row in cells.items()},
        "warnings": warnings,
        "resamples": resamples,
        "folds": folds,
        "minutes": (time.monotonic() - started) / 60,
    }
    write_page(result, tasks, out, title)
    return result


def _read_recipe(task: Task, entry: Entry, tower: str) -> compare_report.Recipe:
    changed = {
        key: _expand(value) if isinstance(value, str) else value for key, value in (task.overrides or {}).items()
    }
    task = replace(task, recipe=_expand(entry.recipe or task.recipe or ""), overrides=changed)
    lm = _expand(entry.lm) if entry.lm else None
    return compare_report.read_recipe(task, tower, entry.image_size, entry.gray_mapping, lm)


@dataclass(frozen=True)
class _Context:
    """What all cells of a table share."""

    manifest: Path
    studies: Sequence[Study]
    parts: Sequence[Sequence[Study]]
    """The studies; or with folds, once for each fold."""
    data: str
    """Digest of the studies and their files."""
    out: Path
    compute: ComputeConfig
    resamples: int

    def measure_row(
        self, entry: Entry, name: str, tasks: Sequence[Task], recipes: Mapping[Any, compare_report.Recipe]
    ) -> tuple[dict[str, Cell], str]:
        """Task -> cell of one row, and a digest of the tower and the data that they are made of."""
        encoder = EncoderConfig(
            **vars(self.compute), tower=name, image_size=entry.image_size, gray_mapping=entry.gray_mapping
        )
        tower = encoder.load()
        described = describe(tower, FeatureConfig(gray_mapping=entry.gray_mapping))
        made_of = digest_json(described, self.data)
        row = {}
        for task in tasks:
            if recipe := recipes.get((entry.name, task.name)):
                make = partial(self._report, recipe, made_of, entry.name, task)
            else:
                make = partial(self._measure_parts, tower, encoder, task)
            row[task.name] = self._stored(entry.name, task, make, made_of, recipe and asdict(recipe))
        return row, made_of

    def measure_controls(
        self, baseline: str, tasks: Sequence[Task], recipes: Mapping[Any, compare_report.Recipe], made_of: str
    ) -> dict[str, dict[str, Cell]]:
        """Row -> task -> cell of each control of the baseline's drafts; none without a report task."""
        rows: dict[str, dict[str, Cell]] = {}
        for control, name in compare_report.CONTROLS.items() if recipes else ():
            row = name.format(baseline=baseline)
            rows[row] = {task.name: Cell(None, notes=["a control of report tasks only"]) for task in tasks}
            for task in tasks:
                if recipe := recipes.get((baseline, task.name)):
                    make = partial(self._report, recipe, made_of, baseline, task, control)
                    rows[row][task.name] = self._stored(row, task, make, made_of, asdict(recipe), control)
        return rows

    def _stored(self, row: str, task: Task, make: Callable[[], Cell], *made_of: Any) -> Cell:
        """The cell that is stored, if it is made of the same; else it is made, and stored."""
        path = self.out / "cells" / f"{slug(row)}--{slug(task.name)}.json"
        digest = digest_json(RULES, self.resamples, len(self.parts), asdict(task), *made_of)
        cell = _read_cell(path, digest)
        if cell is None:
            cell = make()
            write_json(path, vars(cell) | {"resamples": cell.resamples.tolist(), "made_of": digest})
        print(f"{row}, {task.name}: {task.shown} {show(cell)}", flush=True)
        return cell

    def _measure_parts(self, tower: Tower, encoder: EncoderConfig, task: Task) -> Cell:
        return join_folds([_measure(tower, encoder, task, part, self.resamples) for part in self.parts])

    def _report(
        self, recipe: compare_report.Recipe, made_of: str, row: str, task: Task, control: Control = "none"
    ) -> Cell:
        """The drafts of a row, or of a control of it, scored; a cell that says why where that cannot be."""
        seeds = task.seeds if control in ("none", "shuffled-images") else 1  # the others copy reports
        runs = compare_report.list_runs(recipe, row, seeds, self.out, made_of)
        try:
            compare_report.make_drafts(runs, self.manifest, self.studies, self.compute, control)
            files = [run.drafts(control) for run in runs]
            found = compare_report.score_runs(files, task.shown, self.studies, self.resamples)
        except RadDraftError as error:
            return Cell(None, notes=[str(error)])
        sample = digest_json(found.studies)
        return Cell(found.value, found.low, found.high, len(found.studies), [], found.details, found.resamples, sample)


def _expand(name: str | Path) -> str:
    expanded = os.path.expandvars(str(name))
    if unset := re.search(r"\$\{?(\w+)", expanded):
        raise RadDraftError(f"{name}: the environment variable {unset[1]} is not set")
    return expanded


def _check(entries: Sequence[Entry], tasks: Sequence[Task], baseline: str | None, folds: int | None) -> str:
    """The baseline's name; raises RadDraftError where the settings do not go together."""
    names = [entry.name for entry in entries]
    for what, found in (("towers", names), ("tasks", [task.name for task in tasks])):
        if len(set(found)) < len(found) or not found:
            raise RadDraftError(f"{what} need one or more different names, got {', '.join(found) or 'none'}")
    if baseline and baseline not in names:
        raise RadDraftError(f"Unknown baseline {baseline!r}. Choices: {', '.join(names)}")
    for task in tasks:
        choices = MEASURES.get(task.kind, ("auroc", "auprc", "balanced_accuracy"))
        if task.shown not in choices:
            raise RadDraftError(
                f"Task {task.name!r}: {task.kind} has no measure {task.shown!r}. Choices: {', '.join(choices)}"
            )
        if task.kind == "report" and folds:
            raise RadDraftError(f"Task {task.name!r}: report tasks train on the manifest's own splits; leave out folds")
        if task.fractions and (folds or task.kind in ("segmentation", "retrieval", "report")):
            raise RadDraftError(
                f"Task {task.name!r}: learning curves (fractions) are of probes, on the manifest's own splits; leave "
                "out fractions, or folds"
            )
    return baseline or names[0]


def _digest_data(known: Sequence[Study], features: Path) -> str:
    """Digest of the studies and of the content of their images and masks."""
    files = [path for study in known for image in study.images for path in (image.path, *image.masks.values())]
    contents = {str(path): file.digest for path, file in digest_files(files, features).items()}
    return digest_json([asdict(study) for study in known], contents)


def _find_leaks(parts: Sequence[Sequence[Study]], seen: Path | None, features: Path) -> list[str]:
    """What `check_leaks` finds between the splits; or between the folds, each of which is tested once."""
    if len(parts) == 1:
        return check_leaks(split_groups(parts[0]), seen, features)
    folds = {f"fold {number}": split_groups(part)["test"] for number, part in enumerate(parts, 1)}
    return check_leaks(folds, seen, features, tested=folds)


def _read_cell(path: Path, made_of: str) -> Cell | None:
    """The stored cell, if it is made of the same."""
    if not path.is_file():
        return None
    row = json.loads(path.read_text(encoding="utf-8"))
    if row.pop("made_of") != made_of:
        return None
    return Cell(**(row | {"resamples": np.array(row["resamples"], dtype=float)}))


def _public(cell: Cell) -> dict[str, Any]:
    return {name: value for name, value in vars(cell).items() if name != "resamples"}


def _measure(tower: Tower, encoder: EncoderConfig, task: Task, studies: Sequence[Study], resamples: int) -> Cell:
    """Run one task on one tower. What cannot be measured is a cell without value that says why; the others go on."""
    segmentation = task.kind == "segmentation"
    try:
        chosen = of_sources(studies, task.sources)
        paths = masked_paths(chosen, task.targets) if segmentation else [study.main_image.path for study in chosen]
    except RadDraftError as error:
        raise RadDraftError(f"Task {task.name!r}: {error}") from None
    if segmentation and tower.shape[:2] == (1, 1):
        return Cell(None, notes=["this tower has no patches"])
    store = open_store(tower, paths, FeatureConfig("grid" if segmentation else "pooled"), encoder, quiet=True)
    if segmentation:
        cell = _segment(tower, task, chosen, store, resamples)
    elif task.kind == "retrieval":
        cell = _retrieve(task, chosen, store, resamples)
    else:
        cell = _probe(task, chosen, store, resamples)
    cell.notes += [f"{len(store.errors)} images cannot be read, e.g. {store.errors[0]}"] if store.errors else []
    return cell


def _probe(task: Task, studies: Sequence[Study], store: FeatureStore, resamples: int) -> Cell:
    spec = TargetSpec(tuple(task.targets), task.kind, task.uncertain, task.missing)  # type: ignore[arg-type]
    config = ProbeConfig(pooling=task.pooling, solver=task.solver, resamples=resamples)
    target = make_target(studies, spec)
    try:
        result = run_probe(store, target, config)
    except RadDraftError as error:
        return Cell(None, notes=[str(error)])
    measured = result.measures["macro"][task.shown]
    one = measured.estimate
    notes = result.notes + ([one.reason] if one.reason else [])
    details = result.to_dict()
    if task.fractions:
        points = learning_curve(store, target, task.fractions, replace(config, resamples=200))
        details["curve"] = average_curve(points, task.shown)
    return Cell(one.value, one.low, one.high, result.n["test"], notes, details, measured.resamples, measured.sample)


def _segment(tower: Tower, task: Task, studies: Sequence[Study], store: FeatureStore, resamples: int) -> Cell:
    config = SegmentConfig(tuple(task.targets), task.head, grid="image", resamples=resamples)
    try:
        result, _ = segment(store, studies, tower.processor, config, str(tower.device))
    except RadDraftError as error:  # a processor that masks cannot follow, or too few masks
        return Cell(None, notes=[str(error)])
    notes = [f"{len(result.errors)} masks cannot be used, e.g. {result.errors[0]}"] if result.errors else []
    score = result.scores["mean"][task.shown]
    per_image = ("dice", "iou", "paths", "subjects")  # as long as the test split
    details = {name: value for name, value in result.to_dict().items() if name not in per_image}
    sample = digest_json(result.paths, result.subjects)
    resampled = result.resampled[task.shown][:, -1]
    return Cell(score.value, score.low, score.high, result.n_images["test"], notes, details, resampled, sample)


def _retrieve(task: Task, studies: Sequence[Study], store: FeatureStore, resamples: int) -> Cell:
    """The report of the nearest training study, scored as any draft; resampled by subject."""
    prompt = PromptConfig(targets=task.targets)
    usable = split_groups([study for study in studies if prompt.answer(study) and study.main_image.path in store])
    test = usable["test"]
    if not usable["train"] or not test:
        return Cell(None, notes=[f"train and test need studies with {', '.join(task.targets)}"])
    rows = list(Retriever(store, usable["train"], prompt, task.pooling).draft(test))
    texts = [row["prediction"] for row in rows], [row["reference"] for row in rows]
    one = measure(*texts, [task.shown])[0][task.shown]
    subjects = [study.subject_id for study in test]
    values = resample([one], resamples, subjects=subjects)[0]
    low, high = interval_of_mean([one], values, subjects)
    sample = digest_json([study.study_id for study in test], subjects)
    signature = f"{one.signature}{sign(one.n, subjects)}|bootstrap:{resamples} seed 0"
    return Cell(one.value, low, high, len(test), [], {"signature": signature}, values, sample)


def join_folds(cells: Sequence[Cell]) -> Cell:
    """The mean of the cells of all folds; resampled within each fold, because each has a probe of its own."""
    if len(cells) == 1:
        return cells[0]
    notes = list(dict.fromkeys(note for cell in cells for note in cell.notes))
    n = sum(cell.n or 0 for cell in cells) or None
    if any(cell.value is None for cell in cells):
        return Cell(None, n=n, notes=notes)
    # Each fold's resamples in an order of their own: they all draw alike, and images may be ordered alike in all folds.
    shuffled = [np.random.default_rng(fold).permutation(cell.resamples) for fold, cell in enumerate(cells)]
    values = np.mean(shuffled, axis=0)
    details = {"folds": [{"value": cell.value, "n": cell.n} for cell in cells]}
    sample = digest_json([cell.sample for cell in cells])
    return Cell(float(np.mean([cell.value for cell in cells])), *bounds(values), n, notes, details, values, sample)


def compare_with(baseline: str, cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, dict[str, float]]]:
    """Each tower minus the baseline on each task, in pairs: value, low, high, p, and p_holm (Holm, 1979).

    The correction is over all towers and tasks of the table. Cells that cannot be compared get a note.
    """
    found: dict[tuple[str, str], dict[str, float]] = {}
    for tower, row in cells.items():
        for task, cell in row.items():
            other = cells[baseline][task]
            if tower == baseline or cell.value is None or other.value is None or len(cell.resamples) == 0:
                continue
            if cell.sample != other.sample:
                cell.notes.append(f"no difference to {baseline}: not measured on the same test images")
            elif one := difference(cell.value - other.value, cell.resamples - other.resamples):
                found[tower, task] = one
    for key, p in holm({key: one["p"] for key, one in found.items()}).items():
        found[key]["p_holm"] = p
    return {tower: {task: found[tower, task] for task in row if (tower, task) in found} for tower, row in cells.items()}
