"""The text-supervised tower: its loss by the published formula, exact resume, something learnt, an ordinary folder."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from encoder.towers import load_tower
from generator import clip as module
from generator.clip import contrastive_loss, key_of, random_crops, recalls, to_pixels, train_clip
from generator.config import ClipConfig
from generator.tiny import make_tower
from raddraft.studies import Study, StudyImage, read_studies, write_studies
from tests.test_cli import run

pytestmark = pytest.mark.filterwarnings("ignore:.*looks inverted")

SIDES = ("left", "right", "top", "bottom")
SMALL = ClipConfig(epochs=2, batch_size=8, lr=2e-3, width=32, text_layers=1, vocab_size=300, save_every=3, workers=0)


@pytest.fixture
def studies(tmp_path: Path) -> dict[str, list[Study]]:
    """64 train and 24 val pictures: brighter towards one of four sides, on one of three grays; their reports."""
    generator = np.random.default_rng(0)
    ramp = np.tile(np.linspace(80, 0, 28), (28, 1))
    found: dict[str, list[Study]] = {"train": [], "val": []}
    for i in range(88):
        side, ground = i % 4, i % 3
        picture = generator.normal(30 + 60 * ground, 6, (28, 28)) + (ramp, ramp[:, ::-1], ramp.T, ramp.T[::-1])[side]
        path = tmp_path / f"{i}.png"
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(path)
        text = f"Brighter towards the {SIDES[side]}. The ground is {('dark', 'grey', 'light')[ground]}."
        split = "train" if i < 64 else "val"
        found[split].append(Study(f"s{i}", f"p{i}", split, [StudyImage(path, "PA")], {"findings": text}))
    return found


def log(out: Path) -> list[dict]:
    """The log without what depends on the clock."""
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


def unit(seed: int, n: int, width: int = 5) -> torch.Tensor:
    return functional.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_the_loss_is_that_of_the_paper_where_all_reports_differ() -> None:
    images, texts, scale = unit(0, 7), unit(1, 7), torch.tensor(9.0)
    expected = 0.0
    for i in range(7):  # -log softmax of the own pair, along rows and along columns
        own = math.exp(9 * float(images[i] @ texts[i]))
        expected -= math.log(own / sum(math.exp(9 * float(images[i] @ texts[j])) for j in range(7))) / 14
        expected -= math.log(own / sum(math.exp(9 * float(images[j] @ texts[i])) for j in range(7))) / 14
    loss = contrastive_loss(images, texts, scale, torch.arange(7))
    assert float(loss) == pytest.approx(expected, abs=1e-5)


def test_equal_reports_are_no_wrong_answers_for_each_other() -> None:
    images, texts, scale = unit(0, 3), unit(1, 3), torch.tensor(9.0)
    rows = (scale * images @ texts.T).log_softmax(1)
    columns = (scale * texts @ images.T).log_softmax(1)
    target = torch.tensor([[0.5, 0, 0.5], [0, 1, 0], [0.5, 0, 0.5]])  # the first and the third report say the same
    expected = -((target * rows).sum() + (target * columns).sum()) / 6
    groups = torch.tensor([4, 7, 4])
    torch.testing.assert_close(contrastive_loss(images, texts, scale, groups), expected)
    assert float(expected) != pytest.approx(float(contrastive_loss(images, texts, scale, torch.arange(3))), abs=0.1)
    texts[2] = texts[0]  # the same letter by letter: no difference to the plain loss
    plain = contrastive_loss(images, texts, scale, torch.arange(3))
    torch.testing.assert_close(contrastive_loss(images, texts, scale, groups), plain)


def test_reports_are_the_same_in_any_case_spacing_and_order_of_sentences() -> None:
    keys = [key_of(text) for text in ("No edema. A 1.5 cm  nodule.", "a 1.5 cm nodule.\nNo edema.", "A 1.5 cm nodule.")]
    assert keys[0] == keys[1] != keys[2]


def test_recalls_count_each_report_once_and_any_of_its_pictures() -> None:
    texts = torch.eye(3)[[0, 1, 0, 2]]  # the first and the third pair have the same report
    groups = torch.tensor([0, 1, 0, 2])
    images = functional.normalize(torch.tensor([[9.0, 1, 0], [0, 9, 1], [1, 9, 0], [8, 0, 9]]), dim=1)
    found = recalls(images, texts, groups, ks=(1, 2))
    assert found["image_to_text_r1"] == 0.75, "only the third picture is nearest to another report"
    assert found["image_to_text_r2"] == 1.0
    assert found["text_to_image_r1"] == 1.0, "report 0 finds its first picture; 1 and 2 find theirs"
    swapped = recalls(images[[1, 0, 2, 3]], texts, groups, ks=(1,))
    assert swapped["image_to_text_r1"] == 0.25


def test_crops_are_parts_of_the_picture_the_right_way_round() -> None:
    torch.manual_seed(0)
    ramp = torch.arange(40.0).expand(64, 30, 40)
    crops = random_crops(ramp, 0.6)
    assert crops.shape == ramp.shape
    widths = (crops[:, 0, -1] - crops[:, 0, 0]) / 39
    assert 0.6 < float(widths.min()) < 0.75, "the square root of 0.6 * 3/4 or more"
    assert 0.95 < float(widths.max()) <= 1
    assert float((crops[:, 0, 0] + crops[:, 0, -1]).std()) > 1, "not all around the center"
    assert (crops.diff(dim=2) >= -1e-4).all(), "left stays left"


def test_pixels_are_those_of_the_processor(tower_folder, studies) -> None:
    tower = load_tower(str(tower_folder))
    picture = Image.open(studies["train"][0].main_image.path)
    ours = to_pixels(tower.processor, torch.from_numpy(np.array(picture))[None])
    torch.testing.assert_close(ours, tower.prepare([picture]), atol=1e-5, rtol=0)


def test_a_stopped_run_goes_on_to_the_last_bit(tmp_path, tower_folder, studies, monkeypatch) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_clip(studies, whole, load_tower(str(tower_folder)), SMALL)
    embed = module._embed
    calls = 0

    def stop(*arguments):
        nonlocal calls
        calls += len(arguments) == 4
        if calls == 12:  # in the second epoch, after the checkpoint of step 9
            raise KeyboardInterrupt
        return embed(*arguments)

    monkeypatch.setattr(module, "_embed", stop)
    with pytest.raises(KeyboardInterrupt):
        train_clip(studies, parts, load_tower(str(tower_folder)), SMALL)
    assert [path.name for path in (parts / "checkpoints").glob("stage-*")] == ["stage-00-step-00000009"]
    monkeypatch.setattr(module, "_embed", embed)
    torch.rand(5)
    train_clip(studies, parts, load_tower(str(tower_folder)), SMALL)
    assert log(parts) == log(whole)
    assert len(log(whole)) == 2 * 8 + 2
    assert (parts / "tower" / "model.safetensors").read_bytes() == (whole / "tower" / "model.safetensors").read_bytes()
    assert train_clip(studies, parts, load_tower(str(tower_folder)), SMALL) == parts / "tower", "nothing left to do"


def test_it_learns_and_the_folder_is_an_ordinary_tower(tmp_path, studies) -> None:
    make_tower(tmp_path / "start", image_size=28, patch_size=14, hidden=32, layers=2)
    before = load_tower(str(tmp_path / "start"))
    config = replace(SMALL, epochs=12, lr=5e-3, smallest_crop=0.9, weight_decay=0.01)
    folder = train_clip(studies, tmp_path / "run", load_tower(str(tmp_path / "start")), config)
    best = min((row for row in log(tmp_path / "run") if "val_loss" in row), key=lambda row: row["val_loss"])
    # 12 different reports: by chance 1 in 12 is found first.
    assert best["val_image_to_text_r1"] > 0.5
    assert best["val_text_to_image_r5"] > 0.8
    after = load_tower(str(folder))
    pixels = after.prepare([Image.open(study.main_image.path) for study in studies["val"]])
    torch.testing.assert_close(pixels, before.prepare([Image.open(s.main_image.path) for s in studies["val"]]))
    vectors = functional.normalize(after.encode(pixels).pooled)
    nearest = (torch.cdist(vectors, vectors) + 9 * torch.eye(24)).argmin(1)
    same_side = (nearest % 4 == torch.arange(24) % 4).double().mean()
    assert same_side > 0.6, "by chance 1/4"


def test_what_cannot_be_read_is_named_and_left_out(tmp_path, tower_folder, studies, capsys) -> None:
    studies["train"][3].main_image.path.write_bytes(b"no picture")
    studies["train"][4].sections.clear()
    write_studies(tmp_path / "studies.jsonl", [*studies["train"], *studies["val"]])
    out = tmp_path / "run"
    arguments = ["--studies", tmp_path / "studies.jsonl", "--tower", tower_folder, "--out", out]
    small = ["--clip.epochs", 1, "--clip.width", 32, "--clip.text_layers", 1, "--clip.memory_gb", 0]
    assert run("clip", *arguments, *small) == (0, "")
    shown = capsys.readouterr().out
    assert "train: 62 pairs, 12 different reports" in shown
    assert f"not trained on: {studies['train'][3].main_image.path}" in shown
    assert not list(out.glob("*.bin")), "pictures on disk are gone"
    assert load_tower(str(out / "tower")).shape == (2, 2, 32)
    assert len(read_studies(tmp_path / "studies.jsonl")) == 88
    assert run("clip", *arguments, "--train.lr", "0.1")[0] == 2
    assert "--train.lr was renamed to --clip.lr" in capsys.readouterr().err
    status, message = run("clip", *arguments, *small[:-2], "--clip.lr", "0.1")
    assert (status, "clip.lr was 0.0005, now 0.1" in message) == (1, True)


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--tower", "pixels"], "pixels cannot train here: it is not a plain vision transformer"),
        (["--clip.sections", "[note]"], "Studies with note: train 0, val 0; train and val need two or more each"),
        (["--clip.width", "40"], "clip.width must be a multiple of 32, got 40"),
    ],
)
def test_faults_are_one_sentence(tmp_path, tower_folder, studies, words, culprit) -> None:
    write_studies(tmp_path / "studies.jsonl", [*studies["train"], *studies["val"]])
    words = words if "--tower" in words else [*words, "--tower", tower_folder]
    status, message = run("clip", "--studies", tmp_path / "studies.jsonl", "--out", tmp_path / "run", *words)
    assert status == 1
    assert culprit in message
