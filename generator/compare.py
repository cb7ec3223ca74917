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
from encoder.store_folder import describe_store
from encoder.tower import Tower
from encoder.towers import check_tower
from generator import compare_report
from generator.cells import Cell, compare_with, join_folds, read_cell, write_cell
from generator.compare_config import FOLD, Entry, Task
from generator.compare_features import RowFeatures, open_row
from generator.compare_measure import measure_task
from generator.compare_page import write_page
from generator.compare_ranks import rank_correlations
from generator.compare_seen import KnownFilms, Leaks, find_list
from generator.config import Control
from metrics.scoring import METRICS
from raddraft.errors import RadDraftError
from raddraft.files import digest_json
from raddraft.studies import Study, deal_folds, read_studies
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
        folds: cross-validate, see `raddraft.studies.deal_folds`; values are then means over the folds. A tower whose
            name has {fold} is another one in each fold.
        title: heading of the page.
        leaks: refuse test films that are train films, or tell.

    Returns:
        What compare.json holds: baseline, tasks, towers (label -> task -> value, low, high, n, notes, details, sample),
        controls (labels of rows), ranks (as by `generator.compare_ranks`), writers (label -> lm, tokens_per_second,
        where rows name language models), what `KnownFilms.told` holds, differences (label -> task -> as by
        `generator.cells.compare_with`), resamples, folds, towers_of_folds (labels), minutes.

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
    rows = {entry.name: _expand_towers(entry, folds) for entry in entries}
    known = read_studies(manifest)
    parts = deal_folds(known, folds) if folds else [known]
    compute = compute or ComputeConfig()
    recipes = {
        (row, task.name): _read_recipe(task, entry)
        for row, [entry, *_] in rows.items()
        for task in tasks
        if task.kind == "report"
    }
    films = KnownFilms(rows, known, parts, tasks, baseline, compute.features, leaks)
    context = _Context(Path(manifest), known, parts, out, compute, resamples, baseline, recipes, films)
    cells, made_of = context.measure_rows(rows, tasks)
    for one, cell in context.measure_reports(list(_list_reports(baseline, recipes, tasks, made_of, out))):
        cells.setdefault(one.row, {})[one.task.name] = cell
    no_task = Cell(None, notes=["a control of report tasks only"])
    cells = {name: {task.name: row.get(task.name, no_task) for task in tasks} for name, row in cells.items()}
    result = films.told | {
        "baseline": baseline,
        "tasks": [asdict(task) for task in tasks],
        "differences": compare_with(baseline, cells),
        "towers": {name: {task: cell.public() for task, cell in row.items()} for name, row in cells.items()},
        "controls": [name for name in cells if name not in rows],
        "ranks": rank_correlations(cells, tasks, list(rows)),
        "writers": _find_writers(cells) if any(entry.lm or entry.recipe for entry in entries) else {},
        "resamples": resamples,
        "folds": folds,
        "towers_of_folds": [entry.name for entry in entries if entry.has_folds],
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


def _expand_towers(entry: Entry, folds: int | None) -> list[Entry]:
    """The tower of a row, or that of each fold, with its list; environment variables are expanded.

    Raises:
        RadDraftError: one of them is not there.
    """
    towers = [entry.in_fold(number + 1) for number in range(folds)] if folds and entry.has_folds else [entry]
    found = []
    for one in towers:
        tower = _expand(one.tower)
        check_tower(tower)
        seen = Path(_expand(one.seen)) if one.seen else find_list(tower)
        found.append(replace(one, tower=tower, label=entry.name, seen=seen))
    return found


def _read_recipe(task: Task, entry: Entry) -> compare_report.Recipe:
    changed = {
        key: _expand(value) if isinstance(value, str) else value for key, value in (task.overrides or {}).items()
    }
    task = replace(task, recipe=_expand(entry.recipe or task.recipe or ""), overrides=changed)
    lm = _expand(entry.lm) if entry.lm else None
    return compare_report.read_recipe(task, entry.tower, entry.image_size, entry.gray_mapping, lm)


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
    films: KnownFilms
    """Refuses test films that are train films, and warns of films that towers have seen, before any is measured on."""
    stores: dict[Path, FeatureStore] = field(default_factory=dict)
    """Folder of the runs of a recipe -> features that they read."""

    @cached_property
    def data(self) -> str:
        """Digest of the studies and their files."""
        return _digest_data(self.studies, self.compute.features)

    def measure_rows(
        self, rows: Mapping[str, Sequence[Entry]], tasks: Sequence[Task]
    ) -> tuple[dict[str, dict[str, Cell]], dict[str, str]]:
        """Row -> task -> cell, of all tasks but reports; row -> digest of its tower and the data. One row at a time."""
        cells: dict[str, dict[str, Cell]] = {row: {} for row in rows}
        made_of = dict.fromkeys(cells, "")
        # Where there may be cells, the files are digested to know; else the pass that reads the images digests them.
        is_new = not any((self.out / "cells").rglob("*.json"))

        def work(row: str) -> None:
            if len(rows[row]) == 1:
                cells[row], made_of[row] = self._measure_tower(row, rows[row][0], self.parts, tasks, is_new)
                return
            found = [
                self._measure_tower(row, tower, [part], tasks, is_new, number)[0]
                for number, (tower, part) in enumerate(zip(rows[row], self.parts, strict=True), 1)
            ]
            for task in tasks:
                joined = join_folds([fold[task.name] for fold in found])
                joined.notes += joined.doubts()
                print(f"{row}, {task.name}: {task.shown} {show(joined)}", flush=True)
                cells[row][task.name] = joined

        compare_report.share_out(list(rows), lambda row: self.out / "cells" / f"{slug(row)}.lock", work)
        return cells, made_of

    def _measure_tower(
        self,
        row: str,
        entry: Entry,
        parts: Sequence[Sequence[Study]],
        tasks: Sequence[Task],
        is_new: bool,
        fold: int | None = None,
    ) -> tuple[dict[str, Cell], str]:
        """Task -> cell of one tower, over all parts or of its own fold; and the digest of the tower and the data."""
        encoder = EncoderConfig(
            **vars(self.compute), tower=entry.tower, image_size=entry.image_size, gray_mapping=entry.gray_mapping
        )
        tower = encoder.load()
        recipes = {task: recipe for (row_name, task), recipe in self.recipes.items() if row_name == row}
        features = open_row(tower, encoder, tasks, recipes, self.studies) if is_new else None
        made_of = digest_json(describe_store(tower, encoder), self.data)
        reports = list(_list_reports(self.baseline, self.recipes, tasks, {row: made_of}, self.out))
        if features is None:
            left = [one.task for one in reports if self._find(one.row, one.task, *one.made_of) is None]
            left += [
                task for task in tasks if task.kind != "report" and self._find(row, task, made_of, fold=fold) is None
            ]
            features = open_row(tower, encoder, left, recipes, self.studies)
        self.films.find_copies(entry.gray_mapping)
        self.films.warn()
        for one in reports:
            if store := features.of_reports.get(one.task.name):
                self.stores[one.runs[0].folder.parent] = store
        cells = {}
        for task in tasks:
            if task.kind != "report":
                make = partial(self._measure_parts, tower, features, task, parts)
                cells[task.name] = self._stored(row, task, make, made_of, fold=fold)
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
            cell = compare_report.score_runs(reports.runs, reports.task.shown, self.studies, self.resamples)
        except RadDraftError as error:
            return Cell(None, notes=[str(error)])
        cell.notes += cell.doubts()
        return cell

    def _find(self, row: str, task: Task, *made_of: Any, fold: int | None = None) -> Cell | None:
        """The cell that is stored, if it is made of the same; with a fold that of a row's tower of this fold."""
        return read_cell(self._path(row, task, fold), self._digest(task, made_of, fold), task.shown)

    def _stored(self, row: str, task: Task, make: Callable[[], Cell], *made_of: Any, fold: int | None = None) -> Cell:
        """The cell that `_find` gives; else it is made and stored, unless drafts failed: those are tried again."""
        cell = self._find(row, task, *made_of, fold=fold)
        if cell is None:
            cell = make()
            if cell.value is not None or task.kind != "report":
                write_cell(self._path(row, task, fold), cell, self._digest(task, made_of, fold))
        print(f"{row}{f', fold {fold}' if fold else ''}, {task.name}: {task.shown} {show(cell)}", flush=True)
        return cell

    def _path(self, row: str, task: Task, fold: int | None) -> Path:
        folder = self.out / "cells" / (f"folds/{fold}" if fold else "")  # no label makes a path of a fold
        return folder / f"{slug(row)}--{slug(task.name)}.json"

    def _digest(self, task: Task, made_of: Sequence[Any], fold: int | None) -> str:
        of_fold = (fold,) if fold else ()
        return digest_json(RULES, self.resamples, len(self.parts), asdict(task), *made_of, *of_fold)

    def _measure_parts(self, tower: Tower, features: RowFeatures, task: Task, parts: Sequence[Sequence[Study]]) -> Cell:
        cell = join_folds([measure_task(tower, features, task, part, self.resamples) for part in parts])
        if len(parts) == len(self.parts):  # a fold of many is looked at with the others
            cell.notes += cell.doubts()
        return cell


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
    for entry in entries:
        if FOLD in f"{entry.tower} {entry.seen}" and not folds:
            raise RadDraftError(f"Tower {entry.name!r}: {FOLD} stands for the number of a fold; give folds, e.g. 5")
        if FOLD in str(entry.seen or "") and not entry.has_folds:
            raise RadDraftError(
                f"Tower {entry.name!r}: seen names a list for each fold, but the tower is the same in all of them; put "
                f"{FOLD} into both"
            )
        if entry.has_folds and entry.seen and FOLD not in str(entry.seen):
            raise RadDraftError(
                f"Tower {entry.name!r}: there is a tower for each fold, but seen names one list; put {FOLD} into both, "
                "or leave seen out: the list beside each tower is found"
            )
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
