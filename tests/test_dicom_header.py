"""Elements that are empty, gone, given twice or absurd: a single reading is taken and named, several are refused."""

import re
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydicom import DataElement, dcmread, uid
from pydicom.encaps import encapsulate

from raddraft.images import ImageError
from tests.films import GONE, RAMP, RAMP_8BIT, change, chest, quietly, read, write_dicom

pytestmark = pytest.mark.filterwarnings("error::raddraft.images.ImageWarning")

NAMES = {
    "Rows": "Rows (0028,0010)",
    "Columns": "Columns (0028,0011)",
    "SamplesPerPixel": "Samples per Pixel (0028,0002)",
    "PhotometricInterpretation": "Photometric Interpretation (0028,0004)",
    "NumberOfFrames": "Number of Frames (0028,0008)",
    "BitsAllocated": "Bits Allocated (0028,0100)",
    "BitsStored": "Bits Stored (0028,0101)",
    "HighBit": "High Bit (0028,0102)",
    "PixelRepresentation": "Pixel Representation (0028,0103)",
    "PlanarConfiguration": "Planar Configuration (0028,0006)",
}
REQUIRED = [name for name in NAMES if name not in ("NumberOfFrames", "PlanarConfiguration")]


def plain(path: Path) -> np.ndarray:
    write_dicom(path, RAMP, BitsStored=12)
    return RAMP_8BIT


def implicit(path: Path) -> np.ndarray:
    write_dicom(path, RAMP, BitsStored=12, syntax=uid.ImplicitVRLittleEndian)
    return RAMP_8BIT


def eight_bits(path: Path) -> np.ndarray:
    write_dicom(path, chest())
    return chest()


def with_window(path: Path) -> np.ndarray:
    write_dicom(path, RAMP, BitsStored=12, WindowCenter=2048, WindowWidth=4096)
    return RAMP_8BIT


def signed(path: Path) -> np.ndarray:
    write_dicom(path, RAMP.astype(np.int16) - 2048)
    return RAMP_8BIT


def rle(path: Path) -> np.ndarray:
    write_dicom(path, RAMP, BitsStored=12, compress=uid.RLELossless)
    return RAMP_8BIT


def jpeg_2000(path: Path) -> np.ndarray:
    write_dicom(path, RAMP, BitsStored=12, compress=uid.JPEG2000Lossless)
    return RAMP_8BIT


def jpeg(path: Path) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray(chest()).save(stream, format="JPEG", quality=95)
    dataset = dcmread(write_dicom(path, chest()))
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit
    dataset.PixelData = encapsulate([stream.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return read(path)


FILMS: list[Callable[[Path], np.ndarray]] = [plain, implicit, eight_bits, with_window, signed, rle, jpeg_2000, jpeg]


def reading(path: Path, expected: np.ndarray, *names: str) -> None:
    """Read a film to the gray values expected, with a warning that names each element."""
    pixels, messages = quietly(path)
    assert np.array_equal(pixels, expected)
    for name in names:
        assert any(NAMES[name] in message for message in messages), (name, messages)


@pytest.mark.parametrize("make", FILMS)
@pytest.mark.parametrize("how", ["missing", "empty", "twice"])
@pytest.mark.parametrize("name", [*REQUIRED, "NumberOfFrames"])
def test_an_element_without_one_value_is_read_or_refused_by_name(tmp_path, make, name, how):
    path = tmp_path / "x.dcm"
    expected = make(path)
    value = dcmread(path).get(name, 1)
    if how == "missing" and name == "NumberOfFrames":
        return  # as it should be
    change(path, **{name: {"missing": GONE, "empty": None, "twice": [value, value]}[how]})
    if make is rle and name in ("Rows", "Columns") and how != "twice":  # only the codec knows, and it does not tell
        with pytest.raises(ImageError, match=re.escape(f"{NAMES[name]} is {how}")) as error:
            read(path)
        assert "truncated" not in str(error.value)
    else:
        reading(path, expected, name)


@pytest.mark.parametrize("make", FILMS)
@pytest.mark.parametrize(
    "names",
    [
        ("BitsStored", "HighBit"),
        ("HighBit", "PixelRepresentation"),
        ("SamplesPerPixel", "PhotometricInterpretation"),
        ("BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel", "PhotometricInterpretation"),
    ],
)
def test_several_elements_gone_at_once(tmp_path, make, names):
    path = tmp_path / "x.dcm"
    expected = make(path)
    reading(change(path, **dict.fromkeys(names, GONE)), expected, *names)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("Rows", [64, 32]),
        ("BitsStored", [12, 16]),
        ("HighBit", [11, 15]),
        ("PixelRepresentation", [0, 1]),
        ("PhotometricInterpretation", ["MONOCHROME1", "MONOCHROME2"]),
        ("SamplesPerPixel", [1, 3]),
        ("BitsAllocated", [16, 8]),
        ("NumberOfFrames", [1, 2]),
    ],
)
def test_different_values_of_one_element_are_refused(tmp_path, name, values):
    plain(tmp_path / "x.dcm")
    with pytest.raises(ImageError, match=re.escape(f"{NAMES[name]} has 2 values ({values[0]}, {values[1]})")):
        read(change(tmp_path / "x.dcm", **{name: values}))


@pytest.mark.parametrize(
    ("tags", "culprits"),
    [
        ({"PixelRepresentation": 7}, ["Pixel Representation (0028,0103) is 7; it is 0 (unsigned) or 1 (signed)"]),
        ({"SamplesPerPixel": 3}, ["Samples per Pixel (0028,0002) is 3", "MONOCHROME2, which has 1"]),
        ({"SamplesPerPixel": 2}, ["Samples per Pixel (0028,0002) is 2"]),
        ({"PhotometricInterpretation": "RGB"}, ["Samples per Pixel (0028,0002) is 1", "RGB, which has 3"]),
        ({"PhotometricInterpretation": "YBR_FULL"}, ["Samples per Pixel", "YBR_FULL, which has 3"]),
        (
            {"PhotometricInterpretation": "GRAY"},
            ["Photometric Interpretation (0028,0004) is 'GRAY'; known: MONOCHROME1"],
        ),
        ({"Rows": GONE, "Columns": GONE}, ["Rows (0028,0010) is missing"]),
        ({"Rows": GONE, "BitsAllocated": GONE}, ["Rows (0028,0010) is missing"]),
        ({"Columns": None, "Rows": 63}, ["Columns (0028,0011) is empty"]),
        ({"Rows": 65}, ["Rows (0028,0010) 65", "make 8,320", "8,192 bytes of pixel data"]),
        ({"Rows": 32}, ["Rows (0028,0010) 32", "make 4,096", "8,192 bytes of pixel data"]),
        ({"Columns": 128}, ["Columns (0028,0011) 128", "make 16,384"]),
        ({"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}, ["Bits Allocated (0028,0100) 8 make 4,096"]),
        ({"BitsAllocated": 32}, ["Bits Allocated (0028,0100) 32 make 16,384"]),
        ({"BitsAllocated": 12}, ["Bits Allocated (0028,0100) is 12"]),
        ({"PixelData": DataElement("PixelData", "OW", b"")}, ["Pixel Data (7FE0,0010) is empty"]),
    ],
)
def test_elements_that_contradict_each_other_are_refused_by_name(tmp_path, tags, culprits):
    plain(tmp_path / "x.dcm")
    with pytest.raises(ImageError) as error:
        quietly(change(tmp_path / "x.dcm", **tags))
    assert all(culprit in str(error.value) for culprit in culprits), error.value
    assert "truncated" not in str(error.value)


@pytest.mark.parametrize(
    ("make", "tags"),
    [
        (jpeg_2000, {"Rows": 32}),
        (jpeg_2000, {"Columns": 128}),
        (jpeg, {"Rows": 128}),
        (jpeg, {"Rows": 32, "Columns": 128}),
        (jpeg, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0}),
    ],
)
def test_headers_that_contradict_the_codec_are_refused_by_name(tmp_path, make, tags):
    make(tmp_path / "x.dcm")
    name = NAMES["Rows" if "SamplesPerPixel" not in tags else "SamplesPerPixel"]
    with pytest.raises(ImageError) as error:
        read(change(tmp_path / "x.dcm", **tags))
    assert name in str(error.value)
    assert "truncated" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "vr", "value"),
    [
        ("Rows", "UL", 64),
        ("Columns", "IS", "64"),
        ("BitsStored", "SS", 12),
        ("HighBit", "DS", "11"),
        ("PixelRepresentation", "OW", b"\0\0"),
        ("BitsAllocated", "OB", b"\x10\0"),
        ("NumberOfFrames", "US", 1),
        ("NumberOfFrames", "LO", "1"),
        ("PhotometricInterpretation", "LO", "monochrome2"),
    ],
)
def test_values_in_another_representation_are_read(tmp_path, name, vr, value):
    path = tmp_path / "x.dcm"
    plain(path)
    assert np.array_equal(read(change(path, **{name: DataElement(name, vr, value)})), RAMP_8BIT)


@pytest.mark.parametrize(("shape", "seen"), [("IDENTITY", chest()), ("INVERSE", 255 - chest())])
def test_polarity_follows_the_presentation_lut_where_nothing_else_says_it(tmp_path, shape, seen):
    path = write_dicom(tmp_path / "x.dcm", chest(), PresentationLUTShape=shape)
    reading(change(path, PhotometricInterpretation=GONE), seen, "PhotometricInterpretation")


def test_palette_without_its_name(tmp_path):
    tags: dict[str, Any] = {"PhotometricInterpretation": ""}
    for color in ("Red", "Green", "Blue"):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tags[f"{color}PaletteColorLookupTableData"] = bytes(range(255, -1, -1))
    reading(write_dicom(tmp_path / "x.dcm", 255 - chest(), **tags), chest(), "PhotometricInterpretation")


@pytest.mark.parametrize("values", [RAMP.astype(np.int16) - 2048, RAMP.astype(np.int16) * 8 - 9000])
def test_the_sign_is_read_off_the_values_where_nothing_else_says_it(tmp_path, values):
    path = change(write_dicom(tmp_path / "x.dcm", values), PixelRepresentation=GONE)
    _, messages = quietly(path)
    assert any("Pixel Representation (0028,0103) is missing; taken as 1" in one for one in messages)
    reading(path, RAMP_8BIT, "PixelRepresentation")


@pytest.mark.parametrize("how", [GONE, None])
@pytest.mark.parametrize("planar", [0, 1])
def test_planar_configuration_of_a_gray_image_in_color(tmp_path, planar, how):
    rgb = np.stack([chest()] * 3, axis=0 if planar else -1)
    path = write_dicom(tmp_path / "x.dcm", np.stack([chest()] * 3, -1), PixelData=rgb.tobytes())
    reading(change(path, PlanarConfiguration=how), chest(), "PlanarConfiguration")
    reading(change(path, PlanarConfiguration=[planar, planar]), chest(), "PlanarConfiguration")


def test_planar_configuration_of_colors_cannot_be_told(tmp_path):
    rgb = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    path = change(write_dicom(tmp_path / "x.dcm", rgb), PlanarConfiguration=GONE)
    with pytest.raises(ImageError, match=r"Planar Configuration \(0028,0006\) is missing, and the colors do not tell"):
        read(path)


@pytest.mark.parametrize(
    "tags", [{"PhotometricInterpretation": GONE}, {"PhotometricInterpretation": GONE, "SamplesPerPixel": GONE}]
)
def test_colors_without_a_photometric_interpretation_are_refused(tmp_path, tags):
    path = write_dicom(tmp_path / "x.dcm", np.stack([chest()] * 3, -1))
    with pytest.raises(ImageError, match=r"Photometric Interpretation|Samples per Pixel"):
        quietly(change(path, **tags))


def test_texts_that_are_given_twice_do_not_matter(tmp_path):
    tags = {
        "Modality": ["DX", "DX"],
        "BodyPartExamined": ["CHEST", "ABDOMEN"],
        "PresentationLUTShape": ["IDENTITY", ""],
    }
    path = write_dicom(tmp_path / "x.dcm", chest(), **tags)
    assert np.array_equal(read(path), chest())


def test_zeros_after_de_identification(tmp_path):
    plain(tmp_path / "x.dcm")
    reading(change(tmp_path / "x.dcm", BitsStored=0, NumberOfFrames=0), RAMP_8BIT, "BitsStored", "NumberOfFrames")
