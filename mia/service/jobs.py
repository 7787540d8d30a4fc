"""Jobs are worked off side by side, and fairly: scopes take turns, in a scope its jobs do, and the questions of a job
come in their order.

As many questions are under way as a run has (`run.concurrency`), over all jobs. Whoever has three questions so waits
for the next place that is free, and not for the thousand that somebody else asked before. What is under way is finished
before a place is free: nothing is broken off for another's sake.

What is still to be asked stands on the disk (`durable.py`), and is read a page at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from mia.errors import StoreError
from mia.service.durable import Due, Durable

log = logging.getLogger("mia.service")

PAGE = 100
"""Questions of a job that are read at a time."""
BREATH = 1.0
"""Seconds before the disk is tried again."""


@dataclass(frozen=True)
class Turn:
    """A question of a job whose turn it is."""

    job: str
    scope: str
    due: Due


@dataclass(eq=False)
class _Job:
    """A job that is worked off."""

    id: str
    scope: str
    waiting: deque[Due] = field(default_factory=deque)
    """What was read of it, and not begun."""
    read_to: int = -1
    """The number of the last question that was read."""
    under_way: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    """By number."""
    begun: bool = False
    changes: int = 0
    """How often it was changed from outside: what was being read then is read again."""


class Jobs:
    """The jobs of one service. Belongs to its event loop; `work_off` does the work, the other methods tell it of
    changes, once they are on the disk."""

    def __init__(self, durable: Durable, answer: Callable[[Turn], Coroutine[Any, Any, None]], *, at_once: int) -> None:
        """`answer`: answers a question and notes what came of it, whatever it is; what it raises ends `work_off`."""
        self._durable = durable
        self._answer = answer
        self._places = asyncio.Semaphore(at_once)
        self._jobs: dict[str, _Job] = {}
        self._turns: OrderedDict[str, deque[_Job]] = OrderedDict()
        """Scope → its jobs of which something may be left to ask; both, the next one first."""
        self._under_way: set[asyncio.Task[None]] = set()
        self._ended: deque[_Job] = deque()
        """Those of which nothing is left to ask, and nothing under way."""
        self._fault: BaseException | None = None
        self._stale = True
        """There may be jobs on the disk that are not known here."""
        self._wake = asyncio.Event()

    async def work_off(self) -> None:
        """All there are and all that come, until it is cancelled; what is under way is then broken off."""
        try:
            while True:
                await self._places.acquire()
                self._begin(*await self._next())
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    def added(self) -> None:
        """There are more jobs."""
        self._stale = True
        self._wake.set()

    def changed(self, id: str | None = None) -> None:
        """There is more to ask of a job, or less (None: of any)."""
        for job in [one for one in self._jobs.values() if id in (None, one.id)]:
            job.waiting.clear()
            job.read_to, job.begun, job.changes = -1, False, job.changes + 1
            self._line_up(job)
        self.added()

    def cancelled(self, id: str) -> None:
        """What of a job is under way is broken off."""
        job = self._jobs.pop(id, None)
        if job is not None:
            job.waiting.clear()
            job.changes += 1
            self._leave(job)
            for task in job.under_way.values():
                task.cancel()

    # ── whose turn it is ──────────────────────────────────────────────────────────────────────────────────────────

    async def _next(self) -> tuple[_Job, Due]:
        """The next question; waits for one."""
        while True:
            self._wake.clear()
            if self._fault is not None:
                raise self._fault
            try:
                await self._take_up()
                if (found := await self._turn()) is not None:
                    return found
            except StoreError as error:
                log.error("the jobs could not be gone on with: %s", error.got)
                self._stale = True
                await asyncio.sleep(BREATH)
                continue
            if not self._ended:
                await self._wake.wait()

    async def _take_up(self) -> None:
        """Finish what has ended, and find what is new. Raises StoreError."""
        while self._ended:
            job = self._ended[0]
            await asyncio.to_thread(self._durable.finish_job, job.id)
            self._ended.popleft()
            if self._jobs.get(job.id) is job:
                del self._jobs[job.id]
            # It is not finished where more of it is to be asked by now.
            self._stale = True
        if self._stale:
            self._stale = False
            for id, scope in await asyncio.to_thread(self._durable.unfinished):
                if id not in self._jobs:
                    self._jobs[id] = _Job(id, scope)
                    self._line_up(self._jobs[id])

    async def _turn(self) -> tuple[_Job, Due] | None:
        """None: nothing is left to ask. Raises StoreError."""
        while self._turns:
            scope = next(iter(self._turns))
            job = self._turns[scope][0]
            due = await self._due(job)
            if due is not None:
                if job in self._turns.get(scope, ()):
                    self._turns.move_to_end(scope)
                    self._turns[scope].remove(job)
                    self._turns[scope].append(job)
                return job, due
            self._leave(job)
            if not job.under_way:
                self._ended.append(job)
        return None

    async def _due(self, job: _Job) -> Due | None:
        """The next question of a job. Raises StoreError."""
        while not job.waiting:
            # Whatever is noted of those meanwhile, the page may still show them.
            changes, under_way = job.changes, set(job.under_way)
            page = await asyncio.to_thread(self._durable.open_items, job.id, after=job.read_to, limit=PAGE)
            if page and not job.begun:
                await asyncio.to_thread(self._durable.begin_job, job.id)
            if job.changes != changes:
                continue
            if not page:
                return None
            job.begun, job.read_to = True, page[-1].number
            job.waiting.extend(one for one in page if one.number not in under_way)
        return job.waiting.popleft()

    def _line_up(self, job: _Job) -> None:
        line = self._turns.setdefault(job.scope, deque())
        if job not in line:
            line.append(job)

    def _leave(self, job: _Job) -> None:
        line = self._turns.get(job.scope, deque())
        if job in line:
            line.remove(job)
        if not line:
            self._turns.pop(job.scope, None)

    # ── what is under way ─────────────────────────────────────────────────────────────────────────────────────────

    def _begin(self, job: _Job, due: Due) -> None:
        task = asyncio.create_task(self._answer(Turn(job.id, job.scope, due)), name=job.id)
        job.under_way[due.number] = task
        self._under_way.add(task)

        def end(task: asyncio.Task[None]) -> None:
            del job.under_way[due.number]
            self._under_way.discard(task)
            self._places.release()
            if not task.cancelled() and task.exception() is not None:
                self._fault = task.exception()
            left = job in self._turns.get(job.scope, ())
            if not (job.under_way or left) and self._jobs.get(job.id) is job:
                self._ended.append(job)
            self._wake.set()

        task.add_done_callback(end)
