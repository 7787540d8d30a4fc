"""The objective: as verl and TRL compute it (recorded), and by what must hold of it."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import recorded
from parity.cases import BRANCHES, Case, draw, fired, ours_as_trl, ours_as_verl, tensors

from mia.errors import LearnError
from mia.learn.objective import Aggregation, Terms, aggregate, importance, k3, policy_terms

HOWS: list[Aggregation] = ["token-mean", "sequence-mean"]
SEEDS = st.integers(0, 10**6)


def terms_of(case: Case) -> Terms:
    logprobs, old, _, _, _, advantages = tensors(case)
    return policy_terms(
        logprobs, old, advantages, clip_low=case.clip_low, clip_high=case.clip_high, dual_clip=case.dual_clip
    )


def one_token(ratio: float, advantage: float, *, dual_clip: float | None = 3.0) -> tuple[float, float]:
    """Loss of a token, and its derivative by its logprob."""
    logprobs = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    loss = policy_terms(
        logprobs,
        torch.zeros_like(logprobs),
        torch.tensor([advantage], dtype=torch.float64),
        clip_low=0.2,
        clip_high=0.28,
        dual_clip=dual_clip,
    ).loss
    loss.sum().backward()
    assert logprobs.grad is not None
    return loss.item(), logprobs.grad.item()


# As recorded from verl and TRL.


@pytest.mark.parametrize("number", range(len(recorded.objective("verl"))))
def test_as_verl(number: int) -> None:
    case, outcome = recorded.objective("verl")[number]
    assert recorded.differences(ours_as_verl(case), outcome) == []


@pytest.mark.parametrize("number", range(len(recorded.objective("trl"))))
def test_as_trl(number: int) -> None:
    case, outcome = recorded.objective("trl")[number]
    assert recorded.differences(ours_as_trl(case), outcome) == []


def test_the_recording_reaches_every_branch() -> None:
    cases = [case for case, _ in recorded.objective("verl")]
    reached = sum((fired(case) for case in cases), Counter())
    assert [branch for branch in BRANCHES if not reached[branch]] == []
    assert {case.how for case in cases} == set(HOWS)
    assert {case.dual_clip is None for case in cases} == {True, False}
    cases = [case for case, _ in recorded.objective("trl")]
    reached = sum((fired(case) for case in cases), Counter())
    assert min(reached[branch] for branch in ("clipped low", "clipped high", "dual clip", "masked token")) > 0
    assert any(case.kl for case in cases)


@pytest.mark.parametrize("package", ["verl", "trl"])
def test_a_comparison_that_would_see_a_difference(package: str) -> None:
    """Every number of every outcome is compared: one that is changed is found."""
    ours = {"verl": ours_as_verl, "trl": ours_as_trl}[package]
    case, outcome = recorded.objective(package)[0]
    for name in outcome:
        changed = torch.tensor(outcome[name], dtype=torch.float64)
        changed.view(-1)[-1] += 1e-5
        found = recorded.differences(ours(case), {**outcome, name: changed.tolist()})
        assert [one.partition(":")[0] for one in found] == [name]
    del outcome["loss"]
    assert recorded.differences(ours(case), outcome) == ["loss is in one of them only"]


# The clipped loss.


@settings(deadline=None)
@given(seed=SEEDS)
def test_the_marks_of_clipped_tokens(seed: int) -> None:
    case = draw(seed)
    terms, mask = terms_of(case), torch.tensor(case.mask).bool()
    reached = fired(case)
    negative = torch.tensor(case.advantages)[:, None].expand_as(mask) < 0
    assert int((terms.clipped_low & mask).sum()) == reached["clipped low"]
    assert int((terms.clipped_high & mask).sum()) == reached["clipped high"]
    assert int((terms.dual_clipped & mask).sum()) == reached["dual clip"]
    assert not (terms.clipped_low & ~negative).any()
    assert not (terms.clipped_high & negative).any()


@settings(deadline=None)
@given(seed=SEEDS)
def test_a_clipped_token_has_no_gradient_and_another_has(seed: int) -> None:
    case = draw(seed, far=False)
    logprobs, old, _, _, _, advantages = tensors(case)
    terms = policy_terms(
        logprobs, old, advantages, clip_low=case.clip_low, clip_high=case.clip_high, dual_clip=case.dual_clip
    )
    (gradient,) = torch.autograd.grad(terms.loss.sum(), logprobs)
    still = terms.clipped_low | terms.clipped_high | terms.dual_clipped | (advantages == 0)
    assert torch.equal(gradient == 0, still)
    # Where it moves, it moves the token's logprob towards the sign of the advantage, by the ratio.
    expected = -advantages * (logprobs - old).exp()
    torch.testing.assert_close(gradient[~still], expected.detach()[~still])


@settings(deadline=None)
@given(advantage=st.floats(-5, 5).filter(lambda value: abs(value) > 1e-6))
def test_before_the_first_step_the_gradient_is_that_of_the_policy(advantage: float) -> None:
    assert one_token(1.0, advantage) == pytest.approx((-advantage, -advantage))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope"),
    [
        (1.27, 1.0, -1.27, -1.27),
        (1.29, 1.0, -1.28, 0.0),  # Higher than 1.2: clip-higher.
        (0.5, 1.0, -0.5, -0.5),
        (0.81, -1.0, 0.81, 0.81),
        (0.79, -1.0, 0.8, 0.0),
        (2.9, -1.0, 2.9, 2.9),
        (3.1, -2.0, 6.0, 0.0),
    ],
)
def test_by_hand(ratio: float, advantage: float, loss: float, slope: float) -> None:
    assert one_token(ratio, advantage) == pytest.approx((loss, slope))


def test_without_dual_clip_the_loss_is_not_bounded() -> None:
    assert one_token(50.0, -1.0, dual_clip=None) == pytest.approx((50.0, 50.0))
    assert one_token(50.0, -1.0, dual_clip=3.0) == (3.0, 0.0)


def test_one_advantage_for_each_row_is_that_of_its_tokens() -> None:
    logprobs = torch.tensor([[-1.0, -2.0], [-0.5, -3.0]])  # As many rows as tokens.
    bounds = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": None}
    by_row = policy_terms(logprobs, logprobs, torch.tensor([1.0, -2.0]), **bounds)
    by_token = policy_terms(logprobs, logprobs, torch.tensor([[1.0, 1.0], [-2.0, -2.0]]), **bounds)
    assert torch.equal(by_row.loss, by_token.loss)
    assert by_row.loss.tolist() == [[-1.0, -1.0], [2.0, 2.0]]


def test_only_logprobs_have_a_gradient() -> None:
    data = [torch.randn(2, 3, requires_grad=True) for _ in range(5)]
    logprobs, old, reference, sampled, advantages = data
    terms = policy_terms(logprobs, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    weights = importance(old, sampled, 2.0)
    assert not weights.requires_grad
    assert not terms.log_ratio.requires_grad
    (terms.loss * weights + k3(logprobs, reference)).sum().backward()
    assert [one.grad is not None for one in data] == [True, False, False, False, False]


@pytest.mark.parametrize("distance", [-1e4, -100.0, 100.0, 1e4, math.inf, -math.inf])
def test_far_away_everything_is_finite(distance: float) -> None:
    logprobs = torch.tensor([[-1.0, -1.0 + distance]], requires_grad=True)
    other = torch.full((1, 2), -1.0)
    for advantage in (1.0, -1.0):
        terms = policy_terms(logprobs, other, torch.tensor([advantage]), clip_low=0.2, clip_high=0.28, dual_clip=None)
        total = terms.loss.sum() + k3(logprobs, other).sum() + importance(logprobs, other, 2.0).sum()
        (gradient,) = torch.autograd.grad(total, logprobs)
        assert torch.isfinite(total)
        assert torch.isfinite(gradient).all()


# The divergence.


@settings(deadline=None)
@given(seed=SEEDS)
def test_the_divergence_is_never_negative(seed: int) -> None:
    case = draw(seed)
    logprobs, _, reference, *_ = tensors(case)
    divergence = k3(logprobs, reference)
    assert (divergence >= 0).all()
    assert (divergence <= 10).all()
    assert torch.equal(k3(logprobs, logprobs), torch.zeros_like(logprobs))


@settings(deadline=None)
@given(seed=SEEDS)
def test_its_mean_over_samples_is_the_divergence(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    learner, base = (
        (0.3 * torch.randn(1, 8, generator=generator, dtype=torch.float64)).log_softmax(-1) for _ in range(2)
    )
    estimate = (learner.exp() * k3(learner, base)).sum()
    # Every token of a vocabulary of eight, weighed as often as it is sampled; none reaches the limit.
    assert k3(learner, base).max() < 10
    torch.testing.assert_close(estimate, (learner.exp() * (learner - base)).sum())


@pytest.mark.parametrize(("difference", "slope"), [(0.5, 1 - math.exp(0.5)), (-3.0, 1 - math.exp(-3)), (2.7, 0.0)])
def test_its_gradient_pulls_back_up_to_the_limit(difference: float, slope: float) -> None:
    logprobs = torch.tensor([[-4.0]], dtype=torch.float64, requires_grad=True)
    k3(logprobs, logprobs.detach() + difference).sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.item() == pytest.approx(slope)


# Weights of samples of another policy.


@settings(deadline=None)
@given(seed=SEEDS)
def test_importance(seed: int) -> None:
    case = draw(seed, far=False)
    _, old, _, sampled, _, _ = tensors(case)
    weights = importance(old, sampled, case.cap)
    assert torch.equal(importance(old, old, case.cap), torch.ones_like(old))
    exact = (old - sampled).exp()
    assert torch.equal(weights, torch.where(exact > case.cap, case.cap, exact))


def test_importance_without_a_cap_that_binds_corrects_the_mean() -> None:
    """Over all tokens, weighed as often as the sampler draws them, the mean is that of the learner."""
    sampler, learner = (torch.tensor([values]).log() for values in ([0.5, 0.3, 0.2], [0.4, 0.2, 0.4]))
    value = torch.tensor([[1.0, -2.0, 5.0]])
    mean = (sampler.exp() * importance(learner, sampler, 10.0) * value).sum()
    torch.testing.assert_close(mean, (learner.exp() * value).sum())
    capped = (sampler.exp() * importance(learner, sampler, 1.5) * value).sum()
    torch.testing.assert_close(capped, mean - 0.2 * 0.5 * 5.0)


# Means over a batch.


def batch(case: Case) -> dict[str, int]:
    return {"tokens": case.tokens, "sequences": case.sequences}


@pytest.mark.parametrize("how", HOWS)
@settings(deadline=None)
@given(seed=SEEDS, cuts=st.sets(st.integers(1, 5)))
def test_micro_batches_add_up(how: Aggregation, seed: int, cuts: set[int]) -> None:
    case = draw(seed)
    logprobs, _, reference, _, mask, _ = tensors(case)
    whole = aggregate(terms_of(case).loss, mask, how, **batch(case))
    rows = len(case.mask)
    edges = [0, *sorted(cut for cut in cuts if cut < rows), rows]
    parts = [case.rows(start, stop) for start, stop in pairwise(edges)]
    shares = [aggregate(terms_of(part).loss, torch.tensor(part.mask), how, **batch(case)) for part in parts]
    torch.testing.assert_close(sum(shares), whole)

    (gradient,) = torch.autograd.grad(aggregate(k3(logprobs, reference), mask, how, **batch(case)), logprobs)
    for start, stop in pairwise(edges):
        values = k3(logprobs[start:stop], reference[start:stop])
        (share,) = torch.autograd.grad(aggregate(values, mask[start:stop], how, **batch(case)), logprobs)
        torch.testing.assert_close(share[start:stop], gradient[start:stop])


@pytest.mark.parametrize("how", HOWS)
@settings(deadline=None)
@given(seed=SEEDS, chance=st.randoms(use_true_random=False))
def test_the_order_of_rows_and_padding_do_not_matter(how: Aggregation, seed: int, chance: object) -> None:
    case = draw(seed)
    rows = list(range(len(case.mask)))
    chance.shuffle(rows)  # type: ignore[attr-defined]
    values, mask = terms_of(case).loss, torch.tensor(case.mask)
    padded = torch.nn.functional.pad(values[rows], (0, 3), value=7.0)
    torch.testing.assert_close(
        aggregate(padded, torch.nn.functional.pad(mask[rows], (0, 3)), how, **batch(case)),
        aggregate(values, mask, how, **batch(case)),
    )


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
@settings(deadline=None)
@given(seed=SEEDS)
def test_what_is_masked_does_not_matter(how: Aggregation, garbage: float, seed: int) -> None:
    """Neither to the value nor to the gradient, whatever it is."""
    case = draw(seed)
    found = []
    for filled in (0.0, garbage):
        logprobs, old, reference, sampled, mask, advantages = tensors(case)
        away = mask == 0
        given_ = logprobs.detach().masked_fill(away, filled).requires_grad_()
        old, reference, sampled = (table.masked_fill(away, -0.5) for table in (old, reference, sampled))
        terms = policy_terms(given_, old, advantages, clip_low=0.2, clip_high=0.28, dual_clip=case.dual_clip)
        losses = terms.loss * importance(old, sampled, 2.0) + 0.1 * k3(given_, reference)
        total = aggregate(losses, mask, how, **batch(case))
        (gradient,) = torch.autograd.grad(total, given_)
        assert not gradient[away].any()
        found.append((total.detach(), gradient))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("how", HOWS)
def test_a_learned_token_that_is_no_number_is_seen(how: Aggregation) -> None:
    """The learner leaves out a step whose loss is NaN; it must not be hidden from it."""
    logprobs = torch.tensor([[-1.0, math.nan]])
    other = torch.full((1, 2), -1.0)
    terms = policy_terms(logprobs, other, torch.ones(1), clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    for values in (terms.loss, k3(logprobs, other)):
        assert aggregate(values, torch.ones(1, 2), how, tokens=2, sequences=1).isnan()


def test_tokens_or_conversations_weigh_the_same() -> None:
    values = torch.tensor([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert aggregate(values, mask, "token-mean", tokens=4, sequences=2).item() == 2.0
    assert aggregate(values, mask, "sequence-mean", tokens=4, sequences=2).item() == 3.0


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float32])
def test_masks_of_any_kind(how: Aggregation, kind: torch.dtype) -> None:
    case = draw(3)
    values, mask = terms_of(case).loss, torch.tensor(case.mask)
    assert torch.equal(
        aggregate(values, mask.to(kind), how, **batch(case)), aggregate(values, mask, how, **batch(case))
    )


@pytest.mark.parametrize("how", HOWS)
def test_a_micro_batch_without_a_learned_token_adds_nothing(how: Aggregation) -> None:
    values = torch.ones(2, 3, requires_grad=True)
    total = aggregate(values, torch.zeros(2, 3), how, tokens=9, sequences=4)
    total.backward()
    assert total.item() == 0
    assert values.grad is not None
    assert not values.grad.any()


# What makes no sense.


@pytest.mark.parametrize(
    ("clip_low", "clip_high", "dual_clip"),
    [(0.0, 0.2, None), (1.0, 0.2, None), (0.2, 0.0, None), (math.nan, 0.2, None), (0.2, 0.2, 1.0), (0.2, 0.2, 0.0)],
)
def test_bounds(clip_low: float, clip_high: float, dual_clip: float | None) -> None:
    table = torch.zeros(1, 2)
    with pytest.raises(LearnError, match=r"clip"):
        policy_terms(table, table, torch.ones(1), clip_low=clip_low, clip_high=clip_high, dual_clip=dual_clip)


def test_shapes_are_not_broadcast() -> None:
    table, row = torch.zeros(2, 3), torch.zeros(3)
    bounds = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": None}
    with pytest.raises(LearnError, match=r"old_logprobs \[3\]"):
        policy_terms(table, row, torch.ones(2), **bounds)
    with pytest.raises(LearnError, match=r"advantages \[3\]"):
        policy_terms(table, table, row, **bounds)
    with pytest.raises(LearnError, match=r"logprobs \[2, 3\], reference \[2, 1\]"):
        k3(table, table[:, :1])
    with pytest.raises(LearnError, match=r"old \[3\], sampled \[3\]"):
        importance(row, row, 2.0)
    with pytest.raises(LearnError, match=r"mask \[2, 2\]"):
        aggregate(table, torch.ones(2, 2), "token-mean", tokens=4, sequences=2)


def test_other_misuse() -> None:
    table = torch.zeros(1, 2)
    with pytest.raises(LearnError, match="cap"):
        importance(table, table, 0.0)
    with pytest.raises(LearnError, match="0 tokens"):
        aggregate(table, table, "token-mean", tokens=0, sequences=0)
    with pytest.raises(LearnError, match="'token-sum'"):
        aggregate(table, table, "token-sum", tokens=2, sequences=1)  # type: ignore[arg-type]
