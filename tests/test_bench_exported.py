"""What llama.cpp is given, the language model and embeddings between tokens, makes the whole model's text."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.equal_texts import run_script
from benchmarks.exported import main, make_prompts
from generator.config import DecodeConfig, ModelConfig
from generator.drafter import Drafter
from generator.generate import decode, spell
from generator.model import build
from generator.prompts import PromptConfig
from raddraft.errors import RadDraftError
from raddraft.studies import read_studies
from tests.test_model import save_lm

TOKENS = 12


@torch.inference_mode()
def written(lm: Any, ids: Any, images: Any, ends: list[int]) -> list[int]:
    """Greedy tokens of a language model alone that reads a prompt part by part, as `llama_texts` does."""
    used, cache, tokens = 0, None, []
    for is_image, group in groupby(ids.tolist(), lambda token: token < 0):
        part = list(group)
        given = {"input_ids": torch.tensor([part])}
        if is_image:
            given = {"inputs_embeds": torch.from_numpy(images[used : used + len(part)])[None]}
            used += len(part)
        read = lm(**given, cache=cache, use_cache=True)
        cache = read.cache
    while len(tokens) < TOKENS and not set(ends) & set(tokens[-1:]):
        if tokens:
            read = lm(input_ids=torch.tensor([tokens[-1:]]), cache=cache, use_cache=True)
        tokens.append(int(read.logits[0, -1].argmax()))
    return tokens


@pytest.mark.parametrize("family", ["Llama-bos", "Qwen3-chatml", "Gemma3-bos"])
def test_the_language_model_alone_writes_the_same(studies_file, tower_folder, tmp_path, family) -> None:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    folder = save_lm(family, tmp_path / "lm")
    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(folder))), PromptConfig(context=["indication"]))
    studies = read_studies(studies_file)[:6]
    examples = drafter.encode(studies, answers=False)
    expected = [draft.text for draft in decode(drafter, examples, DecodeConfig(max_new_tokens=TOKENS))]
    assert len(set(expected)) > 1, "texts depend on the image"

    lm: Any = AutoModelForCausalLM.from_config(drafter.model.config.text_config).eval()
    lm.base_model.load_state_dict(drafter.model.model.language_model.state_dict())
    lm.get_output_embeddings().load_state_dict(drafter.model.lm_head.state_dict())
    prompts = make_prompts(drafter, examples)
    tokens = [written(lm, prompts[f"ids{i}"], prompts[f"images{i}"], prompts["ends"].tolist()) for i in range(6)]
    assert spell(drafter.processor.tokenizer, tokens) == expected


def test_what_is_missing_is_said(random_model, studies_file) -> None:
    with pytest.raises(RadDraftError, match="Nothing to compare: give --openvino with --optimum"):
        main(random_model, studies_file, gguf=Path("lm.gguf"))
    if not find_spec("llama_cpp"):
        with pytest.raises(RadDraftError, match=r"(?s)llama_texts.py failed: .*No module named 'llama_cpp'"):
            run_script(Path(sys.executable), "llama_texts.py", "lm.gguf", "prompts.npz", 8)
