"""All tasks by name, and which items a measurement is made of."""

from __future__ import annotations

from collections.abc import Sequence

from mia.errors import ConfigError
from mia.evals.ruler import hotpotqa, needles, questions, tracking, words
from mia.evals.ruler.items import Item, Make, Sources, Work

RULER: dict[str, Make] = {**needles.MAKERS, **tracking.MAKERS, **words.MAKERS}
"""What needs no file."""
MAKERS: dict[str, Make] = {**RULER, **questions.MAKERS, **hotpotqa.MAKERS}


def make(work: Work, sources: Sources) -> Item:
    """The text and the question of an item; the same ones whenever and wherever it is made.

    Raises ConfigError for a length that cannot hold its task, or a task that lacks its file.
    """
    return MAKERS[work.task](work, sources)


def works(tasks: Sequence[str], lengths: Sequence[int], samples: int) -> list[Work]:
    """So many items of every task at every length, short texts first. Raises ConfigError for an unknown task."""
    unknown = [task for task in tasks if task not in MAKERS]
    if unknown:
        raise ConfigError(f"there is no task '{unknown[0]}'.", wanted=f"one of {', '.join(MAKERS)}")
    return [
        Work(task, length, number)
        for length in sorted(set(lengths))
        for number in range(samples)
        for task in dict.fromkeys(tasks)
    ]
