"""Standardized features: statistics over the training images, folded into an ordinary model when it is saved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from generator.config import DecodeConfig, LoraConfig, ModelConfig, Stage
from generator.generate import generate
from generator.model import load
from generator.prompts import PromptConfig
from generator.standardize import Standard
from generator.train import train
from raddraft.errors import UnavailableError
from raddraft.images import ImageError
from tests.test_train import evaluate, losses, parts, parts_config, quick, weights  # noqa: F401 - two are fixtures

# ruff: noqa: F811


class Stored(dict):
    """Features by path; a path that is not there could not be read."""

    def __missing__(self, path: Path) -> torch.Tensor:
        raise ImageError(f"{path} cannot be read")


def test_a_folded_layer_gives_what_it_gave_behind_standardized_features() -> None:
    torch.manual_seed(0)
    scale, shift = torch.logspace(-1, 1, 6), torch.tensor([0.0, -30.0, 5.0, 0.1, 40.0, -1.0])
    stored = Stored({Path(f"{n}.png"): torch.randn(9, 6) * scale + shift for n in range(40)})
    for one in stored.values():
        one[:, 2] = 5.0  # says nothing
        one[0] = 1e6  # the class token, which the projector does not read
    paths = [Path("broken.png"), *stored]
    standard = Standard.measure(stored, paths, first=1)
    patches = torch.cat([one[1:] for one in stored.values()])
    assert torch.allclose(standard.mean, patches.mean(0), rtol=1e-5)
    std = patches.std(0, correction=0)
    assert torch.allclose(standard.std, std.clamp(min=0.01 * std.mean()), rtol=1e-4)
    projector = nn.Sequential(nn.Linear(6, 4), nn.GELU())
    explicit = projector((patches - standard.mean) / standard.std)
    standard.attach(projector)
    assert torch.equal(projector(patches), explicit)
    standard.fold(projector[0])
    projector._forward_pre_hooks.clear()
    assert torch.allclose(projector(patches), explicit, atol=1e-5, rtol=1e-4)
    with pytest.raises(UnavailableError, match=r"train\.standardize: no image"):
        Standard.measure(stored, paths[:1], first=1)


@pytest.mark.parametrize("lm", ["full", "lora"])
def test_the_saved_model_is_ordinary_and_writes_the_same(parts, parts_config, tmp_path, lm) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    config = quick(
        stages=[Stage(lr=1e-2), Stage(lr=1e-2, lm=lm)], lora=LoraConfig(rank=4), cached=True, standardize=True
    )
    out = tmp_path / "run"
    folder = train(parts, out, parts_config, PromptConfig(), config)
    best = min(row[3] for row in losses(out) if row[0] == 1 and row[3] is not None)
    drafter = load(folder)
    assert evaluate(drafter, parts["val"]) == pytest.approx(best, abs=5e-4)  # features are kept in float16

    studies = parts["val"][:4]
    generate(drafter, studies, tmp_path / "drafts.jsonl", DecodeConfig(max_new_tokens=12), "model")
    ours = [json.loads(line)["prediction"] for line in (tmp_path / "drafts.jsonl").read_text().splitlines()]
    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    for study, text in zip(studies, ours, strict=True):
        prompt = processor.apply_chat_template(drafter.prompt.messages(study), add_generation_prompt=True)
        image = Image.open(study.main_image.path).convert("RGB")
        inputs = processor(text=prompt, images=image, return_tensors="pt", add_special_tokens=False)
        tokens = model.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(tokens, skip_special_tokens=True).strip() == text

    before = weights(drafter.model)
    shutil.rmtree(folder)  # killed before the model was whole
    again = weights(load(train(parts, out, parts_config, PromptConfig(), config)).model)
    assert all(torch.equal(before[name], again[name]) for name in before), "folded once"


def test_a_trained_projector_is_not_standardized_again(parts, tmp_path) -> None:
    config = quick(stages=[Stage()], cached=True, standardize=True)
    with pytest.raises(ValueError, match=r"train\.standardize is for a new projector; runs/old/model has one"):
        train(parts, tmp_path / "run", ModelConfig(vlm="runs/old/model"), PromptConfig(), config)
