"""Features that something else has written, as a tower: `features:FILE`, for encoders that are gated or not in PyTorch.

    numpy.savez("cxr_foundation.npz", **{"files/p10/x.jpg": features, …})  # [D], [T, D] or [H, W, D] of each image
    raddraft probe --tower features:cxr_foundation.npz …

An entry is called as the image's path, or as the end of it, with or without the suffix (`files/p10/x.jpg`, `x.jpg`,
`x`), or by the SHA-256 of the image file. All entries have one shape: [D] is one vector, [T, D] are T vectors in a row,
[H, W, D] is a grid of patches; the pooled vector is their mean. Layouts, told apart by the suffix: .safetensors and
.npz, an array for each image; .parquet, a row for each image with its name in `image` and lists in `features`.

To the rest of the project the features are an image: each patch of it holds the values of one vector, in its first
channel, and the model takes them out again. A picture, whose channels are equal, is refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from encoder.digests import file_state
from raddraft.errors import RadDraftError
from raddraft.files import digest_file
from raddraft.images import ImageError

if TYPE_CHECKING:
    from transformers import BaseImageProcessor

SUFFIXES = (".safetensors", ".npz", ".parquet")


@dataclass
class GivenConfig:
    """Where the features are, and their shape."""

    file: str
    """Absolute path."""
    state: tuple[int, ...]
    """What tells that the file has not changed, see `encoder.digests.File`."""
    rows: int
    """Rows of vectors of an image."""
    columns: int
    """Columns of vectors of an image."""
    hidden_size: int
    """Width of a vector."""


class Given(nn.Module):
    """Takes the vectors out of the images that `read_given` makes of them."""

    def __init__(self, config: GivenConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)  # tells device and type

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixel_values [B, 3, rows * side, columns * side] -> vectors [B, D], patches [B, rows, columns, D].

        Raises:
            RadDraftError: these are pictures, or of another size.
        """
        own, side = self.config, _side(self.config.hidden_size)
        if tuple(pixel_values.shape[1:]) != (3, own.rows * side, own.columns * side) or pixel_values[:, 1:].any():
            raise RadDraftError(f"{own.file} holds features of the images that it names; it cannot encode others")
        squares = pixel_values[:, 0].unflatten(1, (own.rows, side)).unflatten(3, (own.columns, side))
        patches = squares.transpose(2, 3).flatten(3)[..., : own.hidden_size] * self.scale
        return patches.mean((1, 2)), patches


def load_given(file: str) -> Given:
    """The tower of a file of features.

    Raises:
        RadDraftError: there is no such file, or it does not hold features.
    """
    path = Path(file).expanduser()
    if path.suffix not in SUFFIXES or not path.is_file():
        missing = "is of no known layout" if path.is_file() else "does not exist"
        raise RadDraftError(f"features:{file}: the file {missing}. Layouts: {', '.join(SUFFIXES)}")
    entries = _open(str(path.resolve()))
    first = next(iter(entries.names), None)
    if first is None:
        raise RadDraftError(f"{path} holds no features")
    shape = entries.read(first).shape
    if not 1 <= len(shape) <= 3 or 0 in shape:
        raise RadDraftError(f"{path}: {first} has shape {list(shape)}; expected [D], [T, D] or [H, W, D]")
    rows, columns = (1, 1, *shape[:-1])[-2:]
    state = file_state(path)
    return Given(GivenConfig(str(path.resolve()), state or (), rows, columns, shape[-1]))


def given_processor(config: GivenConfig) -> BaseImageProcessor:
    """Black images of the size of the features. `features_file` is what `encoder.encoding.prepare_pixels` looks for."""
    from transformers import BitImageProcessor

    side = _side(config.hidden_size)
    size = {"height": config.rows * side, "width": config.columns * side}
    processor: Any = BitImageProcessor(size=size, do_center_crop=False, do_normalize=False)
    processor.features_file = config.file
    processor.features_shape = [config.rows, config.columns, config.hidden_size]
    return processor


def read_given(processor: Any, image: Path) -> torch.Tensor:
    """The features of an image file as an image: [3, height, width].

    Args:
        processor: made by `given_processor`.
        image: the image.

    Raises:
        ImageError: the file has no features of that image, or of another shape.
    """
    file = processor.features_file
    entries = _open(file)
    name = entries.find(Path(os.path.abspath(image)))
    if name is None:
        raise ImageError(f"{image}: {file} has no features of this image")
    found = entries.read(name)
    rows, columns, width = processor.features_shape
    if [1, 1, *found.shape][-3:] != [rows, columns, width]:
        raise ImageError(f"{image}: its features in {file} have shape {list(found.shape)}, unlike those of others")
    vectors = torch.from_numpy(found).reshape(rows, columns, width)
    side = _side(width)
    squares = nn.functional.pad(vectors, (0, side * side - width)).unflatten(2, (side, side))
    pixels = torch.zeros(3, rows * side, columns * side)
    pixels[0] = squares.transpose(1, 2).reshape(rows * side, columns * side)
    return pixels


def _side(width: int) -> int:
    """Pixels along each side of the square that holds a vector."""
    return math.isqrt(width - 1) + 1


class _Entries:
    """A file's entries: their names, in its order, and how to get one."""

    def __init__(self, file: str, names: Iterable[str], get: Callable[[str], Any]) -> None:
        self.file, self.names, self._get = file, dict.fromkeys(names), get
        self._digests = all(re.fullmatch("[0-9a-f]{64}", name) for name in self.names)
        self._images: dict[str, Path] = {}

    def read(self, name: str) -> np.ndarray:
        """An entry as float32. Raises ImageError if it does not hold numbers."""
        try:
            return np.array(self._get(name), dtype=np.float32, order="C")
        except Exception as error:  # three libraries, each with errors of its own
            raise ImageError(f"{self.file}: {name} is not an array of numbers: {_first_line(error)}") from error

    def find(self, image: Path) -> str | None:
        """The entry of an image file, by its absolute path. Raises ImageError where two images would share it."""
        if self._digests:
            digest = digest_file(image)
            return digest if digest in self.names else None
        parts = (*image.parent.parts, image.name)
        ends = (os.path.join(*parts[start:]) for start in range(len(parts)))
        found = next(
            (name for end in ends for name in (end, end.removesuffix(image.suffix)) if name in self.names), None
        )
        if found is not None and (other := self._images.setdefault(found, image)) != image:
            raise ImageError(f"{image}: {found} in {self.file} may also be {other}; name entries by more of the path")
        return found


def _open(file: str) -> _Entries:
    """The entries of a file as it is now. Each process opens it for itself: forks cannot share an open zip file."""
    return _read_entries(file, file_state(file), os.getpid())


@lru_cache(maxsize=4)
def _read_entries(file: str, _state: Any, _process: int) -> _Entries:
    path = Path(file)
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            tensors: Any = safe_open(path, "pt")
            return _Entries(file, tensors.keys(), lambda name: tensors.get_tensor(name).float().numpy())
        if path.suffix == ".npz":
            arrays = np.load(path, allow_pickle=False)
            return _Entries(file, arrays.files, arrays.__getitem__)
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(path, columns=["image", "features"])
        rows = {name: row for row, name in enumerate(table["image"].to_pylist())}
        if len(rows) < table.num_rows:
            raise RadDraftError(f"{path}: {table.num_rows - len(rows)} images stand in more than one row")
        features = table["features"]
        return _Entries(file, rows, lambda name: features[rows[name]].as_py())
    except RadDraftError:
        raise
    except Exception as error:
        raise RadDraftError(f"{path} cannot be read as {path.suffix} features: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
