"""Greedy texts that do not depend on the batch, with a model most of whose tokens are almost equally likely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from generator import decoding
from generator.config import DecodeConfig
from generator.drafter import Drafter
from generator.generate import decode
from generator.model import load
from generator.speculate import Speculator, index_reports
from raddraft.studies import read_studies

CONFIG = DecodeConfig(max_new_tokens=25)


@pytest.fixture
def undecided(model_folder: Path) -> Drafter:
    """Pairs of its tokens get logits that differ by less than another batch changes them."""
    drafter = load(model_folder)
    torch.manual_seed(0)
    with torch.no_grad():
        weight = drafter.model.lm_head.weight
        weight[1::2] = weight[0::2] + 3e-9 * torch.randn_like(weight[0::2])
    return drafter


def texts(drafter: Drafter, studies: list, size: int, speculator: Speculator | None = None) -> list[str]:
    examples = drafter.encode(studies, answers=False)
    return [one.text for one in decode(drafter, examples, replace(CONFIG, batch_size=size), speculator=speculator)]


def test_near_ties_are_settled_alike_in_every_batch(undecided, studies_file, monkeypatch) -> None:
    studies = read_studies(studies_file)
    alone = texts(undecided, studies, 1)
    assert len(set(alone)) > 5
    for size in (3, 16, 40):
        assert texts(undecided, studies, size) == alone
    proposed = texts(undecided, studies, 16, Speculator(index_reports(undecided, studies)))
    assert proposed == alone
    monkeypatch.setattr(decoding, "settles", lambda model: False)  # else nothing above would need to be settled
    assert texts(undecided, studies, 40) != texts(undecided, studies, 1)


def test_ties_are_left_as_they_are_in_16_bits(undecided) -> None:
    assert decoding.settles(undecided.model)
    assert not decoding.settles(undecided.model.bfloat16())
