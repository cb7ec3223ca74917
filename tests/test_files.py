"""Whole files and folders, what kills leave, full disks; one writer at a time."""

import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from raddraft.files import remove_left, whole_folder, write_text, write_whole
from raddraft.locks import HeldError, hold
from tests.test_cli import files_no_larger_than, run

ROOT = Path(__file__).parents[1]
HOLD = """
import sys, time
from raddraft.locks import hold
with hold(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""

KILLED = """
import os, shutil, sys
from pathlib import Path
from raddraft import files
left = int(sys.argv[1])
def dying(function):
    def call(*arguments, **options):
        global left
        left -= 1
        if not left:
            os._exit(9)
        return function(*arguments, **options)
    return call
os.rename, os.replace, shutil.rmtree = map(dying, (os.rename, os.replace, shutil.rmtree))
if sys.argv[2] == "False":  # as where the file system cannot exchange two names
    files.ctypes.CDLL = lambda *_, **__: None
with files.whole_folder(Path(sys.argv[3])) as temporary:
    (temporary / "x.txt").write_text("new")
"""
"""Dies before one of the operations that move and remove files."""


FORKED = """
import os, time
from raddraft.locks import hold
with hold("out"):
    if os.fork():
        os.kill(os.getpid(), 9)
    print(os.getpid(), flush=True)
    time.sleep(30)
"""


def gone() -> int:
    """The id of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def holder(out: Path) -> subprocess.Popen[str]:
    """Another process that holds an output."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


# ---- whole files and folders


def fill(folder: Path, text: str) -> None:
    with whole_folder(folder) as temporary:
        (temporary / "x.txt").write_text(text)


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_loses_neither_the_old_nor_the_new_folder(tmp_path, exchange) -> None:
    found = []
    for moment in range(1, 7):
        fill(tmp_path / "model", "old")
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(moment), str(exchange), tmp_path / "model"], cwd=ROOT
        )
        remove_left(tmp_path / "model")  # as the next run does
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
        found.append((killed.returncode, (tmp_path / "model" / "x.txt").read_text()))
    assert {text for _, text in found} == {"old", "new"}
    assert found[0] == (9, "old")
    assert found[-1] == (0, "new")


def test_a_folder_whose_replacement_was_killed_is_put_back(tmp_path) -> None:
    fill(tmp_path / "model", "old")
    os.rename(tmp_path / "model", tmp_path / f".model.{gone()}.old")
    remove_left(tmp_path)
    assert (tmp_path / "model" / "x.txt").read_text() == "old"


def test_links_are_followed(tmp_path) -> None:
    write_text(tmp_path / "far" / "x.txt", "old")
    fill(tmp_path / "far" / "model", "old")
    (tmp_path / "x.txt").symlink_to(tmp_path / "far" / "x.txt")
    (tmp_path / "model").symlink_to(tmp_path / "far" / "model")
    write_text(tmp_path / "x.txt", "new")
    fill(tmp_path / "model", "new")
    assert (tmp_path / "x.txt").is_symlink()
    assert (tmp_path / "model").is_symlink()
    assert (tmp_path / "far" / "x.txt").read_text() == (tmp_path / "far" / "model" / "x.txt").read_text() == "new"


def test_weights_have_the_mode_of_other_files(tmp_path) -> None:
    write_text(tmp_path / "x.txt", "")
    with write_whole(tmp_path / "x.safetensors") as temporary:
        save_file({"w": torch.zeros(2)}, temporary)
    with whole_folder(tmp_path / "model") as folder:
        save_file({"w": torch.zeros(2)}, folder / "model.safetensors")
    wanted = stat.S_IMODE((tmp_path / "x.txt").stat().st_mode)
    for path in (tmp_path / "x.safetensors", tmp_path / "model" / "model.safetensors"):
        assert stat.S_IMODE(path.stat().st_mode) == wanted


# ---- full disks


def big_tensors(path: Path) -> None:
    save_file({"w": torch.zeros(10_000)}, path)


def big_state(path: Path) -> None:
    with open(path, "wb") as file:
        torch.save({"w": torch.zeros(10_000)}, file)


@pytest.mark.parametrize("write", [big_tensors, big_state, lambda path: path.write_bytes(bytes(9999))])
def test_a_full_disk_is_said_to_be_full_whatever_library_writes(tmp_path, write) -> None:
    (tmp_path / "x").write_text("last good state")
    with (
        files_no_larger_than(5000),
        pytest.raises(OSError, match=r"File too large: .*/x'") as error,
        write_whole(tmp_path / "x") as temporary,
    ):
        write(temporary)
    assert error.value.filename == str(tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_text() == "last good state"


def test_other_errors_stay_what_they_are(tmp_path) -> None:
    with pytest.raises(KeyError), write_whole(tmp_path / "x"):
        raise KeyError("no disk")
    with pytest.raises(FileNotFoundError) as error, write_whole(tmp_path / "x"):
        pass  # nothing was written
    assert error.value.filename == str(tmp_path / "x")


# ---- what kills leave


def test_the_next_run_removes_what_a_killed_one_left(tmp_path) -> None:
    pid = gone()
    out = tmp_path / "run"
    (out / "checkpoints" / f".step-1.{pid}.tmp").mkdir(parents=True)
    (out / "checkpoints" / f".best.safetensors.{pid}.tmp").touch()
    (tmp_path / f".run.{pid}.tmp").touch()
    kept = [out / "x.tmp", out / ".x.tmp", out / f".x.{os.getpid()}.tmp", tmp_path / f".other.{pid}.tmp"]
    for path in kept:
        path.touch()
    with hold(out):
        assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted([*kept, tmp_path / ".run.lock"])
        assert list((out / "checkpoints").iterdir()) == []


# ---- one writer at a time


@pytest.mark.parametrize("kind", ["file", "folder", "nothing", "link"])
def test_a_second_process_says_who_holds_the_output(tmp_path, kind) -> None:
    out = tmp_path / "out"
    if kind == "file":
        out.touch()
    elif kind == "folder":
        out.mkdir()
    elif kind == "link":
        (tmp_path / "far").mkdir()
        out.symlink_to(tmp_path / "far")
    process = holder(out)
    try:
        with pytest.raises(HeldError, match=rf"process {process.pid} on .* writes to it; wait .* choose another --out"):
            hold(out).__enter__()
        with hold(tmp_path / "another"):
            pass
    finally:
        process.kill()
        process.wait()
    with hold(out), hold(out):  # goes with the process
        assert len(list(tmp_path.glob(".*.lock"))) == 1
    assert list(tmp_path.glob(".*.lock")) == []


def test_a_lock_of_a_killed_parent_does_not_stay_with_its_workers(tmp_path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", FORKED],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    process.wait()
    with hold(tmp_path / "out"):
        os.kill(worker, 9)


def test_where_nothing_can_be_written_beside_a_folder_its_lock_is_in_it(tmp_path, monkeypatch) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with hold(tmp_path / "out"):
        assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]


def test_of_processes_launched_together_the_first_holds_the_lock(tmp_path, monkeypatch) -> None:
    process = holder(tmp_path / "out")
    monkeypatch.setenv("RANK", "1")
    with hold(tmp_path / "out"):
        process.kill()
    process.wait()


def test_a_second_command_stops(random_model, studies_file) -> None:
    out = studies_file.parent / "drafts.jsonl"
    process = holder(out)
    started = time.monotonic()
    try:
        status, sentence = run("generate", "--model", random_model, "--studies", studies_file, "--out", out)
    finally:
        process.kill()
        process.wait()
    assert status == 1
    assert sentence.startswith(f"raddraft generate: {out}: process {process.pid} on ")
    assert time.monotonic() - started < 30
    assert not out.exists()
    assert run("generate", "--model", random_model, "--studies", studies_file, "--out", out)[0] == 0
