"""Which encoder? Towers x tasks on one manifest: values with intervals, and paired differences to a baseline.

    from generator.compare import Entry, Task, compare

    tasks = [Task("Edema", "binary", ["Edema"]), Task("Nearest report", "retrieval", ["findings"])]
    result = compare("studies.jsonl", ["rad-dino", "dinov2-base"], tasks, out="runs/compare")

Every tower runs once over the images, and all tasks read its stored features; an image is read once for each tower.
Each cell of the table is stored when it is done, so an interrupted comparison resumes.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from encoder.config import ComputeConfig, EncoderConfig
from encoder.digests import digest_files
from encoder.features import FeatureStore
from encoder.leaks import split_groups
from encoder.probe import average_curve, learning_curve, run_probe
from encoder.probe_config import ProbeConfig, SegmentConfig
from encoder.segment import segment
from encoder.store_folder import describe_store
from encoder.targets import make_target, of_sources
from encoder.tower import Tower
from generator import compare_report
from generator.cells import Cell, cell_of_sums, compare_with, join_folds, read_cell, write_cell
from generator.compare_config import Entry, Task
from generator.compare_features import RowFeatures, features_of, open_row
from generator.compare_page import write_page
from generator.compare_ranks import rank_correlations
from generator.compare_seen import KnownFilms, Leaks, target_spec
from generator.config import Control
from generator.prompts import PromptConfig
from generator.retrieve import Retriever
from metrics.scoring import METRICS, measure
from metrics.summary import sign
from raddraft.errors import RadDraftError
from raddraft.files import digest_json
from raddraft.stats import mean_measure
from raddraft.studies import GrayMapping, Study, deal_folds, read_studies
from raddraft.text import show, slug

RULES = 7
"""Version of how cells are measured; raised when the same settings give other numbers, so that no old cell is kept."""

MEASURES = {"regression": ("r2", "mae"), "segmentation": ("dice", "iou"), "retrieval": METRICS, "report": METRICS}


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
    leaks: Leaks = "refuse",
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
        leaks: refuse test films that are train films, or tell.

    Returns:
        What compare.json holds: baseline, tasks, towers (label -> task -> value, low, high, n, notes, details, sample),
        controls (labels of rows), ranks (as by `generator.compare_ranks`), writers (label -> lm, tokens_per_second,
        where rows name language models), warnings, seen (label -> task -> as by `encoder.seen.Seen.to_dict`) and
        training_unknown (labels), differences (label -> task -> as by `generator.cells.compare_with`), resamples,
        folds, minutes.

    Raises:
        RadDraftError: equal names, an unknown baseline, tower, target, measure or source, options that do not go
            together, or test films that are train films. What cannot be measured on some tower is a cell without value
            that says why.
    """
    started = time.monotonic()
    out, entries = Path(out), [Entry(tower) if isinstance(tower, str) else tower for tower in towers]
    tasks = [column for task in tasks for column in task.columns()]
    baseline = _check(entries, tasks, baseline, folds)
    manifest = _expand(studies)
    towers_of = [_expand(entry.tower) for entry in entries]
    lists = [Path(_expand(entry.seen)) if entry.seen else None for entry in entries]
    films = KnownFilms(entries, towers_of, lists)  # looked at when they have been digested
    known = read_studies(manifest)
    parts = deal_folds(known, folds) if folds else [known]
    compute = compute or ComputeConfig()
    recipes = {
        (entry.name, task.name): _read_recipe(task, entry, name)
        for entry, name in zip(entries, towers_of, strict=True)
        for task in tasks
        if task.kind == "report"
    }
    check = partial(films.find_copies, parts=parts, tasks=tasks, features=compute.features, leaks=leaks)
    context = _Context(Path(manifest), known, parts, out, compute, resamples, baseline, recipes, check)
    cells, made_of = context.measure_rows(entries, towers_of, tasks)
    told = films.look(known, parts, tasks, baseline, compute.features, leaks)
    for one, cell in context.measure_reports(list(_list_reports(baseline, recipes, tasks, made_of, out))):
        cells.setdefault(one.row, {})[one.task.name] = cell
    no_task = Cell(None, notes=["a control of report tasks only"])
    cells = {name: {task.name: row.get(task.name, no_task) for task in tasks} for name, row in cells.items()}
    names = [entry.name for entry in entries]
    result = told | {
        "baseline": baseline,
        "tasks": [asdict(task) for task in tasks],
        "differences": compare_with(baseline, cells),
        "towers": {name: {task: cell.public() for task, cell in row.items()} for name, row in cells.items()},
        "controls": [name for name in cells if name not in names],
        "ranks": rank_correlations(cells, tasks, names),
        "writers": _find_writers(cells) if any(entry.lm or entry.recipe for entry in entries) else {},
        "resamples": resamples,
        "folds": folds,
        "minutes": (time.monotonic() - started) / 60,
    }
    write_page(result, tasks, out, title)
    return result


def _find_writers(cells: Mapping[str, Mapping[str, Cell]]) -> dict[str, dict[str, Any]]:
    """Row -> parameters of its language model ("lm"), and tokens_per_second that it drafts."""
    found = {name: cell.details for name, row in cells.items() for cell in row.values() if "parameters" in cell.details}
    return {
        name: {"lm": one["parameters"]["lm"], "tokens_per_second": one["tokens_per_second"]}
        for name, one in found.items()
    }


def _read_recipe(task: Task, entry: Entry, tower: str) -> compare_report.Recipe:
    changed = {
        key: _expand(value) if isinstance(value, str) else value for key, value in (task.overrides or {}).items()
    }
    task = replace(task, recipe=_expand(entry.recipe or task.recipe or ""), overrides=changed)
    lm = _expand(entry.lm) if entry.lm else None
    return compare_report.read_recipe(task, tower, entry.image_size, entry.gray_mapping, lm)


@dataclass(frozen=True)
class _Reports:
    """A cell of a report task: of a row, or of a control of the baseline's drafts."""

    row: str
    task: Task
    runs: list[compare_report.Run]
    made_of: tuple[Any, ...]


def _list_reports(
    baseline: str,
    recipes: Mapping[tuple[str, str], compare_report.Recipe],
    tasks: Sequence[Task],
    made_of: Mapping[str, str],
    out: Path,
) -> Iterator[_Reports]:
    """The cells of the report tasks of rows, by what these are made of; then the controls, if the baseline is one."""
    rows: list[tuple[str, str, Control]] = [(row, row, "none") for row in made_of]
    if baseline in made_of:
        controls = compare_report.CONTROLS.items()
        rows += [(name.format(baseline=baseline), baseline, control) for control, name in controls]
    for label, row, control in rows:
        for task in tasks:
            if recipe := recipes.get((row, task.name)):
                seeds = task.seeds if control in ("none", "shuffled-images") else 1  # the others copy reports
                runs = compare_report.list_runs(recipe, row, seeds, out, made_of[row], control)
                yield _Reports(label, task, runs, (made_of[row], asdict(recipe), control))


@dataclass(frozen=True)
class _Context:
    """What all cells of a table share."""

    manifest: Path
    studies: Sequence[Study]
    parts: Sequence[Sequence[Study]]
    """The studies; or with folds, once for each fold."""
    out: Path
    compute: ComputeConfig
    resamples: int
    baseline: str
    recipes: Mapping[tuple[str, str], compare_report.Recipe]
    """Row and report task -> recipe."""
    check: Callable[[GrayMapping], object]
    """Refuses test films that are train films, before anything is measured on them."""
    stores: dict[Path, FeatureStore] = field(default_factory=dict)
    """Folder of the runs of a recipe -> features that they read."""

    @cached_property
    def data(self) -> str:
        """Digest of the studies and their files."""
        return _digest_data(self.studies, self.compute.features)

    def measure_rows(
        self, entries: Sequence[Entry], names: Sequence[str], tasks: Sequence[Task]
    ) -> tuple[dict[str, dict[str, Cell]], dict[str, str]]:
        """Row -> task -> cell, of all tasks but reports; row -> digest of its tower and the data. One row at a time."""
        cells: dict[str, dict[str, Cell]] = {entry.name: {} for entry in entries}
        made_of = dict.fromkeys(cells, "")
        # Where there may be cells, the files are digested to know; else the pass that reads the images digests them.
        is_new = not any((self.out / "cells").glob("*.json"))

        def work(row: tuple[Entry, str]) -> None:
            entry, name = row
            encoder = EncoderConfig(
                **vars(self.compute), tower=name, image_size=entry.image_size, gray_mapping=entry.gray_mapping
            )
            tower = encoder.load()
            recipes = {task: recipe for (row_name, task), recipe in self.recipes.items() if row_name == entry.name}
            features = open_row(tower, encoder, tasks, recipes, self.studies) if is_new else None
            made_of[entry.name] = digest_json(describe_store(tower, encoder), self.data)
            mine = {entry.name: made_of[entry.name]}
            reports = list(_list_reports(self.baseline, self.recipes, tasks, mine, self.out))
            if features is None:
                left = [one.task for one in reports if self._find(one.row, one.task, *one.made_of) is None]
                left += [
                    task
                    for task in tasks
                    if task.kind != "report" and self._find(entry.name, task, made_of[entry.name]) is None
                ]
                features = open_row(tower, encoder, left, recipes, self.studies)
            self.check(entry.gray_mapping)
            for one in reports:
                if store := features.of_reports.get(one.task.name):
                    self.stores[one.runs[0].folder.parent] = store
            for task in tasks:
                if task.kind != "report":
                    make = partial(self._measure_parts, tower, features, task)
                    cells[entry.name][task.name] = self._stored(entry.name, task, make, made_of[entry.name])

        rows = list(zip(entries, names, strict=True))
        compare_report.share_out(rows, lambda row: self.out / "cells" / f"{slug(row[0].name)}.lock", work)
        return cells, made_of

    def measure_reports(self, reports: Sequence[_Reports]) -> Iterator[tuple[_Reports, Cell]]:
        """Train and draft whatever the stored cells lack, over all rows, then score."""
        missing = [one for one in reports if self._find(one.row, one.task, *one.made_of) is None]
        runs = [run for one in missing for run in one.runs]
        faults = compare_report.make_drafts(runs, self.manifest, self.studies, self.compute, self.stores)
        for one in reports:
            yield one, self._stored(one.row, one.task, partial(self._score, one, faults), *one.made_of)

    def _score(self, reports: _Reports, faults: Mapping[str, str]) -> Cell:
        """The drafts scored; a cell that says why where that cannot be."""
        if fault := faults.get(reports.runs[0].group):
            return Cell(None, notes=[fault])
        try:
            return compare_report.score_runs(reports.runs, reports.task.shown, self.studies, self.resamples)
        except RadDraftError as error:
            return Cell(None, notes=[str(error)])

    def _find(self, row: str, task: Task, *made_of: Any) -> Cell | None:
        """The cell that is stored, if it is made of the same."""
        return read_cell(self._path(row, task), self._digest(task, made_of), task.shown)

    def _stored(self, row: str, task: Task, make: Callable[[], Cell], *made_of: Any) -> Cell:
        """The cell that `_find` gives; else it is made and stored, unless drafts failed: those are tried again."""
        cell = self._find(row, task, *made_of)
        if cell is None:
            cell = make()
            cell.notes += cell.doubts()
            if cell.value is not None or task.kind != "report":
                write_cell(self._path(row, task), cell, self._digest(task, made_of))
        print(f"{row}, {task.name}: {task.shown} {show(cell)}", flush=True)
        return cell

    def _path(self, row: str, task: Task) -> Path:
        return self.out / "cells" / f"{slug(row)}--{slug(task.name)}.json"

    def _digest(self, task: Task, made_of: Sequence[Any]) -> str:
        return digest_json(RULES, self.resamples, len(self.parts), asdict(task), *made_of)

    def _measure_parts(self, tower: Tower, features: RowFeatures, task: Task) -> Cell:
        return join_folds([_measure(tower, features, task, part, self.resamples) for part in self.parts])


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
    contents = {str(path): digest for path, digest in zip(files, digest_files(files, features), strict=True) if digest}
    return digest_json([asdict(study) for study in known], contents)


def _measure(tower: Tower, features: RowFeatures, task: Task, studies: Sequence[Study], resamples: int) -> Cell:
    """Run one task on one tower. What cannot be measured is a cell without value that says why; the others go on."""
    kept, paths = features_of(task, studies)
    if task.kind == "segmentation" and tower.shape[:2] == (1, 1):
        return Cell(None, notes=["this tower has no patches"])
    chosen, store = of_sources(studies, task.sources), features.of_tasks[kept]
    if task.kind == "segmentation":
        cell = _segment(tower, task, chosen, store, resamples)
    elif task.kind == "retrieval":
        cell = _retrieve(task, chosen, store, resamples)
    else:
        cell = _probe(task, chosen, store, resamples)
    if failed := [sentence for path in paths if (sentence := store.failed.get(str(path)))]:
        cell.notes.append(f"{len(failed)} images cannot be read, e.g. {failed[0]}")
    return cell


def _probe(task: Task, studies: Sequence[Study], store: FeatureStore, resamples: int) -> Cell:
    config = ProbeConfig(pooling=task.pooling, solver=task.solver, resamples=resamples)
    target = make_target(studies, target_spec(task))
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
    per_image = ("dice", "iou", "paths", "subjects")  # as long as the test split
    details = {name: value for name, value in result.to_dict().items() if name not in per_image}
    sample = digest_json(result.paths, result.subjects)
    one, score = mean_measure(getattr(result, task.shown).mean(1), ""), result.scores["mean"][task.shown]
    cell = cell_of_sums([one], result.subjects, resamples, sample, details)
    return replace(cell, low=score.low, high=score.high, notes=notes)  # the interval that `segment` shows


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
    sample = digest_json([study.study_id for study in test], subjects)
    signature = f"{one.signature}{sign(one.n, subjects)}|bootstrap:{resamples} seed 0"
    return cell_of_sums([one], subjects, resamples, sample, {"signature": signature})
