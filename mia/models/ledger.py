"""The ledger of one question: who asked which model what, what it cost, and the hard limits.

Every model call of the line goes through `Ledger.complete`, which checks the budgets *before* the call (a call that
would go over is not made), counts after it, and numbers the turns. A run has an account of its own that all its
questions share, so a run's budget holds whatever the concurrency: what a call may need is reserved before it starts.
Most calls need less than they may. So a call that does not fit beside those under way waits for them to end, and is
refused only once what was really spent leaves no room for it. A call that waits holds nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from mia import events
from mia.errors import BudgetExceeded
from mia.events import OnEvent, Retrying, TextArrived
from mia.models.base import ChatModel, ChatReply, ChatRequest, TokenReply, estimate_prompt
from mia.types import Role, Usage


@dataclass(frozen=True)
class Budget:
    """Hard limits; None is no limit. `money` in US dollars, `seconds` of wall clock."""

    calls: int | None = None
    tokens: int | None = None
    money: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Reservation:
    """What one call may need at most."""

    tokens: int
    cost: float | None


class Account:
    """What was spent against one budget, and what is reserved by calls under way."""

    def __init__(self, budget: Budget, scope: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.budget = budget
        self.scope = scope
        self.spent = Usage()
        self._clock = clock
        self._started_at = clock()
        self._reserved: list[Reservation] = []
        self._settled = asyncio.Event()

    @property
    def seconds_left(self) -> float | None:
        if self.budget.seconds is None:
            return None
        return self.budget.seconds - (self._clock() - self._started_at)

    @property
    def calls_left(self) -> int | None:
        if self.budget.calls is None:
            return None
        return max(0, self.budget.calls - self.spent.calls - len(self._reserved))

    def admits(self, need: Reservation) -> bool:
        """Whether a call with this need fits beside those under way.

        Raises BudgetExceeded if it would not fit without them either.
        """
        refusal = self._refusal(need, ())
        if refusal is not None:
            raise refusal
        return self._refusal(need, self._reserved) is None

    def reserve(self, need: Reservation) -> None:
        self._reserved.append(need)

    def settle(self, need: Reservation, usage: Usage) -> None:
        """Give a reservation back and count what was really used; whoever waits for room looks again."""
        self._reserved.remove(need)
        self.spent = self.spent + usage
        self._settled.set()
        self._settled = asyncio.Event()

    async def settled(self) -> None:
        """Returns when the next call under way has ended."""
        await self._settled.wait()

    def _refusal(self, need: Reservation, held: Sequence[Reservation]) -> BudgetExceeded | None:
        """Why a call with this need could go over a limit, with these calls under way."""
        budget, spent = self.budget, self.spent
        if budget.calls is not None and spent.calls + len(held) >= budget.calls:
            return self._exceeded("calls", f"{budget.calls} calls")
        tokens = spent.tokens + sum(other.tokens for other in held)
        if budget.tokens is not None and tokens + need.tokens > budget.tokens:
            return self._exceeded("tokens", f"{budget.tokens} tokens, {tokens} taken, up to {need.tokens} needed")
        if budget.money is not None:
            if need.cost is None or spent.cost is None:
                return self._exceeded("money", f"${budget.money:g}, and a model in use has no price set")
            cost = spent.cost + sum(other.cost or 0.0 for other in held)
            if cost + need.cost > budget.money:
                return self._exceeded("money", f"${budget.money:g}, ${cost:.4f} taken, up to ${need.cost:.4f} needed")
        left = self.seconds_left
        return self.out_of_time() if left is not None and left <= 0 else None

    def out_of_time(self) -> BudgetExceeded:
        return self._exceeded("seconds", f"{self.budget.seconds:g} seconds")

    def _exceeded(self, limit: str, amount: str) -> BudgetExceeded:
        return BudgetExceeded(
            f"the budget of this {self.scope} does not allow another model call: {amount}.",
            limit=limit,
            scope=self.scope,
            hint=f"raise budget.{self.scope}.{limit} (or set models.*.price for a money budget)",
        )


class Ledger:
    """Accounting, limits, numbering and events for one question. Not shared between questions."""

    def __init__(
        self,
        question_id: str,
        *,
        budget: Budget = Budget(),
        run: Account | None = None,
        on_event: OnEvent = events.ignore,
        clock: Callable[[], float] = time.monotonic,
        stream: bool = False,
    ) -> None:
        self.question_id = question_id
        self.on_event = on_event
        self.usage: dict[Role, Usage] = {}
        self.models: dict[Role, str] = {}
        self.adapters: dict[Role, str] = {}
        self._account = Account(budget, "question", clock)
        self._accounts = (self._account,) if run is None else (self._account, run)
        self._turns: dict[tuple[Role, str], int] = {}
        self._clock = clock
        self._stream = stream

    @property
    def total(self) -> Usage:
        """What was spent so far, over all roles."""
        return self._account.spent

    @property
    def calls_left(self) -> int | None:
        """Model calls that the question's own budget still allows; None for no limit.

        The run's budget is left out: an agent that hurried because a run is ending would spoil the answer, while a
        question that the run could not pay for is simply asked again when it goes on.
        """
        return self._account.calls_left

    @property
    def seconds_left(self) -> float | None:
        """Seconds that every budget still allows; None for no limit."""
        left = [account.seconds_left for account in self._accounts if account.seconds_left is not None]
        return min(left, default=None)

    async def complete(self, model: ChatModel, request: ChatRequest) -> ChatReply:
        """One model call, within the budgets, as soon as there is room for it beside the calls under way.

        Raises BudgetExceeded (no call is made, or it is broken off when time runs out) and ModelError.
        """
        prompt_tokens = estimate_prompt(request)
        reply_tokens = request.max_tokens or model.max_tokens
        cost = model.price.cost(prompt_tokens, reply_tokens) if model.price else None
        need = Reservation(prompt_tokens + reply_tokens, cost)
        await self._reserve(need)
        request = self._number(request)
        usage = Usage(calls=1, cost=None if model.price is None else 0.0)
        begun = self._clock()
        try:
            async with self._in_time():
                reply = await model.complete(request)
            usage = reply.usage
            if adapter := reply.adapter if isinstance(reply, TokenReply) else request.adapter:
                self.adapters[request.role] = adapter
            if model.price is not None:
                usage = usage.evolve(cost=model.price.cost(usage.prompt_tokens, usage.completion_tokens))
            return reply
        finally:
            usage = usage.evolve(seconds=self._clock() - begun)
            for account in self._accounts:
                account.settle(need, usage)
            self.usage[request.role] = self.usage.get(request.role, Usage()) + usage
            self.models[request.role] = model.name

    async def _reserve(self, need: Reservation) -> None:
        """Take what a call may need from every budget at once, or wait until that is possible."""
        async with self._in_time():
            while full := [account for account in self._accounts if not account.admits(need)]:
                await full[0].settled()
        for account in self._accounts:
            account.reserve(need)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """Breaks off when the time of a budget runs out, with BudgetExceeded."""
        try:
            async with asyncio.timeout(self.seconds_left) as deadline:
                yield
        except TimeoutError:
            if not deadline.expired():
                raise
            raise min(self._timed(), key=lambda account: account.seconds_left or 0.0).out_of_time() from None

    def _timed(self) -> list[Account]:
        return [account for account in self._accounts if account.seconds_left is not None]

    def _number(self, request: ChatRequest) -> ChatRequest:
        """The request with its turn number, and with our listeners for streamed text and retries.

        Events are for everyone, and references for the judge alone: its text is not streamed, and what an endpoint says
        of a failed try, which may echo the request, is left out.
        """
        key = (request.role, request.purpose)
        turn = self._turns.get(key, 0)
        self._turns[key] = turn + 1
        of_the_judge = request.role is Role.JUDGE

        def on_text(delta: str) -> None:
            self.on_event(TextArrived(question_id=self.question_id, role=request.role, delta=delta))

        def on_retry(attempt: int, wait_seconds: float, reason: str) -> None:
            self.on_event(
                Retrying(
                    question_id=self.question_id,
                    role=request.role,
                    attempt=attempt,
                    wait_seconds=wait_seconds,
                    reason="the reason may quote the reference, and is not shown" if of_the_judge else reason,
                )
            )

        return replace(
            request,
            question_id=self.question_id,
            turn=turn,
            on_text=on_text if self._stream and not of_the_judge else None,
            on_retry=on_retry,
        )
