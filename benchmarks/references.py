"""Metrics against the packages that they follow, on the same reports and the same (random) weights.

    python -m benchmarks.references --reports iu/indiana_reports.csv

Packages that are not installed are named; none of them is needed otherwise. Some ask for old versions of others, so
take them without: pip install --no-deps cxrfescore RaTEScore hi-ml-multimodal, and SimpleITK, which the last imports.
"""

from __future__ import annotations

import contextlib
import csv
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.random_embedders import save_cxr_bert, save_modern_radgraph, save_punkt, save_ratescore, save_t5
from benchmarks.random_models import radgraph_package
from metrics.embeddings import CXRBert, FactExtractor, cxr_bert_cosine, cxrfescore
from metrics.models import Models
from metrics.ratescore import RaTEScore, ratescore, split_sentences
from metrics.rexrank import rexrank_words
from metrics.scoring import measure
from raddraft.errors import RadDraftError
from raddraft.text import format_table, progress

Texts = Sequence[str]


@dataclass(frozen=True)
class Reference:
    """A metric and the package that it follows."""

    names: str
    package: str
    """As `pip` knows it."""
    module: str
    """Without which the comparison raises ModuleNotFoundError."""
    compare: Callable[[Texts, Texts, Path], np.ndarray]
    """(drafts, reports, an empty folder) -> ours minus theirs, of each report or of the corpus. No text is blank."""


def main(reports: Path, n: int = 200) -> None:
    """Print the largest difference of each metric to its package.

    Args:
        reports: Table of reports (CSV) with the column findings.
        n: Number of reports; each is scored as a draft of the one before.
    """
    with open(reports, encoding="utf-8", newline="") as file:
        texts = [row["findings"].strip() for row in csv.DictReader(file)]
    texts = [text for text in texts if text][: n + 1]
    if len(texts) < 2:
        raise RadDraftError(f"{reports}: fewer than two findings")
    rows = [["", "package", "reports", "largest difference"]]
    for reference in progress(REFERENCES, "packages"):
        with TemporaryDirectory() as folder, contextlib.redirect_stdout(StringIO()):
            try:
                found = f"{np.abs(reference.compare(texts[1:], texts[:-1], Path(folder))).max():.1e}"
                package = f"{reference.package} {version(reference.package)}"
            except ModuleNotFoundError as error:
                found, package = f"not installed: {error.name}", reference.package
        rows.append([reference.names, package, str(len(texts) - 1), found])
    print(format_table(rows))


def rouge_l_stem(drafts: Texts, reports: Texts, _: Path) -> np.ndarray:
    """ROUGE-L of stems."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    theirs = [scorer.score(report, draft)["rougeL"].fmeasure for draft, report in zip(drafts, reports, strict=True)]
    return _per_study(drafts, reports, "rouge_l_stem") - theirs


def coco_scores(drafts: Texts, reports: Texts, _: Path) -> np.ndarray:
    """BLEU-1 to 4 of the corpus, ROUGE-L and CIDEr-D of each report."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truth, drawn = ({str(i): [text] for i, text in enumerate(part)} for part in (reports, drafts))
    ours, _skipped = measure(drafts, reports, ["coco"])
    found = Bleu(4).compute_score(truth, drawn)[0]
    differences = [[ours[f"coco_bleu_{order}"].value - value for order, value in enumerate(found, 1)]]
    for name, scorer in (("coco_rouge_l", Rouge()), ("coco_cider", Cider())):
        differences.append(ours[name].statistics[:, 0] - scorer.compute_score(truth, drawn)[1])
    return np.concatenate(differences)


def radeval_bleu(drafts: Texts, reports: Texts, _: Path) -> np.ndarray:
    """What RadEval calls "bleu"."""
    from radeval.metrics.bleu.bleu import Bleu

    value = Bleu(n=4)(list(reports), list(drafts))[0]
    return np.array([measure(drafts, reports, ["coco_bleu_4"])[0]["coco_bleu_4"].value - value])


def fast_bleu(drafts: Texts, reports: Texts, _: Path) -> np.ndarray:
    """BLEU-2 of each report by the package that ReXrank's code takes, on words split as that code says."""
    from fast_bleu import BLEU

    def score(draft: str, report: str) -> float:
        scorer = BLEU([rexrank_words(report)], {"bigram": (1 / 2, 1 / 2)})
        return scorer.get_score([rexrank_words(draft)])["bigram"][0]

    return _per_study(drafts, reports, "rexrank_bleu_2") - [score(*pair) for pair in zip(drafts, reports, strict=True)]


def modern_radgraph_xl(drafts: Texts, reports: Texts, folder: Path) -> np.ndarray:
    """The three rewards of RadGraph-XL on a ModernBERT."""
    model, bert = save_modern_radgraph(folder, [*drafts, *reports], entity_share=0.4, relation_share=0.4)
    models = Models(modern_radgraph_xl=model, modern_radgraph_xl_tokenizer=bert, device="cpu", keep=False)
    ours, _ = measure(drafts, reports, ["modern_radgraph_xl"], models)
    with radgraph_package(bert):
        from radgraph import F1RadGraph

        package = F1RadGraph(reward_level="all", model_type="modern-radgraph-xl", model_cache_dir=str(folder), cuda=-1)
        _, theirs, *_ = package(hyps=list(drafts), refs=list(reports))
    return np.concatenate([one.statistics[:, 0] - part for one, part in zip(ours.values(), theirs, strict=True)])


def cxr_bert(drafts: Texts, reports: Texts, folder: Path) -> np.ndarray:
    """The cosine of projected embeddings, one text at a time: padding moves 32 bits by some 1e-6 on either side."""
    import torch
    from health_multimodal.text.model.modelling_cxrbert import CXRBertConfig, CXRBertModel
    from transformers import BertTokenizer

    save_cxr_bert(folder, [*drafts, *reports])
    encoder = CXRBert(folder, "cxr_bert_cosine", batch_size=1, device="cpu")
    ours = cxr_bert_cosine(drafts, reports, encoder)["cxr_bert_cosine"]
    network = CXRBertModel(CXRBertConfig.from_pretrained(folder)).eval()
    network.load_state_dict(torch.load(folder / "pytorch_model.bin"))
    tokenizer = BertTokenizer.from_pretrained(folder)

    def embed(text: str) -> Any:
        inputs = tokenizer([text], truncation=True, max_length=512, return_tensors="pt")
        return network.get_projected_text_embeddings(inputs["input_ids"], inputs["attention_mask"])[0].double()

    with torch.inference_mode():
        cosines = [float(embed(draft) @ embed(report)) for draft, report in zip(drafts, reports, strict=True)]
    return ours.statistics[:, 0] - cosines


def cxr_fe_score(drafts: Texts, reports: Texts, folder: Path) -> np.ndarray:
    """Facts and how they match; both take the facts' embeddings from the CXR-BERT here, compared by `cxr_bert`.

    One sentence at a time: how much a T5 without an end may write depends on its batch.
    """
    import torch
    from cxrfescore import CXRFEScore

    save_punkt(folder / "nltk")
    (folder / "nltk" / "tokenizers" / "punkt").mkdir()  # it asks for both, and would download them
    encoder = CXRBert(save_cxr_bert(folder / "cxrfe", [*drafts, *reports]), "cxrfescore", device="cpu")
    t5 = save_t5(folder / "t5", [*drafts, *reports], lists=True)

    class Encoder(torch.nn.Module):
        def get_projected_text_embeddings(self, input_ids: Any, attention_mask: Any) -> Any:
            return torch.nn.functional.normalize(encoder._network(input_ids, attention_mask), dim=1)

    class Package(CXRFEScore):
        def _load_encoder(self) -> None:
            self.encoder_tokenizer, self.encoder_model = encoder._tokenizer, Encoder()

    with _nltk_data(folder / "nltk"):
        package = Package(extractor_model_name=str(t5), device="cpu", batch_size=1, num_workers=0, use_cache=False)
        theirs = package(list(drafts), list(reports))["per_pair_similarity"]
        ours = cxrfescore(drafts, reports, encoder, FactExtractor(t5, 1, "cpu"))["cxrfescore"]
    return ours.statistics[:, 0] - theirs


def rate_score(drafts: Texts, reports: Texts, folder: Path) -> np.ndarray:
    """RaTEScore on the same sentences: the package takes those of medspaCy, and cannot be imported without it."""
    with _as_medspacy_splits():
        import RaTEScore as package

    ner, synonyms = save_ratescore(folder, [*drafts, *reports])
    theirs = package.RaTEScore(bert_model=str(ner), eval_model=str(synonyms), use_gpu=False)
    ours = ratescore(drafts, reports, RaTEScore(ner, synonyms, device="cpu"))["ratescore"]
    return ours.statistics[:, 0] - theirs.compute_score(list(drafts), list(reports))


def _per_study(drafts: Texts, reports: Texts, name: str) -> np.ndarray:
    return measure(drafts, reports, [name])[0][name].statistics[:, 0]


@contextlib.contextmanager
def _nltk_data(folder: Path) -> Iterator[None]:
    """nltk finds what is in this folder only, and does not remember what it found."""
    import nltk

    kept = nltk.data.path
    nltk.data.path = [str(folder)]
    nltk.tokenize._get_punkt_tokenizer.cache_clear()
    try:
        yield
    finally:
        nltk.data.path = kept
        nltk.tokenize._get_punkt_tokenizer.cache_clear()


@contextlib.contextmanager
def _as_medspacy_splits() -> Iterator[None]:
    """A medspaCy that finds the sentences found here."""
    module = types.ModuleType("medspacy")
    module.load = lambda **_: lambda text: types.SimpleNamespace(sents=split_sentences(text))  # type: ignore[attr-defined]
    kept = sys.modules.get("medspacy")
    sys.modules["medspacy"] = module
    try:
        yield
    finally:
        del sys.modules["medspacy"]
        if kept:
            sys.modules["medspacy"] = kept


REFERENCES = (
    Reference("rouge_l_stem", "rouge-score", "rouge_score", rouge_l_stem),
    Reference("coco_bleu_1 to 4, coco_rouge_l, coco_cider", "pycocoevalcap", "pycocoevalcap", coco_scores),
    Reference("coco_bleu_4", "radeval", "radeval", radeval_bleu),
    Reference("rexrank_bleu_2", "fast-bleu", "fast_bleu", fast_bleu),
    Reference("modern_radgraph_xl_e, _er, _bar_er", "radgraph", "radgraph", modern_radgraph_xl),
    Reference("cxr_bert_cosine", "hi-ml-multimodal", "health_multimodal", cxr_bert),
    Reference("cxrfescore", "cxrfescore", "cxrfescore", cxr_fe_score),
    Reference("ratescore", "RaTEScore", "RaTEScore", rate_score),
)


if __name__ == "__main__":
    from raddraft.cli import run

    run("references", package="benchmarks")
