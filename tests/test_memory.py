"""Ways to train in less memory: activations computed twice, and a language model held in 4 bits."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch

from encoder.towers import load_tower
from generator.config import LoraConfig, ModelConfig, Stage, TrainConfig
from generator.model import build, load
from generator.prompts import PromptConfig
from generator.train import train
from raddraft.studies import read_studies
from tests.test_train import evaluate, losses


@pytest.fixture
def parts(studies_file) -> dict:
    return {split: read_studies(studies_file, split)[:8] for split in ("train", "val")}


def recipe(**changes) -> TrainConfig:
    stages = [Stage(lr=1e-2, warmup=0), Stage(epochs=3, lr=1e-2, lm="lora", warmup=0)]
    lora = LoraConfig(rank=4, dropout=0.1)
    return TrainConfig(stages=stages, lora=lora, batch_size=8, micro_batch_size=4, workers=0, **changes)


def test_activations_computed_twice_give_the_same_numbers(
    parts, tower_folder, lm_folder, tmp_path, monkeypatch
) -> None:
    from transformers.models.llama.modeling_llama import LlamaMLP

    calls, forward = [0], LlamaMLP.forward

    def counted(self, x):
        calls[0] += self.training
        return forward(self, x)

    monkeypatch.setattr(LlamaMLP, "forward", counted)
    counts = []
    for name, again in (("kept", False), ("again", True)):
        calls[0] = 0
        config = recipe(activation_checkpointing=again)
        train(parts, tmp_path / name, ModelConfig(str(tower_folder), str(lm_folder)), PromptConfig(), config)
        counts.append(calls[0])
    assert counts[1] == 2 * counts[0] > 0, "every block of the language model runs once more for the backward pass"
    assert losses(tmp_path / "kept") == losses(tmp_path / "again"), "dropout is drawn alike"


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_without_bitsandbytes_four_bits_are_refused(tower_folder, lm_folder) -> None:
    with pytest.raises(ValueError, match=r"model\.quantize is 'nf4', which needs a package: pip install bitsandbytes"):
        build(ModelConfig(str(tower_folder), str(lm_folder), quantize="nf4"))


def test_a_packed_language_model_cannot_train_as_a_whole(parts, tower_folder, lm_folder, tmp_path) -> None:
    config = TrainConfig(stages=[Stage(lm="full")])
    with pytest.raises(ValueError, match=r"model\.quantize is nf4: the language model can train by lm: lora only"):
        train(parts, tmp_path, ModelConfig(str(tower_folder), str(lm_folder), quantize="nf4"), PromptConfig(), config)


def test_qlora_trains_on_four_bits_and_saves_a_whole_model(parts, tower_folder, tmp_path) -> None:
    pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
    from tests.test_model import save_lm

    lm = save_lm("Llama-bos", tmp_path / "lm", hidden_size=64, intermediate_size=128)  # 4-bit blocks hold 64 weights
    model_config = ModelConfig(str(tower_folder), str(lm), quantize="nf4")
    folder = train(parts, tmp_path / "run", model_config, PromptConfig(), recipe())
    rows = losses(tmp_path / "run")
    assert all(row[4] > 0 for row in rows if row[4] is not None), "gradients pass through packed weights"
    validation = [row[3] for row in rows if row[3] is not None]
    assert min(validation) < 0.8 * validation[0]
    drafter = load(folder)
    assert {parameter.dtype for parameter in drafter.model.parameters()} == {torch.float32}
    assert evaluate(drafter, parts["val"]) == pytest.approx(min(validation), rel=0.1)  # adapters on whole weights
    tower = load_tower(str(tower_folder)).model.state_dict()
    assert all(torch.equal(value, tower[name]) for name, value in drafter.tower.model.state_dict().items())
