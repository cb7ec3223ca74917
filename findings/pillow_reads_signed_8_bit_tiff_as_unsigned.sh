#!/usr/bin/env bash
# One expects a TIFF of signed 8-bit values (SampleFormat 2), as tifffile writes an int8 array, to be read with its signs or
# refused, as Pillow reads signed values of 16 bits with theirs (mode I). Pillow gives mode L and no warning: -1 becomes
# 255, so that all values below 0 come out brighter than those above. tifffile gives int8 back.
# Seen with Pillow 13.0.0, tifffile 2026.3.3 on Python 3.11, 30 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "pillow==13.0.0" "tifffile==2026.3.3" "numpy==2.4.6" 2>/dev/null
"$folder/venv/bin/python" - "$folder" <<'PYTHON'
import sys
import warnings

import numpy as np
import PIL
import tifffile
from PIL import Image

warnings.simplefilter("error")
ramp = np.array([[-128, -1, 0, 127]])
for kind in (np.int8, np.int16):
    path = f"{sys.argv[1]}/{kind.__name__}.tif"
    tifffile.imwrite(path, ramp.astype(kind))
    with Image.open(path) as image:
        read = np.asarray(image).ravel().tolist()
        print(f"Pillow {PIL.__version__}, {kind.__name__}: mode {image.mode}, {read}; tifffile {tifffile.imread(path).ravel().tolist()}")
    assert tifffile.imread(path).ravel().tolist() == [-128, -1, 0, 127]
    assert read == ([128, 255, 0, 127] if kind is np.int8 else [-128, -1, 0, 127])
PYTHON
