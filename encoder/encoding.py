"""The pass in which a frozen tower reads images: each is read once, digested, decoded, encoded and stored."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from encoder.config import ComputeConfig, FeatureConfig
from encoder.digests import File, FileList, read_file
from encoder.given import read_given
from encoder.looks import LookList
from encoder.rows import Place, Writer
from encoder.store_folder import Content, StoreFolder, make_folder
from encoder.survey import perceptual_hash, shrink
from encoder.tower import Tower
from raddraft.errors import RadDraftError
from raddraft.images import ImageError, load_image
from raddraft.studies import GrayMapping

Wanted = Mapping[FeatureConfig, Sequence[Path]]
"""What is to be kept -> of which images."""


@dataclass
class Stock:
    """What is stored of the contents that are asked for, by the digest of the image."""

    sources: dict[Content, list[Content]]
    """Contents that are written -> those that serve as well."""
    rows: dict[Content, dict[str, Place]]
    """Content, also of the latter -> digest -> row."""

    def find(self, content: Content, digest: str) -> Place | None:
        """Where the features of an image are."""
        return next((place for one in self.sources[content] if (place := self.rows[one].get(digest))), None)

    def lacks(self, contents: Sequence[Content], digest: str) -> list[Content]:
        """Those of the contents that are not stored."""
        return [content for content in contents if not self.find(content, digest)]


@dataclass
class Computed:
    """What `compute_features` did."""

    folder: StoreFolder
    digests: dict[str, str]
    """Path of an image -> its digest, where it could be read."""
    stock: Stock
    failed: dict[str, str] = field(default_factory=dict)
    """Path of an image that cannot be read -> a sentence."""
    n_images: int = 0
    """Images encoded and stored."""
    seconds: float = 0.0
    tower_seconds: float = 0.0
    """Part of `seconds` in which the tower ran; the rest was spent on reading images and writing features."""


def compute_features(
    tower: Tower, wanted: Wanted, compute: ComputeConfig, process: tuple[int, int] = (0, 1)
) -> Computed:
    """Compute and store what is missing, whatever is wanted of an image in one pass over it.

    Batches depend on the paths only, so an interrupted run resumes bit-exactly. Digests of files are written with each
    batch, so it does not read again what it has digested and found stored.

    Args:
        tower: on its device.
        wanted: what to keep of which images.
        compute: batch size, workers and folder.
        process: index of this process and number of processes: each computes a share and writes parts of its own.

    Raises:
        RadDraftError: as `encoder.features.open_store`.
    """
    number, n_processes = process
    folder, known = make_folder(tower, compute), FileList(compute.features)
    asked = {kept: folder.asked(kept) for kept in wanted}
    sources = {each[0]: each for layers in asked.values() for each in layers}
    folder.make(tower, list(sources))
    tasks = _plan(wanted, asked)
    digests = dict(zip(tasks, known.find(tasks), strict=True))
    with ExitStack() as stack:
        writers = {}
        for content in sorted(sources, key=lambda content: content.name):  # in one order, or two would wait for ever
            form = folder.form(content)
            assert form
            part = folder.path / content.name / f"part-{number}.bin"
            writers[content] = stack.enter_context(Writer(part, form[0]))
        stock = Stock(sources, {one: folder.rows(one) for one in {one for each in sources.values() for one in each}})
        names, size = list(tasks), compute.batch_size
        batches = [names[start : start + size] for start in range(0, len(names), size)][number::n_processes]
        batches = [
            batch
            for batch in batches
            if any((digest := digests[name]) is None or stock.lacks(tasks[name], digest) for name in batch)
        ]
        computed = Computed(folder, {name: digest for name, digest in digests.items() if digest}, stock)
        dataset = _Batches(batches, tasks, computed.digests, stock, tower.processor, folder.meta["gray_mapping"])
        looks = LookList(compute.features, folder.meta["gray_mapping"])
        # What a run that was killed within a batch has listed is not listed again.
        looks.find([digest for batch in batches for name in batch if (digest := digests[name])])
        _store(tower, dataset, writers, (known, looks), computed, compute.workers)
    return computed


def _plan(wanted: Wanted, asked: Mapping[FeatureConfig, Sequence[Sequence[Content]]]) -> dict[str, tuple[Content, ...]]:
    """Path of an image -> contents to write; none of them serves in place of another."""
    chosen: dict[str, int] = {}  # one bit for each thing wanted
    for bit, paths in enumerate(wanted.values()):
        for path in paths:
            name = str(path)
            chosen[name] = chosen.get(name, 0) | 1 << bit
    contents = {}
    for choice in set(chosen.values()):
        layers = [each for bit, kept in enumerate(wanted) if choice >> bit & 1 for each in asked[kept]]
        written = {each[0] for each in layers}
        contents[choice] = tuple({each[0]: None for each in layers if written.isdisjoint(each[1:])})
    return {name: contents[choice] for name, choice in chosen.items()}


def _store(
    tower: Tower,
    dataset: _Batches,
    writers: Mapping[Content, Writer],
    lists: tuple[FileList, LookList],
    computed: Computed,
    workers: int,
) -> None:
    """Append what the images of these batches lack, with their digests and perceptual hashes."""
    from tqdm import tqdm

    stock, started = computed.stock, time.perf_counter()
    loader: DataLoader = DataLoader(dataset, batch_size=None, num_workers=workers, generator=torch.Generator())
    for batch in tqdm(loader, desc="features", disable=not len(dataset), unit="batch"):
        lists[0].add(batch.fresh)
        lists[1].add(batch.looks)
        computed.digests |= {str(file.path): file.digest for file in batch.fresh}
        computed.failed |= batch.failed
        missing: dict[Content, dict[str, int]] = {content: {} for content in writers}  # digest -> row of the batch
        for row, (digest, contents) in enumerate(batch.rows):
            for content in stock.lacks(contents, digest):
                missing[content].setdefault(digest, row)
        missing = {content: rows for content, rows in missing.items() if rows}
        if not missing:
            continue
        tower_started = time.perf_counter()
        encoded = _encode(tower, batch.pixels, list(missing))
        computed.tower_seconds += time.perf_counter() - tower_started
        for content, rows in missing.items():
            values = encoded[content][list(rows.values())]
            if not values.isfinite().all():
                raise RadDraftError(f"{tower.name} returns NaN or infinite features")
            try:
                places = writers[content].append(list(rows), values)
            except OverflowError:
                dtype = computed.folder.meta["dtype"]
                raise RadDraftError(
                    f"{tower.name} returns values too large for {dtype}; use bfloat16 or float32"
                ) from None
            stock.rows[content] |= {digest: (f"{content.name}/{part}", row) for digest, (part, row) in places.items()}
        computed.n_images += len(set().union(*missing.values()))
    computed.seconds = time.perf_counter() - started


def _encode(tower: Tower, pixels: torch.Tensor, contents: Sequence[Content]) -> dict[Content, torch.Tensor]:
    """Rows of pixels [B, 3, height, width], on the CPU: [B, 2, D], with tokens [B, 2 + T, D]."""
    layers = list(dict.fromkeys(content.layer for content in contents))
    tokens = any(content.tokens for content in contents)
    found = dict(zip(layers, tower.encode_layers(pixels, layers, tokens), strict=True))
    rows = {}
    for content in contents:
        encoded, rest = found[content.layer]
        mean = encoded.patches.flatten(1, 2).float().mean(1)
        parts = [torch.stack([encoded.pooled.float(), mean], dim=1)]
        parts += [rest] if content.tokens and rest is not None else []
        rows[content] = torch.cat(parts, dim=1).cpu()  # waits for a GPU
    return rows


@dataclass
class _Batch:
    pixels: torch.Tensor
    """Of all readable images, stored ones too: the result for an image may depend on its neighbors in the last bit."""
    rows: list[tuple[str, tuple[Content, ...]]]
    """For each of them its digest, and what is to be kept of it."""
    fresh: list[File]
    """Files whose digests were not known."""
    looks: dict[str, np.ndarray]
    """Digest of a file that was decoded for the first time -> perceptual hash."""
    failed: dict[str, str]


class _Batches(Dataset):
    """Batches of images, read, digested and prepared in workers; where nothing is missing, only digested."""

    def __init__(
        self,
        batches: list[list[str]],
        tasks: Mapping[str, tuple[Content, ...]],
        digests: Mapping[str, str],
        stock: Stock,
        processor: Any,
        gray_mapping: GrayMapping,
    ) -> None:
        self.batches, self.tasks, self.digests, self.stock = batches, tasks, dict(digests), stock
        self.processor, self.gray_mapping = processor, gray_mapping

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> _Batch:
        pixels: dict[str, torch.Tensor] = {}
        fresh: list[File] = []
        looks: dict[str, np.ndarray] = {}
        failed: dict[str, str] = {}
        digests: dict[str, str] = {}
        for name in self.batches[index]:
            digest = self.digests.get(name)
            if digest and not self.stock.lacks(self.tasks[name], digest):
                digests[name] = digest
                continue
            try:
                data, file = read_file(Path(name), digest)
                fresh += [] if digest else [file]
                digests[name] = file.digest
                if self.stock.lacks(self.tasks[name], file.digest):
                    pixels[name] = self._prepare(file.path, data, file.digest, looks)
            except (ImageError, OSError) as error:
                failed[name] = str(error)
        for name in digests if pixels else ():  # those that are stored, as neighbors
            if name not in pixels and name not in failed:
                with suppress(ImageError, OSError):
                    pixels[name] = prepare_pixels(self.processor, Path(name), self.gray_mapping)
        names = [name for name in self.batches[index] if name in pixels]
        return _Batch(
            torch.stack([pixels[name] for name in names]) if names else torch.empty(0),
            [(digests[name], self.tasks[name]) for name in names],
            fresh,
            looks,
            failed,
        )

    def _prepare(self, path: Path, data: bytes, digest: str, looks: dict[str, np.ndarray]) -> torch.Tensor:
        """Pixels of an image, which is decoded once; its perceptual hash goes to `looks`."""
        if hasattr(self.processor, "features_file"):
            return read_given(self.processor, path)
        image = load_image(path, self.gray_mapping, data=data)
        looks[digest] = perceptual_hash(shrink(image))
        return to_pixels(self.processor, image)


def prepare_pixels(image_processor: Any, path: Path, gray_mapping: GrayMapping) -> torch.Tensor:
    """An image file as the tower gets it: [3, H, W]. Raises ImageError if it cannot be read.

    Args:
        image_processor: the tower's.
        path: the file.
        gray_mapping: see `raddraft.images.load_image`.
    """
    if hasattr(image_processor, "features_file"):
        return read_given(image_processor, path)
    return to_pixels(image_processor, load_image(path, gray_mapping))


def to_pixels(image_processor: Any, image: Image.Image) -> torch.Tensor:
    """A gray image as the tower gets it: [3, H, W]."""
    # One image is too little work to share: with several threads it took ten times as long on two cores.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return image_processor([image.convert("RGB")], return_tensors="pt")["pixel_values"][0]
    finally:
        torch.set_num_threads(n_threads)
