"""Many candidates -> one: the one that agrees best with the others (consensus selection, arXiv 2605.30131).

Every candidate of a study is scored against every other as its reference, by any metric of this project, and the one
with the highest mean is chosen. With several metrics the candidates are ranked by each, and the mean rank decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from metrics.models import Models
from metrics.report import LOWER_IS_BETTER
from metrics.scoring import METRICS, measure
from raddraft.errors import RadDraftError

BLANK = "No findings."
"""What a blank candidate is taken for."""


@dataclass
class Choice:
    """The candidate chosen for one study."""

    index: int
    """Its position among the candidates."""
    text: str
    """The candidate; `BLANK` if it is blank."""
    scores: list[float]
    """Of each candidate, higher is better: its mean utility, or minus its mean rank if there are several utilities."""


def choose(studies: Sequence[Sequence[str]], utilities: Sequence[str], models: Models | None = None) -> list[Choice]:
    """Choose one candidate of each study. Among equals the first that is not blank is taken.

    Args:
        studies: the candidates of each study, at least one.
        utilities: names of metrics, such as rouge_l, radgraph_er or rule_micro_f1_14. Of a single pair of reports BLEU
            is that of a corpus of one, and an F1 of labels is 1 where both name no observation of its classes.
        models: where the learned metrics find their weights.

    A blank candidate stands for `BLANK`, but is supported by candidates with words only, and wins no tie.

    Raises:
        ValueError: an unknown utility, one that means nothing for single reports or whose weights are missing, a study
            without candidates, or one of which no score is a number.
    """
    check_utilities(utilities)
    if [] in map(list, studies):
        raise RadDraftError(f"Study {list(map(list, studies)).index([]) + 1} of {len(studies)} has no candidates")
    filled = [[text.strip() or BLANK for text in candidates] for candidates in studies]
    tables = score_pairs(filled, utilities, models or Models())
    choices = []
    for number, (texts, candidates, table) in enumerate(zip(filled, studies, tables, strict=True), 1):
        blank = np.array([not text.strip() for text in candidates])
        table[:, np.logical_and.outer(blank, blank)] = np.nan  # failures to write do not vote for each other
        alone = len(texts) == 1 or blank.all()
        if not alone and not np.isfinite(table).any():
            raise RadDraftError(f"Study {number} of {len(studies)}: no score among its candidates is a number")
        scores = np.zeros(len(texts)) if alone else combine(table)
        best = int(np.lexsort((blank, -scores))[0])
        choices.append(Choice(best, texts[best], scores.tolist()))
    return choices


def check_utilities(utilities: Sequence[str]) -> None:
    """Raises ValueError where candidates cannot be chosen by these metrics."""
    if not utilities:
        raise RadDraftError(f"No utility to choose by. Choices: {', '.join(METRICS)}")
    for name in utilities:
        if name not in METRICS:
            raise RadDraftError(f"Unknown utility {name!r}. Choices: {', '.join(METRICS)}")
        if "_macro_" in name:
            raise RadDraftError(
                f"{name} is a mean over observations, most of which a single report does not name; for choosing among "
                f"reports take {name.replace('macro', 'micro')}"
            )


def score_pairs(studies: Sequence[Sequence[str]], utilities: Sequence[str], models: Models) -> list[np.ndarray]:
    """Utilities of every candidate against every other of its study.

    Equal pairs of texts are scored once, whichever study they stand in.

    Returns:
        For each study [utilities, n, n]: of candidate i with candidate j as the reference; nan where i is j.
    """
    pairs = {
        (ours, theirs): 0
        for candidates in studies
        for i, ours in enumerate(candidates)
        for j, theirs in enumerate(candidates)
        if i != j
    }
    pairs = {pair: number for number, pair in enumerate(pairs)}
    found = np.empty((len(utilities), len(pairs)))
    if pairs:
        measures, _ = measure([ours for ours, _ in pairs], [theirs for _, theirs in pairs], utilities, models)
        for row, name in enumerate(utilities):
            one = measures[name]
            found[row] = one.reduce(one.statistics)
            if "_f1_" in name:  # of labels: nothing to find, and nothing found
                found[row][~one.statistics.any(1)] = 1.0
            if name in LOWER_IS_BETTER:
                found[row] *= -1
    tables = []
    for candidates in studies:
        n = len(candidates)
        table = np.full((len(utilities), n, n), np.nan)
        for i in range(n):
            for j in range(n):
                if i != j:
                    table[:, i, j] = found[:, pairs[candidates[i], candidates[j]]]
        tables.append(table)
    return tables


def combine(table: np.ndarray) -> np.ndarray:
    """One score for each candidate [n] from utilities [utilities, n, n], of which what is not finite is left out.

    Of one utility its mean, -inf where there is none; of several minus the mean rank.
    """
    from scipy.stats import rankdata

    finite = np.isfinite(table)
    counts = finite.sum(2)
    means = np.where(counts > 0, np.where(finite, table, 0).sum(2) / np.maximum(counts, 1), -np.inf)
    means = means.round(12)  # equal candidates stay equal, in whatever order their scores were summed
    return means[0] if len(means) == 1 else -np.mean([rankdata(-row) for row in means], axis=0)
