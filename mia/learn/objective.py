"""What an update makes smaller, token by token: pure functions of tensors, with gradients through `logprobs` alone.

Every tensor is [rows, tokens]: a row is a conversation, padded to the length of the longest; a mask tells the tokens
that the learner wrote. With the ratio ρ = exp(logprobs - old_logprobs) and the advantage A of its row, the loss of a
token is

    max(-A ρ, -A clip(ρ, 1 - clip_low, 1 + clip_high)),   for A < 0 at most   -A dual_clip

- PPO's clipped objective (Schulman et al. 2017, arXiv 1707.06347, equation 7), with an upper bound of its own
  ("clip-higher", DAPO: Yu et al. 2025, arXiv 2503.14476, section 3.1), so that rare tokens can still rise;
- dual clip (Ye et al. 2020, arXiv 1912.09729): a token that became far more likely, and should not have,
  bounds the loss instead of ruling it;
- the mean over all tokens of a batch (DAPO, section 3.3) or over each conversation first (GRPO);
- divergence from a reference model by the k3 estimate (Schulman 2020, "Approximating KL divergence").

Values and gradients are those of verl's `core_algos` and of TRL's DAPO loss (tests/parity). Exponents are bounded as in
verl, at ±20: beyond that a token has no gradient. Logprobs are natural logarithms, in float32 or wider.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mia.errors import LearnError

if TYPE_CHECKING:
    import torch

Aggregation = Literal["token-mean", "sequence-mean"]

EXPONENT_LIMIT = 20.0
"""Differences of logprobs are clamped to plus or minus this before they are exponents."""
K3_LIMIT = 10.0
"""Largest divergence of a token."""


@dataclass(frozen=True)
class Terms:
    """What `policy_terms` gives, each [rows, tokens]. Masked tokens have values too: they mean nothing."""

    loss: torch.Tensor
    clipped_low: torch.Tensor
    """Whether the token had a negative advantage and its ratio is below 1 - clip_low: its loss no longer moves."""
    clipped_high: torch.Tensor
    """Whether it had a positive one and its ratio is above 1 + clip_high."""
    dual_clipped: torch.Tensor
    """Whether it had a negative one and its ratio is above `dual_clip`."""
    log_ratio: torch.Tensor
    """logprobs - old_logprobs, clamped, without gradient; the mean of its negative estimates the divergence from the
    policy before the update."""


def policy_terms(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Terms:
    """The clipped loss of each token.

    `logprobs` are the learner's now; `old_logprobs` those of before the update, as data. `advantages`: one for each row
    [rows], or for each token [rows, tokens]. `dual_clip`: above 1, or None for none. Raises LearnError for other shapes
    and for bounds that make no sense.
    """
    if not (0 < clip_low < 1 and clip_high > 0):
        raise LearnError(f"clip_low is {clip_low} and clip_high {clip_high}.", wanted="0 < clip_low < 1, clip_high > 0")
    if dual_clip is not None and not dual_clip > 1:
        raise LearnError(f"dual_clip is {dual_clip}.", wanted="more than 1, or none", hint="learn.dual_clip = 3")
    if advantages.shape == logprobs.shape[:1]:
        advantages = advantages.unsqueeze(-1).expand_as(logprobs)
    _check_shapes(logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages)
    advantages = advantages.detach()
    log_ratio = _exponent(logprobs - old_logprobs.detach())
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    loss = unclipped.maximum(clipped)
    negative = advantages < 0
    above = ratio.new_zeros(ratio.shape).bool()
    if dual_clip is not None:
        loss = loss.minimum(-advantages * dual_clip).where(negative, loss)
        above = ratio > dual_clip
    return Terms(
        loss=loss,
        clipped_low=negative & (ratio < 1 - clip_low),
        clipped_high=(advantages > 0) & (ratio > 1 + clip_high),
        dual_clipped=negative & above,
        log_ratio=log_ratio.detach(),
    )


def k3(logprobs: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """How far the learner is from a reference model, estimated at each token: exp(d) - d - 1, where d = reference -
    logprobs. Never negative; its mean over samples of the learner is the divergence KL(learner ‖ reference).

    Clamped as in verl: d to ±20, the estimate to 10. So a token that the learner has made less likely than the
    reference by more than a factor of about 13 (d > 2.6) is no longer pulled back. It is seldom sampled, and its pull
    would drown all others. `reference` is data.
    """
    _check_shapes(logprobs=logprobs, reference=reference)
    difference = _exponent(reference.detach() - logprobs)
    return (difference.exp() - difference - 1).clamp(max=K3_LIMIT)


def importance(old: torch.Tensor, sampled: torch.Tensor, cap: float) -> torch.Tensor:
    """Weights for tokens that another policy sampled: min(exp(old - sampled), cap), without gradient.

    `old` are the logprobs of the learner before the update, `sampled` those of the sampler: an earlier version, or an
    engine with other arithmetic. Multiply the loss of `policy_terms` with it. Truncated importance sampling: Ionides
    2008; for a sampler apart from the learner, Yao et al. 2025 ("Your efficient RL framework secretly brings you
    off-policy RL training").
    """
    if not cap > 0:
        raise LearnError(f"the cap of importance weights is {cap}.", wanted="more than 0")
    _check_shapes(old=old, sampled=sampled)
    return _exponent(old.detach() - sampled.detach()).exp().clamp(max=cap)


def aggregate(
    terms: torch.Tensor, mask: torch.Tensor, how: Aggregation, *, tokens: int, sequences: int
) -> torch.Tensor:
    """This micro-batch's share of the mean over a whole batch: a scalar. The shares of all micro-batches add up to it,
    and so do their gradients.

    `mask` [rows, tokens] tells the tokens that count; whatever stands elsewhere, NaN too, does not. "token-mean": all
    tokens of the batch weigh the same; "sequence-mean": all conversations do, each by the mean over its tokens.
    `tokens`: that count, in the whole batch; `sequences`: conversations with any of them, in the whole batch. Raises
    LearnError for a batch of nothing and for an unknown `how`.
    """
    _check_shapes(terms=terms, mask=mask)
    if tokens < 1 or sequences < 1:
        raise LearnError(
            f"a batch of {tokens} tokens to learn from, in {sequences} conversations.", wanted="one token at least"
        )
    counts = mask.bool()
    kept = terms.masked_fill(~counts, 0.0)
    if how == "token-mean":
        return kept.sum() / tokens
    if how == "sequence-mean":
        return (kept.sum(dim=-1) / counts.sum(dim=-1).clamp(min=1)).sum() / sequences
    raise LearnError(f"unknown aggregation '{how}'.", wanted='"token-mean" or "sequence-mean"')


def _exponent(difference: torch.Tensor) -> torch.Tensor:
    """Bounded, so that its exponential is finite. NaN stays NaN."""
    return difference.clamp(-EXPONENT_LIMIT, EXPONENT_LIMIT)


def _check_shapes(**tensors: torch.Tensor) -> None:
    """Broadcasting [rows] against [rows, tokens] gives numbers, and wrong ones."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 2 for shape in shapes.values()):
        told = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise LearnError(f"tensors of the shapes {told}.", wanted="one shape [rows, tokens] for all")
