"""Preparing a model for one process or several; runs on two processes are in test_train.py and test_pretrain.py."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from raddraft.processes import prepare_model, release_model


class Typed(torch.nn.Linear):
    """Keeps the type that its product had."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        self.computed = y.dtype
        return y


def test_mixed_precision_lasts_from_stage_to_stage() -> None:
    AcceleratorState._reset_state()
    PartialState._reset_state()
    accelerator, model = Accelerator(cpu=True, mixed_precision="bf16"), Typed(4, 4)
    for _ in range(3):
        wrapped = prepare_model(model, accelerator, shard=False)
        assert wrapped(torch.zeros(1, 4)).dtype == torch.float32
        assert model.computed == torch.bfloat16
        release_model(model, wrapped, accelerator)
    model(torch.zeros(1, 4))
    assert model.computed == torch.float32
    AcceleratorState._reset_state()
    PartialState._reset_state()
