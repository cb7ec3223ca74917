"""Features of a frozen tower, computed once and kept on disk: memory-mapped, append-only, resumable.

    FOLDER/files.jsonl           SHA-256 of every image file, with what tells that it has not changed since
    FOLDER/<key>/meta.json       what the features are; the key is made of it
    FOLDER/<key>/part-0.bin      [n images, T vectors, D], row after row
    FOLDER/<key>/part-0.jsonl    the SHA-256 of the image that each row belongs to; further parts by other processes

The key is a digest of the tower's weights and settings, the image processor, the grey-value gray_mapping, the layers and the
type; a row belongs to the content of a file. So a stale feature is never read, and an image that lies in two places is
encoded once.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from encoder.config import ComputeConfig, EncoderConfig
from encoder.tower import Tower, weights_digest
from raddraft.errors import RadDraftError
from raddraft.files import digest_file, write_whole
from raddraft.images import ImageError, load_image
from raddraft.processes import process_share
from raddraft.studies import GrayMapping

if TYPE_CHECKING:
    from accelerate import Accelerator

INTEGERS = {"float16": np.int16, "bfloat16": np.int16, "float32": np.int32}  # numpy has no bfloat16


@dataclass(frozen=True)
class FeatureConfig:
    """What is kept of each image."""

    keep: Literal["pooled", "grid", "hidden"] = "pooled"
    """pooled: the class token (or what the tower pools) and the mean patch, two vectors; grid: the pooled vector, then
    every patch; hidden: one raw hidden state with its prefix tokens, for training a report model."""
    layers: tuple[int, ...] | None = None
    """Indices into the tower's hidden states; by default its final output, behind the last LayerNorm."""
    average: bool = False
    """Average several layers instead of putting them side by side."""
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    """Type in which features are kept."""
    gray_mapping: GrayMapping = "window"
    """How grey values are mapped to 8 bits; see `raddraft.images.load_image`."""

    def __post_init__(self) -> None:
        if self.layers == ():
            raise RadDraftError("No layer is named; without `layers` the tower's final output is kept")
        if self.average and len(self.layers or ()) < 2:
            raise RadDraftError(f"average is of several layers; name two or more, got {self.layers}")
        if self.keep == "hidden" and (self.layers is None or len(self.layers) != 1):
            raise RadDraftError(f"keep 'hidden' takes one layer, not {self.layers}")


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
    """Absolute path of an image -> part and row."""
    errors: list[str] = field(default_factory=list)
    """A sentence for each image that could not be read."""
    computed: Computed | None = None
    """What this process computed to open the store, if it did."""
    tower: Tower | None = field(default=None, repr=False)
    """What computed it, if it was at hand."""
    _parts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __contains__(self, path: Path) -> bool:
        return str(path) in self.rows

    def __getitem__(self, path: Path) -> torch.Tensor:
        """All that is kept of an image: [T, D].

        Raises:
            ImageError: the image has no features, since it could not be read.
        """
        if str(path) not in self.rows:
            raise ImageError(f"{path}: no features are stored for this image")
        part, row = self.rows[str(path)]
        if part not in self._parts:
            size = int(np.prod(self.shape)) * getattr(torch, self.config.dtype).itemsize
            whole = (self.folder / part).stat().st_size // size  # another process may be writing the next row
            shape = (whole, *self.shape)
            self._parts[part] = np.memmap(self.folder / part, INTEGERS[self.config.dtype], "r", shape=shape)
        return torch.from_numpy(np.array(self._parts[part][row])).view(getattr(torch, self.config.dtype))

    def patches(self, path: Path) -> torch.Tensor:
        """The patch grid of an image, [H, W, D], of a store that keeps the grid. Raises as by index."""
        if self.config.keep != "grid":
            raise RadDraftError(f"This store keeps {self.config.keep!r}, not the patch grid")
        return self[path][1:].unflatten(0, self.grid)

    def vectors(self, paths: Iterable[Path], pooling: Literal["class", "mean", "both"] = "class") -> torch.Tensor:
        """One vector for each image, float32: [n, D], or [n, 2 D] of both. Raises as by index."""
        if self.config.keep == "hidden":
            raise RadDraftError("This store keeps hidden states; vectors are read from 'pooled' or 'grid'")
        rows = (self[path].float() for path in paths)
        found = [torch.stack([row[0], row[1:].mean(0)]) for row in rows]  # pooled: the mean of one vector
        stacked = torch.stack(found) if found else torch.empty(0, 2, self.shape[1])  # [n, 2, D]
        return {"class": stacked[:, 0], "mean": stacked[:, 1], "both": stacked.flatten(1)}[pooling]

    @property
    def blank(self) -> torch.Tensor:
        """Zeros in the shape of one image's features."""
        return torch.zeros(self.shape)


@dataclass
class Computed:
    """What `compute_features` did."""

    errors: list[str]
    """A sentence for each image that cannot be read."""
    n_images: int = 0
    """Images that were encoded and stored."""
    seconds: float = 0.0
    tower_seconds: float = 0.0
    """Part of it in which the tower was at work; the rest waited for pictures or wrote features."""


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
            is an EncoderConfig, its gray_mapping counts.
        compute: batch size, workers and folder of stores; by default those of `encoder`.
        accelerator: of processes that each compute a share; all of them get the whole store.
        quiet: print nothing.

    Returns:
        The store; `store.tower` is the loaded tower, `store.computed` what this process did.

    Raises:
        RadDraftError: a layer that the tower lacks, values that the type cannot hold, or no such tower or device.
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
    computed = compute_features(tower, paths, compute.features, kept, compute.batch_size, compute.workers, share)
    if not quiet:
        for sentence in computed.errors:
            print(f"no features: {sentence}")
    if accelerator:
        accelerator.wait_for_everyone()
    store = read_features(tower, paths, compute.features, kept)
    store.errors, store.computed, store.tower = computed.errors, computed, tower
    return store


def store_features(
    tower: Tower,
    paths: Sequence[Path],
    folder: str | Path,
    config: FeatureConfig | None = None,
    batch_size: int = 32,
    workers: int = 2,
) -> tuple[FeatureStore, list[str]]:
    """Compute the features that are not stored yet, and return the store and a sentence for each unreadable image.

    Args:
        tower: on the device that is to compute.
        paths: image files.
        folder: where stores of all towers lie.
        config: what is kept.
        batch_size: images per forward pass.
        workers: processes that decode and prepare images while the tower runs.

    Raises:
        ValueError: a layer that the tower lacks, or values that the type cannot hold.
        OSError: the folder cannot be written, e.g. a full disk; what is stored stays good.
    """
    config = config or FeatureConfig()
    computed = compute_features(tower, paths, folder, config, batch_size, workers)
    return read_features(tower, paths, folder, config), computed.errors


def compute_features(
    tower: Tower,
    paths: Sequence[Path],
    folder: str | Path,
    config: FeatureConfig,
    batch_size: int = 32,
    workers: int = 2,
    process: tuple[int, int] = (0, 1),
) -> Computed:
    """Compute and store what is missing; several processes may each take a share.

    The batches depend on `paths` only: a run that was cut goes on to the same bytes.

    Args:
        tower, paths, folder, config, batch_size, workers: as for `store_features`, and raises as that.
        process: index of this process and their number; each writes a part of its own.
    """
    from filelock import FileLock

    number, n_processes = process
    folder = Path(folder)
    meta = describe(tower, config)
    target = folder / _key(meta)
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target / "meta.lock"), write_whole(target / "meta.json") as temporary:
        temporary.write_text(json.dumps(meta, indent=2, default=str) + "\n", encoding="utf-8")
    files = digest_files(paths, folder, workers)
    part = f"part-{number}.bin"
    # Runs that share a part wait for each other here: rows of two at once would not match the index.
    with FileLock(target / f"{part}.lock"):
        _cut(target / part, meta)
        stored = _stored(target, meta).keys()
        wanted = [files.get(path) or File(path, None, f"missing {path}") for path in paths]
        unique = {file.digest: file for file in reversed(wanted)}
        items = [(file, digest not in stored) for digest, file in reversed(unique.items())]
        batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)][number::n_processes]
        batches = [batch for batch in batches if any(missing for _, missing in batch)]
        return _append(tower, _Batches(batches, tower, config.gray_mapping), target / part, config, workers)


def read_features(tower: Tower, paths: Sequence[Path], folder: str | Path, config: FeatureConfig) -> FeatureStore:
    """The features that are stored of some images; others are simply not in the store."""
    meta = describe(tower, config)
    return _read(Path(folder) / _key(meta), meta, config, paths)


def open_features(store: str | Path, paths: Sequence[Path]) -> FeatureStore:
    """The same of one store by its own folder, where the tower that made it is not at hand.

    Raises:
        ValueError: the folder is no feature store.
    """
    try:
        meta = json.loads((Path(store) / "meta.json").read_text(encoding="utf-8"))
        names = ("keep", "average", "dtype", "gray_mapping")
        config = FeatureConfig(layers=tuple(meta["layers"]) if meta["layers"] else None, **{n: meta[n] for n in names})
    except (OSError, ValueError, KeyError) as error:
        raise RadDraftError(
            f"{store} is no feature store, as `raddraft features` names it when it is done: {error}"
        ) from error
    return _read(Path(store), meta, config, paths)


def _read(target: Path, meta: dict[str, Any], config: FeatureConfig, paths: Sequence[Path]) -> FeatureStore:
    stored = _stored(target, meta)
    files = digest_files(paths, target.parent)
    rows = {str(path): stored[file.digest] for path, file in files.items() if file.digest in stored}
    return FeatureStore(target, config, tuple(meta["shape"]), tuple(meta["grid"]), rows)


@dataclass(frozen=True)
class File:
    """An image file as it was when its content was digested."""

    path: Path
    state: tuple[int, int, int, int] | None
    """Size, times of modification and of status change, and inode: content cannot change without the third."""
    digest: str
    """SHA-256 of its content."""


def digest_files(paths: Sequence[Path], folder: Path, workers: int = 2) -> dict[Path, File]:
    """The files that are there, with their digests; those that have not changed since are not read again."""
    from filelock import FileLock

    folder.mkdir(parents=True, exist_ok=True)
    record = folder / "files.jsonl"
    with FileLock(folder / "files.lock"):
        record.touch()
        lines = list(_whole_lines(record))
        os.truncate(record, sum(map(len, lines)))
    known = {(row[0], *row[1:-1]): row[-1] for row in map(json.loads, lines)}
    states = {path: state for path in dict.fromkeys(paths) if (state := _state(path))}
    new = [path for path, state in states.items() if (str(path), *state) not in known]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for path, digest in zip(new, pool.map(digest_file, new), strict=True):
            if digest and _state(path) == states[path]:  # else it has changed while it was read
                known[(str(path), *states[path])] = digest
    found = {path: (str(path), *state) for path, state in states.items()}
    with FileLock(folder / "files.lock"), open(record, "a", encoding="utf-8") as file:
        rows = [[*found[path], known[found[path]]] for path in new if found[path] in known]
        file.write("".join(json.dumps(row) + "\n" for row in rows))
    return {path: File(path, states[path], known[key]) for path, key in found.items() if key in known}


def _state(path: Path) -> tuple[int, int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino


def describe(tower: Tower, config: FeatureConfig) -> dict[str, Any]:
    """All that features depend on but the images, for JSON; `shape` and `grid` follow from the rest."""
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


def _key(meta: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(meta, sort_keys=True, default=str).encode()).hexdigest()[:16]


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

    computed = Computed([])
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
                raise RadDraftError(f"{tower.name} gives values that are not finite")
            kept = vectors.to(getattr(torch, config.dtype))
            if not kept.isfinite().all():
                raise RadDraftError(
                    f"{tower.name} gives values that {config.dtype} cannot hold; keep bfloat16 or float32"
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
    """Of all readable images, stored ones too: the result for an image may depend on its neighbours in the last bit."""
    missing: list[int]
    """Rows of `pixels` that are to be stored."""
    digests: list[str]
    """What they are stored under."""
    errors: list[str]


class _Batches(Dataset):
    """Batches of (file, whether its features are missing), prepared in workers."""

    def __init__(self, batches: list[list[tuple[File, bool]]], tower: Tower, gray_mapping: str) -> None:
        self.batches, self.processor, self.gray_mapping = batches, tower.processor, gray_mapping

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> _Batch:
        batch = self.batches[index]
        pictures: dict[str, torch.Tensor] = {}
        errors = []
        for wanted in (True, False):
            if not wanted and not pictures:
                break  # nothing that is missing can be read
            for file, missing in batch:
                if missing is wanted:
                    try:
                        pictures[file.digest] = self._prepare(file)
                    except (ImageError, OSError) as error:
                        errors += [str(error)] if missing else []
        rows = [(file.digest, missing) for file, missing in batch if file.digest in pictures]
        return _Batch(
            torch.stack([pictures[digest] for digest, _ in rows]) if rows else torch.empty(0),
            [row for row, (_, missing) in enumerate(rows) if missing],
            [digest for digest, missing in rows if missing],
            errors,
        )

    def _prepare(self, file: File) -> torch.Tensor:
        pixels = prepare_pixels(self.processor, file.path, self.gray_mapping)
        if _state(file.path) != file.state:
            raise ImageError(f"{file.path}: has changed while it was read; start again")
        return pixels


def prepare_pixels(image_processor: Any, path: Path, gray_mapping: str) -> torch.Tensor:
    """An image file as the tower gets it: [3, H, W]."""
    image = load_image(path, gray_mapping=gray_mapping).convert("RGB")  # type: ignore[arg-type]
    # One picture is too little work to share: handing it to several threads took ten times as long on two cores.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return image_processor([image], return_tensors="pt")["pixel_values"][0]
    finally:
        torch.set_num_threads(n_threads)


def _cut(part: Path, meta: dict[str, Any]) -> None:
    """Cut off what a killed run left behind the last whole row."""
    index = part.with_suffix(".jsonl")
    for path in (part, index):
        path.touch()
    lines = list(_whole_lines(index))[: part.stat().st_size // _row_bytes(meta)]
    os.truncate(part, len(lines) * _row_bytes(meta))
    os.truncate(index, sum(map(len, lines)))


def _stored(folder: Path, meta: dict[str, Any]) -> dict[str, tuple[str, int]]:
    """Digest of an image -> part and row, of all rows that are whole."""
    found: dict[str, tuple[str, int]] = {}
    for index in sorted(folder.glob("part-*.jsonl")):
        part = index.with_suffix(".bin")
        n_rows = part.stat().st_size // _row_bytes(meta) if part.is_file() else 0
        for row, line in zip(range(n_rows), _whole_lines(index), strict=False):
            found.setdefault(json.loads(line), (part.name, row))
    return found


def _row_bytes(meta: dict[str, Any]) -> int:
    return int(np.prod(meta["shape"])) * getattr(torch, meta["dtype"]).itemsize


def _whole_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))
