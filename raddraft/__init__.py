"""RadDraft in Python: draft reports from chest X-rays, load encoders, score drafts, compare encoders.

    import raddraft

    model = raddraft.load_model("runs/demo/model")
    print(model.draft("film.dcm"))

What is loaded on first use: `load_model`, `load_tower`, `read_image`, `score`, `compare`, `RadDraftError`. Every draft
is for a radiologist to check.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any

_HOMES = {
    "RadDraftError": ("raddraft.errors", "RadDraftError"),
    "read_image": ("raddraft.images", "load_image"),
    "load_tower": ("encoder.towers", "load_tower"),
    "load_model": ("generator.api", "load_model"),
    "score": ("metrics", "score"),
    "compare": ("generator.compare", "compare"),
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'raddraft' has no attribute {name!r}. Choices: {', '.join(_HOMES)}")
    module, attribute = _HOMES[name]
    if not module.startswith("raddraft."):
        _check_rooms()
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]


def _check_rooms() -> None:
    """Raise RadDraftError if somebody else's module has the name of one of this project's packages and hides it."""
    from raddraft.errors import RadDraftError

    root = Path(__file__).resolve().parent.parent
    for room in ("encoder", "metrics", "generator"):
        spec = importlib.util.find_spec(room)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found and found != root / room / "__init__.py":
            raise RadDraftError(
                f"{found} has the name of RadDraft's package {room!r} and hides it: rename that file, or start Python "
                "in another folder"
            )
