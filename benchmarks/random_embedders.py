"""Models with random weights in the official layouts of CXR-BERT, CXRFEScore, RaTEScore and modern-radgraph-xl.

They are for tests and benchmarks; nothing they say of a report means anything.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.random_models import save_bert, save_radgraph
from metrics.ratescore import TYPES

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
RATE_LABELS = ["O", *(f"{part}-{kind}" for kind in TYPES for part in "BI")]
LIST_PIECES = ('["', '", "', '"]')


def save_cxr_bert(folder: Path, texts: Sequence[str], projection: int = 8) -> Path:
    """A folder as of microsoft/BiomedVLP-CXR-BERT-specialized, whose config asks for code of its own."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    save_bert(folder, texts, **TINY)
    vocabulary = BertTokenizer.from_pretrained(folder).get_vocab()
    (folder / "vocab.txt").write_text("\n".join(sorted(vocabulary, key=vocabulary.__getitem__)) + "\n")
    (folder / "tokenizer.json").unlink()
    torch.manual_seed(0)
    network = BertForMaskedLM(BertConfig.from_pretrained(folder, initializer_range=0.3))
    for name, layer in (
        ("dense_to_hidden", torch.nn.Linear(TINY["hidden_size"], projection)),
        ("LayerNorm", torch.nn.LayerNorm(projection)),
        ("dense_to_output", torch.nn.Linear(projection, projection)),
    ):
        network.add_module(f"cls_projection_head_{name}", layer)
    state = {key.replace("head_", "head."): value for key, value in network.state_dict().items()}
    torch.save(state, folder / "pytorch_model.bin")
    code = {"model_type": "cxr-bert", "projection_size": projection, "auto_map": {"AutoModel": "x.CXRBertModel"}}
    tokenizer = {"tokenizer_class": "CXRBertTokenizer", "auto_map": {"AutoTokenizer": ["x.Y", None]}}
    for file, extra in (("config.json", code), ("tokenizer_config.json", tokenizer)):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | extra))
    return folder


def save_t5(folder: Path, texts: Sequence[str], lists: bool = False) -> Path:
    """A folder as of pamessina/T5FactExtractor.

    Args:
        folder: to write.
        texts: words and letters of its tokenizer.
        lists: let it write parts of lists and some words only, so that it finds facts; else it hardly ever does.
    """
    import torch
    from transformers import T5Config, T5ForConditionalGeneration, T5Tokenizer

    words = sorted({word for text in texts for word in text.split()})
    letters = sorted({letter for word in words for letter in word})
    starts = [f"▁{word}" for word in words]
    pieces = dict.fromkeys(["<pad>", "</s>", "<unk>", *"[]", '"', ",", *LIST_PIECES, "▁", *starts, *letters])
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"d_model": 64 if lists else 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=len(tokenizer), **sizes | {"decoder_start_token_id": 0})
    network = T5ForConditionalGeneration(config)
    if lists:
        ids = {piece: i for i, piece in enumerate(pieces)}
        _let_write_lists(network, [ids[piece] for piece in LIST_PIECES], [ids[piece] for piece in starts[-20:]])
    network.save_pretrained(folder)
    return folder


def _let_write_lists(network: Any, marks: Sequence[int], words: Sequence[int]) -> None:
    """Let what follows a token be what can follow it in a list of texts; chance and what it reads choose."""
    import torch

    opens, comma, closes = marks
    start, end = network.config.decoder_start_token_id, network.config.eos_token_id
    with torch.no_grad():
        inputs = network.shared.weight
        outputs = torch.zeros_like(inputs)
        outputs[opens], outputs[end] = inputs[start], inputs[closes]
        outputs[words] = inputs[opens] + inputs[comma] + 2 * torch.randn(len(words), inputs.shape[1])
        share = torch.tensor([[3.0], [3.3]])  # most lists come to an end
        outputs[[comma, closes]] = share * inputs[words].sum(0) + torch.randn(2, inputs.shape[1])
    network.lm_head.weight = torch.nn.Parameter(outputs)  # no longer tied


def save_ratescore(folder: Path, texts: Sequence[str]) -> tuple[Path, Path]:
    """Folders as of Angelakeke/RaTE-NER-Deberta and FremyCompany/BioLORD-2023-C."""
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        DebertaV2Config,
        DebertaV2ForTokenClassification,
        DebertaV2Tokenizer,
    )

    ner, synonyms = folder / "ner", folder / "synonyms"
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    letters = sorted({letter for word in words for letter in word})
    pieces = dict.fromkeys(["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁", *(f"▁{word}" for word in words), *letters])
    tokenizer = DebertaV2Tokenizer(vocab=[(piece, -1.0) for piece in pieces])
    tokenizer.save_pretrained(ner)
    torch.manual_seed(0)
    config = DebertaV2Config(vocab_size=len(tokenizer), initializer_range=0.5, **TINY)  # type: ignore[arg-type]
    config.id2label = dict(enumerate(RATE_LABELS))
    config.label2id = {label: i for i, label in enumerate(RATE_LABELS)}
    DebertaV2ForTokenClassification(config).save_pretrained(ner)
    save_bert(synonyms, texts, **TINY)
    BertModel(BertConfig.from_pretrained(synonyms, initializer_range=0.3)).save_pretrained(synonyms)
    return ner, synonyms


def save_modern_radgraph(folder: Path, texts: Sequence[str], width: int = 16, **shares: float) -> tuple[Path, Path]:
    """What modern-radgraph-xl.tar.gz unpacks to, and the folder of its ModernBERT's tokenizer and config.

    Args:
        folder: to write to.
        texts: words of the tokenizer; the first eight also set how many entities are found.
        width: of the scorers' hidden layers.
        shares: entity_share and relation_share of `save_radgraph`.
    """
    from transformers import AutoTokenizer, ModernBertConfig

    bert, model = folder / "modern-bert", folder / "modern-radgraph-xl"
    save_bert(bert, texts)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    special = {"cls_token_id": first, "bos_token_id": first, "sep_token_id": last, "eos_token_id": last}
    sizes: dict[str, Any] = special | TINY | {"pad_token_id": tokenizer.pad_token_id, "max_position_embeddings": 512}
    config = ModernBertConfig(vocab_size=len(tokenizer), **sizes)
    config.save_pretrained(bert)
    save_radgraph(model, bert, texts[:8], model.name, width, 3, **shares)
    return model, bert


def save_punkt(folder: Path) -> None:
    """What nltk finds as its Punkt for English in a folder of nltk.data.path: one that knows no abbreviation."""
    english = folder / "tokenizers" / "punkt_tab" / "english"
    english.mkdir(parents=True)
    for name in ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"):
        (english / name).touch()
