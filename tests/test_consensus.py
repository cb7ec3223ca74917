"""generator/consensus.py and `raddraft consensus`: any metric chooses, and what is blank does not win by accident."""

from __future__ import annotations

import json

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from benchmarks.random_models import save_chexbert, save_radgraph
from generator.consensus import BLANK, choose, combine, score_pairs
from metrics.models import Models
from metrics.radgraph import radgraph_f1
from tests.conftest import SENTENCES
from tests.test_cli import run

NORMAL = ["The heart is normal in size. The lungs are clear.", "Heart size is normal. The lungs are clear."]
EFFUSION = "Small left pleural effusion. The lungs are clear."


def test_the_highest_mean_against_all_others_wins() -> None:
    generator = np.random.default_rng(0)
    studies = [[" ".join(generator.choice(SENTENCES, 3)) for _ in range(5)] for _ in range(20)]
    scorer = RougeScorer(["rougeL"])
    for candidates, choice in zip(studies, choose(studies, ["rouge_l"]), strict=True):
        means = [
            np.mean([scorer.score(b, a)["rougeL"].fmeasure for j, b in enumerate(candidates) if j != i])
            for i, a in enumerate(candidates)
        ]
        assert choice.scores == pytest.approx(means)
        assert choice.index == int(np.argmax(np.round(means, 12)))
        assert choice.text == candidates[choice.index]


def test_each_utility_chooses_by_itself() -> None:
    study = [EFFUSION, *NORMAL, NORMAL[1]]
    for utility in ("rouge_l", "bleu_4", "rule_micro_f1_14", "rule_micro_f1_5_plus", "coco_cider"):
        choice = choose([study], [utility])[0]
        assert choice.text in NORMAL, utility
        if utility.startswith("rule"):  # word for word, "The lungs are clear." speaks for the other report too
            assert choice.scores == [0, *[pytest.approx(2 / 3)] * 3], utility


def test_reports_that_name_nothing_agree_with_each_other() -> None:
    # Without this an abnormal outlier, which scores nothing, would tie with normal reports, and be taken if first.
    choice = choose([[EFFUSION, *NORMAL]], ["rule_micro_f1_5"])[0]
    assert choice.scores == [0, 0.5, 0.5]
    assert choice.index == 1


def test_blank_candidates_do_not_win_by_accident() -> None:
    strangers = ["alpha beta gamma delta", "one two three four", "red green blue black"]
    tied = choose([["", strangers[0], strangers[1]]], ["bleu_4"])[0]
    assert tied.scores == [0, 0, 0]
    assert tied.text == strangers[0], "a tie goes to what has words"
    for blanks in (["", " \n"], ["", "", "", ""]):
        choice = choose([[*blanks, *strangers]], ["rouge_l"])[0]
        assert choice.text == strangers[0], "blanks do not vote for each other"
    assert choose([["", "No findings.", "No findings."]], ["rouge_l"])[0].index == 1
    for study in (["", ""], [""]):
        assert choose([study], ["rouge_l", "bleu_1"])[0].text == BLANK
    supported = choose([["", "No findings seen.", "Findings: no findings."]], ["rouge_l"])[0]
    assert supported.text == BLANK, "what the others say in more words"


def test_mean_rank_of_several_utilities() -> None:
    table = np.full((2, 3, 3), np.nan)
    means = np.array([[0.9, 0.8, 0.1], [0.1, 0.8, 0.2]])
    for i in range(3):
        for j in range(3):
            if i != j:
                table[:, i, j] = means[:, i]
    assert combine(table).tolist() == [-2, -1.5, -2.5]
    assert combine(table[:1]).tolist() == [0.9, 0.8, 0.1]
    table[0, 0, :] = np.nan
    assert combine(table[:1])[0] == -np.inf, "a candidate that cannot be scored loses"
    assert choose([[*NORMAL, EFFUSION]], ["rouge_l", "rule_micro_f1_14"])[0].text in NORMAL


def test_learned_metrics_choose_and_read_each_text_once(tmp_path, bert_folder, monkeypatch) -> None:
    chexbert, radgraph = tmp_path / "chexbert.pth", tmp_path / "radgraph"
    save_chexbert(chexbert, bert_folder)
    save_radgraph(radgraph, bert_folder, SENTENCES)
    models = Models(chexbert, bert_folder, radgraph, radgraph_tokenizer=bert_folder, keep=False, device="cpu")
    read: list[str] = []
    for model in (models.chexbert_model, models.radgraph_model):
        annotate = model.annotate
        monkeypatch.setattr(model, "annotate", lambda texts, annotate=annotate: read.extend(texts) or annotate(texts))
    studies = [[EFFUSION, *NORMAL], [*NORMAL, "Right lower lobe consolidation."]]
    choices = choose(studies, ["radgraph_er", "chexbert_micro_f1_14"], models)
    assert sorted(read) == sorted(2 * [EFFUSION, *NORMAL, "Right lower lobe consolidation."])
    assert all(-3 <= score <= -1 for choice in choices for score in choice.scores)
    table = score_pairs(studies[:1], ["radgraph_e"], models)[0]
    ours, theirs = models.radgraph_model.annotate([EFFUSION, NORMAL[0]])
    assert table[0, 0, 1] == pytest.approx(radgraph_f1(ours, theirs, False)[0])


def test_what_cannot_be_chosen_by_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("RADDRAFT_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"Unknown utility 'rogue'\. Choices: rouge_l, bleu_1"):
        choose([NORMAL], ["rogue"])
    with pytest.raises(ValueError, match="take rule_micro_f1_14"):
        choose([NORMAL], ["rule_macro_f1_14"])
    with pytest.raises(ValueError, match="Study 2 of 2 has no candidates"):
        choose([NORMAL, []], ["rouge_l"])
    with pytest.raises(ValueError, match="No utility"):
        choose([NORMAL], [])
    with pytest.raises(ValueError, match="raddraft weights"):
        choose([NORMAL], ["radgraph_er"], Models(radgraph=None, keep=False))


def test_a_study_whose_scores_all_fail_is_an_error(monkeypatch) -> None:
    import generator.consensus

    monkeypatch.setattr(
        generator.consensus,
        "score_pairs",
        lambda studies, *_: [np.full((1, len(one), len(one)), np.nan) for one in studies],
    )
    with pytest.raises(ValueError, match="Study 1 of 1: no score among its candidates is a number"):
        choose([NORMAL], ["rouge_l"])


def test_the_action_writes_predictions_with_the_confidence_of_what_was_chosen(tmp_path, capsys) -> None:
    row = {
        "study_id": "s1", "subject_id": "p1", "prediction": EFFUSION, "reference": NORMAL[0],
        "candidates": [EFFUSION, *NORMAL],
        "log_probs": [[-0.5, -0.1], [-0.2, -0.3], [-0.4, -0.6]], "model": "m", "decoding": "d",
    }  # fmt: skip
    source, out = tmp_path / "three.jsonl", tmp_path / "chosen.jsonl"
    source.write_text(json.dumps(row) + "\n")
    assert run("consensus", str(source), "--utility", "rouge_l", "rule_micro_f1_14", "--out", str(out)) == (0, "")
    chosen = json.loads(out.read_text())
    index = row["candidates"].index(chosen["prediction"])
    assert index > 0
    assert chosen["consensus"]["utility"] == ["rouge_l", "rule_micro_f1_14"]
    assert [one["log_prob"] for one in chosen["confidence"]] == row["log_probs"][index]
    kept = ("study_id", "subject_id", "reference", "candidates", "model")
    assert {key: chosen[key] for key in kept} == {key: row[key] for key in kept}
    assert run("consensus", str(source), "--out", str(out)) == (0, "")
    assert "1 drafts chosen by rouge_l" in capsys.readouterr().out
    drafts = tmp_path / "drafts.jsonl"
    drafts.write_text(json.dumps({"study_id": "s1", "prediction": "Somebody else's."}) + "\n")
    assert f"{drafts} is there, and its first line is not" in run("consensus", str(source), "--out", str(drafts))[1]
    assert "Somebody else's." in drafts.read_text()
    odd = row | {"study_id": "s2", "log_probs": None, "prediction": "\ud83d", "candidates": ["\ud83d", *NORMAL]}
    source.write_text(f"\ufeff{json.dumps(row)}\n\n{json.dumps(odd)}\n", encoding="utf-8")
    assert run("consensus", str(source), "--out", str(out)) == (0, "")
    assert len(out.read_text(encoding="utf-8").splitlines()) == 2
    source.write_text(f"{json.dumps(row)}\n" * 2)
    assert "line 2: duplicate study_id 's1', first on line 1" in run("consensus", str(source), "--out", str(out))[1]
    for wrong in (True, {}, [True]):
        source.write_text(json.dumps(row | {"candidates_cut": wrong}) + "\n")
        assert "candidates_cut must tell of each candidate" in run("consensus", str(source), "--out", str(out))[1]
    source.write_text('{"study_id": "s1", "prediction": "x"}\n')
    assert "study 's1' has no candidates" in run("consensus", str(source), "--out", str(out))[1]


def test_other_reports_can_stand_in_for_the_candidates(tmp_path, capsys) -> None:
    candidates, similar = [EFFUSION, *NORMAL], [EFFUSION, "Small left pleural effusion.", NORMAL[0]]
    found = choose([candidates], ["rouge_l"], against=[similar])[0]
    scorer = RougeScorer(["rougeL"])
    means = [np.mean([scorer.score(b, a)["rougeL"].fmeasure for b in similar]) for a in candidates]
    assert found.scores == pytest.approx(means)
    assert found.text == EFFUSION, "a minority of one may be right"
    assert choose([candidates], ["rouge_l"])[0].text in NORMAL
    files = {"eight": candidates, "similar": similar}
    for name, texts in files.items():
        row = {"study_id": "s1", "prediction": texts[1], "reference": EFFUSION, "candidates": texts}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    command = ("consensus", tmp_path / "eight.jsonl", "--out", tmp_path / "best.jsonl", "--against")
    assert run(*command, tmp_path / "similar.jsonl") == (0, "")
    row = json.loads((tmp_path / "best.jsonl").read_text())
    assert (row["prediction"], row["consensus"]["against"]) == (EFFUSION, "similar.jsonl")
    (tmp_path / "similar.jsonl").write_text(json.dumps(row | {"study_id": "s2"}) + "\n")
    status, said = run(*command, tmp_path / "similar.jsonl")
    assert (status, "has nothing for study 's1'" in said) == (1, True)
