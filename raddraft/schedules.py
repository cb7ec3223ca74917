"""Schedules of learning rates and other hyperparameters over the steps of a run."""

from __future__ import annotations

import math


def cosine(start: float, end: float, step: int, steps: int) -> float:
    """The value at `step` on half a cosine: `start` at step 0, `end` at step `steps` and after."""
    if step >= steps:
        return end
    return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / steps))


def linear(start: float, end: float, step: int, steps: int) -> float:
    """The value at `step` on a line: `start` at step 0, `end` at step `steps - 1` and after."""
    if step >= steps:
        return end
    return start + (end - start) * step / max(1, steps - 1)
