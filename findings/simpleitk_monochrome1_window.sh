#!/usr/bin/env bash
# One expects sitk.ReadImage to give a film's stored values (times slope plus intercept), and sitk.WriteImage to write a
# film that looks as the first did. But for MONOCHROME1 ITK turns the values on reading, without a warning: 12-bit
# values v come out as 4095 - v, signed ones as -1 - v. The metadata dictionary of the image still says MONOCHROME1, so
# code that goes by it turns the film once more, and it still holds the Window Center of values that are no longer
# there. Written again, the film is MONOCHROME2 with turned values under the old window, which now lies over another
# part of them: here the grays of the film, 229 to 25, are all white in its copy.
# Seen with SimpleITK 2.5.7 (ITK 5.4), pydicom 3.0.2, numpy 2.4.6 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "SimpleITK==2.5.7" "pydicom==3.0.2" "numpy==2.4.6" 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import SimpleITK
from pydicom import Dataset, FileMetaDataset, dcmread, dcmwrite
from pydicom.pixels import apply_voi_lut
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

print("SimpleITK", SimpleITK.Version.VersionString(), "ITK", SimpleITK.Version.ITKVersionString())
folder = Path(sys.argv[1])
stored = np.arange(4096).reshape(64, 64)


def write(path: Path, values: np.ndarray, bits: int) -> None:
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID, film.Modality = ComputedRadiographyImageStorage, generate_uid(), "CR"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME1"
    film.Rows, film.Columns = values.shape
    film.BitsAllocated, film.BitsStored, film.HighBit = 16, bits, bits - 1
    film.PixelRepresentation = int(values.min() < 0)
    film.WindowCenter, film.WindowWidth = 1000, 500
    film.add_new("PixelData", "OW", values.astype("<i2").tobytes())
    dcmwrite(path, film, enforce_file_format=True)


def shown(path: Path) -> np.ndarray:
    """0 (black) to 255 (white): window, then the negative for MONOCHROME1 (PS3.3 C.11.2, C.7.6.3.1.2)."""
    film = dcmread(path)
    windowed = apply_voi_lut(film.pixel_array, film) / (2**film.BitsStored - 1) * 255
    return np.rint(255 - windowed if film.PhotometricInterpretation == "MONOCHROME1" else windowed)


write(folder / "signed.dcm", stored - 2048, 16)
signed = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "signed.dcm"))).squeeze()
print("signed -2048, 0, 2047 read as", [int(signed.flat[at]) for at in (0, 2048, 4095)])
assert (signed == -1 - (stored - 2048)).all()

write(folder / "film.dcm", stored, 12)
image = SimpleITK.ReadImage(str(folder / "film.dcm"))
values = SimpleITK.GetArrayFromImage(image).squeeze()
print("12 bits 0, 1000, 4095 read as", [int(values.flat[at]) for at in (0, 1000, 4095)])
assert (values == 4095 - stored).all()
said = {name: image.GetMetaData(tag).strip() for name, tag in (("photometric", "0028|0004"), ("center", "0028|1050"))}
print("the image's metadata:", said)
assert said == {"photometric": "MONOCHROME1", "center": "1000.0"}

SimpleITK.WriteImage(image, str(folder / "again.dcm"))
again = dcmread(folder / "again.dcm")
print("written again:", again.PhotometricInterpretation, "center", again.WindowCenter, "width", again.WindowWidth)
before, after = shown(folder / "film.dcm"), shown(folder / "again.dcm")
seen = [[int(one.flat[at]) for at in (800, 1000, 1200)] for one in (before, after)]
print(f"stored 800, 1000, 1200 are shown as {seen[0]} and, written again, as {seen[1]}")
assert (again.PhotometricInterpretation, again.WindowCenter) == ("MONOCHROME2", 1000)
assert np.ptp(before.flat[800:1201]) > 200 and (after.flat[800:1201] == 255).all()
PYTHON
"$folder/venv/bin/python" "$folder/try.py" "$folder"
