"""Synthetic chest radiographs with matching reports, in the layout of MIMIC-CXR-JPG. Nothing comes from a patient.

    root/README.txt                                     says that all of it is synthetic
    root/files/p10/p10000032/s50000001.txt              report
    root/files/p10/p10000032/s50000001/<dicom id>.jpg   image
    root/masks/<dicom id>.png                           lungs: 255 lung field, 0 elsewhere
    root/dicom/<dicom id>.dcm                           the same image in 12 bits, for the first few studies
    root/mimic-cxr-2.0.0-{metadata,split,chexpert,negbio}.csv.gz

`cases` chooses what a patient has, `body` and `solids` model the anatomy, `signs` the disease in it, `film` exposes the
image, `report` writes the words, and `files` puts everything on disk.
"""

from __future__ import annotations

from pathlib import Path

from generator.corpora.common import Conversion, CorpusError
from raddraft.locks import hold
from raddraft.ranges import Count, Whole


def convert(
    root: Path = Path("phantom"),
    out: Path | None = None,
    count: Count = 1000,
    size: Count = 224,
    seed: Whole = 0,
    dicoms: Whole = 0,
    processes: Count | None = None,
    show_sex: bool = True,
) -> Conversion:
    """Synthetic chest phantoms with matching reports, made on the spot: no patient, no download.

    For trying the whole way on a laptop. Scores on phantoms say nothing about radiographs. Files are the same, byte for
    byte, for the same count, size and seed, and a smaller count gives the first studies of a larger one. `truth` in the
    manifest records what each image shows: cardiothoracic ratio, and of each sign name, side, place, severity (0 to 1),
    sizes in cm of a standard body, and position (x, y as fractions of the image's sides).

    Args:
        root: Folder to write images and reports to, in the layout of MIMIC-CXR-JPG; existing files are replaced.
        out: The manifest to write. By default studies.jsonl in root.
        count: Number of studies, one frontal image each.
        size: Side of the square images in pixels.
        seed: The same seed makes the same studies.
        dicoms: How many of the studies to write as DICOM files too.
        processes: Number of worker processes. By default one per core.
        show_sex: Whether bodies differ by sex. With false, sex is drawn and recorded but everyone is built as a man: a
            probe that still finds it has found a leak.
    """
    from generator.corpora.phantom.files import make_studies

    if count < 1 or size < 32 or dicoms < 0:
        raise CorpusError(f"count must be at least 1, size 32, dicoms 0; got {count}, {size}, {dicoms}")
    _check_root(root)
    with hold(root):
        studies = make_studies(root.absolute(), count, size, seed, dicoms, processes, show_sex)
        return Conversion("phantom", studies, out or root / "studies.jsonl").write()


def _check_root(root: Path) -> None:
    """Raise CorpusError where a folder holds a data set that is none of phantoms, of which files would be replaced."""
    from generator.corpora.phantom.files import BANNER

    about = root / "README.txt"
    if about.is_file() and about.read_bytes() == BANNER.encode():
        return
    for found in [about, root / "studies.jsonl", *sorted(root.glob("mimic-cxr-2.0.0-*"))]:
        if found.exists():
            raise CorpusError(f"{found} is there, and is not of phantoms, so it is not replaced; choose another --root")
