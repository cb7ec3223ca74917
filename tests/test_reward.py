"""The objective of a reward stage against its published form, rewards against `raddraft score`, and sampling."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from generator.config import RewardConfig, Stage, TrainConfig
from generator.model import load
from generator.reward import advantages, token_weights
from generator.reward_drafts import read_prompts
from generator.reward_stage import RewardStage, learn_from_rewards
from generator.rewards import OWN, REWARDS, Rewards, check_rewards, recall, watch
from generator.rollout import draft_log_probs, sample, token_log_probs, uniform_draws
from generator.runs import Progress, StagedRun
from metrics import score
from metrics.annotate import AnnotationCache
from metrics.models import Models
from metrics.systems import score_systems
from metrics.weights import MissingWeights
from raddraft.errors import RadDraftError
from raddraft.studies import read_studies
from tests.conftest import SENTENCES, make_study

TEXTS = [" ".join(SENTENCES[i] for i in rows) for rows in ((0, 2), (1, 3), (4,), (1, 5, 3), (2, 4), (5,))]
IDS = [f"s{number}" for number in range(len(TEXTS))]
REFERENCES = dict(zip(IDS, TEXTS, strict=True))
IN_MEMORY = Models(keep=False)


def rewards(references=REFERENCES, **metrics: float) -> Rewards:
    return Rewards(RewardConfig(metrics=metrics, models=IN_MEMORY, val_metrics=["rouge_l"]), references, references)


def test_the_reward_of_a_draft_is_its_value_in_the_table_of_score(tmp_path) -> None:
    names = ["rouge_l", "nltk_sentence_bleu_4", "rule_micro_f1_14"]
    drafts = [[TEXTS[(row + shift) % len(TEXTS)] for shift in range(3)] for row in range(len(TEXTS))]
    found = rewards(**dict.fromkeys(names, 1.0))(IDS, drafts, {}).values
    assert found.shape == (3, len(TEXTS), 3)
    for column in range(3):
        rows = [
            SimpleNamespace(study_id=study_id, reference=reference, prediction=group[column], subject_id=None, cut=None)
            for (study_id, reference), group in zip(REFERENCES.items(), drafts, strict=True)
        ]
        scored = score_systems({"drafts": rows}, names, models=IN_MEMORY, resamples=2)
        table = [line.split(",") for line in _per_study(scored, tmp_path)]
        for part, name in enumerate(names[:2]):
            assert found[part, :, column] == pytest.approx(
                [float(line[table[0].index(name)]) for line in table[1:]], abs=1e-6
            )
        for row, line in enumerate(rows):  # a report by itself; the table has what its F1 is made of
            alone = score([line.prediction], [line.reference], ["rule_micro_f1_14"], resamples=2)
            assert found[2, row, column] == alone["metrics"]["rule_micro_f1_14"]["value"]


def _per_study(scored, folder: Path) -> list[str]:
    scored.write(folder)
    return (folder / "per_study.csv").read_text().splitlines()


def test_the_rewards_of_macro_f1_have_it_as_their_mean() -> None:
    texts = {f"s{i}": TEXTS[i % 6] for i in range(60)}
    drafts = [[texts[study_id], TEXTS[int(study_id[1:]) % 4]] for study_id in texts]
    scorer = rewards(texts, rule_macro_f1_14=1.0)
    first = scorer.first_counts()
    nothing = {"rule_macro_f1_14": [[0.0] * 4] * 14}
    late = recall(nothing, [scorer([*texts], drafts, first).counts])
    found = scorer([*texts], drafts, late).values[0]
    pairs = [(draft, texts[study_id]) for study_id, group in zip(texts, drafts, strict=True) for draft in group]
    whole = score([one for one, _ in pairs], [other for _, other in pairs], ["rule_macro_f1_14"], resamples=2)
    assert found.mean() == pytest.approx(whole["metrics"]["rule_macro_f1_14"]["value"], abs=1e-9)
    # To first order: a draft more that is right where drafts are often wrong adds what it is worth above that mean.
    better = [list(group) for group in drafts]
    worst = int(np.argmin(found[:, 1]))
    better[worst][1] = texts[f"s{worst}"]
    gain = scorer([f"s{worst}"], [better[worst]], late).values[0, 0, 1] - found[worst, 1]
    again = [draft for group in better for draft in group]
    after = score(again, [other for _, other in pairs], ["rule_macro_f1_14"], resamples=2)["metrics"]
    gained = after["rule_macro_f1_14"]["value"] - whole["metrics"]["rule_macro_f1_14"]["value"]
    assert gained == pytest.approx(gain / len(pairs), rel=0.05)
    assert recall(late, [late])["rule_macro_f1_14"][0][3] == pytest.approx(120 + 0.95 * 120)
    assert first["rule_macro_f1_14"][1][:3] == pytest.approx([500 / 3 / 2] * 3), "cardiomegaly, in a third of the texts"


def test_blank_drafts_and_studies_without_a_report_have_a_stated_reward() -> None:
    scorer = rewards(rouge_l=1.0, rule_micro_f1_14=1.0, length=1.0)
    assert label_of_normal_is_no_finding()
    assert scorer(["s4"], [["", " \n", TEXTS[4]]], {}).values[:, 0].tolist() == [[0, 0, 1]] * 3
    with pytest.raises(KeyError):
        scorer(["unknown"], [["The heart is enlarged."]], {})


def label_of_normal_is_no_finding() -> bool:
    """A labeler would give a blank draft of a normal study an F1 of 1."""
    return score([""], [TEXTS[4]], ["rule_micro_f1_14"], resamples=2)["metrics"]["rule_micro_f1_14"]["value"] == 1


def test_what_no_reward_can_be_is_refused_by_name(monkeypatch, tmp_path) -> None:
    check_rewards(["radgraph_er", "chexbert_macro_f1_14", "rule_micro_f1_5_plus", *OWN])
    assert "coco_cider" not in REWARDS
    with pytest.raises(RadDraftError, match=r"'rouge-l' is no metric of a single report.*Did you mean rouge_l"):
        check_rewards(["rouge-l"])
    monkeypatch.setenv("RADDRAFT_WEIGHTS", str(tmp_path))
    with pytest.raises(MissingWeights, match="radgraph"):
        rewards(rouge_l=0.5, radgraph_er=0.5)
    with pytest.raises(RadDraftError, match=r"reward.metrics must be at least one metric with its weight"):
        RewardConfig()


def test_references_are_kept_and_drafts_are_not(monkeypatch, tmp_path) -> None:
    """Of a labeler's annotations, and of what is read once."""
    monkeypatch.setenv("RADDRAFT_CACHE", str(tmp_path))
    scorer = Rewards(RewardConfig(metrics={"rule_macro_f1_14": 1.0}, val_metrics=["rouge_l"]), REFERENCES, {})
    scorer(["s0"], [["The heart is very large.", TEXTS[0]]], scorer.first_counts())
    known = {text for results in scorer._once._results.values() for text in results}
    assert set(TEXTS) <= known
    assert "The heart is very large." not in known
    scorer._notes.write("labeler", {TEXTS[0]: [1], "The heart is very large.": [2]})
    assert len(scorer._notes.read("labeler", [TEXTS[0], "The heart is very large."])) == 2
    scorer._notes.forget()
    lasting = AnnotationCache(tmp_path / "annotations.sqlite")
    for cache in (scorer._notes, lasting):
        assert cache.read("labeler", [TEXTS[0], "The heart is very large."]) == {TEXTS[0]: [1]}


def test_watching_drafts() -> None:
    found = watch(["No edema. Lungs are clear. No edema.", "", "Small left pleural effusion."])
    assert found == {"words": 11 / 3, "repeated_sentences": 1 / 4, "no_finding": 1 / 3, "blank": 1 / 3}


def test_advantages() -> None:
    values = torch.tensor([[[0.0, 0.5, 1.0, 9.0]], [[3.0, 3.0, 0.0, 9.0]]], dtype=torch.float64)  # [2, 1, 4]
    counts = torch.tensor([[True, True, True, False]])
    a, b = np.array([0.0, 0.5, 1.0]), np.array([3.0, 3.0, 0.0])
    mixed = 2 * (a - a.mean()) / a.std() + 1 * (b - b.mean()) / b.std()
    weights = torch.tensor([2.0, 1.0])
    assert advantages(values, weights, counts, "mean_free")[0].tolist() == pytest.approx([*mixed, 0])
    scaled = (mixed - mixed.mean()) / mixed.std()
    assert advantages(values, weights, counts, "grpo")[0].tolist() == pytest.approx([*scaled, 0])
    one = values[:1]
    assert advantages(one, weights[:1], counts, "mean_free")[0].tolist() == pytest.approx([*(2 * (a - a.mean())), 0])
    greedy = torch.tensor([[0.25]])
    assert advantages(one, weights[:1], counts, "self_critical", greedy)[0].tolist() == pytest.approx(
        [-0.5, 0.5, 1.5, 0]
    )
    for kind in ("grpo", "mean_free"):
        same = advantages(torch.ones(2, 1, 4), weights, counts, kind)
        assert same.abs().max() == 0, "equal rewards are no signal"
    assert advantages(one, weights[:1], torch.tensor([[True, False, False, False]]), "grpo").abs().max() == 0


class Steps:
    """Stands in for an optimizer: keeps gradients and weights, and takes plain steps of a size."""

    def __init__(self, parameters, size: float) -> None:
        self.parameters, self.size, self.param_groups = parameters, size, [{"lr": 0.0}]
        self.gradients: list[dict] = []
        self.weights: list[dict] = []

    @torch.no_grad()
    def step(self) -> None:
        self.weights.append({name: one.clone() for name, one in self.parameters.items()})
        self.gradients.append({name: one.grad.clone() for name, one in self.parameters.items()})
        for one in self.parameters.values():
            one -= self.size * one.grad

    def zero_grad(self) -> None:
        for one in self.parameters.values():
            one.grad = None


@pytest.mark.parametrize(
    ("kind", "kl", "clip"),
    [("grpo", 0.0, 0.2), ("grpo", 0.3, 0.2), ("mean_free", 0.0, 0.01), ("self_critical", 0.3, 0.01)],
)
def test_the_gradient_is_that_of_the_published_objective(model_folder, tmp_path, kind, kl, clip) -> None:
    """Two updates on the same drafts: in the first the ratio is 1 and the start is the model itself; in the second the
    clip and the divergence act. The transcription reads each draft by itself, behind its whole prompt."""
    studies = [make_study(tmp_path, number, "train") for number in (0, 1, 2)]
    drafter = load(model_folder)
    reward = RewardConfig(
        {"rouge_l": 1.0, "length": 0.5}, group=4, temperature=1.3, max_new_tokens=30, advantage=kind, clip=clip, kl=kl,
        updates=2, batch_size=3, micro_batch_size=2, models=IN_MEMORY,
    )  # fmt: skip
    config = TrainConfig((stage := Stage(lr=1.0, lm="full", reward=reward, warmup=0),), max_grad_norm=1e9, workers=0)
    parameters = dict(drafter.model.named_parameters())
    for name, one in parameters.items():
        one.requires_grad_("vision_tower" not in name)
    parameters = {name: one for name, one in parameters.items() if one.requires_grad}
    model: torch.nn.Module = drafter.model
    before = {name: one.detach().clone() for name, one in parameters.items()}
    prompts = read_prompts(drafter, studies, reward, None)
    accelerator, steps = Accelerator(cpu=True), Steps(parameters, 0.5)
    run = StagedRun(tmp_path / "run", accelerator)
    this = RewardStage(0, stage, config, drafter, prompts, None)
    learn_from_rewards(this, model, model, steps, accelerator, run, Progress(), 1)
    assert len(steps.gradients) == 2

    items = {item.example.study_id: item for item in (prompts.dataset[i] for i in range(3))}
    model.load_state_dict(before, strict=False)
    drafts = {one: sampled(model, drafter, prompts.dataset.collate([item]), reward, one) for one, item in items.items()}
    worth = advantages_of(drafter, drafts, prompts.references, reward)
    ends = drafter.model.generation_config.eos_token_id

    def log_probs(item, tokens) -> torch.Tensor:
        ids = torch.tensor([[*item.example.prompt, *tokens]])
        logits = model(input_ids=ids, pixel_values=item.pixels).logits[0] / reward.temperature
        start = len(item.example.prompt)
        return torch.stack([logits[start + i - 1].log_softmax(0)[token] for i, token in enumerate(tokens)])

    def objective(old: dict) -> torch.Tensor:
        total, count = torch.zeros(()), 0
        for study_id, group in drafts.items():
            for number, tokens in enumerate(group[: reward.group]):
                if tokens[-1] not in ends:
                    continue
                count += 1
                new, was, advantage = log_probs(items[study_id], tokens), old[study_id, number], worth[study_id][number]
                of_draft = torch.zeros(())
                for now, earlier in zip(new, was, strict=True):
                    ratio = (now - earlier).exp()
                    least = torch.min(ratio * advantage, ratio.clip(1 - clip, 1 + clip) * advantage)
                    apart = earlier - now  # before the first update the model is the start
                    of_draft = of_draft + least - kl * (apart.exp() - apart - 1)
                total = total + of_draft / (len(tokens) if kind == "grpo" else reward.max_new_tokens)
        return -total / count

    with torch.no_grad():
        old = {
            (study_id, number): log_probs(items[study_id], tokens)
            for study_id, group in drafts.items()
            for number, tokens in enumerate(group)
        }
    clipped = []
    for weights, gradients in zip(steps.weights, steps.gradients, strict=True):
        model.load_state_dict(weights, strict=False)
        with torch.no_grad():
            ratios = [(log_probs(items[a], drafts[a][b]) - was).exp() for (a, b), was in old.items()]
        clipped.append(any(((ratio - 1).abs() > clip).any() for ratio in ratios))
        model.zero_grad()
        objective(old).backward()
        largest = max(float(one.abs().max()) for one in gradients.values())
        assert largest > 1e-3
        for name, one in gradients.items():
            assert torch.allclose(one, parameters[name].grad, rtol=0, atol=1e-5 * largest), name
    assert clipped == [False, True]


def sampled(model, drafter, batch, reward: RewardConfig, study_id: str) -> list[list[int]]:
    """The drafts of a study, by itself, and its greedy one; the numbers are those of the first step of seed 0."""
    draws = uniform_draws(f"0 0 0 {study_id}", reward.group, reward.max_new_tokens)
    draws = torch.cat([draws, torch.full_like(draws[:1], math.nan)])
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    return sample(model, inputs, draws[None], reward.temperature, set(drafter.model.generation_config.eos_token_id))


def advantages_of(drafter, drafts, references, reward: RewardConfig) -> dict[str, list[float]]:
    """Advantages, by the words of the documentation."""
    decode = drafter.processor.tokenizer.decode
    worth = {}
    for study_id, group in drafts.items():
        texts = [decode(tokens, skip_special_tokens=True).strip() for tokens in group]
        total = np.zeros(reward.group)
        ended = np.array([tokens[-1] in drafter.model.generation_config.eos_token_id for tokens in group])[:-1]
        for name, weight in reward.metrics.items():
            scorer = Rewards(RewardConfig({name: 1.0}, models=IN_MEMORY), references, {})
            *values, greedy = scorer([study_id], [texts], {}).values[0, 0]
            values = np.array(values)
            base = greedy if reward.advantage == "self_critical" else values[ended].mean()
            total += weight * (values - base) / values[ended].std()
        if reward.advantage == "grpo":
            total = (total - total[ended].mean()) / total[ended].std()
        worth[study_id] = [*total]
    return worth


def test_weights_of_tokens_add_up_over_parts_of_a_step() -> None:
    lengths, counts = torch.tensor([2, 4, 3]), torch.tensor([True, True, False])
    grpo = token_weights(lengths, counts, "grpo", 10, 5)
    assert grpo.sum(1).tolist() == pytest.approx([1 / 5, 1 / 5, 0])
    free = token_weights(lengths, counts, "mean_free", 10, 5)
    assert free.tolist() == [[pytest.approx(1 / 50)] * 2 + [0] * 2, [pytest.approx(1 / 50)] * 4, [0] * 4]


def test_samples_depend_on_their_own_numbers_and_follow_the_probabilities(model_folder, studies_file) -> None:
    drafter = load(model_folder)
    studies = read_studies(studies_file, "val")[:3]
    dataset = drafter.dataset(drafter.encode(studies, answers=False))
    items = [dataset[i] for i in range(3)]
    ends = set(drafter.model.generation_config.eos_token_id)
    names = ("input_ids", "attention_mask", "pixel_values")
    whole = {name: value for name, value in dataset.collate(items).items() if name in names}
    draws = torch.stack([uniform_draws(study.study_id, 3, 40) for study in studies])
    draws[:, 2] = math.nan
    together = sample(drafter.model, whole, draws, 1.5, ends)
    for row, item in enumerate(items):
        alone = {name: value for name, value in dataset.collate([item]).items() if name in names}
        assert sample(drafter.model, alone, draws[row : row + 1], 1.5, ends) == together[3 * row : 3 * row + 3]
    assert len({tuple(one) for one in together}) > 3
    greedy = drafter.model.generate(**whole, max_new_tokens=40)[:, whole["input_ids"].shape[1] :].tolist()
    for row, tokens in enumerate(greedy):
        assert tokens[: len(together[3 * row + 2])] == together[3 * row + 2]
    assert all(one[-1] in ends or len(one) == 40 for one in together)
    with torch.no_grad():
        found, entropy = draft_log_probs(drafter.model, whole, together, 1.0)
    for row, line in enumerate(token_log_probs(drafter.model, whole, together)):
        assert found[row, : len(line)].tolist() == pytest.approx(line, abs=1e-5)
    assert (entropy >= 0).all()
    # The first token of many drafts of one study against its probabilities.
    alone = {name: value for name, value in dataset.collate(items[:1]).items() if name in names}
    many = sample(drafter.model, alone, uniform_draws("many", 4000, 1)[None], 1.5, ends)
    logits = drafter.model(**alone).logits[0, -1] / 1.5
    expected = logits.softmax(0).detach()
    counts = torch.bincount(torch.tensor([one[0] for one in many]), minlength=len(expected)) / len(many)
    assert (counts - expected).abs().max() < 4 * 0.5 / math.sqrt(4000)
