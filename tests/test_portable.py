"""Saved folders as other programs read them: names of weights, rotary settings, tokenizer class, decoding."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from generator.config import DecodeConfig, ModelConfig
from generator.drafter import Drafter
from generator.generate import decode
from generator.model import build, load, save
from generator.prompts import PromptConfig
from generator.vlm import load_chat
from raddraft.studies import read_studies
from tests.test_model import save_lm
from tests.test_towers import FAMILIES, save_tower
from tests.vlm_families import save_vlm

LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 128}


def names(folder: Path) -> set[str]:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return set(file.keys())


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_is_saved_under_the_names_that_all_readers_know(tmp_path, family) -> None:
    """transformers before 5 and vLLM look one level deeper for the weights of CLIP and SigLIP."""
    lm = save_lm("Llama-bos", tmp_path / "lm")
    drafter = Drafter(*build(ModelConfig(str(save_tower(family, tmp_path / "tower")), str(lm))))
    save(drafter, tmp_path / "model")
    deeper = {name.startswith("vision_tower.vision_model.") for name in names(tmp_path / "model") if "vision" in name}
    assert deeper == {family in ("clip", "clip-vision", "siglip")}
    again = load(tmp_path / "model")
    weights = again.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in drafter.model.state_dict().items())
    save(again, tmp_path / "again")
    assert names(tmp_path / "again") == names(tmp_path / "model")


def test_rotary_settings_are_there_in_the_form_of_before_too(tower_folder, tmp_path) -> None:
    for number, (rope, expected) in enumerate(
        [
            ({"rope_type": "default", "rope_theta": 500000.0}, {"rope_theta": 500000.0}),
            (LLAMA3, {"rope_theta": 500000.0, "rope_scaling": {k: v for k, v in LLAMA3.items() if k != "rope_theta"}}),
        ]
    ):
        folder = tmp_path / str(number)
        lm = save_lm("Llama-bos", folder / "lm", rope_parameters=rope)
        save(Drafter(*build(ModelConfig(str(tower_folder), str(lm)))), folder / "model")
        saved = read(folder / "model", "config.json")["text_config"]
        assert {name: saved.get(name) for name in ("rope_theta", "rope_scaling") if name in saved} == expected
        assert AutoConfig.from_pretrained(folder / "model").text_config.rope_parameters == rope
        assert str(tmp_path) not in (folder / "model" / "config.json").read_text(), "no local paths"


def test_the_tokenizer_is_of_a_class_that_versions_before_5_refuse(tower_folder, tmp_path) -> None:
    lm = save_lm("Qwen2-chatml", tmp_path / "lm")
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(lm))))
    save(drafter, tmp_path / "model")
    assert read(tmp_path / "model", "tokenizer_config.json")["tokenizer_class"] == "TokenizersBackend"
    tokenizer, again = drafter.processor.tokenizer, AutoTokenizer.from_pretrained(tmp_path / "model")
    for text in ("<|im_start|>user\n Épanchement,  5 µm.\n\n<|im_end|>", "<image>No edema."):
        assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.special_tokens_map == tokenizer.special_tokens_map


def test_greedy_decoding_is_stated_and_sampling_still_possible(random_model, studies_file, caplog) -> None:
    stated = read(random_model, "generation_config.json")
    assert (stated["temperature"], stated["max_new_tokens"]) == (0, 150)
    drafter = load(random_model)
    assert drafter.model.generation_config.temperature is None
    examples = drafter.encode(read_studies(studies_file)[:1], answers=False)
    (draft,) = decode(drafter, examples, DecodeConfig(max_new_tokens=8, candidates=4, temperature=2.0))
    assert len(set(draft.candidates)) > 1
    model: Any = AutoModelForImageTextToText.from_pretrained(random_model)
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2)
    assert "not valid" not in caplog.text
    with pytest.raises(ValueError, match="temperature"):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, do_sample=True)


def test_models_from_elsewhere_state_it_too(tmp_path) -> None:
    save(load_chat(str(save_vlm("qwen3_vl", tmp_path / "vlm")), PromptConfig()), tmp_path / "model")
    stated = read(tmp_path / "model", "generation_config.json")
    assert (stated["temperature"], stated["max_new_tokens"]) == (0, 150)
    assert (
        read(tmp_path / "model", "tokenizer_config.json")["tokenizer_class"]
        == read(tmp_path / "vlm", "tokenizer_config.json")["tokenizer_class"]
    )
