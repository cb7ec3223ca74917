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
PAIRS = 128
"""Of texts of like length, whose n-grams are compared at a time."""
PART = 5_000
"""Pairs of texts whose tokens are held at a time."""
KEPT = 20_000
"""Texts of which `Once` keeps what a function gave. Of more it would take gigabytes, and they are read again."""


class Once:
    """Applies functions to texts, each function once to each of the first `KEPT` texts; to be shared by metrics and
    systems."""

    def __init__(self) -> None:
        self._results: dict[Hashable, dict[str, object]] = defaultdict(dict)
        self._tokens: dict[Tokenize, _TokensOf] = {}

    def each(self, function: Callable[[str], T], texts: Iterable[str]) -> list[T]:
        """The function's value for each text."""
        return self._each(function, function, texts)

    def tokens(self, tokenize: Tokenize, texts: Iterable[str], cut: Tokenize = str.split) -> list[list[int]]:
        """The tokens of each text as numbers: equal tokens of a tokenizer have equal numbers.

        Reports are made of the same words, so a word is tokenized once.

        Args:
            tokenize: gives the tokens of a word.
            texts: of any number.
            cut: gives the words of a text, to be tokenized one by one; `whole` where what stands around them matters.
        """
        known = self._tokens.setdefault(tokenize, _TokensOf(tokenize))

        def number(text: str) -> list[int]:
            return list(itertools.chain.from_iterable(map(known.__getitem__, cut(text))))

        return self._each((tokenize, cut), number, texts)

    def token_pairs(
        self, tokenize: Tokenize, predictions: Sequence[str], references: Sequence[str], cut: Tokenize = str.split
    ) -> Iterator[tuple[list[list[int]], list[list[int]]]]:
        """`tokens` of predictions and references, of `PART` of both at a time."""
        for start in range(0, len(predictions), PART):
            part = slice(start, start + PART)
            yield self.tokens(tokenize, predictions[part], cut), self.tokens(tokenize, references[part], cut)

    def forget(self, texts: Iterable[str]) -> None:
        """Give up what is known of these texts."""
        gone = set(texts)
        tables: list[dict[str, Any]] = [*self._results.values(), *self._tokens.values()]
        for known in tables:
            for text in gone & known.keys():
                del known[text]

    def _each(self, key: Hashable, function: Callable[[str], T], texts: Iterable[str]) -> list[T]:
        known: dict[str, T] = self._results[key]  # type: ignore[assignment]
        found = []
        for text in texts:
            if text in known:
                found.append(known[text])
                continue
            found.append(function(text))
            if len(known) < KEPT:
                known[text] = found[-1]
        return found


class _TokensOf(dict[str, list[int]]):
    """Word -> its tokens as numbers, made when they are first asked for."""

    def __init__(self, tokenize: Tokenize) -> None:
        self._tokenize = tokenize
        self._numbers: dict[str, int] = defaultdict(itertools.count().__next__)

    def __missing__(self, word: str) -> list[int]:
        found = self[word] = [self._numbers[token] for token in self._tokenize(word)]
        return found


def whole(text: str) -> tuple[str]:
    """A text as a single word."""
    return (text,)


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
    parts = once.token_pairs(tokenizers[unit], predictions, references)
    scores = [rouge_l_f(a, b) for part in parts for a, b in zip(*part, strict=True)]
    stemmer = f"Porter of nltk {version('nltk')}, words of 4 letters and more" if unit == "stem" else "no"
    package = f"rouge-score {version('rouge-score')} rougeL F-measure|stemmer:{stemmer}|case:lower"
    if unit not in ("usual", "stem"):
        package = f"raddraft {version('raddraft')} rougeL F-measure|tok:{unit} NFC|stemmer:no|case:lower"
    signature = f"{package}|mean over reports"
    return mean_measure(scores, signature)


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
    tokenizers: dict[Unit, tuple[Tokenize, Tokenize]] = {
        "usual": (bleu_tokens, cut_13a),
        "unicode": (bleu_words, cut_intl),
        "char": (list, str.split),
    }
    tokenize, cut = tokenizers[unit]
    parts = once.token_pairs(tokenize, predictions, references, cut)
    statistics = np.concatenate([bleu_statistics(ours, theirs, max_order) for ours, theirs in parts])
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


def cut_intl(text: str) -> list[str]:
    """A text in words for `bleu_words`, with the blanks around them: its rules mind whether there is any."""
    words = text.rstrip().split()
    spaced = [f" {word} " for word in words]
    if words:
        spaced[-1] = spaced[-1][:-1]
        spaced[0] = spaced[0] if text[0].isspace() else spaced[0][1:]
    return spaced


@lru_cache(maxsize=1 << 16)
def bleu_words(text: str) -> list[str]:
    """sacrebleu's international tokens of a word of `cut_intl`."""
    return _tokenizer_intl()(text).split()


@cache
def _tokenizer_intl() -> Callable[[str], str]:
    from sacrebleu.tokenizers.tokenizer_intl import TokenizerV14International

    return TokenizerV14International()


def cut_13a(text: str) -> list[str]:
    """A text in words for `bleu_tokens`, whose rules look no further than the next character."""
    text = text.rstrip()
    if "<" in text:  # "<skipped>" is removed, which joins what stands around it
        return [text]
    return text.replace("-\n", "").split()


@lru_cache(maxsize=1 << 16)  # reports are made of the same words
def bleu_tokens(text: str) -> list[str]:
    """sacrebleu's 13a tokens of a word of `cut_13a`."""
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
    lengths = np.array([[len(text) for text in side] for side in (predictions, references)])  # [2, n]
    tokens = [np.fromiter(itertools.chain.from_iterable(side), np.int64) for side in (predictions, references)]
    starts = lengths.cumsum(1) - lengths
    matches = np.empty((lengths.shape[1], max_order))
    by_length = lengths.sum(0).argsort()
    for first in range(0, len(by_length), PAIRS):
        pairs = by_length[first : first + PAIRS]
        ours, theirs = (_pad(tokens[side], starts[side, pairs], lengths[side, pairs]) for side in range(2))
        matches[pairs] = _clipped_matches(ours, theirs, max_order)
    totals = [np.maximum(0, lengths[0] - order + 1) for order in range(1, max_order + 1)]
    return np.column_stack([*lengths, matches, *totals])


def _pad(tokens: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The tokens of texts in rows, counted from 1, and 0 after their ends: [texts, longest]."""
    place = np.arange(lengths.max(initial=0))
    inside = place < lengths[:, None]
    padded = np.zeros(inside.shape, np.int64)
    padded[inside] = tokens[(starts[:, None] + place)[inside]] + 1
    return padded


def _clipped_matches(ours: np.ndarray, theirs: np.ndarray, max_order: int) -> np.ndarray:
    """Common n-grams of pairs of texts as `_pad` gives them, each as often as both have it: [pairs, max_order].

    An n-gram is a number, even in a prediction and odd in a reference, so that a short sort brings equal ones together.
    """
    tokens = np.concatenate([ours, np.zeros_like(ours, shape=(len(ours), 1)), theirs], axis=1)
    odd = np.arange(tokens.shape[1]) > ours.shape[1]
    n_tokens = int(tokens.max()) + 1
    ngrams, n_ngrams, is_whole, found = tokens, n_tokens, tokens > 0, []
    for order in range(1, max_order + 1):
        if order > 1:
            if n_ngrams * n_tokens >= 2**62:
                known, ngrams = np.unique(ngrams, return_inverse=True)
                n_ngrams, ngrams = len(known), ngrams.reshape(is_whole.shape)
            ngrams = ngrams[:, :-1] * n_tokens + tokens[:, order - 1 :]
            is_whole = is_whole[:, :-1] & (tokens[:, order - 1 :] > 0)
            n_ngrams *= n_tokens
        keys = np.where(is_whole, 2 * ngrams + odd[order - 1 :], -1)
        keys = np.sort(keys.astype(np.int32) if n_ngrams < 2**30 else keys, axis=1)
        is_first = np.ones(keys.shape, bool)
        is_first[:, 1:] = keys[:, 1:] >> 1 != keys[:, :-1] >> 1
        starts = np.flatnonzero(is_first)
        in_reference = np.add.reduceat(keys.ravel() & 1, starts)
        both = np.minimum(in_reference, np.diff(starts, append=keys.size) - in_reference)
        found.append(np.bincount(starts // keys.shape[1], both, minlength=len(keys)))
    return np.stack(found, axis=1)


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
