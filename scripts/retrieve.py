"""Draft reports without training a language model: by the nearest training studies in a tower's features.

    raddraft retrieve --tower dinov2-base --studies studies.jsonl --out runs/nearest.jsonl
    raddraft retrieve --tower rad-dino --studies studies.jsonl --k 5 --out runs/vote.jsonl
    raddraft score runs/nearest.jsonl runs/vote.jsonl --studies studies.jsonl

A strong and honest baseline: it knows nothing but which pictures look alike to the tower.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from scripts import run


def main(
    tower: str,
    studies: Path,
    out: Path,
    split: Literal["val", "test"] = "test",
    targets: list[str] | None = None,
    k: int = 1,
    pooling: Literal["class", "mean", "both"] = "both",
    mapping: Literal["window", "minmax", "percentile"] = "window",
    image_size: int | None = None,
    features: Path = Path("features"),
    batch_size: int = 32,
    workers: int = 2,
) -> int:
    """Write predictions.jsonl with the report of the nearest training study, or the one its k neighbours agree on.

    Args:
        tower: Short name, hub id or folder.
        studies: The manifest.
        out: The predictions to write.
        split: Studies to draft.
        targets: Sections that make the report; by default findings.
        k: Neighbours that vote.
        pooling: The pooled vector, the mean patch, or both side by side.
        mapping: How grey values are mapped to 8 bits.
        image_size: Side of the tower's input in pixels instead of its own.
        features: Folder of feature stores.
        batch_size: Images per forward pass.
        workers: Processes that decode and prepare images while the tower runs.
    """
    from encoder.features import FeatureConfig, store_features
    from encoder.studies import read_studies, write_whole
    from encoder.towers import load_tower
    from generator.generate import BANNER
    from generator.prompts import PromptConfig
    from generator.retrieve import nearest, vote

    prompt = PromptConfig(targets=targets) if targets else PromptConfig()
    known = read_studies(studies)
    training = [study for study in known if study.split == "train" and prompt.answer(study)]
    if not training:
        raise ValueError(f"No training study has the sections {', '.join(prompt.targets)}")
    queries = [study for study in known if study.split == split]
    paths = [study.main_image.path for study in (*training, *queries)]
    config = FeatureConfig(mapping=mapping)
    store, errors = store_features(load_tower(tower, image_size), paths, features, config, batch_size, workers)
    for sentence in errors:
        print(f"no features: {sentence}")
    training = [study for study in training if study.main_image.path in store]
    readable = [study for study in queries if study.main_image.path in store]
    vectors = [store.vectors([study.main_image.path for study in part], pooling) for part in (readable, training)]
    neighbours = nearest(vectors[0], vectors[1], k)
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
    return 0 if len(readable) == len(queries) else 1


if __name__ == "__main__":
    run("retrieve")
