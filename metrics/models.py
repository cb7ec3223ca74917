"""The learned metrics' models: found where `raddraft weights` shows them, loaded when needed, shared by metrics."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from metrics.annotate import AnnotationCache, cache_folder
from metrics.weights import locate

if TYPE_CHECKING:
    from metrics.chexbert import CheXbert
    from metrics.radgraph import RadGraph


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
    batch_size: int = 16
    """Reports of similar length that a model reads at a time; changes the speed, not the labels."""
    device: str | None = None
    """cpu, cuda, cuda:1 …; by default a GPU if there is one."""
    keep: bool = True
    """Keep labels and graphs on disk, under RADDRAFT_CACHE or ~/.cache/raddraft, so that a report is read once."""

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
        return CheXbert(checkpoint, tokenizer, self.batch_size, self.device)

    @cached_property
    def radgraph_model(self) -> RadGraph:
        """RadGraph, version 1."""
        return self._radgraph("radgraph", self.radgraph)

    @cached_property
    def radgraph_xl_model(self) -> RadGraph:
        """RadGraph-XL."""
        return self._radgraph("radgraph-xl", self.radgraph_xl)

    def _radgraph(self, name: Literal["radgraph", "radgraph-xl"], path: Path | None) -> RadGraph:
        from metrics.radgraph import RadGraph

        model, tokenizer = locate(name, path), locate("radgraph-tokenizer", self.radgraph_tokenizer)
        return RadGraph(model, tokenizer, name, self.batch_size, self.device)

    @property
    def bertscore_folder(self) -> Path:
        """Folder of the model of BERTScore."""
        return locate("bertscore", self.bertscore)
