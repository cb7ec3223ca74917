"""What training runs share: checks, studies, learning rates and weight decay, where they stand, their checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor, nn

from raddraft.errors import RadDraftError
from raddraft.runs import RunFolder
from raddraft.schedules import cosine
from raddraft.studies import Study, count_splits, read_studies

if TYPE_CHECKING:
    from accelerate import Accelerator

    from generator.config import ModelConfig, TrainConfig


@dataclass
class Progress:
    """Where a run stands."""

    stage: int = 0
    step: int = 0
    """Optimizer steps done in this stage."""
    best: float = math.inf
    """Lowest validation loss of this stage; of a reward stage minus the metric that chooses its weights."""
    bad_rounds: int = 0
    """Validations in a row without a lower loss."""
    stopped: bool = False
    """Whether patience has run out in this stage."""
    flat: int = 0
    """Steps in a row of a reward stage in which no group had drafts of different rewards."""
    counts: dict[str, list[list[float]]] = field(default_factory=dict)
    """Of a reward stage, `generator.rewards.Counts` of its drafts of late."""

    @property
    def begun(self) -> bool:
        """Whether the stage has taken a step, or validated before its first."""
        return self.step > 0 or math.isfinite(self.best)


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
        last = progress.step if progress.begun else -1  # a validation before the first step runs again
        self.resume(lambda row: (row["stage"], row["step"]) <= (progress.stage, last))
        return progress

    def save_progress(self, model: nn.Module, progress: Progress, optimizer: Any = None) -> None:
        """Write a checkpoint; without an optimizer it marks the beginning of a stage."""
        name = f"stage-{progress.stage:02d}-step-{progress.step:08d}"
        if progress.begun and not progress.step:
            name += "-validated"  # a name of its own: the checkpoint of the beginning goes when this one is whole
        self.save(name, self.select(model), asdict(progress), optimizer)

    def note(self, progress: Progress, numbers: dict[str, float]) -> None:
        """Log numbers of the step that `progress` has reached."""
        self.log({"stage": progress.stage, "step": progress.step} | numbers, self.earlier_steps + progress.step)

    def select(self, model: nn.Module) -> Iterator[tuple[str, Tensor]]:
        """The parameters that trained, by name."""
        named = dict(model.named_parameters())
        return ((name, named[name]) for name in sorted(self.trained))


def split_studies(manifest: Path, sources: list[str] | None = None) -> dict[str, list[Study]]:
    """The train and val studies of a manifest, of all sources or of some.

    Raises:
        RadDraftError: as `read_studies`; no study of these sources, or none in the train split.
    """
    studies = read_studies(manifest)
    wanted = [study for study in studies if sources is None or study.source in sources]
    if not wanted:
        known = ", ".join(sorted({study.source or "none stated" for study in studies}))
        raise RadDraftError(f"{manifest}: no study of source {', '.join(sources or [])}; its sources: {known}")
    counts = count_splits(wanted)
    if not counts["train"]:
        raise RadDraftError(
            f"{manifest}: no study in split 'train' (val {counts['val']}, test {counts['test']}); for images of your "
            "own, `raddraft prepare folder … --split random` makes the splits"
        )
    return {split: [study for study in wanted if study.split == split] for split in ("train", "val")}


def check_types(model: ModelConfig, config: TrainConfig) -> None:
    """Check that what a model is made of goes with how it trains.

    Raises:
        RadDraftError: data types or 4-bit weights that cannot train so; standardized features for a trained projector.
    """
    if config.standardize and model.vlm:
        raise RadDraftError(
            f"train.standardize is for a new projector; {model.vlm} has one that reads features as they are"
        )
    if model.dtype == "bfloat16" and config.precision != "bf16":
        raise RadDraftError("model.dtype is bfloat16, so train.precision must be bf16")
    if model.quantize != "no" and any(stage.lm == "full" for stage in config.stages):
        raise RadDraftError(f"model.quantize is {model.quantize}: the language model can train by lm: lora only")
    if model.quantize != "no" and config.shard:
        raise RadDraftError(
            f"model.quantize is {model.quantize}: 4-bit weights cannot be sharded; set train.shard: false"
        )


def lr_factor(step: int, steps: int, warmup: float, schedule: Literal["cosine", "constant"] = "cosine") -> float:
    """Fraction of the peak learning rate at `step` (from 0): linear warm-up, then constant or half a cosine to zero."""
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    return 1.0 if schedule == "constant" else cosine(1.0, 0.0, step - warmup_steps, steps - warmup_steps)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """The trainable parameters, with weight decay on matrices only: not on biases, norms or scalars."""
    training = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in training if parameter.ndim >= 2]
    vectors = [parameter for parameter in training if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
