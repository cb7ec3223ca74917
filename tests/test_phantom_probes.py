"""Probes and segmentation where the truth is known: on chest phantoms, whose signs and sex are drawn on purpose."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from encoder.config import ComputeConfig, FeatureConfig
from encoder.features import open_store
from encoder.probe import run_probe
from encoder.probe_config import ProbeConfig, SegmentConfig, TargetSpec
from encoder.segment import segment
from encoder.targets import make_target
from encoder.towers import load_tower
from generator.corpora.phantom import convert
from generator.corpora.phantom.body import Patient, build
from generator.corpora.phantom.cases import Sign
from generator.corpora.phantom.film import render
from generator.corpora.phantom.signs import draw
from raddraft.studies import Study, StudyImage
from tests.conftest import ROOT

SEVERITIES = (0.05, 0.35, 0.9)
QUICK = ProbeConfig(weight_decays=(100.0, 1000.0, 10000.0), resamples=200)


def auroc(studies: list[Study], spec: TargetSpec, folder: Path) -> tuple[float, float, float]:
    """Macro AUROC of a probe on raw pixels, with its interval."""
    target = make_target(studies, spec)
    store = open_store(
        load_tower("pixels"), target.paths, compute=ComputeConfig(workers=0, features=folder / "features")
    )
    assert store.errors == []
    estimate = run_probe(store, target, QUICK).measures["macro"]["auroc"].estimate
    assert estimate.value is not None
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.value, estimate.low, estimate.high


def examine(folder: Path, sign: Sign | None, number: int) -> Study:
    """A picture of 64 x 64 pixels of a body of its own, healthy or with one sign."""
    rng = np.random.default_rng((7, number))
    sex = str(rng.choice(["M", "F"]))
    body = build(Patient(sex, int(rng.integers(30, 80)), rng.normal(170, 8), rng.uniform(20, 32)), "PA", 64, rng)
    draw(body, [sign] if sign else [], rng)
    path = folder / f"{number}.png"
    Image.fromarray(render(body, rng)[0].round().astype(np.uint8)).save(path)
    split = ("train", "train", "test", "val", "train", "test")[number % 6]
    return Study(f"s{number}", f"p{number}", split, [StudyImage(path, "PA")], {}, {"Sign": int(sign is not None)})


def test_the_larger_a_sign_the_better_a_probe_tells_it(tmp_path) -> None:
    healthy = [examine(tmp_path, None, number) for number in range(84)]
    found = []
    for row, severity in enumerate(SEVERITIES, 1):
        numbers = range(1200 * row, 1200 * row + 84)
        sick = [examine(tmp_path, Sign("Pleural Effusion", severity, "right"), number) for number in numbers]
        found.append(auroc([*healthy, *sick], TargetSpec(("Sign",), "binary"), tmp_path))
    values = [value for value, _, _ in found]
    assert values == sorted(values)
    assert values[-1] > values[0] + 0.1
    assert values[-1] > 0.9


def test_sex_is_told_where_it_shows_and_not_where_it_is_only_recorded(tmp_path) -> None:
    spec = TargetSpec(("patient.sex",), "multiclass")
    shown = convert(tmp_path / "shown", count=160, size=48, seed=3, processes=1).studies
    hidden = convert(tmp_path / "hidden", count=280, size=48, seed=3, processes=1, show_sex=False).studies
    assert [study.patient["sex"] for study in shown] == [study.patient["sex"] for study in hidden[:160]]
    assert auroc(shown, spec, tmp_path)[1] > 0.8, "the lower end of the interval"
    value, low, high = auroc(hidden, spec, tmp_path)
    assert low < 0.5 < high
    assert abs(value - 0.5) < 0.12
    view = auroc(hidden, TargetSpec(("image.view",), "multiclass"), tmp_path)
    assert view[1] > 0.6, "what does show is still told: the lower end of the interval"


def test_a_linear_head_on_pretrained_patches_finds_the_lungs(tmp_path) -> None:
    weights = Path(os.environ.get("RADDRAFT_TOWERS", ROOT.parent / "shared" / "weights")) / "dinov2-small"
    if not weights.is_dir():
        pytest.skip(f"no pretrained tower at {weights}; set RADDRAFT_TOWERS to the folder that holds dinov2-small")
    studies = convert(tmp_path, count=40, size=168, seed=1, processes=1).studies
    tower = load_tower(str(weights), image_size=168)
    paths = [study.main_image.path for study in studies]
    store = open_store(tower, paths, FeatureConfig("tokens"), ComputeConfig(workers=0, features=tmp_path / "features"))
    result, _ = segment(store, studies, tower.processor, SegmentConfig(("lungs",), epochs=12, head_batch_size=8))
    assert result.n_images["test"] >= 6
    assert result.scores["lungs"]["dice"].low > 0.9
