"""Vision towers: every family loads by folder, two-tower checkpoints by half; sizes; faults in one clear sentence."""

from __future__ import annotations

import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from encoder.cards import TOWERS, Card
from encoder.tower import count_prefix_tokens, weights_digest
from encoder.towers import load_tower, resolve_tower

TINY = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
TEXT = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOKENS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
FAMILIES = ("dinov2", "registers", "dinov3", "clip", "clip-vision", "siglip", "vit")
PREFIXES = (1, 5, 5, 1, 1, 0, 1)


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
    elif family == "dinov3":
        hf.DINOv3ViTModel(hf.DINOv3ViTConfig(**TINY, **mlp, num_register_tokens=4)).save_pretrained(folder)
    elif family == "vit":  # what BiomedCLIP and MRM are converted to
        hf.ViTModel(hf.ViTConfig(**TINY, **mlp)).save_pretrained(folder)
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


def model_and_processor(name: str, image_size: int | None = None):
    tower = load_tower(name, image_size)
    return tower.model, tower.processor


def pixels_of(processor, width: int = 90, height: int = 64) -> torch.Tensor:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return processor([Image.fromarray(image)], return_tensors="pt")["pixel_values"]


def test_short_names_stand_for_hub_ids() -> None:
    assert resolve_tower("rad-dino") == "microsoft/rad-dino"
    assert resolve_tower("owner/some-model") == "owner/some-model"
    assert all(card.source.count("/") == 1 + card.source.startswith("github.com/") for card in TOWERS.values())


@pytest.mark.parametrize("name", [name for name, card in TOWERS.items() if card.converted])
def test_checkpoints_that_have_to_be_converted_first_say_so(name: str) -> None:
    with pytest.raises(ValueError, match=rf"Tower '{name}' is not a transformers checkpoint: .* `raddraft convert"):
        load_tower(name)


@pytest.mark.parametrize("name", ["rad-din", "./nowhere/tower", "/nowhere/tower", "~/tower", "a/b/c"])
def test_unknown_names_are_refused_with_the_choices(name: str) -> None:
    message = f"Unknown tower {name!r}. Choices: rad-dino, rad-dino-maira-2, dinov2-small"
    with pytest.raises(ValueError, match=re.escape(message)):
        model_and_processor(name)


def test_a_folder_comes_before_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tower("dinov2", tmp_path / "my" / "tower")
    monkeypatch.chdir(tmp_path)
    assert model_and_processor("my/tower")[0].config.model_type == "dinov2"


@pytest.mark.parametrize(("family", "n_prefix"), [*zip(FAMILIES, PREFIXES, strict=True)])
def test_every_family_gives_patches_after_its_prefix_tokens(towers, family: str, n_prefix: int) -> None:
    tower, processor = model_and_processor(str(towers[family]))
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

    tower, processor = model_and_processor(str(towers[family]))
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
    tower, processor = model_and_processor(str(towers[family]), image_size=56)
    for width, height in ((90, 64), (64, 90), (20, 30), (56, 56)):
        assert pixels_of(processor, width, height).shape == (1, 3, 56, 56)
    assert tower(pixels_of(processor)).last_hidden_state.shape[1] - count_prefix_tokens(tower, processor) == 16


@pytest.mark.parametrize(("family", "image_size"), [("dinov2", 56), ("clip", 28), ("siglip", 28)])
def test_with_an_image_size_the_center_square_is_kept(towers, family: str, image_size: int) -> None:
    _, processor = model_and_processor(str(towers[family]), image_size)
    framed = np.zeros((100, 300, 3), np.uint8)
    framed[:, 100:200] = 255
    pixels = processor([Image.fromarray(framed)], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, image_size, image_size)
    assert pixels[0, 0, :, 3:-3].unique().numel() == 1, "white from edge to edge, but for the resampling"


@pytest.mark.parametrize("family", FAMILIES)
def test_other_sizes_by_interpolated_position_embeddings(towers, family: str) -> None:
    native, larger = load_tower(str(towers[family])), load_tower(str(towers[family]), image_size=56)
    assert native.shape == (2, 2, 32)
    assert larger.shape == (4, 4, 32)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), dtype=np.uint8))
    features = larger.encode(larger.prepare([image])).patches
    assert not torch.allclose(features[0, :2, :2], native.encode(native.prepare([image])).patches[0])


@pytest.mark.parametrize("family", ["clip", "siglip", "vit"])
def test_a_llava_model_cannot_hold_a_tower_of_another_size_than_its_own(towers, family: str) -> None:
    """LLaVA calls the tower without asking it to interpolate."""
    assert load_tower(str(towers[family])).is_plain
    larger = load_tower(str(towers[family]), image_size=56)
    assert not larger.is_plain
    with pytest.raises(ValueError, match="tower does not take images of 56 x 56 pixels, its own size is 28: "):
        _ = larger.n_prefix


def test_image_size_must_hold_whole_patches(towers) -> None:
    with pytest.raises(ValueError, match=r"image_size 30 is not a multiple of the patch size 14 of .*dinov2"):
        model_and_processor(str(towers["dinov2"]), image_size=30)


def test_the_backbone_of_a_classifier_is_loaded(tmp_path: Path) -> None:
    from transformers import BitImageProcessor, Dinov2Config, Dinov2ForImageClassification

    torch.manual_seed(3)
    classifier = Dinov2ForImageClassification(Dinov2Config(**TINY, num_labels=14))
    classifier.save_pretrained(tmp_path)
    BitImageProcessor().save_pretrained(tmp_path)
    assert weights_digest(model_and_processor(str(tmp_path))[0]) == weights_digest(classifier.dinov2)


def save_network(kind: str, folder: Path) -> Path:
    """Vision models that are no plain vision transformers."""
    import transformers as hf

    torch.manual_seed(0)
    if kind == "timm":
        import timm

        network = timm.create_model("resnet10t", pretrained=False, num_classes=0)
        config = hf.TimmWrapperConfig.from_dict({"architecture": "resnet10t", "num_classes": 0, "model_args": {}})
        config.pretrained_cfg = {**network.pretrained_cfg, "input_size": [3, 64, 64], "num_classes": 0}
        hf.TimmWrapperModel(config).save_pretrained(folder)
        return folder
    if kind == "resnet":
        config = hf.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
        hf.ResNetModel(config).save_pretrained(folder)
    else:
        config = hf.SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 2], image_size=32, patch_size=4, window_size=4)
        hf.SwinModel(config).save_pretrained(folder)
    hf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "shape", "reason"),
    [
        ("resnet", (4, 4, 16), "is a 'resnet' model, which has no patches: not a vision transformer"),
        ("swin", (4, 4, 16), "'swin' tower is not a plain vision transformer: .* of the 64 patches"),
        ("timm", (2, 2, 512), "is a 'timm_wrapper' model, which has no patches"),
    ],
)
def test_other_networks_give_features_but_no_llava_model(tmp_path: Path, kind: str, shape, reason: str) -> None:
    tower = load_tower(str(save_network(kind, tmp_path)))
    assert tower.shape == shape
    pixels = tower.prepare([Image.effect_noise((64, 80), 60)])
    encoded = tower.encode(pixels)
    with torch.no_grad():
        outputs = tower.model(pixels)
    assert torch.equal(encoded.pooled, outputs.pooler_output.flatten(1))
    last = outputs.last_hidden_state
    flat = last.flatten(2).transpose(1, 2) if last.ndim == 4 else last
    assert torch.equal(encoded.patches.flatten(1, 2), flat)
    assert not tower.is_plain
    with pytest.raises(ValueError, match=reason):
        _ = tower.n_prefix


def test_biovil_t_is_a_tower_too(tmp_path: Path) -> None:
    from encoder.biovil import BioViLT

    torch.manual_seed(0)
    BioViLT().save_pretrained(tmp_path)
    tower = load_tower(str(tmp_path))
    assert tower.shape == (14, 14, 512)
    assert not tower.is_plain
    with pytest.raises(ValueError, match="has no patches"):
        _ = tower.n_prefix
    with pytest.raises(ValueError, match="has no hidden states of tokens"):
        tower.encode(tower.black_pixels, layers=[-1])


def test_vectors_and_patches_are_those_of_the_package_rad_dino(towers, monkeypatch: pytest.MonkeyPatch) -> None:
    rad_dino = pytest.importorskip("rad_dino", reason="pip install rad-dino")
    monkeypatch.setattr(rad_dino.RadDino, "_REPO", str(towers["dinov2"]))
    images = [Image.effect_noise(size, 60).convert("RGB") for size in ((90, 64), (40, 70), (28, 28))]
    tower = load_tower(str(towers["dinov2"]), backend="pil")
    for image in images:
        class_token, patches = rad_dino.RadDino().extract_features(image)
        encoded = tower.encode(tower.prepare([image]))
        torch.testing.assert_close(encoded.pooled, class_token, atol=1e-4, rtol=0)
        torch.testing.assert_close(encoded.patches.permute(0, 3, 1, 2), patches, atol=1e-4, rtol=0)


def test_pooled_vectors_are_those_that_the_authors_use(towers) -> None:
    """CLIP's and SigLIP's behind the pooler; DINO's the class token behind the last LayerNorm."""
    import transformers as hf

    for family in FAMILIES:
        tower = load_tower(str(towers[family]))
        pixels = pixels_of(tower.processor)
        with torch.no_grad():
            outputs = tower.model(pixels)
        expected = outputs.last_hidden_state[:, 0] if family == "vit" else outputs.pooler_output
        assert torch.equal(tower.encode(pixels).pooled, expected), family
    clip = hf.CLIPModel.from_pretrained(towers["clip"]).eval()
    tower = load_tower(str(towers["clip"]))
    with torch.no_grad():
        expected = clip.get_image_features(pixel_values=pixels_of(tower.processor))
        expected = getattr(expected, "pooler_output", expected)
        found = clip.visual_projection(tower.encode(pixels_of(tower.processor)).pooled)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


DINOV3 = {"embeddings.": "", "model.": "", "register_tokens": "reg_token", "patch_embeddings": "patch_embed.proj"}
DINOV3 |= {"layer.": "blocks.", "attention.o_proj": "attn.proj", "up_proj": "fc1", "down_proj": "fc2"}
DINOV3 |= {"layer_scale1.lambda1": "gamma_1", "layer_scale2.lambda1": "gamma_2", "attention": "attn"}
SIGLIP = {"embeddings.patch_embedding": "patch_embed.proj", "embeddings.position_embedding.weight": "pos_embed"}
SIGLIP |= {"encoder.layers": "blocks", "layer_norm": "norm", "self_attn.out_proj": "attn.proj", "self_attn": "attn"}
SIGLIP |= {"head.probe": "attn_pool.latent", "head.attention.out_proj": "attn_pool.proj", "post_layernorm": "norm"}
SIGLIP |= {"head.layernorm": "attn_pool.norm", "head.mlp": "attn_pool.mlp"}


def timm_state(state: dict[str, torch.Tensor], names: dict[str, str]) -> dict[str, torch.Tensor]:
    """transformers' names -> timm's; q, k and v in one layer, whose keys may have no bias."""
    pattern = re.compile("|".join(map(re.escape, names)))
    plain = {pattern.sub(lambda match: names[match[0]], name): value for name, value in state.items()}
    found = {name: value for name, value in plain.items() if not re.search(r"[qkv]_proj|in_proj|mask_token", name)}
    for name, value in plain.items():
        if name.endswith("attn.q_proj.weight"):
            parts = [plain[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            found[name.replace("q_proj", "qkv")] = torch.cat(parts)
            value = plain[bias := name.replace("weight", "bias")]
            parts = [plain.get(bias.replace("q_proj", f"{one}_proj"), torch.zeros_like(value)) for one in "qkv"]
            found[bias.replace("q_proj", "qkv")] = torch.cat(parts)
        if "in_proj" in name:
            kind, width = name.rsplit("_", 1)[1], len(value) // 3
            found |= {f"attn_pool.q.{kind}": value[:width], f"attn_pool.kv.{kind}": value[width:]}
    if "pos_embed" in found:
        found["pos_embed"] = found["pos_embed"][None]
    return found


@pytest.mark.parametrize(
    ("family", "architecture", "arguments"),
    [
        ("dinov3", "vit_small_patch16_dinov3_qkvb", {"norm_layer": partial(torch.nn.LayerNorm, eps=1e-5)}),
        ("siglip", "vit_base_patch16_siglip_224", {"act_layer": "gelu_tanh"}),
    ],
)
@torch.no_grad()
def test_features_are_those_of_timm(towers, family: str, architecture: str, arguments: dict) -> None:
    import timm

    tower = load_tower(str(towers[family]))
    for parameter in tower.model.parameters():
        parameter.copy_(0.2 * torch.randn_like(parameter))
    sizes = {"img_size": 28, "patch_size": 14, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2}
    reference = timm.create_model(architecture, num_classes=0, **sizes, **arguments).eval()
    names = DINOV3 if family == "dinov3" else SIGLIP
    state = timm_state(tower.model.state_dict(), names)
    if family == "dinov3":
        for name in [name for name in state if name.endswith("qkv.bias")]:
            query, _, value = state.pop(name).chunk(3)
            state |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
    reference.load_state_dict(state)
    pixels = pixels_of(tower.processor)
    encoded, tokens = tower.encode(pixels), reference.forward_features(pixels)
    pooled = tokens[:, 0] if family == "dinov3" else reference.forward_head(tokens, pre_logits=True)
    assert pooled.std() > 0.01
    torch.testing.assert_close(encoded.pooled, pooled, atol=1e-4, rtol=0)
    torch.testing.assert_close(encoded.patches.flatten(1, 2), tokens[:, -4:], atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_and_columns_of_timms_swin_are_not_its_channels(tmp_path: Path) -> None:
    """Its features come as [B, H, W, D], those of most networks of timm as [B, D, H, W]."""
    import transformers as hf

    arguments = {"img_size": 64, "window_size": 2, "depths": [1, 1], "embed_dim": 8, "num_heads": [1, 2]}
    settings = {"architecture": "swin_tiny_patch4_window7_224", "num_classes": 0, "model_args": arguments}
    hf.TimmWrapperModel(hf.TimmWrapperConfig.from_dict(settings)).save_pretrained(tmp_path)
    hf.BitImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(tmp_path)
    tower = load_tower(str(tmp_path))
    pixels = pixels_of(tower.processor)
    grid = tower.model.timm_model.forward_features(pixels)
    encoded = tower.encode(pixels)
    assert torch.equal(encoded.patches, grid)
    torch.testing.assert_close(encoded.pooled, grid.mean((1, 2)))
    with pytest.raises(ValueError, match="does not take images of 96 x 96 pixels"):
        tower.encode(torch.zeros(1, 3, 96, 96))


def test_layers_side_by_side_averaged_and_raw(towers) -> None:
    tower = load_tower(str(towers["registers"]))
    pixels = pixels_of(tower.processor)
    with torch.no_grad():
        states = tower.model(pixels, output_hidden_states=True).hidden_states
    both = tower.encode(pixels, layers=[1, -1])
    assert both.pooled.shape == (1, 64)
    assert torch.equal(both.patches, torch.cat([states[1][:, 5:], states[-1][:, 5:]], -1).unflatten(1, (2, 2)))
    mean = tower.encode(pixels, layers=[1, -1], average=True)
    assert torch.equal(mean.pooled, (states[1][:, 0] + states[-1][:, 0]) / 2)
    raw, final = tower.encode_layers(pixels, [2, None])
    assert torch.equal(raw.tokens, states[2])
    assert torch.equal(raw.encoded.patches, states[2][:, 5:].unflatten(1, (2, 2)))
    assert torch.equal(final.tokens, states[-1])
    assert torch.equal(tower.last_norm(final.tokens)[:, 5:].unflatten(1, (2, 2)), tower.encode(pixels).patches)
    for layer in (4, -5):
        message = rf"Layer {layer} does not exist\. The tower has hidden states -4 to 3"
        with pytest.raises(ValueError, match=message):
            tower.encode(pixels, layers=[layer])


@pytest.fixture
def broken(towers, tmp_path: Path) -> Path:
    return Path(shutil.copytree(towers["dinov2"], tmp_path / "broken"))


def fault(name: str) -> str:
    with pytest.raises((OSError, ValueError)) as error:
        model_and_processor(name)
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
    monkeypatch.setitem(
        TOWERS, "rad-dino", Card("nobody/rad-dino", "", "")
    )  # the real one may be in this machine's cache
    assert fault("rad-dino") == (
        "Tower 'rad-dino' cannot be loaded: there is no folder nobody/rad-dino here, and it could not be downloaded "
        "from the Hugging Face hub (We couldn't connect to 'https://huggingface.co' to load the files, and couldn't "
        "find them in the cached files). On a machine with network access, run `hf download nobody/rad-dino "
        "--local-dir FOLDER`, then name that FOLDER instead"
    )


def test_equal_weights_have_equal_digests(towers) -> None:
    def digest(name: str | None = None, dtype: torch.dtype = torch.float32) -> str:
        """Digest after the first value of one parameter has been set to 0.5."""
        tower = model_and_processor(str(towers["siglip"]))[0].to(dtype)
        if name:
            tower.state_dict()[name].view(-1)[0] = 0.5
        return weights_digest(tower)

    assert digest() == digest()
    norms = [f"encoder.layers.{block}.layer_norm1.weight" for block in (0, 1)]  # equal to each other at first
    assert len({digest(), digest(norms[0]), digest(norms[1]), digest(dtype=torch.bfloat16)}) == 4
