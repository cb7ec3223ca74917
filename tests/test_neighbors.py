"""Losses that compare images refuse batches in which an image is alone."""

from __future__ import annotations

import re

import pytest
import torch

from encoder.dino import koleo
from encoder.recipe import DinoConfig, PretrainConfig
from generator.clip import _count_batches, _rows
from generator.config import ClipConfig
from tests.test_cli import run

PLAIN = DinoConfig(koleo_weight=0.0)


@pytest.mark.parametrize(
    ("sizes", "objective", "message"),
    [
        ((1, 1), DinoConfig(), "KoLeo's nearest neighbor needs two or more images at a time, and batch_size 1 and mic"),
        ((64, 1), DinoConfig(), "and batch_size 64 and micro_batch_size 1 make one; raise both to 2"),
        ((1, 64), DinoConfig(), "or set pretrain.objective.koleo_weight: 0"),
        ((8, 1), DinoConfig(koleo_weight=1e-3, ibot_weight=0.0), "KoLeo's nearest neighbor"),
        ((8, 1), DinoConfig(koleo_weight=0.0, centering="sinkhorn"), "Sinkhorn-Knopp needs two or more images"),
    ],
)
def test_an_image_alone_is_refused(sizes, objective, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        PretrainConfig(batch_size=sizes[0], micro_batch_size=sizes[1], objective=objective)


def test_images_of_other_processes_are_neighbors(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    PretrainConfig(batch_size=8, micro_batch_size=1)
    with pytest.raises(ValueError, match="on 4 processes make one"):
        PretrainConfig(batch_size=1, micro_batch_size=1)
    monkeypatch.setenv("WORLD_SIZE", "1")
    PretrainConfig(batch_size=8, micro_batch_size=2)
    PretrainConfig(batch_size=8, micro_batch_size=1, objective=PLAIN)


def test_the_command_says_it_in_a_sentence(studies_file, tmp_path) -> None:
    words = ("--studies", studies_file, "--out", tmp_path / "run", "--pretrain.micro_batch_size", 1)
    status, sentence = run("pretrain", *words)
    assert status == 1
    assert sentence.startswith("raddraft pretrain: KoLeo's nearest neighbor needs two or more images at a time")
    assert not (tmp_path / "run").exists()


def test_koleo_of_one_vector_says_nothing() -> None:
    x = torch.randn(1, 8, requires_grad=True)
    loss = koleo(x)
    loss.backward()
    assert loss.item() == 0
    assert x.grad is not None
    assert not x.grad.any()


@pytest.mark.parametrize("batch_size", [2, 3, 4, 128])
def test_no_pair_of_image_and_report_is_alone_in_its_batch(batch_size) -> None:
    for n in range(2, 40):
        count = _count_batches(n, batch_size)
        sizes = [len(_rows(n, count, 0, step)) for step in range(count)]
        assert sum(sizes) == n
        assert min(sizes) >= 2
        assert max(sizes) <= batch_size + (batch_size == 2 and n % 2)
    with pytest.raises(ValueError, match=r"clip\.batch_size must be at least 2, got 1"):
        ClipConfig(batch_size=1)
