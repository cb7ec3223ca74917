"""Transfer syntaxes: what needs no codec is read, what has no decoder is refused by name, frames end where they end."""

import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread, uid
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, generate_frames

from raddraft.images import ImageError, ImageWarning
from tests.films import GONE, RAMP, RAMP_8BIT, change, change_frame, chest, encapsulated, quietly, read, write_dicom

pytestmark = pytest.mark.filterwarnings("error::raddraft.images.ImageWarning")

ENCAPSULATED, DEFLATED = "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"


def deflate(data: bytes, window_bits: int = -15) -> bytes:
    packer = zlib.compressobj(wbits=window_bits)
    packed = packer.compress(data) + packer.flush()
    return packed + bytes(len(packed) % 2)


def jpeg(pixels: np.ndarray) -> bytes:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=95)
    return stream.getvalue()


def film(path: Path, kind: str) -> Path:
    """A film of a kind, whose frame `change_frame` can edit."""
    if kind == "encapsulated":
        return encapsulated(path, RAMP.tobytes(), ENCAPSULATED)
    if kind == "deflated frame":
        return encapsulated(path, deflate(RAMP.tobytes()), DEFLATED)
    if kind == "JPEG":
        tags = {"BitsStored": 8, "HighBit": 7, "BitsAllocated": 8}
        return change(encapsulated(path, jpeg(chest()), uid.HTJ2KLossless, **tags), syntax=uid.JPEGBaseline8Bit)
    if kind == "JPEG-LS":
        source = get_testdata_file("MR_small_jpeg_ls_lossless.dcm", download=False)
        if source is None:
            pytest.skip("this pydicom comes without its test files")
        path.write_bytes(Path(source).read_bytes())
        return change(path, Modality="DX")
    syntax = {"RLE": uid.RLELossless, "JPEG 2000": uid.JPEG2000Lossless, "JPEG 2000 lossy": uid.JPEG2000}[kind]
    noisy = (RAMP // 2 + np.random.default_rng(0).integers(0, 2000, RAMP.shape)).astype(np.uint16)
    options = {"j2k_cr": [4]} if syntax == uid.JPEG2000 else {}
    write_dicom(path, noisy, BitsStored=12)
    dataset = dcmread(path)
    dataset.compress(syntax, generate_instance_uid=False, **options)
    dataset.save_as(path)
    return path


KINDS = ["encapsulated", "deflated frame", "JPEG", "JPEG-LS", "RLE", "JPEG 2000", "JPEG 2000 lossy"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("padding", [bytes(2), bytes(1024), bytes(100_000), b"\xff" * 3000])
def test_a_frame_followed_by_padding_is_whole(tmp_path, kind, padding):
    path = film(tmp_path / "x.dcm", kind)
    expected = read(path)
    if kind == "encapsulated" and len(padding) > 4096:
        padding = bytes(4096)  # longer would be another frame
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", ImageWarning)
        assert np.array_equal(read(change_frame(path, lambda frame: frame + padding)), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9, 0.97])
@pytest.mark.parametrize("filled", [False, True])
def test_a_frame_without_its_end_is_refused(tmp_path, kind, share, filled):
    if kind == "encapsulated" and filled:
        pytest.skip("zeros are values here")
    path = film(tmp_path / "x.dcm", kind)

    def cut(frame: bytes) -> bytes:
        kept = frame[: int(len(frame) * share)]
        return kept.ljust(len(frame), b"\0") if filled else kept

    change_frame(path, cut)
    with pytest.raises(ImageError, match=r"x\.dcm: .*(truncated|bytes of pixel data)"):
        quietly(path)


@pytest.mark.parametrize("padding", [bytes(2), bytes(4096), b"\xff" * 512, b"junk"])
@pytest.mark.parametrize(
    "syntax", [uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.DeflatedExplicitVRLittleEndian]
)
def test_uncompressed_pixels_followed_by_padding_are_whole(tmp_path, padding, syntax):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12, syntax=syntax)
    assert np.array_equal(read(change(path, PixelData=RAMP.tobytes() + padding)), RAMP_8BIT)


@pytest.mark.parametrize("share", [1.25, 1.5, 2, 2.5, 3])
@pytest.mark.parametrize("kind", ["native", "encapsulated", "deflated frame"])
def test_more_pixels_than_the_header_states_are_refused(tmp_path, share, kind):
    data = (RAMP.tobytes() * 3)[: int(RAMP.nbytes * share)]
    path = tmp_path / "x.dcm"
    if kind == "native":
        change(write_dicom(path, RAMP, BitsStored=12), PixelData=data)
    else:
        encapsulated(
            path,
            data if kind == "encapsulated" else deflate(data),
            ENCAPSULATED if kind == "encapsulated" else DEFLATED,
        )
    with pytest.raises(ImageError, match=r"bytes of pixel data, and Rows \(0028,0010\) 64, Columns \(0028,0011\) 64"):
        read(path)


@pytest.mark.parametrize("frames", [2, 3])
def test_several_frames_are_refused(tmp_path, frames):
    two = tmp_path / "two.dcm"
    change(write_dicom(two, RAMP, BitsStored=12), PixelData=RAMP.tobytes() * frames, NumberOfFrames=frames)
    with pytest.raises(ImageError, match=f"holds {frames} frames"):
        read(two)
    for kind in ("JPEG", "JPEG 2000", "RLE"):  # by the offsets, whatever Number of Frames says
        path = film(tmp_path / "x.dcm", kind)
        dataset = dcmread(path)
        frame = next(generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = encapsulate([frame] * frames)
        dataset.save_as(path)
        with pytest.raises(ImageError, match=f"holds {frames} frames"):
            read(path)
    for kind in ("JPEG", "JPEG 2000"):  # in one fragment
        with pytest.raises(ImageError, match="holds several frames"):
            read(change_frame(film(tmp_path / "x.dcm", kind), lambda frame: frame * frames))


@pytest.mark.parametrize("shape", [(64, 64, 3), (96, 32, 3)])
def test_color_with_one_sample_a_pixel_is_refused(tmp_path, shape):
    rgb = np.resize(chest(), shape)
    path = change(write_dicom(tmp_path / "x.dcm", rgb), SamplesPerPixel=1)
    with pytest.raises(ImageError, match=r"Samples per Pixel \(0028,0002\) is 1"):
        read(path)
    path = change(write_dicom(tmp_path / "x.dcm", rgb), SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2")
    with pytest.raises(ImageError, match="bytes of pixel data"):
        read(path)


# ---- syntaxes without a codec


@pytest.mark.parametrize("window_bits", [-15, 15])
def test_deflated_frame_with_and_without_a_header(tmp_path, window_bits):
    path = encapsulated(tmp_path / "x.dcm", deflate(RAMP.tobytes(), window_bits), DEFLATED)
    assert np.array_equal(read(path), RAMP_8BIT)


def test_check_sum_of_a_deflated_frame_is_checked(tmp_path):
    packed = bytearray(deflate(RAMP.tobytes(), 15))
    packed[-3] ^= 8
    with pytest.raises(ImageError, match="damaged"):
        read(encapsulated(tmp_path / "x.dcm", bytes(packed), DEFLATED))


@pytest.mark.parametrize("syntax", [ENCAPSULATED, DEFLATED])
@pytest.mark.parametrize("fragments", [1, 2, 5])
def test_fragments_of_one_frame_are_joined(tmp_path, syntax, fragments):
    frame = RAMP.tobytes() if syntax == ENCAPSULATED else deflate(RAMP.tobytes())
    path = encapsulated(tmp_path / "x.dcm", frame, syntax)
    dataset = dcmread(path)
    dataset.PixelData = encapsulate([frame], fragments_per_frame=fragments, has_bot=False)
    data = path.read_bytes()
    path.write_bytes(
        data[: data.index(b"\xe0\x7f\x10\x00OB")]
        + b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff"
        + dataset.PixelData
        + b"\xfe\xff\xdd\xe0\0\0\0\0"
    )
    assert np.array_equal(read(path), RAMP_8BIT)


def test_a_deflated_bomb_is_not_inflated(tmp_path):
    bomb = deflate(bytes(300_000_000))
    with pytest.raises(ImageError, match="bytes of pixel data"):
        read(encapsulated(tmp_path / "x.dcm", bomb, DEFLATED))


@pytest.mark.parametrize("color", [False, True])
def test_8_bits_in_these_syntaxes(tmp_path, color):
    pixels = np.stack([chest()] * 3, -1) if color else chest()
    tags = {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0} if color else {}
    for syntax, frame in ((ENCAPSULATED, pixels.tobytes()), (DEFLATED, deflate(pixels.tobytes()))):
        path = encapsulated(tmp_path / "x.dcm", frame, syntax, BitsAllocated=8, BitsStored=8, HighBit=7, **tags)
        assert np.array_equal(read(path), chest())


# ---- JPEG XL

JPEG_XL = ["1.2.840.10008.1.2.4.110", "1.2.840.10008.1.2.4.111", "1.2.840.10008.1.2.4.112"]


@pytest.mark.parametrize("syntax", JPEG_XL)
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_jpeg_xl(tmp_path, syntax, bits):
    imagecodecs = pytest.importorskip("imagecodecs", reason="the extra jxl is not installed")
    stored = chest() if bits == 8 else (RAMP << 4 >> (16 - bits))
    frame = imagecodecs.jpegxl_encode(stored, lossless=True, bitspersample=bits)
    tags = {"BitsAllocated": stored.itemsize * 8, "BitsStored": bits, "HighBit": bits - 1}
    path = encapsulated(tmp_path / "x.dcm", frame, syntax, **tags)
    write_dicom(tmp_path / "y.dcm", stored, BitsStored=bits)
    assert np.array_equal(read(path), read(tmp_path / "y.dcm"))
    assert np.array_equal(read(change_jxl(path, frame + bytes(3000), syntax, **tags)), read(tmp_path / "y.dcm"))
    for cut in (frame[:-20], frame[: len(frame) // 2], frame[: len(frame) // 2] + bytes(len(frame) // 2)):
        with pytest.raises(ImageError, match="truncated"):
            read(change_jxl(path, cut, syntax, **tags))


def change_jxl(path: Path, frame: bytes, syntax: str, **tags: object) -> Path:
    return encapsulated(path, frame, syntax, **tags)


@pytest.mark.parametrize("syntax", JPEG_XL)
def test_jpeg_xl_without_its_decoder_says_what_to_install(tmp_path, syntax, monkeypatch):
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    path = encapsulated(tmp_path / "x.dcm", b"\xff\x0a" + bytes(100), syntax)
    with pytest.raises(ImageError, match=rf"JPEG XL.* \({syntax}\) needs imagecodecs: pip install 'raddraft\[jxl\]'"):
        read(path)


# ---- syntaxes that nothing here decodes


@pytest.mark.parametrize(
    ("syntax", "culprit"),
    [
        ("1.2.840.10008.1.2.4.100", r"MPEG2 Main Profile .*\(1.2.840.10008.1.2.4.100\) is video.*ffmpeg"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile / Level 4.1 .* is video"),
        ("1.2.840.10008.1.2.4.107", "HEVC/H.265 Main Profile .* is video"),
        ("1.2.840.10008.1.2.4.108", "HEVC/H.265 Main 10 Profile .* is video"),
        ("1.2.840.10008.1.2.4.94", "JPIP Referenced .* keeps the pixels on a server"),
        ("1.2.840.10008.1.2.4.204", "JPIP HTJ2K Referenced .* keeps the pixels on a server"),
        ("1.2.840.10008.1.2.4.92", "JPEG 2000 Part 2 Multi-component .* has no decoder here; convert"),
        ("1.2.840.10008.1.2.4.53", "JPEG Spectral Selection.* has no decoder here; convert .* dcmdjpeg"),
        ("1.2.840.99999.1.2.4.53", r"1.2.840.99999.1.2.4.53 \(unknown\) has no decoder here"),
    ],
)
def test_syntaxes_without_a_decoder_are_refused_by_name(tmp_path, syntax, culprit):
    width = (len(syntax) + 1) // 2 * 2
    stand_in = {22: ENCAPSULATED, 24: "1.2.840.10008.1.2.4.201"}[width]
    path = encapsulated(tmp_path / "x.dcm", bytes(100), stand_in)
    names = (name.ljust(width, "\0").encode() for name in (stand_in, syntax))
    path.write_bytes(path.read_bytes().replace(*names))
    for pixels in (True, False):
        with pytest.raises(ImageError, match=rf"x\.dcm: transfer syntax {culprit}") as error:
            read(path)
        assert "truncated" not in str(error.value)
        if pixels:  # JPIP files have none
            data = path.read_bytes()
            path.write_bytes(data[: data.index(b"\xe0\x7f\x10\x00OB")])


def test_a_decoder_that_is_not_installed_is_named(tmp_path, monkeypatch):
    from pydicom.pixels import get_decoder

    path = film(tmp_path / "x.dcm", "JPEG 2000")
    monkeypatch.setattr(get_decoder(uid.JPEG2000Lossless), "_available", {})
    with pytest.raises(ImageError, match=r"JPEG 2000 .*\(1.2.840.10008.1.2.4.90\) needs gdcm"):
        read(path)


# ---- transfer syntaxes that are gone or wrong


@pytest.mark.parametrize("kind", ["JPEG", "JPEG-LS", "JPEG 2000", "RLE"])
@pytest.mark.parametrize(
    "stated", [None, uid.ExplicitVRLittleEndian, uid.JPEG2000, uid.JPEGLossless, uid.JPEGLSLossless]
)
def test_compressed_pixels_under_another_name_are_read_and_named(tmp_path, kind, stated):
    path = film(tmp_path / "x.dcm", kind)
    expected = read(path)
    fits = {"JPEG": uid.JPEGLossless, "JPEG-LS": uid.JPEGLSLossless, "JPEG 2000": uid.JPEG2000}
    rename(path, stated)
    if stated is not None and stated == fits.get(kind):
        assert np.array_equal(read(path), expected)
    elif kind == "RLE" and stated not in (None, uid.ExplicitVRLittleEndian):
        with pytest.raises(ImageError):  # its bytes are no proof
            read(path)
    else:
        with pytest.warns(ImageWarning, match=r"Transfer Syntax UID \(0002,0010\) (is missing|states)"):
            assert np.array_equal(read(path), expected)


def rename(path: Path, syntax: str | None) -> None:
    """Put another transfer syntax into a written file, or none; lengths in the header follow."""
    data = path.read_bytes()
    at = data.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(data[at + 6 : at + 8], "little")
    name = b"" if syntax is None else syntax.encode() + b"\0" * (len(syntax) % 2)
    element = b"" if syntax is None else data[at : at + 6] + len(name).to_bytes(2, "little") + name
    group = int.from_bytes(data[140:144], "little") + len(element) - (8 + length)
    data = data[:140] + group.to_bytes(4, "little") + data[144:at] + element + data[at + 8 + length :]
    path.write_bytes(data)


@pytest.mark.parametrize("stated", [uid.JPEGBaseline8Bit, uid.RLELossless, uid.JPEG2000, ENCAPSULATED])
def test_uncompressed_pixels_under_the_name_of_a_codec_are_refused(tmp_path, stated):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12)
    rename(path, stated)
    with pytest.raises(ImageError, match=r"Transfer Syntax UID \(0002,0010\) states .* neither compressed nor"):
        read(path)


def test_floating_point_pixels_are_refused_by_name(tmp_path):
    path = write_dicom(tmp_path / "x.dcm", RAMP, BitsStored=12)
    for name in ("FloatPixelData", "DoubleFloatPixelData"):
        change(path, PixelData=GONE, **{name: RAMP.astype(np.float32 if name[0] == "F" else np.float64).tobytes()})
        with pytest.raises(ImageError, match="floating-point pixel data"):
            read(path)
        change(path, **{name: GONE})
