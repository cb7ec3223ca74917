"""The table of DICOM films: the films are made, this project shows them as the list says, the peers are not needed."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import dicom_cases
from benchmarks.dicom_cases import Answer, cell, judge, read_here
from benchmarks.dicom_films import Case, Film, plain, stretched
from benchmarks.dicom_list import GROUPS
from tests.conftest import ROOT

CASES = [case for cases in GROUPS.values() for case in cases]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_this_project_shows_a_film_as_ps3_3_says_or_the_list_says_why(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "film.dcm"
    for make in case.films.values():
        film = make()
        if film.encode is None:  # else a peer is needed
            film.write(path)
            words = judge(film, path, "RadDraft", read_here(path))
            allowed = ("right", "as meant", "refused") if case.reason else ("right",)
            assert words.startswith(allowed), words


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda picture: picture, "right"),
        (lambda picture: picture.astype(np.uint8), "right"),
        (lambda picture: 255 - picture, "inverted"),
        (lambda picture: picture / 16, "**other**: 17 levels, 9% black, 0% white"),
        (lambda picture: picture * 0, "**other**: 1 level, 100% black, 0% white"),
        (lambda picture: picture[:, ::-1], "**other**"),
        (lambda picture: picture[1:], "an array 95 × 80"),
    ],
)
def test_pictures_are_judged(change: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    film = plain()
    assert judge(film, Path("x.dcm"), "DCMTK", Answer(change(film.meant * 255))).startswith(words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda values: values, "values"),
        (lambda values: 4095 - values, "values, inverted"),
        (lambda values: values // 16, "**other** values, 0 to 255"),
        (lambda values: np.stack([values] * 2), "an array 2 × 96 × 80"),
    ],
)
def test_values_are_judged(change: Callable[[np.ndarray], np.ndarray], words: str) -> None:
    film = plain()
    assert judge(film, Path("x.dcm"), "GDCM", Answer(change(film.values).astype(float))) == words


def test_what_is_odd_may_be_heeded_or_not() -> None:
    film = stretched(PixelAspectRatio=[2, 1])
    assert judge(film, Path("x.dcm"), "RadDraft", Answer(film.meant * 255)) == "right"
    assert judge(film, Path("x.dcm"), "RadDraft", Answer(film.meant[::2] * 255)) == "not heeded"


def test_where_ps3_3_has_no_say_a_reading_is_as_meant_and_a_refusal_is_quoted() -> None:
    film: Film = replace(plain(), shown=None)
    assert judge(film, Path("x.dcm"), "DCMTK", Answer(film.meant * 255, warnings=["odd"])) == "as meant, warns"
    assert judge(film, Path("x.dcm"), "RadDraft", Answer(error="x.dcm: no | pixels")) == "refused: no / pixels"


def test_peers_that_cannot_be_had_are_named(monkeypatch, capsys, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise subprocess.CalledProcessError(100, "x", stderr="Reading\nE: Unable to locate package dcmtk\n")

    monkeypatch.setattr(subprocess, "run", fail)
    assert dicom_cases.main(tmp_path) == 0
    said = capsys.readouterr().out
    assert "DCMTK is missing: E: Unable to locate package dcmtk." in said
    assert "GDCM is missing" in said
    assert "| JPEG-LS | PS3.5 A.4.3 | — | — | — | — | — |" in said


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_page_says_what_is_shown(case: Case, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "dicom.md").read_text(encoding="utf-8")
    films = {variant: make() for variant, make in case.films.items()}
    seen = {}
    for number, (variant, film) in enumerate(films.items()):
        path = tmp_path / f"{number}.dcm"
        if film.encode is None:
            film.write(path)
            seen[variant] = film, path, read_here(path)
    row = f"| {case.name} | {case.standard} |"
    if len(seen) == len(films):  # else a peer has to encode the others
        row += f" {cell(seen, 'RadDraft')} |"
    assert row in page, f"{row} not in docs/dicom.md; put in what `python -m benchmarks.dicom_cases` prints"
