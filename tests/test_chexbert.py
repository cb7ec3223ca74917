"""CheXbert on random tiny checkpoints in the authors' layout, against BERT's forward pass written out by hand."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from metrics.chexbert import CheXbert
from metrics.networks import alike
from metrics.rules import OBSERVATIONS
from metrics.weights import MissingWeights, locate
from tests.conftest import SENTENCES

HIDDEN, LAYERS, INNER, POSITIONS = 128, 2, 96, 512  # two attention heads of 64
TEXTS = [" ".join(SENTENCES[(7 * i + k * k) % 6] for k in range(1 + i % 9)) for i in range(30)]

State = dict[str, Tensor]


def random_state(vocabulary: int, seed: int = 0) -> State:
    """Every parameter of the published labeler, under its published name."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, scale: float = 0.15) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    def linear(name: str, outputs: int, inputs: int) -> State:
        return {f"{name}.weight": random(outputs, inputs), f"{name}.bias": random(outputs)}

    def norm(name: str) -> State:
        return {f"{name}.weight": 1 + random(HIDDEN), f"{name}.bias": random(HIDDEN)}

    state = {"bert.embeddings.position_ids": torch.arange(POSITIONS)[None]}
    for name, rows in (("word", vocabulary), ("position", POSITIONS), ("token_type", 2)):
        state[f"bert.embeddings.{name}_embeddings.weight"] = random(rows, HIDDEN, scale=1.0)
    state |= norm("bert.embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            state |= linear(f"{layer}.attention.{name}", HIDDEN, HIDDEN)
        state |= norm(f"{layer}.attention.output.LayerNorm")
        state |= linear(f"{layer}.intermediate.dense", INNER, HIDDEN) | linear(f"{layer}.output.dense", HIDDEN, INNER)
        state |= norm(f"{layer}.output.LayerNorm")
    state |= linear("bert.pooler.dense", HIDDEN, HIDDEN)
    for i in range(14):
        state |= linear(f"linear_heads.{i}", 2 if i == 13 else 4, HIDDEN)
    return state


def write_checkpoint(path: Path, state: State, prefix: str = "module.", **options: Any) -> Path:
    """As the authors saved it: DataParallel's prefix, the epoch, the optimizer's state."""
    steps = {i: {"step": 7, "exp_avg": torch.zeros_like(value)} for i, value in enumerate(state.values())}
    optimizer = {"state": steps, "param_groups": [{"lr": 2e-5, "params": list(steps)}]}
    named = {prefix + key: value for key, value in state.items()}
    torch.save({"epoch": 3, "model_state_dict": named, "optimizer_state_dict": optimizer}, path, **options)
    return path


def by_hand(state: State, ids: list[int]) -> list[Tensor]:
    """The 14 logits of one text: BERT as Devlin et al. describe it, [CLS], one linear layer for each observation."""

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centered = x - x.mean(-1, keepdim=True)
        scaled = centered / torch.sqrt((centered**2).mean(-1, keepdim=True) + 1e-12)
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    def split(x: Tensor) -> Tensor:  # [T, D] -> [heads, T, 64]
        return x.reshape(len(ids), -1, 64).transpose(0, 1)

    table = "bert.embeddings.{}_embeddings.weight".format
    x = state[table("word")][ids] + state[table("position")][: len(ids)] + state[table("token_type")][0]
    x = norm(x, "bert.embeddings.LayerNorm")
    for i in range(LAYERS):
        layer = f"bert.encoder.layer.{i}"
        query, key, value = (split(linear(x, f"{layer}.attention.self.{n}")) for n in ("query", "key", "value"))
        seen = torch.softmax(query @ key.transpose(1, 2) / math.sqrt(64), -1) @ value
        seen = linear(seen.transpose(0, 1).reshape(len(ids), HIDDEN), f"{layer}.attention.output.dense")
        x = norm(x + seen, f"{layer}.attention.output.LayerNorm")
        inner = linear(x, f"{layer}.intermediate.dense")
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = norm(x + linear(inner, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
    return [linear(x[0], f"linear_heads.{i}") for i in range(14)]


@pytest.fixture(scope="module")
def vocabulary(bert_folder: Path) -> dict[str, int]:
    return json.loads((bert_folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]


@pytest.fixture(scope="module")
def state(vocabulary: dict[str, int]) -> State:
    return random_state(len(vocabulary))


@pytest.fixture(scope="module")
def labeler(state: State, bert_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> CheXbert:
    path = write_checkpoint(tmp_path_factory.mktemp("chexbert") / "chexbert.pth", state)
    return CheXbert(path, bert_folder, device="cpu")


def word_pieces(text: str, vocabulary: dict[str, int]) -> list[int]:
    """[CLS], greedy longest word pieces of lower-case words and punctuation, [SEP]."""
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            ends = range(len(word), start, -1)
            end = next(end for end in ends if ("##" if start else "") + word[start:end] in vocabulary)
            ids.append(vocabulary[("##" if start else "") + word[start:end]])
            start = end
    return [*ids, vocabulary["[SEP]"]]


def in_batches(labeler: CheXbert, texts: list[str], size: int) -> tuple[list[dict[str, int | None]], Tensor]:
    """Labels of all texts, and all logits side by side: [texts, 54]."""
    batches = [texts[i : i + size] for i in range(0, len(texts), size)]
    labels = [row for batch in batches for row in labeler.annotate(batch)]
    return labels, torch.cat([torch.cat(labeler.logits(batch), dim=1) for batch in batches])


def test_logits_are_those_of_the_published_architecture(labeler, state, vocabulary) -> None:
    logits = labeler.logits(TEXTS)  # one padded batch of many lengths
    assert [tuple(head.shape) for head in logits] == [(30, 4)] * 13 + [(30, 2)]
    for i, text in enumerate(TEXTS):
        for ours, expected in zip(logits, by_hand(state, word_pieces(text, vocabulary)), strict=True):
            torch.testing.assert_close(ours[i], expected, atol=1e-4, rtol=0)


def test_labels_do_not_depend_on_batch_size_or_order(labeler) -> None:
    labels, logits = in_batches(labeler, TEXTS, 1)
    assert {value for row in labels for value in row.values()} == {None, 1, 0, -1}, "else the test proves little"
    assert len({tuple(row.values()) for row in labels}) > 5
    by_length = sorted(range(len(TEXTS)), key=lambda i: len(TEXTS[i]))
    for order in (list(range(len(TEXTS))), by_length):
        for size in (1, 3, 16):
            again, others = in_batches(labeler, [TEXTS[i] for i in order], size)
            assert again == [labels[i] for i in order]
            torch.testing.assert_close(others, logits[order], atol=1e-4, rtol=0)


def test_bfloat16_is_near_and_says_so(labeler, state, bert_folder, tmp_path) -> None:
    path = write_checkpoint(tmp_path / "chexbert.pth", state)
    rounded = CheXbert(path, bert_folder, device="cpu", bfloat16=True)
    assert rounded.signature.removeprefix(labeler.signature) == " bfloat16"
    assert rounded.key != labeler.key, "labels are kept apart"
    for ours, expected in zip(rounded.logits(TEXTS), labeler.logits(TEXTS), strict=True):
        assert ours.dtype == torch.float32
        apart = (ours - expected).abs().max()
        assert 1e-5 < apart < 0.05 * expected.std()


@pytest.mark.parametrize("lengths", [[5], [2, 512], [9, 3, 9, 4, 100, 95, 50, 9], list(range(2, 60)), [7] * 16])
def test_groups_hold_every_text_once_and_little_padding(lengths) -> None:
    groups = alike(lengths)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    for group in groups:
        assert sum(lengths[i] for i in group) > 0.9 * len(group) * max(lengths[i] for i in group)
    if len(set(lengths)) == 1:
        assert len(groups) == 1


def test_classes_of_the_heads(state, bert_folder, tmp_path) -> None:
    values = {0: None, 1: 1, 2: 0, 3: -1}  # blank, positive, negative, uncertain
    for no_finding in (0, 1):
        biased = state | {f"linear_heads.{i}.weight": torch.zeros(4, HIDDEN) for i in range(13)}
        biased |= {f"linear_heads.{i}.bias": 3.0 * F.one_hot(torch.tensor(i % 4), 4) for i in range(13)}
        biased |= {"linear_heads.13.weight": torch.zeros(2, HIDDEN)}
        biased |= {"linear_heads.13.bias": 3.0 * F.one_hot(torch.tensor(no_finding), 2)}
        path = write_checkpoint(tmp_path / f"{no_finding}.pth", biased)
        (labels,) = CheXbert(path, bert_folder).annotate(["The heart is enlarged."])
        assert list(labels) == list(OBSERVATIONS)
        assert list(labels.values()) == [*(values[i % 4] for i in range(13)), values[no_finding]]


@pytest.mark.parametrize(
    "text", ["", " \n\t ", "The heart\n\nis   enlarged.\n", "THE HEART IS ENLARGED.", "No effusion. " * 400]
)
def test_text_is_stripped_collapsed_lowered_and_cut(labeler, state, vocabulary, text) -> None:
    ids = word_pieces(text, vocabulary)
    if len(ids) > 512:
        ids = [*ids[:511], vocabulary["[SEP]"]]
    # beside a short and a long neighbor
    for head, expected in zip(labeler.logits(["No effusion.", text, TEXTS[8]]), by_hand(state, ids), strict=True):
        torch.testing.assert_close(head[1], expected, atol=1e-4, rtol=0)


def test_embedding_is_what_the_heads_see(labeler, state) -> None:
    embedded = labeler.embed(TEXTS)
    assert embedded.shape == (30, HIDDEN)
    assert labeler.embed([]).shape == (0, HIDDEN)
    assert labeler.annotate([]) == []
    expected = embedded @ state["linear_heads.4.weight"].T + state["linear_heads.4.bias"]
    torch.testing.assert_close(labeler.logits(TEXTS)[4], expected, atol=1e-5, rtol=0)


def lean(state: State) -> State:
    return {key: value for key, value in state.items() if "pooler" not in key and "position_ids" not in key}


FORMS: dict[str, Callable[[Path, State], Path]] = {
    "no prefix": partial(write_checkpoint, prefix=""),
    "neither pooler nor position numbers": lambda path, state: write_checkpoint(path, lean(state)),
    "file of an old torch": partial(write_checkpoint, _use_new_zipfile_serialization=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_the_checkpoint_are_one_labeler(labeler, state, bert_folder, tmp_path, form) -> None:
    other = CheXbert(FORMS[form](tmp_path / "chexbert.pth", state), bert_folder)
    assert torch.equal(torch.cat(other.logits(TEXTS), 1), torch.cat(labeler.logits(TEXTS), 1))


QUERY = "bert.encoder.layer.1.attention.self.query.weight"
WORDS = "bert.embeddings.word_embeddings.weight"
FAULTS = {
    "missing in BERT": (lambda s: s.pop(QUERY), f'Missing key(s) in state_dict: "{QUERY}"'),
    "missing head": (lambda s: s.pop("linear_heads.13.bias"), 'Missing key(s) in state_dict: "linear_heads.13.bias"'),
    "missing words": (lambda s: s.pop(WORDS), f"'{WORDS}' is missing"),
    "extra head": (
        lambda s: s.update({"linear_heads.14.bias": torch.zeros(4)}),
        'Unexpected key(s) in state_dict: "linear_heads.14.bias"',
    ),
    "wide head": (
        lambda s: s.update({"linear_heads.13.weight": torch.zeros(4, HIDDEN)}),
        f"size mismatch for linear_heads.13.weight: copying a param with shape torch.Size([4, {HIDDEN}])",
    ),
    "flat words": (lambda s: s.update({WORDS: torch.zeros(9)}), f"{WORDS} is not a matrix"),
    "another model": (lambda s: s.clear(), "is missing"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_parameters_are_named(state, bert_folder, tmp_path, fault) -> None:
    spoil, message = FAULTS[fault]
    spoiled = dict(state)
    spoil(spoiled)
    path = write_checkpoint(tmp_path / "chexbert.pth", spoiled)
    with pytest.raises(
        ValueError, match=re.escape(f"{path} is not a CheXbert checkpoint: ") + f".*{re.escape(message)}"
    ):
        CheXbert(path, bert_folder)


@pytest.mark.parametrize("content", [b"", b"<html>Not found</html>", None, Path("/")])
def test_other_files_are_refused(bert_folder, tmp_path, content) -> None:
    path = tmp_path / "chexbert.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:  # no state at all; an object that only an unsafe load would make
        torch.save({"epoch": content}, path)
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        CheXbert(path, bert_folder)
    assert "\n" not in str(caught.value)


def test_a_cut_file_is_refused(state, bert_folder, tmp_path) -> None:
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        path = write_checkpoint(tmp_path / "chexbert.pth", state, **options)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match="is not a whole PyTorch checkpoint"):
            CheXbert(path, bert_folder)


def test_the_tokenizer_must_fit(state, vocabulary, bert_folder, tmp_path) -> None:
    from transformers import BertTokenizer

    path = write_checkpoint(tmp_path / "chexbert.pth", random_state(len(vocabulary) + 1))
    with pytest.raises(ValueError, match=f"has {len(vocabulary)} entries, the vocabulary of .* {len(vocabulary) + 1}"):
        CheXbert(path, bert_folder)
    path = write_checkpoint(path, state)
    BertTokenizer(vocab=vocabulary, do_lower_case=False).save_pretrained(tmp_path / "cased")
    with pytest.raises(ValueError, match="cased is case-sensitive"):
        CheXbert(path, tmp_path / "cased")
    with pytest.raises(ValueError, match=r"No tokenizer can be loaded from .*nowhere"):
        CheXbert(path, tmp_path / "nowhere")


def test_key_and_signature_tell_checkpoint_and_vocabulary(labeler, state, vocabulary, bert_folder, tmp_path) -> None:
    from transformers import BertConfig, BertTokenizer

    path = write_checkpoint(tmp_path / "renamed.pth", state)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    # the same tokenizer as a plain vocab.txt
    lines = "".join(f"{piece}\n" for piece in sorted(vocabulary, key=vocabulary.__getitem__))
    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "vocab.txt").write_text(lines, encoding="utf-8")
    BertConfig(vocab_size=len(vocabulary)).save_pretrained(plain)
    renamed = CheXbert(path, plain)
    assert renamed.key == f"chexbert:{sha256}:{hashlib.sha256(lines.encode()).hexdigest()}"
    assert renamed.signature == f"chexbert sha256:{sha256[:12]}"
    assert CheXbert(path, bert_folder).key == renamed.key
    assert renamed.annotate(TEXTS) == labeler.annotate(TEXTS)
    swapped = vocabulary | {"heart": vocabulary["lungs"], "lungs": vocabulary["heart"]}
    BertTokenizer(vocab=swapped, do_lower_case=True).save_pretrained(tmp_path / "swapped")
    assert CheXbert(path, tmp_path / "swapped").key not in (renamed.key, labeler.key)
    changed = write_checkpoint(tmp_path / "changed.pth", random_state(len(vocabulary), seed=1))
    assert CheXbert(changed, bert_folder).key != renamed.key


def test_the_real_labeler_on_the_authors_samples(cxr: Path) -> None:
    try:
        checkpoint, tokenizer = locate("chexbert"), locate("chexbert-tokenizer")
    except MissingWeights as missing:
        pytest.skip(str(missing))
    reports = json.loads((cxr / "fixtures/chexbert/sample_labels.json").read_text(encoding="utf-8"))["reports"]
    labels = CheXbert(checkpoint, tokenizer).annotate([report["text"] for report in reports])
    assert labels == [report["labels"] for report in reports]
