"""CXR-BERT cosine and CXRFEScore against values by hand and against the package, on tiny random models."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import nltk
import numpy as np
import pytest

from benchmarks.random_embedders import save_cxr_bert, save_punkt, save_t5
from metrics.embeddings import CXRBert, FactExtractor, _without_repetitions, cxr_bert_cosine, cxrfescore, read_facts
from metrics.weights import check
from raddraft.errors import CannotRun, RadDraftError
from tests.conftest import SENTENCES

DRAFTS = ["The heart is normal in size.", "", "lungs", " ".join(SENTENCES), "Small left pleural effusion.", "heart"]
REPORTS = ["The heart is enlarged.", "The lungs are clear.", "The lungs", "Effusion. " * 400, DRAFTS[4], ""]


@pytest.fixture(scope="module")
def cxr_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_cxr_bert(tmp_path_factory.mktemp("cxr-bert"), SENTENCES)


def embed_by_hand(folder: Path, text: str) -> np.ndarray:
    """One text without padding, with the head in NumPy."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizer

    state = torch.load(folder / "pytorch_model.bin")
    bert = BertModel(BertConfig.from_pretrained(folder), add_pooling_layer=False).eval()
    bert.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("bert.")})
    ids = BertTokenizer.from_pretrained(folder)(text)["input_ids"]
    ids = ids if len(ids) <= 512 else [*ids[:511], ids[-1]]
    with torch.no_grad():
        vector = bert(torch.tensor([ids])).last_hidden_state[0, 0].double().numpy()
    head = {k.partition("head.")[2]: v.double().numpy() for k, v in state.items() if "head." in k}
    vector = head["dense_to_hidden.weight"] @ vector + head["dense_to_hidden.bias"]
    vector = np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in vector])
    vector = (vector - vector.mean()) / np.sqrt(vector.var() + 1e-12)
    vector = head["dense_to_output.weight"] @ (vector * head["LayerNorm.weight"] + head["LayerNorm.bias"])
    vector = vector + head["dense_to_output.bias"]
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_cosine_by_hand_at_every_batch_size(cxr_bert: Path, batch_size: int) -> None:
    measure = cxr_bert_cosine(DRAFTS, REPORTS, CXRBert(cxr_bert, "x", batch_size, "cpu"))["cxr_bert_cosine"]
    by_hand = [embed_by_hand(cxr_bert, a) @ embed_by_hand(cxr_bert, b) for a, b in zip(DRAFTS, REPORTS, strict=True)]
    np.testing.assert_allclose(measure.per_study, by_hand, atol=1e-6)
    assert measure.per_study[4] == pytest.approx(1)
    assert np.std(by_hand) > 0.05, "else this test sees no difference between texts"
    assert "CXR-BERT sha256:" in measure.signature


def test_what_is_no_cxr_bert_is_refused(cxr_bert: Path, tmp_path: Path) -> None:
    import torch

    check("cxr-bert", cxr_bert)
    with pytest.raises(CannotRun, match=r"cxr_bert_cosine needs a folder .*nowhere has no config\.json"):
        CXRBert(tmp_path / "nowhere", "cxr_bert_cosine")
    half = save_cxr_bert(tmp_path / "half", SENTENCES)
    state = torch.load(half / "pytorch_model.bin")
    torch.save({k: v for k, v in state.items() if "dense_to_output" not in k}, half / "pytorch_model.bin")
    with pytest.raises(CannotRun, match=r"the weights in .*half lack cls_projection_head\.dense_to_output"):
        CXRBert(half, "cxr_bert_cosine")
    (half / "vocab.txt").unlink()
    with pytest.raises(RadDraftError, match=r"half lacks vocab\.txt"):
        check("cxr-bert", half)


# Facts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "facts"),
    [
        ('["clear lungs", "no effusion"]', ["clear lungs", "no effusion"]),
        ('Facts: ["clear lungs", "clear lungs"] and more', ["clear lungs"]),
        ('["clear lungs", "no effusion"', ["clear lungs", "no effusion"]),
        ('["clear lungs", "no effu', ["clear lungs"]),
        (r'["broken \ escape"]', []),
        ("[]", []),
        ("clear lungs", []),
        ("", []),
    ],
)
def test_facts_are_read_out_of_what_the_model_writes(written: str, facts: list[str]) -> None:
    assert read_facts(written) == facts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no no effusion", "no effusion"),
        ("left lung Left Lung clear", "left lung clear"),
        ("a b a b a b", "a b"),
        ("a b a", "a b a"),
        ("", ""),
        (" ".join(["one two three four five six seven eight"] * 2), "one two three four five six seven eight"),
    ],
)
def test_repeated_phrases_are_taken_out(text: str, expected: str) -> None:
    assert _without_repetitions(text) == expected


class Commas:
    """Facts are what stands between commas; a sentence with a question mark has none."""

    sha256 = "commas"

    def facts(self, sentences: list[str]) -> dict[str, list[str]]:
        return {one: [] if "?" in one else [part.strip(" .") for part in one.split(",")] for one in sentences}


@pytest.fixture
def no_punkt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """nltk finds nothing, nor remembers what it found."""
    monkeypatch.setattr("nltk.data.path", [str(tmp_path)])
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    yield
    nltk.tokenize._get_punkt_tokenizer.cache_clear()


@pytest.fixture
def punkt(tmp_path: Path, no_punkt: None) -> None:
    """nltk's Punkt that knows no abbreviation."""
    save_punkt(tmp_path)


@pytest.mark.usefixtures("punkt")
def test_cxrfescore_by_hand(cxr_bert: Path) -> None:
    drafts = ["Lungs, heart. Lungs.", "Heart.", "Heart?", "", "effusion, lungs, the heart."]
    reports = ["Heart.", "Heart.", "Heart.", "Heart.", "Lungs are clear. No effusion."]
    measure = cxrfescore(drafts, reports, CXRBert(cxr_bert, "x", 4, "cpu"), Commas())["cxrfescore"]  # type: ignore[arg-type]
    cosine = np.array(
        [
            [embed_by_hand(cxr_bert, a) @ embed_by_hand(cxr_bert, b) for b in ("Lungs are clear", "No effusion")]
            for a in ("effusion", "lungs", "the heart")
        ]
    )
    last = (cosine.max(0).mean() + cosine.max(1).mean()) / 2
    first = embed_by_hand(cxr_bert, "Lungs") @ embed_by_hand(cxr_bert, "Heart")
    assert measure.per_study == pytest.approx([((first + 1) / 2 + 1) / 2, 1, 0, 0, last], abs=1e-6)


@pytest.mark.usefixtures("no_punkt")
def test_cxrfescore_without_punkt_says_how_to_get_it(cxr_bert: Path) -> None:
    with pytest.raises(CannotRun, match=r"cxrfescore needs nltk's Punkt, .*: python -m nltk.downloader punkt_tab"):
        cxrfescore(["a"], ["b"], CXRBert(cxr_bert, "x", 4, "cpu"), Commas())  # type: ignore[arg-type]


def test_the_extractor_writes_and_a_sentence_stands_for_no_facts(tmp_path: Path, monkeypatch) -> None:
    import torch

    extractor = FactExtractor(save_t5(tmp_path, SENTENCES), 2, "cpu")
    found = extractor.facts([*SENTENCES[:3], SENTENCES[0], "42."])
    assert found == {one: [one] for one in SENTENCES[:3]} | {"42.": []}, "random weights write no list"
    written = {SENTENCES[0]: '["heart heart", "lungs"]', SENTENCES[1]: "[", "42.": '["a"]'}

    def generate(input_ids: torch.Tensor, max_new_tokens: int, **_: object) -> torch.Tensor:
        assert max_new_tokens == 4 * input_ids.shape[1]
        return input_ids

    monkeypatch.setattr(extractor._network, "generate", generate)
    monkeypatch.setattr(extractor._tokenizer, "batch_decode", lambda *_, **__: list(written.values()))
    monkeypatch.setattr("metrics.embeddings.in_batches", lambda texts, _: [list(texts)])
    assert extractor.facts(list(written)) == {
        SENTENCES[0]: ["heart", "lungs"],
        SENTENCES[1]: [SENTENCES[1]],
        "42.": ["a"],
    }
