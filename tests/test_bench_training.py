"""The benches of training compare like with like, and run."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

from benchmarks.pretrain import LAPTOP, bench_pretraining
from benchmarks.training import bench_training
from encoder.recipe import Architecture, DinoConfig
from tests.conftest import make_study
from tests.launch import SERVER


def test_all_ways_of_the_bench_have_equal_losses(lm_folder, tmp_path, capsys) -> None:
    studies = [make_study(tmp_path, i, "train") for i in range(10)]
    del studies[3].sections["findings"]  # neither way can train on it
    assert bench_training(lm_folder, studies, n_steps=6, batch_size=4, image_size=28)
    assert capsys.readouterr().out.count("times as fast") == 3


def bench_here(images: list[Path], printed: Path) -> None:
    small = DinoConfig(prototypes=16, head_hidden=16, bottleneck=8, separate_ibot_head=True)
    config = replace(LAPTOP, architecture=Architecture(64, 1, 14), objective=small, batch_size=4, micro_batch_size=4)
    with redirect_stdout(io.StringIO()) as text:
        bench_pretraining(images, 4, replace(config, workers=0))
    printed.write_text(text.getvalue())


def test_pretraining_is_timed_beside_the_bare_network(tmp_path) -> None:
    """In a process of its own: what precision Accelerate has is settled once in a process."""
    images = [make_study(tmp_path, i, "train").main_image.path for i in range(8)]
    process = SERVER.Process(target=bench_here, args=(images, tmp_path / "printed.txt"))
    process.start()
    process.join()
    assert process.exitcode == 0
    text = (tmp_path / "printed.txt").read_text()
    speeds = re.search(r"a step (\S+) images/s, bare network (\S+): \d+%", text)
    assert speeds, text
    assert all(float(speed) > 0 for speed in speeds.groups())
