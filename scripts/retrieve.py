"""Draft reports without training a language model: by the nearest training studies in a tower's features.

    raddraft retrieve --tower dinov2-base --studies studies.jsonl --out runs/nearest.jsonl
    raddraft retrieve --tower rad-dino --studies studies.jsonl --k 5 --out runs/vote.jsonl
    raddraft score runs/nearest.jsonl runs/vote.jsonl --studies studies.jsonl

A strong and honest baseline: it knows nothing but which pictures look alike to the tower.

Or let a language model write with the neighbours' sentences in its prompt:

    raddraft retrieve --tower rad-dino --studies studies.jsonl --k 5 --out runs/vote.jsonl --augmented similar.jsonl
    raddraft train --studies similar.jsonl --prompt.context "[similar]" --model.tower rad-dino \\
        --model.lm lmsys/vicuna-7b-v1.5 --out runs/similar
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from raddraft.cli import run
from raddraft.errors import RadDraftError
from raddraft.processes import pick_device
from raddraft.studies import GrayMapping

if TYPE_CHECKING:
    from torch import Tensor

    from encoder.features import FeatureStore
    from raddraft.studies import Study


def main(
    tower: str,
    studies: Path,
    out: Path,
    split: Literal["val", "test"] = "test",
    targets: list[str] | None = None,
    k: int = 1,
    augmented: Path | None = None,
    sentences: int = 10,
    pooling: Literal["class", "mean", "both"] = "both",
    gray_mapping: GrayMapping = "window",
    image_size: int | None = None,
    features: Path = Path("features"),
    batch_size: int = 32,
    workers: int = 2,
    device: str = "auto",
) -> int:
    """Write predictions.jsonl with the report of the nearest training study, or the one its k neighbours agree on.

    Args:
        tower: Short name, hub id or folder.
        studies: The manifest.
        out: The predictions to write.
        split: Studies to draft.
        targets: Sections that make the report; by default findings.
        k: Neighbours that vote.
        augmented: Also write the manifest with a section `similar`: the sentences that the k nearest training reports
            of other subjects share. Relative paths in it are those from its own folder.
        sentences: Most sentences of that section.
        pooling: The pooled vector, the mean patch, or both side by side.
        gray_mapping: How grey values are mapped to 8 bits.
        image_size: Side of the tower's input in pixels instead of its own.
        features: Folder of feature stores.
        batch_size: Images per forward pass.
        workers: Processes that decode and prepare images while the tower runs.
        device: cpu, cuda, cuda:1, mps …; auto takes the first accelerator.
    """
    from encoder.features import FeatureConfig, store_features
    from encoder.towers import load_tower
    from generator.generate import BANNER
    from generator.prompts import PromptConfig
    from generator.retrieve import SIMILAR, nearest, vote
    from raddraft.files import write_whole
    from raddraft.studies import read_studies, write_studies

    prompt = PromptConfig(targets=targets) if targets else PromptConfig()
    known = read_studies(studies)
    training = [study for study in known if study.split == "train" and prompt.answer(study)]
    if not training:
        raise RadDraftError(f"No training study has the sections {', '.join(prompt.targets)}")
    queries = [study for study in known if study.split == split]
    paths = [study.main_image.path for study in (known if augmented else (*training, *queries))]
    config = FeatureConfig(gray_mapping=gray_mapping)
    loaded = load_tower(tower, image_size)
    loaded.model.to(pick_device(device))
    store, errors = store_features(loaded, paths, features, config, batch_size, workers)
    for sentence in errors:
        print(f"no features: {sentence}")
    training = [study for study in training if study.main_image.path in store]
    readable = [study for study in queries if study.main_image.path in store]
    vectors = partial(_vectors, store, pooling)
    neighbours = nearest(vectors(readable), vectors(training), k)
    with write_whole(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for study, indices, cosines in zip(
            readable, neighbours.indices.tolist(), neighbours.similarities.tolist(), strict=True
        ):
            reports = [prompt.answer(training[i]) or "" for i in indices]
            row = {
                "study_id": study.study_id,
                "prediction": reports[vote(reports, cosines)],
                "reference": prompt.answer(study),
                "candidates": reports,
                "model": f"nearest of {len(training)} training studies by {tower}",
            }
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(readable)} of {len(queries)} drafts are in {out}\n{BANNER}")
    if augmented:
        reports = [prompt.answer(study) or "" for study in training]
        part = [study for study in known if study.main_image.path in store]
        _add_similar(part, vectors(part), training, vectors(training), reports, k, sentences)
        write_studies(augmented, known)
        print(f"{len(part)} of {len(known)} studies have a section {SIMILAR!r} in {augmented}")
    return 0 if len(readable) == len(queries) else 1


def _vectors(store: FeatureStore, pooling: Literal["class", "mean", "both"], studies: list[Study]) -> Tensor:
    return store.vectors([study.main_image.path for study in studies], pooling)


def _add_similar(
    studies: list[Study],
    vectors: Tensor,
    training: list[Study],
    training_vectors: Tensor,
    reports: list[str],
    k: int,
    count: int,
) -> None:
    """Give each study the section of sentences that its neighbours of other subjects share."""
    from generator.retrieve import SIMILAR, nearest, shared_sentences

    subjects = [study.subject_id for study in studies], [study.subject_id for study in training]
    found = nearest(vectors, training_vectors, k, subjects=subjects)
    for study, rows, cosines in zip(studies, found.indices.tolist(), found.similarities.tolist(), strict=True):
        study.sections[SIMILAR] = shared_sentences([reports[row] for row in rows], cosines, count)


if __name__ == "__main__":
    run("retrieve")
