"""raddraft.images: every kind of file reads to the right gray values, or is refused by name."""

import json
import os
import struct
import subprocess
import sys
import time
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from pydicom import Dataset, dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames
from pydicom.pixels import apply_modality_lut, apply_voi_lut

from encoder.digests import read_file
from encoder.masks import MaskError, load_mask
from raddraft.files import digest_file
from raddraft.images import (
    IMAGE_SUFFIXES,
    ImageError,
    ImageWarning,
    load_gray,
    load_image,
    shown_size,
    stored_size,
)
from raddraft.whole_pictures import ADAM7
from tests.films import RAMP, RAMP_8BIT, chest, look_up_table, quietly, read, write_dicom

# A warning that a test does not expect is an error.
pytestmark = pytest.mark.filterwarnings("error::raddraft.images.ImageWarning")

# ---- 8-bit pictures


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.bmp"])
def test_8bit_grey_files_keep_their_pixels(tmp_path, name):
    Image.fromarray(chest(100)).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), np.asarray(Image.open(tmp_path / name)))


@pytest.mark.parametrize(
    ("mode", "name"), [("RGB", "x.png"), ("RGB", "x.jpg"), ("P", "x.png"), ("1", "x.png"), ("CMYK", "x.jpg")]
)
def test_other_modes_read_as_pillow_reads_them(tmp_path, mode, name):
    Image.fromarray(chest(100)).convert(mode).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), np.asarray(Image.open(tmp_path / name).convert("L")))


def test_opaque_alpha_changes_nothing_and_transparent_is_black(tmp_path):
    gray = Image.fromarray(chest())
    alpha = Image.new("L", gray.size, 255)
    for mode in ("LA", "RGBA"):
        Image.merge(mode, [gray] * (len(mode) - 1) + [alpha]).save(tmp_path / "x.png")
        assert np.array_equal(read(tmp_path / "x.png"), chest())
    alpha.paste(0, (0, 0, 64, 10))
    Image.merge("LA", [gray, alpha]).save(tmp_path / "x.png")
    pixels = read(tmp_path / "x.png")
    assert (pixels[:10] == 0).all()
    assert np.array_equal(pixels[10:], chest()[10:])


@pytest.mark.parametrize(
    ("name", "options"),
    [("x.jpg", {"quality": 100}), ("x.png", {}), ("x.tif", {}), ("x.tif", {"compression": "tiff_lzw"})],
)
def test_exif_orientation_is_followed_once(tmp_path, name, options):
    upright = Image.fromarray(chest(96)[:, :64])
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / name, exif=exif, **options)
    pixels = read(tmp_path / name)
    assert pixels.shape == (96, 64)
    assert np.abs(pixels.astype(int) - np.asarray(upright)).max() <= (4 if name == "x.jpg" else 0)


def test_metadata_does_not_come_along(tmp_path):
    Image.fromarray(chest()).save(tmp_path / "x.jpg", comment=b"Invented^Nobody", exif=Image.Exif())
    assert load_image(tmp_path / "x.jpg").info == {}


# ---- deep pictures and mappings


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("x.png", RAMP),
        ("x.tif", RAMP),
        ("x.tif", RAMP.astype(">u2")),
        ("x.tif", RAMP.astype(np.int32) - 2000),
        ("x.tif", (RAMP / 7 - 100).astype(np.float32)),
    ],
    ids=["png I;16", "tiff I;16", "tiff I;16B", "tiff I", "tiff F"],
)
def test_deep_pictures_are_scaled_and_not_clipped(tmp_path, name, values):
    Image.fromarray(values).save(tmp_path / name)
    assert np.array_equal(read(tmp_path / name), RAMP_8BIT)


def test_deep_white_is_zero_tiff(tmp_path):
    Image.fromarray(4095 - RAMP).save(tmp_path / "x.tif", tiffinfo={262: 0})
    assert Image.open(tmp_path / "x.tif").tag_v2[262] == 0
    assert np.array_equal(read(tmp_path / "x.tif"), RAMP_8BIT)


def test_mappings_of_8bit_pictures(tmp_path):
    dull = (chest() // 4 + 50).astype(np.uint8)
    Image.fromarray(dull).save(tmp_path / "x.png")
    assert np.array_equal(read(tmp_path / "x.png", "window"), dull)
    low, high = int(dull.min()), int(dull.max())
    assert np.array_equal(read(tmp_path / "x.png", "minmax"), np.rint((dull.astype(int) - low) * 255 / (high - low)))


def test_percentile_ignores_outliers_that_rule_minmax(tmp_path):
    values = RAMP.copy()
    values[-1, -1] = 65535
    Image.fromarray(values).save(tmp_path / "x.png")
    with pytest.warns(ImageWarning, match=r"x\.png: mapping 'minmax' leaves 18 gray levels of 4,096 values"):
        assert read(tmp_path / "x.png", "minmax")[-1, -2] == round(4094 * 255 / 65535)
    # Of 0..4094 and one outlier, the percentiles 0.5 and 99.5 lie at ranks 20.475 and 4074.525 of 0..4095.
    expected = np.clip((np.arange(4095) - 20.475) / (4074.525 - 20.475), 0, 1) * 255
    pixels = read(tmp_path / "x.png", "percentile").ravel()
    assert np.array_equal(pixels[:-1], np.rint(expected))
    assert pixels[-1] == 255


def test_unknown_mapping_names_the_choices(tmp_path):
    with pytest.raises(ValueError, match=r"'clahe'.*window, minmax, percentile"):
        load_image(tmp_path / "x.png", "clahe")


# ---- DICOM gray values


def test_8bit_dicom_without_window_keeps_its_pixels(tmp_path):
    assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", chest())), chest())
    negative = write_dicom(tmp_path / "y.dcm", 255 - chest(), PhotometricInterpretation="MONOCHROME1")
    assert np.array_equal(read(negative), chest())


@pytest.mark.parametrize("mapping", ["window", "minmax"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_12bit_dicom_without_window(tmp_path, photometric, mapping):
    stored = RAMP if photometric == "MONOCHROME2" else 4095 - RAMP
    path = write_dicom(tmp_path / "x.dcm", stored, BitsStored=12, PhotometricInterpretation=photometric)
    assert np.array_equal(read(path, mapping), RAMP_8BIT)


def test_signed_16bit_dicom(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", RAMP.astype(np.int16) - 2048)
    assert np.array_equal(read(path), RAMP_8BIT)


def test_bits_above_bits_stored_do_not_count(tmp_path):
    assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", RAMP | 0xF000, BitsStored=12)), RAMP_8BIT)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("rescale", [None, (2.0, -1000.0)])
def test_windows_agree_with_pydicom(tmp_path, function, rescale):
    tags: dict[str, object] = {"WindowCenter": [1500, 7], "WindowWidth": [1000, 9]}  # the first one counts
    if function:
        tags["VOILUTFunction"] = function
    if rescale:
        tags |= {"RescaleSlope": rescale[0], "RescaleIntercept": rescale[1]}
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, **tags)
    dataset = dcmread(path)
    slope, intercept = rescale or (1, 0)
    windowed = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    expected = (windowed - intercept) / (4095 * slope) * 255
    pixels, _ = quietly(path)  # which cuts most of the ramp
    assert np.abs(pixels - expected).max() <= 0.5 + 1e-6
    assert len(np.unique(pixels)) > 200
    assert np.array_equal(read(path, "minmax"), RAMP_8BIT)  # takes no notice of the window


def test_negative_slope_turns_the_ramp_round(tmp_path):
    tags = {"RescaleSlope": -1, "RescaleIntercept": 4095, "WindowCenter": 2048, "WindowWidth": 4096}
    path = write_dicom(tmp_path / "x.dcm", 4095 - RAMP, BitsStored=12, **tags)
    assert np.array_equal(read(path), RAMP_8BIT)


def test_width_that_is_no_window_warns_and_is_left_out(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, WindowCenter=2048, WindowWidth=0)
    with pytest.warns(ImageWarning, match=r"x\.dcm: window width 0"):
        assert np.array_equal(read(path), RAMP_8BIT)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_voi_lut_with_4096_entries(tmp_path, bits):
    top = 2**bits - 1
    table = [round(top * (entry / 4095) ** 2) for entry in range(4096)]
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, VOILUTSequence=[look_up_table(table, bits)])
    assert np.array_equal(read(path), np.rint(np.array(table) / top * 255).reshape(64, 64))


def test_packed_8bit_voi_lut(tmp_path):
    item = look_up_table([0], 8)
    item.LUTDescriptor = [256, 0, 8]
    item.add_new("LUTData", "OW", bytes(range(255, -1, -1)))
    path = write_dicom(tmp_path / "x.dcm", 255 - chest(), VOILUTSequence=[item])
    assert np.array_equal(read(path), chest())


def test_modality_lut(tmp_path):
    table = look_up_table([2 * entry for entry in range(4096)], 16)
    tags = {"ModalityLUTSequence": [table], "WindowCenter": 4096, "WindowWidth": 8191}
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, **tags)
    expected = np.clip((2 * np.arange(4096) - 4095.5) / 8190 + 0.5, 0, 1) * 255
    assert np.array_equal(read(path).ravel(), np.rint(expected))


def test_modality_lut_of_signed_values_does_not_wrap_around(tmp_path):
    table = look_up_table(list(range(32767)), 16)
    table.add_new("LUTDescriptor", "SS", [32767, -32768, 16])
    stored = np.arange(-32768, 32768, 16, dtype=np.int16).reshape(64, 64)
    path = write_dicom(tmp_path / "x.dcm", stored, ModalityLUTSequence=[table])
    expected = np.clip(stored.astype(int) + 32768, 0, 32766) / 32766 * 255
    assert np.array_equal(quietly(path)[0], np.rint(expected))


@pytest.mark.parametrize("mapping", ["window", "minmax", "percentile"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_does_not_count(tmp_path, photometric, mapping):
    stored = RAMP + 100 if photometric == "MONOCHROME2" else 4195 - RAMP
    padded = stored.copy()
    padded[:, :6] = 65535
    padded[:, 6] = 65530
    tags = {"PhotometricInterpretation": photometric, "PixelPaddingValue": 65535, "PixelPaddingRangeLimit": 65530}
    pixels = read(write_dicom(tmp_path / "x.dcm", padded, **tags), mapping)
    Image.fromarray(RAMP[:, 7:]).save(tmp_path / "x.png")
    assert (pixels[:, :7] == 0).all()
    difference = pixels[:, 7:].astype(int) - read(tmp_path / "x.png", mapping)
    assert np.abs(difference).max() == 0


@pytest.mark.parametrize("syntax", [uid.RLELossless, uid.JPEG2000Lossless])
def test_compressed_dicom(tmp_path, syntax):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, compress=syntax)
    assert dcmread(path).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read(path), RAMP_8BIT)


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm"),  # JPEG lossless, process 14
    ],
)
def test_transfer_syntaxes_of_pydicoms_own_files(name, same):
    paths = [get_testdata_file(file, download=False) for file in (name, same)]
    if None in paths:
        pytest.skip("this pydicom comes without its test files")
    with pytest.warns(ImageWarning, match="modality"):
        assert np.array_equal(*[read(path) for path in paths])


def test_colour_dicom(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    rgb[:, :, :] //= 2
    rgb += (chest() // 2)[..., None]
    expected = np.asarray(Image.fromarray(rgb).convert("L")).astype(int)
    assert np.abs(read(write_dicom(tmp_path / "rgb.dcm", rgb)) - expected).max() <= 1
    gray = np.repeat(chest()[..., None], 3, axis=2)
    assert np.array_equal(read(write_dicom(tmp_path / "gray.dcm", gray)), chest())
    ybr = np.asarray(Image.fromarray(rgb).convert("YCbCr"))
    path = write_dicom(tmp_path / "ybr.dcm", ybr, PhotometricInterpretation="YBR_FULL")
    assert np.abs(read(path) - expected).max() <= 2


def test_palette_dicom(tmp_path):
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for color in ("Red", "Green", "Blue"):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tags[f"{color}PaletteColorLookupTableData"] = bytes(range(255, -1, -1))
    assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", 255 - chest(), **tags)), chest())


def test_dicom_is_recognised_by_content(tmp_path):
    path = write_dicom(tmp_path / "x.png", chest())
    assert np.array_equal(read(path), chest())
    (tmp_path / "no-preamble").write_bytes(path.read_bytes()[132:])
    bare = Dataset()
    bare.update(dcmread(path))
    bare.save_as(tmp_path / "no-header", implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert (tmp_path / "no-header").read_bytes()[:2] == b"\x08\x00"
    for name in ("no-preamble", "no-header"):
        assert np.array_equal(read(tmp_path / name), chest()), name


# ---- warnings


@pytest.mark.parametrize("tags", [{}, {"Modality": "CR", "BodyPartExamined": "PORT CHEST"}, {"BodyPartExamined": ""}])
def test_chest_xrays_earn_no_warning(tmp_path, tags):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(write_dicom(tmp_path / "x.dcm", chest(), **tags))


def test_missing_modality_and_body_part_earn_no_warning(tmp_path):
    dataset = dcmread(write_dicom(tmp_path / "x.dcm", chest()))
    del dataset.Modality, dataset.BodyPartExamined
    dataset.save_as(tmp_path / "x.dcm")
    read(tmp_path / "x.dcm")


@pytest.mark.parametrize(
    ("tags", "culprit"), [({"Modality": "MG"}, "modality 'MG'"), ({"BodyPartExamined": "KNEE"}, "body part 'KNEE'")]
)
def test_other_modality_or_body_part_is_named(tmp_path, tags, culprit):
    path = write_dicom(tmp_path / "x.dcm", chest(), **tags)
    with pytest.warns(ImageWarning, match=rf"x\.dcm: {culprit}"):
        assert np.array_equal(read(path), chest())
    with pytest.raises(ImageWarning, match=culprit):  # as an error, it stays what it is
        load_image(path)


def test_messages_hold_no_identifiers(tmp_path):
    tags = {"Modality": "MG", "BodyPartExamined": "KNEE", "PatientBirthDate": "19010203", "WindowCenter": 5}
    whole = write_dicom(tmp_path / "x.dcm", 255 - chest(), WindowWidth=0, **tags)
    messages = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        load_image(whole)
        assert len(caught) == 4
        for size in range(140, whole.stat().st_size - 1, 20):
            (tmp_path / "cut.dcm").write_bytes(whole.read_bytes()[:size])
            with pytest.raises(ImageError) as error:
                load_image(tmp_path / "cut.dcm")
            messages.append(str(error.value))
    messages += [str(warning.message) for warning in caught]
    for secret in ("Invented", "Nobody", "4711", "1.2.3", "1901"):
        assert not any(secret in message.replace(str(tmp_path), "") for message in messages)


def test_negative_earns_a_warning_and_stays(tmp_path):
    Image.fromarray(255 - chest()).save(tmp_path / "x.png")
    with pytest.warns(ImageWarning, match=r"x\.png: looks inverted"):
        assert np.array_equal(read(tmp_path / "x.png"), 255 - chest())


@pytest.mark.parametrize("shade", [0, 255])
@pytest.mark.parametrize("border", [(10, 10, 10, 10), (0, 60, 0, 0), (0, 0, 0, 60), (60, 0, 0, 0)])
def test_frame_does_not_hide_the_polarity(tmp_path, border, shade):
    ImageOps.expand(Image.fromarray(chest()), border, shade).save(tmp_path / "x.png")
    read(tmp_path / "x.png")
    ImageOps.expand(Image.fromarray(255 - chest()), border, shade).save(tmp_path / "y.png")
    with pytest.warns(ImageWarning, match="looks inverted"):
        read(tmp_path / "y.png")


def test_polarity_of_real_pictures(tmp_path, cxr):
    studies = [json.loads(line) for line in (cxr / "studies.jsonl").read_text().splitlines()]
    images = [image for study in studies if study["split"] == "test" for image in study["images"]]
    paths = [cxr / image["path"] for image in images if image["view"] != "L"]
    assert len(paths) > 400
    false_alarms = hits = 0
    for path in paths:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            image = load_image(path)
            false_alarms += len(caught)
            ImageOps.invert(image).save(tmp_path / "negative.bmp")
            caught.clear()
            load_image(tmp_path / "negative.bmp")
            hits += len(caught)
    assert false_alarms < 0.01 * len(paths)
    assert hits > 0.9 * len(paths)


# ---- refusals


def save(path: Path, pixels: np.ndarray, **options: object) -> None:
    Image.fromarray(pixels).save(path, **options)


def pages(path: Path) -> None:
    Image.fromarray(chest()).save(path, save_all=True, append_images=[Image.fromarray(chest()[::-1])])


def zip_file(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", "y")


def no_pixel_data(path: Path) -> None:
    dataset = dcmread(write_dicom(path, chest()))
    del dataset.PixelData
    dataset.save_as(path)


WITH_NAN = np.where(RAMP == 7, np.nan, RAMP).astype(np.float32)
WITH_INF = np.where(RAMP == 7, np.inf, RAMP).astype(np.float32)


@pytest.mark.parametrize(
    ("name", "make", "culprit"),
    [
        ("missing.png", lambda path: None, "No such file"),
        ("folder.png", lambda path: path.mkdir(), "directory"),
        ("empty.dcm", lambda path: path.touch(), "empty"),
        ("text.jpg", lambda path: path.write_text("Lungs are clear. " * 50), "not an image"),
        ("short.jpg", lambda path: path.write_bytes(b"x"), "not an image"),
        ("archive.dcm", zip_file, "not an image"),
        ("dot.png", lambda path: save(path, chest(8)[:1, :1]), "1 x 1 pixels"),
        ("strip.png", lambda path: save(path, chest()[:7]), "64 x 7 pixels.*at least 8"),
        ("flat.png", lambda path: save(path, chest() * 0 + 7), "same value, 7"),
        ("flat16.png", lambda path: save(path, RAMP * 0 + 700), "same value, 700"),
        ("flat.dcm", lambda path: write_dicom(path, RAMP * 0 + 700), "same value, 700"),
        ("pages.tif", pages, "2 frames"),
        ("moving.gif", pages, "2 frames"),
        ("moving.png", pages, "2 frames"),
        ("nan.tif", lambda path: save(path, WITH_NAN), "NaN or infinite"),
        ("inf.tif", lambda path: save(path, WITH_INF), "NaN or infinite"),
        ("none.dcm", no_pixel_data, "no pixel data"),
        ("film.dcm", lambda path: write_dicom(path, chest(), NumberOfFrames=3), "3 frames"),
        ("twice.dcm", lambda path: write_dicom(path, RAMP, PixelData=RAMP.tobytes() * 2), "16,384 bytes of pixel data"),
        ("rgb.dcm", lambda path: write_dicom(path, RAMP, PhotometricInterpretation="RGB"), "RGB, which has 3"),
        ("pipe.dcm", os.mkfifo, "a pipe, a device or a socket"),
        ("zero.dcm", lambda path: write_dicom(path, chest(), Rows=0), "64 x 0 pixels"),
        ("padding.dcm", lambda path: write_dicom(path, RAMP * 0, PixelPaddingValue=0), "all pixels are padding"),
        ("outside.dcm", lambda path: write_dicom(path, RAMP, WindowCenter=9000, WindowWidth=9), "same value, 0"),
    ],
)
def test_refusals_name_file_and_culprit(tmp_path, name, make, culprit):
    make(tmp_path / name)
    with pytest.raises(ImageError, match=rf"{name}: .*{culprit}") as error:
        load_image(tmp_path / name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["x\0.png", "x\ud800.png"])
def test_names_that_no_file_can_have_are_refused(name):
    for read_it in (load_image, load_gray, shown_size, stored_size, read_file):
        with pytest.raises(ImageError, match="no file can have this name"):
            read_it(Path(name))


def test_what_a_pipe_holds_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="a pipe"):
        read_file(tmp_path / "x.png")
    assert digest_file(tmp_path / "x.png") is None


def test_a_deflated_film_is_not_inflated_beyond_max_pixels(tmp_path, monkeypatch):
    path = write_dicom(tmp_path / "x.dcm", np.zeros((3000, 3000), np.uint8), syntax=uid.DeflatedExplicitVRLittleEndian)
    monkeypatch.setattr("zlib.decompress", None)  # what inflates without a limit
    with pytest.raises(ImageError, match=r"x\.dcm: its data inflate to more than 1,848,576 bytes"):
        load_image(path, max_pixels=100_000)
    monkeypatch.undo()
    assert np.array_equal(
        read(write_dicom(path, RAMP, syntax=uid.DeflatedExplicitVRLittleEndian)),
        read(write_dicom(path, RAMP)),
    )


def test_pages_of_a_tiff_are_not_counted_without_end(tmp_path):
    data, values = (
        bytearray(b"II*\0" + (8).to_bytes(4, "little")),
        {256: 64, 257: 64, 258: 8, 262: 1, 273: 0, 279: 4096},
    )
    for _ in range(20_000):
        data += len(values).to_bytes(2, "little")
        data += b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
        data += (len(data) + 4).to_bytes(4, "little")
    (tmp_path / "x.tif").write_bytes(data)
    started = time.process_time()
    with pytest.raises(ImageError, match="holds more than 100 frames"):
        load_image(tmp_path / "x.tif")
    assert time.process_time() - started < 5


def test_percentiles_without_contrast_are_refused(tmp_path):
    pixels = np.zeros((64, 64), np.uint8)
    pixels[40, 30] = 255
    save(tmp_path / "x.png", pixels)
    with pytest.raises(ImageError, match=r"between percentiles 0\.5 and 99\.5"):
        load_image(tmp_path / "x.png", "percentile")


@pytest.mark.parametrize("name", ["x.jpg", "progressive.jpg", "x.png", "x16.png", "x.tif", "lzw.tif", "x.bmp"])
def test_cut_pictures_are_refused(tmp_path, name):
    options = {"progressive.jpg": {"progressive": True}, "lzw.tif": {"compression": "tiff_lzw"}}.get(name, {})
    save(tmp_path / name, RAMP if "16" in name else chest(), **options)
    assert_no_part_is_read(tmp_path / name)


# ---- check sums


def textured(size: int = 256) -> np.ndarray:
    """Smooth enough to look like a film, and too noisy to be compressed to nothing."""
    return (chest(size) // 2 + np.random.default_rng(1).integers(0, 90, (size, size))).astype(np.uint8)


MODES = {"8": textured, "16": lambda: textured().astype(np.uint16) * 16, "RGB": lambda: np.stack([textured()] * 3, -1)}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.99])
def test_a_png_with_a_zeroed_end_is_refused(tmp_path, mode, share):
    path = tmp_path / "x.png"
    save(path, MODES[mode]())
    data = path.read_bytes()
    start = int(len(data) * (1 - share))
    path.write_bytes(data[:start] + bytes(len(data) - start))
    with pytest.raises(ImageError, match=r"x\.png: (damaged: the check sum of the PNG chunk|truncated)"):
        load_image(path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("at", [0.3, 0.7, 0.999])
def test_a_png_with_one_wrong_bit_is_refused(tmp_path, mode, at):
    path = tmp_path / "x.png"
    save(path, MODES[mode]())
    data = bytearray(path.read_bytes())
    data[int(len(data) * at) - 4] ^= 16
    path.write_bytes(bytes(data))
    with pytest.raises(ImageError, match=r"check sum of the PNG chunk|truncated, damaged"):
        load_image(path)


def test_wrong_check_sums_of_the_other_chunks_count_too(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    text.add_text("Comment", "film")
    save(tmp_path / "x.png", textured(), pnginfo=text)
    data = (tmp_path / "x.png").read_bytes()
    for chunk in (b"IHDR", b"tEXt", b"IEND"):
        damaged = bytearray(data)
        damaged[data.index(chunk) + 4 + int.from_bytes(data[data.index(chunk) - 4 : data.index(chunk)])] ^= 1
        (tmp_path / "y.png").write_bytes(bytes(damaged))
        with pytest.raises(
            ImageError, match=f"check sum of the PNG chunk '{chunk.decode()}' is wrong|truncated, damaged"
        ):
            load_image(tmp_path / "y.png")


def test_bytes_behind_the_end_of_a_picture_do_not_matter(tmp_path):
    for name in ("x.png", "x.jpg"):
        save(tmp_path / name, textured())
        expected = read(tmp_path / name)
        for more in (b"\0" * 500, b"junk", b"\xff" * 9):
            (tmp_path / "more").write_bytes((tmp_path / name).read_bytes() + more)
            assert np.array_equal(read(tmp_path / "more"), expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("strips", [1, 8, 256])
@pytest.mark.parametrize("compression", ["tiff_adobe_deflate", "tiff_deflate"])
def test_a_damaged_deflated_tiff_is_refused(tmp_path, mode, strips, compression):
    path = tmp_path / "x.tif"
    save(path, MODES[mode](), compression=compression, tiffinfo={278: 256 // strips})
    read(path)
    with Image.open(path) as image:
        tags = image.tag_v2
        starts, lengths = tags[273], tags[279]
        assert tags[259] in (8, 32946)
        assert len(starts) == strips
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    for strip in {0, strips // 2, strips - 1}:
        first, last = starts[strip], starts[strip] + lengths[strip]
        for at in (last - 1, last - 3, int(rng.integers(first + 2, last - 4))):  # the check sum itself, and the data
            data = bytearray(whole)
            data[at] ^= 4
            path.write_bytes(bytes(data))
            with pytest.raises(ImageError, match=rf"x\.tif: damaged: TIFF strip {strip + 1}"):
                load_image(path)
        path.write_bytes(whole[: last - 8] + bytes(8) + whole[last:])
        with pytest.raises(ImageError, match=rf"damaged: TIFF strip {strip + 1}"):
            load_image(path)


def test_a_jpeg_in_a_tiff_that_is_cut_is_refused(tmp_path):
    path = tmp_path / "x.tif"
    save(path, textured(), compression="jpeg", tiffinfo={278: 64})
    read(path)
    with Image.open(path) as image:
        end = image.tag_v2[273][1] + image.tag_v2[279][1]
    data = path.read_bytes()
    path.write_bytes(data[: end - 900] + bytes(900) + data[end:])
    with pytest.raises(ImageError, match=r"x\.tif: damaged: TIFF strip 2: the JPEG data have no end marker"):
        load_image(path)


def make_png(header: bytes, lines: list[bytes]) -> bytes:
    """A PNG file of any header and number of rows, with right check sums."""
    found = b"\x89PNG\r\n\x1a\n"
    for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")):
        found += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return found


def cut_png(pixels: np.ndarray, interlaced: bool, rows: int) -> bytes:
    """A gray PNG of 64 x 64 pixels, of which the data hold the first `rows` of the picture, or of the passes."""
    parts = [pixels[y::b, x::a] for x, y, a, b in ADAM7] if interlaced else [pixels]
    lines = [b"\0" + line.tobytes() for part in parts for line in part]
    return make_png(struct.pack(">IIBBBBB", 64, 64, 8, 0, 0, 0, interlaced), lines[:rows])


@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_that_lacks_rows_is_refused(tmp_path, interlaced):
    """Its check sums are right, and Pillow leaves the rows black."""
    path = tmp_path / "x.png"
    rows = 120 if interlaced else 64
    path.write_bytes(cut_png(RAMP_8BIT, interlaced, rows))
    assert np.array_equal(read(path), RAMP_8BIT)
    for lacking in (1, 30):
        path.write_bytes(cut_png(RAMP_8BIT, interlaced, rows - lacking))
        with pytest.raises(ImageError, match=r"x\.png: truncated: the PNG holds \d,\d+ of 4,\d+ bytes of pixel data"):
            load_image(path)


def test_a_mask_that_lacks_rows_is_refused(tmp_path):
    (tmp_path / "x.png").write_bytes(cut_png(np.full((64, 64), 255, np.uint8), False, 40))
    with pytest.raises(MaskError, match=r"x\.png: truncated: the PNG holds 2,600 of 4,160 bytes"):
        load_mask(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("tag", "value", "culprit"),
    [
        (278, 32, "the TIFF lists 1 of 2 strips"),
        (262, None, "states no PhotometricInterpretation"),
        (339, 2, "signed values of 8 bits"),
    ],
)
def test_a_tiff_that_pillow_would_misread_is_refused(tmp_path, tag, value, culprit):
    save(tmp_path / "x.tif", RAMP_8BIT)
    data = bytearray((tmp_path / "x.tif").read_bytes())
    directory = struct.unpack_from("<I", data, 4)[0]
    entries = [directory + 2 + 12 * number for number in range(struct.unpack_from("<H", data, directory)[0])]
    place = {struct.unpack_from("<H", data, at)[0]: at for at in entries}
    # A tag that the file has not takes the place of ResolutionUnit or such, a removed one becomes one that none reads.
    at = place.get(tag, place[max(place)])
    number = 65000 if value is None else tag
    struct.pack_into("<HHIHH", data, at, number, 3, 1, value or 0, 0)
    (tmp_path / "x.tif").write_bytes(bytes(data))
    with pytest.raises(ImageError, match=rf"x\.tif: .*{culprit}"):
        load_image(tmp_path / "x.tif")


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_a_deep_color_picture_that_loses_its_gray_is_named(tmp_path, name):
    """12 bits in 16 a channel: Pillow keeps the upper 8 of 16."""
    colors = np.dstack([RAMP.astype(np.uint16)] * 3)
    if name == "x.png":
        lines = [b"\0" + line.astype(">u2").tobytes() for line in colors]
        (tmp_path / name).write_bytes(make_png(struct.pack(">IIBBBBB", 64, 64, 16, 2, 0, 0, 0), lines))
    else:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(tmp_path / name, colors, photometric="rgb")
    with pytest.warns(ImageWarning, match="8 bits a channel, which leaves 16 gray levels"):
        load_image(tmp_path / name)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.8])
def test_a_jpeg_with_a_zeroed_end_is_refused(tmp_path, share):
    for options in ({}, {"progressive": True}):
        save(tmp_path / "x.jpg", textured(), **options)
        data = (tmp_path / "x.jpg").read_bytes()
        start = int(len(data) * (1 - share))
        (tmp_path / "x.jpg").write_bytes(data[:start] + bytes(len(data) - start))
        with pytest.raises(ImageError, match=r"x\.jpg: truncated"):
            load_image(tmp_path / "x.jpg")


# ---- one absurd value


@pytest.mark.parametrize("value", [1e30, -1e30, 3e38, 1e7])
def test_one_absurd_float_pixel_is_named(tmp_path, value):
    pixels = RAMP.astype(np.float32)
    pixels[20, 20] = value
    save(tmp_path / "x.tif", pixels)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        load_gray(tmp_path / "x.tif")
    assert any("leaves 2 gray levels of 4,096 values" in str(one.message) for one in caught)


@pytest.mark.parametrize("value", [60_000, 2_000_000_000])
def test_one_absurd_integer_pixel_is_named(tmp_path, value):
    pixels = RAMP.astype(np.int32)
    pixels[20, 20] = value
    save(tmp_path / "x.tif", pixels)
    with pytest.warns(ImageWarning, match=r"leaves \d+ gray levels of 4,096 values"):
        load_image(tmp_path / "x.tif")
    read(tmp_path / "x.tif", "percentile")


def test_pictures_at_hand_lose_nothing(cxr):
    studies = [json.loads(line) for line in (cxr / "studies.jsonl").read_text().splitlines()]
    for study in studies[::10]:
        for image in study["images"]:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", ImageWarning)
                load_image(cxr / image["path"])
            assert not any("leaves" in str(one.message) or "cuts" in str(one.message) for one in caught)


@pytest.mark.parametrize("syntax", [None, uid.RLELossless, uid.JPEG2000Lossless])
def test_cut_dicom_is_refused(tmp_path, syntax):
    assert_no_part_is_read(write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, compress=syntax))


def assert_no_part_is_read(path: Path) -> None:
    """Wherever the file is cut: refused, or nothing but trailing bytes were lost."""
    whole, pixels = path.read_bytes(), read(path)
    refused = 0
    for size in range(1, len(whole), max(1, len(whole) // 50)):
        path.write_bytes(whole[:size])
        try:
            assert np.array_equal(read(path), pixels), size
        except ImageError:
            refused += 1
    assert refused > 40


def test_cut_code_stream_in_whole_dicom_is_refused(tmp_path):
    save(tmp_path / "x.jpg", chest())
    stream = (tmp_path / "x.jpg").read_bytes()
    tags = {"BitsStored": 8, "LossyImageCompression": "01"}
    dataset = dcmread(write_dicom(tmp_path / "jpeg.dcm", chest(), **tags))
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.PixelData = encapsulate([stream])
    dataset.save_as(tmp_path / "jpeg.dcm")
    difference = read(tmp_path / "jpeg.dcm").astype(int) - read(tmp_path / "x.jpg")
    assert np.abs(difference).max() <= 2  # two decoders round differently
    write_dicom(tmp_path / "j2k.dcm", RAMP, BitsStored=12, compress=uid.JPEG2000Lossless)
    for name in ("jpeg.dcm", "j2k.dcm"):
        dataset = dcmread(tmp_path / name)
        stream = next(generate_frames(dataset.PixelData, number_of_frames=1))
        for share in (0.1, 0.5, 0.9, 0.99):
            dataset.PixelData = encapsulate([stream[: int(len(stream) * share)]])
            dataset.save_as(tmp_path / name)
            with pytest.raises(ImageError, match="truncated"):
                load_image(tmp_path / name)


@pytest.mark.parametrize("name", ["x.png", "x.dcm"])
def test_max_pixels(tmp_path, name):
    path = tmp_path / name
    write_dicom(path, chest()) if name == "x.dcm" else save(path, chest())
    with pytest.raises(ImageError, match=rf"{name}: 64 x 64 = 4,096 pixels, more than max_pixels = 4,095"):
        load_image(path, max_pixels=4095)
    load_image(path, max_pixels=4096)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.gif", "x.bmp"])
def test_pillows_own_limit_neither_interferes_nor_changes(tmp_path, monkeypatch, name):
    save(tmp_path / name, chest())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(tmp_path / name)
    assert Image.MAX_IMAGE_PIXELS == 100


# ---- full depth


@pytest.mark.parametrize("mapping", ["window", "minmax", "percentile"])
@pytest.mark.parametrize(
    "make",
    [
        lambda path: Image.fromarray(chest()).save(path, format="PNG"),
        lambda path: Image.fromarray(chest()).convert("RGB").save(path, format="PNG"),
        lambda path: Image.fromarray(RAMP).save(path, format="PNG"),
        lambda path: Image.fromarray((RAMP / 7 - 100).astype(np.float32)).save(path, format="TIFF"),
        lambda path: write_dicom(path, RAMP, BitsStored=12),
        lambda path: write_dicom(path, RAMP[::-1].copy(), BitsStored=12, PhotometricInterpretation="MONOCHROME1"),
        lambda path: write_dicom(path, RAMP, BitsStored=12, WindowCenter=2000, WindowWidth=3000, PixelPaddingValue=9),
        lambda path: write_dicom(
            path, RAMP, BitsStored=12, VOILUTSequence=[look_up_table([n // 16 for n in range(4096)], 8)]
        ),
        lambda path: write_dicom(path, np.stack([chest()] * 3, -1)),
    ],
)
def test_load_image_is_load_gray_at_8_bits(tmp_path, make, mapping):
    make(tmp_path / "x")
    values = load_gray(tmp_path / "x", mapping)
    assert values.dtype == np.float32
    assert values.min() >= 0
    assert values.max() <= 1
    # Where a value lies midway between two levels, either is its rounding.
    assert np.abs(values * 255 - read(tmp_path / "x", mapping)).max() < 0.5 + 1e-4


def test_load_gray_keeps_the_depth_of_the_file(tmp_path):
    expected = np.arange(4096).reshape(64, 64) / 4095
    Image.fromarray(RAMP).save(tmp_path / "x.png")
    write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12)
    write_dicom(tmp_path / "y.dcm", 4095 - RAMP, BitsStored=12, PhotometricInterpretation="MONOCHROME1")
    write_dicom(tmp_path / "w.dcm", RAMP, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    for name in ("x.png", "x.dcm", "y.dcm", "w.dcm"):
        np.testing.assert_allclose(load_gray(tmp_path / name), expected, atol=1e-6, err_msg=name)
    Image.fromarray(chest()).save(tmp_path / "8.png")
    assert np.array_equal(load_gray(tmp_path / "8.png"), chest().astype(np.float32) / 255)


def test_load_gray_refuses_and_warns_as_load_image_does(tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"x\.png: not an image"):
        load_gray(tmp_path / "x.png")
    save(tmp_path / "flat.png", RAMP * 0 + 700)
    with pytest.raises(ImageError, match="same value, 700"):
        load_gray(tmp_path / "flat.png")
    with pytest.raises(ValueError, match="Unknown mapping 'log'"):
        load_gray(tmp_path / "x.png", "log")
    Image.fromarray(255 - chest()).save(tmp_path / "negative.png")
    with pytest.warns(ImageWarning, match=r"negative\.png: looks inverted"):
        load_gray(tmp_path / "negative.png")


def test_import_is_light_and_changes_nothing():
    code = (
        "import sys, warnings, numpy, PIL.Image as i, PIL.ImageFile as f;"
        "before = (i.MAX_IMAGE_PIXELS, f.LOAD_TRUNCATED_IMAGES, warnings.filters[:]);"
        "import raddraft.images;"
        "assert (i.MAX_IMAGE_PIXELS, f.LOAD_TRUNCATED_IMAGES, warnings.filters[:]) == before;"
        "assert not {'pydicom', 'torch', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_suffixes_are_lower_case_with_dot():
    assert {".dcm", ".png", ".jpg"} <= IMAGE_SUFFIXES
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


# ---- real DICOM files

SIBLING = "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm"


@pytest.mark.parametrize("mapping", ["window", "minmax", "percentile"])
@pytest.mark.parametrize(
    ("name", "size", "lungs", "spine"),  # centers, as shares of width and height
    [
        (SIBLING, (1024, 1024), [(0.25, 0.4), (0.72, 0.4)], (0.52, 0.65)),
        ("RG1_J2KI.dcm", (1841, 1955), [(0.27, 0.35), (0.72, 0.35)], (0.5, 0.65)),
        ("gdcm-CR-MONO1-10-chest.dcm", (440, 440), [(0.2, 0.4), (0.72, 0.4)], (0.47, 0.65)),
    ],
)
def test_real_chests_have_dark_lungs(cxr, name, size, lungs, spine, mapping):
    image = load_image(cxr / "dicom" / name, mapping)
    assert image.size == size
    pixels = np.asarray(image)

    def brightness(x: float, y: float) -> float:
        column, row, half = int(x * size[0]), int(y * size[1]), size[0] // 25
        return float(pixels[row - half : row + half, column - half : column + half].mean())

    assert max(brightness(*lung) for lung in lungs) < brightness(*spine) - 30
    assert pixels[:, :3].mean() < brightness(*spine)


def test_falsely_tagged_dicom_is_a_negative_and_earns_a_warning(cxr):
    right = read(cxr / "dicom" / SIBLING)
    with pytest.warns(ImageWarning, match=r"Fake_MONOHR1\.dcm: looks inverted"):
        wrong = read(cxr / "dicom" / "Fake_MONOHR1.dcm")
    assert np.array_equal(wrong, 255 - right)


def test_real_monochrome1_with_window(cxr):
    path = cxr / "dicom" / "dx_image.dcm"
    with pytest.warns(ImageWarning, match="not upright"):  # a dog on its side
        pixels = read(path)
    assert np.array_equal(pixels, 255 - dcmread(path).pixel_array)  # window 128/256 is the identity
