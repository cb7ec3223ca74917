"""metrics/caveats.py: scores of texts that metrics cannot read, and of blank, equal or cut drafts, come with a word."""

from __future__ import annotations

import csv
import json
import random
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu

import raddraft
from generator.confidence import agreement
from generator.consensus import choose, choose_in_file
from generator.prompts import PromptConfig
from metrics import extras
from metrics.caveats import alike, unreadable
from metrics.evaluate_metrics import load
from metrics.read import Prediction
from metrics.scoring import measure
from metrics.systems import score_systems
from metrics.text import bleu, check_texts, rouge_l
from raddraft.errors import RadDraftError
from raddraft.studies import Study, StudyImage
from tests.conftest import SENTENCES
from tests.test_cli import run

# Language -> reports; what rouge_l cannot read of them, and whether there are no blanks between words.
LANGUAGES: dict[str, tuple[list[str], bool, bool]] = {
    "German": (
        ["Kein Erguß. Das Herz ist vergrößert.", "Kein Nachweis von Infiltraten, kein Pneumothorax."],
        True,
        False,
    ),
    "French": (
        ["Pas de pneumothorax ni d'épanchement.", "Opacité du lobe inférieur, silhouette agrandie."],
        True,
        False,
    ),
    "Spanish": (["Sin derrame pleural. No hay neumotórax.", "Silueta cardíaca de tamaño normal."], True, False),
    "Portuguese": (["Sem derrame pleural. Área cardíaca normal.", "Não há consolidações."], True, False),
    "Italian": (["Non versamento pleurico. Ombra cardiaca nei limiti.", "Edema polmonare in atto."], False, False),
    "Dutch": (
        ["Geen pleuravocht of infiltraat.", "Geen longstuwing zoals die zichtbaar was in het vorige onderzoek"],
        False,
        False,
    ),
    "Polish": (["Bez cech płynu w jamach opłucnowych.", "Serce niepowiększone."], True, False),
    "Vietnamese": (["Bóng tim không to.", "Không thấy tràn dịch màng phổi."], True, False),
    "Russian": (["Сердце увеличено.", "Плевральный выпот слева."], True, False),
    "Arabic": (["القلب متضخم.", "لا يوجد انصباب جنبي."], True, False),
    "Hindi": (["हृदय का आकार सामान्य है।", "फुफ्फुस बहाव नहीं।"], True, False),
    "Korean": (["심장 비대.", "흉수 없음."], True, False),
    "Chinese": (["心影增大。双侧胸腔积液。", "两肺纹理清晰,未见明显实变影。"], True, True),
    "Japanese": (["心拡大を認める。", "胸水なし。"], True, True),
    "Thai": (["หัวใจโต", "ไม่มีน้ำในเยื่อหุ้มปอด"], True, True),
}
HERE = ["rouge", "bleu", "rule"]


@pytest.fixture(autouse=True)
def no_weights(tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path_factory.mktemp("weights")))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))


def write(path: Path, drafts: list[str], references: list[str], **keys: list) -> Path:
    rows = [
        {"study_id": f"s{i}", "prediction": ours, "reference": theirs}
        | {key: values[i] for key, values in keys.items()}
        for i, (ours, theirs) in enumerate(zip(drafts, references, strict=True))
    ]
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def different(n: int, seed: int = 0) -> list[str]:
    """English reports that differ from each other."""
    generator = random.Random(seed)
    return [f"{' '.join(generator.choices(SENTENCES[:6], k=3))} The nodule has {i} mm." for i in range(n)]


# Texts that cannot be read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("language", LANGUAGES)
def test_reports_in_other_languages_are_told_by_their_share(language) -> None:
    texts, broken, unspaced = LANGUAGES[language]
    with pytest.warns(UserWarning, match="hardly an English word|letters") as caught:
        scores = raddraft.score(texts, texts, [*HERE, "unicode", "char"], resamples=10)
    told = scores["warnings"]
    assert [str(one.message) for one in caught] == told
    assert [any(one.startswith("rouge_l keeps") for one in told), any("bleu_1 and the" in one for one in told)] == [
        broken,
        unspaced,
    ]
    assert "rule can read English only, and 100.0 % of the drafts and 100.0 % of the references hold hardly" in told[-1]
    assert scores["unreadable"]["drafts"] == scores["unreadable"]["references"]
    for name in ("rouge_l_unicode", "bleu_1_unicode", "rouge_l_char", "bleu_4_char"):
        assert scores["metrics"][name]["value"] == pytest.approx(1.0), name


@pytest.mark.filterwarnings("error")
def test_english_reports_are_not_warned_of() -> None:
    texts = different(20)
    assert raddraft.score(texts, different(20, 1), HERE, resamples=10)["warnings"] == []
    few = ["Normal.", "Cardiomegaly.", "XXXX", "The lungs are clear.", "12 ___ mm", "No acute disease"]
    assert unreadable(few)["reports"] == 0
    assert unreadable([]) == unreadable(["", " \n"]) == {"words": 0, "unspaced": 0, "reports": 0}


@pytest.mark.filterwarnings("error")
def test_real_english_reports_are_not_warned_of(cxr: Path) -> None:
    with open(cxr / "iu" / "indiana_reports.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for section in ("findings", "impression"):
        texts = [row[section] for row in rows if row[section].strip()]
        shares = unreadable(texts)
        assert shares["words"] < 0.001
        assert shares["reports"] < 0.005
        for at in range(0, len(texts), 400):
            part = texts[at : at + 200]
            measure(part, part[::-1], HERE)
    lines = (cxr / "studies.jsonl").read_text(encoding="utf-8").splitlines()
    notes = [json.loads(line)["sections"].get("note") for line in lines]
    assert unreadable([note for note in notes if note])["reports"] < 0.02


def test_shares_are_measured_on_each_side() -> None:
    english, chinese = different(3), LANGUAGES["Chinese"][0][:1]
    assert unreadable([*english, *chinese, ""])["reports"] == 0.25
    assert unreadable(["aé b", "cd"])["words"] == pytest.approx(1 / 3)
    assert unreadable(["Kein Erguß."])["words"] == 1 / 2
    assert unreadable(["心a", "é"])["unspaced"] == pytest.approx(1 / 3)
    with pytest.warns(UserWarning, match=r"and 0\.0 % of the drafts and 25\.0 % of the references hold hardly"):
        measure(different(4), [*english, *chinese], ["rule"])


@pytest.mark.filterwarnings("error")
def test_only_metrics_that_cannot_read_are_told_of() -> None:
    texts = LANGUAGES["Japanese"][0]
    measure(texts, texts, ["unicode", "char"])
    measure(LANGUAGES["German"][0], LANGUAGES["German"][0], ["bleu", "coco"])
    measure(LANGUAGES["Italian"][0], LANGUAGES["Italian"][0], ["rouge"])


def test_the_table_the_page_and_the_files_say_so(tmp_path, capsys) -> None:
    texts = LANGUAGES["Russian"][0]
    model, other = write(tmp_path / "model.jsonl", texts, texts), write(tmp_path / "other.jsonl", different(2), texts)
    assert run("score", model, other, "--by", "normal", "Edema", "--metrics", "rouge_l", "rule_micro_f1_14") == (0, "")
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert scores["unreadable"]["drafts"]["reports"] == scores["unreadable"]["references"]["reports"] == 1
    assert scores["others"]["other"]["unreadable"]["drafts"] == {"words": 0, "unspaced": 0, "reports": 0}
    assert scores["strata"]["normal"]["normal"]["unreadable"]["references"]["reports"] == 1
    shown, page = capsys.readouterr().out, (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    sentence = (
        "rule can read English only, and 100.0 % of the drafts of model and 0.0 % of the drafts of other and 100.0 % "
        "of the references hold hardly an English word: their scores are void, as are observations and strata by the "
        "rules"
    )
    assert len(scores["warnings"]) == 2
    assert sentence == scores["warnings"][1]
    for one in scores["warnings"]:
        assert f"warning: {one}\n" in shown
        assert f"{one}." in page
    assert run("score", write(tmp_path / "english.jsonl", different(9), different(9, 1)), "--out", tmp_path / "e") == (
        0,
        "",
    )
    assert "warning" not in capsys.readouterr().out
    assert "Warning." not in (tmp_path / "e" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("language", ["French", "Chinese", "Arabic"])
def test_consensus_tells_of_candidates_that_utilities_cannot_read(language) -> None:
    texts = LANGUAGES[language][0]
    with pytest.warns(UserWarning, match=r"rule can read English only, and 100\.0 % of the candidates hold hardly"):
        choose([texts, texts[::-1]], ["rule_micro_f1_14"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose([texts, texts[::-1]], ["rouge_l_char"])
        choose([SENTENCES[:3], SENTENCES[:1] * 5], ["rouge_l", "rule_micro_f1_14"])
    with pytest.raises(RadDraftError, match="Study 1 of 2: expected a list of candidates, got 'No edema"):
        choose(["No edema.", "Edema."], ["rouge_l"])
    with pytest.raises(RadDraftError, match="Did you mean rouge_l"):
        choose([texts], ["rouge-l"])


def test_confidence_compares_sentences_that_the_rules_cannot_read_word_for_word() -> None:
    """By the rules both of these state a pneumothorax."""
    with pytest.warns(UserWarning, match="confidence: most candidates of a study hold hardly an English word"):
        assert agreement("Pas de pneumothorax.", ["Pneumothorax gauche.", "Pas de pneumothorax."]) == [0.5]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert agreement("There is a left pneumothorax.", ["A small left pneumothorax.", "The heart is large."]) == [
            0.5
        ]


@pytest.mark.parametrize("language", ["Spanish", "Russian", "Korean"])
def test_observations_of_reports_that_the_rules_cannot_read_are_told_of(language, tower_folder, lm_folder) -> None:
    from generator.config import ModelConfig
    from generator.model import Drafter, build

    drafter = Drafter(*build(ModelConfig(str(tower_folder), str(lm_folder))), PromptConfig(findings_first=True))
    drafter.model.config.text_config.max_position_embeddings = 4096
    image = [StudyImage(Path("x.png"), "PA")]

    def studies(texts: list[str], **labels: int) -> list[Study]:
        return [Study(f"s{i}", f"p{i}", "train", image, {"findings": one}, labels) for i, one in enumerate(texts)]

    with pytest.warns(UserWarning, match=r"prompt\.findings_first: 100\.0 % of 2 reports without labels hold hardly"):
        drafter.encode(studies(LANGUAGES[language][0]), answers=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drafter.encode(studies(LANGUAGES[language][0]), answers=False)
        drafter.encode(studies(LANGUAGES[language][0], Edema=1), answers=True)
        drafter.encode(studies(SENTENCES), answers=True)


# Metrics for other languages ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("unit", "name"), [("unicode", "intl"), ("char", "char")])
def test_bleu_is_sacrebleus(unit, name) -> None:
    generator = random.Random(0)
    words = [word for texts, *_ in LANGUAGES.values() for text in texts for word in text.split()]
    words += ["1.5", "2,000", "(stable)", "-", "No.", "x\n", "½", "é"]
    drafts, references = ([" ".join(generator.choices(words, k=12)) for _ in range(60)] for _ in range(2))
    references = [f"{a[:30]} {b}" for a, b in zip(drafts, references, strict=True)]
    for order, ours in bleu(drafts, references, unit=unit).items():  # type: ignore[arg-type]
        package = sacrebleu.BLEU(max_ngram_order=order, smooth_method="none", tokenize=name)
        assert ours.value == pytest.approx(package.corpus_score(drafts, [references]).score / 100, abs=1e-9)
        assert f"|tok:{name}|" in ours.signature
        assert 0 < ours.value < 1


def test_rouge_l_on_words_of_any_alphabet_and_on_characters() -> None:
    assert rouge_l(["心影增大"], ["心影不大"], unit="char").value == pytest.approx(3 / 4)
    assert rouge_l(["心影增大。"], ["心影增大"], unit="unicode").value == 1
    assert rouge_l(["Das Herz ist GRÖSSER"], ["das herz: größer!"], unit="unicode").value == pytest.approx(4 / 7)
    assert rouge_l(["Das Herz ist BREIT"], ["das herz: (breit)"], unit="unicode").value == pytest.approx(6 / 7)
    assert rouge_l(["e\u0301"], ["\u00e9"], unit="unicode").value == 1, "however it is composed"
    assert rouge_l(["हृदय सामान्य"], ["हृदय बड़ा"], unit="unicode").value == pytest.approx(1 / 2)
    english = different(30), different(30, 1)
    assert rouge_l(*english, unit="unicode").value == rouge_l(*english).value
    signatures = {rouge_l(*english, unit=unit).signature for unit in ("usual", "unicode", "char")}  # type: ignore[arg-type]
    assert len(signatures) == 3


# What is no list of texts ---------------------------------------------------------------------------------------------

FUNCTIONS: dict[str, Any] = {
    "raddraft.score": raddraft.score,
    "measure": measure,
    "rouge_l": rouge_l,
    "bleu": bleu,
    "coco": extras.coco,
    "sentence_bleu": extras.sentence_bleu,
    "meteor": extras.meteor,
    "bertscore": lambda ours, theirs: extras.bertscore(ours, theirs, Path("nowhere")),
}
ONE = ["The heart is large."]


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(
    ("drafts", "references", "sentence"),
    [
        (
            "The heart.",
            "The heart.",
            r"predictions must be a list with a text for each report, got the str 'The heart\.'",
        ),
        (ONE, ONE[0], "references must be a list with a text for each report, got the str"),
        (b"abc", ONE, "predictions must be a list with a text for each report, got the bytes b'abc'"),
        (None, ONE, "predictions must be a list .*, got the NoneType None"),
        ({"s1": "x"}, ONE, "predictions must be a list .*, got the dict"),
        (7, ONE, "predictions must be a list .*, got the int 7"),
        (
            [*ONE, None],
            ["a", "b"],
            'predictions, item 2 of 2: expected a text, got the NoneType None; "" is a blank one',
        ),
        (ONE, [float("nan")], "references, item 1 of 1: expected a text, got the float nan"),
        ([b"x"], ONE, "predictions, item 1 of 1: expected a text, got the bytes b'x'; decode it first"),
        (ONE, [["a", "b"]], "references, item 1 of 1: .* the list .*; a report is scored against one reference, not"),
        ([("a",)], ONE, "predictions, item 1 of 1: expected a text, got the tuple"),
        (ONE, ["a", "b"], "1 predictions and 2 references: the numbers must be equal"),
        ([], [], "Nothing to score: there is no prediction"),
    ],
)
def test_what_is_no_list_of_texts_is_refused_in_a_sentence(function, drafts, references, sentence) -> None:
    with pytest.raises(RadDraftError, match=sentence):
        FUNCTIONS[function](drafts, references)


def test_other_containers_of_texts_are_taken() -> None:
    import pandas as pd

    expected = rouge_l(["a b", "c"], ["a", "c"]).value
    for kind in (tuple, iter, np.array, pd.Series):
        assert rouge_l(kind(["a b", "c"]), kind(["a", "c"])).value == expected
    assert check_texts(iter(["a"]), ("b",)) == (["a"], ["b"])
    assert list(raddraft.score(ONE, ONE, "rouge_l", resamples=5)["metrics"]) == ["rouge_l"], "one name is a list of one"
    with pytest.raises(RadDraftError, match=r"Unknown metric 'rouge-l'\. .* Did you mean rouge_l\?"):
        raddraft.score(ONE, ONE, "rouge-l")
    with pytest.warns(UserWarning, match="rouge_l keeps the letters"):
        load("rouge_l").compute(predictions=["心影"], references=["心影"])


# Blank, equal and cut drafts ------------------------------------------------------------------------------------------


def test_shares_of_blank_equal_and_repeated_texts() -> None:
    texts = ["", " \n", "a b", "a  b ", "a b", "c", "d", "d"]
    assert alike(texts) == {"blank": 2 / 8, "equal": 3 / 8, "repeated": 5 / 8}
    assert alike(["a"]) == alike(["a", "b"]) == {"blank": 0, "equal": 0, "repeated": 0}
    assert alike(["", ""]) == {"blank": 1, "equal": 0, "repeated": 0}


@pytest.mark.parametrize(
    ("drafts", "told"),
    [
        ([""] * 20, "of the drafts 100.0 % blank (of the references 0.0 % blank)"),
        (["\n"] * 11 + different(9), "of the drafts 55.0 % blank (of"),
        (["The lungs are clear."] * 20, "of the drafts 100.0 % one and the same text (of"),
        (
            [*[""] * 6, *["Clear lungs, normal heart."] * 6, *different(8)],
            "of the drafts 30.0 % blank and 30.0 % one and the same text (of the references 0.0 % blank and 0.0 % one",
        ),
    ],
)
def test_drafts_most_of_which_are_blank_or_equal_are_told_of(drafts, told, tmp_path, capsys) -> None:
    references = different(20, 1)
    with pytest.warns(UserWarning, match=re.escape(told)):
        scores = raddraft.score(drafts, references, HERE, resamples=10)
    assert scores["drafts"] == alike(drafts) | {"cut": None}
    assert scores["references"] == alike(references)
    assert run("score", write(tmp_path / "model.jsonl", drafts, references)) == (0, "")
    shown = capsys.readouterr().out
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    kept = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert told in shown
    assert told in page
    assert told in kept["warnings"][0]
    assert kept["drafts"] == scores["drafts"]
    other = write(tmp_path / "other.jsonl", different(20, 2), references)
    assert run("score", other, tmp_path / "model.jsonl") == (0, "")
    assert f"warning: model: {told}" in capsys.readouterr().out


@pytest.mark.filterwarnings("error")
def test_drafts_that_are_no_more_alike_than_the_references_are_not() -> None:
    references = ["The heart is normal."] * 15 + different(5)
    scores = raddraft.score(references[::-1], references, HERE, resamples=10)
    assert scores["warnings"] == []
    assert scores["references"]["equal"] == scores["drafts"]["equal"] == 0.75
    half = ["The lungs are clear."] * 10 + different(10)
    assert raddraft.score(half, different(20), HERE, resamples=10)["warnings"] == [], "half is not most"


def test_the_table_has_the_shares_beside_those_of_the_references(tmp_path, capsys) -> None:
    drafts, references = (
        ["", *["The lungs are clear."] * 3, *different(6)],
        [*["Normal heart size."] * 2, *different(8)],
    )
    cut = [False, True, True, True, *[False] * 6]
    model = write(tmp_path / "model.jsonl", drafts, references, cut=cut)
    control = write(tmp_path / "control.jsonl", different(10), references)
    assert run("score", model, control, "--metrics", "rouge_l") == (0, "")
    lines = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: [cell.strip() for cell in line[1:] if cell.strip()] for line in lines if line[0]}
    assert rows["drafts of model"] == ["10.0 %", "30.0 %", "30.0 %", "30.0 %"]
    assert rows["drafts of control"] == ["0.0 %", "0.0 %", "0.0 %", "-"]
    assert rows["references"] == ["0.0 %", "20.0 %", "20.0 %", "-"]
    page = (tmp_path / "scores" / "report.html").read_text(encoding="utf-8")
    assert "Blank, equal and cut drafts" in page
    assert page.count("<td>30.0 %</td>") == 3
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text(encoding="utf-8"))
    assert scores["drafts"] == {"blank": 0.1, "equal": 0.3, "repeated": 0.3, "cut": 0.3}
    assert scores["others"]["control"]["drafts"]["cut"] is None
    most = write(tmp_path / "most.jsonl", drafts, references, cut=[True] * 6 + [False] * 4)
    assert run("score", most, "--metrics", "rouge_l") == (0, "")
    assert "warning: 60.0 % of the drafts are cut at the limit of tokens" in capsys.readouterr().out


def test_strata_have_their_own_shares() -> None:
    references = ["The lungs are clear."] * 2 + ["Large left pleural effusion.", "Right pleural effusion."]
    rows = [Prediction(f"s{i}", "" if i < 2 else f"Effusion {i}.", text) for i, text in enumerate(references)]
    scored = score_systems({"model": rows}, ["rouge_l"], by=["normal"], resamples=10, cut={"model": {"s3": True}})
    normal, abnormal = (scored.scores["strata"]["normal"][name] for name in ("normal", "abnormal"))
    assert (normal["drafts"]["blank"], abnormal["drafts"]["blank"]) == (1, 0)
    assert (normal["references"]["equal"], abnormal["references"]["equal"]) == (1, 0)
    assert (normal["drafts"]["cut"], abnormal["drafts"]["cut"]) == (None, 1)


def test_consensus_keeps_whether_the_chosen_candidate_was_cut(tmp_path) -> None:
    texts = ["The heart is", "The heart is large.", "The heart is large."]
    rows = {"candidates": [texts], "candidates_cut": [[True, False, False]], "cut": [True]}
    choose_in_file(write(tmp_path / "in.jsonl", texts[:1], ["x"], **rows), tmp_path / "out.jsonl", ["rouge_l"])
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["prediction"], row["cut"]) == (texts[1], False)
