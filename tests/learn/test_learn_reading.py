"""The reader's stage: k chunks and the answer are k + 1 conversations of one sample; the strict verifier rewards it;
texts come from worlds or from a list; and a training leaves weights and goes on as any stage does."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from embedded_team import needs_embedded_model

from mia.config import LearnSettings, ReaderSettings
from mia.errors import ConfigError, LearnError, ModelUnavailable
from mia.learn.advantages import advantages
from mia.learn.learner import Learner
from mia.learn.reading import (
    MOST_CHUNKS,
    PAPER,
    Answered,
    LongQuestion,
    ReaderStage,
    TextExam,
    TextListSource,
    WorldTexts,
    WorldTextSource,
    exam_seeds,
    reading_reward,
    strict_reward,
    text_tokens,
    world_questions,
)
from mia.learn.rollouts import Dropped, Reward, Rollout, Sampled, roll_out
from mia.learn.stages import Sampling, Schedule, StageResult, read_exams, read_metrics, train_stage
from mia.models import build_model
from mia.models.base import ChatModel, ChatReply, ChatRequest
from mia.models.scripted import ScriptedModel
from mia.reader.chunks import EstimatedTokens, TokenCounter, token_counter
from mia.types import Question, Role, Task
from mia.world import preset
from mia.world.seeds import TRAIN, VALIDATION
from mia.world.teacher import Teacher

SETTINGS = ReaderSettings(**preset.READER)
COUNTER: TokenCounter = EstimatedTokens()
LEARN = LearnSettings(**{**PAPER, "samples": 2, "rank": 2, "kl": 0.0})
SCHEDULE = Schedule(steps=2, questions=2, exam_every=1, save_every=1)


def stage(counter: TokenCounter = COUNTER) -> ReaderStage:
    return ReaderStage(SETTINGS, "compact", counter)


def questions(count: int = 2, chunks: int = 3) -> list[LongQuestion]:
    return world_questions(VALIDATION[:count], 1, chunks, SETTINGS, COUNTER.count)


async def read(question: LongQuestion, model: ChatModel) -> Answered:
    return await stage().answer(question, model)


# ── one sample ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_the_teacher_is_right_and_gets_the_whole_reward() -> None:
    for question in questions(3):
        outcome = await read(question, Teacher(random.Random(1)))
        assert outcome.reading.chunks >= 3
        assert await strict_reward(question.task, outcome, ()) == Reward(1.0, {"boxed": 1.0})
        assert stage().mark(outcome) == 1.0


@pytest.mark.parametrize(
    ("reply", "reward"),
    [("\\boxed{Bado}", 1.0), ("\\boxed{bado}", 0.0), ("Bado", 0.0), ("\\boxed{Bado, Rina}", 0.0)],
)
async def test_only_the_boxed_text_letter_for_letter_is_rewarded(reply: str, reward: float) -> None:
    task = Task(question=Question(id="q", text="Name the mayor of Melotu."), references=("Bado",))
    outcome = await read(LongQuestion(task, "mayor of Melotu is Bado. "), ScriptedModel(lambda request: reply))
    rewarded = await strict_reward(task, outcome, ())
    assert isinstance(rewarded, Reward)
    assert rewarded.total == reward


async def test_a_model_that_is_down_gives_no_reward_and_one_that_says_nothing_gives_none_of_it() -> None:
    (question,) = questions(1)

    def down(request: ChatRequest) -> ChatReply:
        raise ModelUnavailable("it is down.")

    unheard = await read(question, ScriptedModel(down))
    dropped = await strict_reward(question.task, unheard, ())
    assert isinstance(dropped, Dropped)
    assert "ModelUnavailable" in dropped.why
    assert stage().mark(unheard) is None
    silent = await read(question, ScriptedModel(lambda request: "" if request.purpose == "answer" else "note"))
    assert await strict_reward(question.task, silent, ()) == Reward(0.0, {"boxed": 0.0})
    assert stage().mark(silent) == 0.0


async def test_what_a_step_tells_of_its_readings() -> None:
    (question,) = questions(1)
    silent = await read(question, ScriptedModel(lambda request: "" if request.purpose == "read" else "x"))
    long = await read(question, ScriptedModel(lambda request: "word " * 200))
    told = stage().told([silent, long])
    assert told["chunks"] == silent.reading.chunks == long.reading.chunks
    assert (told["unwritten"], told["cut"]) == (0.5, 0.5)


def test_a_reward_of_ones_own_is_taken_and_a_service_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_reading_rewards.py").write_text("def half(task, outcome, said):\n    return 0.5\n")
    monkeypatch.chdir(tmp_path)
    assert reading_reward(LearnSettings()) is strict_reward
    assert reading_reward(LearnSettings(reward="own_reading_rewards:half")) is not strict_reward
    with pytest.raises(ConfigError, match="service"):
        reading_reward(LearnSettings(reward="http://localhost:1"))


@pytest.fixture
async def learner() -> AsyncIterator[Learner]:
    made = Learner.open("", LEARN, seed=3)
    yield made
    await made.close()


@pytest.fixture
async def model() -> AsyncIterator[ChatModel]:
    made = build_model(preset.model_settings(max_tokens=48))
    yield made
    await made.close()


@needs_embedded_model
async def test_each_chunk_and_the_answer_is_a_conversation_with_the_advantage_of_the_sample(
    learner: Learner, model: ChatModel
) -> None:
    counter = token_counter(model)
    (question,) = world_questions(VALIDATION[:1], 1, 3, SETTINGS, counter.count)

    async def agent(recording: ChatModel, task: Task) -> Answered:
        return await stage(counter).answer(question, recording)

    sampled: list[Sampled[Answered]] = [
        await roll_out(agent, Sampling(learner, model), question.task, strict_reward, role=Role.READER, seed=seed)
        for seed in (1, 2)
    ]
    rollouts = [one.sample for one in sampled if isinstance(one.sample, Rollout)]
    assert len(rollouts) == 2
    for one, rollout in zip(sampled, rollouts, strict=True):
        assert len(rollout.conversations) == one.outcome.reading.chunks + 1
        assert [said.purpose for said in one.said] == ["read"] * one.outcome.reading.chunks + ["answer"]
        assert not one.splits
        # Chunks were counted in the model's own tokens, though a recording model hides them.
        assert one.outcome.reading.tokens < 4 * SETTINGS.chunk_tokens
    # Rewards 1 and 0 of a question: half the difference each, not divided by its deviation (which would be ±0.71).
    better, worse = (dataclasses.replace(one, reward=reward) for one, reward in zip(rollouts, (1.0, 0.0), strict=True))
    assert advantages([better, worse], divide=LEARN.deviation, epsilon=0.1).values == (0.5, -0.5)
    update = learner.update([better, worse])
    assert update.passes[0].conversations == sum(len(rollout.conversations) for rollout in rollouts)
    assert update.passes[0].tokens == sum(rollout.learned for rollout in rollouts)
    assert update.moved


# ── texts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_texts_of_the_world_are_new_each_time_and_go_on_after_a_stop(tmp_path: Path) -> None:
    texts = WorldTexts(first_seed=500, chunks=2)
    source = WorldTextSource(texts, SETTINGS, COUNTER)
    first = await source.draw(3)
    assert await source.draw(3) == first  # Not absorbed: they come again.
    await source.absorb([(one, []) for one in first])
    await source.save(tmp_path)
    second = await source.draw(3)
    assert len({one.task.question.id for one in (*first, *second)}) == 6
    other = WorldTextSource(texts, SETTINGS, COUNTER)
    await other.restore(tmp_path)
    assert await other.draw(3) == second
    (tmp_path / "texts.json").write_text("{")
    with pytest.raises(LearnError, match="cannot be read"):
        await other.restore(tmp_path)


async def test_behind_the_last_world_come_other_texts_of_the_first() -> None:
    source = WorldTextSource(WorldTexts(first_seed=TRAIN.stop - 1, chunks=1), SETTINGS, COUNTER)
    first, second = await source.draw(2)
    assert first.task.question.id.rpartition("-")[0] == second.task.question.id.rpartition("-")[0]
    assert first.text != second.text


def test_questions_ask_for_one_fact_and_for_two() -> None:
    asked = world_questions(VALIDATION[:4], 2, 2, SETTINGS, COUNTER.count)
    assert [", " in one.task.references[0] for one in asked] == [False, True] * 4
    assert len({one.group for one in asked}) == 4


async def test_a_text_comes_to_about_the_chunks_that_were_asked_for() -> None:
    counts = [(await read(one, Teacher(random.Random(1)))).reading.chunks for one in questions(6, chunks=16)]
    assert all(15 <= count <= 18 for count in counts), counts


def test_the_text_is_many_times_the_memory() -> None:
    assert text_tokens(8, SETTINGS) >= 16 * SETTINGS.memory_tokens


@pytest.mark.parametrize("seed", [TRAIN.stop, VALIDATION.start, -1])
def test_other_worlds_than_those_of_training_are_refused(seed: int) -> None:
    with pytest.raises(ConfigError, match="not for training"):
        WorldTexts(first_seed=seed)


def test_no_chunks_and_no_worlds_are_refused() -> None:
    with pytest.raises(ConfigError):
        WorldTexts(first_seed=0, chunks=0)
    with pytest.raises(ConfigError, match="no exam"):
        exam_seeds(1)


async def test_a_list_comes_in_another_order_in_each_pass_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    own = questions(4, chunks=1)
    source = TextListSource(own, seed=2)
    passes = []
    for _ in range(2):
        drawn = await source.draw(4)
        passes.append([one.task.question.id for one in drawn])
        await source.absorb([(one, []) for one in drawn])
    assert passes[0] != passes[1]
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(source.page()["ids"])
    await source.save(tmp_path)
    other = TextListSource(own, seed=2)
    await other.restore(tmp_path)
    assert await other.draw(2) == await source.draw(2)
    with pytest.raises(ConfigError, match="a list of 4"):
        source.check(5)
    with pytest.raises(ConfigError, match="no questions"):
        TextListSource([])


async def test_an_exam_marks_every_question_by_its_world_and_leaves_out_the_unheard() -> None:
    asked = world_questions(VALIDATION[:3], 2, 1, SETTINGS, COUNTER.count)
    calls = 0

    async def answering(question: LongQuestion) -> Answered:
        nonlocal calls
        calls += 1
        outcome = await read(question, Teacher(random.Random(1)))
        if question is asked[0]:
            failed = dataclasses.replace(outcome.reading, failure=ModelUnavailable("it is down."))
            return Answered(question.task, failed)
        return (
            outcome if question is not asked[1] else Answered(question.task.evolve(references=("no",)), outcome.reading)
        )

    told: list[tuple[int, int]] = []
    marks = await TextExam(asked).hold(answering, lambda done, total: told.append((done, total)))
    assert calls == 6
    assert told[-1] == (6, 6)
    assert marks == {asked[0].group: [0.0], asked[2].group: [1.0, 1.0], asked[4].group: [1.0, 1.0]}
    with pytest.raises(ConfigError, match="no exam"):
        TextExam(asked[:1])


# ── a training ────────────────────────────────────────────────────────────────────────────────────────────────────


async def train(folder: Path, steps: int, *, stop_after: int = 0) -> StageResult | None:
    """A training of the embedded model that rewards short notes, since nothing that it says at first is right."""
    model = build_model(preset.model_settings(max_tokens=48))
    learner = Learner.open("", LEARN, seed=3)
    counter = token_counter(model)
    asked = world_questions(VALIDATION[:2], 1, 1, SETTINGS, counter.count)
    try:
        return await train_stage(
            ReaderStage(SETTINGS, "compact", counter),
            WorldTextSource(WorldTexts(first_seed=700, chunks=2), SETTINGS, counter),
            learner,
            LEARN,
            folder,
            reward=by_length,
            model=model,
            schedule=dataclasses.replace(SCHEDULE, steps=steps),
            exam=TextExam(asked),
            stop=lambda: bool(stop_after) and len(read_metrics(folder)) >= stop_after,
        )
    finally:
        await learner.close()
        await model.close()


async def by_length(task: Task, outcome: Answered, said: object) -> Reward:
    return Reward(-len(outcome.reading.memory) / 100)


@needs_embedded_model
async def test_a_training_leaves_weights_and_goes_on_after_a_stop(tmp_path: Path) -> None:
    assert await train(tmp_path / "stopped", 2, stop_after=1) is None
    result = await train(tmp_path / "stopped", 2)
    assert result is not None
    assert (result.stage, result.steps) == ("reader", 2)
    assert (result.weights / "adapter_config.json").is_file()
    rows = read_metrics(tmp_path / "stopped")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["rollouts"] == 4 and row["chunks"] >= 2 for row in rows)
    assert "replans" not in rows[0]
    assert [held.step for held in read_exams(tmp_path / "stopped")] == [0, 1, 2]
    whole = await train(tmp_path / "whole", 2)
    assert whole is not None
    assert [row["reward"] for row in read_metrics(tmp_path / "whole")] == pytest.approx([row["reward"] for row in rows])


# ── the reader that comes with the embedded model ─────────────────────────────────────────────────────────────────


@needs_embedded_model
@pytest.mark.skipif(not preset.READING.is_dir(), reason="no reader comes with this copy")
async def test_the_released_reader_reads_texts_four_times_as_long_as_those_of_its_training() -> None:
    settings = ReaderSettings(**preset.READER)
    model = build_model(preset.model_settings(adapter=str(preset.READING)))
    try:
        counter = token_counter(model)
        questions = world_questions(VALIDATION[:12], 1, 4 * MOST_CHUNKS, settings, counter.count)
        answering = ReaderStage(settings, "compact", counter)
        read = await asyncio.gather(*(answering.answer(question, model) for question in questions))
    finally:
        await model.close()
    # By chance one name in hundreds would be right.
    right = sum(answering.mark(one) == 1.0 for one in read)
    assert right >= 8, right
