"""The line: its order, its variants, and how each stage may fail without taking the rest along."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from shelf import ShelfTool, call

from mia.agents.captioner import Captioner
from mia.agents.executor import Executor
from mia.agents.planner import Planner
from mia.config import ExecutorSettings, LineSettings, MemorySettings
from mia.embeddings.hashing import HashingEmbedder
from mia.episode import absorb, answer, live
from mia.errors import JudgeError, ModelUnavailable, StoreError
from mia.events import StageFinished
from mia.judges.reference import ReferenceJudge
from mia.judges.trust import TrustJudge
from mia.memory.manager import MemoryManager
from mia.models.base import ChatRequest
from mia.models.ledger import Budget, Ledger
from mia.models.scripted import ScriptedModel
from mia.store import open_store
from mia.team import Team
from mia.types import (
    Attempt,
    Episode,
    Image,
    Outcome,
    Question,
    Role,
    StopReason,
    Support,
    Task,
    Verdict,
)

TASK = Task(question=Question.of("Where was the discoverer of Titan born?"), references=("The Hague",))
WORKFLOW = "1. Find who found it (Titan → Huygens)\n2. Find his birthplace (Huygens → The Hague)"
WRONG, RIGHT = "<think>t</think><answer>Leiden</answer>", "<think>t</think><answer>The Hague</answer>"
PLAN, YES, NO = "<think>t</think>1. Look up Titan.", "<think>t</think>yes", "<think>t</think>no"


def script(**replies: Sequence[Any]) -> ScriptedModel:
    """plan, reflect, replan, execute, compress: the replies of each, in order."""
    role = {"execute": "executor", "compress": "manager", "caption": "manager"}
    return ScriptedModel({f"{role.get(name, 'planner')}/{name}": list(texts) for name, texts in replies.items()})


def team(model: ScriptedModel, memory: MemoryManager | None = None, **options: Any) -> Team:
    of_the_line = LineSettings.model_fields.keys() - {"judge"}
    line = LineSettings(**{name: options.pop(name) for name in list(options) if name in of_the_line})
    options.setdefault("judge", ReferenceJudge())
    executor = Executor(model, [ShelfTool()], ExecutorSettings())
    return Team(executor=executor, planner=Planner(model), memory=memory, line=line, **options)


@pytest.fixture
def memory(tmp_path: Path) -> MemoryManager:
    return MemoryManager(open_store(tmp_path / "memory.db"), HashingEmbedder(), MemorySettings(floor=0.1))


async def ask(who: Team, task: Task = TASK, **options: Any) -> Episode:
    return await answer(task, who, Ledger(task.question.id, **options))


async def test_the_whole_line_in_order() -> None:
    told: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, StageFinished):
            told.append(f"{event.stage}{'' if event.ok else '!'}")

    model = script(plan=[PLAN], execute=[call("titan"), WRONG, call("huygens"), RIGHT], reflect=[YES], replan=[PLAN])
    episode = await ask(team(model), on_event=listen)
    assert told == ["plan", "execute", "reflect", "replan", "execute", "judge"]
    assert [attempt.answer.text for attempt in episode.attempts if attempt.answer] == ["Leiden", "The Hague"]
    assert episode.answer is not None
    assert episode.answer.text == "The Hague"
    assert episode.verdict is not None
    assert episode.verdict.correct
    assert episode.attempts[0].verdict is None
    assert episode.attempts[0].reflection is not None
    assert [step.index for step in episode.steps] == [0, 1, 2, 3]
    assert episode.usage[Role.PLANNER].calls == 3
    assert episode.models == {Role.PLANNER: "scripted", Role.EXECUTOR: "scripted"}
    assert {"agents/planner_plan", "agents/executor_text"} <= episode.prompts.keys()


async def test_no_means_the_answer_stands() -> None:
    model = script(plan=[PLAN], execute=[WRONG], reflect=[NO])
    episode = await ask(team(model, judge=None))
    assert len(episode.attempts) == 1
    assert episode.verdict is None


@pytest.mark.parametrize(
    ("options", "purposes"),
    [
        ({"plan": False}, ["execute"]),
        ({"replan": "never"}, ["plan", "execute"]),
        ({"max_reflections": 0}, ["plan", "execute"]),
        ({}, ["plan", "execute", "reflect"]),
    ],
)
async def test_stages_can_be_left_out(options: dict[str, Any], purposes: list[str]) -> None:
    model = script(plan=[PLAN], execute=[RIGHT], reflect=[NO])
    await ask(team(model, **options))
    assert [request.purpose for request in model.requests] == purposes


async def test_a_wrong_verdict_calls_for_the_replan_in_training_without_a_reflection() -> None:
    model = script(plan=[PLAN], execute=[WRONG, RIGHT], replan=[PLAN])
    episode = await ask(team(model, replan="verdict"))
    assert [attempt.verdict.correct for attempt in episode.attempts if attempt.verdict] == [False, True]
    replan = next(request for request in model.requests if request.purpose == "replan")
    assert "answered: Leiden" in replan.messages[-1].content
    model = script(plan=[PLAN], execute=[RIGHT])
    assert len((await ask(team(model, replan="verdict"))).attempts) == 1


async def test_each_attempt_can_be_judged() -> None:
    model = script(plan=[PLAN], execute=[WRONG, RIGHT], reflect=[YES], replan=[PLAN])
    executor = Executor(model, [ShelfTool()], ExecutorSettings())
    line = LineSettings(judge="each")
    episode = await ask(Team(executor=executor, planner=Planner(model), judge=ReferenceJudge(), line=line))
    assert [attempt.verdict.correct for attempt in episode.attempts if attempt.verdict] == [False, True]


async def test_the_last_attempt_that_has_an_answer_is_reported() -> None:
    down = ModelUnavailable("connection refused")
    model = script(plan=[PLAN], execute=[RIGHT, down], reflect=[YES], replan=[PLAN])
    episode = await ask(team(model))
    assert len(episode.attempts) == 2
    assert episode.answer is not None
    assert episode.answer.text == "The Hague"
    assert episode.verdict is not None
    assert episode.verdict.correct
    assert episode.stop is not None
    assert episode.stop.reason is StopReason.UNREACHABLE


@pytest.mark.parametrize("stage", ["plan", "reflect", "replan"])
async def test_a_planner_that_is_down_does_not_stop_the_line(stage: str) -> None:
    replies: dict[str, list[Any]] = {"plan": [PLAN], "reflect": [YES], "replan": [PLAN], "execute": [RIGHT, RIGHT]}
    replies[stage] = [ModelUnavailable("connection refused")]
    episode = await ask(team(script(**replies)))
    assert episode.verdict is not None
    assert episode.verdict.correct
    assert [(failure.stage, failure.error) for failure in episode.failures] == [(stage, "ModelUnavailable")]


async def test_an_endpoint_that_is_down_leaves_the_question_unjudged() -> None:
    episode = await ask(team(ScriptedModel(lambda _: ModelUnavailable("<html>Bad Gateway</html>"))))
    assert episode.answer is None
    assert episode.verdict is not None
    assert episode.verdict.outcome is Outcome.UNJUDGED
    assert episode.stop is not None
    assert episode.stop.reason.unheard


async def test_a_judge_that_is_down_is_never_the_models_zero(memory: MemoryManager) -> None:
    class Down(ReferenceJudge):
        async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
            raise JudgeError("the judge is down")

    who = team(script(plan=[PLAN], execute=[RIGHT], reflect=[NO]), memory, judge=Down())
    episode = await live(TASK, who, Ledger("q"))
    assert episode.verdict is not None
    assert episode.verdict.outcome is Outcome.UNJUDGED
    assert "the judge is down" in episode.verdict.reason
    assert memory.list() == ()


async def test_a_memory_that_fails_is_a_failure_not_the_end() -> None:
    class Broken:
        prompts: dict[str, str] = {}

        async def recall(self, *_: Any, **__: Any) -> Any:
            raise StoreError("the disk is full")

        remember = credit = recall

    who = team(script(plan=[PLAN], execute=[RIGHT], reflect=[NO]), Broken())  # type: ignore[arg-type]
    episode = await live(TASK, who, Ledger("q"))
    assert episode.verdict is not None
    assert episode.verdict.correct
    assert [failure.stage for failure in episode.failures] == ["recall", "remember"]


async def test_a_bug_raises() -> None:
    def bug(request: ChatRequest) -> str:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await ask(team(ScriptedModel(bug)))


async def test_what_was_learnt_is_shown_next_time_and_credited_once(memory: MemoryManager) -> None:
    model = ScriptedModel(lambda request: {"plan": PLAN, "reflect": NO, "execute": RIGHT}[request.purpose])
    who = team(model, memory)
    first = await live(TASK, who, Ledger("q"))
    assert first.recall is not None
    assert first.recall.shown == ()
    again = Task(question=Question.of("Where was the discoverer of Rhea born?"), references=("Perinaldo",))
    second = await live(again, who, Ledger("q"))
    assert second.recall is not None
    (shown,) = second.recall.shown
    plans = [request for request in model.requests if request.purpose == "plan"]
    assert "correct" in plans[1].messages[-1].content
    assert TASK.question.text in plans[1].messages[-1].content
    # It was shown once and the answer came out wrong; absorbing the episode again credits nothing more.
    await absorb(second, who, Ledger("q"))
    kept = memory.show(shown.memory_id)
    assert (kept.uses, kept.wins) == (2, 1)
    mine = next(entry for entry in memory.list() if entry.question == again.question.text)
    assert mine.judgement == "incorrect"
    assert mine.provenance.leaned_on == (shown.memory_id,)


async def test_memories_go_to_the_planner_and_only_without_a_plan_to_the_executor(memory: MemoryManager) -> None:
    await live(TASK, team(script(plan=[PLAN], execute=[RIGHT], reflect=[NO]), memory), Ledger("q"))
    again = TASK.evolve(question=Question.of("Where was the discoverer of Titan really born?"))
    model = script(plan=[PLAN], execute=[RIGHT], reflect=[NO])
    await ask(team(model, memory), again)
    executor = next(request for request in model.requests if request.role is Role.EXECUTOR)
    assert TASK.question.text not in executor.messages[1].content
    model = script(execute=[RIGHT])
    await ask(team(model, memory, plan=False), again)
    assert TASK.question.text in model.requests[0].messages[1].content


async def test_fresh_memories_on_a_replan_skip_those_already_shown(memory: MemoryManager) -> None:
    for number in range(6):
        memory.add(f"Where was the discoverer of moon {number} born?", WORKFLOW, "correct")
    model = script(plan=[PLAN], execute=[WRONG, RIGHT], reflect=[YES], replan=[PLAN])
    episode = await ask(team(model, memory, fresh_memories=True))
    assert episode.recall is not None
    ids = [shown.memory_id for shown in episode.recall.shown]
    assert len(ids) == len(set(ids)) == 4
    replan = next(request for request in model.requests if request.purpose == "replan")
    assert "not shown before" in replan.messages[-1].content


async def test_a_weak_answer_is_held_back_if_asked_and_kept_in_the_attempts() -> None:
    class Weak(ReferenceJudge):
        async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
            support = Support(level="weak", reason="nothing quoted")
            return Verdict(outcome=Outcome.CORRECT, judge="trust", support=support)

    episode = await ask(team(script(plan=[PLAN], execute=[RIGHT], reflect=[NO]), judge=Weak(), withhold=True))
    assert episode.withheld
    assert episode.answer is None
    assert episode.attempts[0].answer is not None


async def test_an_answer_whose_support_nobody_could_judge_is_held_back_and_told_to_nobody() -> None:
    model = script(plan=[PLAN], execute=[call("titan"), RIGHT], reflect=[NO])
    told: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, StageFinished):
            told.append(event.summary)

    down = ScriptedModel({"judge/support": [ModelUnavailable("the judge is down")]})
    who = team(model, judge=TrustJudge(ReferenceJudge(), down), withhold=True)
    episode = await ask(who, on_event=listen)
    assert (episode.withheld, episode.answer) == (True, None)
    assert episode.verdict is not None
    assert "the judge is down" in episode.verdict.fallback
    assert "The Hague" not in str(told)


async def test_without_an_answer_nothing_is_held_back() -> None:
    model = script(plan=[PLAN], execute=[ModelUnavailable("down")])
    episode = await ask(team(model, withhold=True))
    assert (episode.withheld, episode.answer) == (False, None)


async def test_an_executor_that_cannot_go_on_at_all_leaves_its_question_open() -> None:
    model = script(plan=[PLAN], execute=[StoreError("the disk is full")])
    episode = await ask(team(model))
    assert episode.stop is not None
    assert (episode.stop.reason, episode.stop.sentence) == (StopReason.UNREACHABLE, "the disk is full")
    assert [(failed.stage, failed.error) for failed in episode.failures] == [("execute", "StoreError")]
    assert episode.verdict is not None
    assert episode.verdict.outcome is Outcome.UNJUDGED


async def test_an_image_is_captioned_once_and_goes_to_the_executor(tmp_path: Path) -> None:
    image = Image.from_bytes(b"\x89PNG\r\n\x1a\n" + b"0" * 20)
    task = Task(question=Question.of("What is this?", images=(image,)), references=("Titan",))
    model = script(caption=["An orange moon."], plan=[PLAN, PLAN], execute=[RIGHT, RIGHT], reflect=[NO, NO])
    who = team(model, captioner=Captioner(model, tmp_path))
    for _ in range(2):
        episode = await ask(who, task)
        assert episode.question.caption == "An orange moon."
        assert episode.question.images[0].data == ""
    plan = next(request for request in model.requests if request.purpose == "plan")
    assert "An orange moon." in plan.messages[-1].content
    execute = next(request for request in model.requests if request.purpose == "execute")
    assert execute.messages[1].images[0].data == image.data
    assert sum(request.purpose == "caption" for request in model.requests) == 1


async def test_a_budget_of_the_question_holds_over_all_roles() -> None:
    model = ScriptedModel(lambda request: PLAN if request.purpose == "plan" else call("titan"))
    episode = await ask(team(model), budget=Budget(calls=5))
    assert episode.total_usage.calls <= 5
    assert episode.stop is not None
    assert episode.stop.reason is StopReason.CALL_LIMIT


async def test_cancelling_the_task_cancels_the_line() -> None:
    import asyncio

    model = ScriptedModel(lambda _: PLAN, delay=10)
    task = asyncio.create_task(ask(team(model)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
