"""Controls that stand beside a model's scores: they tell whether the image matters.

shuffled-images   the same model, every study with the picture of another patient
most-frequent     the commonest training report for everyone
nearest-report    the training report of the study whose image features are most alike
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from encoder.features import store_features
from generator.model import Drafter
from generator.retrieve import nearest
from raddraft.errors import RadDraftError
from raddraft.studies import Study


def shuffle_images(studies: Sequence[Study], seed: int = 0) -> list[Study]:
    """The same studies, each with the pictures of another subject.

    Raises:
        ValueError: there is only one subject.
    """
    if len({study.subject_id for study in studies}) < 2:
        raise RadDraftError("Images of a single subject cannot be shuffled between subjects")
    order = sorted(range(len(studies)), key=lambda i: studies[i].subject_id)
    groups = Counter(study.subject_id for study in studies)
    # Rotating the list, sorted by subject, by more than the largest subject gives everyone somebody else's picture.
    least = max(groups.values())
    if 2 * least > len(studies):
        raise RadDraftError(f"One subject has {least} of {len(studies)} studies: too many to shuffle between subjects")
    shift = random.Random(seed).randint(least, len(studies) - least)
    donors = order[shift:] + order[:shift]
    images = {receiver: studies[donor].images for receiver, donor in zip(order, donors, strict=True)}
    return [replace(study, images=images[i]) for i, study in enumerate(studies)]


def most_frequent(drafter: Drafter, training: Sequence[Study]) -> str:
    """The commonest report of the training studies; among equals, the first in the alphabet."""
    counts = Counter(answer for study in training if (answer := drafter.prompt.answer(study)))
    if not counts:
        raise RadDraftError(f"No training study has the sections {', '.join(drafter.prompt.targets)}")
    return min(counts, key=lambda text: (-counts[text], text))


def nearest_reports(
    drafter: Drafter, training: Sequence[Study], studies: Sequence[Study], cache: Path
) -> tuple[dict[str, str], list[str]]:
    """For each study the report of the training study of another subject whose image is nearest by cosine.

    An image is described by the class token (where the tower has one) and the mean patch of its last hidden state,
    each standardised over the training images.

    Returns:
        study id -> report, and a sentence for each study without one.
    """
    donors = [study for study in training if drafter.prompt.answer(study)]
    if not donors:
        raise RadDraftError(f"No training study has the sections {', '.join(drafter.prompt.targets)}")
    paths = [study.main_image.path for study in (*donors, *studies)]
    store, _ = store_features(drafter.tower, paths, cache, drafter.features)
    donors = [study for study in donors if study.main_image.path in store]
    wanted = [study for study in studies if study.main_image.path in store]
    unreadable = [study for study in studies if study.main_image.path not in store]
    errors = [f"{study.study_id}: {study.main_image.path} cannot be read" for study in unreadable]
    n_prefix = drafter.processor.num_additional_image_tokens

    def describe(part: Sequence[Study]) -> torch.Tensor:  # [n, D] or [n, 2 D]
        vectors = []
        for study in part:  # one at a time: the hidden states of all would fill the memory
            hidden = store[study.main_image.path].float()
            patch = hidden[n_prefix:].mean(0)
            vectors.append(torch.cat([hidden[0], patch]) if n_prefix else patch)
        return torch.stack(vectors)

    if not wanted or not donors:
        return {}, errors
    subjects = [study.subject_id for study in wanted], [study.subject_id for study in donors]
    found = nearest(describe(wanted), describe(donors), subjects=subjects)
    reports = {}
    for study, row, cosine in zip(wanted, found.indices[:, 0].tolist(), found.similarities[:, 0].tolist(), strict=True):
        if math.isinf(cosine):
            errors.append(f"{study.study_id}: no other subject has a report to copy")
        else:
            reports[study.study_id] = drafter.prompt.answer(donors[row]) or ""
    return reports, errors
