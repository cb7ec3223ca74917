"""Rows of numbers on disk, one for each image: memory-mapped, append-only, resumable.

    FOLDER/part-0.bin      row after row
    FOLDER/part-0.jsonl    SHA-256 of the image of each row; further parts are written by other processes

A row is the two vectors of an image, then perhaps its tokens. In float8 the vectors are float16, and each token has a
scale of its own: its largest value is float8's largest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock

from encoder.config import DType
from encoder.digests import whole_lines
from raddraft.files import parse_value

N_VECTORS = 2
"""Vectors at the start of a row: the pooled one and the mean patch."""
FLOAT8 = torch.float8_e4m3fn
FLOAT8_MAX = torch.finfo(FLOAT8).max


@dataclass(frozen=True)
class Form:
    """How a row lies on disk."""

    n_tokens: int
    """After the two vectors; may be 0."""
    width: int
    dtype: DType

    @property
    def vector_bytes(self) -> int:
        """Of the two vectors."""
        return N_VECTORS * self.width * (2 if self.dtype == "float8" else getattr(torch, self.dtype).itemsize)

    @property
    def row_bytes(self) -> int:
        """Of a whole row."""
        if self.dtype == "float8":
            return self.vector_bytes + self.n_tokens * (self.width + 4)
        return self.vector_bytes // N_VECTORS * (N_VECTORS + self.n_tokens)

    def pack(self, rows: torch.Tensor) -> torch.Tensor:
        """Finite rows [n, 2 + T, D] as bytes [n, row_bytes]; OverflowError where the type cannot hold a value."""
        eight = self.dtype == "float8"
        kept = rows[:, :N_VECTORS].half() if eight else rows.to(getattr(torch, self.dtype))
        if not kept.isfinite().all():
            raise OverflowError(f"values too large for {kept.dtype}")
        if not eight:
            return _bytes(kept)
        tokens = rows[:, N_VECTORS:].float()
        scales = (tokens.abs().amax(-1, keepdim=True) / FLOAT8_MAX).clamp_min(torch.finfo(torch.float32).tiny)
        return torch.cat([_bytes(kept), _bytes(scales), _bytes((tokens / scales).to(FLOAT8))], dim=1)

    def vectors(self, row: torch.Tensor) -> torch.Tensor:
        """The two vectors [2, D] of the bytes of a row, or of their beginning."""
        dtype = torch.float16 if self.dtype == "float8" else getattr(torch, self.dtype)
        return row[: self.vector_bytes].view(dtype).view(N_VECTORS, self.width)

    def tokens(self, row: torch.Tensor) -> torch.Tensor:
        """The tokens [T, D] of the bytes of a row, in the type of the rows; of float8 in float32."""
        rest = row[self.vector_bytes :]
        if self.dtype != "float8":
            return rest.view(getattr(torch, self.dtype)).view(self.n_tokens, self.width)
        scales, values = rest.split([4 * self.n_tokens, self.n_tokens * self.width])
        values = values.view(FLOAT8).view(self.n_tokens, self.width).float()
        return values * scales.view(torch.float32)[:, None]


def _bytes(rows: torch.Tensor) -> torch.Tensor:
    """[n, ...] as bytes [n, m]."""
    return rows.flatten(1).contiguous().view(torch.uint8)


Place = tuple[str, int]
"""Name of a part, and number of a row in it."""


def find_rows(folder: Path, form: Form) -> dict[str, Place]:
    """Digest of an image -> its row, of all rows in a folder that are whole."""
    found: dict[str, Place] = {}
    for index in sorted(folder.glob("part-*.jsonl")):
        part = index.with_suffix(".bin")
        n_rows = part.stat().st_size // form.row_bytes if part.is_file() else 0
        for row, line in enumerate(whole_lines(index)[:n_rows]):
            digest = parse_value(
                line, f"{index} line {row + 1}", str, f"remove {folder}, and its features are made again"
            )
            found.setdefault(digest, (part.name, row))
    return found


class Writer:
    """Appends rows to a part of a folder, as a context manager.

    Writers of the same part wait for each other: rows of two at once would not match the index. What an interrupted one
    left behind the last whole row is cut off.
    """

    def __init__(self, part: Path, form: Form) -> None:
        self.part, self.form, self.index = part, form, part.with_suffix(".jsonl")
        self.lock = FileLock(f"{part}.lock")
        self.n_rows = 0

    def __enter__(self) -> Writer:
        self.lock.acquire()
        for path in (self.part, self.index):
            path.touch()
        lines = whole_lines(self.index)[: self.part.stat().st_size // self.form.row_bytes]
        self.n_rows = len(lines)
        os.truncate(self.part, self.n_rows * self.form.row_bytes)
        os.truncate(self.index, sum(map(len, lines)))
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def append(self, digests: Sequence[str], rows: torch.Tensor) -> dict[str, Place]:
        """Rows [n, 2 + T, D] and the digests of their images; where they are. Raises OverflowError as `Form.pack`."""
        packed = self.form.pack(rows).numpy()
        with open(self.part, "ab") as part, open(self.index, "a", encoding="utf-8") as index:
            part.write(packed.tobytes())
            part.flush()
            index.write("".join(json.dumps(digest) + "\n" for digest in digests))
        places = {digest: (self.part.name, self.n_rows + row) for row, digest in enumerate(digests)}
        self.n_rows += len(digests)
        return places
