"""`/asks`: a question asked in a page, and its stages as they happen. It is answered whether or not the page stays."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Request, Response

from mia.errors import BudgetExceeded, MiaError
from mia.events import StageFinished, StageStarted, StepFinished
from mia.service.auth import Principal
from mia.service.context import ThePrincipal, TheService
from mia.service.core import Service
from mia.service.dashboard.rendering import PageRoute, ShortField, by_htmx, page, see_other
from mia.service.live import Ask
from mia.service.problems import NotFound
from mia.types import Question, Step, Task

MOST = 32
"""Questions under way that were asked in pages."""
SHOWN_STEPS = 12


class Asking:
    """The questions that were asked in pages and are under way."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, app: FastAPI, service: Service, task: Task, ask: Ask) -> None:
        async def answer() -> None:
            # What went wrong is with the ask, for the page to show.
            with contextlib.suppress(MiaError, TimeoutError):
                async with asyncio.timeout(service.config.serve.max_seconds):
                    episode = await service.ask(task, ask.scope, ask=ask, stream=False)
                app.state.metrics.answered(episode, ask.door)

        running = asyncio.create_task(answer(), name=ask.id)
        self._tasks[ask.id] = running
        running.add_done_callback(lambda _: self._tasks.pop(ask.id, None))

    def __len__(self) -> int:
        return len(self._tasks)

    def cancel(self, id: str) -> bool:
        """Whether there was something to break off."""
        running = self._tasks.get(id)
        return running is not None and running.cancel()

    async def close(self) -> None:
        running = tuple(self._tasks.values())
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@contextlib.asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    # Inside the app's own: what is under way ends before the service closes.
    try:
        yield
    finally:
        await app.state.asking.close()


router = APIRouter(prefix="/asks", include_in_schema=False, route_class=PageRoute, lifespan=_lifespan)


@dataclass
class Stage:
    """One stage as a page shows it; several tries at once are one line."""

    name: str
    begun_at: float
    tries: int = 1
    done: int = 0
    seconds: float = 0.0
    summary: str = ""
    ok: bool = True
    steps: list[Step] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return self.done >= self.tries


def stages(events: Iterable[Any]) -> list[Stage]:
    """What the events of a question tell."""
    found: list[Stage] = []
    for event in events:
        if isinstance(event, StageStarted):
            open_ = next((one for one in found if one.name == event.stage and not one.finished), None)
            if open_ is not None:
                open_.tries += 1
            else:
                found.append(Stage(event.stage, event.at))
        elif isinstance(event, StageFinished):
            open_ = next((one for one in found if one.name == event.stage and not one.finished), None)
            if open_ is not None:
                open_.done += 1
                open_.seconds, open_.summary, open_.ok = event.seconds, event.summary, event.ok
        elif isinstance(event, StepFinished):
            executing = next((one for one in reversed(found) if one.name == "execute"), None)
            if executing is not None and len(executing.steps) < SHOWN_STEPS:
                executing.steps.append(event.step)
    return found


@router.post("")
async def ask(
    request: Request,
    service: TheService,
    principal: ThePrincipal,
    question: Annotated[str, Form(max_length=100_000)] = "",
    known: Annotated[str, Form(max_length=10_000)] = "",
    scope: ShortField = "",
) -> Response:
    """`known`: right answers, one to a line, for the judge."""
    chosen = principal.choose(scope.strip() or None, service.config.memory.scope)
    references = tuple(line.strip() for line in known.splitlines() if line.strip())
    task = Task(question=Question.of(question), references=references[:100])
    asking: Asking = request.app.state.asking
    if len(asking) >= MOST:
        raise BudgetExceeded(
            f"{len(asking)} questions from pages are under way.",
            limit="calls",
            scope="run",
            hint="wait for one of them; a job takes many",
        )
    begun = service.live.begin(chosen, task.question, "dashboard")
    asking.begin(request.app, service, task, begun)
    if by_htmx(request):
        answer = page(request, "_ask.html", ask=begun, stages=[], cancellable=True)
        answer.headers["hx-trigger"] = "asked"
        return answer
    return see_other(f"/asks/{begun.id}")


@router.get("/{id}")
async def show(request: Request, id: str, service: TheService, principal: ThePrincipal) -> Response:
    """Its stages so far; for htmx, these alone."""
    found = service.live.get(id)
    if found is None and not by_htmx(request):
        # Done a while ago.
        return see_other(f"/episodes/{id}")
    one = _mine(found, principal)
    cancellable = one.door == "dashboard" and one.finished_at is None
    template = "_ask.html" if by_htmx(request) else "ask.html"
    return page(request, template, ask=one, stages=stages(tuple(one.events)), cancellable=cancellable)


@router.post("/{id}/cancel")
async def cancel(request: Request, id: str, service: TheService, principal: ThePrincipal) -> Response:
    one = _mine(service.live.get(id), principal)
    request.app.state.asking.cancel(id)
    return see_other(f"/asks/{one.id}")


def _mine(ask: Ask | None, principal: Principal) -> Ask:
    """Raises NotFound."""
    if ask is None or not principal.may_see(ask.scope):
        raise NotFound("no such question is under way.", hint="the page 'Episodes' lists what was answered")
    return ask
