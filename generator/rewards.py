"""What drafts are worth to a reward stage: metrics of single reports against their references, and what to watch.

    rewards = Rewards(RewardConfig(metrics={"rouge_l": 1.0, "rule_macro_f1_14": 1.0}), references, {})
    scored = rewards(["s1"], [["The heart is enlarged.", "The lungs are clear."]], rewards.first_counts())
    scored.values  # [2 metrics, 1 study, 2 drafts]

A value is that of `raddraft score` for the report by itself, and higher is better: radcliq_v1 is taken negative. A
blank draft is worth what the metric gives it, but at most 0: labelers take a blank text for a normal report. Besides

    sentence_set   mean cosine of each sentence's best match in the other report, from either side, by CXR-BERT (after
                   SDR, arXiv 2606.00440)
    length         the shorter number of words over the longer

A macro F1 belongs to a corpus: a report by itself lacks most observations, and the mean of such F1s rewards calling all
of them normal. Its reward is what a draft adds to the macro F1 of the drafts of late, to first order. With F the F1 of
one of K observations, p and q the shares of references and of drafts that name it, hit and named 0 or 1, it is

    1/K sum of (2 hit - F (named - q)) / (p + q)

whose mean over these drafts is their macro F1: a rare observation weighs more, and is worth naming where it is more
likely than F / 2 (Lipton et al., arXiv 1402.1892). p is that of all training references; of the drafts of late only how
many of its positives they hit and how often they invent it are taken, since a step sees few positives.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from generator.confidence import split_sentences
from generator.config import RewardConfig
from metrics.annotate import AnnotationCache
from metrics.caveats import alike
from metrics.rules import label
from metrics.scoring import METRICS, choose, compute, per_report
from metrics.text import Once
from raddraft.errors import RadDraftError
from raddraft.text import suggest

OWN = ("sentence_set", "length")
REWARDS = (*(name for name in METRICS if name != "coco_cider"), *OWN)  # CIDEr weighs words by the set it is given
"""Names of rewards."""
DECAY = 0.95
"""What the counts of a step's drafts, for macro F1, weigh a step later."""
FIRST = 500
"""Drafts that the counts of a first step stand for."""
Counts = Mapping[str, list[list[float]]]
"""Macro F1 -> of each observation [K, 4] hits, inventions and misses in the drafts of late, and their number."""


def check_rewards(names: Iterable[str]) -> None:
    """Raise RadDraftError unless each name is that of a reward."""
    for name in names:
        if name not in REWARDS:
            raise RadDraftError(
                f"reward.metrics: {name!r} is no metric of a single report. Choices: {', '.join(REWARDS)}."
                f"{suggest(name, REWARDS)}"
            )


@dataclass
class Scored:
    """What drafts are worth."""

    values: np.ndarray
    """Rewards [P, B, G], P in the order of the config's metrics."""
    counts: Counts
    """Of these drafts."""


class Rewards:
    """Scores drafts. To be made and called in one thread, since the cache of annotations belongs to it.

    Args:
        config: metrics and their models.
        references: study id -> report, of all training studies. What a labeler or a graph model reads in them is kept,
            on disk too unless `config.models.keep` is false; what it reads in drafts is not.
        val: the same of the val split.

    Raises:
        RadDraftError: an unknown metric, or one whose weights are missing.
    """

    def __init__(self, config: RewardConfig, references: Mapping[str, str], val: Mapping[str, str]) -> None:
        check_rewards(config.metrics)
        self.references, self.val, self.metrics = references, val, tuple(config.metrics)
        self.val_metrics = choose([*config.val_metrics, config.select, *(set(config.metrics) & set(METRICS))])
        self._texts = {*references.values(), *val.values()}
        self._once, self._models = Once(), replace(config.models)
        self._notes = _Annotations(self._models.cache, self._texts)
        self._models.cache = self._notes  # type: ignore[misc]
        example = ["No edema."]  # finds out now what cannot run
        compute(example, example, self.val_metrics, self._models, self._once)
        self._positives = {name: self._count_references(name) for name in self.metrics if _is_macro(name)}
        self([*references][:1], [example], self.first_counts())

    def __call__(self, study_ids: Sequence[str], drafts: Sequence[Sequence[str]], late: Counts) -> Scored:
        """Rewards of the drafts of each study.

        Args:
            study_ids: the studies [B].
            drafts: of each study [B][G].
            late: of the drafts before, as by `first_counts` and `recall`.

        Raises:
            RadDraftError: a reward is not finite; names metric and study.
            KeyError: a study without a reference. There is no reward without one: the stage leaves such studies out.
        """
        ours = list(chain.from_iterable(drafts))
        theirs = [self.references[one] for one, group in zip(study_ids, drafts, strict=True) for _ in group]
        if not ours:
            return Scored(np.zeros((len(self.metrics), len(study_ids), 0)), {})
        counts = {name: self._count(name, ours, theirs) for name in self._positives}
        single = [name for name in self.metrics if name in METRICS and name not in counts]
        found = per_report(ours, theirs, single, self._models, self._once) if single else {}
        for name, counted in counts.items():
            found[name] = _shares(counted, late[name], self._positives[name] / len(self.references))
        values = np.array([found[name] if name in found else self._own(name, ours, theirs) for name in self.metrics])
        values = np.where([not text.strip() for text in ours], np.minimum(values, 0.0), values)
        values = values.reshape(len(self.metrics), len(study_ids), -1)
        self._forget(ours)
        for part, row, draft in np.argwhere(~np.isfinite(values)):
            raise RadDraftError(
                f"The reward {self.metrics[part]} of a draft of study {study_ids[row]!r} is "
                f"{values[part, row, draft]}; leave it out of reward.metrics, or take the study out of the manifest"
            )
        return Scored(values, {name: counted.sum(0).tolist() for name, counted in counts.items()})

    def first_counts(self) -> Counts:
        """Counts to begin with: of drafts that name what references do as often, and are right every other time."""
        half = {name: positives / len(self.references) * FIRST / 2 for name, positives in self._positives.items()}
        return {name: [[one, one, one, FIRST] for one in halves.tolist()] for name, halves in half.items()}

    def validate(self, drafts: Mapping[str, str]) -> dict[str, float]:
        """Scores of drafts of the val split, as by `raddraft score`, what `watch` tells of them, and `repeated`: the
        share of drafts that are those of other studies too.

        Args:
            drafts: study id -> draft.
        """
        ours, theirs = [*drafts.values()], [self.val[study_id] for study_id in drafts]
        measures, _ = compute(ours, theirs, self.val_metrics, self._models, self._once)
        self._forget(ours)
        found = {name: one.value for name, one in measures.items()}
        return found | watch(ours) | {"repeated": alike(ours)["repeated"]}

    def _forget(self, drafts: Sequence[str]) -> None:
        self._once.forget(set(drafts) - self._texts)
        self._notes.forget()

    def _own(self, name: str, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
        """Values of one of `OWN` [n]."""
        if name == "length":
            words = [sorted((len(one.split()), len(other.split()))) for one, other in zip(ours, theirs, strict=True)]
            return np.array([shorter / max(longer, 1) for shorter, longer in words])
        from metrics.embeddings import set_likeness

        mine, other = (self._once.each(split_sentences, texts) for texts in (ours, theirs))
        return np.array(set_likeness(mine, other, self._models.cxr_bert_model))

    def _count(self, name: str, ours: Sequence[str], theirs: Sequence[str]) -> np.ndarray:
        """Hits, inventions, misses, and 1, of each text and observation [n, K, 4]."""
        measures, _ = compute(list(ours), list(theirs), [name], self._models, self._once)
        counts = measures[name].statistics.reshape(len(ours), -1, 3).astype(np.float64)
        return np.concatenate([counts, np.ones_like(counts[..., :1])], -1)

    def _count_references(self, name: str) -> np.ndarray:
        """How many references name each observation [K]."""
        texts = [*self.references.values()]
        return self._count(name, texts, texts)[..., 0].sum(0)


def _is_macro(name: str) -> bool:
    return "_macro_f1_" in name


def _shares(counts: np.ndarray, late: list[list[float]], p: np.ndarray) -> np.ndarray:
    """What each draft adds to the macro F1 [n], as in the head of this module.

    Args:
        counts: of each draft [n, K, 4].
        late: of the drafts of late [K, 4].
        p: share of the references that name each observation [K].
    """
    hit, invented, missed, drafts = np.array(late).T
    found = np.divide(hit, hit + missed, out=np.zeros_like(hit), where=hit + missed > 0) * p
    q = found + invented / drafts
    f1 = np.divide(2 * found, p + q, out=np.zeros_like(hit), where=p + q > 0)
    named, rare = counts[..., 0] + counts[..., 1], 1e-3
    return ((2 * counts[..., 0] - f1 * (named - q)) / np.maximum(p + q, rare)).mean(1)


def recall(late: Counts, counts: Sequence[Counts]) -> dict[str, list[list[float]]]:
    """Counts of the drafts of late, with those of a step, of all processes, added; the older, the less they weigh."""
    return {
        name: (np.array(before) * DECAY + sum(np.array(one[name]) for one in counts if name in one)).tolist()
        for name, before in late.items()
    }


class _Annotations(AnnotationCache):
    """What models read: of references in a cache that lasts, of drafts until `forget`, since these are millions."""

    def __init__(self, lasting: AnnotationCache, references: Collection[str]) -> None:
        super().__init__(None)
        self.lasting, self.references = lasting, references

    def read(self, key: str, texts: Iterable[str]) -> dict[str, Any]:
        """The annotations that are there: text -> annotation."""
        texts = list(texts)
        return self.lasting.read(key, texts) | super().read(key, texts)

    def write(self, key: str, annotations: Mapping[str, Any]) -> None:
        """Add annotations of texts."""
        known = {text: one for text, one in annotations.items() if text in self.references}
        self.lasting.write(key, known)
        super().write(key, {text: one for text, one in annotations.items() if text not in known})

    def forget(self) -> None:
        """Give up the annotations of drafts."""
        with self.connection:
            self.connection.execute("DELETE FROM annotations")


def watch(drafts: Sequence[str]) -> dict[str, float]:
    """What tells drafts that chase a reward from drafts that got better; NaN without drafts.

    Returns:
        words: mean number; repeated_sentences: share of sentences that the same draft has said before; no_finding:
        share of drafts whose label of the rules is No Finding; blank: share of drafts without a word.
    """
    if not drafts:
        return dict.fromkeys(("words", "repeated_sentences", "no_finding", "blank"), math.nan)
    sentences = [[one.lower() for one in split_sentences(text)] for text in drafts]
    said, distinct = sum(map(len, sentences)), sum(len(set(found)) for found in sentences)
    return {
        "words": sum(len(text.split()) for text in drafts) / len(drafts),
        "repeated_sentences": (said - distinct) / max(said, 1),
        "no_finding": sum(label(text)["No Finding"] == 1 for text in drafts if text.strip()) / len(drafts),
        "blank": sum(not text.strip() for text in drafts) / len(drafts),
    }
