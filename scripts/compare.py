"""Which encoder? Towers x tasks on one manifest: a table with intervals, paired differences to a baseline, and a page.

    CXR=… WEIGHTS=… raddraft compare --config compare/small.yaml --out runs/compare
    raddraft compare --config compare/paper.yaml --studies all.jsonl --out runs/paper
    raddraft compare --config compare/paper.yaml --studies few.jsonl --folds 5 --out runs/folds

Every tower runs once over the images; all tasks read its stored features. An interrupted comparison resumes. Several
processes (accelerate launch -m raddraft compare …, or the same command on several machines) share rows and runs out.
Environment variables in the names of files and towers are expanded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from encoder.config import ComputeConfig
from generator.compare_config import Entry, Task
from raddraft.cli import run
from raddraft.ranges import Count

FLAT = ("compute",)
SHARED = True


def main(
    studies: Path,
    towers: tuple[Entry, ...],  # no lists: see `stages` in generator/train.py
    tasks: tuple[Task, ...],
    out: Path = Path("runs/compare"),
    baseline: str | None = None,
    resamples: Count = 5000,
    folds: Count | None = None,
    title: str = "Which encoder?",
    leaks: Literal["refuse", "tell"] = "refuse",
    compute: ComputeConfig = ComputeConfig(),  # noqa: B008 - read only
) -> None:
    """Compare towers on tasks; writes compare.json, table.md, report.html and a figure of every column.

    Args:
        studies: Manifest of the studies.
        towers: Rows of the table.
        tasks: Columns of the table.
        out: Folder to write to.
        baseline: Label of the tower that all others are compared with; by default the first.
        resamples: Bootstrap resamples of the test subjects, at least 40 times the number of comparisons in the table;
            with fewer, no difference of probes is significant after Holm's correction.
        folds: Cross-validate, for collections with few test images: subjects of all splits are dealt into this many
            folds (at least 3), each of which is the test split once, the next one val, the others train.
        title: Heading of the page.
        leaks: What to do about test films that are train films, by their file or their look: refuse, or tell.
        compute: Computation
    """
    from generator.compare import compare
    from raddraft.processes import part_ways

    part_ways()
    result = compare(studies, towers, tasks, out, baseline, compute, resamples, folds, title, leaks)
    print(f"\n{(out / 'table.md').read_text(encoding='utf-8')}")
    print(f"page: {out / 'report.html'}\nnumbers: {out / 'compare.json'}\n{result['minutes']:.1f} minutes")


if __name__ == "__main__":
    run("compare")
