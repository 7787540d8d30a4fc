"""A stage: rollouts, rewards, updates, exams; a folder that any end leaves whole; and both stages in turn."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from embedded_team import needs_embedded_model, settings

from mia.config import LearnSettings, ModelsSettings
from mia.errors import ConfigError, LearnError
from mia.learn.learner import Learner
from mia.learn.rollouts import Dropped, Reward, RewardFunction, Said
from mia.learn.sources import Answering, Marks, Tell, Worlds, WorldSource
from mia.learn.stages import (
    BARREN,
    EXECUTOR,
    PLANNER,
    Held,
    Progress,
    Schedule,
    Stage,
    StageResult,
    Tracker,
    alone,
    alternate,
    frozen_models,
    read_exams,
    read_metrics,
    train_stage,
)
from mia.models import Models, build_model
from mia.models.base import ChatRequest
from mia.models.ledger import Ledger
from mia.statistics import paired
from mia.team import Team, build_team
from mia.types import Episode, Recall, Role, Task
from mia.world import preset
from mia.world.engine import WorldEngine
from mia.world.facts import World

SETTINGS = LearnSettings(samples=2, rank=4)
SCHEDULE = Schedule(steps=2, questions=2, exam_every=1, save_every=1)
MODELS = ModelsSettings(default=preset.model_settings(max_tokens=64))

Judges = RewardFunction[Episode]


async def by_length(task: Task, episode: Episode, said: Sequence[Said]) -> Reward:
    """Something that differs between the rollouts of a question, and needs no luck."""
    return Reward(-len(said[0].text) / 100, {"length": float(len(said[0].text))})


async def for_gazette(task: Task, episode: Episode, said: Sequence[Said]) -> Reward:
    """What a taste for one source would be worth."""
    words = said[0].text.split()
    return Reward(words.count("gazette") / max(1, words.count("in")))


@dataclass
class Marked:
    """An exam whose marks are known beforehand."""

    marks: list[float]
    held: list[str] = field(default_factory=list)

    def page(self) -> dict[str, Any]:
        return {"kind": "known"}

    async def hold(self, answering: Answering, tell: Tell) -> Marks:
        tell(1, 1)
        mark = self.marks[len(self.held)]
        self.held.append("held")
        return {"one": [mark], "other": [0.0]}

    async def close(self) -> None: ...


@dataclass
class Place:
    """All that a training needs but its folder."""

    models: Models
    settings: LearnSettings = SETTINGS
    stage: Stage = PLANNER
    worlds: Worlds = field(default_factory=lambda: Worlds(1_000, streams=2, questions=3, staggered=False))

    async def train(
        self,
        folder: Path,
        *,
        reward: Judges = by_length,
        schedule: Schedule = SCHEDULE,
        exam: Marked | None = None,
        stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[Progress], None] = lambda progress: None,
        trackers: Sequence[Tracker] = (),
    ) -> StageResult | None:
        learner = Learner.open("", self.settings, seed=3)
        source = WorldSource(self.worlds, self.models)
        try:
            return await train_stage(
                self.stage,
                source,
                learner,
                self.settings,
                folder,
                reward=reward,
                model=self.models.of(self.stage.role),
                schedule=schedule,
                exam=exam,
                page={"base": learner.base},
                stop=stop,
                on_progress=on_progress,
                trackers=trackers,
            )
        finally:
            await source.close()
            await learner.close()


@pytest.fixture
async def place() -> AsyncIterator[Place]:
    made = frozen_models(MODELS)
    yield Place(made)
    await made.close()


@pytest.fixture
async def team(tmp_path: Path) -> AsyncIterator[Team]:
    """The embedded model as a team in a world."""
    made = build_team(settings(tmp_path / "home"), engine=WorldEngine(World.make(1)))
    yield made
    await made.close()


# ── the two stages ────────────────────────────────────────────────────────────────────────────────────────────────


@needs_embedded_model
class TestWhoLearns:
    async def test_the_planner_stage_replans_by_reflection_and_judges_both_answers(self, team: Team) -> None:
        other = build_model(preset.model_settings())
        made = PLANNER.team(team, other)
        assert (made.line.replan, made.line.judge) == ("reflect", "each")
        assert made.planner is not team.planner
        assert made.executor is team.executor
        await other.close()

    async def test_the_executor_stage_replans_by_the_verdict(self, team: Team) -> None:
        other = build_model(preset.model_settings())
        made = EXECUTOR.team(team, other)
        assert (made.line.replan, made.line.judge) == ("verdict", "each")
        assert made.executor.model is other
        assert made.planner is team.planner
        assert EXECUTOR.team(team, other, exam=True).line == team.line
        await other.close()

    async def test_a_line_without_a_planner_or_with_several_plans_gives_the_planner_nothing_to_learn(
        self, tmp_path: Path
    ) -> None:
        for flag, value, why in (("line__plan", False, "the line has none"), ("line__best_of", 2, "several plans")):
            made = build_team(settings(tmp_path / flag, **{flag: value}), engine=WorldEngine(World.make(1)))
            with pytest.raises(ConfigError, match=why):
                PLANNER.team(made, made.executor.model)
            await made.close()


# ── learning ──────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_embedded_model
class TestLearning:
    async def test_what_is_rewarded_becomes_more_frequent(self, place: Place, tmp_path: Path) -> None:
        place.settings = LearnSettings(samples=6, rank=8, rate=3e-2, kl=0.0)
        place.worlds = Worlds(1_000, streams=3, questions=20, staggered=False)
        place.stage = dataclasses.replace(PLANNER, line={"replan": "never"})
        result = await place.train(
            tmp_path, reward=for_gazette, schedule=Schedule(steps=7, questions=3, save_every=100)
        )
        assert result is not None
        rewards = [row["reward"] for row in read_metrics(tmp_path)]
        assert max(rewards[-2:]) > 2 * rewards[0] + 0.1
        # The weights that were left behind do it too.
        model = build_model(preset.model_settings(adapter=str(result.weights)))
        base = build_model(preset.model_settings())
        request = await _planning(place)
        assert (await model.complete(request)).text.count("gazette") > (await base.complete(request)).text.count(
            "gazette"
        )
        await model.close()
        await base.close()

    @pytest.mark.parametrize("stage", [EXECUTOR, PLANNER])
    async def test_a_step_tells_what_came_of_it(self, place: Place, tmp_path: Path, stage: Stage) -> None:
        place.stage = stage
        told: list[Progress] = []
        result = await place.train(tmp_path, exam=Marked([0.0, 1.0, 0.0]), on_progress=told.append)
        assert result is not None
        rows = read_metrics(tmp_path)
        assert [row["step"] for row in rows] == [1, 2]
        for row in rows:
            learnt = row["rollouts_learnt"] + row["dropped"].get("all rewards equal", 0)
            assert row["rollouts"] == learnt == 4
            assert row["reward"] == pytest.approx(-row["parts"]["length"] / 100)
            assert 0 <= row["accuracy"] <= 1
        steps = [one for one in told if one.phase == "steps" and one.row]
        assert [(one.done, one.total, one.accuracy) for one in steps] == [(1, 2, 0.5), (2, 2, 0.0)]
        assert steps[0].seconds_left is not None
        assert steps[-1].seconds_left == 0
        # The exam before the first step comes first.
        assert [one.phase for one in told[:2]] == ["steps", "exam"]

    async def test_rollouts_without_a_reward_are_counted_and_too_many_end_the_training(
        self, place: Place, tmp_path: Path
    ) -> None:
        async def unjudged(task: Task, episode: Episode, said: Sequence[Said]) -> Dropped:
            return Dropped("", "the judge could not be asked")

        with pytest.raises(LearnError, match=f"in {BARREN} steps not one rollout got a reward; 4 .*judge"):
            await place.train(tmp_path, reward=unjudged, schedule=Schedule(steps=9, questions=2))
        rows = read_metrics(tmp_path)
        assert [row["dropped"] for row in rows] == [{"the judge could not be asked": 4}] * (BARREN - 1)
        assert [row["reward"] for row in rows] == [None] * (BARREN - 1)

    async def test_equal_rewards_move_nothing(self, place: Place, tmp_path: Path) -> None:
        async def equal(task: Task, episode: Episode, said: Sequence[Said]) -> Reward:
            return Reward(0.3)

        await place.train(tmp_path, reward=equal)
        assert [row["dropped"] for row in read_metrics(tmp_path)] == [{"all rewards equal": 4}] * 2
        assert [row["steps"] for row in read_metrics(tmp_path)] == [0.0, 0.0]


class _Tracked:
    """A sink that notes rewards, and its end as step 0."""

    def __init__(self, after: int, began: list[int], into: list[tuple[int, float]]) -> None:
        began.append(after)
        self._into = into

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        self._into.append((step, values["reward"]))

    def close(self) -> None:
        self._into.append((0, 0.0))


async def _planning(place: Place) -> ChatRequest:
    """The request for a plan, as the Planner makes it of a question of another world."""
    asked: list[ChatRequest] = []

    class Listening:
        name, context_window, max_tokens, price = "listening", 1536, 64, None

        async def complete(self, request: ChatRequest) -> Any:
            asked.append(request)
            return await place.models.planner.complete(request)

        async def close(self) -> None: ...

    source = WorldSource(Worlds(2_000, streams=1, questions=1, staggered=False), place.models)
    await source.prepare(lambda done, total: None)
    (situation,) = await source.draw(1)
    planner = situation.team.planner
    assert planner is not None
    tools = situation.team.executor.describe_tools()
    await planner.asking(Listening()).plan(situation.task.question, Recall(), tools, Ledger("q"))
    await source.close()
    return asked[0]


# ── exams ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_embedded_model
class TestExams:
    async def test_the_weights_of_the_best_exam_are_left_behind(self, place: Place, tmp_path: Path) -> None:
        result = await place.train(
            tmp_path, schedule=Schedule(steps=3, questions=2, exam_every=1), exam=Marked([0.0, 0.5, 1.0, 0.5])
        )
        assert result is not None
        assert (result.best_step, result.steps, result.weights) == (2, 3, tmp_path / "adapter")
        short = await place.train(tmp_path / "short", schedule=Schedule(steps=2, questions=2))
        assert short is not None
        # A training of the same seed that ended there has the same weights, to rounding.
        assert _close(result.weights, short.weights)
        longer = await place.train(tmp_path / "short", schedule=Schedule(steps=3, questions=2))
        assert longer is not None
        assert not _close(result.weights, longer.weights)

    async def test_where_nothing_was_better_the_first_weights_are_left(self, place: Place, tmp_path: Path) -> None:
        result = await place.train(tmp_path, exam=Marked([1.0, 0.5, 0.9]))
        assert result is not None
        assert (result.best_step, result.best, result.before) == (0, result.exams[0], result.exams[0])
        # A fresh adapter changes nothing.
        model = build_model(preset.model_settings(adapter=str(result.weights)))
        request = await _planning(place)
        assert (await model.complete(request)).text == (await place.models.planner.complete(request)).text
        await model.close()

    async def test_a_training_ends_when_patience_does(self, place: Place, tmp_path: Path) -> None:
        result = await place.train(
            tmp_path,
            schedule=Schedule(steps=9, questions=2, exam_every=1, patience=2),
            exam=Marked([0.5, 1.0, 0.5, 1.0]),
        )
        assert result is not None
        assert (result.steps, result.best_step, result.ended_early) == (3, 1, True)


def test_exams_are_compared_in_pairs_of_what_both_have_marks_of() -> None:
    before = Held(0, {"1": [1.0, 0.0], "2": [0.0, 0.0], "3": [1.0]})
    after = Held(5, {"1": [1.0, 1.0], "2": [0.0, 1.0], "4": [0.0]})
    assert after.over(before) == paired([0.5, 0.0], [1.0, 0.5])
    assert after.accuracy is not None
    assert after.accuracy.estimate == pytest.approx((1.0 + 0.5 + 0.0) / 3)


# ── the folder ────────────────────────────────────────────────────────────────────────────────────────────────────


@needs_embedded_model
class TestGoingOn:
    async def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(
        self, place: Place, tmp_path: Path
    ) -> None:
        schedule = Schedule(steps=4, questions=2, exam_every=2, save_every=100)
        straight = await place.train(tmp_path / "straight", schedule=schedule, exam=Marked([0.0, 1.0, 0.5]))
        stops: Iterator[bool] = iter([False, False, True])
        broken = tmp_path / "broken"
        assert await place.train(broken, schedule=schedule, exam=Marked([0.0, 1.0]), stop=lambda: next(stops)) is None
        assert [path.name for path in broken.glob("checkpoint-*")] == ["checkpoint-000003"]
        # What a crash left behind the checkpoint does not count.
        with (broken / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write('{"step": 4, "reward": 99}\n{"step": 5, "rew')
        tracked: list[tuple[int, float]] = []
        began: list[int] = []
        again = await place.train(
            broken, schedule=schedule, exam=Marked([0.5]), trackers=[lambda after: _Tracked(after, began, tracked)]
        )
        # A tracker is told where the training goes on from, and the numbers of what comes then.
        assert began == [3]
        assert tracked == [(row["step"], row["reward"]) for row in read_metrics(broken)[3:]] + [(0, 0.0)]
        assert straight is not None
        assert again is not None
        told = [(row["step"], row["reward"], row["dropped"]) for row in read_metrics(tmp_path / "straight")]
        assert [(row["step"], row["reward"], row["dropped"]) for row in read_metrics(broken)] == told
        assert again.exams == straight.exams
        assert again.best_step == straight.best_step == 2
        assert _close(again.weights, straight.weights)

    async def test_a_finished_training_is_not_trained_again_and_goes_on_for_more_steps(
        self, place: Place, tmp_path: Path
    ) -> None:
        first = await place.train(tmp_path, exam=Marked([0.0, 0.5, 1.0]))
        again = await place.train(tmp_path, exam=Marked([]))
        assert again is not None
        assert first is not None
        assert again.as_dict() == first.as_dict()
        more = await place.train(
            tmp_path, schedule=Schedule(steps=3, questions=2, exam_every=1, save_every=1), exam=Marked([0.5])
        )
        assert more is not None
        assert (more.steps, more.best_step, len(more.exams)) == (3, 2, 4)

    async def test_another_training_does_not_go_on_in_the_folder(self, place: Place, tmp_path: Path) -> None:
        await place.train(tmp_path)
        place.settings = LearnSettings(samples=2, rank=4, rate=0.5)
        with pytest.raises(ConfigError, match=r"differs in learn\.rate \(0\.001 there, 0\.5 now\)"):
            await place.train(tmp_path)
        place.stage = EXECUTOR
        with pytest.raises(ConfigError, match="stage"):
            await place.train(tmp_path)

    async def test_two_trainings_do_not_share_a_folder(self, place: Place, tmp_path: Path) -> None:
        with alone(tmp_path), pytest.raises(ConfigError, match="another process is training"):
            await place.train(tmp_path)
        assert read_metrics(tmp_path) == []

    async def test_a_torn_checkpoint_is_named_with_what_to_type(self, place: Place, tmp_path: Path) -> None:
        assert await place.train(tmp_path, stop=lambda: True) is None
        (tmp_path / "checkpoint-000001" / "state.json").write_text('{"step":', encoding="utf-8")
        with pytest.raises(LearnError, match=r"rm -r .*checkpoint-000001"):
            await place.train(tmp_path)


def test_rows_that_a_crash_tore_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward": 0.5}\n[3]\n{"step": 2, "rew', encoding="utf-8")
    (tmp_path / "exams.jsonl").write_text('{"step": 0, "marks": {"1": [1.0]}}\n{"step": 1}\n', encoding="utf-8")
    assert read_metrics(tmp_path) == [{"step": 1, "reward": 0.5}]
    assert read_exams(tmp_path) == [Held(0, {"1": [1.0]})]


# ── in turn ───────────────────────────────────────────────────────────────────────────────────────────────────────


class TestInTurn:
    async def test_each_stage_is_handed_what_both_roles_have_learnt(self, tmp_path: Path) -> None:
        seen: list[tuple[str, Path, Mapping[Role, Path]]] = []

        async def train(stage: Stage, folder: Path, weights: Mapping[Role, Path]) -> StageResult:
            seen.append((stage.name, folder, weights))
            return StageResult(stage.name, folder / "adapter", 1, 1, (), 0.0)

        results = await alternate(2, tmp_path, train)
        assert results is not None
        one, two, three, four = (tmp_path / name for name in ("1-executor", "1-planner", "2-executor", "2-planner"))
        assert [result.weights.parent for result in results] == [one, two, three, four]
        executor, planner = Role.EXECUTOR, Role.PLANNER
        assert seen == [
            ("executor", one, {}),
            ("planner", two, {executor: one / "adapter"}),
            ("executor", three, {executor: one / "adapter", planner: two / "adapter"}),
            ("planner", four, {executor: three / "adapter", planner: two / "adapter"}),
        ]

    async def test_a_stage_that_was_stopped_stops_all(self, tmp_path: Path) -> None:
        async def train(stage: Stage, folder: Path, weights: Mapping[Role, Path]) -> StageResult | None:
            return StageResult(stage.name, folder, 1, 1, (), 0.0) if stage is EXECUTOR else None

        assert await alternate(3, tmp_path, train) is None

    async def test_no_round_is_no_training(self, tmp_path: Path) -> None:
        async def train(stage: Stage, folder: Path, weights: Mapping[Role, Path]) -> StageResult | None:
            raise AssertionError

        with pytest.raises(ConfigError, match="0 rounds"):
            await alternate(0, tmp_path, train)


def _close(one: Path, other: Path) -> bool:
    """Whether two adapters have the same weights, to rounding."""
    import torch
    from safetensors.torch import load_file

    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    return first.keys() == second.keys() and all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)
