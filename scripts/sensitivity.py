"""Measure what each metric sees: reports corrupted in clinically different ways, scored against themselves.

    raddraft sensitivity studies.jsonl --n 1000 --out sensitivity
    raddraft sensitivity reports.csv --section findings --metrics rouge_l bleu_4 rule --out sensitivity

Six kinds of corruption change what a report says: the side swapped, a finding removed, its severity changed, a finding
denied, one invented, another patient's report. Two change nothing but words: sentences shuffled, a paraphrase. Prints
how much of the score each costs, how many reports' scores change, and how often a metric puts the harmless change above
the harmful one. Writes sensitivity.json and a figure, sensitivity.png. Reports must be in English.
"""

from __future__ import annotations

from pathlib import Path

from metrics.models import Models
from raddraft.cli import run
from raddraft.ranges import Count, Whole

POSITIONAL = ("reports",)


def main(
    reports: Path,
    out: Path = Path("sensitivity"),
    section: str | None = None,
    n: Count | None = None,
    metrics: list[str] | None = None,
    models: Models = Models(),  # noqa: B008 - the parser reads its fields and defaults from here
    resamples: Count = 500,
    seed: Whole = 0,
) -> None:
    """Print tables, and write sensitivity.json and sensitivity.png.

    Args:
        reports: A manifest, or reports as .jsonl, .csv, .tsv, or text with a report a line.
        out: Folder to write to.
        section: Section of the manifest, by default findings; column or key of a table, by default reference, report or
            text.
        n: Number of reports, drawn at random. By default all.
        metrics: Metrics or families of metrics, as for raddraft score. By default all that can run.
        models: Learned metrics
        resamples: Bootstrap resamples for the 95 % intervals.
        seed: Seed of the reports drawn, the corruptions and the resamples.
    """
    from metrics.sensitivity import read_reports, sensitivity, tables, write

    texts, subjects = read_reports(reports, section, n, seed)
    measured = sensitivity(texts, metrics, models, resamples, seed, subjects)
    print(tables(measured))
    print("", *write(measured, out), sep="\n")


if __name__ == "__main__":
    run("sensitivity")
