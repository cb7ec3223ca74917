"""GPU models, and what a planned run takes on them: for --dry-run of training and pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Gpu = Literal["rtx4090", "a10", "l40s", "a100-40gb", "a100", "h100", "h200", "b200"]
GPUS: dict[Gpu, tuple[float, int, float]] = {
    "rtx4090": (165e12, 24, 1.01e12),
    "a10": (125e12, 24, 0.60e12),
    "l40s": (362e12, 48, 0.86e12),
    "a100-40gb": (312e12, 40, 1.56e12),
    "a100": (312e12, 80, 2.04e12),
    "h100": (989e12, 80, 3.35e12),
    "h200": (989e12, 141, 4.8e12),
    "b200": (2250e12, 192, 8.0e12),
}
"""Name -> peak of dense 16-bit tensor-core operations in FLOP/s, memory in GiB and its bandwidth in bytes/s, as in the
vendor's data sheets."""


def run_hours(flops: float, gpu: Gpu, gpus: int, utilization: float) -> float:
    """Hours that `gpus` GPUs take for so many operations at a share (0 to 1) of their peak."""
    return flops / (gpus * GPUS[gpu][0] * utilization) / 3600


def describe_gpus(gpu: Gpu, gpus: int, utilization: float) -> str:
    """The GPUs and their assumed speed: 8 x h100: 989 TFLOP/s peak (16-bit), 40% utilization assumed."""
    peak = GPUS[gpu][0] / 1e12
    return f"{gpus} x {gpu}: {peak:g} TFLOP/s peak (16-bit), {utilization:.0%} utilization assumed"


def describe_memory(parts: Mapping[str, float], gpu: Gpu) -> str:
    """Memory per GPU, in GiB by part: 12.3 GiB per GPU (weights 4.0, activations 8.3)."""
    total, size = sum(parts.values()), GPUS[gpu][1]
    excess = "" if total < size else f", more than the {size} GiB of one {gpu}"
    return f"{total:.1f} GiB per GPU{excess} ({', '.join(f'{part} {value:.1f}' for part, value in parts.items())})"
