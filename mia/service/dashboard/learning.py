"""`/learning`: how rewards and accuracy went, which versions came of it and what became of them, and the way back.

Read is the stream that the service keeps in its home, whether it learns now or did before: the last `SCORES` questions
and the last `UPDATES` updates of it, and the store of versions.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Form, Request, Response

from mia import statistics
from mia.errors import LearnError
from mia.service.context import ThePrincipal, TheService
from mia.service.core import LEARNING, Service
from mia.service.dashboard.charts import Chart, chart, moving_mean, moving_share, window_of
from mia.service.dashboard.rendering import PageRoute, ShortField, page, see_other, version_label
from mia.statistics import Interval

if TYPE_CHECKING:
    from mia.learn.adapters import AdapterStore, Version

router = APIRouter(prefix="/learning", include_in_schema=False, route_class=PageRoute)

SCORES = 2_000
UPDATES = 200
VERSIONS = 40
_BYTES = 4_000_000
"""At most so much of the end of a file is read."""


@dataclass(frozen=True)
class Scored:
    """One question of the stream, as far as it is drawn."""

    correct: bool | None
    rewards: tuple[float, ...]
    version: str
    canary: bool


@dataclass(frozen=True)
class Stream:
    """What the stream says of itself."""

    scores: tuple[Scored, ...]
    updates: tuple[Mapping[str, Any], ...]
    """The rows of `updates.jsonl`, the newest first."""

    @property
    def learnt_from(self) -> tuple[Scored, ...]:
        return tuple(one for one in self.scores if not one.canary)


@dataclass(frozen=True)
class Now:
    """The learner of this server."""

    version: str
    is_learning: bool
    waiting: int
    batch: int
    into: str
    trouble: str


@dataclass(frozen=True)
class Entry:
    """A version on the time line."""

    version: Version
    answers: bool
    """It is the one that answers."""
    there: bool
    """Its weights are on the disk."""
    right: Interval | None
    """Share of the canary that it had right."""
    before: Interval | None
    """… and that the version before it had."""

    @property
    def may_answer_again(self) -> bool:
        return not self.answers and self.there and self.version.state.value in ("promoted", "rolled_back")


@dataclass(frozen=True)
class Line:
    """The versions of one role."""

    role: str
    entries: tuple[Entry, ...]
    """The newest first."""
    more: int
    """Older ones that are not shown."""
    on_base: bool
    """The model as it came answers."""


@router.get("")
async def show(request: Request, service: TheService, principal: ThePrincipal) -> Response:
    # A stream is of one memory: who does not see that sees versions alone.
    mine = principal.may_see(service.config.memory.scope)
    stream = await asyncio.to_thread(read_stream, service) if mine else Stream((), ())
    lines = await asyncio.to_thread(_lines, service)
    learnt = stream.learnt_from
    window = window_of(len(learnt))
    return page(
        request,
        "learning.html",
        now=await _now(service),
        stream=stream,
        lines=lines,
        window=window,
        accuracy=_accuracy(learnt, window),
        reward=_reward(learnt, window),
        overall=_overall(learnt),
        held_out=_overall([one for one in stream.scores if one.canary]),
    )


@router.post("/rollback")
async def rollback(
    service: TheService,
    principal: ThePrincipal,
    role: Annotated[str, Form(max_length=40)],
    to: Annotated[str, Form(max_length=200)] = "",
    reason: ShortField = "",
) -> Response:
    """Let an earlier version, or `base`, answer again. The learner follows with the next question."""
    principal.require_admin("roll versions back")
    store = next((one for one in _stores(service) if one.role.value == role), None)
    if store is None:
        raise LearnError(f"there are no versions of '{role}'.", hint="mia serve --learn makes some")
    why = reason.strip() or f"by {principal.name}, in the dashboard"
    await asyncio.to_thread(store.rollback, to, reason=why)
    return see_other("/learning#versions")


def read_stream(service: Service) -> Stream:
    """Raises LearnError for a file that cannot be read."""
    folder = service.config.home / LEARNING
    updates = tuple(reversed(_last(folder / "updates.jsonl", UPDATES)))
    if service.learner is not None:
        last = service.learner.scores[-SCORES:]
        return Stream(tuple(Scored(one.correct, tuple(one.rewards), one.version, one.canary) for one in last), updates)
    scores = [
        Scored(row.get("correct"), tuple(row.get("rewards", ())), row.get("version", ""), bool(row.get("canary")))
        for row in _last(folder / "scores.jsonl", SCORES)
    ]
    return Stream(tuple(scores), updates)


def _last(path: Path, most: int) -> list[dict[str, Any]]:
    """The last rows of a file of JSON lines, in their order; a line that is torn is passed over. No file: none. Raises
    LearnError."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BYTES))
            lines = file.read().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LearnError(f"cannot read '{path.name}': {error.strerror}.") from error
    rows = []
    for line in lines[-most:]:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return rows


async def _now(service: Service) -> Now | None:
    learner = service.learner
    if learner is None:
        return None
    return Now(
        version=learner.version,
        is_learning=learner.is_learning,
        waiting=await asyncio.to_thread(lambda: learner.waiting),
        batch=learner.settings.batch,
        into=learner.settings.into,
        trouble=learner.stopped or (learner.trouble.got if learner.trouble is not None else ""),
    )


# ── curves ────────────────────────────────────────────────────────────────────────────────────────────────────────


def _accuracy(scores: Sequence[Scored], window: int) -> Chart | None:
    points = moving_share([one.correct for one in scores], window)
    return chart("Accuracy", points, len(scores), low=0.0, high=1.0, as_percent=True, marks=_changes(scores))


def _reward(scores: Sequence[Scored], window: int) -> Chart | None:
    means = [sum(one.rewards) / len(one.rewards) if one.rewards else None for one in scores]
    return chart("Reward", moving_mean(means, window), len(scores), marks=_changes(scores))


def _overall(scores: Sequence[Scored]) -> Interval | None:
    judged = [one.correct for one in scores if one.correct is not None]
    return statistics.wilson(sum(judged), len(judged))


def _changes(scores: Sequence[Scored]) -> list[tuple[int, str]]:
    """Where another version began to answer."""
    found = []
    for at, (before, one) in enumerate(itertools.pairwise(scores), start=2):
        if one.version != before.version:
            found.append((at, version_label(one.version)))
    return found


# ── versions ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _stores(service: Service) -> tuple[AdapterStore, ...]:
    from mia.learn.adapters import open_stores

    return open_stores(service.config.home / "adapters")


def _lines(service: Service) -> list[Line]:
    return [_line(store) for store in _stores(service)]


def _line(store: AdapterStore) -> Line:
    versions, current = store.versions(), store.current()
    name = current.name if current is not None else ""
    entries = tuple(
        Entry(version, version.name == name, store.is_there(version), *_canary(version))
        for version in reversed(versions[-VERSIONS:])
    )
    return Line(store.role.value, entries, len(versions) - len(entries), not name)


def _canary(version: Version) -> tuple[Interval | None, Interval | None]:
    if version.canary is None:
        return None, None
    judged = [pair for pair in version.canary.pairs if pair.judged]
    right = sum(bool(pair.candidate.correct) for pair in judged)
    before = sum(bool(pair.current.correct) for pair in judged)
    return statistics.wilson(right, len(judged)), statistics.wilson(before, len(judged))
