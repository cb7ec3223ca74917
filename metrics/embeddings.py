"""Likeness of reports by CXR-BERT's embeddings: of whole reports, and of the facts in them (CXRFEScore).

    encoder = CXRBert(Path("BiomedVLP-CXR-BERT-specialized"), "cxr_bert_cosine")
    cxr_bert_cosine(predictions, references, encoder)["cxr_bert_cosine"].value

CXR-BERT (Boecking et al., ECCV 2022, arXiv 2204.09817) is transformers' plain BERT and a head that projects the last
hidden state of [CLS] into the space that it shares with images. The published repositories bring code of their own,
which is not run here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from metrics.networks import load_network
from metrics.text import check_texts, in_batches
from metrics.weights import digest
from raddraft.errors import CannotRun
from raddraft.stats import Measure, mean_measure

LONGEST_REPETITION = 8
"""Words of the longest phrase that is taken out of a fact where it stands twice in a row."""
# What the fact extractor writes: a JSON list of texts, which may lack its end.
_FACTS = re.compile(r'\[\s*(".+?"(\s*,\s*".+?")*)?\s*\]?')


class CXRBert:
    """CXR-BERT in the layout of microsoft/BiomedVLP-CXR-BERT-specialized, which pamessina/CXRFE has as well.

    Args:
        folder: config.json, vocab.txt, and model.safetensors or pytorch_model.bin.
        metric: name of the metric that asks, for messages.
        batch_size: texts encoded at a time; changes the speed, not the embeddings.
        device: of torch; by default a GPU if there is one.

    Raises:
        CannotRun: no such model in the folder, or its weights are incomplete.
    """

    def __init__(self, folder: Path, metric: str, batch_size: int = 32, device: str | None = None) -> None:
        from transformers import BertTokenizer

        self.batch_size = batch_size
        self._network, self._device = load_network(_cxr_bert(), folder, metric, device)
        self._tokenizer = BertTokenizer.from_pretrained(folder, local_files_only=True)
        self.sha256 = digest(folder)

    def embed(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Each text and its embedding, a vector of length 1 [P], in 64 bits. A text is cut at 512 word pieces."""
        import torch

        network, longest = self._network, self._network.config.max_position_embeddings
        units: dict[str, np.ndarray] = {}
        for batch in in_batches(texts, self.batch_size):
            options: dict[str, Any] = {"truncation": True, "max_length": longest, "padding": True}
            inputs = self._tokenizer(batch, **options, return_tensors="pt")
            ids, mask = inputs["input_ids"].to(self._device), inputs["attention_mask"].to(self._device)
            with torch.inference_mode():
                vectors = network(ids, mask).double()
            units |= zip(batch, (vectors / vectors.norm(dim=1, keepdim=True)).cpu().numpy(), strict=True)
        return units


def _cxr_bert() -> Any:
    """The class of the network, whose parameters are named as in the published files."""
    import torch
    from transformers import BertModel, BertPreTrainedModel

    class Network(BertPreTrainedModel):
        """[B, T] ids and mask -> projected embedding of [CLS], [B, P]."""

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            width = config.projection_size
            self.bert = BertModel(config, add_pooling_layer=False)
            self.cls_projection_head = torch.nn.ModuleDict(
                {
                    "dense_to_hidden": torch.nn.Linear(config.hidden_size, width),
                    "LayerNorm": torch.nn.LayerNorm(width, eps=1e-12),
                    "dense_to_output": torch.nn.Linear(width, width),
                }
            )
            self.post_init()

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            head = self.cls_projection_head
            hidden = head["dense_to_hidden"](self.bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0])
            return head["dense_to_output"](head["LayerNorm"](torch.nn.functional.gelu(hidden)))

    return Network


def cxr_bert_cosine(predictions: Sequence[str], references: Sequence[str], encoder: CXRBert) -> dict[str, Measure]:
    """`cxr_bert_cosine`: cosine of the projected embeddings of each report and its reference, in [-1, 1].

    The embedding is that of the model's own `get_projected_text_embeddings`; CXRMate and its successors score so.
    """
    predictions, references = check_texts(predictions, references)
    units = encoder.embed([*predictions, *references])
    cosines = [float(units[ours] @ units[theirs]) for ours, theirs in zip(predictions, references, strict=True)]
    choices = "cosine of projected [CLS]|cut at 512 word pieces|mean over reports"
    signature = f"raddraft {version('raddraft')}, CXR-BERT sha256:{encoder.sha256[:12]}|{choices}"
    return {"cxr_bert_cosine": mean_measure(cosines, signature, (-1.0, 1.0))}


def cxrfescore(
    predictions: Sequence[str], references: Sequence[str], encoder: CXRBert, extractor: FactExtractor
) -> dict[str, Measure]:
    """`cxrfescore`: likeness of the facts of each report and of its reference (Messina et al., ACL Findings 2024).

    Equal to cxrfescore 0.2.4 with its default models: nltk's sentences, facts of each sentence by a T5, embeddings of
    the facts by CXRFE, a CXR-BERT; the mean of how well each fact is matched in the other report, from either side. In
    [-1, 1]; a report without a fact scores 0. Facts in broken JSON, on which that package fails, count as none, so that
    the sentence stands for them.

    Raises:
        CannotRun: nltk finds no Punkt; nothing is downloaded here.
    """
    import nltk

    predictions, references = check_texts(predictions, references)
    try:
        sentences = {text: nltk.sent_tokenize(text) for text in {*predictions, *references}}
    except LookupError:
        where = "found in no folder of nltk.data.path"
        raise CannotRun(f"cxrfescore needs nltk's Punkt, {where}: python -m nltk.downloader punkt_tab") from None
    facts_of = extractor.facts([one.strip() for found in sentences.values() for one in found if one.strip()])
    facts = {
        text: list(dict.fromkeys(fact for one in found if one.strip() for fact in facts_of[one.strip()]))
        for text, found in sentences.items()
    }
    scores = set_likeness([facts[text] for text in predictions], [facts[text] for text in references], encoder)
    models = f"CXRFE sha256:{encoder.sha256[:12]}|T5 sha256:{extractor.sha256[:12]}"
    choices = f"nltk {version('nltk')} sentences|no facts:0|mean over reports"
    signature = f"raddraft {version('raddraft')}, as cxrfescore 0.2.4|{models}|{choices}"
    return {"cxrfescore": mean_measure(scores, signature, (-1.0, 1.0))}


def set_likeness(ours: Sequence[list[str]], theirs: Sequence[list[str]], encoder: CXRBert) -> list[float]:
    """Of each pair of sets of texts, the mean cosine of the best match of each text in the other set, from either side.

    In [-1, 1]; 0 where a set is empty.
    """
    units = encoder.embed([text for found in (*ours, *theirs) for text in found])

    def likeness(one: list[str], other: list[str]) -> float:
        if not one or not other:
            return 0.0
        cosines = np.array([units[text] for text in one]) @ np.array([units[text] for text in other]).T
        return float(cosines.max(1).mean() + cosines.max(0).mean()) / 2

    return [likeness(one, other) for one, other in zip(ours, theirs, strict=True)]


class FactExtractor:
    """Takes sentences apart into facts, with a T5 in the layout of pamessina/T5FactExtractor.

    Args:
        folder: of the T5 and its tokenizer.
        batch_size: sentences at a time; a model that does not come to an end may write more in another batch.
        device: of torch; by default a GPU if there is one.

    Raises:
        CannotRun: no such model in the folder, or its weights are incomplete.
    """

    def __init__(self, folder: Path, batch_size: int = 32, device: str | None = None) -> None:
        from transformers import AutoTokenizer, T5ForConditionalGeneration

        self.batch_size = batch_size
        self._network, self._device = load_network(T5ForConditionalGeneration, folder, "cxrfescore", device)
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.sha256 = digest(folder)

    def facts(self, sentences: Sequence[str]) -> dict[str, list[str]]:
        """Each sentence and its facts; where none is found, the sentence itself if it has a letter."""
        import torch

        found = {}
        for batch in in_batches(sentences, self.batch_size):
            inputs = self._tokenizer(batch, padding=True, return_tensors="pt")
            ids, mask = inputs["input_ids"].to(self._device), inputs["attention_mask"].to(self._device)
            with torch.inference_mode():
                # No longer than four times the sentence, greedily, as the package has it.
                written = self._network.generate(
                    input_ids=ids, attention_mask=mask, max_new_tokens=4 * ids.shape[1], num_beams=1
                )
            texts = self._tokenizer.batch_decode(written, skip_special_tokens=True)
            for sentence, text in zip(batch, texts, strict=True):
                facts = [_without_repetitions(fact) for fact in read_facts(text)]
                if not facts and any(letter.isalpha() for letter in sentence):
                    facts = [sentence]
                found[sentence] = [fact for fact in facts if fact]
        return found


def read_facts(text: str) -> list[str]:
    """The facts in what the extractor wrote: those of the first JSON list of texts, whose end may be missing."""
    match = _FACTS.search(text)
    if match is None:
        return []
    try:
        return list(dict.fromkeys(json.loads(match[0].removesuffix("]") + "]")))
    except json.JSONDecodeError:
        return []


def _without_repetitions(text: str) -> str:
    """A fact without words and phrases that repeat what stands right before them, ignoring case."""
    words = text.split()
    for length in range(1, LONGEST_REPETITION + 1):
        lower = [word.lower() for word in words]
        repeated = set()
        for end in range(2 * length, len(words) + 1):
            if lower[end - length : end] == lower[end - 2 * length : end - length]:
                repeated |= {*range(end - length, end)}
        words = [word for i, word in enumerate(words) if i not in repeated]
    return " ".join(words)
