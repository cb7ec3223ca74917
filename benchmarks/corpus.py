"""What a data set of the size of MIMIC-CXR takes, here and in another checkout of this project: seconds and memory.

    mkdir before && git archive COMMIT | tar -x -C before
    python -m benchmarks.corpus --against before --tree mimic

The tree is that of `benchmarks.mimic_tree`, made where it is not there. In turn, each by itself in a new process:
- prepare: `raddraft prepare mimic-cxr` of all views and reports, the reports from their zip;
- read: `read_studies` of that manifest;
- train: `raddraft train` with a tiny model, until the first step is logged;
- features: `raddraft features` with a tiny tower, which finds everything stored. What it finds was not computed: one
  study was, and its rows were written for all others.

Seconds are those of the wall and, since other jobs blur them, of the processors; memory is the peak of the process
itself. Both checkouts must make the same manifest and the same first loss. Linux only.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks.mimic_tree import make_tree
from encoder.digests import FileList, digest_files
from generator.tiny import make_lm, make_tower
from raddraft.cli import run as run_action
from raddraft.errors import RadDraftError
from raddraft.files import digest_file
from raddraft.studies import read_studies, skim, write_studies
from raddraft.text import format_table

Step = Literal["prepare", "read", "train", "features"]
ROOT = Path(__file__).resolve().parent.parent
READ = "import sys; from raddraft.studies import read_studies; read_studies(sys.argv[1])"


@dataclass
class Usage:
    """What a process took."""

    seconds: float
    cpu: float
    """Seconds of the processors, with those of the processes that it has started and waited for."""
    megabytes: float
    """Most memory of the process at a time, without those that it has started."""


def main(
    against: Path,
    tree: Path = Path("mimic"),
    work: Path = Path("runs/corpus"),
    steps: list[Step] = ["prepare", "read", "train", "features"],  # noqa: B006 - never changed
    rounds: int = 1,
    share: float = 1.0,
) -> int:
    """Measure the steps in both checkouts; the exit status is 1 if their results differ.

    Args:
        against: The other checkout, e.g. of the commit before.
        tree: Folder of the tree; it is made where it is not there.
        work: Folder to write manifests, runs and features to.
        steps: What to measure; all but the first need what the first has written.
        rounds: How often each step is taken, in turn; the fastest counts.
        share: Size of a tree that is made, as a part of the corpus.
    """
    if not (against / "raddraft").is_dir():
        raise RadDraftError(f"{against} is no checkout of this project: it has no folder raddraft")
    make_tree(tree, share)
    checkouts = {"there": against.absolute(), "here": ROOT}
    tree, work = tree.absolute(), work.absolute()
    manifest, rows = work / "there" / "studies.jsonl", []
    for step in steps:
        if step in ("train", "features"):
            _make_parts(work, manifest)
        best: dict[str, Usage] = {}
        for _ in range(rounds):
            for name, checkout in checkouts.items():
                used = _take(step, checkout, tree, work, work / name, manifest)
                best[name] = min(best.get(name, used), used, key=lambda usage: usage.seconds)
        there, here = best["there"], best["here"]
        rows.append(_row(step, there, here))
        print("\n" + format_table([HEADER, rows[-1]]), flush=True)
    print("\n" + format_table([HEADER, *rows]))
    faults = _differences(work)
    print("\n".join(faults) or "the same results")
    return 1 if faults else 0


HEADER = ["step", "there s", "here s", "ratio", "there CPU s", "here CPU s", "ratio", "there MB", "here MB", "ratio"]


def _row(step: str, there: Usage, here: Usage) -> list[str]:
    cells = [step]
    for one, other in zip(vars(there).values(), vars(here).values(), strict=True):
        cells += [f"{one:.1f}", f"{other:.1f}", f"{other / one:.2f}"]
    return cells


def _make_parts(work: Path, manifest: Path) -> None:
    """Tiny models; a tokenizer that has seen some of the reports."""
    if not (work / "lm").is_dir():
        texts = [study.sections.get("findings", "") for study in skim(read_studies(manifest)[:2000])]
        make_lm(work / "lm", [*texts, "USER: Describe the findings of this chest X-ray. ASSISTANT:"], hidden=32)
        make_tower(work / "tower", image_size=28, patch_size=14, hidden=32, layers=1)


def _take(step: Step, checkout: Path, tree: Path, work: Path, out: Path, manifest: Path) -> Usage:
    """Take a step in a checkout, in a process of its own."""
    out.mkdir(parents=True, exist_ok=True)
    log, action = out / "log.txt", [sys.executable, "-m", "raddraft"]
    if step == "read":
        return measure([sys.executable, "-c", READ, str(manifest)], checkout, log)
    if step == "prepare":
        source = ["--root", str(tree), "--reports", str(tree / "mimic-cxr-reports.zip")]
        wanted = ["--views", "all", "--sections", "[]", "--out", str(out / "studies.jsonl")]
        return measure([*action, "prepare", "mimic-cxr", *source, *wanted], checkout, log)
    if step == "train":
        shutil.rmtree(out / "run", ignore_errors=True)
        model = ["--model.tower", str(work / "tower"), "--model.lm", str(work / "lm"), "--train.log_every", "1"]
        recipe = ["--train.stages", json.dumps([{"epochs": 1e-9}]), "--out", str(out / "run")]
        command = [*action, "train", "--studies", str(manifest), *model, *recipe]
        return measure(command, checkout, log, out / "run" / "log.jsonl")
    features = [*action, "features", "--tower", str(work / "tower"), "--features", str(out / "features"), "--studies"]
    if not (out / "features").is_dir():
        write_studies(out / "one.jsonl", read_studies(manifest)[:1])
        measure([*features, str(out / "one.jsonl")], checkout, log)
        _stock(out / "features", manifest)
    used = measure([*features, str(manifest)], checkout, log)
    if "nothing to compute" not in log.read_text(encoding="utf-8"):
        raise RadDraftError(f"{out / 'features'}: something was missing, see {log}")
    return used


def _stock(features: Path, manifest: Path) -> None:
    """Give all images of a manifest the row of the first one."""
    paths = [image.path for study in skim(read_studies(manifest)) for image in study.images]
    known = set(FileList(features).find(paths)) - {None}
    digests = [digest for digest in dict.fromkeys(digest_files(paths, features)) if digest not in known]
    for index in features.rglob("part-0.jsonl"):
        part = index.with_suffix(".bin")
        row = part.read_bytes()[: part.stat().st_size // len(index.read_bytes().splitlines())]
        with open(part, "ab") as rows, open(index, "a", encoding="utf-8") as names:
            for digest in digests:
                rows.write(row)
                names.write(json.dumps(digest) + "\n")


def measure(command: list[str], folder: Path, log: Path, until: Path | None = None) -> Usage:
    """Run a command in a folder, to its end or until a file is written to, and say what it took.

    Raises:
        RadDraftError: it fails; the end of what it wrote to `log` is in the message.
    """
    env = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    with open(log, "wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True)
        seconds, most = 0.0, 0
        while not (found := os.wait4(process.pid, os.WNOHANG))[0]:
            status = Path(f"/proc/{process.pid}/status").read_text()
            most = int(status.partition("VmHWM:")[2].split()[0]) if "VmHWM:" in status else most  # none once it ends
            if until and not seconds and until.is_file() and until.stat().st_size:
                seconds = time.perf_counter() - started
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
    process.returncode = os.waitstatus_to_exitcode(found[1])
    if process.returncode and not seconds:
        told = log.read_text(encoding="utf-8", errors="replace").strip()[-500:]
        raise RadDraftError(f"{' '.join(command[1:4])} in {folder} fails: {told}")
    seconds = seconds or time.perf_counter() - started
    return Usage(seconds, found[2].ru_utime + found[2].ru_stime, most / 1024)


def _differences(work: Path) -> list[str]:
    """A sentence for each result that is not the same in both checkouts."""
    faults = []
    if len({digest_file(work / name / "studies.jsonl") for name in ("there", "here")}) > 1:
        faults.append("the manifests differ")
    logs = [work / name / "run" / "log.jsonl" for name in ("there", "here")]
    losses = [json.loads(log.read_text(encoding="utf-8").splitlines()[0])["loss"] for log in logs if log.is_file()]
    if len(set(losses)) > 1:
        faults.append(f"the first losses differ: {losses}")
    return faults


if __name__ == "__main__":
    run_action("corpus", package="benchmarks")
