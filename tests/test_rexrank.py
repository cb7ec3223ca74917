"""ReXrank's scores against nltk, whose smoothed BLEU is that of fast-bleu, and against its formula by hand."""

from __future__ import annotations

import numpy as np
import pytest
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

from metrics.extras import radcliq_formula
from metrics.rexrank import V0_INTERCEPT, V0_MEAN, V0_SCALE, rexrank, rexrank_bleu, rexrank_words, single_blanks
from raddraft.errors import RadDraftError
from raddraft.stats import mean_measure

PAIRS = [
    ("The heart is normal.", "the heart is big. Lungs clear."),
    ("No pneumothorax.\nNo effusion", "No pneumothorax. No effusion"),
    ("Lungs  are clear", "lungs are clear"),
    ("size 1.5 cm", "size 1.5 cm"),
    ("", "lungs are clear"),
]


def test_words_are_split_at_blanks_and_full_stops_only() -> None:
    assert rexrank_words("The heart,  1.5 cm.\nNo") == ["the", "heart,", "1", ".5", "cm", ".\nno"]


def test_bleu_is_nltks_on_these_words() -> None:
    smooth = SmoothingFunction().method1
    theirs = [
        sentence_bleu([rexrank_words(report)], rexrank_words(draft), (0.5, 0.5), smooth) if draft else 0.0
        for draft, report in PAIRS
    ]
    found = rexrank_bleu(*zip(*PAIRS, strict=True))["rexrank_bleu_2"]
    assert found.per_study == pytest.approx(theirs, abs=1e-12)
    assert found.per_study[2] == pytest.approx(1.0), "blanks and capitals do not count"
    assert found.per_study[1] < 1.0, "a line break does"


def test_runs_of_blanks_are_one() -> None:
    assert single_blanks(["a   b\n c"]) == ["a b\n c"]


def test_board_by_hand() -> None:
    columns = np.stack([V0_MEAN, V0_MEAN + V0_SCALE, np.ones(4)], axis=1)
    radgraph, bertscore, semb, bleu = (mean_measure(column, "by hand") for column in columns)
    found = rexrank(radgraph, bertscore, semb.statistics[:, 0], bleu)
    v0 = found["rexrank_radcliq_v0"].per_study
    # One scale above the mean adds the weights. Two equal reports: 1.641667 - .731214 - 1.109861 - .427728 + .385003.
    assert v0[:2] == pytest.approx([1.641666667, 1.641666667 - 1.402921], abs=1e-6)
    assert v0[2] == pytest.approx(-0.242133, abs=1e-6)
    assert v0[0] == V0_INTERCEPT
    errors = radcliq_formula(*columns)
    assert found["rexrank_inverse_radcliq_v1"].value == pytest.approx(1 / errors.mean(), rel=1e-12)
    assert found["rexrank_radgraph"].value == pytest.approx(columns[0].mean())
    assert found["rexrank_semb"].bounds == (-1.0, 1.0)


def test_a_score_that_is_no_number_is_named() -> None:
    ones = mean_measure(np.ones(2), "by hand")
    with pytest.raises(RadDraftError, match="semb of report 2 is nan"):
        rexrank(ones, ones, np.array([1, np.nan]), ones)
