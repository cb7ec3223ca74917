"""Converted checkpoints: the features of timm and open_clip on the same weights; every key used, dropped or refused."""

from __future__ import annotations

import hashlib
import json
import re
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import SwiGLUPacked, resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn

import raddraft.cli
from encoder.biovil import BioViLT
from encoder.convert import KINDS, convert
from encoder.tower import count_prefix_tokens, weights_digest
from encoder.towers import load_tower
from tests.test_biovil import NOT_NEEDED, hollow
from tests.test_towers import model_and_processor

# Heads 64 wide, as in all published models of these layouts; as few channels as two of them allow.
TINY: dict[str, Any] = {"embed_dim": 128, "depth": 3, "num_heads": 2, "num_classes": 0, "global_pool": "token"}
State = dict[str, torch.Tensor]


def randomize(model: torch.nn.Module) -> None:
    """Random values of visible size everywhere, so that no norm, scale or bias is without effect."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def vit(image_size: int = 64, patch_size: int = 16, **settings: Any) -> VisionTransformer:
    model = VisionTransformer(image_size, patch_size, **(TINY | settings))
    randomize(model)
    return model.eval()


def official_dinov2(model: VisionTransformer) -> State:
    """A timm model's weights under the names of the original DINOv2; with registers, the class token's share apart."""
    state = dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    state["mask_token"] = torch.randn(1, model.embed_dim, generator=generator)
    if "reg_token" in state:
        share = torch.randn(1, 1, model.embed_dim, generator=generator)
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([share, state["pos_embed"]], 1)
        state["cls_token"] = state["cls_token"] - share
    if type(model.blocks[0].mlp).__name__ == "GluMlp":
        packed = {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
        state = {re.sub(r"mlp\.fc[12]", lambda found: packed[found[0]], name): value for name, value in state.items()}
    return state


DINOV2: dict[str, dict[str, Any]] = {
    "mlp": {},
    "registers": {"reg_tokens": 4, "no_embed_class": True},
    # 344 = 128 x 4 x 2 / 3, rounded up to a multiple of 8; the first half of the packed layer is the gate.
    "swiglu": {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2 * 344 / 128},
}


def dinov2(variant: str, image_size: int = 56, **settings: Any) -> VisionTransformer:
    return vit(image_size, 14, init_values=1.0, **(DINOV2[variant] | settings))


def mrm_state(model: VisionTransformer) -> State:
    """With the decoder, the text half and the mask token as wide as the encoder that MRM's checkpoints have."""
    width = model.embed_dim
    extra = {
        "mask_token": torch.zeros(1, 1, width),
        "decoder_pos_embed": torch.zeros(1, 17, width),
        "decoder_embed.weight": torch.zeros(width, width),
        "decoder_blocks.0.norm1.weight": torch.zeros(width),
        "decoder_pred.bias": torch.zeros(8),
        "bert_encoder.model.cls.predictions.bias": torch.zeros(8),
        "bert_mlp.weight": torch.zeros(8, width),
    }
    return dict(model.state_dict()) | extra


def save(state: Any, path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(state, path)
    return path


@torch.no_grad()
def assert_same_features(folder: Path, reference: VisionTransformer, pixels: torch.Tensor) -> None:
    """Class token and patch grid, after the last LayerNorm."""
    tower, _ = model_and_processor(str(folder))
    expected = reference.forward_features(pixels)
    n_patches = (pixels.shape[-1] // tower.config.patch_size) ** 2
    found = tower(pixels).last_hidden_state
    assert found.shape == expected.shape
    assert tower.config.layer_norm_eps == reference.norm.eps
    assert expected.std() > 0.01
    torch.testing.assert_close(found[:, 0], expected[:, 0], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[:, -n_patches:], expected[:, -n_patches:], atol=1e-4, rtol=0)


def processor_in(folder: Path) -> Any:
    return model_and_processor(str(folder))[1]


def pixels_of(size: int) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def refusal(state: Any, folder: Path, **arguments: Any) -> str:
    """The sentence with which a checkpoint is refused; nothing is written."""
    path = save(state, folder / "checkpoint.pth")
    with pytest.raises(ValueError, match=r".") as error:
        convert(path, folder / "out", **arguments)
    assert sorted(folder.iterdir()) == [path]
    assert "\n" not in str(error.value)
    return str(error.value)


def without_text(state: State) -> State:
    return {name: value for name, value in state.items() if not name.startswith("bert_")}


# ---- the same features


@pytest.mark.parametrize("variant", DINOV2)
def test_original_dinov2(variant: str, tmp_path: Path) -> None:
    model = dinov2(variant)
    state = official_dinov2(model)
    # timm's own reading of this layout gives its model back, so the state is what timm takes for an official one.
    back = checkpoint_filter_fn(dict(state), model)
    assert all(torch.allclose(back[name], value, atol=1e-6) for name, value in model.state_dict().items())
    path = save(state, tmp_path / "dinov2_pretrain.pth")
    done = convert(path, tmp_path / "tower")
    assert (done.kind, done.image_size, done.patch_size) == ("dinov2", 56, 14)
    assert done.architecture == "3 blocks, 128 wide, 2 heads; position embeddings for 56 x 56 pixels"
    assert done.n_prefix == (5 if variant == "registers" else 1)
    assert done.model.num_parameters() == sum(value.numel() for value in state.values())
    assert done.dropped == {}
    assert done.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same_features(tmp_path / "tower", model, pixels_of(56))
    tower: Any = model_and_processor(str(tmp_path / "tower"))[0]
    processor = processor_in(tmp_path / "tower")
    assert torch.equal(tower.embeddings.mask_token, state["mask_token"])
    assert count_prefix_tokens(tower, processor) == done.n_prefix
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (256, 224)
    assert list(processor.image_mean) == [0.485, 0.456, 0.406]


def chunked(state: State) -> State:
    """Blocks 0 and 1 in chunk 0, block 2 in chunk 1: block numbers count on."""
    return {
        re.sub(r"^blocks\.(\d)\.", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}.", name): value
        for name, value in state.items()
    }


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def training_run(state: State) -> Any:
    """As DINOv2's trainer keeps them: student, teacher and their heads in one state dict."""
    student = prefixed({name: value + 1 for name, value in state.items()}, "student.backbone.")
    heads = {"student.dino_head.mlp.0.weight": torch.zeros(2), "teacher.dino_head.mlp.0.weight": torch.zeros(2)}
    return {"model": student | prefixed(state, "teacher.backbone.") | heads, "iteration": 7}


@pytest.mark.parametrize(
    ("wrap", "dropped"),
    [
        (chunked, {}),
        (lambda state: {"teacher": prefixed(chunked(state), "backbone.")}, {}),
        (lambda state: {"teacher": prefixed(state, "module.backbone."), "student": {}, "epoch": 3}, {}),
        (lambda state: {"state_dict": {"model": state}}, {}),
        (lambda state: state | {"head.weight": torch.zeros(3, 2), "head.bias": torch.zeros(3)}, {"head": 2}),
        (training_run, {"student": 7 + 3 * 14 + 1, "teacher.dino_head": 1}),
    ],
)
def test_wrapped_and_chunked_dinov2(wrap, dropped: dict[str, int], tmp_path: Path) -> None:
    model = dinov2("mlp")
    done = convert(save(wrap(official_dinov2(model)), tmp_path / "training.pth"), tmp_path / "tower")
    assert done.dropped == dropped
    assert_same_features(tmp_path / "tower", model, pixels_of(56))


def test_what_lies_beside_the_weights_is_named(tmp_path: Path) -> None:
    state = official_dinov2(dinov2("mlp"))
    training = {"teacher": state, "student": {}, "args": Namespace(lr=1e-3), "epoch": 3}
    done = convert(save(training, tmp_path / "training.pth"), tmp_path / "tower")
    assert "taken from 'teacher'; left out: args, epoch, student" in done.notes


def test_rad_dino_in_the_original_layout(tmp_path: Path) -> None:
    model = dinov2("mlp", 518, depth=1)
    state = official_dinov2(model)
    assert {re.sub(r"\.(weight|bias|gamma)$", "", name) for name in state} == {
        *("cls_token", "pos_embed", "mask_token", "patch_embed.proj", "norm"),
        *("blocks.0.norm1", "blocks.0.attn.qkv", "blocks.0.attn.proj", "blocks.0.ls1"),
        *("blocks.0.norm2", "blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.0.ls2"),
    }
    path = save(state, tmp_path / "backbone_compatible.safetensors")
    assert convert(path, tmp_path / "facebook").kind == "dinov2"
    done = convert(path, tmp_path / "tower", kind="rad-dino")
    assert (done.image_size, done.n_prefix) == (518, 1)
    assert_same_features(tmp_path / "tower", model, pixels_of(518))
    processor = processor_in(tmp_path / "tower")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (518, 518)
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.5307] * 3, [0.2583] * 3)


@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_open_clip_by_its_names(suffix: str, tmp_path: Path) -> None:
    trunk = vit()
    text = {"text.transformer.embeddings.position_ids": torch.arange(4)[None], "text.proj.0.weight": torch.zeros(2, 2)}
    head = {"visual.head.proj.weight": torch.zeros(8, 128), "logit_scale": torch.tensor(1.0)}
    path = save(prefixed(trunk.state_dict(), "visual.trunk.") | text | head, tmp_path / f"open_clip_model{suffix}")
    done = convert(path, tmp_path / "tower")
    assert (done.kind, type(done.model).__name__, done.n_prefix) == ("biomedclip", "ViTModel", 1)
    assert done.dropped == {"logit_scale": 1, "text": 2, "visual.head": 1}
    assert_same_features(tmp_path / "tower", trunk, pixels_of(64))


def test_open_clip_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip_torch is not installed")
    import timm
    from open_clip.transform import image_transform

    def tiny_trunk(**settings: Any) -> VisionTransformer:
        model = vit()
        model.default_cfg = {}  # type: ignore[assignment]  # create_model's business
        return model

    monkeypatch.setitem(timm.models._registry._model_entrypoints, "tiny_trunk", tiny_trunk)
    vision = {"timm_model_name": "tiny_trunk", "timm_pool": "", "timm_proj": "linear", "image_size": 64}
    words = {"context_length": 8, "vocab_size": 20, "width": 64, "heads": 1, "layers": 1}
    model = open_clip.model.CustomTextCLIP(32, vision, words).eval()
    randomize(model)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"preprocess_cfg": {"mean": [0.4, 0.5, 0.6]}}))
    convert(save(model.state_dict(), tmp_path / "open_clip_pytorch_model.bin"), tmp_path / "tower")
    assert_same_features(tmp_path / "tower", model.visual.trunk, pixels_of(64))
    tower, processor = model_and_processor(str(tmp_path / "tower"))
    with torch.no_grad():
        hidden = tower(pixels_of(64)).last_hidden_state
        # timm_pool is empty, as in BiomedCLIP: pooled by the trunk's own rule, the class token.
        torch.testing.assert_close(model.visual.head(hidden[:, 0]), model.visual(pixels_of(64)), atol=1e-4, rtol=0)
    blocks = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(20, 0).repeat(20, 1))
    expected = image_transform(64, is_train=False, mean=(0.4, 0.5, 0.6))(image)
    found = processor(image, return_tensors="pt")["pixel_values"][0]
    assert found.shape == expected.shape
    assert (found - expected).abs().max() < 0.02, "a gray value or so, from another implementation of bicubic resizing"


@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False}, {"mlp_ratio": 1.5}, {"depth": 11, "patch_size": 32}])
def test_plain_timm(settings: dict[str, Any], tmp_path: Path) -> None:
    model = vit(**settings)
    path = save(model.state_dict(), tmp_path / "vit.pth")
    with pytest.warns(UserWarning, match="ImageNet's mean and standard deviation are written. Give --mean and --std"):
        done = convert(path, tmp_path / "tower")
    assert (done.kind, type(done.model).__name__) == ("vit", "ViTModel")
    assert done.architecture.startswith(f"{settings.get('depth', 3)} blocks, ")
    assert_same_features(tmp_path / "tower", model, pixels_of(64))


def test_mrm(tmp_path: Path) -> None:
    model = vit()
    content = {"model": mrm_state(model), "args": Namespace(lr=1e-3), "epoch": 3}
    done = convert(save(content, tmp_path / "MRM.pth"), tmp_path / "tower")
    assert (done.kind, type(done.model).__name__) == ("mrm", "ViTModel")
    assert done.dropped == {"bert_*": 2, "decoder_*": 4, "mask_token": 1}
    assert_same_features(tmp_path / "tower", model, pixels_of(64))
    processor = processor_in(tmp_path / "tower")
    assert (list(processor.image_mean), list(processor.image_std)) == ([0.4978] * 3, [0.2449] * 3)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 64


def test_mrm_without_its_text_half_is_told_by_its_kind(tmp_path: Path) -> None:
    path = save(without_text(mrm_state(vit())), tmp_path / "MRM.pth")
    assert convert(path, tmp_path / "vit", mean=[0.5], std=[0.5]).kind == "vit"
    assert convert(path, tmp_path / "mrm", kind="mrm").kind == "mrm"


def test_heads_of_another_width(tmp_path: Path) -> None:
    model = vit(num_heads=4)
    path = save(model.state_dict(), tmp_path / "vit.pth")
    convert(path, tmp_path / "four", heads=4, mean=[0.5], std=[0.5])
    assert_same_features(tmp_path / "four", model, pixels_of(64))
    convert(path, tmp_path / "two", mean=[0.5], std=[0.5])
    with pytest.raises(AssertionError):
        assert_same_features(tmp_path / "two", model, pixels_of(64))


# ---- the folder


@pytest.mark.parametrize("layout", ["registers", "vit"])
def test_a_converted_tower_is_the_same_at_every_loading(layout: str, tmp_path: Path) -> None:
    state = official_dinov2(dinov2("registers")) if layout == "registers" else dict(vit().state_dict())
    state.pop("mask_token", None)
    done = convert(save(state, tmp_path / "x.pth"), tmp_path / "tower", mean=[0.5], std=[0.5])
    assert any("not in the checkpoint: set to zeros" in note for note in done.notes)
    assert sorted(path.name for path in (tmp_path / "tower").iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    ]
    digests = {weights_digest(model_and_processor(str(tmp_path / "tower"))[0]) for _ in range(2)}
    assert len(digests) == 1, "features on disk are known by this digest"


@pytest.mark.parametrize("layout", ["registers", "swiglu", "vit"])
def test_a_converted_tower_fits_into_a_llava_model(layout: str, tmp_path: Path, lm_folder: Path) -> None:
    from generator.config import ModelConfig
    from generator.model import build

    state = dict(vit().state_dict()) if layout == "vit" else official_dinov2(dinov2(layout))
    convert(save(state, tmp_path / "x.pth"), tmp_path / "tower", mean=[0.5], std=[0.5])
    model, processor = build(ModelConfig(str(tmp_path / "tower"), str(lm_folder)))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 70, 3), dtype=np.uint8))
    batch = processor(text="<image> The heart", images=image, return_tensors="pt")
    n_tokens = (64 // 16) ** 2 if layout == "vit" else (224 // 14) ** 2
    n_tokens += 4 * (layout == "registers")  # of the prefix, a LLaVA model leaves out the class token only
    assert int((batch["input_ids"] == model.config.image_token_id).sum()) == n_tokens
    with torch.no_grad():
        assert model(**batch).logits.isfinite().all()


def test_half_precision_is_cast_and_said(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in vit().state_dict().items()}
    done = convert(save(state, tmp_path / "x.safetensors"), tmp_path / "tower", mean=[0.5], std=[0.5])
    assert "float16 weights cast to float32" in done.notes
    written = load_file(tmp_path / "tower" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert torch.equal(written["embeddings.cls_token"], state["cls_token"].float())


def test_mean_and_std_may_be_given(tmp_path: Path) -> None:
    path = save(mrm_state(vit()), tmp_path / "MRM.pth")
    for name, mean, std in (("one", [0.5], [0.25]), ("three", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])):
        convert(path, tmp_path / name, mean=mean, std=std)
        written = json.loads((tmp_path / name / "preprocessor_config.json").read_text())
        assert (written["image_mean"], written["image_std"]) == (mean * (3 // len(mean)), std * (3 // len(std)))
    for wrong in ([0.1, 0.2], [127.5], []):
        with pytest.raises(ValueError, match=r"mean is \[.*\]; expected one value or three, on a scale from 0 to 1"):
            convert(path, tmp_path / "wrong", mean=wrong, std=[0.5])
    with pytest.raises(ValueError, match="--mean and --std go together; give both or neither"):
        convert(path, tmp_path / "wrong", mean=[0.5])


# ---- another image size


@torch.no_grad()
def interpolated(positions: Any, grid: int, antialias: bool) -> torch.Tensor:
    """Position embeddings [1, 1 + N, D] for another grid, written out."""
    patches = positions[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    patches = torch.nn.functional.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=antialias)
    return torch.cat([positions[:, :1], patches.flatten(2).transpose(1, 2)], 1)


@pytest.mark.parametrize("image_size", [32, 96])
def test_position_embeddings_are_resized_as_timm_does(image_size: int, tmp_path: Path) -> None:
    model = vit()
    grid = image_size // 16
    path = save(model.state_dict(), tmp_path / "vit.pth")
    done = convert(path, tmp_path / "tower", image_size=image_size, mean=[0.5], std=[0.5])
    assert done.image_size == image_size
    assert f"(bicubic, antialiased) from 4 x 4 to {grid} x {grid} patches" in done.notes[0]
    model.set_input_size((image_size, image_size))
    written = load_file(tmp_path / "tower" / "model.safetensors")["embeddings.position_embeddings"]
    assert torch.equal(written, interpolated(vit().pos_embed, grid, antialias=True))
    assert_same_features(tmp_path / "tower", model, pixels_of(image_size))
    processor = processor_in(tmp_path / "tower")
    assert processor(Image.new("RGB", (90, 70)), return_tensors="pt")["pixel_values"].shape[-2:] == (image_size,) * 2


@pytest.mark.parametrize("variant", ["mlp", "registers"])
@pytest.mark.parametrize("image_size", [28, 84])
def test_a_resized_dinov2_is_what_transformers_makes_of_the_other(
    variant: str, image_size: int, tmp_path: Path
) -> None:
    path = save(official_dinov2(dinov2(variant)), tmp_path / "x.pth")
    convert(path, tmp_path / "plain")
    convert(path, tmp_path / "resized", image_size=image_size)
    with torch.no_grad():
        plain, resized = (
            model_and_processor(str(tmp_path / name))[0](pixels_of(image_size)).last_hidden_state
            for name in ("plain", "resized")
        )
    torch.testing.assert_close(resized, plain, atol=1e-5, rtol=0)


def test_mrm_is_resized_without_antialiasing(tmp_path: Path) -> None:
    model = vit()
    convert(save(mrm_state(model), tmp_path / "MRM.pth"), tmp_path / "tower", image_size=32)
    written = load_file(tmp_path / "tower" / "model.safetensors")["embeddings.position_embeddings"]
    expected = resample_abs_pos_embed(model.pos_embed, [2, 2], antialias=False)
    torch.testing.assert_close(written, expected)
    assert not torch.allclose(written, resample_abs_pos_embed(model.pos_embed, [2, 2]), atol=1e-3)


# ---- what is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm_pre.weight": torch.zeros(128)}, r"does not fit ViTModel: no place for 1 of its entries: norm_pre\.w"),
        ({"blocks.0.attn.q_norm.weight": torch.zeros(64)}, r"no place for 1 of its entries: blocks\.0\.attn\.q_norm"),
        ({"dist_token": torch.zeros(1, 1, 128)}, r"no place for 1 of its entries: dist_token"),
        ({"register_tokens": torch.zeros(1, 4, 128)}, r"no place for 1 of its entries: register_tokens"),
        ({"blocks.2.mlp.fc2.bias": None}, r"1 are missing: blocks\.2\.mlp\.fc2\.bias"),
        ({"norm.weight": None, "norm.bias": None}, r"2 are missing: norm\.weight, norm\.bias"),
        ({"pos_embed": None}, r"has no pos_embed; only towers with learned position embeddings"),
        ({"pos_embed": torch.zeros(1, 13, 128)}, r"pos_embed: shape \[1, 13, 128\] is not that of one class token and"),
        ({"pos_embed": torch.zeros(1, 16, 128)}, r"pos_embed: shape \[1, 16, 128\] is not that of one class token"),
        ({"pos_embed": torch.zeros(1, 17, 64)}, r"pos_embed is \[1, 17, 64\], not \[1, 17, 128\]"),
        ({"blocks.1.attn.qkv.weight": torch.zeros(128, 128)}, r"qkv\.weight is \[128, 128\], not \[384, 128\]"),
        ({"patch_embed.proj.weight": torch.zeros(128, 1, 16, 16)}, r"has shape \[128, 1, 16, 16\]; expected width x 3"),
        ({"patch_embed.proj.weight": None}, r"has no patch_embed\.proj\.weight, at its top or under visual\.trunk\., "),
        ({"module.cls_token": torch.zeros(1, 1, 128)}, r"module\.cls_token and another entry both are cls_token"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    state = {name: value for name, value in (vit().state_dict() | change).items() if value is not None}
    assert re.search(message, refusal(state, tmp_path, mean=[0.5], std=[0.5]))


def test_dinov2_that_does_not_fit_is_named(tmp_path: Path) -> None:
    def answer(**changes: Any) -> str:
        return refusal(official_dinov2(dinov2("mlp", **changes)), tmp_path)

    assert "no whole mlp_ratio makes the 192 rows of blocks.0.mlp.fc1.weight from 128" in answer(mlp_ratio=1.5)
    timm_names = dict(dinov2("registers").state_dict())
    assert "pos_embed: shape [1, 16, 128] is not that of one class token" in refusal(timm_names, tmp_path)
    state = official_dinov2(dinov2("mlp"))
    unknown = prefixed(state, "backbone.") | {"neck.weight": torch.zeros(1)}
    assert "neck.weight is neither under backbone. nor a known part beside it" in refusal(unknown, tmp_path)
    state["blocks.1.ls2.gamma"] = torch.zeros(7)
    assert "does not fit Dinov2Model: 1 shapes do not fit: blocks.1.ls2.gamma is [7], not [128]" in refusal(
        state, tmp_path
    )


def test_a_kind_must_fit_the_keys(tmp_path: Path) -> None:
    dino = official_dinov2(dinov2("mlp"))
    assert "is not RAD-DINO, which has 37 x 37 patches" in refusal(dino, tmp_path, kind="rad-dino")
    assert "does not have the keys of kind 'mrm'. Choices: dinov2, rad-dino" in refusal(dino, tmp_path, kind="mrm")
    plain = dict(vit().state_dict())
    assert "does not have the keys of kind 'rad-dino'. Choices: vit, mrm" in refusal(plain, tmp_path, kind="rad-dino")
    assert "does not have the keys of kind 'dinov3'. Choices: biomedclip" in refusal(
        prefixed(plain, "visual.trunk."), tmp_path, kind="dinov3"
    )


def test_sizes_must_fit(tmp_path: Path) -> None:
    state = mrm_state(vit())
    assert "image_size 40 is not a multiple of the patch size 16" in refusal(state, tmp_path, image_size=40)
    assert "image_size 0 is not a multiple of the patch size 16" in refusal(state, tmp_path, image_size=0)
    assert "heads 3 does not divide the width 128" in refusal(state, tmp_path, heads=3)
    for width in (96, 1280):
        huge = dict(vit(embed_dim=width, depth=1, num_heads=16).state_dict())
        message = f"does not tell how many heads its {width} channels make"
        assert message in refusal(huge, tmp_path, kind="mrm")


class Trap:
    """What a hostile checkpoint may hold."""

    def __reduce__(self):
        return (Path.touch, (Path("touched"),))  # pickle finds the method by getattr


def test_nothing_but_tensors_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal({"model": mrm_state(vit()), "trap": Trap()}, tmp_path)
    assert re.search(r"tensors only: it holds getattr, which is not a tensor; save its state dict alone", message)
    assert not (tmp_path / "touched").exists()


def test_files_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    for name in ("broken.pth", "broken.safetensors"):
        path = tmp_path / name
        path.write_bytes(b"no checkpoint at all")
        with pytest.raises(ValueError, match=rf"{name} is not a checkpoint that can be loaded as tensors only: \S+"):
            convert(path, tmp_path / "out")
        path.unlink()
    with pytest.raises(ValueError, match="is a folder; name the checkpoint file in it"):
        convert(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        convert(tmp_path / "nowhere.pth", tmp_path / "out")
    assert "has the keys epoch; expected tensors by name" in refusal({"epoch": 3}, tmp_path)
    assert "has no dict; expected tensors by name" in refusal([1], tmp_path)


def test_weights_of_transformers_are_recognised(tower_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"it is in transformers' layout already"):
        convert(tower_folder / "model.safetensors", tmp_path / "out")


def test_open_clips_preparation_must_be_a_usual_one(tmp_path: Path) -> None:
    path = save(prefixed(vit().state_dict(), "visual.trunk."), tmp_path / "open_clip_model.safetensors")
    beside = tmp_path / "open_clip_config.json"
    for content, message in (
        ('{"preprocess_cfg": {"resize_mode": "squash"}}', r"resize_mode is 'squash'. Choices here: shortest"),
        ("{", r"open_clip_config.json is not an open_clip config"),
        ("[]", r"open_clip_config.json is not an open_clip config"),
    ):
        beside.write_text(content)
        with pytest.raises(ValueError, match=message):
            convert(path, tmp_path / "out")


def test_nothing_is_overwritten_or_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import BitImageProcessor

    path = save(mrm_state(vit()), tmp_path / "MRM.pth")
    out = tmp_path / "tower"
    out.mkdir()
    (out / "mine.txt").touch()
    with pytest.raises(ValueError, match="exists and is not an empty folder; choose another --out"):
        convert(path, out)
    with pytest.raises(ValueError, match="exists and is not an empty folder"):
        convert(path, path)
    (out / "mine.txt").unlink()

    def full(*arguments: Any, **more: Any) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(BitImageProcessor, "save_pretrained", full)
        with pytest.raises(OSError, match="No space left"):
            convert(path, out)
    assert sorted(tmp_path.iterdir()) == [path, out]
    assert not list(out.iterdir())
    convert(path, out)
    assert (out / "config.json").is_file()


# ---- the action


def run(*arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        raddraft.cli.run("convert", [str(argument) for argument in arguments])
    code = end.value.code
    return (code, "") if isinstance(code, int) else (1, str(code))


def test_the_action_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save({"model": mrm_state(vit())}, tmp_path / "MRM.pth")
    out = tmp_path / "tower"
    assert run(path, "--out", out, "--mean", "0.4", "0.5", "0.6", "--std", "0.2", "--image_size", "32") == (0, "")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        f"{out}: ViTModel, kind mrm, 0.7 M parameters",
        "3 blocks, 128 wide, 2 heads; position embeddings for 32 x 32 pixels",
        "32 x 32 pixels are 4 patches of 16 x 16; prefix tokens: 1",
        "images: shorter side resized to 32 (bicubic), center 32 x 32 kept, mean [0.4, 0.5, 0.6], std [0.2, 0.2, 0.2]",
        "dropped: bert_* (2), decoder_* (4), mask_token (1)",
        "taken from 'model'",
        "position embeddings interpolated (bicubic) from 4 x 4 to 2 x 2 patches",
        "pooler.dense.bias is not in the checkpoint: set to zeros, not to random numbers",
        "pooler.dense.weight is not in the checkpoint: set to zeros, not to random numbers",
        "terms of use: github.com/RL4M/MRM-pytorch",
        f"sha256 of the checkpoint: {hashlib.sha256(path.read_bytes()).hexdigest()}",
        f"next: raddraft features --tower {out} --studies studies.jsonl",
    ]
    status, message = run(path, "--out", out)
    assert (status, message.split(": ")[0]) == (1, "raddraft convert")


def test_the_action_takes_one_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "first.pth", tmp_path / "second.pth", "--out", tmp_path / "out") == (2, "")
    assert re.search(r"unexpected argument .*second\.pth", capsys.readouterr().err)


def test_biovil_t_is_converted_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {f"encoder.{name}": value for name, value in BioViLT().state_dict().items()}
    matrix = torch.randn(256, 2048, 1, 1)
    state = hollow(state) | {name: torch.zeros(1) for name in NOT_NEEDED} | {"encoder.backbone_to_vit.weight": matrix}
    path = save(state, tmp_path / "biovil_t_image_model_proj_size_128.pt")
    out = tmp_path / "a tower"
    assert run(path, "--out", out, "--image_size", 224, "--mean", 0.5) == (
        1,
        f"raddraft convert: {path} is BioViL-T's image model, which does not take --image-size, --mean",
    )
    assert not out.exists()
    assert run(path, "--out", out) == (0, "")
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == [
        f"{out}: BioViLT, kind biovil-t, 24.0 M parameters",
        "ResNet-50, 512 wide: 256 of the image, 256 in place of a prior image",
        "448 x 448 pixels are 196 patches of 32 x 32; prefix tokens: 0",
        "images: shorter side resized to 512 (bilinear), center 448 x 448 kept",
        "dropped: encoder.encoder.fc (2), encoder.vit_pooler (42), projector (8)",
        "terms of use: huggingface.co/microsoft/BiomedVLP-BioViL-T",
        f"sha256 of the checkpoint: {hashlib.sha256(path.read_bytes()).hexdigest()}",
        f"next: raddraft features --tower '{out}' --studies studies.jsonl --gray-mapping minmax",
    ]
    tower = load_tower(str(out))
    assert torch.equal(tower.model.backbone_to_vit.weight, matrix)
    pixels = tower.prepare([Image.new("RGB", (600, 700))])
    assert pixels.shape == (1, 3, 448, 448)


def test_a_broken_biovil_t_leaves_nothing(tmp_path: Path) -> None:
    message = refusal({"encoder.backbone_to_vit.weight": torch.zeros(256, 2048, 1, 1)}, tmp_path)
    assert re.search(r"is not BioViL-T's image model: \d+ are missing: encoder\.missing_previous_emb", message)


def test_the_actions_kinds_are_all_kinds() -> None:
    from typing import get_args, get_type_hints

    from scripts.convert import main

    assert get_args(get_args(get_type_hints(main)["kind"])[0]) == tuple(KINDS)
