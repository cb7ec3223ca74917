"""Devices, types, and preparing a model for processes; two processes run in test_train.py and test_pretrain.py."""

from __future__ import annotations

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState

from encoder.config import EncoderConfig
from raddraft import processes
from raddraft.errors import RadDraftError
from raddraft.processes import check_launch, make_accelerator, prepare_model, release_model, warn_if_slow


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


def test_a_cpu_that_is_slow_in_16_bits_says_so(monkeypatch, recwarn, tower_folder, tmp_path) -> None:
    """Emulated bfloat16 made a training step fifteen times as long, without a word."""
    warn_if_slow.cache_clear()
    monkeypatch.setattr(processes, "SLOW", 0)  # every CPU is
    warn_if_slow(torch.float32, "cpu")
    warn_if_slow(torch.bfloat16, "cuda:0")
    assert not recwarn
    with pytest.warns(UserWarning, match=r"bfloat16 is slow on this CPU: a matrix product takes \d+ times as long"):
        EncoderConfig(tower=str(tower_folder), precision="bfloat16", device="cpu").load()
    warn_if_slow.cache_clear()
    AcceleratorState._reset_state()
    PartialState._reset_state()
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.warns(UserWarning, match=r"Use float32 .in training: precision no."):
        make_accelerator(tmp_path, "bf16", [], "train.shard")
    warn_if_slow.cache_clear()
    AcceleratorState._reset_state()
    PartialState._reset_state()
    monkeypatch.setattr(processes, "SLOW", 1e9)
    warn_if_slow(torch.bfloat16, "cpu")
    assert not [one for one in recwarn if "slow on this CPU" in str(one.message)]
