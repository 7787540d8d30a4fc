"""What arrives while a piece of work is done is done next, together: no waiting for company, and one call for many."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class Together(Generic[T, R]):
    """Hands what is asked of it to `work`, in a thread, as many at a time as have come and never two batches at once.

    `work` returns one result for each item, in order; a result that is an exception is raised to whoever asked for that
    one, and an exception that it raises is raised to the whole batch. Belongs to one event loop.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R | Exception]], *, most: int) -> None:
        """`most`: of a batch."""
        self._work = work
        self._most = most
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    @property
    def idle(self) -> bool:
        return self._worker is None

    async def __call__(self, item: T) -> R:
        """Raises what `work` raises for it."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        if self._worker is None:
            self._worker = asyncio.create_task(self._work_off())
        return await future

    async def _work_off(self) -> None:
        try:
            while self._waiting:
                batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
                # Whoever has gone meanwhile wants nothing any more.
                batch = [one for one in batch if not one[1].done()]
                if batch:
                    await self._answer(batch)
        finally:
            self._worker = None
            # Not empty only where the loop ends.
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()

    async def _answer(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        work = asyncio.to_thread(self._work, [item for item, _ in batch])
        (outcome,) = await asyncio.gather(work, return_exceptions=True)
        results = [outcome] * len(batch) if isinstance(outcome, BaseException) else outcome
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
