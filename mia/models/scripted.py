"""A model that says what you tell it: for tests, docs and load measurements. It runs offline and costs nothing.

    ScriptedModel(lambda request: f"You asked: {request.messages[-1].content}")
    ScriptedModel({"planner/plan": ["1. Search …"], "executor": ["<answer>Paris</answer>"]})

An answer is a text, a whole `ChatReply`, or an exception, which is raised. Tokens are estimated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from mia.errors import ReplayMismatch
from mia.models.base import ChatReply, ChatRequest, Price, estimate_usage
from mia.types import Usage

Answer = str | ChatReply | Exception


class ScriptedModel:
    """Answers from a function of the request, or from lists by role ("executor") or role and purpose
    ("executor/execute", which goes first). A list that is used up raises ReplayMismatch."""

    def __init__(
        self,
        answers: Callable[[ChatRequest], Answer] | Mapping[str, Sequence[Answer]],
        *,
        name: str = "scripted",
        delay: float = 0.0,
        context_window: int = 128_000,
        max_tokens: int = 2048,
        price: Price | None = None,
        keep_requests: bool = True,
    ) -> None:
        """`delay`: seconds that a reply takes. `keep_requests`: off for long runs."""
        self.name = name
        self.context_window = context_window
        self.max_tokens = max_tokens
        self.price = price
        self.requests: list[ChatRequest] = []
        """Every request so far, in order."""
        self._delay = delay
        self._keep_requests = keep_requests
        self._answers = answers if callable(answers) else _from_lists(answers)

    async def complete(self, request: ChatRequest) -> ChatReply:
        if self._keep_requests:
            self.requests.append(request)
        await asyncio.sleep(self._delay)
        answer = self._answers(request)
        if isinstance(answer, Exception):
            raise answer
        reply = ChatReply(answer, model=self.name) if isinstance(answer, str) else answer
        if reply.usage == Usage():
            reply = replace(reply, usage=estimate_usage(request, reply.text, self.price))
        if request.on_text is not None and reply.text:
            request.on_text(reply.text)
        return reply

    async def close(self) -> None:
        """Nothing to let go of."""


def _from_lists(lists: Mapping[str, Sequence[Answer]]) -> Callable[[ChatRequest], Answer]:
    iterators = {name: iter(answers) for name, answers in lists.items()}

    def answer(request: ChatRequest) -> Answer:
        exact = f"{request.role}/{request.purpose}"
        name = exact if exact in iterators else str(request.role)
        found = next(iterators.get(name, iter(())), None)
        if found is None:
            raise ReplayMismatch(f"the script has no more replies for {exact} (turn {request.turn}).")
        return found

    return answer
