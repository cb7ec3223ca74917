"""Kill every command that writes, at random moments and file operations, and feed every reader damaged files.

    python -m benchmarks.campaign --kills 60 --inputs 3000 --seed 1

After a kill the same command runs again, up to its end, and what it wrote is compared byte for byte with what a run
that nobody disturbed wrote. Commands run in forked processes on a few phantoms with tiny random networks, on Linux.
One line of figures for each kind of disturbance; the exit status is 1 if there is a fault.
"""

from __future__ import annotations

import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.fuzz import fuzz
from generator.corpora import phantom
from generator.tiny import make_lm, make_tower
from raddraft.cli import run as run_action
from raddraft.files import LEFT, digest_file
from raddraft.studies import read_studies

OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.chmod", "shutil.rmtree")
"""Audit events before which a process may be killed."""
VOLATILE = ("log.jsonl", "report.html", "files.jsonl", "files.lock")
"""Files that hold times."""
LONGEST = 120
"""Seconds after which a command hangs."""


@dataclass
class Case:
    """A command that writes."""

    name: str
    words: tuple[str, ...]
    """With {out} where the output stands."""
    suffix: str = ""
    """Of the output; blank for a folder."""
    seconds: float = 0
    """That it takes undisturbed."""
    operations: int = 0
    expected: dict[str, str | None] = field(default_factory=dict)
    """File -> digest of what it writes undisturbed."""


def main(kills: int = 60, inputs: int = 3000, seed: int = 0, only: list[str] | None = None) -> int:
    """Disturb commands and readers; print one line of figures each.

    Args:
        kills: Runs that are killed.
        inputs: Damaged inputs.
        seed: Of everything that is drawn.
        only: Names of the commands to disturb; by default all.
    """
    torch.set_num_threads(1)  # threads that work do not outlive a fork, and the child would wait for them
    os.environ["TQDM_DISABLE"] = "1"
    faults = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        cases = [case for case in _cases(place) if only is None or case.name in only]
        faults += _campaign(cases, place, kills, random.Random(seed))
        faults += fuzz(place, inputs, random.Random(seed))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"memory at most {memory:.2f} GB; faults: {dict(faults) or 'none'}")
    return 1 if faults else 0


def _cases(place: Path) -> list[Case]:
    """The commands, on parts that are made for them."""
    phantom.convert(place / "films", count=24, size=64, seed=0, processes=1)
    manifest = place / "films" / "studies.jsonl"
    make_tower(place / "tower", image_size=56, patch_size=28, hidden=32, layers=1)
    texts = [study.sections["findings"] for study in read_studies(manifest)]
    make_lm(place / "lm", texts, vocab_size=300, hidden=32, layers=1)
    stage = '[{"epochs": 2, "lr": 1e-3, "lm": "full"}]'
    training = f"--model.tower {place}/tower --model.lm {place}/lm --prompt.targets findings --train.workers 0"
    small = "--pretrain.steps 4 --pretrain.save_every 2 --pretrain.watch_every 2 --pretrain.batch_size 4 "
    small += "--pretrain.micro_batch_size 4 --pretrain.objective.prototypes 16 --pretrain.objective.head_hidden 16 "
    small += "--pretrain.objective.bottleneck 8 --pretrain.crops.global_size 56 --pretrain.crops.local_size 28 "
    small += "--pretrain.workers 0 --pretrain.gray_mapping window --pretrain.map_images 0"
    studies = f"--studies {manifest}"
    train = Case(
        "train", ("train", *f"{studies} --out {{out}} {training} --train.batch_size 4 --train.save_every 2".split(),
                  "--train.stages", stage)
    )  # fmt: skip
    if status := _run(train, place / "trained"):
        raise RuntimeError(f"train ended with {status}")
    model, drafts = place / "trained" / "model", place / "drafts.jsonl"
    generate = f"generate --model {model} {studies} --workers 0 --device cpu --decode.batch_size 2"
    generate += " --decode.max_new_tokens 8 --out {out}"
    if status := _run(Case("generate", tuple(generate.split())), drafts):
        raise RuntimeError(f"generate ended with {status}")
    control = f"generate --model {model} {studies} --device cpu --control most-frequent --out {{out}}"
    tiny = "--count 6 --size 48 --processes 2"
    compute = f"--tower {place}/tower --device cpu --workers 0"
    return [
        Case("phantom", tuple(f"prepare phantom --root {{out}} {tiny}".split())),
        Case("folder", tuple(f"prepare folder --root {place}/films/files --out {{out}}".split()), ".jsonl"),
        Case("resize", tuple(f"prepare resize {studies} --out {{out}} --size 32 --processes 2".split())),
        Case("check", tuple(f"check {manifest} --out {{out}} --smallest 16 --processes 1".split())),
        Case("generate", tuple(generate.split()), ".jsonl"),
        Case("control", tuple(control.split()), ".jsonl"),
        Case("score", tuple(f"score {drafts} --out {{out}} --metrics rouge bleu rule --resamples 50".split())),
        Case("features", tuple(f"features {studies} {compute} --features {{out}}".split())),
        train,
        Case("pretrain", tuple(f"pretrain {studies} --out {{out}} --pretrain.tower {place}/tower {small}".split())),
    ]  # fmt: skip


def _campaign(cases: list[Case], place: Path, kills: int, rng: random.Random) -> Counter[str]:
    faults, counts = Counter[str](), Counter[str]()
    for case in cases:
        out = place / "undisturbed" / f"{case.name}{case.suffix}"
        started = time.monotonic()
        if _run(case, out, count=case) != 0:
            faults[f"{case.name} does not run"] += 1
            print(f"{case.name} does not run", (place / "said").read_text()[-2000:], file=sys.stderr)
            continue
        case.seconds, case.expected = time.monotonic() - started, _digests(out)
    ready = [case for case in cases if case.expected]
    for number in range(kills):
        case = ready[number % len(ready)]
        out = place / f"run-{number}" / f"{case.name}{case.suffix}"
        for _ in range(rng.randint(1, 2)):
            at_operation = rng.random() < 0.6 and case.operations
            status = (
                _run(case, out, operation=rng.randint(1, case.operations))
                if at_operation
                else _run(case, out, after=rng.uniform(0, case.seconds))
            )
            counts["killed" if status == -signal.SIGKILL else "not reached"] += 1
        _finish(case, out, place, faults, "after a kill")
    for case in ready:
        sizes = [
            size
            for path in _files(place / "undisturbed" / f"{case.name}{case.suffix}")
            if (size := path.stat().st_size)
        ]
        for disturbance in ("full disk", "two at once"):
            out = place / disturbance.replace(" ", "-") / f"{case.name}{case.suffix}"
            if disturbance == "full disk":
                limit = rng.randint(max(sizes) // 4, max(sizes) - 1)
                status = _run(case, out, limit=limit)
                fault = status == 0 or not _told(place, "File too large")
                said = (place / "said").read_text()
            else:
                two = [_start(case, out, place / f"said-{one}") for one in range(2)]
                statuses = [_wait(process) for process in two]
                said = "".join((place / f"said-{one}").read_text() for one in range(2))
                shared = statuses == [0, 0] or case.name == "features"
                fault = not shared and (sorted(statuses) != [0, 1] or "writes to it" not in said)
            counts[disturbance] += 1
            if fault:
                faults[f"{case.name}: {disturbance}"] += 1
                print(case.name, disturbance, said[-1500:], file=sys.stderr)
            _finish(case, out, place, faults, f"after {disturbance}")
    print(f"commands: {len(ready)}; " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return faults


def _finish(case: Case, out: Path, place: Path, faults: Counter[str], when: str) -> None:
    """Run a command to its end and count what is not as it should be."""
    status, found = _run(case, out), _digests(out)
    left = [path for path in [*out.parent.rglob(".*")] if LEFT.fullmatch(path.name) or path.name.endswith(".lock")]
    wrong = {
        "lost": status != 0 or bool(case.expected.keys() - found.keys()),
        "differs": any(found[name] != digest for name, digest in case.expected.items() if name in found),
        "traceback": _told(place, "Traceback", "unexpected error"),
        "left behind": bool(left),
        "processes left": not _ended,
    }
    for name in (name for name, is_wrong in wrong.items() if is_wrong):
        faults[f"{case.name} {when}: {name}"] += 1
        differing = [one for one, digest in case.expected.items() if found.get(one) != digest]
        print(case.name, when, name, status, differing[:5], left[:5], file=sys.stderr)
        if name in ("lost", "traceback"):
            print((place / "said").read_text()[-1500:], file=sys.stderr)
    shutil.rmtree(out.parent, ignore_errors=True)


_ended = True


def _run(case: Case, out: Path, **disturbance: Any) -> int:
    """Exit status of a command in a forked process, negative if a signal ended it; waits for its workers, too."""
    global _ended
    reader, writer = os.pipe()
    said = _place_of(out) / "said"
    process = _start(case, out, said, writer, **disturbance)
    os.close(writer)
    status = _wait(process)
    _ended = bool(select.select([reader], [], [], 15)[0])  # the end of the pipe, when no process holds it
    os.close(reader)
    if (target := disturbance.get("count")) is not None:
        target.operations = int((said.parent / "operations").read_text())
    return status


def _start(
    case: Case,
    out: Path,
    said: Path,
    held: int | None = None,
    operation: int = 0,
    after: float = 0,
    limit: int = 0,
    count: Case | None = None,
) -> int:
    """Fork a process that runs a command: killed before a file operation or after seconds; with limited files."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        number = 0

        def audit(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal number
            if event in OPERATIONS and str(out.parent) in str(arguments[0] if arguments else ""):
                number += 1
                if number == operation:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(audit)
        if limit:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        signal.alarm(LONGEST)
        if after:
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, after)
        words = [word.replace("{out}", str(out)) for word in case.words]
        try:
            run_action(words[0], words[1:])
        except SystemExit as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            if isinstance(error.code, str):
                os.write(2, error.code.encode())
            status = error.code if isinstance(error.code, int) else 1 if error.code else 0
        if count is not None:
            (said.parent / "operations").write_text(str(number))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(status)


def _wait(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def _place_of(out: Path) -> Path:
    """The folder of the campaign."""
    return next(folder for folder in out.parents if (folder / "films").is_dir())


def _told(place: Path, *sentences: str) -> bool:
    said = (place / "said").read_text(errors="replace")
    return any(sentence in said for sentence in sentences)


def _files(out: Path) -> list[Path]:
    return [out] if out.is_file() else [path for path in out.rglob("*") if path.is_file()]


def _digests(out: Path) -> dict[str, str | None]:
    """File -> digest, of all but those that hold times or where they stand."""
    compared = [path for path in _files(out) if path.name not in VOLATILE and not path.name.startswith(".")]
    return {os.path.relpath(path, out): digest_file(path) for path in compared}


if __name__ == "__main__":
    run_action("campaign", package="benchmarks")
