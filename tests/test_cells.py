"""generator/cells.py: what adds up is tested by swapping subjects, as `raddraft score` tests it, stored or not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from generator.cells import Cell, cell_of_sums, compare_with, join_folds, read_cell, write_cell
from metrics.labels import f1_measures
from metrics.rules import OBSERVATIONS
from metrics.scoring import measure
from metrics.summary import summarize
from raddraft.jackknife import jackknife
from raddraft.stats import Measure, average, mean_measure

WORDS = ["No", "edema", ".", "Small", "effusion", "in", "left", "lung", "base", "again"]


def texts(seed: int, n: int = 40) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 8)) for _ in range(n)]


SUBJECTS = [f"p{i // 2}" for i in range(40)]


def chexbert_like(drafts: list[str]) -> Measure:
    """Counts as CheXbert's labels give them; labels by chance."""
    generator = np.random.default_rng(len(drafts[0]))
    ours, theirs = (
        [dict.fromkeys(OBSERVATIONS, 0) | {"Edema": int(x), "Fracture": int(y)} for x, y in part]
        for part in generator.integers(0, 2, (2, len(drafts), 2))
    )
    return f1_measures(ours, theirs, OBSERVATIONS, "chexbert", "")["chexbert_macro_f1_14"]


@pytest.mark.parametrize("metric", ["rouge_l", "bleu_3", "coco_bleu_4", "rule_macro_f1_5_plus", "chexbert_macro_f1_14"])
def test_a_stored_cell_is_compared_as_score_compares_it(tmp_path: Path, metric: str) -> None:
    references, systems = texts(0), {"a": texts(1), "b": texts(2)}
    systems["b"][:20] = references[:20]
    if metric.startswith("chexbert"):
        measures = {name: chexbert_like(drafts) for name, drafts in systems.items()}
    else:
        measures = {name: measure(drafts, references, [metric])[0][metric] for name, drafts in systems.items()}
    for name, one in measures.items():
        write_cell(tmp_path / name, cell_of_sums([one], SUBJECTS, 500, "same", {}), "made of")
    assert read_cell(tmp_path / "a", "made of other", metric) is None
    cells = {name: {"Text": read_cell(tmp_path / name, "made of", metric)} for name in systems}
    scores = summarize({name: {metric: one} for name, one in measures.items()}, 500, 0, subjects=SUBJECTS)
    assert cells["a"]["Text"].low == pytest.approx(scores["metrics"][metric]["low"])
    found = compare_with("b", cells)["a"]["Text"]
    expected = scores["differences"]["b"][metric]
    assert found == pytest.approx(expected), "the interval, both p, how many differ and what could be told"
    assert cells["a"]["Text"].doubts()[0] == "too few subjects: the interval may not hold"


def test_a_stored_cell_that_was_changed_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "cell.json"
    write_cell(path, cell_of_sums([mean_measure(np.linspace(0, 1, 40), "")], SUBJECTS, 50, "", {}), "digest")
    whole = path.read_text()
    found = read_cell(path, "digest", "rouge_l")
    assert found is not None
    assert f'"value": {found.value}' in whole
    for old, new in ((f'"value": {found.value}', '"value": 0.9'), ('"details": {}', '"details": null')):
        path.write_text(whole.replace(old, new))
        with pytest.warns(UserWarning, match=r"cell\.json is damaged .*wrong check sum"):
            assert read_cell(path, "digest", "rouge_l") is None


def test_four_better_subjects_are_too_few_for_a_test() -> None:
    ours = np.repeat([0.5, 0.6], [96, 4])
    subjects = [str(i) for i in range(100)]
    cells = {
        name: {"Text": cell_of_sums([mean_measure(scores, "")], subjects, 500, "", {})}
        for name, scores in (("a", ours), ("base", np.full(100, 0.5)))
    }
    found = compare_with("base", cells)["a"]["Text"]
    assert found["p"] == found["p_holm"] == 2 / 2**4
    assert found["p_bootstrap"] < 0.05, "as was shown before"
    assert cells["a"]["Text"].notes == ["too few subjects differ from base for a test: 4"]


def test_runs_are_averaged_and_compared_with_a_control_of_one_run() -> None:
    references = texts(0)
    runs = [measure(texts(seed), references, ["bleu_2"])[0]["bleu_2"] for seed in (3, 4)]
    control = measure(references[::-1], references, ["bleu_2"])[0]["bleu_2"]
    mean = average(runs)
    assert mean.value == pytest.approx(np.mean([run.value for run in runs]))
    np.testing.assert_allclose(jackknife(mean, SUBJECTS), np.mean([jackknife(run, SUBJECTS) for run in runs], axis=0))
    cells = {
        name: {"Text": cell_of_sums(measures, SUBJECTS, 300, "", {})}
        for name, measures in (("runs", runs), ("control", [control]))
    }
    found = compare_with("runs", cells)["control"]["Text"]
    assert found["value"] == pytest.approx(control.value - mean.value)
    assert found["low"] < found["value"] < found["high"]
    assert found["differ"] == 20


def fold(scores: np.ndarray, subjects: list[str]) -> Cell:
    return cell_of_sums([mean_measure(scores, "")], subjects, 200, subjects[0], {})


def test_folds_are_swapped_together() -> None:
    generator = np.random.default_rng(0)
    folds = [[f"{number}-{i}" for i in range(n)] for number, n in enumerate((30, 20, 40))]
    base = [generator.uniform(size=len(part)) for part in folds]
    better = [scores + 0.1 + 0.1 * generator.uniform(size=len(scores)) for scores in base]
    cells = {
        name: {"Text": join_folds([fold(*one) for one in zip(rows, folds, strict=True)])}
        for name, rows in (("a", better), ("base", base))
    }
    one, n = cells["a"]["Text"], 90
    assert one.value == pytest.approx(np.mean([scores.mean() for scores in better]))
    assert one.low < one.value < one.high
    assert one.n == n
    found = compare_with("base", cells)["a"]["Text"]
    assert found["p"] == pytest.approx(1 / 10_001)
    assert found["differ"] == n
    small = join_folds([fold(base[0][:1], folds[0][:1]), fold(base[1], folds[1])])
    assert small.sums is None, "nothing is left of a fold without its only subject"
    assert small.low is not None
    probe = replace(one, sums=None)
    assert "differ" not in compare_with("base", {"a": {"Text": probe}, "base": cells["base"]})["a"]["Text"]
