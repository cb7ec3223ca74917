"""What ReXrank ranks by, as its code (rajpurkarlab/CXR-Report-Metric, commit 9c9ecad) defines it.

    rexrank_bleu(predictions, references)

BLEU-2 by report, the mean of RadGraph's F1s of entities and relations, the cosine of CheXbert's embeddings, RadCliQ-v0,
and the inverse of RadCliQ-v1, which orders the board.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from metrics.extras import radcliq_formula, sentence_bleu
from metrics.text import Once
from raddraft.stats import UNBOUNDED, Measure, mean_measure

SOURCE = "CXR-Report-Metric 9c9ecad"
# The scaler and the linear model of RadCliQ-v0: normalizer.pkl and composite_metric_model.pkl of that repository.
V0_MEAN = np.array([0.5398376019082272, 0.6312549595000001, 0.7716797866672277, 0.4607372064809605])
V0_SCALE = np.array([0.3018344440559102, 0.22466950746141123, 0.24750333805236252, 0.30336670936092264])
V0_WEIGHTS = np.array([-0.4796252644863446, -0.6762170542369337, -0.46366575161751994, 0.2165861905287535])
V0_INTERCEPT = 1.641666666666666


def rexrank_words(text: str) -> list[str]:
    """Lower-case words between blanks, full stops by themselves; a line break is part of a word."""
    return [word for word in text.lower().replace(".", " .").split(" ") if word]


def rexrank_bleu(predictions: Sequence[str], references: Sequence[str], once: Once | None = None) -> dict[str, Measure]:
    """`rexrank_bleu_2`: BLEU-2 of each report as fast-bleu computes it, in [0, 1]."""
    bleu = sentence_bleu(predictions, references, 2, once, rexrank_words)["nltk_sentence_bleu_2"]
    signature = f"{SOURCE} BLEU-2|smooth:method1 epsilon 0.1|tok:blanks, full stops|case:lower|mean over reports"
    return {"rexrank_bleu_2": mean_measure(bleu.statistics[:, 0], signature)}


def single_blanks(texts: Sequence[str]) -> list[str]:
    """Texts as its BERTScore reads them: a run of blanks is one."""
    return [re.sub(" +", " ", text) for text in texts]


def rexrank(radgraph: Measure, bertscore: Measure, semb: np.ndarray, bleu: Measure) -> dict[str, Measure]:
    """`rexrank_radgraph`, `rexrank_semb`, `rexrank_radcliq_v0` and `rexrank_inverse_radcliq_v1`.

    RadCliQ-v0 is the number of errors that a radiologist is predicted to mark, the mean over reports; lower is better.
    The inverse of RadCliQ-v1 is that of its mean over reports: more is better as long as the mean is above 0, and a
    board of drafts good enough for a mean below 0 has no order.

    Args:
        radgraph: `extras.radgraph_combined` of each report by the model `radgraph`.
        bertscore: `extras.bertscore` of `single_blanks`.
        semb: `extras.cosine_similarities` of CheXbert [n].
        bleu: as from `rexrank_bleu`.

    Raises:
        RadDraftError: a score that is not finite, with its name and place.
    """
    four = [one.statistics[:, 0] for one in (radgraph, bertscore)] + [semb, bleu.statistics[:, 0]]
    errors = radcliq_formula(*four)
    v0 = (np.column_stack(four) - V0_MEAN) / V0_SCALE @ V0_WEIGHTS + V0_INTERCEPT
    inputs = f"of radgraph ({radgraph.signature}), bertscore ({bertscore.signature}), CheXbert cosine, {bleu.signature}"
    statistics = np.column_stack([np.ones(len(errors)), errors])
    return {
        "rexrank_radgraph": mean_measure(four[0], f"{SOURCE}|{radgraph.signature}|mean over reports"),
        "rexrank_semb": mean_measure(semb, f"{SOURCE}|CheXbert cosine|mean over reports", (-1.0, 1.0)),
        "rexrank_radcliq_v0": mean_measure(v0, f"{SOURCE} RadCliQ-v0|{inputs}|mean over reports", UNBOUNDED),
        "rexrank_inverse_radcliq_v1": Measure(
            statistics, _inverse, f"{SOURCE} 1 / mean RadCliQ-v1|{inputs}", bounds=UNBOUNDED
        ),
    }


def _inverse(sums: np.ndarray) -> np.ndarray:
    """n / sum [r] of sums [r, 2]; NaN where the sum is 0."""
    n, total = sums.T
    return np.divide(n, total, out=np.full_like(n, np.nan), where=total != 0)
