"""Tensors of a pickled checkpoint that holds more than tensors, without running anything that the file names.

`torch.load(weights_only=True)` refuses such files: whole modules (torchxrayvision's DenseNets), a loss scaler, NumPy's
numbers. Here only torch's own functions that put tensors together are called; whatever else the file asks for becomes
an inert placeholder, so the file's classes need not be installed and cannot do anything.
"""

from __future__ import annotations

import pickle
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

HARMLESS = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor"): torch._utils._rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}
"""What torch's files of tensors call."""


class Inert(dict):
    """Takes the place of any other class, function or object: keeps what the file puts into it and does nothing."""

    dump_patches = False  # torch asks a module's class

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __call__(self, *_: Any, **__: Any) -> Inert:
        """As functions have it."""
        return Inert()

    def append(self, _: Any) -> None:
        """As lists have it."""

    def extend(self, _: Any) -> None:
        """As lists have it."""

    __hash__ = object.__hash__  # type: ignore[assignment]

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        """Of a module: its parameters and buffers by name, those of the modules in it too."""
        parts = self.state if isinstance(self.state, dict) else {}
        for kind in ("_parameters", "_buffers"):
            for name, value in (parts.get(kind) or {}).items():
                if isinstance(value, torch.Tensor):
                    yield f"{prefix}{name}", value.detach()
        for name, module in (parts.get("_modules") or {}).items():
            if isinstance(module, Inert):
                yield from module.tensors(f"{prefix}{name}.")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = HARMLESS.get((module, name))
        if found is None and module == "torch" and isinstance(kind := getattr(torch, name, None), torch.dtype):
            return kind
        return found or Inert


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_PICKLE: Any = SimpleNamespace(__name__="raddraft", Unpickler=_Unpickler, load=_load)


def load_inert(path: Path) -> Any:
    """What `torch.load` makes of a file, with placeholders for all but tensors, plain values and containers.

    Of a file that is a module, its tensors by name.

    Raises:
        Exception: of many kinds, if it is not a checkpoint.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch compares the source of modules with the placeholder's
        content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_PICKLE)
    return dict(content.tensors()) if isinstance(content, Inert) and content.state else content
