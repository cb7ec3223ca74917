"""Reports without training: those of the training studies whose image features are nearest.

With one neighbour the nearest study's report is the draft. With more, they vote: the draft is the report among
theirs that agrees best with the others, each weighted by how near it is.

Or the neighbours' sentences go into a section of the study, from where a prompt takes them like any other context
(after RA-RRG, arXiv 2504.07415, which retrieves phrases): the model then writes with them before its eyes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from raddraft.errors import RadDraftError

SIMILAR = "similar"
"""The section that holds sentences of the nearest training reports."""


@dataclass
class Neighbours:
    """The nearest training studies of each query, nearest first."""

    indices: torch.Tensor
    """[queries, k], into the training studies."""
    similarities: torch.Tensor
    """Cosine [queries, k]."""


def nearest(
    queries: torch.Tensor,
    training: torch.Tensor,
    k: int = 1,
    batch: int = 1024,
    subjects: tuple[Sequence[str], Sequence[str]] | None = None,
) -> Neighbours:
    """Nearest training vectors by cosine, after standardising every dimension over the training vectors.

    Args:
        queries: [m, D].
        training: [n, D], n >= 1.
        k: at most n neighbours are given.
        batch: queries compared at a time.
        subjects: of the queries and of the training vectors; those of the same subject are no neighbours, and have a
            similarity of -inf where there are not enough others.

    Raises:
        ValueError: there is no training vector, or k is less than 1.
    """
    if len(training) == 0 or k < 1:
        raise RadDraftError(f"Need at least one training study and one neighbour, got {len(training)} and {k}")
    mean, scale = training.mean(0), training.std(0, correction=0) + 1e-6
    reference = torch.nn.functional.normalize((training - mean) / scale)
    numbers: dict[str, int] = {}
    ours, theirs = ([numbers.setdefault(name, len(numbers)) for name in part] for part in subjects or ((), ()))
    found = []
    for at in range(0, len(queries), batch):
        part = torch.nn.functional.normalize((queries[at : at + batch] - mean) / scale)
        cosines = part @ reference.T  # [batch, n]
        if subjects:
            same = torch.tensor(ours[at : at + batch])[:, None] == torch.tensor(theirs)
            cosines = cosines.masked_fill(same, -torch.inf)
        found.append(cosines.topk(min(k, len(training))))
    if not found:
        return Neighbours(torch.empty(0, k, dtype=torch.long), torch.empty(0, k))
    return Neighbours(torch.cat([one.indices for one in found]), torch.cat([one.values for one in found]))


def vote(reports: Sequence[str], similarities: Sequence[float]) -> int:
    """Index of the report with the highest mean ROUGE-L to the others, weighted by their similarity; ties: the nearest.

    Args:
        reports: of the neighbours, nearest first.
        similarities: their cosines to the query; negative ones count as 0.
    """
    from metrics.text import rouge_l

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
        reports: of the neighbours, nearest first.
        similarities: their cosines to the query; reports with one of 0 or less are left out.
        count: at most so many sentences; among equals those of nearer reports come first.
    """
    from generator.confidence import split_sentences

    support: dict[str, float] = defaultdict(float)
    for report, similarity in zip(reports, similarities, strict=True):
        if similarity > 0:
            for sentence in dict.fromkeys(split_sentences(report)):
                support[sentence] += similarity
    return " ".join(sorted(support, key=lambda sentence: -support[sentence])[:count])
