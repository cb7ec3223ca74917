"""The bench of training compares like with like: the plain script and our loop see the same losses."""

from __future__ import annotations

from scripts._bench_training import bench_training
from tests.conftest import make_study


def test_all_ways_of_the_bench_have_equal_losses(lm_folder, tmp_path, capsys) -> None:
    studies = [make_study(tmp_path, i, "train") for i in range(10)]
    del studies[3].sections["findings"]  # neither way can train on it
    assert bench_training(lm_folder, studies, n_steps=6, batch_size=4, image_size=28)
    assert capsys.readouterr().out.count("times as fast") == 3
