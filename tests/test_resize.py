"""encoder.resize: a manifest's images made small once; nothing else in it changes, and nothing stops the rest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.masks import load_mask
from encoder.resize import ResizeConfig, resize_gray, resize_studies
from raddraft.images import ImageWarning, load_gray, load_image
from raddraft.studies import Study, StudyImage, read_studies, write_studies
from tests.test_cli import files_no_larger_than, run
from tests.test_images import RAMP, chest, write_dicom


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Two studies: a wide JPEG with a mask, a 12-bit DICOM without suffix; keys of other people in every place."""
    root = tmp_path / "raw"
    (root / "files/a").mkdir(parents=True)
    (root / "masks").mkdir()
    Image.fromarray(chest(120)[:80]).save(root / "files/a/x.jpg", quality=95)
    lungs = np.zeros((80, 120), np.uint8)
    lungs[20:60, 30:90] = 255
    Image.fromarray(lungs).save(root / "masks/x.png")
    write_dicom(root / "files/1.2.34", RAMP, BitsStored=12)
    studies = [
        Study(
            "s1",
            "p1",
            "train",
            [StudyImage(root / "files/a/x.jpg", "PA", {"lungs": root / "masks/x.png"}, {"license": "CC"})],
            {"findings": "Clear."},
            {"Edema": 0},
            {"age": 50},
            "corpus",
            {"when": "2020"},
        ),
        Study("s2", "p2", "test", [StudyImage(root / "files/1.2.34")]),
    ]
    write_studies(root / "studies.jsonl", studies)
    return root / "studies.jsonl"


def resize(manifest: Path, out: Path, **options):
    return resize_studies(manifest, out, ResizeConfig(**{"size": 40} | options), processes=1)


# ---- one image


@pytest.mark.parametrize(("sides", "size", "expected"), [((80, 120), 40, (40, 60)), ((9, 31), 27, (27, 93))])
def test_the_shorter_side_gets_the_size_and_edges_stay_in_place(sides, size, expected) -> None:
    """A linear ramp over the image's area stays that ramp, read at the new pixels' centers."""
    rows, columns = ((np.arange(n) + 0.5) / n for n in sides)
    small = resize_gray((rows[:, None] * 0.6 + columns * 0.4).astype(np.float32), size)
    assert small.shape == expected
    rows, columns = ((np.arange(n) + 0.5) / n for n in expected)
    inner = (slice(5, -5), slice(5, -5))  # mirrored edges bend the ramp's ends
    assert np.abs(small - (rows[:, None] * 0.6 + columns * 0.4))[inner].max() < 2e-3


def test_a_image_of_the_right_size_keeps_its_values() -> None:
    values = chest(40).astype(np.float32) / 255
    np.testing.assert_allclose(resize_gray(values, 40), values, atol=1e-5)


def test_smooth_images_are_read_by_cubic_splines_exactly_enough() -> None:
    def wave(n: int) -> np.ndarray:
        return np.outer(*[np.cos(2 * np.pi * (np.arange(n) + 0.5) / n)] * 2).astype(np.float32)

    assert np.abs(resize_gray(wave(40), 160) - wave(160)).max() < 1e-3


def test_fine_grids_do_not_turn_into_patterns() -> None:
    """Lines of 2.2 pixels, finer than the new pixels, would come out as a coarse wave of nearly full height."""
    lines = np.sin(2 * np.pi * np.arange(400) / 2.2).astype(np.float32)
    assert np.abs(resize_gray(np.tile(lines, (400, 1)), 100)[5:-5, 5:-5]).max() < 0.02


# ---- a manifest


def test_images_and_masks_are_small_and_all_else_is_kept(manifest, tmp_path) -> None:
    done = resize(manifest, tmp_path / "small")
    assert (done.written, done.kept, done.errors) == (2, 0, [])
    before, after = read_studies(manifest), read_studies(done.manifest, check_images=True)
    small = tmp_path / "small"
    assert after[0].images[0].path == small / "images/files/a/x.jpg.png"
    assert after[0].images[0].masks == {"lungs": small / "masks/masks/x.png"}
    assert after[1].images[0].path == small / "images/files/1.2.34.png"
    for old, new in zip(before, after, strict=True):
        assert replace(new, images=[]) == replace(old, images=[])
        for one, other in zip(old.images, new.images, strict=True):
            digest = hashlib.sha256(one.path.read_bytes()).hexdigest()
            assert (other.view, other.extra) == (one.view, one.extra | {"source_sha256": digest})
    assert not os.path.isabs(json.loads(done.manifest.read_text().splitlines()[0])["images"][0]["path"])
    for study, size in zip(after, [(60, 40), (40, 40)], strict=True):
        with Image.open(study.images[0].path) as image:
            assert (image.size, image.mode, image.getextrema()) == (size, "L", (0, 255))
    mask = load_mask(after[0].images[0].masks["lungs"], (40, 60))
    assert mask[10:30, 15:45].all()
    assert mask.sum() == 20 * 30


def test_gray_values_are_those_of_the_image(manifest, tmp_path) -> None:
    small = load_image(resize(manifest, tmp_path / "small").manifest.parent / "images/files/a/x.jpg.png")
    box = load_image(manifest.parent / "files/a/x.jpg", "minmax").resize((60, 40), Image.Resampling.BOX)
    assert np.corrcoef(np.asarray(small).ravel(), np.asarray(box).ravel())[0, 1] > 0.99


def test_16_bits_keep_the_depth_and_read_back(manifest, tmp_path) -> None:
    resize(manifest, tmp_path / "small", bits=16, size=64)
    path = tmp_path / "small/images/files/1.2.34.png"
    with Image.open(path) as image:
        assert image.mode == "I;16"
        assert np.abs(np.asarray(image) / 65535 - RAMP / 4095).max() < 1e-4
    assert len(np.unique(load_gray(path))) > 4000


def test_another_mapping_keeps_its_own_scale(tmp_path) -> None:
    stored = RAMP // 8 + 100  # 100 to 611
    write_dicom(tmp_path / "x.dcm", stored, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    write_studies(tmp_path / "studies.jsonl", [Study("s", "p", "train", [StudyImage(tmp_path / "x.dcm")])])
    resize(tmp_path / "studies.jsonl", tmp_path / "small", gray_mapping="window")
    low, high = load_image(tmp_path / "small/images/x.dcm.png").getextrema()
    assert low == pytest.approx(100 * 255 / 4095, abs=2)
    assert high == pytest.approx(611 * 255 / 4095, abs=2)


def test_a_second_run_keeps_whole_files_and_mends_cut_and_missing_ones(manifest, tmp_path) -> None:
    small = tmp_path / "small"
    resize(manifest, small)
    film, mask, other = (
        small / name for name in ("images/files/a/x.jpg.png", "masks/masks/x.png", "images/files/1.2.34.png")
    )
    whole = {path: path.read_bytes() for path in (film, mask, other)}
    untouched = other.stat().st_mtime_ns
    assert resize(manifest, small).kept == 2
    for broken in (film, mask):
        for content in (None, b"", whole[broken][:-15]):
            broken.write_bytes(content) if content is not None else broken.unlink()
            done = resize(manifest, small)
            assert (done.written, done.kept) == (1, 1)
            assert broken.read_bytes() == whole[broken]
    assert other.stat().st_mtime_ns == untouched
    assert [path.name for path in small.rglob("*.tmp")] == []


def test_a_file_that_has_changed_is_made_anew_and_two_of_one_name_are_refused(manifest, tmp_path) -> None:
    small = tmp_path / "small"
    resize(manifest, small)
    Image.effect_noise((90, 60), 60).save(manifest.parent / "files/a/x.jpg")
    before = (small / "images/files/a/x.jpg.png").read_bytes()
    done = resize(manifest, small)
    assert (done.written, done.kept) == (1, 1)
    assert (small / "images/files/a/x.jpg.png").read_bytes() != before
    studies = read_studies(manifest)
    shutil.copy(studies[0].images[0].path, manifest.parent / "y")
    shutil.copy(studies[0].images[0].path, manifest.parent / "y.png")
    for study, name in zip(studies, ("y", "y.png"), strict=False):
        study.images = [StudyImage(manifest.parent / name)]
    write_studies(manifest, studies)
    with pytest.raises(ValueError, match=r"would both become .*images/y\.png; rename one"):
        resize(manifest, tmp_path / "other")


def test_other_settings_are_refused_and_named(manifest, tmp_path) -> None:
    resize(manifest, tmp_path / "small")
    for change, sentence in (({"size": 41}, "size was 40, now 41"), ({"bits": 16}, "bits was 8, now 16")):
        with pytest.raises(ValueError, match=f"another config: {sentence}; choose another"):
            resize(manifest, tmp_path / "small", **change)
    with pytest.raises(ValueError, match="the manifest's own folder"):
        resize(manifest, manifest.parent)
    with pytest.raises(ValueError, match="bits must be 8 or 16, got 12"):
        ResizeConfig(bits=12)
    with pytest.raises(ValueError, match="16 bits need gray_mapping minmax, got window"):
        ResizeConfig(bits=16, gray_mapping="window")
    with pytest.raises(ValueError, match="size must be at least 8, got 0"):
        ResizeConfig(size=0)


def test_images_outside_of_the_manifests_folder_stay_inside_of_the_new_one(manifest, tmp_path) -> None:
    (tmp_path / "lists").mkdir()
    write_studies(tmp_path / "lists/studies.jsonl", read_studies(manifest))
    resize(tmp_path / "lists/studies.jsonl", tmp_path / "small")
    assert {path.relative_to(tmp_path / "small").as_posix() for path in (tmp_path / "small").rglob("*.png")} == {
        "images/files/a/x.jpg.png",
        "images/files/1.2.34.png",
        "masks/masks/x.png",
    }


def test_broken_images_and_masks_are_named_and_the_rest_goes_on(studies_file, tmp_path, capsys) -> None:
    studies = read_studies(studies_file)
    studies[3].images[0].path.write_bytes(b"no image")
    studies[5].images[0].path.unlink()
    studies[7].images[0].masks["lungs"] = tmp_path / "missing.png"
    studies[8].images.append(StudyImage(studies[3].images[0].path))
    write_studies(studies_file, studies)
    arguments = ("--studies", studies_file, "--out", tmp_path / "small", "--size", 16, "--processes", 2)
    status, _ = run("prepare", "resize", *arguments)
    assert status == 1
    said = capsys.readouterr().out
    assert "38 images written, 0 kept" in said
    assert said.count("left out: ") == 3
    for culprit in ("/3.png: not an image", "/5.png: cannot be read", "missing.png: the mask does not exist"):
        assert culprit in said
    kept = read_studies(tmp_path / "small/studies.jsonl", check_images=True)
    assert [study.study_id for study in kept] == [study.study_id for study in studies if study not in studies[3:6:2]]
    by_id = {study.study_id: study for study in kept}
    assert by_id["s7"].images[0].masks == {}
    assert len(by_id["s8"].images) == 1


def test_no_image_at_all_is_an_error_and_leaves_no_manifest(tmp_path) -> None:
    write_studies(tmp_path / "studies.jsonl", [Study("s", "p", "train", [StudyImage(tmp_path / "x.png")])])
    status, sentence = run("prepare", "resize", "--studies", tmp_path / "studies.jsonl", "--out", tmp_path / "small")
    assert status == 1
    assert "No image of" in sentence
    assert "x.png: cannot be read" in sentence
    assert not (tmp_path / "small/studies.jsonl").exists()


def test_a_full_disk_stops_the_run_and_leaves_nothing_half(manifest, tmp_path) -> None:
    with files_no_larger_than(1000), pytest.raises(OSError, match="File too large") as error:
        resize(manifest, tmp_path / "small")
    assert error.value.errno == errno.EFBIG
    assert [path for path in (tmp_path / "small").rglob("*") if path.suffix in (".png", ".tmp")] == []
    assert resize(manifest, tmp_path / "small").written == 2


def test_what_looks_wrong_is_said_and_kept(manifest, tmp_path) -> None:
    Image.fromarray(255 - chest(120)[:80]).save(manifest.parent / "files/a/x.jpg", quality=95)
    with pytest.warns(ImageWarning, match=r"x\.jpg: looks inverted"):
        assert resize(manifest, tmp_path / "small").written == 2


def test_images_of_another_config_are_made_anew_where_its_record_is_lost(manifest, tmp_path) -> None:
    (resize(manifest, tmp_path / "small").manifest.parent / "resize.yaml").unlink()
    done = resize(manifest, tmp_path / "small", size=44)
    assert (done.written, done.kept) == (2, 0)
