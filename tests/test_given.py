"""features:FILE: features written elsewhere as a tower, in three layouts; what is missing or odd is named."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.config import ComputeConfig, FeatureConfig
from encoder.features import open_store
from encoder.masks import processor_geometry
from encoder.towers import load_tower
from generator.config import DecodeConfig, ModelConfig, Stage, TrainConfig
from generator.generate import generate
from generator.model import load
from generator.prompts import PromptConfig
from generator.train import train
from raddraft.files import digest_file
from raddraft.studies import read_studies
from tests.test_cli import run

SHAPES = {"vector": (7,), "tokens": (3, 7), "grid": (2, 3, 5)}
GRIDS = {"vector": (1, 1, 7), "tokens": (1, 3, 7), "grid": (2, 3, 5)}


def write(path: Path, features: Mapping[str, np.ndarray]) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **features)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file(dict(features), path)
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        rows = {"image": list(features), "features": [value.tolist() for value in features.values()]}
        pq.write_table(pa.table(rows), path)
    return path


def images(folder: Path, n: int = 4) -> list[Path]:
    paths = [folder / f"p{i}" / f"film{i}.png" for i in range(n)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True)
        Image.new("L", (8, 8), 10 * i).save(path)
    return paths


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".parquet"])
def test_features_come_back_as_they_were_written(tmp_path: Path, suffix: str, shape: str) -> None:
    paths = images(tmp_path)
    values = np.random.default_rng(0).normal(size=(4, *SHAPES[shape])).astype(np.float32)
    names = [str(paths[0]), "p1/film1.png", "film2.png", "film3"]
    file = write(tmp_path / f"given{suffix}", dict(zip(names, values, strict=True)))
    tower = load_tower(f"features:{file}")
    assert tower.shape == GRIDS[shape]
    assert not tower.is_plain
    compute = ComputeConfig(batch_size=3, workers=0, features=tmp_path / "features", dtype="float32")
    store = open_store(tower, paths, FeatureConfig("tokens"), compute, quiet=True)
    patches = torch.stack([store.patches(path) for path in paths])
    grids = torch.from_numpy(values).reshape(4, *GRIDS[shape])
    torch.testing.assert_close(patches, grids)
    torch.testing.assert_close(store.vectors(paths), grids.mean((1, 2)))


def test_entries_may_be_called_by_the_digest_of_the_image(tmp_path: Path) -> None:
    paths = images(tmp_path)
    file = write(tmp_path / "given.npz", {digest_file(path): np.full(4, i) for i, path in enumerate(paths)})
    compute = ComputeConfig(workers=2, features=tmp_path / "features")
    store = open_store(load_tower(f"features:{file}"), paths, compute=compute, quiet=True)
    assert [int(store.vectors([path])[0, 0]) for path in paths] == [0, 1, 2, 3]


def test_images_without_features_are_named(tmp_path: Path) -> None:
    paths = images(tmp_path)
    features = {"film0": np.zeros(4), "film1": np.zeros(5), "film2.png": np.zeros(4)}
    (tmp_path / "other").mkdir()
    paths.append(Path(os.path.relpath(paths[2])))  # the same file by another path
    copy = tmp_path / "other" / "film2.png"
    Image.new("L", (8, 8), 200).save(copy)
    file = write(tmp_path / "given.npz", features)
    compute = ComputeConfig(workers=0, features=tmp_path / "features")
    store = open_store(load_tower(f"features:{file}"), [*paths, copy], compute=compute, quiet=True)
    assert sorted(store.errors) == sorted(
        [
            f"{paths[1]}: its features in {file} have shape [5], unlike those of others",
            f"{paths[3]}: {file} has no features of this image",
            f"{copy}: film2.png in {file} may also be {paths[2]}; name entries by more of the path",
        ]
    )
    assert [path in store for path in [*paths, copy]] == [True, False, True, False, True, False]


def test_a_file_that_changed_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    paths = images(tmp_path, 1)
    compute = ComputeConfig(workers=0, features=tmp_path / "features")
    for value in (1.0, 2.0):
        file = write(tmp_path / "given.npz", {"film0": np.full(4, value)})
        store = open_store(load_tower(f"features:{file}"), paths, compute=compute, quiet=True)
        assert store.vectors(paths)[0, 0] == value


def test_files_that_hold_no_features_are_refused(tmp_path: Path) -> None:
    for name, content, message in (
        ("features.csv", {}, "is of no known layout. Layouts: .safetensors, .npz, .parquet"),
        ("gone.npz", None, "the file does not exist"),
        ("empty.npz", {}, "holds no features"),
        ("number.npz", {"x": np.float32(1)}, r"x has shape \[\]; expected \[D\], \[T, D\] or \[H, W, D\]"),
        ("objects.npz", {"x": np.array([{}])}, "x is not an array of numbers: Object arrays cannot be loaded"),
    ):
        if content is not None:
            (np.savez(tmp_path / name, **content) if name.endswith(".npz") else (tmp_path / name).touch())
        with pytest.raises(ValueError, match=message):
            load_tower(f"features:{tmp_path / name}")
    for suffix in (".npz", ".safetensors", ".parquet"):
        (tmp_path / f"broken{suffix}").write_bytes(b"PK\x03\x04 no such file")
        with pytest.raises(ValueError, match=f"broken{suffix} cannot be read as {suffix} features: "):
            load_tower(f"features:{tmp_path / f'broken{suffix}'}")
    file = write(tmp_path / "twice.parquet", {"x": np.zeros(3)})
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.concat_tables([pq.read_table(file)] * 2), file)
    with pytest.raises(ValueError, match="1 images stand in more than one row"):
        load_tower(f"features:{file}")
    with pytest.raises(ValueError, match="have no architecture to give random weights to"):
        load_tower(f"random:features:{file}")


def test_pictures_masks_and_other_sizes_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "given.npz", {"x": np.ones((2, 2, 4))})
    tower = load_tower(f"features:{file}")
    picture = Image.new("L", (4, 4), 99)
    with pytest.raises(ValueError, match="holds features of the images that it names; it cannot encode others"):
        tower.encode(tower.prepare([picture]))
    with pytest.raises(ValueError, match=r"Masks cannot follow .*given\.npz"):
        processor_geometry(tower.processor, (4, 4))
    with pytest.raises(ValueError, match="it cannot encode others"):
        load_tower(f"features:{file}", image_size=64)


def test_probes_and_report_models_take_them(studies_file: Path, lm_folder: Path, tmp_path: Path) -> None:
    studies = read_studies(studies_file)
    paths = [study.images[0].path for study in studies]
    vectors = {path.name: np.array(Image.open(path).resize((4, 2)), np.float32).reshape(2, 1, 4) for path in paths}
    tower = f"features:{write(tmp_path / 'given.safetensors', vectors)}"
    command = ("features", "--tower", tower, "--studies", studies_file, "--features", tmp_path / "features")
    assert run(*command) == (0, "")

    parts = {
        "train": [s for s in studies if s.split == "train"][:8],
        "val": [s for s in studies if s.split == "val"][:4],
    }
    recipe = TrainConfig([Stage(lr=2e-3, warmup=0)], batch_size=8, micro_batch_size=4, workers=0, cached=True)
    folder = train(parts, tmp_path / "run", ModelConfig(tower, str(lm_folder)), PromptConfig(), recipe)
    drafter = load(folder)
    assert drafter.model.config.image_seq_length == 2
    assert drafter.tower.name == tower
    assert generate(drafter, parts["val"], tmp_path / "drafts.jsonl", DecodeConfig(max_new_tokens=4), "model") == []
    strange = tmp_path / "strange.png"
    Image.new("L", (8, 8), 50).save(strange)
    parts["val"][0].images[0].path = strange
    (error,) = generate(drafter, parts["val"][:1], tmp_path / "no.jsonl", DecodeConfig(max_new_tokens=4), "model")
    assert error.endswith("given.safetensors has no features of this image")
