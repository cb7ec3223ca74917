"""The vectorized bootstrap against scipy's, the F1s against scikit-learn's, and what 0.2.0 printed."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score, precision_recall_fscore_support

from metrics.labels import FIVE, f1_measures, per_observation
from metrics.rules import OBSERVATIONS
from metrics.scoring import compute, summarize
from metrics.text import bleu
from raddraft.stats import Interval, Measure, interval, mean_measure, resample, side_by_side, take


def bootstrap(measure: Measure, resamples: int) -> Interval:
    bounds = interval(resample([measure], resamples)[0])
    assert bounds is not None
    return bounds


def random_labels(n: int, seed: int) -> list[dict[str, int | None]]:
    generator = np.random.default_rng(seed)
    choices = generator.choice([1, 0, -1, 2], (n, len(OBSERVATIONS)), p=[0.25, 0.2, 0.1, 0.45])
    return [
        {name: None if value == 2 else int(value) for name, value in zip(OBSERVATIONS, row, strict=True)}
        for row in choices
    ]


def as_matrix(labels: list[dict[str, int | None]], positive: tuple[int, ...], names=OBSERVATIONS) -> np.ndarray:
    return np.array([[row[name] in positive for name in names] for row in labels], dtype=int)


@pytest.mark.parametrize(("uncertain", "positive"), [("negative", (1,)), ("positive", (1, -1))])
def test_f1s_equal_scikit_learn(uncertain, positive) -> None:
    predictions, references = random_labels(200, 0), random_labels(200, 1)
    measures = f1_measures(predictions, references, OBSERVATIONS, "rule", "rules", uncertain)
    suffix = "_plus" if uncertain == "positive" else ""
    names = ("rule_macro_f1_14", "rule_micro_f1_14", "rule_macro_f1_5", "rule_micro_f1_5")
    assert list(measures) == [name + suffix for name in names]
    for name, measure in measures.items():
        classes = OBSERVATIONS if "_14" in name else FIVE
        ours, theirs = as_matrix(predictions, positive, classes), as_matrix(references, positive, classes)
        average = "macro" if "macro" in name else "micro"
        assert measure.value == pytest.approx(f1_score(theirs, ours, average=average, zero_division=0), abs=1e-12)
        assert f"uncertain:{uncertain}" in measure.signature
        assert f"average:{average}" in measure.signature
    table = per_observation(predictions, references, OBSERVATIONS, uncertain)
    ours, theirs = as_matrix(predictions, positive), as_matrix(references, positive)
    expected = np.array(precision_recall_fscore_support(theirs, ours, zero_division=0))
    np.testing.assert_allclose(np.array([list(row.values()) for row in table.values()]).T, expected)


def test_f1_of_nothing_is_zero() -> None:
    nothing = [dict.fromkeys(OBSERVATIONS) for _ in range(3)]
    for measure in f1_measures(nothing, nothing, OBSERVATIONS, "rule", "rules").values():
        assert measure.value == 0.0
        assert bootstrap(measure, 20).high == 0.0


def test_interval_of_a_mean_agrees_with_scipy() -> None:
    scores = np.random.default_rng(3).beta(2, 5, 400)
    ours = bootstrap(mean_measure(list(scores), "x"), 5000)
    theirs = stats.bootstrap((scores,), np.mean, n_resamples=5000, method="percentile", rng=4).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.002)
    assert ours.low < ours.median < ours.high


def test_resamples_of_a_corpus_metric_equal_scoring_the_drawn_studies() -> None:
    predictions = ["the heart is normal in size", "no effusion is seen today", "the lungs are clear of disease"]
    references = ["the heart is normal in size", "no effusion is seen", "both lungs are clear of disease"]
    measure = bleu(predictions, references)[2]
    values = resample([measure], 50, seed=7)[0]
    drawn = np.random.default_rng(7).integers(0, 3, (50, 3))
    expected = [bleu([predictions[i] for i in row], [references[i] for i in row])[2].value for row in drawn]
    np.testing.assert_allclose(values, expected, atol=1e-12)


def test_same_seed_same_resamples_whatever_the_chunks() -> None:
    scores = list(np.random.default_rng(0).random(30_000))
    measure = mean_measure(scores, "x")
    (first,) = resample([measure], 300, seed=1)
    assert len(first) == 300
    np.testing.assert_array_equal(first, resample([measure], 300, seed=1)[0])
    assert not np.array_equal(first, resample([measure], 300, seed=2)[0])


def test_metrics_resampled_together_see_the_same_studies() -> None:
    scores = np.random.default_rng(0).random(50)
    together = resample([mean_measure(scores, "x"), mean_measure(1 - scores, "y")], 40, seed=3)
    np.testing.assert_allclose(together[0] + together[1], 1)
    np.testing.assert_allclose(together[0], resample([mean_measure(scores, "x")], 40, seed=3)[0])
    with pytest.raises(ValueError, match=r"different numbers of studies cannot be paired: \[49, 50\]"):
        resample([mean_measure(scores, "x"), mean_measure(scores[1:], "y")])


def test_one_study_and_no_study() -> None:
    interval = bootstrap(mean_measure([0.4], "x"), 10)
    assert interval.low == interval.high == pytest.approx(0.4)
    with pytest.raises(ValueError, match="no study"):
        bootstrap(mean_measure([], "x"), 10)


def test_systems_that_say_the_same_do_not_differ() -> None:
    # Resamples are sums; equal columns of one product are summed in another order, which leaves 1e-16.
    scores = np.full(50, 14 / 27)
    measures = {str(factor): mean_measure(scores * factor, "") for factor in (1.0, 0.9, 0.8)}
    summary = summarize(dict.fromkeys(("one", "two", "three"), measures), 500, 0)
    for found in summary["differences"].values():
        assert {one["p"] for one in found.values()} == {1.0}


# Metric -> value, low, median and high of a system, and value, low, high and p of its difference to another one, as
# version 0.2.0 printed them, signed "|n:40|bootstrap:200 seed 3".
GOLDEN = {
    "rouge_l": (
        (0.7799908424908428, 0.7402335164835165, 0.7761675824175824, 0.8117496565934065),
        (0.1845267956681006, 0.14173445214206085, 0.22285142936773394, 0.009950248756218905),
    ),
    "bleu_1": (
        (0.8211382113821138, 0.7896354896067724, 0.8184790282725201, 0.8462071778140293),
        (0.13842127296228102, 0.10131097295228479, 0.17293816596908201, 0.009950248756218905),
    ),
    "bleu_4": (
        (0.7427874336878914, 0.697658509299229, 0.7375571617864485, 0.7790099892460285),
        (0.24590263484471775, 0.1897988239317243, 0.294952958346575, 0.009950248756218905),
    ),
    "rule_macro_f1_14": (
        (0.19999999999999998, 0.17983303941418022, 0.19914692525371058, 0.21071057113467828),
        (0.06190476190476188, 0.036959455075825695, 0.08692491291947393, 0.009950248756218905),
    ),
    "rule_micro_f1_5": (
        (0.6956521739130435, 0.6434782608695652, 0.6935483870967742, 0.7387742072781442),
        (0.2194616977225673, 0.12650532018953073, 0.3087848612465337, 0.009950248756218905),
    ),
}
FINDINGS = (
    "The heart is enlarged.",
    "The heart size is normal.",
    "No pleural effusion.",
    "Small left pleural effusion.",
    "The lungs are clear.",
    "Right lower lobe consolidation.",
    "No pneumothorax is seen.",
    "There is mild pulmonary edema.",
)


def write_reports(*steps: int) -> list[str]:
    return [" ".join(FINDINGS[(i * k + j) % 8] for j, k in enumerate(steps)) for i in range(40)]


def test_percentile_intervals_by_study_are_those_of_0_2_0() -> None:
    references = write_reports(1, 3, 5)
    systems = {
        name: compute(write_reports(*steps), references, list(GOLDEN), None, None)[0]
        for name, steps in (("a", (1, 3, 7)), ("b", (1, 5, 2)))
    }
    found = summarize(systems, 200, 3, intervals="percentile")
    for name, (scored, compared) in GOLDEN.items():
        one, apart = found["metrics"][name], found["differences"]["b"][name]
        assert [one[key] for key in ("value", "low", "median", "high")] == pytest.approx(scored, rel=1e-13)
        assert [apart[key] for key in ("value", "low", "high", "p_bootstrap")] == pytest.approx(compared, rel=1e-13)
        assert one["signature"] == f"{systems['a'][name].signature}|n:40|bootstrap:200 seed 3"


def test_statistics_that_metrics_share_are_drawn_once() -> None:
    words = np.random.default_rng(0).integers(0, 4, (2, 40, 12)).tolist()
    texts = [[" ".join(map(str, text)) for text in side] for side in words]
    measures = {f"bleu_{order}": one for order, one in bleu(*texts).items()}
    measures |= {"mean": mean_measure(np.linspace(0, 1, 40), "x")}
    part = take(measures, np.arange(10, 30))
    for some in (measures, part):
        (statistics,), columns = side_by_side(list(some.values()))
        assert statistics.shape[1] == 10 + 2
        for one, places in zip(some.values(), columns, strict=True):
            np.testing.assert_array_equal(statistics[:, places], one.statistics)
        alone = np.concatenate([resample([one], 20) for one in some.values()])
        np.testing.assert_allclose(resample(list(some.values()), 20), alone, rtol=1e-12)
    for name, one in part.items():
        np.testing.assert_array_equal(one.statistics, measures[name].statistics[10:30])
