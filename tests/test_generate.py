"""Drafting: equal to plain transformers, resumable, and loadable without this project."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import raddraft.cli
from generator.api import report_drafts
from generator.config import DecodeConfig
from generator.controls import most_frequent, nearest_reports, shuffle_images
from generator.data import collate
from generator.generate import decode, decode_batch, generate, read_drafts
from generator.model import Drafter, load, save
from generator.prompts import PromptConfig
from generator.speculate import Speculator, index_reports
from raddraft.studies import read_studies
from tests.conftest import make_study
from tests.launch import Job, run_without_us


@pytest.fixture
def drafter(model_folder: Path) -> Drafter:
    return load(model_folder)


@pytest.fixture
def studies(studies_file: Path) -> list:
    return read_studies(studies_file)


CONFIG = DecodeConfig(max_new_tokens=40, batch_size=7)


def collate_studies(drafter: Drafter, studies: list) -> dict:
    dataset = drafter.dataset(drafter.encode(studies, answers=False))
    return collate([dataset[i] for i in range(len(dataset))], dataset.pad_id)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


PLAIN = """
import json, sys
from pathlib import Path
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder, questions, answers = sys.argv[1], Path(sys.argv[2]), []
model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
for messages, path in json.loads(questions.read_text()):
    text = processor.apply_chat_template(messages, add_generation_prompt=True)
    image = Image.open(path).convert("RGB")
    inputs = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
    tokens = model.generate(**inputs, max_new_tokens=40)[0, inputs["input_ids"].shape[1]:]
    answers.append(processor.decode(tokens, skip_special_tokens=True).strip())
questions.write_text(json.dumps(answers))
"""


def test_the_folder_drafts_the_same_text_in_plain_transformers(drafter, studies, model_folder, tmp_path) -> None:
    studies = studies[:24]
    assert generate(drafter, studies, tmp_path / "out.jsonl", CONFIG, "model") == []
    ours = [row["prediction"] for row in read(tmp_path / "out.jsonl")]
    assert len(set(ours)) > 3, "a model that always says the same would prove little"
    questions = [(drafter.prompt.messages(study), str(study.main_image.path)) for study in studies]
    exchanged = tmp_path / "questions.json"
    exchanged.write_text(json.dumps(questions))
    run_without_us(PLAIN, model_folder, exchanged)
    assert json.loads(exchanged.read_text()) == ours


def test_batches_do_not_change_the_text(drafter, studies, tmp_path) -> None:
    texts = []
    for size in (1, 7, 24):
        generate(drafter, studies[:24], tmp_path / f"{size}.jsonl", replace(CONFIG, batch_size=size), "model")
        texts.append([row["prediction"] for row in read(tmp_path / f"{size}.jsonl")])
    assert texts[0] == texts[1] == texts[2]


def test_rows_hold_reference_and_settings_in_the_order_of_the_manifest(drafter, studies, tmp_path) -> None:
    studies = studies[:24]
    del studies[2].sections["findings"]
    generate(drafter, studies, tmp_path / "out.jsonl", CONFIG, "my model")
    rows = read(tmp_path / "out.jsonl")
    assert [row["study_id"] for row in rows] == [study.study_id for study in studies]
    assert [row["subject_id"] for row in rows] == [study.subject_id for study in studies]
    assert rows[1]["reference"] == studies[1].sections["findings"]
    assert rows[2]["reference"] is None
    assert rows[0]["model"] == "my model"
    assert rows[0]["decoding"] == "greedy, 40 new tokens"


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, sample=True, temperature=1.5),
        replace(CONFIG, num_beams=3),
        replace(CONFIG, candidates=3, confidence=True),
    ],
)
def test_interrupted_and_started_again_gives_the_same_file(drafter, studies, tmp_path, config) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    generate(drafter, studies[:19], whole, config, "model")
    lines = whole.read_bytes().splitlines(keepends=True)
    for kept in (0, 1, 7, 12, 18):
        cut.write_bytes(b"".join(lines[:kept]) + lines[kept][:-9])
        generate(drafter, studies[:19], cut, config, "model")
        assert cut.read_bytes() == whole.read_bytes(), f"{kept} kept"


def test_candidates_are_those_of_transformers_from_one_pass_over_the_prompt(drafter, studies) -> None:
    config = replace(CONFIG, candidates=4, temperature=1.2)
    batch = collate_studies(drafter, studies[:6])
    widths = []
    hook = drafter.model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: widths.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    drafts = decode_batch(drafter, batch, config, number=3)
    hook.remove()
    assert widths[0] == (6, batch["input_ids"].shape[1] - 1), "the prompts are read once"
    assert set(widths[1:]) == {(24, 1)}, "after them single tokens are read"
    torch.manual_seed(3)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    tokens = drafter.model.generate(**inputs, **config.arguments(), num_return_sequences=4)
    plain = drafter.processor.batch_decode(tokens[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    assert [text for draft in drafts for text in draft.candidates] == [text.strip() for text in plain]
    assert any(len(set(draft.candidates)) > 1 for draft in drafts)


def test_rows_of_candidates(drafter, studies, tmp_path) -> None:
    generate(drafter, studies[:5], tmp_path / "out.jsonl", replace(CONFIG, candidates=3), "model")
    for row in read(tmp_path / "out.jsonl"):
        assert len(row["candidates"]) == 3
        assert row["prediction"] == row["candidates"][0]
        assert row["decoding"] == "3 candidates, sampled at temperature 0.5, top_p 1.0, seed 0, 40 new tokens"


def test_what_ended_at_the_limit_of_tokens_is_marked(drafter, studies, tmp_path) -> None:
    studies, tokenizer = studies[:24], drafter.processor.tokenizer
    generate(drafter, studies, tmp_path / "long.jsonl", CONFIG, "model")
    whole = read(tmp_path / "long.jsonl")
    assert not any(row["cut"] for row in whole)
    lengths = [len(tokenizer(row["prediction"], add_special_tokens=False)["input_ids"]) + 1 for row in whole]
    limit = sorted(lengths)[len(lengths) // 2]  # a draft of just so many tokens, its end included, is whole
    out = tmp_path / "short.jsonl"
    generate(drafter, studies, out, replace(CONFIG, max_new_tokens=limit), "model")
    assert [row["cut"] for row in read(out)] == [length > limit for length in lengths]
    assert 0 < sum(row["cut"] for row in read(out)) < len(studies)
    speculator = Speculator(index_reports(drafter, studies))
    examples = drafter.encode(studies, answers=False)
    fast = decode(drafter, examples, replace(CONFIG, max_new_tokens=limit), speculator=speculator)
    assert [draft.cut for draft in fast] == [[row["cut"]] for row in read(out)]
    generate(drafter, studies[:3], tmp_path / "several.jsonl", replace(CONFIG, candidates=3, max_new_tokens=3), "model")
    assert [(row["cut"], row["candidates_cut"]) for row in read(tmp_path / "several.jsonl")] == [(True, [True] * 3)] * 3
    told = report_drafts(read_drafts(out), ["s9: gone"], out)
    count = sum(row["cut"] for row in read(out))
    assert told == f"24 of 25 drafts are in {out}; blank: 0; cut at the limit of tokens: {count}\nno draft: s9: gone"


def test_a_file_that_does_not_say_what_was_cut_is_resumed(drafter, studies, tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    generate(drafter, studies[:8], out, CONFIG, "model")
    rows = [{key: value for key, value in row.items() if key != "cut"} for row in read(out)]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows[:7]))
    generate(drafter, studies[:8], out, CONFIG, "model")
    assert [row.get("cut") for row in read(out)] == [None] * 7 + [False]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report_drafts(read_drafts(out), [], "x") == "8 of 8 drafts are in x; blank: 0"


def test_generate_and_draft_count_blank_and_cut_drafts(model_folder, studies_file, tmp_path, capsys) -> None:
    drafter = load(model_folder)
    with torch.no_grad():
        drafter.model.lm_head.weight.zero_()  # all that it writes is token 0, which is no text
    save(drafter, tmp_path / "mute")
    arguments = ["--model", str(tmp_path / "mute"), "--studies", str(studies_file), "--decode.max_new_tokens", "4"]
    out = tmp_path / "out.jsonl"
    for _ in range(2):  # a run that resumes counts all
        assert run_action("generate", *arguments, "--out", str(out)) == 0
        assert f"8 of 8 drafts are in {out}; blank: 8; cut at the limit of tokens: 8" in capsys.readouterr().out
    picture = str(read_studies(studies_file)[0].main_image.path)
    assert run_action("draft", str(tmp_path / "mute"), picture, "--decode.max_new_tokens", "4") == 0
    assert "1 of 1 drafts are in the text above; blank: 1; cut at the limit of tokens: 1" in capsys.readouterr().out
    control = ["--model", str(model_folder), "--studies", str(studies_file), "--control", "most-frequent"]
    assert run_action("generate", *control, "--out", str(tmp_path / "control.jsonl")) == 0
    assert "control.jsonl; blank: 0\n" in capsys.readouterr().out, "what was copied was not cut"


def test_controls_of_repetition_and_length(drafter, studies) -> None:
    batch = collate_studies(drafter, studies[:4])
    tokenizer = drafter.processor.tokenizer
    for draft in decode_batch(drafter, batch, replace(CONFIG, min_new_tokens=35, no_repeat_ngram_size=2)):
        tokens = tokenizer(draft.text, add_special_tokens=False)["input_ids"]
        pairs = list(itertools.pairwise(tokens))
        assert len(pairs) == len(set(pairs))
        assert len(tokens) > 25
    assert str(replace(CONFIG, repetition_penalty=1.3)) == "greedy, 40 new tokens, repetition_penalty 1.3"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"candidates": 0}, "decode.candidates must be at least 1, got 0"),
        ({"candidates": 2, "num_beams": 2}, "decode: .*candidates=2"),
        ({"candidates": 2, "temperature": 0.0}, "decode.temperature must be above 0, got 0.0"),
        ({"temperature": 0.9}, "decode: .*temperature=0.9"),
        ({"top_p": 0.9}, "decode: .*top_p=0.9"),
        ({"seed": 7}, "decode: .*seed=7"),
        ({"repetition_penalty": 0.0}, "decode.repetition_penalty must be above 0, got 0.0"),
        ({"min_new_tokens": -1}, "decode.min_new_tokens must be at least 0, got -1"),
    ],
)
def test_impossible_decoding_is_refused_with_its_values(wrong, message) -> None:
    with pytest.raises(ValueError, match=message):
        DecodeConfig(**wrong)


def test_a_file_of_another_run_is_not_continued(drafter, studies, tmp_path) -> None:
    out = tmp_path / "out.jsonl"
    generate(drafter, studies[:3], out, CONFIG, "model")
    with pytest.raises(ValueError, match="line 1 was written with model 'model', not 'other'"):
        generate(drafter, studies, out, CONFIG, "other")
    with pytest.raises(ValueError, match="line 1 was written with decoding 'greedy, 40 new tokens', not 'greedy, 5"):
        generate(drafter, studies, out, replace(CONFIG, max_new_tokens=5), "model")
    with pytest.raises(ValueError, match="line 3: study 's2' is not among the studies to draft"):
        generate(drafter, studies[:2], out, CONFIG, "model")
    assert len(read(out)) == 3


@pytest.mark.parametrize("wrong", [{"cut": {}}, {"cut": ["a"]}, {"candidates": "x"}, {"candidates": [5]}])
def test_wrong_types_in_a_file_of_drafts_are_named(tmp_path, wrong) -> None:
    path = tmp_path / "drafts.jsonl"
    path.write_text(json.dumps({"study_id": "s1", "prediction": "Clear."} | wrong) + "\n")
    with pytest.raises(ValueError, match=rf"drafts\.jsonl line 1: {next(iter(wrong))} must be a list of type"):
        list(read_drafts(path))


@pytest.mark.parametrize("what", ["weights", "prompt", "image", "mapping"])
def test_a_draft_is_not_kept_for_what_it_was_not_made_from(drafter, studies, tmp_path, what) -> None:
    out = tmp_path / "out.jsonl"
    generate(drafter, studies[:3], out, CONFIG, "model")
    before = out.read_bytes()
    generate(drafter, studies[:3], out, CONFIG, "model")
    assert out.read_bytes() == before
    if what == "weights":
        with torch.no_grad():
            drafter.model.lm_head.weight.mul_(1.01)
    elif what == "prompt":
        studies[0].sections["indication"] = "Fall."
    elif what == "image":
        make_study(tmp_path, 40, "test").main_image.path.replace(studies[0].main_image.path)
    else:
        drafter.gray_mapping = "minmax"
    with pytest.raises(
        ValueError, match="line 1: the draft of study 's0' was made with other weights, another prompt or"
    ):
        generate(drafter, studies[:3], out, CONFIG, "model")
    assert out.read_bytes() == before


def test_one_bad_image_costs_one_draft(drafter, studies, tmp_path) -> None:
    studies = studies[:24]
    generate(drafter, studies, tmp_path / "whole.jsonl", CONFIG, "model")
    studies[9].main_image.path.write_bytes(b"")
    studies[20].main_image.path.unlink()
    errors = generate(drafter, studies, tmp_path / "out.jsonl", CONFIG, "model")
    assert [error.split(":")[0] for error in errors] == ["s9", "s20"]
    expected = [row for row in read(tmp_path / "whole.jsonl") if row["study_id"] not in ("s9", "s20")]
    assert read(tmp_path / "out.jsonl") == expected


@pytest.mark.parametrize(
    ("changes", "speculates"),
    [({}, False), ({}, True), ({"candidates": 3, "temperature": 1.0}, False), ({"num_beams": 2}, False)],
)
def test_nan_costs_the_draft_it_is_in(drafter, studies, tmp_path, changes, speculates) -> None:
    """As of weights in 16 bits that overflow; greedy drafts were blank, and sampling stopped at it."""
    config = replace(CONFIG, batch_size=4, max_new_tokens=12, **changes)
    generate(drafter, studies[:8], tmp_path / "whole.jsonl", config, "model")
    whole = {row["study_id"]: row["prediction"] for row in read(tmp_path / "whole.jsonl")}

    def spoil(_, __, logits: torch.Tensor) -> torch.Tensor:
        each = len(logits) // 4
        logits[each : 2 * each] = torch.nan  # of the second study of each batch
        return logits

    drafter.model.lm_head.register_forward_hook(spoil)
    speculator = Speculator(index_reports(drafter, studies)) if speculates else None
    errors = generate(drafter, studies[:8], tmp_path / "out.jsonl", config, "model", speculator=speculator)
    assert [error.split(":")[0] for error in errors] == [studies[1].study_id, studies[5].study_id]
    assert all("the model computed NaN in place of a draft" in error for error in errors)
    left = {row["study_id"]: row["prediction"] for row in read(tmp_path / "out.jsonl")}
    assert left.keys() == {studies[number].study_id for number in (0, 2, 3, 4, 6, 7)}
    if not changes:
        assert all(whole[name] == text for name, text in left.items())


def test_prompt_longer_than_the_context_is_named(drafter, studies, tmp_path) -> None:
    studies[4].sections["indication"] = "cough " * 300
    with pytest.raises(ValueError, match=r"Study 's4': 4 image tokens \+ \d+ of text \+ 40 for the draft exceed"):
        generate(drafter, studies, tmp_path / "out.jsonl", CONFIG, "model")


def test_model_folders_that_cannot_draft_are_refused(model_folder, tmp_path) -> None:
    with pytest.raises(ValueError, match=r"is not a model folder: it has no config\.json"):
        load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    settings = json.loads((broken / "processor_config.json").read_text())
    settings["patch_size"] = 7
    (broken / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"processor writes 16 image tokens, the tower gives 4 features .*patch_size 7"
    ):
        load(broken)
    (broken / "processor_config.json").unlink()
    with pytest.raises(ValueError, match=r"has no processor_config\.json; save the processor"):
        load(broken)


def test_without_sidecar_the_default_prompt_is_used_and_said(model_folder, tmp_path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    (copy / "raddraft.json").unlink()
    with pytest.warns(UserWarning, match="the default prompt is used"):
        assert load(copy).prompt == PromptConfig()


def test_several_processes_write_what_one_writes(model_folder, studies_file, tmp_path) -> None:
    """Killed on two processes, gone on with by two others; a picture that cannot be read is named by one of them."""
    studies = read_studies(studies_file, "train")
    studies[5].main_image.path.unlink()
    words = ["--model", model_folder, "--studies", studies_file, "--split", "train", "--decode.batch_size", "2"]
    assert run_action("generate", *map(str, words), "--out", str(tmp_path / "one.jsonl")) == 1
    one = (tmp_path / "one.jsonl").read_text()
    assert one.count("\n") == 23
    out, part = tmp_path / "two.jsonl", tmp_path / "two.jsonl.1"
    job = Job("generate", *words, "--out", out, n=2)
    while job.running and not (part.is_file() and part.read_bytes().count(b"\n")):
        time.sleep(0.002)
    job.kill()
    lines = one.splitlines(keepends=True)
    part.write_text(lines[2] + lines[3][:20])
    (tmp_path / "two.jsonl.0").write_text(lines[0])
    said = Job("generate", *words, "--out", out, n=2).finish(codes=[1, 0])
    assert "no draft: s5: " in said
    assert said.count("23 of 24 drafts are in") == 1
    assert out.read_text() == one
    assert not list(tmp_path.glob("two.jsonl.*"))


def test_shuffled_images_are_another_patients(studies) -> None:
    for study in studies[:6]:
        study.subject_id = "same"
    shuffled = shuffle_images(studies)
    owner = {study.main_image.path: study.subject_id for study in studies}
    assert all(owner[study.main_image.path] != study.subject_id for study in shuffled)
    assert [study.sections for study in shuffled] == [study.sections for study in studies]
    assert sorted(owner) == sorted(study.main_image.path for study in shuffled)
    for study in studies[6:30]:
        study.subject_id = "same"
    with pytest.raises(ValueError, match="One subject has 30 of 40 studies"):
        shuffle_images(studies)


def test_most_frequent_report(drafter, studies) -> None:
    studies[5].sections["findings"] = studies[6].sections["findings"] = "Seen thrice."
    studies[7].sections["findings"] = "Seen thrice."
    texts = [study.sections["findings"] for study in studies]
    assert texts.count(most_frequent(drafter, studies)) == max(texts.count(text) for text in texts)


def test_nearest_report_finds_the_same_picture(drafter, studies, tmp_path) -> None:
    training = studies[:20]
    queries = [replace(study, study_id=f"q{i}", subject_id=f"q{i}") for i, study in enumerate(training)]
    reports, errors = nearest_reports(drafter, training, queries, tmp_path / "features")
    assert errors == []
    assert [reports[f"q{i}"] for i in range(20)] == [study.sections["findings"] for study in training]


def test_nearest_report_is_of_another_subject(drafter, studies, tmp_path) -> None:
    for number, study in enumerate(studies[:3]):
        study.sections["findings"] = f"Report {number}."
    reports, errors = nearest_reports(drafter, studies[:3], studies[:3], tmp_path / "features")
    assert errors == []
    assert all(reports[study.study_id] != study.sections["findings"] for study in studies[:3])
    reports, errors = nearest_reports(drafter, studies[:1], studies[:2], tmp_path / "features")
    assert (reports, errors) == ({"s1": "Report 0."}, ["s0: no other subject has a report to copy"])


def run_action(action: str, *arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        raddraft.cli.run(action, [*arguments])
    return end.value.code


def test_generate_action_writes_controls(model_folder, studies_file, tmp_path, capsys) -> None:
    for control in ("none", "shuffled-images", "most-frequent", "nearest-report"):
        arguments = ["--model", str(model_folder), "--studies", str(studies_file), "--control", control]
        arguments += ["--out", str(tmp_path / f"{control}.jsonl")]
        decode = ["--decode.max_new_tokens", "30"]
        if control in ("most-frequent", "nearest-report"):
            assert "decodes nothing: leave out decode" in str(run_action("generate", *arguments, *decode))
            decode = []
        assert run_action("generate", *arguments, *decode) == 0
    rows = {path.stem: read(path) for path in tmp_path.glob("*.jsonl") if path.stem != "studies"}
    assert all(len(part) == 8 for part in rows.values())
    assert [row["reference"] for row in rows["none"]] == [row["reference"] for row in rows["nearest-report"]]
    assert len({row["prediction"] for row in rows["most-frequent"]}) == 1
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        raddraft.cli.run("generate", [*arguments, "--sources", "[nowhere]"])
    assert "no study in split 'test' of source ['nowhere']" in str(end.value.code)


def test_full_disk_keeps_what_was_written(drafter, studies, tmp_path) -> None:
    resource = pytest.importorskip("resource", reason="file size limits are a POSIX matter")
    out = tmp_path / "out.jsonl"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            generate(drafter, studies, out, CONFIG, "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert 0 < out.stat().st_size <= 3000
    generate(drafter, studies, out, CONFIG, "model")
    generate(drafter, studies, tmp_path / "whole.jsonl", CONFIG, "model")
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_inference_does_not_touch_the_weights(drafter, studies, tmp_path) -> None:
    before = {name: value.clone() for name, value in drafter.model.state_dict().items()}
    generate(drafter, studies[:3], tmp_path / "out.jsonl", CONFIG, "model")
    assert all(torch.equal(before[name], value) for name, value in drafter.model.state_dict().items())
