"""Intervals and tests for few studies, rare findings and several studies of one subject: raddraft/jackknife.py and
metrics/summary.py, and what `raddraft score` says of them."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
from scipy import stats

from metrics.labels import f1_measures
from metrics.rules import OBSERVATIONS
from metrics.scoring import score
from metrics.summary import summarize
from metrics.text import bleu
from raddraft.jackknife import doubts, effective_studies, jackknife, sign_flips, standard_error, t_interval
from raddraft.stats import UNBOUNDED, Measure, holm, mean_measure
from raddraft.studies import Study, StudyImage, write_studies
from tests.conftest import SENTENCES
from tests.test_cli import run
from tests.test_score import no_weights, read_scores, write  # noqa: F401 - the fixture is used by its name


def mean(scores, bounds=(0.0, 1.0)) -> Measure:
    return mean_measure(np.asarray(scores, dtype=float), "x", bounds)


def f1s(truth: np.ndarray, named: np.ndarray) -> dict[str, Measure]:
    """F1s of labels [n, 14]."""
    rows = [[dict(zip(OBSERVATIONS, row, strict=True)) for row in part.astype(int).tolist()] for part in (named, truth)]
    return f1_measures(*rows, OBSERVATIONS, "x", "")


# ---- intervals


def test_interval_of_two_equal_halves_is_students() -> None:
    """Deviations of kurtosis 1 leave n - 1 degrees of freedom; sqrt((df + 1) / df) is Hesterberg's correction."""
    scores = np.repeat([0.3, 0.5], 10)
    low, high = t_interval(0.4, jackknife(mean(scores)))
    expected = stats.t.interval(0.95, 19, 0.4, stats.sem(scores) * math.sqrt(20 / 19))
    assert (low, high) == pytest.approx(expected)


def test_a_few_studies_that_decide_widen_the_interval() -> None:
    even, uneven = np.tile([0.0, 0.2], 50), np.zeros(100)
    uneven[:2] = 0.7107  # as large a standard deviation
    widths = [np.subtract(*t_interval(0.1, jackknife(mean(part)))[::-1]) for part in (even, uneven)]
    assert np.std(even) == pytest.approx(np.std(uneven), rel=0.01)
    assert widths[1] > 1.3 * widths[0]


@pytest.mark.parametrize("copies", [2, 8])
def test_copies_of_a_study_by_one_subject_tell_nothing_new(copies) -> None:
    scores = np.random.default_rng(0).beta(2, 5, 80)
    once, many = mean(scores), mean(np.repeat(scores, copies))
    subjects = np.repeat(np.arange(80), copies)
    by_subject = t_interval(many.value, jackknife(many, subjects), many.bounds)
    assert by_subject == pytest.approx(t_interval(once.value, jackknife(once), once.bounds))
    by_study = t_interval(many.value, jackknife(many), many.bounds)
    assert np.diff(by_study) == pytest.approx(np.diff(by_subject) / copies**0.5, rel=0.1)
    assert effective_studies(many, jackknife(many, subjects)) == pytest.approx(80, rel=0.02)
    mixed = mean(np.random.default_rng(1).permutation(np.repeat(scores, copies)))  # studies of a subject are not alike
    assert effective_studies(mixed, jackknife(mixed, subjects)) == pytest.approx(80 * copies, rel=0.4)


def test_subjects_need_not_stand_together() -> None:
    generator = np.random.default_rng(0)
    scores, subjects = generator.random(60), np.repeat([f"p{i}" for i in range(12)], 5)
    order = generator.permutation(60)
    assert np.sort(jackknife(mean(scores), subjects)) == pytest.approx(
        np.sort(jackknife(mean(scores[order]), subjects[order]))
    )
    without = [scores[subjects != subject].mean() for subject in np.unique(subjects)]
    assert jackknife(mean(scores), subjects) == pytest.approx(np.mean(without) - without)


@pytest.mark.parametrize(
    ("scores", "bounds"),
    [
        ([0.0] * 9 + [0.5], (0.0, 1.0)),
        ([1.0] * 9 + [0.2], (0.0, 1.0)),
        ([0.1] * 19 + [9.0], (0.0, math.inf)),
        ([-3.0] * 9 + [4.0], UNBOUNDED),
    ],
)
def test_intervals_stay_within_the_bounds_of_a_metric_and_hold_its_value(scores, bounds) -> None:
    one = mean(scores, bounds)
    low, high = t_interval(one.value, jackknife(one), bounds)
    assert bounds[0] < low < one.value < high < bounds[1]


@pytest.mark.parametrize(
    "scores", [[0.3] * 5, [1.0] * 4, [0.0] * 4, [0.4]], ids=["equal", "perfect", "nothing", "one study"]
)
def test_without_variation_the_interval_is_the_value(scores) -> None:
    one = mean(scores)
    assert t_interval(one.value, jackknife(one), one.bounds) == pytest.approx((one.value, one.value))


def test_a_value_outside_its_bounds_is_taken_as_unbounded() -> None:
    one = mean([-0.8, -0.5, -0.6, -0.9])
    low, high = t_interval(one.value, jackknife(one), one.bounds)
    assert low < -0.7 < high


def test_bias_moves_the_interval_against_it() -> None:
    one = mean(np.random.default_rng(0).random(100))
    plain, high_bias = (t_interval(one.value, jackknife(one), one.bounds, bias) for bias in (0.0, 0.02))
    assert high_bias[0] < plain[0]
    assert high_bias[1] < plain[1]
    assert high_bias[0] <= one.value <= high_bias[1]


def draw_labels(generator: np.random.Generator, n: int, prevalence: float) -> tuple[np.ndarray, np.ndarray]:
    """Labels and what a reader who errs in a third of the positives names."""
    truth = generator.random((n, 14)) < prevalence
    found = truth & (generator.random((n, 14)) < 0.67)
    return truth, found | (generator.random((n, 14)) < 0.33 * prevalence)


@pytest.mark.parametrize(("n", "prevalence"), [(100, 0.05), (300, 0.02)])
def test_macro_f1_of_rare_findings_is_held(n, prevalence) -> None:
    """Percentiles hold it in 80 % and less; rows that may not hold are marked."""
    generator = np.random.default_rng(0)
    truth = f1s(*draw_labels(generator, 20_000, prevalence))["x_macro_f1_14"].value
    held, papers, marked = [], [], []
    for _ in range(150):
        measures = {"": {"m": f1s(*draw_labels(generator, n, prevalence))["x_macro_f1_14"]}}
        one, old = (summarize(measures, 200, intervals=kind)["metrics"]["m"] for kind in ("jackknife", "percentile"))
        held.append(one["low"] <= truth <= one["high"])
        papers.append(old["low"] <= truth <= old["high"])
        marked.append("too few positives" in one.get("doubts", []))
    assert np.mean(papers) < 0.9
    assert np.mean(held) > 0.9
    assert 0.1 < np.mean(marked) < 0.99


def test_a_mean_over_subjects_with_several_studies_is_held() -> None:
    """Sizes as in MIMIC-CXR's test split, correlation .2 within a subject."""
    generator = np.random.default_rng(0)
    subjects = np.repeat(np.arange(150), np.repeat([2, 4, 30], [60, 75, 15]))
    held: dict[bool, list[bool]] = {True: [], False: []}
    apart: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(150):
        studies = [mean(generator.beta(1, 4, len(subjects))) for _ in range(2)]
        shared = [generator.beta(1, 4, 150)[subjects] for _ in range(2)]
        same = generator.random(len(subjects)) < 0.2**0.5
        a, b = (mean(np.where(same, s, one.statistics[:, 0])) for s, one in zip(shared, studies, strict=True))
        for by_subject in (True, False):
            units = subjects if by_subject else None
            low, high = t_interval(a.value, jackknife(a, units), a.bounds)
            held[by_subject].append(low <= 0.2 <= high)
            apart[by_subject].append(sign_flips([a], [b], units, flips=299)[0].p < 0.05)
    assert np.mean(held[True]) > 0.9 > np.mean(held[False]) + 0.05
    assert np.mean(apart[True]) < 0.1 < np.mean(apart[False])


# ---- doubts


@pytest.mark.parametrize(
    ("n", "subjects", "expected"),
    [
        (99, None, ["too few studies"]),
        (100, None, []),
        (500, 99, ["too few subjects"]),
        (500, 100, []),
    ],
)
def test_few_studies_or_subjects_are_doubtful(n, subjects, expected) -> None:
    units = subjects and [f"p{i % subjects}" for i in range(n)]
    assert doubts(mean(np.linspace(0, 1, n)), units) == expected


def test_a_few_subjects_with_most_studies_are_few() -> None:
    subjects = [*range(100), *[0] * 400]
    assert doubts(mean(np.linspace(0, 1, 500)), subjects) == ["too few subjects"]


@pytest.mark.parametrize(("positives", "several_of_one"), [(0, False), (1, False), (2, False), (3, False), (3, True)])
def test_few_positives_are_doubtful_for_macro_f1_only(positives, several_of_one) -> None:
    truth = np.ones((200, 14), dtype=bool)
    truth[:, 3] = np.arange(200) < positives
    measures = f1s(truth, truth)
    subjects = [0, 0, *range(2, 200)] if several_of_one else None
    few = ["too few positives"] if positives < 3 or several_of_one else []
    assert doubts(measures["x_macro_f1_14"], subjects) == few
    assert doubts(measures["x_micro_f1_14"], subjects) == []
    assert doubts(measures["x_macro_f1_5"], subjects) == [], "observation 3 is not among the five"


# ---- tests


@pytest.mark.parametrize("n", range(1, 13))
def test_all_in_favor_of_one_system_is_the_exact_sign_test(n) -> None:
    better = np.full(100, 0.5)
    better[:n] += np.linspace(0.1, 0.2, n)
    (swapped,) = sign_flips([mean(better)], [mean(np.full(100, 0.5))])
    assert swapped.p == pytest.approx(2 / 2**n)
    assert swapped.differ == n


def test_systems_that_say_the_same_do_not_differ() -> None:
    one = mean(np.random.default_rng(0).random(30))
    (swapped,) = sign_flips([one], [one])
    assert (swapped.p, swapped.differ) == (1.0, 0)


@pytest.mark.parametrize("seed", range(3))
def test_p_of_means_is_scipys_permutation_test(seed) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.integers(0, 4, (2, 9)) / 4  # many ties
    expected = stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=np.inf, vectorized=True
    ).pvalue
    assert sign_flips([mean(a)], [mean(b)])[0].p == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["bleu", "f1"])
def test_p_of_corpus_metrics_is_that_of_scoring_every_swap(metric) -> None:
    generator = np.random.default_rng(4)
    if metric == "bleu":
        references = [" ".join(generator.choice(SENTENCES, 2)) for _ in range(6)]
        systems = [[" ".join(generator.choice(SENTENCES, 2)) for _ in range(6)] for _ in range(2)]

        def measured(drafts) -> Measure:
            return bleu(drafts, references)[2]
    else:
        references = generator.random((6, 14)) < 0.4
        systems = list(generator.random((2, 6, 14)) < 0.4)

        def measured(drafts) -> Measure:
            return f1s(references, np.array(drafts))["x_macro_f1_14"]

    found = []
    for swap in itertools.product([False, True], repeat=6):
        pairs = [pair[::-1] if one else pair for pair, one in zip(zip(*systems, strict=True), swap, strict=True)]
        ours, theirs = (measured(list(part)) for part in zip(*pairs, strict=True))
        found.append(abs(ours.value - theirs.value))
    expected = np.mean(np.array(found) >= found[0] - 1e-9)
    assert sign_flips(*([measured(part)] for part in systems))[0].p == pytest.approx(expected)


def test_many_differences_are_swapped_at_random_the_same_way_each_time() -> None:
    generator = np.random.default_rng(0)
    a, b = mean(generator.random(14)), mean(generator.random(14))
    exact = stats.permutation_test(
        (a.statistics[:, 0], b.statistics[:, 0]),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        n_resamples=np.inf,
        vectorized=True,
    ).pvalue
    (first,), (again,), (other) = (sign_flips([a], [b], seed=seed) for seed in (0, 0, 1))
    assert first == again != other
    assert first.p == pytest.approx(exact, abs=0.02)
    (clear,) = sign_flips([mean(np.ones(50))], [mean(np.zeros(50))], flips=999)
    assert clear.p == pytest.approx(1 / 1000), "no p of 0"


def test_subjects_are_swapped_whole() -> None:
    a, b = mean(np.full(8, 0.6)), mean(np.full(8, 0.5))
    assert sign_flips([a], [b])[0].p == pytest.approx(2 / 2**8)
    assert sign_flips([a], [b], ["p", "q"] * 4)[0].p == pytest.approx(2 / 2**2)


def test_metrics_tested_together_are_tested_as_alone() -> None:
    generator = np.random.default_rng(0)
    ours, theirs = ([mean(generator.random(n)) for _ in range(3)] for n in (40, 40))
    theirs[1] = mean(np.where(np.arange(40) < 5, 0.1, ours[1].statistics[:, 0]))
    together = sign_flips(ours, theirs)
    assert together[1] == sign_flips(ours[1:2], theirs[1:2])[0]
    assert together[1].differ == 5
    alone = [sign_flips([a], [b])[0].p for a, b in zip(ours, theirs, strict=True)]
    assert [one.p for one in together] == pytest.approx(alone)


# ---- summaries


def test_one_table_is_corrected_for_all_its_tests() -> None:
    generator = np.random.default_rng(0)
    base = generator.random(100)
    systems = {
        name: {metric: mean(base + generator.normal(shift, 0.1, 100), UNBOUNDED) for metric in ("m", "k")}
        for name, shift in (("a", 0.03), ("b", 0.0), ("c", -0.01), ("d", 0.03))
    }
    found = summarize(systems, 100)["differences"]
    raw = {(other, metric): one["p"] for other, part in found.items() for metric, one in part.items()}
    corrected = {(other, metric): one["p_holm"] for other, part in found.items() for metric, one in part.items()}
    assert len(raw) == 6
    assert corrected == holm(raw)
    for part in found.values():
        for one in part.values():
            assert one["low"] <= one["value"] <= one["high"]
            assert 0 < one["p_bootstrap"] <= 1
            assert one["differ"] == 100


def test_power_is_that_of_the_paired_difference() -> None:
    generator = np.random.default_rng(0)
    base, noise = generator.random(400), generator.normal(0, 0.05, 400)
    systems = {"a": {"m": mean(base, UNBOUNDED)}, "b": {"m": mean(base + noise, UNBOUNDED)}}
    found = summarize(systems, 50)["differences"]["b"]["m"]
    assert found["detectable"] == pytest.approx(2.8 * stats.sem(noise), rel=1e-6)
    assert standard_error(jackknife(mean(noise, UNBOUNDED))) == pytest.approx(stats.sem(noise))


def test_few_reports_of_difference_are_no_evidence() -> None:
    """100 studies of which 4 differ, all for the better: the paired bootstrap says .04, all 16 swaps say .125."""
    base = np.random.default_rng(0).random(100) * 0.8
    better = base.copy()
    better[:4] += 0.1
    found = summarize({"a": {"m": mean(better)}, "b": {"m": mean(base)}}, 500)["differences"]["b"]["m"]
    assert found["p"] == 0.125
    assert found["p_bootstrap"] < 0.05


def test_subjects_of_another_number_of_studies_are_refused() -> None:
    with pytest.raises(ValueError, match="2 subjects of 3 studies: the numbers must be equal"):
        score(["a", "b", "c"], ["a", "b", "c"], ["rouge_l"], subjects=["p", "q"])


def test_score_draws_subjects_and_signs_it() -> None:
    drafts = [" ".join(SENTENCES[i % 5 : i % 5 + 2]) for i in range(120)]
    references = [" ".join(SENTENCES[i % 7 : i % 7 + 2]) for i in range(120)]
    subjects = [f"p{i // 4}" for i in range(120)]
    plain, drawn = (score(drafts, references, ["rouge", "rule"], subjects=one) for one in (None, subjects))
    assert (drawn["subjects"], drawn["studies_per_subject"]) == (30, 4.0)
    assert "subjects" not in plain
    for name, one in drawn["metrics"].items():
        assert "interval:jackknife t by subject|n:120|subjects:30|bootstrap:500 seed 0" in one["signature"]
        assert "interval:jackknife t by study|n:120|bootstrap:500 seed 0" in plain["metrics"][name]["signature"]
        assert one["value"] == plain["metrics"][name]["value"]
        assert 0 < one["effective_n"] <= 120
        assert "too few subjects" in one["doubts"]
        assert "too few studies" not in plain["metrics"][name].get("doubts", [])
    papers = score(drafts, references, ["rouge"], subjects=subjects, intervals="percentile")
    assert papers["metrics"]["rouge_l"]["signature"].endswith(
        "mean over reports|n:120|subjects:30|bootstrap:500 seed 0"
    )


# ---- raddraft score


def rows(n: int = 80, **extra) -> list[dict]:
    """Drafts of two subjects in three."""
    return [
        {
            "study_id": f"s{i}",
            "prediction": " ".join(SENTENCES[i % 5 : i % 5 + 2]),
            "reference": " ".join(SENTENCES[i % 7 : i % 7 + 2]),
            **{key: value(i) for key, value in extra.items()},
        }
        for i in range(n)
    ]


METRICS = ("--metrics", "rouge", "bleu_4", "rule")


@pytest.mark.parametrize("source", ["manifest", "jsonl", "csv", "references"])
def test_subjects_are_drawn_wherever_they_are_known(tmp_path, capsys, source) -> None:
    people = [f"p{i // 4}" for i in range(80)]
    options: list = []
    if source == "manifest":
        model = write(tmp_path / "model.jsonl", rows())
        write_studies(
            tmp_path / "studies.jsonl",
            [Study(f"s{i}", people[i], "test", [StudyImage(tmp_path / "1.png")]) for i in range(80)],
        )
        options = ["--studies", tmp_path / "studies.jsonl"]
    elif source == "jsonl":
        model = write(tmp_path / "model.jsonl", rows(subject_id=lambda i: people[i]))
    elif source == "csv":
        model = tmp_path / "model.csv"
        table = [
            f"{row['study_id']},{people[i]},{row['prediction']},{row['reference']}" for i, row in enumerate(rows())
        ]
        model.write_text("\n".join(["study_id,Patient ID,prediction,reference", *table]))
    else:
        model = write(tmp_path / "model.jsonl", [row | {"reference": None} for row in rows()])
        options = ["--references", write(tmp_path / "references.jsonl", rows(subject_id=lambda i: people[i]))]
    assert run("score", model, *METRICS, *options, "--by", "normal") == (0, "")
    scores = read_scores(tmp_path / "scores")
    assert (scores["subjects"], scores["studies_per_subject"]) == (20, 4)
    shown, page = capsys.readouterr().out, (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    for told in (shown, page):
        assert "drawn by subject: 80 studies of 20 subjects, 4.0 each" in told
        assert "too few subjects" in told
        assert "too few positives" in told
    for part in scores["strata"]["normal"].values():
        assert 0 < part["subjects"] <= 20
    assert run("score", model, *METRICS, *options, "--unit", "study", "--out", tmp_path / "study") == (0, "")
    by_study = read_scores(tmp_path / "study")
    assert "subjects" not in by_study
    assert "each study counts by itself" in capsys.readouterr().out
    signature = by_study["metrics"]["rouge_l"]["signature"]
    assert signature.endswith("|interval:jackknife t by study|n:80|bootstrap:500 seed 0")


def test_a_study_without_a_subject_is_its_own(tmp_path) -> None:
    model = write(tmp_path / "model.jsonl", rows(subject_id=lambda i: 10000032 if i < 10 else None))
    assert run("score", model, "--metrics", "rouge") == (0, "")
    assert read_scores(tmp_path / "scores")["subjects"] == 1 + 70


def test_files_that_name_different_subjects_are_refused(tmp_path) -> None:
    one = write(tmp_path / "one.jsonl", rows(subject_id=lambda i: "p"))
    other = write(tmp_path / "other.jsonl", rows(subject_id=lambda i: "q" if i == 3 else "p"))
    expected = "raddraft score: The subjects of study 's3' differ: 'p' in one, 'q' in other"
    assert run("score", one, other, "--metrics", "rouge") == (1, expected)


def test_papers_intervals_are_an_option(tmp_path) -> None:
    model = write(tmp_path / "model.jsonl", rows())
    assert run("score", model, "--metrics", "rouge", "--intervals", "percentile") == (0, "")
    one = read_scores(tmp_path / "scores")["metrics"]["rouge_l"]
    assert one["signature"].endswith("mean over reports|n:80|bootstrap:500 seed 0")


def test_a_table_tells_what_it_can_tell(tmp_path, capsys) -> None:
    model = write(tmp_path / "model.jsonl", rows())
    changed = rows()
    for row in changed[:4]:
        row["prediction"] = row["reference"] + " Indeed."
    other = write(tmp_path / "other.jsonl", changed)
    perfect = write(tmp_path / "perfect.jsonl", [row | {"prediction": row["reference"]} for row in rows()])
    assert run("score", model, other, perfect, "--metrics", "rouge", "bleu_4") == (0, "")
    shown, page = capsys.readouterr().out, (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    found = read_scores(tmp_path / "scores")["differences"]
    few = ", ".join(f"{metric} of other ({found['other'][metric]['differ']})" for metric in ("rouge_l", "bleu_4"))
    largest = {metric: max(part[metric]["detectable"] for part in found.values()) for metric in ("rouge_l", "bleu_4")}
    power = ", ".join(f"{metric} {value:.3f}" for metric, value in largest.items())
    for told in (shown, page):
        assert f"too few studies differ for a test: {few}" in told
        assert f"tells from 0 with 80 % power: {power}" in told
    assert "p: of the difference to model, by swapping both at random study by study" in shown
    assert "*: below .05 after Holm&#39;s" not in page
    assert "after Holm's correction for 4 tests" in shown
    assert "p <.001*" in shown
    assert json.dumps(found).count("p_holm") == 4


def test_consensus_keeps_the_subjects(tmp_path) -> None:
    from generator.consensus import choose_in_file

    path = write(
        tmp_path / "model.jsonl", rows(6, candidates=lambda i: SENTENCES[i : i + 3], subject_id=lambda i: f"p{i // 2}")
    )
    choose_in_file(path, tmp_path / "chosen.jsonl", ["rouge_l"])
    assert run("score", tmp_path / "chosen.jsonl", "--metrics", "rouge") == (0, "")
    assert read_scores(tmp_path / "scores")["subjects"] == 3


def test_the_benchmark_of_coverage_counts(tmp_path, monkeypatch) -> None:
    from benchmarks import coverage

    monkeypatch.setattr(coverage, "POPULATION", 500)
    reports = tmp_path / "reports.csv"
    findings = [f"{SENTENCES[i % 7]} {SENTENCES[i % 5]} {SENTENCES[i % 3]}" for i in range(60)]
    reports.write_text("\n".join(["findings", *(f'"{text}"' for text in findings)]))
    tallies = coverage.simulate(reports, 50, (100, 0.1))
    for tally in tallies.values():
        assert all(tally.marked), "12 subjects are too few"
        assert np.mean(tally.papers_hold) < np.mean(tally.hold) <= 1
    assert len(tallies["rouge_l"].row()) == 8
    assert coverage.few_differ(4, 50)[2] == "0.0", "no p of four studies that differ is below .125"
