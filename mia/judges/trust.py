"""The trust judge: how well do the observations carry the answer, whatever another judge thinks of its truth?

It puts `support` (strong, weak or none, with the reason) on the verdict of an inner judge and leaves the outcome as it
is. An answer with nothing found behind it has no support, and no model is asked for that. It flags; the line holds
back. It shows its model the question, the answer, the citations and what tools returned, never the agent's reasoning:
that is no evidence.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from mia.errors import BudgetExceeded, JudgeError, MiaError, ModelError
from mia.judges.asking import StrictAsker, bare_words, read_labelled, show_question
from mia.judges.base import Judge
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptSet, PromptStyle, defuse
from mia.transcript import render_steps
from mia.types import Attempt, Outcome, Question, Support, Task, Verdict

_NOTHING_FOUND = Support(level="none", reason="No tool returned anything, and nothing is cited.")


@dataclass(frozen=True)
class _Prompts(PromptSet):
    trust: Prompt
    trust_reminder: Prompt


_PROMPTS = _Prompts.beside(__file__)


def read_support(text: str) -> Support | None:
    """The support in `Support: strong|weak|none` and `Reason: …`; None for any other form."""
    fields = read_labelled(text, "support")
    for level in ("strong", "weak", "none"):
        if fields is not None and bare_words(fields[0]) == level:
            return Support(level=level, reason=fields[1])
    return None


class TrustJudge:
    """An inner judge's verdict with the support of the answer on it."""

    def __init__(self, inner: Judge, model: ChatModel, *, style: PromptStyle = "full") -> None:
        self._inner = inner
        self._asker = StrictAsker(model)
        self._prompts = _PROMPTS.styled(style)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version, the inner judge's too."""
        own = (self._prompts.trust, self._prompts.trust_reminder)
        return {**self._inner.prompts, **{prompt.name: prompt.version for prompt in own}}

    async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
        """Raises JudgeError only if neither the outcome nor the support could be judged.

        With the support alone the outcome is UNJUDGED; with the outcome alone `fallback` says what is missing.
        """
        if attempt.answer is None or not attempt.answer.text.strip():
            return Verdict(outcome=Outcome.NOT_ATTEMPTED, judge="trust", reason="there is no answer")
        async with asyncio.TaskGroup() as group:
            judging = group.create_task(self._judge_inner(task, attempt, ledger))
            weighing = group.create_task(self._weigh(task.question, attempt, ledger))
        verdict, support = judging.result(), weighing.result()
        if isinstance(support, Support):
            return _combine(verdict, support)
        if isinstance(verdict, JudgeError):
            raise verdict
        missing = f"the support could not be judged: {support.got}"
        return verdict.evolve(judge="trust", fallback="; ".join(filter(None, [verdict.fallback, missing])))

    async def _judge_inner(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict | JudgeError:
        try:
            return await self._inner.judge(task, attempt, ledger)
        except JudgeError as error:
            return error

    async def _weigh(self, question: Question, attempt: Attempt, ledger: Ledger) -> Support | MiaError:
        """The support of an answer; only the question of a task comes here, so no reference can."""
        citations = attempt.answer.citations if attempt.answer else ()
        found = [step.evolve(thinking="") for step in attempt.trace.steps if step.observation and step.observation.ok]
        if not citations and not found:
            return _NOTHING_FOUND
        quotes = "\n".join(f"- [{citation.passage_id}] {' '.join(citation.quote.split())}" for citation in citations)

        def write(words: int) -> str:
            return self._prompts.trust.fill(
                question=show_question(question),
                answer=defuse(attempt.answer.text if attempt.answer else ""),
                citations=defuse(quotes) or "(nothing is cited)",
                observations=render_steps(found, words=words) or "(none)",
            )

        try:
            return await self._asker.ask(
                self._asker.fit(write),
                purpose="support",
                read=read_support,
                reminder=self._prompts.trust_reminder,
                ledger=ledger,
            )
        except (ModelError, BudgetExceeded) as error:
            return error


def _combine(verdict: Verdict | JudgeError, support: Support) -> Verdict:
    if isinstance(verdict, JudgeError):
        return Verdict(outcome=Outcome.UNJUDGED, judge="trust", reason=verdict.got, support=support)
    flag = "" if support.level == "strong" else f"support {support.level}: {support.reason}"
    return verdict.evolve(judge="trust", support=support, reason="; ".join(filter(None, [flag, verdict.reason])))
