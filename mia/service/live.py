"""What is happening now: the questions under way, with their stages, for streams and the dashboard alike."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mia.events import OnEvent, StageFinished, StageStarted, StepFinished, ignore
from mia.types import Episode, Question, new_id

KEPT_EVENTS = 500
"""Of one question; the pieces of a model's text are not kept, only sent on."""
KEPT_ASKS = 100
"""Questions that are done and still shown."""
SLOW_READER = 5_000
"""Events that wait for one reader; who is further behind is let go of."""


class ReaderTooSlow(Exception):
    """A reader of events took nothing for too long."""


class Subscription:
    """The events of one question for one reader, from the first on."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[Any] = asyncio.Queue()
        self.lost = False

    def put(self, event: Any) -> None:
        if self._waiting.qsize() >= SLOW_READER:
            self.lost = True
            return
        self._waiting.put_nowait(event)

    async def next(self) -> Any:
        """The next event; None at the end. Raises ReaderTooSlow."""
        if self.lost:
            raise ReaderTooSlow
        return await self._waiting.get()


@dataclass
class Ask:
    """One question under way, or done a short while ago."""

    id: str
    """Of the episode that comes of it."""
    scope: str
    question: str
    question_id: str
    door: str
    """Through which it came: api, chat, mcp, job, dashboard, compat."""
    begun_at: float = field(default_factory=time.time)
    finished_at: float | None = None
    stage: str = ""
    events: deque[Any] = field(default_factory=lambda: deque(maxlen=KEPT_EVENTS))
    episode: Episode | None = None
    error: str = ""
    on_event: OnEvent = ignore
    """A listener of whoever asks, besides those who subscribe."""
    _readers: list[Subscription] = field(default_factory=list)

    def tell(self, event: Any) -> None:
        """A listener of the line (`OnEvent`)."""
        if isinstance(event, StageStarted):
            self.stage = event.stage
        if isinstance(event, StageStarted | StageFinished | StepFinished):
            self.events.append(event)
        self.on_event(event)
        for reader in self._readers:
            reader.put(event)

    def finish(self, episode: Episode | None, error: str = "") -> None:
        """Once; those who listen are told that it is the end."""
        if self.finished_at is not None:
            return
        self.finished_at, self.episode, self.error, self.stage = time.time(), episode, error, ""
        for reader in self._readers:
            reader.put(None)

    def listen(self, reader: Subscription) -> None:
        """Tell it what happens from now on, and of the end, as long as the question is kept."""
        self._readers.append(reader)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """From what is kept on; the end is None."""
        reader = Subscription()
        for event in self.events:
            reader.put(event)
        if self.finished_at is not None:
            reader.put(None)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            with contextlib.suppress(ValueError):
                self._readers.remove(reader)


class Live:
    """All that is under way, and the last that was."""

    def __init__(self) -> None:
        self._asks: OrderedDict[str, Ask] = OrderedDict()

    def begin(self, scope: str, question: Question, door: str, *, id: str = "") -> Ask:
        ask = Ask(id or new_id("ep"), scope, question.text, question.id, door)
        self._asks[ask.id] = ask
        while len(self._asks) > KEPT_ASKS:
            done = next((one.id for one in self._asks.values() if one.finished_at is not None), None)
            if done is None:
                break
            del self._asks[done]
        return ask

    def get(self, id: str) -> Ask | None:
        return self._asks.get(id)

    def forget(self, id: str) -> None:
        """Show an episode no more."""
        for ask in [one for one in self._asks.values() if id in (one.id, one.episode.id if one.episode else "")]:
            del self._asks[ask.id]

    def judge(self, episode: Episode) -> None:
        """Show an episode with the verdict that it has now."""
        for ask in self._asks.values():
            if ask.episode is not None and ask.episode.id == episode.id:
                ask.episode = episode

    def asks(self) -> tuple[Ask, ...]:
        """The newest first."""
        return tuple(reversed(self._asks.values()))

    @property
    def under_way(self) -> int:
        return sum(1 for one in self._asks.values() if one.finished_at is None)
