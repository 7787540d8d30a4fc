"""A stream that is learnt from, with everything real but the models and the arithmetic of learning: what is fixed when,
what goes where, and what a death leaves."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from safetensors.numpy import save_file

from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import ExecutorSettings, LearnSettings, LineSettings, MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.errors import ConfigError, JudgeError, LearnError, ModelRefused, ModelUnavailable, StoreError
from mia.judges.reference import ReferenceJudge
from mia.learn import online
from mia.learn.adapters import AdapterStore, State, Version
from mia.learn.canary import Decision, examine
from mia.learn.online import OnlineLearner, Training, Update, reported_id
from mia.learn.rollouts import Reward, Rollout
from mia.learn.spool import Fate, Group, read_group, read_lines, read_rollouts
from mia.learn.trainers import Learnt
from mia.memory.manager import MemoryManager
from mia.models.base import ChatRequest, Price, TokenReply
from mia.models.ledger import Ledger
from mia.store import open_store
from mia.store.base import MemoryStore
from mia.team import Team
from mia.types import (
    Attempt,
    Episode,
    Memory,
    MemoryKind,
    MemoryState,
    Outcome,
    Question,
    Role,
    Task,
    Usage,
    Verdict,
)

BASE = "0123456789abcdef"
SETTINGS = LearnSettings(batch=4, samples=4, canary=0, report="first")
GOOD, BAD = "Ask the archive.", "Ask the census."


def question(number: int) -> Task:
    text = f"Which number did the clerk of room {number} write down on day {number * 7 % 31}?"
    return Task(question=Question(id=f"q{number}", text=text), references=(f"number {number}",))


def stream(count: int, first: int = 0) -> list[Task]:
    return [question(number) for number in range(first, first + count)]


@dataclass
class Speaker:
    """All roles. The Planner writes a good plan with the probability that its version has learnt; the Executor answers
    rightly where the plan is good."""

    skill: dict[str, float] = field(default_factory=lambda: {"": 0.5})
    name: str = "speaker"
    context_window: int = 100_000
    max_tokens: int = 1_000
    price: Price | None = None
    published: set[str] = field(default_factory=set)
    requests: list[ChatRequest] = field(default_factory=list)
    down: bool = False
    right: str = "number"
    seconds: float = 0.0

    async def complete(self, request: ChatRequest) -> TokenReply:
        await asyncio.sleep(self.seconds)
        if request.purpose == "probe":
            return self._reply(request, "?")
        self.requests.append(request)
        if self.down:
            raise ModelUnavailable("nobody is there")
        if request.adapter and request.adapter not in self.published:
            raise ModelRefused(f"there is no adapter '{request.adapter}'")
        return self._reply(request, self._say(request))

    def _say(self, request: ChatRequest) -> str:
        last = request.messages[-1].content
        if request.purpose == "plan":
            draw = random.Random(request.seed).random() if request.temperature else 0.5
            good = draw < self.skill.get(request.adapter, 0.9)
            return f"1. {GOOD if good else BAD}" + " Look well." * (int(draw * 1_000) % 4)
        if request.purpose == "reflect":
            return "no"
        if request.purpose == "choose":
            return json.dumps({"index": 1})
        if request.role is Role.EXECUTOR:
            number = last.split("room ")[1].split(" ")[0]
            return f"<think>so</think><answer>{f'{self.right} {number}' if GOOD in last else 'nothing'}</answer>"
        return "1. asked (the room → a number)"

    def _reply(self, request: ChatRequest, text: str) -> TokenReply:
        written = "".join(f"{one.role}:{one.content}|" for one in request.messages) + "assistant:"
        ids = tuple(f"{text}|".encode())
        return TokenReply(
            text=text,
            usage=Usage(calls=1, prompt_tokens=len(written), completion_tokens=len(ids)),
            prompt_ids=tuple(written.encode()),
            ids=ids,
            logprobs=(-0.5,) * len(ids),
            adapter=request.adapter,
        )

    async def close(self) -> None: ...


@dataclass
class Shelf:
    """Publishes to a speaker."""

    speaker: Speaker
    serving: str = ""
    users: Counter[str] = field(default_factory=Counter)
    retired: list[str] = field(default_factory=list)

    async def publish(self, version: Version, folder: Path) -> None:
        assert (folder / "adapter_config.json").is_file()
        self.speaker.published.add(version.name)

    async def switch(self, version: Version | None) -> None:
        raise AssertionError("other roles may be asked through the same model")

    @contextlib.contextmanager
    def using(self, name: str) -> Iterator[None]:
        self.users[name] += 1
        yield
        self.users[name] -= 1

    async def retire(self, version: Version) -> None:
        assert not self.users[version.name], "somebody still answers with it"
        self.speaker.published.discard(version.name)
        self.retired.append(version.name)

    async def close(self) -> None: ...


@dataclass
class Pupil:
    """A trainer: what it is handed is what it keeps; each version is as skilled as it is told."""

    store: AdapterStore
    speaker: Speaker
    skills: Sequence[float] = ()
    background: bool = False
    batches: list[tuple[str, list[Rollout]]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    """In the background, each update waits for it."""
    after: Any = None
    """Called when the version is there."""
    before: Any = None

    async def update(self, files: Sequence[Path], parent: str, replay: Sequence[Path] = ()) -> Learnt:
        rollouts = read_rollouts(files)
        self.batches.append((parent, rollouts))
        if self.before is not None:
            self.before(rollouts)
        if self.gate is not None:
            await self.gate.wait()
            self.gate.clear()
        name = self.store.create(parent, _write_adapter, rollouts).name
        number = len(self.batches) - 1
        self.speaker.skill[name] = self.skills[number] if number < len(self.skills) else 0.5
        if self.after is not None:
            self.after()
        return Learnt(name, len(rollouts))

    async def close(self) -> None: ...


def _write_adapter(folder: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "weights" / "adapter_config.json").write_text("{}")
    metadata = {"mia_base": BASE}
    save_file({"a": numpy.zeros(3, numpy.float32)}, folder / "weights" / "adapter_model.safetensors", metadata)


class Stream:
    """A learner with what is around it, in a folder."""

    def __init__(
        self,
        folder: Path,
        settings: LearnSettings = SETTINGS,
        *,
        speaker: Speaker | None = None,
        memory: Any = None,
        judge: Any = None,
        skills: Sequence[float] = (),
        background: bool = False,
        line: LineSettings = LineSettings(),
        **more: Any,
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.speaker = speaker or Speaker()
        self.kept: MemoryStore = open_store(folder / "memory.db")
        page = MemorySettings(embedder="hashing", floor=-1.0, k_positive=2, k_negative=1)
        self.memory = (memory or MemoryManager)(self.kept, HashingEmbedder(), page, self.speaker)
        self.team = Team(
            executor=Executor(self.speaker, (), ExecutorSettings()),
            planner=Planner(self.speaker, best_of=line.best_of),
            memory=self.memory,
            judge=judge or ReferenceJudge(),
            line=line,
        )
        self.store = AdapterStore(folder / "adapters", BASE, Role.PLANNER)
        self.shelf = Shelf(self.speaker)
        self.pupil = Pupil(self.store, self.speaker, skills, background)
        learns = settings.into in ("both", "weights")
        self.groups: list[Group] = []
        self.updates: list[Update] = []

        async def scored(group: Group) -> None:
            self.groups.append(group)

        self.learner = OnlineLearner(
            self.team,
            self.speaker,
            settings,
            folder / "learning",
            training=Training(self.store, self.pupil, self.shelf) if learns else None,
            on_update=self.updates.append,
            **{"on_scored": scored, **more},
        )

    @property
    def lines(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "learning" / "scores.jsonl")

    def memories(self, kind: MemoryKind = MemoryKind.WORKFLOW, **states: Any) -> list[Memory]:
        return [one for one in self.kept.list_memories(None, limit=1_000, **states) if one.kind is kind]

    async def close(self) -> None:
        await self.learner.close()
        await self.memory.close()


@contextlib.asynccontextmanager
async def learning(folder: Path, *given: Any, **more: Any) -> Any:
    one = Stream(folder, *given, **more)
    try:
        yield one
    finally:
        await one.close()


def sampled(groups: Sequence[Group]) -> list[Any]:
    """What does not depend on when and in which stream it was sampled."""
    return [
        [
            (group.question_id, group.epoch, group.reported, dict(group.by_rule)),
            [(one.reward, dict(one.parts), one.conversations) for one in group.rollouts],
            [one.verdict.outcome if one.verdict else None for one in group.episodes],
        ]
        for group in sorted(groups, key=lambda group: (group.epoch, int(group.question_id[1:])))
    ]


# ── what is fixed when ────────────────────────────────────────────────────────────────────────────────────────────


class LateMemory(MemoryManager):
    """Looks whether scores came first."""

    async def remember(self, group: Sequence[Episode], ledger: Ledger) -> tuple[Memory, ...]:
        self._must_be_scored(group[0].question.id)
        return await super().remember(group, ledger)

    async def credit(self, group: str, shown: frozenset[str], verdict: Verdict) -> int:
        assert group in {line["episode_id"] for line in read_lines(self._scores)}
        return await super().credit(group, shown, verdict)

    def _must_be_scored(self, question_id: str) -> None:
        assert question_id in {line["question_id"] for line in read_lines(self._scores)}

    @property
    def _scores(self) -> Path:
        return Path(self.store.location).parent / "learning" / "scores.jsonl"


async def test_the_score_is_fixed_before_anything_is_learnt(tmp_path: Path) -> None:
    path = tmp_path / "learning" / "scores.jsonl"
    seen: list[bytes] = []

    def look(rollouts: Sequence[Rollout]) -> None:
        seen.append(path.read_bytes())
        scored = {f"{line['question_id']}/{line['epoch']}" for line in read_lines(path)}
        assert {rollout.group.partition("/")[2] for rollout in rollouts} <= scored

    async with learning(tmp_path, memory=LateMemory) as one:
        one.pupil.before = look
        await one.learner.run(stream(12))
        assert len(one.pupil.batches) == 3
        # And never changed afterwards.
        assert all(path.read_bytes().startswith(before) for before in seen)
        assert [asdict(score) | {} for score in one.learner.scores] == [
            {**line, "tries": tuple(line["tries"]), "rewards": tuple(line["rewards"]), "dropped": ()}
            for line in one.lines
        ]


async def test_the_version_that_answered_is_named(tmp_path: Path) -> None:
    async with learning(tmp_path) as one:
        await one.learner.run(stream(12))
        names = [version.name for version in one.store.versions()]
        assert [version.state for version in one.store.versions()] == [State.PROMOTED] * 3
        by_batch = [one.groups[start : start + 4] for start in (0, 4, 8)]
        for groups, name in zip(by_batch, ["", *names], strict=False):
            assert {group.version for group in groups} == {name}
            for group in groups:
                assert {rollout.adapter_version for rollout in group.rollouts} == {name}
                for episode in group.episodes:
                    assert episode.adapters == ({Role.PLANNER: name} if name else {})
                    assert episode.run == one.learner.run_id
        # Each update goes on from what answered, and learns what its tries were.
        assert [parent for parent, _ in one.pupil.batches] == ["", *names[:2]]
        assert one.learner.version == names[-1]
        # Nobody but the Planner is asked for a version, and those before are unloaded.
        assert not any(request.adapter for request in one.speaker.requests if request.role is not Role.PLANNER)
        assert one.shelf.retired == names[:-1]
        assert {rollout.episode_id for _, some in one.pupil.batches for rollout in some} == {
            episode.id for group in one.groups for episode in group.episodes
        }
    assert one.shelf.retired == names


async def test_answers_are_reported_as_the_settings_say(tmp_path: Path) -> None:
    for report in ("first", "random", "shortest", "longest", "best"):
        async with learning(tmp_path / report, SETTINGS.model_copy(update={"report": report})) as one:
            await one.learner.run(stream(8))
            for group, line in zip(one.groups, one.lines, strict=True):
                assert group.by_rule[report] == group.reported
                assert set(group.by_rule) == {"first", "random", "shortest", "longest"} | {report}
                lengths = [len(episode.attempts[0].plan.text) for episode in group.episodes]
                assert lengths[group.by_rule["shortest"]] == min(lengths)
                assert lengths[group.by_rule["longest"]] == max(lengths)
                assert line["episode_id"] == group.episode.id
                assert line["by_rule"][report] == line["correct"] == group.episode.verdict.correct
            assert any(request.purpose == "choose" for request in one.speaker.requests) == (report == "best")
    # The choice among plans is no part of a rollout.
    assert all(
        "choose" not in bytes(conversation.ids).decode()
        for group in one.groups
        for rollout in group.rollouts
        for conversation in rollout.conversations
    )


# ── canary ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_canary_questions_are_answered_and_never_learnt_from(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"canary": 5})
    async with learning(tmp_path, settings, skills=(0.9, 0.9)) as one:
        await one.learner.run(stream(13))
        held = {f"q{number}" for number in range(5)}
        assert [line["canary"] for line in one.lines] == [True] * 5 + [False] * 8
        assert {line["question_id"] for line in one.lines[:5]} == held
        assert not any(rollout.group.split("/")[1] in held for _, some in one.pupil.batches for rollout in some)
        texts = {question(number).question.text for number in range(5)}
        assert not any(memory.question in texts for memory in one.memories())
        # Each version was examined with just these.
        assert len(one.updates) == 2
        for update in one.updates:
            assert update.canary is not None
            assert {pair.question_id for pair in update.canary.pairs} == held
            assert all(pair.judged for pair in update.canary.pairs)
        with pytest.raises(LearnError, match="canary"):
            await one.learner.answer_batch(stream(1))
    async with learning(tmp_path / "short", settings) as one:
        with pytest.raises(ConfigError, match="held out"):
            await one.learner.run(stream(5))


async def test_a_worse_version_never_answers(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"canary": 4})
    async with learning(tmp_path, settings, speaker=Speaker({"": 0.9}), skills=(0.1, 0.95, 0.2)) as one:
        await one.learner.run(stream(16))
        first, second, third = one.store.versions()
        assert [first.state, second.state, third.state] == [State.REJECTED, State.PROMOTED, State.REJECTED]
        assert [update.kept for update in one.updates] == [False, True, False]
        assert one.updates[0].canary.decision is Decision.WORSE
        # Training went on from what answers, and not from what was rejected.
        assert [parent for parent, _ in one.pupil.batches] == ["", "", second.name]
        assert one.learner.version == second.name
        assert {group.version for group in one.groups} == {"", second.name}
        assert one.learner.waiting == 0
        assert {first.name, third.name} <= set(one.shelf.retired)


async def test_a_canary_that_cannot_be_judged_keeps_what_answers(tmp_path: Path) -> None:
    class Judge(ReferenceJudge):
        async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
            if task.question.id in {f"q{number}" for number in range(4)}:
                raise JudgeError("it is down")
            return await super().judge(task, attempt, ledger)

    async with learning(tmp_path, SETTINGS.model_copy(update={"canary": 4}), judge=Judge(), skills=(1.0,)) as one:
        await one.learner.run(stream(8))
        (update,) = one.updates
        assert update.canary.decision is Decision.UNJUDGED
        assert one.learner.version == ""
        assert "could be judged" in read_lines(tmp_path / "learning" / "updates.jsonl")[0]["canary"]


# ── the arms ──────────────────────────────────────────────────────────────────────────────────────────────────────

ARMS = ("both", "memory", "weights", "nothing")


async def test_the_first_try_may_be_what_the_line_says_and_the_others_explore(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"temperature": 1.5, "first_temperature": 0.0, "canary": 0})
    async with learning(tmp_path, settings) as one:
        await one.learner.run(stream(2))
        plans = [request for request in one.speaker.requests if request.purpose == "plan"]
        assert sorted(request.temperature or 0.0 for request in plans) == [0.0] * 2 + [1.5] * 6
        assert {request.question_id for request in plans if request.temperature == 0.0} == {
            group.question_id for group in one.groups
        }


async def test_the_arms_make_and_judge_the_same_rollouts(tmp_path: Path) -> None:
    groups: dict[str, list[Group]] = {}
    asked: dict[str, Counter[str]] = {}
    stored: dict[str, int] = {}
    for into in ARMS:
        settings = SETTINGS.model_copy(update={"into": into, "canary": 2})
        async with learning(tmp_path / into, settings) as one:
            await one.learner.run(stream(10))
            groups[into] = one.groups
            plans = [one for one in one.speaker.requests if one.seed is not None]
            asked[into] = Counter(request.purpose for request in plans)
            stored[into] = len(one.memories(states=tuple(MemoryState)))
            assert bool(one.pupil.batches) == (into in ("both", "weights"))
    # Before anything was learnt, they are the same to the last token; later, as many.
    assert [sampled(groups[into][:6]) for into in ARMS] == [sampled(groups["both"][:6])] * 4
    assert [asked[into] for into in ARMS] == [asked["both"]] * 4
    for into in ARMS:
        assert [len(group.episodes) for group in groups[into]] == [1, 1] + [4] * 8
        judged = [episode.verdict is not None for group in groups[into] for episode in group.episodes]
        assert all(judged)
    # Without the rollouts, the memory takes in what was reported: one lesson a question.
    assert stored["weights"] == stored["nothing"] == 8
    assert stored["both"] == stored["memory"] > 8


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Script:
    """A judge that finds the tries of a question right or wrong, in turn."""

    prompts: dict[str, str] = {}

    def __init__(self, *outcomes: Outcome | None, name: str = "peer") -> None:
        self._outcomes = outcomes
        self._name = name
        self._asked = 0

    async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
        outcome = self._outcomes[self._asked % len(self._outcomes)]
        self._asked += 1
        if outcome is None:
            raise JudgeError("it is down")
        return Verdict(outcome=outcome, judge=self._name)


RIGHT, WRONG = Outcome.CORRECT, Outcome.INCORRECT


@pytest.mark.parametrize(
    ("outcomes", "counts"),
    [
        ((RIGHT, RIGHT, RIGHT, WRONG), (2, 2)),
        ((RIGHT, RIGHT, WRONG, WRONG), (2, 1)),
        ((WRONG, WRONG, WRONG, RIGHT), (2, 1)),
        ((RIGHT, RIGHT, WRONG, None), (2, 2)),
        ((None, None, None, None), (1, 1)),
    ],
)
async def test_what_was_shown_is_credited_once_for_all_tries(
    tmp_path: Path, outcomes: Sequence[Outcome | None], counts: tuple[int, int]
) -> None:
    async with learning(tmp_path, judge=Script(*outcomes)) as one:
        known = one.memory.add("Which number did the clerk of room 9 write?", "1. look (room → it)", "correct")
        await one.learner.run(stream(1))
        (group,) = one.groups
        assert all(known.id in {shown.memory_id for shown in one.recall.shown} for one in group.episodes)
        memory = one.memory.show(known.id)
        assert (memory.uses, memory.wins) == counts


async def test_tries_never_see_each_other_and_the_next_question_sees_them_all(tmp_path: Path) -> None:
    async with learning(tmp_path, SETTINGS.model_copy(update={"batch": 1})) as one:
        await one.learner.run(stream(3))
        first, second, _ = one.groups
        assert all(episode.recall.shown == () for episode in first.episodes)
        sources = {memory.id: memory.provenance.episode_id for memory in one.memories(states=tuple(MemoryState))}
        for group in one.groups:
            own = {episode.id for episode in group.episodes}
            shown = [{sources[one.memory_id] for one in episode.recall.shown} for episode in group.episodes]
            assert shown == [shown[0]] * 4
            assert not shown[0] & own
        assert {sources[one.memory_id] for one in second.episodes[0].recall.shown} <= {
            episode.id for episode in first.episodes
        }
        assert second.episodes[0].recall.shown


async def test_a_batch_answers_with_the_memory_as_it_was(tmp_path: Path) -> None:
    async with learning(tmp_path, SETTINGS.model_copy(update={"batch": 3})) as one:
        await one.learner.run(stream(6))
        shown = [len(group.episodes[0].recall.shown) for group in one.groups]
        assert shown[:3] == [0, 0, 0]
        assert all(shown[3:])


async def test_with_references_there_are_plan_pairs_and_without_none(tmp_path: Path) -> None:
    mixed = (RIGHT, WRONG, WRONG, RIGHT)
    async with learning(tmp_path / "with", judge=Script(*mixed, name="reference")) as one:
        await one.learner.run(stream(4))
        assert one.memories(MemoryKind.PLAN_PAIR)
    settings = SETTINGS.model_copy(update={"supervised": False})
    async with learning(tmp_path / "without", settings, judge=Script(*mixed)) as one:
        await one.learner.run(stream(4))
        assert one.memories(MemoryKind.PLAN_PAIR) == []
        assert {memory.judgement for memory in one.memories()} == {"correct", "incorrect"}
        # A random one of those that the review accepted.
        for group in one.groups:
            assert group.episode.verdict.correct
            assert group.by_rule["accepted"] == group.reported
        assert {group.reported for group in one.groups} == {0, 3}
        assert {tuple(sorted(one.parts)) for group in one.groups for one in group.rollouts}.pop()
        rewards = {round(one.reward, 3) for group in one.groups for one in group.rollouts}
        assert rewards == {1.0, 0.1}


async def test_several_passes_are_scored_apart(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"epochs": 3, "canary": 2, "supervised": False})
    async with learning(tmp_path, settings, skills=[0.9] * 9) as one:
        await one.learner.run(stream(6))
        scored = [(line["epoch"], line["question_id"]) for line in one.lines]
        assert [epoch for epoch, _ in scored] == [0] * 6 + [1] * 4 + [2] * 4
        assert sorted(scored) == [(epoch, f"q{n}") for epoch in range(3) for n in range(2 if epoch else 0, 6)]
        assert len({line["episode_id"] for line in one.lines}) == 14
        later = [group for group in one.groups if group.epoch]
        own = {group.question_id: {one.id for one in group.episodes} for group in one.groups if not group.epoch}
        sources = {memory.id: memory.provenance.episode_id for memory in one.memories(states=tuple(MemoryState))}
        # What a question taught in the first pass helps it in the second.
        assert any(
            sources[shown.memory_id] in own[group.question_id]
            for group in later
            for shown in group.episodes[0].recall.shown
        )


# ── one at a time ─────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_stream_that_comes_one_by_one(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"canary": 2, "batch": 3})
    async with learning(tmp_path, settings) as one:
        await one.learner.start()
        updates = []
        for task in stream(7):
            group = await one.learner.submit(task)
            assert group is not None
            assert group.canary == (task.question.id in ("q0", "q1"))
            updates.append(len(one.pupil.batches))
        assert updates == [0, 0, 0, 0, 1, 1, 1]
        assert one.learner.waiting == 2
        # It is remembered at once, whatever the weights do.
        assert one.groups[3].episodes[0].recall.shown
        await one.learner.flush()
        assert [len(some) for _, some in one.pupil.batches] == [12, 8]
        assert one.learner.waiting == 0
        assert {pair.question_id for pair in one.updates[0].canary.pairs} == {"q0", "q1"}
        # What comes again is of the next pass; what is held out stays so.
        again = await one.learner.submit(question(4))
        assert again is not None
        assert (again.epoch, again.canary) == (1, False)
        held = await one.learner.submit(question(0))
        assert held is not None
        assert (held.epoch, held.canary) == (1, True)


async def test_many_may_be_submitted_at_once(tmp_path: Path) -> None:
    async with learning(tmp_path, SETTINGS.model_copy(update={"batch": 5})) as one:
        await one.learner.start()
        groups = await asyncio.gather(*map(one.learner.submit, stream(20)))
        await one.learner.flush()
        assert len({group.id for group in groups if group is not None}) == 20
        learnt = Counter(rollout.id for _, some in one.pupil.batches for rollout in some)
        assert len(learnt) == 80
        assert set(learnt.values()) == {1}


async def test_a_stream_without_end_holds_the_latest_alone(tmp_path: Path) -> None:
    async with learning(tmp_path, keep=3) as one:
        await one.learner.start()
        for task in stream(8):
            await one.learner.submit(task)
        assert [score.question_id for score in one.learner.scores] == ["q5", "q6", "q7"]
        one.speaker.down = True
        for task in stream(5, 100):
            one.learner.stopped = ""
            assert await one.learner.submit(task) is None
        assert list(one.learner.unanswered) == ["q102", "q103", "q104"]
        # What is answered later is open no more.
        one.speaker.down, one.learner.stopped = False, ""
        assert await one.learner.submit(question(104)) is not None
        assert list(one.learner.unanswered) == ["q102", "q103"]
    async with learning(tmp_path, keep=3) as again:
        # It knows all the same what came before.
        assert [score.question_id for score in again.learner.scores] == ["q6", "q7", "q104"]
        await again.learner.start()
        group = await again.learner.submit(question(0))
        assert group.epoch == 1
        assert len(again.lines) == 10


async def test_a_pass_in_which_a_question_could_not_be_asked_stays_open(tmp_path: Path) -> None:
    async with learning(tmp_path) as one:
        await one.learner.start()
        one.speaker.down = True
        assert await one.learner.submit(question(1)) is None
        one.speaker.down = False
        assert (await one.learner.submit(question(1))).epoch == 0
    async with learning(tmp_path) as again:
        await again.learner.start()
        # Else its group, its rollouts and its score would take the names of the earlier ones.
        groups = await asyncio.gather(*(again.learner.submit(question(1)) for _ in range(3)))
        assert sorted(group.epoch for group in groups) == [1, 2, 3]
        assert len({line["episode_id"] for line in again.lines}) == len(again.lines) == 4


async def test_who_asks_names_the_answer_and_is_told_of_his_own_question(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"report": "shortest", "canary": 1})
    async with learning(tmp_path, settings) as one:
        await one.learner.start()
        told: dict[str, list[Any]] = {f"mine-{number}": [] for number in range(6)}
        groups = await asyncio.gather(
            # The same question three times at once.
            *(one.learner.submit(question(int(id[-1]) // 3), episode_id=id, on_event=told[id].append) for id in told)
        )
        assert [group.episode.id for group in groups] == list(told)
        assert [line["episode_id"] for line in one.lines] == [group.episode.id for group in one.groups]
        for group, events in zip(groups, told.values(), strict=True):
            assert {event.question_id for event in events} == {group.question_id}
            assert sum(event.kind == "stage_started" and event.stage == "execute" for event in events) == len(
                group.episodes
            )
            ids = {episode.id for episode in group.episodes}
            assert len(ids) == len(group.episodes)
            assert {reported_id(id) for id in ids if id != group.episode.id} <= ids | {f"{group.episode.id}.0"}
            assert {rollout.episode_id for rollout in group.rollouts} <= ids
            assert group.canary or group.episode.id in {rollout.episode_id for rollout in group.rollouts}


async def test_what_is_answered_is_taken_in_though_nobody_waits_for_it_any_more(tmp_path: Path) -> None:
    reached, go_on = asyncio.Event(), asyncio.Event()

    class Slow(MemoryManager):
        async def remember(self, group: Sequence[Episode], ledger: Ledger) -> tuple[Memory, ...]:
            reached.set()
            await go_on.wait()
            return await super().remember(group, ledger)

    async with learning(tmp_path, memory=Slow) as one:
        await one.learner.start()
        asking = asyncio.create_task(one.learner.submit(question(1)))
        await reached.wait()
        asking.cancel()
        await asyncio.wait([asking])
        assert asking.cancelled()
        assert one.memories() == []
        go_on.set()
        async with asyncio.timeout(10):
            while not one.learner.waiting:  # noqa: ASYNC110  # On the disk.
                await asyncio.sleep(0.01)
        assert one.memories()
        assert len(one.lines) == 1


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_judges_outage_is_no_zero(tmp_path: Path) -> None:
    async with learning(tmp_path, judge=Script(RIGHT, None, WRONG, None)) as one:
        await one.learner.run(stream(4))
        for line in one.lines:
            assert sorted(map(str, line["tries"])) == ["False", "None", "None", "True"]
            assert len(line["rewards"]) == len(line["dropped"]) == 2
            assert all(line["dropped"])
        assert [len(some) for _, some in one.pupil.batches] == [8]
        assert one.lines[0]["correct"] is not False or one.groups[0].episode.verdict.outcome is WRONG
    async with learning(tmp_path / "dark", judge=Script(None)) as one:
        await one.learner.run(stream(4))
        assert [line["correct"] for line in one.lines] == [None] * 4
        assert one.pupil.batches == []
        assert one.learner.waiting == 0
        assert one.memories() == []


async def test_references_stay_with_the_judge(tmp_path: Path) -> None:
    secret = "zzqx-9174"
    tasks = [replace_references(task, secret) for task in stream(6)]
    async with learning(tmp_path, SETTINGS.model_copy(update={"canary": 2})) as one:
        await one.learner.run(tasks)
        assert len(one.pupil.batches) == 1
        assert not any(secret in message.content for request in one.speaker.requests for message in request.messages)
        assert secret not in repr(one.pupil.batches)
        assert secret not in repr(one.groups)
        one.kept.close()
        found = []
        for path in tmp_path.rglob("*"):
            content = path.read_bytes() if path.is_file() else b""
            content += gzip.decompress(content) if path.suffix == ".gz" else b""
            found += [path] if secret.encode() in content else []
        assert found == []


def replace_references(task: Task, *references: str) -> Task:
    return task.evolve(references=references)


async def test_what_cannot_be_asked_stays_open(tmp_path: Path) -> None:
    async with learning(tmp_path) as one:
        one.speaker.down = True
        await one.learner.run(stream(12))
        assert "could not be asked" in one.learner.stopped
        assert set(one.learner.unanswered) >= {"q0", "q1", "q2"}
        assert one.lines == []
    async with learning(tmp_path) as one:
        await one.learner.run(stream(12))
        assert len(one.lines) == 12
        assert one.learner.stopped == ""


async def test_a_stop_finishes_what_is_under_way(tmp_path: Path) -> None:
    async with learning(tmp_path, at_once=4) as one:

        async def stop_at_second(group: Group) -> None:
            one.groups.append(group)
            if len(one.groups) == 2:
                one.learner.stop("enough")

        one.learner._on_scored = stop_at_second
        await one.learner.run(stream(12))
        done = len(one.lines)
        assert 2 <= done < 6
        # What was answered is remembered and learnt.
        assert len(one.pupil.batches[0][1]) == 4 * done
        assert one.learner.waiting == 0
    async with learning(tmp_path, at_once=4) as one:
        await one.learner.run(stream(12))
        assert Counter(line["question_id"] for line in one.lines) == Counter({f"q{n}": 1 for n in range(12)})


async def test_what_was_erased_meanwhile_is_neither_remembered_nor_learnt(tmp_path: Path) -> None:
    asked: Counter[str] = Counter()

    def without_erased(group: Group) -> Group | None:
        asked[group.question_id] += 1
        if group.question_id == "q0":
            return None
        # Of the second, once it is in the spool and in the memory.
        return replace(group, rollouts=()) if group.question_id == "q1" and asked["q1"] > 2 else group

    async with learning(tmp_path, without_erased=without_erased) as one:
        for task in stream(3):
            assert await one.learner.submit(task) is not None
        assert one.learner._spool.answered() == []
        assert [read_group(path).question_id for path in one.learner._spool.ready()] == ["q2"]
        await one.learner.flush()
        ((_, rollouts),) = one.pupil.batches
        assert {rollout.group.split("/")[1] for rollout in rollouts} == {"q2"}
        assert {memory.question for memory in one.memories()} == {task.question.text for task in stream(2, 1)}
        # Scores are ids and verdicts, and stand.
        assert [line["question_id"] for line in one.lines] == ["q0", "q1", "q2"]


async def test_an_erasure_misses_no_group_that_is_just_being_put(tmp_path: Path) -> None:
    looking, may = threading.Event(), threading.Event()

    def without_erased(group: Group) -> Group | None:
        looking.set()
        assert may.wait(10)
        # As the memory was before the erasure.
        return group

    def edit(page: dict[str, Any]) -> Fate:
        page["rollouts"] = []
        return "changed"

    async with learning(tmp_path, without_erased=without_erased) as one:
        asking = asyncio.create_task(one.learner.submit(question(0)))
        await asyncio.to_thread(looking.wait, 10)
        erasing = asyncio.create_task(one.learner.erase(edit))
        await asyncio.sleep(0.05)
        may.set()
        wiped = await erasing
        assert ([path.parent.name for path in wiped.changed], wiped.left) == (["answered"], [])
        assert await asking is not None


async def test_settings_that_cannot_learn_are_refused(tmp_path: Path) -> None:
    refused: list[tuple[str, dict[str, Any]]] = [
        ("best_of", {"line": LineSettings(best_of=2)}),
        ("replan", {"line": LineSettings(replan="never")}),
        ("replan", {"line": LineSettings(replan="verdict")}),
        ("plan", {"line": LineSettings(plan=False)}),
    ]
    for number, (hint, more) in enumerate(refused):
        with pytest.raises(ConfigError) as met:
            Stream(tmp_path / str(number), **more)
        assert hint in met.value.hint
    one = Stream(tmp_path / "one")
    for changed, given in (
        (SETTINGS, None),
        (SETTINGS.model_copy(update={"into": "memory"}), one.learner._training),
        (SETTINGS.model_copy(update={"weights": "full"}), one.learner._training),
    ):
        with pytest.raises(ConfigError):
            OnlineLearner(one.team, one.speaker, changed, tmp_path / "two", training=given)
    for team in (replace(one.team, memory=None), replace(one.team, judge=None)):
        with pytest.raises(ConfigError):
            OnlineLearner(team, one.speaker, SETTINGS, tmp_path / "two", training=one.learner._training)
    with pytest.raises(LearnError, match="another process"):
        OnlineLearner(one.team, one.speaker, SETTINGS, tmp_path / "one" / "learning", training=one.learner._training)
    await one.close()


async def test_a_stream_goes_on_with_its_settings_alone(tmp_path: Path) -> None:
    async with learning(tmp_path) as one:
        await one.learner.run(stream(4))
    with pytest.raises(ConfigError, match="samples"):
        Stream(tmp_path, SETTINGS.model_copy(update={"samples": 2}))
    with pytest.raises(ConfigError, match="seed"):
        Stream(tmp_path, seed=2)
    async with learning(tmp_path, SETTINGS.model_copy(update={"keep": 3})) as one:
        await one.learner.run(stream(4))
        assert len(one.lines) == 4


async def test_the_same_seed_gives_the_same_stream(tmp_path: Path) -> None:
    """Many side by side, over one model, in one process."""
    speaker = Speaker()
    names = [("a", 1), ("b", 1), ("c", 2)]
    streams = [
        Stream(tmp_path / name, SETTINGS.model_copy(update={"batch": 1}), speaker=speaker, seed=seed)
        for name, seed in names
    ]
    await asyncio.gather(*(one.learner.run(stream(6)) for one in streams))
    first, second, third = (sampled(one.groups) for one in streams)
    assert first == second != third
    for one in streams:
        await one.close()


async def test_a_reward_of_ones_own_is_what_is_learnt(tmp_path: Path) -> None:
    async def reward(task: Task, episode: Episode, said: Any) -> Reward:
        return Reward(float(task.references[0].split()[1]), {"mine": 1.0})

    async with learning(tmp_path, reward=reward) as one:
        await one.learner.run(stream(4))
        rewards = {line["question_id"]: line["rewards"] for line in one.lines}
        assert rewards == {f"q{number}": [float(number)] * 4 for number in range(4)}


# ── in the background ─────────────────────────────────────────────────────────────────────────────────────────────


async def test_answers_go_on_while_the_weights_learn(tmp_path: Path) -> None:
    async with learning(tmp_path, background=True, skills=[0.9] * 9) as one:
        one.pupil.gate = asyncio.Event()
        await one.learner.start()
        for first in (0, 4, 8):
            groups = await one.learner.answer_batch(stream(4, first))
            assert {group.version for group in groups} == {""}
        assert len(one.pupil.batches) == 1
        one.pupil.gate.set()
        while not one.updates:  # noqa: ASYNC110 - it is the update's own to say
            await asyncio.sleep(0.001)
        version = one.updates[0].learnt.version
        groups = await one.learner.answer_batch(stream(4, 12))
        assert {group.version for group in groups} == {version}
        flushing = asyncio.create_task(one.learner.flush())
        while not flushing.done():
            one.pupil.gate.set()
            await asyncio.sleep(0.001)
        await flushing
        learnt = Counter(rollout.id for _, some in one.pupil.batches for rollout in some)
        assert (len(learnt), set(learnt.values())) == (64, {1})


async def test_a_run_waits_rather_than_answer_with_what_is_too_old(tmp_path: Path) -> None:
    async with learning(tmp_path, background=True) as one:
        one.pupil.gate = asyncio.Event()
        running = asyncio.create_task(one.learner.run(stream(16)))
        while len(one.lines) < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        # One batch is being learnt, and one is ahead of it.
        assert len(one.lines) == 8
        while not running.done():
            one.pupil.gate.set()
            await asyncio.sleep(0.001)
        await running
        names = ["", *(version.name for version in one.store.versions())]
        for parent, some in one.pupil.batches:
            assert {names.index(parent) - names.index(rollout.adapter_version) for rollout in some} <= {0, 1}


async def test_whatever_the_weights_meet_answers_go_on(tmp_path: Path) -> None:
    async with learning(tmp_path, background=True) as one:

        def fail(rollouts: Sequence[Rollout]) -> None:
            raise LearnError("the disk is full")

        one.pupil.before = fail
        with pytest.raises(LearnError, match="disk"):
            await one.learner.run(stream(12))
        assert len(one.lines) == 12
        assert one.learner.waiting == 12
        assert one.learner.version == ""
    async with learning(tmp_path, background=True) as one:
        await one.learner.run(stream(12))
        assert [len(some) for _, some in one.pupil.batches] == [48]
        assert one.learner.waiting == 0


async def test_what_answers_changes_while_a_version_is_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []

    async def examined(canary: Any, ask: Any, current: str, name: str, **more: Any) -> Any:
        compared.append(current)
        if len(compared) == 2:
            AdapterStore.open(tmp_path / "adapters").rollback(one.store.versions()[0].name)
        return await examine(canary, ask, current, name, **more)

    monkeypatch.setattr(online, "examine", examined)
    async with learning(tmp_path) as one:
        tasks = stream(12)
        await one.learner.start(tasks[:4])
        await one.learner.answer_batch(tasks[4:8])
        first = one.learner.version
        AdapterStore.open(tmp_path / "adapters").rollback("base")
        await one.learner.answer_batch(tasks[8:])
        # It was compared with what answered no more, and then with what answered instead.
        assert compared == ["", "", first]
        assert one.learner.version == one.store.versions()[1].name


async def test_a_rollback_by_somebody_else_is_followed(tmp_path: Path) -> None:
    async with learning(tmp_path) as one:
        await one.learner.run(stream(8))
        first, second = one.store.versions()
        AdapterStore.open(tmp_path / "adapters").rollback()
        groups = await one.learner.answer_batch(stream(4, 8))
        assert {group.version for group in groups} == {first.name}
        assert second.name in one.shelf.retired
        assert one.pupil.batches[-1][0] == first.name


# ── deaths ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Killed(BaseException):
    """The process died here."""


DEATHS = [
    (place, nth, background)
    for place, numbers, ways in (
        ("put", (0, 5), (False,)),
        ("score", (0, 5), (False, True)),
        ("scored", (1, 4), (False,)),
        ("credit", (0, 3), (False,)),
        ("remember", (1, 4), (False, True)),
        ("ready", (0, 5), (False, True)),
        ("update", (0, 1), (False, True)),
        ("version", (0, 1), (False, True)),
        ("promote", (0, 1), (False, True)),
        ("remove", (0, 1), (False, True)),
        ("prune", (0, 1), (False,)),
    )
    for nth in numbers
    for background in ways
]


@pytest.mark.parametrize(("place", "nth", "background"), DEATHS)
async def test_no_death_loses_a_question_or_has_one_learnt_twice(
    tmp_path: Path, place: str, background: bool, nth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written stays, and all else of the process is gone."""
    settings = SETTINGS.model_copy(update={"canary": 1, "batch": 2, "samples": 2})
    one = Stream(tmp_path, settings, background=background, skills=[0.9] * 20)
    with monkeypatch.context() as patched:
        _die_at(one, place, nth, patched)
        with pytest.raises(BaseException) as met:
            await one.learner.run(stream(8))
        assert _is_killed(met.value)
        if one.learner._background is not None:
            one.learner._background.cancel()
        one.learner._spool.close()
        one.kept.close()
        for _, held in one.learner._serving._loaded.values():
            held.close()

    before = {line["question_id"]: line for line in one.lines}
    again = Stream(tmp_path, settings, background=background, skills=[0.9] * 20, speaker=one.speaker)
    await again.learner.run(stream(8))
    lines = {line["question_id"]: line for line in again.lines}
    # Nothing lost, nothing scored twice, no score changed.
    assert len(again.lines) == len(lines) == 8
    assert {id: lines[id] for id in before} == before
    # Every rollout of every question was learnt once: versions are made of all of them, and of none twice.
    versions = again.store.versions()
    learnt = Counter(id for version in versions for id in version.rollouts)
    assert (len(learnt), set(learnt.values())) == (14, {1})
    assert all(version.state is State.PROMOTED for version in versions)
    assert again.learner.waiting == 0
    assert again.learner.version == versions[-1].name
    # The memory took in each question once, and credited once what it was shown.
    made = Counter(memory.provenance.episode_id for memory in again.memories(states=tuple(MemoryState)))
    assert set(made.values()) == {1}
    assert {memory.question for memory in again.memories(states=tuple(MemoryState))} == {
        task.question.text for task in stream(7, 1)
    }
    await again.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "memory.db")) as database:
        (count,) = database.execute("select count(*) from episodes where absorbed").fetchone()
    assert count == 14


def _die_at(one: Stream, place: str, nth: int, patched: pytest.MonkeyPatch) -> None:
    """Let the nth call of something be the last thing that this process does: half of them before, half after."""
    import mia.learn.online as module

    owner, name = {
        "put": (one.learner._spool, "put"),
        "score": (module, "append_line"),
        "scored": (one.learner, "_on_scored"),
        "credit": (one.memory, "credit"),
        "remember": (one.memory, "remember"),
        "ready": (one.learner._spool, "make_ready"),
        "update": (one.pupil, "update"),
        "version": (one.pupil.store, "create"),
        "promote": (one.pupil.store, "promote"),
        "remove": (one.learner._spool, "remove"),
        "prune": (one.pupil.store, "prune"),
    }[place]
    inner, calls = getattr(owner, name), Counter[str]()

    def dying(*given: Any, **more: Any) -> Any:
        calls["all"] += 1
        if calls["all"] - 1 < nth:
            return inner(*given, **more)
        if calls["all"] - 1 > nth:
            raise Killed
        after = nth % 2 == 1
        done = inner(*given, **more) if after else None
        if asyncio.iscoroutine(done):
            return _then_die(done)
        if asyncio.iscoroutinefunction(inner):
            return _then_die(None)
        raise Killed

    patched.setattr(owner, name, dying)


async def _then_die(work: Any) -> Any:
    if work is not None:
        await work
    raise Killed


def _is_killed(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return any(map(_is_killed, error.exceptions))
    return isinstance(error, Killed)


async def test_a_disk_that_is_full_stops_the_stream_and_loses_nothing(tmp_path: Path) -> None:
    class Full(MemoryManager):
        left = 3

        async def remember(self, group: Sequence[Episode], ledger: Ledger) -> tuple[Memory, ...]:
            Full.left -= 1
            if Full.left < 0:
                raise StoreError("the disk is full")
            return await super().remember(group, ledger)

    one = Stream(tmp_path, memory=Full)
    with pytest.raises(StoreError):
        await one.learner.run(stream(8))
    await one.close()
    async with learning(tmp_path) as again:
        await again.learner.run(stream(8))
        assert len(again.lines) == 8
        assert {memory.question for memory in again.memories()} == {task.question.text for task in stream(8)}


def test_the_pages_it_keeps_are_plain(tmp_path: Path) -> None:
    one = Stream(tmp_path)
    page: Mapping[str, Any] = json.loads((tmp_path / "learning" / "stream.json").read_text())
    assert page["run"] == one.learner.run_id
    assert page["settings"]["samples"] == 4
    (tmp_path / "learning" / "stream.json").write_text("{}")
    one.learner._spool.close()
    with pytest.raises(LearnError, match=r"stream\.json"):
        Stream(tmp_path)
