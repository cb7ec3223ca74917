"""What the tasks of a comparison read of a tower: one pass over all images that any of them needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from encoder.config import EncoderConfig, FeatureConfig
from encoder.features import FeatureStore, open_stores
from encoder.segment import masked_paths
from encoder.targets import of_sources
from encoder.tower import Tower
from generator.compare_config import Task
from generator.compare_report import Recipe
from generator.priors import find_priors
from raddraft.errors import RadDraftError
from raddraft.studies import Study

POOLED, TOKENS = FeatureConfig("pooled"), FeatureConfig("tokens")


@dataclass
class RowFeatures:
    """Stored features for one row of a table."""

    of_tasks: dict[FeatureConfig, FeatureStore] = field(default_factory=dict)
    of_reports: dict[str, FeatureStore] = field(default_factory=dict)
    """Name of a report task -> what its recipe trains on and drafts from."""


def features_of(task: Task, studies: Sequence[Study]) -> tuple[FeatureConfig, list[Path]]:
    """What a task other than reports reads of which images.

    Raises:
        RadDraftError: no study of its sources, or no image with its masks.
    """
    try:
        chosen = of_sources(studies, task.sources)
        if task.kind == "segmentation":
            return TOKENS, masked_paths(chosen, task.targets)
        return POOLED, [study.main_image.path for study in chosen]
    except RadDraftError as error:
        raise RadDraftError(f"Task {task.name!r}: {error}") from None


def report_images(recipe: Recipe, studies: Sequence[Study]) -> list[Path]:
    """Every image that training, drafting and the controls of a recipe may read."""
    chosen = [study for study in of_sources(studies, recipe.sources) if recipe.prompt.answer(study)]
    priors = find_priors(chosen) if recipe.prompt.prior else {}
    images = [
        image
        for study in chosen
        for image in (study.main_image, *recipe.prompt.choose_images(study, priors.get(study.study_id)))
    ]
    return [image.path for image in images]


def open_row(
    tower: Tower, encoder: EncoderConfig, tasks: Sequence[Task], recipes: Mapping[str, Recipe], studies: Sequence[Study]
) -> RowFeatures:
    """The features of a row, after computing those that are not stored yet: each image is read once.

    A recipe with another input size than the row has a pass of its own.

    Args:
        tower: of the row, on its device.
        encoder: its settings.
        tasks: those that are still to be measured.
        recipes: name of a report task -> its recipe for this row.
        studies: of the manifest.

    Raises:
        RadDraftError: as `features_of` and `encoder.features.open_store`.
    """
    sizes: dict[int | None, dict[FeatureConfig, list[Path]]] = {encoder.image_size: {}}
    places: dict[str, tuple[int | None, FeatureConfig]] = {}
    for task in tasks:
        if task.kind != "report":
            size, (kept, paths) = encoder.image_size, features_of(task, studies)
            if task.kind == "segmentation" and tower.shape[:2] == (1, 1):
                continue
        else:
            recipe = recipes[task.name]
            size, layer = recipe.model.image_size, recipe.model.feature_layer
            if tower.is_plain and not -tower.n_states <= layer < tower.n_states:
                continue  # training tells
            kept, paths = FeatureConfig("tokens", (layer,) if tower.is_plain else None), report_images(recipe, studies)
            places[task.name] = size, kept
        sizes.setdefault(size, {}).setdefault(kept, []).extend(paths)
    opened = {}
    for size, wanted in sizes.items():
        settings = replace(encoder, image_size=size)
        try:
            own = tower if size == encoder.image_size else settings.load()
        except RadDraftError:
            continue  # a size that the tower cannot take: training tells
        opened[size] = open_stores(own, wanted, settings, quiet=True) if wanted else {}
    for store in (store for stores in opened.values() for store in stores.values()):
        store.tower = store.computed = None  # not to be held over all rows
    reports = {name: opened[size][kept] for name, (size, kept) in places.items() if size in opened}
    return RowFeatures(opened[encoder.image_size], reports)
