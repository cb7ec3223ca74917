"""RadGraph F1: do two reports name the same entities, in the same relations?

    radgraph = RadGraph("radgraph.tar.gz", tokenizer="BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext")
    prediction, reference = radgraph.annotate(["No effusion.", "No pleural effusion."])
    radgraph_e, radgraph_er, radgraph_bar_er = radgraph_f1(prediction, reference)

Model, weights and word splitting are those of the `radgraph` package (Jain et al., 2021; Delbrouck et al., 2022), a
DyGIE++ (Wadden et al., 2019). The package reads one report at a time and fails on transformers 5; here its network is
fed in batches, with the same annotations.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
import warnings
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from metrics.networks import last_states, multiply_in_bfloat16
from raddraft.config_sizes import check_config, read_room
from raddraft.errors import RadDraftError, UnavailableError
from raddraft.files import cache_folder, digest_file, whole_folder
from raddraft.loading import check_finite

if TYPE_CHECKING:
    import torch

ModelType = Literal["radgraph", "radgraph-xl", "modern-radgraph-xl"]

PAIR_VALUES = 2**24
"""Values of span pairs held at once: 64 MB."""


class RadGraph:
    """Annotates reports with the entities and relations of RadGraph.

    Reports of any length work: BERT reads a long one in stretches of 512 word pieces, as in the package, and pairs of
    spans are scored in parts (the package needs 100 GB for 5,000 words). A report without a word has no entities.

    Args:
        model: `radgraph.tar.gz`, `radgraph-xl.tar.gz` or `modern-radgraph-xl.tar.gz` of the Hub's
            StanfordAIMI/RRG_scorers, or the folder unpacked from it: config.json, weights.th, vocabulary/.
            If a folder is incomplete, the archive beside it is used.
        tokenizer: folder (or name in the local Hub cache) of the BERT config and tokenizer; by default those named in
            config.json. Nothing is downloaded.
        model_type: which of these models this is: they split words differently.
        batch_size: reports in one batch, and stretches of text that BERT reads at a time.
        device: e.g. "cuda:1"; by default a GPU if there is one.
        cache: where an archive is unpacked; by default `cache_folder()`.
        bfloat16: multiply in bfloat16 in BERT, where `metrics.models.Models` says what that means.

    Raises:
        RadDraftError: folder incomplete, archive truncated or harmful, weights and config that do not match; as
            UnavailableError if the model or the tokenizer is not on this machine.
    """

    def __init__(
        self,
        model: str | Path,
        tokenizer: str | Path | None = None,
        model_type: ModelType = "radgraph",
        batch_size: int = 16,
        device: str | None = None,
        cache: Path | None = None,
        bfloat16: bool = False,
    ):
        import torch
        from transformers import AutoModel

        folder = _unpacked(Path(model), model_type, cache)
        self.batch_size = batch_size
        self.model_type = model_type
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        try:
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            self._tokenizer, bert_config = _load_tokenizer(config, tokenizer, folder)
            check_config(AutoModel.from_config, bert_config, f"{folder}, its BERT", read_room(folder))
            self._network, self._bert = _build_network(config["model"], bert_config, folder / "vocabulary")
        except json.JSONDecodeError as error:
            raise RadDraftError(f"{folder / 'config.json'} is not JSON: {error}") from error
        except (KeyError, TypeError) as error:
            raise RadDraftError(f"{folder / 'config.json'} does not describe a RadGraph model: {error!r}") from error
        try:
            state = torch.load(folder / "weights.th", map_location="cpu", weights_only=True)
            self._network.load_state_dict(state)
        except Exception as error:  # torch raises many kinds for a truncated file
            reason = " ".join(str(error).split())[:500]
            raise RadDraftError(
                f"{folder / 'weights.th'} is truncated or does not match config.json, vocabulary or tokenizer: {reason}"
            ) from error
        check_finite(self._network.named_parameters(), folder / "weights.th")
        self._network.to(self.device).eval()
        self._bfloat16 = bfloat16
        if bfloat16:
            multiply_in_bfloat16(self._bert)
        self._widths = self._network._endpoint_span_extractor._span_width_embedding.weight  # [widths, F]
        self._max_width: int = config["model"]["max_span_width"]
        max_length = config["dataset_reader"]["token_indexers"]["bert"].get("max_length")
        self._max_length: int = max_length or bert_config.max_position_embeddings

        weights = digest_file(folder / "weights.th") or ""
        others = [folder / "config.json", *sorted((folder / "vocabulary").glob("*.txt"))]
        volatile = ("_name_or_path", "transformers_version")
        settings = {key: value for key, value in bert_config.to_dict().items() if key not in volatile}
        parts = [weights, *(f"{file.name} {digest_file(file)}" for file in others), version("radgraph")]
        parts += [self._tokenizer.backend_tokenizer.to_str(), json.dumps(settings, sort_keys=True, default=str)]
        parts += ["bfloat16"] * bfloat16
        self.key = f"radgraph:{model_type}:{hashlib.sha256(chr(0).join(parts).encode()).hexdigest()}"
        self.signature = (
            f"radgraph {version('radgraph')} model {model_type} sha256:{weights[:12]}{' bfloat16' * bfloat16}"
        )

    def annotate(self, texts: list[str]) -> list[dict[str, Any]]:
        """Annotations of one batch, each as the package gives it: {"text", "entities": {id: {"tokens", "label",
        "start_ix", "end_ix" (inclusive, in words), "relations": [[name, id]]}}, "data_source", "data_split"}."""
        import torch
        from radgraph.utils import preprocess_reports

        reports = [entry["sentences"][0] for entry in preprocess_reports(texts, self.model_type)]
        with torch.inference_mode():
            entities = [self._entities(*pair) for pair in zip(reports, self._embed(reports), strict=True)]
        return [
            {"text": " ".join(words), "entities": found, "data_source": None, "data_split": "inference"}
            for words, found in zip(reports, entities, strict=True)
        ]

    def _embed(self, reports: list[list[str]]) -> Iterator[torch.Tensor]:
        """Word vectors [words, D] of each report, the mean of a word's pieces; 0 for a word without pieces."""
        import torch

        # DyGIE++ takes two tokens of the treebank for what they stand for.
        words = [word[1:] if word in ("/.", "/?") else word for report in reports for word in report]
        pieces = iter(self._tokenizer(words, add_special_tokens=False, verbose=False)["input_ids"] if words else [])
        pieces_of = [[next(pieces) for _ in report] for report in reports]
        size, room = self._bert.config.hidden_size, self._max_length - 2
        stretches: list[list[int]] = []
        for report_pieces in pieces_of:
            ids = [piece for word in report_pieces for piece in word]
            stretches += [ids[start : start + room] for start in range(0, len(ids), room)]
        begin, end = self._tokenizer.cls_token_id, self._tokenizer.sep_token_id
        stretches = [[begin, *ids, end] for ids in stretches]
        parts = [self._widths.new_empty(0, size)]
        for i in range(0, len(stretches), self.batch_size):
            states = last_states(self._bert, stretches[i : i + self.batch_size], self._bfloat16)
            parts += [state[1:-1] for state in states]
        vectors = torch.cat(parts)  # [pieces of all reports, D]
        for report_pieces in pieces_of:
            counts = torch.tensor([len(word) for word in report_pieces], dtype=torch.long, device=self.device)
            total = int(counts.sum())
            own, vectors = vectors[:total], vectors[total:]
            word_of = torch.arange(len(counts), device=self.device).repeat_interleave(counts)
            sums = own.new_zeros(len(counts), size).index_add_(0, word_of, own)
            yield sums / counts.clamp(min=1).unsqueeze(1)

    def _entities(self, words: list[str], vectors: torch.Tensor) -> dict[str, dict[str, Any]]:
        """DyGIE++'s entities of one report, and the relations between them."""
        import torch

        if not words:
            return {}
        every = torch.arange(len(words), device=self.device)
        starts = every.repeat_interleave(self._max_width)
        ends = starts + torch.arange(self._max_width, device=self.device).repeat(len(words))
        starts, ends = starts[ends < len(words)], ends[ends < len(words)]

        namespace = f"{self.model_type}__ner_labels"
        scores = self._span_scores(self._network._ner._ner_scorers[namespace], vectors, starts, ends)
        labels = torch.nn.functional.pad(scores, (1, 0)).argmax(1)  # no entity scores 0
        found = labels.nonzero().squeeze(1)
        entities = {
            str(number): {
                "tokens": " ".join(words[start : end + 1]),
                "label": self._network.vocab.get_token_from_index(label, namespace),
                "start_ix": start,
                "end_ix": end,
                "relations": [],
            }
            for number, (start, end, label) in enumerate(
                torch.stack([starts[found], ends[found], labels[found]], 1).tolist(), 1
            )
        }
        for subject, object_, name in self._relations(vectors, starts, ends, labels > 0):
            entities[str(subject)]["relations"].append([name, str(object_)])
        return entities

    def _relations(
        self, vectors: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, is_entity: torch.Tensor
    ) -> list[tuple[int, int, str]]:
        """Relations as (number of the subject, number of the object, name), numbers counting entities from 1.

        Only the best-scored spans, so many for each word, may relate (the beam), and of these only entities are
        paired: the package scores the other pairs as well, and drops them afterwards.
        """
        import torch

        network, namespace = self._network._relation, f"{self.model_type}__relation_labels"
        mention = self._span_scores(network._mention_pruners[namespace]._scorer, vectors, starts, ends)  # [spans, 1]
        beam = int(torch.ceil(torch.tensor(float(len(vectors))) * network._spans_per_word))
        best = mention.topk(min(beam, len(mention)), dim=0).indices.squeeze(1).sort().values
        best = best[is_entity[best]]
        numbers = is_entity.cumsum(0)[best].tolist()
        if not numbers:
            return []
        mention = mention[best]
        width_vectors = self._widths[(ends - starts)[best]]
        spans = torch.cat([vectors[starts[best]], vectors[ends[best]], width_vectors], 1)  # [K, S]

        # The network takes [subject; object; subject * object]; its first layer is applied to the parts.
        feedforward, scorer = network._relation_feedforwards[namespace], network._relation_scorers[namespace]
        first = feedforward._linear_layers[0]
        of_subject, of_object, of_product = first.weight.split(spans.shape[1], dim=1)
        subjects, objects = spans @ of_subject.T + first.bias, spans @ of_object.T
        relations = []
        rows = max(1, PAIR_VALUES // spans.numel())
        for row in range(0, len(spans), rows):
            product = spans[row : row + rows].unsqueeze(1) * spans  # [rows, K, S]
            hidden = product @ of_product.T + subjects[row : row + rows].unsqueeze(1) + objects
            scores = scorer(_after_first_layer(feedforward, hidden))
            scores = scores + mention[row : row + rows].unsqueeze(1) + mention  # [rows, K, labels]
            labels = torch.nn.functional.pad(scores, (1, 0)).argmax(2)  # no relation scores 0
            for i, j in labels.nonzero().tolist():
                name = self._network.vocab.get_token_from_index(int(labels[i, j]) - 1, namespace)
                relations.append((numbers[row + i], numbers[j], name))
        return relations

    def _span_scores(
        self, scorer: Any, vectors: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor
    ) -> torch.Tensor:
        """DyGIE++'s scorer of spans [start word; end word; width]: [spans, scores].

        Its first layer is applied to the parts: a word stands in many spans and is multiplied once.
        """
        feedforward, last = scorer[0]._module, scorer[1]._module
        first, size = feedforward._linear_layers[0], vectors.shape[1]
        of_start, of_end, of_width = first.weight.tensor_split((size, 2 * size), dim=1)
        hidden = (vectors @ of_start.T)[starts] + (vectors @ of_end.T)[ends]
        hidden += (self._widths @ of_width.T + first.bias)[ends - starts]
        return last(_after_first_layer(feedforward, hidden))


def radgraph_f1(
    prediction: dict[str, Any], reference: dict[str, Any], lower: bool = False
) -> tuple[float, float, float]:
    """RG_E, RG_ER and RG_bar{ER} of one pair of annotations, each in [0, 1] (`simple`, `partial`, `complete` of the
    radgraph package; Delbrouck et al., 2022). Annotations without entities score 0, also against each other.

    Args:
        prediction, reference: as `RadGraph.annotate` returns them.
        lower: ignore case. False is the released package 0.1.18: case counts, except in RG_bar{ER} for the words of an
            entity that has a relation.
    """
    scores = [_f1(*sets) for sets in zip(_facts(prediction, lower), _facts(reference, lower), strict=True)]
    return scores[0], scores[1], scores[2]


def _facts(annotation: dict[str, Any], lower: bool) -> tuple[set[Any], set[Any], set[Any]]:
    entities = annotation["entities"]
    simple: set[Any] = set()
    partial: set[Any] = set()
    complete: set[Any] = set()
    for entity in entities.values():
        tokens, label, relations = entity["tokens"], entity["label"], entity["relations"]
        tokens = tokens.lower() if lower else tokens
        simple.add((tokens, label))
        partial.add((tokens, label, bool(relations)))
        for name, target in relations:
            complete.add((tokens.lower(), label, name, entities[target]["tokens"].lower()))
        if not relations:
            complete.add((tokens, label))
    return simple, partial, complete


def _f1(prediction: set[Any], reference: set[Any]) -> float:
    common = len(prediction & reference)
    if not common:
        return 0.0
    precision, recall = common / len(prediction), common / len(reference)
    return 2 * precision * recall / (precision + recall)


def check_model(source: Path, model_type: str) -> None:
    """Raise RadDraftError unless a folder or an archive has the files of this model."""
    lacking = set(_needed(model_type))
    if source.is_dir():
        lacking -= {file.relative_to(source).as_posix() for file in source.rglob("*") if file.is_file()}
    else:
        try:
            with tarfile.open(source) as archive:
                lacking -= {Path(member.name).as_posix() for member in archive if member.isfile()}
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise RadDraftError(f"{source} is not a complete archive: {error}") from error
    if lacking:
        raise RadDraftError(f"{source} is not a {model_type} model: it lacks {', '.join(sorted(lacking))}")


def _needed(model_type: str) -> list[str]:
    labels = [f"vocabulary/{model_type}__{task}_labels.txt" for task in ("ner", "relation")]
    return ["config.json", "weights.th", "vocabulary/non_padded_namespaces.txt", *labels]


def _is_complete(folder: Path, model_type: str) -> bool:
    return all((folder / name).is_file() for name in _needed(model_type))


def _unpacked(model: Path, model_type: str, cache: Path | None) -> Path:
    """The folder of the model, unpacked into the cache if need be."""
    if not model.exists():
        raise UnavailableError(
            f"No RadGraph model at {model}. Give {model_type}.tar.gz of https://huggingface.co/StanfordAIMI/RRG_scorers"
        )
    if model.is_dir():
        if _is_complete(model, model_type):
            return model
        if not (archive := model.with_name(f"{model_type}.tar.gz")).is_file():
            check_model(model, model_type)
        model = archive
    target = (cache or cache_folder()) / f"radgraph-{(digest_file(model) or '')[:12]}"
    if not _is_complete(target, model_type):
        target.parent.mkdir(parents=True, exist_ok=True)
        with whole_folder(target) as fresh:
            try:
                with tarfile.open(model) as tar:
                    tar.extractall(fresh, filter="data")
                    while tar.fileobj and tar.fileobj.read(2**20):
                        pass  # on to gzip's checksum: tar itself stops at a damaged header, as at the end
            except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
                raise RadDraftError(
                    f"{model} cannot be unpacked: truncated, damaged or not a tar.gz ({error})"
                ) from error
            check_model(fresh, model_type)
    return target


def _load_tokenizer(config: dict[str, Any], tokenizer: str | Path | None, folder: Path) -> tuple[Any, Any]:
    """The tokenizer and the config of BERT, from this machine only."""
    from transformers import AutoConfig, AutoTokenizer

    of_words = config["dataset_reader"]["token_indexers"]["bert"]["model_name"]
    of_network = config["model"]["embedder"]["token_embedders"]["bert"]["model_name"]
    try:
        words = AutoTokenizer.from_pretrained(tokenizer or of_words, local_files_only=True, trust_remote_code=False)
        bert = AutoConfig.from_pretrained(tokenizer or of_network, local_files_only=True, trust_remote_code=False)
        if len(words) <= len(words.all_special_tokens):
            raise UnavailableError(f"{tokenizer or of_words} has no vocabulary")
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"RadGraph's tokenizer is not {f'at {tokenizer}' if tokenizer else 'on this machine'}: "
            f"{folder / 'config.json'} names {of_words!r} (dataset_reader) and {of_network!r} (model). Download "
            "the tokenizer and config.json of that model and give their folder as `tokenizer`"
        ) from error
    return words, bert


def _build_network(settings: dict[str, Any], bert_config: Any, vocabulary: Path) -> tuple[Any, Any]:
    """The package's DyGIE around a BERT without weights, and that BERT."""
    import torch
    from transformers import AutoModel

    with warnings.catch_warnings():  # the package changes the filters when it is imported
        from radgraph.allennlp.common.util import namespace_match
        from radgraph.allennlp.data.vocabulary import Vocabulary
        from radgraph.dygie.models.dygie import DyGIE

    # Not Vocabulary.from_files, which leaves a lock file in the folder.
    unpadded = (vocabulary / "non_padded_namespaces.txt").read_text(encoding="utf-8").split()
    labels = Vocabulary(non_padded_namespaces=unpadded)
    for file in sorted(set(vocabulary.glob("*.txt")) - {vocabulary / "non_padded_namespaces.txt"}):
        padded = not any(namespace_match(pattern, file.stem) for pattern in unpadded)
        labels.set_from_file(str(file), padded, namespace=file.stem)

    bert = AutoModel.from_config(bert_config)
    # The package's embedder by its names only, as weights.th has them: the class itself needs transformers 4.
    embedder: Any = torch.nn.ModuleDict({"_matched_embedder": torch.nn.ModuleDict({"transformer_model": bert})})
    embedder = torch.nn.ModuleDict({"token_embedder_bert": embedder})
    embedder.get_output_dim = lambda: bert_config.hidden_size
    unused = ("type", "embedder", "initializer", "module_initializer")
    network = DyGIE(labels, embedder, **{key: value for key, value in settings.items() if key not in unused})
    if network._coref.coref_prop > 0:
        raise RadDraftError("RadGraph models with coref_prop > 0 are not supported: it changes the span vectors")
    return network, bert


def _after_first_layer(feedforward: Any, hidden: torch.Tensor) -> torch.Tensor:
    hidden = feedforward._activations[0](hidden)
    for layer, activation in zip(feedforward._linear_layers[1:], feedforward._activations[1:], strict=True):
        hidden = activation(layer(hidden))
    return hidden
