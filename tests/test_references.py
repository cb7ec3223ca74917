"""Metrics against the packages that they follow, where installed: benchmarks/references.py on made-up reports."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from benchmarks.references import REFERENCES, Reference, main
from raddraft.errors import RadDraftError
from tests.conftest import SENTENCES


def make_reports(n: int, seed: int) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(SENTENCES, k=generator.randint(1, 4))) for _ in range(n)]


@pytest.mark.parametrize("reference", REFERENCES, ids=[one.package for one in REFERENCES])
def test_equal_to_the_package(reference: Reference, tmp_path: Path) -> None:
    drafts, reports = make_reports(12, 0), make_reports(12, 1)
    try:
        found = reference.compare(drafts, reports, tmp_path)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed; see benchmarks/references.py")
    assert len(found) in (1, 12, 28, 36), "the corpus, each report, or both for several scores"
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_a_table_without_findings_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reports.csv").write_text("findings\nThe lungs are clear.\n\n")
    with pytest.raises(RadDraftError, match=r"reports\.csv: fewer than two findings"):
        main(tmp_path / "reports.csv")
