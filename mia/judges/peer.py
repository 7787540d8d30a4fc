"""Peer review: judges an answer where no reference is known, from how it was come by.

Three reviewers work at the same time, each on one question: does the reasoning hold (`reasoning`), is what it says in
what was found (`sourcing`), does the answer answer (`validity`: sees question and answer alone). An area chair then
reads their reviews with the trajectory and decides. A reviewer may fail, and the verdict says so; with fewer than two
reviews there is no verdict. A `Task`'s references never come near: only its question is read.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from mia.errors import BudgetExceeded, JudgeError, ModelError
from mia.judges.asking import StrictAsker, bare_words, read_labelled, show_question
from mia.models.base import ChatModel
from mia.models.ledger import Ledger
from mia.prompt import Prompt, PromptSet, PromptStyle, defuse
from mia.transcript import render_attempts
from mia.types import Attempt, Outcome, Question, Review, Task, Verdict

_SCORE = re.compile(r"(10|[1-9])(?: ?/ ?10)?\.?")


@dataclass(frozen=True)
class _Prompts(PromptSet):
    review_reminder: Prompt
    chair: Prompt
    chair_reminder: Prompt


_PROMPTS = _Prompts.beside(__file__, "peer_")


@dataclass(frozen=True)
class Reviewer:
    """One reviewer: what it looks at, what it is shown, and what its review weighs with the chair."""

    name: Literal["reasoning", "sourcing", "validity"]
    importance: float
    prompt: Prompt


REVIEWERS = (
    Reviewer("reasoning", 0.5, Prompt.beside(__file__, "peer_reasoning")),
    Reviewer("sourcing", 0.3, Prompt.beside(__file__, "peer_sourcing")),
    Reviewer("validity", 0.2, Prompt.beside(__file__, "peer_validity")),
)


def read_review(text: str) -> tuple[int, str] | None:
    """(score, reason) of `Score: N` and `Reason: …`; None for any other form. "7/10" is a 7; "7.5" is nothing."""
    fields = read_labelled(text, "score")
    match = _SCORE.fullmatch(fields[0]) if fields else None
    return (int(match[1]), fields[1]) if fields and match else None


def read_decision(text: str) -> tuple[Outcome, str] | None:
    """(outcome, reason) of `Verdict: CORRECT|INCORRECT` and `Reason: …`; None for any other form."""
    fields = read_labelled(text, "verdict")
    word = bare_words(fields[0]) if fields else ""
    return (Outcome(word), fields[1]) if fields and word in ("correct", "incorrect") else None


class PeerJudge:
    """Three reviewers and an area chair, all asked through one model."""

    def __init__(self, model: ChatModel, *, style: PromptStyle = "full") -> None:
        self._asker = StrictAsker(model)
        self._prompts = _PROMPTS.styled(style)
        self._reviewers = tuple(replace(one, prompt=one.prompt.styled(style)) for one in REVIEWERS)

    @property
    def prompts(self) -> dict[str, str]:
        """Prompt name → version."""
        our = self._prompts
        used = (*(reviewer.prompt for reviewer in self._reviewers), our.review_reminder, our.chair, our.chair_reminder)
        return {prompt.name: prompt.version for prompt in used}

    async def judge(self, task: Task, attempt: Attempt, ledger: Ledger) -> Verdict:
        """Raises JudgeError if fewer than two reviewers or no chair could be heard."""
        if attempt.answer is None or not attempt.answer.text.strip():
            return Verdict(outcome=Outcome.NOT_ATTEMPTED, judge="peer", reason="there is no answer")
        reviews, failures = await self._review(task.question, attempt, ledger)
        if len(reviews) < 2:
            raise JudgeError(
                f"only {len(reviews)} of 3 reviewers gave a review ({'; '.join(failures)}).",
                wanted="at least 2 reviews",
                hint="mia doctor",
            )
        try:
            outcome, reason = await self._asker.ask(
                self._write_chair(task.question, attempt, reviews),
                purpose="chair",
                read=read_decision,
                reminder=self._prompts.chair_reminder,
                ledger=ledger,
            )
        except (ModelError, BudgetExceeded) as error:
            raise JudgeError(f"the area chair could not be heard: {error.got}", hint=error.hint) from error
        return Verdict(
            outcome=outcome,
            judge="peer",
            reason=reason,
            reviews=reviews,
            fallback=f"decided on {len(reviews)} of 3 reviews ({'; '.join(failures)})" if failures else "",
        )

    async def _review(
        self, question: Question, attempt: Attempt, ledger: Ledger
    ) -> tuple[tuple[Review, ...], tuple[str, ...]]:
        """The reviews that came, and why the others did not."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._hear(reviewer, question, attempt, ledger)) for reviewer in self._reviewers]
        heard = [task.result() for task in tasks]
        reviews = tuple(item for item in heard if isinstance(item, Review))
        return reviews, tuple(item for item in heard if isinstance(item, str))

    async def _hear(self, reviewer: Reviewer, question: Question, attempt: Attempt, ledger: Ledger) -> Review | str:
        """One review, or the sentence that says why there is none."""
        try:
            score, reason = await self._asker.ask(
                self._asker.fit(_writer(reviewer.prompt, question, attempt)),
                purpose=f"review_{reviewer.name}",
                read=read_review,
                reminder=self._prompts.review_reminder,
                ledger=ledger,
            )
        except (ModelError, BudgetExceeded) as error:
            return f"{reviewer.name}: {error.got}"
        return Review(reviewer=reviewer.name, score=score, reason=reason)

    def _write_chair(self, question: Question, attempt: Attempt, reviews: tuple[Review, ...]) -> str:
        importance = {reviewer.name: reviewer.importance for reviewer in REVIEWERS}
        shown = "\n".join(
            f"<review>\n{review.reviewer} (importance {importance[review.reviewer]:g}): score {review.score} of 10. "
            f"{defuse(review.reason)}\n</review>"
            for review in reviews
        )
        return self._asker.fit(_writer(self._prompts.chair, question, attempt, reviews=shown))


def _writer(prompt: Prompt, question: Question, attempt: Attempt, **more: str) -> Callable[[int], str]:
    """Fills a prompt with those of question, trajectory and answer that it takes."""

    def write(words: int) -> str:
        known = {"question": show_question(question), "answer": defuse(attempt.answer.text if attempt.answer else "")}
        if "trajectory" in prompt.names:
            known["trajectory"] = render_attempts([attempt], words=words)
        return prompt.fill(**{name: known[name] for name in prompt.names & known.keys()}, **more)

    return write
