"""Word overlap: ROUGE-L as rouge-score computes it, BLEU-1 to 4 as sacrebleu does, from statistics that add up.

Both also on words of any alphabet and on characters, for languages that the usual tokenizers break.
"""

from __future__ import annotations

import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from typing import Any, Literal, TypeVar

import numpy as np

from raddraft.errors import RadDraftError
from raddraft.stats import Measure, mean_measure

T = TypeVar("T")
Tokenize = Callable[[str], Iterable[str]]
Unit = Literal["usual", "unicode", "char"]
"""Tokens: those of the package that defines the metric, words of any alphabet, or characters."""


class Once:
    """Applies functions to texts, each function once to each text; to be shared by metrics and systems."""

    def __init__(self) -> None:
        self._results: dict[Hashable, dict[str, object]] = defaultdict(dict)
        self._numbers: dict[str, int] = defaultdict(itertools.count().__next__)

    def each(self, function: Callable[[str], T], texts: Iterable[str]) -> list[T]:
        """The function's value for each text."""
        return self._each(function, function, texts)

    def tokens(self, tokenize: Tokenize, texts: Iterable[str]) -> list[list[int]]:
        """The tokens of each text as numbers: equal tokens have equal numbers, whatever the tokenizer."""
        return self._each(tokenize, lambda text: [self._numbers[token] for token in tokenize(text)], texts)

    def _each(self, key: Hashable, function: Callable[[str], T], texts: Iterable[str]) -> list[T]:
        known: dict[str, T] = self._results[key]  # type: ignore[assignment]
        found = []
        for text in texts:
            if text not in known:
                known[text] = function(text)
            found.append(known[text])
        return found


def in_batches(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Each text once, at most `size` of like length at a time."""
    once = sorted(set(texts), key=lambda text: (len(text), text))
    for start in range(0, len(once), size):
        yield once[start : start + size]


def check_texts(predictions: Any, references: Any) -> tuple[list[str], list[str]]:
    """Predictions and references as lists of equally many texts.

    Raises:
        RadDraftError: what is no list of texts (a single text, nested lists, None, bytes), unequal numbers, or none.
    """
    ours, theirs = _list_texts(predictions, "predictions"), _list_texts(references, "references")
    if len(ours) != len(theirs):
        raise RadDraftError(f"{len(ours)} predictions and {len(theirs)} references: the numbers must be equal")
    if not ours:
        raise RadDraftError("Nothing to score: there is no prediction")
    return ours, theirs


def _list_texts(texts: Any, name: str) -> list[str]:
    if isinstance(texts, str | bytes | Mapping | set | frozenset) or not isinstance(texts, Iterable):
        raise RadDraftError(f"{name} must be a list with a text for each report, got {_short(texts)}")
    found = list(texts)
    for number, text in enumerate(found, 1):
        if not isinstance(text, str):
            hint = '"" is a blank one'
            if isinstance(text, bytes):
                hint = "decode it first"
            elif isinstance(text, Iterable):
                hint = "a report is scored against one reference, not against several"
            raise RadDraftError(f"{name}, item {number} of {len(found)}: expected a text, got {_short(text)}; {hint}")
    return found


def _short(value: Any) -> str:
    shown = repr(value)
    return f"the {type(value).__name__} {shown[:60]}{' …' if len(shown) > 60 else ''}"


def rouge_l(
    predictions: Sequence[str],
    references: Sequence[str],
    once: Once | None = None,
    unit: Unit | Literal["stem"] = "usual",
) -> Measure:
    """Mean over reports of the ROUGE-L F-measure (Lin, 2004), equal to rouge-score with `use_stemmer=False`.

    With the unit "stem" it is equal to rouge-score with `use_stemmer=True`. Values are in [0, 1]; a report without
    words scores 0. Raises RadDraftError as `check_texts`.
    """
    predictions, references = check_texts(predictions, references)
    once = once or Once()
    tokenizers = {"usual": rouge_tokens, "stem": rouge_stems, "unicode": unicode_words, "char": word_characters}
    ours, theirs = (once.tokens(tokenizers[unit], texts) for texts in (predictions, references))
    stemmer = f"Porter of nltk {version('nltk')}, words of 4 letters and more" if unit == "stem" else "no"
    package = f"rouge-score {version('rouge-score')} rougeL F-measure|stemmer:{stemmer}|case:lower"
    if unit not in ("usual", "stem"):
        package = f"raddraft {version('raddraft')} rougeL F-measure|tok:{unit} NFC|stemmer:no|case:lower"
    signature = f"{package}|mean over reports"
    return mean_measure([rouge_l_f(a, b) for a, b in zip(ours, theirs, strict=True)], signature)


def bleu(
    predictions: Sequence[str],
    references: Sequence[str],
    max_order: int = 4,
    once: Once | None = None,
    unit: Unit = "usual",
) -> dict[int, Measure]:
    """Corpus BLEU-1 to BLEU-`max_order` (Papineni et al., 2002), equal to sacrebleu with `smooth_method="none"`, / 100.

    Tokens are sacrebleu's 13a, or its `intl` or `char`; case is kept. Values are in [0, 1]. Raises RadDraftError as
    `check_texts`.
    """
    predictions, references = check_texts(predictions, references)
    once = once or Once()
    tokenize = {"usual": bleu_tokens, "unicode": bleu_words, "char": bleu_characters}[unit]
    statistics = bleu_statistics(once.tokens(tokenize, predictions), once.tokens(tokenize, references), max_order)
    kind = {"usual": "13a", "unicode": "intl", "char": "char"}[unit]
    signature = f"sacrebleu {version('sacrebleu')}|nrefs:1|case:mixed|eff:no|tok:{kind}|smooth:none|corpus"
    return {
        order: Measure(statistics, lambda sums, order=order: _bleu_value(sums, order, max_order), signature)  # type: ignore[misc]
        for order in range(1, max_order + 1)
    }


def rouge_tokens(text: str) -> list[str]:
    """rouge-score's lower-case words of a to z and 0 to 9."""
    from rouge_score.tokenize import tokenize  # not rouge_score.tokenizers, which imports all of nltk

    return tokenize(text, None)


def rouge_stems(text: str) -> list[str]:
    """The stems of `rouge_tokens` as rouge-score takes them: of words of four letters and more."""
    return [_stem(word) if len(word) > 3 else word for word in rouge_tokens(text)]


@lru_cache(maxsize=1 << 16)  # reports are made of the same words
def _stem(word: str) -> str:
    return _porter()(word)


@cache
def _porter() -> Callable[[str], str]:
    from nltk.stem.porter import PorterStemmer

    return PorterStemmer().stem


def unicode_words(text: str) -> list[str]:
    """Lower-case words of letters, marks and digits of any alphabet."""
    if text.isascii():
        return rouge_tokens(text)
    lower = unicodedata.normalize("NFC", text.lower())
    return "".join(letter if _in_words(letter) else " " for letter in lower).split()


@lru_cache(maxsize=1 << 16)
def _in_words(letter: str) -> bool:
    return unicodedata.category(letter)[0] in "LMN"


def word_characters(text: str) -> list[str]:
    """The characters of `unicode_words`."""
    return list("".join(unicode_words(text)))


def bleu_words(text: str) -> list[str]:
    """sacrebleu's international tokens."""
    return _tokenizer_intl()(text.rstrip()).split()


@cache
def _tokenizer_intl() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International

    return TokenizerV14International()


def bleu_characters(text: str) -> list[str]:
    """sacrebleu's characters; blanks do not count."""
    return list("".join(text.split()))


def bleu_tokens(text: str) -> list[str]:
    """sacrebleu's 13a tokens. Its rules look no further than the next character, so words can be split one by one."""
    text = text.rstrip()
    if "<" in text:  # its "<skipped>" is removed, which joins what stands around it
        return _split_13a(text)
    return list(itertools.chain.from_iterable(map(_split_13a, text.replace("-\n", "").split())))


@lru_cache(maxsize=1 << 16)  # reports are made of the same words
def _split_13a(text: str) -> list[str]:
    return _tokenizer_13a()(text).split()


@cache
def _tokenizer_13a() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def bleu_statistics(predictions: Sequence[list[int]], references: Sequence[list[int]], max_order: int) -> np.ndarray:
    """What BLEU sums over pairs of tokenized texts: [n, 2 + 2 * max_order].

    Lengths of prediction and reference, then for each order the clipped matches, then for each order the number of
    n-grams of the prediction.
    """
    n = len(predictions)
    lengths = np.array([len(text) for text in (*predictions, *references)], dtype=np.int64)
    tokens = np.fromiter(itertools.chain(*predictions, *references), np.int64, lengths.sum())
    text = np.repeat(np.arange(2 * n), lengths)  # of each token
    n_tokens = tokens.max(initial=0) + 1
    start, ngram = np.arange(len(tokens)), tokens  # of each n-gram: where it begins, and a number for what it says
    columns = [lengths[:n], lengths[n:]]
    for order in range(1, max_order + 1):
        if order > 1:
            inside = start + order - 1 < len(tokens)
            inside[inside] = text[start[inside] + order - 1] == text[start[inside]]
            start, ngram = start[inside], ngram[inside]
            _, ngram = np.unique(ngram * n_tokens + tokens[start + order - 1], return_inverse=True)
        ours = text[start] < n
        ngram_of_pair = ngram * n + text[start] % n
        (a, in_a), (b, in_b) = (np.unique(ngram_of_pair[side], return_counts=True) for side in (ours, ~ours))
        common, at_a, at_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
        columns.append(np.bincount(common % n, np.minimum(in_a[at_a], in_b[at_b]), minlength=n))
    columns += [np.maximum(0, lengths[:n] - order + 1) for order in range(1, max_order + 1)]
    return np.column_stack(columns).astype(np.float64)


def _bleu_value(sums: np.ndarray, order: int, max_order: int) -> np.ndarray:
    """BLEU of one order from summed statistics [r, 2 + 2 max_order]: geometric mean of precisions x brevity penalty."""
    ours, theirs = sums[:, 0], sums[:, 1]
    matches, totals = sums[:, 2 : 2 + order], sums[:, 2 + max_order : 2 + max_order + order]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(matches / totals).mean(1)
        brevity = np.where(ours < theirs, np.exp(1 - theirs / ours), 1.0)
        value = brevity * np.exp(log_precision)
    return np.where((matches > 0).all(1), value, 0.0)


def rouge_l_f(prediction: Sequence[Hashable], reference: Sequence[Hashable], beta: float = 1.0) -> float:
    """ROUGE-L F of one pair of token lists, in [0, 1]; recall counts `beta` times as much as precision."""
    from rapidfuzz.distance import LCSseq

    if not prediction or not reference:
        return 0.0
    common = LCSseq.similarity(prediction, reference)  # length of the longest common subsequence
    precision, recall = common / len(prediction), common / len(reference)
    return (1 + beta**2) * precision * recall / (recall + beta**2 * precision) if common else 0.0
