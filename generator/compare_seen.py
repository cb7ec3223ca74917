"""Which test films of a comparison are known: to a row's tower from its training, to probes from their train split."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from encoder.digests import digest_files
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


def find_list(tower: str) -> Path | None:
    """The list of training images that `raddraft pretrain` writes beside its folder "model", if the tower is one."""
    beside = Path(tower).parent / "images.sha256"
    return beside if Path(tower).name == "model" and beside.is_file() else None


def tested_films(task: Task, studies: Sequence[Study], folds: bool) -> list[tuple[Study, list[Path]]]:
    """The studies that a task is measured on, with the films that it is measured on.

    Args:
        task: of any kind.
        studies: of all splits.
        folds: whether those of every split are tested on, each once.
    """
    chosen = of_sources(studies, task.sources)
    if task.kind in ("retrieval", "report"):
        prompt = PromptConfig(targets=task.targets)
        known = [(study, [study.main_image.path]) for study in chosen if prompt.answer(study)]
    else:
        probe = task.kind != "segmentation"
        paths = set(make_target(chosen, target_spec(task)).paths if probe else features_of(task, studies)[1])
        found = ((study, [image.path for image in study.images if image.path in paths]) for study in chosen)
        known = [(study, films) for study, films in found if films]
    return [(study, films) for study, films in known if folds or study.split == "test"]


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
    """Test films that are known: to towers from their training, to probes from the films that they are fitted on.

    Args:
        rows: label -> its tower, or with folds that of each; environment variables are expanded.
        studies: all of the manifest, with their own splits.
        parts: the same; or with folds, once for each fold.
        tasks: the columns.
        baseline: row whose controls are rows, too.
        features: folder of stored features.
        leaks: refuse test films that are train films, or tell.

    Raises:
        RadDraftError: an unknown `known_as`, or a list that is none.
    """

    def __init__(
        self,
        rows: Mapping[str, Sequence[Entry]],
        studies: Sequence[Study],
        parts: Sequence[Sequence[Study]],
        tasks: Sequence[Task],
        baseline: str,
        features: Path,
        leaks: Leaks,
    ) -> None:
        self.rows, self.studies, self.parts, self.tasks = rows, studies, parts, tasks
        self.baseline, self.features, self.leaks = baseline, features, leaks
        self.training = {row: training_of(one.tower, one.known_as) for row, [one, *_] in rows.items()}
        self.copies: dict[GrayMapping, list[str]] = {}
        """What `find_copies` has found already."""
        self.warned = False
        for file in {one.seen for towers in rows.values() for one in towers if one.seen}:
            read_hashes(file)

    def find_copies(self, gray_mapping: GrayMapping) -> list[str]:
        """What `check_copies` finds between the splits or folds, each sentence with the tasks that it holds for.

        Films are looked for among the studies of each task: two tasks of different sources share no train split.

        Raises:
            LeakError: a test film is a train film, and these are refused.
        """
        if gray_mapping in self.copies:
            return self.copies[gray_mapping]
        groups, tested, trained = _group(self.parts)
        uses: dict[tuple[str, ...] | None, set[Path]] = {}
        columns: dict[tuple[str, ...] | None, list[str]] = {}
        for task in self.tasks:
            sources = None if task.sources is None else tuple(sorted(task.sources))
            paths = uses.setdefault(sources, set())
            columns.setdefault(sources, []).append(task.name)
            if task.kind == "report":
                paths.update(study.main_image.path for study in of_sources(self.parts[0], task.sources))
            else:
                paths.update(features_of(task, self.parts[0])[1])
        found: dict[str, list[str]] = {}
        for sources, paths in uses.items():
            chosen = {group: _of(studies, sources) for group, studies in groups.items()}
            told = check_copies(chosen, paths, self.features, gray_mapping, tested, trained, self.leaks == "refuse")
            for sentence in told:
                found.setdefault(sentence, []).extend(columns[sources])
        self.copies[gray_mapping] = [f"{told}; columns: {', '.join(names)}" for told, names in found.items()]
        return self.copies[gray_mapping]

    def warn(self) -> None:
        """Print the first line of the table once, if towers have seen films that they are tested on."""
        if self.told["warning"] and not self.warned:
            print(self.told["warning"], flush=True)
        self.warned = True

    @cached_property
    def told(self) -> dict[str, Any]:
        """For compare.json: warning, the first line of the table, or nothing; warnings by row; seen, row -> task ->
        `encoder.seen.Seen.to_dict`, where the tower had test films in training, or may have had; and training_unknown,
        the rows of which neither that nor a list of training images is known.

        Raises:
            LeakError: a test film is a train film, and these are refused.
        """
        seen = self._find_seen()
        groups, _, _ = _group(self.parts)
        leaks = check_leaks(groups, features=self.features)
        warnings = {
            row: [
                *leaks,
                *self.find_copies(towers[0].gray_mapping),
                *_tell_seen(seen.get(row, {})),
                *_tell_unlisted(towers),
            ]
            for row, towers in self.rows.items()
        }
        return {
            "warning": _warn({row: seen[row] for row in self.rows if row in seen}),
            "warnings": {row: told for row, told in warnings.items() if told},
            "seen": {row: {task: one.to_dict() for task, one in found.items()} for row, found in seen.items()},
            "training_unknown": [
                row
                for row, sets in self.training.items()
                if sets is None and not all(one.seen for one in self.rows[row])
            ],
        }

    def _find_seen(self) -> dict[str, dict[str, Seen]]:
        """Row -> task -> what its tower had, may have had, or nobody can tell that it had, of the test films; controls
        that show it films, too."""
        lists = {row: [one.seen for one in towers] for row, towers in self.rows.items()}
        listed = {row: files for row, files in lists.items() if any(files)}
        if not listed and not any(self.training.values()):
            return {}
        folds = len(self.parts) > 1
        tested = {task.name: tested_films(task, self.studies, folds) for task in self.tasks}
        digests = self._digest(tested) if listed else {}
        fold_of = {study.study_id: fold for fold, part in enumerate(self.parts) for study in split_groups(part)["test"]}
        found: dict[str, dict[str, Seen]] = {}
        for row, sets in self.training.items():
            known = [read_hashes(file) & {*digests.values()} if file else set() for file in listed.get(row, ())]
            for task, part in tested.items():
                seen = count_seen(sets, (study for study, _ in part))
                if known:
                    where = [(fold_of[study.study_id] % len(known), film) for study, films in part for film in films]
                    seen.films, seen.listed = len(where), sum(digests[film] in known[fold] for fold, film in where)
                if seen.tell():
                    found.setdefault(row, {})[task] = seen
        reports = {task.name for task in self.tasks if task.kind == "report"}
        if own := {task: seen for task, seen in found.get(self.baseline, {}).items() if task in reports}:
            found |= {name.format(baseline=self.baseline): own for name in CONTROLS.values() if "{baseline}" in name}
        return found

    def _digest(self, tested: Mapping[str, Sequence[tuple[Study, list[Path]]]]) -> dict[Path, str]:
        """The digests of films that can be read."""
        paths = list(dict.fromkeys(film for part in tested.values() for _, films in part for film in films))
        digests = digest_files(paths, self.features)
        return {path: digest or "" for path, digest in zip(paths, digests, strict=True)}


def _warn(seen: Mapping[str, Mapping[str, Seen]]) -> str:
    """One sentence on the rows that had films in training that they are tested on, by tasks; empty if none had.

    >>> _warn({"a": {"Sex": Seen(9, films=9, listed=2), "Age": Seen(9, films=9, listed=2)}, "b": {"Sex": Seen(9)}})
    'Warning: tested on films that the encoder had in training: a, 2 of 9 films (Sex, Age).'
    """
    rows = []
    for row, found in seen.items():
        tasks: dict[str, list[str]] = {}
        for task, one in found.items():
            if one.mark == HAD:
                tasks.setdefault(one.count_had(), []).append(task)
        if tasks:
            rows.append(", ".join([row, *(f"{count} ({', '.join(names)})" for count, names in tasks.items())]))
    return f"Warning: tested on films that the encoder had in training: {'; '.join(rows)}." if rows else ""


def _tell_seen(found: Mapping[str, Seen]) -> list[str]:
    """A sentence for each different finding about a row, with the tasks that it holds for."""
    tasks: dict[str, list[str]] = {}
    for task, seen in found.items():
        for told in seen.tell():
            tasks.setdefault(told, []).append(task)
    return [f"{told}: {', '.join(names)}" for told, names in tasks.items()]


def _tell_unlisted(towers: Sequence[Entry]) -> list[str]:
    """A sentence on the folds whose tower of their own has no list of training images."""
    if len(towers) < 2 or not (folds := [f"{number}" for number, one in enumerate(towers, 1) if not one.seen]):
        return []
    return [
        f"there is no list of training images (seen) for the encoder of fold {', '.join(folds)}: whether it had the "
        "films of the fold in training cannot be told"
    ]


def explain_marks(result: Mapping[str, Any]) -> list[str]:
    """How to read the marks in the table, where there are any, and which rows could have none."""
    found = [seen for row in result.get("seen", {}).values() for seen in row.values()]
    told = []
    if any(seen["mark"] for seen in found):
        told.append(
            f"{HAD} measured on films that the encoder had in training, at least in part, by what its authors say of "
            f"sets and splits, or by the list of its training images; {MAY} it may have had them. The warnings say how "
            "many. Such a value is no test on new films."
        )
    if sources := list(dict.fromkeys(name for seen in found for name in seen.get("unknown", ()))):
        told.append(f"Which set these films are from is not known, so that nothing is marked: {', '.join(sources)}.")
    if unknown := result.get("training_unknown"):
        told.append(
            f"What was trained on which films is not known here, so that nothing is marked: {', '.join(unknown)}."
        )
    return told
