"""Reads the signs by which a run of pre-training tells that its tower collapses: images get one answer, or none."""

from __future__ import annotations

from collections.abc import Mapping

LEAST_INFORMATION = 0.01
"""Nats that the teacher's answers tell about an image, below which they say nothing. On phantoms a good run had 0.12 or
more; two that were made to collapse, to one answer and to all prototypes alike, were below for at least 50 steps."""
ROWS = 5
"""Rows of the log in a row that are needed to call it a collapse."""


class CollapseWatch:
    """Reads the signs as they are logged, and says once when a run has collapsed.

    Answers that say nothing count after the warm-up, or once they have said something, since those of a random head say
    little at first.

    Args:
        warmup: steps.
    """

    def __init__(self, warmup: int) -> None:
        self.warmup, self.told, self.low, self.most = warmup, False, 0, 0.0

    def look(self, step: int, signs: Mapping[str, float]) -> str | None:
        """A sentence at the row of the log by which the run has collapsed, else None."""
        information = signs["mean_entropy"] - signs["teacher_entropy"]
        self.most = max(self.most, information)
        counts = step > self.warmup or self.most > 10 * LEAST_INFORMATION
        self.low = self.low + 1 if counts and information < LEAST_INFORMATION else 0
        if self.low < ROWS or self.told:
            return None
        self.told = True
        return (
            f"step {step}: the run has collapsed: the teacher's answers tell images apart by {information:.4f} nats "
            f"(mean_entropy less teacher_entropy), mean cosine of class tokens {signs['cosine']:.3f}"
        )
