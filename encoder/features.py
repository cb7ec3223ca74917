"""Features of a frozen tower, computed once and kept on disk: memory-mapped, append-only, resumable.

    FOLDER/files.jsonl           SHA-256 of every image file, with what tells that it has not changed since
    FOLDER/<key>/meta.json       what the features are; the key is a digest of it
    FOLDER/<key>/part-0.bin      [n images, T vectors, D], row after row
    FOLDER/<key>/part-0.jsonl    SHA-256 of the image of each row; further parts are written by other processes

The key covers the tower's weights and settings, the image processor, the gray-value mapping, the layers and the data
type; a row belongs to the content of a file. So stale features are never read, and copies of an image are encoded once.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch.utils.data import DataLoader, Dataset

from encoder.config import ComputeConfig, EncoderConfig, FeatureConfig
from encoder.digests import File, digest_files, file_state, whole_lines
from encoder.tower import Tower, weights_digest
from raddraft.errors import RadDraftError
from raddraft.files import digest_json, write_json
from raddraft.images import ImageError, load_image
from raddraft.processes import process_share

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Computed:
    """What `compute_features` did."""

    folder: Path
    """Of the store."""
    errors: list[str] = field(default_factory=list)
    """A sentence for each image that cannot be read."""
    n_images: int = 0
    """Images encoded and stored."""
    seconds: float = 0.0
    tower_seconds: float = 0.0
    """Part of `seconds` in which the tower ran; the rest was spent on reading images and writing features."""


@dataclass
class FeatureStore:
    """Features of many images, read row by row from memory-mapped files."""

    folder: Path
    config: FeatureConfig
    shape: tuple[int, int]
    """Vectors and width of one image: (T, D)."""
    grid: tuple[int, int]
    """Rows and columns of patches: (H, W)."""
    rows: dict[str, tuple[str, int]]
    """Path of an image -> part and row."""
    errors: list[str] = field(default_factory=list)
    """A sentence for each image that could not be read."""
    computed: Computed | None = None
    """What this process did to open the store, if it had a tower."""
    tower: Tower | None = field(default=None, repr=False)
    """The tower, if it was at hand."""
    _parts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __contains__(self, path: Path) -> bool:
        return str(path) in self.rows

    def __getitem__(self, path: Path) -> torch.Tensor:
        """All that is kept of an image: [T, D].

        Raises:
            ImageError: no features are stored, since the image could not be read.
        """
        if str(path) not in self.rows:
            raise ImageError(f"{path}: no features are stored for this image")
        part, row = self.rows[str(path)]
        if part not in self._parts:
            self._parts[part] = np.memmap(self.folder / part, np.uint8, "r")
        size = _row_bytes(self.shape, self.config.dtype)
        found = torch.from_numpy(np.array(self._parts[part][row * size : (row + 1) * size]))
        return found.view(getattr(torch, self.config.dtype)).view(self.shape)

    def patches(self, path: Path) -> torch.Tensor:
        """The patch grid of an image, [H, W, D]. Raises RadDraftError without a grid, ImageError as `store[path]`."""
        if self.config.keep != "grid":
            raise RadDraftError(f"This store keeps {self.config.keep!r}, not the patch grid")
        return self[path][1:].unflatten(0, self.grid)

    def vectors(self, paths: Iterable[Path], pooling: Literal["class", "mean", "both"] = "class") -> torch.Tensor:
        """One vector per image, float32 [n, D]: the pooled one, the mean patch, or both side by side, [n, 2 D].

        Raises:
            RadDraftError: the store keeps hidden states.
            ImageError: an image has no features.
        """
        if self.config.keep == "hidden":
            raise RadDraftError("This store keeps hidden states; vectors are read from 'pooled' or 'grid'")
        rows = (self[path].float() for path in paths)
        found = [torch.stack([row[0], row[1:].mean(0)]) for row in rows]  # pooled: the mean of one vector
        stacked = torch.stack(found) if found else torch.empty(0, 2, self.shape[1])  # [n, 2, D]
        return {"class": stacked[:, 0], "mean": stacked[:, 1], "both": stacked.flatten(1)}[pooling]

    def describe(self) -> str:
        """Shape and size of the store, and how fast this process added to it."""
        size = sum(file.stat().st_size for file in self.folder.glob("part-*.bin"))
        text = f"{self.shape[0]} vectors of {self.shape[1]} each, {size / 1e6:.1f} MB"
        done = self.computed
        if not done or not done.n_images:
            return f"{text}\nnothing to compute"
        busy = done.tower_seconds / done.seconds
        return f"{text}\n{done.n_images / done.seconds:.1f} images/s, tower at work {busy:.0%} of the time"

    @property
    def blank(self) -> torch.Tensor:
        """Zeros in the shape of one image's features, [T, D]."""
        return torch.zeros(self.shape)


def open_store(
    encoder: EncoderConfig | Tower,
    paths: Sequence[Path],
    kept: FeatureConfig | None = None,
    compute: ComputeConfig | None = None,
    accelerator: Accelerator | None = None,
    quiet: bool = False,
) -> FeatureStore:
    """The features of images, after computing those that are not stored yet.

    A sentence on each image that cannot be read is printed, and is in `errors` of the store.

    Args:
        encoder: what to load, or a loaded tower on its device.
        paths: image files.
        kept: what is kept of each image; by default the pooled vector and the mean patch. Where `encoder` or `compute`
            is an EncoderConfig, its gray_mapping applies.
        compute: batch size, workers and folder of stored features; by default those of `encoder`.
        accelerator: of processes that each compute a share; all of them get the whole store.
        quiet: print nothing.

    Returns:
        The store; `store.tower` is the loaded tower, `store.computed` what this process did.

    Raises:
        RadDraftError: the tower has no such layer, the type cannot hold its values, no such tower or device.
        OSError: the folder cannot be written, e.g. a full disk; what is stored stays good.
    """
    kept = kept or FeatureConfig()
    compute = compute or (encoder if isinstance(encoder, EncoderConfig) else ComputeConfig())
    if isinstance(compute, EncoderConfig):
        kept = replace(kept, gray_mapping=compute.gray_mapping)
    tower = encoder.load() if isinstance(encoder, EncoderConfig) else encoder
    share = (0, 1)
    if accelerator:
        share = process_share(accelerator)
        digest_files(paths[share[0] :: share[1]], compute.features, compute.workers)  # or each would read every file
        accelerator.wait_for_everyone()
    computed = compute_features(tower, paths, kept, compute, share)
    if not quiet:
        for sentence in computed.errors:
            print(f"no features: {sentence}")
    if accelerator:
        accelerator.wait_for_everyone()
    store = open_features(computed.folder, paths)
    store.errors, store.computed, store.tower = computed.errors, computed, tower
    return store


def compute_features(
    tower: Tower, paths: Sequence[Path], kept: FeatureConfig, compute: ComputeConfig, process: tuple[int, int] = (0, 1)
) -> Computed:
    """The part of `open_store` that computes and stores what is missing. Raises as that.

    Batches depend on `paths` only, so an interrupted run resumes bit-exactly. `process` is the index of this process
    and the number of processes: each computes a share and writes a part of its own.
    """
    number, n_processes = process
    meta = describe(tower, kept)
    target = compute.features / digest_json(meta)[:16]
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / "meta.lock"):
        write_json(target / "meta.json", meta)
    files = digest_files(paths, compute.features, compute.workers)
    part = target / f"part-{number}.bin"
    # Runs that share a part wait for each other here: rows of two at once would not match the index.
    with FileLock(f"{part}.lock"):
        row_bytes = _row_bytes(meta["shape"], kept.dtype)
        _cut(part, row_bytes)
        stored = _stored(target, row_bytes).keys()
        wanted = [files.get(path) or File(path, None, f"missing {path}") for path in paths]
        unique = {file.digest: file for file in reversed(wanted)}
        items = [(file, digest not in stored) for digest, file in reversed(unique.items())]
        size = compute.batch_size
        batches = [items[start : start + size] for start in range(0, len(items), size)][number::n_processes]
        batches = [batch for batch in batches if any(missing for _, missing in batch)]
        return _append(tower, _Batches(batches, tower, kept.gray_mapping), part, kept, compute.workers)


def open_features(store: str | Path, paths: Sequence[Path]) -> FeatureStore:
    """The stored features of images, by the folder of the store; images without features are not in it.

    Raises:
        RadDraftError: the folder is not a feature store.
    """
    store = Path(store)
    try:
        meta = json.loads((store / "meta.json").read_text(encoding="utf-8"))
        names = ("keep", "average", "dtype", "gray_mapping")
        config = FeatureConfig(layers=tuple(meta["layers"]) if meta["layers"] else None, **{n: meta[n] for n in names})
    except (OSError, ValueError, KeyError) as error:
        raise RadDraftError(
            f"{store} is not a feature store, the folder that `raddraft features` prints at its end: {error}"
        ) from error
    stored = _stored(store, _row_bytes(meta["shape"], config.dtype))
    files = digest_files(paths, store.parent)
    rows = {str(path): stored[file.digest] for path, file in files.items() if file.digest in stored}
    return FeatureStore(store, config, tuple(meta["shape"]), tuple(meta["grid"]), rows)


def describe(tower: Tower, config: FeatureConfig) -> dict[str, Any]:
    """All that features depend on except the images, for JSON; `shape` and `grid` follow from the rest."""
    black = _vectors(tower, tower.black_pixels, config)
    processor: Any = tower.processor
    return {
        "weights": weights_digest(tower.model),
        "model": [type(tower.model).__name__, _settings(tower.model.config)],
        "processor": [type(processor).__name__, json.loads(processor.to_json_string())],
        "gray_mapping": config.gray_mapping,
        "keep": config.keep,
        "layers": list(config.layers) if config.layers else None,
        "average": config.average,
        "dtype": config.dtype,
        "shape": list(black.shape[1:]),
        "grid": list(tower.shape[:2]),
    }


def _settings(config: Any) -> dict[str, Any]:
    """A model's config without what does not change its output."""
    settings = asdict(config) if is_dataclass(config) else config.to_dict()  # type: ignore[arg-type]
    unrelated = ("_name_or_path", "transformers_version", "architectures", "dtype", "id2label", "label2id")
    return {key: value for key, value in settings.items() if key not in unrelated}


def _vectors(tower: Tower, pixels: torch.Tensor, config: FeatureConfig) -> torch.Tensor:
    """What is kept of pixels [B, 3, height, width]: [B, T, D]."""
    if config.keep == "hidden" and config.layers:
        return tower.hidden(pixels, config.layers[0])
    encoded = tower.encode(pixels, config.layers, config.average)
    rest = encoded.patches.flatten(1, 2)
    rest = rest.mean(1, keepdim=True) if config.keep == "pooled" else rest
    return torch.cat([encoded.pooled[:, None], rest], dim=1)


def _append(tower: Tower, batches: _Batches, part: Path, config: FeatureConfig, workers: int) -> Computed:
    """Append the features of the missing images of these batches."""
    from tqdm import tqdm

    computed = Computed(part.parent)
    started = time.perf_counter()
    loader: DataLoader = DataLoader(batches, batch_size=None, num_workers=workers, generator=torch.Generator())
    with open(part, "ab") as features, open(part.with_suffix(".jsonl"), "a", encoding="utf-8") as index:
        for batch in tqdm(loader, desc="features", disable=not len(batches), unit="batch"):
            computed.errors += batch.errors
            if not batch.missing:
                continue
            tower_started = time.perf_counter()
            vectors = _vectors(tower, batch.pixels, config)[batch.missing].cpu()  # waits for a GPU
            computed.tower_seconds += time.perf_counter() - tower_started
            if not vectors.isfinite().all():
                raise RadDraftError(f"{tower.name} returns NaN or infinite features")
            kept = vectors.to(getattr(torch, config.dtype))
            if not kept.isfinite().all():
                raise RadDraftError(
                    f"{tower.name} returns values too large for {config.dtype}; use bfloat16 or float32"
                )
            features.write(kept.contiguous().view(torch.uint8).numpy().tobytes())
            features.flush()
            index.write("".join(json.dumps(digest) + "\n" for digest in batch.digests))
            index.flush()
            computed.n_images += len(batch.missing)
    computed.seconds = time.perf_counter() - started
    return computed


@dataclass
class _Batch:
    pixels: torch.Tensor
    """Of all readable images, stored ones too: the result for an image may depend on its neighbors in the last bit."""
    missing: list[int]
    """Rows of `pixels` that are to be stored."""
    digests: list[str]
    """Of their files."""
    errors: list[str]


class _Batches(Dataset):
    """Batches of (file, whether its features are missing), prepared in workers."""

    def __init__(self, batches: list[list[tuple[File, bool]]], tower: Tower, gray_mapping: str) -> None:
        self.batches, self.processor, self.gray_mapping = batches, tower.processor, gray_mapping

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> _Batch:
        batch = self.batches[index]
        pixels: dict[str, torch.Tensor] = {}
        errors = []
        for file, missing in sorted(batch, key=lambda item: not item[1]):  # missing ones first
            if not missing and not pixels:
                break  # nothing that is missing can be read
            try:
                pixels[file.digest] = self._prepare(file)
            except (ImageError, OSError) as error:
                errors += [str(error)] if missing else []
        rows = [(file.digest, missing) for file, missing in batch if file.digest in pixels]
        return _Batch(
            torch.stack([pixels[digest] for digest, _ in rows]) if rows else torch.empty(0),
            [row for row, (_, missing) in enumerate(rows) if missing],
            [digest for digest, missing in rows if missing],
            errors,
        )

    def _prepare(self, file: File) -> torch.Tensor:
        pixels = prepare_pixels(self.processor, file.path, self.gray_mapping)
        if file_state(file.path) != file.state:
            raise ImageError(f"{file.path}: changed while it was read; start again")
        return pixels


def prepare_pixels(image_processor: Any, path: Path, gray_mapping: str) -> torch.Tensor:
    """An image file as the tower gets it: [3, H, W]. Raises ImageError if it cannot be read."""
    image = load_image(path, gray_mapping=gray_mapping).convert("RGB")  # type: ignore[arg-type]
    # One image is too little work to share: with several threads it took ten times as long on two cores.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return image_processor([image], return_tensors="pt")["pixel_values"][0]
    finally:
        torch.set_num_threads(n_threads)


def _cut(part: Path, row_bytes: int) -> None:
    """Cut off what an interrupted run left behind the last whole row."""
    index = part.with_suffix(".jsonl")
    for path in (part, index):
        path.touch()
    lines = whole_lines(index)[: part.stat().st_size // row_bytes]
    os.truncate(part, len(lines) * row_bytes)
    os.truncate(index, sum(map(len, lines)))


def _stored(folder: Path, row_bytes: int) -> dict[str, tuple[str, int]]:
    """Digest of an image -> part and row, of all rows that are whole."""
    found: dict[str, tuple[str, int]] = {}
    for index in sorted(folder.glob("part-*.jsonl")):
        part = index.with_suffix(".bin")
        n_rows = part.stat().st_size // row_bytes if part.is_file() else 0
        for row, line in enumerate(whole_lines(index)[:n_rows]):
            found.setdefault(json.loads(line), (part.name, row))
    return found


def _row_bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * getattr(torch, dtype).itemsize
