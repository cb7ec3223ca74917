"""Features of a frozen tower, computed once and kept on disk: memory-mapped, append-only, resumable.

    FOLDER/<key>/meta.json       what the features are; the key is made of it
    FOLDER/<key>/features.bin    [n images, T tokens, D] in float16, row after row
    FOLDER/<key>/index.jsonl     the file that each row belongs to, with its size and modification time

The key is a digest of the tower's weights, the image processor, the grey-value mapping and the layer; a row belongs to
a file as long as its size and modification time stay the same. So a stale feature is never read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from encoder.images import ImageError, load_image
from encoder.studies import write_whole
from encoder.towers import weights_digest

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, PreTrainedModel


@dataclass
class FeatureStore:
    """Hidden states of many images, read row by row from one memory-mapped file."""

    folder: Path
    shape: tuple[int, int]
    """Tokens and width of one image: (T, D), class and register tokens first."""
    rows: dict[str, int]
    """Absolute path of an image -> its row."""

    @cached_property
    def _array(self) -> np.ndarray:
        return np.memmap(self.folder / "features.bin", np.float16, "r").reshape(-1, *self.shape)

    def __contains__(self, path: Path) -> bool:
        return str(path) in self.rows

    def __getitem__(self, path: Path) -> torch.Tensor:
        """Hidden states [T, D] of an image, float16.

        Raises:
            ImageError: the image has no features, since it could not be read.
        """
        if str(path) not in self.rows:
            raise ImageError(f"{path}: no features are stored for this image")
        return torch.from_numpy(np.array(self._array[self.rows[str(path)]]))

    @property
    def blank(self) -> torch.Tensor:
        """Zeros in the shape of one image's features."""
        return torch.zeros(self.shape)


def store_features(
    tower: PreTrainedModel,
    image_processor: BaseImageProcessor,
    paths: Sequence[Path],
    folder: str | Path,
    layer: int = -1,
    mapping: str = "window",
    batch_size: int = 32,
    workers: int = 2,
) -> tuple[FeatureStore, list[str]]:
    """Compute the features that are not stored yet, and return the store and a sentence for each unreadable image.

    Args:
        tower: vision tower in eval mode, on the device that is to compute.
        image_processor: makes its pixels.
        paths: image files.
        folder: where stores of all towers lie.
        layer: which of the tower's hidden states to keep, as an index into its `hidden_states`.
        mapping: grey-value mapping of `encoder.images.load_image`.
        batch_size: images per forward pass.
        workers: processes that decode and prepare images while the tower runs.

    Raises:
        ValueError: the tower has no such layer.
    """
    from filelock import FileLock

    dataset = _ImageFiles(list(dict.fromkeys(paths)), image_processor, mapping)
    pixels = image_processor([_blank_image()], return_tensors="pt")["pixel_values"]
    shape = tuple(_hidden_state(tower, pixels, layer).shape[1:])
    meta = {
        "weights": weights_digest(tower),
        "processor": json.loads(image_processor.to_json_string()),
        "mapping": mapping,
        "layer": layer,
        "shape": shape,
        "dtype": "float16",
    }
    key = hashlib.sha256(json.dumps(meta, sort_keys=True).encode()).hexdigest()[:16]
    folder = Path(folder) / key
    folder.mkdir(parents=True, exist_ok=True)
    # Runs that share a folder wait for each other here: rows of two at once would not match the index.
    with FileLock(folder / "lock"):
        with write_whole(folder / "meta.json") as temporary:
            temporary.write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
        stored = _resume(folder, shape)
        dataset.paths = [path for path in dataset.paths if _identity(path) not in stored]
        errors = _append(tower, dataset, folder, layer, batch_size, workers)
        stored = _resume(folder, shape)
    rows = {str(path): stored[_identity(path)] for path in paths if _identity(path) in stored}
    return FeatureStore(folder, shape, rows), errors  # type: ignore[arg-type]


def _append(
    tower: PreTrainedModel, dataset: _ImageFiles, folder: Path, layer: int, batch_size: int, workers: int
) -> list[str]:
    """Append the features of the files of `dataset`; return a sentence for each unreadable one."""
    from tqdm import tqdm

    errors = []
    loader: DataLoader = DataLoader(
        dataset, batch_size, num_workers=workers, collate_fn=list, generator=torch.Generator()
    )
    with open(folder / "features.bin", "ab") as features, open(folder / "index.jsonl", "a", encoding="utf-8") as index:
        for batch in tqdm(loader, desc="features", disable=not dataset.paths, unit="batch"):
            errors += [item for _, item in batch if isinstance(item, str)]
            good = [(path, item) for path, item in batch if not isinstance(item, str)]
            if not good:
                continue
            hidden = _hidden_state(tower, torch.stack([item for _, item in good]), layer)
            features.write(hidden.to("cpu", torch.float16).numpy().tobytes())
            features.flush()
            index.write("".join(json.dumps(_identity(path)) + "\n" for path, _ in good))
            index.flush()
    return errors


class _ImageFiles(Dataset):
    """Image files as pixels; what cannot be read, as a sentence."""

    def __init__(self, paths: list[Path], image_processor: Any, mapping: str) -> None:
        self.paths, self.image_processor, self.mapping = paths, image_processor, mapping

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Path, torch.Tensor | str]:
        path = self.paths[index]
        try:
            return path, prepare_pixels(self.image_processor, path, self.mapping)
        except (ImageError, OSError) as error:
            return path, str(error)


def prepare_pixels(image_processor: Any, path: Path, mapping: str) -> torch.Tensor:
    """An image file as the tower gets it: [3, H, W]."""
    image = load_image(path, mapping=mapping).convert("RGB")  # type: ignore[arg-type]
    # One picture is too little work to share: handing it to several threads took ten times as long on two cores.
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return image_processor([image], return_tensors="pt")["pixel_values"][0]
    finally:
        torch.set_num_threads(n_threads)


def _blank_image():
    from PIL import Image

    return Image.new("RGB", (64, 64))


@torch.no_grad()
def _hidden_state(tower: PreTrainedModel, pixels: torch.Tensor, layer: int) -> torch.Tensor:
    """Hidden state [B, T, D] of pixels [B, 3, H, W]."""
    states = tower(pixels.to(tower.device, tower.dtype), output_hidden_states=True).hidden_states
    if not -len(states) <= layer < len(states):
        raise ValueError(
            f"Layer {layer} does not exist. The tower has hidden states {-len(states)} to {len(states) - 1}"
        )
    return states[layer]


def _identity(path: Path) -> tuple[str, int, int]:
    """What a row belongs to: path, size and modification time of a file (0, 0 if it is missing)."""
    if not path.is_file():
        return str(path), 0, 0
    stat = path.stat()
    return str(path), stat.st_size, stat.st_mtime_ns


def _resume(folder: Path, shape: tuple[int, ...]) -> dict[tuple[str, int, int], int]:
    """Rows that are wholly stored; what a killed run left behind them is cut off."""
    row_bytes = 2 * int(np.prod(shape))
    features, index = folder / "features.bin", folder / "index.jsonl"
    for path in (features, index):
        path.touch()
    lines = list(_whole_lines(index))[: features.stat().st_size // row_bytes]
    os.truncate(features, len(lines) * row_bytes)
    os.truncate(index, sum(len(line) for line in lines))
    return {tuple(json.loads(line)): row for row, line in enumerate(lines)}


def _whole_lines(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))
