"""How often the 95 % intervals of scores hold the truth, and how often two equal systems are told apart.

    python -m benchmarks.coverage --reports iu/indiana_reports.csv

Tables of studies are drawn from a large population whose scores are known: real reports with drafts made of reports of
the same labels, and synthetic labels and synthetic scores of single studies. Subjects have one study each,
or as many as in the test split of MIMIC-CXR: 293 have 2,461, and a tenth of them 40 % of these. With correlation r, two
studies of a subject are the same one with chance r, so that every metric correlates by r. Systems are equal because
each study's two drafts are dealt to them at random.

Beside what `raddraft score` prints stand the interval and the p of papers: percentiles and paired differences of 500
resamples of the studies.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from statistics import NormalDist

import numpy as np

from metrics.labels import f1_measures
from metrics.rules import OBSERVATIONS, label
from metrics.text import Once, bleu, rouge_l
from raddraft.errors import RadDraftError
from raddraft.jackknife import doubts, jackknife, sign_flips, t_interval
from raddraft.stats import Measure, Units, interval, mean_measure, p_value, resample
from raddraft.text import format_table, progress

SIZES = (50, 100, 500, 2461)
CORRELATIONS = (None, 0.0, 0.1, 0.2)
"""Of the studies of a subject; None where each has one."""
PREVALENCE = (0.05, 0.25, 0.35, 0.04, 0.20, 0.06, 0.08, 0.28, 0.03, 0.35, 0.01, 0.03, 0.40, 0.15)
"""Of the 14 observations, about as in MIMIC-CXR."""
POPULATION = 20_000
"""Synthetic studies that tables are drawn from."""
RESAMPLES, FLIPS = 500, 999

Pairs = dict[str, tuple[Measure, Measure]]
"""Metric -> two equal systems on one population."""


@dataclass
class Tally:
    """What was found of one metric in tables of one kind; shares in percent."""

    papers_hold: list[bool] = field(default_factory=list)
    hold: list[bool] = field(default_factory=list)
    marked: list[bool] = field(default_factory=list)
    difference_holds: list[bool] = field(default_factory=list)
    papers_p: list[bool] = field(default_factory=list)
    bootstrap_p: list[bool] = field(default_factory=list)
    p: list[bool] = field(default_factory=list)

    def row(self) -> list[str]:
        """Cells of the table."""
        clear = [hold for hold, marked in zip(self.hold, self.marked, strict=True) if not marked]
        found = [self.papers_hold, self.hold, self.marked, clear]
        found += [self.difference_holds, self.papers_p, self.bootstrap_p, self.p]
        return [f"{100 * np.mean(part):.1f}" if len(part) >= 50 else "-" for part in found]


def main(reports: Path, repeats: int = 1000, jobs: int = 2) -> None:
    """Print coverage and false positives by number of studies, studies per subject and their correlation.

    Args:
        reports: Table of reports (CSV) with the column findings.
        repeats: Tables that are drawn of each kind.
        jobs: Processes.
    """
    if not read_findings(reports):
        raise RadDraftError(f"{reports}: no findings")
    kinds = [(n, correlation) for n in SIZES for correlation in CORRELATIONS]
    header = ["", "papers hold", "hold", "marked", "hold if not marked", "difference holds"]
    header += ["papers p < .05", "bootstrap by subject", "p < .05"]
    with ProcessPoolExecutor(jobs) as pool:
        work = pool.map(partial(simulate, reports, repeats), kinds)
        for (n, correlation), tallies in zip(progress(kinds, "tables"), work, strict=True):
            subjects = len(deal_sizes(n, correlation is not None))
            alike = "one study each" if correlation is None else f"correlation {correlation}"
            print(f"\n{n:,} studies of {subjects:,} subjects, {alike}")
            print(format_table([header, *([name, *one.row()] for name, one in tallies.items())]), flush=True)
    print("\n100 studies, few of which differ; equal systems told apart in % of tables")
    print(format_table([["differ", "papers p < .05", "p < .05"], *(few_differ(n, repeats) for n in range(4, 13))]))


@cache  # once in each process
def make_pairs(reports: Path) -> Pairs:
    """All systems."""
    return make_reports(read_findings(reports)) | make_labels() | make_scores() | make_unlike()


def read_findings(reports: Path) -> list[str]:
    """Findings of the reports that have any."""
    with open(reports, encoding="utf-8", newline="") as file:
        findings = [row["findings"].strip() for row in csv.DictReader(file)]
    return [text for text in findings if text]


def simulate(reports: Path, repeats: int, kind: tuple[int, float | None]) -> dict[str, Tally]:
    """Metric -> what was found in tables of n studies, with this correlation within a subject."""
    (n, correlation), pairs = kind, make_pairs(reports)
    sizes = deal_sizes(n, correlation is not None)
    subjects = None if correlation is None else np.repeat(np.arange(len(sizes)), sizes)
    generator = np.random.default_rng([n, round(100 * (correlation or 0)), len(sizes)])
    truths = {name: ours.value for name, (ours, _) in pairs.items()}
    tallies = {name: Tally() for name in pairs}
    populations = {ours.n for ours, _ in pairs.values()}
    for _ in range(repeats):
        drawn = {size: draw_table(generator, sizes, correlation or 0.0, size) for size in populations}
        table = {name: (a.subset(drawn[a.n]), b.subset(drawn[b.n])) for name, (a, b) in pairs.items()}
        judge(table, subjects, truths, tallies)
    return tallies


def judge(table: Pairs, subjects: Units | None, truths: dict[str, float], tallies: dict[str, Tally]) -> None:
    """Add to the tallies what is found in one table."""
    ours, theirs = zip(*table.values(), strict=True)
    by_study = resample([*ours, *theirs], RESAMPLES)
    resampled = by_study if subjects is None else resample([*ours, *theirs], RESAMPLES, subjects=subjects)
    flipped = sign_flips(ours, theirs, subjects, FLIPS)
    for i, (name, (one, other)) in enumerate(table.items()):
        tally, truth, rival = tallies[name], truths[name], len(ours) + i
        deviations = [jackknife(part, subjects) for part in (one, other)]
        low, high = t_interval(one.value, deviations[0], one.bounds, resampled[i].mean() - one.value)
        tally.hold.append(low <= truth <= high)
        differences, found = resampled[i] - resampled[rival], one.value - other.value
        low, high = t_interval(found, deviations[0] - deviations[1], bias=differences.mean() - found)
        tally.difference_holds.append(low <= 0 <= high)
        papers = interval(by_study[i])
        assert papers is not None
        tally.papers_hold.append(papers.low <= truth <= papers.high)
        tally.marked.append(bool(doubts(one, subjects)))
        tally.papers_p.append(p_value(by_study[i] - by_study[rival]) < 0.05)
        tally.bootstrap_p.append(p_value(differences) < 0.05)
        tally.p.append(flipped[i].p < 0.05)


def deal_sizes(n: int, several: bool) -> np.ndarray:
    """Studies of each subject: one, or as in MIMIC-CXR's test split, where a tenth of the subjects have 40 %."""
    if not several:
        return np.ones(n, dtype=int)
    subjects = round(n * 293 / 2461)
    often = max(1, round(subjects / 10))
    studies = round(0.4 * n)
    return np.concatenate([deal(studies, often), deal(n - studies, subjects - often)])


def deal(n: int, parts: int) -> np.ndarray:
    """n as a sum of about equal parts."""
    return np.full(parts, n // parts) + (np.arange(parts) < n % parts)


def draw_table(generator: np.random.Generator, sizes: np.ndarray, correlation: float, population: int) -> np.ndarray:
    """Positions of the studies of a table [n] in the population, subject by subject."""
    n, subject = sizes.sum(), np.repeat(np.arange(len(sizes)), sizes)
    own, shared = generator.integers(0, population, n), generator.integers(0, population, len(sizes))
    return np.where(generator.random(n) < correlation**0.5, shared[subject], own)


def few_differ(differ: int, repeats: int) -> list[str]:
    """A row: of 100 studies, so many differ, by chance in favor of either system."""
    generator = np.random.default_rng(differ)
    apart, papers = [], []
    for _ in range(repeats):
        scores = generator.beta(2, 5, 100)
        other = scores.copy()
        other[:differ] += generator.normal(0, 0.1, differ)
        a, b = mean_measure(scores, ""), mean_measure(other, "")
        apart.append(sign_flips([a], [b], flips=FLIPS)[0].p < 0.05)
        resampled = resample([a, b], RESAMPLES)
        papers.append(p_value(resampled[0] - resampled[1]) < 0.05)
    return [str(differ), f"{100 * np.mean(papers):.1f}", f"{100 * np.mean(apart):.1f}"]


def make_reports(findings: Sequence[str]) -> Pairs:
    """ROUGE-L and BLEU of two systems: findings of a study with the same labels, its own where no other has these.

    Generated reports are shorter than written ones; here they lack the last sentence. Where they are as long, the
    brevity penalty of BLEU-1 has its kink.
    """
    generator = np.random.default_rng(0)
    alike: dict[tuple[bool, ...], list[str]] = {}
    labels = [tuple(found[name] == 1 for name in OBSERVATIONS) for found in map(label, findings)]
    for key, text in zip(labels, findings, strict=True):
        alike.setdefault(key, []).append(text)
    whole = [[str(generator.choice(alike[key])) for key in labels] for _ in range(2)]
    shorter = [[". ".join(text.split(". ")[:-1]) or text for text in part] for part in whole]
    once = Once()

    def score(drafts: list[str]) -> dict[str, Measure]:
        found = bleu(drafts, findings, once=once)
        return {"rouge_l": rouge_l(drafts, findings, once)} | {f"bleu_{order}": one for order, one in found.items()}

    pairs = swap(*map(score, shorter))
    return pairs | {"bleu_1, as long": swap(*map(score, whole))["bleu_1"]}


class Labels:
    """Synthetic labels: the rarer an observation, the more often it is missed and invented."""

    def __init__(self) -> None:
        n = POPULATION
        self.generator = np.random.default_rng(1)
        prevalence = np.array(PREVALENCE)
        common, own = self.generator.normal(size=(n, 1)), self.generator.normal(size=(n, len(prevalence)))
        self.signs = np.sqrt(0.15) * common + np.sqrt(0.85) * own  # sick patients have several findings
        self.rank = prevalence.argsort().argsort()
        self.references = self.rows(self.signs > self.thresholds(1.0))

    def thresholds(self, share: float) -> np.ndarray:
        """From where on an observation is named by `share` times as many reports as have it."""
        return np.array([NormalDist().inv_cdf(1 - min(0.9, share * one)) for one in PREVALENCE])

    def see(self) -> np.ndarray:
        """The signs as another reader sees them."""
        skill = np.linspace(0.45, 0.85, len(PREVALENCE))[self.rank]
        return skill * self.signs + np.sqrt(1 - skill**2) * self.generator.normal(size=self.signs.shape)

    def rows(self, named: np.ndarray) -> list[dict[str, int]]:
        return [dict(zip(OBSERVATIONS, row, strict=True)) for row in named.astype(int).tolist()]

    def score(self, named: np.ndarray) -> dict[str, Measure]:
        return f1_measures(self.rows(named), self.references, OBSERVATIONS, "labels", "")


def make_labels() -> Pairs:
    """F1 of two readers who name 0.8 times as many findings as there are; and of two who never name rare ones."""
    labels = Labels()
    seen = [labels.see() > labels.thresholds(0.8) for _ in range(2)]
    usual, never = (swap(*map(labels.score, parts)) for parts in (seen, [part & (labels.rank >= 7) for part in seen]))
    return usual | {"labels_macro_f1_14, never rare": never["labels_macro_f1_14"]}


def make_unlike() -> Pairs:
    """Systems of equal value that err in other ways: one names half of the findings, the other too many; the scores of
    one vary, those of the other hardly."""
    labels = Labels()
    few, many = labels.see() > labels.thresholds(0.5), labels.see()
    name = "labels_micro_f1_14"
    ours, low, high = labels.score(few)[name], 1.0, 4.0
    for _ in range(12):  # the more are named, the lower the F1
        share = (low + high) / 2
        theirs = labels.score(many > labels.thresholds(share))[name]
        low, high = (share, high) if theirs.value > ours.value else (low, share)
    scores = make_scores()["radgraph-like"][0].statistics[:, 0]
    steady = 0.3 * np.random.default_rng(3).permutation(scores)
    pairs = ours, theirs
    return {
        f"{name}, unlike": pairs,
        "radgraph-like, unlike": (mean_measure(scores, ""), mean_measure(steady + (scores - steady).mean(), "")),
    }


def make_scores() -> Pairs:
    """Means of skewed scores in [0, 1] of two systems, as RadGraph's: many 0, some 1."""
    generator, n = np.random.default_rng(2), POPULATION
    common = generator.normal(size=n)
    found = []
    for _ in range(2):
        rank = ((common + generator.normal(size=n)) / 2**0.5).argsort().argsort() / n
        scores = np.quantile(generator.beta(1.5, 5, n), np.clip((rank - 0.15) / 0.82, 0, 1))
        found.append({"radgraph-like": mean_measure(np.where(rank < 0.15, 0, np.where(rank > 0.97, 1, scores)), "")})
    return swap(*found)


def swap(ours: dict[str, Measure], theirs: dict[str, Measure]) -> Pairs:
    """Both systems on a population in which each study is there twice, its drafts dealt either way."""
    pairs = {}
    for name, one in ours.items():
        halves = one.statistics, theirs[name].statistics
        pairs[name] = (
            replace(one, statistics=np.concatenate(halves)),
            replace(one, statistics=np.concatenate(halves[::-1])),
        )
    return pairs


if __name__ == "__main__":
    from raddraft.cli import run

    run("coverage", package="benchmarks")
