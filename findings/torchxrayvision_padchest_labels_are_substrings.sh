#!/usr/bin/env bash
# One expects the label Nodule of torchxrayvision's PadChest to be the set's term nodule, and an age to be the age at the
# study. It looks for the word anywhere in the cell of terms: films of a pseudonodule alone (a nipple, a vessel seen on
# end) are Nodule, films of subcutaneous emphysema alone are Emphysema. And age_years is 2017 less the year of birth, for
# studies of 2007 to 2017. The set's own table, which the wheel ships, is enough to see it; no image is read.
# Seen with torchxrayvision 1.5.7, pandas 3.1.1, torch 2.14.1 on Python 3.11, 29 Nov 2026.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "torchxrayvision==1.5.7" "pandas==3.1.1" "torch==2.14.1" torchvision 2>/dev/null
cat > "$folder/try.py" <<'PYTHON'
import ast

import torchxrayvision as xrv

films = xrv.datasets.PC_Dataset(imgpath=".", views=["PA", "L", "AP", "AP Supine"], unique_patients=False)
terms = films.csv["Labels"].map(lambda cell: {term.strip().lower() for term in ast.literal_eval(cell)})


def misread(label, but):
    """Films with a label that have no term of that word but one that means something else."""
    positive = films.labels[:, films.pathologies.index(label)] == 1
    word = label.lower()
    other = terms.map(lambda found: but in found and not any(word in term and term != but for term in found))
    return int(positive.sum()), int((positive & other.values).sum())


years = films.csv["StudyDate_DICOM"].astype(str).str[:4].astype(int) - films.csv["PatientBirth"]
found = {
    "Nodule, of which pseudonodule alone": misread("Nodule", "pseudonodule"),
    "Emphysema, of which subcutaneous alone": misread("Emphysema", "subcutaneous emphysema"),
    "mean of age_years less the age at the study": round(float((films.csv["age_years"] - years).mean()), 1),
}
print("torchxrayvision", xrv.__version__, found)
assert [*found.values()] == [(6207, 2153), (1738, 203), 4.8], "labels of PadChest, or ages, are read in another way now"
PYTHON
cd "$folder" && "$folder/venv/bin/python" try.py
