"""One tower on one task of `raddraft compare` but reports: probes, segmentation, retrieval, as a cell of its table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from encoder.features import FeatureStore
from encoder.leaks import split_groups
from encoder.probe import average_curve, learning_curve, run_probe
from encoder.probe_config import ProbeConfig, SegmentConfig
from encoder.segment import segment
from encoder.targets import make_target, of_sources
from encoder.tower import Tower
from generator.cells import Cell, cell_of_sums
from generator.compare_config import Task
from generator.compare_features import RowFeatures, features_of
from generator.compare_seen import target_spec
from generator.prompts import PromptConfig
from generator.retrieve import Retriever
from metrics.scoring import measure
from metrics.summary import sign
from raddraft.errors import RadDraftError
from raddraft.files import digest_json
from raddraft.stats import mean_measure
from raddraft.studies import Study


def measure_task(tower: Tower, features: RowFeatures, task: Task, studies: Sequence[Study], resamples: int) -> Cell:
    """Run one task on one tower. What cannot be measured is a cell without value that says why; the others go on.

    Args:
        tower: of the row.
        features: of all images that the task reads.
        task: of any kind but report.
        studies: of all splits.
        resamples: bootstrap resamples of the test subjects.
    """
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
