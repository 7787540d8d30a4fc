"""The learner: the gradient that the formula says, however it is divided; nothing lost in a stop; faults told."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import resource
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import safetensors
import torch
import transformers
from models.tiny_model import asking, write_adapter, write_model

from mia.config import LearnSettings
from mia.errors import ConfigError, LearnError
from mia.learn.batching import make_rows, pad
from mia.learn.learner import CHECKPOINT, Learner
from mia.learn.rollouts import Conversation, RecordingModel, Rollout
from mia.models.local import LocalModel

FLAT: dict[str, Any] = {"kl": 0.0, "dual_clip": 0.0, "clip_norm": 1e9}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "llama", tie_word_embeddings=False)


def made_up(count: int = 12, *, seed: int = 0, vocabulary: int = 500, groups: int = 3) -> list[Rollout]:
    """Rollouts of one to three conversations with any tokens, any marks and any logprobs."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        rows = []
        for _ in range(rng.randint(1, 3)):
            ids = [rng.randrange(vocabulary) for _ in range(rng.randint(4, 60))]
            mask = [False, True, *(rng.random() < 0.4 for _ in ids[2:])]
            logprobs = [-rng.uniform(3, 9) if mark else 0.0 for mark in mask]
            rows.append(Conversation(tuple(ids), tuple(mask), tuple(logprobs)))
        found.append(
            Rollout(group=str(number % groups), reward=rng.random(), conversations=tuple(rows), id=f"roll-{number}")
        )
    return found


def sampled(folder: str, rollouts: Sequence[Rollout], noise: float = 0.0) -> list[Rollout]:
    """The same, as if the model had sampled them, with its own logprobs, give or take `noise`."""
    rng = random.Random(1)
    network = transformers.AutoModelForCausalLM.from_pretrained(folder)
    found = []
    for rollout in rollouts:
        rows = []
        for row in rollout.conversations:
            with torch.no_grad():
                told = network(torch.tensor([row.ids])).logits[0].log_softmax(-1)
            own = [0.0, *(float(told[place, token]) for place, token in enumerate(row.ids[1:]))]
            rows.append(
                replace(
                    row,
                    logprobs=tuple(
                        value + rng.gauss(0, noise) if mark else 0.0 for value, mark in zip(own, row.mask, strict=True)
                    ),
                )
            )
        found.append(replace(rollout, conversations=tuple(rows)))
    return found


def gradients(learner: Learner) -> torch.Tensor:
    return torch.cat(
        [
            (torch.zeros_like(one) if one.grad is None else one.grad).flatten()
            for _, one in sorted(learner._policy.parameters.items())
        ]
    )


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in learner._policy.parameters.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """To the last bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


# ── the gradient ──────────────────────────────────────────────────────────────────────────────────────────────────


def plainly(folder: str, rollouts: Sequence[Rollout], values: Sequence[float], settings: LearnSettings) -> Any:
    """Loss and gradient of all weights by the formula, one conversation at a time, by what is said in the papers: no
    batching, no clever logits."""
    network = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    base = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = [(row, value) for one, value in zip(rollouts, values, strict=True) for row in one.conversations]
    tokens = sum(row.learned for row, _ in rows)
    total = torch.zeros(())
    for row, value in rows:
        ids, mask = torch.tensor([row.ids]), torch.tensor(row.mask)[1:]
        told = network(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0][mask]
        with torch.no_grad():
            reference = base(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0][mask]
        ratio = (told - torch.tensor(row.logprobs)[1:][mask]).exp()
        loss = torch.maximum(-value * ratio, -value * ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high))
        if settings.dual_clip and value < 0:
            loss = loss.minimum(torch.tensor(-value * settings.dual_clip))
        far = reference - told
        loss = loss + settings.kl * (far.exp() - far - 1)
        total = total + (loss.sum() / tokens if settings.aggregate == "token-mean" else loss.mean() / len(rows))
    total.backward()
    return float(total.detach()), {name: value.grad for name, value in network.named_parameters()}


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512, "attn_pdrop": 0.5, "resid_pdrop": 0.5},
    "mistral": {"num_key_value_heads": 2, "sliding_window": 8},
    "cohere": {"logit_scale": 0.3, "num_key_value_heads": 2},
}
"""Tied and not, with dropout, with a window, with logits that are more than a product."""


@pytest.mark.parametrize("kind", ARCHITECTURES)
@pytest.mark.parametrize("aggregate", ["token-mean", "sequence-mean"])
def test_loss_and_gradient_are_those_of_the_formula(kind: str, aggregate: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / kind, kind, **{"initializer_range": 0.1, **ARCHITECTURES[kind]})
    rollouts = sampled(folder, made_up(5), noise=0.5)
    values = [1.5, -2.0, 0.7, -0.3, 0.0]
    settings = LearnSettings(weights="full", kl=0.3, aggregate=aggregate, dual_clip=1.5, batch_tokens=200)
    loss, expected = plainly(folder, rollouts, values, settings)
    learner = Learner.open(folder, settings)
    assert learner._policy._plain == (kind != "cohere"), "which way the logits go"
    done = learner.forward_backward(rollouts, values)
    assert done.loss == pytest.approx(loss, abs=1e-5)
    assert done.clipped_low > 0
    assert done.clipped_high > 0
    assert done.dual_clipped > 0
    found = {name: value.grad for name, value in learner._policy.parameters.items()}
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.allclose(value, expected[name], atol=1e-5 * max(1.0, float(expected[name].abs().max()))), name


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("aggregate", ["token-mean", "sequence-mean"])
def test_micro_batches_add_up_to_the_whole(kind: str, aggregate: str, tmp_path: Path) -> None:
    llama = write_model(tmp_path / "llama", initializer_range=0.1)
    moved = write_adapter(llama, tmp_path / "moved")
    rollouts = sampled(llama, made_up(), noise=0.3)
    values = [random.Random(number).gauss(0, 1) for number in range(len(rollouts))]
    whole = None
    for budget in (1_000_000, 300, 61, 1):
        settings = LearnSettings(weights=kind, kl=0.1, aggregate=aggregate, batch_tokens=budget)
        learner = Learner.open(llama, settings, adapter=moved if kind == "lora" else None)
        done = learner.forward_backward(rollouts, values)
        if whole is None:
            whole, first = gradients(learner), done
            assert whole.norm() > 0
        assert float((gradients(learner) - whole).abs().max()) <= 1e-6
        assert done.loss == pytest.approx(first.loss, abs=1e-6)
        assert done.entropy == pytest.approx(first.entropy, abs=1e-5)
        assert (done.tokens, done.conversations) == (first.tokens, first.conversations)


@pytest.mark.parametrize("aggregate", ["token-mean", "sequence-mean"])
def test_what_tries_repeat_is_read_once_and_weighs_as_often(aggregate: str, llama: str) -> None:
    first, second = sampled(llama, made_up(2), noise=0.5)
    settings = LearnSettings(weights="full", kl=0.3, aggregate=aggregate, dual_clip=1.5)
    rollouts, values = [first, second, first, first, first], [1.5, -2.0, 1.5, 0.5, 1.5]
    loss, expected = plainly(llama, rollouts, values, settings)
    learner = Learner.open(llama, settings)
    done = learner.forward_backward(rollouts, values)
    assert done.loss == pytest.approx(loss, abs=1e-5)
    for name, value in learner._policy.parameters.items():
        assert torch.allclose(value.grad, expected[name], atol=1e-5 * max(1.0, float(expected[name].abs().max()))), name
    once = Learner.open(llama, settings).forward_backward([first, second, first], [1.5, -2.0, 0.5])
    assert done.read_tokens == once.read_tokens
    assert done.conversations == sum(len(one.conversations) for one in rollouts)
    # What is told of the tokens is told of all of them.
    alone = Learner.open(llama, settings).forward_backward([first] * 4, [1.5] * 4)
    single = Learner.open(llama, settings).forward_backward([first], [1.5])
    for name in ("loss", "entropy", "clipped_low", "clipped_high", "moved", "weight"):
        assert getattr(alone, name) == pytest.approx(getattr(single, name), abs=1e-6), name


def test_calls_before_a_step_add_up(llama: str) -> None:
    rollouts = sampled(llama, made_up(6))
    learner = Learner.open(llama, LearnSettings(**FLAT))
    learner.forward_backward(rollouts[:3], [1.0, -1.0, 0.5])
    one = gradients(learner).clone()
    learner.forward_backward(rollouts[3:], [0.2, 1.0, -0.5])
    both = gradients(learner).clone()
    learner._forget()
    learner.forward_backward(rollouts[3:], [0.2, 1.0, -0.5])
    assert torch.allclose(both, one + gradients(learner), atol=1e-6)


# ── learning ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["lora", "full"])
async def test_what_is_rewarded_becomes_likelier(kind: str) -> None:
    """The embedded model, sampled, rewarded for one way to begin, and sampled with what it has learned."""
    learner = Learner.open("", LearnSettings(weights=kind, rate=3e-3 if kind == "lora" else 1e-3))
    request = asking("Which club does Sogutri play for?", max_tokens=1)
    probe = await learner.sample(replace(request, temperature=0.0))
    usual = probe.ids[0]
    seen = set()
    for turn in range(6):
        recorded = []
        for number in range(16):
            recording = RecordingModel(await learner.model(), seed=100 * turn + number, temperature=1.5)
            reply = await recording.complete(request)
            assert reply.adapter == learner.version
            recorded.append(
                Rollout(
                    group="one",
                    reward=float(reply.ids[0] != usual),
                    conversations=recording.conversations,
                    adapter_version=recording.adapter_version,
                )
            )
        seen.add(learner.version)
        learner.update(recorded)
    after = await learner.sample(replace(request, temperature=0.0))
    await learner.close()
    assert logprob(learner, probe.prompt_ids, usual) < probe.logprobs[0] - 1, "the usual way has become rare"
    assert logprob(learner, after.prompt_ids, after.ids[0]) == pytest.approx(after.logprobs[0], abs=1e-4)
    assert "" in seen
    assert len(seen) > 1


def logprob(learner: Learner, prompt: tuple[int, ...], token: int) -> float:
    """What the learner itself gives a token after a prompt."""
    row = Conversation((*prompt, token), (*(False for _ in prompt), True), (0.0,) * (len(prompt) + 1))
    policy = learner._policy
    rows, _ = make_rows([Rollout("", 0.0, (row,))], [0.0], limit=None, vocabulary=policy.vocabulary)
    with torch.no_grad():
        return float(policy.logprobs(policy.tensors(pad(rows)))[0])


@pytest.mark.parametrize("kind", ["lora", "full"])
async def test_samples_are_of_the_weights_as_they_are_now(llama: str, kind: str) -> None:
    learner = Learner.open(llama, LearnSettings(weights=kind, rate=1e-2, recompute=False, kl=0.0, clip_norm=1e9))
    request = asking("tell me", max_tokens=12, temperature=1.0, seed=5)
    versions = []
    for _ in range(4):
        replies = await asyncio.gather(*(learner.sample(replace(request, seed=seed)) for seed in range(6)))
        assert {reply.adapter for reply in replies} == {learner.version}
        versions.append(learner.version)
        rollouts = [
            Rollout(
                group="g",
                reward=float(number % 2),
                adapter_version=reply.adapter,
                conversations=(
                    Conversation(
                        reply.prompt_ids + reply.ids,
                        (False,) * len(reply.prompt_ids) + (True,) * len(reply.ids),
                        (0.0,) * len(reply.prompt_ids) + reply.logprobs,
                    ),
                ),
            )
            for number, reply in enumerate(replies)
        ]
        done = learner.update(rollouts)
        assert abs(done.passes[0].moved) < 1e-4, "what was sampled is what is learnt from"
        assert (done.passes[0].clipped_low, done.passes[0].clipped_high) == (0.0, 0.0)
    assert len(set(versions)) == 4
    assert versions[0] == ""
    await learner.close()
    await learner.close()


def test_several_passes_move_away_from_what_was_sampled(llama: str) -> None:
    rollouts = sampled(llama, made_up())
    settings = LearnSettings(rate=1e-3, passes=3, minibatch=4, kl=0.05)
    done = Learner.open(llama, settings).update(rollouts)
    assert len(done.steps) == len(done.passes) == 9
    assert [step.number for step in done.steps] == list(range(1, 10))
    assert done.moved
    assert done.passes[0].divergence == pytest.approx(0.0, abs=1e-6)
    assert done.passes[-1].divergence > 0
    assert abs(done.passes[0].moved) < 1e-5 < abs(done.passes[-1].moved)
    assert sum(one.conversations for one in done.passes) == 3 * sum(len(one.conversations) for one in rollouts)
    assert done.metrics["steps"] == 9
    assert done.metrics["reward"] == pytest.approx(sum(one.reward for one in rollouts) / len(rollouts))


def test_divergence_is_from_the_base_wherever_learning_began(llama: str, tmp_path: Path) -> None:
    rollouts = sampled(llama, made_up(4))
    learner = Learner.open(llama, LearnSettings(kl=1.0, rate=0.05, clip_norm=1e9))
    for _ in range(3):
        learner.update(rollouts)
    away = learner.forward_backward(rollouts, [0.0] * 4).divergence
    assert away > 1e-3
    assert learner.forward_backward(rollouts, [0.0] * 4).loss == pytest.approx(away), "nothing but divergence"
    learner.save_weights(tmp_path / "away")
    again = Learner.open(llama, learner.settings, adapter=tmp_path / "away")
    assert again.forward_backward(rollouts, [0.0] * 4).divergence == pytest.approx(away, rel=1e-5)


def test_the_rate_rises_and_the_norm_is_clipped(llama: str) -> None:
    rollouts = sampled(llama, made_up(4))
    learner = Learner.open(llama, LearnSettings(rate=0.4, warmup=4, clip_norm=0.01))
    rates, norms = [], []
    for _ in range(6):
        learner.forward_backward(rollouts, [1.0, -1.0, 0.5, 2.0])
        step = learner.optim_step()
        rates.append(step.rate)
        norms.append(step.norm)
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    assert norms[0] > 0.01, "told before it is clipped"


# ── what nothing is learnt from ───────────────────────────────────────────────────────────────────────────────────


def test_what_teaches_nothing_is_dropped_and_told(llama: str) -> None:
    """Groups of one, equal rewards, empty completions, rows over the limit, old versions: each counted by reason."""
    fine = sampled(llama, made_up(4, groups=1))
    plain = fine[0].conversations[0]
    empty = replace(plain, mask=(False,) * len(plain.ids))
    endless = Conversation((1,) * 600, (False, *(True,) * 599), (0.0, *(-1.0,) * 599))
    alone = replace(fine[0], group="alone")
    equal = [replace(one, group="equal", reward=0.25) for one in fine[:3]]
    odd = [
        Rollout(group="odd", reward=1.0, conversations=(empty, plain, endless)),
        Rollout(group="odd", reward=0.0, conversations=(plain,)),
    ]
    old = [replace(fine[0], adapter_version="old"), replace(fine[1], adapter_version="old")]
    learner = Learner.open(llama, LearnSettings())
    done = learner.update([alone, *equal, *odd, *fine, *old], version_age={"": 0, "old": 2}.__getitem__)
    assert done.dropped == {
        "more than 1 versions old": 2,
        "group of one": 1,
        "all rewards equal": 3,
        "empty completion": 1,
        "longer than the 512 tokens that the model reads": 1,
    }
    assert done.metrics["dropped"] == 8
    assert done.metrics["rollouts_learnt"] == 6
    assert done.passes[0].conversations == 2 + sum(len(one.conversations) for one in fine)


def test_nothing_to_learn_from_leaves_the_weights(llama: str) -> None:
    learner = Learner.open(llama, LearnSettings())
    before = weights(learner)
    assert learner.update([]).steps == ()
    done = learner.update([replace(one, reward=0.5) for one in made_up(6)])
    assert (done.steps, done.moved, done.dropped) == ((), False, {"all rewards equal": 6})
    assert all(math.isfinite(value) for value in done.metrics.values())
    assert learner.forward_backward([], []).tokens == 0
    assert learner.optim_step().skipped == "there was nothing to learn from"
    assert same(weights(learner), before)
    assert learner.steps == 0
    with pytest.raises(LearnError, match="has the reward nan"):
        learner.update([replace(one, reward=math.nan) for one in made_up(2, groups=1)])
    with pytest.raises(LearnError, match="holds the token 1000000"):
        learner.update(
            [replace(made_up(1)[0], reward=number, group="g", conversations=(FOREIGN,)) for number in (0, 1)]
        )


FOREIGN = Conversation((1, 1_000_000), (False, True), (0.0, -1.0))


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_loss_that_is_no_number_costs_a_step_and_no_more(llama: str, kind: str) -> None:
    fine = sampled(llama, made_up(8))
    row = fine[5].conversations[0]
    poisoned = list(fine)
    poisoned[5] = replace(
        fine[5], conversations=(replace(row, logprobs=tuple(math.nan if mark else 0.0 for mark in row.mask)),)
    )
    settings = LearnSettings(weights=kind, batch_tokens=50, rate=1e-3)
    learner, other = Learner.open(llama, settings), Learner.open(llama, settings)
    learner.update(fine)
    before, version = weights(learner), learner.version
    done = learner.update(poisoned)
    assert [step.skipped for step in done.steps] == ["the loss became nan"]
    assert done.passes[0].broken == "the loss became nan"
    assert (done.moved, done.metrics["steps_skipped"], learner.steps) == (False, 1.0, 1)
    assert same(weights(learner), before)
    assert learner.version == version
    learner.update(fine)
    other.update(fine)
    other.updates += 1
    other.update(fine)
    assert same(weights(learner), weights(other)), "as if it had never been"


def test_a_gradient_that_is_no_number_is_skipped_too(llama: str) -> None:
    learner = Learner.open(llama, LearnSettings(**FLAT))
    before = weights(learner)
    done = learner.forward_backward(sampled(llama, made_up(2)), [1e36, -1e36])
    assert math.isfinite(done.loss)
    step = learner.optim_step()
    assert step.skipped == "the gradient's norm became inf"
    assert same(weights(learner), before)


# ── samples of earlier versions ───────────────────────────────────────────────────────────────────────────────────


def test_samples_of_an_earlier_version_are_weighed(llama: str) -> None:
    rollouts = [replace(one, adapter_version="v1") for one in sampled(llama, made_up(), noise=1.0)]
    values = [random.Random(number).gauss(0, 1) for number in range(len(rollouts))]
    settings = LearnSettings(importance_cap=1.5, **FLAT)
    now, before = Learner.open(llama, settings), Learner.open(llama, settings)
    current = now.update(rollouts)
    assert current.passes[0].weight == 1.0
    assert current.passes[0].clipped_low > 0
    stale = before.update(rollouts, version_age=lambda _: 1)
    assert stale.passes[0].clipped_low == stale.passes[0].moved == 0.0, "the learner's own probabilities are the old"
    assert 0 < stale.passes[0].weight <= 1.5
    assert stale.passes[0].weight != 1.0
    recompute = Learner.open(llama, settings.model_copy(update={"recompute": True}))
    recompute.forward_backward(rollouts, values)
    # By the formula: with old equal to new the gradient is that of A · weight · logprob.
    expected = Learner.open(llama, settings)
    rows = [(row, value) for one, value in zip(rollouts, values, strict=True) for row in one.conversations]
    tokens = sum(row.learned for row, _ in rows)
    total = torch.zeros(())
    for row, value in rows:
        ids, mask = torch.tensor([row.ids]), torch.tensor(row.mask)[1:]
        told = expected._policy._network(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0][mask]
        weight = (told.detach() - torch.tensor(row.logprobs)[1:][mask]).exp().clamp(max=1.5)
        total = total - (value * weight * told).sum() / tokens
    total.backward()
    assert torch.allclose(gradients(recompute), gradients(expected), atol=1e-5)


def test_recomputed_probabilities_are_those_of_before_the_update(llama: str) -> None:
    rollouts = sampled(llama, made_up(), noise=1.0)
    settings = LearnSettings(recompute=True, passes=2, minibatch=6, rate=1e-2, kl=0.0)
    done = Learner.open(llama, settings).update(rollouts)
    assert abs(done.passes[0].moved) < 1e-6 < abs(done.passes[3].moved)
    exact = sampled(llama, rollouts)
    plain = Learner.open(llama, settings.model_copy(update={"recompute": False})).update(exact)
    assert [one.moved for one in done.passes] != [one.moved for one in plain.passes], "weights matter"


# ── files ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_going_on_from_a_checkpoint_is_as_if_nothing_had_happened(llama: str, kind: str, tmp_path: Path) -> None:
    settings = LearnSettings(weights=kind, minibatch=5, passes=2, warmup=9, rate=1e-3, kl=0.05)
    batches = [sampled(llama, made_up(seed=seed)) for seed in range(4)]
    learner = Learner.open(llama, settings, seed=7)
    for batch in batches[:2]:
        learner.update(batch)
    learner.save(tmp_path / "there")
    learner.forward_backward(batches[0], [1.0] * len(batches[0]))
    learner.save(tmp_path / "there")
    learner._forget()
    again = Learner.open(llama, settings, seed=1)
    again.forward_backward(batches[0], [1.0] * len(batches[0]))
    again.restore(tmp_path / "there")
    assert (again.steps, again.updates) == (learner.steps, learner.updates) == (12, 2)
    assert same(weights(again), weights(learner))
    for batch in batches[2:]:
        assert again.update(batch).passes[-1].loss == learner.update(batch).passes[-1].loss
    assert same(weights(again), weights(learner))
    assert again.version != learner.version
    assert [file.name for file in (tmp_path / "there").iterdir()] == [CHECKPOINT]


def test_a_checkpoint_of_another_learner_is_refused(llama: str, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", tie_word_embeddings=False, seed=1)
    learner = Learner.open(llama, LearnSettings(rank=4))
    learner.update(sampled(llama, made_up(4, groups=1)))
    learner.save(tmp_path / "there")
    for strange, message in (
        (Learner.open(other, LearnSettings(rank=4)), "its base model has the digest"),
        (Learner.open(llama, LearnSettings(rank=8)), "has shape"),
        (Learner.open(llama, LearnSettings(weights="full")), 'it trains "lora" weights, and this one "full"'),
    ):
        before = weights(strange)
        with pytest.raises(LearnError, match=message):
            strange.restore(tmp_path / "there")
        assert same(weights(strange), before)
    whole = (tmp_path / "there" / CHECKPOINT).read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"torn"):
        (tmp_path / "there" / CHECKPOINT).write_bytes(content)
        with pytest.raises(LearnError, match="cannot be read"):
            learner.restore(tmp_path / "there")
    with pytest.raises(LearnError, match="cannot be read"):
        learner.restore(tmp_path / "nowhere")


async def test_an_adapter_is_read_by_others(llama: str, tmp_path: Path) -> None:
    learner = Learner.open(llama, LearnSettings(rank=4, alpha=8.0, rate=1e-2))
    learner.update(sampled(llama, made_up()))
    learner.save_weights(tmp_path / "v1")
    request = asking("hello", max_tokens=8)
    ours = await learner.sample(request)
    await learner.close()
    assert sorted(file.name for file in (tmp_path / "v1").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    with safetensors.safe_open(tmp_path / "v1" / "adapter_model.safetensors", framework="pt") as file:
        assert file.metadata()["mia_base"] == learner.base
    config = json.loads((tmp_path / "v1" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8.0, "LORA")
    assert str(Path(llama).parent) not in json.dumps(config), "no path of this machine"
    base = transformers.AutoModelForCausalLM.from_pretrained(llama)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "v1").eval()
    with torch.no_grad():
        told = theirs(torch.tensor([ours.prompt_ids + ours.ids])).logits[0].log_softmax(-1)
    first = len(ours.prompt_ids) - 1
    expected = [float(told[first + place, token]) for place, token in enumerate(ours.ids)]
    assert list(ours.logprobs) == pytest.approx(expected, abs=1e-4)
    again = Learner.open(llama, LearnSettings(rank=16), adapter=tmp_path / "v1")
    assert same(weights(again), weights(learner)), "its rank is its own"


async def test_whole_weights_are_read_by_others(llama: str, tmp_path: Path) -> None:
    settings = LearnSettings(weights="full", rate=1e-3)
    learner = Learner.open(llama, settings)
    learner.update(sampled(llama, made_up()))
    learner.save_weights(tmp_path / "v1")
    ours = await learner.sample(asking("hello", max_tokens=8))
    await learner.close()
    model = LocalModel.open(tmp_path / "v1")
    reply = await model.complete(asking("hello", max_tokens=8))
    await model.close()
    assert (reply.ids, reply.logprobs) == (ours.ids, pytest.approx(ours.logprobs, abs=1e-5))
    again = Learner.open(llama, settings, adapter=tmp_path / "v1")
    assert same(weights(again), weights(learner))
    rollouts = sampled(llama, made_up(4))
    told = again.forward_backward(rollouts, [1.0] * 4).divergence
    assert told == pytest.approx(learner.forward_backward(rollouts, [1.0] * 4).divergence, rel=1e-4)
    assert told > 0


def test_what_was_trained_from_another_base_is_refused(llama: str, tmp_path: Path) -> None:
    other = write_model(tmp_path / "other", tie_word_embeddings=False, seed=1)
    wide = write_model(tmp_path / "wide", tie_word_embeddings=False, hidden_size=64)
    for settings in (LearnSettings(), LearnSettings(weights="full")):
        folder = tmp_path / settings.weights
        learner = Learner.open(other, settings)
        learner.save_weights(folder)
        with pytest.raises(ConfigError, match=r"trained (on|from) another base than"):
            Learner.open(llama, settings, adapter=folder)
        with pytest.raises(ConfigError, match=r"another base|cannot take the place|does not fit"):
            Learner.open(wide, settings, adapter=folder)
    with pytest.raises(ConfigError, match="holds no adapter"):
        Learner.open(llama, LearnSettings(), adapter=tmp_path / "full")
    with pytest.raises(ConfigError, match="no folder"):
        Learner.open(tmp_path / "none", LearnSettings())


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file grows beyond 4 KiB: what is written fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.fixture
def full_learner(llama: str) -> Learner:
    return Learner.open(llama, LearnSettings(weights="full"))


@pytest.fixture
def lora_learner(llama: str, tmp_path: Path) -> Learner:
    learner = Learner.open(llama, LearnSettings())
    learner.save(tmp_path / "kept")
    return learner


def test_a_full_disk_leaves_nothing_behind(
    lora_learner: Learner, full_learner: Learner, tmp_path: Path, small_disk: None
) -> None:
    whole = (tmp_path / "kept" / CHECKPOINT).read_bytes()
    for learner in (lora_learner, full_learner):
        with pytest.raises(LearnError, match="the weights cannot be written to") as raised:
            learner.save_weights(tmp_path / "v1")
        assert raised.value.hint
        with pytest.raises(LearnError, match="the checkpoint cannot be written to"):
            learner.save(tmp_path / "kept")
    assert [file.name for file in tmp_path.iterdir()] == ["kept"]
    assert [file.name for file in (tmp_path / "kept").iterdir()] == [CHECKPOINT]
    assert (tmp_path / "kept" / CHECKPOINT).read_bytes() == whole


def test_a_folder_that_is_there_keeps_what_else_it_holds(llama: str, tmp_path: Path) -> None:
    learner = Learner.open(llama, LearnSettings())
    learner.save(tmp_path / "v1")
    learner.save_weights(tmp_path / "v1")
    learner.save_weights(tmp_path / "v1")
    assert sorted(file.name for file in (tmp_path / "v1").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        CHECKPOINT,
    ]


# ── several processes ─────────────────────────────────────────────────────────────────────────────────────────────

TRAINING = """
import asyncio, json, os, sys
from pathlib import Path
import torch
from mia.config import LearnSettings
from mia.errors import LearnError
from mia.learn.learner import Learner
from mia.learn.rollouts import load_rollout

def train(model, folder, kind):
    rollouts = [load_rollout(row) for row in json.loads((folder / "rollouts.json").read_text())]
    poisoned = [load_rollout(row) for row in json.loads((folder / "poisoned.json").read_text())]
    settings = LearnSettings(weights=kind, minibatch=6, rate=1e-3, kl=0.05, recompute=True, passes=2)
    learner = Learner.open(model, settings)
    told = [learner.update(rollouts), learner.update(poisoned), learner.update(rollouts)]
    processes = os.environ.get("WORLD_SIZE", "1")
    learner.save(folder / f"{kind}-{processes}")
    learner.save_weights(folder / f"{kind}-{processes}" / "weights")
    return learner, rollouts, told

if __name__ == "__main__":
    model, folder, rank = sys.argv[1], Path(sys.argv[2]), int(os.environ["RANK"])
    for kind in ("lora", "full"):
        learner, rollouts, told = train(model, folder, kind)
        different = ""
        try:
            learner.forward_backward(rollouts[rank:], [1.0] * len(rollouts[rank:]))
        except LearnError as error:
            different = error.got
        asyncio.run(learner.close())
        (folder / f"{kind}-rank{rank}.json").write_text(json.dumps({
            "different": different,
            "losses": [one.loss for each in told for one in each.passes],
            "skipped": [step.skipped for each in told for step in each.steps],
            "read": [sum(one.read_tokens for one in each.passes) for each in told],
        }))
"""


@pytest.mark.slow
def test_two_processes_make_the_update_of_one(llama: str, tmp_path: Path) -> None:
    """Two processes of torchrun over gloo, against this one: adapter and all weights, with a batch whose loss is no
    number in one of the two."""
    rollouts = sampled(llama, made_up(), noise=0.3)
    row = rollouts[0].conversations[0]
    bad = replace(row, logprobs=tuple(math.nan if mark else 0.0 for mark in row.mask))
    poisoned = [replace(rollouts[0], conversations=(bad,)), *rollouts[1:]]
    for name, content in (("rollouts", rollouts), ("poisoned", poisoned)):
        (tmp_path / f"{name}.json").write_text(json.dumps([one.as_dict() for one in content]))
    program = tmp_path / "training.py"
    program.write_text(TRAINING)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    running = subprocess.Popen(
        [sys.executable, *torchrun, "--master-port", str(port), str(program), llama, str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
    )
    try:
        train = runpy.run_path(str(program))["train"]
        alone = {kind: train(llama, tmp_path, kind) for kind in ("lora", "full")}
        assert running.wait(timeout=300) == 0
    finally:
        running.kill()
        running.wait()
    for kind, (_, _, told) in alone.items():
        ranks = [json.loads((tmp_path / f"{kind}-rank{rank}.json").read_text()) for rank in (0, 1)]
        skipped = [bool(step.skipped) for each in told for step in each.steps]
        assert any(skipped)
        assert not all(skipped)
        losses = [one.loss for each in told for one in each.passes]
        for each in ranks:
            assert [bool(why) for why in each["skipped"]] == skipped
            assert each["losses"] == pytest.approx(losses, abs=1e-4, nan_ok=True)
            assert "handed different rollouts" in each["different"]
        assert any("in another process" in why for each in ranks for why in each["skipped"])
        assert ranks[0]["losses"] == pytest.approx(ranks[1]["losses"], abs=0, rel=0, nan_ok=True)
        for one, other in zip(ranks[0]["read"], ranks[1]["read"], strict=True):
            assert 0.5 < one / other < 2, "each does about half"
        one, two = (torch.load(tmp_path / f"{kind}-{count}" / CHECKPOINT, weights_only=True) for count in (1, 2))
        assert one["steps"] == two["steps"] > 0
        for name, value in one["weights"].items():
            assert torch.allclose(value, two["weights"][name], atol=2e-5), name
        assert (tmp_path / f"{kind}-2" / "weights").is_dir()
