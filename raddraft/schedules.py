"""Schedules of learning rates and other hyperparameters over the steps of a run."""

from __future__ import annotations

import math


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """The value at `step` on half a cosine: `start` at step 0, `end` at step `steps` and after.

    >>> [round(cosine(1.0, 0.0, step, 4), 3) for step in range(6)]
    [1.0, 0.854, 0.5, 0.146, 0.0, 0.0]
    """
    if step >= steps:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def linear(start: float, end: float, step: int, steps: int) -> float:
    """The value at `step` on a line: `start` at step 0, `end` at step `steps - 1` and after."""
    if step >= steps:
        return end
    return start + (end - start) * step / max(1, steps - 1)
