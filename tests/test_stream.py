"""Batches of crops for pre-training: what a step sees follows from its number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.recipe import Architecture, CropConfig, PretrainConfig
from encoder.start import load_start
from encoder.stream import CropDataset, Order, load_batches
from raddraft.images import ImageError


def take(order: Order, first: int, n_steps: int) -> list[list[int]]:
    steps = order(first)
    return [next(steps) for _ in range(n_steps)]


def test_every_image_is_seen_once_an_epoch():
    order = Order([4, 6], None, batch_size=5, seed=0)
    for epoch in (take(order, 0, 2), take(order, 2, 2)):
        assert sorted(position for step in epoch for position in step) == list(range(10))
    assert take(order, 0, 2) != take(order, 2, 2)


def test_sources_come_in_the_shares_that_are_asked_for():
    order = Order([1000, 10], [1, 3], batch_size=40, seed=0)
    seen = Counter(position >= 1000 for step in take(order, 0, 100) for position in step)
    assert seen[True] / 4000 == pytest.approx(0.75, abs=0.03)
    small = Counter(position for step in take(order, 0, 100) for position in step if position >= 1000)
    assert len(small) == 10
    assert max(small.values()) - min(small.values()) <= 1  # again only when all have had their turn


@pytest.mark.parametrize("weights", [None, [0.2, 0.8]])
def test_a_run_that_goes_on_sees_the_same_images(weights):
    order = Order([7, 5], weights, batch_size=4, seed=3)
    assert take(order, 5, 6) == take(Order([7, 5], weights, batch_size=4, seed=3), 0, 11)[5:]


@pytest.mark.parametrize("weights", [[1.0], [0.0, 0.0], [1.0, -1.0]])
def test_impossible_shares_are_refused(weights):
    with pytest.raises(ValueError, match="weight of at least 0"):
        Order([7, 5], weights, batch_size=4, seed=0)


@pytest.fixture
def images(tmp_path):
    random = np.random.default_rng(0)
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for path in paths:
        Image.fromarray(random.integers(0, 255, (40, 36), dtype=np.uint8)).save(path)
    return paths


def make_dataset(images, **options) -> CropDataset:
    crops = CropConfig(**{"global_size": 16, "local_size": 8, "local_crops": 2} | options)
    config = PretrainConfig(
        tower=None, architecture=Architecture(64, 1, patch_size=4), crops=crops, gray_mapping="window"
    )
    with torch.random.fork_rng():
        return CropDataset(images, config, load_start(config, "cpu"))


def batches(images, first=0, last=3, micro=4, process=(0, 1), workers=0):
    order = Order([len(images)], None, batch_size=8, seed=0)
    return list(load_batches(make_dataset(images), order, range(first, last), micro, process, workers))


def same(one, other) -> bool:
    pairs = [(one.global_crops, other.global_crops), (one.local_crops, other.local_crops), (one.masks, other.masks)]
    return all(torch.equal(a, b) for a, b in pairs)


def test_shapes_and_order_of_crops(images):
    first, *_ = found = batches(images)
    assert len(found) == 6
    assert first.global_crops.shape == (8, 1, 16, 16)
    assert first.local_crops.shape == (8, 1, 8, 8)
    assert first.masks.shape == (8, 4, 4)
    assert first.masks.flatten(1).any(1).sum() == 4  # half of the crops are masked, whatever the draw


def test_a_crop_stands_beside_the_second_crop_of_its_image(images):
    """Crops of one image of a single gray value are nearly alike, those of two images are not."""
    for number, path in enumerate(images):
        pixels = np.full((40, 36), 20 * number, dtype=np.uint8)
        pixels[0, 0] = 255
        Image.fromarray(pixels).save(path)
    dataset = make_dataset(images, jitter=0.0, blur_local=0.0)
    dataset.crops.mean, dataset.crops.std = 0.0, 1.0
    order = Order([len(images)], None, batch_size=8, seed=0)
    (batch,) = load_batches(dataset, order, range(1), 8)
    gray = [20 * position / 255 for position in next(order(0))]
    assert batch.global_crops.flatten(1).median(1).values.tolist() == pytest.approx([*gray, *gray], abs=0.01)
    assert batch.local_crops.flatten(1).median(1).values.tolist() == pytest.approx([*gray, *gray], abs=0.01)


def test_batches_do_not_depend_on_workers_resuming_or_the_global_random_state(images):
    torch.manual_seed(0)
    whole = batches(images)
    state = torch.get_rng_state()
    torch.manual_seed(99)
    assert all(map(same, whole, batches(images, workers=2)))
    assert all(map(same, whole[2:], batches(images, first=1)))
    torch.set_rng_state(state)
    batches(images, workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_two_processes_share_the_batch_of_one(images):
    whole = batches(images, micro=8)
    halves = [batches(images, process=(rank, 2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        parts = [half[step] for half in halves]
        for name, crops in (("global_crops", 2), ("local_crops", 2), ("masks", 2)):
            joined = torch.cat([getattr(part, name).unflatten(0, (crops, -1)) for part in parts], 1).flatten(0, 1)
            assert torch.equal(getattr(batch, name), joined)


def test_unreadable_images_are_replaced_and_named(images):
    images[3].write_bytes(b"no image")
    (found,) = {sentence for batch in batches(images) for sentence in batch.errors}
    assert str(images[3]) in found
    dataset = make_dataset(images)
    _, replaced, *_ = dataset[3, 7]
    _, neighbor, _, errors, _ = dataset[4, 7]
    assert errors == []
    assert torch.equal(replaced, neighbor)


def test_no_readable_image_at_all_is_an_error(images):
    for path in images:
        path.write_bytes(b"")
    with pytest.raises(ImageError, match="cannot be read"):
        batches(images)
