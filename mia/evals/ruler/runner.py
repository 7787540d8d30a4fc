"""Put items to a method, several at a time, and keep each answer at once: stopped or killed, the next call goes on.

An item is made when its turn comes and forgotten with its answer, so that only as many texts are in memory as are asked
at a time. Work that cannot be put to the model (it is down, a budget is spent) stays open and is asked again; a text
that the model's window does not hold, or a reply that cannot be used, is the method's own failure and scores 0.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mia.errors import BudgetExceeded, ContextOverflow, MiaError, ModelReplyError, ModelUnavailable
from mia.evals.ruler import suite
from mia.evals.ruler.items import Item, Sources, Work
from mia.evals.ruler.methods import Method
from mia.evals.ruler.results import Result, ResultLog
from mia.evals.run import first_error
from mia.judges import verifiers
from mia.models.ledger import Account, Budget, Ledger
from mia.types import Usage

Evaluate = Callable[[Work], Awaitable[Result]]
"""Makes, asks and scores one item, here or on another machine."""


class Evaluator:
    """Makes, asks and scores items in this process."""

    def __init__(
        self, sources: Sources, method: Method, *, budget: Budget = Budget(), run_budget: Budget = Budget()
    ) -> None:
        """`budget`: of one item; `run_budget`: of all."""
        self._sources = sources
        self._method = method
        self._budget = budget
        self._account = Account(run_budget, "run")

    async def __call__(self, work: Work) -> Result:
        """Raises ConfigError for an item that cannot be made, ModelError and BudgetExceeded where it cannot be put."""
        # Beside the loop: a text of half a million tokens takes seconds, in which others wait for their replies.
        item = await asyncio.to_thread(suite.make, work, self._sources)
        ledger = Ledger(work.id, budget=self._budget, run=self._account)
        begun = time.monotonic()
        try:
            answer, failure = await self._method.answer(item.text, item.question, ledger), ""
        except (ContextOverflow, ModelReplyError) as error:
            answer, failure = "", type(error).__name__
        return score(item, answer, failure=failure, usage=ledger.total, seconds=time.monotonic() - begun)


def score(item: Item, answer: str, *, failure: str = "", usage: Usage = Usage(), seconds: float = 0.0) -> Result:
    """The answer to an item, marked by the item's measure, and by depth."""
    if item.measure == "share":
        hits = tuple(float(hit) for hit in verifiers.contained(answer, item.references))
        value = verifiers.share_contained(answer, item.references)
    else:
        measure = verifiers.lenient if item.measure == "lenient" else verifiers.lenient_stated
        value = measure(answer, item.references)
        hits = (value,) * len(item.depths)
    return Result(
        task=item.work.task,
        length=item.work.length,
        number=item.work.number,
        tokens=item.tokens,
        references=item.references,
        answer=answer,
        score=value,
        depths=item.depths,
        hits=hits if item.depths else (),
        usage=usage,
        seconds=seconds,
        failure=failure,
    )


@dataclass
class Progress:
    """Where a measurement stands."""

    total: int
    answered: int = 0
    """Of the asked works, those of earlier calls included."""
    unanswered: dict[str, str] = field(default_factory=dict)
    """Item id → why it could not be put; asked again by the next call."""
    stopped: str = ""
    """Why it ended early, if it did."""


class Runner:
    """Answers the open items of a log."""

    def __init__(
        self,
        log: ResultLog,
        works: Sequence[Work],
        evaluate: Evaluate,
        *,
        concurrency: int = 8,
        on_progress: Callable[[Progress], None] = lambda progress: None,
    ) -> None:
        self._log = log
        self._open = [work for work in works if work not in log.results]
        self._evaluate = evaluate
        self._concurrency = concurrency
        self._on_progress = on_progress
        self._unheard_in_a_row = 0
        self.progress = Progress(total=len(works), answered=len(works) - len(self._open))

    def stop(self, why: str) -> None:
        """Put no further item; those under way are finished."""
        self.progress.stopped = self.progress.stopped or why

    async def run(self) -> Progress:
        """Answer every open item. Raises ConfigError for one that cannot be made, ModelError for a model that will not
        serve us, StoreError if a result cannot be kept; what was answered before is kept."""
        self._on_progress(self.progress)
        works = iter(self._open)
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(self._open))):
                    group.create_task(self._work(works))
        except* MiaError as errors:
            raise first_error(errors) from None
        return self.progress

    async def _work(self, works: Iterator[Work]) -> None:
        for work in works:
            if self.progress.stopped:
                return
            try:
                result = await self._evaluate(work)
            except (ModelUnavailable, BudgetExceeded) as error:
                self._unheard(work, error)
            else:
                self._unheard_in_a_row = 0
                await self._log.append(result)
                self.progress.answered += 1
            self._on_progress(self.progress)

    def _unheard(self, work: Work, error: ModelUnavailable | BudgetExceeded) -> None:
        """The item stays open; too many in a row, and all stops."""
        self.progress.unanswered[work.id] = error.got
        self._unheard_in_a_row += 1
        if isinstance(error, BudgetExceeded) and error.scope == "run":
            self.stop(error.got)
        elif self._unheard_in_a_row >= max(3, self._concurrency):
            self.stop(f"{self._unheard_in_a_row} items in a row could not be put: {error.got}")
