"""Reports without training: those of the training studies whose image features are nearest.

With one neighbor, its report is the draft. With several, they vote: the draft is the report among theirs that agrees
best with the others, each weighted by its similarity.

Or the neighbors' sentences become a section of the study, which a prompt can include like any other context (after
RA-RRG, arXiv 2504.07415, which retrieves phrases), for a language model to write with.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch

from encoder.features import FeatureStore
from generator.confidence import split_sentences
from generator.prompts import PromptConfig
from metrics.text import rouge_l
from raddraft.errors import RadDraftError
from raddraft.studies import Study

SIMILAR = "similar"
"""The section that holds sentences of the nearest training reports."""


class Neighbors(NamedTuple):
    """The nearest training studies of each query, nearest first."""

    indices: torch.Tensor  # [queries, k], into the training studies
    similarities: torch.Tensor  # cosine [queries, k]


class Retriever:
    """The training studies that have a report and stored features.

    Args:
        store: pooled features of the main images.
        studies: all; those of other splits are left out.
        prompt: the sections that make the report.
        pooling: the features to compare.

    Raises:
        RadDraftError: there is no such training study.
    """

    def __init__(
        self,
        store: FeatureStore,
        studies: Sequence[Study],
        prompt: PromptConfig,
        pooling: Literal["class", "mean", "both"] = "both",
    ) -> None:
        self.store, self.prompt, self.pooling = store, prompt, pooling
        self.training = [study for study in with_reports(studies, prompt) if study.main_image.path in store]
        self.reports = [prompt.answer(study) or "" for study in self.training]

    def draft(self, studies: Sequence[Study], k: int = 1) -> Iterator[dict[str, Any]]:
        """Rows of predictions.jsonl for studies that have features: the report on which k neighbors agree best."""
        for study, rows, cosines in self._search(studies, k):
            reports = [self.reports[row] for row in rows]
            draft, reference = reports[vote(reports, cosines)], self.prompt.answer(study)
            yield study.ids | {"prediction": draft, "reference": reference, "candidates": reports}

    def add_similar(self, studies: Sequence[Study], k: int, count: int) -> None:
        """Give studies that have features the section `similar`: sentences that k reports of other subjects share."""
        for study, rows, cosines in self._search(studies, k, other_subjects=True):
            study.sections[SIMILAR] = shared_sentences([self.reports[row] for row in rows], cosines, count)

    def _search(
        self, studies: Sequence[Study], k: int, other_subjects: bool = False
    ) -> Iterator[tuple[Study, list[int], list[float]]]:
        queries, training = (
            self.store.vectors([study.main_image.path for study in part], self.pooling)
            for part in (studies, self.training)
        )
        owners = [study.subject_id for study in studies], [study.subject_id for study in self.training]
        found = nearest(queries, training, k, subjects=owners if other_subjects else None)
        yield from zip(studies, found.indices.tolist(), found.similarities.tolist(), strict=True)


def with_reports(studies: Sequence[Study], prompt: PromptConfig) -> list[Study]:
    """The training studies that have a report; raises RadDraftError if there is none."""
    training = [study for study in studies if study.split == "train" and prompt.answer(study)]
    if not training:
        raise RadDraftError(f"No training study has the sections {', '.join(prompt.targets)}")
    return training


def nearest(
    queries: torch.Tensor,
    training: torch.Tensor,
    k: int = 1,
    batch: int = 1024,
    subjects: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Neighbors:
    """Nearest training vectors by cosine, after standardizing every dimension over the training vectors.

    Args:
        queries: [m, D].
        training: [n, D], n >= 1.
        k: at most n neighbors are given.
        batch: queries compared at a time.
        subjects: of the queries and of the training vectors; vectors of the same subject are not neighbors, and have a
            similarity of -inf where there are not enough others.

    Raises:
        RadDraftError: there is no training vector, or k is less than 1.
    """
    if len(training) == 0 or k < 1:
        raise RadDraftError(f"Need at least one training study and one neighbor, got {len(training)} and {k}")
    mean, scale = training.mean(0), training.std(0, correction=0) + 1e-6
    reference = torch.nn.functional.normalize((training - mean) / scale)
    numbers: dict[str, int] = {}
    ours, theirs = ([numbers.setdefault(name, len(numbers)) for name in part] for part in subjects or ((), ()))
    k = min(k, len(training))
    indices, similarities = [torch.empty(0, k, dtype=torch.long)], [torch.empty(0, k)]
    for at in range(0, len(queries), batch):
        part = torch.nn.functional.normalize((queries[at : at + batch] - mean) / scale)
        cosines = part @ reference.T  # [batch, n]
        if subjects:
            same = torch.tensor(ours[at : at + batch])[:, None] == torch.tensor(theirs)
            cosines = cosines.masked_fill(same, -torch.inf)
        found = cosines.topk(k)
        indices.append(found.indices)
        similarities.append(found.values)
    return Neighbors(torch.cat(indices), torch.cat(similarities))


def vote(reports: Sequence[str], similarities: Sequence[float]) -> int:
    """Index of the report with the highest mean ROUGE-L to the others, weighted by their similarity; ties: the nearest.

    Args:
        reports: of the neighbors, nearest first.
        similarities: their cosines to the query; negative ones count as 0.
    """
    n = len(reports)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    if not pairs:
        return 0
    values = rouge_l([reports[i] for i, _ in pairs], [reports[j] for _, j in pairs]).statistics[:, 0]
    scores = [0.0] * n
    for (i, j), value in zip(pairs, values, strict=True):
        scores[i] += max(0.0, similarities[j]) * value
    return max(range(n), key=lambda i: scores[i])


def shared_sentences(reports: Sequence[str], similarities: Sequence[float], count: int) -> str:
    """The `count` sentences with most support among reports, each report's support being its similarity.

    Args:
        reports: of the neighbors, nearest first.
        similarities: their cosines to the query; reports with one of 0 or less are left out.
        count: maximum number of sentences; on ties, those of nearer reports come first.
    """
    support: dict[str, float] = defaultdict(float)
    for report, similarity in zip(reports, similarities, strict=True):
        if similarity > 0:
            for sentence in dict.fromkeys(split_sentences(report)):
                support[sentence] += similarity
    return " ".join(sorted(support, key=lambda sentence: -support[sentence])[:count])
