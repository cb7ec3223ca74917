"""Greedy texts that do not depend on the batch, with a model most of whose tokens are almost equally likely."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from generator import decoding
from generator.config import DecodeConfig
from generator.decoding import end_tokens
from generator.drafter import Drafter
from generator.generate import decode
from generator.model import load
from generator.speculate import Speculator, index_reports
from raddraft.studies import read_studies
from tests.test_generate import collate_studies

CONFIG = DecodeConfig(max_new_tokens=16)


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
    studies = read_studies(studies_file)[:12]
    alone = texts(undecided, studies, 1)
    assert len(set(alone)) > 5
    for size in (3, 12):
        assert texts(undecided, studies, size) == alone
    proposed = texts(undecided, studies, 12, Speculator(index_reports(undecided, studies)))
    assert proposed == alone
    monkeypatch.setattr(decoding, "settles", lambda model: False)  # else nothing above would need to be settled
    assert texts(undecided, studies, 12) != texts(undecided, studies, 1)


def test_a_draft_may_hold_the_token_of_an_image(model_folder, studies_file, monkeypatch) -> None:
    """As an untrained model writes it; it stands for no further image when a tie is settled."""
    drafter, studies = load(model_folder), read_studies(studies_file)[:6]
    image = drafter.model.config.image_token_id

    def tokens() -> list[list[int]]:
        batch = collate_studies(drafter, studies)
        return decoding.decode_tokens(drafter, batch, CONFIG).tokens

    usual, weight = tokens()[0][3], drafter.model.lm_head.weight
    with torch.no_grad():  # now and then, as no end comes
        weight[sorted(end_tokens(drafter.model))] = 0
        weight[image] = 1.5 * weight[usual]
    plain = tokens()
    assert any(image in line[:-1] for line in plain)
    monkeypatch.setattr("generator.ties.NEAR", 1e9)  # every token is settled
    assert tokens() == plain


def test_ties_are_left_as_they_are_in_16_bits(undecided) -> None:
    assert decoding.settles(undecided.model)
    assert not decoding.settles(undecided.model.bfloat16())
