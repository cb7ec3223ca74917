"""metrics/scoring.py and `from metrics import score`: names, signatures, what is skipped, pairs, strata, scale."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_embedders import save_cxr_bert, save_ratescore
from metrics import score
from metrics.models import Models
from metrics.read import Prediction
from metrics.scoring import DEFAULT, FAMILIES, METRICS, choose, measure, summarize
from raddraft.errors import CannotRun
from raddraft.stats import mean_measure
from tests.conftest import SENTENCES
from tests.test_chexbert import random_state, write_checkpoint
from tests.test_extras import save_roberta
from tests.test_radgraph import make_model

# Drafts and references that differ in findings, doubt and case, one of them blank.
PAIRS = [
    ("The heart is enlarged.", "The heart is enlarged."),
    ("Possible left pleural effusion.", "SMALL left pleural effusion."),
    ("Small Left pleural effusion.", "Possible pleural effusion."),
    ("", "Right lower lobe consolidation."),
    ("No pleural effusion or pneumothorax.", "No pleural effusion."),
]
PREDICTIONS, REFERENCES = [list(part) for part in zip(*PAIRS, strict=True)]


@pytest.fixture(scope="module")
def models(bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """Tiny random CheXbert, both RadGraphs and a RoBERTa in their official layouts; annotations kept in memory."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("weights")
    checkpoint = write_checkpoint(
        folder / "chexbert.pth", random_state(len(AutoTokenizer.from_pretrained(bert_folder)))
    )
    names = ("radgraph", "radgraph-xl", "modern-radgraph-xl")
    v1, xl, modern = (make_model(folder / name, bert_folder, name) for name in names)
    ner, synonyms = save_ratescore(folder, SENTENCES)
    return Models(
        checkpoint,
        bert_folder,
        v1,
        xl,
        bert_folder,
        save_roberta(folder / "roberta"),
        modern_radgraph_xl=modern,
        modern_radgraph_xl_tokenizer=bert_folder,
        cxr_bert=save_cxr_bert(folder / "cxr-bert", SENTENCES),
        ratescore_ner=ner,
        ratescore_synonyms=synonyms,
        batch_size=2,
        keep=False,
    )


@pytest.fixture
def nothing_installed(tmp_path, monkeypatch) -> None:
    """No weights on this machine."""
    for name in ("RADDRAFT_WEIGHTS", "RADDRAFT_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)


def test_every_metric_runs_with_the_models_at_hand_and_signs_itself(models) -> None:
    lacking = ("meteor", "cxrfescore")  # data of nltk, see test_extras and test_embeddings
    wanted = [name for name in METRICS if name not in lacking]
    scores = score(PREDICTIONS, REFERENCES, wanted, models, resamples=50)
    assert list(scores["metrics"]) == wanted
    assert scores["n"] == 5
    assert scores["skipped"] == {}
    signatures = {name: one["signature"] for name, one in scores["metrics"].items()}
    for name, one in scores["metrics"].items():
        assert one["low"] <= one["median"] <= one["high"], name
        assert one["signature"].endswith("|n:5|bootstrap:50 seed 0"), name
        assert "uncertain:positive" in one["signature"] if name.endswith("_plus") else True, name
    assert "sha256:" in signatures["chexbert_macro_f1_14"]
    assert "partial|case:as written" in signatures["radgraph_er"]
    assert "partial|case:lower" in signatures["radgraph_xl_er_lower"]
    assert signatures["radgraph_er"] != signatures["radgraph_xl_er"]
    # BLEU and ROUGE-L of one family share a signature; no two conventions do.
    conventions = [name for name in wanted if name.startswith(("chexbert", "rule"))]
    assert len({signatures[name] for name in conventions}) == len(conventions)


@pytest.mark.parametrize("labeler", ["chexbert", "rule"])
def test_both_rules_for_what_is_uncertain_stand_side_by_side(models, labeler) -> None:
    measures, skipped = measure(PREDICTIONS, REFERENCES, [labeler, f"{labeler}_plus"], models)
    assert skipped == {}
    names = [name for name in measures if not name.endswith("_plus")]
    assert len(names) == 4
    for name in names:
        plain, plus = measures[name], measures[f"{name}_plus"]
        assert plain.signature.replace("uncertain:negative", "uncertain:positive") == plus.signature
    assert len({measures[name].value for name in names}) > 1, "macro and micro, 14 and 5 differ"
    if labeler == "rule":
        assert measures["rule_micro_f1_5"].value == pytest.approx(2 * 1 / (2 * 1 + 1 + 1 + 1))
        assert measures["rule_micro_f1_5_plus"].value == pytest.approx(2 * 3 / (2 * 3 + 1))


def test_both_cases_differ_where_only_the_case_does(models) -> None:
    texts = [sentence.upper() for sentence in SENTENCES]
    measures, _ = measure(texts, SENTENCES, ["radgraph", "radgraph_lower"], models)
    assert measures["radgraph_e"].value < measures["radgraph_e_lower"].value == 1.0, "the tokenizer reads both alike"


def test_identical_texts_score_one_and_order_changes_nothing(models) -> None:
    texts = SENTENCES[:6]
    families = ["rouge", "bleu", "radgraph", "radgraph_lower", "radgraph_xl", "coco"]
    same, _ = measure(texts, texts, families, models)
    for name, one in same.items():
        if name.startswith("radgraph"):
            assert set(one.per_study) <= {0.0, 1.0}, "a text without entities scores 0"  # type: ignore[arg-type]
            assert one.value > 0
        elif name != "coco_cider":
            assert one.value == pytest.approx(1.0), name
    drafts = [texts[-1 - i] for i in range(6)]
    there, _ = measure(drafts, texts, [*families, "chexbert", "rule"], models)
    back, _ = measure(drafts[::-1], texts[::-1], [*families, "chexbert", "rule"], models)
    for name, one in there.items():
        assert one.value == pytest.approx(back[name].value, abs=1e-12), name


@pytest.mark.usefixtures("nothing_installed")
def test_what_lacks_its_weights_is_skipped_with_the_reason_unless_asked_for() -> None:
    scores = score(PREDICTIONS, REFERENCES, resamples=10)
    assert list(scores["metrics"]) == [name for family in ("rouge", "bleu", "rule") for name in FAMILIES[family].names]
    assert set(scores["skipped"]) == set(FAMILIES["radgraph"].names + FAMILIES["chexbert"].names)
    assert set(scores["metrics"]) | set(scores["skipped"]) == set(choose(None)), "nothing is silently dropped"
    for name, reason in scores["skipped"].items():
        weights = name.partition("_")[0]
        assert f"raddraft weights --fetch {weights}" in reason
    everything = score(PREDICTIONS, REFERENCES, ["all"], resamples=10)
    assert set(everything["metrics"]) | set(everything["skipped"]) == set(METRICS)
    learned = ("radgraph_er", "chexbert", "radgraph_xl_lower", "bertscore_f1", "radcliq", "modern_radgraph_xl")
    for name in (*learned, "cxr_bert_cosine", "cxrfescore", "ratescore"):
        with pytest.raises(CannotRun, match="is missing"):
            score(PREDICTIONS, REFERENCES, ["rouge_l", name])


def test_names_and_families() -> None:
    assert choose(["bleu_2", "rouge", "bleu"]) == ("bleu_2", "rouge_l", "bleu_1", "bleu_3", "bleu_4")
    assert choose(None) == tuple(name for family in DEFAULT for name in FAMILIES[family].names)
    assert len(set(METRICS)) == len(METRICS)
    for wrong, message in ((["rouge"[:3]], "Unknown metric 'rou'. Choices: rouge_l"), ([], "No metric to score by")):
        with pytest.raises(ValueError, match=message):
            choose(wrong)


def test_unequal_and_empty_inputs_are_refused() -> None:
    with pytest.raises(ValueError, match="2 predictions and 1 references"):
        score(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="Nothing to score"):
        score([], [])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"metrics": [5]}, r"metrics must be names, got \[5\]"),
        ({"metrics": 5}, "metrics must be names, got 5"),
        ({"resamples": 1.5}, "resamples must be a whole number of at most 2147483647, got 1.5"),
        ({"resamples": 10**15}, "resamples must be a whole number of at most"),
        ({"seed": "1"}, "seed must be a whole number of at most 2147483647, got '1'"),
        ({"intervals": "normal"}, "Unknown intervals 'normal'. Choices: jackknife, percentile"),
        ({"subjects": ["p1", None]}, "subjects, item 2: expected a text or a whole number, got None"),
        ({"subjects": [float("nan")] * 2}, "subjects, item 1: expected a text or a whole number, got nan"),
    ],
)
def test_options_of_wrong_types_are_refused(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        score(SENTENCES[:2], SENTENCES[:2], **{"metrics": ["rouge_l"]} | options)


def test_differences_are_paired() -> None:
    """A system that is better by a hair on every study: the intervals overlap, the difference is clear."""
    reference = np.random.default_rng(0).random(200)
    better = mean_measure(reference + np.random.default_rng(1).normal(0.01, 0.01, 200), "x")
    summary = summarize({"a": {"m": better}, "b": {"m": mean_measure(reference, "x")}}, 500, seed=0)
    a, b = summary["metrics"]["m"], summary["others"]["b"]["metrics"]["m"]
    assert a["low"] < b["high"]
    difference = summary["differences"]["b"]["m"]
    assert difference["value"] == pytest.approx(a["value"] - b["value"])
    assert 0 < difference["low"] < difference["value"] < difference["high"] < 0.02
    assert difference["p"] == pytest.approx(1 / 10_001)
    assert difference["p_bootstrap"] == pytest.approx(2 / 501)
    same = summarize({"a": {"m": better}, "b": {"m": better}}, 100, seed=0)["differences"]["b"]["m"]
    assert {key: same[key] for key in ("value", "low", "high", "p", "differ")} == {
        **{"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0, "differ": 0}
    }
    away = summarize({"b": {"m": mean_measure(reference, "x")}, "a": {"m": better}}, 500, 0)["differences"]["a"]["m"]
    assert away["value"] == pytest.approx(-difference["value"])
    assert away["p"] == difference["p"]
    assert away["p_bootstrap"] == difference["p_bootstrap"]


def test_p_is_right_under_the_null_hypothesis() -> None:
    """Of 200 comparisons of two systems without any difference, about 5 % come out below .05."""
    generator = np.random.default_rng(0)
    found = []
    for _ in range(200):
        a, b = (mean_measure(generator.normal(size=60), "x") for _ in range(2))
        found.append(summarize({"a": {"m": a}, "b": {"m": b}}, 200, seed=0)["differences"]["b"]["m"]["p"])
    assert 0.01 < np.mean(np.array(found) < 0.05) < 0.10


def test_a_stratum_is_the_metric_of_its_studies(models) -> None:
    index = np.array([0, 2, 4])
    whole, _ = measure(PREDICTIONS, REFERENCES, ["rouge", "bleu", "rule", "chexbert", "radgraph"], models)
    texts = [PREDICTIONS[i] for i in index], [REFERENCES[i] for i in index]
    part, _ = measure(*texts, list(whole), models)
    for name, one in whole.items():
        assert one.subset(index).value == pytest.approx(part[name].value), name


def test_strange_texts_give_right_numbers(models) -> None:
    texts = [
        "",
        " \n\t",
        "\x00\x07\x1b[31m",
        "心臓は拡大している。",
        "Сердце увеличено.",
        "half \ud83d",
        "x" * 5000,
        "." * 999,
    ]
    scores = score(texts, texts, ["rouge", "bleu", "rule", "chexbert", "radgraph", "coco"], models, resamples=10)
    for name, one in scores["metrics"].items():
        assert np.isfinite([one["value"], one["low"], one["high"]]).all(), name
    assert scores["metrics"]["bleu_1"]["value"] == pytest.approx(1.0)
    blank = score(["", " "], ["The heart is enlarged.", "Edema."], ["radgraph", "rouge", "bleu"], models, resamples=10)
    assert all(one["value"] == 0 for one in blank["metrics"].values())


def test_memory_grows_by_the_statistics_only() -> None:
    """A study takes less than 10 kB: its texts and per-study statistics are all that is kept."""
    program = """
import resource
from metrics import score
parts = ["The heart is enlarged.", "No pleural effusion.", "The lungs are clear.", "Small pneumothorax."]
texts = [f"{parts[i % 4]} {parts[i // 4 % 4]} Number {i % 997}." for i in range(6_000)]
peaks = []
for part in (texts[:200], texts):
    scores = score(part, part[1:] + part[:1], ["rouge", "bleu_4", "rule_macro_f1_14"], resamples=20)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(scores["n"], peaks[1] - peaks[0])
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=280)
    n, kilobytes = map(int, found.stdout.split())
    assert n == 6_000
    assert kilobytes < 60_000


def test_each_text_is_read_once_for_all_metrics_and_systems(monkeypatch) -> None:
    import metrics.scoring
    from metrics.systems import score_systems

    seen: list[str] = []
    plain = metrics.scoring.label
    monkeypatch.setattr(metrics.scoring, "label", lambda text: seen.append(text) or plain(text))
    rows = [Prediction(str(i), *pair) for i, pair in enumerate(PAIRS)]
    copies = [Prediction(row.study_id, row.reference, row.reference) for row in rows]
    scored = score_systems({"a": rows, "b": copies, "c": rows}, ["rouge", "bleu", "rule", "rule_plus"], by=["normal"])
    assert list(scored.by_system()) == ["a", "b", "c"]
    assert sorted(seen) == sorted({*PREDICTIONS, *REFERENCES})


def test_importing_is_light_and_score_is_a_function() -> None:
    program = "import sys, metrics.text; from metrics import score; print(callable(score), 'torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["True", "False"]


def test_chexbert_counts_of_a_published_run_give_its_f1s(cxr: Path) -> None:
    """True and false positives that another project stored, put back into labels: its F1s come out."""
    from metrics.labels import f1_measures
    from metrics.rules import OBSERVATIONS

    folder = cxr / "fixtures" / "mrg_rl" / "copy_oracle_beam3"
    stored = json.loads((folder / "clinical_metrics.json").read_text())["chexbert"]
    counts = stored["per_label"]
    n = max(one["tp"] + one["fp"] + one["fn"] for one in counts.values())
    ours: list[dict[str, int | None]] = [{} for _ in range(n)]
    theirs: list[dict[str, int | None]] = [{} for _ in range(n)]
    for name, one in counts.items():
        for i in range(one["tp"] + one["fp"]):
            ours[i][name] = 1
        for i in [*range(one["tp"]), *range(one["tp"] + one["fp"], one["tp"] + one["fp"] + one["fn"])]:
            theirs[i][name] = 1
    assert sorted(counts) == sorted(OBSERVATIONS)
    measures = f1_measures(ours, theirs, OBSERVATIONS, "chexbert", "stored")
    assert measures["chexbert_micro_f1_14"].value == pytest.approx(stored["micro"]["f1"], abs=1e-9)
    assert measures["chexbert_macro_f1_14"].value == pytest.approx(stored["macro_f1"], abs=1e-9)


def test_evaluate_metrics_work_without_the_hub(models) -> None:
    import evaluate

    from metrics.evaluate_metrics import load

    assert os.environ["HF_HUB_OFFLINE"] == "1"
    wanted = ["rouge_l", "bleu", "rule", "chexbert", "radgraph_er"]
    together = evaluate.combine([load(name, models) for name in wanted])
    found = together.compute(predictions=PREDICTIONS, references=REFERENCES)
    expected, _ = measure(PREDICTIONS, REFERENCES, wanted, models)
    assert found == pytest.approx({name: one.value for name, one in expected.items()})
    batched = load("rouge_l")
    for prediction, reference in PAIRS:
        batched.add(prediction=prediction, reference=reference)
    assert batched.compute() == pytest.approx({"rouge_l": expected["rouge_l"].value})
    with pytest.raises(ValueError, match="Unknown metric 'rouge2'"):
        load("rouge2")
