"""The logs of other agents become memory: a user's past is there on the first day.

Every run becomes an episode, and goes the way of our own: compressed, weighed against the other runs of its question,
kept. A run without a verdict is kept as an episode alone. What was imported before is known by its content.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from pydantic import ValidationError

from mia.errors import RecordError
from mia.memory.exchange.base import (
    LONGEST_LINE,
    Imported,
    Line,
    OnProgress,
    Source,
    Tally,
    parse,
    read_lines,
)
from mia.memory.exchange.messages import is_conversation, read_conversation
from mia.memory.exchange.react import read_react
from mia.memory.exchange.runs import Run, episode
from mia.memory.lessons import is_judged
from mia.memory.manager import Judgement, MemoryManager
from mia.models.ledger import Ledger
from mia.types import Episode, Memory, MemoryState

WINDOW = 4_096
"""Runs that are sorted by question at a time: those of one question within are weighed against each other at once."""
WINDOW_BYTES = 64 * 2**20
"""Of lines; a window ends where it reaches this."""
GROUPS = 64
"""Questions that are stored in one transaction."""

_READERS: Mapping[str, Callable[[Any], Run]] = {"react": read_react, "openai": read_conversation}


async def import_trajectories(
    manager: MemoryManager,
    source: Source,
    *,
    format: Literal["react", "openai"],
    judgement: Judgement | None = None,
    ledger: Ledger | None = None,
    on_progress: OnProgress | None = None,
) -> Imported:
    """Remember the runs of a log; idempotent.

    `judgement`: the verdict of runs whose log has none; None: these are kept unjudged. Raises RecordError (a file that
    cannot be opened), ConfigError (frozen), StoreError; what came before is stored then.
    """
    importer = _Importer(manager, ledger or Ledger("import"), on_progress)
    await importer.refuse_frozen()
    read = _READERS[format]
    episodes: list[Episode] = []
    size = 0
    for line, value in _values(read_lines(source)):
        if line.fault:
            importer.tally.refuse(line.number, line.fault)
            continue
        try:
            run = read(value)
            if run.correct is None and judgement is not None:
                run = replace(run, correct=judgement == "correct")
            episodes.append(episode(run, importer.scope))
        except ValidationError as error:
            importer.tally.refuse(line.number, _first_of(error))
        except RecordError as error:
            importer.tally.refuse(line.number, error.got)
        size += len(line.content)
        if len(episodes) >= WINDOW or size >= WINDOW_BYTES:
            await importer.take(episodes)
            episodes, size = [], 0
    await importer.take(episodes)
    return importer.tally.imported()


class _Importer:
    """Hands episodes to the manager, and counts what became of them."""

    def __init__(self, manager: MemoryManager, ledger: Ledger, on_progress: OnProgress | None) -> None:
        self.tally = Tally()
        self.scope = manager.scope
        self._manager = manager
        self._store = manager.store
        self._ledger = ledger
        self._on_progress = on_progress
        self._done = 0

    async def refuse_frozen(self) -> None:
        """Raises ConfigError before anything is read, if the memory takes nothing in."""
        await self._manager.remember_many([], self._ledger, origin="import")

    async def take(self, episodes: Sequence[Episode]) -> None:
        """Remember what is new among them, the runs of a question together."""
        fresh = await asyncio.to_thread(self._fresh, episodes)
        self._done += len(episodes) - len(fresh)
        groups: dict[str, list[Episode]] = {}
        for one in fresh:
            groups.setdefault(one.question.id, []).append(one)
        sorted_groups = list(groups.values())
        for start in range(0, len(sorted_groups), GROUPS):
            batch = sorted_groups[start : start + GROUPS]
            await self._manager.remember_many(batch, self._ledger, origin="import")
            remembered = [one for group in batch for one in group]
            await asyncio.to_thread(self._count, remembered)
            self._done += len(remembered)
            if self._on_progress is not None:
                self._on_progress(self._done)

    def _fresh(self, episodes: Sequence[Episode]) -> list[Episode]:
        """Those that the store does not hold, or holds without the verdict that has come now."""
        absorbed = self._store.absorbed({one.id for one in episodes})
        fresh: dict[str, Episode] = {}
        for one in episodes:
            there = one.id not in absorbed and one.id in self._store.episodes([one.id])
            if one.id in absorbed or one.id in fresh or (there and not is_judged(one)):
                self.tally.known += 1
            else:
                fresh[one.id] = one
                self.tally.episodes += not there
        return list(fresh.values())

    def _count(self, episodes: Sequence[Episode]) -> None:
        ids = {one.id for one in episodes}
        judged = {one.id for one in episodes if is_judged(one)}
        hidden = self._store.list_memories(None, limit=3 * len(ids), states=(MemoryState.QUARANTINED,))
        made = _made_of(self._store.memories_of(ids), ids)
        quarantined = _made_of(hidden, ids)
        self.tally.added += len(made | quarantined)
        self.tally.quarantined += len(quarantined)
        self.tally.unjudged += len(ids - judged)
        self.tally.waiting += len(judged - self._store.absorbed(judged))


def _made_of(memories: Iterable[Memory], episode_ids: set[str]) -> set[str]:
    return {memory.id for memory in memories if memory.provenance.episode_id in episode_ids}


def _values(lines: Iterator[Line]) -> Iterator[tuple[Line, Any]]:
    """The runs of a file: one a line, or the items of an array, however it is laid out."""
    for line in lines:
        if line.fault:
            yield line, None
            continue
        try:
            value = parse(line.content)
        except RecordError as error:
            if line.number > 1 or line.content.lstrip()[:1] not in (b"[", b"{"):
                yield replace(line, fault=error.got), None
            else:
                yield from _laid_out(replace(line, fault=error.got), lines)
        else:
            yield from _items(line, value)


def _laid_out(first: Line, rest: Iterator[Line]) -> Iterator[tuple[Line, Any]]:
    """A file that is one JSON value over many lines; else what its lines hold each. The fault of the first is known."""
    held, size = [first], len(first.content)
    for line in rest:
        held.append(line)
        size += len(line.content)
        if size > LONGEST_LINE:
            break
    content = b"".join(line.content for line in held)
    try:
        value = parse(content)
    except RecordError:
        yield first, None
        yield from _values(itertools.chain(held[1:], rest))
    else:
        yield from _items(Line(first.number, content), value)


def _items(line: Line, value: Any) -> Iterator[tuple[Line, Any]]:
    if not isinstance(value, list) or is_conversation(value):
        yield line, value
        return
    for number, item in enumerate(value, start=1):
        # An array in the first line is the whole file; the bytes of it count once.
        content = line.content if number == 1 else b""
        yield Line(number if line.number == 1 else line.number, content), item


def _first_of(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"'{where}': {first['msg']}" if where else first["msg"]
