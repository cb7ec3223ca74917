"""Small DICOM films for the tests of `raddraft.images`, made on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom import DataElement, Dataset, dcmread, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames

from raddraft.images import ImageWarning, load_image

RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)  # 12 bits, brighter downwards as in a chest
RAMP_8BIT = np.rint(np.arange(4096) * 255 / 4095).astype(np.uint8).reshape(64, 64)
STAND_INS = ("1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.4.201")
GONE = object()
"""As the value of a tag: the element is not there."""


def chest(size: int = 64) -> np.ndarray:
    """A synthetic 8-bit picture with a chest's coarse shading: bright midline and abdomen, noise on top."""
    shading = np.outer(np.linspace(0.1, 1, size), 1 - np.abs(np.linspace(-1, 1, size)))
    return (shading * 220 + np.random.default_rng(0).integers(0, 30, (size, size))).astype(np.uint8)


def write_dicom(path: Path, stored: np.ndarray, compress: str | None = None, **tags: object) -> Path:
    """Write stored values [H, W], or RGB [H, W, 3], as an uncompressed or compressed DX file."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = tags.pop("syntax", uid.ExplicitVRLittleEndian)
    dataset.SOPClassUID = uid.DigitalXRayImageStorageForPresentation
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Modality, dataset.BodyPartExamined = "DX", "CHEST"
    dataset.PatientName, dataset.PatientID = "Invented^Nobody", "ID-4711"
    dataset.Rows, dataset.Columns = stored.shape[:2]
    dataset.SamplesPerPixel = 1 if stored.ndim == 2 else 3
    dataset.PhotometricInterpretation = "MONOCHROME2" if stored.ndim == 2 else "RGB"
    if stored.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = stored.itemsize * 8
    dataset.BitsStored = tags.pop("BitsStored", dataset.BitsAllocated)
    dataset.HighBit = int(dataset.BitsStored) - 1 if isinstance(dataset.BitsStored, int) else 0
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.PixelData = stored.tobytes()
    for name, value in tags.items():
        if value is GONE:
            del dataset[name]
        else:
            setattr(dataset, name, value)
    if compress:
        dataset.compress(compress, generate_instance_uid=False)
    dataset.save_as(path, enforce_file_format=True)
    return path


def change(path: Path, **tags: object) -> Path:
    """Set elements of a written file, or remove them (GONE)."""
    dataset = dcmread(path)
    dataset.file_meta.TransferSyntaxUID = tags.pop("syntax", dataset.file_meta.TransferSyntaxUID)
    for name, value in tags.items():
        if isinstance(value, DataElement):
            dataset[value.tag] = value
        elif value is not GONE:
            setattr(dataset, name, value)
        elif name in dataset:
            del dataset[name]
    dataset.save_as(path)
    return path


def change_frame(path: Path, edit: Callable[[bytes], bytes]) -> Path:
    """Edit the only compressed frame of a written file."""
    data = path.read_bytes()
    before = dcmread(path).PixelData
    after = encapsulate([edit(next(generate_frames(before, number_of_frames=1)))])
    path.write_bytes(data.replace(before, after))
    return path


def encapsulated(path: Path, frame: bytes, syntax: str, **tags: object) -> Path:
    """Write a 64 x 64 film of 12 bits whose one frame, in whatever transfer syntax, is given."""
    write_dicom(path, RAMP, **{"BitsStored": 12, **tags})
    dataset = dcmread(path)
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    dataset["PixelData"].VR = "OB"
    # pydicom does not write transfer syntaxes that it does not know, so the name of one as long is overwritten.
    width = (len(syntax) + 1) // 2 * 2
    stand_in = next(one for one in STAND_INS if (len(one) + 1) // 2 * 2 == width)
    dataset.file_meta.TransferSyntaxUID = stand_in
    dataset.save_as(path)
    names = (name.ljust(width, "\0").encode() for name in (stand_in, syntax))
    path.write_bytes(path.read_bytes().replace(*names))
    return path


def look_up_table(entries: list[int], bits: int, first: int = 0, vr: str = "US") -> Dataset:
    """An item of a Modality or VOI LUT Sequence."""
    item = Dataset()
    item.add_new("LUTDescriptor", vr, [len(entries) % 65536, first, bits])
    item.add_new("LUTData", "US", entries)
    return item


def read(path: str | Path, *args: str) -> np.ndarray:
    """The 8-bit pixels of a file."""
    image = load_image(path, *args)
    assert image.mode == "L"
    return np.asarray(image)


def quietly(path: str | Path, *args: str) -> tuple[np.ndarray, list[str]]:
    """The 8-bit pixels of a file, and what was warned of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ImageWarning)
        pixels = read(path, *args)
    return pixels, [str(one.message) for one in caught if issubclass(one.category, ImageWarning)]
