"""The bench that counts real tables, on a few made-up rows in their form."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from benchmarks import table_counts
from benchmarks.tables import bench_tables
from generator.corpora import chestx_det
from generator.corpora.chexpert import LABELS
from raddraft.errors import RadDraftError
from tests.test_corpora import iu_xml, write_csv
from tests.test_localized import entry
from tests.test_padchest import row


@pytest.fixture
def data(tmp_path) -> Path:
    """The folder of tables of an unzipped wheel."""
    folder = tmp_path / "torchxrayvision" / "data"
    folder.mkdir(parents=True)
    return folder


def test_equal_numbers(data, capsys):
    codes = {"1.2.3": ["0 3 2 4", "1 4"], "1.2.4": ["-1"]}
    rows = [{"ImageId": name, " EncodedPixels": code} for name, found in codes.items() for code in found]
    write_csv(data / table_counts.SIIM, rows, zipped=True)
    boxes = [("a", "Cardiomegaly", "R1"), ("a", "Cardiomegaly", "R1"), ("a", "No finding", "R2"), ("a", "ILD", "R3")]
    boxes += [("b", "ILD", "R1"), ("b", "ILD", "R2"), ("b", "No finding", "R3")]
    rows = [dict(zip(("image_id", "class_name", "rad_id"), box, strict=True)) for box in boxes]
    write_csv(data / table_counts.VINDR, rows, zipped=True)
    with tarfile.open(data / table_counts.IU, "w:gz") as archive:
        text = iu_xml(7, "Clear.", "CXR7_IM-0001-1001", "CXR7_IM-0001-2001").encode()
        member = tarfile.TarInfo("ecgen-radiology/7.xml")
        member.size = len(text)
        archive.addfile(member, io.BytesIO(text))
    assert bench_tables(data.parent.parent)
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("  ")[0]: line.split("  ") for line in lines[1:4]}
    assert {name: line[-1].strip() for name, line in cells.items()} == {
        "SIIM-ACR": "0",
        "VinDr-CXR": "0",
        "IU X-ray": "0",
    }
    assert lines[-1] == "All numbers are equal."
    masks = table_counts.tally(table_counts.siim(data))
    assert (masks["masks"]["all"], masks["mask pixels"]["all"]) == (1, 9)  # 0 to 2 and 5 to 8; 1 to 4
    labels = table_counts.tally(table_counts.vindr(data))["labels"]
    assert (labels["Cardiomegaly: 1"], labels["ILD: 1"], labels["No finding: 1"]) == (0, 1, 0)


def test_numbers_that_differ_are_told(data, capsys):
    """Of so few films no term has 500, so that the counter expects no label but No Finding."""
    write_csv(data / table_counts.PADCHEST, [row("a1", "1", "A", "['pneumonia']")], zipped=True)
    assert not bench_tables(data.parent.parent)
    told = capsys.readouterr().out
    assert "PadChest, labels pneumonia: 1: 1 in the manifest, 0 counted" in told
    assert "PadChest, labels No Finding" not in told


def test_equal_numbers_of_what_is_drawn(tmp_path, capsys):
    for file, findings in ((table_counts.DET, chestx_det.THIRTEEN), (table_counts.DET_10, chestx_det.TEN)):
        others = [(name, [9, 9, 10, 10]) for name in findings if name != "Mass"]
        drawn = entry("1", ("Mass", [1, 1, 5, 5]), ("Mass", [4, 4, 9, 9]), *others, polygons=file == table_counts.DET)
        for part, one in (("train", drawn), ("test", entry("2"))):
            (tmp_path / file.format(part)).parent.mkdir(exist_ok=True)
            (tmp_path / file.format(part)).write_text(json.dumps([one]))
    study = {"Study": "CheXpert-v1.0/test/patient1/study1"} | dict.fromkeys(LABELS, "0")
    write_csv(tmp_path / table_counts.CHEXPERT_TEST, [study | {"Edema": "1"}])
    assert bench_tables(None, tmp_path)
    names = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert names[1:4] == ["CheXpert, test", "ChestX-Det", "ChestX-Det10"]
    for count, n_findings in ((table_counts.chestx_det, 13), (table_counts.chestx_det_10, 10)):
        found = table_counts.tally(count(tmp_path))
        assert (found["masks"]["all"], found["mask pixels"]["all"]) == (1, 25 + 36 - 4 + 4 * (n_findings - 1))


def test_a_folder_without_tables(tmp_path):
    (tmp_path / "torchxrayvision").mkdir()
    with pytest.raises(RadDraftError, match="unzip the wheel first"):
        bench_tables(tmp_path)
