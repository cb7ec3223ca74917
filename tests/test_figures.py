"""What encoders see: colors, attention and similarity of planted features; the sheet; raddraft figures."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.figures import (
    GAP,
    PANEL,
    TowerMaps,
    check_point,
    class_attention,
    draw,
    gray_image,
    look,
    panel_box,
    pca_map,
    sheet_size,
    similarity_map,
)
from encoder.tower import count_prefix_tokens
from encoder.towers import load_tower
from scripts.figures import main
from tests.test_images import chest
from tests.test_towers import model_and_processor, save_tower

CENTER = (0.5, 0.5)


def planted(noise: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [2, 8, 8, 16] of two kinds of patches, and which are of the second kind: left half, then lower half."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.randn(2, 16, generator=generator)
    second = torch.zeros(2, 8, 8, dtype=torch.bool)
    second[0, :, :4] = second[1, 4:] = True
    return kinds[second.long()] + noise * torch.randn(2, 8, 8, 16, generator=generator), second


def save_chest(path: Path, width: int = 80, height: int = 64) -> Path:
    Image.fromarray(chest()).resize((width, height)).save(path)
    return path


# ---- colors


def test_colors_tell_planted_regions_apart_in_every_image() -> None:
    patches, second = planted()
    colors = pca_map(patches)
    assert colors.shape == (2, 8, 8, 3)
    assert colors.dtype == np.uint8
    first_colors, second_colors = (colors[kind.numpy()].astype(float) for kind in (~second, second))
    distance = np.linalg.norm(first_colors.mean(0) - second_colors.mean(0))
    lightness = [group @ [0.2126, 0.7152, 0.0722] for group in (first_colors, second_colors)]
    assert distance > 80
    assert min(lightness[0]) > max(lightness[1]) or min(lightness[1]) > max(lightness[0])


def test_equal_features_have_equal_colors_in_two_images_whatever_their_length() -> None:
    patches, _ = planted()
    patches[1, 2, 3] = 7 * patches[0, 5, 6]
    colors = pca_map(patches)
    np.testing.assert_array_equal(colors[1, 2, 3], colors[0, 5, 6])
    assert len(np.unique(colors.reshape(-1, 3), axis=0)) > 50, "other patches have colors of their own"


def test_colors_do_not_depend_on_the_order_of_images() -> None:
    patches, _ = planted()
    difference = pca_map(patches.flip(0))[::-1].astype(int) - pca_map(patches)
    assert abs(difference).max() <= 1


def test_one_outlier_does_not_take_up_the_colors() -> None:
    patches, second = planted()
    patches[0, 0, 7] = -200 * patches[0, 0, 7]
    colors = pca_map(patches).astype(float)
    groups = [colors[1][kind[1].numpy()].mean(0) for kind in (~second, second)]
    assert np.linalg.norm(groups[0] - groups[1]) > 80


def test_features_without_differences_get_one_color() -> None:
    assert len(np.unique(pca_map(torch.ones(1, 4, 4, 8)).reshape(-1, 3), axis=0)) == 1


# ---- similarity


def test_similarity_is_1_at_the_point_and_the_planted_cosine_elsewhere() -> None:
    patches = torch.zeros(4, 5, 3)
    patches[..., 0] = 2
    patches[0, 4] = torch.tensor([1.0, 1.0, 0.0])
    patches[3, 0] = torch.tensor([0.0, 5.0, 0.0])
    patches[2, 2] = torch.tensor([-0.5, 0.0, 0.0])
    similarity = similarity_map(patches, (0.1, 0.1))
    expected = torch.ones(4, 5)
    expected[0, 4], expected[3, 0], expected[2, 2] = 0.5**0.5, 0, -1
    torch.testing.assert_close(similarity, expected)


@pytest.mark.parametrize(
    ("point", "row", "column"),
    [((0, 0), 0, 0), ((1, 1), 3, 4), ((1, 0), 0, 4), ((0.59, 0.5), 2, 2), ((0.6, 0.49), 1, 3)],
)
def test_point_counts_from_the_left_and_from_the_top(point, row: int, column: int) -> None:
    patches = torch.eye(20).reshape(4, 5, 20)
    assert similarity_map(patches, point).nonzero().tolist() == [[row, column]]


@pytest.mark.parametrize("point", [(1.01, 0.5), (0.5, -0.1), (float("nan"), 0.5), (32, 45), (0.5,), (0.1, 0.2, 0.3)])
def test_points_outside_the_image_are_refused(point) -> None:
    message = f"Point {' '.join(map(str, point))} is not in the image; give two numbers from 0 to 1"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_point(point)
    with pytest.raises(ValueError, match=re.escape(message)):
        similarity_map(torch.ones(2, 2, 3), point)


# ---- attention


def test_class_attention_is_softmax_of_the_class_query_with_all_keys(tower_folder) -> None:
    model, _ = model_and_processor(str(tower_folder))
    pixels = torch.randn(3, 3, 28, 42, generator=torch.Generator().manual_seed(0))
    block = model.encoder.layer[-1]
    inputs: list[torch.Tensor] = []
    handle = block.norm1.register_forward_hook(lambda _module, _args, output: inputs.append(output))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        output = model(pixels).last_hidden_state
    handle.remove()

    attention = class_attention(model, pixels, 1)

    last = block.attention
    with torch.no_grad():
        query, key = (layer(inputs[0]).unflatten(-1, (2, 16)).transpose(1, 2) for layer in (last.q_proj, last.k_proj))
    weights = (query[:, :, :1] @ key.transpose(-1, -2) / 16**0.5).softmax(-1)[:, :, 0].mean(1)  # [B, T]
    assert attention is not None
    assert attention.shape == (3, 2, 3)
    torch.testing.assert_close(attention.flatten(1), weights[:, 1:])
    torch.testing.assert_close(attention.sum((1, 2)) + weights[:, 0], torch.ones(3))
    # The tower is as it was.
    assert model.config._attn_implementation == "sdpa"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with torch.no_grad():
        assert torch.equal(model(pixels).last_hidden_state, output)


@pytest.mark.parametrize(("family", "n_prefix"), [("registers", 5), ("clip", 1), ("siglip", 0)])
def test_attention_of_every_family(family: str, n_prefix: int, tmp_path) -> None:
    model, processor = model_and_processor(str(save_tower(family, tmp_path)))
    assert count_prefix_tokens(model, processor) == n_prefix
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    attention = class_attention(model, pixels, n_prefix)
    if n_prefix == 0:
        assert attention is None
        return
    assert attention is not None
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(pixels, output_attentions=True).attentions[-1][:, :, 0].mean(1)
    torch.testing.assert_close(attention.flatten(1), expected[:, n_prefix:])
    torch.testing.assert_close(attention.sum((1, 2)), 1 - expected[:, :n_prefix].sum(1))


# ---- images


@pytest.mark.parametrize("family", ["dinov2", "clip", "siglip"])
def test_what_the_tower_got_is_the_center_square_of_the_image(family: str, tmp_path) -> None:
    folder = save_tower(family, tmp_path)
    if family == "dinov2":  # as its published processors do, cut a margin off
        text = (folder / "preprocessor_config.json").read_text()
        assert '"shortest_edge": 28' in text
        (folder / "preprocessor_config.json").write_text(text.replace('"shortest_edge": 28', '"shortest_edge": 32'))
    ramp = np.tile(np.linspace(0, 255, 56), (56, 1)).round().astype(np.uint8)
    xrays, maps = look(load_tower(str(folder)), [Image.fromarray(ramp)], [0.5, 0.5])
    assert xrays[0].shape == (28, 28)
    assert xrays[0].dtype == np.uint8
    np.testing.assert_allclose(xrays[0], ramp[::2, ::2] + 2.3, atol=3)
    assert maps.features.shape == (1, 2, 2, 3)
    assert maps.similarity.shape == (1, 2, 2)
    assert (maps.attention is None) == (family == "siglip")


def test_gray_image_undoes_normalization(tower_folder) -> None:
    _, processor = model_and_processor(str(tower_folder))
    image = np.random.default_rng(0).integers(0, 256, (28, 28)).astype(np.uint8)
    pixels = processor([Image.fromarray(image).convert("RGB")], return_tensors="pt")["pixel_values"]
    assert pixels.min() < 0
    np.testing.assert_array_equal(gray_image(pixels[0], processor), image)


# ---- the sheet


def shade(png: Image.Image, row: int, column: int, x: float, y: float) -> tuple[int, ...]:
    left, upper, *_ = panel_box(row, column)
    return png.getpixel((left + round(x * PANEL), upper + round(y * PANEL)))  # type: ignore[return-value]


def test_sheet_has_its_panels_where_they_belong() -> None:
    features = np.zeros((2, 2, 2, 3), np.uint8)
    features[0, 0, 1], features[1, 1, 0] = (255, 0, 0), (0, 0, 255)
    attention = torch.zeros(2, 2, 2)
    attention[1, 0, 0] = 0.9
    similarity = torch.zeros(2, 2, 2)
    similarity[0, 1, 1] = 1
    towers = [TowerMaps("a", features, attention, similarity), TowerMaps("b $x", 255 - features, None, similarity)]
    xrays = [np.full((5, 5), 40, np.uint8), np.full((7, 7), 200, np.uint8)]
    png = Image.open(io.BytesIO(draw(["one.png", "$two_$.png"], xrays, towers, CENTER))).convert("RGB")
    assert png.size == sheet_size(2, 2)

    assert shade(png, 0, 0, 0.1, 0.9) == (40, 40, 40)
    assert shade(png, 1, 0, 0.9, 0.1) == (200, 200, 200)
    corners = [(0.25, 0.25), (0.75, 0.25), (0.25, 0.75), (0.75, 0.75)]
    for row in (0, 1):
        assert [shade(png, row, 1, *corner) for corner in corners] == [*map(tuple, features[row].reshape(4, 3))]
        assert [shade(png, row, 4, *corner) for corner in corners] == [*map(tuple, 255 - features[row].reshape(4, 3))]
    bright, dark = shade(png, 1, 2, 0.25, 0.25), shade(png, 1, 2, 0.75, 0.75)
    assert sum(bright) > 500 > 20 > sum(dark)
    assert sum(shade(png, 0, 3, 0.75, 0.75)) > 500 > 60 > sum(shade(png, 0, 3, 0.25, 0.25))
    ring = [shade(png, row, column, 0.5 + 6 / PANEL, 0.5) for row in (0, 1) for column in (0, 3, 6)]
    assert all(red > 180 > 110 > blue for red, _, blue in ring), "the point is marked"
    said = png.crop(panel_box(0, 5)).convert("L")
    assert said.getextrema()[1] > 100, "that there is no class token"
    left, upper, right, lower = panel_box(1, 6)
    paper = png.getpixel((2, 2))
    assert shade(png, 1, 6, 0.99, 0.01) != paper
    assert png.getpixel((right + GAP // 2, upper + 5)) == png.getpixel((left - GAP // 2, lower - 5)) == paper


def test_sheet_is_the_same_every_time_and_leaves_matplotlib_alone() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    maps = TowerMaps("a", np.zeros((1, 2, 2, 3), np.uint8), torch.full((1, 2, 2), 0.25), torch.ones(1, 2, 2))
    sheets = {draw(["x"], [np.zeros((4, 4), np.uint8)], [maps], CENTER) for _ in range(2)}
    assert len(sheets) == 1
    assert dict(matplotlib.rcParams) == before


# ---- the command


def test_an_unreadable_image_is_named_and_the_others_are_drawn(tower_folder, tmp_path, capsys) -> None:
    images = [save_chest(tmp_path / "a.png"), tmp_path / "broken.png", save_chest(tmp_path / "b.png", 64, 90)]
    images[1].write_bytes(b"no image")
    towers = [str(tower_folder), str(save_tower("siglip", tmp_path / "siglip"))]
    out = tmp_path / "new" / "figures.png"
    assert main(images, towers, out) == 1
    with Image.open(out) as png:
        assert png.size == sheet_size(2, 2)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"2 of 3 images are drawn in {out}"
    assert len(printed) == 2
    assert printed[1].startswith(f"not drawn: {images[1]}")
    assert main(images[:1], towers[:1], out, [1.0, 0.0]) == 0


def test_what_cannot_be_drawn_is_said_in_a_sentence(tower_folder, tmp_path) -> None:
    image = save_chest(tmp_path / "a.png")
    out = tmp_path / "figures.png"
    with pytest.raises(ValueError, match=r"Point 1\.2 0\.5 is not in the image"):
        main([image], [str(tower_folder)], out, [1.2, 0.5])
    with pytest.raises(ValueError, match=r"figures are PNG files, so the name must end in \.png"):
        main([image], [str(tower_folder)], out.with_suffix(".pdf"))
    with pytest.raises(ValueError, match=r"No image to draw: .*missing\.png"):
        main([tmp_path / "missing.png"], [str(tower_folder)], out)
    with pytest.raises(ValueError, match="Unknown tower 'rad-din'"):
        main([image], ["rad-din"], out)
    assert not out.exists()
