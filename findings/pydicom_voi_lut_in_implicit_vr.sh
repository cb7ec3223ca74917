#!/usr/bin/env bash
# One expects a film to look the same in both little endian transfer syntaxes. A VOI LUT applies to rescaled values, and
# where these may be negative its first value mapped is signed (PS3.3 C.11.2.1.1), whatever the stored pixels are. In
# Implicit VR, where the file does not state US or SS, pydicom goes by Pixel Representation instead: with unsigned
# pixels -2048 becomes 63488, every value lies below it, and apply_voi_lut gives the first entry of the table for all of
# them: a film of one gray, without a warning or an error. The same data set in Explicit VR comes out right.
# Seen with pydicom 3.0.2, numpy 2.4.6 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pydicom==3.0.2" "numpy==2.4.6" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import sys
import warnings
from pathlib import Path

import numpy as np
import pydicom
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.pixels import apply_modality_lut, apply_voi_lut
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

warnings.simplefilter("error")
print("pydicom", pydicom.__version__)
table = np.rint(np.linspace(0, 1, 4096) ** 0.5 * 65535).astype("<u2")
levels = {}
for syntax in (ExplicitVRLittleEndian, ImplicitVRLittleEndian):
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = syntax
    film.SOPClassUID, film.SOPInstanceUID, film.Modality = ComputedRadiographyImageStorage, generate_uid(), "CR"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows = film.Columns = 64
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.RescaleIntercept, film.RescaleSlope, film.RescaleType = -2048, 1, "US"
    film.add_new("PixelData", "OW", np.arange(4096).astype("<u2").tobytes())
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [4096, -2048, 16])
    item.add_new("LUTData", "OW", table.tobytes())
    film.VOILUTSequence = [item]
    path = Path(sys.argv[1]) / "film.dcm"
    dcmwrite(path, film, enforce_file_format=True)
    film = dcmread(path)
    values = apply_modality_lut(film.pixel_array, film).astype(np.int32)
    shown = apply_voi_lut(values, film)
    descriptor = film.VOILUTSequence[0]["LUTDescriptor"]
    levels[syntax] = len(np.unique(shown))
    print(f"{syntax.name}: descriptor {descriptor.VR} {list(descriptor.value)}, {levels[syntax]} levels, "
          f"equal to the table: {np.array_equal(shown.ravel(), table)}")
assert levels[ExplicitVRLittleEndian] > 3000
assert levels[ImplicitVRLittleEndian] == 1
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder"
