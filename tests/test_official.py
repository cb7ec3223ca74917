"""Towers from their authors' files: features of the reference implementations, odd files, files that are not there."""

from __future__ import annotations

import argparse
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.layers import SwiGLUPacked
from timm.models import eva, swin_transformer

from encoder.cards import TOWERS
from encoder.towers import load_tower
from tests.test_convert import Trap, official_dinov2, randomize, vit

State = dict[str, torch.Tensor]


def shrink(monkeypatch: pytest.MonkeyPatch, name: str, side: int, **expected: Any) -> None:
    """The same row of the registry for a network that tests can afford."""
    card = TOWERS[name]
    assert card.checkpoint
    checkpoint = replace(card.checkpoint, expected=dict(card.checkpoint.expected) | expected)
    checkpoint = replace(checkpoint, projection=6) if checkpoint.projection else checkpoint
    monkeypatch.setitem(TOWERS, name, replace(card, checkpoint=checkpoint, images=replace(card.images, side=side)))


def mixed(state: State) -> dict[str, Any]:
    """A training checkpoint with more in it than tensors and plain values."""
    return {
        "epoch": np.float64(3),
        "args": argparse.Namespace(lr=0.1),
        "scaler": Trap(),
        "other": {1: slice(2)},
    } | state


def same(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def eva_x_names(state: State, apart: bool) -> State:
    """timm's names -> those that masked image modeling of EVA-02 saves, with its head and tables."""
    names = {"mlp.norm": "mlp.ffn_ln", "fc_norm": "norm"}
    names |= {"mlp.fc1_g": "mlp.w1", "mlp.fc1_x": "mlp.w2", "q_proj.bias": "q_bias", "v_proj.bias": "v_bias"}
    names |= {"mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
    pattern = re.compile("|".join(map(re.escape, names)))
    found = {pattern.sub(lambda match: names[match[0]], name): value for name, value in state.items()}
    assert "blocks.0.attn.q_bias" in found
    assert ("blocks.0.mlp.w1.weight" in found) == apart
    width = state["cls_token"].shape[-1]
    extra = {
        "mask_token": torch.randn(1, 1, width),
        "lm_head.weight": torch.randn(5, width),
        "lm_head.bias": torch.ones(5),
    }
    return {name: value for name, value in found.items() if not name.startswith("head.")} | extra


@torch.no_grad()
@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_eva_x(size: str, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"img_size": 64, "ref_feat_shape": [4, 4], "depth": 2, "embed_dim": 64, "num_heads": 2}
    shrink(monkeypatch, f"eva-x-{size}", 64, **arguments)
    reference = timm.create_model(f"eva02_{size}_patch14_224", patch_size=16, num_classes=0, **arguments).eval()
    randomize(reference)
    state = eva_x_names(reference.state_dict(), apart=size == "base")
    table = torch.cos(torch.arange(16)[:, None] % 4 * torch.ones(16, 16))  # of the first frequency; others do not count
    official = {f"module.{name}": value for name, value in state.items()} | {"module.rope.freqs_cos": table}
    torch.save(mixed({"module": official}), tmp_path / "mim.pt")
    again = eva.checkpoint_filter_fn(dict(state), reference)  # timm's own way to read such files
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in again.items())

    tower = load_tower(f"eva-x-{size}:{tmp_path / 'mim.pt'}")
    pixels = torch.randn(2, 3, 64, 64)
    encoded, tokens = tower.encode(pixels), reference.forward_features(pixels)
    same(encoded.patches.flatten(1, 2), tokens[:, 1:])
    same(encoded.pooled, reference.forward_head(tokens, pre_logits=True))
    assert not (tmp_path / "touched").exists()
    assert not tower.is_plain
    with pytest.raises(ValueError, match="which has no hidden states to take, so a LLaVA model cannot hold it"):
        _ = tower.n_prefix

    tower.model.save_pretrained(tmp_path / "again")  # as beside a report model
    tower.processor.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(load_tower(str(tmp_path / "again")).encode(pixels).pooled, encoded.pooled)

    official["module.rope.freqs_cos"] = torch.cos(torch.arange(16)[:, None] % 4 * torch.ones(16, 16) * 5 / 4)
    torch.save({"module": official}, tmp_path / "other.pt")
    with pytest.warns(UserWarning, match="rotary positions are those of a grid of 5, as its own table has them"):
        tower = load_tower(f"eva-x-{size}:{tmp_path / 'other.pt'}")
    other = timm.create_model(
        f"eva02_{size}_patch14_224", patch_size=16, num_classes=0, **arguments | {"ref_feat_shape": [5, 5]}
    ).eval()
    other.load_state_dict(reference.state_dict())
    same(tower.encode(pixels).patches.flatten(1, 2), other.forward_features(pixels)[:, 1:])


@torch.no_grad()
def test_ark_plus(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"img_size": 64, "window_size": 2, "depths": [2, 1, 1, 1], "embed_dim": 8, "num_heads": [1, 1, 2, 2]}
    shrink(monkeypatch, "ark-plus", 64, **arguments)
    reference = timm.create_model("swin_large_patch4_window12_384", num_classes=3, **arguments).eval()
    randomize(reference)
    projector = torch.nn.Linear(64, 6)
    old = {
        re.sub(r"layers\.(\d)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample", name): value
        for name, value in reference.state_dict().items()
        if not name.startswith("head.")
    }
    again = swin_transformer.checkpoint_filter_fn(dict(old) | {"head.weight": torch.ones(3, 64)}, reference)
    assert again.keys() - {"head.fc.weight"} == reference.state_dict().keys() - {"head.fc.weight", "head.fc.bias"}
    extra = {
        "layers.0.blocks.1.attn_mask": torch.zeros(4),
        "layers.0.blocks.0.attn.relative_position_index": torch.ones(4),
    }
    extra |= {"omni_heads.0.weight": torch.zeros(14, 6), "head.weight": torch.zeros(3, 64), "head.bias": torch.zeros(3)}
    extra |= {f"projector.{name}": value for name, value in projector.state_dict().items()}
    teacher = {f"module.{name}": value for name, value in (old | extra).items()}
    student = {name: torch.zeros_like(value) for name, value in teacher.items()}
    torch.save(mixed({"state_dict": student, "teacher": teacher}), tmp_path / "ark.pth.tar")

    tower = load_tower(f"ark-plus:{tmp_path / 'ark.pth.tar'}")
    pixels = torch.randn(2, 3, 64, 64)
    encoded, grid = tower.encode(pixels), reference.forward_features(pixels)  # [B, 2, 2, 64]
    same(encoded.patches, projector(grid))
    same(encoded.pooled, projector(reference.forward_head(grid, pre_logits=True)))
    tower.model.save_pretrained(tmp_path / "again")
    tower.processor.save_pretrained(tmp_path / "again")
    torch.testing.assert_close(load_tower(str(tmp_path / "again")).encode(pixels).pooled, encoded.pooled)
    x = tower.prepare([Image.new("L", (300, 200), 255)])
    assert x.shape == (1, 3, 64, 64), "squashed, then cut"


@torch.no_grad()
@pytest.mark.parametrize("name", ["chexfound", "raydino"])
def test_original_dinov2_files(name: str, monkeypatch, tmp_path: Path) -> None:
    """Blocks in chunks, as its training saves them; CheXFound's under the teacher, with its heads."""
    shrink(monkeypatch, name, 64, width=128, depth=3, image_size=64)
    registers = {"reg_tokens": 4, "no_embed_class": True}
    swiglu = {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU, "mlp_ratio": 2 * 344 / 128}
    reference = vit(64, 16, init_values=1.0, **(registers | swiglu if name == "chexfound" else {}))
    state = {
        re.sub(r"blocks\.(\d)", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}", key): value
        for key, value in official_dinov2(reference).items()
    }
    if name == "chexfound":
        heads = {"dino_head.mlp.0.weight": torch.ones(2, 2), "ibot_head.last_layer.weight_v": torch.ones(2, 2)}
        state = {"teacher": {f"backbone.{key}": value for key, value in state.items()} | heads}
    torch.save(state, tmp_path / "weights.pth")
    tower = load_tower(f"{name}:{tmp_path / 'weights.pth'}")
    pixels = torch.randn(2, 3, 64, 64)
    tokens = reference.forward_features(pixels)
    encoded = tower.encode(pixels)
    same(encoded.pooled, tokens[:, 0])
    same(encoded.patches.flatten(1, 2), tokens[:, -16:])
    assert (tower.n_prefix, tower.is_plain) == (5 if name == "chexfound" else 1, True)
    other = "raydino" if name == "chexfound" else "chexfound"
    shrink(monkeypatch, other, 64, width=128, depth=3, image_size=64)
    with pytest.raises(ValueError, match=f"is not the checkpoint of '{other}': its n_registers is"):
        load_tower(f"{other}:{tmp_path / 'weights.pth'}")


@torch.no_grad()
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torchxrayvision_densenet_is_a_pickled_module(zipped: bool, monkeypatch, tmp_path: Path) -> None:
    xrv = pytest.importorskip("torchxrayvision", reason="pip install torchxrayvision")
    shrink(monkeypatch, "xrv-densenet121", 64, block_config=[2, 1, 1, 1])
    torch.manual_seed(0)
    network = xrv.models.DenseNet(block_config=(2, 1, 1, 1)).eval()
    shake(network)
    torch.save(network, tmp_path / "densenet.pt", _use_new_zipfile_serialization=zipped)
    tower = load_tower(f"xrv-densenet121:{tmp_path / 'densenet.pt'}")
    picture = Image.effect_noise((90, 64), 80)
    gray = xrv.utils.normalize(np.asarray(picture.crop((13, 0, 77, 64))), 255)[None, None]  # -1024 to 1024
    pixels = tower.prepare([picture])
    torch.testing.assert_close(pixels, torch.from_numpy(gray).expand(1, 3, -1, -1), atol=1e-3, rtol=0)
    encoded = tower.encode(pixels)
    same(encoded.pooled, network.features2(pixels[:, :1]))
    same(encoded.patches.permute(0, 3, 1, 2), network.features(pixels[:, :1]).relu())


@torch.no_grad()
def test_torchxrayvision_resnet(monkeypatch, tmp_path: Path) -> None:
    """torchxrayvision's network is torchvision's with one channel."""
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    shrink(monkeypatch, "xrv-resnet50", 64, layers=[1, 1, 1, 1])
    network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=18).eval()
    network.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    shake(network)
    torch.save(network.state_dict(), tmp_path / "resnet.pt")
    tower = load_tower(f"xrv-resnet50:{tmp_path / 'resnet.pt'}")
    gray = 2048 * torch.rand(2, 1, 64, 64) - 1024
    network.fc = torch.nn.Identity()
    same(tower.encode(gray.expand(-1, 3, -1, -1)).pooled, network(gray))


def shake(network: torch.nn.Module) -> None:
    """Statistics as after training, and a first layer for values up to 1024."""
    for name, value in network.state_dict().items():
        if name.endswith("running_mean"):
            value.normal_(std=0.1)
        elif name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif value.ndim == 1:
            value.add_(torch.randn_like(value), alpha=0.1)
        elif value.ndim == 4 and value.shape[1] == 1:
            value.mul_(0.001)


def tiny_densenet(monkeypatch: pytest.MonkeyPatch) -> State:
    """The least of a DenseNet, and its entries."""
    shrink(monkeypatch, "xrv-densenet121", 64, block_config=[1, 1, 1, 1])
    return timm.create_model("densenet121", block_config=[1, 1, 1, 1]).state_dict()


FIRST = "features.conv0.weight"


def test_random_weights_of_such_a_tower(monkeypatch, tmp_path: Path) -> None:
    state = tiny_densenet(monkeypatch)
    torch.save(state, tmp_path / "weights.pt")
    name = f"xrv-densenet121:{tmp_path / 'weights.pt'}"
    own, *random = (load_tower(one) for one in (name, f"random:{name}", f"random:{name}"))
    assert torch.equal(own.model.timm_model.state_dict()[FIRST], state[FIRST])
    assert own.digest != random[0].digest == random[1].digest


def test_files_are_found_where_they_are_kept(monkeypatch, tmp_path: Path) -> None:
    state = tiny_densenet(monkeypatch)
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setenv("HOME", str(tmp_path))
    message = (
        r"Tower 'xrv-densenet121' needs the file nih-pc-\S+-best\.pt, which is not in \S+/weights or "
        r"\S+/\.torchxrayvision/models_data: .*; put it there, or name it: xrv-densenet121:FILE"
    )
    with pytest.raises(OSError, match=message):
        load_tower("xrv-densenet121")
    file = TOWERS["xrv-densenet121"].checkpoint.file  # type: ignore[union-attr]
    for folder in (tmp_path / ".torchxrayvision" / "models_data", tmp_path / "weights"):
        folder.mkdir(parents=True)
        state[FIRST] = state[FIRST] + 1
        torch.save(state, folder / file)
        assert torch.equal(load_tower("xrv-densenet121").model.timm_model.state_dict()[FIRST], state[FIRST])


def test_what_is_not_there_is_told_with_the_way_to_get_it(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path))
    for name, file, way in (
        ("ark-plus", "Ark6_swinLarge768_ep50.pth.tar", "its authors send it on request, see github.com/jlianglab/Ark"),
        ("raydino", "xray_dino_vitl16_pretrained-ad31c2b0.pth", "its authors send a link after a form, ai.meta.com/"),
        ("chexfound", "teacher_checkpoint.pth", "its repository, github.com/RPIDIAL/CheXFound, links to it"),
    ):
        with pytest.raises(OSError, match=f"^Tower '{name}' needs the file {file}, which is not in {tmp_path}: {way}"):
            load_tower(name)
    hub = rf"'eva-x-tiny' needs .*_mim\.pt, which is not in {tmp_path}, and it could not be downloaded \(.+\): download"
    with pytest.raises(OSError, match=hub) as error:
        load_tower("eva-x-tiny")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Tower 'ark-plus': there is no file nowhere"):
        load_tower("ark-plus:nowhere")
    with pytest.raises(ValueError, match="microsoft/rad-dino is a folder that transformers reads, not a file"):
        load_tower("rad-dino:x.pt")


def test_entries_that_do_not_fit_are_named(monkeypatch, tmp_path: Path) -> None:
    whole = tiny_densenet(monkeypatch)
    for change, message in (
        ({"neck.weight": torch.ones(1)}, "no place for 1 of its entries: neck.weight"),
        ({FIRST: torch.ones(64, 2, 7, 7)}, rf"{FIRST} is \[64, 2, 7, 7\], not \[64, 3, 7, 7\]"),
        ({FIRST: None}, f"1 are missing: {FIRST}"),
        ({f"module.{FIRST}": torch.ones(64)}, f"module.{FIRST} and another entry both are {FIRST}"),
    ):
        state = {name: value for name, value in (whole | change).items() if value is not None}
        torch.save(state, tmp_path / "weights.pt")
        with pytest.raises(ValueError, match=message):
            load_tower(f"xrv-densenet121:{tmp_path / 'weights.pt'}")
    for content in (b"no checkpoint", b""):
        (tmp_path / "weights.pt").write_bytes(content)
        with pytest.raises(ValueError, match="is not a checkpoint that can be loaded as tensors only"):
            load_tower(f"xrv-densenet121:{tmp_path / 'weights.pt'}")
    torch.save(OrderedDict(x=Trap()), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match="has the keys x; expected tensors by name"):
        load_tower(f"xrv-densenet121:{tmp_path / 'weights.pt'}")


@pytest.mark.parametrize(
    ("name", "millions"),  # as their authors' pages say, without heads; of torchvision's for the last two
    [
        ("eva-x-tiny", 6),
        ("eva-x-small", 22),
        ("eva-x-base", 86),
        ("ark-plus", 195),
        ("xrv-densenet121", 7),
        ("xrv-resnet50", 24),
    ],
)
def test_networks_are_as_large_as_published(name: str, millions: int) -> None:
    checkpoint = TOWERS[name].checkpoint
    assert checkpoint
    with torch.device("meta"):
        network = timm.create_model(checkpoint.architecture, num_classes=0, **checkpoint.expected)
    assert round(sum(parameter.numel() for parameter in network.parameters()) / 1e6) == millions
