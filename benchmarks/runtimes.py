"""Is a tower faster in ONNX Runtime or OpenVINO than in PyTorch? In float32 on one thread, with the same features.

    python -m benchmarks.runtimes --tower dinov2-folder --image-size 224

Needs onnx, onnxruntime and openvino, to be installed for it. The runtimes take turns, and the fastest turn of each
counts, in seconds of the processor, so that other jobs on the machine hardly matter.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import nn

from encoder.towers import load_tower
from raddraft.errors import RadDraftError

NEEDED = ("onnx", "onnxruntime", "openvino")


class LastState(nn.Module):
    """The final hidden state of a vision transformer: [B, 3, H, W] -> [B, T, D]."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """pixel_values [B, 3, H, W] -> [B, T, D]."""
        return self.model(pixel_values=pixel_values).last_hidden_state


def main(tower: str, image_size: int | None = None, batch_size: int = 4, turns: int = 5) -> int:
    """Print the speed of each runtime as a ratio; the exit status is 1 if features differ by more than 1e-3.

    Args:
        tower: A vision transformer: short name, hub id or folder.
        image_size: Side in pixels of its input; by default its own.
        batch_size: Images at a time.
        turns: Batches of each runtime.
    """
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        raise RadDraftError(f"This bench needs other packages: pip install {' '.join(missing)}")
    torch.set_num_threads(1)
    loaded = load_tower(tower, image_size)
    pixels = torch.randn(batch_size, *loaded.black_pixels.shape[1:], generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as temporary:
        ways = runtimes(LastState(loaded.model).eval(), pixels, Path(temporary) / "tower.onnx")
        features = {name: way() for name, way in ways.items()}
        seconds = dict.fromkeys(ways, np.inf)
        for _ in range(turns):
            for name, way in ways.items():
                started = time.process_time()
                way()
                seconds[name] = min(seconds[name], time.process_time() - started)
    own = features["PyTorch"]
    apart = {name: float(np.abs(one - own).max()) for name, one in features.items()}
    for name, value in seconds.items():
        speed = f"{batch_size / value:.1f} images a second, {seconds['PyTorch'] / value:.2f} times PyTorch"
        print(f"{name}: {speed}; features differ by {apart[name]:.1g}, of {np.abs(own).max():.1f} at most")
    return 0 if max(apart.values()) < 1e-3 else 1


def runtimes(model: nn.Module, pixels: torch.Tensor, file: Path) -> dict[str, Callable[[], Any]]:
    """Name -> what gives the model's output for the pixels, in float32 on one thread; `file` is written."""
    import onnxruntime
    import openvino

    given = pixels.numpy()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing tells of every size that it takes as fixed
        torch.onnx.export(model, (pixels,), str(file), input_names=["pixel_values"], dynamo=False)
        converted = openvino.convert_model(model, example_input=pixels)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    exact = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(converted, "CPU", exact)

    @torch.inference_mode()
    def eager() -> Any:
        return model(pixels).numpy()

    return {
        "PyTorch": eager,
        f"ONNX Runtime {onnxruntime.__version__}": lambda: session.run(None, {"pixel_values": given})[0],
        f"OpenVINO {openvino.__version__.split('-')[0]}": lambda: compiled([given])[0],
    }


if __name__ == "__main__":
    from raddraft.cli import run

    run("runtimes", package="benchmarks")
