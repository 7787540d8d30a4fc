"""`/`: what is happening now."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fastapi import APIRouter, Request, Response

from mia import statistics
from mia.errors import StoreError
from mia.service.auth import Principal
from mia.service.context import ThePrincipal, TheService
from mia.service.core import Service
from mia.service.dashboard.asking import MOST
from mia.service.dashboard.rendering import PageRoute, ShortQuery, page, segment
from mia.service.durable import Job
from mia.service.live import Ask
from mia.statistics import Interval
from mia.types import Episode, Outcome, Usage

router = APIRouter(include_in_schema=False, route_class=PageRoute)

SHOWN = 15
"""Questions in the list."""
STORED = 30
"""Questions of before the start that figures are drawn from, while too few came since."""


@dataclass(frozen=True)
class Line:
    """One question in the list."""

    id: str
    question: str
    door: str
    scope: str
    begun_at: float
    seconds: float
    stage: str
    """Where it is; empty: it is done."""
    answer: str = ""
    outcome: str = ""
    """Of its verdict; empty: it has none."""
    error: str = ""
    """Why there is no answer."""
    episode_id: str = ""

    @property
    def address(self) -> str:
        return f"/episodes/{segment(self.episode_id)}" if self.episode_id else f"/asks/{segment(self.id)}"


@dataclass(frozen=True)
class Figures:
    """Of the last questions."""

    questions: int
    judged: int
    accuracy: Interval | None
    usage: Usage
    seconds: float
    """Of a question, in the mean."""

    @classmethod
    def of(cls, episodes: Sequence[Episode]) -> Figures:
        correct, judged = tally(episodes)
        return cls(
            len(episodes),
            judged,
            statistics.wilson(correct, judged),
            sum((one.total_usage for one in episodes), Usage()),
            sum(one.seconds for one in episodes) / max(1, len(episodes)),
        )


@dataclass(frozen=True)
class Running:
    """A job under way."""

    job: Job
    done: int
    accuracy: Interval | None
    figures: Figures
    """Of those of its questions that were answered last."""

    @property
    def share(self) -> float:
        return self.done / max(1, self.job.total)


@dataclass(frozen=True)
class Health:
    """In one line."""

    trouble: str
    """What is wrong with the store; empty: nothing."""
    memories: int
    episodes: int
    pending: int
    """Answers that wait to be absorbed."""
    jobs: int


def tally(episodes: Iterable[Episode]) -> tuple[int, int]:
    """How many are correct, and how many were judged."""
    verdicts = [one.verdict for one in episodes if one.verdict is not None]
    judged = [one for one in verdicts if one.outcome is not Outcome.UNJUDGED]
    return sum(one.correct for one in judged), len(judged)


@router.get("/")
async def show(request: Request, service: TheService, principal: ThePrincipal) -> Response:
    now, stamp = await _now(service, principal)
    scope = principal.scope if principal.scope is not None else service.config.memory.scope
    busy = len(request.app.state.asking) >= MOST
    return page(request, "live.html", stamp=stamp, default_scope=scope, busy=busy, learner=service.learner, **now)


@router.get("/now")
async def renew(request: Request, service: TheService, principal: ThePrincipal, seen: ShortQuery = "") -> Response:
    """The part of the page that changes. `seen`: the stamp of what the page has; it is left alone if that holds."""
    now, stamp = await _now(service, principal)
    if stamp == seen:
        return Response(status_code=204)
    return page(request, "_now.html", stamp=stamp, **now)


async def _now(service: Service, principal: Principal) -> tuple[dict[str, Any], str]:
    asks = [one for one in service.live.asks() if principal.may_see(one.scope)]
    episodes = [one.episode for one in asks if one.episode is not None]
    lines = [_line(one) for one in asks if one.finished_at is None][:SHOWN]
    lines += [_line(one) for one in asks if one.finished_at is not None][: SHOWN - len(lines)]
    trouble, memories, kept, pending = "", 0, 0, 0
    jobs: tuple[Job, ...] = ()
    try:
        if len(episodes) < SHOWN:
            held = {one.id for one in episodes}
            stored = await asyncio.to_thread(service.store.list_episodes, scope=principal.scope, limit=STORED)
            older = [one for one in stored if one.id not in held]
            episodes += older
            lines += [_stored(one) for one in older[: SHOWN - len(lines)]]
        memories = await asyncio.to_thread(service.store.count_memories, principal.scope)
        kept = await asyncio.to_thread(service.store.count_episodes, principal.scope)
        pending = await asyncio.to_thread(service.durable.pending_count, principal.scope)
        jobs = await asyncio.to_thread(service.durable.jobs, scope=principal.scope, limit=5, unfinished=True)
    except StoreError as error:
        trouble = error.got
    values: dict[str, Any] = {
        "lines": lines,
        "under_way": sum(1 for one in asks if one.finished_at is None),
        "figures": Figures.of(episodes),
        "health": Health(trouble, memories, kept, pending, len(jobs)),
        "jobs": [_running(job, asks) for job in jobs],
    }
    return values, hashlib.sha256(repr(values).encode("utf-8", "replace")).hexdigest()[:16]


def _line(ask: Ask) -> Line:
    ended = ask.finished_at if ask.finished_at is not None else time.time()
    stage = "" if ask.finished_at is not None else ask.stage or "waiting"
    seconds = round(ended - ask.begun_at, 1)
    line = Line(ask.id, ask.question, ask.door, ask.scope, ask.begun_at, seconds, stage, error=ask.error)
    return replace(line, **_came_of(ask.episode)) if ask.episode is not None else line


def _stored(episode: Episode) -> Line:
    door = "job" if episode.run.startswith("job-") else "run" if episode.run else ""
    seconds = round(episode.seconds, 1)
    line = Line(episode.id, episode.question.text, door, "", episode.started_at, seconds, "")
    return replace(line, **_came_of(episode))


def _came_of(episode: Episode) -> dict[str, Any]:
    """The fields of a line that an episode fills."""
    answer = episode.answer.text if episode.answer is not None else ""
    why = episode.stop.sentence if episode.stop is not None else "there is no answer"
    return {
        "answer": "(held back)" if episode.withheld else answer,
        "outcome": episode.verdict.outcome.value if episode.verdict is not None else "",
        "error": "" if answer or episode.withheld else why,
        "episode_id": episode.id,
    }


def _running(job: Job, asks: Sequence[Ask]) -> Running:
    done = job.total - job.counts.get("queued", 0)
    last = [one.episode for one in asks if one.episode is not None and one.episode.run == job.id]
    return Running(job, done, statistics.wilson(job.correct, job.judged), Figures.of(last))
