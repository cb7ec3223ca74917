"""Images -> batches of crops and masks for pre-training, the same however a run was interrupted or spread out.

What a step sees depends on the seed, the number of the step and the place in the global batch alone: a resumed run,
also one on another number of processes, gets the same crops.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from encoder.augment import MultiCrop, block_masks
from encoder.digests import File, read_file
from encoder.recipe import PretrainConfig
from encoder.tower import Tower
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, load_gray

MASK_GROUP = 4
"""Images whose crops share the strata of mask ratios; a process's micro-batch should be a multiple of it."""


class Batch(NamedTuple):
    """One micro-batch of B images."""

    global_crops: Tensor  # [2 B, 1, S, S], the first crops of all images, then the second ones
    local_crops: Tensor  # [n B, 1, s, s], in the same order
    masks: Tensor  # bool [2 B, S / patch, S / patch]
    errors: list[str]  # a sentence for each image that could not be read and was replaced by its neighbor
    read: dict[int, File]  # position of an image -> its file, where this is not in `CropDataset.listed`


class Order:
    """Which images each step sees: each source in random order, over and over; sources in given shares.

    Args:
        sizes: number of images in each source.
        weights: shares of the sources; None: all images are one source, so each is seen once an epoch.
        batch_size: images per step, over all processes.
        seed: of the order.

    Raises:
        RadDraftError: not one weight of at least 0 for each source.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, batch_size: int, seed: int) -> None:
        if weights is not None and (len(weights) != len(sizes) or min(weights) < 0 or sum(weights) <= 0):
            raise RadDraftError(
                f"Need a weight of at least 0 for each of the {len(sizes)} sources, got {list(weights)}"
            )
        self.sizes = [sum(sizes)] if weights is None else list(sizes)
        shares = np.array([1.0] if weights is None else weights, dtype=float)
        self.shares = shares / shares.sum()
        self.batch_size, self.seed = batch_size, seed
        self._permutation = lru_cache(maxsize=2 * len(self.sizes))(self._shuffle)

    def __call__(self, first: int) -> Iterator[list[int]]:
        """For each step from `first` on: positions in the list of all images, sources one after the other."""
        taken = np.zeros(len(self.sizes), dtype=int)
        starts = np.cumsum([0, *self.sizes[:-1]])
        for step in count():
            counts = np.random.default_rng([self.seed, step]).multinomial(self.batch_size, self.shares)
            if step >= first:
                yield [
                    int(starts[source] + self._permutation(source, number // size)[number % size])
                    for source, size in enumerate(self.sizes)
                    for number in range(taken[source], taken[source] + counts[source])
                ]
            taken += counts

    def _shuffle(self, source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, source, epoch]).permutation(self.sizes[source])


Item = tuple[int, int]
"""An image in a step: its position in the list of all images, and the seed of its crops."""


class CropDataset(Dataset):
    """Crops of images; one that cannot be read is replaced by the next that can.

    Args:
        paths: the images.
        config: the recipe.
        tower: whose image processor and patch size the crops are for.

    Attributes:
        listed: bool [n]: images whose digests are known. Others are digested as they are read.
    """

    def __init__(self, paths: Sequence[Path], config: PretrainConfig, tower: Tower) -> None:
        # One array: of a list, workers would copy a million paths by counting references to them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        processor: Any = tower.processor
        self.crops = MultiCrop(config.crops, processor.image_mean, processor.image_std)
        side = config.crops.global_size // tower.model.config.patch_size
        self.draw_masks = partial(
            block_masks, grid=(side, side), probability=config.mask_probability, ratio=config.objective.mask_ratio
        )
        self.gray_mapping = config.gray_mapping
        self.listed = torch.zeros(len(paths), dtype=torch.bool).share_memory_()  # workers see what is set later

    def __getitem__(self, item: Item) -> tuple[Item, Tensor, Tensor, list[str], dict[int, File]]:
        """The item, its global crops [2, 1, S, S] and local ones [n, 1, s, s], errors and `read` as in a Batch.

        Raises:
            ImageError: none of a hundred neighbors can be read.
        """
        position, seed = item
        errors: list[str] = []
        for offset in range(100):
            place = (position + offset) % len(self.paths)
            path = Path(os.fsdecode(self.paths[place]))
            read = {}
            try:
                data = None
                if not self.listed[place]:
                    data, read[place] = read_file(path)
                image = torch.from_numpy(load_gray(path, self.gray_mapping, data=data))[None]
            except (ImageError, OSError) as error:
                errors.append(str(error))
            else:
                return item, *self.crops(image, seed), errors, read
        raise ImageError(f"100 images in a row cannot be read; the first: {errors[0]}")

    def collate(self, rows: list[tuple[Item, Tensor, Tensor, list[str], dict[int, File]]]) -> Batch:
        """One Batch, with masks."""
        items, global_crops, local_crops, errors, read = zip(*rows, strict=True)
        masks = []
        for start in range(0, len(items), MASK_GROUP):
            group = items[start : start + MASK_GROUP]
            _, seed = group[0]
            masks.append(self.draw_masks(2 * len(group), seed=seed).unflatten(0, (2, -1)))
        return Batch(
            torch.stack(global_crops, 1).flatten(0, 1),
            torch.stack(local_crops, 1).flatten(0, 1),
            torch.cat(masks, 1).flatten(0, 1),
            [sentence for part in errors for sentence in part],
            {place: file for part in read for place, file in part.items()},
        )


def load_batches(
    dataset: CropDataset,
    order: Order,
    steps: range,
    micro_batch_size: int,
    process: tuple[int, int] = (0, 1),
    workers: int = 0,
) -> Iterator[Batch]:
    """The micro-batches of these steps for one process, given by its index and the number of processes."""
    rank, world = process

    def plan() -> Iterator[list[Item]]:
        for step, positions in zip(steps, order(steps.start), strict=False):
            items = [(position, _seed(order.seed, step, place)) for place, position in enumerate(positions)]
            mine = items[rank * len(items) // world : (rank + 1) * len(items) // world]
            for start in range(0, len(mine), micro_batch_size):
                yield mine[start : start + micro_batch_size]

    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=plan(),  # type: ignore[arg-type]
        collate_fn=dataset.collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the global random state
    )
    return iter(loader)


def _seed(*parts: int) -> int:
    """One number from several, by NumPy's mixing."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
