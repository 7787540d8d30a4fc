"""The canary: held-out questions that decide whether a new version may answer.

Both versions answer every question, and only questions that were judged for both count: so what makes a question hard
falls out. A candidate is kept unless it is worse by more than the margin. Where too little could be judged, nothing is
known of the candidate: the version that answers stays, and the result says so.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from enum import StrEnum

from mia import statistics
from mia.errors import LearnError, MiaError
from mia.types import Episode, Outcome, Record, Task

Answerer = Callable[[Task, str], Awaitable[Episode]]
"""Answers a task with the version of this name (empty: the base model), and has the answer judged."""

LEAST_JUDGED = 0.5
"""Share of the questions that must be judged for both versions, or the canary says nothing."""


class Decision(StrEnum):
    KEPT = "kept"
    WORSE = "worse"
    UNJUDGED = "unjudged"
    """Too few questions could be judged."""
    UNEXAMINED = "unexamined"
    """There is no canary: every version is kept."""


class Heard(Record):
    """How one version did with one question."""

    episode_id: str = ""
    correct: bool | None = None
    """None: not judged."""
    why: str = ""
    """Why not."""


class Pair(Record):
    """One question, answered by both."""

    question_id: str
    current: Heard
    candidate: Heard

    @property
    def judged(self) -> bool:
        return self.current.correct is not None and self.candidate.correct is not None


class CanaryResult(Record):
    """What the canary says. It holds ids and verdicts, no text of a question and no reference answer."""

    decision: Decision
    reason: str
    """A sentence for people."""
    current: str
    """The version that answered then; empty: the base model."""
    candidate: str
    margin: float
    pairs: tuple[Pair, ...] = ()

    @property
    def kept(self) -> bool:
        """Whether the candidate may answer."""
        return self.decision in (Decision.KEPT, Decision.UNEXAMINED)

    @property
    def judged(self) -> int:
        return sum(pair.judged for pair in self.pairs)

    @property
    def difference(self) -> statistics.Interval | None:
        """Accuracy of the candidate less that of the current version over the judged pairs, with its 95 % interval;
        None for fewer than two of them."""
        scores = _scores(self.pairs)
        return statistics.paired([one for one, _ in scores], [other for _, other in scores])


async def examine(
    tasks: Sequence[Task], answer: Answerer, current: str, candidate: str, *, margin: float, concurrency: int = 8
) -> CanaryResult:
    """Let two versions answer the same questions, and decide. `margin`: how much worse the share of correct answers may
    be, in [0, 1]. `concurrency`: questions at a time, each answered twice.

    An answer that fails with a MiaError, or that nobody judged, makes its pair not count. Raises LearnError for a
    margin that means nothing; bugs, and CancelledError, pass through.
    """
    if not (math.isfinite(margin) and 0 <= margin <= 1):
        raise LearnError(f"a canary with a margin of {margin}.", wanted="a share from 0 to 1")
    gate = asyncio.Semaphore(concurrency)

    async def compare(task: Task) -> Pair:
        async with gate:
            one, other = await asyncio.gather(_hear(task, answer, current), _hear(task, answer, candidate))
        return Pair(question_id=task.question.id, current=one, candidate=other)

    try:
        async with asyncio.TaskGroup() as group:
            comparing = [group.create_task(compare(task)) for task in tasks]
    except BaseExceptionGroup as several:
        # A bug in `answer`: the first of them says what it is.
        raise several.exceptions[0] from None
    return decide([one.result() for one in comparing], current, candidate, margin=margin)


def decide(pairs: Sequence[Pair], current: str, candidate: str, *, margin: float) -> CanaryResult:
    """Pure. With c and d the counts of correct answers among the n judged pairs, the candidate is worse where
    (c - d) / n > margin."""
    judged = _scores(pairs)
    right, candidate_right = (sum(column) for column in zip(*judged, strict=True)) if judged else (0.0, 0.0)
    if not pairs:
        decision, reason = Decision.UNEXAMINED, "there are no canary questions, so every version is kept"
    elif not judged or len(judged) < LEAST_JUDGED * len(pairs):
        decision = Decision.UNJUDGED
        reason = f"only {len(judged)} of {len(pairs)} canary questions could be judged, so the current version stays"
        if why := next((heard.why for pair in pairs for heard in (pair.current, pair.candidate) if heard.why), ""):
            reason += f" (first: {why})"
    else:
        # Compared as counts with a hair's room, so that a margin of 0.05 allows one question of twenty.
        worse = right - candidate_right > margin * len(judged) + 1e-9
        decision = Decision.WORSE if worse else Decision.KEPT
        reason = (
            f"{candidate_right:.0f} of {len(judged)} canary questions right, against {right:.0f} of the current version"
        )
    return CanaryResult(
        decision=decision, reason=reason, current=current, candidate=candidate, margin=margin, pairs=tuple(pairs)
    )


async def _hear(task: Task, answer: Answerer, version: str) -> Heard:
    try:
        episode = await answer(task, version)
    except MiaError as error:
        return Heard(why=f"{type(error).__name__}: {error.got}")
    if episode.stop is not None and episode.stop.reason.unheard:
        return Heard(episode_id=episode.id, why=episode.stop.sentence or episode.stop.reason.value)
    if episode.verdict is None or episode.verdict.outcome is Outcome.UNJUDGED:
        return Heard(episode_id=episode.id, why=(episode.verdict.reason if episode.verdict else "") or "no verdict")
    return Heard(episode_id=episode.id, correct=episode.verdict.correct)


def _scores(pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """1 for a right answer and 0 for a wrong one, of the current version and of the candidate, for each judged pair."""
    return [(float(pair.current.correct or 0), float(pair.candidate.correct or 0)) for pair in pairs if pair.judged]
