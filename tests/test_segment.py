"""Masks in their published forms and on a tower's input grid; heads that learn what is planted in stored features."""

from __future__ import annotations

import json
import os
import re
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoder.config import ComputeConfig, FeatureConfig
from encoder.features import FeatureStore, open_store
from encoder.masks import (
    Geometry,
    MaskError,
    coco_polygons,
    decode_runs,
    fill_polygons,
    load_mask,
    prepare_mask,
    processor_geometry,
    restore_mask,
    vindr_polygons,
    write_mask,
)
from encoder.probe_config import SegmentConfig
from encoder.segment import (
    Head,
    dice_and_iou,
    draw_masks,
    gather,
    resample,
    segment,
    segmentation_loss,
    train_head,
)
from encoder.towers import load_tower
from raddraft.studies import Study, StudyImage
from tests.test_probe import save_store

HEADS = ("linear", "upernet", "vitdet")


def encode_runs(mask: np.ndarray, offsets: str) -> str:
    """The run-length text of a mask, the way back of `decode_runs`."""
    flat = np.asarray(mask, bool).ravel(order="F").astype(np.int8)
    borders = np.flatnonzero(np.diff(flat, prepend=0, append=0)).reshape(-1, 2)  # [n, 2]: first, behind the last
    if not len(borders):
        return "-1" if offsets == "relative" else ""
    before = np.concatenate([[0], borders[:-1, 1]]) if offsets == "relative" else -1
    pairs = np.column_stack([borders[:, 0] - before, borders[:, 1] - borders[:, 0]])
    return " ".join(map(str, pairs.ravel()))


def blob(seed: int, size: tuple[int, int] = (17, 23)) -> np.ndarray:
    return np.random.default_rng(seed).random(size) < 0.4


def processor(kind: str = "BitImageProcessor", **options):
    import transformers

    return getattr(transformers, kind)(**options)


# Run lengths


def test_relative_runs_count_down_the_columns_from_the_end_of_the_run_before() -> None:
    # 3 rows, 4 columns: pixels 1 and 2 stand in column 0; three further on, pixel 6 begins column 2.
    expected = np.array([[0, 0, 1, 0], [1, 0, 0, 0], [1, 0, 0, 0]], bool)
    np.testing.assert_array_equal(decode_runs("1 2 3 1", (3, 4), "relative"), expected)
    # The example of the SIIM-ACR challenge: each run begins one column (1,024 pixels) after the last, a little higher.
    mask = decode_runs("387620 23 996 33 986 43", (1024, 1024), "relative")
    columns = mask.any(0).nonzero()[0]
    assert columns.tolist() == [378, 379, 380]
    assert [mask[:, column].nonzero()[0].min() for column in columns] == [548, 543, 538]
    assert mask.sum(0)[columns].tolist() == [23, 33, 43]


def test_absolute_runs_count_from_one() -> None:
    # Kaggle's own example: 1 3 10 5 means the pixels 1, 2, 3, 10, 11, 12, 13, 14.
    mask = decode_runs("1 3 10 5", (5, 4), "absolute")
    assert (mask.ravel(order="F").nonzero()[0] + 1).tolist() == [1, 2, 3, 10, 11, 12, 13, 14]


@pytest.mark.parametrize("offsets", ["relative", "absolute"])
def test_runs_survive_the_round_trip(offsets) -> None:
    masks = [*map(blob, range(5)), np.zeros((4, 6), bool), np.ones((4, 6), bool), np.eye(5, dtype=bool)]
    for mask in masks:
        np.testing.assert_array_equal(decode_runs(encode_runs(mask, offsets), mask.shape, offsets), mask)
    assert encode_runs(np.array([[0, 1], [1, 1]]), offsets) == {"relative": "1 3", "absolute": "2 3"}[offsets]
    assert encode_runs(np.zeros((2, 2)), offsets) == {"relative": "-1", "absolute": ""}[offsets]


def test_several_runs_of_an_image_are_one_mask_and_nothing_is_an_empty_one() -> None:
    masks = [decode_runs(text, (2, 3), "relative") for text in ("0 2", " -1", "", "4 1")]
    assert np.any(masks, axis=0).tolist() == [[True, False, True], [True, False, False]]
    assert [mask.any() for mask in masks] == [True, False, False, True]
    assert not decode_runs("", (2, 3), "absolute").any()


@pytest.mark.parametrize(
    ("text", "offsets", "message"),
    [
        ("1 2 3", "relative", "Run lengths come in pairs, got 3 numbers: '1 2 3'"),
        ("1 2.5", "relative", "Run lengths must be integers, got '1 2.5'"),
        ("0 1", "absolute", "Run lengths (absolute) leave an image of 3 x 2 pixels"),
        ("1 6", "relative", "Run lengths (relative) leave an image of 3 x 2 pixels"),
        ("1 0", "relative", "or have a length below 1: '1 0'"),
        ("1 " * 200, "relative", "leave an image of 3 x 2 pixels, or have a length below 1: '1 1 1"),
    ],
)
def test_broken_runs_are_refused(text, offsets, message) -> None:
    with pytest.raises(MaskError, match=re.escape(message)) as caught:
        decode_runs(text, (2, 3), offsets)
    assert len(str(caught.value)) < 180


# Polygons


def test_coco_outlines_run_along_pixel_edges() -> None:
    mask = fill_polygons(coco_polygons([[1, 1, 3, 1, 3, 4, 1, 4], [[5, 0], [6, 0], [6, 1], [5, 1]]]), (6, 7))
    expected = np.zeros((6, 7), bool)
    expected[1:4, 1:3] = expected[0, 5] = True
    np.testing.assert_array_equal(mask, expected)


def test_coco_outlines_agree_with_pycocotools() -> None:
    coco = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    generator = np.random.default_rng(0)
    for _ in range(5):
        angles = np.sort(generator.uniform(0, 2 * np.pi, 12))
        radii = generator.uniform(20, 45, 12)
        outline = np.column_stack([60 + radii * np.cos(angles), 50 + radii * np.sin(angles)]).ravel().tolist()
        expected = coco.decode(coco.frPyObjects([outline], 100, 130)).any(-1)
        mask = fill_polygons(coco_polygons([outline]), (100, 130))
        assert (mask ^ expected).sum() < 0.02 * expected.sum()
        assert abs(int(mask.sum()) - int(expected.sum())) < 0.015 * expected.sum()


def test_ribs_of_vindr_are_filled_with_their_border() -> None:
    corners = [(1, 1), (3.9, 1), (3.2, 4), (1, 4)]
    mask = fill_polygons(vindr_polygons([{"x": x, "y": y} for x, y in corners]), (6, 7))
    expected = np.zeros((6, 7), bool)
    expected[1:5, 1:4] = True
    np.testing.assert_array_equal(mask, expected)
    assert not fill_polygons(vindr_polygons("None"), (6, 7)).any()


def test_outlines_are_cut_off_at_the_picture() -> None:
    assert fill_polygons(coco_polygons([[-5, -5, 50, -5, 50, 50, -5, 50]]), (6, 7)).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: coco_polygons({"counts": [1], "size": [2, 2]}), "by polygons is a list of outlines, got {'counts'"),
        (lambda: coco_polygons([[1, 2, 3]]), "An outline is a list of x and y, got [1, 2, 3]"),
        (lambda: coco_polygons([[1, 2, 3, 4]]), "An outline has at least three points"),
        (lambda: coco_polygons([[1, 2, 3, 4, 5, float("nan")]]), "and no NaN"),
        (lambda: vindr_polygons([[1, 2]]), "is a list of points with x and y, got [[1, 2]]"),
    ],
)
def test_broken_outlines_are_refused(make, message) -> None:
    with pytest.raises(MaskError, match=re.escape(message)):
        make()


# Pictures


def test_a_mask_is_written_and_read(tmp_path) -> None:
    mask = blob(0)
    write_mask(tmp_path / "masks" / "x.png", mask)
    np.testing.assert_array_equal(load_mask(tmp_path / "masks" / "x.png", mask.shape), mask)
    with Image.open(tmp_path / "masks" / "x.png") as image:
        assert image.mode == "L"
        assert np.unique(image).tolist() == [0, 255]
    with pytest.raises(TypeError):
        write_mask(tmp_path / "masks" / "x.png", np.zeros((2, 2, 2, 2), bool))
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["x.png"]
    np.testing.assert_array_equal(load_mask(tmp_path / "masks" / "x.png"), mask)


def test_what_is_not_black_is_the_mask(tmp_path) -> None:
    mask = blob(1)
    palette = Image.fromarray(np.where(mask, 0, 1).astype(np.uint8)).convert("P")
    palette.putpalette([9, 9, 9, 0, 0, 0])  # black is the second color
    pictures = {
        "one.png": Image.fromarray(mask.astype(np.uint8)),
        "bits.png": Image.fromarray(mask),
        "deep.png": Image.fromarray(mask.astype(np.uint16) * 256),
        "color.png": Image.fromarray(np.stack([0 * mask, 0 * mask, mask], -1).astype(np.uint8)),
        "alpha.png": Image.merge("LA", [Image.fromarray(mask.astype(np.uint8)), Image.new("L", mask.shape[::-1], 255)]),
        "palette.png": palette,
        "lossless.tif": Image.fromarray(mask.astype(np.uint8) * 255),
        "palette.gif": Image.fromarray(mask.astype(np.uint8) * 255),
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / name)
        np.testing.assert_array_equal(load_mask(tmp_path / name), mask, err_msg=name)


def test_labels_are_chosen_from_a_label_image(tmp_path) -> None:
    labels = np.random.default_rng(0).integers(0, 4, (9, 8)).astype(np.uint8)
    gray, palette = Image.fromarray(labels), Image.fromarray(labels).convert("P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 0, 0, 0, 255])
    for name, picture in (("gray.png", gray), ("palette.png", palette)):
        picture.save(tmp_path / name)
        found = load_mask(tmp_path / name, (9, 8), (2, 3))
        np.testing.assert_array_equal(found, labels >= 2, err_msg=name)
    Image.new("RGB", (4, 4)).save(tmp_path / "color.png")
    with pytest.raises(MaskError, match=r"one value per pixel, this one has R, G, B"):
        load_mask(tmp_path / "color.png", labels=(1,))


def test_pictures_that_are_no_masks_are_refused_in_a_sentence(tmp_path) -> None:
    write_mask(tmp_path / "x.png", blob(0, (20, 30)))
    (tmp_path / "cut.png").write_bytes((tmp_path / "x.png").read_bytes()[:60])
    Image.new("L", (30, 20)).save(tmp_path / "x.jpg")
    cases = {
        "x.png": r"x\.png: the mask has 30 x 20 pixels, its image 20 x 30$",
        "cut.png": r"cut\.png: truncated: the PNG chunk 'IDAT' is cut$",
        "x.jpg": r"x\.jpg: a mask must be a lossless image \(PNG, GIF, TIFF, BMP\)$",
        "none.png": r"none\.png: the mask does not exist$",
        "n" * 300: r"n{300}: the mask does not exist$",
    }
    for name, message in cases.items():
        with pytest.raises(MaskError, match=message):
            load_mask(tmp_path / name, (30, 20))


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_a_mask_whose_check_sum_is_wrong_is_refused(tmp_path, share) -> None:
    write_mask(tmp_path / "x.png", np.random.default_rng(0).random((64, 64)) > 0.5)
    data = (tmp_path / "x.png").read_bytes()
    start = int(len(data) * (1 - share))
    (tmp_path / "x.png").write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(MaskError, match=r"x\.png: (damaged: the check sum|truncated)"):
        load_mask(tmp_path / "x.png")


def test_masks_of_an_absurd_size_and_pipes_are_refused(tmp_path) -> None:
    write_mask(tmp_path / "x.png", np.ones((8, 8), bool))
    data = bytearray((tmp_path / "x.png").read_bytes())
    data[16:24] = (300_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(MaskError, match=r"x\.png: truncated or broken: Image size \(90000000000 pixels\)"):
        load_mask(tmp_path / "x.png")
    os.mkfifo(tmp_path / "y.png")
    with pytest.raises(MaskError, match="the mask is no file"):
        load_mask(tmp_path / "y.png")


# Geometry

BIT = {"size": {"shortest_edge": 48}, "crop_size": {"height": 32, "width": 32}}
TIMM = {"input_size": (3, 32, 32), "crop_pct": 0.875, "mean": (0, 0, 0), "std": (1, 1, 1)}
PROCESSORS = {
    "cropped": ("BitImageProcessor", BIT),
    "cropped, Pillow": ("BitImageProcessorPil", BIT),
    "odd crop": ("CLIPImageProcessor", BIT | {"crop_size": {"height": 35, "width": 31}}),
    "padded": ("BitImageProcessor", BIT | {"crop_size": {"height": 61, "width": 90}}),
    "padded, Pillow": ("BitImageProcessorPil", BIT | {"crop_size": {"height": 61, "width": 90}}),
    "whole": ("BitImageProcessor", BIT | {"do_center_crop": False}),
    "square": ("SiglipImageProcessor", {"size": {"height": 40, "width": 40}}),
    "crop alone": ("BitImageProcessor", BIT | {"do_resize": False}),
    "timm": ("TimmWrapperImageProcessor", {"pretrained_cfg": TIMM}),
    "timm, odd crop": ("TimmWrapperImageProcessor", {"pretrained_cfg": TIMM | {"input_size": (3, 33, 33)}}),
    "timm, oblong": ("TimmWrapperImageProcessor", {"pretrained_cfg": TIMM | {"input_size": (3, 32, 47)}}),
    "timm, squashed": ("TimmWrapperImageProcessor", {"pretrained_cfg": TIMM | {"crop_mode": "squash"}}),
}


def box(mask: np.ndarray) -> np.ndarray:
    rows, columns = mask.any(1).nonzero()[0], mask.any(0).nonzero()[0]
    return np.array([rows[0], rows[-1], columns[0], columns[-1]])


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_prepared_mask_lies_where_the_tower_sees_the_structure(name) -> None:
    kind, options = PROCESSORS[name]
    made = processor(kind, **options, do_normalize=False)
    offsets = []
    for height, width in [(64, 64), (50, 71), (71, 50), (97, 131), (240, 173), (333, 320), (40, 41)]:
        mask = np.zeros((height, width), bool)
        mask[height * 2 // 5 : height * 3 // 5, width // 3 : width * 2 // 3] = True
        picture = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8)).convert("RGB")
        seen = np.asarray(made([picture], return_tensors="pt")["pixel_values"][0].mean(0))
        geometry = processor_geometry(made, mask.shape)
        prepared = prepare_mask(mask, geometry)
        assert prepared.shape == seen.shape
        differences = box(prepared) - box(seen > 0.5)
        assert np.abs(differences).max() <= 1, (height, width)
        offsets.append(differences)
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.6, "nearest neighbor must not shift masks one way"


def test_masks_come_back_to_the_picture() -> None:
    mask = np.zeros((100, 140), bool)
    mask[30:70, 50:90] = True
    mask[:10] = True  # cut off by the crop
    geometry = processor_geometry(processor(**BIT), mask.shape)
    assert geometry == Geometry((100, 140), (48, 67), (8, 17), (32, 32))
    restored = restore_mask(prepare_mask(mask, geometry), geometry)
    assert restored.shape == mask.shape
    assert not restored[:16].any()
    assert np.abs(box(restored) - [30, 69, 50, 89]).max() <= 2
    padded = Geometry((10, 10), (10, 10), (-3, -4), (16, 18))
    np.testing.assert_array_equal(restore_mask(prepare_mask(mask[30:40, 45:55], padded), padded), mask[30:40, 45:55])


def test_masks_of_another_grid_are_refused() -> None:
    geometry = Geometry((10, 12), (10, 12), (0, 0), (8, 8))
    with pytest.raises(MaskError, match=r"^The mask has 10 x 12 pixels, the image 12 x 10$"):
        prepare_mask(np.zeros((12, 10), bool), geometry)
    with pytest.raises(MaskError, match=r"^The mask has 12 x 10 pixels, the tower's input 8 x 8$"):
        restore_mask(np.zeros((10, 12), bool), geometry)


def test_a_processor_that_hides_its_steps_is_refused() -> None:
    made = processor("TimmWrapperImageProcessor", pretrained_cfg=TIMM | {"crop_mode": "border"})
    with pytest.raises(ValueError, match="Masks cannot follow timm's ResizeKeepRatio, CenterCropOrPad"):
        processor_geometry(made, (64, 64))
    with pytest.raises(ValueError, match="Masks cannot follow a object"):
        processor_geometry(object(), (64, 64))


# Scores


def test_dice_and_iou_are_the_formulas() -> None:
    generator = np.random.default_rng(0)
    drawn, true = (generator.random((6, 3, 9, 11)) < np.linspace(0, 0.9, 6)[:, None, None, None] for _ in range(2))
    dice, iou = dice_and_iou(torch.from_numpy(drawn), torch.from_numpy(true))
    for i, j in np.ndindex(6, 3):
        a, b = (set(map(tuple, np.argwhere(mask[i, j]))) for mask in (drawn, true))
        assert float(dice[i, j]) == pytest.approx(2 * len(a & b) / (len(a) + len(b)) if a | b else 1, abs=1e-12)
        assert float(iou[i, j]) == pytest.approx(len(a & b) / len(a | b) if a | b else 1, abs=1e-12)
    assert dice[0].tolist() == iou[0].tolist() == [1, 1, 1], "neither there nor drawn"
    empty, full = torch.zeros(2, 2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool)
    assert [float(value) for value in dice_and_iou(full, empty)] == [0, 0]


def test_dice_and_iou_equal_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.functional.segmentation", reason="torchmetrics is not installed")
    drawn, true = (torch.rand(5, 4, 16, 13, generator=torch.Generator().manual_seed(i)) < 0.5 for i in range(2))
    dice, iou = dice_and_iou(drawn, true)
    expected = reference.dice_score(drawn.int(), true.int(), 4, average="none")
    torch.testing.assert_close(dice.float(), expected, atol=1e-6, rtol=0)
    expected = reference.mean_iou(drawn, true, 4, per_class=True)
    torch.testing.assert_close(iou.float(), expected, atol=1e-6, rtol=0)


def test_the_loss_is_lowest_for_the_truth() -> None:
    masks = torch.from_numpy(np.stack([blob(0), blob(1)]))[None].float()
    right, half, wrong = (float(segmentation_loss(scale * (2 * masks - 1), masks)) for scale in (20, 0, -20))
    assert right < 0.01
    share = (masks.mean((0, 2, 3))).double()
    assert half == pytest.approx(np.log(2) + 1 - float((share / (0.5 + share)).mean()), abs=0.01)
    assert wrong > 10


def test_subjects_are_resampled_not_images() -> None:
    values = np.random.default_rng(0).random((30, 2))
    alone = resample(values, [f"p{i:02}" for i in range(30)], 2000)
    assert alone.shape == (2000, 3)
    np.testing.assert_allclose(alone[:, 2], alone[:, :2].mean(1))
    np.testing.assert_allclose(alone.std(0)[:2], values.std(0) / np.sqrt(30), rtol=0.1)
    copies = resample(np.repeat(values[:6], 5, axis=0), np.repeat([f"p{i}" for i in range(6)], 5).tolist(), 2000)
    np.testing.assert_allclose(copies.std(0)[:2], values[:6].std(0) / np.sqrt(6), rtol=0.1)
    order = np.random.default_rng(1).permutation(30)
    again = resample(values[order], [f"p{i:02}" for i in order], 2000)
    np.testing.assert_allclose(again, alone, err_msg="the order of images does not count")


# Heads

SIDE, PATCH, WIDTH = 64, 4, 6


def plant(folder: Path, n_layers: int = 1, n_images: int = 30) -> tuple[FeatureStore, list[Study]]:
    """Pictures with two overlapping rectangles, their masks, and features that hold how much of a patch each covers.

    Several layers hold the same.
    """
    generator = np.random.default_rng(0)
    n_patches = SIDE // PATCH
    mixing = generator.normal(size=(2, WIDTH))
    rows, studies = [], []
    for number in range(n_images):
        masks = np.zeros((2, SIDE, SIDE), bool)
        for mask in masks:
            top, left = generator.integers(0, SIDE // 2, 2)
            mask[top : top + generator.integers(20, 33), left : left + generator.integers(20, 33)] = True
        name = f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)).save(folder / name)
        write_mask(folder / f"a{name}", masks[0])
        write_mask(folder / f"b{name}", masks[1])
        covered = masks.reshape(2, n_patches, PATCH, n_patches, PATCH).mean((2, 4))
        grids = [np.moveaxis(covered, 0, -1) @ mixing] * n_layers  # [H, W, WIDTH]
        grid = np.concatenate(grids, axis=-1) * 5 + generator.normal(size=(1, 1, n_layers * WIDTH)) * 0.1 + 3
        rows.append(np.concatenate([np.zeros((1, n_layers * WIDTH)), grid.reshape(-1, n_layers * WIDTH)]))
        split = "train" if number < n_images * 0.6 else "val" if number < n_images * 0.8 else "test"
        structures = {"a": folder / f"a{name}", "b": folder / f"b{name}"}
        studies.append(Study(f"s{number}", f"p{number // 2}", split, [StudyImage(folder / name, "PA", structures)]))
    grid = (n_patches, n_patches)
    return save_store(folder, np.stack(rows).astype(np.float16), grid, n_layers if n_layers > 1 else 0)[0], studies


def whole(side: int = SIDE):
    return processor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})


def quick(head: str = "linear", **options) -> SegmentConfig:
    return SegmentConfig(**{"structures": ("a", "b"), "head": head, "channels": 16, "lr": 0.02, "epochs": 30} | options)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, list[Study]]:
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="module")
def learned(planted):
    return segment(*planted, whole(), quick(seeds=(0, 1)))


@pytest.mark.parametrize("n_layers", [1, 4])
@pytest.mark.parametrize("head", HEADS)
def test_heads_learn_what_is_planted(head, n_layers, tmp_path) -> None:
    training = {"lr": 0.1, "epochs": 60} if head == "linear" else {"lr": 0.01, "epochs": 15, "head_batch_size": 6}
    result, _ = segment(*plant(tmp_path, n_layers), whole(), quick(head, **training))
    for name in ("a", "b", "mean"):
        assert result.scores[name]["dice"].value > 0.95
        assert 0.9 < result.scores[name]["iou"].value < result.scores[name]["dice"].value


@pytest.mark.parametrize(("head", "read"), [("linear", {0, 1, 2, 3}), ("upernet", {0, 1, 2, 3}), ("vitdet", {3})])
def test_heads_read_their_layers(head, read) -> None:
    grids = torch.randn(2, 4, 4, 4 * WIDTH, requires_grad=True)
    made = Head(quick(head), 4 * WIDTH, n_layers=4)
    logits = made(grids, (16, 12))
    assert logits.shape == (2, 2, 16, 12)
    (logits**2).sum().backward()
    assert {i for i, grad in enumerate(grids.grad.split(WIDTH, dim=-1)) if grad.abs().max() > 1e-6} == read


def test_heads_learn_nothing_where_nothing_is(planted) -> None:
    store, studies = planted
    order = np.random.default_rng(0).permutation(len(store.rows))
    rows = dict(zip(store.rows, [list(store.rows.values())[i] for i in order], strict=True))
    shuffled = replace(store, rows=rows)
    result, _ = segment(shuffled, studies, whole(), quick(epochs=5))
    assert result.scores["mean"]["dice"].value < 0.6


def test_the_result_says_all(learned) -> None:
    result, heads = learned
    assert (result.n_images, result.n_subjects) == (
        {"train": 18, "val": 6, "test": 6},
        {"train": 9, "val": 3, "test": 3},
    )
    assert (result.left_out, result.errors) == ({}, [])
    assert len(heads) == len(result.best_epochs) == len(result.val_dice) == len(result.test_dice) == 2
    assert result.dice.shape == result.iou.shape == (6, 2)
    # IoU = Dice / (2 - Dice), which is convex: over the mean of two seeds it lies above.
    assert (result.iou >= result.dice / (2 - result.dice) - 1e-12).all()
    assert (result.iou < result.dice).all()
    assert result.scores["mean"]["dice"].value == pytest.approx(result.dice.mean())
    assert np.mean(result.test_dice) == pytest.approx(result.dice.mean())
    assert result.scores["b"]["iou"].value == pytest.approx(result.iou[:, 1].mean())
    for name, column in (("a", 0), ("b", 1), ("mean", 2)):
        score, values = result.scores[name]["dice"], result.resampled["dice"][:, column]
        assert (score.low, score.high) == pytest.approx(tuple(np.quantile(values, [0.025, 0.975])))
        assert score.low <= score.value <= score.high
    assert result.resampled["iou"].shape == (500, 3)
    row = json.loads(json.dumps(result.to_dict()))
    assert row["scores"]["a"]["dice"].keys() == {"value", "low", "high"}
    assert row["config"]["structures"] == ["a", "b"]
    np.testing.assert_allclose(
        resample(np.array(row["dice"]), row["subjects"], row["config"]["resamples"]), result.resampled["dice"]
    )


def test_a_head_draws_what_its_score_says(planted, learned) -> None:
    store, studies = planted
    result, heads = learned
    examples, _, _ = gather(store, studies, whole(), ("a", "b"))
    found = []
    for head in heads:
        drawn = draw_masks(head, torch.stack([store.patches(path) for path in result.paths]), (SIDE, SIDE))
        found.append(dice_and_iou(drawn, examples["test"].masks(range(6)))[0])
    np.testing.assert_allclose(torch.stack(found).mean(0), result.dice)


def test_the_epoch_is_chosen_on_the_validation_split(planted) -> None:
    store, studies = planted
    examples, _, _ = gather(store, studies, whole(), ("a", "b"))
    val = examples["val"]
    grids = torch.stack([store.patches(image.path) for image in val.images])
    # The longer run begins otherwise (its learning rate falls later); at any length, what is kept is what was scored.
    for epochs in (1, 3, 8):
        head, epoch, value = train_head(examples["train"], val, quick(epochs=epochs, lr=0.5), seed=0)
        dice, _ = dice_and_iou(draw_masks(head, grids, (SIDE, SIDE)), val.masks(range(len(val))))
        assert 1 <= epoch <= epochs
        assert float(dice.mean()) == pytest.approx(value, abs=1e-12)


def test_a_seed_gives_the_same_again_and_leaves_the_callers_random_numbers_alone(planted, learned) -> None:
    first, _ = learned
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again, _ = segment(*planted, whole(), quick(seeds=(0, 1)))
    assert torch.equal(torch.rand(1), expected)
    np.testing.assert_array_equal(again.dice, first.dice)
    assert (again.val_dice, again.best_epochs) == (first.val_dice, first.best_epochs)
    assert first.test_dice[0] != first.test_dice[1]


def test_images_that_cannot_be_used_are_counted(tmp_path) -> None:
    store, studies = plant(tmp_path)
    del studies[0].images[0].masks["b"]
    studies[1].images.append(StudyImage(tmp_path / "lateral.png", "L"))
    del store.rows[str(studies[2].images[0].path)]
    write_mask(tmp_path / "a3.png", np.ones((SIDE, SIDE + 2), bool))
    result, _ = segment(store, studies, whole(), quick(epochs=1))
    assert result.left_out == {"without mask": 2, "without features": 1, "with an unusable mask": 1}
    assert result.n_images == {"train": 15, "val": 6, "test": 6}
    assert result.errors == [f"{tmp_path / 'a3.png'}: the mask has 66 x 64 pixels, its image 64 x 64"]


def test_too_few_images_are_an_error_with_the_reasons(planted) -> None:
    store, studies = planted
    message = (
        r"^Split 'train' has 0 images with features and masks of heart, and needs 2; left out in all: 30 without mask$"
    )
    with pytest.raises(ValueError, match=message):
        segment(store, studies, whole(), quick(structures=("heart",)))
    with pytest.raises(ValueError, match=r"^Split 'val' has 0 images"):
        segment(store, [study for study in studies if study.split != "val"], whole(), quick())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "unet"}, "Unknown head 'unet'. Choices: linear, upernet, vitdet"),
        ({"grid": "picture"}, "grid 'picture' was renamed to 'image'"),
        ({"grid": "mask"}, "Unknown grid 'mask'. Choices: input, image"),
        ({"structures": ()}, "structures must be one or more different names, got []"),
        ({"structures": ("a", "a")}, "structures must be one or more different names, got ['a', 'a']"),
        ({"structures": ("mean",)}, "cannot be named 'mean'"),
        ({"seeds": ()}, "seeds must be one or more numbers, got none"),
        ({"head_batch_size": 2}, "head_batch_size must be at least 3, got 2"),
    ],
)
def test_wrong_settings_are_refused(options, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        quick(**options)


def test_scores_on_the_pictures_own_grid_count_what_the_crop_cut_off(planted, learned) -> None:
    own, _ = segment(*planted, whole(), quick(grid="image", seeds=(0, 1)))
    np.testing.assert_array_equal(own.dice, learned[0].dice, err_msg="the input is the whole picture")
    # The same features, as if they were of the middle of the picture: heads learn less, and the rest is lost.
    cropped = processor(size={"shortest_edge": 64}, crop_size={"height": 32, "width": 32})
    seen, _ = segment(*planted, cropped, quick(epochs=3))
    missed, _ = segment(*planted, cropped, quick(epochs=3, grid="image"))
    assert seen.val_dice == missed.val_dice
    assert missed.scores["mean"]["dice"].value < seen.scores["mean"]["dice"].value


def test_an_odd_image_does_not_break_batch_normalisation(planted) -> None:
    store, studies = planted
    train = [study for study in studies if study.split == "train"][:4]
    rest = [study for study in studies if study.split != "train"]
    result, _ = segment(store, train + rest, whole(), quick("upernet", head_batch_size=3, epochs=1))
    assert result.n_images["train"] == 4


def test_features_of_a_real_tower(tower_folder, tmp_path) -> None:
    tower = load_tower(str(tower_folder))
    studies = []
    for number in range(9):
        pixels = np.random.default_rng(number).integers(0, 50, (40, 56), dtype=np.uint8)
        mask = np.zeros((40, 56), bool)
        mask[-(10 + 3 * number) :] = True
        Image.fromarray(pixels + 200 * mask.astype(np.uint8)).save(tmp_path / f"{number}.png")
        write_mask(tmp_path / f"mask{number}.png", mask)
        image = StudyImage(tmp_path / f"{number}.png", None, {"low": tmp_path / f"mask{number}.png"})
        studies.append(Study(f"s{number}", f"p{number}", ("train", "val", "test")[number % 3], [image]))
    paths = [study.images[0].path for study in studies]
    store = open_store(tower, paths, FeatureConfig("tokens"), ComputeConfig(workers=0, features=tmp_path / "features"))
    result, _ = segment(store, studies, tower.processor, SegmentConfig(("low",), epochs=20, lr=0.05))
    assert result.scores["low"]["dice"].value > 0.8
