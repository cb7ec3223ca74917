"""Which bits of the pixel data are gray: Bits Stored and High Bit in every transfer syntax, the sign, and padding."""

from pathlib import Path

import numpy as np
import pytest
from pydicom import DataElement, dcmread, uid
from pydicom.encaps import encapsulate

from raddraft.images import ImageError, ImageWarning
from tests.films import RAMP, RAMP_8BIT, change, chest, encapsulated, quietly, read, write_dicom

pytestmark = pytest.mark.filterwarnings("error::raddraft.images.ImageWarning")

NOISE = np.random.default_rng(3).integers(0, 2, RAMP.shape).astype(np.uint16)
SYNTAXES = {
    "explicit": uid.ExplicitVRLittleEndian,
    "implicit": uid.ImplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG 2000": uid.JPEG2000Lossless,
    "encapsulated": "1.2.840.10008.1.2.1.98",
}


def film(path: Path, words: np.ndarray, syntax: str, stored: int, high: int, **tags: object) -> Path:
    """Words of 16 bits in a transfer syntax, as if all their bits were gray; then the header that says which are."""
    header = {"BitsStored": stored, "HighBit": high, **tags}
    name = SYNTAXES[syntax]
    if syntax == "encapsulated":
        encapsulated(path, words.tobytes(), name, BitsStored=16)
    elif syntax in ("RLE", "JPEG 2000"):
        write_dicom(path, words, compress=name)
    elif syntax == "big endian":
        write_dicom(path, words.astype(">u2"), syntax=name)
    else:
        write_dicom(path, words, syntax=name)
    return change(path, **header)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize(
    ("stored", "high", "words"),
    [
        (12, 11, RAMP | NOISE << 15),  # an overlay in the highest bit
        (12, 11, RAMP | NOISE << 12),  # beside the gray
        (12, 11, RAMP | 0xF000),
        (12, 15, RAMP << 4 | NOISE),  # in the lowest
        (12, 15, RAMP << 4 | NOISE << 3),
        (12, 13, RAMP << 2 | NOISE << 15 | NOISE),
        (12, 15, RAMP << 4),
        (12, 14, RAMP << 3 | 7 | NOISE << 15),
    ],
)
def test_bits_that_the_header_does_not_name_never_count(tmp_path, syntax, stored, high, words):
    assert np.array_equal(read(film(tmp_path / "x.dcm", words, syntax, stored, high)), RAMP_8BIT)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("extended", [True, False])
def test_signed_values_count_with_the_sign_of_their_own_bits(tmp_path, syntax, extended):
    values = RAMP.astype(np.int16) - 2048
    words = values.view(np.uint16) & (0xFFFF if extended else 0x0FFF)
    path = film(tmp_path / "x.dcm", words | NOISE << 14, syntax, 12, 11, PixelRepresentation=1)
    assert np.array_equal(read(path), RAMP_8BIT)


@pytest.mark.parametrize("syntax", SYNTAXES)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_8_bits_in_16_stay_8_bits(tmp_path, syntax, photometric):
    dull = (chest() // 2 + 40).astype(np.uint16)
    stored = dull if photometric == "MONOCHROME2" else 255 - dull
    for number, (words, high) in enumerate(((stored, 7), (stored | NOISE << 8, 7), (stored << 8 | NOISE, 15))):
        path = film(tmp_path / f"{number}.dcm", words, syntax, 8, high, PhotometricInterpretation=photometric)
        assert np.array_equal(read(path), dull)


def test_fewer_bits_than_8_are_stretched(tmp_path):
    path = film(tmp_path / "x.dcm", (chest() // 4).astype(np.uint16), "explicit", 6, 5)
    pixels = read(path)
    assert (pixels.min(), pixels.max()) == (0, 255)


@pytest.mark.parametrize("syntax", ["explicit", "RLE", "JPEG 2000"])
def test_values_at_bit_0_under_a_header_that_puts_them_higher_are_refused(tmp_path, syntax):
    noisy = (chest() * 16 + np.random.default_rng(5).integers(0, 16, (64, 64))).astype(np.uint16)
    path = film(tmp_path / "x.dcm", noisy, syntax, 12, 15)
    with pytest.raises(
        ImageError, match=r"High Bit \(0028,0102\) is 15, and Bits Stored \(0028,0101\) 12, .*cannot be told"
    ):
        read(path)


@pytest.mark.parametrize(("stored", "high"), [(12, 7), (12, 0), (12, 20), (10, 4)])
def test_a_high_bit_that_cannot_be_is_passed_over_if_no_other_bits_are_set(tmp_path, stored, high):
    words = RAMP if stored == 12 else RAMP // 4
    path = film(tmp_path / "x.dcm", words, "explicit", stored, high)
    with pytest.warns(ImageWarning, match=rf"High Bit \(0028,0102\) is {high}.* lowest {stored} bits are taken"):
        assert np.abs(read(path).astype(int) - RAMP_8BIT).max() <= 1
    path = film(tmp_path / "x.dcm", words | NOISE << 13, "explicit", stored, high)
    with pytest.raises(ImageError, match=r"High Bit .* cannot be told"):
        read(path)


def test_codec_that_holds_more_than_bits_stored_but_less_than_high_bit_is_refused(tmp_path):
    write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, compress=uid.JPEG2000Lossless)
    assert np.array_equal(read(change(tmp_path / "x.dcm", HighBit=15)), RAMP_8BIT)  # the codec keeps 12 bits at bit 0
    with pytest.raises(ImageError, match="JPEG 2000 data hold 12: which bits are gray cannot be told"):
        read(change(tmp_path / "x.dcm", HighBit=15, BitsStored=10))


def test_bits_stored_over_the_allocated_ones_are_refused(tmp_path):
    path = change(write_dicom(tmp_path / "x.dcm", chest()), BitsStored=12)
    with pytest.raises(ImageError, match=r"Bits Stored \(0028,0101\) is 12, and Bits Allocated \(0028,0100\) 8"):
        read(path)


@pytest.mark.parametrize("bits", [12, 24])
def test_packed_or_odd_allocations_are_refused(tmp_path, bits):
    path = change(write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12), BitsAllocated=bits)
    with pytest.raises(ImageError, match=rf"Bits Allocated \(0028,0100\) is {bits}; known: 1, 8, 16"):
        read(path)


def test_palette_and_color_count_their_bits_too(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", np.stack([chest().astype(np.uint16) | NOISE << 9] * 3, -1), BitsStored=8)
    assert np.array_equal(read(path), chest())
    tags: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR", "BitsStored": 8}
    for color in ("Red", "Green", "Blue"):
        tags[f"{color}PaletteColorLookupTableDescriptor"] = [256, 0, 8]
        tags[f"{color}PaletteColorLookupTableData"] = bytes(range(256))
    assert np.array_equal(
        read(write_dicom(tmp_path / "y.dcm", chest().astype(np.uint16) | NOISE << 9, **tags)), chest()
    )


def test_32_bits(tmp_path):
    for kind, shift in ((np.uint32, 0), (np.int32, 2**31)):
        values = (np.arange(4096) * 2**20 - shift).astype(kind).reshape(64, 64)
        assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", values)), RAMP_8BIT)


# ---- headers that the pixels contradict


@pytest.mark.parametrize(
    ("stored", "bits"),
    [
        (chest(), 8),
        (RAMP, 12),
        (RAMP * 16, 16),
        ((RAMP * 10 + 500).astype(np.uint16), 16),
        (chest().astype(np.uint16) * 4, 10),
    ],
)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_unsigned_values_that_are_called_signed_are_named(tmp_path, stored, bits, photometric):
    path = write_dicom(tmp_path / "x.dcm", stored, BitsStored=bits, PhotometricInterpretation=photometric)
    quietly(path)  # only the polarity, if anything
    _, messages = quietly(change(path, PixelRepresentation=1))
    assert any("Pixel Representation (0028,0103) is 1 (signed), but neighbors differ" in one for one in messages)


@pytest.mark.parametrize(
    ("stored", "bits"), [(RAMP.astype(np.int16) - 2048, 16), (RAMP.astype(np.int16) - 1000, 13), (chest() - 100, 8)]
)
def test_signed_values_that_are_called_unsigned_are_named(tmp_path, stored, bits):
    stored = stored.view(np.int8) if stored.itemsize == 1 else stored
    path = write_dicom(tmp_path / "x.dcm", stored, BitsStored=bits)
    read(path)
    _, messages = quietly(change(path, PixelRepresentation=0))
    assert any("Pixel Representation (0028,0103) is 0 (unsigned), but neighbors differ" in one for one in messages)


@pytest.mark.parametrize("bits", [11, 10, 9, 8])
def test_fewer_bits_stored_than_the_values_have_are_named(tmp_path, bits):
    smooth = np.add.outer(np.arange(256) * 12, np.arange(256) * 4).astype(np.uint16)
    path = write_dicom(tmp_path / "x.dcm", smooth, BitsStored=12)
    _, messages = quietly(change(path, BitsStored=bits, HighBit=bits - 1))
    assert any(f"Bits Stored (0028,0101) is {bits}, but neighbors differ" in one for one in messages)


def test_marks_and_borders_do_not_pass_for_a_wrong_sign(tmp_path):
    marked = RAMP.copy()
    marked[:8], marked[2:6, 4:20:2] = 3, 4093  # a bright text on the black above
    dark = np.where(RAMP % 97 == 0, 4000 + RAMP % 50, RAMP // 4).astype(np.uint16)
    for stored in (marked, dark, np.where(RAMP < 2600, RAMP % 9, RAMP)):
        assert quietly(write_dicom(tmp_path / "x.dcm", stored, BitsStored=12))[1] == []


def test_ordinary_films_pass_for_neither(cxr, tmp_path):
    from PIL import Image

    for path in sorted((cxr / "images" / "nih").iterdir())[::20]:
        stored = np.asarray(Image.open(path).convert("L"))
        _, messages = quietly(write_dicom(tmp_path / "x.dcm", stored))
        assert not any("neighbors" in one for one in messages), path.name
        _, messages = quietly(change(tmp_path / "x.dcm", PixelRepresentation=1))
        assert any("neighbors" in one for one in messages), path.name


# ---- padding


@pytest.mark.parametrize("mapping", ["window", "minmax", "percentile"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("dtype", "bits", "padding", "vr", "stated"),
    [
        (np.int16, 16, -2000, "US", 63536),
        (np.int16, 16, -2000, "SS", -2000),
        (np.int16, 16, -2000, "SL", -2000),
        (np.int16, 16, -2000, "IS", "-2000"),
        (np.int16, 16, -2000, "OW", (63536).to_bytes(2, "little")),
        (np.int16, 13, -2000, "US", 63536),
        (np.int16, 13, -2000, "US", 8192 - 2000),
        (np.uint16, 16, 65535, "SS", -1),
        (np.uint16, 16, 65000, "SS", 65000 - 65536),
        (np.uint16, 16, 65535, "UL", 65535),
        (np.uint16, 12, 4095, "SS", -1),
        (np.uint16, 12, 65535, "US", 65535),  # above Bits Stored
        (np.uint16, 12, 63536, "SS", -2000),
    ],
)
def test_padding_in_any_value_representation(tmp_path, mapping, photometric, dtype, bits, padding, vr, stated):
    film = (RAMP % 4000).astype(np.int32)
    film[0, -1] = 4000
    values = (film if photometric == "MONOCHROME2" else 4000 - film).astype(dtype)
    bare, whole = values[:, 6:], values.copy()
    whole[:, :6] = padding
    tags = {"BitsStored": bits, "PhotometricInterpretation": photometric}
    path = write_dicom(tmp_path / "x.dcm", whole, **tags)
    pixels, _ = quietly(change(path, PixelPaddingValue=DataElement("PixelPaddingValue", vr, stated)), mapping)
    assert (pixels[:, :6] == 0).all()
    assert np.array_equal(pixels[:, 6:], quietly(write_dicom(tmp_path / "y.dcm", bare, **tags), mapping)[0])


@pytest.mark.parametrize(("vr", "limit"), [("SS", -6), ("US", 65530)])
def test_a_range_of_padding_in_the_wrong_representation(tmp_path, vr, limit):
    stored = RAMP.copy()
    stored[:, :3], stored[:, 3:6] = 65535, 65533
    path = write_dicom(tmp_path / "x.dcm", stored)
    ends = {"PixelPaddingValue": ("SS", -1), "PixelPaddingRangeLimit": (vr, limit)}
    pixels = read(change(path, **{name: DataElement(name, *end) for name, end in ends.items()}))
    assert (pixels[:, :6] == 0).all()
    assert np.abs(pixels[:, 6:].astype(int) - RAMP_8BIT[:, 6:]).max() <= 1


def test_a_film_that_uses_its_whole_range_keeps_its_white(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, PixelPaddingValue=65535)
    assert np.array_equal(read(path), RAMP_8BIT)


def test_a_range_limit_without_padding_is_named(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, PixelPaddingRangeLimit=100)
    with pytest.warns(ImageWarning, match=r"Pixel Padding Value \(0028,0120\) is missing; taken as no padding"):
        assert np.array_equal(read(path), RAMP_8BIT)
    with pytest.warns(ImageWarning, match="Pixel Padding Value .* is empty"):
        read(change(path, PixelPaddingValue=DataElement("PixelPaddingValue", "US", None)))


def test_encapsulated_words_with_several_frames_are_refused(tmp_path):
    path = encapsulated(tmp_path / "x.dcm", RAMP.tobytes(), "1.2.840.10008.1.2.1.98")
    dataset = dcmread(path)
    dataset.PixelData = encapsulate([RAMP.tobytes()] * 2)
    dataset.save_as(path)
    with pytest.raises(ImageError, match="holds 2 frames"):
        read(path)
