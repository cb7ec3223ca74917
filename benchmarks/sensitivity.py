"""The figure of docs/sensitivity.md: `raddraft sensitivity`, with random weights where a metric's own are missing.

    raddraft prepare iu-xray --root iu --missing keep --out iu/studies.jsonl
    python -m benchmarks.sensitivity iu/studies.jsonl --out docs/images

A model of random weights in the official layout has learned nothing, so what its metric sees comes from its design
alone. It is a floor, and no measurement of the metric.
"""

from __future__ import annotations

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.random_embedders import save_cxr_bert, save_modern_radgraph, save_punkt, save_ratescore, save_t5
from benchmarks.random_models import save_bert, save_chexbert, save_radgraph
from metrics.chexbert import CheXbert
from metrics.models import Models
from metrics.sensitivity import read_reports, sensitivity, tables, write

POSITIONAL = ("reports",)
SMALL = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
"""Size of the random models: minutes instead of hours, and they know as little as larger ones."""


def main(
    reports: Path,
    out: Path,
    section: str | None = None,
    n: int = 1000,
    n_random: int = 200,
    seed: int = 0,
) -> None:
    """Print the tables, and write sensitivity.json and sensitivity.png.

    Args:
        reports: A manifest, or a table of reports.
        out: Folder to write to.
        section: Section of the manifest, or column of the table.
        n: Number of reports, drawn at random.
        n_random: Number of them that models with random weights read.
        seed: Seed of the reports drawn, the corruptions and the resamples.
    """
    texts, subjects = read_reports(reports, section, n, seed)
    measured = sensitivity(texts, seed=seed, subjects=subjects)
    few, whose = texts[:n_random], subjects and subjects[:n_random]
    with TemporaryDirectory() as scratch:
        floor = sensitivity(few, models=random_models(Path(scratch), texts), seed=seed, subjects=whose)["metrics"]
    note = f"Random weights, {len(few):,} reports: a floor"
    for name in [name for name in measured["skipped"] if name in floor]:
        measured["metrics"][name] = floor[name] | {"floor": note}
        del measured["skipped"][name]
    print(tables(measured), "", *write(measured, out), sep="\n")


def random_models(folder: Path, texts: list[str]) -> Models:
    """All models in their official layouts, small and with random weights.

    Such a T5 writes no lists, so that the facts of CXRFEScore are whole sentences.
    """
    import nltk

    bert, chexbert, roberta = folder / "bert", folder / "chexbert.pth", folder / "roberta"
    radgraph, radgraph_xl = folder / "radgraph", folder / "radgraph-xl"
    save_bert(bert, texts, **SMALL)
    save_chexbert(chexbert, bert)
    center(chexbert, bert, texts[:64])
    with redirect_stdout(StringIO()):
        for path in (radgraph, radgraph_xl):
            save_radgraph(path, bert, texts[:8], path.name)
        modern, modern_bert = save_modern_radgraph(folder, texts, width=150)
    save_roberta(roberta, texts)
    ner, synonyms = save_ratescore(folder, texts)
    save_punkt(folder / "nltk")
    nltk.data.path.append(str(folder / "nltk"))  # where CXRFEScore finds the ends of sentences, if nowhere else
    return Models(
        chexbert=chexbert,
        chexbert_tokenizer=bert,
        radgraph=radgraph,
        radgraph_xl=radgraph_xl,
        radgraph_tokenizer=bert,
        bertscore=roberta,
        modern_radgraph_xl=modern,
        modern_radgraph_xl_tokenizer=modern_bert,
        cxr_bert=save_cxr_bert(folder / "cxr-bert", texts),
        cxrfe=save_cxr_bert(folder / "cxrfe", texts),
        cxrfe_facts=save_t5(folder / "t5", texts),
        ratescore_ner=ner,
        ratescore_synonyms=synonyms,
        keep=False,
    )


def center(checkpoint: Path, bert: Path, texts: list[str]) -> None:
    """Shift the biases of a random CheXbert's heads so that all labels are alike on average, or it finds one only."""
    import torch

    mean = CheXbert(checkpoint, bert, device="cpu").embed(texts).float().mean(0)
    saved = torch.load(checkpoint, weights_only=True)
    state = saved["model_state_dict"]
    for name in [name for name in state if "linear_heads" in name and name.endswith("bias")]:
        state[name] = -state[name.replace("bias", "weight")] @ mean
    torch.save(saved, checkpoint)


def save_roberta(folder: Path, texts: list[str]) -> None:
    """A small RoBERTa of six layers with random weights, and a byte-level BPE tokenizer of these texts."""
    import json

    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=5000, special_tokens=special, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    merges: Any = [tuple(merge) for merge in state["merges"]]
    tokenizer = RobertaTokenizer(vocab=state["vocab"], merges=merges, model_max_length=512)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = SMALL | {"vocab_size": len(tokenizer), "num_hidden_layers": 6, "max_position_embeddings": 514}
    config = RobertaConfig(**sizes, pad_token_id=1)  # type: ignore[arg-type]
    RobertaModel(config).save_pretrained(folder)


if __name__ == "__main__":
    from raddraft.cli import run

    run("sensitivity", package="benchmarks")
