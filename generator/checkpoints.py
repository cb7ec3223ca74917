"""The run folder: the log, the best weights, and checkpoints that a killed run goes on from to the last bit."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from encoder.files import cut_log, whole_folder
from encoder.sharding import gather, load_run_state, load_tensors, run_state
from encoder.studies import write_whole

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Progress:
    """Where a run stands."""

    stage: int = 0
    step: int = 0
    """Optimiser steps done in this stage."""
    best: float = math.inf
    """Lowest validation loss of this stage."""
    bad_rounds: int = 0
    """Validations in a row that brought no lower loss."""
    stopped: bool = False
    """Whether patience has run out in this stage."""


class RunFolder:
    """Reads and writes a run folder; only parameters that ever trained are kept in checkpoints.

    A checkpoint is written under a temporary name and renamed, and the one before it is removed only then, so a run
    that is killed at any moment finds a whole one.
    """

    def __init__(self, folder: Path, accelerator: Accelerator) -> None:
        self.folder, self.accelerator = folder, accelerator
        self.trained: set[str] = set()
        """Names of the parameters that trained in any stage so far."""
        self.earlier_steps = 0
        """Of the stages before this one, for trackers, whose steps have to rise."""
        self._checkpoints = folder / "checkpoints"
        self._best = self._checkpoints / "best.safetensors"
        if accelerator.is_main_process:
            self._checkpoints.mkdir(parents=True, exist_ok=True)
        accelerator.wait_for_everyone()

    @property
    def newest(self) -> Path | None:
        """The newest checkpoint, or None."""
        return max(self._checkpoints.glob("stage-*-step-*"), default=None)

    def resume(self) -> Progress:
        """Where to go on; log lines of steps that will be done again are cut off."""
        newest = self.newest
        progress = Progress(**json.loads((newest / "progress.json").read_text())) if newest else Progress()
        done = (progress.stage, progress.step)
        if self.accelerator.is_main_process:
            cut_log(self.folder / "log.jsonl", lambda row: (row["stage"], row["step"]) <= done)
        if newest:
            self.accelerator.print(f"resuming from {newest}")
        return progress

    def restore(self, model: nn.Module, optimizer: Any = None) -> None:
        """Load the newest checkpoint, if any: the weights, or with an optimizer its state and the random state."""
        newest = self.newest
        if newest is None:
            return
        if optimizer is None:
            load_tensors(model, load_file(newest / "weights.safetensors"))
            return
        load_run_state(torch.load(newest / "state.pt", weights_only=True), self.accelerator, optimizer)

    def save(self, model: nn.Module, progress: Progress, optimizer: Any = None) -> None:
        """Write a checkpoint; without an optimizer it marks the beginning of a stage."""
        weights, state = self._gather(model), run_state(self.accelerator, optimizer)
        if self.accelerator.is_main_process:
            name = f"stage-{progress.stage:02d}-step-{progress.step:08d}"
            old = list(self._checkpoints.glob("stage-*-step-*"))
            with whole_folder(self._checkpoints / name) as temporary:
                save_file(weights, temporary / "weights.safetensors")
                (temporary / "progress.json").write_text(json.dumps(asdict(progress)))
                torch.save(state, temporary / "state.pt")
            for checkpoint in old:
                if checkpoint.name != name:
                    shutil.rmtree(checkpoint)
        self.accelerator.wait_for_everyone()

    def save_best(self, model: nn.Module) -> None:
        """Keep these weights as the best of the stage."""
        weights = self._gather(model)
        if self.accelerator.is_main_process:
            with write_whole(self._best) as temporary:
                save_file(weights, temporary)
        self.accelerator.wait_for_everyone()

    def load_best(self, model: nn.Module) -> None:
        """Go back to the best weights of the stage."""
        load_tensors(model, load_file(self._best))

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to log.jsonl and report it to the trackers."""
        numbers = {name: value for name, value in row.items() if name not in ("stage", "step")}
        self.accelerator.log(numbers | {"stage": row["stage"]}, step=self.earlier_steps + row["step"])
        if self.accelerator.is_main_process:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _gather(self, model: nn.Module) -> dict[str, torch.Tensor]:
        named = dict(model.named_parameters())
        return gather(((name, named[name]) for name in sorted(self.trained)), self.accelerator)
