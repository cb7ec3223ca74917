"""Kill every command that writes, at random moments and file operations, and feed every reader damaged files.

    python -m benchmarks.campaign --kills 60 --inputs 3000 --seed 1

After a kill the same command runs again, up to its end, and what it wrote is compared byte for byte with what a run
that nobody disturbed wrote. Commands run in forked processes on a few phantoms with tiny random networks, on Linux.
One line of figures for each kind of disturbance; the exit status is 1 if there is a fault.
"""

from __future__ import annotations

import codecs
import os
import pkgutil
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from benchmarks.campaign_cases import SHARING, Case, make_cases
from benchmarks.fuzz import fuzz
from raddraft.cli import PACKAGES
from raddraft.cli import run as run_action
from raddraft.errors import RadDraftError
from raddraft.files import LEFT, digest_file

OPERATIONS = ("open", "os.rename", "os.remove", "os.truncate", "os.mkdir", "os.chmod", "shutil.rmtree")
"""Audit events before which a process may be killed."""
VOLATILE = re.compile(r"(.*/)?(log|files)\.jsonl|report\.html|compare\.json|cells/.*\.json")
"""Files that hold times."""
DAMAGED = 3
"""Files of each command's output that are damaged, at most."""
UNCHECKED = re.compile(
    r".*README\.md|.*/(state\.pt|(start|best)\.safetensors)|(.*/)?(part|looks)-.*|model/.*|.*\.png|sent/.*"
)
"""Files whose damage need not show when a command is run again: users edit cards, a finished stage has no use for its
beginning and its best weights, who loads a finished model checks it, the archive is not ours, and rows of numbers have
no check sums."""
NOBODY = 65534
"""User that may not write to the folders of others."""
LONGEST = 900
"""Seconds after which a command hangs."""


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
    os.umask(0o022)
    _import_all()
    faults = Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)  # for a process that may not write
        os.environ["RADDRAFT_CACHE"] = str(place / "cache")
        cases = [case for case in make_cases(place, _run) if only is None or case.name in only]
        faults += _campaign(cases, place, kills, random.Random(seed))
        faults += fuzz(place, inputs, random.Random(seed))
    memory = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 2**20
    print(f"memory at most {memory:.2f} GB; faults: {dict(faults) or 'none'}")
    return 1 if faults else 0


def _import_all() -> None:
    """Import what commands import, once, before they are forked."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(import_module(package).__path__, f"{package}."):
            if "__main__" not in module.name:
                import_module(module.name)
    codecs.lookup("unicode-escape")  # of jinja2; another user may have no access to Python's own files


def _campaign(cases: list[Case], place: Path, kills: int, rng: random.Random) -> Counter[str]:
    faults, counts = Counter[str](), Counter[str]()
    for case in cases:
        out = place / "undisturbed" / f"{case.name}{case.suffix}"
        started = time.monotonic()
        if _run(case, out, count=case) != 0:
            faults[f"{case.name} does not run"] += 1
            print(f"{case.name} does not run", (place / "said").read_text()[-2000:], file=sys.stderr)
            continue
        case.seconds, case.expected = time.monotonic() - started, _digests(case, out)
    ready = [case for case in cases if case.expected]
    for number in range(kills):
        case = ready[number % len(ready)]
        print(f"kill {number + 1}: {case.name}", end="\r", file=sys.stderr, flush=True)
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
        for disturbance in ("full disk", "read-only folder", "two at once"):
            out = place / disturbance.replace(" ", "-") / f"{case.name}{case.suffix}"
            counts[disturbance] += 1
            if disturbance == "two at once":
                told = _run_two(case, out, place, counts)
            else:
                told = _disturb(case, out, place, disturbance, rng)
            if told is not None:
                faults[f"{case.name}: {disturbance}"] += 1
                print(case.name, disturbance, told[-1500:], file=sys.stderr)
            _finish(case, out, place, faults, f"after {disturbance}")
        _damage(case, place, rng, faults, counts)
    print(f"commands: {len(ready)}; " + ", ".join(f"{name} {count}" for name, count in counts.items()), flush=True)
    return faults


def _disturb(case: Case, out: Path, place: Path, disturbance: str, rng: random.Random) -> str | None:
    """Run a command where it cannot write; what it said, unless that is as it should be."""
    if disturbance == "full disk":
        files = _files(place / "undisturbed" / f"{case.name}{case.suffix}")
        most = max(path.stat().st_size for path in files)
        status, sentence = _run(case, out, limit=rng.randint(most // 4, most - 1)), "File too large"
    else:
        out.parent.mkdir(parents=True)
        out.parent.chmod(0o555)
        status, sentence = _run(case, out, user=NOBODY), "Permission denied"
        out.parent.chmod(0o755)
    said = (place / "said").read_text(errors="replace")
    return None if status == 1 and sentence in said and "Traceback" not in said else f"{status} {said}"


def _run_two(case: Case, out: Path, place: Path, counts: Counter[str]) -> str | None:
    """Run a command twice at once; what both said, unless both share the output, or one is refused for the other.

    Of commands that do not share, the second runs while the first stands still with its lock held, so that there is no
    chance in it.
    """
    said, sharing = [place / "said-0", place / "said-1"], case.name in SHARING
    first = _start(case, out, said[0], stops=not sharing)
    if not sharing:
        os.waitid(os.P_PID, first, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    second = _start(case, out, said[1])
    statuses = [_wait(second)]
    os.kill(first, signal.SIGCONT)
    statuses.append(_wait(first))
    fine = statuses == [0, 0] if sharing else statuses == [1, 0] and "writes to it" in said[1].read_text()
    counts["of which both shared" if sharing else "of which the second was refused"] += fine
    return None if fine else f"{statuses} {' '.join(file.read_text() for file in said)}"


def _damage(case: Case, place: Path, rng: random.Random, faults: Counter[str], counts: Counter[str]) -> None:
    """Run a command where a file of its output is damaged: it makes it again, or says which one it is and stops."""
    whole = place / "undisturbed" / f"{case.name}{case.suffix}"
    names = sorted(os.path.relpath(path, whole) for path in _files(whole) if path.stat().st_size)
    names = [] if case.once else [name for name in names if not UNCHECKED.fullmatch(name)]
    for name in rng.sample(names, min(DAMAGED, len(names))):
        out = place / "damaged" / f"{case.name}{case.suffix}"
        out.parent.mkdir()
        copy = shutil.copytree if whole.is_dir() else shutil.copy
        copy(whole, out)
        target = out if name == "." else out / name
        data = target.read_bytes()
        at = rng.randrange(len(data))
        damaged = (data[:at], data[:at] + bytes(len(data) - at), b"{[" + data)[rng.randrange(3)]
        target.write_bytes(damaged)
        status, found = _run(case, out), _digests(case, out)
        said = (place / "said").read_text(errors="replace")
        differing = [one for one, digest in case.expected.items() if found.get(one) != digest]
        refused = status == 1 and Path(name if name != "." else out).name in said and "Traceback" not in said
        outcome = "made again" if status == 0 and not differing else "refused" if refused else "silent or unclear"
        counts[f"damaged and {outcome}"] += 1
        if outcome == "silent or unclear":
            faults[f"{case.name}: damaged {name}"] += 1
            print(case.name, "damaged", name, status, differing[:3], damaged[:40], said[-700:], file=sys.stderr)
        shutil.rmtree(out.parent)


def _finish(case: Case, out: Path, place: Path, faults: Counter[str], when: str) -> None:
    """Run a command to its end and count what is not as it should be."""
    status, found = _run(case, out), _digests(case, out)
    left = [path for path in [*out.parent.rglob(".*")] if LEFT.fullmatch(path.name) or path.name.endswith(".lock")]
    wrong = {
        "lost": (status != 0 and not (case.once and found == case.expected))
        or bool(case.expected.keys() - found.keys()),
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
    _ended = bool(select.select([reader], [], [], LONGEST)[0])  # the end of the pipe, when no process holds it
    os.close(reader)
    if (target := disturbance.get("count")) is not None:
        target.operations = int((said.parent / "operations").read_text())
    return status


def _start(case: Case, out: Path, said: Path, held: int | None = None, **disturbance: Any) -> int:
    """Fork a process that runs a command.

    Args:
        case, out, said: the command, its output, and the file for what it prints.
        held: descriptor to keep open as long as the process or one of its own lives.
        disturbance: operation or after: kill it before this file operation, or after these seconds; stops: stop it
            before it gives up its lock; limit: to the size of files in bytes; user: to run as; count: the case whose
            operations to count.
    """
    if process := os.fork():
        return process
    status = 1
    try:
        tqdm.set_lock(threading.RLock())  # its own is one for all forked processes, and stays held if one is killed
        log = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = open(1, "w"), open(2, "w")  # noqa: SIM115
        os.environ |= {name: value.replace("{out}", str(out)) for name, value in case.variables.items()}
        count = _count_operations(out, disturbance.get("operation", 0), disturbance.get("stops", False))
        signal.alarm(LONGEST)
        if limit := disturbance.get("limit"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        if user := disturbance.get("user") if os.getuid() == 0 else None:
            os.setuid(user)
        if after := disturbance.get("after"):
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, after)
        status = _call(case, out)
        if "count" in disturbance:
            (said.parent / "operations").write_text(str(count[0]))
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _call(case: Case, out: Path) -> int:
    """The exit status of a case, in this process."""
    try:
        if case.function is not None:
            case.function(out)
            return 0
        words = [word.replace("{out}", str(out)) for word in case.words]
        run_action(words[0], words[1:])
    except SystemExit as error:
        code = error.code
    except (RadDraftError, OSError) as error:  # of a function; the command line makes a sentence of it
        code = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    if isinstance(code, str):
        os.write(2, code.encode())
        return 1
    return code or 0


def _count_operations(out: Path, last: int, stops: bool) -> list[int]:
    """Count operations on files where an output stands, in a list of one number; kill this process before the last, or
    stop it before it removes a lock."""
    count = [0]

    def audit(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal stops
        path = str(arguments[0] if arguments else "")
        if event in OPERATIONS and str(out.parent) in path:
            count[0] += 1
            if count[0] == last:
                os.kill(os.getpid(), signal.SIGKILL)
            if stops and event == "os.remove" and path.endswith(".lock"):
                stops = False
                os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(audit)
    return count


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


def _digests(case: Case, out: Path) -> dict[str, str | None]:
    """File -> digest, or None of those that hold times or where they stand."""
    found = {os.path.relpath(path, out): path for path in _files(out) if not path.name.startswith(".")}
    return {
        name: None if case.volatile or VOLATILE.fullmatch(name) else digest_file(path) for name, path in found.items()
    }


if __name__ == "__main__":
    run_action("campaign", package="benchmarks")
