"""Models with random weights in the official layouts of CheXbert and RadGraph: for tests and benchmarks.

They label and annotate at random; nothing they say of a report means anything.
"""

from __future__ import annotations

import copy
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ENTITIES = ["", "ANAT-DP", "OBS-DP", "OBS-U", "OBS-DA"]
RELATIONS = ["suggestive_of", "located_at", "modify"]


def save_bert(folder: Path, texts: Sequence[str], vocab_size: int = 5000, **sizes: int) -> None:
    """An uncased WordPiece tokenizer of these texts, and the config of a BERT, by default of BERT-base; no weights.

    Its entries are the letters and the commonest words: a trained vocabulary differs from run to run.
    """
    from transformers import BertConfig, BertTokenizer

    counts = Counter(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower()))
    letters = sorted({letter for word in counts for letter in word})
    words = [word for word, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])) if len(word) > 1]
    entries = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {entry: i for i, entry in enumerate(entries[:vocab_size])}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512)
    tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(tokenizer), **sizes).save_pretrained(folder)  # type: ignore[arg-type]


def save_chexbert(path: Path, bert_folder: Path) -> None:
    """CheXbert's checkpoint around the BERT that `bert_folder` describes."""
    import torch
    from transformers import AutoConfig, BertModel

    from metrics.chexbert import N_CLASSES

    torch.manual_seed(0)
    config: Any = AutoConfig.from_pretrained(bert_folder)
    heads = torch.nn.ModuleList(torch.nn.Linear(config.hidden_size, classes) for classes in N_CLASSES.values())
    network = torch.nn.ModuleDict({"bert": BertModel(config), "linear_heads": heads})
    state = {f"module.{key}": value for key, value in network.state_dict().items()}
    torch.save({"epoch": 1, "model_state_dict": state, "optimizer_state_dict": {}}, path)


def save_radgraph(
    folder: Path,
    bert_folder: Path,
    texts: Sequence[str],
    model_type: str = "radgraph",
    width: int = 150,
    max_span_width: int = 12,
    entity_share: float = 0.025,
    relation_share: float = 0.1,
) -> None:
    """What RadGraph's archive unpacks to, of the package's own classes.

    Args:
        folder: to write; its name must be `model_type`, as the package wants it.
        bert_folder: config and tokenizer of BERT.
        texts: the last biases are shifted so that on these texts the shares below are reached, of all labels alike.
        model_type: radgraph or radgraph-xl.
        width: of the scorers' hidden layers; 150 in DyGIE++'s settings.
        max_span_width: in words; 12 in DyGIE++'s settings.
        entity_share: of all spans.
        relation_share: of all pairs of spans in the beam.
    """
    import torch

    bert = {"model_name": str(bert_folder), "max_length": 512}
    settings = {
        "feature_size": 20,
        "max_span_width": max_span_width,
        "target_task": "relation",
        "feedforward_params": {"num_layers": 2, "hidden_dims": width, "dropout": 0.4},
        "loss_weights": {"ner": 0.2, "relation": 1.0, "coref": 0.0, "events": 0.0},
        "modules": {
            "ner": {},
            "relation": {"spans_per_word": 0.5},
            "coref": {"spans_per_word": 0.3, "max_antecedents": 100, "coref_prop": 0},
            "events": {
                "trigger_spans_per_word": 0.3,
                "argument_spans_per_word": 0.8,
                "loss_weights": {"trigger": 0.2, "arguments": 1.0},
            },
        },
    }
    embedding = {"embedder": {"token_embedders": {"bert": bert}}}
    config = {
        "dataset_reader": {"max_span_width": max_span_width, "token_indexers": {"bert": bert}},
        "model": {"type": "dygie", **embedding, "initializer": {}, "module_initializer": {}, **settings},
    }
    with radgraph_package(bert_folder):
        from radgraph import RadGraph
        from radgraph.allennlp.data import Vocabulary
        from radgraph.allennlp.modules import text_field_embedders, token_embedders
        from radgraph.dygie.models.dygie import DyGIE

        labels = Vocabulary()
        for task, names in (("ner", ENTITIES), ("relation", RELATIONS)):
            for name in names:
                labels.add_token_to_namespace(name, f"{model_type}__{task}_labels")
        labels.save_to_files(str(folder / "vocabulary"))
        (folder / "vocabulary" / ".lock").unlink(missing_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        torch.manual_seed(0)
        embedder = token_embedders.PretrainedTransformerMismatchedEmbedder(**bert)
        words = text_field_embedders.BasicTextFieldEmbedder({"bert": embedder})
        network = DyGIE(labels, words, **copy.deepcopy(settings))  # it takes its settings apart
        torch.save(network.state_dict(), folder / "weights.th")
        theirs = RadGraph(model_type=model_type, model_cache_dir=str(folder.parent), cuda=-1)
        entity = theirs.model._ner._ner_scorers[f"{model_type}__ner_labels"][1]._module
        relation = theirs.model._relation._relation_scorers[f"{model_type}__relation_labels"]
        _shift(theirs, {entity: entity_share, relation: relation_share}, texts)
        torch.save(theirs.model.state_dict(), folder / "weights.th")


def _shift(model: Any, shares: dict[Any, float], texts: Sequence[str]) -> None:
    """Shift the biases of linear layers so that a share of their outputs is above 0, of all outputs alike."""
    import torch

    seen: dict[Any, list[torch.Tensor]] = {linear: [] for linear in shares}
    for linear, outputs in seen.items():
        linear.register_forward_hook(lambda _, __, output, outputs=outputs: outputs.append(output.flatten(0, -2)))
    model(list(texts))
    with torch.no_grad():
        for linear, outputs in seen.items():
            above = torch.cat(outputs).sort(dim=0, descending=True).values
            place = int(len(above) * shares[linear] / len(linear.bias))
            linear.bias -= above[place : place + 2].mean(0)  # between two, so that rounding does not decide


@contextmanager
def radgraph_package(bert_folder: Path) -> Iterator[None]:
    """Let the radgraph package itself run on transformers 5: its tokenizer gets two methods that are gone."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(bert_folder)
    tokenizer.encode_plus = tokenizer.__call__
    tokenizer.build_inputs_with_special_tokens = lambda ids: [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
    with warnings.catch_warnings():  # the package changes the filters when it is imported
        from radgraph.allennlp.common import cached_transformers

        warnings.simplefilter("ignore")  # it warns of texts of one word
        kept = cached_transformers.get_tokenizer, cached_transformers._model_cache
        cached_transformers.get_tokenizer, cached_transformers._model_cache = lambda *_, **__: tokenizer, {}
        try:
            yield
        finally:
            cached_transformers.get_tokenizer, cached_transformers._model_cache = kept
