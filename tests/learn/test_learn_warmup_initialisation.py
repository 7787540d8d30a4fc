"""The structured start: heads that look where copying must, in a model that knows nothing else."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mia.learn.warmup import initialisation

VOCABULARY = 600
LENGTH = 48


@pytest.fixture(scope="module")
def said_twice() -> torch.Tensor:
    """Different tokens, then all of them again in the same order."""
    said = torch.randperm(VOCABULARY, generator=torch.Generator().manual_seed(0))[:LENGTH]
    return torch.cat([said, said])


@pytest.fixture(scope="module")
def seen(said_twice: torch.Tensor) -> tuple[torch.Tensor, Any]:
    """Attention (layer, head, from, to) and logits of a fresh model."""
    model = initialisation.build(VOCABULARY, 1, pad_token_id=0, eos_token_id=1).eval()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(said_twice[None], output_attentions=True)
    return torch.stack(out.attentions)[:, 0], out.logits[0]


@pytest.mark.parametrize(("head", "offset"), [(0, 1), (1, 2)])
def test_a_head_of_the_first_layer_looks_so_far_back(seen: tuple[torch.Tensor, Any], head: int, offset: int) -> None:
    attention = seen[0][0, head]
    # Mean attention by how far back it goes.
    by_offset = torch.stack([attention.diagonal(-back).mean() for back in range(8)])
    assert int(by_offset.argmax()) == offset
    assert by_offset[offset] > 0.5
    unstructured = seen[0][0, 2]
    assert unstructured.diagonal(-offset).mean() < 0.1


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("head", [0, 1])
def test_induction_heads_find_what_followed_the_last_time(
    seen: tuple[torch.Tensor, Any], layer: int, head: int
) -> None:
    """It is a start, to be trained: clearly more than an even look at all that was said would give."""
    attention = seen[0][layer, head]
    now = torch.arange(LENGTH, 2 * LENGTH)
    after_last = attention[now, now - LENGTH + 1].mean()
    even = (1.0 / (now + 1)).mean()
    assert after_last > 1.5 * even
    # Not for being close to everything: the tokens around it get less.
    assert after_last > attention[now, now - LENGTH + 3].mean()
    assert after_last > attention[now, now - LENGTH - 0].mean()


def test_a_fresh_model_knows_nothing(seen: tuple[torch.Tensor, Any], said_twice: torch.Tensor) -> None:
    loss = torch.nn.functional.cross_entropy(seen[1][:-1], said_twice[1:])
    assert float(loss) == pytest.approx(initialisation.loss_at_chance(VOCABULARY), abs=0.6)
    assert initialisation.loss_at_chance(VOCABULARY) == pytest.approx(math.log(600))


def test_a_seed_decides_the_weights_whatever_was_drawn_before() -> None:
    one = initialisation.build(300, 7)
    torch.rand(3)
    again, other = initialisation.build(300, 7), initialisation.build(300, 8)
    pairs = [(name, weight, again.get_parameter(name)) for name, weight in one.named_parameters()]
    assert all(torch.equal(weight, same) for _, weight, same in pairs)
    assert not torch.equal(one.model.embed_tokens.weight, other.model.embed_tokens.weight)
    assert one.lm_head.weight is one.model.embed_tokens.weight
    assert {weight.dtype for weight in one.parameters()} == {torch.float32}


@given(st.integers(1, 5_000), st.integers(1, 500), st.floats(1e-6, 1.0), st.floats(0.0, 1.0), st.integers(0, 5_000))
def test_the_rate_rises_to_its_peak_and_falls_to_its_floor(
    steps: int, warmup: int, peak: float, floor: float, step: int
) -> None:
    def rate(at: int) -> float:
        return initialisation.warmed_rate(at, steps, peak, warmup=warmup, floor=floor)

    assert 0 < rate(step) + 1e-12 <= peak * (1 + 1e-9) + 1e-12
    assert rate(warmup - 1) == pytest.approx(peak)
    if step + 1 < warmup:
        assert rate(step) < rate(step + 1)
    elif step >= warmup:
        assert rate(step + 1) <= rate(step)
    assert rate(max(steps, warmup + 1)) == pytest.approx(peak * floor, abs=1e-9)
