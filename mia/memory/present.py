"""Memories as the agents read them: data between `<memory>` tags, with everything inside made harmless.

The Planner reads the whole workflow. The Executor, where it is shown memories at all, reads little: in its context they
help less and cost more.
"""

from __future__ import annotations

from collections.abc import Sequence

from mia.prompt import defuse
from mia.transcript import cut_words
from mia.types import Memory, MemoryKind

_QUESTION_WORDS = 200
_CAPTION_WORDS = 80
_TEXT_WORDS = 400
_REVIEW_WORDS = 50
_EXECUTOR_WORDS = 80


def for_planner(memories: Sequence[Memory]) -> str:
    """Every memory whole: question, judgement, workflow and reviews, or the two plans of a pair."""
    return "\n\n".join(_entry(memory, _plans(memory) if _is_pair(memory) else _workflow(memory)) for memory in memories)


def for_executor(memories: Sequence[Memory]) -> str:
    """Question, judgement and the beginning of the workflow; plan pairs are not for it."""
    return "\n\n".join(
        _entry(memory, [f"Steps: {_harmless(memory.workflow, _EXECUTOR_WORDS)}"])
        for memory in memories
        if not _is_pair(memory)
    )


def _entry(memory: Memory, lines: Sequence[str]) -> str:
    image = [f"Image: {_harmless(memory.caption, _CAPTION_WORDS)}"] if memory.caption else []
    head = '<memory kind="plan pair">' if _is_pair(memory) else f'<memory judgement="{memory.judgement}">'
    return "\n".join([head, f"Question: {_harmless(memory.question, _QUESTION_WORDS)}", *image, *lines, "</memory>"])


def _workflow(memory: Memory) -> list[str]:
    lines = ["Workflow:", _harmless(memory.workflow, _TEXT_WORDS)]
    if memory.provenance.leaned_on:
        # Said, so that what memory repeats to itself is not taken for independent evidence.
        lines.append("(Found with the help of earlier memories.)")
    if memory.reviews:
        lines.append("Reviews of its answer:")
        lines += [
            f"- {review.reviewer}, {review.score} of 10: {_harmless(review.reason, _REVIEW_WORDS)}"
            for review in memory.reviews
        ]
    return lines


def _plans(memory: Memory) -> list[str]:
    return [
        "Plan that led to a correct answer:",
        _harmless(memory.plan, _TEXT_WORDS),
        "Plan that led to an incorrect answer:",
        _harmless(memory.incorrect_plan, _TEXT_WORDS),
    ]


def _harmless(text: str, words: int) -> str:
    return defuse(cut_words(text.strip(), words))


def _is_pair(memory: Memory) -> bool:
    return memory.kind is MemoryKind.PLAN_PAIR
