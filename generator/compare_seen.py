"""Which test films of a comparison are known: to a row's tower from its training, to probes from their train split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from encoder.leaks import check_copies, check_leaks, read_hashes, split_groups
from encoder.probe_config import TargetSpec
from encoder.seen import HAD, MAY, Seen, count_seen, training_of
from encoder.targets import make_target, of_sources
from generator.compare_config import Entry, Task
from generator.compare_features import features_of
from generator.compare_report import CONTROLS
from generator.prompts import PromptConfig
from raddraft.studies import GrayMapping, Study

Leaks = Literal["refuse", "tell"]


def target_spec(task: Task) -> TargetSpec:
    """What a probe task predicts."""
    return TargetSpec(tuple(task.targets), task.kind, task.uncertain, task.missing)  # type: ignore[arg-type]


def tested_studies(task: Task, studies: Sequence[Study], folds: bool) -> list[Study]:
    """The studies that a task is measured on, of whichever split with folds, each of which is tested on once."""
    chosen = of_sources(studies, task.sources)
    if task.kind in ("retrieval", "report"):
        prompt = PromptConfig(targets=task.targets)
        known = [study for study in chosen if prompt.answer(study)]
    else:
        probe = task.kind != "segmentation"
        paths = set(make_target(chosen, target_spec(task)).paths if probe else features_of(task, studies)[1])
        known = [study for study in chosen if any(image.path in paths for image in study.images)]
    return [study for study in known if folds or study.split == "test"]


def _group(parts: Sequence[Sequence[Study]]) -> tuple[dict[str, Sequence[Study]], list[str], list[str]]:
    """The splits, which are tested on and which are trained on; or the folds, each for both."""
    if len(parts) == 1:
        return {**split_groups(parts[0])}, ["test"], ["train"]
    folds: dict[str, Sequence[Study]] = {
        f"fold {number}": split_groups(part)["test"] for number, part in enumerate(parts, 1)
    }
    return folds, list(folds), list(folds)


def _of(studies: Iterable[Study], sources: Sequence[str] | None) -> list[Study]:
    return [study for study in studies if sources is None or study.source in sources]


class KnownFilms:
    """What the rows of a table were trained on, and the lists of it.

    Args:
        entries: the rows.
        towers: of each the tower, environment variables expanded.
        lists: of each the list of digests, or None.

    Raises:
        RadDraftError: an unknown `known_as`, or a list that is none.
    """

    def __init__(self, entries: Sequence[Entry], towers: Sequence[str], lists: Sequence[Path | None]) -> None:
        self.entries, self.lists = entries, lists
        self.training = {one.name: training_of(tower, one.known_as) for one, tower in zip(entries, towers, strict=True)}
        self.copies: dict[GrayMapping, list[str]] = {}
        """What `find_copies` has found already."""
        for file in {file for file in lists if file}:
            read_hashes(file)

    def find_copies(
        self,
        gray_mapping: GrayMapping,
        parts: Sequence[Sequence[Study]],
        tasks: Sequence[Task],
        features: Path,
        leaks: Leaks,
    ) -> list[str]:
        """What `check_copies` finds between the splits or folds, each sentence with the tasks that it holds for.

        Films are looked for among the studies of each task: two tasks of different sources share no train split. The
        arguments are those of `look`.

        Raises:
            LeakError: a test film is a train film, and `leaks` is refuse.
        """
        if gray_mapping in self.copies:
            return self.copies[gray_mapping]
        groups, tested, trained = _group(parts)
        uses: dict[tuple[str, ...] | None, set[Path]] = {}
        columns: dict[tuple[str, ...] | None, list[str]] = {}
        for task in tasks:
            sources = None if task.sources is None else tuple(sorted(task.sources))
            paths = uses.setdefault(sources, set())
            columns.setdefault(sources, []).append(task.name)
            if task.kind == "report":
                paths.update(study.main_image.path for study in of_sources(parts[0], task.sources))
            else:
                paths.update(features_of(task, parts[0])[1])
        found: dict[str, list[str]] = {}
        for sources, paths in uses.items():
            chosen = {group: _of(studies, sources) for group, studies in groups.items()}
            told = check_copies(chosen, paths, features, gray_mapping, tested, trained, leaks == "refuse")
            for sentence in told:
                found.setdefault(sentence, []).extend(columns[sources])
        self.copies[gray_mapping] = [f"{told}; columns: {', '.join(names)}" for told, names in found.items()]
        return self.copies[gray_mapping]

    def look(
        self,
        studies: Sequence[Study],
        parts: Sequence[Sequence[Study]],
        tasks: Sequence[Task],
        baseline: str,
        features: Path,
        leaks: Leaks,
    ) -> dict[str, Any]:
        """For compare.json: warnings by row; seen, row -> task -> `encoder.seen.Seen.to_dict`, where the tower
        had test films in training, or may have had; and training_unknown, the rows of which that is not known.

        Args:
            studies: all of the manifest, with their own splits.
            parts: the same; or with folds, once for each fold.
            tasks: the columns.
            baseline: row whose controls are rows, too.
            features: folder of stored features.
            leaks: refuse test films that are train films, or tell.

        Raises:
            LeakError: a test film is a train film, and `leaks` is refuse.
        """
        seen = self._find_seen(studies, tasks, len(parts) > 1, baseline)
        groups, tested, _ = _group(parts)
        warnings = {
            entry.name: [
                *check_leaks(groups, file, features, tested),
                *self.find_copies(entry.gray_mapping, parts, tasks, features, leaks),
                *_tell_seen(seen.get(entry.name, {})),
            ]
            for entry, file in zip(self.entries, self.lists, strict=True)
        }
        return {
            "warnings": {row: told for row, told in warnings.items() if told},
            "seen": {row: {task: one.to_dict() for task, one in found.items()} for row, found in seen.items()},
            "training_unknown": [row for row, sets in self.training.items() if sets is None],
        }

    def _find_seen(
        self, studies: Sequence[Study], tasks: Sequence[Task], folds: bool, baseline: str
    ) -> dict[str, dict[str, Seen]]:
        """Row -> task -> what its tower had, may have had, or nobody can tell that it had, of the test films; controls
        that show it films, too."""
        known = any(self.training.values())
        tested = {task.name: tested_studies(task, studies, folds) for task in tasks} if known else {}
        found: dict[str, dict[str, Seen]] = {}
        for row, sets in self.training.items():
            counted = {task: count_seen(sets, part) for task, part in tested.items()}
            if told := {task: seen for task, seen in counted.items() if seen.tell()}:
                found[row] = told
        reports = {task.name for task in tasks if task.kind == "report"}
        if own := {task: seen for task, seen in found.get(baseline, {}).items() if task in reports}:
            found |= {name.format(baseline=baseline): own for name in CONTROLS.values() if "{baseline}" in name}
        return found


def _tell_seen(found: Mapping[str, Seen]) -> list[str]:
    """A sentence for each different finding about a row, with the tasks that it holds for."""
    tasks: dict[str, list[str]] = {}
    for task, seen in found.items():
        for told in seen.tell():
            tasks.setdefault(told, []).append(task)
    return [f"{told}: {', '.join(names)}" for told, names in tasks.items()]


def explain_marks(result: Mapping[str, Any]) -> list[str]:
    """How to read the marks in the table, where there are any, and which rows could have none."""
    found = [seen for row in result.get("seen", {}).values() for seen in row.values()]
    told = []
    if any(seen["mark"] for seen in found):
        told.append(
            f"{HAD} measured on films that the encoder had in training, at least in part, by what its authors say of "
            f"sets and splits; {MAY} it may have had them. The warnings say how many. Such a value is no test on new "
            "films."
        )
    if sources := list(dict.fromkeys(name for seen in found for name in seen.get("unknown", ()))):
        told.append(f"Which set these films are from is not known, so that nothing is marked: {', '.join(sources)}.")
    if unknown := result.get("training_unknown"):
        told.append(
            f"What was trained on which films is not known here, so that nothing is marked: {', '.join(unknown)}."
        )
    return told
