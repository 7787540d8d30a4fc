"""Finished questions for tests of the memory: episodes as the line leaves them."""

from __future__ import annotations

from collections.abc import Sequence

from mia.types import (
    Answer,
    Attempt,
    Episode,
    Observation,
    Outcome,
    Passage,
    Plan,
    Question,
    Recall,
    RecalledMemory,
    Review,
    Step,
    Stop,
    StopReason,
    ToolCall,
    Trace,
    Verdict,
    new_id,
)

TITAN = Question.of("Who found the largest moon of Saturn?")


def search_step(index: int, *queries: str, titles: Sequence[str] = ("Titan",), ok: bool = True) -> Step:
    """One search and what it found; with `ok` False, an endpoint's error text."""
    passages = tuple(Passage(id=f"p-{title}", title=title, text=f"About {title}.") for title in titles)
    observation = (
        Observation(text="\n".join(found.text for found in passages), passages=passages)
        if ok
        else Observation(text="500 internal server error", ok=False, error="tool_failed")
    )
    return Step(
        index=index,
        text="…",
        thinking=f"I look for {', '.join(queries)}.",
        tool_call=ToolCall(name="search", arguments={"query_list": list(queries)}),
        observation=observation,
    )


def episode(
    outcome: Outcome = Outcome.CORRECT,
    *,
    question: Question = TITAN,
    id: str = "",
    steps: Sequence[Step] = (),
    plan: str = "1. Find the largest moon.\n2. Find who found it.",
    answer: str = "Christiaan Huygens",
    reason: StopReason = StopReason.ANSWERED,
    shown: Sequence[str] = (),
    reviews: tuple[Review, ...] = (),
) -> Episode:
    """An episode of one attempt; without `steps`, of one search."""
    stop = Stop(reason=reason, sentence="")
    said = Answer(text=answer) if answer else None
    attempt = Attempt(
        plan=Plan(text=plan) if plan else None,
        trace=Trace(steps=tuple(steps) or (search_step(0, "largest moon of Saturn"),), stop=stop),
        answer=said,
    )
    recalled = tuple(
        RecalledMemory(memory_id=one, judgement="correct", question="?", rank=1, score=1, parts={}) for one in shown
    )
    return Episode(
        id=id or new_id("ep"),
        question=question,
        started_at=1.0,
        attempts=(attempt,),
        answer=said,
        stop=stop,
        recall=Recall(shown=recalled) if shown else None,
        verdict=Verdict(outcome=outcome, judge="reference", reviews=reviews),
    )
