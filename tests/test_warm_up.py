"""The warm-up of the demo's tower: its targets come from reports alone, it learns, and it is an ordinary folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from encoder.towers import load_tower
from generator.config import WarmUpConfig
from generator.model import _tower_parameters
from generator.prompts import PromptConfig
from generator.tiny import make_levit
from generator.warm_up import find_targets, warm_up
from metrics.rules import label
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage

NAMES = list(label(""))


def test_targets_are_the_words_that_tell_reports_apart_and_what_the_labeler_reads() -> None:
    reports = [
        "Left pleural effusion.",
        "No pleural effusion.",
        "The lungs are clear.",
        "Possible left pleural effusion.",
    ]
    words, observations = find_targets(reports * 50)
    # "pleural" and "effusion" are in more than half of the reports; of the others each is in one or two of four.
    known = ["are", "clear", "left", "lungs", "no", "possible", "the"]
    expected = [[float(word in report.lower().strip(".").split()) for word in known] for report in reports]
    assert words[:4].tolist() == expected
    assert observations.shape == (200, 14)
    assert observations[:4, NAMES.index("Pleural Effusion")].tolist() == [1, 0, 0, 0], "doubt is not presence"
    rare = find_targets([*["Left effusion.", "Clear."] * 100, "Zebra."])[0]
    assert rare.shape == (201, 3), "a word of one report in 201 is left out"


def test_it_learns_what_reports_say_and_is_an_ordinary_tower(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    studies = []
    for i in range(48):
        picture = generator.normal(90, 10, (56, 56))
        picture[:, : 28 if i % 2 else 0] += 80
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(tmp_path / f"{i}.png")
        text = "There is edema." if i % 2 else "No edema."
        studies.append(Study(f"s{i}", f"p{i}", "train", [StudyImage(tmp_path / f"{i}.png", "PA")], {"findings": text}))
    make_levit(tmp_path / "start", hidden=32, layers=1)
    modes = {(tmp_path / "start" / name).stat().st_mode for name in ("model.safetensors", "config.json")}
    assert len(modes) == 1, "safetensors makes its files readable by their owner only"
    prompt, config = PromptConfig(targets=["findings"]), WarmUpConfig(epochs=8, batch_size=12)
    for name in ("one", "two"):
        warm_up(tmp_path / "start", tmp_path / name, studies, prompt, config, seed=0)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two", "start")]
    assert weights[0] == weights[1] != weights[2]
    tower = load_tower(str(tmp_path / "one"))
    assert tower.is_plain, "a LLaVA model can hold it"
    pixels = tower.prepare([Image.open(study.main_image.path) for study in studies])
    with torch.no_grad():
        tokens = AutoModel.from_pretrained(tmp_path / "one")(pixels).last_hidden_state
    assert tokens.shape == (48, 4, 32)
    means = tokens.mean(1)
    bright, dark = means[1::2], means[::2]
    axis = bright.mean(0) - dark.mean(0)
    assert float((bright @ axis).min()) > float((dark @ axis).max())


def test_the_towers_of_two_stages_can_train_both(tmp_path: Path) -> None:
    make_levit(tmp_path, hidden=32, layers=1)
    tower = load_tower(str(tmp_path)).model
    first, second = (_tower_parameters(tower, "full", -1) for _ in range(2))
    assert first == second == {name for name, _ in tower.named_parameters()}


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("epochs", -1, "at least 0"),
        ("batch_size", 1, "at least 2"),
        ("lr", 0.0, "above 0"),
        ("smallest_crop", 0.0, "above 0"),
    ],
)
def test_values_that_cannot_be_are_named(name: str, value: float, rule: str) -> None:
    with pytest.raises(RadDraftError, match=rf"warm\.{name} must be {rule}.*, got {value}"):
        WarmUpConfig(**{name: value})
