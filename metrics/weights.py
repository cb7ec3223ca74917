"""Weights of the learned metrics: where they are looked for, and how to get them. Only `fetch` downloads anything.

Places, in this order: a path given by the caller; the weights folder ($RADDRAFT_WEIGHTS, by default `weights` in
`cache_folder()`); the Hugging Face hub's cache, as far as it is filled already.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from raddraft.errors import CannotRun, RadDraftError, UnavailableError
from raddraft.files import digest_file, weights_folder, whole_folder, write_whole
from raddraft.locks import hold


@dataclass(frozen=True)
class Weights:
    """A file, or a folder of files, of a hub repository."""

    what: str
    used_by: str
    repo: str
    files: tuple[str, ...]
    """One file, or those that make a folder complete."""
    size: str
    """Size of the download, as the repository shows it."""
    terms: str
    """License, as the repository states it; not legal advice."""
    sha256: str | None = None
    """SHA-256 of the single file, as the repository shows it."""

    @property
    def folder(self) -> bool:
        """Whether this is a folder and not a file."""
        return len(self.files) > 1

    @property
    def unpacked(self) -> str:
        """Name of the folder that an archive unpacks to, which may replace it; empty if this is not an archive."""
        return self.files[0].removesuffix(".tar.gz") if self.files[0].endswith(".tar.gz") else ""

    def places(self, name: str) -> tuple[str, ...]:
        """Names in the weights folder; the first that exists is used."""
        if self.folder:
            return (name,)
        return (self.unpacked, self.files[0]) if self.unpacked else self.files


_SCORERS = "StanfordAIMI/RRG_scorers"

# Sizes, licenses and checksums as the hub's pages of these repositories show them.
WEIGHTS = {
    "chexbert": Weights(
        what="CheXbert, the labeler of 14 observations (Smit et al., EMNLP 2020)",
        used_by="chexbert_*, radcliq_v1, rexrank_*",
        repo=_SCORERS,
        files=("chexbert.pth",),
        size="1.31 GB",
        terms="MIT by its repository; the authors' own terms are LICENSE.pdf of github.com/stanfordmlgroup/CheXbert",
        sha256="6550703c92d640e1e04d8105a7a185d76ece0f25fcbf033d292785bf22c0fde1",
    ),
    "chexbert-tokenizer": Weights(
        what="the tokenizer of bert-base-uncased, which CheXbert reads with",
        used_by="chexbert_*, radcliq_v1, rexrank_*",
        repo="google-bert/bert-base-uncased",
        files=("config.json", "tokenizer_config.json", "tokenizer.json"),
        size="< 1 MB",
        terms="Apache-2.0",
    ),
    "radgraph": Weights(
        what="RadGraph, the first model, that papers report (Jain et al., NeurIPS Datasets and Benchmarks 2021)",
        used_by="radgraph_*, radcliq_v1, rexrank_*",
        repo=_SCORERS,
        files=("radgraph.tar.gz",),
        size="432 MB",
        terms="MIT by its repository; trained on reports under PhysioNet's credentialed access",
        sha256="7808499d3dc6c37859d3283a4258be0364104420224aeae7395f2f0f9c28bbb9",
    ),
    "radgraph-xl": Weights(
        what="RadGraph-XL (Delbrouck et al., Findings of ACL 2024)",
        used_by="radgraph_xl_*",
        repo=_SCORERS,
        files=("radgraph-xl.tar.gz",),
        size="416 MB",
        terms="MIT by its repository",
        sha256="fadb5a3454e8996714b609e3105a07e447fa61aa88fffe966b650959475117b6",
    ),
    "radgraph-tokenizer": Weights(
        what="the tokenizer that RadGraph's config.json names, usually that of PubMedBERT",
        used_by="radgraph_*, radcliq_v1, rexrank_*",
        repo="microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
        files=("config.json", "tokenizer_config.json", "vocab.txt"),
        size="0.2 MB",
        terms="MIT",
    ),
    "bertscore": Weights(
        what="distilroberta-base, the model of BERTScore as radiology papers use it",
        used_by="bertscore_f1, radcliq_v1, rexrank_*",
        repo="distilbert/distilroberta-base",
        files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        size="332 MB",
        terms="Apache-2.0",
    ),
    "modern-radgraph-xl": Weights(
        what="RadGraph-XL on a ModernBERT, of the package radgraph 0.1.18",
        used_by="modern_radgraph_xl_*",
        repo=_SCORERS,
        files=("modern-radgraph-xl.tar.gz",),
        size="not known",
        terms="MIT by its repository",
    ),
    "cxr-bert": Weights(
        what="CXR-BERT-specialized (Boecking et al., ECCV 2022)",
        used_by="cxr_bert_cosine",
        repo="microsoft/BiomedVLP-CXR-BERT-specialized",
        files=("config.json", "pytorch_model.bin", "vocab.txt", "tokenizer_config.json"),
        size="439 MB",
        terms="MIT; for research by its card",
    ),
    "cxrfe": Weights(
        what="CXRFE, the encoder of facts of CXRFEScore (Messina et al., Findings of ACL 2024)",
        used_by="cxrfescore",
        repo="pamessina/CXRFE",
        files=("config.json", "model.safetensors", "vocab.txt", "tokenizer_config.json"),
        size="439 MB",
        terms="Apache-2.0",
    ),
    "cxrfe-facts": Weights(
        what="T5FactExtractor, which takes sentences apart for CXRFEScore",
        used_by="cxrfescore",
        repo="pamessina/T5FactExtractor",
        files=("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        size="245 MB",
        terms="Apache-2.0",
    ),
    "ratescore-ner": Weights(
        what="RaTE-NER-Deberta, which reads the entities of RaTEScore (Zhao et al., EMNLP 2024)",
        used_by="ratescore",
        repo="Angelakeke/RaTE-NER-Deberta",
        files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        size="744 MB",
        terms="MIT",
    ),
    "ratescore-synonyms": Weights(
        what="BioLORD-2023-C, which compares the entities of RaTEScore (Remy et al., 2023)",
        used_by="ratescore",
        repo="FremyCompany/BioLORD-2023-C",
        files=("config.json", "pytorch_model.bin", "tokenizer.json", "tokenizer_config.json"),
        size="438 MB",
        terms="licenses of SNOMED International and the NLM (UMLS), which ask for registration",
    ),
}
CXR_BERTS = ("cxr-bert", "cxrfe")
"""Folders in the layout of CXR-BERT, whose model_type transformers knows only by code of the repository."""


class MissingWeights(CannotRun):
    """Weights are not on this machine; the message says where they were looked for and how to get them."""


def places_looked_in(name: str) -> list[Path]:
    """Where `locate` looks by default: paths in the weights folder, then the hub's cache of the repository."""
    from huggingface_hub import constants

    entry = _entry(name)
    repository = Path(constants.HF_HUB_CACHE) / f"models--{entry.repo.replace('/', '--')}"
    return [*(weights_folder() / place for place in entry.places(name)), repository]


def locate(name: str, path: Path | None = None) -> Path:
    """The file or folder of some weights on this machine; never downloads.

    Args:
        name: a key of `WEIGHTS`.
        path: where the caller has them; no other place is searched then.

    Raises:
        RadDraftError: unknown name, or `path` does not exist.
        MissingWeights: they are not found.
    """
    entry = _entry(name)
    if path is not None:
        if not path.expanduser().exists():
            raise RadDraftError(f"{name}: {path} does not exist")
        return path.expanduser()
    for place in entry.places(name):
        if (weights_folder() / place).exists():
            return weights_folder() / place
    if cached := _in_hub_cache(entry):
        return cached
    looked = ", ".join(map(str, places_looked_in(name)))
    raise MissingWeights(
        f"{name} is missing ({entry.what}): looked for {looked}; get it by `raddraft weights --fetch {name}`, or, if "
        f"you have it, `raddraft weights --add {name} --file PATH`"
    )


def fetch(name: str) -> Path:
    """Download weights from the Hugging Face hub into its cache, unless they are there already.

    Raises:
        RadDraftError: unknown name; as UnavailableError if the hub cannot be reached or does not provide them.
    """
    entry = _entry(name)
    from huggingface_hub import hf_hub_download

    try:
        for file in entry.files:
            hf_hub_download(entry.repo, file)
    except Exception as error:  # of the hub's HTTP library, which differs between releases
        raise UnavailableError(
            f"{name} could not be fetched from huggingface.co/{entry.repo}: {_reason(error)}; add a copy from "
            f"elsewhere with `raddraft weights --add {name} --file PATH`"
        ) from error
    if cached := _in_hub_cache(entry):
        return cached
    raise UnavailableError(f"huggingface.co/{entry.repo} no longer has all of {', '.join(entry.files)}")


def add(name: str, source: Path) -> Path:
    """Check a local file or folder, copy it into the weights folder in place of an older copy, and return its path.

    Raises:
        RadDraftError: unknown name, `source` is not what it should be, or other weights would be found before it; as
            UnavailableError if it cannot be copied. Nothing half-written is left.
    """
    entry, source = _entry(name), source.expanduser()
    check(name, source)
    place = (entry.unpacked or name) if source.is_dir() else entry.files[0]
    for other in entry.places(name)[: entry.places(name).index(place)]:
        if (weights_folder() / other).exists():
            raise RadDraftError(f"{weights_folder() / other} would be found before {place}; remove it first")
    target = weights_folder() / place
    if target.exists() and source.samefile(target):
        return target
    try:
        with hold(target):
            if source.is_dir():
                with whole_folder(target) as folder:
                    shutil.copytree(source, folder, dirs_exist_ok=True)
            else:
                with write_whole(target) as file:
                    shutil.copyfile(source, file)
    except OSError as error:
        raise UnavailableError(f"{source} cannot be copied to {target}: {error}") from error
    return target


def check(name: str, source: Path) -> None:
    """Raise RadDraftError, which says what is wrong, if a file or folder is not the weights of that name."""
    entry = _entry(name)
    if not source.exists():
        raise RadDraftError(f"{name}: {source} does not exist")
    if source.is_dir() and not entry.folder and not entry.unpacked:
        raise RadDraftError(f"{name} is one file, {entry.files[0]}, but {source} is a folder")
    if entry.folder and not source.is_dir():
        raise RadDraftError(f"{name} is a folder with {', '.join(entry.files)}, but {source} is a file")
    if name == "chexbert":
        from metrics.chexbert import load_network

        load_network(source)
    elif entry.unpacked:
        from metrics.radgraph import check_model

        check_model(source, entry.unpacked)
    else:
        with_model = any(file.endswith((".safetensors", ".bin")) for file in entry.files)
        _check_transformers_folder(source, with_model, name in CXR_BERTS)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file; of a folder, that of the names and digests of its files in sorted order."""
    if not path.is_dir():
        return digest_file(path) or ""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    lines = "".join(f"{digest_file(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def compare_digest(name: str, path: Path, sha256: str) -> str:
    """Whether a file is the published one, in brackets; nothing where no digest is published."""
    published = WEIGHTS[name].sha256
    if published is None or path.is_dir():
        return ""
    if sha256 == published:
        return " (the published file)"
    return f" (not the published file, {published[:12]}…: scores may differ from those of others)"


def format_list() -> str:
    """Every entry of `WEIGHTS` as text: state, size, digest, use, place and terms."""
    width = max(map(len, WEIGHTS))
    lines = [f"{'name':{width}}  state    size     sha256        used by"]
    for name, entry in WEIGHTS.items():
        try:
            path = locate(name)
            sha256 = digest(path)
            state, where = "found", f"at {path}{compare_digest(name, path, sha256)}"
        except MissingWeights:
            state, sha256, where = "missing", "-", f"looked for {', '.join(map(str, places_looked_in(name)))}"
        lines += [
            f"\n{name:{width}}  {state:7}  {entry.size:7}  {sha256[:12]:12}  {entry.used_by}",
            f"  {entry.what}",
            f"  {where}",
            f"  terms: {entry.terms}; see huggingface.co/{entry.repo}",
        ]
    lines += [
        f"\nWeights folder: {weights_folder()} ($RADDRAFT_WEIGHTS). To get what is missing:",
        "  raddraft weights --fetch NAME …           download from the Hugging Face hub",
        "  raddraft weights --add NAME --file PATH   copy from this machine",
    ]
    return "\n".join(lines)


def _entry(name: str) -> Weights:
    if name not in WEIGHTS:
        raise RadDraftError(f"Unknown weights {name!r}. Choices: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def _in_hub_cache(entry: Weights) -> Path | None:
    """The file, or the complete snapshot folder, in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(entry.repo, file) for file in entry.files]
    paths = [Path(path) for path in found if isinstance(path, str)]
    if len(paths) < len(entry.files):
        return None
    return paths[0].parent if entry.folder else paths[0]


def _reason(error: Exception) -> str:
    """Why a download failed, in a few words."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if isinstance(error, errors.GatedRepoError):
        return "its terms must be accepted there first, and `hf auth login` called here"
    if isinstance(error, errors.RepositoryNotFoundError | errors.EntryNotFoundError) and not isinstance(
        error, errors.LocalEntryNotFoundError
    ):
        return "it is no longer there, or not public"
    # The hub's client reports a dead network as an entry that is not in the local cache.
    first = (str(error.__cause__ or error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
    return f"is there a network? ({first})"


def _check_transformers_folder(source: Path, with_model: bool, of_cxr_bert: bool) -> None:
    from transformers import AutoConfig, AutoTokenizer, BertConfig, BertTokenizer

    if with_model and not any((source / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
        raise RadDraftError(f"{source} lacks model.safetensors")
    for file in ("config.json", *(["vocab.txt"] if of_cxr_bert else [])):
        if not (source / file).is_file():
            raise RadDraftError(f"{source} lacks {file}")
    config, tokenizer = (BertConfig, BertTokenizer) if of_cxr_bert else (AutoConfig, AutoTokenizer)
    try:
        config.from_pretrained(source, local_files_only=True, trust_remote_code=False)
        tokenizer.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # damaged files fail in many ways
        raise RadDraftError(f"{source} has no tokenizer that loads: {str(error).strip().splitlines()[0]}") from error
