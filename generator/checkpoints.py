"""Where a run of stages stands, and checkpoints of the parameters that trained."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from raddraft.runs import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Progress:
    """Where a run stands."""

    stage: int = 0
    step: int = 0
    """Optimizer steps done in this stage."""
    best: float = math.inf
    """Lowest validation loss of this stage."""
    bad_rounds: int = 0
    """Validations in a row without a lower loss."""
    stopped: bool = False
    """Whether patience has run out in this stage."""


class StagedRun(RunFolder):
    """A run folder of stages; its checkpoints hold the parameters that trained in any stage so far."""

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        super().__init__(folder, accelerator)
        self.trained: set[str] = set()
        """Names of the parameters that trained so far."""
        self.earlier_steps = 0
        """Steps of the stages before this one, for trackers, whose steps have to rise."""

    def find_progress(self) -> Progress:
        """Where to resume; rows of the log whose steps run again are cut."""
        progress = Progress(**self.read_progress())
        self.resume(lambda row: (row["stage"], row["step"]) <= (progress.stage, progress.step))
        return progress

    def save_progress(self, model: nn.Module, progress: Progress, optimizer: Any = None) -> None:
        """Write a checkpoint; without an optimizer it marks the beginning of a stage."""
        name = f"stage-{progress.stage:02d}-step-{progress.step:08d}"
        self.save(name, self.select(model), asdict(progress), optimizer)

    def select(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The parameters that trained, by name."""
        named = dict(model.named_parameters())
        return ((name, named[name]) for name in sorted(self.trained))
