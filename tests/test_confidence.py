"""generator/confidence.py: sentences, their probabilities, and what other candidates say."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoTokenizer

from generator.confidence import agreement, confidence, sentence_log_probs, split_sentences
from generator.config import DecodeConfig, ModelConfig
from generator.generate import decode_batch, token_log_probs
from generator.model import Drafter, build
from raddraft.studies import read_studies
from tests.test_generate import collate_studies


def test_sentences() -> None:
    assert split_sentences("A 4.5 cm mass. No edema?\nFindings: Clear! ") == [
        "A 4.5 cm mass.",
        "No edema?",
        "Findings: Clear!",
    ]
    assert split_sentences(" \n") == []


def test_every_token_counts_for_the_sentence_it_is_in(lm_folder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    sentences = ["The heart is enlarged.", "The lungs are clear.", "No pleural effusion."]
    parts = [tokenizer(("" if i == 0 else " ") + text)["input_ids"] for i, text in enumerate(sentences)]
    parts = [[token for token in part if token not in tokenizer.all_special_ids] for part in parts]
    tokens = [*(token for part in parts for token in part), tokenizer.eos_token_id]
    assert tokenizer.decode(tokens, skip_special_tokens=True) == " ".join(sentences)
    log_probs = [-float(i + 1) for i, part in enumerate(parts) for _ in part] + [-30.0]
    last = (-3.0 * len(parts[2]) - 30) / (len(parts[2]) + 1)
    assert sentence_log_probs(tokenizer, tokens, log_probs) == pytest.approx([-1, -2, last], abs=1e-4)
    assert sentence_log_probs(tokenizer, [tokenizer.eos_token_id], [-1.0]) == []


def test_agreement_is_about_what_is_said_and_not_how() -> None:
    draft = "Small left pleural effusion. No pneumothorax. The bones look fine to me."
    others = [
        "There is a pleural effusion. Lungs without pneumothorax.",
        "No pleural effusion or pneumothorax. The bones look fine to me.",
        "Possible effusion.",
        "Heart size is normal.",
    ]
    assert agreement(draft, others) == [0.25, 0.5, 0.25]
    with pytest.raises(ValueError, match="no other candidates"):
        agreement(draft, [])


def test_confidence_describes_the_chosen_candidate() -> None:
    candidates = ["No edema.", "Mild edema. Clear.", "Edema is seen."]
    log_probs = [[-0.1], [-0.2, -0.3], [-0.4]]
    assert confidence(candidates, log_probs, 1) == [
        {"sentence": "Mild edema.", "log_prob": -0.2, "agreement": 0.5},
        {"sentence": "Clear.", "log_prob": -0.3, "agreement": 0.0},
    ]
    assert confidence(candidates[:1], log_probs[:1], 0) == [{"sentence": "No edema.", "log_prob": -0.1}]


@pytest.fixture(scope="module")
def drafter(tower_folder, lm_folder) -> Drafter:
    return Drafter(*build(ModelConfig(str(tower_folder), str(lm_folder))))


def test_token_log_probs_are_those_of_generate(drafter, studies_file) -> None:
    studies = read_studies(studies_file)[:3]
    batch = collate_studies(drafter, studies)
    inputs = {key: batch[key] for key in ("input_ids", "attention_mask", "pixel_values")}
    out = drafter.model.generate(
        **inputs, do_sample=True, top_k=0, max_new_tokens=37, num_return_sequences=2,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    tokens = out.sequences[:, batch["input_ids"].shape[1] :]
    expected = torch.stack(out.logits, 1).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    texts = [line[: 37 - 5 * i] for i, line in enumerate(tokens.tolist())]
    found = token_log_probs(drafter.model, inputs, texts, chunk=8)
    for ours, theirs, text in zip(found, expected, texts, strict=True):
        assert len(ours) == len(text)
        torch.testing.assert_close(torch.tensor(ours), theirs[: len(text)], atol=1e-5, rtol=1e-4)


def test_confidence_of_a_draft_has_a_row_for_each_sentence(drafter, studies_file) -> None:
    batch = collate_studies(drafter, read_studies(studies_file)[:2])
    for count in (1, 3):
        config = DecodeConfig(max_new_tokens=30, candidates=count, confidence=True)
        for draft in decode_batch(drafter, batch, config):
            row = draft.row()
            assert [len(part) for part in row["log_probs"]] == [len(split_sentences(t)) for t in draft.candidates]
            assert [one["sentence"] for one in row["confidence"]] == split_sentences(draft.text)
            assert all(one["log_prob"] < 0 and math.isfinite(one["log_prob"]) for one in row["confidence"])
            assert all(("agreement" in one) == (count > 1) for one in row["confidence"])
