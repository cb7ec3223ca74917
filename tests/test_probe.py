"""Probes against scikit-learn, intervals against SciPy, and what may go wrong between a manifest and a table."""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from encoder.config import FeatureConfig
from encoder.features import FeatureStore
from encoder.finetune import _Head, _train_all, descend, finetune
from encoder.fitting import moments, rows_in
from encoder.leaks import check_leaks, split_groups
from encoder.measures import (
    Metric,
    auroc,
    average_precision,
    balanced_accuracy,
    best_threshold,
    mae,
    measure,
    over_seeds,
    r2,
    recall,
)
from encoder.probe import fit_linear, knn_scores, learning_curve, run_probe
from encoder.probe_config import ProbeConfig, TargetSpec
from encoder.rows import Form
from encoder.targets import Target, make_target
from encoder.towers import load_tower
from raddraft.stats import draw
from raddraft.studies import Study, StudyImage
from tests.conftest import make_study

NAN = math.nan
QUICK = ProbeConfig(weight_decays=(100.0,), resamples=50)


def save_store(
    folder: Path, vectors: np.ndarray, grid: tuple[int, int] | None = None, n_layers: int = 0
) -> tuple[FeatureStore, list[Path]]:
    """A store of vectors [n, T, D]: of a grid the first is the class token; layers are equal parts of D."""
    config = FeatureConfig("tokens" if grid else "pooled", tuple(range(n_layers)) or None)
    forms, parts = {}, []
    for layer, columns in enumerate(np.split(vectors, n_layers or 1, axis=2)):
        name = f"{config.keep}-{layer}" if n_layers else config.keep
        rows = columns
        if grid:
            tokens = columns if n_layers else columns[:, 1:]
            rows = np.concatenate([columns[:, :1], columns[:, 1:].mean(1, keepdims=True), tokens], axis=1)
        (folder / name).mkdir(parents=True, exist_ok=True)
        rows.astype(np.float32).tofile(folder / name / "part-0.bin")
        forms[name] = Form(rows.shape[1] - 2, rows.shape[2], "float32")
        parts.append(f"{name}/part-0.bin")
    paths = [folder / f"{number}.png" for number in range(len(vectors))]
    places = {str(path): tuple((part, row) for part in parts) for row, path in enumerate(paths)}
    return FeatureStore(folder, config, vectors.shape[1:], grid or (1, 1), forms, places), paths


def split_names(n: int) -> np.ndarray:
    """Half train, a quarter val, a quarter test."""
    return np.array((["train"] * 2 + ["val", "test"]) * (n // 4))


def plant(
    folder: Path, kind: str, y: np.ndarray, strength: float = 2.0, width: int = 12
) -> tuple[FeatureStore, Target]:
    """Features of noise to which the labels y [n, C] are added; one subject for each image."""
    generator = np.random.default_rng(0)
    noise = generator.normal(size=(len(y), width))
    signal = np.nan_to_num(y) @ generator.normal(size=(y.shape[1], width)) * strength / math.sqrt(width)
    vectors = np.stack([noise + signal, generator.normal(size=noise.shape)], axis=1)
    store, paths = save_store(folder, vectors)
    names = tuple("abcdefgh"[: y.shape[1]])
    subjects = np.array([f"p{number}" for number in range(len(y))])
    return store, Target(kind, names, paths, subjects, split_names(len(y)), y)


def coins(n: int, columns: int, chance: float = 0.5, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random((n, columns)) < chance).astype(float)


@pytest.fixture
def ranked() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and scores with ties, and weights of which some are zero."""
    generator = np.random.default_rng(3)
    truth = (generator.random(300) < 0.2).astype(float)
    scores = np.round(generator.normal(size=300) + truth, 1)
    return truth, scores, generator.integers(0, 4, (25, 300)).astype(float)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(auroc, sk.roc_auc_score), (average_precision, sk.average_precision_score)]
)
def test_ranking_measures_equal_scikit_learn(ranked, ours, theirs) -> None:
    truth, scores, weights = ranked
    expected = [theirs(truth, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(ours(truth, scores, weights), expected, atol=1e-9)


def test_other_measures_equal_scikit_learn(ranked) -> None:
    truth, scores, weights = ranked
    decided = (scores > 0.5).astype(float)
    cases = [
        (balanced_accuracy, sk.balanced_accuracy_score, truth, decided),
        (recall, sk.recall_score, truth, decided),
        (r2, sk.r2_score, 1e4 + scores, 1e4 + scores * 0.8),
        (mae, sk.mean_absolute_error, scores, truth),
    ]
    for ours, theirs, right, predicted in cases:
        expected = [theirs(right, predicted, sample_weight=row) for row in weights]
        np.testing.assert_allclose(ours(right, predicted, weights), expected, atol=1e-9, err_msg=ours.__name__)


def test_one_class_is_undefined_in_a_resample_and_on_the_whole() -> None:
    truth, scores = np.array([1.0, 0, 0, 0]), np.arange(4.0)
    weights = np.array([[0, 1, 2, 1], [4, 0, 0, 0], [1, 1, 1, 1.0]])
    for metric in (auroc, average_precision, balanced_accuracy):
        assert np.isnan(metric(truth, scores > 1 if metric is balanced_accuracy else scores, weights)).tolist() == [
            True,
            True,
            False,
        ]
    subjects = ["a", "b", "c", "d"]
    rare = measure(auroc, truth, scores, subjects)
    assert (rare.estimate.value, rare.estimate.n_positive) == (0.0, 1)
    assert 0.2 < np.isnan(rare.resamples).mean() < 0.45, "a subject is drawn by none of four in (3/4)^4 of resamples"
    assert (rare.estimate.low, rare.estimate.high) == (0.0, 0.0)
    nothing = measure(auroc, np.zeros(4), scores, subjects).estimate
    assert (nothing.value, nothing.low, nothing.reason) == (None, None, "none of 4 images is positive")
    unknown = measure(mae, np.full(4, NAN), scores, subjects).estimate
    assert (unknown.n, unknown.reason) == (0, "no image has a label")
    assert measure(r2, np.ones(4), scores, subjects).estimate.reason == "all 4 values are the same"


@pytest.mark.parametrize("metric", [auroc, average_precision, mae])
def test_intervals_agree_with_scipy(metric: Metric) -> None:
    generator = np.random.default_rng(0)
    truth = (generator.random(250) < 0.3).astype(float)
    scores = generator.normal(size=250) + truth
    ours = measure(metric, truth, scores, np.arange(250).astype(str), resamples=4000).estimate
    weights = np.ones((1, 250))
    theirs = stats.bootstrap(
        (truth, scores),
        lambda a, b: metric(a, b, weights)[0],
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert ours.low == pytest.approx(theirs.low, abs=0.06 * width)
    assert ours.high == pytest.approx(theirs.high, abs=0.06 * width)


def test_copies_of_an_image_add_no_certainty() -> None:
    generator = np.random.default_rng(0)
    truth = (generator.random(150) < 0.4).astype(float)
    scores = generator.normal(size=150) + truth
    people = np.arange(150).astype(str)
    once = measure(auroc, truth, scores, people)
    copied = [np.repeat(values, 4) for values in (truth, scores, people)]
    by_subject = measure(auroc, *copied)
    by_image = measure(auroc, copied[0], copied[1], np.arange(600).astype(str))
    np.testing.assert_allclose(by_subject.resamples, once.resamples)
    width, naive = (one.estimate.high - one.estimate.low for one in (by_subject, by_image))
    assert 1.7 < width / naive < 2.3, "four copies would halve the interval"


def test_chunks_of_resamples_change_nothing(monkeypatch) -> None:
    subjects = np.repeat(np.arange(7).astype(str), 3)
    whole = np.concatenate(list(draw(subjects, 50, 4)))
    monkeypatch.setattr("raddraft.stats.AT_A_TIME", 21 * 8)
    parts = list(draw(subjects, 50, 4))
    assert [len(part) for part in parts] == [8] * 6 + [2]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert (whole.sum(1) == 21).all()
    assert (whole[:, 0] == whole[:, 2]).all(), "images of a subject are drawn together"


def test_threshold_is_the_best_for_balanced_accuracy(ranked) -> None:
    truth, scores, _ = ranked
    found = best_threshold(np.append(truth, NAN), np.append(scores, 99.0))
    quality = {value: sk.balanced_accuracy_score(truth, scores >= value) for value in np.unique(scores)}
    assert quality[found] == max(quality.values())
    assert best_threshold(np.zeros(3), np.arange(3.0)) is None


@pytest.mark.parametrize("decay", [1.0, 100.0])
def test_findings_with_missing_labels_equal_scikit_learn(decay) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(300, 10)) * generator.uniform(0.1, 9, 10) + generator.normal(size=10)
    y = coins(300, 3, 0.3)
    x += y @ generator.normal(size=(3, 10))
    y[generator.random(y.shape) < 0.3] = NAN
    probe = fit_linear(torch.from_numpy(x), torch.from_numpy(y), "multilabel", [1e4, decay])[decay]
    assert probe.converged
    standard = StandardScaler().fit_transform(x)
    for column in range(3):
        known = ~np.isnan(y[:, column])
        expected = LogisticRegression(C=1 / decay, tol=1e-8, max_iter=5000).fit(standard[known], y[known, column])
        np.testing.assert_allclose(probe.weight[column], expected.coef_[0], atol=1e-3)
        np.testing.assert_allclose(probe.bias[column], expected.intercept_[0], atol=1e-3)
        ours = auroc(y[known, column], probe(torch.from_numpy(x))[known, column].numpy(), np.ones((1, known.sum())))[0]
        theirs = sk.roc_auc_score(y[known, column], expected.decision_function(standard[known]))
        assert ours == pytest.approx(theirs, abs=0.002)


@pytest.mark.parametrize(("n_classes", "shape"), [(2, (300, 8)), (4, (300, 8)), (3, (40, 60))])
def test_classes_equal_scikit_learn(n_classes, shape) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, n_classes, shape[0])
    y = np.eye(n_classes)[labels]
    x = generator.normal(size=shape) + y @ generator.normal(size=(n_classes, shape[1]))
    probe = fit_linear(torch.from_numpy(x), torch.from_numpy(y), "multiclass", [10.0])[10.0]
    standard = StandardScaler().fit_transform(x)
    expected = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(standard, labels)
    chances = probe(torch.from_numpy(x)).softmax(1).numpy()
    np.testing.assert_allclose(chances, expected.predict_proba(standard), atol=1e-3)
    weight = probe.weight if n_classes > 2 else probe.weight[1:] - probe.weight[:1]
    np.testing.assert_allclose(weight, expected.coef_, atol=1e-3)


def test_quantities_with_missing_values_equal_scikit_learn() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=(80, 100)) + 3
    y = x[:, :2] * 20 + generator.normal(size=(80, 2)) + 60
    y[generator.random(y.shape) < 0.2] = NAN
    probes = fit_linear(torch.from_numpy(x), torch.from_numpy(y), "regression", [1e3, 1.0])
    standard = StandardScaler().fit_transform(x)
    for decay, probe in probes.items():
        for column in range(2):
            known = ~np.isnan(y[:, column])
            expected = Ridge(alpha=decay).fit(standard[known], y[known, column])
            np.testing.assert_allclose(probe.weight[column], expected.coef_, atol=1e-6)
            np.testing.assert_allclose(
                probe(torch.from_numpy(x))[:, column], expected.predict(standard), atol=1e-6, err_msg=str(decay)
            )


@pytest.mark.parametrize(
    "config",
    [
        ProbeConfig(resamples=50),
        ProbeConfig(solver="adamw", weight_decays=(1e-2,), epochs=20, lr=1e-2, seeds=(0, 1), resamples=50),
        ProbeConfig(solver="knn", resamples=50),
    ],
    ids=lambda config: config.solver,
)
def test_a_planted_signal_is_found_and_shuffled_labels_are_at_chance(tmp_path, config) -> None:
    y = coins(800, 2, 0.4)
    y[::7, 0] = NAN
    store, target = plant(tmp_path, "multilabel", y, strength=3.0)
    result = run_probe(store, target, config)
    average = result.measures["macro"]
    assert average["auroc"].estimate.value > 0.85
    assert average["balanced_accuracy"].estimate.value > 0.75
    assert average["auroc"].estimate.low < average["auroc"].estimate.value < average["auroc"].estimate.high
    assert result.n == {"train": 400, "val": 200, "test": 200}
    # At chance a macro AUROC on these 200 images has a standard deviation of .03, so .011 as a mean of 8 (4 sd: .044).
    orders = [np.random.default_rng(seed).permutation(800) for seed in range(8)]
    chance = [run_probe(store, replace(target, y=y[order]), config).measures["macro"]["auroc"] for order in orders]
    assert np.mean([one.estimate.value for one in chance]) == pytest.approx(0.5, abs=0.044)
    blind = run_probe(store, target, replace(config, pooling="mean")).measures["macro"]["auroc"].estimate
    assert blind.value < 0.65, "the second vector is noise"


def test_results_go_to_json_and_say_what_seeds_do(tmp_path) -> None:
    store, target = plant(tmp_path, "multilabel", coins(400, 1))
    exact = run_probe(store, target, ProbeConfig(resamples=50))
    row = json.loads(json.dumps(exact.to_dict()))
    estimate = row["measures"]["a"]["auprc"]
    assert list(estimate) == ["value", "low", "high", "n", "n_positive", "sd", "reason"]
    assert (estimate["n"], estimate["n_positive"], estimate["sd"]) == (100, int(target.y[3::4].sum()), 0.0)
    assert any("every seed gives the same" in note for note in row["notes"])
    assert row["config"]["solver"] == "lbfgs"
    assert row["weight_decay"] in exact.config.decays
    descent = ProbeConfig(solver="adamw", weight_decays=(0.01,), epochs=3, seeds=(0, 1, 2), resamples=50)
    found, again = (run_probe(store, target, descent).measures["a"]["auroc"] for _ in range(2))
    assert found.estimate.sd > 0
    assert found.estimate == again.estimate
    alone = [run_probe(store, target, replace(descent, seeds=(seed,))).measures["a"]["auroc"] for seed in (0, 1, 2)]
    values = [one.estimate.value for one in alone]
    assert (found.estimate.value, found.estimate.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


def test_classes_and_quantities_are_measured_like_scikit_learn(tmp_path) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, 400)
    store, target = plant(tmp_path / "classes", "multiclass", np.eye(3)[labels])
    result = run_probe(store, target, QUICK)
    train, test = target.splits == "train", target.splits == "test"
    x = store.vectors(target.paths).numpy()
    scaler = StandardScaler().fit(x[train])
    model = LogisticRegression(C=0.01, tol=1e-8, max_iter=5000).fit(scaler.transform(x[train]), labels[train])
    chances = model.predict_proba(scaler.transform(x[test]))
    values = {key: one.estimate.value for key, one in result.measures["macro"].items()}
    assert values["auroc"] == pytest.approx(sk.roc_auc_score(labels[test], chances, multi_class="ovr"), abs=0.002)
    expected = sk.balanced_accuracy_score(labels[test], chances.argmax(1))
    assert values["balanced_accuracy"] == pytest.approx(expected, abs=1e-9)
    store, target = plant(tmp_path / "ages", "regression", generator.normal(60, 15, (400, 1)), strength=0.2)
    for config in (QUICK, replace(QUICK, solver="adamw", lr=1e-2, weight_decays=(1e-4,), seeds=(0,))):
        age = run_probe(store, target, config).measures["a"]
        assert age["r2"].estimate.value > 0.8
        assert 1 < age["mae"].estimate.value < 6


@pytest.mark.parametrize("kind", ["multilabel", "multiclass", "regression"])
def test_weight_decay_is_chosen_on_val_only_by_the_loss(tmp_path, kind) -> None:
    y = np.random.default_rng(5).normal(60, 15, (240, 2)) if kind == "regression" else coins(240, 2)
    y = np.eye(3)[y.sum(1).astype(int)] if kind == "multiclass" else y
    store, target = plant(tmp_path, kind, y, strength=0.06 if kind == "regression" else 1.0, width=100)
    grid = (1e6, 1e2, 1e-2)
    chosen = run_probe(store, target, replace(QUICK, weight_decays=grid)).weight_decay
    train, val = target.splits == "train", target.splits == "val"
    x = store.vectors(target.paths).numpy()
    x = (x - x[train].mean(0)) / x[train].std(0)
    losses = {}
    for decay in grid:
        if kind == "multiclass":
            model = LogisticRegression(C=1 / decay, max_iter=5000).fit(x[train], y[train].argmax(1))
            losses[decay] = sk.log_loss(y[val].argmax(1), model.predict_proba(x[val]))
        elif kind == "multilabel":
            models = [LogisticRegression(C=1 / decay, max_iter=5000).fit(x[train], column[train]) for column in y.T]
            losses[decay] = np.mean(
                [sk.log_loss(c[val], m.predict_proba(x[val])) for c, m in zip(y.T, models, strict=True)]
            )
        else:
            found = Ridge(decay).fit(x[train], y[train]).predict(x[val])
            losses[decay] = np.mean((found - y[val]) ** 2 / y[train].var(0))
    assert chosen == min(losses, key=losses.get) == 1e2
    nothing = replace(target, splits=np.where(val, "", target.splits))
    with pytest.raises(
        ValueError, match=r"cannot be chosen from \(1000000.0, .* 0 images of val; give one weight decay"
    ):
        run_probe(store, nothing, replace(QUICK, weight_decays=grid))


def test_a_constant_label_is_reported(tmp_path) -> None:
    y = coins(400, 3)
    y[split_names(400) == "train", 1] = 0
    y[split_names(400) == "val", 2] = 1
    store, target = plant(tmp_path, "multilabel", y)
    result = run_probe(store, target, QUICK)
    reason = "constant in train: 0 on all 200 images"
    assert result.measures["b"]["auroc"].estimate.reason == reason
    assert f"b: {reason}" in result.notes
    assert result.measures["macro"]["auroc"].estimate.reason == f"without b ({reason})"
    assert result.measures["c"]["auroc"].estimate.value > 0.5
    assert "to choose a threshold by" in result.measures["c"]["balanced_accuracy"].estimate.reason
    nothing = run_probe(store, replace(target, y=y * 0), QUICK).measures["macro"]["auroc"].estimate
    assert nothing.value is None
    assert nothing.reason.startswith("undefined for all: a (constant in train")


def test_images_without_features_are_counted(tmp_path) -> None:
    store, target = plant(tmp_path, "multilabel", coins(80, 1))
    del store.rows[str(target.paths[0])]
    result = run_probe(store, target, QUICK)
    assert result.n["train"] == 39
    assert "1 of 80 images have no features" in result.notes
    assert target.notes == []
    with pytest.raises(ValueError, match="No train image"):
        run_probe(store, target.keep(target.splits != "train"), QUICK)


def test_attention_finds_the_patch_that_the_mean_drowns(tmp_path) -> None:
    generator = np.random.default_rng(0)
    y = coins(400, 1)
    vectors = generator.normal(size=(400, 17, 8))
    place = generator.integers(1, 17, 400)
    vectors[np.arange(400), place, 0] += 6  # where to look
    vectors[np.arange(400), place, 1] += np.where(y[:, 0] > 0, 3, -3)  # what is there
    store, paths = save_store(tmp_path, vectors, grid=(4, 4))
    subjects = np.arange(400).astype(str)
    target = Target("multilabel", ("a",), paths, subjects, split_names(400), y)
    config = ProbeConfig("attention", "adamw", (1e-4,), epochs=30, lr=3e-2, batch_size=64, seeds=(0,), resamples=50)
    attention = run_probe(store, target, config).measures["a"]["auroc"].estimate.value
    mean = run_probe(store, target, replace(QUICK, pooling="mean")).measures["a"]["auroc"].estimate.value
    assert attention > 0.95
    assert attention > mean + 0.05
    with pytest.raises(ValueError, match="needs solver 'adamw', not 'lbfgs'"):
        ProbeConfig("attention")


def test_neighbours_equal_a_direct_computation() -> None:
    generator = np.random.default_rng(0)
    x, train = generator.normal(size=(5, 6)), generator.normal(size=(40, 6))
    y = coins(40, 2)
    y[:10, 1] = NAN
    found = knn_scores(*(torch.from_numpy(part) for part in (x, train, y)), neighbors=7, temperature=0.1)
    for row in range(5):
        for column in range(2):
            votes = [
                (train[i] @ x[row] / np.linalg.norm(train[i]) / np.linalg.norm(x[row]), y[i, column])
                for i in range(40)
                if not np.isnan(y[i, column])
            ]
            nearest = sorted(votes, reverse=True)[:7]
            weights = np.exp([cosine / 0.1 for cosine, _ in nearest])
            assert float(found[row, column]) == pytest.approx(weights @ [vote for _, vote in nearest] / weights.sum())


def test_learning_curve_rises_on_nested_subjects(tmp_path, monkeypatch) -> None:
    store, target = plant(tmp_path, "multilabel", coins(1200, 1), strength=1.5, width=60)
    target = replace(target, subjects=np.array([f"{split}{number // 8}" for number, split in enumerate(target.splits)]))
    seen = []

    def spy(store, part, config):
        seen.append(set(part.subjects[part.splits == "train"]))
        return run_probe(store, part, config)

    monkeypatch.setattr("encoder.probe.run_probe", spy)
    points = learning_curve(store, target, (1.0, 0.05, 0.3), QUICK, seeds=(0, 1))
    assert [(point.seed, point.fraction) for point in points] == [(s, f) for s in (0, 1) for f in (0.05, 0.3, 1.0)]
    assert [point.n_subjects for point in points[:3]] == [len(subjects) for subjects in seen[:3]] == [8, 45, 150]
    assert seen[0] < seen[1] < seen[2]
    assert seen[3] != seen[0]
    for start in (0, 3):
        values = [point.result.measures["a"]["auroc"].estimate.value for point in points[start : start + 3]]
        assert values[0] < values[1] < values[2]
    assert {point.result.n["test"] for point in points} == {300}
    with pytest.raises(ValueError, match=r"lies in \(0, 1\], not at 2"):
        learning_curve(store, target, (2,), QUICK)


def study(number: int, split: str = "train", views: tuple[str | None, ...] = ("PA",), **fields) -> Study:
    images = [StudyImage(Path(f"/x/{number}-{place}.png"), view) for place, view in enumerate(views)]
    return Study(f"s{number}", f"p{number}", split, images, **fields)


@pytest.mark.parametrize(
    ("uncertain", "missing", "expected"),
    [
        ("drop", "drop", [1, 0, NAN, NAN, NAN]),
        ("positive", "drop", [1, 0, 1, NAN, NAN]),
        ("negative", "negative", [1, 0, 0, 0, 0]),
    ],
)
def test_uncertain_and_missing_labels(uncertain, missing, expected) -> None:
    labels = [{"Edema": 1}, {"Edema": 0}, {"Edema": -1}, {"Edema": None}, {}]
    studies = [study(number, labels=row | {"Mass": 0}) for number, row in enumerate(labels)]
    spec = TargetSpec(("Edema", "Mass"), "multilabel", uncertain, missing)
    np.testing.assert_array_equal(make_target(studies, spec).y[:, 0], expected)
    alone = make_target(studies, replace(spec, kind="binary", targets=("Edema",)))
    np.testing.assert_array_equal(alone.y[:, 0], [value for value in expected if not math.isnan(value)])
    assert bool(alone.notes) == (len(alone.y) < 5), "images that are left out are counted"


def test_images_of_a_study() -> None:
    studies = [study(0, views=("L", "AP", None), labels={"Mass": 1}), study(1, views=("LATERAL",), labels={"Mass": 0})]
    main = make_target(studies, TargetSpec(("Mass",), "binary"))
    assert [path.name for path in main.paths] == ["0-1.png", "1-0.png"]
    frontal = make_target(studies, TargetSpec(("Mass",), "binary", images="frontal"))
    assert [path.name for path in frontal.paths] == ["0-1.png", "0-2.png"]
    assert frontal.subjects.tolist() == ["p0", "p0"]


def test_classes_are_those_of_train_and_fields_may_lie_deep() -> None:
    views = ["PA", "AP", "PA", "AP", "LLO"]
    patients = [
        {"sex": "F", "age": 40},
        {"sex": "M", "age": 61.5},
        {"sex": None},
        {"sex": "", "age": 5},
        {"sex": "X"},
    ]
    studies = [
        study(number, "test" if number == 4 else "train", (view,), patient=patient, extra={"scan": {"kv": 80 + number}})
        for number, (view, patient) in enumerate(zip(views, patients, strict=True))
    ]
    sex = make_target(studies, TargetSpec(("patient.sex",), "multiclass"))
    assert (sex.names, sex.y.tolist()) == (("F", "M"), [[1, 0], [0, 1]])
    assert sex.notes == ["classes left out, since they are not in train: X", "3 of 5 images have no label"]
    assert make_target(studies, TargetSpec(("image.view",), "multiclass")).names == ("AP", "PA")
    ages = make_target(studies, TargetSpec(("patient.age", "scan.kv"), "regression"))
    np.testing.assert_array_equal(ages.y, [[40, 80], [61.5, 81], [NAN, 82], [5, 83], [NAN, 84]])


def test_faults_are_named() -> None:
    studies = [study(0, labels={"Edema": 1}, patient={"age": "57Y"})]
    cases = [
        (TargetSpec(("Edma",), "binary"), r"No study has the finding 'Edma'. Choices: Edema"),
        (TargetSpec(("patient.sex",), "multiclass"), r"No study has the field 'patient.sex'. Choices: .*patient.age"),
        (TargetSpec(("patient.age",), "regression"), r"Study 's0': patient.age is '57Y', not a number"),
    ]
    for spec, message in cases:
        with pytest.raises(ValueError, match=message):
            make_target(studies, spec)
    for name, kind, value, due in (
        *(("age", "regression", value, "not an age of 0 to 120 years") for value in (-5, 411, 1e30)),
        ("age", "regression", 10**400, "not a number"),
        *(("sex", "multiclass", value, "not a text or a number") for value in (["M"], {})),
    ):
        odd = replace(studies[0], patient={name: value})
        with pytest.raises(ValueError, match=rf"Study 's0': patient\.{name} is .*, {due}"):
            make_target([odd, *studies[1:]], TargetSpec((f"patient.{name}",), kind))
    twice = [*studies, replace(study(1, "test", labels={"Edema": 0}), subject_id="p0")]
    with pytest.raises(ValueError, match="Subject 'p0' is in splits 'train' and 'test'"):
        make_target(twice, TargetSpec(("Edema",), "binary"))
    with pytest.raises(ValueError, match="A binary probe cannot have 2 targets"):
        TargetSpec(("a", "b"), "binary")
    with pytest.raises(ValueError, match="needs weight decays above 0, not 0"):
        ProbeConfig(weight_decays=(1.0, 0.0))


def test_leaks_are_caught(tmp_path) -> None:
    studies = [make_study(tmp_path, number, split) for number, split in enumerate(["train", "val", "test", "test"])]
    assert check_leaks(split_groups(studies)) == []
    digests = [hashlib.sha256(one.images[0].path.read_bytes()).hexdigest() for one in studies]
    (tmp_path / "seen.txt").write_text(f"{digests[0]}  a.png\n{digests[3].upper()}\n{'0' * 64}\n")
    expected = ["1 of 2 test images were in the tower's pre-training, by seen.txt"]
    assert check_leaks(split_groups(studies), tmp_path / "seen.txt", tmp_path / "features") == expected
    assert {one.split for one in studies} == {"train", "val", "test"}, "groups leave the splits as they are"
    studies[3].subject_id = "p0"
    studies[2].images[0].path.write_bytes(studies[1].images[0].path.read_bytes())
    subject, content = check_leaks(split_groups(studies))
    assert subject == "1 subjects are in more than one split, e.g. 'p0' in test and train"
    assert content.startswith("1 images are in more than one split with the same content")
    assert all(name in content for name in ("1.png (val)", "2.png (test)"))
    same_file = [studies[0], replace(studies[1], images=studies[0].images)]
    assert "0.png (train and val)" in check_leaks(split_groups(same_file))[0]
    (tmp_path / "bad.txt").write_text("x.png\n")
    with pytest.raises(ValueError, match=r"bad.txt line 1: 'x.png' is not a SHA-256 digest"):
        check_leaks(split_groups(studies), tmp_path / "bad.txt")


def test_a_probe_is_measured_on_val_where_that_is_asked_for(tmp_path) -> None:
    y = coins(400, 2)
    store, target = plant(tmp_path, "multilabel", y)
    swapped = replace(target, splits=np.array([{"val": "test"}.get(one, "") or one for one in target.splits]))
    swapped = swapped.keep(target.splits != "test")
    found = run_probe(store, target, replace(QUICK, evaluate="val"))
    assert (
        found.measures["macro"]["auroc"].estimate
        == run_probe(store, swapped, QUICK).measures["macro"]["auroc"].estimate
    )
    assert found.measures["a"]["balanced_accuracy"].estimate.reason == "thresholds are chosen on val"
    assert found.n == {"train": 200, "val": 100, "test": 100}
    with pytest.raises(ValueError, match=r"the weight decay cannot be chosen from .*; set one"):
        ProbeConfig(evaluate="val")


@pytest.mark.parametrize(("n_blocks", "pooling"), [(1, "class"), (2, "attention")])
def test_fine_tuning_moves_the_last_blocks_only(tower_folder, tmp_path, n_blocks, pooling) -> None:
    tower = load_tower(str(tower_folder))
    splits = split_names(24)
    studies = [make_study(tmp_path, number, split) for number, split in enumerate(splits)]
    for number, one in enumerate(studies):
        one.labels = {"Bright": int(number % 6 > 2)}
    target = make_target(studies, TargetSpec(("Bright",), "binary"))
    config = ProbeConfig(pooling, "adamw", (0.01,), epochs=10, lr=3e-3, batch_size=6, seeds=(0, 1), resamples=20)
    before = {name: value.clone() for name, value in tower.model.state_dict().items()}
    result = finetune(tower, n_blocks, target, config)
    moved = {name for name, value in tower.model.state_dict().items() if not torch.equal(value, before[name])}
    last = tuple(f"encoder.layer.{number}." for number in range(2 - n_blocks, 2))
    assert moved == {name for name in before if any(block in name for block in last)}
    assert all(parameter.requires_grad for parameter in tower.model.parameters())
    assert result.measures["Bright"]["auroc"].estimate.value > 0.8
    assert result.n == {"train": 12, "val": 6, "test": 6}
    tower.model.load_state_dict(before)
    alone = finetune(tower, n_blocks, target, replace(config, seeds=(1,)))
    after = tower.model.state_dict()
    tower.model.load_state_dict(before)
    finetune(tower, n_blocks, target, config)
    for name, value in tower.model.state_dict().items():
        assert torch.equal(value, after[name]), "a seed starts from the tower as it came"
    assert alone.measures["Bright"]["auroc"].estimate.sd is None


def test_fine_tuning_refuses_what_it_cannot_do(tower_folder) -> None:
    tower = load_tower(str(tower_folder))
    target = Target("multilabel", ("a",), [], np.array([]), np.array([]), np.empty((0, 1)))
    config = ProbeConfig(solver="adamw", weight_decays=(0.01,))
    with pytest.raises(ValueError, match="one weight decay, not lbfgs"):
        finetune(tower, 1, target, QUICK)
    with pytest.raises(ValueError, match=r"3 blocks of .* cannot train: it has 2 that can"):
        finetune(tower, 3, target, config)


def test_all_stays_quiet_where_resamples_are_undefined(tmp_path) -> None:
    y = np.zeros((80, 1))
    y[:6] = 1
    store, target = plant(tmp_path, "multilabel", y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        estimate = run_probe(store, target, QUICK).measures["macro"]["auroc"].estimate
    assert estimate.value is not None


def test_a_batch_without_labels_does_no_harm(tmp_path) -> None:
    """257 images in batches of 256: the last one may have no label at all."""
    generator = np.random.default_rng(0)
    n = 300
    store, paths = save_store(tmp_path / "store", generator.normal(size=(n, 2, 8)))
    y = (generator.random((n, 1)) < 0.5).astype(float)
    y[:256:2] = NAN
    splits = np.array(["train"] * 257 + ["val"] * 20 + ["test"] * 23)
    target = Target("multilabel", ("Edema",), paths, np.arange(n).astype(str), splits, y)
    for seed in range(8):  # in some of them the last batch is one without a label
        scores = descend(store.vectors(paths), target, ProbeConfig(solver="adamw", seeds=(seed,), epochs=4))
        assert all(np.isfinite(part[257:]).all() for parts in scores.values() for part in parts)


def test_seeds_and_draws_that_are_undefined_are_left_out_and_counted() -> None:
    truth, scores, people = np.tile([0.0, 1.0], 10), np.arange(20.0), np.arange(20).astype(str)
    some, none = measure(auroc, truth, scores, people), measure(auroc, np.zeros(20), scores, people)
    for parts in ([some, none, some], [none, some, some]):
        found = over_seeds(parts).estimate
        assert found.value == some.estimate.value
        assert found.reason == "undefined in 1 of 3"
    assert over_seeds([none, none]).estimate.value is None


@pytest.mark.parametrize("kind", ["multilabel", "multiclass", "regression"])
def test_probes_trained_together_are_those_trained_one_by_one(kind) -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(3, 2, (200, 6)).astype(np.float32)
    y = x[:, :3] + generator.normal(size=(200, 3))
    if kind == "multilabel":
        y = (y > 3).astype(float)
        y[generator.random(y.shape) < 0.2] = NAN
    elif kind == "multiclass":
        y = np.eye(3)[y.argmax(1)]
    names, paths = ("a", "b", "c"), [Path(f"{row}.png") for row in range(200)]
    target = Target(kind, names, paths, np.arange(200).astype(str), split_names(200), y)
    config = ProbeConfig(solver="adamw", epochs=3, batch_size=32, seeds=(0, 3), weight_decays=(10.0, 0.01))
    together = descend(torch.from_numpy(x), target, config)
    mean, sd = moments([torch.from_numpy(x)[rows_in(target, "train")]])
    alone = _train_all(lambda: _Head(mean, sd, 3, False), lambda rows: torch.from_numpy(x[rows]), target, config)
    for decay in config.decays:
        np.testing.assert_allclose(together[decay], alone[decay], atol=1e-5)
        assert np.nanmax(np.abs(together[decay][0] - together[decay][1])) > 1e-2, "seeds differ"
    assert np.nanmax(np.abs(together[10.0][0] - together[0.01][0])) > 1e-2, "weight decays differ"
