#!/usr/bin/env bash
# One expects the polarity of a film to have no say in whether it can be read. But SimpleITK refuses films of signed
# values of 12 bits in 16 where they are MONOCHROME1, with a line of GDCM's source instead of a reason ("An invalid
# logic behavior occurredPF.GetBitsStored() != 12"). The same pixels are read as MONOCHROME2, with 16 bits stored, and
# unsigned; python-gdcm's own ImageReader reads the refused file, too.
# Seen with SimpleITK 2.5.7 (ITK 5.4), python-gdcm 3.2.6, pydicom 3.0.2, numpy 2.4.6 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "SimpleITK==2.5.7" "python-gdcm==3.2.6" "pydicom==3.0.2" "numpy==2.4.6" \
    2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import sys
from pathlib import Path

import gdcm
import numpy as np
import SimpleITK
from pydicom import Dataset, FileMetaDataset, dcmwrite
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

print("SimpleITK", SimpleITK.Version.VersionString(), "GDCM", gdcm.Version.GetVersion())
path = Path(sys.argv[1]) / "film.dcm"
signed = np.arange(-2048, 2048).reshape(64, 64)


def write(values: np.ndarray, bits: int, photometric: str) -> None:
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID, film.Modality = ComputedRadiographyImageStorage, generate_uid(), "CR"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, photometric
    film.Rows, film.Columns = values.shape
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, bits, bits - 1
    film.PixelRepresentation = int(values.min() < 0)
    film.add_new("PixelData", "OW", values.astype("<i2").tobytes())
    dcmwrite(path, film, enforce_file_format=True)


def read() -> str:
    try:
        values = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    except RuntimeError as error:
        return "refused: " + str(error).splitlines()[-1]
    return f"{values.min()} to {values.max()}"


found = {}
for name, values, bits, photometric in (
    ("signed, 12 bits, MONOCHROME1", signed, 12, "MONOCHROME1"),
    ("signed, 12 bits, MONOCHROME2", signed, 12, "MONOCHROME2"),
    ("signed, 16 bits, MONOCHROME1", signed, 16, "MONOCHROME1"),
    ("unsigned, 12 bits, MONOCHROME1", signed + 2048, 12, "MONOCHROME1"),
):
    write(values, bits, photometric)
    found[name] = read()
    print(f"{name}: {found[name]}")
write(signed, 12, "MONOCHROME1")
reader = gdcm.ImageReader()
reader.SetFileName(str(path))
by_gdcm = reader.Read()
print("signed, 12 bits, MONOCHROME1, GDCM's ImageReader.Read():", by_gdcm)
refused = [name for name, said in found.items() if said.startswith("refused")]
assert refused == ["signed, 12 bits, MONOCHROME1"]
assert "PF.GetBitsStored() != 12" in found[refused[0]]
assert by_gdcm
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder"
