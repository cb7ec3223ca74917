"""Language-model families as decoders: two steps of training, saved, the same logits and text in plain transformers."""

from __future__ import annotations

import json

import pytest
import torch

from generator.config import DecodeConfig, LoraConfig, ModelConfig, Stage, TrainConfig
from generator.generate import generate
from generator.model import load
from generator.prompts import PromptConfig
from generator.reward_drafts import INPUTS
from generator.rollout import draft_log_probs
from generator.train import train
from raddraft.studies import read_studies
from tests.test_model import plain_inputs, save_lm
from tests.test_train import evaluate, losses

# A tokenizer with a chat template of its own (chatml, bos) or without (plain: the stated default is used).
FAMILIES = ("Llama-bos", "Qwen2-chatml", "Qwen3-chatml", "Gemma3-bos", "Phi3-chatml", "GPT2-plain", "OPT-plain")
OPENINGS = {
    "bos": "<s>[user] <image>\nDescribe the findings of this chest X-ray.\n[model]",
    "chatml": "<|im_start|>user\n<image>\nDescribe the findings of this chest X-ray.<|im_end|>\n"
    "<|im_start|>assistant\n",
    "plain": "<s>USER: <image>\nDescribe the findings of this chest X-ray.\nASSISTANT:",
}


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_trains_and_writes_the_same_in_plain_transformers(studies_file, tower_folder, tmp_path, family, mode) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    parts = {split: read_studies(studies_file, split)[:8] for split in ("train", "val")}
    lm = save_lm(family, tmp_path / "lm")
    config = TrainConfig(
        stages=[Stage(epochs=2, lr=1e-2, lm=mode, warmup=0)],
        lora=LoraConfig(rank=4, alpha=8, dropout=0.0),
        batch_size=8,
        micro_batch_size=4,
        workers=0,
    )
    folder = train(parts, tmp_path / "run", ModelConfig(str(tower_folder), str(lm)), PromptConfig(), config)
    steps = [row[2] for row in losses(tmp_path / "run") if row[2] is not None]
    assert len(steps) == 2
    assert steps[1] < steps[0]
    best = min(row[3] for row in losses(tmp_path / "run") if row[3] is not None)
    drafter = load(folder)
    assert evaluate(drafter, parts["val"]) == pytest.approx(best, abs=2e-5), "what was validated is what was saved"

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    message = drafter.prompt.messages(parts["val"][0], parts["val"][0].main_image)
    assert processor.apply_chat_template(message, add_generation_prompt=True) == OPENINGS[family.split("-")[1]]
    decoding = DecodeConfig(max_new_tokens=8, batch_size=4)
    assert generate(drafter, parts["val"], tmp_path / "drafts.jsonl", decoding, "model") == []
    drafts = [json.loads(line)["prediction"] for line in (tmp_path / "drafts.jsonl").read_text().splitlines()]
    for study, text in zip(parts["val"], drafts, strict=True):
        inputs = plain_inputs(processor, drafter.prompt, study)
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, drafter.model(**inputs).logits)
        tokens = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(tokens, skip_special_tokens=True).strip() == text

    # Several drafts behind one prompt, as a reward stage reads them.
    dataset = drafter.dataset(drafter.encode(parts["val"][:2], answers=False))
    items = [dataset[0], dataset[1]]
    inputs = {name: value for name, value in dataset.collate(items).items() if name in INPUTS}
    drafts = [[5, 6, 7], [8], [9, 10] * 9, [11, 12]]
    found, _ = draft_log_probs(drafter.model, inputs, drafts, 1.0)
    for row, tokens in enumerate(drafts):
        item, start = items[row // 2], len(items[row // 2].example.prompt)
        ids = torch.tensor([[*item.example.prompt, *tokens]])
        logits = drafter.model(input_ids=ids, pixel_values=item.pixels).logits[0, start - 1 : -1].log_softmax(-1)
        assert torch.allclose(found[row, : len(tokens)], logits[range(len(tokens)), tokens], atol=1e-5)
