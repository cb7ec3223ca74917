"""What a reader may ask for beside a draft: where the vision tower looks, and the nearest training reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from encoder.config import EncoderConfig
from encoder.features import open_store
from encoder.figures import class_attention, square_pixels
from generator.retrieve import nearest, with_reports
from raddraft.errors import RadDraftError
from raddraft.images import load_image
from raddraft.studies import Study

if TYPE_CHECKING:
    from generator.drafter import Drafter

NEIGHBORS = 3
"""Training reports that are shown."""


def shows_attention(drafter: Drafter) -> bool:
    """Whether the model has a tower with a class token, whose attention can be shown."""
    return drafter.kind == "llava" and drafter.tower.is_plain and drafter.tower.n_prefix > 0


def attention(drafter: Drafter, path: Path) -> list[list[float]]:
    """Attention of the tower's class token to the patches of a film's center square, in its last layer.

    Returns:
        [h, w], in multiples of what each patch had if all had the same.
    """
    tower = drafter.tower
    pixels, _ = square_pixels(tower, [load_image(path, drafter.gray_mapping)])
    found = class_attention(tower.model, pixels, tower.n_prefix)
    if found is None:
        raise RadDraftError("The model's tower has no class token, hence no attention to show")
    return (found[0] / found[0].mean()).tolist()


class Nearest:
    """The training studies whose films look most like one to the model's tower; features are kept in a folder.

    Args:
        drafter: the model.
        studies: those of the split train that have a report are compared.
        features: folder of stored features.

    Raises:
        RadDraftError: no training study has a report, or the model was not built by RadDraft.
    """

    def __init__(self, drafter: Drafter, studies: list[Study], features: Path) -> None:
        self._drafter = drafter
        self._compute = EncoderConfig(features=features, gray_mapping=drafter.gray_mapping, workers=0)
        self._kept = replace(drafter.features, keep="pooled")
        self._pooling: Literal["both", "mean"] = "both" if drafter.processor.num_additional_image_tokens else "mean"
        training = with_reports(studies, drafter.prompt)
        store = open_store(drafter.tower, [one.main_image.path for one in training], self._kept, self._compute)
        self._training = [study for study in training if study.main_image.path in store]
        self._vectors = store.vectors([one.main_image.path for one in self._training], self._pooling)

    def find(self, study: Study) -> list[dict[str, Any]]:
        """The reports of the nearest training studies of other subjects, and their cosines, the nearest first."""
        path = study.main_image.path
        store = open_store(self._drafter.tower, [path], self._kept, self._compute, quiet=True)
        if path not in store:
            raise RadDraftError("; ".join(store.errors))
        owners = [study.subject_id], [one.subject_id for one in self._training]
        found = nearest(store.vectors([path], self._pooling), self._vectors, NEIGHBORS, subjects=owners)
        pairs = zip(found.indices[0].tolist(), found.similarities[0].tolist(), strict=True)
        answer = self._drafter.prompt.answer
        return [{"similarity": cosine, "text": answer(self._training[row])} for row, cosine in pairs if cosine > -1.001]
