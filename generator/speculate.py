"""Speculative decoding: tokens proposed from known reports, several of which the model checks in one pass.

Reports are formulaic, so the words that followed in other reports are likely to follow in this one. Proposed tokens
that the model would have chosen itself are kept (Leviathan et al., arXiv 2211.17192, with a look-up in place of a small
model, as in Saxena's prompt lookup decoding). The text is the same as without proposals; of models in 16 bits not where
two tokens are equally likely to within rounding, as with another batch size. transformers' assisted generation takes
one study at a time and its own proposals only, hence the loop here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from raddraft.errors import RadDraftError

if TYPE_CHECKING:
    from transformers import DynamicCache

    from generator.drafter import Drafter
    from generator.ties import Alone
    from raddraft.studies import Study

START = -1  # stands before the first token of a report
ORDERS = (16, 8, 4, 2, 1)
MOST_CONTEXTS = 20_000_000
"""That an index keeps: a server's would grow with every draft."""
OWN_WEIGHT = 10
"""Reports of the index that one draft of the model's counts for: it repeats itself more than radiologists do."""
EXPLORE = 32  # passes after which the longest proposal is tried, whatever the cost model says
MEMORY = 0.99  # how much of an observation the cost model keeps from pass to pass


class ReportIndex:
    """What followed the last 16, 8, 4, 2 or 1 tokens in the reports seen so far.

    Of each context one follower is kept with its votes (the majority vote of Boyer and Moore), so the index grows with
    new contexts only. It also learns from what the model writes.
    """

    def __init__(self, reports: Sequence[Sequence[int]] = ()) -> None:
        self.followers: dict[tuple[int, ...], tuple[int, int]] = {}
        for report in reports:
            self.add(report)

    def add(self, tokens: Sequence[int], weight: int = 1) -> None:
        """Learn from a report's token ids, including its end token if it has one."""
        line = (START, *tokens)
        for end in range(1, len(line)):
            follower = line[end]
            for order in ORDERS:
                if order <= end:
                    context = line[end - order : end]
                    if len(self.followers) >= MOST_CONTEXTS and context not in self.followers:
                        continue
                    known, votes = self.followers.get(context, (follower, 0))
                    votes += weight if known == follower else -weight
                    self.followers[context] = (known, votes) if votes >= 0 else (follower, -votes)

    def propose(self, tokens: Sequence[int], limit: int) -> tuple[list[int], list[int]]:
        """Up to `limit` tokens that may follow, and the length of the context that each was found by."""
        line = (START, *tokens)[-ORDERS[0] :]
        proposed: list[int] = []
        orders: list[int] = []
        while len(proposed) < limit:
            for order in ORDERS:
                if order <= len(line) and (found := self.followers.get(line[-order:])):
                    break
            else:
                break
            proposed.append(found[0])
            orders.append(order)
            line = (*line, found[0])[-ORDERS[0] :]
        return proposed, orders


class CostModel:
    """How many tokens to propose: the number with most accepted tokens per second, which may be none.

    The time of a pass is fitted as `fixed + each * tokens`. The chance that a proposed token is accepted, if those
    before it were, is counted by the length of its context. Both are learned from the passes made.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.sums = [0.0] * 5  # of weights, x, y, x x and x y, with x the tokens and y the seconds of a pass
        self.outcomes = {order: [1.0, 2.0] for order in ORDERS}
        """Context length -> proposals accepted and checked, with a prior of one success and one failure."""

    def see_pass(self, tokens: int, seconds: float) -> None:
        """Learn from the time of a pass."""
        new = (1.0, tokens, seconds, tokens * tokens, tokens * seconds)
        self.sums = [MEMORY * old + one for old, one in zip(self.sums, new, strict=True)]
        self.passes += 1

    def see_outcome(self, orders: Sequence[int], accepted: int) -> None:
        """Learn how many of the proposed tokens were accepted; tokens after the first rejected one do not count."""
        for order in orders[: accepted + 1]:
            self.outcomes[order][1] += 1
        for order in orders[:accepted]:
            self.outcomes[order][0] += 1

    def seconds(self, tokens: int) -> float:
        """Expected time of a pass over this many tokens."""
        n, x, y, xx, xy = self.sums
        spread = n * xx - x * x
        each = max(0.0, (n * xy - x * y) / spread) if spread > 1e-9 else 0.0
        return max((y - each * x) / n, 1e-9) + each * tokens

    def length(self, proposals: Sequence[Sequence[int]]) -> int:
        """How many tokens of each proposal to check; a proposal is given by the context lengths of its tokens."""
        longest = max(map(len, proposals))
        if self.passes < 4:  # the fit needs passes with and without proposals
            return longest * (self.passes % 2)
        if self.passes % EXPLORE == 0:
            return longest
        chances = [1.0] * len(proposals)
        expected = float(len(proposals))  # every row gets one token from the pass itself
        best, best_rate = 0, expected / self.seconds(len(proposals))
        for length in range(1, longest + 1):
            for row, orders in enumerate(proposals):
                hits, tries = self.outcomes[orders[length - 1]] if length <= len(orders) else (0.0, 1.0)
                chances[row] *= hits / tries
            expected += sum(chances)
            rate = expected / self.seconds(len(proposals) * (length + 1))
            if rate > best_rate:
                best, best_rate = length, rate
        return best


class Speculator:
    """An index of reports with its cost model; both learn from the drafts of one model.

    At most `longest` tokens are proposed at a time.
    """

    def __init__(self, index: ReportIndex, longest: int = 24) -> None:
        self.index, self.longest, self.cost = index, longest, CostModel()

    def propose(self, texts: Sequence[Sequence[int]], max_new_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
        """For each text tokens that may follow, and the lengths of the contexts that they were found by."""
        found = [self.index.propose(text, min(self.longest, max_new_tokens - len(text) - 1)) for text in texts]
        length = self.cost.length([orders for _, orders in found])
        return [tokens[:length] for tokens, _ in found], [orders[:length] for _, orders in found]


class _Rows:
    """Texts being written, and their cache: columns that a row rejects are masked, those that all reject cut off."""

    def __init__(self, model: Any, inputs: Mapping[str, torch.Tensor], alone: Alone | None, lost: set[int]) -> None:
        self.model, self.cache, self.alone, self.lost = model, full_cache(model), alone, lost
        self.mask = inputs["attention_mask"]
        positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.last = positions[:, -1:]
        given = {"cache": self.cache, "use_cache": True, "logits_to_keep": 1}
        logits = model(**inputs, position_ids=positions, **given).logits
        self.numbers = list(range(len(logits)))
        self.texts: list[list[int]] = [[] for _ in self.numbers]
        self.texts = self._choose(logits, self.texts)

    def keep(self, rows: Sequence[int]) -> None:
        """Keep these rows only."""
        index = torch.tensor(rows, device=self.mask.device)
        self.cache.batch_select_indices(index)
        self.mask, self.last = self.mask[index], self.last[index]
        self.texts, self.numbers = [self.texts[row] for row in rows], [self.numbers[row] for row in rows]

    def check(self, proposals: Sequence[Sequence[int]]) -> tuple[list[list[int]], int]:
        """One pass: for each row the proposed tokens it accepts and one of its own; and the tokens of the pass."""
        device, width = self.mask.device, 1 + max(map(len, proposals))
        fed = [[text[-1], *proposal] for text, proposal in zip(self.texts, proposals, strict=True)]
        columns = torch.arange(width, device=device)
        lengths = torch.tensor([[len(text)] for text in self.texts], device=device)
        fresh = columns < torch.tensor([[len(tokens)] for tokens in fed], device=device)
        logits = self.model(
            input_ids=torch.tensor([tokens + [0] * (width - len(tokens)) for tokens in fed], device=device),
            attention_mask=torch.cat([self.mask, fresh.to(self.mask.dtype)], 1),
            position_ids=self.last + lengths + columns,
            cache=self.cache,
            use_cache=True,
        ).logits
        chosen = self._choose(logits, proposals)
        accepted = [_agreement(*pair) for pair in zip(proposals, chosen, strict=True)]
        refused = width - 1 - max(accepted)
        self.cache.crop(-refused)
        valid = columns[: width - refused] <= torch.tensor(accepted, device=device)[:, None]
        self.mask = torch.cat([self.mask, valid.to(self.mask.dtype)], 1)
        return [tokens[: count + 1] for tokens, count in zip(chosen, accepted, strict=True)], len(fed) * width

    def _choose(self, logits: torch.Tensor, proposals: Sequence[Sequence[int]]) -> list[list[int]]:
        """The most likely tokens after each row's text and each of its proposed tokens, from logits [B, W, V]."""
        chosen: list[list[int]] = logits.argmax(-1).tolist()
        for row, at in logits.isnan().any(-1).nonzero().tolist():
            if at <= len(proposals[row]):  # else it is padding
                self.lost.add(self.numbers[row])
        if self.alone:
            for row, at in self.alone.near(logits).nonzero().tolist():  # of a row the first column first
                before = list(proposals[row][:at])
                if at == len(before) and chosen[row][:at] == before:  # else what was proposed is refused before it
                    chosen[row][at] = self.alone.best(self.numbers[row], self.texts[row] + before)
        return chosen


def full_cache(model: Any) -> DynamicCache:
    """An empty cache that keeps all tokens; RadDraftError where a layer of the language model keeps only some."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    cache = DynamicCache(config=model.config)
    if kinds := {type(layer).__name__ for layer in cache.layers} - {DynamicLayer.__name__}:
        raise RadDraftError(
            f"Language models of type {model.config.text_config.model_type!r} have a cache ({min(kinds)}) that cannot "
            "take tokens back; leave out --speculate"
        )
    return cache


@torch.inference_mode()
def speculate(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    speculator: Speculator,
    max_new_tokens: int,
    ends: set[int],
    alone: Alone | None = None,
    follow: Callable[[list[list[int]]], None] | None = None,
    lost: set[int] | None = None,
) -> list[list[int]]:
    """New tokens of each study as greedy `generate` would write them, each with its end token if it has one.

    Args:
        model: a LLaVA model.
        inputs: input_ids and attention_mask [B, L], padded on the left, and the images' entries.
        speculator: proposes tokens, and learns from the texts.
        max_new_tokens: most tokens of a text.
        ends: the tokens that end a text.
        alone: settles near ties.
        follow: is told the texts after each pass.
        lost: is given the rows of which the model computes NaN; their texts mean nothing.

    Raises:
        RadDraftError: the language model's cache cannot take tokens back.
    """
    lost = set() if lost is None else lost
    rows = _Rows(model, inputs, alone, lost)
    texts = list(rows.texts)
    while unfinished := [
        row for row, text in enumerate(rows.texts) if len(text) < max_new_tokens and text[-1] not in ends
    ]:
        if len(unfinished) < len(rows.texts):
            rows.keep(unfinished)
        proposals, orders = speculator.propose(rows.texts, max_new_tokens)
        began = time.perf_counter()
        new, n_tokens = rows.check(proposals)
        speculator.cost.see_pass(n_tokens, time.perf_counter() - began)
        for text, tokens, found_by in zip(rows.texts, new, orders, strict=True):
            end = next((i for i, token in enumerate(tokens) if token in ends), len(tokens))
            text += tokens[: end + 1]
            speculator.cost.see_outcome(found_by, len(tokens) - 1)
        if follow is not None:
            follow(texts)
    for row, text in enumerate(texts):
        if row not in lost:
            speculator.index.add(text, OWN_WEIGHT)
    return texts


def _agreement(proposal: Sequence[int], chosen: Sequence[int]) -> int:
    """How many tokens of the proposal the model has chosen too, up to the first that differs."""
    return next((i for i, token in enumerate(proposal) if token != chosen[i]), len(proposal))


def index_reports(drafter: Drafter, studies: Sequence[Study], most: int = 20_000) -> ReportIndex:
    """Index of the studies' reports as the model would write them; of more than `most`, evenly spaced ones.

    Raises:
        RadDraftError: no study has the sections that the model writes.
    """
    texts = [answer for study in studies if (answer := drafter.prompt.answer(study))]
    if not texts:
        raise RadDraftError(f"No training study has the sections {', '.join(drafter.prompt.targets)}")
    step = max(1, len(texts) // most)
    tokens = drafter.tokens.of_texts(texts[::step][:most])
    return ReportIndex([[*line, drafter.processor.tokenizer.eos_token_id] for line in tokens])
