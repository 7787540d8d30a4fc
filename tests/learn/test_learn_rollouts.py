"""Rollouts hold the very tokens that were read and written: by decoding them, and by the network's own arithmetic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch
from embedded_team import everybody, live_all, needs_embedded_model, settings
from hypothesis import given
from hypothesis import strategies as st
from models.tiny_model import write_adapter, write_model

import mia
from mia.errors import LearnError
from mia.learn.rewards import build_reward
from mia.learn.rollouts import (
    Conversation,
    Dropped,
    RecordingModel,
    Reward,
    Rollout,
    Said,
    Sampled,
    load_rollout,
    require_tokens,
    roll_out,
)
from mia.models.base import ChatModel, ChatReply, ChatRequest
from mia.models.ledger import Ledger
from mia.models.local import Loaded, LocalModel
from mia.models.scripted import ScriptedModel
from mia.models.weights import Weights
from mia.team import build_team
from mia.types import Episode, Message, Question, Role, Task
from mia.world import preset
from mia.world.facts import World
from mia.world.questions import tasks

TASK = Task(question=Question.of("hello there", id="q"))


# ── what exact means ──────────────────────────────────────────────────────────────────────────────────────────────


def runs(conversation: Conversation, *, written: bool) -> list[tuple[int, ...]]:
    """The runs of tokens that the learner wrote, or that it did not."""
    marked = groupby(zip(conversation.ids, conversation.mask, strict=True), lambda pair: pair[1])
    return [tuple(token for token, _ in run) for mark, run in marked if mark is written]


def text_of(ids: Sequence[int], weights: Weights) -> str:
    """As a reply's text is made of its tokens."""
    return weights.decode([token for token in ids if token not in weights.end_ids])


def check_tokens_are_what_was_said(sampled: Sampled[Any], weights: Weights) -> None:
    rollout = sampled.sample
    assert isinstance(rollout, Rollout)
    written = [text_of(run, weights) for one in rollout.conversations for run in runs(one, written=True)]
    # A stop string is among the tokens, and no part of the text.
    assert sorted(text.partition("<tool_response>")[0] for text in written) == sorted(one.text for one in sampled.said)
    assert rollout.learned == sum(len(run) for one in rollout.conversations for run in runs(one, written=True))


def check_logprobs(rollout: Rollout | Dropped, weights: Weights) -> None:
    """Against a plain forward pass over the whole conversation."""
    assert isinstance(rollout, Rollout)
    for conversation in rollout.conversations:
        with torch.inference_mode():
            told = weights.network(torch.tensor([conversation.ids])).logits[0].float().log_softmax(-1)
        assert not conversation.mask[0], "a prompt comes first"
        for at, (token, written, logprob) in enumerate(
            zip(conversation.ids, conversation.mask, conversation.logprobs, strict=True)
        ):
            expected = float(told[at - 1, token]) if written else 0.0
            assert logprob == pytest.approx(expected, abs=1e-4)


def read(conversation: Conversation, weights: Weights) -> str:
    """What the learner read and did not write."""
    return "\n".join(weights.decode(run) for run in runs(conversation, written=False))


# ── the line's own agents, in the offline world ───────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Stage:
    """Rollouts of one role, all others being greedy."""

    role: Role
    sampled: list[Sampled[Episode]]
    weights: Weights

    @property
    def rollouts(self) -> list[Rollout]:
        return [one.sample for one in self.sampled if isinstance(one.sample, Rollout)]


async def _stage(role: Role, loaded: Loaded, home: Path) -> Stage:
    model = LocalModel(loaded, **{name: preset.MODEL[name] for name in ("temperature", "context_window", "max_tokens")})
    world = World.make(500_003)
    config = settings(
        home,
        search__world=world.seed,
        line__replan="verdict" if role is Role.EXECUTOR else "reflect",
        line__judge="each",
        judge__kind="reference",
    )
    team = build_team(config, models=everybody(model))
    first, then = (questions := tasks(world, 14))[:8], questions[8:]
    await live_all(first, team, at_once=4)

    async def answer(recording: ChatModel, task: Task) -> Episode:
        part: Any = {role.value: getattr(team, role.value).asking(recording)}
        return await mia.answer(task, replace(team, **part), Ledger(task.question.id))

    reward = build_reward(config.learn, role, team.executor.tools)
    sampled = await asyncio.gather(
        *(roll_out(answer, model, task, reward, seed=seed) for task in then for seed in range(2))
    )
    await team.close()
    await model.close()
    return Stage(role, list(sampled), loaded.weights)


@pytest.fixture(
    scope="module", params=[pytest.param(role, marks=needs_embedded_model) for role in (Role.EXECUTOR, Role.PLANNER)]
)
def stage(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return asyncio.run(_stage(request.param, Loaded.open(), tmp_path_factory.mktemp("home")))


def test_every_question_gave_a_sample(stage: Stage) -> None:
    assert len(stage.rollouts) == len(stage.sampled) == 12
    assert len({rollout.reward for rollout in stage.rollouts}) > 1
    assert any(len(one.outcome.attempts) == 2 for one in stage.sampled), "no replan was seen"
    assert any(len(one.outcome.attempts) == 1 for one in stage.sampled), "only replans were seen"


def test_the_tokens_are_what_was_said(stage: Stage) -> None:
    for one in stage.sampled:
        check_tokens_are_what_was_said(one, stage.weights)


def test_the_logprobs_are_the_networks(stage: Stage) -> None:
    for rollout in stage.rollouts:
        check_logprobs(rollout, stage.weights)


def test_what_was_said_is_what_the_episode_tells(stage: Stage) -> None:
    for one in stage.sampled:
        attempts = one.outcome.attempts
        if stage.role is Role.EXECUTOR:
            assert [said.text.rstrip() for said in one.said] == [step.text for step in one.outcome.steps]
            assert {said.purpose for said in one.said} == {"execute"}
            continue
        purposes = ["plan", "reflect", "replan"] if len(attempts) == 2 else ["plan", "reflect"]
        assert [said.purpose for said in one.said] == purposes
        texts = [attempts[0].plan, attempts[0].reflection, *(attempt.plan for attempt in attempts[1:])]
        assert [said.text for said in one.said] == [part.text for part in texts if part is not None]


def test_what_others_wrote_is_there_and_masked(stage: Stage) -> None:
    for one, rollout in zip(stage.sampled, stage.rollouts, strict=True):
        seen = "\n".join(read(conversation, stage.weights) for conversation in rollout.conversations)
        written = "".join(
            stage.weights.decode(run) for each in rollout.conversations for run in runs(each, written=True)
        )
        assert one.outcome.question.text in seen
        if stage.role is Role.PLANNER:
            recall = one.outcome.recall
            assert recall is not None
            assert recall.shown
            assert recall.for_planner in seen
            assert "Call: search" in seen, "the trajectory"
            assert "<memory" not in written
            continue
        for step in one.outcome.steps:
            if step.observation is not None:
                assert f"<tool_response>\n{step.observation.text}\n</tool_response>" in seen
        assert all(attempt.plan.text in seen for attempt in one.outcome.attempts if attempt.plan is not None)
        assert "<tool_response>" not in written
        assert "<plan>" not in written


def test_a_taken_back_answer_begins_a_conversation_and_nothing_else_does(stage: Stage) -> None:
    """The Executor's answer is cut before a replan, so that the tokens after it are of another prompt."""
    for one, rollout in zip(stage.sampled, stage.rollouts, strict=True):
        attempts = len(one.outcome.attempts) if stage.role is Role.EXECUTOR else 1
        assert len(rollout.conversations) == attempts
        assert one.splits == attempts - 1


def test_a_sample_names_its_question_and_its_episode(stage: Stage) -> None:
    for one, rollout in zip(stage.sampled, stage.rollouts, strict=True):
        assert rollout.group == one.outcome.question.id
        assert rollout.episode_id == one.outcome.id
        assert rollout.adapter_version == ""
        assert rollout.parts


def test_the_round_trip_through_json_is_exact(stage: Stage) -> None:
    for rollout in stage.rollouts:
        assert load_rollout(json.loads(json.dumps(rollout.as_dict()))) == rollout


# ── agents of the user's own ──────────────────────────────────────────────────────────────────────────────────────


def asks(*contents: str, role: Role = Role.EXECUTOR, **more: Any) -> ChatRequest:
    """A conversation that begins with the user, who takes turns with the assistant."""
    turns = zip(("user", "assistant") * len(contents), contents, strict=False)
    messages = tuple(Message(role=speaker, content=content) for speaker, content in turns)  # type: ignore[arg-type]
    return ChatRequest(messages, role, "q", "mine", **{"max_tokens": 12} | more)


async def counts(task: Task, outcome: Any, said: Sequence[Said]) -> Reward:
    return Reward(float(len(said)))


@pytest.fixture(scope="module")
def embedded() -> Iterator[LocalModel]:
    model = LocalModel.open(temperature=0.0)
    yield model
    asyncio.run(model.close())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
async def tiny(folder: str) -> AsyncIterator[LocalModel]:
    model = LocalModel.open(folder, max_tokens=12)
    yield model
    await model.close()


def weights_of(model: LocalModel) -> Weights:
    return model._loaded.weights


@needs_embedded_model
async def test_an_agent_may_hold_many_conversations_by_turns(embedded: LocalModel) -> None:
    async def agent(model: ChatModel, task: Task) -> int:
        first = await model.complete(asks("mentor of Kavori"))
        await model.complete(asks("club of Bodri"))
        await model.complete(asks("mentor of Kavori", first.text, "mayor"))
        await model.complete(asks("mentor"))
        return 4

    sampled = await roll_out(agent, embedded, TASK, counts, seed=4)
    check_tokens_are_what_was_said(sampled, weights_of(embedded))
    check_logprobs(sampled.sample, weights_of(embedded))
    assert isinstance(sampled.sample, Rollout)
    assert (sampled.sample.reward, sampled.splits) == (4.0, 0)
    assert [len(runs(one, written=True)) for one in sampled.sample.conversations] == [2, 1, 1]


@needs_embedded_model
async def test_branches_of_a_conversation_share_no_token_that_is_learnt(embedded: LocalModel) -> None:
    """Two ways to go on with the same first turn: it is learnt from once."""

    async def agent(model: ChatModel, task: Task) -> None:
        first = await model.complete(asks("mentor of Kavori"))
        for question in ("mayor", "club"):
            await model.complete(asks("mentor of Kavori", first.text, question))

    sampled = await roll_out(agent, embedded, TASK, counts, seed=4)
    check_tokens_are_what_was_said(sampled, weights_of(embedded))
    check_logprobs(sampled.sample, weights_of(embedded))
    assert isinstance(sampled.sample, Rollout)
    assert [len(runs(one, written=True)) for one in sampled.sample.conversations] == [2, 1]


async def test_concurrent_calls_of_one_agent_are_kept_apart(tiny: LocalModel) -> None:
    async def agent(model: ChatModel, task: Task) -> None:
        await asyncio.gather(*(model.complete(asks(f"question {number}")) for number in range(6)))

    sampled = await roll_out(agent, tiny, TASK, counts, seed=1)
    check_tokens_are_what_was_said(sampled, weights_of(tiny))
    check_logprobs(sampled.sample, weights_of(tiny))
    assert isinstance(sampled.sample, Rollout)
    assert len(sampled.sample.conversations) == 6


async def test_only_one_role_is_recorded(tiny: LocalModel) -> None:
    async def agent(model: ChatModel, task: Task) -> tuple[ChatReply, ChatReply]:
        return await model.complete(asks("mine")), await model.complete(asks("theirs", role=Role.JUDGE))

    sampled = await roll_out(agent, tiny, TASK, counts, role=Role.EXECUTOR, seed=1)
    check_tokens_are_what_was_said(sampled, weights_of(tiny))
    assert [one.text for one in sampled.said] == [sampled.outcome[0].text]
    # What passes through is sampled as it would be without: here greedily, the same each time.
    alone = await tiny.complete(asks("theirs", role=Role.JUDGE))
    assert sampled.outcome[1].text == alone.text


async def test_a_seed_repeats_a_rollout_and_calls_differ(tiny: LocalModel) -> None:
    async def agent(model: ChatModel, task: Task) -> None:
        for _ in range(2):
            await model.complete(asks("the same"))

    def tokens(sampled: Sampled[None]) -> list[tuple[int, ...]]:
        assert isinstance(sampled.sample, Rollout)
        return [one.ids for one in sampled.sample.conversations]

    first, again, other = [tokens(await roll_out(agent, tiny, TASK, counts, seed=seed)) for seed in (1, 1, 2)]
    assert first == again
    assert first != other
    assert first[0] != first[1], "each call is sampled anew"


async def test_the_logprobs_are_those_at_temperature_one_whatever_was_sampled_at(tiny: LocalModel) -> None:
    async def agent(model: ChatModel, task: Task) -> None:
        await model.complete(asks("hello"))

    for temperature in (0.3, 1.0, 2.0):
        sampled = await roll_out(agent, tiny, TASK, counts, seed=1, temperature=temperature)
        check_logprobs(sampled.sample, weights_of(tiny))


# ── templates and tokenizers that write a turn another way ────────────────────────────────────────────────────────

REWRITES = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{{ message.content[:2] }}{% else %}{{ message.content }}{% endif %}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


async def three_turns(model: ChatModel, task: Task) -> None:
    first = await model.complete(asks("hello"))
    second = await model.complete(asks("hello", first.text, "and"))
    await model.complete(asks("hello", first.text, "and", second.text, "so"))


async def test_a_template_that_rewrites_turns_splits_the_conversation(tmp_path: Path) -> None:
    model = LocalModel.open(write_model(tmp_path / "tiny", template=REWRITES), max_tokens=12)
    sampled = await roll_out(three_turns, model, TASK, counts, seed=1)
    check_tokens_are_what_was_said(sampled, weights_of(model))
    check_logprobs(sampled.sample, weights_of(model))
    await model.close()
    assert isinstance(sampled.sample, Rollout)
    assert (len(sampled.sample.conversations), sampled.splits) == (3, 2)
    # What an earlier conversation taught is only read in the later ones.
    assert all(len(runs(one, written=True)) == 1 for one in sampled.sample.conversations)


async def test_a_tokenizer_that_does_not_round_trip_splits_it_too(tiny: LocalModel) -> None:
    """Random weights write tokens that no encoding of the same text would give."""
    for seed in range(4):
        sampled = await roll_out(three_turns, tiny, TASK, counts, seed=seed)
        check_tokens_are_what_was_said(sampled, weights_of(tiny))
        check_logprobs(sampled.sample, weights_of(tiny))
        assert isinstance(sampled.sample, Rollout)
        assert len(sampled.sample.conversations) == 1 + sampled.splits
        assert sampled.splits > 0


# ── what cannot be learnt from ────────────────────────────────────────────────────────────────────────────────────


async def says_hello(model: ChatModel, task: Task) -> str:
    return (await model.complete(asks("hello"))).text


async def test_a_model_without_tokens_is_refused() -> None:
    model = ScriptedModel(lambda request: "hello")
    with pytest.raises(LearnError, match="does not tell the tokens") as raised:
        await require_tokens(model)
    assert "local" in raised.value.hint
    with pytest.raises(LearnError, match="does not tell the tokens"):
        await roll_out(says_hello, model, TASK, counts)  # type: ignore[arg-type]


async def test_a_model_with_tokens_is_taken(tiny: LocalModel) -> None:
    assert await require_tokens(tiny) is tiny


async def test_a_rollout_is_of_one_version(tiny: LocalModel, folder: str, tmp_path: Path) -> None:
    for name, seed in (("v1", 1), ("v2", 2)):
        await tiny.load_adapter(name, write_adapter(folder, tmp_path / name, seed=seed))
    tiny.set_adapter("v1")

    async def agent(model: ChatModel, task: Task) -> None:
        await model.complete(asks("hello"))
        tiny.set_adapter("v2")
        await model.complete(asks("hello"))

    with pytest.raises(LearnError, match="two versions, 'v1' and 'v2'"):
        await roll_out(agent, tiny, TASK, counts, seed=1)
    sampled = await roll_out(agent, tiny, TASK, counts, seed=1, adapter="v1")
    assert isinstance(sampled.sample, Rollout)
    assert sampled.sample.adapter_version == "v1"


async def test_an_agent_that_wrote_nothing_gives_no_sample(tiny: LocalModel) -> None:
    async def silent(model: ChatModel, task: Task) -> str:
        return "nothing asked"

    sampled = await roll_out(silent, tiny, TASK, counts)
    assert sampled.outcome == "nothing asked"
    assert sampled.sample == Dropped("q", "the learner wrote nothing")


async def test_a_dropped_sample_keeps_its_reason_and_its_group(tiny: LocalModel) -> None:
    async def outage(task: Task, outcome: str, said: Sequence[Said]) -> Dropped:
        return Dropped("elsewhere", "the judge is down")

    sampled = await roll_out(says_hello, tiny, TASK, outage, group="world 1")
    assert sampled.sample == Dropped("world 1", "the judge is down")
    assert sampled.outcome == sampled.said[0].text


async def test_what_fails_in_agent_or_reward_is_raised(tiny: LocalModel) -> None:
    async def broken(*ignored: Any) -> Any:
        raise KeyError("mine")

    cases: list[tuple[Callable[..., Awaitable[Any]], Any]] = [(broken, counts), (says_hello, broken)]
    for agent, reward in cases:
        with pytest.raises(KeyError, match="mine"):
            await roll_out(agent, tiny, TASK, reward)


async def test_a_cut_reply_is_marked(tiny: LocalModel) -> None:
    recording = RecordingModel(tiny, seed=1)
    reply = await recording.complete(asks("hello", max_tokens=1))
    assert [one.cut for one in recording.said] == [reply.finish_reason == "length"] == [True]
    await recording.close()
    assert (await tiny.complete(asks("still open"))).ids, "the model is its owner's to close"


# ── records ───────────────────────────────────────────────────────────────────────────────────────────────────────

finite = st.floats(allow_nan=False, allow_infinity=False)
tokens = st.lists(st.tuples(st.integers(0, 1 << 31), st.booleans(), finite), max_size=8)
conversations = tokens.map(
    lambda rows: Conversation(
        tuple(row[0] for row in rows), tuple(row[1] for row in rows), tuple(row[2] for row in rows)
    )
)
rollouts = st.builds(
    Rollout,
    group=st.text(),
    reward=finite,
    conversations=st.lists(conversations, max_size=3).map(tuple),
    adapter_version=st.text(),
    id=st.text(),
    episode_id=st.text(),
    parts=st.dictionaries(st.text(), finite),
)


@given(rollouts)
def test_any_rollout_comes_back_from_json(rollout: Rollout) -> None:
    back = load_rollout(json.loads(json.dumps(rollout.as_dict())))
    assert back == rollout
    assert back.learned == sum(sum(one.mask) for one in rollout.conversations)


@given(rollouts, st.data())
def test_a_torn_record_is_refused(rollout: Rollout, data: st.DataObject) -> None:
    content = rollout.as_dict()
    del content[data.draw(st.sampled_from(sorted(content)))]
    with pytest.raises(LearnError, match="no rollout"):
        load_rollout(content)


@pytest.mark.parametrize("content", [[], {}, None, "text", {"conversations": 3}])
def test_what_is_no_record_is_refused(content: Any) -> None:
    with pytest.raises(LearnError, match="no rollout"):
        load_rollout(content)


def test_a_conversation_is_as_long_in_all_its_parts() -> None:
    with pytest.raises(LearnError, match="2 tokens has 1 marks and 2 logprobs"):
        Conversation((1, 2), (True,), (0.0, 0.0))
