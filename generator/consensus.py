"""Consensus selection among candidates: the one that agrees best with the others (arXiv 2605.30131).

Every candidate of a study is scored against each other one as its reference, by any metric, and the one with the
highest mean is chosen. With several metrics the candidates are ranked by each, and the mean rank decides. Reports of
other studies, such as those with the nearest images, can stand in for the other candidates.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from generator.confidence import confidence
from metrics.caveats import reading_caveats, unreadable
from metrics.models import Models
from metrics.scoring import METRICS, per_report
from metrics.text import Once
from raddraft.errors import RadDraftError
from raddraft.files import check_replaced, read_jsonl, write_jsonl
from raddraft.text import suggest

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
    """For each candidate its mean utility, or with several utilities minus its mean rank; higher is better."""


def choose_in_file(
    predictions: Path,
    out: Path,
    utilities: Sequence[str],
    models: Models | None = None,
    against: Path | None = None,
) -> list[Choice]:
    """Write the lines of a predictions.jsonl again, with the candidate chosen for each, the scores and its confidence.

    Args:
        predictions, out: the files.
        utilities, models: as for `choose`.
        against: a predictions.jsonl whose candidates are those of `choose`, as `raddraft retrieve --k 8` writes it.

    Raises:
        RadDraftError: no lines, a line without candidates, a study that `against` lacks, `out` holds something else, or
            as `choose`.
    """
    check_utilities(utilities)
    check_replaced(out, ("prediction", "consensus"))
    rows, others = _read_candidates(predictions), None
    if against:
        known = {row["study_id"]: row["candidates"] for row in _read_candidates(against)}
        for row in rows:
            if row["study_id"] not in known:
                raise RadDraftError(f"{against} has nothing for study {row['study_id']!r} of {predictions}")
        others = [known[row["study_id"]] for row in rows]
    choices = choose([row["candidates"] for row in rows], utilities, models, others)
    named = {"utility": list(utilities)} | ({"against": against.name} if against else {})
    for row, choice in zip(rows, choices, strict=True):
        row |= {"prediction": choice.text, "consensus": named | {"scores": choice.scores}}
        if "candidates_cut" in row:
            row["cut"] = row["candidates_cut"][choice.index]
        if row.get("log_probs"):
            row["confidence"] = confidence(row["candidates"], row["log_probs"], choice.index)
    write_jsonl(out, rows)
    return choices


def _read_candidates(predictions: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in read_jsonl(predictions, ("study_id", "prediction"), "study_id")]
    for row in rows:
        candidates = row.get("candidates")
        if not (isinstance(candidates, list) and candidates and all(isinstance(text, str) for text in candidates)):
            raise RadDraftError(
                f"{predictions}: study {row['study_id']!r} has no candidates; write them with "
                "`raddraft generate --decode.candidates 8`"
            )
        cut = row.get("candidates_cut", [])
        if "candidates_cut" in row and not (isinstance(cut, list) and len(cut) == len(candidates)):
            raise RadDraftError(
                f"{predictions}: study {row['study_id']!r}: candidates_cut must tell of each candidate, got {cut!r}"
            )
    if not rows:
        raise RadDraftError(f"{predictions} is empty")
    return rows


def choose(
    studies: Sequence[Sequence[str]],
    utilities: Sequence[str],
    models: Models | None = None,
    against: Sequence[Sequence[str]] | None = None,
) -> list[Choice]:
    """Choose one candidate of each study; of equals the first that is not blank.

    A blank candidate stands for `BLANK`, but is supported by candidates with words only, and wins no tie.

    Args:
        studies: the candidates of each study, at least one.
        utilities: names of metrics, e.g. rouge_l, radgraph_er, rule_micro_f1_14. BLEU of a pair of reports is that of a
            corpus of one; an F1 of labels is 1 where neither report names an observation.
        models: where the learned metrics find their weights.
        against: for each study the reports to agree with, by default the other candidates.

    Raises:
        RadDraftError: an unknown utility, one that is undefined for single reports or whose weights are missing, a
            study without candidates or with one text in place of a list, or one without a finite score.

    Warns where the utilities cannot read the candidates, as by `metrics.caveats`.
    """
    check_utilities(utilities)
    for number, candidates in enumerate(studies, 1):
        if isinstance(candidates, str):
            raise RadDraftError(f"Study {number} of {len(studies)}: expected a list of candidates, got {candidates!r}")
    shares = {"candidates": unreadable([text for candidates in studies for text in candidates])}
    for sentence in reading_caveats(shares, utilities):
        warnings.warn(sentence, stacklevel=2)
    if [] in map(list, studies):
        raise RadDraftError(f"Study {list(map(list, studies)).index([]) + 1} of {len(studies)} has no candidates")
    filled = [[text.strip() or BLANK for text in candidates] for candidates in studies]
    choices = []
    tables = score_pairs(filled, utilities, models or Models(), against)
    for number, (texts, candidates, table) in enumerate(zip(filled, studies, tables, strict=True), 1):
        blank = np.array([not text.strip() for text in candidates])
        alone = not table.shape[2]
        if against is None:
            table[:, np.logical_and.outer(blank, blank)] = np.nan  # blanks do not vote for each other
            alone = len(texts) == 1 or bool(blank.all())
        if not alone and not np.isfinite(table).any():
            raise RadDraftError(f"Study {number} of {len(studies)}: no score among its candidates is a number")
        scores = np.zeros(len(texts)) if alone else combine(table)
        best = int(np.lexsort((blank, -scores))[0])
        choices.append(Choice(best, texts[best], scores.tolist()))
    return choices


def check_utilities(utilities: Sequence[str]) -> None:
    """Raise RadDraftError unless candidates can be chosen by these metrics."""
    if not utilities:
        raise RadDraftError(f"No utility to choose by. Choices: {', '.join(METRICS)}")
    for name in utilities:
        if name not in METRICS:
            raise RadDraftError(f"Unknown utility {name!r}. Choices: {', '.join(METRICS)}.{suggest(name, METRICS)}")
        if "_macro_" in name:
            raise RadDraftError(
                f"{name} is a mean over observations, most of which a single report does not name; take "
                f"{name.replace('macro', 'micro')}"
            )


def score_pairs(
    studies: Sequence[Sequence[str]],
    utilities: Sequence[str],
    models: Models,
    against: Sequence[Sequence[str]] | None = None,
) -> list[np.ndarray]:
    """Utilities of every candidate against every other one of its study, or against other reports of the study.

    Equal pairs of texts are scored once.

    Returns:
        For each study [utilities, n, m]: of candidate i with report j as the reference; NaN where these are the same
        candidate.
    """
    rows = list(zip(studies, against or studies, strict=True))
    places = [
        [(i, j) for i, j in np.ndindex(len(ours), len(theirs)) if against is not None or i != j]
        for ours, theirs in rows
    ]
    texts = zip(rows, places, strict=True)
    pairs = list(dict.fromkeys((ours[i], theirs[j]) for (ours, theirs), found in texts for i, j in found))
    found = np.empty((len(utilities), len(pairs)))
    if pairs:
        values = per_report([one for one, _ in pairs], [other for _, other in pairs], utilities, models, Once())
        found = np.array([values[name] for name in utilities])
    columns = {pair: column for column, pair in enumerate(pairs)}
    tables = []
    for (ours, theirs), placed in zip(rows, places, strict=True):
        table = np.full((len(utilities), len(ours), len(theirs)), np.nan)
        for i, j in placed:
            table[:, i, j] = found[:, columns[ours[i], theirs[j]]]
        tables.append(table)
    return tables


def combine(table: np.ndarray) -> np.ndarray:
    """One score for each candidate [n] from utilities [utilities, n, m], in which non-finite values are left out.

    For one utility the mean, -inf where nothing is finite; for several minus the mean rank.
    """
    from scipy.stats import rankdata

    finite = np.isfinite(table)
    counts = finite.sum(2)
    means = np.where(counts > 0, np.where(finite, table, 0).sum(2) / np.maximum(counts, 1), -np.inf)
    means = means.round(12)  # equal candidates stay equal, in whatever order their scores were summed
    return means[0] if len(means) == 1 else -np.mean([rankdata(-row) for row in means], axis=0)
