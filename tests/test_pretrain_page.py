"""The page of a run of pre-training: what lies in the run folder, and nothing else."""

from __future__ import annotations

import base64
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from encoder.collapse import ROWS
from encoder.crop_sheet import write_crops
from encoder.curves import POINTS, draw_chart
from encoder.figures import ATTENTION_TOP, TowerMaps, draw, panel_box, sheet_size
from encoder.pretrain_page import changed_settings, read_kept, read_probes, tell_lower, write_page
from encoder.recipe import CropConfig, DinoConfig, PretrainConfig, Watch

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


def write_run(folder: Path, information: float, low: int = 0) -> str:
    """A run folder of 100 steps with two films, whose last `low` rows tell nothing; its page."""
    rows = [log_row(step, information if step <= 100 - low else 0.0) for step in range(1, 101)]
    rows += [{"step": step, "probes": {"patient.sex": 0.6 + step / 1000}, "probe_mean": 0.6} for step in STEPS]
    (folder / "maps").mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (folder / "best.json").write_text(json.dumps({"step": 50, "score": 0.65}))
    for number, step in enumerate(STEPS):
        sheet = Image.new("RGB", sheet_size(2, 1))
        for row in range(2):
            for column in range(4):
                sheet.paste((80 * number, 100 * row, 60 * column), panel_box(row, column))
        about = PngInfo()
        about.add_text(ATTENTION_TOP, f"{number}.5")
        sheet.save(folder / "maps" / f"step-{step:07d}.png", pnginfo=about)
    (folder / "maps" / "step-old.png").write_text("no image of ours")
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
    titles = [
        "Loss and its parts",
        "Norms of gradients",
        "Entropies of the answers",
        "Class tokens of different images",
    ]
    assert all(f"<figcaption>{title}" in page for title in [*titles, "Probes over the steps", "Learning rate"])
    assert "<figcaption>KoLeo" not in page, "it was never a number"
    assert "ln 65,536" in page
    assert all(address.startswith("data:") for address in re.findall(r'(?:src|href)="([^"]*)', page))


def test_films_stand_beside_their_maps_of_the_start_the_middle_and_the_end(tmp_path) -> None:
    page = write_run(tmp_path / "run", 1.5)
    assert "at the start, the middle and the end so far" in page
    assert re.findall(r"<span>step 50(, 0 to 1\.5 × uniform)?<", page) == ["", ", 0 to 1.5 × uniform", ""]
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


def test_rows_that_tell_nothing_are_counted_before_they_are_a_collapse(tmp_path) -> None:
    page = write_run(tmp_path / "run", 1.5, low=ROWS - 1)
    assert f"<b>{ROWS - 1} rows below 0.01 so far</b>: at the last row" in page
    assert "0.000 nats about an image; mean cosine of class tokens 0.400, spread 0.900." in page
    assert "No sign of a collapse" not in page
    assert 'role="alert"' not in page


def test_a_tower_below_its_start_is_told(tmp_path) -> None:
    write_run(tmp_path, 1.5)
    assert tell_lower(read_probes(tmp_path), read_kept(tmp_path), CONFIG) == ""
    (tmp_path / "best.json").write_text(json.dumps({"step": 50, "score": 0.55}))
    said = tell_lower(read_probes(tmp_path), read_kept(tmp_path), replace(CONFIG, tower="dinov2-small"))
    assert said == "probes on val are lower than at the start, 0.550 and not 0.600; consider the start, dinov2-small"
    write_page(tmp_path, CONFIG)
    page = (tmp_path / "report.html").read_text()
    assert '<div class="box warning" role="alert"><p><strong>Probes on val are lower than at the start' in page


def test_the_mean_of_several_probes_is_the_first_curve_and_the_heaviest(tmp_path) -> None:
    rows = [{"step": step, "probes": {"a": 0.5, "b": 0.7}, "probe_mean": 0.6} for step in (0, 1)]
    (tmp_path / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_page(tmp_path, CONFIG)
    probes = (tmp_path / "report.html").read_text().partition("Probes over the steps")[2].partition("</figure>")[0]
    assert re.findall(r"</svg> (\w+) <b>", probes) == ["mean", "a", "b"]
    assert re.findall(r'class="(c\d[^"]*)"', probes) == ["c0 heavy", "c1", "c2"] * 2
    assert '<span class="axis">steps</span>' in probes


def test_koleo_without_a_weight_is_said_to_be_watched_only(tmp_path) -> None:
    (tmp_path / "log.jsonl").write_text(json.dumps(log_row(1, 1.0) | {"koleo": 0.5}))
    for weight, note in ((0.0, "weight 0: watched only"), (0.1, "lower: class tokens lie apart")):
        write_page(tmp_path, replace(CONFIG, objective=DinoConfig(koleo_weight=weight)))
        assert f"<figcaption>KoLeo <span>{note}</span>" in (tmp_path / "report.html").read_text()


def test_a_sheet_of_maps_states_its_scale_of_attention() -> None:
    maps = TowerMaps(
        "a", np.zeros((1, 2, 2, 3), np.uint8), torch.tensor([[[0.7, 0.1], [0.1, 0.1]]]), torch.ones(1, 2, 2)
    )
    sheet = draw(["x"], [np.zeros((28, 28), np.uint8)], [maps], (0.5, 0.5))
    assert Image.open(io.BytesIO(sheet)).info[ATTENTION_TOP] == "2.8"


def test_a_numbered_sheet_of_crops_does_not_name_its_files(tmp_path) -> None:
    config = replace(CONFIG, crops=CropConfig(global_size=28, local_size=14, local_crops=0))
    sheets = []
    for name in ("a.png", "MRN-123.png"):
        Image.linear_gradient("L").save(tmp_path / name)
        write_crops([tmp_path / name], config, tmp_path / "crops.png", 1, 14, numbered=True)
        sheets.append((tmp_path / "crops.png").read_bytes())
    assert sheets[0] == sheets[1]


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
