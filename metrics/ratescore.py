"""RaTEScore (Zhao et al., EMNLP 2024, arXiv 2406.16845): do two reports name alike things, and the same of them denied?

    model = RaTEScore(Path("RaTE-NER-Deberta"), Path("BioLORD-2023-C"))
    ratescore(predictions, references, model)["ratescore"].value

Entities are read by a DeBERTa, and compared by the embeddings of BioLORD, so that synonyms match. What an entity counts
depends on its type and on that of its match. The package RaTEScore 0.6.0 needs a GPU and medspaCy, hence an old NumPy;
this is its arithmetic on plain transformers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from metrics.networks import load_network
from metrics.text import check_texts, in_batches
from metrics.weights import digest
from raddraft.errors import CannotRun
from raddraft.stats import Measure, mean_measure

if TYPE_CHECKING:
    from torch import Tensor

TYPES = ("ABNORMALITY", "ANATOMY", "DISEASE", "NON-ABNORMALITY", "NON-DISEASE")
# What a match counts, by the type of the entity (row) and of its match (column): "long", the package's default matrix.
AFFINITY = np.array(
    [
        [0.4276119164393705, 0.6240929990607657, 0.0034478181112993847, 0.5431049700217344, 0.27005425386213877],
        [0.7487824274337533, 0.2856134859160784, 0.4592143222158069, 0.02097055139911715, 0.00013736314126696204],
        [0.8396510075734789, 0.9950209388542061, 0.8460555030578727, 0.9820689020512646, 0.3789136708096537],
        [0.16546764653692908, 0.018670610691852826, 0.719397354576018, 0.0009357166071730684, 0.0927333564267591],
        [0.7759420231214385, 0.1839139293714062, 0.10073046076318157, 0.03860183811876373, 0.34065681486566446],
    ]
)
DENIED = 0.8716553966489615
"""What is left of a match between what is there and what is not."""
_IS_DENIED, _ANATOMY = np.array([kind.startswith("NON-") for kind in TYPES]), TYPES.index("ANATOMY")
NO_ENTITY = 0.5
"""Score of a pair in which a side has no entity."""
ENTITY_LENGTH, SENTENCE_LENGTH = 30, 512
"""In word pieces."""

# Ends of sentences: a full stop and a blank, but not after the "2." of a list. The package asks medspaCy's PyRuSH,
# which also takes "CT. No …" and "limits.. No …" for one sentence; 97.8 % of 2,531 texts of IU X-ray are split alike.
_BETWEEN_SENTENCES = re.compile(r"(?<=[.!?])(?<![.!?]\s\d\.)\s+|\n+")

Entity = tuple[str, int]
"""Words, and the number of their type in TYPES."""


class RaTEScore:
    """The two networks.

    Args:
        ner: folder of Angelakeke/RaTE-NER-Deberta.
        synonyms: folder of FremyCompany/BioLORD-2023-C.
        batch_size: sentences at a time; changes the speed, not the scores.
        device: of torch; by default a GPU if there is one.

    Raises:
        CannotRun: no such model in a folder, incomplete weights, or labels that are not RaTEScore's.
    """

    def __init__(self, ner: Path, synonyms: Path, batch_size: int = 32, device: str | None = None) -> None:
        from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer

        self.batch_size = batch_size
        self._ner, self._device = load_network(AutoModelForTokenClassification, ner, "ratescore", device)
        self._synonyms, _ = load_network(AutoModel, synonyms, "ratescore", device)
        self._ner_tokenizer, self._tokenizer = (
            AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            for folder in (ner, synonyms)
        )
        self._labels: list[str] = [label for _, label in sorted(self._ner.config.id2label.items())]
        for label in self._labels:
            if label != "O" and not (label[:2] in ("B-", "I-") and label[2:] in TYPES):
                raise CannotRun(
                    f"ratescore: {ner} has the label {label!r}; expected O, B- or I- and {', '.join(TYPES)}"
                )
        self.sha256 = (digest(ner), digest(synonyms))

    def entities(self, sentences: Sequence[str]) -> dict[str, list[Entity]]:
        """Each sentence and its entities."""
        import torch

        found = {}
        tokenizer = self._ner_tokenizer
        for batch in in_batches(sentences, self.batch_size):
            options: dict[str, Any] = {"truncation": True, "max_length": SENTENCE_LENGTH, "padding": True}
            inputs = tokenizer(batch, **options, return_tensors="pt").to(self._device)
            with torch.inference_mode():
                classes = self._ner(**inputs).logits.argmax(2).tolist()
            lengths = inputs["attention_mask"].sum(1).tolist()
            for sentence, ids, length, row in zip(batch, inputs["input_ids"].tolist(), lengths, classes, strict=True):
                pieces: Any = tokenizer.convert_ids_to_tokens(ids[:length])
                spans = find_spans(pieces, [self._labels[number] for number in row[:length]])
                found[sentence] = [
                    (tokenizer.convert_tokens_to_string(pieces[start : end + 1]), TYPES.index(kind))
                    for start, end, kind in spans
                ]
        return found

    def embed(self, words: Sequence[str]) -> Tensor:
        """The last hidden state of [CLS] of each entity's words, scaled to length 1, [n, D] on the CPU.

        The entities of a report are one batch, as in the package: where words stand there twice, with two types, the
        last digits tell which of them is the nearest.
        """
        import torch

        options: dict[str, Any] = {"truncation": True, "max_length": ENTITY_LENGTH, "padding": True}
        inputs = self._tokenizer(list(words), **options, return_tensors="pt").to(self._device)
        with torch.inference_mode():
            vectors = self._synonyms(**inputs).last_hidden_state[:, 0].cpu()
        return torch.nn.functional.normalize(vectors, dim=1)


def ratescore(predictions: Sequence[str], references: Sequence[str], model: RaTEScore) -> dict[str, Measure]:
    """`ratescore`: RaTEScore of each report, [0, 1] in practice; equal to RaTEScore 0.6.0 on the same sentences.

    A pair in which a side has no entity scores 0.5, also where that side is blank (the package shifts all pairs that
    follow a blank report).
    """
    predictions, references = check_texts(predictions, references)
    sentences = {text: split_sentences(text) for text in {*predictions, *references}}
    entities_of = model.entities([one for found in sentences.values() for one in found])
    entities = {text: [entity for one in found for entity in entities_of[one]] for text, found in sentences.items()}
    read = {
        text: (model.embed([words for words, _ in found]), np.array([kind for _, kind in found]))
        for text, found in entities.items()
        if found
    }

    def f1(ours: str, theirs: str) -> float:
        if ours not in read or theirs not in read:
            return NO_ENTITY
        precision, recall = _matched(*read[ours], *read[theirs]), _matched(*read[theirs], *read[ours])
        return 2 * precision * recall / (precision + recall) if precision + recall else 0.0

    scores = [f1(ours, theirs) for ours, theirs in zip(predictions, references, strict=True)]
    ner, synonyms = model.sha256
    models = f"NER sha256:{ner[:12]}|synonyms sha256:{synonyms[:12]}"
    choices = "matrix:long|sentences: at full stops|no entities:0.5|mean over reports"
    signature = f"raddraft {version('raddraft')}, as RaTEScore 0.6.0|{models}|{choices}"
    return {"ratescore": mean_measure(scores, signature, (-1.0, 1.0))}


def _matched(vectors: Tensor, types: np.ndarray, their_vectors: Tensor, their_types: np.ndarray) -> float:
    """Weighted mean over entities [n, D] of the cosine to the nearest one of the other report [m, D]."""
    best = [(their_vectors @ vector).topk(1) for vector in vectors]
    cosines = np.array([value.item() for value, _ in best])
    nearest = their_types[[index.item() for _, index in best]]
    weights = AFFINITY[types, nearest]
    opposed = (_IS_DENIED[types] != _IS_DENIED[nearest]) & (types != _ANATOMY) & (nearest != _ANATOMY)
    return float((cosines * weights * np.where(opposed, DENIED, 1.0)).sum() / weights.sum())


def split_sentences(text: str) -> list[str]:
    """Sentences of three letters and more."""
    return [one.strip() for one in _BETWEEN_SENTENCES.split(text) if len(one.strip()) >= 3]


def find_spans(pieces: Sequence[str], labels: Sequence[str]) -> list[tuple[int, int, str]]:
    """Entities as (first piece, last piece, type), as RaTEScore 0.6.0 reads the labels of a sentence's word pieces.

    Args:
        pieces: word pieces with [CLS] and [SEP].
        labels: O, B-TYPE or I-TYPE of each; those of [CLS] and [SEP] only tell whether an entity goes on.
    """
    spans: list[tuple[int, int, str]] = []
    start, kind, closed = None, "", False
    for i, (piece, (label, following)) in enumerate(zip(pieces, pairwise(labels), strict=False)):
        if piece in ("[CLS]", "[SEP]") or label == "O":
            continue
        if label.startswith("B-"):
            start, kind = i, label[2:]
        if following.startswith("I-"):
            continue
        if start is not None:
            spans.append((start, i, kind))
        # Before another entity the package begins a span that only a following B- or the end of the sentence closes.
        closed = following.startswith("B-")
        start, kind = (i, label[2:]) if closed else (None, "")
    if start is not None and not closed:
        spans.append((start, len(pieces) - 2, kind))
    return spans
