"""Dry runs: counts of public models, every recipe on meta tensors, arithmetic against torch's own counter, memory."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from generator.config import LoraConfig, ModelConfig, Stage, TrainConfig
from generator.data import collate
from generator.model import Drafter, build, choose_trainable
from generator.plan import PROMPT_TOKENS, Load, describe, meta_model, plan
from generator.prompts import PromptConfig
from generator.sizes import LANGUAGE_MODELS, lm_config
from generator.train import summed_loss
from raddraft.grammar import CONFIGS
from raddraft.studies import read_studies
from tests.test_cli import run

VICUNA = "lmsys/vicuna-7b-v1.5"
PUBLISHED = {
    VICUNA: 6_738_415_616,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361_821_120,
    "Qwen/Qwen3-0.6B": 596_049_920,
    "google/gemma-3-270m-it": 268_098_176,
    "microsoft/Phi-4-mini-instruct": 3_836_021_760,
}


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_sizes_give_the_published_counts(name: str) -> None:
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(lm_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


def test_the_papers_model() -> None:
    config = TrainConfig(stages=[Stage(epochs=3, lm="full")], batch_size=128, cached=True)
    whole = plan(ModelConfig("rad-dino", VICUNA), config, Load(1280, 50))
    assert whole.parameters == {
        "tower": 86_580_480,
        "projector": (768 * 4096 + 4096) + (4096 * 4096 + 4096),
        "language model": PUBLISHED[VICUNA],
    }
    assert whole.image_tokens == 1369
    assert whole.tokens == 1369 + PROMPT_TOKENS + 80
    (stage,) = whole.stages
    assert stage.steps == 30
    assert stage.trainable == whole.parameters["projector"] + whole.parameters["language model"]
    assert stage.memory["moments"] == pytest.approx(stage.trainable * 8 / 2**30)
    eight = plan(ModelConfig("rad-dino", VICUNA), replace(config, shard=True), Load(1280, 50), "h100", 8).stages[0]
    assert eight.hours == pytest.approx(stage.hours / 8)
    assert eight.memory["weights"] == pytest.approx(stage.memory["weights"] / 8)
    assert eight.memory["activations"] == stage.memory["activations"]
    wide = plan(ModelConfig("rad-dino", VICUNA), config, Load(1280, 50, images=2.0))
    assert wide.tokens == whole.tokens + 1369
    four = Load(1280, 50, images=4.0)
    assert "5,596 tokens" in (text := describe(ModelConfig("rad-dino", VICUNA), config, four, "h100", 1))
    assert "more than the 4,096 tokens that the language model reads" in text
    again = plan(
        ModelConfig("rad-dino", VICUNA), replace(config, activation_checkpointing=True), Load(1280, 50)
    ).stages[0]
    assert again.memory["activations"] < 0.1 * stage.memory["activations"]
    assert 1.2 < again.flops / stage.flops < 1.4


@pytest.mark.parametrize("recipe", sorted(path.name for path in (CONFIGS / "report").glob("*.yaml")))
def test_every_recipe_instantiates_at_its_true_size(
    recipe, studies_file, tower_folder, lm_folder, tmp_path, capsys
) -> None:
    parts = ("--model.tower", tower_folder, "--model.lm", lm_folder) if recipe.startswith("tiny") else ()
    arguments = ("--config", CONFIGS / "report" / recipe, "--studies", studies_file, "--out", tmp_path / "run", *parts)
    assert run("train", *arguments, "--dry_run", "true", "--gpus", 8) == (0, "")
    printed = capsys.readouterr().out
    assert "language model" in printed
    assert "stage 1: " in printed
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "stage", [Stage(), Stage(lm="full"), Stage(lm="full", tower="full"), Stage(projector=False, lm="full")]
)
def test_arithmetic_is_what_torch_counts(stage, studies_file, tmp_path) -> None:
    from generator.tiny import make_lm, make_tower
    from tests.conftest import SENTENCES

    make_tower(tmp_path / "tower", image_size=56, patch_size=7, hidden=64, layers=3)
    make_lm(tmp_path / "lm", SENTENCES, vocab_size=300, hidden=64, layers=3)
    model_config = ModelConfig(str(tmp_path / "tower"), str(tmp_path / "lm"))
    drafter = Drafter(*build(model_config), PromptConfig())
    dataset = drafter.dataset(drafter.encode(read_studies(studies_file, "train")[:1], answers=True))
    choose_trainable(drafter.model, stage.projector, stage.lm, stage.tower)
    batch = collate([dataset[0]], 0)
    # torch counts no arithmetic of its fused attention on a CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        summed_loss(drafter.model, batch, torch.device("cpu")).backward()
    config = TrainConfig(stages=[stage], batch_size=1)
    n_report = len(dataset.examples[0].answer)
    planned = plan(model_config, config, Load(1, n_report / 1.6))
    # The plan assumes the length of the prompt; that of this one is known.
    assert planned.tokens - PROMPT_TOKENS == 64 + n_report
    scale = len(dataset.examples[0]) / planned.tokens
    ratio = planned.stages[0].flops * scale / counter.get_total_flops()
    assert 0.9 < ratio < 1.15, ratio


def test_trainable_parameters_of_adapters() -> None:
    config = TrainConfig(stages=[Stage(projector=False, lm="lora")], lora=LoraConfig(rank=8))
    stage = plan(ModelConfig("rad-dino", VICUNA), config, Load(100, 50)).stages[0]
    assert stage.trainable == 32 * 8 * (4 * (4096 + 4096) + 3 * (4096 + 11008))


def test_folders_are_read_and_what_has_no_plan_is_said(tower_folder: Path, lm_folder: Path, tmp_path: Path) -> None:
    from tests.test_towers import save_network

    model, image_tokens = meta_model(ModelConfig(str(tower_folder), str(lm_folder)))
    assert image_tokens == 4
    real, _ = build(ModelConfig(str(tower_folder), str(lm_folder)))
    assert {name: value.shape for name, value in model.named_parameters() if "embed_tokens" not in name}.keys() == {
        name for name, _ in real.named_parameters() if "embed_tokens" not in name
    }
    for tower in (str(save_network("resnet", tmp_path)), "eva-x-base", "ark-plus"):
        with pytest.raises(ValueError, match="--dry-run cannot plan for the tower"):
            meta_model(ModelConfig(tower, str(lm_folder)))


@pytest.mark.parametrize(("tower", "parameters"), [("chexfound", 304_630_016), ("raydino", 304_199_680)])
def test_towers_that_are_files_are_planned_for(tower: str, parameters: int, lm_folder: Path) -> None:
    """Parameters as the authors' code makes them."""
    model, image_tokens = meta_model(ModelConfig(tower, str(lm_folder)))
    assert image_tokens == 32 * 32 + (4 if tower == "chexfound" else 0)
    assert sum(parameter.numel() for parameter in model.model.vision_tower.parameters()) == parameters
