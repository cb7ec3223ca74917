"""Features of a frozen tower, computed once and kept on disk: memory-mapped, append-only, resumable.

    FOLDER/files.jsonl             SHA-256 of every image file, see `encoder.digests`
    FOLDER/<key>/meta.json         tower, processor, gray mapping, data types; the key is a digest of it
    FOLDER/<key>/norm.safetensors  the tower's last LayerNorm
    FOLDER/<key>/tokens/           rows of the final output: pooled vector, mean patch, last hidden state
    FOLDER/<key>/pooled/           the two vectors alone
    FOLDER/<key>/tokens-6/ …       the same of hidden state 6; for rows see `encoder.rows`

One store serves probes, retrieval, segmentation and training: vectors are the beginning of a row, and patches of the
final output are made of the last hidden state as they are read. A row belongs to the content of a file, so stale
features are never read, and copies of an image are stored once. An image is read once: the worker that decodes it
digests it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from encoder.config import ComputeConfig, EncoderConfig, FeatureConfig
from encoder.digests import FileList, digest_files
from encoder.encoding import Computed, Stock, Wanted, compute_features
from encoder.rows import N_VECTORS, Form, Place
from encoder.store_folder import Content, Norm, StoreFolder, describe_store, read_folder
from encoder.tower import Tower
from raddraft.errors import RadDraftError
from raddraft.files import read_object
from raddraft.images import ImageError
from raddraft.processes import process_share

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class FeatureStore:
    """Features of many images, read row by row from memory-mapped files."""

    folder: Path
    config: FeatureConfig
    shape: tuple[int, int]
    """Of `store[path]`: (T, D)."""
    grid: tuple[int, int]
    """Rows and columns of patches: (H, W)."""
    forms: dict[str, Form]
    """Name of a content, see `encoder.store_folder.Content` -> form of its rows."""
    rows: dict[str, tuple[Place, ...]]
    """Path of an image -> for each layer its part, which begins with the name of the content, and row."""
    norm: Norm | None = None
    """What makes the final patches of tokens; None where it is nothing."""
    failed: dict[str, str] = field(default_factory=dict)
    """Path of an image that could not be read -> a sentence."""
    computed: Computed | None = field(default=None, repr=False)
    """What this process did to open the store, if it had a tower."""
    tower: Tower | None = field(default=None, repr=False)
    """The tower, if it was at hand."""
    _parts: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __contains__(self, path: Path) -> bool:
        return str(path) in self.rows

    def __getitem__(self, path: Path) -> torch.Tensor:
        """All that is asked of an image, [T, D]: the two vectors; with tokens the raw hidden states, prefix included.

        Of the final output with tokens it is the pooled vector and the patches, the form of a tower with a class token.

        Raises:
            ImageError: no features are stored, since the image could not be read.
        """
        if self.config.keep == "pooled":
            return self._join(path, self._vectors)
        if self.config.layers:
            return self._join(path, lambda _, place: self._tokens(place))
        return torch.cat([self._join(path, self._vectors)[:1].float(), self.patches(path).flatten(0, 1)])

    def __getstate__(self) -> dict[str, Any]:
        """Of what a loader's worker reads from."""
        return vars(self) | {"_parts": {}, "tower": None, "computed": None}

    @property
    def errors(self) -> list[str]:
        """A sentence for each image that could not be read."""
        return list(self.failed.values())

    def patches(self, path: Path) -> torch.Tensor:
        """The patch grid of an image, float32 [H, W, D], layers side by side or averaged.

        Raises:
            RadDraftError: the store keeps no tokens.
            ImageError: as `store[path]`.
        """
        if self.config.keep != "tokens":
            raise RadDraftError(f"This store keeps {self.config.keep!r}, not the patch grid")
        return self._join(path, self._patches).unflatten(0, self.grid)

    def vectors(self, paths: Iterable[Path], pooling: Literal["class", "mean", "both"] = "class") -> torch.Tensor:
        """One vector per image, float32 [n, D]: the pooled one, the mean patch, or both side by side, [n, 2 D].

        Raises:
            ImageError: an image has no features.
        """
        found = [self._join(path, self._vectors).float() for path in paths]
        stacked = torch.stack(found) if found else torch.empty(0, 2, self.shape[1])  # [n, 2, D]
        return {"class": stacked[:, 0], "mean": stacked[:, 1], "both": stacked.flatten(1)}[pooling]

    def describe(self) -> str:
        """Shape and size of the store, and how fast this process added to it."""
        size = sum(file.stat().st_size for file in self.folder.glob("*/part-*.bin"))
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

    def _join(self, path: Path, read: Callable[[int | None, Place], torch.Tensor]) -> torch.Tensor:
        """What is read of each layer, side by side or averaged."""
        if str(path) not in self.rows:
            raise ImageError(f"{path}: no features are stored for this image")
        found = [read(*one) for one in zip(self.config.layers or (None,), self.rows[str(path)], strict=True)]
        if self.config.average:
            return torch.stack([one.float() for one in found]).mean(0)
        return torch.cat(found, dim=-1)

    def _vectors(self, layer: int | None, place: Place) -> torch.Tensor:
        """The pooled vector and the mean patch: [2, D]."""
        if layer is not None and place[0].startswith(f"{FINAL.name}/"):  # the last state is there, its vectors are not
            tokens, patches = self._tokens(place), self._patches(layer, place)
            mean = patches.mean(0)
            return torch.stack([tokens[0].float() if len(tokens) > len(patches) else mean, mean])
        form, row = self._row(place, whole=False)
        return form.vectors(row)

    def _tokens(self, place: Place) -> torch.Tensor:
        form, row = self._row(place)
        return form.tokens(row)

    def _patches(self, layer: int | None, place: Place) -> torch.Tensor:
        """Patches, float32 [H * W, D]."""
        patches = self._tokens(place)[-math.prod(self.grid) :]
        return (patches if layer is not None or self.norm is None else self.norm(patches)).float()

    def _row(self, place: Place, whole: bool = True) -> tuple[Form, torch.Tensor]:
        """The bytes of a row, or of its vectors alone."""
        part, row = place
        form = self.forms[part.partition("/")[0]]
        if part not in self._parts:
            self._parts[part] = np.memmap(self.folder / part, np.uint8, "r")
        start = row * form.row_bytes
        size = form.row_bytes if whole else form.vector_bytes
        return form, torch.from_numpy(np.array(self._parts[part][start : start + size]))


FINAL = Content(None, True)


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
        kept: what is kept of each image; by default the pooled vector and the mean patch.
        compute: batch size, workers, data type and folder of stored features, and as an EncoderConfig the gray mapping;
            by default those of `encoder`.
        accelerator: of processes that each compute a share; all of them get the whole store.
        quiet: print nothing.

    Returns:
        The store; `store.tower` is the loaded tower, `store.computed` what this process did.

    Raises:
        RadDraftError: the tower has no such layer, the type cannot hold its values, no such tower or device.
        OSError: the folder cannot be written, e.g. a full disk; what is stored stays good.
    """
    kept = kept or FeatureConfig()
    return open_stores(encoder, {kept: paths}, compute, accelerator, quiet)[kept]


def open_stores(
    encoder: EncoderConfig | Tower,
    wanted: Wanted,
    compute: ComputeConfig | None = None,
    accelerator: Accelerator | None = None,
    quiet: bool = False,
) -> dict[FeatureConfig, FeatureStore]:
    """As `open_store`, for several things to keep, each of images of its own, in one pass over all of them."""
    compute = compute or (encoder if isinstance(encoder, EncoderConfig) else ComputeConfig())
    tower = encoder.load() if isinstance(encoder, EncoderConfig) else encoder
    computed = compute_features(tower, wanted, compute, process_share(accelerator) if accelerator else (0, 1))
    if not quiet:
        for sentence in computed.failed.values():
            print(f"no features: {sentence}")
        _tell_old(compute.features)
    digests, stock = computed.digests, computed.stock
    if accelerator and accelerator.num_processes > 1:  # what the others have read and stored
        accelerator.wait_for_everyone()
        names = list(dict.fromkeys(str(path) for paths in wanted.values() for path in paths))
        found = FileList(compute.features).find(names)
        digests = {name: digest for name, digest in zip(names, found, strict=True) if digest}
        stock = read_stock(computed.folder, wanted)
    return {
        kept: _open(computed.folder, kept, paths, digests, stock, computed, tower) for kept, paths in wanted.items()
    }


def open_features(store: str | Path, paths: Sequence[Path], kept: FeatureConfig | None = None) -> FeatureStore:
    """The stored features of images, by the folder of the store; images without features are not in it.

    Args:
        store: FOLDER/<key>, as `raddraft features` prints it.
        paths: image files.
        kept: what is asked of each image; by default the pooled vector and the mean patch.

    Raises:
        RadDraftError: the folder is not a feature store, or has nothing of that kind.
    """
    folder, kept = read_folder(Path(store)), kept or FeatureConfig()
    digests = dict(zip(map(str, paths), digest_files(paths, folder.path.parent), strict=True))
    known = {name: digest for name, digest in digests.items() if digest}
    return _open(folder, kept, paths, known, read_stock(folder, [kept]))


def find_settings(tower: Tower, paths: Sequence[Path], kept: FeatureConfig, encoder: EncoderConfig) -> EncoderConfig:
    """An encoder with the precision and the data type in which most of these images are stored already, if any are.

    So training takes what `raddraft features` has stored, whatever its types.

    Args:
        tower: as it was loaded, in float32.
        paths: image files.
        kept: what is asked of each image.
        encoder: settings to change; they are kept where as many images are stored with them.
    """
    free = ("precision", "dtype")
    own = describe_store(tower, encoder) | {"precision": encoder.precision}
    digests = {digest for digest in FileList(encoder.features).find(paths) if digest}
    best, most = encoder, 0
    for file in sorted(encoder.features.glob("*/meta.json")):
        meta = read_object(file, f"remove {file.parent}, and `raddraft features` stores them again")
        if any(meta.get(name) != value for name, value in own.items() if name not in free):
            continue
        folder = StoreFolder(file.parent, meta)
        stock = read_stock(folder, [kept])
        n_stored = sum(not stock.lacks(list(stock.sources), digest) for digest in digests)
        if n_stored > most or (n_stored == most and meta == own):
            best, most = replace(encoder, **{name: meta[name] for name in free}), n_stored
    return best


def read_stock(folder: StoreFolder, wanted: Iterable[FeatureConfig]) -> Stock:
    """What of these is stored."""
    sources = {each[0]: each for kept in wanted for each in folder.asked(kept)}
    return Stock(sources, {one: folder.rows(one) for one in {one for each in sources.values() for one in each}})


def _open(
    folder: StoreFolder,
    kept: FeatureConfig,
    paths: Sequence[Path],
    digests: Mapping[str, str],
    stock: Stock,
    computed: Computed | None = None,
    tower: Tower | None = None,
) -> FeatureStore:
    """The store of what is asked. Raises RadDraftError if nothing of the kind was ever stored."""
    asked = folder.asked(kept)
    forms = {one.name: form for each in asked for one in each if (form := folder.form(one))}
    for each in asked:
        if not any(one.name in forms for one in each):
            there = sorted(file.parent.name for file in folder.path.glob("*/meta.json"))
            raise RadDraftError(f"{folder.path} has no {each[0].name}, only {', '.join(there) or 'nothing'}")
    found = [next(forms[one.name] for one in each if one.name in forms) for each in asked]
    layers = [each[0] for each in asked]
    rows = {}
    for name in map(str, paths):
        places = [stock.find(content, digests[name]) for content in layers] if name in digests else [None]
        if None not in places:
            rows[name] = tuple(place for place in places if place)
    first, grid = found[0]
    width = sum(form.width for form, _ in found) // (len(found) if kept.average else 1)
    n_patches = math.prod(grid)
    n_vectors = N_VECTORS if kept.keep == "pooled" else first.n_tokens if kept.layers else 1 + n_patches
    told = computed.failed if computed else {}
    failed = {name: sentence for name in map(str, paths) if (sentence := told.get(name))}
    shapes = {name: form for name, (form, _) in forms.items()}
    return FeatureStore(
        folder.path, kept, (n_vectors, width), grid, shapes, rows, folder.norm(), failed, computed, tower
    )


def _tell_old(features: Path) -> None:
    """Print which stores of an earlier version lie in a folder, for they are large and no longer read."""
    if old := sorted(part.parent.name for part in features.glob("*/part-0.bin")):
        print(f"{features} also holds features of an earlier version, no longer read; delete: {', '.join(old)}")
