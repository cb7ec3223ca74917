"""Commands, alone and launched on two processes, in a folder whose files have the names of this project's packages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from generator.generate import BANNER
from tests.test_cli import random_model  # noqa: F401 - a fixture

# ruff: noqa: F811

BIN = Path(sys.executable).parent
RADDRAFT = BIN / "raddraft"
LAUNCH = (BIN / "accelerate", "launch", "--cpu", "--num_processes", "2", "--main_process_port", "0")


@pytest.fixture
def crowded_folder(tmp_path: Path) -> Path:
    """A folder with modules and folders of the names of ours, all of which fail when they are imported."""
    folder = tmp_path / "elsewhere"
    for name in ("encoder.py", "metrics.py", "generator/__init__.py", "scripts/__init__.py", "scripts/generate.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise SystemExit('this is not our module')\n")
    (folder / "configs").mkdir()
    return folder


def run_in(folder: Path, *words: object) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.skipif(not RADDRAFT.is_file(), reason="the console scripts are not installed beside this Python")
def test_two_processes_of_the_console_script_share_the_drafts(random_model, studies_file, crowded_folder) -> None:
    out = crowded_folder / "out.jsonl"
    words = ("generate", "--model", random_model, "--studies", studies_file, "--out", out, "--decode.batch_size", 4)
    said = run_in(crowded_folder, *LAUNCH, RADDRAFT, *words, "--decode.max_new_tokens", 4, "--workers", 0)
    assert said.count("8 of 8 drafts are in") == 1
    assert [json.loads(line)["study_id"] for line in out.read_text().splitlines()] == [f"s{i}" for i in range(32, 40)]
    assert not list(crowded_folder.glob("out.jsonl.*"))
    assert run_in(crowded_folder, RADDRAFT, "train", "--help").startswith("usage: raddraft train ")


def test_of_two_processes_of_the_module_one_drafts(random_model, studies_file, crowded_folder) -> None:
    words = ("draft", random_model, studies_file.parent / "1.png", "--decode.max_new_tokens", 4)
    assert run_in(crowded_folder, *LAUNCH, "-m", "raddraft", *words).count(BANNER) == 1
