"""Questions lived one after the other, in front of somebody: each finds what those before it left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mia.cli import output

if TYPE_CHECKING:
    from rich.console import RenderableType

    from mia.team import Team
    from mia.types import Episode, Memory, Task


class Played(NamedTuple):
    """A question's episode, and what the memory holds because of it."""

    episode: Episode
    memories: tuple[Memory, ...]


async def play(
    team: Team,
    tasks: Sequence[Task],
    *,
    on_question: Callable[[int, Task], None] = lambda number, task: None,
    on_played: Callable[[int, Played], None] = lambda number, played: None,
) -> list[Played]:
    """Answer and absorb the tasks in order; told before and after each, counted from 1. Raises StoreError."""
    from mia.episode import absorb, answer
    from mia.models.ledger import Ledger

    played: list[Played] = []
    for number, task in enumerate(tasks, start=1):
        on_question(number, task)
        ledger = Ledger(task.question.id)
        episode = await answer(task, team, ledger)
        played.append(Played(episode, await absorb(episode, team, ledger)))
        on_played(number, played[-1])
    return played


def show(rows: Iterable[RenderableType], pause: float) -> None:
    """Rows for people, on stderr, with so many seconds after each."""
    console = output.console()
    for row in rows:
        console.print(row)
        time.sleep(pause)
