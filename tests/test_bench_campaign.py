"""The campaign tells commands that lock their output from those that do not."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from tqdm import tqdm

from benchmarks.campaign import _run, _run_two
from benchmarks.campaign_cases import Case
from raddraft.files import write_text
from raddraft.locks import hold


def write_locked(out: Path) -> None:
    with hold(out):
        time.sleep(0.05)
        write_text(out, "x")


def write_unlocked(out: Path) -> None:
    time.sleep(0.05)
    write_text(out, "x")


@pytest.mark.parametrize("name", ["locked", "unlocked", "features"])
def test_two_at_once(tmp_path, name) -> None:
    """Overwriting without a lock leaves the same content, and is a fault all the same."""
    (tmp_path / "films").mkdir()
    case = Case(name, suffix=".txt", function=write_locked if name == "locked" else write_unlocked)
    counts = Counter[str]()
    told = _run_two(case, tmp_path / "run" / f"{name}.txt", tmp_path, counts)
    assert (tmp_path / "run" / f"{name}.txt").read_text() == "x"
    if name == "unlocked":
        assert told is not None
        assert told.startswith("[0, 0]")
        assert counts.total() == 0
    else:
        assert told is None
        assert counts == {f"of which {'both shared' if name == 'features' else 'the second was refused'}": 1}


def test_a_killed_command_does_not_hold_up_the_next(tmp_path) -> None:
    """It may hold the lock of its progress bar when it is killed."""
    (tmp_path / "films").mkdir()
    tqdm.get_lock()  # made by the first bar, before the fork

    def die(out: Path) -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    def show(out: Path) -> None:
        signal.alarm(20)
        for _ in tqdm(range(3), disable=False):
            pass

    out = tmp_path / "run" / "out.txt"
    out.parent.mkdir()
    assert _run(Case("die", function=die), out) == -signal.SIGKILL
    assert _run(Case("show", function=show), out) == 0
