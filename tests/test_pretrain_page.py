"""The page of a run of pre-training: what lies in the run folder, and nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from encoder.collapse import ROWS
from encoder.curves import POINTS, draw_chart
from encoder.figures import panel_box, sheet_size
from encoder.pretrain_page import changed_settings, write_page
from encoder.recipe import CropConfig, PretrainConfig, Watch

CONFIG = PretrainConfig(
    tower="<i>tower</i>",
    steps=100,
    warmup=0.0,
    crops=CropConfig(flip=0.0),
    watch=(Watch(("patient.sex",), "multiclass"),),
)
STEPS = (0, 50, 100)


def log_row(step: int, information: float) -> dict:
    signs = {"mean_entropy": 5.0, "teacher_entropy": 5.0 - information, "student_entropy": 6.0, "cosine": 0.4}
    losses = {"loss": 10 - step / 50, "dino_local": 5.0, "dino_global": 1.0, "ibot": 4.0, "koleo": math.nan}
    return (
        {"step": step, "grad_norm_head": 2.0, "spread": 0.9, "logit_spread": 0.1, "images_per_second": 7}
        | signs
        | losses
    )


def write_run(folder: Path, information: float) -> str:
    """A run folder of 100 steps with two films; its page."""
    rows = [log_row(step, information) for step in range(1, 101)]
    rows += [{"step": step, "probes": {"patient.sex": 0.6 + step / 1000}, "probe_mean": 0.6} for step in STEPS]
    (folder / "maps").mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "best.json").write_text(json.dumps({"step": 50, "score": 0.65}))
    for number, step in enumerate(STEPS):
        sheet = Image.new("RGB", sheet_size(2, 1))
        for row in range(2):
            for column in range(4):
                sheet.paste((80 * number, 100 * row, 60 * column), panel_box(row, column))
        sheet.save(folder / "maps" / f"step-{step:07d}.png")
    write_page(folder, CONFIG)
    return (folder / "report.html").read_text()


def test_the_page_shows_the_run_and_loads_nothing(tmp_path) -> None:
    page = write_run(tmp_path / "a&b", 1.5)
    assert "Pre-training: a&amp;b" in page
    assert "Continued from &lt;i&gt;tower&lt;/i&gt;" in page
    assert "step 100 of 100" in page
    assert "No sign of a collapse" in page
    assert 'role="alert"' not in page
    assert "the teacher at step 50, mean of the probes 0.650 on val, at the start 0.600." in page
    assert "<td>0.600</td><td>0.650</td><td>0.700</td>" in page
    titles = ["Cross-entropies", "Norms of gradients", "Entropies of the answers", "Class tokens of different images"]
    assert all(f"<figcaption>{title}" in page for title in [*titles, "Probes over the steps", "Learning rate"])
    assert "<figcaption>KoLeo" not in page, "it was never a number"
    assert "ln 65,536" in page
    assert all(address.startswith("data:") for address in re.findall(r'(?:src|href)="([^"]*)', page))


def test_films_stand_beside_their_maps_of_the_start_the_middle_and_the_end(tmp_path) -> None:
    page = write_run(tmp_path / "run", 1.5)
    found = {}
    for data, text in re.findall(r'<img src="data:image/jpeg;base64,([^"]*)" alt="([^"]*)"', page):
        found[text] = Image.open(io.BytesIO(base64.b64decode(data))).getpixel((100, 100))
    for row in range(2):
        for column, kind in enumerate(("Features", "Attention", "Similarity"), 1):
            for number, step in enumerate(STEPS):
                pixel = found[f"{kind} of film {row + 1} at step {step}"]
                assert pixel == pytest.approx((80 * number, 100 * row, 60 * column), abs=4)


def test_the_page_of_a_collapsed_run_begins_with_its_sentence(tmp_path) -> None:
    page = write_run(tmp_path / "run", 0.001)
    sentence = f"Step {ROWS}: the run has collapsed: the teacher&#39;s answers tell images apart by 0.0010 nats"
    assert page.index(sentence) < page.index("<section")
    assert "No sign of a collapse" not in page


def test_a_run_that_has_just_begun_has_a_page(tmp_path) -> None:
    write_page(tmp_path, CONFIG)
    page = (tmp_path / "report.html").read_text()
    assert "step 0 of 100" in page
    assert [section for section in ("losses", "signs", "probes", "maps", "crops") if f'id="{section}"' in page] == []


def test_settings_that_are_not_the_default_are_listed() -> None:
    assert changed_settings(PretrainConfig()) == []
    config = replace(PretrainConfig(), lr=0.5, crops=CropConfig(global_scale=(0.3, 1.0)), watch=CONFIG.watch)
    assert changed_settings(config) == [
        ("crops.global_scale", "0.3, 1.0", "0.5, 1.0"),
        ("lr", "0.5", "0.004"),
        ("watch", "patient.sex", "–"),
    ]


def test_curves_are_laid_out_in_percent() -> None:
    chart = draw_chart("a", "", {"x": [(0, 1.0), (5, math.nan), (10, 3.0)]}, 10, guides={"most": 2.0}, marks={"now": 5})
    [curve] = chart.curves
    assert (curve.last, curve.path) == ("3", "M0.00 94.64L100.00 5.36")
    assert (chart.guides[0].at, chart.marks[0].at) == (pytest.approx(50), 50)
    assert [tick.text for tick in chart.x_ticks] == ["0", "2", "4", "6", "8", "10"]
    assert all(0 <= tick.at <= 100 for tick in chart.y_ticks)
    powers = draw_chart("a", "", {"x": [(0, 1.0), (10, 100.0)]}, 10, log=True)
    assert {tick.text: round(tick.at) for tick in powers.y_ticks} == {"1": 5, "10": 50, "100": 95}
    assert draw_chart("a", "", {"x": [(0, 0.0), (10, 100.0)]}, 10, log=True).curves, "0 has no logarithm"
    [long] = draw_chart("a", "", {"x": [(step, step % 7) for step in range(5000)]}, 5000).curves
    assert long.behind.count("L") == POINTS - 1
    assert draw_chart("a", "", {"x": [(0, None)]}, 10).curves == []
