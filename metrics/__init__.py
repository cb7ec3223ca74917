"""Scores of radiology reports, from any system's drafts.

from metrics import score

score(["The heart is enlarged."], ["Cardiomegaly."])["metrics"]["rouge_l"]["value"]
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    if name != "score":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from metrics.scoring import score

    return score
