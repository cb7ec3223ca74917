"""Modality LUT, VOI LUT, windows: every legal table reads to the right gray, and what a mapping loses is said."""

import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from pydicom import Dataset, uid

from raddraft.images import ImageError, ImageWarning, load_gray
from tests.films import RAMP, RAMP_8BIT, change, chest, look_up_table, quietly, read, write_dicom

pytestmark = pytest.mark.filterwarnings("error::raddraft.images.ImageWarning")

SQUARES = (np.arange(4096) / 4095) ** 2  # a curve that no reader mistakes for a straight line
CURVED = np.rint(SQUARES * 255).reshape(64, 64)


def written(path: Path, item: Dataset, stored: np.ndarray = RAMP, kind: str = "VOILUTSequence", **tags: object) -> Path:
    return write_dicom(path, stored, **{"BitsStored": 12, kind: [item], **tags})


def as_bytes(item: Dataset, data: bytes) -> Dataset:
    item.add_new("LUTData", "OW", data)
    return item


# ---- VOI LUT


@pytest.mark.parametrize(
    ("stated", "used"),
    [(16, 12), (16, 14), (16, 10), (12, 10), (14, 13), (8, 12), (10, 12), (12, 16), (0, 12), (77, 12)],
)
def test_voi_lut_is_scaled_by_the_bits_that_its_entries_use(tmp_path, stated, used):
    table = look_up_table(np.rint(SQUARES * (2**used - 1)).astype(int).tolist(), stated)
    with pytest.warns(
        ImageWarning, match=rf"x\.dcm: VOI LUT states entries of {stated} bits and has entries of {used}"
    ):
        pixels = read(written(tmp_path / "x.dcm", table))
    assert np.abs(pixels - CURVED).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("as_words", [True, False])
def test_voi_lut_of_the_stated_bits_earns_no_warning(tmp_path, bits, as_words):
    entries = np.rint(SQUARES * (2**bits - 1)).astype("<u2")
    table = look_up_table(entries.tolist(), bits)
    if not as_words:
        as_bytes(table, entries.tobytes())
    assert np.abs(read(written(tmp_path / "x.dcm", table)) - CURVED).max() <= 1


def pack(entries: np.ndarray) -> list[int]:
    """8-bit entries two to the word, the first in the lower byte."""
    return np.pad(entries.astype(np.uint8), (0, len(entries) % 2)).view("<u2").tolist()


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("how", ["OW", "US", "US one to the word", "OW one to the word"])
@pytest.mark.parametrize("count", [256, 255])
@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_8bit_entries(tmp_path, kind, how, count, syntax):
    if syntax == uid.ImplicitVRLittleEndian and how.startswith("US"):
        how = how.replace("US", "OW")  # pydicom writes no other
    curve = np.rint((np.arange(count) / (count - 1)) ** 2 * 255).astype(np.uint8)
    table = look_up_table([0] * count, 8)
    order = ">u2" if syntax == uid.ExplicitVRBigEndian else "<u2"
    words = curve.tolist() if "one" in how else pack(curve)
    table.add_new("LUTData", how[:2], np.array(words, order).tobytes() if how.startswith("OW") else words)
    path = tmp_path / "x.dcm"
    written(path, table, chest(), kind, BitsStored=8, syntax=syntax)
    expected = curve[np.minimum(chest(), count - 1)].astype(int)
    if kind == "ModalityLUTSequence":  # no window: from the darkest to the brightest
        expected = np.rint((expected - expected.min()) * 255 / (expected.max() - expected.min()))
    assert np.array_equal(read(path), expected)


@pytest.mark.parametrize("kind", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize("bits", [10, 12, 16])
def test_65536_entries_are_written_as_0(tmp_path, kind, bits):
    curve = np.rint((np.arange(65536) / 65535) ** 2 * (2**bits - 1)).astype("<u2")
    table = as_bytes(look_up_table([0] * 65536, bits), curve.tobytes())
    assert table.LUTDescriptor[0] == 0
    stored = RAMP * 16 + RAMP // 256  # 0 to 65535
    pixels = read(written(tmp_path / "x.dcm", table, stored, kind, BitsStored=16))
    assert np.abs(pixels - (stored / 65535.0) ** 2 * 255).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("vr", ["OW", "US"])
def test_modality_lut_of_any_depth_then_window(tmp_path, bits, vr):
    top = 2**bits - 1
    entries = np.rint(SQUARES * top).astype("<u2")
    table = look_up_table(entries.tolist(), bits)
    if vr == "OW":
        as_bytes(table, entries.tobytes())
    window = {"WindowCenter": 2 ** (bits - 1), "WindowWidth": 2**bits}
    path = written(tmp_path / "x.dcm", table, RAMP, "ModalityLUTSequence", **window)
    assert np.abs(read(path) - CURVED).max() <= 1


@pytest.mark.parametrize("syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize(
    ("kind", "stored", "tags", "first"),
    [
        # by the pixels
        ("ModalityLUTSequence", RAMP.astype(np.int16) - 2048, {"BitsStored": 12}, -2048),
        ("VOILUTSequence", RAMP.astype(np.int16) - 2048, {"BitsStored": 12}, -2048),
        # by what the rescale may give, C.11.2.1.1
        ("VOILUTSequence", RAMP, {"RescaleSlope": 1, "RescaleIntercept": -1024}, -1024),
        ("VOILUTSequence", RAMP, {"RescaleSlope": -1, "RescaleIntercept": 0}, -4095),
        (
            "VOILUTSequence",
            RAMP.astype(np.int16) - 2048,
            {"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": 4048},
            2000,
        ),
    ],
)
@pytest.mark.parametrize("vr", ["US", "SS"])
def test_first_value_mapped_is_as_signed_as_the_values(tmp_path, kind, stored, tags, first, vr, syntax):
    table = look_up_table([0] * 4096, 16, first if vr == "SS" else first % 65536, vr)
    big = syntax == uid.ExplicitVRBigEndian
    curve = np.rint(SQUARES * 65535)
    if tags.get("RescaleSlope") == -1:
        curve = curve[::-1]
    as_bytes(table, curve.astype(">u2" if big else "<u2").tobytes())
    stored = stored.astype(stored.dtype.newbyteorder(">")) if big else stored
    assert np.array_equal(read(written(tmp_path / "x.dcm", table, stored, kind, syntax=syntax, **tags)), CURVED)


def test_first_value_mapped_may_be_a_large_unsigned_one(tmp_path):
    stored = RAMP + 40000
    for vr, first in (("US", 40000), ("SS", 40000 - 65536)):
        table = look_up_table(np.rint(SQUARES * 65535).astype(int).tolist(), 16, first, vr)
        assert np.array_equal(read(written(tmp_path / "x.dcm", table, stored, BitsStored=16)), CURVED)


def test_values_beyond_either_end_of_a_lut_have_the_entry_there(tmp_path):
    table = look_up_table([10, *range(100, 180), 250], 8, 2000)
    pixels = read(written(tmp_path / "x.dcm", table, RAMP // 16 + 1900, WindowCenter=1, WindowWidth=2))
    expected = np.array([10, *range(100, 180), 250])[np.clip(RAMP.astype(int) // 16 - 100, 0, 81)]
    assert np.array_equal(pixels, expected)


def test_signed_entries_are_read_as_they_are_stored(tmp_path):
    table = look_up_table([0], 16)
    table.LUTDescriptor = [4096, 0, 16]
    table.add_new("LUTData", "SS", np.rint(SQUARES * 65535).astype(np.uint16).view(np.int16).tolist())
    assert np.array_equal(read(written(tmp_path / "x.dcm", table)), CURVED)


def test_first_usable_voi_lut_is_taken_else_the_window(tmp_path):
    bad, good = Dataset(), look_up_table(np.rint(SQUARES * 4095).astype(int).tolist(), 12)
    bad.add_new("LUTData", "US", [1, 2, 3])
    window = {"WindowCenter": 2048, "WindowWidth": 4096}
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, VOILUTSequence=[bad, good], **window)
    with pytest.warns(ImageWarning, match=r"VOI LUT without a usable LUT Descriptor \(0028,3002\)"):
        assert np.abs(read(path) - CURVED).max() <= 1
    del good.LUTData
    with pytest.warns(ImageWarning, match=r"VOI LUT without a usable LUT Data \(0028,3006\)"):
        assert np.array_equal(read(change(path, VOILUTSequence=[good])), RAMP_8BIT)


def test_modality_lut_without_its_table_is_refused(tmp_path):
    table = look_up_table([1, 2, 3], 16)
    del table.LUTData
    with pytest.warns(ImageWarning, match="LUT Data"), pytest.raises(ImageError, match="Modality LUT without"):
        read(written(tmp_path / "x.dcm", table, RAMP, "ModalityLUTSequence"))


def test_a_lut_that_is_shorter_than_stated_is_named(tmp_path):
    table = look_up_table(np.rint(SQUARES * 4095).astype(int).tolist(), 12)
    table.LUTDescriptor = [5000, 0, 12]
    with pytest.warns(ImageWarning, match=r"VOI LUT has 4,096 entries, LUT Descriptor \(0028,3002\) says 5,000"):
        assert np.abs(read(written(tmp_path / "x.dcm", table)) - CURVED).max() <= 1


# ---- windows


@pytest.mark.parametrize(
    ("tags", "culprit"),
    [
        ({"WindowCenter": 2048}, r"Window Width \(0028,1051\) is missing"),
        ({"WindowWidth": 4096}, r"Window Center \(0028,1050\) is missing"),
        ({"WindowCenter": 2048, "WindowWidth": None}, "Window Width .* is empty"),
        ({"WindowCenter": "", "WindowWidth": 100}, "Window Center .* is empty"),
        ({"WindowCenter": None, "WindowWidth": None}, "Window Center .* is empty"),
        ({"WindowCenter": 2048, "WindowWidth": -5}, "window width -5 is not usable"),
        ({"WindowCenter": 2048, "WindowWidth": 0.5}, "window width 0.5 is not usable"),
    ],
)
def test_half_a_window_is_none_and_named(tmp_path, tags, culprit):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, **tags)
    with pytest.warns(ImageWarning, match=culprit):
        assert np.array_equal(read(path), RAMP_8BIT)


def test_unknown_function_of_a_window_is_named(tmp_path):
    tags = {"WindowCenter": 2048, "WindowWidth": 4096, "VOILUTFunction": "CUBIC"}
    with pytest.warns(ImageWarning, match=r"VOI LUT Function \(0028,1056\) 'CUBIC' is none of LINEAR"):
        assert np.array_equal(read(write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, **tags)), RAMP_8BIT)


@pytest.mark.parametrize("function", ["linear_exact", "LINEAR_EXACT ", ["LINEAR_EXACT", "LINEAR_EXACT"]])
def test_function_of_a_window_is_read_as_people_write_it(tmp_path, function):
    tags = {"WindowCenter": 100, "WindowWidth": 300, "VOILUTFunction": function}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        values = load_gray(write_dicom(tmp_path / "x.dcm", chest(), **tags))
    np.testing.assert_allclose(values, ((chest() - 100.0) / 300 + 0.5).clip(0, 1), atol=1e-6)


# ---- what a mapping loses


@pytest.mark.parametrize(
    ("stored", "tags", "culprit"),
    [
        (chest(), {"WindowCenter": 2048, "WindowWidth": 4096}, r"the window .* leaves 1\d gray levels"),
        (chest(), {"WindowCenter": 512, "WindowWidth": 1024}, r"the window .* leaves [56]\d gray levels"),
        (RAMP, {"WindowCenter": 32768, "WindowWidth": 65536}, "leaves 17 gray levels"),
        (RAMP, {"WindowCenter": 2000, "WindowWidth": 1e6}, "leaves [12] gray levels"),
        (RAMP, {"VOILUTSequence": [look_up_table([0, 9, 200, 255], 8)]}, "the VOI LUT leaves 4 gray levels"),
        (RAMP, {"BitsStored": 4, "HighBit": 3}, "leaves 16 gray levels of 4,096 values"),
        (RAMP, {"WindowCenter": 200, "WindowWidth": 300}, r"the window .* cuts 9\d% of the pixels to black or white"),
        (RAMP, {"WindowCenter": 3500, "WindowWidth": 1500}, r"cuts 6\d% of the pixels"),
        (RAMP, {"WindowCenter": 3500, "WindowWidth": 900, "VOILUTFunction": "SIGMOID"}, r"cuts \d\d% of the pixels"),
        (np.where(RAMP == 9, 65535, RAMP), {"BitsStored": 16}, "mapping 'window' leaves 18 gray levels"),
    ],
)
def test_a_mapping_that_loses_most_of_a_film_is_named(tmp_path, stored, tags, culprit):
    path = write_dicom(tmp_path / "x.dcm", stored, **{"BitsStored": 8 if stored.itemsize == 1 else 12, **tags})
    with pytest.warns(ImageWarning, match=rf"x\.dcm: .*{culprit}"):
        read(path)


@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        (chest(), {"WindowCenter": 128, "WindowWidth": 256}),
        (chest() // 8, {}),  # few levels as it is
        (chest() // 8, {"WindowCenter": 15, "WindowWidth": 32}),
        (RAMP, {"WindowCenter": 2048, "WindowWidth": 8192}),
        (RAMP, {"WindowCenter": 2048, "WindowWidth": 2600}),
        # collimated: most of it black from the start, with some noise
        (np.where(RAMP < 2600, RAMP % 9, RAMP), {"WindowCenter": 2300, "WindowWidth": 3600}),
        (RAMP * 16, {"BitsStored": 16}),
        ((chest() > 100).astype(np.uint8) * 255, {}),
    ],
)
def test_a_mapping_that_loses_little_is_silent(tmp_path, stored, tags):
    bits = {"BitsStored": 8 if stored.itemsize == 1 else 12}
    for mapping in ("window", "minmax"):
        assert quietly(write_dicom(tmp_path / "x.dcm", stored, **bits | tags), mapping)[1] == []


def test_ordinary_films_earn_no_warning_of_their_mapping(cxr):
    names = ["1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm", "RG1_J2KI.dcm", "gdcm-CR-MONO1-10-chest.dcm"]
    for name in names:
        for mapping in ("window", "minmax", "percentile"):
            assert quietly(cxr / "dicom" / name, mapping)[1] == []


@pytest.mark.parametrize(
    ("tags", "culprit"),
    [
        ({"RescaleSlope": 2}, r"Rescale Intercept \(0028,1052\) is missing; taken as 0"),
        ({"RescaleIntercept": 0}, r"Rescale Slope \(0028,1053\) is missing; taken as 1"),
        ({"RescaleIntercept": 0, "RescaleSlope": 0}, "Rescale Slope .* is 0"),
        ({"RescaleIntercept": None, "RescaleSlope": 1}, "Rescale Intercept .* is empty"),
        ({"RescaleIntercept": None, "RescaleSlope": None}, "Rescale Slope .* is empty"),
        ({"RescaleIntercept": [0, 0], "RescaleSlope": 1}, "Rescale Intercept .* is given 2 times"),
    ],
)
def test_half_a_rescale_is_completed_and_named(tmp_path, tags, culprit):
    slope = tags.get("RescaleSlope") or 1
    window = {"WindowCenter": 2048 * slope, "WindowWidth": 4095 * slope + 1}
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, **tags, **window)
    pixels, messages = quietly(path)
    assert any(re.search(culprit, message) for message in messages)
    assert np.abs(pixels.astype(int) - RAMP_8BIT).max() <= 1


def test_different_rescales_are_refused(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, RescaleSlope=[1, 2], RescaleIntercept=0)
    with pytest.raises(ImageError, match=r"Rescale Slope \(0028,1053\) has 2 values \(1.*, 2.*\)"):
        read(path)
