"""RaTEScore by hand: spans as the package reads them, sentences, and the score of tiny random models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.random_embedders import save_ratescore
from metrics.ratescore import AFFINITY, DENIED, Entity, RaTEScore, find_spans, ratescore, split_sentences
from raddraft.errors import CannotRun
from tests.conftest import SENTENCES


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_ratescore(tmp_path_factory.mktemp("ratescore"), SENTENCES)


def spans(labels: str) -> list[tuple[int, int, str]]:
    """Spans of labels such as "O B-x I-x", with [CLS] and [SEP] around them unless they are given."""
    names = labels.split() if labels.startswith("[") else ["O", *labels.split(), "O"]
    pieces = ["[CLS]", *(f"piece{i}" for i in range(len(names) - 2)), "[SEP]"]
    return find_spans(pieces, [name.strip("[]") for name in names])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("O O", []),
        ("B-X", [(1, 1, "X")]),
        ("B-X I-X O", [(1, 2, "X")]),
        ("B-X I-Y I-X", [(1, 3, "X")]),
        ("B-X B-Y", [(1, 1, "X"), (2, 2, "Y")]),
        ("B-X I-X B-Y I-Y", [(1, 2, "X"), (3, 4, "Y")]),
        ("I-X O B-Y", [(3, 3, "Y")]),  # nothing began
        ("I-X B-Y", [(2, 2, "Y")]),
        ("B-X B-Y I-Y", [(1, 1, "X"), (2, 3, "Y")]),
        # [SEP] goes on with the entity: it ends before it, unless a B- stood next to another one.
        ("[O] O B-X [I-X]", [(2, 2, "X")]),
        ("[O] B-X B-Y [I-Y]", [(1, 1, "X")]),
        ("[O] O B-X [B-X]", [(2, 2, "X")]),
    ],
)
def test_spans_as_the_package_reads_them(labels: str, expected: list[tuple[int, int, str]]) -> None:
    assert spans(labels) == expected


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("No effusion. Lungs clear", ["No effusion.", "Lungs clear"]),
        ("A 2.5 cm nodule. Stable.", ["A 2.5 cm nodule.", "Stable."]),
        ("1. Clear lungs. 2. No effusion.", ["Clear lungs.", "2. No effusion."]),
        ("Clear?\nYes! Ok", ["Clear?", "Yes!"]),
        (" \n", []),
    ],
)
def test_sentences(text: str, sentences: list[str]) -> None:
    assert split_sentences(text) == sentences


def test_the_score_by_hand(networks: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = RaTEScore(*networks, device="cpu")
    found: dict[str, list[Entity]] = {
        "effusion": [("pleural effusion", 2), ("left", 1)],
        "no effusion": [("pleural effusion", 4)],
        "nothing": [],
    }
    monkeypatch.setattr(model, "entities", lambda sentences: {one: found[one] for one in sentences})
    texts = ["effusion", "effusion", "nothing", "", "no effusion"]
    others = ["effusion", "no effusion", "effusion", "effusion", "effusion"]
    measure = ratescore(texts, others, model)["ratescore"]
    units = model.embed(["pleural effusion", "left"]).double().numpy()
    cosine = float(units[0] @ units[1])
    weights = AFFINITY[2, 4], AFFINITY[1, 4]
    precision = (weights[0] * DENIED + weights[1] * cosine) / sum(weights)
    recall = DENIED
    mixed = 2 * precision * recall / (precision + recall)
    assert measure.per_study == pytest.approx([1, mixed, 0.5, 0.5, mixed], abs=1e-6)
    assert "as RaTEScore 0.6.0|NER sha256:" in measure.signature


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_real_networks_at_every_batch_size(networks: tuple[Path, Path], batch_size: int) -> None:
    texts = [" ".join(SENTENCES[i : i + 3]) for i in range(6)]
    one, many = (RaTEScore(*networks, size, "cpu") for size in (1, batch_size))
    entities = one.entities(SENTENCES)
    assert many.entities(SENTENCES) == entities
    assert sum(map(len, entities.values())) > len(SENTENCES), "else this test sees nothing"
    first, second = (ratescore(texts, texts[::-1], model)["ratescore"].per_study for model in (one, many))
    np.testing.assert_allclose(first, second, atol=1e-9)
    same = ratescore(texts, texts, one)["ratescore"].value
    assert same > first.mean()


def test_other_labels_are_refused(networks: tuple[Path, Path], tmp_path: Path) -> None:
    ner, synonyms = save_ratescore(tmp_path, SENTENCES)
    config = json.loads((ner / "config.json").read_text())
    config["id2label"]["1"] = "B-PERSON"
    (ner / "config.json").write_text(json.dumps(config))
    with pytest.raises(CannotRun, match=r"has the label 'B-PERSON'; expected O, B- or I- and ABNORMALITY, ANATOMY"):
        RaTEScore(ner, synonyms, device="cpu")
