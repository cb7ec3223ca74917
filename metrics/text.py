"""Word overlap: ROUGE-L as rouge-score computes it, BLEU-1 to 4 as sacrebleu does, both from statistics that add up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version

import numpy as np

from raddraft.stats import Measure, mean_measure


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> Measure:
    """Mean over reports of the ROUGE-L F-measure (Lin, 2004), equal to rouge-score with `use_stemmer=False`.

    Values are in [0, 1]; a report without words scores 0.
    """
    from rouge_score.tokenizers import DefaultTokenizer

    tokenize = DefaultTokenizer(use_stemmer=False).tokenize
    scores = [
        rouge_l_f(tokenize(prediction), tokenize(reference))
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    signature = f"rouge-score {version('rouge-score')} rougeL F-measure|stemmer:no|case:lower|mean over reports"
    return mean_measure(scores, signature)


def bleu(predictions: Sequence[str], references: Sequence[str], max_order: int = 4) -> dict[int, Measure]:
    """Corpus BLEU-1 to BLEU-`max_order` (Papineni et al., 2002), equal to sacrebleu with `smooth_method="none"`, / 100.

    Tokens are sacrebleu's 13a, case is kept. Values are in [0, 1].
    """
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    rows = [
        bleu_statistics(tokenize(prediction.rstrip()).split(), tokenize(reference.rstrip()).split(), max_order)
        for prediction, reference in zip(predictions, references, strict=True)
    ]
    statistics = np.array(rows, dtype=np.float64).reshape(len(rows), 2 + 2 * max_order)
    signature = f"sacrebleu {version('sacrebleu')}|nrefs:1|case:mixed|eff:no|tok:13a|smooth:none|corpus"
    return {
        order: Measure(statistics, lambda sums, order=order: _bleu_value(sums, order, max_order), signature)  # type: ignore[misc]
        for order in range(1, max_order + 1)
    }


def bleu_statistics(prediction: list[str], reference: list[str], max_order: int) -> list[int]:
    """Lengths of both, then for each order the clipped matches, then for each order the n-grams of the prediction."""
    matches: list[int] = []
    for order in range(1, max_order + 1):
        if matches and not matches[-1]:  # what shares no n-gram shares no longer one
            matches.append(0)
            continue
        ours, theirs = ngrams(prediction, order), ngrams(reference, order)
        matches.append(sum(min(ours[ngram], theirs[ngram]) for ngram in ours.keys() & theirs.keys()))
    totals = [max(0, len(prediction) - order + 1) for order in range(1, max_order + 1)]
    return [len(prediction), len(reference), *matches, *totals]


def ngrams(tokens: list[str], order: int) -> Counter[tuple[str, ...]]:
    """How often each sequence of `order` tokens occurs."""
    return Counter(zip(*(tokens[start:] for start in range(order)), strict=False))


def _bleu_value(sums: np.ndarray, order: int, max_order: int) -> np.ndarray:
    """BLEU of one order from summed statistics [r, 2 + 2 max_order]: geometric mean of precisions x brevity penalty."""
    ours, theirs = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + order], sums[:, 2 + max_order : 2 + max_order + order]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(matches / totals).mean(1)
        brevity = np.where(ours < theirs, np.exp(1 - theirs / ours), 1.0)
        value = brevity * np.exp(log_precision)
    return np.where((matches > 0).all(1), value, 0.0)


def rouge_l_f(prediction: list[str], reference: list[str], beta: float = 1.0) -> float:
    """ROUGE-L F of one pair of token lists, in [0, 1]; recall counts `beta` times as much as precision."""
    if not prediction or not reference:
        return 0.0
    common = _lcs_length(prediction, reference)
    precision, recall = common / len(prediction), common / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if common else 0.0


def _lcs_length(a: list[str], b: list[str]) -> int:
    """Length of the longest common subsequence, 64 cells and more at a time in the bits of an integer.

    Hyyrö, "Bit-parallel LCS-length computation revisited", 2004: zeros of `row` mark where the length rises.
    """
    positions: dict[str, int] = {}
    for index, token in enumerate(a):
        positions[token] = positions.get(token, 0) | 1 << index
    full = (1 << len(a)) - 1
    row = full
    for token in b:
        matches = row & positions.get(token, 0)
        row = (row + matches | row - matches) & full
    return len(a) - row.bit_count()
