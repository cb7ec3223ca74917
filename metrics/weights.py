"""What the learned metrics need: where it is looked for, and how it gets there. Only `fetch` ever downloads anything.

Places, in this order: a path given by the caller; the weights folder ($RADDRAFT_WEIGHTS, by default `weights` in
`cache_folder()`); the Hugging Face hub's cache, as far as it is filled already.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from raddraft.errors import RadDraftError, UnavailableError


@dataclass(frozen=True)
class Weights:
    """One thing to have: a single file, or a folder of files, of a hub repository."""

    what: str
    used_by: str
    repo: str
    files: tuple[str, ...]
    """One file; for a folder, those that make it complete."""
    size: str | None
    """Of the download, as the repository shows it."""
    terms: str
    """What the repository says; no advice on what is allowed."""
    folder: bool = False
    unpacked: str | None = None
    """Name of the unpacked folder that may stand for the file."""
    sha256: str | None = None
    """Of the single file, as the repository shows it."""

    def places(self, name: str) -> tuple[str, ...]:
        """Names in the weights folder, the first that is there counts."""
        if self.folder:
            return (name,)
        return (self.unpacked, self.files[0]) if self.unpacked else self.files


_SCORERS = "StanfordAIMI/RRG_scorers"

# Sizes, licences and checksums as the hub's pages of these repositories show them.
WEIGHTS = {
    "chexbert": Weights(
        what="CheXbert, the labeler of 14 observations (Smit et al., EMNLP 2020)",
        used_by="chexbert_*, radcliq_v1",
        repo=_SCORERS,
        files=("chexbert.pth",),
        size="1.31 GB",
        terms="MIT by its repository; the authors' own terms are LICENSE.pdf of github.com/stanfordmlgroup/CheXbert",
        sha256="6550703c92d640e1e04d8105a7a185d76ece0f25fcbf033d292785bf22c0fde1",
    ),
    "chexbert-tokenizer": Weights(
        what="the tokenizer of bert-base-uncased, which CheXbert reads with",
        used_by="chexbert_*, radcliq_v1",
        repo="google-bert/bert-base-uncased",
        files=("config.json", "tokenizer_config.json", "tokenizer.json"),
        size="below 1 MB",
        terms="Apache-2.0",
        folder=True,
    ),
    "radgraph": Weights(
        what="RadGraph, the first model, that papers report (Jain et al., NeurIPS Datasets and Benchmarks 2021)",
        used_by="radgraph_*, radcliq_v1",
        repo=_SCORERS,
        files=("radgraph.tar.gz",),
        size="432 MB",
        terms="MIT by its repository; trained on reports under PhysioNet's credentialed access",
        unpacked="radgraph",
        sha256="7808499d3dc6c37859d3283a4258be0364104420224aeae7395f2f0f9c28bbb9",
    ),
    "radgraph-xl": Weights(
        what="RadGraph-XL (Delbrouck et al., Findings of ACL 2024)",
        used_by="radgraph_xl_*",
        repo=_SCORERS,
        files=("radgraph-xl.tar.gz",),
        size="416 MB",
        terms="MIT by its repository",
        unpacked="radgraph-xl",
        sha256="fadb5a3454e8996714b609e3105a07e447fa61aa88fffe966b650959475117b6",
    ),
    "radgraph-tokenizer": Weights(
        what="the tokenizer that RadGraph's config.json names, usually that of PubMedBERT",
        used_by="radgraph_*, radcliq_v1",
        repo="microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext",
        files=("config.json", "tokenizer_config.json", "vocab.txt"),
        size="0.2 MB",
        terms="MIT",
        folder=True,
    ),
    "bertscore": Weights(
        what="distilroberta-base, the model of BERTScore as radiology papers use it",
        used_by="bertscore_f1, radcliq_v1",
        repo="distilbert/distilroberta-base",
        files=("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
        size="332 MB",
        terms="Apache-2.0",
        folder=True,
    ),
}


class CannotRun(RadDraftError):
    """A metric lacks what it needs: weights, data or a package; says what, and how to get it."""


class MissingWeights(CannotRun):
    """Weights are nowhere on this machine; says where they were looked for and how to get them."""


def cache_folder() -> Path:
    """$RADDRAFT_CACHE, by default `raddraft` in $XDG_CACHE_HOME or ~/.cache. It may not exist yet."""
    if own := os.environ.get("RADDRAFT_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "raddraft"


def weights_folder() -> Path:
    """$RADDRAFT_WEIGHTS, by default `weights` in `cache_folder()`. It may not exist yet."""
    if own := os.environ.get("RADDRAFT_WEIGHTS"):
        return Path(own).expanduser()
    return cache_folder() / "weights"


def places_looked_in(name: str) -> list[Path]:
    """Every path at which `locate` looks without one given: those in the weights folder, then the hub's cache."""
    from huggingface_hub import constants

    entry = _entry(name)
    repository = Path(constants.HF_HUB_CACHE) / f"models--{entry.repo.replace('/', '--')}"
    return [*(weights_folder() / place for place in entry.places(name)), repository]


def locate(name: str, path: Path | None = None) -> Path:
    """The file or folder of some weights on this machine; never downloads.

    Args:
        name: a key of `WEIGHTS`.
        path: where the caller has them; nowhere else is looked then.

    Raises:
        ValueError: unknown name, or `path` does not exist.
        MissingWeights: they are nowhere.
    """
    entry = _entry(name)
    if path is not None:
        if not path.expanduser().exists():
            raise RadDraftError(f"{name}: there is nothing at {path}")
        return path.expanduser()
    for place in entry.places(name):
        if (weights_folder() / place).exists():
            return weights_folder() / place
    if cached := _in_hub_cache(entry):
        return cached
    looked = ", ".join(str(place) for place in places_looked_in(name))
    raise MissingWeights(
        f"{name} is missing ({entry.what}): looked for {looked}; get it by `raddraft weights --fetch {name}`, or, if "
        f"you have it, `raddraft weights --add {name} --file PATH`"
    )


def fetch(name: str) -> Path:
    """Download weights from the Hugging Face hub into its cache, unless they are there already.

    Raises:
        ValueError: unknown name.
        OSError: the hub cannot be reached or does not give them; one sentence says why.
    """
    entry = _entry(name)
    from huggingface_hub import hf_hub_download, snapshot_download

    try:
        if entry.folder:
            snapshot_download(entry.repo, allow_patterns=list(entry.files))
        else:
            hf_hub_download(entry.repo, entry.files[0])
    except Exception as error:  # of the hub's HTTP library, which is another one in other releases
        raise UnavailableError(
            f"{name} could not be fetched from huggingface.co/{entry.repo}: {_reason(error)}; with a copy from "
            f"elsewhere, use `raddraft weights --add {name} --file PATH`"
        ) from error
    if cached := _in_hub_cache(entry):
        return cached
    raise UnavailableError(f"huggingface.co/{entry.repo} no longer has all of {', '.join(entry.files)}")


def add(name: str, source: Path) -> Path:
    """Copy a local file or folder into the weights folder, once it has been looked into; replaces an older copy.

    Returns:
        Where it is now.

    Raises:
        ValueError: unknown name, or `source` is not what it should be, or something else would be found before it.
        OSError: it cannot be read or written; nothing is left half-written then.
    """
    entry = _entry(name)
    source = source.expanduser()
    check(name, source)
    place = (name if entry.folder else entry.unpacked or "") if source.is_dir() else entry.files[0]
    for other in entry.places(name)[: entry.places(name).index(place)]:
        if (weights_folder() / other).exists():
            raise RadDraftError(f"{weights_folder() / other} would be found before {place}; remove it first")
    target = weights_folder() / place
    if target.exists() and source.samefile(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    new, old = (target.with_name(f".{place}.{os.getpid()}.{state}") for state in ("new", "old"))
    try:
        if source.is_dir():
            shutil.copytree(source, new)
            if target.exists():
                os.replace(target, old)  # a folder that holds files cannot be replaced in one step
        else:
            shutil.copyfile(source, new)
        os.replace(new, target)
    finally:
        for rest in (new, old):
            if rest.is_dir():
                shutil.rmtree(rest)
            else:
                rest.unlink(missing_ok=True)
    return target


def check(name: str, source: Path) -> None:
    """Look into a file or folder: is it what `name` stands for?

    Raises:
        ValueError: it is not; says what is wrong with it.
    """
    entry = _entry(name)
    if not source.exists():
        raise RadDraftError(f"{name}: there is nothing at {source}")
    if source.is_dir() and not (entry.folder or entry.unpacked):
        raise RadDraftError(f"{name} is one file, {entry.files[0]}, but {source} is a folder")
    if entry.folder and not source.is_dir():
        raise RadDraftError(f"{name} is a folder with {', '.join(entry.files)}, but {source} is a file")
    if name == "chexbert":
        from metrics.chexbert import load_network

        load_network(source)
    elif entry.unpacked:
        _check_radgraph(source)
    else:
        _check_transformers_folder(source, with_model=name == "bertscore")


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file; of a folder, that of the names and digests of its files in sorted order."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        lines = "".join(f"{digest(file)}  {file.relative_to(path).as_posix()}\n" for file in files)
        return hashlib.sha256(lines.encode()).hexdigest()
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(name: str) -> Weights:
    if name not in WEIGHTS:
        raise RadDraftError(f"Unknown weights {name!r}. Choices: {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def _in_hub_cache(entry: Weights) -> Path | None:
    """The file, or the snapshot folder if it is complete, as the hub's cache has it."""
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(entry.repo, file) for file in entry.files]
    paths = [Path(path) for path in found if isinstance(path, str)]
    if len(paths) < len(entry.files):
        return None
    return paths[0].parent if entry.folder else paths[0]


def _reason(error: Exception) -> str:
    """Why the hub did not give something, in a few words."""
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


def _check_radgraph(source: Path) -> None:
    """An archive or folder with config.json, weights.th and vocabulary/ at its top."""
    if source.is_dir():
        names = {file.relative_to(source).parts[0] for file in source.rglob("*") if file.is_file()}
    else:
        try:
            with tarfile.open(source) as archive:
                names = {PurePosixPath(member.name).parts[0] for member in archive if member.isfile()}
        except (tarfile.TarError, EOFError, OSError) as error:
            raise RadDraftError(f"{source} is not a whole archive: {error}") from error
    if absent := sorted({"config.json", "weights.th", "vocabulary"} - names):
        raise RadDraftError(f"{source} is no RadGraph model: it lacks {', '.join(absent)}")


def _check_transformers_folder(source: Path, with_model: bool) -> None:
    from transformers import AutoConfig, AutoTokenizer

    if with_model and not any((source / file).is_file() for file in ("model.safetensors", "pytorch_model.bin")):
        raise RadDraftError(f"{source} lacks model.safetensors")
    if not (source / "config.json").is_file():
        raise RadDraftError(f"{source} lacks config.json")
    try:
        AutoConfig.from_pretrained(source, local_files_only=True)
        AutoTokenizer.from_pretrained(source, local_files_only=True)
    except Exception as error:  # damaged files fail in as many ways as there are tokenizers
        raise RadDraftError(f"{source} holds no tokenizer that loads: {str(error).strip().splitlines()[0]}") from error
