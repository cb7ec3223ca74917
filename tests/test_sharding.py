"""Preparing a model for one process or several; runs on two processes are in test_train.py and test_pretrain.py."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from raddraft.errors import RadDraftError
from raddraft.processes import check_launch, prepare_model, release_model


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


def test_processes_that_accelerate_has_not_found_are_refused(monkeypatch) -> None:
    """Without a GPU, `accelerate launch` starts processes that know nothing of each other."""
    accelerator = Accelerator(cpu=True)
    assert check_launch(accelerator) is accelerator
    monkeypatch.setenv("WORLD_SIZE", "4")
    with pytest.raises(
        RadDraftError, match=r"WORLD_SIZE states 4 processes, and Accelerate has found 1: .* ACCELERATE_USE_CPU"
    ):
        check_launch(accelerator)
