"""`raddraft metrics`, and the table of docs/scoring.md that says the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from metrics.catalog import CATALOG, format_metrics
from metrics.scoring import FAMILIES
from metrics.weights import WEIGHTS
from tests.conftest import ROOT
from tests.test_cli import run


def docs_rows() -> dict[str, list[str]]:
    """Family -> cells of its row in the table of metrics."""
    rows: dict[str, list[str]] = {}
    for line in (ROOT / "docs" / "scoring.md").read_text(encoding="utf-8").split("\n## Metrics\n")[1].splitlines():
        if line.startswith("| `"):
            family, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            rows[family.strip("`")] = cells
        elif line.startswith("## "):
            break
    return rows


def test_every_family_is_listed_once_in_the_order_of_the_scores() -> None:
    assert list(CATALOG) == list(FAMILIES) == list(docs_rows())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_docs_say_what_the_catalog_says(family: str) -> None:
    entry = CATALOG[family]
    names = ", ".join(f"`{name}`" for name in FAMILIES[family].names)
    weights = ", ".join(f"`{name}`" for name in entry.weights)
    expected = [names, entry.definition, entry.implementation, entry.reported, entry.radiologists, entry.license]
    assert docs_rows()[family] == [*expected, weights, entry.cost]


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_those_of_the_metrics_that_name_them(name: str) -> None:
    used = [metric for family, entry in CATALOG.items() if name in entry.weights for metric in FAMILIES[family].names]
    assert used, "no family needs them"
    patterns = WEIGHTS[name].used_by.replace("*", "").split(", ")
    assert all(metric.startswith(tuple(patterns)) for metric in used)


def test_the_command_lists_metrics_weights_and_costs(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.file_download.HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    assert run("metrics") == (0, "")
    shown = capsys.readouterr().out
    parts = dict(zip(CATALOG, shown.strip().split("\n\n"), strict=True))
    for family, part in parts.items():
        assert part.splitlines()[0] == family
        assert all(name in part for name in (*FAMILIES[family].names, CATALOG[family].license))
        assert part.count("(missing)") == len(CATALOG[family].weights)
        assert ("not measured" in part) == (CATALOG[family].seconds is None)
    (tmp_path / "chexbert.pth").touch()
    assert "weights        chexbert (here), chexbert-tokenizer (missing)" in format_metrics()
