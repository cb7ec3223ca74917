"""Draft reports without training a language model: those of the nearest training studies in a tower's features.

    raddraft retrieve --tower dinov2-base --studies studies.jsonl --out runs/nearest.jsonl
    raddraft retrieve --tower rad-dino --studies studies.jsonl --k 5 --out runs/vote.jsonl
    raddraft score runs/nearest.jsonl runs/vote.jsonl --studies studies.jsonl

A strong and honest baseline: all it knows is which images look alike to the tower.

Or let a language model write with the neighbors' sentences in its prompt:

    raddraft retrieve --tower rad-dino --studies studies.jsonl --k 5 --out runs/vote.jsonl --augmented similar.jsonl
    raddraft train --studies similar.jsonl --prompt.context similar --model.tower rad-dino \\
        --model.lm lmsys/vicuna-7b-v1.5 --out runs/similar
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from encoder.config import EncoderConfig
from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.ranges import Count

FLAT = ("encoder",)


def main(
    studies: Path,
    out: Path,
    encoder: EncoderConfig = EncoderConfig(),  # noqa: B008 - read only
    split: Literal["val", "test"] = "test",
    targets: list[str] = ["findings"],  # noqa: B006 - read only
    k: Count = 1,
    augmented: Path | None = None,
    sentences: Count = 10,
    pooling: Literal["class", "mean", "both"] = "both",
) -> int:
    """Write predictions.jsonl with the report of the nearest training study, or the one its k neighbors agree on.

    Args:
        studies: Manifest of the studies.
        out: Predictions file to write.
        encoder: Encoder
        split: Split to draft.
        targets: Sections that make up the report.
        k: Number of neighbors that vote.
        augmented: Also write this manifest, with a section `similar`: sentences that the k nearest training reports of
            other subjects share. Paths in it are relative to its own folder.
        sentences: Maximum number of sentences in that section.
        pooling: Features to compare: the pooled vector, the mean patch, or both, concatenated.
    """
    from encoder.features import open_store
    from generator.generate import BANNER
    from generator.prompts import PromptConfig
    from generator.retrieve import SIMILAR, Retriever, with_reports
    from raddraft.files import check_replaced, write_jsonl
    from raddraft.studies import read_studies, write_studies

    if augmented and augmented.absolute() in (studies.absolute(), out.absolute()):
        raise RadDraftError(f"--augmented {augmented}: this would replace --studies or --out; choose another name")
    check_replaced(out, ("prediction",), ("fingerprint",))
    prompt = PromptConfig(targets=targets)
    known = read_studies(studies)
    training = with_reports(known, prompt)
    queries = [study for study in known if study.split == split]
    paths = [study.main_image.path for study in (known if augmented else (*training, *queries))]
    store = open_store(encoder, paths)
    retriever = Retriever(store, training, prompt, pooling)
    model = f"nearest of {len(retriever.training)} training studies by {encoder.tower}"
    readable = [study for study in queries if study.main_image.path in store]
    count = write_jsonl(out, (row | {"model": model} for row in retriever.draft(readable, k)))
    print(f"{count} of {len(queries)} drafts are in {out}\n{BANNER}")
    if augmented:
        part = [study for study in known if study.main_image.path in store]
        retriever.add_similar(part, k, sentences)
        write_studies(augmented, known)
        print(f"{len(part)} of {len(known)} studies have a section {SIMILAR!r} in {augmented}")
    return 0 if count == len(queries) else 1


if __name__ == "__main__":
    run("retrieve")
