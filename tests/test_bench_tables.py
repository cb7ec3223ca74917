"""The bench that counts real tables, on a few made-up rows in their form."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from benchmarks import table_counts
from benchmarks.tables import bench_tables
from raddraft.errors import RadDraftError
from tests.test_corpora import iu_xml, write_csv
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


def test_a_folder_without_tables(tmp_path):
    (tmp_path / "torchxrayvision").mkdir()
    with pytest.raises(RadDraftError, match="unzip the wheel first"):
        bench_tables(tmp_path)
