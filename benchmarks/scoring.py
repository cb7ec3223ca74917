"""Time `raddraft score` on two systems with strata, against another checkout of this repository.

    git worktree add /tmp/before HEAD~1
    python -m benchmarks.scoring --reports iu/indiana_reports.csv --other /tmp/before

Both run in turn, one process each, on the same files; the studies are real reports, the two systems and the views are
made up: the findings with sentences dropped, and the findings of other studies.
"""

from __future__ import annotations

import csv
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from raddraft.errors import RadDraftError
from raddraft.files import write_jsonl


def main(reports: Path, other: Path, n: int = 2461, repeats: int = 3) -> None:
    """Print the time of both checkouts, their ratio, and whether scores.json is the same.

    Args:
        reports: Table of reports (CSV) with the column findings.
        other: The checkout to compare with.
        n: Number of studies.
        repeats: Runs of each checkout; the fastest counts.
    """
    with open(reports, encoding="utf-8", newline="") as file:
        findings = [row["findings"].strip() for row in csv.DictReader(file)]
    findings = [text for text in findings if text][:n]
    if not findings:
        raise RadDraftError(f"{reports}: no findings")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        arguments = write_input(folder, findings)
        here = Path(__file__).resolve().parent.parent
        seconds: dict[Path, list[float]] = {here: [], other: []}
        for _ in range(repeats):
            for i, (checkout, times) in enumerate(seconds.items()):
                command = [sys.executable, "-m", "scripts.score", *arguments, "--out", str(folder / f"scores-{i}")]
                environment = os.environ | {"PYTHONPATH": str(checkout)}
                started = time.perf_counter()
                subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=subprocess.DEVNULL)
                times.append(time.perf_counter() - started)
        ours, theirs = map(min, seconds.values())
        scores = [(folder / f"scores-{i}" / "scores.json").read_bytes() for i in range(2)]
    print(f"Two systems of {len(findings):,} studies by view and normal: here {ours:.2f} s, {other} {theirs:.2f} s")
    print(f"  {theirs / ours:.1f} times as fast; scores.json is {'' if scores[0] == scores[1] else 'NOT '}the same")


def write_input(folder: Path, findings: list[str]) -> list[str]:
    """Write two systems and a manifest, and return the arguments of `raddraft score`."""
    generator = random.Random(0)
    fewer = [". ".join(part for part in text.split(". ") if generator.random() > 0.25) for text in findings]
    shuffled = generator.sample(findings, len(findings))
    for name, drafts in (("model", fewer), ("shuffled", shuffled)):
        rows = zip(drafts, findings, strict=True)
        write_jsonl(
            folder / f"{name}.jsonl",
            ({"study_id": f"s{i}", "prediction": ours, "reference": theirs} for i, (ours, theirs) in enumerate(rows)),
        )
    with open(folder / "studies.jsonl", "w", encoding="utf-8") as file:
        for i in range(len(findings)):
            image = {"path": "none.png", "view": generator.choice(["PA", "AP", "LATERAL"])}
            study = {"study_id": f"s{i}", "subject_id": f"p{i}", "split": "test", "images": [image]}
            file.write(json.dumps(study) + "\n")
    names = ("model.jsonl", "shuffled.jsonl")
    manifest = ["--studies", str(folder / "studies.jsonl")]
    return [*(str(folder / name) for name in names), *manifest, "--by", "view", "normal"]


if __name__ == "__main__":
    from raddraft.cli import run

    run("scoring", package="benchmarks")
