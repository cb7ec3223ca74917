"""`raddraft convert --timm`: state dicts of timm architectures, by name or by order."""

from __future__ import annotations

import json

import pytest
import timm
import torch
from PIL import Image

from encoder.towers import load_tower
from tests.test_cli import run


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model("resnet10t", pretrained=False).eval()


def test_features_are_timms_own_by_name_and_by_order(tmp_path, network, capsys) -> None:
    state = network.state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "named.pth")
    torch.save({f"layer_{i}": value for i, value in enumerate(state.values())}, tmp_path / "ordered.pth")
    image = Image.effect_noise((300, 260), 60).convert("RGB")
    for name in ("named", "ordered"):
        out = tmp_path / name
        assert run("convert", tmp_path / f"{name}.pth", "--timm", "resnet10t", "--out", out) == (0, "")
        tower = load_tower(str(out))
        pixels = tower.prepare([image])
        encoded = tower.encode(pixels)
        with torch.no_grad():
            grid = network.forward_features(pixels)
            pooled = network.forward_head(grid, pre_logits=True)
        torch.testing.assert_close(encoded.patches.permute(0, 3, 1, 2), grid, atol=1e-4, rtol=0)
        torch.testing.assert_close(encoded.pooled, pooled, atol=1e-4, rtol=0)
        assert json.loads((out / "config.json").read_text())["architecture"] == "resnet10t"
    smaller = load_tower(str(out), image_size=96)
    assert (smaller.prepare([image]).shape[-2:], smaller.shape[:2]) == ((96, 96), (3, 3))
    shown = capsys.readouterr().out
    assert shown.count("entries were taken in their order") == 1
    assert shown.count("dropped: 2 entries of the classifier") == 2


@pytest.mark.parametrize("classes", [0, 14])
def test_a_classifier_of_any_size_or_none_is_dropped(tmp_path, classes, capsys) -> None:
    whole = timm.create_model("resnet10t", pretrained=False, num_classes=classes).eval()
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    assert run("convert", tmp_path / "weights.pth", "--timm", "resnet10t", "--out", tmp_path / "out") == (0, "")
    assert ("dropped: 2 entries of the classifier" in capsys.readouterr().out) is (classes > 0)
    tower = load_tower(str(tmp_path / "out"))
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        grid = whole.forward_features(pixels)
    torch.testing.assert_close(tower.encode(pixels).patches.permute(0, 3, 1, 2), grid, atol=1e-4, rtol=0)


def test_figures_of_such_a_tower_are_drawn(tmp_path, network) -> None:
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    assert run("convert", tmp_path / "weights.pth", "--timm", "resnet10t", "--out", tmp_path / "out") == (0, "")
    Image.effect_noise((300, 260), 60).save(tmp_path / "x.png")
    command = ("figures", tmp_path / "x.png", "--towers", tmp_path / "out", "--out", tmp_path / "sheet.png")
    assert run(*command) == (0, "")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert min(sheet.size) > 200


def test_what_does_not_fit_is_refused_and_nothing_is_written(tmp_path, network) -> None:
    state = network.state_dict()
    wrong = state | {"conv1.0.weight": torch.zeros(3, 3, 3, 3)}
    lacking = {name: value for name, value in state.items() if name != "layer1.0.conv1.weight"}
    for entries, architecture, message in (
        (state, "resnet10x", "timm has no architecture 'resnet10x'"),
        (wrong, "resnet10t", "1 shapes do not fit: conv1.0.weight is [3, 3, 3, 3], not [24, 3, 3, 3]"),
        (
            state | {"neck.weight": torch.zeros(1)},
            "resnet10t",
            "does not fit resnet10t, by name or by order: no place for 1 of its entries: neck.weight",
        ),
        (lacking, "resnet10t", "does not fit resnet10t, by name or by order: 1 are missing: layer1.0.conv1.weight"),
        (state, "resnet18", "The checkpoint does not fit resnet18"),
    ):
        torch.save(entries, tmp_path / "weights.pth")
        status, sentence = run("convert", tmp_path / "weights.pth", "--timm", architecture, "--out", tmp_path / "out")
        assert status == 1
        assert message in sentence
        assert not (tmp_path / "out").exists()
    status, sentence = run(
        "convert", tmp_path / "weights.pth", "--timm", "resnet10t", "--heads", 3, "--out", tmp_path / "out"
    )
    assert (status, "which does not take --heads" in sentence) == (1, True)
