"""VinDr-PCXR 1.0.0 (PhysioNet; PediCXR in its paper): films of children -> studies. Laid out as VinDr-CXR, but flat."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from generator.corpora import common, vindr_cxr
from generator.corpora.common import Conversion

_ORIGIN = "It is part of VinDr-PCXR, https://physionet.org/content/vindr-pcxr (credentialed access)."


def convert(root: Path, out: Path | None = None, images: Path | None = None) -> Conversion:
    """VinDr-PCXR: 15 labels, each 1 or 0, spelled as its tables do; every image is a study, and a subject.

    One radiologist read each image; if a table has more rows of one, the majority counts, as in VinDr-CXR. Val is a
    tenth of the official train images, by a hash of the image's name. The set names no patients. View, sex and age (in
    years, months or days) come from the headers, where they exist. Boxes are not read.

    Args:
        root: Folder that holds image_labels_train.csv, image_labels_test.csv, train/ and test/.
        out: The manifest to write. By default studies.jsonl in root.
        images: Folder that holds train/ and test/, of .dicom files, or of DICOM (.dcm), PNG or JPEG files of the same
            name. By default root.
    """
    counts = Counter[str]()
    studies = vindr_cxr.read_studies(root, root, images, None, _ORIGIN, "majority", counts)
    conversion = Conversion("vindr-pcxr", studies, out or root / "studies.jsonl", counts)
    conversion.mark_unknown_patients()
    conversion.keep_files(".dcm", *common.PIXELS)
    conversion.read_headers()
    return conversion.write()
