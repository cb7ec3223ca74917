"""The feature store: equal to a direct forward pass, exact after any interruption, never stale, shared safely."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import resource
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.config import ComputeConfig, EncoderConfig, FeatureConfig
from encoder.encoding import compute_features
from encoder.features import FeatureStore, find_settings, open_features, open_store, open_stores
from encoder.store_folder import read_folder
from encoder.tower import Tower
from encoder.towers import load_tower
from raddraft import images
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, load_image
from tests.launch import SERVER
from tests.test_cli import files_no_larger_than
from tests.test_files import gone
from tests.test_towers import save_network, save_tower

HIDDEN = FeatureConfig("tokens", (-1,))
PART, INDEX = "tokens/part-0.bin", "tokens/part-0.jsonl"


@pytest.fixture
def tower(tower_folder: Path):
    return load_tower(str(tower_folder))


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    """Eleven images of different sizes."""
    return [save_image(tmp_path / f"{number}.png", number) for number in range(11)]


def save_image(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 200, (30 + seed, 45 - seed), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def store(tower, paths: list[Path], folder: Path, batch_size: int = 1, workers: int = 0, **options) -> FeatureStore:
    """Store hidden states, by default one image at a time: then their bits do not depend on their neighbors."""
    how = {key: options.pop(key) for key in ("dtype", "gray_mapping") if key in options}
    kept = FeatureConfig(**{"keep": "tokens", "layers": (-1,)} | options)
    features = opened(tower, paths, folder, kept, batch_size, workers, **how)
    assert features.errors == []
    return features


def opened(tower, paths, folder: Path, kept=HIDDEN, batch_size: int = 1, workers: int = 0, **how) -> FeatureStore:
    compute = EncoderConfig(batch_size=batch_size, workers=workers, features=folder, **how)
    return open_store(tower, paths, kept, compute)


@torch.no_grad()
def forward(tower, path: Path, layer: int = -1, gray_mapping: str = "window") -> torch.Tensor:
    image = load_image(path, gray_mapping=gray_mapping).convert("RGB")
    pixels = tower.processor([image], return_tensors="pt")["pixel_values"]
    return tower.model(pixels, output_hidden_states=True).hidden_states[layer][0]


class Count:
    """How many images a tower has seen, but for the black one that tells the shape."""

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
    assert (meta["gray_mapping"], meta["dtype"], meta["precision"]) == ("window", "float16", "float32")
    assert again.grid == (2, 2)


@pytest.mark.parametrize(("batch_size", "bad"), [(1, ()), (4, ()), (4, (2, 3, 9))])
def test_a_run_cut_anywhere_goes_on_to_the_same_bytes(tower, paths, tmp_path, batch_size, bad) -> None:
    for number in bad:
        paths[number].write_text(f"no image {number}")
    good = [i for i in range(11) if i not in bad]
    batches = [[i for i in good if start <= i < start + batch_size] for start in range(0, 11, batch_size)]
    count = Count(tower.model)

    def go_on() -> FeatureStore:
        features = opened(tower, paths, tmp_path / "features", batch_size=batch_size)
        assert [error.split(":")[0] for error in features.errors] == [str(paths[i]) for i in bad]
        return features

    folder = go_on().folder
    assert count.take() == len(good)
    files = [folder / PART, folder / INDEX]
    whole = [file.read_bytes() for file in files]
    row_bytes, line_ends = len(whole[0]) // len(good), [i + 1 for i, byte in enumerate(whole[1]) if byte == ord("\n")]
    generator = random.Random(0)
    for _ in range(15):
        cuts = [generator.choice([0, 1, generator.randint(0, len(data)), len(data)]) for data in whole]
        for file, data, cut in zip(files, whole, cuts, strict=True):
            file.write_bytes(data[:cut])
        features = go_on()
        assert [file.read_bytes() for file in files] == whole, f"cut at {cuts}"
        missing = set(good[min(cuts[0] // row_bytes, sum(end <= cuts[1] for end in line_ends)) :])
        assert count.take() == sum(len(batch) for batch in batches if missing & set(batch)), f"cut at {cuts}"
        assert [features.rows[str(paths[i])] for i in good] == [((PART, row),) for row in range(len(good))]


@pytest.mark.parametrize("lost", [PART, INDEX])
def test_a_lost_file_costs_time_only(tower, paths, tmp_path, lost) -> None:
    folder = store(tower, paths, tmp_path / "features").folder
    before = (folder / PART).read_bytes()
    (folder / lost).unlink()
    store(tower, paths, tmp_path / "features")
    assert (folder / PART).read_bytes() == before


def test_what_a_killed_run_left_in_a_store_is_removed(tower, paths, tmp_path) -> None:
    folder = store(tower, paths, tmp_path / "features").folder
    content = (folder / PART).parent
    (content / "meta.json").unlink()
    left = content / f".meta.json.{gone()}.tmp"
    left.touch()
    store(tower, paths, tmp_path / "features")
    assert (content / "meta.json").is_file()
    assert not left.exists()


def test_a_changed_file_is_read_again(tower, paths, tmp_path) -> None:
    count = Count(tower.model)
    before = store(tower, paths, tmp_path / "features")
    old = [before[path] for path in paths]
    count.take()
    save_image(paths[3], 12)
    stat = paths[5].stat()
    os.utime(paths[5], ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    after = store(tower, paths, tmp_path / "features")
    assert count.take() == 1, "the one whose content has changed"
    torch.testing.assert_close(after[paths[3]].float(), forward(tower, paths[3]), rtol=1e-3, atol=1e-3)
    assert not torch.equal(after[paths[3]], old[3])
    assert all(torch.equal(after[path], old[i]) for i, path in enumerate(paths) if i != 3)


def test_other_towers_and_settings_have_other_stores(tower, paths, tmp_path, tower_folder) -> None:
    folder = tmp_path / "features"

    model, processor = tower.model, tower.processor

    def key(**options) -> str:
        return store(Tower("another", model, processor), paths[:2], folder, **options).folder.name

    first = key()
    assert key(layers=(-2,)) == key(layers=None, keep="pooled") == first, "one store for all that is asked of it"
    keys = {first, key(gray_mapping="minmax"), key(dtype="float32")}
    processor.image_mean = [0.1, 0.1, 0.1]
    keys.add(key())
    processor.resample = 0
    keys.add(key())
    with torch.no_grad():
        model.embeddings.cls_token[0, 0, 0] += 0.01
    keys.add(key())
    assert len(keys) == 6, "of a tower as it was when it was made: its weights are hashed once"
    assert {path.name for path in folder.iterdir() if path.is_dir()} == keys
    assert store(load_tower(str(tower_folder)), paths, folder).folder.name == first
    larger = load_tower(str(tower_folder), image_size=56)
    assert store(larger, paths[:1], folder).shape == (17, 32)


@pytest.mark.parametrize("difference", ["resizer", "activation"])
def test_towers_of_equal_weights_that_compute_otherwise_have_other_stores(paths, tmp_path, difference) -> None:
    folder = save_tower("clip-vision", tmp_path / "tower")
    one = load_tower(str(folder))
    if difference == "resizer":
        other = load_tower(str(folder), backend="pil")
    else:
        text = (folder / "config.json").read_text()
        assert '"quick_gelu"' in text
        (folder / "config.json").write_text(text.replace('"quick_gelu"', '"gelu"'))
        other = load_tower(str(folder))
    expected = [encoded(tower, paths[0])[0] for tower in (one, other)]
    assert not torch.equal(*expected)
    for tower, vector in zip((one, other), expected, strict=True):
        features = store(tower, paths[:1], tmp_path / "features", keep="pooled", layers=None, dtype="float32")
        assert torch.equal(features.vectors(paths[:1])[0], vector)


def test_the_mapping_reaches_the_images(tower, paths, tmp_path) -> None:
    stretched = store(tower, paths, tmp_path / "features", gray_mapping="minmax")
    expected = forward(tower, paths[0], gray_mapping="minmax")
    torch.testing.assert_close(stretched[paths[0]].float(), expected, rtol=1e-3, atol=1e-3)
    assert (expected - forward(tower, paths[0])).abs().max() > 0.01


def test_a_store_is_opened_by_the_config_of_an_encoder(tower, paths, tower_folder, tmp_path, capsys) -> None:
    paths[6].unlink()
    encoder = EncoderConfig(
        tower=str(tower_folder), image_size=56, gray_mapping="minmax", features=tmp_path, workers=0, device="cpu"
    )
    features = open_store(encoder, paths, FeatureConfig("tokens"))
    assert features.shape == (17, 32)
    assert json.loads((features.folder / "meta.json").read_text())["gray_mapping"] == "minmax"
    assert features.tower.shape == (4, 4, 32)
    assert features.computed.n_images == 10
    assert capsys.readouterr().out == f"no features: {paths[6]}: cannot be read: No such file or directory\n"
    again = open_store(features.tower, paths, FeatureConfig("tokens"), encoder, quiet=True)
    assert (again.folder, again.computed.n_images, len(again.errors)) == (features.folder, 0, 1)
    assert capsys.readouterr().out == ""
    assert torch.equal(again[paths[0]], features[paths[0]])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_an_unreadable_image_is_named_and_costs_nothing_else(tower, paths, tmp_path, batch_size) -> None:
    expected = store(tower, paths, tmp_path / "whole", batch_size=batch_size)
    rest = [expected[path] for path in paths]
    paths[0].write_bytes(b"not a image")
    paths[6].unlink()
    for _ in range(2):  # the second time they are reported again
        features = opened(tower, paths, tmp_path / "features", batch_size=batch_size)
        assert [error.split(":")[0] for error in features.errors] == [str(paths[0]), str(paths[6])]
        assert len(features.rows) == 9
    for i, path in enumerate(paths):
        assert (path in features) == (i not in (0, 6))
        if path in features:
            torch.testing.assert_close(features[path], rest[i], rtol=1e-3, atol=1e-3)
    with pytest.raises(ImageError, match=r"0\.png: no features are stored for this image"):
        features[paths[0]]
    save_image(paths[0], 0)
    features = opened(tower, paths, tmp_path / "features", batch_size=batch_size)
    assert len(features.errors) == 1
    torch.testing.assert_close(features[paths[0]], rest[0], rtol=1e-3, atol=1e-3)


def test_nothing_to_store(tower, tmp_path) -> None:
    features = store(tower, [], tmp_path / "features")
    assert features.rows == {}
    assert features.shape == (5, 32)
    missing = tmp_path / "gone.png"
    features = opened(tower, [missing], tmp_path / "features")
    assert features.rows == {}
    assert features.errors == [f"{missing}: cannot be read: No such file or directory"]


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_the_tower_lacks(tower, paths, tmp_path, layer) -> None:
    with pytest.raises(ValueError, match=rf"Layer {layer} does not exist\. The tower has hidden states -3 to 2"):
        store(tower, paths, tmp_path / "features", layers=(layer,))


@pytest.mark.parametrize("attempt", range(4))
def test_runs_that_share_a_store_do_not_mix_their_rows(tower, paths, tower_folder, tmp_path, attempt) -> None:
    expected = {path: forward(tower, path) for path in paths}
    jobs = [(load_tower(str(tower_folder)), share) for share in (paths, paths[::-1], paths[3:], paths[:8])]
    with ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(lambda job: store(*job, tmp_path / "features"), jobs))
    for features in results:
        for name in features.rows:
            torch.testing.assert_close(features[Path(name)].float(), expected[Path(name)], rtol=1e-3, atol=1e-3)
    assert (results[0].folder / INDEX).read_text().count("\n") == 11, "nothing is computed twice"


def encoded(tower, path: Path, layers=None, average: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Pooled vector [D] and patches [H, W, D] of a image by itself."""
    one = tower.encode(tower.prepare([load_image(path)]), layers, average)
    return one.pooled[0], one.patches[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("keep", ["pooled", "tokens"])
@pytest.mark.parametrize(("layers", "average"), [(None, False), ((1, -1), False), ((1, -1), True)])
def test_stored_vectors_are_the_towers_to_the_last_bit(tower, paths, tmp_path, dtype, keep, layers, average) -> None:
    options = {"keep": keep, "layers": layers, "average": average, "dtype": dtype}
    features, kept = store(tower, paths[:3], tmp_path / "features", **options), getattr(torch, dtype)
    width = 64 if layers and not average else 32
    assert features.shape == (2 if keep == "pooled" else 5, width)

    def joined(read) -> torch.Tensor:
        """What is read of each layer, side by side or averaged."""
        parts = [read(layer) for layer in layers or (None,)]
        return torch.stack(parts).mean(0) if average else torch.cat(parts, -1)

    def vectors(path: Path, layer: int | None) -> torch.Tensor:
        pooled, patches = encoded(tower, path, layer and [layer])
        return torch.stack([pooled, patches.flatten(0, 1).mean(0)]).to(kept).float()

    def patches(path: Path, layer: int | None) -> torch.Tensor:
        if layer is not None:
            return encoded(tower, path, [layer])[1].to(kept).float()
        state = forward(tower, path)[1:].to(kept).float()
        return tower.model.layernorm(state).unflatten(0, (2, 2)).detach()

    expected = torch.stack([joined(partial(vectors, path)) for path in paths[:3]])
    for pooling, found in (("class", expected[:, 0]), ("mean", expected[:, 1]), ("both", expected.flatten(1))):
        if keep == "pooled" or layers is None:
            assert torch.equal(features.vectors(paths[:3], pooling), found)
        else:  # of the last hidden state, the patches that are stored are averaged
            torch.testing.assert_close(features.vectors(paths[:3], pooling), found, rtol=2**-8, atol=2**-8)
    for path in paths[:3] if keep == "tokens" else ():
        assert features.patches(path).dtype == torch.float32
        assert torch.equal(features.patches(path), joined(partial(patches, path)))
    if keep == "tokens" and layers is None and dtype == "float32":
        assert torch.equal(features.patches(paths[0]), encoded(tower, paths[0])[1]), "as the tower gives them"
    assert torch.equal(features.vectors(paths[2::-1], "both"), features.vectors(paths[:3], "both").flip(0))
    assert features.vectors([], "both").shape == (0, 2 * width)
    with pytest.raises(ImageError, match="no features are stored for this image"):
        features.vectors(paths[:4])


def test_what_a_store_does_not_keep_is_refused(tower, paths, tmp_path) -> None:
    features = store(tower, paths[:1], tmp_path / "features", keep="pooled")
    with pytest.raises(ValueError, match="This store keeps 'pooled', not the patch grid"):
        features.patches(paths[0])
    with pytest.raises(ValueError, match=rf"{features.folder.name} has no tokens, only pooled-2"):
        open_features(features.folder, paths, FeatureConfig("tokens"))
    with pytest.raises(ValueError, match=r"keep is 'grid'\. Choices: pooled, tokens"):
        FeatureConfig("grid")
    for layers in (None, (-1,)):
        with pytest.raises(ValueError, match="average needs two or more layers"):
            FeatureConfig(layers=layers, average=True)


def test_values_that_the_type_cannot_hold_are_refused(tower, paths, tmp_path) -> None:
    with torch.no_grad():
        tower.model.layernorm.weight[3] *= 1e6
    with pytest.raises(ValueError, match=r"tower\d+ returns values too large for float16; use bfloat16 or float32"):
        store(tower, paths, tmp_path / "features", keep="pooled", layers=None)
    (index,) = (tmp_path / "features").glob("*/pooled/*.jsonl")
    assert index.read_bytes() == index.with_suffix(".bin").read_bytes() == b""
    features = store(tower, paths, tmp_path / "features", keep="pooled", layers=None, dtype="bfloat16")
    assert features[paths[0]].abs().max() > 65504


@pytest.mark.parametrize("kind", ["resnet", "swin", "timm"])
def test_towers_that_are_no_plain_vision_transformers(paths, tmp_path, kind) -> None:
    tower = load_tower(str(save_network(kind, tmp_path / kind)))
    for keep in ("pooled", "tokens"):
        features = store(tower, paths[:2], tmp_path / "features", keep=keep, layers=None, dtype="float32")
        for path in paths[:2]:
            pooled, patches = encoded(tower, path)
            assert torch.equal(features.vectors([path])[0], pooled)
            torch.testing.assert_close(features.vectors([path], "mean")[0], patches.mean((0, 1)))
    assert torch.equal(features.patches(path), patches)


def test_rows_follow_the_content_of_files(tower, paths, tmp_path) -> None:
    def pixels(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 200, (40, 40), dtype=np.uint8))

    count, folder = Count(tower.model), tmp_path / "features"
    pixels(50).save(paths[0], compress_level=0)
    twin = Path(shutil.copy2(paths[0], tmp_path / "twin.png"))
    features = store(tower, [*paths, twin], folder)
    assert count.take() == 11, "files of equal bytes are encoded once"
    assert features.rows[str(twin)] == features.rows[str(paths[0])]

    before = paths[0].stat()
    pixels(51).save(paths[0], compress_level=0)
    os.utime(paths[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    after = paths[0].stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino) == (before.st_size, before.st_mtime_ns, before.st_ino)
    features = store(tower, [*paths, twin], folder)
    assert count.take() == 1, "neither size nor time of modification tells that it has changed"
    torch.testing.assert_close(features[paths[0]].float(), forward(tower, paths[0]), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(features[twin].float(), forward(tower, twin), rtol=1e-3, atol=1e-3)
    count.take()

    moved = paths[1].rename(tmp_path / "moved.png")
    assert moved in store(tower, [moved, *paths[2:]], folder)
    assert count.take() == 0


def test_a_file_that_changes_during_the_run_leaves_no_wrong_row(tower, paths, tmp_path) -> None:
    original = paths[5].read_bytes()

    def replace(module, arguments) -> None:
        if arguments[0].unique().numel() > 3:  # the first image, not the black one
            paths[5].write_bytes(paths[9].read_bytes())

    hook = tower.model.register_forward_pre_hook(replace)
    opened(tower, paths, tmp_path / "features")
    hook.remove()
    paths[5].write_bytes(original)
    features = store(tower, paths, tmp_path / "features")
    torch.testing.assert_close(features[paths[5]].float(), forward(tower, paths[5]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("cut", [1, 150, -1, -100])
def test_a_cut_list_of_files_is_repaired(tower, paths, tmp_path, cut) -> None:
    count, record = Count(tower.model), tmp_path / "features" / "files.jsonl"
    rows = store(tower, paths, tmp_path / "features").rows
    whole = record.read_bytes()
    assert store(tower, paths, tmp_path / "features").rows == rows
    assert record.read_bytes() == whole, "nothing new, nothing written"
    record.write_bytes(whole[:cut])
    assert store(tower, paths, tmp_path / "features").rows == rows
    assert count.take() == 11
    assert sorted(record.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_store_whose_description_lacks_keys_is_named(tower, paths, tmp_path) -> None:
    stored = store(tower, paths, tmp_path / "store")
    meta = json.loads((stored.folder / "meta.json").read_text())
    (stored.folder / "meta.json").write_text(json.dumps({"version": meta["version"], "dtype": meta["dtype"]}))
    with pytest.raises(RadDraftError, match=r"is not a feature store.* meta.json lacks last_norm, n_states, weights"):
        read_folder(stored.folder)


def test_a_full_disk_costs_no_stored_row(tower, paths, tmp_path) -> None:
    def run(folder: str) -> FeatureStore:
        return store(tower, paths, tmp_path / folder, keep="tokens", layers=None, dtype="float32", batch_size=2)

    whole = run("whole").folder
    count = Count(tower.model)
    for limit in (500, 5000):  # the list of files, the features
        with files_no_larger_than(limit), pytest.raises(OSError, match="File too large"):
            run("features")
    count.take()
    good = open_features(tmp_path / "features" / whole.name, paths, FeatureConfig("tokens"))
    assert 4 <= len(good.rows) < 11
    for path in paths[: len(good.rows)]:
        torch.testing.assert_close(good.patches(path), encoded(tower, path)[1])
    count.take()
    again = run("features").folder
    assert count.take() < 11
    assert all((again / name).read_bytes() == (whole / name).read_bytes() for name in (PART, INDEX))


def test_one_store_serves_all_that_is_asked_in_one_pass(tower, paths, tmp_path, monkeypatch) -> None:
    count, decoded = Count(tower.model), count_decoded(monkeypatch)
    pooled, tokens, early = FeatureConfig(), FeatureConfig("tokens"), FeatureConfig("tokens", (1, -1))
    compute = ComputeConfig(batch_size=1, workers=0, features=tmp_path / "features", dtype="float32")
    wanted = {pooled: paths, tokens: paths[2:6], early: paths[5:7]}
    stores = open_stores(tower, wanted, compute)
    assert (count.take(), len(decoded), set(decoded.values())) == (11, 11, {1})
    folder = stores[pooled].folder
    rows = {path.parent.name: path.read_text().count("\n") for path in folder.glob("*/part-0.jsonl")}
    assert rows == {"pooled": 6, "tokens": 5, "tokens-1": 2}
    for kept, part in wanted.items():
        for path in part:
            for store in (stores[kept], open_features(folder, part, kept)):
                expected = encoded(tower, path, kept.layers)
                assert torch.equal(store.vectors([path])[0], expected[0])
                assert kept is pooled or torch.equal(store.patches(path), expected[1])
    assert torch.equal(stores[early][paths[5]], torch.cat([forward(tower, paths[5], layer) for layer in (1, -1)], 1))
    expected = forward(tower, paths[6])
    count.take()
    assert torch.equal(open_store(tower, paths[2:7], HIDDEN, compute)[paths[6]], expected)
    assert count.take() == 0, "the last hidden state is what tokens of the final output are"


def count_decoded(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each image file is decoded from now on."""
    load, decoded = images._load, Counter()

    def counted(path: Path, *arguments: object):
        decoded[str(path)] += 1
        return load(path, *arguments)

    monkeypatch.setattr(images, "_load", counted)
    return decoded


@pytest.mark.parametrize("kind", ["clip-vision", "siglip-vision", "swin"])
def test_final_patches_come_of_the_last_hidden_state(paths, tmp_path, kind) -> None:
    tower = load_tower(str((save_network if kind == "swin" else save_tower)(kind, tmp_path / "tower")))
    features = store(tower, paths[:2], tmp_path / "features", layers=None, dtype="float32")
    assert tower.last_norm is not None
    pooled, patches = encoded(tower, paths[0])
    assert torch.equal(features.vectors(paths[:1])[0], pooled)
    assert torch.equal(features.patches(paths[0]), patches)
    with torch.no_grad():
        state = tower.model(tower.prepare([load_image(paths[0])]), output_hidden_states=True).hidden_states[-1]
    assert torch.equal(store(tower, paths[:2], tmp_path / "features", dtype="float32")[paths[0]], state[0])


def test_eight_bits_take_half_the_space_and_cost_little(tower, paths, tmp_path) -> None:
    with torch.no_grad():
        tower.model.encoder.layer[1].mlp.fc2.bias[5] = 300.0  # one dimension far above the others, as in large ViTs
    sizes, read = {}, {}
    for dtype in ("float32", "float16", "float8"):
        features = store(tower, paths, tmp_path / "features", layers=None, dtype=dtype)
        sizes[dtype] = (features.folder / PART).stat().st_size / 11
        state = open_features(features.folder, paths, HIDDEN)
        read[dtype] = features.vectors(paths, "both"), torch.stack([state[path].float() for path in paths])
    assert sizes == {"float32": 7 * 128, "float16": 7 * 64, "float8": 2 * 64 + 5 * (32 + 4)}
    assert torch.equal(read["float8"][0], read["float16"][0]), "vectors stay float16"
    for dtype, largest in (("float16", 2**-11), ("float8", 2**-4)):
        apart = (read[dtype][1] - read["float32"][1]).abs() / read["float32"][1].abs().clamp_min(0.05)
        assert apart.max() <= largest * 1.01


def test_training_takes_the_types_in_which_most_images_are_stored(tower_folder, paths, tmp_path) -> None:
    own = EncoderConfig(tower=str(tower_folder), workers=0, features=tmp_path, device="cpu", precision="bfloat16")
    other = replace(own, precision="float32", dtype="float8")

    def found() -> EncoderConfig:
        return find_settings(load_tower(own.tower), paths, HIDDEN, own)

    assert found() == own, "nothing is stored"
    open_store(other, paths[:3], FeatureConfig("tokens"))
    assert found() == other
    open_store(own, paths[3:6], HIDDEN)
    assert found() == own, "as many are stored with its own"
    open_store(replace(other, gray_mapping="minmax"), paths, HIDDEN)
    assert found() == own


def test_a_store_of_an_earlier_version_is_refused_and_named(tower, paths, tmp_path, capsys) -> None:
    old = tmp_path / "0123456789abcdef"
    old.mkdir()
    (old / "meta.json").write_text(json.dumps({"weights": "00", "keep": "grid", "layers": None, "dtype": "float16"}))
    (old / PART.removeprefix("tokens/")).write_bytes(b"")
    with pytest.raises(ValueError, match="earlier version, which is not read any more; run `raddraft features` again"):
        open_features(old, paths)
    opened(tower, paths[:1], tmp_path)
    assert f"features of an earlier version, no longer read; delete: {old.name}" in capsys.readouterr().out
    with pytest.raises(ValueError, match="is not a feature store, the folder that `raddraft features` prints"):
        open_features(tmp_path, paths)


# Several processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_processes", [2, 3])
def test_processes_take_shares(tower, paths, tmp_path, n_processes) -> None:
    folder, config = tmp_path / "features", FeatureConfig("tokens")
    compute = ComputeConfig(batch_size=2, workers=0, features=folder)

    def share(number: int, among: int) -> int:
        return compute_features(tower, {config: paths}, compute, (number, among)).n_images

    shares = [share(number, n_processes) for number in range(n_processes)]
    assert sum(shares) == 11
    assert min(shares) >= 2
    indices = sorted(folder.glob("*/tokens/part-*.jsonl"))
    assert len(indices) == n_processes
    assert len({line for index in indices for line in index.read_text().splitlines()}) == 11
    names = [json.loads(line)[0] for line in (folder / "files.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(map(str, paths)), "each has digested its share"
    assert share(0, 1) == share(4, 5) == 0, "nothing is left to do for other numbers of processes"
    features = opened(tower, paths, folder, config)
    for path in paths:
        torch.testing.assert_close(features.patches(path).float(), encoded(tower, path)[1], rtol=1e-3, atol=1e-3)


def test_half_a_row_in_the_part_of_another_process_does_not_matter(tower, paths, tmp_path) -> None:
    """As a killed process leaves it, or one that is writing while this one reads."""
    folder, config = tmp_path / "features", FeatureConfig("pooled")
    for number in range(2):
        compute_features(tower, {config: paths}, ComputeConfig(batch_size=2, workers=0, features=folder), (number, 2))
    (other,) = folder.glob("*/pooled/part-1.bin")
    with open(other, "ab") as file:
        file.write(b"half")
    features = store(tower, paths, folder, keep="pooled", layers=None)
    for path in paths:
        torch.testing.assert_close(features.vectors([path])[0], encoded(tower, path)[0], rtol=1e-3, atol=1e-3)


def serve(pipe: Connection, tower_folder: str, image_size: int) -> None:
    """Store features as told through the pipe; answer each time with images stored and peak memory in KiB."""
    multiprocessing.set_start_method("fork", force=True)  # of a loader's workers, as in any other process
    tower = load_tower(tower_folder, image_size=image_size)
    pipe.send("ready")
    while True:
        computed = compute_features(tower, *pipe.recv())
        # Not ru_maxrss, which begins with the peak of the process that started this one.
        peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
        pipe.send([computed.n_images, peak, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss])


@dataclass
class Child:
    """A process of its own that stores features."""

    process: Any
    pipe: Connection

    def tell(self, *arguments: object) -> None:
        """What `compute_features` takes after the tower."""
        self.pipe.send(arguments)

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


@pytest.fixture
def child(tower_folder: Path, request: pytest.FixtureRequest) -> Iterator[Child]:
    """The parameter is the image size of its tower."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("the peak of memory is read from /proc")
    here, there = multiprocessing.Pipe()
    process = SERVER.Process(target=serve, args=(there, str(tower_folder), getattr(request, "param", 28)))
    process.start()
    assert here.recv() == "ready"
    yield (started := Child(process, here))
    started.kill()


def save_small_images(folder: Path, n: int) -> list[Path]:
    folder.mkdir()
    paths = [folder / f"{number}.png" for number in range(n)]
    for number, path in enumerate(paths):
        Image.fromarray(np.array([[255, *divmod(number, 256)] * 3] * 8, np.uint8)).save(path)
    return paths


def test_killed_and_started_again_gives_the_same_bytes(tower, child, tmp_path) -> None:
    paths, config = save_small_images(tmp_path / "small", 200), FeatureConfig("tokens")
    whole = opened(tower, paths, tmp_path / "whole", config, 8, 2).folder
    index, kill_after = tmp_path / "killed" / whole.name / INDEX, random.Random().randint(1, 120)
    child.tell({config: paths}, ComputeConfig(batch_size=8, workers=2, features=tmp_path / "killed"))
    while not index.is_file() or index.read_bytes().count(b"\n") < kill_after:
        time.sleep(0.0005)
    child.kill()
    n_rows = index.read_bytes().count(b"\n")
    assert n_rows < 200, f"killed too late, after {kill_after}"
    count = Count(tower.model)
    opened(tower, paths, tmp_path / "killed", config, 8, 2)
    assert count.take() == 200 - n_rows // 8 * 8
    names = [json.loads(line)[0] for line in (tmp_path / "killed" / "files.jsonl").read_text().splitlines()]
    assert sorted(names) == sorted(map(str, paths)), "nothing is digested twice"
    killed = index.parent.parent
    assert all((killed / name).read_bytes() == (whole / name).read_bytes() for name in (PART, INDEX))


def test_two_processes_at_once_store_nothing_twice(tower, paths, child, tmp_path) -> None:
    config = FeatureConfig("tokens")
    compute = ComputeConfig(batch_size=2, workers=0, features=tmp_path / "features")
    child.tell({config: paths}, compute)
    here = compute_features(tower, {config: paths[::-1]}, compute).n_images
    there = child.pipe.recv()[0]
    assert sorted([here, there]) == [0, 11]
    features = opened(tower, paths, tmp_path / "features", config)
    assert (features.folder / INDEX).read_text().count("\n") == 11
    for path in paths:
        torch.testing.assert_close(features.patches(path).float(), encoded(tower, path)[1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("child", [112], indirect=True)
def test_memory_does_not_grow_with_the_number_of_images(child, tmp_path) -> None:
    """Pixels of the second 1,000 images would take 147 MiB, their features 25."""
    paths = save_small_images(tmp_path / "small", 2000)
    config = FeatureConfig("tokens", layers=(0, 1, 2))
    answers = []
    # A worker begins with what its parent holds when it forks, and a first run leaves buffers behind: it is to warm up.
    for part in (paths[:100], paths[:1000], paths):
        child.tell({config: part}, ComputeConfig(workers=1, features=tmp_path / "features", dtype="float32"))
        answers.append(child.pipe.recv())
    assert [answer[0] for answer in answers] == [100, 900, 1000]
    growth = [(after - before) / 1024 for before, after in zip(answers[1][1:], answers[2][1:], strict=True)]
    assert max(growth) < 60, "MiB, of the process and of its worker"
