"""`raddraft score`: right numbers in every file it writes, and a sentence for everything that cannot be scored."""

from __future__ import annotations

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from generator.prompts import PromptConfig
from metrics.scoring import choose
from raddraft.studies import Study, StudyImage, write_studies
from tests.conftest import make_study
from tests.test_cli import files_no_larger_than, run

HERE = choose(["rouge", "bleu", "rule"])  # what runs without weights

# study -> prediction, reference, and by hand: ROUGE-L, observations missed and invented
BY_HAND = {
    "s1": ("The heart is enlarged.", "The heart is enlarged.", 1.0, "", ""),
    "s2": ("Small left pleural effusion.", "No pleural effusion.", 4 / 7, "", "Pleural Effusion"),
    "s3": ("The lungs are clear.", "Right lower lobe consolidation.", 0.0, "Consolidation", ""),
    "s4": ("", "Possible pneumonia.", 0.0, "", ""),
}
ROWS: list[dict[str, Any]] = [
    {"study_id": name, "prediction": row[0], "reference": row[1]} for name, row in BY_HAND.items()
]


@pytest.fixture(autouse=True)
def no_weights(tmp_path_factory, monkeypatch) -> None:
    """The learned metrics find nothing, whatever this machine has."""
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
    monkeypatch.setenv("RADDRAFT_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def read_scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text(encoding="utf-8"))


def test_one_file(tmp_path, capsys) -> None:
    assert run("score", write(tmp_path / "model.jsonl", ROWS)) == (0, "")
    folder = tmp_path / "scores"
    written = {"scores.json", "per_study.csv", "per_observation.csv", "report.html"}
    assert {path.name for path in folder.iterdir()} == written
    scores = read_scores(folder)
    assert scores["n"] == 4
    assert set(scores["skipped"]) == {name for name in choose(None) if name.startswith(("radgraph", "chexbert"))}
    assert not {"others", "differences", "strata"} & set(scores)
    metrics = scores["metrics"]
    assert list(metrics) == list(HERE)
    assert metrics["rouge_l"]["value"] == pytest.approx((1 + 4 / 7) / 4)
    # Cardiomegaly found, Pleural Effusion invented, Consolidation missed; No Finding missed once and invented twice,
    # in s4 beside an uncertain Pneumonia, which itself counts as negative.
    assert metrics["rule_micro_f1_5"]["value"] == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))
    assert metrics["rule_macro_f1_5"]["value"] == pytest.approx(1 / 5)
    assert metrics["rule_micro_f1_14"]["value"] == pytest.approx(2 * 1 / (2 * 1 + 5))
    assert metrics["rule_macro_f1_14"]["value"] == pytest.approx(1 / 14)
    for name, one in metrics.items():
        assert 0 <= one["low"] <= one["value"] <= one["high"] <= 1, name
        assert "|n:4|bootstrap:500 seed 0" in one["signature"], name

    with open(folder / "per_study.csv", encoding="utf-8", newline="") as file:
        table = {row["study_id"]: row for row in csv.DictReader(file)}
    assert list(table) == list(BY_HAND)
    for name, (_, _, rouge_l, missed, invented) in BY_HAND.items():
        assert float(table[name]["rouge_l"]) == pytest.approx(rouge_l, abs=1e-6)
        assert (table[name]["rule_missed"], table[name]["rule_invented"]) == (missed, invented)
        assert table[name]["system"] == "model"
    with open(folder / "per_observation.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 14, "both rules for what is uncertain"
    effusion = next(row for row in rows if row["observation"] == "Pleural Effusion")
    assert (effusion["labeler"], effusion["uncertain_as"], effusion["support"]) == ("rule", "negative", "0.0")
    pneumonia = {row["uncertain_as"]: row["support"] for row in rows if row["observation"] == "Pneumonia"}
    assert pneumonia == {"negative": "0.0", "positive": "1.0"}

    shown, page = capsys.readouterr().out, (folder / "report.html").read_text(encoding="utf-8")
    low, high = metrics["rouge_l"]["low"], metrics["rouge_l"]["high"]
    assert f"rouge_l           0.393 [{low:.3f} {high:.3f}]" in shown
    assert shown.count("skipped ") == 1
    assert "skipped radgraph, chexbert: weights are missing; `raddraft weights` tells which, where" in shown
    assert "raddraft weights --fetch radgraph" in scores["skipped"]["radgraph_er"], "the whole reason"
    assert str(folder / "report.html") in shown
    assert "Drafts by model" in page
    assert "data:image" not in page
    for part in ("0.393", f"{low:.3f}", f"{high:.3f}", "Small left pleural effusion.", "Possible pneumonia."):
        assert part in page


def test_bleu_is_sacrebleus(tmp_path) -> None:
    from sacrebleu.metrics import BLEU

    run("score", write(tmp_path / "model.jsonl", ROWS))
    drafts, references = [row["prediction"] for row in ROWS], [row["reference"] for row in ROWS]
    for order in (1, 2, 3, 4):
        expected = BLEU(max_ngram_order=order, smooth_method="none").corpus_score(drafts, [references]).score / 100
        assert read_scores(tmp_path / "scores")["metrics"][f"bleu_{order}"]["value"] == pytest.approx(expected)


def test_several_files_stand_side_by_side_whatever_their_order(tmp_path, capsys) -> None:
    model = write(tmp_path / "model.jsonl", ROWS)
    # Another system's file: other order, no "model", keys of its own, and one study that has no reference anywhere.
    other = [row | {"candidates": ["a", "b"], "score": 0.3} for row in reversed(ROWS)]
    other += [{"study_id": "s9", "prediction": "Normal."}]
    perfect = [row | {"prediction": row["reference"], "model": "copy"} for row in ROWS]
    files = (model, write(tmp_path / "other.jsonl", other), write(tmp_path / "perfect.jsonl", perfect))
    assert run("score", *files, "--out", tmp_path / "side", "--title", "Three systems") == (0, "")
    scores = read_scores(tmp_path / "side")
    assert list(scores["others"]) == ["other", "perfect"]
    assert scores["others"]["other"]["metrics"] == scores["metrics"], "the same drafts on the same resamples"
    best = scores["others"]["perfect"]["metrics"]
    assert best["rouge_l"]["value"] == best["rouge_l"]["low"] == 1.0
    assert best["bleu_4"]["value"] == pytest.approx(1.0)
    assert best["rule_micro_f1_14"]["value"] == 1.0
    shown, page = capsys.readouterr().out, (tmp_path / "side" / "report.html").read_text(encoding="utf-8")
    assert "other.jsonl: 1 predictions without a reference are left out" in shown
    header = next(line for line in shown.splitlines() if "(n = " in line)
    assert header.split("(n = 4)") == [f"{'':18}{'model ':>12}", f"{'other ':>22}", f"{'perfect ':>22}", ""]
    assert "p 1.000" in shown
    assert "p: of the difference to model, by swapping both at random study by study" in shown
    difference = scores["differences"]["perfect"]["rouge_l"]
    assert difference["value"] == pytest.approx((1 + 4 / 7) / 4 - 1)
    assert difference["low"] < difference["value"] < difference["high"]
    assert difference["p"] == 2 / 2**3, "three of the four differ"
    assert "1.000 [1.000 1.000]" in shown
    assert "Three systems" in page
    assert len((tmp_path / "side" / "per_study.csv").read_text().splitlines()) == 1 + 3 * 4
    assert not (tmp_path / "scores").exists()


def test_studies_bring_their_images_into_the_page(tmp_path) -> None:
    studies = [make_study(tmp_path, i, "test") for i in (1, 2)]
    studies[1].images[0].path.write_bytes(b"broken")
    studies.append(Study("s8", "p8", "test", [StudyImage(tmp_path / "1.png")]))  # has no draft
    write_studies(tmp_path / "studies.jsonl", studies)
    model = write(tmp_path / "model.jsonl", ROWS)
    assert run("score", model, "--studies", tmp_path / "studies.jsonl") == (0, "")
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 1, "s1; s2 cannot be read, s3 and s4 are not in the manifest"
    assert "on synthetic data" not in page
    write_studies(
        tmp_path / "phantoms.jsonl", [Study("s1", "p1", "test", [StudyImage(tmp_path / "1.png")], source="phantom")]
    )
    assert run("score", model, "--studies", tmp_path / "phantoms.jsonl", "--out", tmp_path / "phantoms") == (0, "")
    assert "Drafts by model, on synthetic data" in (tmp_path / "phantoms" / "report.html").read_text(encoding="utf-8")


def changed(number: int, **keys: object) -> list[dict]:
    """The rows, one of them with other keys; None takes a key away."""
    rows = [dict(row) for row in ROWS]
    rows[number] |= keys
    rows[number] = {key: value for key, value in rows[number].items() if value is not None}
    return rows


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (changed(1, prediction=None), "model.jsonl line 2: key 'prediction' is missing"),
        (changed(1, study_id=None), "model.jsonl line 2: key 'study_id' is missing"),
        (changed(2, study_id=3), "model.jsonl line 3: study_id must be a string, got 3"),
        (changed(2, study_id=" "), "model.jsonl line 3: study_id must not be blank"),
        (changed(2, subject_id={}), "study 's3': subject_id must be a string or a number, got {}"),
        (changed(2, reference=["x"]), "model.jsonl line 3: reference must be a string or null, got ['x']"),
        (changed(3, study_id="s1"), "model.jsonl line 4: duplicate study_id 's1', first on line 1"),
        ([row | {"reference": None} for row in ROWS], "model.jsonl: no prediction with a reference (4 without)"),
        ([], "model.jsonl is empty"),
    ],
)
def test_faulty_predictions_are_named_by_line(tmp_path, rows, sentence) -> None:
    status, message = run("score", write(tmp_path / "model.jsonl", rows))
    assert status == 1
    assert message.startswith("raddraft score: ")
    assert message.endswith(sentence)
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(
    ("line", "culprit"),
    [
        (b'{"study_id": "s9", "predic', "Unterminated string"),
        (b'["s9", "x", "y"]', "expected an object, got list"),
        ('{"study_id": "s9", "prediction": "Herz vergrößert", "reference": "x"}'.encode("latin-1"), "'utf-8' codec"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, culprit) -> None:
    model = write(tmp_path / "model.jsonl", ROWS)
    with open(model, "ab") as file:
        file.write(b"\n" + line)
    status, message = run("score", model)
    assert status == 1
    assert "raddraft score: model.jsonl line 6: " in message
    assert culprit in message


@pytest.mark.parametrize("targets", [("findings",), ("findings", "impression")])
def test_references_that_stand_in_train_are_counted(tmp_path, capsys, targets) -> None:
    texts = [("Clear lungs.", "Normal."), ("clear lungs", "Normal"), ("Clear lungs.", "Edema."), ("Edema.", "Normal.")]
    studies = [
        Study(f"s{i}", f"s{i}", "test" if i else "train", [StudyImage(tmp_path / f"{i}.png", "PA")])
        for i in range(len(texts))
    ]
    for study, (findings, impression) in zip(studies, texts, strict=True):
        study.sections = {"findings": findings, "impression": impression}
        study.extra, study.source = {"unknown_patient": True}, "iu-xray"
    write_studies(tmp_path / "studies.jsonl", studies)
    rows = [
        {"study_id": study.study_id, "prediction": "Clear.", "reference": PromptConfig(targets=targets).answer(study)}
        for study in studies[1:]
    ]
    predictions = write(tmp_path / "model.jsonl", rows)
    arguments = ["--studies", tmp_path / "studies.jsonl", "--metrics", "rouge_l"]
    assert run("score", predictions, *arguments) == (0, "")
    count = {1: 2, 2: 1}[len(targets)]
    told = [
        "the patients of 3 of 3 studies are not known; train may hold others of theirs",
        f"{count} of 3 references ({count / 3:.0%}) stand in the manifest's train split word for word",
    ]
    assert read_scores(tmp_path / "scores")["warnings"][-2:] == told
    printed, page = capsys.readouterr().out, (tmp_path / "scores" / "report.html").read_text()
    assert all(f"warning: {one}" in printed for one in told)
    assert all(one in html.unescape(page) for one in told)


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path) -> None:
    model = write(tmp_path / "model.jsonl", ROWS)
    model.write_bytes(b"\xef\xbb\xbf" + model.read_bytes().replace(b"\n", b"\r\n"))
    assert run("score", model) == (0, "")
    assert read_scores(tmp_path / "scores")["n"] == 4


def test_systems_are_compared_on_the_studies_that_all_hold(tmp_path, capsys) -> None:
    model, fewer = write(tmp_path / "model.jsonl", ROWS), write(tmp_path / "fewer.jsonl", ROWS[1:3])
    assert run("score", model, fewer) == (0, "")
    assert "model: 2 studies that not every system has are left out (s1, s4)" in capsys.readouterr().out
    assert read_scores(tmp_path / "scores")["n"] == 2
    assert run("score", fewer) == (0, "")
    alone = read_scores(tmp_path / "scores")
    assert run("score", fewer, model) == (0, "")
    assert read_scores(tmp_path / "scores")["metrics"] == alone["metrics"]
    other = write(tmp_path / "other.jsonl", changed(0, study_id="x")[:1])
    expected = "raddraft score: No study is in all of model, other: do they come from the same split?"
    assert run("score", model, other) == (1, expected)


def test_systems_must_hold_the_same_references(tmp_path) -> None:
    model = write(tmp_path / "model.jsonl", ROWS)
    differing = write(tmp_path / "differing.jsonl", changed(1, reference="No effusion."))
    expected = "raddraft score: The references of study 's2' differ between model and differing"
    assert run("score", model, differing) == (1, expected)
    (tmp_path / "b").mkdir()
    same_name = write(tmp_path / "b" / "model.jsonl", ROWS)
    expected = "raddraft score: Two files are named 'model'; systems are told apart by file name"
    assert run("score", model, same_name) == (1, expected)


def test_metrics_are_chosen_by_name_in_any_spelling_of_a_list(tmp_path, capsys) -> None:
    model = write(tmp_path / "model.jsonl", ROWS)
    for words in (("bleu_2", "rouge_l"), ("[bleu_2, rouge_l]",), ('["bleu_2", "rouge_l"]',)):
        assert run("score", "--predictions", model, "--metrics", *words) == (0, "")
        assert list(read_scores(tmp_path / "scores")["metrics"]) == ["bleu_2", "rouge_l"]
        assert "bleu_1" not in capsys.readouterr().out
    assert run("score", model, "--metrics", "rule_micro_f1_5") == (0, "")
    assert list(read_scores(tmp_path / "scores")["metrics"]) == ["rule_micro_f1_5"]


@pytest.mark.parametrize(
    ("options", "culprits"),
    [
        (("--metrics", "rouge_l", "rouge_2"), ("Unknown metric 'rouge_2'", "Choices: rouge_l, bleu_1")),
        (("--metrics", "rouge-l"), ("Unknown metric 'rouge-l'", "; all. Did you mean rouge_l?")),
        (("--metrics", "BLEU4", "ROUGE-L"), ("Unknown metric 'BLEU4'", "Did you mean bleu_4 ")),
        (("--metrics", "RadGraph"), ("Unknown metric 'RadGraph'", "Did you mean radgraph?")),
        (("--by", "edema"), ("Unknown --by 'edema'. Choices: view", "Did you mean Edema?")),
        (("--by", "pleural-effusion"), ("Unknown --by 'pleural-effusion'", "Did you mean Pleural Effusion?")),
        (("--by", "View"), ("Unknown --by 'View'", "Did you mean view?")),
        (("--rank-by", "bleu_4"), ("'bleu_4' is not a score of single studies. Choices: rouge_l",)),
        (("--rank-by", "rouge"), ("'rouge' is not among the metrics to compute: rouge_l, bleu_1",)),
        (("--by", "sex"), ("--by sex needs the manifest",)),
        (("--by", "Oedema"), ("Unknown --by 'Oedema'. Choices: view, sex, age, normal, Enlarged",)),
        (("--references", "nowhere.txt"), ("nowhere.txt",)),
        (("--metrics", "[]"), ("No metric to score by", "Choices: rouge_l, bleu_1")),
        (("--studies", "nowhere.jsonl"), ("nowhere.jsonl",)),
    ],
)
def test_options_that_make_no_sense_are_refused_before_anything_is_written(tmp_path, options, culprits) -> None:
    status, message = run("score", write(tmp_path / "model.jsonl", ROWS), *options)
    assert status == 1
    assert all(culprit in message for culprit in culprits)
    assert not (tmp_path / "scores").exists()


@pytest.mark.parametrize(("option", "value", "least"), [("--resamples", 0, 1), ("--seed", -1, 0)])
def test_numbers_out_of_range_are_refused_as_usage(tmp_path, capsys, option, value, least) -> None:
    status, _ = run("score", write(tmp_path / "model.jsonl", ROWS), option, value)
    assert status == 2
    assert f"{option} must be at least {least}, got {value}" in capsys.readouterr().err
    assert not (tmp_path / "scores").exists()


def test_a_metric_asked_for_by_name_that_cannot_run_is_an_error(tmp_path) -> None:
    for name in ("radgraph_er", "chexbert", "chexbert_macro_f1_14_plus", "bertscore_f1"):
        status, message = run("score", write(tmp_path / "model.jsonl", ROWS), "--metrics", "rouge_l", name)
        assert status == 1
        assert f"{name.partition('_')[0]} is missing" in message
        assert "raddraft weights --fetch" in message


@pytest.mark.parametrize("age", ["-nan", "inf", -1, [63], {}, "old", True, 411, 10**400])
def test_an_age_that_is_no_number_of_years_is_in_no_stratum(tmp_path, age) -> None:
    study = make_study(tmp_path, 1, "test")
    study.patient["age"] = age
    write_studies(tmp_path / "studies.jsonl", [study])
    model = write(tmp_path / "model.jsonl", ROWS[:1])
    status, message = run("score", model, "--studies", tmp_path / "studies.jsonl", "--by", "age", "--metrics", "rouge")
    assert (status, message) == (1, f"raddraft score: Study 's1': age must be a number of years, got {age!r}")


def test_strata(tmp_path, capsys) -> None:
    studies = [make_study(tmp_path, i, "test") for i in (1, 2, 3)]
    for study, sex, age in zip(studies, ("F", "M", None), (17, 80, 40.5), strict=True):
        study.patient.update({"sex": sex, "age": age})
    studies[0].labels["Edema"], studies[1].labels["Edema"] = 1, -1
    write_studies(tmp_path / "studies.jsonl", studies)
    model = write(tmp_path / "model.jsonl", ROWS)
    perfect = write(tmp_path / "perfect.jsonl", [row | {"prediction": row["reference"]} for row in ROWS])
    by = ("view", "sex", "age", "normal", "Edema", "Consolidation")
    assert run("score", model, perfect, "--studies", tmp_path / "studies.jsonl", "--by", *by) == (0, "")
    strata = read_scores(tmp_path / "scores")["strata"]
    counts = {name: {group: one["n"] for group, one in groups.items()} for name, groups in strata.items()}
    assert counts == {
        "view": {"PA": 3, "not stated": 1},
        "sex": {"F": 1, "M": 1, "not stated": 2},
        "age": {"0–17": 1, "40–59": 1, "80+": 1, "not stated": 1},
        "normal": {"abnormal": 3, "normal": 1},
        "Edema": {"not mentioned": 2, "positive": 1, "uncertain": 1},  # the manifest knows this label
        "Consolidation": {"not mentioned": 3, "positive": 1},  # the rules read this one
    }
    one = strata["sex"]["M"]  # s2 alone
    assert one["metrics"]["rouge_l"]["value"] == one["metrics"]["rouge_l"]["low"] == pytest.approx(4 / 7)
    assert one["others"]["perfect"]["metrics"]["rouge_l"]["value"] == 1
    assert one["differences"]["perfect"]["rouge_l"]["value"] == pytest.approx(4 / 7 - 1)
    assert "|n:1|" in one["metrics"]["rouge_l"]["signature"]
    shown, page = capsys.readouterr().out, (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert "model by age" in shown
    assert "0–17 (n = 1)" in shown
    assert "not stated" in page


def test_ages_that_are_no_number_and_studies_the_manifest_lacks_are_named(tmp_path, capsys) -> None:
    studies = [make_study(tmp_path, i, "test") for i in (1, 2)]
    for study, age in zip(studies, (float("nan"), 30), strict=True):
        study.patient["age"] = age
    manifest, model = tmp_path / "studies.jsonl", write(tmp_path / "model.jsonl", ROWS)
    write_studies(manifest, studies)
    assert run("score", model, "--studies", manifest, "--by", "age") == (0, "")
    assert set(read_scores(tmp_path / "scores")["strata"]["age"]) == {"18–39", "not stated"}
    assert f"2 of 4 studies are not in {manifest}" in capsys.readouterr().out
    studies[1].patient["age"] = "045Y"
    write_studies(manifest, studies)
    assert (
        "Study 's2': age must be a number of years, got '045Y'"
        in run("score", model, "--studies", manifest, "--by", "age")[1]
    )


def test_plain_text_and_tables(tmp_path) -> None:
    for name, key in (("drafts.txt", "prediction"), ("reports.txt", "reference")):
        (tmp_path / name).write_text("".join(f"{row[key]}\n" for row in ROWS))
    assert run("score", tmp_path / "drafts.txt", "--references", tmp_path / "reports.txt") == (0, "")
    from_text = read_scores(tmp_path / "scores")
    assert run("score", write(tmp_path / "model.jsonl", ROWS)) == (0, "")
    assert read_scores(tmp_path / "scores") == from_text


def test_a_table_of_drafts_with_references_needs_nothing_else(tmp_path) -> None:
    with open(tmp_path / "drafts.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["study_id", "prediction", "reference"])
        writer.writeheader()
        writer.writerows(ROWS)
    assert run("score", tmp_path / "drafts.csv") == (0, "")
    from_table = read_scores(tmp_path / "scores")
    assert run("score", write(tmp_path / "drafts.jsonl", ROWS)) == (0, "")
    assert read_scores(tmp_path / "scores") == from_table


def test_two_columns_of_one_name_are_refused(tmp_path) -> None:
    (tmp_path / "drafts.csv").write_text("study_id,prediction,reference,prediction\ns1,Clear.,Clear.,Edema.\n")
    status, message = run("score", tmp_path / "drafts.csv")
    assert status == 1
    assert "drafts.csv: two columns are named 'prediction'; rename or remove one" in message


def test_blank_drafts_score_nothing_and_do_not_stop(tmp_path) -> None:
    rows = [row | {"prediction": blank} for row, blank in zip(ROWS, ("", " ", "\n", "-"), strict=True)]
    assert run("score", write(tmp_path / "model.jsonl", rows)) == (0, "")
    metrics = read_scores(tmp_path / "scores")["metrics"]
    for name in ("rouge_l", "bleu_1", "bleu_4", "rule_macro_f1_5"):
        assert (metrics[name]["value"], metrics[name]["low"], metrics[name]["high"]) == (0, 0, 0)


@pytest.mark.parametrize(("cases", "shown"), [(36, 9), (9, 9), (4, 4), (2, 2), (1, 1), (0, 0)])
def test_the_page_shows_the_worst_the_best_and_some_between(tmp_path, cases, shown) -> None:
    """Study i shares i of 9 words with its reference."""
    words = "heart lung rib spine hilum apex base pleura vessel".split()  # noqa: SIM905
    rows = [
        {"study_id": f"study-{i}", "prediction": " ".join(words[:i] + ["x"] * (9 - i)), "reference": " ".join(words)}
        for i in (4, 0, 7, 2, 8, 5, 1, 3, 6)
    ]
    assert run("score", write(tmp_path / "model.jsonl", rows), "--cases", cases) == (0, "")
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    found = [int(number) for number in re.findall(r"<h3>study-(\d)</h3>", page)]
    assert len(found) == len(set(found)) == shown
    ends = shown // 3
    assert found[:ends] == list(range(ends)), "the worst first"
    assert found[ends : 2 * ends] == list(range(8, 8 - ends, -1))
    assert found[2 * ends :] == sorted(found[2 * ends :])
    assert ("Worst" in page) == (ends > 0)


def test_letters_of_every_language_reach_the_page(tmp_path) -> None:
    texts = [
        "Das Herz ist vergrößert.",
        "Сердце увеличено.",
        "心臓は拡大している。",
        "القلب متضخم",
        "half a pair \ud83d",
    ]
    rows = [{"study_id": f"Fuß {i}", "prediction": text, "reference": text} for i, text in enumerate(texts)]
    model = tmp_path / "моя модель.jsonl"
    model.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    assert run("score", model) == (0, "")
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert all(text in page for text in (*texts[:4], "half a pair ?", "Fuß 3", "моя модель"))
    assert "Fuß 2,моя модель,0.000000" in (tmp_path / "scores" / "per_study.csv").read_text(encoding="utf-8"), (
        "no Latin letter"
    )
    assert read_scores(tmp_path / "scores")["metrics"]["bleu_1"]["value"] == pytest.approx(1.0)


def test_a_full_disk_is_one_sentence_and_leaves_whole_files_only(tmp_path, capsys) -> None:
    model = write(tmp_path / "model.jsonl", ROWS)
    assert run("score", model) == (0, "")
    before = {path.name: path.read_bytes() for path in (tmp_path / "scores").iterdir()}
    with files_no_larger_than(1000):
        full = f"raddraft score: {tmp_path / 'scores' / 'scores.json'}: File too large"
        assert run("score", model, "--resamples", 20) == (1, full)
        assert run("score", model, "--out", tmp_path / "new")[0] == 1
    assert {path.name: path.read_bytes() for path in (tmp_path / "scores").iterdir()} == before
    assert list((tmp_path / "new").iterdir()) == []


def test_an_output_folder_that_is_a_file_is_named(tmp_path) -> None:
    model = write(tmp_path / "model.jsonl", ROWS)
    status, message = run("score", model, "--out", model)
    assert status == 1
    assert str(model) in message
    assert len(model.read_text().splitlines()) == 4


def test_no_cell_is_a_formula_and_ids_come_back(tmp_path) -> None:
    ids = ["=HYPERLINK(1)", "+1 x", "-x", "@a", "\tb", "s-1"]
    rows = [{"study_id": name, "prediction": "Clear.", "reference": "Clear."} for name in ids]
    drafts = write(tmp_path / "=model.jsonl", rows)
    assert run("score", drafts, "--metrics", "rouge", "--resamples", 20) == (0, "")
    with open(tmp_path / "scores" / "per_study.csv", encoding="utf-8", newline="") as file:
        table = list(csv.reader(file))
    assert [row[:2] for row in table[1:]] == [[f"'{name}", "'=model"] for name in ids[:-1]] + [["s-1", "'=model"]]
    assert [float(row[2]) for row in table[1:]] == [1.0] * 6
    with open(tmp_path / "mine.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["study_id", "system", "mine"], *([*row[:2], -0.5] for row in table[1:])])
    assert run("score", drafts, "--metrics", "rouge", "--resamples", 20, "--extra", tmp_path / "mine.csv") == (0, "")
    assert read_scores(tmp_path / "scores")["metrics"]["mine"]["value"] == -0.5
    with open(tmp_path / "scores" / "per_study.csv", encoding="utf-8", newline="") as file:
        assert {row["mine"] for row in csv.DictReader(file)} == {"-0.500000"}  # a number, not a formula
