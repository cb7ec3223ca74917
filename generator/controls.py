"""Controls that are scored beside a model and tell whether it uses the images.

shuffled-images   the same model, each study with the images of another subject
most-frequent     the most frequent training report for every study
nearest-report    the training report of the study whose image features are nearest
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from encoder.config import EncoderConfig
from encoder.features import open_store
from generator.config import Control
from generator.drafter import Drafter
from generator.retrieve import nearest
from raddraft.errors import RadDraftError
from raddraft.files import check_replaced, write_jsonl
from raddraft.studies import Study


def shuffle_images(studies: Sequence[Study], seed: int = 0) -> list[Study]:
    """The same studies, each with the images of another subject.

    Raises:
        RadDraftError: there is only one subject, or one with more than half of the studies.
    """
    counts = Counter(study.subject_id for study in studies)
    if len(counts) < 2:
        raise RadDraftError("Images of a single subject cannot be shuffled between subjects")
    order = sorted(range(len(studies)), key=lambda i: studies[i].subject_id)
    # Sorted by subject and rotated by at least the largest subject, the list gives each study another subject's images.
    least = max(counts.values())
    if 2 * least > len(studies):
        raise RadDraftError(f"One subject has {least} of {len(studies)} studies: too many to shuffle between subjects")
    shift = random.Random(seed).randint(least, len(studies) - least)
    donors = order[shift:] + order[:shift]
    images = {receiver: studies[donor].images for receiver, donor in zip(order, donors, strict=True)}
    return [replace(study, images=images[i]) for i, study in enumerate(studies)]


def most_frequent(drafter: Drafter, training: Sequence[Study]) -> str:
    """The most frequent report of the training studies; of equally frequent ones the first in alphabetical order."""
    counts = Counter(answer for study in training if (answer := drafter.prompt.answer(study)))
    if not counts:
        raise RadDraftError(f"No training study has the sections {', '.join(drafter.prompt.targets)}")
    return min(counts, key=lambda text: (-counts[text], text))


def nearest_reports(
    drafter: Drafter, training: Sequence[Study], studies: Sequence[Study], features: Path
) -> tuple[dict[str, str], list[str]]:
    """For each study the report of the training study of another subject whose image is nearest by cosine.

    An image is described by the class token (where the tower has one) and the mean patch of its last hidden state,
    each standardized over the training images. Unless the drafter has a store, they are kept in the folder `features`.

    Returns:
        study id -> report, and a sentence for each study without one.
    """
    donors = [study for study in training if drafter.prompt.answer(study)]
    if not donors:
        raise RadDraftError(f"No training study has the sections {', '.join(drafter.prompt.targets)}")
    paths = [study.main_image.path for study in (*donors, *studies)]
    store = drafter.store
    if store is None:
        compute = EncoderConfig(features=features, gray_mapping=drafter.gray_mapping)
        store = open_store(drafter.tower, paths, replace(drafter.features, keep="pooled"), compute, quiet=True)
    donors = [study for study in donors if study.main_image.path in store]
    wanted = [study for study in studies if study.main_image.path in store]
    unreadable = [study for study in studies if study.main_image.path not in store]
    errors = [f"{study.study_id}: {study.main_image.path} cannot be read" for study in unreadable]
    if not wanted or not donors:
        return {}, errors
    subjects = [study.subject_id for study in wanted], [study.subject_id for study in donors]
    pooling: Literal["both", "mean"] = "both" if drafter.processor.num_additional_image_tokens else "mean"
    queries, training_vectors = (
        store.vectors([study.main_image.path for study in part], pooling) for part in (wanted, donors)
    )
    found = nearest(queries, training_vectors, subjects=subjects)
    reports = {}
    for study, row, cosine in zip(wanted, found.indices[:, 0].tolist(), found.similarities[:, 0].tolist(), strict=True):
        if math.isinf(cosine):
            errors.append(f"{study.study_id}: no other subject has a report to copy")
        else:
            reports[study.study_id] = drafter.prompt.answer(donors[row]) or ""
    return reports, errors


def copy_reports(
    drafter: Drafter, training: Sequence[Study], studies: Sequence[Study], out: Path, control: Control, name: str
) -> list[str]:
    """Write training reports as predictions of a control, "most-frequent" or "nearest-report", to `out`.

    Features of images are stored in the folder `features` beside it. `name` is that of the model in the file.

    Returns:
        A sentence for each study without a report.

    Raises:
        RadDraftError: no training study has the sections that the model writes, or `out` holds something else, such as
            the drafts of a model.
    """
    check_replaced(out, ("prediction",), ("fingerprint",))
    errors: list[str] = []
    if control == "most-frequent":
        reports = dict.fromkeys((study.study_id for study in studies), most_frequent(drafter, training))
    else:
        reports, errors = nearest_reports(drafter, training, studies, out.parent / "features")
    known = [study for study in studies if study.study_id in reports]
    texts = ({"prediction": reports[one.study_id], "reference": drafter.prompt.answer(one)} for one in known)
    write_jsonl(out, (one.ids | text | {"model": name} for one, text in zip(known, texts, strict=True)))
    return errors
