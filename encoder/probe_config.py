"""Settings of probes and segmentation heads on frozen features. Imports nothing heavy, so that help is fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from raddraft.errors import RadDraftError
from raddraft.ranges import Amount, Count, Positive, Range, Whole, check_ranges

Kind = Literal["multilabel", "multiclass", "regression"]
Pooling = Literal["class", "mean", "both", "attention"]
HeadName = Literal["linear", "upernet", "vitdet"]
Grid = Literal["input", "image"]

DECAYS = {"lbfgs": (1e5, 1e4, 1e3, 1e2, 1e1, 1.0, 0.1), "adamw": (1.0, 1e-2, 1e-4), "knn": (0.0,)}


@dataclass(frozen=True)
class TargetSpec:
    """What a probe predicts."""

    targets: tuple[str, ...]
    """Findings; otherwise fields: patient.sex, patient.age, image.view, source, or any key of the study, with dots for
    nested keys."""
    kind: Literal["multilabel", "binary", "multiclass", "regression"] = "multilabel"
    """multilabel: findings, each by itself; binary: one finding; multiclass: one categorical field, with the classes
    of the train split; regression: numeric fields."""
    uncertain: Literal["drop", "positive", "negative"] = "drop"
    """What a label of -1 (uncertain) counts as."""
    missing: Literal["drop", "negative"] = "drop"
    """What a finding that is not mentioned counts as."""
    images: Literal["main", "frontal"] = "main"
    """The main image of each study, or all of its frontal images."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if not self.targets or (self.kind in ("binary", "multiclass") and len(self.targets) != 1):
            raise RadDraftError(f"A {self.kind} probe cannot have {len(self.targets)} targets: {self.targets}")


@dataclass(frozen=True)
class ProbeConfig:
    """How a probe is fitted and measured."""

    pooling: Pooling = "class"
    """Features that the probe sees: the class token, the mean patch, both, or (attention, AdamW only) a mean of the
    patches weighted by a learned query."""
    solver: Literal["lbfgs", "adamw", "knn"] = "lbfgs"
    """lbfgs: the optimum of scikit-learn's LogisticRegression, for regression of Ridge; adamw: trained for a number of
    epochs; knn: a vote of the nearest train images."""
    weight_decays: tuple[Amount, ...] | None = None
    """Weight decays to choose from on val, by the mean loss over all labels there: on a small split the loss is less
    noisy than rankings of a few positives. lbfgs: the penalty beside the sum of losses is this / 2 * |w|^2, as C =
    1 / this or alpha = this in scikit-learn, by default 0.1 to 1e5 in powers of ten; adamw: decoupled, by default 1e-4,
    1e-2 and 1."""
    max_iterations: Count = 500
    """Maximum number of L-BFGS iterations."""
    epochs: Count = 100
    """Passes of AdamW over the train split."""
    lr: Positive = 1e-3
    """Peak learning rate of AdamW; it falls to 0 along a cosine."""
    batch_size: Count = 256
    """Images per step of AdamW."""
    seeds: tuple[Whole, ...] = (0, 1, 2, 3, 4)
    """Seeds of AdamW's initial weights and order of images; results are averaged. The other solvers have none."""
    neighbors: Count = 20
    """Train images that vote in knn."""
    temperature: Positive = 0.07
    """Temperature of knn, as in DINO: an image votes with weight exp(cosine / temperature)."""
    resamples: Count = 500
    """Bootstrap resamples of the subjects, for the 95 % intervals."""
    resample_seed: Whole = 0
    """Seed of the bootstrap; encoders resampled with the same seed can be compared in pairs."""
    evaluate: Literal["val", "test"] = "test"
    """Split to measure on. val, for development: it cannot choose a weight decay or thresholds as well."""

    def __post_init__(self) -> None:
        check_ranges(self, "probe")
        if self.pooling == "attention" and self.solver != "adamw":
            raise RadDraftError(f"pooling 'attention' is learned: it needs solver 'adamw', not {self.solver!r}")
        if self.solver == "lbfgs" and min(self.decays) <= 0:
            raise RadDraftError(f"L-BFGS needs weight decays above 0, not {min(self.decays)}: there may be no optimum")
        if self.evaluate == "val" and len(self.decays) > 1:
            raise RadDraftError(f"With evaluate 'val' the weight decay cannot be chosen from {self.decays}; set one")

    @property
    def decays(self) -> tuple[float, ...]:
        """Weight decays to try, the strongest first."""
        return tuple(sorted(self.weight_decays or DECAYS[self.solver], reverse=True))


@dataclass(frozen=True)
class SegmentConfig:
    """The head that outlines structures, and how it is trained."""

    structures: tuple[str, ...]
    """Names of masks in the manifest. They may overlap; images that lack one of them are left out."""
    head: HeadName = "linear"
    """linear: a 1 x 1 convolution; vitdet: a feature pyramid on the last layer, summed; upernet: pyramid pooling and a
    top-down pathway (arXiv 1807.10221) on a pyramid of the stored layers in turn."""
    channels: Count = 128
    """Width of vitdet and upernet heads."""
    lr: Positive | None = None
    """Peak learning rate of AdamW; it falls to 0 along a cosine. By default 1e-2 for linear, 1e-3 for the others."""
    weight_decay: Amount = 0.01
    """Weight decay of AdamW."""
    epochs: Count = 40
    """Passes over the train split."""
    head_batch_size: Annotated[int, Range(3)] = 16
    """Images per training step of the head, at least 3: epochs are cut into equal batches, because batch normalization
    needs two or more images."""
    seeds: tuple[Whole, ...] = (0,)
    """Seeds of initial weights and order of images: one head is trained for each, and the scores of an image are
    averaged."""
    grid: Grid = "input"
    """Where test images are scored. input: as the tower sees them; image: on the pixel grid of the masks, where what
    the image processor cropped off counts as not drawn, which is fair between towers that crop differently."""
    resamples: Count = 500
    """Bootstrap resamples of the subjects, for the 95 % intervals."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.grid == "picture":
            raise RadDraftError("grid 'picture' was renamed to 'image'")
        for value, choices, what in ((self.head, HeadName, "head"), (self.grid, Grid, "grid")):
            if value not in get_args(choices):
                raise RadDraftError(f"Unknown {what} {value!r}. Choices: {', '.join(get_args(choices))}")
        if not self.structures or len(set(self.structures)) < len(self.structures):
            raise RadDraftError(f"structures must be one or more different names, got {list(self.structures)}")
        if "mean" in self.structures:
            raise RadDraftError("A structure cannot be named 'mean', the name of the mean over structures")
        if not self.seeds:
            raise RadDraftError("seeds must be one or more numbers, got none")
