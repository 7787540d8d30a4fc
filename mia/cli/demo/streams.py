"""Streams of questions: one rung of the ladder in one world, with a store of its own, which is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mia.cli.demo.folder import STREAMS
from mia.cli.demo.watching import Played, play

if TYPE_CHECKING:
    from mia.config import Config
    from mia.evals.ladder import Rung
    from mia.models import Models
    from mia.statistics import Interval
    from mia.types import Episode, Task
    from mia.world.facts import World

_SIDE_BY_SIDE = 8
"""Questions of a stream without memory that are asked at a time: their order means nothing."""


class Stream:
    """The questions of a world in their order; with a memory, each finds what those before it left."""

    def __init__(self, world: World, tasks: Sequence[Task], config: Config, models: Models) -> None:
        from mia.team import build_team
        from mia.world.engine import WorldEngine

        self.episodes: list[Episode] = []
        self._tasks = tasks
        self._remembers = config.memory.enabled
        self._team = build_team(config, models=models, engine=WorldEngine(world))

    async def live(
        self,
        count: int | None = None,
        *,
        on_question: Callable[[int, Task], None] = lambda number, task: None,
        on_played: Callable[[int, Played], None] = lambda number, played: None,
    ) -> None:
        """Answer and absorb the next questions: so many, or all that are left. Raises StoreError."""
        begin = len(self.episodes)
        end = len(self._tasks) if count is None else begin + count
        left = self._tasks[begin:end]
        if self._remembers:
            groups: list[Sequence[Task]] = [left]
        else:
            groups = [left[start::_SIDE_BY_SIDE] for start in range(_SIDE_BY_SIDE)]
        async with asyncio.TaskGroup() as side_by_side:
            lived = [
                side_by_side.create_task(play(self._team, group, on_question=on_question, on_played=on_played))
                for group in groups
            ]
        place = {task.question.id: number for number, task in enumerate(left)}
        episodes = [played.episode for work in lived for played in work.result()]
        self.episodes += sorted(episodes, key=lambda episode: place[episode.question.id])

    async def close(self) -> None:
        await self._team.close()


@dataclass(frozen=True)
class Row:
    """A rung, measured: whether each question of each world was answered correctly."""

    rung: Rung
    correct: tuple[tuple[bool, ...], ...]
    """By world; within a world, in the order of the stream."""
    failures: int = 0
    """Questions that lost a stage to a failure."""

    @property
    def accuracy(self) -> Interval | None:
        """A share, with its interval over worlds; None for fewer than two worlds."""
        from mia.statistics import clustered

        return clustered(self.correct)

    @property
    def halves(self) -> tuple[float, float] | None:
        """The shares in the first and in the second half of the streams; None for streams of one question."""
        first, second = zip(*((row[: len(row) // 2], row[len(row) // 2 :]) for row in self.correct), strict=True)
        return (_share(first), _share(second)) if any(first) else None

    def step(self, below: Row) -> Interval | None:
        """How much higher the share is than that of another row, in the same worlds; None for fewer than two."""
        from mia.statistics import paired

        ones, others = ([sum(row) / len(row) for row in each.correct] for each in (below, self))
        return paired(ones, others)


def _share(rows: Sequence[Sequence[bool]]) -> float:
    return sum(map(sum, rows)) / sum(map(len, rows))


async def measure(
    rungs: Sequence[Rung],
    worlds: Sequence[World],
    count: int,
    home: Path,
    models: Models,
    *,
    begun: Stream,
    on_played: Callable[[int, Played], None],
) -> list[Row]:
    """Every rung in every world, `count` questions each, all streams side by side.

    `begun`: the stream of the last rung in the first world; it goes on where it stands. Raises StoreError.
    """
    streams: dict[tuple[str, int], Stream] = {(rungs[-1].name, worlds[0].seed): begun}
    async with AsyncExitStack() as opened:
        for world, rung in _missing(worlds, rungs, streams):
            stream = _open(world, rung, count, home, models)
            opened.push_async_callback(stream.close)
            streams[rung.name, world.seed] = stream
        async with asyncio.TaskGroup() as side_by_side:
            for stream in streams.values():
                side_by_side.create_task(stream.live(on_played=on_played))
    return [_row(rung, [streams[rung.name, world.seed] for world in worlds]) for rung in rungs]


def _missing(
    worlds: Sequence[World], rungs: Sequence[Rung], streams: dict[tuple[str, int], Stream]
) -> Iterator[tuple[World, Rung]]:
    return ((world, rung) for world in worlds for rung in rungs if (rung.name, world.seed) not in streams)


def _open(world: World, rung: Rung, count: int, home: Path, models: Models) -> Stream:
    from mia.world.preset import model_settings
    from mia.world.questions import tasks

    config = rung.config(model_settings(), home / STREAMS / f"{world.seed}-{rung.name}")
    search = config.search.model_copy(update={"world": world.seed})
    return Stream(world, tasks(world, count), config.model_copy(update={"search": search}), models)


def _row(rung: Rung, streams: Sequence[Stream]) -> Row:
    correct = (
        tuple(episode.verdict is not None and episode.verdict.correct for episode in stream.episodes)
        for stream in streams
    )
    failures = sum(bool(episode.failures) for stream in streams for episode in stream.episodes)
    return Row(rung, tuple(correct), failures)
