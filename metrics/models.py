"""The learned metrics' models: found where `raddraft weights` shows them, loaded when needed, shared by metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metrics.annotate import AnnotationCache
from metrics.weights import locate
from raddraft.errors import CannotRun, UnavailableError
from raddraft.files import cache_folder
from raddraft.ranges import Count, check_ranges

if TYPE_CHECKING:
    from metrics.chexbert import CheXbert
    from metrics.embeddings import CXRBert, FactExtractor
    from metrics.radgraph import RadGraph
    from metrics.ratescore import RaTEScore


@dataclass
class Models:
    """Learned metrics: their weights, if not where `raddraft weights` shows them, and how they run.

    What needs weights that are missing raises MissingWeights when it is first used.
    """

    chexbert: Path | None = None
    """CheXbert's checkpoint, chexbert.pth."""
    chexbert_tokenizer: Path | None = None
    """Folder of the tokenizer of bert-base-uncased."""
    radgraph: Path | None = None
    """RadGraph, version 1: radgraph.tar.gz or the folder unpacked from it."""
    radgraph_xl: Path | None = None
    """RadGraph-XL: radgraph-xl.tar.gz or the folder unpacked from it."""
    radgraph_tokenizer: Path | None = None
    """Folder of the tokenizer and config that RadGraph's config.json names."""
    bertscore: Path | None = None
    """Folder of distilroberta-base, for BERTScore and RadCliQ."""
    modern_radgraph_xl: Path | None = None
    """RadGraph-XL on a ModernBERT: modern-radgraph-xl.tar.gz or the folder unpacked from it."""
    modern_radgraph_xl_tokenizer: Path | None = None
    """Folder of the tokenizer and config that its config.json names, if not in the hub's cache."""
    cxr_bert: Path | None = None
    """Folder of CXR-BERT-specialized."""
    cxrfe: Path | None = None
    """Folder of CXRFE, for CXRFEScore."""
    cxrfe_facts: Path | None = None
    """Folder of T5FactExtractor, for CXRFEScore."""
    ratescore_ner: Path | None = None
    """Folder of RaTE-NER-Deberta, for RaTEScore."""
    ratescore_synonyms: Path | None = None
    """Folder of BioLORD-2023-C, for RaTEScore."""
    batch_size: Count = 16
    """Reports of similar length that a model reads at a time; changes the speed, not the labels."""
    device: str | None = None
    """cpu, cuda, cuda:1 …; by default a GPU if there is one."""
    bfloat16: bool = False
    """CheXbert and RadGraph multiply in bfloat16: about twice as fast on processors that can (AVX512-BF16, AMX, GPUs),
    with some labels changed. Signatures name it, and labels and graphs are kept apart."""
    keep: bool = True
    """Keep labels and graphs on disk, under RADDRAFT_CACHE or ~/.cache/raddraft, so that a report is read once."""

    def __post_init__(self) -> None:
        check_ranges(self, "models")

    @cached_property
    def cache(self) -> AnnotationCache:
        """Where labels and graphs are kept."""
        return AnnotationCache(cache_folder() / "annotations.sqlite" if self.keep else None)

    @cached_property
    def chexbert_model(self) -> CheXbert:
        """The labeler CheXbert."""
        from metrics.chexbert import CheXbert

        checkpoint = locate("chexbert", self.chexbert)
        tokenizer = locate("chexbert-tokenizer", self.chexbert_tokenizer)
        return CheXbert(checkpoint, tokenizer, self.batch_size, self.device, self.bfloat16)

    @cached_property
    def radgraph_model(self) -> RadGraph:
        """RadGraph, version 1."""
        return self._radgraph("radgraph", self.radgraph)

    @cached_property
    def radgraph_xl_model(self) -> RadGraph:
        """RadGraph-XL."""
        return self._radgraph("radgraph-xl", self.radgraph_xl)

    @cached_property
    def modern_radgraph_xl_model(self) -> RadGraph:
        """RadGraph-XL on a ModernBERT. Raises CannotRun if its tokenizer is missing."""
        from metrics.radgraph import RadGraph

        model = locate("modern-radgraph-xl", self.modern_radgraph_xl)
        tokenizer = self.modern_radgraph_xl_tokenizer
        try:
            return RadGraph(
                model, tokenizer, "modern-radgraph-xl", self.batch_size, self.device, bfloat16=self.bfloat16
            )
        except UnavailableError as error:
            raise CannotRun(str(error)) from error

    def _radgraph(self, name: Literal["radgraph", "radgraph-xl"], path: Path | None) -> RadGraph:
        from metrics.radgraph import RadGraph

        model, tokenizer = locate(name, path), locate("radgraph-tokenizer", self.radgraph_tokenizer)
        return RadGraph(model, tokenizer, name, self.batch_size, self.device, bfloat16=self.bfloat16)

    @cached_property
    def cxr_bert_model(self) -> CXRBert:
        """CXR-BERT-specialized."""
        return self._cxr_bert("cxr-bert", self.cxr_bert, "cxr_bert_cosine")

    @cached_property
    def cxrfe_model(self) -> CXRBert:
        """CXRFE, CXR-BERT for facts."""
        return self._cxr_bert("cxrfe", self.cxrfe, "cxrfescore")

    def _cxr_bert(self, name: str, path: Path | None, metric: str) -> CXRBert:
        from metrics.embeddings import CXRBert

        return CXRBert(locate(name, path), metric, self.batch_size, self.device)

    @cached_property
    def fact_extractor(self) -> FactExtractor:
        """The T5 of CXRFEScore."""
        from metrics.embeddings import FactExtractor

        return FactExtractor(locate("cxrfe-facts", self.cxrfe_facts), self.batch_size, self.device)

    @cached_property
    def ratescore_model(self) -> RaTEScore:
        """The networks of RaTEScore."""
        from metrics.ratescore import RaTEScore

        ner = locate("ratescore-ner", self.ratescore_ner)
        synonyms = locate("ratescore-synonyms", self.ratescore_synonyms)
        return RaTEScore(ner, synonyms, self.batch_size, self.device)

    @property
    def bertscore_folder(self) -> Path:
        """Folder of the model of BERTScore."""
        return locate("bertscore", self.bertscore)
