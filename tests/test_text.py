"""ROUGE-L and BLEU against the packages that define them, and against published scores."""

from __future__ import annotations

import csv
import json
import random
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from metrics.text import bleu, bleu_statistics, bleu_tokens, bleu_words, cut_13a, cut_intl, rouge_l

SENTENCE = "No focal consolidation, pleural effusion or pneumothorax. The heart is 1.5 cm enlarged; mild (stable) edema"
WORDS = SENTENCE.split(" ")


def random_reports(n: int, seed: int, longest: int = 40) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=generator.randint(0, longest))) for _ in range(n)]


def check_against_packages(predictions: list[str], references: list[str]) -> None:
    units: tuple[Literal["usual", "stem"], ...] = ("usual", "stem")
    for unit in units:
        scorer = RougeScorer(["rougeL"], use_stemmer=unit == "stem")
        pairs = zip(predictions, references, strict=True)
        theirs = [scorer.score(reference, prediction)["rougeL"].fmeasure for prediction, reference in pairs]
        measure = rouge_l(predictions, references, unit=unit)
        np.testing.assert_allclose(measure.statistics[:, 0], theirs, atol=1e-9, rtol=0)
        assert measure.value == pytest.approx(np.mean(theirs), abs=1e-9)
    for order, ours in bleu(predictions, references).items():
        corpus = sacrebleu.corpus_bleu(predictions, [references], smooth_method="none")
        reference = sacrebleu.BLEU(max_ngram_order=order, smooth_method="none").corpus_score(predictions, [references])
        assert ours.value == pytest.approx(reference.score / 100, abs=1e-9)
        if order == 4:
            assert ours.value == pytest.approx(corpus.score / 100, abs=1e-9)


def test_equal_to_rouge_score_and_sacrebleu_on_500_pairs() -> None:
    check_against_packages(random_reports(500, 0), random_reports(500, 1))


def test_equal_to_the_packages_on_real_reports(cxr: Path) -> None:
    folder = cxr / "fixtures" / "mrg_rl" / "copy_oracle_beam3"
    predictions = json.loads((folder / "test_preds.json").read_text())
    references = json.loads((folder / "test_refs.json").read_text())
    check_against_packages([p[0] for p in predictions.values()], [references[key][0] for key in predictions])


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("", "the heart is normal", 0.0),
        ("the heart is normal", "", 0.0),
        ("the heart is normal", "the heart is normal", 1.0),
        ("heart", "the heart", 2 / 3),
        ("THE Heart!", "the heart.", 1.0),
    ],
)
def test_rouge_l_by_hand(prediction: str, reference: str, expected: float) -> None:
    assert rouge_l([prediction], [reference]).value == pytest.approx(expected)


def test_longest_common_subsequence_beyond_64_words() -> None:
    reference = " ".join(f"word{i}" for i in range(300))
    prediction = " ".join(f"word{i}" for i in range(0, 300, 3))
    assert rouge_l([prediction], [reference]).value == pytest.approx(2 * (1 / 3) / (4 / 3))


def test_bleu_keeps_case_and_is_not_smoothed() -> None:
    same = "the heart is normal in size"
    assert bleu([same], [same])[4].value == pytest.approx(1.0)
    assert bleu([same.upper()], [same])[1].value == 0.0
    assert bleu(["the heart is"], [same])[4].value == 0.0, "no 4-gram in the prediction"
    assert bleu([""], [same])[1].value == 0.0


@pytest.mark.parametrize(("kind", "n"), [("13a", 20_000), ("intl", 2000)])
def test_tokens_word_by_word_are_those_of_the_whole_text(kind: str, n: int) -> None:
    """Words are tokenized one by one; what stands around them must not matter, whatever the punctuation."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International

    ways = {"13a": (Tokenizer13a(), cut_13a, bleu_tokens), "intl": (TokenizerV14International(), cut_intl, bleu_words)}
    tokenize, cut, of_word = ways[kind]
    generator = random.Random(2)
    parts = [
        *"ab1 2.,-;:!&<>\n\t'\"()/[]{}~`^_$%",
        "<skipped>",
        "-\n",
        "&quot;",
        "&amp;",
        "<skip",
        "ped>",
        "1.5",
        "é",
        "漢",
    ]
    for _ in range(n):
        text = "".join(generator.choices(parts, k=generator.randint(0, 14)))
        assert [token for word in cut(text) for token in of_word(word)] == tokenize(text.rstrip()).split(), text


def test_ngrams_of_any_vocabulary() -> None:
    """Numbers of tokens so large that four do not fit into 64 bits; texts shorter than an n-gram; repeated n-grams."""
    generator = np.random.default_rng(0)
    small = [generator.integers(0, 5, generator.integers(0, 30)).tolist() for _ in range(600)]
    large = [[token * 10**8 for token in text] for text in small]
    found, again = (bleu_statistics(texts[:300], texts[300:], 4) for texts in (small, large))
    np.testing.assert_array_equal(found, again)
    for row, ours, theirs in zip(found, small[:300], small[300:], strict=True):
        for order in range(1, 5):
            a, b = (Counter(zip(*(text[i:] for i in range(order)), strict=False)) for text in (ours, theirs))
            assert (row[1 + order], row[5 + order]) == ((a & b).total(), a.total())


def test_signature_names_implementation() -> None:
    assert "rouge-score 0" in rouge_l(["a", "b"], ["a", "c"]).signature
    assert "smooth:none" in bleu(["a"], ["a"])[4].signature


def test_rouge_l_of_stems_of_real_reports(cxr: Path) -> None:
    """Each report against the next one, as rouge-score with its stemmer."""
    with open(cxr / "iu" / "indiana_reports.csv", newline="", encoding="utf-8") as file:
        reports = [row["findings"] for row in csv.DictReader(file) if row["findings"]][:201]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    measure = rouge_l(reports[1:], reports[:-1], unit="stem")
    theirs = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(reports[1:], reports[:-1], strict=True)]
    np.testing.assert_allclose(measure.per_study, theirs, atol=1e-9, rtol=0)
    plain = rouge_l(reports[1:], reports[:-1])
    assert measure.value > plain.value
    assert measure.signature != plain.signature


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("effusions", "effusion", 1.0),
        ("enlarged heart", "Enlargement, heart", 1.0),
        ("lobes", "lobe", 1.0),
        ("was", "wa", 0.0),  # three letters stay as they are
        ("enlarged", "normal", 0.0),
        ("", "normal", 0.0),
    ],
)
def test_rouge_l_of_stems_by_hand(prediction: str, reference: str, expected: float) -> None:
    assert rouge_l([prediction], [reference], unit="stem").value == pytest.approx(expected)
