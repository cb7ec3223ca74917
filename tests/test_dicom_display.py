"""Polarity, films for processing, orientation, shutters, and pixels that are not square, with their masks."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import uid

from encoder.masks import MaskError, load_mask, write_mask
from raddraft.images import ImageError, ImageWarning, load_gray, load_image, stored_size
from tests.films import GONE, RAMP, change, chest, quietly, read, write_dicom

pytestmark = pytest.mark.filterwarnings("error::raddraft.images.ImageWarning")

# ---- polarity, intent, orientation


@pytest.mark.parametrize(
    ("photometric", "shape", "contradict"),
    [
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME1", "INVERSE", False),
        ("MONOCHROME2", "", False),
    ],
)
def test_polarity_that_contradicts_itself_is_named(tmp_path, photometric, shape, contradict):
    stored = chest() if photometric == "MONOCHROME2" else 255 - chest()
    tags = {"PhotometricInterpretation": photometric, "PresentationLUTShape": shape}
    pixels, messages = quietly(write_dicom(tmp_path / "x.dcm", stored, **tags))
    assert np.array_equal(pixels, chest())  # Photometric Interpretation decides
    expected = f"(0028,0004) {photometric} and Presentation LUT Shape (2050,0020) {shape} contradict each other"
    assert [expected in one for one in messages] == [True] * contradict


@pytest.mark.parametrize(
    ("tags", "warned"),
    [
        ({"PresentationIntentType": "FOR PROCESSING"}, True),
        ({"PresentationIntentType": "for processing "}, True),
        ({"PresentationIntentType": ["FOR PROCESSING", "FOR PROCESSING"]}, True),
        ({"SOPClassUID": uid.DigitalXRayImageStorageForProcessing}, True),
        ({"SOPClassUID": uid.DigitalMammographyXRayImageStorageForProcessing}, True),
        ({"PresentationIntentType": "FOR PRESENTATION"}, False),
        ({"SOPClassUID": uid.ComputedRadiographyImageStorage}, False),
        ({"SOPClassUID": GONE}, False),
    ],
)
def test_films_for_processing_are_named(tmp_path, tags, warned):
    _, messages = quietly(change(write_dicom(tmp_path / "x.dcm", chest()), **tags))
    assert ["for processing, not for presentation" in one for one in messages] == [True] * warned


@pytest.mark.parametrize(
    ("orientation", "said"),
    [
        (["L", "F"], None),
        (["A", "F"], None),  # lateral films
        (["P", "F"], None),
        (["LP", "F"], None),  # oblique
        (["L", "FP"], None),
        (["R", "F"], "mirrored"),
        (["RA", "FP"], "mirrored"),
        (["L", "H"], "turned"),
        (["R", "H"], "turned"),
        (["A", "H"], "turned"),
        (["F", "R"], "turned"),
        (["F", "L"], "turned"),
        (["H", "L"], "turned"),
        (["L", "P"], "turned"),
        ("", None),
        (["L"], None),
        (["LE", "CD"], None),  # of animals, with codes of their own
        (["LEFT", "XYZ"], None),
    ],
)
def test_mirrored_and_turned_films_are_named(tmp_path, orientation, said):
    _, messages = quietly(write_dicom(tmp_path / "x.dcm", chest(), PatientOrientation=orientation))
    assert [f"says {said}" in one and "Patient Orientation (0020,0020)" in one for one in messages] == [True] * bool(
        said
    )


# ---- shutters

ROW, COLUMN = np.mgrid[1:65, 1:65]
RECTANGLE = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": 9,
    "ShutterRightVerticalEdge": 50,
    "ShutterUpperHorizontalEdge": 5,
    "ShutterLowerHorizontalEdge": 60,
}
INSIDE = (COLUMN >= 9) & (COLUMN <= 50) & (ROW >= 5) & (ROW <= 60)
CIRCLE = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [30, 35], "RadiusOfCircularShutter": 20}
DISK = (ROW - 30) ** 2 + (COLUMN - 35) ** 2 <= 400
POLYGON = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [5, 9, 5, 50, 60, 50, 60, 9]}
TRIANGLE = {"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": [1, 1, 64, 1, 64, 64]}
BOTH = RECTANGLE | CIRCLE | {"ShutterShape": ["RECTANGULAR", "CIRCULAR"]}


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("value", [None, 0, 65535])
@pytest.mark.parametrize(
    ("tags", "inside"),
    [
        (RECTANGLE, INSIDE),
        (CIRCLE, DISK),
        (POLYGON, INSIDE),
        (TRIANGLE, COLUMN <= ROW),
        (BOTH, INSIDE & DISK),
        (BOTH | POLYGON | {"ShutterShape": ["POLYGONAL", "CIRCULAR"]}, INSIDE & DISK),
    ],
)
def test_outside_of_a_shutter_is_black_and_out_of_the_range(tmp_path, tags, inside, value, photometric):
    stored = RAMP.copy() if photometric == "MONOCHROME2" else 4095 - RAMP
    low, high = (int(values[inside].min()) for values in (RAMP, -RAMP.astype(int)))
    if value is not None:
        tags = tags | {"ShutterPresentationValue": value}
    tags = tags | {"PhotometricInterpretation": photometric, "BitsStored": 12}
    pixels = read(write_dicom(tmp_path / "x.dcm", np.where(inside, stored, ~inside * 4000).astype(np.uint16), **tags))
    assert (pixels[~inside] == 0).all()
    expected = np.rint((RAMP.astype(float) - low) * 255 / (-high - low))
    assert np.array_equal(pixels[inside], expected[inside])


@pytest.mark.parametrize("tags", [RECTANGLE, CIRCLE])
def test_shutter_over_8_bits_window_color_and_padding(tmp_path, tags):
    inside = INSIDE if tags is RECTANGLE else DISK
    expected = np.where(inside, chest(), 0)
    assert np.array_equal(read(write_dicom(tmp_path / "a.dcm", chest(), **tags)), expected)
    window = {"WindowCenter": 128, "WindowWidth": 256}
    assert np.array_equal(read(write_dicom(tmp_path / "b.dcm", chest(), **tags, **window)), expected)
    assert np.array_equal(read(write_dicom(tmp_path / "c.dcm", np.stack([chest()] * 3, -1), **tags)), expected)
    padded = chest()
    padded[30] = 255
    expected[30] = 0
    assert np.array_equal(read(write_dicom(tmp_path / "d.dcm", padded, PixelPaddingValue=255, **tags)), expected)


@pytest.mark.parametrize(
    ("tags", "culprit"),
    [
        (
            RECTANGLE | {"ShutterLeftVerticalEdge": None},
            r"Shutter Left Vertical Edge \(0018,1602\), which is not usable",
        ),
        ({"ShutterShape": "RECTANGULAR"}, "Shutter Left Vertical Edge .* not usable"),
        (CIRCLE | {"CenterOfCircularShutter": 30}, "Center of Circular Shutter .* not usable"),
        (CIRCLE | {"RadiusOfCircularShutter": 0}, "Radius of Circular Shutter .* not usable"),
        (POLYGON | {"VerticesOfThePolygonalShutter": [5, 9, 5, 50]}, "Vertices of the Polygonal Shutter .* not usable"),
        (RECTANGLE | {"ShutterRightVerticalEdge": 0}, "hides the whole image"),
        (CIRCLE | {"CenterOfCircularShutter": [-900, -900]}, "hides the whole image"),
    ],
)
def test_a_shutter_that_cannot_be_is_left_out_and_named(tmp_path, tags, culprit):
    with pytest.warns(ImageWarning, match=culprit):
        assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", chest(), **tags)), chest())


@pytest.mark.parametrize("tags", [{}, {"ShutterShape": ""}, {"ShutterShape": "BITMAP"}])
def test_no_shutter(tmp_path, tags):
    assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", chest(), **tags)), chest())


# ---- pixels that are not square


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelAspectRatio": [2, 1]},
        {"PixelAspectRatio": [286, 143]},
        {"ImagerPixelSpacing": [0.4, 0.2]},
        {"PixelSpacing": [0.286, 0.143]},
        {"NominalScannedPixelSpacing": [0.4, 0.2]},
        {"PixelSpacing": [0, 0], "ImagerPixelSpacing": [0.4, 0.2]},
        {"PixelSpacing": None, "ImagerPixelSpacing": [0, 0.2], "PixelAspectRatio": [2, 1]},
        {"PixelSpacing": [0.4, 0.2], "PixelAspectRatio": [1, 1]},
        {"PixelSpacing": ["0.4", "0.1999"]},
    ],
)
@pytest.mark.parametrize("mapping", ["window", "minmax"])
def test_high_pixels_are_resampled_to_squares(tmp_path, tags, mapping):
    flat = np.asarray(Image.fromarray(chest(128)).resize((128, 64), Image.Resampling.BOX))
    path = write_dicom(tmp_path / "x.dcm", flat, **tags)
    image = load_image(path, mapping)
    assert image.size == (128, 128)
    assert stored_size(path) == (64, 128)
    smooth = np.asarray(Image.fromarray(flat).resize((128, 128), Image.Resampling.BILINEAR), float)
    if mapping == "minmax":
        smooth = (smooth - flat.min()) * 255 / (int(flat.max()) - int(flat.min()))
    assert np.abs(np.asarray(image) - smooth).max() <= 3
    values = load_gray(path, mapping)
    assert np.abs(values * 255 - np.asarray(image)).max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("aspect", "size"), [([1, 2], (128, 64)), ([3, 4], (85, 64)), ([4, 3], (64, 85)), ([1, 4], (256, 64))]
)
def test_size_of_square_pixels(tmp_path, aspect, size):
    for stored, tags in ((chest(), {}), (RAMP, {"BitsStored": 12}), (np.stack([chest()] * 3, -1), {})):
        assert load_image(write_dicom(tmp_path / "x.dcm", stored, PixelAspectRatio=aspect, **tags)).size == size


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelAspectRatio": [1, 1]},
        {"PixelSpacing": [0, 0]},
        {"PixelSpacing": [0, 0.2]},
        {"ImagerPixelSpacing": [0.2, 0]},
        {"ImagerPixelSpacing": 0.2},
        {"PixelSpacing": [-0.2, 0.4]},
        {"PixelSpacing": ["0.168", "0.1681"]},  # rounding
        {"PixelSpacing": [1.2, 1.2012]},
        {"PixelSpacing": [0.143, 0.143], "PixelAspectRatio": [2, 1]},
        {"PixelAspectRatio": [0, 0]},
        {"PixelAspectRatio": None, "PixelSpacing": None},
        {},
    ],
)
def test_square_and_unknown_pixels_stay(tmp_path, tags):
    assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", chest(), **tags)), chest())


def test_nonsense_is_named_and_left_out(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", chest(), PixelSpacing=[100, 0.1])
    with pytest.warns(ImageWarning, match=r"Pixel Spacing \(0028,0030\) makes pixels 1000 times as high as wide"):
        assert np.array_equal(read(path), chest())


def test_square_pixels_count_for_the_limit(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", chest(), PixelAspectRatio=[2, 1])
    load_image(path, max_pixels=128 * 64)
    with pytest.raises(ImageError, match="64 x 128 = 8,192 pixels, more than max_pixels"):
        load_image(path, max_pixels=128 * 64 - 1)


def test_circular_shutter_of_high_pixels_is_round(tmp_path):
    tags = {"ShutterShape": "CIRCULAR", "CenterOfCircularShutter": [32, 64], "RadiusOfCircularShutter": 40}
    path = write_dicom(
        tmp_path / "x.dcm", np.full((64, 128), 9, np.uint8) + chest(128)[:64] // 2, PixelAspectRatio=[2, 1], **tags
    )
    shown = np.asarray(load_image(path)) > 0
    assert abs(shown.any(0).sum() - shown.any(1).sum()) <= 4


def test_masks_follow(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", chest(), PixelAspectRatio=[2, 1])
    half = np.zeros((64, 64), bool)
    half[:16, 10:20] = True
    write_mask(tmp_path / "m.png", half)
    assert np.array_equal(load_mask(tmp_path / "m.png", (128, 64), image_path=path), np.repeat(half, 2, 0))
    write_mask(tmp_path / "square.png", np.repeat(half, 2, 0))  # drawn on what `load_image` shows
    assert np.array_equal(load_mask(tmp_path / "square.png", (128, 64), image_path=path), np.repeat(half, 2, 0))
    write_mask(tmp_path / "other.png", half[:32])
    with pytest.raises(MaskError, match="the mask has 64 x 32 pixels, its image 64 x 128"):
        load_mask(tmp_path / "other.png", (128, 64), image_path=path)
    Image.fromarray(chest()).save(tmp_path / "x.png")
    with pytest.raises(MaskError, match="the mask has 64 x 32 pixels"):
        load_mask(tmp_path / "other.png", (64, 64), image_path=tmp_path / "x.png")


def test_masks_of_a_manifest_follow(tmp_path):
    from encoder.resize import ResizeConfig, resize_studies
    from encoder.segment import load_masks
    from raddraft.studies import Study, StudyImage, read_studies, write_studies

    flat = np.asarray(Image.fromarray(chest(128)).resize((128, 64), Image.Resampling.BOX))
    path = write_dicom(tmp_path / "x.dcm", flat, PixelSpacing=[0.4, 0.2])
    left = np.zeros((64, 128), bool)
    left[32:, :64] = True
    write_mask(tmp_path / "m.png", left)
    image = StudyImage(path, "PA", {"lungs": tmp_path / "m.png"})
    expected = np.zeros((128, 128), bool)
    expected[64:, :64] = True
    assert np.array_equal(load_masks(image, ["lungs"])[0], expected)
    write_studies(tmp_path / "studies.jsonl", [Study("s", "p", "train", [image])])
    done = resize_studies(tmp_path / "studies.jsonl", tmp_path / "small", ResizeConfig(size=64), processes=1)
    (study,) = read_studies(done.manifest)
    assert np.array_equal(load_mask(study.images[0].masks["lungs"], (64, 64)), expected[::2, ::2])


def test_stored_size_of_other_files(tmp_path):
    Image.fromarray(chest()).save(tmp_path / "x.png")
    assert stored_size(tmp_path / "x.png") is None
    path = write_dicom(tmp_path / "x.dcm", chest())
    assert stored_size(path) == (64, 64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert stored_size(change(path, Rows=GONE)) is None
    with pytest.raises(ImageError, match="No such file"):
        stored_size(Path("nowhere.dcm"))
