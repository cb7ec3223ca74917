"""Inputs beyond one frontal image: which pictures and which previous study go in, and in what order."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer

from generator.config import DecodeConfig, ModelConfig, Stage, TrainConfig
from generator.controls import shuffle_images
from generator.data import IGNORE
from generator.generate import decode, generate
from generator.model import Drafter, build, load
from generator.priors import find_priors
from generator.prompts import PromptConfig
from generator.speculate import Speculator, index_reports
from generator.train import train
from raddraft.studies import Study, StudyImage
from tests.conftest import SENTENCES

REQUEST = "Describe the findings of this chest X-ray."
EVERYTHING = PromptConfig(context=["indication"], images="all", prior=True)


def make_study(number: int, views: str, folder: Path = Path("/x"), subject: str = "p", **extra: Any) -> Study:
    """Views by letter: P PA, A AP, L lateral, O oblique, ? not stated."""
    names = {"P": "PA", "A": "AP", "L": "LL", "O": "OBLIQUE", "?": None}
    images = [StudyImage(folder / f"{number}{i}{view}.png", names[view]) for i, view in enumerate(views)]
    sections = {"findings": SENTENCES[number % 6], "indication": "cough."}
    return Study(f"s{number}", subject, "train", images, sections, extra=extra)


def shown(config: PromptConfig, study: Study, prior: Study | None = None) -> str:
    """The prompt's parts in a row, each picture as [file name]; its placeholders must be as many as its pictures."""
    pictures = iter(config.choose_images(study, prior))
    (message,) = config.messages(study, prior)
    parts = [part["text"] if part["type"] == "text" else f"[{next(pictures).path.stem}]" for part in message["content"]]
    assert next(pictures, None) is None
    return "".join(parts)


@pytest.mark.parametrize(
    ("views", "frontal", "pair", "everything"),
    [
        ("P", "0P", "0P", "0P"),
        ("LPA", "1P", "1P 0L", "1P 2A 0L"),
        ("L", "0L", "0L", "0L"),
        ("LL", "0L", "0L", "0L 1L"),
        ("OL", "0O", "0O 1L", "1L 0O"),
        ("O?LAL", "3A", "3A 2L", "3A 1? 2L 4L 0O"),
        ("?P", "1P", "1P", "1P 0?"),
        ("OL?", "2?", "2? 1L", "2? 1L 0O"),
    ],
)
def test_which_pictures_go_in_and_in_what_order(views, frontal, pair, everything) -> None:
    study = make_study(7, views)
    choices = [PromptConfig(), PromptConfig(images="pair"), PromptConfig(images="all")]
    for config, expected in zip(choices, (frontal, pair, everything), strict=True):
        chosen = config.choose_images(study, make_study(6, "P"))
        assert [image.path.stem[1:] for image in chosen] == expected.split(), config


def test_pictures_are_named_where_there_may_be_several() -> None:
    study, prior = make_study(7, "LPO"), make_study(6, "P")
    assert shown(PromptConfig(), study, prior) == f"[71P]{REQUEST}"
    assert shown(PromptConfig(images="pair"), study, prior) == (f"Frontal image: [71P]Lateral image: [70L]{REQUEST}")
    assert shown(EVERYTHING, study, prior) == (
        "Frontal image: [71P]Lateral image: [70L]Other image: [72O]Prior frontal image: [60P]"
        f"Prior report: {SENTENCES[0]}\nIndication: cough.\n{REQUEST}"
    )
    one = PromptConfig(prior=True)
    assert shown(
        one, study, prior
    ) == f"Frontal image: [71P]Prior frontal image: [60P]Prior report: {SENTENCES[0]}\n" + (REQUEST)


def test_what_is_missing_is_absent() -> None:
    study, prior = make_study(7, "P"), make_study(6, "LP")
    assert shown(EVERYTHING, study) == f"Frontal image: [70P]Indication: cough.\n{REQUEST}"
    prior.sections = {"impression": "Normal."}
    del study.sections["indication"]
    assert shown(replace(EVERYTHING, images="frontal"), study, prior) == (
        f"Frontal image: [70P]Prior frontal image: [61P]{REQUEST}"
    )
    both = replace(EVERYTHING, images="frontal", targets=["findings", "impression"], instruction="Go.")
    assert shown(both, study, prior).endswith("Prior report: Impression: Normal.\nGo.")


# Previous studies ----------------------------------------------------------------------------------------------------


def priors(*studies: Study) -> dict[str, str]:
    return {study_id: prior.study_id for study_id, prior in find_priors(studies).items()}


def test_the_prior_is_the_latest_earlier_study_of_the_subject() -> None:
    studies = [
        make_study(3, "P", study_date="21801231", study_time="101520.2"),
        make_study(1, "P", study_date="21800506", study_time="213014.531"),
        make_study(2, "P", study_date="21801231", study_time="85437.343"),  # before ten o'clock, without a zero
        make_study(4, "P", subject="another", study_date="21800101"),
    ]
    assert priors(*studies) == {"s2": "s1", "s3": "s2"}
    dashed = [make_study(1, "P", study_date="2180-05-06"), make_study(2, "P", study_date="2180-10-01")]
    assert priors(*dashed) == {"s2": "s1"}
    timed = [
        make_study(1, "P", study_date="2180-05-06", study_time="08:00:01"),
        make_study(2, "P", study_date=21800506),
    ]
    assert priors(*timed) == {}, "of two studies of one day, one without a time"
    timed[1].extra["study_time"] = "08:00:02"
    assert priors(*timed) == {"s2": "s1"}
    timed[1].extra["study_time"] = "08:00:01"
    assert priors(*timed) == {}
    assert priors(make_study(1, "P"), make_study(2, "P", study_date="2180")) == {}, "no order is known"
    ordered = [make_study(number, "P", study_order=float(order)) for number, order in ((1, 10), (2, 9), (3, 9), (4, 2))]
    assert priors(*ordered) == {"s1": "s2", "s2": "s4", "s3": "s4"}


def test_the_manifest_may_name_the_prior() -> None:
    first, second = make_study(1, "P", study_date="2180"), make_study(2, "P", study_date="2181")
    third = make_study(3, "P", study_date="2182", prior="s1")
    assert priors(first, second, third) == {"s2": "s1", "s3": "s1"}
    for nothing in (None, "unknown", "s3"):
        third.extra["prior"] = nothing
        assert priors(first, second, third) == {"s2": "s1"}
    third.extra["prior"] = "s9"
    with pytest.raises(ValueError, match="Study 's3': its prior 's9' is of subject 'q', not 'p'"):
        find_priors([third, make_study(9, "P", subject="q")])
    for date in ("May 2180", "inf", "nan", ["2180"], float("inf")):
        with pytest.raises(ValueError, match=r"Study 's1': study_date is .*; expected digits"):
            find_priors([make_study(1, "P", study_date=date)])
    with pytest.raises(ValueError, match=r"Study 's1': prior is \['s2'\]; expected a study id or null"):
        find_priors([make_study(1, "P", prior=["s2"])])


# Models --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def studies(tmp_path: Path) -> list[Study]:
    """Three subjects with two studies each: one to five pictures in a prompt with the prior."""
    views = ["P", "PL", "L", "PLO", "A", "P"]
    studies = [make_study(i, views[i], tmp_path, f"p{i // 2}", study_date=f"2180010{i}") for i in range(6)]
    generator = np.random.default_rng(0)
    for study in studies:
        for image in study.images:
            Image.fromarray(generator.integers(0, 256, (32, 32)).astype(np.uint8)).save(image.path)
    return studies


@pytest.fixture
def parts_config(tower_folder: Path, lm_folder: Path) -> ModelConfig:
    return ModelConfig(str(tower_folder), str(lm_folder))


def plain_inputs(processor: Any, study: Study, prior: Study | None) -> Any:
    messages = EVERYTHING.messages(study, prior)
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    images = [Image.open(image.path).convert("RGB") for image in EVERYTHING.choose_images(study, prior)]
    return processor(text=text, images=images, return_tensors="pt", add_special_tokens=False)


def test_examples_are_what_plain_transformers_makes(studies, parts_config) -> None:
    drafter = Drafter(*build(parts_config), EVERYTHING)
    found = find_priors(studies)
    assert sorted(found) == ["s1", "s3", "s5"]
    dataset = drafter.dataset(drafter.encode(studies, answers=False))
    batch = dataset.collate([dataset[i] for i in range(6)])
    assert [len(example.images) for example in dataset.examples] == [1, 3, 1, 4, 1, 2]
    assert batch["pixel_values"].shape == (12, 3, 28, 28)
    pixels = []
    for study, example in zip(studies, dataset.examples, strict=True):
        inputs = plain_inputs(drafter.processor, study, found.get(study.study_id))
        assert inputs["input_ids"][0].tolist() == example.prompt
        pixels.append(inputs["pixel_values"])
    assert torch.equal(torch.cat(pixels), batch["pixel_values"])
    studies[3].images[1].path.unlink()
    item = dataset[3]
    assert item.pixels.shape == (4, 3, 28, 28)
    assert item.error is not None
    assert item.error.startswith("s3: ")


@pytest.fixture
def config() -> TrainConfig:
    stages = [Stage(epochs=40, lr=1e-2, lm="full")]
    return TrainConfig(stages, batch_size=6, micro_batch_size=6, eval_every=0, workers=0)


def test_live_and_cached_features_give_the_same_losses(studies, parts_config, config, tmp_path) -> None:
    config = replace(config, stages=[replace(config.stages[0], epochs=2, lr=1e-3)])
    logs = []
    for features in ("live", "cached"):
        out = tmp_path / features
        train({"train": studies}, out, parts_config, EVERYTHING, replace(config, cached=features == "cached"))
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        logs.append([row["loss"] for row in rows])
    assert logs[0] == pytest.approx(logs[1], abs=2e-4)  # features are kept in float16
    assert len(logs[0]) == 2
    assert load(tmp_path / "cached" / "model").prompt == EVERYTHING


def test_drafts_are_those_of_plain_transformers(studies, parts_config, config, tmp_path) -> None:
    drafter = load(train({"train": studies}, tmp_path / "run", parts_config, EVERYTHING, config))
    model: Any = drafter.model
    for beams in (1, 3):
        decode = DecodeConfig(max_new_tokens=20, batch_size=4, num_beams=beams)
        assert generate(drafter, studies, tmp_path / f"{beams}.jsonl", decode, "model") == []
        ours = [json.loads(line)["prediction"] for line in (tmp_path / f"{beams}.jsonl").read_text().splitlines()]
        plain = []
        for study in studies:
            inputs = plain_inputs(drafter.processor, study, find_priors(studies).get(study.study_id))
            tokens = model.generate(**inputs, max_new_tokens=20, num_beams=beams)[0, inputs["input_ids"].shape[1] :]
            plain.append(drafter.processor.decode(tokens, skip_special_tokens=True).strip())
        assert ours == plain
        assert len(set(ours)) > 2, "a model that always says the same would prove little"


def test_shuffled_images_are_shuffled_in_the_prior_too(studies, parts_config) -> None:
    owner = {image.path: study.subject_id for study in studies for image in study.images}
    shuffled = shuffle_images(studies)
    drafter = Drafter(*build(parts_config), EVERYTHING)
    for study, example in zip(shuffled, drafter.encode(shuffled, answers=False), strict=True):
        assert study.subject_id not in {owner[path] for path in example.images}
        assert len(example.images) >= len(study.images)


# Observations first --------------------------------------------------------------------------------------------------

TWO_TURNS = PromptConfig(findings_first=True)


def test_observations_come_from_labels_or_else_from_the_rules() -> None:
    study = make_study(0, "P")
    study.sections["findings"] = "Moderate left effusion. Possible pneumonia. Heart size normal."
    assert TWO_TURNS.observations(study) == "Pleural Effusion"
    study.labels = {"Edema": 1, "Cardiomegaly": 1, "Pneumonia": -1, "Fracture": 0, "Bacterial": 1}
    assert TWO_TURNS.observations(study) == "Cardiomegaly, Edema"
    study.labels = {"Edema": 0, "Pneumonia": -1}
    assert TWO_TURNS.observations(study) == "None of these"
    study.labels = {"No Finding": 1, "Support Devices": 1}
    assert TWO_TURNS.observations(study) == "Support Devices, No Finding"
    study.labels = {"Edema": None, "Bacterial": 1}
    assert TWO_TURNS.observations(study) == "Pleural Effusion"
    study.sections["findings"] = "Severe emphysema with large bullae."
    assert TWO_TURNS.observations(study) == "None of these"
    study.sections["findings"] = "The lungs are clear."
    assert TWO_TURNS.observations(study) == "No Finding"


@pytest.fixture
def roomy_config(tower_folder: Path, lm_folder: Path, tmp_path: Path) -> ModelConfig:
    """Parts whose language model has room for the question."""
    folder = tmp_path / "lm"
    shutil.copytree(lm_folder, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"max_position_embeddings": 1024}))
    return ModelConfig(str(tower_folder), str(folder))


def two_turns(study: Study, *answers: str) -> list[dict[str, Any]]:
    """The whole conversation, as far as answers are given."""
    turns = [*TWO_TURNS.messages(study), TWO_TURNS.follow_up()]
    said = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in answers]
    return [message for pair in zip(turns, said, strict=False) for message in pair] + turns[len(said) :][:1]


def plain_answer(drafter: Drafter, study: Study, *answers: str) -> str:
    """What plain transformers lets the model say next."""
    processor, model = drafter.processor, cast(Any, drafter.model)
    text = processor.apply_chat_template(two_turns(study, *answers), add_generation_prompt=True)
    image = Image.open(study.main_image.path).convert("RGB")
    inputs = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=100)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(tokens, skip_special_tokens=True).strip()


CHATML = (  # of Qwen and SmolLM2, whose end token is that of a turn
    "{% for message in messages %}<s>{{ message['role'] }}\n{{ message['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


GEMMA = (  # whose turns end with a token of their own, here one that is not special
    "{% for message in messages %}[{{ message['role'] }}]{{ message['content'] }}[end]\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.mark.parametrize("template", [None, CHATML, GEMMA], ids=["plain", "chatml", "gemma"])
def test_both_answers_are_learnt_and_the_request_between_them_is_not(template, studies, roomy_config) -> None:
    if template:
        tokenizer = AutoTokenizer.from_pretrained(roomy_config.lm)
        assert tokenizer.eos_token == "</s>"
        tokenizer.chat_template = template
        tokenizer.save_pretrained(roomy_config.lm)
    drafter = Drafter(*build(roomy_config), TWO_TURNS)
    processor = drafter.processor
    [example, other] = drafter.encode(studies[:2], answers=True)
    decode = partial(processor.tokenizer.decode, clean_up_tokenization_spaces=False)
    whole = decode(example.prompt + example.answer)
    n_image = example.prompt.count(processor.image_token_id)
    named, report = TWO_TURNS.observations(studies[0]), studies[0].sections["findings"]
    expected = processor.apply_chat_template(two_turns(studies[0], named, report), tokenize=False)
    expected = expected.replace(processor.image_token, processor.image_token * n_image)
    expected = decode(processor.tokenizer(expected, add_special_tokens=False)["input_ids"]).strip()
    assert whole == expected
    dataset = drafter.dataset([example, other])
    labels = dataset.collate([dataset[0], dataset[1]])["labels"]
    for study, line in zip(studies, labels, strict=False):
        pieces = (TWO_TURNS.observations(study), study.sections["findings"])
        end = "[" if template == GEMMA else "</s>"  # of "[end]" the first token
        assert decode(line[line != IGNORE]) == f"{pieces[0]}{end}{pieces[1]}</s>"
    assert [(line != IGNORE).sum() for line in labels] == [example.learned, other.learned]


def test_the_loss_is_that_of_a_learnt_token(studies, roomy_config, config, tmp_path) -> None:
    config = replace(config, stages=[Stage(epochs=1, lr=1e-9, lm="full")], eval_every=1)
    train({"train": studies, "val": studies}, tmp_path / "run", roomy_config, TWO_TURNS, config)
    trained, validated = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert trained["loss"] == pytest.approx(validated["val_loss"], abs=1e-5)


def test_a_template_that_drops_earlier_answers_is_refused(studies, roomy_config) -> None:
    tokenizer = AutoTokenizer.from_pretrained(roomy_config.lm)
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    tokenizer.save_pretrained(roomy_config.lm)
    with pytest.raises(ValueError, match="drops or changes earlier answers"):
        Drafter(*build(roomy_config), TWO_TURNS).encode(studies, answers=True)


def test_the_question_needs_room(studies, parts_config) -> None:
    with pytest.raises(ValueError, match=r"for the draft exceed the context of 256 tokens"):
        Drafter(*build(parts_config), TWO_TURNS).encode(studies, answers=False, reserve=20)


def test_observations_are_named_and_then_the_report_is_written(studies, roomy_config, config, tmp_path) -> None:
    for study in studies[::2]:
        study.labels = {"Edema": 1, "Fracture": 1}
    config = replace(config, stages=[replace(config.stages[0], epochs=100)])
    drafter = load(train({"train": studies}, tmp_path / "run", roomy_config, TWO_TURNS, config))
    rows = {}
    choices = {"one": {}, "scored": {"confidence": True}, "several": {"candidates": 2, "confidence": True}}
    for name, choice in choices.items():
        decode = DecodeConfig(max_new_tokens=100, batch_size=4, **choice)
        assert generate(drafter, studies, tmp_path / f"{name}.jsonl", decode, "model") == []
        rows[name] = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    speculator = Speculator(index_reports(drafter, studies))
    fast = list(decode_all(drafter, studies, speculator))
    assert [draft.text for draft in fast] == [row["prediction"] for row in rows["one"]]
    assert {row["observations"] for row in rows["one"]} >= {"Edema, Fracture"}
    assert len({row["prediction"] for row in rows["one"]}) > 2, "a model that always says the same would prove little"
    for name in rows:
        for study, row in zip(studies, rows[name], strict=True):
            assert row["observations"] == plain_answer(drafter, study)
            if name != "several":
                assert row["prediction"] == plain_answer(drafter, study, row["observations"])


def decode_all(drafter: Drafter, studies: list[Study], speculator: Speculator) -> Any:
    config = DecodeConfig(max_new_tokens=100, batch_size=4)
    return decode(drafter, drafter.encode(studies, answers=False), config, speculator=speculator)
