"""encoder.augment: crops are where, as large and as bright as asked for; masks follow their formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize

from encoder.augment import MultiCrop, block_masks, change_intensity, draw_box
from encoder.crop_sheet import PANEL, CropRow, draw_crops
from encoder.recipe import CropConfig
from tests.conftest import ROOT
from tests.test_cli import run
from tests.test_images import RAMP, chest

NOTHING = {"flip": 0.0, "jitter": 0.0, "blur_global": (0.0, 0.0), "blur_local": 0.0}
WHOLE = {"global_scale": (1.0, 1.0), "aspect_ratio": (1.0, 1.0)}


def small(**options: object) -> CropConfig:
    return CropConfig(**{"global_size": 28, "local_crops": 3, "local_size": 14} | options)


def random_image(height: int = 64, width: int = 64) -> Tensor:
    return torch.rand(1, height, width, generator=torch.Generator().manual_seed(0))


# ---- crops


@pytest.mark.parametrize("sides", [(64, 64), (40, 90), (90, 40), (300, 9), (8, 8), (1, 1)])
@pytest.mark.parametrize("local_crops", [0, 3])
def test_sizes_and_range_whatever_the_image(sides, local_crops) -> None:
    crops = MultiCrop(small(local_crops=local_crops, solarize=0.5), mean=0.5, std=0.25)
    for seed in range(10):
        large, local = crops(random_image(*sides), seed)
        assert large.shape == (2, 1, 28, 28)
        assert local.shape == (local_crops, 1, 14, 14)
        for tensor in (large, local):
            assert tensor.dtype == torch.float32
            assert (tensor * 0.25 + 0.5).isfinite().all()
            assert ((tensor >= -2 - 1e-5) & (tensor <= 2 + 1e-5)).all()


@pytest.mark.parametrize("gray", [0.0, 0.3, 1.0])
def test_constant_images_stay_constant(gray) -> None:
    for seed in range(20):
        for crops in MultiCrop(small(), 0.0, 1.0)(torch.full((1, 30, 50), gray), seed):
            assert crops.isfinite().all()
            assert (crops.amax((1, 2, 3)) - crops.amin((1, 2, 3)) < 1e-5).all()


def test_the_seed_alone_decides_and_global_random_states_stay() -> None:
    crops = MultiCrop(small(), 0.5, 0.25)
    torch.manual_seed(1)
    np.random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    image, copy = random_image(), random_image()
    first = crops(image, 7)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert torch.equal(image, copy)
    torch.manual_seed(2)
    crops(image, 8)
    again = crops(image, 7)
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], crops(image, 8)[0])
    flat = [crop for group in first for crop in group]
    assert len({crop.sum().item() for crop in flat}) == len(flat), "every crop has its own draw"


def test_without_changes_the_whole_image_is_a_bicubic_resize_normalized_by_the_mean_of_the_channels() -> None:
    image = random_image()
    crops, _ = MultiCrop(small(**NOTHING, **WHOLE), [0.4, 0.5, 0.6], (0.2, 0.2, 0.3))(image, 0)
    expected = resize(image, [28, 28], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    for crop in crops:
        torch.testing.assert_close(crop, (expected - 0.5) / (0.7 / 3))


def test_flip_mirrors_left_and_right_as_often_as_asked() -> None:
    rising = torch.linspace(0, 1, 32).expand(1, 32, 32)
    crops = MultiCrop(small(**NOTHING | {"flip": 0.3}, local_crops=20), 0, 1)
    groups = zip(*(crops(rising, seed) for seed in range(200)), strict=True)
    for cut, tolerance in zip(map(torch.cat, groups), (0.07, 0.03), strict=True):
        falling = cut[:, 0, 0, 0] > cut[:, 0, 0, -1]
        assert falling.float().mean().item() == pytest.approx(0.3, abs=tolerance)


def test_twelve_bits_reach_the_view() -> None:
    deep = torch.from_numpy(RAMP.astype(np.float32) / 4095)[None].repeat_interleave(4, 1).repeat_interleave(4, 2)
    large, local = MultiCrop(CropConfig(global_size=112, local_crops=1, local_size=56), 0.5, 0.25)(deep, 0)
    assert len(large[0].unique()) > 1000
    assert len(local[0].unique()) > 256


def test_intensities_follow_their_formula_one_factor_a_view() -> None:
    crops = random_image(9, 9)[None].repeat(2, 1, 1, 1)
    factors = torch.tensor([[1.0, 1.0, 1.0], [1.1, 0.8, 1.5]]).T.reshape(3, 2, 1, 1, 1)
    untouched, changed = change_intensity(crops, *factors)
    torch.testing.assert_close(untouched, crops[0])
    bright = crops[1] * 1.1
    torch.testing.assert_close(changed, (bright.mean() + 0.8 * (bright - bright.mean())).clamp(0, 1) ** 1.5)


@pytest.mark.parametrize(("which", "share"), [("brightness", 1.05), ("contrast", 1.2), ("gamma", 0.7)])
def test_jitter_draws_from_its_ranges_as_often_as_asked(which, share) -> None:
    fixed = {"brightness": (1.0, 1.0), "contrast": (1.0, 1.0), "gamma": (1.0, 1.0)} | {which: (share, share)}
    image = random_image()
    plain = MultiCrop(small(**NOTHING, **WHOLE), 0, 1)(image, 0)[0][0]
    jittered = MultiCrop(small(**NOTHING | {"jitter": 0.25}, **WHOLE, **fixed, local_crops=0), 0, 1)
    factors = [torch.tensor(fixed[name][0]) for name in ("brightness", "contrast", "gamma")]
    expected, n_changed = change_intensity(plain[None], *factors)[0], 0
    for crop in torch.cat([jittered(image, seed)[0] for seed in range(150)]):
        changed = not torch.allclose(crop, plain, atol=1e-6)
        n_changed += changed
        torch.testing.assert_close(crop, expected if changed else plain)
    assert n_changed / 300 == pytest.approx(0.25, abs=0.08)


def test_each_branch_has_its_own_blur_and_only_the_second_global_view_is_solarized() -> None:
    image = random_image()
    config = small(**NOTHING | {"blur_global": (1.0, 0.0)}, **WHOLE, blur_sigma=(1.5, 1.5), solarize=1.0)
    plain = MultiCrop(small(**NOTHING, **WHOLE), 0, 1)(image, 3)[0][0, 0]
    first, second = MultiCrop(config, 0, 1)(image, 3)[0][:, 0]
    torch.testing.assert_close(first, torch.from_numpy(gaussian_filter(plain.numpy(), 1.5, truncate=3)))
    torch.testing.assert_close(second, torch.where(plain < 0.5, plain, 1 - plain))
    assert second.max() <= 0.5


def test_crops_are_blurred_as_often_as_dinov2_blurs_its_own() -> None:
    """Its GaussianBlur(p), written with 1.0, 0.1 and 0.5 for first, second and local crops, is RandomApply(1 - p)."""
    v2 = pytest.importorskip("torchvision.transforms.v2")
    image = random_image()
    theirs = [v2.RandomApply([v2.GaussianBlur(9, (1.5, 1.5))], 1 - written) for written in (1.0, 0.1, 0.5)]
    torch.manual_seed(0)
    expected = [np.mean([not torch.equal(blur(image), image) for _ in range(400)]) for blur in theirs]
    fixed = WHOLE | {"local_scale": (1.0, 1.0), "flip": 0.0, "jitter": 0.0}
    plain = MultiCrop(small(**NOTHING | fixed), 0, 1)(image, 0)
    blurred = MultiCrop(small(**fixed, blur_sigma=(1.5, 1.5)), 0, 1)
    counts = np.zeros(3)
    for seed in range(400):
        crops = [*blurred(image, seed)[0], blurred(image, seed)[1][0]]
        originals = [plain[0][0], plain[0][0], plain[1][0]]
        counts += [not torch.allclose(one, other, atol=1e-6) for one, other in zip(crops, originals, strict=True)]
    assert counts / 400 == pytest.approx(np.array(expected), abs=0.09)
    assert counts[0] == 0


def test_boxes_lie_inside_and_have_the_area_and_shape_asked_for() -> None:
    generator = np.random.default_rng(0)
    boxes = np.array([draw_box(400, 500, (0.2, 0.5), (0.75, 4 / 3), generator) for _ in range(3000)])
    top, left, height, width = boxes.T
    assert boxes.min() >= 0
    assert (top + height).max() <= 400
    assert (left + width).max() <= 500
    area, ratio = height * width / 200_000, width / height
    assert area.min() == pytest.approx(0.2, abs=0.005)
    assert area.max() == pytest.approx(0.5, abs=0.005)
    assert area.mean() == pytest.approx(0.35, abs=0.01)
    assert ratio.min() == pytest.approx(0.75, abs=0.02)
    assert ratio.max() == pytest.approx(4 / 3, abs=0.02)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)
    assert top.min() == left.min() == 0


@pytest.mark.parametrize(("sides", "expected"), [((100, 20), (36, 0, 27, 20)), ((20, 100), (0, 36, 20, 27))])
def test_where_no_box_fits_it_is_the_largest_in_the_middle(sides, expected) -> None:
    assert draw_box(*sides, (1.0, 1.0), (0.75, 4 / 3), np.random.default_rng(0)) == expected


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"global_size": 0}, "global_size must be at least 1, got 0"),
        ({"local_crops": -1}, "local_crops must be at least 0, got -1"),
        ({"flip": 1.5}, "flip must be at least 0 and at most 1, got 1.5"),
        ({"blur_global": (0.5, -0.1)}, r"blur_global must be at least 0 and at most 1, got \(0.5, -0.1\)"),
        ({"local_scale": (0.5, 0.2)}, "local_scale must be a range from low to high, .* got 0.5 to 0.2"),
        ({"global_scale": (0.5, 1.2)}, "global_scale .* at most 1, got 0.5 to 1.2"),
        ({"gamma": (0.0, 1.0)}, "gamma .* above 0, got 0.0 to 1.0"),
        ({"blur_sigma": (0.1, float("inf"))}, "blur_sigma .* got 0.1 to inf"),
        ({"contrast": (float("nan"), 1.0)}, "contrast .* got nan to 1.0"),
    ],
)
def test_impossible_values_are_refused_by_name(options, sentence) -> None:
    with pytest.raises(ValueError, match=sentence):
        CropConfig(**options)


def test_images_of_another_kind_are_refused() -> None:
    crops = MultiCrop(small(), 0.5, 0.25)
    for image in (torch.zeros(3, 30, 30), torch.zeros(30, 30), torch.zeros(1, 30, 30, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"floats \[1, H, W\] in 0\.\.1, got torch\."):
            crops(image, 0)
    with pytest.raises(ValueError, match="std must be above 0, got 0"):
        MultiCrop(small(), 0.5, 0)


# ---- masks


@pytest.mark.parametrize(("n_crops", "grid"), [(16, (8, 8)), (7, (37, 37)), (10, (5, 11)), (80, (16, 16))])
def test_masks_are_stratified_and_exact(n_crops, grid) -> None:
    """The i-th of the masked crops has int(N r) patches with r uniform in the i-th of equal strata of the ratio."""
    n_patches = grid[0] * grid[1]
    for seed in range(5):
        masks = block_masks(n_crops, grid, seed=seed)
        assert masks.shape == (n_crops, *grid)
        assert masks.dtype == torch.bool
        counts = np.sort(masks.sum((1, 2)).numpy())
        n_masked = int((counts > 0).sum())
        assert n_masked in {n_crops // 2, math.ceil(n_crops / 2)}
        bounds = np.linspace(0.1, 0.5, n_masked + 1)
        assert (counts[: n_crops - n_masked] == 0).all()
        for count, low, high in zip(counts[n_crops - n_masked :], bounds[:-1], bounds[1:], strict=True):
            assert int(n_patches * low) <= count <= int(n_patches * high)


@pytest.mark.parametrize("probability", [0.05, 0.3, 0.9])
def test_a_fraction_of_a_crop_is_masked_as_often_as_it_says(probability) -> None:
    masked = torch.cat([block_masks(8, (4, 4), probability, seed=seed).any(2).any(1) for seed in range(1000)])
    assert masked.float().mean().item() == pytest.approx(probability, abs=0.01)


def test_masked_share_over_many_batches_is_that_of_the_formula() -> None:
    masks = torch.cat([block_masks(16, (14, 14), seed=seed) for seed in range(300)]).float()
    shares = masks.mean((1, 2))
    assert (shares > 0).float().mean() == 0.5
    # int() takes off half a patch on average
    assert shares[shares > 0].mean().item() == pytest.approx(0.3 - 0.5 / 196, abs=0.003)
    assert shares[shares > 0].std().item() == pytest.approx(0.4 / 12**0.5, abs=0.004), "uniform from 0.1 to 0.5"
    first = (shares.view(300, 16) > 0).float().mean(0)
    assert first.numpy() == pytest.approx(0.5, abs=0.12), "which crops are masked is random"
    everywhere = masks.mean(0)
    assert everywhere.min() > 0.01, "blocks inside of the grid seldom reach a corner"
    assert everywhere.max() < 0.3


def test_masks_are_made_of_blocks() -> None:
    """A masked patch has far more masked neighbors than scattered patches of the same number would."""
    masks = block_masks(200, (16, 16), probability=1.0, ratio=(0.3, 0.3), seed=0)
    assert (masks.sum((1, 2)) == int(256 * 0.3)).all()
    beside = (masks[:, :, :-1] & masks[:, :, 1:]).sum() / masks[:, :, :-1].sum()
    assert beside > 0.6


@pytest.mark.parametrize("ratio", [(0.0, 0.0), (1.0, 1.0), (0.97, 0.97)])
@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (1, 9), (14, 14)])
def test_exact_counts_at_the_ends(grid, ratio) -> None:
    masks = block_masks(4, grid, probability=1.0, ratio=ratio, seed=0)
    assert (masks.sum((1, 2)) == int(grid[0] * grid[1] * ratio[0])).all()


def test_masks_come_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = block_masks(8, (9, 9), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, block_masks(8, (9, 9), seed=5))
    assert not torch.equal(first, block_masks(8, (9, 9), seed=6))
    assert block_masks(0, (9, 9)).shape == (0, 9, 9)
    assert not block_masks(8, (9, 9), probability=0.0).any()


@pytest.mark.parametrize(
    "options",
    [{"n_crops": -1}, {"grid": (0, 3)}, {"probability": 1.1}, {"ratio": (0.5, 0.1)}, {"ratio": (0.1, 1.5)}],
)
def test_impossible_masks_are_refused(options) -> None:
    with pytest.raises(ValueError, match="got"):
        block_masks(**{"n_crops": 4, "grid": (3, 3)} | options)


# ---- the sheet


def test_hidden_patches_are_tinted_and_the_others_are_gray() -> None:
    masks = torch.zeros(2, 2, 2, dtype=torch.bool)
    masks[1, 0, 1] = True
    row = CropRow("a.png", random_image(), torch.full((2, 1, PANEL, PANEL), 0.5), torch.zeros(3, 1, 14, 14), masks)
    pixels = np.asarray(draw_crops([row])).astype(int)
    colored = np.argwhere(np.ptp(pixels, axis=2) > 50)
    (top, left), (bottom, right) = colored.min(0), colored.max(0)
    assert bottom - top == pytest.approx(PANEL / 2, abs=1)
    assert right - left == pytest.approx(PANEL / 2, abs=1)
    assert (np.ptp(pixels[top : top + PANEL // 2, left - 40 : left], axis=2) == 0).all()


@pytest.mark.parametrize("local_crops", [0, 3])
def test_the_action_draws_what_can_be_read_and_names_what_cannot(tmp_path, studies_file, capsys, local_crops) -> None:
    (tmp_path / "0.png").write_bytes(b"no image")
    sizes = (
        "--pretrain.crops.global-size",
        28,
        "--pretrain.crops.local-size",
        14,
        "--pretrain.crops.local-crops",
        local_crops,
    )
    status, _ = run("crops", "--studies", studies_file, "--out", tmp_path / "crops.png", *sizes, "--count", 3)
    assert status == 1
    said = capsys.readouterr().out
    assert "crops of 2 images" in said
    assert "not drawn: " in said
    assert "0.png: not an image" in said
    assert min(Image.open(tmp_path / "crops.png").size) > 2 * PANEL


def test_the_sheet_is_of_what_the_recipe_trains_on(tmp_path, studies_file, monkeypatch) -> None:
    drawn: list[list] = []
    monkeypatch.setattr("encoder.crop_sheet.draw_crops", lambda rows: drawn.append(rows) or Image.new("L", (9, 9)))
    monkeypatch.chdir(tmp_path)
    recipe = ROOT / "configs" / "pretrain" / "phantom.yaml"
    command = ("crops", "--studies", studies_file, "--split", "val", "--out", "crops.png", "--config", recipe)
    assert run(*command, "--count", 20) == (0, "")
    [rows] = drawn
    assert len({row.name for row in rows}) == len(rows) == 8, "each image once"
    assert rows[0].masks.shape == (2, 4, 4), "112 pixels in patches of 28"
    assert torch.stack([row.masks for row in rows]).any()
    assert run(*command, "--pretrain.objective.ibot_weight", 0) == (0, "")
    assert not torch.stack([row.masks for row in drawn[1]]).any()


def test_the_action_refuses_sizes_that_are_no_whole_patches(tmp_path, studies_file) -> None:
    status, sentence = run(
        "crops", "--studies", studies_file, "--out", tmp_path / "x.png", "--pretrain.crops.local-size", 100
    )
    assert status == 1
    assert "A crop of 100 pixels is not a multiple of patch_size = 14" in sentence


def test_real_images_keep_most_of_their_contrast(cxr) -> None:
    from raddraft.images import load_gray
    from raddraft.studies import read_studies

    crops = MultiCrop(CropConfig(global_size=112, local_crops=0, local_size=56), 0, 1)
    kept, burnt = [], []
    for seed, study in enumerate(read_studies(cxr / "studies.jsonl", "train")[::100]):
        image = torch.from_numpy(load_gray(study.main_image.path))[None]
        large, _ = crops(image, seed)
        kept += (large.std((1, 2, 3)) / image.std()).tolist()
        burnt += (large > 0.999).float().mean((1, 2, 3)).tolist()
    assert 0.7 < np.median(kept) < 1.1
    assert np.mean(burnt) < 0.05


def test_chest_is_not_torn() -> None:
    """A smooth image gives smooth crops: nothing wraps around, no seams."""
    image = torch.from_numpy(gaussian_filter(chest(128).astype(np.float32) / 255, 3))[None]
    large, local = MultiCrop(small(local_crops=8, **NOTHING), 0, 1)(image, 0)
    for crops in (large, local):
        assert crops.diff(dim=-1).abs().max() < 0.15
        assert crops.diff(dim=-2).abs().max() < 0.15
