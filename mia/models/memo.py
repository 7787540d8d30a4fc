"""A model that remembers: what it has answered before, it answers again without being asked.

For what is frozen beside what learns. The Executor that a group of rollouts shares reads the same plan in several of
them, and at temperature 0 writes the same text each time. Only answers that the request decides are remembered: those
at temperature 0, and those with a seed. Anything else is asked anew, and so are calls that failed.

Of a remembered answer everything is as it was the first time, its usage too, so that budgets and turns come out as
they would without a memory. Text is not streamed: it arrives in one piece.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Generic, Protocol, TypeVar

from mia.models.base import Around, ChatReply, ChatRequest, Price

R = TypeVar("R", bound=ChatReply)
R_co = TypeVar("R_co", bound=ChatReply, covariant=True)


class Asked(Protocol[R_co]):
    """A `ChatModel`, or with `TokenReply` a `TokenModel`."""

    @property
    def name(self) -> str: ...
    @property
    def context_window(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def price(self) -> Price | None: ...
    async def complete(self, request: ChatRequest) -> R_co: ...
    async def close(self) -> None: ...


@dataclass
class _UnderWay(Generic[R]):
    """A call that several may wait for."""

    task: asyncio.Task[R]
    waiting: int = 0


class MemoModel(Around[Asked[R]], Generic[R]):
    """Answers equal requests once. It tells the tokens of its answers if the model does.

    A model that is given other weights under the same name must be forgotten (`forget`); the current adapter of a
    `LocalModel` is looked at, and needs no such care.
    """

    def __init__(self, model: Asked[R], *, greedy: bool = False, size: int = 1024) -> None:
        """`greedy`: the model answers at temperature 0 where a request names none. `size`: answers to keep; the one
        that was not asked for the longest gives way."""
        self.hits = 0
        """Requests that cost nothing: remembered, or asked while an equal one was under way."""
        self.misses = 0
        """Requests that could have been remembered, and were not."""
        super().__init__(model)
        self._greedy = greedy
        self._size = size
        self._replies: OrderedDict[str, R] = OrderedDict()
        self._under_way: dict[str, _UnderWay[R]] = {}

    async def complete(self, request: ChatRequest) -> R:
        """Raises what the model raises, to everybody who waited for this call. Who is cancelled leaves; the call goes
        on while anybody waits."""
        if not self._decided(request):
            return await self.model.complete(request)
        key = self._key(request)
        if key in self._replies:
            self.hits += 1
            self._replies.move_to_end(key)
            reply = self._replies[key]
        else:
            reply = await self._wait(key, request)
        if request.on_text is not None and reply.text:
            request.on_text(reply.text)
        return reply

    def forget(self) -> None:
        """Remember nothing of what was answered, or is being answered now."""
        self._replies.clear()
        self._under_way.clear()

    async def _wait(self, key: str, request: ChatRequest) -> R:
        """Join the call that is under way for this request, or begin one."""
        call = self._under_way.get(key)
        if call is None:
            self.misses += 1
            quiet = replace(request, on_text=None, on_retry=None)
            call = _UnderWay(asyncio.create_task(self.model.complete(quiet)))
            self._under_way[key] = call
            call.task.add_done_callback(lambda task: self._finished(key, task))
        else:
            self.hits += 1
        call.waiting += 1
        try:
            return await asyncio.shield(call.task)
        finally:
            call.waiting -= 1
            if not call.waiting and not call.task.done():
                self._leave(key, call.task)
                call.task.cancel()

    def _finished(self, key: str, task: asyncio.Task[R]) -> None:
        # Nobody else may look at the error, where all who waited were cancelled at that very moment.
        failed = task.cancelled() or task.exception() is not None
        if not self._leave(key, task) or failed:
            return
        self._replies[key] = task.result()
        while len(self._replies) > self._size:
            self._replies.popitem(last=False)

    def _leave(self, key: str, task: asyncio.Task[R]) -> bool:
        """Whether the call was still the one under way for its request."""
        call = self._under_way.get(key)
        if call is None or call.task is not task:
            return False
        del self._under_way[key]
        return True

    def _decided(self, request: ChatRequest) -> bool:
        """Whether the request alone decides the answer."""
        if request.seed is not None:
            return True
        return self._greedy if request.temperature is None else request.temperature == 0

    def _key(self, request: ChatRequest) -> str:
        """A digest of all that may decide the answer. Whose question it is, and which turn, decides nothing."""
        content = {
            "messages": [message.model_dump(mode="json") for message in request.messages],
            "role": request.role,
            "purpose": request.purpose,
            "tools": [[tool.name, tool.description, tool.parameters] for tool in request.tools],
            "stop": request.stop,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_tokens": request.max_tokens,
            "seed": request.seed,
            "json_schema": request.json_schema,
            "adapter": request.adapter or getattr(self.model, "adapter", ""),
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
