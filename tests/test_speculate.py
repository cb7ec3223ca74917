"""generator/speculate.py: the same text in fewer passes, whatever is proposed."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from transformers import Gemma3TextConfig

from generator.generate import Draft, decode, generate
from generator.model import Drafter
from generator.speculate import CostModel, ReportIndex, Speculator, full_cache, index_reports
from raddraft.studies import Study, read_studies
from tests.test_generate import CONFIG, drafter, read, run_action, studies  # noqa: F401 - fixtures


def test_the_index_goes_by_the_longest_context_and_the_majority() -> None:
    index = ReportIndex([[1, 2, 3, 9], [1, 2, 4, 9], [5, 2, 4, 9], [5, 2, 4, 9]])
    assert index.propose([5, 2], 8) == ([4, 9], [2, 4]), "from the start of the report three tokens are known"
    assert index.propose([7, 2], 8)[0] == [4, 9], "after 2 alone mostly 4"
    assert index.propose([8], 8) == ([], [])
    assert index.propose([], 1) == ([1], [1]) or index.propose([], 1) == ([5], [1])
    index.add([5, 2, 3, 9], weight=10)
    assert index.propose([5, 2], 8)[0] == [3, 9], "it learns"
    assert index.propose([5, 2], 1) == ([3], [2])


def test_the_cost_model_proposes_where_it_pays() -> None:
    def model(each: float, hit_rate: float) -> CostModel:
        cost = CostModel()
        for tokens in (1, 17, 1, 17, 9):
            cost.see_pass(tokens, 1.0 + each * tokens)
        for i in range(200):
            cost.see_outcome([8], int(i < 200 * hit_rate))
        return cost

    orders = [[8] * 16]
    assert model(0.0, 0.9).length(orders) == 16, "tokens for free"
    assert model(100.0, 0.9).length(orders) == 0, "time grows with the tokens alone"
    lengths = [model(0.2, rate).length(orders) for rate in (0.1, 0.5, 0.8, 0.95)]
    assert lengths == sorted(lengths)
    assert 0 == lengths[0] < lengths[-1]
    assert model(0.2, 0.9).length(orders * 32) < model(0.2, 0.9).length(orders), "a full batch has little to spare"
    assert model(0.0, 0.9).length([[], []]) == 0
    cost = model(0.25, 0.5)
    assert cost.seconds(40) == pytest.approx(11.0)


def reference(drafter, studies) -> list[str]:  # noqa: F811
    return [draft.text for draft in drafts_of(drafter, studies, CONFIG)]


def drafts_of(model: Drafter, wanted: list[Study], config, speculator=None) -> list[Draft]:
    examples = model.encode(wanted, answers=False)
    return list(decode(model, examples, config, speculator=speculator))


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("reports", ["training", "none", "wrong"])
def test_the_text_is_that_of_generate(drafter, studies, batch_size, reports) -> None:  # noqa: F811
    studies = studies[:16]
    for number, study in enumerate(studies):  # prompts of different lengths
        study.sections["indication"] = "cough and fever. " * (number % 4)
    plain = reference(drafter, studies)
    tokenizer = drafter.processor.tokenizer
    rng = random.Random(0)
    made_up = [[rng.randrange(len(tokenizer)) for _ in range(30)] for _ in range(300)]
    wrong = [tokenizer(text)["input_ids"][: 3 + i % 9] + made_up[i][:5] for i, text in enumerate(plain)]
    index = {
        "training": index_reports(drafter, studies),
        "none": ReportIndex(),
        "wrong": ReportIndex(wrong * 50),
    }[reports]
    speculator = Speculator(index)
    speculator.cost.length = lambda orders: max(map(len, orders))  # type: ignore[method-assign] - whether it pays or not
    config = replace(CONFIG, batch_size=batch_size)
    ours = [draft.text for draft in drafts_of(drafter, studies, config, speculator)]
    assert ours == plain


def test_known_reports_take_fewer_passes(drafter, studies, tmp_path) -> None:  # noqa: F811
    passes = []
    hook = drafter.model.register_forward_hook(lambda *_: passes.append(1))
    plain = reference(drafter, studies[:10])
    without = len(passes)
    passes.clear()
    speculator = Speculator(index_reports(drafter, studies))
    speculator.cost.length = lambda orders: max(map(len, orders))  # type: ignore[method-assign]
    assert generate(drafter, studies[:10], tmp_path / "out.jsonl", CONFIG, "model", speculator=speculator) == []
    hook.remove()
    assert [row["prediction"] for row in read(tmp_path / "out.jsonl")] == plain
    assert len(passes) < without / 2
    assert read(tmp_path / "out.jsonl")[0]["decoding"] == "greedy, 40 new tokens", (
        "the text is the same, so is its name"
    )


def test_where_tokens_cannot_be_proposed_is_said(drafter, studies) -> None:  # noqa: F811
    speculator = Speculator(ReportIndex())
    for change in ({"sample": True}, {"num_beams": 2}, {"candidates": 2}, {"repetition_penalty": 1.1}):
        with pytest.raises(ValueError, match="plain greedy decoding only, not to: "):
            drafts_of(drafter, studies, replace(CONFIG, **change), speculator)
    drafter.model.config.text_config = Gemma3TextConfig(num_hidden_layers=6)
    with pytest.raises(ValueError, match=r"'gemma3_text' have a cache \(DynamicSlidingWindowLayer\)"):
        full_cache(drafter.model)
    for study in studies:
        study.sections = {}
    with pytest.raises(ValueError, match="No training study has the sections findings"):
        index_reports(drafter, studies)


def test_confidence_goes_with_it(drafter, studies) -> None:  # noqa: F811
    config = replace(CONFIG, confidence=True)
    plain = drafts_of(drafter, studies[:7], config)
    speculator = Speculator(index_reports(drafter, studies))
    ours = drafts_of(drafter, studies[:7], config, speculator=speculator)
    for one, other in zip(ours, plain, strict=True):
        assert one.candidates == other.candidates
        torch.testing.assert_close(torch.tensor(one.log_probs), torch.tensor(other.log_probs), atol=2e-4, rtol=0)


def test_actions_speculate(model_folder, studies_file, tmp_path) -> None:
    base = ["--model", str(model_folder), "--studies", str(studies_file), "--decode.max_new_tokens", "20"]
    for flags in ([], ["--speculate", "true"]):
        assert run_action("generate", *base, "--out", str(tmp_path / f"{len(flags)}.jsonl"), *flags) == 0
    assert (tmp_path / "0.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()
    picture = read_studies(studies_file)[0].main_image.path
    assert run_action("draft", str(model_folder), str(picture), "--speculate", str(studies_file)) == 0
