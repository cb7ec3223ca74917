"""COCO scores, sentence BLEU, METEOR, BERTScore and RadCliQ against published scores, packages and values by hand."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest

from metrics import extras
from raddraft.stats import Measure, mean_measure
from tests.conftest import SENTENCES

SENTENCE = "no focal consolidation , pleural effusion or pneumothorax . the heart is 1.5 cm ENLARGED"
WORDS = SENTENCE.split(" ")
COCO = ("coco_bleu_1", "coco_bleu_2", "coco_bleu_3", "coco_bleu_4", "coco_rouge_l", "coco_cider")


def made_up_pairs(n: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Pairs that share words, among them a blank prediction, a blank reference, one word, and two blanks in a row."""
    generator = random.Random(seed)
    references = [" ".join(generator.choices(WORDS, k=generator.randint(1, 30))) for _ in range(n)]
    predictions = [f"{text[: len(text) // 2]} {generator.choice(references)}" for text in references]
    predictions[:4] = ["", "the heart", "heart", "the  heart is"]
    references[:4] = ["the heart", "", "heart", "the heart  is"]
    return predictions, references


def values(measures: dict[str, Measure]) -> dict[str, float]:
    return {name: measure.value for name, measure in measures.items()}


def per_study(measure: Measure) -> np.ndarray:
    assert measure.per_study is not None
    return measure.per_study


def test_coco_equals_published_scores(cxr: Path) -> None:
    folder = cxr / "fixtures" / "mrg_rl" / "copy_oracle_beam3"
    predictions, references, expected = (
        json.loads((folder / f"test_{kind}.json").read_text()) for kind in ("preds", "refs", "metrics")
    )
    measures = extras.coco([texts[0] for texts in predictions.values()], [references[key][0] for key in predictions])
    names = {f"coco_{name.lower()}": value for name, value in expected.items()}
    assert values(measures) == pytest.approx(names, abs=1e-9)


def test_coco_equals_nlg_eval_on_one_word(cxr: Path) -> None:
    cases = json.loads((cxr / "fixtures" / "nlg_eval" / "expected.json").read_text())["cases"]
    (case,) = [case for case in cases if len(case["references"]) == 1]
    measures = extras.coco(case["hypotheses"], case["references"][0])
    for ours, theirs in {"coco_bleu_1": "Bleu_1", "coco_rouge_l": "ROUGE_L", "coco_cider": "CIDEr"}.items():
        assert measures[ours].value == pytest.approx(case["expected"][theirs]["value"], abs=1e-5)


def test_coco_equals_pycocoevalcap() -> None:
    reason = "pycocoevalcap is not installed: pip install --no-deps pycocoevalcap"
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=reason)
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    predictions, references = made_up_pairs(60)
    ours = extras.coco(predictions, references)
    hypotheses, truth = ({i: [text] for i, text in enumerate(texts)} for texts in (predictions, references))
    bleus, _ = bleu.Bleu(4).compute_score(truth, hypotheses, verbose=0)
    (rouge, rouges), (cider, ciders) = (scorer.compute_score(truth, hypotheses) for scorer in (Rouge(), Cider()))
    assert list(values(ours).values()) == pytest.approx([*bleus, rouge, cider], abs=1e-12)
    np.testing.assert_allclose(per_study(ours["coco_rouge_l"]), rouges, atol=1e-12, rtol=0)
    np.testing.assert_allclose(per_study(ours["coco_cider"]), ciders, atol=1e-12, rtol=0)


def test_coco_by_hand() -> None:
    measures = extras.coco(["the heart is big"], ["the big heart is normal"])
    penalty = math.exp(1 - 5 / 4)
    assert measures["coco_bleu_1"].value == pytest.approx(penalty)
    assert measures["coco_bleu_2"].value == pytest.approx(penalty * math.sqrt(1 / 3))
    assert measures["coco_bleu_4"].value == pytest.approx(penalty * (1 / 3 * 1e-15 / 2 * 1e-15) ** 0.25, rel=1e-6)
    assert measures["coco_rouge_l"].value == pytest.approx(2.44 * 0.75 * 0.6 / (0.6 + 1.44 * 0.75))
    assert measures["coco_cider"].value == 0, "one report: every n-gram is in every reference and weighs nothing"


def test_cider_by_hand() -> None:
    """Two references without a common word: every n-gram weighs log 2, so the cosines are those of plain counts."""
    cider = per_study(extras.coco(["a b", "x y z"], ["a c", "x y z"])["coco_cider"])
    assert cider == pytest.approx([10 * (0.5 + 0 + 0 + 0) / 4, 10 * (1 + 1 + 1 + 0) / 4])
    shorter = per_study(extras.coco(["a", "x y z"], ["a b c d", "x y z"])["coco_cider"])
    assert shorter[0] == pytest.approx(10 * (1 / 2) / 4 * math.exp(-(3**2) / 72)), "three bigrams shorter, sigma 6"


@pytest.mark.parametrize("name", ["coco_bleu_1", "coco_bleu_4", "coco_rouge_l"])
def test_resampled_value_equals_scoring_the_resampled_reports(name: str) -> None:
    predictions, references = made_up_pairs(30)
    drawn = np.random.default_rng(5).integers(0, 30, 30)
    measure = extras.coco(predictions, references)[name]
    again = extras.coco([predictions[i] for i in drawn], [references[i] for i in drawn])[name]
    (resampled,) = measure.reduce(np.bincount(drawn, minlength=30)[None] @ measure.statistics)
    assert resampled == pytest.approx(again.value, abs=1e-12)
    assert again.value != pytest.approx(measure.value, abs=1e-4)


def test_cider_interval_keeps_document_frequencies_and_says_so() -> None:
    predictions, references = made_up_pairs(30)
    measure = extras.coco(predictions, references)["coco_cider"]
    assert measure.subset(np.arange(10)).value == pytest.approx(per_study(measure)[:10].mean())
    assert extras.coco(predictions[:10], references[:10])["coco_cider"].value != pytest.approx(
        measure.subset(np.arange(10)).value, abs=1e-3
    )
    assert "kept fixed in the interval" in measure.signature


def test_blank_and_one_word_texts() -> None:
    blank = [("", "the heart is normal"), ("the heart is normal", ""), (" ", "heart")]
    for prediction, reference in blank:
        scores = values(extras.coco([prediction], [reference]) | extras.sentence_bleu([prediction], [reference]))
        assert scores == pytest.approx(dict.fromkeys((*COCO, "nltk_sentence_bleu_4"), 0.0), abs=1e-6)
    one = values(extras.coco(["heart"], ["heart"]))
    assert (one["coco_bleu_1"], one["coco_rouge_l"]) == pytest.approx((1, 1), abs=1e-6)
    assert one["coco_bleu_2"] == pytest.approx((1e-15 / 1e-9) ** 0.5), "no bigram to guess: tiny / small"


def test_sentence_bleu_by_hand() -> None:
    """'the heart is big': 4 of 4 words, 2 of 3 bigrams, 1 of 2 trigrams, 0 + 0.1 of 1 four-grams; as long as needed."""
    measure = extras.sentence_bleu(["the heart is big", "lungs"], ["big the heart is", "heart"])["nltk_sentence_bleu_4"]
    assert per_study(measure) == pytest.approx([(2 / 3 * 1 / 2 * 0.1) ** 0.25, 0.0])
    assert measure.value == pytest.approx(per_study(measure).mean())
    bigrams = extras.sentence_bleu(["the heart is big"], ["big the heart is"], order=2)["nltk_sentence_bleu_2"]
    assert bigrams.value == pytest.approx((2 / 3) ** 0.5)


@pytest.mark.parametrize("order", [2, 4])
def test_sentence_bleu_equals_nltk(order: int) -> None:
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    predictions, references = made_up_pairs(200)
    weights, smooth = (1 / order,) * order, SmoothingFunction().method1
    pairs = zip(predictions, references, strict=True)
    expected = [sentence_bleu([theirs.split()], ours.split(), weights, smooth) for ours, theirs in pairs]
    measure = extras.sentence_bleu(predictions, references, order)[f"nltk_sentence_bleu_{order}"]
    assert per_study(measure).tolist() == expected


def test_meteor_matches_words_stems_and_synonyms() -> None:
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("corpora/wordnet")
    except LookupError:
        pytest.skip("nltk has no WordNet: python -m nltk.downloader wordnet")
    pairs = [
        ("The heart is normal", "the heart is normal"),  # one chunk of four words, case aside
        ("enlarged heart", "enlarging heart"),  # by stem
        ("tumor heart", "tumour heart"),  # by synonym
        ("", "the heart"),
        ("heart", ""),
        ("lungs", "heart"),
    ]
    measure = extras.meteor(*([pair[side] for pair in pairs] for side in (0, 1)))["meteor"]
    matched = [1 - 0.5 / words**3 for words in (4, 2, 2)]
    assert per_study(measure) == pytest.approx([*matched, 0, 0, 0])
    assert "not COCO's METEOR 1.5" in measure.signature


def test_meteor_without_wordnet_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(extras.CannotRun, match=r"python -m nltk\.downloader wordnet"):
        extras.meteor(["heart"], ["heart"])


def save_roberta(folder: Path, prefix_space: bool = False, layers: int = 6, tokenizer_config: bool = True) -> Path:
    """A RoBERTa of random weights with large embeddings, so that texts differ, and a byte-level BPE tokenizer."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaConfig, RobertaModel, RobertaTokenizer

    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(SENTENCES, vocab_size=400, min_frequency=1, special_tokens=special, show_progress=False)
    state = json.loads(trained.to_str())["model"]
    tokenizer = RobertaTokenizer(
        vocab=state["vocab"],
        merges=[tuple(merge) for merge in state["merges"]],
        add_prefix_space=prefix_space,
        **({"model_max_length": 38} if tokenizer_config else {}),
    )
    tokenizer.save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=2,
        max_position_embeddings=40,
        initializer_range=0.3,
        pad_token_id=1,
    )
    torch.manual_seed(0)
    RobertaModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_roberta(tmp_path_factory.mktemp("roberta"))


REPORTS = ["The heart is normal in size.", "", "lungs", " ".join(SENTENCES), "Small left pleural effusion.", "heart"]
OTHERS = [
    "The heart is enlarged.",
    "The lungs are clear.",
    "The lungs",
    "Effusion. " * 30,
    "Small left pleural effusion.",
    "",
]


def test_bertscore_equals_bert_score(tmp_path: Path, roberta: Path) -> None:
    """Its folder adds the blank before the first word by itself: from transformers 5 on, bert-score no longer does."""
    bert_score = pytest.importorskip("bert_score", reason="bert-score is not installed: pip install bert-score")
    baseline = tmp_path / "baseline.tsv"
    baseline.write_text("LAYER,P,R,F\n" + "".join(f"{i},0.5,0.5,{extras.BERTSCORE_BASELINE}\n" for i in range(6)))
    filled = [i for i, pair in enumerate(zip(REPORTS, OTHERS, strict=True)) if all(pair)]  # blank ones fail there
    theirs = bert_score.score(
        [REPORTS[i] for i in filled],
        [OTHERS[i] for i in filled],
        model_type=str(save_roberta(tmp_path / "prefix", prefix_space=True)),
        num_layers=5,
        lang="en",
        rescale_with_baseline=True,
        baseline_path=str(baseline),
        device="cpu",
    )[2]
    ours = per_study(extras.bertscore(REPORTS, OTHERS, roberta, "cpu")["bertscore_f1"])
    np.testing.assert_allclose(ours[filled], theirs.numpy(), atol=1e-4)


def test_bertscore_by_hand(roberta: Path) -> None:
    """One pair at a time, without padding, with loops for the formula."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(roberta), AutoModel.from_pretrained(roberta).eval()

    def embed(text: str) -> np.ndarray:
        ids = tokenizer(f" {text.strip()}", return_tensors="pt", truncation=True)["input_ids"]
        with torch.no_grad():
            return network(ids, output_hidden_states=True).hidden_states[5][0].numpy()

    def best(vectors: np.ndarray, others: np.ndarray) -> float:
        cosines = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in others] for a in vectors[1:-1]]
        return float(np.mean([max(row) for row in cosines]))

    measure = extras.bertscore(REPORTS, OTHERS, roberta, "cpu")["bertscore_f1"]
    for prediction, reference, score in zip(REPORTS, OTHERS, per_study(measure), strict=True):
        raw = 0.0
        if prediction and reference:
            precision, recall = (
                best(embed(a), embed(b)) for a, b in ((prediction, reference), (reference, prediction))
            )
            raw = 2 * precision * recall / (precision + recall)
        assert score == pytest.approx((raw - 0.8473319) / (1 - 0.8473319), abs=1e-4)
    assert per_study(measure)[4] == pytest.approx(1, abs=1e-5), "the same text"
    assert len(set(per_study(measure).round(3))) == 5, "else this test sees no difference between texts"


def test_bertscore_is_the_same_at_every_batch_size_and_order(roberta: Path) -> None:
    one, many, turned = (
        per_study(extras.bertscore(REPORTS[::step], OTHERS[::step], roberta, "cpu", size)["bertscore_f1"])
        for step, size in ((1, 1), (1, 6), (-1, 4))
    )
    np.testing.assert_allclose(one, many, atol=1e-4)
    np.testing.assert_allclose(one, turned[::-1], atol=1e-4)


def test_bertscore_cuts_long_texts_though_the_tokenizer_names_no_limit(tmp_path: Path, roberta: Path) -> None:
    folder = save_roberta(tmp_path, tokenizer_config=False)
    scores = [extras.bertscore(REPORTS, OTHERS, path, "cpu")["bertscore_f1"].value for path in (folder, roberta)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


def test_bertscore_refuses_what_is_not_the_model(tmp_path: Path) -> None:
    with pytest.raises(extras.CannotRun, match=r"nowhere has no config\.json"):
        extras.bertscore(["heart"], ["heart"], tmp_path / "nowhere")
    with pytest.raises(extras.CannotRun, match=r"takes layer 5 of distilroberta-base; the model in .* has 2"):
        extras.bertscore(["heart"], ["heart"], save_roberta(tmp_path / "small", layers=2))
    half = save_roberta(tmp_path / "half")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 7}))
    with pytest.raises(extras.CannotRun, match=r"half lack encoder\.layer\.6"):
        extras.bertscore(["heart"], ["heart"], half)
    (half / "config.json").write_text(json.dumps(config | {"vocab_size": config["vocab_size"] + 1}))
    with pytest.raises(extras.CannotRun, match=r"word_embeddings\.weight in .*half has shape \[\d+, \d+\], its config"):
        extras.bertscore(["heart"], ["heart"], half)


def test_radcliq_by_hand() -> None:
    mean, scale = [0.53792312, 0.61757256, 0.76479421, 0.44738335], [0.30282584, 0.22430938, 0.25394391, 0.29892717]
    rows = np.array([mean, np.add(mean, scale), [1, 1, 1, 1], [0, 0.61757256, 0.76479421, 0.44738335]])
    scores = extras.radcliq_formula(*rows.T)
    # The third: -(0.377083683 x 1.525883 + 0.3703001 x 1.704911 + 0.252616218 x 0.926212), the last: 0.377 x 1.776345
    assert scores == pytest.approx([0, -1.000000001, -1.440690, 0.669831], abs=2e-6)


def test_radcliq_of_reports_takes_all_four_scores() -> None:
    texts, others = ["the heart is normal", "lungs are clear"], ["the heart is big", "lungs are clear"]
    radgraph, bertscore = mean_measure([0.25, 1.0], "graphs by hand"), mean_measure([0.5, 1.0], "pieces by hand")
    measure = extras.radcliq_v1(radgraph, bertscore, np.array([0.75, 1.0]), texts, others)["radcliq_v1"]
    bleu = np.array([(3 / 4 * 2 / 3) ** 0.5, 1.0])
    expected = extras.radcliq_formula(np.array([0.25, 1]), np.array([0.5, 1]), np.array([0.75, 1]), bleu)
    assert per_study(measure) == pytest.approx(expected, abs=1e-15)
    assert measure.value == pytest.approx(expected.mean())
    for part in ("lower is better", "graphs by hand", "pieces by hand"):
        assert part in measure.signature


def test_radcliq_names_a_score_that_is_not_a_number() -> None:
    ones = np.ones(3)
    with pytest.raises(ValueError, match="semb of report 2 is nan"):
        extras.radcliq_formula(ones, ones, np.array([1, np.nan, 1]), ones)


def test_radgraph_combined_by_hand() -> None:
    def graph(*entities: tuple[str, str, list[list[str]]]) -> dict[str, object]:
        rows = [{"tokens": tokens, "label": label, "relations": links} for tokens, label, links in entities]
        return {"entities": {str(i): row for i, row in enumerate(rows, 1)}}

    effusion, small = ("effusion", "OBS-DP", []), ("small", "OBS-DP", [["modify", "1"]])
    left = ("left", "ANAT-DP", [])
    ours, theirs = graph(effusion, small, left), graph(effusion, small, small)
    # Entities: 2 of 3 and 2 of 2 as sets, F1 0.8. Relations: small modifies effusion on both sides, F1 1.
    assert extras.radgraph_combined(ours, theirs) == pytest.approx(0.9)
    assert extras.radgraph_combined(graph(effusion), graph(effusion)) == 0.5, "no relation on either side counts 0"
    assert extras.radgraph_combined(graph(), graph()) == 0


def test_cosine_similarities_in_batches() -> None:
    import torch

    class Letters:
        """Counts of a, b and all letters."""

        batch_size = 2

        def embed(self, texts: list[str]) -> torch.Tensor:
            assert len(texts) <= self.batch_size
            return torch.tensor([[text.count("a"), text.count("b"), 1] for text in texts], dtype=torch.float32)

    found = extras.cosine_similarities(Letters(), ["a", "ab", "b", "aab"], ["a", "a", "a", ""])
    assert found == pytest.approx([1, 2 / math.sqrt(6), 1 / 2, 1 / math.sqrt(6)])
