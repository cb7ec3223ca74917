"""The console script, alone and launched on two processes, in a folder whose files have names of our packages."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from generator.generate import BANNER
from tests.launch import run_script
from tests.test_cli import run

BIN = Path(sys.executable).parent
RADDRAFT = BIN / "raddraft"
# Accelerate starts one process only with --cpu, whatever --num_processes says; --multi_gpu is what it infers from GPUs.
LAUNCH = (BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")

INSTALLED = pytest.mark.skipif(
    not RADDRAFT.is_file(), reason="the console scripts are not installed beside this Python"
)


@pytest.fixture
def crowded_folder(tmp_path: Path) -> Path:
    """A folder with modules and folders of the names of ours, all of which fail when they are imported."""
    folder = tmp_path / "elsewhere"
    for name in (
        "encoder.py",
        "metrics.py",
        "generator/__init__.py",
        "scripts/__init__.py",
        "scripts/draft.py",
        "scripts/train.py",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("raise SystemExit('this is not our module')\n")
    (folder / "configs").mkdir()
    return folder


@INSTALLED
def test_training_runs_on_two_processes(tower_folder, lm_folder, studies_file, crowded_folder, monkeypatch) -> None:
    model = ("--model.tower", tower_folder, "--model.lm", lm_folder)
    loop = ("--train.stages", '[{"epochs": 1}]', "--train.batch_size", 24, "--train.workers", 0)
    words = ("train", "--studies", studies_file, "--out", crowded_folder / "run", *model, *loop)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    said = run_script(*LAUNCH, RADDRAFT, *words, folder=crowded_folder)  # whose processes are started by Python itself
    assert "processes: 2" in said
    assert said.count(f"model: {crowded_folder / 'run' / 'model'}") == 1


@INSTALLED
def test_the_script_drafts_in_one_process_and_says_so(random_model, studies_file, crowded_folder, monkeypatch) -> None:
    words = ("draft", random_model, studies_file.parent / "1.png", "--decode.max_new_tokens", 4)
    assert run_script(RADDRAFT, *words, folder=crowded_folder).count(BANNER) == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, sentence = run(*words)
    assert status == 1
    assert sentence.startswith("raddraft draft: draft runs in one process; `raddraft generate` shares")
