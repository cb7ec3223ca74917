"""Vision towers: every family loads by folder, two-tower checkpoints by half; sizes; faults in one clear sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encoder.towers import TOWERS, count_prefix_tokens, load_tower, resolve_tower, weights_digest

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
FAMILIES = ("dinov2", "registers", "clip", "clip-vision", "siglip")


def save_tower(family: str, folder: Path) -> Path:
    """Save a three-block tower for 28 x 28 pixels (2 x 2 patches), random weights, in the form of its hub folder."""
    import transformers as hf

    torch.manual_seed(0)
    mlp = {"intermediate_size": 64}
    cropping = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    if family == "dinov2":
        hf.Dinov2Model(hf.Dinov2Config(**TINY)).save_pretrained(folder)
    elif family == "registers":
        hf.Dinov2WithRegistersModel(hf.Dinov2WithRegistersConfig(**TINY)).save_pretrained(folder)
    elif family == "clip":
        text = TEXT | TOKENS
        hf.CLIPModel(hf.CLIPConfig(text_config=text, vision_config=TINY | mlp)).save_pretrained(folder)
    elif family == "clip-vision":
        hf.CLIPVisionModel(hf.CLIPVisionConfig(**TINY, **mlp)).save_pretrained(folder)
    else:
        text = TEXT | TOKENS
        hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=TINY | mlp)).save_pretrained(folder)
        hf.SiglipImageProcessor(size={"height": 28, "width": 28}).save_pretrained(folder)
        return folder
    processor = hf.CLIPImageProcessor if family.startswith("clip") else hf.BitImageProcessor
    processor(**cropping).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("towers")
    return {family: save_tower(family, folder / family) for family in FAMILIES}


def pixels_of(processor, width: int = 90, height: int = 64) -> torch.Tensor:
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return processor([Image.fromarray(picture)], return_tensors="pt")["pixel_values"]


def test_short_names_stand_for_hub_ids() -> None:
    assert resolve_tower("rad-dino") == "microsoft/rad-dino"
    assert resolve_tower("owner/some-model") == "owner/some-model"
    assert all(hub_id.count("/") == 1 for hub_id in TOWERS.values())


@pytest.mark.parametrize("name", ["rad-din", "./nowhere/tower", "/nowhere/tower", "~/tower", "a/b/c"])
def test_unknown_names_are_refused_with_the_choices(name: str) -> None:
    message = f"Unknown tower {name!r}. Choices: rad-dino, rad-dino-maira-2, dinov2-small"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_tower(name)


def test_a_folder_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tower("dinov2", tmp_path / "my" / "tower")
    monkeypatch.chdir(tmp_path)
    assert load_tower("my/tower")[0].config.model_type == "dinov2"


@pytest.mark.parametrize(("family", "n_prefix"), [*zip(FAMILIES, (1, 5, 1, 1, 0), strict=True)])
def test_every_family_gives_patches_after_its_prefix_tokens(towers, family: str, n_prefix: int) -> None:
    tower, processor = load_tower(str(towers[family]))
    assert not tower.training
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.float32}
    assert count_prefix_tokens(tower, processor) == n_prefix
    pixels = pixels_of(processor)
    assert pixels.shape == (1, 3, 28, 28)
    hidden_states = tower(pixels, output_hidden_states=True).hidden_states
    assert [tuple(hidden.shape) for hidden in hidden_states] == [(1, n_prefix + 4, 32)] * 4


@pytest.mark.parametrize(("family", "whole"), [("clip", "CLIPModel"), ("siglip", "SiglipModel")])
def test_of_two_towers_the_vision_half_is_loaded(towers, family: str, whole: str) -> None:
    import transformers

    tower, processor = load_tower(str(towers[family]))
    reference = getattr(transformers, whole).from_pretrained(towers[family]).eval().vision_model
    expected = reference.state_dict()
    assert {name: tuple(value.shape) for name, value in tower.state_dict().items()} == {
        name: tuple(value.shape) for name, value in expected.items()
    }
    assert all(torch.equal(value, expected[name]) for name, value in tower.state_dict().items())
    pixels = pixels_of(processor)
    with torch.no_grad():
        assert torch.equal(tower(pixels).last_hidden_state, reference(pixels).last_hidden_state)


@pytest.mark.parametrize("family", ["dinov2", "registers"])
def test_image_size_is_what_the_processor_makes_and_the_tower_takes(towers, family: str) -> None:
    tower, processor = load_tower(str(towers[family]), image_size=56)
    for width, height in ((90, 64), (64, 90), (20, 30), (56, 56)):
        assert pixels_of(processor, width, height).shape == (1, 3, 56, 56)
    assert tower(pixels_of(processor)).last_hidden_state.shape[1] - count_prefix_tokens(tower, processor) == 16


@pytest.mark.parametrize(("family", "image_size"), [("dinov2", 56), ("clip", 28), ("siglip", 28)])
def test_with_an_image_size_the_centre_square_is_kept(towers, family: str, image_size: int) -> None:
    _, processor = load_tower(str(towers[family]), image_size)
    framed = np.zeros((100, 300, 3), np.uint8)
    framed[:, 100:200] = 255
    pixels = processor([Image.fromarray(framed)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, image_size, image_size)
    assert pixels[0, 0, :, 3:-3].unique().numel() == 1, "white from edge to edge, but for the resampling"


@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_a_tower_that_cannot_change_its_size_says_so(towers, family: str) -> None:
    load_tower(str(towers[family]), image_size=28)
    message = rf"The '{family}_vision_model' tower does not take pictures of 56 x 56 pixels, its own size is 28: "
    with pytest.raises(ValueError, match=message):
        load_tower(str(towers[family]), image_size=56)


def test_image_size_must_hold_whole_patches(towers) -> None:
    with pytest.raises(ValueError, match=r"image_size 30 is not a multiple of the patch size 14 of .*dinov2"):
        load_tower(str(towers["dinov2"]), image_size=30)


def test_the_backbone_of_a_classifier_is_loaded(tmp_path: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2ForImageClassification

    torch.manual_seed(3)
    classifier = Dinov2ForImageClassification(Dinov2Config(**TINY, num_labels=14))
    classifier.save_pretrained(tmp_path)
    BitImageProcessor().save_pretrained(tmp_path)
    assert weights_digest(load_tower(str(tmp_path))[0]) == weights_digest(classifier.dinov2)


def test_other_networks_are_refused(tmp_path: Path) -> None:
    import transformers as hf

    hf.ResNetModel(hf.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")).save_pretrained(
        tmp_path / "resnet"
    )
    with pytest.raises(ValueError, match=r"holds a 'resnet' model, which has no patches: not a vision transformer"):
        load_tower(str(tmp_path / "resnet"))
    swin = hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, patch_size=4, window_size=4)
    hf.SwinModel(swin).save_pretrained(tmp_path / "swin")
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "swin")
    with pytest.raises(ValueError, match=r"'swin' tower is not a plain vision transformer: .* of the 64 patches"):
        count_prefix_tokens(*load_tower(str(tmp_path / "swin")))


@pytest.fixture
def broken(towers, tmp_path: Path) -> Path:
    return Path(shutil.copytree(towers["dinov2"], tmp_path / "broken"))


def fault(name: str) -> str:
    with pytest.raises((OSError, ValueError)) as error:
        load_tower(name)
    assert "\n" not in str(error.value), "one sentence"
    return str(error.value)


def test_what_a_folder_lacks_is_named(broken: Path) -> None:
    start = f"Tower '{broken}' cannot be loaded: "
    (broken / "preprocessor_config.json").unlink()
    assert re.match(re.escape(start) + "Can't load image processor .* preprocessor_config.json", fault(str(broken)))
    weights = broken / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert fault(str(broken)).startswith(start + "Error while deserializing header: incomplete metadata")
    weights.unlink()
    assert fault(str(broken)).startswith(start + "Error no file named model.safetensors")
    (broken / "config.json").write_text("{")
    assert "config.json' is not a valid JSON file" in fault(str(broken))


def test_a_tower_is_never_partly_random(broken: Path) -> None:
    saved = load_file(broken / "model.safetensors")
    lost = {name: value for name, value in saved.items() if "layer.1.attention" not in name}
    assert len(lost) < len(saved)
    save_file(lost, broken / "model.safetensors", {"format": "pt"})
    message = fault(str(broken))
    assert f"{broken} has no weights for {len(saved) - len(lost)} parts of its 'dinov2' tower, e.g. " in message


def test_a_tower_that_is_not_there_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TOWERS, "rad-dino", "nobody/rad-dino")  # the real one may be in this machine's cache
    assert fault("rad-dino") == (
        "Tower 'rad-dino' cannot be loaded: nobody/rad-dino is not on this machine, and the Hugging Face hub did not "
        "give it (We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the "
        "cached files); where there is a network, run `hf download nobody/rad-dino --local-dir FOLDER`, then name "
        "that FOLDER instead"
    )


def test_equal_weights_have_equal_digests(towers) -> None:
    def digest(name: str | None = None, dtype: torch.dtype = torch.float32) -> str:
        """Digest after the first value of one parameter has been set to 0.5."""
        tower = load_tower(str(towers["siglip"]))[0].to(dtype)
        if name:
            tower.state_dict()[name].view(-1)[0] = 0.5
        return weights_digest(tower)

    assert digest() == digest()
    norms = [f"encoder.layers.{block}.layer_norm1.weight" for block in (0, 1)]  # equal to each other at first
    assert len({digest(), digest(norms[0]), digest(norms[1]), digest(dtype=torch.bfloat16)}) == 4
