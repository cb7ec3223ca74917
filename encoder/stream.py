"""Images -> batches of views and masks for pre-training, the same ones wherever a run was interrupted or spread out.

What a step sees follows from the seed, the number of the step and the place in the global batch alone: a run that goes
on after a kill, or on another number of processes, gets the same views.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from encoder.augment import Views, block_masks
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, load_gray
from raddraft.studies import GrayMapping

MASK_GROUP = 4
"""Images whose crops share the strata of mask ratios; a process's micro-batch should be a multiple of it."""


@dataclass
class Batch:
    """One micro-batch of B images."""

    global_crops: Tensor
    """[2 B, 1, S, S], the first crops of all images, then the second ones."""
    local_crops: Tensor
    """[n B, 1, s, s], likewise."""
    masks: Tensor
    """bool [2 B, S / patch, S / patch]."""
    errors: list[str]
    """A sentence for each image that could not be read and was replaced by its neighbour."""

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda part: part.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:  # the loader calls it
        return self._map(Tensor.pin_memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(change(self.global_crops), change(self.local_crops), change(self.masks), self.errors)


class Order:
    """Which images each step sees: those of a source in random order, over and over; sources in given shares.

    Args:
        sizes: images in each source.
        weights: shares of the sources; None: all images are one source, so that each is seen once an epoch.
        batch_size: images in a step, over all processes.
        seed: of the order.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float] | None, batch_size: int, seed: int) -> None:
        if weights is not None and (len(weights) != len(sizes) or min(weights) < 0 or sum(weights) <= 0):
            raise RadDraftError(
                f"Need a weight of at least 0 for each of the {len(sizes)} sources, got {list(weights)}"
            )
        self.sizes = list(sizes) if weights is not None else [sum(sizes)]
        self.shares = np.array(weights if weights is not None else [1.0], dtype=float)
        self.shares /= self.shares.sum()
        self.batch_size, self.seed = batch_size, seed
        self._permutation = lru_cache(maxsize=2 * len(self.sizes))(self._shuffle)

    def __call__(self, first: int) -> Iterator[list[int]]:
        """For each step from `first` on: positions in the list of all images, sources one after the other."""
        taken = np.zeros(len(self.sizes), dtype=int)
        starts = np.cumsum([0, *self.sizes[:-1]])
        for step in count():
            counts = self.counts(step)
            if step >= first:
                yield [
                    int(start) + self._at(source, int(number))
                    for source, (start, done, wanted) in enumerate(zip(starts, taken, counts, strict=True))
                    for number in range(done, done + wanted)
                ]
            taken += counts

    def counts(self, step: int) -> np.ndarray:
        """How many images of each source a step sees."""
        if len(self.sizes) == 1:
            return np.array([self.batch_size])
        return np.random.default_rng([self.seed, step]).multinomial(self.batch_size, self.shares)

    def _at(self, source: int, number: int) -> int:
        epoch, position = divmod(number, self.sizes[source])
        return int(self._permutation(source, epoch)[position])

    def _shuffle(self, source: int, epoch: int) -> np.ndarray:
        return np.random.default_rng([self.seed, source, epoch]).permutation(self.sizes[source])


@dataclass(frozen=True)
class Item:
    """An image in a step."""

    position: int
    """In the list of all images."""
    seed: int
    """Of its views."""


class ViewDataset(Dataset):
    """Views of images; one that cannot be read is replaced by the next that can."""

    def __init__(self, paths: Sequence[Path], views: Views, gray_mapping: GrayMapping) -> None:
        # One array: of a list, workers would copy a million paths by counting references to them.
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.views, self.gray_mapping = views, gray_mapping

    def __getitem__(self, item: Item) -> tuple[Item, Tensor, Tensor, list[str]]:
        """The item, its global views [2, 1, S, S] and local ones [n, 1, s, s], and sentences on unreadable images.

        Raises:
            ImageError: none of a hundred neighbours can be read.
        """
        errors: list[str] = []
        for offset in range(100):
            path = Path(os.fsdecode(self.paths[(item.position + offset) % len(self.paths)]))
            try:
                image = torch.from_numpy(load_gray(path, self.gray_mapping))[None]
            except (ImageError, OSError) as error:
                errors.append(str(error))
            else:
                return item, *self.views(image, item.seed), errors
        raise ImageError(f"100 images in a row cannot be read; the first: {errors[0]}")


class Collate:
    """Items -> one Batch, with masks."""

    def __init__(self, grid: tuple[int, int], probability: float, ratio: tuple[float, float]) -> None:
        self.grid, self.probability, self.ratio = grid, probability, ratio

    def __call__(self, rows: list[tuple[Item, Tensor, Tensor, list[str]]]) -> Batch:
        items, global_views, local_views, errors = zip(*rows, strict=True)
        masks = []
        for start in range(0, len(items), MASK_GROUP):
            group = items[start : start + MASK_GROUP]
            drawn = block_masks(2 * len(group), self.grid, self.probability, self.ratio, group[0].seed)
            masks.append(drawn.unflatten(0, (2, -1)))
        return Batch(
            torch.stack(global_views, 1).flatten(0, 1),
            torch.stack(local_views, 1).flatten(0, 1),
            torch.cat(masks, 1).flatten(0, 1),
            [sentence for part in errors for sentence in part],
        )


def load_batches(
    dataset: ViewDataset,
    order: Order,
    collate: Collate,
    first: int,
    last: int,
    micro_batch_size: int,
    process: tuple[int, int],
    workers: int,
) -> Iterator[Batch]:
    """One process's micro-batches of the steps from `first` to before `last`, in order.

    Args:
        dataset, order, collate: where they come from.
        first, last: steps.
        micro_batch_size: images in one of them.
        process: index of this process and their number.
        workers: processes that read and augment.
    """
    rank, world = process

    def plan() -> Iterator[list[Item]]:
        for step, positions in zip(range(first, last), order(first), strict=False):
            items = [Item(position, _seed(order.seed, step, place)) for place, position in enumerate(positions)]
            mine = items[rank * len(items) // world : (rank + 1) * len(items) // world]
            for start in range(0, len(mine), micro_batch_size):
                yield mine[start : start + micro_batch_size]

    loader: DataLoader = DataLoader(
        dataset,
        batch_sampler=plan(),  # type: ignore[arg-type]
        collate_fn=collate,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers else None,
        generator=torch.Generator(),  # the loader draws a seed for its workers: not from the global random state
    )
    return iter(loader)


def _seed(*parts: int) -> int:
    """One number for the views, by NumPy's mixing of the parts."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))
