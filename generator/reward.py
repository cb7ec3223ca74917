"""The objective of a reward stage: advantages of drafts over their group, PPO's clipped ratio, and a divergence.

For a draft o of study q, sampled from the weights before the step, with r = p(token) / p_before(token) and advantage A,

    loss of a token = -min(r A, clip(r, 1 - c, 1 + c) A) + k (exp(d) - d - 1),  d = log p_start(token) - log p(token)

(Schulman et al., arXiv 1707.06347; GRPO of Shao et al., arXiv 2402.03300, whose estimator of the divergence this is).
GRPO takes its mean over the tokens of each draft, then over the drafts, and divides advantages by the standard
deviation in the group. Liu et al. (Dr. GRPO, arXiv 2503.20783) show that this favors long wrong drafts, and studies on
which drafts hardly differ; without these divisions it is `mean_free`. `self_critical` takes the greedy draft's reward
from each (Rennie et al., arXiv 1612.00563).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Advantage = Literal["grpo", "mean_free", "self_critical"]
SAME = 1e-8
"""Standard deviation in a group up to which its rewards count as equal."""


def advantages(
    rewards: Tensor, weights: Tensor, counts: Tensor, kind: Advantage, greedy: Tensor | None = None
) -> Tensor:
    """What each draft is better by than its group.

    The parts of a mixed reward are divided by their standard deviation in the group before they are weighted, since
    their scales differ; a reward of one part only by `grpo`.

    Args:
        rewards: of each part, group and draft, [P, B, G].
        weights: of the parts [P].
        counts: whether a draft takes part [B, G]; what is cut at the limit of tokens does not.
        kind: see RewardConfig.advantage.
        greedy: of each part, the reward of the group's greedy draft [P, B]; for self_critical.

    Returns:
        [B, G]; 0 for drafts that take no part, and where a group has fewer than two that do.
    """
    rewards, weights = rewards.double(), weights.double()
    enough = counts.sum(1, keepdim=True) >= 2
    if kind == "self_critical":
        assert greedy is not None
        centered = rewards - greedy.double()[:, :, None]
    else:
        centered = rewards - _mean(rewards, counts)
    if len(rewards) > 1:
        centered = _divide(centered, _deviation(rewards, counts))
    total = (weights[:, None, None] * centered).sum(0)  # [B, G]
    if kind == "grpo":
        total = _divide(total, _deviation(total, counts))
    return torch.where(counts & enough, total, torch.zeros_like(total))


def spread(rewards: Tensor, counts: Tensor) -> Tensor:
    """Standard deviation in each group of the drafts that take part, [P, B]; 0 where fewer than two do."""
    return _deviation(rewards.double(), counts)[..., 0]


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    return torch.where(counts, values, 0).sum(-1, keepdim=True) / counts.sum(-1, keepdim=True).clamp(min=1)


def _deviation(values: Tensor, counts: Tensor) -> Tensor:
    return _mean((values - _mean(values, counts)).square(), counts).sqrt()


def _divide(values: Tensor, deviation: Tensor) -> Tensor:
    """Values / deviation; 0 where all are the same."""
    return torch.where(deviation > SAME, values / deviation.clamp(min=SAME), 0)


@dataclass
class TokenLoss:
    """The loss of each token, and what there is to log of it."""

    loss: Tensor
    """[N, T], with its gradient."""
    kl: Tensor
    """Estimate of the divergence from the start [N, T], 0 without a start."""
    clipped: Tensor
    """Whether the clip holds the gradient back [N, T]."""


def token_loss(
    log_probs: Tensor, before: Tensor, start: Tensor | None, advantage: Tensor, clip: float, kl: float
) -> TokenLoss:
    """The loss of each token as in the head of this module.

    Args:
        log_probs: of the sampled tokens [N, T], with gradients.
        before: of the same under the weights that they were sampled from.
        start: under the weights that the stage began with; not needed if `kl` is 0.
        advantage: of each draft [N].
        clip, kl: c and k above.
    """
    ratio = (log_probs - before).exp()
    gain, kept = ratio * advantage[:, None], ratio.clamp(1 - clip, 1 + clip) * advantage[:, None]
    loss = -torch.minimum(gain, kept)
    divergence = torch.zeros_like(loss)
    if start is not None:
        apart = start - log_probs
        divergence = apart.exp() - apart - 1
        loss = loss + kl * divergence
    return TokenLoss(loss, divergence.detach(), (kept < gain).detach())


def token_weights(lengths: Tensor, counts: Tensor, kind: Advantage, longest: int, total: int) -> Tensor:
    """What the loss of each token counts, so that the sum is that of the whole step.

    Args:
        lengths: tokens of each draft [N].
        counts: whether it takes part [N].
        kind: grpo divides each draft by its length, the others by the same number.
        longest: that number, the limit of tokens.
        total: drafts that take part in the step, over all processes.

    Returns:
        [N, T], T the longest of `lengths`; 0 after the end of a draft.
    """
    inside = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    each = 1 / lengths.clamp(min=1) if kind == "grpo" else torch.full_like(lengths, 1 / longest, dtype=torch.float32)
    return (inside & counts[:, None]) * each[:, None] / max(total, 1)
