"""Memory and time of drafting, scoring and keeping decisions as studies become many, and what a kill leaves of them.

    python -m benchmarks.scale
    python -m benchmarks.scale --studies 10000 100000 --kill true

Studies share a few films of computed phantoms, and a tiny network with random weights drafts them; every report is
another one, put together from sentences of phantoms. Each command runs in a process of its own, on the CPU. With `kill`
it is also killed at a random moment and run again, and what it then has written must be equal, but for times.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import Literal

from raddraft.cli import run as run_action
from raddraft.errors import RadDraftError
from raddraft.files import read_jsonl, write_jsonl
from raddraft.ranges import Count, Whole
from raddraft.studies import Study, read_studies, write_studies
from raddraft.text import format_table

Part = Literal["generate", "score", "decisions"]
DRAFTING = ("--workers", "0", "--device", "cpu", "--decode.max_new_tokens", "4", "--decode.batch_size", "64")


@dataclass
class Run:
    """A process that has ended."""

    status: int
    """Exit status; negative, if a signal ended it."""
    memory: int
    """Its peak, in bytes."""
    seconds: float
    """Of the processor."""
    said: str


def main(
    studies: list[Count] = [1_000, 10_000],  # noqa: B006 - the parser's default, never changed
    only: list[Part] = ["generate", "score", "decisions"],  # noqa: B006
    metrics: list[str] = ["rouge", "bleu", "rule"],  # noqa: B006
    films: Count = 200,
    kill: bool = False,
    seed: Whole = 0,
    folder: Path | None = None,
) -> int:
    """Print a table; the exit status is 1 if a command that was killed has lost or changed anything.

    Args:
        studies: Numbers of studies, one run of each command for each.
        only: What to run: drafting, scoring, and what keeps the decisions of `raddraft read`.
        metrics: Metrics or families to score by.
        films: Phantoms, whose films and sentences the studies share.
        kill: Also kill each command once and run it again.
        seed: Of the moments of the kills.
        folder: Where to write; by default a temporary folder.
    """
    os.environ |= {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    rng, rows, equal = random.Random(seed), [["", "studies", "peak MB", "processor seconds", "KB a study"]], True
    with TemporaryDirectory(dir=folder) as place:
        # in its own process, since the peak of a process counts for those that it starts
        _checked(_python(f"prepare(Path({place!r}), {films}, {'generate' in only})"))
        before: dict[str, tuple[int, Run]] = {}
        for count in sorted(studies):
            root = Path(place, str(count))
            write_inputs(Path(place), root, count)
            for name, command, out in commands(Path(place), root, metrics):
                if name not in only:
                    continue
                run = _checked(command)
                cells = [name, f"{count:,}", f"{run.memory / 1e6:,.0f}", f"{run.seconds:,.1f}", ""]
                if name in before:
                    fewer, other = before[name]
                    cells[-1] = f"{(run.memory - other.memory) / 1e3 / (count - fewer):.2f}"
                before[name] = count, run
                if kill:
                    told = killed(command, out, rng.uniform(0.1, 0.95) * run.seconds)
                    equal &= told == "equal"
                    cells.append(told)
                rows.append(cells)
                print("  ".join(cells), file=sys.stderr, flush=True)
    rows[0] += ["killed and run again"] if kill else []
    print(format_table(rows))
    return 0 if equal else 1


def prepare(place: Path, films: int, with_model: bool) -> None:
    """Make films, and a model with random weights."""
    from generator.config import ModelConfig
    from generator.corpora import phantom
    from generator.drafter import Drafter
    from generator.model import build, save
    from generator.tiny import make_lm, make_tower

    phantom.convert(place / "films", count=films, size=64, seed=0, processes=1)
    if not with_model:
        return
    made = read_studies(place / "films" / "studies.jsonl")
    make_tower(place / "tower", image_size=56, patch_size=28, hidden=32, layers=1)
    make_lm(place / "lm", [study.sections["findings"] for study in made], 300, hidden=32, layers=1)
    save(Drafter(*build(ModelConfig(str(place / "tower"), str(place / "lm")))), place / "model")


def write_inputs(place: Path, root: Path, count: int) -> None:
    """A manifest of `count` studies of the test split, and drafts of them: each the report of the study before."""
    films = read_studies(place / "films" / "studies.jsonl")

    def report(number: int) -> str:
        own, others = films[number % len(films)], films[number // len(films) % len(films)]
        third = films[number // len(films) ** 2 % len(films)].sections["findings"].split(". ")[0]
        return f"{own.sections['findings']} {others.sections['findings'].split('. ')[-1]} {third}."

    def studies() -> Iterator[Study]:
        for number in range(count):
            one = films[number % len(films)]
            sections = one.sections | {"findings": report(number)}
            patient = f"p{10_000_000 + number // 2}"
            yield Study(f"s{50_000_000 + number}", patient, "test", one.images, sections, one.labels, one.patient)

    write_studies(root / "studies.jsonl", studies())
    drafts = (
        {"study_id": f"s{50_000_000 + number}", "subject_id": f"p{10_000_000 + number // 2}"}
        | {"prediction": report(number - 1), "reference": report(number), "cut": False}
        for number in range(count)
    )
    write_jsonl(root / "drafts.jsonl", drafts)


def commands(place: Path, root: Path, metrics: Sequence[str]) -> list[tuple[str, list[str], Path]]:
    """Name, command line and output of each."""
    model, manifest = str(place / "model"), str(root / "studies.jsonl")
    drafts, scores, reads = root / "model.jsonl", root / "scores", root / "reads.jsonl"
    raddraft = [sys.executable, "-m", "raddraft"]
    drafting = [*raddraft, "generate", "--model", model, "--studies", manifest, *DRAFTING, "--out", str(drafts)]
    scoring = [*raddraft, "score", str(root / "drafts.jsonl"), "--metrics", *metrics, "--out", str(scores)]
    deciding = _python(f"keep_decisions(Path({str(root)!r}))")
    return [("generate", drafting, drafts), ("score", scoring, scores), ("decisions", deciding, reads)]


def keep_decisions(root: Path) -> None:
    """Decide on every draft, as a reader at the page of `raddraft read` does, if that is not done yet."""
    from generator.clinic.reading.decisions import Reads
    from generator.clinic.reading.worklist import Drafted

    reads = Reads(root / "reads.jsonl", "A")
    rows = read_jsonl(root / "drafts.jsonl", ("study_id", "prediction", "reference"))
    for number, (_, row) in enumerate(rows):
        if reads.latest(row["study_id"], "model", "digest") is None:
            study = Study(row["study_id"], row["subject_id"], "test", [])
            final = row["prediction"] if number % 3 else row["reference"]
            draft = Drafted(row["prediction"], "model", weights="digest")
            reads.append(study, draft, final, "", 30.0, row["reference"])
    reads.close()


def killed(command: Sequence[str], out: Path, after: float) -> str:
    """Remove an output, kill the command that makes it, run it again, and say whether the output is what it was."""
    wanted = contents(out)
    whole = out.with_name(f"whole-{out.name}")
    out.rename(whole)
    run = run_command(command, after)
    _checked(command)
    found = contents(out)
    if differing := [name for name in wanted if wanted[name] != found.get(name)]:
        return f"{differing[0]} differs (after {after:.1f} s)"
    return "equal" if run.status == -signal.SIGKILL else "ended before"


def contents(out: Path) -> dict[str, str]:
    """File -> digest of its content without times."""
    files = [out] if out.is_file() else sorted(path for path in out.rglob("*") if path.is_file())
    found = {}
    for path in files:
        digest = hashlib.sha256()
        with open(path, "rb") as lines:
            for line in lines:
                digest.update(re.sub(rb'"time": "[^"]*"', b"", line))
        found[path.name] = digest.hexdigest()
    return found


def run_command(command: Sequence[str], after: float | None = None) -> Run:
    """Run a command in a process of its own, which is killed after some processor seconds if that is asked for."""
    with TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        while after is not None and os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            user, system = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
            if (int(user) + int(system)) / os.sysconf("SC_CLK_TCK") >= after:
                process.kill()
                after = None
            time.sleep(0.01)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        return Run(process.returncode, used.ru_maxrss * 1024, used.ru_utime + used.ru_stime, said.read())


def _python(call: str) -> list[str]:
    """The command line that calls a function of this module."""
    return [sys.executable, "-c", f"from pathlib import Path; from benchmarks.scale import *; {call}"]


def _checked(command: Sequence[str]) -> Run:
    run = run_command(command)
    if run.status:
        raise RadDraftError(f"{' '.join(command)} ended with {run.status}: {run.said[-2000:]}")
    return run


if __name__ == "__main__":
    run_action("scale", package="benchmarks")
