"""Report models on towers that a LLaVA model cannot hold: trained live and cached, saved, loaded, used without us."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from encoder.tower import weights_digest
from encoder.towers import load_tower
from generator.config import DecodeConfig, ModelConfig, Stage, TrainConfig
from generator.controls import nearest_reports
from generator.foreign import ForeignTower
from generator.generate import generate
from generator.model import Drafter, build, load, save
from generator.prompts import PromptConfig
from generator.train import train
from raddraft.studies import read_studies
from tests.test_towers import save_network
from tests.test_train import losses

KINDS = ("timm", "resnet", "swin", "biovil", "pixels")
GRIDS = {"timm": (2, 2), "resnet": (4, 4), "swin": (4, 4), "biovil": (2, 2), "pixels": (1, 1)}
DECODING = DecodeConfig(max_new_tokens=12, batch_size=4)


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name or folder of a tower of each kind, random weights."""
    from encoder.biovil import BioViLT, BioViLTConfig

    folder = tmp_path_factory.mktemp("towers")
    torch.manual_seed(0)
    BioViLT(BioViLTConfig(shortest_edge=64, image_size=64)).save_pretrained(folder / "biovil")
    networks = {kind: str(save_network(kind, folder / kind)) for kind in ("timm", "resnet", "swin")}
    return networks | {"biovil": str(folder / "biovil"), "pixels": "pixels"}


@pytest.fixture
def parts(studies_file: Path) -> dict:
    return {"train": read_studies(studies_file, "train")[:8], "val": read_studies(studies_file, "val")[:4]}


def recipe(**changes) -> TrainConfig:
    stages = [Stage(lr=2e-3, warmup=0), Stage(lr=2e-3, lm="full", warmup=0)]
    return TrainConfig(**{"stages": stages, "batch_size": 8, "micro_batch_size": 4, "workers": 0} | changes)


def drafts(drafter: Drafter, studies: list, out: Path) -> list[str]:
    assert generate(drafter, studies, out, DECODING, "model") == []
    return [json.loads(line)["prediction"] for line in out.read_text().splitlines()]


def plain_drafts(folder: Path, studies: list, prompt: PromptConfig, features) -> list[str]:
    """What transformers alone writes with features [1, H * W, D] of the pixels, projected by the model."""
    from transformers import AutoModelForImageTextToText, AutoProcessor
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    texts = []
    for study in studies:
        text = processor.apply_chat_template(prompt.messages(study, study.main_image), add_generation_prompt=True)
        image = Image.open(study.main_image.path).convert("RGB")
        inputs = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
        with pytest.raises(ValueError, match="Input image size"):
            model.generate(**inputs)  # the placeholder must not be taken for a tower
        with torch.no_grad():
            projected = list(model.model.multi_modal_projector(features(inputs.pop("pixel_values"))))
        given = {"image": BaseModelOutputWithPooling(pooler_output=projected)}
        tokens = model.generate(**inputs, mm_encoder_outputs=given, max_new_tokens=12)
        tokens = tokens[0, inputs["input_ids"].shape[1] :]
        texts.append(processor.decode(tokens, skip_special_tokens=True).strip())
    return texts


@pytest.mark.parametrize("kind", KINDS)
def test_trains_live_and_cached_and_drafts_in_plain_transformers(kind, towers, parts, lm_folder, tmp_path) -> None:
    from transformers import AutoModel

    model_config = ModelConfig(towers[kind], str(lm_folder))
    folders = {
        features: train(parts, tmp_path / features, model_config, PromptConfig(), recipe(cached=features == "cached"))
        for features in ("live", "cached")
    }
    live, cached = losses(tmp_path / "live"), losses(tmp_path / "cached")
    assert len(live) == 4, "two stages of a step and a validation each"
    for one, other in zip(live, cached, strict=True):
        assert one[2:4] == pytest.approx(other[2:4], abs=2e-4)  # features are kept in float16

    drafter = load(folders["live"])
    assert drafter.model.config.image_seq_length == GRIDS[kind][0] * GRIDS[kind][1]
    original = load_tower(towers[kind])
    again = [drafter.tower, load(folders["cached"]).tower, load_tower(str(folders["live"]))]
    assert {weights_digest(tower.model) for tower in again} == {weights_digest(original.model)}
    ours = drafts(drafter, parts["val"], tmp_path / "drafts.jsonl")
    assert any(ours)
    save(drafter, tmp_path / "copy")
    assert drafts(load(tmp_path / "copy"), parts["val"], tmp_path / "copy.jsonl") == ours

    if kind in ("timm", "resnet", "swin"):  # a process without this project can run the tower as well
        tower = AutoModel.from_pretrained(folders["live"] / "tower").eval()

        def features(pixels: torch.Tensor) -> torch.Tensor:
            last = tower(pixels).last_hidden_state
            return last.flatten(2).transpose(1, 2) if last.ndim == 4 else last
    else:

        def features(pixels: torch.Tensor) -> torch.Tensor:
            return original.encode(pixels).patches.flatten(1, 2)

    assert plain_drafts(folders["live"], parts["val"], drafter.prompt, features) == ours


def test_pictures_change_what_the_model_reads(towers, parts, lm_folder) -> None:
    drafter = Drafter(*build(ModelConfig(towers["timm"], str(lm_folder))))
    bright, dark = (drafter.tower.prepare([Image.new("L", (70, 90), gray)]) for gray in (250, 5))
    projected = [drafter.model.get_image_features(pixels).pooler_output[0] for pixels in (bright, dark)]
    assert projected[0].shape == (4, 32)
    assert not torch.allclose(*projected)


def test_timms_preparation_is_kept(towers, parts, lm_folder) -> None:
    """A processor inside another has to be saved with it, and timm's cannot."""
    _, processor = build(ModelConfig(towers["timm"], str(lm_folder)))
    picture = Image.effect_noise((200, 300), 60).convert("RGB")
    timm_pixels = load_tower(towers["timm"]).prepare([picture])
    ours = processor.image_processor([picture], return_tensors="pt")["pixel_values"]
    one_grey_value = 1 / 255 / 0.224
    assert (ours - timm_pixels).abs().max() < 1.01 * one_grey_value


def test_the_tower_of_a_trained_model_serves_the_next_one(towers, parts, lm_folder, tmp_path) -> None:
    drafter = Drafter(*build(ModelConfig(towers["biovil"], str(lm_folder))))
    save(drafter, tmp_path)
    again = Drafter(*build(ModelConfig(str(tmp_path), str(lm_folder))))
    assert weights_digest(again.tower.model) == weights_digest(drafter.tower.model)
    assert again.tower.black_pixels.shape == (1, 3, 64, 64)


def test_held_in_bfloat16(towers, parts, lm_folder, tmp_path) -> None:
    drafter = Drafter(*build(ModelConfig(towers["timm"], str(lm_folder), dtype="bfloat16")))
    save(drafter, tmp_path)
    again = load(tmp_path)
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.bfloat16}
    texts = [drafts(one, parts["val"], tmp_path / f"{n}.jsonl") for n, one in enumerate((drafter, again))]
    assert texts[0] == texts[1]


def test_the_nearest_report_goes_by_its_features(towers, parts, lm_folder, tmp_path) -> None:
    drafter = Drafter(*build(ModelConfig(towers["timm"], str(lm_folder))))
    queries = [replace(study, subject_id="another") for study in parts["train"]]
    reports, errors = nearest_reports(drafter, parts["train"], queries, tmp_path)
    assert errors == []
    assert reports == {study.study_id: study.sections["findings"] for study in parts["train"]}


def test_what_such_towers_cannot_do_is_said(towers, parts, lm_folder, tmp_path) -> None:
    config = recipe(stages=[Stage(), Stage(tower="full")])
    with pytest.raises(ValueError, match=r"because a LLaVA model cannot hold it; use tower: frozen"):
        train(parts, tmp_path, ModelConfig(towers["swin"], str(lm_folder)), PromptConfig(), config)
    with pytest.raises(ValueError, match=r"feature_layer is -2\. Choices for .*: -1, its final output"):
        build(ModelConfig(towers["timm"], str(lm_folder), feature_layer=-2))


def test_towers_that_a_llava_model_can_hold_stay_inside_it(tower_folder, lm_folder) -> None:
    model, _ = build(ModelConfig(str(tower_folder), str(lm_folder)))
    assert not isinstance(model.model.vision_tower, ForeignTower)
    assert model.config.vision_config.model_type == "dinov2"
