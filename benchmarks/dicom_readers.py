"""Reads DICOM files with one peer, in the environment that `python -m benchmarks.dicom_cases` makes for the peers.

    python dicom_readers.py radreader|gdcm|simpleitk FILE.dcm …     writes FILE.READER.npy, then FILE.READER.json
    python dicom_readers.py encode TRANSFER-SYNTAX FILE.dcm         rewrites the file, by GDCM
    python dicom_readers.py versions

A file of its own that imports nothing of this project, which is not installed there.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np


def read_radreader(path: Path) -> np.ndarray:
    """float32 [H, W], 0..1, as displayed."""
    import radreader

    return radreader.read(path).pixels


def read_gdcm(path: Path) -> np.ndarray:
    """Values [H, W]: stored ones times slope plus intercept, both as GDCM states them."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    if not reader.Read():
        raise ValueError("ImageReader.Read() is false")
    image = reader.GetImage()
    format_ = image.GetPixelFormat()
    types = {
        gdcm.PixelFormat.UINT8: "u1", gdcm.PixelFormat.INT8: "i1", gdcm.PixelFormat.UINT16: "u2",
        gdcm.PixelFormat.INT16: "i2", gdcm.PixelFormat.UINT32: "u4", gdcm.PixelFormat.INT32: "i4",
        gdcm.PixelFormat.FLOAT32: "f4", gdcm.PixelFormat.FLOAT64: "f8", gdcm.PixelFormat.UINT12: "u2",
    }  # fmt: skip
    buffer = image.GetBuffer()
    if buffer is None:
        raise ValueError("ImageReader.Read() is true, Image.GetBuffer() None")
    data = buffer.encode("utf-8", "surrogateescape") if isinstance(buffer, str) else bytes(buffer)
    columns, rows = image.GetDimension(0), image.GetDimension(1)
    frames = image.GetDimension(2) if image.GetNumberOfDimensions() > 2 else 1
    values = np.frombuffer(data, types[format_.GetScalarType()])
    values = values.reshape(frames, rows, columns, format_.GetSamplesPerPixel())
    if image.GetPlanarConfiguration() == 1:
        values = values.reshape(frames, -1, rows, columns).transpose(0, 2, 3, 1)
    return values.squeeze() * float(image.GetSlope()) + float(image.GetIntercept())


def read_simpleitk(path: Path) -> np.ndarray:
    """Values [H, W], as SimpleITK gives them."""
    import SimpleITK

    return SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).squeeze()


def encode(syntax: str, path: Path) -> None:
    """Rewrite a native file in another transfer syntax."""
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    if not reader.Read():
        raise ValueError(f"GDCM does not read {path}")
    change.SetInput(reader.GetImage())
    if not change.Change():
        raise ValueError(f"GDCM does not encode {path} as {syntax}")
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    if not writer.Write():
        raise ValueError(f"GDCM does not write {path}")


def versions() -> dict[str, str]:
    """Name of a peer -> its version, as it states it."""
    import gdcm
    import radreader
    import SimpleITK

    itk = f"{SimpleITK.Version.VersionString()} (ITK {SimpleITK.Version.ITKVersionString()})"
    return {"radreader": radreader.__version__, "gdcm": gdcm.Version.GetVersion(), "simpleitk": itk}


def _sentence(error: Exception) -> str:
    """What the peer says, without where in its code or in which file."""
    lines = (getattr(error, "message", None) or str(error) or type(error).__name__).splitlines()
    return re.sub(r"^.*ERROR: |\(0x[0-9a-f]+\)", "", lines[-1] if lines else "")


def main(arguments: list[str]) -> None:
    """See the top."""
    if arguments == ["versions"]:
        print(json.dumps(versions()))
        return
    if arguments[0] == "encode":
        encode(arguments[1], Path(arguments[2]))
        return
    read: Any = {"radreader": read_radreader, "gdcm": read_gdcm, "simpleitk": read_simpleitk}[arguments[0]]
    for path in map(Path, arguments[1:]):
        answer: dict[str, Any] = {"error": None, "warnings": []}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                np.save(path.with_suffix(f".{arguments[0]}.npy"), read(path))
            except Exception as error:
                answer["error"] = _sentence(error)
        answer["warnings"] = [str(one.message) for one in caught]
        path.with_suffix(f".{arguments[0]}.json").write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
