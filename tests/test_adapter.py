"""Adapters in PEFT's form: they hold all that trained, name their base, and load where this project is not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from generator.config import LoraConfig, ModelConfig, Stage, TrainConfig
from generator.prompts import PromptConfig
from generator.train import train
from tests.launch import run_without_us
from tests.test_vlm import CHATTING, PROMPT, ask, evaluate_plainly, folders, load_plain, studies  # noqa: F401
from tests.vlm_families import save_vlm


def recipe(*stages: Stage, **changes: Any) -> TrainConfig:
    lora = LoraConfig(rank=4, alpha=8, dropout=0.1)
    return replace(TrainConfig(stages, lora, batch_size=5, micro_batch_size=5, eval_every=0, workers=0), **changes)


LORA = Stage(lr=1e-2, lm="lora", projector=False, warmup=0)


def load_with_peft(adapter: Path) -> Any:
    """As the adapter's card says."""
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForImageTextToText

    base = PeftConfig.from_pretrained(str(adapter)).base_model_name_or_path
    assert base is not None
    return PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), str(adapter)).eval()


PROJECTOR_BEFORE = (Stage(lr=1e-2, warmup=0), LORA)
CASES = [
    *((family, PROJECTOR_BEFORE) for family in CHATTING),
    ("qwen3_vl", (LORA,)),
    ("idefics3", (replace(LORA, projector=True),)),
]


@pytest.mark.parametrize(("family", "stages"), CASES)
def test_an_adapter_has_the_loss_of_the_model_beside_it(folders, studies, tmp_path, family, stages) -> None:  # noqa: F811
    folder = train({"train": studies}, tmp_path, ModelConfig(vlm=str(folders[family])), PROMPT, recipe(*stages))
    (whole, processor), adapted = load_plain(folder), load_with_peft(tmp_path / "adapter")
    before, _ = load_plain(folders[family])
    inputs = ask(processor, PROMPT, studies[0])
    with torch.no_grad():
        plain, merged, peft = (model(**inputs).logits for model in (before, whole, adapted))
    assert not torch.allclose(plain, merged, atol=1e-2)
    torch.testing.assert_close(peft, merged, atol=1e-4, rtol=1e-4)
    loss = evaluate_plainly(whole, processor, studies)
    assert evaluate_plainly(adapted, processor, studies) == pytest.approx(loss, abs=1e-4)
    trained = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert any("lora_" not in name for name in trained) == any(stage.projector for stage in stages)


WITHOUT_US = """
import sys
import torch
from peft import AutoPeftModel, PeftConfig, PeftModel
from transformers import AutoModelForImageTextToText
adapter, inputs, merged = sys.argv[1], *torch.load(sys.argv[2], weights_only=True)
base = PeftConfig.from_pretrained(adapter).base_model_name_or_path
for model in (
    PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(base), adapter),
    AutoPeftModel.from_pretrained(adapter),
):
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**inputs).logits, merged, atol=1e-4, rtol=1e-4)
"""


def test_an_adapter_loads_where_this_project_is_not(studies, tmp_path, monkeypatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    save_vlm("gemma3", tmp_path / "base")
    stage = replace(LORA, projector=True)
    folder = train({"train": studies}, Path("run"), ModelConfig(vlm="base"), PROMPT, recipe(stage))
    model, processor = load_plain(folder)
    inputs = dict(ask(processor, PROMPT, studies[0]))
    with torch.no_grad():
        torch.save((inputs, model(**inputs).logits), tmp_path / "logits.pt")
    run_without_us(WITHOUT_US, tmp_path / "run" / "adapter", tmp_path / "logits.pt")

    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert "draft for a radiologist to check" in card
    assert f"base_model: {tmp_path / 'base'}" in card
    assert "[More Information Needed]" not in card
    settings = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(tmp_path / "base")


def test_a_model_joined_here_has_no_base_to_name(tower_folder, lm_folder, studies, tmp_path) -> None:  # noqa: F811
    """But the model of a first run is a base for a second one, whose tower may train, too."""
    config, prompt = ModelConfig(str(tower_folder), str(lm_folder)), PromptConfig()
    first = train({"train": studies}, tmp_path / "a", config, prompt, recipe(Stage(lr=1e-2), LORA))
    assert not (tmp_path / "a" / "adapter").exists()
    stage = replace(LORA, projector=True, tower=1)
    second = train({"train": studies}, tmp_path / "b", ModelConfig(vlm=str(first)), prompt, recipe(stage))
    (whole, processor), adapted = load_plain(second), load_with_peft(tmp_path / "b" / "adapter")
    parts = {name.split(".")[3] for name in load_file(tmp_path / "b" / "adapter" / "adapter_model.safetensors")}
    assert parts == {"language_model", "multi_modal_projector", "vision_tower"}
    inputs = ask(processor, prompt, studies[0])
    with torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, whole(**inputs).logits, atol=1e-4, rtol=1e-4)
