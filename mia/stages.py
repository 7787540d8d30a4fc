"""The stages of the line, one method each: what runs, what is told of it, and what it leaves in the episode.

`mia.episode.answer` calls them in order; this file is its footnotes. A stage that the world fails leaves a `Failure`,
and the line goes on with what it has.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from mia.agents.executor import Execution
from mia.agents.planner import Planned, Planner, Reflected
from mia.errors import MiaError
from mia.events import StageFinished, StageStarted
from mia.models.ledger import Ledger
from mia.team import Team
from mia.types import (
    Attempt,
    Episode,
    Failure,
    MemoryKind,
    Message,
    Outcome,
    Plan,
    Question,
    Recall,
    Reflection,
    Stop,
    StopReason,
    Task,
    Verdict,
)

T = TypeVar("T")


class Draft:
    """The episode under way: runs each stage, tells of it, and keeps what it brought or why it failed."""

    def __init__(self, task: Task, team: Team, ledger: Ledger) -> None:
        self._task = task
        self._team = team
        self._ledger = ledger
        self._started_at = time.time()
        self._begun = time.monotonic()
        self._question = task.question
        self._recall: Recall | None = None
        self._attempts: list[Attempt] = []
        self._failures: list[Failure] = []

    async def caption(self) -> Question:
        question = self._task.question
        if self._team.captioner is not None and question.images and not question.caption:
            captioned = await self._stage(
                "caption", self._team.captioner.caption(question, self._ledger), lambda made: made.caption
            )
            self._question = captioned or question
        return self._question

    async def recall(self, question: Question) -> Recall:
        if self._team.memory is not None:
            self._recall = await self._stage(
                "recall", self._team.memory.recall(question, ledger=self._ledger), _say_recall
            )
        return self._recall or Recall()

    async def plan(self, question: Question, recall: Recall) -> Planned | None:
        planner, line = self._team.planner, self._team.line
        if planner is None or not line.plan:
            return None
        pairs = None
        if planner.wants_plan_pairs and self._team.memory is not None:
            found = self._team.memory.recall(question, kind=MemoryKind.PLAN_PAIR)
            pairs = await self._stage("recall plan pairs", found, _say_recall)
        tools = self._team.executor.describe_tools()
        return await self._stage(
            "plan", planner.plan(question, recall, tools, self._ledger, pairs=pairs), lambda made: _say_plan(made.plan)
        )

    async def execute(self, question: Question, planned: Planned | None, recall: Recall) -> Execution:
        plan = planned.plan if planned is not None else None
        # A plan carries the memory; only without one does the Executor get memories itself.
        guidance = recall.for_executor if plan is None else ""
        work = self._team.executor.execute(question, plan, guidance, self._ledger)
        return await self._run(work, plan)

    async def resume(self, execution: Execution, planned: Planned) -> Execution:
        return await self._run(self._team.executor.resume(execution, planned.plan, self._ledger), planned.plan)

    async def replan(self, planned: Planned | None, execution: Execution, recall: Recall) -> Planned | None:
        """The supplementary plan, if one is wanted and can be followed; None ends the line's loop."""
        planner, line = self._team.planner, self._team.line
        possible = execution.failure is None and self._team.executor.can_resume(execution, self._ledger)
        if planner is None or planned is None or line.replan == "never" or not possible:
            return None
        messages = planner.show(planned.messages, execution.trace.steps, execution.answer)
        if line.replan == "reflect":
            reflected = await self._reflect(planner, messages)
            if reflected is None or not reflected.reflection.replan:
                return None
            messages = reflected.messages
        else:
            verdict = await self._judge_attempt(len(self._attempts) - 1)
            if verdict is None or verdict.outcome in (Outcome.CORRECT, Outcome.UNJUDGED):
                return None
        fresh = await self._fresh_memories(recall) if line.fresh_memories else None
        work = planner.replan(messages, self._ledger, fresh=fresh)
        return await self._stage("replan", work, lambda made: _say_plan(made.plan))

    async def judge(self) -> None:
        """Judge the reported attempt, or with `judge = "each"` all of them."""
        every = self._team.line.judge == "each"
        for index in range(len(self._attempts)) if every else [self._reported()]:
            await self._judge_attempt(index)

    def episode(self, id: str, run: str) -> Episode:
        reported = self._attempts[self._reported()]
        support = reported.verdict.support if reported.verdict is not None else None
        # Support that nobody could judge is no support.
        supported = support is not None and support.level == "strong"
        withheld = self._team.withhold and reported.answer is not None and not supported
        return Episode(
            id=id,
            run=run,
            question=self._question.evolve(images=tuple(image.without_data() for image in self._question.images)),
            started_at=self._started_at,
            seconds=time.monotonic() - self._begun,
            recall=self._recall,
            attempts=tuple(self._attempts),
            answer=None if withheld else reported.answer,
            withheld=withheld,
            verdict=reported.verdict,
            stop=self._attempts[-1].trace.stop,
            usage=dict(self._ledger.usage),
            models=dict(self._ledger.models),
            adapters=dict(self._ledger.adapters),
            prompts=self._team.prompts,
            failures=tuple(self._failures),
            config=self._team.config,
        )

    def _reported(self) -> int:
        """The last attempt that has an answer, else the last."""
        answered = [index for index, attempt in enumerate(self._attempts) if attempt.answer is not None]
        return answered[-1] if answered else len(self._attempts) - 1

    async def _run(self, work: Awaitable[Execution], plan: Plan | None) -> Execution:
        execution = await self._stage("execute", work, self._say_execution)
        if execution is None:
            # The Executor makes a stop of what it expects to fail; of anything else the world does, this is made.
            why = self._failures[-1].message
            stop = Stop(reason=StopReason.UNREACHABLE, sentence=why)
            execution = Execution(question=self._question, messages=(), stop=stop, failure=MiaError(why))
        elif execution.failure is not None:
            self._failures.append(failure("execute", execution.failure))
        self._attempts.append(Attempt(plan=plan, trace=execution.trace, answer=execution.answer))
        return execution

    def _say_execution(self, execution: Execution) -> str:
        steps = execution.trace.steps
        calls = sum(1 for step in steps if step.tool_call is not None)
        answer = execution.answer.text if execution.answer else "no answer"
        if execution.answer and self._team.withhold:
            answer = "an answer, which its support may yet hold back"
        return f"{_count(len(steps), 'turn')}, {_count(calls, 'tool call')}: {answer}"

    async def _reflect(self, planner: Planner, messages: tuple[Message, ...]) -> Reflected | None:
        reflected = await self._stage(
            "reflect", planner.reflect(messages, self._ledger), lambda made: _say_reflection(made.reflection)
        )
        if reflected is not None:
            self._attempts[-1] = self._attempts[-1].evolve(reflection=reflected.reflection)
        return reflected

    async def _fresh_memories(self, recall: Recall) -> Recall | None:
        if self._team.memory is None:
            return None
        seen = frozenset(recalled.memory_id for recalled in recall.shown)
        fresh = await self._stage(
            "recall", self._team.memory.recall(self._question, skip=seen, ledger=self._ledger), _say_recall
        )
        if fresh is not None and self._recall is not None:
            # What was shown later counts as shown: it takes part in the credit and in "why".
            self._recall = self._recall.evolve(shown=(*self._recall.shown, *fresh.shown))
        return fresh

    async def _judge_attempt(self, index: int) -> Verdict | None:
        """The verdict on one attempt, given once; a judge that fails leaves it unjudged."""
        attempt = self._attempts[index]
        if attempt.verdict is not None or self._team.judge is None:
            return attempt.verdict
        if attempt.answer is None:
            verdict = _without_answer(attempt)
        else:
            # A replan builds on what was found before it, so the judge sees every step up to the answer.
            steps = tuple(step for earlier in self._attempts[: index + 1] for step in earlier.trace.steps)
            whole = attempt.evolve(trace=attempt.trace.evolve(steps=steps))
            work = self._team.judge.judge(self._task, whole, self._ledger)
            judged = await self._stage("judge", work, _say_verdict)
            verdict = judged or Verdict(outcome=Outcome.UNJUDGED, judge="none", reason=self._failures[-1].message)
        self._attempts[index] = attempt.evolve(verdict=verdict)
        return verdict

    async def _stage(self, name: str, work: Awaitable[T], say: Callable[[T], str]) -> T | None:
        """Run one stage; tell of its beginning and end; a failure of the world is kept and gives None."""
        question_id = self._ledger.question_id
        self._ledger.on_event(StageStarted(question_id=question_id, stage=name))
        begun = time.monotonic()
        try:
            done = await work
        except MiaError as error:
            self._failures.append(failure(name, error))
            result, summary, ok = None, error.got, False
        else:
            result, summary, ok = done, say(done), True
        self._ledger.on_event(
            StageFinished(question_id=question_id, stage=name, seconds=time.monotonic() - begun, summary=summary, ok=ok)
        )
        return result


def failure(stage: str, error: MiaError) -> Failure:
    return Failure(stage=stage, error=type(error).__name__, message=str(error), at=time.time())


def _without_answer(attempt: Attempt) -> Verdict:
    """No answer is no attempt; but a model that could not be asked is not judged at all."""
    stop = attempt.trace.stop
    outcome = Outcome.UNJUDGED if stop.reason.unheard else Outcome.NOT_ATTEMPTED
    return Verdict(outcome=outcome, judge="none", reason=f"There is no answer: {stop.sentence}")


# What each stage says in one line.


def _say_recall(recall: Recall) -> str:
    correct = sum(1 for shown in recall.shown if shown.judgement == "correct")
    if not recall.shown:
        return f"nothing fits, of {_count(recall.considered, 'memory')}"
    return f"{_count(len(recall.shown), 'memory')} ({correct} correct, {len(recall.shown) - correct} incorrect)"


def _say_plan(plan: Plan) -> str:
    chosen = f", chosen of {len(plan.candidates)}" if plan.candidates else ""
    return f"{_count(len(plan.steps), 'step') if plan.steps else 'steps without numbers'}{chosen}"


def _say_reflection(reflection: Reflection) -> str:
    if reflection.replan is None:
        return "neither yes nor no: the answer stands"
    return "something is missing: replan" if reflection.replan else "the answer stands"


def _say_verdict(verdict: Verdict) -> str:
    return f"{verdict.outcome.value} ({verdict.judge})"


def _count(number: int, noun: str) -> str:
    plural = noun.removesuffix("y") + "ies" if noun.endswith("y") else noun + "s"
    return f"{number} {noun if number == 1 else plural}"
