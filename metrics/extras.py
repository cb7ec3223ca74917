"""Scores that other papers report: COCO caption scores, sentence BLEU, METEOR, BERTScore and RadCliQ."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metrics.networks import load_network
from metrics.text import Once, bleu_statistics, check_texts, in_batches, rouge_l_f, whole
from metrics.weights import digest
from raddraft.errors import CannotRun, RadDraftError
from raddraft.stats import UNBOUNDED, Measure, mean_measure

if TYPE_CHECKING:
    from torch import Tensor

    from metrics.chexbert import CheXbert

    # Unit vectors of a text's word pieces [L, D], and which of them are words and not special tokens [L].
    Embedded = tuple[Tensor, Tensor]

COCO = ("coco_bleu_1", "coco_bleu_2", "coco_bleu_3", "coco_bleu_4", "coco_rouge_l", "coco_cider")
COCO_ORDER = 4
# What the COCO script adds to numerators and denominators so that it never divides by zero.
COCO_TINY, COCO_SMALL = 1e-15, 1e-9
COCO_BETA = 1.2
CIDER_SIGMA = 6.0
NLTK_EPSILON = 0.1

BERTSCORE_LAYER = 5
# F of random sentence pairs at layer 5 of distilroberta-base: rescale_baseline/en/distilroberta-base.tsv, bert-score.
BERTSCORE_BASELINE = 0.8473319

# RadCliQ-v1 (Yu et al., Patterns 2023): rajpurkarlab/CXR-Report-Metric, radcliq-v1.pkl.
RADCLIQ_INPUTS = ("radgraph", "bertscore", "semb", "bleu")
RADCLIQ_MEAN = np.array([0.53792312, 0.61757256, 0.76479421, 0.44738335])
RADCLIQ_SCALE = np.array([0.30282584, 0.22430938, 0.25394391, 0.29892717])
RADCLIQ_WEIGHTS = np.array([-3.77083683e-01, -3.70300100e-01, -2.52616218e-01, 4.31504841e-12])
RADCLIQ_INTERCEPT = 2.46655256e-10


def coco(predictions: Sequence[str], references: Sequence[str], once: Once | None = None) -> dict[str, Measure]:
    """`coco_bleu_1` to `_4`, `coco_rouge_l`, `coco_cider`, equal to pycocoevalcap 1.2 on the text as it is.

    This is how R2Gen and its successors score: words are separated by white space, case and punctuation are kept, and
    the PTB tokenizer is not used. BLEU and ROUGE-L are in [0, 1], CIDEr (Vedantam et al., 2015) in [0, 10]. CIDEr
    weighs n-grams by their document frequency in `references`, so it depends on the whole set, and is 0 on one report.
    """
    predictions, references = check_texts(predictions, references)
    once = once or Once()
    base = f"raddraft {version('raddraft')}, as pycocoevalcap 1.2|tok:blanks|case:mixed|nrefs:1"
    statistics, tokens = [], []
    for ours, theirs in once.token_pairs(str.split, predictions, references):
        statistics.append(bleu_statistics(ours, theirs, COCO_ORDER))
        tokens.append(_Tokens.of(ours, theirs))
    bleu_signature = f"{base}|smooth:+{COCO_TINY:g}/+{COCO_SMALL:g}|corpus"
    whole_statistics = np.concatenate(statistics)
    measures = {
        f"coco_bleu_{order}": Measure(whole_statistics, partial(_coco_bleu, order), bleu_signature)
        for order in range(1, COCO_ORDER + 1)
    }
    spaced = once.token_pairs(_split_at_spaces, predictions, references, whole)
    rouge = [rouge_l_f(a, b, COCO_BETA) for part in spaced for a, b in zip(*part, strict=True)]
    measures["coco_rouge_l"] = mean_measure(rouge, f"{base}|beta:{COCO_BETA}|mean over reports")
    cider_choices = f"n-grams:1-{COCO_ORDER}|sigma:{CIDER_SIGMA:g}|mean over reports"
    fixed = "document frequencies: of these references, kept fixed in the interval"
    measures["coco_cider"] = mean_measure(_cider(tokens), f"{base}|{cider_choices}|{fixed}", (0.0, math.inf))
    return measures


def _split_at_spaces(text: str) -> list[str]:
    """Unlike `split()`: for ROUGE the COCO script counts the empty word between two blanks, and in a blank text."""
    return text.split(" ")


def _coco_bleu(order: int, sums: np.ndarray) -> np.ndarray:
    """BLEU of one order [r] from sums of `bleu_statistics` [r, 10]."""
    matches, totals = sums[:, 2 : 2 + order], sums[:, 2 + COCO_ORDER : 2 + COCO_ORDER + order]
    precision = ((matches + COCO_TINY) / (totals + COCO_SMALL)).prod(1) ** (1 / order)
    ratio = (sums[:, 0] + COCO_TINY) / (sums[:, 1] + COCO_SMALL)
    return precision * np.exp(np.minimum(0.0, 1 - 1 / ratio))


@dataclass
class _Tokens:
    """Pairs of tokenized reports: all predictions, then their references."""

    tokens: np.ndarray
    """One text after the other [t]."""
    text: np.ndarray
    """Number of the text of each token [t]."""
    ends: np.ndarray
    """Where each text ends [2 pairs]."""
    ngrams: np.ndarray
    """A number for what the n-gram says that begins at each token [t]; of order 0 there is one only."""

    @classmethod
    def of(cls, predictions: Sequence[list[int]], references: Sequence[list[int]]) -> _Tokens:
        lengths = np.array([len(text) for text in (*predictions, *references)])
        tokens = np.fromiter(itertools.chain.from_iterable((*predictions, *references)), np.int32, lengths.sum())
        text = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
        return cls(tokens, text, lengths.cumsum(), np.zeros(len(tokens), np.int32))

    @property
    def pairs(self) -> int:
        return len(self.ends) // 2

    def whole(self, order: int) -> np.ndarray:
        """Where an n-gram begins that does not reach beyond its text."""
        return np.flatnonzero(np.arange(len(self.tokens)) + order <= self.ends[self.text])

    def keys(self, order: int, n_tokens: int) -> np.ndarray:
        """Numbers of the n-grams at `whole`, made of that of one token less, and the last token."""
        start = self.whole(order)
        return self.ngrams[start] * np.int64(n_tokens) + self.tokens[start + order - 1]


def _cider(parts: Sequence[_Tokens]) -> list[float]:
    """CIDEr-D of each pair of tokenized reports, [0, 10]; the names of the COCO script leave out the D."""
    n = sum(part.pairs for part in parts)
    n_tokens = 1 + max(int(part.tokens.max(initial=0)) for part in parts)
    logs = np.array([math.log(max(1, count)) for count in range(n + 1)])
    cosines = [np.zeros(part.pairs) for part in parts]
    for order in range(1, COCO_ORDER + 1):
        said = []  # by each part
        for part in parts:
            found, part.ngrams[part.whole(order)] = np.unique(part.keys(order, n_tokens), return_inverse=True)
            said.append(found)
        known = _distinct(np.concatenate(said))
        frequency = np.zeros(len(known), np.int64)  # how many references have it
        for part, found in zip(parts, said, strict=True):
            start = part.whole(order)
            part.ngrams[start] = np.searchsorted(known, found)[part.ngrams[start]]
            start = start[part.text[start] >= part.pairs]
            once_each = _distinct(part.text[start] * np.int64(len(known)) + part.ngrams[start])
            frequency += np.bincount(once_each % max(1, len(known)), minlength=len(known))
        weights = math.log(n) - logs[frequency]
        for part, found in zip(parts, cosines, strict=True):
            start = part.whole(order)
            found += _clipped_cosines(part.text[start], part.ngrams[start], part.pairs, weights)
    scores: list[float] = []
    for part, found in zip(parts, cosines, strict=True):
        bigrams = np.maximum(0, np.diff(part.ends, prepend=0) - 1)  # the script takes these for the length
        longer = (bigrams[: part.pairs] - bigrams[part.pairs :]).tolist()
        penalties = [math.exp(-(difference**2) / (2 * CIDER_SIGMA**2)) for difference in longer]
        scores += (10 * found / COCO_ORDER * np.array(penalties)).tolist()
    return scores


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Numbers from 0, each once and in order; np.unique hashes them first, which takes long where most differ."""
    in_order = np.sort(numbers)
    return in_order[np.diff(in_order, prepend=-1) > 0]


def _clipped_cosines(text: np.ndarray, ngram: np.ndarray, n: int, weight: np.ndarray) -> np.ndarray:
    """Cosines of n predictions and their references, in which an n-gram of a prediction weighs no more than it does in
    the reference [n]; 0 if either has no weight.

    Args:
        text: of each n-gram; predictions are numbered from 0, references from n.
        ngram: a number for what it says.
        n: pairs.
        weight: of each n-gram by its number; the less the more references have it.
    """
    n_ngrams = max(1, len(weight))
    found, first, counts = np.unique(text * np.int64(n_ngrams) + ngram, return_index=True, return_counts=True)
    text, ngram = found // n_ngrams, found % n_ngrams
    weights = counts * weight[ngram]
    ends = np.searchsorted(text, np.arange(2 * n + 1)).tolist()
    norms = np.array([math.hypot(*weights[slice(*part)].tolist()) for part in itertools.pairwise(ends)])
    in_order = np.argsort(first[: ends[n]])  # products add up as the n-grams follow each other
    wanted = found[in_order] + n * n_ngrams
    place = np.minimum(np.searchsorted(found, wanted), len(found) - 1)
    theirs = np.where(found[place] == wanted, weights[place], 0.0)
    products = np.bincount(text[in_order], np.minimum(weights[in_order], theirs) * theirs, minlength=n)
    scale = norms[:n] * norms[n:]
    return np.divide(products, scale, out=np.zeros(n), where=scale > 0)


def sentence_bleu(
    predictions: Sequence[str],
    references: Sequence[str],
    order: int = 4,
    once: Once | None = None,
    tokenize: Callable[[str], list[str]] = str.split,
) -> dict[str, Measure]:
    """`nltk_sentence_bleu_{order}`: BLEU of each report as nltk with its `SmoothingFunction().method1`, in [0, 1].

    By default words are separated by white space, and case is kept. A report that shares no word with its reference
    scores 0. The n-grams are counted here, 40 times as fast.
    """
    predictions, references = check_texts(predictions, references)
    once = once or Once()
    cut = str.split if tokenize is str.split else whole
    parts = once.token_pairs(tokenize, predictions, references, cut)
    counts = np.concatenate([bleu_statistics(ours, theirs, order) for ours, theirs in parts])

    def score(ours: float, theirs: float, *ngrams: float) -> float:
        if not ngrams[0]:
            return 0.0
        precisions = [(ngrams[i] or NLTK_EPSILON) / max(1, ngrams[order + i]) for i in range(order)]
        penalty = 1.0 if ours > theirs else math.exp(1 - theirs / ours)
        return penalty * math.exp(math.fsum(1 / order * math.log(one) for one in precisions))

    scores = [score(*row) for row in counts.tolist()]
    choices = "sentence_bleu|smooth:method1 epsilon 0.1|tok:blanks|case:mixed|mean over reports"
    return {f"nltk_sentence_bleu_{order}": mean_measure(scores, f"nltk {version('nltk')} {choices}")}


def meteor(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Measure]:
    """`meteor`: METEOR of each report (Banerjee and Lavie, 2005) as nltk computes it, in [0, 1].

    Words are separated by white space, in lower case; they match as they are, by Porter stem, or where the stem of
    one is among the WordNet synonyms of the other's (so "big" does not find "large", whose stem is "larg").
    It is not METEOR 1.5, the Java program behind COCO's and R2Gen's column: those numbers are not comparable.

    Raises:
        CannotRun: nltk finds no WordNet; nothing is downloaded here.
    """
    import nltk
    from nltk.corpus import wordnet
    from nltk.translate.meteor_score import meteor_score

    predictions, references = check_texts(predictions, references)
    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:
        where = "found in no folder of nltk.data.path"
        raise CannotRun(f"meteor needs nltk's WordNet data, {where}: python -m nltk.downloader wordnet") from None
    pairs = zip(predictions, references, strict=True)
    scores = [float(meteor_score([theirs.split()], ours.split())) for ours, theirs in pairs]
    choices = "alpha:0.9|beta:3|gamma:0.5|tok:blanks|case:lower|not COCO's METEOR 1.5|mean over reports"
    signature = f"nltk {version('nltk')} METEOR|WordNet {wordnet.get_version()}|{choices}"
    return {"meteor": mean_measure(scores, signature)}


def bertscore(
    predictions: Sequence[str], references: Sequence[str], model: Path, device: str | None = None, batch_size: int = 32
) -> dict[str, Measure]:
    """`bertscore_f1`: BERTScore F1 of each report (Zhang et al., 2020), layer 5 of distilroberta-base, rescaled.

    Equal to bert-score 0.3.13 with `lang="en"`, `rescale_with_baseline=True` and no idf, as it was on transformers 4;
    on 5, that package runs but loses the blank before the first word, and fails on blank texts. 1 is identity, 0 is
    what two random sentences have; values below 0 occur. A blank text on either side gives 0 before rescaling, which
    is -5.55 after it. Texts are cut at 512 word pieces.

    Args:
        predictions, references: one text a report, in the same order.
        model: local folder with distilroberta-base, its weights and tokenizer.
        device: of torch; by default a GPU if there is one.
        batch_size: pairs encoded at a time; changes the speed, not the scores.

    Raises:
        CannotRun: there is no model in the folder, one of fewer than 5 layers, or one whose weights are incomplete.
    """
    predictions, references = check_texts(predictions, references)
    encode = _word_piece_encoder(Path(model), device)
    pairs = [(ours.strip(), theirs.strip()) for ours, theirs in zip(predictions, references, strict=True)]
    by_length = sorted(set(pairs), key=lambda pair: len(pair[0]) + len(pair[1]))
    found: dict[tuple[str, str], float] = {}
    for start in range(0, len(by_length), batch_size):
        batch = by_length[start : start + batch_size]
        embedded = encode([ours for ours, _ in batch] + [theirs for _, theirs in batch])
        for pair, ours, theirs in zip(batch, embedded[: len(batch)], embedded[len(batch) :], strict=True):
            found[pair] = (_matched_f1(ours, theirs) - BERTSCORE_BASELINE) / (1 - BERTSCORE_BASELINE)
    choices = f"layer:{BERTSCORE_LAYER}|idf:no|rescaled:en F {BERTSCORE_BASELINE}|mean over reports"
    implementation = f"raddraft {version('raddraft')}, as bert-score 0.3.13 F1"
    signature = f"{implementation}|distilroberta-base sha256:{digest(model)[:12]}|{choices}"
    return {"bertscore_f1": mean_measure([found[pair] for pair in pairs], signature, UNBOUNDED)}


def _word_piece_encoder(folder: Path, device: str | None) -> Callable[[list[str]], list[Embedded]]:
    """A function from stripped texts to their `Embedded`."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    network, device = load_network(AutoModel, folder, "bertscore", device, add_pooling_layer=False)
    config = network.config
    if config.num_hidden_layers < BERTSCORE_LAYER:
        needed = f"bertscore takes layer {BERTSCORE_LAYER} of distilroberta-base"
        raise CannotRun(f"{needed}; the model in {folder} has {config.num_hidden_layers}")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    # RoBERTa counts positions from 2; a folder without tokenizer_config.json states no limit.
    longest = min(tokenizer.model_max_length, config.max_position_embeddings - 2)
    special = torch.tensor([tokenizer.cls_token_id, tokenizer.sep_token_id])

    @torch.inference_mode()
    def encode(texts: list[str]) -> list[Embedded]:
        # bert-score starts every text with a blank, so that the first word has the word piece it has elsewhere.
        spaced = [f" {text}" if text else "" for text in texts]
        inputs = tokenizer(spaced, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        output = network(input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        states = output.hidden_states[BERTSCORE_LAYER]  # [B, L, D]
        units = torch.nn.functional.normalize(states.float(), dim=-1).cpu()
        words = ~torch.isin(ids, special)
        return [(units[i, mask[i]], words[i, mask[i]]) for i in range(len(texts))]

    return encode


def _matched_f1(ours: Embedded, theirs: Embedded) -> float:
    """F1 of greedy matching: special tokens may be matched, but only words count; 0 where one side has no word."""
    (our_units, our_words), (their_units, their_words) = ours, theirs
    if not our_words.any() or not their_words.any():
        return 0.0
    similarity = our_units @ their_units.T
    precision = similarity.amax(1)[our_words].mean().item()
    recall = similarity.amax(0)[their_words].mean().item()
    return 2 * precision * recall / (precision + recall)


def radcliq_v1(
    radgraph: Measure, bertscore: Measure, semb: np.ndarray, predictions: Sequence[str], references: Sequence[str]
) -> dict[str, Measure]:
    """`radcliq_v1`: errors of each report as predicted from four scores (Yu et al., Patterns 2023); lower is better.

    Values are standardized: 0 is the mean of the reports the formula was fitted on, about -1.44 a perfect report. The
    value is the mean over reports, not its inverse as in some tables.

    Args:
        radgraph: the authors' is `radgraph_combined` of the model `radgraph`.
        bertscore: as from `bertscore`; the authors first replace runs of blanks by one.
        semb: `cosine_similarities` of CheXbert [n].
        predictions, references: for sentence BLEU-2, whose weight of 4e-12 is negligible.

    Raises:
        RadDraftError: a score that is not finite, with its name and place.
    """
    bleu = sentence_bleu(predictions, references, 2)["nltk_sentence_bleu_2"]
    scores = radcliq_formula(radgraph.statistics[:, 0], bertscore.statistics[:, 0], semb, bleu.statistics[:, 0])
    inputs = f"radgraph ({radgraph.signature}), bertscore ({bertscore.signature}), CheXbert cosine, {bleu.signature}"
    formula = "RadCliQ-v1, coefficients of CXR-Report-Metric|lower is better"
    return {"radcliq_v1": mean_measure(scores, f"{formula}|of {inputs}|mean over reports", UNBOUNDED)}


def radcliq_formula(radgraph: np.ndarray, bertscore: np.ndarray, semb: np.ndarray, bleu: np.ndarray) -> np.ndarray:
    """RadCliQ-v1 [n] from four per-study scores [n] each. Raises RadDraftError if one is not finite."""
    columns = np.column_stack([radgraph, bertscore, semb, bleu]).astype(np.float64)  # [n, 4]
    for row, column in np.argwhere(~np.isfinite(columns)):
        raise RadDraftError(f"radcliq_v1: {RADCLIQ_INPUTS[column]} of report {row + 1} is {columns[row, column]}")
    return (columns - RADCLIQ_MEAN) / RADCLIQ_SCALE @ RADCLIQ_WEIGHTS + RADCLIQ_INTERCEPT


def radgraph_combined(prediction: dict[str, Any], reference: dict[str, Any]) -> float:
    """RadCliQ's RadGraph score, in [0, 1]: the mean of the F1s of entities and of relations, each compared as sets.

    Args:
        prediction, reference: annotations with "entities": {id: {"tokens", "label", "relations": [(name, id)]}}.
    """
    f1s = []
    for ours, theirs in zip(_facts(prediction), _facts(reference), strict=True):
        f1s.append(2 * len(ours & theirs) / (len(ours) + len(theirs)) if ours or theirs else 0.0)
    return sum(f1s) / 2


def _facts(annotation: dict[str, Any]) -> tuple[set[tuple[str, ...]], set[tuple[str, ...]]]:
    """Entities and relations."""
    named = {key: (entity["tokens"], entity["label"]) for key, entity in annotation["entities"].items()}
    relations: set[tuple[str, ...]] = {
        (*named[key], name, *named[target])
        for key, entity in annotation["entities"].items()
        for name, target in entity["relations"]
    }
    return set(named.values()), relations


def cosine_similarities(model: CheXbert, predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Cosine of the embeddings of each prediction and its reference [n], in [-1, 1]."""
    units: dict[str, np.ndarray] = {}
    for batch in in_batches([*predictions, *references], model.batch_size):
        vectors = model.embed(batch).double().numpy()
        units |= zip(batch, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True)
    return np.array([units[ours] @ units[theirs] for ours, theirs in zip(predictions, references, strict=True)])
