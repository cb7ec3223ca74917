"""The feature store: equal to a direct forward pass, exact after any interruption, never stale, shared safely."""

from __future__ import annotations

import json
import os
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.features import FeatureConfig, FeatureStore, store_features
from encoder.images import ImageError, load_image
from encoder.towers import load_tower

HIDDEN = FeatureConfig("hidden", (-1,))
PART, INDEX = "part-0.bin", "part-0.jsonl"


@pytest.fixture
def tower(tower_folder: Path):
    return load_tower(str(tower_folder))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Eleven pictures of different sizes."""
    return [save_picture(tmp_path / f"{number}.png", number) for number in range(11)]


def save_picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 200, (30 + seed, 45 - seed), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def store(tower, paths: list[Path], folder: Path, batch_size: int = 1, workers: int = 0, **options) -> FeatureStore:
    """Store hidden states, by default one picture at a time: then their bits do not depend on their neighbours."""
    config = FeatureConfig(**{"keep": "hidden", "layers": (-1,)} | options)
    features, errors = store_features(tower, paths, folder, config, batch_size, workers)
    assert errors == []
    return features


@torch.no_grad()
def forward(tower, path: Path, layer: int = -1, mapping: str = "window") -> torch.Tensor:
    picture = load_image(path, mapping=mapping).convert("RGB")
    pixels = tower.processor([picture], return_tensors="pt")["pixel_values"]
    return tower.model(pixels, output_hidden_states=True).hidden_states[layer][0]


class Count:
    """How many pictures a tower has seen, but for the black one that tells the shape."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.seen = 0
        model.register_forward_hook(self._add, with_kwargs=True)

    def _add(self, module, arguments, keywords, output) -> None:
        self.seen += int(arguments[0].unique().numel() > 3) * len(output.last_hidden_state)

    def take(self) -> int:
        seen, self.seen = self.seen, 0
        return seen


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_stored_features_are_the_towers_hidden_states(tower, paths, tmp_path, layer, batch_size) -> None:
    features = store(tower, paths, tmp_path / "features", layers=(layer,), batch_size=batch_size)
    assert features.shape == (5, 32)
    for path in paths:
        expected = forward(tower, path, layer)
        assert features[path].dtype == torch.float16
        torch.testing.assert_close(features[path].float(), expected, rtol=1e-3, atol=1e-3)
    assert not torch.equal(features[paths[0]], features[paths[1]])
    assert features.blank.shape == features.shape


def test_worker_processes_change_nothing(tower, paths, tmp_path) -> None:
    alone = store(tower, paths, tmp_path / "alone", batch_size=3)
    helped = store(tower, paths, tmp_path / "helped", batch_size=3, workers=2)
    assert (alone.folder / PART).read_bytes() == (helped.folder / PART).read_bytes()
    assert alone.rows == helped.rows


def test_what_is_stored_is_not_computed_again(tower, paths, tmp_path) -> None:
    count = Count(tower.model)
    store(tower, paths[:4], tmp_path / "features")
    assert count.take() == 4
    first = store(tower, [*paths, *paths[3:6]], tmp_path / "features")
    assert count.take() == 7, "a path that is named twice counts once"
    assert len(first.rows) == 11
    again = store(tower, paths[::-1], tmp_path / "features")
    assert count.take() == 0
    assert all(torch.equal(first[path], again[path]) for path in paths)
    meta = json.loads((again.folder / "meta.json").read_text())
    assert (meta["shape"], meta["grid"], meta["layers"]) == ([5, 32], [2, 2], [-1])
    assert (meta["keep"], meta["mapping"], meta["dtype"]) == ("hidden", "window", "float16")


def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(tower, paths, tmp_path) -> None:
    count = Count(tower.model)
    folder = store(tower, paths, tmp_path / "features").folder
    count.take()
    files = [folder / PART, folder / INDEX]
    whole = [file.read_bytes() for file in files]
    row_bytes, line_ends = len(whole[0]) // 11, [i + 1 for i, byte in enumerate(whole[1]) if byte == ord("\n")]
    generator = random.Random(0)
    for _ in range(25):
        cuts = [generator.choice([0, 1, generator.randint(0, len(data)), len(data)]) for data in whole]
        for file, data, cut in zip(files, whole, cuts, strict=True):
            file.write_bytes(data[:cut])
        features = store(tower, paths, tmp_path / "features")
        assert [file.read_bytes() for file in files] == whole, f"cut at {cuts}"
        kept = min(cuts[0] // row_bytes, sum(end <= cuts[1] for end in line_ends))
        assert count.take() == 11 - kept, f"cut at {cuts}"
        assert [features.rows[str(path)] for path in paths] == [(PART, row) for row in range(11)]


@pytest.mark.parametrize("lost", [PART, INDEX])
def test_a_lost_file_costs_time_only(tower, paths, tmp_path, lost) -> None:
    folder = store(tower, paths, tmp_path / "features").folder
    before = (folder / PART).read_bytes()
    (folder / lost).unlink()
    store(tower, paths, tmp_path / "features")
    assert (folder / PART).read_bytes() == before


def test_a_changed_file_is_read_again(tower, paths, tmp_path) -> None:
    count = Count(tower.model)
    before = store(tower, paths, tmp_path / "features")
    old = [before[path] for path in paths]
    count.take()
    save_picture(paths[3], 12)
    stat = paths[5].stat()
    os.utime(paths[5], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    after = store(tower, paths, tmp_path / "features")
    assert count.take() == 1, "the one whose content has changed"
    torch.testing.assert_close(after[paths[3]].float(), forward(tower, paths[3]), rtol=1e-3, atol=1e-3)
    assert not torch.equal(after[paths[3]], old[3])
    assert all(torch.equal(after[path], old[i]) for i, path in enumerate(paths) if i != 3)


def test_other_towers_and_settings_have_other_stores(tower, paths, tmp_path, tower_folder) -> None:
    folder = tmp_path / "features"

    def key(**options) -> str:
        return store(tower, paths[:2], folder, **options).folder.name

    first = key()
    keys = {first, key(layers=(-2,)), key(mapping="minmax")}
    model, processor = tower.model, tower.processor
    processor.image_mean = [0.1, 0.1, 0.1]
    keys.add(key())
    processor.resample = 0
    keys.add(key())
    with torch.no_grad():
        model.embeddings.cls_token[0, 0, 0] += 0.01
    keys.add(key())
    assert len(keys) == 6
    assert {path.name for path in folder.iterdir() if path.is_dir()} == keys
    assert store(load_tower(str(tower_folder)), paths, folder).folder.name == first
    larger = load_tower(str(tower_folder), image_size=56)
    assert store(larger, paths[:1], folder).shape == (17, 32)


def test_the_mapping_reaches_the_pictures(tower, paths, tmp_path) -> None:
    stretched = store(tower, paths, tmp_path / "features", mapping="minmax")
    expected = forward(tower, paths[0], mapping="minmax")
    torch.testing.assert_close(stretched[paths[0]].float(), expected, rtol=1e-3, atol=1e-3)
    assert (expected - forward(tower, paths[0])).abs().max() > 0.01


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_unreadable_picture_is_named_and_costs_nothing_else(tower, paths, tmp_path, batch_size) -> None:
    expected = store(tower, paths, tmp_path / "whole", batch_size=batch_size)
    rest = [expected[path] for path in paths]
    paths[0].write_bytes(b"not a picture")
    paths[6].unlink()
    for _ in range(2):  # the second time they are reported again
        features, errors = store_features(tower, paths, tmp_path / "features", HIDDEN, batch_size, 0)
        assert [error.split(":")[0] for error in errors] == [str(paths[0]), str(paths[6])]
        assert len(features.rows) == 9
    for i, path in enumerate(paths):
        assert (path in features) == (i not in (0, 6))
        if path in features:
            torch.testing.assert_close(features[path], rest[i], rtol=1e-3, atol=1e-3)
    with pytest.raises(ImageError, match=r"0\.png: no features are stored for this image"):
        features[paths[0]]
    save_picture(paths[0], 0)
    features, errors = store_features(tower, paths, tmp_path / "features", HIDDEN, batch_size, 0)
    assert len(errors) == 1
    torch.testing.assert_close(features[paths[0]], rest[0], rtol=1e-3, atol=1e-3)


def test_nothing_to_store(tower, tmp_path) -> None:
    features = store(tower, [], tmp_path / "features")
    assert features.rows == {}
    assert features.shape == (5, 32)
    missing = tmp_path / "gone.png"
    features, errors = store_features(tower, [missing], tmp_path / "features", HIDDEN, workers=0)
    assert features.rows == {}
    assert errors == [f"{missing}: cannot be read: No such file or directory"]


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_tower_lacks(tower, paths, tmp_path, layer) -> None:
    with pytest.raises(ValueError, match=rf"Layer {layer} does not exist\. The tower has hidden states -3 to 2"):
        store(tower, paths, tmp_path / "features", layers=(layer,))


def test_runs_that_share_a_store_do_not_mix_their_rows(tower, paths, tower_folder, tmp_path) -> None:
    expected = {path: forward(tower, path) for path in paths}
    jobs = [(load_tower(str(tower_folder)), share) for share in (paths, paths[::-1], paths[3:], paths[:8])]
    with ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(lambda job: store(*job, tmp_path / "features"), jobs))
    for features in results:
        for name in features.rows:
            torch.testing.assert_close(features[Path(name)].float(), expected[Path(name)], rtol=1e-3, atol=1e-3)
    assert (results[0].folder / INDEX).read_text().count("\n") == 11, "nothing is computed twice"
